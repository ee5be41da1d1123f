"""Random batches from the disk: the page cache is dropped before every batch."""

from __future__ import annotations

import json
import mmap
import os
import random
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import chunkstore
from tools.bench import pagecache
from tools.bench.bench import BATCH, Bench
from tools.bench.inputs import Rows, rows_at
from tools.bench.measure import Timings, timed
from tools.bench.record import Figure, at_least, skipped
from tools.bench.workloads.batches import Array, Positions, Verify, check_equal

_BATCHES_A_ROUND = 8
_BATCHES_A_STREAM = 12
_QUEUE_DEPTH = 32
_FIO = f"fio at queue depth {_QUEUE_DEPTH}"
_SECTOR = 4096
_DISK_SECONDS = 1
_STREAM = "verify=once, next batch prefetched"
_HAND_TAKE = "hinted by hand, np.take"
_HAND_PREAD = "hinted by hand, preadv"
_MODES: tuple[Verify, ...] = ("once", "off")

ReadBatch = Callable[[Positions, Array], object]


def cold_batch(bench: Bench) -> Iterator[Figure]:
    """256 random rows, cold: against the same reads hinted by hand, and against the disk itself."""
    for rows in (bench.inputs.rows_1k, bench.inputs.images):
        pagecache.drop_all()
        timings, leftover, disk = _rounds(rows, bench.rounds)
        yield from _hand_figures(rows, timings, leftover)
        yield from _disk_figures(rows, timings, disk)


def _rounds(rows: Rows, rounds: int) -> tuple[Timings, float, dict[str, list[float]]]:
    """What every way takes, in turns, the disk itself among them: its speed changes from second to second.

    Each way of a turn reads rows of its own: below a virtual machine somebody may keep what was read last, and
    who reads the same rows second would have them at twice the speed.

    Returns:
        Seconds per batch; the largest share of a file that was still in memory; reads/s of the disk.
    """
    ways = _ways(rows)
    out = np.empty((BATCH, *rows.shape), np.uint8)
    seconds: dict[str, list[float]] = {name: [] for name in (*ways, _STREAM)}
    bare = {f"{_QUEUE_DEPTH} threads of direct reads": direct_reads}
    if shutil.which("fio") is not None:
        bare[_FIO] = fio_random_reads
    disk: dict[str, list[float]] = {name: [] for name in bare}
    leftover = 0.0
    batches = iter(rows.random_batches(_BATCHES_A_ROUND * rounds * len(ways), BATCH, seed=5))
    for turn in range(_BATCHES_A_ROUND * rounds):
        if turn % _BATCHES_A_ROUND == 0:
            seconds[_STREAM].append(_stream(rows, turn, out))
            both = rows.npy, rows.container
            for name, measure in bare.items():
                disk[name].append(measure(both[turn // _BATCHES_A_ROUND % 2], rows.row_nbytes))
        for name in _turned(list(ways), turn):
            path, read = ways[name]
            positions = next(batches)
            pagecache.drop([path])
            leftover = max(leftover, pagecache.resident_fraction(path))
            seconds[name].append(timed(lambda read=read, positions=positions: read(positions, out)))  # type: ignore[misc]
            check_equal(out, rows_at(rows.num, rows.shape, positions), f"cold batch of {rows.label}, {name}")
    return Timings(seconds), leftover, disk


def _stream(rows: Rows, seed: int, out: Array) -> float:
    """Seconds per batch of a cold epoch that asks for the next batch before it reads one: the disk never rests."""
    num = min(_BATCHES_A_STREAM, rows.num // BATCH)
    batches = np.random.default_rng(seed).permutation(rows.num)[: num * BATCH].reshape(num, BATCH)
    data: Any = chunkstore.open(rows.container)

    def read_all() -> None:
        for batch, following in zip(batches, [*batches[1:], batches[-1]], strict=True):
            data.prefetch(following)
            data.batch(batch, out={"data": out})

    pagecache.drop([rows.container])
    return timed(read_all) / num


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


def _disk_figures(rows: Rows, timings: Timings, disk: Mapping[str, Sequence[float]]) -> Iterator[Figure]:
    if _FIO not in disk:
        yield skipped("cold_batch", f"{rows.label}, over fio", "fio is not on PATH")
    for base, speeds in disk.items():
        reached = statistics.median(speeds)
        for name in ("verify=once", _STREAM):
            rate = BATCH / timings.median(name)
            yield Figure(
                "cold_batch",
                f"{rows.label}, {name} over {base}",
                rate / reached,
                "x",
                at_least(0.9) if base == _FIO else None,
                f"median of batches over that of {len(speeds)} seconds of the disk between them",
                {f"{name} rows/s": rate, f"{base} reads/s": reached},
            )


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
        "runtime": _DISK_SECONDS,
        "time_based": 1,
        "output-format": "json",
    }
    command = ["fio", "--readonly", *(f"--{name}={value}" for name, value in options.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"fio: {done.stderr.strip() or done.stdout.strip()}")
    return float(json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["read"]["iops"])


def direct_reads(path: Path, nbytes: int) -> float:
    """Reads a second of `nbytes` from 32 threads past the page cache: what the disk gives without fio."""
    span = -(-nbytes // _SECTOR) * _SECTOR
    places = (path.stat().st_size - span) // _SECTOR
    until = time.perf_counter() + _DISK_SECONDS

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
        return sum(pool.map(count_reads, range(_QUEUE_DEPTH))) / _DISK_SECONDS
