"""Which requests bring many ranges of an object: arithmetic only."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Offsets = NDArray[np.int64]


def coalesce(starts: Offsets, stops: Offsets, gap: int) -> tuple[Offsets, Offsets]:
    """Runs that cover the ranges, in the order of the file.

    Args:
        starts, stops: int64, shape (n,): any order, overlaps allowed, none empty.
        gap: ranges with at most so many unwanted bytes between them share a run.
    Returns:
        Starts and stops of the runs: more than `gap` bytes lie between any two.
    """
    if not starts.size:
        return starts, stops
    order = np.argsort(starts, kind="stable")
    first, reach = starts[order], np.maximum.accumulate(stops[order])
    # Not `reach + gap`, which can overflow.
    begins = np.flatnonzero(np.concatenate(([True], first[1:] - reach[:-1] > gap)))
    return first[begins], reach[np.append(begins[1:] - 1, len(first) - 1)]


def align(starts: Offsets, stops: Offsets, nbytes: int, size: int) -> tuple[Offsets, Offsets]:
    """The same ranges out to whole blocks of `nbytes`; the last block ends with the object."""
    return starts // nbytes * nbytes, np.minimum(-(-stops // nbytes) * nbytes, size)


def cuts(start: int, stop: int, most: int) -> Iterator[tuple[int, int]]:
    """Parts of a run, of `most` bytes and a rest; none for an empty one."""
    return ((low, min(low + most, stop)) for low in range(start, stop, most))
