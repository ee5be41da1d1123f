"""The plain decoder of the specification, as a second opinion on every container that a test makes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

_PATH = Path(__file__).resolve().parent.parent / "spec" / "read_chunkstore.py"


def load() -> ModuleType:
    """`spec/read_chunkstore.py` as a module."""
    name = "read_chunkstore"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, _PATH)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def read(path: str | Path) -> Any:
    """The container, after the decoder has proven every byte of it."""
    container = load().Container(path)
    assert list(container.verify()) == []
    return container


def same(stored: Any, expected: Any) -> bool:
    """Whether a row that the decoder read has the bytes, dtype and shape of what was written."""
    if isinstance(expected, str):
        return stored == expected
    expected = np.asarray(expected)
    return stored.shape == expected.shape and stored.tobytes() == np.ascontiguousarray(expected).tobytes()
