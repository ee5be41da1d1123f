"""Servers on the loopback, each in a process of its own: a real S3 server (moto's), and a quick web server.

    with S3Server(latency=0.05) as server:       # needs moto[s3], flask, flask-cors
        os.environ.update(server.environment)    # what the client library reads
        chunkstore.convert("data/", f"s3://{server.bucket}/train.cks")

moto reads all of an object to answer a range of it: keep objects small, or measure the server.
"""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from types import TracebackType
from typing import Self

_SERVER = """
import logging, os, sys, threading, time
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

class Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open
    def log(self, *arguments): pass

latency, lock, count = float(sys.argv[1]), threading.Lock(), 0
moto = DomainDispatcherApplication(create_backend_app)

def application(environ, start_response):
    global count
    if environ["PATH_INFO"] == "/-/count":
        start_response("200 OK", [("Content-Length", str(len(str(count))))])
        return [str(count).encode()]
    with lock:
        count += environ["REQUEST_METHOD"] == "GET"
    time.sleep(latency)
    return moto(environ, start_response)

server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Handler)
def end_with_parent():
    sys.stdin.read()
    os._exit(0)
threading.Thread(target=end_with_parent, daemon=True).start()
print(server.port, flush=True)
server.serve_forever()
"""


_WEB_SERVER = """
import os, socket, sys, threading, time
latency, file = float(sys.argv[1]), os.open(sys.argv[2], os.O_RDONLY)
size = os.fstat(file).st_size
end = bytes([13, 10])

def serve(connection):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    data = b""
    while True:
        while end + end not in data:
            more = connection.recv(65536)
            if not more:
                return
            data += more
        head, _, data = data.partition(end + end)
        time.sleep(latency)
        ranges = [line for line in head.lower().split(end) if line.startswith(b"range:")]
        start, last = ranges[0].split(b"=")[1].split(b"-")
        start, stop = int(start), min(size, int(last) + 1)
        lines = [
            "HTTP/1.1 206 Partial Content",
            f"Content-Range: bytes {start}-{stop - 1}/{size}",
            f"Content-Length: {stop - start}",
            'ETag: "one"',
            "Last-Modified: Sat, 21 Nov 2026 15:00:00 GMT",
        ]
        connection.send(end.join([*map(str.encode, lines), b"", b""]), socket.MSG_MORE)
        while start < stop:
            start += os.sendfile(connection.fileno(), file, start, stop - start)

def end_with_parent():
    sys.stdin.read()
    os._exit(0)
threading.Thread(target=end_with_parent, daemon=True).start()
listener = socket.create_server(("127.0.0.1", 0), backlog=256)
print(listener.getsockname()[1], flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


class _Server:
    """Runs until the block ends; ends with this process in any case."""

    script: str

    def __init__(self, latency: float, *arguments: str) -> None:
        self._arguments = (str(latency), *arguments)

    def __enter__(self) -> Self:
        command = [sys.executable, "-c", self.script, *self._arguments]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.strip():
            self.__exit__(None, None, None)
            raise RuntimeError("the server did not start; that of S3 needs moto[s3], flask and flask-cors")
        self.port = int(line)
        self.begin()
        return self

    def begin(self) -> None:
        """What there is to do once it runs."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()  # the end of its input is the end of the server

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"


class WebServer(_Server):
    """One file, by GET with a range, as fast as the system sends it; Linux only.

    Args:
        path: of the file, whatever URL is asked for.
        latency: seconds added to each request.
    """

    script = _WEB_SERVER

    def __init__(self, path: str, latency: float = 0.0) -> None:
        super().__init__(latency, path)


class S3Server(_Server):
    """An empty bucket; all the ways of S3.

    Args:
        latency: seconds added to each request.
    """

    script = _SERVER
    bucket = "bucket"

    def __init__(self, latency: float = 0.0) -> None:
        super().__init__(latency)

    def begin(self) -> None:
        urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/{self.bucket}", method="PUT")).close()

    @property
    def options(self) -> dict[str, object]:
        """`storage_options` for it."""
        return {
            "endpoint": self.endpoint,
            "access_key_id": "name",
            "secret_access_key": "secret",
            "region": "us-east-1",
            "client_options": {"allow_http": True},
        }

    @property
    def environment(self) -> dict[str, str]:
        """The same as environment variables."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "name",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }

    def num_gets(self) -> int:
        """GET requests so far."""
        with urllib.request.urlopen(f"{self.endpoint}/-/count") as answer:
            return int(answer.read())
