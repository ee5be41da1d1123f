"""What a run leaves behind: figures with their goals, as JSON and as text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

SCHEMA = 1


@dataclass(frozen=True)
class Goal:
    """A bound that a figure must keep: at least or at most `bound`, in the unit of the figure."""

    op: Literal[">=", "<="]
    bound: float

    def met(self, value: float) -> bool:
        """Whether `value` keeps the bound."""
        return value >= self.bound if self.op == ">=" else value <= self.bound

    def __str__(self) -> str:
        return f"{self.op} {self.bound:g}"


def at_least(bound: float) -> Goal:
    """The goal "this much or more"."""
    return Goal(">=", bound)


def at_most(bound: float) -> Goal:
    """The goal "this much or less"."""
    return Goal("<=", bound)


@dataclass(frozen=True)
class Figure:
    """One measured number.

    `unit` is "x" for a ratio within the run. `rounds` keeps the raw seconds of each case. `skipped` says why
    there is no value. `labels` place it in a table of its own, such as that of the peers. A figure without a goal
    is there to be read, not judged.
    """

    workload: str
    case: str
    value: float | None
    unit: str
    goal: Goal | None = None
    statistic: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)
    rounds: Mapping[str, Sequence[float]] = field(default_factory=dict)
    labels: Mapping[str, Any] = field(default_factory=dict)
    skipped: str | None = None
    error: bool = False

    @property
    def verdict(self) -> str:
        """One of "pass", "miss", "error", "skipped", "" (no goal)."""
        if self.value is None:
            return "error" if self.error else "skipped"
        if self.goal is None:
            return ""
        return "pass" if self.goal.met(self.value) else "miss"

    def to_json(self) -> dict[str, Any]:
        """The figure as plain values."""
        plain = asdict(self)
        plain["goal"] = str(self.goal) if self.goal else None
        plain["verdict"] = self.verdict
        return plain


def skipped(workload: str, case: str, reason: str) -> Figure:
    """A figure that could not be taken here, with the reason."""
    return Figure(workload, case, None, "", skipped=reason)


def failed(workload: str, problem: BaseException) -> Figure:
    """A workload that raised: the run goes on, the figure says what happened."""
    return Figure(workload, "", None, "", skipped=f"{type(problem).__name__}: {problem}", error=True)


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report, keys in their order, one final newline."""
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def show_value(value: float | None, unit: str) -> str:
    """A number with three digits that count, and its unit."""
    if value is None:
        return "-"
    digits = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{digits} {unit}".rstrip()


def figure_cells(figure: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    """The cells of one figure's line in a table; takes what `Figure.to_json` gave."""
    note = figure["skipped"] or ", ".join(f"{name} {show(value)}" for name, value in figure["detail"].items())
    value = show_value(figure["value"], figure["unit"])
    return f"{figure['workload']}: {figure['case']}", value, figure["goal"] or "", figure["verdict"], note


def show(value: object) -> str:
    """A detail for people: numbers short, the rest as it is."""
    return show_value(float(value), "") if isinstance(value, int | float) else str(value)


def text_table(figures: Iterable[Mapping[str, Any]]) -> str:
    """The figures as aligned text, one line each."""
    lines = [("figure", "value", "goal", "verdict", "detail"), *(figure_cells(figure) for figure in figures)]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)) for line in lines)
    return "\n".join(f"{text}  {line[4]}".rstrip() for text, line in zip(padded, lines, strict=True))


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown of a table whose first row is its head."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
