"""Small containers for the tests of `chunkstore.torch`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import chunkstore

NUM_SAMPLES = 100


def image(i: int) -> np.ndarray:
    """Row `i` of the field `image`: uint8 (3, 5)."""
    return (np.arange(i, i + 15) % 256).astype(np.uint8).reshape(3, 5)


def tokens(i: int) -> np.ndarray:
    """Row `i` of the ragged field `tokens`: int32, 0 to 6 of them."""
    return np.arange(i, i + i % 7, dtype=np.int32)


def plain(path: Path, num_samples: int = NUM_SAMPLES, **options: Any) -> str:
    """`image`, `label` (int64, equal to the position) and keys `k0`, `k1`, ..."""
    with chunkstore.Writer(path, **options) as writer:
        for i in range(num_samples):
            writer.add({"image": image(i), "label": np.int64(i)}, key=f"k{i}")
    return str(path)


def numbered(path: Path, num_samples: int) -> str:
    """`x`: rows of 64 bytes that are all the sample's position; `label` and keys as of `plain`."""
    with chunkstore.Writer(path) as writer:
        for i in range(num_samples):
            writer.add({"x": np.full(64, i, np.uint8), "label": np.int64(i)}, key=f"k{i}")
    return str(path)


def ragged(path: Path, num_samples: int = NUM_SAMPLES) -> str:
    """`tokens`, `mask` (bool, two varying dimensions), `text` and `label`."""
    fields: Any = {"tokens": ("int32", (None,)), "mask": ("bool", (None, None, 2)), "text": "string", "label": "int64"}
    with chunkstore.Writer(path, fields=fields) as writer:
        for i in range(num_samples):
            mask = np.ones((i % 3, 1 + i % 2, 2), bool)
            writer.add({"tokens": tokens(i), "mask": mask, "text": "é" * (i % 4), "label": np.int64(i)})
    return str(path)
