"""The ring: results in order, made ahead by a bounded number; how errors travel; no thread outlives it."""

from __future__ import annotations

import errno
import gc
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from chunkstore._loading import prefetch
from chunkstore._loading.prefetch import Ring
from chunkstore.errors import ClosedError

MODES = [(0, 1), (1, 1), (4, 1), (4, 3), (2, 5)]  # (depth, threads)


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("chunkstore-loader")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert loader_threads() == []


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited for 10 s"
        time.sleep(0.001)


@pytest.mark.parametrize(("depth", "threads"), MODES)
@pytest.mark.parametrize("num_tasks", [0, 1, 3, 50])
def test_results_come_in_order(depth: int, threads: int, num_tasks: int) -> None:
    """Every task gives one result, in the order of the tasks, whichever thread was faster; then it has ended."""

    def make(task: int) -> int:
        time.sleep(0.0005 * (task % 3))
        return task * task

    ring = Ring(range(num_tasks), make, depth=depth, threads=threads)
    assert list(ring) == [task * task for task in range(num_tasks)]
    assert list(ring) == []


@pytest.mark.parametrize("threads", [1, 3])
def test_no_more_than_depth_ahead(threads: int) -> None:
    """While the user does nothing, exactly `depth` results are made; two that are taken make room for two more."""
    made = []
    ring = Ring(range(100), made.append, depth=3, threads=threads)
    for num_taken in (0, 2, 4):
        wait_until(lambda num=num_taken + 3: len(made) == num)  # type: ignore[misc]
        time.sleep(0.02)
        assert sorted(made) == list(range(num_taken + 3))
        next(ring)
        time.sleep(0.02)
        assert len(made) == num_taken + 3  # there are enough: nobody is woken for one
        next(ring)
    ring.close()


def test_few_results_are_made_up_for_at_once() -> None:
    """A result that is taken where no more than half are ready makes room for the next one without delay."""
    for depth, num_taken in ((1, 1), (2, 1), (4, 2)):
        made: list[int] = []
        ring = Ring(range(100), made.append, depth=depth)
        wait_until(lambda made=made, num=depth: len(made) == num)  # type: ignore[misc]
        for _ in range(num_taken):
            next(ring)
        wait_until(lambda made=made, num=depth + num_taken: len(made) == num)  # type: ignore[misc]
        ring.close()


def test_threads_work_at_the_same_time() -> None:
    """Three tasks that wait for each other end, because three threads run them."""
    barrier = threading.Barrier(3, timeout=10)
    assert len(list(Ring(range(3), lambda task: barrier.wait(), depth=3, threads=3))) == 3


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="a way of Linux to schedule")
def test_threads_do_not_interrupt_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are scheduled as batch work, and the user's thread is not; where a sandbox refuses, all goes on."""
    assert list(Ring(range(2), lambda _: os.sched_getscheduler(0), depth=2)) == [os.SCHED_BATCH] * 2
    assert list(Ring(range(1), lambda _: os.sched_getscheduler(0), depth=0)) == [os.SCHED_OTHER]
    assert os.sched_getscheduler(0) == os.SCHED_OTHER

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "refused")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    assert list(Ring(range(2), lambda _: os.sched_getscheduler(0), depth=2)) == [os.SCHED_OTHER] * 2


def test_depth_0_makes_everything_in_the_callers_thread() -> None:
    """Without depth no thread is started: `make` runs inside `next()`."""
    ring = Ring(range(3), lambda task: threading.get_ident(), depth=0)
    assert loader_threads() == []
    assert set(ring) == {threading.get_ident()}


