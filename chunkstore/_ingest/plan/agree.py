"""Do the files agree? Which arrays become fields, and which files are the odd ones out.

Files agree when they give the same fields with the same dtype (after `--dtype`) and the same number of dimensions.
The most frequent kind of file (of the first file, where two are as frequent) is what is wanted; the message for any
other says how it differs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkstore._ingest.npy.casts import dtype_option, native, resolve_cast
from chunkstore._ingest.plan.columns import OBJECT, Column
from chunkstore._ingest.plan.inventory import Inventory
from chunkstore._ingest.plan.specs import DtypeSpec, Leaf, check_distinct, find_leaf
from chunkstore.errors import IngestError


@dataclass(frozen=True)
class Pick:
    """A field, and where its values come from.

    Attributes:
        field: its name.
        leaf: array or member.
        target: the format's dtype, or OBJECT until the pickles were read.
    """

    field: str
    leaf: Leaf
    target: str

    @property
    def key(self) -> tuple[Any, ...]:
        """What must be equal in all files."""
        return self.field, self.target, self.leaf.ndim, self.leaf.array, len(self.leaf.subshape)


@dataclass(frozen=True)
class Wanted:
    """What the user asked for.

    Attributes:
        fields: name -> source; empty for all arrays under their own names.
        dtypes: targets.
        allow_pickle: whether object arrays are read.
    """

    fields: dict[str, str]
    dtypes: DtypeSpec
    allow_pickle: bool


def pick_leaves(available: Sequence[Leaf], wanted: Wanted) -> list[tuple[str, Leaf]]:
    """Field names and their leaves.

    Raises:
        IngestError: a `--field` names an array that is not there, or two have one label. The text has no path.
    """
    if not wanted.fields:
        check_distinct(available)
        return [(leaf.label, leaf) for leaf in available]
    found = []
    for name, source in wanted.fields.items():
        leaf = find_leaf(available, source)
        if leaf is None:
            labels = ", ".join(repr(leaf.label) for leaf in available[:20])
            raise IngestError(f"there is no array {source!r} for --field {name}={source}; it has {labels}.")
        found.append((name, leaf))
    return found


def make_pick(name: str, leaf: Leaf, wanted: Wanted) -> Pick:
    """Pick with its target dtype.

    Raises:
        IngestError: the dtype cannot be stored so. The text has no path.
    """
    if leaf.dtype.kind == "O" and leaf.ndim == 0:
        raise IngestError(
            f"array {leaf.label!r}: object arrays are Python pickles, and this one is no array but one object, often a "
            "dict. If you trust the file: np.load(FILE, allow_pickle=True) reads it, and np.savez saves the arrays "
            "that are in it. --field NAME=SOURCE takes only the arrays that are named."
        )
    if leaf.dtype.kind == "O" and wanted.allow_pickle:
        return Pick(name, leaf, OBJECT)
    try:
        return Pick(name, leaf, resolve_cast(leaf.dtype, wanted.dtypes.target(name), name).target)
    except IngestError as error:
        others = " --field NAME=SOURCE takes only the arrays that are named."
        hint = others if leaf.dtype.kind == "O" and leaf.array is not None else ""
        raise IngestError(f"array {leaf.label!r}: {error}{hint}") from None


def picks_of(inventory: Inventory, signature: int, wanted: Wanted) -> list[Pick]:
    """Fields of the files with this signature.

    Raises:
        IngestError: as `pick_leaves` and `make_pick`.
    """
    return [make_pick(name, leaf, wanted) for name, leaf in pick_leaves(inventory.leaves(signature), wanted)]


def agree(
    inventory: Inventory, files: npt.NDArray[np.int64], wanted: Wanted
) -> tuple[list[Pick], npt.NDArray[np.int64]]:
    """Fields of the most frequent kind of file, and the files that have them.

    Raises:
        IngestError: a file differs (unless such files are to be skipped), or no file can be taken.
    """
    signature_of = np.array(inventory.signature_of)[files]
    counts = Counter(signature_of.tolist())  # in the order of the files, as all that follows from it
    picks: dict[int, list[Pick]] = {}
    errors: dict[int, str] = {}
    for number in counts:
        try:
            picks[number] = picks_of(inventory, number, wanted)
        except IngestError as error:
            errors[number] = str(error)
    if not picks:
        raise IngestError(f"{inventory.scan.file_path(int(files[0]))}: {errors[int(signature_of[0])]}")
    keys = {number: tuple(sorted(pick.key for pick in chosen)) for number, chosen in picks.items()}
    total: Counter[Any] = Counter()
    for number, key in keys.items():
        total[key] += counts[number]
    usual = total.most_common(1)[0][0]  # of equals the first
    alike = [number for number in keys if keys[number] == usual]
    chosen, good = picks[alike[0]], np.isin(signature_of, alike)
    for place, number in zip(files[~good].tolist(), signature_of[~good].tolist(), strict=True):
        others = int(good.sum())
        reason = errors.get(number) or _difference(picks[number], chosen, others, len(files), picks.values())
        inventory.skip_or_raise(place, reason)
    return chosen, files[good]


def _difference(
    odd: list[Pick], usual: list[Pick], num_usual: int, num_files: int, everyone: Iterable[list[Pick]]
) -> str:
    """One or two sentences: what the odd file has, what the others have, what to do that helps for everyone's files."""
    others = (
        f"the other {num_usual:,} files have"
        if num_usual == num_files - 1
        else f"{num_usual:,} of {num_files:,} files have"
    )
    if num_usual == 1:
        others = f"the {'first' if num_files > 2 else 'other'} file has"
    mine, theirs = ({pick.field: pick for pick in picks} for picks in (odd, usual))
    missing, extra = [name for name in theirs if name not in mine], [name for name in mine if name not in theirs]
    if missing or extra:
        parts = [f"has no array {missing[0]!r}"] if missing else []
        parts += [f"has an array {extra[0]!r}"] if extra else []
        have = ", ".join(repr(name) for name in list(theirs)[:8])
        return f"{' and '.join(parts)}; {others} {have}. --field NAME=SOURCE takes only the arrays that are named."
    name = next(name for name in theirs if mine[name].key != theirs[name].key)
    a, b = mine[name].leaf, theirs[name].leaf
    if a.ndim != b.ndim:
        return f"array {a.label!r} has {_dims(a.ndim)}, {others} {_dims(b.ndim)}."
    if a.array != b.array:
        return (
            f"array {a.label!r} is {_home(a)}, {others} one of this name that is {_home(b)}. Convert one kind of file "
            "at a time: --include '*.npy' or --include '*.npz'."
        )
    return f"array {a.label!r} has dtype {native(a.dtype)}, {others} {native(b.dtype)}.{_advice(usual, everyone)}"


