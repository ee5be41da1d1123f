"""Members of an `.npz` file: the zip directory by `zipfile`, the bytes by offset.

A member is trusted no further than its bytes go: names, sizes, places and methods are checked before anything is
read, its length is held against its `.npy` header, and inflating stops at the declared length.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import Final

from chunkstore._ingest.npy.files import read_at, read_exactly
from chunkstore._ingest.npy.npyheader import MAX_HEADER_NBYTES, PREFIX_NBYTES, header_nbytes
from chunkstore._ingest.npy.sniff import ZIP_MAGICS, describe
from chunkstore.errors import IngestError

_LOCAL: Final = struct.Struct("<4sHHHHHLLLHH")
_PEEK_NBYTES: Final = 4096  # of a deflate stream: more than a header needs
_MAX_RATIO: Final = 1040  # deflate cannot do better than 1032:1
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What `zipfile` raises for a damaged directory.
_ZIP_ERRORS: Final = (
    zipfile.BadZipFile,
    NotImplementedError,
    ValueError,
    EOFError,
    OverflowError,
    struct.error,
    OSError,
    IndexError,
)


@dataclass(frozen=True, slots=True)
class Member:
    """One `.npy` inside an `.npz`.

    Attributes:
        name: array name, that is without `.npy`.
        offset: first (compressed) byte in the file.
        stored_nbytes: bytes in the file.
        nbytes: bytes of the `.npy`, its header included.
        crc: CRC-32 of those.
        deflated: whether they are a deflate stream.
    """

    name: str
    offset: int
    stored_nbytes: int
    nbytes: int
    crc: int
    deflated: bool


def read_members(fd: int, size: int, where: str) -> list[Member]:
    """Array members in the order of the zip directory.

    Raises:
        IngestError: not a zip file, damaged, encrypted, no arrays, or a name that must not be there.
    """
    members: list[Member] = []
    seen: set[str] = set()
    for info in _directory(fd, size, where):
        if info.filename in seen:
            raise IngestError(
                f"{where}: two members are named {info.filename!r}: which one is meant? Write the file again."
            )
        seen.add(info.filename)
        _check_name(info, where)
        if not _is_junk(info):
            members.append(_member(fd, size, info, f"{where}: member {info.filename!r}"))
    _check_overlap(members, where)
    if not members:
        raise IngestError(f"{where}: the .npz file has no members: there is nothing to convert.")
    return members


def _directory(fd: int, size: int, where: str) -> list[zipfile.ZipInfo]:
    head = read_at(fd, 256, 0, where)
    if not head.startswith(ZIP_MAGICS):
        found = "it is an .npy file under an .npz name; rename it" if head[:6] == b"\x93NUMPY" else describe(head)
        raise IngestError(f"{where}: not an .npz (zip) file: {found}.")
    try:
        with os.fdopen(os.dup(fd), "rb") as file, zipfile.ZipFile(file) as archive:
            return archive.infolist()
    except _ZIP_ERRORS as error:
        raise IngestError(
            f"{where}: the zip directory is damaged or truncated ({str(error)[:100]}); the file has {size:,} "
            "bytes. Get it again."
        ) from None


def _check_name(info: zipfile.ZipInfo, where: str) -> None:
    """Refuse names that could lead out of a directory where others unpack the archive; `W:0` is a name like others."""
    for name in (info.filename, info.orig_filename):
        parts = name.replace("\\", "/").split("/")
        if "\0" in name or "\\" in name or ".." in parts or name.startswith("/") or not name:
            raise IngestError(
                f"{where}: member {name[:80]!r} has a name that is not safe (absolute, '..', backslash or NUL)."
            )


def _is_junk(info: zipfile.ZipInfo) -> bool:
    name = info.filename
    left_by_macos = name.startswith("__MACOSX/") or name.split("/")[-1] == ".DS_Store"
    return left_by_macos or (name.endswith("/") and info.file_size == 0)


def _member(fd: int, size: int, info: zipfile.ZipInfo, where: str) -> Member:
    if info.flag_bits & 0x41:
        raise IngestError(f"{where} is encrypted. Decrypt the archive first.")
    if info.compress_type not in _METHODS:
        raise IngestError(
            f"{where} uses zip method {info.compress_type}; only stored (0) and deflated (8) can be read."
        )
    if not info.filename.endswith(".npy"):
        raise IngestError(
            f"{where} is not an .npy array. An .npz file holds only .npy members: is this another kind of zip archive?"
        )
    name = info.filename[:-4]
    if not name:
        raise IngestError(f"{where} has no name in front of .npy.")
    stored, nbytes = info.compress_size, info.file_size
    deflated = info.compress_type == zipfile.ZIP_DEFLATED
    if (not deflated and stored != nbytes) or nbytes > stored * _MAX_RATIO + 1024:
        raise IngestError(
            f"{where} claims {nbytes:,} bytes from {stored:,} stored bytes, which cannot be. The archive is damaged."
        )
    offset = _data_offset(fd, size, info, where)
    if offset + stored > size:
        raise IngestError(
            f"{where} should end at byte {offset + stored:,}; the file has {size:,}. It is truncated or damaged."
        )
    return Member(name, offset, stored, nbytes, info.CRC, deflated)


def _data_offset(fd: int, size: int, info: zipfile.ZipInfo, where: str) -> int:
    """Where the member's bytes begin: behind its local header, which must agree with the directory."""
    raw = read_at(fd, _LOCAL.size, info.header_offset, where) if 0 <= info.header_offset < size else b""
    if len(raw) < _LOCAL.size or raw[:4] != b"PK\x03\x04":
        raise IngestError(
            f"{where}: no local header at byte {info.header_offset:,}. The archive is damaged or truncated."
        )
    _, _, flags, method, _, _, _, _, _, name_nbytes, extra_nbytes = _LOCAL.unpack(raw)
    name = read_at(fd, name_nbytes, info.header_offset + _LOCAL.size, where)
    wanted = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437", "replace")
    if (
        method != info.compress_type
        or (name != wanted and name != info.orig_filename.encode("utf-8", "replace"))
        or flags & 1
    ):
        raise IngestError(
            f"{where}: its local header (name {name[:60]!r}, method {method}) contradicts the zip directory. The "
            "archive is damaged."
        )
    return int(info.header_offset + _LOCAL.size + name_nbytes + extra_nbytes)


