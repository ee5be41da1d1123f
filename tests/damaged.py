"""Containers to damage: `build`, `corrupt`, `check`; every bit flip; and mutations whose checksums are repaired."""

from __future__ import annotations

import functools
import random
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import chunkstore
from chunkstore._format.checksum import page_sums, sum64, sum128
from chunkstore._format.constants import NO_FIELD, PAGE_NBYTES, Kind
from chunkstore._format.index import Index, read_index
from chunkstore._format.segment import SectionEntry, pad
from chunkstore._storage.source import PreadSource

FIELDS: dict[str, Any] = {
    "image": ("uint8", (16, 16)),
    "label": "int64",
    "seen": "bool",
    "wave": ("float32", (None, 2)),
    "grid": ("int16", (None, None)),
    "text": "string",
}


def samples(start: int, stop: int) -> Iterator[tuple[dict[str, Any], str]]:
    """Samples of `FIELDS` and their keys; the same each time."""
    for number in range(start, stop):
        rng = np.random.default_rng(number)
        yield (
            {
                "image": rng.integers(0, 256, (16, 16), dtype=np.uint8),
                "label": number,
                "seen": bool(number % 2),
                "wave": rng.random((number % 5, 2), dtype=np.float32),
                "grid": rng.integers(-9, 9, (number % 3, number % 4), dtype=np.int16),
                "text": "ö" * (number % 4),
            },
            f"set/{number:04d}é",
        )


