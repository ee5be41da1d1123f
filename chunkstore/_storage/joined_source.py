"""Several files as one: offsets count in one space of addresses, in which each file has its place."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final, Literal, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.lookup import grouped
from chunkstore._format.span import spanning
from chunkstore._storage import platform
from chunkstore._storage.buffers import Buffer, byte_view
from chunkstore._storage.source import Identity, Offsets, Source
from chunkstore.errors import ClosedError

_ALIGNMENT: Final = 4096  # of the places of files, so that what is aligned in a file stays so
_LARGE_NBYTES: Final = 16 << 10  # from here on a row is read to where it belongs; smaller ones by way of a copy
_LOOK_SHARE: Final = 50  # looking at the sizes of all files takes one part in so many of the time


class JoinedSource:
    """Several sources as one, open as long as they are.

    Where all of them are mapped, a place is the distance of addresses, and `view` gives one view over all maps: a
    gather over many files is then a gather over one. Otherwise files follow each other, and reads are shared out.
    What lies between the files may not be touched; no range that an index gives does.

    Attributes:
        bases: where each file begins.
        size: where the last one ends; no number of bytes.
    """

    def __init__(self, path: str, sources: Sequence[Source]) -> None:
        """Take sources over; `close` closes them."""
        self.path = path
        self.sources = tuple(sources)
        self.distant = any(source.distant for source in sources)
        self._closed = False
        self._next_look = 0
        views = [source.view(0, source.size) for source in sources]
        mapped = [np.frombuffer(view, np.uint8) for view in views if view is not None]
        self._view: memoryview | None = None
        if len(mapped) == len(sources):
            memory, bases = spanning(mapped)
            self._view, self.size = memory.data, len(memory)
        else:
            rooms = [-(-source.size // _ALIGNMENT) * _ALIGNMENT for source in sources]
            ends = np.cumsum(rooms, dtype=np.int64)
            bases, self.size = ends - rooms, int(ends[-1])
        self.bases: list[int] = bases.tolist()
        self._order = np.argsort(bases)
        self._sorted = bases[self._order]
        self.identity = Identity(0, 0, self.size, 0)

    @property
    def backend(self) -> Literal["mmap", "pread", "remote"]:
        return "remote" if self.distant else "pread" if self._view is None else "mmap"

    @property
    def closed(self) -> bool:
        return self._closed

    def fileno(self) -> int:
        raise ValueError(f"{self.path}: several files have no one descriptor")

    def read(self, offset: int, nbytes: int) -> bytes:
        source, offset = self._at(offset)
        return source.read(offset, nbytes)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        source, offset = self._at(offset)
        source.read_into(offset, buffer)

    def read_scattered(self, offsets: Offsets, nbytes: int | Offsets, out: Buffer) -> None:
        """As of a source; the ranges of each file are read together, rows of 16 KiB and more one by one."""
        view = byte_view(out, writable=True)
        starts = np.ascontiguousarray(offsets, np.int64)
        lengths = np.broadcast_to(np.asarray(nbytes, np.int64), starts.shape)
        targets = np.cumsum(lengths) - lengths
        if len(view) >= _LARGE_NBYTES * len(starts) and not self.distant:
            for start, target, length in zip(starts.tolist(), targets.tolist(), lengths.tolist(), strict=True):
                self.read_into(start, view[target : target + length])
            return
        for number, places in self._by_file(starts):
            mine = lengths[places]
            piece = np.empty(int(mine.sum()), np.uint8)
            self.sources[number].read_scattered(starts[places] - self.bases[number], mine, piece)
            _put(piece, mine, targets[places], view)

    def view(self, offset: int, nbytes: int) -> memoryview | None:
        """A view over the maps; None unless all files are mapped."""
        self._check_open()
        return None if self._view is None else self._view[offset : offset + nbytes]

    def sequential_view(self, offset: int, nbytes: int) -> memoryview | None:
        """As of a source, within one file; None beyond it."""
        source, local = self._at(offset)
        return source.sequential_view(local, nbytes) if local + nbytes <= source.size else None

    def writable_view(self, offset: int, nbytes: int) -> memoryview | None:
        """As of a source, within one file; None beyond it."""
        source, local = self._at(offset)
        return source.writable_view(local, nbytes) if local + nbytes <= source.size else None

    def reserve(self, nbytes: int) -> memoryview:
        return platform.reserve(nbytes)

    def advise(self, offsets: Offsets, nbytes: int | Offsets) -> None:
        """As of a source; 10 µs for each file that has some of the ranges."""
        lengths = np.broadcast_to(np.asarray(nbytes, np.int64), offsets.shape)
        for number, places in self._by_file(offsets):
            self.sources[number].advise(offsets[places] - self.bases[number], lengths[places])

    @contextmanager
    def staged(self, offsets: Offsets, nbytes: int | Offsets, into: Sequence[memoryview] = ()) -> Iterator[None]:
        """As of a source; all distant ones fetch at the same time."""
        starts = np.ascontiguousarray(offsets, np.int64)
        lengths = np.broadcast_to(np.asarray(nbytes, np.int64), starts.shape)
        shares = [
            (self.sources[number], starts[places] - self.bases[number], lengths[places], places)
            for number, places in self._by_file(starts)
        ]
        distant = [share for share in shares if share[0].distant]
        for source, mine, sizes, _ in distant if len(distant) > 1 else ():
            source.advise(mine, sizes)
        with ExitStack() as stack:
            for source, mine, sizes, places in shares:
                # Places are in their order: those that go into memory come first for each file as well.
                targets = [into[place] for place in places[places < len(into)].tolist()]
                stack.enter_context(source.staged(mine, sizes, targets))
            yield

    def check_size(self) -> None:
        """Look at the sizes of all files, but not more often than costs a fiftieth of the time.

        A look costs 0.35 µs a file, and for hundreds of files more than a batch of small rows. So a file that is
        truncated in a tight loop may be noticed some milliseconds late; after a pause it is noticed at once.
        """
        self._check_open()
        began = time.perf_counter_ns()
        if began < self._next_look:
            return
        for source in self.sources:
            source.check_size()
        ended = time.perf_counter_ns()
        self._next_look = ended + _LOOK_SHARE * (ended - began)

    def close(self) -> None:
        """Close all of them."""
        self._closed = True
        self._view = None
        for source in self.sources:
            source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} cannot be pickled or copied: reopen its paths")

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{self.path}: the source was closed; open it again")

    def _at(self, offset: int) -> tuple[Source, int]:
        self._check_open()
        number = int(self._order[int(self._sorted.searchsorted(offset, "right")) - 1])
        return self.sources[number], offset - self.bases[number]

    def _by_file(self, offsets: Offsets) -> Iterator[tuple[int, Offsets]]:
        """(number of a file, which of the offsets are in it, in their order), for each that has some."""
        self._check_open()
        for place, those in grouped(self._sorted.searchsorted(offsets, "right") - 1):
            yield int(self._order[place]), those


def _put(piece: NDArray[np.uint8], lengths: Offsets, targets: Offsets, view: memoryview) -> None:
    """Copy ranges that lie back to back in `piece` to their targets. Needs memory for each range, not for each byte."""
    if not len(piece):
        return
    size = int(lengths[0])
    if (lengths == size).all() and not (targets % size).any() and size < _LARGE_NBYTES:
        whole = np.frombuffer(view[: len(view) // size * size], np.dtype((np.void, size)))
        whole[targets // size] = piece.view(whole.dtype)
        return
    flat, at = np.frombuffer(view, np.uint8), 0
    for target, length in zip(targets.tolist(), lengths.tolist(), strict=True):
        flat[target : target + length] = piece[at : at + length]
        at += length
