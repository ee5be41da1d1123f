"""Every state that a disk may show after a crash, opened and held against what was acknowledged.

A state is right if a reader finds in it exactly the bytes of the last acknowledged commit or of a later one. That is
decided for each state by the package's own choice of superblock and a comparison of all committed bytes. What is left
open then, two superblocks and what lies behind the committed end, makes a few classes: one state of each class is read
in full by the plain decoder and by the package, verified, and appended to; the states of that append are tried, too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import xxhash

import chunkstore
from chunkstore._format.constants import HEAD_NBYTES
from chunkstore._format.index import read_generation
from chunkstore._format.superblock import Superblock, decode_head
from chunkstore._storage import syscalls
from tools.battery.disk import SECTOR, Contents, Disk, Op, Recorder, cache_image, describe, type_sectors
from tools.battery.samples import FIELDS, key, same_as_written, sample
from tools.battery.twofaults import TwoFaults

_DATA_SHARE = 6  # between two writes of data, so many times fewer states are sampled than around a sync
HARMLESS = ("superblock", "trailing")  # what verify may find after a crash


@dataclass(frozen=True)
class Commit:
    """One generation as it was committed.

    Attributes:
        file: number of the file.
        superblock: as the package reads it.
        generation, end, digest: of its superblock, by the plain decoder.
        body: bytes `[8192, end)`.
        numbers: of the samples in it, in their order.
    """

    file: int
    superblock: Superblock
    generation: int
    end: int
    digest: bytes
    body: bytes
    numbers: tuple[int, ...]


@dataclass
class Recording:
    """What a scenario did.

    Attributes:
        name: of the scenario.
        target: path of the container.
        files, names, ops: as in `Recorder`.
        commits: in their order. A mark `ack i` in `ops` says when commit i was acknowledged, `rest` when the writer
            had closed the file, `empty` from when on the name may stand for an empty file.
    """

    name: str
    target: str
    files: dict[int, bytes]
    names: dict[str, int]
    ops: list[Op]
    commits: list[Commit]


class Stage:
    """Where a scenario acts: a folder, a container in it, and the samples that it has."""

    def __init__(self, folder: Path, image: bytes | None = None, numbers: tuple[int, ...] = ()) -> None:
        self.folder = folder
        self.path = folder / "a.cks"
        self.recorder = Recorder()
        self.commits: list[Commit] = []
        self.numbers = list(numbers)
        self._next = max(numbers, default=-1) + 1
        self._added: list[int] = []
        if image is not None:
            self.path.write_bytes(image)

    def began(self) -> None:
        """The container that is there now is committed and on the disk."""
        self.recorder._know(str(self.path), os.stat(self.path))
        self._take(self.path)

    def add(self, writer: chunkstore.Writer, count: int) -> None:
        """Add the next samples."""
        for _ in range(count):
            writer.add(sample(self._next), key(self._next))
            self._added.append(self._next)
            self._next += 1

    def commit(self, writer: chunkstore.Writer) -> None:
        """Commit what was added, and note that it is acknowledged."""
        writer.commit()
        self.acknowledge()

    def acknowledge(self, numbers: list[int] | None = None) -> None:
        """The container is what it is: note it as acknowledged."""
        self.numbers = [*self.numbers, *self._added] if numbers is None else numbers
        self._added = []
        self._take(self.path)

    def close(self, writer: chunkstore.Writer) -> None:
        """End a writer; what it did not commit is gone."""
        writer.abort()
        self._added = []
        self.recorder.mark("rest")

    def _take(self, path: Path) -> None:
        data = path.read_bytes()
        generation, end, *_, digest = oracle.load().choose_superblock(data[:HEAD_NBYTES])
        file, superblock = self.recorder.file_at(str(path)), decode_head(data[:HEAD_NBYTES], len(data)).superblock
        before = self.commits[-1] if self.commits else None
        if before is not None and before.file == file and generation != before.generation + 1:
            raise AssertionError(f"generation {generation} was committed after {before.generation}")
        self.recorder.mark(f"ack {len(self.commits)}")
        body = data[HEAD_NBYTES:end]
        self.commits.append(Commit(file, superblock, generation, end, digest, body, tuple(self.numbers)))

    def recording(self, name: str) -> Recording:
        """What was done until now."""
        calls = self.recorder
        return Recording(name, str(self.path), calls.files, calls.names, list(calls.ops), self.commits)


@dataclass
class Tally:
    """What was tried and found."""

    states: int = 0
    seen: set[int] = field(default_factory=set)
    classes: int = 0
    points: int = 0
    exhaustive: int = 0
    damaged: int = 0
    by_name: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.states += other.states
        self.seen |= other.seen
        self.classes += other.classes
        self.points += other.points
        self.exhaustive += other.exhaustive
        self.damaged += other.damaged
        self.by_name += other.by_name
        self.wrong += other.wrong


class Enough(Exception):
    """A mutant is dead: no more states are needed."""


class Crash:
    """Tries the states of recordings.

    Args:
        folder: for the files of full checks; in memory, if possible.
        number: states to sample at a point that has more.
        seed: of the samples.
        deep: how many generations of crashes: 1 tries the states of the recording, 2 also those of an append to a
            state of each class, and so on.
        first: stop at the first wrong state.
        damage: in states of each kind, do one damage of so many, too (`twofaults`); 0 for none.
    """

    def __init__(
        self, folder: Path, *, number: int, seed: int = 0, deep: int = 2, first: bool = False, damage: int = 0
    ) -> None:
        self.tally = Tally()
        self._folder = folder
        self._number = number
        self._seed = seed
        self._deep = deep
        self._first = first
        self._twofaults = TwoFaults(folder, every=damage) if damage else None
        self._heads: dict[tuple[bytes, int], Any] = {}
        self._checked: dict[Any, int] = {}

    def try_all(self, recording: Recording, *, depth: int = 1, number: int | None = None) -> None:
        """Every state after each op of a recording."""
        disk = Disk(recording.files, recording.names)
        floor, rest, empty = -1, False, False
        for point in range(len(recording.ops) + 1):
            if point:
                op = recording.ops[point - 1]
                disk.apply(op)
                if op.kind == "mark":
                    floor = int(op.name[4:]) if op.name.startswith("ack") else floor
                    rest, empty = op.name == "rest", empty or op.name == "empty"
                else:
                    rest = False
            if (
                point < len(recording.ops)
                and recording.ops[point].kind == "mark"
                and recording.ops[point].name != "empty"
            ):
                continue  # the state after the mark is the same, and more is asked of it
            self.tally.points += 1
            few = (number or self._number) // (1 if _is_turning(recording.ops, point) else _DATA_SHARE)
            try_point = _Point(self, recording, point, floor, rest, empty and floor < 0, depth)
            try_point.try_states(disk, few, np.random.default_rng((self._seed, point)))

    def try_kills(self, recording: Recording, *, number: int) -> None:
        """Kill the writer, not the machine, after each op; another one appends to what is in the cache; then a crash.

        For recordings whose container has one file.
        """
        disk = Disk(recording.files, recording.names)
        floor = 0
        for point, op in enumerate(recording.ops):
            disk.apply(op)
            if op.kind == "mark":
                floor = int(op.name[4:]) if op.name.startswith("ack") else floor
                continue
            after = recording.ops[point + 1] if point + 1 < len(recording.ops) else None
            if after is not None and after.kind == "write" and after.offset >= HEAD_NBYTES and op.kind == "write":
                continue  # between writes of data nothing changes that a second writer sees
            self._try_kill(recording, disk, point + 1, floor, number)

    def _try_kill(self, recording: Recording, disk: Disk, point: int, floor: int, number: int) -> None:
        file = recording.commits[0].file
        image = cache_image(disk, file)
        with self.folder() as folder:
            stage = Stage(folder, image)
            found = decode_head(image[:HEAD_NBYTES], len(image)).superblock
            known = [
                c for c in recording.commits if (c.generation, c.digest) == (found.generation, found.directory_sum)
            ]
            if not known:
                self.wrong(recording, point, "a killed writer left a generation that was never committed")
                return
            stage.numbers = list(known[0].numbers)
            stage._next = max(stage.numbers, default=-1) + 1
            _append(stage)
            more = stage.recording(f"{recording.name}, killed at {point}")
        before = [c for c in recording.commits if c.generation <= known[0].generation]
        ops = [*recording.ops[:point], *(_renumbered(op, file, len(before)) for op in more.ops)]
        commits = [*before, *(replace(c, file=file) for c in more.commits)]
        both = Recording(more.name, recording.target, recording.files, recording.names, ops, commits)
        self._try_tail(both, point, floor, number)

    def _try_tail(self, recording: Recording, start: int, floor: int, number: int) -> None:
        disk = Disk(recording.files, recording.names)
        rest = False
        for point, op in enumerate(recording.ops):
            disk.apply(op)
            if op.kind == "mark":
                floor = int(op.name[4:]) if op.name.startswith("ack") else floor
                rest = op.name == "rest"
            else:
                rest = False
            if point >= start:
                rng = np.random.default_rng((self._seed, point))
                _Point(self, recording, point + 1, floor, rest, False, self._deep).try_states(disk, number, rng)

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """A fresh folder."""
        path = Path(tempfile.mkdtemp(dir=self._folder))
        try:
            yield path
        finally:
            shutil.rmtree(path)

    def wrong(self, recording: Recording, point: int, what: str) -> None:
        """Write down what must not be."""
        where = describe(recording.ops, point)
        self.tally.wrong.append(
            f"{recording.name}, after op {point} ({where['last'] or 'none'}), before {where['next'] or 'the end'}: "
            f"{what}"
        )
        if self._first or len(self.tally.wrong) > 50:
            raise Enough

    def superblock(self, head: bytes, size: int) -> Any:
        """What the package takes from a head: a superblock or an error; remembered."""
        place = (head, size)
        if place not in self._heads:
            try:
                self._heads[place] = decode_head(head, size).superblock
            except Exception as error:  # noqa: BLE001 - whatever is raised is a finding
                self._heads[place] = error
        return self._heads[place]

    def is_new(self, what: Any, depth: int) -> bool:
        """Whether this class was not seen before, after as few crashes or fewer: with fewer, more is tried."""
        new = self._checked.get(what, depth + 1) > depth
        if new:
            self._checked[what] = depth
        return new


class _Point:
    """The states after one op."""

    def __init__(
        self, crash: Crash, recording: Recording, point: int, floor: int, rest: bool, empty: bool, depth: int
    ) -> None:
        self.crash = crash
        self.recording = recording
        self.point = point
        self.floor = floor  # the commit that must be there at least; -1: none was acknowledged
        self.rest = rest
        self.empty = empty
        self.depth = depth

    def try_states(self, disk: Disk, number: int, rng: np.random.Generator) -> None:
        """All of them, if there are few; otherwise a sample."""
        if self.rest:
            self._check_rest(disk)
        for owner in disk.owners(self.recording.target):
            if owner < 0:
                self._count(-1)
                if self.floor >= 0:
                    self._wrong("the container has no name")
                continue
            contents = disk.contents(owner)
            if contents.num_states <= max(number, 16):
                self.crash.tally.exhaustive += 1
                for choice in contents.every_choice():
                    image = contents.image(choice)
                    for size in contents.sizes:
                        self._try(owner, image[:size])
                continue
            for place, choice in enumerate(contents.some_choices(number, rng)):
                image = contents.image(choice)
                if place < 3:
                    for size in contents.sizes:
                        self._try(owner, image[:size])
                else:
                    # Mostly the whole file: where the size is old, all states of what is behind it are one.
                    newest = rng.random() < 0.8
                    size = max(contents.sizes) if newest else contents.sizes[int(rng.integers(len(contents.sizes)))]
                    self._try(owner, image[:size])

    def _check_rest(self, disk: Disk) -> None:
        """A writer that is done leaves equal superblocks and nothing behind the end, if only in the cache."""
        commit = self.recording.commits[self.floor]
        image = cache_image(disk, commit.file)
        if image[:4096] != image[4096:HEAD_NBYTES] or len(image) != commit.end:
            self._wrong("at rest, the superblocks differ or there are bytes behind the committed end")

    def _count(self, digest: int) -> None:
        self.crash.tally.states += 1
        self.crash.tally.by_name[self.recording.name.partition(",")[0]] += 1
        self.crash.tally.seen.add(digest)

    def _try(self, owner: int, image: type_sectors) -> None:
        self._count(xxhash.xxh3_64_intdigest(image))
        size = len(image)
        if size == 0 and self.empty:
            return
        head = image[:HEAD_NBYTES].tobytes()
        found = self.crash.superblock(head, size)
        if isinstance(found, Exception):
            self._wrong(f"cannot be opened: {type(found).__name__}: {found}")
            return
        place = self._commit_of(owner, found)
        if place is None:
            self._wrong(f"opens at generation {found.generation}, which was never committed so")
            return
        commit = self.recording.commits[place]
        if place < self.floor:
            wanted = self.recording.commits[self.floor].generation
            self._wrong(f"opens at generation {commit.generation}, and {wanted} was acknowledged")
        elif image[HEAD_NBYTES : commit.end].tobytes() != commit.body:
            self._wrong(f"opens at generation {commit.generation}, and its bytes are not those that were committed")
        elif self.rest and commit.generation == 1 and (head[:4096] != head[4096:] or size != commit.end):
            # A new file is synced as a whole before it gets its name; superblock B of an append is not.
            self._wrong("at rest, the superblocks of a new file differ or there are bytes behind its end")
        elif self.crash.is_new((head, size > commit.end, commit.body), self.depth):
            self.crash.tally.classes += 1
            if _generation(head[4096:]) > _generation(head[:4096]) > 0:
                self._wrong("superblock B is newer than A, and A is written first (spec section 12)")
            self._try_fully(image.tobytes(), commit)
            if self.floor >= 0 and self.depth == 1:
                self._try_damaged(image.tobytes(), commit)

    def _commit_of(self, owner: int, superblock: Any) -> int | None:
        for place, commit in reversed(list(enumerate(self.recording.commits))):
            known = (commit.file, commit.generation, commit.digest, commit.end)
            if known == (owner, superblock.generation, superblock.directory_sum, superblock.committed_end):
                return place
        return None

    def _wrong(self, what: str) -> None:
        self.crash.wrong(self.recording, self.point, what)

    def _try_fully(self, image: bytes, commit: Commit) -> None:
        """Read all by the plain decoder and by the package, verify, append, and crash that."""
        with self.crash.folder() as folder:
            path = folder / "a.cks"
            path.write_bytes(image)
            try:
                for what in read_fully(path, commit.numbers):
                    self._wrong(what)
                if self.depth < self.crash._deep:
                    self._go_on(folder / "next", image, commit)
            except Enough:
                raise
            except Exception as error:  # noqa: BLE001 - whatever is raised is a finding
                self._wrong(f"{type(error).__name__}: {error}")

    def _try_damaged(self, image: bytes, commit: Commit) -> None:
        """A second fault: damage. States whose superblocks and end are alike are one."""
        two, recording = self.crash._twofaults, self.recording
        a, b = image[:4096], image[4096:HEAD_NBYTES]
        ends = a[:SECTOR] == b[:SECTOR], a[-SECTOR:] == b[-SECTOR:]
        alike = (recording.name, self.floor, _generation(a), _generation(b), ends, len(image) > commit.end)
        if two is None or not self.crash.is_new(alike, self.depth):
            return
        acknowledged = recording.commits[self.floor]
        known = [c.superblock for c in recording.commits[: self.floor + 1] if c.file == commit.file]
        numbers = acknowledged.numbers if acknowledged.file == commit.file else commit.numbers
        before = two.tried
        try:
            for what in two.wrong(image, numbers, known):
                self._wrong(what)
        except Enough:
            raise
        except Exception as error:  # noqa: BLE001 - whatever is raised is a finding
            self._wrong(f"with damage: {type(error).__name__}: {error}")
        self.crash.tally.damaged += two.tried - before

    def _go_on(self, folder: Path, image: bytes, commit: Commit) -> None:
        folder.mkdir()
        stage = Stage(folder, image, commit.numbers)
        stage.recorder._know(str(stage.path), os.stat(stage.path))
        # What is found after the crash may have been seen by readers: from here on it must stay.
        stage.recorder.mark("ack 0")
        stage.commits.append(replace(commit, file=0))
        _append(stage)
        for what in read_fully(stage.path, tuple(stage.numbers), whole=True):
            self._wrong(f"after an append: {what}")
        recording = stage.recording(f"{self.recording.name}, crashed at {self.point}, appended")
        self.crash.try_all(recording, depth=self.depth + 1, number=max(self.crash._number // 10, 12))


def _is_turning(ops: list[Op], point: int) -> bool:
    """Whether more is decided here than one more write of data, of which there are many."""
    around = ops[max(point - 1, 0) : point + 1]
    return any(op.kind != "write" or op.offset < HEAD_NBYTES for op in around)


def _generation(superblock: bytes) -> int:
    """Of a superblock by the plain decoder; 0 if it is not valid."""
    decoder = oracle.load()
    try:
        return int(decoder.parse_superblock(superblock)[0])
    except decoder.FormatError:
        return 0


def _append(stage: Stage) -> None:
    """Two small commits and a clean end."""
    with syscalls.use(stage.recorder):
        writer = chunkstore.Writer(stage.path, mode="a", shard_nbytes=300)
        stage.add(writer, 3)
        stage.commit(writer)
        stage.add(writer, 2)
        stage.commit(writer)
        stage.close(writer)


def _renumbered(op: Op, file: int, acked: int) -> Op:
    """An op of a later recording of the same single file."""
    if op.kind == "mark":
        return replace(op, name=f"ack {int(op.name[4:]) + acked}") if op.name.startswith("ack") else op
    return replace(op, file=file) if op.file >= 0 else op


def read_fully(path: Path, numbers: tuple[int, ...], *, whole: bool = False) -> Iterator[str]:
    """Everything in a container by both readers and verify; what is wrong.

    Args:
        whole: nothing may be left of a crash; otherwise what is harmless may.
    """
    container = oracle.load().Container(path)
    lines = [
        line for line in oracle.verify(container) if whole or not ("A and B differ" in line or "behind the" in line)
    ]
    yield from (f"the plain decoder says: {line}" for line in lines)
    if container.num_samples != len(numbers):
        yield f"{container.num_samples} samples by the plain decoder, expected {len(numbers)}"
        return
    if container.keys() != [key(number) for number in numbers]:
        yield "other keys by the plain decoder"
    columns = [list(container.rows(name)) for name in FIELDS]
    rows = [dict(zip(FIELDS, row, strict=True)) for row in zip(*columns, strict=True)]
    yield from (
        f"sample {n} by the plain decoder" for n, row in zip(numbers, rows, strict=True) if not same_as_written(row, n)
    )
    report = chunkstore.verify(path)
    bad = [d for d in report.damage if whole or not (d.harmless and d.kind in HARMLESS)]
    yield from (f"verify says: {damage}" for damage in bad)
    with chunkstore.open(path, backend="pread", verify="always") as ds:
        if len(ds) != len(numbers):
            yield f"{len(ds)} samples, expected {len(numbers)}"
            return
        yield from (
            f"sample {n} is read wrong" for row, n in zip(ds, numbers, strict=True) if not same_as_written(row, n)
        )
        if numbers and ds.find([key(n) for n in numbers]).tolist() != list(range(len(numbers))):
            yield "keys are found elsewhere"
        # An older generation, as a reader that was unpickled asks for it.
        if read_generation(ds._source, ds._index.superblock).num_samples != len(numbers):
            yield "the generation cannot be read again"


__all__ = ["Commit", "Contents", "Crash", "Enough", "Recording", "Stage", "Tally", "read_fully"]
