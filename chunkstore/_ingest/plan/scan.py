"""Sources -> the list of their `.npy` and `.npz` files, in natural order.

**Order.** Each directory's entries, files and directories alike, are sorted together by name; a directory stands
where its name stands, with everything in it. Runs of ASCII digits compare by value (`2` before `10`), everything else
by code point; names that are equal in that way (`1`, `01`) by code point. Several sources come in the order in which
they are given.

**Globs.** `include` and `exclude` are shell patterns (`*`, `?`, `[...]`; `*` also matches `/`), case matters, held
against the relative path *and* the base name: `--exclude '*_mask.npy'`, `--exclude 'old/*'`, `--include 'train/*'`. A
pattern that matches a directory excludes all that is in it. A file is taken if some `include` matches (or none is
given) and no `exclude` does. A named `include` also takes files without the usual suffix. A source that is a file needs
no `include`; `exclude` leaves it out, as one of those that a shell made of a pattern.

**Not taken, only counted**: names that begin with a dot, `__MACOSX`, `__pycache__`, and files that are neither `.npy`
nor `.npz`. **Refused**: FIFOs, devices, sockets and dangling links under a name that would be taken. Links are
followed; a directory link that leads back to its own ancestors is counted and left.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from chunkstore._ingest.npy.files import kind_of
from chunkstore._storage.names import natural_sort
from chunkstore.errors import IngestError

SUFFIXES: Final = (".npy", ".npz")
_HIDDEN: Final = frozenset({"__MACOSX", "__pycache__"})
_NOTHING: Final = "(?!)"  # a pattern that fits no text
Matcher = Callable[[str, str], bool]


@dataclass(frozen=True)
class Skipped:
    """A file that is left out, and why.

    Attributes:
        path: relative to the source that it was found in.
        reason: one sentence, without the path.
    """

    path: str
    reason: str

    @property
    def shown(self) -> str:
        """The path on one line."""
        return self.path.replace("\n", "\\n")


@dataclass
class Scan:
    """Files of all sources, in the order of the samples.

    Attributes:
        sources: as given.
        roots: per source what is put before a relative path to open it.
        paths: relative POSIX paths; for a source that is a file, its base name.
        source_of: per file the number of its source.
        prefixes: per source what is put before its keys so that they stay unique; empty when that is not needed.
        problems: files that cannot be read as files, by the path to open them by.
    """

    sources: tuple[str, ...]
    roots: tuple[str, ...]
    paths: list[str] = field(default_factory=list)
    source_of: list[int] = field(default_factory=list)
    prefixes: tuple[str, ...] = ()
    problems: dict[str, Skipped] = field(default_factory=dict)
    num_hidden: int = 0
    num_other: int = 0
    num_excluded: int = 0
    num_loops: int = 0

    def __len__(self) -> int:
        return len(self.paths)

    def file_path(self, place: int) -> str:
        """Path to open file `place` by."""
        return self.roots[self.source_of[place]] + self.paths[place]

    def names(self) -> list[str]:
        """Relative paths with the prefixes of their sources: unique, and what pairing and `export` go by."""
        if not any(self.prefixes):
            return self.paths
        return [self.prefixes[source] + path for source, path in zip(self.source_of, self.paths, strict=True)]

    def summary(self) -> str:
        """One line: what was found and what was passed over."""
        passed = [
            (self.num_hidden, "hidden"),
            (self.num_other, "of other kinds"),
            (self.num_excluded, "excluded"),
            (self.num_loops, "linked in a circle"),
        ]
        text = ", ".join(f"{number:,} {what}" for number, what in passed if number)
        return count_text(len(self.paths), "file") + (f" (passed over: {text})" if text else "")


def count_text(number: int, one: str, many: str = "") -> str:
    """`1 file`, `2,000 files`; `many` where it is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def leave_out(scan: Scan, path: str) -> str:
    """The options that leave out a file and no other, as a shell takes them; `path` as in `Scan.paths`."""
    found = [*scan.paths, *(problem.path for problem in scan.problems.values())]
    if sum(f"/{other}".endswith(f"/{path}") for other in found) > 1:  # to a pattern all of them are one
        return "--on-error skip"
    pattern = "".join(char if char.isprintable() else "[! -~]" for char in glob.escape(path))
    return "--exclude '{}' or --on-error skip".format(pattern.replace("'", "'\\''"))


