"""The order of the samples as a tf.data pipeline of ids (spec/order-1.md).

    epochs -> groups of steps -> ids of a group, admitted -> ids of a batch

Memory does not depend on the number of samples, and the state of an iterator is where it stands in these ranges.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from chunkstore._loading.order import Order
from chunkstore._tf.graph import Host, ahead, as_written


class EpochRange:
    """Which epochs an iterator goes through.

    Args:
        first: of the first iterator, 0 or more.
        num: how many, 0 for no end.
        advance: whether each new iterator goes on where the one before was to end.
    """

    def __init__(self, first: int, num: int, advance: bool) -> None:
        self.num = num
        self._first = first
        self._step = max(1, num) if advance else 0
        self._iterations = itertools.count()

    def groups(self, host: Host, per_epoch: int) -> Any:
        """A dataset of `epoch * per_epoch + number`, for each number in `[0, per_epoch)` of each epoch; int64."""
        if not per_epoch:
            return tf.data.Dataset.range(0)
        most = tf.int64.max // per_epoch

        @as_written
        def begin(zero: Any) -> Any:
            return tf.ensure_shape(host.call(self._begin, [zero], tf.int64), [])

        @as_written
        def numbers(first: Any) -> Any:
            stop = first + self.num if self.num else most
            return tf.data.Dataset.range(first * per_epoch, stop * per_epoch)

        # The state of an iterator has where it began: only an iterator that begins asks for it. And there is no map
        # over epochs: TensorFlow would set up its functions anew for each, which takes 20 ms.
        return tf.data.Dataset.range(1).map(begin).flat_map(numbers)

    def _begin(self, _: Any) -> np.int64:
        return np.int64(self._first + next(self._iterations) * self._step)


class Groups:
    """The batches of an order as positions of a reader, some at a time: a call of NumPy costs as much as some hundred.

    Args:
        positions: what the ids of the order count in, if that is a selection.
        num: batches a group; fewer at the end of an epoch.
        admit: called with all positions of a group, int64 of shape (n,); what it says goes with each batch.
    """

    def __init__(
        self,
        order: Order,
        positions: NDArray[np.int64] | None,
        epochs: EpochRange,
        num: int,
        admit: Callable[[NDArray[np.int64]], np.bool_],
    ) -> None:
        self._order = order
        self._positions = positions
        self._epochs = epochs
        self._num = num
        self._per_epoch = -(-order.num_batches() // num)
        self._admit = admit
        self._width = order.batch_size if order.pad == "full" else min(order.batch_size, order.num_samples)

    def dataset(self, host: Host) -> Any:
        """A dataset of (ids, num, admitted), of shapes (G, largest batch), (G,), (G,): a batch is `ids[i, :num[i]]`.

        The next group is ordered and admitted while this one is used.

        Args:
            host: of this object.
        """

        @as_written
        def group(number: Any) -> tuple[Any, Any, Any]:
            ids, num, admitted = host.call(self._group, [number], [tf.int64, tf.int64, tf.bool])
            ids.set_shape((None, self._width))
            num.set_shape([None])
            admitted.set_shape([None])
            return ids, num, admitted

        return ahead(self._epochs.groups(host, self._per_epoch), group, 1)

    def _group(self, number: np.int64) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        epoch, place = divmod(int(number), self._per_epoch)
        batches = list(self._order.batches(epoch, place * self._num * self._order.step_size, self._num))
        ids = np.concatenate(batches)
        if self._positions is not None:
            ids = self._positions[ids]
        num = np.array([len(batch) for batch in batches])
        # Only the last can be shorter: it is filled up with anything.
        filled = np.resize(ids, (len(batches), self._width))
        return filled, num, np.full(len(batches), self._admit(ids))
