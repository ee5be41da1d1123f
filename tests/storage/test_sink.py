"""Writes are whole or an error, and after an error nothing more is taken."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from storage.faults import Failing, Lying, Recorder, Stingy

from chunkstore._storage import platform, syscalls
from chunkstore._storage.sink import Sink
from chunkstore._storage.source import PreadSource, open_source
from chunkstore.errors import ClosedError, CommitUnknownError, PoisonedError, TruncatedError, WriteError

DATA = np.random.default_rng(3).integers(0, 256, 100_000, dtype=np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out"


class SinkTests:
    """What every sink does; the subclasses choose the system's own calls or the plain twins."""

    @pytest.fixture
    def sink(self, path: Path) -> Iterator[Sink]:
        with Sink.create(path) as sink:
            yield sink

    def test_pwrite(self, sink: Sink, path: Path) -> None:
        """Writes land at their offsets; a gap reads as zeros; `size` is the end of the furthest."""
        sink.pwrite(10, b"abc")
        sink.pwrite(2, np.array([258], "<u2"))
        sink.sync()
        assert path.read_bytes() == b"\0\0\x02\x01" + bytes(6) + b"abc"
        assert sink.size == 13

    @pytest.mark.parametrize(
        "value",
        [
            np.array(5, "<i4"),
            np.array(["2020", "NaT"], "datetime64[D]"),
            np.zeros((2, 0)),
            b"",
            memoryview(b"xy"),
        ],
        ids=["0-d", "datetime64", "no elements", "no bytes", "memoryview"],
    )
    def test_writes_any_contiguous_memory(self, sink: Sink, path: Path, value: np.ndarray | bytes | memoryview) -> None:
        """Types without the buffer protocol and empty arrays are written like all others."""
        sink.pwrite(sink.size, value)
        assert path.read_bytes() == (value if isinstance(value, bytes) else value.tobytes())

    def test_refuses_strided_memory(self, sink: Sink) -> None:
        """A caller's mistake is a ValueError and does not poison."""
        with pytest.raises(ValueError, match="C-contiguous"):
            sink.pwrite(0, np.arange(10)[::2])
        assert not sink.poisoned

    def test_size(self, sink: Sink, path: Path) -> None:
        """`size` is where the last byte ends that was written, in whatever order."""
        sizes = []
        for offset, data in ((3, b"def"), (0, b"abc"), (6, b"")):
            sink.pwrite(offset, data)
            sizes.append(sink.size)
        assert sizes == [6, 6, 6]
        assert path.read_bytes() == b"abcdef"

    @pytest.mark.parametrize("most", [1, 7, 4096])
    def test_short_writes_are_completed(self, path: Path, most: int) -> None:
        """A system that takes a few bytes of each write gets the rest in further writes."""
        with syscalls.use(Stingy(most)), Sink.create(path) as sink:
            sink.pwrite(0, DATA[:5000])
            sink.pwrite(5000, DATA[5000:9001])
        assert path.read_bytes() == DATA[:9001].tobytes()

    def test_limit_of_one_call(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """No call is given more than the system takes, here 1000 bytes."""
        monkeypatch.setattr(platform, "MAX_CALL_NBYTES", 1000)
        recorder = Recorder()
        with syscalls.use(recorder), Sink.create(path) as sink:
            sink.pwrite(0, DATA[:3500])
        assert path.read_bytes() == DATA[:3500].tobytes()
        assert max(len(call[2]) for call in recorder.calls if call[0] == "pwrite") == 1000

    def test_truncate(self, sink: Sink, path: Path) -> None:
        """Truncate cuts or adds zeros, and appends go on from there."""
        sink.pwrite(sink.size, b"abcdef")
        sink.truncate(2)
        sink.pwrite(sink.size, b"X")
        sink.truncate(5)
        assert (sink.size, path.read_bytes()) == (5, b"abX\0\0")

    def test_preallocate(self, sink: Sink, path: Path) -> None:
        """The file has its whole size at once; what was written stays."""
        sink.pwrite(sink.size, b"abc")
        sink.preallocate(5000)
        assert (sink.size, path.read_bytes()) == (5000, b"abc" + bytes(4997))

    @pytest.mark.skipif(not hasattr(os, "fstatvfs"), reason="this system does not tell its free space")
    def test_preallocate_more_than_there_is(self, sink: Sink, path: Path) -> None:
        """A size that the disk has no room for is refused before anything is written."""
        with pytest.raises(WriteError, match="free some space") as caught:
            sink.preallocate(2**60)
        assert caught.value.errno == errno.ENOSPC
        assert path.stat().st_size == 0

    def test_open_keeps_the_content(self, path: Path) -> None:
        """An existing file is opened for writing into it; appends go behind it."""
        path.write_bytes(b"abcdef")
        with Sink.open(path) as sink:
            sink.pwrite(1, b"X")
            assert sink.size == 6
            sink.pwrite(6, b"g")
        assert path.read_bytes() == b"aXcdefg"

    def test_create_never_overwrites(self, path: Path) -> None:
        """Create refuses a name that is taken, open one that is not."""
        with pytest.raises(FileNotFoundError):
            Sink.open(path)
        path.write_bytes(b"mine")
        with pytest.raises(FileExistsError):
            Sink.create(path)
        assert path.read_bytes() == b"mine"

    def test_mode_follows_the_umask(self, path: Path) -> None:
        """A new file has mode 0666 less the umask, as any file that a program makes."""
        before = os.umask(0o027)
        try:
            Sink.create(path).close()
        finally:
            os.umask(before)
        assert path.stat().st_mode & 0o777 == 0o640

    def test_threads(self, sink: Sink, path: Path) -> None:
        """Many threads may write disjoint ranges of one sink."""
        sink.preallocate(len(DATA))

        def write(first: int) -> None:
            for offset in range(first * 1000, len(DATA), 8000):
                sink.pwrite(offset, DATA[offset : offset + 1000])

        threads = [threading.Thread(target=write, args=(first,)) for first in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert path.read_bytes() == DATA.tobytes()

    def test_copy_from(self, sink: Sink, path: Path, tmp_path: Path) -> None:
        """A range of another file is copied, whatever its alignment."""
        DATA.tofile(tmp_path / "in")
        with open_source(tmp_path / "in") as source:
            sink.copy_from(source, 5, 3, 90_001)
            sink.copy_from(source, 0, 0, 3)
        assert sink.size == 90_004
        assert path.read_bytes() == DATA[:3].tobytes() + DATA[5:90_006].tobytes()

    def test_copy_from_truncated_source(self, sink: Sink, tmp_path: Path) -> None:
        """A source that ends too early is a TruncatedError, and the sink takes nothing more."""
        DATA.tofile(tmp_path / "in")
        with PreadSource(tmp_path / "in") as source:
            os.truncate(tmp_path / "in", 50)
            with pytest.raises(TruncatedError, match="expected"):
                sink.copy_from(source, 0, 0, 100)
        with pytest.raises(PoisonedError, match="expected"):
            sink.pwrite(sink.size, b"x")

    def test_use_after_close(self, sink: Sink) -> None:
        """Closing twice is allowed, every other use is a ClosedError."""
        sink.close()
        sink.close()
        for use in (lambda: sink.pwrite(sink.size, b"x"), sink.sync, lambda: sink.truncate(0), sink.fileno):
            with pytest.raises(ClosedError, match="closed for writing"):
                use()

    @pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
    def test_a_descriptor_is_not_closed_twice(self, path: Path, error: type[BaseException]) -> None:
        """An interrupt or an error when the system has closed it already: the number may be another file's by now."""
        closed: list[int] = []

        class Interrupted(syscalls.SystemCalls):
            def close(self, fd: int) -> None:
                closed.append(fd)
                super().close(fd)
                raise error

        with syscalls.use(Interrupted()):
            sink = Sink.create(path)
        with pytest.raises(error):
            sink.close()
        sink.close()
        assert len(closed) == 1

    def test_forgotten_sink_closes(self, path: Path, num_descriptors: Callable[[], int]) -> None:
        """A sink that nobody holds gives its descriptor back."""
        before = num_descriptors()
        sink = Sink.create(path)
        assert num_descriptors() == before + 1
        del sink
        gc.collect()
        assert num_descriptors() == before


class TestSink(SinkTests):
    """With the calls of this system."""


@pytest.mark.usefixtures("plain")
class TestPlainSink(SinkTests):
    """With the plain twins of all calls."""


def write_part(temporary: str, first: int) -> None:
    with Sink.join(temporary) as sink:
        sink.pwrite(first, DATA[first : first + 25_000])
        sink.sync()


def test_processes_write_parts_of_one_file(path: Path) -> None:
    """Worker processes open the unfinished file by its path and write disjoint ranges."""
    with Sink.create(path) as sink:
        sink.preallocate(len(DATA))
        context = multiprocessing.get_context("fork")
        workers = [context.Process(target=write_part, args=(str(path), first)) for first in range(0, 100_000, 25_000)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0] * 4
        sink.sync()
    assert path.read_bytes() == DATA.tobytes()


WRITES: list[tuple[str, Callable[[Sink], object]]] = [
    ("pwrite", lambda sink: sink.pwrite(100, b"abc")),
    ("truncate", lambda sink: sink.truncate(10)),
    ("allocate", lambda sink: sink.preallocate(10)),
    ("truncate", lambda sink: sink.preallocate(10)),
]


@pytest.mark.parametrize(("name", "write"), WRITES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(WRITES)])
@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "your quota is used up"),
        (errno.EIO, "check the disk"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EROFS, "read-only"),
        (errno.EPERM, "see the cause"),
    ],
)
def test_failed_write(path: Path, name: str, write: Callable[[Sink], object], number: int, advice: str) -> None:
    """A refused write is a WriteError with errno, file and advice; then the sink is poisoned."""
    with syscalls.use(Failing(name, number)), Sink.create(path) as sink:
        with pytest.raises(WriteError, match=advice) as caught:
            write(sink)
        assert (caught.value.errno, caught.value.filename) == (number, str(path))
        assert type(caught.value) is WriteError
        for later in (write, Sink.sync, lambda sink: sink.pwrite(sink.size, b"x")):
            with pytest.raises(PoisonedError, match=advice):
                later(sink)


