"""What `batch` accepts as indices and as arrays to fill."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from chunkstore._format.schema import Field
from chunkstore._read.batch import (
    as_position,
    as_positions,
    checked_buffer,
    checked_out,
    empty_items,
    is_run,
)
from chunkstore.errors import LimitError

N = 10


@pytest.mark.parametrize(
    "indices",
    [
        [3, -1, 0],
        (3, -1, 0),
        np.array([3, -1, 0], np.int8),
        np.array([3, -1, 0], ">i4"),
        np.array([3, 7, -1, 7, 0, 7])[::2],
        np.array([0, -1, 3])[::-1],
    ],
)
def test_indices_become_positions(indices: Any) -> None:
    """Any sequence or array of integers, of any layout and byte order; negative ones count from the end."""
    positions = as_positions(indices, N)
    assert positions.dtype == np.int64
    assert positions.flags.c_contiguous
    assert positions.tolist() == [3, 9, 0]


@given(st.lists(st.integers(-N, N - 1)), st.sampled_from(["i1", "i2", "i8", ">i8"]))
def test_indices_as_numpy_has_them(indices: list[int], dtype: str) -> None:
    """The positions are those that NumPy's own indexing takes."""
    positions = as_positions(np.array(indices, dtype), N)
    assert positions.tolist() == np.arange(N)[np.array(indices, np.int64)].tolist()


def test_int64_is_not_copied() -> None:
    """A contiguous int64 array in range is used as it is; the caller's array is never changed."""
    indices = np.array([1, 2])
    assert as_positions(indices, N) is indices
    negative = np.array([-1])
    as_positions(negative, N)
    assert negative.tolist() == [-1]


@pytest.mark.parametrize("empty", [[], (), np.zeros(0, np.int64), np.zeros(0), range(0)])
def test_no_indices(empty: Any) -> None:
    """An empty sequence is an empty batch, whatever dtype NumPy gives it."""
    assert as_positions(empty, N).tolist() == []
    assert as_positions(empty, 0).tolist() == []


def test_range_and_mask() -> None:
    """A range needs no list; N booleans are a mask, as in NumPy."""
    assert as_positions(range(8, 2, -3), N).tolist() == [8, 5]
    mask = [place in (2, 5) for place in range(N)]
    assert as_positions(mask, N).tolist() == [2, 5]
    with pytest.raises(IndexError, match="a mask of 2 booleans, expected one for each of 10 samples"):
        as_positions([True, False], N)


@pytest.mark.parametrize("value", [N, -N - 1, 2**62, -(2**63), 2**63, 2**64 - 1, 2**70, -(2**70)])
def test_index_outside(value: int) -> None:
    """IndexError names N, also for numbers that no int64 holds."""
    with pytest.raises(IndexError, match=r"outside \[-10, 10\)"):
        as_positions([value], N)
    with pytest.raises(IndexError, match=rf"index {value} is outside \[-10, 10\)"):
        as_position(value, N)


def test_index_of_nothing() -> None:
    """A container without samples says so."""
    with pytest.raises(IndexError, match="index 0: the container has no samples"):
        as_positions([0], 0)


@pytest.mark.parametrize("indices", [[1.0], np.array([1.5]), ["a"], [None], [b"a"], "abc", [[1], [2, 3]], {1: 2}, None])
def test_no_integers(indices: Any) -> None:
    """Floats, texts and anything else are refused by name of the parameter; floats are never rounded."""
    with pytest.raises((TypeError, ValueError), match="indices: expected"):
        as_positions(indices, N)


@pytest.mark.parametrize("indices", [3, np.int64(3), np.zeros((2, 2), int)])
def test_one_dimension(indices: Any) -> None:
    """A number alone or a matrix is refused."""
    with pytest.raises(ValueError, match="expected one dimension"):
        as_positions(indices, N)


@given(st.lists(st.integers(0, 20), max_size=6))
def test_is_run(positions: list[int]) -> None:
    """Two or more positions that follow each other, and nothing else."""
    expected = len(positions) > 1 and all(b - a == 1 for a, b in pairwise(positions))
    assert is_run(np.array(positions, np.int64)) == expected


IMAGE = Field("image", "float32", (2, 3))


def test_out_is_used_as_it_is() -> None:
    """An array of the right kind is filled itself."""
    out = np.empty((4, 2, 3), np.float32)
    assert checked_out(IMAGE, out, 4) is out


@pytest.mark.parametrize(
    ("out", "match"),
    [
        (np.empty((4, 3, 2), np.float32), r"out\['image'\]: expected shape \(4, 2, 3\), found \(4, 3, 2\)"),
        (np.empty((4, 2, 3), np.float64), r"out\['image'\]: expected dtype float32, found float64"),
        (np.empty((4, 2, 3), ">f4"), "expected dtype float32, found >f4"),
        (np.empty((4, 2, 6), np.float32)[:, :, ::2], "expected a writable, C-contiguous, aligned array, found another"),
        (np.frombuffer(bytes(96), np.float32).reshape(4, 2, 3), "found a read-only one"),
        ([0] * 24, "expected a NumPy array, found list"),
    ],
)
def test_out_is_refused(out: Any, match: str) -> None:
    """The message says which field, what was expected and what was found."""
    with pytest.raises((TypeError, ValueError), match=match):
        checked_out(IMAGE, out, 4)


@pytest.mark.parametrize("dtype", ["u2", "V2"])
def test_out_of_bfloat16_may_be_plain(dtype: str) -> None:
    """Memory of frameworks that have no bfloat16 of NumPy: integers or void of the same width; same memory."""
    out = np.zeros(4, dtype)
    filled = checked_out(Field("x", "bfloat16"), out, 4)
    assert np.shares_memory(filled, out)
    assert filled.dtype == Field("x", "bfloat16").numpy_dtype
    with pytest.raises(TypeError, match="expected dtype float16, found"):
        checked_out(Field("x", "float16"), out, 4)


def test_buffer_of_ragged_values() -> None:
    """A ragged field takes any array that is long enough, and uses its first part."""
    field = Field("x", "int32", (None, 2))
    assert checked_buffer(field, np.zeros((9, 2), np.int32), 7).shape == (7, 2)
    with pytest.raises(ValueError, match=r"ragged, expected shape \(10 or more, 2\), found \(9, 2\)"):
        checked_buffer(field, np.zeros((9, 2), np.int32), 10)


def test_large_arrays_are_aligned() -> None:
    """From 1 MiB on, arrays begin at multiples of 64: `pread` is twice as fast there, and DLPack wants it."""
    for _ in range(8):
        rows = empty_items(Field("x", "float64", (1000,)), 200)
        assert rows.shape == (200, 1000)
        assert rows.ctypes.data % 64 == 0
        assert rows.flags.writeable


def test_array_beyond_numpy() -> None:
    """A schema may ask for more than NumPy can have: that is a limit, no foreign error."""
    with pytest.raises(LimitError, match="beyond what NumPy can address"):
        empty_items(Field("x", "uint8", (2**62, 0)), 1000)
