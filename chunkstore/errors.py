"""Every exception that chunkstore raises on purpose, as one tree.

    ChunkstoreError
    ├── FormatError(ValueError)          the bytes of a container are not what the specification says
    │   ├── NotAContainerError           no chunkstore magic at the head
    │   ├── UnsupportedVersionError      a format major that this release does not read
    │   ├── UnsupportedFeatureError      an unknown incompatible flag, codec or dtype
    │   ├── LimitError                   a number beyond the limits of the specification
    │   └── CorruptError                 a checksum or an invariant does not hold
    │       └── TruncatedError           the file ends before its committed end
    ├── SampleNotFoundError(KeyError)    no sample has this key
    ├── IngestError(ValueError)          a source file cannot be converted as asked
    ├── SchemaError(ValueError)          a sample does not fit the fields of the container
    ├── StateError(ValueError)           a saved loader state belongs to other data or another version
    ├── WriteError(OSError)              the operating system refused a write; nothing was published
    │   └── CommitUnknownError           a sync failed: whether the commit is on the disk is unknown
    ├── RemoteError(OSError)             a server did not give, or take, what it was asked for
    ├── LockedError                      another writer holds the container
    ├── PoisonedError                    the writer failed before and takes nothing more
    ├── ReplacedError                    the path now names another container
    ├── MissingExtraError(ImportError)   an optional package is needed; the message has its install line
    └── ClosedError(ValueError)          the reader or writer was closed

Built-in errors keep their meaning: `IndexError` for a position out of range, `TypeError` and `ValueError` for a wrong
argument, `FileExistsError` and `FileNotFoundError` for paths.
"""

from __future__ import annotations


class ChunkstoreError(Exception):
    """Root of all errors of this package."""


class FormatError(ChunkstoreError, ValueError):
    """The bytes of a container are not what the specification says."""


class NotAContainerError(FormatError):
    """The file does not begin with the chunkstore magic."""


class UnsupportedVersionError(FormatError):
    """The container has a format major version that this release does not read."""


class UnsupportedFeatureError(FormatError):
    """The container uses an incompatible feature, a codec or a dtype that this release does not know."""


class LimitError(FormatError):
    """A number in the container is beyond the limits of the specification."""


class CorruptError(FormatError):
    """A checksum or an invariant of the format does not hold."""


class TruncatedError(CorruptError):
    """The file ends before its committed end."""


class SampleNotFoundError(ChunkstoreError, KeyError):
    """No sample has this key."""

    def __str__(self) -> str:
        # KeyError would show the repr of its argument, quotes and escapes included.
        return str(self.args[0]) if self.args else ""


class IngestError(ChunkstoreError, ValueError):
    """A source file cannot be converted as asked. The text is cut in its middle where names in it are very long."""

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= 2000 else f"{text[:500]} ... {text[-1200:]}"


class SchemaError(ChunkstoreError, ValueError):
    """A sample does not fit the fields of the container."""


class StateError(ChunkstoreError, ValueError):
    """A saved loader state belongs to other data or to another version."""


class WriteError(ChunkstoreError, OSError):
    """The operating system refused a write; nothing was published."""


class CommitUnknownError(WriteError):
    """A sync failed: whether the commit is on the disk is unknown."""


class RemoteError(ChunkstoreError, OSError):
    """A server did not give, or take, what it was asked for, although the client library tried again."""


class LockedError(ChunkstoreError):
    """Another writer holds the container."""


class PoisonedError(ChunkstoreError):
    """The writer failed before and takes nothing more."""


class ReplacedError(ChunkstoreError):
    """The path now names another container than the one that was opened."""


class MissingExtraError(ChunkstoreError, ImportError):
    """An optional package is needed; the message has the line that installs it."""


class ClosedError(ChunkstoreError, ValueError):
    """The reader or writer was closed."""
