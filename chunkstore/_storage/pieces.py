"""Pieces of an object in memory: those under way, those that are kept, and which of them has a range."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

Offsets = NDArray[np.int64]


class Piece:
    """Bytes `[start, stop)` of an object, there or on their way.

    Attributes:
        owner: tells the object from others.
        parts: one for each request; a part of several has written its bytes into `memory`.
        users: how many readers need it now.
    """

    __slots__ = ("memory", "owner", "parts", "start", "stop", "users")

    def __init__(self, start: int, stop: int, memory: memoryview | None, owner: object = None) -> None:
        self.owner = owner
        self.start = start
        self.stop = stop
        self.memory = memory
        self.parts: list[Future[memoryview]] = []
        self.users = 0

    @property
    def nbytes(self) -> int:
        return self.stop - self.start

    def wait(self) -> None:
        """Wait for the bytes, and raise what went wrong."""
        for part in self.parts:
            found = part.result()
            if self.memory is None:
                self.memory = found
        self.parts = []

    def failed(self) -> bool:
        """Whether it is known that the bytes do not come."""
        return any(part.done() and (part.cancelled() or part.exception() is not None) for part in self.parts)

    def cancel(self) -> None:
        """Ask for no part that was not asked for yet."""
        for part in self.parts:
            part.cancel()

    def read(self, start: int, stop: int) -> memoryview:
        """Some of the bytes, which must be there."""
        memory = self.memory
        assert memory is not None
        return memory[start - self.start : stop - self.start]


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

    def find(self, start: int, stop: int) -> Piece | None:
        """The piece around one range."""
        place = self.places(np.array([start]), np.array([stop]))[0]
        return None if place < 0 else self.pieces[place]


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
        self._unused[piece] = None
        self._owned.setdefault(piece.owner, {})[piece] = None
        self._nbytes += piece.nbytes
        self._covers.pop(piece.owner, None)

    def touch(self, piece: Piece) -> None:
        """Note that a reader needs it."""
        if piece in self._owned.get(piece.owner, ()):
            self._unused.pop(piece, None)
            self._used.pop(piece, None)
            self._used[piece] = None

    def drop(self, piece: Piece) -> None:
        """Keep it no longer."""
        mine = self._owned.get(piece.owner, {})
        if piece not in mine:
            return
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
