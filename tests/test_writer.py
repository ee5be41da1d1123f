"""What the writer makes of samples; each container is read back by the plain decoder of the specification."""

from __future__ import annotations

import errno
import itertools
import os
import threading
import warnings
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import oracle
import pytest
import strategies
from hypothesis import example, given
from storage.faults import Failing

import chunkstore
from chunkstore._format.checksum import sum64
from chunkstore._format.schema import Field
from chunkstore._read.ragged import Ragged
from chunkstore._storage import syscalls
from chunkstore._write import index_writer, shards, staging, target
from chunkstore._write import writer as writer_of_samples
from chunkstore._write.index_writer import Block, IndexWriter, Keys, Position
from chunkstore._write.writer import Writer
from chunkstore.errors import (
    ClosedError,
    CommitUnknownError,
    LimitError,
    LockedError,
    PoisonedError,
    ReplacedError,
    SchemaError,
    WriteError,
)

_names = itertools.count()


def fresh(folder: Path) -> Path:
    return folder / f"{next(_names)}.cks"


def check(path: Path, samples: list[dict[str, Any]], keys: list[str] | None = None) -> Any:
    """Every byte is right by the plain decoder, and every row is what was given."""
    container = oracle.read(path)
    assert container.num_samples == len(samples)
    for field in container.fields:
        rows = list(container.rows(field.name))
        assert all(oracle.same(row, sample[field.name]) for row, sample in zip(rows, samples, strict=True))
    assert container.keys() == (keys or [])
    return container


@given(of=strategies.fields(), count=st.integers(0, 20), shard=st.sampled_from([1, 100, 5000]), seed=st.integers(0, 99))
def test_any_samples_come_back(tmp_path_factory: Any, of: list[Field], count: int, shard: int, seed: int) -> None:
    """All dtypes and shapes, zero-length and 0-d rows, from one sample a shard to all in one."""
    path = fresh(tmp_path_factory.getbasetemp())
    samples = strategies.samples(of, count, seed)
    with Writer(path, fields=of, shard_nbytes=shard) as writer:
        for sample in samples:
            writer.add(sample)
    check(path, samples)
    path.unlink()


@given(of=strategies.fields(), sizes=st.lists(st.integers(0, 9), max_size=5), shard=st.sampled_from([1, 100, 5000]))
def test_batches_make_the_same_bytes_as_samples(
    tmp_path_factory: Any, of: list[Field], sizes: list[int], shard: int
) -> None:
    """`add_batch` is `add` for each row, to the byte."""
    one, many = fresh(tmp_path_factory.getbasetemp()), fresh(tmp_path_factory.getbasetemp())
    samples = strategies.samples(of, sum(sizes), 1)
    keys = [f"key {n}" for n in range(len(samples))]
    with Writer(one, fields=of, shard_nbytes=shard) as writer:
        for sample, key in zip(samples, keys, strict=True):
            writer.add(sample, key)
    with Writer(many, fields=of, shard_nbytes=shard) as writer:
        start = 0
        for size in sizes:
            stop = start + size
            batch = {f.name: [sample[f.name] for sample in samples[start:stop]] for f in of}
            for field in of:
                if not field.ragged:
                    batch[field.name] = np.array(batch[field.name], field.numpy_dtype).reshape(size, *field.shape)
            writer.add_batch(batch, keys[start:stop])
            start = stop
    if samples:
        assert one.read_bytes() == many.read_bytes()
    check(many, samples, keys)
    one.unlink()
    many.unlink()


def test_fields_come_from_the_first_sample(tmp_path: Path) -> None:
    """Arrays, Python numbers and texts."""
    with Writer(tmp_path / "a.cks") as writer:
        writer.add({"x": np.zeros((2, 3), np.float32), "n": 3, "f": 0.5, "b": True, "t": "text"})
        assert writer.fields == {
            "x": Field("x", "float32", (2, 3)),
            "n": Field("n", "int64"),
            "f": Field("f", "float64"),
            "b": Field("b", "bool"),
            "t": Field("t", "string"),
        }


def test_a_known_number_of_samples_makes_one_extent_of_each_field(tmp_path: Path) -> None:
    """The rows of a field of fixed shape then are one array in the file."""
    x = np.arange(1000 * 6, dtype="<i4").reshape(1000, 2, 3)
    y = np.arange(1000, dtype="<f8")
    with Writer(tmp_path / "a.cks", num_samples=1000, shard_nbytes=999) as writer:
        for sample in zip(x, y, strict=True):
            writer.add(dict(zip("xy", sample, strict=True)))
    data = (tmp_path / "a.cks").read_bytes()
    assert x.tobytes() in data
    assert y.tobytes() in data
    check(tmp_path / "a.cks", [{"x": a, "y": b} for a, b in zip(x, y, strict=True)])


