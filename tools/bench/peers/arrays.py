"""Formats that hold arrays: a directory of `.npy`, `np.memmap`, HDF5, zarr."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tools.bench.peers.base import Array, Peer, Positions, by_blocks, each_row

_FILES_A_FOLDER = 1_000
_ZARR_CHUNK_NBYTES = 64 << 10
_WRITE_NBYTES = 16 << 20
_LARGE_ROW_NBYTES = 16 << 10


class NpyDirectory(Peer):
    """One `.npy` file per row, read by `np.load`."""

    name, distribution = "directory of .npy", "numpy"
    batch_call = "np.load each, into out[i]"
    unsupported: ClassVar[Mapping[str, str]] = {"verify": "no checksums", "convert": "is the source"}

    def _file(self, position: int) -> str:
        return f"{self.path}/{position // _FILES_A_FOLDER:04d}/{position:07d}.npy"

    def write(self, blocks: Iterable[Array]) -> None:
        for position, row in enumerate(each_row(blocks)):
            if position % _FILES_A_FOLDER == 0:
                Path(self._file(position)).parent.mkdir(parents=True)
            np.save(self._file(position), row)

    def open(self) -> None:
        pass

    def row(self, position: int) -> Array:
        return np.load(self._file(position))  # type: ignore[no-any-return]

    def batch(self, positions: Positions, out: Array) -> Array:
        for place, position in enumerate(positions.tolist()):
            out[place] = np.load(self._file(position))
        return out

    def span(self, start: int, stop: int, out: Array) -> Array:
        return self.batch(np.arange(start, stop), out)

    def batch_files(self, positions: Positions) -> list[Path]:
        return [Path(self._file(position)) for position in positions.tolist()]


class Memmap(Peer):
    """One large `.npy` file, mapped."""

    name, distribution = "np.memmap", "numpy"
    batch_call = 'np.take(map, indices, axis=0, out=, mode="clip")'
    unsupported: ClassVar[Mapping[str, str]] = {"verify": "no checksums"}

    def write(self, blocks: Iterable[Array]) -> None:
        shape = (self.layout.num, *self.layout.shape)
        with open(self.path, "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for block in blocks:
                file.write(np.ascontiguousarray(block).data)

    def open(self) -> None:
        self._data = np.load(self.path, mmap_mode="r")

    def row(self, position: int) -> Array:
        return self._data[position]  # type: ignore[no-any-return]

    def batch(self, positions: Positions, out: Array) -> Array:
        np.take(self._data, positions, axis=0, out=out, mode="clip")
        return out

    def span(self, start: int, stop: int, out: Array) -> Array:
        np.copyto(out, self._data[start:stop])
        return out


class Hdf5(Peer):
    """One contiguous data set of an HDF5 file."""

    name, distribution = "h5py", "h5py"
    modules = ("h5py",)
    batch_call = "dataset[sorted unique indices], put back in order; dataset[i] each where rows are large"
    unsupported: ClassVar[Mapping[str, str]] = {"verify": "no checksums in a contiguous data set"}

    _data: Any

    def write(self, blocks: Iterable[Array]) -> None:
        with self.libs[0].File(self.path, "w") as file:
            data = file.create_dataset("data", (self.layout.num, *self.layout.shape), "u1")
            start = 0
            for block in by_blocks(blocks, max(1, _WRITE_NBYTES // self.layout.row_nbytes)):
                data[start : start + len(block)] = block
                start += len(block)

    def open(self) -> None:
        self._data = self.libs[0].File(self.path, "r")["data"]

    def row(self, position: int) -> Array:
        return self._data[position]  # type: ignore[no-any-return]

    def batch(self, positions: Positions, out: Array) -> Array:
        if self.layout.row_nbytes < _LARGE_ROW_NBYTES:
            unique, places = np.unique(positions, return_inverse=True)
            return np.take(self._data[unique], places, axis=0, out=out, mode="clip")
        for place, position in enumerate(positions.tolist()):
            out[place] = self._data[position]
        return out

    def span(self, start: int, stop: int, out: Array) -> Array:
        self._data.read_direct(out, np.s_[start:stop])
        return out


class Zarr(Peer):
    """A zarr 3 array without compression, 64 KiB or one row a chunk."""

    name, distribution = "zarr", "zarr"
    modules = ("zarr",)
    batch_call = "array.get_orthogonal_selection(sorted unique indices), put back in order"
    unsupported: ClassVar[Mapping[str, str]] = {"verify": "no checksums without a codec"}

    _data: Any

    def write(self, blocks: Iterable[Array]) -> None:
        rows = max(1, _ZARR_CHUNK_NBYTES // self.layout.row_nbytes)
        shape = (self.layout.num, *self.layout.shape)
        chunks = (rows, *self.layout.shape)
        data = self.libs[0].create_array(self.path, shape=shape, chunks=chunks, dtype="uint8", compressors=None)
        start = 0
        for block in by_blocks(blocks, max(1, _WRITE_NBYTES // self.layout.row_nbytes)):
            data[start : start + len(block)] = block
            start += len(block)

    def open(self) -> None:
        self._data = self.libs[0].open_array(self.path, mode="r")

    def row(self, position: int) -> Array:
        return self._data[position]  # type: ignore[no-any-return]

    def batch(self, positions: Positions, out: Array) -> Array:
        unique, places = np.unique(positions, return_inverse=True)
        rows = self._data.get_orthogonal_selection((unique,))
        return np.take(rows, places, axis=0, out=out, mode="clip")

    def span(self, start: int, stop: int, out: Array) -> Array:
        return self._data[start:stop]  # type: ignore[no-any-return]
