"""System calls that fail, stop half way, lie, or are the last that a process makes.

Every call of create, append, merge and repack is made to fail once with each error. Whatever happens, the container is
as it was or as it was to become, the writer takes nothing more, and nothing is left behind.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.faults import CALLS, Failing, Lying, Recorder, Stingy

import chunkstore
from chunkstore._rewrite.merge import merge
from chunkstore._rewrite.repack import repack
from chunkstore._storage import syscalls
from chunkstore._storage.syscalls import SystemCalls
from chunkstore.errors import ChunkstoreError, CommitUnknownError, PoisonedError, WriteError
from tools.battery import ROOT
from tools.battery.crash import read_fully
from tools.battery.samples import FIELDS, key, sample

ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINTR)
# `close` frees the descriptor whatever it answers; the others promise nothing and change nothing.
HARMLESS_CALLS = ("close", "start_writeback", "unlock")
BREAKABLE = tuple(name for name in CALLS if name not in HARMLESS_CALLS)
SHARD = 300
_COMMITTED = "after the commit"
type_run = Callable[[Path], None]


def write(path: Path, start: int, stop: int, mode: Any = "x") -> None:
    """One commit of these samples."""
    fields = None if mode == "a" else FIELDS
    with chunkstore.Writer(path, fields=fields, mode=mode, shard_nbytes=SHARD) as writer:
        for number in range(start, stop):
            writer.add(sample(number), key(number))


@dataclass(frozen=True)
class Operation:
    """Something that writes.

    Attributes:
        name: for the report.
        prepare: makes what must be there before.
        run: does it; the container is `a.cks` in the folder.
        before, after: samples in it; None where there is no container.
    """

    name: str
    prepare: type_run
    run: type_run
    before: int | None
    after: int


def _nothing(folder: Path) -> None:
    """Nothing must be there."""


def _run_append(folder: Path) -> None:
    writer = chunkstore.Writer(folder / "a.cks", mode="a", shard_nbytes=SHARD)
    try:
        for number in range(6, 14):
            writer.add(sample(number), key(number))
        writer.commit()
    except Exception:
        _check_poisoned(writer)
        raise
    try:
        writer.add(sample(99), key(99))
        writer._guarded_flush()  # something that will not be committed
        writer.abort()
    except Exception as error:
        error.add_note(_COMMITTED)
        raise
    finally:
        writer.abort()


def _check_poisoned(writer: chunkstore.Writer) -> None:
    """After an error nothing is taken, and nothing succeeds."""
    for attempt in (lambda: writer.add(sample(99), key(99)), writer.commit):
        try:
            attempt()
        except PoisonedError:
            continue
        raise AssertionError("the writer went on after an error")


def _prepare_merge(folder: Path) -> None:
    write(folder / "1.cks", 0, 5)
    write(folder / "2.cks", 5, 9)


def _run_merge(folder: Path) -> None:
    merge([folder / "1.cks", folder / "2.cks"], folder / "a.cks")


OPERATIONS = (
    Operation("create", _nothing, lambda folder: write(folder / "a.cks", 0, 9), None, 9),
    Operation("replace", lambda folder: write(folder / "a.cks", 0, 4), lambda f: write(f / "a.cks", 0, 9, "w"), 4, 9),
    Operation("append", lambda folder: write(folder / "a.cks", 0, 6), _run_append, 6, 14),
    Operation("merge", _prepare_merge, _run_merge, None, 9),
    Operation(
        "repack",
        lambda folder: write(folder / "b.cks", 0, 7),
        lambda folder: repack(folder / "b.cks", folder / "a.cks"),
        None,
        7,
    ),
)


@dataclass
class Findings:
    """What was tried, and what was wrong."""

    tried: int = 0
    raised: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def open_descriptors() -> int:
    """How many this process has."""
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def try_operation(folder: Path, operation: Operation, calls: SystemCalls, what: str, findings: Findings) -> None:
    """Run it once with these system calls, and look at what is there afterwards."""
    place = folder / "one"
    place.mkdir()
    findings.tried += 1
    try:
        operation.prepare(place)
        names = set(os.listdir(place))
        gc.collect()  # garbage of before may hold descriptors, and would let go of them in the midst of this
        descriptors = open_descriptors()
        error: Exception | None = None
        with syscalls.use(calls):
            try:
                operation.run(place)
            except Exception as caught:  # noqa: BLE001 - whatever is raised is a finding
                error = caught.with_traceback(None)  # whose frames would keep descriptors open
        for wrong in _judge(place, operation, error, names, descriptors, getattr(calls, "name", "")):
            findings.wrong.append(f"{operation.name}, {what}: {wrong}")
        findings.raised[type(error).__name__ if error else "none"] += 1
    finally:
        shutil.rmtree(place)


def _judge(
    place: Path, operation: Operation, error: Exception | None, names: set[str], descriptors: int, what: str
) -> Iterator[str]:
    if error is not None and not isinstance(error, ChunkstoreError | OSError):
        yield f"raised {type(error).__name__}: {error}"
    if error is not None:
        error.__context__ = error.__cause__ = None
    if open_descriptors() != descriptors:
        yield f"{open_descriptors() - descriptors} descriptors were left open"
    path = place / "a.cks"
    left = set(os.listdir(place)) - names - {"a.cks"}
    if left and what != "unlink":
        yield f"left {sorted(left)}"
    committed = error is None or _COMMITTED in getattr(error, "__notes__", ())
    unknown = isinstance(error, CommitUnknownError)
    possible = [operation.after] if committed else [operation.before, *[operation.after] * unknown]
    if not path.exists():
        if None not in possible:
            yield f"the container is gone after {error!r}"
        return
    try:
        with chunkstore.open(path) as ds:
            count = len(ds)
        if count not in possible:
            yield f"{count} samples after {error!r}, expected {possible}"
        yield from read_fully(path, tuple(range(count)))
        write(path, count, count + 2, "a")
        yield from read_fully(path, tuple(range(count + 2)), whole=True)
    except Exception as after:  # noqa: BLE001 - whatever is raised is a finding
        yield f"after {error!r}: {type(after).__name__}: {after}"


def count_calls(folder: Path, operation: Operation) -> Counter[str]:
    """How often it makes each call."""
    calls, place = Recorder(), folder / "count"
    place.mkdir()
    operation.prepare(place)
    with syscalls.use(calls):
        operation.run(place)
    shutil.rmtree(place)
    return Counter(call[0] for call in calls.calls)


def try_errors(folder: Path, operation: Operation, findings: Findings, errors: tuple[int, ...] = ERRORS) -> None:
    """Each call fails once with each error."""
    for name, count in count_calls(folder, operation).items():
        for number in range(count if name in BREAKABLE else 0):
            for code in errors:
                failing = Failing(name, code, after=number)
                try_operation(folder, operation, failing, f"{errno.errorcode[code]} at {name} {number}", findings)


def try_counts(folder: Path, operation: Operation, findings: Findings) -> None:
    """Writes that take less than they are given, nothing, or say that they took more."""
    for most in (1, 511, 4095):
        try_operation(folder, operation, Stingy(most), f"writes of {most} bytes", findings)
    for count in (0, -1, 1 << 40):
        try_operation(folder, operation, Lying(count), f"writes that answer {count}", findings)


class _FailsOnce(Recorder):
    """The n-th sync fails, and all later ones report success, as Linux does."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.after = 0

    def sync_data(self, fd: int) -> None:
        self._sync()
        super().sync_data(fd)

    def sync_file(self, fd: int) -> None:
        self._sync()
        super().sync_file(fd)

    def _sync(self) -> None:
        self.number -= 1
        if self.number == -1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.after += self.number < -1


