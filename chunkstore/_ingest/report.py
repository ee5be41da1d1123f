"""What `convert` and `export` say when they are done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chunkstore._format.schema import Field
from chunkstore._ingest.scan import Skipped


@dataclass(frozen=True)
class ConvertReport:
    """The result of `convert`.

    Attributes:
        path: of the container.
        num_samples, num_files: that went into it.
        nbytes: of the container; of a dry run too, exactly.
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

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            **self.__dict__,
            "fields": [
                {"name": field.name, "dtype": field.dtype, "shape": list(field.shape), "codec": field.codec}
                for field in self.fields
            ],
            "notes": list(self.notes),
            "skipped": [{"path": item.path, "reason": item.reason} for item in self.skipped],
        }

    def summary(self) -> str:
        """Text for people, several lines."""
        lines = [self.explanation, *(f"note: {note}" for note in self.notes)]
        lines += [f"  {_field_text(field)}" for field in self.fields]
        verb = "would have" if self.dry_run else "has"
        lines.append(
            f"{self.path} {verb} {self.num_samples:,} samples of {self.num_files:,} files in {self.nbytes:,} bytes"
        )
        if not self.dry_run:
            lines[-1] += f", written in {self.seconds:.2f} s"
            lines.append(f"fingerprint {self.fingerprint}")
        if self.verified:
            lines.append("read back and compared with the sources: every value is equal")
        if self.skipped:
            lines.append(f"{len(self.skipped):,} files were SKIPPED:")
            lines += [f"  {item.path}: {item.reason}" for item in self.skipped]
        return "\n".join(lines)


def _field_text(field: Field) -> str:
    shape = ", ".join("?" if dim is None else str(dim) for dim in field.shape)
    return f"{field.name}: {field.dtype} ({shape})"


@dataclass(frozen=True)
class ExportReport:
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

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {**self.__dict__, "notes": list(self.notes)}

    def summary(self) -> str:
        """Text for people."""
        lines = [f"note: {note}" for note in self.notes]
        text = f"{self.path}: {self.num_files:,} files of {self.num_samples:,} samples, {self.nbytes:,} bytes, "
        return "\n".join([*lines, f"{text}written in {self.seconds:.2f} s"])
