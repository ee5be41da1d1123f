"""System calls that are recorded, and system calls that go wrong."""

from __future__ import annotations

import os
from typing import Any

from chunkstore._storage.syscalls import SystemCalls

# Each method that does something to a file, which a test may name.
CALLS = (
    "open", "close", "pwrite", "copy_range", "truncate", "allocate", "start_writeback",
    "sync_data", "sync_file", "sync_directory", "link", "rename", "unlink", "lock", "unlock",
)  # fmt: skip


class Recorder(SystemCalls):
    """Notes the name and arguments of every call, then makes it."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in CALLS:
            return found

        def noted(*args: Any) -> Any:
            self.calls.append((name, *args))
            return found(*args)

        return noted

    @property
    def names(self) -> list[str]:
        """The calls in order, without those that change nothing."""
        return [call[0] for call in self.calls if call[0] not in ("start_writeback", "allocate")]


class Failing(Recorder):
    """One call raises from its n-th use on (0 is the first); `times` limits how often."""

    def __init__(self, name: str, error: BaseException | int, *, after: int = 0, times: int = 1) -> None:
        super().__init__()
        self.name, self.after, self.times = name, after, times
        self.error = OSError(error, os.strerror(error)) if isinstance(error, int) else error

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in CALLS or name != self.name:
            return found

        def failing(*args: Any) -> Any:
            self.after -= 1
            if self.after < 0 < self.times:
                self.times -= 1
                self.calls.append((name, *args))
                raise self.error
            return found(*args)

        return failing


class Stingy(SystemCalls):
    """Takes at most `most` bytes in one write."""

    def __init__(self, most: int) -> None:
        self.most = most

    def pwrite(self, fd: int, buffer: memoryview, offset: int) -> int:
        return super().pwrite(fd, buffer[: self.most], offset)

    def copy_range(self, source_fd: int, fd: int, nbytes: int, source_offset: int, offset: int) -> int:
        return super().copy_range(source_fd, fd, min(nbytes, self.most), source_offset, offset)


class Lying(SystemCalls):
    """Answers every write with a count of its own."""

    def __init__(self, count: int) -> None:
        self.count = count

    def pwrite(self, fd: int, buffer: memoryview, offset: int) -> int:
        return self.count
