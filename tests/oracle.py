"""The plain decoder of the specification, as a second opinion on every container that a test makes."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "spec"))  # not a package

import read_chunkstore
import verify_chunkstore


def load() -> ModuleType:
    """`spec/read_chunkstore.py` as a module."""
    return read_chunkstore


def verify(container: Any) -> list[str]:
    """What `spec/verify_chunkstore.py` finds in a container of the decoder."""
    return list(verify_chunkstore.verify(container))


def read(path: str | Path) -> Any:
    """The container, after the decoder has proven every byte of it."""
    container = read_chunkstore.Container(path)
    assert verify(container) == []
    return container


def same(stored: Any, expected: Any) -> bool:
    """Whether a row that the decoder read has the bytes, dtype and shape of what was written."""
    if isinstance(expected, str):
        return stored == expected
    expected = np.asarray(expected)
    return stored.shape == expected.shape and stored.tobytes() == np.ascontiguousarray(expected).tobytes()
