"""The header of an `.npy` file: strict parser, no eval, no pickle, nothing allocated that the file does not back.

Versions 1, 2 and 3 of the format (NumPy NEP 1). Accepted beyond what `np.load` takes by default, because it is
harmless here: Python 2 integers (`2L`), and headers of up to 1 MiB, where NumPy stops at 10 kB because it calls
`ast.literal_eval`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from chunkstore._ingest.npy.descr import descr_to_dtype
from chunkstore._ingest.npy.literal import parse_literal
from chunkstore._ingest.npy.sniff import NPY_MAGIC, describe
from chunkstore.errors import IngestError

MAX_HEADER_NBYTES: Final = 1 << 20
PREFIX_NBYTES: Final = 256
"""Holds most headers whole, and enough of other files to say what they are."""
_KEYS: Final = {"descr", "fortran_order", "shape"}
_MAX_NDIM: Final = 64
_MAX_DIM: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class NpyHeader:
    """What the header says.

    Attributes:
        dtype: as stored, byte order included.
        fortran_order: whether the first index varies fastest.
        shape: any number of dimensions, each >= 0; the product is not checked (see `check_nbytes`).
        data_offset: bytes from the start of the `.npy` bytes to the first element.
        descr: the `descr` of the header as Python value, for `export`.
    """

    dtype: np.dtype[Any]
    fortran_order: bool
    shape: tuple[int, ...]
    data_offset: int
    descr: Any

    @property
    def data_nbytes(self) -> int:
        """Bytes that the elements need; a Python integer, so that no product overflows."""
        return self.dtype.itemsize * math.prod(self.shape)


def header_nbytes(prefix: bytes, where: str) -> int:
    """Length of magic, version, length and header text, from the first 12 bytes or more (fewer only if the file has no
    more).

    Raises:
        IngestError: no `.npy` file, an unknown version, or a header above 1 MiB.
    """
    if not prefix.startswith(NPY_MAGIC):
        raise IngestError(f"{where}: not an .npy file: {describe(prefix)}.")
    if len(prefix) < 10:
        raise IngestError(f"{where}: truncated: the file ends inside its header, after {len(prefix)} bytes.")
    version = prefix[6]
    if version not in (1, 2, 3) or prefix[7] != 0:
        raise IngestError(f"{where}: .npy version {version}.{prefix[7]}; this release reads 1.0, 2.0 and 3.0.")
    width = 2 if version == 1 else 4
    if len(prefix) < 8 + width:
        raise IngestError(f"{where}: truncated: the file ends inside its header, after {len(prefix)} bytes.")
    length = int.from_bytes(prefix[8 : 8 + width], "little")
    if length > MAX_HEADER_NBYTES:
        raise IngestError(
            f"{where}: the header claims {length:,} bytes; at most {MAX_HEADER_NBYTES:,} are read. The file is damaged."
        )
    return 8 + width + length


def parse_header(data: bytes, where: str) -> NpyHeader:
    """Header of the `.npy` bytes that begin with `data`; bytes behind the header are not looked at.

    Args:
        where: path (and member) for messages.

    Raises:
        IngestError: anything but a well-formed header.
    """
    total = header_nbytes(data, where)
    if len(data) < total:
        raise IngestError(f"{where}: truncated: the header has {total:,} bytes, the file {len(data):,}.")
    start = 10 if data[6] == 1 else 12
    try:
        text = data[start:total].decode("utf-8" if data[6] == 3 else "latin-1")
        return _interpret(text, total)
    except (ValueError, RecursionError) as error:
        raise IngestError(f"{where}: the .npy header is damaged: {str(error)[:300]}.") from None


def _interpret(text: str, data_offset: int) -> NpyHeader:
    """Values of the header's dict. Raises ValueError."""
    value = parse_literal(text)
    if not isinstance(value, dict):
        raise ValueError(f"expected a dict, found {text[:40]!r}")
    if value.keys() != _KEYS:
        raise ValueError(f"expected the keys {sorted(_KEYS)}, found {sorted(map(str, value))[:8]}")
    fortran_order, shape = value["fortran_order"], value["shape"]
    if not isinstance(fortran_order, bool):
        raise ValueError(f"fortran_order must be True or False, not {str(fortran_order)[:40]!r}")
    if not isinstance(shape, tuple) or not all(type(dim) is int for dim in shape):
        raise ValueError(f"shape must be a tuple of integers, not {str(shape)[:60]}")
    dims = tuple(int(dim) for dim in shape)  # type: ignore[arg-type]
    if len(dims) > _MAX_NDIM or any(not 0 <= dim <= _MAX_DIM for dim in dims):
        raise ValueError(f"shape {str(shape)[:120]} is not valid")
    return NpyHeader(descr_to_dtype(value["descr"]), fortran_order, dims, data_offset, value["descr"])


def check_nbytes(header: NpyHeader, total_nbytes: int, where: str) -> None:
    """Hold the header against the length of its file or member, before anything is allocated.

    Raises:
        IngestError: shorter (truncated) or longer (trailing bytes) than header and elements.
    """
    if header.dtype.hasobject:
        return  # the elements are a pickle: its length is its own affair
    wanted = header.data_offset + header.data_nbytes
    if total_nbytes == wanted:
        return
    about = f"shape {header.shape} of {header.dtype} needs {wanted:,} bytes with its header, found {total_nbytes:,}"
    if total_nbytes < wanted:
        hint = "no data at all: " if total_nbytes <= header.data_offset else ""
        raise IngestError(f"{where}: truncated: {hint}{about[:300]}. Get the file again.")
    raise IngestError(
        f"{where}: {total_nbytes - wanted:,} trailing bytes: {about[:300]}. Several arrays written into one "
        "file, or a damaged header?"
    )
