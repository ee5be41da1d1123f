"""Rows of the shard that is being filled, and what a value must be to become a row.

A value is taken as it is or refused: the writer never changes numbers. It only brings them to little-endian C order,
fills shorter fixed-width texts, and turns Python numbers into the dtype of the field where that is exact.
"""

from __future__ import annotations

from array import array as packed
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from chunkstore._format import dtypes
from chunkstore._format.schema import Field, check_fields
from chunkstore._storage.buffers import byte_view
from chunkstore._write.index_writer import Keys
from chunkstore._write.shards import Rows
from chunkstore.errors import SchemaError

_UNEVEN: Final = "the parts of this list differ in length; rows that do belong in a field with None in its shape"
type_array = NDArray[Any]
type_fields = Sequence[Field] | Mapping[str, "Field | str | tuple[str, tuple[int | None, ...]]"]


def as_fields(fields: type_fields) -> tuple[Field, ...]:
    """What the user gives as `fields`, as fields.

    Raises:
        SchemaError: they cannot be fields of a container.
    """
    if isinstance(fields, Mapping):
        known = tuple(_as_field(name, value) for name, value in fields.items())
    else:
        given: tuple[Any, ...] = tuple(fields)
        wrong = [type(field).__name__ for field in given if not isinstance(field, Field)]
        if wrong:
            raise SchemaError(f"fields: expected Field(...) objects or a mapping, found {wrong[0]}")
        known = given
    check_fields(known)
    return known


def _as_field(name: str, value: Any) -> Field:
    if isinstance(value, Field):
        if value.name != name:
            raise SchemaError(f"fields: {name!r} is given the field {value.name!r}")
        return value
    try:
        dtype, shape = value if isinstance(value, tuple) else (value, ())
        return Field(name, dtypes.parse(dtype), tuple(shape))
    except SchemaError:
        raise
    except ValueError as error:
        raise SchemaError(f"field {name!r}: {error}") from None
    except TypeError:
        raise SchemaError(
            f"field {name!r}: expected a dtype, a Field, or (dtype, shape) as ('float32', (None, 80)), found {value!r}"
        ) from None


def infer_field(name: str, value: object) -> Field:
    """The field that a first value calls for: its dtype and its shape, fixed.

    Raises:
        SchemaError: the container has no such dtype.
    """
    if isinstance(value, str):
        return Field(name, dtypes.STRING)
    try:
        array = np.asarray(value)
    except ValueError:
        raise SchemaError(f"field {name!r}: {_UNEVEN}") from None
    dtype = dtypes.from_numpy(array.dtype)
    if dtype is None:
        raise SchemaError(f"field {name!r}: {_refusal(array)}")
    return Field(name, dtype, array.shape)


def _refusal(array: type_array) -> str:
    if array.dtype == object and array.shape == ():
        return f"{array.item()!r:.60} ({type(array.item()).__name__}) is no array, no number of 64 bits and no text"
    if array.dtype == object:
        return (
            "an object array cannot be stored; give rows of one dtype (rows of different length: "
            "one array per sample, and a field with None in its shape)"
        )
    if array.dtype.names is not None:
        return f"a structured array cannot be stored; give each of {array.dtype.names} as a field"
    if array.dtype.kind == "V":
        return f"{array.dtype} does not say what it is; give fields=[Field(name, 'bfloat16', shape)] or the like"
    return f"a container cannot hold the dtype {array.dtype}; cast it"


