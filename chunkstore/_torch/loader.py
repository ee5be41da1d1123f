"""`Loader`: batches of a container, made ahead by threads, on the device where they are wanted."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import numpy as np
import torch

from chunkstore._loading.permutation import IntArray, checked_int
from chunkstore._loading.prefetch import Ring
from chunkstore._loading.source import Pad, Shuffle
from chunkstore._read.checked import Verify
from chunkstore._read.many import Paths
from chunkstore._read.reader import Reader
from chunkstore._read.select import Selection
from chunkstore._storage.source import Backend, cold_reads
from chunkstore._torch.convert import RaggedMode, num_bytes
from chunkstore._torch.dataset import Dataset, Transform
from chunkstore._torch.sampler import BatchSampler
from chunkstore._torch.transfer import Transfer, as_device, transfer_to

_SHOWN_SAMPLES: Final = 4
# Small batches cost more to ask for and to hand over than to read: so many are made at a time. Measured on rows of
# 1 KiB: 1.5 times as many samples a second in batches of 256, four times as many in batches of 32.
_RUN_NBYTES: Final = 2 << 20
_RUN_BATCHES: Final = 16
_TWO_THREADS_NBYTES: Final = 512 << 10
_DISTANT_THREADS: Final = 2  # each has a batch in the making and one under way
MAX_PREFETCH: Final = 1024


@dataclass
class LoaderStats:
    """What a loader did so far, over all its iterations.

    Attributes:
        num_batches, num_samples, num_bytes: delivered; bytes of the tensors as the user got them.
        wait_seconds: how long the user waited in `next()`.
        load_seconds: how long threads were busy with batches (gather, transforms, issuing copies), summed over threads.
        elapsed_seconds: from each `iter()` to the last `next()` after it.
        stall: wait_seconds / elapsed_seconds: the share of its time that training lost by loading.
    """

    num_batches: int = 0
    num_samples: int = 0
    num_bytes: int = 0
    wait_seconds: float = 0.0
    load_seconds: float = 0.0
    elapsed_seconds: float = 0.0

    @property
    def stall(self) -> float:
        """A share from 0 to 1."""
        return self.wait_seconds / self.elapsed_seconds if self.elapsed_seconds else 0.0


class _Made(NamedTuple):
    """A batch on its way to the user, and what `LoaderStats` counts of it."""

    sent: Any
    num_samples: int
    num_bytes: int


class _Run(NamedTuple):
    """Batches that were made at once, the last one first: they are popped; then, where one failed, its error."""

    made: list[_Made]
    error: Exception | None = None


class _Maker:
    """What a thread of the loader does; refers to the data set, not to the loader.

    Attributes:
        run_length: how many batches to make at once. Small ones cost more to ask for and to hand over than to read.
    """

    def __init__(self, dataset: Dataset, transfer: Transfer) -> None:
        self._dataset = dataset
        self._transfer = transfer
        self._runs = transfer.takes_runs and _is_plain(dataset)
        self._distant = dataset.distant
        self._cold = True  # whether the batch before needed the disk; threads share it, and may be one batch late
        self.run_length = 1  # the first batch is there as soon as can be

    def __call__(self, task: tuple[list[IntArray], list[IntArray] | None]) -> _Run:
        run, ahead = task
        before = cold_reads()
        with suppress(Exception):  # what is wrong comes again, in its place
            if self._distant:
                # Answers come in the order of requests: these before those ahead.
                self._dataset.prefetch(np.concatenate(run))
            if self._cold and ahead is not None:
                self._dataset.prefetch(np.concatenate(ahead))
        made = self._make(run)
        self._cold = self._distant or cold_reads() != before
        if self._runs:
            nbytes = sum(each.num_bytes for each in made.made) // len(run)
            self.run_length = max(1, min(_RUN_BATCHES, _RUN_NBYTES // max(1, nbytes)))
        return made

    def _make(self, run: list[IntArray]) -> _Run:
        if len(run) == 1:
            return _Run([self._make_one(run[0])])
        try:
            batches = self._transfer.load(lambda allocate: self._dataset.make_batches(run, allocate))
        except Exception:  # noqa: BLE001 - it comes again, in its place
            return self._make_each(run)
        made = [_Made(batch, len(ids), num_bytes(batch)) for batch, ids in zip(batches, run, strict=True)]
        return _Run(made[::-1])

    def _make_each(self, run: list[IntArray]) -> _Run:
        """One by one, so that an error comes after the batches before it."""
        made: list[_Made] = []
        try:
            for ids in run:
                made.append(self._make_one(ids))
        except Exception as error:  # noqa: BLE001 - it goes on to the user
            return _Run(made[::-1], error)
        return _Run(made[::-1])

    def _make_one(self, ids: IntArray) -> _Made:
        try:
            sent = self._transfer.load(lambda allocate: self._dataset.make_batch(ids, allocate))
            return _Made(sent, len(ids), num_bytes(sent))
        except Exception as error:
            self._add_note(error, ids)
            raise

    def _add_note(self, error: Exception, ids: IntArray) -> None:
        shown = ", ".join(map(self._dataset.describe, ids[:_SHOWN_SAMPLES].tolist()))
        more = f" and {len(ids) - _SHOWN_SAMPLES} more" if len(ids) > _SHOWN_SAMPLES else ""
        error.add_note(f"while the Loader made the batch of samples {shown}{more} of {self._dataset.path}")


def _tasks(batches: Iterator[IntArray], maker: _Maker) -> Iterator[tuple[list[IntArray], list[IntArray] | None]]:
    """Each run of batches of ids with the one after it, which is read ahead while this one is gathered."""
    current = list(islice(batches, maker.run_length))
    while current:
        following = list(islice(batches, maker.run_length))
        yield current, following or None
        current = following


class LoaderIterator:
    """One iteration of a `Loader`: an iterator of batches. Take them from one thread at a time."""

    def __init__(self, loader: Loader) -> None:
        # A loader made in the head of a `for` lives as long as the loop; it refers to us weakly.
        self._loader = loader
        self._epochs, self._stats, self._transfer = loader._sampler._epochs, loader._stats, loader._transfer
        maker = _Maker(loader.dataset, self._transfer)
        tasks = _tasks(self._epochs.begin(), maker)
        self._ring: Ring[Any, _Run] = Ring(tasks, maker, depth=loader._prefetch, threads=loader._threads)
        loader._stop_threads = self._ring.closer()
        self._run = _Run([])
        self._base = (self._stats.elapsed_seconds, self._stats.load_seconds)
        self._start = time.perf_counter()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        """The next batch.

        Raises:
            Whatever a thread raised while it made the batch, with a note that names its samples.
            ClosedError: the loader was closed, or a newer iteration was begun.
        """
        start = time.perf_counter()
        self._transfer.release()
        try:
            made = self._next_made()
            batch = self._transfer.receive(made.sent)
        except Exception:
            self.close()  # otherwise the next one would be the batch after that which failed
            raise
        finally:
            self._count_time(start)
        self._epochs.deliver()
        stats = self._stats
        stats.num_batches += 1
        stats.num_samples += made.num_samples
        stats.num_bytes += made.num_bytes
        return batch

    def _next_made(self) -> _Made:
        self._ring.check_process()
        while not self._run.made:
            if self._run.error is not None:
                raise self._run.error
            self._run = next(self._ring)
        return self._run.made.pop()

    def _count_time(self, start: float) -> None:
        now = time.perf_counter()
        self._stats.wait_seconds += now - start
        self._stats.elapsed_seconds = self._base[0] + now - self._start
        self._stats.load_seconds = self._base[1] + self._ring.make_seconds

    def close(self) -> None:
        """Stop its threads. Idempotent."""
        self._run = _Run([])
        self._ring.close()


class Loader:
    """Batches of a container as tensors, made ahead by threads; a plain iterable.

        with Loader("train.cks", 256, shuffle=True, device="cuda") as loader:
            for epoch in range(10):
                for batch in loader: ...

    Worker processes make reading at random slower, since every batch goes through a pipe; threads share the memory, and
    a gather lets go of the GIL. Transforms in Python hold it: make them `batch_transform` or `device_transform`.

    Args:
        source: path of a container, or several, a `Reader`, a `Selection`, or a `Dataset`, which brings its own
            transforms.
        batch_size: samples a batch, of this rank.
        shuffle, seed, drop_last, pad, rank, world_size, block_size, window: as `BatchSampler`; the same order.
        device: where batches are delivered; default and "cpu": in host memory. With CUDA, batches are gathered into
            pinned buffers, copied on a stream of the loader's own, and ordered before the work of the stream that is
            current when they are taken.
        prefetch: batches ready or in the making while the user is busy. 0: no threads, all is done in `next()`. Small
            batches in host memory without transforms are made up to 16 at a time, up to 2 MiB, and count as one.
        threads: that make batches. Default, without transforms: 2 where at least 512 KiB a field are read at a time
            (1.3 to 1.6 times the speed of one) and for a container behind a URL; else 1. More can pay for cold data,
            and for transforms that let go of the GIL and are safe to run in several threads at a time.
        fields, transform, batch_transform, ragged, pad_value, backend, verify: as `Dataset`. Transforms run in the
            loader's threads. What they return goes to the device if it is a tensor or an array, or a dict, list, tuple
            or dataclass of them; ragged="list" costs a copy for each row.
        device_transform: called with each batch on the device, on the copy stream, so that it overlaps with training:
            send uint8, make floats there. Returns tensors, or dicts, lists, tuples, dataclasses of them: of others the
            stream of the user would not be known to use them.
        static_buffers: with CUDA, use a few fixed sets of device memory in turn, as CUDA graphs need it. A batch is
            then valid until the next one is asked for, on the stream that is current there. Capture a graph before the
            iteration, or with capture_error_mode="thread_local": the loader's thread takes memory meanwhile. Elsewhere,
            where there are no such graphs, it changes nothing.
        pin_memory: without a device, deliver pinned tensors, to be copied by the caller; needs a GPU.

    Each `iter()` begins an epoch: epoch 0, or the one that was set or loaded, and later the next one each time, also
    after one that was left half-way. It ends the iteration before. `len` is the number of batches of a whole epoch.

    A batch is the user's to keep and to change. Its memory is used again when no tensor, view or array refers to it any
    more; so a loop that drops batches runs in the memory of `prefetch` + `threads` + 2 of them. Batches that were made
    at a time are parts of the same memory, which goes with the last of them.

    An error ends the iteration; the loader can be iterated again, and `load_state_dict(state_dict())` first goes on at
    the batch that failed. Threads stop at the end of an epoch, with `close()`, and when the iterator is dropped.
    Not thread-safe; use it in the process that made it.
    """

    def __init__(
        self,
        source: Paths | Reader | Selection | Dataset,
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
        device: str | torch.device | int | None = None,
        prefetch: int = 4,
        threads: int | None = None,
        fields: Sequence[str] | None = None,
        transform: Transform | None = None,
        batch_transform: Transform | None = None,
        device_transform: Transform | None = None,
        ragged: RaggedMode | None = None,
        pad_value: Any = None,
        backend: Backend = "auto",
        verify: Verify = "once",
        static_buffers: bool = False,
        pin_memory: bool = False,
    ) -> None:
        self._prefetch = checked_int("prefetch", prefetch, 0, MAX_PREFETCH)
        if threads is not None:
            threads = checked_int("threads", threads, 1, MAX_PREFETCH)
        self.device = as_device(device)
        sampled = {"fields": fields, "transform": transform, "batch_transform": batch_transform, "ragged": ragged}
        opened = {"backend": None if backend == "auto" else backend, "verify": None if verify == "once" else verify}
        self.dataset, self._owns_dataset = _as_dataset(source, {**sampled, "pad_value": pad_value, **opened})
        try:
            shuffled: Any = {"shuffle": shuffle, "seed": seed, "block_size": block_size, "window": window}
            shared: Any = {"drop_last": drop_last, "pad": pad, "rank": rank, "world_size": world_size}
            self._sampler = BatchSampler(self.dataset, batch_size, **shuffled, **shared)
            self.batch_size = self._sampler.batch_size
            self._threads = threads or 2
            self._transfer = self._make_transfer(device_transform, static_buffers, pin_memory)
            if threads is None:
                self._threads = _num_threads(self.dataset, self.batch_size, self._transfer, device_transform)
        except BaseException:
            if self._owns_dataset:
                self.dataset.close()
            raise
        self._stats = LoaderStats()
        self._iterator: Callable[[], LoaderIterator | None] = lambda: None
        self._stop_threads: Callable[[], None] = lambda: None

    def _make_transfer(self, transform: Transform | None, static_buffers: bool, pin_memory: bool) -> Transfer:
        prefetch, threads = self._prefetch, self._threads
        kept = {"num_batches": prefetch + threads + 2, "num_fixed": (prefetch + 1) * static_buffers}
        return transfer_to(self.device, transform, threads=threads, pin_memory=pin_memory, **kept)

    def __len__(self) -> int:
        """Batches of this rank in a whole epoch."""
        return len(self._sampler)

    def __iter__(self) -> Iterator[Any]:
        """Begin the next epoch, or go on after `load_state_dict`."""
        self._sampler._check_ranks()
        self._end_iteration()
        self._transfer.reset()
        iterator = LoaderIterator(self)
        self._iterator = weakref.ref(iterator)
        return iterator

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Loader({self.dataset.path!r}, {self.batch_size}, {len(self):,} batches, device={str(self.device)!r})"

    def __getstate__(self) -> Any:
        raise TypeError("a Loader has threads and cannot be pickled; pass its path and arguments, or use a DataLoader")

    @property
    def epoch(self) -> int:
        """The epoch that runs, or comes next."""
        return self._sampler.epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next `iter()`; a position inside it, from `load_state_dict`, stays."""
        self._end_iteration()
        self._sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where to go on: behind the last batch that was delivered, whatever was made ahead.

        JSON, under 1 kB; good for any batch size and number of ranks. All ranks give the same; see `pad` for the last
        step of an epoch.
        """
        return self._sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next `iter()` go on there. Takes microseconds, whatever the position.

        Raises:
            StateError: the state is that of another data set or order; nothing was changed.
        """
        self._sampler.load_state_dict(state)
        self._end_iteration()

    def stats(self) -> LoaderStats:
        """Batches, bytes and times so far."""
        return replace(self._stats)

    def close(self) -> None:
        """Stop the threads and wait for them, free their buffers, and close the container if this loader opened it.

        Idempotent. Iterating again takes all of it again.
        """
        self._end_iteration()
        self._transfer.reset()
        self._transfer.free()
        if self._owns_dataset:
            self.dataset.close()

    def _end_iteration(self) -> None:
        if (iterator := self._iterator()) is not None:
            iterator.close()
        self._stop_threads()  # one of an iterator that was dropped may still make a batch, in the buffers


def _as_dataset(source: Any, options: dict[str, Any]) -> tuple[Dataset, bool]:
    """The data set, and whether it was made here; an option that is None was not given."""
    options = {name: value for name, value in options.items() if value is not None}
    if not isinstance(source, Dataset):
        return Dataset(source, **options), True
    if options:
        raise ValueError(f"{', '.join(options)}: give them to the Dataset, which has its own")
    return source, False


def _is_plain(dataset: Dataset) -> bool:
    """No transform, which may take its time, or not expect a second thread."""
    return dataset.transform is None and dataset.batch_transform is None


def _num_threads(dataset: Dataset, batch_size: int, transfer: Transfer, device_transform: Transform | None) -> int:
    """Two where a gather reads much: short ones only wait for each other's GIL. Transforms may not expect a second."""
    if device_transform is not None or not _is_plain(dataset):
        return 1
    if dataset.distant:
        return _DISTANT_THREADS
    nbytes = dataset.sample_nbytes * batch_size
    if transfer.takes_runs:
        nbytes = max(nbytes, min(nbytes * _RUN_BATCHES, _RUN_NBYTES))
    return 2 if nbytes >= _TWO_THREADS_NBYTES * max(1, len(dataset.fields)) else 1
