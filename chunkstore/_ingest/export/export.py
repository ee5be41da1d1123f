"""A container -> the `.npy` and `.npz` files that it was made of, or one file for each sample."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import IO, Any, Final, Self, cast

import numpy as np
import numpy.typing as npt

from chunkstore._ingest.convert.progress import Progress, Tell
from chunkstore._ingest.convert.report import ExportReport
from chunkstore._ingest.export.npywrite import NpzFile, write_npy, write_stream
from chunkstore._ingest.export.restore import OutArray, OutFile, Part, Restored, restore
from chunkstore._read.many import Paths
from chunkstore._read.many import open as open_reader
from chunkstore._read.reader import Reader
from chunkstore._storage import syscalls
from chunkstore._storage.interrupts import all_done, signals_later
from chunkstore.errors import ChunkstoreError, SchemaError, WriteError

__all__ = ["ExportReport", "export"]  # the package exports both from here

Array = npt.NDArray[Any]
_CHUNK_NBYTES: Final = 4 << 20
_FORTRAN_NBYTES: Final = 256 << 20  # a stacked array up to this is turned in memory


def export(
    source: Paths | Reader,
    directory: str | os.PathLike[str],
    *,
    fields: Sequence[str] | None = None,
    progress: Tell | bool | None = None,
) -> ExportReport:
    """Write a container as `.npy` and `.npz` files: those that `convert` read, with the same relative names.

    Values are equal bit by bit; dtype, byte order and Fortran order are those of the original arrays where all files
    had the same. Structured arrays are put together again; `.npz` members are stored without compression, with fixed
    times, so that equal containers give equal files. A container that was not converted gives one file for each
    sample, named by its key or position: `.npy` for one field, `.npz` for several. bfloat16 and float8 become void, as
    `.npy` holds them.

    Args:
        source: path of the container, or of several, as of `chunkstore.open`; or an open reader.
        directory: must not exist, or be empty; its parent must exist. It appears when everything is written.
        fields: which fields, default all.
        progress: function `(done_samples, total_samples, done_bytes, total_bytes)`, or True for a bar on stderr.
    Raises:
        FileExistsError: the directory is not empty.
        SchemaError: a name that would lead out of the directory, or two that are one file.
        CorruptError: a chunk is not what was written.
        OSError: the system refused.
    In all cases nothing is left behind. Memory: a few MiB, and the largest row or object array.
    """
    started = time.perf_counter()
    with ExitStack() as stack:
        ds = source if isinstance(source, Reader) else stack.enter_context(open_reader(source))
        unknown = [name for name in fields or () if name not in ds.fields]
        if unknown or fields == []:
            raise ValueError(f"fields: {unknown or 'none'} of {', '.join(map(repr, ds.fields))}")
        chosen = [field for name, field in ds.fields.items() if fields is None or name in fields]
        plan = restore(chosen, ds.attrs, len(ds), has_keys=ds.keys is not None)
        target = stack.enter_context(_NewDirectory(directory))
        nbytes = int(ds._index.blocks["nbytes"].sum())
        shown = stack.enter_context(Progress(progress, "export", len(ds), nbytes))
        writer = _Writer(ds, plan, target.temporary, shown)
        writer.run()
        shown.finish()
        target.publish()
        return ExportReport(
            os.fspath(directory), len(ds), writer.num_files, writer.nbytes,
            (*plan.notes, *writer.notes), time.perf_counter() - started,
        )  # fmt: skip


class _NewDirectory:
    """A directory that gets its name when it is complete, and is removed otherwise."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.realpath(path)  # a link to an empty directory stays one
        if os.path.lexists(self.path) and (not os.path.isdir(self.path) or os.listdir(self.path)):
            text = "expected a new or empty directory; name another, nothing is overwritten"
            raise FileExistsError(errno.EEXIST, text, os.fspath(path))
        head, tail = os.path.split(self.path)
        self.temporary = os.path.join(head, f".{tail}.tmp-{secrets.token_hex(8)}")
        try:
            os.mkdir(self.temporary)
        except OSError as error:
            text = f"cannot make this directory: {error.strerror}. Its parent must exist, and take new files"
            raise OSError(error.errno, text, os.fspath(path)) from None

    def publish(self) -> None:
        """Give it its name; an empty directory of that name is replaced."""
        if os.path.isdir(self.path):
            shutil.copymode(self.path, self.temporary)
            if os.name == "nt":
                os.rmdir(self.path)
        with all_done(f"{self.path} has all files"):
            syscalls.active().rename(self.temporary, self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with signals_later():  # impatient people press Ctrl-C twice
            shutil.rmtree(self.temporary, ignore_errors=True)


class _Writer:
    """Writes the files of a container into a fresh directory, which holds no link that could lead out of it."""

    def __init__(self, ds: Reader, plan: Restored, root: str, progress: Progress) -> None:
        self._ds, self._plan, self._root, self._progress = ds, plan, root, progress
        self._made = {""}
        self.num_files = self.nbytes = 0
        self.notes: set[str] = set()

    def run(self) -> None:
        """Write all files."""
        for out in self._plan.files(len(self._ds), self._ds.keys):
            try:
                with self._create(out.path) as file:
                    self._write(file, out)
                    self.nbytes += file.tell()
            except OSError as error:
                if error.filename is not None or isinstance(error, ChunkstoreError):
                    raise
                what = f"cannot write this file: {error.strerror}; nothing was exported"
                raise WriteError(error.errno, what, out.path) from None
            self.num_files += 1

    def _create(self, path: str) -> IO[bytes]:
        folder = path.rpartition("/")[0]
        full = os.path.join(self._root, *path.split("/"))
        try:
            if folder not in self._made:
                os.makedirs(os.path.dirname(full), exist_ok=True)
                self._made.add(folder)
            return open(full, "xb")
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise SchemaError(
                f"two samples would both be the file or folder {path!r} here (letter case may not count): "
                "nothing was exported"
            ) from None

    def _write(self, file: IO[bytes], out: OutFile) -> None:
        sample = None if out.stacked else self._ds[out.start]
        if out.arrays[0].name is None:
            self._write_array(file, out, out.arrays[0], sample)
            return
        with NpzFile(file) as archive:
            for array in out.arrays:
                with archive.member(cast(str, array.name)) as member:
                    self._write_array(member, out, array, sample)

    def _write_array(self, file: IO[bytes], out: OutFile, array: OutArray, sample: Mapping[str, Any] | None) -> None:
        if sample is not None:
            values = [_as_stored(part, sample[part.field.name]) for part in array.parts]
            write_npy(file, _joined(array, values), fortran_order=array.fortran_order)
            self._progress.advance(sum(value.nbytes for value in values))
        elif array.objects or any(part.dtype is None for part in array.parts):
            write_npy(file, self._listed(array, out), fortran_order=False)
        else:
            self._write_stacked(file, out, array)

    def _write_stacked(self, file: IO[bytes], out: OutFile, array: OutArray) -> None:
        first = self._rows(array, out.start, min(out.start + 1, out.stop))
        shape = (out.stop - out.start, *first.shape[1:])
        if not shape[0] and any(part.field.ragged for part in array.parts):
            self.notes.add("a file without rows comes back without them: a dimension that varies is 0 in it")
        nbytes = first.nbytes * shape[0]
        chunks = self._chunks(array, out, max(first.nbytes, 1), shape[1:])
        if array.fortran_order and len(shape) > 1 and nbytes > _FORTRAN_NBYTES:
            self.notes.add(f"arrays of more than {_FORTRAN_NBYTES:,} bytes are in C order, whatever it was")
        elif array.fortran_order and len(shape) > 1:
            whole, done = np.zeros(shape, first.dtype, order="F"), 0  # np.concatenate would lose the byte order
            for chunk in chunks:
                whole[done : done + len(chunk)] = chunk
                done += len(chunk)
            write_npy(file, whole, fortran_order=True)
            return
        write_stream(file, first.dtype, shape, chunks, fortran_order=False)

    def _chunks(self, array: OutArray, out: OutFile, row_nbytes: int, row_shape: tuple[int, ...]) -> Iterator[Array]:
        step = max(1, _CHUNK_NBYTES // row_nbytes)
        for start in range(out.start, out.stop, step):
            chunk = self._rows(array, start, min(start + step, out.stop))
            self._progress.advance(chunk.nbytes)
            if chunk.shape[1:] != row_shape:
                raise _differ(array.parts[0])
            yield chunk

    def _rows(self, array: OutArray, start: int, stop: int) -> Array:
        """Rows `[start, stop)` as one array in their stored dtype."""
        names = [part.field.name for part in array.parts]
        batch = self._ds.batch(range(start, stop), fields=names)
        return _joined(array, [_as_stored(part, _stacked(part, batch[part.field.name])) for part in array.parts])

    def _listed(self, array: OutArray, out: OutFile) -> Array:
        """All rows of an object array, or texts."""
        part = array.parts[0]
        rows = (self._ds[position][part.field.name] for position in range(out.start, out.stop))
        if not array.objects:
            texts: Iterable[str] = rows
            return np.array(list(texts), np.str_)
        found = np.empty(out.stop - out.start, object)
        for place, row in enumerate(rows):
            found[place] = _as_stored(part, np.array(row))
            self._progress.advance(found[place].nbytes)
        return found


def _stacked(part: Part, column: Any) -> Any:
    """Rows of a ragged field that have one shape, as they have inside a file, as one array."""
    if isinstance(column, np.ndarray):
        return column
    rows = list(column)
    if part.field.is_string:
        return rows
    if not rows:
        return np.zeros((0, *(dim or 0 for dim in part.field.shape)), part.field.numpy_dtype)
    if len({row.shape for row in rows}) > 1:
        raise _differ(part)
    return np.stack(rows)


def _differ(part: Part) -> SchemaError:
    return SchemaError(
        f"field {part.field.name!r}: rows of one file, or members of one array, differ in shape, so they were not "
        "what the record of the original files says: nothing was exported"
    )


def _as_stored(part: Part, values: Any) -> Array:
    """Values with the dtype of the original array."""
    if part.field.is_string:
        if part.dtype is not None and part.dtype.kind == "S":
            values = values.encode() if isinstance(values, str) else [value.encode() for value in values]
        return np.array(values, part.dtype)
    array = np.asarray(values)
    if part.dtype is None or array.dtype == part.dtype:
        return array
    if part.dtype.kind == "V":
        return np.ascontiguousarray(array).reshape(array.shape).view(part.dtype)
    return array.astype(part.dtype)


def _joined(array: OutArray, values: list[Array]) -> Array:
    """The array, its members put together."""
    if array.struct is None:
        return values[0]
    subshape = array.parts[0].subshape
    shape = values[0].shape[: values[0].ndim - len(subshape)]
    joined = np.zeros(shape, array.struct)
    for part, value in zip(array.parts, values, strict=True):
        target = joined
        for name in part.member:
            target = target[name]
        if target.shape != value.shape:
            raise _differ(part)
        target[...] = value
    return joined
