"""PyTorch on containers behind URLs: a loader hides the latency, worker processes read for themselves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from object_server import Fault, RangeServer

import chunkstore

pytest.importorskip("obstore", reason="the extra [remote] is not installed")
torch = pytest.importorskip("torch", reason="the extra [torch] is not installed")

from chunkstore.torch import BatchSampler, Dataset, Loader  # noqa: E402

NUM = 640


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RangeServer]:
    path = tmp_path_factory.mktemp("remote") / "a.cks"
    rows = np.arange(NUM, dtype=np.int64)[:, None] * np.ones(2048, np.int64)
    with chunkstore.Writer(path) as writer:
        writer.add_batch({"x": rows})
    with RangeServer({"a.cks": path.read_bytes()}) as running:
        yield running


def test_the_loader_hides_the_latency(server: RangeServer) -> None:
    """50 ms for each answer, a step of 40 ms: after the first batch training hardly waits."""
    server.fault = lambda request: Fault(delay=0.05)
    try:
        with Loader(server.url("a.cks"), 16, shuffle=True, seed=3) as loader:
            waited, found = [], []
            batches = iter(loader)
            for _ in range(len(loader)):
                began = time.perf_counter()
                found.append(next(batches)["x"][:, 0])
                waited.append(time.perf_counter() - began)
                time.sleep(0.04)
        assert sorted(torch.cat(found).tolist()) == list(range(NUM))
        assert sum(waited[1:]) < 0.25 * 0.05 * len(waited)  # one by one it would be all of it
    finally:
        server.fault = lambda request: None


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes(server: RangeServer, method: str) -> None:
    """A plain DataLoader, with every start method, after the parent has read."""
    data = Dataset(server.url("a.cks"))
    assert data[5]["x"][0] == 5
    workers = torch.utils.data.DataLoader(data, 64, shuffle=True, num_workers=2, multiprocessing_context=method)
    assert sorted(torch.cat([batch["x"][:, 0] for batch in workers]).tolist()) == list(range(NUM))
    data.close()


def test_block_shuffle_with_a_cache_takes_few_requests(server: RangeServer, tmp_path: Path) -> None:
    """A cache that holds the window, not the data: whole blocks come once, where random rows come again and again."""
    orders: dict[str, dict[str, Any]] = {
        "rows": {"shuffle": True},
        "blocks": {"shuffle": "block", "block_size": 64, "window": 2},
    }
    counts = {}
    for name, options in orders.items():
        remote = chunkstore.Remote(cache_dir=str(tmp_path / name), cache_nbytes=4 << 20, buffer_nbytes=1 << 20)
        reader = chunkstore.open(server.url("a.cks"), remote=remote)
        with server.counting() as requests:
            for ids in BatchSampler(reader, 16, **options):
                reader.batch(ids)
        counts[name] = len(requests)
        reader.close()
    assert counts["blocks"] <= 4 * (NUM * 16384 >> 20)
    assert counts["blocks"] < counts["rows"] / 2


@pytest.mark.parametrize("remote", [False, True])
def test_damage_comes_in_its_place(tmp_path: Path, remote: bool) -> None:
    """A damaged page of offsets fails the batches that need it, with a note, and not those that are made before."""
    num, bad = 40_000, 30_000
    offsets = np.append(0, np.cumsum(np.arange(num) % 7))
    rows = chunkstore.Ragged(np.arange(offsets[-1], dtype=np.int32), offsets, None, False)
    path = tmp_path / "a.cks"
    with chunkstore.Writer(path, fields={"x": ("int32", (None,))}) as writer:
        writer.add_batch({"x": rows})
    data = bytearray(path.read_bytes())
    data[data.index(offsets[bad : bad + 9].astype("<i8").tobytes())] ^= 1
    path.write_bytes(data)
    with RangeServer({"a.cks": bytes(data)}) as server:
        source, made = server.url("a.cks") if remote else path, 0
        with Loader(source, 64) as loader, pytest.raises(chunkstore.CorruptError, match="section OFFSETS") as caught:
            for _ in loader:
                made += 1
    first = bad // 8192 * 8192  # of the page
    assert first - 64 * 8 < 64 * made <= first
    assert "while the Loader made the batch of samples" in caught.value.__notes__[0]
