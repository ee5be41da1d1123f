"""Files -> samples: layouts, what `auto` chooses, keys, casts, refusals, reading the samples back."""

from __future__ import annotations

import os
import pickle
import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chunkstore._ingest.plan.inventory import Inventory
from chunkstore._ingest.plan.plan import Plan
from chunkstore._ingest.plan.planner import make_plan
from chunkstore._ingest.plan.read import PlanReader, read_uniform
from chunkstore._ingest.plan.scan import scan_sources
from chunkstore._ingest.plan.uniform import plan_uniform
from chunkstore.errors import IngestError


def tree(root: Path, arrays: dict[str, Any], *, compressed: bool = False) -> Path:
    for name, value in arrays.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(value, dict):
            (np.savez_compressed if compressed else np.savez)(root / name, **value)
        else:
            np.save(root / name, value)
    return root


def plan(*sources: Path, **options: Any) -> Plan:
    scan = {name: options.pop(name) for name in ("include", "exclude") if name in options}
    return make_plan(scan_sources(sources, **scan), **options)


def rows(made: Plan, name: str, *, stream: int = 0) -> list[np.ndarray]:
    """All rows of a field as arrays, read through `read` or through `stream` with a small buffer."""
    number = [field.name for field in made.fields].index(name)
    field = made.fields[number]
    data = bytearray(made.nbytes(number))
    with PlanReader(made) as reader:
        if stream:
            streamed = reader.stream(number, 0, made.num_samples, lambda n: memoryview(bytearray(n)), nbytes=stream)
            pieces = [bytes(piece) for _, _, piece, _ in streamed]
            assert max(map(len, pieces), default=0) <= stream
            data = bytearray(b"".join(pieces))
        else:
            reader.read(number, 0, made.num_samples, data)
    found, at = [], 0
    for items, lead in zip(made.row_items(number), made.row_shapes(number), strict=True):
        nbytes = int(items) * field.item_nbytes
        row = np.frombuffer(bytes(data[at : at + nbytes]), field.numpy_dtype)
        found.append(row.reshape((*lead, *field.item_shape)))
        at += nbytes
    assert at == len(data)
    return found


def f4(*shape: int) -> np.ndarray:
    return np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize(
    ("arrays", "layout", "num_samples", "fields"),
    [
        ({"x.npy": f4(5, 3)}, "rows", 5, {"data": (3,)}),
        ({"x.npy": f4(1, 3)}, "files", 1, {"data": (1, 3)}),
        ({"x.npy": np.float64(3)}, "files", 1, {"data": ()}),
        ({"x.npz": {"x_train": f4(6, 2), "y_train": np.arange(6)}}, "rows", 6, {"x_train": (2,), "y_train": ()}),
        ({"x.npz": {"a": f4(6, 2), "b": f4(5)}}, "files", 1, {"a": (6, 2), "b": (5,)}),
        ({"1.npy": f4(4, 4), "2.npy": f4(4, 4)}, "files", 2, {"data": (4, 4)}),
        ({"1.npy": f4(4), "2.npy": f4(7)}, "files", 2, {"data": (None,)}),
        ({"1.npz": {"a": f4(8, 3)}, "2.npz": {"a": f4(8, 5)}}, "files", 2, {"a": (8, None)}),
        ({"images/1.npy": f4(4, 4), "labels/1.npy": np.int64(3)}, "paired", 1, {"images": (4, 4), "labels": ()}),
        (
            {"1_image.npy": f4(4), "1_label.npy": f4(1), "2_image.npy": f4(4), "2_label.npy": f4(1)},
            "paired",
            2,
            {"image": (4,), "label": (1,)},
        ),
        ({"x_1.npy": f4(4, 4), "y_1.npy": f4(4)}, "paired", 1, {"x": (4, 4), "y": (4,)}),
        ({"a/t/x/1.npy": f4(4, 4), "a/t/y/1.npy": f4(4)}, "paired", 1, {"x": (4, 4), "y": (4,)}),
        ({"cat/1.npy": f4(9), "dog/1.npy": f4(9)}, "files", 2, {"data": (9,)}),
        ({"cat/1.npy": f4(9), "dog/1.npy": f4(8)}, "files", 2, {"data": (None,)}),
        (
            {"hello/0/1.npy": f4(9), "hello/1/1.npy": f4(9), "thanks/0/1.npy": f4(9), "thanks/1/1.npy": f4(9)},
            "files",
            4,
            {"data": (9,)},
        ),
        ({"r.npy": np.zeros(3, [("a", "<i4"), ("b", "<f8", (2,))])}, "rows", 3, {"a": (), "b": (2,)}),
        ({"r.npz": {"p": np.zeros(3, [("a", "<i4"), ("b", "<f8", (2,))])}}, "rows", 3, {"p.a": (), "p.b": (2,)}),
        (
            {"1.npz": {"X": f4(9, 3), "y": f4(9)}, "2.npz": {"X": f4(7, 5), "y": f4(7)}},
            "files",
            2,
            {"X": (None, None), "y": (None,)},
        ),
        ({"1.npy": f4(0), "2.npy": f4(3)}, "files", 2, {"data": (None,)}),
    ],
)
def test_auto(tmp_path: Path, arrays: dict[str, Any], layout: str, num_samples: int, fields: dict[str, Any]) -> None:
    """What `auto` chooses for each kind of tree, and the schema that comes of it."""
    made = plan(tree(tmp_path, arrays))
    assert (made.layout, made.num_samples) == (layout, num_samples)
    assert {field.name: field.shape for field in made.fields} == fields
    assert f"Layout {layout}: " in made.explanation


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        (
            {"1.npy": f4(4, 3), "2.npy": f4(5, 3)},
            r"two readings fit.*--layout files \(2 samples, one per file, ragged\) or --layout rows \(9 samples",
        ),
        (
            {"1.npz": {"x": f4(4, 3), "y": f4(4)}, "2.npz": {"x": f4(4, 3), "y": f4(4)}},
            "two readings fit.*--layout files.*--layout rows",
        ),
        (
            {"images/1.npy": f4(4, 4), "masks/1.npy": f4(4, 4)},
            r"two readings fit.*--layout paired \(1 sample of 2 fields\) or --layout files",
        ),
        (
            {"images/1.npy": f4(4, 4), "images/2.npy": f4(4, 4), "labels/1.npy": f4(1)},
            "'images/2.npy' has no partner in 'labels'",
        ),
        (
            {"gt/a1.npy": f4(4), "gt/a2.npy": f4(4), "img/1.npy": f4(4, 4), "img/2.npy": f4(4, 4)},
            r"no file name is in two of them \(gt/a1, ...\)\. Name the parts of a sample alike",
        ),
        (
            {
                f"{name}/{number}.npy": np.zeros((4, 4), dtype)
                for name, dtype in (("calib", "f8"), ("boxes3d", "f8"), ("velodyne", "f4"))
                for number in (1, 2)
            },
            r"names pair completely .*--layout paired \(2 samples of 3 fields\), or leave out",
        ),
    ],
)
def test_auto_refuses_to_guess(tmp_path: Path, arrays: dict[str, Any], text: str) -> None:
    """Where two readings fit, both are named with what to type."""
    with pytest.raises(IngestError, match=text):
        plan(tree(tmp_path, arrays))


