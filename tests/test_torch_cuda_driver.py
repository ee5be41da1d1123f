"""What `CudaDriver` asks of `torch.cuda`, call by call, on a record of calls in its place: streams, events, devices.

That waiting in these places is enough is shown on the fake device of test_torch_transfer.py, and on a GPU there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chunkstore

torch = pytest.importorskip("torch")

from chunkstore._torch import transfer  # noqa: E402
from chunkstore._torch.transfer import CudaDriver, Staging  # noqa: E402
from chunkstore.torch import Loader  # noqa: E402

N, BATCH = 48, 8
DEVICE = torch.device("cuda", 1)

Calls = list[tuple[Any, ...]]


class OnDevice(torch.Tensor):  # type: ignore[misc]
    """Stands for memory of the device."""

    calls: Calls
    cuda: FakeCuda

    is_cuda = True
    device = DEVICE

    def copy_(self, source: Any, non_blocking: bool = False) -> Any:
        address = source.untyped_storage().data_ptr()
        self.calls.append(("copy", self.cuda.where(), non_blocking, address))
        return super().copy_(source)

    def record_stream(self, stream: Any) -> None:
        self.calls.append(("keep", stream, self.data_ptr()))


class FakeCuda:
    """`torch.cuda`, as far as `CudaDriver` uses it; what is current is so for a thread, as there."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._local = threading.local()

        class Stream:
            def __init__(self, device: Any) -> None:
                assert device == DEVICE

            def wait_event(self, event: Any) -> None:
                calls.append(("wait", self, event))

        class Event:
            def __init__(self, *, blocking: bool) -> None:
                assert blocking

            def record(self, stream: Any) -> None:
                calls.append(("record", stream, self))

            def synchronize(self) -> None:
                calls.append(("synchronize", self))

        self.Stream, self.Event = Stream, Event
        self.user = Stream(DEVICE)

    def where(self) -> tuple[Any, Any]:
        """Current device and stream of this thread; a thread begins on the first device."""
        return getattr(self._local, "device", torch.device("cuda", 0)), getattr(self._local, "stream", self.user)

    def current_stream(self, device: Any) -> Any:
        assert device == DEVICE
        return self.where()[1]

    @contextmanager
    def _set(self, name: str, value: Any) -> Iterator[None]:
        before = self.where()
        setattr(self._local, name, value)
        try:
            yield
        finally:
            self._local.device, self._local.stream = before

    def device(self, device: Any) -> Any:
        return self._set("device", device)

    def stream(self, stream: Any) -> Any:
        return self._set("stream", stream)


class FakeTorch:
    """torch with another `cuda`, whose memory is that of the host."""

    def __init__(self, calls: Calls) -> None:
        self.cuda = FakeCuda(calls)
        self._calls = calls
        self.pinned: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, shape: Any, *, dtype: Any, device: Any, pin_memory: bool = False) -> Any:
        made = torch.empty(shape, dtype=dtype)
        if device == "cpu" and not pin_memory:
            return made
        if pin_memory:
            assert device == "cpu"
            assert self.cuda.where()[0] == DEVICE
            self.pinned.add(made.untyped_storage().data_ptr())
            return made
        assert device == DEVICE
        self._calls.append(("empty", self.cuda.where()))
        return made.as_subclass(OnDevice)


@pytest.fixture
def calls() -> Calls:
    return []


