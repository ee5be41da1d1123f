"""Containers behind URLs: the same values as from the file, and how many requests that takes."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from command import run
from object_server import Fault, RangeServer

import chunkstore
from chunkstore import Remote
from chunkstore._read import coded, distant, gather
from chunkstore._storage.objects import RemoteObject
from chunkstore._storage.pieces import Cover

pytest.importorskip("obstore", reason="the extra [remote] is not installed")

NUM = 300
MIB = 1 << 20


def write_mixed(path: Path, num: int = NUM, *, keys: bool = True) -> None:
    """Images, short rows that share checksums, ragged rows and texts: streamed, so the index lies behind."""
    rng = np.random.default_rng(1)
    fields = {"image": ("uint8", (64, 64, 3)), "vector": ("float32", (32,))}
    fields |= {"ragged": ("int16", (None, 4)), "text": ("string", ())}
    with chunkstore.Writer(path, fields=fields, shard_nbytes=MIB) as writer:
        for number in range(num):
            sample = {
                "image": rng.integers(0, 256, (64, 64, 3), np.uint8),
                "vector": rng.normal(size=32).astype(np.float32),
                "ragged": rng.integers(0, 9, (int(rng.integers(0, 50)), 4), np.int16),
                "text": f"text {number}",
            }
            writer.add(sample, key=f"k{number:05d}" if keys else None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`streamed.cks`, `front.cks` (its index in front), `appended.cks` (four segments)."""
    path = tmp_path_factory.mktemp("remote")
    write_mixed(path / "streamed.cks")
    chunkstore.merge([path / "streamed.cks"], path / "front.cks")
    write_mixed(path / "appended.cks", 100, keys=False)
    for _ in range(3):
        with chunkstore.Writer(path / "appended.cks", mode="a") as writer:
            for sample in chunkstore.open(path / "appended.cks")[:10]["vector"]:
                row = {"image": np.zeros((64, 64, 3), np.uint8), "vector": sample}
                writer.add(row | {"ragged": np.ones((3, 4), np.int16), "text": "more"})
    return path


@pytest.fixture
def server(folder: Path) -> Iterator[RangeServer]:
    objects = {path.name: path.read_bytes() for path in folder.glob("*.cks")}
    with RangeServer(objects) as running:
        yield running


def assert_equal(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, chunkstore.Ragged):
            assert np.array_equal(found[name].values, value.values), name
            assert np.array_equal(found[name].offsets, value.offsets), name
        elif isinstance(value, str):
            assert found[name] == value, name
        else:
            assert found[name].dtype == value.dtype, name
            assert np.array_equal(found[name], value), name


@pytest.mark.parametrize("verify", ["once", "always", "off"])
@pytest.mark.parametrize("name", ["streamed.cks", "front.cks", "appended.cks"])
def test_every_way_of_reading_gives_the_values_of_the_file(
    server: RangeServer, folder: Path, tmp_path: Path, name: str, verify: Any
) -> None:
    """Batches, slices, single samples, columns, selections, iteration, keys; with and without a cache on disk."""
    remote = Remote(cache_dir=str(tmp_path)) if verify == "once" else None
    with chunkstore.open(server.url(name), verify=verify, remote=remote) as ds, chunkstore.open(folder / name) as file:
        assert (len(ds), ds.backend, ds.fingerprint, ds.fields) == (len(file), "remote", file.fingerprint, file.fields)
        order = np.random.default_rng(2).permutation(len(file))
        for indices in (order[:40], order[:40][::-1], [5, 5, 5], [], range(10, 90), order < 7):
            ds.prefetch(indices)
            assert_equal(ds.batch(indices), file.batch(indices))
        for part in (slice(3, 50), slice(None), slice(90, 10, -7)):
            assert_equal(ds[part], file[part])
        assert_equal(ds[-1], file[-1])
        assert_equal(ds.batch(order[:9], fields=["text", "image"]), file.batch(order[:9], fields=["text", "image"]))
        assert_equal(ds.select(order).batch([3, 1]), file.select(order).batch([3, 1]))
        for number, (mine, theirs) in enumerate(zip(ds, file, strict=True)):
            if number % 50 == 0:
                assert_equal(mine, theirs)
        for field in file.fields:
            assert_equal({field: ds.column(field)}, {field: file.column(field)})
        assert ds._typed("image") is None
        if file.keys is not None:
            assert list(ds.keys or ()) == list(file.keys)
            assert ds.find(["k00250", "k00007"]).tolist() == [250, 7]
            assert_equal(ds["k00123"], file["k00123"])
        assert ds.refresh() is False


