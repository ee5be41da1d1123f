"""Random and cunning input: containers, `.npy` headers, `.npz` files.

A mutator of our own, with fixed seeds: byte flips, cuts, copies and insertions of pieces, numbers that lie at limits,
words of the format. Containers are also changed with all checksums repaired (`damaged.mutate`), since otherwise nothing
behind the superblock is reached. Anything but an error of ours, an allocation beyond the limit or an input of more than
a second is a finding: of CPU time, since the machine may be busy, and the process be stopped for a while.

Where atheris is installed, coverage can lead instead, until stopped, with the arguments of libFuzzer:
`python -m tools.battery.fuzz KIND [-runs=N] [-max_total_time=SECONDS] ...` with KIND as in `KINDS`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import random
import resource
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from damaged import FIELDS, NUMBERS, Damaged, mutate
from numpy.typing import NDArray
from source_arrays import open_array, read_array

import chunkstore
from chunkstore._format.constants import HEAD_NBYTES
from chunkstore._format.field_index import FieldIndex
from chunkstore._format.index import read_index
from chunkstore._ingest.npy.npyheader import check_nbytes, parse_header
from chunkstore.errors import ChunkstoreError, TruncatedError
from tools.battery.scratch import in_memory

LIMIT_NBYTES = 64 << 20
SLOW_SECONDS = 1.0
_WORDS = [
    b"\x93NUMPY\x01\x00", b"'descr'", b"'<f8'", b"'|O'", b"True", b"False", b"(", b")", b"{", b"}", b"[", b"]",
    b",", b":", b"99999999999999999999", b"-1", b"2L", b"'shape'",
    b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"\xff\xff\xff\xff",
    b"CKS-INDX", b"\x89CKS\r\n\x1a\n", b"\0" * 8, b'{"fields":', b"null", b"..", b"/", b"\xef\xbb\xbf", b"'<M8[25s]'",
]  # fmt: skip
REPEATED = object()  # what a target returns for an input that is no new one to it; such are not counted
type_target = Callable[[bytes], object]


@dataclass
class Fuzzed:
    """What came of it."""

    inputs: int = 0
    accepted: int = 0
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0
    grown_nbytes: int = 0


def change(data: bytes, rng: random.Random) -> bytes:
    """One to eight changes of any kind."""
    out, bits = bytearray(data), rng.getrandbits  # `randrange` takes five times as long
    for _ in range(1 << bits(2)):
        size = len(out)
        at = int(rng.random() * (size + 1))
        kind = bits(3)
        if kind == 0 and size:
            out[at % size] ^= 1 << bits(3)
        elif kind == 1 and size:
            out[at % size] = bits(8)
        elif kind == 2:
            out[at:at] = rng.choice(_WORDS)
        elif kind == 3:
            word = rng.choice(_WORDS)
            out[at : at + len(word)] = word
        elif kind == 4:
            width = rng.choice([2, 4, 8])
            out[at : at + width] = (rng.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, "little")
        elif kind == 5:
            del out[at : at + (1 << int(rng.random() * 10))]
        elif kind == 6:
            start = int(rng.random() * (size + 1))
            out[at:at] = out[start : start + (1 << int(rng.random() * 7))]
        elif rng.random() < 0.2:
            del out[at:]
    return bytes(out)


def feed(target: type_target, seeds: list[bytes], seconds: float, seed: int, most: int | None = None) -> Fuzzed:
    """Changed seeds into a target until the time is over, or there were enough."""
    rng, found = random.Random(seed), Fuzzed()
    before, end = _peak_nbytes(), time.process_time() + seconds
    began = time.process_time()
    while began < end and (most is None or found.inputs < most):
        data = change(rng.choice(seeds), rng)
        _try_one(target, data, found, began)
        now = time.process_time()
        found.slowest, began = max(found.slowest, now - began), now
    found.grown_nbytes = _peak_nbytes() - before
    if found.grown_nbytes > 2 * LIMIT_NBYTES:
        found.wrong.append(f"memory grew by {found.grown_nbytes >> 20} MiB")
    return found


def _try_one(target: type_target, data: bytes, found: Fuzzed, began: float) -> None:
    try:
        if target(data) is REPEATED:
            return
        found.accepted += 1
    except ChunkstoreError:
        pass
    except Exception as error:  # noqa: BLE001 - whatever is raised is a finding
        found.wrong.append(f"{type(error).__name__}: {error}; input {data[:200].hex()}")
    found.inputs += 1
    if time.process_time() - began > SLOW_SECONDS:
        found.wrong.append(f"took {time.process_time() - began:.1f} s; input {data[:200].hex()}")


def _peak_nbytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# -- .npy headers


def npy_header(data: bytes) -> None:
    """The parser alone."""
    header = parse_header(data, "x.npy")
    check_nbytes(header, len(data), "x.npy")


def npy_seeds() -> list[bytes]:
    """Good headers of all kinds."""
    dtypes = ["<f8", "|b1", ">i4", "<U3", "|S5", "<M8[ns]", [("a", "<i2"), ("b", "<f4", (2,))]]
    seeds = []
    for place, dtype in enumerate(dtypes):
        for version in ((1, 0), (2, 0), (3, 0)):
            file = io.BytesIO()
            np.lib.format.write_array(file, np.zeros((2,) * (place % 3), dtype), version=version)
            seeds.append(file.getvalue())
    return seeds


# -- .npz files


class NpzTarget:
    """A file at one path, read as the converter does."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "x.npz"
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)

    def __del__(self) -> None:
        os.close(self._fd)

    def __call__(self, data: bytes) -> None:
        os.pwrite(self._fd, data, 0)
        os.ftruncate(self._fd, len(data))
        with open_array(self._path, "a") as source:
            if source.dtype.itemsize * int(np.prod(source.shape, dtype=object)) < LIMIT_NBYTES:
                read_array(source)


