"""`prefetch`: the batches of any loader, taken ahead in a thread and brought to a device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from chunkstore._loading.permutation import checked_int
from chunkstore._loading.prefetch import Ring
from chunkstore._torch.dataset import Transform
from chunkstore._torch.loader import MAX_PREFETCH
from chunkstore._torch.transfer import Transfer, as_device, transfer_to


class PrefetchIterator(Ring[Any, Any]):
    """One iteration of `prefetch`."""

    def __init__(self, batches: Iterator[Any], transfer: Transfer, depth: int) -> None:
        self._transfer = transfer
        super().__init__(batches, lambda batch: transfer.load(lambda allocate: batch), depth=depth)

    def __next__(self) -> Any:
        return self._transfer.receive(super().__next__())


class Prefetch:
    """What `prefetch` returns: an iterable of batches on a device. Other attributes are those of the loader."""

    def __init__(self, loader: Iterable[Any], device: torch.device, depth: int, transform: Transform | None) -> None:
        self._loader = loader
        self._depth = depth
        self.device = device
        self._transfer = transfer_to(device, transform, threads=1, num_batches=0)

    def __iter__(self) -> PrefetchIterator:
        self._transfer.reset()
        return PrefetchIterator(iter(self._loader), self._transfer, self._depth)

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._loader, name)


def prefetch(
    loader: Iterable[Any],
    device: str | torch.device | int | None = None,
    depth: int = 2,
    *,
    device_transform: Transform | None = None,
) -> Prefetch:
    """Take the batches of any loader in a thread, ahead of the user, and bring them to a device.

        for batch in prefetch(DataLoader(...), "cuda"): ...

    Args:
        loader: an iterable of tensors, or of dicts, lists, tuples, dataclasses of them; anything else in them passes
            unchanged. It is advanced in one thread, so its own count of batches runs up to `depth` ahead.
        device: default and "cpu": batches are only taken ahead.
        depth: how many batches ahead, 1 or more.
        device_transform: called with each batch on the device, on the copy stream.
    Returns:
        An iterable, each `iter()` of which iterates the loader once; with the loader's length and attributes. Batches
        are fresh device tensors, the user's to keep.
    Raises:
        TypeError: the loader is not iterable, or device_transform no function.  RuntimeError: no such device here.
    """
    if not isinstance(loader, Iterable):
        raise TypeError(f"loader: expected an iterable of batches, found {type(loader).__name__}")
    return Prefetch(loader, as_device(device), checked_int("depth", depth, 1, MAX_PREFETCH), device_transform)
