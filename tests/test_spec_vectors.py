"""Every vector of the specification, through the plain decoder and through the package with both back ends.

The containers are built by tools/make_vectors.py, with those variants of which the repository holds no file.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "spec")]  # neither is a package

import make_vectors  # noqa: E402
import read_chunkstore  # noqa: E402
import verify_chunkstore  # noqa: E402
from _vectors import builder, valid  # noqa: E402

FILES = make_vectors.build(variants=True)
VALID = sorted(Path(path).stem for path in FILES if path.startswith("valid/") and path.endswith(".cks"))
INVALID = sorted(Path(path).stem for path in FILES if path.startswith("invalid/") and path.endswith(".cks"))
BACKENDS = ("mmap", "pread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All vectors as files."""
    path = tmp_path_factory.mktemp("vectors")
    make_vectors.write(FILES, path)
    return path


def expectation(folder: Path, kind: str, name: str) -> dict[str, Any]:
    """Return what stands beside a container, after a check of its sha256."""
    if kind == "valid":
        expected = json.loads((folder / kind / f"{name}.json").read_text("utf-8"))
    else:
        lines = (folder / kind / f"{name}.txt").read_text("utf-8").splitlines()
        expected = dict(line.split(": ", 1) for line in lines)
    data = (folder / kind / f"{name}.cks").read_bytes()
    assert hashlib.sha256(data).hexdigest() == expected["sha256"]
    if "zstd" in name or "dictionary" in name:
        pytest.importorskip("zstandard")
    return expected


def digest(rows: Iterable[Any]) -> str:
    """Return the SHA-256 of rows in canonical form (spec/vectors/README.md)."""
    total = hashlib.sha256()
    for row in rows:
        raw = row.encode() if isinstance(row, str) else np.asarray(row).tobytes()
        dims = () if isinstance(row, str) else np.shape(row)
        total.update(struct.pack(f"<{len(dims) + 2}Q", len(dims), *dims, len(raw)) + raw)
    return total.hexdigest()


class Decoder:
    """The plain decoder, with the face that the tests need."""

    def __init__(self, path: Path) -> None:
        self.container = read_chunkstore.Container(path)
        self.names = self.container.names
        self.num_samples = self.container.num_samples
        self.generation = self.container.generation
        self.fingerprint = self.container.fingerprint

    def rows(self, name: str) -> Iterable[Any]:
        return self.container.rows(name)

    def keys(self) -> list[str] | None:
        return self.container.keys() if self.container.has_keys else None

    def find(self, key: str) -> int | None:
        return self.container.find(key)

    def attrs(self) -> dict[str, Any]:
        return self.container.attrs()

    @staticmethod
    def verify(path: Path) -> list[str]:
        return list(verify_chunkstore.verify(read_chunkstore.Container(path)))


class Package:
    """The package with one back end, with the same face."""

    backend = ""

    def __init__(self, path: Path) -> None:
        import chunkstore

        if not hasattr(chunkstore, "open"):
            pytest.skip("this checkout has no reader yet")
        self.path = path
        with chunkstore.open(path, backend=self.backend) as reader:
            self.names = list(reader.fields)
            self.num_samples = len(reader)
            self.generation = reader.generation
            self.fingerprint = reader.fingerprint

    def open(self, **options: Any) -> Any:
        import chunkstore

        return chunkstore.open(self.path, backend=self.backend, **options)

    def rows(self, name: str) -> Iterable[Any]:
        with self.open(fields=[name]) as reader:
            for i in range(len(reader)):
                yield reader[i][name]

    def keys(self) -> list[str] | None:
        with self.open() as reader:
            return None if reader.keys is None else list(reader.keys)

    def find(self, key: str) -> int | None:
        import chunkstore

        with self.open() as reader:
            try:
                return int(reader.find([key])[0])
            except chunkstore.SampleNotFoundError:
                return None

    def attrs(self) -> dict[str, Any]:
        with self.open() as reader:
            return dict(reader.attrs)

    @staticmethod
    def verify(path: Path) -> list[str]:
        import chunkstore

        if not hasattr(chunkstore, "verify"):
            pytest.skip("this checkout has no verifier yet")
        return [str(damage) for damage in chunkstore.verify(path).damage]


