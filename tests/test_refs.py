"""`chunkstore refs`: the real zarr and xarray read a container by it, and find what `ds.column` has."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run
from damaged import Damaged, repair
from hypothesis import given
from hypothesis import strategies as st

import chunkstore
from chunkstore._format.dtypes import EXTENDED
from chunkstore._refs import kerchunk
from chunkstore._refs.grid import Run, lay_grid
from chunkstore._refs.kerchunk import kerchunk_references

VECTORS = Path(__file__).resolve().parents[1] / "spec" / "vectors" / "valid"


def open_zarr(content: dict[str, Any]) -> Any:
    """The group, by zarr and the reference file system of fsspec."""
    fsspec, zarr = pytest.importorskip("fsspec"), pytest.importorskip("zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of zarr, about types that its format 3 does not have yet
        return zarr.open_group(fsspec.filesystem("reference", fo=content).get_mapper(""), mode="r", zarr_format=2)


def check(path: Path) -> kerchunk.References:
    """Every field of a container is in its references with the values of `ds.column`, or is left out with a reason."""
    found = kerchunk_references(path)
    group = open_zarr(json.loads(json.dumps(found.content)))
    with chunkstore.open(path) as ds:
        for name, field in ds.fields.items():
            if name in found.left_out:
                assert not [key for key in found.content["refs"] if key.startswith((f"{name}/", f"{name}."))]
            elif field.ragged:
                check_ragged(group, ds, name)
            else:
                check_fixed(group, ds, name)
        if ds.keys is not None:
            assert group["keys"][:].tolist() == list(ds.keys)
        assert group.attrs["chunkstore"]["fingerprint"] == ds.fingerprint
    return found


def check_fixed(group: Any, ds: Any, name: str) -> None:
    wanted = np.asarray(ds.column(name))
    found = group[name][...]
    assert found.shape == wanted.shape
    if ds.fields[name].dtype in EXTENDED:
        assert group[name].attrs["chunkstore_dtype"] == ds.fields[name].dtype
        wanted = wanted.view(found.dtype)
    assert found.dtype == wanted.dtype
    assert found.tobytes() == wanted.tobytes()


def check_ragged(group: Any, ds: Any, name: str) -> None:
    values, offsets = group[f"{name}.values"][...], group[f"{name}.offsets"][...]
    assert len(offsets) == (len(ds) + 1 if len(ds) else 0)
    for position in range(len(ds)):
        row, wanted = values[offsets[position] : offsets[position + 1]], ds[position][name]
        if isinstance(wanted, str):
            assert row.tobytes().decode() == wanted
            continue
        assert row.tobytes() == wanted.tobytes()
        if ds.fields[name].varying > 1:
            assert tuple(group[f"{name}.shapes"][position]) == wanted.shape[: ds.fields[name].varying]


@pytest.mark.parametrize("path", sorted(VECTORS.glob("*.cks")), ids=lambda path: path.stem)
def test_vectors(path: Path) -> None:
    """Every valid vector: every dtype, ragged rows, texts, codecs, appended and streamed files."""
    pytest.importorskip("zarr")
    check(path)


@pytest.mark.parametrize("num", [1, 2, 97, 100])
@pytest.mark.parametrize("mode", ["promised", "streamed", "appended"])
def test_chunks(tmp_path: Path, num: int, mode: str) -> None:
    """Whatever the number of rows, and in however many pieces they lie; the shards are the chunks where they can be."""
    path, rows = tmp_path / "x.cks", np.arange(num * 300, dtype="<f4").reshape(num, 300)
    first = num // 3 if mode == "appended" else num
    options = {"num_samples": num} if mode == "promised" else {}
    fields = {"x": ("float32", (300,)), "y": "int16"}
    batch = {"x": rows, "y": np.arange(num, dtype=np.int16)}
    keys = [f"k{n}é" for n in range(num)]
    with chunkstore.Writer(path, fields=fields, shard_nbytes=12_000, **options) as writer:
        writer.add_batch({name: array[:first] for name, array in batch.items()}, keys[:first])
    if first < num:
        with chunkstore.Writer(path, mode="a", shard_nbytes=12_000) as writer:
            writer.add_batch({name: array[first:] for name, array in batch.items()}, keys[first:])
    found = check(path)
    assert not found.left_out
    if mode == "streamed" and num == 100:
        assert json.loads(found.content["refs"]["x/.zarray"])["chunks"] == [10, 300]


def test_append_does_not_make_it_wrong(tmp_path: Path) -> None:
    """References show the generation that they were made of."""
    path = tmp_path / "x.cks"
    with chunkstore.Writer(path) as writer:
        writer.add_batch({"x": np.arange(1000)})
    found = kerchunk_references(path)
    with chunkstore.Writer(path, mode="a") as writer:
        writer.add_batch({"x": np.arange(1000, 5000)})
    assert open_zarr(found.content)["x"][:].tolist() == list(range(1000))


def test_what_cannot_be_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A field that zarr cannot have is named with the reason, and the others are there."""
    with chunkstore.Writer(tmp_path / "x.cks", shard_nbytes=80) as writer:
        writer.add_batch({"a/b": np.arange(30), ".c": np.arange(30), "d": np.arange(30)})
    assert set(check(tmp_path / "x.cks").left_out) == {"a/b", ".c"}
    monkeypatch.setattr(kerchunk, "MOST_CHUNKS", 2)
    found = check(tmp_path / "x.cks")
    assert "chunkstore repack" in found.left_out["d"]


