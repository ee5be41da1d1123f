"""Random reads of data in memory: batches, single samples, ragged rows, the first pass with checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

import chunkstore
from tools.bench.bench import BATCH, Bench, ratio_figure
from tools.bench.inputs import RaggedRows, Rows, memory_for
from tools.bench.measure import Case, Timings, interleave
from tools.bench.pagecache import warm
from tools.bench.record import Figure, at_least, at_most

Verify = Literal["once", "off"]
Positions = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

_BYTES_A_ROUND = 256 << 20
_NUM_SINGLE = 100_000
_MAX_SINGLE_US = 1.3
_NUM_RAGGED_BATCHES = 60


def check_equal(got: Array, wanted: Array, what: str) -> None:
    """Raise unless two ways of reading gave the same.

    Raises:
        RuntimeError: they did not.
    """
    if got.shape != wanted.shape or not np.array_equal(got, wanted):
        raise RuntimeError(f"{what}: the results differ")


def take_each(source: Array, batches: Sequence[Positions], out: Array) -> None:
    """The bare way: one `np.take` a batch into the same buffer."""
    for positions in batches:
        np.take(source, positions, axis=0, out=out, mode="clip")


def batch_each(data: Any, batches: Sequence[Positions], out: Array) -> None:
    """The way of chunkstore: one `batch(out=)` a batch into the same buffer."""
    into = {"data": out}
    for positions in batches:
        data.batch(positions, out=into)


def read_all(data: Any, rows: Rows, out: Array) -> None:
    """One epoch in order, so that `verify="once"` has seen every chunk."""
    for start in range(0, rows.num - BATCH + 1, BATCH):
        batch_each(data, [np.arange(start, start + BATCH)], out)
    batch_each(data, [np.arange(rows.num - BATCH, rows.num)], out)


def warm_batch(bench: Bench) -> Iterator[Figure]:
    """`ds.batch(256 random, out=)` against a bare `np.take` of a memmap."""
    for rows in (bench.inputs.rows_1k, bench.inputs.images):
        yield from _warm_batch(rows, bench.rounds)


def _warm_batch(rows: Rows, rounds: int) -> Iterator[Figure]:
    warm([rows.npy, rows.container])
    count = min(_BYTES_A_ROUND, rows.nbytes) // (BATCH * rows.row_nbytes)
    batches = rows.random_batches(max(4, count), BATCH, seed=1)
    out, bare_out = (memory_for(BATCH, rows.shape) for _ in range(2))
    source = rows.memmap()
    modes = {f"verify={mode}": chunkstore.open(rows.container, verify=mode) for mode in ("off", "once")}
    for data in modes.values():
        read_all(data, rows, out)
    take_each(source, [np.arange(rows.num)[-BATCH:], *batches], bare_out)
    cases = [Case("np.take(memmap)", lambda: take_each(source, batches, bare_out))]
    cases += [Case(name, _reading(data, batches, out)) for name, data in modes.items()]
    timings = interleave(cases, rounds)
    check_equal(out, bare_out, f"warm batch of {rows.label}")
    work = {"rows/s": float(BATCH * len(batches))}
    for name, bound in (("verify=off", 0.8), ("verify=once", 0.7)):
        names = (name, "np.take(memmap)")
        yield ratio_figure("warm_batch", rows.label, timings, names, at_least(bound), work=work)


def _reading(data: Any, batches: Sequence[Positions], out: Array) -> Callable[[], None]:
    return lambda: batch_each(data, batches, out)


def read_single(bench: Bench) -> Iterator[Figure]:
    """`ds[i]` of one field, in microseconds, and against a view of a memmap."""
    rows = bench.inputs.rows_1k
    positions = np.random.default_rng(2).integers(0, rows.num, _NUM_SINGLE).tolist()
    source = rows.memmap()
    cases = [Case("np.memmap[i]", lambda: [source[i] for i in positions])]
    for mode in ("once", "off"):
        data = chunkstore.open(rows.container, verify=mode)
        check_equal(data[positions[0]]["data"], source[positions[0]], "ds[i]")
        read_all(data, rows, np.empty((BATCH, *rows.shape), np.uint8))
        cases.append(Case(f"verify={mode}", _singles(data, positions)))
    timings = interleave(cases, bench.rounds)
    for mode in ("once", "off"):
        yield _single_figure(timings, f"verify={mode}", len(positions))
        yield ratio_figure("read_single", "1 KiB rows", timings, (f"verify={mode}", "np.memmap[i]"))


def _singles(data: Any, positions: Sequence[int]) -> Callable[[], None]:
    def run() -> None:
        for position in positions:
            data[position]

    return run


def _single_figure(timings: Timings, name: str, count: int) -> Figure:
    value = 1e6 * timings.best(name) / count
    rounds = {name: timings.seconds[name]}
    statistic = f"best of {len(rounds[name])} interleaved rounds"
    return Figure("read_single", f"ds[i], {name}", value, "us", at_most(_MAX_SINGLE_US), statistic, rounds=rounds)


def ragged_batch(bench: Bench) -> Iterator[Figure]:
    """A batch of 256 ragged rows against a loop of views and one `np.concatenate`."""
    ragged = bench.inputs.ragged
    warm([ragged.values, ragged.container])
    batches = list(np.random.default_rng(3).integers(0, ragged.num, (_NUM_RAGGED_BATCHES, BATCH)))
    # a raw array: slicing an np.memmap costs several times as much, and would make a weak rival
    values = np.asarray(np.load(ragged.values, mmap_mode="r"))
    cases = [Case("views + np.concatenate", lambda: [concatenate(values, ragged, each) for each in batches])]
    for mode in ("off", "once"):
        data: Any = chunkstore.open(ragged.container, verify=mode)
        data.batch(np.arange(ragged.num))
        for each in batches[:3]:
            check_equal(data.batch(each)["data"].values, concatenate(values, ragged, each), "ragged batch")
        cases.append(Case(f"verify={mode}", _fresh_batches(data, batches)))
    timings = interleave(cases, bench.rounds)
    work = {"rows/s": float(BATCH * len(batches))}
    for mode, goal in (("once", at_least(1.1)), ("off", at_least(1.1))):
        names = (f"verify={mode}", "views + np.concatenate")
        yield ratio_figure("ragged_batch", "16 KB rows", timings, names, goal, work=work)


def concatenate(values: Array, ragged: RaggedRows, positions: Positions) -> Array:
    """The bare way: a view of each row, all of them put together."""
    starts, stops = ragged.offsets[positions].tolist(), ragged.offsets[positions + 1].tolist()
    return np.concatenate([values[start:stop] for start, stop in zip(starts, stops, strict=True)])


def _fresh_batches(data: Any, batches: Sequence[Positions]) -> Callable[[], None]:
    def run() -> None:
        for positions in batches:
            data.batch(positions)

    return run


def first_pass(bench: Bench) -> Iterator[Figure]:
    """The first shuffled pass of a new reader: `verify="once"`, which checks every chunk, against "off"."""
    for rows, bound in ((bench.inputs.rows_1k, 0.4), (bench.inputs.images, 0.7)):
        warm([rows.container])
        shuffled = np.random.default_rng(4).permutation(rows.num)
        batches = [shuffled[start : start + BATCH] for start in range(0, rows.num - BATCH + 1, BATCH)]
        out = memory_for(BATCH, rows.shape)
        cases = [_pass_case(rows, mode, batches, out) for mode in ("once", "off")]
        timings = interleave(cases, bench.rounds)
        names, work = ("verify=once", "verify=off"), {"rows/s": float(BATCH * len(batches))}
        yield ratio_figure("first_pass", rows.label, timings, names, at_least(bound), work=work)


def _pass_case(rows: Rows, mode: Verify, batches: Sequence[Positions], out: Array) -> Case:
    opened: list[Any] = []

    def prepare() -> None:
        while opened:
            opened.pop().close()
        opened.append(chunkstore.open(rows.container, verify=mode))

    return Case(f"verify={mode}", lambda: batch_each(opened[0], batches, out), prepare)
