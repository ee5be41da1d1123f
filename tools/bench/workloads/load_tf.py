"""TensorFlow: `chunkstore.tf.dataset` on data in memory, against `from_generator` and a bare `tf.gather`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from tools.bench.bench import BATCH, Bench
from tools.bench.inputs import Rows
from tools.bench.measure import Case, Timings, interleave, timed
from tools.bench.pagecache import warm
from tools.bench.record import Figure, at_least, skipped
from tools.bench.workloads.load_torch import proven_reader

_IMAGE_BATCH = 64
_NUM_TIMED = 400  # batches a round: beside them, those that were made ahead before it began do not count
_NUM_GENERATED = 40  # one sample at a time it takes long enough
_MIN_OF_GATHER = 0.7

Positions = npt.NDArray[np.int64]


def load_tf(bench: Bench) -> Iterator[Figure]:
    """Shuffled samples, consumed by a loop in Python; samples a second of each way, whatever its number of samples.

    An iterator is started before its round. What starting costs, once an epoch, has a figure of its own: within a round
    it would be a matter of how many batches that has.
    """
    if find_spec("tensorflow") is None:
        yield skipped("load_tf", "all", "TensorFlow is not installed")
        return
    for rows, batch_size, bound in ((bench.inputs.rows_1k, BATCH, 50), (bench.inputs.images, _IMAGE_BATCH, 10)):
        warm([rows.npy, rows.container])
        ways = _ways(rows, batch_size)
        timings = interleave([way.case(name) for name, way in ways.items()], bench.rounds)
        rates = {name: way.num_batches * batch_size / timings.best(name) for name, way in ways.items()}
        goals = {"from_generator": at_least(bound), "from_generator, batches": None}
        goals |= {"tf.gather": at_least(_MIN_OF_GATHER), "tf.gather in tf.data": None}
        for base, goal in goals.items():
            yield _figure(rows, timings, rates, base, goal)
        starting = {"dataset": [timed(ways["dataset"].start) for _ in range(bench.rounds)]}
        statistic = f"best of {bench.rounds} rounds"
        case = f"{rows.label}, a new iterator and its first batch"
        yield Figure("load_tf", case, min(starting["dataset"]) * 1e3, "ms", None, statistic, {}, starting)


def _figure(rows: Rows, timings: Timings, rates: Mapping[str, float], base: str, goal: Any) -> Figure:
    detail = {f"{name} samples/s": rates[name] for name in ("dataset", base)}
    rounds = {name: timings.seconds[name] for name in ("dataset", base)}
    statistic = f"best of {len(rounds[base])} interleaved rounds"
    value = rates["dataset"] / rates[base]
    return Figure("load_tf", f"{rows.label}, dataset over {base}", value, "x", goal, statistic, detail, rounds)


class _Way:
    """Something that gives batches: an iterator of it is started, then timed.

    Args:
        make: gives an iterable of more than `num_batches` batches.
    """

    def __init__(self, make: Callable[[], Iterable[Any]], num_batches: int) -> None:
        self.num_batches = num_batches
        self._make = make
        self._batches: Iterator[Any] = iter(())

    def case(self, name: str) -> Case:
        """For `interleave`."""
        return Case(name, self._run, self.start)

    def start(self) -> None:
        """A new iterator, and its first batch."""
        self._batches = iter(self._make())
        next(self._batches)

    def _run(self) -> None:
        for _ in range(self.num_batches):
            next(self._batches)


def _ways(rows: Rows, batch_size: int) -> dict[str, _Way]:
    import tensorflow as tf

    from chunkstore.tf import dataset

    column = np.asarray(rows.memmap())
    reader = proven_reader(rows)
    options: dict[str, Any] = {"shuffle": True, "seed": 1, "drop_remainder": True}
    _check(dataset(reader, batch_size, **options), column)
    endless = dataset(reader, batch_size, repeat=True, **options)
    positions = np.random.default_rng(7).integers(0, rows.num, (_NUM_TIMED + 8, batch_size))
    few = positions[: _NUM_GENERATED + 8]
    tensor = tf.constant(column)
    return {
        "dataset": _Way(lambda: endless, _NUM_TIMED),
        "from_generator": _Way(lambda: _generated(column, few), _NUM_GENERATED),
        "from_generator, batches": _Way(lambda: _generated_batches(column, positions), _NUM_TIMED),
        "tf.gather": _Way(lambda: (tf.gather(tensor, each) for each in positions), _NUM_TIMED),
        "tf.gather in tf.data": _Way(lambda: _gathered(tensor, positions), _NUM_TIMED),
    }


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
