"""Arrays -> the bytes of `.npy` and `.npz` files, as NumPy writes them, but for times in `.npz`, which are fixed."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from chunkstore._storage.buffers import byte_view

# NumPy leaves room for the first dimension to grow in place, and aligns the data to 64 bytes.
_GROWTH_DIGITS: Final = 21
_ALIGNMENT: Final = 64
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the first that a zip file can hold
_UNIX: Final = 3
_WRITE_NBYTES: Final = 4 << 20


def encode_header(dtype: np.dtype[Any], shape: tuple[int, ...], *, fortran_order: bool) -> bytes:
    """Header of an `.npy` file, of the lowest version that holds it."""
    descr = npy_format.dtype_to_descr(dtype)
    text = f"{{'descr': {descr!r}, 'fortran_order': {fortran_order!r}, 'shape': {shape!r}, }}"
    if shape:
        text += " " * (_GROWTH_DIGITS - len(repr(shape[-1 if fortran_order else 0])))
    try:
        raw, version = text.encode("latin-1"), 1
    except UnicodeEncodeError:
        raw, version = text.encode(), 3
    if version == 1 and len(raw) + 1 + _ALIGNMENT + 10 > 0xFFFF:
        version = 2
    width = 2 if version == 1 else 4
    prefix = len(npy_format.MAGIC_PREFIX) + 2 + width
    raw += b" " * (_ALIGNMENT - (prefix + len(raw) + 1) % _ALIGNMENT) + b"\n"  # at least one blank, as NumPy has it
    return npy_format.magic(version, 0) + len(raw).to_bytes(width, "little") + raw


def write_npy(file: IO[bytes], array: npt.NDArray[Any], *, fortran_order: bool) -> int:
    """Write one array; object arrays as pickles. Returns the bytes written.

    Args:
        file: where to.
        array: any dtype that `.npy` has.
        fortran_order: store it so, where that differs from C order.
    """
    if array.dtype.hasobject:
        head = encode_header(array.dtype, array.shape, fortran_order=False)
        data = pickle.dumps(array, protocol=4)
        return file.write(head) + file.write(data)
    # Where both orders are the same NumPy says C.
    fortran = fortran_order and 0 not in array.shape and sum(dim > 1 for dim in array.shape) > 1
    stored = np.asfortranarray(array).T if fortran else np.ascontiguousarray(array).reshape(array.shape)
    return write_stream(file, array.dtype, array.shape, [stored], fortran_order=fortran)


def write_stream(
    file: IO[bytes],
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    parts: Iterable[npt.NDArray[Any]],
    *,
    fortran_order: bool,
) -> int:
    """Write one array whose elements come in C-contiguous parts, in the order of the file."""
    done = file.write(encode_header(dtype, shape, fortran_order=fortran_order))
    for part in parts:
        view = byte_view(part)
        for start in range(0, len(view), _WRITE_NBYTES):
            done += file.write(view[start : start + _WRITE_NBYTES])
    return done


class NpzFile(zipfile.ZipFile):
    """An `.npz` being written, members stored as they are. The bytes depend on the arrays and names alone."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, "w", zipfile.ZIP_STORED, allowZip64=True)

    def member(self, name: str) -> IO[bytes]:
        """File for the next array; close it before the next is opened."""
        info = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
        info.create_system = _UNIX
        info.external_attr = 0o600 << 16
        return self.open(info, "w", force_zip64=True)

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self.close()
        else:  # the file will be removed: else the zip writes its directory when it is collected
            self.fp = None
