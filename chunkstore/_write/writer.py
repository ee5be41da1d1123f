"""Samples -> a container: new, or behind what an existing one has."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final, Literal, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.codec import RAW
from chunkstore._format.constants import (
    HEAD_NBYTES,
    MAX_FILE_NBYTES,
    MAX_KEY_NBYTES,
    PART_ALIGNMENT,
    SHARD_NBYTES,
)
from chunkstore._format.encode import CodecArg, parse_codecs
from chunkstore._format.layout import samples_per_shard
from chunkstore._format.schema import Field, check_fields, encode_attrs
from chunkstore._format.segment import pad
from chunkstore._storage.sink import Sink
from chunkstore._write.coding import FieldCoder, choose_codecs
from chunkstore._write.index_writer import IndexWriter, Keys, encode_key
from chunkstore._write.late import LateBlocks
from chunkstore._write.shards import Rows, ShardWriter
from chunkstore._write.staging import (
    FixedStage,
    KeyStage,
    RaggedStage,
    Stage,
    as_fields,
    batch_length,
    batch_rows,
    fixed_rows,
    infer_field,
    rows_one_by_one,
    slot_of,
    type_fields,
    type_slot,
)
from chunkstore._write.target import AppendTarget, NewTarget, Target, check_arguments
from chunkstore.errors import ClosedError, PoisonedError, SchemaError

_ndarray = np.ndarray  # a name of this module: `add` looks it up for every value
_STAGED_NBYTES: Final = 1 << 20  # the first memory for rows; where it is full, the next is so many times as large:
_GROWTH: Final = 8
_PACK_KEYS: Final = 16_384  # keys that wait one by one; at most 2 MB of short ones


class Writer:
    """Writes a container.

        with chunkstore.Writer("new.cks") as w:
            w.add({"image": image, "label": 3}, key="cat/0007")

    A new file appears under its name with the first commit, complete and synced; the end of the block commits, unless
    there was an exception. Each later commit, and each of mode `"a"`, adds a generation: readers that are open keep
    theirs. What was not committed is dropped: `close` warns then, `abort` does not. One writer at a time may append.

    Args:
        path: the container; its directory must exist.
        fields: `Field`s, or a mapping from name to dtype, `(dtype, shape)` or `Field`; `None` in a shape for a size
            that varies. Default: as the first sample has them, all shapes fixed.
        mode: `"x"` refuses a path that exists, `"w"` replaces it when this one is complete, `"a"` appends to it.
        attrs: JSON object for the container; `writer.attrs` can be changed until a commit. With mode `"a"` these
            members are set, and the others stay.
        num_samples: how many will be added, if that is known: each field of fixed shape, and each with a codec, then is
            in one piece. Otherwise the file has a piece of every field for every `shard_nbytes`. Not with mode `"a"`.
        shard_nbytes: bytes of a shard, before codecs. Memory use is about two of them and one sample: while one is
            summed and written by two threads, the next one is filled. With codecs it is three.
        codec: how chunks are stored: `{"image": "zstd:5", "pose": "blosc2:lz4,9,bitshuffle"}`, or `"zstd"` for every
            field but those with rows of a fixed size below 64 bytes. `raw`, `zlib[:LEVEL]`, `zstd[:LEVEL,dict]`,
            `blosc2[:CODEC,LEVEL,FILTER]`, of whose options each can be left out; `dict` trains a dictionary
            on the first shard, for small rows that are alike. Default: what the fields say, at the usual level. With
            mode `"a"` only options can change.
    Raises:
        FileExistsError, FileNotFoundError, PermissionError, IsADirectoryError: now, before any work.
        SchemaError: the fields cannot be those of a container, or are not those of the one to append to.
        LockedError: mode "a", and another writer has the container.
        FormatError: mode "a", and it cannot be read.
        MissingExtraError: the package of a codec is not installed; also with the first sample.
    Not thread-safe.
    """

    # What is known before the first row, by number of the field: dictionaries, and bytes of all rows of ragged ones.
    _dictionaries: Mapping[int, bytes | None] = MappingProxyType({})
    _ragged_nbytes: Mapping[int, int] = MappingProxyType({})
    _closed = True  # until the constructor is through

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        fields: type_fields | None = None,
        mode: Literal["x", "w", "a"] = "x",
        attrs: Mapping[str, Any] | None = None,
        num_samples: int | None = None,
        shard_nbytes: int = SHARD_NBYTES,
        codec: CodecArg | None = None,
    ) -> None:
        check_arguments(path, mode, shard_nbytes, num_samples)
        known = None if fields is None else as_fields(fields)
        self._codecs = parse_codecs(codec)
        # Python's: NumPy's integers wrap around where they are multiplied by the bytes of a row.
        self._shard_nbytes = int(shard_nbytes)
        self._promised = None if num_samples is None else int(num_samples)
        self._fields: tuple[Field, ...] | None = None
        self._index: IndexWriter | None = None
        self._owner_pid = os.getpid()
        self._failure: BaseException | None = None
        self._refused: int | None = None  # of how many samples the last commit was, if it was refused
        self._with_keys: bool | None = None
        self._shards = ShardWriter()
        self._coders: list[FieldCoder | None] = []
        self._late: dict[int, LateBlocks] = {}
        self._stages: list[Stage] = []
        self._slots: list[type_slot] = []
        # What `add` compares first: no sample has this length while fields are unknown, or memory for the next row is.
        self._num_slots = -1
        self._half = False  # whether there may be parts of samples that were refused
        self._keys = KeyStage()
        self._key_texts = self._keys.texts  # the same list for good
        self._count = 0  # samples, and their bytes, in the shard that is being filled
        self._nbytes = 0
        self._sample_nbytes = 0
        self._most = self._capacity = 0  # samples of a shard where all have one size; for how many there is memory
        self._stop = 0  # samples before something is to be done: there is no memory for more, or many keys wait
        self._num_written = 0
        self._target: Target = AppendTarget(path) if mode == "a" else NewTarget(path, mode)
        self._path = self._target.path
        self._changed = mode != "a"  # a new container is worth a commit even when it is empty
        self.attrs: dict[str, Any] = {}
        try:
            self._start(known, attrs)
        except BaseException:
            self._target.close()
            raise
        self._closed = self._released = False

    def _start(self, known: tuple[Field, ...] | None, attrs: Mapping[str, Any] | None) -> None:
        """Go on from what the target has, or begin, where the fields are known."""
        if isinstance(self._target, AppendTarget):
            self.attrs.update(self._target.attrs())
            self._continue(self._target, known)
        elif known is not None:
            self._begin(known)
        self._committed_attrs = encode_attrs(self.attrs)
        if attrs:
            self.attrs.update(attrs)
            encode_attrs(self.attrs)

    # -- life ---------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is None and not self._closed and self._has_more():
                self.commit()
        finally:
            self.abort()

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        if not self._closed and (text := self._dropped()):
            _warn(text, UserWarning, stacklevel=2)  # not a ResourceWarning, which nobody sees: samples are lost

    def __repr__(self) -> str:
        return f"<chunkstore.Writer {self._path!r}: {len(self)} samples{', closed' if self._closed else ''}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Writer cannot be pickled or copied: one process writes, others give it their samples")

    def _has_more(self) -> bool:
        """Whether a commit would change anything."""
        return self._changed or self._count > 0 or encode_attrs(self.attrs) != self._committed_attrs

    def _dropped(self) -> str:
        """What is lost with this writer, as a warning; empty where an error told it, and in a forked copy."""
        if self._failure is not None or self._refused == len(self) or os.getpid() != self._owner_pid:
            return ""
        try:
            attrs = encode_attrs(self.attrs) != self._committed_attrs
        except (TypeError, ValueError):  # what no commit would take
            attrs = True
        count = self._num_written + self._count
        lost = " and ".join([f"{count:,} sample{'s' * (count != 1)}"] * (count > 0) + ["new attrs"] * attrs)
        what_to_do = "Call commit() before close(), or abort() to drop on purpose"
        return f"{self._path}: {lost} dropped, not committed. {what_to_do}" if lost else ""

    def __len__(self) -> int:
        """Number of samples of the container, with those added so far."""
        return self._target.num_samples + self._num_written + self._count

    @property
    def fields(self) -> dict[str, Field]:
        """The fields, once they are known."""
        return {field.name: field for field in self._fields or ()}

    def close(self) -> None:
        """As `abort`, with a `UserWarning` where samples or attrs are dropped, unless an error told it before."""
        told = self._released
        self.abort()
        if not told and (text := self._dropped()):
            warnings.warn(text, UserWarning, stacklevel=2)

    def abort(self) -> None:
        """Drop what was not committed. Idempotent; where an interrupt or want of memory ends it, call it again."""
        self._closed = True
        self._num_slots = -1
        if not self._released:
            self._shards.close()  # where an interrupt ends that, a thread may still write: the lock stays
            try:
                self._target.close()
            finally:
                self._close_index()
                for late in self._late.values():
                    late.close()
            self._released = True

    def commit(self) -> None:
        """Make all that was added part of the container, complete and synced. The writer can go on.

        Costs two syncs and the index of what was added since the last commit (and now and then of some before).

        Raises:
            SchemaError: no sample and no fields were given, not as many samples as promised, attrs that are no JSON:
                the writer can go on. A key that was used before: it cannot.
            WriteError: the system refused; the container is as it was before (a new one: nothing is published).
            CommitUnknownError: a sync failed: whether this commit outlives a power failure is unknown.
            FileExistsError: mode "x", and somebody took the name meanwhile.
        """
        self._check_open()
        self._refused = len(self)
        if self._fields is None:
            raise SchemaError(f"{self._path}: no sample was added and no fields= were given; nothing to write")
        if self._promised is not None and len(self) != self._promised:
            raise SchemaError(f"{self._path}: num_samples={self._promised} was promised, {len(self)} were added")
        attrs = encode_attrs(self.attrs)  # what cannot be stored is refused before anything is written
        try:
            self._flush()
            self._shards.wait()
            index = self._ensure_index()
            index.attrs = attrs
            self._place_late(index)
            self._target.commit(index, self._tail)
            self._committed_attrs = attrs
            self._after_commit()
        except BaseException as error:
            self._fail(error)
            raise

    def _after_commit(self) -> None:
        """What comes next goes behind what was committed."""
        self._close_index()
        self._promised = None  # it was for one region per field, and is kept
        self._regions.clear()
        self._ends.clear()
        self._late.clear()
        self._num_written = 0
        self._changed = False
        self._refused = None

    def _close_index(self) -> None:
        if self._index is not None:
            self._index.close()
            self._index = None

    def _fail(self, error: BaseException) -> None:
        """What is in the file is unknown: the writer takes nothing more, and lets go of it."""
        self._failure = error
        try:
            self.abort()
        except OSError:
            pass  # the first error is the one to tell

    def _check_open(self) -> None:
        if self._failure is not None:
            why = str(self._failure) or type(self._failure).__name__  # an interrupt has no text
            raise PoisonedError(f"{self._path}: this writer failed before: {why}; start again")
        if self._closed:
            raise ClosedError(f"{self._path}: this writer is closed")

    # -- adding -------------------------------------------------------------------------------------------------------

    def add(self, sample: Mapping[str, Any], key: str | None = None) -> None:
        """Add one sample; it is copied. About a microsecond for small rows.

        Args:
            sample: an array, number or text for each field.
            key: its name, unique; all samples have one or none has.
        Raises:
            SchemaError: it does not fit, or the key is not one; the writer is as before, and can go on. A key that was
                used before is found later, when its shard is written.
            WriteError: a shard before could not be written; the writer takes nothing more.
        """
        if len(sample) != self._num_slots:
            self._prepare(sample)
        count, nbytes = self._count, self._nbytes + self._sample_nbytes
        try:
            for name, rows, dtype, shape, scalars, stage in self._slots:
                value = sample[name]
                kind = type(value)
                if kind is _ndarray and value.dtype is dtype and value.shape == shape:
                    rows[count] = value
                elif kind in scalars:
                    try:
                        rows[count] = value
                    except OverflowError:  # beyond the dtype: told as any other value is
                        stage.put(count, value, f"sample {len(self)}")
                else:
                    nbytes += stage.put(count, value, f"sample {len(self)}")
            if key is None:
                if self._with_keys:
                    self._check_use_of_keys(key)
            else:
                if not self._with_keys:
                    self._check_use_of_keys(key)
                text = key.encode()  # as `encode_key` does, which says what is wrong: a call costs as much as this
                if 0 in text or not text or len(text) > MAX_KEY_NBYTES:
                    encode_key(key)
                self._key_texts.append(text)
            if nbytes >= self._shard_nbytes or count + 1 >= self._stop:
                self._num_slots = -1  # what is to be done may fail: before the next one, which then is not taken
            self._count, self._nbytes = count + 1, nbytes
        except BaseException as error:
            self._half, self._count = True, count
            self._num_slots = -1  # so that the next one is prepared for
            self._undo()
            self._tell(sample, key, error)
            raise

    def add_batch(self, batch: Mapping[str, Any], keys: Sequence[str] | None = None) -> None:
        """Add many samples; like `add` for each, at the speed of memory.

        Args:
            batch: for each field an array of shape (B, *row_shape); for a ragged one `Ragged` or a sequence of B rows.
            keys: B names.
        Raises:
            SchemaError: it does not fit; nothing of it was added.
            WriteError: as in `add`.
        """
        self._check_open()
        self._undo()
        size = batch_length(batch, keys)
        if size == 0:
            return
        if self._fields is None:
            self._prepare({name: next(iter(value)) for name, value in batch.items()})
        assert self._fields is not None
        if batch.keys() != self.fields.keys():
            raise self._wrong_names(batch)
        where = f"add_batch, samples {len(self)} to {len(self) + size - 1}"
        rows = [batch_rows(field, batch[field.name], where) for field in self._fields]
        if len(self) > 0 and (keys is not None) != bool(self._with_keys):
            raise SchemaError("add_batch: all samples of a container have a key or none has; see keys=")
        named = None if keys is None else list(map(encode_key, keys))  # refused before anything is added
        if any(field.ragged for field in self._fields):
            self._add_ragged_batch(rows, size, keys)
        else:
            self._add_fixed_batch([np.asarray(array) for array in rows], size, named)

    def _prepare(self, sample: Mapping[str, Any]) -> None:
        """The slow start of `add`: the writer must be open, the fields known, as many, and with room."""
        self._check_open()
        if not isinstance(sample, Mapping):
            raise TypeError(f"a sample is a mapping, {{field name: array}}, found {type(sample).__name__}")
        if self._fields is None:
            fields = tuple(infer_field(name, value) for name, value in sample.items())
            check_fields(fields)
            self._begin(fields)
        if len(sample) != len(self._stages):
            raise self._wrong_names(sample)
        self._undo()
        if self._nbytes >= self._shard_nbytes or self._count >= self._most:
            self._guarded_flush()
        elif len(self._key_texts) >= _PACK_KEYS:
            self._half = True  # an interrupt may come between what is packed and what is waiting
            self._keys.pack()
            self._half = False
        self._make_room(self._count + 1)

    def _tell(self, sample: Mapping[str, Any], key: str | None, error: BaseException) -> None:
        """Raise what says better than `error` that this is no sample, or not with these names, or no key."""
        if key is not None and isinstance(error, AttributeError | UnicodeEncodeError):
            encode_key(key)
        if not isinstance(sample, Mapping):
            self._prepare(sample)
        if isinstance(error, KeyError):
            raise self._wrong_names(sample) from None

    def _wrong_names(self, sample: Mapping[str, Any]) -> SchemaError:
        missing = [name for name in self.fields if name not in sample]
        extra = [name for name in sample if name not in self.fields]
        return SchemaError(f"sample {len(self)}: missing fields {missing}, unknown fields {extra}")

    def _check_use_of_keys(self, key: str | None) -> None:
        """Of the first sample, or of one that is unlike it."""
        if len(self) > 0:
            some = "a key" if key is not None else "no key"
            raise SchemaError(f"sample {len(self)} has {some}, unlike those before: all samples have one or none has")
        if key is not None:
            encode_key(key)  # if it is none, it is no first one
        self._with_keys = key is not None

    def _undo(self) -> None:
        """Forget samples that were refused half way.

        Where there is no memory for this either, it is done before anything else is taken or written.
        """
        if not self._half:
            return
        for stage in self._stages:
            stage.drop(self._count)
        self._keys.drop(self._count)
        if len(self) == 0:
            self._with_keys = None
        self._half = False

    def _add_ragged_batch(self, rows: Sequence[Any], size: int, keys: Sequence[str] | None) -> None:
        """Row by row, after all rows were checked."""
        keys = None if keys is None else list(keys)
        names = [stage.field.name for stage in self._stages]
        checked = [rows_one_by_one(stage.field, column, size) for stage, column in zip(self._stages, rows, strict=True)]
        for place in range(size):
            sample = {name: column[place] for name, column in zip(names, checked, strict=True)}
            self.add(sample, None if keys is None else keys[place])

    def _add_fixed_batch(self, rows: Sequence[NDArray[Any]], size: int, keys: Sequence[bytes] | None) -> None:
        self._with_keys = keys is not None
        start = 0
        while start < size:
            if self._count >= self._most:
                self._guarded_flush()
            stop = min(size, start + self._most - self._count)
            arrays, named = [array[start:stop] for array in rows], None if keys is None else keys[start:stop]
            if stop - start == self._most:
                # A whole shard as it is: written from the caller's memory, so before we return.
                self._guarded_flush(arrays, named)
            else:
                self._stage_rows(arrays, named)
            start = stop

    def _stage_rows(self, rows: Sequence[NDArray[Any]], keys: Sequence[bytes] | None) -> None:
        count = self._count + len(rows[0])
        self._make_room(count)
        self._num_slots = -1  # there may be no room for more; and what is half there is undone first
        self._half = True
        for stage, array in zip(self._stages, rows, strict=True):
            assert isinstance(stage, FixedStage)
            stage.rows[self._count : count] = array
        if keys is not None:
            self._keys.put(keys)
        self._count, self._nbytes = count, count * self._sample_nbytes
        self._half = False

    def _make_room(self, count: int) -> None:
        """Memory for `count` rows of the shard: little at first, for most writers that append have little to add."""
        if count > self._capacity:
            self._capacity = min(max(count, _GROWTH * self._capacity), self._most)
        self._num_slots = -1  # until all have it: the slots are of the memory before
        for stage in self._stages:
            if isinstance(stage, FixedStage):
                stage.make_room(self._capacity, self._count)
        self._stop = min(self._capacity, self._count + _PACK_KEYS)
        self._slots = [slot_of(stage) for stage in self._stages]
        self._num_slots = len(self._stages)

    # -- shards -------------------------------------------------------------------------------------------------------

    def _begin(self, fields: tuple[Field, ...]) -> None:
        """The fields are known, as given or those of the container: lay out what can be laid out."""
        fields, options = choose_codecs(fields, self._codecs, fixed=isinstance(self._target, AppendTarget))
        self._coders = [
            None if option.name == RAW else FieldCoder(field, option, self._dictionaries.get(number))
            for number, (field, option) in enumerate(zip(fields, options, strict=True))
        ]
        self._shards = ShardWriter(self._coders)
        self._sample_nbytes = sum(field.row_nbytes or 0 for field in fields)
        self._most = samples_per_shard(self._sample_nbytes, self._shard_nbytes)
        self._capacity = samples_per_shard(self._sample_nbytes, min(self._shard_nbytes, _STAGED_NBYTES))
        self._stages = [RaggedStage(f) if f.ragged else FixedStage(f, self._most) for f in fields]
        self._regions: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        self._tail = HEAD_NBYTES
        if self._promised is not None:
            self._plan_regions(fields, self._promised)
        self._fields = fields  # last: until then another first sample begins anew

    def _continue(self, target: AppendTarget, fields: tuple[Field, ...] | None) -> None:
        """Append: the fields are those of the container."""
        known = target.fields
        # A field that does not say its codec has that of the container.
        given = fields and tuple(
            replace(field, codec=known[place].codec) if field.codec == RAW and place < len(known) else field
            for place, field in enumerate(fields)
        )
        if given is not None and given != known:
            raise SchemaError(f"{self._path}: fields: the container has {known}, given were {fields}")
        self._dictionaries = target.dictionaries()
        self._begin(known)
        self._with_keys = target.with_keys

    def _plan_regions(self, fields: tuple[Field, ...], num_samples: int) -> None:
        """Give each field whose size is known one region for all its rows; the others follow behind."""
        for number, field in enumerate(fields):
            row_nbytes = field.row_nbytes
            nbytes = self._ragged_nbytes.get(number) if row_nbytes is None else num_samples * row_nbytes
            if nbytes is not None and field.codec == RAW:
                self._regions[number] = self._tail
                self._tail = pad(self._tail + nbytes, PART_ALIGNMENT)
        if self._tail > MAX_FILE_NBYTES:
            raise SchemaError(f"num_samples={num_samples}: such a container is longer than 2^63 bytes")
        coded = [number for number, coder in enumerate(self._coders) if coder is not None]
        folder = os.path.dirname(self._path) or os.curdir
        # The first of them follows the regions; the others wait until its end is known.
        self._late = {number: LateBlocks(folder) for number in coded[1:]}

    def _guarded_flush(self, arrays: Sequence[NDArray[Any]] | None = None, keys: Sequence[bytes] | None = None) -> None:
        """Write a shard; if that fails, what is in the file is unknown and the writer takes nothing more."""
        try:
            self._flush(arrays, keys)
            if arrays is not None:
                self._shards.wait()
        except BaseException as error:
            self._fail(error)
            raise

    def _flush(self, arrays: Sequence[NDArray[Any]] | None = None, keys: Sequence[bytes] | None = None) -> None:
        """Hand over what is staged, or the given rows of fixed shape and their keys, as one shard."""
        self._undo()
        count = self._count if arrays is None else len(arrays[0])
        if count == 0:
            return
        if self._promised is not None and self._num_written + count > self._promised:
            raise SchemaError(f"{self._path}: num_samples={self._promised} was promised, and more were added")
        index = self._ensure_index()
        if self._with_keys:
            packed = self._keys.take() if keys is None else Keys.packed(keys)
            self._target.check_keys(packed)
            index.add_keys(packed)
        self._shards.wait()
        if arrays is None:
            rows = [stage.take(count) for stage in self._stages]
        else:
            rows = [fixed_rows(stage.field, array) for stage, array in zip(self._stages, arrays, strict=True)]
        self._train(index, rows)
        self._shards.submit(index, rows, self._place)
        self._num_slots = -1
        self._num_written += count
        self._count = self._nbytes = 0
        self._changed = True

    def _train(self, index: IndexWriter, rows: Sequence[Rows]) -> None:
        """Make the dictionaries that are wanted, of the first shard."""
        for number, (coder, field) in enumerate(zip(self._coders, rows, strict=True)):
            if coder is not None:
                coder.train(field.data, field.ends)
                if coder.dictionary:
                    index.dictionaries[number] = coder.dictionary

    def _ensure_index(self) -> IndexWriter:
        if self._index is None:
            assert self._fields is not None
            following = self._target.following()
            if isinstance(following, AppendTarget):
                self._target, self._tail = following, following.tail
            self._index = self._target.begin(self._fields, with_keys=bool(self._with_keys))
        return self._index

    def _place(self, number: int, nbytes: int) -> tuple[Sink | LateBlocks, int]:
        """Where the next block of a field goes: into its region, or behind the last one; adjacent where it can.

        Called from the thread that writes, one block after another; at rest after `ShardWriter.wait`.
        """
        if number in self._late:
            return self._late[number], self._late[number].reserve(nbytes)
        if number in self._regions:
            offset = self._regions[number]
            self._regions[number] += nbytes
        else:
            offset = self._tail if self._ends.get(number) == self._tail else pad(self._tail, PART_ALIGNMENT)
            self._tail = self._ends[number] = offset + nbytes
        return self._target.sink, offset

    def _place_late(self, index: IndexWriter) -> None:
        """Put fields that waited behind all others, each in one piece."""
        for number, late in self._late.items():
            offset = pad(self._tail, PART_ALIGNMENT)
            index.move(number, offset)
            self._tail = offset + late.nbytes
            late.place(self._target.sink, offset)
