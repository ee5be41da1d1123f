"""`chunkstore.tf.dataset`: tensors, engines, element specs, errors. Order and state: test_tf_order.py."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tf_containers import FIELDS, N, build, build_rows

import chunkstore
from chunkstore._read.ragged import Ragged

tf = pytest.importorskip("tensorflow")

from chunkstore._tf import records  # noqa: E402 - needs TensorFlow
from chunkstore._tf.columns import Column  # noqa: E402
from chunkstore.tf import dataset  # noqa: E402 - needs TensorFlow

FIXED = ["image", "label", "time", "flag"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build(tmp_path_factory.mktemp("tf") / "whole.cks")


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build(tmp_path_factory.mktemp("tf") / "pieces.cks", pieces=True)


def assert_same(tensor: Any, rows: Any) -> None:
    """A tensor of a batch holds what the reader gave, value for value."""
    if isinstance(rows, Ragged) and not rows.text:
        assert isinstance(tensor, tf.RaggedTensor)
        assert tensor.flat_values.numpy().tobytes() == rows.values.tobytes()
        lengths = rows.counts() if rows.shapes is None else rows.shapes[:, 0]
        assert tensor.row_lengths().numpy().tolist() == lengths.tolist()
        for place, row in enumerate(rows):
            if row.size:
                found = tensor[place]
                found = found.to_tensor() if isinstance(found, tf.RaggedTensor) else found
                assert np.array_equal(found.numpy(), row)
        return
    values = np.array(list(rows)) if isinstance(rows, Ragged) else rows
    if values.dtype.kind in "SU":
        flat = [text if isinstance(text, bytes) else text.encode() for text in values.reshape(-1).tolist()]
        assert tensor.dtype == tf.string
        assert tensor.numpy().reshape(-1).tolist() == flat
    else:
        assert np.array_equal(tensor.numpy(), values.view(np.int64) if values.dtype.kind in "mM" else values)
    assert tuple(tensor.shape) == values.shape


@pytest.mark.parametrize("options", [{}, {"engine": "numpy"}, {"backend": "pread"}, {"verify": "off"}])
def test_batches_hold_what_the_reader_gives(path: str, options: dict[str, Any]) -> None:
    """Every dtype, ragged rows, texts and empty rows, by each way of reading."""
    reader = chunkstore.open(path)
    made = dataset(path, 32, shuffle=True, seed=5, **options)
    seen = []
    for batch in made:
        ids = batch["label"].numpy()
        want = reader.batch(ids)
        assert list(batch) == list(FIELDS)
        for name in FIELDS:
            assert_same(batch[name], want[name])
        seen += ids.tolist()
    assert sorted(seen) == list(range(N))


def test_streamed_container(pieces: str) -> None:
    """A container of many extents is read by NumPy, with the same result."""
    reader = chunkstore.open(pieces)
    for batch in dataset(pieces, 50, shuffle="block"):
        for name, rows in reader.batch(batch["label"].numpy()).items():
            assert_same(batch[name], rows)


def test_selection(path: str) -> None:
    """Ids count within a selection, by both engines."""
    reader = chunkstore.open(path)
    chosen = reader.select(range(150, 10, -7))
    for engine in ("auto", "numpy"):
        batches = list(dataset(chosen, 8, engine=engine))
        assert np.concatenate([batch["label"] for batch in batches]).tolist() == list(range(150, 10, -7))
        assert_same(batches[1]["wave"], chosen.batch(range(8, 16))["wave"])


def test_single_samples_have_their_own_shape(path: str) -> None:
    """batch_size=None: rows of a ragged field differ in shape, as `Reader` gives them; no RaggedTensor."""
    reader = chunkstore.open(path)
    made = dataset(path, shuffle=True)
    assert made.element_spec["grid"] == tf.TensorSpec((None, None, 2), tf.int16)
    assert made.element_spec["image"] == tf.TensorSpec((6, 5), tf.uint8)
    assert made.cardinality() == N
    for sample in made.take(60):
        want = reader[int(sample["label"])]
        for name in ("image", "wave", "grid", "flag"):
            assert np.array_equal(sample[name].numpy(), want[name])
            assert tuple(sample[name].shape) == want[name].shape
        assert sample["text"].numpy().decode() == want["text"]


def test_padded(path: str) -> None:
    """ragged="pad": as `Ragged.pad` has it, with the chosen value."""
    reader = chunkstore.open(path)
    for batch in dataset(path, 50, fields=["label", "wave", "grid"], ragged="pad", pad_value=-1):
        want = reader.batch(batch["label"].numpy())
        for name in ("wave", "grid"):
            assert np.array_equal(batch[name].numpy(), want[name].pad(-1))


def test_works_with_padded_batch_map_cache(path: str) -> None:
    """Single samples pad with TensorFlow's own `padded_batch`; `map` and `cache` see them as any others."""
    made = dataset(path, fields=["wave", "label"]).map(lambda sample: (sample["wave"] * 2, sample["label"]))
    made = made.cache().padded_batch(10)
    first = next(iter(made))
    assert first[0].shape == (10, 3, 3)
    assert [len(list(made)) for _ in range(2)] == [21, 21]


