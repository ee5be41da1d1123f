"""What new shards put into the index: collected while blocks are written, then written as one segment.

The writer and the converter share it: both only say which block went where. Arrays that grow with the number of samples
are kept in memory up to a MiB each and in one unnamed temporary file beyond that.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.checksum import sum64, sum128
from chunkstore._format.constants import MAX_INT, MAX_KEY_NBYTES, NO_FIELD, PAGE_NBYTES, PART_ALIGNMENT, Kind
from chunkstore._format.index import BLOCK_ENTRY, Index
from chunkstore._format.keys import order_dtype
from chunkstore._format.layout import rows_per_group, section_sizes
from chunkstore._format.schema import Field, encode_attrs, encode_schema
from chunkstore._format.segment import (
    Directory,
    Earlier,
    SectionEntry,
    directory_nbytes,
    pad,
    place_sections,
    uuid_of,
)
from chunkstore._format.superblock import Superblock
from chunkstore._storage.buffers import byte_view
from chunkstore._storage.sink import Sink
from chunkstore._write.late import Spill
from chunkstore._write.sections import Joined, write_section
from chunkstore.errors import LimitError, SchemaError

_SPOOL_NBYTES: Final = 1 << 20
_PIECE_NBYTES: Final = 64 * PAGE_NBYTES
type_section = tuple[Kind, int]


@dataclass(frozen=True)
class Block:
    """One block that was written.

    Attributes:
        offset: in the file.
        nbytes: stored bytes.
        sum: their xxh3-64.
        group_sums: uint64, one per group of `rows_per_group(rows, nbytes)` rows.
        counts: int64, shape (rows,): items of each row; only for a ragged field.
        shapes: int64, shape (rows, varying); only for a ragged field with varying > 1.
        stored: int64, shape (rows,): stored bytes of each row; only where the codec is not raw.
    """

    offset: int
    nbytes: int
    sum: int
    group_sums: NDArray[np.uint64]
    counts: NDArray[np.int64] | None = None
    shapes: NDArray[np.int64] | None = None
    stored: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Keys:
    """Keys of consecutive samples: UTF-8 back to back, and where each begins; offsets has one entry more."""

    text: bytes
    offsets: NDArray[np.int64]
    known: NDArray[np.uint64] | None = None  # their hashes, where each was an object of its own

    @classmethod
    def of(cls, keys: Iterable[str]) -> Keys:
        """Keys from texts.

        Raises:
            SchemaError: a key that the format cannot hold (spec section 10).
        """
        return cls.packed([encode_key(key) for key in keys])

    @classmethod
    def packed(cls, texts: Sequence[bytes]) -> Keys:
        """Keys from what `encode_key` gave."""
        # Where the NULs between them are that no key has: a fifth of the time that `len` of each takes.
        ends = np.flatnonzero(np.frombuffer(b"\0".join([*texts, b""]), np.uint8) == 0)
        hashes = np.fromiter(map(sum64, texts), np.uint64, len(texts))
        return cls(b"".join(texts), np.append(0, ends - np.arange(len(texts))), hashes)

    @classmethod
    def joined(cls, parts: Sequence[Keys]) -> Keys:
        """Keys of all parts, one after another."""
        bases = np.cumsum([0, *(len(part.text) for part in parts)])
        offsets = [[0], *(part.offsets[1:] + base for part, base in zip(parts, bases, strict=False))]
        hashes = np.concatenate([part.hashes() for part in parts])
        return cls(b"".join(part.text for part in parts), np.concatenate(offsets).astype(np.int64), hashes)

    def part(self, start: int, stop: int) -> Keys:
        """Those of samples `[start, stop)`."""
        offsets = self.offsets[start : stop + 1]
        known = None if self.known is None else self.known[start:stop]
        return Keys(self.text[offsets[0] : offsets[-1]], offsets - offsets[0], known)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, place: int) -> bytes:
        return self.text[self.offsets[place] : self.offsets[place + 1]]

    def hashes(self) -> NDArray[np.uint64]:
        """xxh3-64 of each key."""
        if self.known is not None:
            return self.known
        text, bounds = memoryview(self.text), self.offsets.tolist()
        sums = (sum64(text[a:b]) for a, b in pairwise(bounds))
        return np.fromiter(sums, np.uint64, len(self))


def encode_key(key: str) -> bytes:
    """A key as it is stored; SchemaError where the format cannot hold it."""
    try:
        text = key.encode()
    except (UnicodeEncodeError, AttributeError):
        raise SchemaError(f"a key is a text that UTF-8 can hold, not {key!r:.80}") from None
    if 0 in text or not 0 < len(text) <= MAX_KEY_NBYTES:  # an integer is found four times as fast as b"\0"
        raise SchemaError(f"a key has 1 to {MAX_KEY_NBYTES} bytes and no NUL, not {len(text)} bytes: {key!r:.80}")
    return text


class _Spool:
    """Bytes of one index array: appended, and read back."""

    def __init__(self, spill: Spill) -> None:
        self._spill = spill
        self._tail = bytearray()
        self._spilled: list[tuple[int, int]] = []  # (offset in the spool, offset in the spill) of whole pieces
        self.nbytes = 0

    def append(self, data: Any) -> None:
        view = byte_view(data)
        self._tail += view
        self.nbytes += len(view)
        if len(self._tail) >= _SPOOL_NBYTES:
            self._spilled.append((self.nbytes - len(self._tail), self._spill.append((self._tail,))))
            self._tail = bytearray()

    def read(self, offset: int, nbytes: int) -> bytes:
        stop = min(offset + nbytes, self.nbytes)
        pieces = []
        while offset < stop:
            place = bisect.bisect_right(self._spilled, offset, key=lambda piece: piece[0]) - 1
            ends = [start for start, _ in self._spilled[place + 1 : place + 2]] or [self.nbytes - len(self._tail)]
            if offset >= self.nbytes - len(self._tail):
                start = offset - (self.nbytes - len(self._tail))
                pieces.append(bytes(self._tail[start : start + stop - offset]))
                break
            start, where = self._spilled[place]
            pieces.append(self._spill.read(where + offset - start, min(stop, ends[0]) - offset))
            offset = min(stop, ends[0])
        return b"".join(pieces)

    def pieces(self) -> Iterator[bytes]:
        for offset in range(0, self.nbytes, _PIECE_NBYTES):
            yield self.read(offset, _PIECE_NBYTES)


@dataclass
class _Run:
    """Sorted hashes, and the positions that they belong to."""

    hashes: NDArray[np.uint64]
    positions: NDArray[np.int64]


class _KeyTable:
    """The table of keys sorted by hash, grown run by run; a key given twice is found when its run comes.

    Sorted runs are merged when they are of like size, so that N keys cost O(N log N) in all. 16 bytes of memory a key.
    """

    def __init__(self, spill: Spill) -> None:
        self.text = _Spool(spill)
        self.ends = _Spool(spill)
        self.ends.append(bytes(8))
        self.num_keys = 0
        self._runs: list[_Run] = []

    def add(self, keys: Keys) -> None:
        hashes = keys.hashes()
        order = np.argsort(hashes, kind="stable")
        run = _Run(hashes[order], order + self.num_keys)
        self._store(keys)
        self._refuse_duplicates(run)
        self._runs.append(run)
        while len(self._runs) > 1 and len(self._runs[-2].hashes) < 2 * len(self._runs[-1].hashes):
            self._merge_last()

    def _store(self, keys: Keys) -> None:
        self.ends.append((keys.offsets[1:] + self.text.nbytes).astype("<u8"))
        self.text.append(keys.text)
        self.num_keys += len(keys)

    def _refuse_duplicates(self, new: _Run) -> None:
        for place in np.flatnonzero(new.hashes[1:] == new.hashes[:-1]).tolist():
            self._refuse_equal(int(new.positions[place]), int(new.positions[place + 1]))
        for run in self._runs:
            places = np.searchsorted(run.hashes, new.hashes)
            places[places == len(run.hashes)] = 0
            for mine in np.flatnonzero(run.hashes[places] == new.hashes).tolist():
                self._refuse_equal(int(run.positions[places[mine]]), int(new.positions[mine]))

    def _refuse_equal(self, first: int, second: int) -> None:
        if self.key(first) == self.key(second):
            text = self.key(first).decode("utf-8", "backslashreplace")
            raise SchemaError(f"samples {first} and {second} have the same key {text!r}; keys must be unique")

    def key(self, position: int) -> bytes:
        start, stop = np.frombuffer(self.ends.read(8 * position, 16), "<u8").tolist()
        return self.text.read(start, stop - start)

    def _merge_last(self) -> None:
        second, first = self._runs.pop(), self._runs.pop()
        hashes = np.concatenate([first.hashes, second.hashes])
        order = np.argsort(hashes, kind="stable")  # on two sorted runs this is one merge
        self._runs.append(_Run(hashes[order], np.concatenate([first.positions, second.positions])[order]))

    def sorted(self) -> _Run:
        while len(self._runs) > 1:
            self._merge_last()
        return self._runs[0] if self._runs else _Run(np.zeros(0, np.uint64), np.zeros(0, np.int64))


@dataclass
class _FieldColumns:
    """Index arrays of one field, growing."""

    sums: _Spool
    offsets: _Spool | None = None
    shapes: _Spool | None = None
    stored: _Spool | None = None
    num_items: int = 0
    num_stored: int = 0
    num_sums: int = 0

    @classmethod
    def of(cls, field: Field, spill: Spill, num_items: int, num_stored: int) -> _FieldColumns:
        columns = cls(_Spool(spill), num_items=num_items, num_stored=num_stored)
        if field.ragged:
            columns.offsets = _Spool(spill)
            columns.offsets.append(np.int64(num_items).tobytes())
        if field.varying > 1:
            columns.shapes = _Spool(spill)
        if field.codec != "raw":
            columns.stored = _Spool(spill)
            columns.stored.append(np.int64(num_stored).tobytes())
        return columns

    def add(self, block: Block, num_samples: int) -> tuple[int, int, int, int, int]:
        """Take one block; its entry for BLOCKS."""
        first_group = self.num_sums
        self.sums.append(block.group_sums.astype("<u8"))
        self.num_sums += len(block.group_sums)
        if self.offsets is not None and block.counts is not None:
            ends = np.cumsum(block.counts, dtype=np.int64) + self.num_items
            self.offsets.append(ends.astype("<i8"))
            self._set_items(ends)
        if self.shapes is not None and block.shapes is not None:
            self.shapes.append(np.ascontiguousarray(block.shapes, "<i8"))
        if self.stored is not None and block.stored is not None:
            ends = np.cumsum(block.stored, dtype=np.int64) + self.num_stored
            self.stored.append(ends.astype("<i8"))
            self.num_stored = int(ends[-1])
        return block.offset, block.nbytes, block.sum, rows_per_group(num_samples, block.nbytes), first_group

    def absorb(self, index: Index, directory: Directory, number: int) -> None:
        """Take over the arrays of a live segment."""
        sums = _whole(index, directory, Kind.CHUNK_SUMS, "<u8", number)
        self.sums.append(sums)
        self.num_sums += len(sums)
        if self.offsets is not None:
            offsets = _whole(index, directory, Kind.OFFSETS, "<i8", number)
            first = offsets.item(0)
            offsets = offsets - first + self.num_items
            self.offsets.append(offsets[1:])
            # What a hostile one wraps is found by `verify`: it is no sum of too many.
            self._set_items(offsets[-1:] if first >= 0 else offsets[-1:] & MAX_INT)
        if self.shapes is not None:
            self.shapes.append(_whole(index, directory, Kind.SHAPES, "<i8", number))
        if self.stored is not None:
            stored = _whole(index, directory, Kind.STORED_OFFSETS, "<i8", number)
            stored = stored - stored[:1] + self.num_stored
            self.stored.append(stored[1:])
            self.num_stored = int(stored[-1])

    def _set_items(self, ends: NDArray[np.int64]) -> None:
        """Where rows end. A sum that passes 2^63 - 1 is negative at first, for no row has more items than that."""
        if ends.min() < 0:
            raise LimitError("a ragged field has at most 2^63 - 1 items in a container")
        self.num_items = int(ends[-1])

    def spools(self) -> dict[Kind, _Spool]:
        found = {
            Kind.CHUNK_SUMS: self.sums,
            Kind.OFFSETS: self.offsets,
            Kind.SHAPES: self.shapes,
            Kind.STORED_OFFSETS: self.stored,
        }
        return {kind: spool for kind, spool in found.items() if spool is not None}


@dataclass(frozen=True)
class Position:
    """Where a new segment goes on: what the segments before it describe."""

    first_sample: int = 0
    first_shard: int = 0
    num_items: Mapping[int, int] = field(default_factory=dict)
    """Items of each ragged field so far, by number of the field."""
    num_stored: Mapping[int, int] = field(default_factory=dict)
    """Stored bytes of each field with a codec so far."""


class IndexWriter:
    """Collects the index of new shards and writes it as a segment. Not thread-safe.

    Args:
        fields: the schema.
        with_keys: whether every sample has a key.
        folder: for unnamed temporary files, should the index outgrow the memory.
        position: where it goes on; default a new container.
        schema: the bytes of SCHEMA where a container has them already, perhaps of another writer: those of all live
            segments are the same. Default: as our writer spells it.
    Attributes:
        attrs: ATTRS as `encode_attrs` gives them; may be set until the segment is written.
    """

    def __init__(
        self,
        fields: Sequence[Field],
        *,
        with_keys: bool,
        folder: str,
        position: Position | None = None,
        schema: bytes | None = None,
    ) -> None:
        self.fields = tuple(fields)
        self.num_samples = 0
        self._position = position or Position()
        self._schema = encode_schema(fields) if schema is None else schema
        self.attrs = b"{}"
        self._starts = [self._position.first_sample]
        self._spill = Spill(folder)
        self._blocks = _Spool(self._spill)
        self._columns = [
            _FieldColumns.of(f, self._spill, self._position.num_items.get(n, 0), self._position.num_stored.get(n, 0))
            for n, f in enumerate(fields)
        ]
        self.with_keys = with_keys
        self._keys = _KeyTable(self._spill) if with_keys else None
        self.superseded: list[tuple[int, int, int]] = []
        self.dictionaries: dict[int, bytes] = {}
        self._moved: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the temporary file."""
        self._spill.close()

    def add_keys(self, keys: Keys) -> None:
        """Take the keys of the next shard before it is written, so that a duplicate is found first.

        Raises:
            SchemaError: a key is there twice.
        """
        if self._keys is not None:
            self._keys.add(keys)

    def add_shard(self, num_samples: int, blocks: Sequence[Block]) -> None:
        """Take the next shard, whose keys `add_keys` was given.

        Args:
            num_samples: at least 1.
            blocks: one per field, in the order of the schema.
        Raises:
            LimitError: more samples or items than section 15 of the specification allows; so does `absorb`.
        """
        entries = [columns.add(block, num_samples) for columns, block in zip(self._columns, blocks, strict=True)]
        self._blocks.append(np.array(entries, BLOCK_ENTRY))
        self._grow(num_samples, [self._starts[-1] + num_samples])

    def absorb(self, index: Index, directory: Directory, offsets: NDArray[np.int64] | None = None) -> None:
        """Take over all that a segment describes.

        Args:
            index, directory: the segment.
            offsets: where its blocks are now, shape (shards, fields); default where they were. Then this segment
                replaces that one in its own container; otherwise its samples come behind those that are here already.
        """
        starts = _whole(index, directory, Kind.SHARD_STARTS, "<u8").astype(np.int64) - directory.first_sample
        blocks = _whole(index, directory, Kind.BLOCKS, BLOCK_ENTRY).reshape(-1, len(self.fields)).copy()
        if offsets is not None:
            blocks["offset"] = offsets
        for number, columns in enumerate(self._columns):
            blocks["first_group"][:, number] += columns.num_sums
            columns.absorb(index, directory, number)
        self._blocks.append(blocks)
        self._grow(directory.num_samples, [self._starts[-1] + start for start in starts[1:].tolist()])
        if self._keys is not None and directory.num_samples:
            text = _whole(index, directory, Kind.KEY_BYTES, np.uint8).tobytes()
            self._keys.add(Keys(text, _whole(index, directory, Kind.KEY_OFFSETS, "<i8")))
        if offsets is None and (Kind.SUPERSEDED, NO_FIELD) in directory:
            self.superseded += map(tuple, _whole(index, directory, Kind.SUPERSEDED, "<u8").reshape(-1, 3).tolist())

    def _grow(self, num_samples: int, ends: list[int]) -> None:
        """Take samples, and where their shards end."""
        if ends and ends[-1] > MAX_INT:
            raise LimitError(f"a container has at most 2^63 - 1 samples, not {ends[-1]:,}")
        self.num_samples += num_samples
        self._starts += ends

    def move(self, number: int, offset: int) -> None:
        """Say where the blocks of a field are, whose offsets were counted from its first block so far."""
        self._moved[number] = offset

    def _block_pieces(self) -> Iterable[bytes]:
        if not self._moved:
            return self._blocks.pieces()
        blocks = np.frombuffer(self._blocks.read(0, self._blocks.nbytes), BLOCK_ENTRY).reshape(-1, len(self.fields))
        blocks = blocks.copy()
        for number, offset in self._moved.items():
            blocks["offset"][:, number] += np.uint64(offset)
        return (blocks.tobytes(),)

    def write(
        self,
        sink: Sink,
        offset: int,
        *,
        data_end: int,
        earlier: Sequence[Earlier] = (),
        before: Superblock | None = None,
    ) -> Superblock:
        """Write the segment at `offset`, and say what the superblock is to be.

        Args:
            sink: takes the bytes; nothing is synced.
            offset: a multiple of 4096.
            data_end: offset behind the last block; the committed end is behind it and the segment.
            earlier: the other live segments.
            before: the superblock of the generation before, None for a new container.
        """
        sections = dict(sorted(self._sections().items()))
        sizes = [nbytes for nbytes, _ in sections.values()]
        nbytes = directory_nbytes(len(sections), len(earlier))
        offsets, end = place_sections(offset + nbytes, sizes)
        run = Joined(sink, offset + nbytes)
        entries = tuple(
            SectionEntry(kind, number, at, size, write_section(run, at, size, pieces))
            for at, ((kind, number), (size, pieces)) in zip(offsets, sections.items(), strict=True)
        )
        directory = Directory(
            offset,
            self._position.first_sample,
            self.num_samples,
            self._position.first_shard,
            len(self._starts) - 1,
            end - offset,
            len(self.fields),
            entries,
            tuple(earlier),
        ).encode()
        run.end(directory)
        committed_end = pad(max(end, data_end), PART_ALIGNMENT)
        digest = sum128(directory)
        if before is None:
            return Superblock(uuid_of(digest), 1, committed_end, offset, nbytes, digest)
        return Superblock(before.uuid, before.generation + 1, committed_end, offset, nbytes, digest)

    def _sections(self) -> dict[type_section, tuple[int, Iterable[bytes]]]:
        """Each section: its length, and its bytes in pieces of whole pages."""
        found: dict[type_section, tuple[int, Iterable[bytes]]] = {}

        def put(kind: Kind, data: bytes, number: int = NO_FIELD) -> None:
            found[kind, number] = (len(data), (data,))

        put(Kind.SCHEMA, self._schema)
        put(Kind.ATTRS, self.attrs)
        put(Kind.SHARD_STARTS, np.array(self._starts, "<u8").tobytes())
        found[Kind.BLOCKS, NO_FIELD] = (self._blocks.nbytes, self._block_pieces())
        for number, columns in enumerate(self._columns):
            for kind, spool in columns.spools().items():
                found[kind, number] = (spool.nbytes, spool.pieces())
        for number, data in self.dictionaries.items():
            put(Kind.DICTIONARY, data, number)
        if self._keys is not None:
            self._put_keys(self._keys, found)
        if self.superseded:
            put(Kind.SUPERSEDED, np.array(sorted(self.superseded), "<u8").tobytes())
        return found

    def _put_keys(self, keys: _KeyTable, found: dict[type_section, tuple[int, Iterable[bytes]]]) -> None:
        run = keys.sorted()
        order = run.positions.astype(order_dtype(self.num_samples))
        found[Kind.KEY_BYTES, NO_FIELD] = (keys.text.nbytes, keys.text.pieces())
        found[Kind.KEY_OFFSETS, NO_FIELD] = (keys.ends.nbytes, keys.ends.pieces())
        found[Kind.KEY_HASHES, NO_FIELD] = (run.hashes.nbytes, _pieces(run.hashes.astype("<u8", copy=False)))
        found[Kind.KEY_ORDER, NO_FIELD] = (order.nbytes, _pieces(order))


