"""Results made ahead by threads: a bounded ring; how it runs, how it stops, how errors travel.

    tasks --take--> a thread: make(task) --put--> results, in the order of the tasks --next()--> the user

    taken, not yet delivered <= depth        a thread that finds no room waits, holding nothing

A thread never refers to the `Ring` itself, only to what they share; so a ring that is dropped half-way is collected
like any object, and its threads stop.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final, Generic, NoReturn, Self, TypeVar

from chunkstore._storage import platform
from chunkstore.errors import ClosedError

Task = TypeVar("Task")
Result = TypeVar("Result")

# How long a garbage collection waits for threads to end. It may run anywhere, even inside a call that such a thread
# waits for, so it must not wait for ever; `close` and the exit of the interpreter do.
_PATIENCE_SECONDS: Final = 5.0

# How long the exit waits for a daemon thread of the user's to come back for its next result, and rest there. Until
# then it may free the last one, in which torch gives up the GIL: an interpreter that goes away meanwhile aborts.
_RETURN_SECONDS: Final = 0.1


_num_forks = 0  # between this process and the one that imported this module: tells whose threads a ring has


def _count_fork() -> None:
    global _num_forks
    _num_forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


class _Failure:
    """An exception on its way from a thread to `next()`, which takes it out: frames of its traceback refer to this."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Shared(Generic[Task, Result]):
    """What the threads and the user of a ring share.

    Threads and user meet in `results`, whose single operations are atomic, and wake each other through two queues of
    tokens. No lock is held by both: a user who finds his result ready never waits for a thread that has the lock but
    not the GIL; measured, that cost 50 µs a batch on a busy machine. `SimpleQueue` also works from a garbage collection
    inside any of these calls.
    """

    def __init__(self, tasks: Iterator[Task], make: Callable[[Task], Result], depth: int) -> None:
        self.make = make
        self.num_forks = _num_forks
        self.user = threading.current_thread()
        self.threads: list[threading.Thread] = []
        self.making = threading.RLock()  # held by the user's own thread while it makes a result, without threads
        self.results: dict[int, tuple[Result | _Failure, float]] = {}  # number -> (result, seconds it took)
        self.stopped = False
        self._ready: SimpleQueue[None] = SimpleQueue()  # a token for each result that was put, or a reason to look
        self._room: SimpleQueue[None] | None = SimpleQueue() if depth else None  # a token for each result more to make
        self._many = depth // 2
        self._num_owed = depth  # tokens that the user has not given back yet
        self._free()
        self.tasks = tasks
        self._task_lock = threading.Lock()  # among the threads: tasks are advanced and numbered by one at a time
        self._next_task = 0
        self._next_result = 0
        self._num_tasks: int | None = None  # once it is known

    def _free(self) -> None:
        if self._room is not None:
            for _ in range(self._num_owed):
                self._room.put(None)
        self._num_owed = 0

    def _wake(self) -> None:
        """Let threads that wait look whether it is over."""
        if self._room is not None:
            self._room.put(None)
        self._ready.put(None)

    def _over(self) -> bool:
        return self.stopped or self._num_tasks is not None

    def take(self) -> tuple[int, Task] | None:
        """The next task and its number; waits for room; None at the end."""
        with self._task_lock:
            if self._over():
                return None
            if self._room is not None:
                self._room.get()
            if self._over():
                return None
            number = self._next_task
            try:
                task = next(self.tasks)
            except StopIteration:
                self._end(number)
                return None
            except BaseException as error:  # noqa: BLE001 - it goes on to the user
                self.put(number, _Failure(error), 0.0)
                return None
            self._next_task = number + 1
            return number, task

    def put(self, number: int, result: Result | _Failure, seconds: float) -> None:
        if isinstance(result, _Failure):
            self._end(number + 1)  # what comes after it will never be asked for
        self.results[number] = result, seconds
        if self.stopped:
            self.results.clear()
        self._ready.put(None)

    def _end(self, num_tasks: int) -> None:
        self._num_tasks = num_tasks if self._num_tasks is None else min(num_tasks, self._num_tasks)
        self._wake()

    def get(self) -> tuple[Result | _Failure, float]:
        """The next result in order, and the seconds it took; waits for it.

        Raises:
            StopIteration: there is none. What `make` raises comes as a `_Failure`.
        """
        while (found := self.results.pop(self._next_result, None)) is None:
            if self.stopped:
                _end_daemon()
                raise ClosedError("this iteration was closed; begin a new one with iter()")
            if self._num_tasks is not None and self._next_result >= self._num_tasks:
                raise StopIteration
            self._ready.get()
        self._next_result += 1
        self._num_owed += 1
        # To wake a thread costs the user 10 to 20 µs: while there are many results, once for two of them.
        if self._num_owed > 1 or len(self.results) <= self._many:
            self._free()
        # The token of this result or a later one, so that they do not pile up; to wait is decided by `results` alone.
        with contextlib.suppress(Empty):
            self._ready.get_nowait()
        return found

    def stop(self) -> None:
        self.stopped = True
        self._wake()
        self.results.clear()


