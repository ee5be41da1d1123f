"""Sums of blocks and groups, from pieces of any size."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from chunkstore._format.checksum import BlockSums, page_sums, sum64, sum64_large, sum128


def test_the_functions_are_xxh3_with_seed_0() -> None:
    """Known values of the empty input (from the reference implementation's own test)."""
    assert sum64(b"") == 0x2D06800538D394C2
    assert sum128(b"").hex() == "99aa06d3014798d86001c324468d497f"


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.lists(st.integers(0, 60), max_size=30))
def test_block_sums_do_not_depend_on_the_pieces(groups: list[int], cuts: list[int]) -> None:
    """Groups of any size, empty ones too, cut anywhere: the same sums as of whole groups."""
    bounds = [0, *np.cumsum(groups).tolist()]
    block = np.random.default_rng(0).bytes(bounds[-1])
    sums = BlockSums(bounds)
    at = 0
    for cut in cuts:
        sums.update(memoryview(block)[at : at + cut])
        at = min(at + cut, len(block))
    sums.update(memoryview(block)[at:])
    whole, of_groups = sums.finish()
    assert whole == sum64(block)
    assert of_groups.tolist() == [sum64(block[a:b]) for a, b in itertools.pairwise(bounds)]


def test_large_pieces_are_one_buffer() -> None:
    """`sum64_large` is `sum64` of what the pieces make together."""
    data = memoryview(bytes(range(256)) * 100)
    assert sum64_large([data[:1000], data[1000:1000], data[1000:]]) == sum64(data)


def test_page_sums_cover_a_short_last_page() -> None:
    """One sum for each 65,536 bytes and one for the rest; none for nothing."""
    section = memoryview(bytes(65536 + 1))
    assert page_sums(section).tolist() == [sum64(bytes(65536)), sum64(b"\0")]
    assert page_sums(memoryview(b"")).tolist() == []
