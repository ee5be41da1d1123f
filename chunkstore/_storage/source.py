"""Positional reads of a container: `Source`, its back ends `MmapSource` and `PreadSource`, and `open_source`.

Both back ends copy bytes with `pread`: a file that was truncated meanwhile reads short and becomes a
`TruncatedError`. `MmapSource` gives views besides, without a copy; touching a view beyond the end of a
truncated file kills the process with SIGBUS, which is why readers call `check_size` before each batch that
they gather from a view.

Measured on ext4, one thread: reading in order by `preadv` of 4 MiB into a reused buffer makes 22.8 GB/s warm
and 2.7 GB/s from the disk; copying from a second map with normal read-ahead 22.7 and 2.5. So in-order reads
are `read_into`, and the second map serves only the views of whole columns.
"""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import stat
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Literal, NamedTuple, NoReturn, Protocol, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from chunkstore._storage import filesystem, platform
from chunkstore._storage.buffers import Buffer, byte_view
from chunkstore.errors import ClosedError, NotAContainerError, TruncatedError

Backend: TypeAlias = Literal["auto", "mmap", "pread"]
Offsets: TypeAlias = npt.NDArray[np.int64]

_BACKENDS = ("auto", "mmap", "pread")


class Identity(NamedTuple):
    """What tells one state of one file from another; taken when the file was opened."""

    dev: int
    ino: int
    size: int
    mtime_ns: int


class Source(Protocol):
    """A file opened for positional reads.

    Safe from many threads, and after a fork: nothing has a position, nothing is locked, no thread runs. Holds
    one descriptor (`pread`) or two (`mmap`), and a third while a `sequential_view` lives; Python 3.13 and
    later need one. Every range must lie in `[0, size)`, where `size` is that at opening, until who opened it knows
    how much of it is needed and sets it to that.

    Raises, from every method:
        ClosedError: after `close`.
        TruncatedError: the range is not in the file, or is not any more.
        OSError: the system could not read.
    """

    path: str
    size: int
    identity: Identity

    @property
    def backend(self) -> Literal["mmap", "pread", "remote"]:
        """Which back end this is."""

    @property
    def distant(self) -> bool:
        """Whether each read costs a round trip, unless it is inside `staged`."""

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""

    def fileno(self) -> int:
        """The descriptor; stays the source's own."""

    def read(self, offset: int, nbytes: int) -> bytes:
        """Read a copy, by `pread` in both back ends."""

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill the whole buffer, by `pread` in both back ends; in megabytes the way to read in order."""

    def read_scattered(self, offsets: Offsets, nbytes: int | Offsets, out: Buffer) -> None:
        """Read many ranges back to back into `out`; see `PreadSource.read_scattered`."""

    def view(self, offset: int, nbytes: int) -> memoryview | None:
        """A read-only view for random access; None from `pread`."""

    def sequential_view(self, offset: int, nbytes: int) -> memoryview | None:
        """A read-only view with normal read-ahead, e.g. of a whole column; None from `pread`."""

    def writable_view(self, offset: int, nbytes: int) -> memoryview | None:
        """Private memory for adapters to export, never to hand to users; None where there is none."""

    def reserve(self, nbytes: int) -> memoryview:
        """Memory of zeros, private and writable, that takes no room before it is touched; not of the file."""

    def advise(self, offsets: Offsets, nbytes: int | Offsets) -> None:
        """Ask the system to start reading many ranges now. Never fails on what the system answers."""

    def staged(
        self, offsets: Offsets, nbytes: int | Offsets, into: Sequence[memoryview] = ()
    ) -> AbstractContextManager[None]:
        """A block in which reads of parts of these ranges cost nothing: a distant source fetches all at once.

        Args:
            into: memory that the first ranges fill, which the block need not read any more.
        """

    def check_size(self) -> None:
        """Raise `TruncatedError` when the file is shorter than `size`. 0.4 µs."""

    def close(self) -> None:
        """Let the file go. Views stay valid: the map goes with the last of them."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Descriptor(list[int]):
    """An open file, closed with its last reference: no thread finds its number reused while it reads."""

    __slots__ = ("__weakref__", "fd")

    fd: int

    def open(self, path: str, flags: int) -> None:
        # By one call of C, into what is there already: neither a signal nor want of memory comes between the opening
        # and the keeping, after which nobody would close the file.
        self.extend(map(os.open, (path,), (flags,)))
        self.fd = self[0]

    def __del__(self, _close: Callable[[int], None] = os.close) -> None:
        if self:
            _close(self[0])  # not `os.close`: at the end of the interpreter `os` may be gone


