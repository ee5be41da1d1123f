"""Memory that runs out at any one allocation: a clean error, objects that go on, no descriptor left open.

CPython's own hook for tests (`_testcapi.set_nomemory`) makes the n-th allocation of the interpreter fail, or some from
there on; each n is tried. It does not see what NumPy allocates for the data of arrays: those come from `malloc`.
"""

from __future__ import annotations

import contextlib
import gc
import linecache
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import chunkstore
from tools.battery.faults import Findings, open_descriptors, write
from tools.battery.samples import key, same_as_written, sample

N = 12  # samples of the container
WIDTHS = (1, 10)  # allocations that fail in a row
_FOREIGN = "the interpreter or NumPy"
_LOST = ("can't allocate lock", "os.PathLike object, not PosixPath")  # how `threading.Lock` and `os.fspath` put it
_CELL = ", for a cell"
_SECONDS = 10  # a run that takes longer hangs
_CHUNK = 250  # numbers that a child tries before the next one is forked: what was leaked or broken ends with it


@dataclass(frozen=True)
class Task:
    """What is to survive.

    Attributes:
        name: for the report.
        prepare: makes what the task needs, from a folder with a container `a.cks`; not under the hook.
        run: the task, under the hook.
        judge: what is wrong afterwards; gets what was prepared, the folder, and whether the task finished.
        end: lets go of what was prepared.
    """

    name: str
    prepare: Callable[[Path], Any]
    run: Callable[[Any], Any]
    judge: Callable[[Any, Path, bool], list[str]]
    end: Callable[[Any], None]


def why_not() -> str | None:
    """Why this cannot be done here; None if it can."""
    try:
        import _testcapi
    except ImportError:
        return "this Python is built without its test hooks (_testcapi)"
    return None if hasattr(_testcapi, "set_nomemory") and hasattr(os, "fork") else "no set_nomemory, or no fork"


# -- the tasks


def _nothing(prepared: Any) -> None:
    """Nothing to let go of."""


def _opens(prepared: Any, folder: Path, finished: bool) -> list[str]:
    with chunkstore.open(folder / "a.cks", backend="pread", verify="always") as ds:
        wrong = [f"sample {n}" for n in range(N) if not same_as_written(ds[n], n)]
        return wrong + ["number of samples"] * (len(ds) != N)


def _open_and_close(path: Path) -> None:
    chunkstore.open(path).close()


def _read(ds: chunkstore.Reader) -> None:
    row = ds[3]
    batch = ds.batch([5, 1, 5])
    places = ds.find([key(7), key(2)])
    if not same_as_written(row, 3) or batch["x"][0, 0] != 5 or batch["x"][1, 0] != 1 or places.tolist() != [7, 2]:
        raise AssertionError("read wrong")


def _reads_on(ds: chunkstore.Reader, folder: Path, finished: bool) -> list[str]:
    return [f"the reader reads sample {n} wrong" for n in range(N) if not same_as_written(ds[n], n)]


def _writer(folder: Path) -> tuple[chunkstore.Writer, dict[str, Any]]:
    return chunkstore.Writer(folder / "a.cks", mode="a"), sample(N)


def _add(prepared: tuple[chunkstore.Writer, dict[str, Any]]) -> None:
    prepared[0].add(prepared[1], key(N))


def _adds_on(prepared: tuple[chunkstore.Writer, dict[str, Any]], folder: Path, finished: bool) -> list[str]:
    writer = prepared[0]
    try:
        if not finished:
            writer.add(sample(N), key(N))
        writer.add(sample(N + 1), key(N + 1))
        writer.commit()
    except chunkstore.PoisonedError as error:
        return [f"the writer was lost: {error}"]
    return _holds(folder, (N + 2,))


def _holds(folder: Path, counts: tuple[int, ...]) -> list[str]:
    report = chunkstore.verify(folder / "a.cks")
    with chunkstore.open(folder / "a.cks", backend="pread", verify="always") as ds:
        wrong = [f"sample {n} of {len(ds)}" for n in range(len(ds)) if not same_as_written(ds[n], n)]
        if len(ds) not in counts:
            wrong.append(f"{len(ds)} samples, expected {counts}")
    return wrong + [str(damage) for damage in report.damage if not damage.harmless]


