"""`--layout`: how files become samples, and what `auto` chooses.

| layout | one sample is | keys |
|---|---|---|
| `files` | one file: the array of an `.npy`, the arrays of an `.npz` | relative path without suffix |
| `rows` | one index of the first axis of every array; several files are strung together | none |
| `paired` | files whose paths differ in a role: a folder (`images/1.npy` + `labels/1.npy`), | what they share |
| | a word (`1_image.npy` + `1_label.npy`, `1.npy` + `1_mask.npy`, `lj-mel-1.npy` + `lj-f0-1.npy`), | |
| | both (`images/img_1.npy` + `masks/mask_1.npy`), or the name (`1/image.npy` + `1/label.npy`) | |
| `classes` | one file, and the number of its first folder as field `label` | relative path without suffix |
| `columns` | one index of the first axis of every `.npy`; each file is a field (`X.npy`, `y.npy`) | none |

What `auto` chooses, first line that fits:

| the sources hold | choice |
|---|---|
| one `.npy` with a first axis of 2 and more | `rows` |
| one `.npz` whose arrays all have the same first axis of 2 and more | `rows` |
| any other one file | `files` |
| names pair completely, roles differ in dtype or dimensions (for words like `image`, `y`: or shape) | `paired` |
| the same with the stems `train`, `test`, ... or one without a number, some of one first axis | refused: `columns` |
| names pair completely, role words, arrays alike | refused: `paired` or `files` |
| role words as folders, some partners missing, roles differ or most stems are whole | refused: names the file |
| names pair completely, roles of one kind of arrays each, not all alike, or of different lengths | refused: `paired` |
| a few `.npy`, some of one first axis: called `X`, `y`, ..., or unlike and not numbered | refused: `columns` |
| one array per file, one dtype and ndim, all 1-d or all of one shape | `files` |
| rows alike, one first axis per file: `.npz` of several arrays, or first axes that vary | refused: `files` or `rows` |
| anything else | `files` |

Folders as classes are a hint in the explanation, never a choice: nothing in the data says that folder names are
labels.
"""

from __future__ import annotations

import glob
import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from chunkstore._ingest.npy.casts import native
from chunkstore._ingest.plan.agree import Pick, Wanted, picks_of
from chunkstore._ingest.plan.inventory import Inventory
from chunkstore._ingest.plan.pairing import ROLE_WORDS, SPLIT_WORDS, Pairing, find_pairings, split_of, stem
from chunkstore._ingest.plan.scan import Scan, count_text
from chunkstore.errors import IngestError

_MAX_COLUMNS: Final = 20  # files that could be the fields of one data set
_MAX_PARALLEL: Final = 4  # folders that could be parts of samples: more are classes
ASKED: Final = "as asked for with --layout."
LAYOUTS: Final = ("auto", "files", "rows", "columns", "paired", "classes")


@dataclass(frozen=True)
class Choice:
    """A layout, why, and the pairing if it is `paired`."""

    layout: str
    reason: str
    pairing: Pairing | None = None


def check_layout(layout: str) -> None:
    """Raise IngestError for a word that is no layout."""
    if layout not in LAYOUTS:
        raise IngestError(f"--layout {layout!r}: expected one of {', '.join(LAYOUTS)}.")


def choose(inventory: Inventory, files: npt.NDArray[np.int64], wanted: Wanted) -> Choice:
    """What `auto` takes.

    Raises:
        IngestError: two readings fit, both are named.
    """
    if len(files) == 1:
        return _choose_one(inventory, int(files[0]), wanted)
    pairings = find_pairings(inventory.scan.names(), files.tolist())
    choice = _choose_paired(inventory, files, pairings)
    if choice is not None:
        return choice
    return _choose_many(inventory, files, wanted, pairings)


def _picks(inventory: Inventory, signature: int, wanted: Wanted) -> list[Pick]:
    """Picks, or none where something does not fit: the message comes when the layout is carried out."""
    try:
        return picks_of(inventory, signature, wanted)
    except IngestError:
        return []


def first_axes(
    inventory: Inventory, picks: Sequence[Pick], files: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64] | None:
    """First axis per file and pick, shape (files, picks); None without picks, or where an array has no dimension."""
    if not picks or any(pick.leaf.array_ndim < 1 for pick in picks):
        return None
    return np.stack([dims_of(inventory, pick, files)[:, 0] for pick in picks], axis=1)


