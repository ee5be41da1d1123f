"""Where the shards of a writer go, and how they become part of a container: a new file, or the end of an old one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Final, Literal, TypeAlias

from chunkstore._format import superblock as superblocks
from chunkstore._format.checksum import sum64_large
from chunkstore._format.constants import (
    HEAD_NBYTES,
    KNOWN_READ_ONLY_COMPATIBLE,
    MAX_INT,
    MAX_SEGMENTS,
    PART_ALIGNMENT,
    SUPERBLOCK_NBYTES,
    SUPERBLOCK_OFFSETS,
    Kind,
)
from chunkstore._format.index import read_index
from chunkstore._format.layout import check_count
from chunkstore._format.schema import Field
from chunkstore._format.section import Section
from chunkstore._format.segment import Directory, Earlier, pad
from chunkstore._format.superblock import Superblock
from chunkstore._storage.commit import NewFile, commit_append, write_superblocks
from chunkstore._storage.interrupts import signals_later
from chunkstore._storage.lock import WriterLock
from chunkstore._storage.objects import UrlError, is_url
from chunkstore._storage.sink import Sink
from chunkstore._storage.source import Source, open_source
from chunkstore._write.index_writer import ENDS, IndexWriter, Keys, Position
from chunkstore.errors import CorruptError, LimitError, ReplacedError, SchemaError, UnsupportedFeatureError

_PIECE_NBYTES: Final = 8 << 20
_SECTOR_NBYTES: Final = 512  # what a disk writes as a whole, or not at all


class NewTarget:
    """A container that does not exist yet.

    Attributes:
        path: where it will be.
        sink: takes the blocks.
        num_samples: that are committed.
        before_publish: called with the path of the complete, unpublished file; what it raises stops the commit.
    """

    def __init__(self, path: str | os.PathLike[str], mode: Literal["x", "w"]) -> None:
        self._file = NewFile.create(path, mode)
        self.path = self._file.path
        self.sink = self._file.sink
        self.num_samples = 0
        self.before_publish: Callable[[str], None] | None = None

    def begin(self, fields: Sequence[Field], *, with_keys: bool) -> IndexWriter:
        """The index of the shards to come."""
        return IndexWriter(fields, with_keys=with_keys, folder=os.path.dirname(self._file.temporary) or os.curdir)

    def check_keys(self, keys: Keys) -> None:
        """All keys are in the index writer, which refuses duplicates itself."""

    def commit(self, index: IndexWriter, tail: int) -> None:
        """Write the index behind the blocks, which end at `tail`, sync, and give the file its name."""
        superblock = finish_new(self.sink, index, tail)
        if self.before_publish is not None:
            self.before_publish(self._file.temporary)
        self._file.publish()
        self.num_samples = index.num_samples
        self._superblock = superblock

    def following(self) -> Target:
        """Itself until it is published, then the end of what it became."""
        return AppendTarget(self.path, self._superblock) if self._file.finished else self

    def close(self) -> None:
        """Remove the file unless it was published."""
        self._file.discard()


def finish_new(sink: Sink, index: IndexWriter, data_end: int, offset: int | None = None) -> Superblock:
    """Write the index of a file that nobody can see yet, at `offset` or behind the blocks, and both superblocks."""
    superblock = index.write(sink, pad(data_end, PART_ALIGNMENT) if offset is None else offset, data_end=data_end)
    sink.truncate(superblock.committed_end)
    write_superblocks(sink, superblocks.encode(superblock))
    return superblock


class AppendTarget:
    """The end of an existing container, under its lock.

    Attributes:
        path, sink, num_samples: as of `NewTarget`.
        tail: offset at which the first new block may go.
        fields: the schema.
        with_keys: whether samples have keys; None as long as there are none.
    Raises:
        FileNotFoundError, PermissionError: it cannot be opened for writing.
        LockedError: another writer has it.
        FormatError: it cannot be read.
        UnsupportedFeatureError: it has a feature with which this release must not append.
    """

    def __init__(self, path: str | os.PathLike[str], expected: Superblock | None = None) -> None:
        """Open and lock.

        Args:
            path: the container.
            expected: its superblock as this writer left it; ReplacedError if something else is there now.
        """
        self.path = os.path.abspath(path)  # whoever changes directories goes on with the same file
        self._owner_pid = os.getpid()
        with ExitStack() as stack:
            self._lock = WriterLock.acquire(path)
            stack.callback(self._lock.release)
            self.sink = self._lock.open_sink()
            stack.callback(self.sink.close)
            self._open_same()
            stack.callback(self._source.close)
            self._read_index()
            self._check_flags()
            if expected is not None and expected != self._index.superblock:
                raise ReplacedError(
                    f"{self.path}: this is not the container as this writer left it: another one took its place, or "
                    "another writer appended to it. What was committed is committed; open it again to append more"
                )
            self._clear_up()
            stack.pop_all()

    def _read_index(self) -> None:
        """Read what is committed."""
        self._index = read_index(self._source)
        self._outdated = False
        self.tail = self._committed_end = self._index.superblock.committed_end
        self.fields = self._index.fields
        # Without samples it is open whether they will have keys: the empty segment is replaced.
        self.with_keys: bool | None = self._index.has_keys if self._index.num_samples else None
        self.num_samples = self._index.num_samples

    def _open_same(self) -> None:
        """Open for reading the file that the lock is on."""
        try:
            self._source = open_source(self.path, "pread")
        except FileNotFoundError as error:
            raise ReplacedError(
                f"{self.path}: the container was moved or removed while it was written to. What was committed is in "
                "it, wherever it is now"
            ) from error
        if not os.path.samestat(os.fstat(self._source.fileno()), os.fstat(self.sink.fileno())):
            self._source.close()
            raise ReplacedError(
                f"{self.path}: another file was put in the place of the container while it was written to. What "
                f"was committed went into the old file, which has this name no more; open the new one"
            )

    def _clear_up(self) -> None:
        """After a crash or damage, make the container what it is at rest; there, nothing is to be done."""
        head = self._source.read(0, HEAD_NBYTES)
        a, b = head[:SUPERBLOCK_NBYTES], head[SUPERBLOCK_NBYTES:]
        if a == b and self._source.size == self._committed_end:
            return
        self._check_nothing_lost(a, b)
        self._prove_index()
        self.sink.truncate(self._committed_end)  # what an append left behind that did not finish
        if a != b:
            self._mend_superblocks(a, b)

    def _check_nothing_lost(self, a: bytes, b: bytes) -> None:
        """Refuse to cut off what a damaged superblock A may have named: B may be that of the commit before.

        A write of A that a crash tore has its first or its last sector as it was before, which is as in B; such a
        commit was not acknowledged. Any other A that is damaged was whole once.
        """
        behind = self._source.size - self._committed_end
        ends = slice(0, _SECTOR_NBYTES), slice(-_SECTOR_NBYTES, None)
        if behind and "A" in dict(self._index.head.damage) and not any(a[part] == b[part] for part in ends):
            raise CorruptError(
                f"{self.path}: superblock A is damaged, and {behind} bytes lie behind the end that B names: "
                "they may be a commit that B does not know, and appending would cut them off. Nothing was changed. "
                "Keep a copy of the file; `chunkstore recover FILE OUT` saves what can be proven good"
            )

    def _prove_index(self) -> None:
        """Read all of the index before anything is changed.

        What is to be cut off, or the superblock to be mended, may be the way to samples that a damaged index is not.
        """
        for directory in self._index.directories:
            for entry in directory.sections():
                try:
                    Section(self._source, entry).ensure_all()
                except CorruptError as error:
                    raise CorruptError(
                        f"{error} The last append was interrupted, and the index is damaged: nothing was changed. "
                        "Keep a copy of the file; `chunkstore recover FILE OUT` saves what can be proven good"
                    ) from None

    def _mend_superblocks(self, a: bytes, b: bytes) -> None:
        """Write the superblock that counts over the other one, where a crash or damage left them different.

        A commit writes A first, and B is the way back until A is whole. If B were still that of an earlier generation,
        or damaged, a second crash would lose the last commit, or everything.
        """
        bad = next((name for name, _ in self._index.head.damage), None)
        if bad is None:
            bad = "B" if superblocks.decode(a) == self._index.superblock else "A"
        # The good one may be in memory only, from a writer that was killed before its sync.
        self.sink.sync()
        self.sink.pwrite(SUPERBLOCK_OFFSETS["AB".index(bad)], b if bad == "A" else a)
        # A damaged A in front of new bytes is what `_check_nothing_lost` refuses: a crash must not leave that.
        self.sink.sync()

    def _check_flags(self) -> None:
        unknown = self._index.superblock.read_only_compatible & ~KNOWN_READ_ONLY_COMPATIBLE
        if unknown:
            raise UnsupportedFeatureError(
                f"{self.path}: read-only-compatible feature flags {unknown:#x} are not known to this release: "
                "it can read the container, but must not append to it; install a newer one"
            )

    def attrs(self) -> dict[str, Any]:
        """ATTRS as they are."""
        return self._index.attrs()

    def dictionaries(self) -> dict[int, bytes | None]:
        """DICTIONARY of each field, empty where it has none; None where it is still open, for want of samples."""
        if not self.num_samples:
            return dict.fromkeys(range(len(self._index.fields)))
        return {number: self._index.dictionary(number) for number in range(len(self._index.fields))}

    def begin(self, fields: Sequence[Field], *, with_keys: bool) -> IndexWriter:
        """The index of the shards to come, and of the small segments before them, which it will replace.

        So the sizes of live segments fall by half from each to the next: there are few, and the index of a sample is
        copied O(log N) times in the life of a container.
        """
        directories = self._index.directories
        kept = min(_num_kept([directory.segment_nbytes for directory in directories]), MAX_SEGMENTS - 1)
        kept = kept if self._index.num_samples else 0
        self._earlier = [self._earlier_entry(directory) for directory in directories[:kept]]
        folder = os.path.dirname(self.path) or os.curdir
        position = self._position(directories[kept] if kept < len(directories) else None)
        schema = self._index.schema
        index = IndexWriter(fields, with_keys=with_keys, folder=folder, position=position, schema=schema)
        for directory in directories[kept:]:
            index.absorb(self._index, directory)
            segment_sum = sum_of_segment(self._source, directory)
            index.superseded.append((directory.offset, directory.segment_nbytes, segment_sum))
        index.dictionaries = {n: d for n in range(len(fields)) if (d := self._index.dictionary(n))}
        return index

    def _position(self, first: Directory | None) -> Position:
        """Where a segment goes on that begins like `first`, or behind all."""
        sample = self._index.num_samples if first is None else first.first_sample
        shard = len(self._index.shard_starts) - 1 if first is None else first.first_shard
        ends = {
            (Kind(kind), number): self._index.before(Kind(kind), number, sample)
            for kind, number, *_ in self._index.directories[-1].sections()
            if kind in ENDS
        }
        return Position(sample, shard, ends)

    def _earlier_entry(self, directory: Directory) -> Earlier:
        for entry in self._index.directories[-1].earlier:
            if entry.offset == directory.offset:
                return entry
        superblock = self._index.superblock
        counts = directory.first_sample, directory.num_samples
        return Earlier(directory.offset, superblock.directory_nbytes, *counts, superblock.directory_sum)

    def check_keys(self, keys: Keys) -> None:
        """Refuse keys that the container has already; about a microsecond a key.

        Raises:
            SchemaError: the first such key.
        """
        if self._index.keys is None:
            return
        texts = [keys[place] for place in range(len(keys))]
        found = self._index.keys.find_texts(texts)
        for place in (found >= 0).nonzero()[0].tolist():
            raise SchemaError(
                f"{self.path}: the container has a sample with the key {texts[place].decode()!r} already, "
                f"at position {found[place]}; keys must be unique"
            )

    def commit(self, index: IndexWriter, tail: int) -> None:
        """Write the index segment, then the superblocks in their order; afterwards go on from there."""
        before = self._index.superblock
        if before.generation >= MAX_INT:
            raise LimitError(f"{self.path}: generation {before.generation}: no more can be appended; repack it")
        superblock = index.write(
            self.sink, pad(tail, PART_ALIGNMENT), data_end=tail, earlier=self._earlier, before=before
        )
        self.sink.truncate(superblock.committed_end)
        with signals_later():  # Ctrl-C finds all of the commit or nothing of it
            # From here on the new end may be the committed one, whatever fails: `close` must not cut it off.
            self._committed_end = superblock.committed_end
            commit_append(self.sink, superblocks.encode(superblock))
            self.tail = superblock.committed_end
            self.num_samples = sum(entry.num_samples for entry in self._earlier) + index.num_samples
        self.with_keys = index.with_keys if self.num_samples else None
        # Most writers commit once: only one that goes on needs the index of what it wrote.
        self._outdated = True
        self._source.close()
        self._open_same()

    def following(self) -> Target:
        """Itself: its tail has moved on."""
        if self._outdated:
            self._read_index()
        return self

    def close(self) -> None:
        """Cut off what was not committed, and give the lock back.

        Nothing is synced: superblock A of the last commit is on the disk, and B, should it get lost, is mended by the
        next writer. What was cut off lies behind the committed end, where nobody reads.
        """
        try:
            # Not in a forked child, whose copy this may be: the parent goes on writing.
            mine = not self.sink.poisoned and not self.sink.closed and os.getpid() == self._owner_pid
            if mine and self.sink.size > self._committed_end:
                self.sink.truncate(self._committed_end)
        finally:
            self._source.close()
            self.sink.close()
            self._lock.release()


Target: TypeAlias = NewTarget | AppendTarget


def check_arguments(path: str | os.PathLike[str], mode: str, shard_nbytes: int, num_samples: int | None) -> None:
    """Refuse what a `Writer` was given and cannot be, before any work."""
    if is_url(path):
        what = "only a file is written piece by piece, or appended to; `repack` uploads it when it is whole"
        raise UrlError(f"{path}: {what}")
    if mode not in ("x", "w", "a"):
        raise ValueError(f"mode: expected 'x' (new), 'w' (replace) or 'a' (append), found {mode!r}")
    check_count("shard_nbytes", shard_nbytes)
    check_count("num_samples", 0 if num_samples is None else num_samples, 0)
    if num_samples is not None and mode == "a":
        raise ValueError(f"num_samples: goes with a new container, not with mode 'a', found {num_samples}")


def sum_of_segment(source: Source, directory: Directory) -> int:
    """The xxh3-64 of a whole segment, as in SUPERSEDED."""
    starts = range(directory.offset, directory.end, _PIECE_NBYTES)
    return sum64_large(memoryview(source.read(start, min(_PIECE_NBYTES, directory.end - start))) for start in starts)


def _num_kept(sizes: Sequence[int]) -> int:
    """How many of the live segments stay as they are; those behind are taken into the new one.

    Args:
        sizes: nbytes of the live segments.
    """
    kept, behind = len(sizes) - 1, sizes[-1]
    if len(sizes) < 2 or sizes[-2] > 2 * behind:
        return len(sizes)
    while kept and sizes[kept - 1] <= 2 * behind:
        kept -= 1
        behind += sizes[kept]
    return kept