def _prepare_commit(folder: Path) -> chunkstore.Writer:
    writer = chunkstore.Writer(folder / "a.cks", mode="a")
    writer.add(sample(N), key(N))
    return writer


def _committed(writer: chunkstore.Writer, folder: Path, finished: bool) -> list[str]:
    with contextlib.suppress(chunkstore.ChunkstoreError):
        writer.abort()
    wrong = _holds(folder, (N + 1,) if finished else (N, N + 1))
    with chunkstore.open(folder / "a.cks") as ds:
        count = len(ds)
    write(folder / "a.cks", count, count + 1, "a")
    return wrong + _holds(folder, (count + 1,))


def _verify(path: Path) -> None:
    report = chunkstore.verify(path, deep=True)
    if not report.ok:
        raise AssertionError(f"verify finds damage where there is none: {report.damage[0]}")


TASKS = (
    Task("open", lambda folder: folder / "a.cks", _open_and_close, _opens, _nothing),
    Task("read", lambda folder: chunkstore.open(folder / "a.cks"), _read, _reads_on, lambda ds: ds.close()),
    Task("add", _writer, _add, _adds_on, lambda prepared: prepared[0].abort()),
    Task("commit", _prepare_commit, lambda writer: writer.commit(), _committed, lambda writer: writer.abort()),
    Task("verify", lambda folder: folder / "a.cks", _verify, _opens, _nothing),
)


# -- trying


def try_task(folder: Path, task: Task, findings: Findings, *, every: int = 1, widths: tuple[int, ...] = WIDTHS) -> None:
    """Let each allocation of a task fail, or each of so many."""
    write(folder / "good.cks", 0, N)
    _once(folder, task, 1 << 30, 1)  # whatever is done only once, such as importing, is done
    total = _count(folder, task)
    for width in widths:
        numbers = list(range(0, total + 1, every))
        for start in range(0, len(numbers), _CHUNK):
            _try_chunk(folder, task, numbers[start : start + _CHUNK], width, findings)
    (folder / "good.cks").unlink()


def _once(folder: Path, task: Task, number: int, width: int) -> tuple[list[str], str]:
    """Run a task once with a failing allocation: what is wrong, and how it ended."""
    from _testcapi import remove_mem_hooks, set_nomemory

    signal.alarm(_SECONDS)  # ends a child; the parent makes one run only, without failures
    shutil.copyfile(folder / "good.cks", folder / "a.cks")
    before, ended, detail, called = open_descriptors(), "finished", "", set[str]()
    prepared = task.prepare(folder)
    try:
        set_nomemory(number, number + width if width else 0)
        try:
            task.run(prepared)
        finally:
            remove_mem_hooks()
    except BaseException as error:  # noqa: BLE001 - whatever is raised is a finding
        ended = type(error).__name__
        if not isinstance(error, MemoryError | chunkstore.ChunkstoreError):
            ended = f"{ended} of {'Python' if isinstance(error, AssertionError) else _raiser(error)}"
            detail = "" if _FOREIGN in ended else "".join(traceback.format_exception(error))[-600:]
        called = _called(error)
        _let_go(error)
        del error
    wrong = [f"raised {ended}: {detail}"] if detail else []
    try:
        wrong += task.judge(prepared, folder, ended == "finished")
    except Exception as error:  # noqa: BLE001 - whatever is raised is a finding
        wrong.append(f"afterwards: {type(error).__name__}: {error}")
    task.end(prepared)
    del prepared
    if open_descriptors() > before:
        gc.collect()  # a frame that an error in between kept alive
        left = open_descriptors() - before
        # Where more fail in a row there is no memory for a traceback; then the first that fails tells, or its
        # neighbour: by one the numbers differ from run to run.
        if left and width > 1:
            near = (_once(folder, task, each, 1)[1] for each in range(number - 1, number + 2))
            ended += _CELL * any(each.endswith(_CELL) for each in near)
        elif left and _lost_for_a_cell(called):
            ended += _CELL
        if left and not ended.endswith(_CELL):
            wrong.append(f"{left} descriptors were left open")
    signal.alarm(0)
    return wrong, ended


