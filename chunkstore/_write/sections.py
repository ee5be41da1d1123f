"""How the pieces of an index segment get into the file: sections with their page sums, in few system calls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from chunkstore._format.checksum import page_sums
from chunkstore._format.constants import PAGE_NBYTES
from chunkstore._format.segment import section_tail, sum_of_sums
from chunkstore._storage.sink import Sink

_CALL_NBYTES: Final = 64 * PAGE_NBYTES


class Joined:
    """Pieces of a segment, in their order, joined to few system calls: most have some bytes only.

    Args:
        sink: takes them.
        start: offset behind the directory, which is known last.
    """

    def __init__(self, sink: Sink, start: int) -> None:
        self._sink = sink
        self._first = self._start = self._end = start
        self._pieces: list[bytes | memoryview] = []

    def put(self, offset: int, piece: bytes | memoryview) -> None:
        """Take the next piece, and zeros before it up to the one before."""
        self._pieces += [bytes(offset - self._end), piece]
        self._end = offset + len(piece)
        if self._end - self._start >= _CALL_NBYTES:
            self._write()

    def end(self, directory: bytes) -> None:
        """Write the rest, and the directory in front of all."""
        offset = self._first - len(directory)
        if self._start == self._first:  # nothing was written yet
            self._start, self._pieces = offset, [directory, *self._pieces]
            self._write()
        else:
            self._write()
            self._sink.pwrite(offset, directory)

    def _write(self) -> None:
        self._sink.pwrite(self._start, b"".join(self._pieces))
        self._start, self._pieces = self._end, []


def write_section(run: Joined, offset: int, nbytes: int, pieces: Iterable[bytes | memoryview]) -> int:
    """Write a section, given in pieces of whole pages, and its page sums; what the section table says of them."""
    sums = []
    at = offset
    for piece in pieces:
        run.put(at, piece)
        sums.append(page_sums(memoryview(piece)))
        at += len(piece)
    joined = np.concatenate(sums) if sums else np.zeros(0, np.uint64)
    run.put(at, section_tail(nbytes, joined))
    return sum_of_sums(joined)
