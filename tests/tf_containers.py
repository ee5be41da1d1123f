"""Containers that the TensorFlow tests read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import chunkstore

N = 203
FIELDS: dict[str, Any] = {
    "image": ("uint8", (6, 5)),
    "label": "int64",
    "wave": ("float32", (None, 3)),
    "grid": ("int16", (None, None, 2)),
    "text": "string",
    "name": "utf32[5]",
    "code": ("bytes[4]", (2,)),
    "time": "datetime64[s]",
    "flag": "bool",
}


def sample(number: int) -> dict[str, Any]:
    """One sample of FIELDS; some rows are empty."""
    rng = np.random.default_rng(number)
    return {
        "image": rng.integers(0, 256, (6, 5), np.uint8),
        "label": number,
        "wave": rng.random((number % 4, 3), np.float32),
        "grid": rng.integers(-9, 9, (number % 3, number % 5, 2)).astype(np.int16),
        "text": "ö" * (number % 4) + str(number),
        "name": f"ñ{number}",
        "code": np.array([b"ab", str(number).encode()]),
        "time": np.datetime64(number, "s"),
        "flag": number % 3 == 0,
    }


def build(path: Path, num_samples: int = N, *, pieces: bool = False) -> str:
    """A container of FIELDS; with `pieces` it was streamed: many shards, no field in one extent."""
    extra: dict[str, Any] = {"shard_nbytes": 2048} if pieces else {"num_samples": num_samples}
    with chunkstore.Writer(path, fields=FIELDS, **extra) as writer:
        for number in range(num_samples):
            writer.add(sample(number), key=f"set/{number:04d}")
    return str(path)


def build_rows(path: Path, rows: np.ndarray[Any, Any], dtype: str | None = None) -> str:
    """A container of one field `x`."""
    fields = None if dtype is None else {"x": (dtype, rows.shape[1:])}
    with chunkstore.Writer(path, fields=fields, num_samples=len(rows)) as writer:
        writer.add_batch({"x": rows})
    return str(path)
