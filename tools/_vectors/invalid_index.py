"""Invalid vectors of sections 4 to 6: superblocks, directories, section tables, schema and attributes."""

from __future__ import annotations

import struct

from _vectors.builder import (
    ATTRS,
    BLOCKS,
    CHUNK_SUMS,
    DICTIONARY,
    KEY_BYTES,
    KEY_HASHES,
    KEY_OFFSETS,
    KEY_ORDER,
    OFFSETS,
    SCHEMA,
    SHAPES,
    SHARD_STARTS,
    STORED_OFFSETS,
    SUPERSEDED,
    Sections,
    compact_json,
    converted,
    u64s,
)
from _vectors.damage import (
    CORRUPT,
    FEATURE,
    LIMIT,
    NONE,
    NOT_OURS,
    TRUNCATED,
    VERSION,
    ZSTD,
    R,
    Rows,
    S,
    X,
    Z,
    attributes,
    bare,
    directory,
    edited,
    entry,
    fixed,
    flip,
    member,
    resized,
    schema,
    sealed,
    superblock,
    superseding,
    without,
)
from _vectors.valid import scalars


def heads() -> Rows:
    """Section 4: magic, major, checksum, and which of the two superblocks counts."""
    whole = bytes(bare().data)
    end = len(whole)
    no_magic = b"\x09CKS\r\n\x1a\n"
    yield "empty-file", NOT_OURS, "open", "14", "A file of 0 bytes.", b""
    npy = b"\x93NUMPY\x01\x00v\x00{'descr': '<i4', 'fortran_order': False, 'shape': (0,), }".ljust(127) + b"\n"
    yield "npy-file", NOT_OURS, "open", "14", "A .npy file, shorter than two superblocks.", npy
    yield "zeros", NOT_OURS, "open", "4", "8192 bytes of zero.", bytes(8192)
    yield "magic", NOT_OURS, "open", "4", "The high bit of the first byte is gone in A and B.", superblock(0, no_magic)
    text = whole.replace(b"\r\n", b"\n")
    yield "magic-crlf", NOT_OURS, "open", "4", "Sent in text mode: CR LF became LF.", text.ljust(end, b"\0")
    image = bare()
    image.data[0] = 9
    image.data[4096 + 300] ^= 1
    what = "A has no magic, so the error of B counts: a wrong checksum."
    yield "superblock-a-magic-b-checksum", CORRUPT, "open", "4", what, bytes(image.data)
    yield "major-2", VERSION, "open", "4", "Format major 2.", superblock(8, b"\x02\x00")
    yield "major-0", VERSION, "open", "4", "Format major 0.", superblock(8, b"\x00\x00")
    image = bare()
    image.put(8, b"\x02\x00")
    image.seal("superblocks")
    what = "A says major 2 and B has a wrong checksum: the error of A counts."
    yield "superblock-a-major-b-checksum", VERSION, "open", "4", what, flip(image, 4096 + 2000)
    image = bare()
    image.data[57] ^= 1
    what = "One bit flipped in each superblock, in generation and in the reserved bytes."
    yield "superblock-checksums", CORRUPT, "open", "4", what, flip(image, 4096 + 3000)
    yield "superblock-a-flip", CORRUPT, "verify", "4", "A bit of A's committed end flipped: B counts.", flip(bare(), 65)
    yield "superblock-b-flip", CORRUPT, "verify", "4", "A bit of B's reserved bytes flipped.", flip(bare(), 8000)
    image = bare()
    image.put(4096 + 40, bytes(16))
    what = "B is valid and of the same generation, but has another uuid: they must be equal at rest."
    yield "superblocks-differ", CORRUPT, "verify", "4", what, sealed(image, 0, b"", "superblocks")
    image = bare()
    image.put(4096 + 56, u64s(2))
    image.put(4096 + 88, bytes(16))
    what = "B is newer and names a directory with another checksum: no falling back to A."
    yield "superblock-b-newer", CORRUPT, "open", "4", what, sealed(image, 0, b"", "superblocks")


