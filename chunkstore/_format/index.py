"""The index of a container: positions -> bytes (spec sections 5, 7, 8, 9 and 14).

This is the gate: `read_index` and the lookups below check what comes from the file, in file order. Whatever they return
lies inside the blocks, and nothing above asks again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.checksum import sum128
from chunkstore._format.codec import WITHOUT_DICTIONARY
from chunkstore._format.constants import (
    HEAD_NBYTES,
    NO_FIELD,
    PART_ALIGNMENT,
    Kind,
)
from chunkstore._format.dtypes import element_nbytes
from chunkstore._format.keys import KeyIndex, KeySections
from chunkstore._format.layout import section_sizes
from chunkstore._format.lookup import Lookup
from chunkstore._format.schema import decode_attrs, decode_schema
from chunkstore._format.section import Bytes, Column, Section, join_ranges
from chunkstore._format.segment import Directory, decode_directory, heads_of, opening_ranges
from chunkstore._format.superblock import Head, Superblock, decode_head
from chunkstore.errors import CorruptError, FormatError, LimitError, TruncatedError

BLOCK_ENTRY: Final = np.dtype(
    [("offset", "<u8"), ("nbytes", "<u8"), ("sum", "<u8"), ("rows_per_group", "<u8"), ("first_group", "<u8")]
)
_MANY_SHARDS: Final = 1024  # more are not looked through only to save a lookup per batch
_KINDS: Final = frozenset(Kind)
_KEY_KINDS: Final = (Kind.KEY_BYTES, Kind.KEY_OFFSETS, Kind.KEY_HASHES, Kind.KEY_ORDER)
type_ints = NDArray[np.int64]


@dataclass(frozen=True)
class Extent:
    """Adjacent blocks of one field: rows `[start, stop)` lie back to back in `[offset, offset + nbytes)`."""

    start: int
    stop: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Groups:
    """Groups of one field: what their checksums cover. All of shape (G,)."""

    first_row: type_ints
    stop_row: type_ints
    offset: type_ints
    nbytes: type_ints


@contextmanager
def _at(path: str, what: str = "") -> Iterator[None]:
    """Put the file's name in front of what went wrong inside."""
    try:
        yield
    except FormatError as error:
        raise type(error)(f"{path}: {what}{error}") from None


