"""Which samples of a damaged container can be there at all, by arithmetic: an index may claim 10^18 of them.

A sample needs bytes in the file: those of its rows, and of the index arrays that have an entry for each sample. In a
block and in an index array samples lie in their order, so those of a shard that the file has room for are its first
ones. And where blocks lie over each other there are no more samples than the file has bytes for.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.codec import RAW
from chunkstore._format.constants import NO_FIELD, Kind
from chunkstore._format.index import Index
from chunkstore._format.schema import Field
from chunkstore._format.segment import Directory

MOST_EMPTY: Final = 1 << 20  # samples without a byte that are written anew; nothing limits how many an index claims
BEHIND: Final = "the file ends before these bytes"
EMPTY: Final = "none of them has a byte in the file: only their number is stored, and it is this one"
OVERLAP: Final = "the file has not bytes enough for so many samples: blocks lie over each other"


@dataclass(frozen=True)
class Run:
    """Samples `[start, stop)`: to be read where `reason` is empty, lost otherwise."""

    start: int
    stop: int
    reason: str = ""


def runs(index: Index, nbytes: int) -> Iterator[Run]:
    """All samples of an index in their order.

    Args:
        index: it may lie, but is as the gate of the format lets it pass.
        nbytes: length of the file.
    """
    needed = needed_nbytes(index)
    left = nbytes // needed if needed else MOST_EMPTY
    for run in _joined(_of_shards(index, nbytes)):
        if run.reason:
            yield run
            continue
        cut = min(run.stop, run.start + left)
        left -= cut - run.start
        if cut > run.start:
            yield Run(run.start, cut)
        if cut < run.stop:
            yield Run(cut, run.stop, OVERLAP if needed else EMPTY)


def needed_nbytes(index: Index) -> int:
    """Bytes of the file that each sample has for itself, at least; 0 where it may claim any number of them."""
    entries = sum(8 * (field.ragged + (field.codec != RAW)) for field in index.fields)
    rows = sum(_row_nbytes(field) for field in index.fields)
    return entries + rows + 8 * index.has_keys


def _row_nbytes(field: Field) -> int:
    """Of a row whose place follows from its number alone; 0 for others."""
    return 0 if field.ragged or field.codec != RAW else field.item_nbytes


def _of_shards(index: Index, nbytes: int) -> Iterator[Run]:
    blocks = _blocks_stop(index, nbytes)
    for directory in index.directories:
        first = directory.first_shard - index.first_shard
        starts = index.shard_starts[first : first + directory.num_shards + 1].tolist()
        entries = _entries_stop(index, directory, nbytes)
        ends = blocks[first : first + directory.num_shards].tolist()
        for start, stop, last in zip(starts, starts[1:], ends, strict=False):
            readable = min(max(min(last, entries), start), stop)
            yield Run(start, readable)
            yield Run(readable, stop, BEHIND)


def _joined(found: Iterator[Run]) -> Iterator[Run]:
    """Runs that follow each other and have one reason, as one."""
    for _, alike in itertools.groupby((run for run in found if run.start < run.stop), lambda run: run.reason):
        # One after another: there may be millions, one or two for each shard.
        yield functools.reduce(lambda first, last: Run(first.start, last.stop, first.reason), alike)


def _blocks_stop(index: Index, nbytes: int) -> NDArray[np.int64]:
    """The sample of each shard behind the last one whose rows end in the file, by its blocks; shape (shards,)."""
    starts, stops = index.shard_starts[:-1], index.shard_starts[1:].copy()
    for number, field in enumerate(index.fields):
        size = _row_nbytes(field)
        if size:
            room = np.maximum(nbytes - index.blocks["offset"][:, number].astype(np.int64), 0) // size
            stops = np.minimum(stops, starts + np.minimum(room, stops - starts))
    return stops


def _entries_stop(index: Index, directory: Directory, nbytes: int) -> int:
    """The sample of a segment behind the last one that has its entries in the file."""
    arrays = [(Kind.KEY_OFFSETS, NO_FIELD)] if index.has_keys else []
    arrays += [(Kind.OFFSETS, n) for n, field in enumerate(index.fields) if field.ragged]
    arrays += [(Kind.STORED_OFFSETS, n) for n, field in enumerate(index.fields) if field.codec != RAW]
    stop = directory.first_sample + directory.num_samples
    for kind, number in arrays:
        entry = directory.find(kind, number)
        if entry is not None:  # an entry more than samples
            stop = min(stop, directory.first_sample + max((nbytes - entry.offset) // 8 - 1, 0))
    return stop
