"""The index of a container (spec sections 5, 7 and 14).

This is the gate: `read_index` checks what comes from the file, in file order. `field_index.py` goes on with the rows of
one field. Whatever they return lies inside the blocks, and nothing above asks again.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.checksum import sum128
from chunkstore._format.codec import RAW, WITHOUT_DICTIONARY
from chunkstore._format.constants import (
    HEAD_NBYTES,
    KEY_KINDS,
    KNOWN_KINDS,
    NO_FIELD,
    PART_ALIGNMENT,
    SUPERSEDED_ENTRY_NBYTES,
    Kind,
)
from chunkstore._format.keys import KeyIndex, KeySections
from chunkstore._format.layout import section_sizes
from chunkstore._format.lookup import Ints
from chunkstore._format.schema import decode_attrs, decode_schema
from chunkstore._format.section import Column, Readable, Section, read_whole
from chunkstore._format.segment import (
    Directory,
    SectionEntry,
    check_earlier,
    decode_directory,
    heads_of,
    opening_ranges,
)
from chunkstore._format.superblock import Head, Superblock, decode_head
from chunkstore.errors import CorruptError, FormatError, TruncatedError

BLOCK_ENTRY: Final = np.dtype(
    [("offset", "<u8"), ("nbytes", "<u8"), ("sum", "<u8"), ("rows_per_group", "<u8"), ("first_group", "<u8")]
)
_U64: Final = np.dtype("<u8")
_ONE: Final = np.uint64(1)


class _At:
    """Puts the place in front of what a decoder says is wrong: it does not know whose bytes it has."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, FormatError):
            raise type(error)(f"{self._where}: {error}") from None