def test_one_field_is_always_one_extent(tmp_path: Path) -> None:
    """Also a stream whose length nobody knew, and a ragged one."""
    rows = [np.arange(n, dtype="<i2") for n in range(100)]
    with Writer(tmp_path / "a.cks", fields={"r": ("int16", (None,))}, shard_nbytes=99) as writer:
        for row in rows:
            writer.add({"r": row})
    assert np.concatenate(rows).tobytes() in (tmp_path / "a.cks").read_bytes()


@pytest.mark.parametrize("given_", [3, 5])
def test_the_promised_number_of_samples_must_come(tmp_path: Path, given_: int) -> None:
    """Nothing is published otherwise."""
    with (
        pytest.raises(SchemaError, match=r"num_samples=4 was promised"),
        Writer(tmp_path / "a.cks", num_samples=4) as writer,
    ):
        writer.add_batch({"x": np.zeros(given_)})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("value", [np.arange(3, dtype=">i8"), np.asfortranarray(np.ones((2, 3), "<f4"))])
def test_byte_order_and_memory_order_are_normal_afterwards(tmp_path: Path, value: np.ndarray[Any, Any]) -> None:
    """Equal values, little-endian, in C order."""
    with Writer(tmp_path / "a.cks") as writer:
        writer.add({"x": value})
    row = next(oracle.read(tmp_path / "a.cks").rows("x"))
    np.testing.assert_array_equal(row, value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.zeros(3), r"sample 1, field 'x': expected the shape \(2,\), found \(3,\)"),
        (np.zeros(2, np.float32), "expected float64, found float32; cast it"),
        (np.array([None, 1]), "an object array cannot be stored"),
        (np.zeros(2, [("a", "<f4")]), "a structured array cannot be stored"),
        ("text", "field 'x'"),
    ],
)
def test_a_sample_that_does_not_fit_is_refused(tmp_path: Path, value: object, text: str) -> None:
    """The message names sample and field; the writer goes on as if nothing had happened."""
    with Writer(tmp_path / "a.cks") as writer:
        writer.add({"x": np.zeros(2), "t": "a"}, "0")
        with pytest.raises(SchemaError, match=text):
            writer.add({"t": "b", "x": value}, "1")
        writer.add({"t": "c", "x": np.ones(2)}, "1")
    check(tmp_path / "a.cks", [{"x": np.zeros(2), "t": "a"}, {"x": np.ones(2), "t": "c"}], ["0", "1"])


