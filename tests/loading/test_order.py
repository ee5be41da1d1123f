"""Positions, blocks, ranks, padding, resume and state: who sees which sample when."""

from __future__ import annotations

import dataclasses
import json
import pickle
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chunkstore._loading.order import Cursor, IntArray, Order
from chunkstore.errors import ChunkstoreError, StateError

UNEVEN = np.array([0, 5, 5, 17, 30, 31, 64, 100])
MODES: dict[str, dict[str, Any]] = {
    "none": {"shuffle": False},
    "full": {"shuffle": "full"},
    "equal blocks": {"shuffle": "block", "block_size": 7, "window": 3},
    "blocks": {"shuffle": "block", "block_starts": UNEVEN, "window": 2},
}
any_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


def ranks(world_size: int, **options: Any) -> list[Order]:
    n = options.pop("num_samples", 100)
    return [Order(n, rank=r, world_size=world_size, **options) for r in range(world_size)]


def strung(batches: list[IntArray]) -> list[int]:
    return [i for batch in batches for i in batch.tolist()]


# Orders ------------------------------------------------------------------------------------------


@any_mode
def test_an_epoch_has_each_sample_once(mode: dict[str, Any]) -> None:
    """Every mode is a bijection in every epoch, and epochs differ."""
    order = Order(100, seed=4, **mode)
    epochs = [order.ids(np.arange(100), epoch) for epoch in range(4)]
    for ids in epochs:
        assert sorted(ids.tolist()) == list(range(100))
    distinct = {tuple(ids.tolist()) for ids in epochs}
    assert len(distinct) == (1 if mode["shuffle"] is False else 4)


@any_mode
def test_any_position_alone_gives_the_same(mode: dict[str, Any]) -> None:
    """One position at a time, backwards and in a 2-d array: the same ids as all at once."""
    order = Order(100, seed=4, **mode)
    ids = order.ids(np.arange(100), 1)
    assert [int(order.ids(p, 1)) for p in range(100)] == ids.tolist()
    assert np.array_equal(order.ids(np.arange(100)[::-1].reshape(4, 25), 1), ids[::-1].reshape(4, 25))


def test_true_means_full_and_another_seed_another_order() -> None:
    """shuffle=True is "full"; the seed decides."""
    one, two = Order(1000, seed=1, shuffle=True), Order(1000, seed=1, shuffle="full")
    assert one.shuffle == "full"
    assert np.array_equal(one.batch(0, 0), two.batch(0, 0))
    assert not np.array_equal(one.ids(range(1000), 0), Order(1000, seed=2).ids(range(1000), 0))


@pytest.mark.parametrize("window", [1, 2, 5, 1000])
@pytest.mark.parametrize("num_samples", [1000, 1024, 1017])
def test_block_shuffle_touches_a_window_of_blocks_at_a_time(window: int, num_samples: int) -> None:
    """Each block is read in one window only, a window has `window` blocks, and its samples are mixed."""
    size = 32
    order = Order(num_samples, seed=6, shuffle="block", block_size=size, window=window)
    blocks = order.ids(np.arange(num_samples), 0) // size
    num_blocks = -(-num_samples // size)
    start, seen = 0, set()
    while start < num_samples:
        here: set[int] = set()
        stop = start
        # A window ends where its blocks have been read whole.
        while stop < num_samples and (len(here) < window or blocks[stop] in here):
            here.add(int(blocks[stop]))
            stop += 1
        sizes = sum(min(size, num_samples - block * size) for block in here)
        if window < num_blocks:
            assert stop - start == sizes
        assert not here & seen
        seen |= here
        start = stop
    assert len(seen) == num_blocks
    ids = order.ids(np.arange(num_samples), 0)
    assert (np.diff(ids) == 1).mean() < 0.1  # samples of a block do not follow each other


def test_block_order_and_window_order_change_with_the_epoch() -> None:
    """Not only the samples inside the windows move, also the blocks."""
    order = Order(1000, seed=6, shuffle="block", block_size=10, window=1)
    first = [order.ids(np.arange(0, 1000, 10), epoch) // 10 for epoch in range(3)]
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[1], first[2])


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=20),
    window=st.integers(1, 25),
    seed=st.integers(0, 2**64 - 1),
)
def test_blocks_of_any_sizes(sizes: list[int], window: int, seed: int) -> None:
    """Also with empty blocks each sample comes once."""
    starts = np.concatenate([[0], np.cumsum(sizes)])
    n = int(starts[-1])
    order = Order(n, seed=seed, shuffle="block", block_starts=starts, window=window)
    ids = order.ids(np.arange(n), 0)
    assert sorted(ids.tolist()) == list(range(n))


