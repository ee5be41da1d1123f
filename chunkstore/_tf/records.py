"""`engine="fixed_length"`: rows as records of TensorFlow's own reader, in a graph that can be serialised."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from chunkstore._format.dtypes import EXTENDED
from chunkstore._loading.order import Order
from chunkstore._loading.source import Rows, reader_of
from chunkstore._read.select import Selection
from chunkstore._tf.columns import Column
from chunkstore._tf.graph import ahead, as_written, begun, counted

_CARRIERS = {tf.uint32: tf.int32, tf.uint64: tf.int64}  # what `decode_raw` lacks, and knows by another name


def records(
    rows: Rows,
    columns: Sequence[Column],
    order: Order,
    single: bool,
    num_epochs: int,
    prefetch: int,
    identity: str,
) -> Any:
    """A dataset of dicts that needs no Python when it runs; all chunks are proven now.

    Args:
        single: samples instead of batches of one.
        num_epochs: 0 for no end.
        prefetch: elements decoded ahead.
        identity: of what the states of its iterators are good for.
    Raises:
        ValueError: the order or a field cannot be had in this way.
        CorruptError: a chunk is not what was written.
    """
    _check(rows, columns, order)
    for column in columns:
        reader_of(rows)._prove(column.name)

    def raw(_: Any) -> Any:
        made = _raw_batches(rows, columns, order)
        return made.repeat(num_epochs or None) if num_epochs != 1 else made

    @as_written
    def decode(*parts: Any) -> dict[str, Any]:
        made = _decoded(columns, parts)
        return {name: rows[0] for name, rows in made.items()} if single else made

    made = ahead(begun(identity, raw), decode, prefetch)
    return counted(made, order.num_batches(), num_epochs)


def _raw_batches(rows: Rows, columns: Sequence[Column], order: Order) -> Any:
    """One epoch of batches of this shard, as bytes."""
    num_whole = len(rows) // order.step_size
    stop = num_whole * order.step_size
    made = _zipped(rows, columns, 0, stop).batch(order.batch_size, drop_remainder=True)
    if order.world_size > 1:
        made = made.shard(order.world_size, order.rank)
    if order.num_batches() > num_whole:
        first, end = order.batch_range(num_whole)
        tail = _zipped(rows, columns, first, end).batch(order.batch_size)
        made = made.concatenate(tail) if num_whole else tail
    return made


def _check(rows: Rows, columns: Sequence[Column], order: Order) -> None:
    if order.shuffle is not False or isinstance(rows, Selection):
        raise ValueError(
            "engine: 'fixed_length' reads a whole container in order; use shuffle=False and no selection, "
            "or engine='auto'"
        )
    if order.pad:
        raise ValueError(f"engine: 'fixed_length' has no pad={order.pad!r}; use engine='auto'")
    if reader_of(rows).backend == "remote":
        raise ValueError(f"engine: {rows.path}: 'fixed_length' reads files; use engine='auto' for a URL")
    for column in columns:
        field = column.field
        if column.is_text or field.ragged or not field.item_nbytes or reader_of(rows)._extent(column.name) is None:
            raise ValueError(
                f"engine: {rows.path}: field {column.name!r} ({field.dtype}) is not rows of equal size in one extent, "
                "as 'fixed_length' needs it; use engine='auto', or leave it out of fields="
            )
        if field.dtype in EXTENDED and field.dtype != "bfloat16":
            raise ValueError(
                f"engine: 'fixed_length' cannot decode {field.dtype} of field {column.name!r}; use engine='auto', "
                "or leave it out of fields="
            )


def _zipped(rows: Rows, columns: Sequence[Column], start: int, stop: int) -> Any:
    """Rows [start, stop) of all columns, as bytes."""
    size = os.path.getsize(rows.path)
    parts = []
    for column in columns:
        extent = reader_of(rows)._extent(column.name)
        assert extent is not None
        nbytes = column.field.item_nbytes
        head = extent[0] + start * nbytes
        foot = size - (extent[0] + stop * nbytes)
        parts.append(tf.data.FixedLengthRecordDataset(os.path.abspath(rows.path), nbytes, head, foot))
    return tf.data.Dataset.zip(tuple(parts)).take(stop - start)


def _decoded(columns: Sequence[Column], parts: Sequence[Any]) -> dict[str, Any]:
    made = {}
    for column, part in zip(columns, parts, strict=True):
        carrier = _CARRIERS.get(column.dtype)
        flat = tf.io.decode_raw(part, carrier or column.dtype)
        flat = tf.bitcast(flat, column.dtype) if carrier else flat
        made[column.name] = tf.reshape(flat, (-1, *column.field.item_shape))
        made[column.name].set_shape((part.shape[0], *column.field.item_shape))
    return made
