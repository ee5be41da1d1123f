"""One writer at a time: an exclusive lock on an existing container, taken at once or refused at once.

`flock` on the container itself: the kernel gives it back when the process dies. Not `lockf`, which is lost
when any other descriptor of the file is closed by the process. Where the system has no `flock`, a lock file
beside the container.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import Self

from chunkstore._storage import syscalls
from chunkstore._storage.sink import Sink
from chunkstore.errors import LockedError, ReplacedError

LOCKS = "/proc/locks"
_NO_FLOCK = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EPERM}


class WriterLock(syscalls.DescriptorOwner):
    """The right to append to a container. Readers neither take it nor look at it.

    A forked child has a copy that keeps nothing locked and gives nothing back: the lock ends when the process that
    took it releases it, or when that one and all its children are gone.
    """

    def __init__(self, path: str, fd: int, lock_file: str | None, calls: syscalls.SystemCalls) -> None:
        """Take over a locked descriptor; use `acquire`."""
        self.path = path
        self._fd = fd
        self._lock_file = lock_file
        self._calls = calls
        self._owner_pid = os.getpid()

    @classmethod
    def acquire(cls, path: str | os.PathLike[str]) -> Self:
        """Take the lock.

        Raises:
            LockedError: another writer holds it, in this process or another one.
            FileNotFoundError, PermissionError: the container cannot be opened for writing.
        """
        path, calls = os.fspath(path), syscalls.active()
        while True:
            fd = calls.open(path, os.O_RDWR)
            try:
                lock = cls(path, fd, _lock(path, fd, calls), calls)
            except BaseException:
                calls.close(fd)
                raise
            # Between `open` and `lock` another writer may have put a new file in place, with a lock of its own.
            # Whatever goes wrong here, the lock is released when it is forgotten.
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return lock
            lock.release()

    def open_sink(self) -> Sink:
        """Open the locked container for writing; ReplacedError when its path names another file by now."""
        sink = Sink.open(self.path)
        if self._fd is None or not os.path.samestat(os.fstat(self._fd), os.fstat(sink.fileno())):
            sink.close()
            raise ReplacedError(f"{self.path}: the path names another file than the one that was locked; open it again")
        return sink

    def release(self) -> None:
        """Give the lock back. Idempotent; where the memory runs out in it, the next call goes on."""
        self._close_descriptor()

    def _close_descriptor(self) -> None:
        # Explicitly: a child that was forked meanwhile has a copy of the descriptor, which would keep the lock. Its own
        # end must not take the lock from the parent, though.
        if self._fd is not None and os.getpid() == self._owner_pid:
            if self._lock_file is None:
                self._calls.unlock(self._fd)
            else:
                with contextlib.suppress(FileNotFoundError):
                    self._calls.unlink(self._lock_file)
        super()._close_descriptor()


def _lock(path: str, fd: int, calls: syscalls.SystemCalls) -> str | None:
    """Lock a descriptor; returns the lock file where there had to be one."""
    try:
        calls.lock(fd)
    except BlockingIOError as error:
        holder = _holder(fd)
        who = f"process {holder}" if holder else "another writer, perhaps on another machine,"
        raise LockedError(
            f"{path}: {who} is writing to this container. Wait for it, or end it, then try again"
        ) from error
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        return _make_lock_file(path, calls)
    return None


def _make_lock_file(path: str, calls: syscalls.SystemCalls) -> str:
    # Of the file itself: links to it have the same lock, and it is found again whoever changes directories.
    directory, name = os.path.split(os.path.realpath(path))
    lock_file = os.path.join(directory, f".{name}.lock")
    try:
        fd = calls.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    except FileExistsError as error:
        raise LockedError(
            f"{path}: {_read_holder(lock_file)} is writing to this container. Wait for it; if it has ended, "
            f"remove {lock_file}"
        ) from error
    try:
        try:
            calls.pwrite(fd, memoryview(f"process {os.getpid()} on {socket.gethostname()}".encode()), 0)
        finally:
            calls.close(fd)
    except BaseException:
        calls.unlink(lock_file)  # or nobody would ever get the lock
        raise
    return lock_file


def _read_holder(lock_file: str) -> str:
    try:
        with open(lock_file, encoding="utf-8", errors="replace") as file:
            return file.read(200) or "another writer"
    except OSError:
        return "another writer"


def _holder(fd: int) -> int | None:
    """The process that holds the lock of a file, where the system tells (proc(5): /proc/locks)."""
    status = os.fstat(fd)
    file_id = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with contextlib.suppress(OSError, ValueError, IndexError), open(LOCKS, encoding="ascii") as locks:
        for line in locks:
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5] == file_id and int(fields[4]) > 0:
                return int(fields[4])
    return None
