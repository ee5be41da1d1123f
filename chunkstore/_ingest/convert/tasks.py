"""The work of one worker: rows of a few shards from their sources into the unfinished container.

A task says all that a worker needs, in any process that sees the same files; what comes back are the checksums.
Memory: two buffers of 4 MiB, or of the longest text, and what `PlanReader` needs; for a field with a codec its longest
row and the chunks of one block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.checksum import BlockSums
from chunkstore._format.layout import group_bounds, rows_per_group
from chunkstore._ingest.convert.coded import Coding, most_nbytes
from chunkstore._ingest.plan.columns import STORED
from chunkstore._ingest.plan.plan import Plan
from chunkstore._ingest.plan.read import PIECE_NBYTES, PlanReader
from chunkstore._storage.buffers import Buffer
from chunkstore._storage.interrupts import signals_later

if TYPE_CHECKING:
    from chunkstore._ingest.convert.arrangement import Arrangement  # of the converter: workers start without it

_FORWARD_WASTE: Final = 0.25  # of a shard: what a task may read in vain to come to its first sample
_FORWARD_RUNS: Final = 32  # about as many tasks of fields that are read in order: the fewer, the less is read in vain
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """Some fields of a run of shards.

    Attributes:
        temporary: the unfinished container.
        plan: the samples of these shards, numbered from 0.
        numbers: which fields.
        first_shard: number of the first shard in the container.
        starts: int64 [shards + 1], first sample of each shard in `plan`, and behind the last. Samples before are those
            with which their source begins: they are read for its CRC, and belong to another task.
        nbytes, offsets: int64 [fields of the plan, shards], of each block, as in `Arrangement`.
        codings: as in `Arrangement`.
        alone: there are no other workers, so a second thread writes while this one reads, if shards are not small.
    """

    temporary: str
    plan: Plan
    numbers: tuple[int, ...]
    first_shard: int
    starts: Ints
    nbytes: Ints
    offsets: Ints
    codings: Mapping[int, Coding]
    alone: bool = False

    @property
    def num_bytes(self) -> int:
        """Bytes of the task's rows."""
        return int(self.nbytes[list(self.numbers)].sum())


@dataclass(frozen=True)
class Written:
    """Checksums of a block that was written: its xxh3-64 and those of its groups.

    `stored`, int64 [rows]: nbytes of each chunk; None where the field is raw.
    """

    shard: int
    number: int
    sum: int
    group_sums: NDArray[np.uint64]
    stored: Ints | None = None


def whole_task(plan: Plan, arrangement: Arrangement, temporary: str) -> Task:
    """All the work as one task, which writes all fields shard by shard."""
    task = _cut(plan, arrangement, temporary, tuple(range(len(plan.fields))), 0, arrangement.num_shards)
    return replace(task, alone=True)


def cut_tasks(plan: Plan, arrangement: Arrangement, temporary: str) -> Iterator[Task]:
    """The work for several workers in the order of shards, made task by task as they are asked for.

    Fields that can only be read forward are tasks of their own where their sources are long.

    Args:
        plan, arrangement: of the container.
        temporary: where it is written.
    """
    numbers = tuple(range(len(plan.fields)))
    forward = tuple(number for number in numbers if in_order(plan, number))
    others = tuple(number for number in numbers if number not in forward)
    for first, last in forward_runs(plan, arrangement, forward):
        if last - first == 1:
            yield _cut(plan, arrangement, temporary, numbers, first, last)
            continue
        for number in forward:
            yield _cut(plan, arrangement, temporary, (number,), first, last)
        if others:
            for shard in range(first, last):
                yield _cut(plan, arrangement, temporary, others, shard, shard + 1)


def in_order(plan: Plan, number: int) -> bool:
    """Whether one worker should read each source of the field from its start on: since it must, or for the CRC of a
    member of an `.npz` in which several samples lie.
    """
    column = plan.columns[number]
    return column.forward_only() or (column.is_rows and bool((column.method == STORED).any()))


