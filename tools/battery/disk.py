"""A disk as a model: which states it may show after a power failure, given the calls that were made.

Between two syncs of a file, each of its sectors (512 bytes, written whole or not at all) may hold what was there at the
last sync, what it held after any of the writes since, and, where the file had ended before, zeros or what the disk has
left there from earlier. The size is one of those that the file had since then, in any combination with the sectors.
A name is that of the last sync of its directory, or any that it was given since, independent of other names.
No real file system allows more; most allow less.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from chunkstore._storage.syscalls import SystemCalls

SECTOR = 512
STALE = b"\xa5" * SECTOR  # of a file that was deleted long ago

Kind = Literal["write", "truncate", "sync", "name", "sync_names", "mark"]
type_sectors = NDArray[np.uint8]


@dataclass(frozen=True)
class Op:
    """One call, reduced to what it does to the disk.

    Attributes:
        kind: `"mark"` is a note of the scenario, such as an acknowledged commit, and changes nothing.
        file: number of the file; for `"name"` -1 where the name is removed.
        offset: of a write; for `"truncate"` the size.
        data: of a write.
        name: path, or the text of a mark.
    """

    kind: Kind
    file: int = -1
    offset: int = 0
    data: bytes = b""
    name: str = ""

    def __str__(self) -> str:
        where = f" [{self.offset}, {self.offset + len(self.data)})" if self.kind == "write" else ""
        size = f" to {self.offset}" if self.kind == "truncate" else ""
        name = f" {os.path.basename(self.name)}" if self.name else ""
        return f"{self.kind}{where}{size}{name}"


class Recorder(SystemCalls):
    """Makes every call, and notes what it does to the disk.

    Attributes:
        ops: so far.
        files: number of a file -> its bytes when it was first opened; what the disk holds before the first op.
        names: path -> number of the file, likewise.
    """

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.files: dict[int, bytes] = {}
        self.names: dict[str, int] = {}
        self._numbers: dict[tuple[int, int], int] = {}
        self._fds: dict[int, int] = {}

    def mark(self, text: str) -> None:
        """Note something of the scenario."""
        self.ops.append(Op("mark", name=text))

    def file_at(self, path: str) -> int:
        """The number of the file that has this name now."""
        return self._numbers[_identity(os.stat(path))]

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        fd = super().open(path, flags, mode)
        if flags & os.O_EXCL:  # a new one, whatever file had this inode before
            number = self._numbers[_identity(os.fstat(fd))] = len(self.files)
            self.files[number] = b""
            self.ops.append(Op("name", number, name=path))
        else:
            self._know(path, os.fstat(fd))
        self._fds[fd] = self._numbers[_identity(os.fstat(fd))]
        return fd

    def _know(self, path: str, status: os.stat_result) -> None:
        """A file that was there before is on the disk as it is."""
        if _identity(status) not in self._numbers:
            number = self._numbers[_identity(status)] = len(self.files)
            with open(path, "rb") as file:
                self.files[number] = file.read()
            self.names[path] = number

    def pwrite(self, fd: int, buffer: memoryview, offset: int) -> int:
        taken = super().pwrite(fd, buffer, offset)
        self.ops.append(Op("write", self._fds[fd], offset, bytes(buffer[:taken])))
        return taken

    def copy_range(self, source_fd: int, fd: int, nbytes: int, source_offset: int, offset: int) -> int:
        copied = super().copy_range(source_fd, fd, nbytes, source_offset, offset)
        self.ops.append(Op("write", self._fds[fd], offset, os.pread(fd, copied, offset)))
        return copied

    def truncate(self, fd: int, size: int) -> None:
        before = os.fstat(fd).st_size
        super().truncate(fd, size)
        if size != before:
            self.ops.append(Op("truncate", self._fds[fd], size))

    def sync_data(self, fd: int) -> None:
        # Nothing here loses power, so the real sync would only cost time.
        self.ops.append(Op("sync", self._fds[fd]))

    def sync_file(self, fd: int) -> None:
        self.ops.append(Op("sync", self._fds[fd]))

    def sync_directory(self, path: str) -> None:
        self.ops.append(Op("sync_names", name=path))

    def link(self, source: str, target: str) -> None:
        super().link(source, target)
        self.ops.append(Op("name", self.file_at(target), name=target))

    def rename(self, source: str, target: str) -> None:
        if os.path.exists(target):
            self._know(target, os.stat(target))
        super().rename(source, target)
        self.ops.append(Op("name", self.file_at(target), name=target))
        self.ops.append(Op("name", -1, name=source))

    def unlink(self, path: str) -> None:
        super().unlink(path)
        self.ops.append(Op("name", -1, name=path))


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


@dataclass
class FileState:
    """One file: what a reader sees now, and what the disk may hold.

    Attributes:
        cache: all writes so far.
        durable: at the last sync.
        versions: sector number -> what it held since then, in order; sectors that no write touched are absent.
        sizes: that the file had since then, without that of `durable`.
    """

    cache: bytearray
    durable: bytes = b""
    versions: dict[int, list[bytes]] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)

    def write(self, offset: int, data: bytes) -> None:
        stop = offset + len(data)
        if stop > len(self.cache):
            self.cache.extend(bytes(stop - len(self.cache)))
            self.sizes.append(stop)
        self.cache[offset:stop] = data
        self._note(offset, stop)

    def truncate(self, size: int) -> None:
        before = len(self.cache)
        if size < before:
            del self.cache[size:]
            # What was cut off reads as zeros when the file grows again, and may be on the disk still.
            self._note(size, before)
        else:
            self.cache.extend(bytes(size - before))
        self.sizes.append(size)

    def sync(self) -> None:
        self.durable = bytes(self.cache)
        self.versions.clear()
        self.sizes.clear()

    def _note(self, start: int, stop: int) -> None:
        for sector in range(start // SECTOR, -(-stop // SECTOR)):
            now = bytes(self.cache[sector * SECTOR : (sector + 1) * SECTOR]).ljust(SECTOR, b"\0")
            self.versions.setdefault(sector, []).append(now)


class Disk:
    """All files and names. `apply` the ops one by one; `contents` and `owners` say what may be found in between."""

    def __init__(self, files: dict[int, bytes], names: dict[str, int]) -> None:
        self.files = {number: FileState(bytearray(data), data) for number, data in files.items()}
        self._names: dict[str, int] = dict(names)
        self._names_since: dict[str, list[int]] = {}

    def apply(self, op: Op) -> None:
        if op.kind == "write":
            self.files[op.file].write(op.offset, op.data)
        elif op.kind == "truncate":
            self.files[op.file].truncate(op.offset)
        elif op.kind == "sync":
            self.files[op.file].sync()
        elif op.kind == "name":
            self._names_since.setdefault(op.name, []).append(op.file)
        elif op.kind == "sync_names":
            self._sync_names(op.name)

    def _sync_names(self, folder: str) -> None:
        for name in [name for name in self._names_since if os.path.dirname(name) in (folder, "")]:
            self._names[name] = self._names_since.pop(name)[-1]

    def owners(self, name: str) -> list[int]:
        """Which files may have this name; -1 for none."""
        since = self._names_since.get(name, [])
        return list(dict.fromkeys([self._names.get(name, -1), *since]))

    def contents(self, file: int) -> Contents:
        """What may be in a file."""
        return Contents(self.files[file])


class Contents:
    """The states that one file may be found in: a size, and for each open sector one of its candidates.

    Attributes:
        sizes: that it may have.
        sectors: numbers of the sectors that may hold different things, shape (S,).
        counts: how many, each; shape (S,).
        groups: the sectors of each write (or of what lay behind it), for choices that go together.
        num_states: all combinations; sectors behind the size count although nobody sees them.
    """

    def __init__(self, state: FileState) -> None:
        self.sizes = list(dict.fromkeys([len(state.durable), *state.sizes]))
        self._shortest = min(state.sizes, default=max(self.sizes))
        length = max(self.sizes)
        self._num_sectors = -(-length // SECTOR)
        base = bytes(state.durable[:length]).ljust(self._num_sectors * SECTOR, b"\0")
        self._base = np.frombuffer(base, np.uint8).reshape(-1, SECTOR)
        found = {s: c for s in range(self._num_sectors) if len(c := self._candidates(state, s)) > 1}
        self.sectors = np.array(list(found), np.int64)
        self.counts = np.array([len(c) for c in found.values()], np.int64)
        self._first = np.cumsum(self.counts) - self.counts
        table = b"".join(one for candidates in found.values() for one in candidates)
        self._table = np.frombuffer(table, np.uint8).reshape(-1, SECTOR)
        self.newest = self.counts - 1 - np.array([c[-1] == STALE for c in found.values()], np.int64)
        self.num_states = len(self.sizes)
        for count in self.counts.tolist():
            self.num_states *= count

    def _candidates(self, state: FileState, sector: int) -> list[bytes]:
        """What the disk may have in a sector: the oldest first, junk last."""
        old = self._base[sector].tobytes()
        seen = [old, *state.versions.get(sector, [])]
        if (sector + 1) * SECTOR > len(state.durable):
            # Behind the old end: the size may be there and the data not.
            seen += [old[: max(0, len(state.durable) - sector * SECTOR)].ljust(SECTOR, b"\0"), STALE]
        elif self._shortest < (sector + 1) * SECTOR:
            seen.append(bytes(SECTOR))  # cut off, and grown again
        return list(dict.fromkeys(seen))

    def image(self, choice: NDArray[np.int64]) -> type_sectors:
        """All sectors of one state, as one flat array of bytes; `choice[i] < counts[i]`."""
        image = self._base.copy()
        if len(self.sectors):
            image[self.sectors] = self._table[self._first + choice]
        return image.reshape(-1)

    def every_choice(self) -> Iterator[NDArray[np.int64]]:
        """All combinations of the sectors."""
        choice = np.zeros(len(self.sectors), np.int64)
        while True:
            yield choice
            for place in range(len(choice) - 1, -1, -1):
                choice[place] += 1
                if choice[place] < self.counts[place]:
                    break
                choice[place] = 0
            else:
                return

    def some_choices(self, number: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        """A sample: all old, all new, one sector alone old or new, prefixes, and random ones of every density."""
        size = len(self.sectors)
        newest, old = self.newest, np.zeros(size, np.int64)
        made = 0
        for choice in (old, newest, self.counts - 1):
            yield choice
            made += 1
        for place in rng.permutation(size)[: number // 6].tolist():
            for base, other in ((old, newest), (newest, old)):
                choice = base.copy()
                choice[place] = other[place]
                yield choice
                made += 1
        while made < number:
            yield self._random(rng)
            made += 1

    def _random(self, rng: np.random.Generator) -> NDArray[np.int64]:
        size = len(self.sectors)
        kind = rng.random()
        if kind < 0.2:  # the disk wrote in order, up to somewhere
            stop = int(rng.integers(0, size + 1))
            return np.where(np.arange(size) < stop, self.newest, 0)
        if kind < 0.3:  # and in reverse order
            start = int(rng.integers(0, size + 1))
            return np.where(np.arange(size) >= start, self.newest, 0)
        if kind < 0.6:  # this sector or that one
            return np.where(rng.random(size) < rng.random(), self.newest, 0)
        return (rng.random(size) * self.counts).astype(np.int64)


def cache_image(disk: Disk, file: int) -> bytes:
    """What the next process finds when only the writer died and not the machine."""
    return bytes(disk.files[file].cache)


def describe(ops: Sequence[Op], point: int) -> dict[str, Any]:
    """Where in a recording a state was: for messages."""
    return {
        "after": point,
        "last": str(ops[point - 1]) if point else "",
        "next": str(ops[point]) if point < len(ops) else "",
    }