# Ranks -------------------------------------------------------------------------------------------


@any_mode
@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 1), (1, 7), (2, 8), (3, 16), (7, 3), (150, 1), (4, 100)])
def test_ranks_share_an_epoch(mode: dict[str, Any], world_size: int, batch_size: int) -> None:
    """All ranks together see every sample once; nobody gets an empty or too large batch."""
    orders = ranks(world_size, batch_size=batch_size, seed=1, **mode)
    batches = [list(order.batches(3)) for order in orders]
    assert sorted(i for b in batches for i in strung(b)) == list(range(100))
    assert all(1 <= len(batch) <= batch_size for b in batches for batch in b)
    totals = [len(strung(b)) for b in batches]
    assert max(totals) - min(totals) <= 1
    for order, own in zip(orders, batches, strict=True):
        assert order.num_batches() == len(own)
        assert all(np.array_equal(order.batch(t, 3), batch) for t, batch in enumerate(own))


def test_a_step_is_a_run_of_the_global_order() -> None:
    """Step t of all ranks, one behind the other, is positions [t*B*W, (t+1)*B*W)."""
    whole = Order(100, seed=1).ids(np.arange(100), 0).tolist()
    orders = ranks(3, batch_size=8, seed=1)
    for t in range(4):
        assert strung([order.batch(t, 0) for order in orders]) == whole[t * 24 : (t + 1) * 24]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("num_samples", [0, 1, 5, 24, 97, 100])