@pytest.mark.parametrize("stream", [0, 24])
@pytest.mark.parametrize("compressed", [False, True])
def test_values_of_files(tmp_path: Path, compressed: bool, stream: int) -> None:
    """Every row of a ragged, Fortran-ordered, big-endian tree is that of its file."""
    arrays = {
        f"{n}.npz": {"a": np.asfortranarray(np.arange(n * 3).reshape(3, n)).astype(">i4"), "b": np.full(2, n, "<f8")}
        for n in range(8, 12)
    }
    made = plan(tree(tmp_path, arrays, compressed=compressed))
    assert list(made.keys or []) == ["8", "9", "10", "11"]
    for found, want in zip(rows(made, "a", stream=stream), arrays.values(), strict=True):
        assert found.dtype == np.dtype("<i4")
        assert np.array_equal(found, want["a"])
    assert made.origin["fields"]["a"] == {"array": "a", "member": None, "dtype": ">i4", "order": "F"}


def test_rows_strings_files_together(tmp_path: Path) -> None:
    """`rows` over several files, an empty one among them; slices of the plan give the same rows."""
    made = plan(tree(tmp_path, {"1.npy": f4(4, 3), "2.npy": f4(0, 3), "3.npy": f4(5, 3) + 100}), layout="rows")
    want = np.concatenate([f4(4, 3), f4(5, 3) + 100])
    assert made.keys is None
    assert np.array_equal(rows(made, "data"), want)
    assert np.array_equal(rows(made, "data", stream=5), want)
    assert made.origin["files"] == [["1.npy", 4], ["2.npy", 0], ["3.npy", 5]]
    for start in range(9):
        for stop in range(start + 1, 10):
            part = pickle.loads(pickle.dumps(made.slice(start, stop)))
            assert np.array_equal(rows(part, "data"), want[start:stop])


def test_rows_of_varying_length(tmp_path: Path) -> None:
    """`rows` over files whose rows differ: a ragged field."""
    made = plan(tree(tmp_path, {"1.npy": f4(2, 3), "2.npy": f4(3, 5)}), layout="rows")
    assert made.fields[0].shape == (None,)
    assert [len(row) for row in rows(made, "data")] == [3, 3, 5, 5, 5]


def test_rows_that_do_not_fit(tmp_path: Path) -> None:
    """First axes that differ, arrays without one."""
    tree(tmp_path, {"x.npz": {"a": f4(6, 2), "b": f4(5), "c": np.float32(1)}})
    with pytest.raises(IngestError, match=r"array 'c' has no dimension"):
        plan(tmp_path, layout="rows")
    with pytest.raises(IngestError, match=r"array 'a' has 6 rows, 'b' has 5"):
        plan(tmp_path, layout="rows", fields=["a", "b"])
    assert plan(tmp_path, layout="rows", fields=["image=a"]).num_samples == 6


def test_paired_values_and_names(tmp_path: Path) -> None:
    """Each sample has the arrays of its own stem; `--field` renames roles."""
    arrays: dict[str, Any] = {f"train/images/{n}.npy": f4(2, 2) + n for n in range(12)}
    arrays |= {f"train/labels/{n}.npy": np.int64(n) for n in range(12)}
    made = plan(tree(tmp_path, arrays), fields=["image=images", "label=labels"])
    assert [field.name for field in made.fields] == ["image", "label"]
    assert list(made.keys or [])[10] == "train/10"
    assert [int(row) for row in rows(made, "label")] == list(range(12))
    assert rows(made, "image")[10][0, 0] == 10
    assert made.origin["pattern"] == "folder"
    assert made.origin["fields"]["image"]["role"] == "images"


def test_classes(tmp_path: Path) -> None:
    """The first folder becomes the label; names are in natural order."""
    made = plan(tree(tmp_path, {"c10/a.npy": f4(2), "c2/a.npy": f4(2), "c2/x/b.npy": f4(2)}), layout="classes")
    assert [int(row) for row in rows(made, "label")] == [0, 0, 1]
    assert made.attrs == {"class_names": {"label": ["c2", "c10"]}}
    np.save(tmp_path / "loose.npy", f4(2))
    with pytest.raises(IngestError, match=r"loose.npy: --layout classes takes the first folder"):
        plan(tmp_path, layout="classes")


def test_the_odd_file_is_named(tmp_path: Path) -> None:
    """Another ndim, dtype or set of arrays: the file, what the others have, and how to leave it out."""
    tree(tmp_path, {f"{n}.npy": np.zeros(n, np.int16) for n in range(1, 6)})
    np.save(tmp_path / "odd.npy", np.zeros((4, 2), np.int16))
    with pytest.raises(
        IngestError,
        match=(
            r"odd.npy: array 'data' has 2 dimensions, the other 5 files have 1 dimension. To leave it out: "
            r"--exclude 'odd.npy' or --on-error skip"
        ),
    ):
        plan(tmp_path)
    made = plan(tmp_path, on_error="skip")
    assert (made.num_samples, [item.path for item in made.skipped]) == (5, ["odd.npy"])
    assert plan(tmp_path, exclude=["odd.npy"]).num_samples == 5
    np.save(tmp_path / "odd.npy", np.zeros(4, np.int32))
    with pytest.raises(
        IngestError, match=r"has dtype int32, the other 5 files have int16. --dtype data=int32 takes all of them"
    ):
        plan(tmp_path)
    assert rows(plan(tmp_path, dtype=["data=int32"]), "data")[-1].dtype == np.int32


def test_other_arrays_in_one_file(tmp_path: Path) -> None:
    """A file without an array that the others have; `--field` takes what all have."""
    tree(tmp_path, {"1.npz": {"a": f4(2), "b": f4(2)}, "2.npz": {"a": f4(2), "b": f4(2)}, "3.npz": {"a": f4(2)}})
    with pytest.raises(IngestError, match=r"3.npz: has no array 'b'; the other 2 files have 'a', 'b'"):
        plan(tmp_path)
    assert plan(tmp_path, fields={"x": "a"}, layout="files").num_samples == 3
    with pytest.raises(IngestError, match=r"there is no array 'q' for --field x=q; it has 'a', 'b'"):
        plan(tmp_path, fields=["x=q"])


