"""Sources -> plan -> the end of an existing container: what `chunkstore append` does."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from chunkstore._format import dtypes
from chunkstore._format.constants import ATTRS_RESERVED
from chunkstore._format.schema import Field
from chunkstore._ingest.convert.progress import Progress, Tell
from chunkstore._ingest.convert.report import AppendReport
from chunkstore._ingest.npy.casts import dtype_option, resolve_cast
from chunkstore._ingest.plan.pairing import stem
from chunkstore._ingest.plan.plan import Plan
from chunkstore._ingest.plan.planner import LABEL, OnError, make_plan
from chunkstore._ingest.plan.read import PlanReader
from chunkstore._ingest.plan.scan import scan_sources
from chunkstore._ingest.plan.specs import DATA, DtypeArg, FieldArg
from chunkstore._rewrite.attrs import is_known, join_records
from chunkstore._write.writer import Writer
from chunkstore.errors import IngestError

_PIECE_NBYTES: Final = 16 << 20  # of samples that are read and added at once, if one sample is not more


def append(
    sources: Sequence[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    *,
    layout: str = "auto",
    fields: FieldArg = None,
    dtype: DtypeArg = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    on_error: OnError = "fail",
    allow_pickle: bool = False,
    progress: Tell | bool | None = None,
) -> AppendReport:
    """Add the samples of `.npy` and `.npz` files to a container: all in one commit, or none.

    Where nothing else is said, files are read as `convert` read those that are in the container: its layout, its choice
    and names of fields, its dtypes where it was told to change them. Class numbers continue those that it has. Memory
    use is a shard and 16 MiB, or one sample where that is more.

    Args:
        sources, include, exclude, on_error, allow_pickle, progress: as for `convert`.
        path: the container.
        layout: `"auto"` is the one of the container, if it was converted.
        fields, dtype: as for `convert`; if none are given, as in the container.
    Raises:
        IngestError: the sources cannot be read as asked, or do not fit the fields of the container.
        SchemaError: a key is in the container already.
        LockedError: another writer has it.
        FormatError: it cannot be read.
        OSError: something cannot be read or written.
    In all cases the container is as it was before.
    """
    started = time.perf_counter()
    writer, before = None, 0
    try:
        with Writer(path, mode="a") as writer:
            before = len(writer)
            origin = _origin_of(writer.attrs)
            scan = scan_sources(sources, include=include, exclude=exclude)
            plan = make_plan(
                scan,
                layout=origin.get("layout", "auto") if layout == "auto" else layout,
                fields=fields or _known_fields(origin),
                dtype=dtype or _known_dtypes(origin, writer.fields),
                on_error=on_error,
                allow_pickle=allow_pickle,
            )
            _check_fits(os.fspath(path), writer, plan)
            _add_all(writer, plan, progress)
            changed, notes = _new_attrs(writer.attrs, plan)
            writer.attrs.update(changed)
            plan.check_sources()
            num_samples = len(writer)
    except KeyboardInterrupt:
        if writer is not None and writer._target.num_samples > before:
            raise KeyboardInterrupt(f"interrupted when all was done: {os.fspath(path)} has the new samples") from None
        text = f"interrupted: nothing was added to {os.fspath(path)}. Run the same again: it starts over"
        raise KeyboardInterrupt(text) from None
    seconds = time.perf_counter() - started
    return AppendReport(
        os.fspath(path),
        plan.num_samples,
        num_samples,
        plan.num_files,
        plan.explanation,
        (*plan.notes, *notes),
        plan.skipped,
        seconds,
    )


def _origin_of(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """What `convert` noted; empty for a container that a program wrote, or where it is not as we write it."""
    reserved = attrs.get(ATTRS_RESERVED)
    origin = reserved.get("origin") if isinstance(reserved, dict) else None
    return origin if is_known(origin) else {}


def _known_fields(origin: Mapping[str, Any]) -> dict[str, str]:
    """`--field` as it must have been."""
    if not origin or origin.get("layout") == "paired":
        return {}
    found = {}
    for name, source in origin["fields"].items():
        home = source.get("array") if origin.get("layout") != "columns" else stem(source.get("file", ""))
        parts = [part for part in (home, source.get("member")) if part is not None]
        found[name] = ".".join(parts) or DATA
    return found


def _known_dtypes(origin: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, str]:
    """`--dtype` as it must have been."""
    known = origin.get("fields", {})
    return {name: fields[name].dtype for name, source in known.items() if source.get("cast") and name in fields}


def _check_fits(path: str, writer: Writer, plan: Plan) -> None:
    """Raise IngestError unless the plan's samples can be samples of the container."""
    known, given = writer.fields, {field.name: field for field in plan.fields}
    if known.keys() != given.keys():
        raise IngestError(
            f"{path}: the container has the fields {_names(known)}, the sources have {_names(given)}. "
            "Name and pick them with --field NAME=SOURCE."
        )
    for number, field in enumerate(plan.fields):
        _check_field(path, known[field.name], field, plan.where(number, 0))
    if len(writer) and (plan.keys is not None) != bool(writer._with_keys):
        have, are = ("no keys", "have") if plan.keys is not None else ("keys", "have none")
        raise IngestError(
            f"{path}: the samples of the container have {have}, and those of the sources, read with --layout "
            f"{plan.layout}, {are}. Say --layout rows for samples without keys, another for samples with keys."
        )


