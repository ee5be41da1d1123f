"""One array over pieces of memory that lie apart, so that one gather reaches all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_INT64 = np.dtype(np.int64)


class _Memory:
    """What NumPy asks for an address; keeps the pieces alive for as long as an array over them lives."""

    def __init__(self, address: int, nbytes: int, pieces: Sequence[NDArray[np.uint8]]) -> None:
        self._pieces = pieces
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (nbytes,), "data": (address, True)}


def spanning(pieces: Sequence[NDArray[np.uint8]]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """One array from the first to the last byte of all pieces, and where in it each piece begins.

    What lies between the pieces may be anything, or nothing: only bytes of the pieces may be touched. So the array is
    for gathers by places that were computed, and is never handed out.

    Args:
        pieces: at least one, contiguous; none empty.
    Returns:
        (array, read-only, of as many bytes as the addresses span; places, shape (pieces,)). The array begins at a
        multiple of 4096 if all pieces do.
    """
    addresses = [piece.ctypes.data for piece in pieces]
    low = min(addresses)
    high = max(address + piece.nbytes for address, piece in zip(addresses, pieces, strict=True))
    memory: NDArray[Any] = np.asarray(_Memory(low, high - low, list(pieces)))
    return memory, np.array([address - low for address in addresses], _INT64)
