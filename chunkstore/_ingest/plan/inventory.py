"""What is in every file: headers only, in columns.

Files of one tree have few different headers: a header that was seen before is not parsed again, and what many arrays
share is stored once.
"""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from chunkstore._ingest.npy.arrays import ArrayKind
from chunkstore._ingest.npy.files import open_regular, read_at
from chunkstore._ingest.npy.npyheader import PREFIX_NBYTES, NpyHeader, check_nbytes, header_nbytes, parse_header
from chunkstore._ingest.npy.npz import read_member_header, read_members
from chunkstore._ingest.npy.sniff import ZIP_MAGICS
from chunkstore._ingest.plan.columns import DEFLATED, NPY, NUMBERS, STORED
from chunkstore._ingest.plan.scan import Scan, Skipped, leave_out
from chunkstore._ingest.plan.specs import Leaf, leaves
from chunkstore.errors import IngestError

_MAX_CACHED: Final = 50_000
_MAX_CACHED_NBYTES: Final = 4096  # of one header: 200 MiB at the very most, and usual ones have 128 bytes
Signature = tuple[tuple[str | None, np.dtype[Any], int], ...]
"""Of one file: per array its name, dtype, and number of dimensions."""


@dataclass
class ArrayTable:
    """All arrays of one name and one number of dimensions, a row per file that has one.

    Attributes:
        ndim: of the arrays.
        numbers: row after row, what `NUMBERS` says and the dimensions.
    """

    ndim: int
    numbers: array[int] = field(default_factory=lambda: array("q"))

    def columns(self, files: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.int64]]:
        """The columns for these files; `dims` has the shape (files, ndim)."""
        rows = np.frombuffer(self.numbers, np.int64).reshape(-1, len(NUMBERS) + self.ndim)
        rows = rows[np.searchsorted(rows[:, 0], files)]
        return {name: rows[:, place] for place, name in enumerate(NUMBERS)} | {"dims": rows[:, len(NUMBERS) :]}


