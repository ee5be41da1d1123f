"""`Reader`: positions or keys in, arrays out.

    Reader -- path, options, superblock          what it is made again from, in another process
      `-- Opened -- Source, Index                one generation; immutable, swapped whole by refresh()
            `-- Rows per field -- Checker        how its rows are read, and which of them are proven

Nothing is held at rest but the file: no thread, no lock.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from time import perf_counter_ns
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self, overload

import numpy as np
from numpy.typing import NDArray

from chunkstore._format import superblock as superblocks
from chunkstore._format.index import Index, read_generation
from chunkstore._format.schema import Field
from chunkstore._format.superblock import Superblock
from chunkstore._read import distant
from chunkstore._read.batch import Indices, Positions, as_position, as_positions, is_run
from chunkstore._read.checked import Checker, Verify, Where
from chunkstore._read.gather import FixedRows, RaggedRows, Rows
from chunkstore._read.keys import Keys, find_all, find_one
from chunkstore._read.newest import check_newer, open_generation, open_newest
from chunkstore._read.opened import Opened
from chunkstore._read.ragged import Ragged, split_batch
from chunkstore._read.select import Selection
from chunkstore._storage.objects import is_url
from chunkstore._storage.remote import Remote
from chunkstore._storage.source import Backend, Source
from chunkstore.errors import ClosedError

_ITERATE_NBYTES: Final = 4 << 20
_ITERATE_SAMPLES: Final = 4096
_SHOWN_FIELDS: Final = 8
_PROBED_ROWS: Final = 8


class Reader:
    """A container, open for reading; what `open` returns.

    `len(ds)`, `ds[7]`, `ds[-1]`, `ds["cat/0007"]` for one sample; `ds[10:20]`, `ds[[5, 3, 3]]` and `batch` for many.

    One sample is a dict of read-only arrays (views of the map where there is one; a field of shape () gives an array of
    no dimensions) and of `str` for fields of texts. Many samples are a dict of fresh arrays of shape (B, *row_shape),
    or `Ragged` where rows differ.

    Safe from many threads; works after fork; pickles as path, options and generation (under 1 kB) and reopens at first
    use. Holds no thread and no lock.
    """

    # `_opened` is absent until the first use of an unpickled reader, and again after `close`: then `__getattr__` is
    # asked for it. So the usual case costs nothing.
    __slots__ = ("__weakref__", "_backend", "_closed", "_names", "_opened", "_remote", "_superblock", "_verify", "path")

    path: str
    _opened: Opened

    def __init__(
        self,
        path: str,
        backend: Backend,
        verify: Verify,
        names: tuple[str, ...] | None,
        superblock: Superblock | None = None,
        remote: Remote | None = None,
    ) -> None:
        self.path = path
        self._remote = remote
        self._backend: Backend = backend
        self._verify: Verify = verify
        self._names = names
        self._superblock = superblock
        self._closed = False

    # --- opening and closing ---

    def __getattr__(self, name: str) -> Any:
        if name != "_opened":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if self._closed:
            raise ClosedError(f"{self.path}: the reader was closed; open it again")
        # Two threads may both open here; the second takes the place of the first, which is let go.
        opened = self._opened = self._open()
        if self._closed:  # another thread closed it meanwhile, and has missed this one
            self.close()
        return opened

    def _open(self) -> Opened:
        source, index = open_generation(self.path, self._backend, self._remote, self._superblock)
        try:
            if self._names is not None:
                check_known(self._names, [field.name for field in index.fields], self.path)
            opened = Opened(source, index, self._verify, self._names)
        except BaseException:
            source.close()
            raise
        self._superblock = index.superblock
        return opened

    def __reduce__(self) -> tuple[Any, ...]:
        if self._closed:
            raise ClosedError(f"{self.path}: the reader was closed and cannot be pickled; open it again")
        if self._superblock is None:  # pragma: no cover - only while `open` has not returned
            self._opened  # noqa: B018 - opens
        assert self._superblock is not None
        # The directory's sum says which bytes these are; the absolute path, because a child may run elsewhere.
        path = self.path if is_url(self.path) else os.path.abspath(self.path)
        record = superblocks.encode(self._superblock)[: superblocks.RECORD_NBYTES]
        return _reopen, (path, self._backend, self._verify, self._names, record, self._remote)

    def close(self) -> None:
        """Let the file go. Arrays that were handed out stay valid; any other use is then a `ClosedError`."""
        self._closed = True
        try:
            opened = object.__getattribute__(self, "_opened")
        except AttributeError:
            return
        try:
            del self._opened
        except AttributeError:  # another thread closed it as well
            return
        opened.source.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def refresh(self) -> bool:
        """Move to the newest generation, if there is a newer one. Never moves back.

        What was proven stays proven; arrays and selections that were made before keep their meaning.

        Returns:
            Whether it moved.
        Raises:
            ReplacedError: the path now names another file or another container.
        """
        opened = self._opened
        source, index = open_newest(self.path, self._backend, self._remote)
        try:
            check_newer(self.path, (opened.source, opened.index), (source, index))
            if index.superblock.generation == opened.index.superblock.generation:
                source.close()
                return False
            newer = Opened(source, index, self._verify, self._names)
        except BaseException:
            source.close()
            raise
        for name, rows in list(opened.made.items()):
            newer.field(name).checker.resume(rows.checker)
        self._superblock = index.superblock
        self._opened = newer  # the old one goes with the last read that is under way
        if self._closed:  # another thread closed it meanwhile, and has missed this one
            self.close()
        return True

    def _renew(self, opened: Opened) -> None:
        """Open the same generation again, without the pages of the index that were gathered; the source stays."""
        newer = Opened(
            opened.source, read_generation(opened.source, opened.index.superblock), self._verify, self._names
        )
        for name, rows in list(opened.made.items()):
            mine, earlier = newer.field(name).checker, rows.checker
            if isinstance(mine, Checker) and isinstance(earlier, Checker):
                mine.share(earlier)
        self._opened = newer
        if self._closed:  # another thread closed it meanwhile
            self.close()

    # --- what it is ---

    def __len__(self) -> int:
        """Number of samples."""
        return self._opened.num_samples

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        name = f"chunkstore.{type(self).__name__} {self.path!r}"
        if self._closed:
            return f"<{name}, closed>"
        lines = [f"<{name}: {self._headline()}"]
        for name, field in list(self.fields.items())[:_SHOWN_FIELDS]:
            dims = ", ".join("?" if dim is None else str(dim) for dim in field.shape)
            stored = "" if field.codec == "raw" else f", {field.codec}"
            lines.append(f"  {name}: {field.dtype} ({dims}{',' if len(field.shape) == 1 else ''}){stored}")
        if len(self.fields) > _SHOWN_FIELDS:
            lines.append(f"  and {len(self.fields) - _SHOWN_FIELDS} more fields")
        return "\n".join(lines) + ">"

    def _headline(self) -> str:
        opened = self._opened
        keys = "" if opened.keys is None else ", with keys"
        samples = "1 sample" if len(self) == 1 else f"{len(self):,} samples"
        return f"{samples}{keys}, {opened.source.backend}, verify={self._verify!r}"

    @property
    def fields(self) -> Mapping[str, Field]:
        """Name -> field, in the order of the container; read-only. Only those of `open(fields=...)`."""
        opened = self._opened
        return MappingProxyType({name: opened.index.fields[number] for name, number in opened.numbers.items()})

    @property
    def attrs(self) -> dict[str, Any]:
        """What was stored beside the samples: a fresh dict each time, parsed when asked for."""
        return self._opened.index.attrs()

    @property
    def keys(self) -> Keys | None:
        """The keys as a sequence that reads from the file; None where samples have no keys."""
        return self._opened.keys

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits: a root hash over schema, keys, index and data of this generation."""
        return self._opened.index.fingerprint

    @property
    def generation(self) -> int:
        """Number of commits that this reader sees, from 1."""
        return self._opened.index.superblock.generation

    @property
    def backend(self) -> str:
        """How it reads: "mmap", "pread" or "remote"."""
        return self._opened.source.backend

    @property
    def verify(self) -> Verify:
        """When chunks are checked: "once", "always" or "off"."""
        return self._verify

    # --- reading ---

    @overload
    def __getitem__(self, index: int | str) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice | Indices) -> dict[str, NDArray[Any] | Ragged]: ...

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """One sample by position or key, or many by a slice, integers or a mask.

        Raises:
            IndexError: a position is outside [-N, N).
            SampleNotFoundError: no sample has this key.
            CorruptError: a chunk is not what was written.
        """
        opened = self._opened
        # The usual case, without a call of ours: 0.5 µs for one field.
        if type(index) is int and 0 <= index < opened.num_samples:
            return {name: get(index) for name, get in opened.getters}
        if isinstance(index, str):
            return self.sample(find_one(self.path, opened.keys, index, opened.numbers))
        if isinstance(index, slice):
            return self._slice(index)
        if hasattr(index, "__index__") and getattr(index, "ndim", 0) == 0:
            return self.sample(index)
        if isinstance(index, tuple):
            raise TypeError(f"a sample has one position, found {len(index)}: for many samples use ds[[1, 2, 3]]")
        return self.batch(index)

    def sample(self, position: int) -> dict[str, Any]:
        """One sample by its position, as `ds[position]`."""
        opened = self._opened
        position = as_position(position, opened.num_samples)
        return {name: get(position) for name, get in opened.getters}

    def _slice(self, index: slice) -> dict[str, NDArray[Any] | Ragged]:
        opened = self._opened
        start, stop, step = index.indices(opened.num_samples)
        if step != 1 or opened.source.distant:  # from far away: one call for all fields
            return self.batch(range(start, stop, step))
        stop = max(start, stop)
        opened.check_size()
        targets = [(name, rows, rows.target(stop - start, None)) for name, rows in opened.rows.items()]
        return {name: rows.run(start, stop, target) for name, rows, target in targets}

    def batch(
        self,
        indices: Indices,
        *,
        fields: Sequence[str] | None = None,
        out: Mapping[str, NDArray[Any]] | None = None,
    ) -> dict[str, NDArray[Any] | Ragged]:
        """Read many samples, one gather per field.

        Args:
            indices: shape (B,), any integer dtype; wanted order, repeats allowed, negative counts from the end. Or a
                mask of N booleans.
            fields: which fields, default all.
            out: per field a C-contiguous array of shape (B, *row_shape) to fill, e.g. a pinned one; 1.3 to 2 times
                faster than a fresh one. Best at a multiple of 64, as arrays of frameworks are: those of `np.empty`
                begin 16 bytes behind a page, where copies of large rows can take twice as long. For bfloat16 and
                float8 also void or unsigned of the same width. For a ragged field an array (items or more,
                *item_shape), whose first part the values become. Fields that are not in it get fresh arrays.
        Returns:
            Per field shape (B, *row_shape), or `Ragged` where rows differ. Owns its memory: valid after close().
        Raises:
            IndexError: an index is outside [-N, N); nothing was read.
            TypeError, ValueError: an argument is not as above; nothing was read.
            CorruptError: a chunk is not what was written; `out` is then undefined. Other samples stay readable.
            TruncatedError: the file was cut off meanwhile.
        Safe from many threads. One GIL transaction per field, whatever B is. Neighbours in order are read as a slice.
        """
        opened = self._opened
        positions = as_positions(indices, opened.num_samples)
        rows = opened.rows if fields is None else self._chosen(opened, fields)
        targets = self._targets(rows, len(positions), out)
        if out is not None:
            positions = positions.copy()  # what is filled may lie over them; 0.2 µs, a look whether it does takes more
        opened.check_size()
        if opened.source.distant:
            if distant.is_heavy(opened.source):
                self._renew(opened)  # the batch under way, and others, end with what they began with
            return distant.batch(opened.source, positions, targets)
        if is_run(positions):
            start = positions.item(0)
            stop = start + len(positions)
            return {name: each.run(start, stop, target) for name, each, target in targets}
        hints = opened.hints
        before = hints.begin()
        if before < 0:
            began = perf_counter_ns()
            found = {name: each.batch(positions, target) for name, each, target in targets}
            hints.took(perf_counter_ns() - began, len(positions))
            return found
        try:
            if hints.cold:
                for each in rows.values():
                    each.hint(positions)
            return {name: each.batch(positions, target) for name, each, target in targets}
        finally:
            hints.end(before)

    def _targets(self, rows: Mapping[str, Rows], num_rows: int, out: Any) -> list[tuple[str, Rows, Any]]:
        if out is None:
            return [(name, each, each.target(num_rows, None)) for name, each in rows.items()]
        if type(out) is not dict and not isinstance(out, Mapping):
            raise TypeError(f"out: expected a mapping of field names to arrays, found {type(out).__name__}")
        for name in out:
            if name not in rows:
                check_known([name], rows, self.path, "out")
        return [(name, each, each.target(num_rows, out.get(name))) for name, each in rows.items()]

    def _chosen(self, opened: Opened, fields: Sequence[str]) -> dict[str, Rows]:
        if not isinstance(fields, str):
            fields = tuple(fields)
        check_known(fields, opened.numbers, self.path)
        return {name: opened.field(name) for name in fields}

    def column(self, name: str) -> NDArray[Any] | Ragged:
        """A whole field, read-only.

        Where it is raw and one extent (any converted container) and there is a map, this is a view of a map with normal
        read-ahead: no copy, whatever its size. Otherwise a copy, of as much memory as the field has. With
        `verify="once"` what is not proven yet is proven now, in one pass over it (20 GB/s in memory, otherwise as
        fast as the disk); with `verify="off"` a view costs nothing.

        Returns:
            Shape (N, *row_shape), or `Ragged` where rows differ. A view stays valid after close().
        Raises:
            CorruptError: a chunk of the field is not what was written.
        """
        opened = self._opened
        check_known([name], opened.numbers, self.path)
        opened.check_size()
        return opened.field(name).column()

    def prefetch(self, indices: Indices, *, fields: Sequence[str] | None = None) -> None:
        """Ask the system to start reading the next batch now; returns at once and reads nothing itself.

        Does nothing while the data turn out to be in memory already (it looks now and then). Of a remote container the
        rows are fetched in the background, into a buffer of `Remote.buffer_nbytes`, and the batch takes them from it;
        only offsets of ragged rows are waited for, the first time that a page of them is needed. What goes wrong with
        either is told by the batch, if it still goes wrong then.

        Raises:
            IndexError, TypeError, ValueError: as `batch`.
        """
        opened = self._opened
        positions = as_positions(indices, opened.num_samples)
        rows = opened.rows if fields is None else self._chosen(opened, fields)
        if opened.source.distant:
            distant.prefetch(opened.source, positions, rows.values())
            return
        before = opened.prefetches.begin()
        if before < 0:
            return
        # A look at warm data costs hints, too, six times the gather: a few rows tell as much as all.
        looked = positions if opened.prefetches.cold else positions[:_PROBED_ROWS]
        for each in rows.values():
            each.hint(looked)
        opened.prefetches.end(before)

    def find(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Positions of keys; int64, shape (len(keys),). About 10 µs a key, whatever N is.

        Raises:
            SampleNotFoundError: names the keys that no sample has.
            CorruptError: a part of the index that is needed is damaged.
        """
        return find_all(self.path, self._opened.keys, keys)

    def __contains__(self, key: object) -> bool:
        """Whether a sample has this key."""
        keys = self._opened.keys
        return keys is not None and key in keys

    def select(self, indices: Indices) -> Selection:
        """Some samples as a data set of their own, in this order; nothing is read.

        Raises:
            IndexError, TypeError, ValueError: as `batch`.
        """
        return Selection(self, as_positions(indices, len(self)))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Samples in order, read ahead in large pieces: each row is a read-only view of a piece of 4 MiB."""
        step = self._samples_a_piece()
        for start in range(0, len(self), step):
            if self._source.distant:
                self.prefetch(range(start, min(start + 2 * step, len(self))))
            yield from split_batch(self[start : start + step])

    def _samples_a_piece(self) -> int:
        stored = sum(int(rows.checker.index.block_nbytes.sum()) for rows in self._opened.rows.values())
        mean = stored / max(len(self), 1)
        return int(min(max(1, _ITERATE_NBYTES // max(mean, 1)), _ITERATE_SAMPLES))

    # --- for the adapters of this package ---

    @property
    def _source(self) -> Source:
        return self._opened.source

    @property
    def _index(self) -> Index:
        return self._opened.index

    def _field_index(self, name: str) -> Where:
        """Where the rows of a field are, and how large."""
        return self._opened.rows[name].checker.index

    def _typed(self, name: str) -> NDArray[Any] | None:
        """The field as one read-only array over the random map; None unless fixed, raw, one extent, mapped."""
        rows = self._opened.field(name)
        return rows.typed if isinstance(rows, FixedRows) else None

    def _extent(self, name: str) -> tuple[int, int] | None:
        """(offset, nbytes) of a raw field that is one extent."""
        rows = self._opened.field(name)
        if not isinstance(rows, (FixedRows, RaggedRows)) or len(rows.extents) != 1:
            return None
        return rows.extents[0].offset, rows.extents[0].nbytes

    def _exportable(self, name: str) -> NDArray[Any] | None:
        """As `_typed`, over the private map, whose memory is writable: to be exported, never written to."""
        typed, extent = self._typed(name), self._extent(name)
        view = None if typed is None or extent is None else self._source.writable_view(*extent)
        return None if typed is None or view is None else np.ndarray(typed.shape, typed.dtype, view)

    def _exportable_ragged(self, name: str) -> tuple[NDArray[Any], NDArray[np.int64]] | None:
        """(values over the private map, offsets) of a raw ragged field of one extent."""
        rows, extent = self._opened.field(name), self._extent(name)
        view = None if extent is None or not extent[1] else self._source.writable_view(*extent)
        if view is None or not isinstance(rows, RaggedRows):
            return None
        return rows.mapped(np.frombuffer(view, np.uint8))

    def _prove(self, name: str, positions: Positions | None = None) -> None:
        """Prove the chunks of these rows, or of all, unless they are proven; for those who gather by themselves."""
        opened = self._opened
        opened.check_size()
        checker = opened.field(name).checker
        if positions is None:
            checker.prove_all()
        else:
            checker.prove(positions)


def check_known(names: Sequence[object], known: Collection[str], path: str, what: str = "fields") -> None:
    """Raise TypeError or ValueError unless all of these names of fields are known; the text names what is near."""
    if isinstance(names, str):
        raise TypeError(f"{what}: expected a sequence of names, found one text; use [{names!r}]")
    for name in names:
        if not isinstance(name, str) or name not in known:
            known = list(known)
            near = difflib.get_close_matches(str(name), known, 1)
            shown = ", ".join(map(repr, known[:_SHOWN_FIELDS])) + (", ..." if len(known) > _SHOWN_FIELDS else "")
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {shown}"
            raise ValueError(f"{what}: {path} has no field {name!r}{hint}")


def _reopen(
    path: str,
    backend: Backend,
    verify: Verify,
    names: tuple[str, ...] | None,
    superblock: bytes,
    remote: Remote | None = None,
) -> Reader:
    return Reader(path, backend, verify, names, superblocks.decode_record(superblock), remote)