def superblock_values() -> Rows:
    """Section 4: the values of a superblock whose checksum is right, and the length of the file."""
    whole = bytes(bare().data)
    end = len(whole)
    yield "incompatible-flag", FEATURE, "open", "16", "Incompatible flag 0 is set.", superblock(16, u64s(1))
    yield "incompatible-flag-63", FEATURE, "open", "16", "Incompatible flag 63 is set.", superblock(16, u64s(1 << 63))
    yield "generation-0", CORRUPT, "open", "4", "Generation 0.", superblock(56, u64s(0))
    yield "end-unaligned", CORRUPT, "open", "4", "Committed end is no multiple of 4096.", superblock(64, u64s(end - 64))
    yield "end-too-low", CORRUPT, "open", "4", "Committed end in front of the segment.", superblock(64, u64s(8192))
    yield "end-0", CORRUPT, "open", "4", "Committed end 0.", superblock(64, u64s(0))
    what = "Committed end 4096 bytes behind the end of the file."
    yield "end-behind-file", TRUNCATED, "open", "4", what, superblock(64, u64s(end + 4096))
    yield "end-huge", TRUNCATED, "open", "4", "Committed end 2^62.", superblock(64, u64s(1 << 62))
    yield "end-limit", LIMIT, "open", "15", "Committed end 2^63.", superblock(64, u64s(1 << 63))
    yield "truncated-by-1", TRUNCATED, "open", "14", "The last byte is missing.", whole[:-1]
    yield "truncated-to-8192", TRUNCATED, "open", "14", "Only the superblocks are there.", whole[:8192]
    yield "truncated-to-8191", TRUNCATED, "open", "14", "One byte of superblock B is missing.", whole[:8191]
    yield "truncated-to-5", TRUNCATED, "open", "14", "Five bytes of the magic.", whole[:5]
    yield "directory-unaligned", CORRUPT, "open", "4", "Directory at 8256.", superblock(72, u64s(8256))
    yield "directory-in-superblock", CORRUPT, "open", "4", "Directory at 4096.", superblock(72, u64s(4096))
    what = "Directory at the committed end."
    yield "directory-behind-end", CORRUPT, "open", "4", what, superblock(72, u64s(end))
    what = "Directory at 2^64 - 4096: offset + nbytes overflows a u64."
    yield "directory-offset-overflow", CORRUPT, "open", "4", what, superblock(72, u64s(2**64 - 4096))
    yield "directory-nbytes-63", CORRUPT, "open", "4", "A directory of 63 bytes.", superblock(80, u64s(63))
    what = "A directory of 16 MiB + 1 byte."
    yield "directory-limit", LIMIT, "open", "15", what, superblock(80, u64s((16 << 20) + 1))
    yield "directory-checksum", CORRUPT, "open", "4", "Another directory checksum.", superblock(88, bytes(range(16)))


def directories() -> Rows:
    """Section 5.1."""
    yield "directory-flip", CORRUPT, "open", "5.1", "A bit of the reserved bytes flipped.", flip(fixed(), 8192 + 61)
    yield "directory-magic", CORRUPT, "open", "5.1", "Another magic.", directory(0, b"CKS-INDY")
    image = fixed()
    image.live[-1].directory_nbytes += 8
    for at in (80, 4176):
        image.put(at, u64s(image.live[-1].directory_nbytes))
    what = "The directory has 8 bytes more than its counts say, and the checksum is of all."
    yield "directory-nbytes", CORRUPT, "open", "5.1", what, sealed(image, 0, b"", "directories")
    for name, offset, value, what in (
        ("first-sample", 8, 1, "The first segment begins with sample 1."),
        ("num-samples", 16, 6, "One sample more than SHARD_STARTS has."),
        ("num-samples-huge", 16, 1 << 61, "2^61 samples; the length of each section would overflow."),
        ("first-shard", 24, 1, "The first segment begins with shard 1."),
        ("num-shards", 32, 1, "One shard less than SHARD_STARTS has."),
        ("num-shards-0", 32, 0, "Samples, but no shards."),
        ("num-shards-huge", 32, 1 << 59, "More shards than samples."),
        ("segment-nbytes", 40, 8192, "The segment is said to be 4096 bytes longer than its sections."),
        ("segment-nbytes-0", 40, 0, "A segment of 0 bytes."),
        ("segment-nbytes-unaligned", 40, 4032, "The nbytes of the segment is no multiple of 4096."),
        ("segment-behind-end", 40, 1 << 62, "The segment ends behind the committed end."),
    ):
        yield name, CORRUPT, "open", "5.1", what, directory(offset, u64s(value))
    yield "num-samples-limit", LIMIT, "open", "15", "2^63 samples.", directory(16, u64s(1 << 63))
    for name, offset, number, expect, where, what in (
        ("num-fields", 48, 2, CORRUPT, "6", "One field more than SCHEMA has."),
        ("num-fields-0", 48, 0, CORRUPT, "6", "No field."),
        ("num-fields-limit", 48, 65536, LIMIT, "15", "65,536 fields."),
        ("num-sections", 52, 8, CORRUPT, "5.1", "One section less than the directory has room for."),
        ("num-sections-huge", 52, 2**32 - 1, CORRUPT, "5.1", "4,294,967,295 sections in a small directory."),
        ("num-earlier", 56, 1, CORRUPT, "5.1", "An earlier segment, for which the directory has no room."),
        ("num-earlier-limit", 56, 64, LIMIT, "15", "64 earlier segments: 65 live ones."),
    ):
        yield name, expect, "open", where, what, directory(offset, struct.pack("<I", number))


