"""`convert(codec=)`: the same rows, the same bytes for any number of workers, and what `auto` chooses."""

from __future__ import annotations

import json
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run

import chunkstore
from chunkstore._format.field_index import FieldIndex
from chunkstore._ingest.convert.coded import most_nbytes
from chunkstore._storage.sink import Sink

pytest.importorskip("blosc2")

MIXED = {"image": "zstd:5", "pose": "blosc2:lz4,bitshuffle", "text": "zlib"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Sixty `.npz` files with an image, a pose of varying length, texts, and a number."""
    rng = np.random.default_rng(0)
    (tmp_path / "src").mkdir()
    for i in range(60):
        np.savez_compressed(
            tmp_path / "src" / f"{i:03}.npz",
            image=np.cumsum(rng.integers(-2, 3, (30, 40)), axis=1).astype(np.uint8),
            pose=rng.normal(size=(i % 5, 3)).astype(np.float32).round(1),
            text=np.array([f"a text {i:02} of the same words"] * 9),
            label=np.int64(i),
        )
    return tmp_path / "src"


def check(path: Path, source: Path) -> None:
    """Every row as `np.load` has it."""
    assert chunkstore.verify(path, deep=True).ok
    with chunkstore.open(path) as ds:
        for i, file in enumerate(sorted(source.iterdir())):
            with np.load(file) as wanted:
                sample = ds[i]
                assert all(np.array_equal(sample[name], wanted[name]) for name in wanted.files)


@pytest.mark.parametrize("codec", ["zstd", MIXED, {"label": "zlib", "pose": "zstd:3,dict"}, {"image": "zstd:3,dict"}])
def test_same_bytes_for_any_number_of_workers(tmp_path: Path, source: Path, codec: Any) -> None:
    """One process, two, threads of an executor; each field is one extent, and nothing else is left in the folder."""
    options: dict[str, Any] = {"codec": codec, "shard_nbytes": 20_000, "verify": True}
    report = chunkstore.convert(source, tmp_path / "1.cks", workers=1, **options)
    chunkstore.convert(source, tmp_path / "2.cks", workers=2, **options)
    with ThreadPoolExecutor(3) as executor:
        chunkstore.convert(source, tmp_path / "3.cks", executor=executor, **options)
    data = (tmp_path / "1.cks").read_bytes()
    assert data == (tmp_path / "2.cks").read_bytes() == (tmp_path / "3.cks").read_bytes()
    assert report.nbytes == len(data)
    assert {path.name for path in tmp_path.iterdir()} == {"src", "1.cks", "2.cks", "3.cks"}
    check(tmp_path / "1.cks", source)
    with chunkstore.open(tmp_path / "1.cks") as ds:
        assert all(len(FieldIndex(ds._index, n).extents()) == 1 for n in range(4))
        assert len(ds._index.blocks) > 3
        chunkstore.export(ds, tmp_path / "out")
    for file in sorted(source.iterdir()):
        with np.load(file) as wanted, np.load(tmp_path / "out" / file.name) as found:
            assert all(np.array_equal(wanted[name], found[name]) for name in wanted.files)


def test_one_large_file(tmp_path: Path) -> None:
    """Rows of one `.npy`, more than a piece of memory; a shard is cut by its bytes before codecs."""
    rows = np.repeat(np.arange(200, dtype=np.int32)[:, None], 30_000, axis=1)
    np.save(tmp_path / "x.npy", rows)
    chunkstore.convert(tmp_path / "x.npy", tmp_path / "a.cks", layout="rows", codec="zstd", shard_nbytes=9 << 20)
    with chunkstore.open(tmp_path / "a.cks") as ds:
        assert len(ds._index.blocks) == 3
        assert np.array_equal(ds.column("data"), rows)
    assert (tmp_path / "a.cks").stat().st_size < rows.nbytes / 100


@pytest.mark.parametrize("workers", [1, 2])
def test_an_index_longer_than_what_the_codec_saved(tmp_path: Path, workers: int) -> None:
    """It lies where blocks were put before they were moved, and its padding is zeros all the same."""
    (tmp_path / "src").mkdir()
    rng = np.random.default_rng(0)
    for i in range(300):
        np.save(tmp_path / "src" / f"{i:04}-{'a-long-name-' * 12}.npy", rng.integers(0, 256, 100, np.uint8))
    chunkstore.convert(tmp_path / "src", tmp_path / "a.cks", codec={"data": "zlib"}, workers=workers)
    assert chunkstore.verify(tmp_path / "a.cks").ok


def test_append_goes_on(tmp_path: Path, source: Path) -> None:
    """Files that are appended get the codecs of the container."""
    (tmp_path / "first").mkdir()
    for file in sorted(source.iterdir())[:40]:
        file.rename(tmp_path / "first" / file.name)
    chunkstore.convert(tmp_path / "first", tmp_path / "a.cks", codec=MIXED)
    result = run("append", tmp_path / "a.cks", source)
    assert result.exit_code == 0, result.output
    for file in (tmp_path / "first").iterdir():
        file.rename(source / file.name)
    check(tmp_path / "a.cks", source)
    with chunkstore.open(tmp_path / "a.cks") as ds:
        assert [field.codec for field in ds.fields.values()] == ["zstd", "blosc2", "zlib", "raw"]


def test_auto(tmp_path: Path, source: Path) -> None:
    """A field whose sample gets much smaller is stored by a codec, another is not; the report says why."""
    rng = np.random.default_rng(1)
    for file in source.iterdir():
        with np.load(file) as old:
            np.savez(file, image=old["image"], noise=rng.integers(0, 256, 2000, dtype=np.uint8), label=old["label"])
    report = chunkstore.convert(source, tmp_path / "a.cks", codec="auto")
    found = {field.name: field.codec for field in report.fields}
    assert found["image"] != "raw"
    assert (found["noise"], found["label"]) == ("raw", "raw")
    assert f"codec of 'image': {found['image']}:" in report.codecs[0]
    assert "codec of 'noise': raw, since no other makes it 1.25 times smaller" in report.codecs[1]
    dry = chunkstore.convert(source, tmp_path / "b.cks", codec="auto", dry_run=True)
    assert 0.7 < dry.nbytes / report.nbytes < 1.3
    assert [text.split(";")[0] for text in dry.codecs] == [text.split(";")[0] for text in report.codecs]
    check(tmp_path / "a.cks", source)


def test_auto_without_the_packages(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then everything stays raw, and the report has the line that installs them."""
    for name in ("zstandard", "blosc2"):
        monkeypatch.setitem(sys.modules, name, None)
    report = chunkstore.convert(source, tmp_path / "a.cks", codec="auto", workers=1)
    assert {field.codec for field in report.fields} == {"raw"}
    assert "raw, since no other could be tried" in report.codecs[0]
    assert "pip install 'chunkstore-arrays[codecs]'" in report.codecs[0]
    with pytest.raises(chunkstore.MissingExtraError, match="pip install"):
        chunkstore.convert(source, tmp_path / "b.cks", codec="zstd", workers=1)
    assert not (tmp_path / "b.cks").exists()


def test_dry_run_of_rows_without_bytes(tmp_path: Path) -> None:
    """They have no ratio."""
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 0)), y=np.zeros((3, 900)))
    report = chunkstore.convert(tmp_path / "a.npz", "unused", layout="rows", codec=["x=zlib", "y=zlib"], dry_run=True)
    assert 4096 * 3 <= report.nbytes < 3 * 900 * 8


