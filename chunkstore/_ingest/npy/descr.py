"""The closed table of what the `descr` of an `.npy` header may say -> `np.dtype`.

`np.dtype(text)` is not asked: it knows hundreds of spellings, commas and attributes among them.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

import numpy as np

from chunkstore._ingest.npy.literal import MAX_DEPTH, Literal

_LONG: Final = np.dtype(np.longdouble).itemsize
_COUNT: Final = "[1-9][0-9]{0,8}"
_SCALAR: Final = re.compile(
    rf"(?P<order>[<>|=]?)(?:(?P<object>O[0-9]{{0,10}})|(?P<text>[SaUV])(?P<width>[0-9]{{1,10}})"
    rf"|(?P<number>\?|b1|[iu][1248]|f(?:2|4|8|{_LONG})|c(?:8|16|{2 * _LONG}))"
    rf"|(?P<time>[Mm]8)(?P<unit>\[(?:{_COUNT})?(?:generic|Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)(?:/{_COUNT})?\])?)",
    re.ASCII,
)
_LONGDOUBLE: Final = re.compile(r"[<>|=]?[fc](10|12|16|20|24|32)", re.ASCII)  # of some machine
_CODES: Final = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
_NAMES: Final = {np.dtype(code).name: np.dtype(f"<{code}") for code in _CODES}
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
        return _NAMES[text]
    match = _SCALAR.fullmatch(text)
    if match is None and _LONGDOUBLE.fullmatch(text):
        raise ValueError(
            f"dtype {text!r}: a longdouble has {_LONG} bytes on this machine; convert the file where it was written"
        )
    if match is None or int(match["width"] or 0) * (4 if match["text"] == "U" else 1) > _MAX_NBYTES:
        raise ValueError(f"unknown dtype {text[:60]!r}")
    order = ">" if match["order"] == ">" else "<"
    if match["object"]:
        return np.dtype(object)
    if match["text"]:
        return _build(f"{order}{match['text'].replace('a', 'S')}{match['width']}")
    if match["time"]:
        return _build(order + match["time"] + (match["unit"] or "").replace("[generic]", ""))
    return _build(order + match["number"])


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
    kept: list[tuple[str, np.dtype[Any], int, str | None]] = []
    offset = 0
    for field in fields:
        name, title, dtype = _record_field(field, depth)
        if name or dtype.kind != "V" or dtype.names is not None:
            kept.append((name or f"f{len(kept)}", dtype, offset, title))
        offset += dtype.itemsize
    if not kept or offset > _MAX_NBYTES:
        raise ValueError(f"a structured dtype of {len(kept)} fields and {offset:,} bytes")
    names, formats, offsets, titles = map(list, zip(*kept, strict=True))
    if len(set(names)) != len(names):
        raise ValueError(f"two fields are named {next(n for n in names if names.count(n) > 1)!r}")
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
