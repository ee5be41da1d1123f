"""Append: a commit costs the same however large the container is; opening after many; merge against `cp`."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

import chunkstore
from tools.bench import pagecache
from tools.bench.bench import Bench, ratio_figure, start_anew, sync
from tools.bench.inputs import KIB_ROW, Rows, blocks
from tools.bench.measure import Case, Timings, interleave, timed
from tools.bench.record import Figure, Goal, at_least, at_most

Array = npt.NDArray[np.uint8]

_NUM_APPENDED = 1_000
_SMALL = 1_000
_LARGE = 10_000_000
_MAX_SPREAD = 1.2
_MIN_OF_BARE = 0.5
_NUM_COMMITS = 1_000
_MAX_OPEN_MS = 10.0
_ADD_ROWS = 8_192


def append(bench: Bench) -> Iterator[Figure]:
    """All figures of containers that grow."""
    yield from _commit_figures(bench)
    yield from _many_commits(bench)
    yield _merge_figure(bench)


# One commit ---------------------------------------------------------------------------------------


def _commit_figures(bench: Bench) -> Iterator[Figure]:
    """1,000 samples of 1 KiB in one commit, to 10^3 and to 10^7 samples, and the bare write with two syncs."""
    sizes = {f"{num:,} samples": num for num in (_SMALL, bench.inputs.count(_LARGE, 2 * _SMALL))}
    (rows,) = (block.copy() for block in blocks(_NUM_APPENDED, KIB_ROW))
    paths = {name: bench.scratch / f"append_{num}.cks" for name, num in sizes.items()}
    plain = bench.scratch / "append.bin"
    try:
        for name, num in sizes.items():
            _write_empty(paths[name], num)
        plain.write_bytes(bytes(rows.nbytes))
        os.sync()
        cases = [Case(name, _appending(path, rows), os.sync) for name, path in paths.items()]
        cases.append(Case("bare", lambda: write_bare(plain, rows), os.sync))
        timings = interleave(cases, 4 * bench.rounds)
        _check_appended(paths, sizes, rows, 4 * bench.rounds)
    finally:
        for path in (plain, *paths.values()):
            path.unlink(missing_ok=True)
    small, large = sizes
    yield _spread_figure(timings, large, small)
    for name in sizes:
        work = {"commits/s": 1.0}
        yield ratio_figure("append", name, timings, (name, "bare"), at_least(_MIN_OF_BARE), "median", work)


def _write_empty(path: Path, num: int) -> None:
    """`num` rows of zeros, synced; 10 GB for 10^7."""
    block = np.zeros((_ADD_ROWS, *KIB_ROW), np.uint8)
    with chunkstore.Writer(path) as writer:
        for start in range(0, num, _ADD_ROWS):
            writer.add_batch({"data": block[: num - start]})


def _appending(path: Path, rows: Array) -> Callable[[], None]:
    def run() -> None:
        with chunkstore.Writer(path, mode="a") as writer:
            writer.add_batch({"data": rows})

    return run


def write_bare(path: Path, rows: Array) -> None:
    """The same bytes at the end of a plain file, a sync, a page at its begin, a sync."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(descriptor, rows.data, os.fstat(descriptor).st_size)
        os.fdatasync(descriptor)
        os.pwrite(descriptor, bytes(4096), 0)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def _check_appended(paths: dict[str, Path], sizes: dict[str, int], rows: Array, times: int) -> None:
    for name, path in paths.items():
        data = chunkstore.open(path)
        wanted = sizes[name] + times * len(rows)
        if len(data) != wanted or not np.array_equal(data[-len(rows) :]["data"], rows):
            raise RuntimeError(f"{path}: {len(data)} samples, not {wanted}, or not those that were appended")
        data.close()


def _spread_figure(timings: Timings, large: str, small: str) -> Figure:
    seconds = {name: timings.median(name) for name in (large, small)}
    value = seconds[large] / seconds[small]
    detail = {f"{name}, ms": 1e3 * seconds[name] for name in seconds}
    statistic = f"medians of {len(timings.seconds[small])} interleaved rounds"
    case = f"time of one commit, {large} over {small}"
    rounds = {name: timings.seconds[name] for name in seconds}
    return Figure("append", case, value, "x", Goal("<=", _MAX_SPREAD), statistic, detail, rounds)


# Many commits -------------------------------------------------------------------------------------


def _many_commits(bench: Bench) -> Iterator[Figure]:
    """Opening and reading the last sample after 1,000 appends of one sample."""
    num = bench.inputs.count(_NUM_COMMITS, 20)
    row = np.arange(KIB_ROW[0], dtype=np.int64).astype(np.uint8)[np.newaxis]
    with bench.temporary("commits.cks") as path:
        _write_empty(path, 1)
        seconds = [timed(_appending(path, row)) for _ in range(num)]
        opening = [timed(lambda: _open_last(path, num + 1)) for _ in range(4 * bench.rounds)]
    case = f"open and read the last sample after {num:,} appends"
    statistic = f"median of {len(opening)} times"
    value = 1e3 * statistics.median(opening)
    yield Figure("append", case, value, "ms", at_most(_MAX_OPEN_MS), statistic, rounds={"open": opening})
    tenth = max(1, num // 10)
    first, last = (statistics.median(part) for part in (seconds[:tenth], seconds[-tenth:]))
    detail = {"first tenth, ms": 1e3 * first, "last tenth, ms": 1e3 * last}
    yield Figure("append", f"time of an append, last of {num:,} over first", last / first, "x", None, "medians", detail)


def _open_last(path: Path, num: int) -> None:
    data = chunkstore.open(path)
    if len(data) != num or not data[-1]["data"].any():
        raise RuntimeError(f"{path}: {len(data)} samples, not {num}, or the last one is not what was appended")
    data.close()


# Merge --------------------------------------------------------------------------------------------


def _merge_figure(bench: Bench) -> Figure:
    """Two containers of 1 KiB rows into one, against `cp` of both, each synced."""
    rows: Rows = bench.inputs.rows_1k
    pagecache.warm([rows.container])
    with bench.temporary("other.cks") as other, bench.temporary("merged.cks") as merged:
        shutil.copyfile(rows.container, other)
        folder = bench.scratch / "copies"
        folder.mkdir()
        sources = [rows.container, other]

        def prepare() -> None:
            start_anew(merged, *folder.iterdir())

        cases = [
            Case("merge", lambda: chunkstore.merge(sources, merged), prepare),
            Case("cp + fsync", lambda: _copy(sources, folder), prepare),
        ]
        try:
            timings = interleave(cases, bench.rounds)
            chunkstore.merge(sources, merged, mode="w")
            _check_merged(merged, rows)
        finally:
            shutil.rmtree(folder)
    work = {"GB/s": 2 * rows.nbytes / 1e9}
    return ratio_figure("append", rows.label, timings, ("merge", "cp + fsync"), at_least(0.8), "median", work)


def _check_merged(path: Path, rows: Rows) -> None:
    data = chunkstore.open(path)
    if len(data) != 2 * rows.num or not np.array_equal(data[rows.num]["data"], rows.memmap()[0]):
        raise RuntimeError(f"{path}: {len(data)} samples, or others than those of both containers")
    data.close()


def _copy(sources: Sequence[Path], folder: Path) -> None:
    subprocess.run(["cp", "--reflink=auto", *map(str, sources), str(folder)], check=True)
    for path in folder.iterdir():
        sync(path)