def test_widths_of_texts(tmp_path: Path) -> None:
    """Unicode of two widths: the message has the --dtype, which then keeps the values."""
    tree(tmp_path, {"1.npy": np.array(["ab", "c"]), "2.npy": np.array(["abcd", "é"])})
    with pytest.raises(IngestError, match=r"has dtype <U4, the other file has <U2. --dtype data=U4 takes all of them"):
        plan(tmp_path)
    made = plan(tmp_path, dtype=["data=U6"])
    assert made.fields[0].dtype == "utf32[6]"
    assert [row.tolist() for row in rows(made, "data")] == [["ab", "c"], ["abcd", "é"]]


def test_strings(tmp_path: Path) -> None:
    """0-d texts, or rows of 1-d ones, become one UTF-8 text per sample."""
    tree(tmp_path / "a", {"1.npy": np.array("größe"), "2.npy": np.array("")})
    made = plan(tmp_path / "a", dtype=["data=string"])
    assert [row.tobytes().decode() for row in rows(made, "data")] == ["größe", ""]
    tree(tmp_path / "b", {"1.npy": np.array([b"x", b"yz", b""])})
    made = plan(tmp_path / "b", dtype=["data=string"])
    assert [row.tobytes() for row in rows(made.slice(1, 3), "data")] == [b"yz", b""]
    with pytest.raises(IngestError, match=r"dtype string holds one text per sample"):
        plan(tmp_path / "b", dtype=["data=string"], layout="files")
    np.save(tmp_path / "b" / "1.npy", np.array([b"\xff"] * 2))
    with pytest.raises(IngestError, match=r"not a UTF-8 text"):
        plan(tmp_path / "b", dtype=["data=string"])


@pytest.mark.parametrize(
    ("values", "dtype", "want"),
    [
        (np.array([[1.5, 2]], np.longdouble), "float64", np.array([1.5, 2])),
        (np.array([[1, 300]], ">i8"), "int16", np.array([1, 300], np.int16)),
        (np.array([[1, 200]], "i8"), "uint8", np.array([1, 200], np.uint8)),
        (np.array([[1.5]], "f8"), "float16", np.array([1.5], np.float16)),
        (np.array([[b"ab"]]), "U3", np.array(["ab"])),
        (np.array([[2, 1]], "u1").view(bool), "uint8", np.array([2, 1], np.uint8)),
        (np.array([[5]]).view("M8"), "datetime64[s]", np.array([5], "M8[s]")),
    ],
)
def test_casts(tmp_path: Path, values: np.ndarray, dtype: str, want: np.ndarray) -> None:
    """Casts that were asked for keep the values (or the bits)."""
    np.save(tmp_path / "x.npy", values)
    found = rows(plan(tmp_path, layout="rows", dtype={"data": dtype}), "data")[0]
    assert np.array_equal(found, want)


@pytest.mark.parametrize(
    ("values", "dtype", "text"),
    [
        (np.array([1.5], np.longdouble), (), "cannot hold dtype .*say --dtype data=float64"),
        (np.zeros(2, "V2"), (), "--dtype data=bfloat16"),
        (np.zeros(2, "M8"), (), "it has no unit"),
        (np.zeros(2), ["data=int32"], "dtype float64 cannot become int32.*Fractions would be lost"),
        (np.array(["abc"]), ["data=U2"], "Texts can only become wider"),
        (np.zeros(2), ["other=int32"], "there is no field 'other'; the fields are 'data'"),
        (np.zeros(2), ["data=float128"], "not one that a container can hold"),
        (np.zeros(2), ["data=nonsense"], "not one that a container can hold"),
    ],
)
def test_casts_that_are_refused(tmp_path: Path, values: np.ndarray, dtype: Any, text: str) -> None:
    """What cannot be stored, or would lose what it is, names the way out."""
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(IngestError, match=text):
        plan(tmp_path, dtype=dtype)


def test_values_that_do_not_fit(tmp_path: Path) -> None:
    """A narrowing cast looks at every value."""
    np.save(tmp_path / "x.npy", np.array([1, 300]))
    with pytest.raises(IngestError, match=r"x.npy: field 'data': values from 1 to 300 do not fit uint8"):
        rows(plan(tmp_path, dtype=["data=uint8"]), "data")
    np.save(tmp_path / "x.npy", np.array([1e300, 0]))
    with pytest.raises(IngestError, match=r"1e\+300 is too large for float32"):
        rows(plan(tmp_path, dtype=["data=float32"]), "data")


def test_bfloat16(tmp_path: Path) -> None:
    """Two-byte void becomes bfloat16 with the same bits."""
    np.save(tmp_path / "x.npy", np.array([1, 2, 3], "u2").view("V2"))
    made = plan(tmp_path, dtype=["data=bfloat16"])
    assert made.fields[0].dtype == "bfloat16"
    assert b"".join(row.tobytes() for row in rows(made, "data")) == np.array([1, 2, 3], "u2").tobytes()


def test_object_arrays(tmp_path: Path) -> None:
    """Refused with the reason; with allow_pickle each element is a row."""
    values = np.empty(3, object)
    values[:] = [np.arange(2 * n, dtype=">i2").reshape(n, 2) for n in (1, 0, 3)]
    tree(tmp_path, {"x.npz": {"strokes": values, "label": np.arange(3)}}, compressed=True)
    with pytest.raises(IngestError, match=r"array 'strokes': .*object arrays are Python pickles.*--allow-pickle"):
        plan(tmp_path)
    made = plan(tmp_path, allow_pickle=True)
    assert (made.layout, made.fields[0].dtype, made.fields[0].shape) == ("rows", "int16", (None, 2))
    assert all(np.array_equal(a, b) for a, b in zip(rows(made, "strokes"), values, strict=True))
    assert np.array_equal(rows(made.slice(1, 3), "strokes")[1], values[2])
    assert made.origin["objects"] == ["strokes"]
    with pytest.raises(IngestError, match=r"say --layout rows --field strokes=strokes"):
        plan(tmp_path, allow_pickle=True, layout="files")


