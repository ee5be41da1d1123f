"""`open` and `Containers`: several containers as one data set.

Containers -- paths, options, superblocks    what it is made again from, in another process
  `-- _OpenedMany -- JoinedSource, JoinedIndex
        `-- Rows per field                   as of one container; SplitRows where codecs differ
"""

from __future__ import annotations

import errno
import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray

from chunkstore._format import superblock as superblocks
from chunkstore._format.field_index import FieldIndex
from chunkstore._format.index import Index
from chunkstore._format.joined_index import JoinedIndex
from chunkstore._format.lookup import grouped
from chunkstore._format.superblock import Superblock
from chunkstore._read.batch import Indices, Positions, as_position, as_positions
from chunkstore._read.checked import VERIFY, Checker, Verify
from chunkstore._read.gather import Rows, rows_of
from chunkstore._read.newest import check_newer, open_generation
from chunkstore._read.opened import Opened, key_for_message
from chunkstore._read.ragged import Ragged
from chunkstore._read.reader import Reader, check_known
from chunkstore._read.select import Selection
from chunkstore._read.split import SplitRows
from chunkstore._storage.joined_source import JoinedSource
from chunkstore._storage.names import natural_sort
from chunkstore._storage.objects import RemoteObject, is_url
from chunkstore._storage.remote import Remote, Room
from chunkstore._storage.source import Backend, Source
from chunkstore.errors import FormatError, SchemaError

SUFFIX: Final = ".cks"
_MOST_AT_ONCE: Final = 32  # containers behind URLs that are opened at a time
Path: TypeAlias = "str | os.PathLike[str]"
Paths: TypeAlias = "Path | Sequence[Path]"  # what `open` takes


@dataclass(frozen=True)
class _Part:
    """One container, open."""

    source: Source
    index: Index


class _OpenedMany(Opened):
    """Generations of several containers, opened as one."""

    __slots__ = ("bases", "joined", "parts")

    def __init__(self, path: str, parts: Sequence[_Part], verify: Verify, names: Sequence[str] | None) -> None:
        self.parts = tuple(parts)
        source = JoinedSource(path, [part.source for part in parts])
        self.joined = JoinedIndex(path, [part.index for part in parts], source.bases, names)
        self.bases = source.bases
        super().__init__(source, self.joined, verify, None)

    def _rows(self, number: int) -> Rows:
        if self.joined.shares_codec(number):
            return super()._rows(number)
        found = []
        for part, numbers in zip(self.parts, self.joined.numbers, strict=True):
            index = FieldIndex(part.index, numbers[number])
            key = partial(key_for_message, part.index.keys)
            checker = Checker(index, part.source, self._verify, key, self.hints)
            found.append(rows_of(index, part.source, checker, partial(part.index.dictionary, numbers[number])))
        return SplitRows(self.joined.fields[number], found, self.joined.starts, self.bases)

    def shares(self, positions: Positions) -> Iterator[tuple[int, Positions]]:
        """(number of a container, positions there), for each that has some of the positions."""
        for number, places in grouped(self.joined.starts.searchsorted(positions, "right") - 1):
            yield number, positions[places] - self.joined.starts[number]


