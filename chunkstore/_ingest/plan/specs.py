"""What the user types: `--field NAME=SOURCE` and `--dtype NAME=TYPE`, and which array each field comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from chunkstore._format import dtypes
from chunkstore.errors import IngestError

FieldArg = Sequence[str] | Mapping[str, str] | None
DtypeArg = Sequence[str] | Mapping[str, Any] | type | np.dtype[Any] | None
DATA: Final = "data"


@dataclass(frozen=True)
class Leaf:
    """One array of a file, or one member of a structured array in it.

    Attributes:
        array: name in the `.npz`; None for the array of an `.npy`.
        member: names from the structured dtype down to the member; empty for the array itself.
        dtype: of the elements, subarray dimensions taken off.
        subshape: those dimensions.
        ndim: dimensions of the array and of the member.
    """

    array: str | None
    member: tuple[str, ...]
    dtype: np.dtype[Any]
    subshape: tuple[int, ...]
    ndim: int

    @property
    def array_ndim(self) -> int:
        """Dimensions of the array, those of the member left out."""
        return self.ndim - len(self.subshape)

    @property
    def label(self) -> str:
        """What `--field` calls it."""
        if self.array is None:
            return ".".join(self.member) or DATA
        return ".".join((self.array, *self.member))


def leaves(
    array: str | None,
    dtype: np.dtype[Any],
    ndim: int,
    member: tuple[str, ...] = (),
    subshape: tuple[int, ...] = (),
) -> Iterator[Leaf]:
    """The array itself, or every member of a structured array, nested ones too: below `member`, of `subshape`."""
    base, dims = dtype.subdtype or (dtype, ())
    if base.names is None:
        yield Leaf(array, member, base, subshape + dims, ndim + len(subshape) + len(dims))
        return
    assert base.fields is not None
    for name in base.names:
        yield from leaves(array, base.fields[name][0], ndim, (*member, name), subshape + dims)


def leaf_of(array: str | None, dtype: np.dtype[Any], ndim: int, member: tuple[str, ...]) -> Leaf | None:
    """The leaf of one member, without going through all of them; None where there is no such member."""
    subshape: tuple[int, ...] = ()
    for name in (*member, None):
        if dtype.subdtype is not None:
            subshape, dtype = subshape + dtype.subdtype[1], dtype.subdtype[0]
        if name is not None:
            if dtype.fields is None or name not in dtype.fields:
                return None
            dtype = dtype.fields[name][0]
    return None if dtype.names is not None else Leaf(array, member, dtype, subshape, ndim + len(subshape))


def parse_fields(argument: FieldArg) -> dict[str, str]:
    """`NAME=SOURCE` texts, or a mapping, as name -> source; a text without `=` picks a source under its own name.

    Raises:
        IngestError: an empty name or source, or a name twice.
    """
    return _parse(argument or (), "--field", "NAME=SOURCE")


def _parse(argument: Sequence[str] | Mapping[str, Any], option: str, form: str) -> dict[str, Any]:
    if isinstance(argument, Mapping):
        return dict(argument)
    found: dict[str, Any] = {}
    for text in [argument] if isinstance(argument, str) else argument:
        name, equals, value = text.partition("=")
        if not name or (equals and not value):
            raise IngestError(f"{option} {text!r}: expected {form}.")
        if name in found:
            raise IngestError(f"{option} {text!r}: the name {name!r} is given twice.")
        found[name] = value if equals else name
    return found


@dataclass(frozen=True)
class DtypeSpec:
    """Wanted dtypes: per field, and one for all others."""

    by_field: dict[str, str]
    default: str | None

    def target(self, name: str) -> str | None:
        """The format's name of what field `name` shall have, or None."""
        return self.by_field.get(name, self.default)

    def check_names(self, names: Sequence[str]) -> None:
        """Raise IngestError if a field is named that does not exist."""
        for name in self.by_field:
            if name not in names:
                raise IngestError(
                    f"--dtype {name}=...: there is no field {name!r}; the fields are "
                    f"{', '.join(map(repr, names[:20]))}."
                )


def parse_dtypes(argument: DtypeArg) -> DtypeSpec:
    """`NAME=TYPE` texts, `TYPE` or a dtype of NumPy alone for every field, or a mapping.

    Raises:
        IngestError: a type that a container cannot hold.
    """
    if argument is None:
        return DtypeSpec({}, None)
    if isinstance(argument, Mapping):
        return DtypeSpec({name: _dtype(value) for name, value in argument.items()}, None)
    if isinstance(argument, type | np.dtype):
        return DtypeSpec({}, _dtype(argument))
    texts = [argument] if isinstance(argument, str) else list(argument)
    alone = [text for text in texts if "=" not in text]
    if len(alone) > 1:
        raise IngestError(f"--dtype {alone[1]!r}: a type without a field can be given once.")
    named = _parse([text for text in texts if "=" in text], "--dtype", "NAME=TYPE")
    return DtypeSpec({name: _dtype(value) for name, value in named.items()}, _dtype(alone[0]) if alone else None)


def _dtype(value: object) -> str:
    try:
        return dtypes.parse(value)
    except ValueError as error:
        raise IngestError(f"--dtype: {error}.") from None


def check_distinct(available: Sequence[Leaf]) -> None:
    """Refuse two arrays of one label: a field would have the values of one of them.

    Raises:
        IngestError: names both. The text has no path.
    """
    seen: dict[str, Leaf] = {}
    for leaf in available:
        first = seen.setdefault(leaf.label, leaf)
        if first is not leaf:
            raise IngestError(
                f"{_describe(first)} and {_describe(leaf)} would both be the field {leaf.label!r}. Rename one of them "
                "in the file, or take other arrays with --field NAME=SOURCE."
            )


def _describe(leaf: Leaf) -> str:
    parts = [] if leaf.array is None else [f"array {leaf.array!r}"]
    return ", ".join([*parts, *(f"member {name!r}" for name in leaf.member)])


def find_leaf(available: Sequence[Leaf], source: str) -> Leaf | None:
    """The leaf that `--field NAME=source` means; `data.member` works for an `.npy` too.

    Raises:
        IngestError: two leaves have this label.
    """
    for label in (source, source.removeprefix(DATA + ".")):
        found = [leaf for leaf in available if leaf.label == label]
        if found:
            check_distinct(found)
            return found[0]
    return None
