"""Several containers as one data set: what `open` takes, and that it reads as the containers one after another."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import strategies
from command import run
from hypothesis import given, settings

import chunkstore
from chunkstore import Containers, CorruptError, Ragged, SampleNotFoundError, SchemaError, Writer
from chunkstore._format.schema import Field

BACKENDS = ("mmap", "pread")
MODES = ("once", "always", "off")
COUNTS = (5, 0, 40, 1, 130, 7)
FIELDS: dict[str, Any] = {
    "image": ("uint8", (16, 16)),
    "label": "int64",
    "wave": ("float32", (None, 2)),
    "grid": ("int16", (None, None)),
    "text": "string",
}


def sample(number: int) -> dict[str, Any]:
    """Sample `number`, the same each time; some rows are empty."""
    rng = np.random.default_rng(number)
    return {
        "image": rng.integers(0, 256, (16, 16), np.uint8),
        "label": number,
        "wave": rng.random((number % 5, 2), dtype=np.float32),
        "grid": rng.integers(-9, 9, (number % 3, number % 4)).astype(np.int16),
        "text": "ö" * (number % 4),
    }


def build(folder: Path, counts: tuple[int, ...] = COUNTS, *, keys: bool = True, names: Any = FIELDS) -> list[str]:
    """Containers of so many samples, numbered through; the shards of every other one are small."""
    folder.mkdir(exist_ok=True)
    paths, number = [], 0
    for place, count in enumerate(counts):
        path = folder / f"part{place}.cks"
        extra: dict[str, Any] = {"shard_nbytes": 1 << 12} if place % 2 else {"num_samples": count}
        with Writer(
            path, fields={name: FIELDS[name] for name in names}, attrs={"who": "me", "part": place}, **extra
        ) as w:
            for each in range(number, number + count):
                w.add({name: sample(each)[name] for name in names}, key=f"k{each}" if keys else None)
        number += count
        paths.append(str(path))
    return paths


def append(path: str, first: int, count: int) -> None:
    """More samples, in a commit of their own."""
    with Writer(path, mode="a") as writer:
        for number in range(first, first + count):
            writer.add(sample(number), key=f"k{number}")


def check(found: Any, expected: Any) -> None:
    """One row has the value, the dtype and the shape of another."""
    if isinstance(expected, str):
        assert found == expected
        return
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("many") / "data"
    build(path)
    return path


@pytest.fixture(params=[(backend, verify) for backend in BACKENDS for verify in MODES], ids="-".join)
def ds(request: pytest.FixtureRequest, folder: Path) -> Any:
    backend, verify = request.param
    with chunkstore.open(folder, backend=backend, verify=verify) as reader:
        yield reader


# --- what open takes ---


def test_natural_order(tmp_path: Path) -> None:
    """A directory and a pattern give containers in natural order, 2 before 10, once; hidden and others are left out."""
    folder = tmp_path / "below"
    folder.mkdir()
    for number, name in enumerate(["s10.cks", "s2.cks", "s1.cks"]):
        with Writer(folder / name) as writer:
            writer.add({"x": number})
    (folder / ".s0.cks").write_bytes(b"hidden")
    (folder / "notes.txt").write_text("other")
    for given_path in (folder, f"{folder}/", folder / "*.cks", f"{tmp_path}/**/**/s*.cks"):
        with chunkstore.open(given_path) as ds:
            assert isinstance(ds, Containers)
            assert [os.path.basename(path) for path in ds.paths] == ["s1.cks", "s2.cks", "s10.cks"]
            assert ds.batch([0, 1, 2])["x"].tolist() == [2, 1, 0]
            assert ds.starts.tolist() == [0, 1, 2, 3]


def test_a_list_keeps_its_order(folder: Path) -> None:
    """Paths of a list are taken as they come, and exactly."""
    paths = [folder / "part4.cks", folder / "part0.cks"]
    with chunkstore.open(paths) as ds:
        assert ds[[0, 130]]["label"].tolist() == [46, 0]
    with pytest.raises(FileNotFoundError):
        chunkstore.open([folder / "*.cks", paths[0]])


def test_one_is_a_plain_reader(tmp_path: Path) -> None:
    """One path, however given, is the container itself, with its own fingerprint."""
    (path,) = build(tmp_path / "one", (3,))
    with chunkstore.open(path) as plain:
        for source in ([path], tmp_path / "one", str(tmp_path / "one" / "*.cks")):
            with chunkstore.open(source) as ds:
                assert type(ds) is chunkstore.Reader
                assert ds.fingerprint == plain.fingerprint


def test_a_name_with_pattern_characters(tmp_path: Path) -> None:
    """A file of that exact name goes before the pattern."""
    for name in ("a[1].cks", "a1.cks"):
        with Writer(tmp_path / name) as writer:
            writer.add({"x": len(name)})
    with chunkstore.open(tmp_path / "a[1].cks") as ds:
        assert int(ds[0]["x"]) == len("a[1].cks")


@pytest.mark.parametrize(
    ("source", "error", "match"),
    [
        ([], ValueError, "at least one container"),
        (None, TypeError, "a URL or a list of them, found NoneType"),
        ("nothing/*.cks", FileNotFoundError, "matches this pattern"),
        ("empty", IsADirectoryError, "without a container"),
    ],
)
def test_nothing_to_open(tmp_path: Path, source: Any, error: type[Exception], match: str) -> None:
    """No path, no match, no container in a directory: each says so."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=match):
        chunkstore.open(tmp_path / source if isinstance(source, str) else source)


