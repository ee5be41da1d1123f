"""PyTorch: `Loader` and `DataLoader` on data in memory, the wait of a training step, going on at any position."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np

import chunkstore
from tools.bench.bench import BATCH, Bench, ratio_figure
from tools.bench.inputs import Rows
from tools.bench.measure import Case, Timings, interleave, timed
from tools.bench.pagecache import warm
from tools.bench.record import Figure, at_least, at_most, skipped
from tools.bench.workloads.batches import read_all

_IMAGE_BATCH = 64
_STEP_SECONDS = 0.003
_MAX_STALL_PERCENT = 1.5
_NUM_STEPS = 300
_NUM_HUGE = 1_000_000_000
_MAX_RESUME_MS = 10.0
_MAX_STATE_NBYTES = 1000


def load_torch(bench: Bench) -> Iterator[Figure]:
    """All figures of PyTorch on the CPU; `load_gpu` has those of a device."""
    if find_spec("torch") is None:
        yield skipped("load_torch", "all", "torch is not installed")
        return
    for rows, batch_size, bounds in (
        (bench.inputs.rows_1k, BATCH, (None, 10)),
        (bench.inputs.images, _IMAGE_BATCH, (0.7, None)),
    ):
        warm([rows.npy, rows.container])
        yield from _loader_figures(rows, batch_size, bench.rounds, bounds[0])
        yield from _data_loader_figures(rows, batch_size, bench.rounds, bounds[1])
        yield _stall_figure(rows, batch_size, bench.rounds)
    yield from _resume_figures(bench)


def proven_reader(rows: Rows) -> Any:
    """A reader that has seen every chunk: from then on `verify="once"` has nothing to do."""
    reader = chunkstore.open(rows.container)
    read_all(reader, rows, np.empty((BATCH, *rows.shape), np.uint8))
    return reader


# Loader -------------------------------------------------------------------------------------------


def _loader_figures(rows: Rows, batch_size: int, rounds: int, bound: float | None) -> Iterator[Figure]:
    """Shuffled epochs, against a bare `np.take` of the same batches and against copies of as many bytes in order.

    The goal holds for both copies. One goes from memory to memory: a loader's batches lie in memory, too, as many as
    are prefetched. The other goes into one buffer again and again, which may stay in the last cache.
    """
    from chunkstore.torch import Loader

    reader = proven_reader(rows)
    with Loader(reader, batch_size, shuffle=True, seed=1, drop_last=True) as loader:
        _check(loader, rows)
        positions, cases = _bare_ways(rows, batch_size, len(loader))
        timings = interleave([Case("Loader", lambda: _drain(loader)), *cases], rounds)
    del cases
    reader.close()
    num_samples = len(positions) * batch_size
    if bound is None:
        yield _rate_figure(rows, timings, num_samples)
    work = {"samples/s": float(num_samples), "GB/s": num_samples * rows.row_nbytes / 1e9}
    goal = None if bound is None else at_least(bound)
    goals = {"np.take": None, "copy into one buffer": goal, "memory copy": goal}
    for base, goal in goals.items():
        yield ratio_figure("load_torch", rows.label, timings, ("Loader", base), goal, work=work)


def _bare_ways(rows: Rows, batch_size: int, num_batches: int) -> tuple[Any, list[Case]]:
    shuffled = np.random.default_rng(6).permutation(rows.num)[: num_batches * batch_size]
    positions = shuffled.reshape(num_batches, batch_size)
    column = np.asarray(rows.memmap())
    out = np.zeros((batch_size, *rows.shape), np.uint8)
    memory = np.zeros((num_batches * batch_size, *rows.shape), np.uint8)  # more than any cache; its pages are there

    def take() -> None:
        for each in positions:
            np.take(column, each, axis=0, out=out, mode="clip")

    def copy_into_one() -> None:
        for start in range(0, len(memory), batch_size):
            np.copyto(out, column[start : start + batch_size])

    def copy() -> None:
        for start in range(0, len(memory), batch_size):
            np.copyto(memory[start : start + batch_size], column[start : start + batch_size])

    return positions, [Case("np.take", take), Case("copy into one buffer", copy_into_one), Case("memory copy", copy)]


def _rate_figure(rows: Rows, timings: Timings, num_samples: int) -> Figure:
    seconds = timings.seconds["Loader"]
    value = num_samples / timings.best("Loader")
    statistic = f"best of {len(seconds)} interleaved rounds"
    case = f"{rows.label}, Loader, batch {BATCH}"
    return Figure("load_torch", case, value, "samples/s", at_least(3e6), statistic, rounds={"Loader": seconds})


def _drain(batches: Any) -> None:
    for _ in batches:
        pass


def _check(batches: Any, rows: Rows) -> None:
    """One epoch: each row is what its first eight bytes say, and none comes twice."""
    source, found = rows.memmap(), []
    for number, batch in enumerate(batches):
        data = batch["data"].numpy().reshape(len(batch["data"]), -1)
        places = data[:, :8].copy().view("<u8")[:, 0]
        if number % 50 == 0 and not np.array_equal(data, source[places].reshape(data.shape)):
            raise RuntimeError(f"{rows.container}: batch {number} has other rows than the file")
        found.append(places)
    if len(np.unique(np.concatenate(found))) != sum(map(len, found)):
        raise RuntimeError(f"{rows.container}: a sample came twice in one epoch")


# DataLoader ---------------------------------------------------------------------------------------


def _data_loader_figures(rows: Rows, batch_size: int, rounds: int, bound: float | None) -> Iterator[Figure]:
    """`DataLoader(Dataset(...), num_workers=0)` against the same with one sample at a time, ours and by hand."""
    from chunkstore.torch import Dataset

    reader = proven_reader(rows)
    dataset = Dataset(reader)
    num = min(rows.num, (200 << 20) // rows.row_nbytes)
    sources = {"whole batches": dataset, "sample by sample": _BySample(dataset), "np.memmap by hand": _ByHand(rows)}
    _check(_plain_loader(dataset, batch_size, rows.num), rows)
    cases = [Case(name, _epoch(source, batch_size, num)) for name, source in sources.items()]
    timings = interleave(cases, rounds)
    goals = {"sample by sample": None if bound is None else at_least(bound), "np.memmap by hand": None}
    for base, goal in goals.items():
        case, names = f"{rows.label}, plain DataLoader", ("whole batches", base)
        yield ratio_figure("load_torch", case, timings, names, goal, work={"samples/s": float(num)})
    reader.close()


def _plain_loader(source: Any, batch_size: int, num_samples: int) -> Any:
    import torch
    from torch.utils.data import DataLoader, RandomSampler

    generator = torch.Generator().manual_seed(1)
    sampler = RandomSampler(source, num_samples=num_samples, generator=generator)
    return DataLoader(source, batch_size, sampler=sampler)


def _epoch(source: Any, batch_size: int, num: int) -> Callable[[], None]:
    return lambda: _drain(_plain_loader(source, batch_size, num))


class _BySample:
    """The samples of a data set, without `__getitems__`: what `DataLoader` does with most data sets."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, position: int) -> Any:
        return self._dataset[position]


