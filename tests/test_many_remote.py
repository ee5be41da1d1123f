"""Several containers behind URLs as one data set: where the parts that know of many and of URLs meet."""

from __future__ import annotations

import pickle
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from object_server import Fault, RangeServer

import chunkstore
from chunkstore import CorruptError, Remote, Writer

pytest.importorskip("obstore", reason="the extra [remote] is not installed")
pytest.importorskip("zstandard", reason="the extra [codecs] is not installed")

NUM = 200  # samples of a container, too many for its head
PARTS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`0.cks` to `3.cks`: fields `x` of large rows, `label`, and `words`, which are ragged."""
    path = tmp_path_factory.mktemp("many_remote")
    fields: dict[str, Any] = {"x": ("uint8", (20_000,)), "label": "int64", "words": ("int16", (None,))}
    for part in range(PARTS):
        with Writer(path / f"{part}.cks", fields=fields, shard_nbytes=1 << 20) as writer:
            for number in range(part * NUM, (part + 1) * NUM):
                row = np.full(20_000, number % 251, np.uint8)
                writer.add({"x": row, "label": number, "words": np.arange(number % 7, dtype=np.int16)})
    return path


@pytest.fixture
def server(folder: Path) -> Iterator[RangeServer]:
    with RangeServer({path.name: path.read_bytes() for path in folder.glob("*.cks")}) as running:
        yield running


def urls(server: RangeServer) -> list[str]:
    return [server.url(f"{part}.cks") for part in range(PARTS)]


HEADERS = {"default_headers": {"x-key": "secret"}}


def test_a_pattern_on_a_web_server() -> None:
    """It lists nothing: the error says what to give instead."""
    with RangeServer({}) as server, pytest.raises(FileNotFoundError, match="give a list of URLs"):
        chunkstore.open(server.url("train-*.cks"))


class _Needed(RangeServer):
    """Answers only those who send a header, as a server with a password does."""

    def answer(self, request: Any, fault: Any) -> Any:
        if request.headers.get("x-key") != "secret":
            return 403, {}, b""
        return super().answer(request, fault)


@pytest.fixture
def guarded(folder: Path) -> Iterator[_Needed]:
    with _Needed({path.name: path.read_bytes() for path in folder.glob("*.cks")}) as running:
        yield running


REMOTE = Remote(storage_options={"client_options": HEADERS | {"allow_http": True}})


class TestOptions:
    def test_a_selection_keeps_them(self, guarded: _Needed) -> None:
        """Also in another process."""
        with chunkstore.open(urls(guarded), remote=REMOTE) as ds:
            again = pickle.loads(pickle.dumps(ds.select([NUM + 3, 1])))
            assert again.batch([0, 1])["label"].tolist() == [NUM + 3, 1]

    def test_damage_is_looked_up_with_them(self, guarded: _Needed) -> None:
        """The error names the container and its position there."""
        data = bytearray(guarded.objects["2.cks"])
        with chunkstore.open(guarded.url("2.cks"), remote=REMOTE) as one:
            data[one._field_index("x").row(150)[0]] ^= 1
        guarded.objects["2.cks"] = bytes(data)
        with chunkstore.open(urls(guarded), remote=REMOTE) as ds:
            expected = rf"2.cks: sample 150, .* Sample 0 of .*2.cks is sample {2 * NUM} of"
            with pytest.raises(CorruptError, match=expected):
                ds.batch([2 * NUM + 150, 3])
            assert ds.batch([2 * NUM + 149, 3])["label"].tolist() == [2 * NUM + 149, 3]

    def test_files_beside_urls(self, guarded: _Needed, folder: Path) -> None:
        """The options are those of the URLs."""
        paths = [str(folder / "0.cks"), guarded.url("1.cks")]
        with chunkstore.open(paths, remote=REMOTE) as ds:
            assert (ds.backend, ds.batch([NUM + 3, 1])["label"].tolist()) == ("remote", [NUM + 3, 1])
        with pytest.raises(ValueError, match="goes with URLs"):
            chunkstore.open([paths[0], paths[0]], remote=REMOTE)


LONG = 50_000  # samples of a container whose index does not come with the opening


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Three ragged fields of which row i has i % 7 items, raw and in zstd."""
    path = tmp_path_factory.mktemp("long")
    offsets = np.append(0, np.cumsum(np.arange(LONG) % 7))
    rows = chunkstore.Ragged(np.arange(offsets[-1], dtype=np.int32), offsets, None, False)
    with Writer(path / "raw", fields=dict.fromkeys("abc", ("int32", (None,)))) as writer:
        writer.add_batch(dict.fromkeys("abc", rows))
    chunkstore.repack(path / "raw", path / "zstd", codec={"a": "zstd", "b": "zstd"})
    return {name: (path / name).read_bytes() for name in ("raw", "zstd")}


