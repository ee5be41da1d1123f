"""Readers beside a writer, in many processes, and over files that change under them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import numpy as np

import chunkstore
from tools.battery import ROOT
from tools.battery.faults import Findings, write
from tools.battery.samples import key, same_as_written, sample


def _write_on(path: str, seconds: float, count: Any) -> None:
    """Commit after commit; `count` is what is acknowledged."""
    number, end = count.value, time.monotonic() + seconds
    with chunkstore.Writer(path, mode="a", shard_nbytes=2000) as writer:
        while time.monotonic() < end:
            for _ in range(number % 6 + 1):
                writer.add(sample(number), key(number))
                number += 1
            writer.commit()
            count.value = number


def _read_on(path: str, seconds: float, count: Any, backend: Any, seed: int, results: Any) -> None:
    """Refresh and read; (reads, what was wrong)."""
    rng, reads = random.Random(seed), 0
    wrong: list[str] = []
    end, generation = time.monotonic() + seconds, 0
    try:
        with chunkstore.open(path, backend=backend) as ds:
            while time.monotonic() < end and not wrong:
                acknowledged = count.value
                ds.refresh()
                if ds.generation < generation:
                    wrong.append(f"generation {ds.generation} after {generation}")
                if len(ds) < acknowledged:
                    wrong.append(f"{len(ds)} samples, {acknowledged} were acknowledged")
                generation = ds.generation
                for number in (len(ds) - 1, *(rng.randrange(len(ds)) for _ in range(20))):
                    reads += 1
                    if not same_as_written(ds[number], number) or ds.find([key(number)])[0] != number:
                        wrong.append(f"sample {number} of generation {generation}")
    except Exception as error:  # noqa: BLE001 - whatever is raised is a finding
        wrong.append(f"{type(error).__name__}: {error}")
    results.put((reads, generation, wrong))


def writer_and_readers(folder: Path, seconds: float, findings: Findings) -> int:
    """One writer and two readers, one of each back end; the last generation."""
    path = str(folder / "a.cks")
    write(Path(path), 0, 5)
    context = multiprocessing.get_context("spawn")
    count, results = context.Value("q", 5), context.Queue()
    jobs = [context.Process(target=_write_on, args=(path, seconds, count))]
    for seed, backend in enumerate(("mmap", "pread")):
        jobs.append(context.Process(target=_read_on, args=(path, seconds, count, backend, seed, results)))
    for job in jobs:
        job.start()
    generation = 0
    for _ in range(2):
        reads, generation, wrong = results.get(timeout=seconds + 100)
        findings.tried += reads
        findings.wrong += wrong
    for job in jobs:
        job.join()
        if job.exitcode:
            findings.wrong.append(f"a process ended with {job.exitcode}")
    return generation


_inherited: chunkstore.Reader | None = None


def _read_share(data: bytes, reads: int, seed: int) -> int:
    """Random batches by an unpickled reader, or the one of the parent; how many samples were wrong."""
    ds: Any = pickle.loads(data) if data else _inherited
    rng, wrong = np.random.default_rng(seed), 0
    while reads > 0:
        positions = rng.integers(0, len(ds), min(reads, 256))
        found: Any = ds.batch(positions, fields=["x", "r"])
        wrong += int((found["x"] != np.arange(5) * 1_000_003 + positions[:, None]).any(axis=1).sum())
        counts = positions % 7
        values = np.repeat(positions % 30_000, counts)
        wrong += int(not np.array_equal(found["r"].values, values)) + int(
            not np.array_equal(found["r"].counts(), counts)
        )
        reads -= len(positions)
    return wrong


def many_reads(path: Path, workers: int, reads: int, method: Any) -> int:
    """So many random reads in all, by workers started in one of three ways; how many were wrong."""
    context: BaseContext = multiprocessing.get_context(method)
    with chunkstore.open(path) as ds:
        # A forked worker gets the open reader itself, the others its pickle.
        ds[0]
        global _inherited
        _inherited = ds if method == "fork" else None
        data = b"" if method == "fork" else pickle.dumps(ds)
        with context.Pool(workers) as pool:
            wrong = sum(pool.starmap(_read_share, [(data, reads // workers, seed) for seed in range(workers)]))
            # Else they would be ended by a signal, which a forked one may miss between looking for it and waiting.
            pool.close()
            pool.join()
        return wrong


def truncated_under_reader(folder: Path, times: int, findings: Findings) -> None:
    """`pread`: a `TruncatedError` and no more, whatever the reader did before; it stays usable for what is there."""
    path, rng = folder / "a.cks", random.Random(3)
    write(path, 0, 200)
    good = path.read_bytes()
    for _ in range(times):
        path.write_bytes(good)
        with chunkstore.open(path, backend="pread", verify="always") as ds:
            ds[0]
            os.truncate(path, rng.randrange(len(good)))
            findings.tried += 1
            for read in (
                lambda ds=ds: ds[rng.randrange(200)],
                lambda ds=ds: ds.batch(range(200)),
                lambda ds=ds: ds[50:90],
            ):
                try:
                    rows = read()
                    if "x" in rows and rows["x"].ndim == 1 and not same_as_written(rows, int(rows["x"][0])):
                        findings.wrong.append("a sample was read wrong")
                except chunkstore.CorruptError as error:  # TruncatedError is one
                    findings.raised[type(error).__name__] += 1
                except Exception as error:  # noqa: BLE001 - whatever is raised is a finding
                    findings.wrong.append(f"{type(error).__name__}: {error}")


def replaced_under_reader(folder: Path, times: int, findings: Findings) -> None:
    """A reader keeps the file that it has, reads it as before, and says so when it is to refresh."""
    path = folder / "a.cks"
    for number in range(times):
        path.unlink(missing_ok=True)
        write(path, 0, 20)
        backend: Any = ("mmap", "pread")[number % 2]
        with chunkstore.open(path, backend=backend) as ds:
            write(path, 20, 30, "w")
            findings.tried += 1
            if not all(same_as_written(ds[n], n) for n in (0, 7, 19)):
                findings.wrong.append("a sample of the old file was read wrong")
            try:
                ds.refresh()
                findings.wrong.append("refresh took the new file for the old one")
            except chunkstore.ReplacedError:
                pass


_MAPPED = """
import os, sys
sys.path[:0] = {paths!r}
import chunkstore
ds = chunkstore.open({path!r}, backend="mmap", verify="off")
row = ds[150]["x"]
os.truncate({path!r}, 8192)
try:
    ds.batch([150])
except chunkstore.TruncatedError:
    print("TruncatedError", flush=True)
print(row.sum())
"""


def truncated_under_a_map(folder: Path) -> tuple[str, int]:
    """What a process says, and how it ends, that touches a view of a file that was cut: documented, not survived."""
    path = folder / "m.cks"
    write(path, 0, 200)
    script = _MAPPED.format(paths=[str(ROOT), str(ROOT / "tests")], path=str(path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip(), done.returncode


SIGBUS = -int(getattr(signal, "SIGBUS", 0))
