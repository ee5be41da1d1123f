"""What `chunkstore.verify` says: about good containers nothing, about damage where it is and what it costs."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damaged import Damaged, repair, samples

import chunkstore
from chunkstore._format.superblock import decode, encode
from chunkstore._storage import platform
from chunkstore._verify import report as _verify_report
from chunkstore._verify.segment import as_tuples

VECTORS = Path(__file__).resolve().parent.parent / "spec" / "vectors"
N = 40


@pytest.fixture
def container(tmp_path: Path) -> Damaged:
    """A small container with all kinds of fields, two shards and keys."""
    return Damaged(tmp_path / "a.cks").build(N)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A container of 40 MiB, five shards, which two threads verify; rows of 1 KiB."""
    path = tmp_path / "large.cks"
    rows = np.random.default_rng(0).integers(0, 256, (8192, 1024), dtype=np.uint8)
    with chunkstore.Writer(path, num_samples=5 * 8192, shard_nbytes=8 << 20) as writer:
        for _ in range(5):
            writer.add_batch({"x": rows})
    return path


def invert(path: Path, offset: int, nbytes: int = 1) -> None:
    """Damage bytes of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        data = file.read(nbytes)
        file.seek(offset)
        file.write(bytes(byte ^ 0xFF for byte in data))


def expectation(name: str) -> dict[str, str]:
    """What stands in the text beside an invalid vector."""
    lines = (VECTORS / "invalid" / f"{name}.txt").read_text().splitlines()
    return {member: value.strip() for member, _, value in (line.partition(":") for line in lines)}


def test_good_container(container: Damaged) -> None:
    """Nothing is found in a good container; the report says what was checked."""
    report = container.check()
    with chunkstore.open(container.path) as ds:
        assert (report.fingerprint, report.num_samples) == (ds.fingerprint, len(ds))
    assert (report.ok, report.damage, report.num_damage, report.generation) == (True, [], 0, 1)
    assert (report.nbytes, report.num_blocks) == (len(container.good), 2 * 6)
    assert report.summary().startswith(f"{container.path}: ok: {N} samples, 12 blocks, ")
    assert json.loads(json.dumps(report.as_dict()))["ok"] is True


def test_changes_nothing(container: Damaged) -> None:
    """The file is as it was, and may be one that cannot be written to."""
    container.path.chmod(0o444)
    before = container.path.stat()
    assert container.check(deep=True).ok
    after = container.path.stat()
    assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
    assert container.path.read_bytes() == container.good


def test_damaged_chunk_is_named(container: Damaged) -> None:
    """A damaged byte leads to its group: shard, field, samples, keys, byte range and both sums."""
    at = container.corrupt("BLOCK", 5, 1, field="image")
    report = container.check()
    assert (report.ok, report.num_damage) == (False, 1)
    damage = report.damage[0]
    assert (damage.kind, damage.shard, damage.field, damage.harmless) == ("chunk", 0, "image", False)
    assert (damage.start, damage.stop) == (0, 16)  # 16 rows of 256 bytes share a checksum
    assert damage.keys == tuple(key for _, key in samples(0, 16))
    assert damage.offset is not None
    assert damage.nbytes == 4096
    assert damage.offset <= at < damage.offset + damage.nbytes
    assert damage.stored_sum != damage.computed_sum
    assert len(damage.stored_sum or "") == 16
    assert "set/0000é" in damage.message
    assert "DAMAGED: 1 damage (" in report.summary()


def test_all_damage_is_found(container: Damaged) -> None:
    """It goes on after the first damage: blocks, index, padding and a superblock in one report."""
    for field in ("image", "label", "wave", "text"):
        container.corrupt("BLOCK", 0, 1, field=field)
    container.corrupt("CHUNK_SUMS", 0, 1, field="seen")
    container.corrupt("ATTRS", 0, 1)
    container.corrupt("B", 100, 1)
    report = container.check()
    assert sorted(d.field for d in report.damage if d.kind == "chunk" and d.field) == ["image", "label", "text", "wave"]
    assert sorted(d.section for d in report.damage if d.kind == "index" and d.section) == ["ATTRS", "CHUNK_SUMS"]
    assert [d.offset for d in report.damage if d.kind == "superblock"] == [4096]
    assert [d.offset or 0 for d in report.damage] == sorted(d.offset or 0 for d in report.damage)


@pytest.mark.parametrize(
    ("section", "field", "loses"),
    [
        ("SCHEMA", None, "the container cannot be opened"),
        ("ATTRS", None, "the attributes cannot be read"),
        ("SHARD_STARTS", None, "the container cannot be opened"),
        ("BLOCKS", None, "the container cannot be opened"),
        ("CHUNK_SUMS", "image", "samples [0, 40) cannot be read"),
        ("OFFSETS", "wave", "samples [0, 40) cannot be read"),
        ("SHAPES", "grid", "samples [0, 40) cannot be read"),
        ("KEY_BYTES", None, "keys cannot be read, and samples not be found by them"),
        ("KEY_OFFSETS", None, "keys cannot be read, and samples not be found by them"),
        ("KEY_HASHES", None, "samples cannot be found by their keys"),
        ("KEY_ORDER", None, "samples cannot be found by their keys"),
    ],
)
def test_damaged_section_is_named(container: Damaged, section: str, field: str | None, loses: str) -> None:
    """A damaged byte of the index: which section and page, and what cannot be read because of it."""
    at = container.corrupt(section, 1, 1, field=field)
    report = container.check()
    damage = next(damage for damage in report.damage if damage.section == section)
    assert (damage.kind, damage.field, damage.offset) == ("index", field, at - 1)
    assert loses in damage.message
    assert all(damage.kind != "chunk" for damage in report.damage)  # the data itself is whole


def test_damaged_page_sums_are_named(container: Damaged) -> None:
    """Page sums are under a sum in the directory."""
    offset, nbytes = container.place("OFFSETS", "wave")
    invert(container.path, offset + -(-nbytes // 8) * 8)
    assert any("page sums of index section OFFSETS of field 'wave'" in str(d) for d in container.check().damage)


def test_damaged_index_leaves_the_data_checked(container: Damaged) -> None:
    """With SCHEMA damaged, blocks are still checked; their fields are named by their numbers."""
    container.corrupt("BLOCK", 0, 1, field="label")
    container.corrupt("SCHEMA", 3, 1)
    blocks = [damage for damage in container.check().damage if damage.kind == "block"]
    assert [(damage.shard, damage.field, damage.start) for damage in blocks] == [(0, "#1", 0)]


def test_damaged_directory(container: Damaged) -> None:
    """Nothing can be read then; that is a finding, and not an exception."""
    container.corrupt("DIRECTORY", 70, 1)
    report = container.check()
    assert [damage.kind for damage in report.damage] == ["directory"]
    assert report.num_samples is None
    assert "the container cannot be opened" in report.summary()


def test_both_superblocks_damaged(container: Damaged) -> None:
    """A finding, too, as long as the magic says that it is a container."""
    container.corrupt("A", 60, 1)
    container.corrupt("B", 60, 1)
    report = container.check()
    assert [damage.kind for damage in report.damage] == ["superblock"]
    assert (report.fingerprint, report.generation, report.num_samples) == (None, None, None)


def test_stale_superblock(container: Damaged) -> None:
    """Superblocks of two generations: a commit was interrupted. Harmless, and reported."""
    newer = dataclasses.replace(decode(container.good[:4096]), generation=2)
    container.write(encode(newer) + container.good[4096:])
    report = container.check()
    assert [(damage.kind, damage.harmless, damage.offset) for damage in report.damage] == [("superblock", True, 4096)]
    assert "superblock B" in report.damage[0].message
    assert "no sample is lost" in report.summary()


def test_superblocks_differ(container: Damaged) -> None:
    """Two valid superblocks of one generation are equal, byte for byte."""
    other = dataclasses.replace(decode(container.good[:4096]), minor=1)
    container.write(container.good[:4096] + encode(other) + container.good[8192:])
    assert "differs from A" in str(container.check().damage[0])
    other = dataclasses.replace(decode(container.good[:4096]), incompatible=1)  # not looked at where A counts
    container.write(container.good[:4096] + encode(other) + container.good[8192:])
    assert "differs from A" in str(container.check().damage[0])


def test_padding(container: Damaged) -> None:
    """Padding is zero; the first byte that is not is named."""
    offset, nbytes = container.place("BLOCK", "label")
    invert(container.path, offset + nbytes + 100, 3)
    (damage,) = container.check().damage
    assert (damage.kind, damage.harmless, damage.offset) == ("padding", True, offset + nbytes + 100)


def test_wrong_block_sum(container: Damaged) -> None:
    """Where all groups are right, the sum of the block was wrong when it was written, and the report says so."""
    offset, _ = container.place("BLOCKS")
    invert(container.path, offset + 16)
    data = bytearray(container.path.read_bytes())
    repair(data)
    container.write(data)
    (damage,) = container.check().damage
    assert (damage.kind, damage.field) == ("block", "image")
    assert "all of its groups are as written" in damage.message


def test_gap_and_overlap(container: Damaged) -> None:
    """A block moved in the table leaves bytes that belong to nothing, and claims those of another."""
    offset, _ = container.place("BLOCKS")
    data = bytearray(container.good)
    data[offset + 40 : offset + 48] = data[offset : offset + 8]  # field 1 of shard 0 where field 0 is
    repair(data)
    container.write(data)
    kinds = {damage.kind for damage in container.check().damage}
    assert {"overlap", "gap"} <= kinds


def test_deep_checks_chunk_sums_of_whole_blocks(tmp_path: Path) -> None:
    """A wrong chunk sum over right bytes is found in the first MiB of a block, and with deep anywhere."""
    container = Damaged(tmp_path / "a.cks")
    with chunkstore.Writer(container.path, shard_nbytes=4 << 20) as writer:
        writer.add_batch({"x": np.zeros((1024, 4096), np.uint8)})
    good = container.path.read_bytes()
    offset, nbytes = container.place("CHUNK_SUMS", "x")
    for group, shallow in ((0, False), (255, False), (256, True), (1023, True)):
        data = bytearray(good)
        data[offset + 8 * group] ^= 1
        repair(data)
        container.write(data)
        assert container.check().ok == shallow, group
        (damage,) = container.check(deep=True).damage
        assert (damage.kind, damage.start, damage.stop) == ("chunk", group, group + 1)
    assert nbytes == 8 * 1024


@pytest.mark.parametrize("row", [np.array([0, 1, 2], np.uint8), np.full(3 << 20, 3, np.uint8)], ids=["small", "large"])
def test_deep_checks_booleans(tmp_path: Path, row: np.ndarray[Any, Any]) -> None:
    """A boolean that is neither 0 nor 1 is found with deep, in the right row."""
    container = Damaged(tmp_path / "a.cks")
    with chunkstore.Writer(container.path, fields={"b": ("bool", row.shape)}) as writer:
        writer.add({"b": np.zeros(row.shape, bool)})
        writer.add({"b": row.view(bool)})
    assert container.check().ok
    (damage,) = container.check(deep=True).damage
    assert (damage.kind, damage.start, damage.stop) == ("row", 1, 2)
    assert "neither 0 nor 1" in damage.message


@pytest.mark.parametrize(("dim", "ok"), [(2**62 - 1, True), (2**62, False), (2**62 + 1, False)])
def test_shapes_at_the_limit(container: Damaged, dim: int, ok: bool) -> None:
    """A row of 0 items has dimensions whose product, without the zeros, is below 2^63 bytes: as a reader has it."""
    data = bytearray(container.good)
    start, _ = container.place("SHAPES", "grid")
    data[start + 8 : start + 16] = dim.to_bytes(8, "little")  # of the first row, (0, 0) of int16
    repair(data)
    assert container.write(data).check().ok == ok
    with chunkstore.open(container.path) as ds:
        if ok:
            assert ds[0]["grid"].shape == (0, dim)
        else:
            with pytest.raises(chunkstore.LimitError):
                ds[0]


def test_deep_with_offsets_that_descend(tmp_path: Path) -> None:
    """Rows of a codec whose OFFSETS descend, all checksums right, are damage and not an error of the decoder."""
    container = Damaged(tmp_path / "a.cks")
    with chunkstore.Writer(container.path, fields={"r": chunkstore.Field("r", "int16", (None,), "zlib")}) as writer:
        for length in (3, 5, 4):
            writer.add({"r": np.arange(length, dtype=np.int16)})
    data = bytearray(container.path.read_bytes())
    start, _ = container.place("OFFSETS", "r")
    data[start + 8 : start + 16] = (9).to_bytes(8, "little")
    repair(data)
    report = container.write(data).check(deep=True)
    assert not report.ok
    assert any("OFFSETS descend" in damage.message for damage in report.damage)


@pytest.mark.parametrize("name", sorted(path.stem for path in (VECTORS / "invalid").glob("*.cks")))
def test_invalid_vectors(name: str) -> None:
    """Deep, every invalid vector is found, or refused with the error that stands beside it."""
    expected = expectation(name)
    try:
        report = chunkstore.verify(VECTORS / "invalid" / f"{name}.cks", deep=True)
    except chunkstore.FormatError as raised:
        error = raised
    else:
        assert not report.ok
        assert report.num_damage == len(report.damage) > 0
        json.dumps(report.as_dict())
        return
    assert type(error).__name__ == expected["expect"]
    assert f"{name}.cks" in str(error)


@pytest.mark.parametrize("name", sorted(path.stem for path in (VECTORS / "valid").glob("*.cks")))
def test_valid_vectors(name: str) -> None:
    """Deep, nothing is found in a valid vector but what is harmless."""
    path = VECTORS / "valid" / f"{name}.cks"
    if name == "unknown-codec":
        assert chunkstore.verify(path).ok
        with pytest.raises(chunkstore.UnsupportedFeatureError, match="not known to this release"):
            chunkstore.verify(path, deep=True)
        return
    report = chunkstore.verify(path, deep=True)
    assert all(damage.harmless for damage in report.damage), report.summary()
    assert {damage.kind for damage in report.damage} <= {"superblock", "trailing"}


def test_refused_files(tmp_path: Path) -> None:
    """What is no container, or cannot be opened, is an exception that names the file."""
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY" + bytes(9000))
    with pytest.raises(chunkstore.NotAContainerError, match=r"a\.npy"):
        chunkstore.verify(path)
    with pytest.raises(FileNotFoundError):
        chunkstore.verify(tmp_path / "missing.cks")
    with pytest.raises(IsADirectoryError):
        chunkstore.verify(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(chunkstore.NotAContainerError, match="FIFO"):
            chunkstore.verify(tmp_path / "fifo")


@pytest.mark.parametrize("workers", [0, 3, -1, 1.5, "2"])
def test_number_of_threads(large: Path, workers: Any) -> None:
    """One or two."""
    with pytest.raises(ValueError, match="workers: expected 1 or 2 threads"):
        chunkstore.verify(large, workers=workers)


def test_path_of_bytes(large: Path) -> None:
    """The report has it as a text: what it gives for JSON is JSON."""
    assert chunkstore.verify(bytes(large)).path == str(large)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_threads_find_the_same(large: Path, workers: int, deep: bool) -> None:
    """One thread or two, deep or not: the same damage in the same order."""
    places = [9000_000, 9000_001, 20_000_000, 33_333_333]
    for place in places:
        invert(large, place)
    report = chunkstore.verify(large, workers=workers, deep=deep)
    assert [(d.kind, d.field, d.nbytes) for d in report.damage] == [("chunk", "x", 4096)] * 3
    for damage, place in zip(report.damage, [places[0], *places[2:]], strict=True):
        assert 0 <= place - (damage.offset or 0) < 4096


def test_progress(large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Progress goes up to the length of the file, in the thread of the caller; True draws a bar on stderr."""
    seen: list[tuple[int, int]] = []
    threads = set()

    def tell(done: int, total: int) -> None:
        seen.append((done, total))
        threads.add(threading.current_thread())

    assert chunkstore.verify(large, progress=tell, workers=1).ok
    size = large.stat().st_size
    assert len(seen) > 20
    assert seen == sorted(seen)
    assert seen[-1] == (size, size)
    assert threads == {threading.main_thread()}
    assert chunkstore.verify(large, progress=True).ok
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "verify" in captured.err


