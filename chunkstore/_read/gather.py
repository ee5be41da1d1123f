"""Rows of one field -> arrays: one gather per batch, large reads in order, views for single rows.

FixedRows    fixed shape, raw: arithmetic and `np.take`
RaggedRows   rows that differ, raw: offsets, then one join of slices of the map
CodedRows    any shape behind a codec: decoded row by row (coded.py)
UnknownRows  a codec of a later release: says so when it is read
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from chunkstore._format import codec
from chunkstore._format.field_index import FieldIndex
from chunkstore._format.lookup import Lookup
from chunkstore._format.schema import Field, known_codec
from chunkstore._format.section import join_ranges
from chunkstore._read.batch import Positions, items_of
from chunkstore._read.checked import Checker, Prover, sum_of, sums_of
from chunkstore._read.coded import CodedRows, StoredRows, UnknownRows
from chunkstore._read.inorder import InOrder
from chunkstore._read.ragged import Ragged, only_row, read_only, row_offsets, text_of
from chunkstore._storage.buffers import byte_view
from chunkstore._storage.source import Source
from chunkstore.errors import CorruptError

_CACHE_NBYTES: Final = 256 << 10  # what is copied and then summed at once: it is still in the cache of the core
_STAGED_NBYTES: Final = 64 << 20
_LOOP_NBYTES: Final = 16 << 10  # from here on a row costs more to copy than to ask for
_SHORT_NBYTES: Final = 64  # below it, on average, one gather of bytes beats slices


class Rows(Protocol):
    """Reads the rows of one field. Positions were checked before."""

    field: Field

    @property
    def checker(self) -> Prover:
        """What proves the rows."""

    def target(self, num_rows: int, out: Any) -> Any:
        """Check what a caller gave to be filled (None: nothing), and make what is missing."""

    def batch(self, positions: Positions, target: Any) -> NDArray[Any] | Ragged:
        """Rows at positions, in their order."""

    def run(self, start: int, stop: int, target: Any) -> NDArray[Any] | Ragged:
        """Rows `[start, stop)`: large reads in the order of the file."""

    def getter(self) -> Callable[[int], Any]:
        """A function position -> row, read-only; a view where there is a map."""

    def column(self) -> NDArray[Any] | Ragged:
        """The whole field, read-only."""

    def hint(self, positions: Positions) -> None:
        """Ask the system to read these rows soon."""

    def needed(self, positions: Positions) -> tuple[Positions, Positions]:
        """(offset, nbytes) in the file of all that reading these rows takes, for a distant file."""

    def needed_first(self, positions: Positions) -> tuple[Positions, Positions]:
        """The same of what `needed` itself reads from the index, to know it."""


def rows_of(index: FieldIndex, source: Source, checker: Checker, dictionary: Callable[[], bytes]) -> Rows:
    """The way to read this field."""
    if not known_codec(index.field):
        return UnknownRows(index, source, checker)
    if index.field.codec != codec.RAW:
        return CodedRows(index, source, checker, dictionary)
    return RaggedRows(index, source, checker) if index.field.ragged else FixedRows(index, source, checker)


class _RawRows(StoredRows):
    """What the two raw kinds share."""

    def __init__(self, index: FieldIndex, source: Source, checker: Checker) -> None:
        super().__init__(index, source, checker)
        self.extents = index.extents()
        # Arrays are made over this one, not over the view: `np.ndarray` looks through a memoryview at the map behind,
        # which is writable, and would let anybody switch its arrays to writable.
        self._bytes = None if self._view is None else np.frombuffer(self._view, np.uint8)
        self._in_order = InOrder(source)

    def _read_run(self, start: int, stop: int, dest: memoryview) -> None:
        """Read rows `[start, stop)` back to back, shard by shard."""
        in_order, at = self._in_order, 0
        for low, high in self._shard_pieces(start, stop):
            offsets, nbytes = self.index.rows(np.array([low, high - 1]))
            offset, size = int(offsets[0]), int(offsets[1] + nbytes[1] - offsets[0])
            piece = dest[at : at + size]
            at += size
            if self.checker.done:
                in_order.read(offset, np.frombuffer(piece, np.uint8))
                continue
            before = in_order.begin()
            with self._staged(low, high, offset, size):
                self._read_proving(low, high, offset, piece, in_order.reader())
            in_order.end(before, size)

    def _staged(self, low: int, high: int, offset: int, nbytes: int) -> AbstractContextManager[None]:
        if not self.source.distant:
            return nullcontext()
        rows = np.array([offset]), np.array([nbytes])
        return self.source.staged(*join_ranges([rows, self.checker.needed(np.arange(low, high))]))

    def _shard_pieces(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        starts = self.index.shard_starts
        shard = int(np.searchsorted(starts, start, "right")) - 1
        while start < stop:
            end = min(stop, int(starts[shard + 1]))
            step = self._step(shard)
            yield from ((low, min(low + step, end)) for low in range(start, end, step))
            start, shard = end, shard + 1

    def _step(self, shard: int) -> int:
        """Rows of a shard to be read at once: all, but of a large one from far away what may be in memory twice."""
        num_rows = int(self.index.shard_starts[shard + 1] - self.index.shard_starts[shard])
        if not self.source.distant:
            return max(1, num_rows)
        pieces = -(-int(self.index.block_nbytes[shard]) // _STAGED_NBYTES)
        return max(1, num_rows // max(pieces, 1))

    def _read_proving(
        self, start: int, stop: int, offset: int, dest: memoryview, read: Callable[[int, NDArray[np.uint8]], None]
    ) -> None:
        """Read rows of one shard; groups that lie in it as a whole are summed while they are in the cache."""
        checker = self.checker
        ends = checker.group_ids(np.array([start, stop - 1]))
        ids = checker.pending(np.arange(int(ends[0]), int(ends[1]) + 1))
        first, nbytes = checker.ranges(ids)
        first = first - offset
        stops = first + nbytes
        inside = (first >= 0) & (stops <= len(dest))
        if not inside.all():
            checker.prove(np.array([start, stop - 1]))
            ids, first, stops = ids[inside], first[inside], stops[inside]
        starts, ends_of, sums, done = first.tolist(), stops.tolist(), list[int](), 0
        flat = np.frombuffer(dest, np.uint8)
        for low, high in _runs_of(stops):
            read(offset + done, flat[done : ends_of[high - 1]])
            done = ends_of[high - 1]
            sums += map(sum_of, map(dest.__getitem__, map(slice, starts[low:high], ends_of[low:high])))
        if done < len(dest):
            read(offset + done, flat[done:])
        if sums:
            checker.compare(ids, checker.index.group_sums(ids), sums, np.array([start]))


def _runs_of(stops: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of groups that end in the same piece of `_CACHE_NBYTES`."""
    if not len(stops):
        return
    part = stops // _CACHE_NBYTES
    cuts = (np.flatnonzero(part[1:] != part[:-1]) + 1).tolist()
    yield from zip([0, *cuts], [*cuts, len(stops)], strict=True)


