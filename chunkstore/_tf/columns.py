"""How a field becomes tensors: dtypes, the map as a tensor, ragged rows.

| dtype of the field | tensor |
|---|---|
| bool, integers, floats, complex, bfloat16, float8 (where TensorFlow can run it) | the same dtype |
| datetime64, timedelta64 | int64, counted in the field's unit; NaT is -2^63 |
| string, utf32 | tf.string, in UTF-8 |
| bytes | tf.string; bytes of zero at the end are lost, as in NumPy |
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, Literal

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from chunkstore._format.dtypes import EXTENDED, PLAIN
from chunkstore._format.schema import Field
from chunkstore._loading.source import Rows, chosen_fields
from chunkstore._read.ragged import Ragged
from chunkstore._read.reader import Reader
from chunkstore._tf.graph import ALIGNMENT, as_written

RaggedMode = Literal["ragged", "pad"]
# Offsets are copied into a tensor: 8 bytes a sample. Beyond this, start-up and memory would grow with N for no gain.
_MOST_OFFSETS_NBYTES: Final = 256 << 20
_SINGLE, _RAGGED = " one by one", " as a RaggedTensor"  # what is asked of a dtype beside whole batches


class Column:
    """One field: its dtype in TensorFlow, and the tensors that a batch has for it.

    Attributes:
        spec_shape: static shape of a batch without its first dimension; None where rows or batches differ.
        dtype: of the tensor.
    """

    def __init__(
        self, field: Field, path: str, others: Sequence[str], mode: RaggedMode, pad_value: Any, single: bool
    ) -> None:
        self.field = field
        self.name = field.name
        self.is_text = field.is_string or field.numpy_dtype.kind in "SU"
        where = f"{path}: field {field.name!r}"
        self.ragged = field.ragged and not field.is_string
        self.single = single
        self.padded = self.ragged and mode == "pad" and not single
        form = _SINGLE if single else _RAGGED if self.ragged and not self.padded else ""
        self.dtype = tf.string if self.is_text else _tf_dtype(field, where, others, form)
        self.row_shape: tuple[int | None, ...] = (
            (*[None] * field.varying, *field.item_shape) if self.ragged else () if field.is_string else field.item_shape
        )
        self._pad_value = _checked_pad(pad_value, self) if self.padded else None

    # --- by NumPy ---

    @property
    def output_dtypes(self) -> list[Any]:
        """Of what `arrays` gives."""
        if not self.ragged or self.padded:
            return [self.dtype]
        return [self.dtype, tf.int64] if self.field.varying == 1 else [self.dtype, tf.int64, tf.int64]

    @property
    def fillable(self) -> bool:
        """Whether the reader can gather into memory that we give."""
        return not self.is_text and not self.ragged and self.field.item_nbytes > 0

    def arrays(self, rows: NDArray[Any] | Ragged) -> list[NDArray[Any]]:
        """What a reader gave, as the arrays that TensorFlow takes without another copy."""
        if self.is_text:
            return [_texts(rows)]
        if not isinstance(rows, Ragged):
            return [self._plain(rows)]
        if self.padded:
            return [self._plain(rows.pad(self._pad_value))]
        shapes = [] if rows.shapes is None else [rows.shapes]
        return [self._plain(rows.values), rows.offsets, *shapes]

    def _plain(self, array: NDArray[Any]) -> NDArray[Any]:
        return array.view(np.int64) if array.dtype.kind in "mM" else array

    def assembled(self, outputs: Sequence[Any], num_rows: int | None) -> Any:
        """The tensor of a batch, in the graph, of the outputs of `arrays`."""
        if not self.ragged or self.padded:
            outputs[0].set_shape((num_rows, *self.row_shape))
            return outputs[0]
        outputs[0].set_shape((None, *self.field.item_shape))
        outputs[1].set_shape((None if num_rows is None else num_rows + 1,))
        if self.field.varying == 1:
            return tf.RaggedTensor.from_row_splits(outputs[0], outputs[1], validate=False)
        outputs[2].set_shape((num_rows, self.field.varying))
        if self.single:  # a RaggedTensor would lose the second dimension of a row whose first is 0
            items = tf.RaggedTensor.from_row_splits(outputs[0], outputs[1], validate=False)
            return {"items": items, "shape": outputs[2]}
        return tf.RaggedTensor.from_nested_row_lengths(outputs[0], _nested_lengths(outputs[2]), validate=False)

    # --- by a gather in the graph ---

    def why_no_gather(self, reader: Reader) -> str:
        """Why the field cannot be gathered from the map in the graph; empty if it can."""
        field = self.field
        if field.codec != "raw":
            return f"its codec is {field.codec}"
        if self.is_text:
            return f"{field.dtype} becomes tf.string"
        if self.ragged and field.varying > 1:
            return "more than one dimension varies"
        if field.dtype in EXTENDED and field.dtype != "bfloat16":
            return f"TensorFlow has no bitcast to {field.dtype}"
        if reader.backend != "mmap":
            return "the container is read by pread, not mapped"
        if not len(reader):
            return "the container has no samples"
        extent = reader._extent(self.name)
        if extent is None or not extent[1]:
            return "it is not one extent (repack makes it one)" if extent is None else "it has no bytes"
        if self.ragged and 8 * len(reader) > _MOST_OFFSETS_NBYTES:
            return "its offsets would take too much memory"
        return ""

    def exported(self, reader: Reader) -> tuple[NDArray[Any], ...] | None:
        """The whole field as arrays over the map: (rows,), or (values, offsets) of a ragged one.

        None where it cannot be gathered, or the map is not aligned as TensorFlow needs it; it would copy the field.
        """
        if self.why_no_gather(reader):
            return None
        pair = reader._exportable_ragged(self.name) if self.ragged else (reader._exportable(self.name),)
        if pair is None or pair[0] is None:
            return None
        rows = pair[0]
        if rows.dtype.kind in "mM":
            rows = rows.view(np.int64)
        elif self.field.dtype in EXTENDED:
            rows = rows.view(np.uint16)
        return (rows, *pair[1:]) if rows.flags.c_contiguous and not rows.ctypes.data % ALIGNMENT else None

    def gathered(self, tensors: Sequence[Any], ids: Any) -> Any:
        """The rows of a batch, in the graph."""
        if not self.ragged:
            return self._cast(tf.gather(tensors[0], ids))
        rows = gather_ragged(tensors[0], tensors[1], ids)
        rows = rows.with_flat_values(self._cast(rows.flat_values))
        if not self.padded:
            return rows
        padded = rows.to_tensor(tf.cast(tf.constant(self._pad_value), self.dtype))
        padded.set_shape((ids.shape[0], *self.row_shape))
        return padded

    def sized(self, rows: Any, num_rows: int | None) -> Any:
        """What was gathered, with the number of rows as a part of its static shape."""
        if isinstance(rows, tf.RaggedTensor):
            splits = tf.ensure_shape(rows.row_splits, [None if num_rows is None else num_rows + 1])
            return tf.RaggedTensor.from_row_splits(rows.values, splits, validate=False)
        return tf.ensure_shape(rows, (num_rows, *self.row_shape))

    def _cast(self, tensor: Any) -> Any:
        return tf.bitcast(tensor, tf.bfloat16) if self.field.dtype == "bfloat16" else tensor

    # --- single samples ---

    def without_values(self) -> NDArray[Any] | Ragged:
        """A row as a reader gives it, in place of one that cannot be read: zeros, or empty where rows differ."""
        field = self.field
        if not field.ragged and not field.is_string:
            return np.zeros((1, *field.item_shape), field.numpy_dtype)
        values = np.zeros((0, *field.item_shape), np.uint8 if field.is_string else field.numpy_dtype)
        shapes = np.zeros((1, field.varying), np.int64) if field.varying > 1 else None
        return Ragged(values, np.zeros(2, np.int64), shapes, field.is_string)

    @property
    def without_items(self) -> bool:
        """Whether rows have one shape, of no items: on such tensors TensorFlow's `unbatch` ends the process."""
        return not self.ragged and 0 in self.row_shape

    def row(self, value: Any) -> Any:
        """One row as a tensor in its own shape, of what `unbatch` made of a batch; None for one without items."""
        if value is None:
            value = tf.reshape(tf.constant((), self.dtype), self.row_shape)
        if isinstance(value, dict):
            shape = tf.concat([value["shape"], tf.constant(self.field.item_shape, tf.int64)], 0)
            value = tf.reshape(value["items"], shape)
        return tf.ensure_shape(value, self.row_shape)  # an op, as `ahead` needs it


