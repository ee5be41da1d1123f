"""Interrupts and want of memory at each bytecode of the writer's calls."""

from __future__ import annotations

import functools
import itertools
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import oracle
import pytest

from chunkstore._storage import syscalls
from chunkstore._write import writer as writer_of_samples
from chunkstore._write.writer import Writer
from chunkstore.errors import PoisonedError


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("before", [0, 4, 5])
@pytest.mark.parametrize("batch", [1, 4])
def test_an_error_at_any_bytecode_costs_no_more_than_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], before: int, batch: int
) -> None:
    """Rows and keys stay together: the call took samples, whole, or none; or the writer takes nothing more."""
    monkeypatch.setattr(writer_of_samples, "_PACK_KEYS", 5)
    for name in ("sync_file", "sync_data", "sync_directory"):
        monkeypatch.setattr(syscalls.SystemCalls, name, lambda *_: None)  # nobody pulls the plug
    last = range(before + batch, before + batch + 4)
    hit = True
    for place in itertools.count(step=batch):
        path = tmp_path / f"{place}.cks"
        writer = Writer(path, fields={"x": "int64"}, shard_nbytes=64)
        for number in range(before):
            writer.add({"x": number}, f"k{number}")
        rows, keys = np.arange(before, last[0]), [f"k{number}" for number in range(before, last[0])]
        if batch == 1:
            hit = raised_at(place, error, lambda: writer.add({"x": rows[0]}, keys[0]))  # noqa: B023 - called at once
        else:
            hit = raised_at(place, error, lambda: writer.add_batch({"x": rows}, keys))  # noqa: B023 - called at once
        if not hit:
            writer.abort()
            break
        took = len(writer) - before
        try:
            for number in last:
                writer.add({"x": number}, f"k{number}")
            writer.commit()
        except PoisonedError:
            continue
        finally:
            writer.abort()
        assert 0 <= took <= batch
        numbers = [*range(before + took), *last]
        container = oracle.read(path)
        assert list(container.rows("x")) == numbers
        assert container.keys() == [f"k{number}" for number in numbers]
    assert place > 50


def test_an_interrupt_of_the_first_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fields that follow from it are known, or another first sample says them; it was taken, or not."""
    for name in ("sync_file", "sync_data", "sync_directory"):
        monkeypatch.setattr(syscalls.SystemCalls, name, lambda *_: None)  # nobody pulls the plug
    for place in itertools.count(step=7):
        writer = Writer(tmp_path / f"{place}.cks", num_samples=2, codec={"x": "zlib"})
        call = functools.partial(writer.add, {"x": [1], "text": "a"}, "k0")
        if not raised_at(place, KeyboardInterrupt, call):
            writer.abort()
            break
        if not writer.fields:
            writer.add({"x": [1], "other": 2}, "k0")
        for number in range(len(writer), 2):
            sample = {name: {"x": [1], "text": "a", "other": 2}[name] for name in writer.fields}
            writer.add(sample, f"k{number}")
        with writer:
            names = list(writer.fields)
        container = oracle.read(tmp_path / f"{place}.cks")
        assert [field.name for field in container.fields] == names
        assert container.keys() == ["k0", "k1"]
        assert [row.tolist() for row in container.rows("x")] == [[1], [1]]
    assert place > 50


@pytest.mark.parametrize("mode", ["x", "a"])
def test_an_interrupt_at_any_bytecode_of_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Literal["x", "a"]
) -> None:
    """Who goes on after it knows how many samples there are, and each is there once; or the writer takes no more."""
    for name in ("sync_file", "sync_data", "sync_directory"):
        monkeypatch.setattr(syscalls.SystemCalls, name, lambda *_: None)  # nobody pulls the plug
    before = int(mode == "a")
    hit = True
    for place in itertools.count(step=2):
        path = tmp_path / f"{place}.cks"
        if mode == "a":
            with Writer(path) as writer:
                writer.add({"x": 0}, "k0")
        writer = Writer(path, mode=mode)
        writer.add({"x": before}, f"k{before}")
        hit = raised_at(place, KeyboardInterrupt, writer.commit)
        try:
            writer.add({"x": before + 1}, f"k{before + 1}")
            assert len(writer) == before + 2
            writer.commit()
        except PoisonedError:
            assert hit
        else:
            container = oracle.read(path)
            assert list(container.rows("x")) == [*range(before + 2)]
            assert container.keys() == [f"k{number}" for number in range(before + 2)]
        finally:
            writer.abort()
        if not hit:
            break
    assert place > 50


@pytest.mark.parametrize("mode", ["x", "a"])
def test_an_interrupt_at_any_bytecode_of_close(tmp_path: Path, mode: Literal["x", "a"]) -> None:
    """Another call ends what it began: no temporary, no lock; a writer cuts off what may be behind the end."""
    path = tmp_path / "a.cks"
    if mode == "a":
        with Writer(path) as writer:
            writer.add({"x": 0})
    before = path.read_bytes() if mode == "a" else b""
    for place in itertools.count():
        writer = Writer(path, mode=mode, shard_nbytes=8)
        for number in range(3):
            writer.add({"x": number})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            hit = raised_at(place, KeyboardInterrupt, writer.close)
            writer.close()
        assert os.listdir(tmp_path) == ["a.cks"] * (mode == "a")
        if mode == "a":
            Writer(path, mode="a").close()
            assert path.read_bytes() == before
        if not hit:
            break
    assert place > 50


def raised_at(place: int, error: type[BaseException], call: Callable[[], object]) -> bool:
    """Raise at the bytecode with this number of the modules that write; whether the call had so many."""
    left = itertools.count(place, -1)

    def trace(frame: Any, event: str, _: object) -> Any:
        if f"{os.sep}_write{os.sep}" not in frame.f_code.co_filename or frame.f_code.co_name == "__del__":
            return None  # of a finalizer of another writer nobody would get it
        frame.f_trace_opcodes = True
        if event == "opcode" and next(left) == 0:
            raise error
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except error:
        return True
    finally:
        sys.settrace(before)
    return False
