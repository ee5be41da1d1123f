"""The valid vectors: each function builds one container, and says what a reader finds in it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from _vectors.builder import (
    ATTRS,
    BLOCKS,
    CHUNK_SUMS,
    NO_FIELD,
    SCHEMA,
    Column,
    Image,
    Sections,
    append,
    compact_json,
    converted,
    streamed,
    u64s,
    zstd_match,
)


@dataclass
class Vector:
    """A valid container: its bytes and what a reader finds."""

    name: str
    what: str
    image: Image
    verify: str = "clean"  # or "reports": a verifier has something to say, a reader has not
    refused: dict[str, str] = field(default_factory=dict)  # field -> the error of reading it

    def expectation(self) -> dict[str, Any]:
        """Return the content of the `.json` beside the container."""
        image, data = self.image, self.image.data
        fields = [
            {**column.member(), "error": self.refused[column.name]}
            if column.name in self.refused
            else {**column.member(), "rows": column.digest()}
            for column in image.columns
        ]
        return {
            "what": self.what,
            "num_samples": image.num_samples,
            "generation": image.generation,
            "fingerprint": bytes(data[88:104]).hex(),
            "uuid": image.uuid.hex(),
            "fields": fields,
            "keys": image.keys,
            "attrs": image.attrs,
            "verify": self.verify,
        }


FACTORIES: list[Callable[[], Vector]] = []


def vector(function: Callable[[], Vector]) -> Callable[[], Vector]:
    """Add a function to those that build the valid vectors."""
    FACTORIES.append(function)
    return function


def scalars(n: int, name: str = "x") -> Column:
    """Return a field of n 32-bit numbers."""
    return Column(name, "int32", [], [np.array(3 * i - 7, "<i4") for i in range(n)])


def ramp(shape: tuple[int, ...], dtype: str, start: int = 0) -> np.ndarray:
    """Return an array that counts from `start`."""
    return (np.arange(int(np.prod(shape))) + start).astype(dtype).reshape(shape)


@vector
def empty() -> Vector:
    columns = [
        Column("image", "uint8", [4, 4], []),
        Column("text", "string", [], []),
        Column("boxes", "float32", [None, 4], []),
    ]
    return Vector("empty", "No samples, no shards; three fields.", converted(columns, []))


@vector
def empty_with_keys() -> Vector:
    image = converted([scalars(0)], [], keys=[])
    return Vector("empty-with-keys", "No samples; the sections of keys are there, and empty.", image)


@vector
def one_sample() -> Vector:
    columns = [Column("x", "float32", [2, 3], [ramp((2, 3), "<f4")])]
    return Vector("one-sample", "One sample with one field of fixed shape.", converted(columns, [(0, 1)]))


DTYPES: dict[str, str] = {
    "bool": "|u1", "int8": "|i1", "int16": "<i2", "int32": "<i4", "int64": "<i8",
    "uint8": "|u1", "uint16": "<u2", "uint32": "<u4", "uint64": "<u8",
    "float16": "<f2", "float32": "<f4", "float64": "<f8", "bfloat16": "<u2",
    "float8_e4m3fn": "|u1", "float8_e5m2": "|u1", "float8_e4m3fnuz": "|u1", "float8_e5m2fnuz": "|u1",
    "float8_e8m0fnu": "|u1", "complex64": "<c8", "complex128": "<c16",
    "datetime64[ns]": "<i8", "datetime64[25s]": "<i8", "timedelta64[D]": "<i8", "timedelta64[2147483647as]": "<i8",
    "bytes[3]": "|S3", "utf32[2]": "<U2",
}  # fmt: skip


def dtype_rows(dtype: str, stored: str) -> list[np.ndarray]:
    """Return three rows of shape (2,) with the extreme values of a dtype among them."""
    if dtype == "bool":
        return [np.array(row, "|u1") for row in ([0, 1], [1, 1], [0, 0])]
    if dtype.startswith("bytes"):
        return [np.array(row, stored) for row in ([b"abc", b""], [b"a\0c", b"\xff"], [b"\0\0z", b"de"])]
    if dtype.startswith("utf32"):
        return [np.array(row, stored) for row in (["ä", ""], ["\U0001f600x", "b"], ["cd", "\u00e9"])]
    if stored[1] in "iu":
        info = np.iinfo(stored)
        return [np.array(row, stored) for row in ([info.min, info.max], [0, 1], [2, 113])]
    extremes = [[np.finfo(stored).max, np.finfo(stored).tiny], [np.inf, -0.0], [np.nan, -1.5]]
    return [np.array(row, stored) for row in extremes]


@vector
def every_dtype() -> Vector:
    columns = [Column(dtype, dtype, [2], dtype_rows(dtype, stored)) for dtype, stored in DTYPES.items()]
    what = "Every dtype of section 6.1 but string, three rows of two elements each, the extreme values among them."
    return Vector("every-dtype", what, converted(columns, [(0, 3)]))


@vector
def scalar_rows() -> Vector:
    image = converted([scalars(7), Column("y", "float64", [], [np.array(i / 4, "<f8") for i in range(7)])], [(0, 7)])
    return Vector("scalar-rows", "Rows of shape [] (0-d): one element each.", image)


@vector
def zero_length_rows() -> Vector:
    columns = [
        Column("nothing", "float32", [0], [np.zeros(0, "<f4")] * 5),
        Column("x", "uint8", [2], [ramp((2,), "u1", i) for i in range(5)]),
        Column("wide", "uint16", [3, 0, 2], [np.zeros((3, 0, 2), "<u2")] * 5),
    ]
    what = "Rows of no bytes beside others; blocks of no bytes, with one group a block."
    return Vector("zero-length-rows", what, converted(columns, [(0, 3), (3, 5)]))


@vector
def several_shards() -> Vector:
    rows = [ramp((3, 5), "<i2", 100 * i) for i in range(11)]
    image = converted([Column("x", "int16", [3, 5], rows), scalars(11, "y")], [(0, 4), (4, 5), (5, 11)])
    return Vector("several-shards", "Three shards of different sizes; each field is one extent of 11 rows.", image)


@vector
def streamed_extents() -> Vector:
    rows = [ramp((3,), "<f4", 10 * i) for i in range(8)]
    image = streamed([Column("x", "float32", [3], rows), scalars(8, "y")], [(0, 3), (3, 6), (6, 8)])
    return Vector("streamed", "The index behind the data; each block is an extent of its own.", image)


@vector
def streamed_one_extent() -> Vector:
    column = Column("x", "uint8", [3], [ramp((3,), "u1", i) for i in range(8)])
    image = streamed([column], [(0, 3), (3, 6), (6, 8)], by_field=True)
    what = "The index behind the data; the blocks of the one field join without a gap, so they are one extent."
    return Vector("streamed-one-extent", what, image)


def ragged_rows() -> list[np.ndarray]:
    """Return six rows (L, 2), some of no items."""
    return [ramp((n, 2), "<f4", 10 * n) for n in (3, 0, 1, 4, 0, 2)]


@vector
def ragged() -> Vector:
    columns = [
        Column("points", "float32", [None, 2], ragged_rows()),
        Column("labels", "int64", [None], [ramp((n,), "<i8") for n in (0, 0, 0, 5, 1, 0)]),
    ]
    what = "Ragged rows with v = 1, empty rows among them, and a block of no bytes; two shards."
    return Vector("ragged", what, converted(columns, [(0, 3), (3, 6)]))


@vector
def ragged_empty_items() -> Vector:
    rows = [np.zeros((n, 0, 3), "<f8") for n in (2, 0, 5)]
    what = "Ragged rows whose items have no bytes: the offsets still count items."
    return Vector("ragged-empty-items", what, converted([Column("x", "float64", [None, 0, 3], rows)], [(0, 3)]))


@vector
def ragged_shapes() -> Vector:
    shapes = [(2, 3, 2), (0, 4, 2), (1, 1, 2), (5, 0, 2)]
    columns = [Column("image", "uint8", [None, None, 2], [ramp(s, "u1", 7) for s in shapes])]
    what = "Two dimensions differ from row to row: SHAPES with v = 2; rows of no bytes keep their shape."
    return Vector("ragged-shapes", what, converted(columns, [(0, 4)]))


@vector
def ragged_last_dimension() -> Vector:
    rows = [ramp((8, n), "<i2", n) for n in (2, 0, 3)]
    what = "Shape [8, null]: v = 2, the item shape is (), and SHAPES repeats the 8."
    return Vector("ragged-last-dimension", what, converted([Column("x", "int16", [8, None], rows)], [(0, 2), (2, 3)]))


@vector
def ragged_largest_dimension() -> Vector:
    column = Column("x", "uint8", [None, None], [np.zeros((0, 2**63 - 1), "u1")])
    what = "A row of shape (0, 2^63 - 1): without the dimension 0 it has just as many bytes as section 15 allows."
    return Vector("ragged-largest-dimension", what, converted([column], [(0, 1)]))


@vector
def ragged_middle_dimension() -> Vector:
    rows = [ramp((2, n, 3), "<u4", n) for n in (1, 2, 0)]
    what = "Shape [2, null, 3]: v = 2 and the item shape is (3)."
    return Vector("ragged-middle-dimension", what, converted([Column("x", "uint32", [2, None, 3], rows)], [(0, 3)]))


@vector
def strings() -> Vector:
    texts = ["", "chunk", "Größe", "\U0001f9ea test", "a\0b", "\ufeffbom"]
    image = converted([Column("text", "string", [], texts)], [(0, 4), (4, 6)])
    return Vector("strings", "A field of dtype string: empty, non-ASCII, U+0000 and a byte order mark.", image)


KEYS = ["cat/0001", "cat/0002", "Ä", "a\u0308", "\U0001f600", "0", "dog\n7"]


@vector
def keys() -> Vector:
    image = converted([scalars(7)], [(0, 4), (4, 7)], keys=KEYS)
    what = "Keys, not ASCII among them, two that differ only in Unicode normalisation; hash order is not their order."
    return Vector("keys", what, image)


@vector
def attrs() -> Vector:
    value = {"title": "Größe", "nested": {"list": [1, 2.5, None, True, "x"], "empty": {}}, "big": 2**60}
    return Vector("attrs", "Attributes of every JSON type.", converted([scalars(2)], [(0, 2)], attrs=value))


@vector
def attrs_levels() -> Vector:
    value: Any = 1
    for _ in range(63):
        value = [value]
    image = converted([scalars(1)], [(0, 1)], attrs={"a": value})
    return Vector("attrs-64-levels", "Attributes of 64 nested levels, the outer object counted: the most.", image)


@vector
def grouped_sums() -> Vector:
    rows = [ramp((100,), "<i8", i) for i in range(23)]
    image = converted([Column("x", "int64", [100], rows)], [(0, 12), (12, 23)])
    what = "Rows of 800 bytes: 6 rows a group; the last group of the second shard has 5."
    return Vector("grouped-sums", what, image)


@vector
def groups_of_one() -> Vector:
    rows = [ramp((4096,), "u1", i) for i in range(3)]
    return Vector(
        "groups-of-one",
        "Rows of 4096 bytes: each is a group.",
        converted([Column("x", "uint8", [4096], rows)], [(0, 3)]),
    )


@vector
def other_groups() -> Vector:
    def edit(sections: Sections) -> None:
        from xxhash import xxh3_64_intdigest

        rows = [column.raw(i) for i in range(5)]
        entry = list(struct.unpack("<5Q", sections[BLOCKS, NO_FIELD]))
        entry[3] = 2
        sections[BLOCKS, NO_FIELD] = u64s(*entry)
        sections[CHUNK_SUMS, 0] = u64s(*(xxh3_64_intdigest(b"".join(rows[k : k + 2])) for k in (0, 2, 4)))

    column = scalars(5)
    what = "Two rows a group, where a writer of this project would take five: a reader takes what BLOCKS says."
    return Vector("other-groups", what, converted([column], [(0, 5)], edit=edit))


def three(n: int) -> list[Column]:
    """Return three fields for containers of several generations."""
    return [
        scalars(n),
        Column("r", "int16", [None], [ramp((i % 4,), "<i2", i) for i in range(n)]),
        Column("z", "uint8", [6], [ramp((6,), "u1", i) for i in range(n)], "zlib"),
    ]


@vector
def two_generations() -> Vector:
    image = converted(three(7), [(0, 4)], keys=KEYS[:4])
    image.keys, image.attrs = KEYS, {"version": 2}
    append(image, [(4, 7)])
    return Vector("two-generations", "A converted container with one append: two live segments.", image)


@vector
def three_generations() -> Vector:
    image = converted(three(9)[:2], [(0, 3)])
    append(image, [(3, 5)])
    append(image, [(5, 7), (7, 9)], replace=1)
    what = "Generation 3 replaces the segment of generation 2, which is superseded; that of generation 1 lives on."
    return Vector("three-generations", what, image)


@vector
def all_superseded() -> Vector:
    image = converted(three(6)[1:2], [(0, 2)])
    append(image, [(2, 4)], replace=1)
    append(image, [(4, 6)], replace=1)
    what = "Each generation replaces the segment before: one live segment, two superseded regions, listed in one."
    return Vector("all-superseded", what, image)


@vector
def appended_nothing() -> Vector:
    image = converted([scalars(3)], [(0, 3)])
    image.attrs = {"note": "new attributes only"}
    append(image, [])
    return Vector(
        "appended-attrs", "Generation 2 has no new samples, only new attributes: a segment of no shards.", image
    )


@vector
def tables_that_do_not_count() -> Vector:
    image = converted([scalars(7)], [(0, 2)])
    append(image, [(2, 5)])
    append(image, [(5, 7)])
    image.put(image.live[1].earlier_at, b"\xaa" * 48)
    image.seal("directories")
    what = "The table of earlier segments of an earlier segment makes no sense: it does not count."
    return Vector("earlier-tables", what, image)


@vector
def joined_across_segments() -> Vector:
    rows = [ramp((1024,), "u1", i) for i in range(8)]
    image = converted([Column("x", "uint8", [1024], rows)], [(0, 4)])
    append(image, [(4, 8)])
    what = "Blocks of two segments that join: the second begins where the first ends."
    return Vector("joined-across-segments", what, image)


@vector
def codec_zlib() -> Vector:
    columns = [
        Column("x", "uint8", [40], [ramp((40,), "u1", i) for i in range(5)], "zlib"),
        Column("r", "int16", [None, 2], [ramp((n, 2), "<i2") for n in (0, 3, 1, 0, 2)], "zlib"),
        Column("t", "string", [], ["", "one", "zwei", "drei", ""], "zlib"),
    ]
    what = "zlib streams with one stored block each; rows of 0 bytes have chunks of 0 bytes."
    return Vector("codec-zlib", what, converted(columns, [(0, 3), (3, 5)]))


@vector
def codec_zstd() -> Vector:
    columns = [
        Column("x", "uint8", [40], [ramp((40,), "u1", i) for i in range(5)], "zstd"),
        Column("s", "uint8", [None, None], [ramp(s, "u1") for s in ((2, 3), (0, 1), (1, 1), (4, 2), (3, 0))], "zstd"),
    ]
    what = "Zstandard frames with one raw block each; a fixed and a ragged field."
    return Vector("codec-zstd", what, converted(columns, [(0, 3), (3, 5)]))


PHRASE = b"a dictionary of raw content: the quick brown fox"


def with_phrase(raw: bytes) -> bytes:
    """Encode 2 own bytes and the last 20 of the dictionary as one frame."""
    return zstd_match(raw[:2], 22, 20, len(raw))


@vector
def codec_zstd_dictionary() -> Vector:
    texts = [f"{i:02d}{PHRASE[-20:].decode()}" for i in range(3)]
    columns = [Column("t", "string", [], texts, "zstd", dictionary=PHRASE, encode=with_phrase)]
    what = "Zstandard frames whose match reaches into a DICTIONARY of raw content."
    return Vector("codec-zstd-dictionary", what, converted(columns, [(0, 3)]))


@vector
def unknown_codec() -> Vector:
    columns = [scalars(3), Column("y", "uint8", [2], [ramp((2,), "u1", i) for i in range(3)], "lz77")]
    what = "A codec that no reader knows beside a readable field: only that field is refused."
    image = converted(columns, [(0, 3)])
    return Vector("unknown-codec", what, image, refused={"y": "UnsupportedFeatureError"})


@vector
def superblock_b_stale() -> Vector:
    image = converted([scalars(5)], [(0, 3)])
    before = bytes(image.data[4096:8192])
    append(image, [(3, 5)])
    image.data[4096:8192] = before
    what = "Superblock B still names generation 1: a writer stopped between A and B."
    return Vector("superblock-b-stale", what, image, "reports")


@vector
def superblock_a_torn() -> Vector:
    image = converted([scalars(3)], [(0, 3)])
    image.data[2048:4096] = bytes(2048)
    what = "The second half of superblock A was never written: B counts."
    return Vector("superblock-a-torn", what, image, "reports")


@vector
def superblock_a_unknown_major() -> Vector:
    image = converted([scalars(2)], [(0, 2)])
    image.data[8:10] = b"\x02\x00"
    what = "Superblock A says major 2, under a wrong checksum; B is whole and counts."
    return Vector("superblock-a-torn-major", what, image, "reports")


@vector
def compatible_flag() -> Vector:
    image = converted([scalars(2)], [(0, 2)])
    for at in (32, 4128):
        image.put(at, u64s(1 << 40))
    image.seal("superblocks")
    return Vector("compatible-flag", "An unknown compatible flag: a reader ignores it.", image)


@vector
def read_only_compatible_flag() -> Vector:
    image = converted([scalars(2)], [(0, 2)])
    for at in (24, 4120):
        image.put(at, u64s(1))
    image.seal("superblocks")
    return Vector("read-only-compatible-flag", "An unknown read-only-compatible flag: readable, not appendable.", image)


@vector
def minor_version() -> Vector:
    image = converted([scalars(2)], [(0, 2)])
    for at in (10, 4106):
        image.put(at, b"\x07\x00")
    image.seal("superblocks")
    return Vector("minor-version", "Format minor 7: a reader ignores it.", image)


@vector
def reserved_bytes() -> Vector:
    image = converted([scalars(2)], [(0, 2)])
    for at in (12, 4108, 104, 4200, 4079, 8175, 8192 + 60):
        image.put(at, b"\xaa")
    image.seal("directories")
    what = "Reserved bytes of superblocks and directory are not zero: a reader ignores them."
    return Vector("reserved-bytes", what, image)


@vector
def unknown_section() -> Vector:
    def edit(sections: Sections) -> None:
        sections[77, NO_FIELD] = b"of a later version"
        sections[77, 5] = b""

    image = converted([scalars(2)], [(0, 2)], edit=edit)
    return Vector("unknown-section", "Two sections of kind 77: a reader ignores them.", image)


@vector
def unknown_members() -> Vector:
    def edit(sections: Sections) -> None:
        member = {**scalars(0).member(), "unit": "mm"}
        text = compact_json({"comment": [1, {"x": None}], "fields": [member]})
        sections[SCHEMA, NO_FIELD] = text.replace(b",", b" ,\r\n\t ")
        sections[ATTRS, NO_FIELD] = b' { "a" : "\\ud800" } \n'

    image = converted([scalars(2)], [(0, 2)], edit=edit)
    image.attrs = {"a": "\ud800"}
    what = "Members of SCHEMA that no reader knows, blanks wherever JSON allows them, half a surrogate pair in ATTRS."
    return Vector("unknown-schema-members", what, image)


@vector
def trailing_bytes() -> Vector:
    image = converted([scalars(2)], [(0, 2)])
    image.data += b"an append that did not finish"
    what = "Bytes behind the committed end: a reader ignores them, a verifier reports them."
    return Vector("trailing-bytes", what, image, "reports")


@vector
def several_pages() -> Vector:
    rows = [np.full(i % 2, i % 251, "u1") for i in range(8200)]
    image = converted([Column("x", "uint8", [None], rows)], [(0, 5000), (5000, 8200)])
    return Vector("several-pages", "8200 ragged rows: OFFSETS has two pages, the second of 72 bytes.", image)


def odd_names() -> list[str]:
    """Return field names of every kind that is allowed."""
    return ["x" * 255, "größe", "a/b c", "\U0001f600", "../x", '"', "\u0080", "fields"]


@vector
def field_names() -> Vector:
    columns = [Column(name, "uint8", [1], [np.array([k], "u1")]) for k, name in enumerate(odd_names())]
    what = "Names of fields: 255 bytes, not ASCII, a quotation mark, a path, a C1 control character."
    return Vector("field-names", what, converted(columns, [(0, 1)]))


@vector
def most_dimensions() -> Vector:
    columns = [Column("x", "int8", [1] * 32, [np.array([k], "i1").reshape([1] * 32) for k in range(2)])]
    return Vector("most-dimensions", "32 dimensions.", converted(columns, [(0, 2)]))