def slow(tensor: Any) -> Any:
    """In the graph: the same tensor, a little later."""

    def wait(array: Any) -> Any:
        time.sleep(0.003)
        return array

    same = tf.numpy_function(wait, [tensor], tensor.dtype, stateful=False)
    same.set_shape(tensor.shape)
    return same


@pytest.fixture
def slow_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each engine takes some time for a batch, or for two single samples."""
    sized, assembled, decoded = Column.sized, Column.assembled, records._decoded
    monkeypatch.setattr(Column, "sized", lambda self, rows, num: slow(sized(self, rows, num)))
    monkeypatch.setattr(Column, "assembled", lambda self, rows, num: slow(assembled(self, rows, num)))
    monkeypatch.setattr(records, "_decoded", lambda columns, parts: decoded(columns, [slow(part) for part in parts]))
    monkeypatch.setattr("chunkstore._tf.dataset._UNBATCHED_SAMPLES", 2)


@pytest.mark.usefixtures("slow_rows")
@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("engine", ["gather", "numpy", "fixed_length"])
def test_cache_of_an_iterator_given_up_is_not_cut_short(tmp_path: Path, engine: str, batch_size: int | None) -> None:
    """`next(iter(...))` over a cache: later epochs have every sample, whatever was on its way when it was given up."""
    path = build_rows(tmp_path / "x.cks", np.arange(60))
    made = dataset(path, batch_size, engine=engine)
    for _ in range(6):
        cached = made.cache().batch(5)
        next(iter(cached))
        seen = [np.ravel(batch["x"]) for batch in cached]
        assert np.concatenate(seen).tolist() == list(range(60))


@pytest.mark.parametrize("engine", ["gather", "numpy", "fixed_length"])
def test_nothing_is_made_ahead_by_prefetch(path: str, engine: str) -> None:
    """No PrefetchDataset is in the graph: it is what cuts a cache short."""
    for batch_size in (None, 16):
        made = dataset(path, batch_size, fields=["image", "label"], engine=engine, shuffle=engine != "fixed_length")
        variant = tf.data.experimental.to_variant(made)
        graph = tf.raw_ops.DatasetToGraphV2(input_dataset=variant, external_state_policy=1).numpy()
        assert graph.count(b"ParallelMapDataset") > 0
        assert graph.count(b"PrefetchDataset") == 0


def test_element_spec_and_cardinality_are_static(path: str) -> None:
    """Known before anything is read; the batch dimension too where batches are equal."""
    made = dataset(path, 32)
    assert made.element_spec["image"] == tf.TensorSpec((None, 6, 5), tf.uint8)
    assert made.element_spec["wave"] == tf.RaggedTensorSpec((None, None, 3), tf.float32, 1, tf.int64)
    assert made.element_spec["grid"] == tf.RaggedTensorSpec((None, None, None, 2), tf.int16, 2, tf.int64)
    assert made.element_spec["text"] == tf.TensorSpec((None,), tf.string)
    assert made.element_spec["code"] == tf.TensorSpec((None, 2), tf.string)
    assert made.cardinality() == 7
    full = dataset(path, 32, drop_remainder=True)
    assert full.element_spec["image"] == tf.TensorSpec((32, 6, 5), tf.uint8)
    assert full.element_spec["wave"].shape.as_list() == [32, None, 3]
    assert full.cardinality() == 6 == len(list(full))
    assert dataset(path, 32, repeat=3).cardinality() == 21
    assert dataset(path, 32, repeat=True).cardinality() == tf.data.INFINITE_CARDINALITY


@pytest.mark.parametrize("engine", ["gather", "numpy", "fixed_length"])
@pytest.mark.parametrize("repeat", [False, 2, True])
def test_an_epoch_without_batches_is_empty_however_often(tmp_path: Path, engine: str, repeat: bool | int) -> None:
    """Fewer samples than one batch, and the rest left out: nothing, instead of an error or no end."""
    path = build_rows(tmp_path / "few.cks", np.arange(3))
    made = dataset(path, 4, drop_remainder=True, engine=engine, repeat=repeat)
    assert made.cardinality() == 0 == len(list(made))


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("num_samples", [0, 1])
def test_tiny(tmp_path: Path, num_samples: int, batch_size: int | None) -> None:
    """No sample, and one: the same element spec, and no batch or one."""
    made = dataset(build(tmp_path / "tiny.cks", num_samples), batch_size, shuffle=True, repeat=2)
    assert made.cardinality() == 2 * num_samples == len(list(made))
    assert made.element_spec["image"].shape.as_list()[-2:] == [6, 5]


def test_rows_without_bytes(tmp_path: Path) -> None:
    """Rows of shape (0, 3)."""
    path = build_rows(tmp_path / "empty.cks", np.empty((5, 0, 3), np.float32))
    assert [batch["x"].shape for batch in dataset(path, 4)] == [(4, 0, 3), (1, 0, 3)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bytes[3]", "datetime64[s]"])
def test_single_samples_without_bytes(tmp_path: Path, dtype: str) -> None:
    """TensorFlow's own `unbatch` ends the process on them, by a signal."""
    with chunkstore.Writer(tmp_path / "empty.cks", fields={"x": (dtype, (2, 0)), "i": "int64"}) as writer:
        for number in range(5):
            writer.add({"x": np.zeros((2, 0), chunkstore.Field("x", dtype).numpy_dtype), "i": number})
    made = dataset(tmp_path / "empty.cks")
    assert made.element_spec["x"].shape == (2, 0)
    assert [(sample["x"].shape, sample["x"].dtype, int(sample["i"])) for sample in made] == [
        ((2, 0), made.element_spec["x"].dtype, number) for number in range(5)
    ]


