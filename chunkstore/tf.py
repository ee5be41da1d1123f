"""TensorFlow: a container as a `tf.data.Dataset`.

    from chunkstore.tf import dataset

    train = dataset("train.cks", 256, shuffle=True).map(lambda batch: (batch["image"], batch["label"]))
    model.fit(train, epochs=10)

Source, in the order of the data: `_tf/columns.py` (fields to tensors), `_tf/order.py` (ids in the graph),
`_tf/batches.py` (ids to batches), `_tf/records.py` (the serialisable way), `_tf/dataset.py` (all together).
"""

from __future__ import annotations

try:
    import tensorflow as tf
except ImportError as _error:
    from chunkstore.errors import MissingExtraError as _MissingExtraError

    raise _MissingExtraError("chunkstore.tf needs TensorFlow: pip install 'chunkstore-arrays[tf]'") from _error

from chunkstore._tf.dataset import dataset

__all__ = ["dataset"]

del tf
