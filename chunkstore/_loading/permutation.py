"""The permutation behind shuffling: a keyed bijection of [0, N), computed, not stored (spec/order-1.md).

`Permutation.forward` uses only `+ - * & ^ >>` on values in [0, 2^63), so that the same text runs on Python
ints, NumPy int64, torch int64 (CPU or GPU) and TensorFlow int64. `Permutation.__call__` is the same function,
tuned for NumPy. Sections of the specification are cited as "spec 3.2".
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final, SupportsIndex

import numpy as np
import numpy.typing as npt

ALGORITHM: Final = "feistel6x32-1"  # spec/order-1.md: frozen; another function gets another name
MAX_NUM_SAMPLES: Final = 1 << 62  # both halves then fit in 31 bits and no product reaches 2^63
NUM_ROUNDS: Final = 6
MIN_HALF: Final = 16  # spec 3.1: smaller halves leave a bias (measured: up to 3 times, for N = 6)

PURPOSE_FULL: Final = 0
PURPOSE_BLOCKS: Final = 1
PURPOSE_WINDOW: Final = 2

_MASK32: Final = 0xFFFF_FFFF
MASK64: Final = 0xFFFF_FFFF_FFFF_FFFF
_GOLDEN: Final = 0x9E37_79B9_7F4A_7C15
_MULTIPLY_1: Final = 0x21F0_AAAD  # odd and below 2^31: a 32-bit value times it stays below 2^63
_MULTIPLY_2: Final = 0x735A_2D97
_MIX_SHIFT: Final = 15
_FEW: Final = 8  # values that Python ints (5 µs each) walk faster than a pass of ufuncs (25 µs)
CHUNK: Final = 8192  # ids per pass: the scratch arrays (5 x 32 KiB) stay in the second-level cache

IntArray = npt.NDArray[np.int64]
ShiftRight = Callable[[Any, Any], Any]

# 0-d arrays: a ufunc takes them in 0.3 µs, a Python int in 0.65 µs.
_M1 = np.array(_MULTIPLY_1, np.uint32)
_M2 = np.array(_MULTIPLY_2, np.uint32)
_S15 = np.array(_MIX_SHIFT, np.uint32)
_S32 = np.array(32, np.uint64)


def _splitmix64(z: int) -> int:
    """Output function of SplitMix64 for the state `z` before the step; 64 bits in, 64 bits out."""
    z = (z + _GOLDEN) & MASK64
    z = ((z ^ (z >> 30)) * 0xBF58_476D_1CE4_E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB) & MASK64
    return z ^ (z >> 31)


def round_keys(seed: int, epoch: int, purpose: int = PURPOSE_FULL, index: int = 0) -> tuple[int, ...]:
    """Six 32-bit round keys (spec 2).

    Args:
        seed, epoch, purpose, index: each in [0, 2^64).
    """
    h = 0
    for word in (seed, epoch, purpose, index):
        h = _splitmix64(h ^ word)
    words = (_splitmix64((h + i * _GOLDEN) & MASK64) for i in range(NUM_ROUNDS // 2))
    return tuple(half for word in words for half in (word & _MASK32, word >> 32))


class Permutation:
    """A keyed bijection of [0, num_items).

    Immutable, safe from many threads, under 1 kB (3 kB for at most 256 items). Making one costs about 15 µs.

    Attributes:
        num_items: size of the permuted set, 0 to 2^62.
        keys: six round keys in [0, 2^32).
        low_bits: width of the low half in bits, 4 to 31.
        num_high: number of values of the high half, 16 to 2^31. The rounds work in the domain of
            num_high * 2^low_bits >= num_items values; those from num_items on are walked over.
    """

    __slots__ = ("_constants", "_table", "keys", "low_bits", "num_high", "num_items")

    def __init__(
        self, num_items: int, *, seed: int, epoch: int = 0, purpose: int = PURPOSE_FULL, index: int = 0
    ) -> None:
        self.num_items = checked_int("num_items", num_items, 0, MAX_NUM_SAMPLES)
        self.keys = round_keys(seed, epoch, purpose, index)
        self.low_bits = max(MIN_HALF.bit_length() - 1, max(num_items - 1, 0).bit_length() // 2)
        self.num_high = max(MIN_HALF, -(-num_items >> self.low_bits))
        # What the NumPy rounds need, as 0-d arrays of the dtype that each ufunc works in.
        self._constants = (
            tuple(np.array(key, np.uint32) for key in self.keys),
            np.array(self.low_bits, np.uint64),
            np.array((1 << self.low_bits) - 1, np.uint64),
            np.array(32 - self.low_bits, np.uint32),
            np.array(self.num_high, np.uint32),
            np.array(self.num_high, np.uint64),
        )
        self._table: IntArray | None = None

    @property
    def domain(self) -> int:
        """Size of the set on which one pass of the rounds is a bijection; at least `num_items`."""
        return self.num_high << self.low_bits

    # The reference arithmetic, for any array type -------------------------------------------------

    def forward(self, x: Any, shift_right: ShiftRight = operator.rshift) -> Any:
        """One pass of the six rounds on [0, domain), without the walk.

        Args:
            x: Python int or any array of signed 64-bit integers in [0, domain).
            shift_right: arithmetic right shift, for frameworks whose arrays lack `>>`
                (`tf.bitwise.right_shift` with the count as an int64 tensor).
        Returns:
            The same type and shape as `x`. The caller applies `forward` again where the result is not below
            `num_items`, until all are (spec 3.4).
        """
        high, low = shift_right(x, self.low_bits), x & ((1 << self.low_bits) - 1)
        for i in range(0, NUM_ROUNDS, 2):
            over = high + self._add(low, self.keys[i], shift_right) - self.num_high
            high = over + (shift_right(over, 63) & self.num_high)
            low = low ^ self._flip(high, self.keys[i + 1], shift_right)
        return high * (1 << self.low_bits) + low

    def backward(self, y: Any, shift_right: ShiftRight = operator.rshift) -> Any:
        """The inverse of `forward`, on the same types."""
        high, low = shift_right(y, self.low_bits), y & ((1 << self.low_bits) - 1)
        for i in reversed(range(0, NUM_ROUNDS, 2)):
            low = low ^ self._flip(high, self.keys[i + 1], shift_right)
            under = high - self._add(low, self.keys[i], shift_right)
            high = under + (shift_right(under, 63) & self.num_high)
        return high * (1 << self.low_bits) + low

    def _add(self, low: Any, key: int, shift_right: ShiftRight) -> Any:
        return shift_right(_round(low, key, shift_right) * self.num_high, 32)

    def _flip(self, high: Any, key: int, shift_right: ShiftRight) -> Any:
        return shift_right(_round(high, key, shift_right), 32 - self.low_bits)

    # NumPy ----------------------------------------------------------------------------------------

    def __call__(self, positions: npt.ArrayLike) -> IntArray:
        """Where each position goes.

        Args:
            positions: any shape, integers in [0, num_items).
        Returns:
            int64, same shape, a fresh array.
        Raises:
            TypeError: not integers.  IndexError: one is outside [0, num_items).
        About 30 µs for 256 positions, 15 ns each for many. Scratch memory of 200 kB whatever the size.
        """
        return self._apply(checked_positions(positions, self.num_items))

    def inverse(self, ids: npt.ArrayLike) -> IntArray:
        """The position of each item: `inverse(self(p)) == p`. Arguments, errors as for a call; not tuned."""
        x = checked_positions(ids, self.num_items)
        y: IntArray = self.backward(x.reshape(-1))
        while (walking := np.flatnonzero(y >= self.num_items)).size:
            y[walking] = self.backward(y[walking])
        return y.reshape(x.shape)

    def _apply(self, x: IntArray) -> IntArray:
        """`__call__` for positions that are known to be good."""
        if self.num_items <= MIN_HALF * MIN_HALF:
            if self._table is None:
                self._table = self._small_table()
            return self._table[x]
        y = np.empty(x.shape, np.uint64)
        self._pass(x.reshape(-1).view(np.uint64), y.reshape(-1))
        if self.domain != self.num_items:
            self._walk(y.reshape(-1))
        return y.view(np.int64)

    def _walk(self, y: npt.NDArray[np.uint64]) -> None:
        # The domain is larger than num_items by less than 2^low_bits: few values walk, once each.
        walking = np.flatnonzero(y >= self.num_items)
        if walking.size <= _FEW:
            for i in walking.tolist():
                y[i] = self._walk_one(int(y[i]))
            return
        while walking.size:
            again = np.empty(walking.size, np.uint64)
            self._pass(y[walking], again)
            y[walking] = again
            walking = walking[again >= self.num_items]

    def _walk_one(self, y: int) -> int:
        while y >= self.num_items:
            y = self.forward(y)
        return y

    def _pass(self, x: npt.NDArray[np.uint64], y: npt.NDArray[np.uint64]) -> None:
        """y = forward(x), both of shape (n,); 57 in-place ufuncs on each cache-sized piece."""
        scratch = [np.empty(min(x.size, CHUNK), np.uint32) for _ in range(4)]
        for start in range(0, x.size, CHUNK):
            piece = x[start : start + CHUNK]
            if piece.size < scratch[0].size:
                scratch = [array[: piece.size] for array in scratch]
            self._pass_piece(piece, y[start : start + CHUNK], *scratch)

    def _pass_piece(
        self,
        x: npt.NDArray[np.uint64],
        wide: npt.NDArray[np.uint64],
        high: npt.NDArray[np.uint32],
        low: npt.NDArray[np.uint32],
        t: npt.NDArray[np.uint32],
        u: npt.NDArray[np.uint32],
    ) -> None:
        keys, low_bits, low_mask, flip_shift, num_high, num_high_64 = self._constants
        np.copyto(high, np.right_shift(x, low_bits, out=wide), casting="unsafe")
        np.copyto(low, np.bitwise_and(x, low_mask, out=wide), casting="unsafe")
        for i in range(0, NUM_ROUNDS, 2):
            _round_u32(low, keys[i], t, u)
            np.copyto(wide, t)
            np.right_shift(np.multiply(wide, num_high_64, out=wide), _S32, out=wide)
            np.copyto(t, wide, casting="unsafe")
            np.add(high, t, out=high)
            # high - num_high wraps to a large value where no reduction is due.
            np.minimum(high, np.subtract(high, num_high, out=t), out=high)
            _round_u32(high, keys[i + 1], t, u)
            np.bitwise_xor(low, np.right_shift(t, flip_shift, out=t), out=low)
        np.copyto(wide, high)
        np.left_shift(wide, low_bits, out=wide)
        np.bitwise_or(wide, low, out=wide)

    def _small_table(self) -> IntArray:
        """The permutation of at most 256 items. Cycles are disjoint: all walks together take < 256 steps."""
        step = np.empty(self.domain, np.uint64)
        self._pass(np.arange(self.domain, dtype=np.uint64), step)
        jump = step.tolist()
        table = jump[: self.num_items]
        for x, y in enumerate(table):
            while y >= self.num_items:
                y = jump[y]
            table[x] = y
        return np.array(table, np.int64)


def _round(half: Any, key: int, shift_right: ShiftRight) -> Any:
    """The round function: a half and a key give 32 bits, of which the upper ones are used (spec 3.2)."""
    t = ((half ^ key) * _MULTIPLY_1) & _MASK32
    t = t ^ shift_right(t, _MIX_SHIFT)
    return (t * _MULTIPLY_2) & _MASK32


def _round_u32(
    half: npt.NDArray[np.uint32],
    key: npt.NDArray[np.uint32],
    t: npt.NDArray[np.uint32],
    u: npt.NDArray[np.uint32],
) -> None:
    """t = _round(half, key): uint32 arithmetic wraps by itself. Overwrites u."""
    np.multiply(np.bitwise_xor(half, key, out=t), _M1, out=t)
    np.bitwise_xor(t, np.right_shift(t, _S15, out=u), out=t)
    np.multiply(t, _M2, out=t)


def short_repr(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def checked_int(name: str, value: SupportsIndex, low: int, high: int) -> int:
    """`value` as a Python int in [low, high]; NumPy integers are fine, bool is a mistake."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected an integer, found {short_repr(value)} ({type(value).__name__})")
    if not low <= number <= high:
        raise ValueError(f"{name}: expected {low} to {high}, found {number}")
    return number


def checked_positions(positions: npt.ArrayLike, stop: int) -> IntArray:
    array = np.asarray(positions)
    if array.size == 0:
        return np.empty(array.shape, np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"positions: expected integers, found dtype {array.dtype}")
    if array.min() < 0 or array.max() >= stop:
        bad = array[(array < 0) | (array >= stop)].flat[0]
        raise IndexError(f"position {bad} is outside [0, {stop})")
    return np.ascontiguousarray(array, np.int64).reshape(array.shape)