def test_memory_for_a_batch_that_only_some_fields_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The samples that follow are not put where those fields had theirs before."""
    monkeypatch.setattr("chunkstore._write.writer._STAGED_NBYTES", 64)
    make_room = staging.FixedStage.make_room

    def refused(self: staging.FixedStage, capacity: int, count: int) -> None:
        if self.field.name == "y":
            raise MemoryError
        make_room(self, capacity, count)

    with Writer(tmp_path / "a.cks", fields={"x": "int64", "y": "int64"}) as writer:
        writer.add({"x": 1, "y": 2})
        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            patch.setattr(staging.FixedStage, "make_room", refused)
            writer.add_batch({"x": np.arange(20), "y": np.arange(20)})
        writer.add({"x": 3, "y": 4})
    check(tmp_path / "a.cks", [{"x": np.int64(1), "y": np.int64(2)}, {"x": np.int64(3), "y": np.int64(4)}])


@pytest.mark.parametrize("keys", [None, ["0", "1"]])
@pytest.mark.parametrize("batch", [False, True])
def test_a_first_batch_that_is_refused_does_not_say_whether_there_are_keys(
    tmp_path: Path, keys: list[str] | None, batch: bool
) -> None:
    """The writer is as before: the samples that follow have keys where it had none, and the reverse."""
    rows, others = ["a", "b"], None if keys else ["0", "1"]
    with Writer(tmp_path / "a.cks", fields={"t": "string"}) as writer:
        with pytest.raises(SchemaError, match="expected a text"):
            writer.add_batch({"t": ["a", 5]}, keys)
        if batch:
            writer.add_batch({"t": rows}, others)
        else:
            for row, key in zip(rows, others or [None, None], strict=True):
                writer.add({"t": row}, key)
        for wrong in (lambda: writer.add({"t": "c"}, keys and "2"), lambda: writer.add_batch({"t": rows}, keys)):
            with pytest.raises(SchemaError, match="all samples"):
                wrong()
    check(tmp_path / "a.cks", [{"t": row} for row in rows], others)


@pytest.mark.parametrize("then", ["add", "batch", "commit"])
@pytest.mark.parametrize("stage", [staging.RaggedStage, staging.KeyStage])
def test_what_cannot_be_forgotten_at_once_is_forgotten_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: type, then: str
) -> None:
    """Where there is no memory to undo half a sample either, none of it is among the samples that follow."""
    rows = [np.arange(n, dtype=np.int16) for n in (3, 5, 2)]

    def fails(self: object, count: int) -> None:
        monkeypatch.undo()
        raise MemoryError

    with Writer(tmp_path / "a.cks", fields={"r": ("int16", (None,)), "z": ("int8", (2,))}) as writer:
        writer.add({"r": rows[0], "z": np.zeros(2, np.int8)}, "0")
        monkeypatch.setattr(stage, "drop", fails)
        with pytest.raises(MemoryError):
            writer.add({"r": rows[1], "z": np.zeros(3, np.int8)}, "1")
        if then == "add":
            writer.add({"r": rows[2], "z": np.ones(2, np.int8)}, "2")
        elif then == "batch":
            writer.add_batch({"r": [rows[2]], "z": np.ones((1, 2), np.int8)}, ["2"])
    samples = [{"r": rows[0], "z": np.zeros(2, np.int8)}, {"r": rows[2], "z": np.ones(2, np.int8)}]
    count = 1 if then == "commit" else 2
    check(tmp_path / "a.cks", samples[:count], ["0", "2"][:count])


def test_python_numbers_must_be_exact(tmp_path: Path) -> None:
    """300 is no uint8, and 0.5 no int; 7 is both."""
    with Writer(tmp_path / "a.cks", fields={"n": "uint8"}) as writer:
        for value in (300, -1, 0.5):
            with pytest.raises(SchemaError, match="is not exact as uint8"):
                writer.add({"n": value})
        writer.add({"n": 7})
    check(tmp_path / "a.cks", [{"n": np.uint8(7)}])


@pytest.mark.parametrize("sample", [np.zeros(3), np.zeros(1), "x", [1]])
def test_a_sample_is_a_mapping(tmp_path: Path, sample: Any) -> None:
    """An array without a name is refused as first sample and later, and the writer goes on."""
    with Writer(tmp_path / "a.cks") as writer:
        for number in range(2):
            with pytest.raises(
                TypeError, match=r"a sample is a mapping, {field name: array}, found (ndarray|str|list)"
            ):
                writer.add(sample)
            writer.add({"x": number})
    check(tmp_path / "a.cks", [{"x": np.int64(0)}, {"x": np.int64(1)}])


def test_a_refused_first_sample_says_nothing_of_the_fields(tmp_path: Path) -> None:
    """What is found when the file is laid out: that so many of it are too long."""
    with Writer(tmp_path / "a.cks", num_samples=2**61) as writer:
        with pytest.raises(SchemaError, match=r"is longer than 2\^63 bytes"):
            writer.add({"x": np.zeros(4)})
        assert writer.fields == {}
        writer.add({"y": np.uint8(1)})
        assert list(writer.fields) == ["y"]
        writer.abort()


def test_a_name_is_a_text(tmp_path: Path) -> None:
    """A number names no field."""
    with Writer(tmp_path / "a.cks") as writer:
        with pytest.raises(SchemaError, match="the name of a field is a text, not 5"):
            writer.add({5: 1})  # type: ignore[dict-item]
        writer.add({"x": 1})


@pytest.mark.parametrize("sample", [{"x": 1}, {"x": 1, "z": 2}, {"x": 1, "y": 2, "z": 3}])
def test_names_must_be_those_of_the_fields(tmp_path: Path, sample: dict[str, int]) -> None:
    """The message says which are missing and which are unknown."""
    with Writer(tmp_path / "a.cks") as writer:
        writer.add({"x": 1, "y": 2})
        with pytest.raises(SchemaError, match=r"missing fields \[.*\], unknown fields \["):
            writer.add(sample)


def test_all_samples_have_a_key_or_none_has(tmp_path: Path) -> None:
    """In both directions."""
    with Writer(tmp_path / "a.cks") as writer:
        writer.add({"x": 1}, "a")
        with pytest.raises(SchemaError, match="sample 1 has no key, unlike those before"):
            writer.add({"x": 1})
    with Writer(tmp_path / "b.cks") as writer:
        writer.add({"x": 1})
        with pytest.raises(SchemaError, match="sample 1 has a key, unlike those before"):
            writer.add({"x": 1}, "a")


@pytest.mark.parametrize("key", ["", "a\0b", "x" * 65536, "\ud800"])
def test_a_key_that_the_format_cannot_hold(tmp_path: Path, key: str) -> None:
    """Refused when it comes, at the latest with its shard; nothing is published."""
    with pytest.raises(SchemaError, match="a key"), Writer(tmp_path / "a.cks") as writer:
        writer.add({"x": 1}, key)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("shard_nbytes", [8, 1000])
def test_a_key_that_is_there_twice(tmp_path: Path, shard_nbytes: int) -> None:
    """Within a shard and across shards; the message names both samples."""
    with (
        pytest.raises(SchemaError, match="samples 1 and 3 have the same key 'b'"),
        Writer(tmp_path / "a.cks", shard_nbytes=shard_nbytes) as writer,
    ):
        for key in "abcb":
            writer.add({"x": 1}, key)
    assert os.listdir(tmp_path) == []


def test_an_empty_container_needs_fields(tmp_path: Path) -> None:
    """Without them there is nothing to write; with them zero samples are a data set."""
    with pytest.raises(SchemaError, match="no sample was added"), Writer(tmp_path / "a.cks"):
        pass
    with Writer(tmp_path / "a.cks", fields={"x": ("float32", (3,))}):
        pass
    check(tmp_path / "a.cks", [])


def test_nothing_is_published_after_an_exception(tmp_path: Path) -> None:
    """Not even a temporary file stays."""
    with pytest.raises(ZeroDivisionError), Writer(tmp_path / "a.cks") as writer:
        writer.add({"x": 1})
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_mode_x_keeps_what_is_there_and_mode_w_replaces_it(tmp_path: Path) -> None:
    """And "w" only when the new one is complete."""
    path = tmp_path / "a.cks"
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        Writer(path)
    with pytest.raises(ZeroDivisionError), Writer(path, mode="w") as writer:
        writer.add({"x": 1})
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    with Writer(path, mode="w") as writer:
        writer.add({"x": 1})
    check(path, [{"x": 1}])


def test_the_same_samples_make_the_same_bytes(tmp_path: Path) -> None:
    """No time, no name, no randomness; also the uuid is from the content."""
    for name in "ab":
        with Writer(tmp_path / name, attrs={"made": "of this"}) as writer:
            writer.add_batch({"x": np.arange(5)}, list("vwxyz"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("attrs", [{"x": float("nan")}, {"x": b"bytes"}, {1: 2}, {"x": [({None: 2},)]}])
def test_attrs_are_json(tmp_path: Path, attrs: dict[str, Any]) -> None:
    """What JSON cannot hold is refused, and nothing is published."""
    with pytest.raises(SchemaError, match="attrs cannot be written"), Writer(tmp_path / "a.cks", attrs=attrs) as writer:
        writer.add({"x": 1})
    assert os.listdir(tmp_path) == []


def test_a_ragged_batch_of_ragged(tmp_path: Path) -> None:
    """What a reader hands out can be written again."""
    values = np.arange(10, dtype="<i2")
    batch = Ragged(values, np.array([0, 3, 3, 10]), None)
    with Writer(tmp_path / "a.cks", fields={"r": ("int16", (None,))}) as writer:
        writer.add_batch({"r": batch})
    check(tmp_path / "a.cks", [{"r": row} for row in (values[:3], values[3:3], values[3:])])


# -- append ----------------------------------------------------------------------------------------------------------


@given(of=strategies.fields(3), commits=st.lists(st.integers(0, 6), min_size=1, max_size=12), reopen=st.booleans())
def test_commits_add_up(tmp_path_factory: Any, of: list[Field], commits: list[int], reopen: bool) -> None:
    """Any series of commits holds the same samples as one, with the same writer or a new one each time."""
    path = fresh(tmp_path_factory.getbasetemp())
    samples = strategies.samples(of, sum(commits), 2)
    keys = [f"key {n}" for n in range(len(samples))]
    writer = Writer(path, fields=of, shard_nbytes=200)
    start = 0
    for size in commits:
        for sample, key in zip(samples[start : start + size], keys[start:], strict=False):
            writer.add(sample, key)
        writer.commit()
        start += size
        if reopen:
            writer.close()
            writer = Writer(path, mode="a", shard_nbytes=200)
    writer.close()
    check(path, samples, keys)
    path.unlink()


def test_the_chain_of_segments_stays_short(tmp_path: Path) -> None:
    """300 commits, and only a handful of live segments."""
    path = tmp_path / "a.cks"
    with Writer(path) as writer:
        for n in range(300):
            writer.add({"x": n}, str(n))
            writer.commit()
    container = check(path, [{"x": n} for n in range(300)], [str(n) for n in range(300)])
    assert container.generation == 300
    assert len(container.segments) <= 10


def test_committed_bytes_never_change(tmp_path: Path) -> None:
    """An append touches the superblocks and what lies behind the committed end."""
    path = tmp_path / "a.cks"
    with Writer(path) as writer:
        writer.add({"x": 1})
    before = path.read_bytes()
    with Writer(path, mode="a") as writer:
        writer.add({"x": 2})
    assert path.read_bytes()[8192 : len(before)] == before[8192:]


def test_both_superblocks_are_equal_at_rest(tmp_path: Path) -> None:
    """After creation, and after an append."""
    path = tmp_path / "a.cks"
    with Writer(path) as writer:
        writer.add({"x": 1})
        writer.commit()
        writer.add({"x": 2})
    data = path.read_bytes()
    assert data[:4096] == data[4096:8192]


def test_an_append_that_did_not_finish_is_cut_off(tmp_path: Path) -> None:
    """Whatever lies behind the committed end."""
    path = tmp_path / "a.cks"
    with Writer(path) as writer:
        writer.add({"x": 1})
    with path.open("ab") as file:
        file.write(b"rest of an append")
    with Writer(path, mode="a") as writer:
        writer.add({"x": 2})
    check(path, [{"x": 1}, {"x": 2}])


def test_dropping_an_append_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """To the byte."""
    path = tmp_path / "a.cks"
    with Writer(path) as writer:
        writer.add({"x": 1})
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError), Writer(path, mode="a", shard_nbytes=8) as writer:
        writer.add({"x": 2})
        raise ZeroDivisionError
    with Writer(path, mode="a"):
        pass
    assert path.read_bytes() == before


def test_an_append_keeps_schema_attrs_and_keys(tmp_path: Path) -> None:
    """Other fields, a key that is there, and samples without keys are refused; attrs are added to."""
    path = tmp_path / "a.cks"
    with Writer(path, attrs={"a": 1, "b": 1}) as writer:
        writer.add({"x": 1}, "k")
    with pytest.raises(SchemaError, match="fields: the container has"):
        Writer(path, mode="a", fields={"y": "int64"})
    with (
        pytest.raises(SchemaError, match="has a sample with the key 'k' already, at position 0"),
        Writer(path, mode="a") as writer,
    ):
        writer.add({"x": 2}, "k")
    with Writer(path, mode="a", attrs={"b": 2}) as writer:
        with pytest.raises(SchemaError, match="no key"):
            writer.add({"x": 2})
        writer.add({"x": 2}, "l")
    assert check(path, [{"x": 1}, {"x": 2}], ["k", "l"]).attrs() == {"a": 1, "b": 2}


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    """The second is told at once."""
    path = tmp_path / "a.cks"
    with Writer(path) as writer:
        writer.add({"x": 1})
    with Writer(path, mode="a"), pytest.raises(LockedError, match="is writing to this container"):
        Writer(path, mode="a")


def test_appending_needs_a_container(tmp_path: Path) -> None:
    """Mode "a" creates nothing."""
    with pytest.raises(FileNotFoundError):
        Writer(tmp_path / "a.cks", mode="a")
    assert os.listdir(tmp_path) == []


# -- when the system refuses -----------------------------------------------------------------------------------------


def test_a_full_disk_publishes_nothing(tmp_path: Path) -> None:
    """The error is ours, the writer is poisoned, the folder is as before."""
    with syscalls.use(Failing("pwrite", errno.ENOSPC)):
        writer = Writer(tmp_path / "a.cks", shard_nbytes=8)
        writer.add({"x": 1})
        with pytest.raises(WriteError, match="No space left"):
            writer.add({"x": 1})
    with pytest.raises(PoisonedError, match="failed before"):
        writer.add({"x": 1})
    assert os.listdir(tmp_path) == []


def test_an_interrupted_writer_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though an interrupt has no text of its own."""
    writer = Writer(tmp_path / "a.cks", shard_nbytes=8)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("chunkstore._storage.sink.Sink.pwrite", interrupted)
    writer.add({"x": 1})
    with pytest.raises(KeyboardInterrupt):
        writer.add({"x": 1})
    with pytest.raises(PoisonedError, match="failed before: KeyboardInterrupt"):
        writer.add({"x": 1})


