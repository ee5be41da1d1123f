"""Reading arrays: order, byte order, records, bounded memory, files that change."""

from __future__ import annotations

import errno
import os
import tempfile
import tracemalloc
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_arrays import find_place, open_array, read_array, read_rows

from chunkstore._ingest.npy import arrays
from chunkstore._ingest.npy.arrays import ArraySource, flat_boxes
from chunkstore._ingest.npy.files import read_exactly
from chunkstore.errors import IngestError

DTYPES = ["|u1", ">i2", "<f4", ">f8", ">c16", "|S3", ">U2", "<M8[s]"]


def sample(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(7)
    if dtype[1] in "SU":
        return rng.integers(10, 99, shape).astype(dtype)
    return rng.integers(0, 100, shape).astype(dtype)


@settings(max_examples=60)
@given(
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 5), max_size=4).map(tuple),
    st.booleans(),
    st.sampled_from(["npy", "stored", "deflated"]),
    st.integers(1, 64),
    st.booleans(),
    st.data(),
)
def test_rows_equal_numpy(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
    shape: tuple[int, ...],
    fortran: bool,
    how: str,
    tile: int,
    small: bool,
    data: Any,
) -> None:
    """Any rows of any array, whichever way it is stored, equal those of `np.load`; tiles and in-memory limits do not
    matter.
    """
    values = sample(dtype, shape)
    if fortran:
        values = np.asfortranarray(values)
    path = tmp_path_factory.mktemp("x") / ("x.npy" if how == "npy" else "x.npz")
    if how == "npy":
        np.save(path, values)
    else:
        (np.savez if how == "stored" else np.savez_compressed)(path, a=values)
    with pytest.MonkeyPatch.context() as patch, open_array(path) as source:
        patch.setattr(arrays, "_WHOLE_NBYTES", 0 if small else 1 << 20)
        patch.setattr(arrays, "TILE_NBYTES", tile)
        patch.setattr(arrays, "_REGION_NBYTES", tile)
        assert source.dtype == values.dtype.newbyteorder("<")
        assert np.array_equal(read_array(source), values)
        if shape and shape[0]:
            start = data.draw(st.integers(0, shape[0]))
            stop = data.draw(st.integers(start, shape[0]))
            assert np.array_equal(read_rows(source, start, stop), values[start:stop])
            assert np.array_equal(read_array(source), values)


@given(st.lists(st.integers(1, 4), max_size=4).map(tuple), st.data())
def test_flat_boxes_cover_the_range_in_order(shape: tuple[int, ...], data: Any) -> None:
    """The boxes of a flat range hold exactly its elements, in C order."""
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    start = data.draw(st.integers(0, numbers.size))
    stop = data.draw(st.integers(start, numbers.size))
    found = [numbers[tuple(slice(*side) for side in box)].ravel() for box in flat_boxes(shape, start, stop)]
    assert np.concatenate([np.zeros(0, int), *found]).tolist() == list(range(start, stop))


