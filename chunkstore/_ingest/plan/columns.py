"""Where the rows of a field come from: columns, no object per sample.

A *piece* is one stored array. In `files`, `paired` and `classes` piece p is sample p, whole; in `rows` a piece is a
run of samples, and `start` says which.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkstore._format import dtypes
from chunkstore._format.schema import Field
from chunkstore._ingest.npy.arrays import ArrayKind
from chunkstore._ingest.npy.casts import Cast, resolve_cast
from chunkstore._ingest.plan.specs import leaf_of

Ints = npt.NDArray[Any]
NPY, STORED, DEFLATED = 0, 1, 2
"""How an array is stored: in a file of its own, or in an `.npz`."""
OBJECT = "object"
NUMBERS = ("file", "kind", "method", "offset", "stored", "nbytes", "crc")
PER_PIECE = (*NUMBERS, "dims")


@dataclass(frozen=True)
class Column:
    """Sources of one field.

    Attributes:
        array: name in the `.npz`, None in an `.npy`.
        member: names down to the member of a structured array.
        target: the format's dtype, or OBJECT until the pickles were read.
        start: int64 [P + 1], first sample of each piece; None where piece p is sample p.
        file, kind: per piece the number of its file and of its kind.
        method: per piece NPY, STORED or DEFLATED.
        offset, stored, nbytes, crc: per piece as in `npz.Member`.
        dims: int64 [P, ndim], shape of the stored array.
        subshape: dimensions that a structured member adds.
        shapes: int64 [N, v] per sample where they are not those of the array (texts, rows of object arrays), else None.
        values: int64 [N] where the field has no source (class numbers), else None.
    """

    array: str | None
    member: tuple[str, ...]
    target: str
    start: Ints | None
    file: Ints
    kind: Ints
    method: Ints
    offset: Ints
    stored: Ints
    nbytes: Ints
    crc: Ints
    dims: Ints
    subshape: tuple[int, ...]
    shapes: Ints | None = None
    values: Ints | None = None

    @property
    def num_pieces(self) -> int:
        return len(self.file)

    @property
    def is_rows(self) -> bool:
        """Whether the first axis of a piece counts samples."""
        return self.start is not None

    @property
    def holds_objects(self) -> bool:
        """Whether the rows are elements of object arrays."""
        return self.shapes is not None and self.target != dtypes.STRING

    def samples(self, piece: int) -> tuple[int, int]:
        """First sample of a piece, and the one behind its last."""
        return (piece, piece + 1) if self.start is None else (int(self.start[piece]), int(self.start[piece + 1]))

    def piece(self, sample: int) -> int:
        """The piece that a sample lies in."""
        return sample if self.start is None else int(np.searchsorted(self.start, sample, "right")) - 1

    def row_dims(self) -> Ints:
        """Shapes of the rows, per piece: int64 [P, n]."""
        dims = self.dims[:, 1:] if self.is_rows else self.dims
        if not self.subshape:
            return dims
        tail = np.broadcast_to(np.array(self.subshape, np.int64), (len(dims), len(self.subshape)))
        return np.concatenate([dims, tail], axis=1)

    def forward_only(self) -> bool:
        """Whether several samples come out of one stream that only goes forward: going back in it starts over."""
        return self.is_rows and (self.holds_objects or bool((self.method == DEFLATED).any()))

    def slice(self, start: int, stop: int) -> Column:
        """Samples `[start, stop)`; pieces of `rows` that are cut keep their whole array, so their `start` may be
        negative.
        """
        if self.start is None:
            low, high, begin = start, stop, None
        else:
            low = self.piece(start)
            high = int(np.searchsorted(self.start, stop, "left"))
            begin = self.start[low : high + 1] - start
        cut = {f.name: getattr(self, f.name)[low:high] for f in fields(self) if f.name in PER_PIECE}
        for name in ("shapes", "values"):
            table = getattr(self, name)
            cut[name] = None if table is None else table[start:stop]
        return replace(self, **cut, start=begin)


def renumber(columns: Iterable[Column]) -> tuple[npt.NDArray[np.int64], tuple[Column, ...]]:
    """The files that are used, ascending, and the columns with their numbers among those."""
    found = list(columns)
    used = np.unique(np.concatenate([column.file for column in found])).astype(np.int64)
    return used, tuple(replace(column, file=np.searchsorted(used, column.file).astype(np.int32)) for column in found)


def label_column(values: Ints) -> Column:
    """Column of class numbers."""
    empty = np.zeros(0, np.int64)
    parts = dict.fromkeys(PER_PIECE, empty) | {"dims": np.zeros((0, 0), np.int64)}
    return Column(array=None, member=(), target="int64", start=None, **parts, subshape=(), values=values)


def make_field(name: str, column: Column) -> Field:
    """Schema field: a dimension that is not the same in all samples becomes None."""
    if column.target == dtypes.STRING:
        return Field(name, column.target, ())
    dims = column.shapes if column.shapes is not None else column.row_dims()
    shape = tuple(int(side[0]) if (side == side[0]).all() else None for side in dims.T)
    return Field(name, column.target, shape)


def dtype_in(column: Column, kind: ArrayKind) -> np.dtype[Any]:
    """dtype of the column's elements in arrays of a kind."""
    leaf = leaf_of(column.array, kind.dtype, column.dims.shape[1], column.member)
    assert leaf is not None  # the files agreed on it
    return leaf.dtype


def cast_of(column: Column, kind: ArrayKind, name: str) -> Cast | None:
    """Cast for pieces of a kind; None for object arrays."""
    dtype = dtype_in(column, kind)
    return None if dtype.kind == "O" else resolve_cast(dtype, column.target, name)


def count_items(shapes: Ints) -> Ints:
    """Product of each row."""
    items: Ints = np.prod(shapes, axis=1, dtype=np.int64)
    return items
