"""What `export` writes: from ATTRS and schema of a container to a list of files and the arrays in them.

The record that `convert` left (`origin`) comes from the file, so nothing in it is trusted: a record that does not fit
the schema is not used, and every name is checked before a file is made.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from chunkstore._format import dtypes
from chunkstore._format.constants import ATTRS_RESERVED
from chunkstore._format.schema import Field
from chunkstore._ingest.npy.descr import descr_to_dtype
from chunkstore._ingest.plan.origin import order_notes
from chunkstore._ingest.plan.specs import Leaf, leaves
from chunkstore.errors import SchemaError

_WINDOWS: Final = os.name == "nt"


class _Unusable(Exception):
    """The record does not fit."""


# What a record of other types and sizes than those that `convert` writes can lead to.
_MISFITS: Final = (
    _Unusable, KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError
)  # fmt: skip
# What says to which of several files of a sample a field belongs.
_HOMES: Final = {"files": None, "rows": None, "columns": "file", "paired": "role", "classes": None}
_ZIP_NAME_NBYTES: Final = 0xFFFF
_PATH_PARTS: Final = 1 << 12


@dataclass(frozen=True)
class Part:
    """One field, as an array or as a member of a structured one.

    Attributes:
        field: of the container.
        dtype: as it shall be stored; None for texts whose width is not known.
        member: where in the structured array; empty if it is the array.
        subshape: dimensions that the member has by itself.
    """

    field: Field
    dtype: np.dtype[Any] | None
    member: tuple[str, ...] = ()
    subshape: tuple[int, ...] = ()


@dataclass(frozen=True)
class OutArray:
    """One array of a file.

    Attributes:
        name: in the `.npz`; None in an `.npy`.
        parts: one, or the members of a structured array.
        struct: its dtype, if it is one.
        fortran_order: as it was.
        objects: it was an object array, one row per element.
    """

    name: str | None
    parts: tuple[Part, ...]
    struct: np.dtype[Any] | None = None
    fortran_order: bool = False
    objects: bool = False


@dataclass(frozen=True)
class OutFile:
    """One file: samples `[start, stop)` stacked along a first axis, or one sample as it is."""

    path: str
    arrays: tuple[OutArray, ...]
    start: int
    stop: int
    stacked: bool


@dataclass(frozen=True)
class Restored:
    """How files are made again.

    Attributes:
        arrays: of each file of a sample, by its role; of each file, in `columns`.
        notes: why not all is as it was.
    """

    layout: str
    arrays: tuple[tuple[str, tuple[OutArray, ...]], ...]
    record: Mapping[str, Any]
    notes: tuple[str, ...]

    def files(self, num_samples: int, keys: Sequence[str] | None) -> Iterator[OutFile]:
        """Every file, in the order of samples.

        Raises:
            SchemaError: a name that must not be a path.
        """
        if self.layout == "rows":
            yield from self._row_files()
            return
        if self.layout == "columns":
            for path, arrays in self.arrays:
                yield OutFile(check_path(path), arrays, 0, num_samples, stacked=True)
            return
        width = len(str(max(num_samples - 1, 0)))
        names = self.record.get("names", {})
        for position in range(num_samples):
            key = f"{position:0{width}d}" if keys is None else keys[position]
            for role, arrays in self.arrays:
                path = names.get(f"{role} {key}" if self.layout == "paired" else key) or self._path(key, role)
                yield OutFile(check_path(path), arrays, position, position + 1, stacked=False)

    def _path(self, key: str, role: str) -> str:
        suffix = str(self.record["suffix"])
        pattern = self.record.get("pattern")
        if pattern == "folder":
            parts = key.split("/")
            parts.insert(self.record["position"], role)
            return "/".join(parts) + suffix
        if pattern == "affixes":
            folder, head, tail = role.split("/")
            parts = key.split("/")
            parts[-1] = head + parts[-1] + tail
            parts.insert(self.record["position"], folder)
            return "/".join(parts) + suffix
        if pattern in ("prefix", "infix"):
            folder, slash, name = key.rpartition("/")
            parts = re.split("([_.-])", name)  # words, and what is between them
            parts.insert(2 * self.record["position"], role)
            return folder + slash + "".join(parts) + suffix
        return key + role + suffix

    def _row_files(self) -> Iterator[OutFile]:
        seen: set[str] = set()
        start = 0
        for place, (path, count) in enumerate(self.record["files"]):
            # Files of several sources may have had one name.
            name = path if path not in seen else f"{place}/{path}"
            seen.add(name)
            yield OutFile(check_path(name), self.arrays[0][1], start, start + count, stacked=True)
            start += count


def check_path(path: str) -> str:
    """The relative path, if it stays inside its directory.

    Raises:
        SchemaError: absolute, with `..`, empty parts or NUL; on Windows with a colon.
    """
    parts = re.split(r"[/\\]" if _WINDOWS else "/", path)
    bad = (
        "\0" in path
        or (_WINDOWS and ":" in path)  # a drive, or a stream of another file; elsewhere a character like others
        or any(part in ("", ".") for part in parts)
        or not _has_bytes(path)
        or ".." in re.split(r"[/\\]", path)
    )
    if bad:
        raise SchemaError(f"the name {path!r:.200} cannot be that of a file inside the directory: nothing was exported")
    return path


def _has_bytes(path: str) -> bool:
    """Whether the system can have such a name: not with half a surrogate pair."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


