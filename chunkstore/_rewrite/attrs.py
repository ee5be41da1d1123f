"""What becomes of the attributes when containers are put together: what is true of all is kept, the rest is told."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeGuard

from chunkstore._format.constants import ATTRS_RESERVED
from chunkstore.errors import SchemaError

_CLASSES: Final = "class_names"
_MAY_DIFFER: Final = ("dtype", "order")  # of the files of a field: None says that they are not all alike
_MUST_AGREE: Final = ("version", "layout", "label", "pattern", "position", "suffix", "structs")
type_attrs = Mapping[str, Any]


def merge_attrs(paths: Sequence[str], attrs: Sequence[type_attrs]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """ATTRS of a container that has the samples of several, and a sentence for each member that it has not.

    Members that are equal everywhere are kept, in the order of the first input. Class names are kept as the longest
    list, where each list begins like it: then every number means the same class. What `convert` noted of the original
    files is joined, field by field, as far as `export` can go by it.

    Args:
        paths: of the inputs, for messages.
        attrs: theirs.
    Raises:
        SchemaError: a number would mean one class in one input and another one in the other.
    """
    kept: dict[str, Any] = {}
    notes: list[str] = []
    for name in dict.fromkeys(name for one in attrs for name in one):
        values = [one.get(name) for one in attrs]
        if name == _CLASSES:
            value, note = _classes(paths, values)
        elif name == ATTRS_RESERVED:
            value, note = _reserved(paths, values)
        else:
            odd = _first_unequal(values)
            value, note = (values[0], "") if odd is None else (None, _differs(f"the attribute {name!r}", paths, odd))
        if note:
            notes.append(note)
        if value is not None or (values[0] is None and not note):
            kept[name] = value
    return kept, tuple(notes)


def _first_unequal(values: Sequence[Any]) -> int | None:
    """The place of the first value that is not the first one, as JSON."""
    texts = [json.dumps(value, sort_keys=True) for value in values]
    return next((place for place, text in enumerate(texts) if text != texts[0]), None)


def _differs(what: str, paths: Sequence[str], odd: int) -> str:
    return f"{what} is not kept: it is not the same in {paths[0]} and {paths[odd]}"


# -- class names -------------------------------------------------------------------------------------------------------


def _classes(paths: Sequence[str], values: Sequence[Any]) -> tuple[Any, str]:
    if _first_unequal(values) is None:
        return values[0], ""
    tables = [value if isinstance(value, dict) else {} for value in values]
    joined: dict[str, Any] = {}
    missing = ""
    for field in dict.fromkeys(field for table in tables for field in table):
        lists: list[Any] = [table.get(field) for table in tables]
        if not all(isinstance(names, list) for names in lists):
            odd = next(place for place, names in enumerate(lists) if not isinstance(names, list))
            missing = f"the class names of field {field!r} are not kept: {paths[odd]} has none for it"
            continue
        longest = max(lists, key=len)
        for path, names in zip(paths, lists, strict=True):
            if names != longest[: len(names)]:
                raise SchemaError(_other_classes(field, path, names, paths[lists.index(longest)], longest))
        joined[field] = longest
    return (joined or None), missing


def _other_classes(field: str, path: str, names: list[Any], other: str, longest: list[Any]) -> str:
    place = next(n for n, name in enumerate(names) if name != longest[n])
    return (
        f"field {field!r}: the number {place} is the class {names[place]!r} in {path} and {longest[place]!r} in "
        f"{other}, and merge does not change numbers. Convert the sources in one go, append one to the other "
        "(`chunkstore append` renumbers classes), or give attrs= if the numbers do mean the same"
    )


# -- the original files ------------------------------------------------------------------------------------------------


def _reserved(paths: Sequence[str], values: Sequence[Any]) -> tuple[Any, str]:
    records: list[dict[str, Any]] = []
    for path, value in zip(paths, values, strict=True):
        record = value.get("origin") if isinstance(value, dict) else None
        if not is_known(record):
            return None, (
                f"the record of the original files is not kept: {path} has none that this release knows. "
                "`export` names files by key or position"
            )
        records.append(record)
    joined, note = records[0], ""
    for place, record in enumerate(records[1:], 1):
        what = _obstacle(joined, record)
        if what:
            return None, f"{_differs(f'the record of the original files ({what})', paths, place)}"
        joined, differing = join_records(joined, record)
        note = note or differing
    return {"origin": joined}, note


def is_known(record: Any) -> TypeGuard[dict[str, Any]]:
    """Whether this is a record of original files as `convert` of this release writes it."""
    return (
        isinstance(record, dict)
        and record.get("version") == 1
        and isinstance(record.get("fields"), dict)
        and all(isinstance(field, dict) for field in record["fields"].values())
        and isinstance(record.get("names", {}), dict)
        and isinstance(record.get("files", []), list)
        and all(isinstance(entry, list) and len(entry) == 2 for entry in record.get("files", []))
    )


def _obstacle(one: type_attrs, other: type_attrs) -> str:
    """What keeps two records from being one; empty if nothing does."""
    for name in _MUST_AGREE:
        if one.get(name) != other.get(name):
            return name
    if one["fields"].keys() != other["fields"].keys():
        return "fields"
    for name, source in one["fields"].items():
        if _without(source) != _without(other["fields"][name]):
            return f"field {name!r}"
    return "" if ("files" in one) == ("files" in other) else "files"


def _without(source: type_attrs) -> dict[str, Any]:
    return {name: value for name, value in source.items() if name not in _MAY_DIFFER}


def join_records(one: type_attrs, other: type_attrs) -> tuple[dict[str, Any], str]:
    """One record of original files for both, and a note where some will not come back in their order.

    Where the two differ, the samples of the second one are exported like those of the first.
    """
    fields, note = {}, ""
    for field, source in one["fields"].items():
        differing = [name for name in _MAY_DIFFER if other["fields"].get(field, {}).get(name) != source.get(name)]
        fields[field] = {name: None if name in differing else value for name, value in source.items()}
        for name in differing:
            if source.get(name) is not None:
                note = note or (
                    f"the {name} of the original arrays of field {field!r} is not kept, because it differs: "
                    "`export` writes them in C order, little-endian; values are equal"
                )
    joined = {**one, "fields": fields}
    if "names" in one and one.get("suffix") == other.get("suffix"):
        joined["names"] = {**one["names"], **other.get("names", {})}  # by key, and keys are unique
    if "files" in one and "files" in other:
        taken = {path for path, _ in one["files"]}
        joined["files"] = [*one["files"], *([_free_name(path, taken), count] for path, count in other["files"])]
    counts = [record.get("reordered", 0) for record in (one, other)]
    if any(type(count) is int and count for count in counts):
        joined["reordered"] = sum(count for count in counts if type(count) is int)
    objects = sorted({*one.get("objects", []), *other.get("objects", [])})
    if objects:
        joined["objects"] = objects
    return joined, note


def _free_name(path: str, taken: set[str]) -> str:
    """The path, or one beside it that is free: `x.npy`, `x-2.npy`."""
    head, dot, suffix = path.rpartition(".")
    number, name = 1, path
    while name in taken:
        number += 1
        name = f"{head}-{number}{dot}{suffix}"
    taken.add(name)
    return name
