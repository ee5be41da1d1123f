"""The plain twins fit the calls that they replace; the calls of other systems are tried with stand-ins."""

from __future__ import annotations

import errno
import inspect
import os
from pathlib import Path

import pytest

from chunkstore._storage import platform, syscalls

fcntl = pytest.importorskip("fcntl", reason="this system has no fcntl")


@pytest.mark.parametrize("name", sorted(platform.PLAIN))
def test_twins_have_names_and_arguments_of_their_calls(name: str) -> None:
    """Each twin replaces a name that exists, and takes as many arguments as the function of that name."""
    real, twin = getattr(platform, name), platform.PLAIN[name]
    if inspect.isfunction(real):
        assert len(inspect.signature(real).parameters) == len(inspect.signature(twin).parameters)


@pytest.mark.parametrize("at", [0, 7, 90, 100, 200])
def test_plain_reads_are_those_of_the_system(tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`plain_readv` and `plain_preadv` fill the same buffers, as far as the file goes, and say how far that was."""
    monkeypatch.setattr(platform, "_PLAIN_NBYTES", 8)
    (tmp_path / "x").write_bytes(bytes(range(100)))
    with (tmp_path / "x").open("rb", buffering=0) as file:
        found = []
        for positional in (os.preadv, platform.plain_preadv):
            buffers = [bytearray(3), bytearray(0), bytearray(20), bytearray(1)]
            found.append((positional(file.fileno(), list(map(memoryview, buffers)), at), buffers))
        for ordinary in (os.readv, platform.plain_readv):
            file.seek(at)
            buffers = [bytearray(3), bytearray(0), bytearray(20), bytearray(1)]
            found.append((ordinary(file.fileno(), buffers), buffers))
    assert found == [found[0]] * 4


def test_sync_of_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without that sync is none's fault; an error of the disk is passed on."""
    syscalls.SystemCalls().sync_directory(str(tmp_path))
    answer = errno.EINVAL

    def refuse(fd: int) -> None:
        raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(platform.os, "fsync", refuse)
    platform.sync_directory(str(tmp_path))
    answer = errno.EIO
    with pytest.raises(OSError, match="error"):
        platform.sync_directory(str(tmp_path))


def test_full_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS needs its own request; where a file system refuses it `fsync` follows, other errors pass."""
    calls: list[object] = []
    answer = 0

    def request(fd: int, what: int) -> None:
        calls.append(what)
        if answer:
            raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", request)
    monkeypatch.setattr(platform.os, "fsync", lambda fd: calls.append("fsync"))
    platform.full_sync(3)
    answer = errno.ENOTSUP
    platform.full_sync(3)
    assert calls == [51, 51, "fsync"]
    answer = errno.EIO
    with pytest.raises(OSError, match="error"):
        platform.full_sync(3)
    assert calls[-1] == 51
