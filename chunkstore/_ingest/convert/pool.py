"""Running the tasks of a conversion: here, in processes of our own, or on any executor."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing.context
import os
import platform
import signal
import sys
import threading
import types
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from itertools import islice
from multiprocessing import connection, parent_process
from queue import SimpleQueue
from typing import Any, Final

from chunkstore._ingest.convert.engine import Outcome, carry_out, mark
from chunkstore._ingest.convert.tasks import Task, Written, write_blocks
from chunkstore._storage.commit import NewFile
from chunkstore._storage.interrupts import ENDING, signals_later
from chunkstore.errors import WriteError

_LAST_PIECE_SECONDS: Final = 10.0


class _Worker(multiprocessing.context.SpawnProcess):
    """A process that knows nothing of the caller's script, and is stopped by its parent alone."""

    def start(self) -> None:
        # A spawned process runs the main script again, as `__mp_main__`: a script that calls `convert` without an
        # `if __name__ == "__main__"` would start over in every worker. Ours need nothing from it.
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            with _without_interrupts():
                super().start()
        finally:
            sys.modules["__main__"] = main


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """A child inherits the mask: Ctrl-C, which goes to all processes of a terminal, is then for the parent only.

    The parent itself takes signals when the child has all that it needs to start: half of it would be a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, *ENDING])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(multiprocessing.context.SpawnContext):
    """Spawn: a fork would copy the locks of threads that do not exist in the child. Remembers its processes."""

    def __init__(self) -> None:
        super().__init__()
        self.workers: list[_Worker] = []

    def Process(self, *args: Any, **kwargs: Any) -> _Worker:  # type: ignore[override]  # noqa: N802 - of multiprocessing
        worker = _Worker(*args, **kwargs)
        self.workers.append(worker)
        return worker


def _start_worker() -> None:
    """What a worker does first."""
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)  # the pool itself ends its processes so
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Idle workers wait for their queue, which a parent that was killed leaves open.
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


class WorkerPool(ProcessPoolExecutor):
    """Processes of our own. Starting them costs about 0.2 s."""

    def __init__(self, workers: int) -> None:
        self._context = _Context()
        # The queues of a pool are registered with a process that `multiprocessing` starts, and that unblocks these
        # signals: an interrupt between the two would have it complain about names that it never heard of. Masked, too:
        # that process inherits the mask, and a closed terminal would end it.
        with signals_later(), _without_interrupts():
            super().__init__(workers, mp_context=self._context, initializer=_start_worker)

    def kill(self) -> None:
        """End the processes now, whatever they do."""
        for worker in self._context.workers:
            if worker.pid is not None:
                worker.kill()
        self.shutdown(wait=True, cancel_futures=True)

    def __exit__(self, *error: object) -> None:
        try:
            self.shutdown()
        except BaseException:
            self.kill()  # or processes that still start find nothing that they need, and say so
            raise


def run_on(executor: Executor, tasks: Iterable[Task], most: int, new: NewFile) -> Generator[Written, None, None]:
    """Run tasks, at most `most` of them under way; blocks come in the order in which they are done.

    Args:
        executor: a `WorkerPool` of `most - 1` processes, beside which this one does tasks, too; or any other, which
            stays the caller's, and is not shut down. Its workers see the same sources.
        tasks: taken one by one, as there is room; `most` + 1 ahead, by which the last ones are known.
        most: tasks under way.
        new: the unfinished container; discarded when this is left before the end.
    Raises:
        WriteError: a worker died, or the executor could not run a task.
    What a task raises is raised here; of several that fail, what the first to be done raises. When this is left before
    the end, nothing new is started, and what runs is ended, or ends with its next piece.
    """
    crew = _Crew(executor, tasks, most, new)
    finished = False
    try:
        crew.hand_out()
        while (own := crew.own_task()) is not None or crew.waiting:
            for block in write_blocks(own, new.sink, crew.meanwhile) if own is not None else ():
                yield block
                yield from crew.taken()
            crew.collect(first=own is None)
            yield from crew.taken()
        finished = True
    finally:
        if not finished:
            new.discard()
            _stop(executor, crew.waiting)


class _Crew:
    """An executor and the tasks that are under way on it."""

    def __init__(self, executor: Executor, tasks: Iterable[Task], most: int, new: NewFile) -> None:
        self._executor, self._most, self._new = executor, most, new
        self._ours = isinstance(executor, WorkerPool)
        self._token = mark(new.sink, shared=not self._ours)
        self._tasks = iter(tasks)
        self._ahead = deque(islice(self._tasks, most + 1))
        self._unseen: deque[Task] = deque()  # that no worker can do
        self._taken: deque[Written] = deque()
        self.waiting: dict[Future[Outcome], Task] = {}
        # Instead of `concurrent.futures.wait`: Ctrl-C in it can leave the lock of a future taken, for which threads of
        # the executor then wait for ever, and `kill` for them. So signals wait while futures and the executor are used.
        self._done: SimpleQueue[Future[Outcome]] = SimpleQueue()

    def _next_task(self) -> Task:
        self._ahead.extend(islice(self._tasks, 1))
        return self._ahead.popleft()

    def own_task(self) -> Task | None:
        """The next one for this process, if there is any."""
        if self._unseen:
            return self._unseen.popleft()
        return self._next_task() if self._ours and self._ahead else None

    def hand_out(self) -> None:
        """Have as many tasks under way as there may be."""
        while self._ahead and len(self.waiting) < self._room():
            task = self._next_task()
            with _engine_errors(self._new.path), signals_later():
                future = self._executor.submit(carry_out, task, self._token, platform.node())
                self.waiting[future] = task
                future.add_done_callback(self._done.put)

    def _room(self) -> int:
        """How many tasks may be under way. One waits behind those that processes of our own run, but of the last
        tasks none does: whoever is free first takes them.
        """
        return self._most - (self._ours and len(self._ahead) <= self._most)

    def meanwhile(self, nbytes: int) -> None:
        """Between the pieces of a task that is done here: whoever is done gets the next, and an error is told soon."""
        self.collect(first=False)

    def collect(self, *, first: bool) -> None:
        """Take what is done, with `first` wait for one at least; new tasks take their place."""
        while self.waiting and (first or not self._done.empty()):
            self._take(self._done.get())
            self.hand_out()
            first = False

    def _take(self, future: Future[Outcome]) -> None:
        """Take what a future brought; nothing refers to it afterwards, for it may be large."""
        task = self.waiting.pop(future)
        with _engine_errors(self._new.path), signals_later():
            outcome = future.result()
        if outcome.error is not None:
            raise outcome.error
        if outcome.written is None:
            self._unseen.append(task)
            return
        for offset, piece in outcome.part:
            self._new.sink.pwrite(offset, piece)
        self._taken.extend(outcome.written)

    def taken(self) -> Iterator[Written]:
        """Blocks that were taken, once."""
        while self._taken:
            yield self._taken.popleft()


@contextlib.contextmanager
def _engine_errors(path: str) -> Iterator[None]:
    """Tasks bring their errors as values: whatever the executor raises is its own failure."""
    try:
        yield
    except BrokenExecutor as error:
        text = (
            "a worker process died (killed, or out of memory?): nothing was published. Convert again, "
            "with fewer workers if memory was short"
        )
        raise WriteError(errno.ECHILD, text, path) from error
    except Exception as error:  # each engine has its own classes
        text = (
            f"the executor could not run a task ({type(error).__name__}: {error}): nothing was published. See that "
            "its workers run and can import chunkstore, then convert again, with fewer of them if memory was short"
        )
        raise WriteError(errno.ECHILD, text, path) from error


def _stop(executor: Executor, waiting: Iterable[Future[Outcome]]) -> None:
    """Our own processes end now; others are given the time of a piece to notice that their file is gone."""
    with signals_later():
        for future in waiting:
            future.cancel()
    if isinstance(executor, WorkerPool):
        executor.kill()
    else:
        wait(waiting, timeout=_LAST_PIECE_SECONDS)