def as_rows(field: Field, value: object, varying: int, where: str) -> type_array:
    """A value as an array of the field's dtype, little-endian and in C order; a copy only where needed.

    Args:
        field: what it must fit.
        value: array, number, text or nested list.
        varying: leading axes that are not compared with the shape (0 for one row, 1 for a batch of rows).
        where: for the message.
    Raises:
        SchemaError: another dtype or shape.
    """
    wanted = field.numpy_dtype
    array = value if isinstance(value, np.ndarray) else _from_python(field, value, where)
    if type(array) is not np.ndarray and np.ma.is_masked(array):
        raise SchemaError(f"{where}, field {field.name!r}: a container has no masks; give it .filled(...)")
    if array.dtype != wanted:
        array = _convert(field, array, where)
    shape = array.shape[varying:]
    if len(shape) != len(field.shape) or any(
        dim is not None and dim != n for dim, n in zip(field.shape, shape, strict=True)
    ):
        text = f"{where}, field {field.name!r}: expected the shape {field.shape}, found {shape}"
        if len(shape) == len(field.shape):
            varies = tuple(dim if dim == n else None for dim, n in zip(field.shape, shape, strict=True))
            text += f". Where rows differ in size, say so: fields={{{field.name!r}: {(field.dtype, varies)}, ...}}"
        raise SchemaError(text)
    return np.ascontiguousarray(array, wanted).reshape(array.shape)


def _from_python(field: Field, value: object, where: str) -> type_array:
    """Python numbers and lists: to the field's dtype where every value stays equal."""
    if hasattr(value, "__array__") or isinstance(value, np.generic):
        return np.asarray(value)
    try:
        found = np.asarray(value)
    except ValueError:
        raise SchemaError(f"{where}, field {field.name!r}: {_UNEVEN}") from None
    wanted = field.numpy_dtype
    if found.dtype == wanted or found.dtype.kind not in "biufcO" or wanted.kind not in "biufc":
        return found
    if found.dtype.kind == "c" and wanted.kind != "c":
        raise SchemaError(f"{where}, field {field.name!r}: {value!r:.60} is complex, the field is {field.dtype}")
    with np.errstate(all="ignore"):
        try:
            array = found.astype(wanted)
        except (OverflowError, TypeError, ValueError):
            return found  # integers beyond 64 bits and other objects: refused for their dtype
    if not _is_exact(found, array):
        raise SchemaError(f"{where}, field {field.name!r}: {value!r:.60} is not exact as {field.dtype}")
    return array


def _is_exact(found: type_array, array: type_array) -> bool:
    """Whether a cast kept the numbers.

    A Python float is meant as a number, not as 53 bits: it may be rounded to a narrower float, but not to infinity.
    """
    if found.dtype.kind in "fc" and array.dtype.kind in "fc":
        return bool(np.all(np.isfinite(array) | ~np.isfinite(found)))
    # As Python numbers, which compare integers with floats exactly; NaN is equal to nothing.
    return bool(np.all(found.astype(object) == array.astype(object)))


def _convert(field: Field, array: type_array, where: str) -> type_array:
    """Another spelling of the same values: byte order, narrower fixed width, void for an extended type."""
    wanted = field.numpy_dtype
    if array.dtype.newbyteorder("<") == wanted:
        return array.astype(wanted)
    if array.dtype.kind == wanted.kind and wanted.kind in "SU" and array.dtype.itemsize <= wanted.itemsize:
        return array.astype(wanted)
    if field.dtype in dtypes.EXTENDED and array.dtype == np.dtype(f"V{wanted.itemsize}"):
        return array.view(wanted)
    if array.size == 0 and array.dtype == np.float64:  # what NumPy makes of an empty list
        return array.astype(wanted)
    found = dtypes.from_numpy(array.dtype)
    detail = _refusal(array) if found is None else f"expected {field.dtype}, found {found}; cast it with .astype()"
    if array.dtype.kind == wanted.kind and wanted.kind in "SU":
        detail = f"{found} does not fit into {field.dtype}; give fields= with the longest"
    raise SchemaError(f"{where}, field {field.name!r}: {detail}")


