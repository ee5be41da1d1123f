"""Damage: every flipped bit, cut, and moved sector is found, and what can still be read is right."""

from __future__ import annotations

import random
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damaged import Damaged, Reference, flip, found, mutate, read_wrong, repair

import chunkstore

sys.path.append(str(Path(__file__).resolve().parents[1]))  # tools/ is not installed

from tools.battery import damages

N = 48  # samples
SECTOR = 512


@pytest.fixture(scope="module", params=[1, 3], ids=["one commit", "three commits"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Damaged:
    """A container of about 64 KiB with all kinds of fields; tests put it back as it was."""
    return Damaged(tmp_path_factory.mktemp("damaged") / "a.cks").build(N, commits=request.param)


@pytest.fixture
def container(built: Damaged) -> Damaged:
    """The same, undamaged before and after each test."""
    built.restore()
    assert built.check(deep=True).ok
    return built


def test_flipped_bits_are_found(container: Damaged) -> None:
    """A flipped bit anywhere is found: here in every 131st byte; tools/battery/bitflips.py tries all of them."""
    bits = range(0, 8 * len(container.good), 8 * 131 + 1)
    missed = [bit for bit in flip(container.path, bits) if not found(container.path)]
    assert missed == []
    assert container.path.read_bytes() == container.good


@pytest.mark.parametrize("backend", ["mmap", "pread"])
def test_reads_with_a_flipped_bit_are_right_or_an_error(container: Damaged, backend: str) -> None:
    """Whatever bit is flipped, no sample is read wrong and no key leads to another sample."""
    reference = Reference(container.path)
    bits = sorted(random.Random(0).sample(range(8 * len(container.good)), 150))
    for bit in flip(container.path, bits):
        assert reference.wrong(container.path, backend) == [], f"bit {bit}"
    for bit in flip(container.path, bits[::10]):
        assert read_wrong(container.path, N, backend) == [], f"bit {bit}"


def test_truncations_are_found(container: Damaged) -> None:
    """A file cut off anywhere is found, and named as truncated where its head is whole."""
    size = len(container.good)
    lengths = {*range(0, size, 997), *range(4096, size, 4096), 1, 7, 8, 9, 4095, 8191, 8193, size - 1, size - 4096}
    for length in sorted(lengths):
        container.write(container.good[:length])
        if length == 0:
            with pytest.raises(chunkstore.NotAContainerError):
                container.check()
            continue
        report = container.check()
        assert not report.ok, length
        assert any(damage.kind == "truncated" for damage in report.damage), length


def test_truncation_lists_what_is_lost(tmp_path: Path) -> None:
    """Where the index lies in front, a cut names the samples of every block that is missing."""
    path = tmp_path / "a.cks"
    np.save(tmp_path / "x.npy", np.arange(20_000, dtype=np.uint8).reshape(20, 1000))
    chunkstore.convert(tmp_path / "x.npy", path, layout="rows", shard_nbytes=4000)
    start, _ = Damaged(path).place("BLOCK", "data")
    with path.open("r+b") as file:
        file.truncate(start + 4000 * 3 + 5)
    lost = [damage for damage in chunkstore.verify(path).damage if damage.shard is not None]
    assert [(damage.shard, damage.start, damage.stop) for damage in lost] == [(3, 12, 16), (4, 16, 20)]
    assert {damage.kind for damage in lost} == {"truncated"}


@pytest.mark.parametrize("junk", [b"\0", b"x", bytes(4096), bytes(range(256)) * 20], ids=len)
def test_appended_bytes_are_found(container: Damaged, junk: bytes) -> None:
    """Bytes behind the committed end are reported, zeros too, as harmless; all samples are read as before."""
    container.write(container.good + junk)
    report = container.check()
    found_there = [(damage.kind, damage.harmless, damage.nbytes) for damage in report.damage]
    assert found_there == [("trailing", True, len(junk))]
    assert read_wrong(container.path, N, "pread") == []


def test_zeroed_sectors_are_found(container: Damaged) -> None:
    """A sector of 512 bytes that became zeros is found, unless it was zeros before."""
    good = container.good
    for at in range(0, len(good), SECTOR):
        if any(good[at : at + SECTOR]):
            container.write(good[:at] + bytes(SECTOR) + good[at + SECTOR :])
            assert found(container.path), f"sector at {at}"


def test_swapped_and_duplicated_sectors_are_found(container: Damaged) -> None:
    """Two sectors that changed places, or one written over another, are found, unless they are equal."""
    good = container.good
    rng = random.Random(1)
    sectors = [at for at in range(0, len(good), SECTOR) if any(good[at : at + SECTOR])]
    for _ in range(120):
        first, second = sorted(rng.sample(sectors, 2))
        a, b = good[first : first + SECTOR], good[second : second + SECTOR]
        if a != b:
            middle, end = good[first + SECTOR : second], good[second + SECTOR :]
            container.write(good[:first] + b + middle + a + end)
            assert found(container.path), f"swapped {first} and {second}"
            container.write(good[:first] + a + middle + a + end)
            assert found(container.path), f"{first} written over {second}"


@pytest.mark.parametrize("commits", [1, 3])
def test_damage_of_the_battery_is_found(commits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of each kind that tools/battery tries; and what verify would not find is told."""
    tried, missed = damages.sweep(commits, 0, 2_003)
    assert missed == []
    assert tried > 60
    monkeypatch.setattr(damages, "found", lambda path: False)
    _, missed = damages.sweep(commits, 1, 30_011)
    assert len(missed) > 3


def test_hostile_files_do_no_harm(container: Damaged) -> None:
    """Wrong numbers under right checksums give our errors only, in little time and memory.

    150 files, the same each time; nothing else is raised, none takes a second, none allocates 64 MB.
    """
    for seed in range(150):
        container.write(mutate(container.good, seed))
        tracemalloc.start()
        began = time.perf_counter()
        try:
            report = chunkstore.verify(container.path, deep=seed % 2 == 0)
            assert report.ok == (not report.damage)
        except chunkstore.FormatError:
            pass
        finally:
            seconds, peak = time.perf_counter() - began, tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert seconds < 10, f"seed {seed}"  # a second, on a machine that others use at the same time
        assert peak < 64 << 20, f"seed {seed}"


def test_what_verify_passes_can_be_read(container: Damaged) -> None:
    """Of files with wrong numbers under right checksums, those that verify calls good can be read."""
    good = 0
    for seed in range(400, 520):
        container.write(mutate(container.good, seed))
        try:
            ok = chunkstore.verify(container.path, deep=True).ok
        except chunkstore.FormatError:
            continue
        if ok:
            good += 1
            with chunkstore.open(container.path) as ds:
                for number in range(len(ds)):
                    ds[number]
                assert ds.keys is not None
                assert ds.find(list(ds.keys)).tolist() == list(range(len(ds)))
                assert isinstance(ds.attrs, dict)
    assert good > 0


@pytest.mark.parametrize("num_samples", [2**40, 2**62 + 1, 2**63 - 1])
@pytest.mark.parametrize("backend", ["mmap", "pread"])
def test_as_many_samples_as_can_be(tmp_path: Path, num_samples: int, backend: Any) -> None:
    """Rows of no bytes may be as many as the limits allow, in one group: the last is read like any other."""
    container = Damaged(tmp_path / "a.cks")
    with chunkstore.Writer(container.path, fields={"x": ("uint8", (0,))}) as writer:
        writer.add({"x": np.zeros(0, np.uint8)})
    data, (start, nbytes), (block, _) = container.path.read_bytes(), *map(container.place, ("SHARD_STARTS", "BLOCKS"))
    number = num_samples.to_bytes(8, "little")
    changed = bytearray(data)
    for at in (container.place("DIRECTORY")[0] + 16, start + nbytes - 8, block + 24):
        changed[at : at + 8] = number
    repair(changed)
    container.write(changed)
    assert container.check(deep=True).ok
    with chunkstore.open(container.path, backend=backend) as ds:
        assert len(ds) == num_samples
        assert ds[num_samples - 1]["x"].shape == (0,)
        assert ds.batch([0, num_samples - 1])["x"].shape == (2, 0)
