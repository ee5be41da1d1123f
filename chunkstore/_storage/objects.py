"""Objects on S3, Google Cloud Storage, Azure and web servers, by their URLs: the only module that knows the client.

The client is obstore (the object stores of Rust), chosen by measurement: batches of 64 ranges of 147 KiB over the
loopback, 2 cores. Time of a batch, and processor time of a request:

    obstore     6 to 8 ms     110 to 170 µs      15 MB to install
    aiohttp (fsspec)  18 ms         310 µs
    s3fs             74 ms       1,200 µs      125 MB with gcsfs and adlfs

It tries again by itself (5xx, 429, timeouts, resets; a body that breaks off is taken up where it broke), takes
`If-Match`, and reads credentials and endpoints from the environment. Its weak side: after a fork its threads are gone
and every call waits for ever. So a forked process loads a second copy of the library (10 ms), which has threads of its
own.
"""

from __future__ import annotations

import errno
import importlib.machinery
import importlib.util
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from fnmatch import fnmatchcase
from glob import has_magic
from itertools import takewhile
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from chunkstore._importing import IMPORTING
from chunkstore.errors import MissingExtraError, RemoteError, ReplacedError

_STORES: Final = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore", "http": "HTTPStore", "https": "HTTPStore"}
_CREDENTIALS: Final = {
    "S3Store": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL",
    "GCSStore": "GOOGLE_APPLICATION_CREDENTIALS",
    "AzureStore": "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY",
    "HTTPStore": "default_headers in client_options",
}
URL_KINDS: Final = ", ".join(f"{scheme}://" for scheme in _STORES)
_URL_LIKE: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # a drive has one letter
_MODULE: Final = "obstore._obstore"
_EXISTS: Final = 'there is an object already. Give another name; mode="w" (--overwrite) replaces it'
_METADATA_SERVER: Final = "169.254.169.254"
_REASON_LENGTH: Final = 300
_MIN_PART_NBYTES: Final = 16 << 20
_MAX_PARTS: Final = 9000  # S3 takes 10,000
_MOST_LISTED: Final = 100_000  # objects that a pattern is held against: some seconds
_ATOMIC_NBYTES: Final = 64 << 20  # up to here an upload is one request, which can refuse to overwrite


class UrlError(ValueError):
    """A URL, or the options that go with it, cannot be used as they are: nothing was asked of a server."""


def is_url(path: object) -> bool:
    """Whether a path is the URL of an object that this module knows how to reach."""
    return isinstance(path, str) and path.partition("://")[0] in _STORES and "://" in path


def looks_like_url(path: object) -> bool:
    """Whether somebody may have meant a URL: of an unknown kind, or as `pathlib` leaves it (`s3:/bucket/key`)."""
    return _URL_LIKE.match(os.fsdecode(path) if isinstance(path, os.PathLike) else str(path)) is not None


class Version(NamedTuple):
    """What tells one state of an object from another."""

    size: int
    etag: str | None
    modified: datetime | None

    @property
    def known(self) -> bool:
        """Whether the server says more than the size."""
        return self.etag is not None or self.modified is not None


