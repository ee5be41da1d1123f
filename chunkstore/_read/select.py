"""`Selection`: some samples of a reader, in an order of one's own, read like the whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.schema import Field
from chunkstore._read.batch import Indices, Positions, as_position, as_positions
from chunkstore._read.keys import Keys, find_all
from chunkstore._read.ragged import Ragged
from chunkstore.errors import SampleNotFoundError

_PIECE = 256


class Whole(Protocol):
    """What a selection needs of the reader behind it."""

    @property
    def path(self) -> str: ...
    @property
    def fields(self) -> Mapping[str, Field]: ...
    @property
    def attrs(self) -> dict[str, Any]: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def keys(self) -> Keys | None: ...
    def sample(self, position: int) -> dict[str, Any]: ...
    def batch(
        self, indices: Any, *, fields: Sequence[str] | None = None, out: Mapping[str, NDArray[Any]] | None = None
    ) -> dict[str, NDArray[Any] | Ragged]: ...
    def prefetch(self, indices: Any, *, fields: Sequence[str] | None = None) -> None: ...


class Selection:
    """Samples at `positions` of `reader`: a view that holds nothing but the positions, 8 bytes each.

    Made by `Reader.select`; closes with its reader. Pickles as the reader and the positions.
    """

    def __init__(self, reader: Whole, positions: Positions) -> None:
        self.reader = reader
        self.positions = positions.copy()
        self.positions.flags.writeable = False

    def __reduce__(self) -> tuple[Any, ...]:
        return Selection, (self.reader, self.positions)

    def __len__(self) -> int:
        return len(self.positions)

    def __repr__(self) -> str:
        return f"<Selection of {len(self):,} samples of {self.reader!r}>"

    @property
    def path(self) -> str:
        """Of the container."""
        return self.reader.path

    @property
    def fields(self) -> Mapping[str, Field]:
        """As of the reader."""
        return self.reader.fields

    @property
    def attrs(self) -> dict[str, Any]:
        """As of the reader."""
        return self.reader.attrs

    @property
    def fingerprint(self) -> str:
        """That of the whole container; the positions are not part of it."""
        return self.reader.fingerprint

    @property
    def keys(self) -> list[str] | None:
        """Keys of the selected samples, read now; None where samples have none."""
        keys = self.reader.keys
        return None if keys is None else [keys[position] for position in self.positions.tolist()]

    @overload
    def __getitem__(self, index: int | str) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice | Indices) -> dict[str, NDArray[Any] | Ragged]: ...

    def __getitem__(self, index: Any) -> dict[str, Any]:
        if isinstance(index, slice):
            return self.reader.batch(self.positions[index])
        if isinstance(index, str):
            return self.reader.sample(int(self.positions[self.find([index])[0]]))
        if hasattr(index, "__index__") and getattr(index, "ndim", 0) == 0:
            return self.reader.sample(int(self.positions[as_position(index, len(self))]))
        return self.batch(index)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self), _PIECE):
            piece = self.positions[start : start + _PIECE]
            self.reader.prefetch(piece)
            for position in piece.tolist():
                yield self.reader.sample(position)

    def batch(
        self,
        indices: Indices,
        *,
        fields: Sequence[str] | None = None,
        out: Mapping[str, NDArray[Any]] | None = None,
    ) -> dict[str, NDArray[Any] | Ragged]:
        """As `Reader.batch`; indices count within the selection."""
        return self.reader.batch(self._positions_of(indices), fields=fields, out=out)

    def prefetch(self, indices: Indices, *, fields: Sequence[str] | None = None) -> None:
        """As `Reader.prefetch`; indices count within the selection."""
        self.reader.prefetch(self._positions_of(indices), fields=fields)

    def column(self, name: str) -> NDArray[Any] | Ragged:
        """One field of all selected samples, in their order; a fresh copy."""
        return self.reader.batch(self.positions, fields=[name])[name]

    def find(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Places in the selection of samples with these keys; the first one where a sample is selected twice.

        Costs a sort of the selection.

        Raises:
            SampleNotFoundError: a key is not there, or its sample is not selected.
        """
        wanted = find_all(self.path, self.reader.keys, keys)
        order = np.argsort(self.positions, kind="stable")
        places = np.searchsorted(self.positions, wanted, sorter=order)
        found = order[np.minimum(places, max(len(order) - 1, 0))] if len(order) else np.zeros(len(wanted), np.int64)
        absent = np.flatnonzero(self.positions[found] != wanted) if len(order) else np.arange(len(wanted))
        if absent.size:
            key = self.reader.keys[int(wanted[absent[0]])]  # type: ignore[index]
            raise SampleNotFoundError(f"{self.path}: the sample {key!r} is not in this selection")
        return found.astype(np.int64, copy=False)

    def select(self, indices: Indices) -> Selection:
        """A selection of this selection."""
        return Selection(self.reader, self._positions_of(indices))

    def _positions_of(self, indices: Any) -> Positions:
        return self.positions[as_positions(indices, len(self))]
