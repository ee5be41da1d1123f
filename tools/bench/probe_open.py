"""Run in a fresh process: open a container, read one sample, find one by key; time and memory as JSON.

Usage: python -m tools.bench.probe_open SMALL CONTAINER POSITION

SMALL is another container, read first: its time has the imports in it, which `chunkstore` puts off until they are
wanted, and which cost the same whatever is opened.
"""

from __future__ import annotations

import itertools
import json
import sys
import time

import chunkstore


def resident_bytes() -> int:
    """Resident memory of this process; counted page by page, because the quick counters lag behind."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("Rss:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/smaps_rollup has no Rss")


def probe(path: str, position: int) -> dict[str, float]:
    """Open, read and find; checks both answers."""
    before = resident_bytes()
    marks = [time.perf_counter()]
    data = chunkstore.open(path)
    marks.append(time.perf_counter())
    row = data[position]["data"]
    marks.append(time.perf_counter())
    found = data.find([f"k{position}"])
    marks.append(time.perf_counter())
    growth = resident_bytes() - before
    if int(row) != position or int(found[0]) != position:
        raise RuntimeError(f"{path}: read {row!r} and found {found!r} for position {position}")
    opened, read, looked_up = (1e3 * (stop - start) for start, stop in itertools.pairwise(marks))
    return {
        "seconds": marks[-1] - marks[0],
        "open_ms": opened,
        "read_ms": read,
        "find_ms": looked_up,
        "growth_bytes": growth,
    }


if __name__ == "__main__":
    first = probe(sys.argv[1], 0)
    print(json.dumps({**probe(sys.argv[2], int(sys.argv[3])), "first_ms": 1e3 * first["seconds"]}))