@pytest.mark.parametrize("start", [0, 1, 5])
def test_tail_rules(num_samples: int, world_size: int, start: int) -> None:
    """drop_last gives whole batches only; pads give all ranks equally many and lose nothing."""
    start = min(start, num_samples)
    left = num_samples - start
    options = {"num_samples": num_samples, "batch_size": 4, "seed": 2}
    expected = set(range(num_samples)) - set(Order(num_samples, seed=2).ids(np.arange(start), 0).tolist())

    dropped = [list(order.batches(0, start)) for order in ranks(world_size, drop_last=True, **options)]
    assert {len(batch) for b in dropped for batch in b} <= {4}
    assert [len(b) for b in dropped] == [left // (4 * world_size)] * world_size
    assert len({i for b in dropped for i in strung(b)}) == sum(len(strung(b)) for b in dropped)

    for pad in ("even", "full"):
        padded = [list(order.batches(0, start)) for order in ranks(world_size, pad=pad, **options)]
        assert len({len(b) for b in padded}) == 1
        assert len({len(batch) for batch in padded[0][-1:]} | {len(b[-1]) for b in padded if b}) <= 1
        seen = [i for b in padded for i in strung(b)]
        assert expected <= set(seen)
        extra = len(seen) - left
        assert extra < (world_size if pad == "even" else max(1, 4 * world_size))
        if pad == "full":
            assert {len(batch) for b in padded for batch in b} <= {4}


def test_padding_comes_from_the_start_of_the_epoch() -> None:
    """The filled places repeat the first positions, also where the world is larger than the dataset."""
    whole = Order(3, seed=5).ids(np.arange(3), 1).tolist()
    orders = ranks(4, num_samples=3, batch_size=2, seed=5, pad="full")
    assert strung([b for order in orders for b in order.batches(1)]) == (whole * 3)[:8]
    orders = ranks(4, num_samples=3, batch_size=2, seed=5, pad="even")
    assert strung([b for order in orders for b in order.batches(1)]) == (whole * 2)[:4]


def test_an_empty_dataset_has_no_batches() -> None:
    """N = 0 in every mode: no batch, no error."""
    for mode in ({"shuffle": False}, {"shuffle": "full"}, {"shuffle": "block", "block_size": 3}):
        order = Order(0, batch_size=4, **mode)
        assert order.num_batches() == 0
        assert list(order.batches(0)) == []
        assert order.ids([], 0).shape == (0,)
        assert order.load_state(order.state(Cursor(0, 0))) == Cursor(0, 0)


def test_a_batch_size_beyond_all_samples_takes_no_memory() -> None:
    """It is how some ask for a single batch."""
    tracemalloc.start()
    (batch,) = Order(9, batch_size=10**7, shuffle=False).batches(0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert batch.tolist() == list(range(9))
    assert peak < 100_000


def test_no_such_step() -> None:
    """A step beyond the epoch is an IndexError that says how many there are."""
    order = Order(100, batch_size=8)
    for step in (-1, 13, 10**9):
        with pytest.raises(IndexError, match="this rank has 13 batches from position 0"):
            order.batch(step, 0)


# Resume ------------------------------------------------------------------------------------------


@any_mode
@pytest.mark.parametrize("before", [(1, 8), (2, 4), (3, 5)])
@pytest.mark.parametrize("after", [(1, 8), (2, 4), (5, 3), (3, 16)])
def test_resume_with_other_ranks(mode: dict[str, Any], before: tuple[int, int], after: tuple[int, int]) -> None:
    """Stop after some steps, go on with another world and batch size: together each sample once."""
    old = ranks(before[0], batch_size=before[1], seed=9, fingerprint="f", **mode)
    new = ranks(after[0], batch_size=after[1], seed=9, fingerprint="f", **mode)
    for num_steps in (0, 1, 3, 6):
        seen = [i for order in old for t in range(num_steps) for i in order.batch(t, 2).tolist()]
        cursors = {order.cursor(2, num_steps) for order in old}
        assert len(cursors) == 1
        state = json.loads(json.dumps(old[0].state(cursors.pop())))
        for order in new:
            epoch, start = order.load_state(state)
            assert epoch == 2
            seen += strung(list(order.batches(epoch, start)))
        assert sorted(seen) == list(range(100))


@given(
    num_samples=st.integers(1, 300),
    seed=st.integers(0, 2**64 - 1),
    runs=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 20), st.integers(0, 5)), max_size=5),
)
def test_resume_again_and_again(num_samples: int, seed: int, runs: list[tuple[int, int, int]]) -> None:
    """Any chain of interruptions, each with another world, sees each sample of the epoch once."""
    seen: list[int] = []
    cursor = Cursor(0, 0)
    for world_size, batch_size, num_steps in [*runs, (2, 7, 10**6)]:
        orders = ranks(world_size, num_samples=num_samples, batch_size=batch_size, seed=seed)
        start = cursor.samples_seen
        for order in orders:
            num_own = min(num_steps, order.num_batches(start))
            seen += strung([order.batch(t, 0, start) for t in range(num_own)])
        done = min(num_steps, orders[0].num_batches(start))
        cursor = orders[0].load_state(orders[0].state(orders[0].cursor(0, done, start)))
        if cursor.epoch:
            break
    assert cursor == Cursor(1, 0)
    assert sorted(seen) == list(range(num_samples))


def test_same_world_resumes_with_the_same_batches() -> None:
    """What an unbroken run would have done next is what the resumed one does."""
    for order in ranks(2, batch_size=8, seed=9):
        unbroken = [batch.tolist() for batch in order.batches(0)]
        epoch, start = order.load_state(order.state(order.cursor(0, 3)))
        assert [batch.tolist() for batch in order.batches(epoch, start)] == unbroken[3:]


def test_the_end_of_an_epoch_is_the_next_one() -> None:
    """After the last batch, whatever the tail rule, the cursor is the next epoch's begin; not before."""
    for options in ({}, {"drop_last": True}, {"pad": "even"}, {"pad": "full"}):
        for order in ranks(3, batch_size=8, **options):
            num = order.num_batches()
            assert order.cursor(5, num) == Cursor(6, 0)
            assert order.cursor(5, num - 1) == Cursor(5, (num - 1) * 24)
            assert order.cursor(5, 0) == Cursor(5, 0)
    # Fewer samples left than ranks: the first rank takes part in every step, so its state is the one to keep.
    first, second = ranks(2, num_samples=17, batch_size=8)
    assert (first.num_batches(), second.num_batches()) == (2, 1)
    order = Order(100)
    assert order.load_state(order.state(Cursor(3, 100))) == Cursor(4, 0)