class PreadSource:
    """Reads by `pread` only: the file may shrink or its server go away without harm to the process."""

    backend: Literal["mmap", "pread", "remote"] = "pread"
    distant = False

    def __init__(self, path: str | os.PathLike[str], opened: tuple[_Descriptor, os.stat_result] | None = None) -> None:
        """Open a regular file, unless it is open already; see `open_source` for the errors."""
        self.path = os.fspath(path)
        self._file: _Descriptor | None
        self._file, status = opened or _open_regular(self.path)
        self.size = status.st_size
        self.identity = Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.size} bytes"
        return f"{type(self).__name__}({self.path!r}, {state})"

    def __reduce__(self) -> NoReturn:
        # A descriptor number means another file in another process.
        raise TypeError(f"{type(self).__name__} cannot be pickled or copied: reopen its path")

    @property
    def closed(self) -> bool:
        return self._file is None

    def fileno(self) -> int:
        return self._opened().fd

    def read(self, offset: int, nbytes: int) -> bytes:
        file = self._opened()
        self._check_range(offset, nbytes)
        if nbytes <= platform.MAX_CALL_NBYTES:
            try:
                data = platform.pread(file.fd, nbytes, offset)
            except OSError as error:
                self._fail(error)
            if len(data) == nbytes:
                return data
        whole = bytearray(nbytes)
        self._fill(file.fd, offset, memoryview(whole))
        return bytes(whole)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        file = self._opened()
        view = byte_view(buffer, writable=True)
        self._check_range(offset, len(view))
        self._fill(file.fd, offset, view)

    def read_scattered(self, offsets: Offsets, nbytes: int | Offsets, out: Buffer) -> None:
        """Read many ranges back to back into `out`, in the order of `offsets`.

        Args:
            offsets: int64, shape (n,): any order, repeats and overlaps allowed.
            nbytes: length of each range, or one for all; 0 is allowed.
            out: C-contiguous, of exactly the sum of the lengths. Undefined after an error.
        Neighbours in the file share one system call; about 1 µs for each other range, in the order of the
        file.
        """
        file = self._opened()
        view = byte_view(out, writable=True)
        starts, lengths = as_ranges(offsets, nbytes)
        if int(lengths.sum()) != len(view):
            raise ValueError(f"expected an out of {int(lengths.sum())} bytes, found {len(view)}")
        self._check_ranges(starts, lengths)
        targets = np.cumsum(lengths) - lengths
        if not lengths.all():
            some = lengths > 0
            starts, lengths, targets = starts[some], lengths[some], targets[some]
        starts, lengths, targets = _join_neighbours(starts, lengths, targets)
        self._read_runs(file.fd, starts, lengths, targets, view)

    def view(self, offset: int, nbytes: int) -> memoryview | None:
        self._opened()
        return None

    sequential_view = writable_view = view

    def reserve(self, nbytes: int) -> memoryview:
        return platform.reserve(nbytes)

    def advise(self, offsets: Offsets, nbytes: int | Offsets) -> None:
        """Ask the system to start reading many ranges now; returns once the requests are queued.

        Costs 0.4 µs a range when all of it is cached already: give hints only when `cold_reads` grew.
        Args:
            offsets, nbytes: as in `read_scattered`.
        """
        file = self._opened()
        if not len(offsets):
            return
        starts, lengths = as_ranges(offsets, nbytes)
        self._check_ranges(starts, lengths)
        pieces = _page_pieces(starts, lengths)
        try:
            platform.will_need(file.fd, self._advisable_map(), pieces[0].tolist(), pieces[1].tolist())
        except OSError:
            return  # a hint that is refused changes nothing

    def staged(
        self, offsets: Offsets, nbytes: int | Offsets, into: Sequence[memoryview] = ()
    ) -> AbstractContextManager[None]:
        for offset, target in zip(offsets.tolist(), into, strict=False):
            self.read_into(offset, target)
        return nullcontext()

    def check_size(self) -> None:
        file = self._opened()  # held, or another thread that closes it now has the number used for another file
        now = platform.file_size(file.fd)
        if now < self.size:
            raise TruncatedError(
                f"{self.path}: the file had {self.size} bytes when it was opened and has {now} now: it was "
                f"truncated under the reader. Restore the file, then open it again"
            )

    def close(self) -> None:
        self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _advisable_map(self) -> mmap.mmap | None:
        return None

    def _opened(self) -> _Descriptor:
        # The caller keeps the result until its system call is over: see `_Descriptor`.
        file = self._file
        if file is None:
            raise self._closed_error()
        return file

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"{self.path}: the source was closed; open it again")

    def _fill(self, fd: int, offset: int, view: memoryview) -> None:
        """Read until the view is full: one call may give less than was asked (EINTR is retried by Python)."""
        done, nbytes = 0, len(view)
        try:
            while done < nbytes:
                piece = view[done : done + platform.MAX_CALL_NBYTES]
                found = platform.preadv(fd, [piece], offset + done)
                if found == 0:
                    self._truncated(offset, nbytes, done)
                done += found
        except OSError as error:
            self._fail(error)

    def _read_runs(self, fd: int, starts: Offsets, lengths: Offsets, targets: Offsets, view: memoryview) -> None:
        """Read ranges that do not touch in request order; those that touch in file order share a call."""
        order = np.argsort(starts, kind="stable")
        starts, lengths, targets = starts[order], lengths[order], targets[order]
        touching = starts[1:] == starts[:-1] + lengths[:-1]
        if touching.any():
            self._read_groups(fd, starts, lengths, targets, view, touching)
            return
        preadv = platform.preadv
        try:
            for offset, nbytes, target in zip(starts.tolist(), lengths.tolist(), targets.tolist(), strict=True):
                piece = view[target : target + nbytes]
                found = preadv(fd, [piece], offset) if nbytes <= platform.MAX_CALL_NBYTES else 0
                if found != nbytes:
                    self._fill(fd, offset + found, piece[found:])
        except OSError as error:
            self._fail(error)

    def _read_groups(
        self,
        fd: int,
        starts: Offsets,
        lengths: Offsets,
        targets: Offsets,
        view: memoryview,
        touching: npt.NDArray[np.bool_],
    ) -> None:
        bounds = np.flatnonzero(np.concatenate(([True], ~touching, [True]))).tolist()
        pieces = [view[t : t + n] for t, n in zip(targets.tolist(), lengths.tolist(), strict=True)]
        for first, last in itertools.pairwise(bounds):
            for i in range(first, last, platform.MAX_CALL_BUFFERS):
                self._fill_many(fd, int(starts[i]), pieces[i : min(last, i + platform.MAX_CALL_BUFFERS)])

    def _fill_many(self, fd: int, offset: int, pieces: list[memoryview]) -> None:
        nbytes = sum(map(len, pieces))
        found = 0
        if nbytes <= platform.MAX_CALL_NBYTES:
            try:
                found = platform.preadv(fd, pieces, offset)
            except OSError as error:
                self._fail(error)
        if found == nbytes:
            return
        for piece in pieces:  # a short read: whatever is missing, piece by piece
            have = min(found, len(piece))
            self._fill(fd, offset + have, piece[have:])
            offset, found = offset + len(piece), found - have

    def _check_range(self, offset: int, nbytes: int) -> None:
        if offset < 0 or nbytes < 0:
            raise ValueError(f"expected offset and nbytes of 0 or more, found {offset} and {nbytes}")
        if offset + nbytes > self.size:
            self._truncated(offset, nbytes, max(0, self.size - offset))

    def _check_ranges(self, starts: Offsets, lengths: Offsets) -> None:
        if not starts.size:
            return
        # `argmin` and `item` take a quarter of the time of `min`, and cold batches wait for this.
        if starts.item(starts.argmin()) < 0 or lengths.item(lengths.argmin()) < 0:
            raise ValueError("expected offsets and nbytes of 0 or more, found a negative one")
        # Not `starts + lengths`, which can overflow.
        outside = lengths > self.size - starts
        if outside.any():
            first = int(np.argmax(outside))
            self._check_range(int(starts[first]), int(lengths[first]))

    def _truncated(self, offset: int, expected: int, found: int) -> NoReturn:
        raise TruncatedError(
            f"{self.path}: bytes [{offset}, {offset + expected}): expected {expected} bytes, found {found}: "
            f"the file ends too early. Restore it from its origin; `chunkstore verify` says what is whole"
        )

    def _fail(self, error: OSError) -> NoReturn:
        # The error of a system call on a descriptor does not name the file.
        raise OSError(error.errno, error.strerror, self.path) from error


