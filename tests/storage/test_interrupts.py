"""`signals_later`: what comes meanwhile is handled afterwards."""

from __future__ import annotations

import signal
import threading

import pytest

from chunkstore._storage.interrupts import signals_later


def test_an_interrupt_waits() -> None:
    """All of the block runs, then the interrupt comes, once."""
    done = []
    with pytest.raises(KeyboardInterrupt), signals_later():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        done.append(1)
    assert done == [1]


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
