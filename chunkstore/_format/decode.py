"""Many chunks of a field at once, straight into the memory of their rows (spec section 11).

`codec.decode` says what is right; what is here is faster and gives the same rows. It only takes chunks whose head, and
for zstd the whole chain of blocks, is looked at first: nothing here decodes to more bytes than the index promises, nor
reads past the end of a chunk. All other chunks are left to the plain way, which names what is wrong with them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.codec import (
    BLOSC_COPIED,
    BLOSC_EXTENDED,
    BLOSC_FORMATS,
    BLOSC_HEAD_NBYTES,
    BLOSC_LAST_FILTER,
    BLOSC_ONE_VALUE,
    BLOSC_REFUSED,
    decode,
    import_codec,
)
from chunkstore._format.lookup import Ints
from chunkstore.errors import CorruptError

Bytes: TypeAlias = NDArray[np.uint8]

_ZSTD_MAGIC: Final = 0xFD2FB528
_ZSTD_HEAD_NBYTES: Final = 5  # magic, descriptor
# By the descriptor: where in a frame its size stands, and in how many bytes.
_ZSTD_SIZE_AT: Final = np.array([6 - (d >> 5 & 1) + (0, 1, 2, 4)[d & 3] for d in range(256)])
_ZSTD_SIZE_NBYTES: Final = np.array([(d >> 5 & 1, 2, 4, 8)[d >> 6] for d in range(256)])
_ZSTD_SIZE_MASK: Final = np.array([(1 << 8 * width) - 1 for width in range(9)], np.uint64)
_ZSTD_MOST_RATIO: Final = 1 << 15  # a block of 4 bytes is 128 KiB
_ZSTD_BLOCK_NBYTES: Final = 128 << 10
_SPARE_BLOCKS: Final = 256  # the encoder may cut blocks shorter; more of them than that are not worth to be followed
_ZLIB_MOST_RATIO: Final = 1 << 11
_BLOSC_MOST_NBYTES: Final = 1 << 31
_BLOSC_SIZES: Final = struct.Struct("<i4xi")  # nbytes of the row, of a block, of the chunk
_BLOSC_REFUSED: Final = np.array(BLOSC_REFUSED)
_BLOSC_KNOWN: Final = np.array([f & BLOSC_EXTENDED == BLOSC_EXTENDED and f >> 5 in BLOSC_FORMATS for f in range(256)])
_DIRECT_NBYTES: Final = 64 << 10  # from here on a row is worth a call of its own, which saves a copy


class BatchDecoder(Protocol):
    """Decodes chunks of one field. Safe from many threads."""

    def possible(self, nbytes: Ints, sizes: Ints) -> NDArray[np.bool_]:
        """Whether chunks of `nbytes` can hold rows of `sizes`, all above 0; looks at nothing else."""

    def ordinary(self, data: Bytes, offsets: Ints, nbytes: Ints, sizes: Ints) -> NDArray[np.bool_]:
        """Which chunks `decode` may be given; shape (B,)."""

    def decode(self, data: Bytes, offsets: Ints, nbytes: Ints, sizes: Ints, out: Bytes, threads: int) -> bool:
        """Decode ordinary chunks into rows that lie back to back in `out`; whether all of them were right."""

    def in_c(self, sizes: Ints) -> bool:
        """Whether one call of `decode` uses threads itself, and is best given all chunks."""


def batch_decoder(name: str, dictionary: bytes) -> BatchDecoder:
    """The decoder for a field.

    Raises:
        MissingExtraError: the package of the codec is not installed.
    """
    if name == "zstd":
        return _Zstd(dictionary)
    return _Blosc2() if name == "blosc2" else _Plain(name)


class _Plain:
    """Any codec by the plain way."""

    def __init__(self, name: str) -> None:
        self._name = name

    def possible(self, nbytes: Ints, sizes: Ints) -> NDArray[np.bool_]:
        return np.asarray(sizes <= nbytes * _ZLIB_MOST_RATIO)

    def in_c(self, sizes: Ints) -> bool:
        return False

    def ordinary(self, data: Bytes, offsets: Ints, nbytes: Ints, sizes: Ints) -> NDArray[np.bool_]:
        return np.ones(len(sizes), bool)

    def decode(self, data: Bytes, offsets: Ints, nbytes: Ints, sizes: Ints, out: Bytes, threads: int) -> bool:
        view, rows, at = data.data, out.data, 0
        for offset, length, size in zip(offsets.tolist(), nbytes.tolist(), sizes.tolist(), strict=True):
            try:
                rows[at : at + size] = decode(self._name, view[offset : offset + length], size, b"")
            except CorruptError:
                return False
            at += size
        return True


class _Zstd:
    def __init__(self, dictionary: bytes) -> None:
        self._zstandard = import_codec("zstd")
        self._dictionary = self._zstandard.ZstdCompressionDict(dictionary) if dictionary else None
        self._spare: list[Any] = []
        self._multi = "multi_decompress_to_buffer" in self._zstandard.backend_features

    def possible(self, nbytes: Ints, sizes: Ints) -> NDArray[np.bool_]:
        return np.asarray(sizes // _ZSTD_MOST_RATIO <= nbytes)

    def in_c(self, sizes: Ints) -> bool:
        return self._multi and int(sizes.sum()) < _DIRECT_NBYTES * len(sizes)

    def ordinary(self, data: Bytes, offsets: Ints, nbytes: Ints, sizes: Ints) -> NDArray[np.bool_]:
        return zstd_frames(data, offsets, nbytes, sizes)

    def decode(self, data: Bytes, offsets: Ints, nbytes: Ints, sizes: Ints, out: Bytes, threads: int) -> bool:
        try:
            decoder = self._spare.pop()
        except IndexError:
            decoder = self._zstandard.ZstdDecompressor(dict_data=self._dictionary)
        try:
            if self.in_c(sizes):
                self._decode_many(decoder, data, offsets, nbytes, sizes, out, threads)
                return True
            return _decode_each(decoder, data, offsets, nbytes, sizes, out)
        except self._zstandard.ZstdError:
            return False
        finally:
            self._spare.append(decoder)

    def _decode_many(
        self, decoder: Any, data: Bytes, offsets: Ints, nbytes: Ints, sizes: Ints, out: Bytes, threads: int
    ) -> None:
        """One call for all: short rows cost more to ask for than to decode."""
        places = np.stack([offsets, nbytes], axis=1).astype(np.uint64)
        chunks = self._zstandard.BufferWithSegments(data, places.tobytes())
        wanted = sizes.astype(np.uint64).tobytes()
        found = decoder.multi_decompress_to_buffer(chunks, decompressed_sizes=wanted, threads=threads)
        out.data[:] = b"".join(map(found.__getitem__, range(len(found))))


def _decode_each(decoder: Any, data: Bytes, offsets: Ints, nbytes: Ints, sizes: Ints, out: Bytes) -> bool:
    """Straight into the rows. Other threads run meanwhile."""
    view, rows, at = data.data, out.data, 0
    for offset, length, size in zip(offsets.tolist(), nbytes.tolist(), sizes.tolist(), strict=True):
        reader = decoder.stream_reader(view[offset : offset + length], read_size=length)
        if reader.readinto(rows[at : at + size]) != size:
            return False
        at += size
    return True


def _heads(data: Bytes, offsets: Ints, count: int) -> Bytes:
    """The first bytes of chunks, and what lies behind short ones; shape (B, count)."""
    if int(offsets.max(initial=0)) + count > len(data):
        found: Bytes = data[np.minimum(offsets[:, None] + np.arange(count), len(data) - 1)]
    else:  # elements that overlap, one at each byte: half the time
        anywhere = np.ndarray((len(data) - count + 1,), f"V{count}", data.data, strides=(1,))
        found = anywhere[offsets].view(np.uint8).reshape(-1, count)
    return found


def zstd_frames(data: Bytes, offsets: Ints, nbytes: Ints, sizes: Ints) -> NDArray[np.bool_]:
    """Which chunks are one frame that says its size, the promised one, and ends where the chunk ends.

    RFC 8878, sections 3.1.1.1 and 3.1.1.2. Anything unusual counts as no: it may be right all the same.
    """
    stops = offsets + nbytes
    head = _heads(data, offsets, _ZSTD_HEAD_NBYTES)
    descriptor = head[:, 4]
    at, width = _ZSTD_SIZE_AT[descriptor], _ZSTD_SIZE_NBYTES[descriptor]
    size = _heads(data, offsets + at, 8).view("<u8")[:, 0] & _ZSTD_SIZE_MASK[width]
    size += np.uint64(256) * (width == 2).astype(np.uint64)
    good = (head.view("<u4,u1")["f0"][:, 0] == _ZSTD_MAGIC) & (descriptor & 8 == 0)
    good &= (width > 0) & (size == sizes.astype(np.uint64)) & (at + width + 3 <= nbytes)
    ends = _block_ends(data, offsets + at + width, stops, good, int(sizes.max(initial=0)))
    result: NDArray[np.bool_] = good & (ends + 4 * (descriptor >> 2 & 1) == stops)
    return result


def _block_ends(data: Bytes, starts: Ints, stops: Ints, good: NDArray[np.bool_], largest: int) -> Ints:
    """Where the last block of each frame ends; -1 where the chain of blocks leads out of it, or is very long."""
    ends = np.full(len(starts), -1, np.int64)
    rows = np.flatnonzero(good)
    at = starts[rows]
    for _ in range(_SPARE_BLOCKS + 2 * (largest // _ZSTD_BLOCK_NBYTES)):
        inside = at + 3 <= stops[rows]
        if not inside.all():
            rows, at = rows[inside], at[inside]
        if not len(rows):
            break
        head = (_heads(data, at, 4).view("<u4")[:, 0] & 0xFFFFFF).astype(np.int64)
        kind = head >> 1 & 3
        at = at + 3 + np.where(kind == 1, 1, head >> 3)
        last = (head & 1 == 1) & (kind != 3)
        ends[rows[last]] = at[last]
        more = (head & 1 == 0) & (kind != 3)
        rows, at = rows[more], at[more]
    return ends


class _Blosc2:
    def __init__(self) -> None:
        self._decompress: Callable[..., None] = import_codec("blosc2").decompress2

    def possible(self, nbytes: Ints, sizes: Ints) -> NDArray[np.bool_]:
        return np.asarray((sizes < _BLOSC_MOST_NBYTES) & (nbytes >= BLOSC_HEAD_NBYTES))

    def in_c(self, sizes: Ints) -> bool:
        return False

    def ordinary(self, data: Bytes, offsets: Ints, nbytes: Ints, sizes: Ints) -> NDArray[np.bool_]:
        head = _heads(data, offsets, BLOSC_HEAD_NBYTES)
        numbers = head.view("<i4")
        flags, width, block = head[:, 2], head[:, 3], numbers[:, 2]
        result: NDArray[np.bool_] = (numbers[:, 1] == sizes) & (numbers[:, 3] == nbytes)
        apart = (flags & BLOSC_COPIED == 0) & (head[:, 31] & BLOSC_ONE_VALUE == 0)
        result &= (width > 0) & (~apart | (block >= width) & (block % np.maximum(width, 1) == 0))
        result &= _BLOSC_KNOWN[flags] & (head[:, 30] == 0) & ~_BLOSC_REFUSED[head[:, 31]]
        result &= (head[:, 16:22] <= BLOSC_LAST_FILTER).all(axis=1)
        return result

    def decode(self, data: Bytes, offsets: Ints, nbytes: Ints, sizes: Ints, out: Bytes, threads: int) -> bool:
        view, rows, at = data.data, out.data, 0
        try:
            for offset, length, size in zip(offsets.tolist(), nbytes.tolist(), sizes.tolist(), strict=True):
                # A copy, for the package writes as many bytes as the head says by then, whatever room there is.
                chunk = bytes(view[offset : offset + length])
                if _BLOSC_SIZES.unpack_from(chunk, 4) != (size, length):
                    return False
                self._decompress(chunk, dst=rows[at : at + size], nthreads=1)
                at += size
        except (RuntimeError, ValueError):
            return False
        return True
