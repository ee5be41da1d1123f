"""Keys, as `verify` checks them: each is a text, is unique, and is found through the sorted table (spec section 10)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.checksum import sum64
from chunkstore._format.constants import KEY_KINDS, MAX_KEY_NBYTES, NO_FIELD, Kind
from chunkstore._format.keys import order_dtype
from chunkstore._verify.segment import Segment, Tape

_COUNT: Final = 1 << 16  # keys that are looked at together
_TEXT_NBYTES: Final = 1 << 20  # text that is looked at together, or one key
_MAX_PAIRS: Final = 10_000  # equal hashes that are looked into; by chance there is not one among 10^9 keys
Sums: TypeAlias = NDArray[np.uint64]


def check_keys(tape: Tape, segments: list[Segment]) -> None:
    """Check the keys of all live segments, whose sections were proven before.

    About 0.25 µs a key; memory of a few MiB for any number of keys.
    """
    good = []
    for segment in segments:
        if _has_keys(segment) and _Table(segment).check():
            good.append(segment)
        tape.ledger.tick()
    if len(good) > 1:
        _check_unique(tape, good)


def _has_keys(segment: Segment) -> bool:
    """Whether all four sections are there, whole, and of the right length."""
    n = segment.directory.num_samples
    lengths = {Kind.KEY_OFFSETS: 8 * (n + 1), Kind.KEY_HASHES: 8 * n, Kind.KEY_ORDER: order_dtype(n).itemsize * n}
    for kind in KEY_KINDS:
        entry = segment.directory.find(kind, NO_FIELD)
        if entry is None or not segment.whole(kind) or entry.nbytes != lengths.get(kind, entry.nbytes):
            return False
    return True


def _mix(hashes: Sums, positions: Sums) -> int:
    """A sum over pairs that does not depend on their order: equal for equal sets of (hash, position).

    Each pair goes through the finalizer of splitmix64, so that wrong pairs do not cancel out.
    """
    z = hashes + positions * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return int(np.add.reduce(z ^ (z >> np.uint64(31)), dtype=np.uint64))


class _Table:
    """Keys of one segment."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.num_samples = segment.directory.num_samples
        self.first_sample = segment.directory.first_sample

    def check(self) -> bool:
        """Whether the table holds exactly the hashes and positions of the keys, sorted. No key is there twice."""
        of_keys = self._sum_keys()
        of_table = None if of_keys is None else self._sum_table()
        if of_table is not None and of_keys != of_table:
            self.segment.wrong(Kind.KEY_HASHES, "with KEY_ORDER, it does not hold the hashes of the keys")
        return of_table is not None and of_keys == of_table

    def _sum_keys(self) -> int | None:
        """Sum over (hash of the key, position); None if the keys are not in order."""
        total = 0
        for start in range(0, max(self.num_samples, 1), _COUNT):  # of no keys KEY_OFFSETS has its 0
            stop = min(start + _COUNT, self.num_samples)
            bounds = self.segment.values(Kind.KEY_OFFSETS, NO_FIELD, "<i8", start, stop + 1)
            if bounds is None or self.segment.tape.ledger.stopped or not self._check_bounds(start, stop, bounds):
                return None
            for low, high in _cut(bounds):
                part = self._sum_texts(start + low, bounds[low : high + 1])
                if part is None:
                    return None
                total += part
        return total % 2**64

    def _check_bounds(self, start: int, stop: int, bounds: NDArray[np.int64]) -> bool:
        entry = self.segment.directory.find(Kind.KEY_BYTES, NO_FIELD)
        text_nbytes = 0 if entry is None else entry.nbytes
        problem = ""
        if start == 0 and bounds[0] != 0:
            problem = f"begins with {bounds[0]}, expected 0"
        elif bounds[0] < 0 or np.any(bounds[1:] <= bounds[:-1]) or bounds[-1] > text_nbytes:
            problem = f"does not ascend strictly within the {text_nbytes} bytes of KEY_BYTES"
        elif np.any(np.diff(bounds) > MAX_KEY_NBYTES):
            problem = f"a key has more than {MAX_KEY_NBYTES} bytes"
        elif stop == self.num_samples and bounds[-1] != text_nbytes:
            problem = f"ends with {bounds[-1]}, but KEY_BYTES has {text_nbytes} bytes"
        if problem:
            span = {"start": self.first_sample + start, "stop": self.first_sample + stop}
            self.segment.wrong(Kind.KEY_OFFSETS, f"samples {span['start']} to {span['stop']}: {problem}", **span)
        return not problem

    def _sum_texts(self, start: int, bounds: NDArray[np.int64]) -> int | None:
        array = self.segment.values(Kind.KEY_BYTES, NO_FIELD, "u1", int(bounds[0]), int(bounds[-1]))
        if array is None:
            return None
        text = array.tobytes()
        places = (bounds - bounds[0]).tolist()
        self._check_texts(start, text, places)
        sums = (sum64(text[a:b]) for a, b in pairwise(places))
        hashes = np.fromiter(sums, np.uint64, len(places) - 1)
        return _mix(hashes, np.arange(start, start + len(hashes), dtype=np.uint64))

    def _check_texts(self, start: int, text: bytes, places: list[int]) -> None:
        if b"\0" not in text and starts_whole_texts(text, places[:-1]):
            return
        for number, (a, b) in enumerate(pairwise(places)):
            key = text[a:b]
            problem = "has a U+0000" if b"\0" in key else None
            try:
                key.decode()
            except UnicodeDecodeError as error:
                problem = f"is not UTF-8: {error}"
            if problem:
                sample = self.first_sample + start + number
                what = f"the key of sample {sample}, {key[:40]!r}, {problem}"
                self.segment.wrong(Kind.KEY_BYTES, what, start=sample, stop=sample + 1)

    def _sum_table(self) -> int | None:
        """Sum over the entries of the table; None if it is not sorted or leads nowhere."""
        total, before = 0, (0, -1)
        dtype = order_dtype(self.num_samples)
        for start in range(0, self.num_samples, _COUNT):
            stop = min(start + _COUNT, self.num_samples)
            hashes = self.segment.values(Kind.KEY_HASHES, NO_FIELD, "<u8", start, stop)
            order = self.segment.values(Kind.KEY_ORDER, NO_FIELD, dtype, start, stop)
            if hashes is None or order is None or self.segment.tape.ledger.stopped:
                return None
            if int(order.max()) >= self.num_samples:
                self.segment.wrong(Kind.KEY_ORDER, f"an entry is {order.max()}, of {self.num_samples} samples")
                return None
            if not self._check_sorted(hashes, order.astype(np.int64), before):
                return None
            total += _mix(hashes, order.astype(np.uint64))
            before = (int(hashes[-1]), int(order[-1]))
        return total % 2**64

    def _check_sorted(self, hashes: Sums, order: NDArray[np.int64], before: tuple[int, int]) -> bool:
        hashes = np.concatenate([np.array(before[:1], np.uint64), hashes])
        order = np.concatenate([np.array(before[1:], np.int64), order])
        if np.any(hashes[1:] < hashes[:-1]):
            self.segment.wrong(Kind.KEY_HASHES, "it is not sorted")
            return False
        equal = np.flatnonzero(hashes[1:] == hashes[:-1])
        equal = equal[order[equal] >= 0]  # in front of the first entry there is none
        if np.any(order[equal + 1] <= order[equal]):
            self.segment.wrong(Kind.KEY_ORDER, "equal hashes are not in the order of positions")
            return False
        for place in equal[:_MAX_PAIRS].tolist():
            _compare(self.segment, int(order[place]), self.segment, int(order[place + 1]))
        return True


