"""A device with streams, made of threads: all that `Staging` asks of one, late and merciless.

Work of a stream runs in a thread of its own, after a delay, on bare addresses: it sees what lies in memory when it
runs, not what lay there when it was issued. Device memory is handed out again as soon as its tensor is gone, like that
of a caching allocator. So whoever forgets to wait, or to keep something, gets wrong numbers.
"""

from __future__ import annotations

import ctypes
import queue
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from chunkstore._loading.recycle import Recycler

POISON = 0xEE


def raw(tensor: torch.Tensor) -> np.ndarray:
    """The bytes at the tensor's address, without a reference to it."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * tensor.nbytes).from_address(tensor.data_ptr()))


class Stream:
    """Runs what is issued, in order, in a thread."""

    def __init__(self, max_delay_seconds: float) -> None:
        self._queue: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._random = random.Random(1)
        self._max_delay_seconds = max_delay_seconds
        self._thread = threading.Thread(target=self._run, name="fake-stream")
        self._thread.start()

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            work()

    def issue(self, work: Callable[[], Any], *, slow: bool = True) -> None:
        delay = self._random.random() * self._max_delay_seconds if slow else 0

        def run() -> None:
            time.sleep(delay)
            work()

        self._queue.put(run)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()


class FakeDriver:
    """`chunkstore._torch.transfer.Driver` over two streams: its own for copies, and the user's.

    Args:
        forget: names of methods that shall do nothing, to see that the tests notice.
    """

    def __init__(self, max_delay_seconds: float = 0.004, forget: tuple[str, ...] = ()) -> None:
        self.copies, self.user = Stream(max_delay_seconds), Stream(max_delay_seconds)
        self._local = threading.local()
        self._recycler = Recycler(64)
        self._forget = forget
        self.num_pinned = 0
        self.addresses: set[int] = set()

    @property
    def current(self) -> Stream:
        return getattr(self._local, "stream", self.user)

    def close(self) -> None:
        self.copies.close()
        self.user.close()

    def pinned(self, nbytes: int) -> torch.Tensor:
        self.num_pinned += 1
        return torch.full((nbytes,), POISON, dtype=torch.uint8)

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return False

    @contextmanager
    def on_copy_stream(self) -> Iterator[None]:
        before = self.current
        self._local.stream = self.copies
        try:
            yield
        finally:
            self._local.stream = before

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        assert self.current is self.copies, "device memory belongs to the stream on which it is made"
        nbytes = int(np.prod(shape)) * dtype.itemsize
        if not nbytes:
            return torch.empty(shape, dtype=dtype)
        memory = torch.from_numpy(self._recycler.empty("device", (nbytes,), np.dtype(np.uint8)))
        self.addresses.add(memory.data_ptr())
        # A view, so that `tensor.device` is all that tells it from host memory.
        return memory.view(dtype).reshape(shape)

    def copy(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        assert self.current is self.copies
        if destination.nbytes:
            into, out_of, held = raw(destination), raw(source), [source.untyped_storage()]
            # As torch's allocator of pinned memory: what is let go in the middle of a copy is not given away.
            self.copies.issue(lambda: (np.copyto(into, out_of), held.clear()))

    def record(self) -> threading.Event:
        event = threading.Event()
        self.current.issue(event.set, slow=False)
        return event

    def wait(self, event: threading.Event) -> None:
        if "wait" not in self._forget:
            self.current.issue(event.wait, slow=False)

    def synchronize(self, event: threading.Event) -> None:
        if "synchronize" not in self._forget:
            assert event.wait(30)

    def keep(self, tensor: torch.Tensor) -> None:
        if "keep" in self._forget:
            return
        stream, memory = self.current, [tensor.untyped_storage()]
        # As record_stream: when the tensor dies, its memory waits for what the stream has been given until then.
        weakref.finalize(tensor, stream.issue, memory.clear, slow=False).atexit = False
