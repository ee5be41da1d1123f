"""Several containers as one in other processes, over time, and behind codecs and adapters."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_many import BACKENDS, MODES, append, build, check, sample

import chunkstore
from chunkstore import ClosedError, Containers, CorruptError, ReplacedError, TruncatedError
from chunkstore._read import many

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))  # not a package

from _vectors.builder import Column, converted

VECTORS = Path(__file__).resolve().parent.parent / "spec" / "vectors" / "valid"


def labels(source: Any, positions: list[int]) -> list[int]:
    """What a child process reads."""
    reader = pickle.loads(source) if isinstance(source, bytes) else source
    found: list[int] = reader.batch(positions)["label"].tolist()
    return found


# --- processes ---


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_other_processes(tmp_path: Path, method: str) -> None:
    """A child reads what it was given, by pickle or over a fork; the state is bounded by the number of containers."""
    build(tmp_path / "data")
    with chunkstore.open(tmp_path / "data") as ds:
        ds.batch([0, 100])
        state = pickle.dumps(ds)
        assert len(state) < 300 * 6 + 500
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.apply(labels, (state, [182, 0, 46])) == [182, 0, 46]


def test_pickled_generation(tmp_path: Path) -> None:
    """An unpickled one reads the generations of its time, whatever was appended meanwhile."""
    paths = build(tmp_path / "data")
    with chunkstore.open(tmp_path / "data") as ds:
        state = pickle.dumps(ds)
    append(paths[0], 1000, 3)
    again = pickle.loads(state)
    assert len(again) == 183
    assert again[5]["label"] == 5
    assert again.refresh()
    assert (len(again), int(again[5]["label"]), int(again[8]["label"])) == (186, 1000, 5)
    again.close()


# --- time ---


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("verify", MODES)
def test_refresh(tmp_path: Path, backend: Any, verify: Any) -> None:
    """Each container moves to its newest generation; arrays and selections of before keep their meaning."""
    paths = build(tmp_path / "data")
    with chunkstore.open(tmp_path / "data", backend=backend, verify=verify) as ds:
        ds.batch(range(183)[::-1])
        assert not ds.refresh()
        chosen = ds.select([5, 182])
        append(paths[1], 1000, 4)  # which was empty
        append(paths[4], 2000, 2)
        assert ds.refresh()
        assert not ds.refresh()
        wanted = [*range(5), *range(1000, 1004), *range(5, 176), 2000, 2001, *range(176, 183)]
        assert ds.column("label").tolist() == wanted
        for position in (4, 5, 8, 9, 180, 182, -1):
            for name, value in sample(wanted[position]).items():
                check(ds.batch([0, position])[name][1], np.asarray(value) if name != "text" else value)
        assert ds.find(["k1002", "k182"]).tolist() == [7, 188]
        assert chosen.batch([0, 1])["label"].tolist() == [5, 182]
        assert ds.generation == 8


def test_refresh_keeps_what_was_proven(tmp_path: Path) -> None:
    """Chunks that were proven before, of containers that moved in the numbering too, are not proven again."""
    paths = build(tmp_path / "data")
    with chunkstore.open(tmp_path / "data", verify="once") as ds:
        ds.column("image")
        append(paths[0], 1000, 2)
        ds.refresh()
        checker: Any = ds._opened.rows["image"].checker
        assert len(checker.flags) - int(checker.flags.sum()) == 1  # the group of the two new rows


def test_refresh_while_a_field_is_first_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may read one more field of the old generation meanwhile."""
    paths = build(tmp_path / "data")
    with chunkstore.open(tmp_path / "data") as ds:
        ds.column("image")
        append(paths[0], 1000, 2)
        before, resume = ds._opened, many._resume

        def and_another(*arguments: Any) -> None:
            before.field("label")
            resume(*arguments)

        monkeypatch.setattr(many, "_resume", and_another)
        assert ds.refresh()
        assert ds[5]["label"] == 1000


def test_refresh_is_all_or_none(tmp_path: Path) -> None:
    """Where one container was replaced, none moves, and nothing stays open."""
    paths = build(tmp_path / "data")
    with chunkstore.open(tmp_path / "data") as ds:
        before = len(os.listdir("/proc/self/fd"))
        append(paths[0], 1000, 2)
        shutil.copy(paths[2], tmp_path / "copy")
        os.replace(tmp_path / "copy", paths[2])
        with pytest.raises(ReplacedError, match=r"part2.cks"):
            ds.refresh()
        assert len(ds) == 183
        assert ds[5]["label"] == 5
        assert len(os.listdir("/proc/self/fd")) == before


