"""The plan: every sample, its sources, its fields; found from headers alone, before a byte is written.

`make_plan` opens every file once and reads its header. `plan_uniform` is the optimistic way for a directory of `.npy`
files with one and the same header: it opens the first file only; `read.read_uniform` then checks each file while it
reads it, and says when the guess was wrong.
"""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from chunkstore._format.schema import check_fields
from chunkstore._ingest.npy.casts import is_inexact
from chunkstore._ingest.plan import layouts
from chunkstore._ingest.plan.agree import Pick, Wanted, agree, make_pick, take_column
from chunkstore._ingest.plan.columns import OBJECT, Column, cast_of, label_column, make_field, renumber
from chunkstore._ingest.plan.inventory import Inventory
from chunkstore._ingest.plan.origin import describe_origin
from chunkstore._ingest.plan.pairing import Pairing, find_pairings, stem
from chunkstore._ingest.plan.plan import Plan
from chunkstore._ingest.plan.row_shapes import fill_shapes
from chunkstore._ingest.plan.scan import Scan, count_text, leave_out
from chunkstore._ingest.plan.specs import DtypeArg, DtypeSpec, FieldArg, Leaf, parse_dtypes, parse_fields
from chunkstore._ingest.plan.texts import Texts
from chunkstore._storage.names import natural_sort
from chunkstore.errors import IngestError, SchemaError

OnError = Literal["fail", "skip"]
LABEL: Final = "label"


def make_plan(
    scan: Scan,
    *,
    layout: str = "auto",
    fields: FieldArg = None,
    dtype: DtypeArg = None,
    on_error: OnError = "fail",
    allow_pickle: bool = False,
) -> Plan:
    """Plan from the headers of all files.

    Args:
        scan: which files.
        layout: one of `layouts.LAYOUTS`.
        fields: `NAME=SOURCE` texts or a mapping; all arrays under their own names if empty.
        dtype: `NAME=TYPE` texts, `TYPE` for all fields, or a mapping.
        on_error: `skip` leaves out files that cannot be read or do not fit, and lists them.
        allow_pickle: read object arrays, one row per element; for trusted files.

    Raises:
        IngestError: a file is damaged or does not fit the others, two readings fit, keys collide, nothing is left.
        OSError: a file cannot be read.
    """
    layouts.check_layout(layout)
    wanted = Wanted(parse_fields(fields), parse_dtypes(dtype), allow_pickle)
    if scan.problems and on_error == "fail":
        path, problem = next(iter(scan.problems.items()))
        raise IngestError(
            f"{path}: {problem.reason.rstrip('.')}. Remove it, or leave it out: {leave_out(scan, problem.path)}."
        )
    inventory = Inventory(scan, skip=on_error == "skip")
    return _Builder(scan, inventory, wanted).build(layout)


