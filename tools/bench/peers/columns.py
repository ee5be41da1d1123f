"""Formats that hold Arrow tables: Hugging Face datasets and Lance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from tools.bench.peers.base import Array, Peer, Positions, by_blocks

_WRITE_NBYTES = 16 << 20


class _ArrowPeer(Peer):
    """Rows as one column of fixed-size lists of uint8."""

    def _tables(self, blocks: Iterable[Array]) -> Iterator[Any]:
        arrow = self.libs[0]
        per_block = max(1, _WRITE_NBYTES // self.layout.row_nbytes)
        for block in by_blocks(blocks, per_block):
            column = arrow.FixedSizeListArray.from_arrays(arrow.array(block.reshape(-1)), self.layout.row_nbytes)
            yield arrow.record_batch([column], names=["data"])

    def _schema(self) -> Any:
        arrow = self.libs[0]
        return arrow.schema([("data", arrow.list_(arrow.uint8(), self.layout.row_nbytes))])

    def _rows(self, column: Any) -> Array:
        """The rows of a column; one copy where it has several pieces, else a view."""
        whole: Array = column.combine_chunks().flatten().to_numpy(zero_copy_only=True)
        return whole.reshape(-1, *self.layout.shape)

    def row(self, position: int) -> Array:
        return self._select([position])[0]  # type: ignore[no-any-return]

    def _select(self, positions: list[int]) -> Array:
        raise NotImplementedError


class HuggingFace(_ArrowPeer):
    """A saved `datasets.Dataset`, mapped."""

    name, distribution = "HF datasets", "datasets"
    modules = ("pyarrow", "datasets")
    batch_call = 'ds.with_format("arrow")[indices], combine_chunks'
    unsupported: ClassVar[Mapping[str, str]] = {"verify": "no checksums of saved data"}

    _data: Any

    def write(self, blocks: Iterable[Array]) -> None:
        table = self.libs[0].Table.from_batches(list(self._tables(blocks)), self._schema())
        self.libs[1].disable_progress_bars()
        self.libs[1].Dataset(table).save_to_disk(str(self.path))

    def open(self) -> None:
        self._data = self.libs[1].load_from_disk(str(self.path)).with_format("arrow")

    def batch(self, positions: Positions, out: Array) -> Array:
        return self._select(positions.tolist())

    def _select(self, positions: list[int]) -> Array:
        return self._rows(self._data[positions].column("data"))

    def span(self, start: int, stop: int, out: Array) -> Array:
        np.copyto(out, self._rows(self._data[start:stop].column("data")))
        return out


class Lance(_ArrowPeer):
    """A Lance data set."""

    name, distribution = "Lance", "pylance"
    modules = ("pyarrow", "lance")
    batch_call = "dataset.take(sorted indices), put back in order"
    unsupported: ClassVar[Mapping[str, str]] = {"verify": "no checksums of the data"}

    _data: Any

    def write(self, blocks: Iterable[Array]) -> None:
        reader = self.libs[0].RecordBatchReader.from_batches(self._schema(), self._tables(blocks))
        self.libs[1].write_dataset(reader, str(self.path))

    def open(self) -> None:
        self._data = self.libs[1].dataset(str(self.path))

    def _select(self, positions: list[int]) -> Array:
        return self._rows(self._data.take(positions, columns=["data"]).column("data"))

    def batch(self, positions: Positions, out: Array) -> Array:
        order = np.argsort(positions)
        out[order] = self._select(positions[order].tolist())
        return out

    def span(self, start: int, stop: int, out: Array) -> Array:
        raise NotImplementedError("Lance scans; it has no span")

    def scan(self) -> Iterator[Array]:
        for batch in self._data.to_batches(columns=["data"]):
            yield batch.column("data").flatten().to_numpy(zero_copy_only=True).reshape(-1, *self.layout.shape)