def forward_runs(plan: Plan, arrangement: Arrangement, forward: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Runs of shards that one worker should write: single shards, but for fields that are read in order.

    Such a run begins where at most a quarter of a shard lies between the start of the member and that of the shard.
    """
    starts = arrangement.starts
    least = arrangement.num_shards // _FORWARD_RUNS if forward else 0
    first = 0
    for shard in range(1, arrangement.num_shards):
        begin = int(starts[shard])
        if shard - first < least:
            continue
        skipped = max((begin - _piece_start(plan, number, begin) for number in forward), default=0)
        if skipped <= _FORWARD_WASTE * (int(starts[shard + 1]) - begin):
            yield first, shard
            first = shard
    if arrangement.num_shards:
        yield first, arrangement.num_shards


def _piece_start(plan: Plan, number: int, sample: int) -> int:
    column = plan.columns[number]
    return column.samples(column.piece(sample))[0]


def _cut(plan: Plan, arrangement: Arrangement, temporary: str, numbers: tuple[int, ...], first: int, last: int) -> Task:
    start, stop = int(arrangement.starts[first]), int(arrangement.starts[last])
    forward = [number for number in numbers if in_order(plan, number)]
    start = min((_piece_start(plan, number, start) for number in forward), default=start)
    return Task(
        temporary,
        plan.slice(start, stop),
        numbers,
        first,
        arrangement.starts[first : last + 1] - start,
        arrangement.nbytes[:, first:last],
        arrangement.offsets[:, first:last],
        arrangement.codings,
    )


class Receiver(Protocol):
    """Where blocks go: the container, or what stands for it."""

    def pwrite(self, offset: int, buffer: Buffer) -> None:
        """Take bytes that belong at `offset`; they are copied or written when this returns."""


def write_blocks(task: Task, sink: Receiver, advance: Callable[[int], None]) -> Iterator[Written]:
    """Do a task, and give each block when its last piece is on its way; all are written when this ends.

    Args:
        task: what to do.
        sink: the container.
        advance: called with the bytes of each piece, from this thread; may raise.
    Raises:
        Deviation: the plan is uniform and a file differs.
    """
    overlap = task.alone and task.num_bytes > 2 * PIECE_NBYTES * task.offsets.shape[1]
    with PlanReader(task.plan) as rows, _Pipe(sink, overlap=overlap) as pipe:
        for number in task.numbers if task.starts[0] else ():
            for _ in rows.stream(number, 0, int(task.starts[0]), pipe.buffer):
                pass  # for its checksum
        for place in range(len(task.starts) - 1):
            for number in task.numbers:
                write = _encode_block if number in task.codings else _copy_block
                yield write(task, place, number, rows, pipe, advance)
        pipe.settle()


def _copy_block(
    task: Task, place: int, number: int, rows: PlanReader, pipe: _Pipe, advance: Callable[[int], None]
) -> Written:
    """Read a block and write it as it is."""
    start, stop = task.starts[place : place + 2].tolist()
    offset, nbytes = int(task.offsets[number, place]), int(task.nbytes[number, place])
    row_nbytes, end = task.plan.fields[number].row_nbytes, offset + nbytes
    if row_nbytes is None:
        bounds = group_bounds(rows.row_ends(number, start, stop))
    else:  # the same without an array of all rows: there may be 4 million of 8 bytes
        step = rows_per_group(stop - start, nbytes) * row_nbytes
        bounds = [*range(0, nbytes, step), nbytes] if nbytes else [0, 0]
    sums = BlockSums(bounds)
    for _, _, piece, shared in rows.stream(number, start, stop, pipe.buffer):
        # Summed here: the sums of small groups hold the GIL, and two threads that both want it wait for each other.
        sums.update(piece)
        pipe.put(offset, piece)
        offset += len(piece)
        if shared:
            pipe.settle()
        advance(len(piece))
    assert offset == end, f"{nbytes - (end - offset)} of {nbytes} bytes"
    return Written(task.first_shard + place, number, *sums.finish())


def _encode_block(
    task: Task, place: int, number: int, rows: PlanReader, pipe: _Pipe, advance: Callable[[int], None]
) -> Written:
    """Read a block, encode it, and write its chunks. Memory: all of them."""
    start, stop = task.starts[place : place + 2].tolist()
    encoder = task.codings[number].encoder(task.plan.fields[number])
    chunks, sizes = [], [np.zeros(0, np.int64)]
    for first, last, piece, _ in rows.stream(number, start, stop, pipe.buffer, whole=True):
        encoded = encoder.encode(piece, rows.row_ends(number, first, last))
        chunks.append(encoded[0])
        sizes.append(encoded[1])
        advance(len(piece))
    stored, offset = np.concatenate(sizes), int(task.offsets[number, place])
    most = most_nbytes(int(task.nbytes[number, place]), len(stored))
    assert stored.sum() <= most, "a codec gave more than there is room for"
    sums = BlockSums(group_bounds(np.cumsum(stored)))  # which need the length of the whole block
    for chunk in chunks:
        sums.update(memoryview(chunk))
        pipe.sink.pwrite(offset, chunk)
        offset += len(chunk)
    return Written(task.first_shard + place, number, *sums.finish(), stored)


class _Pipe:
    """Two buffers: while one is read into, the other is written by a second thread.

    No executor: Ctrl-C where its locks and those of futures are taken can leave one so, for which the thread would
    wait for ever, and this one for the thread. A `SimpleQueue` has none that can be left.
    """

    def __init__(self, sink: Receiver, *, overlap: bool) -> None:
        self.sink = sink
        # A daemon: a second Ctrl-C may come before it is told to end, and the end of the program would wait for it.
        self._thread = Thread(target=self._write, name="chunkstore-write", daemon=True) if overlap else None
        self._buffers = [memoryview(b"")] * (2 if overlap else 1)
        self._turn = self._under_way = 0
        self._jobs: SimpleQueue[tuple[int, memoryview] | None] = SimpleQueue()
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()

    def buffer(self, nbytes: int) -> memoryview:
        """Memory that nobody uses now."""
        while self._under_way >= len(self._buffers):
            self._wait_for_one()
        if len(self._buffers[self._turn]) < nbytes:
            # Memory that was never touched costs nothing, so a small job pays for no large buffer.
            self._buffers[self._turn] = np.empty(max(nbytes, PIECE_NBYTES), np.uint8).data
        return self._buffers[self._turn][:nbytes]

    def put(self, offset: int, piece: memoryview) -> None:
        """Write a piece; it must not change before its buffer comes up again."""
        if self._thread is None:
            self.sink.pwrite(offset, piece)
        else:
            self._jobs.put((offset, piece))
            self._under_way += 1
            self._turn = (self._turn + 1) % len(self._buffers)  # here: what is asked for and not put stays free

    def settle(self) -> None:
        """Wait until everything is written."""
        while self._under_way:
            self._wait_for_one()

    def _wait_for_one(self) -> None:
        error = self._done.get()
        self._under_way -= 1
        if error is not None:
            raise error

    def _write(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self.sink.pwrite(*job)
                self._done.put(None)
            except BaseException as error:  # noqa: BLE001 - it is raised by whoever waits for the piece
                self._done.put(error)

    def __enter__(self) -> Self:
        if self._thread is not None:
            try:
                with signals_later():
                    self._thread.start()
            except BaseException:
                self._jobs.put(None)  # after an interrupt: nobody else would end it
                raise
        return self

    def __exit__(self, *error: object) -> None:
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
