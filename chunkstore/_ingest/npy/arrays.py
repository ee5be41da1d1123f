"""One array of a source file -> its elements in C order and little-endian, in bounded memory.

How the bytes lie decides how they are read:

| in the file | read by |
|---|---|
| `.npy` or stored member, C order | `preadv` straight into the destination |
| the same, Fortran order | boxes: runs of the first axis, one `preadv` each, spread in memory |
| deflated, C order | one forward pass; going back starts over |
| deflated, Fortran order | inflated whole up to 64 MiB, else into an unlinked temporary file, then by boxes |

Not thread-safe: each thread has its own source.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Final, Self

import numpy as np
import numpy.typing as npt

from chunkstore._format import dtypes
from chunkstore._ingest.npy.casts import Cast, check_values, convert, native, resolve_cast
from chunkstore._ingest.npy.files import check_unchanged, open_regular, read_exactly
from chunkstore._ingest.npy.npz import InflateStream, Member
from chunkstore._ingest.plan.specs import leaf_of
from chunkstore.errors import IngestError

TILE_NBYTES: Final = 8 << 20
_WHOLE_NBYTES: Final = 64 << 20  # a Fortran array up to this is transposed in memory
_SMALL_RUN: Final = 64 << 10
_REGION_NBYTES: Final = 4 << 20
_SHORT_STRIDE: Final = 8 << 10  # to copy so much costs less than one more system call
_MAX_WASTE: Final = 32


@dataclass(frozen=True, slots=True)
class ArrayKind:
    """What many arrays have in common.

    Attributes:
        dtype: as stored, byte order included.
        fortran: first index fastest.
        data_offset: bytes of the `.npy` header.
    """

    dtype: np.dtype[Any]
    fortran: bool
    data_offset: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where one array lies, as the plan found it.

    Attributes:
        path: to open.
        where: path and member for messages.
        size, mtime_ns: of the file.
        member: its place in the zip, or None for an `.npy`.
        kind, shape: from the `.npy` header.
    """

    path: str
    where: str
    size: int
    mtime_ns: int
    member: Member | None
    kind: ArrayKind
    shape: tuple[int, ...]


Read = Callable[[int, int, memoryview], None]
"""Elements `[start, stop)`, C order, into memory that they fill: as they are stored."""


class _StoredC:
    """Bytes at an offset; adds up the CRC of a member as long as it is read in order from its start."""

    def __init__(self, fd: int, place: Place) -> None:
        self._fd, self._where, self._member = fd, place.where, place.member
        self._begin = place.member.offset if place.member else 0
        self._header_nbytes, self._itemsize = place.kind.data_offset, place.kind.dtype.itemsize
        self._position = self._crc = 0
        if place.member is not None:
            self._read(0, memoryview(bytearray(self._header_nbytes)))

    def read(self, start: int, stop: int, view: memoryview) -> None:
        self._read(self._header_nbytes + start * self._itemsize, view)

    def _read(self, begin: int, view: memoryview) -> None:
        read_exactly(self._fd, self._begin + begin, view, self._where)
        if self._member is None or begin != self._position:
            return
        self._crc = zlib.crc32(view, self._crc)
        self._position += len(view)
        if self._position == self._member.nbytes and self._crc != self._member.crc:
            raise IngestError(
                f"{self._where}: CRC-32 stored {self._member.crc:08x}, computed {self._crc:08x}. The archive is "
                "damaged: get it again."
            )


class _DeflatedC:
    """A forward cursor; starts over when it must go back."""

    def __init__(self, fd: int, place: Place) -> None:
        assert place.member is not None
        self._fd, self._place, self._member = fd, place, place.member
        self._stream: InflateStream | None = None

    def read(self, start: int, stop: int, view: memoryview) -> None:
        begin = self._place.kind.data_offset + start * self._place.kind.dtype.itemsize
        if self._stream is None or self._stream.position > begin:
            self._stream = InflateStream(self._fd, self._member, self._place.where)
        self._stream.skip(begin - self._stream.position)
        self._stream.read_into(view)


def _transposed(read: Read, place: Place) -> Read:
    """Elements of a small Fortran array, which is transposed in memory."""
    itemsize = place.kind.dtype.itemsize
    buffer = np.empty(math.prod(place.shape) * itemsize, np.uint8)
    read(0, math.prod(place.shape), buffer.data)
    stored = buffer.view(place.kind.dtype).reshape(place.shape, order="F")
    whole = np.ascontiguousarray(stored).reshape(-1).view(np.uint8).data

    def read_whole(start: int, stop: int, view: memoryview) -> None:
        view[:] = whole[start * itemsize : stop * itemsize]

    return read_whole