class RemoteObject:
    """One object. Safe from many threads and after a fork; its connections are those of the client library.

    Args:
        url: `s3://bucket/key`, `gs://bucket/key`, `az://container/key`, `https://host/path`.
        options: arguments of the store class of obstore: `config`, `client_options`, `retry_config`,
            `credential_provider`, and single settings such as `endpoint` or `region`.
    Raises:
        UrlError: a URL without bucket or key, with a query, with a password, or of a name that the client would change;
            options that the client refuses. It is a ValueError.
        MissingExtraError: obstore is not installed.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self.url = url
        self._kind, self._root, self._key = _split_url(url)
        self._options = dict(options)
        if url.startswith("http://"):  # whoever writes http:// wants it
            self._options["client_options"] = {"allow_http": True} | dict(self._options.get("client_options") or {})
        self._made: tuple[int, Any, Any] | None = None
        self._client()

    def get(self, start: int, stop: int, version: Version | None) -> tuple[memoryview, Version]:
        """Bytes `[start, stop)`, fewer if the object ends before, and the version that they are of.

        Args:
            version: the one that is wanted; None: whatever is there.
        Raises:
            ReplacedError: the object has another version by now.
            FileNotFoundError, PermissionError: as the server says.
            RemoteError: anything else, after the tries of the client library.
        """
        library, store = self._client()
        options: dict[str, Any] = {"range": (start, stop)}
        if version is not None and version.etag is not None and not version.etag.startswith("W/"):
            options["if_match"] = version.etag
        try:
            result = library.get(store, self._key, options=options)
            found = _version_of(result.meta)
            if version is not None and found != version:
                raise self._replaced(f"expected {_shown(version)}, found {_shown(found)}")
            # Not `bytes`: a server may send any number of them. All come in one piece, unless there are more.
            expected = min(stop, found.size) - start
            data = memoryview(next(result.stream(expected + 1), b""))
        except BaseException as error:  # noqa: BLE001
            raise self._translated(error, f"bytes [{start}, {stop})") from None
        if len(data) != expected:
            count = f"{len(data)}" if len(data) < expected else "more"
            raise RemoteError(f"{self.url}: bytes [{start}, {stop}): expected {expected} bytes, found {count}")
        return data, found

    def look(self) -> Version | None:
        """What is there now, by a request without a body; None for nothing."""
        library, store = self._client()
        try:
            return _version_of(library.head(store, self._key))
        except FileNotFoundError:
            return None
        except BaseException as error:  # noqa: BLE001
            raise self._translated(error, "a look at the object") from None

    def put(self, path: str, *, overwrite: bool) -> None:
        """Upload a file; the object appears when it is whole, or not at all.

        Files of more than 64 MiB go in parts. Whether there is an object already is then looked up before, and not
        decided by the server: two uploads at the same moment may both succeed, the later one remains.

        Raises:
            FileExistsError: there is an object, and `overwrite` is not wanted.
            PermissionError, RemoteError: nothing was published.
        """
        library, store = self._client()
        nbytes = os.path.getsize(path)
        if not overwrite and self.look() is not None:
            raise self.exists()
        parts: dict[str, Any] = {"chunk_size": max(_MIN_PART_NBYTES, -(-nbytes // _MAX_PARTS)), "max_concurrency": 8}
        if nbytes <= _ATOMIC_NBYTES:
            parts = {"use_multipart": False} | ({} if overwrite else {"mode": "create"})
        with open(path, "rb") as file:
            try:
                library.put(store, self._key, file, **parts)
            except BaseException as error:  # noqa: BLE001
                raise self._translated(error, f"the upload of {nbytes} bytes") from None
        found = self.look()
        if found is None or found.size != nbytes:
            raise RemoteError(f"{self.url}: uploaded {nbytes} bytes, found {found and found.size}: upload it again")

    def exists(self) -> FileExistsError:
        """The error that says so."""
        return FileExistsError(errno.EEXIST, _EXISTS, self.url)

    def matches(self) -> list[str]:
        """The URLs of all objects that this one stands for as a pattern, in no order.

        `*`, `?` and `[...]` stand for anything but a slash, `**` for any folders, also none. An object of this very
        name goes before the pattern.

        Raises:
            UrlError: there are more objects to look through than anybody means, or one whose name the client refuses.
            PermissionError, RemoteError: as the server says.
        """
        if self.look() is not None:  # asked for by itself: nobody need be allowed to list for that
            return [self.url]
        library, store = self._client()
        parts = self._key.split("/")
        folder = "/".join(takewhile(lambda part: not has_magic(part), parts))
        keys: list[str] = []
        try:
            for chunk in library.list(store, folder or None, chunk_size=1000):
                keys += [entry["path"] for entry in chunk]
                if len(keys) > _MOST_LISTED:
                    break
        except BaseException as error:  # noqa: BLE001
            raise self._translated(error, f"the list of objects in {self._root}/{folder}") from None
        if len(keys) > _MOST_LISTED:
            text = f"more than {_MOST_LISTED} objects in {self._root}/{folder}, where the pattern is looked for"
            raise UrlError(f"{self.url}: {text}. Begin it with a folder of fewer, or give a list of URLs")
        return [f"{self._root}/{key}" for key in keys if _fits(key.split("/"), parts)]

    @property
    def in_store(self) -> bool:
        """Whether it is in a store, which takes uploads and lists what it has; not on a web server."""
        return self._kind != "HTTPStore"

    def _client(self) -> tuple[Any, Any]:
        made = self._made
        if made is None or made[0] != os.getpid():
            library = _library(self.url)
            try:
                store = getattr(library._store, self._kind).from_url(self._root, **self._options)
            except Exception as error:  # noqa: BLE001
                text = f"the client refuses its options: {_reason(error)}. It takes them from storage_options and from"
                raise UrlError(f"{self.url}: {text} {_CREDENTIALS[self._kind]}") from None
            made = self._made = os.getpid(), library, store
        return made[1], made[2]

    def _replaced(self, what: str) -> ReplacedError:
        return ReplacedError(f"{self.url}: the object was changed since it was opened ({what}). Open it again")

    def _translated(self, error: BaseException, what: str) -> BaseException:
        """Errors of the client, classes of a native library, as ours; others, such as an interrupt, as they are."""
        name, reason = type(error).__name__, _reason(error)
        # A panic is what an endpoint that is no URL ends in; it is no Exception.
        if isinstance(error, ReplacedError) or not (isinstance(error, Exception) or name == "PanicException"):
            return error
        if name == "PreconditionError":
            return self._replaced("the server says so")
        if isinstance(error, FileNotFoundError):
            text = "there is no such object"
            text += "; a web server does not list what it has: give a list of URLs" if has_magic(self.url) else ""
            return FileNotFoundError(errno.ENOENT, text, self.url)
        if name == "AlreadyExistsError":
            return self.exists()
        if name in ("PermissionDeniedError", "UnauthenticatedError"):
            text = f"the server refuses access; the client takes credentials from {_CREDENTIALS[self._kind]}"
            return PermissionError(errno.EACCES, f"{text} ({reason})", self.url)
        if name == "InvalidPathError":
            return UrlError(
                f"{self.url}: {what}: {reason}. The client cannot read that name: rename it, or list the URLs"
            )
        if isinstance(error, ValueError) and reason.startswith("Could not parse path"):
            return UrlError(f"{self.url}: the client refuses this name: {reason}. Rename the object")
        if name == "NotSupportedError" and "ange" in reason:
            reason = "the server does not answer range requests"
        return RemoteError(f"{self.url}: {what}: {reason}. {self._todo(name, reason)}")

    def _todo(self, name: str, reason: str) -> str:
        """What to do about an error of the client."""
        if name == "NotSupportedError" and "ange" in reason:
            return "Download the file, or use another server"
        if name == "PanicException":
            return "Look at the endpoint: a URL such as https://host:port is expected"
        if "builder error" in reason:  # the words of its HTTP library
            return "Look at the endpoint; one that begins with http:// needs AWS_ALLOW_HTTP=true"
        if _METADATA_SERVER in reason:  # which clouds have, and which is asked where nothing else is known
            public = "; AWS_SKIP_SIGNATURE=true reads a public bucket" if self._kind == "S3Store" else ""
            return f"No credentials were found: the client takes them from {_CREDENTIALS[self._kind]}{public}"
        return "The client has tried again as its retry_config says; look at the server, and try later"


def _split_url(url: str) -> tuple[str, str, str]:
    """(name of the store class, root of the store, key)."""
    # Not `urlsplit`: it drops tabs and line ends, and so may name another object.
    scheme, _, rest = url.partition("://")
    web = scheme in ("http", "https")
    found = re.search(r"[?#]" if web else r"\?.*=", rest)  # else, in a store, both are signs of a name like others
    where = rest[: found.start()] if found else rest
    host, _, key = where.partition("/")
    bare = f"{scheme}://{host.rpartition('@')[2]}/{key}"  # without what may be secret
    if "@" in host:
        text = "URLs with a user or a password are not supported, for errors and logs show them"
        raise UrlError(f"{bare}: {text}; give credentials as options, such as default_headers in client_options")
    if found:
        raise UrlError(f"{bare}: URLs with a query or a fragment are not supported; give credentials as options")
    if not host or not key or key.endswith("/"):
        raise UrlError(f"{url}: expected the URL of one object, such as s3://bucket/train.cks")
    return _STORES[scheme], f"{scheme}://{host}", _decoded(url, key) if web else key


def _decoded(url: str, key: str) -> str:
    # The client encodes again what it is given, but no slash: it would ask for another object.
    try:
        if "%2f" not in key.lower():
            return unquote(key, errors="strict")
    except UnicodeDecodeError:
        pass
    text = "the client cannot ask for a name with %2F, or with bytes that are no UTF-8. Rename the object"
    raise UrlError(f"{url}: {text}")


def _fits(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":  # any number of folders
        return any(_fits(parts[skipped:], patterns[1:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], patterns[0]) and _fits(parts[1:], patterns[1:])


def _version_of(meta: Any) -> Version:
    return Version(meta["size"], meta["e_tag"], meta["last_modified"])


def _shown(version: Version) -> str:
    return f"{version.size} bytes, ETag {version.etag}"


def _reason(error: BaseException) -> str:
    """The first line; what follows repeats it in the words of the library's source."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return text if len(text) <= _REASON_LENGTH else text[:_REASON_LENGTH] + "..."


