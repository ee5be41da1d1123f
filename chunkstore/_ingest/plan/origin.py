"""What `export` needs to write the files again: names, suffixes, array names, how members were grouped. JSON, small.

    {"version": 1, "layout": "files",
     "fields": {"image": {"array": null | name in the .npz, "member": null | "a.b", "dtype": "<f4" | null,
                          "order": "C" | "F" | null, "cast": true (only where --dtype changed it)}},
     "structs": {array name or "": descr of the structured dtype},
     "suffix": ".npy", "names": {key: relative path, where it is not key + suffix}}

`dtype` and `order` are null where the files differ; then `"reordered": N` says how many files are not in C order and
little-endian, and so do not come back as they were. `paired` adds `"pattern"`, `"position"` and per field `"role"`, as
`Pairing` has them; `rows` has `"files": [[path, rows], ...]` in place of keys; `columns` has per field its `"file"`,
which is also its name in `structs`; `classes` has `"label": field`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from chunkstore._format import dtypes
from chunkstore._ingest.npy.arrays import ArrayKind
from chunkstore._ingest.npy.casts import native
from chunkstore._ingest.plan.columns import Column, dtype_in
from chunkstore._ingest.plan.inventory import Inventory
from chunkstore._ingest.plan.pairing import Pairing, stem
from chunkstore._ingest.plan.plan import Plan


def describe_origin(plan: Plan, inventory: Inventory, roles: dict[str, str], pairing: Pairing | None) -> dict[str, Any]:
    """Origin of a plan whose fields are known."""
    origin: dict[str, Any] = {"version": 1, "layout": plan.layout, "fields": {}, "structs": {}}
    prefixes = inventory.scan.prefixes
    paths = [prefixes[source] + path for source, path in zip(plan.source_of.tolist(), plan.paths, strict=True)]
    for field, column in zip(plan.fields, plan.columns, strict=True):
        if column.values is not None:
            origin["label"] = field.name
            continue
        origin["fields"][field.name] = _field(plan, column)
        if field.name in roles:
            origin["fields"][field.name]["role"] = roles[field.name]
        home = column.array or ""
        if plan.layout == "columns":
            home = origin["fields"][field.name]["file"] = paths[int(column.file[0])]
        if column.member and home not in origin["structs"]:
            origin["structs"][home] = _json(inventory.descrs[int(column.kind[0])])
    if pairing is not None:
        origin.update(pattern=pairing.pattern, position=pairing.position)
    if plan.layout == "rows":
        origin["files"] = _row_files(plan, paths)
    if plan.keys is not None:
        origin.update(_names(plan, paths, roles))
    objects = [field.name for field, column in zip(plan.fields, plan.columns, strict=True) if column.holds_objects]
    if objects:
        origin["objects"] = objects
    reordered = _reordered(plan, origin)
    if reordered:
        origin["reordered"] = len(reordered)
    return origin


def order_notes(origin: Mapping[str, Any]) -> tuple[str, ...]:
    """What a user should know of files whose memory order or byte order `export` will not restore."""
    count = origin.get("reordered")
    if type(count) is not int or count < 1:
        return ()
    files = "1 file" if count == 1 else f"{count:,} files"
    text = (
        f"values are equal, but the memory order or byte order of {files} is not kept, because the files differ in "
        "it: `export` writes them in C order, little-endian"
    )
    return (text,)


def _reordered(plan: Plan, origin: Mapping[str, Any]) -> set[int]:
    """Numbers of the files that had an order which the record does not hold."""
    found: set[int] = set()
    for field, column in zip(plan.fields, plan.columns, strict=True):
        entry = origin["fields"].get(field.name)
        if entry is None or (entry["order"] is not None and entry["dtype"] is not None):
            continue
        kinds = [kind for kind in np.unique(column.kind).tolist() if _is_reordered(column, plan.kinds[kind], entry)]
        found.update(column.file[np.isin(column.kind, kinds)].tolist())
    return found


def _is_reordered(column: Column, kind: ArrayKind, entry: Mapping[str, Any]) -> bool:
    dtype = dtype_in(column, kind)
    return (entry["order"] is None and kind.fortran) or (entry["dtype"] is None and dtype != native(dtype))


def _field(plan: Plan, column: Column) -> dict[str, Any]:
    kinds = [plan.kinds[kind] for kind in np.unique(column.kind).tolist()]
    found_in = [dtype_in(column, kind) for kind in kinds]
    texts, orders = {dtype.str for dtype in found_in}, {kind.fortran for kind in kinds}
    found: dict[str, Any] = {
        "array": column.array,
        "member": ".".join(column.member) or None,
        "dtype": texts.pop() if len(texts) == 1 else None,
        "order": ("F" if orders.pop() else "C") if len(orders) == 1 else None,
    }
    if any(dtypes.from_numpy(native(dtype)) != column.target for dtype in found_in):
        found["cast"] = True
    return found


def _json(descr: Any) -> Any:
    """Tuples as lists: JSON has no others."""
    return [_json(item) for item in descr] if isinstance(descr, (list, tuple)) else descr


def _names(plan: Plan, paths: list[str], roles: dict[str, str]) -> dict[str, Any]:
    """The most frequent suffix, and the paths that are not key + suffix: by key, or by `role key` for pairs."""
    assert plan.keys is not None
    counts = Counter(path[len(stem(path)) :] for path in paths)
    suffix, names = counts.most_common(1)[0][0], {}
    fields = zip(plan.fields, plan.columns, strict=True) if roles else [(plan.fields[0], plan.columns[0])]
    for field, column in fields:
        for key, file in zip(plan.keys, column.file.tolist(), strict=True):
            if not paths[file].endswith(suffix):
                names[f"{roles[field.name]} {key}" if roles else key] = paths[file]
    return {"suffix": suffix, "names": names}


def _row_files(plan: Plan, paths: list[str]) -> list[list[Any]]:
    first = plan.columns[0]
    assert first.start is not None
    counts = np.diff(first.start).tolist()
    return [[paths[file], count] for file, count in zip(first.file.tolist(), counts, strict=True)]
