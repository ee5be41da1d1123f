"""`Ragged`: rows of one field that differ in size, as values and offsets."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.schema import Field
from chunkstore.errors import CorruptError, LimitError

_NEAR_LIMIT: Final = 2**62  # sums of floats below it are sums of less than 2^63


@dataclass(frozen=True, eq=False)
class Ragged:
    """B rows that differ in size: the pair of arrays that nested and ragged tensors are made of.

    Row `i` is `values[offsets[i]:offsets[i + 1]]`, reshaped where more than the first dimension varies.

    Attributes:
        values: shape (total, *item_shape): the rows back to back; `uint8` for texts. An item is the part of a row whose
            shape is the same in all of them.
        offsets: int64, shape (B + 1,): where rows begin, counted in items; from 0, not descending.
        shapes: int64, shape (B, v): the first v dimensions of each row; None where only the first varies (v = 1).
        text: whether each row is one UTF-8 text.

    What a batch or a slice gives owns its memory; what `column` gives may be views of the map, read-only. Pickles with
    its values.
    """

    values: NDArray[Any]
    offsets: NDArray[np.int64]
    shapes: NDArray[np.int64] | None = None
    text: bool = False

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Any:
        """One row: a view in its own shape, or a `str`. About 1 µs.

        Raises:
            IndexError: the index is outside [-B, B).
        """
        row = operator.index(index)
        if row < 0:
            row += len(self)
        if not 0 <= row < len(self):
            raise IndexError(f"row {index} of a Ragged with {len(self)} rows")
        values = self.values[self.offsets[row] : self.offsets[row + 1]]
        if self.text:
            return _decoded(values.tobytes(), row)
        if self.shapes is None:
            return values
        return values.reshape(*self.shapes[row].tolist(), *self.values.shape[1:])

    def __iter__(self) -> Iterator[Any]:
        """Rows in order, as `self[i]` gives them."""
        if self.shapes is not None:
            yield from (self[row] for row in range(len(self)))
        elif self.text:
            yield from self._texts()
        else:
            yield from (self.values[start:stop] for start, stop in pairwise(self.offsets.tolist()))

    def __repr__(self) -> str:
        what = "texts" if self.text else f"rows of {self.values.dtype}"
        item = "" if self.values.ndim == 1 else f" of shape {self.values.shape[1:]}"
        return f"Ragged({len(self)} {what}, {len(self.values)} items{item})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if not self.text:
            raise ValueError("the rows differ in shape and make no one array; use .values and .offsets, or .pad()")
        return np.array(self.tolist(), dtype)

    def tolist(self) -> list[Any]:
        """The rows as a list: of `str` for texts, otherwise of array views."""
        return list(self)

    def counts(self) -> NDArray[np.int64]:
        """Items of each row; shape (B,)."""
        return np.diff(self.offsets)

    def pad(self, value: Any = 0, shape: tuple[int, ...] | None = None) -> NDArray[Any]:
        """One array with every row in the lower corner, filled up with `value`.

        Args:
            value: must fit the dtype; for texts 0.
            shape: the varying dimensions of the result, default the largest that occur; longer rows are refused.
        Returns:
            Shape (B, *shape, *item_shape), fresh.
        Raises:
            ValueError: a row is larger than `shape`.
        """
        dims = self.counts()[:, None] if self.shapes is None else self.shapes
        largest = tuple(dims.max(axis=0).tolist()) if len(dims) else (0,) * dims.shape[1]
        wanted = largest if shape is None else tuple(shape)
        if len(wanted) != dims.shape[1] or any(have > want for have, want in zip(largest, wanted, strict=True)):
            raise ValueError(f"shape: expected {dims.shape[1]} dimensions of at least {largest}, found {wanted}")
        value = np.array(value, self.values.dtype)  # NumPy 2.0 wraps in `full` what does not fit
        padded = np.full((len(self), *wanted, *self.values.shape[1:]), value)
        if self.shapes is None:
            # One write for all rows: a mask of the places that hold an item.
            padded[np.arange(wanted[0]) < dims] = self.values
            return padded
        for row, dim in enumerate(dims.tolist()):
            padded[row][tuple(map(slice, dim))] = self[row]
        return padded

    def _texts(self) -> Iterator[str]:
        blob = self.values.tobytes()
        bounds = enumerate(pairwise(self.offsets.tolist()))
        return (_decoded(blob[start:stop], row) for row, (start, stop) in bounds)


def row_offsets(field: Field, counts: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Offsets of rows; `most`: no row has more items than that, 0 where nobody knows."""
    try:
        return offsets_of(counts, most if field.item_nbytes else 0)
    except OverflowError as error:
        raise LimitError(f"field {field.name!r}: {error}") from None


_Column = TypeVar("_Column", bound="NDArray[Any] | Ragged")


def read_only(whole: _Column) -> _Column:
    """A fresh column, which nobody is to write to."""
    for array in (whole.values, whole.offsets) if isinstance(whole, Ragged) else (whole,):
        array.flags.writeable = False
    return whole


def only_row(rows: Ragged, position: int, path: str, field: Field) -> Any:
    """The row of a batch of one, read-only."""
    if field.is_string:
        return text_of(rows.values.tobytes(), position, path, field)
    rows.values.flags.writeable = False
    return rows[0]


def text_of(data: bytes, position: int, path: str, field: Field) -> str:
    """A row of a text field."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CorruptError(f"{path}: sample {position}, field {field.name!r}: the text is not UTF-8: {error}") from None


def _decoded(data: bytes, row: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CorruptError(f"row {row} of the batch is a text, but not UTF-8: {error}") from None


def offsets_of(counts: NDArray[np.int64], most: int = 0) -> NDArray[np.int64]:
    """Offsets of rows with these counts; shape (B + 1,).

    Args:
        most: no count is larger, where that is known without a look; otherwise 0.
    Raises:
        OverflowError: more than 2^63 - 1 items in all.
    """
    if not most or most * len(counts) > _NEAR_LIMIT:
        total = float(np.sum(counts, dtype=np.float64))
        if total > _NEAR_LIMIT and sum(counts.tolist()) >= 2**63:
            raise OverflowError(f"{total:.3g} items in one batch")
    offsets = np.zeros(len(counts) + 1, np.int64)
    counts.cumsum(out=offsets[1:])
    return offsets


def split_batch(batch: Mapping[str, NDArray[Any] | Ragged]) -> Iterator[dict[str, Any]]:
    """Samples of a batch, one by one."""
    columns = []
    for values in batch.values():
        array = values.values if isinstance(values, Ragged) else values
        array.flags.writeable = False
        columns.append(iter(values) if isinstance(values, Ragged) or values.ndim > 1 else _scalars(values))
    names = tuple(batch)
    for rows in zip(*columns, strict=True):
        yield dict(zip(names, rows, strict=True))


def _scalars(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Arrays of no dimensions, where iteration would give NumPy scalars."""
    return (values[place, ...] for place in range(len(values)))