class Evil:
    """Would run a command if it were unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("elements", "text"),
    [
        ([Evil(), 1], r"the pickle asks for (posix|nt).system"),
        ([{"a": 1}, 2], r"element 0 is a dict; .* texts, one row each\. np\.load\(FILE, allow_pickle=True\) reads it"),
        (["a", "b\0"], "element 1 ends with NUL"),
        (["a", 1], "elements have dtype int64, others <U1"),
        ([np.zeros(2), np.zeros((2, 2))], r"element 1 has shape \(2, 2\), element 0 has shape \(2,\)"),
        ([np.zeros(2, "f4"), np.zeros(3, "f8")], "elements have dtype float64, others float32"),
    ],
)
def test_pickles_that_are_refused(tmp_path: Path, elements: list[Any], text: str) -> None:
    """Even with allow_pickle nothing is called, and elements must be alike."""
    values = np.empty(2, object)
    values[:] = elements
    np.save(tmp_path / "x.npy", values, allow_pickle=True)
    with pytest.raises(IngestError, match=text):
        plan(tmp_path, allow_pickle=True)


@pytest.mark.parametrize("layout", ["auto", "files", "rows"])
@pytest.mark.parametrize("allow_pickle", [False, True])
def test_one_pickled_object(tmp_path: Path, allow_pickle: bool, layout: str) -> None:
    """A dict that was saved as an array of no dimension is no array: the message says how to get at what is in it."""
    np.save(tmp_path / "d.npy", np.array({"a": f4(3)}, dtype=object), allow_pickle=True)
    with pytest.raises(
        IngestError, match=r"d\.npy: array 'data': object arrays are .* one object, often a dict.*np\.savez"
    ):
        plan(tmp_path, layout=layout, allow_pickle=allow_pickle)


def test_folders_that_are_splits(tmp_path: Path) -> None:
    """Folders named train, val and test are taken for splits, and not for classes."""
    made = plan(tree(tmp_path, {"train/1.npy": f4(4), "train/2.npy": f4(4), "Val/1.npy": f4(4)}))
    assert made.layout == "files"
    assert "('train', 'Val') could be splits" in made.explanation.replace("'Val', 'train'", "'train', 'Val'")
    assert "--layout classes" not in made.explanation


def test_equal_keys(tmp_path: Path) -> None:
    """a.npy and a.npz: both files are named."""
    tree(tmp_path, {"a.npy": f4(2), "a.npz": {"data": f4(2)}, "b.npy": f4(2)})
    os.rename(tmp_path / "a.npz", tmp_path / "A.npz")
    np.save(tmp_path / "a.dat", f4(2))
    os.rename(tmp_path / "a.dat.npy", tmp_path / "a.NPY")
    with pytest.raises(IngestError, match=r"a\.NPY and .*a\.npy would both have the key 'a'"):
        plan(tmp_path, exclude=["A.npz"])


def test_names_that_cannot_be_keys(tmp_path: Path) -> None:
    """File names that are not UTF-8, or have control characters."""
    np.save(tmp_path / "a\n.npy", f4(2))
    with pytest.raises(IngestError, match=r"control characters"):
        plan(tmp_path)
    os.rename(tmp_path / "a\n.npy", os.fsencode(tmp_path) + b"/\xff.npy")
    with pytest.raises(IngestError, match=r"not UTF-8"):
        plan(tmp_path)


@pytest.mark.parametrize("name", ["\udcff", "a\n"])
def test_source_names_that_cannot_begin_keys(tmp_path: Path, name: str) -> None:
    """The name of a source counts where it is put before keys, and only there."""
    sources = tmp_path / name, tmp_path / "b"
    for source in sources:
        tree(source, {"1.npy": f4(2), "2.npy": f4(2)})
    assert plan_uniform(scan_sources(sources)) is None
    with pytest.raises(IngestError, match=r"1\.npy.*(not UTF-8|control characters)"):
        plan(*sources)
    assert list(plan(*sources, on_error="skip").keys or ()) == ["b/1", "b/2"]
    assert list(plan(sources[0]).keys or ()) == ["1", "2"]


def test_skip_lists_every_file(tmp_path: Path) -> None:
    """Damaged files are left out with their reasons; none left is an error."""
    tree(tmp_path, {"1.npy": f4(3), "2.npy": f4(3)})
    (tmp_path / "3.npy").write_bytes(b"version https://git-lfs.github.com/spec/v1\nsize 99\n")
    (tmp_path / "4.npy").write_bytes((tmp_path / "1.npy").read_bytes()[:-1])
    made = plan(tmp_path, on_error="skip")
    assert [item.path for item in made.skipped] == ["3.npy", "4.npy"]
    assert "git lfs pull" in made.skipped[0].reason
    assert made.skipped[1].reason.startswith("truncated")
    with pytest.raises(IngestError, match=r"no file is left to convert: 2 files were skipped"):
        plan(tmp_path, on_error="skip", include=["3*", "4*"])


def test_note_about_one_other_shape(tmp_path: Path) -> None:
    """One file of another length makes a field ragged: said in a note."""
    tree(tmp_path, {f"{n}.npy": f4(8 if n != 7 else 5) for n in range(30)})
    (note,) = plan(tmp_path).notes
    assert "ragged only because of 1 of 30 files" in note
    assert "7.npy has shape (5,), the others (8,)" in note


def test_a_file_that_changes_after_the_plan(tmp_path: Path) -> None:
    """Reading refuses a file that is not the one that was planned, plain or not."""
    for name, value in (("plain", f4(3)), ("swapped", f4(3).astype(">f4"))):
        tree(tmp_path / name, {"1.npy": value, "2.npy": value})
        made = plan(tmp_path / name)
        os.utime(tmp_path / name / "2.npy", ns=(5, 5))
        with pytest.raises(IngestError, match=r"2.npy: the file changed while it was converted"):
            rows(made, "data")
        with pytest.raises(IngestError, match=r"2.npy: the file changed"):
            made.check_sources()


def test_uniform_plan_equals_the_full_one(tmp_path: Path) -> None:
    """The optimistic plan says what the full plan says, and reads the same bytes."""
    tree(tmp_path, {f"d/{n}.npy": f4(4, 2) + n for n in range(12)})
    scan = scan_sources([tmp_path])
    time.sleep(0.05)  # files that were written just now are left to the full plan
    quick, full = plan_uniform(scan), make_plan(scan)
    assert quick is not None
    assert (quick.fields, quick.origin, quick.explanation, quick.layout) == (
        full.fields,
        full.origin,
        full.explanation,
        full.layout,
    )
    assert list(quick.keys or []) == list(full.keys or [])
    out = bytearray(quick.nbytes(0))
    assert read_uniform(quick, 0, 12, out)
    assert out == b"".join(row.tobytes() for row in rows(full, "data"))
    part = pickle.loads(pickle.dumps(quick.slice(3, 5)))
    assert read_uniform(part, 0, 2, piece := bytearray(part.nbytes(0)))
    assert piece == out[3 * 32 : 5 * 32]


@pytest.mark.parametrize("what", ["short", "long", "dtype", "order", "gone", "fifo", "lfs"])
def test_uniform_reading_sees_every_deviation(tmp_path: Path, what: str) -> None:
    """A file that is not like the first ends the optimistic way."""
    tree(tmp_path, {f"{n}.npy": f4(4, 2) for n in range(5)})
    quick = plan_uniform(scan_sources([tmp_path]))
    path = tmp_path / "3.npy"
    data = path.read_bytes()
    path.unlink()
    if what in ("short", "long"):
        path.write_bytes(data[:-1] if what == "short" else data + b"x")
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "lfs":
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    elif what != "gone":
        np.save(path, f4(4, 2).astype("i4") if what == "dtype" else np.asfortranarray(f4(4, 2)))
    assert quick is not None
    quick = replace(quick, began_ns=time.time_ns() + 10**10)  # the file itself is to be enough
    assert not read_uniform(quick, 0, 5, bytearray(quick.nbytes(0)))


@pytest.mark.parametrize("other", [f4(4).astype("i4"), f4(2, 2), f4(1, 4)])
def test_no_uniform_plan_of_two_first_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: Any) -> None:
    """Fields and header are those of one file, also where another directory takes its place between two looks at it."""
    arrays = {"1.npy": f4(4), "2.npy": f4(4)}
    tree(tmp_path / "a", arrays)
    tree(tmp_path / "b", dict.fromkeys(arrays, other))

    def plan_and_swap(*args: Any, **options: Any) -> Plan:
        made = make_plan(*args, **options)
        os.rename(tmp_path / "a", tmp_path / "old")
        os.rename(tmp_path / "b", tmp_path / "a")
        return made

    monkeypatch.setattr("chunkstore._ingest.plan.uniform.make_plan", plan_and_swap)
    assert plan_uniform(scan_sources([tmp_path / "a"])) is None


@pytest.mark.parametrize(
    "arrays",
    [
        {"1.npy": f4(2)},
        {"1.npy": f4(2).astype(">f4"), "2.npy": f4(2)},
        {"1.npy": np.asfortranarray(f4(2, 2)), "2.npy": f4(2)},
        {"1.npy": np.zeros(2, bool), "2.npy": f4(2)},
        {"1.npz": {"a": f4(2)}, "2.npz": {"a": f4(2)}},
        {"images/1.npy": f4(2), "labels/1.npy": f4(2)},
        {"1_x.npy": f4(2), "1_y.npy": f4(2)},
    ],
)
def test_no_uniform_plan(tmp_path: Path, arrays: dict[str, Any]) -> None:
    """Where bytes need work, or names could pair, the full plan decides."""
    assert plan_uniform(scan_sources([tree(tmp_path, arrays)])) is None


def test_roles_as_separate_sources(tmp_path: Path) -> None:
    """`convert images labels`: two sources whose names collide pair like two folders."""
    tree(
        tmp_path,
        {f"images/{n}.npy": f4(2, 2) + n for n in range(3)} | {f"labels/{n}.npy": np.int64(n) for n in range(3)},
    )
    made = plan(tmp_path / "images", tmp_path / "labels")
    assert (made.layout, [field.name for field in made.fields]) == ("paired", ["images", "labels"])
    assert list(made.keys or []) == ["0", "1", "2"]
    assert [int(row[0, 0]) for row in rows(made, "images")] == [0, 1, 2]


def test_incomplete_pairs_can_be_skipped(tmp_path: Path) -> None:
    """Missing and damaged partners: refused by name, or left out with both files listed."""
    tree(tmp_path, {f"images/{n}.npy": f4(2, 2) for n in range(4)} | {f"labels/{n}.npy": np.int64(n) for n in range(3)})
    (tmp_path / "labels" / "1.npy").write_bytes(b"")
    with pytest.raises(IngestError, match=r"labels/1.npy: not an .npy file: the file is empty"):
        plan(tmp_path, layout="paired")
    made = plan(tmp_path, layout="paired", on_error="skip")
    assert list(made.keys or []) == ["0", "2"]
    assert sorted(item.path for item in made.skipped) == ["images/1.npy", "images/3.npy", "labels/1.npy"]


def test_names_that_do_not_pair(tmp_path: Path) -> None:
    """`--layout paired` on names that do not pair says what was expected."""
    with pytest.raises(IngestError, match=r"the names do not pair. Expected equal stems in folders"):
        plan(tree(tmp_path, {"a.npy": f4(2), "b.npy": f4(2)}), layout="paired")


def test_several_sources_with_equal_names(tmp_path: Path) -> None:
    """Keys get the name of their source; rows are those of the right file."""
    tree(tmp_path, {"p/x.npy": f4(2), "q/x.npy": f4(2) + 5})
    made = plan(tmp_path / "p", tmp_path / "q", layout="files")
    assert list(made.keys or []) == ["p/x", "q/x"]
    assert rows(made.slice(1, 2), "data")[0].tolist() == [5, 6]


def test_two_arrays_of_one_label(tmp_path: Path) -> None:
    """A member and an array (or two members) whose dotted names are equal are refused, both named; others convert."""
    pair = np.array([(1.0,)], [("data", "<f8")])
    tree(tmp_path, {"x.npz": {"adj": pair, "adj.data": np.zeros(1), "z": np.ones(1)}})
    both = r"x.npz: array 'adj', member 'data' and array 'adj.data' would both be the field 'adj.data'"
    with pytest.raises(IngestError, match=both):
        plan(tmp_path)
    with pytest.raises(IngestError, match=r"would both be the field 'adj.data'"):
        plan(tmp_path, fields=["y=adj.data"])
    assert [field.name for field in plan(tmp_path, fields=["z"]).fields] == ["z"]
    np.save(tmp_path / "y.npy", np.zeros(2, [("a.b", "<f8"), ("a", [("b", "<f8")])]))
    with pytest.raises(IngestError, match=r"member 'a.b' and member 'a', member 'b' would both be the field 'a.b'"):
        plan(tmp_path / "y.npy")


@pytest.mark.parametrize(
    ("values", "dtype", "odd"),
    [
        (np.array([1, 2**53 + 1]), "float64", 2**53 + 1),
        (np.array([2**63 - 1]), "float64", 2**63 - 1),
        (np.array([0, 2**64 - 1], np.uint64), "float64", 2**64 - 1),
        (np.array([-16777217], np.int32), "float32", -16777217),
        (np.array([70000], np.int32), "float16", 70000),
        (np.array([16777217], np.int32), "complex64", 16777217),
    ],
)
def test_integers_become_floats_exactly_or_not_at_all(tmp_path: Path, values: Any, dtype: str, odd: int) -> None:
    """The first integer that would be rounded is named, with its field."""
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(IngestError, match=rf"x.npy: field 'data': {odd} cannot become {dtype} exactly"):
        rows(plan(tmp_path, layout="files", dtype=[dtype]), "data")


def test_integers_that_floats_hold(tmp_path: Path) -> None:
    """Large integers with few bits are kept, also the smallest."""
    values = np.array([2**53, -(2**63), 2**62, 2**53 + 2, -1])
    np.save(tmp_path / "x.npy", values)
    made = plan(tmp_path, layout="files", dtype=["float64"])
    assert rows(made, "data")[0].astype(np.int64).tolist() == values.tolist()
    assert (made.notes, made.rounded) == ((), ())


@pytest.mark.parametrize(
    ("source", "dtype", "rounds"),
    [
        ("f8", "float32", True),
        ("f4", "float64", False),
        ("f8", "complex64", True),
        ("f4", "bfloat16", True),
        ("i4", "float32", False),
        ("f4", "float32", False),
    ],
)
def test_rounding_is_noted(tmp_path: Path, source: str, dtype: str, rounds: bool) -> None:
    """A narrower float type gives a note with the field and both dtypes."""
    pytest.importorskip("ml_dtypes")
    np.save(tmp_path / "x.npy", np.ones(3, source))
    made = plan(tmp_path, layout="files", dtype=[dtype])
    text = f"field 'data': --dtype rounds {np.dtype(source)} to {dtype}"
    assert (made.notes, made.rounded) == (((text,), ("data",)) if rounds else ((), ()))


def test_auto_misses_a_partner_of_arrays_that_are_alike(tmp_path: Path) -> None:
    """Folders named after roles, all arrays of one shape, one file missing: not samples of one field, unasked."""
    for role, count in (("images", 5), ("masks", 4)):
        tree(tmp_path, {f"{role}/{number}.npy": f4(3, 3) for number in range(count)})
    with pytest.raises(IngestError, match=r"'images/4\.npy' has no partner in 'masks'.*--layout files"):
        plan(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"0.npy": np.ones(2), "0.npz": {"data": np.ones(2)}, "1.npy": np.ones(2)}, "array 'data' of an .npz file"),
        ({f"{n}.npy": np.array("x" * n) for n in (3, 9, 7)}, "--dtype data=U9 takes all of them"),
        (
            {
                "0.npz": {"a": np.zeros(2, "i4"), "b": np.zeros(2, "i8"), "c": np.zeros(2)},
                "1.npz": {"a": np.zeros(2, "i8"), "b": np.zeros(2, "i2"), "c": np.zeros(2)},
            },
            "--dtype a=int64 --dtype b=int64 takes all of them",
        ),
        (
            {"X.npy": f4(5, 3), "y.npy": np.arange(5)},
            r"'X.npy', 'y.npy' have one first axis of 5\..* --layout columns \(5",
        ),
    ],
)
def test_advice_fits_all_files(tmp_path: Path, arrays: dict[str, Any], text: str) -> None:
    """What the message advises is enough: it looks at every file and every array."""
    with pytest.raises(IngestError, match=text):
        plan(tree(tmp_path, arrays))
    options = [word for word in text.split() if "=" in word]
    if options:
        plan(tmp_path, layout="files", dtype=options)


def options_in(message: str, *names: str) -> dict[str, list[str]]:
    """What a shell makes of the options in a message, one sentence of which names them."""
    text = message[message.index("--") :]
    words = shlex.split(text.partition(" or --")[0].partition(", or")[0].rstrip(".)"))
    return {name: [words[place + 1] for place, word in enumerate(words) if word == f"--{name}"] for name in names}


@pytest.mark.parametrize(
    "name", ["a b.npy", "[1].npy", "q?.npy", "*.npy", "it's.npy", "$HOME.npy", "-rf.npy", "\udcff.npy"]
)
@pytest.mark.parametrize("array", [f4(2, 2), None], ids=["odd", "empty"])
def test_advice_to_leave_out_works_as_it_stands(tmp_path: Path, name: str, array: Any) -> None:
    """Pasted into a shell, `--exclude` leaves out the file that it names and no other."""
    tree(tmp_path, {"1.npy": f4(2), "q1.npy": f4(2)})
    (tmp_path / name).touch()
    if array is not None:
        np.save(tmp_path / name, array)
    with pytest.raises(IngestError, match=r"leave it out: --exclude '.*' or --on-error skip\.$") as refused:
        plan(tmp_path)
    made = plan(tmp_path, exclude=options_in(str(refused.value), "exclude")["exclude"])
    assert list(made.keys or ()) == ["1", "q1"]


def test_advice_to_leave_out_works_for_files_that_are_sources(tmp_path: Path) -> None:
    """A shell makes many sources of `data/*.npy`: what the message says leaves out one of them, too."""
    tree(tmp_path, {"1.npy": f4(2), "2.npy": f4(2, 2), "3.npy": f4(2)})
    sources = sorted(tmp_path.iterdir())
    with pytest.raises(IngestError, match=r"2\.npy: .*leave it out: --exclude '2\.npy' or --on-error skip\.$"):
        plan(*sources)
    made = plan(*sources, exclude=["2.npy"])
    assert list(made.keys or ()) == ["1", "3"]
    assert [made.file_path(place) for place in range(2)] == [str(sources[0]), str(sources[2])]
    assert "1 excluded" in made.explanation
    assert len(plan(*sources[::2], include=["no such"]).keys or ()) == 2


def test_advice_to_leave_out_names_no_pattern_of_several(tmp_path: Path) -> None:
    """A pattern without a slash takes files of that name in all folders, and they are good."""
    tree(tmp_path, {"1.npy": f4(2, 2), "a/1.npy": f4(2), "a/2.npy": f4(2)})
    with pytest.raises(IngestError, match=r"leave it out: --on-error skip\.$"):
        plan(tmp_path)
    assert list(plan(tmp_path, on_error="skip").keys or ()) == ["a/1", "a/2"]


def test_advice_on_fields_works_as_it_stands(tmp_path: Path) -> None:
    """Names with blanks and quotes, and a field in the way of class numbers."""
    tree(tmp_path, {"x.npz": {"a b": f4(4), "it's": f4(4), "c": f4(3)}})
    with pytest.raises(IngestError, match="Take those that belong together") as refused:
        plan(tmp_path, layout="rows")
    text = str(refused.value)
    options = options_in(text[text.index("(--field") :], "field")
    assert plan(tmp_path, layout="rows", fields=options["field"]).num_samples == 4
    source = tree(tmp_path / "c", {"cat/1.npz": {"an x": f4(4), "label": f4()}})
    with pytest.raises(IngestError, match="Take it under another name") as refused:
        plan(source, layout="classes")
    text = str(refused.value)
    options = options_in(text[text.index("--field") :], "field")
    fields = plan(source, layout="classes", fields=options["field"]).fields
    assert sorted(field.name for field in fields) == ["an x", "label", "label_array"]


def test_reasons_have_no_advice_to_leave_out(tmp_path: Path) -> None:
    """A file that was left out needs no word on how to leave it out; a refusal has one, and ends in one full stop."""
    tree(tmp_path, {"0.npy": f4(2), "1.npy": f4(2), "2.npy": np.zeros(2, "i1")})
    made = plan(tmp_path, on_error="skip")
    assert [item.path for item in made.skipped] == ["2.npy"]
    assert "leave it out" not in made.skipped[0].reason
    with pytest.raises(IngestError, match=r"To leave it out: --exclude '2.npy'"):
        plan(tmp_path)
    (tmp_path / "3.npy").symlink_to("gone")
    with pytest.raises(IngestError, match=r"'gone', which is not there\. Remove it") as refused:
        plan(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path}/3.npy: a link"), "named as one would open it"


def test_hint_for_splits_in_each_file(tmp_path: Path) -> None:
    """Several `.npz` of `train_images`, `train_labels`, `val_images`, ...: the options for one split are named."""
    for number, num in enumerate((10, 20)):
        arrays = {"train_images": f4(num, 4, 4), "train_labels": f4(num, 1), "val_images": f4(3, 4, 4)}
        tree(tmp_path, {f"{number}.npz": {**arrays, "val_labels": f4(3, 1)}})
    taken = "--layout rows --field train_images=train_images --field train_labels=train_labels"
    assert f"The arrays of one first axis become 30 samples with {taken}." in plan(tmp_path).explanation
    with pytest.raises(IngestError, match=r"SOURCE \(--field train_images=train_images --field train_labels=train_l"):
        plan(tmp_path, layout="rows")
    assert plan(tmp_path, layout="rows", fields=["train_images", "train_labels"]).num_samples == 30


def test_very_long_names_are_cut(tmp_path: Path) -> None:
    """A message about a file with a path of 2,000 characters is no longer than that, and keeps its end."""
    folder = tmp_path
    for _ in range(10):
        folder = folder / ("d" * 200)
    folder.mkdir(parents=True)
    (folder / "x.npy").write_bytes(b"junk")
    with pytest.raises(IngestError) as refused:
        plan(tmp_path)
    assert len(str(refused.value)) < 2000
    assert str(refused.value).endswith("x.npy: not an .npy file: it begins with b'junk'.")


def test_many_arrays_need_few_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader of many fields keeps some files open, not one for each field; those that it closed it opens again."""
    monkeypatch.setattr("chunkstore._ingest.plan.read._MAX_OPEN", 3)
    arrays = {f"a{number}": f4(4, number + 1) for number in range(8)}
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    made = plan(tmp_path, layout="rows")
    with PlanReader(made) as reader:
        for half in (0, 2):
            for number, field in enumerate(made.fields):
                data = bytearray(made.nbytes(number) // 2)
                reader.read(number, half, half + 2, data)
                assert data == arrays[field.name][half : half + 2].tobytes()
                assert len(reader._sources) <= 3


def test_long_headers_are_not_kept(tmp_path: Path) -> None:
    """A header of a megabyte is parsed and forgotten."""
    for number in range(3):
        text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({number + 1},), }}".ljust(100_000) + "\n"
        head = b"\x93NUMPY\x02\0" + len(text).to_bytes(4, "little") + text.encode()
        (tmp_path / f"{number}.npy").write_bytes(head + bytes(8 * number + 8))
    np.save(tmp_path / "9.npy", np.zeros(9))
    inventory = Inventory(scan_sources([tmp_path]), skip=False)
    assert [len(data) for data in inventory._headers] == [128]