def restore(fields: Sequence[Field], attrs: Mapping[str, Any], num_samples: int, *, has_keys: bool) -> Restored:
    """Find out how to write a container as files again.

    Args:
        fields: to export.
        attrs: of the container.
        num_samples: of the container.
        has_keys: whether samples have keys.
    """
    reserved = attrs.get(ATTRS_RESERVED)
    record = reserved.get("origin") if isinstance(reserved, dict) else None
    if record is None:
        return _plain(fields, ())
    try:
        return _from_record(fields, record, num_samples, has_keys)
    except _MISFITS:
        note = "the record of the original files does not fit this container: files are named by key or position"
        return _plain(fields, (note,))


def _plain(fields: Sequence[Field], notes: tuple[str, ...]) -> Restored:
    """One file for each sample, named by its key or position."""
    alone = len(fields) == 1
    arrays = tuple(OutArray(None if alone else field.name, (_part(field, {}),)) for field in fields)
    suffix = ".npy" if alone else ".npz"
    return Restored("files", (("", arrays),), {"suffix": suffix, "names": {}}, notes)


def _from_record(fields: Sequence[Field], record: Mapping[str, Any], num_samples: int, has_keys: bool) -> Restored:
    layout = record["layout"]
    known = [field for field in fields if field.name != record.get("label")]
    _require(layout in _HOMES and record["version"] == 1 and len(known) > 0)
    _require(all(field.name in record["fields"] for field in known))
    if layout == "rows":
        _require(all(isinstance(path, str) and type(count) is int and count >= 0 for path, count in record["files"]))
        _require(sum(count for _, count in record["files"]) == num_samples)
    elif layout != "columns":
        _require(has_keys and isinstance(record["suffix"], str) and isinstance(record["names"], dict))
        _require(all(isinstance(path, str) for path in record["names"].values()))
    if layout == "paired":
        _require(record["pattern"] in ("folder", "affixes", "suffix", "prefix", "infix", "name"))
        _require(type(record["position"]) is int)
        _require(abs(record["position"]) < _PATH_PARTS)
    homes: dict[str, list[Field]] = {}
    for field in known:
        home = record["fields"][field.name][_HOMES[layout]] if _HOMES[layout] else ""
        _require(isinstance(home, str) and (record.get("pattern") != "affixes" or home.count("/") == 2))
        homes.setdefault(home, []).append(field)
    arrays = tuple((home, _arrays(group, record, home)) for home, group in homes.items())
    return Restored(layout, arrays, record, order_notes(record))


def _require(condition: bool) -> None:
    if not condition:
        raise _Unusable


