"""Rows behind a codec: each chunk is proven, then decoded; codecs of later releases; what all ways of reading share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from chunkstore._format import codec
from chunkstore._format.decode import BatchDecoder, batch_decoder
from chunkstore._format.field_index import FieldIndex
from chunkstore._format.lookup import distinct
from chunkstore._format.section import join_ranges
from chunkstore._read.batch import Positions, empty_items, items_of, target_of
from chunkstore._read.checked import Checker
from chunkstore._read.ragged import Ragged, only_row, read_only, row_offsets
from chunkstore._storage import platform
from chunkstore._storage.buffers import byte_view
from chunkstore._storage.source import Source
from chunkstore.errors import CorruptError, MissingExtraError, UnsupportedFeatureError

_FEW_ROWS: Final = 2  # looking at heads together costs 60 µs, whatever their number
_MOST_THREADS: Final = 4
_THREADED_NBYTES: Final = 256 << 10  # decoded; below it starting a thread, 60 µs, is not worth it
_THREADED_ROW_NBYTES: Final = 32 << 10  # on average; shorter rows have our threads wait for the GIL more than decode
_PARTS: Final = 4  # for each thread, so that all end at about the same time
_PIECE_NBYTES: Final = 64 << 20


class StoredRows:
    """What all ways of reading a field of one container share."""

    def __init__(self, index: FieldIndex, source: Source, checker: Checker) -> None:
        self.field = index.field
        self.index = index
        self.checker = checker
        self.source = source
        self.num_rows = int(index.shard_starts[-1])
        self._view = source.view(0, source.size)

    def target(self, num_rows: int, out: Any) -> Any:
        return target_of(self.field, num_rows, out)

    def hint(self, positions: Positions) -> None:
        self.checker.hint(positions)

    def needed(self, positions: Positions) -> tuple[Positions, Positions]:
        return join_ranges([self.index.rows(positions), self.checker.needed(positions)])

    def needed_first(self, positions: Positions) -> tuple[Positions, Positions]:
        return self.index.missing(positions)


class CodedRows(StoredRows):
    """Rows behind a codec: each chunk is proven, then decoded.

    A batch of more than 256 KiB is decoded in up to four threads, which live as long as the batch.
    """

    def __init__(self, index: FieldIndex, source: Source, checker: Checker, dictionary: Callable[[], bytes]) -> None:
        super().__init__(index, source, checker)
        self._load_dictionary = dictionary
        self._dictionary: bytes | None = None
        self._decoder: BatchDecoder | None = None
        self._ordered: memoryview | None = None

    def target(self, num_rows: int, out: Any) -> Any:
        # Memory comes later: sizes in the index may claim anything.
        return None if out is None else super().target(num_rows, out)

    def batch(self, positions: Positions, target: Any) -> NDArray[Any] | Ragged:
        return self._read(positions, target, self._view)

    def _read(self, positions: Positions, target: Any, view: memoryview | None) -> NDArray[Any] | Ragged:
        field, index = self.field, self.index
        counts = index.counts(positions) if field.ragged else np.ones(len(positions), np.int64)
        shapes = index.shapes(positions, counts) if field.varying > 1 else None
        sizes = counts * field.item_nbytes
        if not self.source.distant:
            self.checker.prove(positions)
        offsets, nbytes = index.rows(positions)
        # Sizes in the index may claim anything: what no chunk can hold is found before there is an array for it.
        self._check_claims(positions, offsets, nbytes, sizes)
        if field.ragged:
            bounds = row_offsets(field, counts, 0)
            values = items_of(field, int(bounds[-1]), target)
            self._fill(_Chunks(positions, offsets, nbytes, sizes), values, view)
            return Ragged(values, bounds, shapes, field.is_string)
        rows = empty_items(field, len(positions)) if target is None else target
        self._fill(_Chunks(positions, offsets, nbytes, sizes), rows, view)
        return cast("NDArray[Any]", rows)

    def _check_claims(self, positions: Positions, offsets: Positions, nbytes: Positions, sizes: Positions) -> None:
        wrong = np.where(sizes > 0, ~self._batch_decoder().possible(nbytes, sizes), nbytes > 0)
        for place in np.flatnonzero(wrong).tolist():
            self.checker.prove(positions[place : place + 1])
            self._decode(*(int(column[place]) for column in (positions, offsets, nbytes, sizes)))  # says why

    def _batch_decoder(self) -> BatchDecoder:
        if self._decoder is None:
            self._dictionary = self._load_dictionary()
            try:
                self._decoder = batch_decoder(self.field.codec, self._dictionary)
            except MissingExtraError as error:
                where = f"{self.source.path}: field {self.field.name!r}"
                raise MissingExtraError(f"{where}: {error}, or leave it out: open(path, fields=[...])") from None
        return self._decoder

    def _fill(self, chunks: _Chunks, rows: NDArray[Any], view: memoryview | None) -> None:
        """Decode everything into the memory of the rows, in pieces whose chunks fit in memory twice."""
        if not rows.nbytes:
            return
        flat = np.frombuffer(byte_view(rows, writable=True), np.uint8)
        chunks = chunks.with_bytes()
        done = 0
        for start, stop in chunks.pieces():
            piece = chunks.part(start, stop)
            size = int(piece.sizes.sum())
            with self._fetched(piece.positions):
                self._fill_piece(piece, flat[done : done + size], view)
            done += size

    @contextmanager
    def _fetched(self, positions: Positions) -> Iterator[None]:
        """From far away, the chunks come by one call, and are proven once they are here."""
        if not self.source.distant:
            yield
            return
        with self.source.staged(*self.needed(positions)):
            self.checker.prove(positions)
            yield

    def _fill_piece(self, chunks: _Chunks, flat: NDArray[np.uint8], view: memoryview | None) -> None:
        decoder = self._batch_decoder()
        data, places = self._bytes_of(chunks, view)
        if len(places) <= _FEW_ROWS:
            self._decode_plainly(chunks, flat)
            return
        good = decoder.ordinary(data, places, chunks.nbytes, chunks.sizes)
        if not good.all() or not self._decode_fast(decoder, data, places, chunks, flat):
            self._decode_plainly(chunks, flat)

    def _bytes_of(self, chunks: _Chunks, view: memoryview | None) -> tuple[NDArray[np.uint8], Positions]:
        """(memory that holds the chunks, where in it each begins)."""
        if view is not None:
            return np.frombuffer(view, np.uint8), chunks.offsets
        data = np.empty(int(chunks.nbytes.sum()), np.uint8)
        self.source.read_scattered(chunks.offsets, chunks.nbytes, data)
        return data, np.cumsum(chunks.nbytes) - chunks.nbytes

    def _decode_fast(
        self,
        decoder: BatchDecoder,
        data: NDArray[np.uint8],
        places: Positions,
        chunks: _Chunks,
        flat: NDArray[np.uint8],
    ) -> bool:
        threads = min(platform.num_processors(), _MOST_THREADS, len(places)) if len(flat) >= _THREADED_NBYTES else 1
        if decoder.in_c(chunks.sizes) or threads == 1 or len(flat) < _THREADED_ROW_NBYTES * len(places):
            return decoder.decode(data, places, chunks.nbytes, chunks.sizes, flat, threads)
        ends = np.cumsum(chunks.sizes)
        cuts = np.searchsorted(ends, np.arange(1, _PARTS * threads) * (len(flat) // (_PARTS * threads)), "right")
        bounds = distinct(np.concatenate([[0], cuts, [len(ends)]])).tolist()
        parts = iter(list(pairwise(bounds)))
        results: list[bool] = []

        def work() -> None:
            for start, stop in parts:
                row = flat[int(ends[start - 1]) if start else 0 : int(ends[stop - 1])]
                mine = slice(start, stop)
                results.append(decoder.decode(data, places[mine], chunks.nbytes[mine], chunks.sizes[mine], row, 1))

        run_together(work, threads)
        return len(results) == len(bounds) - 1 and all(results)

    def _decode_plainly(self, chunks: _Chunks, flat: NDArray[np.uint8]) -> None:
        at = 0
        columns = (chunks.positions, chunks.offsets, chunks.nbytes, chunks.sizes)
        for position, offset, nbytes, size in zip(*(column.tolist() for column in columns), strict=True):
            flat.data[at : at + size] = self._decode(position, offset, nbytes, size)
            at += size

    def _decode(self, position: int, offset: int, nbytes: int, row_nbytes: int) -> bytes:
        if self._dictionary is None:
            self._dictionary = self._load_dictionary()
        view = self._view
        chunk = memoryview(self.source.read(offset, nbytes)) if view is None else view[offset : offset + nbytes]
        try:
            return codec.decode(self.field.codec, chunk, row_nbytes, self._dictionary)
        except CorruptError as error:
            where = f"{self.source.path}: sample {position}, field {self.field.name!r}"
            raise CorruptError(
                f"{where}, bytes [{offset}, {offset + nbytes}): {error}, although the checksum is right. "
                "Another release may have written it wrongly: make the container anew."
            ) from None

    def run(self, start: int, stop: int, target: Any) -> NDArray[Any] | Ragged:
        positions = np.arange(start, stop)
        if self._view is not None and self._ordered is None:
            self._ordered = self.source.sequential_view(0, self.source.size)
        return self._read(positions, target, self._ordered)

    def getter(self) -> Callable[[int], Any]:
        return self._row

    def _row(self, position: int) -> Any:
        found = self.batch(np.array([position]), None)
        if isinstance(found, Ragged):
            return only_row(found, position, self.source.path, self.field)
        found.flags.writeable = False
        return found[0, ...]

    def column(self) -> NDArray[Any] | Ragged:
        return read_only(self.run(0, self.num_rows, None))


class UnknownRows(StoredRows):
    """A field whose codec this release does not know."""

    def _refuse(self, *_: Any) -> Any:
        raise UnsupportedFeatureError(
            f"{self.source.path}: field {self.field.name!r} has the codec {self.field.codec!r}, which this release "
            "does not know. Install a newer one, or leave the field out: open(path, fields=[...])."
        )

    target = batch = run = column = _refuse  # type: ignore[assignment]

    def getter(self) -> Callable[[int], Any]:
        return self._refuse

    def hint(self, positions: Positions) -> None:
        """Nothing: reading will say what is wrong."""

    def needed(self, positions: Positions) -> tuple[Positions, Positions]:
        """Nothing: reading will say what is wrong."""
        return positions[:0], positions[:0]

    needed_first = needed


@dataclass(frozen=True)
class _Chunks:
    """Chunks of rows: position, offset in the file, nbytes, and nbytes of the decoded row. All of shape (B,)."""

    positions: Positions
    offsets: Positions
    nbytes: Positions
    sizes: Positions

    def part(self, start: int, stop: int) -> _Chunks:
        columns = (self.positions, self.offsets, self.nbytes, self.sizes)
        return _Chunks(*(column[start:stop] for column in columns))

    def with_bytes(self) -> _Chunks:
        """Without rows that have no bytes; they have no chunks."""
        some = self.sizes > 0
        if some.all():
            return self
        return _Chunks(self.positions[some], self.offsets[some], self.nbytes[some], self.sizes[some])

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Runs of chunks of about `_PIECE_NBYTES`, decoded."""
        ends, start = np.cumsum(self.sizes), 0
        while start < len(ends):
            begin = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, begin + _PIECE_NBYTES, "right")))
            yield start, stop
            start = stop


def run_together(work: Callable[[], None], threads: int) -> None:
    """Run `work` in this thread and in others at a time; all have ended when this returns, also after an interrupt.

    Raises:
        BaseException: the first that one of them raised.
    """
    errors: list[BaseException] = []

    def guarded(ended: threading.Event | None = None) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised below, in the thread that asked
            errors.append(error)
        finally:
            if ended is not None:
                ended.set()

    started = []
    try:
        for _ in range(threads - 1):
            ended = threading.Event()
            thread = threading.Thread(target=guarded, args=(ended,), name="chunkstore-decode", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the interpreter is ending, or there are too many: this one does it alone
                break
            started.append((thread, ended))
        guarded()
    finally:
        for thread, ended in started:
            _wait(ended, errors)
            thread.join()
    if errors:
        raise errors[0]


def _wait(ended: threading.Event, errors: list[BaseException]) -> None:
    """Wait whatever comes: the thread writes into memory that is the caller's again afterwards.

    An event, since a `join` that is interrupted takes the thread for ended (CPython 3.11).
    """
    while not ended.is_set():
        try:
            ended.wait()
        except BaseException as error:  # noqa: BLE001 - an interrupt; raised when nobody works any more
            errors.append(error)
