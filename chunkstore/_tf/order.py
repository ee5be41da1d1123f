"""The order of the samples as a tf.data pipeline of ids (spec/order-1.md), computed in the graph.

    epochs -> groups of steps -> positions -> ids of a group -> proven -> ids of a batch

Memory does not depend on the number of samples, and the state of an iterator is where it stands in these ranges.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

import numpy as np
import tensorflow as tf

from chunkstore._loading.order import Order
from chunkstore._loading.permutation import PURPOSE_FULL, Permutation
from chunkstore._tf.graph import Host, ahead, as_written

_GROUP_IDS: Final = 8192  # ids per pass of the rounds, whose some sixty ops cost more than the ids of one batch
_GOLDEN: Final = 0x9E37_79B9_7F4A_7C15

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


class Epochs:
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


def batches_of_ids(order: Order, *, host: Host, epochs: Epochs, groups: Groups, admit: Admit) -> Any:
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


def pieces_of_ids(order: Order, *, host: Host, epochs: Epochs, most: int, admit: Admit) -> Any:
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


def _groups_of_batches(order: Order, host: Host, epochs: Epochs, group: int) -> Any:
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
    if order.shuffle == "full":
        return permute(positions, order.num_samples, tf.unstack(round_keys(order.seed, epoch)))

    # Windows differ in size and key, and a table of blocks may be large: NumPy, once for many batches.
    return tf.ensure_shape(host.call(order.ids, [positions, epoch], tf.int64), [None])


def permute(x: Any, num_items: int, keys: Any) -> Any:
    """`perm` of spec 3 on a tensor.

    Args:
        x: int64, shape (n,), in [0, num_items).
        keys: six scalars, int64, in [0, 2^32).
    """
    permutation = Permutation(num_items, seed=0)
    permutation.keys = cast("tuple[int, ...]", tuple(keys))  # those of an epoch are known in the graph only

    def rounds(y: Any) -> Any:
        return permutation.forward(y, _shift_right)

    y = rounds(x)
    if permutation.domain == num_items:
        return y
    (y,) = tf.while_loop(lambda y: tf.reduce_any(y >= num_items), lambda y: (_walk(y, num_items, rounds),), (y,))
    return y


def _walk(y: Any, num_items: int, rounds: Callable[[Any], Any]) -> Any:
    """Apply the rounds again to those that are not below num_items, which are few."""
    walking = tf.where(y >= num_items)
    return tf.tensor_scatter_nd_update(y, walking, rounds(tf.gather_nd(y, walking)))


def _shift_right(x: Any, count: int) -> Any:
    return tf.bitwise.right_shift(x, tf.constant(count, tf.int64))


def round_keys(seed: int, epoch: Any) -> Any:
    """Six round keys of a full shuffle (spec 2); int64, shape (6,).

    Args:
        epoch: int64 scalar tensor, 0 or more.
    """
    h = tf.constant(0, tf.uint64)
    for word in (_uint64(seed), tf.cast(epoch, tf.uint64), _uint64(PURPOSE_FULL), _uint64(0)):
        h = _splitmix64(tf.bitwise.bitwise_xor(h, word))
    keys = []
    for i in range(3):
        word = _splitmix64(h + _uint64(i * _GOLDEN))
        keys += [tf.bitwise.bitwise_and(word, _uint64(0xFFFF_FFFF)), _shift_u64(word, 32)]
    return tf.cast(tf.stack(keys), tf.int64)


def _splitmix64(z: Any) -> Any:
    z = z + _uint64(_GOLDEN)
    z = tf.bitwise.bitwise_xor(z, _shift_u64(z, 30)) * _uint64(0xBF58_476D_1CE4_E5B9)
    z = tf.bitwise.bitwise_xor(z, _shift_u64(z, 27)) * _uint64(0x94D0_49BB_1331_11EB)
    return tf.bitwise.bitwise_xor(z, _shift_u64(z, 31))


def _uint64(value: int) -> Any:
    return tf.constant(np.uint64(value & 0xFFFF_FFFF_FFFF_FFFF))


def _shift_u64(z: Any, count: int) -> Any:
    return tf.bitwise.right_shift(z, _uint64(count))
