"""Runs of rows in the file -> the chunks of a regular grid (arithmetic only).

Zarr cuts an array into chunks of one size. Where rows lie back to back in the file, any run of rows can be a chunk, but
no chunk may reach over the gap between two extents. The last chunk is of full size, too: what it has beyond the last
row is never looked at, so it may be whatever stands behind the rows in the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

MOST_CHUNKS: Final = 1_000_000  # of an array: about 100 bytes of JSON each
_INLINE_NBYTES: Final = 256 << 10  # a last chunk that is copied into the references, where the file ends too early


@dataclass(frozen=True)
class Run:
    """Rows `[start, stop)` that lie back to back from `offset` on."""

    start: int
    stop: int
    offset: int


@dataclass(frozen=True)
class Grid:
    """Chunks of an array along its first axis.

    Attributes:
        rows: of each chunk.
        runs: that have rows.
        row_nbytes: of each row.
    """

    rows: int
    runs: tuple[Run, ...]
    row_nbytes: int

    def __len__(self) -> int:
        """Number of chunks."""
        return -(-self.runs[-1].stop // self.rows) if self.runs else 0

    def chunks(self) -> Iterator[tuple[int, int]]:
        """(offset, nbytes) of each chunk; the last may reach beyond the end of the file, by zeros."""
        for run in self.runs:
            for row in range(run.start, run.stop, self.rows):
                yield run.offset + (row - run.start) * self.row_nbytes, self.rows * self.row_nbytes


def lay_grid(runs: Sequence[Run], row_nbytes: int, most_rows: int, end: int) -> Grid:
    """The grid with the longest chunks that fit.

    Args:
        runs: in the order of rows, without gaps between them; those without rows are left out.
        row_nbytes: at least 1.
        most_rows: of a chunk, where it may be chosen.
        end: of the file.
    """
    filled = tuple(run for run in runs if run.stop > run.start)
    rows = _chunk_rows(filled, row_nbytes, max(most_rows, 1), end) if filled else 1
    return Grid(rows, filled, row_nbytes)


def _chunk_rows(runs: Sequence[Run], row_nbytes: int, most: int, end: int) -> int:
    """The longest that divides every start, and whose last chunk ends within the file or is small."""
    unit = math.gcd(*(run.start for run in runs))  # 0 where there is one run: then all lengths do
    last, num = runs[-1], runs[-1].stop
    length = np.arange(1, min(most, num) + 1, dtype=np.int64)
    first = num - (num - 1) % length - 1  # row with which the last chunk begins
    fits = last.offset + (first - last.start + length) * row_nbytes <= end
    fits |= length * row_nbytes <= _INLINE_NBYTES
    fits |= num % length == 0
    if unit:
        fits &= unit % length == 0
    return int(length[fits][-1])
