"""The bytes of a plan's samples, as they belong into the container."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from chunkstore._format import dtypes
from chunkstore._ingest.npy.arrays import ArraySource, Place
from chunkstore._ingest.npy.casts import Cast, convert, resolve_cast
from chunkstore._ingest.npy.files import FLAGS, check_unchanged, read_exactly
from chunkstore._ingest.npy.pickled import load_rows
from chunkstore._ingest.plan.columns import NPY, cast_of
from chunkstore._ingest.plan.plan import Plan
from chunkstore._ingest.plan.row_shapes import iter_texts
from chunkstore._storage import platform
from chunkstore.errors import IngestError

Bytes = npt.NDArray[np.uint8]
PIECE_NBYTES: Final = 4 << 20
_MAX_OPEN: Final = 100  # sources: each has a descriptor, and 40 KiB if it inflates
_CLOCK_TICK_NS: Final = 20_000_000  # file systems stamp with a clock that moves every 1 to 10 ms


def _as_bytes(buffer: Any) -> Bytes:
    view = memoryview(buffer).cast("B")
    if view.readonly:
        raise ValueError("the buffer is read-only")
    return np.frombuffer(view, np.uint8)


class Deviation(Exception):
    """The files of a uniform plan are not all alike: the full plan must be made."""


class PlanReader:
    """Reads rows of a plan. One per thread: it keeps one open source per field, of 100 fields at most, so
    that reading on is cheap.

    Args:
        plan: of either kind, or a slice of one.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._sources: dict[int, tuple[int, ArraySource]] = {}
        self._rows: dict[int, tuple[int, list[npt.NDArray[Any]]]] = {}
        self._sizes: dict[int, npt.NDArray[np.int64]] = {}
        self._casts: dict[int, dict[int, Cast | None]] = {}

    def read(self, number: int, start: int, stop: int, out: Any) -> None:
        """Rows `[start, stop)` of field `number`, back to back, as stored bytes into the writable buffer `out`, which
        they fill exactly.

        Raises:
            IngestError: damage, a file that changed since the plan, a value that the field's dtype does not hold.
            OSError: a file cannot be read.
            Deviation: the plan is uniform and a file differs.
        """
        if self._plan.uniform:
            if not read_uniform(self._plan, start, stop, out):
                raise Deviation
            return
        view = _as_bytes(out) if memoryview(out).nbytes else np.zeros(0, np.uint8)
        column = self._plan.columns[number]
        wanted = int(self.row_ends(number, start, stop)[-1]) if stop > start else 0
        if len(view) != wanted:
            raise ValueError(f"out has {len(view)} bytes, rows [{start}, {stop}) need {wanted}")
        if column.values is not None:
            view[:] = column.values[start:stop].astype("<i8").view(np.uint8)
        elif column.target == dtypes.STRING or column.shapes is not None:
            for piece, first, last, part in self._runs(number, start, stop, view):
                self._read_listed(number, piece, first, last, part)
        else:
            self._read_arrays(number, start, stop, view)

    def stream(
        self,
        number: int,
        start: int,
        stop: int,
        buffer: Callable[[int], memoryview],
        *,
        nbytes: int = PIECE_NBYTES,
        whole: bool = False,
    ) -> Iterator[tuple[int, int, memoryview, bool]]:
        """The same bytes in pieces of about `nbytes`, each in memory that `buffer` gives for so many bytes.

        As many whole rows as fit; a longer row in parts, but whole where that is asked for, and where it is in memory
        anyway (texts, rows of object arrays).

        Yields:
            (first row, last row + 1, bytes, part): with `part` the next piece comes in the same memory, since it is of
            the same row.
        """
        column, row_nbytes = self._plan.columns[number], self._plan.fields[number].row_nbytes
        # No array of the ends of all rows where they are alike: there may be 4 million of 8 bytes.
        ends = self.row_ends(number, start, stop) if row_nbytes is None else None
        whole = whole or column.shapes is not None or column.values is not None
        row, done = start, 0
        while row < stop:
            if ends is not None:
                last = start + int(np.searchsorted(ends, done + nbytes, "right"))
            else:
                last = min(stop, row + nbytes // row_nbytes) if row_nbytes else stop
            part = last == row and not whole
            last = max(last, row + 1)
            size = int(ends[last - 1 - start]) - done if ends is not None else (last - row) * (row_nbytes or 0)
            if part:
                pieces = self._stream_row(number, row, nbytes, buffer)
            else:
                self.read(number, row, last, piece := buffer(size))
                pieces = iter((piece,))
            for piece in pieces:
                yield row, last, piece, part
            row, done = last, done + size

    def row_ends(self, number: int, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Where each of the rows ends, in bytes from the start of the first: int64 [stop - start]."""
        if number not in self._sizes:
            self._sizes[number] = self._plan.row_sizes(number)
        return np.cumsum(self._sizes[number][start:stop])

    def _stream_row(
        self, number: int, row: int, nbytes: int, buffer: Callable[[int], memoryview]
    ) -> Iterator[memoryview]:
        """One long row, as many elements at a time as fit, one at least."""
        column = self._plan.columns[number]
        if self._plan.uniform:
            raise Deviation  # such rows are left to the full plan, which can read parts of them
        piece = column.piece(row)
        source = self._source(number, piece)
        num = source.num_elements
        first = 0
        if column.start is not None:
            num = source.num_elements // source.shape[0]
            first = (row - int(column.start[piece])) * num
        step = max(1, nbytes // source.element_nbytes)
        view = _as_bytes(buffer(step * source.element_nbytes))
        for low in range(first, first + num, step):
            high = min(first + num, low + step)
            part = view[: (high - low) * source.element_nbytes]
            source.read_elements(low, high, part)
            yield part.data

    def _source(self, number: int, piece: int) -> ArraySource:
        """Open source of a piece; the one before is closed, and the oldest where there are many fields."""
        kept = self._sources.get(number)
        if kept is not None and kept[0] == piece:
            return kept[1]
        if kept is not None or len(self._sources) >= _MAX_OPEN:
            self._sources.pop(number if kept is not None else next(iter(self._sources)))[1].close()
        column = self._plan.columns[number]
        cast = self._casts_of(number)[int(column.kind[piece])]
        source = ArraySource(self._plan.place(number, piece), column.member, cast)
        self._sources[number] = piece, source
        return source

    def _casts_of(self, number: int) -> dict[int, Cast | None]:
        """Per kind of array in the column the cast of its elements."""
        if number not in self._casts:
            column, name = self._plan.columns[number], self._plan.fields[number].name
            kinds = np.unique(column.kind).tolist()
            self._casts[number] = {kind: cast_of(column, self._plan.kinds[kind], name) for kind in kinds}
        return self._casts[number]

    def _read_arrays(self, number: int, start: int, stop: int, view: Bytes) -> None:
        """Rows that are whole arrays, or indices of their first axis."""
        column = self._plan.columns[number]
        plain = [] if column.is_rows or column.member else self._plain_kinds(number)
        for piece, first, last, part in self._runs(number, start, stop, view):
            if plain and column.method[piece] == NPY and column.kind[piece] in plain:
                self._read_plain(number, piece, part)
                continue
            source = self._source(number, piece)
            per_row = source.num_elements // source.shape[0] if column.is_rows else source.num_elements
            source.read_elements(first * per_row, last * per_row, part)

    def _plain_kinds(self, number: int) -> list[int]:
        """Kinds whose bytes in the file are those in the container; the general way takes Fortran order, 1-d too."""
        kinds, casts = self._plan.kinds, self._casts_of(number).items()
        plain = [kind for kind, cast in casts if cast is not None and cast.plain]
        return [kind for kind in plain if kinds[kind].dtype.isnative and not kinds[kind].fortran]

    def _read_plain(self, number: int, row: int, part: Bytes) -> None:
        """One `.npy` file with one `preadv`, between two looks at its size and time."""
        plan, column = self._plan, self._plan.columns[number]
        file = int(column.file[row])
        path = plan.file_path(file)
        size, mtime_ns = int(plan.size[file]), int(plan.mtime_ns[file])
        fd = os.open(path, FLAGS)
        try:
            check_unchanged(os.fstat(fd), size, mtime_ns, path)
            read_exactly(fd, plan.kinds[int(column.kind[row])].data_offset, part.data, path)
            check_unchanged(os.fstat(fd), size, mtime_ns, path)
        finally:
            os.close(fd)

    def _runs(self, number: int, start: int, stop: int, view: Bytes) -> Iterator[tuple[int, int, int, Bytes]]:
        """Pieces that `[start, stop)` touches: (piece, first index in it, last + 1, its part of `view`)."""
        column = self._plan.columns[number]
        ends = self.row_ends(number, start, stop)
        if column.start is None:  # a piece is a row
            for row, (low, high) in enumerate(pairwise([0, *ends.tolist()]), start):
                yield row, 0, 1, view[low:high]
            return
        piece = column.piece(start)
        row, begin = start, 0
        while row < stop:
            low, high = int(column.start[piece]), int(column.start[piece + 1])
            last = min(stop, high)
            if last > row:
                end = int(ends[last - 1 - start])
                yield piece, row - low, last - low, view[begin:end]
                row, begin = last, end
            piece += 1

    def _read_listed(self, number: int, piece: int, first: int, last: int, part: Bytes) -> None:
        """Texts, or rows of an object array."""
        column, place = self._plan.columns[number], self._plan.place(number, piece)
        if column.holds_objects:
            found = b"".join(self._object_bytes(number, piece, place, first, last))
        else:
            cast = self._casts_of(number)[int(column.kind[piece])]
            assert cast is not None  # texts are no objects
            groups = iter_texts(self._source(number, piece), cast, place, first, last)
            found = b"".join(text for group in groups for text in group)
        if len(part) != len(found):
            raise IngestError(
                f"{place.where}: its texts or objects are not those that were planned. Convert again when nothing "
                "writes to the file."
            )
        part[:] = np.frombuffer(found, np.uint8)

    def _object_bytes(self, number: int, piece: int, place: Place, first: int, last: int) -> Iterator[memoryview]:
        """Elements of an object array, each as bytes of the field."""
        kept = self._rows.get(number)
        if kept is None or kept[0] != piece:
            kept = self._rows[number] = piece, load_rows(place)
        target, name = self._plan.columns[number].target, self._plan.fields[number].name
        for row in kept[1][first:last]:
            flat = np.ascontiguousarray(row, row.dtype.newbyteorder("<")).reshape(-1)
            data = np.empty(flat.size * dtypes.element_nbytes(target), np.uint8)
            convert(resolve_cast(flat.dtype, target, name), flat, data, place.where)
            yield data.data

    def close(self) -> None:
        """Close all files; the reader may be used again."""
        while self._sources:
            self._sources.popitem()[1][1].close()
        self._rows.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read_uniform(plan: Plan, start: int, stop: int, out: Any) -> bool:
    """Rows `[start, stop)` of a uniform plan into `out`: per file one open, one `readv` of [header, row, one byte
    more], one `fstat`, one close.

    A file that still is, after it was read, as it was when the plan was begun was so while it was read: what comes out
    are the files of that moment. (On a network file system whose clock is behind, a change may be missed.)

    Returns:
        False at the first file that is not there, not readable, not as long as the first, has another header, or was
        written, replaced or moved since the plan was begun. `out` is then undefined, and so is what was read before:
        make the full plan, which says what is wrong, or that nothing is.
    """
    header, nbytes = plan.header, plan.fields[0].row_nbytes or 0
    view = memoryview(out).cast("B")
    if len(view) != (stop - start) * nbytes:
        raise ValueError(f"out has {len(view)} bytes, rows [{start}, {stop}) need {(stop - start) * nbytes}")
    head, probe = bytearray(len(header)), bytearray(1)
    wanted = len(header) + nbytes
    latest = plan.began_ns - _CLOCK_TICK_NS
    names = plan.paths.slice(start, stop)
    roots = plan.roots
    begin = 0
    for source, name in zip(plan.source_of[start:stop].tolist(), names, strict=True):
        end = begin + nbytes
        try:
            fd = os.open(roots[source] + name, FLAGS)
            try:
                got = platform.readv(fd, (head, view[begin:end], probe))
                status = os.fstat(fd)
            finally:
                os.close(fd)
        except OSError:
            return False
        if got != wanted or head != header or status.st_mtime_ns >= latest or status.st_ctime_ns >= latest:
            return False
        begin = end
    return True
