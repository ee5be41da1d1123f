"""What a workload gets: inputs, scratch space, number of rounds; and the way from timings to figures."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.bench.inputs import Inputs
from tools.bench.measure import Timings
from tools.bench.record import Figure, Goal

BATCH = 256
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Bench:
    """One run of the benchmark."""

    inputs: Inputs
    scratch: Path
    rounds: int

    @contextlib.contextmanager
    def temporary(self, name: str) -> Iterator[Path]:
        """A path in the scratch directory whose file is removed afterwards."""
        path = self.scratch / name
        path.unlink(missing_ok=True)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def start_anew(*paths: Path) -> None:
    """Remove what a case wrote; what is still to be written to the disk is not the next one's work."""
    for path in paths:
        path.unlink(missing_ok=True)
    os.sync()


def sync(path: Path) -> None:
    """Wait until a file that others wrote is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def ratio_figure(
    workload: str,
    case: str,
    timings: Timings,
    names: tuple[str, str],
    goal: Goal | None = None,
    statistic: str = "best",
    work: Mapping[str, float] | None = None,
) -> Figure:
    """Speed of one case over another's.

    Args:
        timings: rounds of both cases.
        names: the case that is judged, and its base.
        statistic: "best" or "median" of the rounds.
        work: units of work in one round, such as {"rows/s": 2560}; the detail gives the rate of both cases.
    """
    measured, base = names
    detail = {
        f"{name} {unit}": amount / timings.take(name, statistic)
        for unit, amount in (work or {}).items()
        for name in names
    }
    rounds = {name: timings.seconds[name] for name in names}
    value = timings.speed_ratio(measured, base, statistic)
    noted = f"{statistic} of {len(rounds[measured])} interleaved rounds"
    return Figure(workload, f"{case}, {measured} over {base}", value, "x", goal, noted, detail, rounds)


def run_child(module: str, *arguments: str, timeout: float = 300.0) -> Any:
    """Run a module of this package in a fresh process and give back the JSON on its last line.

    Raises:
        RuntimeError: the process failed; the message is the last line of what it said.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"ended with {done.returncode} and said nothing"]
        raise RuntimeError(said[-1])
    return json.loads(done.stdout.splitlines()[-1])