def test_columns(tmp_path: Path) -> None:
    """`columns`: each `.npy` is a field, under its name or that of `--field`; members of a structured array too."""
    images, labels = np.arange(60, dtype=np.float32).reshape(10, 3, 2), np.arange(10)
    pair = np.zeros(10, [("a", "<i2"), ("b", "<f4", (2,))])
    for name, array in {"X": images, "y": labels, "pair": pair}.items():
        np.save(tmp_path / f"{name}.npy", array)
    made = plan(tmp_path, layout="columns")
    assert (made.num_samples, made.keys) == (10, None)
    assert [(field.name, field.dtype, field.shape) for field in made.fields] == [
        ("X", "float32", (3, 2)),
        ("pair.a", "int16", ()),
        ("pair.b", "float32", (2,)),
        ("y", "int64", ()),
    ]
    picked = plan(tmp_path, layout="columns", fields=["image=X.npy", "label=y"], dtype=["label=int8"])
    assert [(field.name, field.dtype) for field in picked.fields] == [("image", "float32"), ("label", "int8")]


def test_a_folder_for_each_sample(tmp_path: Path) -> None:
    """`case1/image.npy` with `case1/seg.npy`: the folder is the key; also where the names say nothing."""
    for first, second in (("image", "seg"), ("t1", "flair")):
        root = tmp_path / first
        for case in (2, 10, 1):
            tree(root, {f"c/case{case}/{first}.npy": f4(2, case), f"c/case{case}/{second}.npy": np.full(3, case, "u1")})
        for layout in ("auto", "paired"):
            made = plan(root, layout=layout)
            assert (made.layout, list(made.keys or ())) == ("paired", ["c/case1", "c/case2", "c/case10"])
            assert {field.name for field in made.fields} == {first, second}
            assert [row.shape for row in rows(made, first)] == [(2, 1), (2, 2), (2, 10)]
            assert [row[0] for row in rows(made, second)] == [1, 2, 10]
    (tmp_path / "image" / "c" / "case2" / "seg.npy").unlink()
    with pytest.raises(IngestError, match=r"'c/case2/image\.npy' has no partner in 'seg'"):
        plan(tmp_path / "image")
    assert plan(tmp_path / "image", layout="paired", on_error="skip").num_samples == 2


