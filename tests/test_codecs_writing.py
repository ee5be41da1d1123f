"""Fields behind a codec: written, appended, merged, repacked, recovered; every row comes back."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chunkstore
from chunkstore import Field, Writer
from chunkstore._format.field_index import FieldIndex
from chunkstore._write.target import AppendTarget

pytest.importorskip("blosc2")

CODECS = [
    "zlib",
    "zlib:9",
    "zstd",
    "zstd:-1",
    "zstd:19,dict",
    "blosc2",
    "blosc2:lz4,9,bitshuffle",
    "blosc2:zlib,nofilter",
]
MIXED = {"image": "zstd:5", "pose": "blosc2:lz4,bitshuffle", "text": "zstd:3,dict", "wide": "zlib"}


def make_samples(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Samples of all kinds of fields; some rows are empty."""
    rng = np.random.default_rng(seed)
    return [
        {
            "image": np.cumsum(rng.integers(-2, 3, (12, 13)), axis=1).astype(np.uint8),
            "pose": rng.normal(size=(i % 5, 3)).astype(np.float32),
            "wide": rng.integers(0, 9, (i % 3, 2, i % 4)).astype("<i8"),
            "text": f"sample {i} of many, which have words in common; " * (i % 4),
            "stamp": np.datetime64(i * 1000, "ms"),
            "nothing": np.zeros((0, 4), np.int16),
        }
        for i in range(count)
    ]


FIELDS = {
    "image": ("uint8", (12, 13)),
    "pose": ("float32", (None, 3)),
    "wide": ("int64", (None, 2, None)),
    "text": "string",
    "stamp": "datetime64[ms]",
    "nothing": ("int16", (0, 4)),
}


def write(path: Path, samples: list[dict[str, Any]], **options: Any) -> Path:
    """A container of some shards, verified down to the last decoded row."""
    with Writer(path, fields=FIELDS, shard_nbytes=options.pop("shard_nbytes", 16_000), **options) as writer:
        for i, sample in enumerate(samples):
            writer.add(sample, key=f"key {i}")
    check(path, samples)
    return path


def check(path: Path, samples: list[dict[str, Any]]) -> None:
    """Every row of every sample, by all ways of reading; and all bytes are under their sums."""
    report = chunkstore.verify(path, deep=True)
    assert report.ok, report.damage
    for backend in ("mmap", "pread"):
        with chunkstore.open(path, backend=backend) as ds:  # type: ignore[arg-type]
            assert len(ds) == len(samples)
            positions = np.random.default_rng(1).integers(0, len(samples), 40)
            batch, run = ds.batch(positions), ds[3:17]
            for name in ds.fields:
                for i, sample in enumerate(samples):
                    assert equal(ds[i][name], sample[name])
                column = ds.column(name)
                assert all(equal(column[i], samples[i][name]) for i in range(len(samples)))
                assert all(equal(batch[name][i], samples[p][name]) for i, p in enumerate(positions.tolist()))
                assert all(equal(run[name][i], samples[3 + i][name]) for i in range(14))


def equal(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, str):
        return bool(found == wanted)
    return found.dtype == wanted.dtype and found.shape == wanted.shape and bool(np.array_equal(found, wanted))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("num_samples", [None, 60])
def test_round_trip(tmp_path: Path, codec: str, num_samples: int | None) -> None:
    """Every codec on every kind of field; short rows of a fixed size stay raw, and so does what has no bytes."""
    path = write(tmp_path / "a.cks", make_samples(60), codec=codec, num_samples=num_samples)
    with chunkstore.open(path) as ds:
        name = codec.partition(":")[0]
        found = {field.name: field.codec for field in ds.fields.values()}
        assert found == dict.fromkeys(FIELDS, name) | {"stamp": "raw", "nothing": "raw"}


@pytest.mark.parametrize("dtype", ["bool", "complex128", "bytes[300]", "utf32[3]", "float16", "int64"])
@pytest.mark.parametrize("codec", ["zstd", "blosc2", "blosc2:bitshuffle"])
def test_dtypes_and_tiny_rows(tmp_path: Path, dtype: str, codec: str) -> None:
    """A codec that is asked for by name is used for rows of any size, down to one element, and for odd widths."""
    field = Field("x", dtype, (3,), codec.partition(":")[0])
    rows = np.frombuffer(np.random.default_rng(0).bytes(50 * 3 * field.numpy_dtype.itemsize), np.uint8) % 2
    rows = rows.view(field.numpy_dtype).reshape(50, 3)
    for fields, values in (([field], rows), ([Field("x", dtype, (), field.codec)], rows[:, 0])):
        with Writer(tmp_path / "a.cks", mode="w", fields=fields, codec={"x": codec}) as writer:
            writer.add_batch({"x": values})
        with chunkstore.open(tmp_path / "a.cks") as ds:
            assert np.array_equal(ds.column("x"), values)
        assert chunkstore.verify(tmp_path / "a.cks", deep=True).ok