def test_members_of_records(tmp_path: Path) -> None:
    """Members, nested members and subarrays of a structured array, big-endian and in Fortran order."""
    dtype = np.dtype([("a", ">i4"), ("b", [("c", "<f4", (2, 3)), ("d", "S3")])])
    values = np.zeros((4, 2), dtype, order="F")
    values["a"] = np.arange(8).reshape(4, 2)
    values["b"]["c"] = np.arange(48).reshape(4, 2, 2, 3)
    path = tmp_path / "x.npy"
    np.save(path, values)
    for member, want in ((("a",), values["a"]), (("b", "c"), values["b"]["c"]), (("b", "d"), values["b"]["d"])):
        with open_array(path, member=member) as source:
            assert source.shape == want.shape
            assert np.array_equal(read_array(source), want)
    with pytest.raises(IngestError, match=r"structured array: name one of its members"):
        open_array(path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a disk that is full")
def test_no_room_to_unpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the array, the folder of temporary files, and how to name another."""
    np.savez_compressed(tmp_path / "x.npz", a=np.asfortranarray(np.zeros((300, 400))))
    monkeypatch.setattr(arrays, "_WHOLE_NBYTES", 0)
    monkeypatch.setattr(tempfile, "TemporaryFile", partial(open, "/dev/full", "w+b", buffering=0))
    with (
        open_array(tmp_path / "x.npz") as source,
        pytest.raises(OSError, match=r"x\.npz.*960,000 bytes.*TMPDIR") as full,
    ):
        read_array(source)
    assert (full.value.errno, full.value.filename) == (errno.ENOSPC, tempfile.gettempdir())


@pytest.mark.parametrize("how", ["npy", "stored", "deflated"])
def test_memory_is_bounded(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Fortran array of 48 MB is read row by row with less than 16 MB at a time."""
    monkeypatch.setattr(arrays, "_WHOLE_NBYTES", 1 << 20)
    monkeypatch.setattr(arrays, "TILE_NBYTES", 1 << 20)
    values = np.asfortranarray(np.arange(6_000_000, dtype=np.int64).reshape(60_000, 100))
    path = tmp_path / ("x.npy" if how == "npy" else "x.npz")
    if how == "npy":
        np.save(path, values)
    else:
        with (
            zipfile.ZipFile(
                path, "w", zipfile.ZIP_STORED if how == "stored" else zipfile.ZIP_DEFLATED, compresslevel=1
            ) as archive,
            archive.open("a.npy", "w") as file,
        ):
            np.lib.format.write_array(file, values)
    with open_array(path) as source:
        tracemalloc.start()
        for start in range(0, 60_000, 5000):
            assert np.array_equal(read_rows(source, start, start + 5000)[7], values[start + 7])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize("shape", [(2, 200_000), (300, 1000), (3, 100, 200, 5)])
def test_wide_rows_in_fortran_order(tmp_path: Path, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Their elements lie apart in the file: they are read in large pieces, what is between them included, and not by a
    call for each element.
    """
    calls: list[int] = []

    def counted(fd: int, offset: int, view: memoryview, where: str) -> None:
        calls.append(len(view))
        read_exactly(fd, offset, view, where)

    monkeypatch.setattr(arrays, "_WHOLE_NBYTES", 0)
    monkeypatch.setattr(arrays, "_REGION_NBYTES", 100_000)
    monkeypatch.setattr(arrays, "read_exactly", counted)
    values = np.asfortranarray(np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
    np.save(tmp_path / "x.npy", values)
    with open_array(tmp_path / "x.npy") as source:
        assert np.array_equal(read_rows(source, 1, 2), values[1:2])
    assert len(calls) <= 20
    assert max(calls) <= 100_000


def test_deflated_going_back_starts_over(tmp_path: Path) -> None:
    """A forward cursor reads on; going back gives the right rows too."""
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=np.arange(10_000))
    with open_array(path) as source:
        for start in (5000, 9000, 100, 110):
            assert read_rows(source, start, start + 10).tolist() == list(range(start, start + 10))


def test_a_changed_file_is_named(tmp_path: Path) -> None:
    """Size or time of the file differ from the plan's: refused, before and after reading."""
    path = tmp_path / "x.npy"
    np.save(path, np.arange(10))
    place = find_place(path)
    source = ArraySource(place)
    os.utime(path, ns=(1, 1))
    with pytest.raises(IngestError, match=r"x.npy: the file changed while it was converted"):
        read_array(source)
    source.close()
    with pytest.raises(IngestError, match=r"the file changed"):
        ArraySource(place)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    """Opening a FIFO would wait for a writer for ever."""
    os.mkfifo(tmp_path / "x.npy")
    with pytest.raises(IngestError, match=r"expected a regular file, found a FIFO"):
        open_array(tmp_path / "x.npy")


def test_bytes_that_are_no_bool_and_no_character(tmp_path: Path) -> None:
    """A bool is 0 or 1, a character at most U+10FFFF; a lone surrogate is kept as it is."""
    path = tmp_path / "x.npy"
    np.save(path, np.array([1, 0, 7], np.uint8).view(bool))
    with open_array(path) as source, pytest.raises(IngestError, match=r"holds the byte 7; only 0 and 1 are bools"):
        read_array(source)
    np.save(path, np.array([0x110000], "<u4").view("<U1"))
    with open_array(path) as source, pytest.raises(IngestError, match=r"holds 0x110000, which is no character"):
        read_array(source)
    np.save(path, np.array([0xD800], "<u4").view("<U1"))
    with open_array(path) as source:
        assert read_array(source).view(np.uint32)[0] == 0xD800