class _ByHand:
    """What one writes without chunkstore."""

    def __init__(self, rows: Rows) -> None:
        self._source = rows.memmap()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, position: int) -> Any:
        import torch

        return {"data": torch.from_numpy(self._source[position].copy())}


# Steps and states ---------------------------------------------------------------------------------


def _stall_figure(rows: Rows, batch_size: int, rounds: int) -> Figure:
    """Share of the time that a loop with steps of 3 ms waits in `next()`; the step uses one core, as training does.

    The epoch is longer than the loop, of images that come several times: a few dozen steps would be its begin alone.
    """
    from chunkstore.torch import Loader

    reader, shares = proven_reader(rows), []
    epoch = reader.select(np.arange((_NUM_STEPS + 8) * batch_size) % rows.num)
    for seed in range(rounds):
        with Loader(epoch, batch_size, shuffle=True, seed=seed) as loader:
            batches = iter(loader)
            next(batches)  # opening, threads, the first batch
            start, before, steps = time.perf_counter(), loader.stats().wait_seconds, 0
            for _ in batches:
                _compute(_STEP_SECONDS)
                if (steps := steps + 1) == _NUM_STEPS:
                    break
            shares.append((loader.stats().wait_seconds - before) / (time.perf_counter() - start))
    reader.close()
    goal, statistic = at_most(_MAX_STALL_PERCENT), f"median of {rounds} loops of {_NUM_STEPS} steps"
    case = f"{rows.label}, stall of a 3 ms step, batch {batch_size}"
    value = 100 * float(np.median(shares))
    return Figure("load_torch", case, value, "%", goal, statistic, {"least": 100 * min(shares)}, {"share": shares})


def _compute(seconds: float) -> None:
    """Keep one core busy, mostly without the GIL."""
    left = np.full((96, 96), 0.01, np.float32)
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop:
        np.matmul(left, left)


def _resume_figures(bench: Bench) -> Iterator[Figure]:
    """From `load_state_dict` to the first batch, in the middle of 10^9 samples, over that at the begin."""
    from chunkstore.torch import Loader

    num = bench.inputs.count(_NUM_HUGE, 1_000_000)
    with bench.temporary("huge.cks") as path:
        # One byte a sample, all zero: neither the number of bytes nor their values matter here.
        with chunkstore.Writer(path, num_samples=num) as writer:
            block = np.zeros(min(num, 10_000_000), np.uint8)
            for start in range(0, num, len(block)):
                writer.add_batch({"data": block[: num - start]})
        with Loader(path, BATCH, shuffle=True, seed=1, verify="off") as loader:
            fresh = loader.state_dict()
            far = fresh | {"samples_seen": num - 10 * BATCH - num % BATCH}
            next(iter(loader))
            cases = [Case(name, _resume(loader, state)) for name, state in (("far", far), ("begin", fresh))]
            timings = interleave(cases, 4 * bench.rounds)
            num_left = sum(1 for _ in _resumed(loader, far))
    if num_left != 10 + (num % BATCH > 0):
        raise RuntimeError(f"{num_left} batches were left, not those of the state")
    yield from _state_figures(num, timings, far)


