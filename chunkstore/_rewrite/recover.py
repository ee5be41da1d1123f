"""What can still be proven good of a damaged container, saved into a new one."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from chunkstore._format import superblock as superblocks
from chunkstore._format.checksum import sum64, sum128
from chunkstore._format.codec import decode
from chunkstore._format.constants import PART_ALIGNMENT, SUPERBLOCK_NBYTES, SUPERBLOCK_OFFSETS, Kind
from chunkstore._format.dtypes import element_nbytes
from chunkstore._format.field_index import FieldIndex, Groups
from chunkstore._format.index import Index, read_generation
from chunkstore._format.schema import Field, decode_attrs, known_codec
from chunkstore._format.section import Section
from chunkstore._format.superblock import Superblock
from chunkstore._read.many import one_container
from chunkstore._rewrite import room, segments
from chunkstore._storage.objects import is_url
from chunkstore._storage.opening import open_any
from chunkstore._storage.remote import Remote
from chunkstore._storage.replace import check_replaceable
from chunkstore._storage.source import Source
from chunkstore._storage.upload import uploaded
from chunkstore._verify.report import Progress
from chunkstore._write.target import sum_of_segment
from chunkstore._write.writer import Writer
from chunkstore.errors import (
    CorruptError,
    FormatError,
    TruncatedError,
    UnsupportedFeatureError,
    UnsupportedVersionError,
)

_BATCH_NBYTES: Final = 16 << 20
_BATCH_SAMPLES: Final = 1024
_MOST_LOST: Final = 10_000
_NO_DICTIONARY: Final = "its rows cannot be decoded, for no segment has the DICTIONARY that was written"


@dataclass(frozen=True)
class Lost:
    """A run of samples that could not be proven good.

    Attributes:
        start, stop: positions in the damaged container, half-open.
        key: of the first, where it can be read.
        reason: what is wrong with it, in one sentence.
    """

    start: int
    stop: int
    key: str | None
    reason: str


@dataclass
class Recovery:
    """What was saved and what was lost.

    Attributes:
        path, out: the damaged container and the new one.
        num_saved: samples in the new one, in their old order.
        num_lost: samples that are known to be lost.
        lost: which ones, in runs; the first 10,000 runs.
        lost_fields: that the new one has not, because none of their rows can be decoded.
        lost_commit: whether the newest commit is lost: a superblock names it, and nothing says what it added.
        notes: how they were found, and what is not certain.
    """

    path: str
    out: str
    num_saved: int = 0
    num_lost: int = 0
    lost: list[Lost] = field(default_factory=list)
    lost_fields: list[str] = field(default_factory=list)
    lost_commit: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether nothing is known to be lost."""
        return not (self.num_lost or self.lost_fields or self.lost_commit)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def recover(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    mode: Literal["x", "w"] = "x",
    progress: Progress | None = None,
    remote: Remote | None = None,
) -> Recovery:
    """Save every sample whose bytes can be proven good.

    A sample is saved when its index entries, its key and the chunks of all its fields have the checksums that were
    written with them. Nothing is guessed. Where the superblocks or a directory are damaged, the file is searched for
    index segments, and each is taken that agrees with itself in all its parts; then samples may be missing at the end
    without anybody knowing of them, and a note says so. A file that was cut off gives what lies before the cut.
    The work is bounded by the length of the file, whatever number of samples it claims: those that it has no bytes for
    are lost, by arithmetic. Of samples whose rows have no bytes, and that have no keys, the first 2^20 are saved. A
    field whose codec needs a dictionary that is damaged wherever it stands is left out. Attributes that are damaged are
    taken from the commit before, and a note says so.

    Args:
        path: the container; it is only read. A URL as in `open`.
        out: the new container; it has the fields, codecs, attributes and keys of the old one. A URL as in `convert`: it
            is uploaded when it is whole.
        mode: `"x"` refuses a path that exists, `"w"` replaces a container other than `path`.
        progress: called with (samples done, samples in all).
        remote: how to reach those of the two that are URLs.
    Raises:
        SchemaError: `path` means several containers.
        FormatError: nothing in the file could be proven.
        UnsupportedVersionError, UnsupportedFeatureError: it is of a kind that this release does not know.
        FileExistsError, WriteError, CommitUnknownError: as with `Writer`.
    """
    path = one_container(path, "Recover each damaged one by itself", remote)
    report = Recovery(path, os.fspath(out))
    with (
        uploaded(out, mode, remote if is_url(out) else None) as target,
        open_any(path, "pread", remote if is_url(path) else None, in_order=True) as source,
    ):
        check_replaceable(target, [path], mode=mode)
        _recover(source, target, mode, report, progress)
    report.lost.sort(key=lambda lost: lost.start)
    return report