def npz_seeds() -> list[bytes]:
    """Stored and deflated, one and several members."""
    seeds = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        for names in (["a"], ["b", "a", "c/d"]):
            file = io.BytesIO()
            with zipfile.ZipFile(file, "w", method) as archive:
                for name in names:
                    inner = io.BytesIO()
                    np.save(inner, np.arange(40, dtype="<i4").reshape(4, 10))
                    archive.writestr(f"{name}.npy", inner.getvalue())
            seeds.append(file.getvalue())
    return seeds


# -- containers


class InMemory:
    """A file that is only bytes, for the index: what is read through a real one differs in nothing but its cost.

    Attributes:
        reads: what was read, range -> bytes.
    """

    path = "x.cks"
    distant = False

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)
        self.reads: dict[tuple[int, int], bytes] = {}

    def view(self, offset: int, nbytes: int) -> memoryview | None:
        """None: nothing is mapped."""

    def read(self, offset: int, nbytes: int) -> bytes:
        """A copy; TruncatedError as from a file."""
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise TruncatedError(f"bytes [{offset}, {offset + nbytes}) of {self.size}")
        data = self.reads[offset, offset + nbytes] = self._data[offset : offset + nbytes]
        return data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer."""
        buffer[:] = self.read(offset, len(buffer))

    def reserve(self, nbytes: int) -> memoryview:
        """Zeros, as much as is asked for: what is beyond reason is found by its error or by the memory used."""
        return memoryview(bytearray(nbytes))


class ContainerTarget:
    """The index, rows and keys of all fields, from memory; what passes the gate, and some that does not, as a file too.

    A file is verified, read by both back ends, and one in four is recovered. Most inputs end at the gate, and a file
    for each of them made the loop forty times slower. Of inputs that were changed only where the gate does not look
    (blocks, padding, what is behind the committed end), one in so many is verified and read as well; the others are no
    new ones, and not counted.

    Args:
        folder: for the file.
        seeds: what the inputs are made of.
    """

    def __init__(self, folder: Path, seeds: list[bytes]) -> None:
        self._path, self._saved = folder / "x.cks", folder / "saved.cks"
        self._count = self._passed = 0
        self._known: dict[int, list[dict[tuple[int, int], bytes]]] = {}
        for seed in dict.fromkeys(seeds):
            source = InMemory(seed)
            self._read_index(source)
            self._known.setdefault(len(seed), []).append(source.reads)

    def __call__(self, data: bytes) -> object:
        self._count += 1
        error: Exception | None = None
        known = self._is_known(data)
        try:
            if not known:
                self._read_index(InMemory(data))
            self._passed += 1
        except ChunkstoreError as refused:
            error = refused
        tried = self._count % 256 == 0 or (error is None and self._passed % 32 == 0)
        if tried:
            self._path.write_bytes(data)
            with contextlib.suppress(ChunkstoreError):
                chunkstore.verify(self._path, deep=self._count % 2 == 0)
            self._read_all()
            if self._count % 4 == 0:
                with contextlib.suppress(ChunkstoreError):
                    chunkstore.recover(self._path, self._saved, mode="w")
        if error is not None:
            raise error
        return REPEATED if known and not tried else None

    def _is_known(self, data: bytes) -> bool:
        """Whether the gate would read what it has read of a seed, byte by byte: then it does the same again."""
        return any(
            all(data[start:stop] == read for (start, stop), read in reads.items())
            for reads in self._known.get(len(data), ())
        )

    def _read_index(self, source: InMemory) -> None:
        index = read_index(source)
        positions = np.arange(min(index.num_samples, 8), dtype=np.int64)
        index.attrs()
        for number in range(len(index.fields)):
            column = FieldIndex(index, number)
            if len(positions):
                groups = column.groups(column.group_ids(positions))
                for offset, nbytes in (column.rows(positions), (groups.offset, groups.nbytes)):
                    _check_places(offset, nbytes, index.superblock.committed_end)
        if index.keys is not None and index.num_samples:
            index.keys.text(0)
            index.keys.find_texts([b"set/0001"])

    def _read_all(self) -> None:
        with chunkstore.open(self._path, backend=("pread", "mmap")[self._count % 8 == 0]) as ds:  # type: ignore[arg-type]
            for position in range(min(len(ds), 4)):
                with contextlib.suppress(ChunkstoreError):
                    ds[position]
            if len(ds):
                with contextlib.suppress(ChunkstoreError):
                    ds.batch([0, len(ds) - 1])
            if ds.keys is not None and len(ds):
                with contextlib.suppress(ChunkstoreError):
                    ds.find([ds.keys[0]])


def _check_places(offset: NDArray[np.int64], nbytes: NDArray[np.int64], end: int) -> None:
    """What the gate lets through nobody checks again: it must lie before the committed end."""
    if offset.min() < HEAD_NBYTES or nbytes.min() < 0 or (offset + nbytes).max() > end:
        raise AssertionError(f"rows or groups at {offset} of {nbytes} bytes, committed end {end}")


def container_seeds(folder: Path) -> list[bytes]:
    """Small containers with one segment, and with two, the first of which was merged from three commits.

    What an input costs goes with the number of fields. So most have one, of each kind and with codecs, and one has all.
    """
    one_field = [((name,), "raw") for name in FIELDS] + [(("wave",), "zlib")]
    if importlib.util.find_spec("zstandard"):
        one_field.append((("text",), "zstd"))
    wanted = [(*each, commits) for each in one_field for commits in (1, 1, 4)]
    seeds = []
    for names, codec, commits in (*wanted, (tuple(FIELDS), "raw", 1)):
        container = Damaged(folder / "seed.cks")
        container.build(9, commits=commits, shard_nbytes=600, names=names, codec=codec)
        seeds.append(container.good)
        container.path.unlink()
    return [*seeds, *(_with_groups(folder / "seed.cks", codec) for codec in ("raw", "zlib"))]


def _with_groups(path: Path, codec: str) -> bytes:
    """A shard of several groups, of several rows each, none of the same length."""
    rng = np.random.default_rng(5)
    with chunkstore.Writer(path, fields={"x": chunkstore.Field("x", "uint8", (None,), codec)}) as writer:
        for number in range(12):
            writer.add({"x": rng.integers(0, 256, 1000 + number, np.uint8)}, key=f"set/{number:04d}")
    data = path.read_bytes()
    path.unlink()
    return data


def feed_repaired(folder: Path, seconds: float, seed: int, most: int | None = None) -> Fuzzed:
    """Containers whose numbers were changed and whose checksums are right again."""
    seeds, found = container_seeds(folder), Fuzzed()
    target = ContainerTarget(folder, seeds)
    before, end, number = _peak_nbytes(), time.process_time() + seconds, seed << 32
    while time.process_time() < end and (most is None or found.inputs < most):
        data = bytes(mutate(seeds[number % len(seeds)], number))
        began = time.process_time()
        _try_one(target, data, found, began)
        found.slowest = max(found.slowest, time.process_time() - began)
        number += 1
    found.grown_nbytes = _peak_nbytes() - before
    if found.grown_nbytes > 2 * LIMIT_NBYTES:
        found.wrong.append(f"memory grew by {found.grown_nbytes >> 20} MiB")
    return found


def feed_kind(kind: str, folder: Path, seconds: float, seed: int, most: int | None = None) -> Fuzzed:
    """One of `npy`, `npz`, `plain` and `repaired`; a warning is a finding, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if kind == "npy":
            return feed(npy_header, npy_seeds(), seconds, seed, most)
        if kind == "npz":
            return feed(NpzTarget(folder), npz_seeds(), seconds, seed, most)
        if kind == "plain":
            seeds = container_seeds(folder)
            return feed(ContainerTarget(folder, seeds), seeds, seconds, seed, most)
        return feed_repaired(folder, seconds, seed, most)