def columns_of(
    rows: Rows, fields: Sequence[str] | None, mode: RaggedMode, pad_value: Any, single: bool
) -> list[Column]:
    """The columns of a dataset, in the order of `fields` or of the container; `single`: of samples, not of batches.

    Raises:
        ValueError: an unknown field.  TypeError: TensorFlow cannot carry a dtype.
    """
    names = chosen_fields(rows, fields)
    if not names:
        raise ValueError("fields: expected at least one name, found none")
    return [Column(rows.fields[name], rows.path, names, mode, pad_value, single) for name in dict.fromkeys(names)]


def joined(parts: Sequence[Any]) -> NDArray[Any] | Ragged:
    """The rows of several batches of a field as one."""
    if not isinstance(parts[0], Ragged):
        return np.concatenate(parts)
    counts = np.concatenate([part.counts() for part in parts])
    shapes = None if parts[0].shapes is None else np.concatenate([part.shapes for part in parts])
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return Ragged(np.concatenate([part.values for part in parts]), offsets, shapes, parts[0].text)


def gather_ragged(values: Any, offsets: Any, ids: Any) -> Any:
    """Rows of (values, offsets) at ids as a RaggedTensor; time O(B log B), not O(N).

    `tf.gather` on a RaggedTensor checks all splits in every call: 1 ms for 10^5 rows, 10 ms for 10^7. So its kernel
    gets the splits of the wanted rows only: the sorted bounds of these rows cut `values` into the rows and what lies
    between them.
    """
    starts, stops = tf.gather(offsets, ids), tf.gather(offsets, ids + 1)
    bounds = tf.sort(tf.concat([starts, stops], 0))
    # A row begins at the last bound of its value, an empty one at the first, where the piece up to the next is empty.
    first = tf.searchsorted(bounds, starts, "left", out_type=tf.int64)
    last = tf.searchsorted(bounds, starts, "right", out_type=tf.int64) - 1
    total = tf.shape(values, tf.int64)[:1]
    splits = tf.concat([tf.zeros([1], tf.int64), bounds, total], 0)
    pieces = tf.where(stops > starts, last, first) + 1
    out_splits, out_values = tf.raw_ops.RaggedGather(
        params_nested_splits=[splits], params_dense_values=values, indices=pieces, OUTPUT_RAGGED_RANK=1
    )
    out_splits[0].set_shape([None if ids.shape[0] is None else ids.shape[0] + 1])
    out_values.set_shape([None, *values.shape[1:]])
    return tf.RaggedTensor.from_row_splits(out_values, out_splits[0], validate=False)


