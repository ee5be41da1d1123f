#!/usr/bin/env python3
"""A plain decoder of chunkstore containers, format version 1, in the order of chunkstore-1.md.

To be read beside the specification; a second opinion on the package, with which it shares no line. It is slow. Every
check that section 14 asks of a reader is here, and `verify` proves the coverage of section 13. It needs NumPy and
xxhash; the codecs zstd and blosc2 need the packages zstandard and blosc2.

    read_chunkstore.py [--verify] FILE      print what is in the container, and check every byte of it
"""

from __future__ import annotations

import json
import math
import mmap
import re
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest as xxh3_64
from xxhash import xxh3_128_digest as xxh3_128


class FormatError(ValueError):
    """The bytes are not what the specification says. Below are the names of section 14."""


NotAContainerError = type("NotAContainerError", (FormatError,), {})
UnsupportedVersionError = type("UnsupportedVersionError", (FormatError,), {})
UnsupportedFeatureError = type("UnsupportedFeatureError", (FormatError,), {})
LimitError = type("LimitError", (FormatError,), {})
CorruptError = type("CorruptError", (FormatError,), {})
TruncatedError = type("TruncatedError", (CorruptError,), {})


def need(condition: object, message: str, error: type = CorruptError) -> None:
    if not condition:
        raise error(message)


# ==== 2 Conventions. "Every number is little-endian": hence the "<" of every struct and dtype below.