class PackageMmap(Package):
    backend = "mmap"


class PackagePread(Package):
    backend = "pread"


@pytest.fixture(params=[Decoder, PackageMmap, PackagePread])
def implementation(request: pytest.FixtureRequest) -> Any:
    """Each implementation of the format."""
    return request.param


@pytest.fixture(params=[Decoder, PackageMmap])
def verifier(request: pytest.FixtureRequest) -> Any:
    """Each verifier: that of the package has no back ends."""
    return request.param


def format_error(error: Exception) -> str:
    """Return the name of a format error; anything else is a bug and is raised again."""
    import chunkstore

    if not isinstance(error, (read_chunkstore.FormatError, getattr(chunkstore, "FormatError", ()))):
        raise error
    return type(error).__name__


def read_all(container: Any) -> None:
    """Read the rows of every field, the attributes, the keys, and find the first of them."""
    for name in container.names:
        for _ in container.rows(name):
            pass
    container.attrs()
    for key in (container.keys() or [])[:20]:
        container.find(key)


def first_failure(implementation: Any, path: Path) -> tuple[str, str]:
    """Return the first step that fails and the name of its error: open, read, verify, or nothing."""
    try:
        container = implementation(path)
    except Exception as error:
        return "open", format_error(error)
    try:
        read_all(container)
    except Exception as error:
        return "read", format_error(error)
    return ("verify", "CorruptError") if implementation.verify(path) else ("nothing", "")


@pytest.mark.parametrize("name", VALID)
def test_valid(name: str, folder: Path, implementation: Any) -> None:
    """A valid container has the content that stands beside it, field by field and key by key."""
    expected = expectation(folder, "valid", name)
    container = implementation(folder / "valid" / f"{name}.cks")
    for what in ("num_samples", "generation", "fingerprint"):
        assert getattr(container, what) == expected[what]
    assert container.attrs() == expected["attrs"]
    assert container.names == [field["name"] for field in expected["fields"]]
    for field in expected["fields"]:
        if "error" in field:
            with pytest.raises(ValueError, match=r"(?s).") as raised:
                list(container.rows(field["name"]))
            assert type(raised.value).__name__ == field["error"]
        else:
            assert digest(container.rows(field["name"])) == field["rows"]
    assert container.keys() == expected["keys"]
    for position, key in enumerate(expected["keys"] or []):
        assert container.find(key) == position
    if expected["keys"]:
        assert container.find("no such key") is None


@pytest.mark.parametrize("name", VALID)
def test_valid_verify(name: str, folder: Path, verifier: Any) -> None:
    """A verifier finds nothing in a valid container, or what a reader ignores and it must report."""
    expected = expectation(folder, "valid", name)
    verifier(folder / "valid" / f"{name}.cks")
    findings = verifier.verify(folder / "valid" / f"{name}.cks")
    assert bool(findings) == (expected["verify"] == "reports"), findings


APPENDABLE = sorted(set(VALID) - {"read-only-compatible-flag", "unknown-codec", "ragged-largest-dimension"})


@pytest.mark.parametrize("name", APPENDABLE)
def test_valid_append(name: str, folder: Path, tmp_path: Path) -> None:
    """An append to a container of another writer, with that writer's spelling of SCHEMA, leaves it readable."""
    import chunkstore

    expected = expectation(folder, "valid", name)
    path = tmp_path / "a.cks"
    path.write_bytes((folder / "valid" / f"{name}.cks").read_bytes())
    with chunkstore.open(path) as reader:
        samples = [reader[0]] if len(reader) else []
    with chunkstore.Writer(path, mode="a", attrs={"appended": True}) as writer:
        for sample in samples:
            writer.add(sample, **({"key": "appended"} if expected["keys"] else {}))
    container = Decoder(path)
    for field in expected["fields"]:
        rows = list(container.rows(field["name"]))
        assert digest(rows[: expected["num_samples"]]) == field["rows"]
        assert digest(rows[expected["num_samples"] :]) == digest(rows[: len(samples)])
    assert container.attrs() == {**expected["attrs"], "appended": True}
    assert (container.keys() or []) == [*(expected["keys"] or []), *("appended" for _ in samples if expected["keys"])]
    assert Decoder.verify(path) == [] == Package.verify(path)


