"""`RemoteSource`: positional reads of an object behind a URL, in as few requests as possible.

    staged(ranges) -> what is kept already? -> the rest in runs (ranges.py) -> requests, in parallel (objects.py)
                            pieces.py                     (requests.py)            | blocks on the disk (blockcache.py)

A read costs a round trip, so readers say beforehand what they are going to read: `staged` fetches all of it at once and
has it ready for the reads in its block; `advise` does the same in the background for a block to come. What belongs in
one place, such as a row of a batch, is copied there by the thread that made the request (`pieces.Delivery`).
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import compress
from typing import Any, Final, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.checksum import sum64
from chunkstore._format.constants import MAX_FILE_NBYTES
from chunkstore._format.lookup import distinct
from chunkstore._format.segment import OPENING_NBYTES
from chunkstore._storage.blockcache import BLOCK_NBYTES, BlockCache
from chunkstore._storage.buffers import Buffer, byte_view
from chunkstore._storage.interrupts import signals_later
from chunkstore._storage.objects import RemoteObject, Version
from chunkstore._storage.pieces import Cover, Delivery, Kept, Piece, copy_bytes
from chunkstore._storage.ranges import align, coalesce, cuts
from chunkstore._storage.requests import Request, start_requests, work_off
from chunkstore._storage.source import Identity, Offsets, PreadSource, as_ranges
from chunkstore.errors import LimitError, RemoteError

_STEP_NBYTES: Final = 64 << 20  # of one large read: what is in memory twice
_AHEAD: Final = 3  # requests that are under way while a file is read in order
# From a server that answers that fast, more requests at a time than these bring nothing, and each costs a thread.
_FEW_REQUESTS: Final = 8
_QUICK_SECONDS: Final = 0.005
_TRIED_AGAIN: Final = " retries, max_retries"  # in the words of the client


@dataclass(frozen=True, kw_only=True)
class Remote:
    """How an object is read and written; what `open(url, remote=...)` takes.

    Attributes:
        storage_options: for the store class of obstore: `config`, `client_options` (timeouts), `retry_config`,
            `credential_provider`, and settings by name, such as `endpoint` or `region`. What is not here comes from the
            environment, as obstore reads it. They are pickled with a reader, and not shown by `repr`.
        max_gap_nbytes: rows with at most so many bytes between them come by one request. A request costs about as much
            as the transfer of a few hundred KB.
        max_request_nbytes: longer runs are split, so that their parts come in parallel. At least 1 MiB.
        max_requests: under way at a time, in this process; besides, each thread that reads makes one itself. Where a
            server answers within a few milliseconds, eight for each call.
        buffer_nbytes: what is kept in memory, for each reader: what `prefetch` has fetched, and what was read last.
            What reads a file from begin to end (`verify`, `merge`) keeps 32 MiB at least.
        cache_dir: keep blocks of 1 MiB in this folder on the local disk (`~`: the home directory), for any number of
            processes; default: none.
            Pays where a data set is read more than once and fits. Needs a server that gives ETags or dates.
        cache_nbytes: what the folder may hold; the blocks that were not used for longest go first.
    """

    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    max_gap_nbytes: int = 256 << 10
    max_request_nbytes: int = 8 << 20
    max_requests: int = 64
    buffer_nbytes: int = 128 << 20
    cache_dir: str | None = None
    cache_nbytes: int = 16 << 30

    def __post_init__(self) -> None:
        if not isinstance(self.storage_options, Mapping):
            raise TypeError(f"storage_options: expected a dict, found {type(self.storage_options).__name__}")
        if not isinstance(self.cache_dir, str | os.PathLike | None):
            raise TypeError(f"cache_dir: expected a path, found {self.cache_dir!r}")
        least = {
            "max_gap_nbytes": 0,
            "max_request_nbytes": BLOCK_NBYTES,
            "max_requests": 1,
            "buffer_nbytes": 0,
            "cache_nbytes": BLOCK_NBYTES,
        }
        for name, low in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ValueError(f"{name}: expected an integer of {low} or more, found {value!r}")


class _State:
    """What belongs to one process."""

    def __init__(self, nbytes: int) -> None:
        self.lock = threading.Lock()
        self.kept = Kept(nbytes)


class Room:
    """What the sources of one data set keep in memory together; after a fork the child has one of its own."""

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self._states: dict[int, _State] = {}

    def state(self) -> _State:
        """That of this process."""
        process = os.getpid()
        found = self._states.get(process)
        if found is None:
            # One call, which no other thread can come between: all must use the same lock.
            found = self._states.setdefault(process, _State(self._nbytes))
            for other in self._states.keys() - {process}:  # locks and requests under way are the parent's
                self._states.pop(other, None)
        return found


class _Call:
    """What one reader needs at once.

    Attributes:
        pieces: all of it.
        fresh: those that nobody had asked for.
        requests: what brings these; whoever waits may help with them.
        deliveries: what the reader wants in places of its own.
    """

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.fresh: list[Piece] = []
        self.requests: deque[Request] = deque()
        self.deliveries: dict[Piece, Delivery] = {}

    def collect(self) -> None:
        """Help with the requests, and wait until all is there and where it is wanted."""
        work_off(self.requests)
        for piece in self.pieces:
            piece.wait()
        for delivery in self.deliveries.values():
            delivery.make()

    def cancel(self) -> None:
        """Write nowhere any more, and have others who wait for what nobody has begun ask for it themselves."""
        for delivery in self.deliveries.values():
            delivery.cancel()
        for piece in self.fresh:
            piece.cancel()


class RemoteSource(PreadSource):
    """An object of one version: every answer is held against the ETag, date and size at opening.

    Safe from many threads, and after a fork. The first request brings the head of the object and tells what it is.

    Args:
        url: see `objects.RemoteObject`.
        remote: options.
        in_order: read ahead in large steps, for those who read all of it from begin to end.
        room: shared with other sources; default: one of its own.
    Raises:
        FileNotFoundError, PermissionError, RemoteError: as the server says.
        LimitError: the server says that it has 2^63 bytes or more.
        ReplacedError: from any read; the object is not the one that was opened.
    """

    backend: Literal["mmap", "pread", "remote"] = "remote"
    distant = True

    def __init__(self, url: str, remote: Remote, *, in_order: bool = False, room: Room | None = None) -> None:
        self.path = url
        self._remote = remote
        self._in_order = in_order
        self._object: RemoteObject | None = RemoteObject(url, remote.storage_options)
        began = time.perf_counter()
        head, self._version = _read_head(self._object)
        self._fastest = time.perf_counter() - began  # seconds of a request, see `_timed`
        self._head = Piece(0, len(head), head)  # kept for good: a reader comes back to it
        self.size = self._version.size
        version = f"{self._version.etag}|{self._version.modified}"
        # The URL in the place of the inode: the same object may have a newer version, as a file may.
        self.identity = Identity(0, sum64(url.encode()), self.size, sum64(version.encode()))
        self._cache: BlockCache | None = None
        if remote.cache_dir is not None and self._version.known:
            folder = os.path.expanduser(remote.cache_dir)
            self._cache = BlockCache(folder, remote.cache_nbytes, f"{url}|{version}|{self.size}")
        ahead = (1 + _AHEAD) * remote.max_request_nbytes if in_order else 0  # or it would be fetched in vain
        self._room = room or Room(max(remote.buffer_nbytes, ahead))
        self._owner = object()
        self._local = threading.local()
        self.num_read_nbytes = 0  # by `read`, which is how the index is read, and what its pages have in memory

    @property
    def closed(self) -> bool:
        return self._object is None

    def fileno(self) -> NoReturn:
        raise OSError(errno.ENOTSUP, "a remote object has no descriptor", self.path)

    def read(self, offset: int, nbytes: int) -> bytes:
        self._check_open()
        self._check_range(offset, nbytes)
        self.num_read_nbytes += nbytes  # threads may lose each other's count: a hint
        if offset + nbytes <= self._head.stop:
            return bytes(self._head.read(offset, offset + nbytes))
        data = bytearray(nbytes)
        self.read_into(offset, data)
        return bytes(data)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = byte_view(buffer, writable=True)
        self._check_open()
        self._check_range(offset, len(view))
        # In order, a step at a time: a range over two of them would be in neither, and be fetched again.
        step = self._remote.max_request_nbytes if self._in_order else _STEP_NBYTES
        first = offset // step * step if self._in_order else offset
        for low, high in cuts(first, offset + len(view), step):
            low = max(low, offset)
            starts, stops = np.array([low]), np.array([high])
            if self._in_order:
                around = self._read_ahead(low, high)
                starts, stops = np.append(starts, around[0]), np.append(stops, around[1])
            with self._staged(starts, stops, [view[low - offset : high - offset]]):
                pass

    def read_scattered(self, offsets: Offsets, nbytes: int | Offsets, out: Buffer) -> None:
        view = byte_view(out, writable=True)
        starts, lengths = self._checked(offsets, nbytes)
        if int(lengths.sum()) != len(view):
            raise ValueError(f"expected an out of {int(lengths.sum())} bytes, found {len(view)}")
        ends = np.cumsum(lengths)
        for first, last in _steps(ends):
            mine = slice(first, last)
            targets = map(slice, (ends - lengths)[mine].tolist(), ends[mine].tolist())
            with self._staged(starts[mine], (starts + lengths)[mine], [view[target] for target in targets]):
                pass

    def view(self, offset: int, nbytes: int) -> memoryview | None:
        self._check_open()
        return None

    sequential_view = writable_view = view

    def advise(self, offsets: Offsets, nbytes: int | Offsets) -> None:
        """Fetch ranges in the background, as many of them as the buffer holds; errors come when they are read."""
        starts, lengths = self._checked(offsets, nbytes)
        far = starts + lengths > self._head.stop
        starts, lengths = starts[far], lengths[far]
        room = (np.cumsum(lengths) <= self._remote.buffer_nbytes) & (lengths > 0)
        self._plan_ahead(starts[room], (starts + lengths)[room])

    @contextmanager
    def staged(self, offsets: Offsets, nbytes: int | Offsets, into: Sequence[memoryview] = ()) -> Iterator[None]:
        """Fetch ranges at once, in runs and in parallel; reads of parts of them in the block cost nothing.

        All of it is in memory until the block ends, but for what goes `into` other memory.
        """
        starts, lengths = self._checked(offsets, nbytes)
        with self._staged(starts, starts + lengths, into):
            yield

    def check_size(self) -> None:
        # Every answer is of the version that was opened.
        self._check_open()

    def close(self) -> None:
        self._object = None
        state = self._room.state()
        with state.lock:
            state.kept.clear(self._owner)

    def _check_open(self) -> None:
        if self._object is None:
            raise self._closed_error()

    def _checked(self, offsets: Offsets, nbytes: int | Offsets) -> tuple[Offsets, Offsets]:
        self._check_open()
        starts, lengths = as_ranges(offsets, nbytes)
        self._check_ranges(starts, lengths)
        return starts, lengths

    def _covers(self) -> list[Cover]:
        """The head, and what the blocks that this thread is in have staged: outermost first."""
        found: list[Cover] | None = getattr(self._local, "covers", None)
        if found is None:
            found = self._local.covers = [Cover([self._head])]
        return found

    @contextmanager
    def _staged(self, starts: Offsets, stops: Offsets, into: Sequence[memoryview] = ()) -> Iterator[None]:
        covers = self._covers()
        near = covers[-1]
        places = near.places(starts, stops)
        for place, start, target in zip(places, starts.tolist(), into, strict=False):
            if place >= 0:
                copy_bytes(near.pieces[place].read(start, start + len(target)), target)
        far = (np.array(places, np.int64) < 0) & (stops > starts)
        if not far.any():
            yield
            return
        pieces = self._collect(starts[far], stops[far], list(compress(into, far)))
        covers.append(Cover([piece for piece in pieces if piece.memory is not None] + near.pieces))
        try:
            yield
        finally:
            covers.pop()
            self._let_go(pieces)

    def _collect(self, starts: Offsets, stops: Offsets, into: Sequence[memoryview]) -> list[Piece]:
        """Pieces around all of the ranges, there; the caller lets them go."""
        while True:
            call = _Call()
            try:
                try:
                    self._plan(call, starts, stops, into)
                    call.collect()
                except BaseException:
                    call.cancel()  # and again below: a second interrupt may have come in between
                    raise
            except BaseException as error:
                others = self._give_up(call)
                self._check_open()  # whoever closed it has cancelled what was under way
                # What went wrong in the background may go right now, and an error now is one of this read.
                if others and isinstance(error, Exception):
                    continue
                raise
            return call.pieces

    @signals_later()
    def _give_up(self, call: _Call) -> bool:
        """End a call that went wrong; whether that was by what somebody else had asked for."""
        call.cancel()
        fresh, failed = set(call.fresh), {piece for piece in call.pieces if piece.failed()}
        state = self._room.state()
        with state.lock:
            for piece in fresh | failed:
                state.kept.drop(piece)
        self._let_go(call.pieces)
        return bool(failed - fresh)

    def _let_go(self, pieces: list[Piece]) -> None:
        state = self._room.state()
        with state.lock:
            for piece in pieces:
                piece.users -= 1
                if piece.parts and not piece.users:
                    piece.cancel()
            state.kept.shrink()

    @signals_later()  # a pool that is interrupted while it starts threads starts none any more
    def _plan(
        self, call: _Call, starts: Offsets, stops: Offsets, into: Sequence[memoryview] = (), *, background: bool = False
    ) -> None:
        """Find what is kept, and have threads ask for the rest. No range is empty."""
        state = self._room.state()
        with state.lock:
            found, missing = self._find(state.kept, starts, stops)
            for low, high in self._runs(starts[missing], stops[missing]):
                call.fresh.append(Piece(low, high, None, self._owner))
            call.requests.extend(each for piece in call.fresh for each in self._requests(piece, call.deliveries))
            for piece in call.fresh:
                state.kept.add(piece)
            for piece in found + call.fresh if not background else ():
                # In this order: where memory runs out, nobody takes back what was not counted, which is another's.
                piece.users += 1
                call.pieces.append(piece)
                state.kept.touch(piece)
            state.kept.shrink()
            shared = {piece for piece in call.fresh if piece.kept}.union(found)
        if into:
            call.deliveries |= _deliveries(call.pieces, shared, starts, stops, into)
        helpers = min(len(call.requests), self._at_a_time()) - (not background)
        if helpers > 0 and not start_requests(call.requests, helpers, self._remote.max_requests) and background:
            call.cancel()  # a hint, which nobody can follow

    def _plan_ahead(self, starts: Offsets, stops: Offsets) -> None:
        """Have threads ask for what nobody waits for yet."""
        call = _Call()
        try:
            self._plan(call, starts, stops, background=True)
        except BaseException:
            call.cancel()  # or who finds the pieces later would wait for ever
            raise

    def _find(self, kept: Kept, starts: Offsets, stops: Offsets) -> tuple[list[Piece], NDArray[np.bool_]]:
        """(pieces that are kept or under way, which of the ranges have none); what failed is kept no longer."""
        while True:
            cover = kept.cover(self._owner)
            places = np.array(cover.places(starts, stops), np.int64)
            found = [cover.pieces[place] for place in distinct(places[places >= 0]).tolist()]
            failed = [piece for piece in found if piece.failed()]
            if not failed:
                return found, places < 0
            for piece in failed:
                kept.drop(piece)

    def _at_a_time(self) -> int:
        most = self._remote.max_requests
        return min(most, _FEW_REQUESTS) if self._fastest < _QUICK_SECONDS else most

    def _runs(self, starts: Offsets, stops: Offsets) -> list[tuple[int, int]]:
        if self._cache is not None:
            starts, stops = align(starts, stops, BLOCK_NBYTES, self.size)
        runs = coalesce(starts, stops, self._remote.max_gap_nbytes)
        return list(zip(runs[0].tolist(), runs[1].tolist(), strict=True))

    def _requests(self, piece: Piece, deliveries: Mapping[Piece, Delivery]) -> list[Request]:
        """What brings a piece: one request, or parts of the memory that it has now."""
        most = self._remote.max_request_nbytes // BLOCK_NBYTES * BLOCK_NBYTES
        if piece.nbytes > most:
            piece.memory = np.empty(piece.nbytes, np.uint8).data
        for low, high in cuts(piece.start, piece.stop, most):
            if piece.memory is None:
                bring = partial(self._bring, piece, deliveries)
            else:
                bring = partial(self._bring_part, low, piece.memory[low - piece.start : high - piece.start])
            piece.parts.append(Request(bring))
        return piece.parts

    def _bring(self, piece: Piece, deliveries: Mapping[Piece, Delivery]) -> None:
        piece.memory = self._get(piece.start, piece.stop)
        if piece in deliveries:
            deliveries[piece].make()

    def _bring_part(self, start: int, target: memoryview) -> None:
        copy_bytes(self._get(start, start + len(target)), target)

    def _get(self, start: int, stop: int) -> memoryview:
        """Bytes `[start, stop)` by one request, or from the cache and by as many as there are holes in it."""
        client = self._object
        if client is None:
            raise self._closed_error()
        cache = self._cache
        if cache is None:
            return self._timed(client, start, stop)
        data = memoryview(bytearray(stop - start))
        for low, high in self._holes(cache, start, stop, data):
            piece = self._timed(client, low, high)
            copy_bytes(piece, data[low - start : high - start])
            for at, end in cuts(low, high, BLOCK_NBYTES):
                cache.put(at // BLOCK_NBYTES, piece[at - low : end - low])
        return data

    def _timed(self, client: RemoteObject, start: int, stop: int) -> memoryview:
        """A request, and note how long the fastest takes: the others wait for each other as well.

        It creeps up, so that what was fast once is not the measure for ever. Threads may lose each other's: a hint.
        """
        began = time.perf_counter()
        data = client.get(start, stop, self._version)[0]
        self._fastest = min(time.perf_counter() - began, self._fastest * 1.01)
        return data

    def _holes(self, cache: BlockCache, start: int, stop: int, data: memoryview) -> list[tuple[int, int]]:
        """Fill in the blocks that the cache has, and say where the others are, neighbours together."""
        holes: list[tuple[int, int]] = []
        for low, high in cuts(start, stop, BLOCK_NBYTES):
            block = cache.get(low // BLOCK_NBYTES, high - low)
            if block is not None:
                data[low - start : high - start] = block
            elif holes and holes[-1][1] == low:
                holes[-1] = holes[-1][0], high
            else:
                holes.append((low, high))
        return holes

    def _read_ahead(self, low: int, high: int) -> tuple[Offsets, Offsets]:
        """The whole step around a read, which the next reads need as well; those behind it come meanwhile."""
        step = self._remote.max_request_nbytes
        starts, stops = align(np.array([low]), np.array([high]), step, self.size)
        following = np.arange(int(stops[0]), min(int(stops[0]) + _AHEAD * step, self.size), step)
        for start in following.tolist():
            self._plan_ahead(np.array([start]), np.array([min(start + step, self.size)]))
        return starts, stops


def _read_head(client: RemoteObject) -> tuple[memoryview, Version]:
    try:
        head, version = client.get(0, OPENING_NBYTES, None)
        if version.size > MAX_FILE_NBYTES:
            raise LimitError(f"{client.url}: the server says that it has {version.size} bytes, which no file can have")
        return head, version
    except RemoteError as error:
        # An object without bytes has no range to give. Who did not answer after some tries is not asked again as often.
        found = None
        if _TRIED_AGAIN not in str(error):
            with suppress(RemoteError, PermissionError):
                found = client.look()
        if found is None or found.size:
            raise
        return memoryview(b""), found


def _deliveries(
    pieces: Iterable[Piece], shared: set[Piece], starts: Offsets, stops: Offsets, into: Sequence[memoryview]
) -> dict[Piece, Delivery]:
    """What of each piece goes where: the first ranges `into` memory, the others are read from the piece later."""
    cover = Cover(pieces)
    places = cover.places(starts, stops)
    read_later = {cover.pieces[place] for place in places[len(into) :]} | shared
    found: dict[Piece, Delivery] = {}
    for place, start, target in zip(places, starts.tolist(), into, strict=False):
        piece = cover.pieces[place]
        if piece not in found:
            found[piece] = Delivery(piece, last=piece not in read_later)
        found[piece].add(start, start + len(target), target)
    return found


def _steps(ends: Offsets) -> Iterator[tuple[int, int]]:
    """Runs of ranges that have about `_STEP_NBYTES` together; `ends` are the sums of their lengths."""
    first = 0
    while first < len(ends):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + _STEP_NBYTES, "right")))
        yield first, last
        first = last
