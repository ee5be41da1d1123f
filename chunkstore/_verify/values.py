"""The numbers in the index: whatever a reader checks where it uses it is checked here in full (spec sections 6 to 12).

Arrays are read a few MiB at a time, so that memory does not grow with the number of samples.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.codec import RAW, WITHOUT_DICTIONARY
from chunkstore._format.constants import (
    HEAD_NBYTES,
    KNOWN_KINDS,
    MAX_DICTIONARY_NBYTES,
    MAX_INT,
    MAX_JSON_NBYTES,
    NO_FIELD,
    PART_ALIGNMENT,
    SUPERSEDED_ENTRY_NBYTES,
    Kind,
)
from chunkstore._format.dtypes import element_nbytes
from chunkstore._format.layout import section_sizes
from chunkstore._format.lookup import Ints
from chunkstore._format.schema import Field, decode_attrs, decode_schema
from chunkstore._format.segment import Directory, SectionEntry
from chunkstore._verify.segment import Segment
from chunkstore.errors import CorruptError, LimitError, UnsupportedFeatureError

_COUNT: Final = 1 << 17  # entries of 8 bytes that are looked at together: 1 MiB


@dataclass
class Carry:
    """What a segment hands on to the next: where its numbers must go on. None: unknown, because of damage."""

    items: dict[tuple[Kind, int], int | None] = field(default_factory=dict)
    block_end: NDArray[np.uint64] | None = None


def check_values(segments: list[Segment]) -> tuple[Field, ...] | None:
    """Check the numbers of all live segments, whose sections were proven before; the schema, if there is one.

    Raises:
        UnsupportedFeatureError: a dtype that this release does not know.
    """
    fields = _read_schema(segments)
    carry, sample = Carry(), 0
    for segment in segments:
        segment.fields = fields
        if sample != segment.directory.first_sample:  # the directory before could not be read
            columns = itertools.product((Kind.OFFSETS, Kind.STORED_OFFSETS), range(len(fields or ())))
            carry = Carry(dict.fromkeys(columns))
        _Checks(segment, carry, segments[-1]).run()
        sample = segment.directory.first_sample + segment.directory.num_samples
    return fields


def _read_schema(segments: list[Segment]) -> tuple[Field, ...] | None:
    """From the newest segment in which it is whole: all must have the same."""
    for segment in reversed(segments):
        entry = segment.directory.find(Kind.SCHEMA, NO_FIELD)
        if entry is None or entry.nbytes > MAX_JSON_NBYTES:
            continue
        text = segment.section_bytes(Kind.SCHEMA)
        if text is None:
            continue
        try:
            return decode_schema(text, segment.directory.num_fields)
        except UnsupportedFeatureError as error:
            raise UnsupportedFeatureError(f"{segment.tape.path}: {error}") from None
        except (CorruptError, LimitError) as error:
            segment.wrong(Kind.SCHEMA, str(error))
    return None


class _Checks:
    """All checks of one segment but those of its keys."""

    def __init__(self, segment: Segment, carry: Carry, newest: Segment) -> None:
        self.segment = segment
        self.directory = segment.directory
        self.carry = carry
        self.newest = newest
        self.fields = segment.fields
        self.rows: Ints | None = None

    def run(self) -> None:
        self._check_texts()
        fits = self.fields is not None and self._check_sections(self.fields)
        self._read_starts()
        self.segment.read_blocks()
        if self.segment.known.size:
            self._check_blocks()
        self.segment.report_damage()
        for number, schema_field in enumerate(self.fields or ()):
            if fits:
                self._check_columns(number, schema_field)

    def _check_texts(self) -> None:
        """SCHEMA and DICTIONARY are alike in all live segments, ATTRS a JSON object in the newest."""
        for entry in self.directory.sections():
            limit = MAX_DICTIONARY_NBYTES if entry.kind == Kind.DICTIONARY else MAX_JSON_NBYTES
            if entry.kind not in (Kind.SCHEMA, Kind.ATTRS, Kind.DICTIONARY):
                continue
            if entry.nbytes > limit:
                self.segment.wrong(entry.kind, f"{entry.nbytes} bytes, at most {limit}", entry.field)
            elif entry.kind == Kind.ATTRS and self.segment is self.newest:
                self._check_attrs(entry)
            elif entry.kind != Kind.ATTRS and self.segment is not self.newest:
                self._compare_with_newest(entry)

        if self.segment is not self.newest:
            mine, others = (_dictionaries(segment.directory) for segment in (self.segment, self.newest))
            for number in sorted(mine ^ others):
                problem = "this segment or the newest has one, and the other has none"
                self.segment.wrong(Kind.DICTIONARY, problem, number)

    def _check_attrs(self, entry: SectionEntry) -> None:
        text = self.segment.section_bytes(Kind.ATTRS)
        if text is not None:
            try:
                decode_attrs(text)
            except (CorruptError, LimitError) as error:
                self.segment.wrong(entry.kind, str(error), entry.field)

    def _compare_with_newest(self, entry: SectionEntry) -> None:
        kind = Kind(entry.kind)
        mine, other = self.segment.section_bytes(kind, entry.field), self.newest.section_bytes(kind, entry.field)
        if mine is not None and other is not None and mine != other:
            self.segment.wrong(entry.kind, "differs from that of the newest segment", entry.field)

    def _check_sections(self, fields: tuple[Field, ...]) -> bool:
        """Every section that the schema calls for is there with its length, and no other of a known kind."""
        directory, fits = self.directory, True
        text = directory.find(Kind.KEY_BYTES, NO_FIELD)
        num_shards, key_nbytes = directory.num_shards, text.nbytes if text else None
        sizes = section_sizes(fields, directory.num_samples, num_shards, key_nbytes=key_nbytes)
        expected: dict[tuple[int, int], int | None] = dict(sizes.items())
        expected[Kind.SCHEMA, NO_FIELD] = expected[Kind.ATTRS, NO_FIELD] = None
        expected |= {(Kind.CHUNK_SUMS, number): None for number in range(len(fields))}
        for (kind, number), nbytes in expected.items():
            entry = directory.find(kind, number)
            if entry is None or (nbytes is not None and entry.nbytes != nbytes):
                fits = False
                found = "none" if entry is None else f"{entry.nbytes} bytes"
                self.segment.wrong(kind, f"expected {'it' if nbytes is None else nbytes} here, found {found}", number)
        for entry in directory.sections():
            if entry.kind in KNOWN_KINDS and (entry.kind, entry.field) not in expected and not self._optional(entry):
                fits = False
                self.segment.wrong(entry.kind, "the schema does not call for it", entry.field)
        if (text is None) == ((Kind.KEY_BYTES, NO_FIELD) in self.newest.directory):
            fits = False
            self.segment.wrong(Kind.KEY_BYTES, "this segment and the newest do not both have keys")
        return fits

    def _optional(self, entry: SectionEntry) -> bool:
        if entry.kind == Kind.SUPERSEDED:
            return entry.field == NO_FIELD and entry.nbytes % SUPERSEDED_ENTRY_NBYTES == 0
        if entry.kind != Kind.DICTIONARY or self.fields is None or entry.field >= len(self.fields):
            return False
        return entry.nbytes > 0 and self.fields[entry.field].codec not in WITHOUT_DICTIONARY

    def _read_starts(self) -> None:
        data = self.segment.section_bytes(Kind.SHARD_STARTS)
        if data is None:
            return
        first = self.directory.first_sample
        last = first + self.directory.num_samples
        starts = np.frombuffer(data[: len(data) // 8 * 8], "<u8")
        if len(starts) != self.directory.num_shards + 1:
            return  # written down with the lengths of all sections
        if starts[0] != first or starts[-1] != last or np.any(starts[1:] <= starts[:-1]):
            self.segment.wrong(Kind.SHARD_STARTS, f"expected to ascend strictly from {first} to {last}")
            return
        self.segment.starts = starts.astype(np.int64)
        self.rows = np.diff(self.segment.starts)

    def _check_blocks(self) -> None:
        blocks, known = self.segment.blocks, self.segment.known
        offset, nbytes, end = blocks["offset"], blocks["nbytes"], np.uint64(self.segment.committed_end)
        outside = (offset < HEAD_NBYTES) | (offset > end) | (nbytes > end - np.minimum(offset, end))
        self._refuse(outside, f"does not lie in [{HEAD_NBYTES}, {end})")
        self.segment.known = known = known & ~outside
        before = np.zeros_like(offset)
        before[1:] = offset[:-1] + nbytes[:-1]
        if self.carry.block_end is not None:
            before[0] = self.carry.block_end
        self.carry.block_end = offset[-1] + nbytes[-1]
        after_damage = np.zeros_like(known)
        after_damage[1:] = ~known[:-1]
        loose = (offset % np.uint64(PART_ALIGNMENT) != 0) & (offset != before) & ~after_damage
        self._refuse(loose, f"begins neither at a multiple of {PART_ALIGNMENT} nor behind the block before")
        self._refuse(blocks["rows_per_group"] == 0, "has 0 rows per group, expected at least 1")
        if self.rows is not None and known.all() and not np.any(blocks["rows_per_group"] == 0):
            self._check_groups(self.rows.astype(np.uint64))
        if self.rows is not None and self.fields is not None:
            self._check_fixed(self.rows, self.fields)

    def _check_groups(self, rows: NDArray[np.uint64]) -> None:
        """Groups of shards follow each other and fill CHUNK_SUMS."""
        for number in range(self.directory.num_fields):
            entry = self.directory.find(Kind.CHUNK_SUMS, number)
            blocks = self.segment.blocks[:, number]
            groups = (rows - np.uint64(1)) // blocks["rows_per_group"] + np.uint64(1)
            total = 0 if entry is None else entry.nbytes / 8
            # In floating point no sum wraps around; below 2^52 it is exact, and no file has that many groups.
            if groups.astype(np.float64).sum() != total:
                self.segment.wrong(
                    Kind.CHUNK_SUMS, f"{total:g} sums, but the blocks have another number of groups", number
                )
            elif np.any(np.cumsum(groups) - groups != blocks["first_group"]):
                self.segment.wrong(
                    Kind.BLOCKS, f"the groups of field {self.segment.field_name(number)!r} do not follow on"
                )
            else:
                self._compare_single_groups(number, groups == 1)

    def _compare_single_groups(self, number: int, single: NDArray[np.bool_]) -> None:
        """A block of one group has the sum of its group: no need to hash it twice, and such blocks may be millions."""
        blocks = self.segment.blocks[:, number]
        for start in range(0, len(blocks), _COUNT):
            places = start + np.flatnonzero(single[start : start + _COUNT])
            if not len(places):
                continue
            groups = blocks["first_group"][places].astype(np.int64)
            first, stop = int(groups[0]), int(groups[-1]) + 1
            if stop - first > 2 * _COUNT:
                continue  # they lie far apart; each is looked at when its block is read
            stored = self.segment.values(Kind.CHUNK_SUMS, number, "<u8", first, stop)
            if stored is not None:
                self.segment.agrees[places, number] = stored[groups - first] == blocks["sum"][places]

    def _check_fixed(self, rows: Ints, fields: tuple[Field, ...]) -> None:
        for number, schema_field in enumerate(fields):
            if not schema_field.ragged and schema_field.codec == RAW:
                self._check_nbytes(number, rows, schema_field.item_nbytes)

    def _check_nbytes(self, number: int, counts: Ints, unit: int) -> None:
        """Blocks have `counts` units of `unit` bytes. Quotients, as products may be beyond 2^64."""
        nbytes = self.segment.blocks["nbytes"][:, number]
        wrong = np.zeros(self.segment.known.shape, bool)
        if unit:
            size = np.uint64(unit)
            wrong[:, number] = (nbytes // size != counts.astype(np.uint64)) | (nbytes % size != 0)
        else:
            wrong[:, number] = nbytes != 0
        self._refuse(wrong, f"does not have the bytes of its rows, {unit} for each row or item")

    def _refuse(self, wrong: NDArray[np.bool_], problem: str) -> None:
        wrong = wrong & self.segment.known
        if not wrong.any():
            return
        for shard, number in np.argwhere(wrong)[:100].tolist():
            entry = self.segment.blocks[shard, number]
            self.segment.wrong(
                Kind.BLOCKS,
                f"the block of shard {self.directory.first_shard + shard}, field {self.segment.field_name(number)!r}, "
                f"{entry['nbytes']} bytes at {entry['offset']}, {problem}",
                shard=self.directory.first_shard + shard,
                field=self.segment.field_name(number),
            )
        if (more := int(wrong.sum()) - 100) > 0:
            self.segment.wrong(Kind.BLOCKS, f"{more} more blocks like the last one: it {problem}")

    def _check_columns(self, number: int, schema_field: Field) -> None:
        if schema_field.ragged:
            unit = schema_field.item_nbytes if schema_field.codec == RAW else None
            self._check_offsets(Kind.OFFSETS, number, unit, _most_items(schema_field))
        if schema_field.codec != RAW:
            self._check_offsets(Kind.STORED_OFFSETS, number, 1, MAX_INT)
            self._check_empty_rows(number, schema_field)
        if schema_field.varying > 1:
            self._check_shapes(number, schema_field)

    def _check_offsets(self, kind: Kind, number: int, unit: int | None, most: int) -> None:
        """They begin where the segment before ended, do not descend, and agree with the blocks."""
        carry = self.carry.items
        last = carry.get((kind, number), 0)
        carry[kind, number] = None
        if not self.segment.whole(kind, number):
            return
        starts = None if self.segment.starts is None else self.segment.starts - self.directory.first_sample
        edges: list[Ints] = []
        before: int | None = None
        for first, array in self.segment.pieces(kind, number, _COUNT):
            if before is None and last is not None and array[0] != last:
                self.segment.wrong(kind, f"begins with {array[0]}, expected {last}", number)
            problem = _first_descent(array, before, most)
            if problem is not None:
                sample = self.directory.first_sample + first + problem
                what = f"around sample {sample}: the numbers descend, or grow by more than {most}"
                self.segment.wrong(kind, what, number, start=max(sample - 1, 0), stop=sample + 1)
                return
            before = int(array[-1])
            if starts is not None:
                low, high = np.searchsorted(starts, [first, first + len(array)])
                edges.append(array[starts[low:high] - first])
        carry[kind, number] = before
        if starts is not None and unit is not None and self.segment.known.size:
            joined = np.concatenate(edges) if edges else np.zeros(0, np.int64)
            if len(joined) == len(starts):
                self._check_nbytes(number, np.diff(joined), unit)

    def _check_empty_rows(self, number: int, schema_field: Field) -> None:
        """A row of 0 bytes has a chunk of 0 bytes, and no other row has."""
        if schema_field.ragged and not self.segment.whole(Kind.OFFSETS, number):
            return
        if not self.segment.whole(Kind.STORED_OFFSETS, number):
            return
        for first, array in self.segment.pieces(Kind.STORED_OFFSETS, number, _COUNT):
            stop = min(first + len(array) + 1, self.directory.num_samples + 1)
            stored = self.segment.values(Kind.STORED_OFFSETS, number, "<i8", first, stop)
            items = stored
            if schema_field.ragged and schema_field.item_nbytes:
                items = self.segment.values(Kind.OFFSETS, number, "<i8", first, stop)
            if stored is None or items is None or len(stored) < 2:
                return
            empty = np.diff(items) == 0 if schema_field.ragged else np.zeros(len(stored) - 1, bool)
            if schema_field.item_nbytes == 0:
                empty[:] = True
            wrong = np.flatnonzero(empty != (np.diff(stored) == 0))
            for place in wrong[:100].tolist():
                sample = self.directory.first_sample + first + place
                size = int(stored[place + 1]) - int(stored[place])
                what = f"sample {sample}: a chunk of {size} bytes for a row of {'no' if empty[place] else 'some'} bytes"
                self.segment.wrong(Kind.STORED_OFFSETS, what, number, start=sample, stop=sample + 1)

    def _check_shapes(self, number: int, schema_field: Field) -> None:
        """Dimensions fit the schema, and their product is the number of items."""
        width = schema_field.varying
        if not self.segment.whole(Kind.SHAPES, number) or not self.segment.whole(Kind.OFFSETS, number):
            return
        for first, flat in self.segment.pieces(Kind.SHAPES, number, _COUNT // width * width):
            dims = flat.reshape(-1, width)
            begin = first // width
            items = self.segment.values(Kind.OFFSETS, number, "<i8", begin, begin + len(dims) + 1)
            if items is None:
                return
            wrong = _wrong_shapes(dims, np.diff(items), schema_field)
            for place in np.flatnonzero(wrong)[:100].tolist():
                sample = self.directory.first_sample + begin + place
                count = int(items[place + 1]) - int(items[place])
                what = f"sample {sample}: shape {dims[place].tolist()} does not fit {count} items"
                self.segment.wrong(Kind.SHAPES, what, number, start=sample, stop=sample + 1)


def _most_items(schema_field: Field) -> int:
    """Items of one row, so that its bytes stay within spec section 15, where dimensions of 0 are left out."""
    nbytes = element_nbytes(schema_field.dtype) * math.prod(dim or 1 for dim in schema_field.item_shape)
    return MAX_INT // nbytes


def _first_descent(array: Ints, before: int | None, most: int) -> int | None:
    """Where numbers are negative, descend, or grow by more than `most`; `before` is the one in front of them."""
    start = int(array[0]) if before is None else before
    if start < 0 or array[0] < start or int(array[0]) - start > most:
        return 0
    wrong = array[1:] < array[:-1]
    if not wrong.any():
        wrong = np.diff(array) > most  # both are not negative, so the difference cannot wrap around
    return int(np.flatnonzero(wrong)[0]) + 1 if wrong.any() else None


def _wrong_shapes(dims: Ints, counts: Ints, schema_field: Field) -> NDArray[np.bool_]:
    """Rows whose shape is not possible; dims of shape (rows, varying)."""
    wrong = (dims < 0).any(axis=1)
    for place, dim in enumerate(schema_field.shape[: schema_field.varying]):
        if dim is not None:
            wrong |= dims[:, place] != dim
    # The product of 63-bit numbers wraps around; in floating point it does not, and shows where that may have happened.
    most = _most_items(schema_field)
    with np.errstate(over="ignore"):
        rough = np.prod(np.maximum(dims, 1).astype(np.float64), axis=1)
        wrong |= np.prod(dims, axis=1) != counts
    for place in np.flatnonzero(rough > most / 2).tolist():
        wrong[place] |= math.prod(dim or 1 for dim in dims[place].tolist()) > most
    return np.asarray(wrong)


def _dictionaries(directory: Directory) -> set[int]:
    """Fields that have a DICTIONARY in a segment."""
    return {entry.field for entry in directory.sections() if entry.kind == Kind.DICTIONARY}
