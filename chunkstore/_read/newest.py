"""A generation behind a path, and whether it goes on from the one that was open."""

from __future__ import annotations

import os

from chunkstore._format.index import Index, read_generation, read_index
from chunkstore._format.superblock import Superblock
from chunkstore._storage.opening import open_any
from chunkstore._storage.remote import Remote, Room
from chunkstore._storage.source import Backend, Source
from chunkstore.errors import ReplacedError, TruncatedError


def open_newest(
    path: str,
    backend: Backend,
    remote: Remote | None = None,
    *,
    in_order: bool = False,
    room: Room | None = None,
) -> tuple[Source, Index]:
    """The file and its newest generation; see `open_any` for the arguments."""
    while True:
        source = open_any(path, backend, remote, in_order=in_order, room=room)
        try:
            index = read_index(source)
            if not source.distant:
                # What lies behind may go: of an append that is given up, or that a crash has left to the next writer.
                source.size = index.superblock.committed_end
            return source, index
        except TruncatedError:
            # A commit between the look at the size and that at the head: the file has grown, and is opened again.
            grown = not source.distant and os.stat(path).st_size > source.size
            source.close()
            if not grown:
                raise
        except BaseException:
            source.close()
            raise


def open_generation(
    path: str,
    backend: Backend,
    remote: Remote | None,
    wanted: Superblock | None,
    *,
    in_order: bool = False,
    room: Room | None = None,
) -> tuple[Source, Index]:
    """As `open_newest`, of the generation that was open before, whatever was appended meanwhile; None: the newest.

    Raises:
        ReplacedError: as of `check_lineage`.
    """
    source, index = open_newest(path, backend, remote, in_order=in_order, room=room)
    if wanted is None:
        return source, index
    try:
        check_lineage(path, wanted, index.superblock)
        if index.superblock.generation != wanted.generation:
            index = read_generation(source, wanted)
    except BaseException:
        source.close()
        raise
    return source, index


def check_lineage(path: str, mine: Superblock, found: Superblock) -> None:
    """The container at the path must be the one that was open, at its generation or a later one."""
    if found.uuid != mine.uuid:
        raise ReplacedError(
            f"{path}: expected the container {mine.uuid.hex()}, found {found.uuid.hex()}: it was replaced; reopen it"
        )
    same = found.generation == mine.generation
    if found.generation < mine.generation or (same and found.directory_sum != mine.directory_sum):
        raise ReplacedError(
            f"{path}: expected generation {mine.generation} ({mine.directory_sum.hex()}) or a later one, found "
            f"{found.generation} ({found.directory_sum.hex()}): an older copy was put in its place. Open it again"
        )


def check_newer(path: str, mine: tuple[Source, Index], found: tuple[Source, Index]) -> None:
    """What was opened now must be the file that was open, at its generation or a later one."""
    check_lineage(path, mine[1].superblock, found[1].superblock)
    if found[0].identity[:2] != mine[0].identity[:2]:
        raise ReplacedError(f"{path}: another file has taken the place of the one that is open; reopen it")
