"""What this operating system has, chosen once at import, and a plain twin for each call that it may lack.

Each public name in `PLAIN` is either the system's own call or its plain twin. The code above calls it as
`platform.preadv(...)`, at call time, so that a test can put the twins in place and run the same suite over them.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

# One read or write moves at most this much on Linux: the largest whole page count below 2 GiB. Others refuse more.
MAX_CALL_NBYTES = 2_147_479_552
# How many buffers one vectored call takes; POSIX promises 16, Linux has 1024.
MAX_CALL_BUFFERS = 1024
if hasattr(os, "sysconf") and "SC_IOV_MAX" in os.sysconf_names:
    MAX_CALL_BUFFERS = max(16, min(1024, os.sysconf("SC_IOV_MAX")))

# A process and the 61 that `concurrent.futures` can start on Windows, which waits for 63 objects at most.
MAX_PROCESSES = 62 if sys.platform == "win32" else sys.maxsize

PAGE_NBYTES = mmap.PAGESIZE
# Flags for os.open: binary on Windows, never inherited, never block on a FIFO, never become the terminal.
OPEN_FLAGS = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOCTTY", 0)
OPEN_NONBLOCK = getattr(os, "O_NONBLOCK", 0)

# Python before 3.13 lacks the name on Linux; the number is the same on x86, ARM, RISC-V and s390.
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)

# The kernel reads at most one read-ahead window for one WILLNEED, by default 128 KiB, and drops the rest silently.
WILLNEED_NBYTES = 128 * 1024

# Up to here, memory of the heap is quicker than a map of its own, whose pages fault one by one: 3 µs, not 40.
_HEAP_NBYTES = 64 * 1024

# The plain calls read into memory of their own first, so much at a time.
_PLAIN_NBYTES = 4 * 1024 * 1024

_seek_lock = threading.Lock()


def num_processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- reading ---


def plain_preadv(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
    """Fill `buffers` one after another from `offset`; may read less, as `os.preadv` may."""
    done = 0
    for buffer in buffers:
        for start in range(0, len(buffer), _PLAIN_NBYTES):
            piece = buffer[start : start + _PLAIN_NBYTES]
            data = plain_pread(fd, len(piece), offset + done)
            piece[: len(data)] = data
            done += len(data)
            if len(data) < len(piece):
                return done
    return done


def plain_pread(fd: int, nbytes: int, offset: int) -> bytes:
    """Read at an offset by seek and read, under a lock; systems without `pread` have no fork either."""
    with _seek_lock:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, nbytes)


def plain_readv(fd: int, buffers: Sequence[bytearray | memoryview]) -> int:
    """Fill `buffers` from the position on; may read less, as `os.readv` may. One read, then a copy into each."""
    data = os.read(fd, sum(map(len, buffers)))
    done = 0
    for buffer in buffers:
        piece = data[done : done + len(buffer)]
        buffer[: len(piece)] = piece
        done += len(piece)
    return done


def seek_end(fd: int) -> int:
    """The size of a file: 0.35 µs, while `fstat` takes 1.0 to 1.5. Moves the position, which `pread` does not use."""
    return os.lseek(fd, 0, os.SEEK_END)


def plain_file_size(fd: int) -> int:
    """The size of a file, without its position, which `plain_pread` has set in another thread."""
    return os.fstat(fd).st_size


def map_private(fd: int, nbytes: int) -> tuple[mmap.mmap, bool]:
    """Map a file copy-on-write and without reserving memory for the copies.

    Returns:
        The map and whether its memory is writable (to this process; the file never changes).
    """
    options: dict[str, Any] = {
        "flags": mmap.MAP_PRIVATE | _MAP_NORESERVE,
        "prot": mmap.PROT_READ | mmap.PROT_WRITE,
    }
    if sys.version_info >= (3, 13):
        options["trackfd"] = False  # else every map holds a descriptor of its own
    try:
        return mmap.mmap(fd, nbytes, **options), True
    except OSError as error:
        if error.errno not in (errno.ENOMEM, errno.EACCES, errno.EPERM):
            raise
        # With vm.overcommit_memory=2 the kernel counts private writable maps as memory, whatever the flags say.
        return mmap.mmap(fd, nbytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ), False


def plain_map_private(fd: int, nbytes: int) -> tuple[mmap.mmap, bool]:
    """As `map_private`, by what Python's `mmap` has on every system."""
    try:
        return mmap.mmap(fd, nbytes, access=mmap.ACCESS_COPY), True
    except OSError:
        return mmap.mmap(fd, nbytes, access=mmap.ACCESS_READ), False


