"""Reading from a source where each read costs a round trip: one call brings what all fields need, then they read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.section import join_ranges
from chunkstore._read.batch import Positions, is_run
from chunkstore._read.gather import Rows
from chunkstore._read.ragged import Ragged
from chunkstore._storage.remote import RemoteSource
from chunkstore._storage.source import Source

_STAGED_NBYTES: Final = 256 << 20
INDEX_NBYTES = 256 << 20  # of pages that a reader keeps: the sums of 128 GB of small rows
Getter = Callable[[int], Any]


def needed(source: Source, rows: Collection[Rows], positions: Positions) -> tuple[Positions, Positions]:
    """(offset, nbytes) of all that reading these rows takes: data, and pages of the index not seen yet.

    Where pages of the index say what it is, all that are missing come by one call, of all fields and containers.
    """
    first = join_ranges(each.needed_first(positions) for each in rows)
    with source.staged(*first) if first[0].size else nullcontext():
        return join_ranges(each.needed(positions) for each in rows)


def batch(
    source: Source, positions: Positions, targets: list[tuple[str, Rows, Any]]
) -> dict[str, NDArray[Any] | Ragged]:
    """As `Reader.batch`: one call for all fields; then nothing that they read costs a request."""
    offsets, nbytes = needed(source, [each for _, each, _ in targets], positions)
    # A very large batch is not in memory twice: each field is read in steps.
    large = int(nbytes.sum()) > _STAGED_NBYTES
    with nullcontext() if large else source.staged(offsets, nbytes):
        if is_run(positions):
            start = positions.item(0)
            return {name: each.run(start, start + len(positions), target) for name, each, target in targets}
        return {name: each.batch(positions, target) for name, each, target in targets}


def is_heavy(source: Source) -> bool:
    """Whether the pages of the index that were read have much memory by now; then they count from 0 again."""
    if not isinstance(source, RemoteSource) or source.num_read_nbytes <= INDEX_NBYTES:
        return False
    source.num_read_nbytes = 0
    return True


def prefetch(source: Source, positions: Positions, rows: Collection[Rows]) -> None:
    """Fetch in the background what `batch` will need."""
    source.advise(*needed(source, rows, positions))


def getters(source: Source, rows: Mapping[str, Rows], found: list[tuple[str, Getter]]) -> list[tuple[str, Getter]]:
    """The same functions position -> row, of which the first brings the rows of all fields at once."""
    if not found:
        return found
    every = tuple(rows.values())
    name, get = found[0]

    def fetched(position: int) -> Any:
        with source.staged(*needed(source, every, np.array([position]))):
            return get(position)

    return [(name, fetched), *found[1:]]
