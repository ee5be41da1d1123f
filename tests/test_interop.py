"""Columns in other libraries: the array protocols; `chunkstore.jax` and `chunkstore.grain` with the real packages."""

from __future__ import annotations

import itertools
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chunkstore

N = 100


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("interop") / "x.cks"
    fields: Any = {"image": ("uint8", (8, 8)), "label": "int64", "wave": ("float32", (None,)), "text": "string"}
    with chunkstore.Writer(path, fields=fields, num_samples=N) as writer:
        for number in range(N):
            image = np.full((8, 8), number, np.uint8)
            writer.add({"image": image, "label": number, "wave": np.ones(number % 3, np.float32), "text": str(number)})
    return str(path)


# --- protocols ---


def test_columns_speak_array_and_dlpack(path: str) -> None:
    """`np.asarray` and `np.from_dlpack` take a column without a copy, read-only as it is."""
    column = chunkstore.open(path).column("image")
    assert np.shares_memory(np.asarray(column), column)
    taken = np.from_dlpack(column)
    assert np.shares_memory(taken, column)
    assert not taken.flags.writeable


def test_texts_speak_array(path: str) -> None:
    """A column of texts is an array of them."""
    texts = np.asarray(chunkstore.open(path).column("text"))
    assert texts[7] == "7"
    assert texts.shape == (N,)


# --- Grain: the protocol needs no Grain ---


def test_grain_source_without_grain(path: str) -> None:
    """Samples own their memory, pickle small, and say which container they are of."""
    from chunkstore.grain import source

    made = source(path, fields=["image", "label", "text"])
    sample = made[3]
    sample["image"] += 1
    assert sample["image"][0, 0] == 4
    assert len(made) == N
    assert sample["text"] == "3"
    many = made._getitems([5, 2])
    assert [int(row["label"]) for row in many] == [5, 2]
    copy = pickle.loads(pickle.dumps(made))
    assert repr(copy) == repr(made)
    assert chunkstore.open(path).fingerprint in repr(made)
    assert np.array_equal(copy[3]["image"], chunkstore.open(path)[3]["image"])


def test_grain_texts_keep_their_dtype(tmp_path: Path) -> None:
    """Texts of fixed width that are shorter than it, read one by one and many at a time."""
    from chunkstore.grain import source

    fields: Any = {"name": "utf32[5]", "code": "bytes[4]"}
    with chunkstore.Writer(tmp_path / "a.cks", fields=fields) as writer:
        for text in ("ab", "", "abcd"):
            writer.add({"name": text, "code": text.encode()})
    made = source(tmp_path / "a.cks")
    for place, sample in enumerate(made._getitems([0, 1, 2])):
        for name, dtype in (("name", "<U5"), ("code", "S4")):
            assert sample[name].dtype == made[place][name].dtype == dtype
            assert sample[name] == made[place][name]


def test_grain_batch_source_without_grain(path: str) -> None:
    """The batches of `Order`, on each rank; errors name the parameter."""
    from chunkstore._loading.order import Order
    from chunkstore.grain import batch_source

    for options in ({}, {"drop_remainder": True}, {"shuffle": True, "shard": (1, 2), "epoch": 3, "seed": 4}):
        made = batch_source(path, 15, **options)
        rank, world_size = options.get("shard", (0, 1))
        order = Order(
            N,
            batch_size=15,
            shuffle=options.get("shuffle", False),
            seed=options.get("seed", 0),
            rank=rank,
            world_size=world_size,
            drop_last=options.get("drop_remainder", False),
        )
        assert len(made) == order.num_batches()
        for step in range(len(made)):
            assert made[step]["label"].tolist() == order.batch(step, options.get("epoch", 0)).tolist()
        with pytest.raises(IndexError):
            made[len(made)]
    assert isinstance(made[0]["wave"], chunkstore.Ragged)
    reader = chunkstore.open(path)
    assert len(batch_source(reader.select(range(20)), 10, shuffle=True)) == 2
    with pytest.raises(ValueError, match="block_size: needed"):
        batch_source(reader.select(range(20)), 10, shuffle="block")
    with pytest.raises(ValueError, match="backend, verify: give them to"):
        batch_source(reader, 10, verify="off")
    with pytest.raises(ValueError, match="fields: give them to"):
        batch_source(reader, 10, fields=["label"])
    with pytest.raises(ValueError, match="shard: expected"):
        batch_source(path, 10, shard=(1,))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="source: expected a path or a Reader"):
        batch_source(3, 10)  # type: ignore[arg-type]
    blocks = [
        repr(batch_source(path, 10, shuffle="block", **options))
        for options in ({"block_size": 5}, {"block_size": 6}, {})
    ]
    blocks += [repr(batch_source(path, 10, shuffle="block", block_size=5, window=2)), repr(batch_source(path, 10))]
    assert len(set(blocks)) == 5  # Grain refuses a state of another order by this text


