"""Running the tasks of a conversion: here, in processes of our own, or on any executor."""

from __future__ import annotations

import contextlib
import errno
import math
import multiprocessing.context
import os
import signal
import sys
import threading
import time
import types
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from itertools import islice
from multiprocessing import connection, parent_process
from typing import Any, Final

from chunkstore._ingest.convert.engine import Order, Outcome, Unseen, carry_out, mark, take
from chunkstore._ingest.convert.tasks import Task, Written, write_blocks
from chunkstore._storage.commit import NewFile
from chunkstore._storage.interrupts import ENDING, signals_later
from chunkstore.errors import IngestError, WriteError

_LAST_PIECE_SECONDS: Final = 10.0
_EARLIER_SECONDS: Final = 10.0  # a task that comes before a failure may take minutes: one huge member of an `.npz`


class _Worker(multiprocessing.context.SpawnProcess):
    """A process that knows nothing of the caller's script, and is stopped by its parent alone."""

    def start(self) -> None:
        # A spawned process runs the main script again, as `__mp_main__`: a script that calls `convert` without an
        # `if __name__ == "__main__"` would start over in every worker. Ours need nothing from it.
        with _without_main(), _without_interrupts():
            super().start()


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
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

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As `Executor.submit`; a signal waits until the pool is in a state that `kill` can end."""
        with signals_later():
            return super().submit(fn, *args, **kwargs)

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
    What a task raises is raised here. Of what is wrong with several sources that is what one process would find first,
    if it is found within 10 seconds: for so long tasks that come before it are still done. When this is left before the
    end, nothing new is started, and what runs is ended, or ends with its next piece.
    """
    crew = _Crew(executor, tasks, most, new)
    finished = False
    try:
        while crew.hand_out():
            own = crew.next_task() if crew.ours else None
            for block in crew.do(own) if own is not None else ():
                yield block
                yield from crew.collect(0)
            yield from crew.collect(None if own is None else 0)
        if crew.failure is not None:
            raise crew.failure
        finished = True
    finally:
        if not finished:
            new.discard()
            _stop(executor, crew.waiting)


class _Unwanted(Exception):
    """The rest of a task cannot change what is raised, or would take too long."""


class _Crew:
    """An executor and the tasks that are under way on it."""

    def __init__(self, executor: Executor, tasks: Iterable[Task], most: int, new: NewFile) -> None:
        self._executor, self._most, self._new = executor, most, new
        self.ours = isinstance(executor, WorkerPool)
        self._token = mark(new.sink, shared=not self.ours)
        self._tasks = iter(tasks)
        self._ahead = deque(islice(self._tasks, most + 1))
        self.waiting: dict[Future[Outcome], Task] = {}
        self.failure: IngestError | None = None
        self._failed_at = (sys.maxsize, 0)
        self._deadline = math.inf

    def _wants(self, task: Task, done: int = 0) -> bool:
        """Whether what is left of a task can change what is raised and there is time for it, or nothing has failed."""
        return task.block(done) < self._failed_at and time.monotonic() < self._deadline

    def _fail(self, error: IngestError, task: Task, done: int) -> None:
        if task.block(done) < self._failed_at:
            self.failure, self._failed_at = error, task.block(done)
            self._deadline = min(self._deadline, time.monotonic() + _EARLIER_SECONDS)

    def next_task(self) -> Task | None:
        """The next one that is to be done, if there is any."""
        while self._ahead:
            task = self._ahead.popleft()
            self._ahead.extend(islice(self._tasks, 1))
            if self._wants(task):
                return task
        return None

    def hand_out(self) -> bool:
        """Have as many tasks under way as there may be; whether there are any to wait for."""
        # What other engines have done may bring parts, which are large: they count until they are taken.
        num = sum(self._wants(task) and not (self.ours and done.done()) for done, task in self.waiting.items())
        while num < self._room() and (task := self.next_task()) is not None:
            with _engine_errors(self._new.path):
                self.waiting[self._executor.submit(carry_out, Order(task, self._token))] = task
            num += 1
        return any(map(self._wants, self.waiting.values()))

    def _room(self) -> int:
        """How many tasks may be under way. One waits behind those that processes of our own run, but of the last
        tasks none does: whoever is free first takes them.
        """
        return self._most - (self.ours and len(self._ahead) <= self._most)

    def do(self, task: Task) -> Iterator[Written]:
        """Do a task here; whoever is done meanwhile gets the next."""
        done = 0

        def meanwhile(nbytes: int) -> None:
            self._look()
            if not self._wants(task, done):
                raise _Unwanted
            self.hand_out()

        with contextlib.suppress(_Unwanted):
            try:
                for block in write_blocks(task, self._new.sink, meanwhile):
                    yield block
                    done += 1
            except IngestError as error:
                self._fail(error, task, done)

    def _look(self) -> None:
        """See what has failed meanwhile; it is taken later."""
        for future, task in self.waiting.items():
            if future.done() and not future.cancelled() and future.exception() is None:
                outcome = future.result()
                if isinstance(outcome.error, IngestError):
                    self._fail(outcome.error, task, len(outcome.written))

    def collect(self, seconds: float | None) -> Iterator[Written]:
        """Blocks of tasks that are done, waiting so long for the first; new tasks take their place."""
        if seconds is None and self.failure is not None:
            seconds = max(0.0, self._deadline - time.monotonic())
        done, _ = wait(self.waiting, seconds, FIRST_COMPLETED)
        while done:
            yield from self._take(done.pop())
            self.hand_out()

    def _take(self, future: Future[Outcome]) -> Iterator[Written]:
        """What a future brought; nothing refers to it afterwards, for it may be large."""
        task = self.waiting.pop(future)
        with _engine_errors(self._new.path):
            outcome = future.result()
        del future
        if isinstance(outcome.error, Unseen):
            yield from self.do(task)
        elif isinstance(outcome.error, IngestError):
            self._fail(outcome.error, task, len(outcome.written))
        else:
            yield from take(outcome, self._new.sink)


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
    for future in waiting:
        future.cancel()
    if isinstance(executor, WorkerPool):
        executor.kill()
    else:
        wait(waiting, timeout=_LAST_PIECE_SECONDS)
