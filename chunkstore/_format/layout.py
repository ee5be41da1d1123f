"""Where the next byte goes: shards, groups, sections (arithmetic only)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.codec import RAW
from chunkstore._format.constants import BLOCK_ENTRY_NBYTES, GROUP_NBYTES, NO_FIELD, SHARD_SAMPLES, Kind
from chunkstore._format.keys import order_dtype
from chunkstore._format.schema import Field


def check_count(name: str, value: object, least: int = 1) -> None:
    """Raise TypeError or ValueError unless this argument of a user is an integer, and large enough."""
    if not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected an integer, found {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, found {value}")


def rows_per_group(num_rows: int, nbytes: int) -> int:
    """Rows that share a checksum, in a block of this size (spec section 9)."""
    if nbytes == 0:
        return max(num_rows, 1)
    return min(num_rows, max(1, -(-GROUP_NBYTES * num_rows // nbytes)))


def num_groups(num_rows: int, nbytes: int) -> int:
    """Groups of such a block."""
    return -(-num_rows // rows_per_group(num_rows, nbytes))


def group_bounds(row_ends: NDArray[np.int64]) -> list[int]:
    """Where the groups of a block begin and end, counted from its start; groups + 1 of them.

    Args:
        row_ends: shape (rows,): where each row ends, counted from the start of the block.
    """
    num_rows = len(row_ends)
    step = rows_per_group(num_rows, int(row_ends[-1]))
    ends = row_ends[step - 1 :: step].tolist()
    return [0, *ends] if num_rows % step == 0 else [0, *ends, int(row_ends[-1])]


def samples_per_shard(sample_nbytes: int, shard_nbytes: int) -> int:
    """Samples of a full shard where all have one size (spec section 17); at least 1."""
    if sample_nbytes == 0:
        return SHARD_SAMPLES
    return min(max(-(-shard_nbytes // sample_nbytes), 1), SHARD_SAMPLES)


def shard_starts(sample_nbytes: int | NDArray[np.int64], num_samples: int, shard_nbytes: int) -> NDArray[np.int64]:
    """First position of each shard, and N behind them (spec section 17).

    Args:
        sample_nbytes: stored bytes of every sample, or shape (N,) where they differ.
        num_samples: N.
        shard_nbytes: a shard ends with the sample that brings it to this size.
    Returns:
        Shape (shards + 1,).
    """
    if isinstance(sample_nbytes, int):
        step = samples_per_shard(sample_nbytes, shard_nbytes)
        return np.append(np.arange(0, num_samples, step, dtype=np.int64), num_samples)
    ends = np.cumsum(sample_nbytes, dtype=np.int64)
    starts, filled = [0], 0
    while starts[-1] < num_samples:
        full = int(np.searchsorted(ends, filled + shard_nbytes)) + 1
        stop = min(full, starts[-1] + SHARD_SAMPLES, num_samples)
        starts.append(stop)
        filled = int(ends[stop - 1])
    return np.array(starts, np.int64)


def section_sizes(
    fields: Sequence[Field],
    num_samples: int,
    num_shards: int,
    *,
    key_nbytes: int | None,
) -> dict[tuple[Kind, int], int]:
    """Length of each section of a segment whose length follows from these counts (spec section 5.3).

    Args:
        fields: the schema.
        num_samples, num_shards: of the segment.
        key_nbytes: length of KEY_BYTES, or None without keys.
    Returns:
        (kind, number of the field or NO_FIELD) -> nbytes; without SCHEMA, ATTRS, CHUNK_SUMS, DICTIONARY and SUPERSEDED.
    """
    sizes: dict[tuple[Kind, int], int] = {
        (Kind.SHARD_STARTS, NO_FIELD): 8 * (num_shards + 1),
        (Kind.BLOCKS, NO_FIELD): BLOCK_ENTRY_NBYTES * num_shards * len(fields),
    }
    for number, field in enumerate(fields):
        if field.ragged:
            sizes[Kind.OFFSETS, number] = 8 * (num_samples + 1)
        if field.varying > 1:
            sizes[Kind.SHAPES, number] = 8 * num_samples * field.varying
        if field.codec != RAW:
            sizes[Kind.STORED_OFFSETS, number] = 8 * (num_samples + 1)
    if key_nbytes is not None:
        sizes[Kind.KEY_BYTES, NO_FIELD] = key_nbytes
        sizes[Kind.KEY_OFFSETS, NO_FIELD] = 8 * (num_samples + 1)
        sizes[Kind.KEY_HASHES, NO_FIELD] = 8 * num_samples
        sizes[Kind.KEY_ORDER, NO_FIELD] = order_dtype(num_samples).itemsize * num_samples
    return sizes
