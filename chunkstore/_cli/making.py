"""`convert`, `append`, `export`: between files of arrays and containers."""

from __future__ import annotations

import inspect
import os
from typing import Any

import click

import chunkstore
from chunkstore._cli.guard import BAD_DATA
from chunkstore._cli.options import (
    ANY_PATH,
    advise_if_no_container,
    check_fields,
    codec_option,
    container_argument,
    json_option,
    open_container,
    refuse_container_sources,
    refuse_stream,
    size_callback,
    source_options,
)
from chunkstore._cli.output import argument, rate_text, write, write_report
from chunkstore._format.constants import SHARD_NBYTES

_LAYOUTS = """\b
How files become samples (--layout):
  files    each .npy is a sample (field 'data'); each .npz is one, its arrays
           are the fields. The key of a sample is its path without suffix.
  rows     the first axis is the sample axis: one huge .npy; an .npz with
           x_train and y_train; several files are strung together. No keys.
  columns  X.npy and y.npy: each file is a field, its first axis the sample
           axis. No keys.
  paired   files that share a stem make a sample: images/0001.npy with
           labels/0001.npy, 0001_image.npy with 0001_label.npy, or
           0001/image.npy with 0001/label.npy.
  classes  as files, and the number of the first folder is the field 'label':
           cat/0001.npy, dog/0001.npy. attrs['class_names'] has their names.
  auto     says what it chose and why, and asks you where two readings fit.
"""


@click.command(
    epilog="""\b
Examples:
  chunkstore convert data/ train.cks
  chunkstore convert photos/ photos.cks --layout classes --field image=data
  chunkstore convert mnist.npz mnist.cks --field image=x_train --field label=y_train
  chunkstore convert X.npy y.npy xy.cks --layout columns --field image=X --field label=y
  chunkstore convert shots/ shots.cks --exclude 'old/*' --on-error skip
  chunkstore convert data/ train.cks --codec image=zstd:5 --codec pose=blosc2
  chunkstore convert data/ train.cks --codec auto --dry-run
"""
)
@click.argument("paths", nargs=-1, type=ANY_PATH, metavar="SRC... DST")
@source_options
@click.option(
    "--workers", type=click.IntRange(min=1), metavar="N", help="Processes to use; any N gives the same bytes."
)
@click.option(
    "--shard-size",
    callback=size_callback,
    metavar="SIZE",
    default=f"{SHARD_NBYTES >> 20}MiB",
    show_default=True,
    help="Bytes of a shard, before codecs: the unit of parallel work and verification.",
)
@codec_option(auto=True)
@click.option("--verify", is_flag=True, help="Read the container back and compare every value with the sources.")
@click.option("--dry-run", is_flag=True, help="Say what would be done and how large it would be; write nothing.")
@click.option("--overwrite", is_flag=True, help="Replace DST, once the new one is complete, if it is a container.")
@json_option
@click.pass_context
def convert(
    ctx: click.Context,
    /,
    paths: tuple[str, ...],
    shard_size: int,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make the container DST of directories or files of .npy and .npz.

    Directories are read recursively, in natural order (2 before 10). DST appears under its name only when it is
    complete and on the disk; on any error, and on Ctrl-C, nothing is left behind. It may be a URL (s3://, gs://,
    az://): the container is then made in the folder for temporary files, and uploaded when it is whole.
    """
    if len(paths) < 2:
        raise click.UsageError("name what to convert and the container to make: chunkstore convert data/ train.cks")
    *sources, dst = paths
    if os.path.isdir(dst) and not any(map(os.path.exists, sources)):
        raise click.UsageError(
            f"sources come first, the container to make last: chunkstore convert {argument(dst)} {argument(sources[0])}"
        )
    refuse_stream(dst)
    refuse_container_sources(sources)
    report = chunkstore.convert(
        sources, dst, mode="w" if overwrite else "x", shard_nbytes=shard_size, progress=True, **options
    )
    write_report(report, as_json=as_json)
    if not as_json:
        _say_more(report)
    if report.skipped:
        ctx.exit(BAD_DATA)


convert.help = f"{inspect.cleandoc(convert.help or '')}\n\n{_LAYOUTS}"


def _say_more(report: chunkstore.ConvertReport) -> None:
    """How fast it was, and what comes next."""
    if report.dry_run:
        write("dry run: nothing was written")
        return
    seconds = max(report.seconds, 1e-9)
    files = f", {report.num_files / seconds:,.0f} files/s" if report.num_files > 9 else ""
    write(f"{report.num_samples / seconds:,.0f} samples/s{files}{rate_text(report.nbytes, seconds)}")
    write(f"next: chunkstore info {argument(report.path)}")
    write(f"      python: import chunkstore; ds = chunkstore.open({report.path!r}); ds[0]")


@click.command(
    epilog="""\b
Examples:
  chunkstore append train.cks more-data/
  chunkstore append photos.cks new-photos/ --exclude 'raw/*'
"""
)
@container_argument
@click.argument("sources", nargs=-1, required=True, type=ANY_PATH, metavar="SRC...")
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
    report = append_files(sources, file, progress=True, **options)
    write_report(report, as_json=as_json)
    if report.skipped:
        ctx.exit(BAD_DATA)


@click.command(
    epilog="""\b
Examples:
  chunkstore export train.cks data-again/
  chunkstore export train.cks labels/ --field label
"""
)
@container_argument
@click.argument("directory", type=ANY_PATH, metavar="DIR")
@click.option("--field", "fields", multiple=True, metavar="NAME", help="Only this field; repeat it for more.")
@json_option
def export(file: str, directory: str, fields: tuple[str, ...], as_json: bool) -> None:
    """Write the samples of FILE back as .npy and .npz files.

    Files get the relative names, array names and dtypes that they had before `convert`, and the same values, bit by
    bit; what --dtype changed there stays changed. Where files of one field differed in memory order or byte order, all
    come in C order, little-endian, and a note says so; .npz files come without compression. DIR must not exist or be
    empty; it appears when everything is written.
    """
    refuse_stream(directory)
    with open_container(file) as ds:
        check_fields(ds, fields)
        report = chunkstore.export(ds, directory, fields=list(fields) or None, progress=True)
    write_report(report, as_json=as_json)
