"""Readers beside a writer, in processes of every kind, and over files that are cut or replaced under them.

The quick part of `tools/battery`.
"""

from __future__ import annotations

import os
import random
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # tools/ is not installed

import chunkstore  # noqa: E402
from chunkstore._format.constants import Kind  # noqa: E402
from chunkstore._format.index import read_index  # noqa: E402
from chunkstore._storage.source import open_source  # noqa: E402
from tools.battery import fuzz, powerloss, readers  # noqa: E402
from tools.battery.faults import Findings, write  # noqa: E402
from tools.battery.samples import key, sample  # noqa: E402
from tools.battery.scratch import in_memory  # noqa: E402


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one."""
    with in_memory(tmp_path) as folder:
        yield folder


def test_one_writer_and_two_readers(memory: Path) -> None:
    """Three seconds: no error, generations only go forward, every acknowledged sample is there and right."""
    findings = Findings()
    generation = readers.writer_and_readers(memory, 3, findings)
    assert findings.wrong == []
    assert findings.tried > 500
    assert generation > 5


def test_a_second_writer_is_refused_at_once(tmp_path: Path) -> None:
    """Whatever the first one is doing; afterwards the way is free."""
    path = tmp_path / "a.cks"
    write(path, 0, 3)
    with chunkstore.Writer(path, mode="a") as writer:
        writer.add(sample(3), key(3))
        with pytest.raises(chunkstore.LockedError, match=f"process {os.getpid()} is writing"):
            chunkstore.Writer(path, mode="a")
    write(path, 4, 5, "a")
    with chunkstore.open(path) as ds:
        assert list(ds.keys or []) == [key(n) for n in range(5)]


def test_readers_outlive_an_append_that_is_given_up(tmp_path: Path) -> None:
    """Opened while it was under way, they need nothing behind the commit that they see."""
    path, other = tmp_path / "a.cks", tmp_path / "b.cks"
    write(path, 0, 3)
    write(other, 3, 6)
    writer = chunkstore.Writer(path, mode="a", shard_nbytes=1)
    for number in range(6, 60):
        writer.add(sample(number), key(number))
    opened = os.path.getsize(path)
    with chunkstore.open(path, backend="mmap") as ds, chunkstore.open([path, other], backend="mmap") as both:
        writer.abort()
        assert os.path.getsize(path) < opened
        for reader in (ds, both):
            assert list(reader.keys or [])[:3] == [key(number) for number in range(3)]
            assert reader.batch([2, 0])["x"].tolist() == [sample(2)["x"].tolist(), sample(0)["x"].tolist()]
            assert len(reader.column("x")) == len(reader)


def test_readers_keep_their_generation(tmp_path: Path) -> None:
    """Until `refresh`, which moves forward and says whether it did."""
    path = tmp_path / "a.cks"
    write(path, 0, 3)
    with chunkstore.open(path) as ds:
        write(path, 3, 7, "a")
        assert (len(ds), ds.generation) == (3, 1)
        assert ds.refresh()
        assert (len(ds), ds.generation) == (7, 2)
        assert not ds.refresh()


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_reads_in_worker_processes(memory: Path, method: str) -> None:
    """Each way to start a process: readers are taken over or unpickled, and read right."""
    if method == "fork" and not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    write(memory / "a.cks", 0, 2000)
    assert readers.many_reads(memory / "a.cks", 2, 10_000, method) == 0


def test_files_that_are_cut_under_a_reader(memory: Path) -> None:
    """By `pread` an error and no more: the process lives, and what is read is right."""
    findings = Findings()
    readers.truncated_under_reader(memory, 30, findings)
    assert findings.wrong == []
    assert findings.raised["TruncatedError"] > 20


def test_files_that_are_replaced_under_a_reader(memory: Path) -> None:
    """It goes on with the old file, and `refresh` notices."""
    findings = Findings()
    readers.replaced_under_reader(memory, 20, findings)
    assert findings.wrong == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="how a process ends is the system's own way")
def test_a_view_of_a_file_that_was_cut_ends_the_process(tmp_path: Path) -> None:
    """As SECURITY.md says: `batch` looks at the size first and raises, a view that is touched is a SIGBUS."""
    assert readers.truncated_under_a_map(tmp_path) == ("TruncatedError", readers.SIGBUS)


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_fuzz(memory: Path, kind: str) -> None:
    """Some hundred changed inputs: our errors only, quickly, in little memory; the battery tries many more."""
    found = fuzz.feed_kind(kind, memory, 20, 11, 4000 if kind == "npy" else 150)
    assert found.wrong == []
    assert 0 < found.accepted < found.inputs


def test_reading_takes_no_memory_by_what_a_file_claims(memory: Path) -> None:
    """Opening and verifying 60 containers with any numbers in them never allocates 64 MiB."""
    seeds = fuzz.container_seeds(memory)
    target = fuzz.ContainerTarget(memory, seeds)
    rng = random.Random(5)
    tracemalloc.start()
    try:
        for number in range(60):
            try:
                target(bytes(fuzz.mutate(seeds[number % len(seeds)], rng.randrange(1 << 30))))
            except (chunkstore.ChunkstoreError, IndexError):
                continue
        assert tracemalloc.get_traced_memory()[1] < fuzz.LIMIT_NBYTES
    finally:
        tracemalloc.stop()


def test_power_loss_on_a_real_file_system(memory: Path) -> None:
    """An ext4 that is shut down under a writer, four times."""
    reason = powerloss.why_not(memory)
    if reason:
        pytest.skip(reason)
    findings = Findings()
    powerloss.try_power_loss(memory, findings, 4)
    assert findings.wrong == []


def test_verify_beside_a_writer(memory: Path) -> None:
    """What an append has just added is reported as bytes behind the end at most: never as damage."""
    path = memory / "a.cks"
    write(path, 0, 5)
    bad = []
    with chunkstore.Writer(path, mode="a") as writer:

        def append(_done: int, _total: int) -> None:
            writer.add(sample(len(writer)), key(len(writer)))
            writer.commit()

        for _ in range(5):
            report = chunkstore.verify(path, progress=append)
            bad += [damage.message for damage in report.damage if not damage.harmless]
    assert bad == []


def test_append_does_not_cut_off_what_a_damaged_superblock_named(tmp_path: Path) -> None:
    """B did not reach the disk before a power failure, then A is damaged: the commit that only A named stays there."""
    path = tmp_path / "a.cks"
    for count, mode in ((10, "x"), (5, "a")):
        with chunkstore.Writer(path, mode=mode) as writer:  # type: ignore[arg-type]
            before = b"" if mode == "x" else path.read_bytes()[4096:8192]
            for number in range(count):
                writer.add({"x": np.int64(number)}, key=f"{mode}{number}")
    data = bytearray(path.read_bytes())
    data[4096:8192] = before
    for at in (40, 60, 2000, 4090):
        damaged = bytes(data[:at]) + bytes([data[at] ^ 1]) + bytes(data[at + 1 :])
        path.write_bytes(damaged)
        assert len(chunkstore.open(path)) == 10
        with pytest.raises(chunkstore.CorruptError, match=r"superblock A is damaged.*Nothing was changed"):
            chunkstore.Writer(path, mode="a")
        assert path.read_bytes() == damaged
        saved = chunkstore.recover(path, tmp_path / f"{at}.cks")
        assert saved.num_saved == 15
        assert chunkstore.verify(tmp_path / f"{at}.cks").ok
    for torn in (data[:512] + before[512:], before[:512] + data[512:4096]):
        path.write_bytes(bytes(torn) + bytes(data[4096:]))
        with chunkstore.Writer(path, mode="a") as writer:  # a commit that was not acknowledged
            writer.add({"x": np.int64(7)}, key="new")
        assert chunkstore.verify(path).ok
        assert len(chunkstore.open(path)) == 11


def test_a_superblock_a_of_an_older_generation_is_mended_by_b(tmp_path: Path) -> None:
    """A disk that lost a write of A leaves it so: the next writer takes the newer one for both, before all else."""
    path = tmp_path / "a.cks"
    with chunkstore.Writer(path) as writer:
        writer.add({"x": np.int64(0)}, key="k0")
    older = path.read_bytes()[:4096]
    with chunkstore.Writer(path, mode="a") as writer:
        writer.add({"x": np.int64(1)}, key="k1")
    good = path.read_bytes()
    path.write_bytes(older + good[4096:])
    assert [damage.kind for damage in chunkstore.verify(path).damage] == ["superblock"]
    chunkstore.Writer(path, mode="a").close()
    assert path.read_bytes() == good


def test_after_a_crash_an_append_proves_the_index_before_it_changes_anything(tmp_path: Path) -> None:
    """A page of the index that no append reads: at rest it may go on, behind a crash it refuses and says what to do."""
    path = tmp_path / "a.cks"
    with chunkstore.Writer(path) as writer:
        for number in range(300):
            writer.add({"x": np.int64(number)}, key=f"k{number}")
    with open_source(path, "pread") as source:
        (directory,) = read_index(source).directories
    (place,) = (entry.offset for entry in directory.sections() if entry.kind == Kind.KEY_ORDER)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data) + b"begun")
    with pytest.raises(chunkstore.CorruptError, match=r"KEY_ORDER.*nothing was changed.*`chunkstore recover"):
        chunkstore.Writer(path, mode="a")
    assert path.read_bytes() == bytes(data) + b"begun"
    assert chunkstore.recover(path, tmp_path / "b.cks").num_saved == 300
    path.write_bytes(data)
    chunkstore.Writer(path, mode="a").close()
