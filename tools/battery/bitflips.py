#!/usr/bin/env python3
"""Flip every bit of a container of 64 KiB, one after another: verify must find each, and reads be right or an error.

    tools/battery/bitflips.py --commits 1            all 524,288 bits, about a quarter of an hour
    tools/battery/bitflips.py --commits 3 --every 8  one bit of each byte

Needs the package and the tests' helpers of this checkout. Exit code 1 if a bit was missed.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from damaged import Damaged, Reference, flip, found  # noqa: E402 - needs the path above

PIECE = 4096  # bits that a process takes at once
READ_EVERY = 8  # with --reads, one bit of this many is read through both back ends


def build(path: Path, commits: int) -> Damaged:
    """A container of 65,536 bytes: one commit with all kinds of fields, or three with an old index segment in it."""
    container = Damaged(path)
    if commits == 1:
        return container.build(92, shard_nbytes=1 << 20)
    return container.build(50, commits=3, shard_nbytes=1 << 20, names=("image", "wave", "text"))


def sweep(commits: int, bits: list[int], reads: bool) -> tuple[int, list[int], list[str]]:
    """Flip these bits in a copy of its own: how many, those that verify missed, and what was read wrong."""
    missed: list[int] = []
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.cks"
        build(path, commits)
        reference = Reference(path)
        for number, bit in enumerate(flip(path, bits)):
            if not found(path):
                missed.append(bit)
            if reads and number % READ_EVERY == 0:
                for backend in ("mmap", "pread"):
                    wrong += [f"bit {bit}, {backend}: {what}" for what in reference.wrong(path, backend)]
    return len(bits), missed, wrong


def main() -> int:
    """Run, and print one line with the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commits", type=int, choices=(1, 3), default=1)
    parser.add_argument("--every", type=int, default=1, help="flip one bit of so many, at random")
    parser.add_argument("--processes", type=int, default=min(os.cpu_count() or 1, 2))
    parser.add_argument("--reads", action="store_true", help=f"also read, with one bit of {READ_EVERY}")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        size = 8 * len(build(Path(folder) / "a.cks", args.commits).good)
    rng = random.Random(0)
    bits = [rng.randrange(start, min(start + args.every, size)) for start in range(0, size, args.every)]
    began = time.perf_counter()
    done = 0
    missed: list[int] = []
    wrong: list[str] = []
    with ProcessPoolExecutor(args.processes) as pool:
        pieces = [bits[start : start + PIECE] for start in range(0, len(bits), PIECE)]
        jobs = [pool.submit(sweep, args.commits, piece, args.reads) for piece in pieces]
        for job in jobs:
            count, more_missed, more_wrong = job.result()
            done, missed, wrong = done + count, missed + more_missed, wrong + more_wrong
            state = f"{done:,} of {len(bits):,}, missed {len(missed):,}, read wrong {len(wrong):,}"
            print(f"\r{state}", end="", file=sys.stderr)
    print(file=sys.stderr)
    for line in [*(f"missed: bit {bit}, byte {bit // 8}" for bit in missed[:20]), *wrong[:20]]:
        print(line)
    print(
        f"bit flips, {args.commits} commit(s), {size // 8:,} bytes: verify found {done - len(missed):,} of {done:,}; "
        f"read wrong {len(wrong):,}; {time.perf_counter() - began:.0f} s"
    )
    return 1 if missed or wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