def _names(fields: Mapping[str, Field]) -> str:
    return ", ".join(map(repr, fields))


def _check_field(path: str, known: Field, given: Field, where: str) -> None:
    fits = len(known.shape) == len(given.shape) and all(
        dim is None or dim == other for dim, other in zip(known.shape, given.shape, strict=True)
    )
    if known.dtype != given.dtype or not fits:
        advice = f" {dtype_option(known.name, known.dtype)} converts it." if _converts(given, known) else ""
        raise IngestError(
            f"{where}: field {known.name!r} is {_describe(given)}, and {path} has {_describe(known)}.{advice}"
        )


def _converts(given: Field, known: Field) -> bool:
    """Whether `--dtype` makes the one dtype the other."""
    if known.dtype == given.dtype or given.is_string:
        return False
    try:
        return bool(resolve_cast(dtypes.to_numpy(given.dtype), known.dtype, known.name))
    except IngestError:
        return False


def _describe(field: Field) -> str:
    dims = ["any" if dim is None else str(dim) for dim in field.shape]
    return f"{field.dtype} of shape ({', '.join(dims)})"


def _add_all(writer: Writer, plan: Plan, progress: Tell | bool | None) -> None:
    classes = _classes(writer.attrs, plan)
    ends = np.cumsum(sum(map(plan.row_sizes, range(len(plan.fields)))))
    with PlanReader(plan) as reader, Progress(progress, "append", plan.num_samples, plan.total_nbytes) as bar:
        rows = [_Rows(reader, plan, number, writer.fields[field.name]) for number, field in enumerate(plan.fields)]
        for start, stop in _pieces(ends):
            batch = {field.name: rows[number].read(start, stop) for number, field in enumerate(plan.fields)}
            if classes is not None:
                batch[LABEL] = classes[1][batch[LABEL]]
            keys = None if plan.keys is None else list(plan.keys.slice(start, stop))
            writer.add_batch(batch, keys)
            bar.advance(int(ends[stop - 1]) - (int(ends[start - 1]) if start else 0))
        bar.finish()


def _pieces(ends: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Runs of samples of `_PIECE_NBYTES` in all, at least one sample each."""
    start = 0
    while start < len(ends):
        begin = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, begin + _PIECE_NBYTES, "right")))
        stop = min(stop, start + _PIECE_NBYTES)  # rows of no bytes
        yield start, stop
        start = stop


class _Rows:
    """Rows of one field of the plan, as the writer takes them for the field of the container."""

    def __init__(self, reader: PlanReader, plan: Plan, number: int, field: Field) -> None:
        self._reader, self._number, self._field = reader, number, field
        self._planned, self._shapes = plan.fields[number], plan.row_shapes(number)

    def read(self, start: int, stop: int) -> Any:
        """Rows `[start, stop)`: an array of shape (stop - start, *shape), or a list where they may differ."""
        planned, ends = self._planned, self._reader.row_ends(self._number, start, stop).tolist()
        data = bytearray(ends[-1])
        self._reader.read(self._number, start, stop, data)
        if not self._field.ragged:
            return _array(data, planned, (stop - start, *planned.item_shape))
        parts = [memoryview(data)[a:b] for a, b in pairwise([0, *ends])]
        if self._field.is_string:
            return [str(part, "utf-8") for part in parts]
        dims = self._shapes[start:stop].tolist()
        return [_array(part, planned, (*dim, *planned.item_shape)) for part, dim in zip(parts, dims, strict=True)]


def _array(data: bytearray | memoryview, field: Field, shape: tuple[int, ...]) -> NDArray[Any]:
    if 0 in shape or field.item_nbytes == 0:  # frombuffer refuses what has no bytes
        return np.zeros(shape, field.numpy_dtype)
    return np.frombuffer(data, field.numpy_dtype).reshape(shape)


def _classes(attrs: Mapping[str, Any], plan: Plan) -> tuple[list[str], NDArray[np.int64]] | None:
    """(the classes of the container, new ones last; its number of each class of the plan), or None."""
    mine = plan.attrs.get("class_names", {}).get(LABEL)
    if mine is None:
        return None
    names = attrs.get("class_names")
    known = names.get(LABEL) if isinstance(names, dict) else None
    every = list(known) if isinstance(known, list) else []
    every += [name for name in mine if name not in every]
    return every, np.array([every.index(name) for name in mine], np.int64)


def _new_attrs(attrs: Mapping[str, Any], plan: Plan) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Attrs to set: classes that are new, and what `export` needs of the new files; what there is to say about them."""
    changed: dict[str, Any] = {}
    note = ""
    classes = _classes(attrs, plan)
    if classes is not None:
        others = attrs.get("class_names")
        changed["class_names"] = {**(others if isinstance(others, dict) else {}), LABEL: classes[0]}
    origin = _origin_of(attrs)
    if origin:
        joined, note = join_records(origin, plan.origin)
        changed[ATTRS_RESERVED] = {**attrs[ATTRS_RESERVED], "origin": joined}
    return changed, (note,) if note else ()
