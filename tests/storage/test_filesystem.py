"""Which file systems count as network ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chunkstore._storage import filesystem

MOUNTS = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
41 27 0:40 / /mnt/my\040data rw shared:7 master:1 - nfs4 server:/x rw,vers=4.2
42 27 0:41 / /mnt/my\040data/local rw - btrfs /dev/vdb rw
43 27 0:42 / /s3 rw - fuse.s3fs s3fs rw
44 27 0:43 / /over rw - ext4 /dev/vdc rw
45 44 0:44 / /over rw - cifs //server/share rw
a line of another shape
"""


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS)
    monkeypatch.setattr(filesystem, "MOUNTINFO", str(tmp_path / "mountinfo"))
    monkeypatch.setattr(filesystem, "_types_of_disks", {})


def test_parse_mountinfo() -> None:
    """Optional fields before the dash are skipped, octal escapes undone, strange lines left out."""
    mounts = filesystem.parse_mountinfo(MOUNTS)
    assert mounts[2] == ("0:40", "/mnt/my data", "nfs4")
    assert len(mounts) == 7


@pytest.mark.usefixtures("mounts")
@pytest.mark.parametrize(
    ("path", "device", "expected"),
    [
        ("/home/x", os.makedev(254, 0), "ext4"),
        ("/anywhere", os.makedev(0, 40), "nfs4"),
        ("/mnt/my data/x", os.makedev(9, 99), "nfs4"),
        ("/mnt/my data/local/x", os.makedev(9, 99), "btrfs"),
        ("/mnt/my data 2/x", os.makedev(9, 99), "ext4"),
        ("/over/x", os.makedev(9, 99), "cifs"),
    ],
)
def test_filesystem_type(path: str, device: int, expected: str) -> None:
    """The device number decides, else the longest (and latest) mount point above the path."""
    assert filesystem.filesystem_type(path, device) == expected


@pytest.mark.usefixtures("mounts")
@pytest.mark.parametrize(
    ("device", "expected"),
    [((254, 0), False), ((0, 40), True), ((0, 41), False), ((0, 42), True), ((0, 44), True)],
)
def test_is_network(device: tuple[int, int], expected: bool) -> None:
    """NFS, shares and file systems in user space count as network; disks do not."""
    assert filesystem.is_network("/x", os.makedev(*device)) is expected


@pytest.mark.usefixtures("mounts")
def test_only_disks_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is asked again for a number without a disk: after an unmount it may be another file system's."""
    assert filesystem.is_network("/x", os.makedev(0, 40))
    assert not filesystem.is_network("/x", os.makedev(254, 0))
    monkeypatch.setattr(filesystem, "filesystem_type", lambda *_: "tmpfs")
    assert not filesystem.is_network("/x", os.makedev(0, 40))
    monkeypatch.setattr(filesystem, "filesystem_type", lambda *_: "nfs")
    assert not filesystem.is_network("/x", os.makedev(254, 0))


def test_unknown_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no mountinfo a file counts as local."""
    monkeypatch.setattr(filesystem, "MOUNTINFO", "/nowhere/mountinfo")
    assert filesystem.filesystem_type("/x", 1) is None
    assert not filesystem.is_network("/x", 1)


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="this system has no mountinfo")
def test_real_system(tmp_path: Path) -> None:
    """The file system of the temporary directory has a name."""
    assert filesystem.filesystem_type(str(tmp_path), tmp_path.stat().st_dev)