DTYPES = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
DTYPES += ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]


@pytest.mark.parametrize("name", DTYPES)
def test_dtypes(tmp_path: Path, name: str) -> None:
    """Each dtype is the same in TensorFlow, by every engine, bit for bit."""
    dtype = tf.as_dtype(name)
    bits = np.random.default_rng(0).integers(0, 2, (20, 7 * dtype.size), np.uint8)
    rows = bits.view(dtype.as_numpy_dtype).reshape(20, 7)
    path = build_rows(tmp_path / "x.cks", rows, name)
    for engine in ("gather", "numpy", "fixed_length"):
        batches = list(dataset(path, 8, engine=engine))
        assert batches[0]["x"].dtype == dtype
        assert b"".join(batch["x"].numpy().tobytes() for batch in batches) == rows.tobytes()


def test_float8(tmp_path: Path) -> None:
    """float8 comes as what TensorFlow has; what its tf.data cannot run is a TypeError that names fields=."""
    bits = np.arange(64, dtype=np.uint8).reshape(16, 4)
    ml_dtypes = pytest.importorskip("ml_dtypes")
    good = build_rows(tmp_path / "good.cks", bits.view(ml_dtypes.float8_e4m3fn), "float8_e4m3fn")
    batch = next(iter(dataset(good, 16)))
    assert batch["x"].dtype.name == "float8_e4m3fn"
    assert batch["x"].numpy().tobytes() == bits.tobytes()
    bad = build_rows(tmp_path / "bad.cks", bits.view(ml_dtypes.float8_e8m0fnu), "float8_e8m0fnu")
    with pytest.raises(TypeError, match=r"float8_e8m0fnu, which tf.data .* leave it out with fields=\[\]"):
        dataset(bad, 16)
    ragged = tmp_path / "ragged.cks"
    with chunkstore.Writer(ragged, fields={"x": ("float8_e4m3fn", (None,))}) as writer:
        for place in range(5):
            writer.add({"x": bits.view(ml_dtypes.float8_e4m3fn)[place, :place]})
    assert next(iter(dataset(ragged, 5, ragged="pad")))["x"].shape == (5, 4)
    with pytest.raises(TypeError, match="cannot carry as a RaggedTensor; leave it out"):
        dataset(ragged, 5)
    with pytest.raises(TypeError, match="cannot carry one by one; leave it out"):
        dataset(good, None)


