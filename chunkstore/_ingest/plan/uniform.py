"""The optimistic plan: many `.npy` files of one header, of which only the first is opened."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

import numpy as np

from chunkstore._ingest.npy.arrays import ArrayKind
from chunkstore._ingest.npy.files import open_regular, read_at
from chunkstore._ingest.npy.npyheader import parse_header
from chunkstore._ingest.plan.columns import PER_PIECE, Column, cast_of
from chunkstore._ingest.plan.layouts import ASKED, check_layout, class_hint, may_be_roles
from chunkstore._ingest.plan.plan import Plan
from chunkstore._ingest.plan.planner import make_plan
from chunkstore._ingest.plan.read import PIECE_NBYTES
from chunkstore._ingest.plan.scan import Scan
from chunkstore._ingest.plan.specs import DtypeArg, FieldArg
from chunkstore._ingest.plan.texts import Texts
from chunkstore.errors import IngestError


def plan_uniform(scan: Scan, *, layout: str = "auto", fields: FieldArg = None, dtype: DtypeArg = None) -> Plan | None:
    """Plan that assumes that every file is like the first, or None where the full plan is needed to know.

    What it gives is what `make_plan` would give if the assumption holds; `read.read_uniform` checks it file by file.
    """
    began_ns = time.time_ns()
    check_layout(layout)
    if layout not in ("auto", "files") or len(scan) < 2 or scan.problems:
        return None
    keys = None if layout == "auto" and any(map(may_be_roles, scan.paths[:2])) else _keys(scan)
    if keys is None:
        return None
    try:
        alone = replace(scan, paths=scan.paths[:1], source_of=scan.source_of[:1])
        first = make_plan(alone, layout="files", fields=fields, dtype=dtype)
        header = _header(first)
    except (IngestError, OSError):
        return None  # the full plan says what is wrong
    if not _is_plain(first):
        return None
    reason = ASKED
    if layout == "auto":
        reason = f"{len(scan):,} files of one shape, one sample each.{class_hint(scan, np.arange(len(scan)))}"
    empty = np.zeros(0, np.int64)
    return replace(
        first,
        num_samples=len(scan),
        keys=keys,
        columns=(_repeated(first.columns[0], len(scan)),),
        paths=Texts.pack(scan.paths),
        source_of=np.array(scan.source_of, np.int32),
        size=empty,
        mtime_ns=empty,
        explanation=f"{scan.summary()}. Layout files: {reason}",
        header=header,
        began_ns=began_ns,
    )


def _header(first: Plan) -> bytes:
    """Header of the first file, which may be another file by now: IngestError unless it says what was planned."""
    path, kind = first.file_path(0), first.kinds[0]
    fd, _ = open_regular(path, path)
    try:
        head = read_at(fd, kind.data_offset, 0, path)
    finally:
        os.close(fd)
    found = parse_header(head, path)
    same = ArrayKind(found.dtype, found.fortran_order, found.data_offset) == kind
    if not same or list(found.shape) != first.columns[0].dims[0].tolist():
        raise IngestError(f"{path}: the file changed while it was planned.")
    return head


def _is_plain(first: Plan) -> bool:
    """Whether the bytes of the one array in the file can go into the container as they are."""
    column, kind = first.columns[0], first.kinds[0]
    # A longer row is read in parts, which the fast way cannot.
    if len(first.columns) > 1 or column.member or not 0 < first.total_nbytes <= PIECE_NBYTES:
        return False
    if kind.fortran and sum(dim > 1 for dim in column.dims[0].tolist()) > 1:
        return False
    cast = cast_of(column, kind, first.fields[0].name)
    return cast is not None and cast.plain and kind.dtype.isnative


def _repeated(column: Column, num: int) -> Column:
    """The column of so many files that are like the one that it has."""
    parts: dict[str, Any] = {}
    for name in PER_PIECE:
        part = getattr(column, name)
        parts[name] = np.broadcast_to(part[0], (num, *part.shape[1:]))  # takes no memory
    parts["file"] = np.arange(num, dtype=np.int32)
    return replace(column, **parts)


def _keys(scan: Scan) -> Texts | None:
    """Keys, or None where names need a closer look: other suffixes, not ASCII-clean, twice the same."""
    names = scan.names()
    marked = "\0".join([*names, ""])  # no name has a NUL
    if marked.count(".npy\0") != len(names) or not marked.replace("\0", "").isprintable():
        return None
    keys = marked.replace(".npy\0", "\0").split("\0")[:-1]
    # A directory has no name twice.
    return Texts.pack(keys) if len(scan.sources) == 1 or len(set(keys)) == len(keys) else None
