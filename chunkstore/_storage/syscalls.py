"""Every system call that changes a file, as one object: the seam where tests record or break them.

`Sink`, `NewFile` and `WriterLock` take the active object when they are made, and call nothing else::

    class FullDisk(SystemCalls):
        def pwrite(self, fd, buffer, offset):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with use(FullDisk()):
        ...

A recorder overrides each method, notes the call, and calls `super()`. The methods act like the calls that
they are named after: short writes are allowed, errors are OSError. What they do on systems without the call
is in `platform`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NoReturn, Self

from chunkstore._storage import platform


class SystemCalls:
    """The real calls. Stateless; safe from many threads."""

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        """Open a file; the umask applies to `mode`."""
        return os.open(path, flags | platform.OPEN_FLAGS, mode)

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def pwrite(self, fd: int, buffer: memoryview, offset: int) -> int:
        """Write at an offset; returns how many bytes were taken."""
        return platform.pwrite(fd, buffer, offset)

    def copy_range(self, source_fd: int, fd: int, nbytes: int, source_offset: int, offset: int) -> int:
        """Copy inside the kernel, by sharing blocks where it can; returns how many bytes were copied."""
        return platform.copy_range(source_fd, fd, nbytes, source_offset, offset)

    def truncate(self, fd: int, size: int) -> None:
        """Set the size of a file."""
        os.ftruncate(fd, size)

    def allocate(self, fd: int, nbytes: int) -> None:
        """Raise ENOSPC when a file of `nbytes` will not fit; changes nothing."""
        platform.allocate(fd, nbytes)

    def start_writeback(self, fd: int, offset: int, nbytes: int) -> None:
        """Let the disk begin with a written range; promises nothing."""
        platform.start_writeback(fd, offset, nbytes)

    def sync_data(self, fd: int) -> None:
        """Make data and size durable (`fdatasync`)."""
        platform.sync_data(fd)

    def sync_file(self, fd: int) -> None:
        """Make data and all metadata durable (`fsync`)."""
        platform.sync_file(fd)

    def sync_directory(self, path: str) -> None:
        """Make the names in a directory durable."""
        platform.sync_names(path)

    def link(self, source: str, target: str) -> None:
        """Give a file a second name; FileExistsError when the name is taken."""
        platform.link(source, target)

    def rename(self, source: str, target: str) -> None:
        """Give a file another name, atomically, and take that name from any other file."""
        os.replace(source, target)

    def unlink(self, path: str) -> None:
        """Remove a name."""
        os.unlink(path)

    def lock(self, fd: int) -> None:
        """Take the exclusive lock of a file at once; BlockingIOError when another holds it."""
        platform.lock(fd)

    def unlock(self, fd: int) -> None:
        """Give the lock of a file back."""
        platform.unlock(fd)


_active = SystemCalls()


def active() -> SystemCalls:
    """The object that new sinks, files and locks take."""
    return _active


@contextlib.contextmanager
def use(calls: SystemCalls) -> Iterator[SystemCalls]:
    """Make `calls` the active object of the whole process, all threads, for the length of a with-block."""
    global _active
    before, _active = _active, calls
    try:
        yield calls
    finally:
        _active = before


class DescriptorOwner:
    """Has a descriptor, and closes it once: at the end of a with-block, or when it is forgotten."""

    _fd: int | None = None  # until the constructor is through
    _calls: SystemCalls

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._close_descriptor()

    def __del__(self) -> None:
        if self._fd is not None:
            self._close_descriptor()

    def __reduce__(self) -> NoReturn:
        # A descriptor number means another file in another process.
        raise TypeError(f"{type(self).__name__} cannot be pickled or copied: reopen its path")

    def _close_descriptor(self) -> None:
        """Close it, if it is open. Where the memory runs out before the call, the next one goes on."""
        fd = self._fd
        if fd is None:
            return
        try:
            self._calls.close(fd)
        except MemoryError:
            raise
        except BaseException:
            # An error of `close` leaves it closed all the same, and an interrupt may come when the call is over. The
            # number may be somebody else's by then: rather one descriptor too many than his closed.
            self._fd = None
            raise
        self._fd = None