class TestRequests:
    @pytest.mark.parametrize(("name", "most"), [("front.cks", 1), ("streamed.cks", 2), ("appended.cks", 5)])
    def test_opening(self, server: RangeServer, name: str, most: int) -> None:
        """One where the index is in front; two where it lies behind; one more for each earlier segment, at once."""
        with server.counting() as requests, chunkstore.open(server.url(name)) as ds:
            assert len(ds.fields) == 4
        assert len(requests) <= most

    def test_opening_does_not_grow_with_the_samples(self, tmp_path: Path) -> None:
        """A million samples with an index of 10 MB open as a hundred do."""
        with chunkstore.Writer(tmp_path / "a.cks", num_samples=1_000_000) as writer:
            writer.add_batch({"x": np.arange(1_000_000)})
        chunkstore.merge([tmp_path / "a.cks"], tmp_path / "b.cks")
        with RangeServer({"b.cks": (tmp_path / "b.cks").read_bytes()}) as server:
            with server.counting() as requests, chunkstore.open(server.url("b.cks")) as ds:
                assert len(ds) == 1_000_000
            assert len(requests) == 1

    def test_a_batch_is_one_call(self, server: RangeServer) -> None:
        """All fields, and the parts of the index that they need, in requests that run side by side."""
        with chunkstore.open(server.url("streamed.cks")) as ds:
            ds.batch([0, 299])  # from here on the offsets of ragged rows are known
            server.fault = lambda request: Fault(delay=0.3)
            began = time.perf_counter()
            ds.batch([17, 60, 130, 222])
            assert time.perf_counter() - began < 0.57

    def test_a_random_batch_asks_once_for_each_row(self, server: RangeServer) -> None:
        """Rows that are far apart; those closer than the gap share a request, and nothing is asked for twice."""
        with chunkstore.open(server.url("streamed.cks"), fields=["image"], remote=Remote(max_gap_nbytes=0)) as ds:
            ds.batch([0])
            indices = np.random.default_rng(0).permutation(NUM)[:32]
            runs = 1 + int((np.diff(np.sort(indices)) > 1).sum())
            with server.counting() as requests:
                ds.batch(indices)
            assert len(requests) <= runs
            with server.counting() as requests:
                ds.batch(indices)
            assert requests == []  # still in the buffer
        with chunkstore.open(server.url("front.cks"), fields=["image"]) as ds:
            with server.counting() as requests:
                ds.batch(range(NUM))
            assert len(requests) <= -(-NUM * 12288 // (8 * MIB)) + 1

    def test_the_batch_after_prefetch_asks_for_nothing(self, server: RangeServer) -> None:
        """It takes what the background has fetched, or waits for it."""
        with chunkstore.open(server.url("streamed.cks")) as ds:
            ds.batch([0])
            server.fault = lambda request: Fault(delay=0.3)
            indices = np.random.default_rng(3).permutation(NUM)[:32]
            began = time.perf_counter()
            ds.prefetch(indices)
            assert time.perf_counter() - began < 0.27
            time.sleep(0.8)
            with server.counting() as requests:
                began = time.perf_counter()
                ds.batch(indices)
            assert requests == []
            assert time.perf_counter() - began < 0.27

    def test_the_index_in_memory_is_bounded(self, server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """Beyond the bound the pages are dropped and read again as they are needed; what was proven stays proven."""
        monkeypatch.setattr(distant, "INDEX_NBYTES", 1000)
        with chunkstore.open(server.url("appended.cks")) as ds, chunkstore.open(server.url("appended.cks")) as other:
            before = ds._opened
            for start in range(0, 100, 10):
                assert_equal(ds.batch([start, start + 7]), other[start : start + 8 : 7])
            assert ds._opened is not before
            assert ds._opened.source is before.source
            flags = ds._opened.rows["image"].checker.flags
            assert flags is not None
            assert flags[[0, 7, 90, 97]].all()

    def test_one_sample_is_one_call(self, server: RangeServer) -> None:
        """Fields of one sample come side by side."""
        with chunkstore.open(server.url("streamed.cks")) as ds:
            ds[0]
            server.fault = lambda request: Fault(delay=0.3)
            began = time.perf_counter()
            ds[150]
            assert time.perf_counter() - began < 0.57

    def test_one_sample_is_one_call_without_a_buffer(self, server: RangeServer) -> None:
        """Nothing is asked for by one field, and again by the next."""
        remote = Remote(buffer_nbytes=0)
        with chunkstore.open(server.url("streamed.cks"), remote=remote) as ds:
            ds[150]
            with server.counting() as requests:
                sample = ds[150]
            assert len(requests) <= len(ds.fields)
            wanted = [request.range for request in requests]
            assert len(set(wanted)) == len(wanted)
            assert_equal(sample, {name: rows[0] for name, rows in ds.batch([150]).items()})


class TestDamage:
    def test_a_flipped_bit_names_the_sample(self, server: RangeServer, folder: Path) -> None:
        """The checksum is that of the file; other samples stay readable."""
        with chunkstore.open(folder / "streamed.cks") as file:
            offset, _ = (int(part[0]) for part in file._opened.rows["image"].index.rows(np.array([7])))
        data = bytearray(server.objects["streamed.cks"])
        data[offset + 5] ^= 1
        server.objects["streamed.cks"] = bytes(data)
        with chunkstore.open(server.url("streamed.cks")) as ds:
            with pytest.raises(chunkstore.CorruptError, match="sample 7 'k00007'"):
                ds.batch([3, 7])
            ds.batch([3, 8])
        report = chunkstore.verify(server.url("streamed.cks"))
        assert [damage.field for damage in report.damage] == ["image"]

    def test_a_replaced_object(self, server: RangeServer) -> None:
        """Noticed by the next read; opening again reads the new one, an unpickled copy refuses it."""
        ds = chunkstore.open(server.url("streamed.cks"))
        copy = pickle.dumps(ds)
        server.objects["streamed.cks"] = server.objects["appended.cks"]
        with pytest.raises(chunkstore.ReplacedError, match="Open it again"):
            ds.batch([7])
        with pytest.raises(chunkstore.ReplacedError, match="replaced"):
            len(pickle.loads(copy))
        assert len(chunkstore.open(server.url("streamed.cks"))) == 130

    def test_refresh_moves_to_a_later_generation(self, folder: Path, tmp_path: Path) -> None:
        """A longer version of the same container, as an append and an upload make it."""
        path = tmp_path / "a.cks"
        path.write_bytes((folder / "appended.cks").read_bytes())
        with RangeServer({"a.cks": path.read_bytes()}) as server, chunkstore.open(server.url("a.cks")) as ds:
            sample = ds[5]
            with chunkstore.Writer(path, mode="a") as writer:
                writer.add(sample)
            server.objects["a.cks"] = path.read_bytes()
            assert ds.refresh() is True
            assert len(ds) == 131
            assert_equal(ds[130], sample)

    def test_not_a_container(self, server: RangeServer) -> None:
        """The same errors as of files."""
        server.objects["text"] = b"hello" * 5000
        server.objects["cut"] = server.objects["streamed.cks"][:50_000]
        with pytest.raises(chunkstore.NotAContainerError):
            chunkstore.open(server.url("text"))
        with pytest.raises(chunkstore.TruncatedError):
            chunkstore.open(server.url("cut"))

    def test_a_server_that_fails_is_no_damage(self, server: RangeServer) -> None:
        """`verify` says that it could not look, not that the data are bad."""
        server.fault = lambda request: Fault(status=400) if request.range != (0, MIB) else None
        with pytest.raises(chunkstore.RemoteError):
            chunkstore.verify(server.url("streamed.cks"))


def _sum(ds: Any, indices: Any) -> int:
    return int(ds.batch(indices)["image"].sum())


class TestProcesses:
    def test_pickles(self, server: RangeServer) -> None:
        """Small, with its options, and reopened at first use."""
        remote = Remote(max_requests=3, storage_options={"client_options": {"timeout": "9s"}})
        with chunkstore.open(server.url("streamed.cks"), remote=remote, fields=["image"]) as ds:
            data = pickle.dumps(ds)
            assert len(data) < 1000
            with server.counting() as requests:
                copy = pickle.loads(data)
            assert requests == []
            assert np.array_equal(copy.batch([9])["image"], ds.batch([9])["image"])
            assert copy._source._remote == remote
            copy.close()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_in_other_processes(self, server: RangeServer, method: str) -> None:
        """A forked process has no threads of the client library and loads a copy; its own children do, too."""
        with chunkstore.open(server.url("streamed.cks"), fields=["image"]) as ds:
            ds.prefetch(range(100, 200))
            parts = [np.arange(start, start + 50) for start in range(0, 300, 50)]
            expected = [_sum(ds, part) for part in parts]
            with multiprocessing.get_context(method).Pool(2) as pool:
                assert pool.starmap(_sum, [(ds, part) for part in parts]) == expected
            assert [_sum(ds, part) for part in parts] == expected

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
    def test_fork_of_a_fork(self, server: RangeServer) -> None:
        """The object that the parent has opened works in a child, and in the child of the child."""
        with chunkstore.open(server.url("streamed.cks"), fields=["image"]) as ds:
            expected = [_sum(ds, range(200, 240)), _sum(ds, range(40, 80))]
            child = os.fork()
            if child == 0:
                good = _sum(ds, range(200, 240)) == expected[0]
                grandchild = os.fork()
                if grandchild == 0:
                    os._exit(0 if _sum(ds, range(40, 80)) == expected[1] else 1)
                os._exit(0 if good and os.waitpid(grandchild, 0)[1] == 0 else 1)
            assert os.waitpid(child, 0)[1] == 0


def good(*arguments: str) -> str:
    """What a command prints; it must end well."""
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_commands_take_urls(server: RangeServer, folder: Path, tmp_path: Path) -> None:
    """Each command that reads a container gives of a URL what it gives of the file."""
    url, path = server.url("streamed.cks"), str(folder / "streamed.cks")
    for command in (["ls", "--long"], ["ls", "--json"], ["get", "k00007"], ["get", "--json", "-1"]):
        name, *more = command
        assert good(name, url, *more) == good(name, path, *more)
    assert json.loads(good("info", url, "--json"))["sizes"] == json.loads(good("info", path, "--json"))["sizes"]
    assert json.loads(good("verify", url, "--deep", "--json"))["ok"]
    assert json.loads(good("refs", url))["refs"] == json.loads(good("refs", path, "--url", url))["refs"]
    assert json.loads(good("bench", url, "--seconds", "0.01", "--json"))["results"][-1]["nbytes_per_second"] > 0
    for number, command in enumerate((["merge", "OUT", url], ["repack", url, "OUT"], ["recover", url, "OUT"])):
        outs = [str(tmp_path / f"{number}-{kind}.cks") for kind in ("url", "file")]
        good(*(outs[0] if word == "OUT" else word for word in command))
        good(*(outs[1] if word == "OUT" else path if word == url else word for word in command))
        assert Path(outs[0]).read_bytes() == Path(outs[1]).read_bytes()
    good("export", url, str(tmp_path / "exported"))
    assert len(list((tmp_path / "exported").rglob("*.npz"))) == NUM


def test_commands_take_directories_and_patterns(folder: Path, tmp_path: Path) -> None:
    """Those that read several containers as one do so; those that need one say so, and what to do with several."""
    for name in ("a.cks", "b.cks"):
        write_mixed(tmp_path / name, 20, keys=False)
    for several in (str(tmp_path), str(tmp_path / "[ab].cks")):
        assert json.loads(good("info", several, "--json"))["num_samples"] == 40
        assert len(good("ls", several).splitlines()) == 40
        assert json.loads(good("get", several, "21", "--json"))["position"] == 21
        assert len(json.loads(good("verify", several, "--json"))["reports"]) == 2
        assert json.loads(good("bench", several, "--seconds", "0.01", "--json"))["results"]
        out = tmp_path / "out" / f"{len(several)}.cks"
        out.parent.mkdir(exist_ok=True)
        assert json.loads(good("merge", str(out), several, "--json"))["num_samples"] == 40
        for command in (["repack", several, "x.cks"], ["recover", several, "x.cks"], ["refs", several]):
            result = run(*command)
            assert result.exit_code == 1
            assert f"{several}: 2 containers, and one is wanted. " in result.stderr
    assert chunkstore.merge(tmp_path, tmp_path / "out" / "again.cks").num_samples == 40


def test_a_damaged_object_is_recovered(server: RangeServer, folder: Path, tmp_path: Path) -> None:
    """What `recover` saves of a URL is what it saves of the file, and what it lists as lost."""
    data = bytearray((folder / "streamed.cks").read_bytes())
    data[20_000] ^= 1
    (tmp_path / "damaged.cks").write_bytes(data)
    server.objects["damaged.cks"] = bytes(data)
    here = chunkstore.recover(tmp_path / "damaged.cks", tmp_path / "here.cks")
    with server.counting() as requests:
        far = chunkstore.recover(server.url("damaged.cks"), tmp_path / "far.cks")
    assert far.num_lost == here.num_lost == 1
    assert (tmp_path / "far.cks").read_bytes() == (tmp_path / "here.cks").read_bytes()
    assert len(requests) < 10


def test_a_slice_from_the_head_on_is_fetched_once(server: RangeServer, tmp_path: Path) -> None:
    """Its first rows came with the opening of the object, the others did not: no byte of these comes twice."""
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 256, (300, 16 << 10), np.uint8))
    chunkstore.convert(tmp_path / "a.npy", tmp_path / "a.cks", layout="rows")
    server.objects["head.cks"] = (tmp_path / "a.cks").read_bytes()
    with chunkstore.open(server.url("head.cks")) as ds:
        with server.counting() as requests:
            assert np.array_equal(ds[10:200]["data"], np.load(tmp_path / "a.npy")[10:200])
        assert len(requests) == 1