def test_folders_that_are_splits_are_no_samples(tmp_path: Path) -> None:
    """`train/X.npy` and `train/y.npy` are the fields of a data set, as they are without `test`."""
    tree(tmp_path, {f"{name}/{split}/X.npy": f4(n, 3) for name in "ab" for split, n in (("train", 6), ("test", 4))})
    tree(tmp_path, {f"{name}/{split}/y.npy": np.arange(n) for name in "ab" for split, n in (("train", 6), ("test", 4))})
    for source in (tmp_path / "a", tmp_path / "a" / "train", tmp_path):
        with pytest.raises(IngestError, match="--layout columns"):
            plan(source)


@pytest.mark.parametrize("folders", [[""], ["train/", "test/"]])
def test_auto_names_both_readings_of_arrays_called_x_and_y(tmp_path: Path, folders: list[str]) -> None:
    """Also where their dtypes and numbers of dimensions are the same: then they can be samples, too."""
    for number, folder in enumerate(folders):
        tree(tmp_path, {f"{folder}X.npy": f4(9 - number, 3), f"{folder}y.npy": f4(9 - number, 1)})
    with pytest.raises(IngestError, match=r"X.npy', '.*y.npy' have one first axis of 9\..*--layout columns") as refused:
        plan(tmp_path)
    assert str(refused.value).endswith(f"say --layout files ({2 * len(folders)} samples).")
    assert plan(tmp_path, layout="files").num_samples == 2 * len(folders)
    tree(tmp_path / "named", {"X_train.npy": f4(9, 3), "y_train.npy": f4(9, 1), "X_test.npy": f4(4, 3)})
    tree(tmp_path / "named", {"y_test.npy": f4(4, 1)})
    with pytest.raises(IngestError, match="--layout columns --field X_train=X_train --field y_train=y_train "):
        plan(tmp_path / "named")