class MmapSource(PreadSource):
    """A private map besides: views without a copy.

    The map is copy-on-write and reserves no memory, so files larger than memory can be mapped and the file is
    never modified. Where the system refuses such a map it is read-only and `writable_view` gives None.
    """

    backend: Literal["mmap", "pread", "remote"] = "mmap"

    def __init__(self, path: str | os.PathLike[str], opened: tuple[_Descriptor, os.stat_result] | None = None) -> None:
        """Open and map a regular file.

        Raises:
            OSError: also where the system cannot map it; `PreadSource` can read it.
        """
        super().__init__(path, opened)
        self._map: mmap.mmap | None = None
        self._views: memoryview | None = memoryview(b"")
        self._writable = False
        self._sequential: weakref.ref[mmap.mmap] | None = None
        if self.size:  # nobody can map an empty file
            self._map, self._writable = self._map_file(self._opened())
            platform.advise_random(self._map)
            self._views = memoryview(self._map).toreadonly()

    def view(self, offset: int, nbytes: int) -> memoryview | None:
        """A view of the file, not writable and not to be made so. 0.3 µs; reads nothing before it is touched.

        Reads of it have no read-ahead: right for random access, 30 times too slow for reading in order from
        the disk.
        """
        views = self._views
        if views is None:
            raise self._closed_error()
        self._check_range(offset, nbytes)
        return views[offset : offset + nbytes]

    def sequential_view(self, offset: int, nbytes: int) -> memoryview | None:
        """As `view`, of a second map, with normal read-ahead, which lives as long as its views."""
        file = self._opened()
        self._check_range(offset, nbytes)
        if not self.size:
            return memoryview(b"")
        # Two threads may both make one here: each view keeps its own map alive, so that does no harm.
        mapped = self._sequential() if self._sequential is not None else None
        if mapped is None:
            self.check_size()
            mapped, _ = self._map_file(file)
            self._sequential = weakref.ref(mapped)
        return memoryview(mapped)[offset : offset + nbytes].toreadonly()

    def writable_view(self, offset: int, nbytes: int) -> memoryview | None:
        """Copy-on-write memory of the map, which frameworks insist on.

        A write to it shows in `view` from then on, in this process only: adapters export it and never write.
        """
        self._opened()
        self._check_range(offset, nbytes)
        mapped = self._map
        if mapped is None or not self._writable:
            return None
        return memoryview(mapped)[offset : offset + nbytes]

    def close(self) -> None:
        # The map is not closed but dropped: `mmap.close` would fail while views are alive. Not by `super()`, which
        # takes memory: this is how an error lets go of the file when there is none.
        self._file = self._views = self._map = None

    def _advisable_map(self) -> mmap.mmap | None:
        return self._map

    def _map_file(self, file: _Descriptor) -> tuple[mmap.mmap, bool]:
        try:
            return platform.map_file(file.fd, self.size)
        except (OSError, ValueError, OverflowError) as error:
            number = getattr(error, "errno", None) or errno.ENODEV
            text = f'cannot map the file ({error}); backend="pread" needs no map'
            raise _NoMapError(number, text, self.path) from error


