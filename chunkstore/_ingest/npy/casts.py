"""`--dtype`: from the dtype of a source to the dtype of a field.

| source | may become |
|---|---|
| any dtype of the format | itself (big-endian is swapped) |
| bool, integers | any integer, float or complex type that holds the values exactly |
| floats, complex | any type of the "same kind" (NumPy's rule) that is large enough; a narrower one rounds |
| void, 2 or 1 bytes wide | bfloat16 or a float8 type, the same bits |
| bool | uint8, int8: the same bits, also where a byte is neither 0 nor 1 |
| datetime64, timedelta64 without unit | with a unit, the same bits |
| bytes, unicode | a wider one; ASCII bytes -> unicode; `string`: one UTF-8 text per sample |
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from chunkstore._format import dtypes
from chunkstore.errors import IngestError

Mode = Literal["same", "bits", "numeric", "text", "string"]
_MAX_CODE_POINT = 0x10FFFF


@dataclass(frozen=True)
class Cast:
    """How elements of one source dtype become elements of a field.

    Attributes:
        source: little-endian dtype of what is read.
        target: the format's name of the field's dtype.
        mode: `same` and `bits` move bytes, `numeric` and `text` convert, `string` encodes as UTF-8.
        name: of the field, for messages.
    """

    source: np.dtype[Any]
    target: str
    mode: Mode
    name: str = field(default="", compare=False)

    @property
    def rounds(self) -> bool:
        """Whether values may be rounded: floats or complex numbers to a type that does not hold all of them."""
        if self.mode != "numeric" or self.source.kind not in "fc":
            return False
        return self.target in dtypes.EXTENDED or not np.can_cast(self.source, dtypes.to_numpy(self.target), "safe")

    @property
    def plain(self) -> bool:
        """Whether the bytes can be read straight into their destination and need no look."""
        return self.mode in ("same", "bits") and not self.checked

    @property
    def checked(self) -> bool:
        """Whether bytes can hold what is no value of the type."""
        return self.mode == "same" and self.source.kind in "bU"


def is_inexact(target: str) -> bool:
    """Whether the format's dtype `target` holds floats or complex numbers."""
    return target in dtypes.EXTENDED or (target != dtypes.STRING and dtypes.to_numpy(target).kind in "fc")


