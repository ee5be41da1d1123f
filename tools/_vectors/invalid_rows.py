"""Invalid vectors of sections 7 to 13: shards, blocks, rows, sums, keys, codecs, segments, coverage."""

from __future__ import annotations

import struct

import numpy as np

from _vectors.builder import (
    BLOCKS,
    CHUNK_SUMS,
    DICTIONARY,
    KEY_HASHES,
    KEY_OFFSETS,
    KEY_ORDER,
    OFFSETS,
    SCHEMA,
    SHAPES,
    SHARD_STARTS,
    STORED_OFFSETS,
    SUPERSEDED,
    Column,
    Image,
    Sections,
    append,
    converted,
    key_sections,
    u64s,
    zlib_stored,
    zstd_raw,
)
from _vectors.damage import (
    CORRUPT,
    LIMIT,
    NONE,
    Rows,
    X,
    coded,
    directory,
    edited,
    fixed,
    flip,
    keyed,
    open_shaped,
    ragged,
    sealed,
    section,
    segments,
    shaped,
    superblock,
    superseding,
    two_fields,
)
from _vectors.valid import PHRASE, ramp, scalars, with_phrase


def shards() -> Rows:
    """Section 7, and the coverage of section 13."""
    starts = (SHARD_STARTS, NONE)
    for name, values, what in (
        ("first", (1, 3, 5), "SHARD_STARTS begins with 1."),
        ("last", (0, 3, 6), "SHARD_STARTS ends with 6 of 5 samples."),
        ("equal", (0, 0, 5), "A shard of no samples."),
        ("descending", (0, 7, 5), "SHARD_STARTS descends."),
        ("huge", (0, 2**64 - 1, 5), "A shard begins at 2^64 - 1, which is -1 as i64."),
    ):
        yield f"shard-starts-{name}", CORRUPT, "open", "7", what, section(fixed(), starts, 0, u64s(*values))
    place = (BLOCKS, NONE)
    for name, at, value, what in (
        ("offset-superblock", 0, 4096, "A block in superblock B."),
        ("offset-behind-end", 0, 1 << 40, "A block behind the committed end."),
        ("offset-overflow", 0, 2**64 - 4096, "A block at 2^64 - 4096."),
        ("offset-unaligned", 0, 12288 + 8, "The first block is at no multiple of 4096."),
        ("offset-second", 40, 12288 + 16, "The second block is 4 bytes behind the end of the first."),
        ("nbytes", 8, 16, "A block of 3 rows of 4 bytes is said to have 16 bytes."),
        ("nbytes-huge", 8, 2**64 - 4096, "A block of 2^64 - 4096 bytes."),
        ("rows-per-group-0", 24, 0, "0 rows a group."),
        ("rows-per-group", 24, 1, "1 row a group, which asks for more CHUNK_SUMS than there are."),
        ("first-group", 32, 1, "The first group of the first shard is 1."),
        ("first-group-second", 72, 0, "The first group of the second shard is 0."),
    ):
        yield f"block-{name}", CORRUPT, "open", "7", what, section(fixed(), place, at, u64s(value))
    yield "block-sum", CORRUPT, "verify", "7", "The sum of a block is wrong.", section(fixed(), place, 16, u64s(1))
    image = two_fields()
    what = "The blocks of two fields are the same bytes."
    end = image.blocks[0][0].offset
    entry_of_y = u64s(end, 12, struct.unpack_from("<Q", image.data, image.live[-1].places[place][0] + 16)[0])
    yield "block-overlap", CORRUPT, "open|verify", "7", what, section(image, place, 40, entry_of_y)
    image = converted([Column("x", "uint8", [8], [np.frombuffer(b"CKS-INDX", "u1")])], [(0, 1)])
    what = "A block lies in the segment: its bytes are the magic of the directory."
    yield "block-in-segment", CORRUPT, "open|verify", "7", what, section(image, place, 0, u64s(8192))
    image = fixed()
    what = "Padding behind the last block is not zero."
    yield "padding-block", CORRUPT, "verify", "13", what, flip(image, len(image.data) - 1)
    what = "A page of zeros that belongs to nothing, in front of the committed end."
    yield "gap", CORRUPT, "verify", "13", what, superblock(64, u64s(len(image.data) + 4096), with_page(fixed()))
    what = "A bit flipped in the first row."
    yield "chunk-flip", CORRUPT, "read", "9", what, flip(fixed(), 12288)
    what = "The sum of the second group is wrong; that of its block is right."
    yield "chunk-sum", CORRUPT, "read", "9", what, section(fixed(), (CHUNK_SUMS, 0), 8, u64s(5))
    nothing = converted([Column("x", "uint8", [0], [np.zeros(0, "u1")] * 2)], [(0, 2)])
    what = "The sum of a group of no bytes is wrong."
    yield "chunk-sum-of-nothing", CORRUPT, "read|verify", "9", what, section(nothing, (CHUNK_SUMS, 0), 0, u64s(5))