def test_dictionary_is_left_out() -> None:
    """Zarr's zstd knows no dictionary of ours."""
    pytest.importorskip("zarr")
    found = check(VECTORS / "codec-zstd-dictionary.cks")
    assert any("dictionary" in reason for reason in found.left_out.values())


@pytest.mark.parametrize("end", [2**62, 2**63 - 1, 2**64 - 1, 10_000])
def test_offsets_that_no_block_can_have(tmp_path: Path, end: int) -> None:
    """A hostile end of a ragged field, all checksums right, is the error of a damaged file."""
    container = Damaged(tmp_path / "a.cks").build(3, names=["wave"], keys=False)
    data = bytearray(container.good)
    start, nbytes = container.place("OFFSETS", "wave")
    data[start + nbytes - 8 : start + nbytes] = end.to_bytes(8, "little")
    repair(data)
    container.write(data)
    with pytest.raises(chunkstore.CorruptError, match="OFFSETS that no block can have"):
        kerchunk_references(container.path)


def test_names_that_meet(tmp_path: Path) -> None:
    """Fields named like our own arrays keep their names."""
    fields = {"keys": "int32", "sample": ("int32", (3,)), "t": "string", "t.values": "int8"}
    with chunkstore.Writer(tmp_path / "x.cks", fields=fields, attrs={"coordinates": "none"}) as writer:
        writer.add({"keys": 5, "sample": [1, 2, 3], "t": "text", "t.values": 1}, key="a")
    found = kerchunk_references(tmp_path / "x.cks")
    group = open_zarr(found.content)
    assert group["keys"][:].tolist() == [5]
    assert group["keys_"][:].tolist() == ["a"]
    assert group["sample"].attrs["_ARRAY_DIMENSIONS"] == ["sample_", "sample_1"]
    assert group.attrs["coordinates"] == "none"
    assert set(found.left_out) == {"t.values"}


def test_xarray(tmp_path: Path) -> None:
    """Xarray, by kerchunk's engine, from the JSON of the command; keys are a coordinate."""
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("kerchunk")
    pytest.importorskip("zarr")
    times = np.datetime64("2026-01-01", "ns") + np.arange(50) * np.timedelta64(1, "h")
    batch = {
        "image": np.arange(50 * 12, dtype=np.uint8).reshape(50, 3, 4),
        "time": times,
        "code": np.array(["ab"] * 50, "S2"),
    }
    with chunkstore.Writer(tmp_path / "x.cks", shard_nbytes=300) as writer:
        writer.add_batch(batch, [f"k{n}" for n in range(50)])
    result = run("refs", tmp_path / "x.cks", "--format", "kerchunk")
    assert (result.exit_code, result.stderr) == (0, "")
    (tmp_path / "x.json").write_text(result.stdout)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (
            xarray.open_dataset(str(tmp_path / "x.json"), engine="kerchunk") as found,
            chunkstore.open(tmp_path / "x.cks") as ds,
        ):
            assert found["image"].dims == ("sample", "image_1", "image_2")
            for name in batch:
                assert np.array_equal(found[name].values, ds.column(name)), name
            assert found.coords["keys"].values.tolist() == list(ds.keys)


def test_url(tmp_path: Path) -> None:
    """`--url` says where readers will find the file; what is left out goes to stderr."""
    with chunkstore.Writer(tmp_path / "y.cks") as writer:
        writer.add_batch({"x": np.arange(10), "a/b": np.arange(10)})
    result = run("refs", tmp_path / "y.cks", "--url", "s3://b/y.cks")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["refs"]["x/0"][0] == "s3://b/y.cks"
    assert "left out: field 'a/b'" in result.stderr


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30)), max_size=6),
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(0, 50),
)
def test_grid(pieces: list[tuple[int, int]], row_nbytes: int, most_rows: int, room: int) -> None:
    """Every row is where its chunk says, and all chunks but the last end within the file."""
    runs, row, offset = [], 0, 8192
    for gap, rows in pieces:
        runs.append(Run(row, row + rows, offset + gap))
        row, offset = row + rows, offset + gap + rows * row_nbytes
    grid = lay_grid(runs, row_nbytes, most_rows, offset + room)
    chunks = list(grid.chunks())
    assert len(chunks) == len(grid)
    assert grid.rows <= max(most_rows, 1)
    for part in runs:
        for place in range(part.start, part.stop):
            start, nbytes = chunks[place // grid.rows]
            assert start + place % grid.rows * row_nbytes == part.offset + (place - part.start) * row_nbytes
            assert nbytes == grid.rows * row_nbytes
    assert all(sum(chunk) <= offset + room for chunk in chunks[:-1])
