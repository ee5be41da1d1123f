"""Verification at the speed of memory, and what the checksums and keys cost in bytes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import chunkstore
from tools.bench import pagecache
from tools.bench.bench import Bench, ratio_figure
from tools.bench.measure import Case, interleave
from tools.bench.record import Figure, at_least, at_most
from tools.bench.workloads.opening import build

_MAX_OVERHEAD_PERCENT = 0.3
_MAX_KEY_NBYTES = 24
_NUM_KEYED = 1_000_000
_MIN_IMAGE_SPEED = 10.0


def cat(path: Path) -> None:
    """`cat FILE > /dev/null`."""
    with open("/dev/null", "wb") as sink:
        subprocess.run(["cat", path], stdout=sink, check=True)


def _verify_all(path: Path) -> Callable[[], None]:
    def run() -> None:
        report = chunkstore.verify(path)
        if not report.ok:
            raise RuntimeError(f"{path}: verify found damage in a sound file: {report.damage}")

    return run


def verify(bench: Bench) -> Iterator[Figure]:
    """`chunkstore.verify` of a file in memory against `cat`."""
    for rows in (bench.inputs.rows_1k, bench.inputs.images):
        pagecache.warm([rows.container])
        cases = [
            Case("verify", _verify_all(rows.container)),
            Case("cat", lambda path=rows.container: cat(path)),  # type: ignore[misc]
        ]
        timings = interleave(cases, bench.rounds)
        gigabytes = rows.container.stat().st_size / 1e9
        work = {"GB/s": gigabytes}
        yield ratio_figure("verify", rows.label, timings, ("verify", "cat"), at_least(0.8), work=work)
        if rows is bench.inputs.images:
            speed = gigabytes / timings.best("verify")
            yield Figure("verify", rows.label, speed, "GB/s", at_least(_MIN_IMAGE_SPEED), "best of the same rounds")


def file_overhead(bench: Bench) -> Iterator[Figure]:
    """Bytes of a container over the raw bytes, and bytes of a key over its text."""
    for rows in (bench.inputs.rows_1k, bench.inputs.images):
        size = rows.container.stat().st_size
        percent = 100 * (size - rows.nbytes) / rows.nbytes
        detail = {"file bytes": size, "raw bytes": rows.nbytes}
        yield Figure("file_overhead", rows.label, percent, "%", at_most(_MAX_OVERHEAD_PERCENT), "exact", detail)
    yield _key_cost(bench)


def _key_cost(bench: Bench) -> Figure:
    num = bench.inputs.count(_NUM_KEYED, 2_000)
    with bench.temporary("keyed.cks") as keyed, bench.temporary("plain.cks") as plain:
        sizes = [build(path, num, keyed=path is keyed).stat().st_size for path in (keyed, plain)]
    text = sum(len(f"k{position}") for position in range(num))
    cost = (sizes[0] - sizes[1] - text) / num
    return Figure("file_overhead", "a key beyond its text", cost, "B", at_most(_MAX_KEY_NBYTES), "exact")
