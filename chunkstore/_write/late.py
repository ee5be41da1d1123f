"""Blocks whose place in the file is not known yet: kept in an unnamed temporary file until it is."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable
from typing import IO, Final

from chunkstore._storage.sink import Sink
from chunkstore.errors import WriteError

_PIECE_NBYTES: Final = 8 << 20


class LateBlocks:
    """The blocks of one field, back to back, until `place` writes them where they belong.

    Args:
        folder: for the temporary file.
    Raises:
        WriteError: the system has no room.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None
        self.nbytes = 0

    def append(self, pieces: Iterable[bytes]) -> int:
        """Take a block; where it begins, counted from the first."""
        offset = self.nbytes
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed by close()
            for piece in pieces:
                self._file.write(piece)
                self.nbytes += len(piece)
            self._file.flush()  # or the disk may turn out to be full later, where nobody expects it
        except OSError as error:
            text = f"no room in {self._folder} for the chunks of a field: {error.strerror}"
            raise WriteError(error.errno, text) from error
        return offset

    def place(self, sink: Sink, offset: int) -> None:
        """Write all of them, from `offset` on, and forget them."""
        if self._file is not None:
            self._file.seek(0)
            while piece := self._file.read(_PIECE_NBYTES):
                sink.pwrite(offset, piece)
                offset += len(piece)
        self.close()

    def close(self) -> None:
        """Let go of the temporary file."""
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):  # what could not be written before cannot be now; nobody wants it
                file.close()
        self.nbytes = 0
