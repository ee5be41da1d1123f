"""One suite over both back ends, each with the system's own calls and with the plain twins."""

from __future__ import annotations

import copy
import errno
import gc
import itertools
import mmap
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chunkstore._storage import filesystem, platform
from chunkstore._storage import source as source_module
from chunkstore._storage.source import MmapSource, PreadSource, Source, cold_reads, open_source
from chunkstore.errors import ClosedError, NotAContainerError, TruncatedError

NBYTES = 300_000
CONTENT = np.random.default_rng(7).integers(0, 256, NBYTES, dtype=np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "a.cks"
    CONTENT.tofile(file)
    return file


def expected_rows(offsets: Sequence[int], nbytes: Sequence[int]) -> bytes:
    return b"".join(CONTENT[o : o + n].tobytes() for o, n in zip(offsets, nbytes, strict=True))


def interrupted_at(number: int, call: Callable[[], object]) -> bool:
    """Raise KeyboardInterrupt before this bytecode of `call`, but in no finalizer; False where it has ended by then."""
    left = number

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal left
        if frame.f_code.co_name in ("__del__", "gc_callback"):
            return None  # Python itself drops what is raised in it; the latter is Hypothesis's
        frame.f_trace_opcodes = True
        left -= event == "opcode"
        if left < 0:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    try:
        sys.settrace(trace)
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


class SourceTests:
    """What every source does. The subclasses say which one it is."""

    backend: Literal["mmap", "pread"]

    @pytest.fixture
    def source(self, path: Path) -> Iterator[Source]:
        with open_source(path, self.backend) as source:
            yield source

    def test_describes_its_file(self, source: Source, path: Path) -> None:
        """Path, size and identity are those of the file when it was opened."""
        status = path.stat()
        assert (source.path, source.size, source.backend) == (str(path), NBYTES, self.backend)
        assert source.identity == (status.st_dev, status.st_ino, NBYTES, status.st_mtime_ns)

    @pytest.mark.parametrize(
        ("offset", "nbytes"), [(0, 0), (0, 1), (4095, 2), (1234, 200_000), (0, NBYTES), (NBYTES, 0)]
    )
    def test_reads_any_range(self, source: Source, offset: int, nbytes: int) -> None:
        """`read`, `read_into` and the views give the bytes of the file."""
        expected = CONTENT[offset : offset + nbytes].tobytes()
        out = np.empty(nbytes, np.uint8)
        source.read_into(offset, out)
        assert source.read(offset, nbytes) == expected == out.tobytes()
        for view in (source.view, source.sequential_view, source.writable_view):
            found = view(offset, nbytes)
            assert (found is None) == (self.backend == "pread")
            assert found is None or bytes(found) == expected

    @pytest.mark.parametrize(
        "out",
        [
            bytearray(24),
            np.empty((2, 3), "<f4"),
            np.empty(3, "datetime64[ns]"),
            np.empty((), "V24"),
            np.empty((1, 3, 1), "S8"),
            memoryview(bytearray(24)).cast("d"),
        ],
        ids=["bytearray", "float32", "datetime64", "0-d void", "bytes", "doubles"],
    )
    def test_fills_buffers_of_any_type(self, source: Source, out: bytearray | np.ndarray | memoryview) -> None:
        """The destination may be any C-contiguous memory, whatever its type and shape."""
        source.read_into(1000, out)
        assert bytes(memoryview(out.tobytes() if isinstance(out, np.ndarray) else out)) == CONTENT[1000:1024].tobytes()

    def test_fills_empty_arrays(self, source: Source) -> None:
        """An array without elements needs no bytes, at any offset of the file."""
        source.read_into(5, np.empty((3, 0, 2), "<i8"))

    def test_refuses_buffers_it_cannot_fill(self, source: Source) -> None:
        """Strided and read-only memory is refused before anything is read."""
        with pytest.raises(ValueError, match="C-contiguous"):
            source.read_into(0, np.empty((4, 4), np.uint8)[:, :2])
        with pytest.raises(ValueError, match="C-contiguous"):
            source.read_into(0, memoryview(bytearray(8))[::2])
        with pytest.raises(ValueError, match="writable"):
            source.read_into(0, b"1234")

    @pytest.mark.parametrize(
        ("offset", "nbytes"), [(NBYTES, 1), (NBYTES - 1, 2), (0, NBYTES + 1), (2**62, 8), (0, 2**62)]
    )
    def test_range_beyond_the_end(self, source: Source, offset: int, nbytes: int) -> None:
        """Every read beyond the end says path, range, expected and found, and allocates nothing for it."""
        found = min(nbytes, max(0, NBYTES - offset))
        text = rf"a\.cks: bytes \[{offset}, {offset + nbytes}\): expected {nbytes} bytes, found {found}"
        with pytest.raises(TruncatedError, match=text):
            source.read(offset, nbytes)
        with pytest.raises(TruncatedError, match=text):
            source.advise(np.array([offset]), nbytes)
        if nbytes <= NBYTES + 1:
            with pytest.raises(TruncatedError, match=text):
                source.read_into(offset, bytearray(nbytes))
            with pytest.raises(TruncatedError, match=text):
                source.read_scattered(np.array([0, offset]), np.array([1, nbytes]), bytearray(nbytes + 1))
        if self.backend == "mmap":
            for view in (source.view, source.sequential_view, source.writable_view):
                with pytest.raises(TruncatedError, match=text):
                    view(offset, nbytes)

    def test_negative_numbers(self, source: Source) -> None:
        """A negative offset or length is a mistake of the caller, not of the file."""
        with pytest.raises(ValueError, match="0 or more"):
            source.read(-1, 1)
        with pytest.raises(ValueError, match="0 or more"):
            source.read_scattered(np.array([5, -1]), 1, bytearray(2))
        with pytest.raises(ValueError, match="0 or more"):
            source.advise(np.array([5]), np.array([-1]))

    @pytest.mark.parametrize(
        ("offsets", "nbytes"),
        [
            ([], []),
            ([7], [100]),
            ([9, 9, 9], [5, 5, 5]),
            ([100, 0, 200_000, 50], [50, 10, 4097, 0]),
            ([0, 100, 200, 300], [100] * 4),
            ([300, 200, 100, 0], [100] * 4),
            ([300, 0, 400, 100, 1000, 200], [100] * 6),
            ([10, 5, 0], [100, 100, 100]),
        ],
        ids=["none", "one", "repeats", "lengths", "in order", "reversed", "woven", "overlapping"],
    )
    def test_read_scattered(self, source: Source, offsets: list[int], nbytes: list[int]) -> None:
        """Rows arrive back to back in the order asked for."""
        out = np.full(sum(nbytes), 255, np.uint8)
        source.read_scattered(np.array(offsets, np.int64), np.array(nbytes, np.int64), out)
        assert out.tobytes() == expected_rows(offsets, nbytes)

    def test_read_scattered_of_all_rows_in_any_order(self, source: Source) -> None:
        """More neighbours than one call takes (IOV_MAX) are still one run."""
        rows = CONTENT[: 3000 * 100].reshape(3000, 100)
        order = np.random.default_rng(0).permutation(3000)
        out = np.empty((3000, 100), np.uint8)
        source.read_scattered(order * 100, 100, out)
        np.testing.assert_array_equal(out, rows[order])

    def test_read_scattered_checks_its_arguments(self, source: Source) -> None:
        """The destination must be exactly as large as the rows, and the lengths as many as the offsets."""
        with pytest.raises(ValueError, match="out of 20 bytes, found 19"):
            source.read_scattered(np.array([0, 5]), 10, bytearray(19))
        with pytest.raises(ValueError, match="as many nbytes"):
            source.read_scattered(np.array([0, 5]), np.array([1, 2, 3]), bytearray(6))

    def test_advise_changes_nothing(self, source: Source) -> None:
        """Hints are accepted for any ranges, empty ones too, and the bytes stay what they are."""
        source.advise(np.array([], np.int64), 10)
        source.advise(np.array([5, 5, 299_999, 0, 70_000]), np.array([0, 10, 1, NBYTES, 1]))
        assert source.read(0, NBYTES) == CONTENT.tobytes()

    def test_file_that_shrinks(self, source: Source, path: Path) -> None:
        """A file cut under the reader is a TruncatedError from every copy, and never a crash."""
        source.check_size()
        os.truncate(path, 1000)
        with pytest.raises(TruncatedError, match="had 300000 bytes when it was opened and has 1000 now"):
            source.check_size()
        with pytest.raises(TruncatedError, match=r"bytes \[0, 300000\): expected 300000 bytes, found 1000"):
            source.read(0, NBYTES)
        with pytest.raises(TruncatedError, match=r"expected 10 bytes, found 5"):
            source.read_into(995, bytearray(10))
        with pytest.raises(TruncatedError, match="expected"):
            source.read_scattered(np.array([0, 5000, 100]), 10, bytearray(30))
        with pytest.raises(TruncatedError, match="expected"):
            source.read_scattered(np.array([1000, 990]), 10, bytearray(20))
        assert source.read(0, 1000) == CONTENT[:1000].tobytes()

    def test_file_that_grows(self, source: Source, path: Path) -> None:
        """What is appended later does not exist for a source that is open."""
        with path.open("ab") as file:
            file.write(b"more")
        source.check_size()
        assert source.size == NBYTES
        with pytest.raises(TruncatedError):
            source.read(NBYTES, 1)

    def test_removed_and_replaced_file(self, source: Source, path: Path) -> None:
        """The source keeps the file that it opened."""
        path.unlink()
        path.write_bytes(b"other")
        source.check_size()
        assert source.read(17, 100) == CONTENT[17:117].tobytes()

    def test_use_after_close(self, source: Source) -> None:
        """Closing twice is allowed; every other use is a ClosedError that names the file."""
        source.close()
        source.close()
        assert source.closed
        uses: list[Callable[[], object]] = [
            lambda: source.read(0, 1),
            lambda: source.read_into(0, bytearray(1)),
            lambda: source.read_scattered(np.array([0]), 1, bytearray(1)),
            lambda: source.view(0, 1),
            lambda: source.sequential_view(0, 1),
            lambda: source.writable_view(0, 1),
            lambda: source.advise(np.array([0]), 1),
            source.check_size,
            source.fileno,
        ]
        for use in uses:
            with pytest.raises(ClosedError, match=r"a\.cks: the source was closed"):
                use()

    def test_close_takes_no_memory(self, source: Source, num_descriptors: Callable[[], int]) -> None:
        """What fails for want of memory lets go of its file all the same."""
        hooks = pytest.importorskip("_testcapi")
        before = num_descriptors()
        hooks.set_nomemory(0)
        try:
            source.close()
        finally:
            hooks.remove_mem_hooks()
        assert source.closed
        assert num_descriptors() < before

    def test_an_interrupt_leaves_no_file_open(self, path: Path, num_descriptors: Callable[[], int]) -> None:
        """At whatever bytecode it comes while a file is opened."""
        before, number = num_descriptors(), 0
        while interrupted_at(number, lambda: open_source(path, self.backend)):
            assert num_descriptors() == before
            number += 1
        assert number > 100

    def test_closed_while_its_size_is_looked_at(self, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another thread may close it at any time: the descriptor is there until the system call is over."""
        size = platform.file_size

        def slow(descriptor: int) -> int:
            source.close()
            return size(descriptor)

        monkeypatch.setattr(platform, "file_size", slow)
        source.check_size()
        assert source.closed

    def test_its_size_is_looked_at_during_a_read(self, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another thread may do so at any time: it moves no position that the read uses."""
        read, expected = os.read, source.read(1, 10)

        def slow(descriptor: int, nbytes: int) -> bytes:
            source.check_size()
            return read(descriptor, nbytes)

        monkeypatch.setattr(os, "read", slow)
        assert source.read(1, 10) == expected

    def test_empty_file(self, tmp_path: Path) -> None:
        """A file of no bytes opens; there is nothing in it."""
        (tmp_path / "empty").touch()
        with open_source(tmp_path / "empty", self.backend) as source:
            assert (source.size, source.read(0, 0), source.backend) == (0, b"", self.backend)
            source.check_size()
            source.advise(np.array([0]), 0)
            if self.backend == "mmap":
                assert source.view(0, 0) == source.sequential_view(0, 0) == b""
                assert source.writable_view(0, 0) is None
            with pytest.raises(TruncatedError, match="expected 1 bytes, found 0"):
                source.read(0, 1)

    def test_file_of_one_byte(self, tmp_path: Path) -> None:
        """A file far below a page reads like any other."""
        (tmp_path / "tiny").write_bytes(b"x")
        with open_source(tmp_path / "tiny", self.backend) as source:
            assert source.read(0, 1) == b"x"
            assert source.view(0, 1) in (b"x", None)

    def test_threads(self, source: Source) -> None:
        """Many threads read through one source at once, and none gets the bytes of another."""
        wrong: list[int] = []

        def read(seed: int) -> None:
            rng = np.random.default_rng(seed)
            for _ in range(60):
                offsets = rng.integers(0, NBYTES - 500, 20)
                out = bytearray(20 * 500)
                source.read_scattered(offsets, 500, out)
                whole = source.read(int(offsets[0]), 500)
                if out != expected_rows(offsets.tolist(), [500] * 20) or out[:500] != whole:
                    wrong.append(seed)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong

    def test_close_while_threads_read(self, path: Path) -> None:
        """A source closed during reads gives right bytes or ClosedError, never those of another file."""
        other = path.with_name("other")
        other.write_bytes(bytes(NBYTES))
        found: list[object] = []

        def read(source: Source) -> None:
            try:
                for _ in range(500):
                    found.append(source.read(1000, 5000) == CONTENT[1000:6000].tobytes())
            except Exception as error:
                found.append(type(error))

        for _ in range(10):
            source = open_source(path, self.backend)
            threads = [threading.Thread(target=read, args=(source,)) for _ in range(3)]
            for thread in threads:
                thread.start()
            source.close()
            with other.open("rb"), other.open("rb"):  # takes the numbers of the closed descriptors
                for thread in threads:
                    thread.join()
        assert set(found) <= {True, ClosedError}

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
    def test_fork(self, source: Source) -> None:
        """Parent and child read through the same source at once; both get their own bytes."""

        def right(start: int) -> bool:
            out = bytearray(100)
            for offset in range(start, 100_000, 997):
                source.read_into(offset, out)
                if out != CONTENT[offset : offset + 100].tobytes() or source.read(offset, 100) != out:
                    return False
            return True

        children = []
        for start in range(3):
            pid = os.fork()
            if pid == 0:
                os._exit(0 if right(start) else 1)
            children.append(pid)
        assert right(500)
        assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]

    def test_refuses_pickle_and_copy(self, source: Source) -> None:
        """A descriptor number means another file elsewhere, so a source does not travel."""
        with pytest.raises(TypeError, match="reopen its path"):
            pickle.dumps(source)
        with pytest.raises(TypeError, match="reopen its path"):
            copy.copy(source)

    def test_descriptors(self, path: Path, num_descriptors: Callable[[], int]) -> None:
        """At most two descriptors each, and none after close, with or without a view left."""
        before = num_descriptors()
        sources = [open_source(path, self.backend) for _ in range(10)]
        assert num_descriptors() - before <= 20
        for source in sources:
            source.read(0, 10)
            source.advise(np.array([0]), 10)
            source.sequential_view(0, 10)
        assert num_descriptors() - before <= 20
        for source in sources:
            source.close()
        assert num_descriptors() == before

    def test_repr(self, source: Source) -> None:
        """The text of a source says what and how large it is."""
        assert "a.cks" in repr(source)
        assert "300000 bytes" in repr(source)


class TestPread(SourceTests):
    backend = "pread"


class TestMmap(SourceTests):
    backend = "mmap"


@pytest.mark.usefixtures("plain")
class TestPlainPread(SourceTests):
    backend = "pread"
    # Seek and read move the position that parent and child share; a system without `pread` has no fork.
    test_fork = None  # type: ignore[assignment]


@pytest.mark.usefixtures("plain")
class TestPlainMmap(SourceTests):
    backend = "mmap"
    test_fork = None  # type: ignore[assignment]


class TestShortReads:
    """The system may give less than was asked at any call."""

    @pytest.fixture(params=["mmap", "pread"])
    def source(self, request: pytest.FixtureRequest, path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
        sizes = itertools.cycle([1, 7, 4096, 3])

        def short_preadv(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
            return os.preadv(fd, [buffers[0][: next(sizes)]], offset)

        monkeypatch.setattr(platform, "preadv", short_preadv)
        monkeypatch.setattr(platform, "pread", lambda fd, nbytes, offset: os.pread(fd, nbytes // 3, offset))
        return open_source(path, request.param)

    def test_every_read_is_completed(self, source: Source) -> None:
        """Short reads are continued where they stopped, inside and between rows."""
        assert source.read(100, 9000) == CONTENT[100:9100].tobytes()
        out = bytearray(9000)
        source.read_into(100, out)
        assert out == CONTENT[100:9100].tobytes()
        offsets = [500, 0, 510, 9000, 520, 9000]
        out = bytearray(60)
        source.read_scattered(np.array(offsets), 10, out)
        assert out == expected_rows(offsets, [10] * 6)

    def test_reads_in_pieces_of_what_one_call_takes(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """No call asks for more than the limit of the system, here set to 1000 bytes."""
        asked: list[int] = []

        def preadv(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
            asked.append(sum(map(len, buffers)))
            return os.preadv(fd, buffers, offset)

        monkeypatch.setattr(platform, "preadv", preadv)
        monkeypatch.setattr(platform, "MAX_CALL_NBYTES", 1000)
        with PreadSource(path) as source:
            assert source.read(0, 5500) == CONTENT[:5500].tobytes()
            out = bytearray(6000)
            source.read_scattered(np.array([2000, 0, 9000]), 2000, out)
            assert out == expected_rows([2000, 0, 9000], [2000] * 3)
        assert max(asked) == 1000

    def test_disk_error_names_the_file(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An error of the disk passes as OSError with the path, which the system call does not know."""

        def broken(*_: object) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(platform, "preadv", broken)
        monkeypatch.setattr(platform, "pread", broken)
        with PreadSource(path) as source:
            for read in (
                lambda: source.read(0, 9),
                lambda: source.read_into(0, bytearray(9)),
                lambda: source.read_scattered(np.array([0, 50]), 9, bytearray(18)),
                lambda: source.read_scattered(np.array([9, 0]), 9, bytearray(18)),
            ):
                with pytest.raises(OSError, match="error") as caught:
                    read()
                assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(path))


class TestMap:
    """What only the map does."""

    def test_views_cannot_be_made_writable(self, path: Path) -> None:
        """Neither the view nor an array over it accepts a write, nor can the array be switched."""
        with MmapSource(path) as source:
            for view in (source.view(0, 100), source.sequential_view(0, 100)):
                assert view is not None
                assert view.readonly
                array = np.frombuffer(view, np.uint8)
                with pytest.raises(TypeError, match="read-only"):
                    view[0] = 1
                with pytest.raises(ValueError, match="read-only"):
                    array[0] = 1
                with pytest.raises(ValueError, match="WRITEABLE"):
                    array.flags.writeable = True

    def test_writable_view_never_changes_the_file(self, path: Path) -> None:
        """The memory is private: a write shows in this process, not in the file or another source."""
        with MmapSource(path) as source, MmapSource(path) as other:
            memory, view = source.writable_view(8192, 10), source.view(8192, 10)
            assert memory is not None
            assert view is not None
            memory[:] = bytes(10)
            assert bytes(view) == bytes(10)
            expected = CONTENT[8192:8202].tobytes()
            assert source.read(8192, 10) == other.view(8192, 10) == expected == path.read_bytes()[8192:8202]

    def test_views_outlive_close(self, path: Path, num_descriptors: Callable[[], int]) -> None:
        """A view stays valid after close and after the source is gone; the map goes with the last view."""
        before = num_descriptors()
        source = MmapSource(path)
        arrays = [np.frombuffer(v, np.uint8) for v in (source.view(0, NBYTES), source.sequential_view(0, NBYTES)) if v]
        source.close()
        del source
        gc.collect()
        for array in arrays:
            np.testing.assert_array_equal(array, CONTENT)
        del arrays, array
        assert num_descriptors() == before

    def test_sequential_map_is_shared_and_goes_with_its_views(self, path: Path) -> None:
        """All sequential views stand on one map, made when first needed and dropped with the last of them."""
        with MmapSource(path) as source:
            first, second = source.sequential_view(0, 10), source.sequential_view(4096, 10)
            assert first is not None
            assert second is not None
            assert first.obj is second.obj
            del first, second
            gc.collect()
            assert source._sequential is not None
            assert source._sequential() is None

    def test_whole_map_is_aligned(self, path: Path) -> None:
        """The map begins at a page, so offsets that are multiples of 64 give pointers that are, too."""
        with MmapSource(path) as source:
            address = np.frombuffer(source.view(0, 64) or b"", np.uint8).ctypes.data
            assert address % mmap.PAGESIZE == 0

    def test_read_only_map_where_memory_is_counted(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the system refuses a private writable map (strict overcommit), the map is read-only."""
        real = mmap.mmap

        def strict(fd: int, nbytes: int, **options: int) -> mmap.mmap:
            if options.get("prot", 0) & mmap.PROT_WRITE:
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
            return real(fd, nbytes, **options)

        monkeypatch.setattr(platform.mmap, "mmap", strict)
        with MmapSource(path) as source:
            assert source.writable_view(0, 10) is None
            assert source.view(5, 10) == CONTENT[5:15].tobytes()

    def test_file_larger_than_memory(self, tmp_path: Path) -> None:
        """A sparse file of 16 TiB opens, maps and reads, whatever the memory of the machine."""
        large = tmp_path / "large"
        try:
            with large.open("wb") as file:
                file.truncate(2**44 - 2**20)
        except OSError as error:
            pytest.skip(f"the file system has no files of 16 TiB: {error}")
        for backend in ("mmap", "pread"):
            with open_source(large, backend) as source:
                assert source.read(source.size - 5, 5) == bytes(5)
                assert source.view(source.size - 5, 5) in (bytes(5), None)
                assert source.sequential_view(source.size - 5, 5) in (bytes(5), None)

    @pytest.mark.skipif(sys.platform != "linux", reason="SIGBUS is documented for Linux")
    def test_truncation_under_a_view_kills_the_process(self, path: Path) -> None:
        """What the module says of maps: a view behind the new end is SIGBUS, which nobody can catch."""
        code = (
            "import os, sys\n"
            "from chunkstore._storage.source import MmapSource\n"
            "view = MmapSource(sys.argv[1]).view(200000, 10)\n"
            "os.truncate(sys.argv[1], 100)\n"
            "bytes(view)\n"
        )
        root = str(Path(source_module.__file__).parents[2])
        done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, check=False)
        assert done.returncode == -7


class TestAdvise:
    """Which hints reach the system."""

    @staticmethod
    def hints(monkeypatch: pytest.MonkeyPatch, path: Path, offsets: object, nbytes: object) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []

        def note(fd: int, mapped: object, starts: list[int], lengths: list[int]) -> None:
            found.extend(zip(starts, lengths, strict=True))

        monkeypatch.setattr(platform, "will_need", note)
        with MmapSource(path) as source:
            source.advise(np.asarray(offsets), np.asarray(nbytes))
        return found

    def test_neighbours_share_a_hint(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        """A range on the pages of the one before, or next to them, shares its hint; the order is kept."""
        found = self.hints(monkeypatch, path, [9000, 100, 4090, 50_000, 50_001], 10)
        assert found == [(8192, 4096), (0, 8192), (49152, 4096)]

    def test_long_ranges_are_asked_for_in_parts_too(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        """The kernel honours one read-ahead window of a hint, so the rest of a longer range has hints of its own."""
        found = self.hints(monkeypatch, path, [5000], 280_000)
        assert found == [(4096, 282624), (135168, 131072), (266240, 20480)]

    @given(st.lists(st.tuples(st.integers(0, NBYTES), st.integers(0, 200_000)), max_size=30))
    def test_hints_cover_exactly_the_pages_of_the_ranges(self, ranges: list[tuple[int, int]]) -> None:
        """Every page that a range touches is in one hint and no other page is in any."""
        starts = np.array([start for start, _ in ranges], np.int64)
        lengths = np.array([nbytes for _, nbytes in ranges], np.int64)
        page = platform.PAGE_NBYTES
        wanted = {p for s, n in ranges if n for p in range(s // page, (s + n - 1) // page + 1)}
        offsets, nbytes = source_module._page_pieces(starts, lengths)
        hinted = [
            p for s, n in zip(offsets.tolist(), nbytes.tolist(), strict=True) for p in range(s // page, (s + n) // page)
        ]
        assert wanted == set(hinted)
        assert not (offsets % page).any()

    @given(st.lists(st.tuples(st.integers(0, NBYTES), st.integers(1, 400_000)), min_size=1, max_size=10))
    def test_no_hint_relies_on_more_than_the_kernel_promises(self, ranges: list[tuple[int, int]]) -> None:
        """All pages are asked for, too, where the kernel reads but the first 128 KiB of each hint, in request order."""
        starts = np.array([start for start, _ in ranges], np.int64)
        lengths = np.array([nbytes for _, nbytes in ranges], np.int64)
        page = platform.PAGE_NBYTES
        offsets, nbytes = source_module._page_pieces(starts, lengths)
        pieces = zip(offsets.tolist(), np.minimum(nbytes, platform.WILLNEED_NBYTES).tolist(), strict=True)
        asked = [p for s, n in pieces for p in range(s // page, (s + n) // page)]
        wanted = [p for s, n in ranges for p in range(s // page, (s + n - 1) // page + 1)]
        assert list(dict.fromkeys(asked)) == list(dict.fromkeys(wanted))

    def test_refused_hints_are_forgotten(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A system that answers a hint with an error costs nothing but the hint."""

        def refuse(*_: object) -> None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

        monkeypatch.setattr(platform, "will_need", refuse)
        with MmapSource(path) as source:
            source.advise(np.array([0]), 10)

    @pytest.mark.skipif(not hasattr(mmap.mmap, "madvise"), reason="this Python's mmap has no madvise")
    def test_by_madvise(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without posix_fadvise the map takes the hints, up to the last part of a page."""
        monkeypatch.setattr(platform, "will_need", platform.madvise_will_need)
        for source in (MmapSource(path), PreadSource(path)):
            source.advise(np.array([NBYTES - 1, 0]), 1)
            assert source.read(0, 5) == CONTENT[:5].tobytes()

    @pytest.mark.skipif(
        not hasattr(os, "posix_fadvise"), reason="the page cache cannot be dropped without posix_fadvise"
    )
    def test_cold_reads_counts_what_the_disk_gave(self, path: Path) -> None:
        """The count grows over a cold read where the system keeps it, and stands still over a warm one."""
        with PreadSource(path) as source:
            source.read(0, NBYTES)
            before = cold_reads()
            source.read(0, NBYTES)
            assert cold_reads() == before
            os.fsync(source.fileno())
            os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            source.advise(np.array([0]), NBYTES)
            source.read(0, NBYTES)
            if cold_reads() == before:
                pytest.skip("this file system keeps no count, or its cache cannot be dropped")

    def test_cold_reads_without_the_count(self, plain: None) -> None:
        """A system without getrusage says 0 for ever."""
        assert cold_reads() == 0


class TestOpenSource:
    """Which back end, and which paths are refused."""

    def test_auto_maps_local_files(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(filesystem, "is_network", lambda *_: False)
        assert open_source(path).backend == "mmap"

    def test_auto_preads_network_files(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(filesystem, "is_network", lambda *_: True)
        assert open_source(path).backend == "pread"
        assert open_source(path, "mmap").backend == "mmap"

    def test_auto_preads_what_cannot_be_mapped(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file system without maps is read by pread, unless the map was asked for by name."""

        def refuse(fd: int, nbytes: int) -> None:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

        monkeypatch.setattr(filesystem, "is_network", lambda *_: False)
        monkeypatch.setattr(platform, "map_file", refuse)
        assert open_source(path).backend == "pread"
        with pytest.raises(OSError, match=r'cannot map the file .*backend="pread"') as caught:
            open_source(path, "mmap")
        assert (caught.value.errno, caught.value.filename) == (errno.ENODEV, str(path))

    def test_unknown_backend(self, path: Path) -> None:
        with pytest.raises(ValueError, match=r"backend: expected one of auto, mmap, pread"):
            open_source(path, "nmap")  # type: ignore[arg-type]

    @pytest.mark.parametrize("backend", ["auto", "mmap", "pread"])
    class TestHostilePaths:
        """Each back end refuses the same things in the same way, at once, and leaks no descriptor."""

        @pytest.fixture(autouse=True)
        def _no_leak(self, num_descriptors: Callable[[], int]) -> Iterator[None]:
            before = num_descriptors()
            yield
            assert num_descriptors() == before

        def test_absent(self, tmp_path: Path, backend: source_module.Backend) -> None:
            with pytest.raises(FileNotFoundError, match=r"none\.cks"):
                open_source(tmp_path / "none.cks", backend)

        def test_directory(self, tmp_path: Path, backend: source_module.Backend) -> None:
            with pytest.raises(IsADirectoryError, match="expected a container file, found a directory"):
                open_source(tmp_path, backend)

        def test_below_a_file(self, path: Path, backend: source_module.Backend) -> None:
            with pytest.raises(NotADirectoryError):
                open_source(path / "b.cks", backend)

        def test_fifo(self, tmp_path: Path, backend: source_module.Backend) -> None:
            """To open a FIFO would wait for a writer for ever."""
            os.mkfifo(tmp_path / "fifo")
            with pytest.raises(NotAContainerError, match="expected a regular file, found a FIFO"):
                open_source(tmp_path / "fifo", backend)

        def test_socket(self, tmp_path: Path, backend: source_module.Backend, monkeypatch: pytest.MonkeyPatch) -> None:
            monkeypatch.chdir(tmp_path)  # the address of a socket is at most 108 bytes
            with socket.socket(socket.AF_UNIX) as server:
                server.bind("s")
                with pytest.raises(NotAContainerError, match="found a socket"):
                    open_source("s", backend)

        def test_device(self, backend: source_module.Backend) -> None:
            with pytest.raises(
                NotAContainerError, match="/dev/zero: expected a regular file, found a character device"
            ):
                open_source("/dev/zero", backend)

        def test_nul_and_long_names(self, tmp_path: Path, backend: source_module.Backend) -> None:
            with pytest.raises(ValueError, match="null"):
                open_source(str(tmp_path / "a\0b"), backend)
            with pytest.raises(OSError, match="too long"):
                open_source(tmp_path / ("x" * 300), backend)

        def test_symlink_loop(self, tmp_path: Path, backend: source_module.Backend) -> None:
            (tmp_path / "loop").symlink_to("loop")
            with pytest.raises(OSError, match="symbolic links"):
                open_source(tmp_path / "loop", backend)

        def test_replaced_between_stat_and_open(
            self, path: Path, backend: source_module.Backend, monkeypatch: pytest.MonkeyPatch
        ) -> None:
            """A file that has become a FIFO by the time it is opened is refused, and nothing waits."""
            real = os.stat(path)
            path.unlink()
            os.mkfifo(path)
            monkeypatch.setattr(source_module.os, "stat", lambda *_: real)
            with pytest.raises(NotAContainerError, match="found a FIFO"):
                open_source(path, backend)

        @pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
        def test_no_permission(self, path: Path, backend: source_module.Backend) -> None:
            path.chmod(0)
            with pytest.raises(PermissionError, match=r"a\.cks"):
                open_source(path, backend)

        def test_odd_names(self, tmp_path: Path, backend: source_module.Backend) -> None:
            """Names with blanks, newlines, quotes and bytes that are no UTF-8 are names like others."""
            for name in ("a b", "new\nline", "'\"", os.fsdecode(b"\xff\xfe"), "-rf", "ü" * 120):
                (tmp_path / name).write_bytes(b"abc")
                with open_source(tmp_path / name, backend) as source:
                    assert source.read(1, 1) == b"b"
