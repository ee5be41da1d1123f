"""`open` and `Reader`: one suite over both back ends, results held against what was written."""

from __future__ import annotations

import _thread
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import hypothesis.strategies as st
import numpy as np
import oracle
import pytest
import strategies
from hypothesis import given, settings

import chunkstore
from chunkstore import Field, Ragged, Reader, Writer
from chunkstore._format import codec
from chunkstore._format.field_index import FieldIndex
from chunkstore._format.index import read_index
from chunkstore._read.coded import run_together
from chunkstore._storage.source import open_source

BACKENDS = ("mmap", "pread")
N = 300
IMAGES = np.random.default_rng(1).integers(0, 256, (N, 5, 4, 3), dtype=np.uint8)
LABELS = np.arange(N) % 10
KEYS = [f"cat/{place:04}" for place in range(N)]

Open = Callable[..., Reader]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Literal["mmap", "pread"]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and labels with keys, one extent each."""
    target = tmp_path_factory.mktemp("reader") / "train.cks"
    with Writer(target, attrs={"classes": ["a", "b"]}, num_samples=N) as writer:
        writer.add_batch({"image": IMAGES, "label": LABELS}, keys=KEYS)
    return target


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ragged sequences, texts and boxes; no keys; several shards."""
    target = tmp_path_factory.mktemp("reader") / "ragged.cks"
    fields = {"x": ("float32", (None, 2)), "caption": "string", "box": ("int16", (None, 2, None))}
    with Writer(target, fields=fields, shard_nbytes=2000) as writer:
        for place in range(N):
            writer.add(ragged_sample(place))
    return target


def ragged_sample(place: int) -> dict[str, Any]:
    x = np.full((place % 7, 2), place, np.float32)
    return {"x": x, "caption": "é" * (place % 3), "box": np.full((place % 2, 2, place % 5), place, np.int16)}


@pytest.fixture
def ds(path: Path, backend: Literal["mmap", "pread"]) -> Iterator[Reader]:
    with chunkstore.open(path, backend=backend) as reader:
        yield reader


@pytest.fixture
def ragged(texts: Path, backend: Literal["mmap", "pread"]) -> Iterator[Reader]:
    with chunkstore.open(texts, backend=backend) as reader:
        yield reader


# --- what it is ---


def test_describes_the_container(ds: Reader, path: Path, backend: str) -> None:
    """Length, fields, attributes, fingerprint, generation."""
    assert (len(ds), ds.generation, ds.backend, ds.verify, ds.path) == (N, 1, backend, "once", str(path))
    assert ds.fields == {"image": Field("image", "uint8", (5, 4, 3)), "label": Field("label", "int64")}
    assert list(ds.fields) == ["image", "label"]
    assert ds.attrs == {"classes": ["a", "b"]}
    assert len(bytes.fromhex(ds.fingerprint)) == 16
    with pytest.raises(TypeError):
        ds.fields["x"] = ds.fields["image"]  # type: ignore[index]


def test_attrs_are_fresh(ds: Reader) -> None:
    """Who changes what he was given changes nothing for others."""
    ds.attrs["classes"].append("c")
    assert ds.attrs == {"classes": ["a", "b"]}


def test_repr(ds: Reader) -> None:
    """What a newcomer wants to know at the prompt."""
    first, image, label = repr(ds).splitlines()
    assert first.endswith(f"train.cks': {N} samples, with keys, {ds.backend}, verify='once'")
    assert (image, label) == ("  image: uint8 (5, 4, 3)", "  label: int64 ()>")
    ds.close()
    assert repr(ds).endswith("closed>")


# --- one sample ---


@pytest.mark.parametrize("verify", ["once", "always", "off"])
def test_one_sample(path: Path, backend: Any, verify: Any) -> None:
    """By position from either end and by key; read-only arrays, a 0-d array for a field of shape ()."""
    with chunkstore.open(path, backend=backend, verify=verify) as ds:
        for index, place in ((7, 7), (-1, N - 1), ("cat/0007", 7), (np.int16(7), 7), (np.array(7), 7), (True, 1)):
            sample = ds[index]  # type: ignore[index]
            assert np.array_equal(sample["image"], IMAGES[place])
            assert (sample["label"].shape, sample["label"].dtype, int(sample["label"])) == ((), np.int64, LABELS[place])
            for array in sample.values():
                assert isinstance(array, np.ndarray)
                with pytest.raises(ValueError, match="read-only"):
                    array[...] = 0
                with pytest.raises(ValueError, match="WRITEABLE"):
                    array.flags.writeable = True


