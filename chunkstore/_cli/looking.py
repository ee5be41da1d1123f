"""`info`, `ls`, `get`, `refs`: what is in a container, for people and for other libraries."""

from __future__ import annotations

import fnmatch
import itertools
import json
import re
import sys
from collections.abc import Iterator
from typing import Any, Final

import click

from chunkstore._cli.facts import container_facts, facts_text
from chunkstore._cli.options import (
    ANY_PATH,
    advise_if_no_container,
    check_fields,
    container_argument,
    json_option,
    open_container,
)
from chunkstore._cli.output import log, one_line, plural, shape_text, write, write_json
from chunkstore._cli.sample import row_facts, row_text, save
from chunkstore._read.reader import Reader
from chunkstore.errors import SampleNotFoundError

_PIECE: Final = 4096  # samples whose keys and shapes are read at once


@click.command(
    epilog="""\b
Examples:
  chunkstore info train.cks
  chunkstore info train.cks --json | jq .fields
  chunkstore info 'shards/*.cks'
""",
)
@container_argument
@json_option
def info(file: str, as_json: bool) -> None:
    """Say what is in FILE: fields, counts, sizes, overheads, fingerprint.

    Reads the head and the index only: takes the same time for any number of samples. FILE may be a directory or a
    pattern of containers, here and for `ls`, `get`, `export` and `bench`: they are read as one. Here and for all
    commands but `append` it may be a URL, such as s3://bucket/train.cks.
    """
    with open_container(file) as ds:
        facts = container_facts(ds)
    if as_json:
        write_json(facts)
    else:
        write(facts_text(facts))


@click.command(
    epilog="""\b
Examples:
  chunkstore ls train.cks --head 5
  chunkstore ls train.cks 'cat/*' --long
  chunkstore ls train.cks --json | jq -r .key
"""
)
@container_argument
@click.argument("pattern", required=False, metavar="[PATTERN]")
@click.option("--long", "-l", is_flag=True, help="With the stored bytes and the shape of each field.")
@click.option("--head", "-n", type=click.IntRange(0, sys.maxsize), metavar="N", help="Only the first N that match.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each sample, one per line.")
def ls(file: str, pattern: str | None, long: bool, head: int | None, as_json: bool) -> None:
    """List the samples of FILE: position and key.

    PATTERN is a shell pattern for keys; `*` also matches `/`.
    """
    with open_container(file) as ds:
        if pattern is not None and ds.keys is None:
            raise click.UsageError(f"{file} has no keys, so PATTERN has nothing to match; leave it out")
        width = len(str(max(len(ds) - 1, 0)))
        indices = {name: ds._field_index(name) for name in ds.fields} if long else {}
        for position, key in itertools.islice(_matching(ds, pattern), head):
            shapes = {name: index.shape(position) for name, index in indices.items()}
            nbytes = sum(index.row(position)[1] for index in indices.values())
            if as_json:
                sizes = {"nbytes": nbytes, "shapes": shapes} if long else {}
                write_json({"position": position, "key": key, **sizes}, indent=None)
                continue
            parts = [str(position).rjust(width), *([f"{nbytes:>12,}"] if long else [])]
            parts += [] if key is None else [one_line(key)]
            parts += [f"{one_line(name)}{shape_text(shape)}" for name, shape in shapes.items()]
            write("  ".join(parts))


def _matching(ds: Reader, pattern: str | None) -> Iterator[tuple[int, str | None]]:
    """(position, key) of the samples that match, in order."""
    if ds.keys is None:
        yield from ((position, None) for position in range(len(ds)))
        return
    matches = re.compile(fnmatch.translate("*" if pattern is None else pattern)).match
    for start in range(0, len(ds), _PIECE):
        for place, key in enumerate(ds.keys[start : start + _PIECE]):
            if matches(key):
                yield start + place, key


class _WithNegatives(click.Command):
    """A command in which `-1` is a position, and not an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the first such argument behind `--`, where it is no option."""
        negative = next((arg for arg in args if re.fullmatch("-[0-9]+", arg)), None)
        if negative is not None and "--" not in args:
            place = args.index(negative)
            args = [*args[:place], *args[place + 1 :], "--", negative]
        return super().parse_args(ctx, args)


