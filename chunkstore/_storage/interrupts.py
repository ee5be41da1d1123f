"""Signals that end a program, held back while it is between two states."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Final

ENDING: Final = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if name in signal.Signals.__members__)
"""What else than Ctrl-C ends a program that handles it."""


@contextlib.contextmanager
def signals_later() -> Iterator[None]:
    """What comes meanwhile is handled afterwards. In other threads than the main one nothing ever comes.

    Costs about 10 microseconds. Handlers that were not set from Python stay as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    ours = [number for number in (signal.SIGINT, *ENDING) if signal.getsignal(number) is not None]
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])