@pytest.mark.parametrize("name", ["{1}_{0}.npy", "{0}_{1}.npy", "{1}/{0}.npy"])
@pytest.mark.parametrize("lengths", [(9, 4, 4), (5, 5, 5)])
def test_auto_does_not_mix_splits(tmp_path: Path, name: str, lengths: tuple[int, ...]) -> None:
    """Arrays of `test` and `val` are no fields of one data set, though they are of one length."""
    for split, length in zip(("train", "test", "val"), lengths, strict=True):
        tree(tmp_path, {name.format("x", split): f4(length, 5), name.format("y", split): f4(length)})
    with pytest.raises(IngestError, match=f"have one first axis of {lengths[0]}") as refused:
        plan(tmp_path)
    options = str(refused.value).partition("--layout columns ")[2].partition(" (")[0]
    found = options_in(options, "field")["field"]
    assert len(found) == 2
    assert len({split for split in ("train", "test", "val") if split in options}) == 1


def test_auto_takes_one_file_in_each_folder(tmp_path: Path) -> None:
    """Files of one name are no fields, whatever they are called."""
    for name, rows in (("image", f4(5, 5, 3)), ("x", f4(9)), ("data", np.zeros((4, 3), "u1"))):
        tree(tmp_path / name, {f"{folder}/{name}.npy": rows for folder in ("cat", "dog", "emu")})
        made = plan(tmp_path / name)
        assert (made.layout, made.num_samples) == ("files", 3)


