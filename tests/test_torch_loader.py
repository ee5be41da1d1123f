"""`chunkstore.torch.Loader` and `prefetch` without a GPU: order, memory, errors, threads, state."""

from __future__ import annotations

import gc
import json
import pickle
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chunkstore
from chunkstore.errors import ClosedError, CorruptError, ReplacedError, StateError, TruncatedError

torch = pytest.importorskip("torch")

import torch_containers as containers  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

import chunkstore._torch.loader as loader_module  # noqa: E402
from chunkstore.torch import Dataset, Loader, prefetch  # noqa: E402

N = containers.NUM_SAMPLES
THREADS = [(0, 1), (1, 1), (4, 1), (3, 3)]  # (prefetch, threads)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return containers.plain(tmp_path_factory.mktemp("torch") / "plain.cks")


@pytest.fixture(scope="module")
def ragged_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return containers.ragged(tmp_path_factory.mktemp("torch") / "ragged.cks")


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("chunkstore-loader")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert loader_threads() == []


def labels(batches: Any) -> list[int]:
    return [label for batch in batches for label in batch["label"].tolist()]


# Batches ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "threads"), THREADS)
def test_epochs(path: str, depth: int, threads: int) -> None:
    """Each iteration is an epoch: every sample once, rows with their labels, another order each time."""
    with Loader(path, 16, shuffle=True, prefetch=depth, threads=threads) as loader:
        orders = []
        for _ in range(3):
            seen = []
            for batch in loader:
                for row, label in zip(batch["image"], batch["label"].tolist(), strict=True):
                    assert torch.equal(row, torch.from_numpy(containers.image(label)))
                    seen.append(label)
            assert sorted(seen) == list(range(N))
            orders.append(tuple(seen))
        assert len(set(orders)) == 3
        assert len(loader) == 7


def test_without_shuffling_in_order(path: str) -> None:
    """shuffle=False, the default, is the order of the container; drop_last leaves the rest out."""
    with Loader(path, 30) as loader, Loader(path, 30, drop_last=True) as short:
        assert labels(loader) == list(range(N))
        assert labels(short) == list(range(90))
        assert (len(loader), len(short)) == (4, 3)


def test_an_empty_container(tmp_path: Path) -> None:
    """No samples, no batches, no error."""
    with chunkstore.Writer(tmp_path / "a.cks", fields={"x": "int8"}):
        pass
    with Loader(tmp_path / "a.cks", 4, shuffle=True) as loader:
        assert list(loader) == []
        assert len(loader) == 0


@pytest.mark.parametrize("mode", ["offsets", "nested", "list", "pad"])
def test_ragged(ragged_path: str, mode: Any) -> None:
    """Ragged fields and texts come as from the data set."""
    fields = ["tokens", "text", "label"]
    with Loader(ragged_path, N, fields=fields, ragged=mode) as loader:
        (batch,) = loader
    expected = Dataset(ragged_path, fields=fields, ragged=mode).__getitems__(range(N)).values
    assert batch["text"] == expected["text"]
    for left, right in zip(batch["tokens"], expected["tokens"], strict=True):
        assert left is right is None or torch.equal(left, right)


def test_transforms_in_order(path: str) -> None:
    """transform on samples, batch_transform on the batch, device_transform last; all in the loader's thread."""
    threads = set()

    def note(value: Any) -> Any:
        threads.add(threading.current_thread().name)
        return value

    with Loader(
        path,
        16,
        transform=lambda s: note({"x": s["image"].float(), "label": s["label"]}),
        batch_transform=lambda b: note(b | {"x": b["x"] + 1}),
        device_transform=lambda b: note(b | {"x": b["x"] * 2}),
    ) as loader:
        for batch in loader:
            assert batch["x"][0].tolist() == ((containers.image(int(batch["label"][0])) + 1.0) * 2).tolist()
    assert threads == {"chunkstore-loader-0"}


def test_a_dataset_brings_its_own_options(path: str) -> None:
    """A Dataset may be given, and stays open; its options cannot be given twice."""
    ds = Dataset(path, fields=["label"], batch_transform=lambda b: b["label"])
    with Loader(ds, 10) as loader:
        assert torch.cat(list(loader)).tolist() == list(range(N))
    assert ds[3] == {"label": 3}
    with pytest.raises(ValueError, match="fields, ragged: give them to the Dataset"):
        Loader(ds, 10, fields=["label"], ragged="pad")