def test_a_failed_sync_of_an_append_is_unknown_and_final(tmp_path: Path) -> None:
    """The commit before stands, and a new writer goes on from what the file says."""
    path = tmp_path / "a.cks"
    with Writer(path) as writer:
        writer.add({"x": 1})
    with syscalls.use(Failing("sync_data", errno.EIO)):
        writer = Writer(path, mode="a")
        writer.add({"x": 2})
        with pytest.raises(CommitUnknownError):
            writer.commit()
        with pytest.raises(PoisonedError):
            writer.commit()
    with Writer(path, mode="a") as writer:
        writer.add({"x": 3})
    check(path, [{"x": 1}, {"x": 3}])


def test_an_interrupted_close_keeps_the_lock_while_a_thread_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what the thread still writes could go over what another writer has committed meanwhile."""
    path, row, goes_on = fresh(tmp_path), np.zeros(1 << 20, np.uint8), threading.Event()
    with Writer(path) as writer:
        writer.add({"x": row})

    class Waiting(syscalls.SystemCalls):
        def pwrite(self, fd: int, buffer: memoryview, offset: int) -> int:
            if threading.current_thread() is not threading.main_thread():
                goes_on.wait(20)
            return super().pwrite(fd, buffer, offset)

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with syscalls.use(Waiting()):
        writer = Writer(path, mode="a", shard_nbytes=8 << 20)
        for _ in range(8):
            writer.add({"x": row})
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(shards.ShardWriter, "close", interrupted)
            writer.close()
        with pytest.raises(LockedError):
            Writer(path, mode="a")
        goes_on.set()
        with pytest.warns(UserWarning, match="8 samples dropped"):
            writer.close()
    with Writer(path, mode="a") as writer:
        assert len(writer) == 1
    check(path, [{"x": row}])


def test_a_closed_writer_says_so(tmp_path: Path) -> None:
    """Adding and committing."""
    writer = Writer(tmp_path / "a.cks", fields={"x": "int64"})
    writer.close()
    writer.close()
    for call in (lambda: writer.add({"x": 1}), lambda: writer.add_batch({"x": [1]}), writer.commit):
        with pytest.raises(ClosedError):
            call()


# -- what must not harm -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, PermissionError])
def test_an_error_behind_the_commit_leaves_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """Both superblocks are on the disk: whatever goes wrong then, the new end is not cut off."""
    path = tmp_path / "a.cks"
    with Writer(path) as writer:
        writer.add({"x": 1})
    writer = Writer(path, mode="a")
    writer.add({"x": 2})

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(target, "open_source", fail)
    with pytest.raises(error):
        writer.commit()
    monkeypatch.undo()
    check(path, [{"x": 1}, {"x": 2}])


def test_a_container_that_is_moved_while_it_is_appended_to(tmp_path: Path) -> None:
    """The commit is in the moved file; going on is refused, and what took its place is not touched."""
    path = tmp_path / "a.cks"
    with Writer(path) as writer:
        writer.add({"x": 1})
        writer.commit()
        path.rename(tmp_path / "b.cks")
        with Writer(path) as other:
            other.add({"x": 9})
        writer.add({"x": 2})
        with pytest.raises(ReplacedError, match="not the container as this writer left it"):
            writer.commit()
    check(path, [{"x": 9}])
    check(tmp_path / "b.cks", [{"x": 1}])
    writer = Writer(path, mode="a")
    writer.add({"x": 3})
    path.rename(tmp_path / "c.cks")
    with pytest.raises(ReplacedError, match="What was committed is in it"):
        writer.commit()
    check(tmp_path / "c.cks", [{"x": 9}, {"x": 3}])


def test_a_relative_path_and_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer goes on with the file that it began."""
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with Writer("a.cks") as writer:
        writer.add({"x": 1})
        os.chdir("other")
        writer.commit()
        writer.add({"x": 2})
    assert sorted(os.listdir(tmp_path)) == ["a.cks", "other"]
    assert os.listdir(tmp_path / "other") == []
    check(tmp_path / "a.cks", [{"x": 1}, {"x": 2}])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_copy_of_a_writer_does_no_harm(tmp_path: Path) -> None:
    """A child that closes it, or ends, leaves the parent's work alone."""
    path = tmp_path / "a.cks"
    with Writer(path) as writer:
        writer.add({"x": 1})
    writer = Writer(path, mode="a", shard_nbytes=8)
    writer.add({"x": 2})
    child = os.fork()
    if child == 0:
        writer.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    writer.commit()
    writer.close()
    check(path, [{"x": 1}, {"x": 2}])


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("int64", float("nan")),
        ("uint8", float("nan")),
        ("float64", 2**53 + 1),
        ("float16", 70000.0),
        ("float32", 1e300),
        ("float32", 1 + 0j),
        ("int64", 2**63),
        ("bool", 2),
    ],
)
def test_numbers_are_never_changed(tmp_path: Path, dtype: str, value: object) -> None:
    """NaN is no integer, 2^53 + 1 no float64, 70000 no float16; in a batch neither."""
    with Writer(tmp_path / "a.cks", fields={"n": dtype}) as writer:
        with pytest.raises(SchemaError, match="field 'n'"):
            writer.add({"n": value})
        with pytest.raises(SchemaError, match="field 'n'"):
            writer.add_batch({"n": [1, value]})
        writer.add({"n": 1})
        writer.add({"n": 0.1} if dtype.startswith("float") else {"n": 1})
    assert oracle.read(tmp_path / "a.cks").num_samples == 2


