"""One container anew: each field in one extent, full shards, one segment; all samples, or some in another order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

import numpy as np

from chunkstore._format.codec import RAW
from chunkstore._format.constants import SHARD_NBYTES
from chunkstore._format.encode import CodecArg, CodecSpec, parse_codecs
from chunkstore._format.field_index import FieldIndex
from chunkstore._format.lookup import Ints
from chunkstore._format.schema import Field
from chunkstore._read.batch import Indices
from chunkstore._read.many import one_container
from chunkstore._read.many import open as open_reader
from chunkstore._read.reader import Reader
from chunkstore._rewrite.room import needed_nbytes
from chunkstore._rewrite.told import Told
from chunkstore._storage.objects import is_url
from chunkstore._storage.remote import Remote
from chunkstore._storage.replace import check_replaceable
from chunkstore._storage.upload import uploaded
from chunkstore._verify.report import Progress
from chunkstore._write.target import NewTarget
from chunkstore._write.writer import Writer
from chunkstore.errors import LimitError, SchemaError

_BATCH_NBYTES: Final = 16 << 20
_BATCH_SAMPLES: Final = 1 << 16
_MOST_EMPTY: Final = 1 << 32  # samples without a byte that are written anew: some minutes


def repack(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    positions: Indices | None = None,
    keys: Sequence[str] | None = None,
    mode: Literal["x", "w"] = "x",
    shard_nbytes: int = SHARD_NBYTES,
    codec: CodecArg | None = None,
    progress: Progress | None = None,
    remote: Remote | None = None,
) -> None:
    """Write the samples of a container into a new one in which each field is in one piece (the index lies behind).

    What a stream or many appends left in pieces is in one piece per field again, and superseded index segments are
    gone. Every row is proven as it is read, and the new file is verified as a whole before it gets its name.

    Args:
        path: the container; it stays as it is. A URL as in `open`.
        out: the new one. A URL as in `convert`: it is uploaded when it is whole.
        positions: int, shape (M,): which samples, in which order; repeats only without keys. Default: all, in order.
        keys: the same by keys; not both.
        mode: `"x"` refuses a path that exists, `"w"` replaces a container (which may be `path` itself).
        shard_nbytes: as in `Writer`.
        codec: how chunks of the new one are stored, as in `Writer`; `raw` is one of them. A field for which nothing is
            said keeps its codec, at the usual level, and its dictionary.
        progress: called with (bytes done, bytes in all), now and then; verification counts as well.
        remote: how to reach those of the two that are URLs.
    Raises:
        IndexError, SampleNotFoundError: there is no such sample.
        SchemaError: a sample with a key is asked for twice; `path` means several containers.
        LimitError: more than 2^32 samples of which none has a byte, so that nothing but their number is stored.
        CorruptError: a row is damaged; nothing is published. `recover` saves the others.
        FileExistsError, WriteError, CommitUnknownError: as with `Writer`.
        MissingExtraError: the package of a codec, of old or new, is not installed.
    """
    if positions is not None and keys is not None:
        raise ValueError("repack: give positions= or keys=, not both")
    spec = parse_codecs(codec)
    path = one_container(path, "Put them together with `chunkstore merge` first, or repack each by itself", remote)
    with (
        uploaded(out, mode, remote if is_url(out) else None) as target,
        open_reader(path, backend="pread", remote=remote if is_url(path) else None) as reader,
    ):
        check_replaceable(target, mode=mode)
        order = _order(reader, positions, keys)
        fields, kept = _open_codecs(reader, spec)
        fixed = sum(field.item_nbytes for field in fields if not field.ragged)
        ragged = {number: FieldIndex(reader._index, number) for number, field in enumerate(fields) if field.ragged}
        totals = {n: sum(int(_row_nbytes(column, run).sum()) for run in _runs(order)) for n, column in ragged.items()}
        total = len(order)
        told = Told(progress, total * fixed + sum(totals.values()))
        options = {"fields": fields, "mode": mode, "num_samples": total, "shard_nbytes": shard_nbytes, "codec": codec}
        with _RepackWriter(target, totals, kept, told, **options) as writer:
            writer.attrs.update(reader.attrs)
            for batch, nbytes in _batches(order, fixed, list(ragged.values())):
                named = None if reader.keys is None else [reader.keys[position] for position in batch.tolist()]
                writer.add_batch(reader.batch(batch), named)
                told.copied(nbytes)
            reader.close()  # Windows replaces no open file, and the new one may take the place of this one


class _RepackWriter(Writer):
    """A writer that knows the size of every field beforehand, and verifies the file before it is published."""

    def __init__(
        self,
        path: str,
        ragged_nbytes: Mapping[int, int],
        dictionaries: Mapping[int, bytes],
        told: Told,
        **options: Any,
    ) -> None:
        self._ragged_nbytes, self._dictionaries = ragged_nbytes, dictionaries
        super().__init__(path, **options)
        assert isinstance(self._target, NewTarget)
        wrong = "the new file was not stored as it was written; nothing is published"
        self._target.before_publish = lambda unpublished: told.verify(unpublished, wrong)


def _open_codecs(reader: Reader, spec: CodecSpec) -> tuple[tuple[Field, ...], dict[int, bytes]]:
    """(fields, raw where another codec was asked for; the dictionaries of the others)."""
    fields, kept = list(reader.fields.values()), {}
    for number, field in enumerate(fields):
        if spec.says(field.name, field.row_nbytes):
            fields[number] = replace(field, codec=RAW)
        elif field.codec != RAW:
            kept[number] = reader._index.dictionary(number)
    return tuple(fields), kept


def _order(reader: Reader, positions: Indices | None, keys: Sequence[str] | None) -> range | Ints:
    """Positions of the samples that are wanted."""
    if keys is not None:
        order = reader.find(keys)
    elif positions is not None:
        order = np.asarray(reader.select(positions).positions, np.int64)
    else:
        _check_number(reader)
        return range(len(reader))
    if reader.keys is not None and len(np.unique(order)) != len(order):
        found, counts = np.unique(order, return_counts=True)
        twice = int(found[counts > 1][0])
        raise SchemaError(f"repack: sample {twice}, {reader.keys[twice]!r}, is wanted twice, and keys must be unique")
    return order


def _check_number(reader: Reader) -> None:
    """Refuse work that no byte of the file stands for."""
    if len(reader) > _MOST_EMPTY and not needed_nbytes(reader._index):
        raise LimitError(
            f"{reader.path}: {len(reader):,} samples, of which none has a byte in the file; repack writes at most "
            f"{_MOST_EMPTY:,} of such samples. Say which you want by positions=, or use `chunkstore merge`"
        )


def _runs(order: range | Ints) -> Iterator[Ints]:
    """The order in pieces, so that N numbers are never in memory."""
    for start in range(0, len(order), _BATCH_SAMPLES):
        run = order[start : start + _BATCH_SAMPLES]
        yield np.arange(run.start, run.stop) if isinstance(run, range) else run


def _row_nbytes(column: FieldIndex, run: Ints) -> Ints:
    """Bytes of ragged rows before codecs; shape of `run`."""
    return column.counts(run) * column.field.item_nbytes


def _batches(order: range | Ints, fixed: int, ragged: Sequence[FieldIndex]) -> Iterator[tuple[Ints, int]]:
    """Pieces of the order of about 16 MiB each, or a single larger sample, and their bytes.

    Args:
        order: positions.
        fixed: bytes that each sample has in all fields but the `ragged` ones.
    """
    for run in _runs(order):
        ends = np.cumsum(sum((_row_nbytes(column, run) for column in ragged), np.full(len(run), fixed)))
        first = filled = 0
        while first < len(run):
            stop = max(int(np.searchsorted(ends, filled + _BATCH_NBYTES, "right")), first + 1)
            end = int(ends[stop - 1])
            yield run[first:stop], end - filled
            first, filled = stop, end
