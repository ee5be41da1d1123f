"""How far a conversion or an export is: told to a function, or shown as a bar."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from tqdm import tqdm

Tell = Callable[[int, int, int, int], None]
"""(done_samples, total_samples, done_bytes, total_bytes)"""
_SECONDS: Final = 0.05
_DELAY_SECONDS: Final = 0.3


class Progress:
    """Adds up what was done, and tells it now and then. Not thread-safe.

    Args:
        tell: a function; True for a bar on stderr, silent where that is no terminal; None or False for nothing.
        what: word in front of the bar.
        num_samples, nbytes: of the whole.
    Samples are estimated from the bytes: a shard is written field by field.
    """

    def __init__(self, tell: Tell | bool | None, what: str, num_samples: int, nbytes: int) -> None:
        self._tell = tell if callable(tell) else None
        self._num_samples, self._nbytes = num_samples, nbytes
        self._done = 0
        self._next = 0.0
        self._bar = open_bar(what, total=num_samples, unit=" samples") if tell is True else None

    def advance(self, nbytes: int) -> None:
        """So many bytes more are done."""
        self._done += nbytes
        if self._tell is None and self._bar is None:
            return
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _SECONDS
            self._show(self._num_samples * self._done // max(self._nbytes, 1))

    def _show(self, samples: int) -> None:
        if self._tell is not None:
            self._tell(samples, self._num_samples, self._done, self._nbytes)
        if self._bar is not None:
            rate = self._bar.format_dict["elapsed"] or 1.0
            self._bar.set_postfix_str(f"{self._done / rate / 1e6:,.0f} MB/s", refresh=False)
            self._bar.update(samples - self._bar.n)

    def finish(self) -> None:
        """Everything is done."""
        self._done = self._nbytes
        self._show(self._num_samples)

    def close(self) -> None:
        """Take the bar away. Idempotent."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_bar(description: str, **options: Any) -> tqdm[Any]:
    """A bar that shows up when there is something to wait for, and goes when the result comes."""
    from tqdm import tqdm  # 20 ms, and most conversions in a program show no bar

    return tqdm(desc=description, unit_scale=True, disable=None, leave=False, delay=_DELAY_SECONDS, **options)
