"""Batches that are made already, in a `DataLoader` that wants to make them from samples.

`DataLoader` hands what `__getitems__` returned to `default_collate`, which looks up the type of the first element in
`default_collate_fn_map`. So the elements of our batches have a type of their own, and what is registered for it
returns the batch as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch.utils.data._utils.collate import default_collate, default_collate_fn_map

from chunkstore._torch.convert import Column, RaggedTensors, split

Columns = dict[str, Column]


class Sample(dict[str, Any]):
    """One sample: name -> tensor. A dict that knows how its fields are put together again."""

    __slots__ = ("columns",)

    def __init__(self, values: Any = (), columns: Columns | None = None) -> None:
        super().__init__(values)
        self.columns: Columns = columns or {}

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)


class Whole:
    """The only element of a batch that cannot be taken apart: what a `batch_transform` made."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class Batch(Sequence[Any]):
    """A batch as a sequence of its samples, which are made when they are asked for.

    Attributes:
        values: the batch itself, what `default_collate` returns.
    """

    __slots__ = ("_columns", "_num_samples", "values")

    def __init__(self, values: Any, num_samples: int, columns: Columns) -> None:
        self.values = values
        self._num_samples = num_samples
        self._columns = columns

    def __len__(self) -> int:
        return self._num_samples

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...

    def __getitem__(self, index: int | slice) -> Any:
        """Samples: views of the batch's tensors."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of a batch of {len(self)}")
        if not isinstance(self.values, dict) or not all(map(self._has_rows, self.values.values())):
            return Whole(self.values)
        place = index % len(self)
        return Sample({name: _row(value, place) for name, value in self.values.items()}, self._columns)

    def _has_rows(self, value: Any) -> bool:
        if isinstance(value, RaggedTensors):
            return len(value.offsets) == len(self) + 1
        if isinstance(value, torch.Tensor):
            return bool(value.shape[:1] == (len(self),))
        return isinstance(value, list) and len(value) == len(self)


def _row(value: Any, place: int) -> Any:
    if not isinstance(value, RaggedTensors):
        return value[place]
    start, stop = value.offsets[place : place + 2].tolist()
    offsets = torch.tensor([0, stop - start], device=value.values.device)
    shapes = None if value.shapes is None else value.shapes[place : place + 1]
    return split(RaggedTensors(value.values[start:stop], offsets, shapes))[0]


def collate(samples: Sequence[Any], *, collate_fn_map: Any = None) -> Any:
    """What `default_collate` calls for samples of ours.

    Raises:
        ValueError: samples have other names than the first, or tensors of a name differ in shape.
    """
    if isinstance(samples, Batch):
        return samples.values
    first = samples[0]
    if isinstance(first, Whole):
        return [sample.value for sample in samples] if len(samples) > 1 else first.value
    batch = {}
    for name in first:
        try:
            rows = [sample[name] for sample in samples]
        except KeyError:
            raise ValueError(
                f"a sample of the batch has no field {name!r}, which the first has; see transform="
            ) from None
        batch[name] = _collate_field(name, rows, first.columns.get(name))
    return batch


def _collate_field(name: str, rows: list[Any], column: Column | None) -> Any:
    tensors = all(isinstance(row, torch.Tensor) for row in rows)
    if column is not None and column.field.ragged:
        return column.stack(rows)
    if tensors and any(row.shape != rows[0].shape for row in rows):
        other = next(row.shape for row in rows if row.shape != rows[0].shape)
        raise ValueError(
            f"field {name!r}: rows of shapes {tuple(rows[0].shape)} and {tuple(other)} cannot be stacked; let "
            "transform= make them alike, or give the DataLoader a collate_fn="
        )
    return default_collate(rows)


default_collate_fn_map[Sample] = collate
default_collate_fn_map[Whole] = collate