def test_selections_and_ranks(path: str) -> None:
    """A selection is a data set of its own; ranks share it out."""
    reader = chunkstore.open(path)
    chosen = reader.select(range(10, 50))
    parts = [Loader(chosen, 7, shuffle=True, rank=rank, world_size=3) for rank in range(3)]
    seen = [labels(part) for part in parts]
    assert sorted(label for part in seen for label in part) == list(range(10, 50))
    for part in parts:
        part.close()
    assert reader[0]["label"] == 0
    reader.close()


# Memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "threads"), THREADS)
def test_no_batch_in_use_is_ever_overwritten(path: str, depth: int, threads: int) -> None:
    """Batches kept for a random time, as tensors, views or arrays, keep their values while hundreds more are made.

    A batch that is dropped is poisoned first: if its memory were still somebody else's, that one would see it.
    """
    choice = random.Random(5)
    kept: list[Any] = []
    with Loader(path, 8, shuffle=True, prefetch=depth, threads=threads) as loader:
        for _ in range(25):
            for batch in loader:
                image, label = batch["image"], batch["label"]
                expected = np.stack([containers.image(i) for i in label.tolist()])
                form = choice.choice([lambda t: t, lambda t: t[1:], lambda t: t[1:].numpy(), lambda t: t.mT])
                poison = choice.random() < 0.3
                kept.append((None if poison else form(image), form(torch.from_numpy(expected))))
                if poison:
                    image.fill_(222)
                    label.fill_(-1)
                del batch, image, label
                if len(kept) > 9:
                    kept.pop(choice.randrange(len(kept)))
                for have, want in kept:
                    assert have is None or np.array_equal(np.asarray(have), np.asarray(want))


def test_dropped_batches_leave_their_memory(path: str) -> None:
    """A loop that drops its batches sees no more blocks than prefetch + threads + 2, each of as many as 16 batches."""
    places = set()
    with Loader(path, 10, prefetch=3) as loader:
        for _ in range(20):
            for batch in loader:
                places.add(batch["image"].data_ptr())
    nbytes = batch["image"].nbytes
    assert len([place for place in places if place - nbytes not in places]) <= 6


