"""What a reader does with damaged bytes: the right error for what is damaged, right values for the rest."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from damaged import Damaged, repair
from hypothesis import given, settings

import chunkstore
from chunkstore import CorruptError, Reader, Writer

N = 40
SMALL = np.random.default_rng(4).integers(0, 256, (N, 600), dtype=np.uint8)
LARGE = np.random.default_rng(5).integers(0, 256, (N, 5000), dtype=np.uint8)
TEXTS = [f"text {place}" * (place % 4) for place in range(N)]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that share checksums (small), rows that have their own (large), texts, keys."""
    path = tmp_path_factory.mktemp("damage") / "sound.cks"
    fields = {"small": ("uint8", (600,)), "large": ("uint8", (5000,)), "text": "string"}
    with Writer(path, fields=fields) as writer:
        for place in range(N):
            sample = {"small": SMALL[place], "large": LARGE[place], "text": TEXTS[place]}
            writer.add(sample, key=f"k{place}")
    return path


@pytest.fixture(params=["mmap", "pread"])
def backend(request: pytest.FixtureRequest) -> Any:
    return request.param


def damaged(sound: Path, target: Path, needle: bytes, at: int = 0) -> Path:
    """A copy with one bit flipped, `at` bytes behind the place where `needle` stands."""
    data = bytearray(sound.read_bytes())
    place = bytes(data).index(needle) + at
    data[place] ^= 1
    target.write_bytes(data)
    return target


