"""`chunkstore.torch.Dataset`: samples and batches as tensors, in any `DataLoader`."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chunkstore
from chunkstore._format.dtypes import EXTENDED, PLAIN
from chunkstore.errors import ClosedError, CorruptError, ReplacedError, SampleNotFoundError

torch = pytest.importorskip("torch")

import torch_containers as containers  # noqa: E402
from torch.utils.data import (  # noqa: E402
    BatchSampler,
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Subset,
    WeightedRandomSampler,
    default_collate,
    random_split,
)

from chunkstore._torch import dataset  # noqa: E402
from chunkstore.torch import Dataset, RaggedTensors  # noqa: E402

N = containers.NUM_SAMPLES


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return containers.plain(tmp_path_factory.mktemp("torch") / "plain.cks")


@pytest.fixture(scope="module")
def ragged_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return containers.ragged(tmp_path_factory.mktemp("torch") / "ragged.cks")


def same(left: Any, right: Any) -> bool:
    """Equal trees of equal types, dtypes and values."""
    if isinstance(left, torch.Tensor):
        if left.is_nested:
            return same(list(left.unbind()), list(right.unbind()))
        bits = {1: torch.uint8, 2: torch.int16}.get(left.itemsize if left.is_floating_point() else 0, left.dtype)
        return (
            left.dtype == right.dtype and left.shape == right.shape and torch.equal(left.view(bits), right.view(bits))
        )
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[name], right[name]) for name in left)
    if isinstance(left, list | tuple):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


def double(sample: dict[str, Any]) -> dict[str, Any]:
    """A transform that can be pickled."""
    return {"image": sample["image"].float() * 2, "label": sample["label"]}


def negate(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch_transform that can be pickled."""
    return batch | {"label": -batch["label"]}


def fail_on_42(sample: dict[str, Any]) -> dict[str, Any]:
    if sample["label"] == 42:
        raise LookupError("no such thing")
    return sample


def worker_info(batch: dict[str, Any]) -> dict[str, Any]:
    return batch | {"pid": torch.full((len(batch["label"]),), os.getpid())}


# One sample ---------------------------------------------------------------------------------------


def test_a_sample_is_a_dict_of_tensors(path: str) -> None:
    """By position, from the end and by key; shapes and dtypes are those of the field."""
    ds = Dataset(path)
    assert len(ds) == N
    for index in (7, 7 - N, "k7", np.int64(7)):
        sample = ds[index]
        assert list(sample) == ["image", "label"]
        assert torch.equal(sample["image"], torch.from_numpy(containers.image(7)))
        assert sample["label"].item() == 7
        assert sample["label"].shape == ()


def test_samples_are_the_users_to_change(path: str) -> None:
    """Writing to a sample, in place, changes neither the container nor the next read of it."""
    ds = Dataset(path)
    ds[7]["image"].fill_(255)
    ds[7]["label"].fill_(-1)
    batch = ds.__getitems__([7, 8]).values
    batch["image"].fill_(255)
    assert torch.equal(ds[7]["image"], torch.from_numpy(containers.image(7)))
    assert ds.reader[7]["image"].tolist() == containers.image(7).tolist()
    assert ds[7]["label"].item() == 7


