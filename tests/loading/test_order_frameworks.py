"""The same permutation from torch and TensorFlow: `Permutation.forward` runs on their int64 tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chunkstore._loading.permutation import Permutation

SIZES = [1, 3, 100, 257, 1000, 10**6, 10**9, 10**12, 2**62]


def positions(num_items: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    ends = [0, num_items // 2, num_items - 1]
    return np.concatenate([ends, np.random.default_rng(1).integers(0, num_items, 500)])


@pytest.mark.parametrize("num_items", SIZES)
def test_torch(num_items: int) -> None:
    """int64 tensors on the CPU, walked with `where`."""
    torch = pytest.importorskip("torch")
    permutation = Permutation(num_items, seed=9, epoch=4)
    x = positions(num_items)
    y = permutation.forward(torch.from_numpy(x))
    while bool((y >= num_items).any()):
        y = torch.where(y >= num_items, permutation.forward(y), y)
    assert y.dtype == torch.int64
    assert np.array_equal(y.numpy(), permutation(x))


@pytest.mark.needs_cuda
def test_torch_cuda() -> None:
    """int64 tensors on the GPU."""
    torch = pytest.importorskip("torch")
    for num_items in (10**6, 2**62):
        permutation = Permutation(num_items, seed=9)
        x = positions(num_items)
        y = permutation.forward(torch.from_numpy(x).cuda())
        while bool((y >= num_items).any()):
            y = torch.where(y >= num_items, permutation.forward(y), y)
        assert np.array_equal(y.cpu().numpy(), permutation(x))


@pytest.mark.parametrize("num_items", SIZES)
def test_tensorflow_graph(num_items: int) -> None:
    """Inside a tf.function, as a tf.data map runs it, walked with `tf.while_loop`."""
    tf = pytest.importorskip("tensorflow")
    permutation = Permutation(num_items, seed=9, epoch=4)

    def shift_right(x: Any, count: int) -> Any:
        return tf.bitwise.right_shift(x, tf.constant(count, tf.int64))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64)])
    def permute(x: Any) -> Any:
        (y,) = tf.while_loop(
            lambda y: tf.reduce_any(y >= num_items),
            lambda y: (tf.where(y >= num_items, permutation.forward(y, shift_right), y),),
            (permutation.forward(x, shift_right),),
        )
        return y

    x = positions(num_items)
    y = permute(tf.constant(x))
    assert y.dtype == tf.int64
    assert np.array_equal(y.numpy(), permutation(x))