def test_dry_run_when_the_sample_is_empty(tmp_path: Path) -> None:
    """Where the first rows of a stream, which are the sample, are all empty, nothing is promised of the others."""
    rows = np.empty(400, object)
    rows[:] = [np.zeros(0 if place < 390 else 100_000) for place in range(400)]
    np.save(tmp_path / "a.npy", rows, allow_pickle=True)
    options: dict[str, Any] = {"layout": "rows", "allow_pickle": True, "dry_run": True}
    raw, coded = (chunkstore.convert(tmp_path / "a.npy", "unused", codec=c, **options) for c in ("raw", "data=zlib"))
    assert coded.nbytes == raw.nbytes


def test_wrong_codecs(tmp_path: Path, source: Path) -> None:
    """Found before any work; by the command line as an error of usage."""
    with pytest.raises(chunkstore.IngestError, match="there is no field 'x'; the fields are 'image'"):
        chunkstore.convert(source, tmp_path / "a.cks", codec={"x": "zstd"})
    with pytest.raises(ValueError, match="expected raw, zlib"):
        chunkstore.convert(source, tmp_path / "a.cks", codec="lz4")
    result = run("convert", source, tmp_path / "a.cks", "--codec", "image=zstd:99")
    assert result.exit_code == 2
    assert "no level from -7 to 22" in result.stderr
    assert not (tmp_path / "a.cks").exists()


