"""Signals that end a program, held back while it is between two states."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, Final

ENDING: Final = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if name in signal.Signals.__members__)
"""What else than Ctrl-C ends a program that handles it."""
_ALL: Final = (signal.SIGINT, *ENDING)


@contextlib.contextmanager
def signals_later() -> Iterator[None]:
    """What comes meanwhile is handled afterwards, each signal once. In other threads than the main one nothing comes.

    Costs some tens of microseconds. Handlers that were not set from Python stay as they are. If the block fails, what
    it raised counts more than a KeyboardInterrupt.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {n: handler for n in _ALL if (handler := signal.getsignal(n)) is not None}
    came: dict[int, None] = {}
    over = False
    failed: BaseException | None = None

    def handle(number: int, frame: FrameType | None) -> None:
        if not over:
            came[number] = None
        else:  # what one that was put back already raised, or an interrupt, came before this one was put back
            signal.signal(number, before[number])
            signal.raise_signal(number)

    try:
        # All of the stack runs, whatever a handler raises: none stays away, and none is forgotten.
        with contextlib.ExitStack() as stack:
            stack.callback(_raise_all, came)
            for number, handler in before.items():
                stack.callback(signal.signal, number, handler)
                signal.signal(number, handle)
            try:
                yield
            except BaseException as error:
                failed = error
                raise
            finally:
                over = True
    except KeyboardInterrupt:
        if failed is None:
            raise
        raise failed from None


@contextlib.contextmanager
def all_done(what: str) -> Iterator[None]:
    """As `signals_later`, for a block that completes what was asked for: an interrupt that came says so.

    Args:
        what: is true when the block has ended, such as "x.cks is complete".
    """
    done = False
    try:
        with signals_later():
            yield
            done = True
    except KeyboardInterrupt:
        if not done:  # it came before signals waited
            raise
        raise KeyboardInterrupt(f"interrupted when all was done: {what}") from None


def _raise_all(numbers: Iterable[int]) -> None:
    with contextlib.ExitStack() as stack:
        for number in reversed(list(numbers)):
            stack.callback(signal.raise_signal, number)