def _arrays(fields: Sequence[Field], record: Mapping[str, Any], home: str) -> tuple[OutArray, ...]:
    """The arrays of one file, members of structured arrays together again."""
    by_array: dict[str | None, list[Field]] = {}
    for field in fields:
        by_array.setdefault(record["fields"][field.name]["array"], []).append(field)
    _require(None not in by_array or len(by_array) == 1)
    _require(record["layout"] != "columns" or None in by_array)
    struct = home if record["layout"] == "columns" else ""
    return tuple(_array(name, group, record, name or struct) for name, group in by_array.items())


def _array(name: Any, fields: Sequence[Field], record: Mapping[str, Any], struct_name: str) -> OutArray:
    entries = [record["fields"][field.name] for field in fields]
    _require(name is None or (isinstance(name, str) and "\0" not in name))
    _require(len(f"{name}.npy".encode()) <= _ZIP_NAME_NBYTES)
    fortran = entries[0]["order"] == "F"
    if entries[0]["member"] is None:
        _require(len(fields) == 1)
        objects = fields[0].name in record.get("objects", ())
        return OutArray(name, (_part(fields[0], entries[0]),), None, fortran, objects)
    struct = descr_to_dtype(_tuples(record["structs"][struct_name]))
    found = {".".join(leaf.member): leaf for leaf in leaves(name, struct, 0)}
    chosen = {entry["member"]: field for field, entry in zip(fields, entries, strict=True)}
    _require(len(chosen) == len(fields))
    pairs = zip(fields, entries, strict=True)
    parts = tuple(_member(field, found[entry["member"]], entry) for field, entry in pairs)
    same = all(part.dtype == found[member].dtype for part, member in zip(parts, chosen, strict=True))
    if len(parts) < len(found) or not same:  # some were not converted, or as another type
        struct = _smaller(struct, {part.member: part.dtype for part in parts if part.dtype is not None}, ())
    return OutArray(name, parts, struct, fortran)


def _member(field: Field, leaf: Leaf, entry: Mapping[str, Any]) -> Part:
    part = _part(field, entry)
    _require(part.dtype is not None)
    _require(not leaf.subshape or field.shape[-len(leaf.subshape) :] == leaf.subshape)
    return Part(field, part.dtype, leaf.member, leaf.subshape)


def _smaller(
    struct: np.dtype[Any], kept: Mapping[tuple[str, ...], np.dtype[Any]], prefix: tuple[str, ...]
) -> np.dtype[Any]:
    """The structured dtype with some members only, and with their new types."""
    assert struct.fields is not None
    items: list[Any] = []
    for name in struct.names or ():
        inner, shape = struct.fields[name][0], ()
        if inner.subdtype is not None:
            inner, shape = inner.subdtype
        path = (*prefix, name)
        if inner.names is not None:
            if any(member[: len(path)] == path for member in kept):
                items.append((name, _smaller(inner, kept, path), shape))
        elif path in kept:
            items.append((name, kept[path], shape))
    return np.dtype(items)


def _tuples(descr: Any) -> Any:
    """The descr of an `.npy` header from its JSON, which has no tuples: [[name, descr], [name, descr, [3]]]."""
    if not isinstance(descr, list):
        return descr
    return [
        (tuple(name) if isinstance(name, list) else name, _tuples(inner), *map(tuple, shape))
        for name, inner, *shape in descr
    ]


def _part(field: Field, entry: Mapping[str, Any]) -> Part:
    """The field with the dtype that its array had, where that holds the same values."""
    plain = np.dtype(f"V{field.numpy_dtype.itemsize}") if field.dtype in dtypes.EXTENDED else field.numpy_dtype
    text = entry.get("dtype")
    recorded = descr_to_dtype(text) if isinstance(text, str) else None
    if field.is_string:
        fits = recorded is not None and recorded.kind in "SU" and recorded.itemsize > 0
        return Part(field, recorded if fits else None)
    same = recorded is not None and recorded.newbyteorder("<") == plain
    return Part(field, recorded if same else plain)
