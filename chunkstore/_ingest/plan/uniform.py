"""The optimistic plan: many `.npy` files of one header, of which only the first is opened."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import numpy as np

from chunkstore._format.schema import Field
from chunkstore._ingest.npy.arrays import ArrayKind
from chunkstore._ingest.npy.casts import resolve_cast
from chunkstore._ingest.npy.files import open_regular, read_at
from chunkstore._ingest.npy.npyheader import PREFIX_NBYTES, NpyHeader, check_nbytes, header_nbytes, parse_header
from chunkstore._ingest.plan.columns import Column
from chunkstore._ingest.plan.layouts import ASKED, check_layout, class_hint, may_be_roles
from chunkstore._ingest.plan.plan import Plan
from chunkstore._ingest.plan.read import PIECE_NBYTES
from chunkstore._ingest.plan.scan import Scan
from chunkstore._ingest.plan.specs import DATA, DtypeArg, FieldArg, parse_dtypes, parse_fields
from chunkstore._ingest.plan.texts import Texts
from chunkstore.errors import IngestError, SchemaError


def plan_uniform(scan: Scan, *, layout: str = "auto", fields: FieldArg = (), dtype: DtypeArg = ()) -> Plan | None:
    """Plan that assumes that every file is like the first, or None where the full plan is needed to know.

    What it gives is what `make_plan` would give if the assumption holds; `read.read_uniform` checks it file by file.
    """
    began_ns = time.time_ns()
    check_layout(layout)
    chosen = parse_fields(fields)
    dtypes = parse_dtypes(dtype)
    if (
        layout not in ("auto", "files")
        or dtypes.by_field
        or dtypes.default
        or list(chosen.values()) not in ([], [DATA])
    ):
        return None
    if len(scan) < 2 or scan.problems or (layout == "auto" and may_be_roles(scan.paths[0])):
        return None
    try:
        keys = _keys(scan)
        found = _first(scan) if keys is not None else None
        if found is None or keys is None:
            return None
        reason = ASKED
        if layout == "auto":
            reason = f"{len(scan):,} files of one shape, one sample each.{class_hint(scan, np.arange(len(scan)))}"
        plan = _plan(scan, next(iter(chosen), DATA), keys, *found)
        return replace(plan, explanation=f"{scan.summary()}. Layout files: {reason}", began_ns=began_ns)
    except (IngestError, SchemaError, OSError):
        return None  # the full plan says what is wrong


def _keys(scan: Scan) -> Texts | None:
    """Keys, or None where names need a closer look: other suffixes, not ASCII-clean, twice the same."""
    paths = scan.paths
    marked = "\0".join([*paths, ""])  # no name has a NUL
    if marked.count(".npy\0") != len(paths) or not marked.replace("\0", "").isprintable():
        return None
    keys = marked.replace(".npy\0", "\0").split("\0")[:-1]
    if len(scan.sources) == 1:
        return Texts.pack(keys)  # a directory has no name twice
    prefixes = scan.prefixes
    keys = [prefixes[place] + key for place, key in zip(scan.source_of, keys, strict=True)]
    return Texts.pack(keys) if len(set(keys)) == len(keys) else None


def _first(scan: Scan) -> tuple[bytes, NpyHeader] | None:
    """Header of the first file if its bytes can go into the container as they are."""
    path = scan.file_path(0)
    fd, status = open_regular(path, path)
    try:
        head = read_at(fd, PREFIX_NBYTES, 0, path)
        total = header_nbytes(head, path)
        head = read_at(fd, total, 0, path)
    finally:
        os.close(fd)
    header = parse_header(head, path)
    check_nbytes(header, status.st_size, path)
    # A longer row is read in parts, which the fast way cannot.
    if header.dtype.names is not None or not header.dtype.isnative or not 0 < header.data_nbytes <= PIECE_NBYTES:
        return None
    if header.fortran_order and sum(dim > 1 for dim in header.shape) > 1:
        return None
    return (head, header) if resolve_cast(header.dtype, None, DATA).plain else None


def _plan(scan: Scan, name: str, keys: Texts, head: bytes, header: NpyHeader) -> Plan:
    num = len(scan)
    field = Field(name, resolve_cast(header.dtype, None, name).target, header.shape)
    zeros = np.broadcast_to(np.zeros(1, np.int64), (num,))
    size = np.broadcast_to(np.array([len(head) + header.data_nbytes]), (num,))
    dims = np.broadcast_to(np.array(header.shape, np.int64), (num, len(header.shape)))
    column = Column(
        None, (), field.dtype, None, np.arange(num, dtype=np.int32), zeros, zeros, zeros, size, size, zeros, dims, ()
    )
    order = "F" if header.fortran_order else "C"
    origin = {
        "version": 1,
        "layout": "files",
        "fields": {name: {"array": None, "member": None, "dtype": header.dtype.str, "order": order}},
        "structs": {},
        "suffix": ".npy",
        "names": {},
    }
    empty = np.zeros(0, np.int64)
    return Plan(
        layout="files",
        fields=(field,),
        num_samples=num,
        keys=keys,
        origin=origin,
        columns=(column,),
        kinds=(ArrayKind(header.dtype, header.fortran_order, header.data_offset),),
        paths=Texts.pack(scan.paths),
        roots=scan.roots,
        source_of=np.array(scan.source_of, np.int32),
        size=empty,
        mtime_ns=empty,
        header=head,
    )
