"""What beginners give the writer: it is taken as it is meant, or refused with the way out."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest

from chunkstore._format.constants import HEAD_NBYTES
from chunkstore._storage.lock import WriterLock
from chunkstore._storage.sink import Sink
from chunkstore._write.writer import Writer
from chunkstore.errors import SchemaError


class Labelled:
    """As a column of pandas that was filtered or shuffled: brackets take a label, the order is another one."""

    def __init__(self, values: dict[int, Any]) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, label: int) -> Any:
        return self._values[label]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values.values())


@pytest.mark.parametrize("fields", [None, {"t": "string", "x": "int64"}])
def test_columns_with_labels_are_taken_in_their_order(tmp_path: Path, fields: Any) -> None:
    """Texts, numbers and keys of a sample stay together, whatever their labels are."""
    texts, keys = Labelled({2: "a", 0: "b", 1: "c"}), Labelled({1: "ka", 2: "kb", 0: "kc"})
    with Writer(tmp_path / "a.cks", fields=fields) as writer:
        writer.add_batch({"t": texts, "x": np.arange(3)}, keys)  # type: ignore[arg-type]
    container = oracle.read(tmp_path / "a.cks")
    assert list(container.rows("t")) == ["a", "b", "c"]
    assert list(container.rows("x")) == [0, 1, 2]
    assert container.keys() == ["ka", "kb", "kc"]


def test_labels_without_a_zero(tmp_path: Path) -> None:
    """The first row is the first one, also where fields are not known yet."""
    with Writer(tmp_path / "a.cks") as writer:
        writer.add_batch({"t": Labelled({7: "a", 5: "b"})})
    assert list(oracle.read(tmp_path / "a.cks").rows("t")) == ["a", "b"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, r"field 'x': None \(NoneType\) is no array"),
        (2**70, "no number of 64 bits"),
        ([[1], [1, 2]], "field 'x': the parts of this list differ in length"),
        (np.ma.array([1, 2], mask=[False, True]), "has no masks"),
    ],
)
def test_values_that_are_no_rows(tmp_path: Path, value: object, text: str) -> None:
    """They are refused by the name of their field, alone and in a batch."""
    with Writer(tmp_path / "a.cks") as writer:
        with pytest.raises(SchemaError, match=text):
            writer.add({"x": value})
        with pytest.raises(SchemaError, match=text):
            writer.add_batch({"x": [value] if not isinstance(value, np.ndarray) else value[np.newaxis]})
        writer.add({"x": [1, 2]} if isinstance(value, np.ndarray) else {"x": 5})


def test_a_text_that_is_longer_than_the_first(tmp_path: Path) -> None:
    """A cast would cut it: the message names fields=."""
    with Writer(tmp_path / "a.cks") as writer:
        writer.add({"x": b"abc"})
        with pytest.raises(SchemaError, match=r"bytes\[4\] does not fit into bytes\[3\]; give fields="):
            writer.add({"x": b"abcd"})


@pytest.mark.parametrize("batch", [np.zeros((2, 3)), [{"x": 1}, {"x": 2}]])
def test_a_batch_is_a_mapping(tmp_path: Path, batch: Any) -> None:
    """An array without a name, or a list of samples, is none."""
    with Writer(tmp_path / "a.cks") as writer:
        with pytest.raises(TypeError, match="a batch is a mapping"):
            writer.add_batch(batch)
        writer.add({"x": 1})


@pytest.mark.parametrize("option", [{"shard_nbytes": 1e6}, {"shard_nbytes": "64MB"}, {"num_samples": 2.0}])
def test_sizes_are_integers(tmp_path: Path, option: dict[str, Any]) -> None:
    """The message names the option."""
    with pytest.raises(TypeError, match=f"{next(iter(option))}: expected an integer"):
        Writer(tmp_path / "a.cks", **option)


@pytest.mark.parametrize("shape", [3, (1.5,)])
def test_a_shape_is_a_tuple_of_integers(tmp_path: Path, shape: Any) -> None:
    """The message names the field."""
    with pytest.raises(SchemaError, match="field 'x': "):
        Writer(tmp_path / "a.cks", fields={"x": ("int8", shape)})


def test_a_field_without_dtype(tmp_path: Path) -> None:
    """None is no dtype, although NumPy takes it as float64."""
    with pytest.raises(SchemaError, match="field 'x': dtype None is not one that a container can hold"):
        Writer(tmp_path / "a.cks", fields={"x": None})  # type: ignore[dict-item]


def test_rows_that_differ_in_size(tmp_path: Path) -> None:
    """The message has the argument that takes them."""
    with pytest.raises(SchemaError, match="expected the shape") as caught, Writer(tmp_path / "a.cks") as writer:
        writer.add({"x": np.zeros((3, 80))})
        writer.add({"x": np.zeros((4, 80))})
    assert "fields={'x': ('float64', (None, 80)), ...}" in str(caught.value)
    with Writer(tmp_path / "a.cks", fields={"x": ("float64", (None, 80))}) as writer:
        writer.add_batch({"x": [np.zeros((3, 80)), np.zeros((4, 80))]})


def test_one_text_is_no_sequence_of_keys(tmp_path: Path) -> None:
    """Its letters would be the keys."""
    with Writer(tmp_path / "a.cks") as writer:
        with pytest.raises(TypeError, match="keys: expected a sequence of keys, found one text 'ab'"):
            writer.add_batch({"x": [1, 2]}, "ab")
        writer.add_batch({"x": [1, 2]}, ["a", "b"])


def test_repr(tmp_path: Path) -> None:
    """Where, how many samples, and whether it is closed."""
    writer = Writer(tmp_path / "a.cks")
    writer.add({"x": 1})
    assert repr(writer) == f"<chunkstore.Writer {str(tmp_path / 'a.cks')!r}: 1 samples>"
    writer.abort()
    assert repr(writer).endswith(", closed>")


def test_a_writer_stays_in_its_process(tmp_path: Path) -> None:
    """In another one its descriptors would be other files; two copies of one would close them for each other."""
    with Writer(tmp_path / "a.cks") as writer:
        writer.add({"x": 1})
        for take in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="a Writer cannot be pickled or copied"):
                take(writer)
    with WriterLock.acquire(tmp_path / "a.cks") as lock, Sink.open(tmp_path / "a.cks") as sink:
        for owner in (lock, sink):
            with pytest.raises(TypeError, match="cannot be pickled or copied"):
                pickle.dumps(owner)


@pytest.mark.parametrize("kind", [np.int16, np.int64, np.uint64])
@pytest.mark.parametrize("option", ["num_samples", "shard_nbytes"])
def test_counts_of_numpy(tmp_path: Path, kind: type[np.integer[Any]], option: str) -> None:
    """They count as Python's do: times the bytes of a row, 66,000 here, an int16 would be 464."""
    fields = {"x": ("uint8", (1000,)), "y": "float64"}
    for name, number in (("a.cks", 66), ("b.cks", kind(66))):
        with Writer(tmp_path / name, fields=fields, **{option: number}) as writer:
            writer.add_batch({"x": np.ones((66, 1000), np.uint8), "y": np.arange(66.0)})
    one, other = ((tmp_path / name).read_bytes()[HEAD_NBYTES:] for name in ("a.cks", "b.cks"))
    assert one == other
