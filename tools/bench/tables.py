"""Reports as text and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.bench.record import figure_cells, markdown_table, show_value, text_table

Report = Mapping[str, Any]


def from_file(path: Path) -> str:
    """The Markdown of a report that was written by `--json`."""
    report = json.loads(path.read_text(encoding="utf-8"))
    table = peers_markdown(report) if report["kind"] == "peers" else figures_markdown(report)
    return f"{table}\n\n{caption(report)}"


def as_text(report: Report) -> str:
    """The report for a terminal."""
    verdicts = [figure["verdict"] for figure in report["figures"]]
    counts = ", ".join(f"{verdicts.count(name)} {name}" for name in ("pass", "miss", "skipped", "error"))
    return f"{text_table(report['figures'])}\n\n{caption(report)}\n{counts}"


def caption(report: Report) -> str:
    """Machine, versions and date in one sentence each."""
    machine, versions = report["machine"], report["versions"]
    where = (
        f"Measured on {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"{machine['kernel']}, {machine['file_system']}; {report['date']}."
    )
    with_what = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{where} {with_what}. `{report['command']}`, scale {report['scale']:g}, {report['rounds']} rounds."


def figures_markdown(report: Report) -> str:
    """One line for each figure."""
    head = ["figure", "value", "goal", "verdict"]
    return markdown_table([head, *(list(figure_cells(figure)[:4]) for figure in report["figures"])])


def peers_markdown(report: Report) -> str:
    """One line for each format, one column for each row of the comparison; the best of a column is bold."""
    columns: dict[str, dict[str, Mapping[str, Any]]] = {}
    peers: list[str] = []
    for figure in _values(report):
        peer, title = figure["labels"]["peer"], figure["labels"]["column"]
        columns.setdefault(title, {})[peer] = figure
        if peer not in peers:
            peers.append(peer)
    best = {title: _best(list(cells.values())) for title, cells in columns.items()}
    lines = [["format", *columns]]
    for peer in peers:
        lines.append([peer, *(_cell(cells.get(peer), best[title]) for title, cells in columns.items())])
    return markdown_table(lines) + "\n\n" + _footnotes(report)


def _values(report: Report) -> list[Mapping[str, Any]]:
    return [figure for figure in report["figures"] if figure["workload"] == "peers"]


def _best(figures: list[Mapping[str, Any]]) -> float | None:
    values = [figure["value"] for figure in figures if figure["value"] is not None]
    if not values:
        return None
    return float(max(values) if figures[0]["labels"]["more_is_better"] else min(values))


def _cell(figure: Mapping[str, Any] | None, best: float | None) -> str:
    if figure is None or figure["value"] is None:
        return "-"
    text = show_value(figure["value"], "")
    return f"**{text}**" if figure["value"] == best else text


def _footnotes(report: Report) -> str:
    reasons: dict[str, list[str]] = {}
    for figure in _values(report):
        if figure["skipped"]:
            note = f"{figure['labels']['peer']} ({figure['labels']['row']})"
            reasons.setdefault(figure["skipped"], []).append(note)
    return "\n".join(f"- {reason}: {', '.join(dict.fromkeys(who))}" for reason, who in reasons.items())
