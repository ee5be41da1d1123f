"""What arrives on a device: the fake one everywhere, and a GPU where one is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chunkstore
from chunkstore._format.dtypes import EXTENDED, PLAIN

torch = pytest.importorskip("torch")

import torch_containers as containers  # noqa: E402
from fake_device import FakeDriver  # noqa: E402

from chunkstore._torch.transfer import Staging  # noqa: E402
from chunkstore.torch import Dataset, Loader, RaggedTensors, prefetch  # noqa: E402

N, BATCH = 96, 8


class Device:
    """Makes loaders for a device, and looks at what arrived."""

    def __init__(self, driver: FakeDriver | None) -> None:
        self._driver = driver

    def loader(self, source: Any, *, static: bool = False, device_transform: Any = None, **options: Any) -> Loader:
        if self._driver is None:
            return Loader(
                source, BATCH, device="cuda", static_buffers=static, device_transform=device_transform, **options
            )
        loader = Loader(source, BATCH, **options)
        loader._transfer = self._staging(loader._threads + 1, (loader._prefetch + 1) * static, device_transform)
        return loader

    def prefetch(self, batches: Any) -> Any:
        made = prefetch(batches, "cuda" if self._driver is None else None)
        if self._driver is not None:
            made._transfer = self._staging(2, 0, None)
        return made

    def _staging(self, num_slots: int, num_fixed: int, transform: Any) -> Staging[Any]:
        assert self._driver is not None
        return Staging(self._driver, num_slots=num_slots, num_fixed=num_fixed, device_transform=transform)

    def host(self, tensor: Any) -> Any:
        """The same tensor in host memory, after the work of the current stream."""
        if self._driver is None:
            assert tensor.is_cuda
            return tensor.cpu()
        assert self._driver.record().wait(30)
        return tensor


@pytest.fixture(params=["fake", pytest.param("cuda", marks=pytest.mark.needs_cuda)])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    driver = FakeDriver(0.001) if request.param == "fake" else None
    yield Device(driver)
    if driver is not None:
        driver.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A container of `containers.numbered`."""
    return containers.numbered(tmp_path_factory.mktemp("torch") / "rows.cks", N)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0)], ids=str)
def test_every_dtype(tmp_path: Path, device: Device, shape: tuple[int, ...], static: bool) -> None:
    """All that torch has, times too, arrive with their dtype, shape and bits; also in a last batch that is short."""
    names = [name for name in (*PLAIN, *EXTENDED) if hasattr(torch, name)] + ["datetime64[ms]"]
    fields = {name: chunkstore.Field(name, name, shape) for name in names}
    random = np.random.default_rng(5)
    with chunkstore.Writer(tmp_path / "a.cks", fields=list(fields.values())) as writer:
        for _ in range(2 * BATCH + 3):
            rows = {}
            for name, field in fields.items():
                nbytes = int(np.prod(shape)) * field.numpy_dtype.itemsize
                bits = random.integers(0, 2 if name == "bool" else 256, nbytes, dtype=np.uint8)
                rows[name] = bits.view(field.numpy_dtype).reshape(shape)
            writer.add(rows)
    options: Any = {"shuffle": True, "seed": 3}
    with (
        device.loader(tmp_path / "a.cks", static=static, **options) as loader,
        Loader(tmp_path / "a.cks", BATCH, **options) as plain,
    ):
        for batch, wanted in zip(loader, plain, strict=True):
            for name in names:
                found = device.host(batch[name])
                assert (found.dtype, found.shape) == (wanted[name].dtype, wanted[name].shape)
                if found.numel():
                    assert torch.equal(found.reshape(-1).view(torch.uint8), wanted[name].reshape(-1).view(torch.uint8))


