"""The life of a new file, and the order of an append: what is visible when, whatever goes wrong."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from storage.faults import Failing, Recorder

from chunkstore._storage import commit as commit_module
from chunkstore._storage import syscalls
from chunkstore._storage.commit import NewFile, commit_append, stale_temporaries
from chunkstore._storage.sink import Sink
from chunkstore.errors import ClosedError, CommitUnknownError, PoisonedError, WriteError

Mode = Literal["x", "w"]
MODES: list[Mode] = ["x", "w"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "train.cks"


def listing(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


def write(path: Path, mode: Mode = "x", content: bytes = b"new") -> None:
    with NewFile.create(path, mode) as new:
        new.sink.pwrite(new.sink.size, content)
        new.publish()


class NewFileTests:
    """What holds with the system's own calls and with the plain twins (no links, no locks)."""

    @pytest.mark.parametrize("mode", MODES)
    def test_publish(self, path: Path, mode: Mode) -> None:
        """Until published the file has a temporary name beside the final one; then only the final one."""
        with NewFile.create(path, mode) as new:
            new.sink.pwrite(new.sink.size, b"abc")
            assert listing(path) == [os.path.basename(new.temporary)]
            assert os.path.basename(new.temporary).startswith(".train.cks.tmp-")
            assert not new.finished
            new.publish()
            assert new.finished
        assert listing(path) == ["train.cks"]
        assert path.read_bytes() == b"abc"

    def test_replaces(self, path: Path) -> None:
        """Mode "w" replaces a file at once; who has the old one open keeps it."""
        path.write_bytes(b"old")
        with path.open("rb") as old:
            write(path, "w")
            assert (old.read(), path.read_bytes(), listing(path)) == (b"old", b"new", ["train.cks"])

    @pytest.mark.parametrize("mode", MODES)
    def test_leaving_without_publish(self, path: Path, mode: Mode) -> None:
        """An unfinished file disappears at the end of the with-block, by an exception or not."""
        path.write_bytes(b"old") if mode == "w" else None
        before = listing(path)
        with NewFile.create(path, mode) as new:
            new.sink.pwrite(new.sink.size, b"abc")
        new = NewFile.create(path, mode)
        with pytest.raises(KeyboardInterrupt), new:
            raise KeyboardInterrupt
        assert listing(path) == before
        assert mode == "x" or path.read_bytes() == b"old"
        assert new.sink.closed

    def test_existing_target_early(self, path: Path) -> None:
        """Mode "x" refuses a name that is taken, also by a dangling link, and makes nothing."""
        path.write_bytes(b"old")
        with pytest.raises(FileExistsError, match='the file exists and stays as it is; mode "w"'):
            NewFile.create(path)
        path.unlink()
        path.symlink_to("nowhere")
        with pytest.raises(FileExistsError, match=r"train\.cks"):
            NewFile.create(path)
        assert listing(path) == ["train.cks"]

    def test_existing_target_late(self, path: Path) -> None:
        """A name taken while we wrote stays as it is, and the temporary goes."""
        with NewFile.create(path) as new:
            new.sink.pwrite(new.sink.size, b"mine")
            path.write_bytes(b"theirs")
            with pytest.raises(FileExistsError, match="stays as it is"):
                new.publish()
            assert listing(path) == ["train.cks"]
        assert path.read_bytes() == b"theirs"

    def test_race_of_two_writers(self, path: Path) -> None:
        """Of two writers of one name the first to publish wins; the other says so."""
        with NewFile.create(path) as first, NewFile.create(path) as second:
            first.sink.pwrite(first.sink.size, b"first")
            second.sink.pwrite(second.sink.size, b"second")
            second.publish()
            with pytest.raises(FileExistsError):
                first.publish()
        assert (path.read_bytes(), listing(path)) == (b"second", ["train.cks"])

    def test_finishes_once(self, path: Path) -> None:
        """Published and discarded files take no second publish; discard does nothing any more."""
        with NewFile.create(path) as new:
            new.publish()
            new.discard()
            with pytest.raises(ClosedError, match="published or discarded before"):
                new.publish()
        assert listing(path) == ["train.cks"]
        other = NewFile.create(path, "w")
        other.discard()
        other.discard()
        with pytest.raises(ClosedError):
            other.publish()
        with pytest.raises(ClosedError):
            other.sink.pwrite(other.sink.size, b"x")

    def test_an_interrupted_discard_goes_on(self, path: Path) -> None:
        """Ctrl-C right before the temporary is removed leaves that to the next call."""
        with syscalls.use(Failing("unlink", KeyboardInterrupt())):
            new = NewFile.create(path)
            with pytest.raises(KeyboardInterrupt):
                new.discard()
        assert len(listing(path)) == 1
        new.discard()
        assert listing(path) == []
        assert new.finished

    def test_relative_path(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A bare name means the current directory."""
        monkeypatch.chdir(path.parent)
        with NewFile.create("train.cks") as new:
            new.publish()
        assert listing(path) == ["train.cks"]

    def test_forgotten(self, path: Path) -> None:
        """A file that nobody holds any more is removed."""
        new = NewFile.create(path)
        new.sink.pwrite(new.sink.size, b"abc")
        del new
        gc.collect()
        assert listing(path) == []

    def test_name_of_any_length(self, path: Path) -> None:
        """The longest names that the file system takes can be published; the temporary's is cut."""
        for name in ("x" * 255, "ü" * 127, "b" * 240 + ".cks"):
            write(path.with_name(name))
            path.with_name(name).unlink()
        assert listing(path) == []


class TestNewFile(NewFileTests):
    """With the calls of this system."""


@pytest.mark.usefixtures("plain")
class TestPlainNewFile(NewFileTests):
    """With the plain twins: no links, so the name is reserved by an empty file; no sync of directories."""


class TestTargets:
    """Names that cannot be published are refused before any work."""

    def test_absent_directory(self, path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"cannot make a file in the directory .*none"):
            NewFile.create(path.parent / "none" / "a.cks")

    def test_directory_below_a_file(self, path: Path) -> None:
        path.touch()
        with pytest.raises(NotADirectoryError):
            NewFile.create(path / "a.cks")

    @pytest.mark.parametrize("mode", MODES)
    def test_directory(self, path: Path, mode: Mode) -> None:
        for name in (path.parent, f"{path}/"):
            with pytest.raises(IsADirectoryError, match=r"expected the name of a file, such as '.*data.cks'"):
                NewFile.create(name, mode)

    def test_named_as_given(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is in the way is named as the caller named it, and the file goes where that was, wherever he goes."""
        path.touch()
        monkeypatch.chdir(path.parent)
        for name, error in ((path.name, FileExistsError), (".", IsADirectoryError), ("no/a.cks", FileNotFoundError)):
            with pytest.raises(error) as caught:
                NewFile.create(name)
            assert caught.value.filename == name
        with NewFile.create("b.cks") as new:
            monkeypatch.chdir("/")
            new.publish()
        assert (path.parent / "b.cks").exists()

    def test_device_and_fifo(self, path: Path) -> None:
        """Mode "w" would replace a device by a file, if one let it."""
        os.mkfifo(path)
        for target in (path, Path("/dev/null")):
            with pytest.raises(WriteError, match="only a regular file can be replaced"):
                NewFile.create(target, "w")
            with pytest.raises(FileExistsError):
                NewFile.create(target, "x")

    def test_symlink(self, path: Path) -> None:
        """Mode "w" replaces the file that a link names, beside that file; the link stays one."""
        other = path.parent / "elsewhere"
        other.mkdir()
        path.symlink_to("elsewhere/real.cks")
        for content in (b"first", b"second"):  # the link dangles at first
            write(path, "w", content)
            assert path.is_symlink()
            assert (other / "real.cks").read_bytes() == content
        assert os.listdir(other) == ["real.cks"]

    def test_unknown_mode(self, path: Path) -> None:
        with pytest.raises(ValueError, match="mode: expected 'x' or 'w', found 'a'"):
            NewFile.create(path, "a")  # type: ignore[arg-type]

    @pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
    def test_no_permission(self, path: Path) -> None:
        path.parent.chmod(0o500)
        try:
            with pytest.raises(PermissionError, match="cannot make a file in the directory"):
                NewFile.create(path)
        finally:
            path.parent.chmod(0o700)

    @pytest.mark.parametrize(("number", "kind"), [(errno.EACCES, PermissionError), (errno.ENOSPC, WriteError)])
    def test_refused_by_the_system(self, path: Path, number: int, kind: type[OSError]) -> None:
        """The built-in class where there is one, with the name that the user gave and not the temporary's."""
        with syscalls.use(Failing("open", number)), pytest.raises(kind, match="cannot make a file") as caught:
            NewFile.create(path)
        assert (caught.value.errno, caught.value.filename) == (number, str(path))

    def test_temporary_name_taken(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A temporary of that name is somebody else's: it stays, and another name is drawn."""
        names = iter(["0" * 16, "1" * 16])
        monkeypatch.setattr(commit_module.secrets, "token_hex", lambda _: next(names))
        theirs = path.with_name(".train.cks.tmp-" + "0" * 16)
        theirs.write_bytes(b"theirs")
        write(path)
        assert theirs.read_bytes() == b"theirs"
        assert listing(path) == [theirs.name, "train.cks"]


@pytest.mark.parametrize(
    ("mode", "expected"), [("x", ["sync_file", "close", "link", "unlink", "sync_directory"]),
                           ("w", ["sync_file", "close", "rename", "sync_directory"])]
)  # fmt: skip
def test_order_of_publication(path: Path, mode: Mode, expected: list[str]) -> None:
    """The bytes are durable before the name exists, and the name is durable at the end."""
    recorder = Recorder()
    with syscalls.use(recorder):
        write(path, mode)
    assert recorder.names == ["open", "lock", "pwrite", *expected]
    assert recorder.calls[-1] == ("sync_directory", str(path.parent))


# The calls that a publication makes until the file has its name.
NAMING: list[tuple[Mode, str]] = [("x", "link"), ("w", "rename")]
STEPS: list[tuple[Mode, str]] = [(mode, name) for mode in MODES for name in ("pwrite", "sync_file")] + NAMING
INTERRUPTIBLE = [(mode, name) for mode in MODES for name in ("open", "lock", "close")] + STEPS


@pytest.mark.parametrize(("mode", "name"), INTERRUPTIBLE)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()], ids=["interrupt", "memory"])
def test_interrupt_anywhere_leaves_nothing(path: Path, mode: Mode, name: str, error: BaseException) -> None:
    """An interrupt in any call before the name is given leaves no file, no temporary and the old target."""
    path.write_bytes(b"old") if mode == "w" else None
    before = listing(path)
    with syscalls.use(Failing(name, error)), pytest.raises(type(error)):
        write(path, mode)
    assert listing(path) == before
    assert mode == "x" or path.read_bytes() == b"old"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize(("mode", "name"), STEPS)
def test_fault_before_the_name(path: Path, mode: Mode, name: str, number: int) -> None:
    """A failed write, sync, link or rename is a WriteError; the target is as it was before."""
    path.write_bytes(b"old") if mode == "w" else None
    before = listing(path)
    with syscalls.use(Failing(name, number)), pytest.raises(WriteError) as caught:
        write(path, mode)
    assert type(caught.value) is WriteError
    assert caught.value.errno == number
    assert name == "pwrite" or "nothing was published" in str(caught.value)
    assert listing(path) == before
    assert mode == "x" or path.read_bytes() == b"old"


def test_publish_after_a_failed_write(path: Path) -> None:
    """A caller that swallows a WriteError cannot publish what is left."""
    with syscalls.use(Failing("pwrite", errno.ENOSPC)), NewFile.create(path) as new:
        with pytest.raises(WriteError):
            new.sink.pwrite(new.sink.size, b"abc")
        with pytest.raises(PoisonedError):
            new.publish()
    assert listing(path) == []


@pytest.mark.parametrize("mode", MODES)
def test_failed_sync_of_the_directory(path: Path, mode: Mode) -> None:
    """The file is there and whole; only whether its name is durable is unknown, and the error says so."""
    with (
        syscalls.use(Failing("sync_directory", errno.EIO)),
        pytest.raises(CommitUnknownError, match="unknown") as caught,
    ):
        write(path, mode)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(path))
    assert (listing(path), path.read_bytes()) == (["train.cks"], b"new")


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_file_system_without_links(path: Path, number: int) -> None:
    """Where links are refused, an empty file reserves the name, and the rename replaces it."""
    recorder = Failing("link", number)
    with syscalls.use(recorder):
        write(path)
    assert recorder.names[-6:] == ["close", "link", "open", "close", "rename", "sync_directory"]
    assert (listing(path), path.read_bytes()) == (["train.cks"], b"new")