class _NoMapError(OSError):
    """The file was opened and the system cannot map it."""


def open_source(path: str | os.PathLike[str], backend: Backend = "auto") -> Source:
    """Open a file for positional reads.

    Args:
        path: a regular file, of any size, 0 included.
        backend: "mmap", "pread", or "auto": mmap on local file systems, pread on network ones and where the
            system cannot map the file.
    Raises:
        FileNotFoundError, PermissionError, IsADirectoryError: as `open` does.
        NotAContainerError: a FIFO, socket or device; it was not opened, so nothing waits.
        OSError: `backend="mmap"` and the system cannot map the file.
    """
    if backend not in _BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(_BACKENDS)}, found {backend!r}")
    opened = _open_regular(os.fspath(path))
    if backend == "pread" or (backend == "auto" and filesystem.is_network(os.fspath(path), opened[1].st_dev)):
        return PreadSource(path, opened)
    try:
        return MmapSource(path, opened)
    except _NoMapError:
        if backend == "mmap":
            raise
        return PreadSource(path, opened)


def cold_reads() -> int:
    """Count how often this thread has needed the disk so far. 0.6 µs.

    Returns:
        Major page faults plus blocks read in, hints included; only its growth means something. While it grows
        over a batch (hint and gather), the data are cold and hints pay. Page faults alone would not do: a
        hinted batch has none. Constant 0 where the system does not tell; of the whole process where it does
        not count by thread.
    """
    return platform.cold_reads()