def test_most_items(tmp_path: Path, implementation: Any) -> None:
    """A row of as many items as section 15 allows, of no bytes."""
    column = builder.Column("x", "uint8", [None, None, 0], [np.zeros((2**63 - 1, 1, 0), "u1")])
    path = tmp_path / "m.cks"
    path.write_bytes(builder.converted([column], [(0, 1)]).data)
    container = implementation(path)
    assert digest(container.rows("x")) == column.digest()
    assert implementation.verify(path) == []


@pytest.mark.parametrize("name", INVALID)
def test_invalid(name: str, folder: Path, implementation: Any) -> None:
    """An invalid container gives the error that stands beside it, at the step that stands beside it."""
    expected = expectation(folder, "invalid", name)
    step, error = first_failure(implementation, folder / "invalid" / f"{name}.cks")
    assert error == expected["expect"], f"{step}: {expected['what']}"
    assert step in expected["where"].split("|"), expected["what"]


@pytest.mark.parametrize("name", INVALID)
def test_invalid_verify(name: str, folder: Path, verifier: Any) -> None:
    """What does not open or cannot be read is found by a verifier too, except what only a decoder can see."""
    expected = expectation(folder, "invalid", name)
    if name.startswith(("zlib-", "zstd-")) or name == "string-not-utf8":
        pytest.skip("a verifier need not decode")
    path = folder / "invalid" / f"{name}.cks"
    found = ""
    try:
        found = expected["expect"] if verifier.verify(path) else "nothing"
    except Exception as error:
        found = format_error(error)
    assert found == expected["expect"], expected["what"]


def write_rows(path: Path, columns: list[Any], n: int, keys: list[str] | None, **options: Any) -> bytes:
    """Write the rows of a vector with the package's writer, one by one, and return the bytes of the file."""
    import chunkstore

    fields = [chunkstore.Field(column.name, column.dtype, tuple(column.shape)) for column in columns]
    with chunkstore.Writer(path, fields=fields, **options) as writer:
        for i in range(n):
            rows = {column.name: column.rows[i] for column in columns}
            sample = {
                field.name: row if isinstance(row, str) else as_dtype(np.asarray(row), field.numpy_dtype)
                for field, row in zip(fields, rows.values(), strict=True)
            }
            writer.add(sample, **({"key": keys[i]} if keys else {}))
    return path.read_bytes()


def as_dtype(row: Any, dtype: Any) -> Any:
    """Return the same bytes as another dtype of the same width, such as bfloat16 for uint16."""
    return np.ndarray(row.shape, dtype, row.tobytes())


PLAIN = {
    vector.name: vector.image
    for vector in (factory() for factory in valid.FACTORIES)
    if vector.image.generation == 1 and all(column.codec == "raw" for column in vector.image.columns)
}


