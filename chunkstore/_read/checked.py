"""Proves chunks by their checksums, each the first time that it is read (spec section 9)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import pairwise
from typing import Any, Final, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.checksum import sum64, sum64_large
from chunkstore._format.field_index import FieldIndex
from chunkstore._format.lookup import distinct
from chunkstore._format.section import join_ranges
from chunkstore._read.batch import Positions, aligned_bytes
from chunkstore._read.hints import Hints
from chunkstore._storage.source import Source
from chunkstore.errors import CorruptError, FormatError

Verify: TypeAlias = Literal["once", "always", "off"]
VERIFY: Final = ("once", "always", "off")

_BUFFER_NBYTES: Final = 4 << 20
_LARGE_NBYTES: Final = 1 << 20  # from here on a sum is made in a way that lets other threads run
_PIECE_NBYTES: Final = 4 << 20
_COPIED_NBYTES: Final = 1 << 20  # read and summed at once: still in a cache of the processor
# Groups of at most so many bytes on average are proven with their whole block, once one in so many of it is proven.
_SMALL_NBYTES: Final = 8 << 10
_ONE_IN: Final = 8
_AROUND_NBYTES: Final = 256 << 20  # of a block at most: so much takes some 10 ms


class Where(Protocol):
    """What is asked from outside about the rows of a field: where they are, how large."""

    @property
    def block_nbytes(self) -> NDArray[np.int64]:
        """Stored bytes of each block."""

    def shape(self, position: int) -> tuple[int, ...]:
        """Shape of one row."""

    def row(self, position: int) -> tuple[int, int]:
        """(offset in its file, stored nbytes) of one row."""


class Prover(Protocol):
    """What is asked from outside to have rows of a field proven."""

    @property
    def index(self) -> Where:
        """Of the field."""

    def prove(self, positions: Positions) -> None:
        """Prove these rows, unless they are proven."""

    def prove_all(self) -> None:
        """Prove all rows."""

    def resume(self, earlier: Any, runs: Any = None) -> None:
        """Take over what was proven in an earlier generation."""


class Checker:
    """What of one field is proven, and the way to prove more.

    A proven group is remembered by one byte, in memory that is touched with it. Safe from many threads without a lock:
    at worst two prove the same group.

    Attributes:
        done: nothing is left to prove, now and later.
        single: each group is one row, so that a row can be proven where it was copied to.
        flags: one byte per group, 1 where it is proven; None where nothing is remembered.
        rows_per_group: where one number says it for the whole field, so that `position // rows_per_group` is the group;
            otherwise 0.
        when_done: called when the last group is proven; may be called again.
    """

    when_done: Callable[[], None] | None = None

    def __init__(
        self, index: FieldIndex, source: Source, verify: Verify, key: Callable[[int], str | None], hints: Hints
    ) -> None:
        self.index = index
        self.done = verify == "off" or index.num_groups == 0
        self.single = bool((index.rows_per_group == 1).all())
        self.rows_per_group = _common_step(index)
        self.flags = np.zeros(index.num_groups, np.uint8) if verify == "once" else None
        self._missing = index.num_groups  # a hint, see `unproven`
        self._idle, self._recount_at = 0, 16
        self._even = _even_groups(index, self.rows_per_group)
        self._source = source
        self._view = None if self.done else source.view(0, source.size)
        self._key = key
        self._hints = hints
        small = int(index.block_nbytes.sum()) <= _SMALL_NBYTES * index.num_groups
        self._by_block = small and verify == "once" and not source.distant
        self._tried: set[int] = set()

    def resume(self, earlier: Checker, runs: Iterable[tuple[int, int, int]] | None = None) -> None:
        """Take over what was proven in an earlier generation.

        Args:
            earlier: its groups are the first ones of this.
            runs: or else where they are: (first group here, first group there, how many).
        """
        if self.flags is not None and earlier.flags is not None:
            for here, there, count in [(0, 0, len(earlier.flags))] if runs is None else runs:
                self.flags[here : here + count] = earlier.flags[there : there + count]
            self._recount()

    def share(self, other: Checker) -> None:
        """Have one memory with another checker of the same groups: what either proves, both know."""
        if self.flags is not None and other.flags is not None:
            self.flags = other.flags
            self._recount()

    def group_ids(self, positions: Positions) -> Positions:
        """The group of each row; shape (B,)."""
        if self.rows_per_group == 1:
            return positions
        if self.rows_per_group:
            return positions // self.rows_per_group
        return self.index.group_ids(positions)

    def pending(self, ids: Positions) -> Positions:
        """Those groups that must be proven before their rows are handed out; neighbours named once."""
        ids = ids[self.unproven(ids)]
        if ids.size > 1:
            again = ids[1:] == ids[:-1]
            if again.any():
                ids = np.append(ids[:1], ids[1:][~again])
        return ids

    def unproven(self, ids: Positions) -> NDArray[np.bool_]:
        """Which of these groups must be proven; shape (G,)."""
        if self.flags is None:
            return np.ones(len(ids), bool)
        mask: NDArray[np.bool_] = self.flags.take(ids) == 0
        if not np.count_nonzero(mask):  # a fifth of the time of `any`
            # Threads may lose each other's count, so that `_missing` never gets to 0: look again, ever more rarely.
            self._idle += 1
            if self._idle >= self._recount_at:
                self._recount_at *= 2
                self._recount()
        return mask

    def _recount(self) -> None:
        assert self.flags is not None
        self._missing = len(self.flags) - int(np.count_nonzero(self.flags))
        self.done = self._missing == 0
        if self.done and self.when_done is not None:
            self.when_done()

    def hint(self, positions: Positions) -> None:
        """Ask the system for these rows, for all that is summed with them, and for the parts of the index that say so.

        In the order in which a batch needs them. Reads the offsets of ragged rows, which say what to ask for.
        """
        index, advise = self.index, self._source.advise
        advise(*index.unread(positions))
        ids = None if self.done else self.group_ids(positions)
        advise(*(index.rows(positions) if ids is None or self.single else self.ranges(ids)))
        if ids is not None:
            advise(*index.unread_sums(ids))

    def prove(self, positions: Positions) -> None:
        """Prove the groups of these rows from the file, unless they are proven.

        Raises:
            CorruptError: a group is not what was written.
        """
        if not self.done:
            ids = self.pending(self.group_ids(positions))
            if not ids.size:
                return
            self.prove_groups(ids, positions)
            if self._by_block and not self._hints.cold:
                self._prove_around(ids.item(0))

    def prove_groups(self, ids: Positions, wanted: Positions) -> None:
        """Prove groups from the file. `wanted`: the rows for whose sake, which an error names."""
        offsets, nbytes = self.ranges(ids)
        stored = self.index.group_sums(ids)  # while the disk is still busy with what was hinted
        if self._view is not None:
            self.compare(ids, stored, sums_of(self._view, offsets, nbytes), wanted)
            return
        for start, stop in _pieces(nbytes):
            mine, offset, size, known = ids[start:stop], offsets[start:stop], nbytes[start:stop], stored[start:stop]
            if stop - start == 1:  # may be of any size
                self.compare(mine, known, [self._sum_of(int(offset[0]), int(size[0]))], wanted)
                continue
            buffer = memoryview(bytearray(int(size.sum())))
            self._source.read_scattered(offset, size, buffer)
            self.compare(mine, known, sums_of(buffer, np.cumsum(size) - size, size), wanted)

    def needed(self, positions: Positions) -> tuple[Positions, Positions]:
        """(offset, nbytes) of all that proving these rows reads of a distant file: groups, and their sums."""
        if self.done:
            return positions[:0], positions[:0]
        ids = self.pending(distinct(self.group_ids(positions)))
        return join_ranges([self.ranges(ids), self.index.unread_sums(ids)])

    def needed_sums(self, positions: Positions) -> tuple[Positions, Positions]:
        """As `needed`, of the sums alone."""
        if self.done:
            return positions[:0], positions[:0]
        return self.index.unread_sums(self.pending(distinct(self.group_ids(positions))))

    def ranges(self, ids: Positions) -> tuple[Positions, Positions]:
        """(offset, nbytes) of groups; each of shape (G,)."""
        if self._even is not None:
            base, size, end = self._even
            offsets = ids * size + base
            return offsets, np.minimum(end - offsets, size)
        groups = self.index.groups(ids)
        return groups.offset, groups.nbytes

    def prove_copies(self, positions: Positions, view: memoryview, offsets: Positions, nbytes: Positions) -> None:
        """Prove rows, each of which is a group, where they were copied to: at `offsets` of `view`."""
        ids = self.group_ids(positions)
        mask = self.unproven(ids)
        if mask.any():
            sums = sums_of(view, offsets[mask], nbytes[mask])
            self.compare(ids[mask], self.index.group_sums(ids[mask]), sums, positions[mask])

    def compare(self, ids: Positions, stored: NDArray[np.uint64], sums: list[int], wanted: Positions) -> None:
        """Hold computed sums of groups against the stored ones, and remember those that are right."""
        wrong = stored != np.array(sums, np.uint64)
        if np.count_nonzero(wrong):
            place = int(np.argmax(wrong))
            raise self._corrupt(int(ids[place]), int(stored[place]), sums[place], wanted)
        if self.flags is not None:
            self.flags[ids] = 1
            self._missing -= len(ids)
            if self._missing <= 0:  # a group that is there twice, or that two threads proved, was counted twice
                self._recount()

    def prove_all(self) -> None:
        """Prove the whole field in the order of the file, blocks in one piece.

        Costs one pass over what is not proven yet: about 20 GB/s in memory, other threads run meanwhile.
        """
        for shard in range(len(self.index.block_offset)):
            if self.done:
                return
            start, stop = self._groups_of(shard)
            if (self.flags is None or not self.flags[start:stop].all()) and not self._prove_block(shard):
                ids = np.arange(start, stop)
                self.prove_groups(ids, self.index.groups(ids).first_row)  # names the damage

    def _prove_around(self, group: int) -> None:
        """Prove the rest of the block of a group, if enough of it is proven to expect that all of it will be read.

        For small groups of data in memory: the sum of 64 MiB takes 5 ms, those of its 16384 groups 11 and more. One
        block a batch, so that no batch waits for many. If it is wrong, those who read what is damaged will be told.
        """
        assert self.flags is not None
        shard = int(np.searchsorted(self.index.first_group, group, "right")) - 1
        start, stop = self._groups_of(shard)
        if shard in self._tried or self.index.block_nbytes[shard] > _AROUND_NBYTES:
            return
        if np.count_nonzero(self.flags[start:stop]) * _ONE_IN >= stop - start:
            self._tried.add(shard)
            with suppress(OSError, FormatError):  # of rows that nobody has asked for
                self._prove_block(shard, by_copy=True)

    def _groups_of(self, shard: int) -> tuple[int, int]:
        return int(self.index.first_group[shard]), int(self.index.first_group[shard + 1])

    def _prove_block(self, shard: int, *, by_copy: bool = False) -> bool:
        """Prove all groups of a block by its own sum; False where that does not tell.

        `by_copy`: even if there is a map, where what the disk cannot read would end the process.
        """
        index, (start, stop) = self.index, self._groups_of(shard)
        offset, nbytes = int(index.block_offset[shard]), int(index.block_nbytes[shard])
        groups = index.groups(np.arange(start, stop))
        # The sum of the block stands for those of its groups only where they are the block.
        follow = groups.offset[0] == offset and np.array_equal(groups.offset[1:], (groups.offset + groups.nbytes)[:-1])
        if not follow or int(groups.offset[-1] + groups.nbytes[-1]) != offset + nbytes:
            return False
        if self._sum_of(offset, nbytes, by_copy=by_copy) != int(index.block_sum[shard]):
            return False
        if self.flags is not None:
            self._missing -= stop - start - int(np.count_nonzero(self.flags[start:stop]))
            self.flags[start:stop] = 1
            if self._missing <= 0:
                self._recount()
        return True

    def _sum_of(self, offset: int, nbytes: int, *, by_copy: bool = False) -> int:
        """xxh3-64 of a range, read in order, in pieces."""
        view = None if by_copy else self._source.sequential_view(offset, nbytes)
        if view is not None:
            return sum64_large(view[at : at + _PIECE_NBYTES] for at in range(0, nbytes, _PIECE_NBYTES))
        buffer = aligned_bytes(max(1, min(nbytes, _COPIED_NBYTES))).data

        def piece(at: int) -> memoryview:
            part = buffer[: nbytes - at]
            self._source.read_into(offset + at, part)
            return part

        return sum64_large(piece(at) for at in range(0, nbytes, len(buffer)))

    def _corrupt(self, group: int, stored: int, computed: int, wanted: Positions) -> CorruptError:
        index = self.index
        groups = index.groups(np.array([group]))
        first, stop = int(groups.first_row[0]), int(groups.stop_row[0])
        asked = wanted[(wanted >= first) & (wanted < stop)]
        sample = int(asked[0]) if asked.size else first
        shard = int(np.searchsorted(index.first_group, group, "right")) - 1
        begin, end = int(groups.offset[0]), int(groups.offset[0] + groups.nbytes[0])
        key = self._key(sample)
        name = f"sample {sample}" if key is None else f"sample {sample} {key!r}"
        shared = f" (samples {first} to {stop - 1} share the checksum)" if stop - first > 1 else ""
        path = self._source.path
        return CorruptError(
            f"{path}: {name}, shard {shard}, field {index.field.name!r}, bytes [{begin}, {end}){shared}: "
            f"stored xxh3 {stored:016x}, computed {computed:016x}. Run `chunkstore verify {path}`."
        )


def _common_step(index: FieldIndex) -> int:
    """Rows per group, if groups begin at its multiples throughout; otherwise 0."""
    steps = index.rows_per_group
    if not len(steps):
        return 1
    step = int(steps[0])
    if len(steps) == 1:
        return step
    same = bool((steps[:-1] == step).all()) and not bool((index.shard_starts[1:-1] % step).any())
    # The last shard may have larger groups only if it has but one.
    last_rows = int(index.shard_starts[-1] - index.shard_starts[-2])
    return step if same and (int(steps[-1]) == step or last_rows <= min(step, int(steps[-1]))) else 0


def _even_groups(index: FieldIndex, step: int) -> tuple[int, int, int] | None:
    """(offset of the first group, nbytes of a group, end of the last), where all groups lie back to back alike."""
    extents = index.extents()
    if len(extents) != 1 or index.field.ragged or index.field.codec != "raw" or not step or not extents[0].nbytes:
        return None
    nbytes = min(step, extents[0].stop) * index.field.item_nbytes
    return extents[0].offset, nbytes, extents[0].offset + extents[0].nbytes


def sums_of(view: memoryview, offsets: NDArray[np.int64], nbytes: NDArray[np.int64] | int) -> list[int]:
    """xxh3-64 of many ranges of a view."""
    starts, stops = offsets.tolist(), (offsets + nbytes).tolist()
    largest = nbytes if isinstance(nbytes, int) else int(nbytes.max(initial=0))
    sum_one = sum64 if largest < _LARGE_NBYTES else sum_of
    return list(map(sum_one, map(view.__getitem__, map(slice, starts, stops))))


def sum_of(piece: memoryview) -> int:
    """xxh3-64 of one piece; other threads run meanwhile if it is large."""
    return sum64_large([piece]) if piece.nbytes >= _LARGE_NBYTES else sum64(piece)


def _pieces(nbytes: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Runs of ranges that have about `_BUFFER_NBYTES` together."""
    if not len(nbytes):
        return []
    ends = np.cumsum(nbytes)
    part = (ends - nbytes) // _BUFFER_NBYTES
    bounds = [0, *(np.flatnonzero(part[1:] != part[:-1]) + 1).tolist(), len(nbytes)]
    return list(pairwise(bounds))
