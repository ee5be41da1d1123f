"""Where the battery has its files: in memory, where the system has such a place."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_MEMORY = "/dev/shm"
_NEEDED_NBYTES = 256 << 20


@contextlib.contextmanager
def in_memory(otherwise: Path | None = None) -> Iterator[Path]:
    """A folder on a file system in memory, removed afterwards; `otherwise` (or a temporary folder) without one."""
    fits = os.path.isdir(_MEMORY) and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _NEEDED_NBYTES
    folder = Path(tempfile.mkdtemp(prefix="chunkstore-battery-", dir=_MEMORY if fits else otherwise))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