def _let_go(error: BaseException | None) -> None:
    """Empty all frames that led to an error: CPython keeps one MemoryError for ever, and with it what raised it."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _called(error: BaseException) -> set[str]:
    """The names in the call of ours that was not even entered; none where it is not one of ours."""
    for frame in traceback.extract_tb(error.__traceback__)[-1:]:  # there may be no memory for a traceback
        if "chunkstore" in Path(frame.filename).parts[:-1]:
            line = linecache.getline(frame.filename, frame.lineno or 0)
            return set(re.findall(r"\w+", line[frame.colno or 0 : frame.end_colno]))
    return set()


def _lost_for_a_cell(called: set[str]) -> bool:
    """Whether one of these functions has a cell: a variable that it shares with a function in it.

    CPython 3.11 and 3.12 never let go of the arguments of a call that finds no memory for a cell: in `ceval.c`,
    `MAKE_CELL` goes to `resume_with_error`, which takes the frame for an empty one. In 3.13 it goes to `error`.
    """
    if sys.version_info >= (3, 13) or not called:
        return False
    called = {*called, "__getattr__"}
    functions = (each for each in gc.get_objects() if isinstance(each, FunctionType) and each.__code__.co_cellvars)
    ours = (each.__qualname__.split(".") for each in functions if "chunkstore" in str(each.__module__))
    return any(called.intersection(names) for names in ours)


def _raiser(error: BaseException) -> str:
    """Whose mistake it is. CPython and NumPy lose a MemoryError here and there: `isinstance` of a `PathLike` answers
    False, and some methods of arrays return without an error set, which is a SystemError.
    """
    frame = traceback.extract_tb(error.__traceback__)[-1]
    outside = "chunkstore" not in Path(frame.filename).parts[:-1] or isinstance(error, SystemError)
    outside = outside or str(error).endswith(_LOST)
    return _FOREIGN if outside else "chunkstore"


def _count(folder: Path, task: Task) -> int:
    """About how many allocations a task makes: it finishes whichever of eight beyond that fails."""
    low, high = 0, 1 << 16
    while high - low > 8:
        middle = (low + high) // 2
        runs = (_forked(lambda number=n: _once(folder, task, number, 1)) for n in range(middle, middle + 8))  # type: ignore[misc]
        low, high = (low, middle) if all(ended == "finished" for _, ended in runs) else (middle, high)
    return high


def _forked(call: Callable[[], tuple[list[str], str]]) -> tuple[list[str], str]:
    """Run it in a child that may die."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        result: Any = ([], "died")
        with contextlib.suppress(BaseException):
            result = call()
            os.write(writing, repr(result).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        text = stream.read().decode()
    _, status = os.waitpid(pid, 0)
    if not text:
        return [], f"died ({status})"
    wrong, ended = eval(text)  # what the child wrote
    return wrong, ended


def _try_chunk(folder: Path, task: Task, numbers: list[int], width: int, findings: Findings) -> None:
    """Try some numbers in one child; what it had not come to when it died, in the next one."""
    while numbers:
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reading)
            with contextlib.suppress(BaseException):
                for number in numbers:
                    wrong, ended = _once(folder, task, number, width)
                    os.write(writing, repr((number, wrong, ended)).encode() + b"\n")
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as stream:
            lines = stream.read().splitlines()
        _, status = os.waitpid(pid, 0)
        for line in lines:
            number, wrong, ended = eval(line)  # what the child wrote
            findings.tried += 1
            findings.raised[ended] += 1
            findings.wrong += [f"{task.name}, {width} from allocation {number} on: {what}" for what in wrong]
        numbers = numbers[len(lines) :]
        if numbers:
            findings.tried += 1
            findings.wrong.append(f"{task.name}, {width} from allocation {numbers[0]} on: the process died ({status})")
            numbers = numbers[1:]


__all__ = ["TASKS", "Task", "try_task", "why_not"]
