"""Bytes whose place in the file is not known yet: kept in an unnamed temporary file until it is."""

from __future__ import annotations

import contextlib
import tempfile
from typing import IO, Final

from chunkstore._storage.sink import Sink
from chunkstore.errors import WriteError

_PIECE_NBYTES: Final = 8 << 20


class Spill:
    """Bytes of the index that outgrow the memory, back to back; the file is made when there are any.

    Args:
        folder: for the temporary file.
    """

    _kind = "the index that is being collected"

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None
        self.nbytes = 0

    def reserve(self, nbytes: int) -> int:
        """Where the next bytes go, which are so many; counted from the first."""
        self.nbytes += nbytes
        return self.nbytes - nbytes

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write bytes where there is room for them, as a `Sink` does.

        Raises:
            WriteError: the system has no room for them.
        """
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed by close()
            self._file.seek(offset)
            self._file.write(data)
            self._file.flush()  # or the disk may turn out to be full later, where nobody expects it
        except OSError as error:
            raise WriteError(error.errno, f"no room in {self._folder} for {self._kind}: {error.strerror}") from error

    def read(self, offset: int, nbytes: int) -> bytes:
        """Bytes that were written, fewer at the end."""
        assert self._file is not None
        self._file.seek(offset)
        return self._file.read(nbytes)

    def close(self) -> None:
        """Let go of the temporary file."""
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):  # what could not be written before cannot be now; nobody wants it
                file.close()
        self.nbytes = 0


class LateBlocks(Spill):
    """The blocks of one field, until `place` writes them where they belong."""

    _kind = "the chunks of a field"

    def place(self, sink: Sink, offset: int) -> None:
        """Write all of them, from `offset` on, and forget them."""
        for start in range(0, self.nbytes, _PIECE_NBYTES):
            sink.pwrite(offset + start, self.read(start, _PIECE_NBYTES))
        self.close()