@pytest.mark.parametrize(("depth", "threads"), MODES)
def test_an_error_comes_after_the_results_before_it(depth: int, threads: int) -> None:
    """The exception itself is raised by the `next()` of its task; then the ring is closed and says so."""
    error = LookupError("task 5")

    def make(task: int) -> int:
        if task == 5:
            raise error
        return task

    ring = Ring(range(100), make, depth=depth, threads=threads)
    assert [next(ring) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(LookupError) as caught:
        next(ring)
    assert caught.value is error
    assert "make" in [entry.name for entry in caught.traceback]
    with pytest.raises(ClosedError, match="was closed; begin a new one"):
        next(ring)


@pytest.mark.parametrize("depth", [0, 4])
def test_an_error_goes_without_a_garbage_collection(depth: int) -> None:
    """Its traceback refers to all that it came through: to containers, with their descriptors, and to batches."""

    class BrokenError(Exception):
        pass

    def make(task: int) -> int:
        raise BrokenError

    gc.disable()
    try:
        ring, caught = Ring(range(3), make, depth=depth), []
        try:
            next(ring)
        except BrokenError as error:
            caught.append(weakref.ref(error))
        assert [error() for error in caught] == [None]
    finally:
        gc.enable()


@pytest.mark.parametrize("depth", [0, 4])
def test_an_error_of_the_tasks_travels_too(depth: int) -> None:
    """An exception of the task iterator is raised in its place."""

    def tasks() -> Iterator[int]:
        yield 0
        raise OSError("no more")

    ring = Ring(tasks(), lambda task: task, depth=depth)
    assert next(ring) == 0
    with pytest.raises(OSError, match="no more"):
        next(ring)


@pytest.mark.parametrize("depth", [0, 4])
def test_stop_iteration_of_a_transform_does_not_end_the_epoch(depth: int) -> None:
    """A StopIteration that escapes from `make` becomes a RuntimeError: it must not look like the end of the data."""
    ring = Ring(range(3), lambda task: next(iter(())), depth=depth)
    with pytest.raises(RuntimeError, match="a transform raised StopIteration"):
        next(ring)


def test_close_drops_results_and_ends_iteration() -> None:
    """After close() results that were ready are gone, nothing else is made, and next() is a ClosedError."""
    made = []
    ring = Ring(range(100), made.append, depth=4)
    wait_until(lambda: len(made) == 4)
    ring.close()
    ring.close()
    assert (len(made), loader_threads()) == (4, [])
    with pytest.raises(ClosedError):
        next(ring)


def test_close_waits_for_a_call_under_way() -> None:
    """close() returns only when the thread has left `make`."""
    entered, left = threading.Event(), threading.Event()

    def make(task: int) -> None:
        entered.set()
        time.sleep(0.1)
        left.set()

    ring = Ring(range(9), make, depth=2)
    assert entered.wait(10)
    ring.close()
    assert left.is_set()


def test_close_from_another_thread_wakes_the_user() -> None:
    """A user that waits in next() gets a ClosedError when the ring is closed elsewhere; he does not wait for ever."""
    go = threading.Event()
    ring = Ring(range(9), lambda task: go.wait(10), depth=2)
    closer = threading.Timer(0.05, lambda: (go.set(), ring.close()))
    closer.start()
    with pytest.raises(ClosedError):
        while True:
            next(ring)
            go.clear()
    closer.join()


@pytest.mark.parametrize("in_cycle", [False, True])
def test_a_dropped_ring_stops_its_threads(in_cycle: bool) -> None:
    """Half-read and dropped, also as part of a reference cycle: the threads have ended when it is collected."""
    ring: Any = Ring(range(1000), lambda task: task, depth=4, threads=2)
    next(ring)
    if in_cycle:
        ring.me = ring
    del ring
    gc.collect()
    assert loader_threads() == []


def test_a_ring_collected_in_a_thread_of_another() -> None:
    """A collection may run in any thread, also in a loader's: that one drops another ring without a deadlock."""
    inner: list[Any] = [Ring(range(100), lambda task: task, depth=2)]
    next(inner[0])
    outer = Ring(range(3), lambda task: (inner.clear(), gc.collect()), depth=1)
    assert len(list(outer)) == 3
    assert loader_threads() == []


def test_a_ring_that_drops_itself_in_its_own_thread() -> None:
    """Its last reference may die in one of its own threads, which cannot wait for itself."""
    box: list[Any] = []
    filled, dropped = threading.Event(), threading.Event()

    def make(task: int) -> int:
        assert filled.wait(10)
        box.clear()
        gc.collect()
        dropped.set()
        return task

    box.append(Ring(range(3), make, depth=1))
    filled.set()
    assert dropped.wait(10)
    wait_until(lambda: loader_threads() == [])


def test_a_waiting_thread_holds_no_result() -> None:
    """A result that was delivered and dropped is free at once: no thread keeps a reference while it waits for room."""

    class Thing:
        alive = 0

        def __init__(self) -> None:
            Thing.alive += 1

        def __del__(self) -> None:
            Thing.alive -= 1

    ring = Ring(range(100), lambda task: Thing(), depth=2, threads=2)
    for _ in range(10):
        thing = next(ring)
        wait_until(lambda: Thing.alive == 3)
        time.sleep(0.002)
        assert Thing.alive == 3
        del thing
        assert Thing.alive == 2
    ring.close()
    assert Thing.alive == 0


def test_interrupted_next_can_be_repeated() -> None:
    """KeyboardInterrupt while waiting loses nothing: the next call gives the result that was waited for."""
    import signal

    def make(task: int) -> int:
        time.sleep(0.2 if task == 0 else 0)
        return task

    ring = Ring(range(5), make, depth=2)
    timer = threading.Timer(0.05, lambda: signal.raise_signal(signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        next(ring)
    timer.join()
    assert list(ring) == [0, 1, 2, 3, 4]


def test_times_are_counted() -> None:
    """The time in `make` is measured in seconds."""
    ring = Ring(range(3), lambda task: time.sleep(0.02), depth=1)
    list(ring)
    assert 0.05 < ring.make_seconds < 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_told_to_make_its_own() -> None:
    """In the child next() is a RuntimeError at once, and dropping the ring there hangs neither child nor parent."""
    ring = Ring(range(100), lambda task: task, depth=2)
    next(ring)
    child = os.fork()
    if not child:
        code = 1
        try:
            next(ring)
        except RuntimeError as error:
            code = 0 if "forked process" in str(error) else 2
        ring.close()
        os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert next(ring) == 1
    ring.close()


@pytest.mark.parametrize("place", ["behind it", "in the middle"])
def test_interrupted_while_a_thread_starts(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Ctrl-C when `start()` returns: the ring waits for that thread. In the middle of it: the thread makes nothing."""
    start, made = threading.Thread.start, []

    def make(task: int) -> None:
        made.append(task)
        time.sleep(0.2)

    def interrupted(self: threading.Thread) -> None:
        if place == "in the middle":  # the signal comes before the thread's sign of life
            raise KeyboardInterrupt
        start(self)
        wait_until(lambda: len(made) == 1)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    running = set(prefetch._RUNNING)
    with pytest.raises(KeyboardInterrupt) as caught:
        Ring(range(1000), make, depth=2)
    assert loader_threads() == []
    assert running == prefetch._RUNNING
    monkeypatch.undo()
    if place == "in the middle":
        ring = next(each.frame.f_locals["shared"] for each in caught.traceback if "shared" in each.frame.f_locals)
        ring.threads[0].start()
        ring.threads[0].join()
    assert len(made) == (place == "behind it")


def test_threads_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the system gives no second thread, the first one is stopped and the error comes at once."""
    start, started = threading.Thread.start, []

    def limited(self: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(self)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        Ring(range(9), lambda task: task, depth=2, threads=2)
    assert not started[0].is_alive()


def test_a_ring_that_begins_as_the_interpreter_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the exit stops all rings just before this one is among them, it starts no thread that nobody would stop."""

    class Late(set[Any]):
        def add(self, element: Any) -> None:
            prefetch._stop_all()
            super().add(element)

    monkeypatch.setattr(prefetch, "_RUNNING", running := Late())
    monkeypatch.setattr(prefetch, "_exiting", False)
    with pytest.raises(ClosedError, match="the interpreter is exiting"):
        Ring(range(9), lambda task: task, depth=2)
    assert not running
    assert loader_threads() == []


def test_many_rings_under_switching(monkeypatch: pytest.MonkeyPatch) -> None:
    """With threads switched every 10 µs, 30 short rings lose nothing, repeat nothing and end."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for number in range(30):
            ring = Ring(range(40), lambda task: task, depth=1 + number % 4, threads=1 + number % 3)
            if number % 2:
                assert list(ring) == list(range(40))
            else:
                assert [next(ring) for _ in range(number)] == list(range(number))
                ring.close()
    finally:
        sys.setswitchinterval(interval)
