"""Converting deflated files with one worker process and with two: seconds and memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tools.bench.bench import Bench, ratio_figure, run_child
from tools.bench.measure import Timings
from tools.bench.record import Figure, at_least, at_most, skipped

Array = npt.NDArray[Any]

_NUM_FILES = 96
_DISTINCT = 4  # deflating takes ten times as long as inflating; the others are copies
_ROWS, _WIDTH = 64, 65_536
_TWICE = 2 / 1.1
_ROOM_NBYTES = 64_000_000
_NAMES = {0: "no process of its own", 1: "one process", 2: "two processes"}
_KINDS: dict[str, Callable[[Array], Array]] = {
    "float32 noise": lambda noise: noise.astype(np.float32),  # deflates to 0.93
    "float32 in steps of 0.1": lambda noise: noise.round(1).astype(np.float32),  # to 0.28
}


def write_deflated(directory: Path, num: int, kind: str) -> None:
    """`num` files of 16 MiB."""
    directory.mkdir()
    random = np.random.default_rng(0)
    for place in range(num):
        path = directory / f"{place}.npz"
        if place < _DISTINCT:
            np.savez_compressed(path, x=_KINDS[kind](random.normal(size=(_ROWS, _WIDTH))))
        else:
            shutil.copyfile(directory / f"{place % _DISTINCT}.npz", path)


def convert_workers(bench: Bench) -> Iterator[Figure]:
    """1.5 GiB in 96 deflated `.npz` files, in worker processes."""
    directory, target = bench.scratch / "deflated", bench.scratch / "deflated.cks"
    for kind in _KINDS:
        found: dict[int, list[dict[str, Any]]] = {0: [], 1: [], 2: []}
        try:
            write_deflated(directory, bench.inputs.count(_NUM_FILES, 4), kind)
            for turn in range(min(bench.rounds, 3)):
                for workers in (0, 1, 2) if turn % 2 else (2, 1, 0):
                    target.unlink(missing_ok=True)
                    os.sync()  # what an earlier case left to be written is not this one's work
                    arguments = str(directory), str(target), str(workers)
                    found[workers].append(run_child("tools.bench.probe_convert", *arguments))
        finally:
            shutil.rmtree(directory, ignore_errors=True)
            target.unlink(missing_ok=True)
        yield from _speed(kind, found)
        yield _memory(kind, found[2])


def _speed(kind: str, found: dict[int, list[dict[str, Any]]]) -> Iterator[Figure]:
    timings = Timings({_NAMES[n]: [run["seconds"] for run in runs] for n, runs in found.items()})
    for base, goal in ((_NAMES[1], at_least(_TWICE)), (_NAMES[0], None)):
        yield ratio_figure("convert_workers", f"deflated {kind}", timings, (_NAMES[2], base), goal)


def _memory(kind: str, runs: list[dict[str, Any]]) -> Figure:
    case = f"deflated {kind}, memory of both over 2 x (largest chunk + 64 MB)"
    peaks = [sum(run["workers"]) for run in runs]
    if not all(peaks):
        return skipped("convert_workers", case, "needs /proc")
    bound = 2 * (_WIDTH * 4 + _ROOM_NBYTES)
    detail = {"MB of one": max(max(run["workers"]) for run in runs) / 1e6, "MB of the caller": runs[0]["own"] / 1e6}
    return Figure("convert_workers", case, max(peaks) / bound, "x", at_most(1), "most of all rounds", detail)