class FieldIndex:
    """Where the rows of one field are. Safe from many threads; holds no descriptor of its own."""

    def __init__(self, index: Index, number: int) -> None:
        self.field = index.fields[number]
        self._path = index.path
        self.shard_starts = index.shard_starts
        blocks = index.blocks[:, number]
        self.block_offset = blocks["offset"].astype(np.int64)
        self.block_nbytes = blocks["nbytes"].astype(np.int64)
        self.block_sum = blocks["sum"].astype(np.uint64)
        self.rows_per_group = blocks["rows_per_group"].clip(max=2**62).astype(np.int64)
        self._lookup = Lookup(self.shard_starts[:-1])
        rows = np.diff(self.shard_starts)
        groups = np.where(rows > 0, (rows - 1) // self.rows_per_group + 1, 0)
        self.first_group = np.append(0, np.cumsum(groups)).astype(np.int64)
        self.num_groups = int(self.first_group[-1])
        firsts = np.array([d.first_sample for d in index.directories], np.int64)
        group_firsts = self.first_group[[d.first_shard - index.first_shard for d in index.directories]]
        self._sums = index.column(Kind.CHUNK_SUMS, number, group_firsts, "<u8")
        self._items = index.column(Kind.OFFSETS, number, firsts, "<i8") if self.field.ragged else None
        self._shapes = (
            index.column(Kind.SHAPES, number, firsts, "<i8", self.field.varying) if self.field.varying > 1 else None
        )
        self._extents: list[Extent] | None = None
        self._bases: dict[int, int] = {}  # for rows one by one and for batches: where shards begin in the column
        self._base_table: type_ints | None = None
        self._straight: tuple[int, int, int] | tuple[()] | None = None
        self._stored = index.column(Kind.STORED_OFFSETS, number, firsts, "<i8") if self.field.codec != "raw" else None

    def extents(self) -> list[Extent]:
        """The runs of adjacent blocks, in the order of rows."""
        if self._extents is None:
            self._extents = self._find_extents()
        return self._extents

    def _find_extents(self) -> list[Extent]:
        if not len(self.block_offset):
            return []
        ends = self.block_offset + self.block_nbytes
        breaks = np.flatnonzero(self.block_offset[1:] != ends[:-1]) + 1
        firsts = [0, *breaks.tolist()]
        lasts = [*(breaks - 1).tolist(), len(ends) - 1]
        return [
            Extent(
                int(self.shard_starts[a]),
                int(self.shard_starts[b + 1]),
                int(self.block_offset[a]),
                int(ends[b] - self.block_offset[a]),
            )
            for a, b in zip(firsts, lasts, strict=True)
        ]

    def decoded_nbytes(self) -> int:
        """Bytes of all rows, before codecs; from the ends of the index arrays alone."""
        num_samples = int(self.shard_starts[-1]) - int(self.shard_starts[0])
        if self._items is None or not num_samples:
            return num_samples * self.field.item_nbytes
        first, last = self._items.item(int(self.shard_starts[0])), self._items.item(int(self.shard_starts[-1]) - 1, 1)
        return (last - first) * self.field.item_nbytes

    def rows(self, positions: type_ints) -> tuple[type_ints, type_ints]:
        """(offset in the file, stored nbytes) of rows at positions in `[0, N)`; each of shape (B,).

        Raises:
            CorruptError: the index leads out of a block.
        """
        shards = self._shards(positions)
        if self._stored is not None:
            return self._variable(self._stored, 1, positions, shards)[:2]
        if self._items is not None:
            return self._variable(self._items, self.field.item_nbytes, positions, shards)[:2]
        starts, row_nbytes = self.shard_starts[shards], self.field.item_nbytes
        return self.block_offset[shards] + (positions - starts) * row_nbytes, np.full(len(positions), row_nbytes)

    def unread(self, positions: type_ints) -> tuple[type_ints, type_ints]:
        """(offset, nbytes) of what `rows` has to read from the index first; of no length where nothing is."""
        columns = [(column, shift) for column in (self._stored, self._items) if column is not None for shift in (0, 1)]
        columns += [] if self._shapes is None else [(self._shapes, 0)]
        return join_ranges([column.unread(positions, shift) for column, shift in columns])

    def unread_sums(self, ids: type_ints) -> tuple[type_ints, type_ints]:
        """As `unread`, for `group_sums`."""
        return self._sums.unread(ids)

    def row(self, position: int) -> tuple[int, int]:
        """(offset in the file, stored nbytes) of one row at a position in `[0, N)`.

        Raises:
            CorruptError: the index leads out of a block.
        """
        shard = 0 if len(self.block_offset) == 1 else int(np.searchsorted(self.shard_starts, position, "right")) - 1
        column = self._stored or self._items
        first_row, block = int(self.shard_starts[shard]), int(self.block_offset[shard])
        unit = 1 if self._stored else self.field.item_nbytes
        if column is None:
            return block + (position - first_row) * unit, unit
        base = self._base(column, shard, first_row)
        first, last = column.item(position), column.item(position, 1)
        if not 0 <= base <= first <= last or (last - base) * unit > int(self.block_nbytes[shard]):
            raise self._corrupt(position, f"offsets {first} to {last} do not lie in its block")
        return block + (first - base) * unit, (last - first) * unit

    def shape(self, position: int) -> tuple[int, ...]:
        """Shape of one row at a position in `[0, N)`; of a text, how many bytes of UTF-8."""
        if not self.field.ragged:
            return self.field.item_shape
        at = np.array([position], np.int64)
        return (*self.shapes(at, self.counts(at))[0].tolist(), *self.field.item_shape)

    def _base(self, column: Column, shard: int, first_row: int) -> int:
        base = self._bases.get(shard)
        if base is None:
            base = self._bases[shard] = column.item(first_row)
        return base

    def _shards(self, positions: type_ints) -> type_ints:
        if len(self.block_offset) == 1:
            return np.zeros(len(positions), np.int64)
        return self._lookup.find(positions)

    def _variable(
        self, column: Column, unit: int, positions: type_ints, shards: type_ints
    ) -> tuple[type_ints, type_ints, type_ints]:
        """(offset, nbytes, entries) of rows whose ends stand in a column."""
        first, last = column.take(positions), column.take(positions, 1)
        base: Any = self._bases_of(column, shards)
        room = self.block_nbytes[shards] // unit if unit else None
        bad = (first < base) | (last < first) | (base < 0)
        if room is not None:
            bad |= last - base > room
        if bad.any():
            place = int(np.flatnonzero(bad)[0])
            raise self._corrupt(
                int(positions[place]), f"offsets {first[place]} to {last[place]} do not lie in its block"
            )
        counts: type_ints = last - first
        return self.block_offset[shards] + (first - base) * unit, counts * unit, counts

    def _bases_of(self, column: Column, shards: type_ints) -> type_ints | int:
        """The entry of the first row of each shard, read once and then remembered."""
        if len(self.block_offset) == 1:
            return self._base(column, 0, int(self.shard_starts[0]))
        known = self._base_table
        if known is None:
            known = self._base_table = np.full(len(self.block_offset), -1, np.int64)
        found = known[shards]
        if (found < 0).any():
            missing = np.unique(shards[found < 0])
            known[missing] = column.take(self.shard_starts[missing])
            found = known[shards]
        return found

    def _find_straight(self) -> tuple[int, int, int] | tuple[()]:
        """(offset of the first item, its number, the number behind the last) where all blocks follow each other.

        Then no shard need be looked up for a row. Empty where it is not so, or not worth to find out.
        """
        items, unit, shards = self._items, self.field.item_nbytes, len(self.block_offset)
        if items is None or not unit or not 0 < shards <= _MANY_SHARDS or len(self.extents()) != 1:
            return ()
        bases = items.take(self.shard_starts[:-1])
        low, top = int(bases[0]), items.item(int(self.shard_starts[-1]) - 1, 1)
        ends = np.append(bases[1:], top)
        if low < 0 or np.any(ends < bases) or np.any((ends - bases) != self.block_nbytes // unit):
            return ()
        whole = np.all(self.block_nbytes % unit == 0)
        return (int(self.block_offset[0]), low, top) if whole else ()

    def ragged_rows(self, positions: type_ints) -> tuple[type_ints, type_ints, type_ints]:
        """`rows` and `counts` of a raw ragged field in one: (offset, nbytes, items); each of shape (B,)."""
        assert self._items is not None
        if self._straight is None:
            self._straight = self._find_straight()
        if self._straight:
            offset, low, top = self._straight
            first, last = self._items.take(positions), self._items.take(positions, 1)
            counts = last - first
            # Compared and not subtracted: numbers of a hostile file wrap around.
            if ((first >= low) & (last >= first) & (last <= top)).all():
                unit = self.field.item_nbytes
                return (first - low) * unit + offset, counts * unit, counts
        found = self._variable(self._items, self.field.item_nbytes, positions, self._shards(positions))
        if not self.field.item_nbytes:  # otherwise the block bounds them
            self._check_limit(positions, found[2][:, None])
        return found

    def counts(self, positions: type_ints) -> type_ints:
        """Items of ragged rows; shape (B,)."""
        assert self._items is not None
        first, last = self._items.take(positions), self._items.take(positions, 1)
        self._check_counts(positions, first, last)
        return last - first

    def _check_counts(self, positions: type_ints, first: type_ints, last: type_ints) -> None:
        bad = (first < 0) | (last < first)
        if bad.any():
            place = int(np.flatnonzero(bad)[0])
            raise self._corrupt(int(positions[place]), f"offsets {first[place]} to {last[place]} descend")
        self._check_limit(positions, (last - first)[:, None])

    def _check_limit(self, positions: type_ints, dims: type_ints) -> None:
        """Dimensions of 0 left out, a row has less than 2^63 bytes (spec section 15)."""
        unit = element_nbytes(self.field.dtype) * math.prod(dim or 1 for dim in self.field.item_shape)
        # In floating point a product cannot wrap around, but it is not exact: only rows near the limit are looked at.
        large = np.prod(np.where(dims > 0, dims, 1).astype(np.float64), axis=1) * unit >= 2.0**62
        for place in np.flatnonzero(large).tolist():
            if math.prod(dim or 1 for dim in dims[place].tolist()) * unit < 2**63:
                continue
            raise LimitError(
                f"{self._path}: sample {int(positions[place])}, field {self.field.name!r}: a row of shape "
                f"{(*dims[place].tolist(), *self.field.item_shape)} has more than 2^63 - 1 bytes"
            )

    def shapes(self, positions: type_ints, counts: type_ints) -> type_ints:
        """The first `varying` dimensions of ragged rows; shape (B, varying). `counts` are theirs."""
        if self._shapes is None:
            return counts.reshape(-1, 1)
        dims = self._shapes.take(positions)
        self._check_shapes(positions, dims, counts)
        return dims

    def _check_shapes(self, positions: type_ints, dims: type_ints, counts: type_ints) -> None:
        bad = (dims < 0).any(axis=1)
        for place, dim in enumerate(self.field.shape[: self.field.varying]):
            if dim is not None:
                bad |= dims[:, place] != dim
        # In floating point a product of 63 bits cannot wrap around; where it is large, that alone decides.
        bad |= np.prod(dims.astype(np.float64), axis=1) > 2.0**62
        bad |= np.prod(dims, axis=1) != counts
        if bad.any():
            place = int(np.flatnonzero(bad)[0])
            raise self._corrupt(
                int(positions[place]), f"shape {dims[place].tolist()} does not fit {counts[place]} items of its schema"
            )
        self._check_limit(positions, dims)

    def offsets(self, start: int, stop: int) -> type_ints:
        """OFFSETS of rows `[start, stop)` and the end of the last; shape (stop - start + 1,). Read-only or fresh.

        Proven not to descend, and to stay inside the field.
        """
        assert self._items is not None
        items = self._items.run(start, stop, 1)
        if items.size and (items[0] < 0 or np.any(items[1:] < items[:-1])):
            raise self._corrupt(start, "the offsets from here on descend")
        return items

    def group_ids(self, positions: type_ints) -> type_ints:
        """The group of each row; shape (B,). Groups are numbered over the whole container."""
        shards = self._shards(positions)
        return self.first_group[shards] + (positions - self.shard_starts[shards]) // self.rows_per_group[shards]

    def groups(self, ids: type_ints) -> Groups:
        """Rows and bytes that groups cover."""
        shards = np.searchsorted(self.first_group, ids, "right") - 1
        size = self.rows_per_group[shards]
        # A group may claim more rows than the shard has: the product stays below 2^63 because its first row exists.
        first = self.shard_starts[shards] + (ids - self.first_group[shards]) * size
        stop = np.minimum(self.shard_starts[shards + 1] - first, size) + first
        offset, _ = self.rows(first)
        last_offset, last_nbytes = self.rows(stop - 1)
        return Groups(first, stop, offset, last_offset + last_nbytes - offset)

    def missing_sums(self, ids: type_ints) -> list[tuple[int, int]]:
        """(offset, nbytes) in the file of what `group_sums` would read of a distant file."""
        return self._sums.missing(ids)

    def group_sums(self, ids: type_ints) -> NDArray[np.uint64]:
        """Stored xxh3-64 of groups; shape (G,)."""
        return self._sums.take(ids)

    def _corrupt(self, position: int, what: str) -> CorruptError:
        return CorruptError(
            f"{self._path}: sample {position}, field {self.field.name!r}: {what}. Run `chunkstore verify {self._path}`."
        )


class Index:
    """The whole index of one generation.

    Attributes:
        path: of the container, for messages.
        head: the superblocks.
        directories: of all live segments, in the order of samples. (For recovery it may be a run of them that does not
            begin with the first: positions are those of the container all the same.)
        fields: the schema.
        num_samples: N.
        shard_starts: int64, shape (shards + 1,).
        blocks: dtype `BLOCK_ENTRY`, shape (shards, fields).
        keys: None where samples have no keys.
    """

    def __init__(self, source: Bytes, head: Head, directories: tuple[Directory, ...]) -> None:
        self.path = source.path
        self.head = head
        self.directories = directories
        self._source = source
        self.first_shard = directories[0].first_shard
        newest = directories[-1]
        schema = self.read_section(newest, Kind.SCHEMA)
        self.fields = decode_schema(schema, newest.num_fields)
        self.num_samples = newest.first_sample + newest.num_samples
        for directory in directories:
            self._check_sections(directory)
            if directory is not newest and self.read_section(directory, Kind.SCHEMA) != schema:
                raise CorruptError(f"the segment at {directory.offset} has another SCHEMA than the newest")
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
        with _at(self.path):
            return decode_attrs(self.read_section(self.directories[-1], Kind.ATTRS))

    def dictionary(self, number: int) -> bytes:
        """DICTIONARY of a field, or empty."""
        newest = self.directories[-1]
        if (Kind.DICTIONARY, number) not in newest:
            return b""
        with _at(self.path):
            return self.read_section(newest, Kind.DICTIONARY, number)

    def column(self, kind: Kind, number: int, starts: type_ints, dtype: str, width: int = 1) -> Column:
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
        entry = directory.find(kind, number)
        if entry is None:
            raise CorruptError(f"the segment at {directory.offset} has no section {kind.name}")
        return Section(self._source, entry)

    def read_section(self, directory: Directory, kind: Kind, number: int = NO_FIELD) -> bytes:
        """A whole section whose length the directory limits, proven."""
        return bytes(self.section(directory, kind, number).whole())

    def _check_sections(self, directory: Directory) -> None:
        """Every section that the schema calls for is there with its length, and no other of a known kind."""
        text = directory.find(Kind.KEY_BYTES, NO_FIELD)
        sizes = section_sizes(
            self.fields, directory.num_samples, directory.num_shards, key_nbytes=text.nbytes if text else None
        )
        where = f"the segment at {directory.offset}"
        if (Kind.ATTRS, NO_FIELD) not in directory:
            raise CorruptError(f"{where} has no section ATTRS")
        for (kind, number), nbytes in sizes.items():
            entry = directory.find(kind, NO_FIELD if number is None else number)
            if entry is None or entry.nbytes != nbytes:
                found = "none" if entry is None else f"{entry.nbytes} bytes"
                raise CorruptError(f"{where}: section {kind.name} of {nbytes} bytes expected, found {found}")
        allowed = {(kind, NO_FIELD if number is None else number) for kind, number in sizes}
        for entry in directory.sections():
            if entry.kind in _KINDS and (entry.kind, entry.field) not in allowed:
                self._check_optional(entry.kind, entry.field, where, entry.nbytes)
        if directory.num_fields != len(self.fields):
            raise CorruptError(f"{where} has {directory.num_fields} fields, SCHEMA {len(self.fields)}")
        newest = (Kind.KEY_BYTES, NO_FIELD) in self.directories[-1]
        if (text is not None) != newest:
            raise CorruptError(f"{where} and the newest segment do not both have keys")

    def _check_optional(self, kind: int, number: int, where: str, nbytes: int) -> None:
        if kind in (Kind.SCHEMA, Kind.ATTRS) and number == NO_FIELD:
            return
        if kind == Kind.SUPERSEDED and number == NO_FIELD and nbytes % 24 == 0:
            return
        in_schema = number < len(self.fields)
        if kind == Kind.CHUNK_SUMS and in_schema and nbytes % 8 == 0:
            return
        if kind == Kind.DICTIONARY and in_schema and nbytes and self.fields[number].codec not in WITHOUT_DICTIONARY:
            return
        raise CorruptError(f"{where}: a section {Kind(kind).name} of field {number} is not called for")

    def _read_shard_starts(self) -> type_ints:
        pieces = [np.array([self.directories[0].first_sample], np.int64)]
        for directory in self.directories:
            starts = np.frombuffer(self.section(directory, Kind.SHARD_STARTS).whole(), "<u8")
            last = directory.first_sample + directory.num_samples
            if starts[0] != directory.first_sample or starts[-1] != last or np.any(starts[1:] <= starts[:-1]):
                raise CorruptError(
                    f"SHARD_STARTS of the segment at {directory.offset}: expected to ascend strictly from "
                    f"{directory.first_sample} to {last}"
                )
            pieces.append(starts[1:].astype(np.int64))
        return np.concatenate(pieces)

    def _read_blocks(self) -> NDArray[Any]:
        pieces = []
        for directory in self.directories:
            blocks = np.frombuffer(self.section(directory, Kind.BLOCKS).whole(), BLOCK_ENTRY)
            blocks = blocks.reshape(-1, len(self.fields))
            first = directory.first_shard - self.first_shard
            rows = np.diff(self.shard_starts[first:][: directory.num_shards + 1]).astype(np.uint64)
            self._check_groups(directory, blocks, rows[:, None])
            pieces.append(blocks)
        blocks = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        self._check_blocks(blocks)
        return blocks

    def _check_groups(self, directory: Directory, blocks: NDArray[Any], rows: NDArray[np.uint64]) -> None:
        where = f"BLOCKS of the segment at {directory.offset}"
        if np.any(blocks["rows_per_group"] == 0):
            raise CorruptError(f"{where}: 0 rows per group, expected at least 1")
        totals = np.array([self._num_sums(directory, number) for number in range(len(self.fields))], np.uint64)
        groups = (rows - np.uint64(1)) // blocks["rows_per_group"] + np.uint64(1)
        # Each is below the total before any are added: no sum can pass 2^64.
        if np.any(groups > totals) or np.any(blocks["first_group"] > totals - groups):
            raise CorruptError(f"{where}: more groups than CHUNK_SUMS has")
        ends = blocks["first_group"] + groups
        starts = np.concatenate([np.zeros((1, len(self.fields)), np.uint64), ends])
        if np.any(starts[:-1] != blocks["first_group"]) or np.any(starts[-1] != totals):
            raise CorruptError(f"{where}: the groups of shards do not follow each other, or do not fill CHUNK_SUMS")

    def _num_sums(self, directory: Directory, number: int) -> int:
        entry = directory.find(Kind.CHUNK_SUMS, number)
        if entry is None:
            raise CorruptError(f"the segment at {directory.offset} has no CHUNK_SUMS of field {number}")
        return entry.nbytes // 8

    def _check_blocks(self, blocks: NDArray[Any]) -> None:
        end = np.uint64(self.superblock.committed_end)
        offset, nbytes = blocks["offset"], blocks["nbytes"]
        bad = (offset < HEAD_NBYTES) | (offset > end) | (nbytes > end - np.minimum(offset, end))
        self._refuse(bad, blocks, f"does not lie in [{HEAD_NBYTES}, {end})")
        before = np.zeros_like(offset)
        before[1:] = offset[:-1] + nbytes[:-1]
        bad = (offset % np.uint64(PART_ALIGNMENT) != 0) & (offset != before)
        self._refuse(bad, blocks, f"begins neither at a multiple of {PART_ALIGNMENT} nor behind the block before")
        self._refuse(self._wrong_lengths(nbytes), blocks, "does not have as many bytes as its rows")

    def _wrong_lengths(self, nbytes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Where the blocks of raw fields of fixed shape are not rows times the bytes of a row."""
        fixed = np.array([not field.ragged and field.codec == "raw" for field in self.fields])
        sizes = np.array([field.item_nbytes for field in self.fields], np.uint64)
        rows = np.diff(self.shard_starts).astype(np.uint64)[:, None]
        # where the product passed 2^64 the quotient shows it
        passed = (nbytes // np.maximum(sizes, np.uint64(1)) != rows) & (sizes > 0)
        wrong: NDArray[np.bool_] = ((nbytes != rows * sizes) | passed) & fixed
        return wrong

    def _refuse(self, bad: NDArray[np.bool_], blocks: NDArray[Any], what: str) -> None:
        if bad.any():
            shard, number = (int(place) for place in np.argwhere(bad)[0])
            entry = blocks[shard, number]
            raise CorruptError(
                f"BLOCKS: the block of shard {shard}, field {self.fields[number].name!r}, "
                f"{entry['nbytes']} bytes at {entry['offset']}, {what}"
            )

    def _key_sections(self, directory: Directory) -> KeySections:
        parts = [self.section(directory, kind) for kind in _KEY_KINDS]
        return KeySections(directory.first_sample, directory.num_samples, *parts)


def read_index(source: Bytes) -> Index:
    """Read superblocks, directories and schema, and check them (spec section 14, steps 1 to 4).

    Costs the same for any number of samples: it reads the head, the directories, SCHEMA, SHARD_STARTS and BLOCKS.

    Raises:
        FormatError: one of its subclasses; the message begins with the path.
    """
    with _at(source.path):
        head = decode_head(source.read(0, min(HEAD_NBYTES, source.size)), source.size)
        return _read(source, head)


def _read(source: Bytes, head: Head) -> Index:
    if not source.distant:
        return Index(source, head, _read_directories(source, head.superblock))
    superblock = head.superblock
    with source.staged(*heads_of([superblock.directory_offset], superblock.committed_end)):
        directories = _read_directories(source, superblock)
        with source.staged(*opening_ranges(directories)):
            return Index(source, head, directories)


def read_generation(source: Bytes, superblock: Superblock, *, cut_off: bool = False) -> Index:
    """The index of an earlier generation, whose bytes are still in the file: commits never change them.

    Args:
        superblock: as it was then.
        cut_off: whether the file may end before the committed end; what lies behind then fails when it is read.
    Raises:
        FormatError: one of its subclasses; the message begins with the path.
    """
    with _at(source.path):
        if source.size < superblock.committed_end and not cut_off:
            raise TruncatedError(f"the file has {source.size} bytes, expected at least {superblock.committed_end}")
        return _read(source, Head(superblock, ()))


def _read_directories(source: Bytes, superblock: Superblock) -> tuple[Directory, ...]:
    end = superblock.committed_end
    newest = _read_directory(
        source, superblock.directory_offset, superblock.directory_nbytes, superblock.directory_sum, end
    )
    if newest.earlier and source.distant:
        with source.staged(*heads_of([entry.offset for entry in newest.earlier], end)):
            return _all_directories(source, newest, end)
    return _all_directories(source, newest, end)


def _all_directories(source: Bytes, newest: Directory, end: int) -> tuple[Directory, ...]:
    directories = []
    for entry in newest.earlier:
        directory = _read_directory(source, entry.offset, entry.directory_nbytes, entry.directory_sum, end)
        if (directory.first_sample, directory.num_samples) != (entry.first_sample, entry.num_samples):
            raise CorruptError(f"the earlier segment at {entry.offset} does not describe the samples that it should")
        directories.append(directory)
    directories.append(newest)
    shard = 0
    for directory in directories:
        if directory.first_shard != shard:
            raise CorruptError(
                f"the segment at {directory.offset} begins with shard {directory.first_shard}, expected {shard}"
            )
        shard += directory.num_shards
    return tuple(directories)


def _read_directory(source: Bytes, offset: int, nbytes: int, stored: bytes, end: int) -> Directory:
    data = source.read(offset, nbytes)
    if sum128(data) != stored:
        raise CorruptError(
            f"directory [{offset}, {offset + nbytes}): stored xxh3 {stored.hex()}, computed {sum128(data).hex()}"
        )
    with _at(f"directory at {offset}"):
        return decode_directory(data, offset, end)
