"""What new shards put into the index: collected while blocks are written, then written as one segment.

The writer and the converter share it: both only say which block went where. Arrays that grow with the number of samples
are kept in memory up to a MiB each and in one unnamed temporary file beyond that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from chunkstore._storage.buffers import Buffer, byte_view
from chunkstore._storage.sink import Sink
from chunkstore._write.late import Spill
from chunkstore._write.sections import Joined, write_section
from chunkstore.errors import LimitError, SchemaError

_SPOOL_NBYTES: Final = 1 << 20
_PIECE_NBYTES: Final = 64 * PAGE_NBYTES
type_section = tuple[Kind, int]
ENDS: Final = (Kind.OFFSETS, Kind.STORED_OFFSETS)
"""Where rows end: each number is counted from the first row of the container."""


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
    def packed(cls, texts: Sequence[bytes]) -> Keys:
        """Keys from what `encode_key` gave for each."""
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
    """Bytes of one index array, which grows; what fills `_SPOOL_NBYTES` goes to the temporary file.

    Slices of it are copies.
    """

    def __init__(self, spill: Spill) -> None:
        self._spill = spill
        self._tail = bytearray()
        self._spilled: list[int] = []  # where in the spill each full piece begins

    def __len__(self) -> int:
        return len(self._spilled) * _SPOOL_NBYTES + len(self._tail)

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(len(self))
        if stop <= start:  # as a hostile KEY_OFFSETS may ask
            return b""
        first, behind = start // _SPOOL_NBYTES, -(-stop // _SPOOL_NBYTES)
        pieces = b"".join(map(self._piece, range(first, behind)))
        return pieces[start - first * _SPOOL_NBYTES : stop - first * _SPOOL_NBYTES]

    def _piece(self, number: int) -> bytes | bytearray:
        full = number < len(self._spilled)
        return self._spill.read(self._spilled[number], _SPOOL_NBYTES) if full else self._tail

    def append(self, data: Buffer) -> None:
        """Take bytes as they will be in the file."""
        self._tail += byte_view(data)
        while len(self._tail) >= _SPOOL_NBYTES:
            where = self._spill.reserve(_SPOOL_NBYTES)
            self._spill.pwrite(where, self._tail[:_SPOOL_NBYTES])
            self._spilled.append(where)
            del self._tail[:_SPOOL_NBYTES]

    def add(self, values: NDArray[Any]) -> None:
        """Take numbers of new samples."""
        self.append(np.ascontiguousarray(values, values.dtype.newbyteorder("<")))

    def absorb(self, stored: NDArray[Any]) -> None:
        """Take what a live segment has."""
        self.append(stored)


class _Ends(_Spool):
    """One of `ENDS`. In front of the ends stands where the first row begins."""

    def __init__(self, spill: Spill, first: int) -> None:
        super().__init__(spill)
        self._last = first
        self.append(np.int64(first).tobytes())

    def add(self, sizes: NDArray[Any]) -> None:
        ends = np.cumsum(sizes, dtype=np.int64) + self._last
        # A sum that passes 2^63 - 1 is negative at first, for no row has more items than that.
        if ends.min() < 0:
            raise self._too_many()
        self._go_on(ends)

    def absorb(self, stored: NDArray[Any]) -> None:
        first, last = stored.item(0), stored.item(-1)
        # What a hostile one wraps is found by `verify`: it is no sum of too many.
        if first >= 0 and self._last + last - first > MAX_INT:
            raise self._too_many()
        self._go_on(stored[1:] - first + self._last)

    def _go_on(self, ends: NDArray[np.int64]) -> None:
        super().add(ends)
        self._last = int(ends[-1]) & MAX_INT if len(ends) else self._last

    @staticmethod
    def _too_many() -> LimitError:
        return LimitError("a ragged field has at most 2^63 - 1 items in a container")


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
        self._text = _Spool(spill)
        self._ends = _Spool(spill)
        self._ends.append(bytes(8))
        self._num_keys = 0
        self._runs: list[_Run] = []

    def add(self, keys: Keys) -> None:
        hashes = keys.hashes()
        order = np.argsort(hashes, kind="stable")
        run = _Run(hashes[order], order + self._num_keys)
        self._ends.append((keys.offsets[1:] + len(self._text)).astype("<u8"))
        self._text.append(keys.text)
        self._num_keys += len(keys)
        self._refuse_duplicates(run)
        self._runs.append(run)
        while len(self._runs) > 1 and len(self._runs[-2].hashes) < 2 * len(self._runs[-1].hashes):
            self._merge_last()

    def _refuse_duplicates(self, new: _Run) -> None:
        for place in np.flatnonzero(new.hashes[1:] == new.hashes[:-1]).tolist():
            self._refuse_equal(int(new.positions[place]), int(new.positions[place + 1]))
        for run in self._runs:
            places = np.searchsorted(run.hashes, new.hashes)
            places[places == len(run.hashes)] = 0
            for mine in np.flatnonzero(run.hashes[places] == new.hashes).tolist():
                self._refuse_equal(int(run.positions[places[mine]]), int(new.positions[mine]))

    def _refuse_equal(self, first: int, second: int) -> None:
        if self._key(first) == self._key(second):
            text = self._key(first).decode("utf-8", "backslashreplace")
            raise SchemaError(f"samples {first} and {second} have the same key {text!r}; keys must be unique")

    def _key(self, position: int) -> bytes:
        start, stop = np.frombuffer(self._ends[8 * position : 8 * position + 16], "<u8").tolist()
        return self._text[start:stop]

    def _merge_last(self) -> None:
        second, first = self._runs.pop(), self._runs.pop()
        hashes = np.concatenate([first.hashes, second.hashes])
        order = np.argsort(hashes, kind="stable")  # on two sorted runs this is one merge
        self._runs.append(_Run(hashes[order], np.concatenate([first.positions, second.positions])[order]))

    def sections(self) -> dict[type_section, memoryview | _Spool]:
        """The bytes of each section of keys."""
        while len(self._runs) > 1:
            self._merge_last()
        run = self._runs[0] if self._runs else _Run(np.zeros(0, np.uint64), np.zeros(0, np.int64))
        return {
            (Kind.KEY_BYTES, NO_FIELD): self._text,
            (Kind.KEY_OFFSETS, NO_FIELD): self._ends,
            (Kind.KEY_HASHES, NO_FIELD): byte_view(run.hashes.astype("<u8", copy=False)),
            (Kind.KEY_ORDER, NO_FIELD): byte_view(run.positions.astype(order_dtype(self._num_keys))),
        }


@dataclass(frozen=True)
class Position:
    """Where a new segment goes on: what the segments before it describe."""

    first_sample: int = 0
    first_shard: int = 0
    ends: Mapping[type_section, int] = field(default_factory=dict)
    """Where each section of `ENDS` goes on."""


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
        ends = self._position.ends
        self._columns = {
            section: _Ends(self._spill, ends.get(section, 0)) if section[0] in ENDS else _Spool(self._spill)
            for section in _column_sections(fields)
        }
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
        entries = [self._add_block(number, block, num_samples) for number, block in enumerate(blocks)]
        self._blocks.append(np.array(entries, BLOCK_ENTRY))
        self._grow(num_samples, [self._starts[-1] + num_samples])

    def _add_block(self, number: int, block: Block, num_samples: int) -> tuple[int, int, int, int, int]:
        """Take one block; its entry for BLOCKS."""
        first_group = self._num_sums(number)
        arrays = {
            Kind.CHUNK_SUMS: block.group_sums,
            Kind.OFFSETS: block.counts,
            Kind.SHAPES: block.shapes,
            Kind.STORED_OFFSETS: block.stored,
        }
        for kind, values in arrays.items():
            column = self._columns.get((kind, number))
            if column is not None and values is not None:
                column.add(values)
        return block.offset, block.nbytes, block.sum, rows_per_group(num_samples, block.nbytes), first_group

    def _num_sums(self, number: int) -> int:
        return len(self._columns[Kind.CHUNK_SUMS, number]) // 8

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
        for number in range(len(self.fields)):
            blocks["first_group"][:, number] += self._num_sums(number)
        for (kind, number), column in self._columns.items():
            column.absorb(_whole(index, directory, kind, "<i8", number))
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

    def _moved_blocks(self) -> memoryview:
        blocks = np.frombuffer(self._blocks[:], BLOCK_ENTRY).reshape(-1, len(self.fields)).copy()
        for number, offset in self._moved.items():
            blocks["offset"][:, number] += np.uint64(offset)
        return byte_view(blocks)

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
        sections = sorted(self._sections().items())
        nbytes = directory_nbytes(len(sections), len(earlier))
        offsets, end = place_sections(offset + nbytes, [len(data) for _, data in sections])
        run = Joined(sink, offset + nbytes)
        entries = tuple(
            SectionEntry(kind, number, at, len(data), write_section(run, at, len(data), _pages(data)))
            for at, ((kind, number), data) in zip(offsets, sections, strict=True)
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

    def _sections(self) -> dict[type_section, memoryview | _Spool]:
        """The bytes of each section."""
        found: dict[type_section, memoryview | _Spool] = {
            (Kind.SCHEMA, NO_FIELD): memoryview(self._schema),
            (Kind.ATTRS, NO_FIELD): memoryview(self.attrs),
            (Kind.SHARD_STARTS, NO_FIELD): byte_view(np.array(self._starts, "<u8")),
            (Kind.BLOCKS, NO_FIELD): self._moved_blocks() if self._moved else self._blocks,
            **self._columns,
        }
        for number, data in self.dictionaries.items():
            found[Kind.DICTIONARY, number] = memoryview(data)
        if self._keys is not None:
            found.update(self._keys.sections())
        if self.superseded:
            found[Kind.SUPERSEDED, NO_FIELD] = byte_view(np.array(sorted(self.superseded), "<u8"))
        return found


def _column_sections(fields: Sequence[Field]) -> list[type_section]:
    """The sections that grow with the samples of one field each."""
    sections = [section for section in section_sizes(fields, 0, 0, key_nbytes=None) if section[1] != NO_FIELD]
    return [*sections, *((Kind.CHUNK_SUMS, number) for number in range(len(fields)))]


def _whole(index: Index, directory: Directory, kind: Kind, dtype: Any, number: int = NO_FIELD) -> NDArray[Any]:
    """A section of a live segment, proven as a whole."""
    section = index.section(directory, kind, number)
    if section.nbytes <= _SPOOL_NBYTES:  # by one read: 27 pages in 10 µs instead of 82
        return np.frombuffer(index.read_section(directory, kind, number), dtype)
    section.ensure_all()
    return section.array(dtype)


def _pages(data: memoryview | _Spool) -> Iterator[bytes | memoryview]:
    """The bytes of a section in pieces of whole pages, but for the last."""
    return (data[start : start + _PIECE_NBYTES] for start in range(0, len(data), _PIECE_NBYTES))


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