def test_too_many_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system allows no more descriptors, the message has the ways out, and nothing stays open."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 2, limits[1]))
    try:
        with pytest.raises(OSError, match="ulimit -n"):
            chunkstore.open(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(os.listdir("/proc/self/fd")) == before


# --- schema, keys, attrs, fingerprint ---


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"x": "int32", "y": "int8"}, r"field 'x': int32 \(\) in .*b.cks, int64 \(\) in .*a.cks"),
        ({"x": ("int64", (3,)), "y": "int8"}, r"field 'x': int64 \(3,\) in .*b.cks"),
        ({"x": "int64"}, r"b.cks has no field 'y', which .*a.cks has"),
        ({"x": "int64", "y": "int8", "z": "int8"}, r"a.cks has no field 'z', which .*b.cks has"),
    ],
)
def test_other_schema(tmp_path: Path, fields: Any, match: str) -> None:
    """The message says which field differs, where, and how; fields= reads those that are alike."""
    paths = [tmp_path / "a.cks", tmp_path / "b.cks"]
    for path, own in zip(paths, [{"x": "int64", "y": "int8"}, fields], strict=True):
        with Writer(path, fields=own):
            pass
    with pytest.raises(SchemaError, match=match):
        chunkstore.open(paths)


def test_other_order_of_fields(tmp_path: Path) -> None:
    """Fields are found by name: their order, and fields that are not read, may differ."""
    paths = [tmp_path / "a.cks", tmp_path / "b.cks"]
    with Writer(paths[0], fields={"x": "int64", "y": "int8", "z": "int8"}) as writer:
        writer.add({"x": 1, "y": 2, "z": 3})
    with Writer(paths[1], fields={"y": "int8", "z": "string", "x": "int64"}) as writer:
        writer.add({"x": 4, "y": 5, "z": ""})
    with chunkstore.open(paths, fields=["y", "x"]) as ds:
        assert list(ds.fields) == ["x", "y"]
        found = ds.batch([1, 0])
        assert (found["x"].tolist(), found["y"].tolist()) == ([4, 1], [5, 2])


def test_keys_everywhere_or_nowhere(tmp_path: Path) -> None:
    """Some samples with keys and some without are refused, as `merge` does; an empty container counts for neither."""
    with_keys = build(tmp_path / "a", (3, 0))
    without = build(tmp_path / "b", (3, 0), keys=False)
    with pytest.raises(SchemaError, match=r"only .*a.part0.cks has keys"):
        chunkstore.open([without[0], with_keys[0]])
    with chunkstore.open([with_keys[0], without[1]]) as ds:
        assert ds.keys is not None
        assert ds.find(["k2"]).tolist() == [2]
    with chunkstore.open(without) as ds:
        assert ds.keys is None
        with pytest.raises(SampleNotFoundError, match="no keys"):
            ds["k1"]


