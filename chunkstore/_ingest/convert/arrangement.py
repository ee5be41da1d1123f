"""Where every block of a converted container goes, known before a byte is written (spec section 17).

8192: segment | field 0: block of shard 0, of shard 1, ... | field 1: ... | ...      each | at a multiple of 4096

Where there are codecs, only the fields without one have a place beforehand; see coded.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.constants import HEAD_NBYTES, MAX_FILE_NBYTES, PART_ALIGNMENT
from chunkstore._format.layout import num_groups, shard_starts
from chunkstore._format.segment import pad
from chunkstore._ingest.convert.coded import Coding, most_nbytes
from chunkstore._ingest.plan.plan import Plan
from chunkstore._write.index_writer import planned_segment_nbytes
from chunkstore.errors import IngestError

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Arrangement:
    """Shards and blocks of a container to be.

    Attributes:
        starts: int64 [shards + 1], first sample of each shard, and N.
        nbytes: int64 [fields, shards], of the rows of each block: before codecs.
        offsets: int64 [fields, shards], of each block in the file; with a codec, where a worker is to put it.
        data_end: offset behind the last block without a codec.
        codings: by the number of the field, of those with a codec.
    """

    starts: Ints
    nbytes: Ints
    offsets: Ints
    data_end: int
    codings: Mapping[int, Coding]

    @property
    def committed_end(self) -> int:
        """Length of the file; with codecs, as far as it is known."""
        return pad(self.data_end, PART_ALIGNMENT)

    @property
    def num_shards(self) -> int:
        return len(self.starts) - 1


def arrange(plan: Plan, attrs: Mapping[str, Any], shard_nbytes: int, codings: Mapping[int, Coding]) -> Arrangement:
    """Cut a plan into shards and place them. O(N) for ragged fields, else O(shards).

    Args:
        plan: samples and fields.
        attrs: ATTRS, as they will be written.
        shard_nbytes: a shard ends with the sample that brings it to this size, before codecs.
        codings: by the number of the field, of those with a codec.
    Raises:
        IngestError: the file would be longer than the format allows.
    """
    starts, nbytes = _cut(plan, shard_nbytes)
    samples = np.diff(starts).tolist()
    offsets, tail = np.zeros_like(nbytes), HEAD_NBYTES
    if not codings:  # otherwise nobody knows how long the index will be, and it comes last
        tail += planned_segment_nbytes(
            plan.fields,
            attrs,
            num_samples=plan.num_samples,
            num_shards=len(samples),
            num_groups=[sum(map(num_groups, samples, row)) for row in nbytes.tolist()],
            key_nbytes=None if plan.keys is None else int(plan.keys.offsets[-1] - plan.keys.offsets[0]),
        )
    for number in range(len(plan.fields)):
        if number not in codings:
            offsets[number], tail = _side_by_side(tail, nbytes[number].tolist())
    data_end = tail
    rooms = {
        number: [most_nbytes(*block) for block in zip(nbytes[number].tolist(), samples, strict=True)]
        for number in codings
    }
    tail += sum(sum(room) + PART_ALIGNMENT for room in rooms.values()) + PART_ALIGNMENT  # behind all there can be
    for number, room in rooms.items():
        offsets[number], tail = _side_by_side(tail, room)
    return Arrangement(starts, nbytes, offsets, data_end, codings)


def _side_by_side(tail: int, sizes: list[int]) -> tuple[Ints, int]:
    """Offsets of blocks from the next page on, and where the last of them ends."""
    begin = pad(tail, PART_ALIGNMENT)
    end = begin + sum(sizes)  # Python's integers do not wrap
    if end > MAX_FILE_NBYTES:
        raise IngestError(
            f"the container would have more than {MAX_FILE_NBYTES:,} bytes, the most that the format allows."
        )
    return begin + np.cumsum([0, *sizes[:-1]], dtype=np.int64), end


def _cut(plan: Plan, shard_nbytes: int) -> tuple[Ints, Ints]:
    """(starts, nbytes of each block)."""
    sizes = {number: plan.row_sizes(number) for number, field in enumerate(plan.fields) if field.ragged}
    starts = shard_starts(
        sum(sizes.values(), sum(f.row_nbytes or 0 for f in plan.fields)), plan.num_samples, shard_nbytes
    )
    nbytes = np.zeros((len(plan.fields), len(starts) - 1), np.int64)
    for number, field in enumerate(plan.fields):
        if field.row_nbytes is None:
            nbytes[number] = np.add.reduceat(sizes[number], starts[:-1])
        else:
            nbytes[number] = np.diff(starts) * field.row_nbytes
    return starts, nbytes