def _recover(source: Source, out: str, mode: Literal["x", "w"], report: Recovery, progress: Progress | None) -> None:
    indexes = _find_indexes(source, report)
    if not indexes:
        raise CorruptError(
            f"{source.path}: no index segment could be proven good, so no sample can be found ({report.notes[0]}). "
            "Restore the file from a copy, or convert its sources again"
        )
    newest = indexes[-1]
    _check_codecs(source.path, newest)
    dictionaries = [segments.dictionaries(index, source) for index in indexes]
    known = {name: data for each in dictionaries for name, data in each.items()}
    fields = _kept_fields(source.path, newest, known, report)
    with _RecoverWriter(out, fields, known, mode) as writer:
        writer.attrs.update(_attrs(indexes, source, report))
        _note_gaps(indexes, report)
        for index, each in zip(indexes, dictionaries, strict=True):
            _save(_Samples(index, source, list(writer.fields), each), writer, report, progress, newest.num_samples)
        report.num_saved = len(writer)


def _check_codecs(path: str, index: Index) -> None:
    unknown = [field for field in index.fields if not known_codec(field)]
    if unknown:
        raise UnsupportedFeatureError(
            f"{path}: field {unknown[0].name!r} has the codec {unknown[0].codec!r}, which this release does not know: "
            "its rows cannot be proven to decode. Install a newer one"
        )


def _kept_fields(path: str, index: Index, known: Mapping[str, bytes], report: Recovery) -> list[Field]:
    kept = [field for field in index.fields if field.name in known]
    report.lost_fields = [field.name for field in index.fields if field.name not in known]
    if not kept:
        raise CorruptError(f"{path}: {_NO_DICTIONARY}, and there is no other field")
    report.notes += [f"field {name!r} is lost: {_NO_DICTIONARY}" for name in report.lost_fields]
    return kept


class _RecoverWriter(Writer):
    """Writes fields of a container with its codecs, at their usual levels, and its dictionaries, by their names."""

    def __init__(
        self, out: str, fields: Sequence[Field], dictionaries: Mapping[str, bytes], mode: Literal["x", "w"]
    ) -> None:
        self._dictionaries = dict(enumerate(dictionaries[field.name] for field in fields))
        super().__init__(out, fields=fields, mode=mode)


def _attrs(indexes: Sequence[Index], source: Source, report: Recovery) -> dict[str, Any]:
    """The newest, or else those of an earlier commit."""
    try:
        return indexes[-1].attrs()
    except FormatError as error:
        report.notes.append(f"the attributes are lost: {error}")
    for index in reversed(indexes):
        for text in segments.versions(index, source, Kind.ATTRS):
            with contextlib.suppress(FormatError):
                found = decode_attrs(text)
                report.notes.append("in their place stand those of an earlier commit, which may be the same")
                return found
    return {}


# -- finding segments --------------------------------------------------------------------------------------------------