class _Builder:
    """Carries one layout out."""

    def __init__(self, scan: Scan, inventory: Inventory, wanted: Wanted) -> None:
        self.scan, self.inventory, self.wanted = scan, inventory, wanted
        self.attrs: dict[str, Any] = {}
        self.roles: dict[str, str] = {}

    def build(self, layout: str) -> Plan:
        files = self.readable()
        choice = layouts.Choice(layout, layouts.ASKED)
        if layout == "auto":
            choice = layouts.choose(self.inventory, files, self.wanted)
        pairing, keys = None, None
        if choice.layout == "paired":
            pairing = choice.pairing or self.best_pairing(files)
            named, keys = self.paired(pairing)
        elif choice.layout == "columns":
            named = self.columns(files)
        elif choice.layout == "rows":
            named = self.rows(files)
        else:
            named, keys = self.by_file(files, classes=choice.layout == "classes")
        self.wanted.dtypes.check_names(list(named))
        return self.finish(choice, pairing, named, keys)

    def readable(self) -> npt.NDArray[np.int64]:
        files = np.flatnonzero(np.array(self.inventory.signature_of) >= 0)
        if not len(files):
            skipped = self.inventory.skip_list()
            first = f" The first: {skipped[0].path}: {skipped[0].reason}" if skipped else ""
            number = count_text(len(skipped), "file was", "files were")
            raise IngestError(f"no file is left to convert: {number} skipped.{first}")
        return files

    def by_file(self, files: npt.NDArray[np.int64], *, classes: bool) -> tuple[dict[str, Column], Texts]:
        picks, files = agree(self.inventory, files, self.wanted)
        self.no_objects(picks, files)
        keys = self.file_keys(files)
        named = {pick.field: take_column(self.inventory, pick, files, rows=False) for pick in picks}
        if classes:
            self.add_label(named, files)
        return named, keys

    def rows(self, files: npt.NDArray[np.int64]) -> dict[str, Column]:
        picks, files = agree(self.inventory, files, self.wanted)
        files = self.rows_fit(picks, files)
        return {pick.field: take_column(self.inventory, pick, files, rows=True) for pick in picks}

    def rows_fit(self, picks: list[Pick], files: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Files in which all arrays have the same first axis."""
        axes = layouts.first_axes(self.inventory, picks, files)
        path = self.scan.file_path(int(files[0]))
        if axes is None:
            flat = next(pick.leaf.label for pick in picks if pick.leaf.array_ndim < 1)
            raise IngestError(
                f"{path}: array {flat!r} has no dimension, so it has no rows. Take others with --field, or say "
                "--layout files."
            )
        bad = (axes != axes[:, :1]).any(axis=1)
        shared = layouts.shared_picks(picks, axes) if bad.any() else []
        options = f" ({layouts.field_options(shared)})" if len(shared) > 1 else ""
        for row in np.flatnonzero(bad).tolist():
            other = int(np.flatnonzero(axes[row] != axes[row, 0])[0])
            self.inventory.skip_or_raise(
                int(files[row]),
                f"--layout rows: array {picks[0].leaf.label!r} has {axes[row, 0]:,} rows, "
                f"{picks[other].leaf.label!r} has {axes[row, other]:,}. "
                f"Take those that belong together with --field NAME=SOURCE{options}, or say --layout files.",
            )
        if bad.all():
            raise IngestError(f"{path}: no file is left to convert: in none do all arrays have one first axis.")
        kept: npt.NDArray[np.int64] = files[~bad]
        return kept

    def no_objects(self, picks: list[Pick], files: npt.NDArray[np.int64]) -> None:
        for pick in picks:
            if pick.target == OBJECT:
                raise IngestError(
                    f"{self.scan.file_path(int(files[0]))}: array {pick.leaf.label!r} is an object array, one "
                    f"row per element: say --layout rows {layouts.field_options([pick])}."
                )

    def file_keys(self, files: npt.NDArray[np.int64]) -> Texts:
        """Keys, packed at once: a list of as many texts is the largest thing that planning would hold."""
        names = self.scan.names()
        keys = [stem(names[place]) for place in files]
        self.check_unique(keys, files)
        return Texts.pack(keys)

    def check_unique(self, keys: list[str], files: npt.NDArray[np.int64]) -> None:
        if len(set(keys)) == len(keys):
            return
        key = next(key for key, count in Counter(keys).items() if count > 1)
        paths = [self.scan.file_path(place) for other, place in zip(keys, files.tolist(), strict=True) if other == key]
        raise IngestError(
            f"{paths[0]} and {paths[1]} would both have the key {key!r}. Rename one, leave one out with --exclude, or "
            f"take one suffix with --include '*{paths[1][-4:]}'."
        )

    def add_label(self, named: dict[str, Column], files: npt.NDArray[np.int64]) -> None:
        """Field of class numbers; classes in natural order of their names."""
        if LABEL in named:
            others = "".join(f" --field {shlex.quote(name)}" for name in named if name != LABEL)
            raise IngestError(
                f"--layout classes adds a field {LABEL!r}, and the files have an array of that name. Take it under "
                f"another name: --field {LABEL}_array={LABEL}{others}."
            )
        names = [layouts.class_of(self.scan, place) for place in files.tolist()]
        classes = natural_sort(list(set(names)))
        number = {name: place for place, name in enumerate(classes)}
        named[LABEL] = label_column(np.array([number[name] for name in names], np.int64))
        self.attrs["class_names"] = {LABEL: classes}

    def columns(self, files: npt.NDArray[np.int64]) -> dict[str, Column]:
        """The array of each `.npy`, under the name of the file."""
        found = self.whole_arrays(files)
        named = {}
        for field, source in (self.wanted.fields or {name: name for name in found}).items():
            chosen = found.get(source) or found.get(stem(source))
            if chosen is None:
                names = ", ".join(map(repr, list(found)[:20]))
                raise IngestError(f"--field {field}={source}: there is no such file; there are {names}.")
            place, leaf = chosen
            path = self.scan.file_path(place)
            if leaf.array_ndim < 1:
                raise IngestError(
                    f"{path}: the array has no dimension, so it has no rows, which --layout columns needs. Leave the "
                    "file out with --exclude, or take others with --field NAME=FILE."
                )
            try:
                pick = make_pick(field, leaf, self.wanted)
            except IngestError as error:
                raise IngestError(f"{path}: {error}") from None
            named[field] = take_column(self.inventory, pick, np.array([place]), rows=True)
        self.same_rows(named)
        return named

    def whole_arrays(self, files: npt.NDArray[np.int64]) -> dict[str, tuple[int, Leaf]]:
        """What can be a field, and the number of its file: by the stem of the file, and `stem.member` for members of a
        structured array.
        """
        found: dict[str, tuple[int, Leaf]] = {}
        names = self.scan.names()
        for place in files.tolist():
            path = self.scan.file_path(place)
            for leaf in self.inventory.leaves(self.inventory.signature_of[place]):
                if leaf.array is not None:
                    raise IngestError(
                        f"{path}: --layout columns takes .npy files, each one a field. The arrays of an .npz have "
                        "names already: convert it alone, with --layout rows."
                    )
                name = stem(names[place])
                name = f"{name}.{leaf.label}" if leaf.member else name
                if name in found:
                    raise IngestError(
                        f"{self.scan.file_path(found[name][0])} and {path} would both be the field {name!r}. Leave one "
                        "of them out with --exclude."
                    )
                found[name] = place, leaf
        return found

    def same_rows(self, named: dict[str, Column]) -> None:
        """Refuse files of different numbers of rows: the one that differs from most is named."""
        lengths = {field: int(column.dims[0, 0]) for field, column in named.items()}
        (usual, _), *others = Counter(lengths.values()).most_common()
        if others:
            odd = next(field for field, length in lengths.items() if length != usual)
            other = next(field for field, length in lengths.items() if length == usual)
            paths = [self.scan.file_path(int(named[field].file[0])) for field in (odd, other)]
            raise IngestError(
                f"{paths[0]}: --layout columns: it has {lengths[odd]:,} rows, {paths[1]} has {usual:,}. Take those "
                "that belong together with --field NAME=FILE."
            )

    def best_pairing(self, files: npt.NDArray[np.int64]) -> Pairing:
        numbers, paths = files.tolist(), self.scan.names()
        found = [pairing for pairing in find_pairings(paths, numbers) if pairing.num_whole]
        if not found:
            raise IngestError(
                "--layout paired: the names do not pair. Expected equal stems in folders that name the role "
                "(images/0001.npy, labels/0001.npy), roles at the end of the name (0001_image.npy, 0001_label.npy), or "
                f"a folder for each sample (0001/image.npy, 0001/label.npy); found {paths[numbers[0]]!r}, "
                f"{paths[numbers[-1]]!r}."
            )
        complete = [pairing for pairing in found if pairing.complete]
        if complete:
            return min(complete, key=lambda found: layouts.unlikely(self.inventory, found))
        best = min(found, key=lambda found: (*layouts.unlikely(self.inventory, found), -found.num_whole))
        if not self.inventory.skips:
            raise IngestError(
                f"--layout paired: {layouts.missing_partner(best, paths)}. Add it, leave the file out with "
                "--exclude, or say --on-error skip."
            )
        return best

    def paired(self, pairing: Pairing) -> tuple[dict[str, Column], Texts]:
        """Columns of all roles, over the keys that have every role."""
        table = np.array(pairing.files, np.int64)
        chosen = self.role_picks(pairing, table)
        used = sorted({role for role, _ in chosen})
        signature_of = np.array(self.inventory.signature_of)
        good = np.all([(table[role] >= 0) & (signature_of[table[role]] >= 0) for role in used], axis=0)
        for place in table[used][:, ~good].ravel().tolist():
            if place >= 0 and place not in self.inventory.skipped:
                self.inventory.skip_or_raise(place, "its partner is missing or was skipped.")
        if not good.any():
            raise IngestError("no sample is left to convert: each pair has a file that was skipped.")
        named: dict[str, Column] = {}
        for role, pick in chosen:
            if pick.field in named:
                raise IngestError(
                    f"two arrays would both be the field {pick.field!r}. Name them with --field NAME=SOURCE."
                )
            named[pick.field] = take_column(self.inventory, pick, table[role][good], rows=False)
            self.roles[pick.field] = pairing.roles[role]
        keys = [key for key, keep in zip(pairing.keys, good.tolist(), strict=True) if keep]
        self.check_unique(keys, table[used[0]][good])
        return named, Texts.pack(keys)

    def role_picks(self, pairing: Pairing, table: npt.NDArray[np.int64]) -> list[tuple[int, Pick]]:
        """Roles and picks, named after the role; `--field` sources are a role, or `role.array`."""
        result: list[tuple[int, Pick]] = []
        sources, taken = self.wanted.fields, set[str]()
        for role, name in enumerate(pairing.names):
            mine = {new: old for new, old in sources.items() if old == name or old.startswith(name + ".")}
            if sources and not mine:
                continue
            taken |= mine.keys()
            files = np.sort(table[role][table[role] >= 0])
            files = files[np.array(self.inventory.signature_of)[files] >= 0]
            if not len(files):
                raise IngestError(f"--layout paired: no file of role {name!r} can be read.")
            inner = {new: old[len(name) + 1 :] for new, old in mine.items() if old != name}
            picks, _ = agree(self.inventory, files, self.role_wanted(name, inner, mine))
            self.no_objects(picks, files)
            if not inner:
                outer = next(iter(mine), name)
                picks = [replace(pick, field=outer if len(picks) == 1 else f"{name}.{pick.field}") for pick in picks]
            result += [(role, pick) for pick in picks]
        for new, old in sources.items():
            if new not in taken:
                raise IngestError(f"--field {new}={old}: the roles are {', '.join(map(repr, pairing.names))}.")
        return result

    def role_wanted(self, name: str, inner: dict[str, str], mine: dict[str, str]) -> Wanted:
        """What is asked of one role: its arrays do not have the names of their fields yet."""
        if inner:
            return replace(self.wanted, fields=inner)
        by_field = self.wanted.dtypes.by_field
        inside = {
            field.removeprefix(name + "."): target for field, target in by_field.items() if field.startswith(name + ".")
        }
        default = by_field.get(next(iter(mine), name), self.wanted.dtypes.default)
        return replace(self.wanted, fields={}, dtypes=DtypeSpec(inside, default))

    def finish(
        self, choice: layouts.Choice, pairing: Pairing | None, named: dict[str, Column], keys: Texts | None
    ) -> Plan:
        """Everything into one plan."""
        plan = self.bare(choice.layout, named, keys)
        plan = fill_shapes(plan, list(named), self.wanted.dtypes)
        try:
            fields = tuple(make_field(name, column) for name, column in zip(named, plan.columns, strict=True))
            check_fields(fields)
        except SchemaError as error:
            raise IngestError(
                f"{self.scan.sources[0]}: {error}. --field NAME=SOURCE renames and picks fields."
            ) from None
        plan = replace(plan, fields=fields)
        rounded = _rounded(plan, self.wanted.dtypes)
        origin = describe_origin(plan, self.inventory, self.roles, pairing)
        text = f"{self.scan.summary()}. Layout {choice.layout}: {choice.reason}"
        return replace(
            plan,
            origin=origin,
            explanation=text,
            notes=(*rounded.values(), *_ragged_notes(plan)),
            rounded=tuple(rounded),
            skipped=tuple(self.inventory.skip_list()),
            attrs=self.attrs,
        )

    def bare(self, layout: str, named: dict[str, Column], keys: Texts | None) -> Plan:
        """Plan with its files renumbered to those that are used; fields come later."""
        used, columns = renumber(named.values())
        first = columns[0]
        num_samples = int(first.start[-1]) if first.start is not None else first.num_pieces
        if num_samples == 0:
            raise IngestError(f"{self.scan.sources[0]}: there are no samples: the first axis of every array is 0.")
        return Plan(
            layout=layout,
            num_samples=num_samples,
            keys=keys,
            columns=columns,
            kinds=tuple(self.inventory.kinds),
            paths=Texts.pack(map(self.scan.paths.__getitem__, used.tolist())),
            roots=self.scan.roots,
            source_of=np.array(self.scan.source_of, np.int32)[used],
            size=np.array(self.inventory.size)[used],
            mtime_ns=np.array(self.inventory.mtime_ns)[used],
        )


def _rounded(plan: Plan, wanted: DtypeSpec) -> dict[str, str]:
    """Fields whose values `--dtype` may round, and the note that says so."""
    found = {}
    for item, column in zip(plan.fields, plan.columns, strict=True):
        casts = [cast_of(column, plan.kinds[kind], item.name) for kind in np.unique(column.kind).tolist()]
        sources = sorted({str(cast.source) for cast in casts if cast is not None and cast.rounds})
        if None in casts and wanted.target(item.name) is not None and is_inexact(column.target):
            sources.append("elements of object arrays, where they are wider,")
        if sources:
            found[item.name] = f"field {item.name!r}: --dtype rounds {' and '.join(sources)} to {column.target}"
    return found


def _ragged_notes(plan: Plan) -> list[str]:
    """Fields that are ragged because of very few samples: perhaps a broken file, not ragged data."""
    notes = []
    for number, (item, column) in enumerate(zip(plan.fields, plan.columns, strict=True)):
        if column.is_rows or column.shapes is not None or not item.ragged or plan.num_samples < 10:
            continue
        dims = column.row_dims()
        common = np.median(dims, axis=0)
        odd = np.flatnonzero((dims != common).any(axis=1))
        if len(odd) <= max(1, plan.num_samples // 100):
            shape = tuple(dims[odd[0]].tolist())
            usual = tuple(common.astype(np.int64).tolist())
            notes.append(
                f"field {item.name!r} is ragged only because of {len(odd):,} of {plan.num_samples:,} files: "
                f"{plan.where(number, int(odd[0]))} has shape {shape}, "
                f"the others {usual}. Leave it out with --exclude if that is a mistake."
            )
    return notes
