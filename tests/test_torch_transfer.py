"""From host to device: nothing is overwritten while in use; on a fake device everywhere, on a GPU where one is."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import chunkstore

torch = pytest.importorskip("torch")

import torch_containers as containers  # noqa: E402
from fake_device import FakeDriver, raw  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from chunkstore._torch import transfer  # noqa: E402
from chunkstore._torch.convert import map_tensors, num_bytes  # noqa: E402
from chunkstore._torch.transfer import Staging  # noqa: E402
from chunkstore.torch import Dataset, Loader, prefetch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
N = 96
BATCH = 8


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A container of `containers.numbered`."""
    return containers.numbered(tmp_path_factory.mktemp("torch") / "rows.cks", N)


@pytest.fixture
def drivers() -> Iterator[list[FakeDriver]]:
    made: list[FakeDriver] = []
    yield made
    for driver in made:
        driver.close()


def staged_loader(
    path: str, driver: FakeDriver, *, static: bool = False, transform: Any = None, **options: Any
) -> Loader:
    """A loader as `device="cuda"` makes it, with the fake device in the place of the GPU."""
    loader = Loader(path, BATCH, **options)
    num_fixed = loader._prefetch + 1 if static else 0
    loader._transfer = Staging(driver, num_slots=loader._threads + 1, num_fixed=num_fixed, device_transform=transform)
    return loader


