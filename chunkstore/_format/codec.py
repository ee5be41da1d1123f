"""How the chunk of a row becomes its bytes (spec section 11).

Every decoder gets the number of bytes that the index promises and produces no more: a decompression bomb ends there.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, Final

from chunkstore.errors import CorruptError, MissingExtraError

RAW: Final = "raw"
WITHOUT_DICTIONARY: Final = (RAW, "zlib", "blosc2")
# No stream of ours unpacks to more than 2^15 times its size (zstd: a block of 4 bytes is 128 KiB), but for Blosc2,
# whose chunks of zeros have 32 bytes and unpack to less than 2 GiB.
_MOST_RATIO: Final = 1 << 16
_MOST_NBYTES: Final = 1 << 31
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
    claimed, stored, _ = blosc2.get_cbuffer_sizes(data) if len(data) >= 16 else (-1, -1, 0)
    if claimed != nbytes:
        raise CorruptError(f"the blosc2 chunk claims {claimed} bytes, the index promises {nbytes}")
    if stored != len(data):
        raise CorruptError(f"the blosc2 chunk says that it has {stored} bytes, and there are {len(data)}")
    try:
        return bytes(blosc2.decompress2(data, nthreads=1))
    except (RuntimeError, ValueError) as error:
        raise CorruptError(f"the blosc2 chunk cannot be decoded: {error}") from None


def import_codec(name: str) -> Any:
    """The package that a codec needs.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
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
