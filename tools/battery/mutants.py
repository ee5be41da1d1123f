"""The battery tests itself: writers and readers that are broken on purpose, each of which must be found out.

A mutant is a change of one place in the source of one function, compiled and put in the function's place; or, for
whole classes of faults, a change of a recording: a sync that is left out, two steps that change places. It is dead when
the crash states (`crash`) or damage (`tests/damaged.py`) show that something is wrong.
"""

from __future__ import annotations
import __future__

import contextlib
import importlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from damaged import Damaged, Reference, flip, found, repair

import chunkstore
from tools.battery import scenarios
from tools.battery.crash import Crash, Enough, Recording
from tools.battery.disk import Op


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        name: what is wrong with it.
        module, function: whose source is changed; `Class.method` for methods.
        old, new: texts in it; `old` occurs there exactly once.
        tried: scenarios whose states must show it, or `("damage",)`; "killed" or "damaged" in front says what else
            happens to the states.
    """

    name: str
    module: str
    function: str
    old: str
    new: str
    tried: tuple[str, ...]

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Have the mutant in the package for the length of a with-block."""
        module = importlib.import_module(f"chunkstore.{self.module}")
        owner: Any = module
        *outer, name = self.function.split(".")
        for part in outer:
            owner = getattr(owner, part)
        function = vars(owner)[name]
        mutated = self._compile(function, module)
        places = [(owner, name)]
        if not outer:  # a function may have been imported by others
            modules = [m for n, m in sys.modules.items() if n.partition(".")[0] == "chunkstore" and m is not owner]
            places += [(m, n) for m in modules for n, value in list(vars(m).items()) if value is function]
        try:
            for where, what in places:
                setattr(where, what, mutated)
            yield
        finally:
            for where, what in places:
                setattr(where, what, function)

    def _compile(self, function: Any, module: Any) -> Any:
        source = textwrap.dedent(inspect.getsource(function))
        if source.count(self.old) != 1:
            raise LookupError(f"{self.module}.{self.function} has {source.count(self.old)} times {self.old!r}")
        flags = __future__.annotations.compiler_flag
        local: dict[str, Any] = {}
        exec(compile(source.replace(self.old, self.new), f"<{self.name}>", "exec", flags, True), vars(module), local)
        return local[self.function.rpartition(".")[2]]


COMMIT, TARGET, HEAD = "_storage.commit", "_write.target", "_format.superblock"
RECOVER = "_rewrite.recover"
INDEX, SEGMENT, SECTION = "_format.index", "_verify.segment", "_format.section"
_A, _B = "sink.pwrite(SUPERBLOCK_OFFSETS[0], superblock)", "_write_second(sink, superblock)"
_DAMAGE = ("damage",)
_DAMAGE_EVERY = 7

