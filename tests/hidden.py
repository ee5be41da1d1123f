"""For workers of executors: a file system that hides a directory, as on another machine."""

from __future__ import annotations

import ctypes
import os

_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000
_PRIVATE, _RECURSIVE = 1 << 18, 1 << 14


def hide(directory: str) -> None:
    """From now on this process sees an empty directory there; OSError where the system does not allow it."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(result: int) -> None:
        if result:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    call(libc.unshare(_NEW_MOUNTS if os.geteuid() == 0 else _NEW_USER | _NEW_MOUNTS))
    call(libc.mount(b"none", b"/", None, _PRIVATE | _RECURSIVE, None))
    call(libc.mount(b"none", os.fsencode(directory), b"tmpfs", 0, None))


def can_hide(directory: str) -> bool:
    """Whether this process could `hide`; run it in one that is not needed afterwards."""
    try:
        hide(directory)
    except (OSError, AttributeError):
        return False
    return os.listdir(directory) == []


def elsewhere(directory: str, working: str) -> None:
    """Initializer of a worker: the directory is hidden, and it works in another one."""
    hide(directory)
    os.chdir(working)
