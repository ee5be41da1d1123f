"""Input data of the workloads: made at first use, shared within one run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

import chunkstore

KIB_ROW = (1024,)
IMAGE = (224, 224, 3)
_BLOCK_NBYTES = 16 << 20
_NUM_ROWS_1K = 1_000_000
_NUM_IMAGES = 4_000
_NUM_RAGGED = 20_000
_MEAN_RAGGED = 512
_RAGGED_WIDTH = 8
_SEED = 20_240_229
_ALIGNMENT = 64


def memory_for(num: int, shape: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Memory for rows of uint8 that begins at a multiple of 64, as that of frameworks does.

    What `np.empty` gives for large arrays begins 16 bytes behind a page. Where rows begin at pages in the file, that is
    the one place where a processor takes twice the time for the copy (AMD EPYC: it mistakes the next load for the store
    before, whose lower 12 bits are the same): a ratio to a format whose rows begin elsewhere would then show just that.
    """
    nbytes = num * prod(shape)
    memory = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + nbytes].reshape(num, *shape)


def blocks(num: int, shape: Sequence[int]) -> Iterator[npt.NDArray[np.uint8]]:
    """`num` rows of uint8 that do not compress, about 16 MiB at a time.

    Each block is the same random block plus its number modulo 256, and the first 8 bytes of a row are its
    position, so a row in the wrong place is found by comparing. The array is reused by the next block.
    """
    base = _first_block(num, prod(shape))
    per_block = len(base)
    block = np.empty_like(base)
    for number, start in enumerate(range(0, num, per_block)):
        stop = min(start + per_block, num)
        np.add(base, np.uint8(number % 256), out=block)
        _number_rows(block, np.arange(start, start + per_block))
        yield block[: stop - start].reshape(stop - start, *shape)


def rows_at(num: int, shape: Sequence[int], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """The rows of `blocks` at some positions, without a look at any file."""
    base = _first_block(num, prod(shape))
    rows = base[positions % len(base)] + (positions // len(base)).astype(np.uint8)[:, None]
    _number_rows(rows, positions)
    return rows.reshape(len(positions), *shape)


@cache
def _first_block(num: int, row_nbytes: int) -> npt.NDArray[np.uint8]:
    per_block = max(1, min(num, _BLOCK_NBYTES // row_nbytes))
    noise = np.random.default_rng(_SEED).bytes(per_block * row_nbytes)
    return np.frombuffer(noise, np.uint8).reshape(per_block, -1)


def _number_rows(rows: npt.NDArray[np.uint8], positions: npt.NDArray[np.int64]) -> None:
    if rows.shape[1] >= 8:
        rows[:, :8] = positions.astype("<u8").view(np.uint8).reshape(-1, 8)


def write_npy(path: Path, num: int, shape: Sequence[int]) -> Path:
    """Write the rows of `blocks` as one `.npy` file and sync it."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (num, *shape)}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks(num, shape):
            file.write(block.data)
        file.flush()
        os.fsync(file.fileno())
    return path


def write_container(path: Path, num: int, shape: Sequence[int]) -> Path:
    """Write the rows of `blocks` as a container with one field, `data`, one array in the file."""
    with chunkstore.Writer(path, num_samples=num) as writer:
        for block in blocks(num, shape):
            writer.add_batch({"data": block})
    return path


@dataclass(frozen=True)
class Rows:
    """The same rows three ways: a plain `.npy` file, a container, and their number and shape (uint8)."""

    npy: Path
    container: Path
    num: int
    shape: tuple[int, ...]

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.num * self.row_nbytes

    @property
    def label(self) -> str:
        """What the tables call these rows."""
        return "1 KiB rows" if self.shape == KIB_ROW else "147 KiB images"

    def memmap(self) -> npt.NDArray[np.uint8]:
        """The rows as `np.load` maps them."""
        return np.load(self.npy, mmap_mode="r")  # type: ignore[no-any-return]

    def random_batches(self, count: int, size: int, seed: int) -> list[npt.NDArray[np.int64]]:
        """`count` batches of `size` positions, drawn evenly with repeats."""
        drawn = np.random.default_rng(seed).integers(0, self.num, (count, size))
        return list(drawn)


@dataclass(frozen=True)
class RaggedRows:
    """Rows of shape (L, 8) float32: values and offsets as plain files, and the container."""

    values: Path
    offsets: npt.NDArray[np.int64]
    container: Path

    @property
    def num(self) -> int:
        """Number of rows."""
        return len(self.offsets) - 1


class Inputs:
    """Everything that is made once a run.

    Args:
        directory: where to make it; the caller removes it.
        scale: 1.0 for the sizes of the goals; counts are multiplied by it.
    """

    def __init__(self, directory: Path, scale: float) -> None:
        self.directory = directory
        self.scale = scale

    def count(self, full: int, least: int) -> int:
        """A number of samples, scaled, but never under `least`."""
        return max(least, round(full * self.scale))

    def _rows(self, name: str, num: int, shape: tuple[int, ...]) -> Rows:
        npy = write_npy(self.directory / f"{name}.npy", num, shape)
        return Rows(npy, write_container(self.directory / f"{name}.cks", num, shape), num, shape)

    @cached_property
    def rows_1k(self) -> Rows:
        """One million rows of 1 KiB."""
        return self._rows("rows_1k", self.count(_NUM_ROWS_1K, 2_000), KIB_ROW)

    @cached_property
    def images(self) -> Rows:
        """4,000 images of 224 x 224 x 3, 147 KiB each."""
        return self._rows("images", self.count(_NUM_IMAGES, 300), IMAGE)

    @cached_property
    def ragged(self) -> RaggedRows:
        """20,000 rows of 16 KB on average, between half and one and a half of it."""
        num = self.count(_NUM_RAGGED, 300)
        rng = np.random.default_rng(_SEED)
        lengths = rng.integers(_MEAN_RAGGED // 2, _MEAN_RAGGED * 3 // 2, num)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        values = np.arange(offsets[-1] * _RAGGED_WIDTH, dtype=np.float32).reshape(-1, _RAGGED_WIDTH)
        path = self.directory / "ragged_values.npy"
        np.save(path, values)
        container = self.directory / "ragged.cks"
        fields = {"data": ("float32", (None, _RAGGED_WIDTH))}
        # one shard, so that the values are one array in the file, as they are after `convert`
        with chunkstore.Writer(container, fields=fields, shard_nbytes=values.nbytes) as writer:
            for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
                writer.add({"data": values[start:stop]})
        return RaggedRows(path, offsets, container)
