"""`chunkstore.tf.dataset`: the order of samples, epochs, shards, and checkpoints that go on exactly."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tf_containers import build_rows

import chunkstore
from chunkstore._loading.order import Order

tf = pytest.importorskip("tensorflow")

from chunkstore._tf import order as graph_order  # noqa: E402 - needs TensorFlow
from chunkstore._tf.graph import Host  # noqa: E402
from chunkstore.tf import dataset  # noqa: E402

N = 1009


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_rows(tmp_path_factory.mktemp("tf") / "ids.cks", np.arange(N))


def ids_of(made: Any) -> list[list[int]]:
    return [batch["x"].numpy().tolist() for batch in made]


def flat(batches: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(batches))


@pytest.mark.parametrize("shuffle", [False, True, "block"])
@pytest.mark.parametrize(
    ("shard", "tail"),
    [((0, 1), {}), ((0, 1), {"drop": True}), ((1, 3), {}), ((2, 3), {"pad": "even"}), ((2, 3), {"pad": "full"})],
)
def test_same_order_as_everywhere(path: str, shuffle: Any, shard: tuple[int, int], tail: dict[str, Any]) -> None:
    """Batch for batch what `Order` says, over three epochs that begin with the fifth, for each rule of the tail."""
    drop, pad = tail.get("drop", False), tail.get("pad", False)
    block_size = 64 if shuffle == "block" else None
    order = Order(
        N,
        batch_size=32,
        shuffle=shuffle,
        seed=2**64 - 3,
        rank=shard[0],
        world_size=shard[1],
        drop_last=drop,
        pad=pad,
        block_size=block_size,
        window=4,
    )
    want = [batch.tolist() for epoch in (5, 6, 7) for batch in order.batches(epoch)]
    made = dataset(
        path,
        32,
        shuffle=shuffle,
        seed=2**64 - 3,
        shard=shard,
        drop_remainder=drop,
        pad=pad,
        block_size=block_size,
        window=4,
        epoch=5,
        repeat=3,
    )
    assert ids_of(made) == want
    assert made.cardinality() == len(want)


def test_same_order_as_torch(path: str) -> None:
    """One seed, one order in both frameworks, over several iterations."""
    pytest.importorskip("torch")
    from chunkstore.torch import BatchSampler

    reader = chunkstore.open(path)
    for shuffle in (True, "block"):
        sampler = BatchSampler(reader, 100, shuffle=shuffle, seed=8, rank=1, world_size=2)
        made = dataset(reader, 100, shuffle=shuffle, seed=8, shard=(1, 2))
        for _ in range(2):
            assert ids_of(made) == list(sampler)


def test_a_batch_size_beyond_all_samples_takes_no_memory(path: str) -> None:
    """One batch of all of them."""
    made = dataset(path, 10**7, shuffle=True, seed=3)
    tracemalloc.start()
    (batch,) = ids_of(made)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert batch == Order(N, seed=3).ids(np.arange(N), 0).tolist()
    assert peak < 10_000_000


@pytest.mark.parametrize("shard", [(0, 1), (1, 3)])
def test_single_samples_follow_the_order(path: str, shard: tuple[int, int]) -> None:
    """batch_size=None is the order of batches of one."""
    order = Order(N, batch_size=1, seed=3, rank=shard[0], world_size=shard[1])
    want = [int(batch[0]) for epoch in (0, 1) for batch in order.batches(epoch)]
    made = dataset(path, shuffle=True, seed=3, shard=shard, repeat=2)
    assert [int(sample["x"]) for sample in made] == want
    assert made.cardinality() == len(want)


def test_shards_share_out_every_sample(path: str) -> None:
    """Three ranks together see every sample once."""
    seen = [flat(ids_of(dataset(path, 50, shuffle=True, shard=(rank, 3)))) for rank in range(3)]
    assert sorted(flat(seen)) == list(range(N))


def test_each_iteration_is_another_epoch(path: str) -> None:
    """As Keras needs it; with reshuffle_each_iteration=False all are the first; a repeated dataset goes on."""
    order = Order(N, batch_size=100)
    epochs = [[batch.tolist() for batch in order.batches(epoch)] for epoch in range(4)]
    made = dataset(path, 100, shuffle=True)
    assert [ids_of(made) for _ in range(3)] == epochs[:3]
    fixed = dataset(path, 100, shuffle=True, epoch=2, reshuffle_each_iteration=False)
    assert [ids_of(fixed) for _ in range(2)] == [epochs[2], epochs[2]]
    twice = dataset(path, 100, shuffle=True, repeat=2)
    assert ids_of(twice) == epochs[0] + epochs[1]
    assert ids_of(twice) == epochs[2] + epochs[3]
    assert ids_of(dataset(path, 100, shuffle=True).repeat(2)) == epochs[0] + epochs[1]


def test_repeat_without_end(path: str) -> None:
    """Epoch follows epoch, each once through all samples."""
    made = dataset(path, 101, shuffle=True, repeat=True, drop_remainder=True)
    batches = ids_of(made.take(3 * 9))
    assert [len(set(flat(batches[i * 9 : (i + 1) * 9]))) for i in range(3)] == [909] * 3
    assert batches[0] != batches[9]


@pytest.mark.parametrize(
    "options", [{}, {"engine": "numpy"}, {"prefetch": 0}, {"shuffle": "block"}, {"batch_size": None}]
)
@pytest.mark.parametrize("position", [0, 13])
def test_checkpoint_goes_on_exactly(path: str, tmp_path: Path, options: dict[str, Any], position: int) -> None:
    """Another iterator, of a dataset made anew, gives exactly the batches that were left."""
    options = {"batch_size": 50, "shuffle": True, "seed": 4, "repeat": 2, **options}
    batches = iter(dataset(path, **options))
    for _ in range(position):
        next(batches)
    saved = tf.train.Checkpoint(batches=batches).save(str(tmp_path / "state"))
    left = [batch["x"].numpy().tolist() for batch in batches]
    fresh = iter(dataset(path, **options))
    if position:
        next(fresh)
    tf.train.Checkpoint(batches=fresh).restore(saved).assert_consumed()
    assert [batch["x"].numpy().tolist() for batch in fresh] == left
    assert len(left) == (2 * N if options["batch_size"] is None else 42) - position


def test_checkpoint_of_a_later_epoch(path: str, tmp_path: Path) -> None:
    """A state knows its epoch, also where the new dataset would begin with the first."""
    made = dataset(path, 50, shuffle=True)
    list(made)
    batches = iter(made)
    next(batches)
    saved = tf.train.Checkpoint(batches=batches).save(str(tmp_path / "state"))
    left = [batch["x"].numpy().tolist() for batch in batches]
    assert left == [batch.tolist() for batch in Order(N, batch_size=50).batches(1)][1:]
    fresh = iter(dataset(path, 50, shuffle=True))
    tf.train.Checkpoint(batches=fresh).restore(saved).assert_consumed()
    assert [batch["x"].numpy().tolist() for batch in fresh] == left


@pytest.mark.parametrize("engine", ["gather", "numpy", "fixed_length"])
def test_checkpoint_of_another_data_set_is_refused(path: str, tmp_path: Path, engine: str) -> None:
    """Of other rows, another selection, order or shard: restoring says what was saved and what is here.

    A state from before the first batch is refused where the first batch is asked for.
    """
    options: dict[str, Any] = {"batch_size": 50, "engine": engine, "shuffle": engine != "fixed_length"}
    batches = iter(dataset(path, **options))
    early = tf.train.Checkpoint(batches=batches).save(str(tmp_path / "early"))
    next(batches)
    saved = tf.train.Checkpoint(batches=batches).save(str(tmp_path / "state"))
    left = [batch["x"].numpy().tolist() for batch in batches]
    reader = chunkstore.open(path)
    other_path = build_rows(tmp_path / "other.cks", np.arange(N) + 1)
    others: list[tuple[Any, dict[str, Any], str]] = [
        (other_path, {}, f"fingerprint='{chunkstore.open(other_path).fingerprint}'"),
        (path, {"shard": (1, 2)}, "shard=(1, 2)"),
        (path, {"batch_size": 49}, "batch_size=49"),
        (path, {"repeat": 2}, "repeat=2"),
    ]
    if engine != "fixed_length":
        others += [
            (reader.select(range(N)), {}, f"fingerprint='{reader.fingerprint}-"),
            (path, {"seed": 1}, "seed=1"),
            (path, {"shuffle": False}, "shuffle=False"),
        ]
    for source, other, found in others:
        fresh = iter(dataset(source, **(options | other)))
        with pytest.raises(tf.errors.InvalidArgumentError) as caught:
            tf.train.Checkpoint(batches=fresh).restore(saved)
        text = str(caught.value).replace("\\'", "'")
        saved_text, _, own_text = text.partition("[This one:]")
        assert "StateError: the iterator was saved of another data set or order" in saved_text
        assert f"fingerprint='{reader.fingerprint}'" in saved_text
        assert found in own_text
        fresh = iter(dataset(source, **(options | other)))
        tf.train.Checkpoint(batches=fresh).restore(early)
        with pytest.raises(tf.errors.InvalidArgumentError) as caught:
            next(fresh)
        _, _, own_text = str(caught.value).replace("\\'", "'").partition("[before its first batch] [This one:]")
        assert found in own_text
    fresh = iter(dataset(path, **options))
    tf.train.Checkpoint(batches=fresh).restore(early).assert_consumed()
    assert len(list(fresh)) == len(left) + 1
    fresh = iter(dataset(path, **(options | {"batch_size": None})))  # its iterators have other parts
    refused = (tf.errors.NotFoundError, tf.errors.InvalidArgumentError)
    with pytest.raises(refused, match="the dataset definition has not changed"):
        tf.train.Checkpoint(batches=fresh).restore(saved)
    fresh = iter(dataset(path, **options, epoch=5))
    tf.train.Checkpoint(batches=fresh).restore(saved).assert_consumed()
    assert [next(fresh)["x"].numpy().tolist() for _ in left] == left
    assert list(fresh) == []


def test_a_billion_samples_start_at_once() -> None:
    """Ids of 10^9 samples, from the first epoch and far in, without memory or time that grows with N."""
    order = Order(10**9, batch_size=256, seed=1)
    epochs = graph_order.EpochRange(0, 1, False)
    groups = graph_order.Groups(order, None, epochs, 32, lambda ids: np.True_)
    made = groups.dataset(Host(groups)).unbatch()
    for step, (ids, num, _) in enumerate(made.take(40)):
        assert np.array_equal(ids, order.batch(step, 0))
        assert int(num) == 256
