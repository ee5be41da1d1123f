"""Checksums of the format: xxh3 with 64 and 128 bits, seed 0 (spec section 2)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from chunkstore._format.constants import PAGE_NBYTES

sum64 = xxhash.xxh3_64_intdigest
"""xxh3-64 of one buffer as an int. Keeps the GIL: for pieces up to about 1 MiB."""

sum128 = xxhash.xxh3_128_digest
"""xxh3-128 of one buffer, 16 bytes in canonical form."""

Stream64 = xxhash.xxh3_64
"""xxh3-64 of pieces that come one by one: `update`, then `intdigest`."""


def sum64_large(pieces: Iterable[memoryview]) -> int:
    """xxh3-64 of large pieces, as if they were one buffer.

    `update` lets go of the GIL for large buffers and the one-shot call does not, so this is the way for blocks.
    """
    digest = xxhash.xxh3_64()
    for piece in pieces:
        digest.update(piece)
    return digest.intdigest()


def page_sums(section: memoryview) -> NDArray[np.uint64]:
    """xxh3-64 of each page of a section (spec section 5.2); shape (pages,), little-endian uint64."""
    starts = range(0, section.nbytes, PAGE_NBYTES)
    return np.array([sum64(section[start : start + PAGE_NBYTES]) for start in starts], "<u8")


class BlockSums:
    """The sum of a block and of each of its groups, from pieces of any size in order (spec sections 7 and 9).

    Args:
        bounds: where groups begin and end, counted from the start of the block; ascending from 0, groups + 1 of them.
    """

    def __init__(self, bounds: Sequence[int]) -> None:
        self._stops = bounds[1:]
        self._next = 0  # number of the group that is not yet summed
        self._at = 0
        self._block = xxhash.xxh3_64()
        self._open: xxhash.xxh3_64 | None = None  # the group that began in an earlier piece
        self._sums: list[int] = []
        self._close_groups(memoryview(b""), 0)

    def update(self, piece: memoryview) -> None:
        """Take the next bytes of the block; a flat view of bytes."""
        self._block.update(piece)
        start = 0
        if self._open is not None:
            stop = self._stops[self._next] - self._at
            start = min(stop, piece.nbytes)
            self._open.update(piece[:start])
            if start == stop:
                self._sums.append(self._open.intdigest())
                self._next += 1
                self._open = None
        start = self._close_groups(piece, start) if self._open is None else start
        self._at += piece.nbytes
        if start < piece.nbytes:
            self._open = xxhash.xxh3_64(piece[start:])

    def _close_groups(self, piece: memoryview, start: int) -> int:
        """Sum the groups that lie in this piece as a whole; where the rest begins."""
        last = bisect_right(self._stops, self._at + piece.nbytes, self._next)
        stops = [stop - self._at for stop in self._stops[self._next : last]]
        # No bytecode for a group: it would cost more than the sum of 4 KiB.
        self._sums += map(sum64, map(piece.__getitem__, map(slice, [start, *stops], stops)))
        self._next = last
        return stops[-1] if stops else start

    def finish(self) -> tuple[int, NDArray[np.uint64]]:
        """(xxh3-64 of the block, those of its groups)."""
        assert self._next == len(self._stops), f"{len(self._stops) - self._next} groups are missing"
        return self._block.intdigest(), np.array(self._sums, "<u8")
