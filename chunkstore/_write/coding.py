"""Fields whose chunks go through a codec: which options, which dictionary, and shards of rows -> chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Final

import numpy as np

from chunkstore._format.codec import RAW
from chunkstore._format.dtypes import element_nbytes
from chunkstore._format.encode import CodecOptions, CodecSpec, Encoder, parse_codec, train_dictionary
from chunkstore._format.lookup import Ints
from chunkstore._format.schema import Field
from chunkstore.errors import SchemaError

SAMPLE_NBYTES: Final = 4 << 20  # of rows that a dictionary is trained on
_PIECE_NBYTES: Final = 2 << 20  # of rows that one thread encodes at once


def choose_codecs(
    fields: Sequence[Field], spec: CodecSpec, *, fixed: bool = False
) -> tuple[tuple[Field, ...], list[CodecOptions]]:
    """The codec of each field, from what the field says and what was asked for.

    Args:
        fields: of the schema to be, or of the container that is appended to.
        spec: what was asked for; without `auto`.
        fixed: the codecs of the fields cannot change, only their options.
    Returns:
        (the fields with their codecs, the options of each).
    Raises:
        SchemaError: an unknown codec, one that contradicts the field, or a field that does not exist.
    """
    spec.check_names([field.name for field in fields])
    options = [_options(field, spec, fixed) for field in fields]
    chosen = (f if f.codec == o.name else replace(f, codec=o.name) for f, o in zip(fields, options, strict=True))
    return tuple(chosen), options


def _options(field: Field, spec: CodecSpec, fixed: bool) -> CodecOptions:
    try:
        own = parse_codec(field.codec)
    except ValueError as error:
        raise SchemaError(f"field {field.name!r}: {error}") from None
    if str(field.codec) != own.name:
        raise SchemaError(
            f"field {field.name!r}: a field has the name of a codec, {own.name!r}; options go into codec="
        )
    asked = spec.of(field.name, field.row_nbytes) if spec.says(field.name, field.row_nbytes) else own
    assert asked is not None
    if asked.name == own.name or (own.name == RAW and not fixed):
        return asked
    if field.name not in spec.by_field:
        return own  # what is said of all fields does not count for one that has its codec
    raise SchemaError(
        f"field {field.name!r}: codec {str(asked)!r} was asked for, and the field has {own.name!r}. "
        "`chunkstore repack --codec` changes the codec of a container"
    )


class FieldCoder:
    """Makes chunks of one field, in several threads.

    Attributes:
        options: of its codec, which is not raw.
        dictionary: empty where there is none; None as long as one is to be trained.
    """

    def __init__(self, field: Field, options: CodecOptions, dictionary: bytes | None = None) -> None:
        self.options = options
        self.dictionary = dictionary if options.dictionary or dictionary else b""
        self._width = element_nbytes(field.dtype)
        self._spare: list[Encoder] = []
        if self.dictionary is not None:
            self._spare.append(self._encoder())  # a package that is missing is said now

    def _encoder(self) -> Encoder:
        return Encoder(self.options, self._width, self.dictionary or b"")

    def train(self, rows: memoryview, ends: Ints) -> None:
        """Make the dictionary, unless there is one, or none is wanted."""
        if self.dictionary is None:
            starts = np.append(0, ends[:-1])
            chosen = sample_places(ends - starts).tolist()
            samples = [rows[int(starts[place]) : int(ends[place])] for place in chosen]
            self.dictionary = train_dictionary(samples, self.options)

    def encode(self, rows: memoryview, ends: Ints, pool: Executor | None) -> tuple[list[bytes], Ints]:
        """Chunks of rows, the same for any number of threads.

        Args:
            rows: back to back.
            ends: where each row ends.
            pool: threads to use; None works in this one.
        Returns:
            (chunks back to back in pieces, nbytes of each chunk).
        """
        pieces = list(_pieces(rows, ends))
        found = list(map(self._piece, pieces)) if pool is None else list(pool.map(self._piece, pieces))
        sizes = [part for _, part in found]
        return [data for data, _ in found], np.concatenate(sizes) if sizes else np.zeros(0, np.int64)

    def _piece(self, piece: tuple[memoryview, Ints]) -> tuple[bytes, Ints]:
        try:
            encoder = self._spare.pop()
        except IndexError:
            encoder = self._encoder()
        try:
            return encoder.encode(*piece)
        finally:
            self._spare.append(encoder)


def sample_places(row_nbytes: Ints) -> Ints:
    """Rows for a sample of about `SAMPLE_NBYTES`, evenly spaced; the same for the same sizes.

    Args:
        row_nbytes: shape (rows,).
    """
    total = int(row_nbytes.sum())
    count = len(row_nbytes) if total <= SAMPLE_NBYTES else max(1, len(row_nbytes) * SAMPLE_NBYTES // total)
    return np.arange(count, dtype=np.int64) * len(row_nbytes) // max(count, 1)


def _pieces(rows: memoryview, ends: Ints) -> Iterator[tuple[memoryview, Ints]]:
    """Runs of whole rows of about `_PIECE_NBYTES`, each with its own ends."""
    first = 0
    while first < len(ends):
        begin = int(ends[first - 1]) if first else 0
        stop = max(first + 1, int(np.searchsorted(ends, begin + _PIECE_NBYTES, "right")))
        yield rows[begin : int(ends[stop - 1])], ends[first:stop] - begin
        first = stop
