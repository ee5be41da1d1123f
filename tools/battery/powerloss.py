"""Power loss on a real file system: an ext4 on a loop device is shut down by its own ioctl while a writer appends.

After `EXT4_IOC_SHUTDOWN` nothing more reaches the device; unmounting and mounting again replays the journal, as after
a real power failure. Needs root, loop devices and mkfs.ext4; everywhere else it says why it cannot.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import chunkstore
from tools.battery.crash import read_fully
from tools.battery.faults import Findings, last_acknowledged, write

_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
_MODES = {"default": 0, "flush the log": 1, "no flush of the log": 2}
_SIZE = 64 << 20
_PATIENCE = 60  # seconds


def why_not(folder: Path) -> str | None:
    """Why power loss cannot be tried here; None if it can."""
    if os.name != "posix" or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "only root may mount"
    missing = [tool for tool in ("mkfs.ext4", "losetup", "mount", "umount") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    try:
        with mounted(folder) as (_, place):
            _shut_down(place, 2)
    except (OSError, subprocess.CalledProcessError) as error:
        text = (
            error.stderr.decode(errors="replace").strip() if isinstance(error, subprocess.CalledProcessError) else error
        )
        return f"no loop device with ext4 here: {text}"
    return None


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[tuple[Path, Path]]:
    """A fresh ext4; (its image, where it is mounted)."""
    image, place = folder / "disk.img", folder / "mnt"
    place.mkdir(exist_ok=True)
    with image.open("wb") as file:
        file.truncate(_SIZE)
    _run("mkfs.ext4", "-q", "-F", str(image))
    try:
        _mount(image, place)
        yield image, place
    finally:
        # Lazily: whoever failed may still have a file open there.
        subprocess.run(["umount", "--lazy", str(place)], check=False, capture_output=True)
        image.unlink(missing_ok=True)


def _mount(image: Path, place: Path) -> None:
    _run("mount", "-o", "loop", str(image), str(place))


def _unmount(image: Path, place: Path) -> None:
    """Unmount, and wait until the file system is gone.

    A process that made a mount namespace meanwhile has a copy of each mount. While it lives, the next mount would be of
    the file system that was shut down, where each call ends in EIO.
    """
    _run("umount", str(place))
    end = time.monotonic() + _PATIENCE
    while _run("losetup", "--associated", str(image)):
        if time.monotonic() > end:
            raise TimeoutError(f"{image}: another process still has it mounted after {_PATIENCE} s")
        time.sleep(0.05)


def _run(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout


def _shut_down(place: Path, mode: int) -> None:
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, ctypes.c_int32(_SHUTDOWN).value & 0xFFFFFFFF, struct.pack("I", mode))
    finally:
        os.close(fd)


def try_power_loss(folder: Path, findings: Findings, times: int, seed: int = 0) -> None:
    """Shut the file system down at a random moment of one append after another, on one container."""
    rng = random.Random(seed)
    with mounted(folder) as (image, place):
        path = place / "a.cks"
        write(path, 0, 3)
        os.sync()
        for number in range(times):
            # Whatever is acknowledged from then on would be a lie of the file system: it reports errors instead.
            said, _ = last_acknowledged(path, rng.random() * 0.1, partial(_shut_down, place, number % len(_MODES)))
            _unmount(image, place)
            _mount(image, place)
            findings.tried += 1
            findings.wrong += [f"power loss {number}: {what}" for what in _judge(path, said)]
            if path.stat().st_size > _SIZE // 4:
                path.unlink()
                write(path, 0, 3)


def _judge(path: Path, said: int) -> Iterator[str]:
    with chunkstore.open(path, backend="pread") as ds:
        count = len(ds)
    if count < said:
        yield f"{count} samples, {said} were acknowledged"
    yield from read_fully(path, tuple(range(count)))
