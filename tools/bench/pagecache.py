"""Making files cold, and proving that they are."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

_MADV_DONTNEED = 4
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


def _own_maps(paths: set[str]) -> Iterable[tuple[int, int]]:
    """Address and length of every map of one of `paths` in this process."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            parts = line.rstrip("\n").split(maxsplit=5)
            if len(parts) == 6 and parts[5] in paths:
                start, stop = (int(address, 16) for address in parts[0].split("-"))
                yield start, stop - start


def _forget_mapped_pages(paths: set[str]) -> None:
    # fadvise leaves alone what a process has mapped: take it out of our own page tables first
    for address, nbytes in list(_own_maps(paths)):
        _libc.madvise(address, nbytes, _MADV_DONTNEED)


def drop(paths: Iterable[Path]) -> None:
    """Put `paths` out of the page cache: maps of this process included, other processes' maps not."""
    names = [os.fspath(path.resolve()) for path in paths]
    _forget_mapped_pages(set(names))
    for name in names:
        descriptor = os.open(name, os.O_RDONLY)
        try:
            os.fdatasync(descriptor)  # a page that is not yet written stays
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def drop_all() -> bool:
    """Put the page cache of the whole machine away; needs root. Returns whether it was done."""
    os.sync()
    with contextlib.suppress(OSError), open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as control:
        control.write("1\n")
        return True
    return False


def warm(paths: Iterable[Path]) -> None:
    """Read `paths` once, so that they lie in the page cache."""
    buffer = bytearray(1 << 20)
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def resident_fraction(path: Path) -> float:
    """Share of the pages of a file that lie in the page cache, 0 to 1."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        data = np.frombuffer(view, dtype=np.uint8)
        flags = np.empty(-(-data.nbytes // mmap.PAGESIZE), dtype=np.uint8)
        _libc.mincore(data.ctypes.data, data.nbytes, flags.ctypes.data)
        del data  # a map with exports cannot be closed
        return float(np.mean(flags & 1))
