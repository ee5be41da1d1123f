"""`Opened`: one generation of a container with everything that a read needs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from chunkstore._format.field_index import FieldIndex
from chunkstore._format.index import Index
from chunkstore._format.keys import KeyIndex
from chunkstore._read import distant
from chunkstore._read.checked import Checker, Verify
from chunkstore._read.gather import Rows, rows_of
from chunkstore._read.hints import Hints
from chunkstore._read.keys import Keys
from chunkstore._storage.source import Source
from chunkstore.errors import ChunkstoreError


class Opened:
    """One generation of a container, opened: everything that a read needs.

    Fields are made ready when they are first read: a container may have thousands.

    Attributes:
        numbers: name -> number in the schema, of the fields that are read.
        made: name -> rows, of those that were wanted so far.
        rows: of all of them; made at the first use.
        getters: (name, position -> row) of all of them; made at the first use, and again when a field is proven.
    """

    __slots__ = (
        "__weakref__", "_verify", "check_size", "getters", "hints", "index", "keys", "made", "num_samples", "numbers",
        "prefetches", "rows", "source",
    )  # fmt: skip

    rows: dict[str, Rows]
    getters: list[tuple[str, Callable[[int], Any]]]

    def __init__(self, source: Source, index: Index, verify: Verify, fields: Sequence[str] | None) -> None:
        self.source = source
        self.index = index
        self.num_samples = index.num_samples
        self.keys = None if index.keys is None else Keys(index.keys, index.num_samples)
        self._verify: Verify = verify
        names = [field.name for field in index.fields]
        self.numbers = {name: number for number, name in enumerate(names) if fields is None or name in fields}
        self.made: dict[str, Rows] = {}
        self.hints = Hints()
        self.prefetches = Hints()
        self.check_size: Callable[[], None] = source.check_size if source.backend == "mmap" else _nothing

    def __getattr__(self, name: str) -> Any:
        # Asked only for what is not there yet.
        if name == "rows":
            self.rows = {each: self.field(each) for each in self.numbers}
            return self.rows
        if name == "getters":
            found = [(each, rows.getter()) for each, rows in self.rows.items()]
            self.getters = distant.getters(self.source, self.rows, found) if self.source.distant else found
            return self.getters
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def field(self, name: str) -> Rows:
        """How to read one field, by a name that is in `numbers`."""
        made = self.made.get(name)
        # Threads that make one at the same time must get the same: it remembers what is proven.
        return made or self.made.setdefault(name, self._rows(self.numbers[name]))

    def _rows(self, number: int) -> Rows:
        field_index = FieldIndex(self.index, number)
        # Nothing below may refer to this object: a cycle would keep the map until the garbage collector runs.
        key = partial(key_for_message, self.index.keys)
        checker = Checker(field_index, self.source, self._verify, key, self.hints)
        checker.when_done = partial(_forget_getters, weakref.ref(self))
        return rows_of(field_index, self.source, checker, partial(self.index.dictionary, number))


def _forget_getters(opened: weakref.ref[Opened]) -> None:
    """Those of a field that is proven as a whole need not look whether a row is."""
    with suppress(AttributeError):  # not made so far, or gone with its reader
        del opened().getters  # type: ignore[union-attr]


def key_for_message(keys: KeyIndex | None, position: int) -> str | None:
    """The key of a sample; None also where it is damaged itself."""
    try:
        return None if keys is None else keys.text(position)
    except ChunkstoreError:
        return None


def _nothing() -> None:
    """Reads that cannot go beyond the file need no look at its size."""
