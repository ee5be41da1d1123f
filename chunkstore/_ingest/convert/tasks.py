"""The work of one worker: rows of a few shards from their sources into the unfinished container.

A task says all that a worker needs, in any process that sees the same files; what comes back are the checksums.
Memory: two buffers of 4 MiB, or of the longest text, and what `PlanReader` needs; for a field with a codec its longest
row and the chunks of one block.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from chunkstore._format import dtypes
from chunkstore._format.checksum import BlockSums
from chunkstore._format.layout import group_bounds, rows_per_group
from chunkstore._ingest.convert.arrangement import Arrangement
from chunkstore._ingest.convert.coded import BlockEncoder, Coding, most_nbytes
from chunkstore._ingest.plan.inventory import STORED
from chunkstore._ingest.plan.plan import Plan
from chunkstore._ingest.plan.read import PlanReader, read_uniform
from chunkstore._storage.buffers import Buffer

PIECE_NBYTES: Final = 4 << 20
_FORWARD_WASTE: Final = 0.25  # of a shard: what a task may read in vain to come to its first sample
_FORWARD_RUNS: Final = 32  # about as many tasks of fields that are read in order: the fewer, the less is read in vain
Ints = NDArray[np.int64]


class Deviation(Exception):
    """The files of a uniform plan are not all alike: the full plan must be made."""


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
        overlap: whether a second thread writes while this one reads.
        codings: as in `Arrangement`.
    """

    temporary: str
    plan: Plan
    numbers: tuple[int, ...]
    first_shard: int
    starts: Ints
    nbytes: Ints
    offsets: Ints
    overlap: bool
    codings: tuple[Coding | None, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes of the task's rows."""
        return int(self.nbytes[list(self.numbers)].sum())

    def coding(self, number: int) -> Coding | None:
        """The codec of a field, None where it is raw."""
        return self.codings[number] if self.codings else None


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


def cut_tasks(plan: Plan, arrangement: Arrangement, temporary: str, *, split: bool) -> Iterator[Task]:
    """The work in the order of shards, made one by one as they are asked for.

    Args:
        plan, arrangement: of the container.
        temporary: where it is written.
        split: for several workers: fields that can only be read forward are tasks of their own. Otherwise one task has
            all fields of a run of shards, and writes them shard by shard.
    """
    forward = tuple(number for number in range(len(plan.fields)) if in_order(plan, number))
    others = tuple(number for number in range(len(plan.fields)) if number not in forward)
    if forward and not split:
        yield _cut(plan, arrangement, temporary, (*forward, *others), 0, arrangement.num_shards, True)
        return
    for first, last in forward_runs(plan, arrangement, forward):
        if last - first == 1:
            yield _cut(plan, arrangement, temporary, (*forward, *others), first, last, not split)
            continue
        for number in forward:
            yield _cut(plan, arrangement, temporary, (number,), first, last, False)
        if others:
            for shard in range(first, last):
                yield _cut(plan, arrangement, temporary, others, shard, shard + 1, False)


def in_order(plan: Plan, number: int) -> bool:
    """Whether one worker should read each source of the field from its start on: for its CRC, or since it must."""
    return plan.forward_only(number) or _has_stored_crc(plan, number)


def _has_stored_crc(plan: Plan, number: int) -> bool:
    """Whether several samples lie in one member of an `.npz` that is stored as it is."""
    column = plan.columns[number]
    return column.is_rows and bool((column.method == STORED).any())


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
    start = plan.columns[number].start
    return sample if start is None else int(start[int(np.searchsorted(start, sample, "right")) - 1])


def _cut(
    plan: Plan, arrangement: Arrangement, temporary: str, numbers: tuple[int, ...], first: int, last: int, overlap: bool
) -> Task:
    start, stop = int(arrangement.starts[first]), int(arrangement.starts[last])
    stored = [number for number in numbers if _has_stored_crc(plan, number)]
    start = min((_piece_start(plan, number, start) for number in stored), default=start)
    return Task(
        temporary,
        plan.slice(start, stop),
        tuple(sorted(numbers)),
        first,
        arrangement.starts[first : last + 1] - start,
        arrangement.nbytes[:, first:last],
        arrangement.offsets[:, first:last],
        overlap,
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
    with ExitStack() as stack:
        rows = stack.enter_context(open_rows(task.plan))
        pipe = stack.enter_context(_Pipe(sink, overlap=task.overlap and task.num_bytes > 2 * PIECE_NBYTES))
        for number in task.numbers if task.starts[0] else ():
            rows.pass_over(number, int(task.starts[0]), pipe.buffer(PlannedBlock(task, 0, number).piece_nbytes))
        for place in range(len(task.starts) - 1):
            for number in task.numbers:
                block = PlannedBlock(task, place, number)
                coding = task.coding(number)
                if coding is not None:
                    yield _encode_block(block, coding, rows, pipe, advance)
                    continue
                for _, _, piece, shared in block.pieces(rows, pipe.buffer):
                    pipe.put(block, piece)
                    if shared:
                        pipe.settle()
                    advance(len(piece))
                yield block.finish()
        pipe.settle()


def _encode_block(
    block: PlannedBlock, coding: Coding, rows: Rows, pipe: _Pipe, advance: Callable[[int], None]
) -> Written:
    """Read a block, encode it, and write its chunks."""
    encoder = BlockEncoder(coding.encoder(block.field))
    for start, stop, piece, _ in block.pieces(rows, pipe.buffer):
        encoder.add(piece, block.row_ends(start, stop))
        advance(len(piece))
    chunks, sizes, sums = encoder.finish()
    assert sizes.sum() <= most_nbytes(block.nbytes, len(sizes)), "a codec gave more than there is room for"
    pipe.write(block.offset, chunks)
    return Written(block.shard, block.number, *sums, sizes)


class Rows(Protocol):
    """Where stored rows come from."""

    def read(self, number: int, start: int, stop: int, out: memoryview) -> None:
        """Rows `[start, stop)` of a field, back to back."""

    def stream(self, number: int, row: int, buffer: memoryview) -> Iterator[memoryview]:
        """One row that is longer than the buffer."""

    def pass_over(self, number: int, stop: int, buffer: memoryview) -> None:
        """Read rows `[0, stop)` for nothing but their checksum."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


def open_rows(plan: Plan) -> Rows:
    """Rows of a plan of either kind."""
    return _UniformRows(plan) if plan.uniform else _PlanRows(plan)


class _PlanRows:
    def __init__(self, plan: Plan) -> None:
        self._reader = PlanReader(plan)

    def read(self, number: int, start: int, stop: int, out: memoryview) -> None:
        self._reader.read(number, start, stop, out)

    def stream(self, number: int, row: int, buffer: memoryview) -> Iterator[memoryview]:
        for _, _, piece in self._reader.stream(number, row, row + 1, buffer):
            yield piece

    def pass_over(self, number: int, stop: int, buffer: memoryview) -> None:
        for _ in self._reader.stream(number, 0, stop, buffer):
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._reader.close()


class _UniformRows:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def read(self, number: int, start: int, stop: int, out: memoryview) -> None:
        if not read_uniform(self._plan, start, stop, out):
            raise Deviation

    def stream(self, number: int, row: int, buffer: memoryview) -> Iterator[memoryview]:
        raise Deviation  # such rows are left to the full plan, which can read parts of them

    def pass_over(self, number: int, stop: int, buffer: memoryview) -> None:
        raise AssertionError("files of their own have no samples before")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class PlannedBlock:
    """One block that is being written: its rows, its sums, and how far it is."""

    def __init__(self, task: Task, place: int, number: int) -> None:
        self.shard, self.number = task.first_shard + place, number
        self.offset, self.nbytes = int(task.offsets[number, place]), int(task.nbytes[number, place])
        self.first, self.last = int(task.starts[place]), int(task.starts[place + 1])
        self.field = task.plan.fields[number]
        self.row_nbytes = self.field.row_nbytes
        self._whole = task.coding(number) is not None
        self._ends = self._row_ends(task.plan) if self.row_nbytes is None else None
        self.piece_nbytes = self._piece_nbytes(task.plan)
        self.sums = BlockSums(self._bounds())
        self.put = 0  # bytes handed on

    def _row_ends(self, plan: Plan) -> Ints:
        ends: Ints = (
            np.cumsum(plan.row_items(self.number)[self.first : self.last]) * plan.fields[self.number].item_nbytes
        )
        return ends

    def _bounds(self) -> list[int]:
        if self._ends is not None:
            return group_bounds(self._ends)
        # The same without an array of all rows: there may be 4 million of 8 bytes.
        step = rows_per_group(self.last - self.first, self.nbytes) * (self.row_nbytes or 0)
        return [*range(0, self.nbytes, step), self.nbytes] if self.nbytes else [0, 0]

    def _piece_nbytes(self, plan: Plan) -> int:
        """Bytes of a buffer: texts, rows of object arrays and for codecs come whole, all else by elements at least."""
        field, column = plan.fields[self.number], plan.columns[self.number]
        least = dtypes.element_nbytes(field.dtype) * math.prod(column.subshape)
        if (field.is_string or column.shapes is not None or self._whole) and self._ends is not None:
            least = int(np.diff(self._ends, prepend=0).max())
        elif column.shapes is not None or self._whole:
            least = self.row_nbytes or 0
        return max(PIECE_NBYTES, least)

    def pieces(self, rows: Rows, buffer: Callable[[int], memoryview]) -> Iterator[tuple[int, int, memoryview, bool]]:
        """Read the block: as many rows at a time as fit a piece, and a longer row in parts.

        Args:
            rows: where from.
            buffer: gives memory for so many bytes.
        Yields:
            (start, stop, bytes, shared): rows `[start, stop)` of the task; `shared` if the next piece comes in the same
            memory, since it is of the same row.
        """
        row = self.first
        while row < self.last:
            stop = max(self._fit(row), row + 1)
            nbytes = self._end(stop) - self._end(row)
            if nbytes <= self.piece_nbytes:
                piece = buffer(nbytes)
                rows.read(self.number, row, stop, piece)
                yield row, stop, piece, False
            else:
                for piece in rows.stream(self.number, row, buffer(self.piece_nbytes)):
                    yield row, stop, piece, True
            row = stop

    def _fit(self, row: int) -> int:
        """End of the rows from `row` on that fit a piece."""
        if self._ends is not None:
            return self.first + int(np.searchsorted(self._ends, self._end(row) + self.piece_nbytes, "right"))
        return min(self.last, row + self.piece_nbytes // self.row_nbytes) if self.row_nbytes else self.last

    def row_ends(self, start: int, stop: int) -> Ints:
        """Where rows `[start, stop)` end, counted from the first of them."""
        if self._ends is not None:
            ends: Ints = self._ends[start - self.first : stop - self.first] - self._end(start)
            return ends
        return np.arange(1, stop - start + 1, dtype=np.int64) * (self.row_nbytes or 0)

    def _end(self, row: int) -> int:
        """Bytes of the block before a row."""
        if self._ends is not None:
            return int(self._ends[row - self.first - 1]) if row > self.first else 0
        return (row - self.first) * (self.row_nbytes or 0)

    def finish(self) -> Written:
        assert self.put == self.nbytes, f"{self.put} of {self.nbytes} bytes"
        return Written(self.shard, self.number, *self.sums.finish())


class _Pipe:
    """Two buffers: while one is read into, the other is written by a second thread."""

    def __init__(self, sink: Receiver, *, overlap: bool) -> None:
        self._sink = sink
        self._thread = ThreadPoolExecutor(1, "chunkstore-write") if overlap else None
        self._buffers = [memoryview(b"")] * (2 if overlap else 1)
        self._turn = 0
        self._jobs: deque[Future[None]] = deque()

    def buffer(self, nbytes: int) -> memoryview:
        """Memory that nobody uses now."""
        while len(self._jobs) >= len(self._buffers):
            self._jobs.popleft().result()
        self._turn = (self._turn + 1) % len(self._buffers)
        if len(self._buffers[self._turn]) < nbytes:
            # Memory that was never touched costs nothing, so a small job pays for no large buffer.
            self._buffers[self._turn] = np.empty(max(nbytes, PIECE_NBYTES), np.uint8).data
        return self._buffers[self._turn][:nbytes]

    def put(self, block: PlannedBlock, piece: memoryview) -> None:
        """Sum and write a piece of a block; it must not change before its buffer comes up again."""
        offset = block.offset + block.put
        block.put += len(piece)
        # Summed here: the sums of small groups hold the GIL, and two threads that both want it wait for each other.
        block.sums.update(piece)
        if self._thread is None:
            self._sink.pwrite(offset, piece)
        else:
            self._jobs.append(self._thread.submit(self._sink.pwrite, offset, piece))

    def write(self, offset: int, pieces: Iterable[bytes]) -> None:
        """Write pieces that nobody changes, one after another."""
        for piece in pieces:
            self._sink.pwrite(offset, piece)
            offset += len(piece)

    def settle(self) -> None:
        """Wait until everything is written."""
        while self._jobs:
            self._jobs.popleft().result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
