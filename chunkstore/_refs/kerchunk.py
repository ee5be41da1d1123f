"""A container as a zarr group (version 2): JSON of kerchunk, which fsspec, zarr and xarray read without this package.

Each chunk of an array is a range of bytes of the container; nothing is copied but keys, and a small last chunk where
the file ends too early for it.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from chunkstore._format import dtypes
from chunkstore._format.constants import ATTRS_RESERVED, Kind
from chunkstore._format.field_index import FieldIndex
from chunkstore._format.index import Index, read_index
from chunkstore._format.schema import Field
from chunkstore._read.many import one_container
from chunkstore._refs.grid import MOST_CHUNKS, Run, lay_grid
from chunkstore._storage.objects import is_url
from chunkstore._storage.opening import open_any
from chunkstore._storage.source import Source
from chunkstore.errors import CorruptError

_COMPRESSORS: Final = {"zlib": {"id": "zlib", "level": 1}, "zstd": {"id": "zstd", "level": 0}}  # levels are for writing
_INDEX_ROWS: Final = 1 << 17  # of an index array in a chunk: 1 MiB
_KEYS: Final = 1 << 16  # in a chunk
_DIMS: Final = "_ARRAY_DIMENSIONS"  # what xarray calls the axes


class _CannotExpress(Exception):
    """Why a field has no zarr array."""


@dataclass(frozen=True)
class References:
    """The result of `kerchunk_references`.

    Attributes:
        content: for JSON: `{"version": 1, "refs": {...}}`.
        left_out: name of a field that zarr cannot read -> why.
        notes: what the user should know of the others.
    """

    content: dict[str, Any]
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def kerchunk_references(path: str | os.PathLike[str], url: str | None = None) -> References:
    """Describe the last committed generation of a container for zarr; later appends do not make it wrong.

    A field of fixed shape is an array of its name, of shape (N, *shape). A ragged field and a string field become
    `NAME.values`, `NAME.offsets` (row i is `values[offsets[i]:offsets[i + 1]]`) and, where more than one dimension
    varies, `NAME.shapes`. Keys are the array `keys`. bfloat16 and float8 come as the integers of their bits, with
    the attribute `chunkstore_dtype`.

    Args:
        path: the container, or its URL.
        url: where readers will find it; default its absolute path, or its URL.
    Raises:
        SchemaError: `path` means several containers.
        FormatError, OSError: it cannot be read.
    """
    path = one_container(path, "Describe each by itself, or what `chunkstore merge` makes of them")
    with open_any(path, "pread") as source:
        index = read_index(source)
        group = _Group(source, index, url or (path if is_url(path) else os.path.abspath(path)))
        for number in range(len(index.fields)):
            group.add_field(number)
        group.add_keys()
        return group.found


class _Group:
    """A zarr group that grows array by array."""

    def __init__(self, source: Source, index: Index, url: str) -> None:
        self._source, self._index, self._url = source, index, url
        self._end = index.superblock.committed_end
        self._refs: dict[str, Any] = {}
        self._names: set[str] = set()
        self.found = References({"version": 1, "refs": self._refs})
        names = {f.name for f in index.fields}
        self._sample = _free("sample", names)
        attrs = {**index.attrs(), ATTRS_RESERVED: {"fingerprint": index.fingerprint}}
        self._keys_name = _free("keys", names) if index.keys is not None else None
        if self._keys_name is not None:
            attrs.setdefault("coordinates", self._keys_name)
        self._refs[".zgroup"] = json.dumps({"zarr_format": 2})
        self._refs[".zattrs"] = json.dumps(attrs)

    def add_field(self, number: int) -> None:
        """Add the array or arrays of a field, all of them or none."""
        item = self._index.fields[number]
        before = dict(self._refs)
        try:
            _check_name(item.name)
            if item.codec != "raw":
                self._add_coded(number, item)
            elif item.ragged:
                self._add_ragged(number, item)
            else:
                self._add_fixed(number, item)
        except _CannotExpress as error:
            self._refs.clear()
            self._refs.update(before)
            self.found.left_out[item.name] = str(error)

    def _add_fixed(self, number: int, item: Field) -> None:
        runs = [Run(e.start, e.stop, e.offset) for e in FieldIndex(self._index, number).extents()]
        most = int(np.diff(self._index.shard_starts).max(initial=1))
        shape = (self._index.num_samples, *item.item_shape)
        self._put_runs(item.name, item, runs, item.item_nbytes, most, shape, self._axes(item))

    def _axes(self, item: Field) -> list[str]:
        """Names for xarray, of an array of rows of one shape."""
        return [self._sample, *(f"{item.name}_{axis + 1}" for axis in range(len(item.item_shape)))]

    def _add_ragged(self, number: int, item: Field) -> None:
        field_index = FieldIndex(self._index, number)
        extents = field_index.extents()
        ends = [self._index.before(Kind.OFFSETS, number, e.stop) for e in extents]
        starts = [0, *ends][: len(ends)]
        runs = [Run(a, b, e.offset) for a, b, e in zip(starts, ends, extents, strict=True)]
        unit = item.item_nbytes
        if any(
            not 0 <= run.start <= run.stop or (run.stop - run.start) * unit > self._end - run.offset for run in runs
        ):
            raise CorruptError(
                f"{self._index.path}: field {item.name!r}: OFFSETS that no block can have. "
                f"Run `chunkstore verify {self._index.path}`."
            )
        most = int(field_index.block_nbytes.max(initial=0)) // unit if unit else 1
        name = f"{item.name}.values"
        dims = [f"{item.name}_item", *(f"{item.name}_{item.varying + axis}" for axis in range(len(item.item_shape)))]
        self._put_runs(name, item, runs, unit, most, (ends[-1] if ends else 0, *item.item_shape), dims)
        int64 = Field("index", "int64")
        offsets = self._index_runs(Kind.OFFSETS, number, 1)
        num = self._index.num_samples + 1 if extents else 0
        self._put_runs(f"{item.name}.offsets", int64, offsets, 8, _INDEX_ROWS, (num,), [f"{item.name}_offset"])
        if item.varying > 1:
            shapes, width = self._index_runs(Kind.SHAPES, number, 0), item.varying
            shape = (self._index.num_samples, width)
            dims = [self._sample, f"{item.name}_dimension"]
            self._put_runs(f"{item.name}.shapes", int64, shapes, 8 * width, _INDEX_ROWS, shape, dims)

    def _index_runs(self, kind: Kind, number: int, more: int) -> list[Run]:
        """Where an index array lies; the last segment has so many entries more than samples."""
        runs = []
        for directory in self._index.directories:
            entry = directory.find(kind, number)
            if entry is not None and directory.num_samples:
                first = directory.first_sample
                runs.append(Run(first, first + directory.num_samples, entry.offset))
        return [*runs[:-1], Run(runs[-1].start, runs[-1].stop + more, runs[-1].offset)] if runs else []

    def _add_coded(self, number: int, item: Field) -> None:
        """One row, one chunk, one stream of the codec."""
        compressor = _COMPRESSORS.get(item.codec)
        if compressor is None:
            raise _CannotExpress(f"zarr has no codec that reads our {item.codec!r}")
        if self._index.dictionary(number):
            raise _CannotExpress(f"the codec {item.codec!r} has a dictionary, which zarr cannot give it")
        if item.ragged:
            raise _CannotExpress(f"rows differ in size, and each is stored by itself with the codec {item.codec!r}")
        num = self._index.num_samples
        if num > MOST_CHUNKS:
            raise _CannotExpress(f"each of {num:,} rows is a chunk, and more than {MOST_CHUNKS:,} are not described")
        rows = FieldIndex(self._index, number).rows(np.arange(num if item.item_nbytes else 0))
        chunks = zip(*(part.tolist() for part in rows), strict=True)
        self._put(item.name, item, 1, chunks, (num, *item.item_shape), self._axes(item), compressor)

    def add_keys(self) -> None:
        """Add the keys as an array of texts."""
        keys, name, num = self._index.keys, self._keys_name, self._index.num_samples
        if keys is None or name is None:
            return
        rows = max(min(_KEYS, num), 1)
        self._refs[f"{name}/.zarray"] = _metadata((num,), (rows,), "|O", filters=[{"id": "vlen-utf8"}])
        self._refs[f"{name}/.zattrs"] = json.dumps({_DIMS: [self._sample]})
        for chunk, start in enumerate(range(0, num, rows)):
            texts = [key.encode() for key in keys.texts(start, min(start + rows, num))]
            texts += [b""] * (rows - len(texts))
            # The codec `vlen-utf8` of zarr: how many, then each with its length before it.
            data = b"".join([_uint32(rows), *(_uint32(len(text)) + text for text in texts)])
            self._refs[f"{name}/{chunk}"] = _inline(data)

    def _put_runs(
        self,
        name: str,
        item: Field,
        runs: Sequence[Run],
        row_nbytes: int,
        most_rows: int,
        shape: tuple[int, ...],
        dims: list[str],
    ) -> None:
        """Add an array whose rows lie in the file as they are."""
        grid = lay_grid(runs if row_nbytes else (), row_nbytes, most_rows, self._end)
        if len(grid) > MOST_CHUNKS:
            raise _CannotExpress(
                f"zarr needs chunks of one size, and its pieces in the file begin where only {grid.rows:,} rows at a "
                f"time fit: {len(grid):,} chunks. Describe the file that `chunkstore repack` makes of it"
            )
        if len(grid.runs) > 1 and grid.rows < min(most_rows, shape[0]) // 2:
            self.found.notes.append(
                f"{name}: {grid.rows:,} rows a chunk, since its pieces in the file begin where no more fit; "
                "`chunkstore repack` makes it one piece"
            )
        self._put(name, item, grid.rows, grid.chunks(), shape, dims)

    def _put(
        self,
        name: str,
        item: Field,
        rows: int,
        chunks: Iterable[tuple[int, int]],
        shape: tuple[int, ...],
        dims: list[str],
        compressor: dict[str, Any] | None = None,
    ) -> None:
        """Add an array by (offset, nbytes) of each chunk, of so many rows."""
        if f"{name}/.zarray" in self._refs:
            raise _CannotExpress(f"another field takes the name {name!r}")
        attrs: dict[str, Any] = {_DIMS: dims}
        if item.dtype in dtypes.EXTENDED or item.is_string:
            attrs["chunkstore_dtype"] = item.dtype
        self._refs[f"{name}/.zattrs"] = json.dumps(attrs)
        sides = (rows, *(max(dim, 1) for dim in shape[1:]))
        self._refs[f"{name}/.zarray"] = _metadata(shape, sides, _zarr_dtype(item.dtype), compressor)
        tail = ".0" * (len(shape) - 1)
        for chunk, (offset, nbytes) in enumerate(chunks):
            whole = offset + nbytes <= self._end
            self._refs[f"{name}/{chunk}{tail}"] = [self._url, offset, nbytes] if whole else self._copy(offset, nbytes)

    def _copy(self, offset: int, nbytes: int) -> str:
        """The last chunk where the file ends before it: a copy with zeros behind it."""
        data = self._source.read(offset, self._end - offset)
        return _inline(data + bytes(nbytes - len(data)))


def _metadata(
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: str,
    compressor: dict[str, Any] | None = None,
    filters: list[dict[str, Any]] | None = None,
) -> str:
    known = {"shape": shape, "chunks": chunks, "dtype": dtype, "compressor": compressor, "filters": filters}
    return json.dumps({"zarr_format": 2, **known, "fill_value": None, "order": "C"})


def _zarr_dtype(name: str) -> str:
    """NumPy's text for it; of a type that zarr does not know, that of integers of its width."""
    width = dtypes.EXTENDED.get(name)
    if width is not None:
        return "|u1" if width == 1 else f"<u{width}"
    return dtypes.to_numpy(name).str


def _check_name(name: str) -> None:
    if name.startswith(".") or "/" in name or "\\" in name:
        raise _CannotExpress("an array of zarr cannot have its name: '/' and '\\' part groups, and '.' begins metadata")


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _inline(data: bytes) -> str:
    return "base64:" + base64.b64encode(data).decode()


def _uint32(number: int) -> bytes:
    return number.to_bytes(4, "little")
