"""`append`: more samples behind those that are there."""

from __future__ import annotations

from typing import Any

import click

from chunkstore._cli.guard import BAD_DATA
from chunkstore._cli.options import (
    advise_if_no_container,
    container_argument,
    json_option,
    refuse_container_sources,
    source_options,
)
from chunkstore._cli.output import samples_bar, write_json, write_prose


@click.command(
    epilog="""\b
Examples:
  chunkstore append train.cks more-data/
  chunkstore append photos.cks new-photos/ --exclude 'raw/*'
"""
)
@container_argument
@click.argument("sources", nargs=-1, required=True, type=click.Path(), metavar="SRC...")
@source_options
@json_option
@click.pass_context
def append(ctx: click.Context, /, file: str, sources: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Add the samples of directories or files of .npy and .npz to FILE.

    All of them become part of FILE in one commit, or none. Where nothing else is said, files are read as those in FILE
    were: same layout, same names of fields; classes keep their numbers, and new ones get new numbers. Readers that
    have FILE open keep what they see until they call `refresh()`.
    """
    from chunkstore._ingest.convert.append import append as append_files

    advise_if_no_container(file)
    refuse_container_sources(sources)
    with samples_bar("append") as progress:
        report = append_files(sources, file, progress=progress, **options)
    if as_json:
        write_json(report.as_dict())
    else:
        write_prose(report.summary())
    if report.skipped:
        ctx.exit(BAD_DATA)
