"""The last stage of loading: memory to gather into, and the way from there to the user or his device.

    gather --> host memory --copy on a side stream, then device_transform--> device --event--> the user's stream

`Host` ends at the host memory, or copies from there without streams. `Staging` goes on to a device: a ring of pinned
buffers that are allocated once; a buffer is filled again only after the event behind its copy. What is special to CUDA
lies in `CudaDriver`, so that all the rest runs, and is tested, without a GPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from chunkstore._loading.recycle import Recycler, is_unused
from chunkstore._torch.convert import map_leaves, map_tensors

Allocate = Callable[[str, tuple[int, ...], "np.dtype[Any]"], NDArray[Any]]
Transform = Callable[[Any], Any]
_ALIGNMENT: Final = 512  # what the allocators of CUDA use; copies of aligned memory are the fastest


class Host:
    """Batches stay in host memory: recycled, or pinned by torch's own caching allocator.

    That allocator, unlike ours, knows which copies to a device are still reading from memory that the user has dropped.

    Args:
        device: one without a driver here (mps, xpu, ...): batches go there by a plain copy in the user's thread.

    Attributes:
        takes_runs: whether `load` may be given a list of batches that are parts of the same memory.
    """

    def __init__(
        self,
        num_batches: int,
        *,
        pin_memory: bool = False,
        device: torch.device | None = None,
        transform: Transform | None = None,
    ) -> None:
        self._recycler = Recycler(num_batches)
        self._transform = transform
        self._pin_memory = pin_memory
        self._device = device
        self.takes_runs = transform is None and not pin_memory and device is None

    def load(self, make: Callable[[Allocate], Any]) -> Any:
        """In a thread: make a batch in memory of this stage and send it off."""
        if self._pin_memory:
            return self._load_pinned(make)
        batch = make(self._recycler.empty)
        return self._transformed(batch) if self._device is None else batch

    def receive(self, sent: Any) -> Any:
        """In the user's thread: what `load` sent, ready to be used there."""
        if self._device is None:
            return sent
        batch = map_tensors(sent, lambda tensor: tensor.to(self._device))
        try:
            return self._transformed(batch)
        except StopIteration as error:  # as it stands it would end the user's loop without a word
            raise RuntimeError("a transform raised StopIteration") from error

    def release(self) -> None:
        """In the user's thread: the batch received last is no longer used, if its memory is the stage's."""

    def reset(self) -> None:
        """No batch is on its way any more, and none that was received is used."""

    def free(self) -> None:
        """After `reset`: let go of the memory that was kept; the next batch takes new memory."""
        self._recycler.clear()

    def _transformed(self, batch: Any) -> Any:
        return batch if self._transform is None else self._transform(batch)

    def _load_pinned(self, make: Callable[[Allocate], Any]) -> Any:
        owners: list[torch.Tensor] = []

        def allocate(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
            owners.append(_pinned_memory(int(np.prod(shape)) * dtype.itemsize))
            return np.ndarray(shape, dtype, owners[-1].numpy())

        def deliver(tensor: torch.Tensor) -> torch.Tensor:
            if (owner := _owner_of(tensor, owners)) is not None:
                return _part_of(owner, tensor)
            return tensor if tensor.is_pinned() else tensor.pin_memory()

        batch = make(allocate)
        return _map_host_tensors(self._transformed(batch), deliver)


def _pinned_memory(nbytes: int) -> torch.Tensor:
    return torch.empty(max(nbytes, 1), dtype=torch.uint8, device="cpu", pin_memory=True)


def _owner_of(tensor: torch.Tensor, owners: Iterable[torch.Tensor]) -> torch.Tensor | None:
    """Which of these pieces of memory, of uint8, the tensor is a plain part of."""
    if tensor.requires_grad or tensor.is_conj() or tensor.is_neg():
        return None
    for owner in owners:
        offset = tensor.data_ptr() - owner.data_ptr()
        if 0 <= offset < owner.nbytes and offset % tensor.itemsize == 0:
            return owner
    return None


def _part_of(owner: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """The same tensor as a part of the storage in whose memory it lies.

    What came by way of NumPy has a storage of its own. Torch's allocator of pinned memory knows a copy to a device by
    the storage of its source, or by the address where that begins; of any other part it hears nothing, and would hand
    the memory out again in the middle of the copy.
    """
    offset = (tensor.data_ptr() - owner.data_ptr()) // tensor.itemsize
    part = torch.empty(0, dtype=tensor.dtype, device="cpu")
    return part.set_(owner.untyped_storage(), offset, tensor.shape, tensor.stride())


# Devices with streams -----------------------------------------------------------------------------

Event = TypeVar("Event")


class Driver(Protocol[Event]):
    """What `Staging` needs of a device with streams. `copy stream`: a stream of its own, beside the user's."""

    def pinned(self, nbytes: int) -> torch.Tensor:
        """Host memory, uint8, that the device copies from without help of the CPU."""

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Whether the device can copy from this tensor as it is."""

    def on_copy_stream(self) -> AbstractContextManager[Any]:
        """Work issued inside, in this thread, goes to the copy stream."""

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Device memory; called on the copy stream."""

    def copy(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        """Issue a copy and return; called on the copy stream."""

    def record(self) -> Event:
        """An event behind all that this thread issued to its current stream."""

    def wait(self, event: Event) -> None:
        """Let the current stream, not this thread, wait for an event."""

    def synchronize(self, event: Event) -> None:
        """Let this thread wait for an event."""

    def keep(self, tensor: torch.Tensor) -> None:
        """Memory of the tensor must not be used again before the work of the current stream on it is done."""


class CudaDriver:
    """`Driver` of one CUDA (or ROCm) device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def pinned(self, nbytes: int) -> torch.Tensor:
        with torch.cuda.device(self.device):  # otherwise the first GPU gets a context, whichever is used
            return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return bool(tensor.is_pinned())

    @contextmanager
    def on_copy_stream(self) -> Iterator[None]:
        # `stream` makes our device the current one, too; but at the end it would set the one before again, in a thread
        # of ours the first GPU, which thereby gets a context in every process. `device` sets it only if it has one.
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            yield

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def copy(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        destination.copy_(source, non_blocking=True)

    def record(self) -> torch.cuda.Event:
        # blocking: a thread that waits for it sleeps; otherwise it would take a core, and the GIL's time, by spinning.
        event = torch.cuda.Event(blocking=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def wait(self, event: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self.device).wait_event(event)

    def synchronize(self, event: torch.cuda.Event) -> None:
        event.synchronize()

    def keep(self, tensor: torch.Tensor) -> None:
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))


class _Slot(Generic[Event]):
    """One set of pinned buffers, by name, each as large as the largest batch so far; and the event of their copies."""

    def __init__(self, driver: Driver[Event]) -> None:
        self._driver = driver
        self._buffers: dict[str | int, tuple[NDArray[np.uint8], torch.Tensor]] = {}
        self._sources: list[torch.Tensor] = []  # pinned by others, to be kept until they are copied
        self.copied: Event | None = None

    def begin(self) -> None:
        """Wait until the buffers may be filled again."""
        if self.copied is not None:
            self._driver.synchronize(self.copied)
            self.copied = None
        self._sources.clear()
        # A transform may have kept something, or put it into an object that `map_tensors` does not look into.
        for name in [name for name in self._buffers if not is_unused(self._buffers, name)]:
            del self._buffers[name]

    def free(self) -> None:
        self.begin()
        self._buffers.clear()

    def allocate(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        return np.ndarray(shape, dtype, self._buffer(name, int(np.prod(shape)) * dtype.itemsize)[0])

    def _buffer(self, name: str | int, nbytes: int) -> tuple[NDArray[np.uint8], torch.Tensor]:
        buffer = self._buffers.get(name)
        if buffer is None or buffer[0].size < nbytes:
            # A ragged field's batches differ: some room more, so that pinning, which is slow, soon ends.
            nbytes = nbytes if buffer is None else nbytes + nbytes // 4
            memory = self._driver.pinned(-(-max(nbytes, 1) // _ALIGNMENT) * _ALIGNMENT)
            buffer = self._buffers[name] = memory.numpy(), memory
        return buffer

    def stage(self, name: int, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself if it lies in these buffers, else a copy of it there."""
        if not tensor.nbytes:
            return tensor
        owner = _owner_of(tensor, (held for _, held in self._buffers.values()))
        if owner is not None:
            return _part_of(owner, tensor)
        if self._driver.is_pinned(tensor):
            self._sources.append(tensor)
            return tensor
        memory = self._buffer(name, tensor.nbytes)[1][: tensor.nbytes]
        staged = memory.view(tensor.dtype).reshape(tensor.shape) if tensor.ndim else memory.view(tensor.dtype)[0]
        return staged.copy_(tensor)


class Sent(NamedTuple):
    """A batch on its way: complete after `event`; `fixed` is the set of static tensors that it uses, if any."""

    batch: Any
    event: Any
    fixed: _Fixed[Any] | None


class _Fixed(Generic[Event]):
    """One set of device tensors at addresses that stay, and the event after which they may be written again."""

    def __init__(self, driver: Driver[Event]) -> None:
        self._driver = driver
        self._tensors: dict[int, torch.Tensor] = {}
        self.used: Event | None = None

    def empty(self, place: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        held = self._tensors.get(place)
        same = held is not None and held.dtype is dtype and held.shape[1:] == shape[1:] and held.ndim == len(shape)
        if held is None or not same or (shape and held.shape[0] < shape[0]):
            held = self._tensors[place] = self._driver.empty(shape, dtype)
        return held[: shape[0]] if shape else held

    def free(self) -> None:
        self._tensors.clear()


class Staging(Generic[Event]):
    """Host buffers -> device, asynchronously: the methods of `Host`.

    Args:
        driver: the device.
        num_slots: sets of pinned buffers; one more than there are threads, so that one can be filled while another is
            copied from.
        num_fixed: 0: fresh device tensors for each batch, which are the user's to keep. Otherwise so many sets of
            device tensors, used in turn: a batch is valid until the next one is asked for.
        device_transform: called with the batch on the device, on the copy stream; returns what the user gets.
    """

    takes_runs = False

    def __init__(
        self, driver: Driver[Event], *, num_slots: int, num_fixed: int = 0, device_transform: Transform | None = None
    ) -> None:
        self._driver = driver
        self._transform = device_transform
        self._slots = deque(_Slot(driver) for _ in range(num_slots))
        self._all_fixed = [_Fixed(driver) for _ in range(num_fixed)]
        self._fixed = deque(self._all_fixed)
        self._received: _Fixed[Event] | None = None

    @contextmanager
    def _slot(self) -> Iterator[_Slot[Event]]:
        try:
            slot = self._slots.popleft()  # the one whose copy was issued longest ago
        except IndexError:  # several iterations of a `Prefetch` at a time
            slot = _Slot(self._driver)
        try:
            slot.begin()
            yield slot
        finally:
            self._slots.append(slot)

    def load(self, make: Callable[[Allocate], Any]) -> Sent:
        # Without threads we are in the user's, who may be in inference mode; what is kept must be good outside it, too.
        with torch.inference_mode(False), self._slot() as slot:
            return self._send(slot, make(slot.allocate))

    def _send(self, slot: _Slot[Event], batch: Any) -> Sent:
        driver = self._driver
        # After an error `reset` gives it back: an error ends the iteration.
        fixed = self._fixed.popleft() if self._all_fixed else None
        with driver.on_copy_stream():
            if fixed is not None and fixed.used is not None:
                driver.wait(fixed.used)
            try:
                moved = self._move(slot, fixed, batch)
            finally:
                slot.copied = driver.record()  # also where only some copies were issued
            if self._transform is None:
                return Sent(moved, slot.copied, fixed)
            return Sent(self._transform(moved), driver.record(), fixed)

    def _move(self, slot: _Slot[Event], fixed: _Fixed[Event] | None, batch: Any) -> Any:
        driver, places = self._driver, count()

        def move(tensor: torch.Tensor) -> torch.Tensor:
            place, shape, dtype = next(places), tuple(tensor.shape), tensor.dtype
            destination = driver.empty(shape, dtype) if fixed is None else fixed.empty(place, shape, dtype)
            # Detached: otherwise autograd would follow the tensor into our buffers.
            driver.copy(destination, slot.stage(place, tensor.detach().contiguous()))
            return destination

        return _map_host_tensors(map_leaves(batch, _array_as_tensor), move)

    def receive(self, sent: Sent) -> Any:
        self._driver.wait(sent.event)
        map_tensors(sent.batch, self._keep)  # static ones, too: the loader may be dropped while they are in use
        self._received = sent.fixed
        return sent.batch

    def _keep(self, tensor: torch.Tensor) -> None:
        jagged = tensor.layout is torch.jagged
        for part in (tensor.values(), tensor.offsets(), tensor.lengths()) if jagged else (tensor,):
            if part is not None:
                self._driver.keep(part)

    def release(self) -> None:
        if self._received is not None:
            self._received.used = self._driver.record()
            self._fixed.append(self._received)
            self._received = None

    def reset(self) -> None:
        driver = self._driver
        self._received = None
        # Batches that were never delivered, or that the user had at the end: he may still be using the last one.
        used = driver.record()
        for fixed in self._all_fixed:
            fixed.used = used
        self._fixed = deque(self._all_fixed)
        with driver.on_copy_stream():
            driver.wait(used)  # what the user has made until now (means, tables) is there for a device_transform

    def free(self) -> None:
        for slot in self._slots:
            slot.free()
        for fixed in self._all_fixed:
            fixed.free()


Transfer: TypeAlias = Host | Staging[Any]


def _array_as_tensor(leaf: Any) -> Any:
    """A transform may have made NumPy arrays, which may lie in the buffers: they go to the device like tensors."""
    if not isinstance(leaf, np.ndarray) or leaf.dtype.kind not in "biufc":
        return leaf
    return torch.from_numpy(np.asarray(leaf, order="C"))  # torch has no negative strides


def _map_host_tensors(tree: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same tree with each dense tensor in host memory replaced, also those that a jagged one is made of.

    Jagged ones with the same offsets have the same ones afterwards: otherwise torch would not add them.

    Raises:
        TypeError: the parts of a tensor are not tensors as others are.
    """
    bounds: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # id -> that tensor, which keeps the id, and the new one

    def bound(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in bounds:
            bounds[id(tensor)] = tensor, function(tensor)
        return bounds[id(tensor)][1]

    def mapped(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type != "cpu":
            return tensor
        if tensor.layout is torch.strided and not tensor.is_nested:
            return function(tensor)
        if tensor.layout is not torch.jagged:
            kind = f"a {'nested ' * tensor.is_nested}tensor of layout {tensor.layout}"
            raise TypeError(f"{kind} cannot go by way of pinned memory: make it dense, or nested and jagged")
        # Also one whose rows have gaps, or vary in another dimension. No function here refers to itself: with what it
        # refers to, it would wait for a garbage collection.
        parts = {"offsets": bound(tensor.offsets())}
        if (lengths := tensor.lengths()) is not None:
            parts["lengths"] = bound(lengths)
        if (dim := tensor._ragged_idx) != 1:
            parts["jagged_dim"] = dim
        return torch.nested.nested_tensor_from_jagged(function(tensor.values()), **parts)

    return map_tensors(tree, mapped)


def transfer_to(
    device: torch.device,
    transform: Transform | None,
    *,
    threads: int,
    num_batches: int,
    num_fixed: int = 0,
    pin_memory: bool = False,
) -> Transfer:
    """The last stage on the way to a device, for so many threads.

    Args:
        num_batches: in host memory, whose memory is used again.
        num_fixed: as of `Staging`.
    Raises:
        TypeError: the transform is no function.  RuntimeError: memory cannot be pinned without a GPU.
    """
    if transform is not None and not callable(transform):
        raise TypeError(f"device_transform: expected a function, found {type(transform).__name__}")
    if pin_memory and not torch.cuda.is_available():
        raise RuntimeError(f"pin_memory=True: torch {torch.__version__} sees no CUDA device; use pin_memory=False")
    if device.type == "cuda":
        return Staging(CudaDriver(device), num_slots=threads + 1, num_fixed=num_fixed, device_transform=transform)
    if device.type == "cpu":
        return Host(num_batches, pin_memory=pin_memory, transform=transform)
    return Host(num_batches, device=device, transform=transform)


def as_device(device: Any) -> torch.device:
    """A device that this machine has, CUDA ones with their index.

    Raises:
        RuntimeError: no such device here.  TypeError, ValueError: it names none.
    """
    if device is None:
        return torch.device("cpu")
    try:
        # Without a GPU torch does not know what a bare number means.
        found = torch.device(f"cuda:{device}" if isinstance(device, int) else device)
    except (RuntimeError, TypeError) as error:
        kind = ValueError if isinstance(device, str | int) else TypeError
        raise kind(f"device: expected one of torch's devices, such as 'cpu' or 'cuda', found {device!r}") from error
    if found.type != "cuda":
        try:
            torch.empty(0, device=found)
        except Exception as error:  # torch has no one way to say it: also AssertionError, ModuleNotFoundError
            said = f"device={str(found)!r}: torch {torch.__version__} has no such device; use device=None"
            raise RuntimeError(said) from error
        return found
    if not torch.cuda.is_available():
        raise RuntimeError(f"device={device!r}: torch {torch.__version__} sees no CUDA device; use device=None")
    index = torch.cuda.current_device() if found.index is None else found.index
    if index >= torch.cuda.device_count():
        raise RuntimeError(f"device={device!r}: there are {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", index)
