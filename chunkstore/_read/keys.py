"""Keys as a sequence over the map, and what is said of a key that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final, overload

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.keys import KeyIndex
from chunkstore._read.batch import as_position
from chunkstore.errors import SampleNotFoundError

_PIECE: Final = 4096
_SUGGEST_AMONG: Final = 2000  # so many keys are compared in a few milliseconds
_NAMED: Final = 3


class Keys(Sequence[str]):
    """All keys in the order of positions. Holds none of them: each is read from the file when it is asked for.

    `keys[i]` costs about 5 µs, `keys.index(key)` and `key in keys` 10 µs whatever their number, iteration 0.3 µs a key.
    """

    def __init__(self, index: KeyIndex, num_samples: int) -> None:
        self._index = index
        self._num_samples = num_samples

    def __len__(self) -> int:
        return self._num_samples

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if not isinstance(index, slice):
            return self._index.text(as_position(index, self._num_samples))
        start, stop, step = index.indices(self._num_samples)
        if step == 1:
            return self._index.texts(start, max(start, stop))
        return [self._index.text(position) for position in range(start, stop, step)]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, self._num_samples, _PIECE):
            yield from self._index.texts(start, min(start + _PIECE, self._num_samples))

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._index.find(key) >= 0

    def index(self, key: str, start: int = 0, stop: int | None = None) -> int:
        """Position of a key.

        Raises:
            ValueError: no sample has it (as of every sequence).
        """
        position = self._index.find(key)
        if position < 0 or position not in range(*slice(start, stop).indices(self._num_samples)):
            raise ValueError(f"{key!r} is not a key")
        return position

    def count(self, key: str) -> int:
        """1 or 0: keys are unique."""
        return int(key in self)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Keys) and other._index is self._index:
            return True
        if not isinstance(other, Sequence) or isinstance(other, str) or len(other) != len(self):
            return NotImplemented
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:_NAMED]))
        return f"Keys([{shown}{', ...' if len(self) > _NAMED else ''}], {len(self)} in all)"


def find_one(path: str, keys: Keys | None, key: str, fields: Collection[str] = ()) -> int:
    """Position of a key; `fields` are names that may be taken for one.

    Raises:
        SampleNotFoundError: no sample has it, or the container has no keys.
    """
    position = -1 if keys is None else keys._index.find(key)
    if position < 0 and key in fields:
        raise SampleNotFoundError(
            f"{path}: no sample has the key {key!r}, it is a field: ds.column({key!r}), or ds[0][{key!r}]"
        )
    if keys is None:
        raise _no_keys(path, key)
    if position < 0:
        raise _missing(path, keys, [key])
    return position


def find_all(path: str, keys: Keys | None, wanted: Any) -> NDArray[np.int64]:
    """Positions of keys; shape (len(wanted),).

    Raises:
        TypeError: `wanted` is one text, or holds something else than texts.
        SampleNotFoundError: the message names those that are missing.
    """
    if isinstance(wanted, (str, bytes)):
        raise TypeError(f"keys: expected a sequence of keys, found one text; find([{wanted!r}]) or ds[{wanted!r}]")
    try:
        each = iter(wanted)  # also of what only has `__getitem__`
    except TypeError:
        raise TypeError(f"keys: expected a sequence of keys, found {type(wanted).__name__}") from None
    wanted = [str(key) if isinstance(key, np.str_) else key for key in each]
    for key in wanted:
        if not isinstance(key, str):
            raise TypeError(f"keys: expected texts, found {type(key).__name__} {key!r:.40}")
    if not wanted:
        return np.zeros(0, np.int64)
    if keys is None:
        raise _no_keys(path, wanted[0])
    positions = keys._index.find_many(wanted)
    if positions.size and positions.min() < 0:
        raise _missing(path, keys, [key for key, at in zip(wanted, positions.tolist(), strict=True) if at < 0])
    return positions


def _no_keys(path: str, key: str) -> SampleNotFoundError:
    return SampleNotFoundError(f"{path}: the samples have no keys, so there is no {key!r:.200}; ask by position: ds[0]")


def _missing(path: str, keys: Keys, missing: list[str]) -> SampleNotFoundError:
    named = ", ".join(f"{key!r:.200}" for key in missing[:_NAMED])
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    what = f"no sample has the key {named}" if len(missing) == 1 else f"no samples have the keys {named}{more}"
    near: list[str] = []
    if len(missing) == 1 and len(keys) <= _SUGGEST_AMONG and len(missing[0]) <= 200:
        near = difflib.get_close_matches(missing[0], list(keys), 1)
    if near == missing:
        hint = f", although one is stored; the table of keys is damaged. Run `chunkstore verify {path}`"
    elif near:
        hint = f"; did you mean {near[0]!r}?"
    else:
        hint = f"; the first key is {keys[0]!r}" if len(keys) else ""
    return SampleNotFoundError(f"{path}: {what}{hint}")