@click.command(
    cls=_WithNegatives,
    epilog="""\b
Examples:
  chunkstore get train.cks cat/0007
  chunkstore get train.cks -1
  chunkstore get train.cks cat/0007 --field image --out cat.png
  chunkstore get train.cks 0007 --key
""",
)
@container_argument
@click.argument("which", metavar="KEY|POSITION")
@click.option("--field", "fields", multiple=True, metavar="NAME", help="Only this field; repeat it for more.")
@click.option("--key", "as_what", flag_value="key", help="Take KEY|POSITION as a key.")
@click.option("--position", "as_what", flag_value="position", help="Take KEY|POSITION as a position.")
@click.option(
    "--out",
    type=ANY_PATH,
    metavar="PATH",
    help="Write it instead: .npy (one field), .npz (all), .png (one field that is an image: (H, W), (H, W, 1|3|4) or "
    "(1|3|4, H, W)).",
)
@click.option("--overwrite", is_flag=True, help="Replace PATH if it is there.")
@json_option
def get(
    file: str,
    which: str,
    fields: tuple[str, ...],
    as_what: str | None,
    out: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Show one sample of FILE, or write it as a file.

    What is a key of FILE is taken as a key; else an integer is taken as a position, negative ones counted from the
    end. --key and --position force one of the two.
    """
    with open_container(file) as ds:
        check_fields(ds, fields)
        position = _position(ds, which, as_what)
        key = None if ds.keys is None else ds.keys[position]
        chosen = ds[position] if not fields else _some_rows(ds, position, fields)
        saved = None if out is None else save(out, chosen, overwrite=overwrite)
        if saved is not None and not as_json:
            write(saved)
            return
        rows = {name: row_facts(row, ds.fields[name]) for name, row in chosen.items()}
        if as_json:
            where = {} if out is None else {"out": out}
            write_json({"position": position, "key": key, "fields": rows, **where})
            return
        named = "" if key is None else f", key '{one_line(key)}'"
        write(f"position {position:,} of {plural(len(ds), 'sample')}{named}")
        for name, row in chosen.items():
            write(row_text(name, row, rows[name]))


def _some_rows(ds: Reader, position: int, fields: tuple[str, ...]) -> dict[str, Any]:
    """The rows of these fields alone: another one may be damaged, or need a package that is not installed."""
    from chunkstore._read.ragged import Ragged

    rows = ds.batch([position], fields=[name for name in ds.fields if name in fields])
    return {name: column[0] if isinstance(column, Ragged) else column[0, ...] for name, column in rows.items()}


def _position(ds: Reader, which: str, as_what: str | None) -> int:
    """Position of the sample that the user means."""
    integer = re.fullmatch(r"[+-]?[0-9]+", which) is not None
    if as_what == "position" and not integer:
        raise click.BadParameter(f"{which!r} is no integer", param_hint="'--position'")
    has_key = as_what != "position" and ds.keys is not None and which in ds.keys
    if has_key or as_what == "key" or not integer:
        if not has_key and not integer and ds.keys is None:
            raise SampleNotFoundError(
                f"{ds.path}: no sample {which!r}: the samples have no keys; give a position from 0 to {len(ds) - 1}"
            )
        position = int(ds.find([which])[0])
        if integer and as_what is None and -len(ds) <= int(which) < len(ds) and position != int(which) % len(ds):
            log(f"note: {which!r} is the key of position {position}; --position gives position {which}")
        return position
    position = int(which)
    if not -len(ds) <= position < len(ds):
        raise SampleNotFoundError(
            f"{ds.path}: no sample {which}: it is no key, and positions go from 0 to {len(ds) - 1:,}"
            if len(ds)
            else f"{ds.path}: no sample {which}: the container is empty"
        )
    return position % len(ds)


@click.command(
    epilog="""\b
Examples:
  chunkstore refs train.cks > train.json
  chunkstore refs train.cks --url s3://bucket/train.cks > train.json
  python -c "import xarray; print(xarray.open_dataset('train.json', engine='kerchunk'))"
"""
)
@container_argument
@click.option("--format", type=click.Choice(["kerchunk"]), expose_value=False, help="The only one, and the default.")
@click.option("--url", metavar="URL", help="Where readers will find FILE; default its absolute path, or its URL.")
def refs(file: str, url: str | None) -> None:
    """Describe FILE as JSON of kerchunk, by which zarr and xarray read it without chunkstore; no data are copied.

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
