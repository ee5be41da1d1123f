"""What writers do, in small: each scenario is run once and recorded."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import chunkstore
from chunkstore._rewrite.merge import merge
from chunkstore._rewrite.repack import repack
from chunkstore._storage import syscalls
from tools.battery.crash import Recording, Stage
from tools.battery.disk import Recorder
from tools.battery.samples import FIELDS, key, sample

SHARD = 300  # bytes: a few samples
type_scenario = Callable[[Stage], None]


def _written(path: Path, start: int, commits: tuple[int, ...]) -> int:
    """A finished container with so many samples in each commit."""
    number = start
    with chunkstore.Writer(path, fields=FIELDS, shard_nbytes=SHARD) as writer:
        for place, count in enumerate(commits):
            for _ in range(count):
                writer.add(sample(number), key(number))
                number += 1
            if place < len(commits) - 1:
                writer.commit()
    return number


def _begin(stage: Stage, *commits: int) -> None:
    """Have a container that is on the disk."""
    count = _written(stage.path, 0, commits)
    stage.numbers, stage._next = list(range(count)), count
    stage.began()


def _rest(stage: Stage) -> None:
    stage.recorder.mark("rest")


def create(stage: Stage) -> None:
    """A new container, three shards."""
    with syscalls.use(stage.recorder):
        writer = chunkstore.Writer(stage.path, fields=FIELDS, shard_nbytes=SHARD)
        stage.add(writer, 12)
        stage.commit(writer)
        stage.close(writer)


def create_known(stage: Stage) -> None:
    """A new container whose number of samples was known: a region for each field."""
    with syscalls.use(stage.recorder):
        writer = chunkstore.Writer(stage.path, fields=FIELDS, shard_nbytes=SHARD, num_samples=10)
        stage.add(writer, 10)
        stage.commit(writer)
        stage.close(writer)


def create_and_go_on(stage: Stage) -> None:
    """Three commits of one writer that began with a new file."""
    with syscalls.use(stage.recorder):
        writer = chunkstore.Writer(stage.path, fields=FIELDS, shard_nbytes=SHARD)
        for count in (8, 2, 1):
            stage.add(writer, count)
            stage.commit(writer)
        stage.close(writer)


def replace_container(stage: Stage) -> None:
    """Mode "w" over a container that is there."""
    _begin(stage, 4, 2)
    with syscalls.use(stage.recorder):
        writer = chunkstore.Writer(stage.path, fields=FIELDS, mode="w", shard_nbytes=SHARD)
        stage.numbers = []
        stage.add(writer, 5)
        stage.commit(writer)
        stage.close(writer)


class _WithoutLinks(Recorder):
    """A file system without hard links, such as FAT."""

    def link(self, source: str, target: str) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def create_without_links(stage: Stage) -> None:
    """A new container where there are no hard links: an empty file takes the name first."""
    stage.recorder = _WithoutLinks()
    stage.recorder.mark("empty")
    create(stage)


def append(stage: Stage) -> None:
    """Commits of one and several shards, one without samples."""
    _begin(stage, 9)
    with syscalls.use(stage.recorder):
        writer = chunkstore.Writer(stage.path, mode="a", shard_nbytes=SHARD)
        for count in (7, 1, 3):
            stage.add(writer, count)
            stage.commit(writer)
        writer.attrs["note"] = "no new sample"
        stage.commit(writer)
        stage.close(writer)


def append_merging(stage: Stage) -> None:
    """Small commits by writers of their own, whose segments are merged, and superseded ones listed."""
    _begin(stage, 9, 1, 1)
    for count in (1, 2):
        with syscalls.use(stage.recorder):
            writer = chunkstore.Writer(stage.path, mode="a")
            stage.add(writer, count)
            stage.commit(writer)
            stage.close(writer)


def append_to_nothing(stage: Stage) -> None:
    """A container without samples gets its first."""
    with chunkstore.Writer(stage.path, fields=FIELDS):
        pass
    stage.began()
    with syscalls.use(stage.recorder):
        writer = chunkstore.Writer(stage.path, mode="a")
        stage.add(writer, 2)
        stage.commit(writer)
        stage.close(writer)


def append_behind_junk(stage: Stage) -> None:
    """An earlier append did not finish: junk behind the committed end, and the superblocks differ."""
    _begin(stage, 6, 2)
    data = stage.path.read_bytes()
    _written(stage.folder / "b.cks", 90, (40,))
    junk = (stage.folder / "b.cks").read_bytes()  # the worst junk: good shards, segments and superblocks
    (stage.folder / "b.cks").unlink()
    stage.path.write_bytes(data + junk)
    stage.recorder.files[0] = stage.path.read_bytes()
    with syscalls.use(stage.recorder):
        writer = chunkstore.Writer(stage.path, mode="a", shard_nbytes=SHARD)
        stage.add(writer, 4)
        stage.commit(writer)
        stage.close(writer)


def append_with_a_damaged(stage: Stage) -> None:
    """A was damaged while nobody looked, in its first and in its last sector: no torn write of it looks so."""
    _append_to_damaged(stage, 60, 4085)


def append_with_b_damaged(stage: Stage) -> None:
    """B was damaged while nobody looked."""
    _append_to_damaged(stage, 4096 + 60)


def _append_to_damaged(stage: Stage, *places: int) -> None:
    _begin(stage, 6)
    data = bytearray(stage.path.read_bytes())
    for place in places:
        data[place] ^= 1
    stage.path.write_bytes(data)
    stage.recorder.files[0] = bytes(data)
    with syscalls.use(stage.recorder):
        writer = chunkstore.Writer(stage.path, mode="a", shard_nbytes=SHARD)
        stage.add(writer, 4)
        stage.commit(writer)
        stage.close(writer)


def abort(stage: Stage) -> None:
    """What was added after the last commit is dropped."""
    _begin(stage, 5)
    with syscalls.use(stage.recorder):
        writer = chunkstore.Writer(stage.path, mode="a", shard_nbytes=SHARD)
        stage.add(writer, 4)
        stage.commit(writer)
        stage.add(writer, 9)
        stage.close(writer)


def merge_two(stage: Stage) -> None:
    """Two containers into a new one."""
    first, second = stage.folder / "1.cks", stage.folder / "2.cks"
    count = _written(second, _written(first, 0, (5, 2)), (4,))
    with syscalls.use(stage.recorder):
        merge([first, second], stage.path)
    stage.acknowledge(list(range(count)))
    _rest(stage)


def repack_in_place(stage: Stage) -> None:
    """A container of many pieces replaces itself."""
    _begin(stage, 6, 3, 1)
    with syscalls.use(stage.recorder):
        repack(stage.path, stage.path, mode="w")
    stage.acknowledge(stage.numbers)
    _rest(stage)


ALL: dict[str, type_scenario] = {
    "create": create,
    "create with a known number": create_known,
    "create and go on": create_and_go_on,
    "create without links": create_without_links,
    "replace": replace_container,
    "append": append,
    "append and merge segments": append_merging,
    "append to nothing": append_to_nothing,
    "append behind junk": append_behind_junk,
    "append with superblock A damaged": append_with_a_damaged,
    "append with superblock B damaged": append_with_b_damaged,
    "abort": abort,
    "merge": merge_two,
    "repack in place": repack_in_place,
}
ONE_FILE = ("append", "append and merge segments", "append behind junk", "abort")  # for kills of the process alone


def record(name: str, folder: Path) -> Recording:
    """Run one scenario in a fresh folder."""
    stage = Stage(folder)
    ALL[name](stage)
    return stage.recording(name)