def pad(x: int, a: int) -> int:
    return -(-x // a) * a


def parse_text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise CorruptError(f"not UTF-8: {error}") from error


# "A reader must refuse repeated names in an object, NaN, Infinity, [...] and anything behind the value."
def parse_json(raw: bytes) -> dict[str, Any]:
    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        need(len(dict(pairs)) == len(pairs), "JSON: repeated name")
        return dict(pairs)

    text = parse_text(raw)
    brackets = re.sub(r'"(?:[^"\\]|\\.)*"|[^\[\]{}"]+', "", text)  # what is in quotation marks does not count
    need(max(accumulate(1 if c in "[{" else -1 for c in brackets), default=0) <= 64, "levels of JSON", LimitError)
    try:
        value = json.loads(text, object_pairs_hook=members, parse_constant=lambda x: need(False, f"JSON: {x}"))
    except ValueError as error:
        raise CorruptError(f"JSON: {error}") from error
    need(isinstance(value, dict), "JSON: not an object")
    return value


# ==== 4 Superblocks. "A reader checks each of the two in this order: magic, major, checksum, then the values."


def superblock(raw: bytes) -> dict[str, Any]:
    names = "magic major minor incompatible read_only compatible uuid generation end offset nbytes digest"
    sb = dict(zip(names.split(), struct.unpack_from("<8sHH4xQQQ16sQQQQ16s", raw), strict=True))
    need(sb["magic"] == b"\x89CKS\r\n\x1a\n", "no magic", NotAContainerError)
    need(sb["major"] == 1, f"format major {sb['major']}", UnsupportedVersionError)
    need(xxh3_128(raw[:4080]) == raw[4080:], "checksum of a superblock")
    need(sb["end"] <= 2**63 - 4096 and sb["nbytes"] <= 16 << 20, "committed end or directory", LimitError)
    need(sb["generation"] >= 1 and sb["end"] % 4096 == 0, "generation or committed end")
    need(sb["offset"] >= 8192 and sb["offset"] % 4096 == 0 and sb["nbytes"] >= 64, "place of the directory")
    need(sb["offset"] + sb["nbytes"] <= sb["end"], "directory behind the committed end")
    return sb


# "The reader uses the valid one with the higher generation, A when both have the same. If neither is valid: no magic in
# either is 'not a container'; otherwise the error of A counts, or that of B if A has no magic."
def choose_superblock(head: bytes) -> dict[str, Any]:
    valid, errors = [], []
    for raw in (head[:4096], head[4096:]):
        try:
            valid.append(superblock(raw))
        except FormatError as error:
            errors.append(error)
    if not valid:
        raise errors[isinstance(errors[0], NotAContainerError)]
    return max(valid, key=lambda sb: sb["generation"])  # the first of equals


# ==== 5 Index segments

SCHEMA, ATTRS, SHARD_STARTS, BLOCKS, CHUNK_SUMS, OFFSETS, SHAPES, STORED_OFFSETS, DICTIONARY = range(1, 10)
KEY_BYTES, KEY_OFFSETS, KEY_HASHES, KEY_ORDER, SUPERSEDED = range(10, 15)
NO_FIELD = 0xFFFFFFFF


class Segment:
    # 5.1: "its xxh3-128, then its values in the order of the table, then each entry"
    def __init__(self, data: mmap.mmap, end: int, offset: int, nbytes: int, digest: bytes) -> None:
        self.data, self.offset, self.sections, self.gaps, self.checked = data, offset, {}, [], {}
        need(nbytes <= 16 << 20, "directory", LimitError)
        need(offset >= 8192 and offset % 4096 == 0 and nbytes >= 64 and offset + nbytes <= end, "place of a directory")
        head = data[offset : offset + nbytes]
        need(xxh3_128(head) == digest, "checksum of a directory")
        magic, self.first, self.num, self.first_shard, self.num_shards, self.nbytes, self.num_fields, *more = (
            struct.unpack_from("<8s5Q3I", head)
        )
        num_sections, num_earlier = more
        need(magic == b"CKS-INDX", "magic of a directory")
        need(self.first + self.num < 2**63 and self.num_fields <= 65535 and num_earlier < 64, "counts", LimitError)
        need((self.num > 0) <= self.num_shards <= self.num and self.num_fields > 0, "counts")
        need(self.nbytes % 4096 == 0 and offset + self.nbytes <= end, "nbytes of a segment")
        need(nbytes == 64 + 32 * num_sections + 48 * num_earlier, "nbytes of a directory")
        self.earlier = list(struct.iter_unpack("<QQQQ16s", head[64 + 32 * num_sections :]))
        # 5.2: "The sections lie in the order of the table, without other gaps: the first at
        # pad(segment offset + directory nbytes, 64), each next at pad(end of the page sums before, 64)."
        before, stop = (-1, -1), offset + nbytes
        for kind, f, at, size, sums_sum in struct.iter_unpack("<IIQQQ", head[64 : 64 + 32 * num_sections]):
            need((kind, f) > before, "order of the sections")
            need(at == pad(stop, 64), f"offset of section {kind}")
            need(kind not in (SCHEMA, ATTRS, DICTIONARY) or size <= 16 << 20, f"section {kind}", LimitError)
            sums_at = at + pad(size, 8)
            self.gaps += [(stop, at), (at + size, sums_at)]
            before, stop = (kind, f), sums_at + 8 * -(-size // 65536)
            self.sections[kind, f] = (at, size, sums_at, stop, sums_sum)
        need(offset + self.nbytes == pad(stop, 4096), "nbytes of a segment")
        self.gaps.append((stop, offset + self.nbytes))

    # "A page of a section [is checked] before a number is taken from it." Here: all pages of it.
    def section(self, kind: int, f: int = NO_FIELD) -> bytes:
        if (kind, f) not in self.checked:
            at, size, sums_at, stop, sums_sum = self.sections[kind, f]
            raw, sums = self.data[at : at + size], self.data[sums_at:stop]
            need(xxh3_64(sums) == sums_sum, f"page sums of section {kind}")
            for p, (page_sum,) in enumerate(struct.iter_unpack("<Q", sums)):
                need(xxh3_64(raw[65536 * p : 65536 * (p + 1)]) == page_sum, f"page {p} of section {kind}")
            self.checked[kind, f] = raw
        return self.checked[kind, f]

    def numbers(self, kind: int, f: int = NO_FIELD, dtype: str = "<u8") -> list[int]:
        raw = self.section(kind, f)
        return np.ndarray((len(raw) // int(dtype[-1]),), dtype, raw).tolist()

    def ascending(self, kind: int, f: int = NO_FIELD, dtype: str = "<u8") -> list[int]:
        x = self.numbers(kind, f, dtype)
        need(x[0] >= 0 and all(a <= b for a, b in pairwise(x)), f"section {kind} descends")
        return x

    # 5.3: "A reader must refuse a segment in which a section is missing or has another length than the table says, one
    # with a field section for a field that does not call for it or does not exist, ..."
    def check_lengths(self, fields: list[Field]) -> None:
        have = {place: size for place, (_, size, *_) in self.sections.items() if SCHEMA <= place[0] <= SUPERSEDED}
        n, s, any_size = self.num, self.num_shards, lambda kind, f: max(1, have.get((kind, f), 1))
        want = {(kind, NO_FIELD): have.get((kind, NO_FIELD), -1) for kind in (SCHEMA, ATTRS)}
        want |= {(SHARD_STARTS, NO_FIELD): 8 * (s + 1), (BLOCKS, NO_FIELD): 40 * s * len(fields)}
        for f, field in enumerate(fields):
            want[CHUNK_SUMS, f] = have.get((CHUNK_SUMS, f), -1)  # follows from BLOCKS: see check_blocks
            want |= {(OFFSETS, f): 8 * (n + 1)} if field.v else {}
            want |= {(SHAPES, f): 8 * n * field.v} if field.v > 1 else {}
            want |= {(STORED_OFFSETS, f): 8 * (n + 1)} if field.codec != "raw" else {}
            if (DICTIONARY, f) in have and field.codec not in ("raw", "zlib", "blosc2"):
                want[DICTIONARY, f] = any_size(DICTIONARY, f)
        if any(KEY_BYTES <= kind <= KEY_ORDER for kind, _ in have):
            sizes = (have.get((KEY_BYTES, NO_FIELD), -1), 8 * (n + 1), 8 * n, (4 if n < 2**32 else 8) * n)
            want |= {(KEY_BYTES + k, NO_FIELD): size for k, size in enumerate(sizes)}
        if (SUPERSEDED, NO_FIELD) in have:
            want[SUPERSEDED, NO_FIELD] = pad(have[SUPERSEDED, NO_FIELD], 24)
        need(have == want, f"sections missing, not called for, or of a wrong length: {have.items() ^ want.items()}")

    # 7: "It begins with the first sample of the directory, ends with first sample + num samples, [...] ascending."
    # "A block begins at a multiple of 4096, or exactly where the block of the same field in the shard before ends."
    def check_blocks(self, fields: list[Field], end: int, ends: list[int]) -> None:
        self.starts = self.numbers(SHARD_STARTS)
        need((self.starts[0], self.starts[-1]) == (self.first, self.first + self.num), "ends of SHARD_STARTS")
        need(all(a < b for a, b in pairwise(self.starts)), "SHARD_STARTS do not ascend")
        entries = list(struct.iter_unpack("<QQQQQ", self.section(BLOCKS)))
        self.blocks = [entries[s * len(fields) :][: len(fields)] for s in range(self.num_shards)]
        for f, field in enumerate(fields):
            groups = 0
            for s, (offset, nbytes, _, rows_per_group, first_group) in enumerate(row[f] for row in self.blocks):
                m = self.starts[s + 1] - self.starts[s]
                need(offset >= 8192 and offset + nbytes <= end, "block outside of the container")
                need(offset % 4096 == 0 or offset == ends[f], "where a block begins")
                need(rows_per_group >= 1 and first_group == groups, "groups of a block")
                fixed = field.codec == "raw" and not field.v  # 8.1: "B.nbytes is m * row nbytes"
                need(not fixed or nbytes == m * field.item_nbytes, "nbytes of a block")
                groups, ends[f] = groups + -(-m // rows_per_group), offset + nbytes
            need(self.sections[CHUNK_SUMS, f][1] == 8 * groups, "length of CHUNK_SUMS")


# ==== 6 Schema and attributes, 6.1 Dtypes

FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
NUMPY = {f"{kind}{8 * n}": f"<{kind[0]}{n}" for kind in ("int", "uint") for n in (1, 2, 4, 8)}
NUMPY |= {f"float{8 * n}": f"<f{n}" for n in (2, 4, 8)} | {f"complex{8 * n}": f"<c{n}" for n in (8, 16)}
NUMPY |= {"bool": "?", "string": "u1", "bfloat16": "V2"} | dict.fromkeys(FLOAT8, "V1")
TIME = re.compile(r"(datetime|timedelta)64\[([1-9][0-9]{0,9})?(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\]")
WIDE = re.compile(r"(bytes|utf32)\[([1-9][0-9]{0,8})\]")


def numpy_dtype(name: str) -> np.dtype[Any]:
    time, wide = TIME.fullmatch(name), WIDE.fullmatch(name)
    if time and 2 <= int(time[2] or 2) < 2**31:
        return np.dtype(f"<{'M' if time[1] == 'datetime' else 'm'}8[{time[2] or ''}{time[3]}]")
    if wide and int(wide[2]) < 2**29:
        return np.dtype(f"{'S' if wide[1] == 'bytes' else '<U'}{wide[2]}")
    need(name in NUMPY, f"dtype {name!r}", UnsupportedFeatureError)
    return np.dtype(NUMPY[name])


class Field:
    def __init__(self, member: Any) -> None:
        need(isinstance(member, dict), "a field is not an object")
        self.name, self.dtype_name, self.shape, self.codec = map(member.get, ("name", "dtype", "shape", "codec"))
        need(all(isinstance(x, str) for x in (self.name, self.dtype_name, self.codec)), "name, dtype or codec")
        need(self.name and not re.search("[\x00-\x1f\x7f\ud800-\udfff]", self.name), f"name {self.name!r}")
        need(len(self.name.encode()) <= 255, f"name {self.name!r}", LimitError)
        self.dtype = numpy_dtype(self.dtype_name)
        need(isinstance(self.shape, list), "shape")
        need(all(d is None or (type(d) is int and d >= 0) for d in self.shape), f"shape {self.shape}")
        need(self.dtype_name != "string" or self.shape == [], "shape of a string")
        # 8.3: "A field of dtype string is stored as a ragged field of uint8 with v = 1 and item shape ()."
        shape = [None] if self.dtype_name == "string" else self.shape
        # 8.2: "Let v be one more than the place of the last one. The item shape is shape[v:]." Here v = 0: fixed shape.
        self.v = max((k + 1 for k, d in enumerate(shape) if d is None), default=0)
        self.lead, self.item_shape = shape[: self.v], shape[self.v :]
        need(len(shape) <= 32 and all(d < 2**63 for d in shape if d), f"shape {shape}", LimitError)
        need(self.dtype.itemsize * math.prod(d for d in shape if d) < 2**63, f"shape {shape}", LimitError)
        self.item_nbytes = self.dtype.itemsize * math.prod(self.item_shape)  # that of a row, if v = 0


# ==== 11 Codecs. "The decoded chunk is exactly the bytes of the row, and a decoder must produce no more than that."


def decode(codec: str, chunk: bytes, nbytes: int, dictionary: bytes | None) -> bytes:
    if codec == "raw" or nbytes == 0:  # "A row of 0 bytes has a chunk of 0 bytes."
        need(len(chunk) == nbytes, "nbytes of a chunk")
        return chunk
    try:
        if codec == "zlib":
            stream = zlib.decompressobj()
            raw = stream.decompress(chunk, nbytes + 1)  # one more, to see that there is no more
            need(stream.eof and not stream.unused_data, "the stream does not end with the chunk")
        elif codec == "zstd":
            import zstandard

            need(zstandard.frame_content_size(chunk) in (-1, nbytes), "content size of the frame")
            decoder = zstandard.ZstdDecompressor(zstandard.ZstdCompressionDict(dictionary) if dictionary else None)
            raw = decoder.decompress(chunk, max_output_size=nbytes, allow_extra_data=False)
        else:
            import blosc2

            need(struct.unpack("<4xI4xI", chunk[:16]) == (nbytes, len(chunk)), "head of the Blosc2 chunk")
            raw = blosc2.decompress(chunk)
    except ImportError:
        raise
    except Exception as error:  # each library has its own errors
        raise CorruptError(f"{codec}: {error}") from error
    need(len(raw) == nbytes, f"{codec}: {len(raw)} bytes, expected {nbytes}")
    return raw


# ==== 14 Reading


class Container:
    def __init__(self, path: str | Path) -> None:
        with open(path, "rb") as file:  # "1. Read the first 8192 bytes; choose the superblock (section 4)."
            head, size = file.read(8192), Path(path).stat().st_size
            has_magic = head and b"\x89CKS\r\n\x1a\n".startswith(head[:8])
            need(size >= 8192, f"{size} bytes", TruncatedError if has_magic else NotAContainerError)
            sb = choose_superblock(head)
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.generation, self.end, self.fingerprint = sb["generation"], sb["end"], sb["digest"].hex()
        # "2. Hold the committed end against the length of the file; check the flags."
        need(size >= self.end, f"{size} bytes, committed end {self.end}", TruncatedError)
        need(sb["incompatible"] == 0, f"flags {sb['incompatible']:#x}", UnsupportedFeatureError)
        # "3. Read the newest directory. Do the same for each earlier segment." 12: "The first of them begins with
        # sample 0 and shard 0; each next begins with the sample and the shard at which the one before ends."
        newest = Segment(self.data, self.end, sb["offset"], sb["nbytes"], sb["digest"])
        self.segments, self.num_samples, shards = [], 0, 0
        for offset, nbytes, first, num, digest in newest.earlier:
            self.segments.append(Segment(self.data, self.end, offset, nbytes, digest))
            need((self.segments[-1].first, self.segments[-1].num) == (first, num), "entry of an earlier segment")
        self.segments.append(newest)
        for segment in self.segments:
            need((segment.first, segment.first_shard) == (self.num_samples, shards), "order of the segments")
            self.num_samples, shards = self.num_samples + segment.num, shards + segment.num_shards
        # "4. Read SCHEMA; check which sections there are, and their lengths. Read and check SHARD_STARTS; then BLOCKS."
        need(all((SCHEMA, NO_FIELD) in segment.sections for segment in self.segments), "no SCHEMA")
        need(len({segment.section(SCHEMA) for segment in self.segments}) == 1, "SCHEMA differs between segments")
        members = parse_json(newest.section(SCHEMA)).get("fields")
        need(isinstance(members, list), "SCHEMA has no fields")
        need(all(segment.num_fields == len(members) for segment in self.segments), "number of fields")
        self.fields = [Field(member) for member in members]
        self.names = [field.name for field in self.fields]
        need(len(set(self.names)) == len(members), "names of fields are not unique")
        self.has_keys, ends = (KEY_BYTES, NO_FIELD) in newest.sections, [-1] * len(members)
        for segment in self.segments:
            segment.check_lengths(self.fields)
            segment.check_blocks(self.fields, self.end, ends)
            need(((KEY_BYTES, NO_FIELD) in segment.sections) == self.has_keys, "keys in some segments only")

    # "5. Everything else is checked where it is used."
    def attrs(self) -> dict[str, Any]:
        return parse_json(self.segments[-1].section(ATTRS))

    def rows(self, name: str) -> Iterator[Any]:  # an array for each row, a str for a string
        f = self.names.index(name)
        field = self.fields[f]
        need(field.codec in ("raw", "zlib", "zstd", "blosc2"), f"codec {field.codec!r}", UnsupportedFeatureError)
        for segment in self.segments:
            dictionary = segment.section(DICTIONARY, f) if (DICTIONARY, f) in segment.sections else None
            for s in range(segment.num_shards):
                edge, shape = self.edges(segment, s, f), self.shapes(segment, s, f)
                block = self.check_groups(segment, s, f, edge)
                for r in range(segment.starts[s + 1] - segment.starts[s]):
                    nbytes = field.dtype.itemsize * math.prod(shape(r))
                    raw = decode(field.codec, block[edge(r) : edge(r + 1)], nbytes, dictionary)
                    yield parse_text(raw) if field.dtype_name == "string" else np.ndarray(shape(r), field.dtype, raw)

    # 8.1, 8.2, 11: where chunk r of a block begins in it; edge(m) is the nbytes of the block
    def edges(self, segment: Segment, s: int, f: int) -> Callable[[int], int]:
        field, m = self.fields[f], segment.starts[s + 1] - segment.starts[s]
        if field.codec == "raw" and not field.v:
            return lambda r: r * field.item_nbytes
        kind, dtype, unit = (STORED_OFFSETS, "<u8", 1) if field.codec != "raw" else (OFFSETS, "<i8", field.item_nbytes)
        begins = segment.ascending(kind, f, dtype)[segment.starts[s] - segment.first :]
        need((begins[m] - begins[0]) * unit == segment.blocks[s][f][1], "nbytes of a block")
        return lambda r: (begins[r] - begins[0]) * unit

    # 8.2: "If v = 1 the row has the shape (O[i+1] - O[i], *item shape). If v > 1, SHAPES holds the first v dimensions
    # of each row, each at least 0; their product is O[i+1] - O[i], and where shape has a number, [it] equals it."
    def shapes(self, segment: Segment, s: int, f: int) -> Callable[[int], list[int]]:
        field, v, b = self.fields[f], self.fields[f].v, segment.starts[s] - segment.first
        offsets = segment.ascending(OFFSETS, f, "<i8") if v else []
        dims = segment.numbers(SHAPES, f, "<i8") if v > 1 else []

        def shape(r: int) -> list[int]:
            if v == 0:
                return field.item_shape
            count = offsets[b + r + 1] - offsets[b + r]
            lead = dims[(b + r) * v : (b + r + 1) * v] if v > 1 else [count]
            need(min(lead) >= 0 and math.prod(lead) == count, f"shape {lead} of {count} items")
            need(all(want in (None, d) for want, d in zip(field.lead, lead, strict=True)), f"shape {lead}")
            size = field.dtype.itemsize * math.prod(d for d in lead + field.item_shape if d)
            need(size < 2**63, f"shape {lead}", LimitError)
            return lead + field.item_shape

        return shape

    # 9: "The rows of a block are taken in groups of `rows per group` consecutive rows; the last group may have fewer."
    def check_groups(self, segment: Segment, s: int, f: int, edge: Callable[[int], int]) -> bytes:
        offset, nbytes, _, rows_per_group, first_group = segment.blocks[s][f]
        block, m = self.data[offset : offset + nbytes], segment.starts[s + 1] - segment.starts[s]
        sums = segment.numbers(CHUNK_SUMS, f)
        for g, r in enumerate(range(0, m, rows_per_group)):
            group = block[edge(r) : edge(min(m, r + rows_per_group))]
            need(xxh3_64(group) == sums[first_group + g], f"{self.names[f]}: chunk sum from row {r} of shard {s} on")
        return block

    # 10: "KEY_OFFSETS: where each key begins in KEY_BYTES, and then their total length; begins with 0 [...]"
    def segment_keys(self, segment: Segment) -> list[bytes]:
        at, raw = segment.ascending(KEY_OFFSETS), segment.section(KEY_BYTES)
        need(at[0] == 0 and at[-1] == len(raw), "ends of KEY_OFFSETS")
        keys = [raw[a:b] for a, b in pairwise(at)]
        need(all(len(key) <= 65535 for key in keys), "key", LimitError)
        need(all(key and b"\0" not in key and parse_text(key) for key in keys), "a key is empty or has U+0000")
        return keys

    def keys(self) -> list[str]:
        return [parse_text(key) for segment in self.segments if self.has_keys for key in self.segment_keys(segment)]

    # "Look its hash up in KEY_HASHES of each live segment, and compare the bytes of every key with that hash."
    def find(self, key: str) -> int | None:
        for segment in self.segments if self.has_keys else []:
            keys, order = self.segment_keys(segment), self.key_order(segment)
            for place, key_hash in enumerate(segment.numbers(KEY_HASHES)):
                need(order[place] < segment.num, "KEY_ORDER")
                if key_hash == xxh3_64(key.encode()) and keys[order[place]] == key.encode():
                    return segment.first + order[place]
        return None

    def key_order(self, segment: Segment) -> list[int]:
        return segment.numbers(KEY_ORDER, dtype="<u4" if segment.num < 2**32 else "<u8")

    # ==== 13 Coverage, and "6. A verifier checks all of that for the whole file, and what no reader needs."

    def verify(self) -> Iterator[str]:  # a line for each thing that is not as it must be
        if self.data[:4096] != self.data[4096:8192]:
            yield "superblocks A and B differ"
        if len(self.data) > self.end:
            yield f"{len(self.data) - self.end} bytes behind the committed end"
        parts = [(0, 8192)] + [(segment.offset, segment.offset + segment.nbytes) for segment in self.segments]
        for check in self.checks(parts):
            try:
                check()
            except FormatError as error:
                yield f"{type(error).__name__}: {error}"
        # "Superblocks, live segments, superseded regions and blocks (those with bytes) do not overlap; what lies
        # between them up to the committed end is padding: zero, and shorter than 4096 bytes each."
        stop = 0
        for start, part_stop in [*sorted(parts), (self.end, self.end)]:
            if start < stop or start - stop >= 4096 or any(self.data[stop:start]):
                yield f"overlap, gap, or padding that is not zero, between {stop} and {start}"
            stop = max(stop, part_stop)

    def checks(self, parts: list[tuple[int, int]]) -> Iterator[Callable[[], object]]:
        yield self.attrs
        for segment, before in zip(self.segments, [None, *self.segments], strict=False):
            yield partial(self.check_inner_padding, segment)
            for place in segment.sections:
                yield partial(segment.section, *place)
                yield partial(self.check_goes_on, segment, before, *place)
            for s in range(segment.num_shards):
                yield from (partial(self.check_block, segment, s, f, parts) for f in range(len(self.fields)))
            if (SUPERSEDED, NO_FIELD) in segment.sections:
                yield partial(self.check_superseded, segment, parts)
            if self.has_keys:
                yield partial(self.check_keys, segment)
        yield lambda: need(not self.has_keys or len(set(self.keys())) == self.num_samples, "a key occurs twice")

    def check_inner_padding(self, segment: Segment) -> None:
        need(not any(any(self.data[a:b]) for a, b in segment.gaps), "padding inside a segment is not zero")

    # 8.2, 11: "The first [...] of the container is 0, and that of a later segment is the last one of [that] before."
    # "A DICTIONARY is [...] the same in all live segments."
    def check_goes_on(self, segment: Segment, before: Segment | None, kind: int, f: int) -> None:
        if kind in (OFFSETS, STORED_OFFSETS):
            last = before.ascending(kind, f)[-1] if before else 0
            need(segment.ascending(kind, f)[0] == last, f"section {kind} does not go on from the segment before")
        dictionaries = {g.section(DICTIONARY, f) for g in self.segments if (DICTIONARY, f) in g.sections} or {b""}
        lacking = kind == DICTIONARY and any((DICTIONARY, f) not in g.sections for g in self.segments)
        need(len(dictionaries) == 1 and not lacking, "DICTIONARY differs between segments")

    def check_block(self, segment: Segment, s: int, f: int, parts: list[tuple[int, int]]) -> None:
        offset, nbytes, block_sum, *_ = segment.blocks[s][f]
        parts += [(offset, offset + nbytes)] if nbytes else []
        need(
            xxh3_64(self.data[offset : offset + nbytes]) == block_sum, f"{self.names[f]}: sum of the block of shard {s}"
        )
        edge, shape = self.edges(segment, s, f), self.shapes(segment, s, f)
        self.check_groups(segment, s, f, edge)
        for r in range(segment.starts[s + 1] - segment.starts[s] if self.fields[f].v else 0):
            need(math.prod(shape(r)) or edge(r) == edge(r + 1), "a row of 0 bytes has a chunk of some")

    def check_superseded(self, segment: Segment, parts: list[tuple[int, int]]) -> None:
        before = 0
        for offset, nbytes, region_sum in struct.iter_unpack("<QQQ", segment.section(SUPERSEDED)):
            need(offset % 4096 == 0 and nbytes % 4096 == 0 and nbytes > 0, "place of a superseded region")
            need(before < offset and offset + nbytes <= self.end, "order of the superseded regions")
            parts.append((offset, offset + nbytes))
            need(xxh3_64(self.data[offset : offset + nbytes]) == region_sum, "sum of a superseded region")
            before = offset

    # 10: "KEY_HASHES: the xxh3-64 of each key, sorted ascending. Equal hashes are in the order of positions."
    def check_keys(self, segment: Segment) -> None:
        want = sorted((xxh3_64(key), i) for i, key in enumerate(self.segment_keys(segment)))
        have = list(zip(segment.numbers(KEY_HASHES), self.key_order(segment), strict=True))
        need(have == want, "KEY_HASHES or KEY_ORDER are not those of the keys")


read = Container


def main(arguments: list[str]) -> int:
    if len(arguments) not in (1, 2) or arguments[:-1] not in ([], ["--verify"]):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        container = read(arguments[-1])
        print(f"{container.num_samples} samples, generation {container.generation}, {container.fingerprint}")
        for field in container.fields:
            print(f"  field {field.name!r}: {field.dtype_name}, shape {field.shape}, codec {field.codec}")
        print(f"  keys: {container.has_keys}, attrs: {json.dumps(container.attrs(), ensure_ascii=False)[:1000]}")
        findings = list(container.verify()) if len(arguments) == 2 else []
    except FormatError as error:
        findings = [f"{type(error).__name__}: {error}"]
    print(*findings, sep="\n", end="\n" if findings else "")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
