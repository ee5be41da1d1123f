"""Which samples come next: a function of (seed, epoch, position), never a list.

    position in the epoch --permutation, blocks--> sample id       (spec/order-1.md, sections 2 to 5)
    (epoch, samples seen, rank) --arithmetic-----> positions       (sections 6 and 7)

Nothing here grows with the number of samples, so that starting, seeking and resuming cost the same for 10^3
and 10^12 of them.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from chunkstore._format.checksum import sum64
from chunkstore._format.lookup import distinct
from chunkstore._loading.permutation import (
    ALGORITHM,
    CHUNK,
    MASK64,
    MAX_NUM_SAMPLES,
    PURPOSE_BLOCKS,
    PURPOSE_FULL,
    PURPOSE_WINDOW,
    IntArray,
    Permutation,
    checked_int,
    checked_positions,
    short_repr,
)
from chunkstore.errors import StateError

STATE_VERSION: Final = 1
_MAX_STATE_TEXT: Final = 256  # keeps a state below 1 kB


@lru_cache(maxsize=64)
def _permutation(num_items: int, seed: int, epoch: int, purpose: int, index: int) -> Permutation:
    return Permutation(num_items, seed=seed, epoch=epoch, purpose=purpose, index=index)


# Block shuffle (spec 5) ---------------------------------------------------------------------------


class _EqualLayout:
    """Where permuted blocks of `size` samples lie in one epoch; only the slot of the last, short one needs knowing."""

    def __init__(self, num_samples: int, size: int, permutation: Permutation) -> None:
        num_blocks = permutation.num_items
        self._permutation = permutation
        self._size, self._gap = size, num_blocks * size - num_samples
        self._short_slot = int(permutation.inverse(num_blocks - 1))
        self._after_short = (self._short_slot + 1) * self._size - self._gap

    def slot_start(self, slots: IntArray) -> IntArray:
        return slots * self._size - self._gap * (slots > self._short_slot)

    def slot_of(self, positions: IntArray) -> IntArray:
        return (positions + self._gap * (positions >= self._after_short)) // self._size

    def first_id(self, slots: IntArray) -> IntArray:
        return self._permutation._apply(slots) * self._size


class _TableLayout:
    """Where permuted blocks of any size, e.g. shards, lie in one epoch: 16 bytes and about 15 ns a block to make."""

    def __init__(self, starts: IntArray, permutation: Permutation) -> None:
        blocks = permutation._apply(np.arange(starts.size - 1))
        self._first_ids = starts[blocks]
        self._slot_starts = np.concatenate(([0], np.cumsum(starts[blocks + 1] - self._first_ids)))

    def slot_start(self, slots: IntArray) -> IntArray:
        return self._slot_starts[slots]

    def slot_of(self, positions: IntArray) -> IntArray:
        return np.searchsorted(self._slot_starts, positions, side="right") - 1

    def first_id(self, slots: IntArray) -> IntArray:
        return self._first_ids[slots]


_Layout = _EqualLayout | _TableLayout


class Cursor(NamedTuple):
    """How far training has come: `samples_seen` positions of `epoch`, counted over all ranks."""

    epoch: int
    samples_seen: int


@dataclass(frozen=True, eq=False)
class Order:
    """The order of the samples for one rank, as pure functions of (epoch, position).

    Immutable, safe from many threads, picklable. Memory and start-up time do not depend on `num_samples`
    (`block_starts` costs 24 bytes a block and 15 ns a block and epoch).

    Attributes:
        num_samples: N, 0 to 2^62.
        seed: 0 to 2^64 - 1; equal seeds give equal orders everywhere.
        shuffle: False (0, 1, 2, ...), "full" or True (a permutation of all samples) or "block" (whole blocks
            are permuted, then the samples inside each window of `window` consecutive permuted blocks).
        block_size: for "block": samples a block, the last may be shorter. Or
        block_starts: shape (num_blocks + 1,), from 0 to N, never falling: e.g. the shards of a container.
        window: for "block": how many blocks are mixed, 1 or more.
        rank, world_size: which of how many processes; each takes its own part of every global batch.
        batch_size: samples a batch and rank. A step uses batch_size * world_size positions.
        drop_last: leave out the tail that does not fill a whole step.
        pad: what happens to that tail otherwise. False: it is shared out, each sample once; ranks differ by
            at most one sample, and a tail of fewer samples than ranks leaves the last ranks without a batch.
            "even": ranks take equally many; the missing (fewer than world_size) come again from the start of
            the epoch. Use it where ranks must take equally many steps. "full": also the last batch has
            batch_size samples, filled in the same way.
        fingerprint: identity of the dataset, written into the state; at most 256 printable ASCII characters.
    Raises:
        TypeError, ValueError: a parameter is not as above; the message names it.
    """

    num_samples: int
    _: KW_ONLY
    seed: int = 0
    shuffle: bool | Literal["full", "block"] = "full"
    block_size: int | None = None
    block_starts: IntArray | None = None
    window: int = 16
    rank: int = 0
    world_size: int = 1
    batch_size: int = 1
    drop_last: bool = False
    pad: Literal[False, "even", "full"] = False
    fingerprint: str = ""
    # The layout of the epoch that was asked for last; one tuple, so that threads see it whole or not at all.
    _last_layout: list[tuple[int, _Layout]] = field(init=False, repr=False, default_factory=list)

    def __post_init__(self) -> None:
        for name, low, high in (
            ("num_samples", 0, MAX_NUM_SAMPLES),
            ("seed", 0, MASK64),
            ("window", 1, MAX_NUM_SAMPLES),
            ("world_size", 1, 1 << 31),
            ("batch_size", 1, 1 << 31),
        ):
            self._set(name, checked_int(name, getattr(self, name), low, high))
        self._set("rank", checked_int("rank", self.rank, 0, self.world_size - 1))
        text: object = self.fingerprint
        if not isinstance(text, str) or len(text) > _MAX_STATE_TEXT or not re.fullmatch("[ -~]*", text):
            raise ValueError(f"fingerprint: expected at most {_MAX_STATE_TEXT} printable ASCII characters")
        self._check_modes()
        if self.shuffle == "block":
            self._check_blocks()

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_modes(self) -> None:
        if self.shuffle is True:
            self._set("shuffle", "full")
        if not _is_one_of(self.shuffle, False, "full", "block"):
            raise ValueError(f"shuffle: expected False, True, 'full' or 'block', found {self.shuffle!r}")
        if not _is_one_of(self.pad, False, "even", "full"):
            raise ValueError(f"pad: expected False, 'even' or 'full', found {self.pad!r}")
        if not isinstance(self.drop_last, bool):
            raise TypeError(f"drop_last: expected True or False, found {self.drop_last!r}")
        if self.drop_last and self.pad:
            raise ValueError(f"pad: expected False with drop_last=True, found {self.pad!r}: no tail is left")

    def _check_blocks(self) -> None:
        if (self.block_size is None) == (self.block_starts is None):
            raise ValueError("shuffle='block' needs either block_size or block_starts")
        if self.block_size is not None:
            self._set("block_size", checked_int("block_size", self.block_size, 1, MAX_NUM_SAMPLES))
            return
        starts = np.array(self.block_starts)
        good = starts.ndim == 1 and starts.size >= 1 and starts.dtype.kind in "iu"
        if not good or starts[0] != 0 or starts[-1] != self.num_samples or np.any(starts[1:] < starts[:-1]):
            raise ValueError(
                f"block_starts: expected integers that never fall, 0 to {self.num_samples} (num_samples), "
                f"one more than there are blocks; found shape {starts.shape}, {starts.dtype}"
            )
        starts = starts.astype(np.int64)
        starts.flags.writeable = False
        self._set("block_starts", starts)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last_layout": []}

    # Positions to samples -------------------------------------------------------------------------

    def ids(self, positions: npt.ArrayLike, epoch: int) -> IntArray:
        """The samples at these positions of an epoch.

        Args:
            positions: any shape, integers in [0, num_samples), any order.
            epoch: 0 to 2^64 - 1.
        Returns:
            int64 of the same shape, in [0, num_samples).
        Raises:
            TypeError: not integers.  IndexError: one is outside [0, num_samples).
        """
        return self._ids(checked_positions(positions, self.num_samples), _checked_epoch(epoch))

    def _ids(self, x: IntArray, epoch: int) -> IntArray:
        if self.shuffle is False or not x.size:
            return x.copy()
        if self.shuffle == "full":
            return _permutation(self.num_samples, self.seed, epoch, PURPOSE_FULL, 0)._apply(x)
        layout = self._layout(epoch)
        mixed = self._in_windows(x, layout, epoch)
        slots = layout.slot_of(mixed)
        return layout.first_id(slots) + (mixed - layout.slot_start(slots))

    @property
    def _num_blocks(self) -> int:
        if self.block_starts is not None:
            return self.block_starts.size - 1
        assert self.block_size is not None
        return -(-self.num_samples // self.block_size)

    def _layout(self, epoch: int) -> _Layout:
        for known_epoch, layout in self._last_layout:
            if known_epoch == epoch:
                return layout
        made = self._make_layout(_permutation(self._num_blocks, self.seed, epoch, PURPOSE_BLOCKS, 0))
        self._last_layout[:] = [(epoch, made)]
        return made

    def _make_layout(self, permutation: Permutation) -> _Layout:
        if self.block_starts is not None:
            return _TableLayout(self.block_starts, permutation)
        assert self.block_size is not None
        return _EqualLayout(self.num_samples, self.block_size, permutation)

    def _in_windows(self, x: IntArray, layout: _Layout, epoch: int) -> IntArray:
        """Permute each position inside its window. A batch lies in one or two windows: a short loop."""
        windows = layout.slot_of(x) // self.window
        out = np.empty_like(x)
        for window in distinct(windows).tolist():
            first = window * self.window
            bounds = np.array([first, min(first + self.window, self._num_blocks)])
            start, stop = layout.slot_start(bounds).tolist()
            inside = windows == window
            permutation = _permutation(stop - start, self.seed, epoch, PURPOSE_WINDOW, window)
            out[inside] = start + permutation._apply(x[inside] - start)
        return out

    # Batches of this rank -------------------------------------------------------------------------

    @property
    def step_size(self) -> int:
        """Positions that one step uses, over all ranks."""
        return self.batch_size * self.world_size

    def num_batches(self, start: int = 0) -> int:
        """Batches of this rank from position `start` to the end of an epoch."""
        num_whole, tail = divmod(self.num_samples - self._checked_start(start), self.step_size)
        first, stop = self._tail_share(tail)
        return num_whole + (stop > first)

    def batch_range(self, step: int, start: int = 0) -> tuple[int, int]:
        """Positions [first, stop) of one batch; from N = num_samples on they mean `position % N` (padding).

        Args:
            step: 0 to num_batches(start) - 1, counted from `start`.
            start: samples of the epoch that were seen before step 0, by whatever ranks there were then.
        Raises:
            IndexError: there is no such step.
        """
        step = operator.index(step)
        num_whole, tail = divmod(self.num_samples - self._checked_start(start), self.step_size)
        base = start + step * self.step_size
        if 0 <= step < num_whole:
            return base + self.rank * self.batch_size, base + (self.rank + 1) * self.batch_size
        first, stop = self._tail_share(tail)
        if step != num_whole or first == stop:
            num = self.num_batches(start)
            raise IndexError(f"step {step}: this rank has {num} batches from position {start}")
        return base + first, base + stop

    def batch(self, step: int, epoch: int, start: int = 0) -> IntArray:
        """Sample ids of one batch: int64, shape (at most batch_size,), a fresh array. O(1) in `step`."""
        first, stop = self.batch_range(step, start)
        return self._ids(np.arange(first, stop) % self.num_samples, _checked_epoch(epoch))

    def batches(self, epoch: int, start: int = 0, most: int | None = None) -> Iterator[IntArray]:
        """All batches from `start` to the end of the epoch, or the first `most` of them, each as from `batch`.

        Computed some thousand ids at a time, which costs a tenth; a batch shares memory with its neighbours.
        """
        epoch, start = _checked_epoch(epoch), self._checked_start(start)
        num = self.num_batches(start) if most is None else min(most, self.num_batches(start))
        num_whole = min(num, (self.num_samples - start) // self.step_size)
        group = max(1, CHUNK // self.batch_size)
        for step in range(0, num_whole, group):
            mine = np.arange(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
            steps = np.arange(step, min(step + group, num_whole)).reshape(-1, 1)
            yield from self._ids(start + steps * self.step_size + mine, epoch)
        for step in range(num_whole, num):
            yield self.batch(step, epoch, start)

    def _tail_share(self, tail: int) -> tuple[int, int]:
        """This rank's part of the last `tail` positions, counted from their first; may reach beyond them."""
        if self.drop_last or not tail:
            return 0, 0
        if self.pad:
            share = self.batch_size if self.pad == "full" else -(-tail // self.world_size)
            return self.rank * share, (self.rank + 1) * share
        # Rounded up, so that rank 0, which usually saves the state, always has a part.
        first, stop = (-(-(rank * tail) // self.world_size) for rank in (self.rank, self.rank + 1))
        return first, stop

    def _checked_start(self, start: int) -> int:
        return checked_int("start", start, 0, self.num_samples)

    # State ----------------------------------------------------------------------------------------

    def cursor(self, epoch: int, num_batches: int, start: int = 0) -> Cursor:
        """Where training stands after `num_batches` batches of this rank from position `start` of `epoch`.

        The end of an epoch is the begin of the next. All ranks agree, but for the last step with pad=False
        where the tail is smaller than world_size: keep the state of rank 0, which takes part in every step.
        """
        epoch = _checked_epoch(epoch)
        num_total = self.num_batches(start)
        num_batches = checked_int("num_batches", num_batches, 0, num_total)
        if num_batches and num_batches == num_total:
            return Cursor(epoch + 1, 0)
        return Cursor(epoch, start + num_batches * self.step_size)

    def state(self, cursor: Cursor) -> dict[str, Any]:
        """A JSON-able dict of under 1 kB from which any number of ranks can go on (spec 7)."""
        state: dict[str, Any] = {"version": STATE_VERSION, "algorithm": ALGORITHM}
        state |= self.identity()
        state["epoch"] = _checked_epoch(cursor.epoch)
        state["samples_seen"] = checked_int("samples_seen", cursor.samples_seen, 0, self.num_samples)
        return state

    def load_state(self, state: Mapping[str, Any]) -> Cursor:
        """Check a state and return where to go on: `batches(cursor.epoch, cursor.samples_seen)`.

        batch_size, rank, world_size, drop_last and pad may differ from those that saved it. Takes 10 µs.

        Raises:
            StateError: it belongs to another dataset, seed, shuffle, version or algorithm, or is no state at
                all; the message names the parameter. Nothing was changed.
        """
        if not isinstance(state, Mapping):
            raise StateError(f"state: expected a dict from state(), found {type(state).__name__}")
        expected = {"version": STATE_VERSION, "algorithm": ALGORITHM} | self.identity()
        for name, value in expected.items():
            _check_state_value(state, name, value)
        epoch = _state_int(state, "epoch", MASK64)
        samples_seen = _state_int(state, "samples_seen", self.num_samples)
        if samples_seen and samples_seen == self.num_samples:
            return Cursor(epoch + 1, 0)
        return Cursor(epoch, samples_seen)

    def identity(self) -> dict[str, Any]:
        """What must be equal for a position to mean the same sample, in the order in which it is compared."""
        identity: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "num_samples": self.num_samples,
            "seed": self.seed,
            "shuffle": self.shuffle,
        }
        if self.block_starts is not None and self.shuffle == "block":
            data = np.asarray(self.block_starts, "<i8").tobytes()
            identity |= {"window": self.window, "block_starts": f"{sum64(data):016x}"}
        elif self.shuffle == "block":
            identity |= {"window": self.window, "block_size": self.block_size}
        return identity


# Checks -------------------------------------------------------------------------------------------

_STATE_HINTS: Final = {
    "version": "it was saved by another release of chunkstore; use that release, or start a new epoch",
    "algorithm": "it was saved with another shuffling algorithm; use that release, or start a new epoch",
    "fingerprint": "it belongs to another dataset, or the container changed; open the one it was saved with",
    "num_samples": "it belongs to another dataset or selection; open the one it was saved with",
}


def _is_one_of(value: object, *choices: object) -> bool:
    """Equality of value and type: 0 is not False here."""
    return any(type(value) is type(choice) and value == choice for choice in choices)


def _check_state_value(state: Mapping[str, Any], name: str, expected: object) -> None:
    if name not in state:
        raise StateError(f"state: {name!r} is missing; expected a dict from state()")
    found = state[name]
    if type(found) is not type(expected) or found != expected:
        hint = _STATE_HINTS.get(name, f"pass the same {name} as the run that saved the state")
        raise StateError(f"state: {name} is {short_repr(found)}, expected {short_repr(expected)}: {hint}")


def _state_int(state: Mapping[str, Any], name: str, high: int) -> int:
    if name not in state:
        raise StateError(f"state: {name!r} is missing; expected a dict from state()")
    value = state[name]
    if type(value) is not int or not 0 <= value <= high:
        raise StateError(f"state: {name} is {short_repr(value)}, expected an integer from 0 to {high}")
    return value


def _checked_epoch(epoch: int) -> int:
    return checked_int("epoch", epoch, 0, MASK64)