def _whole(index: Index, directory: Directory, kind: Kind, dtype: Any, number: int = NO_FIELD) -> NDArray[Any]:
    """A section of a live segment, proven as a whole."""
    section = index.section(directory, kind, number)
    if section.nbytes <= _SPOOL_NBYTES:  # by one read: 27 pages in 10 µs instead of 82
        return np.frombuffer(index.read_section(directory, kind, number), dtype)
    section.ensure_all()
    return section.array(dtype)


def _pieces(array: NDArray[Any]) -> Iterator[bytes]:
    data = byte_view(array)
    return (bytes(data[start : start + _PIECE_NBYTES]) for start in range(0, data.nbytes, _PIECE_NBYTES))


def planned_segment_nbytes(
    fields: Sequence[Field],
    attrs: Mapping[str, Any],
    *,
    num_samples: int,
    num_shards: int,
    num_groups: Sequence[int],
    key_nbytes: int | None,
    dictionaries: Mapping[int, bytes] | None = None,
) -> int:
    """Length of the only segment of a container that is not yet written, so that blocks can be placed behind it.

    Args:
        fields, attrs: as they will be.
        num_samples, num_shards: of the container.
        num_groups: of each field, over all shards.
        key_nbytes: length of all keys, None without keys.
        dictionaries: of fields whose codec has one.
    """
    sizes = section_sizes(fields, num_samples, num_shards, key_nbytes=key_nbytes)
    sizes[Kind.SCHEMA, NO_FIELD] = len(encode_schema(fields))
    sizes[Kind.ATTRS, NO_FIELD] = len(encode_attrs(attrs))
    for number, groups in enumerate(num_groups):
        sizes[Kind.CHUNK_SUMS, number] = 8 * groups
    for number, dictionary in (dictionaries or {}).items():
        sizes[Kind.DICTIONARY, number] = len(dictionary)
    _, end = place_sections(directory_nbytes(len(sizes), 0), [size for _, size in sorted(sizes.items())])
    return end
