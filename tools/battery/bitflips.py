"""Flip every bit of a container of 64 KiB, one after another: verify must find each, and reads be right or an error."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from damaged import Damaged, Reference, flip, found

from tools.battery.scratch import in_memory

READ_EVERY = 32  # one bit of this many is read through both back ends


def build(path: Path, commits: int) -> Damaged:
    """A container of 65,536 bytes: one commit with all kinds of fields, or three with an old index segment in it."""
    container = Damaged(path)
    if commits == 1:
        return container.build(92, shard_nbytes=1 << 20)
    return container.build(50, commits=3, shard_nbytes=1 << 20, names=("image", "wave", "text"))


@dataclass
class Swept:
    """What came of some flips.

    Attributes:
        flipped: how many bits.
        read: how many of them were read through both back ends, too.
        missed: bits that verify did not find.
        wrong: what was read wrong.
    """

    flipped: int = 0
    read: int = 0
    missed: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Swept) -> None:
        """Put the two together."""
        self.flipped += other.flipped
        self.read += other.read
        self.missed += other.missed
        self.wrong += other.wrong


def order(size: int) -> list[int]:
    """All bits of so many bytes, once each: the first pass takes one bit of every byte, the next another one, ..."""
    return [8 * byte + (byte + turn) % 8 for turn in range(8) for byte in range(size)]


def sweep(commits: int, bits: list[int]) -> Swept:
    """Flip these bits in a copy of its own.

    Verify opens and judges the whole file for each of them: nothing is taken over from the flip before.
    """
    swept = Swept()
    with in_memory() as folder:
        path = folder / "a.cks"
        build(path, commits)
        reference = Reference(path)
        for number, bit in enumerate(flip(path, bits)):
            swept.flipped += 1
            if not found(path):
                swept.missed.append(bit)
            if number % READ_EVERY == 0:
                swept.read += 1
                for backend in ("mmap", "pread"):
                    swept.wrong += [f"bit {bit}, {backend}: {what}" for what in reference.wrong(path, backend)]
    return swept
