"""Converting deflated files with one worker and with two: seconds and memory, and what this machine lets two do."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tools.bench.bench import ROOT, Bench, ratio_figure, run_child, start_anew
from tools.bench.measure import Timings
from tools.bench.record import Figure, at_least, at_most, skipped

Array = npt.NDArray[Any]

_NUM_FILES = 96
_DISTINCT = 4  # deflating takes ten times as long as inflating; the others are copies
_ROWS, _WIDTH = 64, 65_536
_TWICE = 2 / 1.1
_ROOM_NBYTES = 64_000_000
_WORKERS = {"two workers": 2, "one worker": 1}
_BARE = {"two processes that only inflate": 2, "one such process": 1}
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
    """1.5 GiB in 96 deflated `.npz` files, by one worker and by two; and bare processes that only inflate them."""
    directory, target = bench.scratch / "deflated", bench.scratch / "deflated.cks"
    for kind in _KINDS:
        seconds: dict[str, list[float]] = {name: [] for name in (*_WORKERS, *_BARE)}
        peaks: list[int] = []
        try:
            write_deflated(directory, bench.inputs.count(_NUM_FILES, 4), kind)
            for turn in range(min(bench.rounds, 3)):
                for name in list(seconds)[:: 1 if turn % 2 else -1]:
                    if name in _BARE:
                        seconds[name].append(_inflate_seconds(directory, _BARE[name]))
                        continue
                    start_anew(target)
                    arguments = "convert", str(directory), str(target), str(_WORKERS[name])
                    run = run_child("tools.bench.probe_convert", *arguments)
                    seconds[name].append(run["seconds"])
                    if _WORKERS[name] == 2:
                        peaks.append(sum(run["peaks"]))
        finally:
            shutil.rmtree(directory, ignore_errors=True)
            target.unlink(missing_ok=True)
        yield from _speed(kind, Timings(seconds))
        yield _memory(kind, peaks)


def _inflate_seconds(directory: Path, num: int) -> float:
    """What so many processes, started beforehand, take to inflate all files, an equal share each."""
    paths = sorted(map(str, directory.iterdir()))
    command = [sys.executable, "-m", "tools.bench.probe_convert", "inflate"]
    children = [
        subprocess.Popen([*command, *paths[n::num]], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for n in range(num)
    ]
    try:
        _hear(children, "ready")
        start = time.perf_counter()
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        _hear(children, "done")
        return time.perf_counter() - start
    finally:
        for child in children:
            child.kill()
            child.communicate()


def _hear(children: list[subprocess.Popen[str]], word: str) -> None:
    for child in children:
        assert child.stdout is not None
        if child.stdout.readline().strip() != word:
            raise RuntimeError(f"a process that inflates did not say {word!r}")


def _speed(kind: str, timings: Timings) -> Iterator[Figure]:
    two, one, bare_two, bare_one = *_WORKERS, *_BARE
    case = f"deflated {kind}"
    figure = ratio_figure("convert_workers", case, timings, (two, one), at_least(_TWICE))
    ceiling = ratio_figure("convert_workers", case, timings, (bare_two, bare_one))
    yield figure
    yield ceiling
    if figure.value and ceiling.value:
        share = f"{case}, share of that of two bare processes"
        yield Figure("convert_workers", share, figure.value / ceiling.value, "x", None, figure.statistic)


def _memory(kind: str, peaks: list[int]) -> Figure:
    case = f"deflated {kind}, memory of both over 2 x (largest chunk + 64 MB)"
    if not all(peaks):
        return skipped("convert_workers", case, "needs /proc")
    bound = 2 * (_WIDTH * 4 + _ROOM_NBYTES)
    return Figure("convert_workers", case, max(peaks) / bound, "x", at_most(1), "most of all rounds")