class Ring(Generic[Task, Result]):
    """An iterator over `make(task)` for each task, in order, made ahead of the user.

    Args:
        tasks: what to make; advanced in the threads, by one at a time.
        make: called in the threads, several at a time where there are several. Must not refer to the ring.
        depth: how many results may be ready or in the making while the user is busy, 1 or more. 0: no threads;
            `make` is called inside `next()`.
        threads: how many, 1 or more; more than `depth` are never busy.

    Attributes:
        make_seconds: how long `make` took for the results that were delivered, summed over threads.

    An exception in `make` or `tasks` is raised by the `next()` that would have given the result, after all results
    before it; then the ring is closed. Threads stop when the tasks end, at `close()`, when the ring is collected, and
    at the exit of the interpreter, which waits for the calls of `make` that are under way, also inside `next()` of a
    daemon thread, which then goes no further; for one that is outside of `next()` it waits a tenth of a second.
    After a fork the child has no threads: it must make a ring of its own. Take results from one thread at a time.
    """

    def __init__(self, tasks: Iterable[Task], make: Callable[[Task], Result], *, depth: int, threads: int = 1) -> None:
        self._shared: _Shared[Task, Result] = _Shared(iter(tasks), make, depth)
        self._finalizer = weakref.finalize(self, _stop, self._shared, _PATIENCE_SECONDS)
        self._finalizer.atexit = False  # _stop_all does that, without limit of time
        self._inline = depth == 0
        self._ended = False
        self.make_seconds = 0.0
        self._start(min(threads, depth))

    def _start(self, num_threads: int) -> None:
        shared = self._shared
        try:
            _RUNNING.add(shared)
            # Looked at last: an exit that begins now finds the ring.
            if _exiting and (num_threads or threading.current_thread().daemon):
                raise ClosedError("the interpreter is exiting; no new iteration can begin")
            for number in range(num_threads):
                # Daemons: otherwise the interpreter would wait for them before it tells anybody that it exits.
                thread = threading.Thread(target=_work, args=(shared,), name=f"chunkstore-loader-{number}", daemon=True)
                # First: who stops the ring must find all that may run. One that starts later finds the ring stopped.
                shared.threads.append(thread)
                thread.start()
        except BaseException:
            self.close()
            _end_daemon()
            raise

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Result:
        """The next result.

        Raises:
            StopIteration: all were delivered.
            ClosedError: the ring was closed, or an error ended it.
            RuntimeError: it was made in another process.
        """
        if self._ended:
            raise StopIteration
        self.check_process()
        shared = self._shared
        if self._inline:
            self._make_one()
            _end_daemon()  # an exit that has waited for this goes on now
        try:
            result, seconds = shared.get()
        except StopIteration:
            self._ended = True
            self.close()
            raise
        self.make_seconds += seconds
        if isinstance(result, _Failure):
            self.close()
            _raise(result)
        return result

    def check_process(self) -> None:
        """Raise RuntimeError in a forked child, which has none of the threads; let no daemon thread on at exit."""
        if self._shared.num_forks != _num_forks:
            raise RuntimeError("a loader's iteration cannot go on in a forked process; begin one there with iter()")
        _end_daemon()

    def _make_one(self) -> None:
        before = _awaited.now
        with contextlib.nullcontext() if before else self._shared.making:
            try:
                _awaited.now = True
                _work_once(self._shared)
            except BaseException:
                self.close()  # interrupted outside `make`: the task is lost, and nobody must wait for its result
                raise
            finally:
                _awaited.now = before

    def close(self) -> None:
        """Stop the threads and wait until they have ended; results not taken are dropped. Idempotent."""
        self._finalizer.detach()
        _stop(self._shared, None)

    def closer(self) -> Callable[[], None]:
        """What stops the threads and waits for them as `close` does, without a reference to the ring.

        A ring that is collected does not wait for ever: for who must know that its threads have ended.
        """
        return partial(_stop, self._shared, None)


