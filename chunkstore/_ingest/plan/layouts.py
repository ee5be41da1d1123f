"""`--layout`: how files become samples, and what `auto` chooses.

| layout | one sample is | keys |
|---|---|---|
| `files` | one file: the array of an `.npy`, the arrays of an `.npz` | relative path without suffix |
| `rows` | one index of the first axis of every array; several files are strung together | none |
| `paired` | files of one stem (`images/1.npy` + `labels/1.npy`, `1_image.npy` + `1_label.npy`) | the stem |
| | or the files of one folder (`1/image.npy` + `1/label.npy`) | the folder |
| `classes` | one file, and the number of its first folder as field `label` | relative path without suffix |
| `columns` | one index of the first axis of every `.npy`; each file is a field (`X.npy`, `y.npy`) | none |

What `auto` chooses, first line that fits:

| the sources hold | choice |
|---|---|
| one `.npy` with a first axis of 2 and more | `rows` |
| one `.npz` whose arrays all have the same first axis of 2 and more | `rows` |
| any other one file | `files` |
| names pair completely, roles differ in dtype or dimensions (for words like `image`, `y`: or shape) | `paired` |
| the same with the stems `train`, `test`, ..., and each file could be a field | refused: `columns` or `paired` |
| names pair completely, role words, arrays alike | refused: `paired` or `files` |
| role words as folders, some partners missing, roles differ or most stems are whole | refused: names the file |
| names pair completely by folders, each of one kind of arrays, some of them alike | refused: `paired` or `--exclude` |
| one array per file, one dtype and ndim, all 1-d or all of one shape | `files` |
| rows alike, one first axis per file: `.npz` of several arrays, or first axes that vary | refused: `files` or `rows` |
| a few `.npy`, not most alike or called `X`, `y`, ..., some of one first axis | refused: `columns` or `files` |
| anything else | `files` |

Folders as classes are a hint in the explanation, never a choice: nothing in the data says that folder names are
labels.
"""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from chunkstore._ingest.plan.agree import Pick, Wanted, picks_of
from chunkstore._ingest.plan.inventory import Inventory
from chunkstore._ingest.plan.pairing import ROLE_WORDS, Pairing, find_pairings, stem
from chunkstore._ingest.plan.scan import Scan, count_text
from chunkstore.errors import IngestError

SPLIT_WORDS: Final = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev"})
_MAX_COLUMNS: Final = 20  # files that could be the fields of one data set
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
    choice = _choose_paired(inventory, files)
    if choice is not None:
        return choice
    return _choose_many(inventory, files, wanted)


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


