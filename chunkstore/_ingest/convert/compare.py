"""`convert(verify=True)`: the finished container, read from the disk, against the sources, read once more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Final

import numpy as np

from chunkstore._format.codec import decode
from chunkstore._format.field_index import FieldIndex
from chunkstore._format.index import Index, read_index
from chunkstore._ingest.convert.arrangement import Arrangement
from chunkstore._ingest.convert.coded import Coding
from chunkstore._ingest.plan.plan import Plan
from chunkstore._ingest.plan.read import PlanReader
from chunkstore._ingest.plan.scan import Skipped
from chunkstore._storage import platform
from chunkstore._storage.source import Source, open_source
from chunkstore._verify.verify import verify
from chunkstore.errors import CorruptError, IngestError

_ADVICE: Final = "Nothing was published. Check the memory and the disk of this machine."
_UNIT: Final = 10_000  # samples whose keys or shapes are compared at a time


def compare(plan: Plan, arrangement: Arrangement, path: str, advance: Callable[[int], None]) -> None:
    """Prove that a container holds what the sources hold.

    Its checksums are verified first; then keys and shapes are compared with those of the sources, and every row is
    looked up in the index and compared byte for byte.

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
        for number, field in enumerate(plan.fields):
            if field.ragged:
                _compare_shapes(plan, index, number)
        with PlanReader(plan) as rows:
            both = _Comparison(plan, arrangement.codings, rows, source, index)
            for start, stop in pairwise(arrangement.starts.tolist()):
                for number in range(len(plan.fields)):
                    both.compare(number, start, stop, advance)


def _compare_keys(plan: Plan, index: Index) -> None:
    if (index.keys is None) != (plan.keys is None):
        raise CorruptError(f"the keys were not written. {_ADVICE}")
    if index.keys is None or plan.keys is None:
        return
    for start in range(0, plan.num_samples, _UNIT):
        stop = min(start + _UNIT, plan.num_samples)
        wanted, found = list(plan.keys.slice(start, stop)), index.keys.texts(start, stop)
        if wanted != found:
            raise CorruptError(f"keys of samples {start} to {stop - 1}: others were read back. {_ADVICE}")


def _compare_shapes(plan: Plan, index: Index, number: int) -> None:
    """Rows with the same bytes may still differ in how they are cut."""
    field, wanted = FieldIndex(index, number), plan.row_shapes(number)
    for start in range(0, plan.num_samples, _UNIT):
        positions = np.arange(start, min(start + _UNIT, plan.num_samples))
        found = field.shapes(positions, field.counts(positions))
        wrong = np.flatnonzero((found != wanted[positions]).any(axis=1))
        if len(wrong):
            sample = start + int(wrong[0])
            raise CorruptError(
                f"sample {sample}, field {plan.fields[number].name!r} ({plan.where(number, sample)}): expected the "
                f"leading shape {wanted[sample].tolist()}, read back {found[wrong[0]].tolist()}. {_ADVICE}"
            )


class _Scratch:
    """One buffer, as large as was ever needed."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)

    def buffer(self, nbytes: int) -> memoryview:
        if len(self._buffer) < nbytes:
            self._buffer = np.empty(nbytes, np.uint8)
        return self._buffer[:nbytes].data


class _Comparison:
    """The rows of a container beside those of its sources."""

    def __init__(
        self, plan: Plan, codings: Mapping[int, Coding], rows: PlanReader, source: Source, index: Index
    ) -> None:
        self._plan, self._codings, self._rows, self._source = plan, codings, rows, source
        self._fields = [FieldIndex(index, number) for number in range(len(plan.fields))]
        self._wanted, self._stored = _Scratch(), _Scratch()

    def compare(self, number: int, start: int, stop: int, advance: Callable[[int], None]) -> None:
        """Rows `[start, stop)` of a field."""
        row, done = -1, 0  # bytes that were compared of a row that comes in parts
        whole = number in self._codings
        for first, last, piece, part in self._rows.stream(number, start, stop, self._wanted.buffer, whole=whole):
            offsets, nbytes = self._fields[number].rows(np.array([first, last - 1], np.int64))
            done = done if first == row else 0
            begin, end = int(offsets[0]) + done, int(offsets[1] + nbytes[1])
            stored = self._stored.buffer(min(len(piece), end - begin) if part else end - begin)
            self._source.read_into(begin, stored)
            if not self._equal(number, first, last, piece, stored):
                self._plan.check_sources()  # a uniform plan looked at each file while it read it
                raise CorruptError(
                    f"samples {first} to {last - 1}, field {self._plan.fields[number].name!r} "
                    f"({self._plan.where(number, first)}): other bytes were read back. {_ADVICE}"
                )
            row, done = first, done + len(piece)
            advance(len(piece))

    def _equal(self, number: int, first: int, last: int, piece: memoryview, stored: memoryview) -> bool:
        coding = self._codings.get(number)
        if coding is None:
            return np.array_equal(np.frombuffer(stored, np.uint8), np.frombuffer(piece, np.uint8))
        sizes = self._fields[number].rows(np.arange(first, last, dtype=np.int64))[1].tolist()
        ends = self._rows.row_ends(number, first, last).tolist()
        at = 0
        for size, (begin, end) in zip(sizes, pairwise([0, *ends]), strict=True):
            chunk, at = stored[at : at + size], at + size
            if decode(coding.options.name, chunk, end - begin, coding.dictionary) != piece[begin:end]:
                return False
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