def with_page(image: Image) -> Image:
    """Add 4096 zeros."""
    image.data += bytes(4096)
    return image


def ragged_rows() -> Rows:
    """Section 8.2 and 8.3."""
    place = (OFFSETS, 0)
    for name, image, values, where, expect, what in (
        ("first", ragged(), (1, 3, 3, 4, 7, 8), "read|verify", CORRUPT, "The first OFFSETS of the container is 1."),
        ("negative", ragged(), (-1, 2, 2, 3, 6, 7), "read", CORRUPT, "OFFSETS begins with -1."),
        ("descending", ragged(), (0, 3, 2, 3, 6, 7), "read", CORRUPT, "OFFSETS descends."),
        ("block-nbytes", ragged(), (0, 2, 2, 4, 7, 8), "read", CORRUPT, "More items than the first block has."),
        ("huge", ragged(), (0, 2, 2, 3, 6, 2**63 - 1), "read", CORRUPT, "2^63 - 1 items; their nbytes overflow."),
        ("wrapped", ragged(), (0, 2, 2, 3, 6, 2**63 - 2**63 + 7 + 2**62), "read", CORRUPT, "2^62 items too many."),
    ):
        data = section(image, place, 0, struct.pack("<6q", *values))
        yield f"offsets-{name}", expect, where, "8.2", what, data
    empty = converted([Column("x", "float64", [None, 0, 3], [np.zeros((2, 0, 3), "<f8")])], [(0, 1)])
    what = "A row of 2^62 items of no bytes: without the dimension 0 it has more than 2^63 - 1 bytes."
    yield "offsets-limit", LIMIT, "read", "15", what, section(empty, place, 0, u64s(0, 1 << 62))
    place = (SHAPES, 0)
    for name, image, values, expect, what in (
        ("product", shaped(), (8, 3), CORRUPT, "The product of the dimensions is not the number of items."),
        ("constant", shaped(), (4, 4), CORRUPT, "The product is right, but the first dimension is not 8."),
        ("negative", open_shaped(), (-2, -3), CORRUPT, "Two negative dimensions, whose product is right."),
        ("wrapped", open_shaped(), (2**32 + 2, 2**63 + 3), CORRUPT, "Dimensions beyond all bounds."),
    ):
        data = section(image, place, 0, u64s(*(value % 2**64 for value in values)))
        yield f"shapes-{name}", expect, "read", "8.2", what, data
    what = "No items, but dimensions whose product is 2^64, which is 0 as u64."
    yield "shapes-product-wraps", CORRUPT, "read", "8.2", what, section(open_shaped(), place, 16, u64s(2**32, 2**32))
    rows = [ramp((0, 0, 0), "u1")]
    image = converted([Column("s", "uint8", [None, None, None], rows)], [(0, 1)])
    what = "A row of shape (2^62, 4, 0)."
    yield "shapes-limit", LIMIT, "read", "15", what, section(image, place, 0, u64s(2**62, 4, 0))
    image = converted([Column("t", "string", [], [np.frombuffer(b"\xff\xfe", "u1")])], [(0, 1)])
    yield "string-not-utf8", CORRUPT, "read", "8.3", "A text that is not UTF-8.", bytes(image.data)


def keys() -> Rows:
    """Section 10."""
    yield "key-twice", CORRUPT, "verify", "10", "Two samples have one key.", keyed(b"a", b"b", b"a")
    yield "key-empty", CORRUPT, "read", "10", "A key of 0 bytes.", keyed(b"a", b"", b"b")
    yield "key-zero", CORRUPT, "read", "10", "A key with U+0000.", keyed(b"a", b"b\0")
    yield "key-not-utf8", CORRUPT, "read", "10", "A key that is not UTF-8.", keyed(b"a", b"\xc3")
    yield (
        "key-surrogate",
        CORRUPT,
        "read|verify",
        "10",
        "A key with an encoded surrogate.",
        keyed(b"a", b"\xed\xa0\x80"),
    )
    yield "key-limit", LIMIT, "read", "15", "A key of 65,536 bytes.", keyed(b"k" * 65536)
    sums = sorted(struct.unpack("<3Q", key_sections([b"a", b"b", b"c"])[KEY_HASHES, NONE]))
    for name, kind, content, where, what in (
        ("offsets-first", KEY_OFFSETS, u64s(1, 2, 2, 3), "read", "KEY_OFFSETS begins with 1."),
        ("offsets-descending", KEY_OFFSETS, u64s(0, 2, 1, 3), "read", "KEY_OFFSETS descends."),
        ("offsets-behind", KEY_OFFSETS, u64s(0, 1, 2, 400), "read", "A key ends behind KEY_BYTES."),
        ("hashes-unsorted", KEY_HASHES, u64s(*sums[::-1]), "read|verify", "KEY_HASHES descends."),
        ("hash", KEY_HASHES, u64s(*sums[:2], sums[2] + 1), "read|verify", "The hash of a key is wrong."),
        ("order-range", KEY_ORDER, struct.pack("<3I", 3, 3, 3), "read", "KEY_ORDER holds the position 3 of 3."),
        ("order-same", KEY_ORDER, struct.pack("<3I", 1, 1, 1), "read|verify", "KEY_ORDER is no permutation."),
    ):

        def edit(sections: Sections, kind: int = kind, content: bytes = content) -> None:
            sections.update(key_sections([b"a", b"b", b"c"]))
            sections[kind, NONE] = content

        yield f"key-{name}", CORRUPT, where, "10", what, edited(X, 3, edit)
    image = converted([scalars(0)], [], keys=[])
    what = "KEY_OFFSETS of no keys is 1."
    yield "key-offsets-empty", CORRUPT, "verify", "10", what, section(image, (KEY_OFFSETS, NONE), 0, u64s(1))


