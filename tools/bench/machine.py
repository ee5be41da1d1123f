"""Where and with what a run was made: recorded beside every result."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

BASE_PACKAGES = ("numpy", "xxhash", "click", "tqdm")


def _first_line(path: str, prefix: str) -> str | None:
    """What follows `prefix` and its separator in the first such line of a text file, or None."""
    with contextlib.suppress(OSError), open(path, encoding="utf-8") as lines:
        for line in lines:
            if line.startswith(prefix):
                return line[len(prefix) :].strip(" \t:\n")
    return None


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def file_system(path: Path) -> str:
    """Type of the file system that holds `path`, as the kernel names it ("unknown" where it does not say)."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        for line in mounts:
            left, _, right = line.partition(" - ")
            if left.split()[2] == wanted:
                return right.split()[0]
    return "unknown"


def read_ahead_kib(path: Path) -> int | None:
    """Read-ahead window of the block device under `path` in KiB, or None."""
    device = path.stat().st_dev
    setting = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/queue/read_ahead_kb")
    with contextlib.suppress(OSError, ValueError):
        return int(setting.read_text())
    return None


def describe_machine(directory: Path) -> dict[str, Any]:
    """CPU, cores, memory, kernel, and the file system that the run wrote to."""
    return {
        "cpu": _first_line("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "file_system": file_system(directory),
        "read_ahead_kib": read_ahead_kib(directory),
        "load_average": os.getloadavg(),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Installed versions of `packages`, those that are missing left out, and Python's."""
    found = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def without_directories(arguments: Iterable[str]) -> list[str]:
    """The arguments, of paths only the last part: where someone keeps their files is nobody's business."""
    return [argument.rsplit("/", 1)[-1] for argument in arguments]


def provenance(directory: Path, arguments: Iterable[str], packages: Iterable[str] = ()) -> dict[str, Any]:
    """The head of every report: machine, versions, command, date."""
    return {
        "machine": describe_machine(directory),
        "versions": versions((*BASE_PACKAGES, *packages)),
        "command": shlex.join(["tools/bench/run", *without_directories(arguments)]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
