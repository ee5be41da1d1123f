"""One file for a data set of arrays: convert once, read random samples fast, prove every byte.

    import chunkstore

    chunkstore.convert("data/", "train.cks")
    with chunkstore.open("train.cks") as ds:
        ds[7]                          # one sample: {"image": ndarray, "label": ndarray}
        ds.batch([5, 3, 3])            # many: {"image": ndarray (3, ...), "label": ndarray (3,)}
    assert chunkstore.verify("train.cks").ok

PyTorch, TensorFlow, Grain and JAX: `chunkstore.torch`, `.tf`, `.grain` and `.jax`, imported by name when wanted.
"""

from __future__ import annotations

import importlib as _importlib

# As type checkers know it; `typing` itself takes half of the time that this module needs.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as _typing

    from chunkstore._format.schema import Field
    from chunkstore._ingest.convert.convert import convert
    from chunkstore._ingest.convert.report import ConvertReport, ExportReport
    from chunkstore._ingest.export.export import export
    from chunkstore._ingest.plan.scan import Skipped
    from chunkstore._read.many import Containers, open
    from chunkstore._read.ragged import Ragged
    from chunkstore._read.reader import Reader
    from chunkstore._read.select import Selection
    from chunkstore._rewrite.merge import Merged, merge
    from chunkstore._rewrite.recover import Lost, Recovery, recover
    from chunkstore._rewrite.repack import repack
    from chunkstore._storage.remote import Remote
    from chunkstore._verify.report import Damage, Report
    from chunkstore._verify.verify import verify
    from chunkstore._write.writer import Writer
    from chunkstore.errors import (
        ChunkstoreError,
        ClosedError,
        CommitUnknownError,
        CorruptError,
        FormatError,
        IngestError,
        LimitError,
        LockedError,
        MissingExtraError,
        NotAContainerError,
        PoisonedError,
        RemoteError,
        ReplacedError,
        SampleNotFoundError,
        SchemaError,
        StateError,
        TruncatedError,
        UnsupportedFeatureError,
        UnsupportedVersionError,
        WriteError,
    )
del TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "ChunkstoreError",
    "ClosedError",
    "CommitUnknownError",
    "Containers",
    "ConvertReport",
    "CorruptError",
    "Damage",
    "ExportReport",
    "Field",
    "FormatError",
    "IngestError",
    "LimitError",
    "LockedError",
    "Lost",
    "Merged",
    "MissingExtraError",
    "NotAContainerError",
    "PoisonedError",
    "Ragged",
    "Reader",
    "Recovery",
    "Remote",
    "RemoteError",
    "ReplacedError",
    "Report",
    "SampleNotFoundError",
    "SchemaError",
    "Selection",
    "Skipped",
    "StateError",
    "TruncatedError",
    "UnsupportedFeatureError",
    "UnsupportedVersionError",
    "WriteError",
    "Writer",
    "__version__",
    "convert",
    "export",
    "merge",
    "open",
    "recover",
    "repack",
    "verify",
]

# Where each name that is no error lives. Modules are imported when a name is first used: whoever only wants to read
# does not wait for the converter, and `chunkstore --help` not for NumPy. test_exported_names.py looks each of them up,
# and mypy holds the imports above against `__all__`.
_HOMES = {
    "Containers": "_read.many",
    "ConvertReport": "_ingest.convert.report",
    "Damage": "_verify.report",
    "ExportReport": "_ingest.convert.report",
    "Field": "_format.schema",
    "Lost": "_rewrite.recover",
    "Merged": "_rewrite.merge",
    "Ragged": "_read.ragged",
    "Reader": "_read.reader",
    "Recovery": "_rewrite.recover",
    "Remote": "_storage.remote",
    "Report": "_verify.report",
    "Selection": "_read.select",
    "Skipped": "_ingest.plan.scan",
    "Writer": "_write.writer",
    "convert": "_ingest.convert.convert",
    "export": "_ingest.export.export",
    "merge": "_rewrite.merge",
    "open": "_read.many",
    "recover": "_rewrite.recover",
    "repack": "_rewrite.repack",
    "verify": "_verify.verify",
}


def __getattr__(name: str) -> _typing.Any:
    if name in ("torch", "tf", "grain", "jax"):
        raise AttributeError(f"chunkstore.{name} is imported by name only: `import chunkstore.{name}` comes first")
    if name not in __all__:
        raise AttributeError(f"module 'chunkstore' has no attribute {name!r}")
    value = getattr(_importlib.import_module(f"chunkstore.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