def _find_indexes(source: Source, report: Recovery) -> list[Index]:
    """An index for each segment that can be used, in the order of samples, without overlap."""
    newest = 0
    superblocks_found = _superblocks(source, report)
    for name, superblock in superblocks_found:
        newest = max(newest, superblock.generation)
        try:
            # Not `read_index`: a file that was cut off still has the samples before the cut.
            index = read_generation(source, superblock, cut_off=True)
        except FormatError as error:
            report.notes.append(f"the index of superblock {name} cannot be read: {error}")
            report.lost_commit = True
            continue
        if name == "B" and len(superblocks_found) == 1 and (later := _continued(source, index)) is not None:
            report.notes.append(
                f"superblock A is damaged; the index segment at {later.superblock.directory_offset} goes on from what "
                "superblock B names, and is used; if there were later ones, they are lost without a trace"
            )
            return [later]
        _note_later(source, superblock, newest, report)
        return [index]
    report.notes.append("the file was searched for index segments")
    found = [
        usable for directory in segments.search(source) if (usable := segments.usable(source, directory)) is not None
    ]
    chosen = _without_overlap(found)
    if chosen:
        report.notes.append(
            f"{len(chosen)} index segments agree with themselves and describe samples up to "
            f"{chosen[-1].num_samples}; if there were later ones, they are lost without a trace"
        )
        newest_offset = chosen[-1].directories[-1].offset
        report.lost_commit = any(superblock.directory_offset > newest_offset for _, superblock in superblocks_found)
    return chosen


def _note_later(source: Source, superblock: Superblock, newest: int, report: Recovery) -> None:
    """Say so if there may have been a later generation than the one that is saved."""
    behind = source.size - superblock.committed_end
    if newest > superblock.generation:
        report.notes.append(
            f"generation {superblock.generation} is saved, and there was {newest}: what was added since is lost "
            "without a trace"
        )
    elif behind > 0 and report.notes:  # the other superblock is damaged, and may have been newer
        report.notes.append(
            f"there are {behind} bytes behind generation {superblock.generation}: what was added after it, if it was "
            "committed, is lost without a trace"
        )


def _superblocks(source: Source, report: Recovery) -> list[tuple[str, Superblock]]:
    """The superblocks that are valid or proven by their index, the newest first.

    Of damaged ones the generation is not proven; their index is, and that of a later generation lies further behind.
    """
    found: list[tuple[str, Superblock]] = []
    refused: UnsupportedVersionError | None = None
    for name, offset in zip("AB", SUPERBLOCK_OFFSETS, strict=True):
        data = b""
        try:
            data = source.read(offset, SUPERBLOCK_NBYTES)
            superblock = superblocks.decode(data)
        except UnsupportedVersionError as error:
            refused = error  # damage, if the other one is of a version that we know
            report.notes.append(f"superblock {name}: {error}")
        except FormatError as error:
            report.notes.append(f"superblock {name}: {error}")
            named = _proven_by_index(source, data)
            if named is not None:
                report.notes.append(f"superblock {name} names an index that has the sum it says: it is used")
                found.append((name, named))
        else:
            superblocks.check_flags(superblock)  # what its bytes mean is not known, so nothing of it can be proven
            found.append((name, superblock))
    if refused is not None and not found:
        raise refused
    return sorted(found, key=lambda item: -(item[1].directory_offset if report.notes else item[1].generation))


def _continued(source: Source, index: Index) -> Index | None:
    """The newest index behind the committed end that goes on from this one: that of a commit only the lost A named.

    Its own sums prove it, and it names each live segment of the index before it with the sum of that one. A commit that
    was under way, and is complete, is as good.
    """
    end = source.size // PART_ALIGNMENT * PART_ALIGNMENT
    for directory in reversed(list(segments.search(source, index.superblock.committed_end))):
        data = directory.encode()
        before = index.superblock
        named = Superblock(before.uuid, before.generation + 1, end, directory.offset, len(data), sum128(data))
        try:
            later = read_generation(source, named)
            for entry in directory.sections():
                Section(source, entry).ensure_all()
        except FormatError:
            continue
        if later.fields == index.fields and _names_all(source, later, index):
            return later
    return None


def _names_all(source: Source, later: Index, index: Index) -> bool:
    """Whether each live segment of an index is live in a later one too, or superseded by it."""
    live = {directory.offset for directory in later.directories}
    regions = set(segments.superseded(later, later.directories[-1]))
    return all(
        directory.offset in live
        or (directory.offset, directory.segment_nbytes, sum_of_segment(source, directory)) in regions
        for directory in index.directories
    )