def test_keys(ds: Containers) -> None:
    """Keys are found in every container, one by one and many at once, and read in order."""
    wanted = [f"k{number}" for number in range(len(ds))]
    assert ds.keys is not None
    assert list(ds.keys) == wanted
    assert ds.keys[44:48] == wanted[44:48]
    assert ds.keys[-1] == wanted[-1]
    assert ds.keys.index("k45") == 45
    assert "k999" not in ds.keys
    assert ds.find(wanted[::-1]).tolist() == list(range(len(ds)))[::-1]
    assert ds.find(["k0", "k46"]).tolist() == [0, 46]
    assert int(ds["k46"]["label"]) == 46
    with pytest.raises(SampleNotFoundError, match="k999"):
        ds.find(["k1", "k999"])


def test_a_key_in_two_containers(folder: Path) -> None:
    """Its lookup is an error that names both; others are found, and so is its sample by position."""
    path = str(folder / "part0.cks")
    with chunkstore.open([path, str(folder / "part2.cks"), path]) as ds:
        for look in (
            lambda: ds["k3"],
            lambda: ds.find(["k3"]),
            lambda: ds.find([f"k{i}" for i in range(5, -1, -1)] * 4),
        ):
            with pytest.raises(SchemaError, match=r"is in .*part0.cks \(sample .\) and in .*part0.cks \(sample .\)"):
                look()
        assert ds.find(["k7"]).tolist() == [7]
        assert int(ds[45 + 3]["label"]) == 3
        assert ds.keys is not None
        assert ds.keys[48] == "k3"


def test_attrs_that_all_have(ds: Containers) -> None:
    """Members of ATTRS that are equal everywhere are kept, others left out."""
    assert ds.attrs == {"who": "me"}


def test_fingerprint(folder: Path) -> None:
    """The xxh3-128 of the fingerprints in order, as spec/order-1.md has it: order and every container count."""
    import xxhash

    paths = [str(folder / f"part{number}.cks") for number in (2, 0, 1)]
    each = [chunkstore.open(path).fingerprint for path in paths]
    with chunkstore.open(paths) as ds, chunkstore.open(paths[::-1]) as other:
        assert ds.fingerprint == xxhash.xxh3_128(b"".join(map(bytes.fromhex, each))).hexdigest()
        assert other.fingerprint != ds.fingerprint


def test_describes_itself(ds: Containers) -> None:
    """repr, length, fields, generation."""
    assert len(ds) == sum(COUNTS)
    assert repr(ds).startswith(
        f"<chunkstore.Containers {ds.path!r}: 6 containers, 183 samples, with keys, {ds.backend}"
    )
    assert list(ds.fields) == list(FIELDS)
    assert ds.generation == 6
    assert ds.starts.tolist() == np.cumsum([0, *COUNTS]).tolist()


# --- reading ---


def test_info_of_all(tmp_path: Path) -> None:
    """The ratio of a field is that of all its rows, whatever codecs they have."""
    for name, codec in (("a", "zlib"), ("b", "raw"), ("c", "zlib:9")):
        with Writer(tmp_path / f"{name}.cks", codec={"x": codec}) as writer:
            writer.add({"x": np.zeros(1000, np.uint8)})
    x = json.loads(run("info", tmp_path, "--json").stdout)["fields"][0]
    parts = [json.loads(run("info", path, "--json").stdout)["fields"][0] for path in tmp_path.iterdir()]
    assert x["nbytes"] == sum(part["nbytes"] for part in parts)
    assert x["ratio"] == 3000 / x["nbytes"]
    assert x["num_extents"] == 3
    assert f"{x['ratio']:.2f}        3" in run("info", tmp_path).stdout


def test_reads_as_one(ds: Containers) -> None:
    """Single samples, batches, slices, masks and iteration give what was written, at the positions of all."""
    wanted = [sample(number) for number in range(len(ds))]
    picks = np.random.default_rng(0).integers(-len(ds), len(ds), 300)
    for _ in range(2):  # what is proven is read in another way
        for name in FIELDS:
            found = ds.batch(picks)[name]
            for place, pick in enumerate(picks.tolist()):
                check(found[place], np.asarray(wanted[pick][name]) if name != "text" else wanted[pick][name])
    for where in (slice(3, 100), slice(None), slice(180, 2, -7), slice(44, 44), slice(46, 47)):
        for name, rows in ds[where].items():
            expected = [each[name] for each in wanted[where]]
            assert len(rows) == len(expected)
            for row, value in zip(rows, expected, strict=True):
                check(np.asarray(row) if name != "text" else row, np.asarray(value) if name != "text" else value)
    mask = np.arange(len(ds)) % 5 == 0
    assert ds[mask]["label"].tolist() == np.flatnonzero(mask).tolist()
    assert [int(each["label"]) for each in ds] == list(range(len(ds)))
    for position in (0, 4, 5, 44, 45, 46, -1):
        for name, value in ds[position].items():
            check(value, np.asarray(wanted[position][name]) if name != "text" else wanted[position][name])