def test_failed_copy(path: Path, tmp_path: Path) -> None:
    """A full disk in the middle of a copy inside the kernel is a WriteError, not a reason to copy plainly."""
    DATA.tofile(tmp_path / "in")
    recorder = Failing("copy_range", errno.ENOSPC)
    with syscalls.use(recorder), PreadSource(tmp_path / "in") as source, Sink.create(path) as sink:
        copying = pytest.raises(WriteError, match="free some space")
        with copying:
            sink.copy_from(source, 0, 0, 100)
    assert "pwrite" not in recorder.names


@pytest.mark.parametrize("number", [errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP])
def test_copy_where_the_kernel_cannot(path: Path, tmp_path: Path, number: int) -> None:
    """Two file systems, or a kernel without the call, also in the middle: read and write do the rest."""
    DATA.tofile(tmp_path / "in")

    class Halfway(Stingy):
        def copy_range(self, source_fd: int, fd: int, nbytes: int, source_offset: int, offset: int) -> int:
            if offset >= 3000:
                raise OSError(number, os.strerror(number))
            super().pwrite(fd, memoryview(DATA[source_offset : source_offset + 1000]), offset)
            return 1000

    with PreadSource(tmp_path / "in") as source, syscalls.use(Halfway(1000)), Sink.create(path) as sink:
        sink.copy_from(source, 0, 0, 7500)
    assert path.read_bytes() == DATA[:7500].tobytes()


