"""Sums and writes the blocks of shards while the caller stages the next one."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.checksum import BlockSums
from chunkstore._format.layout import group_bounds
from chunkstore._storage.sink import Sink
from chunkstore._write.index_writer import Block, IndexWriter

_PIECE_NBYTES: Final = 8 << 20
_INLINE_NBYTES: Final = 4 << 20  # below it, handing over costs more than it saves


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
    Threads are there from the first large shard to `close`.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._pending: tuple[IndexWriter, Future[list[Block]], int] | None = None

    def submit(self, sink: Sink, index: IndexWriter, rows: Sequence[Rows], offsets: Sequence[int]) -> None:
        """Write one block per field at its offset, then add the shard to the index.

        Raises:
            WriteError: of the shard before.
        """
        self.wait()
        count = len(rows[0].ends)
        if sum(field.data.nbytes for field in rows) < _INLINE_NBYTES:
            index.add_shard(count, [_write_block(sink, *pair) for pair in zip(rows, offsets, strict=True)])
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(2, "chunkstore-writer")
        self._pending = index, self._pool.submit(self._write, sink, rows, offsets), count

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

    def _write(self, sink: Sink, rows: Sequence[Rows], offsets: Sequence[int]) -> list[Block]:
        return [_write_block(sink, field, offset, self._pool) for field, offset in zip(rows, offsets, strict=True)]


def _write_block(sink: Sink, rows: Rows, offset: int, pool: ThreadPoolExecutor | None = None) -> Block:
    """Sum and write one block; each piece at the same time where there is a pool."""
    sums = BlockSums(group_bounds(rows.ends))
    for start in range(0, rows.data.nbytes, _PIECE_NBYTES):
        piece = rows.data[start : start + _PIECE_NBYTES]
        if pool is None:
            sink.pwrite(offset + start, piece)
            sums.update(piece)
        else:
            written = pool.submit(sink.pwrite, offset + start, piece)
            sums.update(piece)
            written.result()
    return Block(offset, rows.data.nbytes, *sums.finish(), rows.counts, rows.shapes)
