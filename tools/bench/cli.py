"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tools.bench import record, tables
from tools.bench.machine import provenance

_QUICK_SCALE = 0.02


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    made = argparse.ArgumentParser(
        prog="tools/bench/run",
        description="Benchmarks of chunkstore; every figure is a ratio within one run.",
    )
    made.add_argument("workloads", nargs="*", help="names of workloads or peers, default all (see --list)")
    made.add_argument("--list", action="store_true", help="print the names of the workloads and peers")
    made.add_argument("--peers", action="store_true", help="compare with other formats instead")
    made.add_argument("--dir", type=Path, help="where scratch data go (default $TMPDIR or /tmp)")
    made.add_argument("--scale", type=float, default=1.0, help="multiply all numbers of samples (default 1)")
    made.add_argument("--quick", action="store_true", help=f"the same as --scale {_QUICK_SCALE} --rounds 2")
    made.add_argument("--rounds", type=int, help="interleaved rounds (default 5; with --peers 3)")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the report to FILE")
    made.add_argument("--table", type=Path, metavar="FILE", help="print a report as Markdown and measure nothing")
    return made


@contextmanager
def scratch_directory(parent: Path | None) -> Iterator[Path]:
    """A new directory below `parent`, removed with everything in it however the run ends."""
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix="chunkstore-bench-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def say(text: str) -> None:
    """One line of progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def run_workloads(options: argparse.Namespace, scratch: Path) -> list[record.Figure]:
    """All chosen workloads, one after another; one that raises becomes a figure that says so."""
    from tools.bench.bench import Bench
    from tools.bench.inputs import Inputs
    from tools.bench.workloads import WORKLOADS

    bench = Bench(Inputs(scratch, options.scale), scratch, options.rounds)
    figures: list[record.Figure] = []
    for name in options.workloads or WORKLOADS:
        start = time.perf_counter()
        try:
            figures.extend(WORKLOADS[name](bench))
        except Exception as problem:  # noqa: BLE001 - whatever it was, the other workloads still have their figures
            figures.append(record.failed(name, problem))
        say(f"{name}: {time.perf_counter() - start:.1f} s")
    return figures


def run_peers(options: argparse.Namespace, scratch: Path) -> list[record.Figure]:
    """All chosen peers, in rounds of fresh processes."""
    from tools.bench.peers.runner import compare

    return compare(scratch, options.scale, options.rounds, options.workloads, say)


def known_names(*, peers: bool) -> list[str]:
    """Names that may be given on the command line."""
    if peers:
        from tools.bench.peers import PEERS

        return list(PEERS)
    from tools.bench.workloads import WORKLOADS

    return list(WORKLOADS)


def measure(options: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    """Run what was asked for; the report as plain values."""
    from tools.bench.peers import packages

    with scratch_directory(options.dir) as scratch:
        start = time.perf_counter()
        head = provenance(scratch, arguments, packages())
        figures = (run_peers if options.peers else run_workloads)(options, scratch)
        return {
            "schema": record.SCHEMA,
            "kind": "peers" if options.peers else "workloads",
            **head,
            "scale": options.scale,
            "rounds": options.rounds,
            "seconds": round(time.perf_counter() - start, 1),
            "figures": [figure.to_json() for figure in figures],
        }


def _settle(options: argparse.Namespace) -> None:
    if options.quick:
        options.scale, options.rounds = _QUICK_SCALE, options.rounds or 2
    options.rounds = options.rounds or (3 if options.peers else 5)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0 when all of it ran, whatever the verdicts; 1 when a workload failed; 2 for wrong usage.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    made = parser()
    options = made.parse_args(arguments)
    _settle(options)
    if options.table:
        print(tables.from_file(options.table))
        return 0
    known = known_names(peers=options.peers)
    if options.list:
        print("\n".join(known))
        return 0
    if unknown := [name for name in options.workloads if name not in known]:
        made.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(known)}")
    report = measure(options, arguments)
    if options.json:
        record.write_json(options.json, report)
    print(tables.as_text(report))
    return 1 if any(figure["verdict"] == "error" for figure in report["figures"]) else 0