def _raise(failure: _Failure) -> NoReturn:
    error = failure.error
    del failure.error
    try:
        if isinstance(error, (StopIteration, StopAsyncIteration)):
            # As it stands it would end the user's loop without a word.
            raise RuntimeError(f"a transform raised {type(error).__name__}") from error
        raise error
    finally:
        del error  # the traceback refers to this frame


def _work(shared: _Shared[Any, Any]) -> None:
    """Life of a thread."""
    _awaited.now = True
    platform.never_interrupt()
    while _work_once(shared):
        pass


def _work_once(shared: _Shared[Any, Any]) -> bool:
    """Make one result; its own function, so that a thread that waits for room refers to no batch."""
    taken = shared.take()
    if taken is None:
        return False
    number, task = taken
    start = time.perf_counter()
    result: Any
    try:
        result = shared.make(task)
    except BaseException as error:  # noqa: BLE001 - it goes on to the user
        result = _Failure(error)
    shared.put(number, result, time.perf_counter() - start)
    return True


_RUNNING: Final[set[_Shared[Any, Any]]] = set()
_exiting = False
_resting: Final[set[threading.Thread]] = set()


class _Awaited(threading.local):
    """Whether the exit waits for what this thread does now, as for a thread of a ring, or inside `make`.

    What it takes from another iteration (`prefetch(loader)`; a loader in a transform) must then go on, or fail, for
    it to end: if it rested, or waited for another lock, the exit would wait for ever.
    """

    now = False


_awaited: Final = _Awaited()


def _stop(shared: _Shared[Any, Any], patience_seconds: float | None) -> None:
    """Stop and join, except from inside one of the threads themselves."""
    if shared.num_forks != _num_forks:
        return  # a forked child: the threads are the parent's, and the lock may be held for ever
    shared.stop()
    deadline = None if patience_seconds is None else time.monotonic() + patience_seconds
    if threading.current_thread() in shared.threads:
        return
    for thread in shared.threads:
        if thread.is_alive():  # not before it has started: what `join` demands
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
    shared.results.clear()  # what was put meanwhile
    if not any(thread.is_alive() for thread in shared.threads):
        _RUNNING.discard(shared)
        shared.make = _closed
        shared.tasks = iter(())


def _end_daemon() -> None:
    """At exit: let a daemon thread of the user's own rest here for good.

    It would otherwise go on while the interpreter goes away, to free the tensors that it has; and a thread that is
    inside a framework's call then aborts the process.
    """
    if _exiting and threading.current_thread().daemon and not _awaited.now:
        _resting.add(threading.current_thread())
        threading.Event().wait()


def _closed(task: Any) -> Any:
    raise ClosedError("the loader was closed")


def _stop_all() -> None:
    """At exit: a thread that is inside a framework's call when the interpreter goes away aborts the process."""
    global _exiting
    _exiting = True
    running = [shared for shared in list(_RUNNING) if shared.num_forks == _num_forks]
    for shared in running:
        shared.stop()
    for shared in running:
        _stop(shared, None)
        shared.making.acquire()  # and no call of `make` begins any more
    deadline = time.monotonic() + _RETURN_SECONDS
    for user in {shared.user for shared in running if shared.user.daemon}:
        while user.is_alive() and user not in _resting and time.monotonic() < deadline:
            time.sleep(0.001)


atexit.register(_stop_all)
