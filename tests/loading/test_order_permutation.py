"""The permutation: a bijection for every size, and one that looks random."""

from __future__ import annotations

import itertools
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkstore._loading.permutation import (
    MAX_NUM_SAMPLES,
    PURPOSE_BLOCKS,
    PURPOSE_WINDOW,
    IntArray,
    Permutation,
    round_keys,
)

AROUND_POWERS = sorted({2**k + d for k in range(1, 17) for d in (-1, 0, 1)})
PRIMES = [307, 1009, 4093, 7919, 65521, 104729]
HUGE = [10**9, 10**12, 2**31 - 1, 2**32, 2**32 + 1, 2**53 + 1, 2**61 + 1, 2**62 - 1, 2**62]


def z_score(counts: IntArray, num_cells: int) -> float:
    """Chi-square of counts against equal cells, in standard deviations; empty cells may be missing."""
    expected = counts.sum() / num_cells
    chi = ((counts - expected) ** 2 / expected).sum() + (num_cells - len(counts)) * expected
    return float((chi - (num_cells - 1)) / math.sqrt(2 * (num_cells - 1)))


def assert_is_permutation(num_items: int, seed: int) -> None:
    positions = np.arange(num_items)
    permutation = Permutation(num_items, seed=seed)
    ids = permutation(positions)
    assert ids.dtype == np.int64
    seen = np.zeros(num_items, bool)
    seen[ids] = True
    assert seen.all()
    assert np.array_equal(permutation.inverse(ids), positions)


def test_bijection_small() -> None:
    """Every size from 0 to 300: each id once, and the inverse undoes it."""
    for num_items in range(301):
        assert_is_permutation(num_items, seed=num_items)


@pytest.mark.parametrize("num_items", [*AROUND_POWERS, *PRIMES])
def test_bijection(num_items: int) -> None:
    """Powers of two and their neighbours, and primes: each id once, and the inverse undoes it."""
    assert_is_permutation(num_items, seed=1)


@given(
    num_items=st.integers(1, MAX_NUM_SAMPLES),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**64 - 1),
    data=st.data(),
)
@settings(max_examples=150)
def test_inverse_undoes_any_size(num_items: int, seed: int, epoch: int, data: st.DataObject) -> None:
    """A left inverse on both sides proves a bijection where no list fits; the results stay in range."""
    permutation = Permutation(num_items, seed=seed, epoch=epoch)
    x = data.draw(st.lists(st.integers(0, num_items - 1), min_size=1, max_size=20))
    y = permutation(x)
    assert y.min() >= 0
    assert y.max() < num_items
    assert permutation.inverse(y).tolist() == x
    assert permutation(permutation.inverse(x)).tolist() == x


@pytest.mark.parametrize("num_items", [300, 1000, 2**16 + 1, *HUGE])
def test_fast_path_equals_plain_arithmetic(num_items: int) -> None:
    """The NumPy rounds equal `forward` on Python ints and on int64 arrays; pieces and walks do not show."""
    permutation = Permutation(num_items, seed=5, epoch=1)
    x = np.random.default_rng(0).integers(0, num_items, 20_000)
    plain = permutation.forward(x)
    while (walking := plain >= num_items).any():
        plain[walking] = permutation.forward(plain[walking])
    assert np.array_equal(permutation(x), plain)
    for position, found in zip(x[:50].tolist(), permutation(x[:50]).tolist(), strict=True):
        y = permutation.forward(position)
        while y >= num_items:
            y = permutation.forward(y)
        assert y == found


def test_no_product_leaves_63_bits() -> None:
    """At the largest size and with all-ones keys the rounds on int64 equal those on unbounded integers."""
    permutation = Permutation(MAX_NUM_SAMPLES, seed=0)
    permutation.keys = (2**32 - 1,) * 6
    for x in (0, 1, 2**31 - 1, 2**31, MAX_NUM_SAMPLES - 1):
        y = permutation.forward(x)
        assert permutation.forward(np.array([x])).tolist() == [y]
        assert permutation.backward(np.array([y])).tolist() == [x]


def test_shape_dtype_and_scalars() -> None:
    """Any shape and integer dtype goes in, the same shape of int64 comes out; also 0-d and empty."""
    permutation = Permutation(1000, seed=1)
    flat = permutation(np.arange(24))
    for dtype in ("u1", "i2", "u8", ">i8"):
        assert np.array_equal(permutation(np.arange(24, dtype=dtype).reshape(2, 3, 4)), flat.reshape(2, 3, 4))
    assert np.array_equal(permutation(np.arange(48)[::2]), permutation(np.arange(0, 48, 2)))
    assert permutation(7).shape == ()
    assert [int(permutation.inverse(permutation(i))) for i in range(1000)] == list(range(1000))
    assert permutation([]).shape == (0,)


@pytest.mark.parametrize("num_items", [0, 1, 10, 1000, 2**62])
def test_outside_is_refused(num_items: int) -> None:
    """A position outside [0, n) is an IndexError that names it."""
    permutation = Permutation(num_items, seed=0)
    for bad in (-1, num_items, num_items + 5):
        with pytest.raises(IndexError, match=rf"position {bad} is outside \[0, {num_items}\)"):
            permutation([bad])
        with pytest.raises(IndexError, match="outside"):
            permutation.inverse([bad])


