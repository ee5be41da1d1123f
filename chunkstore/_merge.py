"""Several containers into one: blocks are copied as they are, their index is put together anew."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from chunkstore._format import superblock as superblocks
from chunkstore._format.constants import HEAD_NBYTES, PART_ALIGNMENT, SUPERBLOCK_OFFSETS, Kind
from chunkstore._format.index import FieldIndex, Index, read_index
from chunkstore._format.segment import pad
from chunkstore._index_writer import IndexWriter, planned_segment_nbytes
from chunkstore._storage.commit import NewFile
from chunkstore._storage.source import Source, open_source
from chunkstore._verify import verify
from chunkstore.errors import CorruptError, SchemaError

_PIECE_NBYTES: Final = 64 << 20
type_progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Input:
    source: Source
    index: Index

    @property
    def path(self) -> str:
        return self.source.path


def merge(
    paths: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    mode: Literal["x", "w"] = "x",
    attrs: Mapping[str, Any] | None = None,
    progress: type_progress | None = None,
) -> None:
    """Put the samples of several containers into one new container, in the order given.

    Each field is one extent again. Shards and their checksums stay as they are: blocks are copied by the kernel
    (`copy_file_range`, which shares blocks on file systems that can), and nothing is decoded. The new file is verified
    as a whole before it gets its name. The same inputs give the same bytes.

    Args:
        paths: at least one container; all have the same fields, and all have keys or none has.
        out: the new container.
        mode: `"x"` refuses a path that exists, `"w"` replaces it.
        attrs: ATTRS of the new container. Default: the members that are equal in all inputs.
        progress: called with (bytes done, bytes in all), now and then; verification counts as well.
    Raises:
        SchemaError: fields differ, a key is there twice, or there is nothing to merge.
        FormatError: an input cannot be read, or one of its blocks is damaged.
        FileExistsError, WriteError, CommitUnknownError: as with `Writer`. After any error `out` is as before.
    """
    with ExitStack() as stack:
        inputs = [_open(stack, path) for path in paths]
        if not inputs:
            raise SchemaError("merge: no container was given")
        _check_alike(inputs)
        file = stack.enter_context(NewFile.create(out, mode))
        folder = os.path.dirname(file.temporary) or os.curdir
        keys = any(entry.index.has_keys for entry in inputs if entry.index.num_samples) or inputs[0].index.has_keys
        merged = _common_attrs(inputs) if attrs is None else dict(attrs)
        index = stack.enter_context(IndexWriter(inputs[0].index.fields, merged, with_keys=keys, folder=folder))
        index.dictionaries = _dictionaries(inputs[0].index)
        total = sum(int(entry.index.blocks["nbytes"].sum()) for entry in inputs)
        end = _write(file, index, inputs, merged, _counted(progress, total, 2 * total))
        _verify(file, end, _counted(progress, total, 2 * total, before=total))
        file.publish()


def _open(stack: ExitStack, path: str | os.PathLike[str]) -> _Input:
    source = open_source(path, "pread")
    stack.callback(source.close)
    return _Input(source, read_index(source))


def _check_alike(inputs: Sequence[_Input]) -> None:
    first = inputs[0]
    for other in inputs[1:]:
        if other.index.fields != first.index.fields:
            differing = [
                f"{a} in the one, {b} in the other"
                for a, b in zip(first.index.fields, other.index.fields, strict=False)
                if a != b
            ]
            detail = (
                differing[0] if differing else f"{len(first.index.fields)} against {len(other.index.fields)} fields"
            )
            raise SchemaError(f"{other.path} and {first.path} have different fields: {detail}")
        if other.index.has_keys != first.index.has_keys and other.index.num_samples and first.index.num_samples:
            with_keys = first.path if first.index.has_keys else other.path
            raise SchemaError(f"{other.path} and {first.path}: only {with_keys} has keys; all have them or none has")
        if _dictionaries(other.index) != _dictionaries(first.index):
            raise SchemaError(f"{other.path} and {first.path} have different codec dictionaries")


def _dictionaries(index: Index) -> dict[int, bytes]:
    return {number: data for number in range(len(index.fields)) if (data := index.dictionary(number))}


def _common_attrs(inputs: Sequence[_Input]) -> dict[str, Any]:
    """The members of ATTRS that are equal everywhere. What is noted of the sources of one file is not true of all."""
    every = [entry.index.attrs() for entry in inputs]
    text = [{name: json.dumps(value, sort_keys=True) for name, value in attrs.items()} for attrs in every]
    return {name: value for name, value in every[0].items() if all(t.get(name) == text[0][name] for t in text)}


def _write(
    file: NewFile, index: IndexWriter, inputs: Sequence[_Input], attrs: Mapping[str, Any], copied: Callable[[int], None]
) -> int:
    """Copy all blocks and write index and superblocks; the committed end."""
    fields = inputs[0].index.fields
    columns = [[FieldIndex(entry.index, number) for number in range(len(fields))] for entry in inputs]
    tail = HEAD_NBYTES + planned_segment_nbytes(
        fields,
        attrs,
        num_samples=sum(entry.index.num_samples for entry in inputs),
        num_shards=sum(len(entry.index.blocks) for entry in inputs),
        num_groups=[sum(entry[number].num_groups for entry in columns) for number in range(len(fields))],
        key_nbytes=_key_nbytes(inputs) if index.with_keys else None,
        dictionaries=index.dictionaries,
    )
    offsets: list[list[NDArray[np.int64]]] = [[] for _ in inputs]
    file.sink.preallocate(tail + sum(int(entry.index.blocks["nbytes"].sum()) for entry in inputs))
    for number in range(len(fields)):
        tail = pad(tail, PART_ALIGNMENT)
        for place, entry in enumerate(inputs):
            column = columns[place][number]
            starts = tail + np.cumsum(column.block_nbytes) - column.block_nbytes
            offsets[place].append(starts)
            tail = _copy_field(file, entry, column, tail, copied)
    for entry, moved in zip(inputs, offsets, strict=True):
        _add_to_index(index, entry, np.stack(moved, axis=1) if len(entry.index.blocks) else None)
    superblock = index.write(file.sink, HEAD_NBYTES, data_end=tail)
    file.sink.truncate(superblock.committed_end)
    for offset in SUPERBLOCK_OFFSETS:
        file.sink.pwrite(offset, superblocks.encode(superblock))
    return superblock.committed_end


def _key_nbytes(inputs: Sequence[_Input]) -> int:
    return sum(
        entry.index.section(directory, Kind.KEY_BYTES).nbytes
        for entry in inputs
        for directory in entry.index.directories
        if directory.num_samples
    )


def _copy_field(file: NewFile, entry: _Input, column: FieldIndex, tail: int, copied: Callable[[int], None]) -> int:
    """All blocks of a field, extent by extent; where they end."""
    for extent in column.extents():
        for start in range(0, extent.nbytes, _PIECE_NBYTES):
            nbytes = min(_PIECE_NBYTES, extent.nbytes - start)
            file.sink.copy_from(entry.source, extent.offset + start, tail + start, nbytes)
            copied(nbytes)
        tail += extent.nbytes
    return tail


def _add_to_index(index: IndexWriter, entry: _Input, offsets: NDArray[np.int64] | None) -> None:
    """Take over what the input's segments say; its blocks now lie at `offsets`, shape (shards, fields)."""
    for directory in entry.index.directories:
        mine = slice(directory.first_shard, directory.first_shard + directory.num_shards)
        try:
            index.absorb(entry.index, directory, None if offsets is None else offsets[mine])
        except SchemaError as error:
            raise SchemaError(f"{entry.path}: {error}") from None


def _counted(progress: type_progress | None, part: int, total: int, before: int = 0) -> Callable[[int], None]:
    """A function that takes the number of bytes just done, of `part`, and tells the caller of the whole."""
    done = before

    def count(nbytes: int) -> None:
        nonlocal done
        done = min(done + nbytes, before + part)
        if progress is not None:
            progress(done, total)

    return count


def _verify(file: NewFile, end: int, counted: Callable[[int], None]) -> None:
    """The whole file, read back, before it gets its name."""
    last = 0

    def tell(done: int, _total: int) -> None:
        nonlocal last
        counted(done - last)
        last = done

    report = verify(file.temporary, progress=tell)
    if not report.ok:
        raise CorruptError(
            f"{file.path}: the copy is not right, so nothing was published. An input is damaged (run `chunkstore "
            f"verify` on each), or the copy was not stored as it was written. First: {report.damage[0]}"
        )
