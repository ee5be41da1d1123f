"""One peer, one fresh process: writes a data set, or reads one and times every row of the comparison.

Usage: python -m tools.bench.peers.child JOB, the JSON of `Job`. The last line of its output is JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tools.bench import pagecache
from tools.bench.inputs import blocks, memory_for
from tools.bench.measure import timed
from tools.bench.peers import PEERS
from tools.bench.peers.base import Array, Layout, Peer, Positions

BATCH = 256
_NUM_COLD = 6
_NUM_WARM = 16
_NUM_SINGLE = 200


@dataclass(frozen=True)
class Job:
    """What a child process is asked to do.

    `task` is "write", "read" or "convert"; `path` the peer's data; `source` the directory to convert, or the
    file with the right rows; `seed` draws the positions, the same for every peer of a round;
    `seconds` is how long a row is repeated at least.
    """

    task: str
    peer: str
    path: str
    source: str
    num: int
    shape: tuple[int, ...]
    seed: int
    seconds: float

    def to_json(self) -> str:
        """The job as an argument of a command."""
        return json.dumps(asdict(self))


def repeat(work: Callable[[int], object], units: int, seconds: float) -> float:
    """Units of work a second: `work(turn)` again and again for `seconds`."""
    done, spent = 0, 0.0
    while spent < seconds:
        spent += timed(lambda turn=done: work(turn))  # type: ignore[misc]
        done += 1
    return units * done / spent


class Reading:
    """All rows of the comparison that read."""

    def __init__(self, peer: Peer, wanted: Array, job: Job) -> None:
        self.peer, self.wanted, self.seconds = peer, wanted, job.seconds
        drawn = np.random.default_rng(job.seed).integers(0, peer.layout.num, (_NUM_WARM + _NUM_COLD, BATCH))
        self.warm, self.cold = list(drawn[:_NUM_WARM]), list(drawn[_NUM_WARM:])
        self.out = memory_for(BATCH, peer.layout.shape)

    def results(self) -> Iterator[tuple[str, float]]:
        """Name and value of every row that this peer can do; opening is the first."""
        yield "open", self._open()
        yield "epoch", self._epoch()
        for name, measure in {"batch": self._batch, "single": self._single, "verify": self._verify}.items():
            if name not in self.peer.unsupported:
                yield name, measure()
        if "cold" not in self.peer.unsupported:
            yield "cold", self._cold()

    def _check(self, got: Array, wanted: Array) -> None:
        if got.dtype != np.uint8 or got.shape != wanted.shape or not np.array_equal(got, wanted):
            raise RuntimeError(f"{self.peer.name} read rows that are not what was written")

    def _open(self) -> float:
        """Milliseconds of opening and the first row, in a process that has the code of both in memory."""
        first = type(self.peer)(self.peer.path, self.peer.layout)
        first.open()
        first.row(0)
        first.close()
        start = time.perf_counter()
        self.peer.open()
        row = self.peer.row(0)
        spent = time.perf_counter() - start
        self._check(row, self.wanted[0])
        return 1e3 * spent

    def _epoch(self) -> float:
        """GB a second of the first pass in order over data in memory."""
        start = 0
        for block in self.peer.scan():
            self._check(block, self.wanted[start : start + len(block)])
            start += len(block)
        if start != self.peer.layout.num:
            raise RuntimeError(f"{self.peer.name} gave {start} of {self.peer.layout.num} rows")

        def scan(_: int) -> None:
            for block in self.peer.scan():
                del block

        return repeat(scan, self.wanted.nbytes, self.seconds) / 1e9

    def _batch(self) -> float:
        """Rows a second in random batches of 256."""
        for positions in self.warm:
            self._check(self.peer.batch(positions, self.out), self.wanted[positions])
        return repeat(lambda turn: self.peer.batch(self.warm[turn % _NUM_WARM], self.out), BATCH, self.seconds)

    def _single(self) -> float:
        """Microseconds of one row."""
        positions: list[list[int]] = [each[:_NUM_SINGLE].tolist() for each in self.warm]
        for position in positions[0]:
            self._check(self.peer.row(position), self.wanted[position])

        def read_some(turn: int) -> None:
            for position in positions[turn % _NUM_WARM]:
                self.peer.row(position)

        return 1e6 / repeat(read_some, _NUM_SINGLE, self.seconds)

    def _verify(self) -> float:
        """GB a second of checking every byte."""
        return repeat(lambda _: self.peer.verify(), self.wanted.nbytes, self.seconds) / 1e9

    def _cold(self) -> float:
        """Rows a second in random batches of 256, dropped from the page cache before each; the median."""
        # opened anew: data that are larger than memory are cold from the first batch on, not after a warm phase
        self.peer.close()
        self.peer = type(self.peer)(self.peer.path, self.peer.layout)
        self.peer.open()
        self.peer.row(0)
        return BATCH / float(np.median([self._cold_batch(positions) for positions in self.cold]))

    def _cold_batch(self, positions: Positions) -> float:
        pagecache.drop(self.peer.batch_files(positions))
        results: list[Array] = []
        spent = timed(lambda: results.append(self.peer.cold_batch(positions, self.out)))
        self._check(results[0], self.wanted[positions])
        return spent


def read(peer: Peer, job: Job) -> dict[str, float]:
    """Time everything that reads."""
    pagecache.warm(peer.files())
    wanted = np.load(job.source, mmap_mode="r")
    return dict(Reading(peer, wanted, job).results())


def write(peer: Peer, job: Job) -> dict[str, float]:
    """Write the data set of a round of reading; gives its size."""
    peer.write(blocks(job.num, job.shape))
    return {"size": float(sum(file.stat().st_size for file in peer.files()))}


def convert(peer: Peer, job: Job) -> dict[str, float]:
    """Files a second from a directory of `.npy` to data on the disk, the last sync included."""
    files = sorted(Path(job.source).rglob("*.npy"))
    pagecache.warm(files)
    os.sync()  # what others left to be written is not this one's work

    def run() -> None:
        peer.convert(files)
        os.sync()  # one call for formats of one file and of thousands

    spent = timed(run)
    peer.open()
    last = next(iter(peer.scan()))
    if not np.array_equal(last[0], np.load(files[0])):
        raise RuntimeError(f"{peer.name} converted the first file to something else")
    return {"convert": len(files) / spent}


def main(text: str) -> None:
    """Do a job and print its results."""
    values = json.loads(text)
    job = Job(**{**values, "shape": tuple(values["shape"])})
    peer = PEERS[job.peer](Path(job.path), Layout(job.num, job.shape))
    print(json.dumps({"read": read, "write": write, "convert": convert}[job.task](peer, job)))


if __name__ == "__main__":
    main(sys.argv[1])
