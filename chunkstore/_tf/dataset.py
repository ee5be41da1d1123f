"""`dataset`: a container as a `tf.data.Dataset` of batches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final, get_args

import numpy as np
import tensorflow as tf

from chunkstore._loading.order import Order
from chunkstore._loading.permutation import checked_int
from chunkstore._loading.source import Pad, Rows, Shuffle, make_shard_order, open_rows, reader_of, shard_identity
from chunkstore._read.checked import Verify
from chunkstore._read.many import Paths
from chunkstore._read.select import Selection
from chunkstore._storage.source import Backend
from chunkstore._tf.batches import Batches, Engine
from chunkstore._tf.columns import Column, RaggedMode, columns_of
from chunkstore._tf.graph import Host, ahead, as_written, begun, counted
from chunkstore._tf.order import EpochRange, Groups
from chunkstore._tf.records import records

_MAX_EPOCH: Final = 2**31  # times the groups of an epoch, an int64
_GROUP_SAMPLES: Final = 8192  # ordered, hinted at and proven in one go
_GROUP_NBYTES: Final = 8 << 20  # the first batch waits for it
_UNBATCHED_SAMPLES: Final = 256  # read at once where samples are wanted one by one
_UNBATCHED_NBYTES: Final = 4 << 20
_HELD_BATCHES: Final = 2  # beside those made ahead: the user's, and the one that takes its place
_PARALLEL_CALLS: Final = 2  # a gather uses all cores by itself; the second call hides the overhead of the first


def dataset(
    source: Paths | Rows,
    batch_size: int | None = None,
    *,
    fields: Sequence[str] | None = None,
    shuffle: Shuffle = False,
    seed: int = 0,
    epoch: int = 0,
    repeat: bool | int = False,
    reshuffle_each_iteration: bool = True,
    drop_remainder: bool = False,
    pad: Pad = False,
    shard: tuple[int, int] | None = None,
    block_size: int | None = None,
    window: int = 16,
    ragged: RaggedMode = "ragged",
    pad_value: Any = 0,
    engine: Engine = "auto",
    prefetch: int = 2,
    device: str | None = None,
    backend: Backend = "auto",
    verify: Verify = "once",
) -> Any:
    """A container as a `tf.data.Dataset` of dicts of tensors, one gather per field and batch.

        train = dataset("train.cks", 256, shuffle=True).map(lambda b: (b["image"], b["label"]))
        model.fit(train, epochs=10)

    Its `element_spec` and cardinality are static. An iterator can be saved by `tf.train.Checkpoint(iterator=it)` at any
    batch, and goes on with exactly the batches that were left: in another process, too, if its dataset is made with the
    same arguments (`epoch` may differ). The state of another data set or order is refused. One that was saved before
    the first batch has no epoch yet, and begins with that of the dataset it is restored into. TensorFlow saves what was
    made ahead with it, some batches. For several epochs use `repeat`: behind a restored epoch, its own `.repeat` begins
    with `epoch` again.

    Works with `.map`, `.cache`, `.padded_batch`, `tf.distribute`, Keras `fit`.

    Args:
        source: path of a container, or several, as of `chunkstore.open`; or a `Reader` or `Selection`. Of several
            containers the samples are those of now, whatever a later `refresh` brings.
        batch_size: samples a batch (of this shard); None: single samples, each row in its own shape.
        fields: which fields, default all.
        shuffle: False, True (all samples) or "block" (whole blocks, mixed `window` at a time: for slow storage). The
            order is that of `chunkstore.torch` for the same seed, epoch and shard (`spec/order-1.md`).
        seed: 0 to 2^64 - 1; equal on all shards.
        epoch: the first one, 0 to 2^31. Keras' `BackupAndRestore` goes on with weights at the begin of an epoch: give
            its number here (`"epoch"` in its `training_metadata.json`), and the order goes on, too.
        repeat: True: epochs follow each other without end, each in an order of its own; or how many of them.
        reshuffle_each_iteration: each new iterator of this dataset begins with the next epoch, so that each epoch of
            Keras `fit` differs. False: all begin with `epoch`.
        drop_remainder: leave out the samples that do not fill a batch on every shard. The batch dimension is then
            static.
        pad: what else happens to them. False: each sample once; "even": all shards take equally many, a few samples
            come twice; "full": also the last batch is full.
        shard: (rank, world size): only the batches of this rank, e.g. of `tf.distribute.InputContext`. tf.distribute
            then shards no more.
        block_size, window: for shuffle="block"; blocks are the shards of the container by default. A block_size is
            refused where all samples are shuffled.
        ragged: what a field whose rows differ in size becomes. "ragged": `tf.RaggedTensor`; "pad": a tensor
            (B, largest..., *item_shape), filled up with `pad_value`.
        engine: how rows get into tensors. "gather": `tf.gather` in the graph, on the map as a tensor, without a copy of
            the file; "numpy": one Python call a batch, for every container; "auto": gather each field that can be.
            Single samples are read by NumPy, some hundred at a time: TensorFlow takes longer to take them apart.
            "fixed_length": `tf.data.FixedLengthRecordDataset`, whose graph can be serialised; for fields of fixed shape
            in one extent, in order.
        prefetch: batches (or single samples) made ahead, 0 for none.
        device: e.g. "GPU:0": batches are copied there ahead. Such a dataset takes no further `.map`, and its iterators
            cannot be saved.
        backend, verify: as `chunkstore.open`; only with a path. Chunks are proven before their batch is handed out,
            with "fixed_length" all of them now.
    Returns:
        A dataset of dicts: name -> tensor of shape (B, *row_shape). Texts and bytes are tf.string; datetime64 and
        timedelta64 int64 in the field's unit. It keeps the container open as long as it, its iterators or tensors live.
    Raises:
        TypeError: TensorFlow cannot carry a dtype; the message names the fields to choose.
        ValueError: an unknown field, or an argument that does not fit.
        All that `chunkstore.open` raises.
        From an iterator: tf.errors.InvalidArgumentError with the text of the `CorruptError` (or what else went wrong),
        for the batches that have such a sample, or for this sample alone where single ones are read; the others can
        still be read. From `Checkpoint.restore` (or the first batch, where none was taken before the state was saved):
        the same with "StateError"; NotFoundError where batches are made in another way.
    """
    for name, value, choices in (("ragged", ragged, get_args(RaggedMode)), ("engine", engine, get_args(Engine))):
        if value not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, found {value!r}")
    rows = open_rows(source, fields, backend, verify)
    columns = columns_of(rows, fields, ragged, pad_value, batch_size is None)
    order = make_shard_order(
        rows,
        batch_size=1 if batch_size is None else checked_int("batch_size", batch_size, 1, 1 << 31),
        shuffle=shuffle,
        seed=seed,
        drop_remainder=drop_remainder,
        pad=pad,
        shard=shard,
        block_size=block_size,
        window=window,
    )
    epochs = _epochs(epoch, repeat, reshuffle_each_iteration)
    prefetch = checked_int("prefetch", prefetch, 0, 1 << 20)
    names = [column.name for column in columns]
    identity = shard_identity(order, names, batch_size=batch_size, repeat=epochs.num or True)
    if engine == "fixed_length":
        made = records(rows, columns, order, batch_size is None, epochs.num, prefetch, identity)
    else:
        made = _pipeline(rows, columns, order, batch_size is None, epochs, engine, prefetch, identity)
    made = made.with_options(_options(shard))
    return made if device is None else _on_device(made, device, max(1, prefetch))


def _pipeline(
    rows: Rows,
    columns: Sequence[Column],
    order: Order,
    single: bool,
    epochs: EpochRange,
    engine: Engine,
    prefetch: int,
    identity: str,
) -> Any:
    batches = Batches(reader_of(rows), columns, "numpy" if single else engine, prefetch + _HELD_BATCHES)
    most, most_nbytes = (_UNBATCHED_SAMPLES, _UNBATCHED_NBYTES) if single else (_GROUP_SAMPLES, _GROUP_NBYTES)
    most = min(most, most_nbytes // max(1, _mean_nbytes(rows, columns)))
    positions = rows.positions if isinstance(rows, Selection) else None
    groups = Groups(order, positions, epochs, max(1, most // order.batch_size), batches.admit)
    host = Host(batches, groups)
    known = partial(counted, per_epoch=order.num_batches(), num_epochs=epochs.num)
    if single:
        return _single_samples(begun(identity, lambda _: groups.dataset(host)), known, batches, host, prefetch)
    full = order.num_batches() == len(rows) // order.step_size

    def begin(zero: Any) -> Any:
        tensors = batches.tensors(host, zero)

        @as_written
        def gather(ids: Any, num: Any, admitted: Any) -> tuple[Any, ...]:
            ids = ids if full else ids[:num]
            return ids, *batches.gather(host, tensors, ids, admitted)

        return ahead(groups.dataset(host).unbatch(), gather, min(prefetch, _PARALLEL_CALLS))

    @as_written
    def finish(ids: Any, gathered: Any, proven: Any) -> dict[str, Any]:
        return batches.finish(host, ids, gathered, proven)

    # Counted before errors can come: a batch that fails is one of them.
    return ahead(begun(identity, begin).apply(known), finish, prefetch)


def _mean_nbytes(rows: Rows, columns: Sequence[Column]) -> int:
    """Stored bytes of a sample, on average over the container."""
    reader = reader_of(rows)
    stored = sum(int(reader._field_index(column.name).block_nbytes.sum()) for column in columns)
    return stored // max(1, len(reader))


def _single_samples(made: Any, known: Any, batches: Batches, host: Host, prefetch: int) -> Any:
    """Groups of ids -> samples, each of which may fail alone."""

    @as_written
    def read_each(ids: Any, _num: Any, _admitted: Any) -> tuple[dict[str, Any], Any]:
        return batches.read_each(host, tf.reshape(ids, [-1]))

    @as_written
    def single_of(sample: dict[str, Any], problem: Any) -> dict[str, Any]:
        return batches.single(sample, problem)

    made = ahead(made, read_each, min(prefetch, _PARALLEL_CALLS)).unbatch()
    return ahead(made.apply(known), single_of, prefetch)


def _epochs(first: int, repeat: bool | int, advance: bool) -> EpochRange:
    first = checked_int("epoch", first, 0, _MAX_EPOCH)
    if isinstance(repeat, bool | np.bool_):
        return EpochRange(first, 0 if repeat else 1, advance)
    return EpochRange(first, checked_int("repeat", repeat, 1, _MAX_EPOCH), advance)


def _options(shard: tuple[int, int] | None) -> Any:
    options = tf.data.Options()
    # Ids, not files, are what can be shared out; and not twice.
    policy = tf.data.experimental.AutoShardPolicy
    options.experimental_distribute.auto_shard_policy = policy.DATA if shard is None else policy.OFF
    return options


def _on_device(made: Any, device: str, buffer_size: int) -> Any:
    try:
        name = tf.DeviceSpec.from_string(device if device.startswith("/") else f"/{device}")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"device: expected a name such as 'GPU:0', found {device!r}") from error
    kind, index = (name.device_type or "").upper(), name.device_index or 0
    found = [each.name for each in tf.config.list_logical_devices()]
    wanted = f"/device:{kind}:{index}"
    if wanted not in found:
        raise ValueError(f"device: TensorFlow sees no {device!r}; it has {', '.join(found)}. Leave device=None")
    return made.apply(tf.data.experimental.prefetch_to_device(wanted, buffer_size))