def _check_overlap(members: list[Member], where: str) -> None:
    end, last = 0, ""
    for member in sorted(members, key=lambda item: (item.offset, item.stored_nbytes)):
        if member.offset < end:
            raise IngestError(
                f"{where}: members {last!r} and {member.name!r} overlap. The archive is damaged, or a zip bomb."
            )
        end, last = member.offset + member.stored_nbytes, member.name


def read_member_header(fd: int, member: Member, where: str) -> bytes:
    """Header bytes of a member.

    Raises:
        IngestError: not an `.npy`, or shorter than its header.
    """
    data = _member_prefix(fd, member, PREFIX_NBYTES, where)
    total = header_nbytes(data, where)
    if total > member.nbytes:
        raise IngestError(f"{where}: truncated: the header has {total:,} bytes, the member {member.nbytes:,}.")
    return data[:total] if total <= len(data) else _member_prefix(fd, member, total, where)


def _member_prefix(fd: int, member: Member, nbytes: int, where: str) -> bytes:
    """First `nbytes` (at most about 1 MiB) of a member, or all of it where it is shorter."""
    buffer = bytearray(min(nbytes, member.nbytes, MAX_HEADER_NBYTES + 16))
    if member.deflated:
        InflateStream(fd, member, where, fetch_nbytes=_PEEK_NBYTES).read_into(memoryview(buffer))
    else:
        read_exactly(fd, member.offset, memoryview(buffer), where)
    return bytes(buffer)


class InflateStream:
    """Forward reader of a deflated member: bounded memory, never more bytes than declared, CRC checked at the end.

    Attributes:
        position: inflated bytes that were handed out.
    """

    PIECE: Final = 256 << 10

    def __init__(self, fd: int, member: Member, where: str, fetch_nbytes: int = PIECE) -> None:
        self._fd, self._member, self._where, self._fetch_nbytes = fd, member, where, fetch_nbytes
        self._inflate = zlib.decompressobj(-15)
        self._fed = 0
        self._crc = 0
        self._pending = b""
        self.position = 0

    def read_into(self, view: memoryview) -> None:
        """Fill `view` with the next bytes.

        Raises:
            IngestError: the stream is damaged, or ends before.
        """
        done = 0
        while done < len(view):
            piece = self._next(min(len(view) - done, self.PIECE * 4))
            view[done : done + len(piece)] = piece
            done += len(piece)

    def skip(self, nbytes: int) -> None:
        """Go forward; costs the inflating."""
        while nbytes > 0:
            nbytes -= len(self._next(min(nbytes, self.PIECE * 4)))

    def _next(self, limit: int) -> bytes:
        """1 to `limit` bytes."""
        piece = self._decompress(limit)
        if not piece:
            raise self._damaged(f"it inflates to {self.position:,} bytes, {self._member.nbytes:,} are declared")
        self._crc = zlib.crc32(piece, self._crc)
        self.position += len(piece)
        if self.position >= self._member.nbytes:
            if self._decompress(1) or not self._inflate.eof:
                raise self._damaged(f"it does not end after the {self._member.nbytes:,} bytes that are declared")
            if self._crc != self._member.crc:
                raise self._damaged(f"CRC-32 stored {self._member.crc:08x}, computed {self._crc:08x}")
        return piece

    def _decompress(self, limit: int) -> bytes:
        """1 to `limit` bytes; none where the stream or what is stored of it ends."""
        while not self._inflate.eof:
            stored = self._pending or self._fetch()
            try:
                # Called even without input: zlib can hold the last bits, unread because the output was full.
                piece = self._inflate.decompress(stored, limit)
            except zlib.error as error:
                raise self._damaged(f"the deflate stream is damaged near byte {self.position:,} ({error})") from None
            self._pending = self._inflate.unconsumed_tail
            if piece or not stored:
                return piece
        return b""

    def _fetch(self) -> bytes:
        nbytes = min(self._fetch_nbytes, self._member.stored_nbytes - self._fed)
        if nbytes == 0:
            return b""
        buffer = bytearray(nbytes)
        read_exactly(self._fd, self._member.offset + self._fed, memoryview(buffer), self._where)
        self._fed += nbytes
        return bytes(buffer)

    def _damaged(self, what: str) -> IngestError:
        return IngestError(f"{self._where}: {what}. The archive is damaged: get it again.")
