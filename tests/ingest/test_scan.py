"""Sources -> files: order, globs, hidden files, links, what is refused."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chunkstore._ingest.plan.scan import scan_sources
from chunkstore._storage.names import natural_key, natural_sort
from chunkstore.errors import IngestError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def test_natural_order() -> None:
    """Digits by value, ties by code point; the order does not depend on the order given."""
    wanted = ["1.npy", "01.npy", "2.npy", "10.npy", "a1b2.npy", "a1b10.npy", "a2.npy", "a10.npy", "b.npy"]
    ties = natural_sort(list(reversed(wanted)))
    assert ties == natural_sort(list(wanted))
    assert ties[2:] == wanted[2:]
    assert set(ties[:2]) == {"1.npy", "01.npy"}
    long = [f"{10**n}.npy" for n in range(60)]
    assert natural_sort(long[::-1]) == long


@given(st.lists(st.text("019ab/é", min_size=1, max_size=4)))
def test_names_of_one_pattern_are_sorted_as_all_are(names: list[str]) -> None:
    """That digits stand at the same places in all names only saves a second sort."""
    assert natural_sort(list(names)) == sorted(sorted(names), key=natural_key)


@given(st.integers(1, 30), st.integers(1, 5))
def test_names_of_one_width(num: int, width: int) -> None:
    """0001, 0002, ...: the order of the numbers."""
    names = [f"x{number:0{width}d}.npy" for number in range(num)]
    assert natural_sort(names[::-1]) == names == sorted(sorted(names), key=natural_key)


def test_directories_stand_where_their_names_stand(tmp_path: Path) -> None:
    """Files and directories of one directory are sorted together."""
    touch(tmp_path, "10.npy", "2/10.npy", "2/9.npy", "1.npz", "x/y/z.npy", "a.npy")
    assert scan_sources([tmp_path]).paths == ["1.npz", "2/9.npy", "2/10.npy", "10.npy", "a.npy", "x/y/z.npy"]


def test_hidden_and_other_files_are_counted(tmp_path: Path) -> None:
    """What is not taken is counted, never silently dropped."""
    touch(tmp_path, "a.npy", ".git/x.npy", "__MACOSX/a.npy", ".b.npy", ".ipynb_checkpoints/a.npy", "README.md", "B.NPY")
    scan = scan_sources([tmp_path])
    assert (scan.paths, scan.num_hidden, scan.num_other) == (["B.NPY", "a.npy"], 4, 1)
    assert scan.summary() == "2 files (passed over: 4 hidden, 1 of other kinds)"


@pytest.mark.parametrize(
    ("include", "exclude", "wanted"),
    [
        (["a*"], [], ["a/1.npy", "a/2.npz"]),
        (["*.npz"], [], ["a/2.npz", "b/c/3.npz"]),
        (["b/*"], [], ["b/1.npy", "b/c/3.npz"]),
        ([], ["1.npy"], ["a/2.npz", "b/c/3.npz"]),
        ([], ["b"], ["a/1.npy", "a/2.npz"]),
        ([], ["b/c/"], ["a/1.npy", "a/2.npz", "b/1.npy"]),
        (["*.dat", "*.npz"], ["b"], ["a/2.npz", "a/3.dat"]),
        ([], ["./a/1.npy"], ["a/2.npz", "b/1.npy", "b/c/3.npz"]),
    ],
)
def test_globs(tmp_path: Path, include: list[str], exclude: list[str], wanted: list[str]) -> None:
    """Patterns match the relative path or the base name; a matching directory is excluded whole."""
    touch(tmp_path, "a/1.npy", "a/2.npz", "a/3.dat", "b/1.npy", "b/c/3.npz", "notes.txt")
    assert scan_sources([tmp_path], include=include, exclude=exclude).paths == wanted


def test_nothing_found(tmp_path: Path) -> None:
    """An empty directory, or globs that leave nothing, is an error with the counts."""
    with pytest.raises(IngestError, match=r"no .npy or .npz file found"):
        scan_sources([tmp_path])
    touch(tmp_path, "a.npy", "b.txt")
    with pytest.raises(IngestError, match=r"1 of other kinds, 1 excluded\). Check --include and --exclude"):
        scan_sources([tmp_path], exclude=["*.npy"])
    with pytest.raises(FileNotFoundError):
        scan_sources([tmp_path / "nothing"])


def test_several_sources(tmp_path: Path) -> None:
    """Order as given; keys get the name of their source only where they would collide."""
    touch(tmp_path, "b/1.npy", "a/2.npy", "c/1.npy", "d/b/1.npy", "single.npy")
    scan = scan_sources([tmp_path / "b", tmp_path / "a", tmp_path / "single.npy"])
    assert scan.paths == ["1.npy", "2.npy", "single.npy"]
    assert (scan.source_of, scan.prefixes) == ([0, 1, 2], ("", "", ""))
    assert all(os.path.exists(scan.file_path(place)) for place in range(3))
    assert scan_sources([tmp_path / "b", tmp_path / "c"]).prefixes == ("b/", "c/")
    assert scan_sources([tmp_path / "b", tmp_path / "d" / "b"]).prefixes == ("0-b/", "1-b/")


def test_sources_twice_or_nested(tmp_path: Path) -> None:
    """No file may be taken twice."""
    touch(tmp_path, "a/b/1.npy")
    with pytest.raises(IngestError, match=r"this source is given twice"):
        scan_sources([tmp_path / "a", f"{tmp_path}/a/"])
    with pytest.raises(IngestError, match=r"lies inside the source"):
        scan_sources([tmp_path / "a" / "b" / "1.npy", tmp_path / "a"])


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links(tmp_path: Path) -> None:
    """Links to files and directories are followed, circles end, dangling links are problems."""
    touch(tmp_path, "real/1.npy", "tree/2.npy")
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "tree" / "loop").symlink_to(tmp_path / "tree")
    (tmp_path / "tree" / "3.npy").symlink_to(tmp_path / "real" / "1.npy")
    (tmp_path / "tree" / "4.npy").symlink_to(".git/annex/objects/x")
    (tmp_path / "tree" / "5.npy").symlink_to("5.npy")
    scan = scan_sources([tmp_path / "tree"])
    assert (scan.paths, scan.num_loops) == (["2.npy", "3.npy", "link/1.npy"], 1)
    problems = sorted(scan.problems.values(), key=lambda problem: problem.path)
    assert [problem.path for problem in problems] == ["4.npy", "5.npy"]
    assert "git annex get" in problems[0].reason


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_fifos_are_problems_and_not_opened(tmp_path: Path) -> None:
    """A FIFO under an .npy name is listed; one under another name does not matter."""
    touch(tmp_path, "a.npy")
    os.mkfifo(tmp_path / "b.npy")
    os.mkfifo(tmp_path / "control")
    scan = scan_sources([tmp_path])
    assert [(problem.path, problem.reason) for problem in scan.problems.values()] == [
        ("b.npy", "expected a regular file, found a FIFO")
    ]
    with pytest.raises(IngestError, match=r"found a FIFO"):
        scan_sources([tmp_path / "control"])
