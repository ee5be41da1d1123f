"""`append`: what it adds reads as if `convert` had had all files from the start."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chunkstore
from chunkstore._ingest.convert.append import append
from chunkstore._storage import commit
from chunkstore._write import target

POINT = np.dtype([("xy", "<f4", (2,)), ("id", "<i8")])


def files(folder: Path, numbers: range) -> None:
    """One `.npy` a sample, of one shape, half of them in Fortran order."""
    for number in numbers:
        array = np.arange(6, dtype=np.int16).reshape(2, 3) + number
        np.save(folder / f"{number}.npy", np.asfortranarray(array) if number % 2 else array)


def ragged(folder: Path, numbers: range) -> None:
    """One `.npz` a sample; rows of any length, a text, a number; all of one length in the second part."""
    for number in numbers:
        count = 2 if number > 3 else number
        arrays: dict[str, Any] = {"x": np.full((count, 3), number, "f4"), "name": np.array(f"nämë {number}"[:5])}
        np.savez(folder / f"{number}.npz", y=np.float64(number), **arrays)


def two_dimensions(folder: Path, numbers: range) -> None:
    """Two dimensions that vary: a shapes table."""
    for number in numbers:
        np.save(folder / f"{number}.npy", np.full((number, 1 + number % 3), number, np.uint8))


def structured(folder: Path, numbers: range) -> None:
    """Members of a structured array."""
    for number in numbers:
        np.save(folder / f"{number}.npy", np.array((([number, 1.5]), number), POINT))


def paired(folder: Path, numbers: range) -> None:
    """Two files a sample."""
    for number in numbers:
        for role, array in (("images", np.full((2, 2), number, np.uint8)), ("labels", np.int64(number))):
            (folder / role).mkdir(exist_ok=True)
            np.save(folder / role / f"{number:04d}.npy", array)


def rows(folder: Path, numbers: range) -> None:
    """Several arrays whose first axis is the sample axis, deflated."""
    for number in numbers:
        arrays = {"x": np.full((number + 1, 4), number, "<f8"), "y": np.arange(number + 1)}
        np.savez_compressed(folder / f"part{number}.npz", **arrays)


def columns(folder: Path, numbers: range) -> None:
    """Whole arrays in files of their own, one of them structured: those of the second folder are longer."""
    np.save(folder / "X.npy", np.asfortranarray(np.array([[n, n + 1] for n in numbers], "<f4")))
    np.save(folder / "y.npy", np.array(list(numbers), ">i2"))
    np.save(folder / "p.npy", np.array([([n, 1.5], n) for n in numbers], POINT))


def long_doubles(folder: Path, numbers: range) -> None:
    """A dtype that a container cannot hold."""
    for number in numbers:
        np.save(folder / f"{number}.npy", np.array([number, 0.5], np.longdouble))


CASES: list[tuple[Callable[[Path, range], None], dict[str, Any]]] = [
    (files, {"layout": "files", "fields": ["image=data"]}),
    (ragged, {"layout": "files", "dtype": ["name=string"]}),
    (two_dimensions, {"layout": "files"}),
    (structured, {"layout": "files"}),
    (paired, {"layout": "paired"}),
    (rows, {"layout": "rows", "fields": ["a=x", "b=y"]}),
    (columns, {"layout": "columns", "fields": ["image=X", "label=y.npy", "p.xy", "p.id"]}),
    (long_doubles, {"layout": "files", "dtype": ["data=float64"]}),
]


def everything(path: Path) -> list[dict[str, Any]]:
    """All samples, arrays as (dtype, shape, values)."""
    with chunkstore.open(path) as ds:
        keys = ds.keys or [None] * len(ds)
        return [
            {"key": key}
            | {
                name: row if isinstance(row, str) else (row.dtype.str, row.shape, row.tolist())
                for name, row in sample.items()
            }
            for key, sample in zip(keys, ds, strict=True)
        ]


@pytest.mark.parametrize(("make", "options"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_same_as_converting_all(
    make: Callable[[Path, range], None], options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Convert a part and append the rest without a word on how to read it: equal to converting all, piece by piece."""
    monkeypatch.setattr("chunkstore._ingest.convert.append._PIECE_NBYTES", 64)
    for name, numbers in (("first", range(4)), ("second", range(4, 8)), ("all", range(8))):
        (tmp_path / name).mkdir()
        make(tmp_path / name, numbers)
        if name != "second":
            chunkstore.convert(tmp_path / name, tmp_path / f"{name}.cks", **options)
    told: list[tuple[int, int, int, int]] = []
    report = append([tmp_path / "second"], tmp_path / "first.cks", progress=lambda *done: told.append(done))
    assert everything(tmp_path / "first.cks") == everything(tmp_path / "all.cks")
    assert report.num_samples == len(everything(tmp_path / "all.cks"))
    assert told[-1][0] == told[-1][1] == report.num_added
    assert chunkstore.verify(tmp_path / "first.cks", deep=True).ok
    for name in ("first", "all"):
        chunkstore.export(tmp_path / f"{name}.cks", tmp_path / f"{name}-again")
    paths = sorted(path.relative_to(tmp_path / "all-again") for path in (tmp_path / "all-again").rglob("*.np[yz]"))
    for path in paths:
        assert (tmp_path / "first-again" / path).read_bytes() == (tmp_path / "all-again" / path).read_bytes()


