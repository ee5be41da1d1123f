"""Fixtures of the storage tests: a system that has nothing but the plain calls, and counts of descriptors."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from chunkstore._storage import platform


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the plain twin in place of every call that some system lacks."""
    for name, twin in platform.PLAIN.items():
        monkeypatch.setattr(platform, name, twin)


@pytest.fixture
def num_descriptors() -> Callable[[], int]:
    """How many descriptors this process has open."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc/self/fd to count descriptors in")

    def count() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    return count
