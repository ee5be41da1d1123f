"""The measurements of `chunkstore bench`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import chunkstore
from chunkstore._read.reader import Reader

_LEAST_RUNS = 3


def measure(ds: Reader, batch: int, seconds: float) -> list[dict[str, Any]]:
    """Opening, single samples, batches at random, all in order, verification.

    Args:
        ds: open reader; only its path and sizes are used, each measurement opens its own.
        batch: samples in a batch.
        seconds: to spend on each measurement, about.
    Returns:
        Per measurement `what`, `seconds` (best run), `samples_per_second` and `nbytes_per_second` (or None).
    """
    path, num_samples = ds.path, len(ds)
    paths = ds.paths if isinstance(ds, chunkstore.Containers) else (path,)
    data = int(ds._index.blocks["nbytes"].sum())
    results = [_result("open", _best(lambda: _open_and_close(path), seconds))]
    if num_samples:
        mean = data / num_samples
        size = min(batch, num_samples)
        with chunkstore.open(path) as reader:
            results.append(_result("one sample, ds[i]", _best(_single(reader), seconds), 1, mean))
            took = _best(_batches(reader, size), seconds)
            results.append(_result(f"{size} samples at random, ds.batch", took, size, size * mean))
            took = _best(lambda: _in_order(reader, size), seconds)
            results.append(_result("all samples in order, by slices", took, num_samples, data))
    reports: list[chunkstore.Report] = []
    took = _best(lambda: reports.extend(map(chunkstore.verify, paths)), seconds)
    nbytes = sum(report.nbytes for report in reports[: len(paths)])
    results.append(_result("verify", took, None, nbytes))
    return results


def _best(run: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest run; as many runs as fit, three at least, the first not counted."""
    run()
    best, runs, end = float("inf"), 0, time.perf_counter() + seconds
    while runs < _LEAST_RUNS or time.perf_counter() < end:
        began = time.perf_counter()
        run()
        best, runs = min(best, time.perf_counter() - began), runs + 1
    return best


def _result(what: str, seconds: float, samples: float | None = None, nbytes: float | None = None) -> dict[str, Any]:
    seconds = max(seconds, 1e-9)
    return {
        "what": what,
        "seconds": seconds,
        "samples_per_second": None if samples is None else samples / seconds,
        "nbytes_per_second": None if nbytes is None else nbytes / seconds,
    }


def _open_and_close(path: str) -> None:
    chunkstore.open(path).close()


def _positions(num_samples: int, size: int) -> Iterator[Any]:
    random = np.random.default_rng(0)
    while True:
        yield random.integers(0, num_samples, size)


def _single(reader: Reader) -> Callable[[], object]:
    draws = itertools.cycle(next(_positions(len(reader), 10_000)).tolist())
    return lambda: reader[next(draws)]


def _batches(reader: Reader, size: int) -> Callable[[], object]:
    draws = itertools.cycle(list(itertools.islice(_positions(len(reader), size), 64)))
    return lambda: reader.batch(next(draws))


def _in_order(reader: Reader, size: int) -> None:
    for start in range(0, len(reader), size):
        reader[start : start + size]
