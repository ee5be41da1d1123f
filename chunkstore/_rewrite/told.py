"""The progress of `merge` and `repack`: bytes once as they are copied, and once more as the new file is verified."""

from __future__ import annotations

from chunkstore._verify.report import Progress
from chunkstore._verify.verify import verify
from chunkstore.errors import CorruptError


class Told:
    """What the caller is told.

    Args:
        progress: of the caller.
        nbytes: that will be copied.
    """

    def __init__(self, progress: Progress | None, nbytes: int) -> None:
        self._progress = progress
        self._nbytes = nbytes
        self._done = 0

    def copied(self, nbytes: int) -> None:
        """So many bytes more are copied."""
        self._tell(self._done + nbytes)

    def verify(self, path: str, wrong: str) -> None:
        """Read the whole new file back, before it gets its name; CorruptError with `wrong` and the first damage."""
        # What verify counts are the bytes of the file, which has an index besides.
        report = verify(path, progress=lambda done, total: self._tell(self._nbytes + self._nbytes * done // total))
        if not report.ok:
            raise CorruptError(f"{wrong}: {report.damage[0]}")

    def _tell(self, done: int) -> None:
        self._done = done
        if self._progress is not None:
            self._progress(done, 2 * self._nbytes)
