"""The command: run parts of the battery, print what was tried and found, keep it as the latest report."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
from pathlib import Path
from typing import Any

from tools.battery import parts
from tools.battery.code import code_of
from tools.battery.parts import PARTS, Row

HERE = Path(__file__).resolve().parent
LATEST = HERE / "report.json"
_HEAD = """# The battery: the latest report

What was tried to lose data or to break a reader, how often, and what was found. Made by `tools/battery/run`; the quick
part of it is in every test run. A line that was not run this time keeps its figures from the run before; where the code
that it tries has changed since, the note ends with "(earlier code)". Code is a number of the sources that the line
tries: the modules under test with all that they import.

| test | goal | tried | wrong | seconds | code | note |
|---|---|---|---|---|---|---|
"""


def main(arguments: list[str] | None = None) -> int:
    """Run; 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="tools/battery/run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few minutes; prints, and keeps no report")
    parser.add_argument("--only", action="append", choices=[*PARTS], help="this part; may be repeated")
    parser.add_argument("--json", type=Path, default=LATEST, help="where the figures are kept")
    parser.add_argument("--model-steps", type=int, help="default a million")
    parser.add_argument(
        "--seconds",
        type=float,
        default=float("inf"),
        help="for each part that can go on another time: bitflips, model, fuzz; default until its goal. They are kept "
        "every half minute or so; SIGINT and SIGTERM end them at the next such point, SIGSTOP and SIGCONT do no harm",
    )
    parser.add_argument("--no-memory-every", type=int, default=1, help="fail one allocation of so many")
    parser.add_argument("--processes", type=int, help="default two")
    args = parser.parse_args(arguments)
    parts.NO_MEMORY_EVERY = args.no_memory_every
    parts.PROCESSES = args.processes or parts.PROCESSES
    if args.model_steps:
        parts.MODEL_STEPS = args.model_steps
    stop = _Stop()
    rows = []
    for name in args.only or PARTS:
        goes_on = not args.quick and name in parts.CONTINUED
        rows.append(_run_on(name, args.json, args.seconds, stop) if goes_on else parts.run(name, args.quick))
        if not args.quick and not goes_on:
            _keep(args.json, name, rows[-1])
        print(_line(rows[-1]), flush=True)
        for wrong in rows[-1].wrong:
            print(f"    {wrong}", flush=True)
        if stop.asked:
            break
    return 1 if any(row.num_wrong for row in rows) else 0


class _Stop:
    """Whether somebody asked to stop; a second time, it is at once."""

    def __init__(self) -> None:
        self.asked = False
        self._process = os.getpid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        if os.getpid() != self._process:  # a worker that a part forked, and ends by this signal
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("stopping when what is under way is kept, in less than a minute", file=sys.stderr, flush=True)


def _run_on(name: str, path: Path, seconds: float, stop: _Stop) -> Row:
    """A part that goes on where it stopped, kept piece by piece, until its goal, the time or a signal."""
    worked = 0.0
    while True:
        known = _known(path).get(name) or {}
        row = parts.run(name, False, known)
        worked += row.seconds - (known["seconds"] if known.get("code") == row.code else 0)
        _keep(path, name, row)
        if row.complete or stop.asked or worked >= seconds:
            return row


def _line(row: Row) -> str:
    verdict = f"{row.num_wrong} WRONG" if row.num_wrong else "none wrong"
    return f"{row.test}: {row.tried}; {verdict}; {row.seconds:.0f} s" + (f"; {row.note}" if row.note else "")


def _age(part: str, row: dict[str, Any]) -> str:
    return "" if row.get("code") == code_of(part) else " (earlier code)"


def _known(path: Path) -> dict[str, Any]:
    known: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return known


def _keep(path: Path, name: str, row: Row) -> None:
    """Put the row among the latest figures, and write the table."""
    known = {**_known(path), name: row.as_dict()}
    known = {part: known[part] for part in PARTS if part in known}
    path.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", "utf-8")
    lines = [
        f"| {row['test']} | {row['goal']} | {row['tried']} | {row['num_wrong'] if row['tried'] != 'skipped' else '-'} "
        f"| {row['seconds']:.0f} | {row['code'][:8]} | {row['note']}{_age(part, row)} |"
        for part, row in known.items()
    ]
    machine = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, two processes."
    path.with_suffix(".md").write_text(_HEAD + "\n".join(lines) + f"\n\n{machine}\n", "utf-8")