def test_reservation_is_given_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename that fails after the reservation leaves neither the empty file nor the temporary."""
    monkeypatch.setattr(commit_module.syscalls.platform, "link", commit_module.syscalls.platform.plain_link)
    with syscalls.use(Failing("rename", errno.EIO)), pytest.raises(WriteError, match="nothing was published"):
        write(path)
    assert listing(path) == []


def test_litter_does_not_fail_a_publication(path: Path) -> None:
    """A temporary that cannot be unlinked after the link is litter; the file is published all the same."""
    with syscalls.use(Failing("unlink", errno.EACCES)):
        write(path)
    assert path.read_bytes() == b"new"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_child_removes_nothing(path: Path) -> None:
    """A child that ends inside the with-block, or forgets its copy, leaves the parent's file alone."""
    with NewFile.create(path) as new:
        new.sink.pwrite(new.sink.size, b"abc")
        pid = os.fork()
        if pid == 0:
            new.__exit__(None, None, None)
            del new
            gc.collect()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        new.publish()
    assert path.read_bytes() == b"abc"


def run_child(code: str, path: Path) -> subprocess.Popen[str]:
    root = str(Path(commit_module.__file__).parents[2])
    text = "import os, sys, time\nfrom chunkstore._storage.commit import NewFile\n" + code
    return subprocess.Popen([sys.executable, "-c", text, str(path)], cwd=root, stdout=subprocess.PIPE, text=True)


