"""`chunkstore.torch.BatchSampler`: the order of chunkstore in a `DataLoader`."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import pickle
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chunkstore
from chunkstore._loading.order import Order
from chunkstore.errors import StateError

torch = pytest.importorskip("torch")

import torch_containers as containers  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from chunkstore.torch import BatchSampler, Dataset, Loader  # noqa: E402

N = containers.NUM_SAMPLES


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return containers.plain(tmp_path_factory.mktemp("torch") / "plain.cks", shard_nbytes=200)


def test_it_is_the_order_of_the_spec() -> None:
    """Lists of ints, equal to those of Order for the same seed and epoch."""
    sampler = BatchSampler(N, 32, shuffle=True, seed=5)
    order = Order(N, seed=5, batch_size=32)
    for epoch in range(3):
        batches = list(sampler)
        assert batches == [batch.tolist() for batch in order.batches(epoch)]
        assert type(batches[0]) is list
        assert type(batches[0][0]) is int


@pytest.mark.parametrize("shuffle", [False, True, "full", "block"])
@pytest.mark.parametrize("drop_last", [False, True])
def test_every_sample_once(path: str, shuffle: Any, drop_last: bool) -> None:
    """len is the number of batches; what drop_last leaves out is less than a batch."""
    sampler = BatchSampler(Dataset(path), 32, shuffle=shuffle, drop_last=drop_last)
    batches = list(sampler)
    assert len(batches) == len(sampler) == (3 if drop_last else 4)
    seen = [i for batch in batches for i in batch]
    assert len(set(seen)) == len(seen) == (96 if drop_last else N)


def test_a_copy_in_the_middle_of_an_epoch() -> None:
    """A sampler that is being iterated pickles, and begins the next epoch as the first one does."""
    sampler = BatchSampler(N, 32, shuffle=True)
    batches = iter(sampler)
    next(batches)
    copied = pickle.loads(pickle.dumps(sampler))
    assert len(list(batches)) == 3
    assert list(copied) == list(sampler)


def test_blocks_are_the_shards(path: str) -> None:
    """Block shuffle of a container needs no block size: a window of shards at a time."""
    reader = chunkstore.open(path)
    starts = reader._index.shard_starts
    assert len(starts) > 8
    sampler = BatchSampler(reader, 10, shuffle="block", window=1, seed=1)
    shards = np.searchsorted(starts, [i for batch in sampler for i in batch], "right")
    assert len(list(itertools.groupby(shards))) == len(starts) - 1
    with pytest.raises(ValueError, match="block_size: needed for shuffle='block'"):
        BatchSampler(N, 10, shuffle="block")
    with pytest.raises(ValueError, match=r"block_size: expected None with shuffle=True.*use shuffle='block'"):
        BatchSampler(N, 10, shuffle=True, block_size=5)
    assert list(BatchSampler(N, 10, block_size=5)) == list(BatchSampler(N, 10))
    reader.close()


def test_in_a_dataloader(path: str) -> None:
    """A DataLoader with two workers and this sampler delivers its batches in its order, each epoch another."""
    ds, sampler = Dataset(path), BatchSampler(N, 16, shuffle=True, seed=3)
    loader = DataLoader(ds, batch_sampler=sampler, num_workers=2, multiprocessing_context="fork")
    expected = BatchSampler(N, 16, shuffle=True, seed=3)
    for _ in range(2):
        assert [batch["label"].tolist() for batch in loader] == list(expected)


def test_same_order_as_the_loader(path: str) -> None:
    """Loader and BatchSampler of equal arguments visit the same samples in the same batches."""
    with Loader(path, 16, shuffle=True, seed=9, rank=1, world_size=3, pad="even") as loader:
        labels = [batch["label"].tolist() for batch in loader]
    assert labels == list(BatchSampler(N, 16, shuffle=True, seed=9, rank=1, world_size=3, pad="even"))


def test_resume_with_workers_that_run_ahead(path: str) -> None:
    """The loop says how many batches it trained on; the rest comes in another process with another batch size."""
    ds, sampler = Dataset(path), BatchSampler(Dataset(path), 10, shuffle=True)
    seen = []
    loader = DataLoader(ds, batch_sampler=sampler, num_workers=2, multiprocessing_context="fork")
    for number, batch in enumerate(loader, 1):
        seen += batch["label"].tolist()
        if number == 4:
            state = json.dumps(sampler.state_dict(num_batches=number))
            break
    del loader
    other = BatchSampler(Dataset(path), 7, shuffle=True)
    other.load_state_dict(json.loads(state))
    rest = [i for batch in other for i in batch]
    assert sorted(seen + rest) == list(range(N))
    assert len(state) < 1000


def test_resume_is_immediate() -> None:
    """Loading a state deep inside 10^12 samples and taking the first batch takes under 10 ms."""
    sampler = BatchSampler(10**12, 256, shuffle=True)
    state = sampler.state_dict() | {"epoch": 3, "samples_seen": 7 * 10**11}
    best = 1.0
    for _ in range(3):
        start = time.perf_counter()
        sampler.load_state_dict(state)
        next(iter(sampler))
        best = min(best, time.perf_counter() - start)
    assert best < 0.01


def test_a_state_of_other_data(path: str, tmp_path: Path) -> None:
    """Refused with what differs, and nothing changed."""
    other = Dataset(containers.plain(tmp_path / "b.cks", 99))
    sampler = BatchSampler(Dataset(path), 10)
    for state, text in [
        (BatchSampler(other, 10).state_dict(), "another dataset"),
        (BatchSampler(Dataset(path), 10, seed=1).state_dict(), "pass the same seed"),
        (BatchSampler(Dataset(path), 10, shuffle=True).state_dict(), "pass the same shuffle"),
        (sampler.state_dict() | {"version": 2}, "another release"),
        ({}, "missing"),
        (None, "expected a dict"),
    ]:
        with pytest.raises(StateError, match=text):
            sampler.load_state_dict(state)  # type: ignore[arg-type]
    assert len(list(sampler)) == 10


def test_set_epoch() -> None:
    """It chooses the order; a sampler that is never told goes on by itself."""
    sampler, other = BatchSampler(N, 10, shuffle=True), BatchSampler(N, 10, shuffle=True)
    epochs = [list(sampler) for _ in range(3)]
    for epoch in (2, 0, 1):
        other.set_epoch(epoch)
        assert list(other) == epochs[epoch]
    assert other.epoch == 2


def test_a_newer_iteration_ends_the_older() -> None:
    """Two at a time would make the state meaningless."""
    sampler = BatchSampler(N, 10)
    first = iter(sampler)
    next(first)
    next(iter(sampler))
    with pytest.raises(RuntimeError, match="ended by a newer one"):
        next(first)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"batch_size": 2.5}, TypeError, "batch_size"),
        ({"seed": -1}, ValueError, "seed"),
        ({"shuffle": "all"}, ValueError, "shuffle"),
        ({"rank": 1}, ValueError, "rank, world_size: give both or neither"),
        ({"rank": 3, "world_size": 3}, ValueError, "rank"),
        ({"pad": True}, ValueError, "pad"),
        ({"pad": "even", "drop_last": True}, ValueError, "pad"),
    ],
)
def test_bad_arguments(options: Any, error: type[Exception], text: str) -> None:
    """Each names the parameter."""
    with pytest.raises(error, match=text):
        BatchSampler(N, **({"batch_size": 10} | options))


@pytest.mark.parametrize("path", ["train.cks", b"train.cks", Path("train.cks")])
def test_a_path_is_no_source(path: Any) -> None:
    """Its length is that of a text: a sampler of nine positions, whatever the container has."""
    with pytest.raises(TypeError, match=r"source: expected a Dataset, a Reader or a number, found a path; use Dataset"):
        BatchSampler(path, 2)


def run_rank(rank: int, port: int, path: str, results: Any) -> None:
    """One of two processes of a gloo group: what it sees by default, and what it says when it was asked too early."""
    early = BatchSampler(N, 8, shuffle=True)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    try:
        sampler, loader = BatchSampler(N, 8, shuffle=True), Loader(path, 8, shuffle=True)
        try:
            iter(early)
            message = ""
        except RuntimeError as error:
            message = str(error)
        results.put(
            (rank, [i for batch in sampler for i in batch], [int(x) for b in loader for x in b["label"]], message)
        )
        loader.close()
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
def test_two_ranks_of_torch_distributed(path: str) -> None:
    """Ranks are taken from the process group: together every sample once; one made too early says so."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    ranks = [context.Process(target=run_rank, args=(rank, port, path, results)) for rank in range(2)]
    for process in ranks:
        process.start()
    found = [results.get(timeout=100) for _ in ranks]
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    for kind in (1, 2):
        assert sorted(found[0][kind] + found[1][kind]) == list(range(N))
    for rank, _, _, message in found:
        assert (message == "") == (rank is None)
        assert "make it after init_process_group, or give rank= and world_size=" in message