@pytest.mark.parametrize("mode", [{"shuffle": "full"}, {"shuffle": "block", "block_size": 1000}], ids=str)
def test_resume_costs_nothing(mode: dict[str, Any]) -> None:
    """10^9 and 10^12 samples, far into the epoch: state, load and first batch in 10 ms and 2 MB."""
    for num_samples in (10**9, 10**12):
        order = Order(num_samples, seed=3, batch_size=256, **mode)
        state = order.state(Cursor(41, num_samples - 12_345))
        best = float("inf")
        tracemalloc.start()
        for _ in range(5):
            begin = time.perf_counter()
            again = Order(num_samples, seed=3, batch_size=256, **mode)
            epoch, start = again.load_state(state)
            batch = next(again.batches(epoch, start))
            best = min(best, time.perf_counter() - begin)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert batch.shape == (256,)
        assert best < 0.010
        assert peak < 2_000_000


# State -------------------------------------------------------------------------------------------


@any_mode
def test_state_round_trip(mode: dict[str, Any]) -> None:
    """Through JSON, under 1 kB also with the largest numbers and the longest fingerprint."""
    order = Order(100, seed=2**64 - 1, fingerprint='"' * 256, **mode)
    text = json.dumps(order.state(Cursor(2**64 - 1, 99)))
    assert len(text) < 1000
    assert order.load_state(json.loads(text)) == Cursor(2**64 - 1, 99)


def test_state_is_as_specified() -> None:
    """Spec 7, whole."""
    order = Order(100, seed=7, shuffle="block", block_size=8, window=2, fingerprint="ab12", batch_size=4)
    assert order.state(order.cursor(3, 5)) == {
        "version": 1,
        "algorithm": "feistel6x32-1",
        "fingerprint": "ab12",
        "num_samples": 100,
        "seed": 7,
        "shuffle": "block",
        "window": 2,
        "block_size": 8,
        "epoch": 3,
        "samples_seen": 20,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "other"}, r"fingerprint is 'other', expected 'f': it belongs to another dataset"),
        ({"version": 2}, "version is 2, expected 1: it was saved by another release"),
        ({"version": "1"}, "version is '1', expected 1"),
        ({"version": True}, "version is True, expected 1"),
        ({"algorithm": "feistel6x32-2"}, "algorithm is 'feistel6x32-2'"),
        ({"num_samples": 101}, "num_samples is 101, expected 100"),
        ({"seed": 8}, "seed is 8, expected 7: pass the same seed as the run that saved the state"),
        ({"shuffle": False}, "shuffle is False, expected 'full': pass the same shuffle"),
        ({"epoch": -1}, "epoch is -1, expected an integer from 0 to"),
        ({"epoch": 1.0}, r"epoch is 1\.0, expected an integer"),
        ({"epoch": None}, "epoch is None, expected an integer"),
        ({"samples_seen": 101}, "samples_seen is 101, expected an integer from 0 to 100"),
        ({"samples_seen": "7"}, "samples_seen is '7', expected an integer"),
        ({"samples_seen": True}, "samples_seen is True, expected an integer"),
    ],
    ids=str,
)
def test_state_of_something_else_is_refused(change: dict[str, Any], message: str) -> None:
    """Another dataset, version, algorithm or order, and wrong types: StateError that names the parameter."""
    order = Order(100, seed=7, fingerprint="f")
    state = order.state(Cursor(1, 20))
    with pytest.raises(StateError, match=f"state: {message}"):
        order.load_state(state | change)
    (name,) = change
    with pytest.raises(StateError, match=f"state: '{name}' is missing"):
        order.load_state({key: value for key, value in state.items() if key != name})
    assert order.load_state(state | {"unknown": 1}) == Cursor(1, 20)


def test_state_of_other_blocks_is_refused() -> None:
    """Block size, block table and window decide what a position means."""
    table = Order(100, shuffle="block", block_starts=UNEVEN, window=2)
    others = [
        Order(100, shuffle="block", block_starts=UNEVEN, window=3),
        Order(100, shuffle="block", block_starts=[0, 50, 100], window=2),
        Order(100, shuffle="block", block_size=50, window=2),
    ]
    for other, name in zip(others, ("window", "block_starts", "block_starts"), strict=True):
        with pytest.raises(StateError, match=name):
            table.load_state(other.state(Cursor(0, 0)))
    with pytest.raises(StateError, match="block_size"):
        others[2].load_state(table.state(Cursor(0, 0)))
    assert table.state(Cursor(0, 0))["block_starts"] == "953c58ae2e1b0f81"  # xxh3-64