@pytest.mark.parametrize("mode", ["offsets", "nested", "list", "pad"])
@pytest.mark.parametrize(("depth", "threads"), THREADS)
def test_runs_of_batches_are_those_batches(
    path: str, ragged_path: str, depth: int, threads: int, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches that are made several at a time are equal to those that are made one by one, whatever the fields."""
    for file, options in ((path, {}), (ragged_path, {"ragged": mode, "fields": ["tokens", "text", "label"]})):
        found = []
        for length in (16, 1):
            monkeypatch.setattr(loader_module, "_RUN_BATCHES", length)
            with Loader(file, 3, shuffle=True, prefetch=depth, threads=threads, **options) as loader:
                found.append([*loader, *loader])
        assert len(found[0]) == len(found[1]) == 68
        assert all(map(same, *found))


def same(a: Any, b: Any) -> bool:
    """Equal in type, shape, dtype and values."""
    if isinstance(a, torch.Tensor) and a.is_nested:
        return same(a.unbind(), b.unbind())
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[name], b[name]) for name in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def test_small_batches_are_made_in_runs(path: str) -> None:
    """From the second on, so that the first comes soon; not where a transform would delay them."""
    sizes: list[int] = []

    class Watched(Dataset):
        def make_batches(self, run: Any, allocate: Any) -> Any:
            sizes.append(len(run))
            return super().make_batches(run, allocate)

    assert len(list(Loader(Watched(path), 4, prefetch=1))) == 25
    assert max(sizes) == 16
    sizes.clear()
    assert len(list(Loader(Watched(path, batch_transform=dict), 4))) == 25
    assert sizes == []


def test_one_kept_batch_of_a_run(path: str) -> None:
    """It keeps its values, though its neighbours, which share its memory, were dropped and others made."""
    with Loader(path, 2, shuffle=True, prefetch=2) as loader:
        kept = [batch for number, batch in enumerate(loader) if number % 7 == 5]
        for _ in range(20):
            for batch in loader:
                batch["image"].fill_(222)
    for batch in kept:
        assert batch["image"].tolist() == [containers.image(i).tolist() for i in batch["label"].tolist()]


def test_batches_are_the_users(path: str) -> None:
    """Writing to a batch changes no other; it is valid after close() and after the loader is gone."""
    loader = Loader(path, 50)
    first = next(iter(loader))
    first["image"].fill_(255)
    again = list(loader)
    loader.close()
    del loader
    gc.collect()
    assert again[0]["image"][3].tolist() == containers.image(3).tolist()
    assert first["image"].min() == 255
    assert first["image"].is_contiguous()


# Epochs and state ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "threads"), THREADS)
@pytest.mark.parametrize("stop", [0, 1, 4, 6, 7])
def test_resume_is_exact(path: str, depth: int, threads: int, stop: int) -> None:
    """A state, through JSON, in another loader: exactly the batches that were not delivered, however many were made."""
    options: Any = {"shuffle": True, "seed": 11, "prefetch": depth, "threads": threads}
    with Loader(path, 16, **options) as whole:
        expected = [batch["label"].tolist() for _ in range(2) for batch in whole]
    done = []
    with Loader(path, 16, **options) as first:
        batches = iter(first)
        for _ in range(stop):
            done.append(next(batches)["label"].tolist())
        state = json.dumps(first.state_dict())
    assert len(state) < 1000
    with Loader(path, 16, **options) as second:
        second.load_state_dict(json.loads(state))
        assert second.epoch == (1 if stop == 7 else 0)
        rest = [batch["label"].tolist() for batch in second]
        if stop < 7:
            rest += [batch["label"].tolist() for batch in second]
    assert done + rest == expected


def test_state_inside_the_loop(path: str) -> None:
    """Taken in the body of the loop, a state counts the batch that the body has."""
    with Loader(path, 16) as loader:
        seen = [(loader.state_dict()["epoch"], loader.state_dict()["samples_seen"]) for _ in loader]
    assert seen == [(0, 16), (0, 32), (0, 48), (0, 64), (0, 80), (0, 96), (1, 0)]


def test_resume_with_other_ranks(path: str) -> None:
    """Two ranks stop in the middle; three, with another batch size, take exactly the rest."""
    seen = []
    for rank in range(2):
        with Loader(path, 8, shuffle=True, rank=rank, world_size=2) as loader:
            batches = iter(loader)
            seen += labels([next(batches) for _ in range(3)])
            state = loader.state_dict()
    for rank in range(3):
        with Loader(path, 5, shuffle=True, rank=rank, world_size=3) as loader:
            loader.load_state_dict(state)
            seen += labels(loader)
    assert sorted(seen) == list(range(N))


def test_a_half_read_epoch_is_followed_by_the_next(path: str) -> None:
    """break, then a new loop: another epoch, as with a DataLoader; set_epoch and load_state_dict choose."""
    with Loader(path, 16, shuffle=True) as loader, Loader(path, 16, shuffle=True) as other:
        expected = [labels(other) for _ in range(3)]
        for _ in loader:
            break
        assert labels(loader) == expected[1]
        loader.set_epoch(0)
        assert labels(loader) == expected[0]
        for number, batch in enumerate(loader):
            first = batch["label"].tolist()
            if number == 0:
                break
        loader.load_state_dict(loader.state_dict())
        assert first + labels(loader) == expected[1]


def test_a_newer_iteration_ends_the_older(path: str) -> None:
    """The older one says so; the newer one is whole."""
    with Loader(path, 16) as loader:
        first = iter(loader)
        next(first)
        second = iter(loader)
        with pytest.raises(ClosedError, match="begin a new one"):
            next(first)
        assert len(labels(second)) == N


def test_states_that_are_refused(path: str, tmp_path: Path) -> None:
    """Other data, another seed or version: StateError that says what to do; the running iteration is not disturbed."""
    other = containers.plain(tmp_path / "b.cks", 50)
    with Loader(path, 16) as loader, Loader(other, 16) as foreign, Loader(path, 16, seed=3) as seeded:
        batches = iter(loader)
        next(batches)
        for state, text in [
            (foreign.state_dict(), "fingerprint"),
            (seeded.state_dict(), "pass the same seed"),
            (loader.state_dict() | {"version": 9}, "another release"),
            ([], "expected a dict"),
        ]:
            with pytest.raises(StateError, match=text):
                loader.load_state_dict(state)  # type: ignore[arg-type]
        assert len(labels(batches)) == N - 16


def test_resume_takes_no_time(path: str) -> None:
    """From load_state_dict to the first batch, anywhere in an epoch, under 10 ms."""
    with Loader(path, 4, shuffle=True) as loader:
        list(loader)
        best = 1.0
        for seen in (0, 52, 96):
            state = loader.state_dict() | {"epoch": 5, "samples_seen": seen}
            for _ in range(3):
                start = time.perf_counter()
                loader.load_state_dict(state)
                next(iter(loader))
                best = min(best, time.perf_counter() - start)
    assert best < 0.01


# Threads ------------------------------------------------------------------------------------------


def test_threads_live_as_long_as_an_iteration(path: str) -> None:
    """None before the first iter(), none after the last batch, none after close(), none after the iterator is gone."""
    loader = Loader(path, 1, threads=2)
    assert loader_threads() == []
    batches = iter(loader)
    next(batches)
    assert len(loader_threads()) == 2
    list(batches)
    assert loader_threads() == []
    batches = iter(loader)
    del batches
    assert loader_threads() == []
    batches = iter(loader)
    loader.close()
    assert loader_threads() == []
    with pytest.raises(ClosedError):
        next(batches)


def test_how_many_threads(tmp_path: Path, path: str) -> None:
    """Two where 512 KiB a field are read at a time, without transforms, which may not expect them; else one."""
    with chunkstore.Writer(tmp_path / "a.cks") as writer:
        for i in range(256):
            writer.add({"x": np.full(8 << 10, i, np.uint8)})
    file = tmp_path / "a.cks"
    for expected, loader in [
        (2, Loader(file, 4)),  # 16 batches are read at a time
        (1, Loader(file, 3)),
        (1, Loader(file, 64, batch_transform=dict)),
        (1, Loader(file, 64, transform=dict)),
        (1, Loader(file, 64, device_transform=dict)),
        (3, Loader(file, 4, batch_transform=dict, threads=3)),
        (1, Loader(path, 4)),
    ]:
        batches = iter(loader)
        assert len(loader_threads()) == expected
        del batches
        loader.close()


def test_a_loop_that_is_left_stops_its_threads(path: str) -> None:
    """By break, and by an exception."""
    loader = Loader(path, 16)
    for _ in loader:
        break
    assert loader_threads() == []
    with pytest.raises(ZeroDivisionError):
        for _ in loader:
            1 / 0  # noqa: B018
    gc.collect()
    assert loader_threads() == []


@pytest.mark.parametrize("end", [Loader.close, iter])
def test_threads_of_a_dropped_iteration_are_waited_for(path: str, end: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also such as a garbage collection has not waited for: their buffers and container are the next iteration's."""
    monkeypatch.setattr("chunkstore._loading.prefetch._PATIENCE_SECONDS", 0.01)
    calls, go = threading.Semaphore(0), threading.Event()

    def slow(batch: Any) -> Any:
        calls.release()
        assert go.wait(30)
        return batch

    loader = Loader(path, 10, batch_transform=slow)
    iterator: Any = iter(loader)
    assert calls.acquire(timeout=30)
    (thread,) = (thread for thread in threading.enumerate() if thread.name.startswith("chunkstore-loader"))
    del iterator
    assert thread.is_alive()
    timer = threading.Timer(0.2, go.set)
    timer.start()
    following = end(loader)
    assert not thread.is_alive()
    timer.join()
    del following
    loader.close()


def test_a_loader_made_in_the_head_of_the_loop(path: str) -> None:
    """It lives as long as the loop."""
    assert labels(batch for batch in Loader(path, 16)) == list(range(N))


def test_closed_and_used_again(path: str) -> None:
    """After close() the next iter() opens the container again."""
    loader = Loader(path, 16)
    assert len(labels(loader)) == N
    loader.close()
    loader.close()
    assert len(labels(loader)) == N
    loader.close()


def test_close_frees_the_buffers(path: str) -> None:
    """What was kept to be used again is given back; a batch that the user has stays his."""
    loader = Loader(path, 16)
    batch = next(iter(loader))
    recycler = loader._transfer._recycler  # type: ignore[union-attr]
    assert recycler._pools
    loader.close()
    assert not recycler._pools
    assert batch["label"].tolist() == list(range(16))


def test_a_loader_cannot_be_pickled(path: str) -> None:
    """It has threads; the message says what to send instead."""
    with Loader(path, 16) as loader, pytest.raises(TypeError, match="pass its path and arguments"):
        pickle.dumps(loader)


def test_stats(path: str) -> None:
    """Batches, samples, bytes and seconds are counted as delivered; a slow user has hardly any stall."""
    with Loader(path, 10) as loader:
        for _ in loader:
            time.sleep(0.005)
        stats = loader.stats()
    assert (stats.num_batches, stats.num_samples, stats.num_bytes) == (10, 100, 100 * (15 + 8))
    assert 0.04 < stats.elapsed_seconds < 5
    assert 0 < stats.wait_seconds < stats.elapsed_seconds
    assert stats.load_seconds > 0
    assert stats.stall == stats.wait_seconds / stats.elapsed_seconds


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "threads"), THREADS)
def test_a_transform_that_raises(path: str, depth: int, threads: int) -> None:
    """Its exception comes up in next(), in its turn, with the sample's key; then the loader goes on where it failed."""
    broken = True

    def fail_on_42(sample: dict[str, Any]) -> dict[str, Any]:
        if broken and sample["label"] == 42:
            raise LookupError("no such thing")
        return sample

    with Loader(path, 10, transform=fail_on_42, prefetch=depth, threads=threads) as loader:
        seen = []
        with pytest.raises(LookupError, match="no such thing") as caught:
            for batch in loader:
                seen += batch["label"].tolist()
        assert seen == list(range(40))
        assert any("in transform= of sample 42 'k42'" in note for note in caught.value.__notes__)
        assert any("samples 40 'k40', 41 'k41'" in note for note in caught.value.__notes__)
        assert loader_threads() == []
        broken = False
        loader.load_state_dict(loader.state_dict())
        assert seen + labels(loader) == list(range(N))


