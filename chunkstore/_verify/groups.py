"""One block in detail: its groups against CHUNK_SUMS, and with `deep` its rows against the schema."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np

from chunkstore._format.checksum import Stream64, sum64
from chunkstore._format.codec import RAW, decode
from chunkstore._format.constants import MAX_DICTIONARY_NBYTES, Kind
from chunkstore._format.lookup import Ints
from chunkstore._format.schema import Field
from chunkstore._verify.keys import starts_whole_texts
from chunkstore._verify.segment import Segment, as_tuples
from chunkstore.errors import CorruptError

_ROWS: Final = 1 << 16  # rows whose numbers are in memory at the same time


@dataclass(frozen=True)
class BlockPlace:
    """Where a block stands in the index: `shard` counts from the first of the segment."""

    segment: Segment
    shard: int
    number: int

    @property
    def samples(self) -> tuple[int, int] | None:
        """The samples `[start, stop)` of its shard, if they are known."""
        starts = self.segment.starts
        return None if starts is None else (int(starts[self.shard]), int(starts[self.shard + 1]))

    def where(self, start: int | None = None, stop: int | None = None) -> dict[str, Any]:
        """Shard, field, samples and keys for a damage; of the whole shard unless told which samples."""
        found: dict[str, Any] = {
            "shard": self.segment.directory.first_shard + self.shard,
            "field": self.segment.field_name(self.number),
        }
        if start is None or stop is None:
            if self.samples is None:
                return found
            start, stop = self.samples
        return {**found, "start": start, "stop": stop, "keys": self.segment.keys_of(start, stop)}

    def name(self) -> str:
        """The block in words."""
        samples = self.samples
        span = "" if samples is None else f", samples [{samples[0]}, {samples[1]})"
        shard = self.segment.directory.first_shard + self.shard
        return f"block of shard {shard}, field {self.segment.field_name(self.number)!r}{span}"


class BlockCheck:
    """Holds a block against its own sum and those of its groups.

    Args:
        place: which block.
        buffer: to read through; also how much is read at once.
        first_sum: what was computed before and did not fit, if this is about a damaged block.
        deep: look into the rows, too.
    """

    def __init__(
        self, place: BlockPlace, buffer: memoryview, *, first_sum: int | None = None, deep: bool = False
    ) -> None:
        self._place = place
        self._segment = segment = place.segment
        self._tape = segment.tape
        self._buffer = buffer
        self._first_sum = first_sum
        self._deep = deep
        (entry,) = as_tuples(segment.blocks[place.shard, place.number : place.number + 1])
        self._offset, self._nbytes, self._stored, self._rows_per_group, self._first_group = entry
        samples = place.samples
        self._field = segment.fields[place.number] if segment.fields is not None and samples is not None else None
        self._first_sample, self._stop_sample = samples or (0, 0)
        self._block_sum = Stream64()
        self._num_bad = 0
        self._unchecked = ""

    def run(self) -> None:
        """Check, and write every damage down.

        Raises:
            TruncatedError, OSError: the block cannot be read.
        """
        done = self._check_groups()
        self._update_rest(done)
        if self._tape.ledger.stopped:
            return
        computed = self._block_sum.intdigest()
        if computed == self._stored:
            if self._first_sum is not None:
                self._report(f"read twice, its xxh3 was {self._first_sum:016x} and {computed:016x}: the disk or the "
                             "memory is not reliable", self._first_sum)  # fmt: skip
        elif self._unchecked:
            self._report(f"which chunks are damaged cannot be said: {self._unchecked}", computed)
        elif not self._num_bad:
            self._report("all of its groups are as written: this sum itself was wrong when it was written", computed)

    def check_head(self, head: memoryview) -> None:
        """Hold the groups that lie in the first bytes of a block, whose own sum is right, against their sums."""
        if self._field is None:
            return
        first, bounds = next(self._bounds(self._field), (0, None))
        if bounds is None or bounds[0] != 0 or np.any(np.diff(bounds) < 0):
            return  # damage that was written down where the offsets are checked
        last = int(np.searchsorted(bounds, len(head), "right")) - 1
        group = self._first_group + first
        stored = self._segment.values(Kind.CHUNK_SUMS, self._place.number, "<u8", group, group + last)
        places = bounds[: last + 1].tolist()
        for number, expected in enumerate([] if stored is None else stored.tolist()):
            start, stop = places[number], places[number + 1]
            computed = sum64(head[start:stop])
            if computed != expected:
                self._bad_group(first + number, start, stop, expected, computed, " (the block is as it was written)")
        self._tape.ledger.count(groups=0 if stored is None else last)

    def _report(self, problem: str, computed: int) -> None:
        span, sums = (self._offset, self._nbytes), (self._stored, computed)
        self._tape.ledger.add_sums("block", self._place.name(), span, sums, f"; {problem}", **self._place.where())

    def _update_rest(self, start: int) -> None:
        """The block's own sum over what no group has covered."""
        size = len(self._buffer)
        for at in range(start, self._nbytes, size):
            piece = self._buffer[: min(size, self._nbytes - at)]
            self._read(at, piece)

    def _read(self, start: int, piece: memoryview) -> None:
        """Read the next bytes of the block."""
        self._tape.read_into(self._offset + start, piece)
        self._block_sum.update(piece)
        if self._deep:  # otherwise they were counted before
            self._tape.ledger.count(nbytes=len(piece))
            self._tape.ledger.tick()

    def _check_groups(self) -> int:
        """Check group after group as long as their places are known; how many bytes that were."""
        at = 0
        if self._field is None:
            self._unchecked = "SCHEMA or SHARD_STARTS is damaged"
            return at
        for first, bounds in self._bounds(self._field):
            if bounds is None or bounds[0] != at or np.any(np.diff(bounds) < 0) or bounds[-1] > self._nbytes:
                self._unchecked = "the offsets of its rows are damaged"
                return at
            group = self._first_group + first
            stored = self._segment.values(Kind.CHUNK_SUMS, self._place.number, "<u8", group, group + len(bounds) - 1)
            if stored is None:
                self._unchecked = "its chunk sums are damaged"
                return at
            self._check_runs(first, bounds, stored.tolist())
            at = int(bounds[-1])
            if self._tape.ledger.stopped:
                return at
        if at != self._nbytes:
            self._unchecked = "its groups do not fill it"
        return at

    def _bounds(self, field: Field) -> Iterator[tuple[int, Ints | None]]:
        """Where groups begin and end in the block, some at a time: (first group, bounds); None if unknown."""
        rows = self._stop_sample - self._first_sample
        size = min(self._rows_per_group, rows)
        step = max(_ROWS // size, 1) if size else 1
        groups = -(-rows // size) if size else 0
        for first in range(0, groups, step):
            last = min(first + step, groups)
            edges = np.minimum(np.arange(first, last + 1) * size, rows)
            yield first, self._row_bounds(field, edges)

    def _row_bounds(self, field: Field, edges: Ints) -> Ints | None:
        """Where rows begin, counted from the start of the block; `edges` are rows of the shard, ascending."""
        unit = field.item_nbytes
        if not field.ragged and field.codec == RAW:
            fixed: Ints = edges * unit
            return fixed
        kind, unit = (Kind.OFFSETS, unit) if field.codec == RAW else (Kind.STORED_OFFSETS, 1)
        base = self._first_row()
        first = self._segment.values(kind, self._place.number, "<i8", base, base + 1)
        items = self._entries(kind, edges + base)
        if first is None or items is None:
            return None
        counts = items - first[0]
        if counts.min() < 0 or (unit and counts.max() > self._nbytes // unit):
            return None
        bounds: Ints = counts * unit
        return bounds

    def _entries(self, kind: Kind, places: Ints) -> Ints | None:
        start, stop = int(places[0]), int(places[-1]) + 1
        if stop - start <= 2 * _ROWS:
            run = self._segment.values(kind, self._place.number, "<i8", start, stop)
            return None if run is None else np.asarray(run[places - start])
        single = [self._segment.values(kind, self._place.number, "<i8", p, p + 1) for p in places.tolist()]
        found = [one for one in single if one is not None]
        return np.concatenate(found) if len(found) == len(single) else None

    def _first_row(self) -> int:
        """Of the shard, counted from the first sample of the segment."""
        return self._first_sample - self._segment.directory.first_sample

    def _check_runs(self, first: int, bounds: Ints, stored: list[int]) -> None:
        """Read groups, as many as fit the buffer, and compare their sums."""
        low, last, size = 0, len(bounds) - 1, len(self._buffer)
        while low < last and not self._tape.ledger.stopped:
            high = min(int(np.searchsorted(bounds, bounds[low] + size, "right")) - 1, last)
            if high <= low:
                self._check_big_group(first + low, int(bounds[low]), int(bounds[low + 1]), stored[low])
                low += 1
                continue
            start, stop = int(bounds[low]), int(bounds[high])
            piece = self._buffer[: stop - start]
            self._read(start, piece)
            places = (bounds[low : high + 1] - start).tolist()
            for group in range(high - low):
                computed = sum64(piece[places[group] : places[group + 1]])
                if computed != stored[low + group]:
                    begin, end = start + places[group], start + places[group + 1]
                    self._bad_group(first + low + group, begin, end, stored[low + group], computed)
            self._tape.ledger.count(groups=high - low)
            if self._deep:
                self._check_rows(first + low, first + high, start, piece)
            low = high

    def _check_big_group(self, group: int, start: int, stop: int, stored: int) -> None:
        """A group that is larger than the buffer."""
        stream, size = Stream64(), len(self._buffer)
        raw_bool = self._field is not None and self._field.dtype == "bool" and self._field.codec == RAW
        suspect = not raw_bool  # other rows are read again, one by one; raw booleans only if there is a wrong one
        for at in range(start, stop, size):
            piece = self._buffer[: min(size, stop - at)]
            self._read(at, piece)
            stream.update(piece)
            if self._deep and raw_bool:
                suspect = suspect or _has_odd(piece)
            if self._tape.ledger.stopped:
                return
        self._tape.ledger.count(groups=1)
        if stream.intdigest() != stored:
            self._bad_group(group, start, stop, stored, stream.intdigest())
        elif self._deep and suspect:
            self._check_rows(group, group + 1, start, None)

    def _bad_group(self, group: int, start: int, stop: int, stored: int, computed: int, more: str = "") -> None:
        self._num_bad += 1
        first = self._first_sample + group * self._rows_per_group
        last = min(first + self._rows_per_group, self._stop_sample)
        where = self._place.where(first, last)
        keys = ", ".join(repr(key) for key in where["keys"][:3]) + (", ..." if len(where["keys"]) > 3 else "")
        which = f"sample {first}" if last - first == 1 else f"samples [{first}, {last})"
        what = f"{which}{' ' * bool(keys)}{keys}, field {where['field']!r}, shard {where['shard']}"
        span = (self._offset + start, stop - start)
        self._tape.ledger.add_sums("chunk", what, span, (stored, computed), more, **where)

    def _check_rows(self, first: int, last: int, start: int, data: memoryview | None) -> None:
        """Look into the rows of groups `[first, last)`, which begin `start` bytes into the block.

        Args:
            data: their bytes; None: they are many, and read again row by row.
        """
        field = self._field
        if field is None or (field.codec == RAW and field.dtype != "bool" and not field.is_string):
            return
        begin = first * self._rows_per_group
        end = min(last * self._rows_per_group, self._stop_sample - self._first_sample)
        for row in range(begin, end, _ROWS):
            edges = np.arange(row, min(row + _ROWS, end) + 1)
            bounds = self._row_bounds(field, edges)
            if bounds is None or bounds[0] < start or np.any(np.diff(bounds) < 0) or bounds[-1] > self._nbytes:
                return  # the numbers were written down as damaged before
            self._check_few(field, edges, bounds, start, data)

    def _check_few(self, field: Field, edges: Ints, bounds: Ints, start: int, data: memoryview | None) -> None:
        """Some rows, whose edges and bounds are known: all at once where that proves them; else one by one."""
        low, high = int(bounds[0]), int(bounds[-1])
        if field.codec == RAW and data is not None:
            piece = data[low - start : high - start]
            whole = starts_whole_texts(piece, bounds[:-1] - low) if field.is_string else not _has_odd(piece)
            if whole:
                return
        sizes, dictionary = self._row_nbytes(field, edges), self._dictionary()
        if sizes is None:
            return
        for row, nbytes, (begin, end) in zip(edges.tolist(), sizes, pairwise(bounds.tolist()), strict=False):
            if data is None:
                chunk = memoryview(self._tape.read(self._offset + begin, end - begin))
            else:
                chunk = data[begin - start : end - start]
            if problem := _problem(field, chunk, nbytes, dictionary):
                self._bad_row(row, begin, end, problem)

    def _row_nbytes(self, field: Field, edges: Ints) -> list[int] | None:
        """Bytes of decoded rows."""
        if not field.ragged:
            return [field.item_nbytes] * (len(edges) - 1)
        items = self._entries(Kind.OFFSETS, edges + self._first_row())
        return None if items is None else [count * field.item_nbytes for count in np.diff(items).tolist()]

    def _dictionary(self) -> bytes:
        """DICTIONARY of the field, or empty."""
        entry = self._segment.directory.find(Kind.DICTIONARY, self._place.number)
        if entry is None or entry.nbytes > MAX_DICTIONARY_NBYTES:
            return b""
        return self._segment.section_bytes(Kind.DICTIONARY, self._place.number) or b""

    def _bad_row(self, row: int, start: int, stop: int, problem: str) -> None:
        """Write down a row of the shard whose chunk is right and whose content is not."""
        sample = self._first_sample + row
        where = self._place.where(sample, sample + 1)
        what = f"sample {sample}, field {where['field']!r}, shard {where['shard']}"
        span = (self._offset + start, stop - start)
        self._tape.ledger.add_bytes("row", what, span, f"{problem}: whoever wrote it was wrong", **where)


def _has_odd(booleans: bytes | memoryview) -> bool:
    """Whether one of them is neither 0 nor 1."""
    return bool((np.frombuffer(booleans, np.uint8) > 1).any())


def _problem(field: Field, chunk: memoryview, nbytes: int, dictionary: bytes) -> str:
    """What is wrong with a row of so many decoded bytes, or nothing."""
    if nbytes == 0 and len(chunk):
        return f"a row of 0 bytes has a chunk of {len(chunk)} bytes"
    if nbytes < 0:
        return "its OFFSETS descend"
    try:
        row = decode(field.codec, chunk, nbytes, dictionary)
        if field.is_string:
            row.decode()
    except (CorruptError, UnicodeDecodeError) as error:
        return str(error)
    return "a boolean is neither 0 nor 1" if field.dtype == "bool" and _has_odd(row) else ""
