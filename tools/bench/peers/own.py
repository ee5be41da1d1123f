"""chunkstore itself."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench.peers.base import Array, Layout, Peer, Positions


class Chunkstore(Peer):
    """A container, opened with the defaults: `verify="once"`."""

    name, distribution = "chunkstore", "chunkstore-arrays"
    modules = ("chunkstore",)
    batch_call = 'ds.batch(indices, out=), verify="once"'

    _data: Any

    def __init__(self, path: Path, layout: Layout) -> None:
        super().__init__(path, layout)
        # the package imports its parts when they are wanted; the other formats did all that on import
        for name in ("Writer", "convert", "open", "verify"):
            getattr(self.libs[0], name)

    def write(self, blocks: Iterable[Array]) -> None:
        with self.libs[0].Writer(self.path, num_samples=self.layout.num) as writer:
            for block in blocks:
                writer.add_batch({"data": block})

    def convert(self, files: Iterable[Path]) -> None:
        self.libs[0].convert(Path(os.path.commonpath(list(files))), self.path, layout="files")

    def open(self) -> None:
        self._data = self.libs[0].open(self.path)

    def row(self, position: int) -> Array:
        return self._data[position]["data"]  # type: ignore[no-any-return]

    def batch(self, positions: Positions, out: Array) -> Array:
        self._data.batch(positions, out={"data": out})
        return out

    def span(self, start: int, stop: int, out: Array) -> Array:
        return self.batch(np.arange(start, stop), out)

    def verify(self) -> None:
        if not self.libs[0].verify(self.path).ok:
            raise RuntimeError(f"{self.path}: damaged")