@pytest.fixture
def fake(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> FakeTorch:
    made = FakeTorch(calls)
    monkeypatch.setattr(transfer, "torch", made)
    monkeypatch.setattr(OnDevice, "calls", calls, raising=False)
    monkeypatch.setattr(OnDevice, "cuda", made.cuda, raising=False)
    return made


@pytest.fixture
def path(tmp_path: Path) -> str:
    with chunkstore.Writer(tmp_path / "x.cks") as writer:
        writer.add_batch({"x": np.arange(N * 16).reshape(N, 16), "label": np.arange(N)})
    return str(tmp_path / "x.cks")


def staged(path: str, *, num_fixed: int = 0, transform: Any = None, **options: Any) -> tuple[Loader, CudaDriver]:
    """A loader as `device="cuda:1"` makes it."""
    driver = CudaDriver(DEVICE)
    loader = Loader(path, BATCH, **options)
    slots = loader._threads + 1
    loader._transfer = Staging(driver, num_slots=slots, num_fixed=num_fixed, device_transform=transform)
    return loader, driver


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(("depth", "threads"), [(0, 1), (3, 2)])
def test_copies(path: str, fake: FakeTorch, calls: Calls, static: bool, depth: int, threads: int) -> None:
    """All are issued on the copy stream of the right device, do not block, and read pinned memory; so is device memory
    taken there. No thread is left on another device or stream than it had.
    """
    loader, driver = staged(path, num_fixed=(depth + 1) * static, prefetch=depth, threads=threads)
    seen = [label for batch in loader for label in batch["label"].tolist()]
    assert seen == list(range(N))
    copies = [call for call in calls if call[0] == "copy"]
    assert len(copies) == 2 * N // BATCH
    for _, where, non_blocking, address in copies:
        assert where == (DEVICE, driver.stream)
        assert non_blocking
        assert address in fake.pinned
    assert {call[1] for call in calls if call[0] == "empty"} == {(DEVICE, driver.stream)}
    assert fake.cuda.where() == (torch.device("cuda", 0), fake.cuda.user)
    loader.close()


@pytest.mark.parametrize("transform", [None, lambda batch: batch])
def test_the_users_stream_waits(path: str, fake: FakeTorch, calls: Calls, transform: Any) -> None:
    """For an event that was recorded on the copy stream behind the copies of this very batch; then all its tensors are
    kept for that stream.
    """
    loader, driver = staged(path, prefetch=0, transform=transform)
    batches = iter(loader)
    for _ in range(N // BATCH):
        calls.clear()
        batch = next(batches)
        names = [call[0] for call in calls if call[0] not in ("empty", "synchronize")]
        assert names == ["copy", "copy", "record", *(["record"] if transform else []), "wait", "keep", "keep"]
        *_, recorded, wait, keep, other = calls
        assert recorded[1] is driver.stream
        assert wait[1:] == (fake.cuda.user, recorded[2])
        kept = {call[2] for call in (keep, other)}
        assert kept == {tensor.data_ptr() for tensor in batch.values()}
        assert keep[1] is other[1] is fake.cuda.user


def test_a_buffer_is_filled_behind_the_event_of_its_copies(path: str, fake: FakeTorch, calls: Calls) -> None:
    """The thread waits for the event recorded behind the copies that read the buffer last, before it gathers there."""
    gathered = ("gathered",)
    loader, _ = staged(path, prefetch=0, batch_transform=lambda batch: calls.append(gathered) or batch)
    last: dict[int, Any] = {}  # address of pinned memory -> event behind the copies from it
    reused = 0
    for _ in loader:
        before = calls[: calls.index(gathered)]
        copied = [call[3] for call in calls if call[0] == "copy"]
        for address in copied:
            if address in last:
                reused += 1
                assert ("synchronize", last[address]) in before
        last.update(dict.fromkeys(copied, [call[2] for call in calls if call[0] == "record"][-1]))
        calls.clear()
    assert len(last) == 4
    assert reused == 2 * (N // BATCH - 2)


def test_static_tensors_are_written_behind_their_use(path: str, fake: FakeTorch, calls: Calls) -> None:
    """The copy stream waits for an event that was recorded on the user's stream when the next batch was asked for."""
    loader, driver = staged(path, num_fixed=2, prefetch=0)
    used: dict[int, Any] = {}
    before = 0
    batches = iter(loader)
    for number in range(N // BATCH):
        calls.clear()
        batch = next(batches)
        address = batch["x"].data_ptr()
        if number:
            assert calls[0][:2] == ("record", fake.cuda.user)
            used[before] = calls[0][2]
        before = address
        if number > 1:
            place = next(place for place, call in enumerate(calls) if call[0] == "copy")
            assert ("wait", driver.stream, used[address]) in calls[:place]
    assert len(used) == 2


def test_memory_that_cannot_be_pinned(path: str, fake: FakeTorch, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes up in `next()` with the samples; the loader can be used again when there is memory."""
    full = True

    def pinned(driver: CudaDriver, nbytes: int) -> Any:
        if full:
            raise RuntimeError("CUDA error: out of memory")
        return plain(driver, nbytes)

    plain = CudaDriver.pinned
    monkeypatch.setattr(CudaDriver, "pinned", pinned)
    loader, _ = staged(path, num_fixed=4, prefetch=3, threads=2)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="out of memory") as caught:
            list(loader)
        assert any("samples 0, 1, 2, 3 and 4 more" in note for note in caught.value.__notes__)
    full = False
    loader.set_epoch(0)
    assert sum(len(batch["label"]) for batch in loader) == N
    loader.close()


def test_a_copy_that_fails(path: str, fake: FakeTorch, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the second field: the copy of the first is under way, and an event behind it holds the buffers."""
    broken = True

    def copy(driver: CudaDriver, destination: Any, source: Any) -> None:
        if broken and destination.ndim == 1:
            raise RuntimeError("CUDA error: launch failure")
        plain(driver, destination, source)

    plain = CudaDriver.copy
    monkeypatch.setattr(CudaDriver, "copy", copy)
    loader, driver = staged(path, num_fixed=1, prefetch=0)
    with pytest.raises(RuntimeError, match="launch failure"):
        next(iter(loader))
    names = [call[0] for call in calls if call[0] != "empty"]
    assert names[-2:] == ["copy", "record"]
    assert calls[-1][1] is driver.stream
    event = calls[-1][2]
    assert fake.cuda.where()[1] is fake.cuda.user
    broken = False
    calls.clear()
    assert [label for batch in loader for label in batch["label"].tolist()] == list(range(N))
    assert ("synchronize", event) in calls