DTYPES: dict[str, Any] = {name: getattr(torch, name) for name in (*PLAIN, *EXTENDED) if hasattr(torch, name)} | {
    "datetime64[ms]": torch.int64,
    "timedelta64[D]": torch.int64,
}


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (None,)], ids=str)
def test_every_dtype_keeps_its_bits(tmp_path: Path, name: str, shape: tuple[int | None, ...]) -> None:
    """A sample and a batch have torch's dtype of the same name and the stored bytes; times are int64."""
    field = chunkstore.Field("x", name, shape)
    random = np.random.default_rng(5)
    rows = []
    for i in range(9):
        dims = tuple(i % 4 if dim is None else dim for dim in shape)
        nbytes = int(np.prod(dims)) * field.numpy_dtype.itemsize
        bits = random.integers(0, 2 if name == "bool" else 256, nbytes, dtype=np.uint8)
        rows.append(bits.view(field.numpy_dtype).reshape(dims))
    with chunkstore.Writer(tmp_path / "a.cks", fields=[field]) as writer:
        for row in rows:
            writer.add({"x": row})
    ds = Dataset(tmp_path / "a.cks", ragged="list")
    batch = ds.__getitems__([8, 0, 3]).values["x"]
    for place, position in enumerate([8, 0, 3]):
        for tensor in (ds[position]["x"], batch[place]):
            assert tensor.dtype == DTYPES[name]
            assert tensor.shape == rows[position].shape
            if tensor.numel():
                assert tensor.reshape(-1).view(torch.uint8).numpy().tobytes() == rows[position].tobytes()
                tensor.reshape(-1).view(torch.uint8).zero_()
    assert same(default_collate([ds[1], ds[5]]), ds.__getitems__([1, 5]).values)


def test_texts_are_python_objects(tmp_path: Path) -> None:
    """`string` and `utf32` give `str`, `bytes` gives `bytes`; in a batch a list of them, as default_collate does."""
    fields: Any = {"s": "string", "u": "utf32[3]", "b": "bytes[3]"}
    with chunkstore.Writer(tmp_path / "a.cks", fields=fields) as writer:
        for i in range(4):
            writer.add({"s": "ä" * i, "u": "ö" * i, "b": b"x" * i})
    ds = Dataset(tmp_path / "a.cks")
    assert ds[2] == {"s": "ää", "u": "öö", "b": b"xx"}
    (batch,) = DataLoader(ds, batch_size=4)
    assert batch == {"s": ["", "ä", "ää", "äää"], "u": ["", "ö", "öö", "ööö"], "b": [b"", b"x", b"xx", b"xxx"]}
    assert type(batch["s"]) is list


def test_a_dtype_that_torch_has_not(tmp_path: Path) -> None:
    """An array of texts is refused when the data set is made, by a message that has the fields= to give."""
    fields: Any = {"x": "int8", "names": ("utf32[3]", (2,)), "y": "int8"}
    with chunkstore.Writer(tmp_path / "a.cks", fields=fields) as writer:
        writer.add({"x": 1, "names": np.array(["a", "b"]), "y": 2})
    with pytest.raises(TypeError, match=r"field 'names' holds utf32\[3\].*torch has not.*fields=\['x', 'y'\]"):
        Dataset(tmp_path / "a.cks")
    assert set(Dataset(tmp_path / "a.cks", fields=["x", "y"])[0]) == {"x", "y"}


