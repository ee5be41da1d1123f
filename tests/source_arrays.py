"""Arrays of source files, found as the planner finds them, one at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from chunkstore._ingest.npy.arrays import ArrayKind, ArraySource, Place
from chunkstore._ingest.npy.files import open_regular
from chunkstore._ingest.npy.npyheader import check_nbytes, parse_header
from chunkstore._ingest.npy.npz import read_member_header, read_members
from chunkstore.errors import IngestError


def find_place(path: Path, array: str | None = None) -> Place:
    """Place of the array of an `.npy`, or of the first one of an `.npz` that has this name, if one is given."""
    fd, status = open_regular(str(path), str(path))
    found, where = None, str(path)
    try:
        if path.suffix == ".npz":
            found = next((m for m in read_members(fd, status.st_size, where) if array in (None, m.name)), None)
            if found is None:
                raise IngestError(f"{where}: has no array {array!r}")
            where = f"{where}: array {found.name!r}"
            header = parse_header(read_member_header(fd, found, where), where)
            check_nbytes(header, found.nbytes, where)
        else:
            header = parse_header(os.pread(fd, 1 << 16, 0), where)
            check_nbytes(header, status.st_size, where)
    finally:
        os.close(fd)
    kind = ArrayKind(header.dtype, header.fortran_order, header.data_offset)
    return Place(str(path), where, status.st_size, status.st_mtime_ns, found, kind, header.shape)


def open_array(path: Path, array: str | None = None, member: tuple[str, ...] = ()) -> ArraySource:
    """Source of one array of a file; the caller closes it."""
    return ArraySource(find_place(path, array), member)


def read_array(source: ArraySource) -> np.ndarray[Any, Any]:
    """The whole array."""
    out = np.empty(source.shape, source.dtype)
    source.read_elements(0, source.num_elements, out.reshape(-1).view(np.uint8))
    return out


def read_rows(source: ArraySource, start: int, stop: int) -> np.ndarray[Any, Any]:
    """Rows `[start, stop)` of the first axis."""
    per_row = source.num_elements // source.shape[0]
    out = np.empty((stop - start, *source.shape[1:]), source.dtype)
    source.read_elements(start * per_row, stop * per_row, out.reshape(-1).view(np.uint8))
    return out
