"""Several containers into one: blocks are copied as they are, their index is put together anew."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.codec import RAW
from chunkstore._format.constants import HEAD_NBYTES, PART_ALIGNMENT, Kind
from chunkstore._format.field_index import FieldIndex
from chunkstore._format.index import Index
from chunkstore._format.schema import Field, encode_attrs
from chunkstore._format.segment import Directory, pad
from chunkstore._format.superblock import Superblock
from chunkstore._read.many import Paths, every_container
from chunkstore._read.newest import open_generation, open_newest
from chunkstore._rewrite.attrs import merge_attrs
from chunkstore._rewrite.told import Told
from chunkstore._storage.commit import NewFile
from chunkstore._storage.objects import is_url
from chunkstore._storage.remote import Remote
from chunkstore._storage.replace import check_replaceable
from chunkstore._storage.source import Source
from chunkstore._storage.upload import uploaded
from chunkstore._verify.report import Progress
from chunkstore._write.index_writer import IndexWriter, planned_segment_nbytes
from chunkstore._write.target import finish_new
from chunkstore.errors import SchemaError

_PIECE_NBYTES: Final = 64 << 20
_ONE_CODEC: Final = "Give them one codec without a dictionary with `chunkstore repack --codec`, or open them together"
_WRONG: Final = (
    "the copy is not right, so nothing was published. An input is damaged (run `chunkstore verify` on each), or the "
    "copy was not stored as it was written. First"
)


@dataclass(frozen=True)
class _Input:
    """What is known of an input without holding it open: there may be thousands."""

    path: str
    superblock: Superblock
    fields: tuple[Field, ...]
    attrs: dict[str, Any]
    dictionaries: dict[int, bytes]
    has_keys: bool
    remote: Remote | None
    num_samples: int
    num_shards: int
    num_groups: list[int]
    nbytes: list[int]
    key_nbytes: int

    @classmethod
    def look(cls, path: str | os.PathLike[str], remote: Remote | None) -> _Input:
        """Open it, note all this, and close it."""
        remote = remote if is_url(path) else None
        source, index = open_newest(os.fspath(path), "pread", remote)
        with source:
            return cls(
                source.path,
                index.superblock,
                index.fields,
                index.attrs(),
                {number: data for number in range(len(index.fields)) if (data := index.dictionary(number))},
                index.has_keys,
                remote,
                index.num_samples,
                len(index.blocks),
                [FieldIndex(index, number).num_groups for number in range(len(index.fields))],
                index.blocks["nbytes"].sum(axis=0).tolist(),
                sum(_key_nbytes(index, directory) for directory in index.directories),
            )

    @contextmanager
    def opened(self) -> Iterator[tuple[Source, Index]]:
        """The same generation again, whatever was appended meanwhile."""
        source, index = open_generation(self.path, "pread", self.remote, self.superblock, in_order=True)
        with source:
            yield source, index


def _key_nbytes(index: Index, directory: Directory) -> int:
    return index.section(directory, Kind.KEY_BYTES).nbytes if index.has_keys and directory.num_samples else 0


@dataclass(frozen=True)
class Merged:
    """What `merge` made.

    Attributes:
        path: the new container.
        num_samples: in it.
        notes: what of the inputs it does not say: an attribute or a record of original files that differs among them.
    """

    path: str
    num_samples: int
    notes: tuple[str, ...] = ()


def merge(
    paths: Paths,
    out: str | os.PathLike[str],
    *,
    mode: Literal["x", "w"] = "x",
    attrs: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    remote: Remote | None = None,
) -> Merged:
    """Put the samples of several containers into one new container, in the order given.

    Each field is one extent again. Shards and their checksums stay as they are: blocks are copied by the kernel
    (`copy_file_range`, which shares blocks on file systems that can), and nothing is decoded. The new file is verified
    as a whole before it gets its name. The same inputs give the same bytes. What is appended to an input meanwhile is
    not in it.

    Args:
        paths: at least one container; all have the same fields, and all have keys or none has. Each is a path, a
            directory or pattern of containers (in natural order), or a URL, as in `open`.
        out: the new container. A URL as in `convert`: it is uploaded when it is whole.
        mode: `"x"` refuses a path that exists, `"w"` replaces a container that is none of these.
        attrs: ATTRS of the new container. Default: the members that are equal in all inputs; `class_names` where each
            input's list begins the longest one; what `convert` noted of the original files, put together as far as
            `export` can use it. What is not kept stands in `notes`.
        progress: called with (bytes done, bytes in all), now and then; verification counts as well.
        remote: how to reach those of them that are URLs.
    Raises:
        SchemaError: fields differ, a key is there twice, there is nothing to merge, or a label would have two meanings:
            `class_names` give a number to one class here and to another one there.
        FormatError: an input cannot be read, or one of its blocks is damaged.
        ReplacedError: another container took the place of an input meanwhile.
        FileExistsError, WriteError, CommitUnknownError: as with `Writer`. After any error `out` is as before.
    """
    paths = every_container(paths, remote)
    inputs = [_Input.look(path, remote) for path in paths]
    if not inputs:
        raise SchemaError("merge: no container was given")
    with uploaded(out, mode, remote if is_url(out) else None) as target:
        check_replaceable(target, paths, mode=mode)
        notes = _merge(inputs, target, mode, attrs, progress)
    return Merged(os.fspath(out), sum(entry.num_samples for entry in inputs), notes)


def _merge(
    inputs: Sequence[_Input],
    out: str,
    mode: Literal["x", "w"],
    attrs: Mapping[str, Any] | None,
    progress: Progress | None,
) -> tuple[str, ...]:
    """Write and publish; what the new container does not say of the inputs."""
    _check_alike(inputs)
    notes: tuple[str, ...] = ()
    merged = dict(attrs or {})
    if attrs is None:
        merged, notes = merge_attrs([entry.path for entry in inputs], [entry.attrs for entry in inputs])
    with_keys = any(entry.has_keys for entry in inputs if entry.num_samples)
    told = Told(progress, sum(sum(entry.nbytes) for entry in inputs))
    with NewFile.create(out, mode) as file:
        folder = os.path.dirname(file.temporary)
        with IndexWriter(inputs[0].fields, with_keys=with_keys, folder=folder) as index:
            index.attrs = encode_attrs(merged)
            index.dictionaries = next((entry.dictionaries for entry in inputs if entry.num_samples), {})
            _write(file, index, inputs, merged, told.copied)
        told.verify(file.temporary, f"{file.path}: {_WRONG}")
        file.publish()
    return notes


def _check_alike(inputs: Sequence[_Input]) -> None:
    first = inputs[0]
    for other in inputs[1:]:
        if other.fields != first.fields:
            differing = [
                f"{a} in the one, {b} in the other" for a, b in zip(other.fields, first.fields, strict=False) if a != b
            ]
            detail = differing[0] if differing else f"{len(other.fields)} against {len(first.fields)} fields"
            if [replace(field, codec=RAW) for field in other.fields] == [replace(f, codec=RAW) for f in first.fields]:
                detail += f". {_ONE_CODEC}"
            raise SchemaError(f"{other.path} and {first.path} have different fields: {detail}")
    # One without samples has no dictionary yet, nor is it open whether it has keys.
    filled = [entry for entry in inputs if entry.num_samples]
    for other in filled[1:]:
        if other.dictionaries != filled[0].dictionaries:
            raise SchemaError(
                f"{other.path} and {filled[0].path} have different codec dictionaries, and merge copies chunks as they "
                f"are. {_ONE_CODEC}"
            )
        if other.has_keys != filled[0].has_keys:
            named = other.path if other.has_keys else filled[0].path
            raise SchemaError(f"{other.path} and {filled[0].path}: only {named} has keys; all have them or none has")


def _write(
    file: NewFile, index: IndexWriter, inputs: Sequence[_Input], attrs: Mapping[str, Any], copied: Callable[[int], None]
) -> None:
    """Copy all blocks and write index and superblocks."""
    numbers = range(len(index.fields))
    tail = HEAD_NBYTES + planned_segment_nbytes(
        index.fields,
        attrs,
        num_samples=sum(entry.num_samples for entry in inputs),
        num_shards=sum(entry.num_shards for entry in inputs),
        num_groups=[sum(entry.num_groups[number] for entry in inputs) for number in numbers],
        key_nbytes=sum(entry.key_nbytes for entry in inputs) if index.with_keys else None,
        dictionaries=index.dictionaries,
    )
    starts = []
    for number in numbers:
        starts.append(pad(tail, PART_ALIGNMENT))
        tail = starts[-1] + sum(entry.nbytes[number] for entry in inputs)
    file.sink.preallocate(tail)
    for entry in inputs:
        with entry.opened() as (source, old):
            columns = [FieldIndex(old, number) for number in numbers]
            for column, start in zip(columns, starts, strict=True):
                _copy_field(file, source, column, start, copied)
            ends = [start + np.cumsum(column.block_nbytes) for column, start in zip(columns, starts, strict=True)]
            offsets = [end - column.block_nbytes for column, end in zip(columns, ends, strict=True)]
            _add_to_index(index, old, np.stack(offsets, axis=1))
        starts = [start + nbytes for start, nbytes in zip(starts, entry.nbytes, strict=True)]
    finish_new(file.sink, index, tail, HEAD_NBYTES)


def _copy_field(file: NewFile, source: Source, column: FieldIndex, start: int, copied: Callable[[int], None]) -> None:
    """All blocks of a field, extent by extent."""
    for extent in column.extents():
        for done in range(0, extent.nbytes, _PIECE_NBYTES):
            nbytes = min(_PIECE_NBYTES, extent.nbytes - done)
            file.sink.copy_from(source, extent.offset + done, start + done, nbytes)
            copied(nbytes)
        start += extent.nbytes


def _add_to_index(index: IndexWriter, old: Index, offsets: NDArray[np.int64]) -> None:
    """Take over what the input's segments say; its blocks now lie at `offsets`, shape (shards, fields)."""
    for directory in old.directories:
        mine = slice(directory.first_shard, directory.first_shard + directory.num_shards)
        try:
            index.absorb(old, directory, offsets[mine])
        except SchemaError as error:
            raise SchemaError(f"{old.path}: {error}") from None