_native: Any = None
_stale = False  # whether the library was in use before a fork, and so is of no use after it
_lock = threading.Lock()


def _library(url: str) -> Any:
    """The native module of obstore, in a copy that works in this process."""
    global _native
    with _lock:
        if _native is None:
            try:
                with IMPORTING:
                    original: Any = importlib.import_module(_MODULE)
            except ImportError as error:
                raise MissingExtraError(
                    f"{url}: reading and writing objects needs obstore: pip install 'chunkstore-arrays[remote]'"
                ) from error
            _native = _load_copy(original.__spec__.origin) if _stale else original
        return _native


def _load_copy(origin: str) -> Any:
    """Load a native module a second time: the loader knows files by their inodes, so it is given another file."""
    import shutil
    import tempfile

    names = ("obstore._store", "obstore.exceptions")
    before = {name: sys.modules[name] for name in names if name in sys.modules}
    with ExitStack() as stack:
        if hasattr(os, "memfd_create"):  # unlike a folder for temporary files it can always be executed
            fd = os.memfd_create("obstore")
            stack.callback(os.close, fd)
            path = f"/proc/{os.getpid()}/fd/{fd}"
        else:
            path = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), os.path.basename(origin))
        shutil.copyfile(origin, path)
        loader = importlib.machinery.ExtensionFileLoader(_MODULE, path)
        spec = importlib.util.spec_from_file_location(_MODULE, path, loader=loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    sys.modules.update(before)
    return module


def _after_fork() -> None:
    global _native, _stale, _lock
    _lock = threading.Lock()
    _native, _stale = None, _stale or _native is not None


_register: Callable[..., None] | None = getattr(os, "register_at_fork", None)
if _register is not None:
    _register(after_in_child=_after_fork)
