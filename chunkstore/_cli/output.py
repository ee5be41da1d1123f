"""What commands print: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TextIO

import click

from chunkstore._ingest.convert.progress import open_bar

if TYPE_CHECKING:
    from chunkstore._ingest.convert.report import AppendReport, ConvertReport, ExportReport

_RATE_NBYTES: Final = 16 << 20
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def write(text: str = "") -> None:
    """One or more lines of the result. Buffered, unlike `click.echo`: a listing may have millions of lines."""
    sys.stdout.write(text + "\n")


def write_json(value: Any, *, indent: int | None = 2) -> None:
    """The result of a command for programs, on one line without `indent`; numbers that JSON has not become texts."""
    separators = (",", ":") if indent is None else None
    write(json.dumps(_plain(value), indent=indent, separators=separators, allow_nan=False))


def write_report(report: ConvertReport | AppendReport | ExportReport, *, as_json: bool) -> None:
    """What was done, for programs or for people."""
    if as_json:
        write_json(report.as_dict())
    else:
        write_prose(report.summary())


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def log(text: str) -> None:
    """A remark, to stderr; lost where that cannot be written, for the exit code says the same."""
    with suppress(OSError):
        click.echo(wrapped(printable(text), sys.stderr), err=True)


def write_prose(text: str) -> None:
    """Sentences of the result: escaped, and broken between words where a terminal would break them anywhere."""
    write(wrapped(printable(text), sys.stdout))


def wrapped(text: str, stream: TextIO) -> str:
    """Lines of at most the width of the terminal; as they are where the stream is none."""
    if not stream.isatty():
        return text
    width = max(shutil.get_terminal_size().columns, 40)
    lines = []
    for line in text.split("\n"):
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        lines.append(
            textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        )
    return "\n".join(lines)


def printable(text: str) -> str:
    """The text with everything escaped that could move the cursor or recolour a terminal; line ends stay.

    Keys and file names come from others.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape", "backslashreplace").decode()
        for char in text
    )


def one_line(text: str) -> str:
    """The same, line ends escaped too."""
    return printable(text).replace("\n", "\\n")


def argument(path: str) -> str:
    """The path as a shell takes it for an argument of a command."""
    return shlex.quote(one_line(f"./{path}" if path.startswith("-") else path))


def nbytes_text(nbytes: float) -> str:
    """`17`, `1.5 KiB`, `20.0 GiB`; bytes without a unit are written `17 B`."""
    power = 0
    while abs(nbytes) >= 1024 and power < len(_UNITS) - 1:
        nbytes /= 1024
        power += 1
    return f"{nbytes:.0f} B" if power == 0 else f"{nbytes:.1f} {_UNITS[power]}"


def rate_text(nbytes: float, seconds: float) -> str:
    """`, 1.2 GiB/s`, or nothing where opening and closing was most of the work."""
    return f", {nbytes_text(nbytes / max(seconds, 1e-9))}/s" if nbytes >= _RATE_NBYTES else ""


def duration_text(seconds: float) -> str:
    """`350 ns`, `12.5 us`, `3.1 ms`, `2.25 s`."""
    for limit, factor, unit in ((1e-6, 1e9, "ns"), (1e-3, 1e6, "us"), (1.0, 1e3, "ms")):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.2f} s"


def plural(count: int, noun: str) -> str:
    """`1 sample`, `1,797 samples`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def shape_text(shape: Iterable[int | None]) -> str:
    """`(8, 8)`, `()`, `(?, 3)`: a question mark where rows differ."""
    dims = ["?" if dim is None else str(dim) for dim in shape]
    return f"({dims[0]},)" if len(dims) == 1 else f"({', '.join(dims)})"


def table(rows: Sequence[Sequence[str]], *, right: Iterable[int] = (), indent: str = "") -> str:
    """Columns aligned: the first row is their heads; `right` names those that are right-aligned."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    to_right = set(right)
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if place in to_right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)


@contextmanager
def bar(description: str, unit: str = "B") -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr for `progress(done, total)`; silent where stderr is no terminal."""
    with open_bar(description, unit=unit, unit_divisor=1024 if unit == "B" else 1000) as shown:

        def progress(done: int, total: int) -> None:
            shown.total = total
            shown.update(done - shown.n)

        yield progress
