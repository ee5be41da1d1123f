"""Several containers as one data set against one container of the same rows, all in memory."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import chunkstore
from tools.bench.bench import BATCH, Bench, ratio_figure
from tools.bench.measure import Case, interleave
from tools.bench.pagecache import warm
from tools.bench.record import Figure, Goal, at_least
from tools.bench.workloads.batches import batch_each, check_equal

_COUNTS = (2, 16, 256)
_MAX_RATIO = 1.3
_NUM_BATCHES = {"1 KiB rows": 1000, "147 KiB images": 8, "16 KB ragged rows": 30}
_PIECE = 4096
# Many rounds, so that a quiet moment of a busy machine seldom serves one case alone. In 240 rounds of images beside
# bursts of copying, 6 to 16 % of the windows of 5 rounds fell below the goal where all say 0.9, and 1 to 5 % of 20.
_ROUNDS_EACH = 4
Positions = npt.NDArray[np.int64]


def many(bench: Bench) -> Iterator[Figure]:
    """`ds.batch` of 256 random rows from 2, 16 and 256 containers as one, warm, against the container they make up."""
    for rows in (bench.inputs.rows_1k, bench.inputs.images):
        yield from _against_one(bench, rows.label, rows.container)
    yield from _against_one(bench, "16 KB ragged rows", bench.inputs.ragged.container)


def split(container: Path, folder: Path, count: int) -> Path:
    """The samples of a container as `count` containers of uneven size, in a new folder."""
    folder.mkdir()
    with chunkstore.open(container, verify="off") as ds:
        cuts = np.linspace(0, len(ds), count + 1).astype(int)
        step = len(ds) // count
        cuts[1:-1] += np.random.default_rng(count).integers(-step // 8, step // 8 + 1, count - 1)
        for place, (start, stop) in enumerate(itertools.pairwise(cuts.tolist())):
            fields = list(ds.fields.values())
            with chunkstore.Writer(folder / f"{place}.cks", fields=fields, num_samples=int(stop - start)) as writer:
                for first in range(start, stop, _PIECE):
                    writer.add_batch(ds[first : min(first + _PIECE, stop)])
    return folder


def _against_one(bench: Bench, label: str, container: Path) -> Iterator[Figure]:
    folders = {count: bench.scratch / f"many_{count}" for count in _COUNTS}
    try:
        for count, folder in folders.items():
            split(container, folder, count)
        warm([container, *(path for folder in folders.values() for path in folder.iterdir())])
        yield from _measured(bench, label, container, folders)
    finally:
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)


def _measured(bench: Bench, label: str, container: Path, folders: dict[int, Path]) -> Iterator[Figure]:
    for verify in ("off", "once"):
        readers: dict[str, Any] = {"one": chunkstore.open(container, verify=verify)}  # type: ignore[arg-type]
        for count, folder in folders.items():
            readers[f"{count} containers"] = chunkstore.open(folder, verify=verify)  # type: ignore[arg-type]
        num = len(readers["one"])
        batches = list(np.random.default_rng(5).integers(0, num, (_NUM_BATCHES[label], BATCH)))
        cases = []
        for name, reader in readers.items():
            reader.column("data")  # all is proven
            cases.append(Case(name, _reading(reader, batches)))
            _check(reader, readers["one"], batches[0])
        for case in cases:
            case.run()
        timings = interleave(cases, _ROUNDS_EACH * bench.rounds)
        work = {"rows/s": float(BATCH * len(batches))}
        for name in list(readers)[1:]:
            case_name = f"{label}, verify={verify}"
            goal: Goal = at_least(1 / _MAX_RATIO)
            yield ratio_figure("many", case_name, timings, (name, "one"), goal, work=work)
        for reader in readers.values():
            reader.close()


def _reading(reader: Any, batches: Sequence[Positions]) -> Callable[[], None]:
    field = reader.fields["data"]
    if field.ragged:
        return lambda: [reader.batch(positions) for positions in batches] and None
    out = np.empty((BATCH, *field.item_shape), field.numpy_dtype)
    return lambda: batch_each(reader, batches, out)


def _check(reader: Any, one: Any, positions: Positions) -> None:
    got, wanted = reader.batch(positions)["data"], one.batch(positions)["data"]
    if isinstance(got, chunkstore.Ragged):
        check_equal(got.offsets, wanted.offsets, "many")
        got, wanted = got.values, wanted.values
    check_equal(got, wanted, "many")
