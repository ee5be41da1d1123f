"""Where something that goes through an order stands: epochs that follow each other, what was delivered, its state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from chunkstore._loading.order import Cursor, Order
from chunkstore._loading.permutation import MASK64, IntArray, checked_int


class Epochs:
    """The position of one iterable in its order, counted in batches that were really delivered.

    Each `begin` starts an epoch: first the one that was set or loaded (epoch 0 by default), then the next one each
    time, also where the last was left half-way; only an epoch of which nothing was delivered starts again.

    Not thread-safe: it belongs to the thread that takes the batches.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self._epoch = 0
        self._start = 0  # samples of the epoch that were seen before the current iteration
        self._num_delivered = 0  # batches of the current iteration

    @property
    def epoch(self) -> int:
        """The epoch that runs, or the one that comes next where none runs."""
        return self._cursor().epoch

    def begin(self) -> Iterator[IntArray]:
        """Start the next iteration and return its batches of sample ids."""
        if self._num_delivered:
            done = self._num_delivered >= self.order.num_batches(self._start)
            self._move(Cursor(self._cursor().epoch if done else self._epoch + 1, 0))
        return self.order.batches(self._epoch, self._start)

    def deliver(self) -> None:
        """Count one batch."""
        self._num_delivered += 1

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the next to begin, from its first sample.

        A position inside this very epoch that `load_state` has set stays: training loops call `set_epoch` before each
        epoch, also before the one in which they resume.

        Raises:
            TypeError, ValueError: not an integer from 0 to 2^64 - 1.
        """
        epoch = checked_int("epoch", epoch, 0, MASK64)
        if self._num_delivered or epoch != self._epoch:
            self._move(Cursor(epoch, 0))

    def state(self, num_batches: int | None = None) -> dict[str, Any]:
        """A JSON-able dict of under 1 kB: the next batch to deliver.

        Args:
            num_batches: batches of the current iteration that were used, where that is fewer than were delivered.
        """
        return self.order.state(self._cursor(num_batches))

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Make the next `begin` go on where the state was taken.

        Raises:
            StateError: it belongs to another dataset or order; nothing was changed.
        """
        self._move(self.order.load_state(state))

    def _cursor(self, num_batches: int | None = None) -> Cursor:
        used = self._num_delivered if num_batches is None else num_batches
        if num_batches is not None:
            checked_int("num_batches", num_batches, 0, self._num_delivered)
        return self.order.cursor(self._epoch, used, self._start)

    def _move(self, cursor: Cursor) -> None:
        self._epoch, self._start = cursor
        self._num_delivered = 0
