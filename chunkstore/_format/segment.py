"""Index segments: the directory, and where sections lie (spec section 5)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.checksum import sum64
from chunkstore._format.constants import (
    DIRECTORY_HEADER_NBYTES,
    DIRECTORY_MAGIC,
    EARLIER_ENTRY_NBYTES,
    MAX_DICTIONARY_NBYTES,
    MAX_DIRECTORY_NBYTES,
    MAX_FIELDS,
    MAX_INT,
    MAX_JSON_NBYTES,
    MAX_SEGMENTS,
    NO_FIELD,
    PAGE_NBYTES,
    PART_ALIGNMENT,
    SECTION_ALIGNMENT,
    SECTION_ENTRY_NBYTES,
    SUM_ALIGNMENT,
    Kind,
)
from chunkstore.errors import CorruptError, LimitError

_HEADER: Final = struct.Struct("<8sQQQQQIII4x")
_SECTION: Final = struct.Struct("<IIQQQ")
_EARLIER: Final = struct.Struct("<QQQQ16s")
# What is read of the head of a distant file, and of a segment that lies elsewhere, in the hope that it is enough.
OPENING_NBYTES: Final = 1 << 20
_OPENING_KINDS: Final = ((Kind.SCHEMA, Kind.SCHEMA), (Kind.SHARD_STARTS, Kind.BLOCKS))

_LIMITS: Final[dict[int, int]] = {
    Kind.SCHEMA: MAX_JSON_NBYTES,
    Kind.ATTRS: MAX_JSON_NBYTES,
    Kind.DICTIONARY: MAX_DICTIONARY_NBYTES,
}


class SectionEntry(NamedTuple):
    """One row of the section table: a section that lies in the file."""

    kind: int
    field: int
    offset: int
    nbytes: int
    sum: int

    @property
    def sums_offset(self) -> int:
        """Where its page sums begin."""
        return self.offset + pad(self.nbytes, SUM_ALIGNMENT)

    @property
    def end(self) -> int:
        """Offset behind its page sums."""
        return section_end(self.offset, self.nbytes)


@dataclass(frozen=True)
class Earlier:
    """One row of the table of earlier segments (spec section 12)."""

    offset: int
    directory_nbytes: int
    first_sample: int
    num_samples: int
    directory_sum: bytes


@dataclass(frozen=True)
class Directory:
    """The head of a segment.

    Attributes:
        offset: where the segment begins in the file.
        first_sample, num_samples, first_shard, num_shards: what it describes.
        segment_nbytes: length of the whole segment.
        num_fields: as in the schema.
        table: the section table.
        earlier: the other live segments.
    """

    offset: int
    first_sample: int
    num_samples: int
    first_shard: int
    num_shards: int
    segment_nbytes: int
    num_fields: int
    table: tuple[SectionEntry, ...]
    earlier: tuple[Earlier, ...] = ()
    _entries: dict[tuple[int, int], SectionEntry] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_entries", {entry[:2]: entry for entry in self.table})

    @property
    def end(self) -> int:
        """Offset behind the segment."""
        return self.offset + self.segment_nbytes

    def __contains__(self, section: tuple[int, int]) -> bool:
        return section in self._entries

    def find(self, kind: int, field_number: int) -> SectionEntry | None:
        """The section of this kind (and field), or None."""
        return self._entries.get((kind, field_number))

    def sections(self) -> Iterable[SectionEntry]:
        """All sections in the order of the file, those of unknown kinds too."""
        return self.table

    def encode(self) -> bytes:
        """The bytes of the directory."""
        header = _HEADER.pack(
            DIRECTORY_MAGIC,
            self.first_sample,
            self.num_samples,
            self.first_shard,
            self.num_shards,
            self.segment_nbytes,
            self.num_fields,
            len(self.table),
            len(self.earlier),
        )
        earlier = (
            _EARLIER.pack(e.offset, e.directory_nbytes, e.first_sample, e.num_samples, e.directory_sum)
            for e in self.earlier
        )
        return header + b"".join(_SECTION.pack(*entry) for entry in self.table) + b"".join(earlier)


def pad(value: int, alignment: int) -> int:
    """The smallest multiple of `alignment` that is not below `value`."""
    return -(-value // alignment) * alignment


def directory_nbytes(num_sections: int, num_earlier: int) -> int:
    """Length of a directory."""
    return DIRECTORY_HEADER_NBYTES + SECTION_ENTRY_NBYTES * num_sections + EARLIER_ENTRY_NBYTES * num_earlier


def nbytes_of_directory(header: bytes) -> int:
    """Length of the directory that begins with these 64 bytes, by its own counts."""
    _, *_, num_sections, num_earlier = _HEADER.unpack_from(header)
    return directory_nbytes(num_sections, num_earlier)


def num_pages(nbytes: int) -> int:
    """Pages of a section of this length."""
    return -(-nbytes // PAGE_NBYTES)


def section_end(offset: int, nbytes: int) -> int:
    """Offset behind the page sums of a section."""
    return offset + pad(nbytes, SUM_ALIGNMENT) + 8 * num_pages(nbytes)


def section_tail(nbytes: int, sums: NDArray[np.uint64]) -> bytes:
    """What is stored behind the bytes of a section: zeros, then its page sums."""
    return bytes(pad(nbytes, SUM_ALIGNMENT) - nbytes) + sums.astype("<u8").tobytes()


def sum_of_sums(sums: NDArray[np.uint64]) -> int:
    """The xxh3-64 of the page sums, which stands in the section table."""
    return sum64(sums.astype("<u8").tobytes())


def place_sections(start: int, sizes: Sequence[int]) -> tuple[list[int], int]:
    """Offsets of sections of these sizes when the directory ends at `start`, and where the segment ends."""
    offsets = []
    for nbytes in sizes:
        offsets.append(pad(start, SECTION_ALIGNMENT))
        start = section_end(offsets[-1], nbytes)
    return offsets, pad(start, PART_ALIGNMENT)


def decode_directory(data: bytes, offset: int, committed_end: int) -> Directory:
    """A directory whose xxh3-128 was right, checked in file order, but for the table that `check_earlier` checks.

    Args:
        data: exactly the bytes of the directory.
        offset: where it lies in the file.
        committed_end: of the generation.
    Raises:
        CorruptError, LimitError: a number that cannot be.
    """
    magic, *counts, segment_nbytes, fields, sections, num_earlier = _HEADER.unpack_from(data)
    if magic != DIRECTORY_MAGIC:
        raise CorruptError(f"expected the magic {DIRECTORY_MAGIC!r}, found {magic!r}")
    if any(count > MAX_INT for count in counts) or counts[0] + counts[1] > MAX_INT:
        raise LimitError(f"first sample, num samples, first shard, num shards = {counts}: at most 2^63 - 1")
    if segment_nbytes % PART_ALIGNMENT or not len(data) <= segment_nbytes <= committed_end - offset:
        raise CorruptError(f"a segment of {segment_nbytes} bytes at {offset} does not fit below {committed_end}")
    if fields > MAX_FIELDS:
        raise LimitError(f"{fields} fields, at most {MAX_FIELDS}")
    if fields < 1:
        raise CorruptError("0 fields, expected at least 1")
    if num_earlier >= MAX_SEGMENTS:
        raise LimitError(f"{num_earlier} earlier segments, at most {MAX_SEGMENTS - 1}")
    if len(data) != directory_nbytes(sections, num_earlier):
        raise CorruptError(f"{sections} sections and {num_earlier} earlier segments do not make {len(data)} bytes")
    start = directory_nbytes(sections, 0)
    table = tuple(map(SectionEntry._make, _SECTION.iter_unpack(data[DIRECTORY_HEADER_NBYTES:start])))
    _check_table(table, offset + len(data), offset + segment_nbytes)
    earlier = tuple(Earlier(*row) for row in _EARLIER.iter_unpack(data[start:]))
    first_sample, num_samples, first_shard, num_shards = counts
    return Directory(offset, first_sample, num_samples, first_shard, num_shards, segment_nbytes, fields, table, earlier)


def _check_table(table: tuple[SectionEntry, ...], start: int, end: int) -> None:
    """Sections in strict order and exactly where `place_sections` would put them."""
    before = (-1, -1)
    for place, (kind, number, offset, nbytes, _) in enumerate(table):
        if (kind, number) <= before:
            raise CorruptError("the section table is not in strictly ascending order of (kind, field)")
        before = (kind, number)
        if kind in _LIMITS and nbytes > _LIMITS[kind]:
            raise LimitError(f"a section {Kind(kind).name} of more than {_LIMITS[kind]} bytes")
        if nbytes > end:
            raise CorruptError("a section is longer than its segment")
        expected = pad(start, SECTION_ALIGNMENT)
        if offset != expected:
            raise CorruptError(f"section {place} lies at {offset}, expected {expected}")
        start = section_end(offset, nbytes)
    if pad(start, PART_ALIGNMENT) != end:
        raise CorruptError(f"the sections end at {start}, the segment at {end}")


def check_earlier(newest: Directory, committed_end: int) -> None:
    """Hold the table of earlier segments of the newest one to its bounds; those of the others do not count.

    Raises:
        CorruptError, LimitError: a number that cannot be.
    """
    position = 0
    for entry in newest.earlier:
        if entry.first_sample != position:
            raise CorruptError(f"an earlier segment begins with sample {entry.first_sample}, expected {position}")
        position += entry.num_samples
        if entry.directory_nbytes > MAX_DIRECTORY_NBYTES:
            raise LimitError(f"an earlier directory of {entry.directory_nbytes} bytes, at most {MAX_DIRECTORY_NBYTES}")
        stop = entry.offset + entry.directory_nbytes
        if entry.offset % PART_ALIGNMENT or entry.offset < 2 * PART_ALIGNMENT or stop > committed_end:
            raise CorruptError(f"an earlier segment at {entry.offset} does not lie below {committed_end}")
        if entry.directory_nbytes < DIRECTORY_HEADER_NBYTES:
            raise CorruptError(f"an earlier directory of {entry.directory_nbytes} bytes is too short")
    if position != newest.first_sample:
        raise CorruptError(f"the newest segment begins with sample {newest.first_sample}, expected {position}")


def heads_of(offsets: list[int], committed_end: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ranges in which directories, and probably all that opening needs, lie."""
    # From one in the head of the file no further than the head goes: that is there already.
    stops = [min(OPENING_NBYTES + offset * (offset >= OPENING_NBYTES), committed_end) for offset in offsets]
    return np.array(offsets, np.int64), np.subtract(stops, offsets, dtype=np.int64)


def opening_ranges(directories: tuple[Directory, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ranges of the sections that opening reads."""
    found = []
    for directory in directories:
        for kinds in _OPENING_KINDS:
            first, last = (directory.find(kind, NO_FIELD) for kind in kinds)
            if first is not None and last is not None:
                found.append((first.offset, last.end - first.offset))
    ranges = np.array(found, np.int64).reshape(-1, 2)
    return ranges[:, 0], ranges[:, 1]


def uuid_of(directory_sum: bytes) -> bytes:
    """The uuid of a new container, version 8 of RFC 9562 (spec section 17)."""
    uuid = bytearray(directory_sum)
    uuid[6] = 0x80 | uuid[6] & 0x0F
    uuid[8] = 0x80 | uuid[8] & 0x3F
    return bytes(uuid)