def test_columns(ds: Containers) -> None:
    """A column is the rows of all containers, one after another, read-only."""
    labels = ds.column("label")
    assert isinstance(labels, np.ndarray)
    assert labels.tolist() == list(range(len(ds)))
    assert not labels.flags.writeable
    for name in ("wave", "grid", "text"):
        column = ds.column(name)
        assert isinstance(column, Ragged)
        for number, row in enumerate(column):
            check(row, sample(number)[name])


def test_out_and_fields(ds: Containers) -> None:
    """`out=` is filled in place, chosen fields alone are read, and what is wrong is refused as of one container."""
    out = {"image": np.empty((3, 16, 16), np.uint8), "wave": np.empty((30, 2), np.float32)}
    found = ds.batch([182, 0, 50], fields=["image", "wave"], out=out)
    assert found["image"] is out["image"]
    check(out["image"][0], sample(182)["image"])
    rows = found["wave"]
    assert isinstance(rows, Ragged)
    assert np.shares_memory(rows.values, out["wave"])
    with pytest.raises(IndexError, match="183 samples"):
        ds.batch([0, 183])
    with pytest.raises(ValueError, match="no field 'x'"):
        ds.batch([0], fields=["x"])
    assert [len(rows) for rows in ds.batch([]).values()] == [0] * 5
    ds.prefetch([0, 100, 182])


def test_selection(ds: Containers) -> None:
    """A selection reads by positions of all containers, finds keys, and can be selected from."""
    part = ds.select([182, 3, 50, 3])
    assert part.batch([0, 3])["label"].tolist() == [182, 3]
    assert part.find(["k50"]).tolist() == [2]
    assert part.select([1])[0]["label"] == 3
    assert part.keys == ["k182", "k3", "k50", "k3"]
    again = pickle.loads(pickle.dumps(part))
    assert again[0]["label"] == 182


def test_all_are_empty(tmp_path: Path) -> None:
    """Containers without samples make a data set without samples."""
    build(tmp_path / "none", (0, 0))
    for backend in BACKENDS:
        with chunkstore.open(tmp_path / "none", backend=backend) as ds:  # type: ignore[arg-type]
            assert len(ds) == 0
            assert list(ds) == []
            assert all(len(rows) == 0 for rows in ds[:].values())
            assert all(len(ds.column(name)) == 0 for name in FIELDS)
            with pytest.raises(IndexError):
                ds[0]


def test_one_with_samples_among_empty_ones(tmp_path: Path) -> None:
    """Whatever one run of bytes may spare, it is read as many."""
    build(tmp_path / "few", (0, 7, 0))
    for backend in BACKENDS:
        with chunkstore.open(tmp_path / "few", backend=backend) as ds:  # type: ignore[arg-type]
            for _ in range(3):
                assert ds[:]["label"].tolist() == list(range(7))
                assert ds.column("label").tolist() == list(range(7))
                assert ds.batch([6, 2])["image"][1].tobytes() == sample(2)["image"].tobytes()


