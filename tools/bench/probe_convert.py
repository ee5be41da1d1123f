"""Processes of their own for `workloads/scaling.py`: seconds of a conversion, or of bare inflating, and memory.

python -m tools.bench.probe_convert convert SOURCE TARGET WORKERS
python -m tools.bench.probe_convert inflate FILE...

`convert` prints one line of JSON. `inflate` prints `ready`, waits for a line, inflates, prints `done`.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import sys
import time
import zipfile
from pathlib import Path

import chunkstore

_PIECE_NBYTES = 1 << 20


def peak_nbytes(pid: int) -> int:
    """The most resident memory that a process has had, shared libraries included; 0 where it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+([0-9]+) kB", text)
    return int(found[1]) << 10 if found else 0


def convert(source: str, target: str, workers: str) -> None:
    """Convert and print one line of JSON; the peaks are those of all workers, this process first."""
    peaks: dict[int, int] = {}

    def look(*_: int) -> None:
        for child in multiprocessing.active_children():
            if child.pid is not None:
                peaks[child.pid] = max(peaks.get(child.pid, 0), peak_nbytes(child.pid))

    start = time.perf_counter()
    chunkstore.convert(source, target, layout="rows", workers=int(workers), progress=look)
    seconds = time.perf_counter() - start
    own = peak_nbytes(multiprocessing.current_process().pid or 0)
    print(json.dumps({"seconds": seconds, "peaks": [own, *peaks.values()]}))


def inflate(paths: list[str]) -> None:
    """Read all members of zip files, CRC included, and do nothing with them."""
    print("ready", flush=True)
    sys.stdin.readline()
    for path in paths:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    while member.read(_PIECE_NBYTES):
                        pass
    print("done", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "convert":
        convert(*sys.argv[2:])
    else:
        inflate(sys.argv[2:])