def test_transforms_of_batches_that_raise(path: str) -> None:
    """The note names the first samples of the batch."""
    for name in ("batch_transform", "device_transform"):
        with Loader(path, 10, **{name: lambda batch: batch["imge"]}) as loader:  # type: ignore[arg-type]
            with pytest.raises(KeyError) as caught:
                list(loader)
            assert "samples 0 'k0', 1 'k1', 2 'k2', 3 'k3' and 6 more" in caught.value.__notes__[-1]


def test_damage_comes_up_with_the_key(tmp_path: Path) -> None:
    """A flipped bit is a CorruptError with the key, after the batches before it; the loader can be used again."""
    file = tmp_path / "a.cks"
    with chunkstore.Writer(file) as writer:
        for i in range(20):
            writer.add({"x": np.full(8192, i, np.uint8)}, key=f"k{i}")
    data = bytearray(file.read_bytes())
    data[data.index(b"\7" * 8192) + 100] ^= 1
    file.write_bytes(data)
    with Loader(file, 2) as loader:
        for _ in range(2):
            seen = []
            with pytest.raises(CorruptError, match="'k7'"):
                for batch in loader:
                    seen += batch["x"][:, 0].tolist()
            assert seen == list(range(6))


def test_a_file_damaged_between_epochs(tmp_path: Path) -> None:
    """verify="always" finds damage that comes after a chunk was read; the default checks each chunk once."""
    file = tmp_path / "a.cks"
    with chunkstore.Writer(file) as writer:
        for i in range(20):
            writer.add({"x": np.full(8192, i, np.uint8)}, key=f"k{i}")
    with Loader(file, 4, shuffle=True, verify="always") as loader:
        list(loader)
        offset = file.read_bytes().index(b"\7" * 8192) + 100
        with file.open("r+b") as stream:
            stream.seek(offset)
            stream.write(b"\0")
        with pytest.raises(CorruptError, match="'k7'"):
            list(loader)


