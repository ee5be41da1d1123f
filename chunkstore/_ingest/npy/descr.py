"""The closed table of what the `descr` of an `.npy` header may say -> `np.dtype`.

`np.dtype(text)` is not asked: it knows hundreds of spellings, commas and attributes among them.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

import numpy as np

from chunkstore._ingest.npy.literal import MAX_DEPTH, Literal

_SCALAR: Final = re.compile(
    r"(?P<order>[<>|=]?)(?P<kind>[?bhiufcSaUVOMm])(?P<size>[0-9]{0,10})(?:\[(?P<unit>[^]]{1,24})\])?", re.ASCII
)
_UNIT: Final = re.compile(
    r"([1-9][0-9]{0,8})?(?:generic|Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)(?:/[1-9][0-9]{0,8})?", re.ASCII
)
_LONG: Final = np.dtype(np.longdouble).itemsize
_SIZES: Final[dict[str, tuple[int, ...]]] = {
    "b": (1,),
    "i": (1, 2, 4, 8),
    "u": (1, 2, 4, 8),
    "f": (2, 4, 8, _LONG),
    "c": (8, 16, 2 * _LONG),
}
_NAMES: Final = frozenset(
    f"{kind}{bits}"
    for kind, widths in {
        "int": (8, 16, 32, 64),
        "uint": (8, 16, 32, 64),
        "float": (16, 32, 64),
        "complex": (64, 128),
    }.items()
    for bits in widths
) | {"bool"}
_MAX_NBYTES: Final = 2**31 - 1


def descr_to_dtype(descr: Literal, depth: int = 0) -> np.dtype[Any]:
    """Dtype of a `descr`: text, list of fields, or `(descr, shape)`.

    Raises:
        ValueError: not in the table.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"descr is nested more than {MAX_DEPTH} deep")
    if isinstance(descr, str):
        return _scalar(descr)
    if isinstance(descr, list):
        return _record(descr, depth)
    if isinstance(descr, tuple) and len(descr) == 2:
        return _subarray(descr_to_dtype(descr[0], depth + 1), descr[1])
    raise ValueError(f"descr {str(descr)[:60]!r} is neither a dtype nor a list of fields")


def _scalar(text: str) -> np.dtype[Any]:
    if text in _NAMES:
        return _build("<" + np.dtype(text).str[1:])
    match = _SCALAR.fullmatch(text)
    if match is None:
        raise ValueError(f"unknown dtype {text[:60]!r}")
    order, kind = match["order"], match["kind"]
    size = int(match["size"] or 0)
    if kind in "Mm":
        return _time(order, kind, match["size"], match["unit"], text)
    if match["unit"] is not None or (kind != "?" and kind != "O" and not match["size"]):
        raise ValueError(f"unknown dtype {text[:60]!r}")
    if kind == "O":
        return np.dtype(object)
    if kind == "?":
        return np.dtype(bool)
    if kind in _SIZES:
        return _number(order, kind, size, text)
    if kind not in "SaUV" or size * (4 if kind == "U" else 1) > _MAX_NBYTES:
        raise ValueError(f"unknown dtype {text[:60]!r}")
    return np.dtype(f"{'>' if order == '>' else '<'}{'S' if kind == 'a' else kind}{size}")


def _number(order: str, kind: str, size: int, text: str) -> np.dtype[Any]:
    if size in _SIZES[kind]:
        return np.dtype(f"{'>' if order == '>' else '<'}{kind}{size}")
    if kind in "fc" and size in (10, 12, 16, 20, 24, 32):
        raise ValueError(
            f"dtype {text!r}: a longdouble has {_LONG} bytes on this machine; convert the file where it was written"
        )
    raise ValueError(f"unknown dtype {text[:60]!r}")


def _time(order: str, kind: str, size: str, unit: str | None, text: str) -> np.dtype[Any]:
    if size != "8" or (unit is not None and not _UNIT.fullmatch(unit)):
        raise ValueError(f"unknown dtype {text[:60]!r}")
    suffix = "" if unit is None or unit == "generic" else f"[{unit}]"
    return _build(f"{'>' if order == '>' else '<'}{kind}8{suffix}")


def _build(spec: Any) -> np.dtype[Any]:
    """`np.dtype` of what was checked; what it still refuses (sizes beyond C int, doubled names) is a ValueError."""
    try:
        built: np.dtype[Any] = np.dtype(spec)
        return built
    except (TypeError, ValueError, OverflowError, MemoryError) as error:
        raise ValueError(f"NumPy refuses the dtype: {str(error)[:120]}") from None


def _subarray(base: np.dtype[Any], shape: Literal) -> np.dtype[Any]:
    dims = (shape,) if isinstance(shape, int) and not isinstance(shape, bool) else shape
    if not isinstance(dims, tuple) or not all(type(dim) is int and dim >= 0 for dim in dims) or len(dims) > 32:
        raise ValueError(f"the shape of a field is not valid: {str(shape)[:60]}")
    checked: tuple[int, ...] = tuple(int(dim) for dim in dims)  # type: ignore[arg-type]
    if base.itemsize * math.prod(checked) > _MAX_NBYTES or max(checked, default=0) > _MAX_NBYTES:
        raise ValueError(f"a field of shape {str(shape)[:60]} has more than {_MAX_NBYTES:,} bytes")
    return _build((base, checked)) if checked else base


def _record(fields: list[Literal], depth: int) -> np.dtype[Any]:
    """Structured dtype; a field without a name and of type void is padding, as NumPy writes aligned dtypes."""
    names: list[Any] = []
    formats: list[np.dtype[Any]] = []
    offsets: list[int] = []
    titles: list[str | None] = []
    offset = 0
    for field in fields:
        name, title, dtype = _record_field(field, depth)
        if name or dtype.kind != "V" or dtype.names is not None:
            names.append(name or f"f{len(names)}")
            titles.append(title)
            formats.append(dtype)
            offsets.append(offset)
        offset += dtype.itemsize
    if len(set(names)) != len(names):
        raise ValueError(f"two fields are named {next(n for n in names if names.count(n) > 1)!r}")
    if not names or offset > _MAX_NBYTES:
        raise ValueError(f"a structured dtype of {len(names)} fields and {offset:,} bytes")
    spec: dict[str, Any] = {"names": names, "formats": formats, "offsets": offsets, "itemsize": offset}
    if any(title is not None for title in titles):
        spec["titles"] = titles
    return _build(spec)


def _record_field(field: Literal, depth: int) -> tuple[str, str | None, np.dtype[Any]]:
    if not isinstance(field, tuple) or len(field) not in (2, 3):
        raise ValueError(
            f"a field of a structured dtype is (name, dtype) or (name, dtype, shape), not {str(field)[:60]}"
        )
    name, title = field[0], None
    if isinstance(name, tuple) and len(name) == 2:
        title, name = name[0], name[1]
    if not isinstance(name, str) or not (title is None or isinstance(title, str)):
        raise ValueError(f"a field name that is no text: {str(field[0])[:60]}")
    dtype = descr_to_dtype(field[1], depth + 1)
    return name, title, _subarray(dtype, field[2]) if len(field) == 3 else dtype
