"""A container and a list that should always say the same: every step is done to both.

Driven by hypothesis in `tests/test_model.py`, and by random numbers for as many steps as one likes in the long run.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

import chunkstore
from chunkstore._rewrite.merge import merge
from chunkstore._rewrite.recover import recover
from chunkstore._rewrite.repack import repack
from chunkstore._storage import syscalls
from tools.battery.disk import Disk, Recorder
from tools.battery.samples import FIELDS, key, same_as_written, sample

_SHARDS: Final = (1, 300, 1 << 20)  # shard_nbytes
_MAX_SAMPLES: Final = 400  # beyond that the container is repacked to a few
_MAX_READERS: Final = 3


@dataclass
class _Writer:
    """An open writer, and what it did since it was opened."""

    writer: chunkstore.Writer
    recorder: Recorder
    pending: list[int] = field(default_factory=list)
    acked: list[tuple[int, list[int] | None]] = field(default_factory=list)
    """(number of ops when it was acknowledged, what the container had then)."""


@dataclass
class _Reader:
    ds: chunkstore.Reader
    numbers: list[int]
    generation: int
    file: int
    """Which of the files that had the name it reads."""


class Model:
    """One container at a time, its writer, a few readers.

    Args:
        folder: empty; holds the files.
    """

    STEPS: Final = (
        "write", "write", "add", "add", "add", "add_batch", "commit", "commit", "commit", "abort", "kill",
        "crash", "crash", "open", "refresh", "refresh", "read", "read", "close", "repack", "merge",
        "damage", "recover", "same_key",
    )  # fmt: skip
    _OF_A_WRITER: Final = {"add", "add_batch", "commit", "abort", "kill", "crash", "same_key"}
    _WITHOUT_A_WRITER: Final = {"write", "repack", "merge", "damage", "recover"}
    _OF_A_CONTAINER: Final = {"open", "repack", "merge", "damage", "recover"}
    _OF_READERS: Final = {"refresh", "read", "close"}

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "a.cks"
        self.committed: list[int] | None = None  # None: there is no container
        self.older: list[int] | None = None  # after a crash: what superblock B may still say, if A is damaged, too
        self.steps: Counter[str] = Counter()
        self._writer: _Writer | None = None
        self._readers: list[_Reader] = []
        self._next = 0
        self._file = 0

    @property
    def writing(self) -> bool:
        """Whether there is a writer."""
        return self._writer is not None

    def step(self, name: str, a: int, b: int) -> None:
        """One step; `a` and `b` are any numbers from 0 on, which decide the details. Then both must agree.

        A step that needs a writer, a reader or a container does nothing without one, and does not count.
        """
        if not self._is_possible(name):
            return
        self.steps[name] += 1
        getattr(self, f"_{name}")(a, b)
        if name not in self._OF_READERS and name != "open":  # these leave the file alone
            self._check(a + b)

    def _is_possible(self, name: str) -> bool:
        if name in (self._WITHOUT_A_WRITER if self.writing else self._OF_A_WRITER):
            return False
        if name in self._OF_A_CONTAINER:
            return self.committed is not None
        if name == "same_key":
            return bool(self.committed)
        return bool(self._readers) or name not in self._OF_READERS

    def end(self) -> None:
        """Close everything; all files are as they should be at rest."""
        if self._writer is not None:
            self._abort(0, 0)
        for reader in self._readers:
            reader.ds.close()
        if self.committed is not None:
            chunkstore.Writer(self.path, mode="a").close()  # after a crash, the next writer cleans up
            assert chunkstore.verify(self.path).ok

    # -- writing

    def _write(self, a: int, b: int) -> None:
        new = self.committed is None
        recorder = Recorder()
        with syscalls.use(recorder):
            options: dict[str, Any] = {"fields": FIELDS, "mode": "x"} if new else {"mode": "a"}
            writer = chunkstore.Writer(self.path, shard_nbytes=_SHARDS[a % len(_SHARDS)], **options)
        acked = [(0, None if self.committed is None else list(self.committed))]
        self._writer = _Writer(writer, recorder, acked=acked)

    def _add(self, a: int, b: int) -> None:
        assert self._writer is not None
        with syscalls.use(self._writer.recorder):
            for number in self._take(a % 4 + 1):
                self._writer.writer.add(sample(number), key(number))

    def _add_batch(self, a: int, b: int) -> None:
        assert self._writer is not None
        numbers = self._take(a % 9)
        rows = [sample(number) for number in numbers]
        batch = {name: [row[name] for row in rows] for name in FIELDS}
        batch["x"] = np.array(batch["x"], np.int64).reshape(len(numbers), 5)  # type: ignore[assignment]
        with syscalls.use(self._writer.recorder):
            self._writer.writer.add_batch(batch, [key(number) for number in numbers])

    def _take(self, count: int) -> range:
        assert self._writer is not None
        numbers = range(self._next, self._next + count)
        self._next += count
        self._writer.pending += numbers
        return numbers

    def _commit(self, a: int, b: int) -> None:
        assert self._writer is not None
        with syscalls.use(self._writer.recorder):
            self._writer.writer.commit()
        if self.committed is None:
            self._file += 1
        self.committed, self.older = [*(self.committed or []), *self._writer.pending], None
        self._writer.pending = []
        self._writer.acked.append((len(self._writer.recorder.ops), list(self.committed)))

    def _same_key(self, a: int, b: int) -> None:
        """A key that is there already ends the writer, at the latest when it commits."""
        assert self._writer is not None
        assert self.committed
        number = self.committed[a % len(self.committed)]
        try:
            with syscalls.use(self._writer.recorder):
                self._writer.writer.add(sample(number), key(number))
                self._writer.writer.commit()
        except chunkstore.SchemaError:
            self._writer = None
        else:
            raise AssertionError(f"{key(number)} was taken twice")

    def _abort(self, a: int, b: int) -> None:
        assert self._writer is not None
        self._writer.writer.abort()
        self._writer = None

    # -- the end of a process, or of the machine

    def _kill(self, a: int, b: int) -> None:
        """The process dies: what it wrote is in the cache of the system."""
        image = self.path.read_bytes() if self.committed is not None else None
        self._replace_by(image)

    def _crash(self, a: int, b: int) -> None:
        """The power fails at any moment since the writer was opened."""
        assert self._writer is not None
        ops, acked = self._writer.recorder.ops, self._writer.acked
        rng = np.random.default_rng((a, b, len(ops)))
        point = int(rng.integers(0, len(ops) + 1)) if a % 2 else len(ops)
        disk = Disk(self._writer.recorder.files, self._writer.recorder.names)
        for op in ops[:point]:
            disk.apply(op)
        place = max(place for place, (when, _) in enumerate(acked) if when <= point)
        owners = disk.owners(str(self.path))
        owner = owners[b % len(owners)]
        image = None
        if owner >= 0:
            contents = disk.contents(owner)
            choices = list(contents.some_choices(5, rng))
            size = contents.sizes[int(rng.integers(len(contents.sizes)))]
            image = contents.image(choices[b % len(choices)])[:size].tobytes()
        self._replace_by(image)
        numbers = [each for _, each in acked]
        self._accept(numbers, numbers[place:], image is not None)

    def _replace_by(self, image: bytes | None) -> None:
        """Have another file with these bytes under the name; the writer keeps the old one, and lets go of it."""
        assert self._writer is not None
        self.path.unlink(missing_ok=True)
        if image is not None:
            self.path.write_bytes(image)
            self._file += 1
        with contextlib.suppress(chunkstore.ChunkstoreError, OSError):
            self._writer.writer.abort()
        self._writer = None

    def _accept(self, acked: list[list[int] | None], possible: list[list[int] | None], found: bool) -> None:
        """After a crash the container is at the last acknowledged commit or a later one."""
        if not found:
            assert None in possible, "the container is gone"
            self.committed = self.older = None
            return
        with chunkstore.open(self.path) as ds:
            count = len(ds)
        lengths = {len(numbers): numbers for numbers in possible if numbers is not None}
        assert count in lengths, f"{count} samples after a crash, expected one of {sorted(lengths)}"
        self.committed = lengths[count]
        earlier = [numbers for numbers in acked if numbers is not None and len(numbers) < count]
        self.older = earlier[-1] if earlier else self.older

    # -- reading

    def _open(self, a: int, b: int) -> None:
        assert self.committed is not None
        if len(self._readers) == _MAX_READERS:
            self._readers.pop(a % _MAX_READERS).ds.close()
        ds = chunkstore.open(self.path, backend=("pread", "mmap")[b % 2], verify=("once", "always")[a % 2])  # type: ignore[arg-type]
        self._readers.append(_Reader(ds, list(self.committed), ds.generation, self._file))

    def _refresh(self, a: int, b: int) -> None:
        for reader in self._readers:
            if self.committed is None:
                continue
            try:
                moved = reader.ds.refresh()
            except chunkstore.ReplacedError:
                assert reader.file != self._file, "this reader's file was not replaced"
                continue
            assert reader.file == self._file, "this reader's file was replaced"
            assert reader.ds.generation >= reader.generation
            assert moved == (reader.ds.generation != reader.generation)
            reader.numbers, reader.generation = list(self.committed), reader.ds.generation

    def _read(self, a: int, b: int) -> None:
        for reader in self._readers:
            assert len(reader.ds) == len(reader.numbers)
            if reader.numbers:
                position = a % len(reader.numbers)
                assert same_as_written(reader.ds[position], reader.numbers[position])
                assert int(reader.ds.find([key(reader.numbers[position])])[0]) == position

    def _close(self, a: int, b: int) -> None:
        self._readers.pop(a % len(self._readers)).ds.close()

    # -- rewriting

    def _repack(self, a: int, b: int) -> None:
        """In place: all samples, or some in another order."""
        assert self.committed is not None
        if len(self.committed) > _MAX_SAMPLES:
            a, b = 1, 5
        if a % 2 and self.committed:
            self.committed = random.Random(b).sample(self.committed, min(len(self.committed), b % 7))
            repack(self.path, self.path, mode="w", keys=[key(number) for number in self.committed])
        else:
            repack(self.path, self.path, mode="w", shard_nbytes=_SHARDS[b % len(_SHARDS)])
        self._file, self.older = self._file + 1, None

    def _merge(self, a: int, b: int) -> None:
        """With another container, into one that takes its place."""
        assert self.committed is not None
        other, out = self.folder / "other.cks", self.folder / "out.cks"
        numbers = range(self._next, self._next + a % 5)
        self._next += len(numbers)
        with chunkstore.Writer(other, fields=FIELDS) as writer:
            for number in numbers:
                writer.add(sample(number), key(number))
        merge([self.path, other], out)
        os.replace(out, self.path)
        other.unlink()
        self.committed, self.older = [*self.committed, *numbers], None
        self._file += 1

    # -- damage

    def _damage(self, a: int, b: int) -> None:
        """A bit of a copy is flipped: verify finds it, and what is read is right."""
        damaged = self._damaged_copy(a * 31 + b, 1)
        assert self.committed is not None
        report = None
        with contextlib.suppress(chunkstore.FormatError):
            report = chunkstore.verify(damaged)
        assert report is None or not report.ok, "a flipped bit was not found"
        with contextlib.suppress(chunkstore.ChunkstoreError), chunkstore.open(damaged) as ds:
            numbers = self.committed
            if self.older is not None and len(ds) == len(self.older):  # spec section 12: B of a crash, and A is gone
                numbers = self.older
            assert len(ds) == len(numbers)
            for position, number in enumerate(numbers):
                with contextlib.suppress(chunkstore.ChunkstoreError):
                    assert same_as_written(ds[position], number)
        damaged.unlink()

    def _recover(self, a: int, b: int) -> None:
        """Some bytes of a copy are overwritten: what is saved is right, and what is not is listed."""
        damaged, out = self._damaged_copy(a * 31 + b, 40), self.folder / "saved.cks"
        assert self.committed is not None
        with contextlib.suppress(chunkstore.FormatError):
            report = recover(damaged, out)
            lost = {p for one in report.lost for p in range(one.start, one.stop)}
            with chunkstore.open(out, verify="always") as ds:
                texts = [] if ds.keys is None else list(ds.keys)
                assert all(same_as_written(ds[p], int(text.partition("/")[2])) for p, text in enumerate(texts))
            saved = {int(text.partition("/")[2]) for text in texts}
            known = self.committed if self.older is None or len(saved) > len(self.older) else self.older
            missing = {p for p, number in enumerate(known) if number not in saved}
            assert missing <= lost or any("lost without a trace" in note for note in report.notes), "loss is not listed"
        damaged.unlink()
        out.unlink(missing_ok=True)

    def _damaged_copy(self, seed: int, nbytes: int) -> Path:
        copy = self.folder / "damaged.cks"
        data = bytearray(self.path.read_bytes())
        rng = random.Random(seed)
        at = rng.randrange(len(data))
        if nbytes == 1:
            data[at] ^= 1 << rng.randrange(8)
        else:
            at = min(at, len(data) - nbytes)
            data[at : at + nbytes] = rng.randbytes(nbytes)
        copy.write_bytes(data)
        return copy

    # -- agreement

    def _check(self, seed: int) -> None:
        if self.committed is None:
            assert not self.path.exists()
            return
        with chunkstore.open(self.path, backend="pread") as ds:
            assert len(ds) == len(self.committed)
            if self.committed:
                position = seed % len(self.committed)
                assert same_as_written(ds[position], self.committed[position])
                assert same_as_written(ds[-1], self.committed[-1])


def run(folder: Path, steps: int, seed: int) -> Counter[str]:
    """So many random steps, on a new container every two hundred; the count of each."""
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    while steps > 0:
        place = folder / "model"
        place.mkdir()
        model = Model(place)
        while model.steps.total() < min(steps, 200):
            model.step(rng.choice(Model.STEPS), rng.randrange(1000), rng.randrange(1000))
        model.end()
        steps -= 200
        counts += model.steps
        shutil.rmtree(place)
    return counts