def test_closed(tmp_path: Path) -> None:
    """After close every use is an error, of selections as well; arrays stay; all descriptors are let go."""
    build(tmp_path / "data")
    before = len(os.listdir("/proc/self/fd"))
    for backend in BACKENDS:
        ds = chunkstore.open(tmp_path / "data", backend=backend)  # type: ignore[arg-type]
        image, chosen = ds[100]["image"], ds.select([1, 2])
        ds.close()
        for use in (lambda ds=ds: ds[0], lambda ds=ds: ds.refresh(), lambda ds=ds: pickle.dumps(ds),
                    lambda chosen=chosen: chosen.batch([0])):  # fmt: skip
            with pytest.raises(ClosedError):
                use()
        assert "closed" in repr(ds)
        check(np.array(image), sample(100)["image"])
        del image, chosen, ds
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_truncated_under_the_reader(tmp_path: Path, backend: Any) -> None:
    """A file that was cut off is an error that names it; at the latest after a pause of milliseconds."""
    paths = build(tmp_path / "data")
    with chunkstore.open(tmp_path / "data", backend=backend) as ds:
        ds.batch([0, 100])
        os.truncate(paths[4], 4096)
        ds._source._next_look = 0  # type: ignore[attr-defined] # the pause
        with pytest.raises(TruncatedError, match=r"part4.cks"):
            ds.batch([0, 100], fields=["image"])


# --- codecs ---


