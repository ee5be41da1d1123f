"""The parts of the battery, each with its quick and its long dose; every one returns a row of the report."""

from __future__ import annotations

import functools
import gc
import signal
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tools.battery import (
    bitflips,
    damages,
    faults,
    fuzz,
    memory,
    model,
    mutants,
    nomemory,
    powerloss,
    readers,
    scenarios,
)
from tools.battery.code import code_of
from tools.battery.crash import Crash, Tally
from tools.battery.scratch import in_memory

PROCESSES = 2
SLICE_SECONDS = 10.0  # of CPU time: a part that can be interrupted is kept about so often
FLIPS = 2_000  # in a process, likewise


def _pool() -> ProcessPoolExecutor:
    """Processes that only the parent ends: a signal to all of them lets what they do be finished and kept."""
    return ProcessPoolExecutor(PROCESSES, initializer=_ignore_signals)


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@dataclass
class Row:
    """One line of the report.

    Attributes:
        test: what was done.
        goal: how often it was to be done.
        tried: how often it was.
        wrong: what was found; the first twenty.
        num_wrong: all of it.
        seconds: how long it took.
        note: what else is to be said, such as why it was skipped.
        code: what it was run on, as a number of `code_of`.
        progress: of a part that goes on where it stopped: how far it came.
        complete: whether a part that goes on has reached its goal.
    """

    test: str
    goal: str
    tried: str = ""
    wrong: list[str] = field(default_factory=list)
    num_wrong: int = 0
    seconds: float = 0.0
    note: str = ""
    code: str = ""
    progress: dict[str, Any] = field(default_factory=dict)
    complete: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def _row(test: str, goal: str, tried: str, wrong: list[str], note: str = "") -> Row:
    return Row(test, goal, tried, wrong[:20], len(wrong), note=note)


# -- crash states


