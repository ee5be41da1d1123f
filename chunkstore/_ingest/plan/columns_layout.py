"""Layout `columns`: whole arrays in files of their own, `X.npy` and `y.npy`, which are the fields of one data set."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from chunkstore._ingest.plan.agree import Wanted, make_pick, take_column
from chunkstore._ingest.plan.columns import Column
from chunkstore._ingest.plan.inventory import Inventory
from chunkstore._ingest.plan.pairing import stem
from chunkstore._ingest.plan.specs import Leaf
from chunkstore.errors import IngestError


class _Whole(NamedTuple):
    """An array, or a member of a structured one, and the number of its file."""

    place: int
    leaf: Leaf


def whole_columns(inventory: Inventory, files: npt.NDArray[np.int64], wanted: Wanted) -> dict[str, Column]:
    """Field name -> column: the array of each `.npy`, under the name of the file.

    Raises:
        IngestError: an `.npz`, two files of one name, files of different numbers of rows, a dtype that cannot be.
    """
    found = _wholes(inventory, files)
    named = {}
    for field, source in (wanted.fields or {name: name for name in found}).items():
        whole = found.get(source) or found.get(stem(source))
        if whole is None:
            names = ", ".join(map(repr, list(found)[:20]))
            raise IngestError(f"--field {field}={source}: there is no such file; there are {names}.")
        named[field] = _column(inventory, field, whole, wanted)
    _check_rows(inventory, named)
    return named


def _wholes(inventory: Inventory, files: npt.NDArray[np.int64]) -> dict[str, _Whole]:
    """What can be a field: the stem of the file, and `stem.member` for members of a structured array."""
    scan, found = inventory.scan, dict[str, _Whole]()
    for place in files.tolist():
        for leaf in inventory.leaves(inventory.signature_of[place]):
            if leaf.array is not None:
                raise IngestError(
                    f"{scan.file_path(place)}: --layout columns takes .npy files, each one a field. The arrays of an "
                    ".npz have names already: convert it alone, with --layout rows."
                )
            name = stem(scan.names()[place])
            name = f"{name}.{leaf.label}" if leaf.member else name
            if name in found:
                raise IngestError(
                    f"{scan.file_path(found[name].place)} and {scan.file_path(place)} would both be the field "
                    f"{name!r}. Leave one of them out with --exclude."
                )
            found[name] = _Whole(place, leaf)
    return found


def _column(inventory: Inventory, field: str, whole: _Whole, wanted: Wanted) -> Column:
    path = inventory.scan.file_path(whole.place)
    if whole.leaf.array_ndim < 1:
        raise IngestError(
            f"{path}: the array has no dimension, so it has no rows, which --layout columns needs. Leave the file out "
            "with --exclude, or take others with --field NAME=FILE."
        )
    try:
        pick = make_pick(field, whole.leaf, wanted)
    except IngestError as error:
        raise IngestError(f"{path}: {error}") from None
    return take_column(inventory, pick, np.array([whole.place]), rows=True)


def _check_rows(inventory: Inventory, named: dict[str, Column]) -> None:
    """Refuse files of different numbers of rows: the one that differs from most is named."""
    lengths = {field: int(column.dims[0, 0]) for field, column in named.items()}
    usual = Counter(lengths.values()).most_common(1)[0][0]
    odd = next((field for field, length in lengths.items() if length != usual), None)
    if odd is not None:
        other = next(field for field, length in lengths.items() if length == usual)
        paths = [inventory.scan.file_path(int(named[field].file[0])) for field in (odd, other)]
        raise IngestError(
            f"{paths[0]}: --layout columns: it has {lengths[odd]:,} rows, {paths[1]} has {usual:,}. Take those that "
            "belong together with --field NAME=FILE."
        )
