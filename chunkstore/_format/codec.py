"""How the chunk of a row becomes its bytes (spec section 11).

Every decoder gets the number of bytes that the index promises and produces no more: a decompression bomb ends there.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any, Final

from chunkstore._importing import IMPORTING
from chunkstore.errors import CorruptError, MissingExtraError

RAW: Final = "raw"
WITHOUT_DICTIONARY: Final = (RAW, "zlib", "blosc2")
# No stream of ours unpacks to more than 2^15 times its size (zstd: a block of 4 bytes is 128 KiB), but for Blosc2,
# whose chunks of zeros have 32 bytes and unpack to less than 2 GiB.
_MOST_RATIO: Final = 1 << 16
_MOST_NBYTES: Final = 1 << 31
# Head of a Blosc2 chunk: 2 flags, 3 element, 4 nbytes, 8 block, 12 stored, 16 filters, 30 and 31 more flags.
BLOSC_HEAD_NBYTES: Final = 32
BLOSC_EXTENDED: Final = 0x05  # both set: the head has 32 bytes, and says which filters
BLOSC_COPIED: Final = 0x02
BLOSC_ONE_VALUE: Final = 0x70
BLOSC_FORMATS: Final = (0, 1, 3, 4)  # blosclz, lz4, zlib, zstd; what else there is are plug-ins
BLOSC_LAST_FILTER: Final = 4  # none, shuffle, bitshuffle, delta, trunc_prec; then come plug-ins
# Of the last byte: 1 a dictionary, 8 the rest is elsewhere, bits 4 to 6 a row of one value (4: none), 128 a plug-in.
BLOSC_REFUSED: Final = tuple(bool(flags & 0x89) or flags >> 4 & 7 > 3 for flags in range(256))
Decoder = Callable[[memoryview, int, bytes], bytes]


def decode(name: str, chunk: memoryview, nbytes: int, dictionary: bytes) -> bytes:
    """The bytes of a row from its chunk.

    Args:
        name: a codec of `CODECS`.
        chunk: the stored bytes, already proven by their sum.
        nbytes: how many bytes the row has.
        dictionary: that of the field, or empty.
    Raises:
        CorruptError: the decoder refused the chunk, or it holds more or fewer bytes.
        MissingExtraError: the package of this codec is not installed.
    """
    if nbytes == 0:
        if chunk.nbytes:
            raise CorruptError(f"a row of 0 bytes has a chunk of {chunk.nbytes}")
        return b""
    if name != RAW and nbytes > _MOST_NBYTES and nbytes > chunk.nbytes * _MOST_RATIO:
        raise CorruptError(f"{chunk.nbytes} bytes of {name} cannot hold the {nbytes} bytes that the index promises")
    row = CODECS[name](chunk, nbytes, dictionary)
    if len(row) != nbytes:
        raise CorruptError(f"the {name} chunk decodes to {len(row)} bytes, the index promises {nbytes}")
    return row


def _decode_raw(chunk: memoryview, nbytes: int, dictionary: bytes) -> bytes:
    return bytes(chunk)


def _decode_zlib(chunk: memoryview, nbytes: int, dictionary: bytes) -> bytes:
    decoder = zlib.decompressobj()
    try:
        row = decoder.decompress(chunk, nbytes + 1)
    except zlib.error as error:
        raise CorruptError(f"the zlib chunk cannot be decoded: {error}") from None
    if not decoder.eof or decoder.unused_data:
        raise CorruptError(f"the zlib chunk does not end after {nbytes} bytes")
    return row


def _decode_zstd(chunk: memoryview, nbytes: int, dictionary: bytes) -> bytes:
    zstandard = import_codec("zstd")
    # The frame may claim any size: it is held against ours before the decoder allocates.
    try:
        claimed = zstandard.frame_content_size(bytes(chunk[:18]))
        if claimed not in (-1, nbytes):
            raise CorruptError(f"the zstd frame claims {claimed} bytes, the index promises {nbytes}")
        shared = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
        decoder = zstandard.ZstdDecompressor(dict_data=shared)
        return bytes(decoder.decompress(chunk, max_output_size=nbytes, allow_extra_data=False))
    except zstandard.ZstdError as error:
        raise CorruptError(f"the zstd chunk cannot be decoded: {error}") from None


def _decode_blosc2(chunk: memoryview, nbytes: int, dictionary: bytes) -> bytes:
    blosc2 = import_codec("blosc2")
    # A copy: what is checked is what is decoded, whatever happens to the file meanwhile.
    data = bytes(chunk)
    _check_blosc2_head(data, nbytes)
    try:
        return bytes(blosc2.decompress2(data, nthreads=1))
    except (RuntimeError, ValueError) as error:
        raise CorruptError(f"the blosc2 chunk cannot be decoded: {error}") from None


def _check_blosc2_head(data: bytes, nbytes: int) -> None:
    """Refuse what the package would decode to bytes that are not in the chunk, or by code that is not its own.

    A chunk may say that its row is not initialized (which gives whatever the memory of this process held), that the
    rest of it is in another file, or that a plug-in decodes it.
    """
    if len(data) < BLOSC_HEAD_NBYTES:
        raise CorruptError(f"the blosc2 chunk has {len(data)} bytes, its head alone has {BLOSC_HEAD_NBYTES}")
    flags, width, claimed, block, stored = struct.unpack_from("<2xBBiii", data)
    if claimed != nbytes:
        raise CorruptError(f"the blosc2 chunk claims {claimed} bytes, the index promises {nbytes}")
    if stored != len(data):
        raise CorruptError(f"the blosc2 chunk says that it has {stored} bytes, and there are {len(data)}")
    # The package leaves the rest of a block as the memory was if it is not a whole number of elements.
    in_blocks = not (flags & BLOSC_COPIED or data[31] & BLOSC_ONE_VALUE)
    if width < 1 or (in_blocks and (block < width or block % width)):
        raise CorruptError(f"the blosc2 chunk has blocks of {block} bytes for elements of {width}")
    known = flags & BLOSC_EXTENDED == BLOSC_EXTENDED and flags >> 5 in BLOSC_FORMATS
    if not known or data[30] or BLOSC_REFUSED[data[31]] or max(data[16:22]) > BLOSC_LAST_FILTER:
        raise CorruptError("the blosc2 chunk is of a kind that is not decoded: see section 11 of the specification")


def import_codec(name: str) -> Any:
    """The package that a codec needs. Safe beside a thread that forks.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        with IMPORTING:
            if name == "zstd":
                import zstandard

                return zstandard
            import blosc2
    except ImportError:
        raise MissingExtraError(
            f"fields with the codec {name!r} need an optional package: pip install 'chunkstore-arrays[codecs]'"
        ) from None
    blosc2.set_releasegil(True)  # for the process: other threads run while it works
    return blosc2


CODECS: Final[dict[str, Decoder]] = {
    RAW: _decode_raw,
    "zlib": _decode_zlib,
    "zstd": _decode_zstd,
    "blosc2": _decode_blosc2,
}
