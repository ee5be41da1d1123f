"""The order of the samples as a tf.data pipeline of ids (spec/order-1.md).

    epochs -> groups of steps -> positions -> ids of a group -> proven -> ids of a batch

Memory does not depend on the number of samples, and the state of an iterator is where it stands in these ranges.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import tensorflow as tf

from chunkstore._loading.order import Order
from chunkstore._tf.graph import Host, ahead, as_written

_GROUP_IDS: Final = 8192  # per call of Python, which costs as much as some hundred ids

Admit = Callable[[Any], Any]


class Groups(NamedTuple):
    """How many steps are treated in one go.

    Attributes:
        ordered: whose ids are computed at once.
        admitted: that are proven and hinted at at once; at most `ordered`.
    """

    ordered: int
    admitted: int


def groups_of(batch_size: int, sample_nbytes: int, most_nbytes: int) -> Groups:
    """Groups for batches of samples of this size: the first batch waits until `most_nbytes` are proven."""
    ordered = max(1, _GROUP_IDS // batch_size)
    return Groups(ordered, max(1, min(ordered, most_nbytes // max(1, sample_nbytes * batch_size))))


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


def batches_of_ids(order: Order, *, host: Host, epochs: EpochRange, groups: Groups, admit: Admit) -> Any:
    """A dataset of (ids, num, admitted): the batch is `ids[:num]`; ids int64 of shape (order.batch_size,).

    Args:
        host: of `order` and `epochs`.
        admit: called in the graph with the ids of some steps, shape (n,); gives a bool.
    """
    batches = _groups_of_batches(order, host, epochs, groups.ordered)
    if groups.admitted < groups.ordered:
        batches = batches.unbatch().batch(groups.admitted)

    @as_written
    def admitted(ids: Any, num: Any) -> tuple[Any, Any, Any]:
        return ids, num, tf.repeat(admit(tf.reshape(ids, [-1])), tf.shape(ids)[0])

    # The next group is ordered, hinted at and proven while this one is gathered.
    return ahead(batches, admitted, 1).unbatch()


def pieces_of_ids(order: Order, *, host: Host, epochs: EpochRange, most: int, admit: Admit) -> Any:
    """A dataset of (ids, num, admitted) for an order of batches of 1: some `most` samples in each element."""
    assert order.batch_size == 1

    @as_written
    def flat(ids: Any, _: Any) -> Any:
        return tf.reshape(ids, [-1])

    @as_written
    def admitted(ids: Any) -> tuple[Any, Any, Any]:
        return ids, tf.size(ids, tf.int64), admit(ids)

    pieces = _groups_of_batches(order, host, epochs, _GROUP_IDS).map(flat).unbatch().batch(most)
    return ahead(pieces, admitted, 1)


def _groups_of_batches(order: Order, host: Host, epochs: EpochRange, group: int) -> Any:
    """A dataset of (ids, num): (G, B) and (G,), int64; G is `group` or what is left of an epoch."""
    num_batches, num_whole = order.num_batches(), order.num_samples // order.step_size
    per_epoch = -(-num_batches // group)
    # Of the last step, if it is not whole; its batch is filled up with what comes next, to be cut off.
    first, stop = order.batch_range(num_whole) if num_batches > num_whole else (0, 0)
    within = tf.range(order.batch_size, dtype=tf.int64)

    @as_written
    def of_group(number: Any) -> tuple[Any, Any]:
        epoch, begin = number // per_epoch, number % per_epoch * group
        steps = tf.range(begin, tf.minimum(begin + group, num_batches))
        whole = steps < num_whole
        starts = tf.where(whole, steps * order.step_size + order.rank * order.batch_size, first)
        positions = (starts[:, tf.newaxis] + within) % order.num_samples
        ids = _ids_of(order, host, epoch, tf.reshape(positions, [-1]))
        num = tf.where(whole, tf.constant(order.batch_size, tf.int64), tf.constant(stop - first, tf.int64))
        return tf.reshape(ids, [-1, order.batch_size]), num

    return epochs.groups(host, per_epoch).map(of_group)


def _ids_of(order: Order, host: Host, epoch: Any, positions: Any) -> Any:
    """The ids at positions of an epoch; both int64 of shape (n,)."""
    if order.shuffle is False:
        return positions
    # NumPy, once for many batches: as ops, the rounds of the permutation make each iterator start later.
    return tf.ensure_shape(host.call(order.ids, [positions, epoch], tf.int64), [None])
