"""Build containers byte for byte from spec/chunkstore-1.md, without the package: a second opinion on its writer.

An `Image` keeps the place of everything that it wrote, so that a vector can change one number and `seal` can then
repair the checksums above it: exactly one thing is wrong.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest, xxh3_128_digest

NO_FIELD = 0xFFFFFFFF
SCHEMA, ATTRS, SHARD_STARTS, BLOCKS, CHUNK_SUMS, OFFSETS, SHAPES, STORED_OFFSETS, DICTIONARY = range(1, 10)
KEY_BYTES, KEY_OFFSETS, KEY_HASHES, KEY_ORDER, SUPERSEDED = range(10, 15)
WIDTHS = {"bool": 1, "string": 1, "bfloat16": 2, "complex64": 8, "complex128": 16}

Place = tuple[int, int]
Sections = dict[Place, bytes]


def pad(x: int, a: int) -> int:
    """Return the smallest multiple of `a` that is not below `x`."""
    return (x + a - 1) // a * a


def u64s(*numbers: int) -> bytes:
    """Encode numbers as u64, little-endian."""
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def running(counts: Iterable[int]) -> list[int]:
    """Return the sums of the first 0, 1, 2 ... counts."""
    return list(accumulate(counts, initial=0))


def compact_json(value: Any) -> bytes:
    """Encode JSON without blanks and with non-ASCII characters as they are; half a surrogate pair is its escape."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "backslashreplace")


def width(dtype: str) -> int:
    """Return the nbytes of an element (section 6.1)."""
    if dtype in WIDTHS:
        return WIDTHS[dtype]
    if match := re.fullmatch(r"(bytes|utf32)\[(\d+)\]", dtype):
        return int(match[2]) * (4 if match[1] == "utf32" else 1)
    if dtype.startswith("float8"):
        return 1
    return int(re.findall(r"\d+", dtype)[0]) // 8


def zlib_stored(raw: bytes) -> bytes:
    """One zlib stream of a single stored block (RFC 1950, 1951): its bytes depend on no library version."""
    head = b"\x78\x01\x01" + struct.pack("<HH", len(raw), len(raw) ^ 0xFFFF)
    return head + raw + struct.pack(">I", zlib.adler32(raw))


def zstd_raw(raw: bytes) -> bytes:
    """One Zstandard frame of a single raw block (RFC 8878), content size in one byte."""
    return b"\x28\xb5\x2f\xfd\x20" + bytes([len(raw)]) + (len(raw) << 3 | 1).to_bytes(3, "little") + raw


