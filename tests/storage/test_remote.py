"""Objects behind URLs, with faults between client and server: what is tried again, and what each failure becomes."""

from __future__ import annotations

import gc
import itertools
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from object_server import Fault, RangeServer, Request

import chunkstore
from chunkstore._storage import remote, requests
from chunkstore._storage.objects import is_url
from chunkstore._storage.opening import open_any
from chunkstore._storage.pieces import Kept, Piece
from chunkstore._storage.remote import Remote, RemoteSource
from chunkstore.errors import ClosedError, LimitError, RemoteError, ReplacedError, TruncatedError

pytest.importorskip("obstore", reason="the extra [remote] is not installed")

DATA = np.random.default_rng(0).integers(0, 256, 6_000_000, np.uint8).tobytes()
HEAD = MIB = 1 << 20
QUICK: dict[str, Any] = {
    "retry_config": {
        "max_retries": 3,
        "retry_timeout": timedelta(seconds=5),
        "backoff": {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=5), "base": 2},
    },
    "client_options": {"timeout": "400ms"},
}


@pytest.fixture
def server() -> Iterator[RangeServer]:
    with RangeServer({"a.bin": DATA}) as running:
        yield running


def opened(server: RangeServer, **options: Any) -> RemoteSource:
    return RemoteSource(server.url("a.bin"), Remote(storage_options=options.pop("storage_options", QUICK), **options))


def first(times: int, fault: Fault) -> Callable[[Request], Fault | None]:
    """A fault for so many requests from now on."""
    left = [fault] * times
    return lambda request: left.pop() if left else None


def range_of(request: Request) -> tuple[int, int]:
    found = request.range
    assert found is not None
    return found[0], min(found[1], len(DATA))