KINDS = {
    "npy": ".npy headers",
    "npz": ".npz files",
    "plain": "containers",
    "repaired": "containers, checksums repaired",
}


def run_atheris(kind: str, arguments: list[str]) -> None:
    """One of `KINDS`, led by coverage, until stopped; what is found ends it. `repaired` gets its seeds from the input.

    Args:
        kind: of input.
        arguments: those of libFuzzer.
    """
    import atheris

    with in_memory() as folder:
        seeds = {"npy": npy_seeds, "npz": npz_seeds}.get(kind, lambda: container_seeds(folder))()
        corpus = folder / "corpus"
        corpus.mkdir()
        for place, seed in enumerate(seeds if kind != "repaired" else ()):
            (corpus / str(place)).write_bytes(seed)
        targets: dict[str, Callable[[], type_target]] = {
            "npy": lambda: npy_header,
            "npz": lambda: NpzTarget(folder),
            "plain": lambda: ContainerTarget(folder, seeds),
            "repaired": lambda: ContainerTarget(folder, seeds),
        }
        target = targets[kind]()

        def one(data: bytes) -> None:
            if kind == "repaired":
                number = int.from_bytes(data[:8], "little")
                data = bytes(mutate(seeds[number % len(seeds)], number))
            with contextlib.suppress(ChunkstoreError):
                target(data)

        atheris.instrument_all()
        atheris.Setup(["fuzz", *arguments, str(corpus)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    run_atheris(sys.argv[1], sys.argv[2:])