def scan_sources(
    sources: Sequence[str | os.PathLike[str]], *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Scan:
    """Find the files of all sources; opens none of them.

    Raises:
        IngestError: nothing found, one source given twice or inside another, or a source that is neither file nor
        directory.
        FileNotFoundError, PermissionError: a source or a directory in it cannot be read.
    """
    names = tuple(os.fspath(source) for source in sources)
    if not names:
        raise IngestError("no sources: name at least one directory, .npy or .npz file.")
    _check_distinct(names)
    scan = Scan(names, tuple(_root(name) for name in names))
    walker = _Walker(scan, include, exclude)
    for number, name in enumerate(names):
        walker.add_source(name, scan.roots[number])
        scan.source_of += [number] * (len(scan.paths) - len(scan.source_of))
    scan.prefixes = _prefixes(scan)
    if not scan.paths and not scan.problems:
        hint = "Check --include and --exclude." if scan.num_excluded else "Is this the right directory?"
        raise IngestError(f"{', '.join(names)}: no .npy or .npz file found: {scan.summary()}. {hint}")
    return scan


def _root(name: str) -> str:
    if os.path.isdir(name):
        return name if name.endswith(("/", os.sep)) else name + os.sep
    head = os.path.dirname(name)
    return head + os.sep if head and not head.endswith(os.sep) else head


def _check_distinct(names: tuple[str, ...]) -> None:
    real = [os.path.realpath(name) for name in names]
    if len(set(real)) != len(real):
        twice = next(name for place, name in enumerate(names) if real[place] in real[:place])
        raise IngestError(f"{twice}: this source is given twice.")
    directories = {path: name for path, name in zip(real, names, strict=True) if os.path.isdir(path)}
    for path, name in zip(real, names, strict=True):
        outer = next((directories[str(parent)] for parent in Path(path).parents if str(parent) in directories), None)
        if outer is not None:
            raise IngestError(
                f"{name}: this source lies inside the source {outer}: its files would be taken twice. "
                "Name one of the two; a pattern for --include or --exclude needs quotes."
            )


def _matcher(patterns: Sequence[str]) -> Matcher:
    """One compiled test of (folder in the source, name) for all patterns."""
    text = "|".join(fnmatch.translate(pattern.rstrip("/").removeprefix("./")) for pattern in patterns)
    match = re.compile(text or _NOTHING).match
    return lambda folder, name: match(folder + name) is not None or match(name) is not None


def _prefixes(scan: Scan) -> tuple[str, ...]:
    """Empty prefixes if the keys are unique without; else base names of the sources, numbered if equal too."""
    if len(scan.sources) < 2 or len({path.rpartition(".")[0] for path in scan.paths}) == len(scan.paths):
        return ("",) * len(scan.sources)
    bases = [os.path.basename(os.path.realpath(root or ".")) for root in scan.roots]
    if len(set(bases)) == len(bases):
        return tuple(f"{base}/" for base in bases)
    return tuple(f"{number}-{base}/" for number, base in enumerate(bases))


def _is(kind: Callable[[], bool]) -> bool:
    """What an entry says of itself; False where it is a link to itself."""
    try:
        return kind()
    except OSError:
        return False


class _Walker:
    """Fills a scan."""

    def __init__(self, scan: Scan, include: Sequence[str], exclude: Sequence[str]) -> None:
        self.scan, self.include, self.exclude = scan, _matcher(include), _matcher(exclude)
        self.all_included, self.plain = not include, not include and not exclude

    def add_source(self, name: str, root: str) -> None:
        """A directory with all that is in it, or one file, whatever its suffix and `include`: it is named."""
        status = os.stat(name)
        if os.path.isdir(name):
            self.walk(root, "", ((status.st_dev, status.st_ino),))
            return
        if self.exclude("", os.path.basename(name)):
            self.scan.num_excluded += 1
            return
        kind = kind_of(status.st_mode)
        if kind is not None:
            raise IngestError(f"{name}: expected a directory, .npy or .npz file, found {kind}.")
        self.scan.paths.append(os.path.basename(name))

    def walk(self, directory: str, relative: str, ancestors: tuple[tuple[int, int], ...]) -> None:
        """Add the files below `directory`; `relative` is its path in the source, with a slash at its end."""
        files, directories = self.entries(directory, relative)
        names = natural_sort(files + list(directories))
        if not directories:  # says the same as what follows, in half the time
            self.scan.paths.extend([relative + name for name in names])
            return
        for name in names:
            if name not in directories:
                self.scan.paths.append(relative + name)
                continue
            child = directory + name + "/"
            status = os.stat(child)
            if (status.st_dev, status.st_ino) in ancestors:
                self.scan.num_loops += 1
            else:
                self.walk(child, f"{relative}{name}/", (*ancestors, (status.st_dev, status.st_ino)))

    def entries(self, directory: str, relative: str) -> tuple[list[str], set[str]]:
        """Names of the files and of the directories to take, unsorted."""
        files: list[str] = []
        directories: set[str] = set()
        with os.scandir(directory) as listing:
            for entry in listing:
                name = entry.name
                if self.plain and name.endswith(SUFFIXES) and name[0] != "." and _is(entry.is_file):
                    files.append(name)  # what follows says the same, at 1 µs more for each of a million files
                elif name[0] == "." or name in _HIDDEN:
                    self.scan.num_hidden += 1
                elif _is(entry.is_dir):
                    if self.exclude(relative, name):
                        self.scan.num_excluded += 1
                    else:
                        directories.add(name)
                elif self.wanted(relative, name):
                    self.add_file(entry, relative, files)
        return files, directories

    def wanted(self, relative: str, name: str) -> bool:
        """Whether suffix and globs take the file; counts it if not."""
        known = name.endswith(SUFFIXES) or name[-4:].lower() in SUFFIXES
        if self.exclude(relative, name):
            self.scan.num_excluded += 1
            return False
        taken = known if self.all_included else self.include(relative, name) and (known or self.means(relative, name))
        self.scan.num_excluded += known and not taken
        self.scan.num_other += not known and not taken
        return taken

    def means(self, relative: str, name: str) -> bool:
        """Whether a pattern means this suffix; one for any (`train/*`) means no other kinds of files."""
        return not self.include(relative, os.path.splitext(name)[0] + ".\ufffd")

    def add_file(self, entry: os.DirEntry[str], relative: str, files: list[str]) -> None:
        if _is(entry.is_file):
            files.append(entry.name)
            return
        if entry.is_symlink() and not os.path.exists(entry.path):
            target = os.readlink(entry.path)
            hint = " `git annex get` (or `datalad get`) brings the data." if "annex/objects" in target else ""
            reason = f"a link to {target!r}, which is not there.{hint}"
        else:
            reason = f"expected a regular file, found {kind_of(entry.stat().st_mode) or 'no regular file'}"
        self.scan.problems[entry.path] = Skipped(relative + entry.name, reason)
