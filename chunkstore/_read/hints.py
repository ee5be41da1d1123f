"""When data count as cold, so that a batch asks the system for its rows before it reads them."""

from __future__ import annotations

from typing import Final

from chunkstore._storage.source import cold_reads

_PROBE_EVERY: Final = 8
_SLOW: Final = 5  # times the usual: a row from the disk takes ten times as long and more
_SLOW_NANOSECONDS: Final = 200_000  # below it, a late timer or another process may be the reason


class Hints:
    """When to advise: hints cost more than a warm gather, and without them cold data come one by one.

    Data count as cold until a batch has not touched the disk. Then only every eighth batch is watched, for that costs a
    microsecond, and the clock is: a batch that takes far longer than others did makes the next one count as cold.
    Threads share this; a lost update costs one hint too many or too few.
    """

    __slots__ = ("_best", "_tick", "cold")

    def __init__(self) -> None:
        self.cold = True
        self._tick = 0
        self._best = 1e18  # nanoseconds a row

    def took(self, nanoseconds: int, num_rows: int) -> None:
        """After a batch that nobody watched."""
        each = nanoseconds / (num_rows or 1)
        if each > _SLOW * self._best and nanoseconds > _SLOW_NANOSECONDS:
            self.cold = True
        # It creeps up, so that what was fast once (rows in the processor's cache) is not the measure for ever.
        self._best = each if each < self._best else self._best * 1.01

    def begin(self) -> int:
        """Before a batch: what `end` needs, -1 if nobody watches."""
        if self.cold:
            return cold_reads()
        self._tick += 1
        return -1 if self._tick % _PROBE_EVERY else cold_reads()

    def end(self, before: int) -> None:
        """After a batch that is watched."""
        self.cold = cold_reads() != before
