"""Pieces of an object in memory: those under way, where they go, those that are kept, and which of them has a range."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from chunkstore._storage.requests import Request

Offsets = NDArray[np.int64]
# From here on NumPy copies, which lets other threads run: to get a turn again takes longer than a smaller copy.
_LARGE_NBYTES: Final = 256 << 10


class Piece:
    """Bytes `[start, stop)` of an object, there or on their way.

    Attributes:
        owner: tells the object from others.
        memory: the bytes; of a piece of several parts there from the start, and filled by each.
        parts: the requests that bring it; each is done when its bytes are in `memory`.
        kept: whether `Kept` has it.
        users: how many readers need it now.
    """

    __slots__ = ("kept", "memory", "owner", "parts", "start", "stop", "users")

    def __init__(self, start: int, stop: int, memory: memoryview | None, owner: object = None) -> None:
        self.owner = owner
        self.start = start
        self.stop = stop
        self.memory = memory
        self.parts: list[Request] = []
        self.users = 0
        self.kept = False

    @property
    def nbytes(self) -> int:
        return self.stop - self.start

    def wait(self) -> None:
        """Wait for the bytes, and raise what went wrong."""
        for part in self.parts:
            part.wait()
        self.parts = []

    def failed(self) -> bool:
        """Whether it is known that the bytes do not come."""
        return any(part.error is not None for part in self.parts)

    def cancel(self) -> None:
        """Ask for no part that was not asked for yet."""
        for part in self.parts:
            part.cancel()

    def read(self, start: int, stop: int) -> memoryview:
        """Some of the bytes, which must be there."""
        memory = self.memory
        assert memory is not None
        return memory[start - self.start : stop - self.start]


class Delivery:
    """Ranges of one piece that one reader wants in places of its own, copied once it is there. Safe from many threads.

    The thread that made the request copies them, while they are in the cache of the processor; the reader does it for
    a piece that was there before.

    Args:
        last: whether nobody needs the piece afterwards, so that its memory is let go at once, for the next one.
    """

    __slots__ = ("_last", "_lock", "_piece", "_ranges")

    def __init__(self, piece: Piece, *, last: bool) -> None:
        self._piece = piece
        self._last = last
        self._lock = threading.Lock()
        self._ranges: list[tuple[int, int, memoryview]] = []

    def add(self, start: int, stop: int, target: memoryview) -> None:
        """One more range."""
        self._ranges.append((start, stop, target))

    def make(self) -> None:
        """Copy what was not copied yet; the bytes must be there."""
        with self._lock:
            for start, stop, target in self._ranges:
                copy_bytes(self._piece.read(start, stop), target)
            self._ranges.clear()
            if self._last:
                self._piece.memory = None

    def cancel(self) -> None:
        """Copy nothing from now on: the places belong to their reader again."""
        with self._lock:
            self._ranges.clear()


def copy_bytes(source: memoryview, target: memoryview) -> None:
    """Copy all of the bytes; other threads run meanwhile if there are many."""
    if len(source) < _LARGE_NBYTES:
        target[:] = source
    else:
        np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))


class Cover:
    """Some pieces, looked up by ranges: each range that has a piece around it is found."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self.pieces = sorted(pieces, key=_start)
        self._starts = np.array([piece.start for piece in self.pieces], np.int64)
        self._stops = np.array([piece.stop for piece in self.pieces], np.int64)
        # No piece up to this one reaches farther.
        self._reach = np.maximum.accumulate(self._stops) if self.pieces else self._stops

    def places(self, starts: Offsets, stops: Offsets) -> list[int]:
        """For each range a place in `pieces`, -1 where none has it."""
        if not self.pieces:
            return [-1] * len(starts)
        last = np.searchsorted(self._starts, starts, "right") - 1
        found = np.where((last >= 0) & (self._stops[last] >= stops), last, -1)
        for place in np.flatnonzero((found < 0) & (last >= 0) & (self._reach[last] >= stops)).tolist():
            found[place] = self._look_back(int(last[place]), int(stops[place]))
        return list(map(int, found))

    def _look_back(self, last: int, stop: int) -> int:
        while last >= 0 and int(self._reach[last]) >= stop:
            if int(self._stops[last]) >= stop:
                return last
            last -= 1
        return -1


class Kept:
    """The pieces that the sources of one data set keep: bounded; those that were used go first, then the oldest.

    Not safe from threads: it comes with a lock.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used: dict[Piece, None] = {}  # in the order of use
        self._unused: dict[Piece, None] = {}  # in the order of the requests
        self._nbytes = 0
        self._owned: dict[object, dict[Piece, None]] = {}
        self._covers: dict[object, Cover] = {}

    def cover(self, owner: object) -> Cover:
        """All of one object, for lookups."""
        found = self._covers.get(owner)
        if found is None:
            found = self._covers[owner] = Cover(self._owned.get(owner, ()))
        return found

    def add(self, piece: Piece) -> None:
        """Keep one more; nobody may need those any more that go for it."""
        # In this order `drop` can take it back where memory runs out in between.
        self._owned.setdefault(piece.owner, {})[piece] = None
        self._covers.pop(piece.owner, None)
        piece.kept = True
        self._nbytes += piece.nbytes
        self._unused[piece] = None

    def touch(self, piece: Piece) -> None:
        """Note that a reader needs it."""
        if piece.kept:
            self._unused.pop(piece, None)
            self._used.pop(piece, None)
            self._used[piece] = None

    def drop(self, piece: Piece) -> None:
        """Keep it no longer."""
        if not piece.kept:
            return
        piece.kept = False
        mine = self._owned[piece.owner]
        del mine[piece]
        if not mine:
            del self._owned[piece.owner]
        self._used.pop(piece, None)
        self._unused.pop(piece, None)
        self._nbytes -= piece.nbytes
        self._covers.pop(piece.owner, None)

    def shrink(self) -> None:
        """Let go what is beyond the limit."""
        while self._nbytes > self._limit:
            piece = next(iter(self._used or self._unused))
            self.drop(piece)
            if not piece.users:
                piece.cancel()

    def clear(self, owner: object) -> None:
        """Let go of all of one object."""
        for piece in list(self._owned.get(owner, ())):
            self.drop(piece)
            piece.cancel()
        self._covers.pop(owner, None)


def _start(piece: Piece) -> int:
    return piece.start
