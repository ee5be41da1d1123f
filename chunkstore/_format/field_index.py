"""One field of a container: positions -> bytes of its rows (spec sections 7, 8, 9).

This is the gate together with `index.py`: what is returned lies inside the blocks, and nothing above asks again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.codec import RAW
from chunkstore._format.constants import MAX_INT, Kind
from chunkstore._format.dtypes import element_nbytes
from chunkstore._format.index import Index
from chunkstore._format.lookup import Ints, Lookup, distinct
from chunkstore._format.section import Column, join_ranges
from chunkstore.errors import CorruptError, LimitError

_MANY_SHARDS: Final = 1024  # more are not looked through only to save a lookup per batch


@dataclass(frozen=True)
class Extent:
    """Adjacent blocks of one field: rows `[start, stop)` lie back to back in `[offset, offset + nbytes)`."""

    start: int
    stop: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Groups:
    """Groups of one field: what their checksums cover. All of shape (G,)."""

    first_row: Ints
    stop_row: Ints
    offset: Ints
    nbytes: Ints


class FieldIndex:
    """Where the rows of one field are. Safe from many threads; holds no descriptor of its own."""

    def __init__(self, index: Index, number: int) -> None:
        self.field = index.fields[number]
        self._path = index.path
        self.shard_starts = index.shard_starts
        blocks = index.blocks[:, number]
        self.block_offset = blocks["offset"].astype(np.int64)
        self.block_nbytes = blocks["nbytes"].astype(np.int64)
        self.block_sum = blocks["sum"].astype(np.uint64)
        self.rows_per_group: Ints = np.minimum(blocks["rows_per_group"], MAX_INT).astype(np.int64)
        self._lookup = Lookup(self.shard_starts[:-1])
        rows = self.shard_starts[1:] - self.shard_starts[:-1]
        self.first_group = np.zeros(len(rows) + 1, np.int64)
        (-(-rows // self.rows_per_group)).cumsum(out=self.first_group[1:])
        self.num_groups = int(self.first_group[-1])
        firsts = np.array([d.first_sample for d in index.directories], np.int64)
        group_firsts = self.first_group[[d.first_shard - index.first_shard for d in index.directories]]
        self._sums = index.column(Kind.CHUNK_SUMS, number, group_firsts, "<u8")
        self._items = index.column(Kind.OFFSETS, number, firsts, "<i8") if self.field.ragged else None
        self._shapes = (
            index.column(Kind.SHAPES, number, firsts, "<i8", self.field.varying) if self.field.varying > 1 else None
        )
        self._extents: list[Extent] | None = None
        self._bases: dict[int, int] = {}  # for rows one by one and for batches: where shards begin in the column
        self._base_table: Ints | None = None
        self._straight: tuple[int, int, int] | tuple[()] | None = None
        self._stored = index.column(Kind.STORED_OFFSETS, number, firsts, "<i8") if self.field.codec != RAW else None

    def extents(self) -> list[Extent]:
        """The runs of adjacent blocks, in the order of rows."""
        if self._extents is None:
            self._extents = self._find_extents()
        return self._extents

    def _find_extents(self) -> list[Extent]:
        if not len(self.block_offset):
            return []
        ends = self.block_offset + self.block_nbytes
        lasts = (self.block_offset[1:] != ends[:-1]).nonzero()[0].tolist()
        firsts = [0, *(last + 1 for last in lasts)]
        lasts.append(len(ends) - 1)
        return [
            Extent(
                int(self.shard_starts[a]),
                int(self.shard_starts[b + 1]),
                int(self.block_offset[a]),
                int(ends[b] - self.block_offset[a]),
            )
            for a, b in zip(firsts, lasts, strict=True)
        ]

    def decoded_nbytes(self) -> int:
        """Bytes of all rows, before codecs; from the ends of the index arrays alone."""
        num_samples = int(self.shard_starts[-1]) - int(self.shard_starts[0])
        if self._items is None or not num_samples:
            return num_samples * self.field.item_nbytes
        first, last = self._items.item(int(self.shard_starts[0])), self._items.item(int(self.shard_starts[-1]) - 1, 1)
        return (last - first) * self.field.item_nbytes

    def rows(self, positions: Ints) -> tuple[Ints, Ints]:
        """(offset in the file, stored nbytes) of rows at positions in `[0, N)`; each of shape (B,).

        Raises:
            CorruptError: the index leads out of a block.
        """
        if self._stored is not None:
            return self._variable(self._stored, 1, positions, self._shards(positions))[:2]
        if self._items is not None:
            return self._variable(self._items, self.field.item_nbytes, positions, self._shards(positions))[:2]
        row_nbytes, extents = self.field.item_nbytes, self.extents()
        if len(extents) == 1:
            offsets = (positions - extents[0].start) * row_nbytes + extents[0].offset
        else:
            shards = self._shards(positions)
            offsets = self.block_offset[shards] + (positions - self.shard_starts[shards]) * row_nbytes
        return offsets, np.full(len(positions), row_nbytes)

    def unread(self, positions: Ints) -> tuple[Ints, Ints]:
        """(offset, nbytes) of what `rows` has to read from the index first; of no length where nothing is."""
        columns = [(column, shift) for column in (self._stored, self._items) if column is not None for shift in (0, 1)]
        columns += [] if self._shapes is None else [(self._shapes, 0)]
        return join_ranges(column.unread(positions, shift) for column, shift in columns)

    def missing(self, positions: Ints) -> tuple[Ints, Ints]:
        """As `unread`, with the entries of the first rows of shards, which `rows` reads once and then remembers."""
        if (self._stored or self._items) is None or not positions.size:
            return positions[:0], positions[:0]
        firsts = self.shard_starts[distinct(self._shards(positions))]
        return self.unread(np.concatenate([positions, firsts]))

    def unread_sums(self, ids: Ints) -> tuple[Ints, Ints]:
        """As `unread`, for `group_sums`."""
        return self._sums.unread(ids)

    def row(self, position: int) -> tuple[int, int]:
        """(offset in the file, stored nbytes) of one row at a position in `[0, N)`.

        Raises:
            CorruptError: the index leads out of a block.
        """
        shard = 0 if len(self.block_offset) == 1 else int(np.searchsorted(self.shard_starts, position, "right")) - 1
        column = self._stored or self._items
        first_row, block = int(self.shard_starts[shard]), int(self.block_offset[shard])
        unit = 1 if self._stored else self.field.item_nbytes
        if column is None:
            return block + (position - first_row) * unit, unit
        base = self._base(column, shard, first_row)
        first, last = column.item(position), column.item(position, 1)
        if not 0 <= base <= first <= last or (last - base) * unit > int(self.block_nbytes[shard]):
            raise self._corrupt(position, f"offsets {first} to {last} do not lie in its block")
        return block + (first - base) * unit, (last - first) * unit

    def shape(self, position: int) -> tuple[int, ...]:
        """Shape of one row at a position in `[0, N)`; of a text, how many bytes of UTF-8."""
        if not self.field.ragged:
            return self.field.item_shape
        at = np.array([position], np.int64)
        return (*self.shapes(at, self.counts(at))[0].tolist(), *self.field.item_shape)

    def _base(self, column: Column, shard: int, first_row: int) -> int:
        base = self._bases.get(shard)
        if base is None:
            base = self._bases[shard] = column.item(first_row)
        return base

    def _shards(self, positions: Ints) -> Ints:
        if len(self.block_offset) == 1:
            return np.zeros(len(positions), np.int64)
        return self._lookup.find(positions)

    def _variable(self, column: Column, unit: int, positions: Ints, shards: Ints) -> tuple[Ints, Ints, Ints]:
        """(offset, nbytes, entries) of rows whose ends stand in a column."""
        first, last = column.take(positions), column.take(positions, 1)
        base: Any = self._bases_of(column, shards)
        room = self.block_nbytes[shards] // unit if unit else None
        bad = (first < base) | (last < first) | (base < 0)
        if room is not None:
            bad |= last - base > room
        if bad.any():
            place = int(np.flatnonzero(bad)[0])
            raise self._corrupt(
                int(positions[place]), f"offsets {first[place]} to {last[place]} do not lie in its block"
            )
        counts: Ints = last - first
        return self.block_offset[shards] + (first - base) * unit, counts * unit, counts

    def _bases_of(self, column: Column, shards: Ints) -> Ints | int:
        """The entry of the first row of each shard, read once and then remembered."""
        if len(self.block_offset) == 1:
            return self._base(column, 0, int(self.shard_starts[0]))
        known = self._base_table
        if known is None:
            known = self._base_table = np.full(len(self.block_offset), -1, np.int64)
        found = known[shards]
        if (found < 0).any():
            missing = distinct(shards[found < 0])
            known[missing] = column.take(self.shard_starts[missing])
            found = known[shards]
        return found

    def _find_straight(self) -> tuple[int, int, int] | tuple[()]:
        """(offset of the first item, its number, the number behind the last) where all blocks follow each other.

        Then no shard need be looked up for a row. Empty where it is not so, or not worth to find out.
        """
        items, unit, shards = self._items, self.field.item_nbytes, len(self.block_offset)
        if items is None or not unit or not 0 < shards <= _MANY_SHARDS or len(self.extents()) != 1:
            return ()
        bases = items.take(self.shard_starts[:-1])
        low, top = int(bases[0]), items.item(int(self.shard_starts[-1]) - 1, 1)
        ends = np.append(bases[1:], top)
        if low < 0 or np.any(ends < bases) or np.any((ends - bases) != self.block_nbytes // unit):
            return ()
        whole = np.all(self.block_nbytes % unit == 0)
        return (int(self.block_offset[0]), low, top) if whole else ()

    def ragged_rows(self, positions: Ints) -> tuple[Ints, Ints, Ints]:
        """`rows` and `counts` of a raw ragged field in one: (offset, nbytes, items); each of shape (B,)."""
        assert self._items is not None
        if self._straight is None:
            self._straight = self._find_straight()
        if self._straight:
            offset, low, top = self._straight
            first, last = self._items.take(positions), self._items.take(positions, 1)
            counts = last - first
            # Compared and not subtracted: numbers of a hostile file wrap around.
            if ((first >= low) & (last >= first) & (last <= top)).all():
                unit = self.field.item_nbytes
                return (first - low) * unit + offset, counts * unit, counts
        found = self._variable(self._items, self.field.item_nbytes, positions, self._shards(positions))
        if not self.field.item_nbytes:  # otherwise the block bounds them
            self._check_counts(positions, found[2])
        return found

    def counts(self, positions: Ints) -> Ints:
        """Items of ragged rows; shape (B,)."""
        assert self._items is not None
        first, last = self._items.take(positions), self._items.take(positions, 1)
        bad = (first < 0) | (last < first)
        if bad.any():
            place = int(np.flatnonzero(bad)[0])
            raise self._corrupt(int(positions[place]), f"offsets {first[place]} to {last[place]} descend")
        counts: Ints = last - first
        self._check_counts(positions, counts)
        return counts

    def _check_counts(self, positions: Ints, counts: Ints) -> None:
        try:
            self._check_limit(positions, counts[:, None])
        except LimitError:
            self.shapes(positions, counts)  # that they do not fit their shapes comes first (spec section 14)
            raise

    def _check_limit(self, positions: Ints, dims: Ints) -> None:
        """Dimensions of 0 left out, a row has less than 2^63 bytes (spec section 15)."""
        unit = element_nbytes(self.field.dtype) * math.prod(dim or 1 for dim in self.field.item_shape)
        # As in `_check_shapes`.
        large = np.prod(np.where(dims > 0, dims, 1).astype(np.float64), axis=1) * unit >= 2.0**62
        for place in np.flatnonzero(large).tolist():
            if math.prod(dim or 1 for dim in dims[place].tolist()) * unit < 2**63:
                continue
            raise LimitError(
                f"{self._path}: sample {int(positions[place])}, field {self.field.name!r}: a row of shape "
                f"{(*dims[place].tolist(), *self.field.item_shape)} has more than 2^63 - 1 bytes"
            )

    def shapes(self, positions: Ints, counts: Ints) -> Ints:
        """The first `varying` dimensions of ragged rows; shape (B, varying). `counts` are theirs."""
        if self._shapes is None:
            return counts.reshape(-1, 1)
        dims = self._shapes.take(positions)
        self._check_shapes(positions, dims, counts)
        return dims

    def _check_shapes(self, positions: Ints, dims: Ints, counts: Ints) -> None:
        bad = (dims < 0).any(axis=1)
        for place, dim in enumerate(self.field.shape[: self.field.varying]):
            if dim is not None:
                bad |= dims[:, place] != dim
        bad |= np.prod(dims, axis=1) != counts
        # In floating point a product cannot wrap around, but it is not exact: only rows near the limit are looked at.
        for place in np.flatnonzero(np.prod(dims.astype(np.float64), axis=1) > 2.0**62).tolist():
            bad[place] |= math.prod(dims[place].tolist()) != counts[place]
        if bad.any():
            place = int(np.flatnonzero(bad)[0])
            raise self._corrupt(
                int(positions[place]), f"shape {dims[place].tolist()} does not fit {counts[place]} items of its schema"
            )
        self._check_limit(positions, dims)

    def offsets(self, start: int, stop: int) -> Ints:
        """OFFSETS of rows `[start, stop)` and the end of the last; shape (stop - start + 1,). Read-only or fresh.

        Proven not to descend, and to stay inside the field.
        """
        assert self._items is not None
        items = self._items.run(start, stop, 1)
        if items.size and (items[0] < 0 or np.any(items[1:] < items[:-1])):
            raise self._corrupt(start, "the offsets from here on descend")
        return items

    def group_ids(self, positions: Ints) -> Ints:
        """The group of each row; shape (B,). Groups are numbered over the whole container."""
        shards = self._shards(positions)
        return self.first_group[shards] + (positions - self.shard_starts[shards]) // self.rows_per_group[shards]

    def groups(self, ids: Ints) -> Groups:
        """Rows and bytes that groups cover.

        Raises:
            CorruptError: the index leads out of a block, or a group ends before it begins.
        """
        shards = np.searchsorted(self.first_group, ids, "right") - 1
        size = self.rows_per_group[shards]
        # A group may claim more rows than the shard has: the product stays below 2^63 because its first row exists.
        first = self.shard_starts[shards] + (ids - self.first_group[shards]) * size
        stop = np.minimum(self.shard_starts[shards + 1] - first, size) + first
        offset, _ = self.rows(first)
        last_offset, last_nbytes = self.rows(stop - 1)
        nbytes = last_offset + last_nbytes - offset
        if nbytes.size and nbytes.item(nbytes.argmin()) < 0:
            raise self._corrupt(int(first[nbytes.argmin()]), "the offsets from here to the end of its group descend")
        return Groups(first, stop, offset, nbytes)

    def group_sums(self, ids: Ints) -> NDArray[np.uint64]:
        """Stored xxh3-64 of groups; shape (G,)."""
        return self._sums.take(ids)

    def _corrupt(self, position: int, what: str) -> CorruptError:
        return CorruptError(
            f"{self._path}: sample {position}, field {self.field.name!r}: {what}. Run `chunkstore verify {self._path}`."
        )