def _crash_one(name: str, number: int, kills: bool, seed: int, damage: int) -> Tally:
    with in_memory() as memory:
        crash = Crash(memory, number=number, seed=seed, deep=2, damage=damage)
        with crash.folder() as folder:
            recording = scenarios.record(name, folder)
        if kills:
            crash.try_kills(recording, number=max(number // 10, 16))
        else:
            crash.try_all(recording)
        return crash.tally


def crash_states(quick: bool) -> Row:
    """Rebuild what a disk may show after a crash, for every scenario."""
    number, damage = (16, 31) if quick else (12_000, 1)
    total = Tally()
    with ProcessPoolExecutor(PROCESSES) as pool:
        jobs = [pool.submit(_crash_one, name, number, False, 1, damage) for name in scenarios.ALL]
        jobs += [pool.submit(_crash_one, name, number, True, 1, 0) for name in scenarios.ONE_FILE]
        for job in jobs:
            total.add(job.result())
    tried = f"{total.states:,} states, {len(total.seen):,} of them different files"
    note = (
        f"{len(scenarios.ALL)} scenarios, {total.points:,} moments, {total.exhaustive:,} of them exhaustively; "
        f"{total.classes:,} classes of states read in full, verified and appended to; {total.damaged:,} times damage "
        "of a superblock or of the index on top, then recover and append"
    )
    return _row("crash states of create, append, merge, repack", "1,000,000", tried, total.wrong, note)


def mutants_killed(quick: bool) -> Row:
    """Break writer and reader on purpose."""
    tried: list[str] = []
    with in_memory() as memory:
        recorded = (
            ("create", "replace", "abort") if quick else ("create", "replace", "append", "append and merge segments")
        )
        alive = mutants.survivors(memory, lambda name, _: tried.append(name), recorded)
    writers, reading = len(mutants.WRITERS), len(mutants.READERS)
    note = f"{writers} in writers, {reading} in readers, the rest syncs left out and steps swapped"
    return _row("mutants of the commit protocol and of checks", "all killed", f"{len(tried)} mutants", alive, note)


# -- faults


def failing_calls(quick: bool) -> Row:
    """Every call fails with every error; writes that are short or lie; syncs that fail once."""
    findings = faults.Findings()
    with in_memory() as memory:
        for operation in faults.OPERATIONS:
            faults.try_errors(memory, operation, findings, faults.ERRORS[: 1 if quick else None])
            faults.try_counts(memory, operation, findings)
        faults.try_syncs(memory, findings)
    note = ", ".join(f"{name} {count}" for name, count in findings.raised.most_common())
    return _row(
        "EIO, ENOSPC, EDQUOT, EINTR, short and lying writes",
        "each call",
        f"{findings.tried:,} runs",
        findings.wrong,
        note,
    )


def killed_at_calls(quick: bool) -> Row:
    """A process that ends before any of its calls."""
    findings = faults.Findings()
    with in_memory() as memory:
        for operation in faults.OPERATIONS:
            faults.try_kills(memory, operation, findings, every=5 if quick else 1)
    return _row("SIGKILL before each call", "each call", f"{findings.tried:,} runs", findings.wrong)


def injected_by_strace(quick: bool) -> Row:
    """The same through the kernel."""
    reason = faults.why_no_strace()
    if reason:
        return Row("SIGKILL and errors by strace", "each call", "skipped", note=reason)
    findings = faults.Findings()
    chosen = [o for o in faults.OPERATIONS if o.name in (("append",) if quick else ("create", "append"))]
    injections = ("signal=SIGKILL", "error=EIO", "error=ENOSPC", "error=EDQUOT")
    with in_memory() as memory:
        for operation in chosen:
            for injected in injections[: 1 if quick else None]:
                calls = ("fdatasync",) if quick else faults.STRACE_CALLS
                faults.try_strace(memory, operation, findings, injected, range(1, 3 if quick else 60), calls)
    return _row("SIGKILL and errors by strace", "each call", f"{findings.tried:,} runs", findings.wrong)


def random_kills(quick: bool) -> Row:
    """SIGKILL at any moment of an append."""
    findings = faults.Findings()
    with in_memory() as memory:
        faults.try_random_kills(memory, findings, 30 if quick else 500, seed=2)
    return _row("random SIGKILL during append", "500", f"{findings.tried:,} kills", findings.wrong)


# -- the model


def _model_one(steps: int, seed: int) -> tuple[int, list[str]]:
    with in_memory() as memory:
        try:
            return sum(model.run(memory, steps, seed).values()), []
        except Exception as error:  # noqa: BLE001 - whatever is raised is a finding
            return 0, [f"seed {seed}: {type(error).__name__}: {error}"]


def model_steps(quick: bool, before: dict[str, Any] | None = None) -> Row:
    """A container and a list; goes on with new seeds."""
    progress = {"steps": 0, "seeds": 0, **(before or {})}
    size, rounds = (1_000, 2) if quick else (2_000, 2)
    wrong: list[str] = []
    with _pool() as pool:
        for _ in range(rounds):
            seeds = range(progress["seeds"], progress["seeds"] + PROCESSES)
            for count, found in pool.map(_model_one, [size] * PROCESSES, [1000 + seed for seed in seeds]):
                progress["steps"] += count
                wrong += found
            progress["seeds"] += PROCESSES
    row = _row("stateful model against a list", "1,000,000 steps", f"{progress['steps']:,} steps", wrong)
    row.progress, row.complete = progress, progress["steps"] >= MODEL_STEPS
    return row


# -- damage


def flipped_bits(quick: bool, before: dict[str, Any] | None = None) -> Row:
    """Every bit of a container of 64 KiB, with one commit and with three; some thousand each time, then the next."""
    done = {"1": 0, "3": 0, "read": 0, **(before or {})}
    swept, num_bits = bitflips.Swept(), {}
    with _pool() as pool:
        for commits in ("1", "3"):
            with in_memory() as folder:
                bits = bitflips.order(len(bitflips.build(folder / "a.cks", int(commits)).good))
            num_bits[commits] = len(bits)
            now = bits[1::997] if quick else bits[done[commits] :][: FLIPS * PROCESSES]
            jobs = [pool.submit(bitflips.sweep, int(commits), now[place::PROCESSES]) for place in range(PROCESSES)]
            for job in jobs:
                swept.add(job.result())
            done[commits] += len(now)
    done["read"] += swept.read
    wrong = [*(f"missed: bit {bit}" for bit in swept.missed), *swept.wrong]
    tried = " and ".join(f"{done[name]:,} of {num_bits[name]:,}" for name in ("1", "3"))
    note = f"one bit of each byte first, then the next; {done['read']:,} of them also read through both back ends"
    row = _row("bit flips of containers of 64 KiB, one commit and three", "524,288 each", tried, wrong, note)
    row.progress, row.complete = done, all(done[name] == num_bits[name] for name in num_bits)
    return row


def other_damage(quick: bool) -> Row:
    """Cuts, bytes, sectors, junk: each of them once."""
    every, tried = 1_999 if quick else 1, 0
    wrong: list[str] = []
    with ProcessPoolExecutor(PROCESSES) as pool:
        shares = [(commits, place * every, PROCESSES * every) for commits in (1, 3) for place in range(PROCESSES)]
        for job in [pool.submit(damages.sweep, *share) for share in shares]:
            count, missed = job.result()
            tried, wrong = tried + count, wrong + missed
    test = "every cut, every byte inverted, junk appended, sectors zeroed, swapped, duplicated"
    return _row(test, "each", f"{tried:,} damages", wrong, "of the same two containers; any two sectors of them")


# -- readers


def one_writer_two_readers(quick: bool) -> Row:
    """A minute of commits and reads."""
    findings = faults.Findings()
    with in_memory() as folder:
        generation = readers.writer_and_readers(folder, 5 if quick else 60, findings)
    note = f"{generation:,} generations"
    return _row("one writer and two readers", "60 s", f"{findings.tried:,} reads", findings.wrong, note)


def worker_reads(quick: bool) -> Row:
    """Workers of every kind."""
    reads, workers = (20_000, 2) if quick else (1_000_000, 8)
    wrong: list[str] = []
    with in_memory() as folder:
        faults.write(folder / "a.cks", 0, 5000)
        for method in ("fork", "forkserver", "spawn"):
            count = readers.many_reads(folder / "a.cks", workers, reads, method)
            wrong += [f"{method}: {count} wrong"] * bool(count)
    tried = f"{reads:,} reads in {workers} workers, each way"
    return _row("fork, forkserver, spawn", "1,000,000 reads in 8 workers", tried, wrong)


def files_under_readers(quick: bool) -> Row:
    """Cut and replaced."""
    findings, times = faults.Findings(), 20 if quick else 200
    with in_memory() as folder:
        readers.truncated_under_reader(folder, times, findings)
        readers.replaced_under_reader(folder, times, findings)
        ends = readers.truncated_under_a_map(folder)
    if ends != ("TruncatedError", readers.SIGBUS):
        findings.wrong.append(f"by a map, the process ends with {ends}")
    note = "by a map, a view that is touched ends the process (SIGBUS), as SECURITY.md says"
    return _row("files cut or replaced under a reader", "200 each", f"{findings.tried:,}", findings.wrong, note)


# -- memory and large numbers


def little_memory(quick: bool) -> Row:
    """Convert, verify, read 1 GiB."""
    nbytes = (64 if quick else 1024) << 20
    with in_memory() as folder:
        peaks = memory.convert_and_verify(folder, nbytes)
    wrong = [f"{name}: {peak} MiB" for name, peak in peaks.items() if peak > memory.LIMIT_MIB]
    note = "peak of resident memory: " + ", ".join(f"{name} {peak} MiB" for name, peak in peaks.items())
    return _row(
        "memory of convert, verify, reading", f"1 GiB in {memory.LIMIT_MIB} MiB", f"{nbytes >> 20} MiB", wrong, note
    )


def boundaries(quick: bool) -> Row:
    """Rows around 2 and 4 GiB, and as many rows."""
    test = "rows of 2^31 and 2^32 ± 1 bytes, and as many rows"
    if quick:
        return Row(test, "each", "skipped", note="only in the long run: 9 GB of disk")
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in memory.SIZES:
            wrong += memory.boundary(Path(folder), number) + memory.many_rows(Path(folder), number)
    note = "by a map and by pread; slices of more than 2 GiB in one call; sparse sources"
    return _row(test, "each", f"{2 * len(memory.SIZES)} containers", wrong, note)


def no_memory(quick: bool) -> Row:
    """The interpreter has no memory at any one allocation."""
    test, reason = "out of memory at each allocation of open, read, add, commit, verify", nomemory.why_not()
    if reason:
        return Row(test, "each", "skipped", note=reason)
    findings = faults.Findings()
    every = 499 if quick else NO_MEMORY_EVERY
    with in_memory() as folder:
        for task in nomemory.TASKS:
            nomemory.try_task(folder, task, findings, every=every)
    note = ", ".join(f"{name} {count:,}" for name, count in findings.raised.most_common())
    tried = f"{findings.tried:,} runs" + (f", one allocation of {every}" if every > 1 else "")
    return _row(test, "each", tried, findings.wrong, note)


def lost_power(quick: bool) -> Row:
    """A real ext4, shut down."""
    with in_memory() as folder:
        reason = powerloss.why_not(folder)
        if reason:
            return Row("power loss on a real ext4", "100", "skipped", note=reason)
        findings = faults.Findings()
        powerloss.try_power_loss(folder, findings, 10 if quick else 100)
    return _row("power loss on a real ext4", "100", f"{findings.tried}", findings.wrong, "loop device, shutdown ioctl")


# -- fuzz


def _fuzz_one(kind: str, seconds: float, seed: int) -> fuzz.Fuzzed:
    with in_memory() as folder:
        return fuzz.feed_kind(kind, folder, seconds, seed)


def _fuzzed(kind: str, quick: bool, before: dict[str, Any] | None = None) -> Row:
    progress: dict[str, Any] = {"inputs": 0, "accepted": 0, "seeds": 0, "slowest": 0.0, "grown": 0, "seconds": 0.0}
    progress |= before or {}
    seconds = 15.0 if quick else SLICE_SECONDS  # a minute for the four kinds
    seeds = range(progress["seeds"], progress["seeds"] + PROCESSES)
    with _pool() as pool:
        found = list(pool.map(_fuzz_one, [kind] * PROCESSES, [seconds] * PROCESSES, seeds))
    progress["seeds"] += PROCESSES
    progress["seconds"] += seconds
    progress["inputs"] += sum(one.inputs for one in found)
    progress["accepted"] += sum(one.accepted for one in found)
    progress["grown"] = max(progress["grown"], *(one.grown_nbytes >> 20 for one in found))
    progress["slowest"] = max(progress["slowest"], *(one.slowest for one in found))
    rate = progress["inputs"] / progress["seconds"]
    note = (
        f"{progress['accepted']:,} accepted; slowest {progress['slowest']:.2f} s; memory grew by "
        f"{progress['grown']} MiB; {rate:,.0f} a second"
    )
    wrong = [what for one in found for what in one.wrong]
    row = _row(f"fuzz: {fuzz.KINDS[kind]}", "10,000,000", f"{progress['inputs']:,} inputs", wrong, note)
    row.progress, row.complete = progress, progress["inputs"] >= FUZZ_INPUTS
    return row


FUZZ_INPUTS = 10_000_000  # of each kind
MODEL_STEPS = 1_000_000  # `--model-steps`

NO_MEMORY_EVERY = 1  # `--no-memory-every`
CONTINUED = ("bitflips", "model", *(f"fuzz-{kind}" for kind in fuzz.KINDS))
PARTS: dict[str, Callable[..., Row]] = {
    "crash": crash_states,
    "mutants": mutants_killed,
    "faults": failing_calls,
    "kills": killed_at_calls,
    "strace": injected_by_strace,
    "sigkill": random_kills,
    "model": model_steps,
    "bitflips": flipped_bits,
    "damage": other_damage,
    "beside": one_writer_two_readers,
    "workers": worker_reads,
    "files": files_under_readers,
    "memory": little_memory,
    "boundaries": boundaries,
    "nomemory": no_memory,
    "power": lost_power,
    **{f"fuzz-{kind}": functools.partial(_fuzzed, kind) for kind in fuzz.KINDS},
}


def run(name: str, quick: bool, before: dict[str, Any] | None = None) -> Row:
    """One part, timed.

    Args:
        quick: its short dose.
        before: its row of the last run. A part of `CONTINUED` goes on from there if the code is the same, and makes
            about `SLICE_SECONDS` of its work.
    """
    gc.collect()  # a file that an earlier part let go is not closed in the middle of this one, which may count them
    began, code, known = time.perf_counter(), code_of(name), before or {}
    goes_on = not quick and name in CONTINUED
    same = goes_on and known.get("code") == code
    row = PARTS[name](quick, known["progress"] if same else None) if goes_on else PARTS[name](quick)
    row.seconds, row.code = time.perf_counter() - began, code
    if same:
        row.seconds += known["seconds"]
        row.wrong, row.num_wrong = [*known["wrong"], *row.wrong][:20], known["num_wrong"] + row.num_wrong
    return row


__all__ = ["PARTS", "Path", "Row", "run"]
