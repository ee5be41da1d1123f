"""The benchmark runs at tiny sizes and leaves valid JSON; its figures are not judged here."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # tools/ is not installed

from tools.bench import cli, inputs, measure, pagecache, record, tables  # noqa: E402
from tools.bench.workloads import cold  # noqa: E402

SMALL = ("--scale", "0.001", "--rounds", "2")


def bench(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """The report of a run of the command in this process; its scratch directory must be empty afterwards."""
    report, scratch = tmp_path / "report.json", tmp_path / "scratch"
    assert cli.main([*SMALL, "--dir", str(scratch), "--json", str(report), *arguments]) == 0
    assert list(scratch.iterdir()) == []
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return found


def check_figures(figures: list[dict[str, Any]]) -> None:
    """Each figure has a value or a reason, a verdict that follows from both, and its rounds."""
    for figure in figures:
        assert figure["verdict"] in {"pass", "miss", "skipped", ""}, figure
        assert (figure["value"] is None) == bool(figure["skipped"]), figure
        assert figure["value"] is None or np.isfinite(figure["value"]), figure
        assert all(len(seconds) >= 1 for seconds in figure["rounds"].values()), figure


@pytest.mark.parametrize(
    "workload",
    [
        "warm_batch",
        "read_single",
        "ragged_batch",
        "first_pass",
        "many",
        "in_order",
        "in_order_cold",
        "convert_many",
        "convert_large",
        "convert_workers",
        "write_batch",
        "write_single",
        "verify",
        "file_overhead",
        "append",
    ],
)
def test_workload_gives_figures(tmp_path: Path, workload: str) -> None:
    """Each workload gives at least one figure with a value, and a report that says where it was measured."""
    report = bench(tmp_path, workload)
    check_figures(report["figures"])
    assert any(figure["value"] is not None for figure in report["figures"])
    assert {figure["workload"] for figure in report["figures"]} == {workload}
    assert report["machine"]["cores"] >= 1
    assert report["versions"]["numpy"] == np.__version__
    assert tables.as_text(report).count(workload) >= len(report["figures"])


@pytest.mark.parametrize(("workload", "framework"), [("load_torch", "torch"), ("load_tf", "tensorflow")])
def test_framework_gives_figures(tmp_path: Path, workload: str, framework: str) -> None:
    """Figures where the framework is installed, the reason where it is not."""
    figures = bench(tmp_path, workload)["figures"]
    check_figures(figures)
    assert any(figure["value"] is not None for figure in figures) == bool(importlib.util.find_spec(framework))


def test_no_gpu_is_no_error(tmp_path: Path) -> None:
    """`load_gpu` says why it has no figures, or has some."""
    figures = bench(tmp_path, "load_gpu")["figures"]
    check_figures(figures)
    assert {figure["workload"] for figure in figures} == {"load_gpu"}


def test_opening_is_probed_in_fresh_processes(tmp_path: Path) -> None:
    """The three sizes of `open_first_read` have a time and a growth of memory each, and one spread."""
    figures = bench(tmp_path, "open_first_read")["figures"]
    check_figures(figures)
    assert sum(figure["unit"] == "s" for figure in figures) >= 2
    assert figures[-1]["unit"] == "x"


def test_cold_batch_reads_the_right_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cold_batch` compares what its ways read; without fio it says so and gives the rest."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(pagecache, "drop_all", lambda: False)
    monkeypatch.setattr(cold, "direct_reads", lambda path, nbytes: 1e5)
    figures = bench(tmp_path, "cold_batch")["figures"]
    check_figures(figures)
    assert any("fio is not on PATH" in (figure["skipped"] or "") for figure in figures)


def test_peers_compare_and_make_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Formats that need NumPy alone fill their rows; what one cannot do or import is listed with the reason."""
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "bagz.py").write_text("raise ImportError('bagz is not here')\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(blocked))
    report = bench(tmp_path, "--peers", "--rounds", "1", "memmap", "bagz")
    check_figures(report["figures"])
    values = {figure["case"]: figure for figure in report["figures"]}
    assert values["warm batch 1 KiB, np.memmap"]["value"] > 0
    assert values["verification 1 KiB, np.memmap"]["skipped"] == "no checksums"
    assert "bagz is not here" in values["warm batch 1 KiB, bagz"]["skipped"]
    markdown = tables.from_file(tmp_path / "report.json")
    assert "| np.memmap |" in markdown
    assert "- no checksums: np.memmap (verification)" in markdown


@pytest.mark.parametrize("start", [["-m", "tools.bench"], ["tools/bench"]])
def test_starts_both_ways(start: list[str]) -> None:
    """`python -m tools.bench` and `python tools/bench` are the same command."""
    done = subprocess.run([sys.executable, *start, "--list"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "warm_batch" in done.stdout.splitlines()


def test_unknown_workload_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """A name that is no workload ends the command with 2 and names those that are."""
    with pytest.raises(SystemExit, match="2"):
        cli.main(["no_such_workload"])
    assert "warm_batch" in capsys.readouterr().err


def test_failing_workload_is_an_error_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A workload that raises gives a figure with the message, and exit code 1."""
    from tools.bench import workloads

    def fails(_: object) -> None:
        raise OSError("no such disk")

    monkeypatch.setattr(workloads, "WORKLOADS", {"fails": fails})
    report = tmp_path / "report.json"
    assert cli.main(["fails", "--dir", str(tmp_path / "scratch"), "--json", str(report)]) == 1
    (figure,) = json.loads(report.read_text(encoding="utf-8"))["figures"]
    assert figure["verdict"] == "error"
    assert "no such disk" in figure["skipped"]


def test_rounds_are_interleaved() -> None:
    """Each round runs every case once, another one first each time, prepared before it is timed."""
    ran: list[str] = []
    cases = [measure.Case(name, lambda name=name: ran.append(name)) for name in "ab"]  # type: ignore[misc]
    timings = measure.interleave(cases, 3)
    assert "".join(ran) == "abbaab"
    assert {name: len(seconds) for name, seconds in timings.seconds.items()} == {"a": 3, "b": 3}


def test_ratio_is_of_speeds() -> None:
    """A case that takes half the time of its base has a ratio of 2."""
    timings = measure.Timings({"fast": [1.0, 3.0, 2.0], "slow": [2.0, 6.0, 9.0]})
    assert timings.speed_ratio("fast", "slow") == 2.0
    assert timings.speed_ratio("fast", "slow", "median") == 3.0


@pytest.mark.parametrize(
    ("goal", "value", "met"),
    [(record.at_least(0.8), 0.8, True), (record.at_least(0.8), 0.79, False), (record.at_most(5), 5.1, False)],
)
def test_goal(goal: record.Goal, value: float, met: bool) -> None:
    """A bound belongs to what it allows."""
    assert goal.met(value) is met


def test_blocks_hold_their_positions() -> None:
    """The rows of the inputs carry their position in the first 8 bytes, across blocks."""
    rows = np.concatenate([block.copy() for block in inputs.blocks(40_000, inputs.KIB_ROW)])
    assert rows.shape == (40_000, 1024)
    assert np.array_equal(rows[:, :8].copy().view("<u8")[:, 0], np.arange(40_000))


def test_dropped_file_is_not_resident(tmp_path: Path) -> None:
    """After `drop` no page of a file lies in the page cache, even while this process maps it."""
    path = tmp_path / "data.npy"
    inputs.write_npy(path, 4_000, inputs.KIB_ROW)
    mapped = np.load(path, mmap_mode="r")
    before = mapped.sum()
    assert pagecache.resident_fraction(path) == 1.0
    pagecache.drop([path])
    left = pagecache.resident_fraction(path)
    if left == 1.0:
        pytest.skip("this file system keeps everything in memory")
    assert left == 0.0
    assert mapped.sum() == before
