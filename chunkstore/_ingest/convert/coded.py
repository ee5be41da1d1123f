"""Fields behind a codec in a conversion: what is known of them beforehand, and where their chunks go.

How long chunks are is known when they are made. So the fields without codec get their regions at the head of the file;
workers put the blocks of the others behind all that the file can ever have, each into room for its longest form; and
one place copies them, in the order of fields and shards, to where they belong. The room is cut off at the end.

8192: raw field | ... | field with a codec | ... | segment               the file; behind it holes, and room for blocks
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chunkstore._format.constants import PART_ALIGNMENT
from chunkstore._format.dtypes import element_nbytes
from chunkstore._format.encode import CodecOptions, Encoder
from chunkstore._format.schema import Field
from chunkstore._format.segment import pad
from chunkstore._storage.sink import Sink
from chunkstore._storage.source import open_source

if TYPE_CHECKING:
    from chunkstore._write.index_writer import IndexWriter  # of the converter: workers start without it

# A row that a codec cannot make smaller: zlib adds 5 bytes for each 16 KiB and 11, zlib-ng at level 1 a bit for each
# byte, zstd 3 bytes for each 128 KiB and 18 (less than 64 in all for short ones), Blosc2 32.
_ROW_ROOM: Final = 64
_SHARE_ROOM: Final = 8


@dataclass(frozen=True)
class Coding:
    """How the chunks of a field are made; a worker gets it with its task."""

    options: CodecOptions
    dictionary: bytes = b""

    def encoder(self, field: Field) -> Encoder:
        """One for a worker."""
        return Encoder(self.options, element_nbytes(field.dtype), self.dictionary)


def most_nbytes(nbytes: int, num_rows: int) -> int:
    """What the chunks of so many rows have at most."""
    return nbytes + nbytes // _SHARE_ROOM + _ROW_ROOM * num_rows


class CodedFields:
    """Moves blocks from where workers put them to where they belong.

    Args:
        numbers: of the fields with a codec, in the order of the schema.
        sink: the unfinished container.
        begin: where they may begin.
    """

    def __init__(self, numbers: Sequence[int], sink: Sink, begin: int) -> None:
        self._sink = sink
        self._first = numbers[0] if numbers else -1
        self._begin = begin
        self._nbytes = dict.fromkeys(numbers, 0)
        self._later: dict[int, list[tuple[int, int]]] = {number: [] for number in numbers}

    def take(self, number: int, offset: int, nbytes: int) -> int:
        """The next block of a field lies at `offset`; where it is counted from the first block of the field.

        The first field is copied at once, the others wait until its end is known.
        """
        before = self._nbytes[number]
        self._nbytes[number] += nbytes
        if number == self._first:
            self._copy(offset, pad(self._begin, PART_ALIGNMENT) + before, nbytes)
        else:
            self._later[number].append((offset, nbytes))
        return before

    def finish(self, index: IndexWriter) -> int:
        """Copy what waited, cut off the room for blocks, and tell the index where each field is.

        Returns:
            The offset behind the last field, where the file ends now: what follows is zeros but for what is written,
            as the padding of an index must be.
        """
        end = self._begin
        for number, nbytes in self._nbytes.items():
            begin = at = pad(end, PART_ALIGNMENT)
            index.move(number, begin)
            for offset, size in self._later[number]:
                self._copy(offset, at, size)
                at += size
            end = begin + nbytes
        self._sink.truncate(end)
        return end

    def _copy(self, offset: int, target: int, nbytes: int) -> None:
        with open_source(self._sink.path, "pread") as source:
            self._sink.copy_from(source, offset, target, nbytes)
