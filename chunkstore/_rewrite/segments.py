"""Index segments that prove themselves, whatever names them, and what the superseded ones of an index still hold."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from typing import Final

import numpy as np

from chunkstore._format.checksum import sum128
from chunkstore._format.constants import (
    DIRECTORY_HEADER_NBYTES,
    DIRECTORY_MAGIC,
    HEAD_NBYTES,
    MAX_DIRECTORY_NBYTES,
    MAX_FILE_NBYTES,
    NO_FIELD,
    PART_ALIGNMENT,
    Kind,
)
from chunkstore._format.index import Index
from chunkstore._format.segment import Directory, decode_directory, nbytes_of_directory
from chunkstore._format.superblock import Head, Superblock
from chunkstore._storage.source import Source
from chunkstore._write.target import sum_of_segment
from chunkstore.errors import FormatError

_PIECE_NBYTES: Final = 8 << 20
_REGION: Final = struct.Struct("<QQQ")  # of SUPERSEDED, spec section 12


def search(source: Source, begin: int = HEAD_NBYTES) -> Iterator[Directory]:
    """Everything at a multiple of 4096 that decodes as a directory; the file is read once, from `begin` on."""
    magic = np.frombuffer(DIRECTORY_MAGIC, np.uint64)[0]
    buffer = np.empty(_PIECE_NBYTES, np.uint8)
    for start in range(begin, source.size, _PIECE_NBYTES):
        piece = buffer[: min(_PIECE_NBYTES, source.size - start)]
        source.read_into(start, piece)
        heads = piece[: len(piece) // PART_ALIGNMENT * PART_ALIGNMENT].view(np.uint64)[:: PART_ALIGNMENT // 8]
        for place in np.flatnonzero(heads == magic).tolist():
            directory = _read_directory(source, start + place * PART_ALIGNMENT)
            if directory is not None:
                yield directory


def _read_directory(source: Source, offset: int) -> Directory | None:
    nbytes = nbytes_of_directory(source.read(offset, DIRECTORY_HEADER_NBYTES))
    if nbytes > min(MAX_DIRECTORY_NBYTES, source.size - offset):
        return None
    try:
        return decode_directory(source.read(offset, nbytes), offset, MAX_FILE_NBYTES)
    except FormatError:
        return None


def usable(source: Source, directory: Directory) -> Index | None:
    """An index over one segment, if schema, shard starts and blocks are proven.

    The sums in a directory prove its sections, and its counts must agree with them; so a directory that was damaged
    does not pass, although its own sum is not known.
    """
    data = directory.encode()
    superblock = Superblock(bytes(16), 1, MAX_FILE_NBYTES, directory.offset, len(data), sum128(data))
    try:
        return Index(source, Head(superblock, ()), (directory,))
    except FormatError:
        return None


def superseded(index: Index, directory: Directory) -> Iterator[tuple[int, ...]]:
    """(offset, nbytes, sum) of each segment that this one, or one before it, took the place of."""
    if (Kind.SUPERSEDED, NO_FIELD) in directory:
        yield from _REGION.iter_unpack(index.read_section(directory, Kind.SUPERSEDED))


def older(index: Index, source: Source) -> Iterator[Index]:
    """Superseded segments: they are in the file, and describe the same samples."""
    for successor in index.directories:
        yield from _replaced(index, source, successor)


def _replaced(index: Index, source: Source, successor: Directory) -> Iterator[Index]:
    """Those that one took the place of. Each is used only if it is, to the last byte, what its successor says."""
    with contextlib.suppress(FormatError):
        for offset, nbytes, stored in superseded(index, successor):
            directory = _read_directory(source, offset)
            if directory is None or directory.segment_nbytes != nbytes:
                continue
            found = usable(source, directory)
            proven = found is not None and sum_of_segment(source, directory) == stored
            if found is not None and proven and found.fields == index.fields:
                yield found


def dictionaries(index: Index, source: Source) -> dict[str, bytes]:
    """DICTIONARY of each field by its name, empty where it has none; without those that no segment has whole."""
    found = {field.name: _dictionary(index, source, number) for number, field in enumerate(index.fields)}
    return {name: data for name, data in found.items() if data is not None}


def _dictionary(index: Index, source: Source, number: int) -> bytes | None:
    """It is the same in all live segments of a container, and was in those that they took the place of."""
    if (Kind.DICTIONARY, number) not in index.directories[-1]:
        return b""
    return next(versions(index, source, Kind.DICTIONARY, number), None)


def versions(index: Index, source: Source, kind: Kind, number: int = NO_FIELD) -> Iterator[bytes]:
    """A section as each segment has it that has it whole, superseded ones among them; the newest first."""
    for successor in reversed(index.directories):
        with contextlib.suppress(FormatError):
            yield index.read_section(successor, kind, number)
        for part in reversed(list(_replaced(index, source, successor))):
            with contextlib.suppress(FormatError):
                yield part.read_section(part.directories[0], kind, number)
