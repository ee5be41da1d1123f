"""Formats that hold records of bytes: LMDB, bagz, ArrayRecord, WebDataset."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar

from tools.bench.inputs import memory_for
from tools.bench.peers.base import SCAN_ROWS, Array, Peer, Positions, each_row

_LARGE_ROW_NBYTES = 16 << 10


class Lmdb(Peer):
    """One record per row, integer keys, written in one sorted transaction."""

    name, distribution = "LMDB", "lmdb"
    modules = ("lmdb",)
    batch_call = "get each in one transaction with buffers"
    unsupported: ClassVar[Mapping[str, str]] = {"verify": "no checksums"}

    _environment: Any
    _transaction: Any

    def write(self, blocks: Iterable[Array]) -> None:
        map_nbytes = 3 * self.layout.num * (self.layout.row_nbytes + 4096) + (64 << 20)
        environment = self.libs[0].open(str(self.path), subdir=False, map_size=map_nbytes, lock=False)
        with environment.begin(write=True) as transaction, transaction.cursor() as cursor:
            records = ((self._key(position), row.tobytes()) for position, row in enumerate(each_row(blocks)))
            cursor.putmulti(records, append=True)
        environment.close()

    @staticmethod
    def _key(position: int) -> bytes:
        return position.to_bytes(8, "big")

    def open(self) -> None:
        # no read-ahead: it is for reading in order, and makes cold random reads slow
        options = {"subdir": False, "readonly": True, "lock": False, "readahead": False}
        self._environment = self.libs[0].open(str(self.path), **options)
        self._transaction = self._environment.begin(buffers=True)

    def close(self) -> None:
        # an environment may be open but once in a process
        self._transaction.abort()
        self._environment.close()

    def row(self, position: int) -> Array:
        return self.as_row(self._transaction.get(position.to_bytes(8, "big")))

    def batch(self, positions: Positions, out: Array) -> Array:
        keys = positions.astype(">u8").tobytes()
        get = self._transaction.get
        return self.gather([get(keys[at : at + 8]) for at in range(0, len(keys), 8)], out)

    def span(self, start: int, stop: int, out: Array) -> Array:
        cursor = self._transaction.cursor()
        cursor.set_key(self._key(start))
        records = cursor.iternext(keys=False, values=True)
        return self.gather(itertools.islice(records, stop - start), out)


class Bagz(Peer):
    """One uncompressed record per row."""

    name, distribution = "bagz", "bagz"
    modules = ("bagz",)
    batch_call = "Reader.read_indices, one thread; reader[i] each where rows are large; 100 threads where cold"
    unsupported: ClassVar[Mapping[str, str]] = {"verify": "no checksums"}

    _reader: Any

    def write(self, blocks: Iterable[Array]) -> None:
        bagz = self.libs[0]
        options = bagz.Writer.Options(compression=bagz.CompressionNone())
        with bagz.Writer(str(self.path), options) as writer:
            for row in each_row(blocks):
                writer.write(row.tobytes())

    def open(self) -> None:
        self._reader = self._open(max_parallelism=1)

    def _open(self, max_parallelism: int) -> Any:
        bagz = self.libs[0]
        options = bagz.Reader.Options(compression=bagz.CompressionNone(), max_parallelism=max_parallelism)
        return bagz.Reader(str(self.path), options)

    @cached_property
    def _parallel(self) -> Any:
        return self._open(max_parallelism=100)

    def row(self, position: int) -> Array:
        return self.as_row(self._reader[position])

    def batch(self, positions: Positions, out: Array) -> Array:
        if self.layout.row_nbytes < _LARGE_ROW_NBYTES:
            return self.gather(self._reader.read_indices(positions), out)
        return self.gather((self._reader[position] for position in positions.tolist()), out)

    def cold_batch(self, positions: Positions, out: Array) -> Array:
        return self.gather(self._parallel.read_indices(positions), out)

    def span(self, start: int, stop: int, out: Array) -> Array:
        return self.gather(self._reader.read_range(start, stop - start), out)


class ArrayRecord(Peer):
    """One uncompressed record per chunk, as its authors advise for random access."""

    name, distribution = "ArrayRecord", "array-record"
    modules = ("array_record.python.array_record_module",)
    batch_call = "ArrayRecordReader.read(list)"

    _reader: Any

    def write(self, blocks: Iterable[Array]) -> None:
        writer = self.libs[0].ArrayRecordWriter(str(self.path), "group_size:1,uncompressed")
        for row in each_row(blocks):
            writer.write(row.tobytes())
        writer.close()

    def open(self) -> None:
        # what the documentation gives for random access
        options = "readahead_buffer_size:0,max_parallelism:0"
        self._reader = self.libs[0].ArrayRecordReader(str(self.path), options)

    def row(self, position: int) -> Array:
        return self.as_row(self._reader.read([position])[0])

    def batch(self, positions: Positions, out: Array) -> Array:
        return self.gather(self._reader.read(positions.tolist()), out)

    def span(self, start: int, stop: int, out: Array) -> Array:
        return self.gather(self._reader.read(start, stop), out)

    def verify(self) -> None:
        # reading checks the checksum of each chunk
        for start in range(0, self.layout.num, SCAN_ROWS):
            self._reader.read(start, min(start + SCAN_ROWS, self.layout.num))


class WebDataset(Peer):
    """A tar file with one member per row, read as a stream."""

    name, distribution = "WebDataset", "webdataset"
    modules = ("webdataset",)
    batch_call = "none: a tar file is read in order"
    unsupported: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("single", "batch", "cold"), "a stream, no random access"
    ) | {"verify": "no checksums of the data"}

    _stream: Any

    def write(self, blocks: Iterable[Array]) -> None:
        with self.libs[0].TarWriter(str(self.path)) as writer:
            for position, row in enumerate(each_row(blocks)):
                writer.write({"__key__": f"{position:07d}", "bin": row.tobytes()})

    def open(self) -> None:
        dataset = self.libs[0].WebDataset(str(self.path), shardshuffle=False)
        self._stream = dataset.to_tuple("bin")

    def row(self, position: int) -> Array:
        if position:
            raise NotImplementedError(self.unsupported["single"])
        return self.as_row(next(iter(self._stream))[0])

    def batch(self, positions: Positions, out: Array) -> Array:
        raise NotImplementedError(self.unsupported["batch"])

    def span(self, start: int, stop: int, out: Array) -> Array:
        raise NotImplementedError(self.unsupported["batch"])

    def scan(self) -> Iterator[Array]:
        out = memory_for(SCAN_ROWS, self.layout.shape)
        records = (record for (record,) in self._stream)
        while some := list(itertools.islice(records, SCAN_ROWS)):
            yield self.gather(some, out[: len(some)])
