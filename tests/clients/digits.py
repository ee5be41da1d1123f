"""The handwritten digits as a container, a small model of torch, and what counts as learnt. Shared by the clients."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import chunkstore
from chunkstore import Selection

NUM_TRAIN = 1437  # four fifths of 1,797
BATCH = 32
EPOCHS = 6
ACCURACY = 0.94  # on digits that were not trained on; reached are 0.96 to 0.98, chance is 0.1


def write(folder: Path) -> str:
    """Digits in a fixed random order: `image` uint8 (8, 8), values to 16; `label` int64; keys `digit/0000`..."""
    images, labels = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    shuffled = np.random.default_rng(0).permutation(len(images))
    with chunkstore.Writer(folder / "digits.cks", num_samples=len(images)) as writer:
        writer.add_batch(
            {"image": images[shuffled].astype(np.uint8).reshape(-1, 8, 8), "label": labels[shuffled].astype(np.int64)},
            keys=[f"digit/{place:04d}" for place in range(len(images))],
        )
    return str(folder / "digits.cks")


def split(path: str) -> tuple[Selection, Selection]:
    """The samples to train on, and those to test with."""
    reader = chunkstore.open(path)
    return reader.select(np.arange(NUM_TRAIN)), reader.select(np.arange(NUM_TRAIN, len(reader)))


def model() -> Any:
    """Two layers, the same initial weights each time; takes the uint8 images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(Scale(), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))


class Scale(torch.nn.Module):
    """uint8 (B, 8, 8) -> float32 (B, 64), 0 to 1."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return images.flatten(1).float() / 16


def optimizer(net: Any) -> torch.optim.Optimizer:
    """What all clients train with."""
    return torch.optim.Adam(net.parameters(), lr=0.005)


def loss_of(net: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross entropy of a batch."""
    return torch.nn.functional.cross_entropy(net(batch["image"]), batch["label"])


def train(net: Any, batches: Iterable[dict[str, torch.Tensor]], descent: torch.optim.Optimizer) -> int:
    """One epoch; returns the number of samples."""
    num_samples = 0
    for batch in batches:
        descent.zero_grad()
        loss_of(net, batch).backward()
        descent.step()
        num_samples += len(batch["label"])
    return num_samples


def accuracy(net: Any, samples: Selection) -> float:
    """Share of samples whose label the model finds."""
    rows = samples[:]
    with torch.no_grad():
        found = net(torch.from_numpy(rows["image"].copy())).argmax(1).numpy()
    return float(np.mean(found == rows["label"]))
