"""PyTorch: a container in a `DataLoader`, or in the faster thread `Loader`, on the device where it is wanted.

    from chunkstore.torch import Dataset, Loader

    for batch in DataLoader(Dataset("train.cks"), batch_size=256, shuffle=True): ...
    for batch in Loader("train.cks", 256, shuffle=True, device="cuda"): ...

Source, in the order of the data: `_torch/convert.py` (arrays to tensors), `collate.py` (batches that need no
collation), `dataset.py`, `sampler.py` (order and ranks), `transfer.py` (pinned memory, streams, events), `loader.py`
(threads), `prefetch.py` (other loaders).
"""

from __future__ import annotations

try:
    import torch as _torch
except ImportError as _error:
    from chunkstore.errors import MissingExtraError as _MissingExtraError

    raise _MissingExtraError("chunkstore.torch needs PyTorch: pip install 'chunkstore-arrays[torch]'") from _error

from chunkstore._torch.convert import RaggedTensors
from chunkstore._torch.dataset import Dataset
from chunkstore._torch.loader import Loader, LoaderStats
from chunkstore._torch.prefetch import prefetch
from chunkstore._torch.sampler import BatchSampler

__all__ = ["BatchSampler", "Dataset", "Loader", "LoaderStats", "RaggedTensors", "prefetch"]

del _torch
