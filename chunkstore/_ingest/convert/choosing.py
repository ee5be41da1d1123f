"""Which codec each field of a conversion gets, its dictionary, and what a sample says of both.

A sample is the same for the same sources, and what is chosen depends on the bytes of the sample alone, not on how fast
this machine is: the container must come out the same everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

import numpy as np

from chunkstore._format.codec import RAW, decode
from chunkstore._format.dtypes import element_nbytes
from chunkstore._format.encode import CodecOptions, CodecSpec, Encoder, parse_codec, train_dictionary
from chunkstore._format.schema import Field
from chunkstore._ingest.convert.coded import Coding
from chunkstore._ingest.plan.plan import Plan
from chunkstore._ingest.plan.read import PlanReader
from chunkstore._write.coding import sample_places
from chunkstore.errors import IngestError, MissingExtraError, SchemaError

# In the order of how fast they decode. Bit shuffling pays for numbers that vary little, also of one byte.
_CANDIDATES: Final = ("blosc2:lz4,5,bitshuffle", "blosc2:zstd,5,bitshuffle", "blosc2:zstd,5,shuffle", "zstd:3")
_WITH_DICTIONARY: Final = "zstd:3,dict"
_SHORT_NBYTES: Final = 4096  # rows below it, on average, may have more in common with each other than within
_WORTH: Final = 1.25  # times smaller, or the field stays raw: a raw row is read several times as fast
_MUCH_BETTER: Final = 1.1  # a slower codec must be so much smaller than a faster one
_TIMED: Final = 3


@dataclass(frozen=True)
class Trial:
    """What a codec did to a sample.

    Attributes:
        options: the codec.
        ratio: bytes of rows for each byte of chunks.
        rate: bytes of rows a second that one thread decodes here.
    """

    options: CodecOptions
    ratio: float
    rate: float

    def __str__(self) -> str:
        return f"{self.options} {self.ratio:.2f} at {self.rate / 1e6:,.0f} MB/s"


def choose_codings(plan: Plan, spec: CodecSpec) -> tuple[Plan, dict[int, Coding], tuple[str, ...]]:
    """Decide for each field.

    Args:
        plan: of the conversion.
        spec: what was asked for.
    Returns:
        (the plan with the codecs in its fields, the codings of the fields that are not raw by their numbers, what was
        chosen by `auto`, and why).
    Raises:
        IngestError: a field does not exist.
        MissingExtraError: the package of a codec that was asked for is not installed.
        Deviation: the plan is uniform and a file of the sample differs.
    """
    try:
        spec.check_names([field.name for field in plan.fields])
    except SchemaError as error:
        raise IngestError(f"{error}.") from None
    fields: list[Field] = []
    codings: dict[int, Coding] = {}
    texts: list[str] = []
    for number, field in enumerate(plan.fields):
        options = spec.of(field.name, field.row_nbytes)
        if options is None:
            options, text = _try_all(plan, number)
            texts.append(text)
        fields.append(replace(field, codec=options.name))
        if options.name != RAW:
            codings[number] = _coding(plan, number, options)
    return replace(plan, fields=tuple(fields)), codings, tuple(texts)


def _coding(plan: Plan, number: int, options: CodecOptions) -> Coding:
    sample = sample_rows(plan, number) if options.dictionary else []
    coding = Coding(options, train_dictionary(sample, options) if options.dictionary else b"")
    coding.encoder(plan.fields[number])  # a package that is missing is said before any work
    return coding


def estimate_saved(plan: Plan, codings: Mapping[int, Coding]) -> int:
    """By how many bytes codecs make the fields smaller, from a sample."""
    saved = 0.0
    for number, coding in codings.items():
        rows = sample_rows(plan, number)
        nbytes = sum(map(len, rows))
        if nbytes:  # of rows that are all empty nothing can be learnt
            chunks = _encode(rows, coding.encoder(plan.fields[number]))
            saved += plan.nbytes(number) * (1 - sum(map(len, chunks)) / nbytes)
    return int(saved)


def sample_rows(plan: Plan, number: int) -> list[bytes]:
    """Rows of a field, about 4 MiB, evenly spaced; the first ones where a source can only be read forward."""
    sizes = plan.row_sizes(number)
    places = sample_places(sizes).tolist()
    with PlanReader(plan) as rows:
        if plan.columns[number].forward_only():
            bounds = [0, *np.cumsum(sizes[: len(places)]).tolist()]
            whole = memoryview(bytearray(bounds[-1]))
            rows.read(number, 0, len(places), whole)
            return [bytes(whole[start:stop]) for start, stop in pairwise(bounds)]
        found = [bytearray(size) for size in sizes[places].tolist()]
        for place, row in zip(places, found, strict=True):
            if row:  # there may be millions that are empty
                rows.read(number, place, place + 1, row)
        return [bytes(row) for row in found]


def _try_all(plan: Plan, number: int) -> tuple[CodecOptions, str]:
    """(the codec that a sample speaks for, what it was found by)."""
    field = plan.fields[number]
    rows = sample_rows(plan, number)
    nbytes = sum(map(len, rows))
    if not nbytes:
        return CodecOptions(RAW), f"codec of {field.name!r}: raw, since its rows have no bytes"
    trials, missing = _trials(field, rows)
    if not trials:
        return CodecOptions(RAW), f"codec of {field.name!r}: raw, since no other could be tried: {missing}"
    best = max(trial.ratio for trial in trials)
    chosen = next((t for t in trials if t.ratio >= _WORTH and t.ratio * _MUCH_BETTER >= best), None)
    remark = f" ({missing})" if missing else ""
    sample = f"of {len(rows):,} rows, {nbytes:,} bytes: {'; '.join(map(str, trials))}{remark}"
    if chosen is None:
        text = f"codec of {field.name!r}: raw, since no other makes it {_WORTH} times smaller; {sample}"
        return CodecOptions(RAW), text
    why = "the smallest" if chosen.ratio == best else "the fastest of those nearly as small"
    return chosen.options, f"codec of {field.name!r}: {chosen.options}, {why}; {sample}"


def _trials(field: Field, rows: Sequence[bytes]) -> tuple[list[Trial], str]:
    """Each codec on the sample, in the order of speed; and which package is missing."""
    short = len(rows) > 1 and sum(map(len, rows)) < _SHORT_NBYTES * len(rows)
    found, missing = [], ""
    for text in (*_CANDIDATES, _WITH_DICTIONARY) if short else _CANDIDATES:
        try:
            found.append(_try_one(field, rows, parse_codec(text)))
        except MissingExtraError as error:
            missing = str(error)
    return found, missing


def _try_one(field: Field, rows: Sequence[bytes], options: CodecOptions) -> Trial:
    """A dictionary is tried on other rows than it was trained on, or it would look better than it is."""
    tested = rows[1::2] if options.dictionary else rows
    dictionary = train_dictionary(rows[::2], options) if options.dictionary else b""
    chunks = _encode(tested, Encoder(options, element_nbytes(field.dtype), dictionary))
    nbytes = sum(map(len, tested))
    seconds = min(_decode_seconds(options, tested, chunks, dictionary) for _ in range(_TIMED))
    return Trial(options, nbytes / max(sum(map(len, chunks)), 1), nbytes / max(seconds, 1e-9))


def _encode(rows: Sequence[bytes], encoder: Encoder) -> list[bytes]:
    return [encoder.encode(memoryview(row), np.array([len(row)]))[0] for row in rows]


def _decode_seconds(options: CodecOptions, rows: Sequence[bytes], chunks: Sequence[bytes], dictionary: bytes) -> float:
    started = time.perf_counter()
    for row, chunk in zip(rows, chunks, strict=True):
        decode(options.name, memoryview(chunk), len(row), dictionary)
    return time.perf_counter() - started