class TestReads:
    def test_the_first_request_brings_the_head(self, server: RangeServer) -> None:
        """One request tells size and version, and reads of the first MiB need no other."""
        with server.counting() as requests, opened(server) as source:
            assert (source.size, source.backend, source.distant) == (len(DATA), "remote", True)
            assert source.read(5, 1000) == DATA[5:1005]
        assert [request.range for request in requests] == [(0, HEAD)]

    def test_staged_ranges_come_in_runs_and_cost_nothing_afterwards(self, server: RangeServer) -> None:
        """Ranges with at most `max_gap_nbytes` between them share a request."""
        with opened(server, max_gap_nbytes=1000) as source:
            offsets = np.array([3_000_000, 2_000_000, 2_001_500, 2_000_400])
            with server.counting() as requests, source.staged(offsets, 500):
                for offset in offsets.tolist():
                    assert source.read(offset, 500) == DATA[offset : offset + 500]
                assert source.read(2_000_100, 300) == DATA[2_000_100:2_000_400]
        assert sorted(request.range or () for request in requests) == [(2_000_000, 2_002_000), (3_000_000, 3_000_500)]

    def test_long_ranges_are_split(self, server: RangeServer) -> None:
        """Parts of `max_request_nbytes`, side by side."""
        out = np.empty(4_500_000, np.uint8)
        with opened(server, max_request_nbytes=1 << 20) as source, server.counting() as requests:
            source.read_into(HEAD, out)
        assert out.tobytes() == DATA[HEAD : HEAD + 4_500_000]
        assert len(requests) == 5

    def test_every_request_names_the_version(self, server: RangeServer) -> None:
        """`If-Match` with the ETag of the first answer."""
        with opened(server) as source, server.counting() as requests:
            source.read(2_000_000, 10)
        assert [request.headers["if-match"] for request in requests] == [f'"{hash(DATA) & 0xFFFFFFFF:x}"']

    def test_prefetched_ranges_are_fetched_once(self, server: RangeServer) -> None:
        """`advise` returns while the server is still thinking; the read waits for the same requests."""
        offsets = np.arange(2_000_000, 6_000_000, 500_000)
        # Nothing is asked for again after 400 ms: a busy machine may need longer.
        with opened(server, storage_options={}) as source:
            server.fault = lambda request: Fault(delay=0.3)
            with server.counting() as requests:
                began = time.perf_counter()
                source.advise(offsets, 100)
                assert time.perf_counter() - began < 0.27
                out = np.empty(100 * len(offsets), np.uint8)
                source.read_scattered(offsets, 100, out)
        assert out.tobytes() == b"".join(DATA[offset : offset + 100] for offset in offsets.tolist())
        assert len(requests) == len(offsets)

    def test_the_buffer_is_bounded(self, server: RangeServer) -> None:
        """What is fetched ahead beyond `buffer_nbytes` is not fetched; what was read last is kept."""
        with opened(server, buffer_nbytes=250_000, max_gap_nbytes=0) as source:
            source.read(5_000_000, 100_000)
            with server.counting() as requests:
                source.read(5_000_000, 100_000)
            assert requests == []
            with server.counting() as requests:
                source.advise(np.arange(2_000_000, 4_000_000, 200_000), 100_000)
                time.sleep(0.2)
            assert len(requests) == 2
            assert source._room.state().kept._nbytes <= 250_000

    @settings(max_examples=25)
    @given(st.lists(st.tuples(st.integers(0, len(DATA) - 1), st.integers(0, 5000)), max_size=12), st.booleans())
    def test_any_ranges_are_those_of_the_object(self, ranges: list[tuple[int, int]], cached: bool) -> None:
        """In any order, with overlaps, empty ones, with and without a cache on disk: the bytes of the plain way."""
        source, folder = SHARED.source(cached)
        offsets = np.array([offset for offset, _ in ranges], np.int64)
        nbytes = np.array([min(size, len(DATA) - offset) for offset, size in ranges], np.int64)
        out = np.empty(int(nbytes.sum()), np.uint8)
        source.read_scattered(offsets, nbytes, out)
        pairs = zip(offsets.tolist(), nbytes.tolist(), strict=True)
        assert out.tobytes() == b"".join(DATA[offset : offset + size] for offset, size in pairs)
        assert folder.exists()

    def test_threads_end_at_rest(self, server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """A reader that is not used holds no thread, and gets new ones when it is."""
        monkeypatch.setattr(requests, "_REST_SECONDS", 0.05)
        with opened(server, max_requests=7) as source:  # a number that has threads of its own
            for _ in range(2):
                offsets = np.array([2_000_000, 3_000_000, 4_000_000])
                out = np.empty(30, np.uint8)
                source.read_scattered(offsets, 10, out)
                assert out.tobytes() == b"".join(DATA[at : at + 10] for at in offsets.tolist())
                assert any(thread.name.startswith("chunkstore-remote") for thread in threading.enumerate())
                for thread in threading.enumerate():
                    if thread.name.startswith("chunkstore-remote"):
                        thread.join(5)
                        assert not thread.is_alive()
                source.close()
                source = opened(server, max_requests=7)

    def test_threads_stay_while_there_is_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Never more than `most` at a time, though the work takes longer than the rest."""
        monkeypatch.setattr(requests, "_REST_SECONDS", 0.02)
        threads, under_way, most = requests._Threads(2), list[int](), list[int]()

        def get() -> memoryview:
            under_way.append(1)
            most.append(len(under_way))
            time.sleep(0.1)
            under_way.pop()
            return memoryview(b"")

        asked = [requests.Request(get) for _ in range(8)]
        for start in range(0, 8, 4):
            threads.start(deque(asked[start : start + 4]), 2)
            time.sleep(0.1)
        for request in asked:
            request.wait()
        assert max(most) == 2

    def test_a_request_that_cannot_be_begun(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """For want of memory, say: who waits for it is told so, and does not wait for ever."""

        def refused(_: requests.Request) -> None:
            raise MemoryError

        request = requests.Request(lambda: None)
        monkeypatch.setattr(requests.Request, "make", refused)
        with pytest.raises(MemoryError):
            requests.work_off(deque([request]))
        with pytest.raises(CancelledError):
            request.wait()

    @pytest.mark.parametrize("fails", [False, True])
    def test_an_interrupt_at_any_bytecode_of_a_request(self, fails: bool) -> None:
        """However far it came: once its maker has cleaned up, nobody waits for it any more."""

        def make() -> None:
            if fails:
                raise OSError

        def trace(frame: Any, event: str, _: object) -> Any:
            if frame.f_code.co_filename != requests.__file__:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode" and next(left) == 0:
                raise KeyboardInterrupt
            return trace

        def tried() -> int:
            nonlocal left
            for place in itertools.count():
                request, left = requests.Request(make), itertools.count(place, -1)
                sys.settrace(trace)
                try:
                    requests.work_off(deque([request]))
                    return place
                except KeyboardInterrupt:
                    pass
                finally:
                    sys.settrace(None)
                request.cancel()
                assert not request._done.locked(), place
            raise AssertionError

        left = itertools.count()
        # In a thread of its own: where CPython is interrupted as it ends a handler, it goes on handling that exception,
        # and every later one of the thread would keep it, and what its frames hold, alive.
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(tried).result() > 20

    def test_of_a_request_that_cannot_be_begun_the_others_are_cancelled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where they were for a single thread, nobody else would make them."""

        def refused(_: requests.Request) -> None:
            raise MemoryError

        asked = [requests.Request(lambda: None) for _ in range(3)]
        monkeypatch.setattr(requests.Request, "make", refused)
        with pytest.raises(MemoryError):
            requests.work_off(deque(asked))
        assert not any(request._done.locked() for request in asked)

    def test_what_was_fetched_ahead_in_vain_is_freed(self, server: RangeServer) -> None:
        """At once, as far as nobody has it: without the collector of cycles, which may come late."""

        def pieces() -> int:
            return sum(type(one) is Piece for one in gc.get_objects())

        gc.collect()
        before = pieces()
        gc.disable()
        try:
            with opened(server, max_gap_nbytes=0) as source:
                source.advise(np.array([1_500_000, 2_500_000]), 10)
                for piece in list(source._room.state().kept.cover(source._owner).pieces):
                    for part in piece.parts:
                        part.wait()
                del piece, part
            del source
            end = time.monotonic() + 5
            while pieces() > before and time.monotonic() < end:
                time.sleep(0.01)  # a thread may still have the last one
            assert pieces() == before
        finally:
            gc.enable()

    def test_ahead_without_memory(self, server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nobody waits for what was to be fetched and never is."""

        def refused(*_: object) -> None:
            raise MemoryError

        with opened(server) as source:
            with monkeypatch.context() as patch:
                patch.setattr(remote, "start_requests", refused)
                with pytest.raises(MemoryError):
                    source.advise(np.array([2_000_000]), 10)
            assert all(piece.failed() for piece in source._room.state().kept.cover(source._owner).pieces)
            assert source.read(2_000_000, 10) == DATA[2_000_000:2_000_010]

    def test_memory_that_runs_out_is_that_of_one_reader(
        self, server: RangeServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who finds what another one waits for, and then has no memory to go on, cancels nothing of it."""
        offsets, found = np.arange(2_000_000, 4_000_000, 100_000), np.empty(200, np.uint8)
        touch = Kept.touch

        def fails(self: Kept, piece: Piece) -> None:
            touch(self, piece)
            if threading.current_thread() is threading.main_thread():
                raise MemoryError

        with opened(server, max_gap_nbytes=0, max_requests=1) as source:
            server.fault = lambda request: Fault(delay=0.02)
            reader = threading.Thread(target=source.read_scattered, args=(offsets, 10, found))
            reader.start()
            time.sleep(0.05)
            monkeypatch.setattr(Kept, "touch", fails)
            with pytest.raises(MemoryError):
                source.read_scattered(offsets, 10, np.empty(200, np.uint8))
            reader.join()
        assert found.tobytes() == b"".join(DATA[offset : offset + 10] for offset in offsets)

    def test_without_threads_the_caller_does_all(self, server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """None start while the interpreter ends, or where the system gives no more."""

        def refused(*_: object) -> None:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

        monkeypatch.setattr(requests.ThreadPoolExecutor, "submit", refused)
        offsets, out = np.arange(2_000_000, 4_000_000, 100_000), np.empty(200, np.uint8)
        with opened(server, max_gap_nbytes=0) as source:
            source.advise(offsets, 10)
            source.read_scattered(offsets, 10, out)
        assert out.tobytes() == b"".join(DATA[at : at + 10] for at in offsets.tolist())

    def test_a_dead_server_is_not_asked_for_all_of_a_call(self, server: RangeServer) -> None:
        """The first error ends it: each request would take as many tries."""
        with opened(server, max_gap_nbytes=0) as source:
            server.fault = lambda request: Fault(status=503)
            with server.counting() as asked, pytest.raises(RemoteError, match="503"):
                source.read_scattered(np.arange(2_000_000, 4_000_000, 10_000), 10, np.empty(2000, np.uint8))
            assert len(asked) <= 4 * (64 + 1)
            server.fault = lambda request: None
            assert source.read(2_000_000, 10) == DATA[2_000_000:2_000_010]

    def test_an_interrupt_is_that_of_one_thread(self, server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another thread that waits for the same bytes asks for them itself."""
        waits, interrupted = threading.Event(), threading.Event()
        got: list[object] = []

        def get(self: RemoteSource, start: int, stop: int) -> memoryview:
            if not interrupted.is_set():
                waits.set()
                time.sleep(0.2)
                interrupted.set()
                raise KeyboardInterrupt
            return memoryview(DATA)[start:stop]

        def other(source: RemoteSource) -> None:
            waits.wait(5)
            try:
                got.append(source.read(2_000_000, 10))
            except BaseException as error:
                got.append(error)

        monkeypatch.setattr(RemoteSource, "_get", get)
        with opened(server) as source:
            thread = threading.Thread(target=other, args=(source,))
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                source.read(2_000_000, 10)
            thread.join(5)
        assert got == [DATA[2_000_000:2_000_010]]

    def test_an_interrupt_before_a_request_is_begun(self, server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """Between taking it from the list and beginning it: who waits for the same bytes gets them all the same."""
        got: list[bytes] = []
        other = threading.Thread(target=lambda: got.append(source.read(2_000_000, 10)))

        class Interrupted(deque[requests.Request]):
            def popleft(self) -> requests.Request:
                taken = super().popleft()
                if threading.current_thread() is not other and not other.ident:
                    other.start()
                    time.sleep(0.2)  # by now it waits for what was just taken
                    raise KeyboardInterrupt
                return taken

        monkeypatch.setattr(remote, "deque", Interrupted)
        with opened(server) as source:
            with pytest.raises(KeyboardInterrupt):
                source.read(2_000_000, 10)
            other.join(5)
            assert not other.is_alive()
        assert got == [DATA[2_000_000:2_000_010]]

    @pytest.mark.parametrize("in_order", [False, True])
    def test_an_interrupt_while_threads_are_started(
        self, server: RangeServer, monkeypatch: pytest.MonkeyPatch, in_order: bool
    ) -> None:
        """It waits until they have what they are to ask for, also where this is read ahead: later reads find it."""
        start = requests._Threads.start

        def interrupted(self: requests._Threads, wanted: deque[requests.Request], count: int) -> None:
            monkeypatch.setattr(requests._Threads, "start", start)
            signal.raise_signal(signal.SIGINT)
            start(self, wanted, count)

        options = Remote(storage_options=QUICK, max_request_nbytes=MIB, max_gap_nbytes=0)
        with RemoteSource(server.url("a.bin"), options, in_order=in_order) as source:
            offsets, out = np.array([2_000_000, 2_500_000]), np.empty(20, np.uint8)
            monkeypatch.setattr(requests._Threads, "start", interrupted)
            with pytest.raises(KeyboardInterrupt):
                source.read(2_000_000, 10) if in_order else source.read_scattered(offsets, 10, out)
            later = threading.Thread(target=source.read_scattered, args=(offsets, 10, out), daemon=True)
            later.start()
            later.join(10)
            assert not later.is_alive()
        assert out.tobytes() == DATA[2_000_000:2_000_010] + DATA[2_500_000:2_500_010]

    @pytest.mark.parametrize("place", range(4))
    def test_two_interrupts(self, server: RangeServer, monkeypatch: pytest.MonkeyPatch, place: int) -> None:
        """The second one, wherever it comes while the first one cleans up, leaves nothing that writes to `out`."""
        calls: list[remote._Call] = []
        cancel, left = remote._Call.cancel, [place]

        def interrupted(self: remote._Call) -> None:
            calls.append(self)
            for delivery in self.deliveries.values():
                left[0] -= 1
                if left[0] == 0:
                    signal.raise_signal(signal.SIGINT)
                delivery.cancel()
            cancel(self)

        def get(self: RemoteSource, start: int, stop: int) -> memoryview:
            if threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt
            time.sleep(0.05)
            return memoryview(DATA)[start:stop]

        monkeypatch.setattr(remote._Call, "cancel", interrupted)
        monkeypatch.setattr(RemoteSource, "_get", get)
        with opened(server, max_gap_nbytes=0, buffer_nbytes=0) as source, pytest.raises(KeyboardInterrupt):
            source.read_scattered(np.arange(2_000_000, 4_000_000, 100_000), 10, np.empty(200, np.uint8))
        assert len(calls[0].deliveries) == 20
        assert not any(delivery._ranges for delivery in calls[0].deliveries.values())

    @pytest.mark.parametrize("buffer_nbytes", [0, 1 << 20])
    @pytest.mark.parametrize("gap", [0, 1 << 20])
    def test_ranges_go_into_memory(self, server: RangeServer, buffer_nbytes: int, gap: int) -> None:
        """Those named first, in any order and twice, from the head, from around; the others are read in the block."""
        offsets = np.array([3_000_000, 500, 2_000_000, 3_000_000, 2_000_005, 4_000_000, 2_000_100])
        into = [memoryview(bytearray(10)) for _ in range(5)]
        with opened(server, buffer_nbytes=buffer_nbytes, max_gap_nbytes=gap) as source:
            with source.staged(offsets, 10, into), server.counting() as found:
                assert [bytes(each) for each in into] == [DATA[at : at + 10] for at in offsets[:5].tolist()]
                assert [source.read(at, 10) for at in (4_000_000, 2_000_100)] == [
                    DATA[at : at + 10] for at in (4_000_000, 2_000_100)
                ]
                again = memoryview(bytearray(10))
                with source.staged(np.array([4_000_000]), 10, [again]):
                    assert bytes(again) == DATA[4_000_000:4_000_010]
            assert found == []

    def test_nothing_is_written_after_an_error(self, server: RangeServer) -> None:
        """The memory of a read that failed is its caller's again, though requests are still under way."""
        offsets, out = np.arange(2_000_000, 4_000_000, 500_000), np.empty(4 * 300_000, np.uint8)
        with opened(server, max_gap_nbytes=0, buffer_nbytes=0) as source:
            failing = offsets[1].item()
            server.fault = lambda request: (
                Fault(status=400, delay=0.1) if (request.range or (0,))[0] == failing else Fault(delay=0.2)
            )
            with pytest.raises(RemoteError, match="400"):
                source.read_scattered(offsets, 300_000, out)
            out[:] = 7
            time.sleep(0.4)
            assert (out == 7).all()

    def test_a_slow_server_is_asked_for_more_at_a_time(self, server: RangeServer) -> None:
        """Where answers take long, all requests of a call are under way at once."""
        server.fault = lambda request: Fault(delay=0.15)
        with opened(server, max_gap_nbytes=0) as source:
            began = time.perf_counter()
            with source.staged(np.arange(2_000_000, 5_000_000, 100_000), 10):
                assert time.perf_counter() - began < 0.6

    @pytest.mark.parametrize("pace", [0.0, 1.0])
    def test_all_of_many_requests_come(self, server: RangeServer, pace: float) -> None:
        """Whatever number of threads shares them."""
        offsets = np.arange(2_000_000, 5_000_000, 10_000)
        with opened(server, max_gap_nbytes=0, max_requests=20) as source, server.counting() as found:
            source._fastest = pace
            out = np.empty(10 * len(offsets), np.uint8)
            source.read_scattered(offsets, 10, out)
        assert out.tobytes() == b"".join(DATA[at : at + 10] for at in offsets.tolist())
        assert len(found) == len(offsets)

    def test_reading_ahead_without_a_buffer(self, server: RangeServer) -> None:
        """Whoever reads from begin to end asks for each byte once, whatever the buffer has room for."""
        remote = Remote(storage_options=QUICK, buffer_nbytes=0, max_request_nbytes=MIB)
        with server.counting() as found, RemoteSource(server.url("a.bin"), remote, in_order=True) as source:
            read = b"".join(source.read(at, min(100_000, len(DATA) - at)) for at in range(0, len(DATA), 100_000))
        assert read == DATA
        assert sum(stop - start for start, stop in map(range_of, found)) <= len(DATA) + MIB

    def test_ranges_outside_are_refused(self, server: RangeServer) -> None:
        """As of any source."""
        with opened(server) as source:
            with pytest.raises(TruncatedError, match="ends too early"):
                source.read(len(DATA) - 5, 6)
            with pytest.raises(ValueError, match="0 or more"):
                source.read(-1, 5)

    def test_prefetch_does_not_ask_for_the_head_again(self, server: RangeServer) -> None:
        """What came with the opening is there."""
        with opened(server) as source, server.counting() as requests:
            source.advise(np.array([0, 5000]), 100)
            time.sleep(0.1)
        assert requests == []

    @pytest.mark.parametrize("step", [100, 300_000])
    def test_closed(self, server: RangeServer, step: int) -> None:
        """Every use is then a ClosedError, also for a thread that was waiting, for one request or for many."""
        source = opened(server)
        server.fault = lambda request: Fault(delay=0.3)
        found: list[BaseException] = []

        def wait() -> None:
            try:
                source.read_scattered(np.arange(14) * step + 2_000_000, 10, np.empty(140, np.uint8))
            except BaseException as error:
                found.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.1)
        source.close()
        waiting.join()
        assert all(isinstance(error, ClosedError) for error in found)
        with pytest.raises(ClosedError, match="open it again"):
            source.read(0, 1)

    def test_the_cache_saves_requests_for_other_readers(self, server: RangeServer, tmp_path: Path) -> None:
        """Blocks of 1 MiB; another reader fetches the head alone. A new version has blocks of its own."""
        with opened(server, cache_dir=str(tmp_path)) as source:
            assert source.read(3_000_000, 100) == DATA[3_000_000:3_000_100]
        with server.counting() as requests, opened(server, cache_dir=str(tmp_path)) as source:
            assert source.read(3_050_000, 100) == DATA[3_050_000:3_050_100]
        assert [request.range for request in requests] == [(0, HEAD)]
        server.objects["a.bin"] = DATA[::-1]
        with opened(server, cache_dir=str(tmp_path)) as source:
            assert source.read(3_050_000, 100) == DATA[::-1][3_050_000:3_050_100]

    def test_a_cache_at_home(self, server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """`~` is what it is in a shell, and no folder of this name."""
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("USERPROFILE", str(tmp_path))
        with opened(server, cache_dir="~/cache") as source:
            source.read(2_000_000, 10)
        assert len(list((tmp_path / "cache").rglob("*-*"))) > 0

    def test_no_bytes(self, server: RangeServer) -> None:
        """An object of no bytes opens, as an empty file does."""
        server.objects["empty"] = b""
        with RemoteSource(server.url("empty"), Remote(storage_options=QUICK)) as source:
            assert (source.size, source.read(0, 0)) == (0, b"")


class _Shared:
    """One server for all examples of hypothesis; stopped with the module."""

    def __init__(self) -> None:
        self.made: dict[bool, RemoteSource] = {}

    def begin(self, folder: Path) -> None:
        self.folder = folder
        self.server = RangeServer({"a.bin": DATA})
        self.server.__enter__()

    def source(self, cached: bool) -> tuple[RemoteSource, Path]:
        if cached not in self.made:
            cache = {"cache_dir": str(self.folder)} if cached else {}
            self.made[cached] = opened(self.server, max_gap_nbytes=2000, buffer_nbytes=50_000, **cache)
        return self.made[cached], self.folder


SHARED = _Shared()


@pytest.fixture(scope="module", autouse=True)
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    SHARED.begin(tmp_path_factory.mktemp("cache"))
    yield
    SHARED.server.__exit__(None, None, None)


TRANSIENT = {
    "500": Fault(status=500),
    "503": Fault(status=503),
    "429": Fault(status=429),
    "reset": Fault(reset=True),
    "body cut off": Fault(cut=100),
    "no answer": Fault(delay=0.6),
}


class TestFaults:
    @pytest.mark.parametrize("fault", TRANSIENT.values(), ids=TRANSIENT)
    def test_tried_again(self, server: RangeServer, fault: Fault) -> None:
        """Each of these, twice in a row, costs a read nothing but time."""
        with opened(server) as source:
            server.fault = first(2, fault)
            assert source.read(2_000_000, 10_000) == DATA[2_000_000:2_010_000]

    @pytest.mark.parametrize("fault", TRANSIENT.values(), ids=TRANSIENT)
    def test_within_bounds(self, server: RangeServer, fault: Fault) -> None:
        """After `max_retries` more it is an error with URL, range and what to do; the next read may go right."""
        with opened(server) as source:
            server.fault = lambda request: fault
            with server.counting() as requests, pytest.raises(RemoteError) as caught:
                source.read(2_000_000, 10_000)
            assert len(requests) == 4
            text = str(caught.value)
            assert server.url("a.bin") in text
            assert "bytes [2000000, 2010000)" in text
            assert "retry_config" in text
            server.fault = lambda request: None
            assert source.read(2_000_000, 10_000) == DATA[2_000_000:2_010_000]

    def test_the_status_is_named(self, server: RangeServer) -> None:
        """Who reads the message knows what the server said."""
        with opened(server) as source:
            server.fault = lambda request: Fault(status=503)
            with pytest.raises(RemoteError, match="503 Service Unavailable"):
                source.read(2_000_000, 10)

    def test_a_short_answer(self, server: RangeServer) -> None:
        """A server that gives fewer bytes than it was asked for, and says so, is at fault."""
        with opened(server) as source:
            server.fault = lambda request: Fault(short=10)
            with pytest.raises(RemoteError, match=r"got 2000000\.\.2000990"):
                source.read(2_000_000, 1000)

    def test_a_long_answer(self, server: RangeServer) -> None:
        """A server that sends more bytes than the range that it names is at fault; no more of them is taken.

        Whoever waited for the end would fail by the time that it takes.
        """
        with opened(server, max_gap_nbytes=0) as source:
            server.fault = lambda request: Fault(endless=True)
            with pytest.raises(RemoteError, match="expected 1000 bytes, found more"):
                source.read(2_000_000, 1000)
            out = np.empty(20_000, np.uint8)
            with pytest.raises(RemoteError, match="expected 1000 bytes, found more"):
                source.read_scattered(np.arange(2_000_000, 5_000_000, 150_000), 1000, out)

    def test_an_impossible_size(self, server: RangeServer) -> None:
        """What no file can have is refused before anything is computed with it."""
        server.fault = lambda request: Fault(size=2**64 - 1)
        with pytest.raises(LimitError, match="the server says that it has 18446744073709551615 bytes"):
            opened(server)

    @pytest.mark.parametrize("status", [400, 503])
    def test_opening_fails_by_its_own_error(self, server: RangeServer, status: int) -> None:
        """That of the request for bytes; a server that did not answer all tries is not tried as often once more."""
        server.fault = lambda request: Fault(status=status)
        with server.counting() as asked, pytest.raises(RemoteError, match=rf"bytes \[0, 1048576\): .*{status}"):
            opened(server)
        assert [request.method for request in asked] == (["GET"] * 4 if status == 503 else ["GET", "HEAD"])

    def test_a_look_that_is_forbidden(self, server: RangeServer) -> None:
        """What the request for bytes failed by is said, where the look that follows it fails by something else."""
        server.fault = lambda request: Fault(status=403 if request.method == "HEAD" else 400)
        with pytest.raises(RemoteError, match=r"bytes \[0, 1048576\): .*400"):
            opened(server)

    def test_no_ranges(self, server: RangeServer) -> None:
        """A server that sends the whole object each time cannot be read from."""
        server.fault = lambda request: Fault(no_range=True)
        with pytest.raises(RemoteError, match="does not answer range requests"):
            opened(server)

    @pytest.mark.parametrize("status", [401, 403])
    def test_no_access(self, server: RangeServer, status: int) -> None:
        """PermissionError, with the place where credentials come from; not tried again."""
        server.fault = lambda request: Fault(status=status)
        with server.counting() as requests, pytest.raises(PermissionError, match="credentials"):
            opened(server)
        assert len(requests) == 1

    def test_not_there(self, server: RangeServer) -> None:
        """FileNotFoundError with the URL, as for a path."""
        url = server.url("other.bin")
        with pytest.raises(FileNotFoundError) as caught:
            RemoteSource(url, Remote())
        assert caught.value.filename == url

    @pytest.mark.parametrize("etags", [True, False])
    @pytest.mark.parametrize("change", ["same length", "longer"])
    def test_changed(self, server: RangeServer, etags: bool, change: str) -> None:
        """Another object under the URL is noticed by its ETag, or else by its length, in whatever is read next."""
        server.etags = etags
        with opened(server) as source:
            server.objects["a.bin"] = DATA[::-1] if change == "same length" else DATA + b"more"
            if not etags and change == "same length":
                source.read(2_000_000, 10)  # the same date: only checksums can tell
                return
            with pytest.raises(ReplacedError, match="changed since it was opened") as caught:
                source.read(2_000_000, 10)
            assert "Open it again" in str(caught.value)

    @pytest.mark.parametrize("honest", [True, False])
    def test_changed_in_the_middle(self, server: RangeServer, honest: bool) -> None:
        """After some requests of a batch: an error, never rows of both; also where a server does not heed If-Match."""
        server.if_match = honest
        offsets, out = np.arange(2_000_000, 5_000_000, 100_000), np.empty(30 * 10, np.uint8)

        def swap(request: Request) -> None:
            if request.number == 10:
                server.objects["a.bin"] = DATA[::-1]

        with opened(server, max_gap_nbytes=0) as source:
            server.fault = swap
            with pytest.raises(ReplacedError, match="changed since it was opened"):
                source.read_scattered(offsets, 10, out)
            with pytest.raises(ReplacedError, match="changed since it was opened"):
                source.read_scattered(offsets, 10, out)

    def test_a_failed_prefetch_is_no_error(self, server: RangeServer) -> None:
        """The read asks again, and its own error counts."""
        with opened(server) as source:
            server.fault = lambda request: Fault(status=400)
            source.advise(np.array([2_000_000]), 1000)
            time.sleep(0.1)
            server.fault = lambda request: None
            assert source.read(2_000_000, 1000) == DATA[2_000_000:2_001_000]

    def test_one_failed_range_of_many(self, server: RangeServer) -> None:
        """The batch fails as a whole, and can be asked for again."""
        offsets, out = np.arange(2_000_000, 6_000_000, 500_000), np.empty(800, np.uint8)
        with opened(server) as source:
            server.fault = lambda request: Fault(status=400) if (request.range or (0,))[0] == 3_000_000 else None
            with pytest.raises(RemoteError, match="bytes \\[3000000, 3000100\\)"):
                source.read_scattered(offsets, 100, out)
            server.fault = lambda request: None
            source.read_scattered(offsets, 100, out)
        assert out[200:300].tobytes() == DATA[3_000_000:3_000_100]


class TestUrls:
    def test_what_is_one(self) -> None:
        """Paths stay paths, also odd ones."""
        assert all(map(is_url, ("s3://b/k", "gs://b/k", "az://b/k", "http://h/p", "https://h/p")))
        assert not any(map(is_url, ("s3:/b/k", "/data/s3://x", "file.cks", "ftp://h/p", "c:\\x", 5, None)))

    @pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/", "s3:///key", "http://host/folder/"])
    def test_one_object(self, url: str) -> None:
        """Not a bucket, not a folder."""
        with pytest.raises(ValueError, match="one object"):
            open_any(url)

    def test_no_query(self) -> None:
        """The client would drop it without a word."""
        with pytest.raises(ValueError, match="query"):
            open_any("https://host/a.cks?signature=x")

    @pytest.mark.parametrize(
        "url",
        [
            "https://me:hidden@host/a.cks",
            "https://me:hidden@more@host/a.cks",
            "https://host/a.cks?signature=hidden",
            "https://host/?signature=hidden",
            "https://host?hidden",
            "https://host/a.cks#hidden",
            "az://host/a.cks?sv=1&sig=hidden",
        ],
    )
    def test_secrets_in_urls(self, url: str) -> None:
        """They are refused, by an error that does not repeat them."""
        with pytest.raises(ValueError, match=r"://host/(a\.cks)?: URLs with") as caught:
            open_any(url)
        assert "hidden" not in str(caught.value)

    def test_names_that_the_client_refuses(self, server: RangeServer) -> None:
        """A tab is not dropped, which would name another object; and nobody is told to try again."""
        server.objects["t.bin"] = b"12345"
        for name in ("\tt.bin", "a//b.bin", "a/../b.bin"):
            with pytest.raises(ValueError, match=r"the client refuses this name: .*Rename the object"):
                open_any(server.url(name))

    @pytest.mark.parametrize("name", ["a%2Fb.bin", "a%2fb.bin", "%FF.bin"])
    def test_names_that_the_client_would_change(self, server: RangeServer, name: str) -> None:
        """They are refused: it would ask for another object."""
        server.objects |= {"a/b.bin": b"other", "%EF%BF%BD.bin": b"other"}
        with pytest.raises(ValueError, match="cannot ask for a name with %2F"):
            open_any(server.url(name))

    def test_options_that_do_not_fit(self, tmp_path: Path) -> None:
        """Of a file, of an object, of the client."""
        with pytest.raises(ValueError, match="goes with a URL"):
            open_any(tmp_path / "a.cks", remote=Remote())
        with pytest.raises(ValueError, match='expected "auto" for a URL'):
            open_any("http://127.0.0.1:1/a.cks", "mmap")
        with pytest.raises(ValueError, match="the client refuses its options"):
            open_any("s3://bucket/key", remote=Remote(storage_options={"no_such_option": 1}))

    @pytest.mark.parametrize(
        "name", ["max_gap_nbytes", "max_request_nbytes", "max_requests", "buffer_nbytes", "cache_nbytes"]
    )
    @pytest.mark.parametrize("value", [-1, 1.5, True, "1"])
    def test_numbers_are_checked(self, name: str, value: object) -> None:
        """Where they are given, not where they are used."""
        with pytest.raises(ValueError, match=name):
            Remote(**{name: value})  # type: ignore[arg-type]

    @pytest.mark.parametrize("options", [{"storage_options": "x"}, {"storage_options": None}, {"cache_dir": 5}])
    def test_types_are_checked(self, options: dict[str, Any]) -> None:
        """The same; and options that are no `Remote`."""
        with pytest.raises(TypeError, match=f"{next(iter(options))}: expected a"):
            Remote(**options)
        with pytest.raises(TypeError, match=r"expected chunkstore\.Remote\(\.\.\.\), found dict"):
            chunkstore.open("s3://bucket/a.cks", remote=options)  # type: ignore[arg-type]

    def test_secrets_are_not_shown(self) -> None:
        """`repr` goes into logs."""
        assert "hidden" not in repr(Remote(storage_options={"secret_access_key": "hidden"}))

    def test_names_with_blanks_and_letters(self, server: RangeServer) -> None:
        """A URL of the web is decoded, and encoded again by the client."""
        server.objects["a%20%C3%BC.bin"] = b"12345"
        for name in ("a%20%C3%BC.bin", "a ü.bin"):
            with RemoteSource(server.url(name), Remote()) as source:
                assert source.read(0, 5) == b"12345"

    def test_azure_and_google(self, server: RangeServer) -> None:
        """Their URLs lead to the requests that their interfaces want; no real server of either kind is asked."""
        server.objects |= {"bucket/k.bin": b"google", "account/box/k.bin": b"azure"}
        azure = {"account_name": "account", "endpoint": f"{server.endpoint}/account", "skip_signature": True}
        options = {"client_options": {"allow_http": True}}
        with RemoteSource("az://box/k.bin", Remote(storage_options=azure | options)) as source:
            assert source.read(0, 5) == b"azure"