def _proven_by_index(source: Source, data: bytes) -> Superblock | None:
    """A damaged superblock whose index is where it says, with the 128 bits that it says: what matters of it holds."""
    try:
        superblock = superblocks.decode_record(data[: superblocks.RECORD_NBYTES])
        superblocks.check_values(superblock)
        superblocks.check_flags(superblock)
        read_generation(source, superblock, cut_off=True)
    except (FormatError, struct.error):
        return None
    return superblock


def _without_overlap(found: list[Index]) -> list[Index]:
    """From the first sample on, always the segment that reaches furthest; those of the newest schema only.

    Of two that reach as far it is the later one, and one without samples may come last: they have newer attributes.
    """

    def age(index: Index) -> tuple[int, int]:
        return index.num_samples, index.directories[0].offset

    newest = max(found, key=age, default=None)
    rest = [index for index in found if newest is not None and index.fields == newest.fields]
    chosen: list[Index] = []
    while rest:
        first = min(index.directories[0].first_sample for index in rest)
        best = max((index for index in rest if index.directories[0].first_sample == first), key=age)
        chosen.append(best)
        rest = [i for i in rest if i.directories[0].first_sample >= best.num_samples and age(i) > age(best)]
    return chosen


def _note_gaps(indexes: list[Index], report: Recovery) -> None:
    position = 0
    for index in indexes:
        first = index.directories[0].first_sample
        if first > position:
            _lose(report, Lost(position, first, None, "no index segment that describes them could be proven good"))
        position = index.num_samples


# -- saving samples ----------------------------------------------------------------------------------------------------


class _Samples:
    """The samples of one index, read the plain way: every group that a row lies in is summed, every time."""

    def __init__(self, index: Index, source: Source, names: Sequence[str], dictionaries: Mapping[str, bytes]) -> None:
        """Read the fields of these names; those whose dictionary is not given cannot be read."""
        self.index = index
        self.source = source
        self._names = names
        self._dictionaries = dictionaries
        self._fields = [FieldIndex(index, n) for n, field in enumerate(index.fields) if field.name in names]

    @functools.cached_property
    def _older(self) -> list[_Samples]:
        """The same by the segments that those of the index took the place of."""
        older = segments.older(self.index, self.source)
        return [_Samples(index, self.source, self._names, self._dictionaries) for index in older]

    def read(self, positions: NDArray[np.int64]) -> Iterator[tuple[dict[str, Any], str | None]]:
        """Sample and key of each position; FormatError where anything of them is not proven."""
        columns = {column.field.name: self._rows(column, positions) for column in self._fields}
        for place, position in enumerate(positions.tolist()):
            sample = {name: rows[place] for name, rows in columns.items()}
            try:
                key = None if self.index.keys is None else self.index.keys.text(position)
            except FormatError as error:
                raise CorruptError(
                    f"its rows are good, and are read by position if the container opens; its key cannot be: {error}"
                ) from None
            yield sample, key

    def _rows(self, column: FieldIndex, positions: NDArray[np.int64]) -> list[Any]:
        dictionary = self._dictionaries.get(column.field.name)
        if dictionary is None:
            raise CorruptError(f"field {column.field.name!r}: {_NO_DICTIONARY}")
        ids = column.group_ids(positions)
        first, last = int(ids.min()), int(ids.max())
        groups = column.groups(np.arange(first, last + 1))
        data = [self._group(column, groups, place, first + place) for place in range(last - first + 1)]
        offsets, nbytes = column.rows(positions)
        starts = offsets - groups.offset[ids - first]
        if np.any(starts < 0) or np.any(starts + nbytes > groups.nbytes[ids - first]):
            raise CorruptError(f"field {column.field.name!r}: the row lies outside the group whose sum would prove it")
        chunks = [
            data[g][a : a + n] for g, a, n in zip((ids - first).tolist(), starts.tolist(), nbytes.tolist(), strict=True)
        ]
        return [
            _as_row(column.field, c, s, dictionary)
            for c, s in zip(chunks, self._shapes(column, positions), strict=True)
        ]

    def _group(self, column: FieldIndex, groups: Groups, place: int, number: int) -> memoryview:
        offset, nbytes = int(groups.offset[place]), int(groups.nbytes[place])
        try:
            data = self.source.read(offset, nbytes)
        except TruncatedError:
            raise TruncatedError(room.BEHIND) from None
        stored = int(column.group_sums(np.array([number]))[0])
        computed = sum64(data)
        if stored != computed:
            # Without the sums and the place, which `verify` tells: neighbours are then lost for one reason.
            raise CorruptError(f"field {column.field.name!r} does not have the bytes that were written")
        return memoryview(data)

    def read_older(self, position: int) -> tuple[dict[str, Any], str | None] | None:
        """Sample and key by a superseded segment; None where none proves them."""
        for samples in self._older:
            if samples.index.directories[0].first_sample <= position < samples.index.num_samples:
                with contextlib.suppress(FormatError):
                    return next(samples.read(np.array([position], np.int64)))
        return None

    @staticmethod
    def _shapes(column: FieldIndex, positions: NDArray[np.int64]) -> list[tuple[int, ...]]:
        if not column.field.ragged:
            return [column.field.item_shape] * len(positions)
        leading = column.shapes(positions, column.counts(positions))
        return [(*dims, *column.field.item_shape) for dims in leading.tolist()]

    def key(self, position: int) -> str | None:
        """Its key, if that can be read."""
        try:
            return None if self.index.keys is None else self.index.keys.text(position)
        except FormatError:
            return None


