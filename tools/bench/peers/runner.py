"""The comparison: every peer in fresh processes, in turns, round after round."""

from __future__ import annotations

import shutil
import statistics
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TypeVar

from tools.bench.bench import run_child
from tools.bench.inputs import IMAGE, KIB_ROW, write_npy
from tools.bench.peers import PEERS
from tools.bench.peers.child import Job
from tools.bench.record import Figure, at_least, at_most
from tools.bench.workloads.ingest import write_directory

OWN = "chunkstore"
_NUM_KIB_ROWS = 100_000
_NUM_IMAGES = 2_000
_SECONDS = 0.2
_NUM_FILES = 10_000
_FILE_SHAPE = (8192,)
_T = TypeVar("_T")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One row of the comparison: what it is called, its unit, and whether more is better."""

    name: str
    title: str
    unit: str
    more_is_better: bool = True
    statistic: str = "best"

    def combine(self, values: Sequence[float]) -> float:
        """One value of several rounds."""
        if self.statistic == "median":
            return statistics.median(values)
        return max(values) if self.more_is_better else min(values)

    def lead(self, own: float, other: float) -> float:
        """How many times better `own` is than `other`."""
        if own == other:
            return 1.0
        return own / other if self.more_is_better else other / own


ROWS: Mapping[str, Row] = {
    row.name: row
    for row in (
        Row("single", "warm single read", "us", more_is_better=False),
        Row("batch", "warm batch", "rows/s"),
        Row("cold", "cold batch", "rows/s", statistic="median"),
        Row("open", "opening and first row", "ms", more_is_better=False),
        Row("epoch", "epoch in order", "GB/s"),
        Row("size", "size over raw", "%", more_is_better=False),
        Row("convert", "conversion", "files/s"),
        Row("verify", "verification", "GB/s"),
    )
}


@dataclass(frozen=True)
class DataSet:
    """Rows that every peer stores: label, number, shape."""

    label: str
    num: int
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Raw bytes."""
        return self.num * prod(self.shape)


@dataclass
class Findings:
    """Values of all rounds by (data set, row, peer), and why there is none."""

    values: dict[tuple[str, str, str], list[float]] = field(default_factory=dict)
    reasons: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def add(self, label: str, peer: str, results: Mapping[str, float]) -> None:
        """Keep the results of one child process."""
        for row, value in results.items():
            self.values.setdefault((label, row, peer), []).append(value)


