"""Reading from a source where each read costs a round trip: one call brings what all fields need, then they read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.section import join_ranges
from chunkstore._read.batch import Positions, is_run
from chunkstore._read.gather import FixedRows, Rows
from chunkstore._read.ragged import Ragged
from chunkstore._storage.ranges import coalesce
from chunkstore._storage.remote import RemoteSource
from chunkstore._storage.source import Source
from chunkstore.errors import FormatError, ReplacedError

_STAGED_NBYTES: Final = 256 << 20
INDEX_NBYTES = 256 << 20  # of pages that a reader keeps: the sums of 128 GB of small rows
Getter = Callable[[int], Any]


def needed(source: Source, rows: Collection[Rows], positions: Positions) -> tuple[Positions, Positions]:
    """(offset, nbytes) of all that reading these rows takes: data, and pages of the index not seen yet.

    Where pages of the index say what it is, all that are missing come by one call, of all fields and containers.
    """
    first = join_ranges(each.needed_first(positions) for each in rows)
    with source.staged(*first) if first[0].size else nullcontext():
        return join_ranges(each.needed(positions) for each in rows)


def batch(
    source: Source, positions: Positions, targets: list[tuple[str, Rows, Any]]
) -> dict[str, NDArray[Any] | Ragged]:
    """As `Reader.batch`: one call for all fields, which brings rows straight to where they belong if they lie alone."""
    run = is_run(positions)
    straight = {} if run else {name: each for name, each, _ in targets if isinstance(each, FixedRows) and each.alone}
    rest = needed(source, [each for name, each, _ in targets if name not in straight], positions)
    rows = [each.index.rows(positions) for each in straight.values()]
    sums = [each.checker.needed_sums(positions) for each in straight.values()]
    offsets, nbytes = join_ranges([*rows, *sums, rest])
    if run:  # it is read at once, and would be fetched again where a part of it is in the head and the rest is not
        starts, stops = coalesce(offsets[nbytes > 0], (offsets + nbytes)[nbytes > 0], 0)
        offsets, nbytes = starts, stops - starts
    # A very large batch is not in memory twice: each field is read in steps.
    if int(nbytes.sum()) > _STAGED_NBYTES:
        straight = {}
        staged: AbstractContextManager[None] = nullcontext()
    else:
        into = [row for name, _, target in targets if name in straight for row in straight[name].split(target)]
        staged = source.staged(offsets, nbytes, into)
    with staged:
        if run:
            start = positions.item(0)
            return {name: each.run(start, start + len(positions), target) for name, each, target in targets}
        return {
            name: straight[name].proved(positions, target) if name in straight else each.batch(positions, target)
            for name, each, target in targets
        }


def is_heavy(source: Source) -> bool:
    """Whether the pages of the index that were read have much memory by now; then they count from 0 again."""
    if not isinstance(source, RemoteSource) or source.num_read_nbytes <= INDEX_NBYTES:
        return False
    source.num_read_nbytes = 0
    return True


def prefetch(source: Source, positions: Positions, rows: Collection[Rows]) -> None:
    """Fetch in the background what `batch` will need. Nothing goes wrong here: `batch` asks again, and tells."""
    with suppress(OSError, FormatError, ReplacedError):  # of pages of the index, which are waited for
        source.advise(*needed(source, rows, positions))


def getters(source: Source, rows: Mapping[str, Rows], found: list[tuple[str, Getter]]) -> list[tuple[str, Getter]]:
    """The same functions position -> row: asked one after another, the first brings the rows of all fields at once."""
    every, names = tuple(rows.values()), [name for name, _ in found]
    here = threading.local()

    def get(name: str, position: int) -> Any:
        if name == names[0]:
            with source.staged(*needed(source, every, np.array([position]))):
                here.rows = {each: row(position) for each, row in found}
        return here.rows.pop(name)

    return [(name, partial(get, name)) for name in names]