def train(loader: Loader, driver: FakeDriver, epochs: int = 3) -> int:
    """Use each batch on the user's stream, later, and drop it at once; return how many saw wrong bytes."""
    wrong: list[int] = []
    seen = 0
    for _ in range(epochs):
        for batch in loader:
            x, label = raw(batch["x"]), raw(batch["label"])
            shape = batch["x"].shape
            assert batch["label"].shape == shape[:1]
            seen += len(label) // 8

            def kernel(x: np.ndarray = x, label: np.ndarray = label, shape: Any = shape) -> None:
                rows, ids = x.copy().reshape(shape), label.copy().view(np.int64)
                wrong.append(int((rows != ids.astype(np.uint8)[:, None]).any() or (ids < 0).any()))

            driver.current.issue(kernel)
            del batch
    loader.close()
    done = driver.record()
    assert done.wait(60)
    assert seen == epochs * N
    assert len(wrong) == epochs * -(-N // BATCH)
    return sum(wrong)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(("depth", "threads"), [(0, 1), (1, 1), (4, 1), (3, 2)])
def test_no_batch_is_overwritten_in_use(
    path: str, drivers: list[FakeDriver], static: bool, depth: int, threads: int
) -> None:
    """Copies and kernels that run late see the right bytes, in pinned buffers and in device memory alike."""
    drivers.append(driver := FakeDriver())
    loader = staged_loader(path, driver, static=static, shuffle=True, prefetch=depth, threads=threads)
    assert train(loader, driver) == 0
    if static:
        assert len(driver.addresses) == 2 * (depth + 1)


@pytest.mark.parametrize(
    ("forget", "static"),
    [("wait", False), ("synchronize", False), ("keep", False), ("wait", True), ("synchronize", True)],
)
def test_the_fake_device_notices_what_is_forgotten(
    path: str, drivers: list[FakeDriver], forget: str, static: bool
) -> None:
    """Without any one of the three precautions, wrong bytes are seen: the test above can fail."""
    drivers.append(driver := FakeDriver(forget=(forget,)))
    assert train(staged_loader(path, driver, static=static, shuffle=True, prefetch=3), driver, 6) > 0


def test_pinned_buffers_are_allocated_once(path: str, drivers: list[FakeDriver]) -> None:
    """Two slots of two fields, however many batches and epochs; batches of host memory never leave them."""
    drivers.append(driver := FakeDriver(0))
    assert train(staged_loader(path, driver), driver, 5) == 0
    assert driver.num_pinned == 4


@pytest.mark.parametrize(("depth", "threads", "static"), [(0, 1, False), (3, 2, True)])
@pytest.mark.parametrize(
    "options",
    [
        {"ragged": "offsets"},
        {"ragged": "list", "transform": lambda sample: sample},
        {"ragged": "pad", "pad_value": 0, "batch_transform": lambda batch: SimpleNamespace(**batch).__dict__},
        {"ragged": "nested", "fields": ["tokens", "label"]},
        {"ragged": "offsets", "batch_transform": lambda batch: Pair(batch["tokens"], batch["label"].numpy()[::-1])},
        {"ragged": "offsets", "batch_transform": lambda batch: {"part": batch["label"][2:].float()}},
    ],
)
def test_no_memory_is_pinned_once_batches_have_had_their_largest_size(
    tmp_path: Path, drivers: list[FakeDriver], options: Any, depth: int, threads: int, static: bool
) -> None:
    """Nothing of ours refers to a buffer when it comes to be filled again: such a one would be replaced each time."""
    drivers.append(driver := FakeDriver(0))
    path = containers.ragged(tmp_path / "ragged.cks", N)
    transform = (lambda batch: batch) if static else None
    dataset: Any = Dataset(path, **options)
    loader = staged_loader(dataset, driver, static=static, transform=transform, prefetch=depth, threads=threads)
    pinned = []
    gc.disable()
    try:
        for _ in range(8):
            for _batch in loader:
                pass
            pinned.append(driver.num_pinned)
    finally:
        gc.enable()
        loader.close()
        dataset.close()
    # Which batch comes to which buffers is chance where there are threads: in 48 batches one or the other may grow.
    assert pinned[-1] - pinned[3] <= (9 if depth else 0)


@pytest.mark.parametrize("static", [False, True])
def test_device_transform_runs_on_the_copy_stream(path: str, drivers: list[FakeDriver], static: bool) -> None:
    """It is issued behind the copies and before the event that the user's stream waits for."""
    drivers.append(driver := FakeDriver())
    streams = set()

    def decode(batch: dict[str, Any]) -> dict[str, Any]:
        streams.add(driver.current)
        made = {name: driver.empty(tuple(tensor.shape), tensor.dtype) for name, tensor in batch.items()}
        for name, tensor in batch.items():
            into, out_of = raw(made[name]), raw(tensor)
            driver.current.issue(lambda into=into, out_of=out_of: np.copyto(into, out_of))
        return made

    loader = staged_loader(path, driver, static=static, transform=decode, shuffle=True, prefetch=3)
    assert train(loader, driver, 5) == 0
    assert streams == {driver.copies}


def test_device_transform_sees_what_the_user_made_before(path: str, drivers: list[FakeDriver]) -> None:
    """Work of the user's stream from before the iteration, however slow, comes before the copy stream's."""
    drivers.append(driver := FakeDriver(0))
    table, seen = np.zeros(1, np.uint8), []

    def look_up(batch: dict[str, Any]) -> dict[str, Any]:
        driver.current.issue(lambda: seen.append(table.item()))
        return batch

    loader = staged_loader(path, driver, transform=look_up)
    driver.user.issue(lambda: (time.sleep(0.2), table.fill(7)))
    assert train(loader, driver, 1) == 0
    assert set(seen) == {7}


def test_transforms_that_make_new_tensors(path: str, drivers: list[FakeDriver]) -> None:
    """What a batch_transform makes, tensors or NumPy arrays, is staged in pinned memory, too."""
    drivers.append(driver := FakeDriver())
    made = {
        "tensors": lambda b: {"x": b["x"] + 0, "label": b["label"].clone()},
        "arrays": lambda b: {"x": b["x"].numpy(), "label": b["label"].numpy()},
        "flipped": lambda b: {"x": b["x"].numpy()[::-1], "label": b["label"].numpy()[::-1]},
        "views": lambda b: {"x": b["x"].T.contiguous().T, "label": b["label"][:]},
    }
    for function in made.values():
        loader = staged_loader(path, driver, shuffle=True, batch_transform=function)
        assert train(loader, driver) == 0


@dataclass(frozen=True)
class Pair:
    """A batch of a user's own."""

    x: Any
    label: Any

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


@pytest.mark.parametrize("where", ["batch_transform", "transform"])
def test_dataclasses_of_tensors(path: str, drivers: list[FakeDriver], where: str) -> None:
    """They are moved, and kept while they are in use, like dicts."""
    drivers.append(driver := FakeDriver())
    options: Any = {where: lambda batch: Pair(batch["x"], batch["label"])}
    loader = staged_loader(path, driver, shuffle=True, prefetch=3, **options)
    assert next(iter(loader))["x"].data_ptr() in driver.addresses
    assert train(loader, driver) == 0


def test_ragged_rows_of_a_reader_pass_unchanged(tmp_path: Path, drivers: list[FakeDriver]) -> None:
    """Their methods are for NumPy arrays: texts of tensors could not be read."""
    drivers.append(driver := FakeDriver(0))
    with chunkstore.open(containers.ragged(tmp_path / "ragged.cks", 4)) as reader:
        made = prefetch([reader.batch(range(4))])
    made._transfer = Staging(driver, num_slots=2)
    (batch,) = made
    assert batch["label"].data_ptr() in driver.addresses
    assert list(batch["text"]) == ["", "é", "éé", "ééé"]
    assert batch["tokens"][2].tolist() == [2, 3]


class Bound(Pair):
    """Adds an attribute that is no field."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", len(self.x))


@dataclass(frozen=True)
class Slots:
    __slots__ = ("x",)
    x: Any


@dataclass(frozen=True, slots=True)
class Base:
    x: Any


@dataclass(frozen=True)
class Derived(Base):
    """What `copy` makes of it has no `size`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", len(self.x))


@dataclass
class Single:
    """That `copy` gives the object itself is right for one that nobody changes."""

    x: Any

    def __copy__(self) -> Single:
        return self


@dataclass
class Unpicklable:
    x: Any

    def __getstate__(self) -> Any:
        raise TypeError("not to be pickled")


@pytest.mark.parametrize("kind", [lambda x: Bound(x, None), Slots, Derived, Single, Unpicklable])
def test_dataclasses_are_not_changed(kind: Any) -> None:
    """Whatever they have of their own: others are made of them, with all attributes."""
    tree = kind(torch.arange(3))
    mapped = map_tensors(tree, lambda tensor: tensor + 1)
    assert type(mapped) is type(tree)
    assert mapped.x.tolist() == [1, 2, 3]
    assert num_bytes(tree) == 24
    assert tree.x.tolist() == [0, 1, 2]
    assert getattr(mapped, "size", None) == getattr(tree, "size", None)
    without = kind("abc")
    assert map_tensors(without, lambda tensor: tensor) is without


def test_what_a_transform_keeps_stays_as_it_is(path: str, drivers: list[FakeDriver]) -> None:
    """Also what it returns inside of an object that is not looked into, and that so stays in host memory."""
    drivers.append(driver := FakeDriver(0))
    loader = staged_loader(path, driver, batch_transform=lambda batch: SimpleNamespace(**batch))
    batches = list(loader)
    loader.close()
    for place, batch in enumerate(batches):
        assert batch.label.tolist() == list(range(place * BATCH, (place + 1) * BATCH))
        assert batch.x[:, 63].tolist() == batch.label.tolist()


def test_what_is_copied_belongs_to_the_pinned_storage(path: str, drivers: list[FakeDriver]) -> None:
    """Also parts of a batch: torch's allocator knows by the storage that a copy from its memory is under way."""

    class Watched(FakeDriver):
        def pinned(self, nbytes: int) -> Any:
            memory = super().pinned(nbytes)
            storages.add(memory.untyped_storage()._cdata)
            return memory

        def copy(self, destination: Any, source: Any) -> None:
            copied.append(source.untyped_storage()._cdata)
            super().copy(destination, source)

    storages: set[int] = set()
    copied: list[int] = []
    drivers.append(driver := Watched())
    halves = Dataset(path, batch_transform=lambda b: {"x": b["x"][4:, ::2], "label": b["label"][4:]})
    loader = staged_loader(halves, driver, shuffle=True)  # type: ignore[arg-type]
    for batch in loader:
        assert tuple(batch["x"].shape) == (4, 32)
    loader.close()
    assert len(copied) == 2 * N // BATCH
    # The rows have gaps: they were made one piece in a buffer of their own.
    assert set(copied) <= storages


def test_pinned_host_batches_belong_to_the_pinned_storage(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where the user copies: each tensor is a part of what the allocator of pinned memory gave."""
    storages: list[int] = []

    def pinned(nbytes: int) -> Any:
        memory = torch.empty(nbytes, dtype=torch.uint8)
        storages.append(memory.untyped_storage()._cdata)
        return memory

    monkeypatch.setattr(transfer, "_pinned_memory", pinned)
    dataset = Dataset(path, batch_transform=lambda b: {"x": b["x"][4:], "label": b["label"]})
    host = transfer.Host(0, pin_memory=True)
    batch = host.load(lambda allocate: dataset.make_batch(np.arange(8, 16), allocate))
    assert batch["label"].tolist() == list(range(8, 16))
    assert batch["x"][:, 63].tolist() == [12, 13, 14, 15]
    assert {tensor.untyped_storage()._cdata for tensor in batch.values()} == set(storages)


def test_pinned_host_batches_go_without_a_garbage_collection(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinned memory is dear: nothing that refers to itself holds it."""
    pieces: list[Any] = []

    def pinned(nbytes: int) -> Any:
        memory = torch.empty(nbytes, dtype=torch.uint8)
        pieces.append(weakref.ref(memory))
        return memory

    monkeypatch.setattr(transfer, "_pinned_memory", pinned)
    dataset, host = Dataset(path), transfer.Host(0, pin_memory=True)
    gc.disable()
    try:
        host.load(lambda allocate: dataset.make_batch(np.arange(8), allocate))
        assert len(pieces) == 2
        assert [piece() for piece in pieces] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("change", "is_part"),
    [
        (lambda t: t[3:], True),
        (lambda t: t.T, True),
        (lambda t: t.view(torch.bfloat16)[:, 1:], True),
        (lambda t: t.view(torch.complex64).conj(), False),
        (lambda t: torch.frombuffer(t.numpy().reshape(-1).view(np.uint8)[1:5], dtype=torch.float32), False),
        (lambda t: t + 1, False),
    ],
)
def test_parts_of_memory(change: Any, is_part: bool) -> None:
    """Views, also of another dtype, are parts of the same memory; what a storage cannot say is none."""
    owner = torch.arange(256, dtype=torch.uint8)
    changed = change(torch.from_numpy(owner.numpy().view(np.float32).reshape(8, 8)))
    assert (transfer._owner_of(changed, [torch.zeros(8, dtype=torch.uint8), owner]) is owner) == is_part
    if is_part:
        part = transfer._part_of(owner, changed)
        assert part.dtype == changed.dtype
        assert (part.shape, part.stride()) == (changed.shape, changed.stride())
        assert part.data_ptr() == changed.data_ptr()
        assert part.untyped_storage()._cdata == owner.untyped_storage()._cdata


def test_a_half_read_epoch_and_the_next(path: str, drivers: list[FakeDriver]) -> None:
    """Static sets that were on their way when an epoch was left are all there for the next one."""
    drivers.append(driver := FakeDriver())
    loader = staged_loader(path, driver, static=True, shuffle=True, prefetch=3)
    for _ in range(4):
        for number, _ in enumerate(loader):
            if number == 2:
                break
    assert train(loader, driver) == 0


@pytest.mark.parametrize("static", [False, True])
def test_close_in_full_flight(path: str, drivers: list[FakeDriver], static: bool) -> None:
    """Buffers that are freed while copies and kernels are under way are not torn from under them."""
    drivers.append(driver := FakeDriver())
    loader = staged_loader(path, driver, static=static, shuffle=True, prefetch=3)
    wrong: list[bool] = []
    for _ in range(10):
        batch = next(iter(loader))
        x, label = raw(batch["x"]), raw(batch["label"])
        driver.current.issue(
            lambda x=x, label=label: wrong.append(
                bool((x.reshape(-1, 64) != label.view(np.int64).astype(np.uint8)[:, None]).any())
            )
        )
        del batch
        loader.close()
    assert driver.record().wait(30)
    assert wrong == [False] * 10
    assert driver.num_pinned > 4


def test_inference_mode_of_the_user(path: str, drivers: list[FakeDriver]) -> None:
    """An epoch in inference mode, then one outside: what is kept between them can still be written, without threads."""
    drivers.append(driver := FakeDriver(0))
    loader = staged_loader(path, driver, prefetch=0, batch_transform=lambda b: {name: b[name] + 0 for name in b})
    with torch.inference_mode():
        for batch in loader:
            assert not batch["x"].is_inference()
    assert train(loader, driver, 1) == 0


def test_tensors_that_require_grad(path: str, drivers: list[FakeDriver]) -> None:
    """They arrive without it: autograd does not follow them into buffers that are filled again."""
    drivers.append(driver := FakeDriver(0))
    batches = [{"x": torch.full((8,), float(i), requires_grad=True)} for i in range(4)]
    sent = prefetch(batches)
    sent._transfer = Staging(driver, num_slots=2)
    for number, batch in enumerate(sent):
        assert driver.record().wait(30)
        assert not batch["x"].requires_grad
        assert batch["x"].tolist() == [float(number)] * 8


def test_several_iterations_of_a_prefetch(drivers: list[FakeDriver]) -> None:
    """More at a time than there are sets of pinned buffers: each has its own batches."""
    drivers.append(driver := FakeDriver(0.001))
    sent = prefetch([torch.full((8,), i) for i in range(5)], depth=1)
    sent._transfer = Staging(driver, num_slots=1)
    iterators = [iter(sent) for _ in range(4)]
    for number in range(5):
        batches = [next(iterator) for iterator in iterators]
        assert driver.record().wait(30)
        assert [batch.tolist() for batch in batches] == [[number] * 8] * 4
    for iterator in iterators:
        iterator.close()


# With a GPU ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """256 rows of 512 KiB whose every byte is the sample's position."""
    file = tmp_path_factory.mktemp("torch") / "large.cks"
    with chunkstore.Writer(file) as writer:
        for i in range(256):
            writer.add({"x": np.full(1 << 19, i, np.uint8), "label": np.int64(i)})
    return str(file)


def count_wrong(x: Any, label: Any) -> Any:
    """On the device, without waiting: how many bytes are not those of their sample."""
    return (x != label.to(torch.uint8)[:, None]).sum()


@pytest.mark.needs_cuda
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(("depth", "threads"), [(0, 1), (2, 1), (4, 2)])
def test_cuda_no_batch_is_overwritten_in_use(large_path: str, static: bool, depth: int, threads: int) -> None:
    """Kernels that run late, behind a sleep on the user's stream, see the right bytes; batches are dropped at once."""
    wrong = []
    options: Any = {"shuffle": True, "prefetch": depth, "threads": threads, "static_buffers": static}
    with Loader(large_path, 16, device="cuda", **options) as loader:
        for _ in range(3):
            for number, batch in enumerate(loader):
                if number % 3 == 0:
                    torch.cuda._sleep(5_000_000)
                wrong.append(count_wrong(batch["x"], batch["label"]))
                if not static:
                    batch["x"].fill_(0xEE)
                del batch
    assert int(sum(wrong)) == 0
    assert len(wrong) == 48


@pytest.mark.needs_cuda
def test_cuda_on_a_stream_of_the_users(large_path: str) -> None:
    """Batches are ordered before the work of the stream that is current when they are taken, and kept for it."""
    stream = torch.cuda.Stream()
    wrong = []
    with Loader(large_path, 16, shuffle=True, device="cuda") as loader, torch.cuda.stream(stream):
        for _ in range(3):
            for batch in loader:
                torch.cuda._sleep(2_000_000)
                wrong.append(count_wrong(batch["x"], batch["label"]))
    stream.synchronize()
    assert int(sum(wrong)) == 0


SECOND_DEVICE = """
import sys, torch
from chunkstore.torch import Loader
for options in ({}, {"static_buffers": True}, {"prefetch": 0}):
    with Loader(sys.argv[1], 16, device="cuda:1", **options) as loader:
        assert all(batch["x"].device.index == 1 for batch in loader)
torch.cuda.synchronize(1)
assert not torch._C._cuda_hasPrimaryContext(0)
"""


@pytest.mark.needs_cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_cuda_second_device_leaves_the_first_alone(large_path: str) -> None:
    """Threads whose own device is the first one give it no context, which would take memory there in every process."""
    command = [sys.executable, "-c", SECOND_DEVICE, large_path]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.needs_cuda
def test_cuda_kept_batches(large_path: str) -> None:
    """Fresh tensors are the user's to keep."""
    with Loader(large_path, 16, shuffle=True, device="cuda") as loader:
        kept = list(loader)
        list(loader)
    assert len({batch["x"].data_ptr() for batch in kept}) == len(kept)
    assert sum(int(count_wrong(batch["x"], batch["label"])) for batch in kept) == 0


@pytest.mark.needs_cuda
def test_cuda_static_addresses(large_path: str) -> None:
    """static_buffers: prefetch + 1 addresses, the same in every epoch."""
    with Loader(large_path, 16, device="cuda", prefetch=2, static_buffers=True) as loader:
        places = {batch["x"].data_ptr() for _ in range(3) for batch in loader}
    assert len(places) == 3


@pytest.mark.needs_cuda
def test_cuda_device_transform(large_path: str) -> None:
    """It runs on the copy stream, on device tensors, and its results are safe in use."""
    streams, wrong = set(), []

    def decode(batch: Any) -> Any:
        streams.add(torch.cuda.current_stream().cuda_stream)
        return {"x": batch["x"].float() / 256, "label": batch["label"]}

    with Loader(large_path, 16, shuffle=True, device="cuda", device_transform=decode) as loader:
        for _ in range(3):
            for batch in loader:
                torch.cuda._sleep(1_000_000)
                wrong.append((batch["x"] != (batch["label"] / 256)[:, None]).sum())
                assert batch["x"].is_cuda
                del batch
    assert int(sum(wrong)) == 0
    assert len(streams) == 1
    assert torch.cuda.current_stream().cuda_stream not in streams


@pytest.mark.needs_cuda
@pytest.mark.parametrize("start", [0, 4])
def test_cuda_pinned_host_batches(large_path: str, start: int) -> None:
    """pin_memory=True: pinned tensors, also parts of a batch, whose copies survive dropping them at once."""
    wrong = []
    dataset = Dataset(large_path, batch_transform=lambda batch: {name: batch[name][start:] for name in batch})
    with Loader(dataset, 16, shuffle=True, pin_memory=True) as loader:
        for _ in range(3):
            for batch in loader:
                assert batch["x"].is_pinned()
                torch.cuda._sleep(2_000_000)
                x, label = (batch[name].to("cuda", non_blocking=True) for name in ("x", "label"))
                wrong.append(count_wrong(x, label))
                del batch
    assert int(sum(wrong)) == 0


@pytest.mark.needs_cuda
def test_cuda_prefetch_of_a_dataloader(large_path: str) -> None:
    """Any loader's batches arrive on the device, whole and in order."""
    ahead = prefetch(DataLoader(Dataset(large_path), 16), "cuda")
    seen, wrong = [], []
    for batch in ahead:
        torch.cuda._sleep(1_000_000)
        wrong.append(count_wrong(batch["x"], batch["label"]))
        seen.append(batch["label"])
    assert torch.cat(seen).tolist() == list(range(256))
    assert int(sum(wrong)) == 0


@pytest.mark.needs_cuda
def test_cuda_dataloader_pin_memory(large_path: str) -> None:
    """A plain DataLoader with pin_memory pins our batches."""
    for batch in DataLoader(Dataset(large_path), 64, num_workers=1, pin_memory=True):
        assert batch["x"].is_pinned()


@pytest.mark.needs_cuda
def test_cuda_copies_do_not_wait_for_compute(large_path: str) -> None:
    """While one kernel keeps the user's stream busy for a second, batches are taken and arrive."""
    arrived = []

    def note(batch: Any) -> Any:
        arrived.append(torch.cuda.Event())
        arrived[-1].record()
        return batch

    with Loader(large_path, 16, device="cuda", device_transform=note) as loader:
        kept = list(loader)  # all memory is taken now: that may wait for kernels
        del kept
        torch.cuda.synchronize()
        arrived.clear()
        batches = iter(loader)
        torch.cuda._sleep(2_000_000_000)
        busy = torch.cuda.Event()
        busy.record()
        for _ in range(8):
            next(batches)
        for event in arrived[:8]:
            event.synchronize()
        assert not busy.query()
        torch.cuda.synchronize()
