"""Signals that end a program, held back while it is between two states."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, Final

ENDING: Final = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if name in signal.Signals.__members__)
"""What else than Ctrl-C ends a program that handles it."""


@contextlib.contextmanager
def signals_later() -> Iterator[None]:
    """What comes meanwhile is handled afterwards. In other threads than the main one nothing ever comes.

    Costs about 10 microseconds. Handlers that were not set from Python stay as they are. If the block fails, what it
    raised counts more than a KeyboardInterrupt.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before: dict[int, Any] = {
        n: handler for n in (*ENDING, signal.SIGINT) if (handler := signal.getsignal(n)) is not None
    }
    over = False

    def handle(number: int, frame: FrameType | None) -> None:
        if not over:
            came.append(number)
        elif callable(handler := before[number]):  # one that was put back already raised before this one was
            handler(number, frame)
        else:
            signal.signal(number, handler)
            signal.raise_signal(number)

    try:
        for number in before:
            signal.signal(number, handle)
        yield
    except BaseException:
        over = True
        with contextlib.suppress(KeyboardInterrupt):
            _go_on(before, came)
        raise
    over = True
    _go_on(before, came)


def _go_on(before: Mapping[int, Any], came: Sequence[int]) -> None:
    """Put the handlers back, then let each signal that came reach its own; Ctrl-C last, for its handler raises."""
    for number, handler in before.items():
        signal.signal(number, handler)
    for one in sorted(set(came), key=lambda number: number == signal.SIGINT):
        signal.raise_signal(one)
