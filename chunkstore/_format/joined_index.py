"""The indices of several containers as one: positions run through, offsets count in one space of addresses.

Many containers are to a reader what many index segments of one container are: more parts of the same columns, more
shards, blocks elsewhere. So `FieldIndex`, and all that reads by it, need not know that there are many.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.checksum import sum128
from chunkstore._format.constants import ATTRS_RESERVED, NO_FIELD, PAGE_NBYTES, Kind
from chunkstore._format.index import BLOCK_ENTRY, Index
from chunkstore._format.keys import KeyIndex
from chunkstore._format.lookup import Ints, Lookup, grouped
from chunkstore._format.schema import Field
from chunkstore._format.section import Column, Section, join_ranges
from chunkstore._format.segment import num_pages
from chunkstore._format.span import spanning
from chunkstore.errors import SchemaError

VARIOUS: Final = "various"  # the codec of a field that has not the same one everywhere


class JoinedColumn(Column):
    """One index array over the segments of several containers: `take` is one gather, however many they are."""

    def __init__(
        self, parts: Sequence[Section], bases: Sequence[int], starts: Ints, dtype: str, width: int = 1
    ) -> None:
        """As of `Column`; `bases`: what to add to offsets in the file of each part."""
        super().__init__(parts, starts, dtype, width)
        self._bases = bases
        self._lookup = Lookup(starts)
        pages = [num_pages(part.nbytes) for part in parts]
        self._first_page = np.cumsum([0, *pages], dtype=np.int64)[:-1]
        self._seen = np.zeros(sum(pages), bool)  # one byte a page, proven ones True
        self._all_seen = False
        self._entries: NDArray[Any] | None = None
        self._places: Ints = starts  # where the entry of position 0 would be, for each part

    def take(self, positions: Ints, shift: int = 0) -> NDArray[Any]:
        """As of `Column`."""
        if len(self._parts) == 1 or not len(positions):
            return super().take(positions, shift)
        which = self._lookup.find(positions)
        if not self._all_seen:
            self._ensure(which, positions + shift)
        entries = self._entries
        if entries is None:
            entries = self._span()
        if self._width == 1:
            return entries.take(positions + self._places.take(which) + shift)
        places = (positions + shift) * self._width + self._places.take(which)
        return entries.take(places[:, None] + np.arange(self._width))

    def run(self, start: int, stop: int, extra: int = 0) -> NDArray[Any]:
        """As of `Column`; with `extra`, which OFFSETS have, those of a part go on where the part before ends."""
        if not extra or len(self._parts) == 1:
            return super().run(start, stop, extra)
        if start >= stop:
            return np.zeros(extra, self._dtype)
        bounds = [*self._starts.tolist(), stop]
        part = bisect_right(bounds, start, hi=len(bounds) - 1) - 1
        pieces: list[NDArray[Any]] = []
        end = np.zeros(0, self._dtype)
        while start < stop:
            high = min(bounds[part + 1], stop)
            piece = self._run_part(part, start, high + 1)
            # Arrays of one entry: numbers of a hostile file wrap around, and are found to descend.
            piece = piece + (end - piece[:1]) if len(end) else piece
            pieces.append(piece[:-1])
            end, start, part = piece[-1:], high, part + 1
        return np.concatenate([*pieces, end])

    def unread(self, positions: Ints, shift: int = 0) -> tuple[Ints, Ints]:
        """As of `Column`; offsets are those of all containers together."""
        if self._all_seen:
            return positions[:0], positions[:0]
        size, found = self._dtype.itemsize, []
        for part, places in grouped(self._lookup.find(positions)):
            rows = positions[places] + (shift - int(self._starts[part]))
            for item in self._ends:
                offsets, nbytes = self._parts[part].unread(rows * self._width + item, size)
                found.append((offsets + self._bases[part], nbytes))
        return join_ranges(found)

    def _span(self) -> NDArray[Any]:
        memory, at = spanning([part.array(np.uint8) for part in self._parts])
        size = self._dtype.itemsize
        assert not (at % size).any()  # sections begin at multiples of 64, memory of ours at those of 16
        self._places = at // size - self._starts * self._width
        self._entries = memory[: len(memory) // size * size].view(self._dtype)
        return self._entries

    def _ensure(self, which: Ints, rows: Ints) -> None:
        """Prove the pages of these entries."""
        rows = (rows - self._starts.take(which)) * self._width
        per_page = PAGE_NBYTES // self._dtype.itemsize
        for item in self._ends:
            items = rows + item
            pages = items // per_page + self._first_page.take(which)
            unseen = ~self._seen.take(pages)
            if unseen.any():
                missing = items[unseen]
                for part, places in grouped(which[unseen]):
                    self._parts[part].ensure_items(missing[places], self._dtype.itemsize)
                self._seen[pages] = True
                self._all_seen = bool(self._seen.all())


class JoinedKeys(KeyIndex):
    """The keys of several containers: a lookup asks each of them, about 10 microseconds a container.

    A key that two of them have leads nowhere: a lookup of it is an error.
    """

    def __init__(self, path: str, parts: Sequence[Index], starts: Sequence[int]) -> None:
        self._path = path
        self._parts = [(int(start), index.path, index.keys) for index, start in zip(parts, starts, strict=True)]
        self._starts = [start for start, _, _ in self._parts]

    def find_texts(self, texts: Sequence[bytes]) -> Ints:
        """As of `KeyIndex`.

        Raises:
            SchemaError: two containers have a key.
        """
        found, owner = np.full(len(texts), -1, np.int64), np.full(len(texts), -1, np.int64)
        for number, (start, _, keys) in enumerate(self._parts):
            if keys is None:
                continue
            local = keys.find_texts(texts)
            here = np.flatnonzero(local >= 0)
            again = here[found[here] >= 0]
            if again.size:
                place = int(again[0])
                raise self._twice(texts[place], int(owner[place]), int(found[place]), number, int(local[place]))
            found[here], owner[here] = local[here] + start, number
        return found

    def find(self, key: str) -> int:
        """As of `KeyIndex`."""
        return int(self.find_many([key])[0])

    def text(self, position: int) -> str:
        """As of `KeyIndex`."""
        start, _, keys = self._parts[bisect_right(self._starts, position) - 1]
        if keys is None:
            raise IndexError(position)
        return keys.text(position - start)

    def texts(self, start: int, stop: int) -> list[str]:
        """As of `KeyIndex`."""
        found: list[str] = []
        for first, _, keys in self._parts:
            if keys is not None and start < stop:
                found += keys.texts(max(start - first, 0), max(stop - first, 0))
        return found

    def _twice(self, text: bytes, one: int, position: int, other: int, local: int) -> SchemaError:
        (start, path, _), (other_start, other_path, _) = self._parts[one], self._parts[other]
        return SchemaError(
            f"{self._path}: the key {text.decode('utf-8', 'replace')!r:.200} is in {path} (sample {position - start}) "
            f"and in {other_path} (sample {local}): ask by position, {position} or {other_start + local}"
        )


class JoinedIndex(Index):
    """The indices of several containers as that of one, for `FieldIndex` and for lookups.

    It has no head, no superblock and no sections of its own: those are of `parts`.

    Attributes:
        parts: one index for each container.
        starts: int64, shape (parts + 1,): the position of the first sample of each container, and N.
        first_shards: int64, shape (parts + 1,): the same of shards.
        numbers: for each container the number of each field there.
    """

    def __init__(
        self, path: str, parts: Sequence[Index], bases: Sequence[int], names: Sequence[str] | None = None
    ) -> None:
        """Join them.

        Args:
            path: what messages call it.
            parts: at least one.
            bases: what to add to the offsets of each container.
            names: fields to take, default all.
        Raises:
            SchemaError: fields differ, or only some containers have keys.
        """
        self.path = path
        self.parts = tuple(parts)
        self._bases = bases
        self.starts = np.cumsum([0, *(part.num_samples for part in parts)], dtype=np.int64)
        self.first_shards = np.cumsum([0, *(len(part.blocks) for part in parts)], dtype=np.int64)
        self.num_samples = int(self.starts[-1])
        self.first_shard = 0
        self.numbers = [_numbers(part, parts[0], names) for part in parts]
        self.fields = _joined_fields(self.parts, self.numbers)
        self.has_keys = _have_keys(self.parts)
        self.keys = JoinedKeys(path, parts, self.starts[:-1].tolist()) if self.has_keys else None
        self.shard_starts = np.concatenate(
            [[0], *(part.shard_starts[1:] + start for part, start in zip(parts, self.starts, strict=False))]
        ).astype(np.int64)
        self.blocks = np.concatenate(
            [_moved(part, numbers, base) for part, numbers, base in zip(parts, self.numbers, bases, strict=True)]
        )
        self._segments = [
            (number, directory)
            for number, part in enumerate(parts)
            for directory in part.directories
            if directory.num_samples
        ]
        self.directories = tuple(
            replace(
                directory,
                first_sample=directory.first_sample + int(self.starts[number]),
                first_shard=directory.first_shard + int(self.first_shards[number]),
            )
            for number, directory in self._segments
        )

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits: the xxh3-128 of the directory sums of all containers, in order (order-1, 7.1)."""
        return sum128(b"".join(part.superblock.directory_sum for part in self.parts)).hex()

    def attrs(self) -> dict[str, Any]:
        """What all containers have alike in ATTRS, parsed now."""
        return common_attrs([part.attrs() for part in self.parts])

    def shares_codec(self, number: int) -> bool:
        """Whether one decoder serves all containers: the same codec, and no dictionary."""
        return self.fields[number].codec != VARIOUS and not any(
            (Kind.DICTIONARY, numbers[number]) in part.directories[-1]
            for part, numbers in zip(self.parts, self.numbers, strict=True)
        )

    def dictionary(self, number: int) -> bytes:
        """Empty: where there are dictionaries, each container is read by itself."""
        return b""

    def column(self, kind: Kind, number: int, starts: Ints, dtype: str, width: int = 1) -> Column:
        """One index array of a field over all segments of all containers."""
        sections = []
        for part, directory in self._segments:
            own = number if number == NO_FIELD else self.numbers[part][number]
            sections.append(self.parts[part].section(directory, kind, own))
        return JoinedColumn(sections, [self._bases[part] for part, _ in self._segments], starts, dtype, width)


