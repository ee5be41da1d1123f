"""`Dataset`: a container as a map-style data set of torch, one gather per batch."""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from chunkstore._loading.recycle import Recycler
from chunkstore._loading.source import chosen_fields, fingerprint_of, open_rows, reader_of
from chunkstore._read.checked import Verify
from chunkstore._read.many import Paths
from chunkstore._read.ragged import Ragged
from chunkstore._read.reader import Reader
from chunkstore._read.select import Selection
from chunkstore._storage.source import Backend
from chunkstore._torch.collate import Batch, Sample
from chunkstore._torch.convert import RaggedMode, columns_of
from chunkstore.errors import ReplacedError

Transform = Callable[[Any], Any]
# Of the plain data set, if so many are alive at a time: three in a `DataLoader`, and those that `prefetch` takes ahead.
_KEPT_BATCHES: Final = 8
_PREPARED: Final = ("_columns", "_loaded", "_fixed", "_chosen", "_recycler")


class Dataset(torch.utils.data.Dataset[Any]):
    """A container for `torch.utils.data.DataLoader` and everything that is built on it.

        DataLoader(Dataset("train.cks"), batch_size=256, shuffle=True)

    One sample is a dict of tensors; `DataLoader` gets whole batches, made by one gather per field. Works with
    `num_workers` and every start method, `pin_memory`, `Subset`, `random_split`, `ConcatDataset`, any sampler.

    Args:
        source: path of a container, or several, as of `chunkstore.open`; or a `Reader` or `Selection`, which stays the
            caller's to close. Of several containers the samples are those of now, whatever a later `refresh` brings.
        fields: which fields, default all.
        transform: called with each sample (a dict of tensors), returns what takes its place. Runs where the sample is
            loaded: in a worker process or in a thread of a `Loader`. Must be picklable where workers are spawned.
        batch_transform: called with each batch after collation, e.g. to cast a whole batch at once: far cheaper.
        ragged: what a batch has for a field whose rows differ in size. "offsets": `RaggedTensors(values, offsets,
            shapes)`; "nested": a nested tensor, jagged; "list": one tensor a row, sharing memory; "pad": one tensor
            (B, largest..., *item_shape).
        pad_value: for "pad", in the field's dtype. Choose one that the data have not, or use "offsets", where the
            lengths matter.
        backend, verify: as `chunkstore.open`; only with a path.

    Tensors own their memory: writing to them never changes the container or another batch. Memory of a batch is used
    again once no tensor, view or array refers to it. dtypes are those of the fields; datetime64 and timedelta64 come as
    int64 in the field's unit; texts and bytes of shape () as `str` and `bytes`, in a batch as a list of them.

    Raises:
        TypeError: torch has no such dtype; the message names the fields to choose.
        ValueError: an unknown field, or an argument that does not fit.
        All that `chunkstore.open` raises.
    Safe from many threads if the transforms are. Pickles in under 1 kB besides the transforms.
    """

    def __init__(
        self,
        source: Paths | Reader | Selection,
        *,
        fields: Sequence[str] | None = None,
        transform: Transform | None = None,
        batch_transform: Transform | None = None,
        ragged: RaggedMode = "offsets",
        pad_value: Any = 0,
        backend: Backend = "auto",
        verify: Verify = "once",
    ) -> None:
        for name, function in (("transform", transform), ("batch_transform", batch_transform)):
            if function is not None and not callable(function):
                raise TypeError(f"{name}: expected a function, found {type(function).__name__}")
        options: dict[str, Any] = {"source": source, "fields": fields, "backend": backend, "verify": verify}
        self._options = None if isinstance(source, Reader | Selection) else options
        rows = open_rows(**options)
        self._reader: Reader | Selection | None = rows
        self._closed_fingerprint = ""
        self.transform = transform
        self.batch_transform = batch_transform
        self.ragged: RaggedMode = ragged
        self.pad_value = pad_value
        self.path = rows.path
        self._names = chosen_fields(rows, fields)
        self._prepare()

    def _prepare(self) -> None:
        known = self.reader.fields
        columns = loaded = columns_of(known, self._names, self.path, self.ragged, self.pad_value)
        if self.transform is not None:
            # A transform sees each row in its own shape; what it returns is put together as `ragged` says.
            loaded = columns_of(known, self._names, self.path, "list", self.pad_value)
        # Each has its last value at once: of a copy, several threads may do this while others load with it.
        self._columns, self._loaded = columns, loaded
        self._fixed = [
            (name, column.field.item_shape, column.buffer_dtype)
            for name, column in self._columns.items()
            if column.fixed
        ]
        self._chosen = None if list(self._names) == list(known) else self._names
        self._recycler = Recycler(_KEPT_BATCHES)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _PREPARED}

    def __getattr__(self, name: str) -> Any:
        """Open the container when it is first used, not where it is unpickled: a worker process could not say why that
        fails.
        """
        if name not in _PREPARED:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self._prepare()
        return self.__dict__[name]

    # What it is -----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.reader)

    def __repr__(self) -> str:
        return f"Dataset({self.path!r}, {len(self):,} samples, fields={list(self._names)})"

    @property
    def reader(self) -> Reader | Selection:
        """Where the samples come from. Opened again where `close` has closed it.

        Raises:
            ReplacedError: the path names another container by now.
        """
        if self._reader is None:
            assert self._options is not None
            reader = open_rows(**self._options)
            assert isinstance(reader, Reader)
            if reader.fingerprint != self._closed_fingerprint:
                reader.close()
                raise ReplacedError(
                    f"{self.path}: the container is not the one that was open before; make a new Dataset"
                )
            self._reader = reader
        return self._reader

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that a sample has."""
        return self._names

    @property
    def sample_nbytes(self) -> int:
        """Bytes of the fields of fixed shape of one sample."""
        return sum(column.field.item_nbytes for column in self._columns.values() if column.fixed)

    @property
    def distant(self) -> bool:
        """Whether the container, or one of several, is behind a URL, so that batches wait for a server."""
        return reader_of(self.reader).backend == "remote"

    @property
    def fingerprint(self) -> str:
        """Identity of the samples and their sequence, as the state of a loader has it."""
        return fingerprint_of(self.reader)

    def close(self) -> None:
        """Close the container if this data set opened it; the next use opens it again. Idempotent."""
        if "_recycler" in self.__dict__:  # or it is a copy that was not used: this would open it
            self._recycler.clear()
        if self._options is not None and self._reader is not None:
            assert isinstance(self._reader, Reader)
            self._closed_fingerprint = self._reader.fingerprint
            self._reader.close()
            self._reader = None

    # Samples --------------------------------------------------------------------------------------

    def __getitem__(self, index: int | str) -> Any:
        """One sample by position or key, in memory of its own, after `transform`.

        Raises:
            IndexError, SampleNotFoundError, CorruptError: as a `Reader`.
        """
        if not isinstance(index, str):
            try:
                index = operator.index(index)
            except TypeError:
                found = type(index).__name__
                raise TypeError(f"a sample has one position or key, found {found}; for many use a DataLoader") from None
        row = self._row(index)
        columns = self._columns
        sample = Sample({name: columns[name].row(value) for name, value in row.items()}, columns)
        return sample if self.transform is None else self._transformed(sample, index)

    def _row(self, index: int | str) -> dict[str, Any]:
        if self._chosen is None:
            return self.reader[index]
        if isinstance(index, str):
            index = int(self.reader.find([index])[0])
        rows = self.reader.batch([index], fields=self._names)
        return {name: value[0] for name, value in rows.items()}

    def __getitems__(self, indices: Sequence[int] | NDArray[Any]) -> Sequence[Any]:
        """Many samples by one gather per field: what `DataLoader` calls for a batch.

        Returns:
            A sequence of samples that `default_collate` takes as the batch it is; with `transform` alone, a list.
        """
        allocate = _allocate_shared if get_worker_info() is not None else self._recycler.empty
        ids: Any = _positions(indices) if type(indices) is list and indices else indices
        if self.transform is not None and self.batch_transform is None:
            return self._transform_each(self._gather(ids, allocate), ids)
        return Batch(self.make_batch(ids, allocate), len(ids), self._columns)

    def prefetch(self, indices: NDArray[np.int64]) -> None:
        """Ask the system to read these samples soon; does nothing on warm data."""
        self.reader.prefetch(indices, fields=self._chosen)

    def make_batch(self, indices: NDArray[np.int64], allocate: Callable[..., NDArray[Any]]) -> Any:
        """A whole batch, after all transforms; for `Loader`.

        Args:
            allocate: called with (name, shape, dtype); gives the memory to gather a field of fixed shape into.
        """
        batch: Any = self._gather(indices, allocate)
        if self.transform is not None:
            batch = torch.utils.data.default_collate(self._transform_each(batch, indices))
        return batch if self.batch_transform is None else self.batch_transform(batch)

    def make_batches(
        self, run: Sequence[NDArray[np.int64]], allocate: Callable[..., NDArray[Any]]
    ) -> list[dict[str, Any]]:
        """The batches of several arrays of indices by one gather: they share its memory. Without transforms."""
        arrays = self._read(np.concatenate(run), allocate)
        stops = list(accumulate(map(len, run)))
        return [
            {name: column.batch(_part(arrays[name], start, stop)) for name, column in self._columns.items()}
            for start, stop in zip([0, *stops], stops, strict=False)
        ]

    def _gather(self, indices: Any, allocate: Callable[..., NDArray[Any]]) -> dict[str, Any]:
        arrays = self._read(indices, allocate)
        return {name: column.batch(arrays[name]) for name, column in self._loaded.items()}

    def _read(self, indices: Any, allocate: Callable[..., NDArray[Any]]) -> dict[str, NDArray[Any] | Ragged]:
        num_rows = len(indices)
        out = {name: allocate(name, (num_rows, *shape), dtype) for name, shape, dtype in self._fixed}
        return self.reader.batch(indices, fields=self._chosen, out=out)

    def _transform_each(self, batch: dict[str, Any], indices: Any) -> list[Any]:
        samples = Batch(batch, len(indices), self._columns)
        return [self._transformed(samples[place], indices[place]) for place in range(len(indices))]

    def _transformed(self, sample: Sample, index: Any) -> Any:
        assert self.transform is not None
        try:
            result = self.transform(sample)
        except Exception as error:
            error.add_note(f"in transform= of sample {self.describe(index)} of {self.path}")
            raise
        return Sample(result, self._columns) if type(result) is dict else result

    def describe(self, index: Any) -> str:
        """Position and key of a sample, for messages; without the key where that cannot be read either."""
        if isinstance(index, str):
            return repr(index)
        position = int(index)
        with suppress(Exception):
            rows = self.reader
            keys, at = reader_of(rows).keys, int(rows.positions[position]) if isinstance(rows, Selection) else position
            return str(position) if keys is None else f"{position} {keys[at]!r}"
        return str(position)


def _part(rows: NDArray[Any] | Ragged, start: int, stop: int) -> NDArray[Any] | Ragged:
    """Rows `[start, stop)`, sharing memory."""
    if not isinstance(rows, Ragged):
        return rows[start:stop]
    offsets = rows.offsets[start : stop + 1]
    values = rows.values[offsets[0] : offsets[-1]]
    shapes = None if rows.shapes is None else rows.shapes[start:stop]
    return Ragged(values, offsets - offsets[0], shapes, rows.text)


def _positions(indices: list[Any]) -> Any:
    """A list of integers as int64, in a third of the time of `np.asarray`; any other is the reader's to refuse."""
    try:
        return np.frombuffer(struct.pack(f"={len(indices)}q", *indices), np.int64)
    except struct.error:
        return indices


def _allocate_shared(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Memory that a worker process hands to its parent without another copy, as `default_collate` does it."""
    nbytes = int(np.prod(shape)) * dtype.itemsize
    new_shared = getattr(torch.UntypedStorage, "_new_shared", None)
    if not nbytes or new_shared is None:
        return np.empty(shape, dtype)
    memory = torch.empty(0, dtype=torch.uint8, device="cpu").set_(new_shared(nbytes)).numpy()
    return np.ndarray(shape, dtype, memory)
