"""`convert`: the same bytes whatever does the work, everything or nothing, and what the report says."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from storage.faults import Failing

import chunkstore
from chunkstore._format.constants import HEAD_NBYTES
from chunkstore._ingest.convert import convert as module
from chunkstore._ingest.convert.arrangement import arrange
from chunkstore._ingest.convert.compare import compare
from chunkstore._ingest.plan.planner import make_plan
from chunkstore._ingest.plan.read import PIECE_NBYTES
from chunkstore._ingest.plan.scan import scan_sources
from chunkstore._storage import platform, syscalls
from chunkstore.errors import CorruptError, IngestError, WriteError


def save_tree(root: Path, shapes: list[tuple[int, ...]], dtype: Any = "f4") -> list[np.ndarray[Any, Any]]:
    """Files `0.npy`, `1.npy`, ... of these shapes; their arrays."""
    root.mkdir(exist_ok=True)
    rng = np.random.default_rng(len(shapes))
    arrays = [(rng.random(shape) * 100).astype(dtype) for shape in shapes]
    for place, array in enumerate(arrays):
        np.save(root / f"{place}.npy", array)
    return arrays


@pytest.fixture(scope="module")
def processes() -> Iterator[Executor]:
    """Two processes, started once."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield pool


def trees(root: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Small sources of every kind, and the options that they need."""
    save_tree(root / "uniform", [(3, 50)] * 40)
    save_tree(root / "ragged", [(n % 7, 3) for n in range(40)])
    save_tree(root / "shapes", [(n % 4, n % 3, 2) for n in range(40)], ">i2")
    rng = np.random.default_rng(0)
    x, y = rng.random((500, 9)), np.arange(500)
    np.savez(root / "rows.npz", x=np.asfortranarray(x), y=y)
    np.savez_compressed(root / "deflated.npz", x=x, y=y)
    folder = root / "strung"
    folder.mkdir()
    for place in range(4):
        np.savez_compressed(folder / f"{place}.npz", x=x[: 90 * place + 5], y=y[: 90 * place + 5])
    texts = root / "texts"
    texts.mkdir()
    for place in range(30):
        np.save(texts / f"{place}.npy", np.array("ä" * place))
    return {
        "uniform": (root / "uniform", {}),
        "ragged": (root / "ragged", {}),
        "shapes": (root / "shapes", {}),
        "rows": (root / "rows.npz", {"layout": "rows"}),
        "deflated": (root / "deflated.npz", {"layout": "rows"}),
        "strung": (folder, {"layout": "rows"}),
        "texts": (texts, {"dtype": "string"}),
    }


def test_same_bytes_on_every_engine(tmp_path: Path, processes: Executor) -> None:
    """One worker, processes of our own, threads, somebody's processes: one file, byte for byte, and it is sound."""
    for name, (source, options) in trees(tmp_path).items():
        options = {**options, "shard_nbytes": 1000}
        alone = tmp_path / f"{name}.cks"
        report = chunkstore.convert(source, alone, workers=1, verify=True, **options)
        assert chunkstore.verify(alone, deep=True).ok
        with ThreadPoolExecutor(3) as threads:
            for engine in ({"executor": threads}, {"executor": processes, "workers": 5}):
                other = chunkstore.convert(source, tmp_path / "other.cks", mode="w", **engine, **options)
                assert other.fingerprint == report.fingerprint, (name, engine)
                assert (tmp_path / "other.cks").read_bytes() == alone.read_bytes()


@pytest.mark.parametrize("workers", [2, 3])
def test_same_bytes_with_workers(tmp_path: Path, workers: int) -> None:
    """`workers=` works in that many processes, and changes no byte."""
    source, options = trees(tmp_path)["strung"]
    one = chunkstore.convert(source, tmp_path / "1.cks", workers=1, shard_nbytes=1000, **options)
    many = chunkstore.convert(source, tmp_path / "n.cks", workers=workers, shard_nbytes=1000, **options)
    assert one.fingerprint == many.fingerprint
    assert (tmp_path / "1.cks").read_bytes() == (tmp_path / "n.cks").read_bytes()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(2, 30),
    st.lists(st.integers(0, 5), max_size=3).map(tuple),
    st.sampled_from(["u1", "<f8", "?", "<U3", "<M8[s]"]),
    st.sampled_from([1, 300, 64 << 20]),
)
def test_fast_path_equals_plain_path(
    tmp_path_factory: pytest.TempPathFactory, num: int, shape: tuple[int, ...], dtype: str, shard_nbytes: int
) -> None:
    """What is written without looking at each header first is what is written after looking."""
    root = tmp_path_factory.mktemp("fast")
    save_tree(root / "src", [shape] * num, "u1" if dtype == "<M8[s]" else dtype)
    if dtype == "<M8[s]":
        for path in (root / "src").iterdir():
            np.save(path, np.load(path).astype(dtype))
    time.sleep(0.05)  # files that were written just now are left to the full plan
    fast = chunkstore.convert(root / "src", root / "fast.cks", shard_nbytes=shard_nbytes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "plan_uniform", lambda *args, **options: None)
        plain = chunkstore.convert(root / "src", root / "plain.cks", shard_nbytes=shard_nbytes)
    assert fast.fingerprint == plain.fingerprint
    assert (root / "fast.cks").read_bytes() == (root / "plain.cks").read_bytes()
    assert (fast.notes, fast.layout) == (plain.notes, plain.layout)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_plain_calls_give_the_same_container(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without `pread`, `readv` and their like reads the same from the sources."""
    (tmp_path / "src").mkdir()
    for place, array in enumerate(np.arange(60_000.0).reshape(3, 200, 100)):
        if suffix == ".npy":
            np.save(tmp_path / f"src/{place}", array)
        else:
            np.savez_compressed(tmp_path / f"src/{place}", x=np.asfortranarray(array))
    time.sleep(0.05)  # files that were written just now are left to the full plan
    usual = chunkstore.convert(tmp_path / "src", tmp_path / "usual.cks", verify=True)
    called = set()

    def noted(name: str) -> Any:
        return lambda *arguments: (called.add(name), platform.PLAIN[name](*arguments))[1]

    for name in platform.PLAIN:
        monkeypatch.setattr(platform, name, noted(name))
    plain = chunkstore.convert(tmp_path / "src", tmp_path / "plain.cks", verify=True)
    assert plain.fingerprint == usual.fingerprint
    assert (tmp_path / "plain.cks").read_bytes() == (tmp_path / "usual.cks").read_bytes()
    assert called >= {"pread", "drop_cache", "readv" if suffix == ".npy" else "preadv"}


def test_no_more_processes_than_the_system_can_wait_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows waits for 61 processes of a pool: whoever asks for more gets so many."""
    for place in range(4):
        np.savez_compressed(tmp_path / f"{place}.npz", x=np.arange(100.0))
    asked: list[int] = []
    pool = module.WorkerPool
    monkeypatch.setattr(module, "WorkerPool", lambda workers: (asked.append(workers), pool(workers))[1])
    monkeypatch.setattr(platform, "MAX_PROCESSES", 2)
    assert chunkstore.convert(tmp_path, tmp_path / "x.cks", workers=100, shard_nbytes=800).num_samples == 4
    assert asked == [1]


def test_values_layout_and_attrs(tmp_path: Path) -> None:
    """Rows are in natural order of their names; a field is one extent; attrs hold the user's and the origin."""
    arrays = save_tree(tmp_path / "src", [(4, 5)] * 12)
    path = tmp_path / "x.cks"
    report = chunkstore.convert(tmp_path / "src", path, shard_nbytes=100, attrs={"mean": 0.5})
    assert (report.layout, report.num_samples, report.num_files) == ("files", 12, 12)
    with chunkstore.open(path) as ds:
        assert list(ds.keys or ()) == [str(n) for n in range(12)]
        assert np.array_equal(ds.column("data"), np.stack(arrays))
        assert ds._index.shard_starts.tolist() == [0, 2, 4, 6, 8, 10, 12]
        assert ds.attrs["mean"] == 0.5
        assert ds.attrs["chunkstore"]["origin"]["layout"] == "files"
        assert ds._extent("data") is not None
    text = path.read_bytes()
    assert os.fsencode(tmp_path) not in text, "a path of this machine is no part of the data"


def test_class_names_are_attrs(tmp_path: Path) -> None:
    """`--layout classes` records the names of the classes; the user's own attrs win over them."""
    for name in ("cat", "dog"):
        (tmp_path / "src" / name).mkdir(parents=True)
        np.save(tmp_path / "src" / name / "1.npy", np.zeros(3))
    chunkstore.convert(tmp_path / "src", tmp_path / "x.cks", layout="classes")
    with chunkstore.open(tmp_path / "x.cks") as ds:
        assert ds.attrs["class_names"] == {"label": ["cat", "dog"]}
        assert ds.column("label").tolist() == [0, 1]


def test_rows_longer_than_a_piece(tmp_path: Path) -> None:
    """A row that is longer than the buffers is streamed, with its sums right, in both ways."""
    arrays = save_tree(tmp_path / "src", [(PIECE_NBYTES // 4 + 1000,)] * 3)
    ragged = save_tree(tmp_path / "ragged", [(PIECE_NBYTES // 4 + 1000 * n,) for n in range(-1, 2)])
    for name, wanted in (("src", arrays), ("ragged", ragged)):
        chunkstore.convert(tmp_path / name, tmp_path / f"{name}.cks", verify=True)
        assert chunkstore.verify(tmp_path / f"{name}.cks", deep=True).ok
        with chunkstore.open(tmp_path / f"{name}.cks") as ds:
            for place, array in enumerate(wanted):
                assert np.array_equal(ds[place]["data"], array)


def test_nothing_in_a_row(tmp_path: Path) -> None:
    """Rows without bytes make a container without blocks of bytes."""
    save_tree(tmp_path / "src", [(0, 3)] * 5)
    report = chunkstore.convert(tmp_path / "src", tmp_path / "x.cks", verify=True)
    assert report.nbytes == (tmp_path / "x.cks").stat().st_size
    assert chunkstore.verify(tmp_path / "x.cks", deep=True).ok


# --- everything or nothing ---


@pytest.mark.parametrize("call", ["sync_data", "sync_file"])
def test_sync_that_fails(tmp_path: Path, call: str) -> None:
    """That of `verify`, too, is an error after which nothing is published: what is unknown has no name."""
    save_tree(tmp_path / "src", [(3,)] * 5)
    with syscalls.use(Failing(call, errno.EIO)), pytest.raises(WriteError, match="nothing was published"):
        chunkstore.convert(tmp_path / "src", tmp_path / "x.cks", verify=True)
    assert os.listdir(tmp_path) == ["src"]


def test_what_killed_runs_left_is_named(tmp_path: Path) -> None:
    """Unfinished files of earlier runs for the same path, which nobody has locked, are in the notes, and stay."""
    save_tree(tmp_path / "src", [(2,)] * 3)
    left = tmp_path / f".x.cks.tmp-{'0' * 16}"
    left.write_bytes(b"half")
    report = chunkstore.convert(tmp_path / "src", tmp_path / "x.cks")
    assert [note for note in report.notes if str(left) in note and "killed" in note]
    assert left.read_bytes() == b"half"
    left.unlink()
    report = chunkstore.convert(tmp_path / "src", tmp_path / "x.cks", mode="w")
    assert not [note for note in report.notes if "killed" in note]


def test_target_exists(tmp_path: Path) -> None:
    """Mode x refuses before any work, mode w replaces; a directory is refused in both."""
    save_tree(tmp_path / "src", [(2,)] * 3)
    (tmp_path / "x.cks").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        chunkstore.convert(tmp_path / "no such source", tmp_path / "x.cks")
    assert (tmp_path / "x.cks").read_bytes() == b"old"
    (tmp_path / "x.cks").unlink()
    chunkstore.convert(tmp_path / "src", tmp_path / "x.cks")
    chunkstore.convert(tmp_path / "src", tmp_path / "x.cks", mode="w")
    assert chunkstore.verify(tmp_path / "x.cks").ok
    with pytest.raises(IsADirectoryError):
        chunkstore.convert(tmp_path / "src", tmp_path / "src", mode="w")
    with pytest.raises(FileNotFoundError):
        chunkstore.convert(tmp_path / "src", tmp_path / "no" / "x.cks")


@pytest.mark.parametrize("engine", ["alone", "threads"])
def test_full_disk(tmp_path: Path, engine: str) -> None:
    """A write that the disk has no room for ends the conversion: nothing is published, nothing left."""

    class FullDisk(syscalls.SystemCalls):
        def pwrite(self, fd: int, buffer: memoryview, offset: int) -> int:
            if offset > 20_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().pwrite(fd, buffer, offset)

    save_tree(tmp_path / "src", [(1000,)] * 30)
    with ThreadPoolExecutor(2) as threads, syscalls.use(FullDisk()):
        executor = threads if engine == "threads" else None
        with pytest.raises(WriteError, match="free some space") as caught:
            chunkstore.convert(tmp_path / "src", tmp_path / "x.cks", executor=executor, shard_nbytes=5000)
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_full_disk_is_found_first(tmp_path: Path) -> None:
    """A container larger than the free space is refused before a byte of it is written."""

    class SmallDisk(syscalls.SystemCalls):
        def allocate(self, fd: int, nbytes: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def pwrite(self, fd: int, buffer: memoryview, offset: int) -> int:
            raise AssertionError("nothing is to be written")

    save_tree(tmp_path / "src", [(1000,)] * 3)
    with syscalls.use(SmallDisk()), pytest.raises(WriteError, match="free some space"):
        chunkstore.convert(tmp_path / "src", tmp_path / "x.cks")


def test_source_that_changes(tmp_path: Path) -> None:
    """A file that is written to while it is converted is named; nothing is published."""
    save_tree(tmp_path / "src", [(n % 5 + 1, 100) for n in range(20)])

    def change(done: int, total: int, *_: int) -> None:
        np.save(tmp_path / "src/3.npy", np.zeros((4, 100), "f4"))

    with pytest.raises(IngestError, match=r"3\.npy: the file changed while it was converted"):
        chunkstore.convert(tmp_path / "src", tmp_path / "x.cks", layout="files", shard_nbytes=500, progress=change)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_verify_finds_what_the_disk_lost(tmp_path: Path) -> None:
    """Bytes that come back from the disk as others were written are found before the container has a name."""

    class BadDisk(syscalls.SystemCalls):
        def pwrite(self, fd: int, buffer: memoryview, offset: int) -> int:
            return super().pwrite(fd, memoryview(bytes(len(buffer))) if len(buffer) == 4000 else buffer, offset)

    save_tree(tmp_path / "src", [(1000,)] * 5)
    with syscalls.use(BadDisk()), pytest.raises(CorruptError, match="Nothing was published"):
        chunkstore.convert(tmp_path / "src", tmp_path / "x.cks", verify=True, shard_nbytes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_verify_compares_with_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A converter that writes the wrong rows, with sums that fit them, is found out by the second reading."""
    save_tree(tmp_path / "src", [(10,)] * 5)
    real = module.write_blocks

    def wrong(task: Any, sink: Any, advance: Any) -> Any:
        for written in real(task, sink, advance):
            data = bytes(40 * (int(task.starts[-1])))
            sink.pwrite(int(task.offsets[0, 0]), data)
            from chunkstore._format.checksum import sum64

            yield type(written)(0, 0, sum64(data), np.array([sum64(data)], "<u8"))

    monkeypatch.setattr(module, "write_blocks", wrong)
    with pytest.raises(CorruptError, match=r"field 'data' .*0.npy.*: other bytes were read back"):
        chunkstore.convert(tmp_path / "src", tmp_path / "x.cks", verify=True)


def test_none_is_the_default(tmp_path: Path) -> None:
    """As of `chunkstore.open` and `Writer`."""
    save_tree(tmp_path / "src", [(3,)] * 4)
    usual = chunkstore.convert(tmp_path / "src", tmp_path / "a.cks")
    said = chunkstore.convert(
        tmp_path / "src", tmp_path / "b.cks", fields=None, dtype=None, include=None, exclude=None, codec=None
    )
    assert said.fingerprint == usual.fingerprint


def test_verify_compares_the_shapes_of_ragged_rows(tmp_path: Path) -> None:
    """The same bytes, cut otherwise, are other rows."""
    flat = np.arange(10, dtype="i2")
    for name, first in (("a", (2, 3)), ("b", (1, 6))):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "0.npy", flat[:6].reshape(first))
        np.save(tmp_path / name / "1.npy", flat.reshape(5, 2))
    chunkstore.convert(tmp_path / "a", tmp_path / "a.cks")
    for name in "ab":
        plan = make_plan(scan_sources([tmp_path / name]))
        arrangement = arrange(plan, {}, 1 << 20, {})
        if name == "a":
            compare(plan, arrangement, str(tmp_path / "a.cks"), lambda nbytes: None)
        else:
            wrong = r"sample 0, field 'data' \(.*0.npy\): expected the leading shape \[1, 6\], read back \[2, 3\]"
            with pytest.raises(CorruptError, match=wrong):
                compare(plan, arrangement, str(tmp_path / "a.cks"), lambda nbytes: None)


def test_verify_finds_a_row_that_is_too_long(tmp_path: Path) -> None:
    """Also where it is read in parts, each of which is equal."""
    flat = np.arange(PIECE_NBYTES // 4 + 20_000, dtype="i4")
    for name, stop in (("long", len(flat)), ("short", len(flat) - 10_000)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "0.npy", flat[:stop])
        np.save(tmp_path / name / "1.npy", flat[:7])
    chunkstore.convert(tmp_path / "long", tmp_path / "long.cks")
    plan = make_plan(scan_sources([tmp_path / "short"]))
    with pytest.raises(CorruptError, match="sample 0, field 'data'"):
        compare(plan, arrange(plan, {}, 1 << 20, {}), str(tmp_path / "long.cks"), lambda nbytes: None)


# --- skipping ---


def test_skip_headers_and_data(tmp_path: Path) -> None:
    """`on_error="skip"` leaves out what has a bad header and what turns out bad when it is read, and says why."""
    root = tmp_path / "src"
    root.mkdir()
    for place in range(6):
        np.savez_compressed(root / f"{place}.npz", x=np.arange(1000 * place, 1000 * place + 1000))
    damaged = bytearray((root / "4.npz").read_bytes())
    damaged[200] ^= 0xFF
    (root / "4.npz").write_bytes(damaged)
    (root / "2.npz").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(IngestError, match=r"2\.npz"):
        chunkstore.convert(root, tmp_path / "x.cks")
    report = chunkstore.convert(root, tmp_path / "x.cks", on_error="skip", verify=True)
    assert {item.path for item in report.skipped} == {"2.npz", "4.npz"}
    assert "LFS" in next(item.reason for item in report.skipped if item.path == "2.npz")
    with chunkstore.open(tmp_path / "x.cks") as ds:
        assert list(ds.keys or ()) == ["0", "1", "3", "5"]
        assert ds["5"]["x"][7] == 5007
    assert "SKIPPED" in report.summary()


def test_skip_in_rows(tmp_path: Path) -> None:
    """In the layout `rows` a damaged file is left out with all its rows."""
    root = tmp_path / "src"
    root.mkdir()
    for place in range(4):
        np.savez_compressed(root / f"{place}.npz", x=np.full((50, 20), place) + np.arange(20))
    damaged = bytearray((root / "1.npz").read_bytes())
    damaged[150] ^= 0xFF
    (root / "1.npz").write_bytes(damaged)
    report = chunkstore.convert(root, tmp_path / "x.cks", layout="rows", on_error="skip", shard_nbytes=3000)
    assert ([item.path for item in report.skipped], report.num_samples) == (["1.npz"], 150)


# --- what is said ---


@pytest.mark.parametrize("mode", ["x", "w"])
@pytest.mark.parametrize("call", ["link", "rename", "sync_directory"])
def test_interrupted_when_all_is_done(tmp_path: Path, mode: Any, call: str) -> None:
    """Ctrl-C while the container gets its name waits until it has it, and the message does not say that it has not."""
    np.save(tmp_path / "a.npy", np.zeros(3))

    class Interrupted(syscalls.SystemCalls):
        pass

    def interrupted(self: Any, *arguments: Any) -> None:
        getattr(syscalls.SystemCalls, call)(self, *arguments)
        signal.raise_signal(signal.SIGINT)

    setattr(Interrupted, call, interrupted)
    with syscalls.use(Interrupted()):
        if call == ("rename" if mode == "x" else "link"):
            chunkstore.convert(tmp_path / "a.npy", tmp_path / "x.cks", mode=mode)  # which is not called
        else:
            with pytest.raises(KeyboardInterrupt, match=r"all was done: .*x\.cks is complete"):
                chunkstore.convert(tmp_path / "a.npy", tmp_path / "x.cks", mode=mode)
    assert chunkstore.verify(tmp_path / "x.cks").ok
    assert {path.name for path in tmp_path.iterdir()} == {"a.npy", "x.cks"}


def test_report_and_dry_run(tmp_path: Path) -> None:
    """A dry run writes nothing, looks at no target, and gives the exact size; the report is JSON."""
    for name, (source, options) in trees(tmp_path).items():
        dry = chunkstore.convert(source, tmp_path / "no such folder" / "x.cks", dry_run=True, **options)
        real = chunkstore.convert(source, tmp_path / f"{name}.cks", **options)
        assert dry.nbytes == real.nbytes == (tmp_path / f"{name}.cks").stat().st_size
        assert (dry.fingerprint, dry.dry_run, real.dry_run) == (None, True, False)
        assert json.loads(json.dumps(real.as_dict()))["fingerprint"] == real.fingerprint
        assert real.fields[0].name in real.summary()


def test_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The function is told how far it is, at last that all is done; the bar is silent where stderr is no terminal."""
    save_tree(tmp_path / "src", [(1000,)] * 30)
    told: list[tuple[int, int, int, int]] = []
    chunkstore.convert(tmp_path / "src", tmp_path / "x.cks", progress=lambda *state: told.append(state))
    assert told[-1] == (30, 30, 120_000, 120_000)
    assert told == sorted(told)
    chunkstore.convert(tmp_path / "src", tmp_path / "x.cks", mode="w", progress=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mode": "a"}, "mode: expected 'x'"),
        ({"workers": 0}, "workers: expected at least 1"),
        ({"on_error": "ignore"}, "on_error: expected 'fail' or 'skip'"),
        ({"shard_nbytes": 0}, "shard_nbytes: expected at least 1"),
        ({"attrs": {"chunkstore": 1}}, "'chunkstore' is reserved"),
        ({"attrs": {"x": b"1"}}, "cannot be written as JSON"),
    ],
)
def test_arguments(tmp_path: Path, options: dict[str, Any], text: str) -> None:
    """A wrong argument is named before any work."""
    with pytest.raises(ValueError, match=text):
        chunkstore.convert(tmp_path, tmp_path / "x.cks", **options)


@pytest.mark.parametrize("name", ["workers", "shard_nbytes"])
@pytest.mark.parametrize("value", ["2", 1.5])
def test_counts_are_integers(tmp_path: Path, name: str, value: Any) -> None:
    """The message has the name of the argument."""
    with pytest.raises(TypeError, match=f"{name}: expected an integer"):
        chunkstore.convert(tmp_path, tmp_path / "x.cks", **{name: value})


def test_more_workers_than_work(tmp_path: Path) -> None:
    """No process is made that has nothing to do."""
    np.save(tmp_path / "a.npy", np.arange(3))
    assert chunkstore.convert(tmp_path / "a.npy", tmp_path / "x.cks", workers=10**12).num_samples == 3


def test_dtype_of_numpy_and_paths_of_bytes(tmp_path: Path) -> None:
    """Both are taken as everywhere else."""
    np.save(tmp_path / "a.npy", np.arange(3))
    for dtype in (np.float32, np.dtype("<f4"), "float32"):
        report = chunkstore.convert(bytes(tmp_path / "a.npy"), tmp_path / "x.cks", dtype=dtype, mode="w")
        assert [field.dtype for field in report.fields] == ["float32"]
    with pytest.raises(IngestError, match="dtype None"):
        chunkstore.convert(tmp_path / "a.npy", tmp_path / "y.cks", dtype={"data": None})


@pytest.mark.parametrize("layout", ["files", "rows"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_bad_sector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Any, suffix: str) -> None:
    """A file that the system cannot read is named, and is left out where that is asked for: head or data."""
    root = tmp_path / "src"
    root.mkdir()
    for place in range(4):
        path = root / f"{place}.npy"
        np.save(path, np.arange(5000)) if suffix == ".npy" else np.savez(path.with_suffix(suffix), x=np.arange(5000))
    bad = [f"0{suffix}"]

    def failing(name: str) -> Any:
        real = getattr(platform, name)

        def read(fd: int, *arguments: Any) -> Any:
            if os.path.basename(os.readlink(f"/proc/self/fd/{fd}")) in bad:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(fd, *arguments)

        return read

    for names in (("readv", "preadv"), ("pread",)):
        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(platform, name, failing(name))
            with pytest.raises(IngestError, match=rf"0\{suffix}: .*cannot be read from byte [0-9]+ on: Input/output"):
                chunkstore.convert(root, tmp_path / "x.cks", layout=layout, workers=1, mode="w")
            report = chunkstore.convert(root, tmp_path / "x.cks", layout=layout, workers=1, on_error="skip", mode="w")
        assert [skipped.path for skipped in report.skipped] == bad
        assert report.num_samples == (3 if layout == "files" else 15_000)


def test_crc_of_a_stored_member(tmp_path: Path) -> None:
    """A stored member whose CRC is wrong is refused, wherever the damage is and however shards cut the members."""
    root = tmp_path / "src"
    root.mkdir()
    for place in range(3):
        np.savez(root / f"{place}.npz", x=np.arange(10_000.0 + 170 * place).reshape(-1, 10))
    for place, at in [(0, 500), (0, 60_000), (1, 1000), (1, 70_000), (2, 40_000), (2, 82_000)]:
        good = (root / f"{place}.npz").read_bytes()
        (root / f"{place}.npz").write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        for engine in ({"workers": 1}, {"executor": ThreadPoolExecutor(2)}):
            with pytest.raises(IngestError, match="CRC"):
                chunkstore.convert(root, tmp_path / "x.cks", layout="rows", shard_nbytes=50_000, **engine)
        (root / f"{place}.npz").write_bytes(good)
    report = chunkstore.convert(root, tmp_path / "x.cks", layout="rows", shard_nbytes=50_000, verify=True)
    assert report.num_samples == 1000 + 1017 + 1034


def test_names_of_variables(tmp_path: Path) -> None:
    """Variables named `W:0` become fields of these names, and come back as they were."""
    np.savez(tmp_path / "x.npz", **{"W:0": np.ones((2, 3)), "b:0": np.zeros(3), "dense/kernel:0": np.arange(4)})
    chunkstore.convert(tmp_path / "x.npz", tmp_path / "x.cks")
    with chunkstore.open(tmp_path / "x.cks") as container:
        assert list(container[0]) == ["W:0", "b:0", "dense/kernel:0"]
    chunkstore.export(tmp_path / "x.cks", tmp_path / "out")
    with np.load(tmp_path / "out" / "x.npz") as found:
        assert found["W:0"].shape == (2, 3)


@pytest.mark.parametrize(("dtype", "text"), [("float32", "is equal after --dtype"), ("float64", "is equal")])
def test_verified_says_what_is_equal(tmp_path: Path, dtype: str, text: str) -> None:
    """After rounding the report does not say that the values are those of the sources."""
    np.save(tmp_path / "x.npy", np.array([0.1, 0.2]))
    report = chunkstore.convert(tmp_path / "x.npy", tmp_path / "x.cks", dtype=[dtype], verify=True)
    assert report.summary().splitlines()[-1].endswith(text)
    assert report.as_dict()["rounded"] == (("data",) if dtype == "float32" else ())


@pytest.mark.parametrize("how", ["write", "replace", "move"])
def test_fast_path_notices_a_change(tmp_path: Path, how: str) -> None:
    """A file that is written, replaced or moved into its place meanwhile is not mixed with the files of before."""
    save_tree(tmp_path / "src", [(1000,)] * 9)
    np.save(tmp_path / "old.npy", np.ones(1000, "f4"))
    time.sleep(0.05)
    made: list[int] = []

    def change(done: int, total: int, *_: int) -> None:
        made.append(done)
        if len(made) > 1:
            return
        last = tmp_path / "src/8.npy"
        if how == "write":
            with last.open("r+b") as file:
                file.seek(128)
                file.write(np.ones(1000, "f4").tobytes())
            os.utime(last, ns=(1, 1))
        elif how == "replace":
            np.save(last, np.ones(1000, "f4"))
        else:
            os.replace(tmp_path / "old.npy", last)

    with patch_full_plan() as full:
        chunkstore.convert(tmp_path / "src", tmp_path / "x.cks", shard_nbytes=4000, progress=change)
    assert full == [1]
    with chunkstore.open(tmp_path / "x.cks") as container:
        assert (container["8"]["data"] == 1).all()


@contextmanager
def patch_full_plan() -> Iterator[list[int]]:
    """Counts the full plans."""
    real, calls = module.make_plan, []

    def count(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return real(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "make_plan", count)
        yield calls


def test_quiet_files_take_the_fast_path(tmp_path: Path) -> None:
    """Where nothing writes to the files, the full plan is not made."""
    save_tree(tmp_path / "src", [(1000,)] * 9)
    time.sleep(0.05)
    with patch_full_plan() as full:
        chunkstore.convert(tmp_path / "src", tmp_path / "x.cks", verify=True)
    assert full == []


def test_report_counts_and_shapes(tmp_path: Path) -> None:
    """One file is `1 file`; a shape of one dimension is written as Python writes it."""
    np.save(tmp_path / "x.npy", np.zeros(1662))
    text = chunkstore.convert(tmp_path / "x.npy", tmp_path / "x.cks", layout="files").summary()
    assert "data: float64 (1662,)" in text
    assert "1 sample of 1 file in" in text
    np.save(tmp_path / "y.npy", np.zeros(1662))
    (tmp_path / "z.npy").write_bytes(b"")
    text = chunkstore.convert(tmp_path, tmp_path / "y.cks", on_error="skip").summary()
    assert "2 samples of 2 files" in text
    assert "1 file was SKIPPED" in text


def test_shard_size_of_numpy(tmp_path: Path) -> None:
    """An unsigned integer of NumPy cuts as one of Python does."""
    np.save(tmp_path / "x.npy", np.arange(50.0))
    for name, number in (("a.cks", 64), ("b.cks", np.uint64(64))):
        chunkstore.convert(tmp_path / "x.npy", tmp_path / name, layout="rows", shard_nbytes=number)
    one, other = ((tmp_path / name).read_bytes()[HEAD_NBYTES:] for name in ("a.cks", "b.cks"))
    assert one == other