class FixedStage:
    """Rows of a fixed shape, in one of two arrays that take turns: one is filled while the other is written."""

    def __init__(self, field: Field, most: int) -> None:
        """Take no memory yet; `most` rows will be asked for."""
        self.field = field
        self.shape = cast("tuple[int, ...]", field.shape)
        self.scalars = _exact_scalars(field.numpy_dtype) if field.shape == () else frozenset()
        try:
            self.rows = self._other = np.empty((0 if field.item_nbytes else most, *self.shape), field.numpy_dtype)
        except ValueError as error:  # NumPy does not leave dimensions of 0 out when it looks for an overflow
            raise SchemaError(f"field {field.name!r}: NumPy cannot hold rows of shape {self.shape}: {error}") from None

    def make_room(self, capacity: int, count: int) -> None:
        """Memory for `capacity` rows; the first `count` stay."""
        if len(self.rows) < capacity:
            rows = np.empty((capacity, *self.shape), self.rows.dtype)
            rows[:count] = self.rows[:count]
            self.rows = rows

    def put(self, place: int, value: object, where: str) -> int:
        """Take one row; 0, for what the rows have is known beforehand."""
        self.rows[place] = as_rows(self.field, value, 0, where)
        return 0

    def take(self, count: int) -> Rows:
        """The first `count` rows; the next ones go elsewhere, until the next `take`."""
        taken = self.rows[:count]
        self.rows, self._other = self._other, self.rows
        return fixed_rows(self.field, taken)

    def drop(self, count: int) -> None:
        """Forget what comes from row `count` on: the next row goes there."""


def _exact_scalars(dtype: np.dtype[Any]) -> frozenset[type]:
    """Types whose values NumPy stores in this dtype as they are, or refuses with an OverflowError."""
    python = {"b": bool, "i": int, "u": int, "f": float, "c": complex}.get(dtype.kind)
    if python is None:  # texts may be cut, times have units
        return frozenset()
    wide = dtype.kind not in "fc" or dtype in (np.dtype("<f8"), np.dtype("<c16"))  # others round Python's numbers
    return frozenset((dtype.type, python)) if wide else frozenset((dtype.type,))


def fixed_rows(field: Field, rows: type_array) -> Rows:
    """Rows of a fixed shape as they are in memory."""
    return Rows(byte_view(rows), np.arange(1, len(rows) + 1, dtype=np.int64) * field.item_nbytes)


