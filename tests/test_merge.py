"""Merging: the samples of several containers, in order, in one."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import oracle
import pytest
import strategies
from damaged import Damaged, repair
from hypothesis import given

from chunkstore import convert, export
from chunkstore import open as chunkstore_open
from chunkstore._format.schema import Field
from chunkstore._rewrite.merge import merge
from chunkstore._write.writer import Writer
from chunkstore.errors import CorruptError, ReplacedError, SchemaError

_numbers = itertools.count()


def build(path: Path, of: list[Field], samples: list[dict[str, Any]], first: int, commits: int = 1) -> Path:
    """A container with the keys `first`, `first + 1` ..., written in some commits."""
    with Writer(path, fields=of, shard_nbytes=150) as writer:
        step = max(1, len(samples) // commits)
        for place, sample in enumerate(samples):
            writer.add(sample, f"key {first + place}")
            if (place + 1) % step == 0:
                writer.commit()
    return path


@given(of=strategies.fields(3), sizes=st.lists(st.integers(0, 12), min_size=1, max_size=4), commits=st.integers(1, 4))
def test_all_samples_in_order(tmp_path_factory: Any, of: list[Field], sizes: list[int], commits: int) -> None:
    """All dtypes and shapes, streamed and appended inputs, empty ones too."""
    folder = tmp_path_factory.getbasetemp() / f"merge-{next(_numbers)}"
    folder.mkdir()
    samples = strategies.samples(of, sum(sizes), 3)
    paths, start = [], 0
    for number, size in enumerate(sizes):
        paths.append(build(folder / f"{number}.cks", of, samples[start : start + size], start, commits))
        start += size
    merge(paths, folder / "all.cks")
    container = oracle.read(folder / "all.cks")
    assert container.keys() == [f"key {n}" for n in range(len(samples))]
    for field in container.fields:
        rows = list(container.rows(field.name))
        assert all(oracle.same(row, sample[field.name]) for row, sample in zip(rows, samples, strict=True))
    assert len(container.segments) == 1
    for path in folder.iterdir():
        path.unlink()


def test_each_field_is_one_extent_again(tmp_path: Path) -> None:
    """The rows of a field lie back to back in the merged file."""
    for name in "ab":
        with Writer(tmp_path / name, shard_nbytes=64) as writer:
            for n in range(20):
                writer.add({"x": n, "y": float(n)})
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    data = (tmp_path / "c").read_bytes()
    rows = b"".join(n.to_bytes(8, "little") for n in range(20))
    assert rows + rows in data


def test_the_same_inputs_make_the_same_bytes(tmp_path: Path) -> None:
    """And attributes that are equal in all inputs stay."""
    for name, attrs in {"a": {"x": 1, "y": 1}, "b": {"x": 1, "y": 2}}.items():
        with Writer(tmp_path / name, attrs=attrs) as writer:
            writer.add({"n": 1}, name)
    for name in "cd":
        merged = merge([tmp_path / "a", tmp_path / "b"], tmp_path / name)
        assert merged.num_samples == 2
        (note,) = merged.notes
        assert re.fullmatch(r"the attribute 'y' is not kept: it is not the same in .*/a and .*/b", note)
    assert (tmp_path / "c").read_bytes() == (tmp_path / "d").read_bytes()
    assert oracle.read(tmp_path / "c").attrs() == {"x": 1}


def test_inputs_must_be_alike(tmp_path: Path) -> None:
    """Other fields, keys in one only, a key twice: refused with both names, and nothing is published."""
    for name, sample, key in [
        ("a", {"x": 1}, "k"),
        ("b", {"x": 1.0}, "l"),
        ("c", {"x": 1}, None),
        ("d", {"x": 1}, "k"),
    ]:
        with Writer(tmp_path / name) as writer:
            writer.add(sample, key)
    before = sorted(os.listdir(tmp_path))
    for other, text in [
        ("b", "different fields: .*float64.* in the one, .*int64"),
        ("c", "only .*a has keys"),
        ("d", "/d: samples 0 and 1 have the same key 'k'"),
    ]:
        with pytest.raises(SchemaError, match=text):
            merge([tmp_path / "a", tmp_path / other], tmp_path / "out")
    with pytest.raises(SchemaError, match="no container"):
        merge([], tmp_path / "out")
    with pytest.raises(FileExistsError):
        merge([tmp_path / "a"], tmp_path / "b")
    assert sorted(os.listdir(tmp_path)) == before


def test_an_append_meanwhile_is_left_out(tmp_path: Path) -> None:
    """Each input is read in the generation that was there at first, also where its last segments were rewritten."""
    paths = [tmp_path / "a.cks", tmp_path / "b.cks"]
    for number, path in enumerate(paths):
        with Writer(path) as writer:
            writer.add({"x": number}, f"{number}")
    before = [path.read_bytes() for path in paths]

    def append(done: int, total: int) -> None:
        for path in paths:
            with Writer(path, mode="a") as writer:
                writer.add({"x": 9}, f"{path.stem} {len(writer)}")

    merge(paths, tmp_path / "out.cks", progress=append)
    assert all(path.read_bytes()[8192 : len(data)] == data[8192:] for path, data in zip(paths, before, strict=True))
    container = oracle.read(tmp_path / "out.cks")
    assert container.keys() == ["0", "1"]
    assert list(container.rows("x")) == [0, 1]


def test_another_container_in_the_place_of_an_input(tmp_path: Path) -> None:
    """It is refused, and nothing is made."""
    for name in ("a.cks", "b.cks", "c.cks"):
        with Writer(tmp_path / name) as writer:
            writer.add_batch({"x": np.arange(3), "y": [len(name), ord(name[0]), 0]})

    def replace(done: int, total: int) -> None:
        if (tmp_path / "c.cks").exists():
            os.replace(tmp_path / "c.cks", tmp_path / "b.cks")

    with pytest.raises(ReplacedError, match=r"b\.cks: expected the container"):
        merge([tmp_path / "a.cks", tmp_path / "b.cks"], tmp_path / "out.cks", progress=replace)
    assert sorted(os.listdir(tmp_path)) == ["a.cks", "b.cks"]


def test_damage_is_not_merged(tmp_path: Path) -> None:
    """The copy is verified before it gets its name."""
    with Writer(tmp_path / "a") as writer:
        writer.add({"x": 12345})
    data = bytearray((tmp_path / "a").read_bytes())
    data[data.index((12345).to_bytes(8, "little"))] ^= 1
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(CorruptError, match="nothing was published"):
        merge([tmp_path / "a"], tmp_path / "b")
    assert os.listdir(tmp_path) == ["a"]


def test_progress_ends_at_all(tmp_path: Path) -> None:
    """Bytes copied and bytes verified, in one count."""
    with Writer(tmp_path / "a") as writer:
        writer.add_batch({"x": list(range(1000))})
    seen: list[tuple[int, int]] = []
    merge([tmp_path / "a"], tmp_path / "b", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (16000, 16000)
    assert seen == sorted(seen)


# -- attributes -------------------------------------------------------------------------------------------------------


def converted(folder: Path, name: str, classes: str, dtype: str = "<f4", suffix: str = "npy") -> Path:
    """A container made of a folder for each class, with two files in each."""
    for kind in classes:
        (folder / name / kind).mkdir(parents=True)
        for number in range(2):
            np.save(folder / name / kind / f"{name}{number}.{suffix}", np.full(3, number, dtype))
    convert(folder / name, folder / f"{name}.cks", layout="classes")
    return folder / f"{name}.cks"


def test_the_record_of_original_files_is_joined(tmp_path: Path) -> None:
    """What `export` makes of the merged container are the files of both."""
    merged = merge([converted(tmp_path, "a", "xy"), converted(tmp_path, "b", "xy")], tmp_path / "all.cks")
    assert merged.notes == ()
    export(tmp_path / "all.cks", tmp_path / "out")
    for name in "ab":
        for path in (tmp_path / name).rglob("*.npy"):
            assert (tmp_path / "out" / path.relative_to(tmp_path / name)).read_bytes() == path.read_bytes()


def test_a_field_of_other_files_is_told(tmp_path: Path) -> None:
    """Byte orders that differ are not kept, nothing else is lost, and a note says so."""
    first, second = converted(tmp_path, "a", "x"), converted(tmp_path, "b", "x", ">f4")
    merged = merge([first, second], tmp_path / "all.cks")
    assert len(merged.notes) == 1
    assert merged.notes[0].startswith("the dtype of the original arrays of field 'data' is not kept")
    with chunkstore_open(tmp_path / "all.cks") as ds:
        assert ds.attrs["class_names"] == {"label": ["x"]}
        assert ds.attrs["chunkstore"]["origin"]["fields"]["data"]["dtype"] is None


def test_files_of_rows_are_strung_together(tmp_path: Path) -> None:
    """Equal names get one beside them, and the counts fit the samples."""
    for name in "ab":
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "x.npy", np.arange(6).reshape(3, 2))
        convert(tmp_path / name, tmp_path / f"{name}.cks", layout="rows")
    merged = merge([tmp_path / "a.cks", tmp_path / "b.cks"], tmp_path / "all.cks")
    assert merged.notes == ()
    with chunkstore_open(tmp_path / "all.cks") as ds:
        assert ds.attrs["chunkstore"]["origin"]["files"] == [["x.npy", 3], ["x-2.npy", 3]]
    export(tmp_path / "all.cks", tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["x-2.npy", "x.npy"]


def test_no_record_is_guessed(tmp_path: Path) -> None:
    """A container that a program wrote has none: the merged one has none, and a note says why."""
    with Writer(tmp_path / "b.cks", fields={"data": ("float32", (3,)), "label": "int64"}) as writer:
        writer.add({"data": np.zeros(3, np.float32), "label": 0}, "z")
    first = converted(tmp_path, "a", "x")
    merged = merge([first, tmp_path / "b.cks"], tmp_path / "all.cks")
    assert [note.partition(":")[0] for note in merged.notes] == [
        "the class names of field 'label' are not kept",
        "the record of the original files is not kept",
    ]
    with chunkstore_open(tmp_path / "all.cks") as ds:
        assert ds.attrs == {}


def test_a_number_never_changes_its_class(tmp_path: Path) -> None:
    """A list that goes on where the other ends is kept; one that gives a number to another class is refused."""
    first, more, other = (converted(tmp_path, name, kinds) for name, kinds in (("a", "xy"), ("b", "xyz"), ("c", "xz")))
    merge([first, more], tmp_path / "all.cks")
    with chunkstore_open(tmp_path / "all.cks") as ds:
        assert ds.attrs["class_names"] == {"label": ["x", "y", "z"]}
    with pytest.raises(
        SchemaError, match=r"number 1 is the class 'z' in .*c\.cks and 'y' in .*b\.cks, and merge does not"
    ):
        merge([first, other, more], tmp_path / "out.cks")
    assert not (tmp_path / "out.cks").exists()
    assert merge([first, other], tmp_path / "out.cks", attrs={"mine": 1}).notes == ()


def test_equal_keys_that_are_no_text(tmp_path: Path) -> None:
    """Keys of a hostile file, all checksums right, that are equal and not UTF-8: an error of ours, nothing is made."""
    container = Damaged(tmp_path / "a.cks").build(2, names=["label"])
    data = bytearray(container.good)
    start, nbytes = container.place("KEY_BYTES")
    data[start : start + nbytes] = b"\xff" * nbytes
    repair(data)
    container.write(data)
    with pytest.raises(SchemaError, match=r"samples 0 and 1 have the same key '.*xff"):
        merge([container.path], tmp_path / "b.cks")
    assert not (tmp_path / "b.cks").exists()


def test_keys_that_end_before_they_begin(tmp_path: Path) -> None:
    """Descending ends of the keys of a hostile file, all checksums right, are keys without a byte: equal ones."""
    container = Damaged(tmp_path / "a.cks").build(3, names=["label"])
    data = bytearray(container.good)
    start, _ = container.place("KEY_OFFSETS")
    data[start + 8 : start + 32] = np.array([5, 3, 1], "<u8").tobytes()
    repair(data)
    container.write(data)
    with pytest.raises(SchemaError, match=r"samples 1 and 2 have the same key ''"):
        merge([container.path], tmp_path / "b.cks")
    assert not (tmp_path / "b.cks").exists()


@pytest.mark.parametrize("section", ["OFFSETS", "STORED_OFFSETS"])
def test_offsets_that_wrap_around(tmp_path: Path, section: str) -> None:
    """Those of a hostile file, all checksums right, are found when the new one is verified."""
    container = Damaged(tmp_path / "a.cks").build(5, keys=False, names=["text"], codec="zlib")
    data = bytearray(container.good)
    start, _ = container.place(section, "text")
    data[start : start + 8] = (2**63).to_bytes(8, "little")
    repair(data)
    container.write(data)
    with pytest.raises(CorruptError, match=f"nothing was published.*{section} of field 'text'"):
        merge([container.path] * 2, tmp_path / "b.cks")
    assert not (tmp_path / "b.cks").exists()
