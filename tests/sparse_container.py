"""A container of any number of samples in a sparse file: real where one sample and one key are, zeros elsewhere."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from chunkstore._format import superblock as superblocks
from chunkstore._format.checksum import sum64, sum128
from chunkstore._format.constants import (
    HEAD_NBYTES,
    NO_FIELD,
    PAGE_NBYTES,
    SHARD_SAMPLES,
    SUM_ALIGNMENT,
    Kind,
)
from chunkstore._format.index import BLOCK_ENTRY
from chunkstore._format.layout import section_sizes
from chunkstore._format.schema import Field, encode_attrs, encode_schema
from chunkstore._format.segment import (
    Directory,
    SectionEntry,
    directory_nbytes,
    num_pages,
    pad,
    place_sections,
    section_end,
    sum_of_sums,
    uuid_of,
)
from chunkstore._format.superblock import Superblock

_ROWS_PER_GROUP = 512
_KEY_NBYTES = 12
_FIELD = Field("data", "int64")
Patches = dict[int, bytes]


def build(path: Path, num_shards: int, position: int) -> int:
    """Write it, with the value and the key of `position` alone; the number of samples.

    Its field `data` is 0 but at `position`, where it is that; the key there is `k` and the position in 11 digits. All
    checksums that a reader of these looks at are right; those of whole blocks are not there.
    """
    num_samples = num_shards * SHARD_SAMPLES
    key_nbytes = _KEY_NBYTES * num_samples
    contents = _contents(num_shards, num_samples, position)
    sizes = section_sizes([_FIELD], num_samples, num_shards, key_nbytes=key_nbytes)
    for section in ((Kind.SCHEMA, NO_FIELD), (Kind.ATTRS, NO_FIELD), (Kind.CHUNK_SUMS, 0)):
        sizes[section] = len(contents[section][0])
    order = sorted(sizes)
    head = directory_nbytes(len(order), 0)
    offsets, data_offset = place_sections(HEAD_NBYTES + head, [sizes[section] for section in order])
    blocks = np.zeros((num_shards, 1), BLOCK_ENTRY)
    blocks["nbytes"] = 8 * SHARD_SAMPLES
    blocks["offset"][:, 0] = data_offset + 8 * SHARD_SAMPLES * np.arange(num_shards)
    blocks["rows_per_group"] = _ROWS_PER_GROUP
    blocks["first_group"][:, 0] = SHARD_SAMPLES // _ROWS_PER_GROUP * np.arange(num_shards)
    contents[Kind.BLOCKS, NO_FIELD] = {0: blocks.tobytes()}
    end = data_offset + 8 * num_samples
    table = []
    with path.open("wb") as file:
        file.truncate(end)
        for section, offset in zip(order, offsets, strict=True):
            sums = _write_section(file, offset, sizes[section], contents[section])
            table.append(SectionEntry(*section, offset, sizes[section], sum_of_sums(sums)))
        segment_nbytes = data_offset - HEAD_NBYTES
        directory = Directory(HEAD_NBYTES, 0, num_samples, 0, num_shards, segment_nbytes, 1, tuple(table)).encode()
        file.seek(HEAD_NBYTES)
        file.write(directory)
        digest = sum128(directory)
        superblock = Superblock(uuid_of(digest), 1, end, HEAD_NBYTES, len(directory), digest)
        file.seek(0)
        file.write(superblocks.encode(superblock) * 2)
        file.seek(data_offset + 8 * position)
        file.write(np.int64(position).tobytes())
    return num_samples


def key_of(position: int) -> str:
    """The key that `build` gave to the position."""
    return f"k{position:011d}"


def _contents(num_shards: int, num_samples: int, position: int) -> dict[Any, Patches]:
    """What is not zero, by its place in each section."""
    text = key_of(position).encode()
    wanted = sum64(text)
    place = wanted * num_samples >> 64
    step = 2**64 // num_samples
    slack = 4 * math.isqrt(num_samples) + 16  # as far as a lookup looks around
    low, high = max(0, place - slack), min(num_samples, place + slack)
    hashes = np.array([wanted + (each - place) * step for each in range(low, high)], "<u8")
    sums = np.full(num_samples // _ROWS_PER_GROUP, sum64(bytes(8 * _ROWS_PER_GROUP)), "<u8")
    group = np.zeros(_ROWS_PER_GROUP, "<i8")
    group[position % _ROWS_PER_GROUP] = position
    sums[position // _ROWS_PER_GROUP] = sum64(group.tobytes())
    starts = np.arange(num_shards + 1, dtype="<u8") * SHARD_SAMPLES
    bounds = np.array([position, position + 1], "<u8") * _KEY_NBYTES
    return {
        (Kind.SCHEMA, NO_FIELD): {0: encode_schema([_FIELD])},
        (Kind.ATTRS, NO_FIELD): {0: encode_attrs({})},
        (Kind.SHARD_STARTS, NO_FIELD): {0: starts.tobytes()},
        (Kind.CHUNK_SUMS, 0): {0: sums.tobytes()},
        (Kind.KEY_BYTES, NO_FIELD): {_KEY_NBYTES * position: text},
        (Kind.KEY_OFFSETS, NO_FIELD): {8 * position: bounds.astype("<u8").tobytes()},
        (Kind.KEY_HASHES, NO_FIELD): {8 * low: hashes.tobytes()},
        (Kind.KEY_ORDER, NO_FIELD): {4 * place: np.array([position], "<u4").tobytes()},
    }


def _write_section(file: Any, offset: int, nbytes: int, patches: Patches) -> np.ndarray[Any, Any]:
    """The bytes that are not zero, and the page sums of all; which are returned."""
    sums = np.full(num_pages(nbytes), sum64(bytes(PAGE_NBYTES)), "<u8")
    rest = nbytes % PAGE_NBYTES
    if rest:
        sums[-1] = sum64(bytes(rest))
    for start, data in patches.items():
        first, last = start // PAGE_NBYTES, (start + len(data) - 1) // PAGE_NBYTES
        room = bytearray(min((last + 1) * PAGE_NBYTES, nbytes) - first * PAGE_NBYTES)
        at = start - first * PAGE_NBYTES
        room[at : at + len(data)] = data
        for page in range(first, last + 1):
            begin = (page - first) * PAGE_NBYTES
            sums[page] = sum64(room[begin : begin + PAGE_NBYTES])
        file.seek(offset + start)
        file.write(data)
    file.seek(offset + pad(nbytes, SUM_ALIGNMENT))
    file.write(sums.tobytes())
    assert file.tell() == section_end(offset, nbytes)
    return sums
