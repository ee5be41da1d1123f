#!/usr/bin/env python3
"""A plain reader of chunkstore containers, format version 1, in the order of chunkstore-1.md, to be read beside it.

A second opinion on the package, with which it shares no line: slow, with every check that section 14 asks of a reader.
verify_chunkstore.py adds those of a verifier. As a script, `read_chunkstore.py FILE` prints what is in FILE.
"""

from __future__ import annotations

import json
import math
import mmap
import re
import struct
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest as xxh3_64
from xxhash import xxh3_128_digest as xxh3_128

FormatError = type("FormatError", (ValueError,), {})  # the names of section 14
NotAContainerError = type("NotAContainerError", (FormatError,), {})
UnsupportedVersionError = type("UnsupportedVersionError", (FormatError,), {})
UnsupportedFeatureError = type("UnsupportedFeatureError", (FormatError,), {})
LimitError = type("LimitError", (FormatError,), {})
CorruptError = type("CorruptError", (FormatError,), {})
TruncatedError = type("TruncatedError", (CorruptError,), {})


def need(what: str, *conditions: object, error: type[Exception] = CorruptError) -> None:
    if not all(conditions):
        raise error(what)


# == 2 Conventions. "Every number is little-endian": hence the "<" of every struct and dtype below.
def pad(x: int, a: int) -> int:
    return -(-x // a) * a


def attempt(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return function(*arguments, **options)
    except Exception as error:  # each library has its own
        raise CorruptError(f"{type(error).__name__}: {error}") from error


# "A reader must refuse repeated names in an object, NaN, Infinity, [...] and more than 64 nested levels."
def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    need("a name repeated in JSON", len(dict(pairs)) == len(pairs))
    return dict(pairs)


def parse_json(raw: bytes) -> dict[str, Any]:
    text = attempt(raw.decode)
    brackets = re.sub(r'"(?:[^"\\]|\\.)*"|[^\[\]{}"]+', "", text)  # what is in quotation marks does not count
    levels = max(accumulate(1 if c in "[{" else -1 for c in brackets), default=0)
    need("levels of JSON", levels <= 64, error=LimitError)
    value = attempt(json.loads, text, object_pairs_hook=unique, parse_constant=lambda name: need(name, False))
    need("JSON: not an object", isinstance(value, dict))
    return value


# == 4 Superblocks. "A reader checks each of the two in this order: magic, major, checksum, then the values."
MAGIC = b"\x89CKS\r\n\x1a\n"
NAMES = ("magic", "major", "incompatible", "generation", "end", "offset", "nbytes", "digest")


def superblock(raw: bytes) -> dict[str, Any]:
    magic, major, _, generation, end, offset, nbytes, _ = values = struct.unpack_from("<8sH6xQ32xQQQQ16s", raw)
    need("magic", magic == MAGIC, error=NotAContainerError)
    need(f"format major {major}", major == 1, error=UnsupportedVersionError)
    need("checksum of a superblock", xxh3_128(raw[:4080]) == raw[4080:])
    need("superblock", end <= 2**63 - 4096, nbytes <= 16 << 20, error=LimitError)
    need("superblock", generation >= 1, end % 4096 == offset % 4096 == 0, nbytes >= 64, 8192 <= offset <= end - nbytes)
    return dict(zip(NAMES, values, strict=True))


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


# == 5 Index segments
SCHEMA, ATTRS, SHARD_STARTS, BLOCKS, CHUNK_SUMS, OFFSETS, SHAPES, STORED_OFFSETS, DICTIONARY = range(1, 10)
KEY_BYTES, KEY_OFFSETS, KEY_HASHES, KEY_ORDER, SUPERSEDED = range(10, 15)
NONE = 0xFFFFFFFF  # "for a section of no field"


class Segment:
    # 5.1: "its xxh3-128, then its values in the order of the table, then each entry"
    def __init__(self, data: mmap.mmap, end: int, offset: int, nbytes: int, digest: bytes) -> None:
        need("nbytes of a directory", nbytes <= 16 << 20, error=LimitError)
        need("place of a directory", nbytes >= 64, 8192 <= offset <= end - nbytes, offset % 4096 == 0)
        self.data, self.offset, self.directory = data, offset, data[offset : offset + nbytes]
        need("checksum of a directory", xxh3_128(self.directory) == digest)
        magic, *counts, num_sections, num_earlier = struct.unpack_from("<8s5Q3I", self.directory)
        self.first, self.num, self.first_shard, self.num_shards, self.nbytes, self.num_fields = counts
        need("counts", self.first + self.num < 2**63, self.num_fields <= 65535, num_earlier < 64, error=LimitError)
        need("counts", (self.num > 0) <= self.num_shards <= self.num, self.num_fields > 0)
        need("directory", magic == b"CKS-INDX", nbytes == 64 + 32 * num_sections + 48 * num_earlier)
        self.earlier = list(struct.iter_unpack("<QQQQ16s", self.directory[64 + 32 * num_sections :]))
        # 5.2: "The sections lie in the order of the table, without other gaps: the first at
        # pad(segment offset + directory nbytes, 64), each next at pad(end of the page sums before, 64)."
        self.sections, self.checked, before, stop = {}, {}, (-1, -1), offset + nbytes
        for kind, f, at, size, sums_sum in struct.iter_unpack("<IIQQQ", self.directory[64 : 64 + 32 * num_sections]):
            need(f"place of section {kind}", before < (kind, f), at == pad(stop, 64))
            need(f"section {kind}", kind not in (SCHEMA, ATTRS, DICTIONARY) or size <= 16 << 20, error=LimitError)
            before, stop = (kind, f), at + pad(size, 8) + 8 * -(-size // 65536)
            self.sections[kind, f] = (at, size, at + pad(size, 8), stop, sums_sum)
        need("nbytes of a segment", self.nbytes % 4096 == 0, offset + self.nbytes == pad(stop, 4096) <= end)

    # "A page of a section [is checked] before a number is taken from it." Here: all pages of it.
    def section(self, kind: int, f: int = NONE) -> bytes:
        if (kind, f) not in self.checked:
            at, size, sums_at, stop, sums_sum = self.sections[kind, f]
            raw, sums = self.data[at : at + size], self.data[sums_at:stop]
            need(f"page sums of section {kind}", xxh3_64(sums) == sums_sum)
            for p, (page_sum,) in enumerate(struct.iter_unpack("<Q", sums)):
                need(f"page {p} of section {kind}", xxh3_64(raw[65536 * p : 65536 * (p + 1)]) == page_sum)
            self.checked[kind, f] = raw
        return self.checked[kind, f]

    def numbers(self, kind: int, f: int = NONE, dtype: str = "<u8") -> list[int]:
        return np.frombuffer(self.section(kind, f), dtype).tolist()

    def ascending(self, kind: int, f: int = NONE) -> list[int]:
        x = self.numbers(kind, f, "<i8")
        need(f"numbers of section {kind}", x[0] >= 0, all(a <= b for a, b in pairwise(x)))
        return x


# 5.3: "A reader must refuse a segment in which a section is missing or has another length than the table says [...]"
def check_sections(segment: Segment, fields: list[Field]) -> None:
    have = {place: size for place, (_, size, *_) in segment.sections.items() if SCHEMA <= place[0] <= SUPERSEDED}
    n, s, any_size = segment.num, segment.num_shards, lambda kind, f=NONE: have.get((kind, f), 0)
    keys = any(KEY_BYTES <= kind <= KEY_ORDER for kind, _ in have)
    # fmt: off
    table = [  # kind, field, nbytes, "present"
        (SCHEMA, NONE, any_size(SCHEMA), True), (SHARD_STARTS, NONE, 8 * (s + 1), True),
        (ATTRS, NONE, any_size(ATTRS), True), (BLOCKS, NONE, 40 * s * len(fields), True),
        (KEY_BYTES, NONE, any_size(KEY_BYTES), keys), (KEY_OFFSETS, NONE, 8 * (n + 1), keys),
        (KEY_HASHES, NONE, 8 * n, keys), (KEY_ORDER, NONE, (4 if n < 2**32 else 8) * n, keys),
        (SUPERSEDED, NONE, pad(any_size(SUPERSEDED), 24), (SUPERSEDED, NONE) in have),
    ]
    for f, field in enumerate(fields):
        dictionary = (DICTIONARY, f) in have and field.codec not in ("raw", "zlib", "blosc2")
        table += [
            (CHUNK_SUMS, f, any_size(CHUNK_SUMS, f), True), (OFFSETS, f, 8 * (n + 1), field.v > 0),
            (SHAPES, f, 8 * n * field.v, field.v > 1), (STORED_OFFSETS, f, 8 * (n + 1), field.codec != "raw"),
            (DICTIONARY, f, max(1, any_size(DICTIONARY, f)), dictionary),
        ]
    # fmt: on
    want = {(kind, f): nbytes for kind, f, nbytes, present in table if present}
    need(f"sections missing, not called for, or of a wrong length: {have.items() ^ want.items()}", have == want)


# == 6 Schema and attributes, 6.1 Dtypes
FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
STORED_AS = {"string": "u1", "bfloat16": "V2", **dict.fromkeys(FLOAT8, "V1")}
PLAIN = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)|complex(64|128)")
TIME = re.compile(r"(?:datetime|timedelta)64\[([1-9][0-9]{0,9})?(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\]")
WIDE = re.compile(r"(bytes|utf32)\[([1-9][0-9]{0,8})\]")


def numpy_dtype(name: str) -> np.dtype[Any]:
    time, wide = TIME.fullmatch(name), WIDE.fullmatch(name)
    if PLAIN.fullmatch(name) or (time and 2 <= int(time[1] or 2) < 2**31):
        return np.dtype(name).newbyteorder("<")
    if wide and int(wide[2]) < 2**29:
        return np.dtype(f"{'S' if wide[1] == 'bytes' else '<U'}{wide[2]}")
    need(f"dtype {name!r}", name in STORED_AS, error=UnsupportedFeatureError)
    return np.dtype(STORED_AS[name])


# 15: "product of nbytes of an element and all dimensions that are neither 0 nor null"
def check_nbytes(dtype: np.dtype[Any], shape: list[int | None]) -> None:
    need(f"shape {shape}", dtype.itemsize * math.prod(d for d in shape if d) < 2**63, error=LimitError)


class Field:
    def __init__(self, member: Any) -> None:
        need("a field is not an object", isinstance(member, dict))
        self.name, self.dtype_name, self.codec, self.shape = map(member.get, ("name", "dtype", "codec", "shape"))
        need("name, dtype or codec", *(isinstance(x, str) for x in (self.name, self.dtype_name, self.codec)))
        need(f"name {self.name!r}", self.name, not re.search("[\x00-\x1f\x7f\ud800-\udfff]", self.name))
        need(f"name {self.name!r}", len(self.name.encode()) <= 255, error=LimitError)
        # 8.3: "A field of dtype string is stored as a ragged field of uint8 with v = 1 and item shape ()."
        self.dtype, shape = numpy_dtype(self.dtype_name), [None] if self.dtype_name == "string" else self.shape
        need("shape", isinstance(self.shape, list), shape is self.shape or self.shape == [])
        need(f"shape {shape}", all(d is None or (type(d) is int and d >= 0) for d in shape))
        need(f"shape {shape}", len(shape) <= 32, all(d < 2**63 for d in shape if d), error=LimitError)
        check_nbytes(self.dtype, shape)
        # 8.2: "Let v be one more than the place of the last [null]. The item shape is shape[v:]." v = 0: fixed shape.
        self.v = max((k + 1 for k, d in enumerate(shape) if d is None), default=0)
        self.lead, self.item_shape = shape[: self.v], shape[self.v :]
        self.item_nbytes = self.dtype.itemsize * math.prod(self.item_shape)  # that of a row, if v = 0


# == 7 Shards and blocks. SHARD_STARTS "begins with the first sample of the directory, ends with first sample + num
# samples, and is strictly ascending." `starts` are less the first sample; `ends`: of the last block of each field.
def check_blocks(segment: Segment, fields: list[Field], end: int, ends: list[int]) -> None:
    segment.starts = starts = [start - segment.first for start in segment.numbers(SHARD_STARTS)]
    need("SHARD_STARTS", starts[0] == 0, starts[-1] == segment.num, all(a < b for a, b in pairwise(starts)))
    entries = list(struct.iter_unpack("<QQQQQ", segment.section(BLOCKS)))
    segment.blocks = [entries[f :: len(fields)] for f in range(len(fields))]  # [f][s]
    for f, field in enumerate(fields):
        groups = 0
        for (start, stop), (offset, nbytes, _, step, group) in zip(pairwise(starts), segment.blocks[f], strict=True):
            need("place of a block", 8192 <= offset <= end - nbytes, offset % 4096 == 0 or offset == ends[f])
            fits = field.codec != "raw" or field.v or nbytes == (stop - start) * field.item_nbytes  # 8.1
            need("nbytes or groups of a block", fits, step >= 1, group == groups)
            groups, ends[f] = group + -(-(stop - start) // step), offset + nbytes
        need("length of CHUNK_SUMS", segment.sections[CHUNK_SUMS, f][1] == 8 * groups)


# == 8 Rows: those of one field in one segment. A fixed shape is the case v = 0: one item a row.
class Column:
    def __init__(self, segment: Segment, f: int, field: Field) -> None:
        self.data, self.field, self.sums = segment.data, field, segment.numbers(CHUNK_SUMS, f)
        self.shards = list(zip(pairwise(segment.starts), segment.blocks[f], strict=True))
        self.offsets = segment.ascending(OFFSETS, f) if field.v else range(segment.num + 1)
        self.dims = segment.numbers(SHAPES, f, "<i8") if field.v > 1 else []
        self.stored = segment.ascending(STORED_OFFSETS, f) if field.codec != "raw" else []
        self.dictionary = segment.section(DICTIONARY, f) if (DICTIONARY, f) in segment.sections else None

    # 8.2, 11: "Its chunk begins at B.offset + (O[i] - O[b]) * item nbytes", or at B.offset + T[i] - T[b].
    def begin(self, i: int) -> int:
        return self.stored[i] if self.stored else self.offsets[i] * self.field.item_nbytes

    # 8.2: "If v = 1 the row has the shape (O[i+1] - O[i], *item shape). If v > 1, SHAPES holds the first v dimensions
    # of each row, each at least 0; their product is O[i+1] - O[i], and where shape has a number, [it] equals it."
    def shape(self, i: int) -> list[int]:
        v, count = self.field.v, self.offsets[i + 1] - self.offsets[i]
        lead = self.dims[i * v : (i + 1) * v] if v > 1 else [count][:v]
        need(f"shape {lead} of {count} items", math.prod(lead) == count, *(d >= 0 for d in lead))
        need(f"shape {lead}", all(want in (None, d) for want, d in zip(self.field.lead, lead, strict=True)))
        check_nbytes(self.field.dtype, lead + self.field.item_shape)
        return lead + self.field.item_shape

    # 9: "The rows of a block are taken in groups of `rows per group` consecutive rows; the last group may have fewer."
    def check_groups(self, s: int) -> None:
        (start, stop), (offset, nbytes, _, step, group) = self.shards[s]
        need(f"nbytes of block {s} of {self.field.name!r}", self.begin(stop) - self.begin(start) == nbytes)
        for g, i in enumerate(range(start, stop, step), group):
            a, b = (offset + self.begin(x) - self.begin(start) for x in (i, min(i + step, stop)))
            need(f"chunk sum {g} of {self.field.name!r}", xxh3_64(self.data[a:b]) == self.sums[g])

    def rows(self, s: int) -> Iterator[Any]:
        (start, stop), (offset, *_), dtype = *self.shards[s], self.field.dtype
        codec, library = self.field.codec, import_module(LIBRARIES[self.field.codec])
        self.check_groups(s)
        for i in range(start, stop):
            shape, a, b = self.shape(i), *(offset + self.begin(x) - self.begin(start) for x in (i, i + 1))
            raw = attempt(decode, codec, library, self.data[a:b], dtype.itemsize * math.prod(shape), self.dictionary)
            yield attempt(raw.decode) if self.field.dtype_name == "string" else np.ndarray(shape, dtype, raw)


# == 10 Keys. KEY_OFFSETS: "where each key begins in KEY_BYTES, and then their total length; begins with 0 [...]"
def read_keys(segment: Segment) -> list[str]:
    at, raw = segment.ascending(KEY_OFFSETS), segment.section(KEY_BYTES)
    need("ends of KEY_OFFSETS", at[0] == 0, at[-1] == len(raw))
    need("nbytes of a key", all(b - a <= 65535 for a, b in pairwise(at)), error=LimitError)
    keys = [attempt(raw[a:b].decode) for a, b in pairwise(at)]
    need("a key is empty or has U+0000", all(key and "\0" not in key for key in keys))
    return keys


# "KEY_HASHES: the xxh3-64 of each key. KEY_ORDER: for each entry of KEY_HASHES the position of that sample"
def read_hashes(segment: Segment) -> list[tuple[int, int]]:
    order = segment.numbers(KEY_ORDER, dtype="<u4" if segment.num < 2**32 else "<u8")
    need("KEY_ORDER", all(i < segment.num for i in order))
    return list(zip(segment.numbers(KEY_HASHES), order, strict=True))


# == 11 Codecs. "The decoded chunk is exactly the bytes of the row, and a decoder must produce no more than that."
LIBRARIES = {"raw": "builtins", "zlib": "zlib", "zstd": "zstandard", "blosc2": "blosc2"}


def decode(codec: str, library: Any, chunk: bytes, nbytes: int, dictionary: bytes | None) -> bytes:
    raw = chunk  # "A row of 0 bytes has a chunk of 0 bytes."
    if codec == "zlib" and nbytes:
        stream = library.decompressobj()
        raw = stream.decompress(chunk, nbytes + 1)  # one more, to see that there is no more
        need("the stream does not end with the chunk", stream.eof, not stream.unused_data)
    elif codec == "zstd" and nbytes:
        need("content size of the frame", library.frame_content_size(chunk) in (-1, nbytes))
        decoder = library.ZstdDecompressor(library.ZstdCompressionDict(dictionary) if dictionary else None)
        raw = decoder.decompress(chunk, max_output_size=nbytes, allow_extra_data=False)
    elif codec == "blosc2" and nbytes:
        need("head of the chunk", len(chunk) >= 32)
        flags, width, size, block, stored = struct.unpack_from("<2xBB3I", chunk)
        need("head of the chunk", (size, stored) == (nbytes, len(chunk)), flags & 5 == 5, width > 0)
        need("kind of chunk", flags >> 5 in (0, 1, 3, 4), max(chunk[16:22]) <= 4, chunk[30] == 0, chunk[31] & 0x89 == 0)
        need("a row that is not initialized", chunk[31] >> 4 <= 3)
        need("block size", flags & 2 or chunk[31] & 0x70 or (block >= width and block % width == 0))
        raw = library.decompress(chunk)
    need(f"{len(raw)} bytes of a row, expected {nbytes}", len(raw) == nbytes)
    return raw


# == 14 Reading
class Container:
    def __init__(self, path: Any) -> None:
        with open(path, "rb") as file:  # "1. Read the first 8192 bytes; choose the superblock (section 4)."
            head, size = file.read(8192), file.seek(0, 2)
            short = TruncatedError if head and MAGIC.startswith(head[:8]) else NotAContainerError
            need(f"{size} bytes", size >= 8192, error=short)
            sb = choose_superblock(head)
            data = self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.generation, self.end, self.fingerprint = sb["generation"], sb["end"], sb["digest"].hex()
        # "2. Hold the committed end against the length of the file; check the flags."
        need(f"{size} bytes, committed end {self.end}", size >= self.end, error=TruncatedError)
        need("incompatible flags", sb["incompatible"] == 0, error=UnsupportedFeatureError)
        # "3. Read the newest directory. Do the same for each earlier segment." 12: "The first of them begins with
        # sample 0 and shard 0; each next begins with the sample and the shard at which the one before ends."
        newest = Segment(data, self.end, sb["offset"], sb["nbytes"], sb["digest"])
        earlier = [Segment(data, self.end, at, nbytes, digest) for at, nbytes, _, _, digest in newest.earlier]
        need("table of earlier segments", [(x.first, x.num) for x in earlier] == [x[2:4] for x in newest.earlier])
        self.segments, self.num_samples, num_shards = [*earlier, newest], 0, 0
        for x in self.segments:
            need("order of the segments", x.first == self.num_samples, x.first_shard == num_shards)
            self.num_samples, num_shards = x.first + x.num, x.first_shard + x.num_shards
        # "4. Read SCHEMA; check which sections there are, and their lengths. Read and check SHARD_STARTS; then BLOCKS."
        need("a segment without SCHEMA", all((SCHEMA, NONE) in x.sections for x in self.segments))
        need("SCHEMA differs between segments", len({x.section(SCHEMA) for x in self.segments}) == 1)
        members = parse_json(newest.section(SCHEMA)).get("fields")
        need("SCHEMA has no fields", isinstance(members, list))
        need("number of fields", *(x.num_fields == len(members) for x in self.segments))
        self.fields = [Field(member) for member in members]
        self.names, ends = [field.name for field in self.fields], [-1] * len(self.fields)
        need("names of fields are not unique", len(set(self.names)) == len(self.names))
        self.has_keys = (KEY_BYTES, NONE) in newest.sections
        for x in self.segments:
            check_sections(x, self.fields)
            check_blocks(x, self.fields, self.end, ends)
            need("keys in some segments only", ((KEY_BYTES, NONE) in x.sections) == self.has_keys)

    # "5. Everything else is checked where it is used."
    def attrs(self) -> dict[str, Any]:
        return parse_json(self.segments[-1].section(ATTRS))

    def rows(self, name: str) -> Iterator[Any]:  # an array for each row, a str for a string
        f = self.names.index(name)
        need(f"codec {self.fields[f].codec!r}", self.fields[f].codec in LIBRARIES, error=UnsupportedFeatureError)
        for segment in (x for x in self.segments if x.num):
            column = Column(segment, f, self.fields[f])
            for s in range(segment.num_shards):
                yield from column.rows(s)

    def keys(self) -> list[str]:
        return [key for segment in self.segments if self.has_keys for key in read_keys(segment)]

    # 10: "Look its hash up in KEY_HASHES of each live segment, and compare the bytes of every key with that hash."
    def find(self, key: str) -> int | None:
        for segment in self.segments if self.has_keys else []:
            keys, key_hash = read_keys(segment), xxh3_64(key.encode())
            for i in (i for other_hash, i in read_hashes(segment) if other_hash == key_hash and keys[i] == key):
                return segment.first + i
        return None


def main(path: str) -> None:
    container = Container(path)
    print(f"{container.num_samples} samples, generation {container.generation}, {container.fingerprint}")
    for field in container.fields:
        print(f"  field {field.name!r}: {field.dtype_name}, shape {field.shape}, codec {field.codec}")
    print(f"  keys: {container.has_keys}, attrs: {json.dumps(container.attrs(), ensure_ascii=False)[:1000]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