def _home(leaf: Leaf) -> str:
    return "that of an .npy file" if leaf.array is None else f"array {leaf.array!r} of an .npz file"


def _advice(usual: list[Pick], everyone: Iterable[list[Pick]]) -> str:
    """The --dtype options with which the arrays of all files would agree; empty where there is no such dtype."""
    found: dict[str, dict[str, np.dtype[Any]]] = {pick.field: {} for pick in usual}
    for picks in everyone:
        for pick in picks:
            found.get(pick.field, {})[pick.target] = native(pick.leaf.dtype)
    options = []
    for name, by_target in found.items():
        if len(by_target) > 1:
            common = _common(list(by_target.values()))
            if common is None:
                return ""
            options.append(dtype_option(name, common))
    return f" {' '.join(options)} takes all of them." if options else ""


def _dims(ndim: int) -> str:
    return "1 dimension" if ndim == 1 else f"{ndim} dimensions"


def _common(dtypes: Sequence[np.dtype[Any]]) -> str | None:
    """The dtype that holds all of these, as --dtype names it."""
    kinds = {dtype.kind for dtype in dtypes}
    if len(kinds) == 1 and kinds <= set("SU"):
        wide = max(dtype.itemsize for dtype in dtypes) // (4 if "U" in kinds else 1)
        return f"{kinds.pop()}{wide}"
    if kinds <= set("biufc"):
        both = np.result_type(*dtypes)
        if all(np.can_cast(dtype, both, "same_kind") for dtype in dtypes) and both.itemsize <= 16:
            return str(both.name)
    return None


def take_column(inventory: Inventory, pick: Pick, files: npt.NDArray[np.int64], *, rows: bool) -> Column:
    """Column of a field over the files, in their order."""
    table = inventory.tables[pick.leaf.array, pick.leaf.array_ndim]
    parts = {name: _shrink(values) for name, values in table.columns(files).items()}
    start = None
    if rows:
        start = np.zeros(len(files) + 1, np.int64)
        np.cumsum(parts["dims"][:, 0], out=start[1:])
    return Column(pick.leaf.array, pick.leaf.member, pick.target, start, **parts, subshape=pick.leaf.subshape)


def _shrink(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A column that is constant takes no memory."""
    if len(values) > 1 and (values == values[0]).all():
        return np.broadcast_to(values[:1].copy(), values.shape)
    return np.ascontiguousarray(values)
