"""What the first bytes of a file say that it is, for messages: people rename, forget to download, and save the error
page.
"""

from __future__ import annotations

import re
from typing import Final

from chunkstore._format.constants import MAGIC

NPY_MAGIC: Final = b"\x93NUMPY"
ZIP_MAGICS: Final = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_LFS: Final = b"version https://git-lfs.github.com/spec/"
_MAGICS: Final[tuple[tuple[bytes, str], ...]] = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x1f\x8b", "a gzip file: unpack it first (gunzip)"),
    (b"BZh", "a bzip2 file: unpack it first (bunzip2)"),
    (b"\xfd7zXZ\x00", "an xz file: unpack it first (unxz)"),
    (b"\x28\xb5\x2f\xfd", "a zstd file: unpack it first (unzstd)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-zip archive"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"CDF\x01", "a NetCDF file"),
    (b"CDF\x02", "a NetCDF file"),
    (b"MATLAB 5.0 MAT-file", "a MATLAB file"),
    (MAGIC, "a chunkstore container"),
)
_HTML: Final = re.compile(rb"\s*(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html|head|\?xml)", re.IGNORECASE)
_PICKLE: Final = re.compile(rb"\x80[\x02-\x05]|[(c]numpy|\(lp|\(dp|ccopy_reg", re.DOTALL)
_ANNEX: Final = re.compile(rb"(?:\.\./)*/?(?:\.git/)?annex/objects/")


def describe(head: bytes) -> str:
    """One phrase for a file that begins with `head` (256 bytes are plenty); ends without a full stop."""
    if not head:
        return "the file is empty (0 bytes)"
    if head.startswith(_LFS):
        size = re.search(rb"\nsize ([0-9]{1,19})\b", head)
        of = f" of {int(size[1]):,} bytes" if size else ""
        return (
            f"this is a Git LFS pointer, a text that stands for a file{of} that was not downloaded. `git lfs "
            "pull` in its repository brings the data"
        )
    if _ANNEX.match(head):
        return "this is a git-annex pointer, not the data. `git annex get` (or `datalad get`) brings the data"
    if head.startswith(NPY_MAGIC):
        return "it is an .npy file"
    if head.startswith(ZIP_MAGICS):
        return "it is a zip archive, perhaps an .npz file"
    for magic, text in _MAGICS:
        if head.startswith(magic):
            return f"it looks like {text}"
    if _HTML.match(head):
        return "it looks like an HTML page, perhaps the error page of a download"
    if _PICKLE.match(head):
        return "it looks like a Python pickle, which chunkstore does not load: save the arrays with np.save"
    if not head.strip(b"\0"):
        return "it begins with zeros, as after an interrupted copy"
    return f"it begins with {head[:8]!r}"
