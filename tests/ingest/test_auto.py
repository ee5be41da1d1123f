"""Trees as people publish them: what `auto` makes of their names, and whether what it advises helps."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chunkstore
from chunkstore._ingest.convert.convert import convert
from chunkstore._ingest.export.export import export
from chunkstore._ingest.export.restore import restore
from chunkstore._ingest.plan.plan import Plan
from chunkstore._ingest.plan.planner import make_plan
from chunkstore._ingest.plan.scan import scan_sources
from chunkstore._ingest.plan.uniform import plan_uniform
from chunkstore.errors import IngestError, SchemaError


def tree(root: Path, arrays: dict[str, Any]) -> Path:
    for name, value in arrays.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        np.savez(root / name, **value) if isinstance(value, dict) else np.save(root / name, value)
    return root


def plan(source: Path, *, include: list[str] | None = None, **options: Any) -> Plan:
    return make_plan(scan_sources([source], include=include or ()), **options)


def f4(*shape: int) -> np.ndarray:
    return np.zeros(shape, "f4")


def u1(*shape: int) -> np.ndarray:
    return np.zeros(shape, "u1")


def as_said(source: Path, options: str) -> Plan:
    """The plan of options as a message has them."""
    given = shlex.split(options)
    pairs = list(zip(given[::2], given[1::2], strict=True))
    layout = next((value for name, value in pairs if name == "--layout"), "auto")
    include = [value for name, value in pairs if name == "--include"]
    return plan(source, layout=layout, include=include, fields=[value for name, value in pairs if name == "--field"])


def refused(source: Path, text: str) -> str:
    with pytest.raises(IngestError, match=text) as found:
        plan(source)
    return str(found.value)


@pytest.mark.parametrize("word", ["mask", "seg", "t2"])
@pytest.mark.parametrize("separator", ["_", "-"])
def test_a_suffix_that_the_other_file_lacks(tmp_path: Path, word: str, separator: str) -> None:
    """`0001.npy` beside `0001_mask.npy` is one sample, and becomes the two files again."""
    names = ["case_2", "case_10", "case_1"]
    for number, name in enumerate(names):
        tree(tmp_path / "in", {f"a/{name}.npy": f4(4, 4, number + 1), f"a/{name}{separator}{word}.npy": u1(4, 4)})
    report = convert(tmp_path / "in", tmp_path / "x.cks")
    assert (report.layout, report.num_samples) == ("paired", 3)
    assert {field.name for field in report.fields} == {"data", word}
    assert list(plan(tmp_path / "in").keys or ()) == ["a/case_1", "a/case_2", "a/case_10"]
    export(tmp_path / "x.cks", tmp_path / "out")
    for path in sorted((tmp_path / "in" / "a").iterdir()):
        assert (tmp_path / "out" / "a" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "names", [("{}", "{}_mask"), ("v-image-{}", "v-mask-{}"), ("images/v{}", "mask/v{}"), ("img/i_{}", "mask/m_{}")]
)
def test_images_and_masks_that_are_alike(tmp_path: Path, names: tuple[str, str]) -> None:
    """They are not taken for twice as many samples; nor by the plan that opens one file."""
    tree(tmp_path, {f"{name.format(number)}.npy": u1(4, 4) for number in range(3) for name in names})
    assert plan_uniform(scan_sources([tmp_path])) is None
    refused(tmp_path, r"two readings fit.* \+ 'mask'.*--layout paired \(3 samples of 2 fields\)")


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        ({"images": "images/image_{}", "masks": "masks/mask_{}"}, ["1", "2", "10"]),
        ({"Images": "a/Images/img-{}-v1", "Labels": "a/Labels/{}-v1"}, ["a/1-v1", "a/2-v1", "a/10-v1"]),
        ({"gt": "gt/{}_gt", "img": "img/{}"}, ["1", "2", "10"]),
        ({"mel": "mel/LJ-mel-LJ001-{}", "dur": "dur/LJ-dur-LJ001-{}"}, ["LJ001-1", "LJ001-2", "LJ001-10"]),
        ({"audio": "lj-audio-{}", "mel": "lj-mel-{}"}, ["lj-1", "lj-2", "lj-10"]),
        ({"x": "s/train_v1_x_{}.jpg", "y": "s/train_v1_y_{}.jpg"}, [f"s/train_v1_{n}.jpg" for n in (1, 2, 10)]),
        ({"a": "a/{}_01_left_x", "b": "b/{}_01_right_x"}, ["1_01", "2_01", "10_01"]),
        ({"imagesTr": "imagesTr/la_{}_0000", "labelsTr": "labelsTr/la_{}"}, ["la_1", "la_2", "la_10"]),
        ({"eeg": "s1/eeg/s1_{}_eeg", "meg": "s1/meg/s1_{}_meg"}, ["s1/s1_1", "s1/s1_2", "s1/s1_10"]),
    ],
)
def test_the_role_in_folder_and_name(tmp_path: Path, names: dict[str, str], keys: list[str]) -> None:
    """`images/image_1.npy` with `masks/mask_1.npy`: the key is what is left, and the files get their names again."""
    for number in (2, 10, 1):
        for ndim, name in enumerate(names.values(), 1):
            tree(tmp_path / "in", {f"{name.format(number)}.npy": np.full((number,) * ndim, number, "u1")})
    report = convert(tmp_path / "in", tmp_path / "x.cks")
    assert (report.layout, report.num_samples) == ("paired", 3)
    assert {field.name: len(field.shape) for field in report.fields} == {name: n for n, name in enumerate(names, 1)}
    assert list(plan(tmp_path / "in").keys or ()) == keys
    export(tmp_path / "x.cks", tmp_path / "out")
    paths = [path.relative_to(tmp_path / "in") for path in (tmp_path / "in").rglob("*.npy")]
    assert sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.npy")) == sorted(paths)
    assert all((tmp_path / "out" / path).read_bytes() == (tmp_path / "in" / path).read_bytes() for path in paths)
    with chunkstore.open(tmp_path / "x.cks") as ds:
        assert all((ds[position][name] == n).all() for name in names for position, n in enumerate((1, 2, 10)))


def test_the_role_in_folder_and_name_with_one_partner_missing(tmp_path: Path) -> None:
    """The missing one is named, and can be skipped; alike ones are not taken for twice as many samples."""
    for number in range(4):
        tree(tmp_path, {f"images/image_{number}.npy": u1(4, 4, 3), f"masks/mask_{number}.npy": u1(4, 4)})
        tree(tmp_path / "alike", {f"images/image_{number}.npy": u1(4, 4), f"masks/mask_{number}.npy": u1(4, 4)})
    refused(tmp_path / "alike", r"two readings fit.*--layout paired \(4 samples of 2 fields\)")
    shutil.rmtree(tmp_path / "alike")
    (tmp_path / "masks" / "mask_2.npy").unlink()
    refused(tmp_path, r"'images/image_2\.npy' has no partner in 'masks' \(1 of 4 are incomplete\)")
    made = plan(tmp_path, layout="paired", on_error="skip")
    assert (made.num_samples, [item.path for item in made.skipped]) == (3, ["images/image_2.npy"])


def test_a_record_of_names_that_does_not_fit_is_not_used(tmp_path: Path) -> None:
    """The record comes from the file: a role that is no folder with two affixes names files by their keys."""
    for number in range(2):
        tree(tmp_path / "in", {f"images/image_{number}.npy": u1(4, 3), f"masks/mask_{number}.npy": u1(4)})
    convert(tmp_path / "in", tmp_path / "x.cks")
    with chunkstore.open(tmp_path / "x.cks") as ds:
        attrs = json.loads(json.dumps(dict(ds.attrs)))
        fields, keys = list(ds.fields.values()), list(ds.keys or ())
    assert {item.path for item in restore(fields, attrs, 2, has_keys=True).files(2, keys)} == {
        f"{name}_{number}.npy" for name in ("images/image", "masks/mask") for number in range(2)
    }
    attrs["chunkstore"]["origin"]["fields"]["masks"]["role"] = "masks/mask_"
    restored = restore(fields, attrs, 2, has_keys=True)
    assert restored.notes
    assert {item.path for item in restored.files(2, keys)} == {"0.npz", "1.npz"}
    attrs["chunkstore"]["origin"]["fields"]["masks"]["role"] = "../masks/mask_"
    with pytest.raises(SchemaError, match="nothing was exported"):
        list(restore(fields, attrs, 2, has_keys=True).files(2, keys))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("mnist_images.npy", "mnist_labels.npy"),
        ("images/mnist.npy", "labels/mnist.npy"),
        ("faces.npy", "faces_labels.npy"),
        ("X_train_v1.npy", "Y_train_v1.npy"),
    ],
)
def test_one_pair_that_counts_nothing_is_a_data_set(tmp_path: Path, first: str, second: str) -> None:
    """Its arrays of one first axis are not taken for one sample."""
    tree(tmp_path, {first: u1(9, 4, 4), second: np.arange(9)})
    message = refused(tmp_path, "one first axis of 9")
    found = re.search(r"--layout columns", message)
    assert found is not None
    assert as_said(tmp_path, found[0]).num_samples == 9


def test_splits_are_no_fields_of_a_sample(tmp_path: Path) -> None:
    """`train/0.npy` and `val/0.npy` are not paired, whatever their dtypes; the options for one split are named."""
    for number in range(3):
        tree(tmp_path / "a", {f"train/{number}.npy": f4(5, 5), f"val/{number}.npy": np.zeros((5, 5))})
        for split in ("train", "val"):
            tree(tmp_path / "b", {f"images_{split}/{number}.npy": u1(6, 6, 3), f"labels_{split}/{number}.npy": u1(6)})
    for root, fields in (("a", {"data"}), ("b", {"images_train", "labels_train"})):
        message = refused(tmp_path / root, "names pair completely")
        options = message.partition("a container each: ")[2].partition(" takes")[0]
        made = as_said(tmp_path / root, options)
        assert (made.num_samples, {field.name for field in made.fields}) == (3, fields)
    paired = plan(tmp_path / "a", layout="paired")
    assert {field.name: field.dtype for field in paired.fields} == {"train": "float32", "val": "float64"}


def test_paired_takes_no_splits_where_other_names_pair(tmp_path: Path) -> None:
    """`train/axial/0.npy` has its partner in `train/coronal`, not in `valid/axial`; `auto` names that reading, too."""
    for number in range(2):
        for split in ("train", "valid"):
            tree(tmp_path, {f"{split}/{plane}/{number}.npy": u1(5 + number, 6, 6) for plane in ("axial", "coronal")})
    made = plan(tmp_path, layout="paired")
    assert [field.name for field in made.fields] == ["axial", "coronal"]
    assert list(made.keys or ()) == ["train/0", "train/1", "valid/0", "valid/1"]
    message = refused(tmp_path, r"--layout rows.*--layout paired \(4 samples of the fields 'axial', 'coronal'\)")
    assert "could be splits" in message


@pytest.mark.parametrize("name", ["{0}/{1}.npy", "{1}_{0}.npy", "{0}_{1}.npy", "{1}/{0}.npy"])
@pytest.mark.parametrize(
    "shapes", [{"norm": (9, 14), "mark": (9, 6)}, {"t1": (4, 4), "t2": (4, 4), "zone": (4,)}, {"a": (5,), "b": (7,)}]
)
def test_unlike_arrays_that_pair_are_not_called_odd(tmp_path: Path, name: str, shapes: dict[str, Any]) -> None:
    """Words that say nothing, of arrays that differ from role to role: the pairs are named, not the odd file."""
    for number in ("m1", "m2", "m3"):
        tree(tmp_path, {name.format(role, number): f4(*shape) for role, shape in shapes.items()})
    message = refused(tmp_path, "names pair completely")
    made = as_said(tmp_path, message.partition("Say ")[2].partition(" (")[0])
    assert (made.layout, made.num_samples, {field.name for field in made.fields}) == ("paired", 3, set(shapes))


@pytest.mark.parametrize(
    ("arrays", "names"),
    [
        (
            {"actions": f4(9, 2), "observations": f4(9, 4), "next_observations": f4(9, 4), "rewards": f4(9)},
            {"actions", "observations", "next_observations", "rewards"},
        ),
        (
            {"features": f4(9, 5, 4), "labels": np.arange(9), "lengths": np.arange(9)},
            {"features", "labels", "lengths"},
        ),
        (
            {
                "imgs_train": u1(9, 4, 4),
                "imgs_mask_train": u1(9, 4, 4),
                "imgs_test": u1(4, 4, 4),
                "imgs_id_test": np.arange(4),
            },
            {"imgs_train", "imgs_mask_train"},
        ),
        (
            {
                f"{fold}/{name}": array
                for fold in (1, 2)
                for name, array in (("train", f4(9, 3)), ("trainLabel", f4(9)))
            },
            {"1/train", "1/trainLabel"},
        ),
        (
            {
                f"{name}{split}": f4(*shape)
                for split, length in (("train", 9), ("test", 9))
                for name, shape in (("X", (length, 3)), ("y", (length,)))
            },
            {"Xtrain", "ytrain"},
        ),
        (
            {f"{split}{name}": f4(length, 3) for split, length in (("train", 9), ("test", 4)) for name in "XY"},
            {"trainX", "trainY"},
        ),
    ],
)
def test_arrays_of_one_data_set_are_not_called_odd(tmp_path: Path, arrays: dict[str, Any], names: set[str]) -> None:
    """One `labels.npy` beside several arrays of its first axis is a column, and columns of one split and one folder."""
    tree(tmp_path, {f"{name}.npy": array for name, array in arrays.items()})
    message = refused(tmp_path, "--layout columns")
    made = as_said(tmp_path, "--layout columns" + message.partition("--layout columns")[2].partition(" (9 samples)")[0])
    assert (made.num_samples, {field.name for field in made.fields}) == (9, names)


def test_one_odd_file_stays_the_odd_one(tmp_path: Path) -> None:
    """Numbered files are samples, and statistics beside them no column."""
    tree(tmp_path, {f"{number}.npy": f4(3, 3) for number in range(6)})
    tree(tmp_path, {"mean.npy": f4(3)})
    refused(tmp_path, r"mean\.npy: array 'data' has 1 dimension, the other 6 files have 2")


def test_hints_for_files_that_are_alike(tmp_path: Path) -> None:
    """Folders with the same names could be parts of samples, files called `train` and `test` splits."""
    tree(tmp_path / "a", {f"{folder}/{number}.npy": u1(4, 4) for folder in "AB" for number in range(3)})
    tree(
        tmp_path / "b", {f"{folder}/{number}.npy": u1(4, 4) for folder in "AB" for number in range(3 + (folder == "A"))}
    )
    tree(tmp_path / "c", {"train.npy": np.arange(9), "val.npy": np.arange(4)})
    uniform = plan_uniform(scan_sources([tmp_path / "a"]))
    assert uniform is not None
    for made in (uniform, plan(tmp_path / "a")):
        assert made.explanation.endswith("('A', 'B'). If they are parts of the same samples: --layout paired.")
    assert plan(tmp_path / "a", layout="paired").num_samples == 3
    assert plan(tmp_path / "b").explanation.endswith("('A', 'B').")
    assert plan(tmp_path / "c").explanation.endswith("They could be splits: each makes its own container.")


def test_the_missing_partner_is_that_of_a_whole_pairing(tmp_path: Path) -> None:
    """Names pair by their last part, since the arrays say so; not by subject, though more of those are whole."""
    for subject in ("s1", "s2"):
        for session in range(2):
            arrays = {"eeg": f4(4, 9), "emg": f4(2, 9), "mark": f4()}
            tree(tmp_path, {f"{subject}/{session}/{name}.npy": array for name, array in arrays.items()})
    (tmp_path / "s1" / "1" / "emg.npy").unlink()
    with pytest.raises(IngestError, match=r"'s1/1/eeg\.npy' has no partner in 'emg'"):
        plan(tmp_path, layout="paired")


def test_object_arrays_of_texts(tmp_path: Path) -> None:
    """`y.npy` as pandas has names: refused, and read by the options that the messages name, as wide as the longest."""
    names = np.array(["cat", "", "ß-dog"] * 3, object)
    tree(tmp_path / "in", {"X.npy": f4(9, 4), "y.npy": names, "z/a.npz": {"x": f4(4), "meta": np.array([{}], object)}})
    refused(tmp_path / "in" / "z", r"'meta': .* --field NAME=SOURCE takes only the arrays that are named\.")
    shutil.rmtree(tmp_path / "in" / "z")
    message = refused(tmp_path / "in", "--layout columns")
    with pytest.raises(IngestError, match="--allow-pickle with --layout rows or columns"):
        as_said(tmp_path / "in", re.search(r"--layout columns", message)[0])  # type: ignore[index]
    convert(tmp_path / "in", tmp_path / "x.cks", layout="columns", allow_pickle=True)
    with chunkstore.open(tmp_path / "x.cks") as ds:
        assert ds.fields["y"].dtype == "utf32[5]"
        assert ds[:]["y"].tolist() == names.tolist()
    export(tmp_path / "x.cks", tmp_path / "out")
    assert np.load(tmp_path / "out" / "y.npy", allow_pickle=True).tolist() == names.tolist()


def test_a_hint_for_pairs_of_many_rows(tmp_path: Path) -> None:
    """`1_X.npy` of as many rows as `1_Y.npy` has numbers can be parts of one data set; an image and its mask cannot."""
    for number in (1, 2, 10):
        tree(tmp_path / "a", {f"{number}_X.npy": f4(number + 1, 3), f"{number}_Y.npy": np.arange(number + 1)})
        tree(tmp_path / "b", {f"{number}_X.npy": f4(number + 1, 3), f"{number}_Y.npy": np.arange(number)})
        tree(tmp_path / "c", {f"{number}_image.npy": u1(9, 9, 3), f"{number}_mask.npy": u1(9, 9)})
        tree(
            tmp_path / "d",
            {f"{number}_x.npy": f4(9, 9), f"{number}_y.npy": np.arange(9) if number > 1 else u1(9, 1, 1)},
        )
    for name, hint in (("a", True), ("b", False), ("c", False), ("d", False)):
        if name != "d":
            made = plan(tmp_path / name)
            assert (made.layout, made.num_samples) == ("paired", 3)
            assert made.explanation.endswith("save every pair as one .npz, and say --layout rows.") == hint
    with pytest.raises(IngestError, match=r"1_y\.npy: array 'data' has 3 dimensions"):
        plan(tmp_path / "d")


def test_byte_order_is_no_role(tmp_path: Path) -> None:
    """Files that differ in byte order only are samples of one field."""
    for order in ("big", "little"):
        for number in range(2):
            tree(tmp_path, {f"c64_{order}_{number}.npy": np.zeros((2, 3), ">f8" if order == "big" else "<f8")})
    made = plan(tmp_path)
    assert (made.layout, made.num_samples) == ("files", 4)


@pytest.mark.parametrize("arrays", [{"audio": (1,), "feat": (8,)}, {"image": (4,), "mask": (4,), "label": ()}])
def test_role_words_of_arrays_that_are_not_all_alike(tmp_path: Path, arrays: dict[str, Any]) -> None:
    """One width in each role, or one role of other dimensions, says that they are parts of samples, whatever their
    lengths.
    """
    for number in range(1, 4):
        tree(
            tmp_path,
            {f"{role}/{number}.npy": f4(*((number, *shape) if shape else ())) for role, shape in arrays.items()},
        )
    made = plan(tmp_path)
    assert (made.layout, made.num_samples, {field.name for field in made.fields}) == ("paired", 3, set(arrays))


def test_numbered_files_of_one_folder_are_no_roles(tmp_path: Path) -> None:
    """`a/1.npz`, `a/2.npz` with `b/1.npz`, `b/2.npz` are four samples, and an odd file in each folder is named."""
    for folder in "ab":
        tree(tmp_path, {f"{folder}/take{number}.npz": {"x": f4(3), "y": f4(2)} for number in range(2)})
        tree(tmp_path, {f"{folder}/shape.npz": {"y": f4(2)}})
    tree(tmp_path, {f"{folder}/take2.npz": {"x": f4(3), "y": f4(2)} for folder in "ab"})
    refused(tmp_path, r"a/shape\.npz: has no array 'x'")


@pytest.mark.parametrize("name", ["{}_{}", "{}/{0}_{}", "{1}_{0}", "{1}/{0}", "s_{}_{}"])
def test_numbered_files_of_splits_are_no_columns(tmp_path: Path, name: str) -> None:
    """`train_1`, `train_2`, `val_1` are samples, though every name has its split and their first axes are equal."""
    name = name.replace("{}", "{0}", 1).replace("{}", "{1}")
    for split, num in (("train", 3), ("val", 2)):
        tree(tmp_path, {f"{name.format(split, number)}.npy": f4(4, 4) for number in range(num)})
    made = plan(tmp_path)
    assert (made.layout, made.num_samples) == ("files", 5)