WRITERS = (
    Mutant("no sync before superblock A", COMMIT, "commit_append", "# The superblock must not be on the disk before "
           "what it names.\n        sink.sync()", "pass", ("append",)),
    Mutant("no sync before superblock B", COMMIT, "commit_append", "# B, the way back, must not be touched before A is "
           "whole.\n        sink.sync()", "pass", ("append",)),
    Mutant("superblock B is not written", COMMIT, "commit_append", _B, "pass", ("append",)),
    Mutant("superblock A is not written", COMMIT, "commit_append", _A, "pass", ("append",)),
    Mutant("superblock B before A", COMMIT, "commit_append", "    try:\n",
           "    SUPERBLOCK_OFFSETS, _write_second = [4096], lambda sink, data: sink.pwrite(0, data)\n    try:\n",
           ("append",)),
    Mutant("both superblocks at once", COMMIT, "commit_append", _A, f"{_A}; {_B}", ("append",)),
    Mutant("the new file is not synced", COMMIT, "NewFile.publish", "self._sync()", "pass", ("create",)),
    Mutant("the new file is synced after it has its name", COMMIT, "NewFile.publish",
           "self._sync()", "self._give_name(); self._sync(); self._give_name = lambda: None", ("create",)),
    Mutant("the directory is not synced", COMMIT, "NewFile.publish", "self._sync_directory()", "pass",
           ("create", "replace")),
    Mutant("the rest of an unfinished append is not cut off", TARGET, "AppendTarget._clear_up",
           "self.sink.truncate(self._committed_end)", "pass", ("append behind junk",)),
    Mutant("a damaged superblock A does not stop an append", TARGET, "AppendTarget._clear_up",
           "self._check_nothing_lost(a, b)", "pass", ("damaged append",)),
    Mutant("zeros in superblock A pass for a torn write", TARGET, "AppendTarget._check_nothing_lost",
           "a[part] == b[part]", "a[part] in (b[part], bytes(512))", ("damaged append",)),
    Mutant("an append changes a container whose index it cannot read", TARGET, "AppendTarget._clear_up",
           "self._prove_index()", "pass", ("damaged append",)),
    Mutant("recover does not look for the commit that only a damaged superblock named", RECOVER, "_continued",
           "return later", "return None", ("damaged append",)),
    Mutant("recover takes the generation of a damaged superblock B for true", RECOVER, "_superblocks",
           "item[1].directory_offset if report.notes else", "", ("damaged append",)),
    Mutant("recover does not use superseded segments", RECOVER, "_Samples.read_older",
           "self._older", "[]", ("damaged append and merge segments",)),
    Mutant("superblocks are not mended", TARGET, "AppendTarget._clear_up", "self._mend_superblocks(a, b)", "pass",
           ("append with superblock B damaged",)),
    Mutant("superblock B is not mended after a crash", TARGET, "AppendTarget._clear_up",
           "if a != b:", "if a != b and self._index.head.damage:", ("abort",)),
    Mutant("a superblock is mended by one that is not on the disk", TARGET, "AppendTarget._mend_superblocks",
           "before its sync.\n    self.sink.sync()", "before its sync.", ("killed abort",)),
    Mutant("new bytes before the mended superblock is on the disk", TARGET, "AppendTarget._mend_superblocks",
           "must not leave that.\n    self.sink.sync()", "must not leave that.",
           ("append with superblock A damaged",)),
    Mutant("the wrong superblock is mended", TARGET, "AppendTarget._mend_superblocks",
           "b if bad == \"A\" else a", "a if bad == \"A\" else b", ("append with superblock B damaged",)),
    Mutant("what was not committed stays", TARGET, "AppendTarget.close",
           "self.sink.truncate(self._committed_end)", "pass", ("abort",)),
    Mutant("new bytes over the end of old ones", TARGET, "AppendTarget._read_index",
           "self.tail = self._committed_end = self._index.superblock.committed_end",
           "self._committed_end = self._index.superblock.committed_end; self.tail = self._committed_end - 4096",
           ("append",)),
    Mutant("the next commit goes on from the index before", TARGET, "AppendTarget.commit", "self._outdated = True",
           "pass", ("append",)),
    Mutant("what is cut off is not known to be committed", TARGET, "AppendTarget.commit",
           "self._committed_end = superblock.committed_end", "pass", ("append",)),
    Mutant("the generation stays", "_write.index_writer", "IndexWriter.write",
           "before.generation + 1", "before.generation", ("append",)),
    Mutant("superseded segments are not listed", TARGET, "AppendTarget.begin",
           "index.superseded.append((directory.offset, directory.segment_nbytes, segment_sum))", "pass",
           ("append and merge segments",)),
    Mutant("earlier segments are forgotten", TARGET, "AppendTarget.commit", "earlier=self._earlier", "earlier=()",
           ("append",)),
    Mutant("a new file has one superblock", COMMIT, "write_superblocks", "in SUPERBLOCK_OFFSETS",
           "in SUPERBLOCK_OFFSETS[:1]", ("create",)),
    Mutant("a merged file has one superblock", COMMIT, "write_superblocks", "in SUPERBLOCK_OFFSETS",
           "in SUPERBLOCK_OFFSETS[:1]", ("merge",)),
)  # fmt: skip

READERS = (
    Mutant("superblock checksums are not compared", HEAD, "decode", "if computed != stored:", "if False:", _DAMAGE),
    Mutant("the magic is not compared", HEAD, "decode", "if magic != MAGIC:", "if False:", _DAMAGE),
    Mutant("the older superblock is taken", HEAD, "decode_head", "max(found, key=lambda item: item[1].generation)",
           "min(found, key=lambda item: item[1].generation)", ("append",)),
    Mutant("always the first superblock", HEAD, "decode_head", "max(found, key=lambda item: item[1].generation)",
           "found[0]", ("older A",)),
    Mutant("the length of the file is not compared", HEAD, "decode_head", "if file_nbytes < chosen.committed_end:",
           "if False:", _DAMAGE),
    Mutant("unknown flags are accepted", HEAD, "check_flags", "if unknown:", "if False:", _DAMAGE),
    Mutant("directory sums are not compared by readers", INDEX, "_read_directory", "if sum128(data) != stored:",
           "if False:", _DAMAGE),
    Mutant("directory sums are not compared by verify", SEGMENT, "_read_directory",
           "if computed != stored:", "if False:", _DAMAGE),
    Mutant("page sums are not compared", SECTION, "_compare", "if computed != stored:", "if False:", _DAMAGE),
    Mutant("the sum of page sums is not compared", SECTION, "_checked_sums",
           "if sum64(data) != entry.sum:", "if False:", _DAMAGE),
    Mutant("chunk sums are not compared", "_read.checked", "Checker.compare", "if np.count_nonzero(wrong):",
           "if False:", _DAMAGE),
    Mutant("block sums are not compared by verify", "_verify.blocks", "Walk._check_job", "if computed != stored:",
           "if False:", _DAMAGE),
    Mutant("padding is not looked at by verify", "_verify.blocks", "Walk._check_job", "if tail:", "if False:", _DAMAGE),
    Mutant("superblocks are not compared by verify", SEGMENT, "read_head",
           "data[:SUPERBLOCK_NBYTES] != data[SUPERBLOCK_NBYTES:]", "False", ("older A",)),
    Mutant("bytes behind the end are accepted by verify", "_verify.verify", "_Verification._check_length",
           "elif size > committed_end:", "elif False:", _DAMAGE),
)  # fmt: skip


