"""Object arrays (`--allow-pickle`): each element is one row.

Even then nothing is called but what NumPy's own pickles of arrays and numbers need: any other name in the pickle is
refused, so that a file cannot run code. The whole array is in memory while it is read: a pickle has no random access.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from chunkstore._ingest.npy.arrays import ArrayKind, ArraySource, Place
from chunkstore.errors import IngestError

_ALLOWED: Final = frozenset(
    (f"numpy{core}.{module}", name)
    for core in (".core", "._core")
    for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
) | {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    ("builtins", "bytearray"),
    ("__builtin__", "bytearray"),
}


class _Unpickler(pickle.Unpickler):
    """Arrays, numbers, texts and containers of them; nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        plain_dtype = module == "numpy.dtypes" and name.endswith("DType") and hasattr(np.dtypes, name)
        if (module, name) not in _ALLOWED and not plain_dtype:
            raise IngestError(f"the pickle asks for {module}.{name}, which is neither an array nor a number")
        return super().find_class(module, name)


def load_rows(place: Place) -> list[npt.NDArray[Any]]:
    """Elements of the object array, each as an array; little-endian is not yet made.

    Raises:
        IngestError: not a 1-d object array of arrays, numbers and texts, or a damaged pickle.
    """
    if len(place.shape) != 1:
        raise IngestError(
            f"{place.where}: an object array of shape {place.shape}: only 1-d ones, one row per element, can be read."
        )
    file = io.BytesIO(_payload(place))
    try:
        value = _Unpickler(file, encoding="latin1").load()
    except IngestError as error:
        raise IngestError(f"{place.where}: {error}.") from None
    except Exception as error:  # noqa: BLE001  a damaged pickle can raise almost anything
        raise IngestError(
            f"{place.where}: the pickle is damaged ({type(error).__name__}: {str(error)[:100]})."
        ) from None
    elements = value.tolist() if isinstance(value, np.ndarray) and value.dtype == object and value.ndim == 1 else None
    if elements is None or len(elements) != place.shape[0]:
        raise IngestError(
            f"{place.where}: the pickle does not hold the object array of shape {place.shape} that its header "
            "announces."
        )
    return [_row(element, number, place.where) for number, element in enumerate(elements)]


def _row(element: object, number: int, where: str) -> npt.NDArray[Any]:
    if isinstance(element, (np.ndarray, np.generic, bool, int, float, complex, str)):
        row = np.asarray(element)
        if isinstance(element, str) and row.item() != element:
            raise IngestError(f"{where}: element {number} ends with NUL, which texts of fixed width cannot.")
        if row.dtype.kind in "biufcSUMm":
            return row
        raise IngestError(f"{where}: element {number} is an array of dtype {row.dtype}; expected numbers.")
    raise IngestError(
        f"{where}: element {number} is a {type(element).__name__}; expected arrays, numbers or texts, one row each. "
        "np.load(FILE, allow_pickle=True) reads it, if you trust it, and np.save what you make of it."
    )


def _payload(place: Place) -> bytearray:
    """The pickle's bytes, which are read as numbers are."""
    start = place.kind.data_offset
    nbytes = (place.member.nbytes if place.member else place.size) - start
    payload = bytearray(nbytes)
    with ArraySource(replace(place, kind=ArrayKind(np.dtype(np.uint8), False, start), shape=(nbytes,))) as source:
        source.read_elements(0, nbytes, np.frombuffer(payload, np.uint8))
    return payload