def reserve_private(nbytes: int) -> memoryview:
    """Zeros that take memory page by page when they are touched, whatever `nbytes` is; a little comes from the heap."""
    if nbytes <= _HEAP_NBYTES:
        return memoryview(bytearray(nbytes))
    return memoryview(mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE))


def plain_reserve(nbytes: int) -> memoryview:
    """As `reserve_private`; the system may count it as memory at once."""
    return memoryview(mmap.mmap(-1, nbytes)) if nbytes else memoryview(bytearray())


def expect_random(mapped: mmap.mmap) -> None:
    """Tell the kernel that reads have no order: a fault then reads one page and no read-ahead window."""
    mapped.madvise(mmap.MADV_RANDOM)


def plain_expect_random(mapped: mmap.mmap) -> None:
    """Leave the read-ahead as it is."""


def fadvise_will_need(fd: int, mapped: mmap.mmap | None, offsets: list[int], nbytes: list[int]) -> None:
    """Start reading the ranges. 0.4 µs a range when they are cached: a third less than `madvise`."""
    advise, will_need = os.posix_fadvise, os.POSIX_FADV_WILLNEED
    for offset, length in zip(offsets, nbytes, strict=True):
        advise(fd, offset, length, will_need)


def madvise_will_need(fd: int, mapped: mmap.mmap | None, offsets: list[int], nbytes: list[int]) -> None:
    """Start reading the ranges, which begin at pages, through a map; macOS has no `posix_fadvise`."""
    if mapped is not None:
        advise, option = mapped.madvise, mmap.MADV_WILLNEED
        for offset, length in zip(offsets, nbytes, strict=True):
            advise(option, offset, length)


def plain_will_need(fd: int, mapped: mmap.mmap | None, offsets: list[int], nbytes: list[int]) -> None:
    """No way to ask: the reads come when they come."""


def plain_cold_reads() -> int:
    """Nothing is known about the disk."""
    return 0


def _counter_of_cold_reads() -> Callable[[], int]:
    try:
        import resource
    except ImportError:  # Windows
        return plain_cold_reads
    # The process's own numbers where there are none for a thread: other threads then cause hints too many, no harm.
    who = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)
    getrusage = resource.getrusage

    def cold_reads() -> int:
        usage = getrusage(who)
        return usage.ru_majflt + usage.ru_inblock

    return cold_reads


# --- writing ---


def plain_pwrite(fd: int, buffer: memoryview, offset: int) -> int:
    """Write at an offset by seek and write, under one lock; may write less, as `os.pwrite` may."""
    with _seek_lock:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, buffer)


def allocate(fd: int, nbytes: int) -> None:
    """Promise nothing about the space, only compare with what the file system says is free."""
    if hasattr(os, "fstatvfs"):
        free = os.fstatvfs(fd)
        if nbytes - os.fstat(fd).st_size > free.f_bavail * free.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fadvise_writeback(fd: int, offset: int, nbytes: int) -> None:
    """Linux starts to write a dirty range when told so; dirty pages stay in memory."""
    with contextlib.suppress(OSError):
        os.posix_fadvise(fd, offset, nbytes, os.POSIX_FADV_DONTNEED)


def fadvise_drop_cache(fd: int) -> None:
    """Ask the system to forget the pages of a file that is synced: what is read next comes from the disk."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def plain_drop_cache(fd: int) -> None:
    """The pages stay: what is read next may come from memory."""


def plain_writeback(fd: int, offset: int, nbytes: int) -> None:
    """The system writes when it likes, at the latest at the sync."""


def plain_copy_range(source_fd: int, fd: int, nbytes: int, source_offset: int, offset: int) -> int:
    """No copy inside the kernel: the caller reads and writes."""
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def full_sync(fd: int) -> None:
    """macOS: `fsync` leaves the bytes in the cache of the disk, F_FULLFSYNC does not."""
    import fcntl

    try:
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # type: ignore[attr-defined,unused-ignore]
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):
            raise
        os.fsync(fd)  # a file system without that request, e.g. a network one


def plain_sync_file(fd: int) -> None:
    """Make the file's data and metadata durable."""
    os.fsync(fd)


def sync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | OPEN_FLAGS)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some file systems have no sync of directories: nothing more can be done there.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def plain_sync_directory(path: str) -> None:
    """Windows opens no directories; its file systems journal the names."""


