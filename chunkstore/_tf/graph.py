"""What goes into a graph: functions as they are written, Python objects, arrays without a copy."""

from __future__ import annotations

import atexit
import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar, cast

import numpy as np
import tensorflow as tf

from chunkstore._format.checksum import sum64

ALIGNMENT: Final = 64  # bytes; Eigen's kernels abort the process on a buffer that is less aligned

_Function = TypeVar("_Function", bound=Callable[..., Any])


def as_written(function: _Function) -> _Function:
    """Keep AutoGraph from rewriting a function: it has no Python `if` on tensors, and is traced in half the time."""
    return cast(_Function, tf.autograph.experimental.do_not_convert(function))


def ahead(made: Any, function: Callable[..., Any], num: int) -> Any:
    """`made.map(function)`, in order, with up to `num` results made ahead; 0 for none.

    Not `prefetch`: where an iterator is cancelled, TensorFlow's PrefetchDataset may tell those who wait for it that the
    data end. A `cache()` behind it, whose first iterator was given up (`next(iter(cached))`), then takes the part that
    it has for the whole, and all later epochs are short. A parallel map says that it was cancelled.

    Args:
        function: must do something, or TensorFlow's optimizer takes the map away, and reading ahead with it.
    """
    if not num:
        return made.map(function)
    return made.map(function, num_parallel_calls=num, deterministic=True)


def begun(identity: str, make: Callable[[Any], Any]) -> Any:
    """The dataset that `make` gives in the graph, whose iterators refuse the state of one with another identity.

    A `flat_map` saves the element that it is at, and calls its function with it again to be restored. So the state of
    an iterator, once it has begun, holds the identity, and this function compares it. Before that, it holds the number
    that a range comes to next: a sum of the identity, compared when the first batch is asked for.

    Args:
        make: called in the graph with a number, of no meaning, where an iterator begins or is restored.
    """
    number = sum64(identity.encode()) >> 1
    advice = "Restore it into the dataset of the same source and arguments, or begin anew."

    def checked(same: Any, value: Any, saved: Any) -> Any:
        found = "StateError: the iterator was saved of another data set or order than this one. Saved:"
        said = tf.debugging.Assert(same, [found, saved, "This one:", identity, advice])
        with tf.control_dependencies([said]):
            return tf.identity(value)

    @as_written
    def known(value: Any) -> tuple[Any, Any]:
        return checked(tf.equal(value, number), value, "before its first batch"), tf.constant(identity)

    @as_written
    def begin(value: Any, saved: Any) -> Any:
        return make(checked(tf.equal(saved, identity), value, saved))

    return tf.data.Dataset.range(number, tf.int64.max).take(1).map(known).flat_map(begin)


def counted(made: Any, per_epoch: int, num_epochs: int) -> Any:
    """The same dataset with its cardinality; `num_epochs` 0: without end, if an epoch has anything."""
    endless = per_epoch and not num_epochs
    count = tf.data.INFINITE_CARDINALITY if endless else per_epoch * num_epochs
    return made.apply(tf.data.experimental.assert_cardinality(count))


class Host:
    """Python objects whose methods a graph calls: they live as long as the graph, and no longer.

    TensorFlow keeps each function that was given to `tf.numpy_function` until the process ends. So it gets one that
    refers to the object weakly; and each call takes a tensor, captured by the graph, whose memory is an array that
    refers to the objects.
    """

    def __init__(self, *objects: object) -> None:
        memory = np.zeros(2 * ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        array = memory[start : start + ALIGNMENT].view(_Anchor)
        array.objects = objects
        with tf.device("CPU:0"):  # a tensor over this memory, which lives as long as the tensor and its captures
            self._anchor = tf.experimental.dlpack.from_dlpack(array.__dlpack__())

    def call(self, method: Callable[..., Any], inputs: Sequence[Any], dtypes: Any) -> Any:
        """In the graph: what a bound method of one of the objects returns for these inputs, as NumPy arrays."""
        weak = weakref.WeakMethod(method)

        def function(*arrays: Any) -> Any:
            strong = weak()
            assert strong is not None  # the last of `arrays` keeps it
            return strong(*arrays[:-1])

        # Not "stateful": a checkpoint would refuse it. What it reads does not change.
        return tf.numpy_function(function, [*inputs, self._anchor], dtypes, stateful=False)


@atexit.register
def _drop_iterators() -> None:
    """End all tf.data iterators before the interpreter does.

    A call of Python that waits for the interpreter when it begins to end waits for ever; and with it the iterator that
    made the call, and with that the main thread, which deletes it. Nobody else can end iterators: they belong to the
    user's frames and to tracebacks.
    """
    kinds = {}
    for each in gc.get_objects():
        kind = type(each)
        if kind not in kinds:
            kinds[kind] = issubclass(kind, tf.data.Iterator) or kind.__name__ == "OwnedMultiDeviceIterator"
        if kinds[kind]:
            vars(each).clear()


class _Anchor(np.ndarray[Any, np.dtype[np.uint8]]):
    objects: tuple[object, ...]
