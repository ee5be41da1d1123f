"""`Sink`: positional writes of a whole buffer, or an error after which nothing more is taken."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import NoReturn, Self

from chunkstore._storage import platform, syscalls
from chunkstore._storage.buffers import Buffer, byte_view
from chunkstore._storage.source import Source
from chunkstore.errors import ClosedError, CommitUnknownError, PoisonedError, TruncatedError, WriteError

# Where the kernel cannot copy by itself.
_COPY_NBYTES = 4 * 1024 * 1024
# From this size on a write is handed to the disk at once, which halves the time of 1 GiB with its final sync
# (0.58 s to 0.30 s): the disk works while the next piece is prepared, or, at the last one, the index. For 1 MB and
# its index that takes the sync from 0.66 ms to 0.30 ms, at 0.13 ms for the call.
_WRITEBACK_NBYTES = 256 * 1024

_NO_KERNEL_COPY = {
    errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF,
    errno.ETXTBSY,
}  # fmt: skip

_WHAT_TO_DO = {
    errno.ENOSPC: "free some space on that disk or write elsewhere, then start again",
    errno.EDQUOT: "your quota is used up: remove files or write elsewhere, then start again",
    errno.EIO: "the disk reports an error: see the system log, check the disk, write elsewhere",
    errno.EFBIG: "raise the limit of file sizes (`ulimit -f`) or use a file system with larger files",
    errno.EROFS: "the file system is read-only: write elsewhere",
}


class Sink(syscalls.DescriptorOwner):
    """A file opened for writing.

    Several threads, and several processes each with its own sink, may write disjoint ranges at a time. One failed write
    or sync poisons the sink: some bytes of the file are then unknown, so nothing may be committed on top.

    Raises, from every method:
        WriteError: the system refused; `errno` and `filename` are those of the cause.
        PoisonedError: an earlier call failed.
        ClosedError: after `close`.
    """

    def __init__(self, path: str, fd: int, size: int, calls: syscalls.SystemCalls) -> None:
        """Take over an open descriptor; use `create` or `open`."""
        self.path = path
        self.size = size  # bytes
        self._fd = fd
        self._calls = calls
        self._poison: str | None = None

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> Self:
        """Make a new empty file, mode 0666 less the umask; OSErrors as `open` gives them."""
        return cls._open(os.fspath(path), os.O_RDWR | os.O_CREAT | os.O_EXCL)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open an existing file for writing into it."""
        return cls._open(os.fspath(path), os.O_RDWR)

    @classmethod
    def join(cls, path: str | os.PathLike[str]) -> Self:
        """Open the unfinished file of another process, to write disjoint ranges of it at the same time.

        For writing only: an NFS client that may also read fetches the page around a write and sends all of it
        back, over what another client wrote beside it.
        """
        return cls._open(os.fspath(path), os.O_WRONLY)

    @classmethod
    def _open(cls, path: str, flags: int) -> Self:
        calls = syscalls.active()
        fd = calls.open(path, flags)
        return cls(path, fd, os.fstat(fd).st_size, calls)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._fd is None

    @property
    def poisoned(self) -> bool:
        """Whether a write or sync failed."""
        return self._poison is not None

    def fileno(self) -> int:
        """The descriptor; stays the sink's own."""
        return self._opened()

    def pwrite(self, offset: int, buffer: Buffer) -> None:
        """Write the whole buffer at `offset`."""
        fd = self._opened()
        view = byte_view(buffer)
        try:
            self._write_all(fd, offset, view)
        except OSError as error:
            self._fail(error, offset, len(view))
        self._wrote(fd, offset, len(view))

    def copy_from(self, source: Source, source_offset: int, offset: int, nbytes: int) -> None:
        """Copy a range of another file, inside the kernel where it can, by shared blocks where the file system can.

        Raises:
            TruncatedError: the source ends before the range does; the sink is poisoned then, too.
        """
        fd, done = self._opened(), 0
        try:
            while done < nbytes and not source.distant:
                most = min(nbytes - done, platform.MAX_CALL_NBYTES)
                copied = self._calls.copy_range(source.fileno(), fd, most, source_offset + done, offset + done)
                if copied <= 0:
                    break  # the end of the source, or a kernel that cannot and does not say so
                done += copied
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                self._fail(error, offset, nbytes)
        try:
            self._copy_plainly(fd, source, source_offset + done, offset + done, nbytes - done)
        except TruncatedError as error:
            self.poison(str(error))
            raise
        self._wrote(fd, offset, nbytes)

    def truncate(self, size: int) -> None:
        """Set the size: cut what is behind it, or add zeros that take no space."""
        fd = self._opened()
        try:
            self._calls.truncate(fd, size)
        except OSError as error:
            self._fail(error, size, 0)
        self.size = size

    def preallocate(self, nbytes: int) -> None:
        """Set the size that the file will have; WriteError (ENOSPC) now if the disk has not that much free space.

        The space is compared and not reserved: reserving (`fallocate`) made nothing faster, and is emulated by a write
        to each block, minutes for a large file, where the file system has no such call.
        """
        fd = self._opened()
        try:
            self._calls.allocate(fd, nbytes)
        except OSError as error:
            self._fail(error, 0, nbytes)
        self.truncate(nbytes)

    def start_writeback(self, offset: int, nbytes: int) -> None:
        """Let the disk begin with a range that was written; promises nothing, and cannot fail."""
        self._calls.start_writeback(self._opened(), offset, nbytes)

    def sync(self) -> None:
        """Make everything written so far durable, data and size.

        Raises:
            CommitUnknownError: it failed. What is on the disk is unknown: the kernel may have dropped the
                pages and would report success if asked again, so it is never asked again.
        """
        fd = self._opened()
        self._sync(self._calls.sync_data, fd)

    def sync_file(self) -> None:
        """As `sync`, with the metadata of the file: for a file that is new."""
        fd = self._opened()
        self._sync(self._calls.sync_file, fd)

    def poison(self, reason: str) -> None:
        """Take nothing more: every later call is a PoisonedError that gives the first reason."""
        self._poison = self._poison or reason

    def close(self) -> None:
        """Close the descriptor; nothing is synced. No other call may be under way. Idempotent."""
        self._close_descriptor()

    def _opened(self) -> int:
        if self._fd is None:
            raise ClosedError(f"{self.path}: the file was closed for writing; open it again")
        if self._poison is not None:
            raise PoisonedError(
                f"{self.path}: an earlier write or sync failed, nothing more is written: {self._poison}. "
                f"Open a new writer; the last commit is unharmed"
            )
        return self._fd

    def _write_all(self, fd: int, offset: int, view: memoryview) -> None:
        done, nbytes = 0, len(view)
        while done < nbytes:
            # Not less: what was written 1 MiB a call is read from the cache 10 to 25 % slower (smaller folios).
            piece = view[done : done + platform.MAX_CALL_NBYTES]
            done += _taken(self._calls.pwrite(fd, piece, offset + done), len(piece))

    def _copy_plainly(self, fd: int, source: Source, source_offset: int, offset: int, nbytes: int) -> None:
        buffer = memoryview(bytearray(min(nbytes, _COPY_NBYTES)))
        for done in range(0, nbytes, _COPY_NBYTES):
            piece = buffer[: min(_COPY_NBYTES, nbytes - done)]
            source.read_into(source_offset + done, piece)
            try:
                self._write_all(fd, offset + done, piece)
            except OSError as error:
                self._fail(error, offset + done, len(piece))

    def _wrote(self, fd: int, offset: int, nbytes: int) -> None:
        if offset + nbytes > self.size:
            self.size = offset + nbytes
        if nbytes >= _WRITEBACK_NBYTES:
            self._calls.start_writeback(fd, offset, nbytes)

    def _sync(self, call: Callable[[int], None], fd: int) -> None:
        try:
            call(fd)
        except OSError as error:
            text = f"sync failed ({error.strerror}): whether the last writes are on the disk is unknown"
            self.poison(text)
            raise CommitUnknownError(error.errno, text, self.path) from error

    def _fail(self, error: OSError, offset: int, nbytes: int) -> NoReturn:
        advice = _WHAT_TO_DO.get(error.errno or 0, "see the cause, then start again")
        text = f"cannot write bytes [{offset}, {offset + nbytes}): {error.strerror or error}: {advice}"
        self.poison(text)
        raise WriteError(error.errno or errno.EIO, text, self.path) from error


def _taken(count: int, asked: int) -> int:
    # 0 would loop for ever; more than was given is a lie about the rest.
    if not 0 < count <= asked:
        raise OSError(errno.EIO, f"the system says that it wrote {count} of {asked} bytes")
    return count