def test_interrupted(large: Path) -> None:
    """An interrupt ends it at once, and leaves no thread."""
    calls = []

    def interrupt(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chunkstore.verify(large, progress=interrupt, workers=2)
    assert len(calls) == 3
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("chunkstore-verify")] == []


def test_truncated_meanwhile(large: Path) -> None:
    """A file that is cut off while it is verified is a finding, and no end of the process."""
    cut = []

    def truncate(done: int, total: int) -> None:
        if done > 8 << 20 and not cut:
            cut.append(done)
            os.truncate(large, 20 << 20)

    # One worker: what another thread reads in that moment may come as zeros, which is damage of another kind.
    report = chunkstore.verify(large, progress=truncate, workers=1)
    assert cut
    assert {damage.kind for damage in report.damage} == {"truncated"}


def test_bad_sector(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that the system cannot read are a finding; the rest is checked."""
    plain = platform.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if offset <= 20_000_000 < offset + sum(map(len, buffers)):
            raise OSError(errno.EIO, "Input/output error")
        return plain(fd, buffers, offset)

    monkeypatch.setattr(platform, "preadv", preadv)
    report = chunkstore.verify(large)
    assert [(damage.kind, damage.field, damage.shard) for damage in report.damage] == [("unreadable", "x", 2)]
    assert report.num_blocks == 4


def test_error_in_helper_reaches_the_caller(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong in the second thread is raised in the first."""
    plain = platform.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if threading.current_thread() is not threading.main_thread():
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return plain(fd, buffers, offset)

    monkeypatch.setattr(platform, "preadv", preadv)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        chunkstore.verify(large, workers=2)


def test_many_damages_are_counted(container: Damaged, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report lists so many damages and counts the others."""
    monkeypatch.setattr(_verify_report, "MAX_LISTED", 3)
    for field in ("image", "label", "seen", "wave", "text"):
        container.corrupt("BLOCK", 0, 1, field=field)
    report = container.check()
    assert (len(report.damage), report.num_damage) == (3, 5)
    assert "... and 2 more" in report.summary()
    assert "DAMAGED: 5 damages (" in report.summary()


def test_memory_does_not_grow_with_the_file(large: Path) -> None:
    """40 MiB of blocks are verified in a few MiB of memory."""
    tracemalloc.start()
    try:
        assert chunkstore.verify(large).ok
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_keys_of_several_segments(tmp_path: Path) -> None:
    """A key may not be in two segments, although each segment is right by itself."""
    container = Damaged(tmp_path / "a.cks").build(N, commits=3)
    assert container.check().ok
    assert chunkstore.verify(VECTORS / "invalid" / "segment-key-twice.cks").damage[0].keys == ("a",)


def test_many_keys(tmp_path: Path) -> None:
    """Keys are checked in pieces: 150,000 of them, of several lengths, over two segments."""
    path = tmp_path / "a.cks"
    for part in range(2):
        with chunkstore.Writer(path, mode="a" if part else "x", fields=None if part else {"x": "uint8"}) as writer:
            keys = [f"{part}/{number}ö" for number in range(75_000)]
            writer.add_batch({"x": np.zeros(75_000, np.uint8)}, keys=keys)
    assert chunkstore.verify(path).ok


def test_is_a_second_opinion() -> None:
    """Verifying does not load the reader."""
    code = "import sys, chunkstore; chunkstore.verify; print([n for n in sys.modules if '_reader' in n])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# --- memory that runs out ---


def test_records_become_tuples() -> None:
    """Column by column, as `tolist` gives them."""
    records = np.zeros(5, [("a", "<u8"), ("b", "<i4"), ("c", "?")])
    records["a"], records["b"], records["c"] = np.full(5, 2**64 - 1, "<u8"), -np.arange(5), [True, False] * 2 + [True]
    assert list(as_tuples(records)) == records.tolist()
    assert list(as_tuples(records[:0])) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_no_memory_for_a_tuple_ends_no_process() -> None:
    """`tolist` of a structured array dies of it in NumPy 2.4."""
    hooks = pytest.importorskip("_testcapi")
    records = np.zeros(3, [(name, "<i8") for name in "abcdefg"])
    for number in range(40):
        pid = os.fork()
        if pid == 0:
            held = [(number,) * 7 for _ in range(5000)]  # no tuple of this size is left in the interpreter's free list
            hooks.set_nomemory(number, number + 1)
            try:
                list(as_tuples(records))
            except MemoryError:
                pass
            hooks.remove_mem_hooks()
            os._exit(len(held) != 5000)
        assert os.waitpid(pid, 0)[1] == 0