def test_command_line(tmp_path: Path, source: Path) -> None:
    """`convert --codec`, `info` with the ratio of each field, `repack --codec`."""
    path, raw = str(tmp_path / "a.cks"), str(tmp_path / "raw.cks")
    assert run("convert", source, path, "--codec", "zstd", "--codec", "pose=blosc2:lz4").exit_code == 0
    facts = json.loads(run("info", path, "--json").stdout)
    ratios = {field["name"]: field["ratio"] for field in facts["fields"]}
    assert ratios["label"] == 1.0
    assert ratios["text"] > 5
    assert facts["fields"][0]["decoded_nbytes"] == 60 * 1200
    assert "ratio" in run("info", path).stdout
    result = run("repack", path, raw, "--codec", "raw")
    assert result.exit_code == 0, result.output
    check(Path(raw), source)
    with chunkstore.open(raw) as ds:
        assert {field.codec for field in ds.fields.values()} == {"raw"}


def test_a_zlib_that_makes_noise_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Level 1 of zlib-ng, which takes the place of zlib in some systems, may write 9 bits for each byte."""

    def compress(row: memoryview, level: int) -> bytes:
        encoder = zlib.compressobj(0)
        parts = [
            encoder.compress(row[at : at + 80]) + encoder.flush(zlib.Z_SYNC_FLUSH) for at in range(0, len(row), 80)
        ]
        return b"".join([*parts, encoder.flush()])

    rows = np.random.default_rng(0).integers(0, 256, (20, 20_000), np.uint8)
    np.save(tmp_path / "a.npy", rows)
    monkeypatch.setattr(zlib, "compress", compress)
    path = tmp_path / "a.cks"
    chunkstore.convert(tmp_path / "a.npy", path, codec={"data": "zlib:1"}, shard_nbytes=100_000, verify=True)
    with chunkstore.open(path) as ds:
        assert ds.batch(range(20))["data"].tobytes() == rows.tobytes()


def test_a_disk_slower_than_a_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last piece of a raw field is still being written while the next field is read and encoded."""
    pwrite = Sink.pwrite

    def slow(self: Sink, offset: int, buffer: Any) -> None:
        if isinstance(buffer, memoryview):  # not what a codec made
            time.sleep(0.3)
        pwrite(self, offset, buffer)

    a, b = (np.random.default_rng(0).integers(0, 256, (3000, size), np.uint8) for size in (4096, 8192))
    np.savez(tmp_path / "a.npz", a=a, b=b)
    monkeypatch.setattr(Sink, "pwrite", slow)
    path = tmp_path / "a.cks"
    chunkstore.convert(tmp_path / "a.npz", path, layout="rows", codec={"b": "zlib:0"}, workers=1)
    with chunkstore.open(path) as ds:
        assert np.array_equal(ds.column("a"), a)
        assert np.array_equal(ds.column("b"), b)


@pytest.mark.parametrize("codec", ["zlib:0", "zlib:9", "zstd:1", "zstd:19", "blosc2", "blosc2:lz4,9,bitshuffle"])
def test_the_room_for_a_block_is_enough(codec: str) -> None:
    """Noise, which no codec makes smaller, in rows of all sizes."""
    from chunkstore._format.encode import Encoder, parse_codec

    noise = memoryview(np.random.default_rng(0).bytes(3_000_000))
    encoder = Encoder(parse_codec(codec), 2)
    for nbytes in (1, 2, 15, 100, 4096, 131_072, 200_000, 3_000_000):
        _, sizes = encoder.encode(noise[:nbytes], np.array([nbytes]))
        assert sizes[0] <= most_nbytes(nbytes, 1)