def plain_link(source: str, target: str) -> None:
    """No second names for a file, as on FAT: `commit.py` renames instead."""
    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP), target)


def flock(fd: int) -> None:
    """Take the exclusive lock of an open file, at once or not at all (BlockingIOError)."""
    import fcntl

    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def funlock(fd: int) -> None:
    """Give the lock back, for copies of the descriptor in forked children too."""
    import fcntl

    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)


def plain_flock(fd: int) -> None:
    """No lock on files: `lock.py` takes a lock file instead."""
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def plain_funlock(fd: int) -> None:
    """Nothing was locked."""


# --- threads ---


def batch_scheduling() -> None:
    """Let this thread wait for a core that is free, or for its turn, where another thread wakes it (Linux).

    Otherwise the scheduler may take that one's core away for it. In a thread that makes results ahead of `next()`:
    measured on two busy cores, training with steps of 3 ms waited for 12 % of its time, and so for 1 %.

    No other thread is touched, and shares of time stay equal; what is started in this thread (worker processes of a
    loader under `prefetch`, the pool of a library in a transform) inherits it. A sandbox may refuse.
    """
    with contextlib.suppress(OSError):
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def plain_scheduling() -> None:
    """The system schedules as it likes."""


def _has(name: str) -> bool:
    return hasattr(os, name)


def _fcntl_has(name: str) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    return hasattr(fcntl, name)


_HAS_FLOCK = _fcntl_has("flock")
_MADVISE = hasattr(mmap.mmap, "madvise")

# Where the system has its own call, the name is mostly that call itself: no Python frame in between.
pread: Callable[[int, int, int], bytes] = os.pread if _has("pread") else plain_pread
preadv: Callable[[int, Sequence[memoryview], int], int] = os.preadv if _has("preadv") else plain_preadv
pwrite: Callable[[int, memoryview, int], int] = os.pwrite if _has("pwrite") else plain_pwrite
readv: Callable[[int, Sequence[bytearray | memoryview]], int] = os.readv if _has("readv") else plain_readv
file_size = seek_end if _has("pread") else plain_file_size
map_file = map_private if hasattr(mmap, "MAP_PRIVATE") else plain_map_private
reserve = reserve_private if hasattr(mmap, "MAP_ANONYMOUS") else plain_reserve
advise_random = expect_random if _MADVISE and hasattr(mmap, "MADV_RANDOM") else plain_expect_random
will_need = (
    fadvise_will_need
    if _has("posix_fadvise")
    else madvise_will_need
    if _MADVISE and hasattr(mmap, "MADV_WILLNEED")
    else plain_will_need
)
cold_reads = _counter_of_cold_reads()
copy_range: Callable[[int, int, int, int, int], int] = (
    os.copy_file_range if _has("copy_file_range") else plain_copy_range
)
# Elsewhere DONTNEED need not write, and may only drop the pages.
start_writeback = fadvise_writeback if sys.platform == "linux" else plain_writeback
drop_cache = fadvise_drop_cache if _has("posix_fadvise") else plain_drop_cache
sync_file = full_sync if _fcntl_has("F_FULLFSYNC") else plain_sync_file
sync_data: Callable[[int], None] = (
    full_sync if _fcntl_has("F_FULLFSYNC") else os.fdatasync if _has("fdatasync") else plain_sync_file
)
sync_names = plain_sync_directory if os.name == "nt" else sync_directory
link: Callable[[str, str], None] = os.link if _has("link") else plain_link
lock = flock if _HAS_FLOCK else plain_flock
unlock = funlock if _HAS_FLOCK else plain_funlock
never_interrupt = batch_scheduling if _has("SCHED_BATCH") else plain_scheduling

# The plain twin of each name above: a system that has nothing but Python's portable calls.
PLAIN: dict[str, Callable[..., Any]] = {
    "pread": plain_pread,
    "preadv": plain_preadv,
    "pwrite": plain_pwrite,
    "readv": plain_readv,
    "file_size": plain_file_size,
    "map_file": plain_map_private,
    "reserve": plain_reserve,
    "advise_random": plain_expect_random,
    "will_need": plain_will_need,
    "cold_reads": plain_cold_reads,
    "copy_range": plain_copy_range,
    "start_writeback": plain_writeback,
    "drop_cache": plain_drop_cache,
    "sync_file": plain_sync_file,
    "sync_data": plain_sync_file,
    "sync_names": plain_sync_directory,
    "link": plain_link,
    "lock": plain_flock,
    "unlock": plain_funlock,
    "never_interrupt": plain_scheduling,
}
