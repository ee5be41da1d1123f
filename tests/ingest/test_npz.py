"""Members of `.npz` files: what is read, what is refused."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.format import write_array_header_1_0
from source_arrays import find_place, open_array, read_array, read_rows

import chunkstore
from chunkstore._ingest.npy.npz import Member, read_members
from chunkstore._ingest.npy.pickled import load_rows
from chunkstore.errors import IngestError


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


GOOD = npy(np.arange(1000, dtype=np.int32))


def write(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def members(path: Path) -> list[Member]:
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_members(fd, path.stat().st_size, "x.npz")
    finally:
        os.close(fd)


def load(path: Path, name: str | None = None) -> np.ndarray:
    with open_array(path, name) as source:
        return read_array(source)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_reads_stored_and_deflated(tmp_path: Path, method: int) -> None:
    """Both methods give the array; of a stored member the place in the file is known."""
    path = write(tmp_path / "x.npz", {"a.npy": GOOD, "2,2,3.npy": GOOD, "adj.data.npy": GOOD}, method)
    found = members(path)
    assert [member.name for member in found] == ["a", "2,2,3", "adj.data"]
    assert np.array_equal(load(path, "2,2,3"), np.arange(1000))
    if method == zipfile.ZIP_STORED:
        assert path.read_bytes()[found[0].offset :].startswith(GOOD)


def test_data_descriptors_and_zip64(tmp_path: Path) -> None:
    """Archives written to a pipe have their sizes behind the data; zip64 records are read too."""

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.data = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data) -> int:  # type: ignore[no-untyped-def]
            self.data += bytes(data)
            return len(bytes(data))

    pipe = Pipe()
    with (
        zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w", force_zip64=True) as file,
    ):
        file.write(GOOD)
    path = tmp_path / "x.npz"
    path.write_bytes(pipe.data)
    assert np.array_equal(load(path), np.arange(1000))


def test_folders_and_mac_leftovers_are_passed_over(tmp_path: Path) -> None:
    """Directory entries and what macOS adds to archives are no members."""
    path = write(tmp_path / "x.npz", {"d/": b"", "__MACOSX/._a.npy": b"x", "d/.DS_Store": b"x", "d/a.npy": GOOD})
    assert [member.name for member in members(path)] == ["d/a"]


@pytest.mark.parametrize("name", ["../../x.npy", "/etc/x.npy", "a/../x.npy", "a\\x.npy"])
def test_unsafe_names_are_refused(tmp_path: Path, name: str) -> None:
    """No member may lead out of the directory to which it is exported."""
    with pytest.raises(IngestError, match=r"x.npz: member .* has a name that is not safe"):
        members(write(tmp_path / "x.npz", {name: GOOD}))


@pytest.mark.parametrize("name", [b"a\\b.npy", b"a\0b.npy"])
def test_backslash_and_nul_are_refused(tmp_path: Path, name: bytes) -> None:
    """Backslash and NUL, which zipfile would quietly mend."""
    path = write(tmp_path / "x.npz", {"aXb.npy": GOOD})
    path.write_bytes(path.read_bytes().replace(b"aXb.npy", name))
    with pytest.raises(IngestError, match=r"not safe"):
        members(path)


def test_other_members_are_refused(tmp_path: Path) -> None:
    """An archive with something else than arrays is another kind of archive."""
    with pytest.raises(IngestError, match=r"member 'readme\.txt' is not an \.npy array"):
        members(write(tmp_path / "x.npz", {"a.npy": GOOD, "readme.txt": b"hello"}))


def test_empty_archive(tmp_path: Path) -> None:
    """A zip file without members holds nothing to convert."""
    with pytest.raises(IngestError, match=r"has no members"):
        members(write(tmp_path / "x.npz", {}))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_members(tmp_path: Path) -> None:
    """Two members of one name: nobody knows which is meant."""
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", GOOD)
        archive.writestr("a.npy", GOOD)
    with pytest.raises(IngestError, match=r"two members are named 'a\.npy'"):
        members(path)


def test_encrypted_and_odd_methods(tmp_path: Path) -> None:
    """Encryption is a flag in both headers; bzip2 and the like are not read."""
    path = write(tmp_path / "x.npz", {"a.npy": GOOD})
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(IngestError, match=r"is encrypted"):
        members(path)
    with pytest.raises(IngestError, match=r"zip method 12"):
        members(write(tmp_path / "y.npz", {"a.npy": GOOD}, zipfile.ZIP_BZIP2))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_data(tmp_path: Path, method: int) -> None:
    """A flipped byte in the data: CRC, or a broken deflate stream."""
    path = write(tmp_path / "x.npz", {"a.npy": GOOD}, method)
    data = bytearray(path.read_bytes())
    data[members(path)[0].offset + 700] ^= 0x55
    path.write_bytes(data)
    with pytest.raises(IngestError, match=r"array 'a': .*The archive is damaged"):
        load(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_object_array(tmp_path: Path, method: int) -> None:
    """The CRC is checked for pickles, too: a flipped bit of a number is no fault that unpickling would find."""
    rows = np.empty(2, object)
    rows[:] = [np.arange(5), np.arange(7)]
    path = write(tmp_path / "x.npz", {"a.npy": npy(rows)}, method)
    assert [len(row) for row in load_rows(find_place(path))] == [5, 7]
    data = bytearray(path.read_bytes())
    data[members(path)[0].offset + members(path)[0].stored_nbytes // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(IngestError, match=r"array 'a': .*The archive is damaged"):
        load_rows(find_place(path))


def test_damaged_directory_and_local_header(tmp_path: Path) -> None:
    """Truncation anywhere, a wrong local header, an offset beyond the file."""
    path = write(tmp_path / "x.npz", {"a.npy": GOOD, "b.npy": GOOD})
    whole = path.read_bytes()
    for cut in (30, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(IngestError, match=r"x.npz: the zip directory is damaged or truncated"):
            members(path)
    path.write_bytes(whole.replace(b"a.npy", b"c.npy", 1))
    with pytest.raises(IngestError, match=r"contradicts the zip directory"):
        members(path)
    changed = bytearray(whole)
    at = changed.index(b"PK\x01\x02")
    changed[at + 42 : at + 46] = struct.pack("<L", 10)
    path.write_bytes(changed)
    with pytest.raises(IngestError, match=r"no local header at byte 10"):
        members(path)


def test_overlapping_members(tmp_path: Path) -> None:
    """The same bytes listed under two names: how compact zip bombs are made."""
    path = write(tmp_path / "x.npz", {"a.npy": GOOD, "b.npy": GOOD})
    data = bytearray(path.read_bytes())
    first = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", first + 1)
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    data[second + 46 : second + 51] = b"a.npy"
    path.write_bytes(data)
    with pytest.raises(IngestError, match=r"two members are named|overlap"):
        members(path)


def _claim(path: Path, nbytes: int) -> None:
    """Let the directory claim another inflated size."""
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<L", nbytes)
    path.write_bytes(data)


def test_zip_bombs(tmp_path: Path) -> None:
    """Sizes that deflate cannot reach, sizes that contradict the `.npy` header, streams that go on: nothing is
    allocated for them.
    """
    path = write(tmp_path / "x.npz", {"a.npy": GOOD}, zipfile.ZIP_DEFLATED)
    whole = path.read_bytes()
    _claim(path, 2**31)
    with pytest.raises(IngestError, match=r"which cannot be"):
        members(path)
    path.write_bytes(whole)
    _claim(path, len(GOOD) + 4)
    with pytest.raises(IngestError, match=r"trailing bytes"):
        open_array(path)
    lying = npy(np.arange(10, dtype=np.int32)) + bytes(1000)
    path = write(tmp_path / "y.npz", {"a.npy": lying}, zipfile.ZIP_DEFLATED)
    _claim(path, len(lying) - 1000)
    with pytest.raises(IngestError, match=r"does not end after"):
        load(path)


def test_large_ratio_is_fine(tmp_path: Path) -> None:
    """Zeros shrink a thousandfold; that alone is no crime."""
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=np.zeros((1000, 2000)))
    assert load(path).sum() == 0


def test_wrong_kinds_of_file(tmp_path: Path) -> None:
    """What lies under an `.npz` name is named."""
    path = tmp_path / "x.npz"
    for data, text in (
        (b"", r"empty \(0 bytes\)"),
        (GOOD, "it is an .npy file under an .npz name"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ):
        path.write_bytes(data)
        with pytest.raises(IngestError, match=f"x.npz: not an .npz .*{text}"):
            members(path)


def test_random_damage_raises_only_ingest_errors(tmp_path: Path) -> None:
    """Any byte of a small archive overwritten: the array, or IngestError."""
    path = write(tmp_path / "x.npz", {"a.npy": npy(np.arange(5))}, zipfile.ZIP_DEFLATED)
    whole = path.read_bytes()
    for at in range(len(whole)):
        for value in (0, 0xFF, whole[at] ^ 1):
            path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            try:
                assert np.array_equal(load(path), np.arange(5))
            except IngestError:
                continue


def test_crc_of_stored_member_in_rows(tmp_path: Path) -> None:
    """Reading a stored member in order, in pieces, checks its CRC at the end."""
    path = write(tmp_path / "x.npz", {"a.npy": GOOD})
    data = bytearray(path.read_bytes())
    data[members(path)[0].offset + 200] ^= 1
    path.write_bytes(data)
    assert zlib.crc32(GOOD)
    with open_array(path) as source:
        read_rows(source, 0, 500)
        with pytest.raises(IngestError, match=r"CRC-32 stored"):
            read_rows(source, 500, 1000)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(("descr", "shape"), [("<f8", (0, 3)), ("<f8", (5, 0)), ("<U0", (5,)), ("<U0", (2, 3))])
def test_crc_of_array_without_bytes(tmp_path: Path, descr: str, shape: tuple[int, ...], method: int) -> None:
    """The CRC of an array without bytes is that of its header, which says how many rows there are."""
    header = io.BytesIO()
    write_array_header_1_0(header, {"descr": descr, "fortran_order": True, "shape": shape})
    path = write(tmp_path / "x.npz", {"a.npy": header.getvalue()}, method)
    target = tmp_path / "x.cks"
    dtype = {"a": "U3"} if descr == "<U0" else ()
    chunkstore.convert(path, target, layout="files", dtype=dtype)
    with chunkstore.open(target) as dataset:
        assert dataset[0]["a"].shape == shape
    crc = zlib.crc32(header.getvalue())
    path.write_bytes(path.read_bytes().replace(crc.to_bytes(4, "little"), (crc ^ 1).to_bytes(4, "little")))
    with pytest.raises(IngestError, match=rf"array 'a': CRC-32 stored {crc ^ 1:08x}, computed {crc:08x}"):
        chunkstore.convert(path, target, mode="w", layout="files", dtype=dtype)


def test_names_of_variables(tmp_path: Path) -> None:
    """Names such as `W:0` are names, not drives."""
    names = ["W:0", "b:0", "dense/kernel:0"]
    assert [member.name for member in members(write(tmp_path / "x.npz", {f"{n}.npy": GOOD for n in names}))] == names