@pytest.mark.parametrize("name", sorted(set(PLAIN) - {"empty-with-keys"}))
def test_writer_bytes(name: str, tmp_path: Path) -> None:
    """The writer gives, for the rows of a vector, the bytes of the builder for one shard and the index behind the data.

    The builder was written from the text alone, so two authors agree on every byte that a writer has to choose.
    """
    image, n = PLAIN[name], PLAIN[name].num_samples
    wanted = builder.streamed(image.columns, [(0, n)] if n else [], image.keys, image.attrs)
    written = write_rows(tmp_path / "w.cks", image.columns, n, image.keys, attrs=image.attrs)
    assert written == bytes(wanted.data)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(
    ("name", "shard_nbytes"), [("streamed", 48), ("streamed-one-extent", 9), ("several-shards", 136)]
)
def test_writer_bytes_of_shards(name: str, shard_nbytes: int, known: bool, tmp_path: Path) -> None:
    """Shards end with the sample that fills them; with a known number of samples each field is one extent."""
    image, n = PLAIN[name], PLAIN[name].num_samples
    row_nbytes = sum(len(column.raw(0)) for column in image.columns)
    step = -(-shard_nbytes // row_nbytes)
    shards = [(start, min(start + step, n)) for start in range(0, n, step)]
    wanted = builder.streamed(image.columns, shards, by_field=known or len(image.columns) == 1)
    options = {"shard_nbytes": shard_nbytes, "num_samples": n if known else None}
    written = write_rows(tmp_path / "w.cks", image.columns, n, image.keys, **options)
    assert written == bytes(wanted.data)
    if not known and name.startswith("streamed"):
        assert written == FILES[f"valid/{name}.cks"]


def test_repository() -> None:
    """The files of the repository are those that tools/make_vectors.py builds, byte for byte."""
    assert make_vectors.differences(make_vectors.build(), make_vectors.FOLDER) == []


def test_enough_vectors() -> None:
    """Each step and each error of section 14 has a vector in the repository, and the whole stays small."""
    built = make_vectors.build()
    texts = [text.decode() for path, text in built.items() if path.endswith(".txt")]
    for error in ("NotAContainer", "UnsupportedVersion", "UnsupportedFeature", "Limit", "Truncated", "Corrupt"):
        assert any(f"expect: {error}Error\n" in text for text in texts)
    for step in ("open", "read", "verify"):
        assert any(f"where: {step}\n" in text for text in texts)
    assert sum(map(len, built.values())) < 3_000_000


def run_script(name: str, *arguments: Path) -> tuple[int, str]:
    """Run a script of the specification and return its exit code and all that it printed."""
    command = [sys.executable, "-W", "error", str(ROOT / "spec" / name), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False)
    return done.returncode, done.stdout


def test_decoder_as_a_script(folder: Path) -> None:
    """The reader prints a summary; the verifier prints what it finds; damage and wrong use exit with 1."""
    trailing, whole = folder / "valid" / "trailing-bytes.cks", folder / "valid" / "keys.cks"
    code, text = run_script("read_chunkstore.py", trailing)
    assert (code, "2 samples, generation 1" in text) == (0, True), text
    code, text = run_script("verify_chunkstore.py", trailing)
    assert (code, "29 bytes behind the committed end" in text) == (1, True), text
    assert run_script("verify_chunkstore.py", whole)[0] == 0
    for script in ("read_chunkstore.py", "verify_chunkstore.py"):
        code, text = run_script(script, folder / "invalid" / "npy-file.cks")
        assert (code, "NotAContainerError" in text) == (1, True), text
        assert run_script(script)[0] == 1


def test_decoder_shares_nothing_with_the_package() -> None:
    """Neither the plain decoder nor the builder of the vectors imports the package."""
    for path in [*(ROOT / "spec").glob("*.py"), *(ROOT / "tools" / "_vectors").glob("*.py")]:
        assert not re.search(r"^\s*(import|from) chunkstore", path.read_text("utf-8"), re.MULTILINE)


def test_each_byte_of_a_small_container(tmp_path: Path) -> None:
    """The plain decoder finds a flipped bit in any byte of a small container: one bit a byte is tried."""
    whole = FILES["valid/keys.cks"]
    path = tmp_path / "flipped.cks"
    path.write_bytes(whole)
    # Padding is looked at as a whole, so a sample of it will do; everything else byte for byte.
    places = [at for at in range(len(whole)) if whole[at] or at % 61 == 0]
    for at in places:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(bytes([whole[at] ^ 1 << at % 8]))
        try:
            assert list(verify_chunkstore.verify(read_chunkstore.Container(path))), f"byte {at}"
        except read_chunkstore.FormatError:
            pass
        with path.open("r+b") as file:
            file.seek(at)
            file.write(whole[at : at + 1])
