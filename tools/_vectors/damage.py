"""Sound containers, and the ways to change one thing in them; see `invalid`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from _vectors.builder import (
    ATTRS,
    NO_FIELD,
    SCHEMA,
    Column,
    Image,
    Sections,
    append,
    compact_json,
    converted,
    key_sections,
)
from _vectors.valid import KEYS, ramp, scalars

CORRUPT, LIMIT, TRUNCATED = "CorruptError", "LimitError", "TruncatedError"
NOT_OURS, VERSION, FEATURE = "NotAContainerError", "UnsupportedVersionError", "UnsupportedFeatureError"


@dataclass(frozen=True)
class Case:
    """One invalid file, and the error that it must give."""

    name: str
    expect: str
    where: str
    section: str
    what: str
    data: bytes


# ---- the sound containers that are changed ----


def fixed() -> Image:
    """Five samples with keys, one field of fixed shape, two shards."""
    return converted([scalars(5)], [(0, 3), (3, 5)], keys=KEYS[:5])


def bare() -> Image:
    """Five samples with keys, one field whose rows have no bytes: 12 KiB, the least for a container with samples."""
    return converted([Column("x", "uint8", [0], [np.zeros(0, "u1")] * 5)], [(0, 3), (3, 5)], keys=KEYS[:5])


def ragged() -> Image:
    """Five ragged rows with v = 1 in two shards."""
    return converted([Column("r", "int16", [None], [ramp((n,), "<i2", n) for n in (2, 0, 1, 3, 1)])], [(0, 3), (3, 5)])


def shaped() -> Image:
    """Three rows with a shape table; the last dimension but one is 8."""
    rows = [ramp((8, n), "u1", n) for n in (2, 0, 3)]
    return converted([Column("s", "uint8", [8, None], rows)], [(0, 3)])


def open_shaped() -> Image:
    """Two rows of which both dimensions differ; the second has no items."""
    rows = [ramp((2, 3), "u1"), ramp((0, 5), "u1")]
    return converted([Column("s", "uint8", [None, None], rows)], [(0, 2)])


def coded(codec: str = "zlib", encode: Callable[[bytes], bytes] | None = None, n: int = 4) -> Image:
    """Three rows of a codec, in two shards."""
    rows = [ramp((n,), "u1", i) for i in range(3)]
    return converted([Column("z", "uint8", [n], rows, codec, encode=encode)], [(0, 2), (2, 3)])


def two_fields() -> Image:
    """Three samples of two fields."""
    return converted([scalars(3), scalars(3, "y")], [(0, 3)])


def segments(keys: list[str] | None = None) -> Image:
    """Five ragged rows in two live segments."""
    rows = [ramp((n,), "<i2", n) for n in (2, 0, 1, 3, 1)]
    image = converted([Column("r", "int16", [None], rows)], [(0, 3)], keys=keys)
    append(image, [(3, 5)])
    return image


def superseding() -> Image:
    """Five samples; two superseded segments."""
    image = converted([scalars(5)], [(0, 2)])
    append(image, [(2, 4)], replace=1)
    append(image, [(4, 5)], replace=1)
    return image


# ---- the ways to change them ----


def flip(image: Image, at: int) -> bytes:
    """Flip the lowest bit of one byte and repair nothing."""
    image.data[at] ^= 1
    return bytes(image.data)


def sealed(image: Image, at: int, raw: bytes, stage: str) -> bytes:
    """Write bytes and repair the checksums from a stage on."""
    image.put(at, raw)
    image.seal(stage)
    return bytes(image.data)


def superblock(offset: int, raw: bytes, image: Image | None = None) -> bytes:
    """Change a value in both superblocks."""
    image = image or bare()
    image.put(4096 + offset, raw)
    return sealed(image, offset, raw, "superblocks")


def directory(offset: int, raw: bytes, image: Image | None = None, segment: int = -1) -> bytes:
    """Change a value in a directory, by default the newest."""
    image = image or fixed()
    return sealed(image, image.live[segment].offset + offset, raw, "directories")


def entry(place: tuple[int, int], offset: int, raw: bytes, image: Image | None = None) -> bytes:
    """Change a value in an entry of the section table."""
    image = image or fixed()
    return sealed(image, image.live[-1].places[place][3] + offset, raw, "directories")


def section(image: Image, place: tuple[int, int], offset: int, raw: bytes, segment: int = -1) -> bytes:
    """Change bytes of a section."""
    return sealed(image, image.live[segment].places[place][0] + offset, raw, "pages")


def edited(columns: list[Column], n: int, edit: Callable[[Sections], object], keys: list[str] | None = None) -> bytes:
    """Build a container of one shard whose sections are changed before they are written."""
    return bytes(converted(columns, [(0, n)] if n else [], keys=keys, edit=edit).data)


def without(place: tuple[int, int], columns: list[Column], n: int, keys: list[str] | None = None) -> bytes:
    """Leave out a section."""
    return edited(columns, n, lambda sections: sections.pop(place), keys)


def resized(place: tuple[int, int], by: int, columns: list[Column], n: int, keys: list[str] | None = None) -> bytes:
    """Make a section longer by zeros, or shorter."""

    def edit(sections: Sections) -> None:
        old = sections[place]
        sections[place] = old + bytes(by) if by > 0 else old[:by]

    return edited(columns, n, edit, keys)


def schema(text: bytes) -> bytes:
    """Build a container without samples that has this SCHEMA."""
    return edited([scalars(0)], 0, lambda sections: sections.update({(SCHEMA, NO_FIELD): text}))


def member(**changes: Any) -> bytes:
    """Build a container without samples whose one field has these members changed."""
    return schema(compact_json({"fields": [{**scalars(0).member(), **changes}]}))


def attributes(text: bytes) -> bytes:
    """Build a container with one sample that has these ATTRS."""
    return edited([scalars(1)], 1, lambda sections: sections.update({(ATTRS, NO_FIELD): text}))


def keyed(*keys: bytes) -> bytes:
    """Build a container with these keys, whatever they are."""
    return edited([scalars(len(keys))], len(keys), lambda sections: sections.update(key_sections(list(keys))))


X, NONE = [scalars(3)], NO_FIELD
R = [Column("r", "int16", [None], [ramp((n,), "<i2") for n in (2, 0, 1)])]
S = [Column("s", "uint8", [8, None], [ramp((8, n), "u1") for n in (2, 0, 3)])]
Z = [Column("z", "uint8", [4], [ramp((4,), "u1", i) for i in range(3)], "zlib")]

ZSTD = [Column("z", "uint8", [4], [ramp((4,), "u1", i) for i in range(3)], "zstd")]

Rows = Iterator[tuple[str, str, str, str, str, bytes]]
