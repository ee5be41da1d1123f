"""Hypothesis inputs that several tests share: fields, rows, keys."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
from numpy.typing import NDArray

from chunkstore._format import dtypes
from chunkstore._format.schema import Field

DTYPES = [
    *dtypes.PLAIN,
    *dtypes.EXTENDED,
    "datetime64[D]",
    "datetime64[25s]",
    "timedelta64[ns]",
    "bytes[3]",
    "utf32[2]",
]

names = st.text(
    st.characters(codec="utf-8", exclude_characters=[chr(c) for c in (*range(32), 127)]), min_size=1, max_size=12
)
keys = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int | None, ...]:
    """Shapes of up to four dimensions, with zeros and varying ones anywhere."""
    return tuple(draw(st.lists(st.one_of(st.integers(0, 4), st.none()), max_size=4)))


@st.composite
def fields(draw: st.DrawFn, max_size: int = 4) -> list[Field]:
    """One to `max_size` fields of any dtype and shape."""
    found = []
    for name in draw(st.lists(names, min_size=1, max_size=max_size, unique=True)):
        dtype = draw(st.sampled_from([*DTYPES, "string"]))
        found.append(Field(name, dtype, () if dtype == "string" else draw(shapes())))
    return found


def row(field: Field, rng: np.random.Generator) -> NDArray[Any] | str:
    """A random row: random bytes, so NaNs of all kinds, not-a-times and so on."""
    if field.is_string:
        return "".join(rng.choice(list("aé☃𝄞 "), rng.integers(0, 6)))
    shape = tuple(int(rng.integers(0, 4)) if dim is None else dim for dim in field.shape)
    dtype = field.numpy_dtype
    if dtype.kind == "U":
        return np.array(rng.choice(list("aé☃"), (*shape, 1)), dtype).reshape(shape)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    nbytes = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(rng.bytes(nbytes), dtype).reshape(shape)


def samples(of: list[Field], count: int, seed: int) -> list[dict[str, Any]]:
    """Random samples of these fields."""
    rng = np.random.default_rng(seed)
    return [{field.name: row(field, rng) for field in of} for _ in range(count)]