def zstd_match(literals: bytes, offset: int, match_nbytes: int, content_nbytes: int) -> bytes:
    """One frame with one sequence: literals, then a match that reaches back by `offset`, into the dictionary.

    All three code tables are in RLE mode, so that the bit stream holds only the extra bits of the offset.
    """
    value = offset + 3
    code = value.bit_length() - 1
    bits = 1 << code | value - (1 << code)  # the stop bit stands right above the extra bits
    stream = bits.to_bytes(bits.bit_length() // 8 + 1, "little")
    sequences = bytes([1, 0b01010100, len(literals), code, match_nbytes - 3]) + stream
    block = bytes([len(literals) << 3]) + literals + sequences
    head = b"\x28\xb5\x2f\xfd\x20" + bytes([content_nbytes])
    return head + (len(block) << 3 | 2 << 1 | 1).to_bytes(3, "little") + block


ENCODERS: dict[str, Callable[[bytes], bytes]] = {"zlib": zlib_stored, "zstd": zstd_raw}


@dataclass
class Column:
    """One field with its rows: arrays (little-endian, any void or integer type of the right width) or texts."""

    name: str
    dtype: str
    shape: list[int | None]
    rows: Sequence[Any]
    codec: str = "raw"
    dictionary: bytes | None = None
    encode: Callable[[bytes], bytes] | None = None

    @property
    def varying(self) -> int:
        """Return `v` of section 8.2: 0 for a fixed shape, 1 for a string."""
        shape = [None] if self.dtype == "string" else self.shape
        return max((k + 1 for k, d in enumerate(shape) if d is None), default=0)

    def member(self) -> dict[str, Any]:
        """Return the field's object in SCHEMA."""
        return {"name": self.name, "dtype": self.dtype, "shape": self.shape, "codec": self.codec}

    def raw(self, i: int) -> bytes:
        """Return the decoded bytes of row `i`."""
        row = self.rows[i]
        return row.encode() if isinstance(row, str) else np.asarray(row).tobytes()

    def lead(self, i: int) -> list[int]:
        """Return the first `v` dimensions of row `i`."""
        row = self.rows[i]
        return [len(row.encode())] if isinstance(row, str) else list(np.shape(row)[: self.varying])

    def count(self, i: int) -> int:
        """Return the number of items of row `i`."""
        return int(np.prod(self.lead(i), dtype=np.int64))

    def stored(self, i: int) -> bytes:
        """Return the chunk of row `i`."""
        raw = self.raw(i)
        encode = self.encode or ENCODERS.get(self.codec)
        return encode(raw) if encode and raw else raw

    def digest(self) -> str:
        """Return the SHA-256 of all rows in canonical form (spec/vectors/README.md)."""
        total = hashlib.sha256()
        for i, row in enumerate(self.rows):
            dims = () if isinstance(row, str) else np.shape(row)
            total.update(u64s(len(dims), *dims, len(self.raw(i))) + self.raw(i))
        return total.hexdigest()


@dataclass
class Block:
    """One block entry: where it lies, its groups, and where its bytes are to be."""

    offset: int
    chunks: list[bytes]
    rows_per_group: int
    first_group: int

    @property
    def nbytes(self) -> int:
        """Return the nbytes of all chunks."""
        return sum(map(len, self.chunks))

    def group_sums(self) -> list[int]:
        """Return one xxh3-64 for each group of rows."""
        groups = range(0, len(self.chunks), self.rows_per_group)
        return [xxh3_64_intdigest(b"".join(self.chunks[g : g + self.rows_per_group])) for g in groups]

    def entry(self) -> bytes:
        """Encode the 40 bytes of BLOCKS."""
        block_sum = xxh3_64_intdigest(b"".join(self.chunks))
        return u64s(self.offset, self.nbytes, block_sum, self.rows_per_group, self.first_group)


def rows_per_group(m: int, x: int) -> int:
    """Return what a writer takes for a block of `m` rows and `x` bytes (section 9)."""
    return m if x == 0 else min(m, max(1, -(-4096 * m // x)))


@dataclass
class Segment:
    """Where everything of one written segment lies."""

    offset: int
    directory_nbytes: int
    nbytes: int
    first: int
    num: int
    places: dict[Place, tuple[int, int, int, int]] = field(default_factory=dict)  # at, nbytes, sums_at, entry_at
    earlier_at: int = 0
    superseded: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Image:
    """A container in memory, with the place of each structure."""

    data: bytearray
    live: list[Segment] = field(default_factory=list)
    blocks: list[list[Block]] = field(default_factory=list)  # shard by shard, all segments
    columns: list[Column] = field(default_factory=list)
    keys: list[str] | None = None
    attrs: dict[str, Any] = field(default_factory=dict)
    generation: int = 0
    uuid: bytes = bytes(16)
    superseded: list[tuple[int, int]] = field(default_factory=list)  # what the next segment is to list
    num_samples: int = 0

    # ---- writing ----

    def align(self) -> int:
        """Fill up with zeros to a multiple of 4096 and return that offset."""
        self.data += bytes(pad(len(self.data), 4096) - len(self.data))
        return len(self.data)

    def make_blocks(self, shards: list[tuple[int, int]]) -> list[list[Block]]:
        """Return the blocks of new shards, still without a place."""
        first = [0] * len(self.columns)
        table = []
        for start, stop in shards:
            row = []
            for f, column in enumerate(self.columns):
                chunks = [column.stored(i) for i in range(start, stop)]
                per_group = rows_per_group(len(chunks), sum(map(len, chunks)))
                row.append(Block(0, chunks, per_group, first[f]))
                first[f] += -(-len(chunks) // per_group)
            table.append(row)
        return table

    def place_blocks(self, table: list[list[Block]], at: int, by_field: bool) -> int:
        """Give each block its offset, from `at` on: field after field (converted) or shard after shard (streamed)."""
        rows = list(zip(*table, strict=True)) if by_field else [[block] for row in table for block in row]
        for run in rows:
            at = pad(at, 4096)
            for block in run:
                block.offset = at
                at += block.nbytes
        return at

    def write_blocks(self, table: list[list[Block]]) -> None:
        """Write all blocks to their places; the file grows as it must."""
        for block in (b for row in table for b in row):
            raw = b"".join(block.chunks)
            self.data += bytes(max(0, block.offset + len(raw) - len(self.data)))
            self.data[block.offset : block.offset + len(raw)] = raw

    def sections(self, shards: list[tuple[int, int]], table: list[list[Block]]) -> Sections:
        """Encode every section of a segment that describes these shards."""
        a, b = (shards[0][0], shards[-1][1]) if shards else (self.num_samples, self.num_samples)
        out: Sections = {
            (SCHEMA, NO_FIELD): compact_json({"fields": [column.member() for column in self.columns]}),
            (ATTRS, NO_FIELD): compact_json(self.attrs),
            (SHARD_STARTS, NO_FIELD): u64s(*(start for start, _ in shards), b),
            (BLOCKS, NO_FIELD): b"".join(block.entry() for row in table for block in row),
        }
        for f, column in enumerate(self.columns):
            out[CHUNK_SUMS, f] = u64s(*(x for row in table for x in row[f].group_sums()))
            if column.varying:
                out[OFFSETS, f] = u64s(*running(column.count(i) for i in range(b))[a:])
            if column.varying > 1:
                out[SHAPES, f] = u64s(*(d for i in range(a, b) for d in column.lead(i)))
            if column.codec != "raw":
                out[STORED_OFFSETS, f] = u64s(*running(len(column.stored(i)) for i in range(b))[a:])
            if column.dictionary is not None:
                out[DICTIONARY, f] = column.dictionary
        if self.keys is not None:
            out |= key_sections([key.encode() for key in self.keys[a:b]])
        if self.superseded:
            regions = [(at, n, xxh3_64_intdigest(self.data[at : at + n])) for at, n in sorted(self.superseded)]
            out[SUPERSEDED, NO_FIELD] = b"".join(u64s(*region) for region in regions)
        return out

    def write_segment(self, at: int, first: tuple[int, int], counts: tuple[int, int], sections: Sections) -> None:
        """Write a segment at `at` and make it the newest; `first`, `counts` are of (samples, shards)."""
        earlier, places = self.live, sorted(sections)
        nbytes = 64 + 32 * len(places) + 48 * len(earlier)
        segment = Segment(at, nbytes, 0, first[0], counts[0], superseded=self.superseded)
        stop = at + nbytes
        self.data += bytes(max(0, stop - len(self.data)))
        for k, place in enumerate(places):
            start, size = pad(stop, 64), len(sections[place])
            sums_at = start + pad(size, 8)
            stop = sums_at + 8 * -(-size // 65536)
            self.put(start, sections[place])
            segment.places[place] = (start, size, sums_at, at + 64 + 32 * k)
            self.put(at + 64 + 32 * k, struct.pack("<IIQQ", *place, start, size))
        segment.nbytes = pad(stop, 4096) - at
        segment.earlier_at = at + 64 + 32 * len(places)
        head = (b"CKS-INDX", first[0], counts[0], first[1], counts[1], segment.nbytes)
        self.put(at, struct.pack("<8s5Q4I", *head, len(self.columns), len(places), len(earlier), 0))
        for k, one in enumerate(earlier):
            entry = u64s(one.offset, one.directory_nbytes, one.first, one.num)
            self.put(segment.earlier_at + 48 * k, entry + bytes(16))
        self.put(at + segment.nbytes, b"")
        self.live = [*earlier, segment]

    def commit(self) -> None:
        """Write both superblocks of the next generation and repair every checksum."""
        end = self.align()
        self.generation += 1
        newest = self.live[-1]
        head = struct.pack("<8sHHI3Q", b"\x89CKS\r\n\x1a\n", 1, 0, 0, 0, 0, 0)
        tail = u64s(self.generation, end, newest.offset, newest.directory_nbytes)
        self.put(0, head + bytes(16) + tail)
        self.put(4096, head + bytes(16) + tail)
        self.seal("pages")
        if self.generation == 1:
            digest = bytearray(self.data[88:104])
            digest[6], digest[8] = 0x80 | digest[6] & 0x0F, 0x80 | digest[8] & 0x3F
            self.uuid = bytes(digest)
        self.put(40, self.uuid)
        self.put(4136, self.uuid)
        self.seal("superblocks")

    # ---- changing ----

    def put(self, at: int, raw: bytes) -> None:
        """Write bytes at an offset; the file grows with zeros where it must."""
        self.data += bytes(max(0, at + len(raw) - len(self.data)))
        self.data[at : at + len(raw)] = raw

    def seal(self, first_stage: str) -> None:
        """Repair checksums from a stage on: pages, tables, directories, superblocks."""
        stages = ("pages", "tables", "directories", "superblocks")
        for stage in stages[stages.index(first_stage) :]:
            getattr(self, f"_seal_{stage}")()

    def _seal_pages(self) -> None:
        for at, nbytes, sums_at, _ in (p for s in self.live for p in s.places.values()):
            for p, start in enumerate(range(0, nbytes, 65536)):
                page = self.data[at + start : at + min(start + 65536, nbytes)]
                self.put(sums_at + 8 * p, u64s(xxh3_64_intdigest(page)))

    def _seal_tables(self) -> None:
        for _, nbytes, sums_at, entry_at in (p for s in self.live for p in s.places.values()):
            sums = self.data[sums_at : sums_at + 8 * -(-nbytes // 65536)]
            self.put(entry_at + 24, u64s(xxh3_64_intdigest(sums)))

    def _seal_directories(self) -> None:
        newest = self.live[-1]
        for k, one in enumerate(self.live[:-1]):
            self.put(newest.earlier_at + 48 * k + 32, self.directory_digest(one))
        for at in (0, 4096):
            self.put(at + 88, self.directory_digest(newest))

    def _seal_superblocks(self) -> None:
        for at in (0, 4096):
            self.put(at + 4080, xxh3_128_digest(self.data[at : at + 4080]))

    def directory_digest(self, segment: Segment) -> bytes:
        """Return the xxh3-128 of a segment's directory as it now is."""
        return xxh3_128_digest(self.data[segment.offset : segment.offset + segment.directory_nbytes])


def key_sections(keys: list[bytes]) -> Sections:
    """Encode the four sections of keys (section 10)."""
    pairs = sorted((xxh3_64_intdigest(key), i) for i, key in enumerate(keys))
    return {
        (KEY_BYTES, NO_FIELD): b"".join(keys),
        (KEY_OFFSETS, NO_FIELD): u64s(*running(map(len, keys))),
        (KEY_HASHES, NO_FIELD): u64s(*(key_hash for key_hash, _ in pairs)),
        (KEY_ORDER, NO_FIELD): struct.pack(f"<{len(keys)}I", *(i for _, i in pairs)),
    }


Edit = Callable[[Sections], object]


def converted(
    columns: list[Column],
    shards: list[tuple[int, int]],
    keys: list[str] | None = None,
    attrs: dict[str, Any] | None = None,
    edit: Edit | None = None,
) -> Image:
    """Build a container with its index in front and one extent for each field."""
    image = Image(bytearray(8192), columns=columns, keys=keys, attrs=attrs or {})
    table = image.make_blocks(shards)
    counts = (shards[-1][1] if shards else 0, len(shards))
    # The lengths of the sections do not depend on where the blocks lie: a first try gives the size of the segment.
    trial = Image(bytearray(8192), columns=columns, keys=keys, attrs=attrs or {})
    for this in (trial, image):
        sections = image.sections(shards, table)
        if edit:
            edit(sections)
        this.write_segment(8192, (0, 0), counts, sections)
        image.place_blocks(table, this.live[-1].offset + this.live[-1].nbytes, by_field=True)
    image.align()
    image.write_blocks(table)
    image.blocks, image.num_samples = table, counts[0]
    image.commit()
    return image


def append(image: Image, shards: list[tuple[int, int]], replace: int = 0, by_field: bool = False) -> None:
    """Add shards as a streaming writer does: blocks, then a segment, then the superblocks.

    `replace` of the last live segments are superseded by the new one, which then describes their shards too.
    """
    table = image.make_blocks(shards)
    image.place_blocks(table, image.align(), by_field)
    image.write_blocks(table)
    image.blocks += table
    at = image.align()
    gone, image.live = image.live[len(image.live) - replace :], image.live[: len(image.live) - replace]
    image.superseded = [r for one in gone for r in [*one.superseded, (one.offset, one.nbytes)]]
    first = image.live[-1].first + image.live[-1].num if image.live else 0
    image.num_samples = shards[-1][1] if shards else image.num_samples
    edges = running(len(row[0].chunks) for row in image.blocks)
    kept = edges.index(first)
    mine, every = image.blocks[kept:], list(pairwise(edges))[kept:]
    for f in range(len(image.columns)):
        groups = 0
        for row in mine:
            row[f].first_group = groups
            groups += len(row[f].group_sums())
    sections = image.sections(every, mine)
    image.write_segment(at, (first, kept), (image.num_samples - first, len(mine)), sections)
    image.commit()


def streamed(
    columns: list[Column],
    shards: list[tuple[int, int]],
    keys: list[str] | None = None,
    attrs: dict[str, Any] | None = None,
    by_field: bool = False,
) -> Image:
    """Build a container whose index lies behind the data; `by_field`: with one extent for each field."""
    image = Image(bytearray(8192), columns=columns, keys=keys, attrs=attrs or {})
    append(image, shards, by_field=by_field)
    return image