def tables() -> Rows:
    """Sections 5.1 to 5.3: the section table, pages, which sections there are."""
    one = struct.pack("<I", SCHEMA)
    yield "section-order", CORRUPT, "open", "5.1", "Two entries for SCHEMA.", entry((ATTRS, NONE), 0, one)
    image = fixed()
    at = image.live[-1].places[ATTRS, NONE][0]
    what = "ATTRS 64 bytes further than it must be."
    yield "section-offset", CORRUPT, "open", "5.2", what, entry((ATTRS, NONE), 8, u64s(at + 64))
    what = "ATTRS at 2^64 - 64."
    yield "section-offset-overflow", CORRUPT, "open", "5.2", what, entry((ATTRS, NONE), 8, u64s(2**64 - 64))
    what = "A CHUNK_SUMS of 2^64 - 8 bytes: its end overflows a u64."
    yield "section-nbytes-overflow", CORRUPT, "open", "5.2", what, entry((CHUNK_SUMS, 0), 16, u64s(2**64 - 8))
    what = "ATTRS of 16 MiB + 1 byte."
    yield "attrs-limit", LIMIT, "open", "15", what, entry((ATTRS, NONE), 16, u64s((16 << 20) + 1))
    what = "ATTRS with the number of a field."
    yield "section-field", CORRUPT, "open", "5.3", what, entry((ATTRS, NONE), 4, struct.pack("<I", 0))
    for kind, name, where in (
        (SCHEMA, "schema", "open"), (BLOCKS, "blocks", "open"), (SHARD_STARTS, "shard-starts", "open"),
        (ATTRS, "attrs", "read"), (CHUNK_SUMS, "chunk-sums", "read"), (KEY_BYTES, "key-bytes", "read"),
        (KEY_HASHES, "key-hashes", "read"),
    ):  # fmt: skip
        image = fixed()
        place = (kind, 0 if kind == CHUNK_SUMS else NONE)
        at, _, sums_at, _ = image.live[-1].places[place]
        what = f"A bit flipped in the first byte of {name.upper().replace('-', '_')}."
        yield f"page-{name}", CORRUPT, where, "5.2", what, flip(image, at)
        if kind in (SCHEMA, CHUNK_SUMS):
            what = "A bit flipped in a page sum."
            yield f"page-sum-{name}", CORRUPT, where, "5.2", what, flip(fixed(), sums_at)
            image = fixed()
            image.data[sums_at] ^= 1
            what = "A page sum is wrong, and the checksum of the page sums is of the wrong one."
            yield f"page-sum-{name}-sealed", CORRUPT, where, "5.2", what, sealed(image, 0, b"", "tables")
            what = "The checksum of the page sums is wrong in the directory."
            yield f"table-sum-{name}", CORRUPT, where, "5.2", what, entry(place, 24, u64s(7))
    image = converted([scalars(2)], [(0, 2)], keys=["k" * 65535, "kk"])
    what = "A bit flipped in the second page of KEY_BYTES."
    yield "page-second", CORRUPT, "read", "5.2", what, flip(image, image.live[-1].places[KEY_BYTES, NONE][0] + 65536)
    image = fixed()
    first, last = image.live[-1].places[SCHEMA, NONE], image.live[-1].places[KEY_ORDER, NONE]
    what = "Padding between the section bytes and the page sums is not zero."
    yield "padding-section", CORRUPT, "verify", "2", what, flip(fixed(), last[0] + last[1])
    what = "Padding between the page sums and the next section is not zero."
    yield "padding-page-sums", CORRUPT, "verify", "2", what, flip(fixed(), first[2] + 8)
    what = "Padding between the directory and the first section is not zero."
    yield "padding-directory", CORRUPT, "verify", "2", what, flip(fixed(), first[0] - 1)
    what = "Padding at the end of the segment is not zero."
    yield "padding-segment", CORRUPT, "verify", "2", what, flip(fixed(), 8192 + 4095)
    image = converted([scalars(1)], [(0, 1)], edit=lambda s: s.update({(77, NONE): b"unknown"}))
    what = "A bit flipped in a section of an unknown kind: only a verifier looks."
    yield "page-unknown-section", CORRUPT, "verify", "5.3", what, flip(image, image.live[-1].places[77, NONE][0])


