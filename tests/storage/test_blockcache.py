"""Blocks of objects on the local disk: bounded, checksummed, shared by processes, no locks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chunkstore._storage import blockcache
from chunkstore._storage.blockcache import BlockCache

LIMIT = 1 << 20


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def block(number: int, nbytes: int = 1000) -> memoryview:
    return memoryview(bytes([number % 256]) * nbytes)


def test_a_block_comes_back(tmp_path: Path) -> None:
    """By its number, and for its version of its object alone."""
    cache = BlockCache(str(tmp_path), LIMIT, "url|version")
    assert cache.get(3, 1000) is None
    cache.put(3, block(3))
    assert cache.get(3, 1000) == bytes(block(3))
    assert cache.get(4, 1000) is None
    assert BlockCache(str(tmp_path), LIMIT, "url|version").get(3, 1000) == bytes(block(3))
    assert BlockCache(str(tmp_path), LIMIT, "url|other version").get(3, 1000) is None


@pytest.mark.parametrize("damage", ["flip", "cut", "longer", "empty"])
def test_a_damaged_block_is_not_there(tmp_path: Path, damage: str) -> None:
    """It is removed, so that it is fetched again."""
    cache = BlockCache(str(tmp_path), LIMIT, "x")
    cache.put(0, block(7))
    (path,) = files(tmp_path)
    data = bytearray(path.read_bytes())
    data[5] ^= damage == "flip"
    path.write_bytes({"flip": data, "cut": data[:-1], "longer": data + b"x", "empty": b""}[damage])
    assert cache.get(0, 1000) is None
    assert files(tmp_path) == []


@pytest.mark.parametrize("other", ["number", "version"])
def test_a_block_under_the_name_of_another_is_not_there(tmp_path: Path, other: str) -> None:
    """Whole as it is, it is not what was asked for."""
    cache = BlockCache(str(tmp_path), LIMIT, "x")
    elsewhere = cache if other == "number" else BlockCache(str(tmp_path), LIMIT, "y")
    elsewhere.put(1, block(1))
    (path,) = files(tmp_path)
    cache.put(0, block(0))
    (place,) = set(files(tmp_path)) - {path}
    path.replace(place)
    assert cache.get(0, 1000) is None
    assert files(tmp_path) == []


def test_the_oldest_go_first(tmp_path: Path) -> None:
    """Beyond the limit, the blocks that were not used for longest are removed, down to nine tenths of it."""
    cache = BlockCache(str(tmp_path), 100_000_000, "x")
    for number in range(20):
        cache.put(number, block(number, 100_000))
        os.utime(files(tmp_path)[number], (time.time() - 1000 + number,) * 2)
    assert cache.get(0, 100_000) is not None  # used now, and so the youngest
    BlockCache(str(tmp_path), LIMIT, "y").evict()
    left = [number for number in range(20) if cache.get(number, 100_000) is not None]
    assert left == [0, *range(12, 20)]


def test_writing_keeps_within_the_limit(tmp_path: Path) -> None:
    """No call of `evict` is needed; it is exceeded by a thirty-second at most."""
    cache = BlockCache(str(tmp_path), LIMIT, "x")
    for number in range(200):
        cache.put(number, block(number, 20_000))
        assert sum(path.stat().st_size for path in files(tmp_path)) <= LIMIT * 33 // 32 + 20_100


@pytest.mark.parametrize("short_lived", [False, True])
def test_many_objects_keep_within_the_limit(tmp_path: Path, short_lived: bool) -> None:
    """The limit is that of all objects, of which each has a cache of its own, and of all processes after each other."""
    for number in range(200):
        BlockCache(str(tmp_path), LIMIT, f"object {number}").put(0, block(number, 20_000))
        if short_lived:
            blockcache._left.clear()
    assert sum(path.stat().st_size for path in files(tmp_path)) <= LIMIT * 1.5


def test_what_a_killed_process_left_goes_after_an_hour(tmp_path: Path) -> None:
    """A temporary file that is young may be in the making, by another process."""
    cache = BlockCache(str(tmp_path), LIMIT, "x")
    cache.put(0, block(0))
    old, young = (files(tmp_path)[0].with_name(f"{name}.tmp") for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 4000,) * 2)
    cache.evict()
    assert not old.exists()
    assert young.exists()


def test_a_disk_that_takes_nothing_is_no_error(tmp_path: Path) -> None:
    """What cannot be kept is not kept."""
    cache = BlockCache(str(tmp_path), LIMIT, "x")
    for folder in (tmp_path / "cks-cache-1").iterdir():
        folder.rmdir()
    cache.put(0, block(0))
    assert cache.get(0, 1000) is None


_CHILD = """
import sys
from chunkstore._storage.blockcache import BlockCache
for turn in range(3):
    cache = BlockCache(sys.argv[1], 300_000, "shared")
    for number in range(60):
        found = cache.get(number, 10_000)
        assert found is None or found == bytes([number]) * 10_000
        cache.put(number, memoryview(bytes([number]) * 10_000))
print("good")
"""


def test_many_processes_share_it(tmp_path: Path) -> None:
    """They write, read and evict at the same time; one is killed; no block is ever wrong, and nothing is locked."""
    run = [sys.executable, "-c", _CHILD, str(tmp_path)]
    children = [subprocess.Popen(run, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    victim = subprocess.Popen(run, stdout=subprocess.DEVNULL)
    time.sleep(0.3)
    victim.kill()
    victim.wait()
    assert [child.communicate()[0].strip() for child in children] == ["good"] * 4
    cache = BlockCache(str(tmp_path), 300_000, "shared")
    for number in range(60):
        assert cache.get(number, 10_000) in (None, bytes([number]) * 10_000)