def test_grain(path: str) -> None:
    """Grain shuffles, batches and iterates over both sources, sees each sample once, and goes on from its state."""
    grain = pytest.importorskip("grain.python")
    from chunkstore.grain import batch_source, source

    made = source(path, fields=["image", "label"])
    assert isinstance(made, grain.RandomAccessDataSource)
    data = grain.MapDataset.source(made).shuffle(seed=7).batch(10)
    labels = np.concatenate([batch["label"] for batch in data])
    assert sorted(labels.tolist()) == list(range(N))
    assert labels.tolist() != list(range(N))
    assert data[0]["image"].shape == (10, 8, 8)
    batches = grain.MapDataset.source(batch_source(path, 10, fields=["label"], shuffle=True))
    iterator = iter(batches.to_iter_dataset())
    first = [next(iterator)["label"].tolist() for _ in range(4)]
    state = iterator.get_state()
    rest = [batch["label"].tolist() for batch in iterator]
    iterator.set_state(state)
    assert [batch["label"].tolist() for batch in iterator] == rest
    assert sorted(itertools.chain(*first, *rest)) == list(range(N))


def test_grain_loader_with_worker_processes(path: str) -> None:
    """A `grain.DataLoader` pickles the source for its workers."""
    grain = pytest.importorskip("grain.python")
    from chunkstore.grain import source

    flags = pytest.importorskip("absl.flags")
    flags.FLAGS.mark_as_parsed()  # an absl program does it in its `main`
    made = source(path, fields=["label"])
    sampler = grain.IndexSampler(N, shard_options=grain.NoSharding(), shuffle=True, num_epochs=1, seed=1)
    loader = grain.DataLoader(data_source=made, sampler=sampler, worker_count=1, operations=[grain.Batch(20)])
    assert sorted(np.concatenate([batch["label"] for batch in loader]).tolist()) == list(range(N))


# --- JAX ---


def test_jax_column_is_the_map(path: str) -> None:
    """A whole field without a copy, good after close; gathered inside jit."""
    jax = pytest.importorskip("jax")
    from chunkstore.jax import column

    reader = chunkstore.open(path)
    images = column(reader, "image")
    exportable = reader._exportable("image")
    assert exportable is not None
    assert images.unsafe_buffer_pointer() == exportable.ctypes.data
    del exportable
    reader.close()
    rows = jax.jit(lambda images, ids: images[ids])(images, np.array([5, 3, 3]))
    assert np.asarray(rows)[:, 0, 0].tolist() == [5, 3, 3]


def test_jax_column_of_64_bits_is_a_copy(path: str) -> None:
    """int64 becomes what JAX makes of it."""
    jax = pytest.importorskip("jax")
    from chunkstore.jax import column

    labels = column(chunkstore.open(path), "label")
    assert labels.dtype == jax.dtypes.canonicalize_dtype(np.int64)
    assert labels.tolist() == list(range(N))


def test_jax_batch(path: str) -> None:
    """Batches as arrays of JAX; ragged and text fields are refused by name."""
    jax = pytest.importorskip("jax")
    from chunkstore.jax import batch, column

    reader = chunkstore.open(path)
    made = batch(reader, [7, 1], fields=["image", "label"])
    assert isinstance(made["image"], jax.Array)
    assert made["image"].shape == (2, 8, 8)
    assert made["label"].tolist() == [7, 1]
    assert batch(reader.select([9, 8]), [1], fields=["label"])["label"].tolist() == [8]
    with pytest.raises(ValueError, match="'wave' has rows that differ in size"):
        batch(reader, [1])
    with pytest.raises(TypeError, match="'text' holds string"):
        batch(reader, [1], fields=["text"])
    with pytest.raises(ValueError, match=r"name: .* has no field 'imag'"):
        column(reader, "imag")
    with pytest.raises(ValueError, match="no field 'imag'"):
        batch(reader, [1], fields=["imag"])
    with pytest.raises(TypeError, match=r"fields: expected a sequence of names, found one text; use \['label'\]"):
        batch(reader, [1], fields="label")
    with pytest.raises(TypeError, match=r"reader: expected a Reader, .*found Selection"):
        column(reader.select([1]), "label")
    with pytest.raises(TypeError, match="reader: expected a Reader or Selection, found str"):
        batch(path, [1])


def test_jax_bfloat16(tmp_path: Path) -> None:
    """bfloat16 has no DLPack in NumPy: a copy, bit for bit."""
    jax = pytest.importorskip("jax")
    from chunkstore.jax import batch, column

    rows = np.arange(64, dtype=np.uint16).reshape(16, 4).view(jax.numpy.bfloat16)
    with chunkstore.Writer(tmp_path / "x.cks", num_samples=16) as writer:
        writer.add_batch({"x": rows})
    reader = chunkstore.open(tmp_path / "x.cks")
    for found in (column(reader, "x"), batch(reader, range(16))["x"]):
        assert found.dtype == jax.numpy.bfloat16
        assert np.asarray(found).tobytes() == rows.tobytes()


def test_jax_is_named_when_it_is_missing(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has the line that installs it."""
    from chunkstore.jax import column

    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(chunkstore.MissingExtraError, match=r"pip install 'chunkstore-arrays\[interop\]'"):
        column(chunkstore.open(path), "image")