SCALARS = ("bool", "uint8", "int8", "int64", "uint64", "float16", "float32", "float64", "complex64", "complex128")


def added(path: Path, dtype: str, value: object) -> bytes | str:
    """The stored row of one value, or the words with which it is refused."""
    with Writer(path, fields={"n": dtype}) as writer:
        writer.add({"n": 0})
        try:
            writer.add({"n": value})
        except SchemaError as error:
            return str(error)
        return bytes(writer._stages[0].rows[:2].data)


@given(
    st.sampled_from(SCALARS),
    st.one_of(st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.text(max_size=2)),
    st.sampled_from((None, *SCALARS, "longdouble", "M8[s]", "U1")),
)
@example("int64", 2**63, None)
@example("uint8", 300, None)
@example("float32", 1e300, None)
@example("int64", True, None)
def test_scalars_are_taken_as_by_the_plain_path(
    tmp_path_factory: Any, dtype: str, value: object, given_as: str | None
) -> None:
    """Numbers that `add` stores without a look make the row, or get the refusal, that looking at them gives."""
    if given_as is not None:
        try:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # the differences of times without unit, since 2.5
                value = np.dtype(given_as).type(value)  # type: ignore[call-arg]
        except (OverflowError, TypeError, ValueError):
            return  # there is no such scalar
    folder = tmp_path_factory.mktemp("scalars", numbered=True)
    fast = added(fresh(folder), dtype, value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staging, "_exact_scalars", lambda dtype: frozenset())
        assert added(fresh(folder), dtype, value) == fast


