"""The plan as a value: every sample, its fields, and where each of its rows is now."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkstore._format.schema import Field
from chunkstore._ingest.npy.arrays import ArrayKind, Place
from chunkstore._ingest.npy.files import check_unchanged
from chunkstore._ingest.npy.npz import Member
from chunkstore._ingest.plan.columns import DEFLATED, NPY, Column, count_items, renumber
from chunkstore._ingest.plan.scan import Skipped
from chunkstore._ingest.plan.texts import Texts


@dataclass(frozen=True)
class Plan:
    """Samples of a container to be, and where each of their rows is now. Read-only; pickles as plain columns.

    Attributes:
        layout: `files`, `rows`, `columns`, `paired` or `classes`.
        num_samples: N.
        keys: N texts, or None (`rows`, `columns`).
        columns: per field.
        kinds: see `Column.kind`.
        paths, roots, source_of: relative paths of the files, and what stands before them.
        size, mtime_ns: int64 per file, as planned; empty in a uniform plan.
        explanation: what was found and chosen, and why; for the user.
        notes: what the user should look at.
        fields: schema.
        skipped: files left out (`on_error="skip"`).
        attrs: for the user's attrs: class names.
        origin: JSON from which `export` writes the files again.
        began_ns: wall clock before the first file was opened, in a uniform plan: a file that was written, replaced or
            moved since is not read by it; 0 in others.
        rounded: names of fields whose values `--dtype` may round.
        header: the header that every file must have; empty but in a uniform plan.
    """

    layout: str
    num_samples: int
    keys: Texts | None
    columns: tuple[Column, ...] = field(repr=False)
    kinds: tuple[ArrayKind, ...] = field(repr=False)
    paths: Texts = field(repr=False)
    roots: tuple[str, ...] = field(repr=False)
    source_of: npt.NDArray[np.int32] = field(repr=False)
    size: npt.NDArray[np.int64] = field(repr=False)
    mtime_ns: npt.NDArray[np.int64] = field(repr=False)
    explanation: str = ""
    notes: tuple[str, ...] = ()
    fields: tuple[Field, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)
    header: bytes = field(default=b"", repr=False)
    began_ns: int = 0
    rounded: tuple[str, ...] = ()

    @property
    def uniform(self) -> bool:
        """Whether only the first file was looked at."""
        return bool(self.header)

    @property
    def num_files(self) -> int:
        """Files that samples come from."""
        return len(self.paths)

    @property
    def source_nbytes(self) -> int:
        """Bytes of those files, -1 where they were not asked."""
        return -1 if self.uniform else int(self.size.sum())

    def row_shapes(self, number: int) -> npt.NDArray[np.int64]:
        """Leading dimensions of each row of a field up to the last that varies: int64 [N, v]; [N, 0] where all rows are
        alike.
        """
        column, varying = self.columns[number], self.fields[number].varying
        if column.shapes is not None:
            return column.shapes[:, :varying]
        if varying == 0:
            return np.zeros((self.num_samples, 0), np.int64)
        dims = column.row_dims()[:, :varying]
        if column.start is None:
            return dims
        bounds = np.clip(column.start, 0, self.num_samples)  # the first and last piece of a slice may be cut
        return np.repeat(dims, np.diff(bounds), axis=0)

    def row_items(self, number: int) -> npt.NDArray[np.int64]:
        """Items of each row, int64 [N]; 1 where all rows are alike."""
        return count_items(self.row_shapes(number))

    def row_sizes(self, number: int) -> npt.NDArray[np.int64]:
        """Stored bytes of each row, int64 [N]."""
        field = self.fields[number]
        if field.row_nbytes is not None:
            return np.broadcast_to(np.int64(field.row_nbytes), (self.num_samples,))
        return self.row_items(number) * field.item_nbytes

    def nbytes(self, number: int) -> int:
        """Stored bytes of a field."""
        row = self.fields[number].row_nbytes
        return int(self.row_sizes(number).sum()) if row is None else row * self.num_samples

    @property
    def total_nbytes(self) -> int:
        """Stored bytes of all fields."""
        return sum(map(self.nbytes, range(len(self.fields))))

    def slice(self, start: int, stop: int) -> Plan:
        """Samples `[start, stop)`, numbered from 0, with nothing but what they need."""
        bare = replace(self, explanation="", notes=(), skipped=(), attrs={}, origin={})
        if (start, stop) == (0, self.num_samples):
            return bare
        used, columns = renumber(column.slice(start, stop) for column in self.columns)
        paths = _take_texts(self.paths, used)
        return replace(
            bare,
            num_samples=stop - start,
            keys=None if self.keys is None else self.keys.slice(start, stop),
            columns=columns,
            paths=paths,
            source_of=self.source_of[used],
            size=self.size if self.uniform else self.size[used],
            mtime_ns=self.mtime_ns if self.uniform else self.mtime_ns[used],
        )

    def file_path(self, number: int) -> str:
        """Path to open a file by."""
        return self.roots[int(self.source_of[number])] + self.paths[number]

    def place(self, number: int, piece: int) -> Place:
        """Where one piece of a field lies."""
        column = self.columns[number]
        file = int(column.file[piece])
        path = self.file_path(file)
        member = None
        if column.method[piece] != NPY:
            offset, stored, nbytes, crc = (
                int(part[piece]) for part in (column.offset, column.stored, column.nbytes, column.crc)
            )
            member = Member(column.array or "", offset, stored, nbytes, crc, bool(column.method[piece] == DEFLATED))
        shape = tuple(column.dims[piece].tolist())
        return Place(
            path,
            _where(path, column),
            int(self.size[file]),
            int(self.mtime_ns[file]),
            member,
            self.kinds[int(column.kind[piece])],
            shape,
        )

    def where(self, number: int, sample: int) -> str:
        """File and array of a row, for messages."""
        column = self.columns[number]
        if column.values is not None:
            return f"class number of sample {sample}"
        return _where(self.file_path(int(column.file[column.piece(sample)])), column)

    def check_sources(self) -> None:
        """Raise IngestError if a file no longer is as it was planned, where it is known. One `stat` per file."""
        for number in range(0 if self.uniform else self.num_files):
            path = self.file_path(number)
            check_unchanged(os.stat(path), int(self.size[number]), int(self.mtime_ns[number]), path)


def _where(path: str, column: Column) -> str:
    """File and array, for messages."""
    return path if column.array is None else f"{path}: array {column.array!r}"


def _take_texts(texts: Texts, places: npt.NDArray[Any]) -> Texts:
    if len(places) and int(places[-1]) - int(places[0]) == len(places) - 1:
        return texts.slice(int(places[0]), int(places[-1]) + 1)
    return Texts.pack(texts[place] for place in places.tolist())
