"""The main job where Windows's calls are all that there is: no `pread`, `flock`, `fork`, no removal of open files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the stand-in asks /proc which files are open")
HERE = Path(__file__).resolve().parent

MAIN = """
import contextlib, gc, os, time
from pathlib import Path
import numpy as np
import chunkstore
from chunkstore._storage import platform

def values(path, backend):
    with chunkstore.open(path, backend=backend) as ds:
        got = ds.batch(range(len(ds)))["data"]
        assert all(np.array_equal(ds[i]["data"], got[i]) for i in range(0, len(ds), 7))
        return np.array(got)

if __name__ == "__main__":
    rows = np.random.default_rng(1).random((40, 6, 5)).astype(np.float32)
    assert [name for name, twin in platform.PLAIN.items() if getattr(platform, name) is not twin] == ["link"]
    for kind in ("npy", "fortran", "stored", "deflated"):
        Path(kind).mkdir()
        for i, row in enumerate(rows):
            match kind:
                case "npy": np.save(f"{kind}/{i:02}.npy", row)
                case "fortran": np.save(f"{kind}/{i:02}.npy", np.asfortranarray(row))
                case "stored": np.savez(f"{kind}/{i:02}.npz", data=row)
                case "deflated": np.savez_compressed(f"{kind}/{i:02}.npz", data=np.asfortranarray(row))
        time.sleep(0.05)  # files that were written just now are left to the full plan
        for workers in (1, 2):
            chunkstore.convert(kind, f"{kind}.cks", workers=workers, shard_nbytes=1500, verify=True, mode="w")
            assert chunkstore.verify(f"{kind}.cks").ok
            for backend in ("mmap", "pread"):
                assert np.array_equal(values(f"{kind}.cks", backend), rows)
    with chunkstore.open("npy.cks") as before:
        with chunkstore.Writer("npy.cks", mode="a") as writer:
            with contextlib.suppress(chunkstore.LockedError):
                raise AssertionError(chunkstore.Writer("npy.cks", mode="a"))
            writer.add({"data": rows[0]}, key="one more")
        assert len(before) == 40 and np.array_equal(before[39]["data"], rows[39])
        # A file that is open cannot be replaced: what is there stays, and nothing is left beside it.
        with contextlib.suppress(chunkstore.WriteError):
            raise AssertionError(chunkstore.convert("npy", "npy.cks", mode="w"))
    assert np.array_equal(values("npy.cks", "mmap"), [*rows, rows[0]])
    chunkstore.repack("npy.cks", "npy.cks", mode="w")
    assert np.array_equal(values("npy.cks", "mmap"), [*rows, rows[0]])
    assert chunkstore.verify("npy.cks").ok
    chunkstore.export("npy.cks", "out")
    assert np.array_equal(np.stack([np.load(f"out/{i:02}.npy") for i in range(40)]), rows)
    assert np.array_equal(np.load("out/one more.npy"), rows[0])
    forgotten = chunkstore.Writer("forgotten.cks")
    forgotten.add({"data": rows[0]})
    del forgotten
    gc.collect()
    assert [name for name in os.listdir() if name.startswith(".")] == []
    print("all of it ran")
"""


def test_main_job(tmp_path: Path) -> None:
    """Convert (with worker processes, too), open, verify, append, replace, repack in place, export: nothing is left."""
    (tmp_path / "main.py").write_text(MAIN, encoding="utf-8")
    # Worker processes start with it, too.
    (tmp_path / "sitecustomize.py").write_text("import windows_like\nwindows_like.install()\n", encoding="utf-8")
    (tmp_path / "cwd").mkdir()
    paths = os.pathsep.join(map(str, (tmp_path, HERE, HERE.parent)))
    run = subprocess.run(
        [sys.executable, str(tmp_path / "main.py")],
        cwd=tmp_path / "cwd",
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (run.returncode, run.stdout) == (0, "all of it ran\n"), run.stderr
