"""Magic bytes, sizes and limits of format version 1; each names its place in spec/chunkstore-1.md."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

# Section 4: a high bit, a name, CR LF and control-Z show every common way to spoil a binary file (as in PNG).
MAGIC: Final = b"\x89CKS\r\n\x1a\n"
DIRECTORY_MAGIC: Final = b"CKS-INDX"  # section 5.1
FORMAT_MAJOR: Final = 1  # section 16
FORMAT_MINOR: Final = 0

KNOWN_INCOMPATIBLE: Final = 0  # section 16: no bit is defined in version 1.0
KNOWN_READ_ONLY_COMPATIBLE: Final = 0
KNOWN_COMPATIBLE: Final = 0

SUPERBLOCK_NBYTES: Final = 4096  # section 4
SUPERBLOCK_OFFSETS: Final = (0, 4096)
HEAD_NBYTES: Final = 8192  # both superblocks: nothing else begins before
PART_ALIGNMENT: Final = 4096  # section 3: segments and extents
SECTION_ALIGNMENT: Final = 64  # section 5.2
SUM_ALIGNMENT: Final = 8
PAGE_NBYTES: Final = 65536  # section 5.2

DIRECTORY_HEADER_NBYTES: Final = 64  # section 5.1
SECTION_ENTRY_NBYTES: Final = 32
EARLIER_ENTRY_NBYTES: Final = 48  # section 12
SUPERSEDED_ENTRY_NBYTES: Final = 24  # section 12
BLOCK_ENTRY_NBYTES: Final = 40  # section 7
NO_FIELD: Final = 0xFFFFFFFF  # section 5.1

GROUP_NBYTES: Final = 4096  # section 9: what a group has on average, unless one row has more
SHARD_NBYTES: Final = 64 << 20  # section 17: default shard size
SHARD_SAMPLES: Final = 4_194_304  # section 17

MAX_INT: Final = 2**63 - 1  # section 15, and so on to the end
MAX_FILE_NBYTES: Final = 2**63 - 4096
MAX_FIELDS: Final = 65_535
MAX_DIMENSIONS: Final = 32
MAX_DIRECTORY_NBYTES: Final = 16 << 20
MAX_JSON_NBYTES: Final = 16 << 20
MAX_DICTIONARY_NBYTES: Final = 16 << 20
MAX_SEGMENTS: Final = 64
MAX_NAME_NBYTES: Final = 255
MAX_KEY_NBYTES: Final = 65_535
MAX_JSON_LEVELS: Final = 64
MAX_JSON_VALUES: Final = 1 << 20

ATTRS_RESERVED: Final = "chunkstore"  # section 6: the converter's own member of ATTRS


class Kind(IntEnum):
    """Kinds of sections (section 5.3)."""

    SCHEMA = 1
    ATTRS = 2
    SHARD_STARTS = 3
    BLOCKS = 4
    CHUNK_SUMS = 5
    OFFSETS = 6
    SHAPES = 7
    STORED_OFFSETS = 8
    DICTIONARY = 9
    KEY_BYTES = 10
    KEY_OFFSETS = 11
    KEY_HASHES = 12
    KEY_ORDER = 13
    SUPERSEDED = 14


KNOWN_KINDS: Final = frozenset(Kind)
KEY_KINDS: Final = (Kind.KEY_BYTES, Kind.KEY_OFFSETS, Kind.KEY_HASHES, Kind.KEY_ORDER)  # section 10
