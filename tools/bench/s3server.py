"""A real S3 server (moto's) in a process of its own, on the loopback; for the benchmark and for the tests.

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


class S3Server:
    """Runs until the block ends; ends with this process in any case.

    Args:
        latency: seconds added to each request.
    """

    bucket = "bench"

    def __init__(self, latency: float = 0.0) -> None:
        self._latency = latency

    def __enter__(self) -> Self:
        command = [sys.executable, "-c", _SERVER, str(self._latency)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.strip():
            self.__exit__(None, None, None)
            raise RuntimeError("the S3 server did not start; it needs moto[s3], flask and flask-cors")
        self.port = int(line)
        urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/{self.bucket}", method="PUT")).close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()  # the end of its input is the end of the server

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

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