def try_syncs(folder: Path, findings: Findings) -> None:
    """A sync that fails and then "succeeds": unknown, never success, never asked again by the same writer."""
    for number in range(2):
        path = folder / f"{number}.cks"
        write(path, 0, 4)
        calls = _FailsOnce(number)
        with syscalls.use(calls):
            writer = chunkstore.Writer(path, mode="a")
            try:
                writer.add(sample(4), key(4))
                writer.commit()
                writer.close()
                findings.wrong.append(f"sync {number} failed and nobody was told")
            except CommitUnknownError:
                _check_poisoned(writer)
            writer.close()
        if calls.after:
            findings.wrong.append(f"sync {number} failed and was asked again")
        with chunkstore.open(path) as ds:
            count = len(ds)
        if count not in ((4,), (4, 5))[number]:
            findings.wrong.append(f"sync {number} failed: {count} samples")
        findings.wrong += read_fully(path, tuple(range(count)))
        findings.tried += 1
        path.unlink()


# -- processes that end


class _Killing(Recorder):
    """Ends the process at the n-th call that changes something, before it is made."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def __getattribute__(self, name: str) -> Any:
        if name in BREAKABLE:
            self.number -= 1
            if self.number < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__getattribute__(name)


def try_kills(folder: Path, operation: Operation, findings: Findings, every: int = 1) -> None:
    """End the process before each of its calls; it is a fork of this one."""
    total = sum(count for name, count in count_calls(folder, operation).items() if name in BREAKABLE)
    for number in range(0, total + 1, every):
        place = folder / "kill"
        place.mkdir()
        operation.prepare(place)
        pid = os.fork()
        if not pid:
            with contextlib.suppress(BaseException), syscalls.use(_Killing(number)):
                operation.run(place)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        findings.tried += 1
        finished = not os.WIFSIGNALED(status)
        findings.raised["finished" if finished else "killed"] += 1
        findings.wrong += [
            f"{operation.name}, killed before call {number}: {w}" for w in _judge_killed(place, operation, finished)
        ]
        shutil.rmtree(place)


def _judge_killed(place: Path, operation: Operation, finished: bool) -> Iterator[str]:
    """What is wrong after a process that was killed, or failed, or finished as if nothing was."""
    path = place / "a.cks"
    possible = (operation.after,) if finished else (operation.before, operation.after)
    if path.exists():
        yield from _goes_on(path, possible)
    elif None not in possible:
        yield "the container is gone"
    else:  # what the dead one left is in nobody's way
        operation.run(place)
        yield from read_fully(path, tuple(range(operation.after)), whole=True)


def _goes_on(path: Path, counts: tuple[int | None, ...]) -> Iterator[str]:
    try:
        with chunkstore.open(path) as ds:
            count = len(ds)
        if count not in counts:
            yield f"{count} samples, expected one of {counts}"
        yield from read_fully(path, tuple(range(count)))
        write(path, count, count + 1, "a")
        yield from read_fully(path, tuple(range(count + 1)), whole=True)
    except Exception as error:  # noqa: BLE001 - whatever is raised is a finding
        yield f"{type(error).__name__}: {error}"


def endless_appends(path: Path) -> None:
    """Append and commit until killed; says on stdout how many samples are acknowledged."""
    with chunkstore.open(path) as ds:
        number = len(ds)
    with chunkstore.Writer(path, mode="a", shard_nbytes=4096) as writer:
        while True:
            for _ in range(number % 7 + 1):
                writer.add(sample(number), key(number))
                number += 1
            writer.commit()
            os.write(1, b"%d\n" % number)


def try_random_kills(folder: Path, findings: Findings, times: int, seed: int = 0) -> None:
    """SIGKILL at any moment of one append after another, on one container that lives through all of them."""
    import random

    rng = random.Random(seed)
    path = folder / "random.cks"
    write(path, 0, 3)
    for _ in range(times):
        said, killed = last_acknowledged(path, rng.random() * 0.05)
        findings.tried += 1
        if not killed:
            findings.wrong.append("the appending process ended by itself")
        with chunkstore.open(path) as ds:
            count = len(ds)
        if count < said:
            findings.wrong.append(f"SIGKILL: {count} samples, {said} were acknowledged")
        if count > 3000 or findings.tried % 25 == 0 or count < said:
            findings.wrong += [f"SIGKILL: {what}" for what in read_fully(path, tuple(range(count)))]
        if count > 3000:
            path.unlink()
            write(path, 0, 3)
    with chunkstore.open(path) as ds:
        findings.wrong += [f"SIGKILL: {what}" for what in read_fully(path, tuple(range(len(ds))))]
    path.unlink()


def last_acknowledged(path: Path, seconds: float, disaster: Callable[[], None] = lambda: None) -> tuple[int, bool]:
    """Fork a process that appends; after `seconds` of it the disaster, then kill it.

    Returns:
        The last number that it acknowledged, and whether it was at work until it was killed.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        os.dup2(writing, 1)
        with contextlib.suppress(BaseException):
            endless_appends(path)
        os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        first = stream.readline()  # it is at work
        time.sleep(seconds)
        disaster()
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        lines = (first + stream.read()).split(b"\n")
    return max(int(line) for line in lines[:-1]), os.WIFSIGNALED(status)