def codecs() -> Rows:
    """Section 11."""
    place = (STORED_OFFSETS, 0)
    size = len(zlib_stored(bytes(4)))
    for name, values, where, what in (
        ("first", (1, size + 1, 2 * size + 1, 3 * size + 1), "read|verify", "The first STORED_OFFSETS is 1."),
        ("descending", (0, 2 * size + 1, 2 * size, 3 * size), "read", "STORED_OFFSETS descends."),
        ("block-nbytes", (0, size, 2 * size + 1, 3 * size), "read", "More bytes than the first block has."),
        ("huge", (0, size, 2 * size, 2**64 - 1), "read", "2^64 - 1 stored bytes."),
    ):
        data = section(coded(), place, 0, u64s(*(value % 2**64 for value in values)))
        yield f"stored-offsets-{name}", CORRUPT, where, "11", what, data
    frame = zstd_raw(bytes(4))
    bomb = frame[:4] + b"\xe0" + u64s(1 << 40) + frame[6:]
    for name, codec, encode, what in (
        ("zlib-garbage", "zlib", lambda raw: b"garbage", "The chunk is no zlib stream; its sums are right."),
        ("zlib-adler", "zlib", lambda raw: zlib_stored(raw)[:-1] + b"\xff", "The Adler-32 of a stream is wrong."),
        ("zlib-short", "zlib", lambda raw: zlib_stored(raw[:-1]), "A row decodes to one byte less."),
        ("zlib-long", "zlib", lambda raw: zlib_stored(raw + b"x"), "A row decodes to one byte more."),
        ("zlib-bomb", "zlib", lambda raw: zlib_stored(bytes(3000)), "A row of 4 bytes decodes to 3000."),
        ("zlib-trailing", "zlib", lambda raw: zlib_stored(raw) + b"x", "A byte behind the stream."),
        ("zlib-truncated", "zlib", lambda raw: zlib_stored(raw)[:-2], "The stream ends too early."),
        ("zlib-nothing", "zlib", lambda raw: b"", "A row of 4 bytes has a chunk of 0 bytes."),
        ("zstd-garbage", "zstd", lambda raw: b"garbage", "The chunk is no Zstandard frame."),
        ("zstd-long", "zstd", lambda raw: zstd_raw(raw + b"x"), "A frame of one byte more."),
        ("zstd-bomb", "zstd", lambda raw: bomb, "A frame that claims 1 TiB."),
        ("zstd-trailing", "zstd", lambda raw: zstd_raw(raw) + b"x", "A byte behind the frame."),
        ("zstd-two-frames", "zstd", lambda raw: zstd_raw(raw[:2]) + zstd_raw(raw[2:]), "Two frames."),
        ("zstd-truncated", "zstd", lambda raw: zstd_raw(raw)[:-1], "The frame ends too early."),
    ):
        yield name, CORRUPT, "read", "11", what, bytes(coded(codec, encode).data)
    column = Column("r", "uint8", [None], [np.zeros(0, "u1")], "zlib", encode=zlib_stored)
    image = converted([nothing_as_stream(column)], [(0, 1)])
    yield "chunk-of-nothing", CORRUPT, "read", "11", "A row of 0 bytes has a chunk of some.", bytes(image.data)
    text = f"00{PHRASE[-20:].decode()}"
    column = Column("t", "string", [], [text], "zstd", dictionary=PHRASE, encode=with_phrase)
    image = converted([column], [(0, 1)])
    at = image.live[-1].places[DICTIONARY, 0][0]
    yield "dictionary-flip", CORRUPT, "read", "11", "A bit flipped in DICTIONARY.", flip(image, at)


