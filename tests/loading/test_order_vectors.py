"""The order against spec/order-1.md: a second program in plain integers, and the vectors it makes.

Run this file as a script to write spec/vectors/order.json anew (only after a change of the *list*).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chunkstore._loading.order import Order
from chunkstore._loading.permutation import Permutation, round_keys

VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors" / "order.json"

# The reference: section numbers are those of spec/order-1.md -------------------------------------

GOLDEN = 0x9E3779B97F4A7C15


def splitmix64(z: int) -> int:
    z = (z + GOLDEN) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def keys(seed: int, epoch: int, purpose: int, index: int) -> list[int]:
    """Section 2."""
    h = 0
    for word in (seed, epoch, purpose, index):
        h = splitmix64(h ^ word)
    result = []
    for i in range(3):
        word = splitmix64((h + i * GOLDEN) % 2**64)
        result += [word % 2**32, word >> 32]
    return result


def halves(n: int) -> tuple[int, int]:
    """Section 3.1: low_bits, num_high."""
    bits = (n - 1).bit_length() if n > 1 else 0
    low_bits = max(4, bits // 2)
    return low_bits, max(16, (n + 2**low_bits - 1) // 2**low_bits)


def f(half: int, key: int) -> int:
    """Section 3.2."""
    t = (half ^ key) * 0x21F0AAAD % 2**32
    t = t ^ (t >> 15)
    return t * 0x735A2D97 % 2**32


def perm(n: int, key: list[int], x: int) -> int:
    """Sections 3.3 and 3.4."""
    low_bits, num_high = halves(n)
    while True:
        high, low = divmod(x, 2**low_bits)
        for i in range(3):
            high = (high + (f(low, key[2 * i]) * num_high >> 32)) % num_high
            low = low ^ (f(high, key[2 * i + 1]) >> (32 - low_bits))
        x = high * 2**low_bits + low
        if x < n:
            return x


def block_id(starts: list[int], window: int, seed: int, epoch: int, position: int) -> int:
    """Section 5, by the letter: with lists."""
    num_blocks = len(starts) - 1
    key = keys(seed, epoch, 1, 0)
    slots = [perm(num_blocks, key, s) for s in range(num_blocks)]
    before = [0]
    for block in slots:
        before.append(before[-1] + starts[block + 1] - starts[block])
    first = next(v for v in range(0, num_blocks, window) if position < before[min(v + window, num_blocks)])
    begin, stop = before[first], before[min(first + window, num_blocks)]
    inside = perm(stop - begin, keys(seed, epoch, 2, first // window), position - begin)
    mixed = begin + inside
    slot = next(s for s in range(num_blocks) if mixed < before[s + 1])
    return starts[slots[slot]] + mixed - before[slot]


def rank_batches(n: int, b: int, w: int, tail: str, start: int, rank: int) -> list[list[int]]:
    """Section 6."""
    batches = []
    for t in range((n - start) // (b * w)):
        first = start + t * b * w + rank * b
        batches.append([first, first + b])
    r = (n - start) % (b * w)
    if r and tail != "drop":
        if tail == "share":
            part = [-(-rank * r // w), -(-(rank + 1) * r // w)]
        else:
            c = b if tail == "full" else -(-r // w)
            part = [rank * c, (rank + 1) * c]
        if part[0] < part[1]:
            batches.append([n - r + part[0], n - r + part[1]])
    return batches


# The list of vectors -----------------------------------------------------------------------------

SIZES = [1, 2, 3, 5, 7, 15, 16, 17, 97, 255, 256, 257, 1000, 1023, 1024, 1025, 65535, 65536, 65537, 104729]
HUGE = [10**6, 10**9, 2**31 - 1, 2**32, 2**32 + 1, 10**12, 2**61 - 1, 2**62 - 1, 2**62]


def make_permutation(n: int, seed: int, epoch: int, purpose: int = 0, index: int = 0) -> dict[str, Any]:
    key = keys(seed, epoch, purpose, index)
    low_bits, num_high = halves(n)
    inputs = list(range(n)) if n <= 17 else sorted({0, 1, 2, 3, n // 3, n // 2, n - 2, n - 1})
    return {
        "num_items": n, "seed": seed, "epoch": epoch, "purpose": purpose, "index": index,
        "low_bits": low_bits, "num_high": num_high,
        "inputs": inputs, "outputs": [perm(n, key, x) for x in inputs],
    }  # fmt: skip


def make_blocks(n: int, window: int, starts: list[int], how: dict[str, Any], count: int) -> dict[str, Any]:
    seed, epoch = 11, 2
    positions = list(range(n)) if n <= count else [i * n // count for i in range(count)]
    ids = [block_id(starts, window, seed, epoch, p) for p in positions]
    return {"num_samples": n, "seed": seed, "epoch": epoch, "window": window} | how | {
        "positions": positions, "ids": ids
    }  # fmt: skip


def equal_starts(n: int, size: int) -> list[int]:
    return [*range(0, n, size), n]


def make_vectors() -> dict[str, Any]:
    arguments = [(0, 0, 0, 0), (7, 3, 0, 0), (2**64 - 1, 2**64 - 1, 2, 2**40), (1, 0, 1, 0), (0, 1, 0, 0)]
    uneven = [0, 5, 5, 17, 30, 31, 64]
    return {
        "algorithm": "feistel6x32-1",
        "keys": [
            {"seed": s, "epoch": e, "purpose": p, "index": i, "keys": keys(s, e, p, i)}
            for s, e, p, i in arguments
        ],
        "permutations": [
            *(make_permutation(n, 0, 0) for n in (*SIZES, *HUGE)),
            *(make_permutation(n, 7, 3) for n in (10, 1000, 10**9, 10**12)),
            make_permutation(4096, 2**64 - 1, 2**63, purpose=2, index=12345),
        ],
        "blocks": [
            make_blocks(50, 2, equal_starts(50, 8), {"block_size": 8}, 64),
            make_blocks(64, 3, equal_starts(64, 16), {"block_size": 16}, 64),
            make_blocks(64, 2, uneven, {"block_starts": uneven}, 64),
            make_blocks(100_003, 4, equal_starts(100_003, 1000), {"block_size": 1000}, 32),
        ],
        "batches": [
            {
                "num_samples": n, "batch_size": b, "world_size": w, "tail": tail, "start": start,
                "ranks": [rank_batches(n, b, w, tail, start, r) for r in range(w)],
            }
            for n, b, w, start in (
                (100, 8, 3, 0), (100, 8, 3, 40), (26, 4, 3, 0), (3, 2, 5, 0), (24, 4, 2, 0)
            )
            for tail in ("drop", "share", "even", "full")
        ],
    }  # fmt: skip


def vectors_text() -> str:
    """One vector a line, so that a change shows as one line."""
    parts = []
    for name, value in make_vectors().items():
        if isinstance(value, list):
            lines = ",\n".join("    " + json.dumps(item) for item in value)
            parts.append(f'  "{name}": [\n{lines}\n  ]')
        else:
            parts.append(f'  "{name}": {json.dumps(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


# Tests -------------------------------------------------------------------------------------------


MADE = make_vectors()


def test_the_vectors_are_frozen() -> None:
    """The reference program makes spec/vectors/order.json byte for byte."""
    assert VECTORS.read_text() == vectors_text()


def test_the_text_has_the_three_first_values() -> None:
    """The values printed in section 8 are those of the reference."""
    text = " ".join((VECTORS.parent.parent / "order-1.md").read_text().split())
    first, third = keys(0, 0, 0, 0), keys(7, 3, 0, 0)
    assert f"`keys(0, 0, 0, 0)` = {first}." in text
    assert f"of 0 to 9 = {[perm(10, first, x) for x in range(10)]}." in text
    assert f"of 0 to 4 = {[perm(10**9, third, x) for x in range(5)]}." in text


def test_splitmix64_is_the_published_one() -> None:
    """The first outputs of SplitMix64 with seed 1234567, as published with the generator."""
    outputs = [splitmix64(1234567 + i * GOLDEN) for i in range(3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("vector", MADE["keys"], ids=str)
def test_round_keys(vector: dict[str, Any]) -> None:
    """Section 2."""
    arguments = {name: value for name, value in vector.items() if name != "keys"}
    assert list(round_keys(**arguments)) == vector["keys"]


@pytest.mark.parametrize("vector", MADE["permutations"], ids=lambda v: f"{v['num_items']}-{v['seed']}")
def test_permutation(vector: dict[str, Any]) -> None:
    """Section 3, forwards and backwards."""
    names = ("seed", "epoch", "purpose", "index")
    permutation = Permutation(vector["num_items"], **{name: vector[name] for name in names})
    assert (permutation.low_bits, permutation.num_high) == (vector["low_bits"], vector["num_high"])
    assert permutation(vector["inputs"]).tolist() == vector["outputs"]
    assert permutation.inverse(vector["outputs"]).tolist() == vector["inputs"]


@pytest.mark.parametrize("vector", MADE["blocks"], ids=lambda v: f"{v['num_samples']}-{v['window']}")
def test_blocks(vector: dict[str, Any]) -> None:
    """Section 5; equal blocks as a table give the same order as by size."""
    seed, epoch, n, window = (vector[name] for name in ("seed", "epoch", "num_samples", "window"))
    size = vector.get("block_size")
    starts = np.array(vector["block_starts"] if size is None else equal_starts(n, size))
    orders = [Order(n, seed=seed, shuffle="block", window=window, block_starts=starts)]
    if size is not None:
        orders.append(Order(n, seed=seed, shuffle="block", window=window, block_size=size))
    for order in orders:
        assert order.ids(vector["positions"], epoch).tolist() == vector["ids"]


@pytest.mark.parametrize("vector", MADE["batches"], ids=str)
def test_batches(vector: dict[str, Any]) -> None:
    """Section 6."""
    tail: Any = {"drop": {"drop_last": True}, "share": {}, "even": {"pad": "even"}, "full": {"pad": "full"}}
    n, start = vector["num_samples"], vector["start"]
    sizes = {name: vector[name] for name in ("batch_size", "world_size")}
    for rank, expected in enumerate(vector["ranks"]):
        order = Order(n, shuffle=False, rank=rank, **sizes, **tail[vector["tail"]])
        assert order.num_batches(start) == len(expected)
        assert [list(order.batch_range(t, start)) for t in range(len(expected))] == expected
        ids = [[p % n for p in range(*bounds)] for bounds in expected]
        assert [b.tolist() for b in order.batches(0, start)] == ids
        assert [order.batch(t, 0, start).tolist() for t in range(len(expected))] == ids


if __name__ == "__main__":
    VECTORS.write_text(vectors_text())
