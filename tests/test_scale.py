"""10^9 samples: opening, an order, a key and random rows cost what they cost for few samples."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sparse_container as sparse

from chunkstore._format.constants import SHARD_SAMPLES

POSITION = 123_457
MANY_SHARDS = 239  # 1,002,438,656 samples, an index of 32 GB, data of 8 GB
PROBE = """
import json, sys, time
import numpy as np
import chunkstore
from chunkstore._loading.order import Order

def resident():
    with open("/proc/self/smaps_rollup") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Rss:")) * 1024

def use(path, position, key):
    marks = [time.perf_counter()]
    ds = chunkstore.open(path)
    marks.append(time.perf_counter())
    assert int(ds[position]["data"]) == position
    assert ds.find([key]).tolist() == [position]
    assert int(ds[key]["data"]) == position and ds.keys[position] == key
    marks.append(time.perf_counter())
    order = Order(len(ds), batch_size=256, shuffle=True, fingerprint=ds.fingerprint)
    ids = order.batch(order.num_batches() // 2, epoch=3)
    assert len(set(ids.tolist())) == 256
    marks.append(time.perf_counter())
    assert int(ds.batch([*ids.tolist(), position])["data"][-1]) == position
    marks.append(time.perf_counter())
    later = []
    for number in range(8):
        ids = order.batch(number, epoch=4)
        began = time.perf_counter()
        assert len(ds.batch(ids)["data"]) == 256
        later.append(time.perf_counter() - began)
    return [*(stop - start for start, stop in zip(marks, marks[1:])), min(later)]

path, position, key = sys.argv[1], int(sys.argv[2]), sys.argv[3]
use(sys.argv[4], 100, sys.argv[5])  # imports and everything that is made once
before = resident()
took = use(path, position, key)
print(json.dumps({"seconds": took, "nbytes": resident() - before}))
"""


def probe(path: Path, position: int, other: Path) -> Any:
    """Seconds of each step of `PROBE`, and growth of memory, in a fresh process."""
    arguments = [str(path), str(position), sparse.key_of(position), str(other), sparse.key_of(100)]
    run = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_a_thousand_million_samples(tmp_path: Path) -> None:
    """A container of 10^9 samples is used within the time and memory of one of 4 million, but for a few pages more."""
    if not sys.platform.startswith("linux"):
        pytest.skip("measures memory by /proc")
    first, small, large = (tmp_path / name for name in ("first.cks", "small.cks", "large.cks"))
    sparse.build(first, 1, 100)
    sparse.build(small, 1, POSITION)
    position = (MANY_SHARDS - 3) * SHARD_SAMPLES + POSITION
    assert sparse.build(large, MANY_SHARDS, position) >= 10**9
    if large.stat().st_blocks * 512 > 256 << 20:
        large.unlink()
        pytest.skip("this file system has no sparse files")
    few = [probe(small, POSITION, first) for _ in range(3)]
    many = [probe(large, position, first) for _ in range(3)]
    large.unlink()
    # The first batch proves a page of checksums for each row, 64 KiB; a container of 4 million rows has one of them.
    spare = {"first batch": 0.2}
    for step, what in enumerate(("open", "keys", "order", "first batch", "later batches")):
        base, taken = (min(each["seconds"][step] for each in found) for found in (few, many))
        assert taken < 3 * base + spare.get(what, 0.01), f"{what}: {taken:.4f} s, {base:.4f} s for 4 million"
    growth = min(each["nbytes"] for each in many) - min(each["nbytes"] for each in few)
    assert growth < 40e6, few + many  # of it 16 MB of checksums, that many pages of rows of 4 KiB