class FixedRows(_RawRows):
    """Rows of one shape, stored as they are.

    Attributes:
        typed: shape (N, *row_shape), over the map; None unless there is a map and one extent.
    """

    def __init__(self, index: FieldIndex, source: Source, checker: Checker) -> None:
        super().__init__(index, source, checker)
        self.row_nbytes = self.field.item_nbytes
        self.typed: NDArray[Any] | None = None
        self._grid: NDArray[Any] | None = None
        self._shift: NDArray[np.int64] | None = None
        self._starts = np.array([extent.start for extent in self.extents], np.int64)
        self._lookup = Lookup(self._starts)
        if self._bytes is not None and self.row_nbytes and self.extents:
            self._map_grid(self._bytes)

    def _map_grid(self, memory: NDArray[np.uint8]) -> None:
        """One array for all extents, if all of them lie on one grid of rows: then any batch is one `take`.

        A file of 1 KiB rows has that always: extents begin at multiples of 4096.
        """
        nbytes, shape, dtype = self.row_nbytes, self.field.item_shape, self.field.numpy_dtype
        first = self.extents[0].offset
        if len(self.extents) == 1:
            self._grid = self.typed = np.ndarray((self.num_rows, *shape), dtype, memory, first)
            return
        base = first % nbytes
        offsets = np.array([extent.offset for extent in self.extents], np.int64) - base
        if not (offsets % nbytes).any():
            self._grid = np.ndarray(((self.source.size - base) // nbytes, *shape), dtype, memory, base)
            self._shift = offsets // nbytes - self._starts

    def batch(self, positions: Positions, target: Any) -> NDArray[Any]:
        rows: NDArray[Any] = target
        checker = self.checker
        if checker.done:
            if self.typed is not None:
                self.typed.take(positions, 0, rows, "clip")
            else:
                self._gather(positions, rows)
        elif checker.single and self.row_nbytes:
            self._gather_proving(positions, rows)
        else:
            checker.prove(positions)
            self._gather(positions, rows)
        return rows

    @property
    def alone(self) -> bool:
        """Whether rows need nothing but their own bytes: each is a group, or none must be proven."""
        return self.row_nbytes > 0 and (self.checker.done or self.checker.single)

    def split(self, rows: NDArray[Any]) -> list[memoryview]:
        """The memory of each row."""
        flat = byte_view(rows, writable=True)
        return [flat[at : at + self.row_nbytes] for at in range(0, len(flat), self.row_nbytes)]

    def proved(self, positions: Positions, rows: NDArray[Any]) -> NDArray[Any]:
        """Prove rows that are `alone` where they were brought to."""
        if not self.checker.done:
            offsets = np.arange(len(positions)) * self.row_nbytes
            self.checker.prove_copies(positions, byte_view(rows), offsets, np.full_like(offsets, self.row_nbytes))
        return rows

    def _gather(self, positions: Positions, rows: NDArray[Any]) -> None:
        if not positions.size or not self.row_nbytes:
            return
        if self._grid is not None:
            self._grid.take(self._places(positions), 0, rows, "clip")
            return
        offsets, _ = self.index.rows(positions)
        if self._bytes is None:
            self.source.read_scattered(offsets, self.row_nbytes, rows)
        elif self.row_nbytes < _LOOP_NBYTES:
            # Rows at any byte: an array whose elements overlap, one row at each offset.
            row = np.dtype((np.void, self.row_nbytes))
            anywhere = np.ndarray((self.source.size - self.row_nbytes + 1,), row, self._bytes.data, strides=(1,))
            rows.reshape(-1).view(np.uint8).view(row)[...] = anywhere[offsets]
        else:
            flat = rows.reshape(-1).view(np.uint8).reshape(-1, self.row_nbytes)
            for place, offset in enumerate(offsets.tolist()):
                flat[place] = self._bytes[offset : offset + self.row_nbytes]

    def _places(self, positions: Positions) -> Positions:
        """Where rows are in the grid."""
        if self._shift is None:
            return positions
        return positions + self._shift.take(self._lookup.find(positions))

    def _copy_and_sum(
        self, grid: NDArray[Any], places: Positions, wanted: NDArray[np.bool_], rows: NDArray[Any], flat: memoryview
    ) -> list[int]:
        """Copy rows one by one and sum those that are wanted: half the time of a `take` of all, and sums after it."""
        sums, nbytes = [], self.row_nbytes
        for row, (place, want) in enumerate(zip(places.tolist(), wanted.tolist(), strict=True)):
            rows[row] = grid[place]
            if want:
                sums.append(sum_of(flat[row * nbytes : (row + 1) * nbytes]))
        return sums

    def _gather_proving(self, positions: Positions, rows: NDArray[Any]) -> None:
        """Each group is a row: it is summed where it was copied to, while it is in the cache."""
        checker, nbytes = self.checker, self.row_nbytes
        ids = checker.group_ids(positions)
        wanted = checker.unproven(ids)
        ids = ids[wanted]
        stored = checker.index.group_sums(ids)  # while the disk is still busy with what was hinted
        flat = byte_view(rows)
        sums: list[int] = []
        if self._grid is not None and nbytes > _CACHE_NBYTES // 4:
            sums = self._copy_and_sum(self._grid, self._places(positions), wanted, rows, flat)
        else:
            # From a distant file all at once: what it costs is the round trip.
            step = max(1, len(positions) if self.source.distant else _CACHE_NBYTES // nbytes)
            for start in range(0, len(positions), step):
                self._gather(positions[start : start + step], rows[start : start + step])
                places = np.flatnonzero(wanted[start : start + step]) + start
                sums += sums_of(flat, places * nbytes, nbytes)
        if sums:
            checker.compare(ids, stored, sums, positions[wanted])

    def run(self, start: int, stop: int, target: Any) -> NDArray[Any]:
        rows: NDArray[Any] = target
        if not self.row_nbytes or start >= stop:
            return rows
        typed = self.typed
        if typed is None or not self.checker.done:
            self._read_run(start, stop, byte_view(rows))
        elif rows.nbytes < _LOOP_NBYTES and not self._in_order.cold:
            before = self._in_order.begin()
            np.copyto(rows, typed[start:stop])  # a few pages: not worth to ask how
            self._in_order.end(before, rows.nbytes)
        else:
            offset = self.extents[0].offset + start * self.row_nbytes
            self._in_order.read(offset, rows.reshape(-1).view(np.uint8))
        return rows

    def getter(self) -> Callable[[int], Any]:
        if self._view is None or not self.row_nbytes or not self.extents:
            return self._copied
        get = self._viewer()
        checker = self.checker
        if checker.done:
            return get
        step, flags = checker.rows_per_group, checker.flags
        if flags is None or not step:
            return self._proved(get)
        seen = flags.data
        prove = checker.prove

        def checked(position: int) -> Any:
            if not seen[position // step]:
                prove(np.array([position]))
            return get(position)

        return checked

    def _proved(self, get: Callable[[int], Any]) -> Callable[[int], Any]:
        def checked(position: int) -> Any:
            self.checker.prove(np.array([position]))
            return get(position)

        return checked

    def _viewer(self) -> Callable[[int], Any]:
        typed = self.typed
        if typed is not None:
            if typed.ndim > 1:
                return cast("Callable[[int], Any]", typed.__getitem__)
            return lambda position: typed[position, ...]
        starts, extents, nbytes = self._starts.tolist(), self.extents, self.row_nbytes
        shape, dtype, memory = self.field.item_shape, self.field.numpy_dtype, self._bytes

        def viewed(position: int) -> Any:
            extent = extents[bisect_right(starts, position) - 1]
            return np.ndarray(shape, dtype, memory, extent.offset + (position - extent.start) * nbytes)

        return viewed

    def _copied(self, position: int) -> Any:
        rows = self.batch(np.array([position]), self.target(1, None))
        rows.flags.writeable = False
        return rows[0, ...]

    def column(self) -> NDArray[Any]:
        num_rows = self.num_rows
        if self._view is not None and len(self.extents) == 1 and self.row_nbytes:
            extent = self.extents[0]
            self.checker.prove_all()
            view = self.source.sequential_view(extent.offset, extent.nbytes)
            assert view is not None
            return np.ndarray((num_rows, *self.field.item_shape), self.field.numpy_dtype, np.frombuffer(view, np.uint8))
        return read_only(self.run(0, num_rows, self.target(num_rows, None)))


class RaggedRows(_RawRows):
    """Rows that differ in size, stored as they are."""

    def batch(self, positions: Positions, target: Any) -> Ragged:
        index, checker = self.index, self.checker
        starts, nbytes, counts = index.ragged_rows(positions)
        shapes = index.shapes(positions, counts) if self.field.varying > 1 else None
        offsets = row_offsets(self.field, counts, self.source.size)
        if not checker.done and not checker.single:
            checker.prove(positions)
        values = self._gather(starts, nbytes, offsets, target)
        if not checker.done and checker.single:
            checker.prove_copies(positions, byte_view(values), np.cumsum(nbytes) - nbytes, nbytes)
        return Ragged(values, offsets, shapes, self.field.is_string)

    def _gather(self, starts: Positions, nbytes: Positions, offsets: Positions, target: Any) -> NDArray[Any]:
        field = self.field
        num_items = int(offsets[-1])
        num_bytes = num_items * field.item_nbytes
        if target is None and self._view is not None and num_bytes and num_bytes >= _SHORT_NBYTES * len(starts):
            pieces = map(self._view.__getitem__, map(slice, starts.tolist(), (starts + nbytes).tolist()))
            # Joining copies without a look at dtypes: a fifth faster than np.concatenate.
            return np.frombuffer(bytearray().join(pieces), field.numpy_dtype).reshape(num_items, *field.item_shape)
        values = items_of(field, num_items, target)
        if num_bytes:
            self._fill(starts, nbytes, values)
        return values

    def _fill(self, starts: Positions, nbytes: Positions, values: NDArray[Any]) -> None:
        if self._bytes is None:
            self.source.read_scattered(starts, nbytes, values)
            return
        flat = values.reshape(-1).view(np.uint8)
        if flat.size < _SHORT_NBYTES * len(starts):
            begins = np.cumsum(nbytes) - nbytes
            self._bytes.take(np.arange(flat.size) + np.repeat(starts - begins, nbytes), 0, flat, "clip")
            return
        slices = map(slice, starts.tolist(), (starts + nbytes).tolist())
        np.concatenate(list(map(self._bytes.__getitem__, slices)), out=flat)

    def run(self, start: int, stop: int, target: Any) -> Ragged:
        index, field = self.index, self.field
        items = index.offsets(start, stop)
        offsets = items - items[0] if items.size else np.zeros(1, np.int64)
        shapes = None
        if field.varying > 1:
            shapes = index.shapes(np.arange(start, stop), np.diff(offsets))
        num_items = int(offsets[-1])
        self._check_bytes(start, stop, num_items * field.item_nbytes)  # before memory is taken for them
        values = items_of(field, num_items, target)
        if values.nbytes:
            self._read_run(start, stop, byte_view(values))
        return Ragged(values, offsets, shapes, field.is_string)

    def _check_bytes(self, start: int, stop: int, nbytes: int) -> None:
        """The blocks must hold what the offsets say, or memory would be left unfilled."""
        stored = 0
        for low, high in self._shard_pieces(start, stop):
            offsets, sizes = self.index.rows(np.array([low, high - 1]))
            stored += int(offsets[1] + sizes[1] - offsets[0])
        if stored != nbytes:
            raise CorruptError(
                f"{self.source.path}: field {self.field.name!r}, samples {start} to {stop - 1}: the blocks hold "
                f"{stored} bytes, the offsets say {nbytes}. Run `chunkstore verify {self.source.path}`."
            )

    def getter(self) -> Callable[[int], Any]:
        return self._row

    def _row(self, position: int) -> Any:
        field, index, checker = self.field, self.index, self.checker
        if self._view is None or not field.item_nbytes:
            return only_row(self.batch(np.array([position]), None), position, self.source.path, field)
        if not checker.done:
            checker.prove(np.array([position]))
        offset, nbytes = index.row(position)
        if field.is_string:
            return text_of(bytes(self._view[offset : offset + nbytes]), position, self.source.path, field)
        count = nbytes // field.item_nbytes
        dims: tuple[int, ...] = (count,)
        if field.varying > 1:
            dims = tuple(index.shapes(np.array([position]), np.array([count]))[0].tolist())
        return np.ndarray((*dims, *field.item_shape), field.numpy_dtype, self._bytes, offset)

    def mapped(self, memory: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """(values over the memory of the only extent, offsets from 0), both proven to fit each other."""
        field, index = self.field, self.index
        items = index.offsets(0, self.num_rows)
        bases = items[index.shard_starts] * field.item_nbytes
        if not np.array_equal(bases[:-1] - bases[0], index.block_offset - self.extents[0].offset) or int(
            bases[-1] - bases[0]
        ) != len(memory):
            raise CorruptError(
                f"{self.source.path}: field {field.name!r}: blocks and offsets do not fit. "
                f"Run `chunkstore verify {self.source.path}`."
            )
        offsets = items if not items[0] else items - items[0]
        if offsets.flags.writeable:
            offsets.flags.writeable = False
        values: NDArray[Any] = np.ndarray((int(offsets[-1]), *field.item_shape), field.numpy_dtype, memory)
        return values, offsets

    def column(self) -> Ragged:
        extents = self.extents
        if self._view is None or len(extents) != 1 or not self.field.item_nbytes:
            return read_only(self.run(0, self.num_rows, None))
        self.checker.prove_all()
        view = self.source.sequential_view(extents[0].offset, extents[0].nbytes)
        assert view is not None
        values, offsets = self.mapped(np.frombuffer(view, np.uint8))
        shapes = None
        if self.field.varying > 1:
            shapes = self.index.shapes(np.arange(self.num_rows), np.diff(offsets))
        return Ragged(values, offsets, shapes, self.field.is_string)
