"""A new container behind a URL: written to a local temporary file first, and uploaded when it is whole."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from chunkstore._format.constants import MAGIC
from chunkstore._storage.objects import RemoteObject, UrlError, is_url
from chunkstore._storage.remote import Remote


@contextmanager
def uploaded(path: str | os.PathLike[str], mode: str, remote: Remote | None) -> Iterator[str]:
    """The path to write a new container to: `path` itself, or for a URL a temporary one, uploaded when the block ends.

    The temporary file is in the folder for such files (`TMPDIR`), which must have room for all of it. After an error in
    the block nothing is uploaded; it is removed in any case.

    Args:
        mode: `"x"` refuses to overwrite an object, before any work and again at the upload; `"w"` replaces a container
            or an object of no bytes, and nothing else.
    Raises:
        FileExistsError: there is an object that must stay.
        PermissionError, RemoteError: the server refuses, or fails; nothing was published.
        FileNotFoundError: there is no such bucket, which the server says at the upload only.
        ValueError: a web server, to which nothing can be uploaded; `remote` without a URL.
    """
    if not is_url(path):
        if remote is not None:
            raise ValueError(f"remote: goes with a URL such as s3://bucket/train.cks, found the path {path!r}")
        yield os.fspath(path)
        return
    target = RemoteObject(os.fspath(path), (remote or Remote()).storage_options)
    if not target.in_store:
        raise UrlError(f"{path}: nothing can be uploaded to a web server; write a file, or to s3://, gs://, az://")
    _check_free(target, mode)
    with tempfile.TemporaryDirectory(prefix="chunkstore-upload-") as folder:
        local = os.path.join(folder, os.path.basename(target.url))
        try:
            yield local
        except KeyboardInterrupt:  # what it says is true of the temporary file
            raise KeyboardInterrupt(f"interrupted: nothing was uploaded to {path}. Run the same again") from None
        try:
            target.put(local, overwrite=mode == "w")
        except FileNotFoundError as error:
            if error.filename != target.url:
                raise
            raise FileNotFoundError(errno.ENOENT, "there is no such bucket; nothing was uploaded", target.url) from None
        except KeyboardInterrupt:  # seen only when the client is back, which may have done all
            text = f"interrupted at the upload: {path} is there as a whole, or as it was before: chunkstore info tells"
            raise KeyboardInterrupt(text) from None


def _check_free(target: RemoteObject, mode: str) -> None:
    found = target.look()
    if found is None:
        return
    if mode == "x":
        raise target.exists()
    if found.size and bytes(target.get(0, len(MAGIC), found)[0]) != MAGIC:
        text = "this object is no container: it is not replaced. Give another name, or delete it first"
        raise FileExistsError(errno.EEXIST, text, target.url)