@pytest.mark.parametrize("kinds", [("raw", "raw"), ("zstd", "zstd"), ("raw", "zstd")])
def test_the_first_batch_takes_two_round_trips(long: dict[str, bytes], kinds: tuple[str, str]) -> None:
    """Whatever the number of containers and of fields: one for offsets of rows, one for the rows and their sums."""
    order = np.random.default_rng(4).permutation(PARTS * LONG)[:40]
    objects = {f"{part}.cks": long[kinds[part % 2]] for part in range(PARTS)}
    with RangeServer(objects) as server, chunkstore.open(urls(server)) as ds:
        server.fault = lambda request: Fault(delay=0.4)
        began = time.perf_counter()
        batch = ds.batch(order)
        seconds = time.perf_counter() - began
    assert all(batch[name].counts().tolist() == (order % LONG % 7).tolist() for name in "abc")
    assert seconds < 4 * 0.4  # one after another they took six and more


@pytest.mark.parametrize("num", [1, PARTS])
def test_a_prefetch_that_fails_is_told_by_the_batch(long: dict[str, bytes], num: int) -> None:
    """Also where it waits for offsets of ragged rows; and nothing is told if the server has come back by then."""
    objects = {f"{part}.cks": long["raw"] for part in range(PARTS)}
    with RangeServer(objects) as server, chunkstore.open(urls(server)[:num]) as ds:
        server.fault = lambda request: Fault(status=400)
        with server.counting() as requests:
            ds.prefetch([LONG - 1, 30_000])
        assert requests
        with pytest.raises(chunkstore.RemoteError, match="400"):
            ds.batch([LONG - 1, 30_000])
        server.fault = lambda request: None
        assert ds.batch([LONG - 1, 30_000])["b"].counts().tolist() == [(LONG - 1) % 7, 30_000 % 7]


def test_one_buffer_for_all(server: RangeServer) -> None:
    """What is kept in memory is bounded for the reader, not for each container; also after `refresh`."""
    limit, rng = 3 << 20, np.random.default_rng(3)
    with chunkstore.open(urls(server), remote=Remote(buffer_nbytes=limit, max_gap_nbytes=0)) as ds:
        for _ in range(20):
            ids = rng.permutation(len(ds))[:50]
            ds.prefetch(ids)
            assert ds.batch(ids)["label"].tolist() == ids.tolist()
        kept = [set(source._room.state().kept._owned) for source in ds._source.sources]
        sizes = [source._room.state().kept._nbytes for source in ds._source.sources]
    assert all(each == kept[0] for each in kept)
    assert len(kept[0]) == PARTS
    assert max(sizes) <= limit


def test_they_are_opened_at_the_same_time(server: RangeServer) -> None:
    """Not one round trip after another; and so it is with `refresh`."""
    server.fault = lambda request: Fault(delay=0.1)
    began = time.perf_counter()
    with chunkstore.open(urls(server) * 8) as ds:
        assert ds.refresh() is False
        assert ds.starts.tolist() == list(range(0, 8 * PARTS * NUM + 1, NUM))
    assert time.perf_counter() - began < 8 * PARTS * 0.1


def test_an_error_closes_those_that_are_open(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first error in the order of the paths."""
    from chunkstore._storage.remote import RemoteSource

    made: list[RemoteSource] = []
    begin = RemoteSource.__init__

    def noted(self: RemoteSource, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        made.append(self)

    monkeypatch.setattr(RemoteSource, "__init__", noted)
    with pytest.raises(FileNotFoundError, match=r"none\.cks"):
        chunkstore.open([*urls(server), server.url("none.cks"), *urls(server)])
    assert all(source.closed for source in made)


@pytest.mark.parametrize("where", ["urls", "pread"])
@pytest.mark.parametrize("name", ["x", "label"])
def test_memory_of_a_batch(server: RangeServer, folder: Path, where: str, name: str) -> None:
    """Beside the batch: what was fetched of it, and a few numbers for each row; not a number for each byte."""
    paths = urls(server) if where == "urls" else [str(folder / f"{part}.cks") for part in range(PARTS)]
    order = np.random.default_rng(1).permutation(PARTS * NUM)[:300]
    with chunkstore.open(paths, backend="auto" if where == "urls" else "pread", verify="off", fields=[name]) as ds:
        ds.batch(order)
        tracemalloc.start()
        try:
            batch = ds.batch(order)[name]
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert np.array_equal(batch[:, 0] if name == "x" else batch, order % 251 if name == "x" else order)
    assert peak < 3.5 * batch.nbytes + (1 << 20)


def test_rows_of_any_size_go_to_their_places(folder: Path) -> None:
    """Equal sizes, which go together, and others; small and large; fields that begin anywhere in a batch."""
    from chunkstore._storage.joined_source import JoinedSource
    from chunkstore._storage.source import open_source

    rng = np.random.default_rng(2)
    sources = [open_source(folder / f"{part}.cks", "pread") for part in range(PARTS)]
    data = [(folder / f"{part}.cks").read_bytes() for part in range(PARTS)]
    with JoinedSource("all", sources) as joined:
        for sizes in (np.full(40, 7), np.full(40, 20_000), rng.integers(0, 9, 40), rng.integers(0, 40_000, 40)):
            which, at = rng.integers(0, PARTS, 40), rng.integers(0, len(data[0]) - 50_000, 40)
            out = np.empty(int(sizes.sum()), np.uint8)
            joined.read_scattered(np.array(joined.bases)[which] + at, sizes, out)
            expected = (data[w][a : a + n] for w, a, n in zip(which, at, sizes, strict=True))
            assert out.tobytes() == b"".join(expected)
