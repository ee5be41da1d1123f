"""Epochs that follow each other, what was delivered, and the state."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chunkstore._loading.epochs import Epochs
from chunkstore._loading.order import Order
from chunkstore.errors import StateError


def make(**options: Any) -> Epochs:
    options = {"num_samples": 10, "batch_size": 4, "seed": 3, "fingerprint": "abc"} | options
    return Epochs(Order(options.pop("num_samples"), **options))


def take(epochs: Epochs, num: int | None = None) -> list[int]:
    """Begin, deliver `num` batches (all by default), and return their ids."""
    taken: list[int] = []
    for number, batch in enumerate(epochs.begin()):
        if number == num:
            break
        epochs.deliver()
        taken += batch.tolist()
    return taken


def test_each_begin_is_the_next_epoch() -> None:
    """Whole epochs follow each other, each with its own order of all samples."""
    epochs = make()
    orders = [take(epochs) for _ in range(3)]
    assert [sorted(order) for order in orders] == [list(range(10))] * 3
    assert len({tuple(order) for order in orders}) == 3
    assert epochs.epoch == 3


def test_a_half_read_epoch_is_left_behind() -> None:
    """After some batches the next begin is a new epoch; after none it is the same one."""
    epochs = make()
    take(epochs, 1)
    assert epochs.epoch == 0
    take(epochs, 0)
    assert epochs.epoch == 1
    take(epochs, 0)
    assert epochs.epoch == 1


@pytest.mark.parametrize("num", [0, 1, 2, 3])
def test_state_goes_on_with_what_is_left(num: int) -> None:
    """Through JSON, in another object: exactly the ids that were not delivered, then the next epoch."""
    whole = make()
    expected = take(whole) + take(whole)
    first = make()
    done = take(first, num)
    second = make()
    second.load_state(json.loads(json.dumps(first.state())))
    rest = take(second)
    assert done + rest + (take(second) if num < 3 else []) == expected


def test_fewer_batches_may_have_been_used() -> None:
    """A state can name fewer batches than were taken, not more."""
    epochs, other = make(), make()
    taken = take(epochs, 2)
    other.load_state(epochs.state(1))
    assert take(other)[:4] == taken[4:]
    with pytest.raises(ValueError, match="num_batches"):
        epochs.state(3)


def test_set_epoch_keeps_a_loaded_position() -> None:
    """set_epoch of the epoch to resume in does not throw the position away; any other one does."""
    first, second = make(), make()
    take(first)
    done = take(first, 1)
    second.load_state(first.state())
    second.set_epoch(1)
    assert len(take(second)) == 6
    second.load_state(first.state())
    second.set_epoch(0)
    assert len(take(second)) == 10
    second.set_epoch(1)
    assert take(second)[:4] == done


def test_set_epoch_after_batches_starts_it_again() -> None:
    """Called with the running epoch, it begins anew."""
    epochs = make()
    done = take(epochs, 2)
    epochs.set_epoch(0)
    assert take(epochs)[:8] == done


@pytest.mark.parametrize(("epoch", "error"), [(-1, ValueError), (1.5, TypeError), ("1", TypeError), (True, TypeError)])
def test_bad_epoch(epoch: Any, error: type[Exception]) -> None:
    """Only integers from 0 are epochs."""
    with pytest.raises(error, match="epoch"):
        make().set_epoch(epoch)


def test_a_refused_state_changes_nothing() -> None:
    """The position after a refused state is the one before."""
    epochs, other = make(), make(fingerprint="other")
    take(epochs, 1)
    with pytest.raises(StateError, match="fingerprint"):
        epochs.load_state(other.state())
    assert epochs.state()["samples_seen"] == 4


def test_more_ranks_go_on() -> None:
    """Two ranks that load the state of one take together what it had left."""
    one = make()
    done = take(one, 1)
    rest: list[int] = []
    for rank in range(2):
        part = make(rank=rank, world_size=2, batch_size=2)
        part.load_state(one.state())
        rest += take(part)
    assert sorted(done + rest) == list(range(10))


@pytest.mark.parametrize("options", [{"rank": 1, "world_size": 4, "batch_size": 2}, {"drop_last": True}])
def test_an_epoch_of_which_nothing_is_left(options: dict[str, Any]) -> None:
    """A rank that resumes where no batch is left for it has none in this epoch, and takes part in the next."""
    epochs, saved = make(**options), make(batch_size=8)
    take(saved, 1)
    epochs.load_state(saved.state())
    epochs.set_epoch(0)
    assert take(epochs) == []
    other = make(**options)
    other.set_epoch(1)
    assert take(epochs) == take(other) != []


def test_set_epoch_inside_an_iteration() -> None:
    """Of the running epoch, when batches are taken already (Lightning does it): it goes on, the state counts them all.
    Of another one: the next iteration is that epoch, however much of this one was still taken.
    """
    epochs = make()
    batches = epochs.begin()
    for _ in range(2):
        next(batches)
        epochs.deliver()
    epochs.set_epoch(0)
    assert epochs.state()["samples_seen"] == 0
    next(batches)
    epochs.deliver()
    assert epochs.epoch == 1
    assert epochs.state(2)["samples_seen"] == 8
    take(epochs, 1)
    epochs.set_epoch(7)
    epochs.deliver()
    expected = make()
    expected.set_epoch(7)
    assert take(epochs) == take(expected)


def test_no_samples() -> None:
    """An empty order has no batches, in any epoch."""
    epochs = make(num_samples=0)
    assert take(epochs) == take(epochs) == []
    assert epochs.state()["epoch"] == 0
