"""Reading everything in order: settings that are good for random reads must not spoil it."""

from __future__ import annotations

import contextlib
import importlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import chunkstore
from tools.bench import pagecache
from tools.bench.bench import Bench, ratio_figure
from tools.bench.inputs import Rows, memory_for
from tools.bench.measure import Case, interleave
from tools.bench.record import Figure, at_least, skipped
from tools.bench.workloads.batches import Array, Verify, check_equal

_ROWS_A_READ = 64

Read = Callable[[int, int], Array]


class Pass:
    """One way of reading all rows in order, opened afresh for each round.

    `open_reader` gives a function that reads rows start..stop and returns them, in `out` or in a new array.
    """

    def __init__(self, name: str, rows: Rows, path: Path, open_reader: Callable[[Path, Array], Read]) -> None:
        self.name, self.path = name, path
        self._rows, self._open_reader = rows, open_reader
        self._out = memory_for(_ROWS_A_READ, rows.shape)
        self._read: Read | None = None

    def case(self, *, cold: bool) -> Case:
        """The pass as a case; where `cold`, the file is dropped from the page cache before each round."""

        def prepare() -> None:
            self._read = None
            if cold:
                pagecache.drop([self.path])
            self._read = self._open_reader(self.path, self._out)

        return Case(self.name, self._run, prepare)

    def _run(self) -> None:
        assert self._read is not None
        for start in range(0, self._rows.num - _ROWS_A_READ + 1, _ROWS_A_READ):
            self._read(start, start + _ROWS_A_READ)

    def check(self, wanted: Array) -> None:
        """Compare the first read with what it must be."""
        read = self._open_reader(self.path, self._out)
        check_equal(read(0, _ROWS_A_READ), wanted, f"in order, {self.name}")


def _memmap(path: Path, out: Array) -> Read:
    source = np.load(path, mmap_mode="r")

    def read(start: int, stop: int) -> Array:
        np.copyto(out, source[start:stop])
        return out

    return read


def _memmap_fresh(path: Path, _: Array) -> Read:
    source = np.load(path, mmap_mode="r")
    return lambda start, stop: np.array(source[start:stop])


def _h5py(path: Path, out: Array) -> Read:
    data = importlib.import_module("h5py").File(path, "r")["data"]

    def read(start: int, stop: int) -> Array:
        data.read_direct(out, np.s_[start:stop])
        return out

    return read


def _slices(path: Path, _: Array) -> Read:
    data: Any = chunkstore.open(path, verify="off")

    def read(start: int, stop: int) -> Array:
        rows: Array = data[start:stop]["data"]
        return rows

    return read


def _batches(verify: Verify) -> Callable[[Path, Array], Read]:
    def open_reader(path: Path, out: Array) -> Read:
        data: Any = chunkstore.open(path, verify=verify)
        into = {"data": out}

        def read(start: int, stop: int) -> Array:
            data.batch(np.arange(start, stop), out=into)
            return out

        return read

    return open_reader


def write_hdf5(rows: Rows, path: Path) -> Path | None:
    """The rows as one contiguous data set of an HDF5 file; None where h5py is missing."""
    try:
        h5py = importlib.import_module("h5py")
    except ImportError:
        return None
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=rows.memmap())
    return path


def in_order(bench: Bench) -> Iterator[Figure]:
    """The first warm pass of a new reader."""
    yield from _in_order(bench, cold=False)


def in_order_cold(bench: Bench) -> Iterator[Figure]:
    """A pass from the disk."""
    yield from _in_order(bench, cold=True)


def _in_order(bench: Bench, *, cold: bool) -> Iterator[Figure]:
    workload = "in_order_cold" if cold else "in_order"
    rows = bench.inputs.images
    with bench.temporary("in_order.h5") as hdf5, contextlib.ExitStack() as copies:
        stored = write_hdf5(rows, hdf5)
        if stored is None:
            yield skipped(workload, "over h5py", "h5py is not installed")
        passes = _passes(rows, stored)
        for each in passes.values():
            each.check(rows.memmap()[:_ROWS_A_READ])
        if cold:
            _separate(bench, passes.values(), copies)
        else:
            pagecache.warm({each.path for each in passes.values()})
        timings = interleave([each.case(cold=cold) for each in passes.values()], bench.rounds)
    work, statistic = {"GB/s": rows.nbytes / 1e9}, "median" if cold else "best"
    for mine, rival in _PAIRS:
        if rival in passes:
            # a first warm pass that checks everything pays for the checks: `first_pass` has the goal for that
            goal = None if "once" in mine and not cold else at_least(0.9)
            yield ratio_figure(workload, rows.label, timings, (mine, rival), goal, statistic, work)


def _separate(bench: Bench, passes: Iterable[Pass], copies: contextlib.ExitStack) -> None:
    """Give each pass a file of its own, removed with `copies`.

    Below a virtual machine somebody may keep what was read last: who reads the same file second would be faster.
    """
    taken: set[Path] = set()
    for number, each in enumerate(passes):
        if each.path in taken:
            each.path = Path(shutil.copyfile(each.path, copies.enter_context(bench.temporary(f"in_order_{number}"))))
        taken.add(each.path)


_PAIRS = (
    ("batch, verify=off", "np.memmap"),
    ("batch, verify=off", "h5py"),
    ("batch, verify=once", "np.memmap"),
    ("batch, verify=once", "h5py"),
    ("ds[a:b], verify=off", "np.array(memmap[a:b])"),
)


def _passes(rows: Rows, hdf5: Path | None) -> dict[str, Pass]:
    ways = [
        ("batch, verify=off", rows.container, _batches("off")),
        ("batch, verify=once", rows.container, _batches("once")),
        ("ds[a:b], verify=off", rows.container, _slices),
        ("np.memmap", rows.npy, _memmap),
        ("np.array(memmap[a:b])", rows.npy, _memmap_fresh),
    ]
    if hdf5 is not None:
        ways.append(("h5py", hdf5, _h5py))
    return {name: Pass(name, rows, path, open_reader) for name, path, open_reader in ways}
