"""The index of a container as `verify` reads it: head, directories, and every page of every section, none left out.

Nothing here stops at the first damage, and nothing maps the file: what is missing or unreadable is written down, and
whatever can be checked without it is checked.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from chunkstore._format.checksum import sum64, sum128
from chunkstore._format.constants import (
    DIRECTORY_HEADER_NBYTES,
    HEAD_NBYTES,
    KNOWN_KINDS,
    MAX_FILE_NBYTES,
    MAX_KEY_NBYTES,
    NO_FIELD,
    PAGE_NBYTES,
    SUPERBLOCK_NBYTES,
    SUPERBLOCK_OFFSETS,
    Kind,
)
from chunkstore._format.index import BLOCK_ENTRY
from chunkstore._format.lookup import Ints
from chunkstore._format.schema import Field
from chunkstore._format.segment import (
    Directory,
    Earlier,
    SectionEntry,
    check_earlier,
    decode_directory,
    directory_nbytes,
    num_pages,
)
from chunkstore._format.superblock import Superblock, decode, decode_head
from chunkstore._storage.source import Source
from chunkstore._verify.report import DamageKind, Ledger
from chunkstore.errors import (
    FormatError,
    NotAContainerError,
    RemoteError,
    TruncatedError,
    UnsupportedFeatureError,
    UnsupportedVersionError,
)

PIECE_NBYTES: Final = 1 << 20
"""What is read at once: small enough to stay in the second-level cache between the copy and the hash."""
MAX_KEYS: Final = 16
"""Keys that a damage lists."""


class Tape:
    """The file behind a source, never mapped: truncated under our hands, it reads short and does not kill the process.

    Has what `_format` asks of a file (`Readable`), so that a reader's own checks can run on it.
    """

    def __init__(self, source: Source, ledger: Ledger) -> None:
        self.path = source.path
        self.size = source.size
        self.ledger = ledger
        self.read = source.read
        self.read_into = source.read_into
        self.distant = source.distant
        self.staged = source.staged

    def view(self, offset: int, nbytes: int) -> memoryview | None:
        """There is none."""
        return None

    def reserve(self, nbytes: int) -> memoryview:
        """Memory of zeros that takes no room before it is touched."""
        return np.zeros(nbytes, np.uint8).data

    def try_read(self, offset: int, nbytes: int, what: str, **where: Any) -> bytes | None:
        """Read, or write down why that was not possible."""
        if not self.reaches(offset + nbytes, offset, nbytes, what, **where):
            return None
        try:
            return self.read(offset, nbytes)
        except (TruncatedError, OSError) as error:
            self.failed(error, offset, nbytes, what, **where)
            return None

    def reaches(self, end: int, offset: int, nbytes: int, what: str, **where: Any) -> bool:
        """Whether the file has this many bytes; if not, that is written down."""
        if end <= self.size:
            return True
        problem = f"the file ends at {self.size}; copy it again"
        self.ledger.add_bytes("truncated", what, (offset, nbytes), problem, **where)
        return False

    def failed(self, error: Exception, offset: int, nbytes: int, what: str, **where: Any) -> None:
        """Write down that bytes could not be read; raise what is no fault of the disk."""
        if isinstance(error, OSError) and (isinstance(error, RemoteError) or error.errno not in (errno.EIO, None)):
            raise error
        kind: DamageKind = "truncated" if isinstance(error, TruncatedError) else "unreadable"
        self.ledger.add_bytes(kind, what, (offset, nbytes), error, **where)


def as_tuples(records: NDArray[Any]) -> Iterator[tuple[Any, ...]]:
    """Records of a structured array of one dimension, read column by column.

    On a record, `tolist` and `item` of NumPy (2.4) end the process where there is no memory for a tuple or a value.
    """
    return zip(*(records[name].tolist() for name in records.dtype.names or ()), strict=True)


def check_zeros(tape: Tape, data: bytes | memoryview | NDArray[np.uint8], offset: int, what: str) -> None:
    """Padding is zero (spec section 13); else its first byte that is not is named."""
    array = np.frombuffer(data, np.uint8)
    if array.any():
        first = int(np.flatnonzero(array)[0])
        tape.ledger.add(
            "padding",
            f"padding {what}, bytes [{offset}, {offset + len(array)}): expected zeros, found {array[first]:#04x} at "
            f"offset {offset + first}; no sample is affected",
            harmless=True,
            offset=offset + first,
            nbytes=1,
        )


def read_head(tape: Tape) -> Superblock | None:
    """Choose the superblock that counts, and write down what is wrong with the pair.

    Raises:
        NotAContainerError, UnsupportedVersionError, UnsupportedFeatureError: this is not for us to verify.
    """
    data = tape.read(0, min(HEAD_NBYTES, tape.size))
    try:
        # The length of the file is looked at below: a container that was cut off can still be verified in part.
        head = decode_head(data, MAX_FILE_NBYTES)
    except (NotAContainerError, UnsupportedVersionError, UnsupportedFeatureError) as error:
        raise type(error)(f"{tape.path}: {error}") from None
    except FormatError as error:
        tape.ledger.add(
            "truncated" if isinstance(error, TruncatedError) else "superblock",
            f"{error}; the container cannot be opened",
            offset=0,
            nbytes=len(data),
        )
        return None
    for name, problem in head.damage:
        _other_superblock(tape, name, f"{problem}; the other one is used")
    if not head.damage and data[:SUPERBLOCK_NBYTES] != data[SUPERBLOCK_NBYTES:]:
        _compare_superblocks(tape, data)
    tape.ledger.count(nbytes=HEAD_NBYTES)
    return head.superblock


def _other_superblock(tape: Tape, name: str, problem: str) -> None:
    offset = SUPERBLOCK_OFFSETS["AB".index(name)]
    tape.ledger.add_bytes("superblock", f"superblock {name}", (offset, SUPERBLOCK_NBYTES), problem, harmless=True)


def _compare_superblocks(tape: Tape, data: bytes) -> None:
    """Both are valid and not equal: a commit was interrupted, or somebody wrote one of them."""
    a, b = (decode(data[at : at + SUPERBLOCK_NBYTES]).generation for at in SUPERBLOCK_OFFSETS)
    problem = f"differs from A, though both are of generation {a}"
    if a != b:
        ages = f"has generation {min(a, b)} and the other one {max(a, b)}"
        problem = f"{ages}: a commit was interrupted; the next append repairs it"
    _other_superblock(tape, "A" if a < b else "B", problem)


def read_directories(tape: Tape, superblock: Superblock) -> tuple[list[Directory], bool]:
    """All live directories that can be read, in the order of samples, and whether that is all of them."""
    own = Earlier(superblock.directory_offset, superblock.directory_nbytes, 0, 0, superblock.directory_sum)
    newest = _read_directory(tape, own, superblock.committed_end, newest=True)
    if newest is None:
        return [], False
    found = []
    for entry in newest.earlier:
        directory = _read_directory(tape, entry, superblock.committed_end)
        if directory is not None and _fits(tape, directory, entry, newest):
            found.append(directory)
    complete = len(found) == len(newest.earlier)
    found.append(newest)
    shard = 0
    for directory in found if complete else []:
        if directory.first_shard != shard:
            _directory_damage(tape, directory, f"begins with shard {directory.first_shard}, expected {shard}")
            return [newest], False
        shard += directory.num_shards
    return found, complete


def _fits(tape: Tape, directory: Directory, entry: Earlier, newest: Directory) -> bool:
    expected = (entry.first_sample, entry.num_samples, newest.num_fields)
    if (directory.first_sample, directory.num_samples, directory.num_fields) == expected:
        return True
    _directory_damage(tape, directory, "does not describe the samples and fields that the newest segment says")
    return False


def _directory_damage(tape: Tape, directory: Directory, problem: str) -> None:
    tape.ledger.add(
        "directory",
        f"the index segment at {directory.offset} {problem}; the container cannot be opened",
        offset=directory.offset,
    )


def _read_directory(tape: Tape, entry: Earlier, committed_end: int, *, newest: bool = False) -> Directory | None:
    offset, nbytes = entry.offset, entry.directory_nbytes
    what = "directory of an index segment"
    data = tape.try_read(offset, nbytes, what) if nbytes >= DIRECTORY_HEADER_NBYTES else b""
    if data is None:
        return None
    lost = "the container cannot be opened"
    stored, computed = int.from_bytes(entry.directory_sum, "big"), int.from_bytes(sum128(data), "big")
    if computed != stored:
        tape.ledger.add_sums("directory", what, (offset, nbytes), (stored, computed), f"; {lost}", digits=32)
        return None
    tape.ledger.count(nbytes=nbytes)
    try:
        directory = decode_directory(data, offset, committed_end)
        if newest:
            check_earlier(directory, committed_end)
    except FormatError as error:
        tape.ledger.add("directory", f"{what} at {offset}: {error}; {lost}", offset=offset, nbytes=nbytes)
        return None
    return directory


class Segment:
    """One live index segment: its sections, proven page by page, and the numbers in them.

    Attributes:
        directory: its head.
        committed_end: of the generation.
        starts: SHARD_STARTS, int64, shape (shards + 1,), or None where they are damaged.
        blocks: BLOCKS, shape (shards, fields); of no use where `known` is False.
        known: bool, shape (shards, fields): the entries of `blocks` that are proven, and lie in the file's parts.
        agrees: bool, shape (shards, fields): blocks of one group, whose chunk sum equals the sum of the block.
        fields: the schema, or None where it is damaged.
    """

    def __init__(self, tape: Tape, directory: Directory, committed_end: int) -> None:
        self.tape = tape
        self.committed_end = committed_end
        self.directory = directory
        self.starts: Ints | None = None
        self.blocks = np.zeros((0, directory.num_fields), BLOCK_ENTRY)
        self.known = np.zeros((0, directory.num_fields), bool)
        self.agrees = self.known
        self.fields: tuple[Field, ...] | None = None
        self._bad: dict[tuple[int, int], NDArray[np.bool_]] = {}
        self._whole: set[tuple[int, int]] = set()
        # Kept until the schema is known, and with it what is lost.
        self._bad_pages: list[tuple[SectionEntry, int, int, int]] = []  # section, page, stored and computed sum
        self._bad_sums: list[tuple[SectionEntry, int, int, int]] = []  # section, offset, nbytes, computed sum

    def field_name(self, number: int) -> str | None:
        """Name of a field; its number where SCHEMA is damaged."""
        if number == NO_FIELD:
            return None
        known = self.fields is not None and number < len(self.fields)
        return self.fields[number].name if known and self.fields is not None else f"#{number}"

    def name(self, entry: SectionEntry) -> str:
        """A section in words."""
        known = Kind(entry.kind).name if entry.kind in KNOWN_KINDS else f"of unknown kind {entry.kind}"
        return known if entry.field == NO_FIELD else f"{known} of field {self.field_name(entry.field)!r}"

    def prove(self) -> None:
        """Hold every byte of the segment behind its directory against a checksum, or against zero."""
        directory = self.directory
        at = directory.offset + directory_nbytes(len(directory.table), len(directory.earlier))
        for entry in directory.sections():
            self._check_padding(at, entry.offset)
            at = entry.end
            if self.tape.ledger.stopped:
                return
            self._prove_section(entry)
        self._check_padding(at, directory.end)
        self.tape.ledger.tick()

    def _check_padding(self, start: int, stop: int) -> None:
        data = self.tape.try_read(start, stop - start, "padding in an index segment") if start < stop else None
        if data:
            check_zeros(self.tape, data, start, "in an index segment")
            self.tape.ledger.count(nbytes=len(data))

    def _prove_section(self, entry: SectionEntry) -> None:
        pages = num_pages(entry.nbytes)
        sums_offset, end = entry.sums_offset, entry.end
        what, where = f"index section {self.name(entry)}", self._where(entry)
        if not self.tape.reaches(end, entry.offset, end - entry.offset, what, **where):
            return
        try:
            sums = self._check_sums(entry, sums_offset, pages)
            bad = self._check_pages(entry, sums)
        except (TruncatedError, OSError) as error:
            self.tape.failed(error, entry.offset, end - entry.offset, what, **where)
            return
        self._check_padding(entry.offset + entry.nbytes, sums_offset)
        self._bad[entry.kind, entry.field] = bad
        if not bad.any():
            self._whole.add((entry.kind, entry.field))
        self.tape.ledger.count(pages=pages, nbytes=8 * pages)

    def _check_sums(self, entry: SectionEntry, offset: int, pages: int) -> NDArray[np.uint64]:
        data = self.tape.read(offset, 8 * pages)
        if sum64(data) != entry.sum:
            self._bad_sums.append((entry, offset, 8 * pages, sum64(data)))
        return np.frombuffer(data, "<u8")

    def _check_pages(self, entry: SectionEntry, sums: NDArray[np.uint64]) -> NDArray[np.bool_]:
        bad = np.zeros(len(sums), bool)
        stored = sums.tolist()
        for start in range(0, entry.nbytes, PIECE_NBYTES):
            piece = memoryview(self.tape.read(entry.offset + start, min(PIECE_NBYTES, entry.nbytes - start)))
            for begin in range(0, len(piece), PAGE_NBYTES):
                page = (start + begin) // PAGE_NBYTES
                computed = sum64(piece[begin : begin + PAGE_NBYTES])
                if computed != stored[page]:
                    bad[page] = True
                    self._bad_pages.append((entry, page, stored[page], computed))
            self.tape.ledger.count(nbytes=len(piece))
        return bad

    def _where(self, entry: SectionEntry) -> dict[str, Any]:
        known = entry.kind in KNOWN_KINDS
        name = Kind(entry.kind).name if known else str(entry.kind)
        harmless = not known or entry.kind == Kind.SUPERSEDED  # samples and keys do without
        return {"section": name, "field": self.field_name(entry.field), "harmless": harmless}

    def _lost(self, entry: SectionEntry) -> str:
        return lost_with(entry.kind, self.field_name(entry.field))

    def report_damage(self) -> None:
        """Write the damaged pages down, with the samples that need them."""
        for entry, offset, nbytes, computed in self._bad_sums:
            what, lost = f"page sums of index section {self.name(entry)}", f"; {self._lost(entry)}"
            self.tape.ledger.add_sums(
                "index", what, (offset, nbytes), (entry.sum, computed), lost, **self._where(entry)
            )
        for entry, page, stored, computed in self._bad_pages:
            offset = entry.offset + page * PAGE_NBYTES
            nbytes = min(PAGE_NBYTES, entry.nbytes - page * PAGE_NBYTES)
            samples = self._samples_of_page(entry, page)
            lost = self._lost(entry) if samples is None else f"samples [{samples[0]}, {samples[1]}) cannot be read"
            span = {} if samples is None else {"start": samples[0], "stop": samples[1]}
            what, where = f"index section {self.name(entry)}, page {page}", {**self._where(entry), **span}
            self.tape.ledger.add_sums("index", what, (offset, nbytes), (stored, computed), f"; {lost}", **where)

    def wrong(self, kind: int, problem: str, number: int = NO_FIELD, **where: Any) -> None:
        """Write down that a section has the bytes that were written, and values that cannot be; or is not there."""
        entry = self.directory.find(kind, number) or SectionEntry(kind, number, self.directory.offset, 0, 0)
        text = f"index section {self.name(entry)} at {entry.offset}: {problem}; {self._lost(entry)}"
        known = {**self._where(entry), "offset": entry.offset, "nbytes": entry.nbytes, **where}
        self.tape.ledger.add("index", f"{text}: whoever wrote it was wrong", **known)

    def _samples_of_page(self, entry: SectionEntry, page: int) -> tuple[int, int] | None:
        """The samples that need a page of a section that is used entry by entry."""
        start, stop = page * PAGE_NBYTES, min((page + 1) * PAGE_NBYTES, entry.nbytes)
        if self.fields is None or self.starts is None or entry.field >= len(self.fields):
            return None
        first, last = int(self.starts[0]), int(self.starts[-1])
        if entry.kind == Kind.SHAPES and self.fields[entry.field].varying:
            row = 8 * self.fields[entry.field].varying
            return first + start // row, min(first - (-stop // row), last)
        if entry.kind in (Kind.OFFSETS, Kind.STORED_OFFSETS):
            # Addresses count from the first sample of the shard: without its entry the whole shard is lost.
            inside = (self.starts[:-1] >= first + start // 8) & (self.starts[:-1] < first + stop // 8)
            end = int(self.starts[1:][inside].max(initial=first + stop // 8))
            return max(first + start // 8 - 1, first), min(end, last)
        if entry.kind == Kind.CHUNK_SUMS and self.known.size and self.known.all():
            return self._samples_of_groups(entry.field, start // 8, stop // 8)
        return None

    def _samples_of_groups(self, number: int, first: int, stop: int) -> tuple[int, int]:
        assert self.starts is not None
        places = []
        for group in (first, stop - 1):
            shard = max(int(np.searchsorted(self.blocks["first_group"][:, number], group, "right")) - 1, 0)
            inside = group - int(self.blocks["first_group"][shard, number])
            size = int(self.blocks["rows_per_group"][shard, number])
            begin = int(self.starts[shard]) + inside * size
            places.append((begin, min(begin + size, int(self.starts[shard + 1]))))
        return places[0][0], places[1][1]

    def whole(self, kind: Kind, number: int = NO_FIELD) -> bool:
        """Whether the section is there and every page of it is what was written."""
        return (kind, number) in self._whole

    def section_bytes(self, kind: Kind, number: int = NO_FIELD) -> bytes | None:
        """All of a small section that is whole; None where it is not, or has gone meanwhile."""
        entry = self.directory.find(kind, number)
        if entry is None or not self.whole(kind, number):
            return None
        return self.tape.try_read(entry.offset, entry.nbytes, f"index section {self.name(entry)}")

    def values(self, kind: Kind, number: int, dtype: DTypeLike, start: int, stop: int) -> NDArray[Any] | None:
        """Entries `[start, stop)` of a section, where their pages are proven; a fresh array."""
        entry = self.directory.find(kind, number)
        bad = self._bad.get((kind, number))
        size = np.dtype(dtype).itemsize
        if entry is None or bad is None or stop * size > entry.nbytes or start > stop:
            return None
        if bad[start * size // PAGE_NBYTES : (stop * size - 1) // PAGE_NBYTES + 1].any():
            return None
        data = self.tape.try_read(entry.offset + start * size, (stop - start) * size, f"index section {kind.name}")
        return None if data is None else np.frombuffer(data, dtype)

    def pieces(self, kind: Kind, number: int, count: int) -> Iterator[tuple[int, Ints]]:
        """A section of int64 that is whole, `count` entries at a time: (first entry, entries)."""
        entry = self.directory.find(kind, number)
        total = 0 if entry is None else entry.nbytes // 8
        for first in range(0, total, count):
            array = self.values(kind, number, "<i8", first, min(first + count, total))
            if array is None or self.tape.ledger.stopped:
                return
            yield first, array

    def read_blocks(self) -> None:
        """Take what is proven of BLOCKS."""
        entry = self.directory.find(Kind.BLOCKS, NO_FIELD)
        bad = self._bad.get((Kind.BLOCKS, NO_FIELD))
        shards, fields = self.directory.num_shards, self.directory.num_fields
        if entry is None or bad is None or entry.nbytes != BLOCK_ENTRY.itemsize * shards * fields:
            return
        data = self.tape.try_read(entry.offset, entry.nbytes, "index section BLOCKS")
        if data is None:
            return
        self.blocks = np.frombuffer(data, BLOCK_ENTRY).reshape(shards, fields)
        begins = np.arange(shards * fields) * BLOCK_ENTRY.itemsize
        known = np.ones(shards * fields, bool)
        if bad.any():
            known = ~bad[begins // PAGE_NBYTES] & ~bad[(begins + BLOCK_ENTRY.itemsize - 1) // PAGE_NBYTES]
        self.known = known.reshape(shards, fields)
        self.agrees = np.zeros_like(self.known)

    def keys_of(self, start: int, stop: int) -> tuple[str, ...]:
        """Keys of samples of this segment, as far as they can be read; the first 16."""
        local = start - self.directory.first_sample
        last = min(stop - self.directory.first_sample, local + MAX_KEYS)
        bounds = self.values(Kind.KEY_OFFSETS, NO_FIELD, "<i8", local, last + 1)
        if bounds is None or bounds[0] < 0 or (bounds[1:] <= bounds[:-1]).any():
            return ()
        if bounds[-1] - bounds[0] > MAX_KEYS * MAX_KEY_NBYTES:
            return ()
        text = self.values(Kind.KEY_BYTES, NO_FIELD, "u1", int(bounds[0]), int(bounds[-1]))
        if text is None:
            return ()
        places = (bounds - bounds[0]).tolist()
        whole = text.tobytes()
        return tuple(whole[a:b].decode(errors="replace") for a, b in pairwise(places))


def lost_with(kind: int, field: str | None) -> str:
    """What cannot be read without a section."""
    if kind in (Kind.SCHEMA, Kind.SHARD_STARTS, Kind.BLOCKS):
        return "the container cannot be opened"
    if kind == Kind.ATTRS:
        return "the attributes cannot be read"
    if kind in (Kind.CHUNK_SUMS, Kind.OFFSETS, Kind.SHAPES, Kind.STORED_OFFSETS, Kind.DICTIONARY):
        return f"samples of field {field!r} cannot be read"
    if kind in (Kind.KEY_HASHES, Kind.KEY_ORDER):
        return "samples cannot be found by their keys"
    if kind in (Kind.KEY_BYTES, Kind.KEY_OFFSETS):
        return "keys cannot be read, and samples not be found by them"
    return "no sample is affected"
