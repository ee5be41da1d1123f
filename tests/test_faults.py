"""System calls that fail, take little, lie or are the last: nothing that was committed is lost, nothing is left behind.

The quick part of `tools/battery`.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # tools/ is not installed

import chunkstore  # noqa: E402
from tools.battery import faults, nomemory  # noqa: E402
from tools.battery.crash import read_fully  # noqa: E402
from tools.battery.faults import OPERATIONS, Findings, Operation  # noqa: E402
from tools.battery.samples import key, sample  # noqa: E402
from tools.battery.scratch import in_memory  # noqa: E402

operations = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
APPEND = next(operation for operation in OPERATIONS if operation.name == "append")


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one."""
    with in_memory(tmp_path) as folder:
        yield folder


@operations
def test_every_call_may_fail(memory: Path, operation: Operation) -> None:
    """An error of ours, the container as before, a poisoned writer, no descriptor, no temporary; and one can go on."""
    findings = Findings()
    faults.try_errors(memory, operation, findings, (errno.EIO,))
    assert findings.wrong == []
    assert findings.raised["WriteError"] > 9
    assert findings.raised["CommitUnknownError"] > 0


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EINTR], ids=errno.errorcode.get)
def test_every_call_of_an_append_may_fail_otherwise(memory: Path, code: int) -> None:
    """The same for a full disk, a used quota, an interrupt."""
    findings = Findings()
    faults.try_errors(memory, APPEND, findings, (code,))
    assert findings.wrong == []


@operations
def test_short_and_lying_writes(memory: Path, operation: Operation) -> None:
    """Writes that take one byte are gone on with; those that answer nothing or too much are errors."""
    findings = Findings()
    faults.try_counts(memory, operation, findings)
    assert findings.wrong == []
    assert findings.raised == {"none": 3, "WriteError": 3}


def test_a_sync_that_fails_is_never_asked_again(memory: Path) -> None:
    """Linux reports success the second time although the bytes are gone: it is unknown, and the writer is finished."""
    findings = Findings()
    faults.try_syncs(memory, findings)
    assert findings.wrong == []
    assert findings.tried == 2


@needs_fork
@operations
def test_a_process_killed_before_any_call(memory: Path, operation: Operation) -> None:
    """The container is as before or as it was to become, and what the dead process left is in nobody's way."""
    findings = Findings()
    faults.try_kills(memory, operation, findings, every=4)
    assert findings.wrong == []
    assert findings.raised["killed"] >= 4


@needs_fork
def test_processes_killed_at_random(memory: Path) -> None:
    """What an appending process said to be committed is there, however it was killed."""
    findings = Findings()
    faults.try_random_kills(memory, findings, 20)
    assert findings.wrong == []


@needs_fork
def test_a_process_that_ends_before_it_is_killed_is_found(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An append that fails by itself is no kill that went well."""

    def fails(path: Path) -> None:
        os.write(1, b"3\n")
        raise chunkstore.WriteError

    monkeypatch.setattr(faults, "endless_appends", fails)
    findings = Findings()
    faults.try_random_kills(memory, findings, 1)
    assert findings.wrong == ["the appending process ended by itself"]


@needs_fork
def test_a_process_that_finishes_without_its_work_is_found(memory: Path) -> None:
    """Only a process that was killed, or said that it failed, may leave the container as it was."""
    operation = Operation("idle", APPEND.prepare, lambda folder: None, APPEND.before, APPEND.after)
    findings = Findings()
    faults.try_kills(memory, operation, findings)
    assert findings.tried == 1
    assert "expected one of (14,)" in findings.wrong[0]


def test_real_calls_that_fail_or_are_the_last(memory: Path) -> None:
    """The same through the kernel: strace kills the process at a call, or lets the call fail."""
    reason = faults.why_no_strace()
    if reason:
        pytest.skip(reason)
    findings = Findings()
    for injected in ("signal=SIGKILL", "error=EIO"):
        faults.try_strace(memory, APPEND, findings, injected, range(2, 3), ("fdatasync", "pwrite64"))
    assert findings.wrong == []
    assert findings.tried == 4


@pytest.mark.parametrize(
    "task", [task for task in nomemory.TASKS if task.name in ("read", "add")], ids=lambda t: t.name
)
def test_memory_runs_out(memory: Path, task: nomemory.Task) -> None:
    """At some of the allocations of a read or an add: an error, and the reader or writer goes on as if nothing was."""
    if nomemory.why_not():
        pytest.skip(str(nomemory.why_not()))
    findings = Findings()
    nomemory.try_task(memory, task, findings, every=401, widths=(1,))
    assert findings.wrong == []
    assert findings.raised["MemoryError"] >= 1


def test_a_container_replaced_under_its_writer(tmp_path: Path) -> None:
    """The writer says so at its next commit, and the new container is as it was made."""
    path = tmp_path / "a.cks"
    faults.write(path, 0, 4)
    with chunkstore.Writer(path, mode="a") as writer:
        writer.add(sample(4), key(4))
        faults.write(path, 0, 2, "w")
        with pytest.raises(chunkstore.ReplacedError, match="another file was put in the place"):
            writer.commit()
    assert list(read_fully(path, (0, 1), whole=True)) == []