def test_a_dtype_that_an_older_torch_has_not(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the torch release, too."""
    with chunkstore.Writer(tmp_path / "a.cks", fields={"x": "float8_e8m0fnu"}) as writer:
        writer.add({"x": np.zeros((), chunkstore.Field("x", "float8_e8m0fnu").numpy_dtype)})
    monkeypatch.delattr(torch, "float8_e8m0fnu", raising=False)
    with pytest.raises(TypeError, match=r"field 'x' holds float8_e8m0fnu, which torch \d"):
        Dataset(tmp_path / "a.cks")


# Batches ------------------------------------------------------------------------------------------


def test_a_batch_collates_as_it_is(path: str) -> None:
    """default_collate returns the very dict that one gather made, with the values that stacking samples gives."""
    ds = Dataset(path)
    made = ds.__getitems__([5, 3, 3])
    assert default_collate(made) is made.values
    assert same(made.values, default_collate([ds[5], ds[3], ds[3]]))
    assert type(made.values) is dict


def test_a_batch_is_a_sequence_of_samples(path: str) -> None:
    """A collate function of the user's own gets the samples that it expects, from either end, sliced, iterated."""
    ds = Dataset(path)
    made = ds.__getitems__([5, 3, 9])
    assert len(made) == 3
    assert [sample["label"].item() for sample in made] == [5, 3, 9]
    assert made[-1]["label"].item() == 9
    assert [sample["label"].item() for sample in made[1:]] == [3, 9]
    assert isinstance(made[0], dict)
    with pytest.raises(IndexError, match="sample 3 of a batch of 3"):
        made[3]
    loader = DataLoader(ds, batch_size=50, collate_fn=lambda samples: sum(sample["label"] for sample in samples))
    assert [int(total) for total in loader] == [1225, 3725]


@pytest.mark.parametrize("batch_size", [1, 7, 100, 1000])
@pytest.mark.parametrize("shuffle", [False, True])
def test_plain_dataloader(path: str, batch_size: int, shuffle: bool) -> None:
    """Each sample once an epoch, each row with its label."""
    seen = []
    for batch in DataLoader(Dataset(path), batch_size=batch_size, shuffle=shuffle):
        for row, label in zip(batch["image"], batch["label"].tolist(), strict=True):
            assert torch.equal(row, torch.from_numpy(containers.image(label)))
            seen.append(label)
    assert sorted(seen) == list(range(N))
    assert shuffle != (seen == list(range(N)))


def test_dataloader_without_batches(path: str) -> None:
    """batch_size=None gives single samples."""
    labels = [sample["label"].item() for sample in DataLoader(Dataset(path), batch_size=None)]
    assert labels == list(range(N))


def test_samplers_of_torch(path: str) -> None:
    """RandomSampler, WeightedRandomSampler, BatchSampler and DistributedSampler work as they are."""
    ds = Dataset(path)
    generator = torch.Generator().manual_seed(0)
    for sampler in (RandomSampler(ds), WeightedRandomSampler([1.0] * N, 30), DistributedSampler(ds, 3, 1)):
        labels = [int(x) for batch in DataLoader(ds, 8, sampler=sampler) for x in batch["label"]]
        assert len(labels) == len(sampler)
    sampler = BatchSampler(RandomSampler(ds, generator=generator), 8, drop_last=True)
    assert len(list(DataLoader(ds, batch_sampler=sampler))) == 12
    parts = [DistributedSampler(ds, 4, rank, shuffle=True) for rank in range(4)]
    seen = [int(x) for part in parts for batch in DataLoader(ds, 8, sampler=part) for x in batch["label"]]
    assert sorted(seen) == list(range(N))


def test_subsets(path: str) -> None:
    """Subset and random_split go on to whole batches."""
    ds = Dataset(path)
    (batch,) = DataLoader(Subset(ds, [9, 4, 4]), batch_size=8)
    assert batch["label"].tolist() == [9, 4, 4]
    train, test = random_split(ds, [0.7, 0.3])
    seen = [int(x) for part in (train, test) for batch in DataLoader(part, 16, shuffle=True) for x in batch["label"]]
    assert sorted(seen) == list(range(N))


def test_concatenated(path: str, ragged_path: str) -> None:
    """ConcatDataset, which asks for single samples, gives the same batches, ragged fields included."""
    ds = Dataset(path) + Dataset(path)
    assert len(ds) == 2 * N
    batches = list(DataLoader(ds, batch_size=50))
    assert same(batches[0], batches[2])
    for mode in ("offsets", "nested", "list", "pad"):
        one: Any = Dataset(ragged_path, ragged=mode, fields=["tokens", "text"])
        (whole,) = DataLoader(one, batch_size=N)
        (joined,) = DataLoader(ConcatDataset([one]), batch_size=N)
        assert same(whole, joined), mode


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_worker_processes(path: str, method: str) -> None:
    """Two workers, two epochs in the same processes: every sample once an epoch, made elsewhere."""
    ds = Dataset(path, transform=double, batch_transform=worker_info)
    loader = DataLoader(ds, 16, shuffle=True, num_workers=2, multiprocessing_context=method, persistent_workers=True)
    for _ in range(2):
        batches = list(loader)
        labels = torch.cat([batch["label"] for batch in batches])
        assert sorted(labels.tolist()) == list(range(N))
        images = torch.cat([batch["image"] for batch in batches])
        assert torch.equal(images[3], 2 * torch.from_numpy(containers.image(int(labels[3]))).float())
        pids = set(torch.cat([batch["pid"] for batch in batches]).tolist())
        assert len(pids) == 2
        assert os.getpid() not in pids
    del loader


def test_worker_batches_are_in_shared_memory(path: str) -> None:
    """A worker gathers straight into memory that the parent maps: no copy through the pipe, and writable."""
    loader = DataLoader(Dataset(path), 16, num_workers=1, multiprocessing_context="fork")
    batch = next(iter(loader))
    assert batch["image"].is_shared()
    batch["image"].fill_(3)
    del loader, batch


def test_pickles_small(path: str) -> None:
    """A data set goes to a worker in about a kilobyte, and is the same there."""
    ds = Dataset(path, fields=["label"], ragged="pad", pad_value=-1)
    ds.__getitems__(range(N))
    data = pickle.dumps(ds)
    assert len(data) < 1500
    copy = pickle.loads(data)
    assert copy[5].keys() == {"label"}
    assert copy.fingerprint == ds.fingerprint
    assert copy.pad_value == -1


def test_a_worker_process_says_that_the_file_is_another(tmp_path: Path) -> None:
    """Workers that start in a later epoch raise a ReplacedError there; they do not die without a word."""
    file = Path(containers.plain(tmp_path / "a.cks"))
    loader = DataLoader(Dataset(file), 16, num_workers=1, multiprocessing_context="spawn")
    file.unlink()
    containers.plain(file, 50)
    with pytest.raises(ReplacedError, match="it was replaced"):
        list(loader)


def test_a_sample_pickles_as_a_dict(path: str) -> None:
    """Sent through a queue it is an ordinary dict."""
    assert type(pickle.loads(pickle.dumps(Dataset(path)[3]))) is dict


# Memory -------------------------------------------------------------------------------------------


def test_no_batch_in_use_is_ever_overwritten(path: str) -> None:
    """Batches kept in any form, as tensors, views or arrays, keep their values while hundreds more are made."""
    ds = Dataset(path)
    kept = []
    for number, batch in enumerate(batch for _ in range(30) for batch in DataLoader(ds, 10, shuffle=True)):
        image, label = batch["image"], batch["label"].tolist()
        expected = np.stack([containers.image(i) for i in label])
        form = [image, image[2:], image[3].numpy(), image.view(torch.int8).mT, image.untyped_storage()][number % 5]
        kept.append((form, number % 5, expected))
        kept = kept[-7:]
        for held, kind, want in kept:
            if kind == 4:
                assert bytes(held)[: want.size] == want.tobytes()
            else:
                want = [want, want[2:], want[3], want.view(np.int8).swapaxes(1, 2)][kind]
                assert np.array_equal(np.asarray(held), want)


def test_memory_of_dropped_batches_is_used_again(path: str) -> None:
    """A loop that drops its batches runs in a few blocks of memory."""
    ds = Dataset(path)
    places = {ds.__getitems__(range(50)).values["image"].data_ptr() for _ in range(50)}
    assert len(places) == 1


def test_batches_outlive_the_dataset(path: str) -> None:
    """A batch is valid after the data set is closed and gone."""
    ds = Dataset(path)
    batch, sample = ds.__getitems__([1, 2]).values, ds[3]
    ds.close()
    del ds
    gc.collect()
    assert batch["label"].tolist() == [1, 2]
    assert sample["label"].item() == 3


# Ragged -------------------------------------------------------------------------------------------


def test_ragged_offsets(ragged_path: str) -> None:
    """By default values and offsets, and shapes where more than one dimension varies."""
    batch = Dataset(ragged_path).__getitems__([3, 0, 5]).values
    tokens, mask = batch["tokens"], batch["mask"]
    assert isinstance(tokens, RaggedTensors)
    assert tokens.values.tolist() == [3, 4, 5, 5, 6, 7, 8, 9]
    assert tokens.offsets.tolist() == [0, 3, 3, 8]
    assert tokens.shapes is None
    assert mask.shapes.tolist() == [[0, 2], [0, 1], [2, 2]]
    assert mask.values.shape == (4, 2)
    assert batch["text"] == ["ééé", "", "é"]


def test_ragged_nested(ragged_path: str) -> None:
    """A jagged nested tensor of the same rows."""
    nested = Dataset(ragged_path, ragged="nested", fields=["tokens"]).__getitems__([3, 0, 5]).values["tokens"]
    assert nested.is_nested
    assert [row.tolist() for row in nested.unbind()] == [[3, 4, 5], [], [5, 6, 7, 8, 9]]


def test_ragged_list(ragged_path: str) -> None:
    """One tensor a row, each in its own shape."""
    batch = Dataset(ragged_path, ragged="list").__getitems__([3, 0, 5]).values
    assert [row.tolist() for row in batch["tokens"]] == [[3, 4, 5], [], [5, 6, 7, 8, 9]]
    assert [tuple(row.shape) for row in batch["mask"]] == [(0, 2, 2), (0, 1, 2), (2, 2, 2)]


def test_ragged_pad(ragged_path: str) -> None:
    """Rows in one tensor, filled up with the value that was asked for."""
    batch = Dataset(ragged_path, ragged="pad", pad_value=1).__getitems__([3, 0, 5]).values
    assert batch["tokens"].tolist() == [[3, 4, 5, 1, 1], [1, 1, 1, 1, 1], [5, 6, 7, 8, 9]]
    assert batch["mask"].shape == (3, 2, 2, 2)


@pytest.mark.parametrize("name", ["bfloat16", "float8_e5m2", "float16", "uint16"])
def test_ragged_pad_of_any_dtype(tmp_path: Path, name: str) -> None:
    """Padding is in the field's dtype also where NumPy has none, the same by one gather and by stacking samples."""
    field = chunkstore.Field("x", name, (None,))
    with chunkstore.Writer(tmp_path / "a.cks", fields=[field]) as writer:
        for i in range(4):
            writer.add({"x": np.zeros(i, field.numpy_dtype)})
    ds = Dataset(tmp_path / "a.cks", ragged="pad", pad_value=2)
    batch = ds.__getitems__([1, 3, 0]).values["x"]
    assert batch.dtype == getattr(torch, name)
    assert batch.float().tolist() == [[0, 2, 2], [0, 0, 0], [2, 2, 2]]
    assert same(batch, default_collate([ds[1], ds[3], ds[0]])["x"])


def test_ragged_batches_of_nothing(ragged_path: str) -> None:
    """Rows that are all empty make an empty batch of the right shape."""
    for mode, shape in (("offsets", (0,)), ("pad", (2, 0))):
        tokens = Dataset(ragged_path, ragged=mode).__getitems__([0, 7]).values["tokens"]  # type: ignore[arg-type]
        assert (tokens.values if mode == "offsets" else tokens).shape == shape


@pytest.mark.parametrize("mode", ["offsets", "nested"])
def test_items_without_values(tmp_path: Path, mode: Any) -> None:
    """Rows of items of no values keep their lengths, the same by one gather and by stacking samples."""
    with chunkstore.Writer(tmp_path / "a.cks", fields={"x": ("int16", (None, 0))}) as writer:
        for i in range(4):
            writer.add({"x": np.zeros((i, 0), np.int16)})
    ds = Dataset(tmp_path / "a.cks", ragged=mode)
    for batch in ds.__getitems__([1, 3, 0]).values["x"], default_collate([ds[1], ds[3], ds[0]])["x"]:
        values, offsets = (batch.values(), batch.offsets()) if mode == "nested" else batch[:2]
        assert values.shape == (4, 0)
        assert offsets.tolist() == [0, 1, 4, 4]


def test_ragged_cannot_be_nested_in_two_dimensions(ragged_path: str) -> None:
    """The message names the field and the other values of ragged=."""
    with pytest.raises(ValueError, match=r"field 'mask' varies in 2 dimensions.*ragged='offsets', 'list' or 'pad'"):
        Dataset(ragged_path, ragged="nested")


def test_ragged_samples_of_a_batch(ragged_path: str) -> None:
    """Samples taken out of a batch, whatever its form, are those of the data set."""
    for mode in ("offsets", "list"):
        ds: Any = Dataset(ragged_path, ragged=mode)
        made = ds.__getitems__([5, 8])
        assert same(dict(made[0]), dict(ds[5]))
        assert same(dict(made[1]), dict(ds[8]))


def test_a_pad_value_that_does_not_fit(ragged_path: str) -> None:
    """The error names pad_value, the field and its dtype."""
    ds = Dataset(ragged_path, ragged="pad", pad_value=2**40, fields=["tokens"])
    with pytest.raises(ValueError, match="pad_value: 1099511627776 does not fit field 'tokens', int32"):
        ds.__getitems__([1, 2])


# Transforms ---------------------------------------------------------------------------------------


def test_transform_of_samples(path: str) -> None:
    """Applied to single samples and to those of a batch, alike."""
    ds = Dataset(path, transform=double)
    (batch,) = DataLoader(ds, batch_size=N)
    assert same(dict(ds[4]), {"image": batch["image"][4], "label": batch["label"][4]})
    assert batch["image"].dtype == torch.float32


def test_transform_may_return_anything(path: str) -> None:
    """Tuples, numbers and tensors are collated as by any data set."""
    (batch,) = DataLoader(Dataset(path, transform=lambda s: (s["image"], int(s["label"]))), batch_size=N)
    assert batch[0].shape == (N, 3, 5)
    assert batch[1].tolist() == list(range(N))


def test_batch_transform(path: str) -> None:
    """Applied once to the whole batch, after transform= and collation; not to single samples."""
    ds = Dataset(path, transform=double, batch_transform=negate)
    batches = list(DataLoader(ds, batch_size=60))
    assert torch.cat([batch["label"] for batch in batches]).tolist() == [-i for i in range(N)]
    assert batches[0]["image"].dtype == torch.float32
    assert ds[5]["label"] == 5


@pytest.mark.parametrize("made", [lambda b: b["label"], lambda b: (b["image"], b["label"]), lambda b: b["label"].sum()])
def test_batch_transform_may_return_anything(path: str, made: Any) -> None:
    """What it returns is the batch, as it is."""
    (batch,) = DataLoader(Dataset(path, batch_transform=made), batch_size=N)
    assert same(batch, made(Dataset(path).__getitems__(range(N)).values))


def test_a_transform_that_raises(path: str) -> None:
    """Its own exception comes up, with a note that names position, key and container."""
    ds = Dataset(path, transform=fail_on_42)
    for read in (lambda: ds[42], lambda: ds.__getitems__([41, 42])):
        with pytest.raises(LookupError, match="no such thing") as caught:
            read()
        assert caught.value.__notes__ == [f"in transform= of sample 42 'k42' of {path}"]
    assert ds[41]["label"] == 41


def test_a_transform_that_raises_in_a_worker(path: str) -> None:
    """From a worker process the same, with the note in the text."""
    loader = DataLoader(Dataset(path, transform=fail_on_42), 10, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(LookupError, match=r"(?s)no such thing.*sample 42 'k42'"):
        list(loader)


def test_transforms_that_give_different_shapes(path: str) -> None:
    """Stacking rows of different shapes is a clear error that names the field and what to change."""
    ds = Dataset(path, transform=lambda s: {"x": s["image"][: int(s["label"])]})
    with pytest.raises(
        ValueError, match=r"field 'x': rows of shapes \(0, 5\) and \(1, 5\) cannot be stacked.*transform="
    ):
        list(DataLoader(ds, batch_size=3))


def test_transforms_that_give_different_names(path: str) -> None:
    """A missing name is a clear error."""
    ds = Dataset(path, transform=lambda s: {"x": 1} if s["label"] < 2 else {})
    with pytest.raises(ValueError, match="a sample of the batch has no field 'x'"):
        list(DataLoader(ds, batch_size=3))


def test_ragged_fields_survive_a_transform(ragged_path: str) -> None:
    """Rows of a ragged field that a transform passes on are put together as ragged= says."""
    ds = Dataset(ragged_path, transform=lambda s: {"tokens": s["tokens"] + 1, "n": len(s["tokens"])}, ragged="pad")
    (batch,) = DataLoader(ds, batch_size=N)
    assert batch["tokens"].shape == (N, 6)
    assert batch["n"].tolist() == [i % 7 for i in range(N)]


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"fields": ["imge"]}, ValueError, "fields: .* no field 'imge'"),
        ({"fields": "image"}, TypeError, r"fields: expected a sequence of names.*\['image'\]"),
        ({"ragged": "stack"}, ValueError, "ragged: expected one of 'offsets', 'nested', 'list', 'pad', found 'stack'"),
        ({"transform": 3}, TypeError, "transform: expected a function, found int"),
        ({"batch_transform": "x"}, TypeError, "batch_transform: expected a function"),
        ({"backend": "disk"}, ValueError, "backend"),
        ({"verify": "sometimes"}, ValueError, "verify: expected one of"),
    ],
)
def test_bad_arguments(path: str, options: Any, error: type[Exception], text: str) -> None:
    """Each names the parameter."""
    with pytest.raises(error, match=text):
        Dataset(path, **options)


