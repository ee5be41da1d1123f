"""What can be saved of a damaged container is saved and right; what cannot be is listed; nothing is guessed."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from damaged import Damaged, repair

import chunkstore
from chunkstore._format.constants import Kind
from chunkstore._format.field_index import FieldIndex
from chunkstore._format.index import read_index
from chunkstore._format.segment import SectionEntry
from chunkstore._format.superblock import decode_head
from chunkstore._rewrite.recover import Recovery, recover
from chunkstore._rewrite.room import BEHIND, EMPTY, MOST_EMPTY, OVERLAP, runs
from chunkstore._storage.source import open_source

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))  # not a package

from _vectors.builder import Column, Image

N = 40  # samples
COMMITS = (20, 10, 6, 4)  # in a streamed container: the small ones are merged into one segment
FIELDS: dict[str, Any] = {"x": ("int64", (30,)), "r": ("int16", (None,)), "t": "string"}
SHARD = 1500  # bytes


def sample(number: int) -> dict[str, Any]:
    """Rows that tell which sample they are of."""
    return {
        "x": np.full(30, number, np.int64),
        "r": np.full(number % 9, number, np.int16),
        "t": f"text of {number}",
    }


@pytest.fixture
def streamed(tmp_path: Path) -> Path:
    """A container of four commits."""
    path, number = tmp_path / "a.cks", 0
    with chunkstore.Writer(path, fields=FIELDS, shard_nbytes=SHARD, attrs={"who": "me"}) as writer:
        for count in COMMITS:
            for _ in range(count):
                writer.add(sample(number), f"k{number}")
                number += 1
            writer.commit()
    return path


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    """A container with its index in front, made from a file."""
    np.save(tmp_path / "x.npy", np.repeat(np.arange(N, dtype=np.int64), 30).reshape(N, 30))
    chunkstore.convert(tmp_path / "x.npy", tmp_path / "c.cks", layout="rows", shard_nbytes=SHARD)
    return tmp_path / "c.cks"


def damage(path: Path, start: int, data: bytes | int) -> None:
    """Overwrite bytes; a number stands for so many inverted ones."""
    with path.open("r+b") as file:
        file.seek(start)
        if isinstance(data, int):
            data = bytes(byte ^ 0xFF for byte in file.read(data))
            file.seek(start)
        file.write(data)


def cut(path: Path, size: int) -> None:
    """Cut a file off."""
    with path.open("r+b") as file:
        file.truncate(size)


def saved(path: Path, total: int = N) -> tuple[Recovery, list[int]]:
    """Recover; which samples were saved, after all of them were found to be right and all others to be listed."""
    out = path.with_name("saved.cks")
    report = recover(path, out, mode="w")
    container = oracle.read(out)
    numbers = [int(row[0]) for row in container.rows(container.names[0])]
    assert numbers == sorted(set(numbers))
    assert report.num_saved == len(numbers)
    with chunkstore.open(out, verify="always") as ds:
        for position, number in enumerate(numbers):
            assert is_sample(ds[position], number)
            assert ds.keys is None or ds.keys[position] == f"k{number}"
    lost = {position for one in report.lost for position in range(one.start, one.stop)}
    assert not lost & set(numbers)
    if not any("without a trace" in note for note in report.notes):
        assert lost | set(numbers) == set(range(total))
    assert all(one.reason for one in report.lost)
    return report, numbers


def is_sample(row: dict[str, Any], number: int) -> bool:
    """Whether a row is as it was written, with all of its fields or with the converted one."""
    if "data" in row:
        return bool((row["data"] == number).all())
    wanted = sample(number)
    return row["t"] == wanted["t"] and all(np.array_equal(row[name], wanted[name]) for name in ("x", "r"))


def test_a_sound_container_is_saved_as_a_whole(streamed: Path) -> None:
    """Nothing is lost, nothing noted; the attributes come along."""
    report, numbers = saved(streamed)
    assert numbers == list(range(N))
    assert report.complete
    assert report.notes == []
    with chunkstore.open(streamed.with_name("saved.cks")) as ds:
        assert ds.attrs == {"who": "me"}


@pytest.mark.parametrize("superblock", [0, 1])
def test_one_superblock_is_enough(streamed: Path, superblock: int) -> None:
    """The other one names the same directory."""
    damage(streamed, 4096 * superblock, bytes(4096))
    report, numbers = saved(streamed)
    assert numbers == list(range(N))
    assert report.complete
    assert any(f"superblock {'AB'[superblock]}" in note for note in report.notes)


@pytest.mark.parametrize("data", [bytes(8192), b"\xff" * 8192], ids=["zeros", "junk"])
def test_without_superblocks_segments_are_searched(streamed: Path, converted: Path, data: bytes) -> None:
    """All samples are found by the segments themselves; a note says that later ones could be missing."""
    for path in (streamed, converted):
        damage(path, 0, data)
        report, numbers = saved(path)
        assert numbers == list(range(N))
        assert any("without a trace" in note for note in report.notes)


def test_a_damaged_newest_directory_leaves_the_samples_of_earlier_segments(streamed: Path) -> None:
    """What only the newest segment describes is lost; earlier and superseded segments still prove the rest."""
    place, _ = Damaged(streamed).place("DIRECTORY")
    damage(streamed, place + 64, 8)
    report, numbers = saved(streamed)
    assert set(range(COMMITS[0])) <= set(numbers)
    assert any("searched" in note for note in report.notes)


def test_segments_of_many_shards_are_found_without_superblocks(tmp_path: Path) -> None:
    """Each is an index by itself, also of shards that do not begin with sample 0."""
    path = tmp_path / "a.cks"
    with chunkstore.Writer(path, fields=FIELDS, shard_nbytes=300) as writer:
        for number in range(61):
            writer.add(sample(number), f"k{number}")
            if number == 40:
                writer.commit()
    damage(path, 0, bytes(8192))
    report, numbers = saved(path)
    assert "2 index segments agree with themselves" in report.notes[-1]
    assert numbers == list(range(61))
    assert report.complete


def test_the_newest_segment_is_found_where_an_earlier_one_is_damaged(tmp_path: Path) -> None:
    """Then the newest commit is not lost, only what the earlier one describes."""
    path, _ = two_commits(tmp_path)
    damage(path, Damaged(path).index().directories[0].offset + 64, 8)
    report, numbers = saved(path, 2)
    assert numbers == [1]
    assert (report.num_lost, report.lost_commit) == (1, False)


def test_two_generations_each_half_good(tmp_path: Path) -> None:
    """A of a commit whose segment is damaged, B of the one before: that is taken as a whole."""
    path = tmp_path / "a.cks"
    with chunkstore.Writer(path, fields=FIELDS, shard_nbytes=SHARD) as writer:
        for number in range(30):
            writer.add(sample(number), f"k{number}")
    before = path.read_bytes()[:4096]
    with chunkstore.Writer(path, mode="a") as writer:
        for number in range(30, N):
            writer.add(sample(number), f"k{number}")
    damage(path, 4096, before)
    place, nbytes = Damaged(path).place("DIRECTORY")
    damage(path, place, nbytes)
    report, numbers = saved(path)
    assert set(range(30)) <= set(numbers)
    assert report.lost_commit
    assert not report.complete
    assert any("superblock A cannot be read" in note for note in report.notes)
    assert any("generation 1 is saved, and there was 2" in note for note in report.notes)


@pytest.mark.parametrize("damaged", [False, True], ids=["its segment is good", "its segment is damaged"])
def test_a_superblock_that_is_gone_and_was_newer(tmp_path: Path, damaged: bool) -> None:
    """B alone is valid and of an earlier generation: the segment behind it that goes on from it is used, if it holds.

    Otherwise a note says what bytes behind the end may mean.
    """
    path, before = two_commits(tmp_path)
    place, _ = Damaged(path).place("BLOCKS")
    damage(path, 0, bytes(4096))
    damage(path, 4096, before[:4096])
    if damaged:
        damage(path, place, 8)
    report, numbers = saved(path)
    assert numbers == ([0] if damaged else [0, 1])
    wanted = "bytes behind generation 1" if damaged else "goes on from what superblock B names"
    assert any(wanted in note for note in report.notes)


def test_a_superblock_of_a_later_version_beside_a_good_one_is_damage(tmp_path: Path) -> None:
    """One flipped bit in the major version of A does not keep the samples of B from being saved."""
    path = tmp_path / "a.cks"
    with chunkstore.Writer(path, fields=FIELDS) as writer:
        writer.add(sample(0), "k0")
    damage(path, 8, b"\x03")
    assert saved(path, 1)[1] == [0]
    damage(path, 4096 + 8, b"\x03")
    with pytest.raises(chunkstore.UnsupportedVersionError):
        recover(path, tmp_path / "b.cks")


def two_commits(folder: Path) -> tuple[Path, bytes]:
    """A container of one sample a commit, and its bytes after the first."""
    path = folder / "a.cks"
    with chunkstore.Writer(path, fields=FIELDS) as writer:
        writer.add(sample(0), "k0")
    before = path.read_bytes()
    with chunkstore.Writer(path, mode="a") as writer:
        writer.add(sample(1), "k1")
    return path, before


def test_a_damaged_superblock_b_does_not_outbid_a(tmp_path: Path) -> None:
    """B is of the commit before, and damage made its generation a large one: A counts, which is written first."""
    path, before = two_commits(tmp_path)
    damage(path, 4096, before[:60] + b"\x01" + before[61:4096])
    assert saved(path, 2)[1] == [0, 1]


def test_a_superblock_a_that_is_partly_of_the_commit_before_does_not_hide_b(tmp_path: Path) -> None:
    """A sector of A that a disk lost: its record names the generation before, whose index holds; B is newer."""
    path, before = two_commits(tmp_path)
    damage(path, 0, before[:512])
    assert saved(path, 2)[1] == [0, 1]


SECTIONS = ("SCHEMA", "ATTRS", "SHARD_STARTS", "BLOCKS", "CHUNK_SUMS", "OFFSETS", "KEY_BYTES", "KEY_OFFSETS",
            "KEY_HASHES", "KEY_ORDER")  # fmt: skip


@pytest.mark.parametrize("section", SECTIONS)
def test_each_section_of_the_only_segment(tmp_path: Path, section: str) -> None:
    """What is saved is right, and the rest is listed; or nothing can be proven, and that is said."""
    path = tmp_path / "a.cks"
    with chunkstore.Writer(path, fields=FIELDS, shard_nbytes=SHARD) as writer:
        for number in range(N):
            writer.add(sample(number), f"k{number}")
    field = "r" if section == "OFFSETS" else "x" if section == "CHUNK_SUMS" else None
    Damaged(path).corrupt(section, 0, 1, field=field)
    if section in ("SCHEMA", "SHARD_STARTS", "BLOCKS"):
        with pytest.raises(chunkstore.CorruptError, match="no index segment could be proven good"):
            recover(path, tmp_path / "saved.cks")
        assert not (tmp_path / "saved.cks").exists()
        return
    report, numbers = saved(path)
    if section in ("ATTRS", "KEY_HASHES", "KEY_ORDER"):  # no sample is read through them
        assert numbers == list(range(N))
    else:
        assert numbers == []
        assert not report.complete


@pytest.mark.parametrize("field", ["x", "r", "t"])
def test_damaged_data_costs_the_samples_of_its_groups(streamed: Path, field: str) -> None:
    """One byte of a block: the samples that share a checksum with it are lost, with their keys; no others."""
    place, _ = Damaged(streamed).place("BLOCK", field)
    damage(streamed, place, 1)
    report, numbers = saved(streamed)
    assert len(report.lost) > 0
    assert N - 20 <= len(numbers) < N
    assert report.lost[0].key == f"k{report.lost[0].start}"
    assert report.lost[0].reason == f"field {field!r} does not have the bytes that were written"


def test_a_converted_file_that_was_cut_off(converted: Path) -> None:
    """Its index is in front: every sample before the cut is saved, and the others are listed."""
    start, _ = Damaged(converted).place("BLOCK", "data")
    for kept in (0, 1, 17, 39):
        whole = converted.read_bytes()
        cut(converted, start + kept * 240 + 100)
        report, numbers = saved(converted)
        assert set(numbers) <= set(range(kept))
        assert kept - len(numbers) < 20  # those of the group in which the cut is
        assert not report.complete
        converted.write_bytes(whole)


def test_a_streamed_file_that_was_cut_off(streamed: Path) -> None:
    """The newest segment is at the end and gone: an earlier one says what was there before."""
    cut(streamed, streamed.stat().st_size - 4096)
    report, numbers = saved(streamed)
    assert set(range(COMMITS[0])) <= set(numbers)
    assert report.lost_commit
    assert not report.complete
    assert any("without a trace" in note for note in report.notes)


@pytest.mark.parametrize("size", [0, 5, 100, 4096, 8192])
def test_a_file_of_which_nothing_is_left(streamed: Path, size: int) -> None:
    """That is an error, and no container is made."""
    cut(streamed, size)
    with pytest.raises(chunkstore.FormatError):
        recover(streamed, streamed.with_name("saved.cks"))
    assert not streamed.with_name("saved.cks").exists()


def inverted(data: bytearray, rng: random.Random) -> None:
    """Some bytes anywhere."""
    start = rng.randrange(len(data))
    stop = min(len(data), start + rng.choice([1, 30, 600, 9000]))
    data[start:stop] = bytes(byte ^ 0xFF for byte in data[start:stop])


def zeroed(data: bytearray, rng: random.Random) -> None:
    """Some sectors."""
    for _ in range(rng.randrange(1, 4)):
        start = rng.randrange(len(data) // 512) * 512
        data[start : start + 512] = bytes(512)


def moved(data: bytearray, rng: random.Random) -> None:
    """A page written over another."""
    a, b = (rng.randrange(len(data) // 4096) * 4096 for _ in range(2))
    data[a : a + 4096] = data[b : b + 4096]


def shortened(data: bytearray, rng: random.Random) -> None:
    """The end is gone, and a bit of the rest."""
    del data[rng.randrange(8192, len(data)) :]
    inverted(data, rng)


@pytest.mark.parametrize("harm", [inverted, zeroed, moved, shortened])
def test_any_damage(streamed: Path, harm: Callable[[bytearray, random.Random], None]) -> None:
    """Twelve times each: nothing that is saved is wrong, and nothing is lost without being listed or noted."""
    good = streamed.read_bytes()
    found = 0
    for seed in range(12):
        data = bytearray(good)
        harm(data, random.Random(seed))
        streamed.write_bytes(data)
        try:
            _, numbers = saved(streamed)
        except chunkstore.FormatError:
            continue
        found += len(numbers)
    assert found > 3 * N


def test_it_never_overwrites(streamed: Path) -> None:
    """Mode "x" refuses a name that is taken, and leaves the file."""
    out = streamed.with_name("saved.cks")
    out.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        recover(streamed, out)
    assert out.read_bytes() == b"mine"


def test_the_damaged_file_is_only_read(streamed: Path) -> None:
    """Not a byte of it changes."""
    damage(streamed, 0, 100)
    data = streamed.read_bytes()
    saved(streamed)
    assert streamed.read_bytes() == data


def test_what_is_cut_off_is_one_run_of_samples(tmp_path: Path) -> None:
    """The reason names the field and not each row's place, so neighbours are told of together."""
    path = tmp_path / "a.cks"
    with chunkstore.Writer(path, num_samples=40) as writer:
        writer.add_batch({"x": np.zeros((40, 2500), np.float32)})
    with path.open("r+b") as file:
        data = file.read()
        file.truncate(8192 + 15 * 10_000)
    with pytest.raises(chunkstore.CorruptError):  # the index of a streamed container lies behind the cut
        recover(path, tmp_path / "b.cks")
    path.write_bytes(data)
    chunkstore.merge([path], tmp_path / "front.cks")  # and here in front
    whole = (tmp_path / "front.cks").read_bytes()
    (tmp_path / "front.cks").write_bytes(whole[: len(whole) - 20 * 10_000])
    found = recover(tmp_path / "front.cks", tmp_path / "c.cks")
    assert len(found.lost) == 1
    assert found.num_saved + found.num_lost == 40
    assert found.lost[0].stop == 40