def _open_regular(path: str) -> tuple[_Descriptor, os.stat_result]:
    # Before opening: to open a FIFO waits for a writer, and to open some devices acts on them.
    _require_regular(os.stat(path), path)
    file = _Descriptor()
    file.open(path, os.O_RDONLY | platform.OPEN_FLAGS | platform.OPEN_NONBLOCK)
    status = os.fstat(file.fd)
    _require_regular(status, path)  # the path may name another file by now
    return file, status


def _require_regular(status: os.stat_result, path: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "expected a container file, found a directory", path)
    if not stat.S_ISREG(status.st_mode):
        kind = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a character device"}
        found = kind.get(stat.S_IFMT(status.st_mode), "a device")
        raise NotAContainerError(f"{path}: expected a regular file, found {found}. Give the path of a container")


def as_ranges(offsets: Offsets, nbytes: int | Offsets) -> tuple[Offsets, Offsets]:
    """Ranges as given to a source, both as int64 of shape (n,)."""
    starts = np.ascontiguousarray(offsets, dtype=np.int64)
    lengths = np.asarray(nbytes, dtype=np.int64)
    if lengths.ndim == 0:
        lengths = np.full(starts.shape, lengths)
    if starts.ndim != 1 or lengths.shape != starts.shape:
        found = f"{starts.shape} and {lengths.shape}"
        raise ValueError(f"expected offsets of shape (n,) and as many nbytes, found {found}")
    return starts, lengths


def _join_neighbours(starts: Offsets, lengths: Offsets, targets: Offsets) -> tuple[Offsets, Offsets, Offsets]:
    """Make one range of those that follow each other both in the request and in the file."""
    apart = starts[1:] != starts[:-1] + lengths[:-1]
    if apart.all():
        return starts, lengths, targets
    first = np.flatnonzero(np.concatenate(([True], apart)))
    return starts[first], np.add.reduceat(lengths, first), targets[first]


def _page_pieces(starts: Offsets, lengths: Offsets) -> tuple[Offsets, Offsets]:
    """Cover the ranges with page-aligned pieces, in the order of the request.

    The order is kept because rows are then needed in it: what was asked for first is there first. Measured, cold
    batches of 1 KiB rows and of images: 8 % faster than hints in the order of the file. Ranges that touch or share
    pages with the one before are one piece. What is longer than WILLNEED_NBYTES is asked for as a whole and then in
    parts: the whole is one request where the kernel takes so much at once, and the parts then cost 0.5 µs each.

    Returns:
        Offsets and lengths of the pieces. The last page may reach beyond the end of the file.
    """
    page, most = platform.PAGE_NBYTES, platform.WILLNEED_NBYTES
    if not lengths.all():
        starts, lengths = starts[lengths > 0], lengths[lengths > 0]
    if not starts.size:
        return starts, lengths
    first = starts & -page
    sizes = ((starts + lengths + (page - 1)) & -page) - first
    # As unsigned numbers the steps back are the largest.
    apart = (first[1:] - first[:-1]).view(np.uint64) > sizes[:-1].view(np.uint64)
    if not apart.all():
        begins = np.flatnonzero(np.append(True, apart))
        stop = np.maximum.reduceat(first + sizes, begins)
        first = first[begins]
        sizes = stop - first
    return (first, sizes) if sizes.item(sizes.argmax()) <= most else _with_parts(first, sizes, most)


def _with_parts(starts: Offsets, lengths: Offsets, most: int) -> tuple[Offsets, Offsets]:
    """Each range, and behind it the parts of `most` bytes that follow its first one."""
    counts = -(-lengths // most)
    step = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    stops = np.repeat(starts + lengths, counts)
    starts = np.repeat(starts, counts) + step * most
    return starts, np.where(step, np.minimum(stops - starts, most), stops - starts)
