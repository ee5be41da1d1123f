"""Keys: position -> text, and text -> position by a table sorted by hash (spec section 10)."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.checksum import sum64
from chunkstore._format.constants import MAX_KEY_NBYTES
from chunkstore._format.section import Section
from chunkstore.errors import CorruptError, LimitError

_FEW: Final = 16  # keys; below it one by one is quicker than all in step


@dataclass(frozen=True)
class KeySections:
    """The key sections of one segment."""

    first_sample: int
    num_samples: int
    text: Section
    offsets: Section
    hashes: Section
    order: Section


class KeyIndex:
    """Keys of all live segments. Nothing is copied: a lookup touches a few pages. Safe from many threads."""

    def __init__(self, path: str, segments: Sequence[KeySections]) -> None:
        self._path = path
        self._segments = [segment for segment in segments if segment.num_samples]

    def find(self, key: str) -> int:
        """Position of a key, or -1. About 10 microseconds, O(log N)."""
        return self._find(key.encode("utf-8", "surrogatepass"))

    def _find(self, text: bytes) -> int:
        wanted = sum64(text)
        for segment in self._segments:
            place = _lower_bound(segment, wanted)
            position = self._compare(segment, place, wanted, text)
            if position >= 0:
                return position
        return -1

    def find_many(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Position of each key, or -1; shape (len(keys),)."""
        return self.find_texts([key.encode("utf-8", "surrogatepass") for key in keys])

    def find_texts(self, texts: Sequence[bytes]) -> NDArray[np.int64]:
        """Position of each key in UTF-8, or -1; shape (len(texts),). About a microsecond a key where there are many."""
        if len(texts) < _FEW:
            return np.array([self._find(text) for text in texts], np.int64)
        found = np.full(len(texts), -1, np.int64)
        wanted = np.fromiter(map(sum64, texts), np.uint64, len(texts))
        for segment in self._segments:
            places = _lower_bounds(segment, wanted)
            # Mostly one segment has the key, and one key the hash: the few are compared one by one.
            inside = np.flatnonzero(places < segment.num_samples)
            segment.hashes.ensure_items(places[inside], 8)
            equal = inside[segment.hashes.array("<u8")[places[inside]] == wanted[inside]]
            for which in equal.tolist():
                if found[which] < 0:
                    found[which] = self._compare(segment, int(places[which]), int(wanted[which]), texts[which])
        return found

    def _compare(self, segment: KeySections, place: int, wanted: int, text: bytes) -> int:
        """Among the keys with this hash, the one with this text."""
        while place < segment.num_samples:
            if _hash(segment, place) != wanted:
                return -1
            local = self._order(segment, place)
            if self._text(segment, local) == text:
                return segment.first_sample + local
            place += 1
        return -1

    def _order(self, segment: KeySections, place: int) -> int:
        size = order_dtype(segment.num_samples).itemsize
        local = int.from_bytes(segment.order.piece(size * place, size * (place + 1)), "little")
        if local >= segment.num_samples:
            raise CorruptError(
                f"{self._path}: KEY_ORDER entry {place} is {local}, but the segment has {segment.num_samples} samples"
            )
        return local

    def text(self, position: int) -> str:
        """Key of a position `0 <= position < N`."""
        for segment in self._segments:
            local = position - segment.first_sample
            if local < segment.num_samples:
                return self._decode(self._text(segment, local), position)
        raise IndexError(position)

    def texts(self, start: int, stop: int) -> list[str]:
        """Keys of positions `[start, stop)`: one pass, for listings."""
        found: list[str] = []
        for segment in self._segments:
            low = max(start - segment.first_sample, 0)
            high = min(stop - segment.first_sample, segment.num_samples)
            if low < high:
                found += self._run(segment, low, high)
        return found

    def _run(self, segment: KeySections, low: int, high: int) -> list[str]:
        segment.offsets.ensure(8 * low, 8 * high + 8)
        bounds = segment.offsets.array("<u8")[low : high + 1].tolist()
        if any(a >= b for a, b in pairwise(bounds)) or bounds[-1] > segment.text.nbytes:
            raise CorruptError(f"{self._path}: KEY_OFFSETS {low} to {high} do not ascend within KEY_BYTES")
        segment.text.ensure(bounds[0], bounds[-1])
        blob = segment.text.array(np.uint8)[bounds[0] : bounds[-1]].tobytes()
        base = segment.first_sample + low
        pairs = enumerate(pairwise(bounds))
        return [self._decode(blob[a - bounds[0] : b - bounds[0]], base + i) for i, (a, b) in pairs]

    def _text(self, segment: KeySections, local: int) -> bytes:
        start, stop = struct.unpack("<QQ", segment.offsets.piece(8 * local, 8 * local + 16))
        if not start < stop <= segment.text.nbytes or (local == 0 and start):
            raise CorruptError(
                f"{self._path}: the key of sample {segment.first_sample + local} lies at [{start}, {stop}) of "
                f"{segment.text.nbytes} bytes"
            )
        if stop - start > MAX_KEY_NBYTES:
            raise LimitError(f"{self._path}: the key of sample {segment.first_sample + local} has {stop - start} bytes")
        return bytes(segment.text.piece(start, stop))

    def _decode(self, text: bytes, position: int) -> str:
        try:
            key = text.decode()
        except UnicodeDecodeError as error:
            raise CorruptError(f"{self._path}: the key of sample {position} is not UTF-8: {error}") from None
        if "\0" in key:
            raise CorruptError(f"{self._path}: the key of sample {position} has a NUL: {key!r:.80}")
        return key


def order_dtype(num_samples: int) -> np.dtype[np.unsignedinteger]:
    """Entries of KEY_ORDER: u32 as long as that is enough."""
    return np.dtype("<u4") if num_samples < 2**32 else np.dtype("<u8")


def _lower_bound(segment: KeySections, wanted: int) -> int:
    """First place whose hash is not below `wanted`.

    Hashes are spread evenly, so the place is near `wanted / 2^64 * n`, about sqrt(n) off: searching there touches few
    pages. Where the guess is wrong, the bracket widens to all.
    """
    n = segment.num_samples
    guess, slack = wanted * n >> 64, 4 * math.isqrt(n) + 8
    low, high = max(guess - slack, 0), min(guess + slack, n)
    if low > 0 and _hash(segment, low - 1) >= wanted:
        low = 0
    if high < n and _hash(segment, high) < wanted:
        high = n
    while low < high:
        middle = (low + high) // 2
        if _hash(segment, middle) < wanted:
            low = middle + 1
        else:
            high = middle
    return low


def _lower_bounds(segment: KeySections, wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
    """`_lower_bound` of many hashes at once; shape of `wanted`. Plain binary search, all in step."""
    n, hashes = segment.num_samples, segment.hashes.array("<u8")
    low, high = np.zeros(len(wanted), np.int64), np.full(len(wanted), n, np.int64)
    for _ in range(n.bit_length()):
        open_ = low < high
        middle = np.where(open_, (low + high) // 2, 0)
        segment.hashes.ensure_items(middle, 8)
        below = hashes[middle] < wanted
        low = np.where(open_ & below, middle + 1, low)
        high = np.where(open_ & ~below, middle, high)
    return low


def _hash(segment: KeySections, place: int) -> int:
    return int.from_bytes(segment.hashes.piece(8 * place, 8 * place + 8), "little")