def _as_row(field: Field, chunk: memoryview, shape: tuple[int, ...], dictionary: bytes) -> Any:
    if field.codec != "raw":
        chunk = memoryview(decode(field.codec, chunk, element_nbytes(field.dtype) * math.prod(shape), dictionary))
    if field.is_string:
        try:
            return bytes(chunk).decode()
        except UnicodeDecodeError as error:
            raise CorruptError(f"field {field.name!r}: not UTF-8: {error}") from None
    return np.frombuffer(chunk, np.uint8).view(field.numpy_dtype).reshape(shape)


def _save(samples: _Samples, writer: Writer, report: Recovery, progress: Progress | None, total: int) -> None:
    step = _batch_size(samples.index)
    for run in room.runs(samples.index, samples.source.size):
        if run.reason:
            _lose(report, Lost(run.start, run.stop, samples.key(run.start), run.reason))
        for first in range(run.start, run.start if run.reason else run.stop, step):
            positions = np.arange(first, min(first + step, run.stop))
            _save_run(samples, positions, writer, report)
            if progress is not None:
                progress(int(positions[-1]) + 1, total)


def _batch_size(index: Index) -> int:
    """Samples that are about 16 MiB together, going by the largest shard."""
    if not len(index.blocks):
        return 1
    rows = np.diff(index.shard_starts)
    largest = int((index.blocks["nbytes"].sum(axis=1) // rows.astype(np.uint64)).max())
    return max(1, min(_BATCH_SAMPLES, _BATCH_NBYTES // max(largest, 1)))


def _save_run(samples: _Samples, positions: NDArray[np.int64], writer: Writer, report: Recovery) -> None:
    """Save a run, or each half of it where it cannot be read as a whole."""
    try:
        batch = list(samples.read(positions))
    except FormatError as error:
        if len(positions) == 1:
            position = int(positions[0])
            found = samples.read_older(position)
            if found is None:
                _lose(report, Lost(position, position + 1, samples.key(position), str(error)))
            else:
                writer.add(*found)
            return
        half = len(positions) // 2
        _save_run(samples, positions[:half], writer, report)
        _save_run(samples, positions[half:], writer, report)
        return
    for sample, key in batch:
        writer.add(sample, key)


def _lose(report: Recovery, lost: Lost) -> None:
    """Note a run; neighbours with the same reason make one."""
    report.num_lost += lost.stop - lost.start
    last = report.lost[-1] if report.lost else None
    if last is not None and last.stop == lost.start and last.reason == lost.reason:
        report.lost[-1] = replace(last, stop=lost.stop)
    elif len(report.lost) < _MOST_LOST:
        report.lost.append(lost)
