"""TensorFlow: `chunkstore.tf.dataset` on data in memory, against `from_generator` and a bare `tf.gather`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from tools.bench.bench import BATCH, Bench
from tools.bench.inputs import Rows
from tools.bench.measure import Case, Timings, interleave
from tools.bench.pagecache import warm
from tools.bench.record import Figure, at_least, skipped
from tools.bench.workloads.load_torch import proven_reader

_IMAGE_BATCH = 64
_NUM_GENERATED = {BATCH: 40, _IMAGE_BATCH: 10}  # batches: one by one it takes long enough
_MIN_OF_GATHER = 0.7

Positions = npt.NDArray[np.int64]


def load_tf(bench: Bench) -> Iterator[Figure]:
    """Shuffled epochs, consumed by a loop in Python; samples a second of each way, whatever its number of samples."""
    if find_spec("tensorflow") is None:
        yield skipped("load_tf", "all", "TensorFlow is not installed")
        return
    for rows, batch_size, bound in ((bench.inputs.rows_1k, BATCH, 50), (bench.inputs.images, _IMAGE_BATCH, 10)):
        warm([rows.npy, rows.container])
        ways = _ways(rows, batch_size)
        timings = interleave([Case(name, run) for name, (run, _) in ways.items()], bench.rounds)
        rates = {name: num / timings.best(name) for name, (_, num) in ways.items()}
        goals = {"from_generator": at_least(bound), "from_generator, batches": None}
        goals |= {"tf.gather": at_least(_MIN_OF_GATHER), "tf.gather in tf.data": None}
        for base, goal in goals.items():
            yield _figure(rows, timings, rates, base, goal)


def _figure(rows: Rows, timings: Timings, rates: Mapping[str, float], base: str, goal: Any) -> Figure:
    detail = {f"{name} samples/s": rates[name] for name in ("dataset", base)}
    rounds = {name: timings.seconds[name] for name in ("dataset", base)}
    statistic = f"best of {len(rounds[base])} interleaved rounds"
    value = rates["dataset"] / rates[base]
    return Figure("load_tf", f"{rows.label}, dataset over {base}", value, "x", goal, statistic, detail, rounds)


def _ways(rows: Rows, batch_size: int) -> dict[str, tuple[Callable[[], None], int]]:
    """What to run, and how many samples it reads."""
    import tensorflow as tf

    from chunkstore.tf import dataset

    column = np.asarray(rows.memmap())
    num_batches = rows.num // batch_size
    positions = np.random.default_rng(7).permutation(rows.num)[: num_batches * batch_size]
    positions = positions.reshape(num_batches, batch_size)
    whole = dataset(proven_reader(rows), batch_size, shuffle=True, seed=1, drop_remainder=True)
    _check(whole, column)
    tensor = tf.constant(column)
    few = positions[: _NUM_GENERATED[batch_size]]
    num = positions.size
    return {
        "dataset": (lambda: _drain(whole), num),
        "from_generator": (lambda: _drain(_generated(column, few)), few.size),
        "from_generator, batches": (lambda: _drain(_generated_batches(column, positions)), num),
        "tf.gather": (lambda: _gather(tensor, positions), num),
        "tf.gather in tf.data": (lambda: _drain(_gathered(tensor, positions)), num),
    }


def _drain(batches: Any) -> None:
    for _ in batches:
        pass


def _generated(column: npt.NDArray[np.uint8], positions: Positions) -> Any:
    """One sample a time: what the manuals show."""
    import tensorflow as tf

    signature = {"data": tf.TensorSpec(column.shape[1:], tf.uint8)}

    def samples() -> Iterator[Any]:
        for position in positions.reshape(-1):
            yield {"data": column[position]}

    return tf.data.Dataset.from_generator(samples, output_signature=signature).batch(positions.shape[1]).prefetch(2)


def _generated_batches(column: npt.NDArray[np.uint8], positions: Positions) -> Any:
    """The better way to write it by hand."""
    import tensorflow as tf

    signature = {"data": tf.TensorSpec((None, *column.shape[1:]), tf.uint8)}

    def batches() -> Iterator[Any]:
        for each in positions:
            yield {"data": column[each]}

    return tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(2)


def _gather(tensor: Any, positions: Positions) -> None:
    import tensorflow as tf

    for each in positions:
        tf.gather(tensor, each)


def _gathered(tensor: Any, positions: Positions) -> Any:
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(positions).map(lambda ids: {"data": tf.gather(tensor, ids)}).prefetch(2)


def _check(batches: Any, column: npt.NDArray[np.uint8]) -> None:
    """One epoch: each row is what its first eight bytes say, and none comes twice."""
    found = []
    for number, batch in enumerate(batches):
        data = batch["data"].numpy().reshape(len(batch["data"]), -1)
        places = data[:, :8].copy().view("<u8")[:, 0]
        if number % 50 == 0 and not np.array_equal(data, column[places].reshape(data.shape)):
            raise RuntimeError(f"batch {number} has other rows than the file")
        found.append(places)
    if len(np.unique(np.concatenate(found))) != sum(map(len, found)):
        raise RuntimeError("a sample came twice in one epoch")
