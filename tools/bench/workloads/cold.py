"""Random batches from the disk: the page cache is dropped before every batch."""

from __future__ import annotations

import json
import mmap
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import chunkstore
from tools.bench import pagecache
from tools.bench.bench import BATCH, Bench
from tools.bench.inputs import Rows
from tools.bench.measure import Timings, timed
from tools.bench.record import Figure, at_least, skipped
from tools.bench.workloads.batches import Array, Positions, Verify, check_equal

_BATCHES_A_ROUND = 4
_QUEUE_DEPTH = 32
_SECTOR = 4096
_FIO_SECONDS = 3
_HAND_TAKE = "hinted by hand, np.take"
_HAND_PREAD = "hinted by hand, preadv"
_MODES: tuple[Verify, ...] = ("once", "off")

ReadBatch = Callable[[Positions, Array], object]


def cold_batch(bench: Bench) -> Iterator[Figure]:
    """256 random rows, cold: against the same reads hinted by hand, and against the disk itself."""
    for rows in (bench.inputs.rows_1k, bench.inputs.images):
        pagecache.drop_all()
        timings, leftover = _rounds(rows, bench.rounds)
        yield from _hand_figures(rows, timings, leftover)
        yield from _disk_figures(rows, timings)


def _rounds(rows: Rows, rounds: int) -> tuple[Timings, float]:
    """Seconds per batch of every way, in turns, and the largest share of a file that was still in memory."""
    ways = _ways(rows)
    out = np.empty((BATCH, *rows.shape), np.uint8)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    leftover = 0.0
    for turn, positions in enumerate(rows.random_batches(_BATCHES_A_ROUND * rounds, BATCH, seed=5)):
        results = []
        for name in _turned(list(ways), turn):
            path, read = ways[name]
            pagecache.drop([path])
            leftover = max(leftover, pagecache.resident_fraction(path))
            seconds[name].append(timed(lambda read=read, positions=positions: read(positions, out)))  # type: ignore[misc]
            results.append(out.copy())
        for result in results[1:]:
            check_equal(result, results[0], f"cold batch of {rows.label}")
    return Timings(seconds), leftover


def _turned(names: Sequence[str], turn: int) -> list[str]:
    first = turn % len(names)
    return [*names[first:], *names[:first]]


def _ways(rows: Rows) -> dict[str, tuple[Path, ReadBatch]]:
    ways: dict[str, tuple[Path, ReadBatch]] = {
        f"verify={mode}": (rows.container, _container_reader(rows, mode)) for mode in _MODES
    }
    ways[_HAND_TAKE] = (rows.npy, _hinted_take(rows))
    ways[_HAND_PREAD] = (rows.npy, _hinted_pread(rows))
    return ways


def _container_reader(rows: Rows, mode: Verify) -> ReadBatch:
    data: Any = chunkstore.open(rows.container, verify=mode)
    return lambda positions, out: data.batch(positions, out={"data": out})


def _row_offsets(rows: Rows, positions: Positions) -> list[int]:
    first = rows.npy.stat().st_size - rows.nbytes
    offsets: list[int] = (first + positions * rows.row_nbytes).tolist()
    return offsets


def _hint(descriptor: int, offsets: Sequence[int], nbytes: int) -> None:
    for offset in offsets:
        os.posix_fadvise(descriptor, offset, nbytes, os.POSIX_FADV_WILLNEED)


def _hinted_take(rows: Rows) -> ReadBatch:
    descriptor, source = os.open(rows.npy, os.O_RDONLY), rows.memmap()

    def read(positions: Positions, out: Array) -> None:
        _hint(descriptor, _row_offsets(rows, positions), rows.row_nbytes)
        np.take(source, positions, axis=0, out=out, mode="clip")

    return read


def _hinted_pread(rows: Rows) -> ReadBatch:
    descriptor = os.open(rows.npy, os.O_RDONLY)

    def read(positions: Positions, out: Array) -> None:
        offsets = _row_offsets(rows, positions)
        _hint(descriptor, offsets, rows.row_nbytes)
        for row, offset in zip(out.reshape(BATCH, -1), offsets, strict=True):
            os.preadv(descriptor, [row.data], offset)

    return read


def _hand_figures(rows: Rows, timings: Timings, leftover: float) -> Iterator[Figure]:
    # the goal is against the better of the two ways in which one would do it by hand
    base = min((_HAND_TAKE, _HAND_PREAD), key=timings.median)
    for mode in _MODES:
        name = f"verify={mode}"
        yield Figure(
            "cold_batch",
            f"{rows.label}, {name} over {base}",
            timings.speed_ratio(name, base, "median"),
            "x",
            at_least(0.95),
            f"median of {len(timings.seconds[name])} interleaved batches",
            {f"{way} rows/s": BATCH / timings.median(way) for way in (name, _HAND_TAKE, _HAND_PREAD)}
            | {"share still in memory": leftover},
            timings.seconds,
        )


def _disk_figures(rows: Rows, timings: Timings) -> Iterator[Figure]:
    threads = direct_reads(rows.npy, rows.row_nbytes)
    yield _disk_figure(rows, timings, f"{_QUEUE_DEPTH} threads of direct reads", threads, judged=False)
    if shutil.which("fio") is None:
        yield skipped("cold_batch", f"{rows.label}, over fio", "fio is not on PATH")
        return
    reached = fio_random_reads(rows.npy, rows.row_nbytes)
    yield _disk_figure(rows, timings, f"fio at queue depth {_QUEUE_DEPTH}", reached, judged=True)


def _disk_figure(rows: Rows, timings: Timings, base: str, reached: float, *, judged: bool) -> Figure:
    rate = BATCH / timings.median("verify=once")
    detail = {"verify=once rows/s": rate, f"{base} reads/s": reached}
    case = f"{rows.label}, verify=once over {base}"
    goal = at_least(0.9) if judged else None
    return Figure("cold_batch", case, rate / reached, "x", goal, "median of batches over the mean of the disk", detail)


def fio_random_reads(path: Path, nbytes: int) -> float:
    """Direct random reads a second that fio reaches on a file with this block size.

    Raises:
        RuntimeError: fio failed; the message has what it said.
    """
    options = {
        "name": "random",
        "filename": path,
        "rw": "randread",
        "bs": nbytes,
        "direct": 1,
        "ioengine": "libaio",
        "iodepth": _QUEUE_DEPTH,
        "runtime": _FIO_SECONDS,
        "time_based": 1,
        "output-format": "json",
    }
    command = ["fio", "--readonly", *(f"--{name}={value}" for name, value in options.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"fio: {done.stderr.strip() or done.stdout.strip()}")
    return float(json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["read"]["iops"])


def direct_reads(path: Path, nbytes: int, seconds: float = 1.0) -> float:
    """Reads a second of `nbytes` from 32 threads past the page cache: what the disk gives without fio."""
    span = -(-nbytes // _SECTOR) * _SECTOR
    places = (path.stat().st_size - span) // _SECTOR
    until = time.perf_counter() + seconds

    def count_reads(seed: int) -> int:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        buffer = mmap.mmap(-1, span)  # direct reads want an aligned buffer
        generator = random.Random(seed)
        count = 0
        while time.perf_counter() < until:
            os.preadv(descriptor, [buffer], generator.randrange(places) * _SECTOR)
            count += 1
        os.close(descriptor)
        return count

    with ThreadPoolExecutor(_QUEUE_DEPTH) as pool:
        return sum(pool.map(count_reads, range(_QUEUE_DEPTH))) / seconds