def test_slices_are_one_call(server: RangeServer, folder: Path) -> None:
    """All fields of a slice come at once: as many requests as there are runs of them, under way together."""
    wanted = chunkstore.open(folder / "front.cks")[200:260]
    server.fault = lambda request: Fault(delay=0.2)
    with chunkstore.open(server.url("front.cks")) as ds:
        began = time.perf_counter()
        found = ds[200:260]
        assert time.perf_counter() - began < 0.55  # pages of the index, then the rows
    assert_equal(found, wanted)


@pytest.mark.parametrize("codec", ["raw", "zlib"])
def test_columns_come_in_steps(codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column from far away is never in memory twice as a whole, whatever its shards are."""
    rows = np.random.default_rng(0).integers(0, 256, (96, 1 << 16), np.uint8)
    with chunkstore.Writer(tmp_path / "a.cks", codec={"x": codec}, shard_nbytes=64 << 20) as writer:
        writer.add_batch({"x": rows})
    monkeypatch.setattr(gather, "_STAGED_NBYTES", MIB)
    monkeypatch.setattr(coded, "_PIECE_NBYTES", MIB)
    staged: list[int] = []
    monkeypatch.setattr(Cover, "__init__", noting(staged, Cover.__init__))
    with (
        RangeServer({"a.cks": (tmp_path / "a.cks").read_bytes()}) as server,
        chunkstore.open(server.url("a.cks"), remote=Remote(buffer_nbytes=0)) as ds,
    ):
        assert np.array_equal(ds.column("x"), rows)
    assert max(staged) < 3 * MIB + (1 << 20)


def noting(staged: list[int], init: Any) -> Any:
    """`Cover.__init__`, and how many bytes it has beyond the head."""

    def noted(self: Cover, pieces: Any) -> None:
        pieces = list(pieces)
        staged.append(sum(piece.nbytes for piece in pieces if piece.start))
        init(self, pieces)

    return noted


def test_missing_object_on_the_command_line(server: RangeServer) -> None:
    """It ends with the code for what cannot be read."""
    missing = [sys.executable, "-m", "chunkstore", "info", server.url("none.cks")]
    done = subprocess.run(missing, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "no such object" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["info", "s3://bucket"], 2, "expected the URL of one object, such as s3://bucket/train.cks"),
        (["info", "https://host/a.cks?signature=1"], 2, "URLs with a query"),
        (["convert", ".", "http://host/a.cks"], 2, "nothing can be uploaded to a web server"),
        (["info", "ftp://host/a.cks"], 3, "a URL is a text that begins with s3://, gs://"),
        (["info", "s3:/bucket/a.cks"], 3, "a URL is a text that begins with s3://, gs://"),
        (["append", "s3://bucket/a.cks", "."], 2, "only a file is written piece by piece, or appended to"),
        (["recover", "s3://bucket", "b.cks"], 2, "expected the URL of one object"),
        (["recover", "a.cks", "http://host/b.cks"], 2, "nothing can be uploaded to a web server"),
        (["refs", "ftp://host/a.cks"], 3, "a URL is a text that begins with s3://, gs://"),
        (["merge", "a.cks", "none-*.cks"], 3, "no file has this name or matches this pattern"),
    ],
)
def test_urls_that_cannot_be(arguments: list[str], code: int, message: str) -> None:
    """They end as a message that says what is wanted and a code, without a request and without a traceback."""
    result = run(*arguments)
    assert (result.exit_code, message in result.stderr) == (code, True), result.stderr


@pytest.mark.parametrize(
    ("name", "reason", "advice"),
    [
        ("PanicException", "request valid: InvalidUri", "https://host:port is expected"),
        ("GenericError", "HTTP error: builder error", "needs AWS_ALLOW_HTTP=true"),
        (
            "GenericError",
            "PUT http://169.254.169.254/latest/api/token",
            "No credentials were found.* AWS_ACCESS_KEY_ID",
        ),
        ("GenericError", "503", "look at the server, and try later"),
    ],
)
def test_advice_on_what_the_client_says(name: str, reason: str, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its errors, a panic of its native code too, come as ours with what to do about the settings behind them."""
    failure = type(name, (BaseException if name == "PanicException" else Exception,), {})

    def head(store: object, key: str) -> None:
        raise failure(reason)

    target = RemoteObject("s3://bucket/a.cks", {"region": "us-east-1"})
    monkeypatch.setattr(target, "_client", lambda: (SimpleNamespace(head=head), None))
    with pytest.raises(chunkstore.RemoteError, match=f"s3://bucket/a.cks: a look at the object: .*{advice}"):
        target.look()


def test_ctrl_c_passes_through_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no failure of the client stays what it is."""

    def head(store: object, key: str) -> None:
        raise KeyboardInterrupt

    target = RemoteObject("s3://bucket/a.cks", {"region": "us-east-1"})
    monkeypatch.setattr(target, "_client", lambda: (SimpleNamespace(head=head), None))
    with pytest.raises(KeyboardInterrupt):
        target.look()


def test_ctrl_c_while_a_container_is_uploaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows then how far the server is: the message does not say that nothing was written."""

    def put(target: RemoteObject, path: str, *, overwrite: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RemoteObject, "look", lambda target: None)
    monkeypatch.setattr(RemoteObject, "put", put)
    np.save(folder / "a.npy", np.zeros((3, 2)))
    with pytest.raises(KeyboardInterrupt, match=r"at the upload: s3://bucket/a\.cks is there as a whole, or as it was"):
        chunkstore.convert(folder / "a.npy", "s3://bucket/a.cks")


def test_a_writer_takes_no_url() -> None:
    """The message says how a container gets there."""
    with pytest.raises(ValueError, match=r"s3://bucket/a.cks: only a file is written.*`repack` uploads it"):
        chunkstore.Writer("s3://bucket/a.cks")


def test_without_the_client(folder: Path) -> None:
    """The error has the line that installs it; files need no client."""
    script = (
        "import sys; sys.modules['obstore'] = None\n"
        "import chunkstore\n"
        f"assert len(chunkstore.open({str(folder / 'front.cks')!r})) == {NUM}\n"
        "try: chunkstore.open('s3://bucket/a.cks')\n"
        "except chunkstore.MissingExtraError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "pip install 'chunkstore-arrays[remote]'" in done.stdout
