"""`Ragged`: rows that differ, as values and offsets."""

from __future__ import annotations

import dataclasses
import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from chunkstore._read.ragged import Ragged, offsets_of
from chunkstore.errors import CorruptError


def texts(*rows: bytes) -> Ragged:
    values = np.frombuffer(b"".join(rows), np.uint8)
    return Ragged(values, offsets_of(np.array([len(row) for row in rows], np.int64)), text=True)


SEQUENCES = Ragged(np.arange(12).reshape(6, 2), np.array([0, 1, 1, 6]))
IMAGES = Ragged(np.arange(8), np.array([0, 6, 6, 8]), np.array([[2, 3], [0, 5], [1, 2]]))


def test_rows_of_one_varying_dimension() -> None:
    """Row i is a view of the values between two offsets."""
    assert [row.tolist() for row in SEQUENCES] == [[[0, 1]], [], [[2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]]
    assert SEQUENCES[-1].shape == (5, 2)
    assert np.shares_memory(SEQUENCES[2], SEQUENCES.values)
    assert SEQUENCES.counts().tolist() == [1, 0, 5]


def test_rows_of_more_varying_dimensions() -> None:
    """With shapes, each row has its own."""
    assert [row.shape for row in IMAGES] == [(2, 3), (0, 5), (1, 2)]
    assert IMAGES[0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_texts() -> None:
    """Rows of text come as `str`, one by one and as a list; `np.asarray` makes an array of them."""
    ragged = texts("é".encode(), b"", b"abc")
    assert ragged.tolist() == list(ragged) == [ragged[0], ragged[1], ragged[2]] == ["é", "", "abc"]
    assert np.asarray(ragged).tolist() == ["é", "", "abc"]


def test_text_that_is_not_utf8() -> None:
    """Bytes are not checked before they are decoded; then the row is named."""
    with pytest.raises(CorruptError, match="row 1 of the batch is a text, but not UTF-8"):
        texts(b"a", b"\xff").tolist()


@pytest.mark.parametrize("index", [3, -4])
def test_index_outside(index: int) -> None:
    """IndexError, as of every sequence."""
    with pytest.raises(IndexError, match="of a Ragged with 3 rows"):
        SEQUENCES[index]


def test_no_one_array() -> None:
    """Rows of different shape make no array: the message says what does."""
    with pytest.raises(ValueError, match=r"use \.values and \.offsets, or \.pad\(\)"):
        np.asarray(SEQUENCES)


def test_frozen_and_picklable() -> None:
    """A value: its attributes stay, and it comes back from a pickle."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        SEQUENCES.values = np.zeros(1)  # type: ignore[misc]
    back = pickle.loads(pickle.dumps(IMAGES))
    assert [row.tolist() for row in back] == [row.tolist() for row in IMAGES]
    assert repr(back) == "Ragged(3 rows of int64, 8 items)"
    assert repr(texts(b"a")) == "Ragged(1 texts, 1 items)"


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=5), st.booleans())
def test_pad(dims: list[tuple[int, int]], two: bool) -> None:
    """Every row stands in the lower corner, the rest is the value; for one and for two varying dimensions."""
    shapes = np.array(dims, np.int64).reshape(-1, 2)
    counts = shapes.prod(axis=1) if two else shapes[:, 0]
    offsets = offsets_of(counts)
    ragged = Ragged(np.arange(1, 1 + offsets[-1]), offsets, shapes if two else None)
    padded = ragged.pad(-1)
    expected = np.full((len(dims), *(max((d[a] for d in dims), default=0) for a in range(1 + two))), -1)
    for place, row in enumerate(ragged):
        expected[place][tuple(map(slice, row.shape))] = row
    assert padded.tolist() == expected.tolist()


def test_pad_to_a_shape() -> None:
    """A shape may be asked for; what does not fit is refused."""
    assert SEQUENCES.pad(shape=(7,)).shape == (3, 7, 2)
    with pytest.raises(ValueError, match=r"shape: expected 1 dimensions of at least \(5,\), found \(4,\)"):
        SEQUENCES.pad(shape=(4,))


def test_offsets_that_overflow() -> None:
    """A sum of counts beyond int64 is found and does not wrap around."""
    with pytest.raises(OverflowError):
        offsets_of(np.full(10, 2**61))
