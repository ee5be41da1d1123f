"""Arrays as PNG images, by the standard library alone: an encoder for what `get --out x.png` needs."""

from __future__ import annotations

import struct
import zlib
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_COLOUR_TYPES: Final = {1: 0, 3: 2, 4: 6}  # channels -> grey, RGB, RGBA
_MAX_SIDE: Final = 2**31 - 1


def encode_png(array: NDArray[Any]) -> tuple[bytes, str]:
    """The bytes of a PNG file, and a remark on what was done.

    Args:
        array: shape (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels. uint8 and uint16 are written as they are,
            bool as black and white; anything else is stretched from its range to 0..255.
    Raises:
        ValueError: this is no image.
    """
    pixels = _channels_last(array)
    height, width, channels = pixels.shape
    if not 0 < height <= _MAX_SIDE or not 0 < width <= _MAX_SIDE:
        raise ValueError(f"shape {array.shape} is no image: it has no pixels, or too many in a row")
    values, remark = _as_unsigned(pixels)
    depth = 8 * values.dtype.itemsize
    big = values.astype(values.dtype.newbyteorder(">"), copy=False).reshape(height, -1)
    # Each row of pixels begins with the number of its filter: 0, none.
    rows = np.zeros((height, 1 + width * channels * values.dtype.itemsize), np.uint8)
    rows[:, 1:] = np.ascontiguousarray(big).view(np.uint8)
    head = struct.pack(">IIBBBBB", width, height, depth, _COLOUR_TYPES[channels], 0, 0, 0)
    parts = [_part(b"IHDR", head), _part(b"IDAT", zlib.compress(rows.tobytes(), 6)), _part(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts), f"{width} x {height} pixels{remark}"


def _part(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _channels_last(array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim == 2:
        return array[:, :, None]
    if array.ndim == 3 and array.shape[2] in _COLOUR_TYPES:
        return array
    if array.ndim == 3 and array.shape[0] in _COLOUR_TYPES:
        return np.moveaxis(array, 0, 2)
    raise ValueError(
        f"shape {array.shape} is no image; expected (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels. "
        "Write it as .npy"
    )


def _as_unsigned(pixels: NDArray[Any]) -> tuple[NDArray[Any], str]:
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels, ""
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255), ""
    if pixels.dtype.kind not in "iufV" or (pixels.dtype.kind == "V" and "float" not in pixels.dtype.name):
        raise ValueError(f"dtype {pixels.dtype} cannot be shown as an image. Write it as .npy")
    values = pixels.astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    scaled = np.nan_to_num((values - low) * (255 / (high - low) if high > low else 0.0), nan=0.0)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8), f", values {low:.6g} to {high:.6g} stretched to 0 to 255"
