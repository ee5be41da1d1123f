"""`convert` in processes of its own: interrupted, killed, short of memory, called from a script without a guard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import chunkstore

# Reports where it is, then works on slowly, so that something can be done to it in the middle.
SCRIPT = """
import sys, time, multiprocessing
import chunkstore

def slow(done, total, *rest):
    print("working", *(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(float(sys.argv[4]))

try:
    options = {"layout": "rows", "shard_nbytes": 1 << 16, "progress": slow}
    report = chunkstore.convert(sys.argv[1], sys.argv[2], workers=int(sys.argv[3]), **options)
except KeyboardInterrupt as stop:
    print("stopped:", stop, flush=True)
    sys.exit(130)
except chunkstore.ChunkstoreError as error:
    print(type(error).__name__, error, flush=True)
    sys.exit(3)
print("done", report.fingerprint, "main ran as", __name__, flush=True)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve deflated files, 12 MB unpacked: 200 shards."""
    root = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    for place in range(12):
        np.savez_compressed(root / f"{place}.npz", x=rng.integers(0, 99, (1000 + place, 125)))
    return root


def start(script: Path, *arguments: object) -> subprocess.Popen[str]:
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def gone(pid: int) -> bool:
    """Whether a process ends within two seconds."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("workers", [1, 2])
def test_interrupt(tmp_path: Path, source: Path, workers: int) -> None:
    """Ctrl-C in the middle: no container, no temporary, no worker, no traceback; a message says how to go on."""
    target = tmp_path / "out"
    target.mkdir()
    process = start(tmp_path / "script.py", source, target / "x.cks", workers, 0.05)
    assert process.stdout is not None
    children = process.stdout.readline().split()[1:]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130, (out, err)
    assert "x.cks was not written, and nothing is left behind. Run the same again" in out
    assert err == ""
    assert list(target.iterdir()) == []
    assert all(gone(int(pid)) for pid in children)
    assert len(children) == workers - 1


def test_worker_that_dies(tmp_path: Path, source: Path) -> None:
    """A worker that is killed ends the conversion with a clear error; nothing is published."""
    target = tmp_path / "out"
    target.mkdir()
    process = start(tmp_path / "script.py", source, target / "x.cks", 2, 0.05)
    assert process.stdout is not None
    children = process.stdout.readline().split()[1:]
    os.kill(int(children[0]), signal.SIGKILL)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 3, (out, err)
    assert "WriteError" in out
    assert "a worker process died" in out
    assert "nothing was published" in out
    assert list(target.iterdir()) == []


def test_parent_that_dies(tmp_path: Path, source: Path) -> None:
    """Workers end with a parent that was killed outright; its temporary is found by `stale_temporaries`."""
    from chunkstore._storage.commit import stale_temporaries

    process = start(tmp_path / "script.py", source, tmp_path / "x.cks", 2, 0.05)
    assert process.stdout is not None
    children = process.stdout.readline().split()[1:]
    process.kill()
    process.communicate(timeout=20)
    assert children
    assert all(gone(int(pid)) for pid in children)
    assert len(stale_temporaries(tmp_path / "x.cks")) == 1


def test_script_without_guard(tmp_path: Path, source: Path) -> None:
    """A script that calls `convert` at its top level, without `if __name__ == "__main__"`, does not run in workers."""
    process = start(tmp_path / "script.py", source, tmp_path / "x.cks", 2, 0)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.count("done") == 1
    alone = chunkstore.convert(source, tmp_path / "y.cks", workers=1, layout="rows", shard_nbytes=1 << 16)
    assert f"done {alone.fingerprint}" in out


MEMORY = """
import re, sys
import chunkstore
chunkstore.convert(sys.argv[1], sys.argv[2], workers=1, layout="rows")
# Not ru_maxrss: that of a child begins with what its parent had.
print(re.search(r"VmHWM:\\s+([0-9]+) kB", open("/proc/self/status").read())[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("order", ["C", "F"])
def test_memory(tmp_path: Path, order: str) -> None:
    """A (sparse) file of 512 MiB, in C or Fortran order, is converted within 150 MiB of memory."""
    path = tmp_path / "big.npy"
    shape = (1 << 16, 1024)
    np.lib.format.open_memmap(path, "w+", np.float64, shape, fortran_order=order == "F").flush()
    command = [sys.executable, "-c", MEMORY, str(path), str(tmp_path / "x.cks")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert int(run.stdout) < 150 << 10, run.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_memory_of_a_deflated_member(tmp_path: Path) -> None:
    """A deflated member of 256 MiB is converted within 150 MiB."""
    np.savez_compressed(tmp_path / "big.npz", x=np.zeros((1 << 15, 1024)))
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "big.npz"), str(tmp_path / "x.cks")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert int(run.stdout) < 150 << 10, run.stdout
