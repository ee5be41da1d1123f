"""Which code a figure of the report is for: the modules that a part tries, with all that they import."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import xxhash

from tools.battery import ROOT

_READING = ("chunkstore._read.many", "chunkstore._verify.verify")
_WRITING = (*_READING, "chunkstore._write.writer", "chunkstore._rewrite.merge", "chunkstore._rewrite.repack",
            "chunkstore._rewrite.recover", "chunkstore._ingest.convert.convert")  # fmt: skip
_TRIED = {
    "bitflips": (*_READING, "chunkstore._write.writer", "tools.battery.bitflips", "tests.damaged"),
    "damage": (*_READING, "chunkstore._write.writer", "tools.battery.damages", "tests.damaged"),
    "model": (*_WRITING, "tools.battery.model"),
    "fuzz-npy": ("chunkstore._ingest.npy.npyheader",),
    "fuzz-npz": ("chunkstore._ingest.npy.arrays",),
    "fuzz-plain": _READING,
    "fuzz-repaired": _READING,
}


@functools.cache
def code_of(part: str) -> str:
    """A sum over the sources that a part tries: what was counted on other code does not count.

    Those are the modules under test and every module of the package that they import, anywhere in them, and theirs in
    turn. Of the battery and the tests it is the file that makes the input; for fuzz none, since better input is no
    reason to forget what was tried.
    """
    digest = xxhash.xxh3_64()
    for module in sorted(_reached(_TRIED.get(part, _WRITING))):
        digest.update(module.encode() + b"\0" + _file(module).read_bytes())
    return digest.hexdigest()


def _reached(roots: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    todo = list(roots)
    while todo:
        module = todo.pop()
        if module not in found:
            found.add(module)
            todo += _imported(module) if module.startswith("chunkstore.") else ()
    return found


@functools.cache
def _imported(module: str) -> tuple[str, ...]:
    """Modules of the package that a module imports; without the package itself, which only knows where names are."""
    names: list[str] = []
    for node in ast.walk(ast.parse(_file(module).read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(name for name in names if name.startswith("chunkstore.") and _file(name).exists())


def _file(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
