"""The architecture as a test: a module knows only what stands above it, and what is outside has its place.

The tables hold patterns of module names inside the package (`*` matches dots too). A new module belongs into
LAYERS.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import windows_like

PACKAGE = Path(__file__).resolve().parent.parent / "chunkstore"

# Top to bottom; the first pattern that matches gives a module its row.
# Modules of one row may know each other, without cycles.
LAYERS = [
    ["errors", "_importing"],
    ["_format.constants"],
    ["_format.checksum", "_format.dtypes", "_format.lookup", "_format.codec", "_format.encode", "_format.decode"],
    ["_format.schema"],
    ["_format.superblock", "_format.segment"],
    ["_format.section"],
    ["_format.*"],  # keys, layout, index: what stands on all of the above
    ["_storage.*"],
    ["_read.batch", "_read.ragged", "_read.hints", "_read.checked"],
    ["_read.coded", "_read.inorder", "_read.gather"],  # one field
    ["_write.coding", "_write.late", "_write.sections"],
    ["_write.index_writer", "_write.shards", "_write.staging", "_write.target"],  # what the ways of writing share
    ["_write.*", "_read.*", "_verify.*"],
    ["_rewrite.attrs", "_rewrite.room", "_rewrite.segments"],
    ["_rewrite.*"],
    ["_refs.*"],
    ["_ingest.npy.*", "_ingest.plan.specs"],
    ["_ingest.plan.*"],
    ["_ingest.convert.*", "_ingest.export.*"],
    ["_loading.*"],
    ["__init__"],
    ["_torch.*", "_tf.*"],
    ["torch", "tf", "grain", "jax"],
    ["_cli*", "__main__"],
]
# None of these imports another, though they share a row: verify, above all, is a second opinion.
APART = ["_write.*", "_read.*", "_verify.*"]
# Outside packages that have their place; what is not named here (NumPy, ...) may be used everywhere.
ONLY_IN = {
    "torch": ["torch", "_torch.*"],
    "tensorflow": ["tf", "_tf.*"],
    "grain": ["grain"],
    "jax": ["jax"],
    "ml_dtypes": ["_format.dtypes"],
    "xxhash": ["_format.checksum"],
    "zstandard": ["_format.codec"],
    "blosc2": ["_format.codec"],
    "click": ["_cli*"],
    "obstore": ["_storage.objects"],
    "mmap": ["_storage.*"],
    "fcntl": ["_storage.*"],
    "resource": ["_storage.*"],
    "termios": [],
    "pwd": [],
    "grp": [],
}
# `os` calls on open files are for the storage layer alone.
OS_WRITES = ["write", "writev", "pwrite", "pwritev", "fsync", "fdatasync", "ftruncate", "posix_fallocate"]
OS_PUBLISHES = ["link", "rename", "replace"]
OS_READS = ["read", "lseek"]  # at the position, and `platform` has what reads at an offset
# What Windows lacks has a plain twin in `_storage.platform`, and is called by its name there. Except what follows a
# fork: a system without forks needs no twin, and it stands where the threads and locks are that a fork leaves behind.
POSIX_ONLY = set(windows_like.NOT_IN_OS) - {"register_at_fork"}
# What `_format` never imports: it does no I/O and starts no thread.
NO_IO = ["os", "io", "tempfile", "shutil", "threading", "concurrent", "multiprocessing"]


def module_name(path: Path) -> str:
    """`chunkstore/_format/index.py` is `_format.index`, `chunkstore/_format/__init__.py` is `_format`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {module_name(path): ast.parse(path.read_bytes()) for path in sorted(PACKAGE.rglob("*.py"))}


def matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def row(name: str) -> int:
    """The row of a module; the `__init__` of a private package stands above all and so may import nothing."""
    if any(other.startswith(name + ".") for other in MODULES):
        return -1
    rows = [number for number, patterns in enumerate(LAYERS) if matches(name, patterns)]
    assert rows, f"chunkstore/{name.replace('.', '/')}.py has no row in LAYERS"
    return rows[0]


def imports(name: str) -> Iterator[str]:
    """Every dotted name that a module imports, lazily or not; `from a import b` gives `a.b`."""
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}, line {node.lineno}: imports are absolute in this package"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(name: str) -> set[str]:
    """The modules of this package that a module imports."""
    found = set()
    for target in imports(name):
        head, _, inner = target.partition(".")
        if head == "chunkstore":
            candidates = [inner, inner.rpartition(".")[0], "__init__"]
            found.add(next(candidate for candidate in candidates if candidate in MODULES))
    return found


@pytest.mark.parametrize("name", MODULES)
def test_imports_only_from_layers_above(name: str) -> None:
    """No import leads to a lower row, or to a module that must stay apart."""
    own_row = row(name)
    group = [pattern for pattern in APART if fnmatchcase(name, pattern)]
    for target in own_imports(name):
        assert row(target) <= own_row, f"{name} imports {target}, which is below it"
        apart = group and matches(target, APART) and not matches(target, group)
        assert not apart, f"{name} must not know {target}"


def test_no_import_cycle() -> None:
    """The modules can be put in an order in which each imports only earlier ones."""
    order = list(graphlib.TopologicalSorter({name: own_imports(name) for name in MODULES}).static_order())
    assert set(order) == set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_outside_packages_have_their_place(name: str) -> None:
    """Frameworks, codecs and xxhash are imported by their one module; `_format` imports nothing for I/O."""
    heads = {target.partition(".")[0] for target in imports(name)}
    assert [head for head in heads if not matches(name, ONLY_IN.get(head, ["*"]))] == []
    assert not name.startswith("_format.") or heads.isdisjoint(NO_IO)


@pytest.mark.parametrize("name", MODULES)
def test_only_storage_calls_os_on_containers(name: str) -> None:
    """`os.pwrite`, `os.pread` and whatever is not on every system are named in the storage layer only.

    `os.open` and its like may be named in ingest, too, which opens its sources by itself.
    """
    used = {target.removeprefix("os.") for target in imports(name) if target.startswith("os.")}
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            used |= {node.attr}
    if not name.startswith("_storage."):
        assert used.isdisjoint(OS_WRITES + OS_PUBLISHES)
        assert used.isdisjoint(OS_READS)
        assert used.isdisjoint(POSIX_ONLY), "put it into _storage/platform.py, with a plain twin"
        assert "open" not in used or name.startswith("_ingest.")


def test_import_brings_only_what_is_needed() -> None:
    """`import chunkstore` loads NumPy, xxhash, click and tqdm at most, and few modules in all."""
    code = "import sys; before = set(sys.modules); import chunkstore; print(*(set(sys.modules) - before))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = run.stdout.split()
    outside = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    public = {name for name in outside if not name.startswith("_")}
    assert public <= {"chunkstore", "numpy", "cython_runtime", "xxhash", "click", "tqdm"}
    # NumPy has about 140, click and tqdm 110 more; TensorFlow alone would bring thousands.
    assert len(loaded) < 450
