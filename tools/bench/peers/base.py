"""What every format must be able to do to be compared."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tools.bench.inputs import memory_for

Array = npt.NDArray[Any]
Positions = npt.NDArray[np.int64]

SCAN_ROWS = 256
_JOIN_BELOW_NBYTES = 16 << 10


@dataclass(frozen=True)
class Layout:
    """Number and shape of the rows of a data set; all are uint8."""

    num: int
    shape: tuple[int, ...]

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row."""
        return prod(self.shape)


class Peer(ABC):
    """One format, used through its own best calls.

    A subclass writes rows to `self.path`, a file or a directory, opens it and reads rows as arrays of uint8:
    single rows may be views, batches and spans belong to the caller. What it cannot do stands in `unsupported`,
    the row of the comparison and the reason.
    """

    name: ClassVar[str]
    distribution: ClassVar[str]
    modules: ClassVar[tuple[str, ...]] = ()
    batch_call: ClassVar[str]
    unsupported: ClassVar[Mapping[str, str]] = {}

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path, self.layout = path, layout
        self.libs = [importlib.import_module(module) for module in self.modules]

    @abstractmethod
    def write(self, blocks: Iterable[Array]) -> None:
        """Write all rows; each block is (k, *shape), reused by the next."""

    @abstractmethod
    def open(self) -> None:
        """Make ready to read."""

    def close(self) -> None:  # noqa: B027 - most formats need none
        """Let go of what cannot be opened twice in one process; nothing that was read is used after it."""

    @abstractmethod
    def row(self, position: int) -> Array:
        """One row."""

    @abstractmethod
    def batch(self, positions: Positions, out: Array) -> Array:
        """Rows at `positions`, one array (B, *shape); `out` may be filled and returned."""

    @abstractmethod
    def span(self, start: int, stop: int, out: Array) -> Array:
        """Rows start..stop in order; `out` may be filled and returned."""

    def scan(self) -> Iterator[Array]:
        """All rows in order, in blocks."""
        out = memory_for(SCAN_ROWS, self.layout.shape)
        for start in range(0, self.layout.num, SCAN_ROWS):
            stop = min(start + SCAN_ROWS, self.layout.num)
            yield self.span(start, stop, out[: stop - start])

    def verify(self) -> None:
        """Check every byte against stored checksums."""
        raise NotImplementedError(self.unsupported.get("verify", self.name))

    def convert(self, files: Iterable[Path]) -> None:
        """Write one row per `.npy` file."""
        self.write(np.load(file)[np.newaxis] for file in files)

    def files(self) -> list[Path]:
        """Every file of the data set."""
        if self.path.is_file():
            return [self.path]
        return [path for path in sorted(self.path.rglob("*")) if path.is_file()]

    def batch_files(self, positions: Positions) -> list[Path]:
        """The files to make cold before a batch; all of them unless a format keeps one file per row."""
        return self.files()

    def cold_batch(self, positions: Positions, out: Array) -> Array:
        """Like `batch`, through the call that is best for data on the disk."""
        return self.batch(positions, out)

    def gather(self, records: Iterable[Any], out: Array) -> Array:
        """Records of bytes as one array like `out`: joined where rows are small, copied into it where large.

        Either is the faster one at its size: a join is one call, but asks for fresh memory each time.
        """
        nbytes = self.layout.row_nbytes
        if nbytes < _JOIN_BELOW_NBYTES:
            return np.frombuffer(b"".join(records), np.uint8).reshape(out.shape)
        target = out.reshape(-1).data
        for place, record in enumerate(records):
            target[place * nbytes : (place + 1) * nbytes] = record
        return out

    def as_row(self, record: Any) -> Array:
        """One record of bytes as a row."""
        return np.frombuffer(record, np.uint8).reshape(self.layout.shape)


def by_blocks(blocks: Iterable[Array], num_rows: int) -> Iterator[Array]:
    """The same rows in blocks of `num_rows`: for formats that want to be written in large pieces."""
    waiting: list[Array] = []
    held = 0
    for block in blocks:
        waiting.append(block.copy())
        held += len(block)
        if held >= num_rows:
            yield np.concatenate(waiting)
            waiting, held = [], 0
    if waiting:
        yield np.concatenate(waiting)


def each_row(blocks: Iterable[Array]) -> Iterator[Array]:
    """The rows one by one."""
    for block in blocks:
        yield from block