def sets_of_sections() -> Rows:
    """Section 5.3: missing, uncalled-for, too long, too short."""
    keys = ["a", "b", "c"]
    for name, place, columns in (
        ("schema", (SCHEMA, NONE), X), ("attrs", (ATTRS, NONE), X), ("shard-starts", (SHARD_STARTS, NONE), X),
        ("blocks", (BLOCKS, NONE), X), ("chunk-sums", (CHUNK_SUMS, 0), X), ("offsets", (OFFSETS, 0), R),
        ("shapes", (SHAPES, 0), S), ("stored-offsets", (STORED_OFFSETS, 0), Z),
        ("key-hashes", (KEY_HASHES, NONE), X),
    ):  # fmt: skip
        data = without(place, columns, 3, keys if name.startswith("key") else None)
        yield f"missing-{name}", CORRUPT, "open", "5.3", f"{name.upper().replace('-', '_')} is missing.", data
    for name, place, content, columns, what in (
        ("offsets", (OFFSETS, 0), u64s(0, 1, 2, 3), X, "OFFSETS of a field of fixed shape."),
        ("shapes", (SHAPES, 0), u64s(2, 0, 1), R, "SHAPES of a field with v = 1."),
        ("stored-offsets", (STORED_OFFSETS, 0), u64s(0, 4, 8, 12), X, "STORED_OFFSETS of a raw field."),
        ("dictionary", (DICTIONARY, 0), b"dictionary", X, "DICTIONARY of a raw field."),
        ("dictionary-empty", (DICTIONARY, 0), b"", ZSTD, "DICTIONARY of 0 bytes."),
        ("dictionary-zlib", (DICTIONARY, 0), b"dictionary", Z, "DICTIONARY of a field of the codec zlib."),
        ("field-1", (CHUNK_SUMS, 1), u64s(0), X, "CHUNK_SUMS of field 1, which does not exist."),
    ):

        def edit(sections: Sections, place: tuple[int, int] = place, content: bytes = content) -> None:
            sections[place] = content

        yield f"uncalled-{name}", CORRUPT, "open", "5.3", what, edited(columns, 3, edit)
    for name, place, by, columns in (
        ("shard-starts-long", (SHARD_STARTS, NONE), 8, X), ("blocks-short", (BLOCKS, NONE), -8, X),
        ("chunk-sums-long", (CHUNK_SUMS, 0), 8, X), ("offsets-short", (OFFSETS, 0), -8, R),
        ("shapes-short", (SHAPES, 0), -8, S), ("stored-offsets-long", (STORED_OFFSETS, 0), 8, Z),
        ("key-offsets-short", (KEY_OFFSETS, NONE), -8, X), ("key-order-long", (KEY_ORDER, NONE), 12, X),
    ):  # fmt: skip
        data = resized(place, by, columns, 3, keys if name.startswith("key") else None)
        kind = name.rsplit("-", 1)[0].upper().replace("-", "_")
        yield f"length-{name}", CORRUPT, "open", "5.3", f"{kind} is {abs(by)} bytes too {name.rsplit('-')[-1]}.", data
    image = superseding()
    place = image.live[-1].places[SUPERSEDED, NONE]
    what = "SUPERSEDED of 47 bytes."
    yield "length-superseded", CORRUPT, "open", "5.3", what, entry((SUPERSEDED, NONE), 16, u64s(place[1] - 1), image)
    data = resized((KEY_BYTES, NONE), 1, X, 3, keys)
    yield "length-key-bytes", CORRUPT, "open|read|verify", "10", "KEY_BYTES is longer than KEY_OFFSETS say.", data


