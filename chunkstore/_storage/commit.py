"""The order of writes and syncs that makes new bytes visible: a new file, and an append to an existing one.

A new file: temporary beside the target -> its bytes -> sync -> link (never overwrites) or rename -> sync of
the directory. No state of the disk shows a part of the file under its final name.

An append: new bytes behind the committed end -> sync -> superblock A -> sync -> superblock B. At every moment
one of the two superblocks is whole on the disk and names bytes that are there. B has no sync of its own: A stands
until the next append is synced, and that sync takes B with it.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import stat
import weakref
from collections.abc import Iterator
from typing import Literal, NoReturn, Self

from chunkstore._format.constants import SUPERBLOCK_OFFSETS
from chunkstore._storage import syscalls
from chunkstore._storage.buffers import Buffer
from chunkstore._storage.interrupts import all_done
from chunkstore._storage.sink import Sink
from chunkstore.errors import ClosedError, CommitUnknownError, WriteError

_TOKEN_NBYTES = 8
_NAME_MAX = 255  # bytes of a file name, on every file system in use
# What file systems without hard links answer (FAT, some in user space, some shares).
_NO_LINK = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.EINVAL}


class NewFile:
    """The life of an unfinished file: `create`, write through `sink`, then `publish` or `discard`.

    As a context manager it is discarded unless it was published. A NewFile that is forgotten, or alive when the
    interpreter ends, removes its temporary too; one copied into a forked child never does. A process killed outright
    leaves the temporary: see `stale_temporaries`.

    Attributes:
        path: the final name, symbolic links followed in mode "w".
        temporary: where the bytes are until then; other processes write to it by `Sink.join(temporary)`.
        sink: the open temporary, locked (`flock`) where the system can, so that others see that it is in use.
    """

    def __init__(self, path: str, mode: Literal["x", "w"], sink: Sink, calls: syscalls.SystemCalls) -> None:
        """Take over an open temporary; use `create`."""
        self.path = path
        self.temporary = sink.path
        self.sink = sink
        self._mode = mode
        self._calls = calls
        self._remove = weakref.finalize(self, _remove_own, sink.path, calls, os.getpid(), sink)

    @classmethod
    def create(cls, path: str | os.PathLike[str], mode: Literal["x", "w"] = "x") -> Self:
        """Make the temporary, and say now what would be in the way later.

        Args:
            path: the final name; its directory must exist.
            mode: "x": nothing may have that name; "w": a regular file of that name is replaced when
                published, and readers that have it open keep it.
        Raises:
            FileExistsError: mode "x" and the name is taken.
            FileNotFoundError, NotADirectoryError, PermissionError, IsADirectoryError: as `open` gives them.
            WriteError: the name is that of a device or FIFO, or the system cannot make a file.
        """
        if mode not in ("x", "w"):
            raise ValueError(f"mode: expected 'x' or 'w', found {mode!r}")
        named, calls = _check_target(os.fspath(path), mode), syscalls.active()
        target = os.path.join(os.getcwd(), named)  # whoever changes directories goes on with the same file
        sink = _create_temporary(target, named, calls)
        try:
            with contextlib.suppress(OSError):
                calls.lock(sink.fileno())
            return cls(target, mode, sink, calls)
        except BaseException:
            sink.close()
            _remove_own(sink.path, calls, os.getpid())
            raise

    @property
    def finished(self) -> bool:
        """Whether the file was published or discarded."""
        return not self._remove.alive

    def publish(self) -> None:
        """Give the file its name: it is then complete and durable.

        Raises:
            FileExistsError: mode "x" and somebody took the name meanwhile; that file is as it was.
            WriteError: a write, the sync or the rename failed. In these two cases nothing is published and
                the temporary is gone.
            CommitUnknownError: the file has its name, but whether the name outlives a power failure is
                unknown.
        An interrupt that comes while the name is given is raised afterwards, and says that the file is complete.
        """
        if self.finished:
            raise ClosedError(f"{self.path}: this file was published or discarded before")
        try:
            self._sync()
            self.sink.close()  # Windows renames no open file
            with all_done(f"{self.path} is complete"):
                self._give_name()
                self._remove.detach()
                self._sync_directory()
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Close and remove the temporary; nothing after `publish`. Idempotent; an interrupted one may be repeated."""
        self.sink.close()
        if (finalizer := self._remove.peek()) is not None:
            _, remove, arguments, _ = finalizer
            remove(*arguments)  # not the finalizer itself, which is dead before it removes anything
            self._remove.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.discard()

    def _sync(self) -> None:
        with unpublished(self.path):
            self.sink.sync_file()

    def _give_name(self) -> None:
        try:
            if self._mode == "w":
                self._calls.rename(self.temporary, self.path)
            else:
                self._name_if_free()
        except FileExistsError as error:
            raise _taken(self.path) from error
        except OSError as error:
            text = f"cannot give the finished file its name ({error.strerror}): nothing was published"
            raise WriteError(error.errno, text, self.path) from error

    def _name_if_free(self) -> None:
        try:
            self._calls.link(self.temporary, self.path)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            self._reserve_and_rename()
            return
        with contextlib.suppress(OSError):  # the file is published; a second name of it is litter and no more
            self._calls.unlink(self.temporary)

    def _reserve_and_rename(self) -> None:
        # Without links: an empty file takes the name from all others, and the rename replaces it. A reader
        # may see the empty file for a moment, and a power failure may leave it: it holds nothing and opens as
        # no container.
        self._calls.close(self._calls.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        try:
            self._calls.rename(self.temporary, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                self._calls.unlink(self.path)
            raise

    def _sync_directory(self) -> None:
        try:
            self._calls.sync_directory(os.path.dirname(self.path) or os.curdir)
        except OSError as error:
            text = (
                f"the file is complete under its name, but the sync of its directory failed "
                f"({error.strerror}): whether the name outlives a power failure is unknown. Check the disk"
            )
            raise CommitUnknownError(error.errno, text, self.path) from error


@contextlib.contextmanager
def unpublished(path: str) -> Iterator[None]:
    """Syncs of a file that has no name yet: what one that fails leaves unknown is its state, which nobody will see.

    Raises:
        WriteError: a sync failed.
    """
    try:
        yield
    except CommitUnknownError as error:
        text = f"the disk failed to store the file ({error.strerror}): nothing was published"
        raise WriteError(error.errno, text, path) from error


def write_superblocks(sink: Sink, superblock: Buffer) -> None:
    """Write both copies into a file that nobody can see yet, so in any order."""
    for offset in SUPERBLOCK_OFFSETS:
        sink.pwrite(offset, superblock)


def commit_append(sink: Sink, superblock: Buffer) -> None:
    """Make what was written behind the committed end the container's newest generation.

    Args:
        sink: the container, opened under its `WriterLock`; all that it wrote so far is committed.
        superblock: the encoded new superblock, 4096 bytes.
    Raises:
        WriteError: a write failed; the last commit is unharmed, since a reader takes the newest whole
            superblock.
        CommitUnknownError: a sync failed; or superblock B could not be written, and the commit stands in A.
    Costs two syncs. Superblock B is made durable by the first sync of the next append: until then A, which
    is, holds the generation. After any error or interrupt the sink is poisoned: what is on the disk is not
    known well enough to go on from.
    """
    try:
        # The superblock must not be on the disk before what it names.
        sink.sync()
        sink.pwrite(SUPERBLOCK_OFFSETS[0], superblock)
        # B, the way back, must not be touched before A is whole.
        sink.sync()
        _write_second(sink, superblock)
        # Not awaited: only the time is to be short in which the disk has one copy of the newest generation.
        sink.start_writeback(SUPERBLOCK_OFFSETS[1], len(superblock))
    except BaseException as error:
        sink.poison(f"the commit did not finish ({type(error).__name__}: {error})")
        raise


def _write_second(sink: Sink, superblock: Buffer) -> None:
    try:
        sink.pwrite(SUPERBLOCK_OFFSETS[1], superblock)
    except WriteError as error:
        # Not a WriteError: that would say that the container is as it was before.
        text = (
            f"the commit is on the disk, but its second superblock could not be written ({error.__cause__}): one alone "
            f"now names it. The next writer mends that"
        )
        raise CommitUnknownError(error.errno, text, sink.path) from error


def stale_temporaries(path: str | os.PathLike[str]) -> list[str]:
    """Find what killed runs left behind of the file that was to become `path`.

    Returns:
        Paths of temporaries for that name whose lock nobody holds, sorted; none where the system has no such
        locks. Nothing is removed.
    """
    directory, name = os.path.split(os.fspath(path))
    pattern = glob.escape(_temporary_start(name)) + "?" * (2 * _TOKEN_NBYTES)
    # The pattern is of the name alone: a directory with a bracket in its name would be looked for in its parent.
    found = [os.path.join(directory, entry) for entry in sorted(glob.glob(pattern, root_dir=directory))]
    files = [entry for entry in found if os.path.isfile(entry) and not os.path.islink(entry)]
    return [temporary for temporary in files if _is_unlocked(temporary, syscalls.active())]


def _is_unlocked(path: str, calls: syscalls.SystemCalls) -> bool:
    try:
        fd = calls.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        calls.lock(fd)
        calls.unlock(fd)
    except OSError:
        return False
    finally:
        calls.close(fd)
    return True


def _check_target(path: str, mode: Literal["x", "w"]) -> str:
    """Refuse a name that cannot be published; returns the name to publish under."""
    if not os.path.basename(path):
        raise _is_directory(path, "that of a directory")
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return path
    if stat.S_ISLNK(status.st_mode) and mode == "w":
        # The file that the link names is replaced, so that the link stays one.
        path = os.path.realpath(path)
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return path
    if stat.S_ISDIR(status.st_mode):
        raise _is_directory(path, "a directory")
    if mode == "x":
        raise _taken(path)
    if not stat.S_ISREG(status.st_mode):
        text = "only a regular file can be replaced, and this is a device, FIFO or socket"
        raise WriteError(errno.EINVAL, text, path)
    return path


def _is_directory(path: str, found: str) -> IsADirectoryError:
    inside = os.path.join(path, "data.cks")
    return IsADirectoryError(errno.EISDIR, f"expected the name of a file, such as {inside!r}, found {found}", path)


def _taken(path: str) -> FileExistsError:
    return FileExistsError(errno.EEXIST, 'the file exists and stays as it is; mode "w" (--overwrite) replaces it', path)


def _create_temporary(path: str, named: str, calls: syscalls.SystemCalls) -> Sink:
    """A new file beside `path`; errors speak of `named`, which is what the caller calls it."""
    directory, name = os.path.split(path)
    while True:
        temporary = os.path.join(directory, _temporary_start(name) + secrets.token_hex(_TOKEN_NBYTES))
        try:
            return Sink.create(temporary)
        except FileExistsError:
            continue  # somebody else's
        except OSError as error:
            _refuse(error, named)
        except BaseException:  # an interrupt right after the file was made
            _remove_own(temporary, calls, os.getpid())
            raise


def _refuse(error: OSError, path: str) -> NoReturn:
    directory = os.path.dirname(path) or os.curdir
    text = f"cannot make a file in the directory {directory!r}: {error.strerror}"
    if not os.path.lexists(directory):
        text += ". Make it first"
    if isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError):
        raise type(error)(error.errno, text, path) from error
    raise WriteError(error.errno, text, path) from error


def _temporary_start(name: str) -> str:
    """All of a temporary's name but the random part; hidden, and cut to what file systems take."""
    room = _NAME_MAX - len(".") - len(".tmp-") - 2 * _TOKEN_NBYTES
    while len(os.fsencode(name)) > room:
        name = name[:-1]
    return f".{name}.tmp-"


def _remove_own(temporary: str, calls: syscalls.SystemCalls, owner_pid: int, sink: Sink | None = None) -> None:
    # A forked child has a copy of the object, and the file is its parent's.
    if os.getpid() != owner_pid:
        return
    with contextlib.suppress(OSError):
        try:
            calls.unlink(temporary)
        except PermissionError:
            if sink is None or sink.closed:
                raise
            # Windows removes no open file. Only there: a thread that still writes at exit needs the descriptor.
            sink.close()
            calls.unlink(temporary)
