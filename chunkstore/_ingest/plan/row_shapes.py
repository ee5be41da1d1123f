"""What headers do not say: the length of every text, the shapes inside object arrays. Only fields of those kinds are
read for the plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkstore._format import dtypes
from chunkstore._ingest.npy.arrays import TILE_NBYTES, ArraySource, Place
from chunkstore._ingest.npy.casts import Cast, encode_texts, resolve_cast
from chunkstore._ingest.npy.pickled import load_rows
from chunkstore._ingest.plan.columns import OBJECT, Column, cast_of
from chunkstore._ingest.plan.plan import Plan
from chunkstore._ingest.plan.specs import DtypeSpec
from chunkstore.errors import IngestError


def fill_shapes(plan: Plan, names: list[str], wanted: DtypeSpec) -> Plan:
    """The plan with `Column.shapes` (and the dtype of object arrays) filled in.

    Raises:
        IngestError: texts that are not UTF-8 or not one per sample, elements that do not agree.
    """
    columns = []
    for number, (name, column) in enumerate(zip(names, plan.columns, strict=True)):
        if column.target == OBJECT:
            column = _fill_objects(plan, number, name, wanted.target(name))
        elif column.target == dtypes.STRING:
            column = _fill_texts(plan, number, name)
        columns.append(column)
    return replace(plan, columns=tuple(columns))


def _fill_texts(plan: Plan, number: int, name: str) -> Column:
    column = plan.columns[number]
    if column.row_dims().shape[1]:
        raise IngestError(
            f"{plan.where(number, 0)}: field {name!r}: dtype string holds one text per sample, and rows have "
            f"{column.row_dims().shape[1]} dimensions here. "
            f"Leave --dtype {name}=string out: texts of fixed width may have any shape."
        )
    lengths: list[int] = []
    for piece in range(column.num_pieces):
        place = plan.place(number, piece)
        cast = cast_of(column, place.kind, name)
        assert cast is not None
        with ArraySource(place, column.member, cast) as source:
            lengths.extend(
                len(text) for texts in iter_texts(source, cast, place, 0, source.num_elements) for text in texts
            )
    return replace(column, shapes=np.array(lengths, np.int64).reshape(-1, 1))


def iter_texts(source: ArraySource, cast: Cast, place: Place, start: int, stop: int) -> Iterator[list[bytes]]:
    """UTF-8 texts of elements `[start, stop)`, a bounded number at a time."""
    step = max(1, TILE_NBYTES // 8 // max(1, place.kind.dtype.itemsize))
    for low in range(start, stop, step):
        yield encode_texts(cast, source.read_values(low, min(stop, low + step)), place.where)


def _fill_objects(plan: Plan, number: int, name: str, target: str | None) -> Column:
    column = plan.columns[number]
    shapes: list[tuple[int, ...]] = []
    found: dict[np.dtype[Any], str] = {}
    for piece in range(column.num_pieces):
        place = plan.place(number, piece)
        if column.member:
            raise IngestError(f"{place.where}: objects in a structured array cannot be read.")
        for row in load_rows(place):
            found.setdefault(row.dtype.newbyteorder("<"), place.where)
            shapes.append(row.shape)
            if len(row.shape) != len(shapes[0]):
                raise IngestError(
                    f"{place.where}: element {len(shapes) - 1} has shape {row.shape}, element 0 has shape "
                    f"{shapes[0]}: rows need one number of dimensions."
                )
    if target is None:
        target = _common_target(found, name)
    for dtype, where in found.items():
        if resolve_cast(dtype, target, name).mode == "string":
            raise IngestError(f"{where}: elements of object arrays cannot become dtype string.")
    table: npt.NDArray[np.int64] = np.array(shapes, np.int64).reshape(len(shapes), len(shapes[0]))
    return replace(column, target=target, shapes=table)


def _common_target(found: dict[np.dtype[Any], str], name: str) -> str:
    """The dtype of all elements; the widest, of texts."""
    kinds = {dtype.kind for dtype in found}
    if len(kinds) == 1 and kinds <= set("SU"):
        return resolve_cast(max(found, key=lambda dtype: dtype.itemsize), None, name).target
    if len(found) > 1:
        (first, where), (second, other) = list(found.items())[:2]
        raise IngestError(
            f"{other}: elements have dtype {second}, others {first} ({where}). Say which with --dtype {name}=..."
        )
    return resolve_cast(next(iter(found)), None, name).target