@given(data=st.data())
@settings(max_examples=25)
def test_equals_the_containers_one_after_another(data: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any schema, any numbers of samples, both back ends, all modes: as NumPy puts single readers together."""
    fields = data.draw(strategies.fields(3))
    counts = data.draw(st.lists(st.integers(0, 8), min_size=2, max_size=10))
    backend, verify = data.draw(st.sampled_from(BACKENDS)), data.draw(st.sampled_from(MODES))
    folder = tmp_path_factory.mktemp("any")
    for place, count in enumerate(counts):
        extra: dict[str, Any] = {"shard_nbytes": 64} if place % 2 else {}
        with Writer(folder / f"{place}.cks", fields=fields, **extra) as writer:
            for row in strategies.samples(fields, count, place):
                writer.add(row)
    total = sum(counts)
    positions = data.draw(st.lists(st.integers(0, max(total - 1, 0)), max_size=20 if total else 0))
    parts = [chunkstore.open(folder / f"{place}.cks") for place in range(len(counts))]
    singles = [row for part in parts for row in part]
    with chunkstore.open(folder, backend=backend, verify=verify) as ds:
        assert len(ds) == total
        for _ in range(2):
            _compare(ds.batch(positions), [singles[position] for position in positions], fields)
            low, high = sorted(data.draw(st.tuples(st.integers(0, total), st.integers(0, total))))
            _compare(ds[low:high], singles[low:high], fields)
        _compare({field.name: ds.column(field.name) for field in fields}, singles, fields)
        for position in positions[:5]:
            for name, value in ds[position].items():
                check(value, singles[position][name])
    for part in parts:
        part.close()
    shutil.rmtree(folder)


def _compare(found: Any, rows: list[dict[str, Any]], fields: list[Field]) -> None:
    for field in fields:
        column = found[field.name]
        assert len(column) == len(rows)
        for place, row in enumerate(rows):
            value = column[place, ...] if isinstance(column, np.ndarray) else column[place]
            check(value, row[field.name])


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=60), uniform=st.booleans(), first=st.integers(0, 20))
def test_lookup_equals_a_binary_search(sizes: list[int], uniform: bool, first: int) -> None:
    """The table of buckets finds the same run as `searchsorted`, where runs are equal, empty or of any size."""
    from chunkstore._format.lookup import Lookup

    sizes = [7] * len(sizes) if uniform else sizes
    starts = np.cumsum([first, *sizes])[:-1]
    positions = np.arange(first, first + sum(sizes) + 50)
    assert np.array_equal(Lookup(starts).find(positions), np.searchsorted(starts, positions, "right") - 1)


def test_damage_in_one(tmp_path: Path) -> None:
    """The error names the container, its own position and byte range, and the position of all; others stay readable."""
    paths = build(tmp_path / "data")
    with chunkstore.open(paths[4]) as reader:
        offset, _ = reader._field_index("image").row(100)
    with open(paths[4], "r+b") as file:
        file.seek(offset + 5)
        byte = file.read(1)
        file.seek(offset + 5)
        file.write(bytes([byte[0] ^ 1]))
    bad = 46 + 100
    expected = (
        r"part4.cks: sample \d+ 'k\d+', shard \d+, field 'image', bytes \[.*Sample 0 of .*part4.cks is sample 46 of "
    )
    for backend in BACKENDS:
        for verify in ("once", "always"):
            with chunkstore.open(tmp_path / "data", backend=backend, verify=verify) as ds:  # type: ignore[arg-type]
                reads: list[Any] = [
                    lambda: ds[bad],
                    lambda: ds[f"k{bad}"],
                    lambda: ds.batch([0, bad, 180]),
                    lambda: ds[140:150],
                    lambda: ds[:],
                    lambda: ds.column("image"),
                    lambda: ds.select([bad, 1])[0],
                    lambda: list(ds),
                    lambda: ds._prove("image"),
                    lambda: ds._prove("image", np.array([bad])),
                ]
                for read in reads:
                    with pytest.raises(CorruptError, match=expected):
                        read()
                good = np.flatnonzero(abs(np.arange(len(ds)) - bad) > 20)
                assert ds.batch(good)["label"].tolist() == good.tolist()
                assert ds.batch([bad], fields=["label"])["label"].tolist() == [bad]


def test_damaged_index_of_one(tmp_path: Path) -> None:
    """A damaged section is found where it is needed, and named with its container."""
    from damaged import Damaged

    good, bad = Damaged(tmp_path / "a.cks").build(30), Damaged(tmp_path / "b.cks").build(30)
    bad.corrupt("OFFSETS", 40, 8, field="wave")
    with chunkstore.open([good.path, bad.path], verify="off") as ds:
        with pytest.raises(CorruptError, match=r"b.cks: index section OFFSETS of field 3"):
            ds.batch([3, 33], fields=["wave"])
        assert len(ds.batch([3, 4], fields=["wave"])["wave"]) == 2
        assert ds.batch([3, 33], fields=["label"])["label"].tolist() == [3, 3]