@pytest.mark.parametrize("junk", [None, 3, "state", [1], b"x"])
def test_what_is_no_state_is_refused(junk: Any) -> None:
    """A StateError, which is a ChunkstoreError and a ValueError."""
    with pytest.raises(StateError, match=r"state: expected a dict from state\(\), found") as caught:
        Order(100).load_state(junk)
    assert isinstance(caught.value, ChunkstoreError)
    assert isinstance(caught.value, ValueError)


# Parameters --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_samples": -1}, ValueError, "num_samples: expected 0 to"),
        ({"num_samples": 2**62 + 1}, ValueError, "num_samples: expected 0 to"),
        ({"num_samples": 1.5}, TypeError, "num_samples: expected an integer, found 1.5"),
        ({"seed": -1}, ValueError, "seed: expected 0 to"),
        ({"seed": 2**64}, ValueError, "seed: expected 0 to"),
        ({"seed": None}, TypeError, "seed: expected an integer, found None"),
        ({"rank": 2, "world_size": 2}, ValueError, "rank: expected 0 to 1, found 2"),
        ({"world_size": 0}, ValueError, "world_size: expected 1 to"),
        ({"batch_size": 0}, ValueError, "batch_size: expected 1 to"),
        ({"batch_size": True}, TypeError, "batch_size: expected an integer, found True"),
        ({"window": 0}, ValueError, "window: expected 1 to"),
        ({"shuffle": "random"}, ValueError, "shuffle: expected False, True, 'full' or 'block', found"),
        ({"shuffle": 0}, ValueError, "shuffle: expected"),
        ({"pad": True}, ValueError, "pad: expected False, 'even' or 'full', found True"),
        ({"pad": "even", "drop_last": True}, ValueError, "pad: expected False with drop_last=True"),
        ({"drop_last": 1}, TypeError, "drop_last: expected True or False, found 1"),
        ({"shuffle": "block"}, ValueError, "needs either block_size or block_starts"),
        ({"shuffle": "block", "block_size": 1, "block_starts": [0, 9]}, ValueError, "needs either"),
        ({"shuffle": "block", "block_size": 0}, ValueError, "block_size: expected 1 to"),
        ({"shuffle": "block", "block_starts": [0, 8]}, ValueError, "block_starts: expected integers"),
        ({"shuffle": "block", "block_starts": [0, 5, 4, 9]}, ValueError, "block_starts: expected integers"),
        ({"shuffle": "block", "block_starts": [0.0, 9.0]}, ValueError, "block_starts: expected integers"),
        ({"fingerprint": "x" * 257}, ValueError, "fingerprint: expected at most 256"),
        ({"fingerprint": "é"}, ValueError, "fingerprint: expected at most 256 printable ASCII"),
        ({"fingerprint": b"x"}, ValueError, "fingerprint: expected"),
    ],
    ids=str,
)
def test_wrong_parameters(options: dict[str, Any], error: type[Exception], message: str) -> None:
    """Each is refused at once, by name."""
    with pytest.raises(error, match=message):
        Order(options.pop("num_samples", 9), **options)


def test_wrong_calls() -> None:
    """Epochs, positions and starts are checked too."""
    order = Order(9)
    with pytest.raises(ValueError, match="epoch: expected 0 to"):
        order.batch(0, -1)
    with pytest.raises(IndexError, match=r"position 9 is outside \[0, 9\)"):
        order.ids([9], 0)
    with pytest.raises(ValueError, match="start: expected 0 to 9, found 10"):
        order.num_batches(10)
    with pytest.raises(ValueError, match="samples_seen: expected 0 to 9"):
        order.state(Cursor(0, 10))
    with pytest.raises(dataclasses.FrozenInstanceError):
        order.seed = 3  # type: ignore[misc]


@any_mode
def test_pickle_and_replace(mode: dict[str, Any]) -> None:
    """An order travels to workers, without what it has cached, and another rank is one `replace` away."""
    order = Order(100, seed=1, batch_size=8, **mode)
    fresh = len(pickle.dumps(order))
    first = order.batch(0, 0)
    assert len(pickle.dumps(order)) == fresh
    assert np.array_equal(pickle.loads(pickle.dumps(order)).batch(0, 0), first)
    second = dataclasses.replace(order, rank=1, world_size=2)
    assert np.array_equal(second.batch(0, 0), order.batch(1, 0))
