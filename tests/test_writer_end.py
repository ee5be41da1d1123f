"""How a writer ends: what is dropped then, and who is told."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import oracle
import pytest

from chunkstore._storage import syscalls
from chunkstore._write.writer import Writer
from chunkstore.errors import ClosedError, SchemaError, WriteError

ROOT = Path(__file__).resolve().parent.parent


def added(path: Path, count: int = 3, **options: Any) -> Writer:
    """A writer with samples that no commit has stored; the first ones are written, the last one is in memory."""
    writer = Writer(path, shard_nbytes=8, **options)
    for number in range(count):
        writer.add({"x": number})
    return writer


def committed(path: Path, count: int = 1) -> Path:
    """A container."""
    with added(path, count):
        pass
    return path


def text_of(path: Path, what: str) -> str:
    """The warning, whole, as a pattern."""
    advice = "Call commit() before close(), or abort() to drop on purpose"
    return f"^{re.escape(f'{path}: {what} dropped, not committed. {advice}')}$"


# -- what warns


def test_close_says_what_it_drops(tmp_path: Path) -> None:
    """With the line of the caller, and once; the file is gone all the same."""
    path = tmp_path / "a.cks"
    writer = added(path)
    with pytest.warns(UserWarning, match=text_of(path, "3 samples")) as caught:
        writer.close()
    assert [warning.filename for warning in caught] == [__file__]
    assert caught[0].category is UserWarning
    assert os.listdir(tmp_path) == []
    writer.close()
    with pytest.raises(ClosedError):
        writer.add({"x": 1})


def test_close_counts_what_came_after_the_last_commit(tmp_path: Path) -> None:
    """Of the same writer, or of one before; what was committed stays."""
    path = tmp_path / "a.cks"
    writer = added(path)
    writer.commit()
    writer.add({"x": 3})
    with pytest.warns(UserWarning, match=text_of(path, "1 sample")):
        writer.close()
    nbytes = path.stat().st_size
    with pytest.warns(UserWarning, match=text_of(path, "2,000 samples")):
        added(path, 2000, mode="a").close()
    assert path.stat().st_size == nbytes
    assert list(oracle.read(path).rows("x")) == [0, 1, 2]


def test_close_says_that_attrs_are_dropped(tmp_path: Path) -> None:
    """Those of the constructor, those set later, and those that no commit would take."""
    path = tmp_path / "a.cks"
    with pytest.warns(UserWarning, match=text_of(path, "new attrs")):
        Writer(path, attrs={"a": 1}).close()
    writer = added(path)
    writer.commit()
    writer.attrs["a"] = object()
    with pytest.warns(UserWarning, match=text_of(path, "new attrs")):
        writer.close()
    writer = added(path, mode="a")
    writer.attrs = None  # type: ignore[assignment]
    with pytest.warns(UserWarning, match=text_of(path, "3 samples and new attrs")):
        writer.close()


def test_close_warns_of_samples_after_a_refused_commit(tmp_path: Path) -> None:
    """The error told of those that were there; also where a commit went well in between."""
    path = tmp_path / "a.cks"
    writer = added(path, 3, num_samples=4)
    with pytest.raises(SchemaError, match="was promised"):
        writer.commit()
    writer.add({"x": 3})
    with pytest.warns(UserWarning, match=text_of(path, "4 samples")):
        writer.close()
    writer = added(path, 3)
    writer.attrs["a"] = object()
    with pytest.raises(SchemaError, match="attrs"):
        writer.commit()
    writer.attrs["a"] = 1
    writer.commit()
    writer.attrs["a"] = 2
    with pytest.warns(UserWarning, match=text_of(path, "new attrs")):
        writer.close()


def test_a_warning_that_is_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    """All is released before it is raised."""
    path = committed(tmp_path / "a.cks")
    nbytes = path.stat().st_size
    with pytest.raises(UserWarning, match="1 sample dropped"):
        added(tmp_path / "b.cks", 1).close()
    with pytest.raises(UserWarning, match="3 samples dropped"):
        added(path, mode="a").close()
    assert (os.listdir(tmp_path), path.stat().st_size) == (["a.cks"], nbytes)
    Writer(path, mode="a").close()


@pytest.mark.parametrize("mode", ["x", "a"])
def test_a_forgotten_writer_warns_too(tmp_path: Path, mode: Any) -> None:
    """With the text of `close`; the lock and the temporary go."""
    path = tmp_path / "a.cks"
    if mode == "a":
        committed(path)
    forgotten = [added(path, mode=mode)]
    with pytest.warns(UserWarning, match=text_of(path, "3 samples")) as caught:
        forgotten.clear()
    assert caught[0].filename == __file__
    del caught
    gc.collect()
    assert os.listdir(tmp_path) == ["a.cks"] * (mode == "a")
    if mode == "a":
        Writer(path, mode="a").close()
        assert list(oracle.read(path).rows("x")) == [0]


def test_what_a_program_shows(tmp_path: Path) -> None:
    """`close` is heard without any option, and so is a writer that is forgotten until the end."""
    program = tmp_path / "program.py"
    program.write_text(
        "import chunkstore\n"
        "w = chunkstore.Writer('a.cks')\n"
        "w.add({'x': 1})\n"
        "w.close()\n"
        "forgotten = chunkstore.Writer('b.cks')\n"
        "forgotten.add({'x': 1})\n"
    )
    run = subprocess.run(
        [sys.executable, str(program)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert re.findall(r"(\w+\.cks): 1 sample dropped", run.stderr) == ["a.cks", "b.cks"]
    assert run.stderr.count("UserWarning: ") == 2
    assert "program.py:4: UserWarning" in run.stderr
    assert "Exception" not in run.stderr
    assert os.listdir(tmp_path) == ["program.py"]


# -- what does not


def _poisoned(path: Path) -> None:
    class Full(syscalls.SystemCalls):
        def pwrite(self, fd: int, buffer: memoryview, offset: int) -> int:
            raise OSError(28, "No space left on device")

    with syscalls.use(Full()):
        writer = Writer(path, shard_nbytes=8)
        writer.add({"x": 1})
        with pytest.raises(WriteError, match="No space left"):
            writer.add({"x": 1})
    writer.close()


def _refused(path: Path) -> None:
    writer = added(path, num_samples=4)
    with pytest.raises(SchemaError, match="was promised"):
        writer.commit()
    writer.close()


def _refused_at_the_end(path: Path) -> None:
    with pytest.raises(SchemaError, match="was promised"), added(path, num_samples=4):
        pass
    with pytest.raises(SchemaError, match="attrs"), added(path) as writer:
        writer.attrs["a"] = object()


def _left_by_an_exception(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), added(path):
        raise ZeroDivisionError


def _never_there(path: Path) -> None:
    with pytest.raises(ValueError, match="mode"):
        Writer(path, mode="r")  # type: ignore[arg-type]
    with pytest.raises(SchemaError, match="attrs"):
        Writer(path, attrs={"a": object()})


def _aborted(path: Path) -> None:
    writer = added(path, attrs={"a": 1})
    writer.abort()
    writer.abort()
    writer.close()
    with pytest.raises(ClosedError):
        writer.commit()
    with added(path) as writer:
        writer.abort()


@pytest.mark.parametrize(
    "end",
    [
        _poisoned,
        _refused,
        _refused_at_the_end,
        _left_by_an_exception,
        _never_there,
        _aborted,
        lambda path: Writer(path).close(),
        lambda path: Writer(path, fields={"x": "int64"}),
    ],
)
def test_who_was_told_or_lost_nothing_is_not_warned(tmp_path: Path, end: Callable[[Path], None]) -> None:
    """An error says it, `abort` is meant, or there was nothing; nothing is left."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        end(tmp_path / "a.cks")
        gc.collect()
    assert [str(warning.message) for warning in caught] == []
    assert os.listdir(tmp_path) == []


def test_what_was_committed_is_not_warned_of(tmp_path: Path) -> None:
    """By `commit` or the end of the block; with attrs, too."""
    path = tmp_path / "a.cks"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        writer = added(path, attrs={"a": 1})
        writer.commit()
        writer.close()
        with added(path, mode="a") as writer:
            pass
        writer = Writer(path, mode="a")
        writer.attrs["a"] = 2
        writer.commit()
        del writer
        gc.collect()
    container = oracle.read(path)
    assert (container.num_samples, container.attrs()) == (6, {"a": 2})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("end", [Writer.close, lambda writer: None])
def test_a_forked_copy_drops_nothing(tmp_path: Path, end: Callable[[Writer], None]) -> None:
    """The samples are the parent's, who commits them."""
    writer = added(tmp_path / "a.cks")
    child = os.fork()
    if child == 0:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            end(writer)
            del writer
            gc.collect()
        os._exit(len(caught))
    assert os.waitpid(child, 0)[1] == 0
    with writer:
        pass
    assert list(oracle.read(tmp_path / "a.cks").rows("x")) == [0, 1, 2]
