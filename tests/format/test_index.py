"""The gate: index sections are proven before they are used, and lead nowhere but into their blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from damaged import repair

from chunkstore._format.constants import PAGE_NBYTES, Kind
from chunkstore._format.field_index import FieldIndex
from chunkstore._format.index import read_index
from chunkstore._format.section import Section
from chunkstore._storage.source import open_source
from chunkstore._write.writer import Writer
from chunkstore.errors import CorruptError, LimitError, NotAContainerError, TruncatedError

N = 20_000  # several pages of offsets and keys


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ragged rows with keys, in three segments."""
    path = tmp_path_factory.mktemp("index") / "a.cks"
    with Writer(path, fields={"r": ("int16", (None,)), "c": ("int8", (None, None))}, shard_nbytes=50_000) as writer:
        for n in range(N):
            writer.add({"r": np.full(n % 5, n % 100, np.int16), "c": np.full((n % 3, n % 2), n % 50, np.int8)}, f"k{n}")
            if n in (15_000, 19_000):
                writer.commit()
    return path


def test_keys_are_found_one_by_one_and_many_at_once(container: Path) -> None:
    """Over several segments; what is not there is -1."""
    with open_source(container, "pread") as source:
        keys = read_index(source).keys
        assert keys is not None
        some = [0, 1, 15_000, 15_001, 19_500, N - 1]
        assert [keys.find(f"k{n}") for n in some] == some
        assert keys.find_many([f"k{n}" for n in range(N)]).tolist() == list(range(N))
        assert keys.find("k") == keys.find("") == keys.find(f"k{N}") == -1
        assert keys.find_many(["zz", "k7", "\ud800"]).tolist() == [-1, 7, -1]
        assert keys.texts(14_999, 15_003) == [keys.text(n) for n in range(14_999, 15_003)]


@pytest.mark.parametrize("backend", ["mmap", "pread"])
def test_rows_are_where_the_index_says(container: Path, backend: str) -> None:
    """Offsets, counts, shapes and groups over all shards and segments."""
    with open_source(container, backend) as source:  # type: ignore[arg-type]
        index = read_index(source)
        positions = np.arange(N)
        for number, counts in [(0, positions % 5), (1, (positions % 3) * (positions % 2))]:
            field = FieldIndex(index, number)
            offsets, nbytes = field.rows(positions)
            assert (field.counts(positions) == counts).all()
            assert (nbytes == counts * field.field.item_nbytes).all()
            ids = field.group_ids(positions)
            groups = field.groups(np.unique(ids))
            assert (groups.first_row[ids] <= positions).all()
            assert (positions < groups.stop_row[ids]).all()
            assert (groups.offset[ids] <= offsets).all()
            assert (offsets + nbytes <= groups.offset[ids] + groups.nbytes[ids]).all()
        shapes = field.shapes(positions, field.counts(positions))
        assert (shapes == np.stack([positions % 3, positions % 2], axis=1)).all()


@pytest.mark.parametrize("num", [1000, None])
def test_rows_of_one_extent_need_no_shards(tmp_path: Path, num: int | None) -> None:
    """By arithmetic over the extent, where there is one, rows are where their shards say; and where there are more."""
    path = tmp_path / "a.cks"
    with Writer(path, num_samples=num, shard_nbytes=700) as writer:
        writer.add_batch({"x": np.zeros((1000, 3), np.uint8), "y": np.zeros(1000, np.uint8)})
    with open_source(path, "pread") as source:
        field = FieldIndex(read_index(source), 0)
        positions = np.random.default_rng(0).permutation(1000)
        shards = np.searchsorted(field.shard_starts, positions, "right") - 1
        assert (len(field.extents()) == 1) == (num is not None)
        expected = field.block_offset[shards] + (positions - field.shard_starts[shards]) * 3
        assert np.array_equal(field.rows(positions)[0], expected)


def damaged(container: Path, tmp_path: Path, offset: int) -> Path:
    """A copy with one byte changed."""
    data = bytearray(container.read_bytes())
    data[offset] ^= 0x10
    (tmp_path / "b.cks").write_bytes(data)
    return tmp_path / "b.cks"