def dropped_syncs(recording: Recording) -> Iterator[tuple[str, Recording]]:
    """The recording without one of its syncs, for each of them."""
    for place, op in enumerate(recording.ops):
        if op.kind in ("sync", "sync_names"):
            ops = recording.ops[:place] + recording.ops[place + 1 :]
            yield f"{recording.name}: no {op.kind} at op {place}", replace(recording, ops=ops)


def swapped_steps(recording: Recording) -> Iterator[tuple[str, Recording]]:
    """The recording with two neighbouring steps in the other order, for each pair of which one is a sync.

    Two writes between the same syncs may get to the disk in any order as it is. A mark is a step, too: to acknowledge
    before the sync is the classic mistake.
    """
    for place in range(len(recording.ops) - 1):
        first, second = recording.ops[place : place + 2]
        if _is_sync(first) != _is_sync(second) and not _commute(first, second):
            ops = [*recording.ops[:place], second, first, *recording.ops[place + 2 :]]
            yield f"{recording.name}: {second} before {first} at op {place}", replace(recording, ops=ops)


def _is_sync(op: Op) -> bool:
    return op.kind in ("sync", "sync_names")


def _commute(first: Op, second: Op) -> bool:
    """Whether the order of two steps makes no difference to what the disk may show of the container."""
    kinds = {first.kind, second.kind}
    if first.kind == "mark":  # to acknowledge later than one could is not wrong
        return True
    if "sync_names" in kinds:
        return bool(kinds & {"write", "truncate"}) or any(op.kind == "name" and op.file < 0 for op in (first, second))
    return first.kind == "name"  # the temporary got its name; what counts is that of the container, after the sync


def killed_by_crash(mutant: Mutant, folder: Path, *, number: int = 40) -> str | None:
    """What the crash states show of a mutant; None if it survives."""
    for name in mutant.tried:
        damage = name.startswith("damaged ")
        few = 16 if damage else number  # states of the superblocks that differ are few
        crash = Crash(folder, number=few, first=True, damage=_DAMAGE_EVERY * damage, deep=1 if damage else 2)
        with mutant.applied(), crash.folder() as place:
            try:
                recording = scenarios.record(name.removeprefix("killed ").removeprefix("damaged "), place)
                if name.startswith("killed "):
                    crash.try_kills(recording, number=number)
                else:
                    crash.try_all(recording)
            except Enough:
                return crash.tally.wrong[0]
            except Exception as error:  # noqa: BLE001 - whatever is raised is a finding
                return f"{name}: {type(error).__name__}: {error}"
        if crash.tally.wrong:
            return crash.tally.wrong[0]
    return None


def killed_recording(recording: Recording, folder: Path, *, number: int = 40) -> str | None:
    """What the crash states show of a changed recording; None if it survives."""
    crash = Crash(folder, number=number, first=True, deep=1)
    with contextlib.suppress(Enough):
        crash.try_all(recording)
    return crash.tally.wrong[0] if crash.tally.wrong else None