class Inventory:
    """Headers of all files of a scan.

    Attributes:
        scan: whose files they are.
        kinds: what many arrays share; the column `kind` of a table counts in it.
        descrs: per kind the `descr` of the header.
        signatures: distinct contents of a file.
        signature_of: per file its signature, -1 where the file was skipped.
        tables: per array name (None in an `.npy`) and number of dimensions.
        skipped: files that could not be read, by number, with their reasons.
        skips: whether a file that does not fit is left out instead of refused.
    """

    def __init__(self, scan: Scan, *, skip: bool) -> None:
        self.scan = scan
        self.kinds: list[ArrayKind] = []
        self.descrs: list[Any] = []
        self.signatures: list[Signature] = []
        self.tables: dict[tuple[str | None, int], ArrayTable] = {}
        self.skipped: dict[int, str] = {}
        self.skips = skip
        self._kind_ids: dict[tuple[str, bool, int], int] = {}
        self._signature_ids: dict[Signature, int] = {}
        self._headers: dict[bytes, tuple[NpyHeader, int]] = {}
        num = len(scan)
        self.size = array("q", bytes(8 * num))
        self.mtime_ns = array("q", bytes(8 * num))
        self.signature_of = array("i", [-1]) * num
        self._read_all()

    def _read_all(self) -> None:
        for place in range(len(self.scan)):
            try:
                self.signature_of[place] = self._read(place)
            except (IngestError, PermissionError, FileNotFoundError) as error:
                if not self.skips and isinstance(error, OSError):
                    raise
                self.skip_or_raise(place, _reason(error, self.scan.file_path(place)))

    def _read(self, place: int) -> int:
        path = self.scan.file_path(place)
        _check_text(path, self.scan.prefixes[self.scan.source_of[place]] + self.scan.paths[place])
        fd, status = open_regular(path, path)
        try:
            self.size[place], self.mtime_ns[place] = status.st_size, status.st_mtime_ns
            head = read_at(fd, PREFIX_NBYTES, 0, path)
            suffix = path[-4:].lower()
            if suffix == ".npz" or (suffix != ".npy" and head.startswith(ZIP_MAGICS)):
                return self._add_npz(place, fd, status.st_size, path)
            return self._add_npy(place, fd, status.st_size, path, head)
        finally:
            os.close(fd)

    def _add_npy(self, place: int, fd: int, size: int, path: str, head: bytes) -> int:
        total = header_nbytes(head, path)
        if total > len(head):
            head = read_at(fd, total, 0, path)
        return self._signature([self._add(place, None, head[:total], path, size, (NPY, 0, 0, 0, -1))])

    def _add_npz(self, place: int, fd: int, size: int, path: str) -> int:
        found = []
        for member in read_members(fd, size, path):
            where = f"{path}: array {member.name!r}"
            head = read_member_header(fd, member, where)
            method = DEFLATED if member.deflated else STORED
            numbers = method, member.offset, member.stored_nbytes, member.nbytes, member.crc
            found.append(self._add(place, member.name, head, where, member.nbytes, numbers))
        return self._signature(found)

    def _add(
        self, place: int, name: str | None, head: bytes, where: str, size: int, numbers: tuple[int, int, int, int, int]
    ) -> tuple[str | None, np.dtype[Any], int]:
        """Add an array of a file to its table; nobody asks for the rows of a file that proves bad after that."""
        header, kind = self._header(head, where)
        check_nbytes(header, size, where)
        ndim = len(header.shape)
        table = self.tables.get((name, ndim))
        if table is None:
            table = self.tables[name, ndim] = ArrayTable(ndim)
        table.numbers.extend((place, kind, *numbers, *header.shape))
        return name, self.kinds[kind].dtype, ndim

    def _header(self, data: bytes, where: str) -> tuple[NpyHeader, int]:
        known = self._headers.get(data)
        if known is None:
            header = parse_header(data, where)
            known = header, self._kind(header)
            if len(self._headers) >= _MAX_CACHED:
                self._headers.clear()
            if len(data) <= _MAX_CACHED_NBYTES:
                self._headers[data] = known
        return known

    def _kind(self, header: NpyHeader) -> int:
        key = repr(header.descr), header.fortran_order, header.data_offset
        kind = self._kind_ids.setdefault(key, len(self.kinds))
        if kind == len(self.kinds):
            self.kinds.append(ArrayKind(header.dtype, header.fortran_order, header.data_offset))
            self.descrs.append(header.descr)
        return kind

    def _signature(self, found: list[tuple[str | None, np.dtype[Any], int]]) -> int:
        signature = tuple(found)
        number = self._signature_ids.setdefault(signature, len(self.signatures))
        if number == len(self.signatures):
            self.signatures.append(signature)
        return number

    def leaves(self, signature: int) -> list[Leaf]:
        """Arrays, and members of structured arrays, of the files with this signature."""
        return [leaf for array in self.signatures[signature] for leaf in leaves(*array)]

    def skip_or_raise(self, place: int, reason: str) -> None:
        """Leave a file out, or refuse, as was asked for."""
        path = self.scan.file_path(place)
        if not self.skips:
            advice = f" To leave it out: {leave_out(self.scan, self.scan.paths[place])}." if len(self.scan) > 1 else ""
            raise IngestError(f"{path if path.isprintable() else repr(path)}: {reason}{advice}")
        self.skipped[place] = reason
        self.signature_of[place] = -1

    def skip_list(self) -> list[Skipped]:
        """Everything that is left out, problems of the scan first."""
        return [
            *self.scan.problems.values(),
            *(Skipped(self.scan.paths[place], self.skipped[place]) for place in sorted(self.skipped)),
        ]


def _reason(error: Exception, path: str) -> str:
    text = f"{type(error).__name__}: {error.strerror}" if isinstance(error, OSError) else str(error)
    return text.removeprefix(path).lstrip(": ")


def _check_text(path: str, name: str) -> None:
    """Refuse names that cannot be keys; `name` has the prefix of its source."""
    if name.isprintable():
        return
    if any("\ud800" <= char <= "\udfff" for char in name):
        raise IngestError(f"{path}: the file name is not UTF-8, and keys are. Rename the file.")
    if any(char < " " or char == "\x7f" for char in name):
        raise IngestError(f"{path}: the file name has control characters. Rename the file.")