def _choose_paired(inventory: Inventory, files: npt.NDArray[np.int64]) -> Choice | None:
    paths = inventory.scan.names()
    # The files of one folder, or of `train` and `test`, are the fields of data sets, and no samples.
    found = [
        pairing
        for pairing in find_pairings(paths, files.tolist())
        if pairing.pattern != "name" or (pairing.num_whole and len(pairing.keys) > 1 and not _are_splits(pairing))
    ]
    for pairing in filter(lambda pairing: pairing.complete, found):
        roles = " + ".join(repr(name) for name in pairing.names)
        if pairing.spoken:
            differ = _roles_differ(inventory, pairing)
        else:  # such names need more of the arrays, to say that these are parts of samples
            differ = len(pairing.keys) > 1 and _contents_differ(inventory, pairing)
        if _are_splits(pairing) and (differ or pairing.spoken):
            _refuse_columns(inventory, files, spoken=pairing.spoken)
        if differ:
            first = " + ".join(paths[column[0]] for column in pairing.files[:3])
            return Choice(
                "paired",
                f"the names pair completely ({first}, ...) and the arrays of {roles} differ: "
                f"{count_text(len(pairing.keys), 'sample')}.",
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
        if not pairing.spoken or pairing.pattern not in ("folder", "name"):
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


def _are_splits(pairing: Pairing) -> bool:
    return SPLIT_WORDS.issuperset(key.lower().rpartition("/")[2] for key in pairing.keys)


def missing_partner(pairing: Pairing, paths: Sequence[str]) -> str:
    """Names the first file without a partner."""
    row = next(row for row in zip(*pairing.files, strict=True) if -1 in row)
    role = pairing.names[row.index(-1)]
    there = next(paths[file] for file in row if file >= 0)
    return (
        f"the files pair as {', '.join(map(repr, pairing.names))}, but {there!r} has no partner in {role!r} "
        f"({len(pairing.keys) - pairing.num_whole:,} of {len(pairing.keys):,} are incomplete)"
    )


def _contents(inventory: Inventory, pairing: Pairing) -> list[frozenset[int]]:
    """The signatures of each role's files."""
    signature_of = np.array(inventory.signature_of)
    return [frozenset(signature_of[[n for n in column if n >= 0]].tolist()) for column in pairing.files]


def _contents_differ(inventory: Inventory, pairing: Pairing) -> bool:
    """Whether no two roles have files of the same arrays, dtypes and dimensions."""
    contents = _contents(inventory, pairing)
    return len(frozenset().union(*contents)) == sum(map(len, contents))


def _roles_differ(inventory: Inventory, pairing: Pairing) -> bool:
    """Whether arrays differ from role to role: contents, or one shape in each role and not the same in all."""
    if _contents_differ(inventory, pairing):
        return True
    shapes = (
        {_one_shape(inventory, column) for column in pairing.files} if roles_uniform(inventory, pairing) else {None}
    )
    return None not in shapes and len(shapes) > 1


def roles_uniform(inventory: Inventory, pairing: Pairing) -> bool:
    """Whether all files of each role have the same arrays, dtypes and dimensions."""
    return all(len(found) == 1 for found in _contents(inventory, pairing))


def _one_shape(inventory: Inventory, files: list[int]) -> tuple[bytes, ...] | None:
    """The shapes that the arrays of all these files have, or None."""
    places = np.array(sorted(place for place in files if place >= 0))
    arrays = inventory.signatures[inventory.signature_of[int(places[0])]]
    tables = [inventory.tables[name, ndim].columns(places)["dims"] for name, _, ndim in arrays]
    if any((dims != dims[0]).any() for dims in tables):
        return None
    return tuple(dims[0].tobytes() for dims in tables)


def _choose_many(inventory: Inventory, files: npt.NDArray[np.int64], wanted: Wanted) -> Choice:
    _refuse_columns(inventory, files, spoken=False)
    signature_of = np.array(inventory.signature_of)[files]
    if (signature_of != signature_of[0]).any():
        _refuse_folders(inventory, files)
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
            f"--layout rows ({total:,} samples, one per index of the first axis).{_split_hint(inventory.scan, files)}"
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
    alike = Counter(found[0][1:] for found in arrays).most_common(1)[0][1]
    paths = [inventory.scan.names()[place] for place in files.tolist()]
    roles = {stem(path).rpartition("/")[2].lower() for path in paths}  # one alone: `case1/image.npy`, `case2/image.npy`
    spoken = spoken or (len(roles) > 1 and roles <= ROLE_WORDS)
    if not spoken and (alike * 2 > len(files) or len({ndim for ((_, _, ndim),) in arrays}) < 2):
        return  # most are alike: the others are the odd ones
    by_axis: dict[tuple[int, str], list[str]] = {}
    for path, place, ((name, _, ndim),) in zip(paths, files.tolist(), arrays, strict=True):
        axis = int(inventory.tables[name, ndim].columns(np.array([place]))["dims"][0, 0])
        by_axis.setdefault((axis, _split_of(path)), []).append(path)
    (length, _), paths = max(by_axis.items(), key=lambda item: (len(item[1]), item[0]))
    if length > 1 and len(paths) > 1:
        names = [stem(path) for path in paths]
        picked = "" if len(by_axis) == 1 else "".join(f" {_field_option(name, name)}" for name in names)
        samples = f"say --layout files ({len(files):,} samples)"
        if alike < len(files):
            samples = "leave out those that do not fit with --exclude, or say --layout paired where the names pair"
        raise IngestError(
            f"--layout auto: {', '.join(map(repr, paths))} have one first axis of {length:,}. "
            f"If they are the fields of one data set, say --layout columns{picked} ({length:,} samples). If they are "
            f"samples, {samples}."
        )


def _refuse_folders(inventory: Inventory, files: npt.NDArray[np.int64]) -> None:
    """Name the other reading of `calib/1.npy`, `velodyne/1.npy`: folders whose names say nothing, of unlike arrays.

    Raises:
        IngestError: such are the files.
    """
    if inventory.skips:
        return
    paths = inventory.scan.names()
    for pairing in filter(lambda pairing: pairing.complete, find_pairings(paths, files.tolist())):
        if pairing.pattern == "folder" and roles_uniform(inventory, pairing) and len(pairing.keys) > 1:
            first = " + ".join(paths[column[0]] for column in pairing.files[:3])
            raise IngestError(
                "--layout auto: the files do not all have the same arrays, and their names pair completely "
                f"({first}, ...). Say --layout paired ({count_text(len(pairing.keys), 'sample')} of "
                f"{count_text(len(pairing.roles), 'field')}), or leave out those that do not fit with --exclude."
            )


def _split_of(path: str) -> str:
    """The word that says to which split a file belongs: `test` in `test/x.npy` and `x_test.npy`; empty without one."""
    return next((word for word in re.split("[/_.-]", stem(path).lower()) if word in SPLIT_WORDS), "")


def _split_hint(scan: Scan, files: npt.NDArray[np.int64]) -> str:
    """A word about `train.npz` and `test.npz`, which nobody wants in one container."""
    names = [stem(scan.paths[place]).lower() for place in files.tolist()]
    return " They could be splits: each makes its own container." if SPLIT_WORDS.issuperset(names) else ""


def class_hint(scan: Scan, files: npt.NDArray[np.int64]) -> str:
    """A word about folders that could be classes."""
    names: dict[str, None] = {}
    folder = "/"  # no path begins so
    for place in files.tolist():
        if scan.paths[place].startswith(folder):
            continue
        head, slash, _ = scan.paths[place].partition("/")
        if not slash:
            return ""
        names[head], folder = None, head + slash
        if len(names) > 1000:
            break
    if len(names) < 2:
        return ""
    shown = ", ".join(map(repr, list(names)[:3])) + ", ..." * (len(names) > 3)
    if SPLIT_WORDS.issuperset(name.lower() for name in names):
        return f" The folders ({shown}) could be splits: each makes its own container."
    return f" --layout classes adds a field 'label' with the number of the folder ({shown})."


def may_be_roles(path: str) -> bool:
    """Whether one path has a word in it that could name a role: a cheap test before the names are not looked at."""
    parts = path.rpartition(".")[0].lower().replace("-", "_").replace(".", "_").split("/")
    words = parts[-1].split("_")
    return any(part in ROLE_WORDS for part in parts[:-1]) or words[0] in ROLE_WORDS or words[-1] in ROLE_WORDS


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
