"""NumPy arrays of a container -> tensors and back to their memory; which dtypes torch has, and what it has not.

| dtype of the field | tensor |
|---|---|
| bool, integers, floats, complex, bfloat16, float8 | the same dtype |
| datetime64, timedelta64 | int64, counted in the field's unit; NaT is -2^63 |
| string, utf32 of shape () | no tensor: `str`, in a batch `list[str]` |
| bytes of shape () | no tensor: `bytes`, in a batch `list[bytes]` |
| utf32, bytes of another shape | refused |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from chunkstore._format.dtypes import EXTENDED, PLAIN
from chunkstore._format.schema import Field
from chunkstore._read.ragged import Ragged

RaggedMode = Literal["offsets", "nested", "list", "pad"]


class RaggedTensors(NamedTuple):
    """Rows that differ in size: row `i` is `values[offsets[i]:offsets[i + 1]]`.

    Attributes:
        values: shape (total, *item_shape), the rows back to back.
        offsets: int64, shape (B + 1,), counted in items, from 0.
        shapes: int64, shape (B, v): the first v dimensions of each row; None where only the first varies.

    A named tuple of tensors, which pin_memory, `.to(device)` helpers and collate functions go into by themselves.
    """

    values: torch.Tensor
    offsets: torch.Tensor
    shapes: torch.Tensor | None = None


class Column:
    """How one field becomes tensors."""

    def __init__(self, field: Field, path: str, others: Sequence[str], mode: RaggedMode, pad_value: Any) -> None:
        self.field = field
        self.name = field.name
        self.mode = mode
        self.pad_value = pad_value
        self.is_text = field.is_string or field.numpy_dtype.kind in "SU"
        where = f"{path}: field {field.name!r}"
        leave_out = f"leave it out with fields={[name for name in others if name != field.name]}"
        self.dtype = None if self.is_text else _torch_dtype(field, where, leave_out)
        self._is_plain = field.dtype in PLAIN  # NumPy and torch both have it
        if self.is_text and not field.is_string and field.shape != ():
            raise TypeError(f"{where} holds {field.dtype} of shape {field.shape}, which torch has not; {leave_out}")
        if field.ragged and mode == "nested" and field.varying > 1:
            raise ValueError(
                f"{where} varies in {field.varying} dimensions, and a nested tensor in one: "
                "use ragged='offsets', 'list' or 'pad'"
            )

    @property
    def fixed(self) -> bool:
        """Whether a batch of it is one array of known shape, which can be gathered into given memory."""
        return not self.is_text and not self.field.ragged

    @property
    def buffer_dtype(self) -> np.dtype[Any]:
        """Dtype of the memory to gather into: what both the reader and torch take."""
        nbytes = EXTENDED.get(self.field.dtype)
        return self.field.numpy_dtype if nbytes is None else np.dtype(f"u{nbytes}")

    def tensor(self, array: NDArray[Any]) -> torch.Tensor:
        """An array of this field as a tensor over the same, writable memory. 1 µs."""
        if self._is_plain:
            return torch.from_numpy(array)
        if self.field.dtype in EXTENDED:
            return torch.from_numpy(array.view(self.buffer_dtype)).view(self.dtype)
        return torch.from_numpy(array.view(np.int64))

    def row(self, value: Any) -> Any:
        """One row, as a reader gives it, in memory of its own."""
        if not self.is_text:
            return self.tensor(np.array(value))
        return value if isinstance(value, str) else value.item()

    def batch(self, rows: NDArray[Any] | Ragged) -> Any:
        """Rows of a batch, which owns its memory."""
        if not isinstance(rows, Ragged):
            return rows.tolist() if self.is_text else self.tensor(rows)
        if self.is_text:
            return rows.tolist()
        if self.mode == "pad":
            return self._padded(rows)
        values, offsets = self.tensor(rows.values), torch.from_numpy(rows.offsets)
        shapes = None if rows.shapes is None else torch.from_numpy(rows.shapes)
        return self._assembled(RaggedTensors(values, offsets, shapes))

    def _padded(self, rows: Ragged) -> torch.Tensor:
        try:
            if self.field.dtype not in EXTENDED:
                return self.tensor(rows.pad(self.pad_value))
            # NumPy may not know the type: pad the bits with the bits of the value.
            value = torch.full((), self.pad_value, dtype=torch.float32, device="cpu").to(self.dtype)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            does_not_fit = f"{self.pad_value!r} does not fit field {self.name!r}, {self.field.dtype}"
            raise ValueError(f"pad_value: {does_not_fit}: {error}") from error
        bits = value.view(torch.uint8 if self.buffer_dtype.itemsize == 1 else torch.uint16).numpy()
        carried = Ragged(rows.values.view(self.buffer_dtype), rows.offsets, rows.shapes)
        return torch.from_numpy(carried.pad(bits)).view(self.dtype)

    def _assembled(self, rows: RaggedTensors) -> Any:
        if self.mode == "nested":
            return torch.nested.nested_tensor_from_jagged(rows.values, offsets=rows.offsets)
        return split(rows) if self.mode == "list" else rows

    def stack(self, rows: list[Any]) -> Any:
        """Single rows of a ragged field as a batch: what `batch` would have given."""
        if self.is_text or self.mode == "list" or not all(isinstance(row, torch.Tensor) for row in rows):
            return rows
        varying = self.field.varying
        if self.mode == "pad":
            return _pad_tensors(rows, varying, self.pad_value)
        values = torch.cat([row.flatten(0, varying - 1) for row in rows])
        counts = [row.shape[:varying].numel() for row in rows]
        device = values.device  # not torch's default one, which may be another
        shapes = torch.tensor([list(row.shape[:varying]) for row in rows], device=device) if varying > 1 else None
        return self._assembled(RaggedTensors(values, torch.tensor([0, *counts], device=device).cumsum(0), shapes))


def _torch_dtype(field: Field, where: str, leave_out: str) -> torch.dtype:
    if field.numpy_dtype.kind in "mM":
        return torch.int64
    dtype = getattr(torch, field.dtype, None) if field.dtype in PLAIN or field.dtype in EXTENDED else None
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{where} holds {field.dtype}, which torch {torch.__version__} has not; {leave_out}")
    return dtype


def columns_of(
    fields: Mapping[str, Field], names: Sequence[str], path: str, mode: RaggedMode, pad_value: Any
) -> dict[str, Column]:
    """The columns of a data set.

    Raises:
        TypeError: torch has no such dtype.  ValueError: `ragged` cannot be.
    """
    if mode not in get_args(RaggedMode):
        raise ValueError(f"ragged: expected one of {', '.join(map(repr, get_args(RaggedMode)))}, found {mode!r}")
    return {name: Column(fields[name], path, names, mode, pad_value) for name in names}


def split(rows: RaggedTensors) -> list[torch.Tensor]:
    """The rows as tensors that share one memory."""
    parts = list(rows.values.split(rows.offsets.diff().tolist()))
    if rows.shapes is None:
        return parts
    shapes = rows.shapes.tolist()
    return [part.reshape(*shape, *rows.values.shape[1:]) for part, shape in zip(parts, shapes, strict=True)]


def _pad_tensors(rows: list[torch.Tensor], varying: int, value: Any) -> torch.Tensor:
    largest = [max(sizes) for sizes in zip(*(row.shape[:varying] for row in rows), strict=True)]
    dtype = rows[0].dtype
    # By way of float32, because torch fills no float8.
    via = torch.float32 if dtype.itemsize == 1 and dtype.is_floating_point else dtype
    shape, device = (len(rows), *largest, *rows[0].shape[varying:]), rows[0].device
    padded = torch.full(shape, value, dtype=via, device=device).to(dtype)
    for place, row in enumerate(rows):
        padded[(place, *map(slice, row.shape[:varying]))] = row
    return padded


def map_leaves(tree: Any, function: Callable[[Any], Any]) -> Any:
    """The same tree with each leaf replaced; goes through mappings, lists, tuples, named tuples and dataclasses."""
    if isinstance(tree, Mapping):
        mapped = {name: map_leaves(value, function) for name, value in tree.items()}
        return mapped if type(tree) is dict else _same_mapping(tree, mapped)
    if isinstance(tree, tuple):
        values = [map_leaves(value, function) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else tuple(values)
    if isinstance(tree, list):
        return [map_leaves(value, function) for value in tree]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type | Ragged):  # it has methods for NumPy arrays
        return _map_members(tree, function)
    return function(tree)


def _map_members(tree: Any, function: Callable[[Any], Any]) -> Any:
    """A dataclass with other values of its fields, frozen or not, with slots or not; itself if all of them stay.

    Nothing of its class is called: `copy` would fail, forget attributes or give the same object, as the class likes it.
    """
    state: Any = object.__getstate__(tree)
    attributes, slots = state if isinstance(state, tuple) else (state, None)
    held = {**(attributes or {}), **(slots or {})}
    names = [member.name for member in dataclasses.fields(tree) if member.name in held]
    values = {name: map_leaves(held[name], function) for name in names}
    if all(values[name] is held[name] for name in names):
        return tree
    mapped = object.__new__(type(tree))
    for name, value in (held | values).items():
        object.__setattr__(mapped, name, value)
    return mapped


def map_tensors(tree: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """The same tree with each tensor replaced."""
    return map_leaves(tree, lambda leaf: function(leaf) if isinstance(leaf, torch.Tensor) else leaf)


def _same_mapping(tree: Mapping[str, Any], mapped: dict[str, Any]) -> Any:
    try:
        return type(tree)(mapped)  # type: ignore[call-arg]
    except TypeError:
        return mapped


def num_bytes(tree: Any) -> int:
    """Bytes of all tensors of a tree."""
    if type(tree) is dict and all(type(value) is torch.Tensor for value in tree.values()):
        return sum(map(_num_bytes_of, tree.values()))
    sizes: list[int] = []
    map_tensors(tree, lambda tensor: sizes.append(_num_bytes_of(tensor)))
    return sum(sizes)


def _num_bytes_of(tensor: torch.Tensor) -> int:
    parts: tuple[torch.Tensor, ...] = (tensor,)
    if tensor.is_nested:
        parts = (tensor.values(),)
    elif tensor.layout is torch.sparse_coo:
        parts = (tensor._indices(), tensor._values())
    return sum(part.nbytes for part in parts)
