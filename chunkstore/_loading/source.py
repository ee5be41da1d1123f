"""What all adapters begin with: the source that the user gave, opened, and the order that he asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from chunkstore._format.checksum import sum64
from chunkstore._loading.order import Order
from chunkstore._loading.permutation import checked_int
from chunkstore._read.checked import Verify
from chunkstore._read.many import Containers, Paths, is_paths
from chunkstore._read.many import open as open_reader
from chunkstore._read.reader import Reader, check_known
from chunkstore._read.select import Selection
from chunkstore._storage.source import Backend

Rows: TypeAlias = Reader | Selection
Shuffle: TypeAlias = bool | Literal["full", "block"]
Pad: TypeAlias = Literal[False, "even", "full"]


def open_rows(source: Paths | Rows, fields: Sequence[str] | None, backend: Backend, verify: Verify) -> Rows:
    """The samples of paths, opened with these options; or the reader or selection that was given.

    Of several containers they are those of now: a later `refresh` gives samples other positions, and an order that was
    made before would miss some of them and take others twice.

    Raises:
        TypeError: neither of them.  ValueError: options for a reader, which has its own.
        All that `chunkstore.open` raises.
    """
    if isinstance(source, Reader | Selection):
        if backend != "auto" or verify != "once":
            raise ValueError("backend, verify: give them to chunkstore.open; the reader given here has its own")
        return source._unmoved() if isinstance(source, Containers) else source
    if not is_paths(source):
        raise TypeError(f"source: expected a path or a Reader, found {type(source).__name__}")
    return open_reader(source, backend=backend, verify=verify, fields=fields)


def reader_of(rows: Rows) -> Reader:
    """What reads the samples."""
    reader = rows.reader if isinstance(rows, Selection) else rows
    assert isinstance(reader, Reader)
    return reader


def chosen_fields(rows: Rows, fields: Sequence[str] | None) -> tuple[str, ...]:
    """These fields, default all.

    Raises:
        TypeError: one text.  ValueError: an unknown field.
    """
    if fields is None:
        return tuple(rows.fields)
    check_known(fields, rows.fields, rows.path)
    return tuple(fields)


def fingerprint_of(rows: Rows) -> str:
    """Identity of the samples and their sequence: a selection adds a sum of its positions."""
    if not isinstance(rows, Selection):
        return rows.fingerprint
    return f"{rows.fingerprint}-{sum64(rows.positions.astype('<i8').tobytes()):016x}"


def make_order(source: Any, num_samples: int, *, shuffle: Shuffle, block_size: int | None, **options: Any) -> Order:
    """The order of a reader, a selection, or anything else of so many samples.

    With shuffle="block" and no `block_size`, the blocks are the shards of the container. In order, with shuffle=False,
    a block size means nothing, and is taken: evaluation often has the arguments of training.

    Raises:
        TypeError, ValueError: an argument does not fit.
    """
    if block_size is not None and shuffle in (True, "full"):
        raise ValueError(f"block_size: expected None with shuffle={shuffle!r}, without blocks; use shuffle='block'")
    block_starts = None
    if shuffle == "block" and block_size is None:
        if not isinstance(source, Reader):
            raise ValueError("block_size: needed for shuffle='block', except for a whole container, which has shards")
        block_starts = source._index.shard_starts
    return Order(
        num_samples,
        shuffle=shuffle,
        block_size=block_size if shuffle == "block" else None,
        block_starts=block_starts,
        fingerprint=fingerprint_of(source) if isinstance(source, Reader | Selection) else "",
        **options,
    )


def make_shard_order(rows: Rows, *, shard: tuple[int, int] | None, drop_remainder: bool, **options: Any) -> Order:
    """As `make_order`, from what TensorFlow and Grain call the arguments.

    Raises:
        TypeError, ValueError: an argument does not fit.
    """
    if shard is not None and np.shape(shard) != (2,):
        raise ValueError(f"shard: expected (rank, world size), found {shard!r}")
    if not isinstance(drop_remainder, bool):
        raise TypeError(f"drop_remainder: expected True or False, found {drop_remainder!r}")
    rank, world_size = (0, 1) if shard is None else shard
    world_size = checked_int("shard: world size", world_size, 1, 1 << 31)
    rank = checked_int("shard: rank", rank, 0, world_size - 1)
    return make_order(rows, len(rows), rank=rank, world_size=world_size, drop_last=drop_remainder, **options)


def shard_identity(order: Order, fields: Sequence[str], **also: object) -> str:
    """What must be equal for a number of batches to mean the same ones, as one line of text."""
    said: dict[str, object] = {"batch_size": order.batch_size} | also
    said |= {"shard": (order.rank, order.world_size), "drop_remainder": order.drop_last, "pad": order.pad}
    said |= {"fields": list(fields)}
    return ", ".join(f"{name}={value!r}" for name, value in (order.identity() | said).items())