# -- dictionaries of codecs --------------------------------------------------------------------------------------------


def with_dictionary(path: Path, fields: dict[str, Any]) -> list[SectionEntry]:
    """A container of two live segments whose field z has a dictionary; where that stands, the newest first."""
    pytest.importorskip("zstandard")
    for mode, count in (("x", 3000), ("a", 300)):
        options: dict[str, Any] = {"mode": mode, "codec": {"z": "zstd:3,dict"}}
        with chunkstore.Writer(path, fields=fields, **options) as writer:
            for number in range(count):
                row = {"x": np.int64(number), "z": f"the text of sample {number}, which is much like others" * 3}
                writer.add({name: row[name] for name in fields})
    with open_source(path, "pread") as source:
        directories = read_index(source).directories
    entries = [directory.find(Kind.DICTIONARY, list(fields).index("z")) for directory in reversed(directories)]
    assert len(entries) == 2
    return [entry for entry in entries if entry is not None]


@pytest.mark.parametrize("damaged", [0, 1])
def test_a_dictionary_that_another_segment_has_too(tmp_path: Path, damaged: int) -> None:
    """It is the same in all live segments: nothing is lost."""
    path = tmp_path / "a.cks"
    entry = with_dictionary(path, {"x": "int64", "z": "string"})[damaged]
    damage(path, entry.offset + entry.nbytes // 2, 1)
    report = recover(path, tmp_path / "b.cks")
    assert (report.num_saved, report.complete, report.lost_fields) == (3300, True, [])
    with chunkstore.open(tmp_path / "b.cks", verify="always") as ds:
        assert ds[3299]["z"].startswith("the text of sample 299,")


def test_a_dictionary_that_is_lost(tmp_path: Path) -> None:
    """Its field is left out, and named; the others are saved. Where there is no other, nothing is."""
    path = tmp_path / "a.cks"
    for entry in with_dictionary(path, {"x": "int64", "z": "string"}):
        damage(path, entry.offset + entry.nbytes // 2, 1)
    report = recover(path, tmp_path / "b.cks")
    assert (report.num_saved, report.num_lost, report.complete, report.lost_fields) == (3300, 0, False, ["z"])
    assert report.as_dict()["lost_fields"] == ["z"]
    assert any("field 'z' is lost" in note and "DICTIONARY" in note for note in report.notes)
    with chunkstore.open(tmp_path / "b.cks", verify="always") as ds:
        assert list(ds.fields) == ["x"]
        assert ds.column("x")[-1] == 299
    for entry in with_dictionary(tmp_path / "c.cks", {"z": "string"}):
        damage(tmp_path / "c.cks", entry.offset + entry.nbytes // 2, 1)
    with pytest.raises(chunkstore.CorruptError, match=r"DICTIONARY.*no other field"):
        recover(tmp_path / "c.cks", tmp_path / "d.cks")
    assert not (tmp_path / "d.cks").exists()


# -- an index that lies ------------------------------------------------------------------------------------------------


def claim(path: Path, num_samples: int, *, behind: bool) -> None:
    """Have a container of one shard and one field say that it has so many samples, with all checksums right.

    Args:
        behind: whether the committed end and the block grow with it, so that the gate lets rows with bytes pass.
    """
    data = bytearray(path.read_bytes())
    superblock = decode_head(bytes(data[:8192]), len(data)).superblock
    index = Damaged(path).index()
    (directory,) = index.directories
    data[directory.offset + 16 : directory.offset + 24] = num_samples.to_bytes(8, "little")
    starts = Damaged(path).entry("SHARD_STARTS").offset
    data[starts + 8 : starts + 16] = num_samples.to_bytes(8, "little")
    blocks = Damaged(path).entry("BLOCKS").offset
    row = index.fields[0].item_nbytes
    data[blocks + 8 : blocks + 16] = (row * num_samples).to_bytes(8, "little")
    data[blocks + 24 : blocks + 32] = (1 << 62).to_bytes(8, "little")  # one group holds all
    if behind:
        end = (superblock.committed_end + row * num_samples) // 4096 * 4096 + 4096
        data[64:72] = end.to_bytes(8, "little")
    repair(data)
    path.write_bytes(data)


def test_attributes_of_an_earlier_commit(tmp_path: Path) -> None:
    """Where the newest are damaged, those before are saved, and a note says so; where no others are, none are."""
    path = tmp_path / "a.cks"
    for place, mode in enumerate("xaa"):
        with chunkstore.Writer(path, fields=None if place else FIELDS, mode=mode, attrs={"commit": place}) as writer:
            for number in range(1 if place == 2 else 200):
                writer.add(sample(number))
    damage(path, Damaged(path).place("ATTRS")[0], 1)
    for wanted in (1, None):
        report = recover(path, tmp_path / "saved.cks", mode="w")
        with chunkstore.open(tmp_path / "saved.cks") as ds:
            assert dict(ds.attrs) == ({} if wanted is None else {"commit": wanted})
        assert any("the attributes are lost" in note for note in report.notes)
        assert ("in their place" in report.notes[-1]) == (wanted is not None)
        data = path.read_bytes()
        path.write_bytes(data.replace(b'{"commit":', b'{"commot":'))


@pytest.mark.parametrize("count", [3, 20_000])  # the segment of a large one stays, that of a small one is replaced
@pytest.mark.parametrize("appends", [1, 2])
def test_attributes_of_a_last_segment_without_samples(tmp_path: Path, count: int, appends: int) -> None:
    """An append of attributes only: they are the newest, also where segments are searched for."""
    path = tmp_path / "a.cks"
    with chunkstore.Writer(path, attrs={"version": 0}) as writer:
        writer.add_batch({"x": np.arange(count)}, [str(number) for number in range(count)])
    for version in range(1, appends + 1):
        with chunkstore.Writer(path, mode="a", attrs={"version": version}):
            pass
    data = bytearray(path.read_bytes())
    data[:8192] = bytes(8192)
    path.write_bytes(data)
    report = recover(path, tmp_path / "out.cks")
    with chunkstore.open(tmp_path / "out.cks") as saved:
        assert (len(saved), saved.attrs) == (count, {"version": appends})
    assert (report.num_saved, report.lost) == (count, [])


def test_a_segment_whose_first_block_continues_one_of_another(tmp_path: Path) -> None:
    """Another writer may let an extent run through segments: each is found by itself all the same."""
    columns = [Column("x", "uint8", [3], [np.full(3, number, "u1") for number in range(8)])]
    image = Image(bytearray(8192), columns=columns)
    table = image.make_blocks([(0, 4), (4, 8)])
    image.place_blocks(table, 8192, by_field=True)
    image.write_blocks(table)
    for shard in range(2):
        table[shard][0].first_group = 0
        image.num_samples = 4 * shard
        sections = image.sections([(4 * shard, 4 * shard + 4)], table[shard : shard + 1])
        image.write_segment(image.align(), (4 * shard, shard), (4, 1), sections)
    image.commit()
    image.data[:8192] = bytes(8192)
    (tmp_path / "a.cks").write_bytes(image.data)
    assert recover(tmp_path / "a.cks", tmp_path / "out.cks").num_saved == 8


def test_samples_without_a_byte(tmp_path: Path) -> None:
    """10^12 rows of no bytes, of which nothing is stored but their number: a million are saved, the others counted."""
    path = tmp_path / "a.cks"
    with chunkstore.Writer(path) as writer:
        writer.add_batch({"x": np.zeros((3, 0), np.float32)})
    claim(path, 10**12, behind=False)
    assert len(chunkstore.open(path)) == 10**12
    found = recover(path, tmp_path / "b.cks")
    assert found.num_saved == MOST_EMPTY
    assert found.num_lost == 10**12 - MOST_EMPTY
    assert [(one.start, one.stop, one.reason) for one in found.lost] == [(MOST_EMPTY, 10**12, EMPTY)]
    assert chunkstore.verify(tmp_path / "b.cks").ok


def test_samples_that_the_file_is_too_short_for(tmp_path: Path) -> None:
    """10^15 samples in a file of 12 KB that says it was cut off: those behind its end are one run, found at once."""
    path = tmp_path / "a.cks"
    with chunkstore.Writer(path) as writer:
        writer.add_batch({"x": np.arange(3000, dtype=np.uint8)})
    chunkstore.repack(path, path, mode="w")
    claim(path, 10**15, behind=True)
    size = path.stat().st_size
    found = recover(path, tmp_path / "b.cks")
    assert found.num_saved + found.num_lost == 10**15
    assert found.num_saved <= size
    assert [one.reason for one in found.lost] == [BEHIND]


def test_runs_are_what_reading_finds(tmp_path: Path) -> None:
    """Cut to any length, a container with its index in front loses the same samples as reading each would show."""
    path = tmp_path / "a.cks"
    fields: Any = {"r": ("uint8", (None,)), "x": ("uint8", (7,)), "y": "int16"}
    with chunkstore.Writer(path, fields=fields, shard_nbytes=90) as writer:
        for number in range(60):
            writer.add({"r": np.zeros(number % 5, np.uint8), "x": np.full(7, number, np.uint8), "y": number})
    chunkstore.merge([path], tmp_path / "front.cks")
    with open_source(tmp_path / "front.cks", "pread") as source:
        index = read_index(source)
        size = source.size
    ends = [[sum(FieldIndex(index, field).row(n)) for n in range(60)] for field in (1, 2)]
    for nbytes in range(index.directories[0].end, size + 1):
        found = list(runs(index, nbytes))
        assert [found[0].start, *(run.stop for run in found)] == [*(run.start for run in found), 60]
        kept = {n for run in found if not run.reason for n in range(run.start, run.stop)}
        assert kept == {n for n in range(60) if all(field[n] <= nbytes for field in ends)}


def test_shards_that_lie_over_each_other(tmp_path: Path) -> None:
    """Blocks that all claim the same bytes cannot make the work grow with the square of the file."""
    path = tmp_path / "a.cks"
    with chunkstore.Writer(path, shard_nbytes=4096) as writer:
        writer.add_batch({"x": np.zeros((20 * 4096,), np.uint8)})
    with open_source(path, "pread") as source:
        index = read_index(source)
    index.blocks = index.blocks.copy()
    index.blocks["offset"] = 8192
    found = list(runs(index, 9000))
    assert sum(run.stop - run.start for run in found if not run.reason) <= 9000
    assert found[-1].stop == 20 * 4096
    assert {run.reason for run in found} <= {"", BEHIND, OVERLAP}


def test_a_lost_key_is_not_a_lost_row(tmp_path: Path) -> None:
    """Samples without their keys are not saved, and the reason says that `open` still reads their rows."""
    path = tmp_path / "a.cks"
    with chunkstore.Writer(path) as writer:
        for number in range(3):
            writer.add({"x": np.int32(number)}, f"key {number}")
    data = bytearray(path.read_bytes())
    data[data.index(b"key 0key 1")] ^= 1
    path.write_bytes(data)
    report = recover(path, tmp_path / "saved.cks")
    assert (report.num_saved, report.num_lost) == (0, 3)
    assert report.lost[0].reason.startswith("its rows are good, and are read by position if the container ")
    with chunkstore.open(path) as ds:
        assert [int(ds[number]["x"]) for number in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("codec", ["raw", "zlib"])
def test_a_row_outside_its_group_is_not_proven_by_it(codec: str, tmp_path: Path) -> None:
    """Offsets that lead out of a group, all checksums right: those rows are lost, and the others saved as they are."""
    container = Damaged(tmp_path / "a.cks")
    rows = np.random.default_rng(7).integers(0, 256, (60, 1000), dtype=np.uint8)
    with chunkstore.Writer(container.path, fields={"r": chunkstore.Field("r", "uint8", (None,), codec)}) as writer:
        for row in rows:
            writer.add({"r": row})
    data = bytearray(container.path.read_bytes())
    start, _ = container.place("OFFSETS" if codec == "raw" else "STORED_OFFSETS", "r")
    for number, value in ((7, 4000), (8, 4500)):  # of the group that begins with row 5, at 5000
        data[start + 8 * number : start + 8 * number + 8] = value.to_bytes(8, "little")
    repair(data)
    container.write(data)
    report = recover(container.path, tmp_path / "b.cks")
    assert [(lost.start, lost.stop) for lost in report.lost] == [(6, 7), (7, 9)]
    with chunkstore.open(tmp_path / "b.cks") as ds:
        assert [row.tobytes() for row in ds.column("r")] == [
            row.tobytes() for i, row in enumerate(rows) if i not in (6, 7, 8)
        ]