@pytest.mark.parametrize("key", ["", "a\0b", 5, "x" * 65536])
def test_a_bad_key_costs_nothing(tmp_path: Path, key: Any) -> None:
    """It is refused when it comes, and what was added before stays."""
    with Writer(tmp_path / "a.cks") as writer:
        with pytest.raises(SchemaError, match="a key"):
            writer.add_batch({"x": [7]}, [key])
        writer.add({"x": 1}, "a")
        with pytest.raises(SchemaError, match="a key"):
            writer.add({"x": 2}, key)
        with pytest.raises(SchemaError, match="a key"):
            writer.add_batch({"x": [2, 3]}, ["b", key])
        writer.add({"x": 3}, "b")
    check(tmp_path / "a.cks", [{"x": 1}, {"x": 3}], ["a", "b"])


def test_bad_attrs_cost_nothing(tmp_path: Path) -> None:
    """They are refused before anything is written; mended, the commit goes through."""
    with pytest.raises(SchemaError, match="attrs cannot be written"):
        Writer(tmp_path / "a.cks", attrs={"mean": np.float32(0.5)})
    with Writer(tmp_path / "a.cks") as writer:
        writer.add({"x": 1})
        writer.attrs["mean"] = np.float32(0.5)
        with pytest.raises(SchemaError, match="attrs cannot be written"):
            writer.commit()
        writer.attrs["mean"] = 0.5
    assert check(tmp_path / "a.cks", [{"x": 1}]).attrs() == {"mean": 0.5}


