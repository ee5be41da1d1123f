#!/usr/bin/env python3
"""The proof of section 13 of chunkstore-1.md, and what section 14 asks of a verifier, on top of read_chunkstore.py.

As a script, `verify_chunkstore.py FILE` checks every byte of FILE, prints a line for each thing that is not as it must
be, and exits with 1 if there is any.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import read_chunkstore as reader
from read_chunkstore import Container, Field, FormatError, Segment, need
from xxhash import xxh3_64_intdigest


class Verifier:
    def __init__(self, container: Container) -> None:
        self.container, self.data, self.segments = container, container.data, container.segments
        self.parts = [(0, 8192)] + [(x.offset, x.offset + x.nbytes) for x in self.segments]

    def findings(self) -> Iterator[str]:
        if self.data[:4096] != self.data[4096:8192]:
            yield "superblocks A and B differ"
        if len(self.data) > self.container.end:
            yield f"{len(self.data) - self.container.end} bytes behind the committed end"
        for check in self.checks():
            try:
                check()
            except FormatError as error:
                yield f"{type(error).__name__}: {error}"
        # 13: "Superblocks, live segments, superseded regions and blocks (those with bytes) do not overlap; what lies
        # between them up to the committed end is padding: zero, and shorter than 4096 bytes each."
        stop = 0
        for start, part_stop in [*sorted(self.parts), (self.container.end, self.container.end)]:
            if start < stop or start - stop >= 4096 or any(self.data[stop:start]):
                yield f"overlap, gap, or padding that is not zero, between {stop} and {start}"
            stop = max(stop, part_stop)

    # 14: "6. A verifier checks all of that for the whole file, and what no reader needs."
    def checks(self) -> Iterator[Callable[[], object]]:
        yield self.container.attrs
        for segment, before in zip(self.segments, [None, *self.segments], strict=False):
            yield partial(self.check_padding, segment)
            for place in segment.sections:
                yield partial(segment.section, *place)
                yield partial(self.check_goes_on, segment, before, *place)
            for f, field in enumerate(self.container.fields):
                for s, (_, block) in enumerate(segment.blocks[f]):
                    yield partial(self.check_block, f"block {s} of {field.name!r}", *block[:3])
                yield partial(self.check_rows, segment, field)
            if (reader.SUPERSEDED, reader.NONE) in segment.sections:
                yield partial(self.check_superseded, segment)
            if self.container.has_keys:
                yield partial(self.check_keys, segment)
        yield self.check_keys_are_unique

    # 13: "Padding inside a segment (behind the directory, the bytes of a section, page sums) is zero too."
    def check_padding(self, segment: Segment) -> None:
        stop = segment.offset + len(segment.directory)
        for at, size, sums_at, sums_stop, _ in segment.sections.values():
            need("padding inside a segment", not any(self.data[stop:at]), not any(self.data[at + size : sums_at]))
            stop = sums_stop
        need("padding inside a segment", not any(self.data[stop : segment.offset + segment.nbytes]))

    # 8.2, 11: "The first [...] of the container is 0, and that of a later segment is the last one of [that] before."
    # "A DICTIONARY is [...] the same in all live segments."
    def check_goes_on(self, segment: Segment, before: Segment | None, kind: int, f: int) -> None:
        if kind in (reader.OFFSETS, reader.STORED_OFFSETS):
            numbers = segment.numbers(kind, f, 0, segment.num + 1)
            last = before.numbers(kind, f, before.num)[0] if before else 0
            need(f"section {kind} goes on from the segment before", numbers[0] == last)
            need(f"section {kind} ascends", all(a <= b for a, b in pairwise(numbers)))
        if kind == reader.DICTIONARY:
            need("a segment without DICTIONARY", all((kind, f) in x.sections for x in self.segments))
            need("DICTIONARY differs between segments", len({x.section(kind, f) for x in self.segments}) == 1)

    def check_block(self, what: str, offset: int, nbytes: int, block_sum: int) -> None:
        self.parts += [(offset, offset + nbytes)] if nbytes else []
        need(f"sum of {what}", xxh3_64_intdigest(self.data[offset : offset + nbytes]) == block_sum)

    # "that B.nbytes of ragged and encoded fields fits their offsets", and each chunk sum
    def check_rows(self, segment: Segment, field: Field) -> None:
        places = partial(segment.begin, field)
        for (b, stop), (_, nbytes, _, step, _) in segment.blocks[field.f]:
            need(f"nbytes of a block of {field.name!r}", places(stop) - places(b) == nbytes)
            for i in range(b, stop, step):
                segment.chunk(field, i)
        for i in range(segment.num if field.v or field.codec != "raw" else 0):
            is_empty = field.nbytes(segment.row_shape(field, i)) == 0
            need("a row or its chunk, and not both, has 0 bytes", is_empty == (places(i) == places(i + 1)))  # 11

    # 12: "in ascending order of offset"
    def check_superseded(self, segment: Segment) -> None:
        regions = list(struct.iter_unpack("<QQQ", segment.section(reader.SUPERSEDED)))
        need("order of the superseded regions", all(a[0] < b[0] for a, b in pairwise(regions)))
        for offset, nbytes, region_sum in regions:
            need("place of a superseded region", offset % 4096 == nbytes % 4096 == 0, nbytes > 0)
            need("place of a superseded region", 0 < offset <= self.container.end - nbytes)
            self.check_block("a superseded region", offset, nbytes, region_sum)

    # 10: "KEY_HASHES: the xxh3-64 of each key, sorted ascending. Equal hashes are in the order of positions."
    def check_keys(self, segment: Segment) -> None:
        keys = [segment.key(i) for i in range(segment.num)]
        at, stop = (reader.KEY_OFFSETS, reader.NONE), sum(len(key.encode()) for key in keys)
        (first,), (last,) = segment.numbers(*at, 0), segment.numbers(*at, segment.num)
        need("KEY_OFFSETS", first == 0, last == stop == segment.sections[reader.KEY_BYTES, reader.NONE][1])
        want = sorted((xxh3_64_intdigest(key.encode()), i) for i, key in enumerate(keys))
        hashes = segment.numbers(reader.KEY_HASHES, reader.NONE, 0, segment.num)
        order = segment.numbers(reader.KEY_ORDER, reader.NONE, 0, segment.num)
        need("KEY_HASHES and KEY_ORDER are those of the keys", list(zip(hashes, order, strict=True)) == want)

    def check_keys_are_unique(self) -> None:
        keys = self.container.keys()
        need("a key occurs twice", len(set(keys)) == len(keys))


def verify(container: Container) -> Iterator[str]:
    """Yield a line for each thing that is not as it must be."""
    return Verifier(container).findings()


def main(path: str) -> int:
    try:
        findings = list(verify(Container(path)))
    except FormatError as error:
        findings = [f"{type(error).__name__}: {error}"]
    print(*findings or ["every byte is as it must be"], sep="\n")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