def test_auto_names_fields_that_can_be_given(tmp_path: Path) -> None:
    """A field from `a=b.npy` gets a name that `--field` takes."""
    tree(tmp_path, {"a=b.npy": f4(9, 3), "c.npy": np.arange(9), "d.npy": np.zeros((5, 2, 2))})
    with pytest.raises(IngestError, match="one first axis of 9") as refused:
        plan(tmp_path)
    text = str(refused.value).partition(" (9 samples")[0]
    made = plan(tmp_path, layout="columns", fields=options_in(text[text.index("--field") :], "field")["field"])
    assert [field.name for field in made.fields] == ["a_b", "c"]


def test_auto_hints(tmp_path: Path) -> None:
    """Arrays with rows beside numbers; files that are splits and can be read in two ways."""
    tree(tmp_path, {"a.npz": {"x": f4(9, 3), "y": np.arange(9), "mean": f4()}})
    assert plan(tmp_path).explanation.endswith("--layout rows --field x=x --field y=y.")
    tree(tmp_path / "s", {"train.npz": {"x": f4(9, 3), "y": f4(9)}, "test.npz": {"x": f4(4, 3), "y": f4(4)}})
    with pytest.raises(IngestError, match="each makes its own container"):
        plan(tmp_path / "s")


def test_auto_names_both_readings_of_whole_arrays(tmp_path: Path) -> None:
    """Arrays of one first axis and different dimensions: fields, or files that do not fit; those that go together."""
    np.save(tmp_path / "X_train.npy", np.zeros((10, 3)))
    np.save(tmp_path / "y_train.npy", np.zeros(10))
    with pytest.raises(IngestError, match=r"X_train.npy', 'y_train.npy'.*--layout columns \(10 samples\).*--exclude"):
        plan(tmp_path)
    np.save(tmp_path / "X_test.npy", np.zeros((4, 3)))
    np.save(tmp_path / "y_test.npy", np.zeros(4))
    with pytest.raises(IngestError, match="--layout columns --field X_train=X_train --field y_train=y_train "):
        plan(tmp_path)


def test_auto_finds_the_odd_file_of_one_first_axis(tmp_path: Path) -> None:
    """Most files are alike: one of other dimensions is the odd one, and no field of its own."""
    for place in range(5):
        np.save(tmp_path / f"{place}.npy", np.zeros((4, 4, 1) if place == 3 else (4, 4)))
    with pytest.raises(IngestError, match=r"3\.npy: array 'data' has 3 dimensions, the other 4 files have 2 dimen"):
        plan(tmp_path)


def test_columns_refused(tmp_path: Path) -> None:
    """Rows of different number, no rows, an `.npz`, an unknown file, two files of one name."""
    trees = {
        "a": {"X.npy": f4(5, 2), "y.npy": f4(4)},
        "b": {"X.npy": f4()},
        "c": {"m.npz": {"x": f4(3)}},
        "d": {"X.npy": f4(3), "Y.npy": f4(3)},
    }
    for name, arrays in trees.items():
        (tmp_path / name).mkdir()
        tree(tmp_path / name, arrays)
    (tmp_path / "d" / "Y.npy").rename(tmp_path / "d" / "X.NPY")
    for name, fields, text in [
        ("a", [], r"X\.npy: --layout columns: it has 5 rows|y\.npy: --layout columns: it has 4 rows, .*X\.npy has 5"),
        ("a", ["z=Z"], "--field z=Z: there is no such file; there are 'X', 'y'"),
        ("b", [], "no dimension"),
        ("c", [], "--layout rows"),
        ("d", [], "would both be the field 'X'"),
    ]:
        with pytest.raises(IngestError, match=text):
            plan(tmp_path / name, layout="columns", fields=fields)
