"""Which requests bring many ranges: arithmetic, held against the plain way."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from chunkstore._storage.pieces import Cover, Kept, Piece
from chunkstore._storage.ranges import align, coalesce, cuts

RANGES = st.lists(st.tuples(st.integers(0, 500), st.integers(1, 60)), max_size=20)


def arrays(ranges: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    starts = np.array([start for start, _ in ranges], np.int64)
    return starts, starts + np.array([nbytes for _, nbytes in ranges], np.int64)


@given(RANGES, st.integers(0, 50))
def test_runs_cover_the_ranges_and_join_no_gap_that_is_longer(ranges: list[tuple[int, int]], gap: int) -> None:
    """The same runs as by marking each byte, and closing the holes of at most `gap` bytes."""
    marked = np.zeros(600, bool)
    for start, nbytes in ranges:
        marked[start : start + nbytes] = True
    wanted, expected = np.flatnonzero(marked), []
    for place in wanted.tolist():
        if expected and place - expected[-1][1] <= gap:
            expected[-1][1] = place + 1
        else:
            expected.append([place, place + 1])
    starts, stops = coalesce(*arrays(ranges), gap)
    assert list(map(list, zip(starts.tolist(), stops.tolist(), strict=True))) == expected


def test_ranges_near_the_largest_offset_do_not_wrap_around() -> None:
    """Offsets up to 2^63 - 1 are compared without an overflow."""
    top = 2**63 - 1
    starts, stops = coalesce(np.array([top - 10, 0]), np.array([top, 5]), 1 << 40)
    assert starts.tolist() == [0, top - 10]
    assert stops.tolist() == [5, top]


def test_aligned_ranges_end_with_the_object() -> None:
    """Whole blocks; the last one is as short as the object makes it."""
    starts, stops = align(np.array([5, 20]), np.array([8, 25]), 8, 25)
    assert starts.tolist() == [0, 16]
    assert stops.tolist() == [8, 25]


def test_cuts_are_full_but_the_last() -> None:
    """Parts of `most` bytes and a rest; an empty run has none."""
    assert list(cuts(10, 35, 10)) == [(10, 20), (20, 30), (30, 35)]
    assert list(cuts(10, 10, 10)) == []


@given(RANGES, RANGES)
def test_a_range_is_found_in_a_piece_if_there_is_one(
    pieces: list[tuple[int, int]], wanted: list[tuple[int, int]]
) -> None:
    """Pieces may overlap in any way; the answer is that of looking at each of them."""
    cover = Cover(Piece(start, start + nbytes, None) for start, nbytes in pieces)
    starts, stops = arrays(wanted)
    for start, stop, place in zip(starts.tolist(), stops.tolist(), cover.places(starts, stops), strict=True):
        around = [start >= low and stop <= low + nbytes for low, nbytes in pieces]
        assert (place >= 0) == any(around)
        if place >= 0:
            assert cover.pieces[place].start <= start
            assert stop <= cover.pieces[place].stop


def test_what_was_used_goes_before_what_was_not() -> None:
    """A piece that was fetched ahead stays, while there is one that was read already."""
    kept = Kept(25)
    read, ahead, later = (Piece(start, start + 10, None) for start in (0, 10, 20))
    for piece in (read, ahead):
        kept.add(piece)
    kept.touch(read)
    kept.add(later)
    kept.shrink()
    assert kept.cover(None).pieces == [ahead, later]
    assert kept.cover(None).places(np.array([12, 2]), np.array([20, 4])) == [0, -1]