def test_a_file_cut_off_between_epochs(tmp_path: Path) -> None:
    """TruncatedError in the next epoch, not a dead process; whole again, it is read again."""
    file = Path(containers.plain(tmp_path / "a.cks"))
    data = file.read_bytes()
    with Loader(file, 10) as loader:
        assert len(labels(loader)) == N
        with file.open("r+b") as stream:
            stream.truncate(len(data) // 2)
        with pytest.raises(TruncatedError):
            list(loader)
        with file.open("r+b") as stream:
            stream.write(data)
        loader.set_epoch(5)
        assert len(labels(loader)) == N


def test_a_file_replaced_while_closed(tmp_path: Path) -> None:
    """Opened again after close(), another container under the same path is refused, and its return accepted."""
    file = Path(containers.plain(tmp_path / "a.cks"))
    kept = file.rename(tmp_path / "kept.cks")
    loader = Loader(kept, 10)
    loader.close()
    containers.plain(kept.rename(file).with_name("kept.cks"), 30)
    with pytest.raises(ReplacedError, match="not the one"):
        list(loader)
    file.replace(kept)
    assert len(labels(loader)) == N
    loader.close()


def test_stop_iteration_in_a_transform(path: str) -> None:
    """It does not pass for the end of the epoch."""
    loader = Loader(path, 10, transform=lambda sample: next(iter(())))
    with loader, pytest.raises(RuntimeError, match="a transform raised StopIteration"):
        list(loader)


@pytest.mark.parametrize("device", [None, "meta"])
def test_stop_iteration_in_a_device_transform(path: str, device: str | None) -> None:
    """Neither in the loader's thread nor, of a device without a driver, in the user's."""

    def broken(batch: Any) -> Any:
        return next(iter(()))

    with Loader(path, 10, device=device, device_transform=broken) as loader:
        with pytest.raises(RuntimeError, match="a transform raised StopIteration"):
            list(loader)
        assert loader.state_dict()["samples_seen"] == 0
    with pytest.raises(RuntimeError, match="a transform raised StopIteration"):
        list(prefetch([torch.zeros(3)], device, device_transform=broken))


@pytest.mark.parametrize("value", [None, 0, ()])
def test_a_transform_may_return_nothing(path: str, value: Any) -> None:
    """Any value is a batch, None too."""
    with Loader(path, 10, batch_transform=lambda batch: value) as loader:
        assert list(loader) == [value] * 10


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"prefetch": -1}, ValueError, "prefetch"),
        ({"prefetch": 1.5}, TypeError, "prefetch"),
        ({"threads": 0}, ValueError, "threads"),
        ({"device": "gpu"}, ValueError, "device: expected one of torch's devices.*'gpu'"),
        ({"device_transform": 5}, TypeError, "device_transform: expected a function"),
        ({"fields": ["nope"]}, ValueError, "fields: .*no field 'nope'"),
        ({"ragged": "x"}, ValueError, "ragged: expected one of"),
        ({"rank": 0}, ValueError, "rank, world_size"),
        ({"shuffle": "b"}, ValueError, "shuffle"),
        ({"verify": "maybe"}, ValueError, "verify"),
    ],
)
def test_bad_arguments(path: str, options: Any, error: type[Exception], text: str) -> None:
    """Each names the parameter, before anything starts."""
    with pytest.raises(error, match=text):
        Loader(path, **({"batch_size": 10} | options))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(path: str) -> None:
    """device="cuda" and pin_memory=True without a GPU: a RuntimeError that names the parameter."""
    for device in ("cuda", "cuda:0", 0):
        with pytest.raises(RuntimeError, match=r"device=('cuda|0).*sees no CUDA device"):
            Loader(path, 10, device=device)
        with pytest.raises(RuntimeError, match=r"device=('cuda|0).*sees no CUDA device"):
            prefetch([], device)
    with pytest.raises(RuntimeError, match=r"pin_memory=True: .*sees no CUDA device"):
        Loader(path, 10, pin_memory=True)


