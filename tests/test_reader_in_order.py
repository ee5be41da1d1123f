"""Reading in order: which way is taken when, and that both give the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chunkstore
from chunkstore._read import inorder
from chunkstore._read.inorder import InOrder
from chunkstore._storage.source import MmapSource, PreadSource

MIB = 1 << 20
DATA = np.random.default_rng(0).integers(0, 256, 3 * MIB, np.uint8)


class Disk:
    """Says how often the disk was needed, and notes which reads went by `pread`."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.cold = False
        self.preads: list[int] = []
        self.source = MmapSource(path)
        read_into = self.source.read_into

        def note(offset: int, buffer: Any) -> None:
            self.preads.append(len(buffer))
            self.count += self.cold
            read_into(offset, buffer)

        monkeypatch.setattr(self.source, "read_into", note)
        monkeypatch.setattr(inorder, "cold_reads", lambda: self.count)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    path = tmp_path / "data"
    path.write_bytes(DATA.tobytes())
    monkeypatch.setattr(inorder, "_SURE_NBYTES", 2 * MIB)
    made = Disk(path, monkeypatch)
    with made.source:
        yield made


def read(order: InOrder, start: int, stop: int) -> None:
    """Read a range and compare it with what is in the file."""
    found = np.empty(stop - start, np.uint8)
    order.read(start, found)
    assert np.array_equal(found, DATA[start:stop])


def test_data_in_memory_come_from_the_map_after_a_trial(disk: Disk) -> None:
    """The first MiB tells; nothing after it is read by `pread`, in the same range or a later one."""
    order = InOrder(disk.source)
    read(order, 5, 3 * MIB)
    assert disk.preads == [MIB]
    assert not order.cold
    read(order, 0, 3 * MIB)
    assert disk.preads == [MIB]


def test_data_from_the_disk_come_by_pread(disk: Disk) -> None:
    """Until more has been found in memory than the system reads ahead."""
    order = InOrder(disk.source)
    disk.cold = True
    read(order, 0, MIB)
    disk.cold = False
    read(order, MIB, 2 * MIB)
    assert order.cold
    read(order, 0, 3 * MIB)
    assert disk.preads == [MIB, MIB, MIB]
    assert not order.cold


def test_data_that_became_cold_are_noticed(disk: Disk) -> None:
    """Of the ranges in memory every eighth is watched."""
    order = InOrder(disk.source)
    read(order, 0, MIB)
    assert not order.cold
    for _ in range(8):
        before = order.begin()
        disk.count += 1
        order.end(before, 100)
    assert order.cold


def test_pread_alone(tmp_path: Path) -> None:
    """Without a map everything is read by `pread`, and nobody asks about the disk."""
    path = tmp_path / "data"
    path.write_bytes(DATA.tobytes())
    with PreadSource(path) as source:
        order = InOrder(source)
        assert order.begin() == -1
        assert order.reader() == source.read_into
        read(order, 3, 2 * MIB)


def test_runs_of_any_length_agree_with_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short and long runs, cold and warm, checked and not, over several shards: the rows that were written."""
    path = tmp_path / "rows.cks"
    rows = DATA.reshape(-1, 96)
    with chunkstore.Writer(path, shard_nbytes=300_000) as writer:
        writer.add_batch({"x": rows})
    rng = np.random.default_rng(1)
    for cold in (True, False):
        monkeypatch.setattr(inorder, "_TRIAL_NBYTES", 1 << 40 if cold else 1)
        for verify in ("off", "once", "always"):
            with chunkstore.open(path, verify=verify) as ds:  # type: ignore[arg-type]
                for _ in range(20):
                    start, stop = sorted(rng.integers(0, len(rows) + 1, 2).tolist())
                    assert np.array_equal(ds[start:stop]["x"], rows[start:stop])  # type: ignore[arg-type]
                    short = slice(start, start + 40)
                    assert np.array_equal(ds[short]["x"], rows[short])  # type: ignore[arg-type]
