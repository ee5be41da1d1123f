"""Large things in little memory, and numbers at the limits of 31 and 32 bits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

import chunkstore
from tools.battery import ROOT

LIMIT_MIB = 150
SIZES = (2**31 - 1, 2**31 + 1, 2**32 - 1, 2**32 + 1)

# Measured by the peak of resident memory. A limit of the address space (RLIMIT_AS) would also count maps, of which
# nothing need be in memory; pages of a mapped file count here although the system may take them back at any time.
_CHILD = """
import sys
sys.path[:0] = [{root!r}]
import chunkstore
{code}
# Not `ru_maxrss`, which a process inherits from the one that started it.
print(next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_mib(code: str) -> int:
    """Peak of resident memory of a process that runs this, in MiB."""
    script = _CHILD.format(root=str(ROOT), code=code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-300:])
    return int(done.stdout.split()[-1])


def convert_and_verify(folder: Path, nbytes: int) -> dict[str, int]:
    """Peaks in MiB of converting a file of so many bytes, verifying and reading it in order."""
    source, path = folder / "x.npy", folder / "x.cks"
    rows = np.lib.format.open_memmap(source, mode="w+", dtype=np.uint8, shape=(nbytes // 4096, 4096))
    for start in range(0, len(rows), 4096):
        rows[start : start + 4096] = np.random.default_rng(start).integers(
            0, 256, (len(rows[start : start + 4096]), 4096)
        )
    del rows
    peaks = {
        "convert": peak_mib(f"chunkstore.convert({str(source)!r}, {str(path)!r}, layout='rows')"),
        "verify": peak_mib(f"assert chunkstore.verify({str(path)!r}, deep=True).ok"),
        "read in order": peak_mib(f"for row in chunkstore.open({str(path)!r}, backend='pread'): pass"),
    }
    source.unlink()
    path.unlink()
    return peaks


def boundary(folder: Path, nbytes: int) -> list[str]:
    """Two rows of so many bytes, from a sparse file; the second begins and ends where it should."""
    source, path = folder / "x.npy", folder / "x.cks"
    rows = np.lib.format.open_memmap(source, mode="w+", dtype=np.uint8, shape=(2, nbytes))
    rows[0, 0], rows[0, -1], rows[1, 0], rows[1, -1] = 1, 2, 3, 4
    del rows
    wrong = []
    chunkstore.convert(source, path, layout="rows")
    source.unlink()
    if not chunkstore.verify(path).ok:
        wrong.append(f"{nbytes}: verify")
    with chunkstore.open(path, backend="mmap", verify="off") as ds:
        found = [int(ds[n]["data"][place]) for n in (0, 1) for place in (0, nbytes - 1)]
        if found != [1, 2, 3, 4] or ds[1]["data"].shape != (nbytes,):
            wrong.append(f"{nbytes}: map: {found}")
    with chunkstore.open(path, backend="pread", verify="once") as ds:
        row = ds[1]["data"]  # more than one call can move
        if (int(row[0]), int(row[-1]), row.shape) != (3, 4, (nbytes,)):
            wrong.append(f"{nbytes}: pread")
    path.unlink()
    return wrong


def many_rows(folder: Path, count: int) -> list[str]:
    """So many rows of one byte, from a sparse file: those around 2^31, 2^32 and the end are right."""
    source, path = folder / "x.npy", folder / "x.cks"
    places = sorted({n for base in (0, 2**31, 2**32, count) for n in range(base - 2, base + 2) if 0 <= n < count})
    rows = np.lib.format.open_memmap(source, mode="w+", dtype=np.uint8, shape=(count,))
    rows[places] = np.arange(1, len(places) + 1)
    del rows
    chunkstore.convert(source, path, layout="rows")
    source.unlink()
    wanted = list(range(1, len(places) + 1))
    wrong = [] if chunkstore.verify(path).ok else [f"{count} rows: verify"]
    for backend in ("mmap", "pread"):
        with chunkstore.open(path, backend=backend) as ds:  # type: ignore[arg-type]
            found = ds.batch(places)["data"].tolist()
            one_by_one = [int(ds[place]["data"]) for place in places]
            if (len(ds), found, one_by_one) != (count, wanted, wanted):
                wrong.append(f"{count} rows, {backend}: {found}, {one_by_one}")
            start = max(0, count - 2**31 - 5)
            tail = ds[start:count]["data"]  # more than one call can move
            if (
                len(tail) != count - start
                or int(tail[-1]) != wanted[-1]
                or int(np.count_nonzero(tail)) != sum(place >= start for place in places)
            ):
                wrong.append(f"{count} rows, {backend}: a slice")
            del tail
    path.unlink()
    return wrong
