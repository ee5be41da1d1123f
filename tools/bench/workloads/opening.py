"""Opening a container and reading the first sample: the same for a thousand samples and for fifty million."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import chunkstore
from tools.bench.bench import Bench, run_child
from tools.bench.record import Figure, Goal, at_most

_SIZES = (1_000, 1_000_000, 50_000_000)
_ADD_ROWS = 1_000_000
_MAX_SECONDS = 0.005
_MAX_GROWTH = 10e6
# "Within noise": two medians of fresh processes on an idle machine differ by less than this.
_MAX_SPREAD = 1.5
_PROBE = "tools.bench.probe_open"

Probe = Mapping[str, Any]


def build(path: Path, num: int, *, keyed: bool) -> Path:
    """A container of `num` rows of 8 bytes, with the key `k<position>` for each where `keyed`."""
    with chunkstore.Writer(path, num_samples=num) as writer:
        for start in range(0, num, _ADD_ROWS):
            stop = min(start + _ADD_ROWS, num)
            keys = [f"k{position}" for position in range(start, stop)] if keyed else None
            writer.add_batch({"data": np.arange(start, stop, dtype=np.int64)}, keys=keys)
    return path


def open_first_read(bench: Bench) -> Iterator[Figure]:
    """Time and memory of open, one read by position and one by key, in fresh processes."""
    counts = sorted({bench.inputs.count(size, 1_000) for size in _SIZES})
    paths = {num: build(bench.scratch / f"open_{num}.cks", num, keyed=True) for num in counts}
    small = build(bench.scratch / "open_small.cks", 100, keyed=True)
    try:
        probes: dict[int, list[Probe]] = {num: [] for num in paths}
        for _ in range(max(3, bench.rounds)):
            for num, path in paths.items():
                probes[num].append(run_child(_PROBE, str(small), str(path), str(num // 2)))
    finally:
        for path in (small, *paths.values()):
            path.unlink()
    for num, found in probes.items():
        yield from _figures(num, found)
    yield _spread(probes)


def _median(probes: Sequence[Probe], name: str) -> float:
    return float(statistics.median(probe[name] for probe in probes))


def _figures(num: int, probes: Sequence[Probe]) -> Iterator[Figure]:
    parts = {name: _median(probes, name) for name in ("open_ms", "read_ms", "find_ms", "first_ms")}
    yield _figure(f"{num:,} samples, open + read + key lookup", probes, "seconds", "s", _MAX_SECONDS, parts)
    yield _figure(f"{num:,} samples, growth of memory", probes, "growth_bytes", "B", _MAX_GROWTH, {})


def _figure(
    case: str, probes: Sequence[Probe], name: str, unit: str, bound: float, detail: Mapping[str, float]
) -> Figure:
    statistic = f"median of {len(probes)} fresh processes"
    rounds = {name: [probe[name] for probe in probes]}
    return Figure("open_first_read", case, _median(probes, name), unit, at_most(bound), statistic, detail, rounds)


def _spread(probes: Mapping[int, Sequence[Probe]]) -> Figure:
    medians = {num: _median(found, "seconds") for num, found in probes.items()}
    value = medians[max(medians)] / medians[min(medians)]
    case = f"{max(medians):,} samples over {min(medians):,}, time"
    return Figure("open_first_read", case, value, "x", Goal("<=", _MAX_SPREAD), "ratio of medians")
