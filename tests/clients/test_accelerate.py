"""Accelerate: `prepare` of a `DataLoader`, with our samples, our order, and its own way to skip batches."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
accelerate = pytest.importorskip("accelerate")

from clients import digits  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from chunkstore.torch import BatchSampler, Dataset  # noqa: E402

# Advice about devices.
pytestmark = pytest.mark.filterwarnings("ignore")


def loaders(source: Any) -> dict[str, Any]:
    """The two usual ways to a `DataLoader`. Accelerate shares out batches itself: the sampler is that of one rank."""
    dataset = Dataset(source)
    sampler = BatchSampler(dataset, digits.BATCH, shuffle=True, seed=1, rank=0, world_size=1)
    return {
        "shuffle": DataLoader(dataset, digits.BATCH, shuffle=True),
        "batch_sampler": DataLoader(dataset, batch_sampler=sampler),
    }


@pytest.mark.parametrize("kind", ["shuffle", "batch_sampler"])
def test_prepare(digits_path: str, kind: str) -> None:
    """Model, optimizer and loader are prepared as ever; each sample once an epoch, and the digits are learnt."""
    train, test = digits.split(digits_path)
    torch.manual_seed(0)
    accelerator = accelerate.Accelerator(cpu=True)
    net = digits.model()
    net, descent, loader = accelerator.prepare(net, digits.optimizer(net), loaders(train)[kind])
    for _ in range(digits.EPOCHS):
        num_samples = 0
        for batch in loader:
            descent.zero_grad()
            accelerator.backward(digits.loss_of(net, batch))
            descent.step()
            num_samples += len(batch["label"])
        assert num_samples == digits.NUM_TRAIN
    assert digits.accuracy(accelerator.unwrap_model(net), test) >= digits.ACCURACY


def test_skip_first_batches(digits_path: str) -> None:
    """`skip_first_batches` on our sampler leaves out exactly those batches."""
    train, _ = digits.split(digits_path)
    accelerator = accelerate.Accelerator(cpu=True)
    whole, other = (accelerator.prepare(loaders(train)["batch_sampler"]) for _ in range(2))
    rest = accelerator.skip_first_batches(other, 40)
    assert [batch["label"].tolist() for batch in rest] == [batch["label"].tolist() for batch in whole][40:]
