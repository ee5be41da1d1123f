"""A stand-in for Windows on Linux: modules of the package see `os`, `mmap`, ... with what Windows has, and no more.

`install()` comes before the first import of `chunkstore`. NumPy and the standard library see the true modules. It knows
which names are missing and a few rules of Windows's files; it does not know its paths, encodings and timing.
"""

from __future__ import annotations

import builtins
import enum
import errno
import fcntl
import mmap
import multiprocessing.context
import os
import signal
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any, Self

O_BINARY = 1 << 30
ABSENT = ["fcntl", "resource", "termios", "pwd", "grp", "posix", "pty", "tty"]
_NAMES = """
    chown copy_file_range environb eventfd fchmod fchown fdatasync fork forkpty fstatvfs getegid geteuid
    getgid getgroups getloadavg getpgid getpgrp getpriority getuid getxattr initgroups killpg lchown listxattr
    lockf major makedev memfd_create minor mkfifo mknod nice openpty pathconf pidfd_open pipe2 posix_fadvise
    posix_fallocate posix_spawn pread preadv pwrite pwritev readv register_at_fork removexattr
    sched_getaffinity sched_getscheduler sched_param sched_setaffinity sched_setscheduler sched_yield sendfile
    setpriority setsid setuid setxattr splice statvfs sync sysconf sysconf_names uname wait waitid writev
    O_ACCMODE O_CLOEXEC O_DIRECT O_DIRECTORY O_DSYNC O_NOCTTY O_NOFOLLOW O_NONBLOCK O_PATH O_SYNC O_TMPFILE
    POSIX_FADV_DONTNEED POSIX_FADV_NORMAL POSIX_FADV_RANDOM POSIX_FADV_SEQUENTIAL POSIX_FADV_WILLNEED
    SCHED_BATCH SCHED_FIFO SCHED_IDLE SCHED_OTHER SCHED_RR WNOHANG
"""
NOT_IN_OS = _NAMES.split()
SIGNALS = ["SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM"]
NOT_IN_ERRNO = ["EUCLEAN", "EREMOTEIO", "EHWPOISON", "ENOKEY", "ENOMEDIUM", "EMEDIUMTYPE", "EBADE"]
NOT_IN_SIGNAL = [
    "alarm",
    "pause",
    "pthread_kill",
    "pthread_sigmask",
    "setitimer",
    "sigpending",
    "sigtimedwait",
    "sigwait",
]


_real_open = open


def _open_file(file: Any, *rest: Any, **named: Any) -> Any:
    if str(file).startswith("/proc/"):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", file)
    return _real_open(file, *rest, **named)


def _in_use(path: Any) -> bool:
    """Whether this process has the file open or mapped."""
    name = os.path.realpath(path)
    with _real_open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        if name in maps.read():
            return True
    links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return any(os.readlink(link) == name for link in links if os.path.lexists(link))


def _refuse_in_use(*paths: Any) -> None:
    for path in paths:
        if _in_use(path):
            raise PermissionError(errno.EACCES, "another program uses the file", path)


def _open(path: Any, flags: int, mode: int = 0o777) -> int:
    assert flags & O_BINARY, f"{path} is opened as text: line ends would be changed"
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)
    return os.open(path, flags & ~O_BINARY, mode)


def _replace(source: Any, target: Any) -> None:
    _refuse_in_use(source, target)
    os.replace(source, target)


def _unlink(path: Any) -> None:
    _refuse_in_use(path)
    os.unlink(path)


def _fsync(fd: int) -> None:
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "only what is open for writing can be synced")
    os.fsync(fd)


class _MapType(type):
    def __getattribute__(cls, name: str) -> Any:
        if name == "madvise":
            raise AttributeError(name)
        return super().__getattribute__(name)


class _Map(mmap.mmap, metaclass=_MapType):
    """Takes neither `flags` nor `prot`."""

    def __new__(cls, fileno: int, length: int, *, access: int = mmap.ACCESS_WRITE) -> Self:
        return (
            super().__new__(cls, fileno, length)
            if fileno == -1
            else super().__new__(cls, fileno, length, access=access)
        )


class _Less(types.ModuleType):
    """A module without some names, and with others."""

    def __init__(self, real: types.ModuleType, without: Sequence[str], **other: Any) -> None:
        super().__init__(real.__name__)
        self.__dict__.update(other, _real=real, _without=frozenset(without))

    def __getattr__(self, name: str) -> Any:
        if name in self._without:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} on Windows")
        return getattr(self._real, name)


def _modules() -> Mapping[str, types.ModuleType]:
    files = {"open": _open, "replace": _replace, "unlink": _unlink, "remove": _unlink, "fsync": _fsync}
    of_maps = [name for name in dir(mmap) if name.startswith(("MAP_", "MADV_", "PROT_"))]
    of_signals = [name for name in signal.Signals.__members__ if name not in SIGNALS]
    known = enum.IntEnum("Signals", {name: signal.Signals[name] for name in SIGNALS})  # type: ignore[misc]
    return {
        "os": _Less(os, NOT_IN_OS, name="nt", O_BINARY=O_BINARY, **files),
        "mmap": _Less(mmap, of_maps, mmap=_Map),
        "signal": _Less(signal, [*of_signals, *NOT_IN_SIGNAL], Signals=known),
        "errno": _Less(errno, NOT_IN_ERRNO),
        "sys": _Less(sys, ["getdlopenflags"], platform="win32"),
    }


def install() -> None:
    """Let modules of the package import these; new processes are spawned, and there is no other way to start them."""
    real, modules = builtins.__import__, _modules()

    def importing(name: str, globals: Any = None, *rest: Any, **named: Any) -> Any:  # noqa: A002 - its name there
        if str((globals or {}).get("__name__")).partition(".")[0] == "chunkstore":
            if name in ABSENT:
                raise ModuleNotFoundError(f"No module named {name!r} on Windows", name=name)
            if name in modules:
                return modules[name]
        return real(name, globals, *rest, **named)

    assert "chunkstore" not in sys.modules
    builtins.__import__, builtins.open = importing, _open_file
    contexts: dict[str, Any] = multiprocessing.context._concrete_contexts  # type: ignore[attr-defined]
    default: Any = multiprocessing.context._default_context  # type: ignore[attr-defined]
    default._default_context, default._actual_context = contexts["spawn"], None
    contexts.pop("fork")
    contexts.pop("forkserver")