def test_known_number_of_samples_makes_one_piece_of_each_field(tmp_path: Path) -> None:
    """Fields whose chunks come late lie behind the others, each in one extent."""
    path = write(tmp_path / "a.cks", make_samples(60), codec=MIXED, num_samples=60)
    with chunkstore.open(path) as ds:
        coded = [n for n, field in enumerate(ds.fields.values()) if field.codec != "raw"]
        assert {n: len(FieldIndex(ds._index, n).extents()) for n in coded} == dict.fromkeys(coded, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["a.cks"]


def test_same_bytes_for_any_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large shards are encoded in threads, small ones are not; the chunks are the same."""
    rng = np.random.default_rng(0)
    rows = np.cumsum(rng.integers(-2, 3, (900, 20_000), dtype=np.int8), axis=1, dtype=np.int8)
    paths = []
    for threads in (1, 3):
        monkeypatch.setattr("chunkstore._storage.platform.num_processors", lambda threads=threads: threads)
        for codec in ("zstd", "blosc2", "zstd:1,dict"):
            paths.append(tmp_path / f"{codec}-{threads}.cks")
            with Writer(paths[-1], codec=codec, shard_nbytes=6 << 20) as writer:
                writer.add_batch({"x": rows})
    for one, three in zip(paths[:3], paths[3:], strict=True):
        assert one.read_bytes() == three.read_bytes()
        assert one.stat().st_size < 0.95 * rows.nbytes
    assert not [t for t in threading.enumerate() if t.name.startswith("chunkstore-writer")]


def test_append_goes_on_with_codec_and_dictionary(tmp_path: Path) -> None:
    """Nothing need be said again; other options of the same codec may be, another codec may not."""
    samples = make_samples(90)
    path = write(tmp_path / "a.cks", samples[:60], codec=MIXED)
    with chunkstore.open(path) as ds:
        before = [ds._index.dictionary(n) for n in range(len(FIELDS))]
    with Writer(path, mode="a", fields=FIELDS) as writer:
        for i in range(60, 75):
            writer.add(samples[i], key=f"key {i}")
        writer.commit()
        for i in range(75, 80):
            writer.add(samples[i], key=f"key {i}")
    with Writer(path, mode="a", codec={"image": "zstd:9"}) as writer:
        for i in range(80, 90):
            writer.add(samples[i], key=f"key {i}")
    check(path, samples)
    with chunkstore.open(path) as ds:
        assert [ds._index.dictionary(n) for n in range(len(FIELDS))] == before
        assert before[3]
    with pytest.raises(chunkstore.SchemaError, match=r"'image'.*'zlib:6' was asked for.*has 'zstd'.*repack --codec"):
        Writer(path, mode="a", codec={"image": "zlib"})


@pytest.mark.parametrize("dictionary", [{}, {3: b"another dictionary"}])
def test_verify_sees_segments_with_other_dictionaries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dictionary: dict[int, bytes]
) -> None:
    """A writer that forgets it in a later segment: readers take the newest for all, so earlier rows are lost."""
    path, commit = write(tmp_path / "a.cks", make_samples(200), codec=MIXED), AppendTarget.commit

    def forget(self: AppendTarget, index: Any, tail: int) -> None:
        index.dictionaries = dictionary
        commit(self, index, tail)

    monkeypatch.setattr(AppendTarget, "commit", forget)
    with Writer(path, mode="a") as writer:
        writer.add(make_samples(1)[0], key="one more")
    assert "DICTIONARY of field 'text'" in str(chunkstore.verify(path).damage[0])


def test_append_to_an_empty_container_trains_its_dictionary(tmp_path: Path) -> None:
    """A container without samples has its codecs, and no dictionary yet."""
    path = tmp_path / "a.cks"
    Writer(path, fields={"t": "string"}, codec="zstd:3,dict").__exit__(None, None, None)
    texts = [f"the same words again and again, {i}, and some more of them" for i in range(400)]
    with Writer(path, mode="a", codec="zstd:3,dict") as writer:
        writer.add_batch({"t": texts})
    with chunkstore.open(path) as ds:
        assert ds._index.dictionary(0)
        assert ds.column("t").tolist() == texts  # type: ignore[union-attr]
    assert chunkstore.verify(path, deep=True).ok


def test_a_dictionary_pays_for_small_rows(tmp_path: Path) -> None:
    """Rows of a few dozen bytes that are alike: half the bytes and less."""
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(60)]
    texts = [" ".join(rng.choice(words, 12)) for _ in range(3000)]
    sizes = {}
    for codec in ("zstd", "zstd:3,dict"):
        with Writer(tmp_path / "a.cks", mode="w", fields={"t": "string"}, codec=codec) as writer:
            writer.add_batch({"t": texts})
        with chunkstore.open(tmp_path / "a.cks") as ds:
            sizes[codec] = int(ds._index.blocks["nbytes"].sum())
            assert ds.batch([7, 2999])["t"].tolist() == [texts[7], texts[2999]]  # type: ignore[union-attr]
    assert sizes["zstd:3,dict"] < 0.6 * sizes["zstd"]


def test_merge_copies_chunks(tmp_path: Path) -> None:
    """Equal codecs and dictionaries: as stored. Others are refused, with the two named."""
    samples = make_samples(80)
    whole = write(tmp_path / "all.cks", samples, codec=MIXED)
    chunkstore.repack(whole, tmp_path / "1.cks", positions=range(30))
    chunkstore.repack(whole, tmp_path / "2.cks", positions=range(30, 80))
    chunkstore.merge([tmp_path / "1.cks", tmp_path / "2.cks"], tmp_path / "m.cks")
    check(tmp_path / "m.cks", samples)
    write(tmp_path / "other.cks", samples[:20], codec="zlib")
    with pytest.raises(chunkstore.SchemaError, match=r"different fields.*codec='zlib'.*codec='zstd'.*repack --codec"):
        chunkstore.merge([whole, tmp_path / "other.cks"], tmp_path / "no.cks")


def test_merge_with_containers_that_have_no_dictionary_yet(tmp_path: Path) -> None:
    """Those without samples fit any; two different dictionaries do not fit, and the message says what to do."""
    samples = make_samples(300)
    filled = write(tmp_path / "filled.cks", samples, codec=MIXED)
    empty = tmp_path / "empty.cks"
    Writer(empty, fields=FIELDS, codec=MIXED).commit()
    for place, paths in enumerate([(empty, filled), (filled, empty), (empty, filled, empty)]):
        chunkstore.merge(paths, tmp_path / f"{place}.cks")
        check(tmp_path / f"{place}.cks", samples)
    with Writer(tmp_path / "other.cks", fields=FIELDS, codec=MIXED) as writer:
        for i, sample in enumerate(make_samples(200)):
            writer.add({**sample, "text": f"other words, {i} of them; " * 9}, key=f"other {i}")
    with pytest.raises(chunkstore.SchemaError, match=r"different codec dictionaries.*repack --codec"):
        chunkstore.merge([empty, filled, tmp_path / "other.cks"], tmp_path / "no.cks")


class _FullDisk:
    """A file that takes no byte; of its unwritten ones it says so when it is flushed, as the system's do."""

    def __init__(self, **_: Any) -> None:
        self.file = open("/dev/full", "w+b")  # noqa: SIM115 - closed by close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("rows", [5, 2000])
def test_no_room_for_chunks_that_come_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """One error, of ours, whether the chunks were few or many; nothing is published or left."""
    fields = {"a": ("uint8", (100,)), "b": ("uint8", (100,))}
    monkeypatch.setattr("chunkstore._write.late.tempfile.TemporaryFile", _FullDisk)
    rng = np.random.default_rng(0)
    with (
        pytest.raises(chunkstore.WriteError, match="no room"),
        Writer(tmp_path / "a.cks", fields=fields, codec="zlib", num_samples=rows) as writer,
    ):
        for _ in range(rows):
            writer.add({name: rng.integers(0, 256, 100, np.uint8) for name in fields})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("codec", [None, "raw", "zstd:1", MIXED, {"image": "raw", "stamp": "zlib"}])
def test_repack_changes_codecs(tmp_path: Path, codec: Any) -> None:
    """Named fields get another codec, the others keep theirs and their dictionary; every field is one extent."""
    samples = make_samples(60)
    before = write(tmp_path / "a.cks", samples, codec={"image": "blosc2", "text": "zstd:3,dict", "pose": "zlib"})
    chunkstore.repack(before, tmp_path / "b.cks", codec=codec, shard_nbytes=9000)
    check(tmp_path / "b.cks", samples)
    with chunkstore.open(before) as old, chunkstore.open(tmp_path / "b.cks") as new:
        if codec is None:
            assert dict(old.fields) == dict(new.fields)
            assert old._index.dictionary(3) == new._index.dictionary(3) != b""
        elif isinstance(codec, dict):
            assert all(new.fields[name].codec == text.partition(":")[0] for name, text in codec.items())
        assert all(len(FieldIndex(new._index, n).extents()) == 1 for n in range(len(FIELDS)))


def test_recover_keeps_codecs(tmp_path: Path) -> None:
    """A flipped bit costs the samples of its group; all others are saved, with the codecs that they had."""
    samples = make_samples(60)
    path = write(tmp_path / "a.cks", samples, codec=MIXED)
    with chunkstore.open(path) as ds:
        fields = dict(ds.fields)
        offset = int(ds._index.blocks["offset"][1, 0])
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    report = chunkstore.recover(path, tmp_path / "b.cks")
    assert 0 < report.num_lost < 40
    lost = {i for run in report.lost for i in range(run.start, run.stop)}
    check(tmp_path / "b.cks", [sample for i, sample in enumerate(samples) if i not in lost])
    with chunkstore.open(tmp_path / "b.cks") as ds:
        assert dict(ds.fields) == fields


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        ("lz4", "expected raw, zlib"),
        ("zstd:23", "no level from -7 to 22"),
        ("zstd:5,shuffle", "no option of zstd"),
        ("blosc2:snappy", "no codec or filter, and no level from 0 to 9"),
        ("blosc2:shuffle,lz4", "'shuffle,lz4' is no codec or filter"),
        ("blosc2:lz4,9,noshuffle", "'9,noshuffle' is no codec or filter, and no level"),
        ("auto", "only convert tries a sample; expected raw"),
        (["image=zstd", "image=zlib"], "each field once"),
        (["zstd", "zlib"], "can be given once"),
        ({"x": "zstd"}, "there is no field 'x'; the fields are 'image'"),
    ],
)
def test_wrong_codecs(tmp_path: Path, codec: Any, message: str) -> None:
    """The message says what is wrong and what is allowed; nothing is written."""
    with pytest.raises(ValueError, match=message):
        Writer(tmp_path / "a.cks", fields=FIELDS, codec=codec)
    assert not list(tmp_path.iterdir())


