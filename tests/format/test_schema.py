"""Fields, dtypes, and the JSON of a container."""

from __future__ import annotations

import tracemalloc
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import strategies
from hypothesis import given

from chunkstore._format import dtypes
from chunkstore._format.schema import Field, decode_attrs, decode_schema, encode_attrs, encode_schema
from chunkstore.errors import CorruptError, FormatError, LimitError, SchemaError, UnsupportedFeatureError


@given(strategies.fields())
def test_a_schema_comes_back(of: list[Field]) -> None:
    """Any fields, through JSON."""
    assert decode_schema(encode_schema(of), len(of)) == tuple(of)


@pytest.mark.parametrize("name", strategies.DTYPES)
def test_numpy_dtypes_come_back(name: str) -> None:
    """From the format's name to NumPy's dtype, in both byte orders, and back."""
    dtype = dtypes.to_numpy(name)
    assert dtypes.from_numpy(dtype) == name
    assert dtypes.from_numpy(dtype.newbyteorder(">")) == name
    assert dtypes.element_nbytes(name) == dtype.itemsize


def test_what_users_write_for_a_dtype() -> None:
    """The format's names, and NumPy's."""
    assert [dtypes.parse(text) for text in ("float32", "<f4", ">f4", "f", "U5", "S3", "bfloat16", "M8[ns]", "?")] == [
        "float32", "float32", "float32", "float32", "utf32[5]", "bytes[3]", "bfloat16", "datetime64[ns]", "bool"
    ]  # fmt: skip
    for text in ("object", "longdouble", "V5", "M8", "nonsense", "bytes[0]"):
        with pytest.raises(ValueError, match="not one that a container can hold; use one of"):
            dtypes.parse(text)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("", "int8"), "at least one character"),
        (("a\nb", "int8"), "no control characters"),
        (("x" * 256, "int8"), "at most 255 bytes"),
        (("x", "float128"), "unknown dtype 'float128'"),
        (("x", "datetime64[1s]"), "unknown dtype"),
        (("x", "bytes[536870912]"), "unknown dtype"),
        (("x", "int8", (-1,)), "negative"),
        (("x", "int8", (2**63,)), "more than 2\\^63 - 1"),
        (("x", "int8", (1,) * 33), "33 dimensions"),
        (("x", "int8", (2**40, 0, 2**40)), "more than 2\\^63 - 1 bytes"),
        (("x", "string", (3,)), "a string field has the shape \\(\\)"),
    ],
)
def test_fields_that_cannot_be(arguments: Any, text: str) -> None:
    """Refused where they are made, by section 6."""
    with pytest.raises(SchemaError, match=text):
        Field(*arguments)


@pytest.mark.parametrize(
    ("schema", "error"),
    [
        ("[]", CorruptError),
        ("{}", CorruptError),
        ('{"fields":[]}', CorruptError),
        ('{"fields":[{}]}', CorruptError),
        ('{"fields":[{"name":"x","dtype":"int8","shape":[1.0],"codec":"raw"}]}', CorruptError),
        ('{"fields":[{"name":"x","dtype":"int8","shape":[true],"codec":"raw"}]}', CorruptError),
        ('{"fields":[{"name":"x","name":"x","dtype":"int8","shape":[],"codec":"raw"}]}', CorruptError),
        ('{"fields":[{"name":"x","dtype":"i1","shape":[],"codec":"raw"}]}', UnsupportedFeatureError),
        ('{"fields":[{"name":"x","dtype":"int8","shape":[9223372036854775808],"codec":"raw"}]}', LimitError),
        ('{"fields":[NaN]}', CorruptError),
        ('{"fields":[' + "0," * 65535 + "0]}", LimitError),
        ('{"fields":[1e999]}', CorruptError),
        ('{"fields":' + "[" * 5000 + "]" * 5000 + "}", LimitError),
        ('{"fields":' + "[" * 70 + "]" * 70 + "}", LimitError),
    ],
)
def test_schemas_that_are_refused(schema: str, error: type[FormatError]) -> None:
    """With the class that the specification names."""
    with pytest.raises(error, match="SCHEMA"):
        decode_schema(schema.encode(), 1)


@pytest.mark.parametrize("text", [b"\xff{}", b"\xef\xbb\xbf{}", b"{} x", b"", b'{"a":1,"a":2}', b"-Infinity"])
def test_json_that_is_refused(text: bytes) -> None:
    """Not UTF-8, a byte order mark, something behind, repeated names, infinities (section 2)."""
    with pytest.raises(CorruptError, match="ATTRS"):
        decode_attrs(text)


MOST = str(2**1024 - 2**970 - 1)  # rounds to the largest float64


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1.8e308", "1" + "0" * 309, "-" + str(2**1024), "9" * 5000])
def test_numbers_that_no_float64_holds_are_refused(number: str) -> None:
    """As text of the file and as what a user gives: nothing is read that could not be written again (section 2)."""
    with pytest.raises(CorruptError, match=r"ATTRS.*beyond a float64"):
        decode_attrs(f'{{"a":[{number}]}}'.encode())
    if "e" not in number and len(number) < 4000:
        with pytest.raises(SchemaError, match="beyond a float64"):
            encode_attrs({"a": int(number)})


@pytest.mark.parametrize("number", ["1e-999", "-0", "1.7976931348623157e308", MOST, "-" + MOST, "1" * 308])
def test_numbers_that_a_float64_holds_are_read_as_they_are(number: str) -> None:
    """Integers exactly, up to where a float64 ends."""
    wanted = float(number) if "e" in number else int(number)
    assert decode_attrs(f'{{"a":{number}}}'.encode()) == {"a": wanted}


@pytest.mark.parametrize("text", [b"x" * (4 << 20), b"\\n" * (2 << 20), b'"' * (4 << 20), b"]" * (4 << 20)])
def test_text_that_is_no_json_takes_no_memory(text: bytes) -> None:
    """It is looked through for brackets, and not kept as places to come back to."""
    tracemalloc.start()
    try:
        with pytest.raises(CorruptError, match="ATTRS"):
            decode_attrs(b'{"a":"' + text + b'"x')
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


TEXTS = st.text() | st.sampled_from(["\ud800", "a\udfff"])


@given(st.dictionaries(TEXTS, st.recursive(st.none() | st.booleans() | TEXTS, st.lists, max_leaves=5)))
def test_attrs_come_back(attrs: dict[str, Any]) -> None:
    """Any JSON object; half a surrogate pair as well, which has no UTF-8 and is written as its escape."""
    assert decode_attrs(encode_attrs(attrs)) == attrs


def test_fields_say_what_a_row_is() -> None:
    """The leading dimensions that vary, the item, and its size."""
    field = Field("x", "float32", (2, None, 3))
    assert (field.ragged, field.varying, field.item_shape, field.item_nbytes, field.row_nbytes) == (
        True, 2, (3,), 12, None
    )  # fmt: skip
    text = Field("t", "string")
    assert (text.ragged, text.varying, text.item_shape, text.item_nbytes) == (True, 1, (), 1)
    fixed = Field("y", "int64", (2, 3))
    assert (fixed.ragged, fixed.varying, fixed.row_nbytes) == (False, 0, 48)
    assert fixed.numpy_dtype == np.int64
