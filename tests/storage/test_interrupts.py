"""`signals_later`: what comes meanwhile is handled afterwards."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
from typing import Any

import pytest

from chunkstore._storage.interrupts import ENDING, all_done, signals_later


def test_an_interrupt_waits() -> None:
    """All of the block runs, then the interrupt comes, once."""
    done = []
    with pytest.raises(KeyboardInterrupt), signals_later():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        done.append(1)
    assert done == [1]


def test_all_signals_are_handled() -> None:
    """Each once, in their order, also where the block or a handler raises."""
    came: list[int] = []

    def note(number: int, _: object) -> None:
        came.append(number)
        raise RuntimeError(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, *ENDING)}
    try:
        with pytest.raises(RuntimeError), signals_later():
            for number in (*before, *before):
                signal.raise_signal(number)
            raise ZeroDivisionError
        assert came == list(before)
        assert all(signal.getsignal(number) is note for number in before)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_signal_while_handlers_change_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the calls it hits, all handlers are those of before."""
    change = signal.signal
    before = [signal.getsignal(number) for number in (signal.SIGINT, *ENDING)]
    for hit in range(2 * len(before)):
        calls = itertools.count()

        def interrupted(number: int, handler: Any, calls: Any = calls, hit: int = hit) -> Any:
            found = change(number, handler)
            if next(calls) == hit:
                raise KeyboardInterrupt
            return found

        monkeypatch.setattr(signal, "signal", interrupted)
        with pytest.raises(KeyboardInterrupt), signals_later():
            pass
        monkeypatch.undo()
        assert [signal.getsignal(number) for number in (signal.SIGINT, *ENDING)] == before


@pytest.mark.parametrize("hit", range(2 * (1 + len(ENDING))))
def test_what_was_not_begun_is_not_said_to_be_done(monkeypatch: pytest.MonkeyPatch, hit: int) -> None:
    """An interrupt that comes before signals wait is raised as it is, and the block does not run."""
    calls = itertools.count()
    change = signal.signal
    done = []

    def interrupted(number: int, handler: Any) -> Any:
        found = change(number, handler)
        if next(calls) == hit:
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as interrupt:
        patch.setattr(signal, "signal", interrupted)
        with all_done("it is complete"):
            done.append(1)
    assert str(interrupt.value) == ("interrupted when all was done: it is complete" if done else "")
    assert len(done) == (hit > len(ENDING))


def test_handlers_come_back() -> None:
    """Afterwards all handlers are those of before, also when the block fails."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ZeroDivisionError), signals_later():
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_other_threads_change_nothing() -> None:
    """Only the main thread may set handlers."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with signals_later():
                pass
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors


@pytest.mark.parametrize("error", [ZeroDivisionError, None])
def test_an_interrupt_swallows_nothing(error: type[Exception] | None) -> None:
    """A signal that came after it reaches its handler; and what the block raises counts more."""
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        with pytest.raises(error or KeyboardInterrupt), signals_later():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            if error is not None:
                raise error
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM]


def test_a_handler_that_raises_while_others_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C works also where the handler of SIGTERM, back already, raised before that of Ctrl-C was back."""
    put = signal.signal
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *ENDING)}

    def raises(number: int, handler: Any) -> Any:
        old = put(number, handler)
        if number == signal.SIGTERM and handler is before[number]:
            raise SystemExit
        return old

    try:
        with monkeypatch.context() as patch:
            patch.setattr(signal, "signal", raises)
            with pytest.raises(SystemExit), signals_later():
                pass
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_an_interrupt_while_handlers_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that keeps the others from being put back has put back its own."""

    def interrupted(self: contextlib.ExitStack, *error: object) -> None:
        signal.raise_signal(signal.SIGINT)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *ENDING)}
    try:
        with monkeypatch.context() as patch:
            patch.setattr(contextlib.ExitStack, "__exit__", interrupted)
            with pytest.raises(KeyboardInterrupt), signals_later():
                pass
        assert signal.getsignal(signal.SIGINT) is before[signal.SIGINT]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
