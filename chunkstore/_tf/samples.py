"""Where the samples come from: a container, or a selection of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.schema import Field
from chunkstore._loading.epochs import fingerprint_of
from chunkstore._read.many import Paths, is_paths
from chunkstore._read.many import open as open_reader
from chunkstore._read.ragged import Ragged
from chunkstore._read.reader import Reader
from chunkstore._read.select import Selection
from chunkstore._tf.columns import Column, RaggedMode


class Samples:
    """A reader and, for a selection, the positions in it.

    Attributes:
        reader: what reads; opened here where a path was given, and then closed with the last use.
        positions: int64, shape (N,), of a selection; None for a whole container.
    """

    def __init__(
        self,
        source: Paths | Reader | Selection,
        fields: Sequence[str] | None,
        backend: Literal["auto", "mmap", "pread"],
        verify: Literal["once", "always", "off"],
    ) -> None:
        if isinstance(source, Reader | Selection):
            if backend != "auto" or verify != "once":
                raise ValueError("backend, verify: give them to chunkstore.open; the reader given here has its own")
            self._rows: Reader | Selection = source
        elif is_paths(source):
            self._rows = open_reader(source, backend=backend, verify=verify, fields=fields)
        else:
            raise TypeError(f"source: expected a path or a Reader, found {type(source).__name__}")
        self.positions: NDArray[np.int64] | None = None
        if isinstance(self._rows, Selection):
            self.positions = self._rows.positions
            reader = self._rows.reader
            assert isinstance(reader, Reader)
            self.reader = reader
        else:
            self.reader = self._rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def path(self) -> str:
        """Of the container."""
        return self.reader.path

    @property
    def fingerprint(self) -> str:
        """Identity of the samples and their sequence."""
        return fingerprint_of(self._rows)

    @property
    def fields(self) -> Mapping[str, Field]:
        """Of the reader."""
        return self.reader.fields

    def block_starts(self) -> NDArray[np.int64]:
        """Where shards begin, for block shuffle."""
        if self.positions is not None:
            raise ValueError("block_size: needed for shuffle='block', except for a whole container, which has shards")
        return self.reader._index.shard_starts

    def mean_nbytes(self, names: Sequence[str]) -> int:
        """Stored bytes of these fields of one sample, on average over the container."""
        stored = sum(int(self.reader._field_index(name).block_nbytes.sum()) for name in names)
        return stored // max(1, len(self.reader))

    def batch(
        self, ids: NDArray[np.int64], names: Sequence[str], out: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any] | Ragged]:
        """As `Reader.batch`, of ids in the selection."""
        return self._rows.batch(ids, fields=names, out=out)

    def read_positions(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions in the container of ids in the selection."""
        return ids if self.positions is None else self.positions[ids]


def columns_of(
    rows: Samples, fields: Sequence[str] | None, ragged: RaggedMode, pad_value: Any, single: bool
) -> list[Column]:
    """The columns of a dataset, in the order of `fields` or of the container; `single`: of samples, not of batches.

    Raises:
        ValueError: an unknown field.  TypeError: TensorFlow cannot carry a dtype.
    """
    known = rows.fields
    if isinstance(fields, str):
        raise TypeError(f"fields: expected a sequence of names, found one text; use [{fields!r}]")
    names = tuple(known) if fields is None else tuple(fields)
    for name in names:
        if name not in known:
            raise ValueError(f"fields: {rows.path} has no field {name!r}; there are {', '.join(map(repr, known))}")
    if not names:
        raise ValueError("fields: expected at least one name, found none")
    return [Column(known[name], rows.path, names, ragged, pad_value, single) for name in dict.fromkeys(names)]
