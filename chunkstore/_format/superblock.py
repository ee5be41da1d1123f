"""The fixed head of a container: two superblocks (spec section 4)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from chunkstore._format.checksum import sum128
from chunkstore._format.constants import (
    DIRECTORY_HEADER_NBYTES,
    FORMAT_MAJOR,
    FORMAT_MINOR,
    HEAD_NBYTES,
    KNOWN_INCOMPATIBLE,
    MAGIC,
    MAX_DIRECTORY_NBYTES,
    MAX_FILE_NBYTES,
    PART_ALIGNMENT,
    SUPERBLOCK_NBYTES,
    SUPERBLOCK_OFFSETS,
)
from chunkstore.errors import (
    CorruptError,
    FormatError,
    LimitError,
    NotAContainerError,
    TruncatedError,
    UnsupportedFeatureError,
    UnsupportedVersionError,
)

_LAYOUT: Final = struct.Struct("<8sHH4xQQQ16sQQQQ16s")
RECORD_NBYTES: Final = _LAYOUT.size
_SUM_OFFSET: Final = SUPERBLOCK_NBYTES - 16


@dataclass(frozen=True)
class Superblock:
    """The record that names the newest segment.

    Attributes:
        uuid: 16 bytes, the same in all generations.
        generation: counts commits, from 1.
        committed_end: offset behind the last byte of this generation.
        directory_offset: where the newest segment, and so its directory, begins.
        directory_nbytes: its length.
        directory_sum: its xxh3-128; the fingerprint of the generation.
        incompatible, read_only_compatible, compatible: feature flags (spec section 16).
        minor: format minor version of the writer.
    """

    uuid: bytes
    generation: int
    committed_end: int
    directory_offset: int
    directory_nbytes: int
    directory_sum: bytes
    incompatible: int = 0
    read_only_compatible: int = 0
    compatible: int = 0
    minor: int = FORMAT_MINOR


@dataclass(frozen=True)
class Head:
    """What the first 8192 bytes say: the superblock that counts, and what is wrong with the other one."""

    superblock: Superblock
    damage: tuple[tuple[str, str], ...]
    """(`"A"` or `"B"`, what is wrong with it)."""


def encode(superblock: Superblock) -> bytes:
    """The 4096 bytes of a superblock."""
    record = _LAYOUT.pack(
        MAGIC,
        FORMAT_MAJOR,
        superblock.minor,
        superblock.incompatible,
        superblock.read_only_compatible,
        superblock.compatible,
        superblock.uuid,
        superblock.generation,
        superblock.committed_end,
        superblock.directory_offset,
        superblock.directory_nbytes,
        superblock.directory_sum,
    )
    body = record.ljust(_SUM_OFFSET, b"\0")
    return body + sum128(body)


def decode(data: bytes) -> Superblock:
    """One superblock, checked in the order of spec section 4.

    Raises:
        NotAContainerError, UnsupportedVersionError, CorruptError, LimitError: in this order.
    """
    magic, major, *_ = _LAYOUT.unpack_from(data)
    if magic != MAGIC:
        raise NotAContainerError(f"expected the magic {MAGIC!r}, found {magic!r}")
    if major != FORMAT_MAJOR:
        raise UnsupportedVersionError(f"format major {major}; this release reads {FORMAT_MAJOR}: install a newer one")
    stored, computed = data[_SUM_OFFSET:], sum128(data[:_SUM_OFFSET])
    if computed != stored:
        raise CorruptError(f"stored xxh3 {stored.hex()}, computed {computed.hex()}")
    superblock = decode_record(data)
    check_values(superblock)
    return superblock


def decode_record(record: bytes) -> Superblock:
    """A superblock from its first `RECORD_NBYTES` bytes alone, not checked."""
    _, _, minor, incompatible, read_only, compatible, *rest = _LAYOUT.unpack_from(record)
    uuid, generation, end, offset, nbytes, directory_sum = rest
    return Superblock(uuid, generation, end, offset, nbytes, directory_sum, incompatible, read_only, compatible, minor)


def check_values(superblock: Superblock) -> None:
    """Raise CorruptError or LimitError where places and lengths cannot be."""
    end, start, nbytes = superblock.committed_end, superblock.directory_offset, superblock.directory_nbytes
    if superblock.generation < 1:
        raise CorruptError("the generation is 0, expected at least 1")
    if end > MAX_FILE_NBYTES:
        raise LimitError(f"committed end {end}, at most {MAX_FILE_NBYTES}")
    if end % PART_ALIGNMENT or end < HEAD_NBYTES:
        raise CorruptError(f"committed end {end}: expected a multiple of {PART_ALIGNMENT} from {HEAD_NBYTES} on")
    if start % PART_ALIGNMENT or start < HEAD_NBYTES:
        raise CorruptError(f"directory offset {start}: expected a multiple of {PART_ALIGNMENT} from {HEAD_NBYTES} on")
    if nbytes > MAX_DIRECTORY_NBYTES:
        raise LimitError(f"directory of {nbytes} bytes, at most {MAX_DIRECTORY_NBYTES}")
    if nbytes < DIRECTORY_HEADER_NBYTES or start + nbytes > end:
        raise CorruptError(f"directory [{start}, {start + nbytes}) does not lie below the committed end {end}")


def decode_head(head: bytes, file_nbytes: int) -> Head:
    """Choose the superblock that counts, and check flags and the file's length.

    Args:
        head: the first 8192 bytes, or all that the file has.
        file_nbytes: length of the file.
    Raises:
        FormatError: the container cannot be read; see spec section 14.
    """
    if len(head) < HEAD_NBYTES:
        raise _short_head(head)
    found: list[tuple[str, Superblock]] = []
    failed: list[tuple[str, FormatError]] = []
    for name, offset in zip("AB", SUPERBLOCK_OFFSETS, strict=True):
        try:
            found.append((name, decode(head[offset : offset + SUPERBLOCK_NBYTES])))
        except FormatError as error:
            failed.append((name, error))
    if not found:
        raise _no_superblock(failed)
    _, chosen = max(found, key=lambda item: item[1].generation)  # the first, A, of equals
    if file_nbytes < chosen.committed_end:
        raise TruncatedError(
            f"the file has {file_nbytes} bytes, expected {chosen.committed_end}: "
            "it was cut off, or copied in part; copy it again"
        )
    check_flags(chosen)
    return Head(chosen, tuple((name, str(error)) for name, error in failed))


def _short_head(head: bytes) -> FormatError:
    if head and MAGIC.startswith(head[: len(MAGIC)]):
        return TruncatedError(f"the file has {len(head)} bytes, expected at least {HEAD_NBYTES}: it was cut off")
    return NotAContainerError(f"expected a container, found {len(head)} bytes without the chunkstore magic")


def _no_superblock(failed: list[tuple[str, FormatError]]) -> FormatError:
    """The error of A counts, or that of B if A has no magic."""
    name, error = failed[0]
    if isinstance(error, NotAContainerError) and not isinstance(failed[1][1], NotAContainerError):
        name, error = failed[1]
    if isinstance(error, NotAContainerError):
        return NotAContainerError(f"not a chunkstore container: {error}")
    return type(error)(f"superblock {name}: {error}")


def check_flags(superblock: Superblock) -> None:
    """Raise UnsupportedFeatureError where an incompatible flag is set that this release does not know."""
    unknown = superblock.incompatible & ~KNOWN_INCOMPATIBLE
    if unknown:
        raise UnsupportedFeatureError(
            f"incompatible feature flags {unknown:#x} are not known to this release: install a newer one"
        )