@pytest.mark.parametrize("count", [0, -1, 4])
def test_lying_system(path: Path, count: int) -> None:
    """A count of bytes that cannot be (none, or more than were given) is an error, and no endless loop."""
    with syscalls.use(Lying(count)), Sink.create(path) as sink:
        with pytest.raises(WriteError, match=rf"says that it wrote {count} of 3 bytes"):
            sink.pwrite(sink.size, b"abc")
        assert sink.poisoned


@pytest.mark.parametrize("sync", ["sync_data", "sync_file"])
def test_failed_sync_is_never_retried(path: Path, sync: str) -> None:
    """The kernel reports a lost page once: the second sync would say all is well, so it is not asked."""
    recorder = Failing(sync, errno.EIO)
    with syscalls.use(recorder), Sink.create(path) as sink:
        sink.pwrite(sink.size, b"abc")
        act = sink.sync if sync == "sync_data" else sink.sync_file
        with pytest.raises(CommitUnknownError, match="unknown") as caught:
            act()
        assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(path))
        for later in (sink.sync, sink.sync_file, lambda: sink.pwrite(sink.size, b"x")):
            with pytest.raises(PoisonedError, match="sync failed"):
                later()
    assert recorder.names.count(sync) == 1
    assert recorder.names[-1] == "close"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_real_full_disk() -> None:
    """The device that is always full gives the same error as the injected one."""
    with Sink.open("/dev/full") as sink, pytest.raises(WriteError, match="free some space"):
        sink.pwrite(sink.size, b"abc")


def test_large_writes_start_the_disk(path: Path) -> None:
    """Writes of 256 KiB and more are handed to the disk at once, so that the final sync is short."""
    recorder = Recorder()
    with syscalls.use(recorder), Sink.create(path) as sink:
        sink.pwrite(sink.size, bytes(1 << 18))
        sink.pwrite(sink.size, bytes((1 << 18) - 1))
    assert [call[2:] for call in recorder.calls if call[0] == "start_writeback"] == [(0, 1 << 18)]


def test_use_restores_the_calls() -> None:
    """After the with-block, also by an exception, new files use the real calls again."""
    real = syscalls.active()
    calls = Recorder()
    with pytest.raises(KeyError), syscalls.use(calls):
        raise KeyError(syscalls.active() is calls)
    assert syscalls.active() is real
