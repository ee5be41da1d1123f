#!/usr/bin/env python3
"""A plain decoder of chunkstore containers, format version 1, in the order of chunkstore-1.md, to be read beside it.

It makes every check that section 14 asks of a reader; what a verifier adds is in verify_chunkstore.py. It is a second
opinion on the package, with which it shares no line: made to be read, not to be fast.
"""

from __future__ import annotations

import json
import math
import mmap
import re
import struct
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest as xxh3_64
from xxhash import xxh3_128_digest as xxh3_128

FormatError = type("FormatError", (ValueError,), {})
NAMES = "NotAContainerError UnsupportedVersionError UnsupportedFeatureError LimitError TruncatedError CorruptError"
ERRORS = {name: type(name, (FormatError,), {}) for name in NAMES.split()}  # those of section 14


def need(what: str, *conditions: object, error: str = "CorruptError") -> None:
    if not all(conditions):
        raise ERRORS[error](what)


def attempt(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return function(*arguments, **options)
    except Exception as error:  # each library has its own
        raise ERRORS["CorruptError"](f"{type(error).__name__}: {error}") from error


# == 2 Conventions
def pad(x: int, a: int) -> int:
    return -(-x // a) * a


def parse_object(raw: bytes) -> dict[str, Any]:
    def unique(members: list[tuple[str, Any]]) -> dict[str, Any]:
        need("a name twice in one object", len(dict(members)) == len(members))
        return dict(members)

    def number(digits: str) -> float:
        need("a number beyond float64", math.isfinite(float(digits)))
        return int(digits) if digits.lstrip("-").isdecimal() else float(digits)

    need("values of JSON", sum(map(raw.count, (b",", b"[", b"{"))) <= 1 << 20, error="LimitError")
    text = attempt(raw.decode)
    brackets = re.sub(r'"(?:[^"\\]|\\.)*"|[^][{}"]', "", text)  # without those in texts
    levels = max(accumulate(1 if bracket in "[{" else -1 for bracket in brackets), default=0)
    need(f"{levels} levels of JSON", levels <= 64, error="LimitError")
    numbers = dict.fromkeys(
        ("parse_int", "parse_float", "parse_constant"), number
    )  # `NaN` and `Infinity` are constants
    value = attempt(json.loads, text, object_pairs_hook=unique, **numbers)
    need("JSON that is no object", isinstance(value, dict))
    return value


# == 4 Superblocks
MAGIC = b"\x89CKS\r\n\x1a\n"


def parse_superblock(raw: bytes) -> tuple[Any, ...]:
    magic, major, flags, generation, end, offset, nbytes, digest = struct.unpack_from("<8sH6xQ32x4Q16s", raw)
    need("no magic", magic == MAGIC, error="NotAContainerError")
    need(f"format major {major}", major == 1, error="UnsupportedVersionError")
    need("checksum of a superblock", xxh3_128(raw[:4080]) == raw[4080:])
    need("values of a superblock", end <= 2**63 - 4096, nbytes <= 16 << 20, error="LimitError")
    need("values of a superblock", generation >= 1, end % 4096 == offset % 4096 == 0)
    need("place of a directory", nbytes >= 64, 8192 <= offset <= end - nbytes)
    return generation, end, flags, offset, nbytes, digest


def choose_superblock(head: bytes) -> tuple[Any, ...]:
    valid, errors = [], []
    for raw in (head[:4096], head[4096:]):
        try:
            valid.append(parse_superblock(raw))
        except FormatError as error:
            errors.append(error)
    if not valid:
        raise errors[isinstance(errors[0], ERRORS["NotAContainerError"])]
    return max(valid, key=lambda values: values[0])  # of equal generations the first


# == 5 Index segments
SCHEMA, ATTRS, SHARD_STARTS, BLOCKS, CHUNK_SUMS, OFFSETS, SHAPES, STORED_OFFSETS, DICTIONARY = range(1, 10)
KEY_BYTES, KEY_OFFSETS, KEY_HASHES, KEY_ORDER, SUPERSEDED = range(10, 15)
NONE = 0xFFFFFFFF


class Segment:
    def __init__(self, data: mmap.mmap, end: int, offset: int, nbytes: int, digest: bytes) -> None:  # 5.1, 5.2
        need("nbytes of a directory", nbytes <= 16 << 20, error="LimitError")
        need("place of a directory", nbytes >= 64, 8192 <= offset <= end - nbytes, offset % 4096 == 0)
        self.data, self.offset, self.directory = data, offset, data[offset : offset + nbytes]
        need("checksum of a directory", xxh3_128(self.directory) == digest)
        magic, *counts, num_sections, num_earlier = struct.unpack_from("<8s5Q3I", self.directory)
        self.first, self.num, self.first_shard, self.num_shards, self.nbytes, self.num_fields = counts
        need("magic of a directory", magic == b"CKS-INDX")
        need("samples or shards", self.first + self.num < 2**63, max(counts[2:4]) < 2**63, error="LimitError")
        need("nbytes of a segment", self.nbytes % 4096 == 0, self.nbytes <= end - offset)
        need("fields or segments", self.num_fields < 65536, num_earlier < 64, error="LimitError")
        need("nbytes of a directory", nbytes == 64 + 32 * num_sections + 48 * num_earlier)
        self.earlier = list(struct.iter_unpack("<4Q16s", self.directory[64 + 32 * num_sections :]))
        self.sections, before, stop = {}, (-1, -1), offset + nbytes
        for kind, f, at, size, total in struct.iter_unpack("<2I3Q", self.directory[64 : 64 + 32 * num_sections]):
            need(f"section {kind}", size <= 16 << 20 or kind not in (SCHEMA, ATTRS, DICTIONARY), error="LimitError")
            need(f"place of section {kind}", before < (kind, f), at == pad(stop, 64))
            before, stop = (kind, f), at + pad(size, 8) + 8 * -(-size // 65536)
            self.sections[kind, f] = (at, size, at + pad(size, 8), stop, total)
        need("nbytes of a segment", offset + self.nbytes == pad(stop, 4096))

    def section(self, kind: int, f: int = NONE, start: int = 0, stop: int | None = None) -> bytes:  # 5.2
        need(f"section {kind} is missing", (kind, f) in self.sections)
        at, size, sums_at, sums_stop, total = self.sections[kind, f]
        sums, stop = self.data[sums_at:sums_stop], size if stop is None else stop
        need(f"page sums of section {kind}", xxh3_64(sums) == total)
        for p in range(start // 65536, -(-stop // 65536)):
            page = self.data[at + 65536 * p : at + min(65536 * (p + 1), size)]
            need(f"page {p} of section {kind}", xxh3_64(page) == int.from_bytes(sums[8 * p : 8 * p + 8], "little"))
        return self.data[at + start : at + stop]

    def numbers(self, kind: int, f: int, start: int, stop: int, dtype: str = "<u8") -> list[int]:
        width = np.dtype(dtype).itemsize
        return np.frombuffer(self.section(kind, f, width * start, width * stop), dtype).tolist()


def check_sections(segment: Segment, fields: list[Field], has_keys: bool) -> None:  # 5.3
    have = {place: size for place, (_, size, *_) in segment.sections.items() if SCHEMA <= place[0] <= SUPERSEDED}
    n, s, some = segment.num, segment.num_shards, None  # some: any number of bytes
    want = {SCHEMA: some, ATTRS: some, SHARD_STARTS: 8 * (s + 1), BLOCKS: 40 * s * len(fields)}
    if has_keys:
        order_nbytes = (4 if n < 2**32 else 8) * n
        want |= {KEY_BYTES: some, KEY_OFFSETS: 8 * (n + 1), KEY_HASHES: 8 * n, KEY_ORDER: order_nbytes}
    if (SUPERSEDED, NONE) in have:
        want |= {SUPERSEDED: pad(have[SUPERSEDED, NONE], 24)}
    want = {(kind, NONE): nbytes for kind, nbytes in want.items()}
    for f, field in enumerate(fields):
        want |= {(CHUNK_SUMS, f): some}
        want |= {(OFFSETS, f): 8 * (n + 1)} if field.v else {}
        want |= {(SHAPES, f): 8 * n * field.v} if field.v > 1 else {}
        want |= {(STORED_OFFSETS, f): 8 * (n + 1)} if field.codec != "raw" else {}
        if have.get((DICTIONARY, f)) and field.codec not in ("raw", "zlib", "blosc2"):
            want |= {(DICTIONARY, f): some}
    need("sections that are missing, or not called for", have.keys() == want.keys())
    need("a section of a wrong length", all(want[place] in (some, have[place]) for place in want))


# == 6 Schema and attributes
FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
STORED_AS = {"string": "u1", "bfloat16": "V2", **dict.fromkeys(FLOAT8, "V1")}
PLAIN = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)|complex(64|128)")
TIME = re.compile(r"(?:datetime|timedelta)64\[([1-9][0-9]{0,9})?(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\]")
WIDE = re.compile(r"(bytes|utf32)\[([1-9][0-9]{0,8})\]")


def numpy_dtype(name: str) -> np.dtype[Any]:  # 6.1
    time, wide = TIME.fullmatch(name), WIDE.fullmatch(name)
    if PLAIN.fullmatch(name) or (time and 2 <= int(time[1] or 2) < 2**31):
        return np.dtype(name).newbyteorder("<")
    if wide and int(wide[2]) < 2**29:
        return np.dtype(("S" if wide[1] == "bytes" else "<U") + wide[2])
    need(f"dtype {name!r}", name in STORED_AS, error="UnsupportedFeatureError")
    return np.dtype(STORED_AS[name])


def check_nbytes(dtype: np.dtype[Any], shape: list[Any]) -> None:  # 15
    need(f"shape {shape}", dtype.itemsize * math.prod(d for d in shape if d) < 2**63, error="LimitError")


class Field:
    def __init__(self, f: int, member: Any) -> None:
        need("a field that is no object", isinstance(member, dict))
        self.f, (self.name, self.dtype_name, self.codec) = f, (member.get(key) for key in ("name", "dtype", "codec"))
        need("name, dtype or codec", *(isinstance(x, str) for x in (self.name, self.dtype_name, self.codec)))
        need(f"name {self.name!r}", self.name, not re.search("[\x00-\x1f\x7f\ud800-\udfff]", self.name))
        need(f"name {self.name!r}", len(self.name.encode()) <= 255, error="LimitError")
        self.dtype, self.shape = numpy_dtype(self.dtype_name), member.get("shape")
        shape = [None] if self.dtype_name == "string" else self.shape  # 8.3
        need("shape", isinstance(self.shape, list), shape is self.shape or self.shape == [])
        need(f"shape {shape}", all(d is None or (type(d) is int and d >= 0) for d in shape))
        need(f"shape {shape}", len(shape) <= 32, all(d < 2**63 for d in shape if d), error="LimitError")
        check_nbytes(self.dtype, shape)
        self.v = max((k + 1 for k, d in enumerate(shape) if d is None), default=0)  # 8.2; 0 where the shape is fixed
        self.lead, self.item_shape = shape[: self.v], shape[self.v :]
        self.item_nbytes = self.dtype.itemsize * math.prod(self.item_shape)


# == 7 Shards and blocks. `starts` and the positions of rows below are less the first sample of the segment; `ends`: of
# the last block of each field.
def check_shards(segment: Segment, fields: list[Field], end: int, ends: list[int]) -> None:
    starts = [start - segment.first for start in segment.numbers(SHARD_STARTS, NONE, 0, segment.num_shards + 1)]
    need("SHARD_STARTS", starts[0] == 0, starts[-1] == segment.num, all(a < b for a, b in pairwise(starts)))
    entries = list(struct.iter_unpack("<5Q", segment.section(BLOCKS)))
    segment.starts, segment.blocks = starts, [entries[f :: len(fields)] for f in range(len(fields))]  # [f][s]
    for f, field in enumerate(fields):
        groups = 0
        for (b, stop), (offset, nbytes, _, step, group) in zip(pairwise(starts), segment.blocks[f], strict=True):
            need("place of a block", 8192 <= offset <= end - nbytes, offset % 4096 == 0 or offset == ends[f])
            need("nbytes of a block", field.v or field.codec != "raw" or nbytes == (stop - b) * field.item_nbytes)
            need("groups of a block", step >= 1, group == groups)
            groups, ends[f] = groups + -(-(stop - b) // step), offset + nbytes
        need("length of CHUNK_SUMS", segment.sections[CHUNK_SUMS, f][1] == 8 * groups)


# == 8 Rows
def row_shape(segment: Segment, field: Field, i: int) -> list[int]:
    lead = []
    if field.v:
        start, stop = segment.numbers(OFFSETS, field.f, i, i + 2, "<i8")
        v, count = field.v, stop - start
        lead = segment.numbers(SHAPES, field.f, v * i, v * (i + 1), "<i8") if v > 1 else [count]
        need("OFFSETS or SHAPES", 0 <= start <= stop, math.prod(lead) == count, *(d >= 0 for d in lead))
        need("SHAPES", all(want in (None, d) for want, d in zip(field.lead, lead, strict=True)))
        check_nbytes(field.dtype, lead + field.item_shape)
    return lead + field.item_shape


def begin(segment: Segment, field: Field, i: int) -> int:  # where the chunk of a row begins, up to a constant
    if field.codec != "raw":
        return segment.numbers(STORED_OFFSETS, field.f, i, i + 1)[0]  # 11
    return field.item_nbytes * (segment.numbers(OFFSETS, field.f, i, i + 1, "<i8")[0] if field.v else i)


# == 9 Chunk sums
def read_chunk(segment: Segment, field: Field, i: int) -> bytes:
    s = bisect_right(segment.starts, i) - 1
    b, stop = segment.starts[s : s + 2]
    offset, nbytes, _, step, first_group = segment.blocks[field.f][s]
    group, within = divmod(i - b, step)
    rows = (b, i - within, i, i + 1, min(i - within + step, stop))
    begins = {row: begin(segment, field, row) for row in set(rows)}
    a, row_a, row_z, z = (begins[row] - begins[b] for row in rows[1:])
    need("a row outside its block", 0 <= a <= row_a <= row_z <= z <= nbytes)
    raw, g = segment.data[offset + a : offset + z], first_group + group
    need(f"chunk sum {g} of {field.name!r}", [xxh3_64(raw)] == segment.numbers(CHUNK_SUMS, field.f, g, g + 1))
    return raw[row_a - a : row_z - a]


# == 10 Keys
def read_key(segment: Segment, i: int) -> str:
    a, z = segment.numbers(KEY_OFFSETS, NONE, i, i + 2)
    need("KEY_OFFSETS", a < z <= segment.sections[KEY_BYTES, NONE][1], i > 0 or a == 0)
    need("nbytes of a key", z - a <= 65535, error="LimitError")
    key = attempt(segment.section(KEY_BYTES, NONE, a, z).decode)
    need("U+0000 in a key", "\0" not in key)
    return key


def find_key(segment: Segment, key: str) -> int | None:
    for place, key_hash in enumerate(segment.numbers(KEY_HASHES, NONE, 0, segment.num)):
        if key_hash == xxh3_64(key.encode()):
            (i,) = segment.numbers(KEY_ORDER, NONE, place, place + 1, "<u4" if segment.num < 2**32 else "<u8")
            need("KEY_ORDER", i < segment.num)
            if read_key(segment, i) == key:
                return segment.first + i
    return None


# == 11 Codecs
LIBRARIES = {"raw": "builtins", "zlib": "zlib", "zstd": "zstandard", "blosc2": "blosc2"}


def decode(codec: str, chunk: bytes, nbytes: int, dictionary: bytes) -> bytes:
    library, raw = import_module(LIBRARIES[codec]), chunk  # "A row of 0 bytes, and no other, has a chunk of 0 bytes."
    if codec == "zlib" and nbytes:
        stream = library.decompressobj()
        raw = stream.decompress(chunk, nbytes + 1)  # one more, to see that there is no more
        need("a stream that does not end with the chunk", stream.eof, not stream.unused_data)
    elif codec == "zstd" and nbytes:
        need("content size of a frame", library.frame_content_size(chunk) in (-1, nbytes))
        decoder = library.ZstdDecompressor(library.ZstdCompressionDict(dictionary) if dictionary else None)
        raw = decoder.decompress(chunk, max_output_size=nbytes, allow_extra_data=False)
    elif codec == "blosc2" and nbytes:
        need("head of a chunk", len(chunk) >= 32)
        flags, width, size, block, stored = struct.unpack_from("<2xBB3I", chunk)
        need("head of a chunk", (size, stored) == (nbytes, len(chunk)), flags & 5 == 5, width > 0)
        need("compressor or filters", flags >> 5 in (0, 1, 3, 4), max(chunk[16:22]) <= 4, chunk[30] == 0)
        need("dictionary, lazy, or not initialized", chunk[31] & 0x89 == 0, chunk[31] >> 4 <= 3)
        need("block size", flags & 2 or chunk[31] & 0x70 or (block >= width and block % width == 0))
        raw = library.decompress2(chunk)
    need(f"{len(raw)} bytes of a row, expected {nbytes}", len(raw) == nbytes)
    return raw


def read_row(segment: Segment, field: Field, i: int) -> Any:  # an array; a str where the dtype is string
    need(f"codec {field.codec!r}", field.codec in LIBRARIES, error="UnsupportedFeatureError")
    chunk, shape, place = read_chunk(segment, field, i), row_shape(segment, field, i), (DICTIONARY, field.f)
    dictionary = segment.section(*place) if place in segment.sections else b""
    raw = attempt(decode, field.codec, chunk, field.dtype.itemsize * math.prod(shape), dictionary)
    return attempt(raw.decode) if field.dtype_name == "string" else np.ndarray(shape, field.dtype, raw)


# == 14 Reading
class Container:
    def __init__(self, path: Any) -> None:
        with open(path, "rb") as file:
            head, size = file.read(8192), file.seek(0, 2)
            error = "TruncatedError" if head and MAGIC.startswith(head[:8]) else "NotAContainerError"
            need(f"{size} bytes", size >= 8192, error=error)
            self.generation, self.end, flags, *directory = choose_superblock(head)
            self.data, self.fingerprint = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), directory[2].hex()
        need(f"{size} bytes, committed end {self.end}", size >= self.end, error="TruncatedError")
        need(f"incompatible flags {flags}", flags == 0, error="UnsupportedFeatureError")
        newest = Segment(self.data, self.end, *directory)
        earlier = [Segment(self.data, self.end, at, nbytes, digest) for at, nbytes, _, _, digest in newest.earlier]
        need("table of earlier segments", [(x.first, x.num) for x in earlier] == [x[2:4] for x in newest.earlier])
        self.segments, self.num_samples, num_shards = [*earlier, newest], 0, 0
        for x in self.segments:  # 12
            need("order of the segments", x.first == self.num_samples, x.first_shard == num_shards)
            self.num_samples, num_shards = x.first + x.num, x.first_shard + x.num_shards
        members = parse_object(newest.section(SCHEMA)).get("fields")
        need("SCHEMA has no fields", isinstance(members, list), members)
        need(f"{len(members)} fields", len(members) < 65536, error="LimitError")
        self.fields = [Field(f, member) for f, member in enumerate(members)]
        need("SCHEMA differs between segments", len({x.section(SCHEMA) for x in self.segments}) == 1)
        self.names, ends = [field.name for field in self.fields], [0] * len(members)
        need("names of fields are not unique", len(set(self.names)) == len(members))
        self.has_keys = (KEY_BYTES, NONE) in newest.sections
        for x in self.segments:
            need("number of fields", x.num_fields == len(members))
            check_sections(x, self.fields, self.has_keys)
            check_shards(x, self.fields, self.end, ends)

    def rows(self, name: str) -> Iterator[Any]:
        field = self.fields[self.names.index(name)]
        return (read_row(x, field, i) for x in self.segments for i in range(x.num))

    def keys(self) -> list[str]:
        return [read_key(x, i) for x in self.segments if self.has_keys for i in range(x.num)]

    def find(self, key: str) -> int | None:
        found = [find_key(x, key) for x in self.segments if self.has_keys]
        return next((i for i in found if i is not None), None)

    def attrs(self) -> dict[str, Any]:
        return parse_object(self.segments[-1].section(ATTRS))


if __name__ == "__main__":
    container = Container(*sys.argv[1:])
    print(f"{container.num_samples} samples, generation {container.generation}, attrs {container.attrs()}")
    print(*(f"{x.name!r}: {x.dtype_name}, shape {x.shape}, codec {x.codec}" for x in container.fields), sep="\n")
