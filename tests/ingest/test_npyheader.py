"""The header of `.npy` files: what is read, what is refused and in which words."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib import format as npy_format

from chunkstore._ingest.npy.descr import descr_to_dtype
from chunkstore._ingest.npy.npyheader import check_nbytes, parse_header
from chunkstore.errors import IngestError

SCALARS = [
    "|b1", "|i1", "<i2", ">i4", "<i8", "|u1", ">u2", "<u4", ">u8", "<f2", ">f4", "<f8", "<c8", ">c16",
    "|S1", "|S75", "<U6", ">U33", "|V2", "|V16",
    "<M8[D]", ">M8[25s]", "<m8[ns]", "<M8", "|O", "<f16", "<c32",
]  # fmt: skip


def header(text: str, version: int = 1) -> bytes:
    """Bytes of a header with this text, as it is."""
    raw = text.encode("utf-8" if version == 3 else "latin-1")
    width = 2 if version == 1 else 4
    return b"\x93NUMPY" + bytes([version, 0]) + len(raw).to_bytes(width, "little") + raw


def simple(descr: str = "'<f8'", shape: str = "(2,)", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


fields = st.lists(
    st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=6), min_size=1, max_size=4, unique=True
)
scalars = st.sampled_from([text for text in SCALARS if text != "|O"])
dtypes: st.SearchStrategy[Any] = st.recursive(
    scalars.map(np.dtype),
    lambda inner: st.tuples(fields, st.lists(inner, min_size=4, max_size=4), st.sampled_from([(), (2,), (2, 3)])).map(
        lambda parts: np.dtype([(name, kind, parts[2]) for name, kind in zip(parts[0], parts[1], strict=False)])
    ),
    max_leaves=5,
)


@given(
    dtypes,
    st.lists(st.integers(0, 2**40), max_size=5).map(tuple),
    st.booleans(),
    st.sampled_from([None, (2, 0), (3, 0)]),
)
def test_reads_what_numpy_writes(dtype: Any, shape: tuple[int, ...], fortran: bool, version: Any) -> None:
    """Every dtype, shape, order and version that NumPy writes is read back equal, and the data begin where NumPy begins
    them.
    """
    values = {"descr": npy_format.dtype_to_descr(dtype), "fortran_order": fortran, "shape": shape}
    file = io.BytesIO()
    try:
        _write(file, values, version)
    except (UnicodeEncodeError, ValueError):
        return
    found = parse_header(file.getvalue(), "x.npy")
    assert found.dtype == dtype
    assert (found.shape, found.fortran_order, found.data_offset) == (shape, fortran, len(file.getvalue()))


def _write(file: io.BytesIO, values: dict[str, Any], version: tuple[int, int] | None) -> None:
    if version == (3, 0):
        text = repr({**values}) + "\n"
        file.write(header(text, 3))
    elif version == (2, 0):
        npy_format.write_array_header_2_0(file, values)
    else:
        npy_format.write_array_header_1_0(file, values)


@pytest.mark.parametrize("text", SCALARS)
def test_scalar_dtypes(text: str) -> None:
    """Each `descr` of the table gives the dtype that NumPy gives."""
    assert descr_to_dtype(text) == np.dtype(text)
    assert descr_to_dtype(text).str == np.dtype(text).str


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        (simple(shape="(2L,)"), (2,)),
        (simple(shape="(65536 ,65536L ,)"), (65536, 65536)),
        ("{'shape': (), 'descr': u'<f8', 'fortran_order': False}\r   ", ()),
        (simple(descr='"<f8"', shape="(0, 5)"), (0, 5)),
    ],
)
def test_harmless_oddities_are_read(text: str, shape: tuple[int, ...]) -> None:
    """Python 2 integers and texts, other orders of the keys, double quotes, padding without a newline."""
    assert parse_header(header(text), "x.npy").shape == shape


def test_titles_padding_and_nesting() -> None:
    """Titles, the unnamed void that NumPy writes for alignment, and records in records keep names and offsets."""
    aligned = np.dtype([("a", "i1"), ("b", "<f8")], align=True)
    assert descr_to_dtype(npy_format.dtype_to_descr(aligned)).fields["b"][1] == 8
    nested = descr_to_dtype([(("long name", "a"), "<i4"), ("b", [("c", "<f4", (2, 3)), ("d", "|S3")])])
    assert nested["b"]["c"].shape == (2, 3)
    assert nested.fields["a"][2] == "long name"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "the file is empty"),
        (b"\x93NUMPY\x01", "truncated: the file ends inside its header"),
        (b"\x93NUMPY\x01\x00\x76", "truncated: the file ends inside its header"),
        (header(simple())[:40], "truncated: the header has"),
        (b"\x93NUMPY\x04\x00" + bytes(20), r"version 4\.0"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(20), "claims 2,147,483,647 bytes"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 80128\n",
            "Git LFS pointer.*80,128 bytes.*git lfs pull",
        ),
        (b"../../.git/annex/objects/xx", "git annex get"),
        (b"PK\x03\x04" + bytes(30), "zip archive"),
        (b"\x1f\x8b\x08" + bytes(30), "gzip"),
        (b"\x89HDF\r\n\x1a\n" + bytes(30), "HDF5"),
        (b"\x89CKS\r\n\x1a\n" + bytes(30), "a chunkstore container"),
        (b"<!DOCTYPE html><html>", "HTML page"),
        (b"\x80\x04\x95" + bytes(30), "pickle"),
        (bytes(30), "begins with zeros"),
        (header("{'descr': '<f8'}"), "expected the keys"),
        (header("[1, 2]"), "expected a dict"),
        (header(simple() + "x"), "text behind the header"),
        (header(simple(order="1")), "fortran_order must be True or False"),
        (header(simple(shape="(4)")), "shape must be a tuple"),
        (header(simple(shape="(-1,)")), "is not valid"),
        (header(simple(shape="(True,)")), "shape must be a tuple"),
        (header(simple(shape="(" + "9" * 40 + ",)")), "40 digits"),
        (header(simple(shape="(9223372036854775808,)")), "is not valid"),
        (header(simple(shape="(" + "1," * 65 + ")")), "is not valid"),
        (header(simple(descr="'<q9'")), "unknown dtype"),
        (header(simple(descr="'<f3'")), "unknown dtype"),
        (header(simple(descr="'f8,f8'")), "unknown dtype"),
        (header(simple(descr="__import__('os')")), "expected a value"),
        (header(simple(descr="'<U4294967297'")), "unknown dtype"),
        (header(simple(descr="[('a', '<f8'), ('a', '<f8')]")), "two fields are named 'a'"),
        (header(simple(descr="[]")), "0 fields"),
        (header(simple(descr="[('a', '<f8', (2147483647, 2))]")), "has more than"),
        (header("{'descr': '<f8', 'descr': '<f8', 'fortran_order': False, 'shape': ()}"), "stands twice"),
        (header("{'descr': " + "[" * 5000), "nested more than"),
        (header(simple(descr="'\\q'")), "unknown escape"),
        (header("{'descr': '<f8"), "does not end"),
        (header(simple().replace("}", "") + " "), "found the end"),
    ],
)
def test_refusals(data: bytes, text: str) -> None:
    """What is not a well-formed header is refused with the place and the reason."""
    with pytest.raises(IngestError, match=text) as caught:
        parse_header(data, "dir/x.npy")
    assert str(caught.value).startswith("dir/x.npy: ")


def test_length_is_exact() -> None:
    """Header and elements must fill the file exactly; products are not limited to 64 bits."""
    found = parse_header(header(simple(shape="(4, 2)")), "x.npy")
    check_nbytes(found, found.data_offset + 64, "x.npy")
    with pytest.raises(IngestError, match=r"x\.npy: truncated: shape \(4, 2\) of float64 needs"):
        check_nbytes(found, found.data_offset + 63, "x.npy")
    with pytest.raises(IngestError, match=r"x.npy: 1 trailing bytes"):
        check_nbytes(found, found.data_offset + 65, "x.npy")
    huge = parse_header(header(simple(shape=f"({2**62}, {2**62}, 16)")), "x.npy")
    with pytest.raises(IngestError, match=r"truncated: no data at all"):
        check_nbytes(huge, huge.data_offset, "x.npy")


@given(st.binary(max_size=200))
def test_random_bytes_raise_only_ingest_errors(tail: bytes) -> None:
    """Whatever the bytes, the parser returns a header or raises IngestError."""
    for data in (tail, b"\x93NUMPY\x01\x00" + tail, header(simple())[:10] + tail.ljust(70)):
        try:
            parse_header(data, "x")
        except IngestError:
            continue


@given(st.text("{}[]()',:\"\\ <>=f8iUVxL0123456789TrueFalsNondcpth_", max_size=80), st.integers(0, 60))
def test_random_literals_raise_only_ingest_errors(text: str, cut: int) -> None:
    """The same for headers that look nearly right."""
    whole = simple()
    try:
        parse_header(header(whole[:cut] + text + whole[cut:]), "x")
    except IngestError:
        return
