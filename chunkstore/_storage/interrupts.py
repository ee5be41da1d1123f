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
    """What comes meanwhile is handled afterwards, each signal once. In other threads than the main one nothing comes.

    Costs some tens of microseconds. Handlers that were not set from Python stay as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: dict[int, None] = {}
    # All of the stack runs, whatever a handler raises: none stays away, and none is forgotten.
    with contextlib.ExitStack() as stack:
        stack.callback(_handle, came)
        for number in (signal.SIGINT, *ENDING):
            handler = signal.getsignal(number)
            if handler is not None:
                stack.callback(signal.signal, number, handler)
                signal.signal(number, lambda n, _: came.setdefault(n))
        yield


def _handle(came: dict[int, None]) -> None:
    with contextlib.ExitStack() as stack:
        for number in reversed(came):
            stack.callback(signal.raise_signal, number)
