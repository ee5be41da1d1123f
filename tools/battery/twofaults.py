"""A crash, then damage, then an append or a recover: what was acknowledged must not be lost by going on.

For states that a disk may show after a crash (`crash`), one superblock or one part of the index is damaged. After that

- `recover` saves every acknowledged sample that a segment still describes, and nothing wrong;
- an append refuses and changes nothing, or goes on, and all that could be saved before can be read or saved after.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chunkstore
from chunkstore._format.constants import HEAD_NBYTES, SUPERBLOCK_NBYTES, SUPERBLOCK_OFFSETS
from chunkstore._format.index import Index, read_generation
from chunkstore._format.superblock import Superblock, decode_head
from chunkstore._storage.source import PreadSource
from tools.battery.disk import SECTOR
from tools.battery.samples import key, same_as_written, sample

_FLIPPED = (0, 8, 45, 60, 67, 73, 85, 90, 300, 2000, 4085)  # magic, major, uuid, generation, end, ..., sum
_NEW = 10_000  # number of the sample that is appended


@dataclass(frozen=True)
class Harm:
    """One damage: bytes of the file that are others now, and the parts of the file that no longer prove anything."""

    name: str
    offset: int
    data: bytes

    def applied(self, image: bytes) -> bytes:
        """The file with it."""
        return image[: self.offset] + self.data + image[self.offset + len(self.data) :]


def superblock_harms(image: bytes) -> Iterator[Harm]:
    """Ways to damage one superblock: a flipped bit, a sector or all of it zeroed, inverted, or taken by junk."""
    for name, start in zip("AB", SUPERBLOCK_OFFSETS, strict=True):
        for at in _FLIPPED:
            yield Harm(f"{name}, bit of byte {at}", start + at, bytes([image[start + at] ^ 1 << at % 8]))
        for at in (0, 512, SUPERBLOCK_NBYTES - SECTOR):
            yield Harm(f"{name}, sector at {at} zeroed", start + at, bytes(SECTOR))
            yield Harm(f"{name}, sector at {at} taken by junk", start + at, b"\xa5" * SECTOR)
        yield Harm(f"{name} zeroed", start, bytes(SUPERBLOCK_NBYTES))
        yield Harm(f"{name} taken by junk", start, b"\xa5" * SUPERBLOCK_NBYTES)


def index_harms(image: bytes, index: Index) -> Iterator[Harm]:
    """One byte inverted in the directory, each section, and its page sums, of every live segment."""
    for directory in index.directories:
        for at in (directory.offset + 10, directory.offset + 70):
            yield _inverted(image, at, f"directory at {directory.offset}")
        for entry in directory.sections():
            if entry.nbytes:
                name = f"section {entry.kind} of field {entry.field} at {entry.offset}"
                yield _inverted(image, entry.offset + entry.nbytes // 2, name)
                yield _inverted(image, entry.offset + -(-entry.nbytes // 8) * 8, f"page sums of {name}")


def _inverted(image: bytes, at: int, name: str) -> Harm:
    return Harm(name, at, bytes([image[at] ^ 0xFF]))


class TwoFaults:
    """Tries damage on states of one recording; keeps how often, and what was wrong.

    Args:
        folder: for the files.
        every: tries one damage of so many, another one in each state.
    """

    def __init__(self, folder: Path, *, every: int = 1) -> None:
        self.tried = 0
        self.ends: dict[str, int] = {}
        self._path = folder / "a.cks"
        self._out = folder / "saved.cks"
        self._every = every
        self._turn = 0

    def wrong(self, image: bytes, numbers: tuple[int, ...], known: list[Superblock]) -> Iterator[str]:
        """What is lost of a state.

        Args:
            image: the file after the crash; it opens.
            numbers: of the samples that were acknowledged.
            known: superblocks of the commits that were acknowledged, whose segments may still describe them.
        """
        for harm in self._chosen(superblock_harms(image)):
            yield from self._try(image, harm, numbers, numbers)
        self._path.write_bytes(image)
        with PreadSource(self._path) as source:
            superblock = decode_head(image[:HEAD_NBYTES], len(image)).superblock
            index = read_generation(source, superblock)
            segments = _segments(source, [*known, superblock])
        for harm in self._chosen(index_harms(image, index)):
            yield from self._try(image, harm, numbers, _described(numbers, segments, harm.offset))

    def _chosen(self, harms: Iterator[Harm]) -> Iterator[Harm]:
        for harm in harms:
            self._turn += 1
            if self._turn % self._every == 0:
                yield harm

    def _try(self, image: bytes, harm: Harm, numbers: tuple[int, ...], safe: tuple[int, ...]) -> Iterator[str]:
        """One damage; `safe` are those of the acknowledged samples that a segment without damage describes."""
        self.tried += 1
        damaged = harm.applied(image)
        self._path.write_bytes(damaged)
        saved = self._saved()
        yield from (f"{harm.name}: recover does not save sample {n}" for n in safe if n not in saved)
        before = saved & set(numbers)
        end = self._append()
        self.ends[end] = self.ends.get(end, 0) + 1
        if end == "appended":
            after = self._readable()
            yield from (f"{harm.name}: after an append, sample {n} is lost" for n in sorted(before - after))
            if _NEW not in after:
                yield f"{harm.name}: the appended sample cannot be read"
        elif self._path.read_bytes() != damaged:
            yield f"{harm.name}: an append that refused ({end}) changed the file"

    def _saved(self) -> set[int]:
        """Numbers of the samples that recover saves; each is held against what was written."""
        try:
            chunkstore.recover(self._path, self._out, mode="w")
        except chunkstore.FormatError:
            return set()
        return self._numbers(self._out)

    def _readable(self) -> set[int]:
        """Numbers of the samples that can be read, or be saved."""
        return self._numbers(self._path) | self._saved()

    def _append(self) -> str:
        """How an append ends."""
        try:
            with chunkstore.Writer(self._path, mode="a") as writer:
                writer.add(sample(_NEW), key(_NEW))
        except chunkstore.ChunkstoreError as error:
            return type(error).__name__
        return "appended"

    @staticmethod
    def _numbers(path: Path) -> set[int]:
        found = set()
        with chunkstore.open(path, backend="pread", verify="always") as ds:
            for place, row in enumerate(_rows(ds)):
                number = int(row["x"][0])
                if not same_as_written(row, number):
                    raise AssertionError(f"the readable sample {place} is not what was written")
                found.add(number)
        return found


def _rows(ds: chunkstore.Reader) -> list[Any]:
    """All samples, in one pass; where some cannot be read, those that can."""
    with contextlib.suppress(chunkstore.FormatError):
        return list(ds)
    rows = []
    for place in range(len(ds)):
        with contextlib.suppress(chunkstore.FormatError):
            rows.append(ds[place])
    return rows


def _segments(source: PreadSource, superblocks: list[Superblock]) -> list[tuple[int, int, int, int]]:
    """(begin, end, first sample, sample behind the last) of all segments that were live in these generations."""
    found = set()
    for superblock in superblocks:
        for d in read_generation(source, superblock).directories:
            found.add((d.offset, d.end, d.first_sample, d.first_sample + d.num_samples))
    return sorted(found)


def _described(numbers: tuple[int, ...], segments: list[tuple[int, int, int, int]], at: int) -> tuple[int, ...]:
    """Those that a segment describes in which the damaged byte is not."""
    good = [segment for segment in segments if not segment[0] <= at < segment[1]]
    return tuple(n for place, n in enumerate(numbers) if any(low <= place < high for _, _, low, high in good))
