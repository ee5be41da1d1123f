"""Containers behind URLs, on the loopback: batches against the bare client, their requests, a loader over a latency."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

import chunkstore
from tools.bench.bench import Bench, ratio_figure
from tools.bench.inputs import Rows
from tools.bench.measure import Case, interleave
from tools.bench.record import Figure, Goal, at_least, at_most, skipped
from tools.bench.servers import S3Server, WebServer

_BATCH = 64
_NUM_S3 = 300  # moto reads the whole object for each range
_BATCHES = 4  # in a round
_MIN_OF_BARE = 0.7
_LATENCY = 0.05
_STEP = 0.1
_MAX_STALL = 5.0

Array = npt.NDArray[Any]


def remote(bench: Bench) -> Iterator[Figure]:
    """All figures of remote containers."""
    if find_spec("obstore") is None:
        yield skipped("remote", "all", "obstore is not installed")
        return
    yield from _s3(bench)
    rows = bench.inputs.images
    with WebServer(str(rows.container)) as server:
        url = f"http://127.0.0.1:{server.port}/images.cks"
        yield from _batches(bench, "web server", rows, url, chunkstore.Remote())
    yield from _loader(rows)


def _s3(bench: Bench) -> Iterator[Figure]:
    if any(find_spec(package) is None for package in ("moto", "flask", "flask_cors")):
        yield skipped("remote", "S3", "moto[s3], flask and flask-cors are not installed")
        return
    rows = bench.inputs.images
    with bench.temporary("few.cks") as path, S3Server() as server:
        remote = chunkstore.Remote(storage_options=server.options)
        num = min(_NUM_S3, rows.num)
        chunkstore.repack(rows.container, path, positions=np.arange(num))
        url = f"s3://{server.bucket}/few.cks"
        chunkstore.merge([path], url, remote=remote)
        few = Rows(rows.npy, path, num, rows.shape)
        yield from _batches(bench, "S3", few, url, remote)
        yield _requests(few, url, remote, server)


def _batches(bench: Bench, name: str, rows: Rows, url: str, remote: chunkstore.Remote) -> Iterator[Figure]:
    """Random batches; nothing is kept between them, neither by us nor by the bare client."""
    options = {"max_gap_nbytes": 0, "buffer_nbytes": 0}  # every row by a request of its own, as the bare client does it
    plain = chunkstore.Remote(storage_options=remote.storage_options, **options)
    ds = chunkstore.open(url, remote=plain)
    drawn = iter(rows.random_batches(10_000, _BATCH, seed=5))
    out = np.empty((_BATCH, *rows.shape), np.uint8)
    bare = _bare_client(url, remote)
    offset = ds._extent("data")
    assert offset is not None

    def own() -> None:
        for _ in range(_BATCHES):
            ds.batch(next(drawn), out={"data": out})

    def client() -> None:
        for _ in range(_BATCHES):
            positions = np.unique(next(drawn))
            bare((offset[0] + positions * rows.row_nbytes).tolist(), rows.row_nbytes)

    own()
    _check(ds, rows, next(drawn), bare, offset[0])
    timings = interleave([Case("chunkstore", own), Case("bare client", client)], 2 * bench.rounds)
    work = {"rows/s": float(_BATCH * _BATCHES), "MB/s": _BATCH * _BATCHES * rows.row_nbytes / 1e6}
    ds.close()
    yield ratio_figure("remote", name, timings, ("chunkstore", "bare client"), at_least(_MIN_OF_BARE), "median", work)


def _bare_client(url: str, remote: chunkstore.Remote) -> Callable[[list[int], int], list[Any]]:
    """The same requests by one call of the client, ten at a time: rows that touch share one on either side.

    It leaves each row where the client has put it, and takes any version of the object and a body of any length.
    """
    import obstore
    from obstore.store import from_url

    root, _, key = url.rpartition("/")
    options: dict[str, Any] = {"client_options": {"allow_http": True}} | dict(remote.storage_options)
    store = from_url(root, **options)

    def fetch(starts: list[int], nbytes: int) -> list[Any]:
        return obstore.get_ranges(store, key, starts=starts, lengths=[nbytes] * len(starts), coalesce=0)

    return fetch


def _check(ds: chunkstore.Reader, rows: Rows, positions: Array, bare: Callable[..., list[Any]], offset: int) -> None:
    expected = rows.memmap()[positions]
    found = bare((offset + positions * rows.row_nbytes).tolist(), rows.row_nbytes)
    if not np.array_equal(ds.batch(positions)["data"], expected) or b"".join(map(bytes, found)) != expected.tobytes():
        raise RuntimeError(f"{ds.path}: other rows than in the file")


def _requests(rows: Rows, url: str, remote: chunkstore.Remote, server: S3Server) -> Figure:
    """GET requests of opening and of one batch after another, over the runs of rows that the gap leaves."""
    before = server.num_gets()
    ds = chunkstore.open(url, remote=remote)
    opening = server.num_gets() - before
    asked, promised = 0, 0
    for positions in rows.random_batches(5, _BATCH, seed=6):
        ds.close()
        ds = chunkstore.open(url, remote=remote)  # with an empty buffer
        gap = np.diff(np.unique(positions)) - 1
        promised += 1 + int((gap * rows.row_nbytes > remote.max_gap_nbytes).sum())
        before = server.num_gets()
        ds.batch(positions)
        asked += server.num_gets() - before
    ds.close()
    detail = {"opening": float(opening), "of a batch": asked / 5, "runs of a batch": promised / 5}
    case = "requests of a batch over its runs of rows"
    return Figure("remote", case, asked / promised, "x", Goal("<=", 1.0), "5 batches, empty buffers", detail, {})


def _loader(rows: Rows) -> Iterator[Figure]:
    if find_spec("torch") is None:
        yield skipped("remote", "loader", "PyTorch is not installed")
        return
    from chunkstore.torch import Loader

    waits = []
    with WebServer(str(rows.container), _LATENCY) as server:
        loader = Loader(f"http://127.0.0.1:{server.port}/images.cks", _BATCH, shuffle=True, seed=2)
        batches = iter(loader)
        for _ in range(len(loader)):
            began = time.perf_counter()
            next(batches)
            waits.append(time.perf_counter() - began)
            time.sleep(_STEP)
        stall = 100 * loader.stats().stall
        loader.close()
    detail = {"first batch, ms": 1e3 * waits[0], "others, ms": 1e3 * float(np.mean(waits[1:] or [0.0]))}
    case = f"stall of a {1e3 * _STEP:.0f} ms step over {1e3 * _LATENCY:.0f} ms of latency"
    yield Figure("remote", case, stall, "%", at_most(_MAX_STALL), f"{len(waits)} batches", detail, {"wait": waits})
