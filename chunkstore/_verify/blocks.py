"""The bytes of a container outside its index: every block, superseded region and padding, in the order of the file.

`cover` proves that the parts fill the file; `Walk` holds the bytes of each against its sum; `BlockCheck` (groups.py)
finds the chunks that are damaged in a block.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.checksum import Stream64, sum64, sum64_large
from chunkstore._format.constants import HEAD_NBYTES, PART_ALIGNMENT, SUPERSEDED_ENTRY_NBYTES, Kind
from chunkstore._format.lookup import Ints
from chunkstore._verify.groups import BlockCheck, BlockPlace
from chunkstore._verify.segment import PIECE_NBYTES, Segment, Tape, as_tuples, check_zeros
from chunkstore.errors import TruncatedError

_WINDOW: Final = 1 << 16  # parts whose numbers are Python ints at the same time
_KEEPS_GIL: Final = 64 << 10  # up to this many bytes the one-shot hash is faster than a stream
_EMPTY: Final = sum64(b"")
_BLOCK, _REGION, _FIXED = range(3)  # roles of a part; fixed: superblocks and segments, which are proven elsewhere


_PART: Final = np.dtype(
    [
        ("offset", np.int64),
        ("nbytes", np.int64),
        ("tail", np.int64),  # padding behind it, up to 4095 bytes
        ("place", np.int64),  # of a block, its number over all segments, shard by shard; of others -1
        ("stored", np.uint64),  # xxh3-64 of a block or region
        ("done", np.bool_),  # of a block, that its groups need no look: see `Segment.agrees`
        ("role", np.int8),
    ],
    align=True,
)
Parts: TypeAlias = NDArray[np.void]
"""Parts of the file (`_PART`), sorted by offset."""
_Part: TypeAlias = tuple[int, int, int, int, int, bool, int]  # one of them


def cover(tape: Tape, segments: list[Segment], committed_end: int, *, complete: bool) -> Parts:
    """Prove that superblocks, segments, regions and blocks share no byte and leave only padding (spec section 13).

    Args:
        complete: all of the index is known. Otherwise gaps prove nothing.
    Returns:
        Blocks and regions that may be read: none of them overlaps one before it.
    Memory: about 100 bytes for each block.
    """
    parts = _collect(tape, segments, committed_end)
    ends = np.maximum.accumulate(parts["offset"] + parts["nbytes"])
    overlap = np.zeros(len(ends), bool)
    overlap[1:] = parts["offset"][1:] < ends[:-1]
    _report_overlaps(tape, segments, parts, overlap, ends)
    gap = np.append(parts["offset"][1:], committed_end) - ends
    complete = complete and all(bool(segment.known.all()) for segment in segments)
    wide = np.flatnonzero((gap >= PART_ALIGNMENT) & complete)
    for place in wide.tolist():
        _report_gap(tape, int(ends[place]), int(gap[place]))
    parts["tail"] = np.where((gap > 0) & (gap < PART_ALIGNMENT), gap, 0)
    fixed = parts["role"] == _FIXED
    for place in np.flatnonzero(fixed & (parts["tail"] > 0)).tolist():
        start, nbytes = int(ends[place]), int(gap[place])
        data = tape.try_read(start, nbytes, "padding behind an index segment", harmless=True)
        check_zeros(tape, data or b"", start, "behind an index segment")
    readable: Parts = parts.compress(~fixed & ~overlap)
    return readable


def _collect(tape: Tape, segments: list[Segment], committed_end: int) -> Parts:
    found = [_fixed(0, HEAD_NBYTES)]
    base = 0
    for segment in segments:
        found.append(_fixed(segment.directory.offset, segment.directory.segment_nbytes))
        used = np.flatnonzero(segment.known & (segment.blocks["nbytes"] > 0))
        found.append(_parts(segment.blocks.reshape(-1).take(used), _BLOCK))
        found[-1]["place"] = used + base
        found[-1]["done"] = segment.agrees.reshape(-1)[used]
        base += segment.blocks.size
        found.append(_parts(_read_regions(segment, committed_end), _REGION))
    parts = np.concatenate(found)
    # `take` and `compress` in this module: of records, `parts[...]` of NumPy (2.4) gives any bytes, and no error, where
    # one small allocation fails.
    ordered: Parts = parts.take(np.lexsort((parts["role"] != _FIXED, parts["offset"])))  # of equals the index first
    return ordered


def _fixed(offset: int, nbytes: int) -> Parts:
    return np.array([(offset, nbytes, 0, -1, 0, True, _FIXED)], _PART)


def _parts(entries: NDArray[Any], role: int) -> Parts:
    """Parts of entries of BLOCKS or SUPERSEDED."""
    parts = np.zeros(len(entries), _PART)
    for name, value in (("offset", entries["offset"]), ("nbytes", entries["nbytes"]), ("stored", entries["sum"])):
        parts[name] = value
    parts["place"], parts["done"], parts["role"] = -1, True, role
    return parts


_REGION_ENTRY: Final = np.dtype([("offset", "<u8"), ("nbytes", "<u8"), ("sum", "<u8")])


def _read_regions(segment: Segment, committed_end: int) -> NDArray[Any]:
    data = segment.section_bytes(Kind.SUPERSEDED) or b""
    regions = np.frombuffer(data[: len(data) // SUPERSEDED_ENTRY_NBYTES * SUPERSEDED_ENTRY_NBYTES], _REGION_ENTRY)
    offset, nbytes, end = regions["offset"], regions["nbytes"], np.uint64(committed_end)
    part = np.uint64(PART_ALIGNMENT)
    wrong = (offset % part != 0) | (nbytes % part != 0) | (offset < HEAD_NBYTES) | (nbytes == 0)
    wrong |= (offset > end) | (nbytes > end - np.minimum(offset, end))
    wrong[1:] |= offset[1:] <= offset[:-1]
    for region in as_tuples(regions.compress(wrong)[:100]):
        segment.tape.ledger.add(
            "superseded",
            f"index section SUPERSEDED: a region of {region[1]} bytes at {region[0]} cannot be; no sample is affected",
            harmless=True,
            section="SUPERSEDED",
        )
    good: NDArray[Any] = regions.compress(~wrong)
    return good


def _report_overlaps(tape: Tape, segments: list[Segment], parts: Parts, overlap: NDArray[np.bool_], ends: Ints) -> None:
    found = np.flatnonzero(overlap)
    names = ("the block", "the superseded region", "the index segment")
    for index in found[:1000].tolist():
        ((offset, nbytes, _, place, _, _, role),) = as_tuples(parts[index : index + 1])
        where = locate(segments, place).where() if role == _BLOCK else {}
        tape.ledger.add(
            "overlap",
            f"{names[role]} at [{offset}, {offset + nbytes}) begins inside another part, which ends at "
            f"{ends[index - 1]}: whoever wrote the index was wrong",
            offset=offset,
            nbytes=nbytes,
            **where,
        )
    if len(found) > 1000:
        tape.ledger.add("overlap", f"{len(found) - 1000} more parts begin inside another part")


def _report_gap(tape: Tape, offset: int, nbytes: int) -> None:
    tape.ledger.add(
        "gap",
        f"bytes [{offset}, {offset + nbytes}) belong to no part of the container, and padding is shorter than "
        f"{PART_ALIGNMENT} bytes; no sample is affected",
        harmless=True,
        offset=offset,
        nbytes=nbytes,
    )


def locate(segments: list[Segment], place: int) -> BlockPlace:
    """The block with this number over all segments."""
    for segment in segments:
        if place < segment.blocks.size:
            return BlockPlace(segment, *divmod(place, segment.directory.num_fields))
        place -= segment.blocks.size
    raise AssertionError("a block that no segment has")


def check_empty_blocks(segments: list[Segment], *, deep: bool) -> None:
    """Blocks without bytes: their sum is that of no bytes, and so are those of their groups."""
    for segment in segments:
        right = segment.agrees & (segment.blocks["sum"] == np.uint64(_EMPTY))
        empty = segment.known & (segment.blocks["nbytes"] == 0) & ~right
        for shard, number in np.argwhere(empty).tolist():
            BlockCheck(BlockPlace(segment, shard, number), memoryview(bytearray(8)), deep=deep).run()


class Walk:
    """All blocks and regions once, in the order of the file, by one or two threads.

    Args:
        tape: the file.
        parts: from `cover`.
        segments: what the blocks belong to.
        deep: check all chunk sums and rows, too.
    """

    def __init__(self, tape: Tape, parts: Parts, segments: list[Segment], *, deep: bool) -> None:
        self._tape = tape
        self._parts = parts
        self._segments = segments
        self._deep = deep
        self._jobs = self._plan()
        self._lock = threading.Lock()

    def run(self) -> None:
        """Work until all jobs are taken, or the ledger says stop; in each thread once. An error stops all threads."""
        ledger = self._tape.ledger
        buffer = aligned_buffer(min(PIECE_NBYTES, max(self._tape.size, PART_ALIGNMENT)))
        try:
            while not ledger.stopped:
                with self._lock:
                    job = next(self._jobs, None)
                if job is None:
                    return
                self._check_job(job, buffer)
                ledger.tick()
        except BaseException:
            ledger.stopped = True
            raise

    def _plan(self) -> Iterator[list[_Part]]:
        """Neighbours that fit the buffer together, or one part."""
        parts, size = self._parts, min(PIECE_NBYTES, max(self._tape.size, PART_ALIGNMENT))
        for start in range(0, len(parts), _WINDOW):
            job: list[_Part] = []
            for part in as_tuples(parts[start : start + _WINDOW]):
                first = job[0][0] if job else 0
                follows = bool(job) and sum(job[-1][:3]) == part[0] and sum(part[:3]) - first <= size
                if job and not follows:
                    yield job
                    job = []
                job.append(part)
            if job:
                yield job

    def _check_job(self, job: list[_Part], buffer: memoryview) -> None:
        start, stop = job[0][0], sum(job[-1][:3])
        if self._deep or stop - start > len(buffer) or stop > self._tape.size:
            for part in job:
                self._check_part(part, buffer)
            return
        view = buffer[: stop - start]
        try:
            self._tape.read_into(start, view)
        except (TruncatedError, OSError):
            for part in job:  # one of them; which, shows when each is read by itself
                self._check_part(part, buffer)
            return
        damaged = []
        for part in job:
            offset, nbytes, tail, place, stored, done, _ = part
            begin = offset - start
            piece = view[begin : begin + nbytes]
            computed = sum64(piece) if nbytes <= _KEEPS_GIL else sum64_large((piece,))
            if tail:
                check_zeros(self._tape, view[begin + nbytes : begin + nbytes + tail], offset + nbytes, "behind a block")
            if computed != stored:
                damaged.append((part, computed))
            elif not done:
                BlockCheck(locate(self._segments, place), buffer).check_head(piece)
        self._tape.ledger.count(nbytes=stop - start, blocks=sum(part[3] >= 0 for part in job))
        for part, computed in damaged:
            self._damaged(part, computed, buffer)

    def _check_part(self, part: _Part, buffer: memoryview) -> None:
        """One part, of any length."""
        offset, nbytes, tail, place, stored, done, _ = part
        block = locate(self._segments, place) if place >= 0 else None
        what = "superseded index segment" if block is None else block.name()
        where = {"harmless": True} if block is None else block.where()
        if not self._tape.reaches(offset + nbytes, offset, nbytes, what, **where):
            return
        try:
            if self._deep and block is not None:
                BlockCheck(block, buffer, deep=True).run()
            else:
                computed = self._sum(offset, nbytes, buffer)
                if computed is None:
                    return
                if computed != stored:
                    self._damaged(part, computed, buffer)
                elif block is not None and not done:
                    head = buffer[: min(len(buffer), nbytes)]
                    self._tape.read_into(offset, head)
                    BlockCheck(block, buffer).check_head(head)
        except (TruncatedError, OSError) as error:
            self._tape.failed(error, offset, nbytes, what, **where)
            return
        self._tape.ledger.count(blocks=block is not None, nbytes=tail)
        data = self._tape.try_read(offset + nbytes, tail, "padding behind a block", harmless=True) if tail else b""
        check_zeros(self._tape, data or b"", offset + nbytes, "behind a block")

    def _sum(self, offset: int, nbytes: int, buffer: memoryview) -> int | None:
        """xxh3-64 of a range, read piece by piece; None when the work is to end."""
        stream, size, read_into = Stream64(), len(buffer), self._tape.read_into
        ledger = self._tape.ledger
        for start in range(offset, offset + nbytes, size):
            piece = buffer[: min(size, offset + nbytes - start)]
            read_into(start, piece)
            stream.update(piece)
            ledger.count(nbytes=len(piece))
            ledger.tick()
            if ledger.stopped:
                return None
        return stream.intdigest()

    def _damaged(self, part: _Part, computed: int, buffer: memoryview) -> None:
        offset, nbytes, _, place, stored, _, _ = part
        if place >= 0:
            try:
                BlockCheck(locate(self._segments, place), buffer, first_sum=computed).run()
            except (TruncatedError, OSError) as error:
                block = locate(self._segments, place)
                self._tape.failed(error, offset, nbytes, block.name(), **block.where())
            return
        what, more = "superseded index segment", "; no sample is affected"
        self._tape.ledger.add_sums("superseded", what, (offset, nbytes), (stored, computed), more, harmless=True)


def aligned_buffer(nbytes: int) -> memoryview:
    """Memory that begins at a page: copies into it are faster."""
    room = np.empty(nbytes + PART_ALIGNMENT, np.uint8)
    start = -room.ctypes.data % PART_ALIGNMENT
    return room[start : start + nbytes].data