class DamageTests:
    """The quick part of the damage tests, on one container with an old segment in it; stops at what it finds."""

    def __init__(self, folder: Path) -> None:
        self._container = Damaged(folder / "a.cks").build(12, commits=3, names=("image", "wave", "text"))
        self._reference = Reference(self._container.path)
        self._container.check()

    def killed(self, mutant: Mutant) -> str | None:
        """What damage shows of a mutant; None if it survives."""
        with mutant.applied():
            try:
                for test in (self._magic, self._cuts, self._flags, self._old_superblock, self._colluding, self._flips):
                    what = test()
                    self._container.restore()
                    if what is not None:
                        return what
            finally:
                self._container.restore()
        return None

    def _colluding(self) -> str | None:
        """ATTRS are changed, and so is everything that names their bytes up to some level, where the sum must show it.

        With a single flipped bit the level below shows it as well.
        """
        good, entry = self._container.good, self._container.entry("ATTRS")
        directory, nbytes = self._container.place("DIRECTORY")
        data = bytearray(good)
        at = good.index(b"2", entry.offset)  # {"commit": 2}
        data[at] = ord("7")
        repair(data)
        for level in ("superblock", "directory"):
            changed = bytearray(data)
            changed[0:8192] = good[0:8192]
            if level == "directory":
                changed[directory : directory + nbytes] = good[directory : directory + nbytes]
            self._container.write(changed)
            kinds = {damage.kind for damage in chunkstore.verify(self._container.path).damage}
            if ("directory" if level == "superblock" else "index") not in kinds:
                return f"verify does not find that what the {level} names was changed"
            if wrong := self._reads():
                return f"with all changed below the {level}, {wrong}"
        return None

    def _places(self) -> Iterator[int]:
        """Bytes to hit: some of each directory and section, of the superblocks, and of all."""
        index = self._container.index()
        for directory in index.directories:
            yield from range(directory.offset, directory.offset + 64, 7)
            for entry in directory.sections():
                yield from range(entry.offset, entry.offset + entry.nbytes + 8, max(3, entry.nbytes // 6))
        yield from (*range(0, 128, 7), *range(4080, 4240, 7))
        yield from range(0, len(self._container.good), 397)

    def _flips(self) -> str | None:
        bits = [8 * byte + byte % 8 for byte in self._places()]
        for place, bit in enumerate(flip(self._container.path, iter(bits))):
            if not found(self._container.path):
                return f"verify does not find bit {bit}"
            if bit < 8 * 8192 and _refuses(self._container.path, chunkstore.FormatError):
                return f"with bit {bit} of a superblock flipped, the other one is not used"
            if place % 2 and (wrong := self._reads()):
                return f"with bit {bit} flipped, {wrong}"
        return None

    def _magic(self) -> str | None:
        data = bytearray(self._container.good)
        data[0:8] = data[4096:4104] = b"notmagic"
        repair(data)
        self._container.write(data)
        ok = _refuses(self._container.path, chunkstore.NotAContainerError)
        return None if ok else "a file without the magic is not refused"

    def _reads(self) -> str | None:
        try:
            wrong = self._reference.wrong(self._container.path, "pread")
        except Exception as error:  # noqa: BLE001 - whatever is raised is a finding
            return f"reading raises {type(error).__name__}: {error}"
        return f"read wrong: {wrong}" if wrong else None

    def _cuts(self) -> str | None:
        good = self._container.good
        for data in (good[:-1], good[:-4096], good[: len(good) // 2], good + b"\0"):
            self._container.write(data)
            if not found(self._container.path):
                return f"verify does not find {len(data)} bytes instead of {len(good)}"
            if len(data) < len(good) and not _refuses(self._container.path, chunkstore.TruncatedError):
                return f"{len(data)} bytes instead of {len(good)} are not refused as truncated"
        return None

    def _flags(self) -> str | None:
        data = bytearray(self._container.good)
        data[16] = 1
        repair(data)
        self._container.write(data)
        ok = _refuses(self._container.path, chunkstore.UnsupportedFeatureError)
        return None if ok else "an unknown flag is not refused"

    def _old_superblock(self) -> str | None:
        """A is that of an earlier generation, as after a crash."""
        good, path = self._container.good, self._container.path
        first = Damaged(path.with_name("b.cks")).build(4, names=("image", "wave", "text"))
        self._container.write(first.good[:4096] + good[4096:])
        first.path.unlink()
        if not found(path):
            return "verify does not find an old superblock A"
        return self._reads()


def _refuses(path: Path, error: type[Exception]) -> bool:
    try:
        chunkstore.open(path).close()
    except error:
        return True
    except Exception:  # noqa: BLE001 - whatever is raised is a finding
        return False
    return False


def survivors(
    folder: Path, tell: Callable[[str, str | None], None], recorded: tuple[str, ...] = ("create", "replace", "append")
) -> list[str]:
    """Try all mutants; `tell` gets the name of each and what killed it. Those that live on: there must be none.

    Args:
        folder: for the files of the battery.
        recorded: scenarios whose recordings are changed.
    """
    alive = []
    damage = DamageTests(folder)
    for mutant in (*WRITERS, *READERS):
        by_damage = mutant.tried in (_DAMAGE, ("older A",))
        what = damage.killed(mutant) if by_damage else killed_by_crash(mutant, folder)
        tell(mutant.name, what)
        alive += [mutant.name] * (what is None)
    for name in recorded:
        crash = Crash(folder, number=1)
        with crash.folder() as place:
            recording = scenarios.record(name, place)
        for what_changed, changed in (*dropped_syncs(recording), *swapped_steps(recording)):
            what = killed_recording(changed, folder)
            tell(what_changed, what)
            alive += [what_changed] * (what is None)
    return alive