VIEWS: dict[str, Callable[[Any], Any]] = {
    "slice": lambda x: x[3:],
    "steps": lambda x: x[::2, 1::3],
    "transposed": lambda x: x.T,
    "expanded": lambda x: x[:1].expand(5, 64),
    "scalar": lambda x: x[0, 0],
    "none": lambda x: x[:0],
    "other dtype": lambda x: x.view(torch.bfloat16)[:, 1:],
    "complex": lambda x: x.view(torch.complex64).conj(),
    "half of complex": lambda x: x.view(torch.complex64).conj().imag,
    "array": lambda x: x.numpy()[:, ::-1].copy(),
    "new": lambda x: x + 1,
    "changed": lambda x: x.add_(1),
    "parameter": lambda x: torch.nn.Parameter(x.float()),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_views_that_share_memory(path: str, device: Device, view: Any) -> None:
    """A batch_transform may return parts of the batch, several of one memory, or what it made of them."""

    def change(batch: Any) -> Any:
        return {"view": view(batch["x"]), "x": batch["x"], "again": [batch["x"][2:4], (batch["x"],)], "text": "t"}

    dataset = Dataset(path, batch_transform=change)
    with device.loader(dataset, shuffle=True) as loader, Loader(dataset, BATCH, shuffle=True) as plain:
        for batch, wanted in zip(loader, plain, strict=True):
            assert batch["text"] == "t"
            pairs = [(batch["view"], torch.as_tensor(wanted["view"])), (batch["x"], wanted["x"])]
            pairs += [(batch["again"][0], wanted["again"][0]), (batch["again"][1][0], wanted["again"][1][0])]
            for found, want in pairs:
                assert torch.equal(device.host(found), want.detach().resolve_conj().resolve_neg())
                assert not found.requires_grad


@pytest.mark.parametrize("place", ["transform", "batch_transform", "device_transform"])
@pytest.mark.parametrize("static", [False, True])
def test_exceptions_in_user_code(path: str, device: Device, place: str, static: bool) -> None:
    """One comes up behind the batches before it; slots and static sets stay whole, and the loader can go on there."""
    broken, calls = True, 0

    def fail(batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if broken and calls > (3 * BATCH if place == "transform" else 3):
            raise LookupError("no")
        return batch

    options = {place: fail, "threads": 1} if place == "device_transform" else {"threads": 1}
    source = path if place == "device_transform" else Dataset(path, **{place: fail})
    with device.loader(source, static=static, **options) as loader:
        for _ in range(5):
            broken, calls, seen = True, 0, []
            loader.set_epoch(0)
            with pytest.raises(LookupError, match="no"):
                for batch in loader:
                    seen += device.host(batch["label"]).tolist()
            assert seen == list(range(3 * BATCH))
            broken = False
            loader.load_state_dict(loader.state_dict())
            for batch in loader:
                seen += device.host(batch["label"]).tolist()
            assert seen == list(range(N))


@pytest.mark.parametrize("static", [False, True])
def test_close_with_work_in_flight(path: str, device: Device, static: bool) -> None:
    """Buffers, loaders and static sets are let go while copies are under way; what the user holds keeps its values."""
    for number in range(8):
        loader = device.loader(path, static=static, shuffle=True, prefetch=3)
        batches = iter(loader)
        batch = next(batches)
        if number % 2:
            loader.close()
        del loader, batches
        x, label = device.host(batch["x"]), device.host(batch["label"])
        assert torch.equal(x, label.to(torch.uint8)[:, None].expand(BATCH, 64))


@pytest.mark.parametrize("mode", ["offsets", "nested", "list", "pad"])
def test_ragged_rows_and_texts(tmp_path: Path, device: Device, mode: Any) -> None:
    """Ragged values, offsets and nested tensors go to the device; texts stay; buffers grow with the batches."""
    file = containers.ragged(tmp_path / "a.cks")
    options: Any = {"ragged": mode, "fields": ["tokens", "text", "label"]}
    with device.loader(file, **options) as loader, Loader(file, BATCH, **options) as expected:
        for batch, wanted in zip(loader, expected, strict=True):
            assert batch["text"] == wanted["text"]
            have, want = batch["tokens"], wanted["tokens"]
            if mode == "nested":
                have, want = device.host(have).unbind(), want.unbind()
            if mode == "offsets":
                assert isinstance(have, RaggedTensors)
            for left, right in zip(have, want, strict=True):
                assert left is right is None or torch.equal(device.host(left) if mode != "nested" else left, right)


def test_nested_tensors_of_the_users(device: Device) -> None:
    """Rows with gaps between them, and rows that vary in another dimension, arrive as they are."""
    values, offsets = torch.arange(20.0).reshape(10, 2), torch.tensor([0, 3, 10])
    for lengths in (None, torch.tensor([2, 4])):
        nested = torch.nested.nested_tensor_from_jagged(values, offsets, lengths)
        for sent in (nested, nested.transpose(1, 2)):
            (batch,) = device.prefetch([{"x": sent}])
            rows = [device.host(row) for row in device.host(batch["x"]).unbind()]
            assert all(map(torch.equal, rows, sent.unbind()))


def test_nested_tensors_of_the_same_offsets(device: Device) -> None:
    """They can be combined on the device, as before and as after `tensor.to(device)`."""
    offsets, lengths = torch.tensor([0, 3, 10]), torch.tensor([2, 4])
    for gaps in (None, lengths):
        first = torch.nested.nested_tensor_from_jagged(torch.arange(10.0), offsets, gaps)
        batches = list(device.prefetch([{"x": first, "y": first * 2}, {"x": first, "y": first * 2}]))
        for batch in batches:
            assert batch["x"].shape == batch["y"].shape
        assert batches[0]["x"].shape != batches[1]["x"].shape


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(4).to_sparse(),
        lambda: torch.eye(4).to_sparse_csr(),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*(prototype|beta) s.*:UserWarning")
def test_tensors_that_are_not_one_piece_of_memory(path: str, device: Device, make: Any) -> None:
    """Sparse ones and the like are refused by name; in host memory they pass."""
    with pytest.raises(TypeError, match=r"tensor of layout torch.*cannot go by way of pinned memory: make it dense"):
        list(device.prefetch([make()]))
    with Loader(Dataset(path, batch_transform=lambda batch: batch | {"x": make()}), BATCH) as loader:
        assert next(iter(loader))["x"].layout is make().layout