def _nested_lengths(shapes: Any) -> list[Any]:
    """Row lengths of each ragged dimension, of a table of row shapes (B, v)."""
    lengths = [shapes[:, 0]]
    times = shapes[:, 0]
    for place in range(1, shapes.shape[1]):
        lengths.append(tf.repeat(shapes[:, place], times))
        times = times * shapes[:, place]
    return lengths


def _texts(rows: NDArray[Any] | Ragged) -> NDArray[Any]:
    """Objects of `bytes`, in UTF-8: what TensorFlow makes tf.string of."""
    if isinstance(rows, Ragged):
        blob, bounds = rows.values.tobytes(), rows.offsets.tolist()
        texts = np.empty(len(rows), object)
        texts[:] = [blob[start:stop] for start, stop in pairwise(bounds)]
        return texts
    return (np.char.encode(rows, "utf-8") if rows.dtype.kind == "U" else rows).astype(object)


def _tf_dtype(field: Field, where: str, others: Sequence[str], form: str) -> Any:
    if field.numpy_dtype.kind in "mM":
        return tf.int64
    name = field.dtype
    try:
        dtype = tf.as_dtype(field.numpy_dtype) if name in PLAIN or name in EXTENDED else None
    except TypeError:
        dtype = None
    if dtype is None or (name in EXTENDED and name != "bfloat16" and not _runs(dtype, form)):
        names = [other for other in others if other != field.name]
        raise TypeError(
            f"{where} holds {name}, which tf.data of TensorFlow {tf.__version__} cannot carry{form}; "
            f"leave it out with fields={names}"
        )
    return dtype


@functools.cache
def _runs(dtype: Any, form: str) -> bool:
    """Whether a dataset of this dtype runs: TensorFlow 2.21 has float8 types at which its optimizer stops, and none of
    them can be unbatched or ragged.
    """
    value = np.zeros(1, dtype.as_numpy_dtype)

    @as_written
    def make(x: Any) -> Any:
        row = tf.ensure_shape(tf.numpy_function(lambda _: value, [x], dtype, stateful=False), [1])
        return tf.RaggedTensor.from_row_splits(row, [0, 1]) if form == _RAGGED else row

    made = tf.data.Dataset.range(1).map(make)
    try:
        next(iter(made.unbatch() if form == _SINGLE else made))
    except (tf.errors.OpError, TypeError):
        return False
    return True


def _checked_pad(value: Any, column: Column) -> Any:
    dtype = column.dtype.as_numpy_dtype
    try:
        if not isinstance(value, bool | int | float | complex | np.generic):
            raise TypeError(f"expected a number, found {type(value).__name__}")
        array = np.array([value], dtype) if column.field.dtype in PLAIN else np.array([value]).astype(dtype)
        return array[0]
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"pad_value: {value!r} does not fit field {column.name!r}, {column.field.dtype}: {error}"
        ) from error