def test_bad_source(tmp_path: Path, path: str) -> None:
    """A missing file is a FileNotFoundError; another object a TypeError; options of `open` do not go with a reader."""
    with pytest.raises(FileNotFoundError):
        Dataset(tmp_path / "none.cks")
    with pytest.raises(TypeError, match="source: expected a path or a Reader, found list"):
        Dataset([1, 2])  # type: ignore[arg-type]
    with chunkstore.open(path) as reader, pytest.raises(ValueError, match=r"backend, verify: .*chunkstore\.open"):
        Dataset(reader, verify="off")


@pytest.mark.parametrize("fields", [None, ["label"]])
def test_bad_indices(path: str, fields: Any) -> None:
    """Outside, of another type, or unknown: the classes that Python uses."""
    ds = Dataset(path, fields=fields)
    for index in (N, -N - 1):
        with pytest.raises(IndexError, match=f"{index} is outside"):
            ds[index]
    with pytest.raises(SampleNotFoundError, match="k1000"):
        ds["k1000"]
    with pytest.raises(IndexError, match="index 100 is outside"):
        ds.__getitems__([3, 100])
    for index in (slice(3), [1, 2], (1, 2), 1.5, torch.tensor([1, 2]), None):
        with pytest.raises(TypeError, match="one position or key"):
            ds[index]  # type: ignore[index]
    with pytest.raises(TypeError):
        ds.__getitems__([1.5, 2.0])
    assert ds[1]["label"] == 1


