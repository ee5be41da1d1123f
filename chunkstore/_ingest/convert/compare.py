"""`convert(verify=True)`: the finished container, read from the disk, against the sources, read once more."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.codec import decode
from chunkstore._format.field_index import FieldIndex
from chunkstore._format.index import Index, read_index
from chunkstore._ingest.convert.arrangement import Arrangement
from chunkstore._ingest.convert.tasks import PlannedBlock, Task, cut_tasks
from chunkstore._ingest.plan.plan import Plan
from chunkstore._ingest.plan.read import PlanReader
from chunkstore._ingest.plan.scan import Skipped
from chunkstore._storage import platform
from chunkstore._storage.source import Source, open_source
from chunkstore._verify.verify import verify
from chunkstore.errors import CorruptError, IngestError

_ADVICE: Final = "Nothing was published. Check the memory and the disk of this machine."
_UNIT_KEYS: Final = 10_000


def compare(plan: Plan, arrangement: Arrangement, path: str, advance: Callable[[int], None]) -> None:
    """Prove that a container holds what the sources hold.

    Its checksums are verified first; then every row is looked up in its index and compared with the source, byte for
    byte; then keys.

    Args:
        plan, arrangement: what should be in it.
        path: the container, synced.
        advance: called with the bytes of each piece.
    Raises:
        CorruptError: it differs.
        IngestError, OSError: a source cannot be read any more.
        Deviation: a uniform plan's sources differ now.
    """
    with open_source(path, "pread") as source:
        platform.drop_cache(source.fileno())  # it is synced: what is compared comes from the disk
        report = verify(path)
        if not report.ok:
            raise CorruptError(f"what was written is not what was read back: {report.damage[0]}. {_ADVICE}")
        index = read_index(source)
        if index.num_samples != plan.num_samples or index.fields != plan.fields:
            raise CorruptError(f"{path}: read back {index.num_samples} samples of {index.fields}. {_ADVICE}")
        _compare_keys(plan, index)
        for task in cut_tasks(plan, arrangement, path, split=False):
            _compare_task(task, source, index, advance)


def _compare_keys(plan: Plan, index: Index) -> None:
    if (index.keys is None) != (plan.keys is None):
        raise CorruptError(f"the keys were not written. {_ADVICE}")
    if index.keys is None or plan.keys is None:
        return
    for start in range(0, plan.num_samples, _UNIT_KEYS):
        stop = min(start + _UNIT_KEYS, plan.num_samples)
        wanted, found = list(plan.keys.slice(start, stop)), index.keys.texts(start, stop)
        if wanted != found:
            raise CorruptError(f"keys of samples {start} to {stop - 1}: others were read back. {_ADVICE}")


def _compare_task(task: Task, source: Source, index: Index, advance: Callable[[int], None]) -> None:
    first = int(index.shard_starts[task.first_shard]) - int(task.starts[0])
    fields = {number: FieldIndex(index, number) for number in task.numbers}
    scratch = _Scratch()
    with PlanReader(task.plan) as rows:
        for place in range(len(task.starts) - 1):
            for number in task.numbers:
                found = _Found(source, fields[number], first)
                block = PlannedBlock(task, place, number, rows)
                coding = task.coding(number)
                for start, stop, piece, part in block.pieces(scratch.buffer):
                    if coding is None:
                        same = found.equals(start, stop, piece, part)
                    else:
                        same = found.decodes_to(piece, start, rows.row_ends(number, start, stop), coding.dictionary)
                    if not same:
                        task.plan.check_sources()  # a uniform one looked at each file while it read it
                        raise CorruptError(
                            f"samples {first + start} to {first + stop - 1}, field {task.plan.fields[number].name!r} "
                            f"({task.plan.where(number, start)}): other bytes were read back. {_ADVICE}"
                        )
                    advance(len(piece))


class _Scratch:
    """One buffer, as large as was ever needed."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)

    def buffer(self, nbytes: int) -> memoryview:
        if len(self._buffer) < nbytes:
            self._buffer = np.empty(nbytes, np.uint8)
        return self._buffer[:nbytes].data


class _Found:
    """Rows as the container has them, piece by piece."""

    def __init__(self, source: Source, field: FieldIndex, first: int) -> None:
        self._source, self._field, self._first = source, field, first
        self._scratch = _Scratch()
        self._row, self._done = -1, 0

    def equals(self, start: int, stop: int, piece: memoryview, part: bool) -> bool:
        """Whether rows `[start, stop)` have these bytes; with `part` the next ones of a long row."""
        offsets, nbytes = self._field.rows(np.array([start, stop - 1], np.int64) + self._first)
        if start != self._row:
            self._row, self._done = start, 0
        begin, end = int(offsets[0]) + self._done, int(offsets[1] + nbytes[1])
        self._done += len(piece)
        if len(piece) > end - begin or (not part and len(piece) < end - begin):
            return False
        stored = self._scratch.buffer(len(piece))
        self._source.read_into(begin, stored)
        return np.array_equal(np.frombuffer(stored, np.uint8), np.frombuffer(piece, np.uint8))

    def decodes_to(self, piece: memoryview, start: int, ends: NDArray[np.int64], dictionary: bytes) -> bool:
        """Whether the rows from `start` on have these bytes; one chunk for each of `ends`."""
        offsets, nbytes = self._field.rows(np.arange(start, start + len(ends), dtype=np.int64) + self._first)
        chunks = memoryview(bytearray(int(nbytes.sum())))
        self._source.read_into(int(offsets[0]), chunks)
        at = 0
        for size, (begin, end) in zip(nbytes.tolist(), pairwise([0, *ends.tolist()]), strict=True):
            if decode(self._field.field.codec, chunks[at : at + size], end - begin, dictionary) != piece[begin:end]:
                return False
            at += size
        return True


def find_unreadable(plan: Plan) -> dict[str, Skipped]:
    """Files of a plan whose headers were good and whose data cannot be read. Reads everything once.

    Returns:
        Path to open a file by -> its relative path and the reason.
    """
    bad: dict[int, str] = {}
    scratch = _Scratch()
    with PlanReader(plan) as rows:
        for number, column in enumerate(plan.columns):
            for piece, file in enumerate(column.file.tolist()):
                start, stop = column.samples(piece)
                try:
                    for _ in rows.stream(number, start, stop, scratch.buffer):
                        pass
                except (IngestError, OSError) as error:
                    bad.setdefault(file, str(error).removeprefix(plan.file_path(file)).lstrip(": "))
    return {plan.file_path(file): Skipped(plan.paths[file], bad[file]) for file in sorted(bad)}
