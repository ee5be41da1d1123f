"""Timing: cases that do the same work, run in turns, so that every figure is a ratio within one run."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One way of doing the work of a workload.

    `prepare` runs before each round and is not timed; `run` is timed as a whole.
    """

    name: str
    run: Callable[[], object]
    prepare: Callable[[], object] | None = None


@dataclass(frozen=True)
class Timings:
    """Seconds of every round of every case, in the order in which they ran."""

    seconds: dict[str, list[float]]

    def best(self, name: str) -> float:
        """Shortest round of a case in seconds."""
        return min(self.seconds[name])

    def median(self, name: str) -> float:
        """Median round of a case in seconds."""
        return statistics.median(self.seconds[name])

    def take(self, name: str, statistic: str) -> float:
        """Seconds of a case by `statistic`, "best" or "median"."""
        return self.best(name) if statistic == "best" else self.median(name)

    def speed_ratio(self, name: str, base: str, statistic: str = "best") -> float:
        """Speed of `name` over speed of `base`: above 1 where `name` is faster."""
        return self.take(base, statistic) / self.take(name, statistic)


def timed(run: Callable[[], object]) -> float:
    """Seconds that one call takes, garbage collector off."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    finally:
        if collecting:
            gc.enable()


def interleave(cases: Sequence[Case], rounds: int) -> Timings:
    """Run every case once a round, another one first each time, so that none always warms up the rest."""
    seconds: dict[str, list[float]] = {case.name: [] for case in cases}
    for turn in range(rounds):
        first = turn % len(cases)
        for case in (*cases[first:], *cases[:first]):
            if case.prepare is not None:
                case.prepare()
            seconds[case.name].append(timed(case.run))
    return Timings(seconds)