def test_a_damaged_page_spoils_what_needs_it_and_nothing_else(container: Path, tmp_path: Path) -> None:
    """A page is checked when it is first touched."""
    with open_source(container, "pread") as source:
        entry = next(e for e in read_index(source).directories[0].sections() if e.kind == 6 and e.field == 0)
    with open_source(damaged(container, tmp_path, entry.offset + 70_000), "pread") as source:
        field = FieldIndex(read_index(source), 0)
        assert field.counts(np.array([0, 100])).tolist() == [0, 0]
        with pytest.raises(CorruptError, match=r"index section OFFSETS of field 0, bytes \[\d+, \d+\): stored xxh3"):
            field.counts(np.array([70_000 // 8]))
        assert field.counts(np.array([101])).tolist() == [1]


def test_damaged_page_sums_are_noticed(container: Path, tmp_path: Path) -> None:
    """They are under the sum in the directory."""
    with open_source(container, "pread") as source:
        entry = next(e for e in read_index(source).directories[0].sections() if e.kind == 6 and e.field == 0)
    with open_source(damaged(container, tmp_path, entry.offset + -(-entry.nbytes // 8) * 8), "pread") as source:
        field = FieldIndex(read_index(source), 0)
        with pytest.raises(CorruptError, match="page sums of index section OFFSETS"):
            field.counts(np.array([0]))


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", NotAContainerError),
        (b"\x93NUMPY", NotAContainerError),
        (b"\x89CKS", TruncatedError),
        (b"\x89CKS\r\n\x1a\n" + bytes(5000), TruncatedError),
        (bytes(20_000), NotAContainerError),
        (b"\x89CKS\r\n\x1a\n\x01" + bytes(20_000), CorruptError),
    ],
)
def test_files_that_are_no_container(tmp_path: Path, data: bytes, error: type[Exception]) -> None:
    """Told apart from containers that were cut off."""
    (tmp_path / "a").write_bytes(data)
    with open_source(tmp_path / "a", "pread") as source, pytest.raises(error, match=str(tmp_path / "a")):
        read_index(source)


def test_keys_longer_than_the_limit_are_refused(container: Path) -> None:
    """A number beyond the limits has an error of its own."""
    assert issubclass(LimitError, ValueError)
    with open_source(container, "pread") as source:
        keys = read_index(source).keys
        assert keys is not None
        assert keys.find("x" * 70_000) == -1


def test_threads_prove_pages_into_the_same_memory(container: Path) -> None:
    """However their steps mix: the second to come takes what the first has made."""
    with open_source(container, "pread") as source:
        section = read_index(source).column(Kind.OFFSETS, 0, np.array([0, 15_001, 19_001]), "<i8")._parts[0]
        reserve, made = source.reserve, []

        def reserve_and_be_overtaken(nbytes: int) -> memoryview:
            if not made:
                made.append(True)
                section.ensure(0, 8)  # another thread, just now
            return reserve(nbytes)

        source.reserve = reserve_and_be_overtaken  # type: ignore[method-assign]
        section.ensure(65_536, 65_544)
        assert section.array("<i8")[4] == 0 + 1 + 2 + 3


def test_numbers_that_wrap_around_lead_nowhere(tmp_path: Path) -> None:
    """Offsets whose differences pass 2^63 are refused, by the fast path too."""
    path = tmp_path / "a.cks"
    with Writer(path, fields={"r": ("uint8", (None,))}) as writer:
        for n in range(4):
            writer.add({"r": np.full(1, n, np.uint8)})
    data = bytearray(path.read_bytes())
    with open_source(path, "pread") as source:
        entry = next(e for e in read_index(source).directories[0].sections() if e.kind == Kind.OFFSETS)
    data[entry.offset : entry.offset + 40] = np.array([0, 1, -(2**63), -(2**63) + 5, 4], "<i8").tobytes()
    repair(data)
    path.write_bytes(data)
    with open_source(path, "pread") as source:
        field = FieldIndex(read_index(source), 0)
        assert field.ragged_rows(np.array([0]))[2].tolist() == [1]
        for position in (1, 2, 3):
            with pytest.raises(CorruptError, match="field 'r'"):
                field.ragged_rows(np.array([position]))


def test_rows_times_bytes_beyond_64_bits_do_not_pass_for_none(tmp_path: Path) -> None:
    """2^15 rows of 2^49 bytes are 0 bytes modulo 2^64, and no empty block."""
    path = tmp_path / "a.cks"
    with Writer(path, fields={"x": ("uint8", (0, 2**40))}) as writer:
        writer.add_batch({"x": np.zeros((2**15, 0, 2**40), np.uint8)})
    data = bytearray(path.read_bytes())
    at = data.index(b"[0,%d]" % 2**40)
    data[at : at + 17] = b"[%d]" % 2**49
    repair(data)
    path.write_bytes(data)
    with open_source(path, "pread") as source, pytest.raises(CorruptError, match="as many bytes as its rows"):
        read_index(source)


def test_a_segment_without_shards_has_no_sums(tmp_path: Path) -> None:
    """Sums of groups that no shard has are refused, also where there is no shard that they could be held against."""
    path = tmp_path / "a.cks"
    with Writer(path) as writer:
        writer.add({"x": 1})
    with Writer(path, mode="a", attrs={"a": 1}):
        pass
    data = bytearray(path.read_bytes())
    with open_source(path, "pread") as source:
        newest = read_index(source).directories[-1]
    assert newest.num_shards == 0
    place = 64 + 32 * [entry.kind for entry in newest.sections()].index(Kind.CHUNK_SUMS)
    data[newest.offset + place + 16 : newest.offset + place + 24] = (8).to_bytes(8, "little")
    repair(data)
    path.write_bytes(data)
    with open_source(path, "pread") as source, pytest.raises(CorruptError, match="its groups do not fill CHUNK_SUMS"):
        read_index(source)


def test_a_bad_shard_of_a_later_segment_is_named(tmp_path: Path) -> None:
    """By its number in the container, and by its own segment."""
    path = tmp_path / "a.cks"
    for mode in ("x", "a"):
        with Writer(path, mode=mode, shard_nbytes=4096) as writer:  # type: ignore[arg-type]
            writer.add_batch({"x": np.zeros((3, 4096), np.uint8)})
    data = bytearray(path.read_bytes())
    with open_source(path, "pread") as source:
        index = read_index(source)
    newest = index.directories[-1]
    assert (newest.first_shard, newest.num_shards) == (3, 3)
    entry = next(entry for entry in newest.sections() if entry.kind == Kind.BLOCKS)
    data[entry.offset + 40 + 32 : entry.offset + 80] = (7).to_bytes(8, "little")  # `first_group` of its second shard
    repair(data)
    path.write_bytes(data)
    where = f"BLOCKS of the segment at {newest.offset}, shard 4: the groups"
    with open_source(path, "pread") as source, pytest.raises(CorruptError, match=where):
        read_index(source)


@pytest.mark.parametrize("number", [0, 1])
def test_what_a_lookup_will_read_is_known_before(container: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`unread` names the pages of the index that lookups then read; proven pages are not named again."""
    with open_source(container, "pread") as source:
        field = FieldIndex(read_index(source), number)
        found: set[int] = set()
        prove = Section._prove

        def note(section: Section, page: int) -> bytes:
            found.add(section._entry.offset + page * PAGE_NBYTES)
            return prove(section, page)

        monkeypatch.setattr(Section, "_prove", note)
        positions = np.array([14_900, 19_500, 0, 5, 15_001, 8_192])

        def rows(positions: np.ndarray) -> None:
            field.rows(positions)
            field.shapes(positions, field.counts(positions))

        for unread, lookup, asked in (
            (field.unread, rows, positions),
            (field.unread_sums, field.group_sums, field.group_ids(positions)),
        ):
            pages = set(unread(asked)[0].tolist())
            found.clear()
            lookup(asked)
            assert pages
            assert pages == found
            assert not unread(asked)[0].size