@pytest.mark.parametrize("index", [N, -N - 1, 2**70])
def test_position_outside(ds: Reader, index: int) -> None:
    """IndexError with N, so that the old protocol of iteration ends as well."""
    with pytest.raises(IndexError, match=rf"index {index} is outside \[-300, 300\)"):
        ds[index]


@pytest.mark.parametrize(("index", "match"), [((1, 2), r"use ds\[\[1, 2, 3\]\]"), (1.0, "indices"), (None, "indices")])
def test_index_of_wrong_type(ds: Reader, index: Any, match: str) -> None:
    """Neither positions nor keys."""
    with pytest.raises((TypeError, ValueError), match=match):
        ds[index]


def test_indices_that_are_no_sequence(ds: Reader) -> None:
    """An iterator is not gone through, and the message says what to do; nor are names of fields looked up in a list."""
    for indices in (iter([1, 2]), map(int, "12"), ...):
        with pytest.raises(TypeError, match=rf"expected a sequence of integers, found {type(indices).__name__}"):
            ds.batch(indices)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"has no field \['label'\]"):
        ds.column(["label"])  # type: ignore[arg-type]


def test_sample(ds: Reader) -> None:
    """As by brackets; what is no position is said to be none."""
    for position in (7, -1, np.uint8(7), True):
        assert int(ds.sample(position)["label"]) == int(ds[position]["label"]) == LABELS[int(position)]
    assert ds.sample(True)["image"].shape == (5, 4, 3)
    with pytest.raises(IndexError, match=r"index -301 is outside \[-300, 300\)"):
        ds.sample(-301)
    with pytest.raises(TypeError, match=r"expected a position, found str 'cat/0007'; keys become positions by find"):
        ds.sample("cat/0007")  # type: ignore[arg-type]


def test_ragged_sample(ragged: Reader) -> None:
    """Rows in their own shape, texts as `str`."""
    for place in (0, 5, N - 1):
        sample, expected = ragged[place], ragged_sample(place)
        assert sample["caption"] == expected["caption"]
        for name in ("x", "box"):
            assert sample[name].shape == expected[name].shape
            assert np.array_equal(sample[name], expected[name])
            assert not sample[name].flags.writeable


# --- many samples ---

FAR_STEPS = [slice(3, None, 2**70), slice(3, None, -(2**70)), slice(9, 3, 2**70)]


@pytest.mark.parametrize(
    "index", [slice(10, 20), slice(None), slice(20, 10), slice(None, None, -7), slice(-5, None), *FAR_STEPS]
)
def test_slice(ds: Reader, index: slice) -> None:
    """As of NumPy; fresh arrays."""
    batch = ds[index]
    assert np.array_equal(batch["image"], IMAGES[index])
    assert np.array_equal(batch["label"], LABELS[index])
    assert all(array.flags.writeable for array in batch.values())


@pytest.mark.parametrize("indices", [[5, 3, 3], [], [-1, 0], np.arange(N)[::-1], range(4), np.arange(N) % 3 == 0])
def test_list(ds: Reader, indices: Any) -> None:
    """In the order asked for, repeats included; a mask as in NumPy."""
    where = np.asarray(indices) if len(indices) else np.zeros(0, int)
    batch = ds[indices]
    assert np.array_equal(batch["image"], IMAGES[where])
    assert np.array_equal(batch["label"], LABELS[where])


def test_chosen_fields(ds: Reader, path: Path, backend: Any) -> None:
    """Fields by batch, in the order given, or once for all when opening."""
    assert list(ds.batch([1], fields=["label", "image"])) == ["label", "image"]
    with chunkstore.open(path, backend=backend, fields=["label"]) as labels:
        assert list(labels.fields) == list(labels[0]) == list(labels[:2]) == ["label"]


def test_fields_are_made_ready_when_they_are_read(ragged: Reader) -> None:
    """Thousands of fields cost an opening nothing while nobody reads them; each is made once."""
    opened = ragged._opened
    assert opened.made == {}
    assert list(ragged.fields) == list(opened.numbers)
    assert opened.made == {}
    name = next(iter(ragged.fields))
    ragged.batch([0], fields=[name])
    assert list(opened.made) == [name]
    first = opened.made[name]
    assert set(ragged[0]) == set(ragged.fields)
    assert opened.made[name] is first is opened.rows[name]


