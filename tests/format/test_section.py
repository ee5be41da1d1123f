"""Sections: all at once, page by page, byte by byte: one outcome."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from chunkstore._format.checksum import page_sums
from chunkstore._format.constants import PAGE_NBYTES
from chunkstore._format.section import Section, read_whole
from chunkstore._format.segment import SectionEntry, section_tail, sum_of_sums
from chunkstore.errors import CorruptError

OFFSET = 64
SIZES = [1, 7, 8, 4096, PAGE_NBYTES - 8, PAGE_NBYTES - 1, PAGE_NBYTES, PAGE_NBYTES + 1, 2 * PAGE_NBYTES]


class InMemory:
    """A file of some bytes, of which nothing can be mapped."""

    path = "x.cks"
    distant = False

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.size = len(data)

    def view(self, offset: int, nbytes: int) -> None:
        """No."""

    def read(self, offset: int, nbytes: int) -> bytes:
        """A copy."""
        assert offset + nbytes <= self.size
        return bytes(self.data[offset : offset + nbytes])

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Not needed here."""
        raise AssertionError

    def reserve(self, nbytes: int) -> memoryview:
        """Zeros."""
        return memoryview(bytearray(nbytes))


def made(nbytes: int) -> tuple[InMemory, SectionEntry, bytes]:
    """A section of random bytes as it lies in a file, its entry, and its bytes."""
    data = np.random.default_rng(nbytes).bytes(nbytes)
    sums = page_sums(memoryview(data))
    source = InMemory(bytes(OFFSET) + data + section_tail(nbytes, sums))
    return source, SectionEntry(3, 0xFFFFFFFF, OFFSET, nbytes, sum_of_sums(sums)), data


def at_once(section: Section) -> bytes:
    """As the gate reads."""
    section.ensure_all()
    return section.array(np.uint8).tobytes()


def memory_first(section: Section) -> bytes:
    """As a column does: its memory is there before anything is proven, so every page is copied into it."""
    array = section.array(np.uint8)
    section.ensure_all()
    return bytes(array.tobytes())


def in_one_read(section: Section) -> bytes:
    """As opening reads the small ones."""
    return bytes(read_whole(section._source, section._entry))


def by_piece(section: Section) -> bytes:
    """As a lookup of one entry."""
    return b"".join(bytes(section.piece(at, at + 1)) for at in (0, section.nbytes - 1))


@pytest.mark.parametrize("nbytes", SIZES)
def test_both_ways_read_the_same(nbytes: int) -> None:
    """Read with its sum in one call, or page by page into memory that was reserved: equal, read-only, complete."""
    source, entry, data = made(nbytes)
    for read in (at_once, memory_first):
        section = Section(source, entry)
        assert read(section) == data
        assert section.complete
        assert not section.array(np.uint8).flags.writeable
    assert in_one_read(Section(source, entry)) == data
    assert by_piece(Section(source, entry)) == data[:1] + data[-1:]


@pytest.mark.parametrize("nbytes", SIZES)
@pytest.mark.parametrize("read", [at_once, memory_first, in_one_read, by_piece])
def test_both_ways_refuse_the_same(nbytes: int, read: Callable[[Section], bytes]) -> None:
    """A flipped bit in the first page, in the last or in the page sums is the same error either way."""
    for place, what in ((OFFSET, "index section"), (OFFSET + nbytes - 1, "index section"), (-1, "page sums")):
        source, entry, _ = made(nbytes)
        source.data[place] ^= 1
        with pytest.raises(CorruptError, match=what):
            read(Section(source, entry))
