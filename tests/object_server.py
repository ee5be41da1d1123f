"""Servers on the loopback for tests of remote containers: a web server with range requests, and S3 behind faults.

    with RangeServer({"train.cks": data}) as server:       # http://127.0.0.1:PORT/train.cks
        server.fault = lambda request: Fault(status=503) if request.number < 2 else None

Both speak HTTP/1.1 over plain sockets, a thread for each connection, and keep a list of what was asked for.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

_CHUNK = 1 << 16


@dataclass(frozen=True)
class Request:
    """One request; `number` counts from 0."""

    number: int
    method: str
    target: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def range(self) -> tuple[int, int] | None:
        """Half-open, as asked for; the end is -1 where there is none."""
        text = self.headers.get("range", "")
        if not text.startswith("bytes="):
            return None
        start, _, last = text.removeprefix("bytes=").partition("-")
        return int(start), int(last) + 1 if last else -1


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request.

    Attributes:
        delay: seconds before anything else is done.
        status: answered instead, with no body to speak of.
        cut: so many bytes of the body are sent, then the connection is closed.
        short: the answer, whole in itself, has so many bytes less than were asked for.
        endless: the body does not end behind the range that it names.
        size: what it says that the object has.
        reset: the connection is reset before any answer.
        no_range: the range is ignored, and all is sent.
    """

    delay: float = 0.0
    status: int = 0
    cut: int = -1
    short: int = 0
    endless: bool = False
    size: int = 0
    reset: bool = False
    no_range: bool = False


class _Dropped(Exception):
    """The connection is over."""


class LoopbackServer:
    """Takes connections until the block ends.

    Attributes:
        requests: all so far.
        fault: asked about each of them.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.fault: Callable[[Request], Fault | None] = lambda request: None
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name=f"loopback-{self.port}", daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in threading.enumerate():
            if thread.name == f"connection-{self.port}":
                thread.join()

    @contextlib.contextmanager
    def counting(self) -> Iterator[list[Request]]:
        """The requests of a block, in a list that is full when it ends."""
        before = len(self.requests)
        found: list[Request] = []
        yield found
        found += self.requests[before:]

    def answer(self, request: Request, fault: Fault) -> tuple[int, dict[str, str], bytes | memoryview]:
        """Status, headers and body."""
        raise NotImplementedError

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open.add(connection)
            name = f"connection-{self.port}"
            threading.Thread(target=self._serve, args=(connection,), name=name, daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        rest = b""
        try:
            while True:
                request, rest = self._read(connection, rest)
                self._reply(connection, request)
        except (_Dropped, OSError):
            pass
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _read(self, connection: socket.socket, data: bytes) -> tuple[Request, bytes]:
        while b"\r\n\r\n" not in data:
            data += _some(connection)
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        while len(data) < length:
            data += _some(connection)
        method, target, _ = first.split(" ")
        with self._lock:
            request = Request(len(self.requests), method, target, headers, data[:length])
            self.requests.append(request)
        return request, data[length:]

    def _reply(self, connection: socket.socket, request: Request) -> None:
        fault = self.fault(request) or Fault()
        time.sleep(fault.delay)
        if fault.reset:  # no lingering: the other side gets a reset
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raise _Dropped
        if fault.status:
            status, headers, body = fault.status, {}, memoryview(b"<Error><Code>SlowDown</Code></Error>")
        else:
            status, headers, found = self.answer(request, fault)
            body = memoryview(found)
        headers.setdefault("content-length", str(len(body)))
        lines = [
            f"HTTP/1.1 {status} {http.client.responses.get(status, '')}",
            *(f"{k}: {v}" for k, v in headers.items()),
        ]
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        if request.method != "HEAD":
            connection.sendall(body if fault.cut < 0 else body[: fault.cut])
        while fault.endless:
            connection.sendall(bytes(_CHUNK))
        if fault.cut >= 0:
            raise _Dropped


def _some(connection: socket.socket) -> bytes:
    data = connection.recv(_CHUNK)
    if not data:
        raise _Dropped
    return data


class RangeServer(LoopbackServer):
    """A web server with range requests and ETags.

    Args:
        objects: path without the first slash -> bytes. May be changed while the server runs.
        etags: whether answers have an ETag; else they have a date of the last change.
    Attributes:
        if_match: whether the header of this name is heeded.
    """

    def __init__(self, objects: dict[str, bytes], *, etags: bool = True) -> None:
        super().__init__()
        self.objects = objects
        self.etags = etags
        self.if_match = True

    def url(self, name: str) -> str:
        return f"{self.endpoint}/{name}"

    def answer(self, request: Request, fault: Fault) -> tuple[int, dict[str, str], bytes | memoryview]:
        data = self.objects.get(request.target.removeprefix("/"))
        if data is None:
            return 404, {}, b""
        etag = f'"{hash(data) & 0xFFFFFFFF:x}"'
        headers = {"last-modified": "Sat, 21 Nov 2026 12:00:00 GMT"} | ({"etag": etag} if self.etags else {})
        if self.if_match and request.headers.get("if-match", etag) != etag:
            return 412, {}, b""
        wanted = request.range
        if wanted is None or fault.no_range:
            return 200, headers | ({"content-length": str(len(data))} if request.method == "HEAD" else {}), data
        start, stop = wanted[0], min(len(data), wanted[1] if wanted[1] >= 0 else len(data))
        if start >= len(data):
            return 416, {}, b""
        stop -= fault.short
        headers["content-range"] = f"bytes {start}-{stop - 1}/{fault.size or len(data)}"
        if fault.endless:
            headers["content-length"] = str(1 << 50)
        return 206, headers, memoryview(data)[start:stop]


class FaultyProxy(LoopbackServer):
    """Passes requests on to another server on the loopback, and faults in between.

    Args:
        port: where the other server listens.
    """

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port

    def answer(self, request: Request, fault: Fault) -> tuple[int, dict[str, str], bytes | memoryview]:
        # One connection to the server for each of ours: it is closed with the thread that serves it.
        upstream = http.client.HTTPConnection("127.0.0.1", self._port)
        try:
            # The host stays that of the client, who has signed it.
            upstream.request(request.method, request.target, request.body, request.headers)
            response = upstream.getresponse()
            body = response.read()
            left_out = ("connection", "transfer-encoding", "content-length")
            headers = {k.lower(): v for k, v in response.getheaders() if k.lower() not in left_out}
            if request.method == "HEAD":
                headers["content-length"] = response.getheader("content-length") or "0"
            return response.status, headers, body[: len(body) - fault.short]
        finally:
            upstream.close()
