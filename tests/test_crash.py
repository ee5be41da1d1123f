"""Power failures: every state that a disk may show after a crash opens at what was acknowledged, or later.

The quick part of `tools/battery`, which tries more than a million states. The mutants show that these tests can fail.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # tools/ is not installed

from tools.battery import mutants, scenarios  # noqa: E402
from tools.battery.crash import Crash, Recording, Stage  # noqa: E402
from tools.battery.disk import STALE, Contents, Disk, Op  # noqa: E402
from tools.battery.scratch import in_memory  # noqa: E402

SAMPLED = 16  # states at each turning point of a scenario


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: thousands of small files are made in it."""
    with in_memory(tmp_path) as folder:
        yield folder


@pytest.mark.parametrize("name", scenarios.ALL)
def test_every_state_after_a_crash_is_right(memory: Path, name: str) -> None:
    """Acknowledged samples are all there, nothing is mixed, and a new writer can go on; also after a second crash."""
    crash = Crash(memory, number=SAMPLED)
    with crash.folder() as folder:
        recording = scenarios.record(name, folder)
    crash.try_all(recording)
    assert crash.tally.wrong == []
    assert crash.tally.states > 150


@pytest.mark.parametrize("name", ["append", "append and merge segments", "append behind junk"])
def test_a_crash_and_then_damage(memory: Path, name: str) -> None:
    """With a superblock or a part of the index damaged, recover saves what was acknowledged; an append loses none."""
    crash = Crash(memory, number=SAMPLED, deep=1, damage=61)
    with crash.folder() as folder:
        recording = scenarios.record(name, folder)
    crash.try_all(recording)
    assert crash.tally.wrong == []
    assert crash.tally.damaged > 8


@pytest.mark.parametrize("name", ["abort", "append behind junk"])
def test_a_killed_writer_and_then_a_crash(memory: Path, name: str) -> None:
    """What a killed writer left in the cache alone is no ground to build on: the next one syncs first."""
    crash = Crash(memory, number=SAMPLED)
    with crash.folder() as folder:
        recording = scenarios.record(name, folder)
    crash.try_kills(recording, number=SAMPLED)
    assert crash.tally.wrong == []
    assert crash.tally.states > 250


def test_no_mutant_survives(memory: Path) -> None:
    """Each sync that is left out, each pair of steps that change places, each check that is skipped is found."""
    tried = []
    alive = mutants.survivors(memory, lambda name, _: tried.append(name), ("create", "replace", "abort"))
    assert alive == []
    assert len(tried) > 50


# -- the model itself


def test_a_sector_is_old_or_new() -> None:
    """One unsynced write over two sectors leaves four states, and a sync one."""
    disk = Disk({0: bytes(1024)}, {"a": 0})
    disk.apply(Op("write", 0, 0, b"x" * 1024))
    assert sorted(images(disk)) == sorted([bytes(1024), b"x" * 1024, bytes(512) + b"x" * 512, b"x" * 512 + bytes(512)])
    disk.apply(Op("sync", 0))
    assert images(disk) == [b"x" * 1024]


def test_a_file_may_grow_before_its_data() -> None:
    """Behind the old end there are the new bytes, zeros, or what the disk had there; or the file has its old length."""
    disk = Disk({0: b""}, {"a": 0})
    disk.apply(Op("write", 0, 0, b"x" * 512))
    assert sorted(images(disk)) == sorted([b"", bytes(512), b"x" * 512, STALE])


def test_what_was_cut_off_may_come_back() -> None:
    """A file that was cut and grew again holds zeros, the new bytes or the old ones."""
    disk = Disk({0: b"o" * 512}, {"a": 0})
    disk.apply(Op("truncate", 0, 0))
    disk.apply(Op("write", 0, 0, b"n" * 512))
    assert sorted(images(disk)) == sorted([b"", bytes(512), b"n" * 512, b"o" * 512])


def test_a_name_is_old_or_new_until_its_directory_is_synced() -> None:
    """A rename may be on the disk or not, whatever else is."""
    disk = Disk({0: b"", 1: b""}, {"/d/a": 0})
    disk.apply(Op("name", 1, name="/d/a"))
    assert disk.owners("/d/a") == [0, 1]
    disk.apply(Op("sync_names", name="/d"))
    assert disk.owners("/d/a") == [1]


def test_marks_say_what_was_acknowledged(memory: Path) -> None:
    """A recording with an acknowledgement that comes too early is found out."""
    stage = Stage(memory)
    scenarios.append_to_nothing(stage)
    recording = stage.recording("early")
    ops = sorted(recording.ops, key=lambda op: not op.name.startswith("ack"))
    changed = Recording(**{**vars(recording), "ops": ops})
    assert "was acknowledged" in str(mutants.killed_recording(changed, memory))


def images(disk: Disk) -> list[bytes]:
    """All states of file 0, each once."""
    contents: Contents = disk.contents(0)
    found = {contents.image(choice)[:size].tobytes() for choice in contents.every_choice() for size in contents.sizes}
    return list(found)
