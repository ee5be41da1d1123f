"""Requests under way: shared out among threads, of which there are none where nobody has asked for a while."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from typing import Final

_REST_SECONDS: Final = 5.0


class Request:
    """One request: what makes it and puts its bytes where they belong, and how others learn that it is done.

    A lock and little else: a `Future` takes about as long as all of ours around a small request. Safe from many
    threads, of which one may make it.
    """

    __slots__ = ("_begun", "_done", "_make", "error")

    def __init__(self, make: Callable[[], None]) -> None:
        self._make = make
        self.error: BaseException | None = None  # why its bytes do not come
        self._begun = False
        self._done = threading.Lock()  # held until then
        self._done.acquire()

    def make(self) -> None:
        """Make it, unless it is cancelled; what goes wrong is raised by `wait` alone.

        Raises:
            BaseException: an interrupt, or want of memory for the call; the caller has to `give_up`.
        """
        try:
            self._begun = True
            if self.error is None:
                self._make()
        except Exception as error:  # noqa: BLE001
            self.error = error
        self._end()

    def cancel(self) -> None:
        """Have it not made, if nobody has begun."""
        if not self._begun:
            self.give_up()

    def give_up(self) -> None:
        """End it, however far it came: for the thread that was to make it. To others it is cancelled."""
        if self.error is None:
            self.error = CancelledError()
        self._end()

    def wait(self) -> None:
        """Wait until it is done, and raise what went wrong."""
        try:
            with self._done:
                pass
        except RuntimeError:
            pass  # who ended it a second time has let go of the lock for us
        if self.error is not None:
            raise self.error

    def _end(self) -> None:
        """Let go of the lock. May be done twice: an interrupt can come before it and behind it."""
        self._make = _nothing  # it has the piece, which has this request: memory that only the collector would free
        try:
            self._done.release()
        except RuntimeError:
            pass  # it was let go before


def _nothing() -> None:
    """What is left to make."""


def work_off(requests: deque[Request]) -> None:
    """Make requests one by one until none is left; others may do the same with the same ones at the same time.

    When one fails, those that nobody has begun are cancelled: each would take as many tries and as long as the first.

    Raises:
        BaseException: an interrupt, or want of memory before a request was begun; the others are cancelled. One that is
            just taken from the list is in none any more: whoever made the requests cancels theirs.
    """
    with suppress(IndexError):
        while True:
            request = requests.popleft()
            try:
                request.make()
            except BaseException:  # and nobody else may be there for the others
                request.give_up()
                _cancel(requests)
                raise
            if request.error is not None:
                break
    _cancel(requests)


def _cancel(requests: deque[Request]) -> None:
    with suppress(IndexError):
        while True:
            requests.popleft().cancel()


class _Threads:
    """Threads that wait for answers; they end when nobody has asked for some seconds. Safe from many threads.

    Args:
        most: how many.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._busy = 0  # how many work
        self._last = 0.0  # when there was work

    def start(self, requests: deque[Request], count: int) -> None:
        """Have `count` of them work requests off."""
        with self._lock:
            self._last = time.monotonic()
            if self._pool is None:
                threading.Thread(target=self._end_at_rest, name="chunkstore-remote-rest", daemon=True).start()
                self._pool = ThreadPoolExecutor(self._most, "chunkstore-remote")
            for _ in range(count):
                self._pool.submit(self._work_off, requests)

    def _work_off(self, requests: deque[Request]) -> None:
        with self._lock:
            self._busy += 1
        try:
            work_off(requests)
        finally:
            with self._lock:
                self._busy -= 1
                self._last = time.monotonic()

    def _end_at_rest(self) -> None:
        while True:
            with self._lock:
                left = _REST_SECONDS if self._busy else self._last + _REST_SECONDS - time.monotonic()
                if left <= 0:
                    if self._pool is not None:
                        self._pool.shutdown(wait=False)
                    self._pool = None
                    return
            time.sleep(left)


_threads: dict[int, _Threads] = {}


def start_requests(requests: deque[Request], count: int, most: int) -> bool:
    """Have `count` threads work requests off, of the `most` that this process has for all sources together.

    Returns:
        Whether there are threads: none start while the interpreter ends, or where the system gives no more.
    """
    found = _threads.get(most)
    if found is None:
        # One call, which no other thread can come between: all must use the same threads.
        found = _threads.setdefault(most, _Threads(most))
    try:
        found.start(requests, count)
    except RuntimeError:
        return False
    return True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.clear)
