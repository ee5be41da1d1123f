"""Opening source files without surprises: regular files only, never blocking, and unchanged since they were planned."""

from __future__ import annotations

import os
import stat
from typing import Final

from chunkstore._storage import platform
from chunkstore.errors import IngestError

# O_NONBLOCK: the open of a FIFO without a writer must return, not wait for ever. It does nothing for regular files.
FLAGS: Final = os.O_RDONLY | platform.OPEN_FLAGS | platform.OPEN_NONBLOCK
_KINDS: Final = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


def kind_of(mode: int) -> str | None:
    """What `st_mode` is in words, or None for a regular file."""
    if stat.S_ISREG(mode):
        return None
    return next((text for test, text in _KINDS if test(mode)), "no regular file")


def open_regular(path: str, where: str) -> tuple[int, os.stat_result]:
    """Descriptor and status of a regular file; the caller closes it.

    The status is asked before the open (opening a device can have effects) and again after it (the name may have
    changed).

    Raises:
        IngestError: not a regular file.
        OSError: cannot be opened.
    """
    _refuse(os.stat(path).st_mode, where)
    fd = os.open(path, FLAGS)
    try:
        status = os.fstat(fd)
        _refuse(status.st_mode, where)
    except BaseException:
        os.close(fd)
        raise
    return fd, status


def _refuse(mode: int, where: str) -> None:
    kind = kind_of(mode)
    if kind is not None:
        raise IngestError(f"{where}: expected a regular file, found {kind}. Remove it or leave it out with --exclude.")


def check_unchanged(status: os.stat_result, size: int, mtime_ns: int, where: str) -> None:
    """Raise IngestError unless the file still is as it was when it was planned."""
    if status.st_size != size or status.st_mtime_ns != mtime_ns:
        raise IngestError(
            f"{where}: the file changed while it was converted (size {size:,} -> {status.st_size:,}, "
            f"modified {mtime_ns} -> {status.st_mtime_ns} ns). Nothing was written; convert again when nothing "
            "writes to it."
        )


def read_at(fd: int, nbytes: int, offset: int, where: str) -> bytes:
    """`pread`: at most that many bytes.

    Raises:
        IngestError: the system cannot read them.
    """
    try:
        return platform.pread(fd, nbytes, offset)
    except OSError as error:
        raise _unreadable(error, offset, where) from error


def _unreadable(error: OSError, offset: int, where: str) -> IngestError:
    """A bad sector is a fault of this one file: it can be left out as one with wrong bytes can."""
    return IngestError(f"{where}: cannot be read from byte {offset:,} on: {error.strerror}. Copy the file again.")


def read_exactly(fd: int, offset: int, view: memoryview, where: str) -> None:
    """Fill `view` (bytes) from `offset`; loops over short reads.

    Raises:
        IngestError: the file ends before, or the system cannot read it.
    """
    done, nbytes = 0, len(view)
    while done < nbytes:
        try:
            got = platform.preadv(fd, [view[done : done + (1 << 30)]], offset + done)
        except OSError as error:
            raise _unreadable(error, offset + done, where) from error
        if got <= 0:
            raise IngestError(
                f"{where}: the file ended at byte {offset + done:,} while it was read; {nbytes - done:,} more "
                "bytes were expected. "
                "It changed meanwhile, or the disk is damaged."
            )
        done += got
