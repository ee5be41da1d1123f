"""Rows behind a codec: each chunk is proven, then decoded; and rows whose codec is of a later release."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from chunkstore._format import codec
from chunkstore._format.index import FieldIndex
from chunkstore._read.batch import Positions, checked_buffer, checked_out, empty_array, empty_rows
from chunkstore._read.checked import Checker
from chunkstore._read.ragged import Ragged, only_row, row_offsets
from chunkstore._storage.buffers import byte_view
from chunkstore._storage.source import Source
from chunkstore.errors import CorruptError, UnsupportedFeatureError


class CodedRows:
    """Rows behind a codec: each chunk is proven, then decoded."""

    def __init__(self, index: FieldIndex, source: Source, checker: Checker, dictionary: Callable[[], bytes]) -> None:
        self.field = index.field
        self.index = index
        self.checker = checker
        self.source = source
        self._load_dictionary = dictionary
        self._dictionary: bytes | None = None
        self._view = source.view(0, source.size)

    def target(self, num_rows: int, out: Any) -> Any:
        if out is None:
            return None
        if self.field.ragged:
            checked_buffer(self.field, out, 0)
            return out
        return checked_out(self.field, out, num_rows)

    def batch(self, positions: Positions, target: Any) -> NDArray[Any] | Ragged:
        field, index = self.field, self.index
        counts = index.counts(positions) if field.ragged else np.ones(len(positions), np.int64)
        shapes = index.shapes(positions, counts) if field.varying > 1 else None
        sizes = counts * field.item_nbytes
        self.checker.prove(positions)
        # Decoded before there is an array: sizes in the index may claim anything, a decoder gives what is there.
        chunks = [
            self._decode(*chunk)
            for chunk in zip(positions.tolist(), *self._chunks(positions), sizes.tolist(), strict=True)
        ]
        if not field.ragged:
            rows = empty_rows(field, len(positions)) if target is None else target
            _fill_flat(rows, chunks)
            return cast("NDArray[Any]", rows)
        offsets = row_offsets(field, counts, 0)
        shape = (int(offsets[-1]), *field.item_shape)
        values = empty_array(field, shape) if target is None else checked_buffer(field, target, shape[0])
        _fill_flat(values, chunks)
        return Ragged(values, offsets, shapes, field.is_string)

    def _chunks(self, positions: Positions) -> tuple[list[int], list[int]]:
        offsets, nbytes = self.index.rows(positions)
        return offsets.tolist(), nbytes.tolist()

    def _decode(self, position: int, offset: int, nbytes: int, row_nbytes: int) -> bytes:
        if self._dictionary is None:
            self._dictionary = self._load_dictionary()
        view = self._view
        chunk = memoryview(self.source.read(offset, nbytes)) if view is None else view[offset : offset + nbytes]
        try:
            if nbytes and not row_nbytes:  # spec section 11
                raise CorruptError(f"a row of 0 bytes has a chunk of {nbytes}")
            return codec.decode(self.field.codec, chunk, row_nbytes, self._dictionary)
        except CorruptError as error:
            where = f"{self.source.path}: sample {position}, field {self.field.name!r}"
            raise CorruptError(
                f"{where}, bytes [{offset}, {offset + nbytes}): {error}, although the checksum is right. "
                "Another release may have written it wrongly: make the container anew."
            ) from None

    def needed(self, positions: Positions) -> tuple[Positions, Positions]:
        rows, proofs = self.index.rows(positions), self.checker.needed(positions)
        return np.concatenate([rows[0], proofs[0]]), np.concatenate([rows[1], proofs[1]])

    def run(self, start: int, stop: int, target: Any) -> NDArray[Any] | Ragged:
        positions = np.arange(start, stop)
        with self.source.staged(*self.needed(positions)) if self.source.distant else nullcontext():
            return self.batch(positions, target)

    def getter(self) -> Callable[[int], Any]:
        return self._row

    def _row(self, position: int) -> Any:
        found = self.batch(np.array([position]), None)
        if isinstance(found, Ragged):
            return only_row(found, position, self.source.path, self.field)
        found.flags.writeable = False
        return found[0, ...]

    def column(self) -> NDArray[Any] | Ragged:
        whole = self.run(0, int(self.index.shard_starts[-1]), None)
        for array in (whole.values, whole.offsets) if isinstance(whole, Ragged) else (whole,):
            array.flags.writeable = False
        return whole

    def hint(self, positions: Positions) -> None:
        self.checker.hint(positions)


class UnknownRows:
    """A field whose codec this release does not know."""

    def __init__(self, index: FieldIndex, source: Source, checker: Checker) -> None:
        self.field = index.field
        self.index = index
        self.checker = checker
        self.source = source

    def _refuse(self, *_: Any) -> Any:
        raise UnsupportedFeatureError(
            f"{self.source.path}: field {self.field.name!r} has the codec {self.field.codec!r}, which this release "
            "does not know. Install a newer one, or leave the field out: open(path, fields=[...])."
        )

    target = batch = run = column = _refuse

    def getter(self) -> Callable[[int], Any]:
        return self._refuse

    def hint(self, positions: Positions) -> None:
        """Nothing: reading will say what is wrong."""

    def needed(self, positions: Positions) -> tuple[Positions, Positions]:
        """Nothing: reading will say what is wrong."""
        return positions[:0], positions[:0]


def _fill_flat(array: NDArray[Any], chunks: list[bytes]) -> None:
    flat = byte_view(array, writable=bool(array.nbytes))
    at = 0
    for chunk in chunks:
        flat[at : at + len(chunk)] = chunk
        at += len(chunk)
