"""Which file system holds a path, and whether it is a network one.

A map of a file on a network file system can kill the process with SIGBUS when the server drops the file or
shortens it; `backend="auto"` reads such files with `pread` instead.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import NamedTuple

MOUNTINFO = "/proc/self/mountinfo"

# Names of the kernel's file system types. Those in user space ("fuse", "fuse.*") count too: most of them are
# remote (sshfs, s3fs, gcsfuse, rclone), and `pread` is correct on all of them.
NETWORK_TYPES = frozenset(
    {
        "9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fuse", "gfs", "gfs2", "glusterfs",
        "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "prl_fs", "pvfs2", "smb2",
        "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs", "wekafs",
    }
)  # fmt: skip


_types_of_disks: dict[int, str] = {}  # the kernel takes 50 µs to list 20 mounts


class Mount(NamedTuple):
    """One line of mountinfo."""

    device: str  # "major:minor"
    mount_point: str
    type: str


def parse_mountinfo(text: str) -> list[Mount]:
    """Read the text of `/proc/self/mountinfo` (proc(5)); lines of another shape are left out."""
    mounts = []
    for line in text.splitlines():
        head, separator, tail = line.partition(" - ")
        fields = head.split(" ")
        if separator and len(fields) >= 6 and tail:
            mounts.append(Mount(fields[2], _unescape(fields[4]), tail.split(" ")[0]))
    return mounts


def filesystem_type(path: str, device: int) -> str | None:
    """Name the type of the file system that holds an existing file, e.g. "ext4"; None where the system does not tell.

    Args:
        path: the file.
        device: its `st_dev`. Some file systems (btrfs, overlay) give files another one than their mount has:
            then the longest mount point above the path decides.
    """
    try:
        with open(MOUNTINFO, "rb", 0) as file:
            text = file.read().decode("utf-8", "surrogateescape")
    except OSError:
        return None
    number = f"{os.major(device)}:{os.minor(device)}"
    # Mostly the line is there: only those that name the device are parsed, for all would take 100 µs.
    for mount in parse_mountinfo("\n".join(line for line in text.split("\n") if f" {number} " in line)):
        if mount.device == number:
            return mount.type
    return _longest_above(os.path.realpath(path), parse_mountinfo(text))


def is_network(path: str, device: int) -> bool:
    """Tell whether the file is on a network or user-space file system; False where that is not known."""
    if os.path.splitdrive(path)[0].startswith(("\\\\", "//")):  # a UNC path of Windows
        return True
    name = _types_of_disks.get(device)
    if name is None:
        name = filesystem_type(path, device)
        # A disk's number stays its own; those of file systems that have no disk are given again after an unmount.
        if name is not None and os.major(device):
            _types_of_disks[device] = name
    return name is not None and name.partition(".")[0] in NETWORK_TYPES


def _longest_above(path: str, mounts: Iterable[Mount]) -> str | None:
    found: Mount | None = None
    for mount in mounts:
        above = mount.mount_point.rstrip("/") + "/"
        # `>=`: of two mounts on one directory the later one is on top.
        if path.startswith(above) and (found is None or len(mount.mount_point) >= len(found.mount_point)):
            found = mount
    return None if found is None else found.type


def _unescape(text: str) -> str:
    # Blank, tab, newline and backslash are written as octal escapes.
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