def schemas() -> Rows:
    """Section 6."""
    good = compact_json({"fields": [scalars(0).member()]})
    field = compact_json(scalars(0).member())
    for name, text, what in (
        ("not-json", b'{"fields":[', "SCHEMA ends in the middle."),
        ("trailing", good + b"x", "Something behind the value."),
        ("bom", b"\xef\xbb\xbf" + good, "A byte order mark."),
        ("not-utf8", good.replace(b'"x"', b'"\xff"'), "A byte that is not UTF-8."),
        ("repeated-name", good.replace(b"{", b'{"fields":[],', 1), "The name `fields` twice in one object."),
        ("repeated-member", good.replace(b'"name"', b'"codec":"raw","name"'), "The name `codec` twice in a field."),
        ("nan", good.replace(b"{", b'{"a":NaN,', 1), "NaN, which is not JSON."),
        ("infinity", good.replace(b"{", b'{"a":-Infinity,', 1), "-Infinity, which is not JSON."),
        ("array", b"[" + field + b"]", "SCHEMA is an array."),
        ("no-fields", b"{}", "No member `fields`."),
        ("fields-object", b'{"fields":{"x":' + field + b"}}", "`fields` is an object."),
        ("fields-empty", b'{"fields":[]}', "No field, although the directory says one."),
        ("fields-two", good.replace(b"}]", b"}," + field.replace(b'"x"', b'"y"') + b"]"), "Two fields instead of one."),
        ("no-codec", good.replace(b',"codec":"raw"', b""), "A field without `codec`."),
        ("name-surrogate", good.replace(b'"x"', b'"\\ud800"'), "A name with half a surrogate pair."),
        ("shape-fraction", good.replace(b'"shape":[]', b'"shape":[2.0]'), "A dimension 2.0."),
    ):
        yield f"schema-{name}", CORRUPT, "open", "2" if name in ("bom", "nan", "trailing") else "6", what, schema(text)