WAYS: dict[str, Callable[[Reader, list[int], str], Any]] = {
    "one": lambda ds, positions, name: [ds[place][name] for place in positions],
    "batch": lambda ds, positions, name: ds.batch(positions, fields=[name])[name],
    "slice": lambda ds, positions, name: ds[min(positions) : max(positions) + 1][name],
    "run": lambda ds, positions, name: ds.batch(range(min(positions), max(positions) + 1), fields=[name])[name],
    "prove": lambda ds, positions, name: ds._prove(name, np.array(positions)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("verify", ["once", "always"])
@pytest.mark.parametrize(("name", "rows", "shared"), [("small", SMALL, True), ("large", LARGE, False)])
def test_one_flipped_bit(
    sound: Path, tmp_path: Path, backend: Any, verify: Any, way: str, name: str, rows: Any, shared: bool
) -> None:
    """CorruptError with all that one needs to know, again each time; other samples stay readable."""
    path = damaged(sound, tmp_path / "bad.cks", rows[17].tobytes(), 99)
    with chunkstore.open(path, backend=backend, verify=verify, fields=[name]) as ds:
        for _ in range(2):
            with pytest.raises(CorruptError) as caught:
                WAYS[way](ds, [16, 17, 18] if way in ("slice", "run") else [30, 17], name)
            message = str(caught.value)
            assert message.startswith(f"{path}: sample 1")
            found = re.search(
                r"sample (\d+) 'k(\d+)', shard 0, field '(\w+)', bytes \[(\d+), (\d+)\)(.*): stored xxh3 (\w{16}), "
                r"computed (\w{16})\. Run `chunkstore verify .*bad\.cks`\.",
                message,
            )
            assert found
            start, stop = int(found[4]), int(found[5])
            assert start <= sound.read_bytes().index(rows[17].tobytes()) < stop
            assert ("share the checksum" in found[6]) == shared
            assert shared or found[1] == found[2] == "17"
        assert np.array_equal(ds[3][name], rows[3])
        assert np.array_equal(ds.batch([1, 35])[name], rows[[1, 35]])
        with pytest.raises(CorruptError, match=f"field {name!r}"):
            ds.column(name)


def test_off_does_not_look(sound: Path, tmp_path: Path, backend: Any) -> None:
    """`verify="off"` hands out what is there."""
    path = damaged(sound, tmp_path / "bad.cks", LARGE[17].tobytes())
    with chunkstore.open(path, backend=backend, verify="off") as ds:
        assert (ds[17]["large"] != LARGE[17]).sum() == 1
        assert (ds.column("large") != LARGE).sum() == 1  # type: ignore[union-attr]


def test_other_fields_stay_readable(sound: Path, tmp_path: Path, backend: Any) -> None:
    """Damage in one field of a sample does not hide the others."""
    path = damaged(sound, tmp_path / "bad.cks", LARGE[17].tobytes())
    with chunkstore.open(path, backend=backend) as ds:
        assert np.array_equal(ds.batch([17], fields=["small"])["small"], SMALL[[17]])
        with pytest.raises(CorruptError, match="'large'"):
            ds[17]


def test_once_looks_once(sound: Path, tmp_path: Path, backend: Any) -> None:
    """With "once" a proven chunk is not looked at again; with "always" it is."""
    for verify, fails in (("once", False), ("always", True)):
        path = tmp_path / f"{verify}.cks"
        path.write_bytes(sound.read_bytes())
        with chunkstore.open(path, backend=backend, verify=verify, fields=["large"]) as ds:  # type: ignore[arg-type]
            assert np.array_equal(ds.batch([17, 3])["large"], LARGE[[17, 3]])
            with open(path, "r+b") as file:
                file.seek(sound.read_bytes().index(LARGE[17].tobytes()))
                file.write(bytes([LARGE[17, 0] ^ 1]))
            if fails:
                with pytest.raises(CorruptError):
                    ds.batch([17, 3])
            else:
                assert ds.batch([17, 3])["large"][0, 0] == LARGE[17, 0] ^ 1  # type: ignore[index]


def test_everything_becomes_proven(sound: Path, backend: Any) -> None:
    """After all rows were read, in whatever way, nothing is left to check."""
    for read in (
        lambda ds: ds[:],
        lambda ds: [ds[place] for place in range(N)],
        lambda ds: ds.batch(np.random.default_rng(0).permutation(N)),
        lambda ds: [ds[place : place + 7] for place in range(0, N, 7)],
        lambda ds: [ds.column(name) for name in ds.fields],
        lambda ds: [ds.batch([place, place]) for place in range(N)],
    ):
        with chunkstore.open(sound, backend=backend) as ds:
            read(ds)
            assert [rows.checker.done for rows in ds._opened.rows.values()] == [True] * 3


def test_what_is_proven_is_read_without_a_look(sound: Path, backend: Any) -> None:
    """Once a field is proven as a whole, its samples come from what `verify="off"` reads by, and are the same."""
    with chunkstore.open(sound, backend=backend) as ds, chunkstore.open(sound, backend=backend, verify="off") as plain:
        before = [ds[place] for place in range(N)]
        assert [get.__qualname__ for _, get in ds._opened.getters] == [
            get.__qualname__ for _, get in plain._opened.getters
        ]
        for place in range(N):
            for name, row in plain[place].items():
                assert np.array_equal(ds[place][name], row)
                assert np.array_equal(before[place][name], row)


@pytest.mark.parametrize("needle", [None, SMALL[33].tobytes()])
def test_the_rest_of_a_block_is_proven_with_it(sound: Path, tmp_path: Path, backend: Any, needle: bytes | None) -> None:
    """Once data in memory turn out to be wanted, whole blocks of small groups are; damage concerns who reads it."""
    path = damaged(sound, tmp_path / "copy.cks", needle) if needle else sound
    with chunkstore.open(path, backend=backend, fields=["small"]) as ds:
        checker: Any = ds._opened.field("small").checker
        ds._opened.hints.cold = False
        assert np.array_equal(ds.batch([20, 1, 9])["small"], SMALL[[20, 1, 9]])
        assert checker.done == (needle is None)
        assert checker.flags.sum() == (3 if needle else len(checker.flags))
        if needle:
            with pytest.raises(CorruptError, match="sample 33 'k33'"):
                ds.batch([4, 33])
            assert np.array_equal(ds.batch([4, 12])["small"], SMALL[[4, 12]])


def test_cold_blocks_are_not_read_for_a_few_rows(sound: Path, backend: Any) -> None:
    """While data come from the disk, and with "always", only groups that were asked for are proven."""
    modes: tuple[Any, ...] = ("once", "always")
    for verify in modes:
        with chunkstore.open(sound, backend=backend, verify=verify, fields=["small"]) as ds:
            checker: Any = ds._opened.field("small").checker
            ds._opened.hints.cold = verify == "once"
            ds._prove("small", np.array([20, 1, 9]))
            assert not checker.done
            assert checker.flags is None or checker.flags.sum() == 3


def test_large_blocks_are_not_read_for_a_few_rows(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of a shard is its writer's choice: a batch does not wait until gigabytes are read."""
    monkeypatch.setattr("chunkstore._read.checked._AROUND_NBYTES", 4095)
    with chunkstore.open(sound, fields=["small"]) as ds:
        checker: Any = ds._opened.field("small").checker
        ds._opened.hints.cold = False
        ds.batch([20, 1, 9])
        assert checker.index.block_nbytes.min() > 4095
        assert not checker.done


def test_what_proves_a_block_ahead_cannot_fail(sound: Path, backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that cannot read another part of the block concerns nobody who has not asked for it."""

    with chunkstore.open(sound, backend=backend, fields=["small"]) as ds:
        ds._opened.hints.cold = False
        plain = ds._source.read_into

        def broken(offset: int, buffer: Any) -> None:
            if len(buffer) > 10_000:
                raise OSError(5, "the disk cannot read this")
            plain(offset, buffer)

        monkeypatch.setattr(ds._source, "read_into", broken)
        assert np.array_equal(ds.batch([20, 1, 9])["small"], SMALL[[20, 1, 9]])
        assert not ds._opened.field("small").checker.done  # type: ignore[attr-defined]


def test_text_that_is_not_utf8(tmp_path: Path, backend: Any) -> None:
    """Found where it is decoded."""
    path = tmp_path / "a.cks"
    with Writer(path, fields={"t": "string"}) as writer:
        writer.add({"t": "abc"})
    data = path.read_bytes().replace(b"abc", b"a\xffc")
    path.write_bytes(data)
    with (
        chunkstore.open(path, backend=backend, verify="off") as ds,
        pytest.raises(CorruptError, match="sample 0, field 't': the text is not UTF-8"),
    ):
        ds[0]


def read_everything(path: Path, backend: Any, verify: Any = "once") -> None:
    """Each read is right or an error of ours."""
    try:
        ds = chunkstore.open(path, backend=backend, verify=verify)
    except chunkstore.FormatError:
        return
    with ds:
        for use in (
            lambda: ds.attrs,
            lambda: list(ds.keys or ()),
            lambda: ds.find(["k3"]),
            lambda: [ds.column(name) for name in ds.fields],
            lambda: ds[:],
            lambda: ds.batch([N - 1, 5, 5]),
            *(lambda place=place: ds[place] for place in range(0, N, 3)),
        ):
            try:
                use()
            except (chunkstore.FormatError, chunkstore.SampleNotFoundError, IndexError):
                continue
    if verify != "off":
        check_values(path, backend)


def check_values(path: Path, backend: Any) -> None:
    with chunkstore.open(path, backend=backend) as ds:
        for place in range(min(N, len(ds))):
            try:
                sample = ds[place]
            except chunkstore.FormatError:
                continue
            assert np.array_equal(sample["small"], SMALL[place])
            assert np.array_equal(sample["large"], LARGE[place])
            assert sample["text"] == TEXTS[place]


@settings(max_examples=60)
@given(bit=st.integers(0, 2**63), backend=st.sampled_from(["mmap", "pread"]), index_only=st.booleans())
def test_any_flipped_bit(sound: Path, tmp_path_factory: Any, bit: int, backend: Any, index_only: bool) -> None:
    """Anywhere in the file; in half of the tries in the index, which lies behind the data here."""
    data = bytearray(sound.read_bytes())
    first = data.index(b"CKS-INDX") if index_only else 0
    place = first + bit // 8 % (len(data) - first)
    data[place] ^= 1 << bit % 8
    path = tmp_path_factory.getbasetemp() / "flipped.cks"
    path.write_bytes(data)
    read_everything(path, backend)


@settings(max_examples=30)
@given(nbytes=st.integers(0, 300_000), backend=st.sampled_from(["mmap", "pread"]))
def test_any_truncation(sound: Path, tmp_path_factory: Any, nbytes: int, backend: Any) -> None:
    """A file that was cut off is refused when it is opened."""
    data = sound.read_bytes()
    path = tmp_path_factory.getbasetemp() / "cut.cks"
    path.write_bytes(data[: min(nbytes, len(data) - 1)])
    with pytest.raises((chunkstore.TruncatedError, chunkstore.NotAContainerError)):
        chunkstore.open(path, backend=backend)


VECTORS = sorted((Path(__file__).resolve().parent.parent / "spec" / "vectors" / "invalid").glob("*.cks"))


@pytest.mark.parametrize("verify", ["once", "off"])
def test_hostile_vectors_take_no_memory(backend: Any, verify: Any) -> None:
    """Whatever the bytes say, with right checksums: only our errors, and no large allocation."""
    for path in VECTORS:
        nbytes = path.stat().st_size
        tracemalloc.start()
        try:
            read_hostile(path, backend, verify)
            assert tracemalloc.get_traced_memory()[1] < 4 * nbytes + (1 << 20), path.name
        finally:
            tracemalloc.stop()


def read_hostile(path: Path, backend: Any, verify: Any) -> None:
    try:
        ds = chunkstore.open(path, backend=backend, verify=verify)
    except chunkstore.FormatError:
        return
    with ds:
        count = min(len(ds), 50)
        for name in ds.fields:
            for use in (
                lambda name=name: ds.batch([*range(count), 0][::-1], fields=[name]),
                lambda name=name: ds.batch(range(count), fields=[name]),
                lambda name=name: ds.column(name),
                lambda: [ds[place] for place in range(count)],
                lambda: next(iter(ds), None),
            ):
                try:
                    use()
                except (chunkstore.FormatError, IndexError):
                    continue


def test_a_group_that_ends_before_it_begins(tmp_path: Path, backend: Any) -> None:
    """Offsets with right checksums, and each row in its block: samples of that group are refused, and lost."""
    path = tmp_path / "a.cks"
    with Writer(path, fields={"x": ("uint8", (None,))}) as writer:
        for number in range(20):
            writer.add({"x": np.full(1000, number, np.uint8)})
    place, _ = Damaged(path).place("OFFSETS", "x")
    data = bytearray(path.read_bytes())
    data[place + 8 * 5 : place + 8 * 7] = 2 * (20_000).to_bytes(8, "little")  # five rows have one checksum
    repair(data)
    path.write_bytes(data)
    with chunkstore.open(path, backend=backend) as ds:
        for use in (lambda: ds[5], lambda: ds[8], lambda: ds.batch([8, 5]), lambda: ds.batch([5, 8])):
            with pytest.raises(CorruptError, match="sample 5, field 'x': the offsets from here"):
                use()
        assert ds[12]["x"].tolist() == [12] * 1000
    assert chunkstore.recover(path, tmp_path / "saved.cks").num_saved == 10


def test_shapes_that_do_not_fit_come_before_a_limit(tmp_path: Path) -> None:
    """A row of which OFFSETS claim 2^62 items, and SHAPES six, is corrupt, and not beyond a limit (section 14)."""
    container = Damaged(tmp_path / "a.cks")
    field = chunkstore.Field("r", "int16", (None, None), "zlib")
    with Writer(container.path, fields={"r": field}) as writer:
        for _ in range(3):
            writer.add({"r": np.ones((2, 3), np.int16)})
    data = bytearray(container.path.read_bytes())
    start, _ = container.place("OFFSETS", "r")
    data[start + 24 : start + 32] = (2**62 + 12).to_bytes(8, "little")
    repair(data)
    container.write(data)
    with chunkstore.open(container.path) as ds, pytest.raises(CorruptError, match="does not fit"):
        _ = ds[2]


def test_a_block_that_ends_beyond_64_bits(tmp_path: Path) -> None:
    """Where it ends wraps around to a place in the file; rows that differ in length have no length to be held to."""
    container = Damaged(tmp_path / "a.cks").build(5, names=["text"])
    place, _ = container.place("BLOCKS")
    data = bytearray(container.good)
    data[place + 8 : place + 16] = (2**64 - 4096).to_bytes(8, "little")
    repair(data)
    container.write(data)
    with pytest.raises(CorruptError, match=r"18446744073709547520 bytes at .* does not lie in"):
        chunkstore.open(container.path)