def test_interpreter_exit_removes_the_temporary(path: Path) -> None:
    """A program that ends without publishing leaves nothing."""
    child = run_child("new = NewFile.create(sys.argv[1]); new.sink.pwrite(new.sink.size, b'abc')", path)
    child.communicate()
    assert (child.returncode, listing(path)) == (0, [])


def test_stale_temporaries(path: Path) -> None:
    """A killed run leaves its temporary, which is found; that of a living run, and other names, are not."""
    child = run_child("new = NewFile.create(sys.argv[1]); print('made', flush=True); time.sleep(60)", path)
    assert child.stdout is not None
    assert child.stdout.readline() == "made\n"
    assert stale_temporaries(path) == []
    child.send_signal(signal.SIGKILL)
    child.communicate()
    for name in (".train.cks.tmp-short", ".other.cks.tmp-0123456789abcdef", "train.cks"):
        path.with_name(name).touch()
    (left,) = stale_temporaries(path)
    assert os.path.basename(left).startswith(".train.cks.tmp-")
    with NewFile.create(path, "w"):
        assert stale_temporaries(path) == [left]


@pytest.mark.parametrize("name", ["[a]", "a*", "a?", "a\nb", "plain", os.fsdecode(b"\xff")])
def test_stale_temporaries_in_any_directory(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that patterns have a meaning for are names; no directory is listed but that of the file."""
    directory, listed = tmp_path / name, list[str]()
    try:
        directory.mkdir()
    except OSError:
        pytest.skip("the file system takes no such name")
    left = directory / ".[x].cks.tmp-0123456789abcdef"
    left.touch()
    (directory / ".x.cks.tmp-0123456789abcdef").touch()
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(os.fspath(path)), scandir(path))[1])
    assert stale_temporaries(directory / "[x].cks") == [str(left)]
    assert set(map(os.path.normpath, listed)) <= {str(directory)}
    monkeypatch.chdir(directory)
    assert stale_temporaries("[x].cks") == [left.name]


def test_stale_temporaries_cannot_be_told_without_locks(path: Path, plain: None) -> None:
    """Where nobody can tell whether a run lives, nothing is called stale."""
    path.with_name(".train.cks.tmp-0123456789abcdef").touch()
    assert stale_temporaries(path) == []
    assert stale_temporaries(path.parent / "none" / "a.cks") == []


OLD, NEW = b"o" * 4096, b"n" * 4096


class TestCommitAppend:
    """data -> sync -> superblock A -> sync -> superblock B."""

    @pytest.fixture
    def container(self, path: Path) -> Path:
        path.write_bytes(OLD + OLD + b"data")
        return path

    @staticmethod
    def append(container: Path, calls: syscalls.SystemCalls) -> Sink:
        with syscalls.use(calls):
            sink = Sink.open(container)
        sink.pwrite(8196, b"more")
        commit_append(sink, NEW)
        return sink

    def test_order(self, container: Path) -> None:
        """The order of the writes and syncs, with their places, is exactly that of the design."""
        recorder = Recorder()
        self.append(container, recorder).close()
        steps: list[Any] = [(call[0], call[3]) if call[0] == "pwrite" else call[0] for call in recorder.calls]
        assert steps == [
            "open", ("pwrite", 8196), "sync_data", ("pwrite", 0), "sync_data",
            ("pwrite", 4096), "start_writeback", "close",
        ]  # fmt: skip
        assert container.read_bytes() == NEW + NEW + b"datamore"

    @pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=["full", "interrupt"])
    @pytest.mark.parametrize("after", range(2))
    def test_failed_write(self, container: Path, after: int, error: BaseException) -> None:
        """Any write that fails poisons the sink; superblock B is whole, and A too unless it was its turn."""
        calls = Failing("pwrite", error, after=after)
        with syscalls.use(calls):
            sink = Sink.open(container)
        with pytest.raises((WriteError, KeyboardInterrupt)):
            commit_append(sink, NEW)
        with pytest.raises(PoisonedError):
            sink.pwrite(sink.size, b"x")
        sink.close()
        assert container.read_bytes()[4096:8196] == OLD + b"data"
        assert container.read_bytes()[:4096] == (NEW if after else OLD)

    @pytest.mark.parametrize("after", range(2))
    def test_failed_sync(self, container: Path, after: int) -> None:
        """A failed sync is a CommitUnknownError; nothing further is written, nothing is synced again."""
        calls = Failing("sync_data", errno.EIO, after=after)
        with syscalls.use(calls):
            sink = Sink.open(container)
        sink.pwrite(8196, b"more")
        with pytest.raises(CommitUnknownError, match="unknown"):
            commit_append(sink, NEW)
        with pytest.raises(PoisonedError):
            commit_append(sink, NEW)
        sink.close()
        assert container.read_bytes()[4096:8196] == OLD + b"data"
        assert container.read_bytes()[:4096] == (NEW if after else OLD)


def test_no_descriptor_leaks(path: Path, num_descriptors: Callable[[], int]) -> None:
    """Published, discarded, failed and interrupted files all give their descriptors back."""
    before = num_descriptors()
    write(path)
    with NewFile.create(path, "w"):
        pass
    for name in ("pwrite", "sync_file", "rename"):
        with syscalls.use(Failing(name, errno.EIO)), pytest.raises(WriteError):
            write(path, "w")
    with syscalls.use(Failing("lock", errno.EIO)):  # a lock that only says "in use" may fail
        write(path, "w")
    with pytest.raises(FileExistsError):
        NewFile.create(path)
    assert num_descriptors() == before
