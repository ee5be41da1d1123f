"""The workloads by name, in the order in which a run does them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from tools.bench.bench import Bench
from tools.bench.record import Figure
from tools.bench.workloads import (
    append,
    batches,
    codecs,
    cold,
    ingest,
    load_tf,
    load_torch,
    many,
    opening,
    order,
    remote,
    scaling,
    verifying,
    writing,
)

Workload = Callable[[Bench], Iterator[Figure]]

WORKLOADS: Mapping[str, Workload] = {
    "open_first_read": opening.open_first_read,
    "warm_batch": batches.warm_batch,
    "read_single": batches.read_single,
    "ragged_batch": batches.ragged_batch,
    "first_pass": batches.first_pass,
    "many": many.many,
    "in_order": order.in_order,
    "in_order_cold": order.in_order_cold,
    "cold_batch": cold.cold_batch,
    "convert_many": ingest.convert_many,
    "convert_large": ingest.convert_large,
    "convert_workers": scaling.convert_workers,
    "write_batch": writing.write_batch,
    "write_single": writing.write_single,
    "verify": verifying.verify,
    "file_overhead": verifying.file_overhead,
    "append": append.append,
    "codecs": codecs.codecs,
    "load_torch": load_torch.load_torch,
    "load_tf": load_tf.load_tf,
    "load_gpu": load_torch.load_gpu,
    "remote": remote.remote,
}
