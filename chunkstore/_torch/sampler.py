"""`BatchSampler`: the order of chunkstore for any `DataLoader`, and for the `Loader`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sized
from typing import Any, Self

import torch.distributed
from torch.utils.data import Sampler

from chunkstore._loading.epochs import Epochs
from chunkstore._loading.source import Pad, Shuffle, make_order
from chunkstore._read.reader import Reader
from chunkstore._torch.dataset import Dataset


def _process_rank() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class BatchSampler(Sampler[list[int]]):
    """Batches of sample positions: seeded, for one rank of many, resumable, without a list of all samples.

        sampler = BatchSampler(ds, 256, shuffle=True, seed=7)
        for batch in DataLoader(ds, batch_sampler=sampler, num_workers=4): ...

    Args:
        source: a `Dataset`, `Reader` or anything else with a length, or the number of samples. The state of the first
            two names the data set, and is refused with another one.
        batch_size: samples a batch, of this rank.
        shuffle: False, True (all samples) or "block" (whole blocks, mixed `window` at a time: for slow storage).
        seed: 0 to 2^64 - 1; equal on all ranks.
        drop_last: leave out the samples that do not fill a batch on every rank.
        pad: what else happens to them, see `spec/order-1.md`, section 6. False: each sample once; "even": all ranks
            take equally many, a few samples come twice (use it where ranks must take equally many steps); "full": also
            the last batch is full.
        rank, world_size: default those of `torch.distributed` if it is initialised, else 0 and 1. Frameworks that
            share out the batches of a sampler themselves (Accelerate does) need 0 and 1 here.
        block_size, window: for shuffle="block"; blocks are the shards of the container by default. A block_size is
            refused where all samples are shuffled.

    Each iteration is an epoch: the one that was set or loaded, later the next one each time; `set_epoch` is not needed.
    `len` is the number of batches of a whole epoch. Costs 40 ns a sample; memory and start do not depend on how many
    there are.
    Not thread-safe.
    """

    def __init__(
        self,
        source: Dataset | Reader | Sized | int,
        batch_size: int,
        *,
        shuffle: Shuffle = False,
        seed: int = 0,
        drop_last: bool = False,
        pad: Pad = False,
        rank: int | None = None,
        world_size: int | None = None,
        block_size: int | None = None,
        window: int = 16,
    ) -> None:
        if isinstance(source, str | bytes | os.PathLike):  # a text has a length, too
            raise TypeError(f"source: expected a Dataset, a Reader or a number, found a path; use Dataset({source!r})")
        if (rank is None) != (world_size is None):
            raise ValueError("rank, world_size: give both or neither")
        self._asked_torch = rank is None
        if rank is None or world_size is None:
            rank, world_size = _process_rank()
        order = make_order(
            source.reader if isinstance(source, Dataset) else source,
            source if isinstance(source, int) else len(source),
            batch_size=batch_size,
            shuffle=shuffle,
            block_size=block_size,
            seed=seed,
            drop_last=drop_last,
            pad=pad,
            window=window,
            rank=rank,
            world_size=world_size,
        )
        self.batch_size = order.batch_size
        self.drop_last = drop_last
        self._epochs = Epochs(order)
        self._num_iterations = 0

    def __len__(self) -> int:
        """Batches of this rank in a whole epoch."""
        return self._epochs.order.num_batches()

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of the next epoch, or of the rest of one after `load_state_dict`. Ends an iteration before."""
        self._check_ranks()
        self._num_iterations += 1
        return _Iteration(self)

    def _check_ranks(self) -> None:
        """Raise RuntimeError where `torch.distributed` was initialised too late to be asked."""
        made = self._epochs.order.rank, self._epochs.order.world_size
        if self._asked_torch and made != (found := _process_rank()):
            raise RuntimeError(
                f"rank, world_size: made for rank {made[0]} of {made[1]}, but torch.distributed says "
                f"{found[0]} of {found[1]}: make it after init_process_group, or give rank= and world_size="
            )

    @property
    def epoch(self) -> int:
        """The epoch that runs, or comes next."""
        return self._epochs.epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; a position inside it, from `load_state_dict`, stays."""
        self._epochs.set_epoch(epoch)

    def state_dict(self, num_batches: int | None = None) -> dict[str, Any]:
        """Where to go on: JSON, under 1 kB, good for any number of ranks and any batch size.

        Args:
            num_batches: batches of this iteration that were trained on. A `DataLoader` with workers takes batches from
                the sampler before it delivers them, and only the training loop knows how many it got. Default: all
                that were taken.
        """
        return self._epochs.state(num_batches)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next iteration go on there. Takes microseconds, whatever the position.

        Raises:
            StateError: the state is that of another data set or order; nothing was changed.
        """
        self._epochs.load_state(state)


class _Iteration:
    """The batches of one epoch; its state, which torchdata keeps beside the sampler's, says whether they have ended.

    That state is the begin of the next epoch, where torchdata first makes the iterator anew that had ended, and takes
    some batches from it ahead: they would count as begun, and the iteration that is really used would skip an epoch.
    """

    def __init__(self, sampler: BatchSampler) -> None:
        self._sampler = sampler
        self._number = sampler._num_iterations
        self._batches = sampler._epochs.begin()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[int]:
        batch: list[int] = next(self._batches).tolist()
        if self._number != self._sampler._num_iterations:
            raise RuntimeError("this iteration of the BatchSampler was ended by a newer one")
        self._sampler._epochs.deliver()
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"ended": not self._sampler._epochs.num_left}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["ended"]:
            self._batches = iter(())