def test_fields_name_codecs_without_options(tmp_path: Path) -> None:
    """The schema has no place for a level, so a `Field` has none either."""
    for codec, message in (("zstd:5", "options go into codec="), ("brotli", "expected raw")):
        with pytest.raises(chunkstore.SchemaError, match=message):
            Writer(tmp_path / "a.cks", fields=[Field("x", "int8", (9,), codec)])
    with pytest.raises(chunkstore.SchemaError, match="'zlib:6' was asked for, and the field has 'zstd'"):
        Writer(tmp_path / "a.cks", fields=[Field("x", "int8", (9,), "zstd")], codec={"x": "zlib"})


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where neither package is installed."""
    for name in ("zstandard", "blosc2"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("codec", ["zstd", "blosc2"])
def test_writing_without_the_package(tmp_path: Path, codec: str, no_packages: None) -> None:
    """Said at once, with the line that installs it; zlib needs none."""
    with pytest.raises(chunkstore.MissingExtraError, match=r"pip install 'chunkstore-arrays\[codecs\]'"):
        Writer(tmp_path / "a.cks", fields=FIELDS, codec=codec)
    write(tmp_path / "a.cks", make_samples(20), codec="zlib")


@pytest.mark.parametrize("codec", ["zstd", "zstd:3,dict", "blosc2"])
def test_reading_without_the_package(tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening works, other fields are readable, and the error of this one has the line that installs it."""
    path = write(tmp_path / "a.cks", make_samples(60), codec={"image": codec, "text": "zlib"})
    for name in ("zstandard", "blosc2"):
        monkeypatch.setitem(sys.modules, name, None)
    with chunkstore.open(path) as ds:
        assert ds.batch([4, 3], fields=["pose", "text"])["pose"][0].shape == (4, 3)
        for use in (lambda: ds[0], lambda: ds[:4], lambda: ds.batch([1, 5, 2]), lambda: ds.column("image")):
            with pytest.raises(
                chunkstore.MissingExtraError, match=r"a\.cks: field 'image': .*pip install 'chunkstore-arrays"
            ):
                use()
    with chunkstore.open(path, fields=["text"]) as ds:
        assert ds[1]["text"].startswith("sample 1 of many, which")
