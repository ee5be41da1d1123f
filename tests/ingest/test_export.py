"""`export`: the files again, bit by bit; and nothing outside the directory, whatever a container says."""

from __future__ import annotations

import errno
import gc
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import chunkstore
from chunkstore._ingest.export.npywrite import encode_header, write_npy
from chunkstore._ingest.export.restore import check_path, restore
from chunkstore.errors import CorruptError, SchemaError, WriteError


def back(source: Path, tmp_path: Path, **options: Any) -> Path:
    """Convert and export; the directory."""
    chunkstore.convert(source, tmp_path / "x.cks", **options)
    chunkstore.export(tmp_path / "x.cks", tmp_path / "out")
    return tmp_path / "out"


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def equal(one: Any, other: Any) -> bool:
    """Equal in dtype, shape, memory order and bytes."""
    return bool(
        (one.dtype, one.shape, one.flags.f_contiguous) == (other.dtype, other.shape, other.flags.f_contiguous)
        and one.tobytes() == other.tobytes()
    )


RECORD = np.dtype([("t", "<M8[D]"), ("in", [("x", ">f4", (2,)), ("n", "<i2")]), ("name", "<U3")])
ARRAYS = {
    "float": np.arange(6.0).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "big": np.arange(5, dtype=">i4"),
    "scalar": np.array(3.5),
    "empty": np.zeros((3, 0)),
    "text": np.array(["a", "bcd"]),
    "bytes": np.array([b"a", b"bcd"]),
    "record": np.zeros(4, RECORD),
    "bool": np.array([True, False]),
    "complex": np.array([1j]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_npy_files_are_identical(tmp_path: Path, name: str) -> None:
    """`.npy` files that NumPy wrote come back as the same files, names and all."""
    (tmp_path / "src" / "b c").mkdir(parents=True)
    for place in range(12):
        np.save(tmp_path / "src" / "b c" / f"{place}.npy", ARRAYS[name])
    out = back(tmp_path / "src", tmp_path, layout="files")
    assert files(out) == files(tmp_path / "src")


def test_npz_files(tmp_path: Path) -> None:
    """Every array of an `.npz` comes back under its name, odd names too; two exports give the same bytes."""
    (tmp_path / "src").mkdir()
    arrays = {**ARRAYS, "2,2,3": np.zeros(3), "adj_matrix.data": np.ones(2), "a/b": np.ones(1)}
    for place in range(3):
        np.savez_compressed(tmp_path / "src" / f"{place}.npz", **arrays)
    out = back(tmp_path / "src", tmp_path)
    with np.load(out / "1.npz") as found:
        assert sorted(found.files) == sorted(arrays)
        for name, array in arrays.items():
            assert equal(found[name], array), name
    chunkstore.export(tmp_path / "x.cks", tmp_path / "again")
    assert files(out) == files(tmp_path / "again")


@pytest.mark.parametrize("dtype", ["<f8", ">f8", ">c8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_are_split_again(tmp_path: Path, order: Any, dtype: str) -> None:
    """The layout `rows`: each file gets its rows back, in its memory order and byte order."""
    (tmp_path / "src").mkdir()
    for place in range(5):
        x = np.array(np.random.default_rng(place).random((place * 7 + 1, 4, 3)), dtype, order=order)
        np.savez(tmp_path / "src" / f"{place}.npz", x=x, y=np.arange(place * 7 + 1, dtype=">u2"))
    out = back(tmp_path / "src", tmp_path, layout="rows", shard_nbytes=500)
    for place in range(5):
        with np.load(out / f"{place}.npz") as found, np.load(tmp_path / "src" / f"{place}.npz") as wanted:
            assert all(equal(found[name], wanted[name]) for name in ("x", "y"))


def test_mixed_orders_are_told(tmp_path: Path) -> None:
    """Files of one field in several memory or byte orders: equal values, and both reports count those that change."""
    (tmp_path / "src").mkdir()
    array = np.arange(6.0).reshape(2, 3)
    mixed = [array, np.asfortranarray(array), array.astype(">f8"), array]
    for place, one in enumerate(mixed):
        np.save(tmp_path / "src" / f"{place}.npy", one)
    converted = chunkstore.convert(tmp_path / "src", tmp_path / "x.cks", layout="files")
    exported = chunkstore.export(tmp_path / "x.cks", tmp_path / "out")
    for report in (converted, exported):
        assert [note for note in report.notes if "byte order of 2 files is not kept" in note], report.notes
    for place, one in enumerate(mixed):
        assert np.array_equal(np.load(tmp_path / "out" / f"{place}.npy"), one)
    for place in range(4):
        np.save(tmp_path / "src" / f"{place}.npy", mixed[2])
    report = chunkstore.convert(tmp_path / "src", tmp_path / "x.cks", layout="files", mode="w")
    assert not [note for note in report.notes if "not kept" in note]


def test_rows_of_several_pieces(tmp_path: Path) -> None:
    """Arrays larger than the buffer are streamed; a large Fortran array may come in C order, with a note."""
    array = np.arange(3_000_000, dtype="i4").reshape(-1, 100)
    np.save(tmp_path / "x.npy", array)
    out = back(tmp_path / "x.npy", tmp_path, layout="rows")
    assert files(out)["x.npy"] == (tmp_path / "x.npy").read_bytes()
    np.save(tmp_path / "f.npy", np.asfortranarray(array))
    chunkstore.convert(tmp_path / "f.npy", tmp_path / "f.cks", layout="rows")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chunkstore._ingest.export.export._FORTRAN_NBYTES", 1000)
        report = chunkstore.export(tmp_path / "f.cks", tmp_path / "f")
    assert "C order" in report.notes[0]
    assert np.array_equal(np.load(tmp_path / "f/f.npy"), array)


@pytest.mark.parametrize("names", [("images/{}", "labels/{}"), ("{}_image", "{}_label"), ("image_{}", "label_{}")])
def test_paired_files(tmp_path: Path, names: tuple[str, str]) -> None:
    """Pairs become two files again, whatever the pattern of their names."""
    for place in range(3):
        for name, array in zip(names, (np.zeros((2, place)), np.array(place)), strict=True):
            path = tmp_path / "src" / (name.format(place) + ".npy")
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, array)
    out = back(tmp_path / "src", tmp_path, layout="paired")
    assert files(out) == files(tmp_path / "src")


def test_classes_and_two_sources(tmp_path: Path) -> None:
    """Class folders come back without the label field; equal names of two sources stay apart."""
    for name in ("cat", "dog"):
        (tmp_path / "src" / name).mkdir(parents=True)
        np.save(tmp_path / "src" / name / "1.npy", np.zeros(3))
    assert files(back(tmp_path / "src", tmp_path, layout="classes")) == files(tmp_path / "src")
    chunkstore.convert([tmp_path / "src/cat", tmp_path / "src/dog"], tmp_path / "two.cks")
    chunkstore.export(tmp_path / "two.cks", tmp_path / "two")
    assert files(tmp_path / "two") == files(tmp_path / "src")


def test_some_fields(tmp_path: Path) -> None:
    """A part of the fields, a part of a structured array, and a field of another type."""
    (tmp_path / "src").mkdir()
    for place in range(3):
        np.save(tmp_path / "src" / f"{place}.npy", np.ones(4, RECORD))
    chunkstore.convert(tmp_path / "src", tmp_path / "x.cks", layout="files", fields=["t", "n=in.n"], dtype=["n=int64"])
    chunkstore.export(tmp_path / "x.cks", tmp_path / "out")
    found = np.load(tmp_path / "out/1.npy")
    assert found.dtype == np.dtype([("t", "<M8[D]"), ("in", [("n", "<i8")])])
    assert (found["in"]["n"] == 1).all()
    chunkstore.export(tmp_path / "x.cks", tmp_path / "n", fields=["n"])
    assert np.load(tmp_path / "n/1.npy").dtype == np.dtype([("in", [("n", "<i8")])])
    with pytest.raises(ValueError, match="'nope'"):
        chunkstore.export(tmp_path / "x.cks", tmp_path / "none", fields=["nope"])


def test_container_that_was_not_converted(tmp_path: Path) -> None:
    """Keys are names, or padded positions are; one field is an `.npy`, several are an `.npz`; texts are unicode."""
    with chunkstore.Writer(tmp_path / "one.cks") as w:
        for place in range(11):
            w.add({"x": np.full(2, place)})
    chunkstore.export(tmp_path / "one.cks", tmp_path / "one")
    assert sorted(files(tmp_path / "one")) == [f"{place:02d}.npy" for place in range(11)]
    assert np.load(tmp_path / "one/07.npy").tolist() == [7, 7]
    with chunkstore.Writer(tmp_path / "two.cks") as w:
        w.add({"x": 1, "text": "äh"}, key="a/ü")
    with chunkstore.open(tmp_path / "two.cks") as ds:
        chunkstore.export(ds, tmp_path / "two")
        assert len(ds) == 1, "a reader that is given stays open"
    with np.load(tmp_path / "two/a/ü.npz") as found:
        assert (found["text"], found["x"]) == ("äh", 1)


def test_extended_dtypes_are_void(tmp_path: Path) -> None:
    """bfloat16 is void of two bytes, as `.npy` files hold it."""
    (tmp_path / "src").mkdir()
    for place in range(3):
        np.save(tmp_path / "src" / f"{place}.npy", np.array([place, 5], "u2").view("V2"))
    out = back(tmp_path / "src", tmp_path, dtype="bfloat16")
    assert files(out) == files(tmp_path / "src")


def test_a_file_without_rows_among_files_of_other_shapes(tmp_path: Path) -> None:
    """Of what shape its rows would be nobody knows any more: a note says so."""
    (tmp_path / "src").mkdir()
    arrays = {"a.npy": np.ones((2, 3, 4)), "b.npy": np.ones((0, 5, 4)), "c.npy": np.ones((1, 6, 4))}
    for name, array in arrays.items():
        np.save(tmp_path / "src" / name, array)
    chunkstore.convert(tmp_path / "src", tmp_path / "x.cks", layout="rows")
    report = chunkstore.export(tmp_path / "x.cks", tmp_path / "out")
    assert "a file without rows" in report.notes[0]
    arrays["b.npy"] = np.ones((0, 0, 4))
    for name, array in arrays.items():
        assert np.array_equal(np.load(tmp_path / "out" / name), array)


# --- nothing outside, nothing lost ---


@pytest.mark.parametrize(
    "key", ["../x", "a/../../x", "/etc/x", "a//b", "./x", "C:\\x", "c:x", "\\\\host\\x", "a\\..\\..\\x"]
)
def test_hostile_keys(tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that leads out of the directory is refused, drives by the rules of Windows, and nothing is written."""
    monkeypatch.setattr("chunkstore._ingest.export.restore._WINDOWS", True)
    with chunkstore.Writer(tmp_path / "x.cks") as w:
        w.add({"x": 1}, key="good")
        w.add({"x": 1}, key=key)
    before = sorted(tmp_path.parent.rglob("*"))
    with pytest.raises(SchemaError, match="nothing was exported"):
        chunkstore.export(tmp_path / "x.cks", tmp_path / "out")
    assert sorted(tmp_path.parent.rglob("*")) == before


@pytest.mark.skipif(os.name == "nt", reason="there they are no parts of a name")
def test_names_with_a_colon_or_backslash(tmp_path: Path) -> None:
    """Times as names, `1:30.npy`, come back under them where the system has such names."""
    (tmp_path / "src" / "C:").mkdir(parents=True)
    for name in ("1:30.npy", "2:00.npy", "C:/x.npy", "\\alpha.npy", "a\\b.npy"):
        np.save(tmp_path / "src" / name, np.zeros(2))
    assert files(back(tmp_path / "src", tmp_path, layout="files")) == files(tmp_path / "src")


@pytest.mark.parametrize("windows", [False, True])
@given(path=st.text(max_size=30) | st.text("C:/\\.x", max_size=9))
def test_paths_that_pass_stay_inside(windows: bool, path: str) -> None:
    """What the check lets pass is below the directory, by the rules of the system that it is for."""
    import ntpath
    import posixpath

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chunkstore._ingest.export.restore._WINDOWS", windows)
        try:
            check_path(path)
        except SchemaError:
            return
    rules, root = (ntpath, "C:\\root") if windows else (posixpath, "/root")
    whole = rules.normpath(rules.join(root, path))
    assert whole.startswith(root + rules.sep)


def record(
    layout: str = "files", *, array: Any = None, member: Any = None, dtype: Any = "<i8", **rest: Any
) -> dict[str, Any]:
    """A record of the original files for the field x."""
    entry = {"array": array, "member": member, "dtype": dtype, "order": "C"}
    return {
        "version": 1,
        "layout": layout,
        "fields": {"x": entry},
        "structs": {},
        "suffix": ".npy",
        "names": {},
        **rest,
    }


def paired(role: Any, position: Any = 0) -> dict[str, Any]:
    """The same for pairs."""
    return record("paired", pattern="folder", position=position) | {
        "fields": {"x": {**record()["fields"]["x"], "role": role}}
    }


HOSTILE = [
    record(suffix="/../../x.npy"),
    record(names={"a": "../../x.npy"}),
    record("rows", files=[["/tmp/x.npy", 1]]),
    paired(".."),
]


@pytest.mark.parametrize("origin", HOSTILE)
def test_hostile_records(tmp_path: Path, origin: dict[str, Any]) -> None:
    """Names in the record of the original files are checked like keys."""
    with chunkstore.Writer(tmp_path / "x.cks") as w:
        w.add({"x": 1}, key="a")
        w.attrs["chunkstore"] = {"origin": origin}
    with pytest.raises(SchemaError, match="nothing was exported"):
        chunkstore.export(tmp_path / "x.cks", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["x.cks"]


UNFIT: list[Any] = [
    None,
    7,
    [],
    {},
    {"version": 1},
    record(version=2),
    record("rows", files=[["a", 5]]),
    record("rows", files=[["a", 2], ["b", -1]]),
    record("rows", files=[["a", "1"]]),
    record(array=5),
    record(member="q", structs={"": [["q"]]}),
    record(member="q", structs={"": [["q", "<i8"]], "x": 1}, fields={}),
    record(dtype="nonsense"),
    record("paired", pattern="folder", position="0"),
    record(suffix=None),
    record(names={"a": 5}),
    paired(5),
    paired([1]),
    paired("r", 2**70),
    record("rows", files=[["a.npy", 1.0]]),
    record("rows", files=[["a.npy", True]]),
    record("rows", files=[[[1], 0], ["b.npy", 1]]),
    record("rows", files=[[5, 0], ["b.npy", 1]]),
    record(array="a" * 70_000),
    record(member="q", structs={"": [["q", "<i8", [7]]]}),
]


@pytest.mark.parametrize("origin", UNFIT)
def test_records_that_do_not_fit(tmp_path: Path, origin: Any) -> None:
    """A record that is not one is passed over: files are named by keys."""
    with chunkstore.Writer(tmp_path / "x.cks") as w:
        w.add({"x": 1}, key="a")
        w.attrs["chunkstore"] = {"origin": origin}
    report = chunkstore.export(tmp_path / "x.cks", tmp_path / "out")
    assert sorted(files(tmp_path / "out")) == ["a.npy"]
    assert bool(report.notes) == (origin is not None)


def test_half_a_surrogate_pair(tmp_path: Path) -> None:
    """Names that no writer stores, and no system has, are refused as the other bad ones are."""
    with pytest.raises(SchemaError, match="nothing was exported"):
        check_path("a\ud800")
    with chunkstore.Writer(tmp_path / "x.cks") as w:
        w.add({"x": 1}, key="a")
    with chunkstore.open(tmp_path / "x.cks") as ds:
        attrs = {"chunkstore": {"origin": record(array="\ud800")}}
        assert "does not fit" in restore(list(ds.fields.values()), attrs, 1, has_keys=True).notes[0]


def test_rows_that_are_no_array(tmp_path: Path) -> None:
    """A record that puts ragged rows of different shape into one file, in one piece or several."""
    for many in (2, 3000):
        with chunkstore.Writer(tmp_path / "x.cks", mode="w", fields={"x": ("float64", (None,))}) as w:
            for place in range(many):
                w.add({"x": np.zeros(2000 if place < many - 1 else 3)})
            w.attrs["chunkstore"] = {"origin": record("rows", files=[["a.npy", many]], dtype="<f8")}
        with pytest.raises(SchemaError, match="differ in shape"):
            chunkstore.export(tmp_path / "x.cks", tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["x.cks"]


def test_two_keys_one_file(tmp_path: Path) -> None:
    """A key that is a folder of another key's file cannot be written."""
    with chunkstore.Writer(tmp_path / "x.cks") as w:
        w.add({"x": 1}, key="a.npy/b")
        w.add({"x": 1}, key="a")
    with pytest.raises(SchemaError, match=r"two samples would both be .*'a.npy'"):
        chunkstore.export(tmp_path / "x.cks", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_directory_must_be_empty(tmp_path: Path) -> None:
    """Existing files are never overwritten; an empty directory, or a link to one, is filled; a parent must exist."""
    with chunkstore.Writer(tmp_path / "x.cks") as w:
        w.add({"x": 1}, key="a")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.npy").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        chunkstore.export(tmp_path / "x.cks", tmp_path / "full")
    assert (tmp_path / "full" / "a.npy").read_bytes() == b"mine"
    (tmp_path / "empty").mkdir()
    os.symlink(tmp_path / "empty", tmp_path / "link")
    chunkstore.export(tmp_path / "x.cks", tmp_path / "link")
    assert list(files(tmp_path / "empty")) == ["a.npy"]
    with pytest.raises(FileNotFoundError):
        chunkstore.export(tmp_path / "x.cks", tmp_path / "no" / "out")


def test_damaged_container(tmp_path: Path) -> None:
    """A damaged chunk ends the export, and no directory appears."""
    with chunkstore.Writer(tmp_path / "x.cks") as w:
        w.add({"x": np.arange(1000)}, key="a")
    data = bytearray((tmp_path / "x.cks").read_bytes())
    data[8192 + 100] ^= 1
    (tmp_path / "x.cks").write_bytes(data)
    with pytest.raises(CorruptError):
        chunkstore.export(tmp_path / "x.cks", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["x.cks"]


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system refuses in the middle of a file names the file, and no directory appears."""
    with chunkstore.Writer(tmp_path / "x.cks") as w:
        w.add({"x": np.arange(3)}, key="cat/7")

    def full(*args: Any, **options: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("chunkstore._ingest.export.export.write_npy", full)
    with pytest.raises(WriteError, match=r"cannot write this file: No space left .*'cat/7\.npy'"):
        chunkstore.export(tmp_path / "x.cks", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["x.cks"]


def test_damage_inside_an_npz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that ends in the middle of an `.npz` says what went wrong and nothing else: no noise from the zip."""
    with chunkstore.Writer(tmp_path / "x.cks") as w:
        w.add({"a": np.zeros(1000), "b": np.ones(1000)}, key="a")
    data = bytearray((tmp_path / "x.cks").read_bytes())
    at = data.find(np.ones(1000).tobytes())
    data[at + 8] ^= 1
    (tmp_path / "x.cks").write_bytes(data)
    ignored: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", ignored.append)

    def fail_late(file: Any, array: Any, *, fortran_order: bool) -> int:
        """Fails after the first array."""
        if array[0] == 1:
            raise OSError("disk full")
        return write_npy(file, array, fortran_order=fortran_order)

    for error in (CorruptError, OSError):
        with pytest.raises(error):
            chunkstore.export(tmp_path / "x.cks", tmp_path / "out")
        gc.collect()
        assert ignored == []
        data[at + 8] ^= 1
        (tmp_path / "x.cks").write_bytes(data)
        monkeypatch.setattr("chunkstore._ingest.export.export.write_npy", fail_late)


MANY = np.dtype([(f"a{n}" * 9, "f4") for n in range(3000)])
HEADERS = [np.dtype("f4"), np.dtype(">U3"), RECORD, MANY, np.dtype([("ü€", "i1")])]


@pytest.mark.parametrize("dtype", HEADERS, ids=range(len(HEADERS)))
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.filterwarnings("ignore:Stored array in format")
def test_written_as_numpy_writes(dtype: Any, shape: tuple[int, ...], order: Any) -> None:
    """Headers and data are those of `np.save`, in versions 1, 2 and 3."""
    array = np.zeros(shape, dtype, order=order)
    wanted, found = io.BytesIO(), io.BytesIO()
    np.save(wanted, array)
    assert write_npy(found, array, fortran_order=order == "F") == len(found.getvalue())
    assert found.getvalue() == wanted.getvalue()
    assert len(encode_header(dtype, shape, fortran_order=False)) % 64 == 0