def dims_of(inventory: Inventory, pick: Pick, files: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Shapes of the pick's array in those files, shape (files, ndim); subarray dimensions left out."""
    table = inventory.tables[pick.leaf.array, pick.leaf.array_ndim]
    return table.columns(files)["dims"]


def _choose_one(inventory: Inventory, place: int, wanted: Wanted) -> Choice:
    files = np.array([place])
    picks = _picks(inventory, inventory.signature_of[place], wanted)
    axes = first_axes(inventory, picks, files)
    name = inventory.scan.paths[place]
    if axes is None or axes.min() < 2 or axes.min() != axes.max():
        why = "its first axis is not" if len(picks) == 1 else "its arrays do not share a first axis of"
        hint = _shared_hint(inventory, picks, files)
        return Choice("files", f"one file, {name!r}, and {why} 2 and more: it is one sample.{hint}")
    axis = f"its {len(picks)} arrays share" if len(picks) > 1 else "its array has"
    return Choice(
        "rows",
        f"one file, {name!r}; {axis} a first axis of {int(axes[0, 0]):,}: each index is a sample (--layout files "
        "makes it one sample).",
    )


def _shared_hint(inventory: Inventory, picks: Sequence[Pick], files: npt.NDArray[np.int64]) -> str:
    """Which arrays could be rows together: `train_images` and `train_labels` where there is `test_images` too."""
    picks = [pick for pick in picks if pick.leaf.array_ndim]
    axes = first_axes(inventory, picks, files)
    shared = [] if axes is None else shared_picks(picks, axes)
    if axes is None or not shared or (len(axes) > 1 and len(shared) < 2):
        return ""
    total = int(axes[:, picks.index(shared[0])].sum())
    which = f"with a first axis of {total:,} become" if len(axes) == 1 else f"of one first axis become {total:,}"
    return f" The arrays {which} samples with --layout rows {field_options(shared)}."


def shared_picks(picks: Sequence[Pick], axes: npt.NDArray[np.int64]) -> list[Pick]:
    """Most arrays, and the longest of them, that have one first axis of 2 and more in each file.

    Args:
        picks, axes: as of `first_axes`.
    """
    groups: dict[bytes, list[int]] = {}
    for place in np.flatnonzero((axes > 1).all(axis=0)).tolist():
        groups.setdefault(axes[:, place].tobytes(), []).append(place)
    best = max(groups.values(), key=lambda group: (len(group), int(axes[:, group[0]].sum())), default=[])
    return [picks[place] for place in best]


def field_options(picks: Sequence[Pick]) -> str:
    """`--field` options that take these arrays; the first six, for a message."""
    return " ".join(_field_option(pick.field, pick.leaf.label) for pick in picks[:6])


def _field_option(name: str, source: str) -> str:
    # The name ends at the first `=`, and may have none.
    return f"--field {shlex.quote(name.replace('=', '_') + '=' + source)}"


def _choose_paired(inventory: Inventory, files: npt.NDArray[np.int64], pairings: Sequence[Pairing]) -> Choice | None:
    paths = inventory.scan.names()
    # The files of one folder, or of `train` and `test`, are the fields of data sets, and no samples.
    found = [
        pairing for pairing in pairings if pairing.pattern != "name" or (pairing.num_whole and _count_samples(pairing))
    ]
    for pairing in filter(lambda pairing: pairing.complete and not pairing.of_splits, found):
        roles = " + ".join(repr(name) for name in pairing.names)
        if pairing.spoken:
            differ = _roles_differ(inventory, pairing)
        else:  # such names need more of the arrays, to say that these are parts of samples
            differ = len(pairing.keys) > 1 and _contents_differ(inventory, pairing)
        if _are_whole(pairing) and (differ or pairing.spoken):
            _refuse_columns(inventory, files, spoken=pairing.spoken)
        if differ:
            first = " + ".join(paths[column[0]] for column in pairing.files[:3])
            return Choice(
                "paired",
                f"the names pair completely ({first}, ...) and the arrays of {roles} differ: "
                f"{count_text(len(pairing.keys), 'sample')}.{_parts_hint(inventory, pairing)}",
                pairing,
            )
        if pairing.spoken:
            raise IngestError(
                f"--layout auto: two readings fit, since the names pair completely as {roles} but all arrays are "
                "alike. "
                f"Say --layout paired ({count_text(len(pairing.keys), 'sample')} of "
                f"{count_text(len(pairing.roles), 'field')}) or --layout "
                f"files ({len(files):,} samples of one field)."
            )
    for pairing in found:
        if not pairing.spoken or pairing.pattern not in ("folder", "affixes", "name"):
            continue
        if pairing.num_whole * 2 <= len(pairing.keys) and not _roles_differ(inventory, pairing):
            continue
        if pairing.num_whole:
            raise IngestError(
                f"--layout auto: {missing_partner(pairing, paths)}. Add it, or say --layout paired --on-error "
                "skip, or --layout files."
            )
        raise IngestError(
            f"--layout auto: {', '.join(map(repr, pairing.names))} could be parts of samples, but no file name is in "
            f"two of them ({pairing.roles[0]}/{pairing.keys[0]}, ...). Name the parts of a sample alike, or say "
            "--layout files."
        )
    return None


def _parts_hint(inventory: Inventory, pairing: Pairing) -> str:
    """A word about `X_1` of many rows and `y_1` of as many numbers, which may be parts of one data set."""
    columns = [np.array(column) for column in pairing.files]
    kinds = [inventory.signatures[inventory.signature_of[int(column[0])]] for column in columns]
    if not roles_uniform(inventory, pairing) or any(len(kind) != 1 or kind[0][2] < 1 for kind in kinds):
        return ""
    tables = [inventory.tables[name, ndim] for ((name, _, ndim),) in kinds]
    axes = [table.columns(column)["dims"][:, 0] for table, column in zip(tables, columns, strict=True)]
    flat = any(table.ndim == 1 for table in tables)
    if not flat or axes[0].max() < 2 or any((axis != axes[0]).any() for axis in axes):
        return ""
    return (
        " In each, the arrays have one first axis: if its indices are the samples, save every pair as one .npz, and "
        "say --layout rows."
    )


def _are_whole(pairing: Pairing) -> bool:
    """Whether keys are names of whole data sets: one for each split (`train`, `test_v1`), or one that counts nothing
    (`mnist` of `mnist_images` and `mnist_labels`).
    """
    names = [key.rpartition("/")[2] for key in pairing.keys]
    if len(names) == 1 and not any(char.isdigit() for char in names[0]):
        return True
    splits = {split_of(name) for name in names}
    return SPLIT_WORDS.issuperset(map(str.lower, names)) or (len(splits) == len(names) and "" not in splits)


def _count_samples(pairing: Pairing) -> bool:
    """Whether there are several keys, and they stand for no whole data sets, nor folders of them (`1/train` and
    `1/trainLabel`).
    """
    of_folders = pairing.pattern == "name" and any(map(split_of, pairing.roles))
    return len(pairing.keys) > 1 and not of_folders and not _are_whole(pairing)


def unlikely(inventory: Inventory, pairing: Pairing) -> tuple[bool, ...]:
    """Sorts ways to pair: role words first, then roles of one kind of arrays each; splits and numbers as roles last."""
    return (
        not pairing.spoken,
        pairing.num_whole * 2 <= len(pairing.keys),
        not roles_uniform(inventory, pairing),
        pairing.of_splits,
        not _may_be_samples(pairing),
        not _roles_unlike(inventory, pairing),
    )


def _roles_unlike(inventory: Inventory, pairing: Pairing) -> bool:
    """Whether each role has one kind of arrays, or one length of an axis, and not all roles the same."""
    contents = _contents(inventory, pairing)
    if any(len(found) > 1 for found in contents):
        return False
    return len(set(contents)) > 1 or _lengths_differ(inventory, pairing)


def _may_be_samples(pairing: Pairing) -> bool:
    """Whether names that say nothing could pair: most of their roles differ in more than numbers."""
    return _count_samples(pairing) and len(_words(pairing.roles)) > max(1, len(pairing.roles) / 2)


def missing_partner(pairing: Pairing, paths: Sequence[str]) -> str:
    """Names the first file without a partner."""
    row = next(row for row in zip(*pairing.files, strict=True) if -1 in row)
    role = pairing.names[row.index(-1)]
    there = next(paths[file] for file in row if file >= 0)
    return (
        f"the files pair as {', '.join(map(repr, pairing.names))}, but {there!r} has no partner in {role!r} "
        f"({len(pairing.keys) - pairing.num_whole:,} of {len(pairing.keys):,} are incomplete)"
    )


def _contents(inventory: Inventory, pairing: Pairing) -> list[frozenset[Any]]:
    """What each role's files have: names, dtypes but for byte order, and dimensions of their arrays."""
    signature_of = np.array(inventory.signature_of)
    kinds = [tuple((name, native(dtype), ndim) for name, dtype, ndim in arrays) for arrays in inventory.signatures]
    return [
        frozenset(kinds[number] for number in np.unique(signature_of[[place for place in column if place >= 0]]))
        for column in pairing.files
    ]


def _contents_differ(inventory: Inventory, pairing: Pairing) -> bool:
    """Whether no two roles have files of the same arrays, dtypes and dimensions."""
    contents = _contents(inventory, pairing)
    return len(frozenset().union(*contents)) == sum(map(len, contents))


def _roles_differ(inventory: Inventory, pairing: Pairing) -> bool:
    """Whether roles differ in what they have, or at least not all are alike."""
    return _contents_differ(inventory, pairing) or _roles_unlike(inventory, pairing)


def roles_uniform(inventory: Inventory, pairing: Pairing) -> bool:
    """Whether all files of each role have the same arrays, dtypes and dimensions."""
    return all(len(found) == 1 for found in _contents(inventory, pairing))


def _choose_many(
    inventory: Inventory, files: npt.NDArray[np.int64], wanted: Wanted, pairings: Sequence[Pairing]
) -> Choice:
    signature_of = np.array(inventory.signature_of)[files]
    pairings = [pairing for pairing in pairings if pairing.complete and _may_be_samples(pairing)]
    _refuse_pairs(inventory, files, [pairing for pairing in pairings if not pairing.of_splits])
    _refuse_columns(inventory, files, spoken=False)
    _refuse_pairs(inventory, files, [pairing for pairing in pairings if pairing.of_splits])
    if (signature_of != signature_of[0]).any():
        return Choice("files", f"{len(files):,} files, one sample each.{class_hint(inventory.scan, files)}")
    picks = _picks(inventory, int(signature_of[0]), wanted)
    axes = first_axes(inventory, picks, files)
    hints = f"{class_hint(inventory.scan, files)}{_shared_hint(inventory, picks, files)}"
    if axes is None or axes.min() < 1 or axes.max() < 2 or (axes != axes[:, :1]).any():
        return Choice("files", f"{len(files):,} files, one sample each.{hints}")
    shapes = [dims_of(inventory, pick, files) for pick in picks]
    rows_alike = all((dims[:, 1:] == dims[0, 1:]).all() for dims in shapes)
    one_shape = rows_alike and (axes == axes[0]).all()
    flat = all(dims.shape[1] < 2 for dims in shapes)
    if rows_alike and not flat and (not one_shape or len(picks) > 1):
        total = int(axes[:, 0].sum())
        same = "the same" if one_shape else "a varying"
        raise IngestError(
            f"--layout auto: two readings fit, since all {len(files):,} files have rows of one shape and {same} "
            "number of them. "
            f"Say --layout files ({len(files):,} samples, one per file{'' if one_shape else ', ragged'}) or "
            f"--layout rows ({total:,} samples, one per index of the first axis).{_pair_hint(pairings)}"
            f"{_split_hint(inventory.scan, files)}"
        )
    how = "of one shape" if one_shape else "of varying shape"
    return Choice("files", f"{len(files):,} files {how}, one sample each.{class_hint(inventory.scan, files)}")


def _refuse_columns(inventory: Inventory, files: npt.NDArray[np.int64], *, spoken: bool) -> None:
    """Name both readings of `X.npy` and `y.npy`: fields of one data set, or files of which one does not fit.

    Args:
        spoken: whether it is known that the names say so; else each name that is such a word says so.
    Raises:
        IngestError: such are the files.
    """
    if len(files) > _MAX_COLUMNS or inventory.skips:
        return
    arrays = [inventory.signatures[inventory.signature_of[place]] for place in files.tolist()]
    if any(name is not None or ndim < 1 for found in arrays for name, _, ndim in found):
        return
    kinds = Counter(found[0][1:] for found in arrays)
    paths = [inventory.scan.names()[place] for place in files.tolist()]
    by_axis = _by_axis(inventory, files, paths)
    odd = {path for path, found in zip(paths, arrays, strict=True) if found[0][1:] != kinds.most_common(1)[0][0]}
    names = {stem(path).rpartition("/")[2] for path in paths}
    num_ndims = len({ndim for _, ndim in kinds})
    if not (spoken or _named_columns(names, by_axis) or _unlike_columns(names, by_axis, odd, num_ndims)):
        return
    (length, *_), paths = max(by_axis.items(), key=lambda item: (len(item[1]), item[0][:2]))
    if length > 1 and len(paths) > 1:
        picked = "" if len(by_axis) == 1 else "".join(f" {_field_option(stem(path), stem(path))}" for path in paths)
        samples = f"say --layout files ({len(files):,} samples)"
        if odd:
            paired = any(pairing.complete for pairing in find_pairings(inventory.scan.names(), files.tolist()))
            other = ", or say --layout paired" if paired else ""
            samples = f"leave out those that do not fit with --exclude{other}"
        raise IngestError(
            f"--layout auto: {', '.join(map(repr, paths))} have one first axis of {length:,}. "
            f"If they are the fields of one data set, say --layout columns{picked} ({length:,} samples). If they are "
            f"samples, {samples}."
        )


def _named_columns(names: set[str], by_axis: Mapping[Any, Sequence[str]]) -> bool:
    """Whether names are role words, or each has its split and is not alone in it (`trainX`, `trainY`, `testX`, ...)."""
    if len(names) > 1 and ROLE_WORDS.issuperset(map(str.lower, names)):  # one alone: `1/image.npy`, `2/image.npy`
        return True
    return all(map(split_of, names)) and all(len(_words(group)) > 1 for group in by_axis.values())


def _words(names: Sequence[str]) -> set[str]:
    """What is left of names without their numbers: `train_1` and `train_2` count samples."""
    return {re.sub(r"\d+", "", name) for name in names}


def _unlike_columns(names: set[str], by_axis: Mapping[Any, Sequence[str]], odd: set[str], num_ndims: int) -> bool:
    """Whether arrays say that files are fields: they have several numbers of dimensions, and most are not alike, or an
    odd one has its first axis in common with those that are (`labels` beside arrays of features). Numbers are samples.
    """
    if any(map(str.isdigit, names)):
        return False
    if num_ndims > 1 and len(odd) * 2 >= sum(map(len, by_axis.values())):
        return True
    numbered = any(char.isdigit() for name in names for char in name)
    return not numbered and any(odd.intersection(group) and not odd.issuperset(group) for group in by_axis.values())


def _by_axis(
    inventory: Inventory, files: npt.NDArray[np.int64], paths: Sequence[str]
) -> dict[tuple[int, str, str], list[str]]:
    """The paths by first axis, split, and folder; not by folder where each has one of them (`x/train`, `y/train`), or
    no name is in two.
    """
    found: dict[tuple[int, str, str], list[str]] = {}
    for path, place in zip(paths, files.tolist(), strict=True):
        ((name, _, ndim),) = inventory.signatures[inventory.signature_of[place]]
        axis = int(inventory.tables[name, ndim].columns(np.array([place]))["dims"][0, 0])
        found.setdefault((axis, split_of(path), path.rpartition("/")[0]), []).append(path)
    repeated = len({path.rpartition("/")[2] for path in paths}) < len(paths)
    if repeated and max(map(len, found.values())) > 1:
        return found
    joined: dict[tuple[int, str, str], list[str]] = {}
    for (axis, split, _), group in found.items():
        joined.setdefault((axis, split, ""), []).extend(group)
    return joined


def _refuse_pairs(inventory: Inventory, files: npt.NDArray[np.int64], pairings: Sequence[Pairing]) -> None:
    """Name the other reading of `calib/1.npy`, `velodyne/1.npy`: names that pair and say nothing, arrays that differ.

    Raises:
        IngestError: such are the files.
    """
    if inventory.skips:
        return
    paths = inventory.scan.names()
    for pairing in pairings:
        if not _roles_unlike(inventory, pairing):
            continue
        differ = len(set(_contents(inventory, pairing))) > 1
        first = " + ".join(paths[column[0]] for column in pairing.files[:3])
        other = (
            "leave out those that do not fit with --exclude" if differ else f"--layout files ({len(files):,} samples)"
        )
        what = "have the same arrays" if differ else "have arrays of one length"
        raise IngestError(
            f"--layout auto: the files do not all {what}, and their names pair completely "
            f"({first}, ...). Say --layout paired ({count_text(len(pairing.keys), 'sample')} of "
            f"{count_text(len(pairing.roles), 'field')}), or {other}.{_one_split(pairing)}"
        )


def _lengths_differ(inventory: Inventory, pairing: Pairing) -> bool:
    """Whether an axis has one length in each role, and not the same in all: `(T, 14)` in one and `(T, 6)` in another.
    All files have the same signature.
    """
    columns = [np.array([place for place in column if place >= 0]) for column in pairing.files]
    for name, _, ndim in inventory.signatures[inventory.signature_of[columns[0][0]]]:
        dims = [inventory.tables[name, ndim].columns(column)["dims"] for column in columns]
        fixed = np.all([(part == part[0]).all(axis=0) for part in dims], axis=0)
        if (fixed & np.any([part[0] != dims[0][0] for part in dims], axis=0)).any():
            return True
    return False


def _one_split(pairing: Pairing) -> str:
    """A word about `images_train` and `images_val`: the options that take the first of the splits."""
    if not pairing.of_splits:
        return ""
    split = next(filter(None, map(split_of, pairing.roles)))
    inside = "*/{}/*" if pairing.position else "{}/*"
    around = {"folder": inside, "affixes": inside, "prefix": "*{}*", "infix": "*{}*"}.get(pairing.pattern, "*{}.np[yz]")
    roles = pairing.names if pairing.pattern == "affixes" else pairing.roles
    options = [
        "--include " + shlex.quote(around.format(glob.escape(role))) for role in roles if split_of(role) == split
    ]
    return f" Splits make a container each: {' '.join(options)} takes {split!r} alone."


def _pair_hint(pairings: Sequence[Pairing]) -> str:
    """A word about names that pair, of arrays that are all alike."""
    for pairing in pairings:
        if not pairing.of_splits:
            shown = ", ".join(map(repr, pairing.names[:3])) + (", ..." if len(pairing.names) > 3 else "")
            return (
                f" Or, since their names pair, --layout paired ({count_text(len(pairing.keys), 'sample')} of the "
                f"fields {shown})."
            )
    return ""


def _split_hint(scan: Scan, files: npt.NDArray[np.int64]) -> str:
    """A word about `train.npz` and `test.npz`, or `train/` and `test/`, which nobody wants in one container."""
    names = {stem(scan.paths[place]).partition("/")[0].lower() for place in files.tolist()}
    return " They could be splits: each makes its own container." if names <= SPLIT_WORDS and len(names) > 1 else ""


def class_hint(scan: Scan, files: npt.NDArray[np.int64]) -> str:
    """A word about folders that could be classes."""
    names: dict[str, None] = {}
    folder = "/"  # no path begins so
    for place in files.tolist():
        if scan.paths[place].startswith(folder):
            continue
        head, slash, _ = scan.paths[place].partition("/")
        if not slash:
            return _split_hint(scan, files) if len(files) <= len(SPLIT_WORDS) else ""
        names[head], folder = None, head + slash
        if len(names) > 1000:
            break
    if len(names) < 2:
        return ""
    shown = ", ".join(map(repr, list(names)[:3])) + ", ..." * (len(names) > 3)
    if SPLIT_WORDS.issuperset(name.lower() for name in names):
        return f" The folders ({shown}) could be splits: each makes its own container."
    pairs = " If they are parts of the same samples: --layout paired." if _are_parallel(scan, files, len(names)) else ""
    return f" --layout classes adds a field 'label' with the number of the folder ({shown}).{pairs}"


def _are_parallel(scan: Scan, files: npt.NDArray[np.int64], num_folders: int) -> bool:
    """Whether a few folders seem to have the same names; looks at the first and the last of each only."""
    step, rest = divmod(len(files), num_folders)
    if rest or step < 2 or num_folders > _MAX_PARALLEL:
        return False
    ends = [[scan.paths[place].partition("/")[2] for place in files[at::step]] for at in (0, step - 1)]
    return all(len(set(names)) == 1 for names in ends)


def may_be_roles(path: str) -> bool:
    """Whether one path has a word in it that could name a role: a cheap test before the names are not looked at."""
    parts = path.rpartition(".")[0].lower().replace("-", "_").replace(".", "_").split("/")
    return not ROLE_WORDS.isdisjoint((*parts[:-1], *parts[-1].split("_")))


def class_of(scan: Scan, place: int) -> str:
    """Name of the class folder of a file.

    Raises:
        IngestError: the file lies in no folder.
    """
    head, slash, _ = scan.paths[place].partition("/")
    if slash:
        return head
    if len(scan.sources) > 1:
        return os.path.basename(scan.roots[scan.source_of[place]].rstrip("/" + os.sep))
    raise IngestError(
        f"{scan.file_path(place)}: --layout classes takes the first folder as class, and this file lies in none. "
        "Leave it out with --exclude."
    )
