"""Where bytes go: arithmetic that the specification fixes."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from chunkstore._format.layout import group_bounds, num_groups, rows_per_group, samples_per_shard, shard_starts


@pytest.mark.parametrize(
    ("rows", "nbytes", "expected"),
    [(10, 0, 10), (0, 0, 1), (1000, 8000, 512), (100, 102_400, 4), (3, 12, 3), (5, 5 * 4096, 1), (5, 10**6, 1)],
)
def test_rows_per_group(rows: int, nbytes: int, expected: int) -> None:
    """4 KiB on average or a single row; all rows when there are no bytes (section 9)."""
    assert rows_per_group(rows, nbytes) == expected


@given(st.lists(st.integers(0, 9000), min_size=1, max_size=60))
def test_group_bounds_hold_all_rows(sizes: list[int]) -> None:
    """As many groups as `num_groups` says, at row ends, up to the end of the block."""
    ends = np.cumsum(sizes)
    bounds = group_bounds(ends)
    assert bounds[0] == 0
    assert bounds[-1] == ends[-1]
    assert len(bounds) - 1 == num_groups(len(sizes), int(ends[-1]))
    assert set(bounds[1:]) <= set(ends.tolist())


@given(st.lists(st.integers(0, 100), max_size=60), st.integers(1, 300))
def test_a_shard_ends_with_the_sample_that_fills_it(sizes: list[int], shard_nbytes: int) -> None:
    """All samples in order, every shard but the last full, and not before its last sample (section 17)."""
    starts = shard_starts(np.array(sizes, np.int64), len(sizes), shard_nbytes)
    assert starts[0] == 0
    assert starts[-1] == len(sizes)
    for place in range(len(starts) - 1):
        shard = sizes[starts[place] : starts[place + 1]]
        assert shard
        assert sum(shard[:-1]) < shard_nbytes
        assert sum(shard) >= shard_nbytes or place == len(starts) - 2


@given(st.integers(0, 100), st.integers(0, 50), st.integers(1, 300))
def test_one_size_is_a_list_of_equal_sizes(nbytes: int, count: int, shard_nbytes: int) -> None:
    """The short way for fixed shapes gives the shards of the long one."""
    short = shard_starts(nbytes, count, shard_nbytes)
    assert short.tolist() == shard_starts(np.full(count, nbytes), count, shard_nbytes).tolist()


def test_shards_have_at_most_2_to_the_22_samples() -> None:
    """Even when samples have no bytes."""
    assert shard_starts(0, 10_000_000, 1).tolist() == [0, 4_194_304, 8_388_608, 10_000_000]
    assert samples_per_shard(0, 1) == samples_per_shard(1, 1 << 40) == 4_194_304
    assert samples_per_shard(100, 1) == 1
