"""Sums and writes the blocks of shards while the caller stages the next one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.checksum import BlockSums
from chunkstore._format.layout import group_bounds
from chunkstore._storage import platform
from chunkstore._storage.sink import Sink
from chunkstore._write.coding import FieldCoder
from chunkstore._write.index_writer import Block, IndexWriter
from chunkstore._write.late import LateBlocks

_PIECE_NBYTES: Final = 8 << 20
_INLINE_NBYTES: Final = 4 << 20  # below it, handing over costs more than it saves
_MOST_ENCODERS: Final = 4
Place: TypeAlias = "Callable[[int, int], tuple[Sink | LateBlocks, int]]"
"""(number of a field, nbytes of its next block) -> where it goes, at which offset; called once a block, in order."""


@dataclass(frozen=True)
class Rows:
    """Staged rows of one field that are to become a block; the memory stays as it is until the shard is written.

    Attributes:
        data: the rows back to back.
        ends: int64, shape (rows,): where each ends in `data`.
        counts, shapes: as in `Block`.
    """

    data: memoryview
    ends: NDArray[np.int64]
    counts: NDArray[np.int64] | None = None
    shapes: NDArray[np.int64] | None = None


class ShardWriter:
    """At most one shard is under way: `submit` returns at once, the next `submit` or `wait` first waits for it.

    One thread sums, the other writes: both let go of the GIL for all but small pieces, so adding samples goes on.
    Where there are codecs, up to four threads encode. Threads are there from the first large shard to `close`.
    """

    def __init__(self, coders: Sequence[FieldCoder | None] = ()) -> None:
        """For fields with these coders, None where one is raw."""
        self._coders = tuple(coders)
        self._pool: ThreadPoolExecutor | None = None
        self._pending: tuple[IndexWriter, Future[list[Block]], int] | None = None

    def submit(self, index: IndexWriter, rows: Sequence[Rows], place: Place) -> None:
        """Write one block per field where it belongs, then add the shard to the index.

        Raises:
            WriteError: of the shard before.
        """
        self.wait()
        count = len(rows[0].ends)
        if sum(field.data.nbytes for field in rows) < _INLINE_NBYTES:
            index.add_shard(count, self._write(rows, place, None))
            return
        if self._pool is None:
            encoders = min(platform.num_processors(), _MOST_ENCODERS) if any(self._coders) else 1
            self._pool = ThreadPoolExecutor(1 + encoders, "chunkstore-writer")
        self._pending = index, self._pool.submit(self._write, rows, place, self._pool), count

    def wait(self) -> None:
        """Until the shard that is under way is written, and in the index.

        Raises:
            WriteError: it could not be written.
        """
        if self._pending is not None:
            index, future, count = self._pending
            blocks = future.result()
            self._pending = None
            index.add_shard(count, blocks)

    def close(self) -> None:
        """End the threads; what is under way is finished first, and its outcome dropped."""
        self._pending = None
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _write(self, rows: Sequence[Rows], place: Place, pool: ThreadPoolExecutor | None) -> list[Block]:
        return [
            _write_block(field, coder, partial(place, number), pool)
            for number, (coder, field) in enumerate(zip(self._coders, rows, strict=True))
        ]


def _write_block(
    rows: Rows,
    coder: FieldCoder | None,
    place: Callable[[int], tuple[Sink | LateBlocks, int]],
    pool: ThreadPoolExecutor | None,
) -> Block:
    """Encode, sum and write one block; each piece is summed while it is written, where there is a pool."""
    if coder is None:
        starts = range(0, rows.data.nbytes, _PIECE_NBYTES)
        pieces, ends, stored = [rows.data[start : start + _PIECE_NBYTES] for start in starts], rows.ends, None
    else:
        chunks, stored = coder.encode(rows.data, rows.ends, pool)
        pieces, ends = [memoryview(chunk) for chunk in chunks], np.cumsum(stored)
    nbytes, sums = int(ends[-1]), BlockSums(group_bounds(ends))
    target, offset = place(nbytes)
    at = offset
    for piece in pieces:
        if pool is None:
            target.pwrite(at, piece)
            sums.update(piece)
        else:
            written = pool.submit(target.pwrite, at, piece)
            sums.update(piece)
            written.result()
        at += len(piece)
    return Block(offset, nbytes, *sums.finish(), rows.counts, rows.shapes, stored)