class Containers(Reader):
    """Several containers, open for reading as one data set; what `open` returns for more than one path.

    All that a `Reader` does, at its speed. Positions run through the containers in the order of the paths. They have
    the same fields; their numbers of samples (0, too), shards, extents and codecs may differ, and the order of fields
    is that of the first. Either all that have samples have keys, or none has.

    A lookup by key asks every container, 10 µs each. A key that two containers have is an error where it is looked up,
    which names both positions. `attrs` are those members that all containers have alike; `fields` says "various" where
    a codec is not the same everywhere; `column` is a copy.

    Holds one or two descriptors a container and opens in about a millisecond each; behind URLs, 32 at a time. Pickles
    in 300 bytes a container.

    A truncated file is noticed as by a `Reader`, but in a tight loop perhaps some milliseconds late.
    """

    __slots__ = ("_paths", "_room", "_superblocks")

    def __init__(
        self,
        path: str,
        paths: Sequence[str],
        backend: Backend,
        verify: Verify,
        names: tuple[str, ...] | None,
        superblocks: Sequence[Superblock] | None = None,
        remote: Remote | None = None,
    ) -> None:
        super().__init__(path, backend, verify, names, remote=remote)
        self._paths = tuple(paths)
        self._room = Room((remote or Remote()).buffer_nbytes)  # of all URLs
        self._superblocks = None if superblocks is None else tuple(superblocks)

    # --- opening and closing ---

    def _open(self) -> _OpenedMany:
        wanted = self._superblocks or (None,) * len(self._paths)
        opened: list[_Part] = []

        def open_part(path: str, superblock: Superblock | None) -> _Part:
            part = self._open_part(path, superblock)
            opened.append(part)
            return part

        try:
            return self._joined(self._each(open_part, wanted))
        except BaseException:
            for part in opened:
                part.source.close()
            raise

    def _each(self, work: Callable[[str, Any], _Part], arguments: Sequence[Any]) -> list[_Part]:
        """`work` for each path and argument, in order; where servers answer, for many at the same time."""
        if not any(map(is_url, self._paths)):
            return [work(path, argument) for path, argument in zip(self._paths, arguments, strict=True)]
        with ThreadPoolExecutor(min(len(self._paths), _MOST_AT_ONCE), "chunkstore-open") as pool:
            return list(pool.map(work, self._paths, arguments))

    def _open_part(self, path: str, wanted: Superblock | None) -> _Part:
        try:
            return _Part(*open_generation(path, self._backend, self._remote_of(path), wanted, room=self._room))
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            raise OSError(
                errno.EMFILE,
                f"this process may not open more files: {len(self._paths)} containers take up to two descriptors each. "
                "Raise the limit (ulimit -n), use backend='pread' (one each), or merge them",
                path,
            ) from None

    def _remote_of(self, path: str) -> Remote | None:
        return self._remote if is_url(path) else None

    def _joined(self, parts: Sequence[_Part]) -> _OpenedMany:
        if self._names is not None:
            check_known(self._names, [field.name for field in parts[0].index.fields], parts[0].index.path)
        opened = _OpenedMany(self.path, parts, self._verify, self._names)
        self._superblocks = tuple(part.index.superblock for part in parts)
        return opened

    @property
    def _many(self) -> _OpenedMany:
        opened = self._opened
        assert isinstance(opened, _OpenedMany)
        return opened

    def __reduce__(self) -> tuple[Any, ...]:
        opened = self._opened  # a closed one cannot be pickled
        assert isinstance(opened, _OpenedMany)
        records = [superblocks.encode(part.index.superblock)[: superblocks.RECORD_NBYTES] for part in opened.parts]
        paths = [path if is_url(path) else os.path.abspath(path) for path in self._paths]
        return _reopen, (self.path, paths, self._backend, self._verify, self._names, records, self._remote)

    def refresh(self) -> bool:
        """Move each container to its newest generation, forward only, all or none. Files that are new are not seen.

        Where a container grew that is not the last, the samples behind it have new positions. Selections that were
        made before keep their meaning: they go on to read the generations of that time.

        Returns:
            Whether any of them moved.
        Raises:
            ReplacedError: a path now names another file or another container; nothing moved.
        """
        opened = self._many
        fresh: list[_Part] = []
        try:
            parts = self._each(partial(self._newer, fresh=fresh), opened.parts)
            if not fresh:
                return False
            newer = self._joined(parts)
        except BaseException:
            for part in fresh:
                part.source.close()
            raise
        for name, rows in list(opened.made.items()):  # other threads may read further fields meanwhile
            _resume(newer.field(name), rows, newer.joined, opened.joined)
        self._opened = newer
        if self._closed:  # another thread closed it meanwhile, and has missed this one
            self.close()
        return True

    def _newer(self, path: str, part: _Part, fresh: list[_Part]) -> _Part:
        """The newest generation of one container; noted in `fresh` if it is not the one that is open."""
        newer = self._open_part(path, None)
        try:
            check_newer(path, (part.source, part.index), (newer.source, newer.index))
        except BaseException:
            newer.source.close()
            raise
        if newer.index.superblock.generation == part.index.superblock.generation:
            newer.source.close()
            return part
        fresh.append(newer)
        return newer

    # --- what it is ---

    def _headline(self) -> str:
        return f"{len(self._paths)} containers, {super()._headline()}"

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the containers, in order."""
        return self._paths

    @property
    def starts(self) -> NDArray[np.int64]:
        """The position of the first sample of each container, and N behind them; shape (containers + 1,)."""
        return self._many.joined.starts.copy()

    @property
    def generation(self) -> int:
        """Number of commits that this reader sees, of all containers together."""
        return sum(part.index.superblock.generation for part in self._many.parts)

    # --- reading: as of one container; what is wrong is looked up in the one that it is wrong in ---

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """As of `Reader`."""
        try:
            return super().__getitem__(index)
        except FormatError as error:
            raise self._located(error, index) from None

    def sample(self, position: int) -> dict[str, Any]:
        """As of `Reader`."""
        try:
            return super().sample(position)
        except FormatError as error:
            raise self._located(error, position) from None

    def batch(
        self,
        indices: Indices,
        *,
        fields: Sequence[str] | None = None,
        out: Mapping[str, NDArray[Any]] | None = None,
    ) -> dict[str, NDArray[Any] | Ragged]:
        """As of `Reader`."""
        try:
            return super().batch(indices, fields=fields, out=out)
        except FormatError as error:
            raise self._located(error, indices, fields) from None

    def column(self, name: str) -> NDArray[Any] | Ragged:
        """A whole field of all containers, read-only; a copy, of as much memory as the field has.

        Raises:
            CorruptError: a chunk of the field is not what was written.
        """
        try:
            return super().column(name)
        except FormatError as error:
            raise self._located(error, slice(None), [name]) from None

    def select(self, indices: Indices) -> Selection:
        """As of `Reader`."""
        return Selection(self._unmoved(), as_positions(indices, len(self)))

    def _unmoved(self) -> Containers:
        """A twin that no `refresh` moves: the same positions may then be those of other samples."""
        options = self._backend, self._verify, self._names, self._superblocks, self._remote
        twin = Containers(self.path, self._paths, *options)
        twin._opened = self._opened
        return twin

    def _located(self, error: FormatError, index: Any, fields: Sequence[str] | None = None) -> FormatError:
        """The error that the container itself gives for it; costs opening each that was read."""
        if not str(error).startswith(f"{self.path}: "):
            return error  # it names its container
        opened = self._many
        assert self._superblocks is not None
        for number, local in opened.shares(self._positions(index)):
            path = self._paths[number]
            options = self._backend, self._verify, self._names, self._superblocks[number], self._remote_of(path)
            with Reader(path, *options) as reader:
                try:
                    reader.batch(local, fields=fields)
                except FormatError as found:
                    start = int(opened.joined.starts[number])
                    return type(found)(f"{found} Sample 0 of {path} is sample {start} of {self.path}.")
        return error

    def _positions(self, index: Any) -> Positions:
        if isinstance(index, slice):
            index = range(*index.indices(len(self)))
        if isinstance(index, str):
            return self.find([index])
        if hasattr(index, "__index__") and getattr(index, "ndim", 0) == 0:
            return np.array([as_position(index, len(self))])
        return as_positions(index, len(self))

    # --- for the adapters of this package ---

    def _extent(self, name: str) -> tuple[int, int] | None:
        return None  # no field is one run of bytes of one file

    def _prove(self, name: str, positions: Positions | None = None) -> None:
        try:
            super()._prove(name, positions)
        except FormatError as error:
            raise self._located(error, slice(None) if positions is None else positions, [name]) from None


def _resume(rows: Rows, earlier: Rows, index: JoinedIndex, earlier_index: JoinedIndex) -> None:
    """Take over what was proven; in each container the earlier groups are the first ones."""
    new, old = rows.checker, earlier.checker
    if type(new) is not type(old):
        return  # an empty container with another codec has samples now
    if not isinstance(new, Checker) or not isinstance(old, Checker):
        new.resume(old)
        return
    here = new.index.first_group[index.first_shards]
    there = old.index.first_group[earlier_index.first_shards]
    new.resume(old, list(zip(here[:-1].tolist(), there[:-1].tolist(), np.diff(there).tolist(), strict=True)))


def _reopen(
    path: str,
    paths: Sequence[str],
    backend: Backend,
    verify: Verify,
    names: tuple[str, ...] | None,
    records: Sequence[bytes],
    remote: Remote | None = None,
) -> Containers:
    decoded = [superblocks.decode_record(record) for record in records]
    return Containers(path, paths, backend, verify, names, decoded, remote)


def containers_at(path: Path, remote: Remote | None = None) -> list[str]:
    """What one path means: a file, the containers in a directory, or those that match a pattern; in natural order.

    Args:
        remote: how to list the objects of a store, for a pattern in a URL.
    Raises:
        FileNotFoundError: nothing matches the pattern.
        UrlError, PermissionError, RemoteError: the store cannot be asked what matches.
        IsADirectoryError: a directory without containers.
    """
    text = os.fsdecode(path)
    if not is_url(text) and os.path.isdir(text):
        found = [entry.name for entry in os.scandir(text) if entry.name.endswith(SUFFIX) and entry.name[0] != "."]
        if not found:
            raise IsADirectoryError(errno.EISDIR, f"a directory without a container (*{SUFFIX})", text)
        return [os.path.join(text, name) for name in natural_sort(found)]
    if not glob.has_magic(text) or os.path.lexists(text):
        return [text]
    if is_url(text):
        pattern = RemoteObject(text, (remote or Remote()).storage_options)
        found = pattern.matches() if pattern.in_store else [text]
    else:
        found = [
            name for name in set(glob.glob(text, recursive=True)) if not os.path.isdir(name)
        ]  # `**/**` names twice
    if not found:
        what = "object" if is_url(text) else "file"
        raise FileNotFoundError(errno.ENOENT, f"no {what} has this name or matches this pattern", text)
    return natural_sort(found)


def every_container(paths: Paths, remote: Remote | None = None) -> list[str]:
    """The containers that one path means, or all that several mean, in their order; errors as of `containers_at`."""
    each = [paths] if isinstance(paths, str | bytes | os.PathLike) else paths
    return [found for path in each for found in containers_at(path, remote)]


def one_container(path: Path, instead: str, remote: Remote | None = None) -> str:
    """The container that one path means, where only one will do.

    Args:
        instead: what to do with several, as a sentence.
    Raises:
        SchemaError: it means several.
    """
    found = containers_at(path, remote)
    if len(found) > 1:
        raise SchemaError(f"{os.fsdecode(path)}: {len(found)} containers, and one is wanted. {instead}")
    return found[0]


def is_paths(source: object) -> TypeGuard[Paths]:
    """Whether this is something that `open` takes, and not a reader."""
    if isinstance(source, list | tuple):
        return all(isinstance(each, str | os.PathLike) for each in source)
    return isinstance(source, str | os.PathLike)


def open(  # noqa: A001 - the public name
    path: Paths,
    *,
    backend: Backend = "auto",
    verify: Verify = "once",
    fields: Sequence[str] | None = None,
    remote: Remote | None = None,
) -> Reader:
    """Open a container for reading, or several as one data set. Costs the same for any number of samples.

    Args:
        path: of the container; or the URL of an object: `s3://bucket/key`, `gs://`, `az://`, `https://`, `http://`. One
            request opens it where the index is in front (converted, all fields raw), two where it lies behind,
            and one more for each earlier segment (appends), all at once.
            Or several, of which positions run through in this order: a list of paths; a directory, for
            all `*.cks` in it; a pattern such as `"data/*.cks"` (`**` for directories below), where no file has that
            very name, or `"s3://bucket/train-*.cks"` (the same signs; not of a web server, which lists nothing). The
            latter two in natural order, 2 before 10.
        backend: "mmap" (fastest; if somebody truncates the file meanwhile, the process may die by SIGBUS), "pread"
            (copies; such a file is a clean `TruncatedError`), "auto": mmap on local file systems, else pread.
        verify: "once" checks each chunk the first time that it is read and remembers it, small ones that are in memory
            soon with their whole block; "always" each time; "off" never. The index is checked in any case.
        fields: read only these; default all.
        remote: where a path is a URL, how to read it: `Remote`. Credentials come from the environment.
    Returns:
        A `Reader`; of more than one path a `Containers`, which is one, too.
    Raises:
        NotAContainerError, UnsupportedVersionError, UnsupportedFeatureError, LimitError, CorruptError: a file cannot
            be read as a container.
        SchemaError: of several, the fields differ, or only some have keys.
        TruncatedError: a file is shorter than its last commit.
        FileNotFoundError, PermissionError, IsADirectoryError: as the built-in `open`.
        RemoteError: a server failed, although the client tried again. MissingExtraError: there is no client.
        ValueError: no path, or an unknown backend, verify or field.
    """
    if not isinstance(remote, Remote | None):
        raise TypeError(f"remote: expected chunkstore.Remote(...), found {type(remote).__name__}")
    if isinstance(path, str | bytes | os.PathLike):
        shown, paths = os.fsdecode(path), containers_at(path, remote)
    elif not hasattr(path, "__iter__") or hasattr(path, "read"):  # an open file gives its lines
        raise TypeError(f"path: expected a path, a URL or a list of them, found {type(path).__name__}")
    else:
        paths = [os.fsdecode(each) for each in path]
        if not paths:
            raise ValueError("path: expected at least one container, found an empty list")
        shown = f"{paths[0]} and {len(paths) - 1} more"
    if verify not in VERIFY:
        raise ValueError(f"verify: expected one of {', '.join(VERIFY)}, found {verify!r}")
    if isinstance(fields, str):
        raise TypeError(f"fields: expected a sequence of names, found one text; use [{fields!r}]")
    if remote is not None and not any(map(is_url, paths)):
        raise ValueError(f"remote: goes with URLs such as s3://bucket/train.cks, found no URL: {paths[0]!r}")
    names = None if fields is None else tuple(fields)
    if len(paths) == 1:
        reader = Reader(paths[0], backend, verify, names, remote=remote)
    else:
        reader = Containers(shown, paths, backend, verify, names, remote=remote)
    reader._opened  # noqa: B018 - opens now, so that errors come here
    return reader