def test_gather_is_on_the_map(path: str) -> None:
    """engine="gather" takes no copy of the file, and refuses what it cannot gather."""
    reader = chunkstore.open(path)
    made = dataset(reader, 16, fields=[*FIXED, "wave"], engine="gather", shuffle=True)
    ids = next(iter(made))["label"].numpy()
    assert sorted(ids.tolist()) != list(range(16))
    with pytest.raises(
        ValueError, match=r"engine: .*'text' cannot be gathered .* becomes tf.string; use engine='auto'"
    ):
        dataset(reader, 16, engine="gather", fields=["image", "text"])
    with pytest.raises(ValueError, match=r"'grid' cannot be gathered .* more than one dimension varies"):
        dataset(reader, 16, engine="gather", fields=["grid"])
    with pytest.raises(ValueError, match="read by pread"):
        dataset(path, 16, engine="gather", fields=["image"], backend="pread")


def test_gather_refuses_extents(pieces: str) -> None:
    """A streamed container has no one array; the message says what makes one."""
    with pytest.raises(ValueError, match=r"not one extent \(repack makes it one\)"):
        dataset(pieces, 16, engine="gather", fields=["image"])


def test_misaligned_map_is_not_imported(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow would abort the process on memory that is not aligned to 64 bytes: NumPy reads it instead."""
    reader = chunkstore.open(path)

    def exportable(self: Any, name: str) -> Any:
        memory = np.zeros(N * 30 + 128, np.uint8)
        start = -memory.ctypes.data % 64 + 8
        return memory[start : start + N * 30].reshape(N, 6, 5)

    monkeypatch.setattr(type(reader), "_exportable", exportable)
    batch = next(iter(dataset(reader, 16, fields=["image"])))
    assert np.array_equal(batch["image"], reader.batch(range(16))["image"])
    with pytest.raises(ValueError, match="not aligned to 64"):
        dataset(reader, 16, fields=["image"], engine="gather")


def test_fixed_length(path: str) -> None:
    """In order, sharded and repeated, with a graph that holds no Python function."""
    reader = chunkstore.open(path)
    for rank in range(3):
        made = dataset(path, 20, fields=FIXED, engine="fixed_length", shard=(rank, 3), repeat=2)
        plain = dataset(path, 20, fields=FIXED, shard=(rank, 3), repeat=2)
        assert made.cardinality() == plain.cardinality()
        for batch, other in zip(made, plain, strict=True):
            assert batch["label"].numpy().tolist() == other["label"].numpy().tolist()
            assert_same(batch["image"], reader.batch(batch["label"].numpy())["image"])
    variant = tf.data.experimental.to_variant(dataset(path, 20, fields=FIXED, engine="fixed_length"))
    graph = tf.raw_ops.DatasetToGraphV2(input_dataset=variant).numpy()
    assert b"FixedLengthRecord" in graph
    assert b"PyFunc" not in graph
    assert [int(sample["label"]) for sample in dataset(path, fields=FIXED, engine="fixed_length").take(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"shuffle": True}, "reads a whole container in order"),
        ({"pad": "full"}, "has no pad"),
        ({"fields": ["wave"]}, "'wave' .* is not rows of equal size"),
        ({"fields": ["text"]}, "'text' .* is not rows of equal size"),
    ],
)
def test_fixed_length_refuses(path: str, options: dict[str, Any], match: str) -> None:
    """What it cannot do is said, with the engine that can."""
    with pytest.raises(ValueError, match=f"engine: .*{match}"):
        dataset(path, 8, engine="fixed_length", **{"fields": FIXED, **options})


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"fields": ["imag"]}, ValueError, "no field 'imag'"),
        ({"fields": "image"}, TypeError, r"use \['image'\]"),
        ({"fields": []}, ValueError, "fields: expected at least one"),
        ({"batch_size": 0}, ValueError, "batch_size: expected 1"),
        ({"batch_size": 2.5}, TypeError, "batch_size: expected an integer"),
        ({"shuffle": "yes"}, ValueError, "shuffle: expected"),
        ({"seed": -1}, ValueError, "seed: expected 0"),
        ({"epoch": -1}, ValueError, "epoch: expected 0"),
        ({"repeat": 0}, ValueError, "repeat: expected 1"),
        ({"drop_remainder": 1}, TypeError, "drop_remainder: expected"),
        ({"shard": (2, 2)}, ValueError, "rank: expected 0 to 1"),
        ({"shard": 3}, ValueError, "shard: expected"),
        ({"ragged": "nested"}, ValueError, "ragged: expected one of 'ragged', 'pad'"),
        ({"ragged": "pad", "pad_value": "x"}, ValueError, "pad_value: 'x' does not fit field 'wave'"),
        ({"engine": "fast"}, ValueError, "engine: expected one of"),
        ({"prefetch": -1}, ValueError, "prefetch: expected 0"),
        ({"device": "GPU:77"}, ValueError, "device: TensorFlow sees no 'GPU:77'; it has .*CPU:0"),
        ({"device": "a b/"}, ValueError, "device: expected a name"),
        ({"device": 0}, ValueError, "device: expected a name such as 'GPU:0', found 0"),
        ({"verify": "never"}, ValueError, "verify: expected"),
    ],
)
def test_bad_arguments(path: str, options: dict[str, Any], error: type[Exception], match: str) -> None:
    """Each is refused at the call, by the name of the parameter."""
    with pytest.raises(error, match=match):
        dataset(path, **{"batch_size": 8, **options})


def test_bad_source(path: str) -> None:
    """Neither path nor reader; options that a reader has already."""
    with pytest.raises(TypeError, match="source: expected a path or a Reader, found int"):
        dataset(7, 8)
    with pytest.raises(ValueError, match=r"backend, verify: give them to chunkstore\.open"):
        dataset(chunkstore.open(path), 8, verify="off")


def damage(path: Path, field: str, sample: int) -> None:
    """Flip a bit of a row of a fixed field."""
    offset = chunkstore.open(path)._extent(field)
    assert offset is not None
    data = bytearray(path.read_bytes())
    data[offset[0] + sample * 8192] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("engine", ["gather", "numpy"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_damage_fails_its_batch_and_no_other(tmp_path: Path, engine: str, shuffle: bool) -> None:
    """The error has the text of the CorruptError; the batches around the damaged one are read."""
    rows = np.arange(60, dtype=np.uint8).repeat(8192).reshape(60, 8192)
    path = Path(build_rows(tmp_path / "x.cks", rows))
    damage(path, "x", 33)
    good, failures = [], []
    batches = iter(dataset(path, 4, shuffle=shuffle, engine=engine))
    for _ in range(15):
        try:
            good += next(batches)["x"][:, 1].numpy().tolist()
        except tf.errors.InvalidArgumentError as error:
            failures.append(str(error))
    assert len(failures) == 1
    assert "CorruptError" in failures[0]
    assert "sample 33, shard 0, field 'x', bytes [" in failures[0]
    assert len(good) == 56
    assert 33 not in good
    with pytest.raises(tf.errors.OutOfRangeError):
        batches.get_next()
    assert len(list(dataset(path, 4, engine=engine, verify="off"))) == 15


FAULTY: dict[str, Any] = {
    "x": ("uint8", (8192,)),
    "wave": ("float32", (None, 3)),
    "grid": ("int16", (None, None)),
    "text": "string",
}


@pytest.mark.parametrize(
    "options", [{}, {"engine": "numpy"}, {"fields": ["x"], "engine": "gather"}, {"verify": "always"}, {"prefetch": 0}]
)
def test_damaged_samples_fail_alone(tmp_path: Path, options: dict[str, Any]) -> None:
    """Of single samples only the damaged fail, in their places, with the text of the CorruptError."""
    path = tmp_path / "x.cks"
    with chunkstore.Writer(path, fields=FAULTY, num_samples=60) as writer:
        for i in range(60):
            rows = {"wave": np.full((i % 3, 3), i, np.float32), "grid": np.full((i % 2, 2), i, np.int16)}
            writer.add({"x": np.full(8192, i, np.uint8), **rows, "text": str(i)})
    bad = [0, 33, 34, 59]
    for sample in bad:
        damage(path, "x", sample)
    reader = chunkstore.open(path, verify="off")
    batches = iter(dataset(path, repeat=2, **options))
    for place in [*range(60), *range(60)]:
        if place in bad:
            with pytest.raises(tf.errors.InvalidArgumentError, match=f"CorruptError: .*sample {place}, .*field .*x"):
                next(batches)
            continue
        sample, want = next(batches), reader[place]
        for name in sample:
            found = sample[name].numpy()
            assert found.decode() == want[name] if name == "text" else np.array_equal(found, want[name])
    with pytest.raises(tf.errors.OutOfRangeError):
        batches.get_next()
    shuffled = dataset(path, shuffle=True, **options).ignore_errors().map(lambda sample: sample["x"][1])
    assert sorted(np.array(list(shuffled)).tolist()) == [i for i in range(60) if i not in bad]


@pytest.mark.parametrize("options", [{"engine": "gather"}, {"engine": "numpy"}, {"backend": "pread"}])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_any_error_is_that_of_its_sample_or_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], batch_size: int | None
) -> None:
    """Not only damage: where a disk fails at one row, all others come, in their places."""
    path = build_rows(tmp_path / "x.cks", np.arange(60).repeat(1024).reshape(60, 1024))
    made = dataset(path, batch_size, **options)

    def failing(method: Any, place: int) -> Any:
        def read(*args: Any, **options: Any) -> Any:
            if 33 in args[place]:
                raise OSError(5, "the disk is gone")
            return method(*args, **options)

        return read

    monkeypatch.setattr(chunkstore.Reader, "_prove", failing(chunkstore.Reader._prove, 2))
    monkeypatch.setattr(chunkstore.Reader, "batch", failing(chunkstore.Reader.batch, 1))
    good, failures, batches = [], [], iter(made)
    for _ in range(60 // (batch_size or 1)):
        try:
            good += next(batches)["x"].numpy().reshape(-1, 1024)[:, 0].tolist()
        except tf.errors.OpError as error:
            failures.append(str(error))
    assert ["OSError" in text and "the disk is gone" in text for text in failures] == [True]
    assert good == [i for i in range(60) if i // (batch_size or 1) != 33 // (batch_size or 1)]
    with pytest.raises(tf.errors.OutOfRangeError):
        batches.get_next()


@pytest.mark.parametrize("engine", ["gather", "numpy"])
def test_a_reader_closed_half_way(path: str, engine: str) -> None:
    """Each sample that was not read yet says so; after as many samples as ever the iterator ends."""
    reader = chunkstore.open(path, verify="always")
    samples = iter(dataset(reader, fields=FIXED, engine=engine, repeat=8, prefetch=0))
    assert next(samples)["label"] == 0
    reader.close()
    failures = []
    for _ in range(8 * N - 1):
        try:
            next(samples)
        except tf.errors.InvalidArgumentError as error:
            failures.append(str(error))
    assert len(failures) >= N
    assert all("ClosedError" in text for text in failures)
    with pytest.raises(tf.errors.OutOfRangeError):
        samples.get_next()


@pytest.mark.parametrize("options", [{}, {"backend": "pread"}])
def test_single_samples_of_a_truncated_file(tmp_path: Path, options: dict[str, Any]) -> None:
    """What was cut off is an error for each sample, and not a crash."""
    path = Path(build_rows(tmp_path / "x.cks", np.zeros((300, 8192), np.uint8)))
    made = dataset(path, **options)
    with path.open("r+b") as file:
        file.truncate(1 << 20)
    with pytest.raises(tf.errors.InvalidArgumentError, match="TruncatedError"):
        for _ in made:
            pass
    assert len(list(made.ignore_errors())) < 128


def test_fixed_length_proves_beforehand(tmp_path: Path) -> None:
    """It runs without Python, so damage is found when it is made."""
    path = Path(build_rows(tmp_path / "x.cks", np.zeros((9, 8192), np.uint8)))
    damage(path, "x", 4)
    with pytest.raises(chunkstore.CorruptError, match="sample 4"):
        dataset(path, 4, engine="fixed_length")
    assert len(list(dataset(path, 4, engine="fixed_length", verify="off"))) == 3


@pytest.mark.parametrize("options", [{"engine": "gather"}, {"engine": "numpy"}, {"backend": "pread"}])
def test_truncated_file(tmp_path: Path, options: dict[str, Any]) -> None:
    """A file that was cut off since it was opened is an error, not a crash."""
    path = Path(build_rows(tmp_path / "x.cks", np.zeros((400, 8192), np.uint8)))
    made = dataset(path, 4, **options)
    with path.open("r+b") as file:
        file.truncate(1 << 20)
    with pytest.raises(tf.errors.InvalidArgumentError, match="TruncatedError"):
        for _ in made:
            pass


def test_closed_reader(path: str) -> None:
    """A reader that its owner closed is named as the cause."""
    reader = chunkstore.open(path)
    made = dataset(reader, 8, prefetch=0)
    reader.close()
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"ClosedError.*was closed"):
        next(iter(made))


def test_tensors_outlive_everything_and_the_map_goes(tmp_path: Path) -> None:
    """A batch owns its memory; with the last dataset and iterator the map of the file is gone."""
    path = build_rows(tmp_path / "gone.cks", np.arange(4096, dtype=np.int64).reshape(512, 8))
    made = dataset(path, 8, shuffle=True)
    batches = iter(made)
    batch = next(batches)["x"]
    want = batch.numpy().copy()
    maps = Path("/proc/self/maps")
    assert not maps.exists() or "gone.cks" in maps.read_text()
    del made, batches
    gc.collect()
    if maps.exists():
        next(iter(tf.data.Dataset.range(1).map(lambda x: tf.numpy_function(lambda y: y, [x], tf.int64))))
        assert "gone.cks" not in maps.read_text()
    assert np.array_equal(batch, want)


def test_iterators_do_not_copy_the_file(tmp_path: Path) -> None:
    """TensorFlow copies tensors that a dataset captures with each iterator; the map is not one of them."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc")
    path = build_rows(tmp_path / "large.cks", np.zeros((4000, 1 << 15), np.uint8))

    def anonymous() -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("RssAnon"))

    made = dataset(path, 4, shuffle=True, engine="gather", verify="off")
    next(iter(made))
    before = anonymous()
    kept = [iter(made) for _ in range(3)]
    for batches in kept:
        next(batches)
    assert anonymous() - before < 64 << 10  # KiB; the file has 125 MiB


def test_in_a_tf_function(path: str) -> None:
    """The dataset runs inside a tf.function, as Keras runs it."""
    made = dataset(path, 10, fields=["label"], shuffle=True)

    @tf.function
    def total() -> Any:
        sum_ = tf.constant(0, tf.int64)
        for batch in made:
            sum_ += tf.reduce_sum(batch["label"])
        return sum_

    assert int(total()) == N * (N - 1) // 2


def test_ragged_gather_of_many_repeats() -> None:
    """Rows of a ragged field in any order, with repeats and empty rows at both ends."""
    from chunkstore._tf.columns import gather_ragged

    rng = np.random.default_rng(3)
    for _ in range(20):
        counts = rng.integers(0, 3, rng.integers(1, 9))
        offsets = np.concatenate([[0], np.cumsum(counts)])
        values = np.arange(offsets[-1] * 2, dtype=np.float32).reshape(-1, 2)
        ids = rng.integers(0, len(counts), rng.integers(0, 12))
        found = gather_ragged(tf.constant(values), tf.constant(offsets), tf.constant(ids, tf.int64))
        want = [values[offsets[i] : offsets[i + 1]].tolist() for i in ids]
        assert found.to_list() == want