@pytest.mark.parametrize("call", [lambda ds: ds.batch([0], fields=["lable"]), lambda ds: ds.column("lable")])
def test_unknown_field(ds: Reader, call: Any) -> None:
    """ValueError with a guess."""
    with pytest.raises(ValueError, match="has no field 'lable'; did you mean 'label'"):
        call(ds)


def test_one_text_is_no_list_of_fields(ds: Reader, path: Path) -> None:
    """`fields="label"` would be five fields of one letter."""
    for call in (lambda: ds.batch([0], fields="label"), lambda: chunkstore.open(path, fields="label")):
        with pytest.raises(TypeError, match=r"fields: expected a sequence of names, found one text; use \['label'\]"):
            call()


def test_nothing_is_read_before_the_checks(ds: Reader) -> None:
    """A wrong index, field or array leaves what was given untouched."""
    out = np.zeros((2, 5, 4, 3), np.uint8)
    labels = np.zeros(3, np.int64)
    for indices, arrays in (([0, N], {"image": out}), ([1, 2], {"image": out, "label": labels}), ([0, 1], {"x": out})):
        with pytest.raises((IndexError, ValueError)):
            ds.batch(indices, out=arrays)
    assert not out.any()


def test_out(ds: Reader) -> None:
    """Arrays of the caller are filled; the others are fresh."""
    out = np.empty((3, 5, 4, 3), np.uint8)
    for indices in ([9, 2, 2], [4, 5, 6]):
        batch = ds.batch(indices, out={"image": out})
        assert batch["image"] is out
        assert np.array_equal(out, IMAGES[indices])
        assert np.array_equal(batch["label"], LABELS[indices])
    with pytest.raises(TypeError, match="out: expected a mapping"):
        ds.batch([1], out=out)  # type: ignore[arg-type]


@pytest.mark.parametrize("verify", ["once", "off"])
def test_out_of_other_arrays(path: Path, backend: Any, verify: Any, tmp_path: Path) -> None:
    """The memory of subclasses is filled, whatever their methods do."""
    with chunkstore.open(path, backend=backend, verify=verify) as reader:
        for indices in ([9, 2, 2], [4, 5, 6]):
            images = np.ma.masked_array(np.zeros((3, 5, 4, 3), np.uint8))
            labels = np.memmap(tmp_path / "labels", np.int64, "w+", shape=(3,))
            reader.batch(indices, out={"image": images, "label": labels})
            assert np.array_equal(images, IMAGES[indices])
            assert np.array_equal(labels, LABELS[indices])


@pytest.mark.parametrize("verify", ["once", "off"])
@pytest.mark.parametrize("shift", [-8, 0, 8])
def test_out_over_the_indices(path: Path, backend: Any, verify: Any, shift: int) -> None:
    """An array to fill may lie over the indices: they are those of before."""
    for name, array in (("image", IMAGES), ("label", LABELS)):
        memory = np.zeros(100_000, np.uint8)
        indices = memory[16 : 16 + 8 * 50].view(np.int64)
        indices[:] = wanted = np.arange(100, 50, -1)
        nbytes = 50 * array[0].nbytes
        out = memory[16 + shift : 16 + shift + nbytes].view(array.dtype).reshape(50, *array.shape[1:])
        with chunkstore.open(path, backend=backend, verify=verify) as reader:
            reader.batch(indices, fields=[name], out={name: out})
        assert np.array_equal(out, array[wanted])


def test_out_of_ragged_values(ragged: Reader) -> None:
    """Values go to the first part of what was given."""
    out = np.zeros((50, 2), np.float32)
    for indices in ([1, 5, 3], [3, 4, 5]):
        batch = ragged.batch(indices, out={"x": out})
        values = batch["x"].values  # type: ignore[union-attr]
        assert np.shares_memory(values, out)
        assert values[:, 0].tolist() == [float(i) for i in indices for _ in range(i % 7)]
    with pytest.raises(ValueError, match=r"expected shape \(6 or more, 2\), found \(5, 2\)"):
        ragged.batch([6], out={"x": out[:5]})


