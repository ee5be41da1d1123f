"""How the bytes of a row become its chunk (spec section 11), and how a user says so: `zstd:5`, `blosc2:lz4,9`.

The options here decide how small and how fast a chunk is; none of them is needed to decode it, so none is stored.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, TypeAlias

import numpy as np

from chunkstore._format.codec import RAW, import_codec
from chunkstore._format.lookup import Ints
from chunkstore.errors import SchemaError

CodecArg: TypeAlias = "str | Sequence[str] | Mapping[str, str]"
"""`"zstd"` for every field, `["image=zstd:5"]` or `{"image": "zstd:5"}`."""

AUTO: Final = "auto"
_ALLOWED: Final = (
    "raw, zlib[:LEVEL], zstd[:LEVEL,dict], blosc2[:CODEC,LEVEL,FILTER] with the codecs blosclz, lz4, lz4hc, "
    "zlib, zstd and the filters shuffle, bitshuffle, nofilter; each option behind the colon can be left out"
)
_LEVELS: Final = {"zlib": (0, 9), "zstd": (-7, 22), "blosc2": (0, 9)}
_DEFAULT_LEVELS: Final = {"zlib": 6, "zstd": 3, "blosc2": 5}
_COMPRESSORS: Final = ("blosclz", "lz4", "lz4hc", "zlib", "zstd")
_FILTERS: Final = ("shuffle", "bitshuffle", "nofilter")
_SMALL_NBYTES: Final = 64  # a frame alone is about 10 bytes: rows below that do not get smaller one by one
# Blosc2 would choose by the caches of the processor at hand, and other machines would write other bytes.
_BLOSC_BLOCK_NBYTES: Final = 256 << 10
_BLOSC_MOST_NBYTES: Final = (1 << 31) - 33  # its sizes are int32, its header has 32 bytes
_BLOSC_WIDEST: Final = 255
_DICTIONARY_NBYTES: Final = 112 << 10
_SAMPLES_PER_DICTIONARY: Final = 8  # times as many bytes of samples, or the dictionary is shorter
_FEWEST_SAMPLES: Final = 16


@dataclass(frozen=True)
class CodecOptions:
    """A codec and what its encoder is told.

    Attributes:
        name: as the schema has it.
        level: of effort; None for raw.
        dictionary: zstd: train a dictionary on a sample of the field.
        compressor, filter: of blosc2.
    """

    name: str
    level: int | None = None
    dictionary: bool = False
    compressor: str = ""
    filter: str = ""

    def __str__(self) -> str:
        options = [self.compressor, str(self.level) if self.level is not None else "", self.filter]
        text = ",".join([*filter(None, options), *(["dict"] if self.dictionary else [])])
        return f"{self.name}:{text}" if text else self.name


def parse_codec(text: str) -> CodecOptions:
    """Options from a text such as `zstd:5`.

    Raises:
        ValueError: it is none; the message says what is allowed.
    """
    name, colon, rest = str(text).partition(":")
    options = rest.split(",") if colon else []
    try:
        if name == RAW and not colon:
            return CodecOptions(RAW)
        if name == "zlib" and len(options) <= 1:
            return CodecOptions(name, _level(name, options))
        if name == "zstd":
            return _parse_zstd(options)
        if name == "blosc2":
            return _parse_blosc2(options)
    except ValueError as error:
        raise ValueError(f"codec {text!r}: {error}; expected {_ALLOWED}") from None
    raise ValueError(f"codec {text!r}: expected {_ALLOWED}")


def _parse_zstd(options: list[str]) -> CodecOptions:
    dictionary = options[-1:] == ["dict"]
    options = options[:-1] if dictionary else options
    if len(options) > 1:
        raise ValueError(f"{options[1]!r} is no option of zstd")
    return CodecOptions("zstd", _level("zstd", options), dictionary)


def _parse_blosc2(options: list[str]) -> CodecOptions:
    rest = list(options)
    compressor = rest.pop(0) if rest and rest[0] in _COMPRESSORS else "zstd"
    shuffle = rest.pop() if rest and rest[-1] in _FILTERS else "shuffle"
    return CodecOptions("blosc2", _level("blosc2", rest and [",".join(rest)]), False, compressor, shuffle)


def _level(name: str, options: list[str]) -> int:
    if not options:
        return _DEFAULT_LEVELS[name]
    low, high = _LEVELS[name]
    noun = "codec or filter, and no level" if name == "blosc2" else "level"
    digits = options[0].removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or not low <= int(options[0]) <= high:
        raise ValueError(f"{options[0]!r} is no {noun} from {low} to {high}")
    return int(options[0])


@dataclass(frozen=True)
class CodecSpec:
    """What was asked for: codecs of fields, and one for all others.

    Attributes:
        by_field: options, or None for `auto`.
        default: the same for all other fields; raw if nothing was said.
        said: whether anything was said of all other fields.
    """

    by_field: dict[str, CodecOptions | None]
    default: CodecOptions | None = CodecOptions(RAW)
    said: bool = False

    def check_names(self, names: Sequence[str]) -> None:
        """Raise SchemaError if a field is named that does not exist."""
        present = set(names)
        for name in self.by_field:
            if name not in present:
                known = ", ".join(map(repr, names[:20]))
                raise SchemaError(f"codec: there is no field {name!r}; the fields are {known}")

    def of(self, name: str, row_nbytes: int | None) -> CodecOptions | None:
        """Options for a field; None where `auto` was asked for.

        Args:
            name: of the field.
            row_nbytes: of each row, None where they differ. What is said of all fields does not count for short rows.
        """
        if name in self.by_field:
            return self.by_field[name]
        return self.default if self.says(name, row_nbytes) else CodecOptions(RAW)

    def says(self, name: str, row_nbytes: int | None) -> bool:
        """Whether anything was asked for that counts for this field."""
        short = row_nbytes is not None and row_nbytes < _SMALL_NBYTES and self.default != CodecOptions(RAW)
        return name in self.by_field or (self.said and not short)


def parse_codecs(argument: CodecArg | None, *, auto: bool = False) -> CodecSpec:
    """What a user gives as `codec=`: a text, texts such as `FIELD=CODEC`, or a mapping.

    Args:
        argument: None for nothing.
        auto: whether `auto` is a codec here.
    Raises:
        ValueError: not as said, or a field twice.
    """
    if argument is None:
        return CodecSpec({})

    def options(text: str) -> CodecOptions | None:
        if text == AUTO and not auto:
            raise ValueError(f"codec {text!r}: only convert tries a sample; expected {_ALLOWED}")
        return None if text == AUTO else parse_codec(text)

    if isinstance(argument, Mapping):
        return CodecSpec({name: options(text) for name, text in argument.items()})
    by_field: dict[str, CodecOptions | None] = {}
    alone: list[CodecOptions | None] = []
    for text in [argument] if isinstance(argument, str) else argument:
        name, equals, value = str(text).rpartition("=")
        if not equals:
            alone.append(options(text))
        elif not name or name in by_field:
            raise ValueError(f"codec {text!r}: expected FIELD=CODEC, each field once")
        else:
            by_field[name] = options(value)
    if len(alone) > 1:
        raise ValueError("codec: one without a field can be given once")
    return CodecSpec(by_field, alone[0], True) if alone else CodecSpec(by_field)


class Encoder:
    """Makes chunks of the rows of one field. One thread at a time; lets other threads run meanwhile.

    The chunk of a row depends on its bytes, the options, the dictionary and the release of the codec's package, and on
    nothing else: not on the rows before it, nor on this processor.

    Args:
        options: not raw.
        element_nbytes: what the filters of blosc2 take apart.
        dictionary: that of the field, or empty.
    Raises:
        MissingExtraError: the package of the codec is not installed.
    """

    def __init__(self, options: CodecOptions, element_nbytes: int, dictionary: bytes = b"") -> None:
        self._row = _ENCODERS[options.name](options, element_nbytes, dictionary)

    def encode(self, rows: memoryview, ends: Ints) -> tuple[bytes, Ints]:
        """Chunks of rows.

        Args:
            rows: back to back.
            ends: where each row ends.
        Returns:
            (the chunks back to back, nbytes of each); a row without bytes has a chunk without bytes.
        Raises:
            SchemaError: a row is longer than the codec takes.
        """
        bounds = pairwise([0, *ends.tolist()])
        chunks = [self._row(rows[start:stop]) if stop > start else b"" for start, stop in bounds]
        return b"".join(chunks), np.fromiter(map(len, chunks), np.int64, len(chunks))


RowEncoder: TypeAlias = Callable[[memoryview], bytes]


def _zlib(options: CodecOptions, element_nbytes: int, dictionary: bytes) -> RowEncoder:
    level = options.level if options.level is not None else -1
    return lambda row: zlib.compress(row, level)


def _zstd(options: CodecOptions, element_nbytes: int, dictionary: bytes) -> RowEncoder:
    zstandard = import_codec("zstd")
    shared = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
    # The container holds the dictionary, so a frame need not say which; its size saves the decoder a buffer.
    compressor = zstandard.ZstdCompressor(
        level=options.level, dict_data=shared, write_content_size=True, write_checksum=False, write_dict_id=False
    )
    encode: RowEncoder = compressor.compress
    return encode


def _blosc2(options: CodecOptions, element_nbytes: int, dictionary: bytes) -> RowEncoder:
    blosc2 = import_codec("blosc2")
    width = element_nbytes if element_nbytes <= _BLOSC_WIDEST else 1
    block = _BLOSC_BLOCK_NBYTES - _BLOSC_BLOCK_NBYTES % width
    # Shuffling elements of one byte changes nothing, and costs the decoder a third of its time.
    idle = width == 1 and options.filter == "shuffle"
    told = {
        "codec": blosc2.Codec[options.compressor.upper()],
        "clevel": options.level,
        "filters": [blosc2.Filter.NOFILTER if idle else blosc2.Filter[options.filter.upper()]],
        "filters_meta": [0],
        "typesize": width,
        "nthreads": 1,
    }

    def encode(row: memoryview) -> bytes:
        if len(row) > _BLOSC_MOST_NBYTES:
            raise SchemaError(f"a row of {len(row)} bytes is longer than a Blosc2 chunk can be; take zstd")
        chunk: bytes = blosc2.compress2(row, blocksize=min(block, len(row)), **told)
        return chunk

    return encode


_ENCODERS: Final[dict[str, Callable[[CodecOptions, int, bytes], RowEncoder]]] = {
    "zlib": _zlib,
    "zstd": _zstd,
    "blosc2": _blosc2,
}


def train_dictionary(samples: Sequence[bytes | memoryview], options: CodecOptions) -> bytes:
    """A dictionary for the rows of a field; the same samples give the same one. About a second.

    Args:
        samples: rows.
        options: of zstd.
    Returns:
        At most 112 KiB; empty where the samples are too few to learn from.
    """
    zstandard = import_codec("zstd")
    texts = [bytes(sample) for sample in samples if len(sample)]
    nbytes = min(_DICTIONARY_NBYTES, sum(map(len, texts)) // _SAMPLES_PER_DICTIONARY)
    if len(texts) < _FEWEST_SAMPLES or nbytes < 256:
        return b""
    try:
        found = zstandard.train_dictionary(nbytes, texts, level=options.level, threads=0)
    except zstandard.ZstdError:  # rows without anything in common
        return b""
    data: bytes = found.as_bytes()
    return data
