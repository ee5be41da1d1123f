"""`merge`, `repack`, `recover`: containers out of containers."""

from __future__ import annotations

import os
from typing import TextIO

import click

import chunkstore
from chunkstore._cli import guard
from chunkstore._cli.options import (
    ANY_PATH,
    advise_if_no_container,
    codec_option,
    container_argument,
    json_option,
    refuse_stream,
)
from chunkstore._cli.output import bar, nbytes_text, one_line, plural, write, write_json, write_prose
from chunkstore._ingest.convert.report import left_behind

_SHOWN = 20
_overwrite = click.option("--overwrite", is_flag=True, help="Replace the container OUT, once the new one is complete.")


def _report(path: str, as_json: bool, notes: tuple[str, ...] = ()) -> None:
    """What became of it."""
    notes += left_behind(path)
    with chunkstore.open(path, backend="pread") as ds:
        nbytes = ds._source.size
        if as_json:
            facts = {"path": path, "num_samples": len(ds), "nbytes": nbytes, "fingerprint": ds.fingerprint}
            write_json({**facts, "notes": list(notes)})
        else:
            for note in notes:
                write_prose(f"note: {note}")
            write(f"{one_line(path)}: {plural(len(ds), 'sample')}, {nbytes_text(nbytes)}, verified")


@click.command(
    epilog="""\b
Examples:
  chunkstore merge all.cks part-*.cks
  chunkstore merge all.cks shards/
"""
)
@click.argument("out", type=ANY_PATH)
@click.argument("files", nargs=-1, required=True, type=ANY_PATH, metavar="FILE...")
@_overwrite
@json_option
def merge(out: str, files: tuple[str, ...], overwrite: bool, as_json: bool) -> None:
    """Put the samples of each FILE into the new container OUT, in the order given.

    All must have the same fields, and no key twice, and class names must number the same classes. Attributes that
    differ are not kept, and listed. Data are copied by the system where it can, and OUT is verified as a whole before
    it gets its name. Each FILE may be a directory or a quoted pattern of containers; each FILE, and OUT, a URL.
    """
    refuse_stream(out)
    if os.path.isfile(out) and not overwrite:
        raise FileExistsError(
            f"{out}: the first name is that of the new container, and this file exists: it stays as it is. Name a new "
            "one before the containers to merge; --overwrite replaces it"
        )
    for file in files:
        advise_if_no_container(file)
    with bar("merge") as progress:
        merged = chunkstore.merge(files, out, mode="w" if overwrite else "x", progress=progress)
    _report(out, as_json, merged.notes)


@click.command(
    epilog="""\b
Examples:
  chunkstore repack appended.cks train.cks
  chunkstore repack train.cks subset.cks --keys chosen.txt
  chunkstore repack train.cks small.cks --codec image=zstd:9
"""
)
@container_argument
@click.argument("out", type=ANY_PATH)
@click.option(
    "--keys",
    "keys_file",
    type=click.File("r", encoding="utf-8"),
    metavar="LIST",
    help="Only the samples whose keys stand in LIST, one a line ('-': standard input), in that order.",
)
@codec_option(auto=False)
@_overwrite
@json_option
def repack(
    file: str, out: str, keys_file: TextIO | None, codec: tuple[str, ...], overwrite: bool, as_json: bool
) -> None:
    """Write the samples of FILE into the new container OUT, each field in one piece again.

    For files that grew by appending or streaming: reads in order get faster, and superseded parts are gone. --codec
    changes how chunks are stored; fields that it does not name keep their codec. Every row is proven as it is read, and
    OUT is verified before it gets its name. FILE and OUT may be URLs: so a container is uploaded, or fetched.
    """
    refuse_stream(out)
    advise_if_no_container(file)
    keys = None if keys_file is None else _lines(keys_file)
    with bar("repack") as progress:
        chunkstore.repack(file, out, keys=keys, mode="w" if overwrite else "x", codec=codec, progress=progress)
    _report(out, as_json)


def _lines(file: TextIO) -> list[str]:
    try:
        return [line.rstrip("\n") for line in file if line.strip()]
    except UnicodeDecodeError as error:
        text = f"{file.name}: expected keys as UTF-8, one a line, found {error.object[error.start :][:4]!r}"
        raise click.BadParameter(text, param_hint="'--keys'") from None


@click.command(
    epilog="""\b
Examples:
  chunkstore recover damaged.cks saved.cks
"""
)
@container_argument
@click.argument("out", type=ANY_PATH)
@click.option("--all", "show_all", is_flag=True, help=f"List all that is lost, not only the first {_SHOWN} runs.")
@_overwrite
@json_option
@click.pass_context
def recover(ctx: click.Context, file: str, out: str, show_all: bool, overwrite: bool, as_json: bool) -> None:
    """Save every sample of the damaged FILE whose bytes can be proven good into the new container OUT.

    Nothing is guessed: what has not the checksums that were written with it is lost, and listed. FILE is only read.
    FILE and OUT may be URLs. Exit code 1 if anything is lost.
    """
    refuse_stream(out)
    advise_if_no_container(file)
    with bar("recover", " samples") as progress:
        report = chunkstore.recover(file, out, mode="w" if overwrite else "x", progress=progress)
    report.notes += left_behind(out)
    if as_json:
        write_json(report.as_dict())
    else:
        write_prose(_recovery_text(report, None if show_all else _SHOWN))
    ctx.exit(guard.GOOD if report.complete else guard.BAD_DATA)


def _recovery_text(report: chunkstore.Recovery, most: int | None) -> str:
    lines = [f"note: {note}" for note in report.notes]
    for lost in report.lost[:most]:
        key = "" if lost.key is None else f" (from {lost.key!r} on)"
        lines.append(f"lost: samples {lost.start} to {lost.stop - 1}{key}: {lost.reason}")
    if most is not None and len(report.lost) > most:
        lines.append(f"... and {len(report.lost) - most:,} more runs; --all lists them")
    also = f", {report.num_lost:,} lost" * bool(report.num_lost)
    also += ", and what the newest commit added is lost" * report.lost_commit
    lines.append(f"{plural(report.num_saved, 'sample')} saved in {report.out}{also}")
    return "\n".join(lines)