class Comparison:
    """One run over some peers."""

    def __init__(self, scratch: Path, peers: Sequence[str], rounds: int, say: Say, seconds: float) -> None:
        self.scratch, self.peers, self.rounds, self.say = scratch, list(peers), rounds, say
        self.seconds = seconds  # of each timed row of a child
        self.findings = Findings()

    def _run(self, label: str, rows: Sequence[str], job: Job) -> bool:
        """Run one child; whether it went well. What it could not do is kept with the reason."""
        try:
            results = run_child("tools.bench.peers.child", job.to_json())
        except (RuntimeError, subprocess.TimeoutExpired) as problem:
            for row in rows:
                self.findings.reasons[label, row, job.peer] = str(problem)
            self.say(f"{job.peer}: {problem}")
            return False
        self.findings.add(label, job.peer, results)
        return True

    def reading(self, data: DataSet) -> None:
        """Write one data set with every peer, then read it in rounds."""
        folder = self.scratch / "peers"
        folder.mkdir()
        source = write_npy(self.scratch / "wanted.npy", data.num, data.shape)
        reads = [row for row in ROWS if row != "convert"]
        first = Job("write", "", "", str(source), data.num, data.shape, 0, self.seconds)
        jobs = [replace(first, peer=peer, path=str(folder / peer)) for peer in self.peers]
        ready = [job for job in jobs if self._run(data.label, reads, job)]
        for turn in range(self.rounds):
            self.say(f"{data.label}: round {turn + 1} of {self.rounds}")
            for job in _turned(ready, turn):
                self._run(data.label, reads, replace(job, task="read", seed=turn + 1))
        shutil.rmtree(folder)
        source.unlink()

    def converting(self, num: int) -> None:
        """Convert a directory of `.npy` files with every peer, in rounds."""
        source = self.scratch / "files"
        write_directory(source, num)
        target = self.scratch / "converted"
        job = Job("convert", "", str(target), str(source), num, _FILE_SHAPE, 0, self.seconds)
        for turn in range(self.rounds):
            self.say(f"conversion: round {turn + 1} of {self.rounds}")
            for peer in _turned(self.peers, turn):
                if "convert" not in PEERS[peer].unsupported:
                    self._run("", ["convert"], replace(job, peer=peer))
                    _remove(target)
        shutil.rmtree(source)

    def figures(self, sets: Sequence[DataSet]) -> Iterator[Figure]:
        """All values, then how far ahead chunkstore is in each row."""
        pairs = [(data, row) for row in ROWS.values() if row.name != "convert" for data in sets]
        columns = [*pairs, (DataSet("", 1, (1,)), ROWS["convert"])]
        leads: list[Figure] = []
        for data, row in columns:
            found = {peer: self._value(data, row, peer) for peer in self.peers}
            yield from (self._figure(data, row, peer, value) for peer, value in found.items())
            leads.extend(_lead(data, row, found))
        yield from leads

    def _value(self, data: DataSet, row: Row, peer: str) -> float | None:
        rounds = self.findings.values.get((data.label, row.name, peer))
        if not rounds:
            return None
        value = row.combine(rounds)
        return 100 * (value / data.nbytes - 1) if row.name == "size" else value

    def _figure(self, data: DataSet, row: Row, peer: str, value: float | None) -> Figure:
        cls = PEERS[peer]
        place = (data.label, row.name, peer)
        reason = cls.unsupported.get(row.name) or self.findings.reasons.get(place, "gave no value")
        labels = {
            "peer": cls.name,
            "row": row.title,
            "column": f"{_case(data, row)}, {row.unit}",
            "more_is_better": row.more_is_better,
        }
        detail = {"call": cls.batch_call} if row.name in ("batch", "cold") else {}
        rounds = self.findings.values.get(place, [])
        return Figure(
            "peers",
            f"{_case(data, row)}, {cls.name}",
            value,
            row.unit,
            statistic=f"{row.statistic} of {len(rounds)} fresh processes",
            detail=detail,
            rounds={"values": rounds} if rounds else {},
            labels=labels,
            skipped=None if value is not None else reason,
        )


def _case(data: DataSet, row: Row) -> str:
    return f"{row.title} {data.label}".strip()


def _lead(data: DataSet, row: Row, found: Mapping[str, float | None]) -> Iterator[Figure]:
    """How many times better chunkstore is than the best of the others; the goal is to be ahead of each."""
    own = found[OWN]
    others = {peer: value for peer, value in found.items() if value is not None and peer != OWN}
    if own is None or not others:
        return
    best = (max if row.more_is_better else min)(others.values())
    name = next(PEERS[peer].name for peer, value in others.items() if value == best)
    detail = {PEERS[peer].name: row.lead(own, value) for peer, value in others.items()}
    if row.name == "size":
        case, value, unit, goal = f"size {data.label}, chunkstore minus {name}", own - best, "%", at_most(0)
    else:
        case, value, unit, goal = f"{_case(data, row)}, over {name}", row.lead(own, best), "x", at_least(1)
    yield Figure("peers_lead", case, value, unit, goal, row.statistic, detail if row.name != "size" else {})


def _turned(items: Sequence[_T], turn: int) -> list[_T]:
    first = turn % len(items) if items else 0
    return [*items[first:], *items[:first]]


def _remove(path: Path) -> None:
    """Remove a file or a directory, and what a format puts beside it."""
    for each in path.parent.glob(f"{path.name}*"):
        if each.is_dir():
            shutil.rmtree(each)
        else:
            each.unlink()


def compare(scratch: Path, scale: float, rounds: int, names: Sequence[str], say: Say) -> list[Figure]:
    """Compare the named peers (default all) with chunkstore."""
    peers = [peer for peer in PEERS if not names or peer in names or peer == OWN]
    sets = [
        DataSet("1 KiB", max(256, round(_NUM_KIB_ROWS * scale)), KIB_ROW),
        DataSet("147 KiB", max(32, round(_NUM_IMAGES * scale)), IMAGE),
    ]
    comparison = Comparison(scratch, peers, rounds, say, _SECONDS * min(1.0, scale + 0.1))
    for data in sets:
        comparison.reading(data)
    comparison.converting(max(50, round(_NUM_FILES * scale)))
    return list(comparison.figures(sets))
