"""A real S3 server on the loopback: containers are made there, read there, and replaced only when that is wanted."""

from __future__ import annotations

import http.client
import importlib.util
import os
import pickle
import sys
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from object_server import Fault, FaultyProxy

import chunkstore
from chunkstore import Remote
from chunkstore._cli.main import cli
from chunkstore._storage import objects

pytest.importorskip("obstore", reason="the extra [remote] is not installed")
for package in ("moto", "flask", "flask_cors"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: no S3 server", allow_module_level=True)

sys.path.append(str(Path(__file__).resolve().parents[1]))  # tools/ is not installed

from tools.bench.servers import S3Server  # noqa: E402

RETRY = {
    "max_retries": 2,
    "retry_timeout": timedelta(seconds=5),
    "backoff": {"init_backoff": timedelta(milliseconds=1)},
}


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server() as running:
        yield running


@pytest.fixture
def root(server: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A folder of its own in the bucket; the client finds the server by the environment, as it does for users."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{server.bucket}/{request.node.name}"


@pytest.fixture
def rows(tmp_path: Path) -> np.ndarray[Any, Any]:
    """`tmp_path/x.npy`."""
    found = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), np.uint8)
    np.save(tmp_path / "x.npy", found)
    return found


def test_patterns(root: str, rows: Any, tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern means the objects of its folder that match, 2 before 10; an object of that very name goes before it."""
    chunkstore.convert(tmp_path / "x.npy", tmp_path / "x.cks", layout="rows")
    for number, name in enumerate(["train-10.cks", "train-2.cks", "other.cks", "below/train-3.cks", "[a].cks"]):
        chunkstore.repack(tmp_path / "x.cks", f"{root}/{name}", positions=range(number, number + 5))
    with chunkstore.open(f"{root}/train-*.cks") as ds:
        assert np.array_equal(ds[:]["data"], np.concatenate([rows[1:6], rows[0:5]]))
    for pattern, first in {"*/train-[1-3].cks": 3, "oth*.cks": 2, "[a].cks": 4}.items():
        with chunkstore.open(f"{root}/{pattern}") as ds:
            assert np.array_equal(ds[:]["data"], rows[first : first + 5])
    assert chunkstore.merge([f"{root}/train-*.cks"], tmp_path / "y.cks").num_samples == 10
    done = CliRunner().invoke(cli, ["verify", f"{root}/train-*.cks"], catch_exceptions=False)
    assert (done.exit_code, done.output.count("train-")) == (0, 2)
    with pytest.raises(chunkstore.SchemaError, match="2 containers, and one is wanted"):
        chunkstore.repack(f"{root}/train-*.cks", tmp_path / "z.cks")
    with pytest.raises(FileNotFoundError, match="no object has this name or matches this pattern"):
        chunkstore.open(f"{root}/none-*.cks")
    monkeypatch.setattr(objects, "_MOST_LISTED", 4)
    with pytest.raises(ValueError, match="more than 4 objects in s3://bucket/"):
        chunkstore.open(f"{root}/train-*.cks")
    with chunkstore.open(f"{root}/[a].cks") as ds:  # which is there: nothing is listed
        assert np.array_equal(ds[:]["data"], rows[4:9])
    for name in server.environment:
        monkeypatch.delenv(name)
    monkeypatch.setattr(objects, "_MOST_LISTED", 5)
    with chunkstore.open(f"{root}/train-*.cks", remote=Remote(storage_options=server.options)) as ds:
        assert len(ds) == 10


def test_signs_in_names(root: str, rows: Any, tmp_path: Path, server: S3Server) -> None:
    """`#` and `?` are letters of a name in a store; `?` and `**` stand for others in a pattern, as they do in paths."""
    chunkstore.convert(tmp_path / "x.npy", tmp_path / "x.cks", layout="rows")
    for number, name in enumerate(["a#1.cks", "b?2.cks", "below/c3.cks", "below/more/d4.cks"]):
        chunkstore.repack(tmp_path / "x.cks", f"{root}/{name}", positions=[number])
    for pattern, numbers in {
        "a#1.cks": [0],
        "b?2.cks": [1],
        "*.cks": [0, 1],
        "a?1.cks": [0],
        "**/*.cks": [0, 1, 2, 3],
        "below/**": [2, 3],
        "**/more/*": [3],
    }.items():
        with chunkstore.open(f"{root}/{pattern}") as ds:
            assert np.array_equal(ds[:]["data"], rows[numbers])
            assert np.array_equal(pickle.loads(pickle.dumps(ds))[:]["data"], rows[numbers])
    for target in ("/odd", "/odd/folder//x.cks"):  # a bucket of its own: nobody can list it any more
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("PUT", target)
        assert connection.getresponse().status == 200
        connection.close()
    with pytest.raises(ValueError, match=r"folder//x\.cks.*rename it, or list the URLs"):
        chunkstore.open("s3://odd/folder/*.cks")


def test_convert_reads_back(root: str, rows: Any, tmp_path: Path) -> None:
    """The same container as on the disk, in one call; the report names the URL."""
    report = chunkstore.convert(tmp_path / "x.npy", f"{root}/a.cks", layout="rows", verify=True)
    local = chunkstore.convert(tmp_path / "x.npy", tmp_path / "a.cks", layout="rows")
    assert (report.path, report.fingerprint) == (f"{root}/a.cks", local.fingerprint)
    with chunkstore.open(f"{root}/a.cks") as ds:
        order = np.random.default_rng(1).permutation(60)[:20]
        assert np.array_equal(ds.batch(order)["data"], rows[order])
        assert ds.backend == "remote"
    assert chunkstore.verify(f"{root}/a.cks").ok


def test_large_ones_go_in_parts(root: str, server: S3Server, tmp_path: Path) -> None:
    """More than 64 MiB: a multipart upload, which appears when it is whole."""
    np.save(tmp_path / "big.npy", np.random.default_rng(0).integers(0, 256, (35, 2 << 20), np.uint8))
    report = chunkstore.convert(tmp_path / "big.npy", f"{root}/big.cks", layout="rows")
    assert report.nbytes > 64 << 20
    with chunkstore.open(f"{root}/big.cks") as ds:
        assert np.array_equal(ds[34]["data"], np.load(tmp_path / "big.npy", mmap_mode="r")[34])


def test_nothing_is_overwritten_unless_wanted(root: str, rows: Any, tmp_path: Path) -> None:
    """Mode x refuses any object, mode w all but containers; both before any work."""
    url = f"{root}/a.cks"
    chunkstore.convert(tmp_path / "x.npy", url, layout="rows")
    with pytest.raises(FileExistsError, match="there is an object already"):
        chunkstore.convert(tmp_path / "no such file.npy", url)
    chunkstore.convert(tmp_path / "x.npy", url, layout="rows", mode="w")
    import obstore

    store = obstore.store.S3Store(url.split("/")[2])
    obstore.put(store, f"{root.split('/')[3]}/notes.txt", b"my notes, not a container")
    with pytest.raises(FileExistsError, match="no container"):
        chunkstore.convert(tmp_path / "x.npy", f"{root}/notes.txt", layout="rows", mode="w")


def test_a_bucket_that_is_not_there(root: str, rows: Any, tmp_path: Path) -> None:
    """Of an upload it is no news that there is no such object."""
    with pytest.raises(FileNotFoundError, match="there is no such bucket; nothing was uploaded"):
        chunkstore.convert(tmp_path / "x.npy", "s3://nosuch/a.cks", layout="rows")


def test_an_object_that_came_meanwhile_stays(root: str, rows: Any, tmp_path: Path, server: S3Server) -> None:
    """The upload itself refuses, too: another one may have been quicker."""
    from chunkstore._storage.objects import RemoteObject

    url = f"{root}/a.cks"
    target = RemoteObject(url, server.options)
    target.look = lambda: None  # type: ignore[method-assign]
    (tmp_path / "first").write_bytes(b"first")
    RemoteObject(url, server.options).put(str(tmp_path / "first"), overwrite=False)
    (tmp_path / "second").write_bytes(b"second")
    with pytest.raises(FileExistsError):
        target.put(str(tmp_path / "second"), overwrite=False)
    assert bytes(RemoteObject(url, server.options).get(0, 10, None)[0]) == b"first"


def test_merge_and_repack(root: str, rows: Any, tmp_path: Path) -> None:
    """From URLs and files to URLs and files."""
    chunkstore.convert(tmp_path / "x.npy", f"{root}/a.cks", layout="rows")
    chunkstore.convert(tmp_path / "x.npy", tmp_path / "b.cks", layout="rows")
    chunkstore.merge([f"{root}/a.cks", tmp_path / "b.cks"], f"{root}/m.cks")
    chunkstore.merge([f"{root}/m.cks"], tmp_path / "local.cks")
    with chunkstore.open(tmp_path / "local.cks") as ds:
        assert np.array_equal(ds.column("data"), np.concatenate([rows, rows]))
    chunkstore.repack(f"{root}/m.cks", f"{root}/r.cks", positions=[70, 3])
    with chunkstore.open(f"{root}/r.cks") as ds:
        assert np.array_equal(ds[:]["data"], rows[[10, 3]])


def test_after_an_error_nothing_is_there(root: str, rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No object, and no temporary file."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with pytest.raises(chunkstore.IngestError):
        chunkstore.convert(tmp_path / "x.npy", f"{root}/a.cks", layout="rows", fields=["y=nothing"])
    with pytest.raises(FileNotFoundError):
        chunkstore.open(f"{root}/a.cks")
    assert os.listdir(tmp_path / "temporary") == []


class TestBetween:
    """A proxy between client and server loses, delays and changes what it passes on."""

    @pytest.fixture
    def proxy(self, server: S3Server, root: str) -> Iterator[FaultyProxy]:
        with FaultyProxy(server.port) as running:
            yield running

    def remote(self, proxy: FaultyProxy) -> Remote:
        return Remote(storage_options={"endpoint": proxy.endpoint, "retry_config": RETRY})

    def test_throttled(self, proxy: FaultyProxy, root: str, rows: Any, tmp_path: Path) -> None:
        """503 now and then, in reading and in writing: it takes longer, and that is all."""
        proxy.fault = lambda request: Fault(status=503) if request.number % 3 == 1 else None
        remote = self.remote(proxy)
        chunkstore.convert(tmp_path / "x.npy", f"{root}/a.cks", layout="rows", remote=remote)
        with chunkstore.open(f"{root}/a.cks", remote=remote) as ds:
            assert np.array_equal(ds[:]["data"], rows)

    @pytest.mark.parametrize("nbytes", [1 << 20, 70 << 20])
    def test_an_upload_that_fails_publishes_nothing(
        self, proxy: FaultyProxy, root: str, tmp_path: Path, nbytes: int
    ) -> None:
        """In one request or in parts: after the tries of the client it is an error, and there is no object."""
        np.save(tmp_path / "big.npy", np.zeros((nbytes >> 20, 1 << 20), np.uint8))
        proxy.fault = lambda request: Fault(status=500) if request.method == "PUT" else None
        with pytest.raises(chunkstore.RemoteError, match="upload of"):
            chunkstore.convert(tmp_path / "big.npy", f"{root}/a.cks", layout="rows", remote=self.remote(proxy))
        with pytest.raises(FileNotFoundError):
            chunkstore.open(f"{root}/a.cks")

    def test_a_replaced_object(self, proxy: FaultyProxy, root: str, rows: Any, tmp_path: Path) -> None:
        """S3 itself refuses the read: its ETag is another one."""
        chunkstore.convert(tmp_path / "x.npy", f"{root}/a.cks", layout="rows", shard_nbytes=1 << 20)
        np.save(tmp_path / "x.npy", np.tile(rows[::-1], (20, 1, 1, 1)))
        chunkstore.convert(tmp_path / "x.npy", f"{root}/a.cks", layout="rows", mode="w")
        with chunkstore.open(f"{root}/a.cks", remote=self.remote(proxy)) as ds:
            np.save(tmp_path / "x.npy", np.tile(rows, (20, 1, 1, 1)))
            chunkstore.convert(tmp_path / "x.npy", f"{root}/a.cks", layout="rows", mode="w")
            with proxy.counting() as requests, pytest.raises(chunkstore.ReplacedError, match="Open it again"):
                ds[1100]
            assert all("if-match" in request.headers for request in requests)
