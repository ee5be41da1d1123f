"""`verify` and `bench`: is every byte what was written, and how fast is it read here."""

from __future__ import annotations

import itertools
from typing import Any, Final

import click

import chunkstore
from chunkstore._cli import guard
from chunkstore._cli.options import (
    advise_if_no_container,
    container_argument,
    containers_of,
    json_option,
    open_container,
)
from chunkstore._cli.output import (
    bar,
    duration_text,
    log,
    nbytes_text,
    one_line,
    plural,
    rate_text,
    table,
    write,
    write_json,
    write_prose,
)

_SHOWN: Final = 20
_KEYS_SHOWN: Final = 3
_WHOLE: Final = ("truncated", "superblock", "directory", "SCHEMA", "SHARD_STARTS", "BLOCKS")
_HELP: Final = (
    "Copy the file again, or convert again; if neither can be done, `chunkstore recover` saves what is whole."
)


@click.command(
    epilog="""\b
Examples:
  chunkstore verify train.cks
  chunkstore verify shards/*.cks --json > report.json
"""
)
@click.argument("files", nargs=-1, required=True, type=click.Path(readable=False), metavar="FILE...")
@click.option("--deep", is_flag=True, help="Check the sum of every chunk and decode every row, too.")
@click.option("--all", "show_all", is_flag=True, help=f"List all damage, not only the first {_SHOWN}.")
@json_option
@click.pass_context
def verify(ctx: click.Context, files: tuple[str, ...], deep: bool, show_all: bool, as_json: bool) -> None:
    """Read every byte of each FILE and hold it against its checksum.

    Finds all damage, not only the first, and names the samples that it hits. Proves that the parts of the file cover
    it without gap or overlap. A directory or a pattern stands for the containers in it. Exit code 1 if anything is
    damaged, 3 if a file could not be read.
    """
    codes, results = [], []
    for file in itertools.chain.from_iterable(map(containers_of, files)):
        try:
            report = _verify(file, deep=deep)
        except (chunkstore.ChunkstoreError, OSError) as error:
            codes.append(guard.report(error))
            results.append({"path": file, "ok": False, "error": type(error).__name__, "message": guard.message(error)})
            continue
        codes.append(guard.GOOD if report.ok else guard.BAD_DATA)
        results.append(report.as_dict())
        if not as_json:
            write_prose(report_text(report, None if show_all else _SHOWN))
    code = guard.BAD_DATA if guard.BAD_DATA in codes else max(codes)
    if as_json:
        write_json({"ok": code == guard.GOOD, "reports": results})
    elif len(codes) > 1:
        write(f"{plural(len(codes), 'file')}, {sum(code == guard.GOOD for code in codes):,} ok")
    ctx.exit(code)


def _verify(file: str, *, deep: bool) -> chunkstore.Report:
    advise_if_no_container(file)
    with bar("verify") as progress:
        return chunkstore.verify(file, deep=deep, progress=progress)


def report_text(report: chunkstore.Report, most: int | None) -> str:
    """A report for people: a verdict, and a table of at most `most` damages."""
    rate = f"{nbytes_text(report.nbytes)} in {duration_text(report.seconds)}{rate_text(report.nbytes, report.seconds)}"
    path = one_line(report.path)
    if report.ok:
        what = f"{plural(report.num_samples or 0, 'sample')}, {plural(report.num_blocks, 'block')}"
        groups = f", {plural(report.num_groups, 'group')} of chunks" if report.deep else ""
        return f"{path}: ok: {what}{groups}, every byte is what was written ({rate})\nfingerprint {report.fingerprint}"
    shown = report.damage[:most]
    if most is not None and shown[0].kind == "truncated":
        shown = shown[:1]  # the rest follows from it
    lines = [f"{path}: DAMAGED: {_verdict(report)} ({rate})", "", damage_table(shown), ""]
    lines += [one_line(damage.message) for damage in shown]
    if report.num_damage > len(shown):
        lines.append(f"... and {report.num_damage - len(shown):,} more; see --all or --json")
    lines.append(_what_to_do(report))
    return "\n".join(lines)


def _verdict(report: chunkstore.Report) -> str:
    count = plural(report.num_damage, "place")
    if report.num_damage == len(report.damage) and all(damage.harmless for damage in report.damage):
        return f"{count}, and no sample is lost"
    return count


def _what_to_do(report: chunkstore.Report) -> str:
    if all(damage.harmless for damage in report.damage) and report.num_damage == len(report.damage):
        return "All samples can be read. Copy the file again from a good one if there is one."
    if any((damage.kind in _WHOLE or damage.section in _WHOLE) and not damage.harmless for damage in report.damage):
        return f"The container cannot be opened as it is. {_HELP}"
    return f"Samples that are not named can still be read. {_HELP}"


def damage_table(damage: list[chunkstore.Damage]) -> str:
    """What, which bytes, which samples."""
    rows = [("damage", "bytes", "shard", "field", "samples", "keys")]
    for item in damage:
        rows.append(
            (
                item.kind if item.section is None else f"{item.kind} {item.section}",
                "" if item.offset is None else f"[{item.offset:,}, {item.offset + (item.nbytes or 0):,})",
                "" if item.shard is None else f"{item.shard:,}",
                "" if item.field is None else one_line(item.field),
                _samples_text(item),
                _keys_text(item.keys),
            )
        )
    # A column that says nothing is left out.
    kept = [place for place in range(len(rows[0])) if any(row[place] for row in rows[1:])]
    return table([[row[place] for place in kept] for row in rows], indent="  ")


def _samples_text(item: chunkstore.Damage) -> str:
    if item.start is None or item.stop is None:
        return ""
    return f"{item.start:,}" if item.stop == item.start + 1 else f"{item.start:,} to {item.stop - 1:,}"


def _keys_text(keys: tuple[str, ...]) -> str:
    shown = ", ".join(one_line(key) for key in keys[:_KEYS_SHOWN])
    return f"{shown}, ..." if len(keys) > _KEYS_SHOWN else shown


@click.command(
    epilog="""\b
Examples:
  chunkstore bench train.cks
  chunkstore bench train.cks --batch 64 --seconds 5 --json
""",
)
@container_argument
@click.option("--batch", type=click.IntRange(min=1), default=256, show_default=True, help="Samples in a batch.")
@click.option(
    "--seconds", type=click.FloatRange(min=0.01), default=1.0, show_default=True, help="Time for each measurement."
)
@json_option
def bench(file: str, batch: int, seconds: float, as_json: bool) -> None:
    """Measure on this machine how fast FILE opens, is read and verified.

    A quick look, with the file as warm as it happens to be; `tools/bench` in the source tree is the real benchmark,
    with cold reads and other formats beside.
    """
    from chunkstore._cli.bench import measure

    with open_container(file) as ds:
        if len(ds) == 0:
            log(f"{file}: the container is empty: there is nothing to measure but opening")
        results = measure(ds, batch, seconds)
    if as_json:
        write_json({"path": file, "batch": batch, "results": results})
        return
    rows = [("what", "one takes", "samples/s", "bytes/s")]
    rows += [_bench_row(result) for result in results]
    write(table(rows, right=(1, 2, 3)))


def _bench_row(result: dict[str, Any]) -> tuple[str, str, str, str]:
    samples, nbytes = result["samples_per_second"], result["nbytes_per_second"]
    return (
        result["what"],
        duration_text(result["seconds"]),
        "" if samples is None else f"{samples:,.0f}",
        "" if nbytes is None else f"{nbytes_text(nbytes)}/s",
    )
