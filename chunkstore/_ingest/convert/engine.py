"""A task on a worker of any engine: written into the unfinished container, or given back where that cannot be seen.

The converter marks the container with a random token, which a worker looks for: a path alone may lead to another file
on another machine. A worker that finds it writes its blocks in their place. One that does not gives its rows back
through the engine, as a part, and the converter puts them in their place; a task too large for that it does itself.
Either way the bytes are the same, and doing a task twice does no harm.
"""

from __future__ import annotations

import os
import platform
import secrets
from dataclasses import dataclass, field
from typing import Final

from chunkstore._ingest.convert.tasks import Task, Written, write_blocks
from chunkstore._storage.buffers import Buffer
from chunkstore._storage.commit import unpublished
from chunkstore._storage.sink import Sink

PART_NBYTES: Final = 256 << 20  # a default shard is 64 MiB; both sides hold a part in memory
_TOKEN_NBYTES: Final = 16


class Abandoned(Exception):
    """The unfinished container was removed: nobody wants the rest."""


@dataclass(frozen=True)
class Outcome:
    """What comes back. An error comes as a value: what the engine itself raises is then the engine's failure.

    Attributes:
        written: checksums of the blocks; None where the worker does not see the container, and the rows are too many
            to be given back.
        part: (offset in the container, bytes) that the worker could not write.
        error: that of the task.
    """

    written: list[Written] | None
    part: list[tuple[int, bytes]] = field(default_factory=list, repr=False)
    error: Exception | None = None


def mark(sink: Sink, *, shared: bool) -> bytes:
    """Put a token at the head of an unfinished container, where a superblock will be.

    Args:
        sink: of the container.
        shared: whether other machines may have to see it now: a network file system may keep it back otherwise.
    """
    token = secrets.token_bytes(_TOKEN_NBYTES)
    sink.pwrite(0, token)
    if shared:
        with unpublished(sink.path):
            sink.sync()
    return token


def carry_out(task: Task, token: bytes, host: str) -> Outcome:
    """Do a task; this is what a worker of any engine runs.

    Args:
        task: what to do.
        token: what stands at the head of the container.
        host: the converter's machine.

    The outcome's error is
        IngestError, OSError: a source cannot be read, or is not as planned;
        WriteError: the container cannot be written;
        Abandoned: it is gone.
    """
    try:
        sink = _join(task.temporary, token)
        if sink is not None:
            with sink:
                return Outcome(_write(task, sink, shared=host != platform.node()))
        if task.num_bytes > PART_NBYTES:
            return Outcome(None)
        part = _Part()
        return Outcome(list(write_blocks(task, part, lambda _: None)), part.pieces)
    except Exception as error:  # noqa: BLE001 - it is raised by whoever takes the outcome
        return Outcome(None, error=error)


def _join(temporary: str, token: bytes) -> Sink | None:
    """The container, or None where this worker does not see it or must not write to it."""
    try:
        with open(temporary, "rb", buffering=0) as file:
            if file.read(_TOKEN_NBYTES) != token:
                return None
        return Sink.join(temporary)
    except OSError:
        return None


def _write(task: Task, sink: Sink, *, shared: bool) -> list[Written]:
    """Do the task in the container, which the converter's machine may have to be told of."""

    def check(nbytes: int) -> None:
        # The converter removes the file when it gives up; this works on any engine that shares a file system.
        if os.fstat(sink.fileno()).st_nlink == 0:
            raise Abandoned(task.temporary)

    written = list(write_blocks(task, sink, check))
    if shared:
        with unpublished(sink.path):  # the sync of the converter is for what its own machine holds back
            sink.sync()
    return written


class _Part:
    """Takes the place of a container that cannot be seen."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, bytes]] = []

    def pwrite(self, offset: int, buffer: Buffer) -> None:
        """Keep a copy: the buffer is used again."""
        self.pieces.append((offset, bytes(buffer)))
