"""Index arrays that are proven page by page, when they are first touched (spec section 5.2)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from chunkstore._format.checksum import sum64
from chunkstore._format.constants import KNOWN_KINDS, NO_FIELD, PAGE_NBYTES, Kind
from chunkstore._format.lookup import Ints, distinct
from chunkstore._format.segment import SectionEntry, num_pages
from chunkstore.errors import CorruptError

# Sections up to this size are copied as they are proven, mapped or not: a mapped page that the system has dropped
# comes back from the disk 4 KiB at a time. Measured, cold batches of 1 KiB rows: 59 k rows/s instead of 16 k.
# 16 MiB are the sums of 8 GB of small rows.
_COPIED_NBYTES: Final = 16 << 20
_RECENT_PAGES: Final = 8
_NONE: Final = np.zeros(0, np.int64)
_SUM: Final = struct.Struct("<Q")
# From a distant file, sections up to this size are fetched whole, by one request, when they are first touched: they
# will be needed soon. Of longer ones, the pages that are touched. 4 MiB are the sums of 2 GB of small rows.
_WHOLE_NBYTES: Final = 4 << 20


class Readable(Protocol):
    """What an index needs of a file; every source of the storage layer has it."""

    @property
    def path(self) -> str:
        """For messages."""

    @property
    def size(self) -> int:
        """Length of the file in bytes."""

    @property
    def distant(self) -> bool:
        """Whether each read costs a round trip, unless it is inside `staged`."""

    def staged(self, offsets: Ints, nbytes: Any) -> AbstractContextManager[None]:
        """A block in which reads of parts of these ranges cost nothing."""

    def view(self, offset: int, nbytes: int) -> memoryview | None:
        """The bytes themselves, read-only, or None where they can only be copied."""

    def read(self, offset: int, nbytes: int) -> bytes:
        """A copy."""

    def read_into(self, offset: int, buffer: Any) -> None:
        """Fill `buffer`."""

    def reserve(self, nbytes: int) -> memoryview:
        """Memory of zeros that takes no room before it is touched."""


def join_ranges(ranges: Iterable[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    """Several (offsets, nbytes) as one."""
    offsets, nbytes = zip((_NONE, _NONE), *ranges, strict=True)
    return np.concatenate(offsets), np.concatenate(nbytes)


class Section:
    """One section of one segment.

    Where the file is mapped and the section is large, the array is the map. Otherwise it is memory that fills page by
    page.
    Safe from many threads: two may prove the same page, with the same result.
    """

    def __init__(self, source: Readable, entry: SectionEntry) -> None:
        self.nbytes = entry.nbytes
        self.complete = entry.nbytes == 0
        self._source = source
        self._entry = entry
        self._seen = np.zeros(num_pages(entry.nbytes), bool)
        self._missing = len(self._seen)  # a hint: two threads that prove one page count it twice
        self._sums: NDArray[np.uint64] | None = None
        self._copied = False
        self._bytes: NDArray[np.uint8] | None = None
        self._recent: list[tuple[int, bytes]] = [(-1, b"")] * _RECENT_PAGES

    def array(self, dtype: DTypeLike) -> NDArray[Any]:
        """All of it; touch only what `ensure...` has proven. No copy, read-only."""
        array = self._raw().view(dtype)
        if array.flags.writeable:
            array.flags.writeable = False
        return array

    def piece(self, start: int, stop: int) -> memoryview:
        """Some proven bytes, for lookups that touch little of much.

        A page that was read to be proven serves them for a while: one touch of the map can make the system map two
        megabytes of it.
        """
        if self._source.distant:
            self.ensure(start, stop)
        page = start // PAGE_NBYTES
        number, data = self._recent[page % _RECENT_PAGES]
        if number != page and not self._seen[page]:
            number, data = self._recent[page % _RECENT_PAGES] = page, self._prove(page)
        low, high = start - page * PAGE_NBYTES, stop - page * PAGE_NBYTES
        if number == page and high <= len(data):
            return memoryview(data)[low:high]
        self.ensure(start, stop)
        return self._raw()[start:stop].data

    def ensure(self, start: int, stop: int) -> None:
        """Prove bytes `[start, stop)` of the section.

        Raises:
            CorruptError: a page is not what was written.
        """
        if self.complete or start >= stop:
            return
        pages = range(start // PAGE_NBYTES, (stop - 1) // PAGE_NBYTES + 1)
        if self._source.distant:
            self._bring(np.array([page for page in pages if not self._seen[page]], np.int64))
            return
        for page in pages:
            if not self._seen[page]:
                self._prove(page)

    def ensure_items(self, items: Ints, itemsize: int) -> None:
        """Prove the pages of these items, whose size divides that of a page."""
        if self.complete:
            return
        missing = self._missing_pages(items, itemsize)
        if self._source.distant:
            self._bring(missing)
            return
        for page in missing.tolist():
            self._prove(page)

    def unread(self, items: Ints, itemsize: int) -> tuple[Ints, Ints]:
        """(offset in the file, nbytes) of what `ensure_items` would read; each of shape (ranges,)."""
        return (_NONE, _NONE) if self.complete else self._ranges(self._missing_pages(items, itemsize))

    def _missing_pages(self, items: Ints, itemsize: int) -> Ints:
        pages = items // (PAGE_NBYTES // itemsize)
        return distinct(pages[~self._seen[pages]])

    def _bring(self, pages: Ints) -> None:
        """Prove pages of a distant file: all are fetched at once, and with them all of a small section."""
        if not pages.size:
            return
        others = np.flatnonzero(~self._seen).tolist() if self.nbytes <= _WHOLE_NBYTES else []
        with self._source.staged(*self._ranges(pages)):
            for page in pages.tolist():
                self._prove(page)
            for page in others:
                if not self._seen[page]:
                    with suppress(CorruptError):  # nobody has asked for it
                        self._prove(page)

    def _ranges(self, pages: Ints) -> tuple[Ints, Ints]:
        """(offset in the file, nbytes) of pages; of a distant file with their sums, or all of a small section."""
        offset, nbytes = self._entry.offset, self.nbytes
        fetched = self._source.distant and pages.size > 0
        if fetched and nbytes <= _WHOLE_NBYTES:
            return np.array([offset]), np.array([self._entry.end - offset])
        starts = pages * PAGE_NBYTES
        lengths = np.minimum(nbytes - starts, PAGE_NBYTES)
        if fetched and self._sums is None:
            starts = np.append(starts, self._entry.sums_offset - offset)
            lengths = np.append(lengths, 8 * len(self._seen))
        return starts + offset, lengths

    def ensure_all(self) -> None:
        """Prove every page."""
        self.ensure(0, self.nbytes)

    def _raw(self) -> NDArray[np.uint8]:
        made = self._bytes
        if made is None:
            large = self.nbytes > _COPIED_NBYTES
            view = self._source.view(self._entry.offset, self.nbytes) if large else None
            self._copied = view is None
            memory = self._source.reserve(self.nbytes) if view is None else view
            # One call, which no other thread can come between: all must prove pages into the same memory.
            made = self._bytes = self.__dict__.setdefault("_memory", np.frombuffer(memory, np.uint8))
        return made

    def _prove(self, page: int) -> bytes:
        start = page * PAGE_NBYTES
        piece = self._raw()[start : start + PAGE_NBYTES]
        # Read, not taken from the map: one system call brings the whole page from a cold disk, where the map would
        # fault 16 times. And where pages are copied, another thread may be using this one, proven, right now.
        fresh = self._source.read(self._entry.offset + start, piece.nbytes)
        _compare(self._source, self._entry, page, fresh, int(self._page_sums()[page]))
        if self._copied:
            piece[:] = np.frombuffer(fresh, np.uint8)
        self._seen[page] = True
        self._missing -= 1
        self.complete = self._missing <= 0 and bool(self._seen.all())
        return fresh

    def _page_sums(self) -> NDArray[np.uint64]:
        if self._sums is None:
            data = self._source.read(self._entry.sums_offset, 8 * len(self._seen))
            self._sums = np.frombuffer(_checked_sums(self._source, self._entry, data), "<u8")
        return self._sums


def read_whole(source: Readable, entry: SectionEntry) -> memoryview:
    """All of a section, proven, by one read. For the small ones that every opening needs.

    Raises:
        CorruptError: a page is not what was written.
    """
    data = memoryview(source.read(entry.offset, entry.end - entry.offset))
    sums = _checked_sums(source, entry, data[entry.sums_offset - entry.offset :])
    for page, (stored,) in enumerate(_SUM.iter_unpack(sums)):
        _compare(source, entry, page, data[page * PAGE_NBYTES : min((page + 1) * PAGE_NBYTES, entry.nbytes)], stored)
    return data[: entry.nbytes]


def _compare(source: Readable, entry: SectionEntry, page: int, data: bytes | memoryview, stored: int) -> None:
    computed = sum64(data)
    if computed != stored:
        begin = entry.offset + page * PAGE_NBYTES
        raise CorruptError(
            f"{source.path}: index section {_name(entry)}, bytes [{begin}, {begin + len(data)}): "
            f"stored xxh3 {stored:016x}, computed {computed:016x}. Run `chunkstore verify {source.path}`."
        )


def _checked_sums(source: Readable, entry: SectionEntry, data: bytes | memoryview) -> bytes | memoryview:
    """The page sums of a section, proven."""
    if sum64(data) != entry.sum:
        offset = entry.sums_offset
        raise CorruptError(
            f"{source.path}: page sums of index section {_name(entry)}, bytes "
            f"[{offset}, {offset + len(data)}): stored xxh3 {entry.sum:016x}, computed {sum64(data):016x}"
        )
    return data


def _name(entry: SectionEntry) -> str:
    """Kind, and the number of the field where there is one."""
    known = Kind(entry.kind).name if entry.kind in KNOWN_KINDS else f"of kind {entry.kind}"
    return known if entry.field == NO_FIELD else f"{known} of field {entry.field}"


class Column:
    """One index array over all live segments, addressed by position (or by group).

    Args:
        parts: the section of each segment.
        starts: shape (segments,): the first position that each part describes.
        dtype: of an entry; its size divides that of a page.
        width: entries per position, 1 unless the array is two-dimensional.
    """

    def __init__(self, parts: Sequence[Section], starts: Ints, dtype: str, width: int = 1) -> None:
        self._parts = parts
        self._starts = starts
        self._dtype = np.dtype(dtype)
        self._width = width
        self._ends = sorted({0, width - 1})  # a row has at most 32 entries and so touches at most two pages

    def take(self, positions: Ints, shift: int = 0) -> NDArray[Any]:
        """Entries of positions, `shift` further; shape (B,), or (B, width). A fresh array, every entry proven."""
        if len(self._parts) == 1:
            return self._take_part(0, positions + (shift - int(self._starts[0])))
        segments = np.searchsorted(self._starts, positions, "right") - 1
        shape = (len(positions),) if self._width == 1 else (len(positions), self._width)
        result = np.empty(shape, self._dtype)
        for segment in distinct(segments).tolist():
            mine = segments == segment
            result[mine] = self._take_part(segment, positions[mine] + (shift - int(self._starts[segment])))
        return result

    def _take_part(self, segment: int, rows: Ints) -> NDArray[Any]:
        part = self._parts[segment]
        array = part.array(self._dtype)
        if self._width == 1:
            part.ensure_items(rows, self._dtype.itemsize)
            return array[rows]
        for column in self._ends:
            part.ensure_items(rows * self._width + column, self._dtype.itemsize)
        return array.reshape(-1, self._width)[rows]

    def unread(self, positions: Ints, shift: int = 0) -> tuple[Ints, Ints]:
        """(offset in the file, nbytes) of what `take` has to read from the file first; none once it was proven."""
        if all(part.complete for part in self._parts):
            return _NONE, _NONE
        segments = np.searchsorted(self._starts, positions, "right") - 1
        found = []
        for segment in distinct(segments).tolist():
            part, size = self._parts[segment], self._dtype.itemsize
            rows = positions[segments == segment] + (shift - int(self._starts[segment]))
            found += [part.unread(rows * self._width + column, size) for column in self._ends]
        return join_ranges(found)

    def item(self, position: int, shift: int = 0) -> int:
        """One entry as an int."""
        segment = 0 if len(self._parts) == 1 else int(np.searchsorted(self._starts, position, "right")) - 1
        row = position + shift - int(self._starts[segment])
        part, size = self._parts[segment], self._dtype.itemsize
        part.ensure(row * size, (row + 1) * size)
        return int(part.array(self._dtype)[row])

    def run(self, start: int, stop: int, extra: int = 0) -> NDArray[Any]:
        """Entries of positions `[start, stop + extra)`; a view where they lie in one segment. Read-only or fresh."""
        if len(self._parts) == 1:
            return self._run_part(0, start, stop + extra)
        pieces = []
        last = len(self._parts) - 1
        for segment, first in enumerate(self._starts.tolist()):
            end = int(self._starts[segment + 1]) if segment < last else stop
            low, high = max(start, first), min(stop, end)
            if low < high:
                pieces.append(self._run_part(segment, low, high + (extra if high == stop else 0)))
        return np.concatenate(pieces) if pieces else np.zeros(extra, self._dtype)

    def _run_part(self, segment: int, start: int, stop: int) -> NDArray[Any]:
        part, size = self._parts[segment], self._dtype.itemsize * self._width
        first = int(self._starts[segment])
        part.ensure((start - first) * size, (stop - first) * size)
        array = part.array(self._dtype)
        if self._width > 1:
            array = array.reshape(-1, self._width)
        return array[start - first : stop - first]
