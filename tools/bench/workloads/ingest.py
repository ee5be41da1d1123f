"""Converting: many small files against a bare loop that only reads them, one large file against `cp`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

import chunkstore
from tools.bench import pagecache
from tools.bench.bench import Bench, ratio_figure, start_anew, sync
from tools.bench.inputs import blocks, write_npy
from tools.bench.measure import Case, Timings, interleave
from tools.bench.record import Figure, at_least

_NUM_FILES = 20_000
_ROW_NBYTES = 8192
_HEADER_NBYTES = 128
_LARGE_ROWS = 1_000_000
_FILES_A_FOLDER = 1_000


def write_directory(directory: Path, num: int) -> list[Path]:
    """`num` files of 8 KiB in folders of a thousand; returns their paths in order."""
    paths: list[Path] = []
    for block in blocks(num, (_ROW_NBYTES,)):
        for row in block:
            folder = directory / f"{len(paths) // _FILES_A_FOLDER:03d}"
            if len(paths) % _FILES_A_FOLDER == 0:
                folder.mkdir(parents=True)
            paths.append(folder / f"{len(paths):06d}.npy")
            np.save(paths[-1], row)
    return paths


def read_bare(paths: Sequence[Path]) -> None:
    """Open, `readv`, close: the least that reading these files can cost."""
    header, payload = bytearray(_HEADER_NBYTES), bytearray(_ROW_NBYTES)
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.readv(descriptor, [header, payload])
        os.close(descriptor)


def load_each(paths: Sequence[Path]) -> None:
    """A loop of `np.load`, as people write it."""
    for path in paths:
        np.load(path)


def convert_many(bench: Bench) -> Iterator[Figure]:
    """20,000 `.npy` files of 8 KiB."""
    directory = bench.scratch / "many"
    try:
        paths = write_directory(directory, bench.inputs.count(_NUM_FILES, 200))
        pagecache.warm(paths)
        with bench.temporary("many.cks") as target:
            timings = interleave(_many_cases(directory, paths, target), bench.rounds)
            _check_converted(target, paths)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    yield from _many_figures(timings, len(paths))


def _many_cases(directory: Path, paths: Sequence[Path], target: Path) -> list[Case]:
    return [
        Case("convert", lambda: chunkstore.convert(directory, target), partial(target.unlink, missing_ok=True)),
        Case("open, readv, close", lambda: read_bare(paths)),
        Case("np.load", lambda: load_each(paths)),
    ]


def _check_converted(target: Path, paths: Sequence[Path]) -> None:
    data = chunkstore.open(target)
    for position in (0, len(paths) // 2, len(paths) - 1):
        if len(data) != len(paths) or not np.array_equal(data[position]["data"], np.load(paths[position])):
            raise RuntimeError(f"{target}: sample {position} is not what its file holds")


def _many_figures(timings: Timings, num: int) -> Iterator[Figure]:
    work = {"files/s": float(num)}
    for base, goal in (("open, readv, close", at_least(0.5)), ("np.load", None)):
        yield ratio_figure("convert_many", "8 KiB files", timings, ("convert", base), goal, work=work)


def convert_large(bench: Bench) -> Iterator[Figure]:
    """One `.npy` file of 1 GB against `cp`, which does not wait for the disk, and `cp` that does."""
    num = bench.inputs.count(_LARGE_ROWS, 2_000)
    with bench.temporary("large.npy") as source, bench.temporary("large.cks") as target:
        write_npy(source, num, (1024,))
        with bench.temporary("large.copy") as copy:
            timings = interleave(_large_cases(source, target, copy), bench.rounds)
    work = {"GB/s": num * 1024 / 1e9}
    for base in ("cp", "cp + fsync"):
        yield ratio_figure("convert_large", "1 GB file", timings, ("convert", base), at_least(0.7), work=work)


def _large_cases(source: Path, target: Path, copy: Path) -> list[Case]:
    def copy_and_sync() -> None:
        _copy(source, copy)
        sync(copy)

    prepare = partial(start_anew, target, copy)
    return [
        Case("convert", lambda: chunkstore.convert(source, target, layout="rows"), prepare),
        Case("cp", lambda: _copy(source, copy), prepare),
        Case("cp + fsync", copy_and_sync, prepare),
    ]


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "--reflink=never", source, target], check=True)