def common_attrs(all_attrs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The members of ATTRS that are equal everywhere. What is noted of the sources of one file is not true of all."""
    text = [{name: json.dumps(value, sort_keys=True) for name, value in attrs.items()} for attrs in all_attrs]
    return {
        name: value
        for name, value in all_attrs[0].items()
        if all(t.get(name) == text[0][name] for t in text) and (len(text) == 1 or name != ATTRS_RESERVED)
    }


def check_fields_alike(path: str, fields: Sequence[Field], first_path: str, first_fields: Sequence[Field]) -> None:
    """Fields of the same names, dtypes and shapes, in any order; codecs may differ.

    Raises:
        SchemaError: says which field differs, and how.
    """
    mine, wanted = ({field.name: field for field in each} for each in (fields, first_fields))
    for name in [*wanted, *mine]:
        if name not in mine or name not in wanted:
            lacks, has = (path, first_path) if name not in mine else (first_path, path)
            raise SchemaError(f"{lacks} has no field {name!r}, which {has} has; fields=[...] chooses those to read")
        if (mine[name].dtype, mine[name].shape) != (wanted[name].dtype, wanted[name].shape):
            raise SchemaError(
                f"field {name!r}: {_shown(mine[name])} in {path}, {_shown(wanted[name])} in {first_path}; "
                "fields=[...] chooses those to read"
            )


def _shown(field: Field) -> str:
    dims = ", ".join("?" if dim is None else str(dim) for dim in field.shape)
    return f"{field.dtype} ({dims}{',' if len(field.shape) == 1 else ''})"


def _numbers(part: Index, first: Index, names: Sequence[str] | None) -> list[int]:
    """Where in `part` the fields of `first` are, those of `names` alone."""
    mine, wanted = (
        [field for field in index.fields if names is None or field.name in names] for index in (part, first)
    )
    check_fields_alike(part.path, mine, first.path, wanted)
    places = {field.name: number for number, field in enumerate(part.fields)}
    return [places[field.name] for field in wanted]


def _joined_fields(parts: Sequence[Index], numbers: Sequence[Sequence[int]]) -> tuple[Field, ...]:
    """The fields of the first container; their codec is `VARIOUS` where containers with samples have several."""
    found = []
    for place, number in enumerate(numbers[0]):
        codecs = {part.fields[own[place]].codec for part, own in zip(parts, numbers, strict=True) if part.num_samples}
        field = parts[0].fields[number]
        found.append(replace(field, codec=codecs.pop() if len(codecs) == 1 else VARIOUS) if codecs else field)
    return tuple(found)


def _have_keys(parts: Sequence[Index]) -> bool:
    """Whether samples have keys.

    Raises:
        SchemaError: some have and some have not.
    """
    filled = [part for part in parts if part.num_samples]
    for other in filled[1:]:
        if other.has_keys != filled[0].has_keys:
            named = other.path if other.has_keys else filled[0].path
            raise SchemaError(f"{other.path} and {filled[0].path}: only {named} has keys; all have them or none has")
    return filled[0].has_keys if filled else any(part.has_keys for part in parts)


def _moved(part: Index, numbers: Sequence[int], base: int) -> NDArray[Any]:
    """The blocks of some fields, with other offsets; shape (shards, fields)."""
    blocks = part.blocks[:, list(numbers)].astype(BLOCK_ENTRY)
    blocks["offset"] += np.uint64(base)
    return blocks
