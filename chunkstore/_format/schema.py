"""Fields and the JSON of a container: SCHEMA and ATTRS (spec section 6)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import index
from typing import Any, Final

import numpy as np

from chunkstore._format import codec, dtypes
from chunkstore._format.constants import (
    MAX_DIMENSIONS,
    MAX_FIELDS,
    MAX_INT,
    MAX_JSON_LEVELS,
    MAX_JSON_NBYTES,
    MAX_JSON_VALUES,
    MAX_NAME_NBYTES,
)
from chunkstore.errors import CorruptError, FormatError, LimitError, SchemaError, UnsupportedFeatureError

_NAME: Final = re.compile("[^\x00-\x1f\x7f\ud800-\udfff]+")


@dataclass(frozen=True)
class Field:
    """A named array of every sample: one dtype, one shape, one codec.

    Attributes:
        name: unique in the container, 1 to 255 bytes of UTF-8 without control characters.
        dtype: the format's own name, such as `"uint8"`, `"bfloat16"`, `"datetime64[ns]"`, `"utf32[6]"`, `"string"`.
        shape: shape of one row; `None` where a dimension differs from row to row.
        codec: how chunks are stored; `"raw"` is as they are in memory.

    Raises:
        SchemaError: a value that the format cannot hold.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] = ()
    codec: str = "raw"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise SchemaError(f"the name of a field is a text, not {self.name!r}")
        object.__setattr__(self, "shape", tuple(None if dim is None else index(dim) for dim in self.shape))
        try:
            _check_field(self)
        except FormatError as error:
            raise SchemaError(str(error)) from None

    @cached_property
    def numpy_dtype(self) -> np.dtype[Any]:
        """Dtype of the arrays that come out; `uint8` for `"string"`."""
        return dtypes.to_numpy(self.dtype)

    @cached_property
    def is_string(self) -> bool:
        """Whether a row is one UTF-8 text."""
        return self.dtype == dtypes.STRING

    @cached_property
    def ragged(self) -> bool:
        """Whether rows differ in size."""
        return self.varying > 0

    @cached_property
    def varying(self) -> int:
        """Number of leading dimensions up to the last that varies (`v` of spec section 8.2)."""
        if self.is_string:
            return 1
        return max((place + 1 for place, dim in enumerate(self.shape) if dim is None), default=0)

    @cached_property
    def item_shape(self) -> tuple[int, ...]:
        """The dimensions behind the last that varies."""
        return () if self.is_string else tuple(int(dim) for dim in self.shape[self.varying :] if dim is not None)

    @cached_property
    def item_nbytes(self) -> int:
        """Bytes of one item; of a whole row where the field is not ragged."""
        return dtypes.element_nbytes(self.dtype) * math.prod(self.item_shape)

    @property
    def row_nbytes(self) -> int | None:
        """Bytes of a row, or None where they differ."""
        return None if self.ragged else self.item_nbytes


def _check_field(field: Field) -> None:
    """What spec section 6 asks of a field."""
    name, shape = field.name, field.shape
    dims = [dim for dim in shape if dim is not None]
    if len(name.encode("utf-8", "replace")) > MAX_NAME_NBYTES:
        raise LimitError(f"the name of a field has at most {MAX_NAME_NBYTES} bytes, not {name[:40]!r}...")
    if not _NAME.fullmatch(name):
        raise CorruptError(f"the name of a field has at least one character and no control characters: {name!r}")
    if not dtypes.is_known(field.dtype):
        raise UnsupportedFeatureError(f"field {name!r}: unknown dtype {field.dtype[:40]!r}")
    if len(shape) > MAX_DIMENSIONS:
        raise LimitError(f"field {name!r}: {len(shape)} dimensions, at most {MAX_DIMENSIONS}")
    if max(dims, default=0) > MAX_INT:
        raise LimitError(f"field {name!r}: a dimension of its shape is more than 2^63 - 1")
    if min(dims, default=0) < 0:
        raise CorruptError(f"field {name!r}: a dimension of the shape {shape} is negative")
    if field.is_string and shape != ():
        raise CorruptError(f"field {name!r}: a string field has the shape (), not {shape}")
    if not dtypes.product_fits(field.dtype, dims):
        raise LimitError(f"field {name!r}: a row of shape {shape} has more than 2^63 - 1 bytes")


def check_fields(fields: Sequence[Field]) -> None:
    """Raise SchemaError unless the fields can make a schema together."""
    if not 1 <= len(fields) <= MAX_FIELDS:
        raise SchemaError(f"a container has 1 to {MAX_FIELDS} fields, not {len(fields)}")
    seen: set[str] = set()
    for field in fields:
        if field.name in seen:
            raise SchemaError(f"two fields are named {field.name!r}")
        seen.add(field.name)


def encode_schema(fields: Sequence[Field]) -> bytes:
    """SCHEMA in the one spelling that our writer uses."""
    check_fields(fields)
    items = [{"name": f.name, "dtype": f.dtype, "shape": list(f.shape), "codec": f.codec} for f in fields]
    return _dump({"fields": items}, "SCHEMA")


def encode_attrs(attrs: Mapping[str, Any]) -> bytes:
    """ATTRS.

    Raises:
        SchemaError: not JSON (say NaN, bytes, a name that is no text), or more than the limits of section 15.
    """
    return _dump(dict(attrs), "attrs")