def test_damage_names_the_sample_and_spares_the_others(tmp_path: Path) -> None:
    """A flipped bit is a CorruptError where its sample is read; other samples and later reads work."""
    file = tmp_path / "a.cks"
    with chunkstore.Writer(file) as writer:
        for i in range(8):
            writer.add({"x": np.full(8192, i, np.uint8)}, key=f"k{i}")
    data = bytearray(file.read_bytes())
    data[data.index(b"\3" * 8192) + 100] ^= 1
    file.write_bytes(data)
    ds = Dataset(file)
    with pytest.raises(CorruptError, match="'k3'"):
        ds.__getitems__([1, 3, 5])
    with pytest.raises(CorruptError, match="'k3'"):
        ds[3]
    assert ds.__getitems__([1, 5]).values["x"][:, 0].tolist() == [1, 5]


def test_damaged_keys_do_not_hide_the_error_of_a_transform(tmp_path: Path) -> None:
    """Its note has the position alone; where the keys are whole, also that of a sample of a selection."""
    file = Path(containers.plain(tmp_path / "a.cks"))

    def fail(sample: Any) -> Any:
        raise LookupError("no")

    for notes in ("sample 1 'k7' of", "sample 1 of"):
        with chunkstore.open(file) as reader:
            ds = Dataset(reader.select([9, 7]), transform=fail)
            with pytest.raises(LookupError) as caught:
                ds[1]
        assert notes in caught.value.__notes__[0]
        data = file.read_bytes()
        file.write_bytes(data.replace(b"k6k7k8", b"k6K7k8"))