_CHILD = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from tools.battery import faults
{{op.name: op for op in faults.OPERATIONS}}[{name!r}].run(Path({folder!r}))
"""
STRACE_CALLS = ("pwrite64", "fdatasync", "fsync", "ftruncate", "link", "rename", "unlink", "copy_file_range")


def why_no_strace() -> str | None:
    """Why calls cannot be injected by strace here; None if they can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    command = ["strace", "-f", "-qq", "-e", "trace=getppid", "-e", "inject=getppid:error=EIO", "true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return None if done.returncode == 0 else f"strace does not work: {done.stderr.strip()[:100]}"


def try_strace(
    folder: Path,
    operation: Operation,
    findings: Findings,
    injected: str,
    numbers: range,
    calls: tuple[str, ...] = STRACE_CALLS,
) -> None:
    """Inject into the n-th of the real system calls of a fresh process.

    Args:
        injected: for strace, e.g. `signal=SIGKILL` or `error=ENOSPC`.
        numbers: from 1; those that the process does not come to are left out.
    """
    for call in calls:
        for number in numbers:
            place = folder / "strace"
            place.mkdir()
            operation.prepare(place)
            script = _CHILD.format(paths=[str(ROOT), str(ROOT / "tests")], name=operation.name, folder=str(place))
            inject = f"inject={call}:{injected}:when={number}"
            command = ["strace", "-f", "-qq", "-o", str(folder / "trace"), "-e", f"trace={call}", "-e", inject]
            done = subprocess.run([*command, sys.executable, "-c", script], capture_output=True, text=True, check=False)
            if (folder / "trace").read_text("utf-8").count(f"{call}(") < number:  # nothing was injected
                shutil.rmtree(place)
                break
            findings.tried += 1
            what = f"{operation.name}, {injected} at {call} {number}"
            findings.wrong += [f"{what}: {wrong}" for wrong in _judge_killed(place, operation, not done.returncode)]
            if done.returncode == 1 and not _is_clean(done.stderr):
                findings.wrong.append(f"{what}: {done.stderr.strip().splitlines()[-1]}")
            shutil.rmtree(place)


def _is_clean(stderr: str) -> bool:
    """Whether the error that ended the process is one of ours; a note may stand behind it."""
    ends = [
        line for line in stderr.splitlines() if line and not line.startswith((" ", "Traceback", "During", "The above"))
    ]
    return all(line.startswith(("chunkstore.errors.", "OSError", _COMMITTED)) for line in ends[-2:])


__all__ = [
    "OPERATIONS",
    "Findings",
    "WriteError",
    "try_counts",
    "try_errors",
    "try_kills",
    "try_random_kills",
    "try_syncs",
]