def _dump(value: dict[str, Any], what: str) -> bytes:
    try:
        written = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text = written.encode("utf-8", "backslashreplace")  # half a surrogate pair is written as its escape
        if len(text) > MAX_JSON_NBYTES:
            raise ValueError(f"{len(text):,} bytes, at most {MAX_JSON_NBYTES:,}")
        _check_names(value)
        _load(text, what)
    except (TypeError, ValueError, RecursionError) as error:
        raise SchemaError(f"{what} cannot be written as JSON: {error}") from None
    return text


def _check_names(value: object) -> None:
    """Refuse names of members that `json` would make texts: they would come back as something else."""
    level = [value]
    while level:
        wrong = [name for item in level if isinstance(item, dict) for name in item if not isinstance(name, str)]
        if wrong:
            raise TypeError(f"a name is a text, found {wrong[0]!r:.40} ({type(wrong[0]).__name__})")
        level = _inner(level)


def decode_schema(text: bytes, num_fields: int) -> tuple[Field, ...]:
    """Fields of SCHEMA.

    Raises:
        CorruptError, LimitError, UnsupportedFeatureError: see spec section 6.
    """
    items = _load(text, "SCHEMA").get("fields")
    if isinstance(items, list) and len(items) > MAX_FIELDS:
        raise LimitError(f"SCHEMA: {len(items)} fields, at most {MAX_FIELDS}")
    if not isinstance(items, list) or len(items) != num_fields:
        found = len(items) if isinstance(items, list) else type(items).__name__
        raise CorruptError(f"SCHEMA: expected an array of {num_fields} fields, found {found}")
    fields = tuple(_decode_field(item) for item in items)
    try:
        check_fields(fields)
    except SchemaError as error:
        raise CorruptError(f"SCHEMA: {error}") from None
    return fields


def _decode_field(item: object) -> Field:
    if not isinstance(item, dict):
        raise CorruptError(f"SCHEMA: a field is a JSON object, found {type(item).__name__}")
    name, dtype, shape, codec_name = (item.get(member) for member in ("name", "dtype", "shape", "codec"))
    if not isinstance(name, str) or not isinstance(dtype, str) or not isinstance(codec_name, str):
        raise CorruptError("SCHEMA: name, dtype and codec of a field must be texts")
    if not isinstance(shape, list) or any(type(dim) is not int and dim is not None for dim in shape):
        raise CorruptError(f"SCHEMA: the shape of field {name[:40]!r} must be an array of integers and nulls")
    field = object.__new__(Field)
    field.__dict__.update(name=name, dtype=dtype, shape=tuple(shape), codec=codec_name)
    try:
        _check_field(field)
    except FormatError as error:
        raise type(error)(f"SCHEMA: {error}") from None
    return field


def decode_attrs(text: bytes) -> dict[str, Any]:
    """ATTRS as a fresh dict.

    Raises:
        CorruptError: not a JSON object as spec section 2 has it.
    """
    return _load(text, "ATTRS")


def _load(text: bytes, what: str) -> dict[str, Any]:
    # One of these stands before each value but the first: `[],[],` has 20 times its bytes as objects.
    if (num_values := sum(map(text.count, (b",", b"[", b"{")))) > MAX_JSON_VALUES:
        raise LimitError(f"{what}: JSON with {num_values:,} commas and opening brackets, at most {MAX_JSON_VALUES:,}")
    try:
        value = _DECODER.decode(text.decode("utf-8"))
        if num_values > MAX_JSON_LEVELS:  # each level has its bracket
            _check_levels(value, what)
    except RecursionError:
        raise LimitError(f"{what}: JSON of more than {MAX_JSON_LEVELS} nested levels") from None
    except (ValueError, UnicodeDecodeError) as error:
        if isinstance(error, FormatError):
            raise
        if _most_levels(text) > MAX_JSON_LEVELS:
            raise LimitError(f"{what}: JSON of more than {MAX_JSON_LEVELS} nested levels") from None
        raise CorruptError(f"{what}: not the JSON that is expected: {error}") from None
    if not isinstance(value, dict):
        raise CorruptError(f"{what}: expected a JSON object, found {type(value).__name__}")
    return value


def _check_levels(value: object, what: str) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_JSON_LEVELS):
        level = _inner(level)
        if not level:
            return
    if any(isinstance(item, dict | list) for item in level):
        raise LimitError(f"{what}: JSON of more than {MAX_JSON_LEVELS} nested levels")


def _inner(level: list[Any]) -> list[Any]:
    """What the objects and arrays among some values hold."""
    parts = (
        item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list | tuple)
    )
    return [value for part in parts for value in part]


def _most_levels(text: bytes) -> int:
    """How deep the brackets outside of strings go, also where the rest is no JSON."""
    level = most = 0
    for run in _STRINGS_AND_BRACKETS.finditer(text):
        first = text[run.start()]
        if first != ord('"'):
            level += (run.end() - run.start()) * (1 if first in b"[{" else -1)
            most = max(most, level)
    return most


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return result


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _integer(text: str) -> int:
    if len(text) > _SHORT:
        _number(text)
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]} is beyond a float64, which ends at 1.8e308")
    return value


# Possessive: otherwise a string of 16 MiB takes two GiB of places to come back to.
_STRINGS_AND_BRACKETS: Final = re.compile(rb'(?:"(?:[^"\\]++|\\.)*+"?+)++|[\[{]++|[\]}]++', re.DOTALL)
_SHORT: Final = 308  # digits of an integer that a float64 is near, whatever they are
_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_number, parse_int=_integer
)


def known_codec(field: Field) -> bool:
    """Whether this release can decode the field."""
    return field.codec in codec.CODECS