def starts_whole_texts(data: bytes | memoryview, starts: list[int] | NDArray[np.int64]) -> bool:
    """Whether texts that lie back to back and begin at `starts` are UTF-8: all of it is, and none begins inside a
    character."""
    try:
        str(data, "utf-8")
    except UnicodeDecodeError:
        return False
    array = np.frombuffer(data, np.uint8)
    places = np.asarray(starts, np.int64)
    return not np.any(array[places[places < len(array)]] & 0xC0 == 0x80)


def _cut(bounds: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Split consecutive keys into runs of about a MiB of text."""
    low, last = 0, len(bounds) - 1
    while low < last:
        high = int(np.searchsorted(bounds, bounds[low] + _TEXT_NBYTES, "right")) - 1
        high = min(max(high, low + 1), last)
        yield low, high
        low = high


def _key(segment: Segment, local: int) -> bytes | None:
    bounds = segment.values(Kind.KEY_OFFSETS, NO_FIELD, "<i8", local, local + 2)
    start, stop = (-1, -1) if bounds is None else bounds.tolist()
    if not 0 <= start < stop <= start + MAX_KEY_NBYTES:
        return None
    text = segment.values(Kind.KEY_BYTES, NO_FIELD, "u1", start, stop)
    return None if text is None else text.tobytes()


def _compare(one: Segment, first: int, other: Segment, second: int) -> None:
    """Two samples whose keys have the same hash: are the keys equal?"""
    key = _key(one, first)
    if key is None or key != _key(other, second):
        return
    a, b = one.directory.first_sample + first, other.directory.first_sample + second
    text = key.decode(errors="replace")
    other.wrong(Kind.KEY_BYTES, f"samples {a} and {b} have the same key {text!r}", start=b, stop=b + 1, keys=(text,))


class _Run:
    """The sorted hashes of one segment, read piece by piece."""

    def __init__(self, segment: Segment, count: int) -> None:
        self.segment = segment
        self._count = count
        self._read = 0
        self.first = 0
        self.hashes: Sums = np.zeros(0, np.uint64)
        self.fill()

    @property
    def exhausted(self) -> bool:
        return self._read >= self.segment.directory.num_samples

    def fill(self) -> None:
        """Read on, behind what is left."""
        stop = min(self._read + self._count, self.segment.directory.num_samples)
        more = self.segment.values(Kind.KEY_HASHES, NO_FIELD, "<u8", self._read, stop)
        if more is not None:
            self.hashes = np.concatenate([self.hashes, more])
        self._read = stop if more is not None else self.segment.directory.num_samples

    def take(self, bound: np.uint64) -> tuple[Sums, NDArray[np.int64]]:
        """Hashes up to `bound`, and their places in the table."""
        stop = int(np.searchsorted(self.hashes, bound, "right"))
        taken, places = self.hashes[:stop], np.arange(self.first, self.first + stop)
        self.hashes, self.first = self.hashes[stop:], self.first + stop
        return taken, places

    def position(self, place: int) -> int | None:
        """The sample, counted from the first of the segment, of an entry of the table."""
        dtype = order_dtype(self.segment.directory.num_samples)
        order = self.segment.values(Kind.KEY_ORDER, NO_FIELD, dtype, place, place + 1)
        return None if order is None else int(order[0])


def _check_unique(tape: Tape, segments: list[Segment]) -> None:
    """No key of one segment is in another: a merge of the sorted tables, of which only small windows are in memory."""
    runs = [_Run(segment, max(_COUNT // len(segments), 1024)) for segment in segments]
    while any(len(run.hashes) for run in runs) and not tape.ledger.stopped:
        open_ends = [run.hashes[-1] for run in runs if len(run.hashes) and not run.exhausted]
        bound = min(open_ends, default=np.uint64(2**64 - 1))
        if not _compare_window(runs, bound):
            return  # the file changes under our hands
        for run in runs:
            if not run.exhausted and len(run.hashes) <= 1024:
                run.fill()


def _compare_window(runs: list[_Run], bound: np.uint64) -> int:
    """Compare all hashes up to `bound`; how many they were."""
    parts = [run.take(bound) for run in runs]
    hashes = np.concatenate([part[0] for part in parts])
    owners = np.repeat(np.arange(len(runs)), [len(part[0]) for part in parts])
    places = np.concatenate([part[1] for part in parts])
    order = np.argsort(hashes, kind="stable")
    hashes, owners, places = hashes[order], owners[order], places[order]
    equal = np.flatnonzero((hashes[1:] == hashes[:-1]) & (owners[1:] != owners[:-1]))
    for place in equal[:_MAX_PAIRS].tolist():
        one, other = runs[int(owners[place])], runs[int(owners[place + 1])]
        first, second = one.position(int(places[place])), other.position(int(places[place + 1]))
        if first is not None and second is not None:
            _compare(one.segment, first, other.segment, second)
    return len(hashes)
