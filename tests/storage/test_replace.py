"""What mode "w" may replace: a container, or a file without a byte; nothing else, and no source."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chunkstore
from chunkstore._storage.replace import check_replaceable, is_container


@pytest.fixture
def containers(tmp_path: Path) -> list[Path]:
    """Two containers of one sample each."""
    paths = [tmp_path / "a.cks", tmp_path / "b.cks"]
    for path in paths:
        with chunkstore.Writer(path) as writer:
            writer.add({"x": 1}, key=path.name)
    return paths


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A file that is no container."""
    path = tmp_path / "precious.npy"
    np.save(path, np.arange(3))
    return path


def test_containers_and_empty_files_pass(tmp_path: Path, containers: list[Path]) -> None:
    """Also one whose first superblock is damaged, a file of no byte, a name that is free, and a directory."""
    data = bytearray(containers[0].read_bytes())
    data[:8] = bytes(8)
    containers[0].write_bytes(data)
    (tmp_path / "empty").write_bytes(b"")
    for path in (*containers, tmp_path / "empty", tmp_path / "free", tmp_path):
        check_replaceable(path, [tmp_path, tmp_path / "nowhere"])
    assert [is_container(path) for path in (*containers, tmp_path / "empty", tmp_path / "free", tmp_path)] == [
        True, True, False, False, False
    ]  # fmt: skip


def test_others_stay(containers: list[Path], foreign: Path) -> None:
    """A file of another kind, also behind a link, and a source by whatever name; mode "x" is for others to refuse."""
    link, hard = foreign.with_name("link"), foreign.with_name("hard")
    link.symlink_to(foreign)
    os.link(containers[0], hard)
    for path in (foreign, link):
        with pytest.raises(FileExistsError, match="no container: it is not replaced"):
            check_replaceable(path)
    with pytest.raises(FileExistsError, match="also a source"):
        check_replaceable(containers[0], [hard])
    check_replaceable(foreign, mode="x")


def test_every_writer_of_whole_files_asks(containers: list[Path], foreign: Path) -> None:
    """`convert`, `merge`, `repack`, `recover` with mode "w" leave a file of another kind as it is, byte by byte."""
    before = foreign.read_bytes()
    source = foreign.with_name("source.npy")
    np.save(source, np.arange(3))
    first = containers[0]
    options: dict[str, Any] = {"mode": "w"}
    for make in (
        lambda: chunkstore.convert(source, foreign, **options),
        lambda: chunkstore.merge(containers, foreign, **options),
        lambda: chunkstore.repack(first, foreign, **options),
        lambda: chunkstore.recover(first, foreign, **options),
    ):
        with pytest.raises(FileExistsError, match="no container"):
            make()
    assert foreign.read_bytes() == before


def test_nothing_is_added_to_a_container(containers: list[Path]) -> None:
    """`merge`, `repack` and `recover` make new containers, and know no mode "a"."""
    before = [path.read_bytes() for path in containers]
    options: dict[str, Any] = {"mode": "a"}
    for make in (
        chunkstore.repack,
        chunkstore.recover,
        lambda path, *rest, **kw: chunkstore.merge([path], *rest, **kw),
    ):
        with pytest.raises(ValueError, match=r"mode: expected 'x' \(new\) or 'w' \(replace\), found 'a'"):
            make(containers[0], containers[1], **options)  # type: ignore[operator]
    assert [path.read_bytes() for path in containers] == before


def test_no_source_is_replaced(containers: list[Path], foreign: Path) -> None:
    """`recover` and `merge` do not replace what they read; nor does `convert`."""
    before = [path.read_bytes() for path in (*containers, foreign)]
    for make in (
        lambda: chunkstore.recover(containers[0], containers[0], mode="w"),
        lambda: chunkstore.merge(containers, containers[1], mode="w"),
        lambda: chunkstore.convert([foreign], foreign, mode="w"),
    ):
        with pytest.raises(FileExistsError, match=r"also a source: .* Name another file:"):
            make()
    assert [path.read_bytes() for path in (*containers, foreign)] == before