@pytest.mark.parametrize(
    ("device", "error", "text"),
    [
        ("vulkan", RuntimeError, "device='vulkan': torch .* has no such device; use device=None"),
        ("mtia:3", RuntimeError, "device='mtia:3': torch .* has no such device; use device=None"),
        ("gpu", ValueError, "device: expected one of torch's devices, .*found 'gpu'"),
        (-1, ValueError, "device: expected one of torch's devices, .*found -1"),
        (1.5, TypeError, "device: expected one of torch's devices, .*found 1.5"),
    ],
)
def test_devices_that_are_not_there(path: str, device: Any, error: type[Exception], text: str) -> None:
    """Refused where it is asked for, and not with the first batch; by `prefetch`, too."""
    with pytest.raises(error, match=text):
        Loader(path, 10, device=device)
    with pytest.raises(error, match=text):
        prefetch([], device)


def test_a_device_without_a_driver(path: str) -> None:
    """Batches are copied in `next()`, device_transform called there; where it fails the iteration ends, and the state
    is that of the batch which failed.
    """
    broken = True

    def check(batch: dict[str, Any]) -> dict[str, Any]:
        assert all(tensor.device.type == "meta" for tensor in batch.values())
        if broken and loader.stats().num_batches == 2:
            raise LookupError("no")
        return batch

    with Loader(path, 16, device="meta", device_transform=check) as loader:
        batches = iter(loader)
        next(batches), next(batches)
        with pytest.raises(LookupError):
            next(batches)
        with pytest.raises(chunkstore.ClosedError):
            next(batches)
        state = loader.state_dict()
        assert state["samples_seen"] == 32
        broken = False
        loader.load_state_dict(state)
        assert [len(batch["label"]) for batch in loader] == [16] * 4 + [N - 96]


