"""Every other single damage of the containers of `bitflips`: verify must find each.

Each cut, each byte inverted, sectors that are zeros, changed places or were written over others, bytes behind the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from damaged import found

from tools.battery.bitflips import build
from tools.battery.disk import SECTOR
from tools.battery.scratch import in_memory


def harmed(good: bytes) -> Iterator[tuple[str, bytes]]:
    """Each damage: its name, and the file with it; which may be as it was."""
    size = len(good)
    yield from ((f"cut to {length} bytes", good[:length]) for length in range(size))
    yield from ((f"byte {at} inverted", good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :]) for at in range(size))
    for length, junk in itertools.product((*range(1, SECTOR + 1), 4096, size), (bytes(size), b"\xa5" * size, good)):
        yield f"{length} bytes {junk[:4]!r}... behind the end", good + junk[:length]
    sectors = [good[at : at + SECTOR] for at in range(0, size, SECTOR)]
    for target, old in enumerate(sectors):
        before, behind = sectors[:target], sectors[target + 1 :]
        yield f"sector {target} zeroed", b"".join([*before, bytes(SECTOR), *behind])
        for source, new in enumerate(sectors):
            yield f"sector {source} written over {target}", b"".join([*before, new, *behind])
            if source < target:
                swapped = [*before[:source], old, *before[source + 1 :], new, *behind]
                yield f"sectors {source} and {target} changed places", b"".join(swapped)


def sweep(commits: int, first: int, every: int) -> tuple[int, list[str]]:
    """Try each of so many damages, from the first on: how many, and the names of those that verify did not find."""
    tried, missed = 0, []
    with in_memory() as folder:
        path = folder / "a.cks"
        good = build(path, commits).good
        for name, data in itertools.islice(harmed(good), first, None, every):
            if data != good:
                path.write_bytes(data)
                tried += 1
                missed += [] if found(path) else [f"missed: {commits} commits, {name}"]
    return tried, missed
