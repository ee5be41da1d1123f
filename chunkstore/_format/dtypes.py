"""The closed table of dtypes: the format's name <-> NumPy dtype (spec section 6.1).

bfloat16 and the float8 types are not part of NumPy. Where the package `ml_dtypes` can be imported they come as its
types, otherwise as void of the same width (`V2`, `V1`), which is also how `.npy` files hold them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from chunkstore._format.constants import MAX_INT

PLAIN: Final[dict[str, str]] = {
    "bool": "|b1",
    "int8": "|i1",
    "int16": "<i2",
    "int32": "<i4",
    "int64": "<i8",
    "uint8": "|u1",
    "uint16": "<u2",
    "uint32": "<u4",
    "uint64": "<u8",
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
    "complex64": "<c8",
    "complex128": "<c16",
}

EXTENDED: Final[dict[str, int]] = {
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
}
"""Types outside NumPy, with their nbytes."""

STRING: Final = "string"
MAX_WIDTH: Final = 2**29 - 1
_UNITS: Final = ("Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as")
_TIME: Final = re.compile(r"(datetime64|timedelta64)\[([1-9][0-9]{0,9})?(" + "|".join(_UNITS) + r")\]", re.ASCII)
_WIDE: Final = re.compile(r"(bytes|utf32)\[([1-9][0-9]{0,8})\]", re.ASCII)


def is_known(name: str) -> bool:
    """Whether `name` is a dtype of the format."""
    return name in PLAIN or name in EXTENDED or name == STRING or _valid_time(name) or _valid_width(name)


def _valid_time(name: str) -> bool:
    match = _TIME.fullmatch(name)
    return match is not None and (match[2] is None or 1 < int(match[2]) < 2**31)


def _valid_width(name: str) -> bool:
    match = _WIDE.fullmatch(name)
    return match is not None and int(match[2]) <= MAX_WIDTH


@functools.cache
def to_numpy(name: str) -> np.dtype[Any]:
    """NumPy dtype of a known name; little-endian. `string` is stored as `uint8`.

    Raises:
        ValueError: the name is not in the table.
    """
    if name in PLAIN:
        return np.dtype(PLAIN[name])
    if name in EXTENDED:
        return _extended_dtype(name)
    if name == STRING:
        return np.dtype("|u1")
    if _valid_time(name):
        return np.dtype("<" + name.replace("datetime64", "M8").replace("timedelta64", "m8"))
    if _valid_width(name):
        kind, width = name[:-1].split("[")
        return np.dtype(f"|S{width}" if kind == "bytes" else f"<U{width}")
    raise ValueError(f"unknown dtype {name!r}")


def _extended_dtype(name: str) -> np.dtype[Any]:
    try:
        import ml_dtypes
    except ImportError:
        return np.dtype(f"V{EXTENDED[name]}")
    extended: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return extended


def from_numpy(dtype: np.dtype[Any]) -> str | None:
    """The format's name of a NumPy dtype in any byte order, or None where the format has none.

    Void is None: the user says which extended type it is. So are objects, structured dtypes, `longdouble`, and time
    without a unit.
    """
    if dtype.names is not None or dtype.subdtype is not None:
        return None
    if dtype.name in PLAIN or dtype.name in EXTENDED:
        return dtype.name
    if dtype.kind in "Mm":
        name = dtype.name.replace("[1", "[") if re.search(r"\[1[a-zA-Z]", dtype.name) else dtype.name
        return name if _valid_time(name) else None
    if dtype.kind in "SU":
        width = dtype.itemsize // (4 if dtype.kind == "U" else 1)
        name = f"{'utf32' if dtype.kind == 'U' else 'bytes'}[{width}]"
        return name if _valid_width(name) else None
    return None


def parse(wanted: Any) -> str:
    """The format's name for what a user writes: a name of the table, or NumPy's (`<f4`, `U12`, `float`, `np.int8`).

    Raises:
        ValueError: neither the format nor NumPy knows it, or the format cannot store it.
    """
    if isinstance(wanted, str) and is_known(wanted):
        return wanted
    try:
        name = None if wanted is None else from_numpy(np.dtype(wanted))  # NumPy's dtype of None is float64
    except (TypeError, ValueError, SyntaxError):  # NumPy parses texts with commas as lists of fields
        name = None
    if name is None:
        known = ", ".join([*PLAIN, *EXTENDED, "datetime64[unit]", "timedelta64[unit]", "bytes[n]", "utf32[n]", STRING])
        raise ValueError(f"dtype {wanted!r} is not one that a container can hold; use one of {known}")
    return name


def element_nbytes(name: str) -> int:
    """Stored bytes of one element."""
    return EXTENDED[name] if name in EXTENDED else to_numpy(name).itemsize


def product_fits(name: str, dims: Iterable[int]) -> bool:
    """Whether the bytes of such an array stay within spec section 15, dimensions of 0 left out of the product."""
    total = element_nbytes(name)
    for dim in dims:
        total *= dim or 1
        if total > MAX_INT:
            return False
    return True
