"""Recycled memory: used again as soon as nobody has it, and never before."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkstore._loading import recycle
from chunkstore._loading.recycle import Recycler

U8 = np.dtype(np.uint8)

pytestmark = pytest.mark.skipif(not recycle._COUNTS_ARE_EXACT, reason="this interpreter has no exact reference counts")


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_dropped_memory_is_used_again() -> None:
    """The second array lies where the first one was."""
    recycler = Recycler(2)
    first = address(recycler.empty("x", (100, 10), U8))
    assert address(recycler.empty("x", (100, 10), U8)) == first


def test_shape_and_dtype_may_differ_each_time() -> None:
    """One backing serves any shape and dtype that fits, aligned to 64 bytes; a larger one replaces it."""
    recycler = Recycler(1)
    for shape, dtype in [((7, 3), "<f8"), ((), "<i4"), ((0, 5), "<f4"), ((1000,), "<c16"), ((3,), "<M8[s]")]:
        array = recycler.empty("x", shape, np.dtype(dtype))
        assert (array.shape, array.dtype, array.flags.carray) == (shape, np.dtype(dtype), True)
        assert address(array) % 64 == 0 or not array.size
        del array


HOLDS = {
    "array": lambda array: array,
    "view": lambda array: array[3:5],
    "view of a view": lambda array: array[3:][1:].view(np.int8).T,
    "row": lambda array: array[2],
    "memoryview": memoryview,
    "memoryview of a view": lambda array: memoryview(array[4])[2:],
    "iterator": iter,
    "dlpack": lambda array: array.__dlpack__(),
    "subclass": lambda array: array.view(np.matrix),
    "frombuffer": lambda array: np.frombuffer(array, np.uint16),
    "closure": lambda array: lambda: array,
}


@pytest.mark.parametrize("hold", HOLDS.values(), ids=HOLDS.keys())
@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_memory_in_use_is_never_handed_out(hold: Any) -> None:
    """Whatever refers to the memory, directly or not, keeps it; when that goes, it is free."""
    recycler = Recycler(1)
    array = recycler.empty("x", (8, 16), U8)
    first = address(array)
    held = hold(array)
    del array
    other = recycler.empty("x", (8, 16), U8)
    assert not first <= address(other) < first + 128
    del held, other
    assert address(recycler.empty("x", (8, 16), U8)) == first


def test_tensors_hold_it() -> None:
    """A tensor, a view of it, its storage and its numpy() keep the memory; a clone does not."""
    torch = pytest.importorskip("torch")
    holds = [
        lambda t: t,
        lambda t: t[2:],
        lambda t: t.untyped_storage(),
        lambda t: t[1].numpy(),
        lambda t: t.view(torch.int8).T.numpy()[0],
        torch.utils.dlpack.to_dlpack,
        lambda t: t.detach().requires_grad_(False),
        lambda t: torch.from_numpy(t.numpy()),
        lambda t: t.float() * torch.ones((), requires_grad=True),
    ]
    for hold in holds:
        recycler = Recycler(1)
        tensor = torch.from_numpy(recycler.empty("x", (8, 16), U8))
        first, held = tensor.data_ptr(), hold(tensor)
        copied = isinstance(held, torch.Tensor) and held.requires_grad
        del tensor
        assert (address(recycler.empty("x", (8, 16), U8)) == first) == copied
        del held
        assert address(recycler.empty("x", (8, 16), U8)) == first


def test_no_more_than_limit_is_kept() -> None:
    """While more arrays are in use than are kept, the others are ordinary ones; later the kept ones are used."""
    recycler = Recycler(2)
    held = [recycler.empty("x", (64,), U8) for _ in range(5)]
    assert len({address(array) for array in held}) == 5
    kept = {address(held[0]), address(held[1])}
    held.clear()
    again = [recycler.empty("x", (64,), U8) for _ in range(2)]
    assert {address(array) for array in again} == kept


@pytest.mark.parametrize("kept", [False, True])
def test_interrupted_while_memory_is_made(kept: bool) -> None:
    """Ctrl-C at any line while a new or a larger array is made: the next one is sound and aligned."""
    for stop in range(1, 10):
        recycler = Recycler(2)
        if kept:
            recycler.empty("x", (10,), U8)
        left = stop

        def trace(frame: Any, event: str, _: Any) -> Any:
            nonlocal left
            if frame.f_code.co_filename != recycle.__file__:
                return None
            # A lock that is taken and given back by `with` is safe; tracing would break in there, too.
            left -= event == "line" and frame.f_code.co_name != "empty"
            if left == 0:
                raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            recycler.empty("x", (1000,), U8)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        for size in (1000, 10, 3000):
            array = recycler.empty("x", (size,), U8)
            assert array.size == size
            assert address(array) % 64 == 0


def test_huge_arrays_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a limit memory is given back to the system, not kept."""
    monkeypatch.setattr(recycle, "_MAX_NBYTES", 1000)
    recycler = Recycler(2)
    assert recycler.empty("x", (1001,), U8).base is None
    assert recycler.empty("x", (1000,), U8).base is not None


def test_without_reference_counts_every_array_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where counts are not exact nothing is recycled, and all works."""
    monkeypatch.setattr(recycle, "_COUNTS_ARE_EXACT", False)
    recycler = Recycler(2)
    assert recycler.empty("x", (1000,), U8).base is None


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 300), st.booleans()), max_size=60))
def test_poisoned_memory_is_never_seen(steps: list[tuple[int, int, bool]]) -> None:
    """Each array is filled with a mark of its own when it is handed out; none that is held ever changes."""
    recycler = Recycler(3)
    held: dict[int, tuple[np.ndarray, int]] = {}
    for mark, (slot, size, as_view) in enumerate(steps):
        array = recycler.empty("x", (size,), U8)
        array.fill(mark % 251)
        held[slot] = (array[size // 2 :] if as_view else array, mark % 251)
        del array
        assert all((kept == value).all() for kept, value in held.values())


def test_threads_never_share_memory() -> None:
    """Six threads that take, fill, look and drop always find what they wrote."""
    recycler = Recycler(4)
    wrong: list[int] = []

    def work(mark: int) -> None:
        for _ in range(800):
            array = recycler.empty("x", (500,), U8)
            array.fill(mark)
            if (array != mark).any():
                wrong.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