def test_attrs_alone_are_worth_a_commit(tmp_path: Path) -> None:
    """Appending nothing but them is a generation; appending nothing at all is none."""
    path = tmp_path / "a.cks"
    with Writer(path) as writer:
        writer.add({"x": 1})
    with Writer(path, mode="a", attrs={"a": 1}):
        pass
    with Writer(path, mode="a"):
        pass
    container = check(path, [{"x": 1}])
    assert container.attrs() == {"a": 1}
    assert container.generation == 2


def test_the_index_outgrows_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes to one temporary file, whatever the number of fields; the bytes are the same."""
    rows = [{f"f{n}": np.arange(i % 3) for n in range(5)} for i in range(200)]
    for name, limit in (("a", 1 << 20), ("b", 100)):
        monkeypatch.setattr(index_writer, "_SPOOL_NBYTES", limit)
        with Writer(tmp_path / name, fields={f"f{n}": ("int64", (None,)) for n in range(5)}, shard_nbytes=50) as writer:
            for i, row in enumerate(rows):
                writer.add(row, f"key {i}")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    check(tmp_path / "b", rows, [f"key {i}" for i in range(200)])


@given(
    of=strategies.fields(),
    sizes=st.lists(st.integers(-1, 9), max_size=12),
    shard=st.sampled_from([100, 5000]),
    first=st.sampled_from([1, 30]),
)
def test_rows_stay_while_memory_for_them_grows(
    tmp_path_factory: Any, of: list[Field], sizes: list[int], shard: int, first: int
) -> None:
    """Samples one by one, in batches and between commits: from little memory for rows the file is the same."""
    paths = [fresh(tmp_path_factory.getbasetemp()) for _ in range(2)]
    samples = strategies.samples(of, sum(map(abs, sizes)), 1)
    for path, limit in zip(paths, (1 << 20, first), strict=True):
        left = iter(samples)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writer_of_samples, "_STAGED_NBYTES", limit)
            writer = Writer(path, fields=of, shard_nbytes=shard)
        with writer:
            for size in sizes:
                rows = list(itertools.islice(left, abs(size)))
                if size > 4 and not any(field.ragged for field in of):
                    writer.add_batch({field.name: np.stack([row[field.name] for row in rows]) for field in of})
                    continue
                if size == 0:
                    writer.commit()
                for row in rows:
                    writer.add(row)
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("shard_nbytes", [40, 1 << 20])
def test_keys_are_packed_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_nbytes: int) -> None:
    """However often keys are packed, and with refused samples between, the file is the same as from one batch."""
    keys = [f"k{place}é" * (1 + place % 3) for place in range(50)]
    with Writer(tmp_path / "a.cks", shard_nbytes=shard_nbytes) as w:
        w.add_batch({"x": np.arange(50)}, keys)
    monkeypatch.setattr(writer_of_samples, "_PACK_KEYS", 7)
    with Writer(tmp_path / "b.cks", shard_nbytes=shard_nbytes) as w:
        for place, key in enumerate(keys):
            with pytest.raises(SchemaError):
                w.add({"x": np.int64(place)}, key="\0")
            with pytest.raises(SchemaError):
                w.add({"x": "no number"}, key=key)
            w.add({"x": np.int64(place)}, key=key)
    assert (tmp_path / "a.cks").read_bytes() == (tmp_path / "b.cks").read_bytes()


def test_hashes_of_keys_are_those_of_their_bytes() -> None:
    """Hashes that were taken key by key, kept and joined, are those that are computed from the text."""
    texts = [[b"a", "é".encode()], [], [b"x" * 300], [b"b"]]
    joined = Keys.joined([Keys.packed(part) for part in texts])
    plain = Keys(joined.text, joined.offsets)
    assert [plain[place] for place in range(len(plain))] == [text for part in texts for text in part]
    assert joined.hashes().tolist() == plain.hashes().tolist()


def test_more_items_than_the_format_counts(tmp_path: Path) -> None:
    """Rows of no bytes may have any number of items: what would pass 2^63 - 1 is refused, and nothing is committed."""
    path = tmp_path / "a.cks"
    with Writer(path, fields={"x": ("uint8", (None, 0))}) as writer:
        writer.add({"x": np.zeros((2**62 + 5, 0), np.uint8)})
    with pytest.raises(LimitError, match="2\\^63 - 1 items"), Writer(path, mode="a") as writer:
        writer.add({"x": np.zeros((2**62, 0), np.uint8)})
    with pytest.raises(LimitError, match="2\\^63 - 1 items"):
        chunkstore.merge([path, path], tmp_path / "b.cks")
    assert chunkstore.verify(path).num_samples == 1
    with Writer(path, mode="a") as writer:
        writer.add({"x": np.zeros((2**62 - 6, 0), np.uint8)})
    assert chunkstore.verify(path).ok


def test_more_samples_than_the_format_counts(tmp_path: Path) -> None:
    """The shard that would end behind sample 2^63 - 1 is refused before it is in the index."""
    block = Block(8192, 0, sum64(b""), np.array([sum64(b"")], np.uint64))
    fields, position = [Field("x", "uint8", (0,))], Position(first_sample=2**63 - 3)
    with IndexWriter(fields, with_keys=False, folder=str(tmp_path), position=position) as index:
        index.add_shard(2, [block])
        with pytest.raises(LimitError, match="2\\^63 - 1 samples"):
            index.add_shard(1, [block])
