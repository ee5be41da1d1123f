"""The samples of the battery: each is made from its number, so that any of them can be judged alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

FIELDS: dict[str, Any] = {"x": ("int64", (5,)), "r": ("int16", (None,)), "t": "string"}


def sample(number: int) -> dict[str, Any]:
    """A row of fixed shape, a ragged one and a text."""
    return {
        "x": np.arange(5, dtype=np.int64) * 1_000_003 + number,
        "r": np.full(number % 7, number % 30_000, np.int16),
        "t": f"sample {number}" * (number % 3),
    }


def key(number: int) -> str:
    """Its key."""
    return f"key/{number:06d}"


def same_as_written(found: Mapping[str, Any], number: int) -> bool:
    """Whether what was read is this sample."""
    wanted = sample(number)
    for name in ("x", "r"):  # no generator: out of memory for its cell, CPython 3.11 would keep `found` for ever
        if found[name].dtype != wanted[name].dtype or not np.array_equal(found[name], wanted[name]):
            return False
    return bool(found["t"] == wanted["t"])