class RaggedStage:
    """Rows that differ in size, back to back; no Python object for a row."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self._begin()

    def _begin(self) -> None:
        self._bytes = bytearray()
        self._ends = packed("q")
        self._dims = packed("q")  # the first `varying` dimensions of each row; none for texts

    def put(self, place: int, value: object, where: str) -> int:
        """Take one row; its nbytes."""
        if self.field.is_string:
            data: bytes | memoryview = encode_text(self.field, value, where)
        else:
            row = as_rows(self.field, value, 0, where)
            data = byte_view(row)
            self._dims.extend(row.shape[: self.field.varying])
        self._bytes += data
        self._ends.append(len(self._bytes))
        return len(data)

    def take(self, count: int) -> Rows:
        """The first `count` rows, which are all; the next ones are collected anew."""
        self.drop(count)
        ends = np.frombuffer(self._ends, np.int64)
        leading = np.frombuffer(self._dims, np.int64).reshape(count, -1)
        counts = np.diff(ends, prepend=0) if self.field.is_string else leading.prod(axis=1)
        taken = Rows(memoryview(self._bytes), ends, counts, leading if self.field.varying > 1 else None)
        self._begin()
        return taken

    def drop(self, count: int) -> None:
        """Forget what comes from row `count` on."""
        del self._ends[count:]
        del self._dims[count * self.field.varying :]
        del self._bytes[self._ends[-1] if self._ends else 0 :]


class KeyStage:
    """Keys of the shard that is being filled.

    Attributes:
        texts: the last of them, each as `encode_key` gave it; whoever adds to it calls `pack` now and then.
    """

    def __init__(self) -> None:
        self.texts: list[bytes] = []
        self._packed: list[Keys] = []

    def pack(self) -> None:
        """Put `texts` together: an object for each is quick, and four times as much memory."""
        self._packed.append(Keys.packed(self.texts))
        self.texts.clear()

    def put(self, texts: Sequence[bytes]) -> None:
        """Take many, each as `encode_key` gave it."""
        if self.texts:
            self.pack()
        self._packed.append(Keys.packed(texts))

    def take(self) -> Keys:
        """All of them; the next ones are collected anew."""
        self.pack()
        taken = Keys.joined(self._packed)
        self._packed = []
        return taken

    def drop(self, count: int) -> None:
        """Forget what comes from key `count` on: of what is packed whole parts, and all `texts` that are packed."""
        while (num_packed := sum(map(len, self._packed))) > count:
            self._packed.pop()
        del self.texts[count - num_packed :]


def encode_text(field: Field, value: object, where: str) -> bytes:
    if isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "UT":
        value = value.item()
    if not isinstance(value, str):
        raise SchemaError(f"{where}, field {field.name!r}: expected a text (str), found {type(value).__name__}")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise SchemaError(f"{where}, field {field.name!r}: {error}") from None


Stage = FixedStage | RaggedStage
type_slot = tuple[str, Any, Any, Any, "frozenset[type]", Stage]


def slot_of(stage: Stage) -> type_slot:
    """What `add` looks at for each field: name, staged rows, their dtype and shape, types of scalars that they take
    exactly or with an OverflowError; only the stage where rows vary.
    """
    if isinstance(stage, FixedStage):
        return stage.field.name, stage.rows, stage.rows.dtype, stage.shape, stage.scalars, stage
    return stage.field.name, None, None, None, frozenset(), stage


def batch_rows(field: Field, value: object, where: str) -> type_array | Sequence[object]:
    """The rows of a batch: one array for a fixed shape, otherwise a sequence of rows.

    Raises:
        SchemaError: it does not fit the field.
    """
    if not field.ragged:
        return as_rows(field, value, 1, where)
    if isinstance(value, np.ndarray) and field.is_string:
        return cast("Sequence[object]", value.tolist())
    if hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, str | bytes | Mapping):
        # In their order: what stands in brackets may be a label, as for a column of pandas.
        return list(value) if isinstance(value, Iterable) else cast("Sequence[object]", value)
    raise SchemaError(f"{where}, field {field.name!r}: expected a sequence of rows, found {type(value).__name__}")


def rows_one_by_one(field: Field, column: Any, size: int) -> Sequence[Any]:
    """A batch of one field as rows of which each was checked.

    Raises:
        SchemaError: a row does not fit the field.
    """
    if not field.is_string:
        return [as_rows(field, column[place], 0, f"add_batch, row {place}") for place in range(size)]
    for place in range(size):
        encode_text(field, column[place], f"add_batch, row {place}")
    return cast("Sequence[Any]", column)


def batch_length(batch: Mapping[str, Any], keys: Sequence[str] | None) -> int:
    """Number of samples of a batch.

    Raises:
        SchemaError: its parts differ in length, or one has no first axis.
    """
    if not isinstance(batch, Mapping):
        raise TypeError(f"a batch is a mapping, {{field name: rows}}, found {type(batch).__name__}")
    if isinstance(keys, str):
        raise TypeError(f"keys: expected a sequence of keys, found one text {keys!r:.40}")
    lengths: dict[str, int] = {}
    count: Callable[[Any], int] = len
    for name, value in [*batch.items(), *([("keys", keys)] if keys is not None else [])]:
        try:
            lengths[name] = count(value)
        except TypeError:
            raise SchemaError(f"add_batch: {name!r} has no first axis; give one row per sample") from None
    if len(set(lengths.values())) > 1:
        raise SchemaError(f"add_batch: lengths differ: {lengths}")
    return next(iter(lengths.values()), 0)
