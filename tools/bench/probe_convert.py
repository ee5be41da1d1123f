"""A process of its own that converts, for `workloads/scaling.py`: seconds, and the most memory of each process.

python -m tools.bench.probe_convert SOURCE TARGET WORKERS

WORKERS is a number of worker processes, or 0 for this process alone.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import sys
import time
from pathlib import Path

import chunkstore
from chunkstore._ingest.convert.pool import WorkerPool


def peak_nbytes(pid: int) -> int:
    """The most resident memory that a process has had, shared libraries included; 0 where it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+([0-9]+) kB", text)
    return int(found[1]) << 10 if found else 0


def main(source: str, target: str, workers: str) -> None:
    """Convert and print one line of JSON."""
    peaks: dict[int, int] = {}

    def look(*_: int) -> None:
        for child in multiprocessing.active_children():
            if child.pid is not None:
                peaks[child.pid] = max(peaks.get(child.pid, 0), peak_nbytes(child.pid))

    start = time.perf_counter()
    if int(workers):
        # `--workers 1` starts no process, and writes in a second thread: with one it would be no worker like two are.
        with WorkerPool(int(workers)) as pool:
            chunkstore.convert(source, target, layout="rows", executor=pool, progress=look)
    else:
        chunkstore.convert(source, target, layout="rows", workers=1, progress=look)
    seconds = time.perf_counter() - start
    own = peak_nbytes(multiprocessing.current_process().pid or 0)
    print(json.dumps({"seconds": seconds, "workers": sorted(peaks.values()), "own": own}))


if __name__ == "__main__":
    main(*sys.argv[1:])
