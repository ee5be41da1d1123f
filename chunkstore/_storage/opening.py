"""`open_any`: a source for a path or a URL."""

from __future__ import annotations

import os

from chunkstore._storage.objects import URL_KINDS, is_url, looks_like_url
from chunkstore._storage.remote import Remote, RemoteSource, Room
from chunkstore._storage.source import Backend, Source, open_source


def open_any(
    path: str | os.PathLike[str],
    backend: Backend = "auto",
    remote: Remote | None = None,
    *,
    in_order: bool = False,
    room: Room | None = None,
) -> Source:
    """Open a file, or an object behind a URL, for positional reads.

    Args:
        path: a path, or `s3://`, `gs://`, `az://`, `https://`, `http://`.
        backend: of a file; of an object there is one only, and "mmap" is refused.
        remote: of an object.
        in_order: it will be read from begin to end.
        room: of an object: what it keeps in memory together with others.
    Raises:
        All that `open_source` and `RemoteSource` raise.
        ValueError: an option that does not go with it.
    """
    if not is_url(path):
        if remote is not None:
            raise ValueError(f"remote: goes with a URL such as s3://bucket/train.cks, found the path {path!r}")
        try:
            return open_source(path, backend)
        except FileNotFoundError as error:
            if not looks_like_url(path):
                raise
            text = f"no file has this name, and a URL is a text that begins with {URL_KINDS}"
            raise FileNotFoundError(error.errno, text, os.fspath(path)) from None
    if backend not in ("auto", "pread"):
        raise ValueError(f'backend: expected "auto" for a URL, found {backend!r}')
    return RemoteSource(os.fspath(path), remote or Remote(), in_order=in_order, room=room)
