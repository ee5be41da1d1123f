"""Where the samples come from: a container, or a selection of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chunkstore._format.schema import Field
from chunkstore._loading.source import Rows, chosen_fields, open_rows
from chunkstore._read.checked import Verify
from chunkstore._read.many import Paths
from chunkstore._read.ragged import Ragged
from chunkstore._read.reader import Reader
from chunkstore._read.select import Selection
from chunkstore._storage.source import Backend
from chunkstore._tf.columns import Column, RaggedMode


class Samples:
    """A reader and, for a selection, the positions in it.

    Attributes:
        rows: the reader or the selection.
        reader: what reads; opened here where a path was given, and then closed with the last use.
        positions: int64, shape (N,), of a selection; None for a whole container.
    """

    def __init__(
        self,
        source: Paths | Rows,
        fields: Sequence[str] | None,
        backend: Backend,
        verify: Verify,
    ) -> None:
        self.rows = open_rows(source, fields, backend, verify)
        self.positions: NDArray[np.int64] | None = None
        if isinstance(self.rows, Selection):
            self.positions = self.rows.positions
            reader = self.rows.reader
            assert isinstance(reader, Reader)
            self.reader = reader
        else:
            self.reader = self.rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def path(self) -> str:
        """Of the container."""
        return self.reader.path

    @property
    def fields(self) -> Mapping[str, Field]:
        """Of the reader."""
        return self.reader.fields

    def mean_nbytes(self, names: Sequence[str]) -> int:
        """Stored bytes of these fields of one sample, on average over the container."""
        stored = sum(int(self.reader._field_index(name).block_nbytes.sum()) for name in names)
        return stored // max(1, len(self.reader))

    def batch(
        self, ids: NDArray[np.int64], names: Sequence[str], out: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any] | Ragged]:
        """As `Reader.batch`, of ids in the selection."""
        return self.rows.batch(ids, fields=names, out=out)

    def read_positions(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions in the container of ids in the selection."""
        return ids if self.positions is None else self.positions[ids]


def columns_of(
    rows: Samples, fields: Sequence[str] | None, ragged: RaggedMode, pad_value: Any, single: bool
) -> list[Column]:
    """The columns of a dataset, in the order of `fields` or of the container; `single`: of samples, not of batches.

    Raises:
        ValueError: an unknown field.  TypeError: TensorFlow cannot carry a dtype.
    """
    known, names = rows.fields, chosen_fields(rows.rows, fields)
    if not names:
        raise ValueError("fields: expected at least one name, found none")
    return [Column(known[name], rows.path, names, ragged, pad_value, single) for name in dict.fromkeys(names)]
