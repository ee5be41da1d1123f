"""`refs`: what other libraries need to read a container."""

from __future__ import annotations

import json

import click

from chunkstore._cli.options import advise_if_no_container, container_argument
from chunkstore._cli.output import log, one_line, write


@click.command(
    epilog="""\b
Examples:
  chunkstore refs train.cks > train.json
  chunkstore refs train.cks --url s3://bucket/train.cks > train.json
  python -c "import xarray; print(xarray.open_dataset('train.json', engine='kerchunk'))"
"""
)
@container_argument
@click.option(
    "--format",
    "form",
    type=click.Choice(["kerchunk"]),
    default="kerchunk",
    show_default=True,
    help="References of kerchunk, version 1, for fsspec, zarr and xarray.",
)
@click.option("--url", metavar="URL", help="Where readers will find FILE; default its absolute path.")
def refs(file: str, form: str, url: str | None) -> None:
    """Describe FILE as JSON by which zarr and xarray read it without chunkstore; no data are copied.

    Each field is an array of the same values, in chunks as the shards are; keys are the array 'keys'. Fields of texts
    and of rows that differ in size become two or three arrays (NAME.values, NAME.offsets). What zarr cannot read is
    left out and named on stderr, with the reason. An append to FILE later does not make the description wrong; it shows
    what was there before.
    """
    from chunkstore._refs.kerchunk import kerchunk_references

    advise_if_no_container(file)
    found = kerchunk_references(file, url)
    for name, reason in found.left_out.items():
        log(f"left out: field {one_line(name)!r}: {reason}")
    for note in found.notes:
        log(f"note: {one_line(note)}")
    write(json.dumps(found.content))
