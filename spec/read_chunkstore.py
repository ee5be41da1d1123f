#!/usr/bin/env python3
"""A plain decoder of chunkstore containers, format version 1, in the order of chunkstore-1.md, to be read beside it.

It makes every check that section 14 asks of a reader; what a verifier adds is in verify_chunkstore.py. It is a second
opinion on the package, with which it shares no line: made to be read, not to be fast.
"""

import json
import math
import mmap
import re
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest, xxh3_128_digest

FormatError: type[ValueError] = type("FormatError", (ValueError,), {})
NAMES = "NotAContainerError UnsupportedVersionError UnsupportedFeatureError LimitError TruncatedError CorruptError"
ERRORS = {name: type(name, (FormatError,), {}) for name in NAMES.split()}  # those of section 14


# 14: "What is beyond a limit is reported as that, before its consistency is looked at"
def need(what: str, *conditions: object, limit: bool = True, error: str = "CorruptError") -> None:
    if not limit or not all(conditions):
        raise ERRORS[error if limit else "LimitError"](what)


def attempt(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return function(*arguments, **options)
    except Exception as error:  # each library has its own
        raise ERRORS["CorruptError"](f"{type(error).__name__}: {error}") from error


# == 2 Conventions
def pad(x: int, a: int) -> int:
    return -(-x // a) * a


def unique(members: list[tuple[str, Any]]) -> dict[str, Any]:
    need("a name twice in one object", len(dict(members)) == len(members))
    return dict(members)


def parse_object(raw: bytes) -> dict[str, Any]:
    need("values of JSON", limit=sum(map(raw.count, (b",", b"[", b"{"))) <= 1 << 20)
    text = attempt(raw.decode)
    brackets = re.sub(r'"(?:[^"\\]|\\.)*"|[^][{}"]', "", text)  # without those in texts
    levels = max(accumulate(1 if bracket in "[{" else -1 for bracket in brackets), default=0)
    need(f"{levels} levels of JSON", limit=levels <= 64)
    attempt(json.dumps, attempt(json.loads, text, parse_int=float), allow_nan=False)  # each number is a finite binary64
    value: dict[str, Any] = attempt(json.loads, text, object_pairs_hook=unique)
    need("JSON that is no object", isinstance(value, dict))
    return value


# == 4 Superblocks
MAGIC = b"\x89CKS\r\n\x1a\n"
MAX_NBYTES = 16 << 20  # 15: of a directory, of SCHEMA, ATTRS and DICTIONARY


def parse_superblock(raw: bytes) -> tuple[Any, ...]:
    magic, major, flags, generation, end, offset, nbytes, digest = struct.unpack_from("<8sH6xQ32x4Q16s", raw)
    need("no magic", magic == MAGIC, error="NotAContainerError")
    need(f"format major {major}", major == 1, error="UnsupportedVersionError")
    need("checksum of a superblock", xxh3_128_digest(raw[:4080]) == raw[4080:])
    need("values of a superblock", generation >= 1, limit=end <= 2**63 - 4096 and nbytes <= MAX_NBYTES)
    need("place of a directory", end % 4096 == offset % 4096 == 0, nbytes >= 64, 8192 <= offset <= end - nbytes)
    return generation, end, flags, offset, nbytes, digest


def choose_superblock(head: bytes) -> tuple[Any, ...]:
    a, b, valid = head[:4096], head[4096:], []
    for raw in (a, b):
        with suppress(FormatError):
            valid.append(parse_superblock(raw))
    if not valid:
        return parse_superblock(a if a.startswith(MAGIC) else b)  # which raises the error that counts
    return max(valid, key=lambda values: int(values[0]))  # of equal generations the first


# == 5 Index segments
SCHEMA, ATTRS, SHARD_STARTS, BLOCKS, CHUNK_SUMS, OFFSETS, SHAPES, STORED_OFFSETS, DICTIONARY = range(1, 10)
KEY_BYTES, KEY_OFFSETS, KEY_HASHES, KEY_ORDER, SUPERSEDED = range(10, 15)
NONE = 0xFFFFFFFF  # the field of a section of no field


class Directory:
    def __init__(self, data: mmap.mmap, end: int, offset: int, nbytes: int, digest: bytes) -> None:  # 5.1
        need("nbytes of a directory", nbytes >= 64, limit=nbytes <= MAX_NBYTES)
        need("place of a directory", offset % 4096 == 0, 8192 <= offset <= end - nbytes)
        self.data, self.end, self.offset, self.directory = data, end, offset, data[offset : offset + nbytes]
        need("checksum or magic", xxh3_128_digest(self.directory) == digest, self.directory[:8] == b"CKS-INDX")
        *counts, num_sections, num_earlier = struct.unpack_from("<8x5Q3I", self.directory)
        self.first, self.num, self.first_shard, self.num_shards, self.nbytes, self.num_fields = counts
        need("samples or shards", limit=max(self.first + self.num, self.first_shard, self.num_shards) < 2**63)
        need("nbytes of a segment", self.nbytes % 4096 == 0, self.nbytes <= end - offset)
        table_stop, is_few = 64 + 32 * num_sections, self.num_fields < 65536 and num_earlier < 64
        need("nbytes of a directory", nbytes == table_stop + 48 * num_earlier, limit=is_few)
        self.order_width = 4 if self.num < 2**32 else 8  # 5.3
        self.earlier = list(struct.iter_unpack("<4Q16s", self.directory[table_stop:]))
        self.sections, before, stop = {}, (-1, -1), offset + nbytes
        for kind, f, at, size, total in struct.iter_unpack("<2I3Q", self.directory[64:table_stop]):
            allowed = size <= MAX_NBYTES or kind not in (SCHEMA, ATTRS, DICTIONARY)
            need(f"place of section {kind}", before < (kind, f), at == pad(stop, 64), limit=allowed)
            before, stop = (kind, f), at + pad(size, 8) + 8 * -(-size // 65536)
            self.sections[kind, f] = (at, size, at + pad(size, 8), stop, total)
        need("nbytes of a segment", offset + self.nbytes == pad(stop, 4096))

    def section(self, kind: int, f: int = NONE, start: int = 0, stop: int | None = None) -> bytes:  # 5.2
        need(f"section {kind} is missing", (kind, f) in self.sections)
        at, size, sums_at, sums_stop, total = self.sections[kind, f]
        sums, stop = self.data[sums_at:sums_stop], size if stop is None else stop
        need(f"page sums of section {kind}", xxh3_64_intdigest(sums) == total)
        for p in range(start // 65536, -(-stop // 65536)):
            page, page_sum = self.data[at + 65536 * p : at + min(65536 * (p + 1), size)], sums[8 * p : 8 * p + 8]
            need(f"page {p} of section {kind}", xxh3_64_intdigest(page) == int.from_bytes(page_sum, "little"))
        return self.data[at + start : at + stop]

    def numbers(self, kind: int, f: int, start: int, count: int = 1) -> list[int]:
        width = self.order_width if kind == KEY_ORDER else 8
        raw = self.section(kind, f, width * start, width * (start + count))
        return [int(number) for number in np.frombuffer(raw, f"<u{width}")]  # an i64 below 0 as one from 2^63


# == 6 Schema and attributes
PLAIN = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)|complex(64|128)")
TIME = re.compile(r"(datetime|timedelta)64\[([1-9][0-9]{0,9})?(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\]")
WIDE = re.compile(r"(bytes|utf32)\[([1-9][0-9]{0,8})\]")
FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
OTHERS = {"string": "u1", "bfloat16": "V2", **dict.fromkeys(FLOAT8, "V1")}


def numpy_dtype(name: str) -> np.dtype[Any]:  # 6.1
    time, wide = TIME.fullmatch(name), WIDE.fullmatch(name)
    if PLAIN.fullmatch(name) or (time and 2 <= int(time[2] or 2) < 2**31):
        return np.dtype(name).newbyteorder("<")
    if wide and int(wide[2]) < 2**29:
        return np.dtype(("S" if wide[1] == "bytes" else "<U") + wide[2])
    need(f"dtype {name!r}", name in OTHERS, error="UnsupportedFeatureError")
    return np.dtype(OTHERS[name])


class Field:
    def __init__(self, f: int, member: Any) -> None:
        need("a field that is no object", isinstance(member, dict))
        self.f, (self.name, self.dtype_name, self.codec) = f, (member.get(key) for key in ("name", "dtype", "codec"))
        need("name, dtype or codec", *(isinstance(x, str) for x in (self.name, self.dtype_name, self.codec)))
        need(f"name {self.name!r}", re.fullmatch("[^\x00-\x1f\x7f\ud800-\udfff]+", self.name))
        need(f"name {self.name!r}", limit=len(self.name.encode()) <= 255)
        self.dtype, self.shape = numpy_dtype(self.dtype_name), member.get("shape")
        shape: Any = [None] if self.dtype_name == "string" else self.shape  # 8.3
        need("shape", isinstance(self.shape, list), shape is self.shape or self.shape == [])
        need(f"shape {shape}", all(d is None or (type(d) is int and d >= 0) for d in shape))
        self.nbytes(shape)
        self.v = max((k + 1 for k, d in enumerate(shape) if d is None), default=0)  # 8.2; 0 if nothing is ragged
        self.item_shape = shape[self.v :]
        self.item_nbytes = self.nbytes(self.item_shape)
        self.may_have_dictionary = self.codec not in ("raw", "zlib", "blosc2")  # 5.3

    def nbytes(self, shape: list[Any]) -> int:  # 15
        nbytes = self.dtype.itemsize * math.prod(d for d in shape if d)
        need(f"shape {shape}", limit=len(shape) <= 32 and nbytes < 2**63)
        return 0 if 0 in shape else nbytes


def parse_schema(raw: bytes) -> list[Field]:
    members: Any = parse_object(raw).get("fields")
    need("SCHEMA has no fields", isinstance(members, list), members)
    need(f"{len(members)} fields", limit=len(members) < 65536)
    fields = [Field(f, member) for f, member in enumerate(members)]
    need("names of fields are not unique", len({field.name for field in fields}) == len(fields))
    return fields


class Segment(Directory):  # the positions `i`, `b` and `stop` are less the first sample of the segment
    def check_sections(self, fields: list[Field], has_keys: bool) -> None:  # 5.3
        have = {place: size for place, (_, size, *_) in self.sections.items() if SCHEMA <= place[0] <= SUPERSEDED}
        n, s, width, some = self.num, self.num_shards, self.order_width, -1  # some: any number of bytes
        want = {SCHEMA: some, ATTRS: some, SHARD_STARTS: 8 * (s + 1), BLOCKS: 40 * s * len(fields)}
        want |= {KEY_BYTES: some, KEY_OFFSETS: 8 * (n + 1), KEY_HASHES: 8 * n, KEY_ORDER: width * n} if has_keys else {}
        want |= {SUPERSEDED: pad(have[SUPERSEDED, NONE], 24)} if (SUPERSEDED, NONE) in have else {}
        nbytes = {(kind, NONE): want[kind] for kind in want}
        for f, field in enumerate(fields):
            nbytes |= {(CHUNK_SUMS, f): some}
            nbytes |= {(OFFSETS, f): 8 * (n + 1)} if field.v else {}
            nbytes |= {(SHAPES, f): 8 * n * field.v} if field.v > 1 else {}
            nbytes |= {(STORED_OFFSETS, f): 8 * (n + 1)} if field.codec != "raw" else {}
            nbytes |= {(DICTIONARY, f): some} if field.may_have_dictionary and have.get((DICTIONARY, f)) else {}
        fits = all(nbytes.get(place) in (some, size) for place, size in have.items())
        need("a section is missing, not called for, or of another length", have.keys() == nbytes.keys(), fits)

    def check_blocks(self, fields: list[Field], ends: list[int]) -> None:  # 7; ends: of the last block of each field
        starts = [start - self.first for start in self.numbers(SHARD_STARTS, NONE, 0, self.num_shards + 1)]
        need("SHARD_STARTS", starts[0] == 0, starts[-1] == self.num, all(a < b for a, b in pairwise(starts)))
        entries = list(struct.iter_unpack("<5Q", self.section(BLOCKS)))
        self.blocks = [list(zip(pairwise(starts), entries[f :: len(fields)], strict=True)) for f in range(len(fields))]
        for f, field in enumerate(fields):
            groups = 0
            for (b, stop), (offset, nbytes, _, step, group) in self.blocks[f]:
                need("place of a block", 8192 <= offset <= self.end - nbytes, offset % 4096 == 0 or offset == ends[f])
                need("nbytes of a block", field.v or field.codec != "raw" or nbytes == (stop - b) * field.item_nbytes)
                need("groups of a block", step >= 1, group == groups)
                groups, ends[f] = groups + -(-(stop - b) // step), offset + nbytes
            need("length of CHUNK_SUMS", self.sections[CHUNK_SUMS, f][1] == 8 * groups)

    def row_shape(self, field: Field, i: int) -> list[int]:  # 8; a row of a fixed shape is an item
        start, stop = self.numbers(OFFSETS, field.f, i, 2) if field.v else (i, i + 1)
        lead = self.numbers(SHAPES, field.f, field.v * i, field.v) if field.v > 1 else [stop - start][: field.v]
        need("OFFSETS or SHAPES", start <= stop < 2**63, math.prod(lead) == stop - start)
        need("SHAPES", all(d < 2**63 and want in (None, d) for want, d in zip(field.shape, lead, strict=False)))
        return [*lead, *field.item_shape]

    def begin(self, field: Field, i: int) -> int:  # where the chunk of a row begins, up to a constant
        if field.codec != "raw":
            return self.numbers(STORED_OFFSETS, field.f, i)[0]  # 11
        return field.item_nbytes * (self.numbers(OFFSETS, field.f, i)[0] if field.v else i)

    def chunk(self, field: Field, i: int) -> bytes:  # 9
        (b, stop), (offset, nbytes, _, step, first_group) = next(x for x in self.blocks[field.f] if i < x[0][1])
        group, within = divmod(i - b, step)
        rows = (b, i - within, i, i + 1, min(i - within + step, stop))
        origin, a, row_a, row_z, z = (self.begin(field, row) for row in rows)
        need("a row outside its block", origin <= a <= row_a <= row_z <= z <= origin + nbytes)
        raw = self.data[offset + a - origin : offset + z - origin]
        chunk_sum = self.numbers(CHUNK_SUMS, field.f, first_group + group)
        need(f"chunk sum of row {i} of {field.name!r}", [xxh3_64_intdigest(raw)] == chunk_sum)
        return raw[row_a - a : row_z - a]

    def key(self, i: int) -> str:  # 10
        a, z = self.numbers(KEY_OFFSETS, NONE, i, 2)
        need("KEY_OFFSETS", a < z <= self.sections[KEY_BYTES, NONE][1], i > 0 or a == 0)
        need("nbytes of a key", limit=z - a <= 65535)
        key: str = attempt(self.section(KEY_BYTES, NONE, a, z).decode)
        need("U+0000 in a key", "\0" not in key)
        return key

    def find(self, key: str) -> Iterator[int]:
        for place, key_hash in enumerate(self.numbers(KEY_HASHES, NONE, 0, self.num)):
            if key_hash == xxh3_64_intdigest(key.encode()):
                (i,) = self.numbers(KEY_ORDER, NONE, place)
                need("KEY_ORDER", i < self.num)
                if self.key(i) == key:
                    yield self.first + i

    def row(self, field: Field, i: int) -> Any:  # 11; an array; a str where the dtype is string
        need(f"codec {field.codec!r}", field.codec in LIBRARIES, error="UnsupportedFeatureError")
        chunk, shape, place = self.chunk(field, i), self.row_shape(field, i), (DICTIONARY, field.f)
        nbytes, dictionary = field.nbytes(shape), self.section(*place) if place in self.sections else b""
        raw = attempt(decode, field.codec, chunk, nbytes, dictionary)
        return attempt(raw.decode) if field.dtype_name == "string" else np.ndarray(shape, field.dtype, raw)


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
        flags, width, size, block, stored, *filters, zero, special = struct.unpack_from("<2xBB3I6B8xBB", chunk)
        need("flags or filters", flags & 5 == 5, flags >> 5 in (0, 1, 3, 4), max(filters) <= 4, zero == 0)
        need("dictionary, lazy, or not initialized", special & 0x89 == 0, special >> 4 <= 3)
        need("sizes", (size, stored) == (nbytes, len(chunk)), width > 0)
        need("size of a block", flags & 2 or special & 0x70 or (block >= width and block % width == 0))
        raw = library.decompress2(chunk)
    need(f"{len(raw)} bytes of a row, expected {nbytes}", len(raw) == nbytes)
    return raw


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
        self.fields = parse_schema(newest.section(SCHEMA))
        self.names, ends = [field.name for field in self.fields], [0] * len(self.fields)
        self.has_keys = (KEY_BYTES, NONE) in newest.sections
        for x in self.segments:
            need("SCHEMA differs", x.num_fields == len(self.fields), x.section(SCHEMA) == newest.section(SCHEMA))
            x.check_sections(self.fields, self.has_keys)
            x.check_blocks(self.fields, ends)

    def rows(self, name: str) -> Iterator[Any]:
        field = self.fields[self.names.index(name)]
        return (x.row(field, i) for x in self.segments for i in range(x.num))

    def keys(self) -> list[str]:
        return [x.key(i) for x in self.segments if self.has_keys for i in range(x.num)]

    def find(self, key: str) -> int | None:
        found = [next(x.find(key), None) for x in self.segments if self.has_keys]
        return next((i for i in found if i is not None), None)

    def attrs(self) -> dict[str, Any]:
        return parse_object(self.segments[-1].section(ATTRS))


if __name__ == "__main__":
    container = Container(*sys.argv[1:])
    print(f"{container.num_samples} samples, generation {container.generation}, attrs {container.attrs()}")
    print(*(f"{x.name!r}: {x.dtype_name}, shape {x.shape}, codec {x.codec}" for x in container.fields), sep="\n")