@pytest.mark.parametrize("indices", [[5, 2, 2, 299], list(range(50, 90)), []])
def test_ragged_batch(ragged: Reader, indices: list[int]) -> None:
    """Values, offsets and, where two dimensions vary, shapes."""
    batch = ragged[indices]
    expected = [ragged_sample(place) for place in indices]
    for name in ("x", "box", "caption"):
        rows = batch[name]
        assert isinstance(rows, Ragged)
        assert (rows.shapes is not None) == (name == "box")
        for row, sample in zip(rows, expected, strict=True):
            assert row == sample[name] if name == "caption" else np.array_equal(row, sample[name])
    assert batch["caption"].tolist() == [sample["caption"] for sample in expected]


def test_batch_outlives_the_reader(path: Path, texts: Path, backend: Any) -> None:
    """What was handed out stays valid after close: batches own their memory, views keep the map."""
    for file in (path, texts):
        ds = chunkstore.open(file, backend=backend)
        sample, batch = ds[3], ds[[3, 4, 7]]
        columns = [ds.column(name) for name in ds.fields]
        copies = pickle.dumps((sample, batch, columns))
        ds.close()
        assert pickle.dumps((sample, batch, columns)) == copies


def test_iteration(ds: Reader, ragged: Reader) -> None:
    """All samples in order, each as `ds[i]`; also in pieces that do not divide N."""
    assert [int(sample["label"]) for sample in ds] == LABELS.tolist()
    for place, sample in enumerate(ragged):
        expected = ragged_sample(place)
        assert sample["caption"] == expected["caption"]
        assert np.array_equal(sample["box"], expected["box"])
        assert not sample["x"].flags.writeable


