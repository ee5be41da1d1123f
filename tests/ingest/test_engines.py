"""`convert(executor=)`: real engines, started and stopped here; the same bytes on each, and all or nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import hidden
import numpy as np
import pytest

import chunkstore
from chunkstore._ingest.convert import convert as module
from chunkstore._ingest.convert import engine
from chunkstore._ingest.convert import pool as pool_module
from chunkstore._ingest.npy.npz import InflateStream
from chunkstore._storage.sink import Sink
from chunkstore.errors import IngestError, WriteError

ROOT = Path(__file__).resolve().parents[2]
OPTIONS: dict[str, Any] = {"layout": "rows", "shard_nbytes": 20_000}
METHODS = ["spawn"] if sys.platform == "win32" else ["fork", "forkserver", "spawn"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Deflated and stored fields, one in Fortran order: tasks of single shards and of runs of them."""
    root = tmp_path_factory.mktemp("engines") / "source"
    root.mkdir()
    rng = np.random.default_rng(0)
    for place in range(6):
        x, y = rng.integers(0, 99, (500 + place, 12)), rng.random((500 + place, 3, 2))
        (np.savez_compressed if place % 2 else np.savez)(root / f"{place}.npz", x=x, y=np.asfortranarray(y))
    return root


@pytest.fixture(scope="module")
def alone(source: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What one process makes of them."""
    path = tmp_path_factory.mktemp("alone") / "x.cks"
    chunkstore.convert(source, path, workers=1, verify=True, **OPTIONS)
    return path.read_bytes()


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """A path in a directory in which nothing may be left but the container."""
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "x.cks"
    yield path
    assert {left.name for left in path.parent.iterdir()} <= {"x.cks"}


@pytest.mark.parametrize("method", METHODS)
def test_processes(source: Path, alone: bytes, target: Path, method: str) -> None:
    """A process pool of any start method; it is not shut down."""
    with ProcessPoolExecutor(2, mp_context=get_context(method)) as pool:
        chunkstore.convert(source, target, executor=pool, **OPTIONS)
        assert pool.submit(abs, -1).result() == 1
    assert target.read_bytes() == alone


@pytest.mark.parametrize("under_way", [1, 2, 40])
def test_threads(source: Path, alone: bytes, target: Path, under_way: int) -> None:
    """Threads, however many tasks are under way."""
    with ThreadPoolExecutor(3) as pool:
        chunkstore.convert(source, target, executor=pool, workers=under_way, **OPTIONS)
    assert target.read_bytes() == alone


def test_worker_in_another_directory(source: Path, alone: bytes, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths are those of the caller, wherever the workers are."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=os.chdir, initargs=("/",)) as pool:
        monkeypatch.chdir(source.parent)
        chunkstore.convert(source.name, os.path.relpath(target), executor=pool, **OPTIONS)
    assert target.read_bytes() == alone


def test_processes_that_do_not_see_the_container(source: Path, alone: bytes, target: Path) -> None:
    """As on machines without a shared file system: the parts that they give back make the same file."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as probe:
        if not probe.submit(hidden.can_hide, str(target.parent)).result():
            pytest.skip("this system lets no process hide a directory from itself")
    context, hiding = get_context("spawn"), (str(target.parent), "/")
    with ProcessPoolExecutor(2, mp_context=context, initializer=hidden.elsewhere, initargs=hiding) as pool:
        assert pool.submit(os.listdir, target.parent).result() == []
        chunkstore.convert(source, target, executor=pool, verify=True, **OPTIONS)
        assert pool.submit(os.listdir, target.parent).result() == []
    assert target.read_bytes() == alone


@pytest.mark.parametrize("most", [0, 20_000, 1 << 30])
def test_parts(source: Path, alone: bytes, target: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Parts, and tasks too large for one, which the converter does itself, make the same file."""
    monkeypatch.setattr(engine, "_join", lambda *order: None)
    monkeypatch.setattr(engine, "PART_NBYTES", most)
    with ThreadPoolExecutor(2) as pool:
        chunkstore.convert(source, target, executor=pool, **OPTIONS)
    assert target.read_bytes() == alone


def test_uniform_files_as_parts(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick way for files that are all alike knows parts, too."""
    (tmp_path / "src").mkdir()
    for place in range(20):
        np.save(tmp_path / "src" / f"{place}.npy", np.full(500, place))
    one = chunkstore.convert(tmp_path / "src", tmp_path / "one.cks", shard_nbytes=9000)
    monkeypatch.setattr(engine, "_join", lambda *order: None)
    with ThreadPoolExecutor(2) as pool:
        other = chunkstore.convert(tmp_path / "src", target, executor=pool, shard_nbytes=9000)
    assert one.fingerprint == other.fingerprint


def test_another_file_of_that_name(tmp_path: Path) -> None:
    """A worker looks for the token: on its machine the path may lead to another file, which stays as it is."""
    (tmp_path / "a").write_bytes(bytes(100))
    with Sink.open(tmp_path / "a") as sink:
        token = engine.mark(sink, shared=True)

    joined = engine._join(str(tmp_path / "a"), token)
    assert joined is not None
    joined.close()
    assert engine._join(str(tmp_path / "a"), bytes(16)) is None


def test_worker_that_dies(source: Path, target: Path) -> None:
    """A worker of the caller's pool that is killed: a clear error, and nothing is published or left."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        pids = {pool.submit(os.getpid).result() for _ in range(4)}

        def kill(done: int, *rest: int) -> None:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            pids.clear()

        with pytest.raises(WriteError, match=r"a worker process died .* nothing was published"):
            chunkstore.convert(source, target, executor=pool, workers=1, progress=kill, **OPTIONS)
    assert list(target.parent.iterdir()) == []


def test_executor_that_was_shut_down(source: Path, target: Path) -> None:
    """What the executor says is told, and nothing is left."""
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(WriteError, match=r"RuntimeError: cannot schedule .*nothing was published"):
        chunkstore.convert(source, target, executor=pool, **OPTIONS)


@pytest.mark.parametrize("executor", [4, "dask", ThreadPoolExecutor])
def test_no_executor(source: Path, target: Path, executor: Any) -> None:
    """A number, a name or a class in its place is named before any work."""
    with pytest.raises(TypeError, match=r"executor: expected a concurrent\.futures\.Executor .*, found"):
        chunkstore.convert(source, target, executor=executor)
    assert not list(target.parent.iterdir())


class Losing(Executor):
    """Runs the first task, loses the others."""

    def __init__(self) -> None:
        self.num = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.num += 1
        if self.num == 1:
            future.set_result(fn(*args, **kwargs))
        else:
            future.set_exception(ZeroDivisionError("lost"))
        return future


def test_executor_that_loses_a_task(source: Path, target: Path) -> None:
    """Any class of error of an engine is its failure: nothing is published."""
    with pytest.raises(WriteError, match=r"ZeroDivisionError: lost\): nothing was published"):
        chunkstore.convert(source, target, executor=Losing(), **OPTIONS)


def test_error_of_a_task(source: Path, tmp_path: Path, target: Path) -> None:
    """What is wrong with a source comes as from one process, and the executor works on."""
    shutil.copytree(source, tmp_path / "bad")
    damaged = bytearray((tmp_path / "bad" / "0.npz").read_bytes())
    damaged[2000] ^= 1
    (tmp_path / "bad" / "0.npz").write_bytes(damaged)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        with pytest.raises(IngestError, match="CRC"):
            chunkstore.convert(tmp_path / "bad", target, executor=pool, **OPTIONS)
        assert pool.submit(abs, -1).result() == 1


@pytest.mark.parametrize("own", [False, True])
def test_an_error_does_not_wait_long_for_an_earlier_one(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    """A damaged file is told although the file before it takes long, on a worker or in this process."""
    (tmp_path / "src").mkdir()
    slowest, bad = ("b.npz", "c.npz") if own else ("a.npz", "b.npz")
    for name in ("a.npz", "b.npz", "c.npz"):
        np.savez_compressed(tmp_path / "src" / name, x=np.zeros(8 << 20 if name == slowest else 1 << 20))
    damaged = bytearray((tmp_path / "src" / bad).read_bytes())
    damaged[200] ^= 1
    (tmp_path / "src" / bad).write_bytes(damaged)
    real = InflateStream._next

    def slow(stream: InflateStream, limit: int) -> bytes:
        time.sleep(0.2 if slowest in stream._where and stream.position else 0.0)  # 64 pieces: 13 s
        return real(stream, limit)

    monkeypatch.setattr(InflateStream, "_next", slow)
    started = time.perf_counter()
    with ThreadPoolExecutor(2) as pool, pytest.raises(IngestError, match=f"{bad}.*damaged"):
        if own:
            monkeypatch.setattr(pool, "kill", lambda: pool.shutdown(cancel_futures=True), raising=False)
            monkeypatch.setattr(module, "WorkerPool", lambda workers: contextlib.nullcontext(pool))
            monkeypatch.setattr(pool_module, "WorkerPool", ThreadPoolExecutor)
            chunkstore.convert(tmp_path / "src", target, workers=2, layout="files", shard_nbytes=1)
        else:
            chunkstore.convert(tmp_path / "src", target, executor=pool, layout="files", shard_nbytes=1)
    assert time.perf_counter() - started < 8


def test_interrupt(source: Path, target: Path) -> None:
    """Ctrl-C in the middle: tasks that wait are cancelled, nothing is left, and the executor is still the caller's."""

    def interrupt(done: int, total: int, *rest: int) -> None:
        raise KeyboardInterrupt

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(KeyboardInterrupt, match="nothing is left behind"):
            chunkstore.convert(source, target, executor=pool, workers=30, progress=interrupt, **OPTIONS)
        assert list(target.parent.iterdir()) == []
        assert pool.submit(abs, -1).result() == 1
        assert pool._work_queue.empty()


# -- Dask -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def dask_client() -> Iterator[Any]:
    """A scheduler and two worker processes on this machine."""
    distributed = pytest.importorskip("distributed")
    options = {"processes": True, "threads_per_worker": 1, "dashboard_address": None, "host": "127.0.0.1"}
    with distributed.LocalCluster(n_workers=2, **options) as cluster, distributed.Client(cluster) as client:
        yield client


def test_dask(dask_client: Any, source: Path, alone: bytes, target: Path) -> None:
    """`Client.get_executor()`; the cluster works on."""
    chunkstore.convert(source, target, executor=dask_client.get_executor(), **OPTIONS)
    assert target.read_bytes() == alone
    assert dask_client.submit(abs, -1).result() == 1


@contextlib.contextmanager
def dying(client: Any) -> Iterator[None]:
    """One worker of a cluster stands still, so that what it is given stays with it, and is killed a second later."""
    address, victim = next(iter(client.run(os.getpid).items()))
    lost: list[int] = []

    def kill() -> None:
        lost.append(len(client.cluster.scheduler.workers[address].processing))
        os.kill(victim, signal.SIGKILL)

    timer = threading.Timer(1, kill)
    os.kill(victim, signal.SIGSTOP)
    timer.start()
    try:
        yield
    finally:
        timer.join()
    assert lost[0] > 0


def test_dask_worker_that_dies(dask_client: Any, source: Path, alone: bytes, target: Path) -> None:
    """Dask does the work of a lost worker again: the container is complete, and the same."""
    with dying(dask_client):
        chunkstore.convert(source, target, executor=dask_client.get_executor(), workers=8, **OPTIONS)
    assert target.read_bytes() == alone


def test_dask_that_gives_up(dask_client: Any, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that Dask does not try again ends the conversion: a clear error, nothing is published or left."""
    monkeypatch.setattr(dask_client.cluster.scheduler, "allowed_failures", 0)
    with dying(dask_client), pytest.raises(WriteError, match=r"KilledWorker.*nothing was published"):
        chunkstore.convert(source, target, executor=dask_client.get_executor(), workers=8, **OPTIONS)
    assert list(target.parent.iterdir()) == []


# -- MPI --------------------------------------------------------------------------------------------------------------

MPI_SCRIPT = """
import sys
from mpi4py.futures import MPIPoolExecutor
import chunkstore

if __name__ == "__main__":
    with MPIPoolExecutor() as pool:
        chunkstore.convert(sys.argv[1], sys.argv[2], executor=pool, layout="rows", shard_nbytes=20_000)
        print("workers", pool.num_workers, "works on", pool.submit(abs, -1).result())
"""


def _mpiexec() -> str | None:
    beside = Path(sys.executable).with_name("mpiexec")  # a wheel brings it
    return str(beside) if beside.exists() else shutil.which("mpiexec")


def test_mpi(tmp_path: Path, source: Path, alone: bytes, target: Path) -> None:
    """`MPIPoolExecutor` with two workers that were started by `mpiexec`."""
    pytest.importorskip("mpi4py")
    mpiexec = _mpiexec()
    if mpiexec is None:
        pytest.skip("there is no mpiexec")
    (tmp_path / "script.py").write_text(MPI_SCRIPT)
    command = [mpiexec, "-n", "3", sys.executable, "-m", "mpi4py.futures", tmp_path / "script.py", source, target]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    assert "workers 2 works on 1" in run.stdout
    assert target.read_bytes() == alone


# -- Ray --------------------------------------------------------------------------------------------------------------


def test_ray(source: Path, alone: bytes, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter of `tools`, with two worker processes."""
    ray = pytest.importorskip("ray")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from ray_executor import RayExecutor

    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    try:
        with RayExecutor() as pool:
            chunkstore.convert(source, target, executor=pool, **OPTIONS)
            assert pool.submit(abs, -1).result() == 1
    finally:
        ray.shutdown()
    assert target.read_bytes() == alone
