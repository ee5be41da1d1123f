"""Repacking: the same samples, or some of them, in one piece per field."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import oracle
import pytest
import strategies
from hypothesis import given

from chunkstore._format.field_index import FieldIndex
from chunkstore._format.index import read_index
from chunkstore._format.schema import Field
from chunkstore._rewrite.repack import repack
from chunkstore._storage.source import open_source
from chunkstore._write.writer import Writer
from chunkstore.errors import CorruptError, LimitError, SampleNotFoundError, SchemaError

_numbers = itertools.count()


def num_extents(path: Path) -> list[int]:
    """Extents of each field."""
    with open_source(path, "pread") as source:
        index = read_index(source)
        return [len(FieldIndex(index, number).extents()) for number in range(len(index.fields))]


@given(of=strategies.fields(3), count=st.integers(0, 25), step=st.integers(1, 9), seed=st.integers(0, 99))
def test_all_or_some_samples_in_any_order(
    tmp_path_factory: Any, of: list[Field], count: int, step: int, seed: int
) -> None:
    """All dtypes and shapes; what many commits left in pieces is one extent per field."""
    folder = tmp_path_factory.getbasetemp() / f"repack-{next(_numbers)}"
    folder.mkdir()
    samples = strategies.samples(of, count, seed)
    with Writer(folder / "a", fields=of, shard_nbytes=100, attrs={"seed": seed}) as writer:
        for place, sample in enumerate(samples):
            writer.add(sample, f"key {place}")
            if place % step == 0:
                writer.commit()
    order = np.random.default_rng(seed).permutation(count)[: count // 2 + 1]
    repack(folder / "a", folder / "all")
    repack(folder / "a", folder / "some", positions=order)
    repack(folder / "a", folder / "keyed", keys=[f"key {n}" for n in order])
    assert (folder / "some").read_bytes() == (folder / "keyed").read_bytes()
    for name, chosen in [("all", range(count)), ("some", order.tolist())]:
        container = oracle.read(folder / name)
        assert container.keys() == [f"key {n}" for n in chosen]
        assert container.attrs() == {"seed": seed}
        for field in container.fields:
            rows = list(container.rows(field.name))
            assert all(oracle.same(row, samples[n][field.name]) for row, n in zip(rows, chosen, strict=True))
        assert all(number <= 1 for number in num_extents(folder / name))
        assert len(container.segments) == 1
    for path in folder.iterdir():
        path.unlink()


def test_a_container_can_replace_itself(tmp_path: Path) -> None:
    """With mode "w"; superseded segments are gone, so the file is smaller."""
    path = tmp_path / "a.cks"
    with Writer(path) as writer:
        for n in range(50):
            writer.add({"x": n, "y": 2.0})
            writer.commit()
    before = path.stat().st_size
    assert num_extents(path) == [50, 50]
    repack(path, path, mode="w")
    assert path.stat().st_size < before
    assert num_extents(path) == [1, 1]
    assert [int(row) for row in oracle.read(path).rows("x")] == list(range(50))


def test_what_cannot_be_repacked(tmp_path: Path) -> None:
    """Unknown keys and positions, a key asked for twice, a damaged row: nothing is published."""
    path = tmp_path / "a.cks"
    with Writer(path) as writer:
        writer.add_batch({"x": np.arange(1000, 1004)}, list("abcd"))
    for arguments, error in [
        ({"keys": ["a", "z"]}, SampleNotFoundError),
        ({"positions": [4]}, IndexError),
        ({"positions": [1, 1]}, SchemaError),
        ({"keys": ["b", "c", "b"]}, SchemaError),
        ({"mode": "a"}, ValueError),
        ({"positions": [1], "keys": ["a"]}, ValueError),
    ]:
        with pytest.raises(error):
            repack(path, tmp_path / "b.cks", **arguments)  # type: ignore[arg-type]
    data = bytearray(path.read_bytes())
    data[data.index((1002).to_bytes(8, "little"))] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError, match="field 'x'"):
        repack(path, tmp_path / "b.cks")
    assert os.listdir(tmp_path) == ["a.cks"]


def test_progress_counts_copying_and_verifying(tmp_path: Path) -> None:
    """Bytes of rows twice: half of it is there before the file is verified, and it ends at all."""
    path = tmp_path / "a.cks"
    with Writer(path, fields={"x": "int64", "r": ("uint8", (None,))}, shard_nbytes=1 << 20) as writer:
        for number in range(5000):
            writer.add({"x": number, "r": np.zeros(number % 3, np.uint8)})
    seen: list[tuple[int, int]] = []
    repack(path, tmp_path / "b.cks", progress=lambda done, total: seen.append((done, total)))
    nbytes = 5000 * 8 + sum(number % 3 for number in range(5000))
    assert seen[-1] == (2 * nbytes, 2 * nbytes)
    assert seen == sorted(seen)
    assert (nbytes, 2 * nbytes) in seen
    assert any(nbytes < done < 2 * nbytes for done, _ in seen)


def test_samples_without_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file may claim any number of them: what would take hours is refused, with what to do instead."""
    path = tmp_path / "a.cks"
    with Writer(path) as writer:
        writer.add_batch({"x": np.zeros((1001, 0), np.float32)})
    monkeypatch.setattr("chunkstore._rewrite.repack._MOST_EMPTY", 1000)
    with pytest.raises(LimitError, match=r"1,001 samples, of which none has a byte in the file.*positions=.*merge"):
        repack(path, tmp_path / "b.cks")
    assert not (tmp_path / "b.cks").exists()
    repack(path, tmp_path / "b.cks", positions=range(999))
    assert oracle.read(tmp_path / "b.cks").num_samples == 999
    monkeypatch.setattr("chunkstore._rewrite.repack._MOST_EMPTY", 1001)
    repack(path, tmp_path / "b.cks", mode="w")