class Index:
    """The whole index of one generation.

    Attributes:
        path: of the container, for messages.
        head: the superblocks.
        directories: of all live segments, in the order of samples. (For recovery it may be a run of them that does not
            begin with the first: positions are those of the container all the same.)
        schema: the bytes of SCHEMA.
        fields: what they say.
        num_samples: N.
        shard_starts: int64, shape (shards + 1,).
        blocks: dtype `BLOCK_ENTRY`, shape (shards, fields).
        keys: None where samples have no keys.
    """

    def __init__(self, source: Readable, head: Head, directories: tuple[Directory, ...]) -> None:
        self.path = source.path
        self.head = head
        self.directories = directories
        self._source = source
        self.first_shard = directories[0].first_shard
        newest = directories[-1]
        self.schema = self.read_section(newest, Kind.SCHEMA)
        with _At(self.path):
            self.fields = decode_schema(self.schema, newest.num_fields)
        self.num_samples = newest.first_sample + newest.num_samples
        for directory in directories:
            self._check_sections(directory)
            if directory is not newest and self.read_section(directory, Kind.SCHEMA) != self.schema:
                raise self._corrupt(f"the segment at {directory.offset} has another SCHEMA than the newest")
        self.has_keys = (Kind.KEY_BYTES, NO_FIELD) in newest
        self.shard_starts = self._read_shard_starts()
        self.blocks = self._read_blocks()
        self.keys = KeyIndex(self.path, [self._key_sections(d) for d in directories]) if self.has_keys else None

    @property
    def superblock(self) -> Superblock:
        """The superblock that counts."""
        return self.head.superblock

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits: a root hash over everything in this generation."""
        return self.superblock.directory_sum.hex()

    def attrs(self) -> dict[str, Any]:
        """ATTRS, parsed now."""
        data = self.read_section(self.directories[-1], Kind.ATTRS)
        with _At(self.path):
            return decode_attrs(data)

    def dictionary(self, number: int) -> bytes:
        """DICTIONARY of a field, or empty."""
        newest = self.directories[-1]
        if (Kind.DICTIONARY, number) not in newest:
            return b""
        return self.read_section(newest, Kind.DICTIONARY, number)

    def column(self, kind: Kind, number: int, starts: Ints, dtype: str, width: int = 1) -> Column:
        """One index array of a field over all segments."""
        return Column([self.section(d, kind, number) for d in self.directories], starts, dtype, width)

    def before(self, kind: Kind, number: int, position: int) -> int:
        """Items (OFFSETS) or stored bytes (STORED_OFFSETS) of a field before a position `0 <= position <= N`."""
        if self.num_samples == 0:
            return 0
        firsts = np.array([d.first_sample for d in self.directories], np.int64)
        column = self.column(kind, number, firsts, "<i8")
        return column.item(position) if position < self.num_samples else column.item(position - 1, 1)

    def section(self, directory: Directory, kind: Kind, number: int = NO_FIELD) -> Section:
        """A section whose presence was checked."""
        return Section(self._source, self._entry(directory, kind, number))

    def _entry(self, directory: Directory, kind: Kind, number: int) -> SectionEntry:
        entry = directory.find(kind, number)
        if entry is None:
            raise self._corrupt(f"the segment at {directory.offset} has no section {kind.name}")
        return entry

    def read_section(self, directory: Directory, kind: Kind, number: int = NO_FIELD) -> bytes:
        """A whole section whose length the directory limits, proven."""
        return bytes(self._whole(directory, kind, number))

    def _whole(self, directory: Directory, kind: Kind, number: int = NO_FIELD) -> memoryview:
        return read_whole(self._source, self._entry(directory, kind, number))

    def _check_sections(self, directory: Directory) -> None:
        """Every section that the schema calls for is there with its length, and no other of a known kind."""
        text = directory.find(Kind.KEY_BYTES, NO_FIELD)
        sizes = section_sizes(
            self.fields, directory.num_samples, directory.num_shards, key_nbytes=text.nbytes if text else None
        )
        where = f"the segment at {directory.offset}"
        if (Kind.ATTRS, NO_FIELD) not in directory:
            raise self._corrupt(f"{where} has no section ATTRS")
        for (kind, number), nbytes in sizes.items():
            entry = directory.find(kind, number)
            if entry is None or entry.nbytes != nbytes:
                found = "none" if entry is None else f"{entry.nbytes} bytes"
                raise self._corrupt(f"{where}: section {kind.name} of {nbytes} bytes expected, found {found}")
        for entry in directory.sections():
            if entry.kind in KNOWN_KINDS and entry[:2] not in sizes:
                self._check_optional(entry.kind, entry.field, where, entry.nbytes)
        if directory.num_fields != len(self.fields):
            raise self._corrupt(f"{where} has {directory.num_fields} fields, SCHEMA {len(self.fields)}")
        newest = (Kind.KEY_BYTES, NO_FIELD) in self.directories[-1]
        if (text is not None) != newest:
            raise self._corrupt(f"{where} and the newest segment do not both have keys")

    def _check_optional(self, kind: int, number: int, where: str, nbytes: int) -> None:
        if kind in (Kind.SCHEMA, Kind.ATTRS) and number == NO_FIELD:
            return
        if kind == Kind.SUPERSEDED and number == NO_FIELD and nbytes % SUPERSEDED_ENTRY_NBYTES == 0:
            return
        in_schema = number < len(self.fields)
        if kind == Kind.CHUNK_SUMS and in_schema and nbytes % 8 == 0:
            return
        if kind == Kind.DICTIONARY and in_schema and nbytes and self.fields[number].codec not in WITHOUT_DICTIONARY:
            return
        raise self._corrupt(f"{where}: a section {Kind(kind).name} of field {number} is not called for")

    def _read_shard_starts(self) -> Ints:
        pieces: list[NDArray[np.uint64]] = []
        for directory in self.directories:
            starts = np.frombuffer(self._whole(directory, Kind.SHARD_STARTS), _U64)
            bounds = directory.first_sample, directory.first_sample + directory.num_samples
            if (starts.item(0), starts.item(-1)) != bounds or np.count_nonzero(starts[1:] <= starts[:-1]):
                raise self._corrupt(
                    f"SHARD_STARTS of the segment at {directory.offset}: expected to ascend strictly from "
                    f"{bounds[0]} to {bounds[1]}"
                )
            pieces.append(starts[1:] if pieces else starts)
        return np.concatenate(pieces).astype(np.int64)

    def _read_blocks(self) -> NDArray[Any]:
        pieces = [self._whole(directory, Kind.BLOCKS) for directory in self.directories]
        # Joined as bytes: NumPy takes 10 µs an array to compare dtypes with names.
        blocks = np.frombuffer(pieces[0] if len(pieces) == 1 else b"".join(pieces), BLOCK_ENTRY)
        blocks = blocks.reshape(-1, len(self.fields))
        rows = (self.shard_starts[1:] - self.shard_starts[:-1]).view(np.uint64)[:, None]
        self._check_groups(blocks, rows)
        self._check_blocks(blocks, rows)
        return blocks

    def _check_groups(self, blocks: NDArray[Any], rows: NDArray[np.uint64]) -> None:
        """In each segment the groups of shards follow each other, and fill CHUNK_SUMS.

        Args:
            rows: of each shard; shape (shards, 1).
        """
        first, per_group = blocks["first_group"], blocks["rows_per_group"]
        if np.count_nonzero(per_group) < per_group.size:
            raise self._corrupt(f"BLOCKS{self._of_first(per_group == 0)}: 0 rows per group, expected at least 1")
        groups = (rows - _ONE) // per_group + _ONE
        ends = groups.cumsum(0)  # no more than there are samples
        starts = ends - groups
        place = 0
        for directory in self.directories:
            totals = [self._num_sums(directory, number) for number in range(len(self.fields))]
            stop = place + directory.num_shards
            before = starts[place : place + 1]
            if (ends[stop - 1 : stop] - before).tolist() != [totals] if stop > place else any(totals):
                raise self._corrupt(f"BLOCKS of the segment at {directory.offset}: its groups do not fill CHUNK_SUMS")
            bad = first[place:stop] != starts[place:stop] - before
            if np.count_nonzero(bad):
                where = self._of_first(bad, place)
                raise self._corrupt(f"BLOCKS{where}: the groups of shards do not follow each other")
            place = stop

    def _of_first(self, bad: NDArray[np.bool_], start: int = 0) -> str:
        """Where the first shard is of which something is bad; shape (shards, fields), from shard `start` on."""
        shard = self.first_shard + start + int(np.argwhere(bad)[0, 0])
        segment = next(d for d in self.directories if shard < d.first_shard + d.num_shards)
        return f" of the segment at {segment.offset}, shard {shard}"

    def _num_sums(self, directory: Directory, number: int) -> int:
        entry = directory.find(Kind.CHUNK_SUMS, number)
        if entry is None:
            raise self._corrupt(f"the segment at {directory.offset} has no CHUNK_SUMS of field {number}")
        return entry.nbytes // 8

    def _check_blocks(self, blocks: NDArray[Any], rows: NDArray[np.uint64]) -> None:
        end = self.superblock.committed_end
        offset, nbytes = blocks["offset"], blocks["nbytes"]
        stop = offset + nbytes  # below the offset where it passed 2^64
        self._refuse(
            (offset < HEAD_NBYTES) | (stop > end) | (stop < offset), blocks, f"does not lie in [{HEAD_NBYTES}, {end})"
        )
        bad = offset % PART_ALIGNMENT != 0
        bad[1:] &= offset[1:] != stop[:-1]
        if self.first_shard:  # for recovery: the block before may be that of a segment which is not here
            bad[:1] = False
        self._refuse(bad, blocks, f"begins neither at a multiple of {PART_ALIGNMENT} nor behind the block before")
        self._refuse(self._wrong_lengths(nbytes, rows), blocks, "does not have as many bytes as its rows")

    def _wrong_lengths(self, nbytes: NDArray[np.uint64], rows: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Where the blocks of raw fields of fixed shape are not rows times the bytes of a row."""
        fixed = [not field.ragged and field.codec == RAW for field in self.fields]
        each = [field.item_nbytes if is_fixed else 0 for field, is_fixed in zip(self.fields, fixed, strict=True)]
        sizes = np.array(each, np.uint64)
        wrong: NDArray[np.bool_] = (nbytes != rows * sizes) & np.array(fixed)
        if max(each) * self.num_samples >= 2**64:  # a product may have passed it: then the quotient shows it
            wrong |= (nbytes // np.maximum(sizes, _ONE) != rows) & (sizes > 0)
        return wrong

    def _refuse(self, bad: NDArray[np.bool_], blocks: NDArray[Any], what: str) -> None:
        if np.count_nonzero(bad):  # a fifth of the time of `any`
            shard, number = (int(place) for place in np.argwhere(bad)[0])
            entry = blocks[shard, number]
            raise self._corrupt(
                f"BLOCKS: the block of shard {shard}, field {self.fields[number].name!r}, "
                f"{entry['nbytes']} bytes at {entry['offset']}, {what}"
            )

    def _corrupt(self, what: str) -> CorruptError:
        return CorruptError(f"{self.path}: {what}")

    def _key_sections(self, directory: Directory) -> KeySections:
        parts = [self.section(directory, kind) for kind in KEY_KINDS]
        return KeySections(directory.first_sample, directory.num_samples, *parts)


def read_index(source: Readable) -> Index:
    """Read superblocks, directories and schema, and check them (spec section 14, steps 1 to 4).

    Costs the same for any number of samples: it reads the head, the directories, SCHEMA, SHARD_STARTS and BLOCKS.

    Raises:
        FormatError: one of its subclasses; the message begins with the path.
    """
    data = source.read(0, min(HEAD_NBYTES, source.size))
    with _At(source.path):
        head = decode_head(data, source.size)
    return _read(source, head)


def _read(source: Readable, head: Head) -> Index:
    if not source.distant:
        return Index(source, head, _read_directories(source, head.superblock))
    superblock = head.superblock
    with source.staged(*heads_of([superblock.directory_offset], superblock.committed_end)):
        directories = _read_directories(source, superblock)
        with source.staged(*opening_ranges(directories)):
            return Index(source, head, directories)


def read_generation(source: Readable, superblock: Superblock, *, cut_off: bool = False) -> Index:
    """The index of an earlier generation, whose bytes are still in the file: commits never change them.

    Args:
        superblock: as it was then.
        cut_off: whether the file may end before the committed end; what lies behind then fails when it is read.
    Raises:
        FormatError: one of its subclasses; the message begins with the path.
    """
    size, end = source.size, superblock.committed_end
    if size < end and not cut_off:
        raise TruncatedError(f"{source.path}: the file has {size} bytes, expected at least {end}")
    return _read(source, Head(superblock, ()))


def _read_directories(source: Readable, superblock: Superblock) -> tuple[Directory, ...]:
    end = superblock.committed_end
    newest = _read_directory(
        source, superblock.directory_offset, superblock.directory_nbytes, superblock.directory_sum, end
    )
    with _At(f"{source.path}: directory at {newest.offset}"):
        check_earlier(newest, end)
    if newest.earlier and source.distant:
        with source.staged(*heads_of([entry.offset for entry in newest.earlier], end)):
            return _all_directories(source, newest, end)
    return _all_directories(source, newest, end)


def _all_directories(source: Readable, newest: Directory, end: int) -> tuple[Directory, ...]:
    directories = []
    for entry in newest.earlier:
        directory = _read_directory(source, entry.offset, entry.directory_nbytes, entry.directory_sum, end)
        if (directory.first_sample, directory.num_samples) != (entry.first_sample, entry.num_samples):
            raise CorruptError(
                f"{source.path}: the earlier segment at {entry.offset} does not describe the samples that it should"
            )
        directories.append(directory)
    directories.append(newest)
    shard = 0
    for directory in directories:
        if directory.first_shard != shard:
            raise CorruptError(
                f"{source.path}: the segment at {directory.offset} begins with shard {directory.first_shard}, "
                f"expected {shard}"
            )
        shard += directory.num_shards
    return tuple(directories)


def _read_directory(source: Readable, offset: int, nbytes: int, stored: bytes, end: int) -> Directory:
    data = source.read(offset, nbytes)
    if sum128(data) != stored:
        raise CorruptError(
            f"{source.path}: directory [{offset}, {offset + nbytes}): stored xxh3 {stored.hex()}, "
            f"computed {sum128(data).hex()}"
        )
    with _At(f"{source.path}: directory at {offset}"):
        return decode_directory(data, offset, end)