def native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in little-endian byte order."""
    return dtype.newbyteorder("<")


def resolve_cast(source: np.dtype[Any], target: str | None, name: str) -> Cast:
    """Cast for field `name`; `target` is the format's name, or None to keep the dtype.

    Raises:
        IngestError: there is no such cast, or the source needs one. The text has no path.
    """
    source = native(source)
    own = dtypes.from_numpy(source)
    if target is None:
        if own is None:
            raise IngestError(f"a container cannot hold dtype {source}: {_advice(source, name)}")
        return Cast(source, own, "same", name)
    if target == own:
        return Cast(source, target, "same", name)
    mode = _mode(source, target)
    if mode is None:
        raise IngestError(
            f"dtype {source} cannot become {target} (field {name!r}). {_cast_advice(source, target, name)}"
        )
    return Cast(source, target, mode, name)


def _advice(source: np.dtype[Any], name: str) -> str:
    if source.kind == "O":
        return (
            "object arrays are Python pickles (ragged data often come so); --allow-pickle with --layout rows "
            "or columns reads your own trusted files."
        )
    if source.kind == "V" and source.itemsize == 2:
        return f"two-byte void is how .npy files hold bfloat16; if it is that, say {dtype_option(name, 'bfloat16')}."
    if source.kind == "V" and source.itemsize == 1:
        return (
            "one-byte void is how .npy files hold the float8 types; say which, for example "
            f"{dtype_option(name, 'float8_e4m3fn')}."
        )
    if source.kind == "f":
        return f"say {dtype_option(name, 'float64')} (rounds)."
    if source.kind == "c":
        return f"say {dtype_option(name, 'complex128')} (rounds)."
    if source.kind in "Mm":
        unit = "datetime64[s]" if source.kind == "M" else "timedelta64[s]"
        return f"it has no unit; say {dtype_option(name, unit)}, with the right unit."
    if source.kind in "SU":
        return f"it has no width; say {dtype_option(name, f'{source.kind}1')}."
    return "leave the field out with --field, which names the ones to take."


def dtype_option(name: str, target: str) -> str:
    """`--dtype NAME=TYPE` as a shell takes it."""
    return f"--dtype {shlex.quote(f'{name}={target}')}"


def _cast_advice(source: np.dtype[Any], target: str, name: str) -> str:
    if source.kind == "O":
        return _advice(source, name)
    if target in dtypes.EXTENDED:
        return "From void the bits are kept; from floats it needs the ml_dtypes package."
    if source.kind == "f" and np.dtype(dtypes.to_numpy(target)).kind in "iub":
        return "Fractions would be lost: convert the files themselves if that is meant."
    if source.kind in "SU":
        return f"Texts can only become wider: the source has {source}."
    return "Leave --dtype out, or name a type that holds the values."


def _mode(source: np.dtype[Any], target: str) -> Mode | None:
    width = dtypes.element_nbytes(target)
    if target == dtypes.STRING:
        return "string" if source.kind in "SU" else None
    wanted = dtypes.to_numpy(target)
    if source.kind == "V" and source.names is None:
        return "bits" if target in dtypes.EXTENDED and width == source.itemsize else None
    if source.kind == "b" and target in ("uint8", "int8"):
        return "bits"
    if source.kind in "Mm":
        return "bits" if wanted.kind == source.kind and np.datetime_data(source)[0] == "generic" else None
    if source.kind in "SU":
        return "text" if wanted.kind in "SU" and np.can_cast(source, wanted, "safe") else None
    if source.kind not in "biufc" or (wanted.kind not in "biufc" and target not in dtypes.EXTENDED):
        return None
    if target in dtypes.EXTENDED:
        return "numeric" if wanted.names is None and wanted != np.dtype(f"V{width}") and source.kind == "f" else None
    both_whole = source.kind in "biu" and wanted.kind in "iu"
    return "numeric" if both_whole or np.can_cast(source, wanted, "same_kind") else None


def check_values(cast: Cast, values: npt.NDArray[Any], where: str) -> None:
    """Raise IngestError if bytes of a bool or unicode source are no values of it."""
    if values.size == 0:
        return
    if cast.source.kind == "b":
        largest = int(values.view(np.uint8).max())
        if largest > 1:
            raise IngestError(
                f"{where}: a bool array holds the byte {largest}; only 0 and 1 are bools. The file is damaged; "
                f"{dtype_option(cast.name, 'uint8')} keeps the bytes."
            )
    elif cast.source.kind == "U":
        largest = int(values.view(np.uint32).max()) if cast.source.itemsize else 0
        if largest > _MAX_CODE_POINT:
            raise IngestError(
                f"{where}: a unicode array holds {largest:#x}, which is no character. The file is damaged."
            )


def convert(cast: Cast, values: npt.NDArray[Any], out: npt.NDArray[np.uint8], where: str) -> None:
    """Write 1-d C-contiguous `values` of `cast.source` into `out`, the bytes of the field. Not for mode `string`.

    Raises:
        IngestError: a value has no counterpart in the field's dtype.
    """
    if cast.mode in ("same", "bits"):
        if cast.checked:
            check_values(cast, values, where)
        out[:] = values.view(np.uint8) if values.dtype.itemsize else out
        return
    wanted, place = dtypes.to_numpy(cast.target), f"{where}: field {cast.name!r}"
    if cast.mode == "numeric":
        _check_range(values, wanted, place)
    else:
        check_values(cast, values, where)
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            changed = values.astype(wanted, casting="unsafe")
    except UnicodeDecodeError as error:
        raise IngestError(f"{where}: bytes that are not ASCII cannot become unicode: {error}.") from None
    if cast.mode == "numeric":
        _check_exact(values, changed, place)
        if cast.rounds:
            _check_infinite(cast.target, values, changed, place)
    out[:] = changed.view(np.uint8)


def _check_range(values: npt.NDArray[Any], wanted: np.dtype[Any], where: str) -> None:
    if wanted.kind not in "iu" or values.dtype.kind not in "iu" or not values.size:
        return
    low, high, limits = int(values.min()), int(values.max()), np.iinfo(wanted)
    if low < limits.min or high > limits.max:
        raise IngestError(
            f"{where}: values from {low} to {high} do not fit {wanted} ({limits.min} to {limits.max}). Choose a "
            "wider --dtype."
        )


def _check_exact(values: npt.NDArray[Any], changed: npt.NDArray[Any], where: str) -> None:
    """Refuse integers that a float type would round."""
    if values.dtype.kind not in "iu" or changed.dtype.kind not in "fc" or not values.size:
        return
    floats = changed.real
    exact = 1 << (np.finfo(floats.dtype).nmant + 1)  # every integer up to it, either sign
    if -exact <= int(values.min()) and int(values.max()) <= exact:
        return
    floats = floats.astype(np.float64)
    end = float(1 << np.iinfo(values.dtype).bits - (values.dtype.kind == "i"))
    inside = (floats >= -end) & (floats < end)  # others have no way back; the largest integers are rounded up to `end`
    kept = np.zeros(values.shape, bool)
    kept[inside] = floats[inside].astype(values.dtype) == values[inside]
    if not kept.all():
        raise IngestError(
            f"{where}: {int(values[~kept][0])} cannot become {changed.dtype} exactly. Choose a wider --dtype, or leave "
            "it out."
        )


def _check_infinite(target: str, values: npt.NDArray[Any], changed: npt.NDArray[Any], where: str) -> None:
    if target in dtypes.EXTENDED:
        changed = changed.astype(np.float32)
    lost = np.isfinite(values) & ~np.isfinite(changed)
    if lost.any():
        raise IngestError(f"{where}: {values[lost][0]!s} is too large for {target}. Choose a wider --dtype.")


def encode_texts(cast: Cast, values: npt.NDArray[Any], where: str) -> list[bytes]:
    """UTF-8 bytes of each element of a bytes or unicode array, trailing NULs off as NumPy takes them off.

    Raises:
        IngestError: bytes that are not UTF-8, a lone surrogate, or no character at all.
    """
    check_values(cast, values, where)
    try:
        if cast.source.kind == "U":
            return [text.encode() for text in values.tolist()]
        texts: list[bytes] = values.tolist()
        for text in texts:
            text.decode()
        return texts
    except UnicodeError as error:
        raise IngestError(
            f"{where}: not a UTF-8 text: {error}. Leave out --dtype NAME=string to keep it as it is."
        ) from None
