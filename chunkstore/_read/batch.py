"""What a batch is asked for: indices -> positions, and arrays to fill; checked before anything is read."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.schema import Field
from chunkstore.errors import LimitError

Positions: TypeAlias = NDArray[np.int64]
Indices: TypeAlias = "Sequence[int] | Sequence[bool] | NDArray[Any] | range"

_INT64: Final = np.dtype(np.int64)
_UINT64: Final = np.dtype(np.uint64)
_ALIGNED_NBYTES: Final = 1 << 20  # below it a copy gains less than the 2 µs that it takes to align
_ALIGNMENT: Final = 64  # also what DLPack and TensorFlow ask for


def as_positions(indices: Any, num_samples: int) -> Positions:
    """Positions in `[0, N)` from what a user gives. 0.8 µs for an int64 array of 256.

    Args:
        indices: shape (B,): any integer dtype, negative ones count from the end; or a mask of N booleans.
        num_samples: N.
    Returns:
        Contiguous int64, shape (B,); `indices` itself where it is that already.
    Raises:
        TypeError: no integers.
        ValueError: not one dimension.
        IndexError: an index is outside [-N, N), or a mask has another length.
    """
    if type(indices) is not np.ndarray or indices.dtype is not _INT64 or indices.ndim != 1:
        indices = _as_int64(indices, num_samples)
    if not indices.flags.c_contiguous:
        indices = np.ascontiguousarray(indices)
    # As unsigned numbers the negative ones are the largest: one pass finds whether all are in [0, N). For 256 numbers
    # `argmax` takes 0.3 µs, `max` 1.0.
    if indices.size:
        unsigned = indices.view(_UINT64)
        if unsigned.item(unsigned.argmax()) >= num_samples:
            return _wrapped(indices, num_samples)
    positions: Positions = indices
    return positions


def _as_int64(indices: Any, num_samples: int) -> NDArray[np.int64]:
    if isinstance(indices, range):  # the way of np.asarray goes through each number
        return _of_range(indices, num_samples)
    if indices is None or isinstance(indices, (bool, np.bool_, float, np.floating, set, frozenset, dict)):
        raise TypeError(
            f"indices: expected a sequence of integers, found {type(indices).__name__}; one sample is ds[i]"
        )
    if isinstance(indices, (str, bytes)):
        raise TypeError(f"indices: expected integers, found the text {indices!r:.40}; keys become positions by find()")
    try:
        array = np.asarray(indices)
    except (ValueError, OverflowError) as error:
        raise TypeError(f"indices: expected one sequence of integers: {error}") from None
    if array.ndim == 0 and array.dtype.kind not in "iu":  # a generator, a map, an ellipsis
        raise TypeError(
            f"indices: expected a sequence of integers, found {type(indices).__name__}; list(...) takes an iterator"
        )
    if array.ndim != 1:
        raise ValueError(f"indices: expected one dimension, found shape {array.shape}; for one sample use ds[i]")
    if array.dtype.kind == "b":
        return _of_mask(array, num_samples)
    if array.dtype.kind == "u" and array.size and int(array.max()) >= 2**63:
        raise _outside(int(array.max()), num_samples)  # as int64 it would be negative, and could be inside
    if array.dtype.kind not in "iu":
        if array.size:
            _refuse_dtype(array, num_samples)
        array = np.zeros(0, np.int64)  # an empty list has no dtype of its own
    return array.astype(np.int64, copy=False)


def _of_range(numbers: range, num_samples: int) -> NDArray[np.int64]:
    if not numbers:
        return np.zeros(0, np.int64)
    for end in (numbers[0], numbers[-1]):
        if not -num_samples <= end < num_samples:
            raise _outside(end, num_samples)
    step = numbers.step if len(numbers) > 1 else 1  # of one number it may be beyond 64 bits
    return np.arange(numbers[0], numbers[0] + step * len(numbers), step, dtype=np.int64)


def _of_mask(mask: NDArray[Any], num_samples: int) -> NDArray[np.int64]:
    if len(mask) != num_samples:
        raise IndexError(f"indices: a mask of {len(mask)} booleans, expected one for each of {num_samples} samples")
    return np.flatnonzero(mask)


def _refuse_dtype(array: NDArray[Any], num_samples: int) -> None:
    if array.dtype.kind == "O":
        for value in array.tolist():
            if isinstance(value, int) and not -num_samples <= value < num_samples:
                raise _outside(value, num_samples)
    what = "keys become positions by find()" if array.dtype.kind in "UST" else "convert them with astype(int)"
    raise TypeError(f"indices: expected integers, found {array.dtype}; {what}")


def _wrapped(indices: NDArray[np.int64], num_samples: int) -> Positions:
    outside = (indices < -num_samples) | (indices >= num_samples)
    if outside.any():
        raise _outside(int(indices[int(np.argmax(outside))]), num_samples)
    return np.where(indices < 0, indices + num_samples, indices)


def _outside(index: int, num_samples: int) -> IndexError:
    if num_samples == 0:
        return IndexError(f"index {index}: the container has no samples")
    return IndexError(f"index {index} is outside [-{num_samples}, {num_samples}): there are {num_samples} samples")


def as_position(index: Any, num_samples: int) -> int:
    """One position from an index that counts from either end.

    Raises:
        IndexError: outside [-N, N).
        TypeError: no integer.
    """
    try:
        position = operator.index(index)
    except TypeError:
        raise TypeError(
            f"expected a position, found {type(index).__name__} {index!r:.40}; keys become positions by find()"
        ) from None
    if not -num_samples <= position < num_samples:
        raise _outside(position, num_samples)
    return position + num_samples if position < 0 else position


def is_run(positions: Positions) -> bool:
    """Whether positions follow each other one by one. 0.3 µs unless it is likely."""
    size = positions.size
    if size < 2 or positions.item(-1) - positions.item(0) != size - 1:
        return False
    # The steps add up to one each, so all are 1 if none is larger; as unsigned numbers the negative ones are.
    steps = (positions[1:] - positions[:-1]).view(_UINT64)
    return steps.item(steps.argmax()) == 1


def target_of(field: Field, num_rows: int, out: Any) -> Any:
    """Check what a caller gave to be filled (None: nothing), and make what is missing, but of a ragged field.

    Raises:
        TypeError, ValueError: the message says what was expected.
        LimitError: NumPy cannot have such an array.
    """
    if not field.ragged:
        return empty_items(field, num_rows) if out is None else checked_out(field, out, num_rows)
    if out is not None:
        checked_buffer(field, out, 0)  # how many items it takes is known later
    return out


def items_of(field: Field, num_items: int, target: Any) -> NDArray[Any]:
    """Where the items of ragged rows go: the first of `target`, or else fresh memory; errors as of `target_of`."""
    return empty_items(field, num_items) if target is None else checked_buffer(field, target, num_items)


def empty_items(field: Field, num_items: int) -> NDArray[Any]:
    """Memory for items (rows, if their shape is fixed); a large array begins at a multiple of 64: copies are faster.

    Raises:
        LimitError: NumPy cannot have such an array.
    """
    dtype, shape = field.numpy_dtype, (num_items, *field.item_shape)
    nbytes = math.prod(shape) * dtype.itemsize
    try:
        if nbytes < _ALIGNED_NBYTES:
            return np.empty(shape, dtype)
        return np.ndarray(shape, dtype, aligned_bytes(nbytes).data)
    except ValueError:
        raise LimitError(f"field {field.name!r}: an array of shape {shape} is beyond what NumPy can address") from None


def aligned_bytes(nbytes: int) -> NDArray[np.uint8]:
    """Memory that begins at a multiple of 64; `pread` into any other is half as fast."""
    memory = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT  # `__array_interface__` ends the process where there is no memory
    return memory[start : start + nbytes]


def checked_out(field: Field, out: Any, num_rows: int) -> NDArray[Any]:
    """The array to fill for a field of fixed shape, in the field's own dtype. 0.5 µs.

    bfloat16 and float8 may also be given as void or unsigned integers of the same width: some frameworks have no other
    way to lend their memory.

    Raises:
        TypeError, ValueError: the message says what was expected.
    """
    dtype = field.numpy_dtype
    out = _plain(field, out)
    if out.shape != (num_rows, *field.item_shape):
        expected = (num_rows, *field.item_shape)
        raise ValueError(f"out[{field.name!r}]: expected shape {expected}, found {out.shape}")
    if not out.flags.carray:
        _refuse_memory(field, out)
    return out if out.dtype == dtype else _reinterpreted(field, out)


def checked_buffer(field: Field, out: Any, num_items: int) -> NDArray[Any]:
    """The first items of an array that a ragged batch is to fill; it may be larger than needed.

    Raises:
        TypeError, ValueError: the message says what was expected.
    """
    out = _plain(field, out)
    if out.ndim != 1 + len(field.item_shape) or out.shape[1:] != field.item_shape or len(out) < num_items:
        expected = ", ".join(map(str, (f"{num_items} or more", *field.item_shape)))
        raise ValueError(f"out[{field.name!r}]: the field is ragged, expected shape ({expected}), found {out.shape}")
    if not out.flags.carray:
        _refuse_memory(field, out)
    return (out if out.dtype == field.numpy_dtype else _reinterpreted(field, out))[:num_items]


def _plain(field: Field, out: Any) -> NDArray[Any]:
    if type(out) is np.ndarray:
        return out
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out[{field.name!r}]: expected a NumPy array, found {type(out).__name__}")
    return np.asarray(out)  # the memory of a matrix, a memmap, a masked array, with the methods of an array


def _refuse_memory(field: Field, out: NDArray[Any]) -> None:
    wrong = "a read-only" if not out.flags.writeable else "another"
    raise ValueError(f"out[{field.name!r}]: expected a writable, C-contiguous, aligned array, found {wrong} one")


def _reinterpreted(field: Field, out: NDArray[Any]) -> NDArray[Any]:
    dtype = field.numpy_dtype
    extended = field.dtype == "bfloat16" or field.dtype.startswith("float8")
    if extended and out.dtype.itemsize == dtype.itemsize and (out.dtype.kind in "Vu" or dtype.kind == "V"):
        return out.view(dtype)
    raise TypeError(f"out[{field.name!r}]: expected dtype {dtype}, found {out.dtype}")
