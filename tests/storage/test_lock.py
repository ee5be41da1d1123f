"""One writer at a time, at once or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from storage.faults import Failing, Recorder

from chunkstore._storage import lock as lock_module
from chunkstore._storage import syscalls
from chunkstore._storage.lock import WriterLock
from chunkstore._storage.source import open_source
from chunkstore.errors import LockedError, ReplacedError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "train.cks"
    file.write_bytes(b"abc")
    return file


class LockTests:
    """What holds with `flock` and with the lock file that stands in for it."""

    def test_second_writer(self, path: Path) -> None:
        """A second writer is refused at once, in the same process too, and admitted after the release."""
        with (
            WriterLock.acquire(path) as lock,
            pytest.raises(LockedError, match=rf"train\.cks: process {os.getpid()}.* is writing"),
        ):
            WriterLock.acquire(path)
        lock.release()
        WriterLock.acquire(path).release()
        assert os.listdir(path.parent) == ["train.cks"]

    def test_readers_and_other_descriptors(self, path: Path) -> None:
        """Readers come and go under the lock; closing another descriptor of the file does not lose it."""
        with WriterLock.acquire(path):
            with open_source(path) as source:
                assert source.read(0, 3) == b"abc"
            path.open("rb+").close()
            with pytest.raises(LockedError):
                WriterLock.acquire(path)

    def test_open_sink(self, path: Path) -> None:
        """The holder of the lock writes through a sink; closing the sink keeps the lock."""
        with WriterLock.acquire(path) as lock:
            with lock.open_sink() as sink:
                sink.pwrite(sink.size, b"d")
            with pytest.raises(LockedError):
                WriterLock.acquire(path)
        assert path.read_bytes() == b"abcd"

    def test_replaced_after_the_lock(self, path: Path) -> None:
        """A lock holds for the file that was locked, not for another one under its name."""
        with WriterLock.acquire(path) as lock:
            path.unlink()
            path.write_bytes(b"other")
            with pytest.raises(ReplacedError, match="names another file"):
                lock.open_sink()

    def test_removed_before_the_lock(self, path: Path, num_descriptors: Callable[[], int]) -> None:
        """A container removed between open and lock is FileNotFoundError; neither lock nor descriptor is left."""
        before = num_descriptors()

        class Removing(Recorder):
            def lock(self, fd: int) -> None:
                path.unlink()
                super().lock(fd)

        with syscalls.use(Removing()), pytest.raises(FileNotFoundError):
            WriterLock.acquire(path)
        assert num_descriptors() == before
        assert os.listdir(path.parent) == []

    def test_absent(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            WriterLock.acquire(tmp_path / "none.cks")

    def test_forgotten_lock(self, path: Path, num_descriptors: Callable[[], int]) -> None:
        """A lock that nobody holds is given back with its descriptor."""
        before = num_descriptors()
        lock = WriterLock.acquire(path)
        del lock
        assert num_descriptors() == before
        WriterLock.acquire(path).release()


class TestFlock(LockTests):
    """With the kernel's lock."""

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
    def test_forked_child(self, path: Path) -> None:
        """A child does not take the lock from its parent; the release of the parent ends it for both."""
        lock = WriterLock.acquire(path)
        pid = os.fork()
        if pid == 0:
            lock.release()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        with pytest.raises(LockedError):
            WriterLock.acquire(path)
        ends, begins = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(begins)
            os.read(ends, 1)  # keeps its copy of the descriptor until the parent is done
            os._exit(0)
        os.close(ends)
        lock.release()
        WriterLock.acquire(path).release()
        os.close(begins)
        assert os.waitpid(pid, 0)[1] == 0

    def test_killed_holder(self, path: Path) -> None:
        """The lock of another process is named by its number and ends with it, however it ends."""
        code = (
            "import sys, time\n"
            "from chunkstore._storage.lock import WriterLock\n"
            "lock = WriterLock.acquire(sys.argv[1])\n"
            "print('locked', flush=True)\n"
            "time.sleep(60)\n"
        )
        root = str(Path(lock_module.__file__).parents[2])
        child = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=root, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "locked\n"
        who = str(child.pid) if Path(lock_module.LOCKS).exists() else "another writer"
        with pytest.raises(LockedError, match=rf"{who}.* is writing to this container\. Wait for it"):
            WriterLock.acquire(path)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        WriterLock.acquire(path).release()

    def test_replaced_before_the_lock(self, path: Path) -> None:
        """A file put in place between open and lock is locked instead of the old one."""

        class Swapping(Recorder):
            def lock(self, fd: int) -> None:
                if len([call for call in self.calls if call[0] == "lock"]) == 1:
                    other = path.with_name("other")
                    other.write_bytes(b"new")
                    other.replace(path)
                super().lock(fd)

        with syscalls.use(Swapping()), WriterLock.acquire(path) as lock, lock.open_sink() as sink:
            sink.pwrite(sink.size, b"!")
        assert path.read_bytes() == b"new!"

    def test_broken_lock(self, path: Path, num_descriptors: Callable[[], int]) -> None:
        """An error that is neither "held" nor "no such call" passes as it is, and leaks nothing."""
        before = num_descriptors()
        with syscalls.use(Failing("lock", errno.EIO)), pytest.raises(OSError, match="error"):
            WriterLock.acquire(path)
        assert num_descriptors() == before

    def test_unknown_holder(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the system does not tell who holds a lock, the message does without."""
        monkeypatch.setattr(lock_module, "LOCKS", "/nowhere/locks")
        with (
            WriterLock.acquire(path),
            pytest.raises(LockedError, match="another writer, perhaps on another machine"),
        ):
            WriterLock.acquire(path)


@pytest.mark.usefixtures("plain")
class TestLockFile(LockTests):
    """Without `flock`: a file beside the container, made with O_EXCL."""

    def test_left_lock_file(self, path: Path) -> None:
        """A lock file left by a killed process is named with its owner, and with what to do."""
        left = path.with_name(".train.cks.lock")
        left.write_text("process 77 on elsewhere")
        with pytest.raises(
            LockedError, match=r"process 77 on elsewhere .*if it has ended, remove .*\.train\.cks\.lock"
        ):
            WriterLock.acquire(path)
        left.unlink()
        WriterLock.acquire(path).release()

    def test_links_to_the_container(self, path: Path) -> None:
        """They lead to the same lock, as with `flock`."""
        link = path.with_name("link.cks")
        link.symlink_to("train.cks")
        for first, second in ((path, link), (link, path)):
            with WriterLock.acquire(first), pytest.raises(LockedError):
                WriterLock.acquire(second)

    def test_a_directory_that_changes(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The lock of a relative path is given back from elsewhere; that of another container stays."""
        other = path.parent / "folder"
        other.mkdir()
        (other / "train.cks").write_bytes(b"other")
        monkeypatch.chdir(path.parent)
        lock = WriterLock.acquire("train.cks")
        monkeypatch.chdir(other)
        with WriterLock.acquire("train.cks"):
            lock.release()
            with pytest.raises(LockedError):
                WriterLock.acquire("train.cks")
        WriterLock.acquire(path).release()

    @pytest.mark.parametrize("call", ["pwrite", "close"])
    @pytest.mark.parametrize("error", [errno.ENOSPC, KeyboardInterrupt()])
    def test_a_lock_file_that_cannot_be_written(self, path: Path, call: str, error: BaseException | int) -> None:
        """It is removed: the next writer has a chance."""
        with syscalls.use(Failing(call, error)), pytest.raises((OSError, KeyboardInterrupt)):
            WriterLock.acquire(path)
        assert os.listdir(path.parent) == ["train.cks"]
