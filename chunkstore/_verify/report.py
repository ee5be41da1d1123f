"""What `verify` found: damages, and the report that holds them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, TypeAlias

MAX_LISTED: Final = 10_000
"""Damages that a report lists; the rest is counted."""

Progress: TypeAlias = Callable[[int, int], None]
DamageKind: TypeAlias = Literal[
    "superblock",
    "truncated",
    "trailing",
    "directory",
    "index",
    "padding",
    "overlap",
    "gap",
    "superseded",
    "block",
    "chunk",
    "row",
    "unreadable",
]


@dataclass(frozen=True)
class Damage:
    """One thing that is not as the specification says.

    Attributes:
        kind: `"superblock"`: one of the two is damaged, or older than the other. `"truncated"`: bytes are missing at
            the end of the file. `"trailing"`: bytes behind the committed end. `"directory"`: of an index segment.
            `"index"`: a section of the index, its checksums or its values. `"padding"`: not zero. `"overlap"`: two
            parts claim a byte. `"gap"`: bytes that no part claims. `"superseded"`: an old index segment. `"block"`: a
            block that cannot be narrowed down, or whose own sum alone is wrong. `"chunk"`: the chunks that share a
            checksum. `"row"`: right checksums, but the row cannot be decoded (only with `deep`). `"unreadable"`: the
            system could not read these bytes.
        message: one sentence: where, what was expected, what was found, what cannot be read.
        harmless: no sample and no key is lost by it.
        offset, nbytes: the bytes in the file, if it is about bytes.
        section: name of the index section.
        shard: number of the shard.
        field: name of the field.
        start, stop: the samples `[start, stop)` that it is about.
        keys: of these samples, the first 16 at most; none where they have none or keys are unreadable.
        stored_sum, computed_sum: xxh3 in hexadecimal digits, 16 or 32 of them.
    """

    kind: DamageKind
    message: str
    harmless: bool = False
    offset: int | None = None
    nbytes: int | None = None
    section: str | None = None
    shard: int | None = None
    field: str | None = None
    start: int | None = None
    stop: int | None = None
    keys: tuple[str, ...] = ()
    stored_sum: str | None = None
    computed_sum: str | None = None

    def __str__(self) -> str:
        return self.message

    def as_dict(self) -> dict[str, Any]:
        """What is known, ready for JSON."""
        known = {name: value for name, value in asdict(self).items() if value is not None and value != ()}
        return {**known, "keys": list(self.keys)} if self.keys else known


@dataclass(frozen=True)
class Report:
    """The result of `verify`.

    Attributes:
        path: of the container.
        ok: nothing is wrong.
        deep: whether all chunk sums and rows were checked, too.
        fingerprint: of the generation, or None where the head cannot be read.
        generation: counted from 1, or None.
        num_samples: or None where the index cannot be read.
        nbytes: length of the file.
        num_blocks, num_groups, num_pages: how many were held against their sums. Groups are looked at in damaged
            blocks and in the first MiB of the others, where a block has more than one; in all with `deep`.
        seconds: how long it took.
        damage: in the order of the file, at most 10,000.
        num_damage: all of them.
    """

    path: str
    ok: bool
    deep: bool
    fingerprint: str | None
    generation: int | None
    num_samples: int | None
    nbytes: int
    num_blocks: int
    num_groups: int
    num_pages: int
    seconds: float
    damage: list[Damage] = field(default_factory=list)
    num_damage: int = 0

    def summary(self) -> str:
        """Text for people: one line when all is well, otherwise a line for each damage and one that counts them."""
        rate = self.nbytes / max(self.seconds, 1e-9) / 1e9
        checked = f"{self.nbytes:,} bytes in {self.seconds:.2f} s, {rate:.1f} GB/s"
        if self.ok:
            also = f" and {self.num_groups:,} groups of chunks" if self.deep else ""
            return (
                f"{self.path}: ok: {self.num_samples:,} samples, {self.num_blocks:,} blocks{also}, "
                f"{self.num_pages:,} pages of index ({checked}), fingerprint {self.fingerprint}"
            )
        lines = [f"{self.path}: {damage.message}" for damage in self.damage]
        if self.num_damage > len(self.damage):
            lines.append(f"{self.path}: ... and {self.num_damage - len(self.damage):,} more")
        return "\n".join([*lines, f"{self.path}: DAMAGED: {self._verdict()} ({checked})"])

    def _verdict(self) -> str:
        count = "1 damage" if self.num_damage == 1 else f"{self.num_damage:,} damages"
        if self.num_damage == len(self.damage) and all(damage.harmless for damage in self.damage):
            return f"{count}, no sample is lost"
        return count

    def as_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        plain = {name: value for name, value in vars(self).items() if name != "damage"}
        return {**plain, "damage": [damage.as_dict() for damage in self.damage]}


@dataclass
class Ledger:
    """Where findings and progress are written down; `add` and `count` may be called from any thread."""

    total_nbytes: int
    progress: Progress | None = None
    num_blocks: int = 0
    num_groups: int = 0
    num_pages: int = 0
    done_nbytes: int = 0
    num_damage: int = 0
    damage: list[Damage] = field(default_factory=list)
    stopped: bool = False
    """Set to end the work of all threads at the next piece."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = threading.get_ident()

    def add(self, kind: DamageKind, message: str, **where: Any) -> None:
        """Write a damage down; `where` are the other attributes of `Damage`."""
        with self._lock:
            self.num_damage += 1
            if len(self.damage) < MAX_LISTED:
                self.damage.append(Damage(kind, message, **where))

    def add_bytes(self, kind: DamageKind, what: str, span: tuple[int, int], problem: object, **where: Any) -> None:
        """Write down that there is something wrong with (offset, nbytes) of the file."""
        offset, nbytes = span
        self.add(
            kind,
            f"{what}, bytes [{offset}, {offset + nbytes}): {problem}",
            **{**where, "offset": offset, "nbytes": nbytes},
        )

    def add_sums(
        self,
        kind: DamageKind,
        what: str,
        span: tuple[int, int],
        sums: tuple[int, int],
        more: str,
        *,
        digits: int = 16,
        **where: Any,
    ) -> None:
        """The same, of bytes whose sum (stored, computed) is not what was stored."""
        stored, computed = (f"{value:0{digits}x}" for value in sums)
        problem = f"stored xxh3 {stored}, computed {computed}{more}"
        self.add_bytes(kind, what, span, problem, **where, stored_sum=stored, computed_sum=computed)

    def count(self, *, blocks: int = 0, groups: int = 0, pages: int = 0, nbytes: int = 0) -> None:
        """Add to what was checked."""
        with self._lock:
            self.num_blocks += blocks
            self.num_groups += groups
            self.num_pages += pages
            self.done_nbytes += nbytes

    def tick(self) -> None:
        """Call the progress callback, if this is the thread of the caller of `verify`."""
        if self.progress is not None and threading.get_ident() == self._owner:
            self.progress(min(self.done_nbytes, self.total_nbytes), self.total_nbytes)

    def finish(self) -> list[Damage]:
        """The damages in the order of the file, whichever thread found them."""
        if self.progress is not None:
            self.progress(self.total_nbytes, self.total_nbytes)
        return sorted(self.damage, key=lambda damage: -1 if damage.offset is None else damage.offset)
