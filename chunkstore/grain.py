"""Grain: a container as a random access data source.

    from chunkstore.grain import batch_source, source

    grain.MapDataset.source(source("train.cks")).shuffle(seed=7).batch(256)
    grain.MapDataset.source(batch_source("train.cks", 256, shuffle=True, seed=7))

Both follow Grain's `RandomAccessDataSource` protocol, which needs no import of Grain. The second is faster: each of its
records is a whole batch, made by one gather per field, in the order that `chunkstore.torch` and `chunkstore.tf` have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chunkstore._loading.order import Order
from chunkstore._loading.source import Rows, Shuffle, fingerprint_of, make_shard_order, open_rows, shard_identity
from chunkstore._read.checked import Verify
from chunkstore._read.many import Paths
from chunkstore._read.ragged import Ragged
from chunkstore._storage.source import Backend

__all__ = ["BatchSource", "Source", "batch_source", "source"]


class Source:
    """Samples as dicts of arrays; made by `source`.

    Safe from many threads. Pickles for worker processes in under 1 kB, and reopens there.
    """

    def __init__(self, reader: Rows) -> None:
        self._reader = reader

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample; its arrays own their memory, so that a transform may change them.

        Raises:
            IndexError, CorruptError: as a `Reader`.
        """
        row = self._reader[index]
        return {name: value if isinstance(value, str) else np.array(value) for name, value in row.items()}

    def _getitems(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Many samples by one gather per field: what Grain's batched reads call."""
        batch = self._reader.batch(indices)
        names = list(batch)
        columns = [_rows(batch[name]) for name in names]
        return [dict(zip(names, rows, strict=True)) for rows in zip(*columns, strict=True)]

    def __repr__(self) -> str:
        # Grain saves it with a checkpoint and refuses one with another text.
        return f"chunkstore.grain.Source({fingerprint_of(self._reader)}, fields={list(self._reader.fields)})"


class BatchSource:
    """Batches as dicts of arrays (B, *row_shape), `Ragged` where rows differ; made by `batch_source`.

    Safe from many threads. Pickles for worker processes, and reopens there.
    """

    def __init__(self, reader: Rows, order: Order, epoch: int) -> None:
        self._reader = reader
        self._order = order
        self._epoch = epoch

    def __len__(self) -> int:
        """Number of batches."""
        return self._order.num_batches()

    def __getitem__(self, index: int) -> dict[str, NDArray[Any] | Ragged]:
        """Batch `index` of the epoch, in fresh arrays.

        Raises:
            IndexError: there is no such batch.
            CorruptError: a chunk is not what was written.
        """
        return self._reader.batch(self._order.batch(index, self._epoch))

    def __repr__(self) -> str:
        # As that of `Source`.
        identity = shard_identity(self._order, list(self._reader.fields), epoch=self._epoch)
        return f"chunkstore.grain.BatchSource({identity})"


def source(
    path: Paths | Rows,
    *,
    fields: Sequence[str] | None = None,
    backend: Backend = "auto",
    verify: Verify = "once",
) -> Source:
    """Samples for `grain.MapDataset.source` or a `grain.DataLoader`.

    Args:
        path: of a container, or several, as of `chunkstore.open`; or a `Reader` or `Selection`, whose own options then
            hold.
        fields, backend, verify: as `chunkstore.open`.
    Raises:
        All that `chunkstore.open` raises.
    """
    return Source(_open(path, fields, backend, verify))


def batch_source(
    path: Paths | Rows,
    batch_size: int,
    *,
    fields: Sequence[str] | None = None,
    shuffle: Shuffle = False,
    seed: int = 0,
    epoch: int = 0,
    drop_remainder: bool = False,
    shard: tuple[int, int] | None = None,
    block_size: int | None = None,
    window: int = 16,
    backend: Backend = "auto",
    verify: Verify = "once",
) -> BatchSource:
    """Whole batches of one epoch for `grain.MapDataset.source`.

    Args:
        path, fields, backend, verify: as `source`.
        batch_size, shuffle, seed, epoch, drop_remainder, shard, block_size, window: as `chunkstore.tf.dataset`.
    Raises:
        TypeError, ValueError: an argument does not fit.
        All that `chunkstore.open` raises.
    """
    reader = _open(path, fields, backend, verify)
    order = make_shard_order(
        reader,
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        drop_remainder=drop_remainder,
        shard=shard,
        block_size=block_size,
        window=window,
    )
    return BatchSource(reader, order, epoch)


def _open(path: Paths | Rows, fields: Sequence[str] | None, backend: Backend, verify: Verify) -> Rows:
    if fields is not None and isinstance(path, Rows):
        raise ValueError("fields: give them to chunkstore.open; the reader given here has its own")
    return open_rows(path, fields, backend, verify)


def _rows(values: NDArray[Any] | Ragged) -> list[Any]:
    if isinstance(values, Ragged):
        return [row if isinstance(row, str) else row.copy() for row in values]
    return [values[place, ...].copy() for place in range(len(values))]  # not scalars: texts would lose their dtype