def test_wrong_types_are_refused() -> None:
    """Positions that are no integers, sizes beyond the limit."""
    with pytest.raises(TypeError, match="expected integers, found dtype float64"):
        Permutation(10, seed=0)([0.5])
    with pytest.raises(ValueError, match="num_items: expected 0 to"):
        Permutation(2**62 + 1, seed=0)
    with pytest.raises(TypeError, match="num_items: expected an integer"):
        Permutation(True, seed=0)


def test_pickle() -> None:
    """A permutation travels to workers and stays the same."""
    permutation = Permutation(10**6, seed=3)
    again = pickle.loads(pickle.dumps(permutation))
    assert np.array_equal(again(np.arange(100)), permutation(np.arange(100)))


# Quality -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_items", [2, 3, 4, 5])
def test_small_sizes_give_all_orders_equally_often(num_items: int) -> None:
    """Over 6,000 seeds every one of the n! orders comes, as often as chance allows."""
    orders = list(itertools.permutations(range(num_items)))
    found = [tuple(Permutation(num_items, seed=seed)(range(num_items)).tolist()) for seed in range(6000)]
    counts = np.array([found.count(order) for order in orders])
    assert counts.min() > 0
    assert abs(z_score(counts, len(orders))) < 4


@pytest.mark.parametrize("num_items", [1000, 10**6, 10**9, 2**40 + 1])
def test_where_a_position_goes_is_uniform(num_items: int) -> None:
    """Over 3,000 keys: one position, and the distance of two neighbours, fall evenly into 50 bins."""
    first, distance = [], []
    for seed in range(3000):
        permutation = Permutation(num_items, seed=seed, epoch=seed % 7)
        a, b = permutation([num_items // 3, num_items // 3 + 1]).tolist()
        first.append(a * 50 // num_items)
        distance.append(((b - a) % num_items - 1) * 50 // (num_items - 1))
    assert abs(z_score(np.bincount(first, minlength=50), 50)) < 4.5
    assert abs(z_score(np.bincount(distance, minlength=50), 50)) < 4.5


@pytest.mark.parametrize("num_items", [2**20, 10**6 + 3, 10**9, 10**12, 2**62])
@pytest.mark.parametrize("lag", [1, 2, 256, 1000, 4096])
def test_pairs_of_positions_are_independent(num_items: int, lag: int) -> None:
    """ids at p and p + lag fill a 64 x 64 grid evenly, and so do their lowest bits."""
    ids = Permutation(num_items, seed=11)(np.arange(300_000))
    high = ids.astype(object) * 64 // num_items if num_items > 2**56 else ids * 64 // num_items
    for bins in (high.astype(np.int64), ids % 64):
        cells = np.bincount(bins[:-lag] * 64 + bins[lag:], minlength=4096)
        # Without replacement from 2^20 the spread is a little below that of chance.
        assert -9 < z_score(cells, 4096) < 4.5


def test_runs_and_correlation() -> None:
    """Neighbours rise and fall as in a random order: ascents, fixed points, serial correlation."""
    n = 200_003
    ids = Permutation(n, seed=2)(np.arange(n))
    ascents = int((np.diff(ids) > 0).sum())
    assert abs(ascents - (n - 1) / 2) < 5 * math.sqrt((n + 1) / 12)
    assert (ids == np.arange(n)).sum() < 10
    for lag in (1, 2, 3, 16, 64, 256, 1024):
        assert abs(np.corrcoef(ids[:-lag], ids[lag:])[0, 1]) < 5 / math.sqrt(n)


@pytest.mark.parametrize("bits", [16, 32, 48, 62])
def test_avalanche(bits: int) -> None:
    """One flipped bit of the position, or of the seed, flips each bit of the id half of the time."""
    num_items, trials = 2**bits, 4000
    x = np.random.default_rng(bits).integers(0, num_items, trials)
    permutation = Permutation(num_items, seed=3)
    y = permutation(x)
    limit = 5.5 * 0.5 / math.sqrt(trials)
    flips = [y ^ permutation(x ^ (1 << i)) for i in range(bits)]
    flips += [y ^ Permutation(num_items, seed=3 ^ (1 << i))(x) for i in range(0, 64, 7)]
    for flipped in flips:
        share = ((flipped.reshape(-1, 1) >> np.arange(bits)) & 1).mean(axis=0)
        assert np.abs(share - 0.5).max() < limit


def test_seeds_epochs_and_purposes_are_unrelated() -> None:
    """Orders of neighbouring keys agree in no more places than chance lets them, and no round key repeats."""
    n = 100_000
    arguments = [(s, e, p, i) for s in range(6) for e in range(6) for p in range(3) for i in range(2)]
    all_keys = [key for a in arguments for key in round_keys(*a)]
    assert len(set(all_keys)) == len(all_keys)
    orders = [Permutation(n, seed=s, epoch=e)(np.arange(n)) for s in range(4) for e in range(4)]
    orders += [Permutation(n, seed=0, purpose=p)(np.arange(n)) for p in (PURPOSE_BLOCKS, PURPOSE_WINDOW)]
    for a, b in itertools.combinations(orders, 2):
        assert (a == b).sum() < 10
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(n)
