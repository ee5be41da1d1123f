"""Rows of a field that each container must read by itself: other codecs, dictionaries of their own."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.lookup import Lookup, grouped
from chunkstore._format.schema import Field
from chunkstore._format.section import join_ranges
from chunkstore._read.batch import Positions, items_of, target_of
from chunkstore._read.checked import Where
from chunkstore._read.gather import Rows
from chunkstore._read.ragged import Ragged, read_only, row_offsets


class SplitRows:
    """The rows of one field in several containers, read container by container.

    Costs what each container costs, and 20 µs for each that has some of the rows: little beside decoding.
    """

    def __init__(self, field: Field, parts: Sequence[Rows], starts: Positions, bases: Sequence[int]) -> None:
        """Take them together.

        Args:
            parts: one for each container.
            starts: shape (parts + 1,): the position of the first row of each, and N.
            bases: where each container begins in the source that they have together.
        """
        self.field = field
        self.bases = bases
        self.parts = list(parts)
        self.starts = starts.tolist()
        self.lookup = Lookup(starts[:-1])
        self.checker = SplitChecker(self)

    def target(self, num_rows: int, out: Any) -> Any:
        return target_of(self.field, num_rows, out)

    def shares(self, positions: Positions) -> Iterator[tuple[int, Positions]]:
        """(number of a container, which of the positions are in it, in their order), for each that has some."""
        return grouped(self.lookup.find(positions))

    def batch(self, positions: Positions, target: Any) -> NDArray[Any] | Ragged:
        if not self.field.ragged:
            for number, places in self.shares(positions):
                part = self.parts[number]
                target[places] = part.batch(positions[places] - self.starts[number], part.target(len(places), None))
            return target  # type: ignore[no-any-return]
        found = []
        for number, places in self.shares(positions):
            rows = self.parts[number].batch(positions[places] - self.starts[number], None)
            assert isinstance(rows, Ragged)
            found.append((places, rows))
        return self._assembled(found, len(positions), target)

    def _assembled(self, found: Sequence[tuple[Positions, Ragged]], num_rows: int, target: Any) -> Ragged:
        """Ragged rows put into their places."""
        field = self.field
        counts = np.zeros(num_rows, np.int64)
        shapes = np.zeros((num_rows, field.varying), np.int64) if field.varying > 1 else None
        for places, rows in found:
            counts[places] = rows.counts()
            if shapes is not None and rows.shapes is not None:
                shapes[places] = rows.shapes
        offsets = row_offsets(field, counts, 0)
        values = items_of(field, int(offsets[-1]), target)
        for places, rows in found:
            bounds = rows.offsets.tolist()
            for row, first in enumerate(offsets[places].tolist()):
                low, high = bounds[row], bounds[row + 1]
                values[first : first + high - low] = rows.values[low:high]
        return Ragged(values, offsets, shapes, field.is_string)

    def needed(self, positions: Positions) -> tuple[Positions, Positions]:
        return self._together(positions, lambda part, mine: part.needed(mine))

    def needed_first(self, positions: Positions) -> tuple[Positions, Positions]:
        return self._together(positions, lambda part, mine: part.needed_first(mine))

    def _together(
        self, positions: Positions, ranges: Callable[[Rows, Positions], tuple[Positions, Positions]]
    ) -> tuple[Positions, Positions]:
        found = []
        for number, places in self.shares(positions):
            offsets, nbytes = ranges(self.parts[number], positions[places] - self.starts[number])
            found.append((offsets + self.bases[number], nbytes))
        return join_ranges(found)

    def run(self, start: int, stop: int, target: Any) -> NDArray[Any] | Ragged:
        found, first = [], start
        while first < stop:
            number = bisect_right(self.starts, first, hi=len(self.parts)) - 1
            base, end, part = self.starts[number], min(stop, self.starts[number + 1]), self.parts[number]
            if self.field.ragged:
                rows = part.run(first - base, end - base, None)
                assert isinstance(rows, Ragged)
                found.append((np.arange(first - start, end - start), rows))
            else:
                piece = target[first - start : end - start]
                part.run(first - base, end - base, part.target(end - first, piece))
            first = end
        return self._assembled(found, max(0, stop - start), target) if self.field.ragged else target

    def getter(self) -> Callable[[int], Any]:
        starts, getters = self.starts, [part.getter() for part in self.parts]

        def get(position: int) -> Any:
            number = bisect_right(starts, position, hi=len(getters)) - 1
            return getters[number](position - starts[number])

        return get

    def column(self) -> NDArray[Any] | Ragged:
        return read_only(self.run(0, self.starts[-1], self.target(self.starts[-1], None)))

    def hint(self, positions: Positions) -> None:
        for number, places in self.shares(positions):
            self.parts[number].hint(positions[places] - self.starts[number])


class SplitIndex:
    """Where the rows are and how large, of each container by its own index."""

    def __init__(self, rows: SplitRows) -> None:
        self.field = rows.field
        self.block_nbytes = np.concatenate([part.checker.index.block_nbytes for part in rows.parts])
        self._parts: list[Where] = [part.checker.index for part in rows.parts]
        self._starts = rows.starts

    def shape(self, position: int) -> tuple[int, ...]:
        """Shape of the row at a position."""
        index, local = self._at(position)
        return index.shape(local)

    def row(self, position: int) -> tuple[int, int]:
        """(offset in its container, stored nbytes) of the row at a position."""
        index, local = self._at(position)
        return index.row(local)

    def _at(self, position: int) -> tuple[Where, int]:
        number = bisect_right(self._starts, position, hi=len(self._parts)) - 1
        return self._parts[number], position - self._starts[number]


class SplitChecker:
    """Proves rows by the checker of each container."""

    def __init__(self, rows: SplitRows) -> None:
        self._rows = rows
        self.index = SplitIndex(rows)

    def prove(self, positions: Positions) -> None:
        """As of `Checker`."""
        for number, places in self._rows.shares(positions):
            self._rows.parts[number].checker.prove(positions[places] - self._rows.starts[number])

    def prove_all(self) -> None:
        """As of `Checker`."""
        for part in self._rows.parts:
            part.checker.prove_all()

    def resume(self, earlier: SplitChecker, runs: Any = None) -> None:
        """As of `Checker`, of each container."""
        for part, old in zip(self._rows.parts, earlier._rows.parts, strict=True):
            part.checker.resume(old.checker)
