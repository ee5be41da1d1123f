"""What `convert`, `append` and `export` say when they are done."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from chunkstore._format.codec import RAW
from chunkstore._format.schema import Field
from chunkstore._ingest.plan.scan import Skipped, count_text
from chunkstore._storage.commit import stale_temporaries

_SHOWN: Final = 20  # fields in a text for people


@dataclass(frozen=True)
class _Report:
    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ConvertReport(_Report):
    """The result of `convert`.

    Attributes:
        path: of the container.
        num_samples, num_files: that went into it.
        nbytes: of the container; of a dry run too, exactly if there are no codecs.
        source_nbytes: of the files; -1 where they were not asked (many equal `.npy` files).
        fields: schema.
        layout: how files became samples.
        explanation: what was found, chosen, and why.
        notes: what the user should look at.
        skipped: files that were left out (`on_error="skip"`), and why.
        fingerprint: 32 hexadecimal digits; None for a dry run.
        seconds: that it took.
        dry_run: nothing was written.
        verified: the container was read back and compared with the sources.
        rounded: fields whose values `--dtype` rounds to a narrower type.
        codecs: what codec each field got by `auto`, and why.
    """

    path: str
    num_samples: int
    num_files: int
    nbytes: int
    source_nbytes: int
    fields: tuple[Field, ...]
    layout: str
    explanation: str
    notes: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    fingerprint: str | None
    seconds: float
    dry_run: bool = False
    verified: bool = False
    rounded: tuple[str, ...] = ()
    codecs: tuple[str, ...] = ()

    def summary(self) -> str:
        """Text for people, several lines."""
        lines = [self.explanation, *(f"note: {note}" for note in self.notes), *self.codecs]
        lines += [f"  {_field_text(field)}" for field in self.fields[:_SHOWN]]
        if len(self.fields) > _SHOWN:
            lines.append(f"  ... and {len(self.fields) - _SHOWN:,} more fields")
        verb = "would have" if self.dry_run else "has"
        contents = f"{count_text(self.num_samples, 'sample')} of {count_text(self.num_files, 'file')}"
        lines.append(f"{self.path} {verb} {contents} in {self.nbytes:,} bytes")
        if not self.dry_run:
            lines[-1] += f", written in {self.seconds:.2f} s"
            lines.append(f"fingerprint {self.fingerprint}")
        if self.verified:
            how = "equal after --dtype" if self.rounded else "equal"
            lines.append(f"read back and compared with the sources: every value is {how}")
        return "\n".join([*lines, *_skipped_lines(self.skipped)])


def _skipped_lines(skipped: Sequence[Skipped]) -> list[str]:
    title = f"{count_text(len(skipped), 'file was', 'files were')} SKIPPED:"
    return [title, *(f"  {item.shown}: {item.reason}" for item in skipped)] if skipped else []


def _field_text(field: Field) -> str:
    shape = ", ".join("?" if dim is None else str(dim) for dim in field.shape)
    codec = "" if field.codec == RAW else f", {field.codec}"
    return f"{field.name}: {field.dtype} ({shape}{',' if len(field.shape) == 1 else ''}){codec}"


def left_behind(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """A note for each unfinished file that a killed run left for this name.

    They are named and not removed: where a lock of another machine cannot be seen, one may still be in use.
    """
    return tuple(
        f"a run that was killed left the unfinished file {found}: remove it, unless another machine is at work on it"
        for found in stale_temporaries(os.path.realpath(path))
    )


@dataclass(frozen=True)
class AppendReport(_Report):
    """The result of `append`.

    Attributes:
        path: of the container.
        num_added: samples that are new.
        num_samples: of the container now.
        num_files: that the new samples come from.
        explanation: what was found, chosen, and why.
        notes: what the user should look at.
        skipped: files that were left out (`on_error="skip"`), and why.
        seconds: that it took.
    """

    path: str
    num_added: int
    num_samples: int
    num_files: int
    explanation: str
    notes: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    seconds: float

    def summary(self) -> str:
        """Text for people, several lines."""
        lines = [self.explanation, *(f"note: {note}" for note in self.notes)]
        lines.append(
            f"{self.path}: {count_text(self.num_added, 'sample')} of {count_text(self.num_files, 'file')} added in "
            f"{self.seconds:.2f} s; it has {self.num_samples:,} now"
        )
        return "\n".join([*lines, *_skipped_lines(self.skipped)])


@dataclass(frozen=True)
class ExportReport(_Report):
    """The result of `export`.

    Attributes:
        path: the directory.
        num_samples: that were written.
        num_files, nbytes: of the files that were written.
        notes: what the user should know.
        seconds: that it took.
    """

    path: str
    num_samples: int
    num_files: int
    nbytes: int
    notes: tuple[str, ...]
    seconds: float

    def summary(self) -> str:
        """Text for people."""
        lines = [f"note: {note}" for note in self.notes]
        contents = f"{count_text(self.num_files, 'file')} of {count_text(self.num_samples, 'sample')}"
        text = f"{self.path}: {contents}, {self.nbytes:,} bytes, "
        return "\n".join([*lines, f"{text}written in {self.seconds:.2f} s"])
