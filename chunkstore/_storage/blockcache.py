"""Blocks of remote objects, kept on the local disk: bounded, checksummed, shared by any number of processes.

    DIR/cks-cache-1/4f/4f0c...e1-0000002a      object and version (xxh3-128), number of the block
        block bytes | xxh3-64 of them, xor that of the name

Each block is a file, written under a temporary name and renamed: nobody sees half of one. No process locks anything, so
one that is killed leaves at most a temporary file, which the next eviction removes. A file that cannot be read, has
another length or another sum counts as not there, and is removed.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from chunkstore._format.checksum import sum64, sum128

BLOCK_NBYTES: Final = 1 << 20
_SUM_NBYTES: Final = 8
_FOLDER: Final = "cks-cache-1"
_TEMPORARY: Final = ".tmp"
_KEPT_SHARE: Final = 0.9  # of the limit, after an eviction: it costs a look at every file, and so must not come often
_LOOK_SHARE: Final = 1 / 32  # of the limit: after so many bytes written by a process, it looks
_STALE_SECONDS: Final = 3600.0  # a temporary file that old belongs to a process that was killed
_TOUCH_SECONDS: Final = 300.0  # a block in use is younger than that


# (process, folder) -> bytes that it may write before it looks, whatever the number of objects. It begins anywhere up to
# the whole: processes that live shorter than that look as often, one with another.
_left: dict[tuple[int, str], float] = {}


class BlockCache:
    """Blocks of one version of one object. Safe from many threads, many processes, and after a fork.

    Errors of the disk are none of the reader's: a block that cannot be kept is not kept.

    Args:
        folder: made if it is not there.
        limit: bytes of all objects together; exceeded by at most a thirty-second for each process.
        name: tells this version of this object from any other.
    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: str, limit: int, name: str) -> None:
        self._root = os.path.join(folder, _FOLDER)
        self._limit = limit
        self._prefix = sum128(name.encode()).hex()
        os.makedirs(os.path.join(self._root, self._prefix[:2]), exist_ok=True)

    def get(self, number: int, nbytes: int) -> bytes | None:
        """Block `number`, or None. The sum is checked: 50 µs, most of it the read."""
        path = self._path(number)
        try:
            with open(path, "rb", buffering=0) as file:
                age = time.time() - os.fstat(file.fileno()).st_mtime
                data = file.read(nbytes + _SUM_NBYTES + 1)
        except OSError:
            return None
        block = data[:nbytes]
        if len(data) != nbytes + _SUM_NBYTES or self._sum(number, block) != data[nbytes:]:
            _remove(path)
            return None
        if age > _TOUCH_SECONDS:
            with suppress(OSError):
                os.utime(path)
        return block

    def put(self, number: int, block: memoryview) -> None:
        """Keep a block, if the disk takes it."""
        path = self._path(number)
        temporary = f"{path}.{os.urandom(16).hex()}{_TEMPORARY}"
        try:
            with open(temporary, "wb", buffering=0) as file:
                whole = bytes(block) + self._sum(number, block)
                if file.write(whole) != len(whole):
                    raise OSError("the disk took a part only")
            os.rename(temporary, path)
        except OSError:
            _remove(temporary)
            return
        share, process = self._limit * _LOOK_SHARE, (os.getpid(), self._root)
        left = _left.get(process, random.random() * share) - len(block)
        _left[process] = share if left < 0 else left  # threads may lose each other's; the next look comes later then
        if left < 0:
            self.evict()

    def evict(self) -> None:
        """Remove the blocks that were not used for longest, until the rest fits the limit; and what was left behind."""
        now, files, total = time.time(), [], 0
        for entry in _files(self._root):
            try:
                status = entry.stat()
            except OSError:  # another process was quicker
                continue
            if entry.name.endswith(_TEMPORARY):
                if now - status.st_mtime > _STALE_SECONDS:
                    _remove(entry.path)
                continue
            files.append((status.st_mtime, status.st_size, entry.path))
            total += status.st_size
        if total <= self._limit:
            return
        for _, nbytes, path in sorted(files):
            _remove(path)
            total -= nbytes
            if total <= self._limit * _KEPT_SHARE:
                return

    def _sum(self, number: int, block: bytes | memoryview) -> bytes:
        # With the name: whole blocks under the name of another one are damage, too.
        return (sum64(block) ^ sum64(self._name(number).encode())).to_bytes(_SUM_NBYTES, "little")

    def _name(self, number: int) -> str:
        return f"{self._prefix}-{number:08x}"

    def _path(self, number: int) -> str:
        return os.path.join(self._root, self._prefix[:2], self._name(number))


def _files(root: str) -> Iterator[os.DirEntry[str]]:
    with suppress(OSError), os.scandir(root) as folders:
        for folder in folders:
            with suppress(OSError), os.scandir(folder.path) as entries:
                yield from entries


def _remove(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)