def flat_boxes(shape: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """Boxes that make up the C-order elements `[start, stop)`, in order; each is a (first, last + 1) per axis."""
    if stop <= start:
        return
    if not shape:
        yield ()
        return
    row = math.prod(shape[1:])
    first, skip = divmod(start, row)
    last, rest = divmod(stop, row)
    if skip:
        for box in flat_boxes(shape[1:], skip, min(row, skip + stop - start)):
            yield ((first, first + 1), *box)
        first += 1
    if first < last:
        yield ((first, last), *((0, dim) for dim in shape[1:]))
    if rest and first <= last:
        for box in flat_boxes(shape[1:], 0, rest):
            yield ((last, last + 1), *box)


class _Fortran:
    """A large Fortran array by boxes. Memory: one box of the caller's size and one region of at most 4 MiB."""

    def __init__(self, fd: int, base: int, place: Place) -> None:
        self._fd, self._base, self._where, self._shape = fd, base, place.where, place.shape
        # The bytes are moved, not looked at: a void of the same width does for any dtype, objects excepted.
        self._void = np.dtype(f"V{place.kind.dtype.itemsize}")

    def read(self, start: int, stop: int, view: memoryview) -> None:
        flat = np.frombuffer(view, self._void)
        done = 0
        for box in flat_boxes(self._shape, start, stop):
            dims = tuple(last - first for first, last in box)
            size = math.prod(dims)
            self._read_box(box, flat[done : done + size].reshape(dims).T)
            done += size

    def _read_box(self, box: tuple[tuple[int, int], ...], out: npt.NDArray[Any]) -> None:
        """`out` has the box's shape reversed: so reversed, the file is in C order."""
        sides, dims = box[::-1], self._shape[::-1]
        level = self._level(sides, dims)
        strides = [self._void.itemsize * math.prod(dims[axis + 1 :]) for axis in range(level + 1)]
        begin = self._base + sum(side[0] * stride for side, stride in zip(sides, strides, strict=False))
        num = out.shape[level]
        step = max(1, _REGION_NBYTES // strides[level])
        region = np.empty((min(step, num), *dims[level + 1 :]), self._void)
        chosen = (slice(None), *(slice(*side) for side in sides[level + 1 :]))
        for *outer, first in itertools.product(*map(range, out.shape[:level]), range(0, num, step)):
            offset = begin + sum(i * stride for i, stride in zip((*outer, first), strides, strict=True))
            part = region[: num - first]
            read_exactly(self._fd, offset, part.reshape(-1).view(np.uint8).data, self._where)
            out[tuple(outer)][first : first + len(part)] = part[chosen]

    def _level(self, sides: tuple[tuple[int, int], ...], dims: tuple[int, ...]) -> int:
        """Axis (of the reversed shape) along which contiguous regions are read, unwanted elements included where runs
        are short.
        """
        level = len(dims) - 1
        while level > 0 and sides[level] == (0, dims[level]):
            level -= 1
        while level > 0 and self._region(sides, dims, level)[0] < _SMALL_RUN:
            nbytes, useful = self._region(sides, dims, level - 1)
            stride = self._void.itemsize * math.prod(dims[level:])
            if stride > _REGION_NBYTES or (stride > _SHORT_STRIDE and nbytes > _MAX_WASTE * useful):
                break
            level -= 1
        return level

    def _region(self, sides: tuple[tuple[int, int], ...], dims: tuple[int, ...], level: int) -> tuple[int, int]:
        """Bytes of the region at a level, and how many of them are wanted."""
        width = (sides[level][1] - sides[level][0]) * self._void.itemsize
        return width * math.prod(dims[level + 1 :]), width * math.prod(
            last - first for first, last in sides[level + 1 :]
        )


def _is_c_order(kind: ArrayKind, shape: tuple[int, ...]) -> bool:
    """Whether C and Fortran order are the same here."""
    return not kind.fortran or sum(dim > 1 for dim in shape) < 2 or 0 in (*shape, kind.dtype.itemsize)


def _spill(read: Read, place: Place) -> IO[bytes]:
    """All elements in an unlinked temporary file, in the order of the member."""
    spill = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the source
    try:
        _pass_over(read, place, spill)
        spill.flush()
    except BaseException as error:
        with contextlib.suppress(OSError):  # what is still buffered finds no room either
            spill.close()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            nbytes = math.prod(place.shape) * place.kind.dtype.itemsize
            text = (
                f"{error.strerror}, where {place.where} is unpacked: it needs {nbytes:,} bytes for a while. Set TMPDIR "
                "to a folder with so much room"
            )
            raise OSError(error.errno, text, tempfile.gettempdir()) from error
        raise
    return spill


def _pass_over(read: Read, place: Place, copy: IO[bytes] | None = None) -> None:
    """Read all elements once, in file order; write them to `copy`."""
    itemsize = place.kind.dtype.itemsize
    total = math.prod(place.shape)
    step = max(1, TILE_NBYTES // itemsize)
    buffer = memoryview(bytearray(min(step, total) * itemsize))
    for start in range(0, total, step):
        stop = min(total, start + step)
        piece = buffer[: (stop - start) * itemsize]
        read(start, stop, piece)
        if copy is not None:
            copy.write(piece)


class ArraySource:
    """Reads one array, or one member of a structured array, as a field wants it.

    Args:
        place: where it lies.
        member: names down to the member of a structured array; empty for the array itself.
        cast: to the field's dtype; None keeps the dtype.

    Attributes:
        dtype: of what is read, little-endian.
        shape: subarray dimensions of a member included.
        num_elements: of the stored array (records, where it is structured).
        element_nbytes: bytes that one of them gives.

    Raises:
        IngestError: the file is not as it was planned.
        OSError: it cannot be read.
    """

    def __init__(self, place: Place, member: tuple[str, ...] = (), cast: Cast | None = None) -> None:
        self._place, self._member = place, member
        subshape, self._cast = _member_of(place, member, cast)
        self.dtype: np.dtype[Any] = dtypes.to_numpy(self._cast.target)
        self.shape = place.shape + subshape
        self.num_elements = math.prod(place.shape)
        self.element_nbytes = dtypes.element_nbytes(self._cast.target) * math.prod(subshape)
        self._fd, status = open_regular(place.path, place.where)
        self._read: Read | None = None
        self._spilled: IO[bytes] | None = None
        try:
            check_unchanged(status, place.size, place.mtime_ns, place.where)
        except BaseException:
            self.close()
            raise

    def _stored(self) -> Read:
        """Opened even where there is nothing to read: the CRC of an array without bytes is that of its header."""
        if self._read is None:
            self._read = self._open()
        return self._read

    def _open(self) -> Read:
        fd, place = self._fd, self._place
        deflated = place.member is not None and place.member.deflated
        straight = _DeflatedC(fd, place).read if deflated else _StoredC(fd, place).read
        if _is_c_order(place.kind, place.shape):
            return straight
        if math.prod(place.shape) * place.kind.dtype.itemsize <= _WHOLE_NBYTES:
            return _transposed(straight, place)
        if deflated:
            self._spilled = _spill(straight, place)
            return _Fortran(self._spilled.fileno(), 0, place).read
        if place.member is None:
            return _Fortran(fd, place.kind.data_offset, place).read
        _pass_over(straight, place)  # boxes come out of order: the CRC needs a pass of its own
        return _Fortran(fd, place.member.offset + place.kind.data_offset, place).read

    def read_elements(self, start: int, stop: int, out: npt.NDArray[np.uint8]) -> None:
        """Elements `[start, stop)` of the array in C order, as bytes of the field, into `out`.

        Raises:
            IngestError: damage, a value that does not fit the dtype, or a file that changed meanwhile.
        """
        if len(out) != (stop - start) * self.element_nbytes:
            raise ValueError(f"out has {len(out)} bytes, needed are {(stop - start) * self.element_nbytes}")
        read, itemsize = self._stored(), self._place.kind.dtype.itemsize
        step = max(1, TILE_NBYTES // max(itemsize, self.element_nbytes, 1))
        for low in range(start, stop, step) if itemsize else ():
            high = min(stop, low + step)
            tile = slice((low - start) * self.element_nbytes, (high - start) * self.element_nbytes)
            self._read_tile(read, low, high, out[tile])
        if not itemsize:
            out[:] = 0  # texts of width 0, made wider
        check_unchanged(os.fstat(self._fd), self._place.size, self._place.mtime_ns, self._place.where)

    def _read_tile(self, read: Read, start: int, stop: int, out: npt.NDArray[np.uint8]) -> None:
        dtype = self._place.kind.dtype
        if not self._member and self._cast.mode in ("same", "bits"):
            read(start, stop, out.data)
            values = out.view(dtype)
            if not dtype.isnative:
                values.byteswap(inplace=True)
            if self._cast.checked:
                check_values(self._cast, out.view(native(dtype)), self._place.where)
            return
        convert(self._cast, self.read_values(start, stop), out, self._place.where)

    def read_values(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Elements in their own little-endian dtype, before any cast: for texts. One tile: the caller bounds it."""
        read, dtype = self._stored(), self._place.kind.dtype
        tile = np.empty((stop - start) * dtype.itemsize, np.uint8)
        if not dtype.itemsize:
            return np.zeros(stop - start, self._cast.source.str[:2] + "1")
        if stop > start:
            read(start, stop, tile.data)
        values = tile.view(dtype)
        for name in self._member:
            values = values[name]
        return np.ascontiguousarray(values, native(values.dtype)).reshape(-1)

    def close(self) -> None:
        """Give the descriptor back; a second call does nothing."""
        self._read = None
        if self._spilled is not None:
            self._spilled.close()
            self._spilled = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _member_of(place: Place, member: tuple[str, ...], cast: Cast | None) -> tuple[tuple[int, ...], Cast]:
    """Subarray dimensions and cast of the array or of the member."""
    if place.kind.dtype.hasobject:
        raise IngestError(f"{place.where}: object arrays are not read as arrays.")
    leaf = leaf_of(None, place.kind.dtype, len(place.shape), member)
    if leaf is None:
        raise IngestError(f"{place.where}: a structured array: name one of its members.")
    try:
        return leaf.subshape, cast or resolve_cast(leaf.dtype, None, leaf.label)
    except IngestError as error:
        raise IngestError(f"{place.where}: {error}") from None
