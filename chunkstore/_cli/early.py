"""Ctrl-C while a command is still being imported. Imports next to nothing itself."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
SAID = "interrupted: nothing was changed. Run the same again: it starts over"


def leave_at_once() -> None:
    """Have Ctrl-C end the process at once, with a message: an import that it breaks off may end in any error.

    Not where somebody ignores it (`nohup`).
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def clean_up_first() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt again: the command has begun."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> None:
    if sys.stderr is not None:
        sys.stderr.write(f"\n{SAID}\n")
        sys.stderr.flush()
    os._exit(INTERRUPTED)
