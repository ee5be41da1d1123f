"""`verify` and `bench`: is every byte what was written, and how fast is it read here."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any, Final

import click
import numpy as np

import chunkstore
from chunkstore._cli import guard
from chunkstore._cli.options import (
    ANY_PATH,
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
from chunkstore._read.reader import Reader

_SHOWN: Final = 20
_KEYS_SHOWN: Final = 3
_LEAST_RUNS: Final = 3
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
@click.argument("files", nargs=-1, required=True, type=ANY_PATH, metavar="FILE...")
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
            advise_if_no_container(file)
            with bar("verify") as progress:
                report = chunkstore.verify(file, deep=deep, progress=progress)
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
    verdict = f"{plural(report.num_damage, 'place')}{', and no sample is lost' * _harmless(report)}"
    lines = [f"{path}: DAMAGED: {verdict} ({rate})", "", damage_table(shown), ""]
    lines += [one_line(damage.message) for damage in shown]
    if report.num_damage > len(shown):
        lines.append(f"... and {report.num_damage - len(shown):,} more; see --all or --json")
    lines.append(_what_to_do(report))
    return "\n".join(lines)


def _harmless(report: chunkstore.Report) -> bool:
    return report.num_damage == len(report.damage) and all(damage.harmless for damage in report.damage)


def _what_to_do(report: chunkstore.Report) -> str:
    if _harmless(report):
        return "All samples can be read. Copy the file again from a good one if there is one."
    if any((damage.kind in _WHOLE or damage.section in _WHOLE) and not damage.harmless for damage in report.damage):
        return f"The container cannot be opened as it is. {_HELP}"
    return f"Samples that are not named can still be read. {_HELP}"


def damage_table(damage: list[chunkstore.Damage]) -> str:
    """What, which bytes, which samples."""
    rows = [("damage", "bytes", "shard", "field", "samples", "keys")]
    for item in damage:
        samples = ""
        if item.start is not None and item.stop is not None:
            samples = f"{item.start:,}" + (f" to {item.stop - 1:,}" if item.stop > item.start + 1 else "")
        rows.append(
            (
                item.kind if item.section is None else f"{item.kind} {item.section}",
                "" if item.offset is None else f"[{item.offset:,}, {item.offset + (item.nbytes or 0):,})",
                "" if item.shard is None else f"{item.shard:,}",
                "" if item.field is None else one_line(item.field),
                samples,
                ", ".join(map(one_line, item.keys[:_KEYS_SHOWN])) + ", ..." * (len(item.keys) > _KEYS_SHOWN),
            )
        )
    # A column that says nothing is left out.
    kept = [place for place in range(len(rows[0])) if any(row[place] for row in rows[1:])]
    return table([[row[place] for place in kept] for row in rows], indent="  ")


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
    with open_container(file) as ds:
        if len(ds) == 0:
            log(f"{file}: the container is empty: there is nothing to measure but opening")
        results = _measure(ds, batch, seconds)
    if as_json:
        write_json({"path": file, "batch": batch, "results": results})
        return
    rows = [("what", "one takes", "samples/s", "bytes/s")]
    for result in results:
        samples, nbytes = result["samples_per_second"], result["nbytes_per_second"]
        samples_text = "" if samples is None else f"{samples:,.0f}"
        nbytes_rate = "" if nbytes is None else f"{nbytes_text(nbytes)}/s"
        rows.append((result["what"], duration_text(result["seconds"]), samples_text, nbytes_rate))
    write(table(rows, right=(1, 2, 3)))


def _measure(ds: Reader, batch: int, seconds: float) -> list[dict[str, Any]]:
    """Opening, single samples, batches at random, all in order, verification.

    Args:
        ds: open reader.
        batch: samples in a batch.
        seconds: to spend on each measurement, about.
    Returns:
        Per measurement `what`, `seconds` (best run), `samples_per_second` and `nbytes_per_second` (or None).
    """
    num_samples, data = len(ds), int(ds._index.blocks["nbytes"].sum())
    results = [_result("open", best_seconds(lambda: chunkstore.open(ds.path).close(), seconds))]
    if num_samples:
        mean, size = data / num_samples, min(batch, num_samples)
        random = np.random.default_rng(0)
        singles = itertools.cycle(random.integers(0, num_samples, 10_000).tolist())
        batches = itertools.cycle(random.integers(0, num_samples, (64, size)))
        took = best_seconds(lambda: ds[next(singles)], seconds)
        results.append(_result("one sample, ds[i]", took, 1, mean))
        took = best_seconds(lambda: ds.batch(next(batches)), seconds)
        results.append(_result(f"{size} samples at random, ds.batch", took, size, size * mean))
        took = best_seconds(lambda: _in_order(ds, size), seconds)
        results.append(_result("all samples in order, by slices", took, num_samples, data))
    paths = ds.paths if isinstance(ds, chunkstore.Containers) else (ds.path,)
    reports: list[chunkstore.Report] = []
    took = best_seconds(lambda: reports.extend(map(chunkstore.verify, paths)), seconds)
    results.append(_result("verify", took, None, sum(report.nbytes for report in reports[: len(paths)])))
    return results


def best_seconds(run: Callable[[], object], seconds: float = 0.0) -> float:
    """Seconds of the fastest run; as many runs as fit, three at least, the first not counted."""
    run()
    best, runs, end = float("inf"), 0, time.perf_counter() + seconds
    while runs < _LEAST_RUNS or time.perf_counter() < end:
        began = time.perf_counter()
        run()
        best, runs = min(best, time.perf_counter() - began), runs + 1
    return best


def _in_order(ds: Reader, size: int) -> None:
    for start in range(0, len(ds), size):
        ds[start : start + size]


def _result(what: str, seconds: float, samples: float | None = None, nbytes: float | None = None) -> dict[str, Any]:
    seconds = max(seconds, 1e-9)
    return {
        "what": what,
        "seconds": seconds,
        "samples_per_second": None if samples is None else samples / seconds,
        "nbytes_per_second": None if nbytes is None else nbytes / seconds,
    }
