"""Other formats doing the same work, each through its own best batch call."""

from __future__ import annotations

from collections.abc import Mapping

from tools.bench.peers.arrays import Hdf5, Memmap, NpyDirectory, Zarr
from tools.bench.peers.base import Peer
from tools.bench.peers.columns import HuggingFace, Lance
from tools.bench.peers.own import Chunkstore
from tools.bench.peers.records import ArrayRecord, Bagz, Lmdb, WebDataset

PEERS: Mapping[str, type[Peer]] = {
    "chunkstore": Chunkstore,
    "npy": NpyDirectory,
    "memmap": Memmap,
    "h5py": Hdf5,
    "zarr": Zarr,
    "lmdb": Lmdb,
    "bagz": Bagz,
    "arrayrecord": ArrayRecord,
    "datasets": HuggingFace,
    "lance": Lance,
    "webdataset": WebDataset,
}


def packages() -> list[str]:
    """Distributions whose versions belong in a report."""
    return sorted({peer.distribution for peer in PEERS.values()})
