"""Memory stays flat over many epochs: of the process, and of worker processes, which share pages with their parent."""

from __future__ import annotations

import gc
import os
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chunkstore

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader  # noqa: E402

from chunkstore.torch import Dataset, Loader  # noqa: E402

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")

MIB = 1 << 20
ROWS, ROW_NBYTES = 2000, 8192  # 16 MiB


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("torch") / "rows.cks"
    with chunkstore.Writer(file) as writer:
        for i in range(ROWS):
            writer.add({"x": np.full(ROW_NBYTES, i % 256, np.uint8), "label": np.int64(i)}, key=f"sample/{i}")
    return str(file)


def own_nbytes(pid: int | str = "self") -> int:
    """Memory of a process that no file stands behind: what grows when something leaks or pages are copied on write."""
    total = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Anonymous":
            total += int(value.split()[0]) * 1024
    return total


def least_growth(work: Callable[[], object], times: int) -> int:
    """Bytes by which the process grows while something is done so many times, the least of five turns.

    What leaks does so in each turn; malloc takes memory for a thread, or for pieces of another size, now and then and
    keeps it.
    """
    gc.collect()
    sizes = [own_nbytes()]
    for _ in range(5):
        for _ in range(times):
            work()
        gc.collect()
        sizes.append(own_nbytes())
    return min(after - before for before, after in pairwise(sizes))


@pytest.mark.parametrize("options", [{}, {"prefetch": 0}, {"threads": 3}, {"transform": dict}], ids=str)
def test_loader_over_10_epochs(path: str, options: Any) -> None:
    """After two epochs to warm up, ten more take no memory that stays: less than a sixteenth of the data set."""
    with Loader(path, 64, shuffle=True, **options) as loader:
        deque(loader, maxlen=0)
        deque(loader, maxlen=0)
        assert least_growth(lambda: deque(loader, maxlen=0), 10) < MIB


def test_dataset_over_10_epochs(path: str) -> None:
    """The same in a plain DataLoader without workers."""
    ds = Dataset(path)
    assert least_growth(lambda: deque(DataLoader(ds, 64, shuffle=True), maxlen=0), 10) < MIB


def test_worker_processes_over_10_epochs(path: str) -> None:
    """Persistent forked workers: no growth from copies of the parent's pages, none from the batches."""
    ds = Dataset(path)
    loader = DataLoader(ds, 64, shuffle=True, num_workers=2, multiprocessing_context="fork", persistent_workers=True)
    sizes = []
    for _ in range(12):
        for _ in loader:
            pass
        pids = [worker.pid for worker in loader._iterator._workers]
        sizes.append([own_nbytes(pid) for pid in pids])
    assert len(pids) == 2
    assert os.getpid() not in pids
    for first, last in zip(sizes[1], sizes[-1], strict=True):
        assert last - first < 4 * MIB


def test_a_loader_leaves_nothing(path: str) -> None:
    """Made, half-read and dropped again and again: neither memory nor descriptors nor threads stay."""

    def use() -> None:
        for _ in Loader(path, 64, shuffle=True, threads=2):
            break

    use()
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    assert least_growth(use, 25) < MIB
    assert len(os.listdir("/proc/self/fd")) <= descriptors