def test_iteration_by_pieces(ds: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that do not divide N."""
    monkeypatch.setattr("chunkstore._read.reader._ITERATE_SAMPLES", 7)
    samples = list(ds)
    assert np.array_equal([sample["image"] for sample in samples], IMAGES)
    assert all(sample["label"].shape == () and not sample["image"].flags.writeable for sample in samples)


# --- columns ---


def test_column(ds: Reader, backend: str) -> None:
    """The whole field, read-only; with a map and one extent a view of it."""
    image = ds.column("image")
    assert np.array_equal(image, IMAGES)
    assert np.asarray(ds.column("label")).tolist() == LABELS.tolist()
    assert not image.flags.writeable
    assert (not image.flags.owndata) or backend == "pread"


def test_ragged_column(ragged: Reader) -> None:
    """As `Ragged`, over all shards."""
    x, captions, box = (ragged.column(name) for name in ("x", "caption", "box"))
    assert captions.tolist() == [ragged_sample(place)["caption"] for place in range(N)]  # type: ignore[union-attr]
    for place in range(N):
        assert np.array_equal(x[place], ragged_sample(place)["x"])
        assert np.array_equal(box[place], ragged_sample(place)["box"])


# --- keys ---


def test_keys(ds: Reader) -> None:
    """A sequence over the file."""
    keys = ds.keys
    assert keys is not None
    assert list(keys) == KEYS == keys
    assert (len(keys), keys[7], keys[-1], keys[5:8], keys[::100]) == (N, KEYS[7], KEYS[-1], KEYS[5:8], KEYS[::100])
    assert "cat/0003" in keys
    assert "dog" not in keys
    assert 3 not in keys
    assert (keys.index("cat/0009"), keys.count("cat/0009"), keys.count("x")) == (9, 1, 0)
    assert repr(keys) == "Keys(['cat/0000', 'cat/0001', 'cat/0002', ...], 300 in all)"
    with pytest.raises(IndexError, match="index 300"):
        keys[N]
    with pytest.raises(ValueError, match="'dog' is not a key"):
        keys.index("dog")


def test_find(ds: Reader) -> None:
    """Positions of many keys."""
    found = ds.find(["cat/0007", "cat/0000", "cat/0007"])
    assert (found.dtype, found.tolist()) == (np.int64, [7, 0, 7])
    assert ds.find([]).shape == (0,)
    assert ds.find(np.array(["cat/0002"])).tolist() == [2]  # type: ignore[arg-type]

    class Indexed:
        """What only has `__getitem__` is a sequence to Python, too."""

        def __getitem__(self, place: int) -> str:
            return ["cat/0003", "cat/0001"][place]

    assert ds.find(Indexed()).tolist() == [3, 1]  # type: ignore[arg-type]


def test_missing_keys(ds: Reader) -> None:
    """KeyError that names them, with a guess for one; its text is not quoted again."""
    with pytest.raises(chunkstore.SampleNotFoundError, match=r"no sample has the key 'cat/007'; did you mean 'cat/0"):
        ds["cat/007"]
    with pytest.raises(
        KeyError, match=r"no samples have the keys 'a', 'b', 'c' and 2 more; the first key is 'cat/0000'"
    ):
        ds.find(["a", "b", "cat/0001", "c", "d", "e"])
    with pytest.raises(chunkstore.SampleNotFoundError):
        ds["\ud800"]


def test_a_key_in_the_data_set(ds: Reader, ragged: Reader) -> None:
    """`in` asks for a key, as `ds[key]` does; without keys nothing is in it."""
    assert "cat/0003" in ds
    assert "dog" not in ds
    assert 3 not in ds
    assert "cat/0003" not in ragged


def test_a_field_is_no_key(ds: Reader, ragged: Reader) -> None:
    """Who asks for a field as of a dict of arrays is told where it is, with keys and without."""
    for reader in (ds, ragged):
        name = next(iter(reader.fields))
        with pytest.raises(chunkstore.SampleNotFoundError, match=rf"'{name}', it is a field: ds\.column\('{name}'\)"):
            reader[name]


def test_one_text_is_no_list_of_keys(ds: Reader) -> None:
    """`find("abc")` would look for three keys."""
    with pytest.raises(TypeError, match="expected a sequence of keys, found one text"):
        ds.find("cat/0001")
    for wanted, name in ((3, "int"), (np.array("cat/0001"), "ndarray")):
        with pytest.raises(TypeError, match=f"expected a sequence of keys, found {name}"):
            ds.find(wanted)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="keys: expected texts, found int 3"):
        ds.find([3])  # type: ignore[list-item]


def test_no_keys(ragged: Reader) -> None:
    """A container without keys has None, and says so when asked by key."""
    assert ragged.keys is None
    for call in (lambda: ragged["a"], lambda: ragged.find(["a"])):
        with pytest.raises(chunkstore.SampleNotFoundError, match="have no keys"):
            call()


# --- selections ---


def test_selection(ds: Reader) -> None:
    """Reads like the whole."""
    part = ds.select([9, 3, 4, 3])
    assert (len(part), part.fields, part.fingerprint, part.attrs) == (4, ds.fields, ds.fingerprint, ds.attrs)
    assert [int(sample["label"]) for sample in part] == [9, 3, 4, 3]
    assert int(part[-1]["label"]) == int(part["cat/0003"]["label"]) == 3
    assert part[1:]["label"].tolist() == part[[1, 2, 3]]["label"].tolist() == [3, 4, 3]  # type: ignore[union-attr]
    assert part.keys == ["cat/0009", "cat/0003", "cat/0004", "cat/0003"]
    assert part.find(["cat/0004", "cat/0003"]).tolist() == [2, 1]
    assert np.array_equal(part.column("image"), IMAGES[[9, 3, 4, 3]])
    assert part.select([2, 0]).batch([0, 1])["label"].tolist() == [4, 9]  # type: ignore[union-attr]
    part.prefetch([0, 1])
    back = pickle.loads(pickle.dumps(part))
    assert back[0]["label"] == 9


def test_selection_refuses(ds: Reader) -> None:
    """Positions count within the selection; keys outside it are not found."""
    part = ds.select(LABELS == 3)
    assert len(part) == 30
    with pytest.raises(IndexError, match=r"outside \[-30, 30\)"):
        part[30]
    with pytest.raises(chunkstore.SampleNotFoundError, match="'cat/0004' is not in this selection"):
        part["cat/0004"]
    with pytest.raises(chunkstore.SampleNotFoundError, match="'cat/0004' is not in this selection"):
        ds.select([]).find(iter(["cat/0004"]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="read-only"):
        part.positions[0] = 1


def test_prefetch(ds: Reader, ragged: Reader) -> None:
    """A hint: nothing to see but the same checks of its arguments."""
    for _ in range(20):
        ds.prefetch([1, 5, 2])
        ragged.prefetch(range(10), fields=["x"])
    with pytest.raises(IndexError):
        ds.prefetch([N])


# --- life ---


def test_closed(path: Path, backend: Any) -> None:
    """Every use after close is a ClosedError; closing twice is allowed; `with` closes."""
    with chunkstore.open(path, backend=backend) as ds:
        assert not ds.closed
    ds.close()
    assert ds.closed
    for use in (
        lambda: ds[0],
        lambda: ds[:1],
        lambda: ds["cat/0001"],
        lambda: len(ds),
        lambda: ds.batch([0]),
        lambda: ds.fields,
        lambda: ds.keys,
        lambda: ds.column("label"),
        ds.refresh,
        lambda: list(ds),
        lambda: pickle.dumps(ds),
    ):
        with pytest.raises(chunkstore.ClosedError, match="the reader was closed"):
            use()


def test_descriptors(path: Path, backend: Any) -> None:
    """Open, read in every way, close: no descriptor stays behind, also after an error."""
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else pytest.skip("no /proc")
    for _ in range(5):
        with chunkstore.open(path, backend=backend) as ds:
            ds[3], ds[3:100], ds[[5, 1]], ds.column("image")
        with pytest.raises(ValueError, match="no field"):
            chunkstore.open(path, backend=backend, fields=["x"])
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("options", [{"backend": "nfs"}, {"verify": "never"}, {"verify": True}])
def test_unknown_option(path: Path, options: Any) -> None:
    """ValueError names the parameter and its values."""
    with pytest.raises(ValueError, match=f"{next(iter(options))}: expected one of"):
        chunkstore.open(path, **options)


def test_what_is_no_container(tmp_path: Path) -> None:
    """The built-in errors for paths, ours for contents."""
    with pytest.raises(FileNotFoundError):
        chunkstore.open(tmp_path / "absent.cks")
    with pytest.raises(IsADirectoryError):
        chunkstore.open(tmp_path)
    with open(__file__) as file, pytest.raises(TypeError, match="path: expected a path, a URL or a list of them"):
        chunkstore.open(file)  # type: ignore[arg-type]
    np.save(tmp_path / "a.npy", np.zeros(3000))
    with pytest.raises(chunkstore.NotAContainerError, match=r"a\.npy: not a chunkstore container"):
        chunkstore.open(tmp_path / "a.npy")


def test_refresh(tmp_path: Path, backend: Any) -> None:
    """Moves to what was appended; what was proven stays proven; arrays of before stay valid."""
    path = tmp_path / "a.cks"
    with Writer(path) as writer:
        writer.add_batch({"x": np.arange(10)}, keys=[f"k{i}" for i in range(10)])
    ds = chunkstore.open(path, backend=backend)
    first = ds[3]
    assert not ds.refresh()
    child = pickle.loads(pickle.dumps(ds))
    with Writer(path, mode="a") as writer:
        writer.add_batch({"x": np.arange(10, 15)}, keys=[f"k{i}" for i in range(10, 15)])
    assert (len(ds), ds.generation) == (10, 1)
    assert ds.refresh()
    assert (len(ds), ds.generation) == (15, 2)
    assert ds.batch(range(15))["x"].tolist() == ds.column("x").tolist() == list(range(15))  # type: ignore[union-attr]
    assert ds.batch([14, 2])["x"].tolist() == [14, 2]  # type: ignore[union-attr]
    assert (ds["k12"]["x"], first["x"], ds.find(["k3", "k14"]).tolist()) == (12, 3, [3, 14])
    # What was pickled before keeps its generation, though it opens the file only now.
    assert (len(child), child.generation, child["k3"]["x"]) == (10, 1, 3)
    with pytest.raises(KeyError):
        child["k12"]


def test_replaced(tmp_path: Path, backend: Any) -> None:
    """Another container under the path is noticed by refresh and by a pickle, not by reads of what is open."""
    path = tmp_path / "a.cks"
    for value in (1, 2):
        ds = None
        if value == 2:
            ds = chunkstore.open(path, backend=backend)
            frozen = pickle.dumps(ds)
        with Writer(path, mode="w") as writer:
            writer.add({"x": value})
        if ds is not None:
            assert ds[0]["x"] == 1
            for use in (ds.refresh, lambda data=frozen: pickle.loads(data)[0]):
                with pytest.raises(chunkstore.ReplacedError, match=r"a\.cks: expected the container"):
                    use()


def test_truncated_under_the_reader(tmp_path: Path, backend: Any) -> None:
    """A batch notices that the file became shorter before it touches the map."""
    path = tmp_path / "a.cks"
    with Writer(path) as writer:
        writer.add_batch({"x": np.zeros((100, 1000))})
    ds = chunkstore.open(path, backend=backend)
    os.truncate(path, 50_000)
    for use in (lambda: ds.batch([90, 3]), lambda: ds[80:90], lambda: ds.column("x")):
        with pytest.raises(chunkstore.TruncatedError, match=r"a\.cks"):
            use()


# --- against what was written, and against the plain path ---


def layouts(path: Path, of: list[Field], samples: list[dict[str, Any]], shard: int, cut: int) -> Iterator[Path]:
    """The same samples as one extent, as a stream, and as two generations."""
    options: list[dict[str, Any]] = [{"num_samples": len(samples)}, {"shard_nbytes": shard}]
    for number, option in enumerate(options):
        target = path / f"{number}.cks"
        with Writer(target, fields=of, mode="w", **option) as writer:
            for sample in samples:
                writer.add(sample)
        yield target
    target = path / "appended.cks"
    for mode, part in (("w", samples[:cut]), ("a", samples[cut:])):
        with Writer(target, fields=of, mode=mode, shard_nbytes=shard) as writer:  # type: ignore[arg-type]
            for sample in part:
                writer.add(sample)
    yield target


def rows_of(values: Any) -> list[Any]:
    return list(values) if isinstance(values, Ragged) else [values[place, ...] for place in range(len(values))]


@settings(max_examples=40)
@given(
    of=strategies.fields(3),
    count=st.integers(0, 12),
    shard=st.sampled_from([1, 60, 700]),
    seed=st.integers(0, 99),
    backend=st.sampled_from(BACKENDS),
    verify=st.sampled_from(["once", "always", "off"]),
)
def test_any_samples_come_back(
    tmp_path_factory: Any, of: list[Field], count: int, shard: int, seed: int, backend: Any, verify: Any
) -> None:
    """All dtypes and shapes, every way of reading, whatever the layout: bytes, shapes and dtypes are as written."""
    samples = strategies.samples(of, count, seed)
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    for path in layouts(folder, of, samples, shard, count // 2):
        with chunkstore.open(path, backend=backend, verify=verify) as ds:
            wanted = rng.integers(-count, count, 2 * count) if count else np.zeros(0, int)
            batch, whole = ds.batch(wanted), ds[:]
            out = ds.batch(wanted, out={f.name: out_like(batch[f.name]) for f in of})
            for field in of:
                expected = [sample[field.name] for sample in samples]
                check(field, [ds[place][field.name] for place in range(count)], expected)
                for found in (batch, out):
                    check(field, rows_of(found[field.name]), [expected[place] for place in wanted.tolist()])
                check(field, rows_of(whole[field.name]), expected)
                check(field, rows_of(ds.column(field.name)), expected)
                check(field, [sample[field.name] for sample in ds], expected)


def out_like(values: Any) -> Any:
    return np.empty_like(values.values if isinstance(values, Ragged) else values)


def check(field: Field, found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for row, wanted in zip(found, expected, strict=True):
        assert oracle.same(row, wanted)
        assert field.is_string or row.dtype == field.numpy_dtype


def test_many_extents(tmp_path: Path, backend: Any) -> None:
    """A field of many extents: rows on one grid, rows at any byte, rows that are large; against the plain path."""
    widths = {"grid": 1024, "odd": 1001, "large": 20_001, "bytes": 1}
    fields = {name: ("uint8", (width,)) for name, width in widths.items()}
    rng = np.random.default_rng(2)
    with Writer(tmp_path / "a.cks", fields=fields, shard_nbytes=200_000) as writer:
        writer.add_batch({name: rng.integers(0, 256, (60, width), dtype=np.uint8) for name, width in widths.items()})
    for verify in ("once", "off"):
        with chunkstore.open(tmp_path / "a.cks", backend=backend, verify=verify) as ds:  # type: ignore[arg-type]
            positions = rng.integers(0, 60, 100)
            batch = ds.batch(positions)
            for number, name in enumerate(widths):
                plain = PlainField(tmp_path / "a.cks", number)
                assert len(plain.index.extents()) > 3
                assert batch[name].tobytes() == b"".join(map(plain.row, positions.tolist()))  # type: ignore[union-attr]
                assert ds[5:50][name].tobytes() == b"".join(map(plain.row, range(5, 50)))  # type: ignore[union-attr]
                assert all(ds[place][name].tobytes() == plain.row(place) for place in range(60))


class PlainField:
    """The slow way: each row by itself, through the index."""

    def __init__(self, path: Path, number: int) -> None:
        self.source = open_source(path, "pread")
        self.index = FieldIndex(read_index(self.source), number)

    def row(self, position: int) -> bytes:
        offset, nbytes = self.index.rows(np.array([position]))
        assert self.index.row(position) == (int(offset[0]), int(nbytes[0]))
        return self.source.read(int(offset[0]), int(nbytes[0]))


@settings(max_examples=30)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=40), st.integers(0, 99), st.sampled_from(BACKENDS))
def test_ragged_gathers_agree(tmp_path_factory: Any, counts: list[int], seed: int, backend: Any) -> None:
    """Short rows (gathered byte by byte), long ones (joined), and into given memory: the same values."""
    path = tmp_path_factory.getbasetemp() / "counts.cks"
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, 99, count, np.int16) for count in counts]
    with Writer(path, fields={"x": ("int16", (None,))}, mode="w", shard_nbytes=500) as writer:
        for row in rows:
            writer.add({"x": row})
    with chunkstore.open(path, backend=backend) as ds:
        positions = rng.integers(0, len(rows), 50)
        expected = np.concatenate([rows[place] for place in positions.tolist()])
        assert np.array_equal(ds.batch(positions)["x"].values, expected)  # type: ignore[union-attr]
        out = np.empty(len(expected) + 3, np.int16)
        assert np.array_equal(ds.batch(positions, out={"x": out})["x"].values, expected)  # type: ignore[union-attr]


# --- codecs ---


VECTORS = Path(__file__).resolve().parent.parent / "spec" / "vectors" / "valid"


def test_unknown_codec(backend: Any) -> None:
    """Only the field with the unknown codec cannot be read; the message says how to leave it out."""
    with chunkstore.open(VECTORS / "unknown-codec.cks", backend=backend) as ds:
        assert set(ds.fields) == {"x", "y"}
        for use in (lambda: ds[0], lambda: ds[:1], lambda: ds.batch([0]), lambda: ds.column("y")):
            with pytest.raises(chunkstore.UnsupportedFeatureError, match=r"field 'y'.*open\(path, fields=\[\.\.\.\]\)"):
                use()
        assert ds.batch([0], fields=["x"])
    with chunkstore.open(VECTORS / "unknown-codec.cks", backend=backend, fields=["x"]) as ds:
        assert ds[0]


def test_codec_without_its_package(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An optional package that is missing is named with its install line."""

    def missing(*_: Any) -> bytes:
        raise chunkstore.MissingExtraError("pip install 'chunkstore-arrays[codecs]'")

    monkeypatch.setitem(codec.CODECS, "zlib", missing)
    with (
        chunkstore.open(VECTORS / "codec-zlib.cks", backend=backend) as ds,
        pytest.raises(ImportError, match="pip install"),
    ):
        ds.batch(range(len(ds)))


def test_out_may_be_the_indices(tmp_path: Path, backend: Any) -> None:
    """The positions are copied where the first field would overwrite those of the second."""
    with Writer(tmp_path / "a.cks") as writer:
        writer.add_batch({"l": np.arange(10) * 7, "x": np.arange(10)})
    with chunkstore.open(tmp_path / "a.cks", backend=backend) as reader:
        indices = np.array([3, 1, 2])
        batch = reader.batch(indices, out={"l": indices})
        assert batch["l"].tolist() == [21, 7, 14]
        assert batch["x"].tolist() == [3, 1, 2]
        assert list(reader.batch([1], fields=(name for name in ["x"]))) == ["x"]


@pytest.mark.parametrize("index", [5.0, None, np.True_, {1, 2}, {"a": 1}])
def test_what_is_no_index(ds: Reader, index: Any) -> None:
    """A TypeError, whichever way it is asked for."""
    with pytest.raises(TypeError):
        ds.batch(index)


@pytest.mark.parametrize("indices", [range(2**70, 2**70 + 2), np.array([2**64 - 1], np.uint64), [2**80]])
def test_an_index_beyond_64_bits(ds: Reader, indices: Any) -> None:
    """It is outside, and named as it was given."""
    with pytest.raises(IndexError, match=str(indices[0])):
        ds.batch(indices)


def test_an_interrupt_waits_for_the_threads_that_decode() -> None:
    """They write into the caller's memory, which is the caller's again afterwards."""
    ended = []

    def work() -> None:
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.1)  # until the other one waits
            _thread.interrupt_main()
            time.sleep(0.3)
            ended.append(True)

    with pytest.raises(KeyboardInterrupt):
        run_together(work, 2)
    assert ended == [True]
