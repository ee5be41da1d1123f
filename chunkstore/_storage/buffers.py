"""Any buffer or array as one-dimensional bytes, without a copy."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

# `collections.abc.Buffer` needs Python 3.12; an ndarray is named for its own sake: some dtypes export no buffer.
Buffer: TypeAlias = "bytes | bytearray | memoryview | np.ndarray[Any, Any]"


def byte_view(buffer: Buffer, *, writable: bool = False) -> memoryview:
    """Give the memory of `buffer` as a memoryview of unsigned bytes.

    Args:
        buffer: any C-contiguous buffer or array, any dtype (datetime64 and extension dtypes too), any shape,
            0-d and empty ones included.
        writable: whether the caller is going to write to it.
    Returns:
        One dimension, format "B". Shares the memory and keeps `buffer` alive.
    Raises:
        ValueError: not C-contiguous, or read-only though `writable` was asked.
    """
    if isinstance(buffer, np.ndarray):
        if not buffer.flags.c_contiguous:
            raise ValueError(f"expected a C-contiguous array, found strides {buffer.strides} for shape {buffer.shape}")
        # dtypes such as datetime64 refuse the buffer protocol, so the array is reinterpreted first.
        # reshape before view: a 0-d array has no last axis to split into bytes.
        view = buffer.reshape(-1).view(np.uint8).data
    else:
        view = memoryview(buffer)
    if writable and view.readonly:
        raise ValueError("expected a writable buffer to read into, found a read-only one")
    if view.format == "B" and view.ndim == 1 and view.contiguous:
        return view
    if not view.c_contiguous:
        raise ValueError(f"expected a C-contiguous buffer, found strides {view.strides} for shape {view.shape}")
    # `cast` refuses a shape with a zero in it.
    return view.cast("B") if view.nbytes else memoryview(bytearray())
