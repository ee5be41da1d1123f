"""Readers in other threads and processes: nothing is shared but the file."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chunkstore
from chunkstore import Reader, Writer

N = 2000
ROWS = np.random.default_rng(3).integers(0, 256, (N, 700), dtype=np.uint8)
METHODS = [method for method in ("fork", "forkserver", "spawn") if method in multiprocessing.get_all_start_methods()]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("processes") / "a.cks"
    with Writer(target) as writer:
        writer.add_batch({"x": ROWS, "i": np.arange(N)}, keys=[f"k{i}" for i in range(N)])
    return target


@pytest.fixture(params=["mmap", "pread"])
def ds(path: Path, request: pytest.FixtureRequest) -> Any:
    with chunkstore.open(path, backend=request.param) as reader:
        yield reader


def wrong_reads(ds: Reader, seed: int, rounds: int = 20) -> int:
    """How many batches, rows and keys are not what was written."""
    rng = np.random.default_rng(seed)
    wrong = 0
    for _ in range(rounds):
        positions = rng.integers(0, N, 64)
        place = int(positions[0])
        wrong += not np.array_equal(ds.batch(positions)["x"], ROWS[positions])  # type: ignore[arg-type]
        wrong += not np.array_equal(ds[place]["x"], ROWS[place])
        wrong += int(ds[f"k{place}"]["i"]) != place
        wrong += not np.array_equal(ds[place : place + 90]["x"], ROWS[place : place + 90])  # type: ignore[arg-type]
    return wrong


@pytest.mark.parametrize("method", METHODS)
def test_processes(ds: Reader, method: str) -> None:
    """Children that get the reader by pickle read what was written; the parent's goes on."""
    assert wrong_reads(ds, 0, 2) == 0
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        assert list(pool.map(wrong_reads, [ds] * 3, range(3))) == [0] * 3
    assert wrong_reads(ds, 1, 2) == 0


def test_inherited_by_fork(ds: Reader) -> None:
    """A child that was forked with the reader open uses it at once, while the parent does the same."""
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    child = os.fork()
    if not child:
        status = 1
        try:
            status = wrong_reads(ds, 5)
        finally:
            os._exit(status)
    assert wrong_reads(ds, 6) == 0
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_threads(ds: Reader) -> None:
    """Many threads on one reader, from its very first reads on."""
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(wrong_reads, [ds] * 8, range(8))) == 0


def test_first_use_of_a_pickled_reader_in_threads(ds: Reader) -> None:
    """Threads that all reopen it at the same moment."""
    copy = pickle.loads(pickle.dumps(ds))
    start = threading.Barrier(6)

    def read(seed: int) -> int:
        start.wait()
        return wrong_reads(copy, seed, 2)

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(read, range(6))) == 0
    copy.close()


def test_pickle(ds: Reader, path: Path) -> None:
    """Under 1 kB, options kept, opened at first use only, and by its full path."""
    options = {"backend": ds.backend, "verify": "always", "fields": ["i"]}
    with chunkstore.open(path, **options) as reader:  # type: ignore[arg-type]
        data = pickle.dumps(reader)
    assert len(data) < 1000
    copy = pickle.loads(data)
    assert not hasattr(copy, "nonsense")
    assert (copy.verify, list(copy.fields), copy.backend, copy.path) == ("always", ["i"], ds.backend, str(path))
    assert len(pickle.dumps(pickle.loads(pickle.dumps(pickle.loads(data))))) < 1000
    copy.close()


def test_pickle_of_what_is_gone(ds: Reader, tmp_path: Path, path: Path) -> None:
    """The copy says so at its first use, not when it is unpickled."""
    other = tmp_path / "b.cks"
    other.write_bytes(path.read_bytes())
    with chunkstore.open(other, backend=ds.backend) as reader:  # type: ignore[arg-type]
        data = pickle.dumps(reader)
    other.unlink()
    copy = pickle.loads(data)
    with pytest.raises(FileNotFoundError):
        len(copy)


def test_no_thread_and_no_lock(ds: Reader) -> None:
    """After reads of all kinds there are as many threads as before."""
    before = threading.active_count()
    wrong_reads(ds, 0, 3)
    ds.prefetch(range(50))
    assert threading.active_count() == before


def test_map_of_a_truncated_file(tmp_path: Path) -> None:
    """What the documentation says: touching a view beyond a truncated end kills the process, a batch does not."""
    path = tmp_path / "a.cks"
    with Writer(path) as writer:
        writer.add_batch({"x": np.zeros((200, 5000), np.uint8)})
    code = f"""
import os, chunkstore
ds = chunkstore.open({str(path)!r}, backend="mmap", verify="off")
row = ds[199]["x"]
os.truncate({str(path)!r}, 20_000)
try:
    ds.batch([199, 3])
except chunkstore.TruncatedError:
    print("clean", flush=True)
row.sum()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout == "clean\n"
    assert run.returncode != 0


def test_reading_imports_nothing_of_numpy(path: Path) -> None:
    """A child that is forked while another thread reads for the first time would wait for that import for ever."""
    code = (
        "import sys, chunkstore, numpy as np\n"
        "with chunkstore.open(sys.argv[1], backend=sys.argv[2]) as ds:\n"
        "    before = set(sys.modules)\n"
        "    ds.batch(np.arange(0, 2000, 7)); ds[5]; ds[100:200]; ds.find(['k7', 'k9'])\n"
        "print(sorted(name for name in set(sys.modules) - before if name.startswith('numpy')))\n"
    )
    for backend in ("mmap", "pread"):
        found = subprocess.run(
            [sys.executable, "-c", code, str(path), backend], capture_output=True, text=True, check=False
        )
        assert (found.stdout.strip(), found.stderr) == ("[]", "")


def test_a_fork_beside_an_import_that_logs() -> None:
    """Both come to an end: whoever forks takes the lock of imports before that of `logging`, as an import does."""
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    code = """
import chunkstore._importing, logging, os, threading, time

held = threading.Event()

def load():
    with chunkstore._importing.IMPORTING:
        held.set()
        time.sleep(0.2)
        logging.getLogger("a.package")

thread = threading.Thread(target=load, daemon=True)
thread.start()
held.wait()
child = os.fork()
if not child:
    os._exit(0)
os.waitpid(child, 0)
thread.join()
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=20)


def test_close_while_another_thread_opens(ds: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of an unpickled reader, which opens at first use: afterwards it is closed, and nothing stays open."""
    again, opens = pickle.loads(pickle.dumps(ds)), Reader._open
    before = len(os.listdir("/proc/self/fd"))

    def closed_meanwhile(reader: Reader) -> Any:
        opened = opens(reader)
        reader.close()
        return opened

    monkeypatch.setattr(Reader, "_open", closed_meanwhile)
    for _ in range(2):
        with pytest.raises(chunkstore.ClosedError):
            again.batch([1, 2])
    assert len(os.listdir("/proc/self/fd")) == before