def _state_figures(num: int, timings: Timings, state: dict[str, Any]) -> Iterator[Figure]:
    case = f"{num:,} samples, load_state_dict and first batch near the end"
    detail = {"at the begin, ms": 1e3 * timings.median("begin")}
    statistic = f"median of {len(timings.seconds['far'])} times"
    value = 1e3 * timings.median("far")
    yield Figure("load_torch", case, value, "ms", at_most(_MAX_RESUME_MS), statistic, detail, timings.seconds)
    nbytes = len(json.dumps(state))
    yield Figure("load_torch", "state as JSON", nbytes, "B", at_most(_MAX_STATE_NBYTES), "exact")


def _resumed(loader: Any, state: dict[str, Any]) -> Any:
    loader.load_state_dict(state)
    return iter(loader)


def _resume(loader: Any, state: dict[str, Any]) -> Callable[[], None]:
    return lambda: next(_resumed(loader, state))


# A device -----------------------------------------------------------------------------------------

_MAX_SLOWER = 1.01


def load_gpu(bench: Bench) -> Iterator[Figure]:
    """Overlap of loading and computing on a GPU, and bandwidth to it; the reason where there is none."""
    if find_spec("torch") is None:
        yield skipped("load_gpu", "all", "torch is not installed")
        return
    import torch

    if not torch.cuda.is_available():
        yield skipped("load_gpu", "all", f"torch {torch.__version__} sees no CUDA device")
        return
    from chunkstore.torch import Loader

    rows, name = bench.inputs.images, torch.cuda.get_device_name()
    warm([rows.container])
    with Loader(rows.container, _IMAGE_BATCH, shuffle=True, seed=1, device="cuda", drop_last=True) as loader:
        _drain(loader)
        yield _bandwidth_figure(rows, bench.rounds, loader, name)
        yield _overlap_figure(rows, bench.rounds, loader, name)


def _synchronized(run: Callable[[], object]) -> Callable[[], None]:
    import torch

    def both() -> None:
        run()
        torch.cuda.synchronize()

    return both


def _bandwidth_figure(rows: Rows, rounds: int, loader: Any, name: str) -> Figure:
    """An epoch with nothing to compute, against bare copies of one pinned buffer."""
    import torch

    pinned = torch.empty((_IMAGE_BATCH, *rows.shape), dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(pinned, device="cuda")

    def copies() -> None:
        for _ in range(len(loader)):
            target.copy_(pinned, non_blocking=True)

    cases = [Case("Loader", _synchronized(lambda: _drain(loader))), Case("pinned copy", _synchronized(copies))]
    timings = interleave(cases, rounds)
    work = {"GB/s": len(loader) * pinned.nbytes / 1e9}
    return ratio_figure("load_gpu", f"{rows.label}, {name}", timings, ("Loader", "pinned copy"), work=work)


def _overlap_figure(rows: Rows, rounds: int, loader: Any, name: str) -> Figure:
    """T_both over T_compute, where computing takes about twice as long as loading.

    Both begin with the first batch at hand, as the stall on a CPU does: these epochs are short, and nothing can hide
    what comes before the first step. Its time is in the detail.
    """
    import torch

    load = min(timed(_synchronized(lambda: _drain(loader))) for _ in range(3))
    # Of norm about 1, so that powers of it stay finite: a GPU that multiplies NaN is faster.
    weights = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16) / 64
    fixed = torch.randint(0, 255, (_IMAGE_BATCH, *rows.shape), device="cuda", dtype=torch.uint8)
    started: list[Iterator[Any]] = []
    first_seconds: list[float] = []

    def begin() -> None:
        batches = iter(loader)
        first_seconds.append(timed(_synchronized(lambda: next(batches))))
        started.append(batches)

    def step(batch: Any, repeats: int) -> None:
        found = weights + batch.flatten()[: weights.shape[1]].to(weights.dtype) / 4096
        for _ in range(repeats):
            found = weights @ found

    def compute(repeats: int) -> None:
        for _ in range(len(loader) - 1):
            step(fixed, repeats)

    def both(repeats: int) -> None:
        for batch in started.pop():
            step(batch["data"], repeats)

    compute(8)
    once = timed(_synchronized(lambda: compute(64))) / 64
    repeats = max(1, round(2 * load / once))
    cases = [Case("both", _synchronized(lambda: both(repeats)), begin)]
    timings = interleave([*cases, Case("compute", _synchronized(lambda: compute(repeats)))], rounds)
    seconds = {case: timings.median(case) for case in ("both", "compute")}
    hidden = (seconds["compute"] + load - seconds["both"]) / min(seconds["compute"], load)
    detail = {"T_load, s": load, "T_compute, s": seconds["compute"], "T_both, s": seconds["both"], "hidden": hidden}
    detail["first batch, ms"] = 1e3 * float(np.median(first_seconds))
    case, statistic = f"{rows.label}, {name}, T_both over T_compute", f"median of {rounds} interleaved rounds"
    value = seconds["both"] / seconds["compute"]
    return Figure("load_gpu", case, value, "x", at_most(_MAX_SLOWER), statistic, detail, timings.seconds)