def test_container_of_a_program(tmp_path: Path) -> None:
    """A container that was not converted says nothing on how files are read: the usual rules hold."""
    with chunkstore.Writer(tmp_path / "x.cks") as writer:
        writer.add({"x": np.zeros(3, np.float32)}, key="first")
    (tmp_path / "more").mkdir()
    for number in range(3):
        np.save(tmp_path / "more" / f"{number}.npy", np.full(3, number, np.float32))
    append([tmp_path / "more"], tmp_path / "x.cks", fields=["x=data"])
    with chunkstore.open(tmp_path / "x.cks") as ds:
        assert list(ds.keys or ()) == ["first", "0", "1", "2"]
        assert ds.attrs == {}


def test_without_keys_to_keys(tmp_path: Path) -> None:
    """Samples without keys cannot join samples that have one; the message names the layouts."""
    with chunkstore.Writer(tmp_path / "x.cks") as writer:
        writer.add({"data": np.zeros(3)}, key="first")
    np.save(tmp_path / "rows.npy", np.zeros((5, 3)))
    with pytest.raises(chunkstore.IngestError, match="--layout rows"):
        append([tmp_path / "rows.npy"], tmp_path / "x.cks", layout="rows")


def test_same_file_name_twice(tmp_path: Path) -> None:
    """Two files of rows with one name are exported under two."""
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        np.save(tmp_path / str(number) / "x.npy", np.full((3, 2), number))
    chunkstore.convert(tmp_path / "0" / "x.npy", tmp_path / "x.cks")
    append([tmp_path / "1" / "x.npy"], tmp_path / "x.cks")
    chunkstore.export(tmp_path / "x.cks", tmp_path / "again")
    assert np.load(tmp_path / "again" / "x.npy").max() == 0
    assert np.load(tmp_path / "again" / "x-2.npy").min() == 1


@pytest.mark.parametrize(
    ("old", "new", "told", "exported"),
    [
        ("CF", "FC", False, "2 files"),
        ("CF", "CC", False, "1 file"),
        ("FF", "CC", True, None),
        ("FF", "FF", False, None),
    ],
)
def test_memory_orders_that_are_lost(tmp_path: Path, old: str, new: str, told: bool, exported: str | None) -> None:
    """`append` says that it makes files differ in memory order, `export` how many of old and new files do."""
    array = np.arange(6.0).reshape(2, 3)
    for folder, orders in (("old", old), ("new", new)):
        (tmp_path / folder).mkdir()
        for number, order in enumerate(orders):
            np.save(tmp_path / folder / f"{folder}{number}.npy", np.array(array, order=order))  # type: ignore[call-overload]
    chunkstore.convert(tmp_path / "old", tmp_path / "x.cks", layout="files")
    report = append([tmp_path / "new"], tmp_path / "x.cks")
    assert any("the order of the original arrays of field 'data' is not kept" in note for note in report.notes) == told
    notes = chunkstore.export(tmp_path / "x.cks", tmp_path / "again").notes
    assert [f"byte order of {exported} is not kept" in note for note in notes] == ([True] if exported else [])
    for path in (tmp_path / "again").iterdir():
        assert np.array_equal(np.load(path), array)


def test_interrupted(tmp_path: Path) -> None:
    """Ctrl-C in the middle: nothing was added, and the message says how to go on."""
    (tmp_path / "data").mkdir()
    files(tmp_path / "data", range(4))
    chunkstore.convert(tmp_path / "data", tmp_path / "x.cks", exclude=["3.npy"])
    before = chunkstore.open(tmp_path / "x.cks").fingerprint
    with pytest.raises(KeyboardInterrupt, match="nothing was added"):
        append(
            [tmp_path / "data"],
            tmp_path / "x.cks",
            exclude=["0.npy", "1.npy", "2.npy"],
            progress=lambda *done: signal.raise_signal(signal.SIGINT),
        )
    assert chunkstore.open(tmp_path / "x.cks").fingerprint == before


@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_interrupted_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Ctrl-C while the commit is written waits until it is whole: nothing is half-made, and the message is true."""
    (tmp_path / "data").mkdir()
    files(tmp_path / "data", range(4))
    chunkstore.convert(tmp_path / "data", tmp_path / "x.cks", exclude=["3.npy"])
    real_commit, real_second = target.commit_append, commit._write_second

    def interrupted_commit(*arguments: Any) -> None:
        if when == "before":
            signal.raise_signal(signal.SIGINT)
        real_commit(*arguments)
        if when == "after":
            signal.raise_signal(signal.SIGINT)

    def interrupted_second(*arguments: Any) -> None:
        if when == "between":
            signal.raise_signal(signal.SIGINT)
        real_second(*arguments)

    monkeypatch.setattr(target, "commit_append", interrupted_commit)
    monkeypatch.setattr(commit, "_write_second", interrupted_second)
    with pytest.raises(KeyboardInterrupt, match=r"x\.cks has the new samples"):
        append([tmp_path / "data"], tmp_path / "x.cks", exclude=["0.npy", "1.npy", "2.npy"])
    report = chunkstore.verify(tmp_path / "x.cks", deep=True)
    assert (report.ok, report.damage) == (True, [])
    assert len(chunkstore.open(tmp_path / "x.cks")) == 4