def coded(path: Path, first: int, count: int, codec: str) -> str:
    """`x` (fixed) and `s` (two dimensions vary) behind a codec, and `label`."""
    numbers = range(first, first + count)
    columns = [
        Column("x", "uint8", [40], [np.full(40, number, np.uint8) for number in numbers], codec),
        Column(
            "s",
            "uint8",
            [None, None],
            [np.full((number % 3, number % 4), number, np.uint8) for number in numbers],
            codec,
        ),
        Column("label", "int64", [], [np.int64(number) for number in numbers]),
    ]
    path.write_bytes(converted(columns, [(0, count // 2), (count // 2, count)]).data)
    return str(path)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("verify", MODES)
@pytest.mark.parametrize("codecs", [("zlib", "zlib", "zlib"), ("zlib", "raw", "zlib")], ids=["same", "various"])
def test_codecs(tmp_path: Path, backend: Any, verify: Any, codecs: tuple[str, ...]) -> None:
    """Containers with the same or with other codecs read as one, in every way of reading."""
    paths = [coded(tmp_path / f"{place}.cks", 10 * place, 10, codec) for place, codec in enumerate(codecs)]
    with chunkstore.open(paths, backend=backend, verify=verify) as ds:
        assert ds.fields["x"].codec == ("zlib" if len(set(codecs)) == 1 else "various")
        picks = np.random.default_rng(0).integers(0, 30, 50)
        out = {"x": np.empty((50, 40), np.uint8), "s": np.empty(400, np.uint8)}
        for found, numbers in ((ds.batch(picks), picks), (ds.batch(picks, out=out), picks), (ds[5:25], range(5, 25))):
            for place, number in enumerate(numbers):
                assert found["x"][place].tolist() == [number] * 40
                assert found["s"][place].shape == (number % 3, number % 4)
                assert (found["s"][place] == number).all()
        assert ds[17]["x"].tolist() == [17] * 40
        assert ds[17]["s"].shape == (2, 1)
        assert ds.column("x")[:, 0].tolist() == list(range(30))
        assert [len(row) for row in ds.column("s")] == [number % 3 for number in range(30)]
        assert ds._field_index("s").shape(17) == (2, 1)
        ds.prefetch(picks)
        ds._prove("x")
        assert not ds.refresh()


def test_damage_behind_various_codecs(tmp_path: Path) -> None:
    """The container with the damage is named, by its own position."""
    paths = [coded(tmp_path / f"{place}.cks", 10 * place, 10, codec) for place, codec in enumerate(("zlib", "raw"))]
    with chunkstore.open(paths[1]) as part:
        offset, _ = part._field_index("x").row(7)
    data = bytearray(Path(paths[1]).read_bytes())
    data[offset] ^= 1
    Path(paths[1]).write_bytes(data)
    with chunkstore.open(paths) as ds:
        with pytest.raises(CorruptError, match=r"1.cks: sample \d, shard 1, field 'x'"):
            ds.batch([3, 17])
        assert ds.batch([3, 12])["x"][:, 0].tolist() == [3, 12]


def _readable(path: Path) -> bool:
    return path.stem != "unknown-codec"


@pytest.mark.parametrize("path", [*filter(_readable, sorted(VECTORS.glob("*.cks")))], ids=lambda path: path.stem)
def test_every_vector_twice(path: Path) -> None:
    """Each valid container of the specification, twice in one data set, reads as itself two times."""
    with chunkstore.open(path) as one, chunkstore.open([path, path]) as ds:
        total = len(one)
        assert len(ds) == 2 * total
        singles = [*one, *one]
        for backward in (False, True):
            order = range(2 * total)[::-1] if backward else range(2 * total)
            for name, rows in ds.batch(list(order)).items():
                for place, position in enumerate(order):
                    row = rows[place, ...] if isinstance(rows, np.ndarray) else rows[place]
                    check(row, singles[position][name])
        if one.keys is not None:
            assert ds.keys is not None
            assert list(ds.keys) == [*one.keys, *one.keys]


# --- adapters ---


def test_torch_order_is_that_of_the_merged_container(tmp_path: Path) -> None:
    """The loaders give the batches that they give of one container of the same content."""
    torch = pytest.importorskip("torch")
    from chunkstore.torch import BatchSampler, Dataset, Loader

    paths = build(tmp_path / "data", names=["image", "label", "wave"])
    chunkstore.merge(paths, tmp_path / "all.cks")
    for shuffle in (True, "block"):
        options: Any = {"shuffle": shuffle, "seed": 3, "block_size": 16 if shuffle == "block" else None}
        with Loader(tmp_path / "data", 20, **options) as many, Loader(tmp_path / "all.cks", 20, **options) as one:
            for mine, theirs in zip(many, one, strict=True):
                assert torch.equal(mine["image"], theirs["image"])
                assert torch.equal(mine["wave"].values, theirs["wave"].values)
    dataset = Dataset(paths)
    sampler = BatchSampler(dataset, 20, shuffle="block", window=2)
    loader = torch.utils.data.DataLoader(dataset, batch_sampler=sampler, num_workers=2)
    assert sorted(int(label) for batch in loader for label in batch["label"]) == list(range(183))
    assert sampler.state_dict()["fingerprint"] == chunkstore.open(paths).fingerprint
    dataset.close()
    assert int(dataset[46]["label"]) == 46


@pytest.mark.parametrize("engine", ["auto", "numpy"])
def test_tf_dataset(tmp_path: Path, engine: str) -> None:
    """`chunkstore.tf.dataset` gives the batches of one container of the same content."""
    pytest.importorskip("tensorflow")
    from chunkstore.tf import dataset

    paths = build(tmp_path / "data")
    chunkstore.merge(paths, tmp_path / "all.cks")
    options: Any = {"shuffle": True, "seed": 3, "engine": engine}
    for mine, theirs in zip(dataset(paths, 20, **options), dataset(tmp_path / "all.cks", 20, **options), strict=True):
        for name in mine:
            left, right = mine[name], theirs[name]
            assert left.to_list() == right.to_list() if hasattr(left, "to_list") else np.array_equal(left, right)


def test_refresh_leaves_orders_that_were_made(tmp_path: Path) -> None:
    """An epoch has each sample of its time once, also where one before the last container grows meanwhile."""
    tf, torch = pytest.importorskip("tensorflow"), pytest.importorskip("torch")
    from chunkstore import grain
    from chunkstore.tf import dataset
    from chunkstore.torch import BatchSampler, Dataset, Loader

    paths = build(tmp_path / "data")
    with chunkstore.open(tmp_path / "data") as ds:
        options: dict[str, Any] = {"shuffle": True, "seed": 5}
        samples = Dataset(ds, fields=["label"])
        plain = torch.utils.data.DataLoader(samples, batch_sampler=BatchSampler(ds, 8, **options))
        batches = grain.batch_source(ds, 8, **options)
        tensors = iter(dataset(ds, 8, fields=["label"], prefetch=0, **options))
        with Loader(ds, 8, fields=["label"], prefetch=0, **options) as loader:
            iterator = iter(loader)
            found = [next(iterator)["label"].tolist()]
            append(paths[0], 1000, 20)
            assert ds.refresh()
            found += [batch["label"].tolist() for batch in iterator]
        assert sorted(label for batch in found for label in batch) == list(range(183))
        assert [batch["label"].tolist() for batch in plain] == found
        assert [batch["label"].tolist() for batch in batches] == found
        assert [tf.get_static_value(batch["label"]).tolist() for batch in tensors] == found
        assert (len(samples), len(Dataset(ds))) == (183, 203)


def test_grain_and_jax(tmp_path: Path) -> None:
    """The other adapters take several containers as one."""
    from chunkstore.grain import batch_source, source

    paths = build(tmp_path / "data", names=["image", "label"])
    samples = source(paths)
    assert (len(samples), int(samples[46]["label"])) == (183, 46)
    batches = batch_source(tmp_path / "data", 20, shuffle="block", window=2)
    assert sorted(int(label) for i in range(len(batches)) for label in batches[i]["label"]) == list(range(183))
    pytest.importorskip("jax")
    from chunkstore.jax import batch, column

    with chunkstore.open(paths) as ds:
        assert isinstance(ds, Containers)
        assert column(ds, "label").tolist() == list(range(183))
        assert batch(ds, [46, 0], fields=["label"])["label"].tolist() == [46, 0]
