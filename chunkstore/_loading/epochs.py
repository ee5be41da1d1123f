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
        self._running = Cursor(0, 0)  # where the current iteration began
        self._num_delivered = 0  # batches of the current iteration
        self._next: Cursor | None = self._running  # where `begin` begins, if that is not the epoch after this one

    @property
    def epoch(self) -> int:
        """The epoch that runs, or the one that comes next where none runs."""
        return self._cursor().epoch

    @property
    def num_left(self) -> int:
        """Batches of the current iteration that were not delivered yet."""
        return self.order.num_batches(self._running.samples_seen) - self._num_delivered

    def begin(self) -> Iterator[IntArray]:
        """Start the next iteration and return its batches of sample ids."""
        epoch, start = self._running = self._upcoming()
        self._num_delivered = 0
        # Of the rest of an epoch there may be no batch for this rank: without one to deliver, it would never go on.
        none_left = start and not self.order.num_batches(start)
        self._next = Cursor(epoch + 1, 0) if none_left else self._running
        return self.order.batches(epoch, start)

    def deliver(self) -> None:
        """Count one batch."""
        # Some training loops call `set_epoch` for the running epoch when its first batches are taken already.
        if self._next in (self._running, Cursor(self._running.epoch, 0)):
            self._next = None
        self._num_delivered += 1

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the next to begin, from its first sample.

        A position inside this very epoch that `load_state` has set stays: training loops call `set_epoch` before each
        epoch, also before the one in which they resume.

        Raises:
            TypeError, ValueError: not an integer from 0 to 2^64 - 1.
        """
        epoch = checked_int("epoch", epoch, 0, MASK64)
        upcoming = self._upcoming()
        self._next = upcoming if upcoming.epoch == epoch else Cursor(epoch, 0)

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
        self._next = self.order.load_state(state)

    def _upcoming(self) -> Cursor:
        return Cursor(self._running.epoch + 1, 0) if self._next is None else self._next

    def _cursor(self, num_batches: int | None = None) -> Cursor:
        if num_batches is None:
            num_batches = 0 if self._next is not None else self._num_delivered
        checked_int("num_batches", num_batches, 0, self._num_delivered)
        if self._next is not None and not num_batches:
            return self._next
        return self.order.cursor(self._running.epoch, num_batches, self._running.samples_seen)
