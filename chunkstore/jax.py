"""JAX: fields and batches of a container as `jax.Array`s, without a copy where JAX can do without.

from chunkstore.jax import batch, column

images = column(ds, "image")          # the whole field over the map: images[ids] gathers inside jit
arrays = batch(ds, [5, 3, 3])         # a dict of arrays on the default device

Unless `jax_enable_x64` is set, JAX cuts what has 64 bits to 32, without a word; of integers the low ones stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chunkstore._loading.recycle import Recycler
from chunkstore._loading.source import Rows, chosen_fields
from chunkstore._read.reader import Reader, check_known
from chunkstore.errors import MissingExtraError

__all__ = ["batch", "column"]

_ALIGNMENT = 64  # bytes; JAX copies what is less aligned


def column(reader: Reader, name: str) -> Any:
    """A whole field as one `jax.Array` on the CPU.

    Without a copy, whatever its size, where the field is raw, of fixed shape, in one extent (as in a converted
    container), mapped, of a dtype that DLPack knows and not of 64 bits unless `jax_enable_x64` is set; otherwise read
    and copied. The array keeps the map alive, also after `close()`. It has been proven: with verify="once" in one pass
    over what was not.

    Args:
        name: a field of fixed shape, of numbers.
    Raises:
        ValueError: no such field, or its rows differ in size.
        TypeError: no reader, or JAX has no such dtype.
        CorruptError: a chunk is not what was written.
    """
    jax = _jax()
    if not isinstance(reader, Reader):
        raise TypeError(f"reader: expected a Reader, as chunkstore.open gives, found {type(reader).__name__}")
    check_known([name], reader.fields, reader.path, "name")
    _check(reader, name)
    array = reader._exportable(name)
    cpu = jax.devices("cpu")[0]
    if array is None or array.ctypes.data % _ALIGNMENT or not _exports(jax, array):
        return jax.device_put(reader.column(name), cpu)
    reader._prove(name)
    return jax.dlpack.from_dlpack(array)


def batch(reader: Rows, indices: Any, *, fields: Sequence[str] | None = None, device: Any = None) -> dict[str, Any]:
    """Samples as a dict of `jax.Array`s of shape (B, *row_shape).

    Args:
        indices: as `Reader.batch`.
        fields: which fields, default all; of fixed shape, of numbers.
        device: where to; a `jax.Device` or sharding, default JAX's own choice.
    Raises:
        All that `Reader.batch` raises.
        ValueError: the rows of a field differ in size: use `Reader.batch` and `Ragged.pad`.
        TypeError: JAX has no such dtype.
    """
    jax = _jax()
    if not isinstance(reader, Rows):
        raise TypeError(f"reader: expected a Reader or Selection, found {type(reader).__name__}")
    names = chosen_fields(reader, fields)
    for name in names:
        _check(reader, name)
    num_rows = len(indices) if hasattr(indices, "__len__") and np.asarray(indices).dtype != bool else None
    out = {}
    if num_rows is not None:
        fixed = [reader.fields[name] for name in names if reader.fields[name].item_nbytes]
        # Memory that JAX on a CPU takes as it is.
        out = {f.name: Recycler(1).empty("", (num_rows, *f.item_shape), f.numpy_dtype) for f in fixed}
    arrays = reader.batch(indices, fields=names, out=out)
    return {name: jax.device_put(arrays[name], device) for name in names}


def _check(reader: Rows, name: str) -> None:
    field = reader.fields[name]
    where = f"{reader.path}: field {name!r}"
    if field.is_string or field.numpy_dtype.kind in "SUMm":
        others = [other for other in reader.fields if other != name]
        raise TypeError(f"{where} holds {field.dtype}, which JAX has not; leave it out with fields={others}")
    if field.ragged:
        raise ValueError(f"{where} has rows that differ in size; take reader.batch(...)[{name!r}].pad() to JAX")


def _exports(jax: Any, array: NDArray[Any]) -> bool:
    """Whether DLPack carries the dtype, and JAX keeps it."""
    return array.dtype.kind in "biufc" and jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype


def _jax() -> Any:
    try:
        import jax
    except ImportError as error:
        raise MissingExtraError("chunkstore.jax needs JAX: pip install 'chunkstore-arrays[interop]'") from error
    return jax
