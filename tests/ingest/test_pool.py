"""Who does which task where this process is one of the workers: nobody waits while there is something to do.

And how the other processes end.
"""

from __future__ import annotations

import operator
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chunkstore
from chunkstore._ingest.convert import convert, engine, pool
from chunkstore._ingest.convert.tasks import Receiver, Task, Written, write_blocks

_MOST_SECONDS = 10.0
Advance = Callable[[int], None]


class InThreads(ThreadPoolExecutor):
    """In place of processes: what they do can be looked at."""

    def kill(self) -> None:
        """As that of `WorkerPool`."""
        self.shutdown(cancel_futures=True)


class Crew:
    """Counts tasks done by the pool and those done here; each side can be made to wait for the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.theirs = self.ours = 0
        self.until_ours = self.until_theirs = 0  # tasks of the other side that the first task of this one waits for
        for module in (convert, pool):
            monkeypatch.setattr(module, "WorkerPool", InThreads)
        monkeypatch.setattr(engine, "write_blocks", self._by_pool)
        monkeypatch.setattr(pool, "write_blocks", self._here)

    def _by_pool(self, task: Task, sink: Receiver, advance: Advance) -> Iterator[Written]:
        _wait(lambda: self.ours >= self.until_ours)
        yield from write_blocks(task, sink, advance)
        self.theirs += 1

    def _here(self, task: Task, sink: Receiver, advance: Advance) -> Iterator[Written]:
        _wait(lambda: self.theirs >= self.until_theirs, advance)
        yield from write_blocks(task, sink, advance)
        self.ours += 1


def _wait(ready: Callable[[], bool], advance: Advance = lambda _: None) -> None:
    end = time.monotonic() + _MOST_SECONDS
    while not ready() and time.monotonic() < end:
        advance(0)
        time.sleep(0.001)


def run(directory: Path, num_shards: int) -> chunkstore.ConvertReport:
    source = directory / "source"
    source.mkdir()
    for place in range(num_shards):
        np.savez_compressed(source / f"{place}.npz", x=np.full((16, 1024), place, np.uint8))
    return chunkstore.convert(source, directory / "x.cks", layout="rows", shard_nbytes=16 * 1024, workers=2)


def test_slow_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process gets new tasks while this one is in the middle of its own."""
    crew = Crew(monkeypatch)
    crew.until_theirs = 9
    run(tmp_path, 10)
    assert (crew.theirs, crew.ours) == (9, 1)


def test_last_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last tasks do not wait behind a slow one while this process has nothing to do."""
    crew = Crew(monkeypatch)
    crew.until_ours = 2
    run(tmp_path, 3)
    assert (crew.theirs, crew.ours) == (1, 2)


def test_an_interrupt_of_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that still start when all is done are not left behind: what they need to start goes with the pool."""
    shutdown = ProcessPoolExecutor.shutdown

    def interrupted(self: ProcessPoolExecutor, *args: Any, **kwargs: Any) -> None:
        monkeypatch.setattr(ProcessPoolExecutor, "shutdown", shutdown)
        raise KeyboardInterrupt

    monkeypatch.setattr(ProcessPoolExecutor, "shutdown", interrupted)
    with pytest.raises(KeyboardInterrupt), pool.WorkerPool(1) as executor:
        executor.submit(operator.add, 1, 1)
    alive = [worker.is_alive() for worker in executor._context.workers]
    executor.kill()
    assert alive == [False]


_INTERRUPTED = """
import signal, sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import chunkstore

left = 0

def profile(frame, event, arg):
    # Where Python looks for signals while a lock is taken that nobody would give back: as __enter__ returns.
    global left
    name = frame.f_code.co_filename
    if event == "return" and frame.f_code.co_name == "__enter__" and ("concurrent" in name or "threading" in name):
        left -= 1
        if left == 0:
            signal.raise_signal(signal.SIGINT)

for number in range(1, 1000):
    left = number
    with ThreadPoolExecutor(2) if sys.argv[1] == "threads" else nullcontext() as executor:
        try:
            sys.setprofile(profile)
            chunkstore.convert(sys.argv[2], sys.argv[3], shard_nbytes=int(sys.argv[4]), executor=executor, mode="w")
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
    if left > 0:
        break
assert number > 1, "never interrupted"
print("no thread waits")
"""


@pytest.mark.parametrize(("how", "row_nbytes", "shard_nbytes"), [("threads", 4096, 4096), ("alone", 4 << 20, 64 << 20)])
def test_interrupt_with_a_lock(tmp_path: Path, how: str, row_nbytes: int, shard_nbytes: int) -> None:
    """Ctrl-C leaves no lock of a future or of the executor taken, for which its threads would wait for ever."""
    source = tmp_path / "source"
    source.mkdir()
    for place in range(6):
        np.savez(source / f"{place}.npz", x=np.full((row_nbytes,), place, np.uint8))
    command = [sys.executable, "-c", _INTERRUPTED, how, str(source), str(tmp_path / "x.cks"), str(shard_nbytes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.returncode) == ("no thread waits\n", 0), done.stderr
