"""What may be replaced: a container, or a file without a byte; never a file of another kind, and no source."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from chunkstore._format.constants import MAGIC, SUPERBLOCK_OFFSETS

_FORGOTTEN = "Was the name of the new container forgotten?"


def check_replaceable(
    path: str | os.PathLike[str], sources: Iterable[str | os.PathLike[str]] = (), *, mode: str = "w"
) -> None:
    """Refuse to replace what is no container, or what the new container is made of.

    Args:
        path: that would be replaced; links are followed. Nothing there, or no regular file, passes: that is for others
            to say.
        sources: files that must not be lost; directories and what is not there are passed over.
        mode: of the caller, `"x"` or `"w"`; nothing is looked at unless it is `"w"`.
    Raises:
        FileExistsError: it must stay. Nothing was changed.
        ValueError: another mode.
        OSError: it cannot be read.
    """
    if mode not in ("x", "w"):
        raise ValueError(f"mode: expected 'x' (new) or 'w' (replace), found {mode!r}")
    if mode != "w" or not os.path.isfile(path):
        return
    if any(os.path.isfile(source) and os.path.samefile(source, path) for source in sources):
        raise _stays(path, f"this file is also a source: it is not replaced. {_FORGOTTEN} Name another file")
    if os.path.getsize(path) and not is_container(path):
        raise _stays(
            path, f"this file is no container: it is not replaced. {_FORGOTTEN} Name one, or remove this file first"
        )


def is_container(path: str | os.PathLike[str]) -> bool:
    """Whether a regular file of this name has the magic of a container in one of the two places."""
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            for offset in SUPERBLOCK_OFFSETS:
                file.seek(offset)
                if file.read(len(MAGIC)) == MAGIC:
                    return True
    except OSError as error:
        error.filename = os.fspath(path)  # a bad sector has no name
        raise
    return False


def _stays(path: str | os.PathLike[str], text: str) -> FileExistsError:
    return FileExistsError(errno.EEXIST, text, os.fspath(path))