def members() -> Rows:
    """Section 6 and 6.1: the members of a field."""
    for name, changes, expect, number, what in (
        ("name-empty", {"name": ""}, CORRUPT, "6", "A name of 0 bytes."),
        ("name-control", {"name": "a\u001fb"}, CORRUPT, "6", "A name with U+001F."),
        ("name-delete", {"name": "\u007f"}, CORRUPT, "6", "A name with U+007F."),
        ("name-number", {"name": 1}, CORRUPT, "6", "A name that is no text."),
        ("name-limit", {"name": "ä" * 128}, LIMIT, "15", "A name of 256 bytes."),
        ("dtype-unknown", {"dtype": "float128"}, FEATURE, "6.1", "A dtype that is not in the table."),
        ("dtype-numpy", {"dtype": "<i4"}, FEATURE, "6.1", "NumPy's name of a dtype."),
        ("dtype-no-unit", {"dtype": "datetime64"}, FEATURE, "6.1", "datetime64 without a unit."),
        ("dtype-factor-1", {"dtype": "datetime64[1s]"}, FEATURE, "6.1", "The factor 1."),
        ("dtype-factor-huge", {"dtype": "timedelta64[2147483648s]"}, FEATURE, "6.1", "A factor of 2^31."),
        ("dtype-unit", {"dtype": "datetime64[x]"}, FEATURE, "6.1", "A unit that is not in the list."),
        ("dtype-bytes-0", {"dtype": "bytes[0]"}, FEATURE, "6.1", "Texts of 0 bytes."),
        ("dtype-leading-zero", {"dtype": "bytes[03]"}, FEATURE, "6.1", "A width with a leading zero."),
        ("dtype-width-huge", {"dtype": "utf32[536870912]"}, FEATURE, "6.1", "A width of 2^29."),
        ("dtype-newline", {"dtype": "int32\n"}, FEATURE, "6.1", "A line feed behind the name of a dtype."),
        ("dtype-null", {"dtype": None}, CORRUPT, "6", "A dtype that is no text."),
        ("codec-number", {"codec": 0}, CORRUPT, "6", "A codec that is no text."),
        ("shape-number", {"shape": 3}, CORRUPT, "6", "A shape that is no array."),
        ("shape-negative", {"shape": [-1]}, CORRUPT, "6", "A dimension of -1."),
        ("shape-true", {"shape": [True]}, CORRUPT, "6", "A dimension `true`."),
        ("shape-string", {"dtype": "string", "shape": [2]}, CORRUPT, "6.1", "A string field of shape [2]."),
        ("shape-dimension-limit", {"shape": [2**63, 0]}, LIMIT, "15", "A dimension of 2^63."),
        ("shape-33", {"shape": [1] * 33}, LIMIT, "15", "33 dimensions."),
        ("shape-overflow", {"shape": [2**62, 4]}, LIMIT, "15", "2^66 bytes a row, 0 modulo 2^64."),
        ("shape-overflow-0", {"shape": [2**61, 4, 0]}, LIMIT, "15", "A row of 0 bytes; 2^65 without the dimension 0."),
    ):
        yield f"schema-{name}", expect, "open", number, what, member(**changes)
    twice = [scalars(0), scalars(0)]
    yield "schema-same-names", CORRUPT, "open", "6", "Two fields of one name.", bytes(converted(twice, []).data)


def attributes_and_levels() -> Rows:
    """Section 6, ATTRS; and the nesting of JSON in section 15."""
    good = compact_json({"fields": [scalars(0).member()]})
    for name, text, what in (
        ("array", b"[1]", "ATTRS is an array."),
        ("repeated-name", b'{"a":{"b":1,"b":2}}', "A name twice in an object inside."),
        ("nan", b'{"a":NaN}', "NaN, which is not JSON."),
        ("number", b'{"a":[1,-1e999]}', "A number that is -Infinity as a binary64."),
        ("integer", b'{"a":1' + b"0" * 309 + b"}", "An integer of 310 digits: no binary64 is near."),
        ("not-utf8", b'{"a":"\xe4"}', "A byte that is not UTF-8."),
        ("empty", b"", "ATTRS of 0 bytes."),
    ):
        number = "2" if name in ("number", "integer") else "6"
        yield f"attrs-{name}", CORRUPT, "read", number, what, attributes(text)
    deep = b'{"a":' + b"[" * 64 + b"]" * 64 + b"}"
    yield "attrs-levels", LIMIT, "read", "15", "65 nested levels of JSON.", attributes(deep)
    yield "schema-levels", LIMIT, "open", "15", "66 nested levels of JSON.", schema(good[:-1] + b',"a":' + deep + b"}")
    deeper = b'{"a":' + b"[" * 20000 + b"]" * 20000 + b"}"
    many = b'{"a":[' + b"[]," * 524_287 + b"[]]}"
    yield "attrs-values", LIMIT, "read", "15", "1,048,577 commas and opening brackets of JSON.", attributes(many)
    yield "schema-values", LIMIT, "open", "15", "The same in SCHEMA.", schema(good[:-1] + b',"a":' + many + b"}")
    broken = b'{"a":' + b"[" * 64 + b"1,]" + b"]" * 63 + b"}"
    yield "attrs-levels-broken", LIMIT, "read", "15", "65 nested levels of what is no JSON.", attributes(broken)
    what = "20,001 nested levels of JSON, where a recursive parser ends its process."
    yield "attrs-levels-many", LIMIT, "read", "15", what, attributes(deeper)


GROUPS = (heads, superblock_values, directories, tables, sets_of_sections, schemas, members, attributes_and_levels)