class Damaged:
    """One container, and what may happen to it.

    Args:
        path: where it is built.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.good = b""

    def build(
        self,
        n: int,
        *,
        commits: int = 1,
        shard_nbytes: int = 1 << 13,
        keys: bool = True,
        names: Iterable[str] = FIELDS,
        codec: str = "raw",
    ) -> Damaged:
        """Write `n` samples in so many commits, with these fields."""
        bounds = np.linspace(0, n, commits + 1).astype(int).tolist()
        for number in range(commits):
            mode = "a" if number else "x"
            fields = None if number else {name: FIELDS[name] for name in names}
            extra: dict[str, Any] = {} if number else {"shard_nbytes": shard_nbytes, "codec": codec}
            with chunkstore.Writer(self.path, fields=fields, mode=mode, attrs={"commit": number}, **extra) as writer:
                for sample, key in samples(bounds[number], bounds[number + 1]):
                    writer.add({name: sample[name] for name in names}, key=key if keys else None)
        self.good = self.path.read_bytes()
        return self

    def index(self) -> Index:
        """The index of what is there now."""
        with PreadSource(self.path) as source:
            return read_index(source)

    def entry(self, section: str, field: str | None = None, segment: int = -1) -> SectionEntry:
        """Where a section lies."""
        index = self.index()
        names = [f.name for f in index.fields]
        number = NO_FIELD if field is None else names.index(field)
        entry = index.directories[segment].find(Kind[section], number)
        assert entry is not None
        return entry

    def place(self, section: str, field: str | None = None) -> tuple[int, int]:
        """(offset, nbytes) of a superblock, the directory, a section of the newest segment, or the first block."""
        if section in ("A", "B"):
            return (0 if section == "A" else 4096), 4096
        index = self.index()
        if section == "DIRECTORY":
            return index.superblock.directory_offset, index.superblock.directory_nbytes
        if section == "BLOCK":
            block = index.blocks[0, [f.name for f in index.fields].index(str(field))]
            return int(block["offset"]), int(block["nbytes"])
        entry = self.entry(section, field)
        return entry.offset, entry.nbytes

    def corrupt(self, section: str, offset: int, n: int, *, field: str | None = None) -> int:
        """Invert `n` bytes, `offset` bytes into a section; negative counts from its end. Where in the file that is."""
        start, nbytes = self.place(section, field)
        at = start + (offset if offset >= 0 else nbytes + offset)
        with self.path.open("r+b") as file:
            file.seek(at)
            data = file.read(n)
            file.seek(at)
            file.write(bytes(byte ^ 0xFF for byte in data))
        return at

    def write(self, data: bytes | bytearray) -> Damaged:
        """Replace all bytes, in place."""
        self.path.write_bytes(data)
        return self

    def check(self, *, deep: bool = False) -> chunkstore.Report:
        """Verify what is there now."""
        return chunkstore.verify(self.path, deep=deep)

    def restore(self) -> None:
        """Undo all damage."""
        self.write(self.good)


def found(path: Path | str) -> bool:
    """Whether verify finds anything, or refuses the file."""
    try:
        return not chunkstore.verify(path).ok
    except chunkstore.FormatError:
        return True


def read_wrong(path: Path | str, num_samples: int, backend: Any) -> list[str]:
    """Read everything; what was read and is not what was written. Errors of ours are right answers, too."""
    wrong = []
    try:
        with chunkstore.open(path, backend=backend) as ds:
            if len(ds) != num_samples:
                wrong.append(f"{len(ds)} samples")
            for number, (sample, key) in enumerate(samples(0, num_samples)):
                wrong += _read_one(ds, number, sample, key)
    except chunkstore.ChunkstoreError:
        pass
    return wrong


def _read_one(ds: chunkstore.Reader, number: int, sample: dict[str, Any], key: str) -> list[str]:
    wrong = []
    try:
        read = ds[number]
        wrong += [f"{number}: {name}" for name, value in read.items() if not np.array_equal(value, sample[name])]
    except chunkstore.ChunkstoreError:
        pass
    try:
        if int(ds.find([key])[0]) != number:
            wrong.append(f"{number}: found elsewhere")
    except chunkstore.SampleNotFoundError:
        wrong.append(f"{number}: not found")
    except chunkstore.ChunkstoreError:
        pass
    return wrong


class Reference:
    """What a container reads as, to hold against what it reads as when it is damaged.

    Args:
        path: the container, undamaged.
    """

    def __init__(self, path: Path | str) -> None:
        with chunkstore.open(path) as ds:
            self._keys = None if ds.keys is None else list(ds.keys)
            self._fields = {name: self._read(ds, name) for name in ds.fields}
            self._attrs = ds.attrs

    @staticmethod
    def _read(ds: chunkstore.Reader, name: str) -> list[bytes]:
        rows = ds.batch(range(len(ds)), fields=[name])[name]
        if isinstance(rows, np.ndarray):
            return [rows.tobytes(), str(rows.shape).encode()]
        parts = (rows.values, rows.offsets, rows.shapes)
        return [b"" if part is None else np.asarray(part).tobytes() for part in parts]

    def wrong(self, path: Path | str, backend: Any) -> list[str]:
        """Read all of it field by field; what is neither as it was nor an error of ours."""
        try:
            ds = chunkstore.open(path, backend=backend)
        except chunkstore.ChunkstoreError:
            return []
        with ds:
            checks = {name: (self._read, name, value) for name, value in self._fields.items()}
            wrong = [name for name, check in checks.items() if self._differs(ds, *check)]
            if self._keys is not None:
                positions = list(range(len(self._keys)))
                wrong += ["find"] * self._differs(ds, lambda ds, keys: ds.find(keys).tolist(), self._keys, positions)
                wrong += ["keys"] * self._differs(ds, lambda ds, _: list(ds.keys), None, self._keys)
            return wrong + ["attrs"] * self._differs(ds, lambda ds, _: ds.attrs, None, self._attrs)

    @staticmethod
    def _differs(ds: chunkstore.Reader, read: Callable[[Any, Any], Any], what: Any, value: Any) -> bool:
        try:
            return bool(read(ds, what) != value)
        except chunkstore.SampleNotFoundError:
            return True
        except chunkstore.ChunkstoreError:
            return False


def flip(path: Path | str, bits: Iterator[int] | range) -> Iterator[int]:
    """Flip one bit of the file after another, and back; yields the bit while it is flipped."""
    with open(path, "r+b", buffering=0) as file:
        for bit in bits:
            file.seek(bit // 8)
            byte = file.read(1)
            file.seek(bit // 8)
            file.write(bytes([byte[0] ^ 1 << bit % 8]))
            yield bit
            file.seek(bit // 8)
            file.write(byte)


NUMBERS = [0, 1, 2, 7, 64, 4096, 65536, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


def mutate(good: bytes, seed: int) -> bytearray:
    """Change a few numbers of a container at random, and repair every checksum above them."""
    rng = random.Random(seed)
    data = bytearray(good)
    parts = _parts(bytes(good))
    for _ in range(rng.randint(1, 3)):
        start, nbytes = rng.choice(parts)
        if nbytes >= 8 and rng.random() < 0.7:
            at, other = (start + rng.randrange(nbytes // 8) * 8 for _ in range(2))
            old, same = (int.from_bytes(data[place : place + 8], "little") for place in (at, other))
            near = [old + 1, old - 1, old + 8, old * 2, old + 4096]
            new = (same if rng.random() < 0.3 else rng.choice([*NUMBERS, *near])) % 2**64
            times = min(rng.choice([1, 1, 1, 2, 3]), (start + nbytes - at) // 8)  # a table stays one only if some agree
            data[at : at + 8 * times] = times * new.to_bytes(8, "little")
        elif nbytes:
            data[start + rng.randrange(nbytes)] = rng.randrange(256)
    repair(data)
    return data


_ENTRY = struct.Struct("<8xQQ8x")


def _directory(data: bytes | bytearray, offset: int) -> tuple[int, list[tuple[int, int, int]], int]:
    """(nbytes, (place of the entry, offset and nbytes of the section), place of the earlier table), as claimed."""
    sections, earlier = struct.unpack_from("<II", data, offset + 52)
    sections, earlier = min(sections, 64), min(earlier, 64)  # more than any container here has
    whole = min(sections, (len(data) - offset - 64) // 32)
    table = _ENTRY.iter_unpack(memoryview(data)[offset + 64 : offset + 64 + 32 * whole])
    entries = [(offset + 64 + 32 * place, *entry) for place, entry in enumerate(table)]
    return 64 + 32 * sections + 48 * earlier, entries, offset + 64 + 32 * sections


def _segments(data: bytes | bytearray) -> list[tuple[int, int]]:
    """(offset of a directory, place of what names it): the newest last."""
    offset = struct.unpack_from("<Q", data, 72)[0]
    found = []
    if offset + 64 <= len(data):
        nbytes, _, place = _directory(data, offset)
        for at in range(place, min(offset + nbytes, len(data) - 48), 48):
            start = struct.unpack_from("<Q", data, at)[0]
            if start + 64 <= len(data):
                found.append((start, at))
        found.append((offset, -1))
    return found


@functools.cache
def _parts(data: bytes) -> list[tuple[int, int]]:
    """Directories, their headers and tables, and sections; each as likely to be hit as any other."""
    parts = [(8, 96), (48, 48), (56, 40)]
    for offset, _ in _segments(data):
        nbytes, entries, _ = _directory(data, offset)
        parts += [(offset, nbytes), (offset + 8, 56)]
        parts += [(start, size) for _, start, size in entries]
    return parts


def repair(data: bytearray) -> None:
    """Make all checksums of the index right again, from the pages up to the superblocks."""
    for offset, place in _segments(data):
        nbytes, entries, _ = _directory(data, offset)
        for at, start, size in entries:
            if start + size <= len(data) and size < 1 << 20:
                section = bytes(data[start : start + size])
                if size <= PAGE_NBYTES:  # most are
                    sums = sum64(section).to_bytes(8, "little") if size else b""
                else:
                    sums = page_sums(memoryview(section)).tobytes()
                where = start + pad(size, 8)
                if where + len(sums) <= len(data):
                    data[where : where + len(sums)] = sums
                    data[at + 24 : at + 32] = sum64(sums).to_bytes(8, "little")
        digest = sum128(bytes(data[offset : offset + nbytes]))
        if place >= 0:
            data[place + 32 : place + 48] = digest
        else:
            data[88:104] = digest
            struct.pack_into("<Q", data, 80, nbytes)
    data[4080:4096] = sum128(bytes(data[:4080]))
    data[4096:8192] = data[:4096]
