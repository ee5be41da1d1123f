"""One sample for the eye: facts about its rows, and files of them."""

from __future__ import annotations

import errno
import io
import os
import zipfile
from collections.abc import Mapping
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray

from chunkstore._cli.output import nbytes_text, one_line, shape_text
from chunkstore._cli.png import encode_png
from chunkstore._format.schema import Field
from chunkstore._storage.replace import is_container

_FIRST: Final = 8
_SUFFIXES: Final = (".npy", ".npz", ".png")


def row_facts(row: Any, field: Field) -> dict[str, Any]:
    """dtype, shape, nbytes, range and first values of one row, ready for JSON."""
    if isinstance(row, str):
        return {"dtype": field.dtype, "nbytes": len(row.encode("utf-8", "surrogatepass")), "text": row}
    facts: dict[str, Any] = {"dtype": field.dtype, "shape": list(row.shape), "nbytes": row.nbytes}
    numbers = _numbers(row)
    if numbers is not None and numbers.size:
        facts |= {
            "min": float(numbers.min()),
            "max": float(numbers.max()),
            "mean": float(numbers.mean(dtype=np.float64)),
        }
    return {**facts, "first": [_json_value(value) for value in row.reshape(-1)[:_FIRST]]}


def _numbers(row: NDArray[Any]) -> NDArray[Any] | None:
    """The row as something that has an order and a mean, or None."""
    if row.dtype.kind in "biu":
        return row
    if row.dtype.kind == "f":
        return row.astype(np.float32) if row.dtype.itemsize < 4 else row
    # The small floats of ml_dtypes have kind "V", as have raw bytes where that package is missing.
    if row.dtype.kind == "V" and row.dtype.name.startswith(("bfloat", "float")):
        return row.astype(np.float32)
    return None


def _json_value(value: Any) -> Any:
    if isinstance(value, (np.bool_, np.integer, np.floating)) and not isinstance(value, np.timedelta64):
        return value.item()
    return str(value) if not isinstance(value, np.void) else value.tobytes().hex()


def row_text(name: str, row: Any, facts: dict[str, Any]) -> str:
    """Some lines about one field of a sample, for people.

    Args:
        name, row: of the field.
        facts: as of `row_facts`.
    """
    if isinstance(row, str):
        text = one_line(row[:200]) + ("..." if len(row) > 200 else "")
        return f"  {one_line(name)}: text of {len(row):,} characters: {text}"
    lines = [f"  {one_line(name)}: {facts['dtype']} {shape_text(row.shape)}, {nbytes_text(row.nbytes)}"]
    if "min" in facts and row.size > 1:
        lines.append(f"    min {facts['min']:.6g}, max {facts['max']:.6g}, mean {facts['mean']:.6g}")
    if row.size:
        shown = repr if row.dtype.kind == "U" else str
        values = " ".join(f"{v:.6g}" if isinstance(v, float) else one_line(shown(v)) for v in facts["first"])
        lines.append(f"    {'value' if row.size == 1 else 'first values'}: {values}{' ...' * (row.size > _FIRST)}")
    return "\n".join(lines)


def save(path: str, rows: Mapping[str, Any], *, overwrite: bool) -> str:
    """Write rows as `.npy`, `.npz` or `.png`, by the suffix of the path.

    Returns:
        A line that says what was written.
    Raises:
        click.BadParameter: another suffix; several fields where the file holds one; a row that is no image.
        FileExistsError, OSError: it cannot be written.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in _SUFFIXES:
        raise click.BadParameter(f"{path!r} ends in none of {', '.join(_SUFFIXES)}", param_hint="'--out'")
    arrays = {name: np.asarray(row) for name, row in rows.items()}
    if suffix != ".npz" and len(arrays) != 1:
        known = ", ".join(map(repr, arrays))
        raise click.BadParameter(
            f"a {suffix} file holds one field, and the sample has {known}: pick one with --field", param_hint="'--out'"
        )
    data, what = _encode(suffix, arrays)
    if overwrite and is_container(path):
        text = "this file is a container: it is not replaced by one of its samples. Name another"
        raise FileExistsError(errno.EEXIST, text, path)
    with open(path, "wb" if overwrite else "xb") as file:
        file.write(data)
    return f"{one_line(path)}: {what}, {len(data):,} bytes"


def _write_npz(file: io.BytesIO, arrays: Mapping[str, NDArray[Any]]) -> None:
    """As `np.savez`, which cannot take an array that is named `file`."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _encode(suffix: str, arrays: Mapping[str, NDArray[Any]]) -> tuple[bytes | memoryview, str]:
    buffer = io.BytesIO()
    if suffix == ".npz":
        _write_npz(buffer, arrays)
        return buffer.getbuffer(), f"fields {', '.join(map(one_line, arrays))}"
    name, row = next(iter(arrays.items()))
    if suffix == ".npy":
        np.save(buffer, row)
        return buffer.getbuffer(), f"field {one_line(name)}, {row.dtype} {shape_text(row.shape)}"
    try:
        data, remark = encode_png(row)
    except ValueError as error:
        raise click.BadParameter(f"field {name!r}: {error}", param_hint="'--out'") from None
    return data, f"field {one_line(name)}, {remark}"
