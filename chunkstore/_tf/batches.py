"""Positions -> batches: a gather in the graph where that can be, one call of NumPy for all other fields."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from chunkstore._loading.recycle import Recycler
from chunkstore._read.ragged import Ragged
from chunkstore._read.reader import Reader
from chunkstore._tf.columns import Column, joined
from chunkstore._tf.graph import Host

Engine = Literal["auto", "gather", "numpy", "fixed_length"]


class Batches:
    """Makes batches of the fields of a container, in the graph.

    `ids` are positions of the reader. The methods that run in a graph take the `Host` of this object, which must not
    refer to it.

    Args:
        num_kept: batches of the NumPy path whose memory is used again: those that are alive at a time.
    """

    def __init__(self, reader: Reader, columns: Sequence[Column], engine: Engine, num_kept: int) -> None:
        self._reader = reader
        self._columns = columns
        self._gathered: list[tuple[Column, tuple[NDArray[Any], ...]]] = []
        self._read: list[Column] = []  # by NumPy
        for column in columns:
            arrays = None if engine == "numpy" else column.exported(reader)
            if arrays is not None:
                self._gathered.append((column, arrays))
            elif engine != "gather":
                self._read.append(column)
            else:
                why = column.why_no_gather(reader) or "its bytes are not aligned to 64"
                raise ValueError(
                    f"engine: {reader.path}: field {column.name!r} cannot be gathered in the graph, because {why}; "
                    "use engine='auto', or leave it out of fields="
                )
        self._recycler = Recycler(num_kept)

    # --- the file as tensors ---

    def tensors(self, host: Host, zero: Any) -> list[Any]:
        """In the graph: what `make` gathers from, over the memory of the map.

        To be called where an iterator begins. A tensor that a function of a dataset captures is copied by TensorFlow
        with each iterator, when it optimizes the dataset: the whole file.
        """
        arrays = self._gathered_arrays(zero)
        if not arrays:
            return []
        tensors = host.call(self._gathered_arrays, [zero], [tf.as_dtype(array.dtype) for array in arrays])
        for tensor, array in zip(tensors, arrays, strict=True):
            tensor.set_shape(array.shape)
        return list(tensors)

    def _gathered_arrays(self, _: Any) -> list[NDArray[Any]]:
        return [array for _, arrays in self._gathered for array in arrays]

    # --- before the batches: proof and read-ahead, in Python, once for a group ---

    def admit(self, ids: NDArray[np.int64]) -> np.bool_:
        """Whether the rows at ids are proven. Asks the system to read them, too."""
        try:
            self._reader.prefetch(ids, fields=[column.name for column in self._columns])
            self._prove(ids)
        except Exception:  # noqa: BLE001 - some batch of this group cannot be read: each one says so for itself
            return np.False_
        return np.True_

    def _prove(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        for column, _ in self._gathered:
            self._reader._prove(column.name, ids)
        return ids

    # --- batches ---

    def gather(self, host: Host, tensors: list[Any], ids: Any, admitted: Any) -> tuple[dict[str, Any], Any]:
        """In the graph: what can be gathered of the batch of ids, int64 of shape (B,), and whether it is proven.

        Where it is not, nothing is gathered, and `finish` has the error.
        """
        if not self._gathered:
            return {}, tf.constant(True)
        proven = tf.cond(admitted, lambda: tf.constant(True), lambda: host.call(self.admit, [ids], tf.bool))
        proven.set_shape([])
        wanted = tf.cond(proven, lambda: ids, lambda: ids[:0])
        wanted.set_shape([None])
        each = iter(tensors)
        made = {column.name: column.gathered([next(each) for _ in arrays], wanted) for column, arrays in self._gathered}
        return made, proven

    def finish(self, host: Host, ids: Any, gathered: dict[str, Any], proven: Any) -> dict[str, Any]:
        """In the graph: the batch of ids, with the fields that NumPy reads; or the error of what was gathered."""
        made = {}
        if self._read:
            outputs = host.call(self._read_arrays, [ids], _dtypes_of(self._read))
            made = _assembled(self._read, outputs, ids.shape[0])
        if gathered:
            checked = tf.cond(proven, lambda: ids, lambda: host.call(self._prove, [ids], tf.int64))
            with tf.control_dependencies([checked]):
                same = tf.nest.map_structure(tf.identity, gathered, expand_composites=True)
            made |= {column.name: column.sized(same[column.name], ids.shape[0]) for column, _ in self._gathered}
        return {column.name: made[column.name] for column in self._columns}

    def _read_arrays(self, ids: NDArray[np.int64]) -> list[NDArray[Any]]:
        # Memory that is aligned to 64 bytes is taken by TensorFlow as it is; other arrays are copied.
        out = {}
        for column in self._read:
            if column.fillable:
                shape = (len(ids), *column.field.item_shape)
                out[column.name] = self._recycler.empty(column.name, shape, column.field.numpy_dtype)
        return _arrays_of(self._read, self._reader.batch(ids, fields=[column.name for column in self._read], out=out))

    # --- single samples, of which each fails for itself ---

    def read_each(self, host: Host, ids: Any) -> tuple[dict[str, Any], Any]:
        """In the graph: the samples of ids as a batch, and what is wrong with each: tf.string of shape (n,), mostly "".

        One that cannot be read has a row without values, and no error comes before `single` raises it. For an object
        that gathers nothing.
        """
        problems, *outputs = host.call(self._read_each, [ids], [tf.string, *_dtypes_of(self._read)])
        made = _assembled(self._read, outputs, ids.shape[0])
        made = {column.name: made[column.name] for column in self._read if not column.without_items}
        return made, tf.ensure_shape(problems, ids.shape)

    def _read_each(self, ids: NDArray[np.int64]) -> list[NDArray[Any]]:
        with contextlib.suppress(Exception):  # each sample says so for itself
            return [np.full(len(ids), b"", object), *self._read_arrays(ids)]
        names, parts, problems = [column.name for column in self._read], [], []
        for start in range(len(ids)):
            try:
                parts.append(self._reader.batch(ids[start : start + 1], fields=names))
                problems.append(b"")
            except Exception as error:  # noqa: BLE001 - it goes on to the user, in its place
                parts.append({column.name: column.without_values() for column in self._read})
                problems.append(f"{type(error).__name__}: {error}".encode())
        rows = {name: joined([part[name] for part in parts]) for name in names}
        return [np.array(problems, object), *_arrays_of(self._read, rows)]

    def single(self, sample: dict[str, Any], problem: Any) -> dict[str, Any]:
        """In the graph: one sample of what `read_each` gave, or its error."""
        with tf.control_dependencies([tf.raw_ops.Assert(condition=tf.equal(problem, ""), data=[problem])]):
            return {column.name: column.row(sample.get(column.name)) for column in self._columns}


def _dtypes_of(columns: Sequence[Column]) -> list[Any]:
    return [dtype for column in columns for dtype in column.output_dtypes]


def _arrays_of(columns: Sequence[Column], rows: Mapping[str, NDArray[Any] | Ragged]) -> list[NDArray[Any]]:
    return [array for column in columns for array in column.arrays(rows[column.name])]


def _assembled(columns: Sequence[Column], outputs: Sequence[Any], num_rows: int | None) -> dict[str, Any]:
    """The tensors of a batch, in the graph, of the outputs of `_arrays_of`."""
    each = iter(outputs)
    return {column.name: column.assembled([next(each) for _ in column.output_dtypes], num_rows) for column in columns}