class _NothingAsStream(Column):
    def stored(self, i: int) -> bytes:
        return zlib_stored(b"")


def nothing_as_stream(column: Column) -> Column:
    """Return a column whose empty rows have a stream of nothing as their chunk."""
    return _NothingAsStream(column.name, column.dtype, column.shape, column.rows, column.codec)


def generations() -> Rows:
    """Section 12."""
    at = segments().live[-1].earlier_at - segments().live[-1].offset
    for name, offset, value, what in (
        ("offset-unaligned", 0, 8200, "The earlier segment is at no multiple of 4096."),
        ("offset-behind-end", 0, 1 << 40, "The earlier segment is behind the committed end."),
        ("nbytes", 8, 64, "The directory of the earlier segment is said to have 64 bytes."),
        ("first-sample", 16, 1, "The entry says that the earlier segment begins with sample 1."),
        ("num-samples", 24, 2, "The entry says that the earlier segment has 2 samples instead of 3."),
    ):
        yield f"earlier-{name}", CORRUPT, "open", "12", what, directory(at + offset, u64s(value), segments())
    image = segments()
    image.put(image.live[-1].earlier_at + 32, bytes(16))
    for sb in (0, 4096):
        image.put(sb + 88, image.directory_digest(image.live[-1]))
    what = "The checksum of the earlier directory is wrong in its entry."
    yield "earlier-checksum", CORRUPT, "open", "12", what, sealed(image, 0, b"", "superblocks")
    what = "A bit flipped in the directory of the earlier segment."
    yield "earlier-flip", CORRUPT, "open", "12", what, flip(segments(), 8192 + 61)
    what = "The newest segment begins one sample too late, its SHARD_STARTS too."
    image = segments()
    image.put(image.live[-1].places[SHARD_STARTS, NONE][0], u64s(4, 6))
    yield "segment-gap", CORRUPT, "open", "12", what, directory(8, u64s(4), resealed(image))
    what = "The newest segment begins with shard 2 instead of 1."
    yield "segment-first-shard", CORRUPT, "open", "12", what, directory(24, u64s(2), segments())
    what = "The SCHEMA of the earlier segment differs by a letter."
    image = segments()
    place = image.live[0].places[SCHEMA, NONE]
    text = bytes(image.data[place[0] : place[0] + place[1]]).replace(b'"r"', b'"q"')
    yield "segment-schema", CORRUPT, "open", "6", what, section(image, (SCHEMA, NONE), 0, text, segment=0)
    what = "OFFSETS of the second segment do not go on from those of the first."
    yield "segment-offsets", CORRUPT, "read|verify", "8.2", what, section(segments(), (OFFSETS, 0), 0, u64s(4, 7, 8))
    image = converted([scalars(3)], [(0, 2)], keys=["a", "b"])
    image.keys = None
    append(image, [(2, 3)])
    yield "segment-without-keys", CORRUPT, "open", "5.3", "Keys in the first segment only.", bytes(image.data)
    image = converted([scalars(3)], [(0, 2)], keys=["a", "b", "a"])
    append(image, [(2, 3)])
    what = "The second segment has a key that the first has."
    yield "segment-key-twice", CORRUPT, "verify", "10", what, bytes(image.data)


def superseded() -> Rows:
    """Section 12: SUPERSEDED."""
    place = (SUPERSEDED, NONE)
    regions = superseding().live[-1].superseded
    for name, at, value, what in (
        ("sum", 16, 1, "The sum of a superseded region is wrong."),
        ("unaligned", 0, regions[0][0] + 8, "A superseded region is at no multiple of 4096."),
        ("overlap", 0, 12288, "A superseded region lies over a block."),
        ("descending", 0, 1 << 40, "The superseded regions are not in the order of their offsets."),
        ("nbytes", 8, 4095, "The nbytes of a superseded region is no multiple of 4096."),
    ):
        yield f"superseded-{name}", CORRUPT, "verify", "12", what, section(superseding(), place, at, u64s(value))
    what = "A bit flipped in a superseded region."
    yield "superseded-flip", CORRUPT, "verify", "12", what, flip(superseding(), regions[0][0] + 100)
    image = unlisted()
    what = "A superseded segment of 4096 bytes is not listed: bytes that nothing covers."
    yield "superseded-unlisted", CORRUPT, "verify", "13", what, bytes(image.data)


def resealed(image: Image) -> Image:
    """Repair every checksum."""
    image.seal("pages")
    return image


def unlisted() -> Image:
    """Replace a segment without listing it."""
    image = converted([scalars(4)], [(0, 2)])
    image.live.pop()
    append(image, [(2, 4)])
    return image


GROUPS = (shards, ragged_rows, keys, codecs, generations, superseded)
