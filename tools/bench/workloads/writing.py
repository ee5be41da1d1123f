"""Writing sample by sample and batch by batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy.typing as npt
import xxhash

import chunkstore
from tools.bench.bench import Bench, ratio_figure, start_anew
from tools.bench.inputs import KIB_ROW, blocks
from tools.bench.measure import Case, Timings, interleave
from tools.bench.record import Figure, at_least

_NUM_ROWS = 500_000
_NUM_SINGLE = 200_000
_GROUP_NBYTES = 4096
_MIN_ADDS = 0.7e6

Array = npt.NDArray[Any]


def write_bare(path: Path, batches: Sequence[Array]) -> None:
    """The same memory to a plain file, with its hashes (one per 4 KiB and one over all), synced."""
    whole = xxhash.xxh3_64()
    with open(path, "wb", buffering=0) as file:
        for batch in batches:
            view = batch.data.cast("B")
            whole.update(view)
            for start in range(0, len(view), _GROUP_NBYTES):
                xxhash.xxh3_64_intdigest(view[start : start + _GROUP_NBYTES])
            file.write(view)
        os.fdatasync(file.fileno())


def write_plain(path: Path, batches: Sequence[Array]) -> None:
    """The same memory to a plain file, synced."""
    with open(path, "wb", buffering=0) as file:
        for batch in batches:
            file.write(batch.data.cast("B"))
        os.fdatasync(file.fileno())


def add_batches(path: Path, batches: Sequence[Array]) -> None:
    """The same memory to a container."""
    with chunkstore.Writer(path) as writer:
        for batch in batches:
            writer.add_batch({"data": batch})


def write_batch(bench: Bench) -> Iterator[Figure]:
    """`Writer.add_batch` of 1 KiB rows against a plain file and its hashes."""
    num = bench.inputs.count(_NUM_ROWS, 2_000)
    batches = [block.copy() for block in blocks(num, KIB_ROW)]
    with bench.temporary("write.cks") as container, bench.temporary("write.bin") as plain:
        prepare = partial(start_anew, container, plain)
        cases = [
            Case("add_batch", lambda: add_batches(container, batches), prepare),
            Case("plain file + hashes", lambda: write_bare(plain, batches), prepare),
            Case("plain file", lambda: write_plain(plain, batches), prepare),
        ]
        timings = interleave(cases, bench.rounds)
    work = {"GB/s": num * KIB_ROW[0] / 1e9}
    for base, goal in (("plain file + hashes", at_least(0.8)), ("plain file", None)):
        yield ratio_figure("write_batch", "1 KiB rows", timings, ("add_batch", base), goal, work=work)


def write_single(bench: Bench) -> Iterator[Figure]:
    """`Writer.add` of 1 KiB rows one by one, commit included, beside LMDB and bagz where they are installed."""
    num = bench.inputs.count(_NUM_SINGLE, 2_000)
    rows = [row for block in blocks(num, KIB_ROW) for row in block.copy()]
    path = bench.scratch / "single"
    ways: dict[str, Callable[[Path, Sequence[Array]], None]] = {"add": _add_each, "add with keys": _add_keyed}
    ways |= {name: way for name, way in (("LMDB", _put_lmdb), ("bagz", _write_bagz)) if _installed(name.lower())}
    prepare = partial(start_anew, path)
    timings = interleave([Case(name, partial(way, path, rows), prepare) for name, way in ways.items()], bench.rounds)
    prepare()
    for name in ("add", "add with keys"):
        yield _rate_figure(name, num, timings)
        for rival in ways.keys() - {"add", "add with keys"}:
            yield ratio_figure("write_single", "1 KiB rows", timings, (name, rival), work={"rows/s": num})


def _installed(module: str) -> bool:
    return find_spec(module) is not None


def _add_each(path: Path, rows: Sequence[Array]) -> None:
    with chunkstore.Writer(path) as writer:
        for row in rows:
            writer.add({"data": row})


def _add_keyed(path: Path, rows: Sequence[Array]) -> None:
    with chunkstore.Writer(path) as writer:
        for position, row in enumerate(rows):
            writer.add({"data": row}, key=f"k{position}")


def _put_lmdb(path: Path, rows: Sequence[Array]) -> None:
    options = {"subdir": False, "lock": False, "map_size": 4 * len(rows) * rows[0].nbytes + (64 << 20)}
    environment = import_module("lmdb").open(str(path), **options)
    with environment.begin(write=True) as transaction:
        for position, row in enumerate(rows):
            transaction.put(position.to_bytes(8, "big"), row.data, append=True)
    environment.close()


def _write_bagz(path: Path, rows: Sequence[Array]) -> None:
    bagz = import_module("bagz")
    with bagz.Writer(str(path), bagz.Writer.Options(compression=bagz.CompressionNone())) as writer:
        for row in rows:
            writer.write(row.tobytes())


def _rate_figure(name: str, num: int, timings: Timings) -> Figure:
    rate = num / timings.best(name)
    rounds = {name: timings.seconds[name]}
    statistic = f"best of {len(rounds[name])} interleaved rounds"
    case = f"1 KiB rows, {name}, commit included"
    return Figure("write_single", case, rate, "rows/s", at_least(_MIN_ADDS), statistic, rounds=rounds)