# prefetch -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 3])
def test_prefetch_of_any_loader(path: str, depth: int) -> None:
    """The batches of a DataLoader, in order, each epoch anew; length and attributes are the loader's."""
    ahead = prefetch(DataLoader(Dataset(path), batch_size=16), depth=depth)
    for _ in range(2):
        assert labels(ahead) == list(range(N))
    assert len(ahead) == 7
    assert ahead.batch_size == 16


def test_prefetch_takes_batches_ahead() -> None:
    """`depth` batches are taken while the user has one."""
    taken = []

    def batches() -> Iterator[Any]:
        for number in range(10):
            taken.append(number)
            yield {"x": torch.tensor([number]), "other": "text"}

    ahead = iter(prefetch(batches(), "cpu", depth=2, device_transform=lambda b: b | {"x": b["x"] * 2}))
    first = next(ahead)
    deadline = time.monotonic() + 10
    while len(taken) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert taken == [0, 1, 2]
    assert (first["x"].item(), first["other"]) == (0, "text")
    assert [batch["x"].item() for batch in ahead] == [2 * number for number in range(1, 10)]
    assert list(ahead) == []


def test_prefetch_lets_go_of_the_loader() -> None:
    """A closed iteration does not keep that of the loader, which may have worker processes."""
    ended = []

    def batches() -> Iterator[Any]:
        try:
            while True:
                yield torch.zeros(1)
        finally:
            ended.append(True)

    ahead = iter(prefetch(batches()))
    next(ahead)
    assert not ended
    ahead.close()
    gc.collect()
    assert ended


def test_prefetch_passes_errors_on() -> None:
    """An error of the loader comes after its batches; half-read iterations leave no thread."""

    def batches() -> Iterator[Any]:
        yield torch.zeros(1)
        raise OSError("lost")

    ahead = iter(prefetch(batches()))
    next(ahead)
    with pytest.raises(OSError, match="lost"):
        next(ahead)
    for _ in prefetch([torch.zeros(1)] * 5):
        break
    with pytest.raises(TypeError, match="loader: expected an iterable"):
        prefetch(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="device_transform: expected a function, found int"):
        prefetch([], device_transform=5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="depth"):
        prefetch([], depth=0)