def test_a_copy_of_a_closed_one_is_closed(tmp_path: Path) -> None:
    """Closing it again opens nothing."""
    file = Path(containers.plain(tmp_path / "a.cks"))
    ds = Dataset(file)
    ds.close()
    file.unlink()
    pickle.loads(pickle.dumps(ds)).close()


def test_a_copy_is_used_while_another_thread_prepares_it(ragged_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transform sees each row in its own shape at any moment."""
    ds = Dataset(ragged_path, transform=lambda sample: len(sample["tokens"]), ragged="pad", fields=["tokens"])
    seen = []

    def columns_of(*args: Any) -> Any:
        seen.append(list(ds.__getitems__([3, 0, 5])))
        return made(*args)

    made = dataset.columns_of
    monkeypatch.setattr(dataset, "columns_of", columns_of)
    ds._prepare()
    assert seen == [[3, 0, 5]] * 2


def test_closed_and_opened_again(path: str, tmp_path: Path) -> None:
    """close() lets go of the file; the next use opens it again, unless it is another container by then."""
    file = Path(containers.plain(tmp_path / "a.cks"))
    ds = Dataset(file)
    ds.close()
    ds.close()
    assert ds[5]["label"] == 5
    ds.close()
    file.unlink()
    containers.plain(file, 50)
    with pytest.raises(ReplacedError, match="make a new Dataset"):
        ds[5]


def test_a_reader_of_the_users_stays_his(path: str) -> None:
    """close() of the data set does not close it; once he closes it, reading is a ClosedError."""
    reader = chunkstore.open(path)
    ds = Dataset(reader, fields=["label"])
    ds.close()
    assert ds[3]["label"] == 3
    reader.close()
    with pytest.raises(ClosedError):
        ds[3]


def test_selections(path: str) -> None:
    """A Selection is a data set of its own length and order, and of its own fingerprint."""
    reader = chunkstore.open(path)
    ds = Dataset(reader.select([9, 4, 2]))
    (batch,) = DataLoader(ds, batch_size=8)
    assert batch["label"].tolist() == [9, 4, 2]
    assert ds["k4"]["label"] == 4
    others = [Dataset(reader), Dataset(reader.select([9, 4, 3]))]
    assert len({ds.fingerprint, *(other.fingerprint for other in others)}) == 3
    reader.close()


def test_without_torch_the_import_says_what_to_install() -> None:
    """MissingExtraError, which is an ImportError, with the line to type."""
    code = "import sys; sys.modules['torch'] = None; import chunkstore.torch"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingExtraError" in run.stderr
    assert "pip install 'chunkstore-arrays[torch]'" in run.stderr
