"""Sources -> plan -> shards -> a finished container, or none at all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Literal

import numpy as np

from chunkstore._format.codec import RAW
from chunkstore._format.constants import ATTRS_RESERVED, HEAD_NBYTES, SHARD_NBYTES
from chunkstore._format.encode import CodecArg, CodecSpec, parse_codecs
from chunkstore._format.layout import check_count
from chunkstore._format.schema import encode_attrs
from chunkstore._format.superblock import Superblock
from chunkstore._ingest.convert.arrangement import Arrangement, arrange
from chunkstore._ingest.convert.choosing import choose_codings, estimate_saved
from chunkstore._ingest.convert.coded import CodedFields
from chunkstore._ingest.convert.compare import compare, find_unreadable
from chunkstore._ingest.convert.pool import WorkerPool, run_on
from chunkstore._ingest.convert.progress import Progress, Tell
from chunkstore._ingest.convert.report import ConvertReport, left_behind
from chunkstore._ingest.convert.tasks import Written, cut_tasks, whole_task, write_blocks
from chunkstore._ingest.plan.columns import DEFLATED, count_items
from chunkstore._ingest.plan.origin import order_notes
from chunkstore._ingest.plan.plan import Plan
from chunkstore._ingest.plan.planner import OnError, make_plan
from chunkstore._ingest.plan.read import Deviation
from chunkstore._ingest.plan.scan import Scan, Skipped, scan_sources
from chunkstore._ingest.plan.specs import DtypeArg, FieldArg
from chunkstore._ingest.plan.uniform import plan_uniform
from chunkstore._storage import platform
from chunkstore._storage.commit import NewFile, unpublished
from chunkstore._storage.remote import Remote
from chunkstore._storage.replace import check_replaceable
from chunkstore._storage.upload import uploaded
from chunkstore._write.index_writer import Block, IndexWriter, Keys
from chunkstore._write.target import finish_new
from chunkstore.errors import IngestError

__all__ = ["ConvertReport", "convert"]  # the package exports both from here

Layout = Literal["auto", "files", "rows", "columns", "paired", "classes"]
Sources = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
_POOL_SECONDS: Final = 1.0  # of work; two processes save half of it, and starting the second takes 0.2 to 0.4 s
_PIECE_SECONDS: Final = 40e-6  # measured: one file or member by the general way
_INFLATE_RATE: Final = 250e6  # bytes a second
_TURN_RATE: Final = 500e6  # Fortran order to C order
_ENCODE_RATE: Final = 150e6


def convert(
    sources: Sources,
    path: str | os.PathLike[str],
    *,
    layout: Layout = "auto",
    fields: FieldArg = None,
    dtype: DtypeArg = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    mode: Literal["x", "w"] = "x",
    workers: int | None = None,
    executor: Executor | None = None,
    on_error: OnError = "fail",
    allow_pickle: bool = False,
    shard_nbytes: int = SHARD_NBYTES,
    codec: CodecArg | None = None,
    attrs: Mapping[str, Any] | None = None,
    verify: bool = False,
    dry_run: bool = False,
    progress: Tell | bool | None = None,
    remote: Remote | None = None,
) -> ConvertReport:
    """Make a container of `.npy` and `.npz` files: everything, or nothing.

    The same sources and options give the same bytes, whatever `workers` and `executor` are. Memory use does not grow
    with the size of the sources: about 20 MiB for each worker and, for each sample, 16 bytes if it has a key.

    Args:
        sources: a directory or file, or several.
        path: the container; its directory must exist. Or the URL of an object on `s3://`, `gs://` or `az://`: the
            container is written to a local temporary file, and uploaded when it is whole.
        layout: how files become samples: `"files"`, `"rows"`, `"columns"`, `"paired"`, `"classes"`; `"auto"` says what
            it chose.
        fields: `"NAME=SOURCE"` texts or a mapping: picks and renames arrays.
        dtype: `"NAME=TYPE"` texts, `"TYPE"` or a dtype of NumPy for all fields, or a mapping: stored as this type. An
            integer that it does not hold exactly is an error; floats may be rounded, which the report notes.
        include, exclude: shell patterns for relative paths and base names.
        mode: `"x"` refuses a path that exists, `"w"` replaces a container, or an empty file, when this one is
            complete; no other file, and no source.
        workers: processes, this one among them. Default: as many as there are processors where that pays, which is for
            deflated or Fortran-ordered data and for very many files.
        executor: any `concurrent.futures.Executor` runs the work instead: threads, processes, an `MPIPoolExecutor`,
            Dask's `client.get_executor()`. Its workers must see the sources under the same absolute paths. Those that
            see the file that is being written write into it, on a file system that they share; from others the rows
            come back through the engine, a shard at a time. `workers` then is how many tasks are under way, by default
            twice the number of processors of this machine. The executor stays yours: it is not shut down.
        on_error: `"skip"` leaves out files that cannot be read or do not fit, and lists them in the report.
        allow_pickle: read object arrays. They are pickles, which can run any code: own trusted files only.
        shard_nbytes: bytes of a shard, before codecs.
        codec: how chunks are stored, as in `Writer`: `{"image": "zstd:5"}`, `["image=zstd:5"]`, or `"zstd"` for every
            field with rows that are not short. `"auto"` tries a sample and says what it chose. Workers then take the
            memory of a shard's chunks more, and the disk needs room for all chunks twice while it works. Default raw.
        attrs: JSON object for the container.
        verify: read the finished container from the disk and compare it with the sources before it gets its name.
        dry_run: plan only; nothing is written, and `path` is not looked at.
        progress: function `(done_samples, total_samples, done_bytes, total_bytes)`, or True for a bar on stderr.
        remote: where `path` is a URL, how to reach it.
    Returns:
        What was done, with the fingerprint.
    Raises:
        IngestError: the sources cannot be converted as asked, or changed meanwhile.
        FileExistsError, IsADirectoryError, FileNotFoundError, PermissionError: before any work.
        WriteError: the system refused a write, or a worker died and the executor did not do its work again.
        RemoteError: the upload failed.
        CommitUnknownError: the container has its name, but may lose it in a power failure.
        ValueError, TypeError: an argument.
        KeyboardInterrupt: with a message that says how to go on.
    In all cases but CommitUnknownError nothing is published, and no temporary file stays. What a run that was killed
    outright left is named in the notes of the next one for the same path.
    """
    started = time.perf_counter()
    _check_arguments(mode, workers, executor, on_error, shard_nbytes, attrs)
    quick = partial(plan_uniform, layout=layout, fields=fields, dtype=dtype)
    full = partial(make_plan, layout=layout, fields=fields, dtype=dtype, on_error=on_error, allow_pickle=allow_pickle)
    several = [sources] if isinstance(sources, str | bytes | os.PathLike) else sources
    named = [os.fsdecode(source) for source in several]
    codecs = parse_codecs(codec, auto=True)
    if executor is not None:
        named = [os.path.abspath(source) for source in named]  # its workers may be in another directory
    with (
        _explained(os.fspath(path)),
        nullcontext(os.fspath(path)) if dry_run else uploaded(path, mode, remote) as target,
    ):
        if not dry_run:
            check_replaceable(target, named)  # in mode "x", too: what replaces it would be bad advice
            NewFile.create(target, mode).discard()  # what is in the way is found before any work
        left = () if dry_run else left_behind(target)
        scan = scan_sources(named, include=_texts(include), exclude=_texts(exclude))
        work = _Work(target, mode, workers, executor, int(shard_nbytes), codecs, dict(attrs or {}), verify, progress)
        report = _dry_run(full(scan), work) if dry_run else _convert(scan, quick, full, work, skip=on_error == "skip")
    notes, seconds = (*report.notes, *left), time.perf_counter() - started
    return replace(report, path=os.fspath(path), notes=notes, seconds=seconds)


@dataclass(frozen=True)
class _Work:
    """What decides how the plan is carried out."""

    path: str
    mode: Literal["x", "w"]
    workers: int | None
    executor: Executor | None
    shard_nbytes: int
    codecs: CodecSpec
    attrs: dict[str, Any]
    verify: bool
    progress: Tell | bool | None = field(repr=False)


def _texts(patterns: Sequence[str] | str | None) -> Sequence[str]:
    return (patterns,) if isinstance(patterns, str) else patterns or ()


def _check_arguments(
    mode: str,
    workers: int | None,
    executor: object,
    on_error: str,
    shard_nbytes: int,
    attrs: Mapping[str, Any] | None,
) -> None:
    if mode not in ("x", "w"):
        raise ValueError(f"mode: expected 'x' (new) or 'w' (replace), found {mode!r}")
    if workers is not None:
        check_count("workers", workers)
    if on_error not in ("fail", "skip"):
        raise ValueError(f"on_error: expected 'fail' or 'skip', found {on_error!r}")
    check_count("shard_nbytes", shard_nbytes)
    if executor is not None and not isinstance(executor, Executor):
        found = f"{type(executor).__module__}.{type(executor).__qualname__}"
        raise TypeError(f"executor: expected a concurrent.futures.Executor (of Dask: get_executor()), found {found}")
    if attrs is not None and ATTRS_RESERVED in attrs:
        raise ValueError(f"attrs: the name {ATTRS_RESERVED!r} is reserved; take another")
    encode_attrs(attrs or {})


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """Say how to go on after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt as error:
        if error.args:
            raise
        text = f"interrupted: {path} was not written, and nothing is left behind. Run the same again: it starts over"
        raise KeyboardInterrupt(text) from None


def _dry_run(plan: Plan, work: _Work) -> ConvertReport:
    attrs, notes = _all_attrs(plan, work.attrs)
    nbytes = arrange(plan, attrs, work.shard_nbytes, {}).committed_end
    plan, codings, texts = choose_codings(plan, work.codecs)
    if codings:
        nbytes -= estimate_saved(plan, codings)
        notes = (*notes, "how small codecs make the fields is estimated from a sample")
    return replace(_report(plan, work, nbytes, None, notes), dry_run=True, codecs=texts)


def _convert(
    scan: Scan, quick: Callable[[Scan], Plan | None], full: Callable[[Scan], Plan], work: _Work, *, skip: bool
) -> ConvertReport:
    plan = quick(scan)
    if plan is not None:
        try:
            return _write(plan, work)
        except Deviation:
            pass
    plan = full(scan)
    try:
        return _write(plan, work)
    except IngestError:
        if not skip:
            raise
        bad = find_unreadable(plan)
        if not bad:
            raise
    # The headers were good and the data are not: without these files, from the start.
    report = _convert(_without(scan, bad), quick, full, work, skip=skip)
    return replace(report, skipped=(*bad.values(), *report.skipped))


def _without(scan: Scan, bad: Mapping[str, Skipped]) -> Scan:
    kept = [place for place in range(len(scan)) if scan.file_path(place) not in bad]
    if not kept:
        first = next(iter(bad.values()))
        raise IngestError(f"no file is left to convert. The first: {first.path}: {first.reason}")
    paths, source_of = [scan.paths[place] for place in kept], [scan.source_of[place] for place in kept]
    return replace(scan, paths=paths, source_of=source_of)


def _all_attrs(plan: Plan, attrs: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """ATTRS, and what there is to say about them."""
    merged = {**plan.attrs, **attrs, ATTRS_RESERVED: {"origin": plan.origin}}
    try:
        encode_attrs(merged)
        return merged, order_notes(plan.origin)
    except ValueError:  # longer than the format allows: the names of very many files
        del merged[ATTRS_RESERVED]
        encode_attrs(merged)
        return merged, ("the names of the files are too many to be kept: `export` will name them by position",)


def _report(plan: Plan, work: _Work, nbytes: int, fingerprint: str | None, notes: Sequence[str]) -> ConvertReport:
    return ConvertReport(
        work.path,
        plan.num_samples,
        plan.num_files,
        nbytes,
        plan.source_nbytes,
        plan.fields,
        plan.layout,
        plan.explanation,
        (*plan.notes, *notes),
        plan.skipped,
        fingerprint,
        seconds=0.0,
        verified=work.verify and fingerprint is not None,
        rounded=plan.rounded,
    )


def _write(plan: Plan, work: _Work) -> ConvertReport:
    plan, codings, texts = choose_codings(plan, work.codecs)
    attrs, notes = _all_attrs(plan, work.attrs)
    arrangement = arrange(plan, attrs, work.shard_nbytes, codings)
    total = plan.total_nbytes
    folder = os.path.dirname(work.path) or os.curdir
    with (
        NewFile.create(work.path, work.mode) as new,
        IndexWriter(plan.fields, with_keys=plan.keys is not None, folder=folder) as index,
        Progress(work.progress, "convert", plan.num_samples, total * (1 + work.verify)) as progress,
    ):
        index.attrs = encode_attrs(attrs)
        new.sink.preallocate(arrangement.committed_end)
        collector = _Collector(plan, arrangement, index, new)
        with closing(_blocks(plan, arrangement, work, new, progress)) as blocks:
            for written in blocks:
                collector.take(written)
        superblock = _finish(new, index, arrangement, collector.coded)
        if work.verify:
            with unpublished(work.path):
                new.sink.sync()
            compare(plan, arrangement, new.temporary, progress.advance)
        plan.check_sources()
        progress.finish()
        new.publish()
    report = _report(plan, work, superblock.committed_end, superblock.directory_sum.hex(), notes)
    return replace(report, codecs=texts)


def _finish(new: NewFile, index: IndexWriter, arrangement: Arrangement, coded: CodedFields | None) -> Superblock:
    """Write the index and both superblocks."""
    if coded is not None:
        return finish_new(new.sink, index, coded.finish(index))
    superblock = finish_new(new.sink, index, arrangement.data_end, HEAD_NBYTES)
    assert superblock.committed_end == arrangement.committed_end, "the index is not as long as planned"
    return superblock


def _blocks(
    plan: Plan, arrangement: Arrangement, work: _Work, new: NewFile, progress: Progress
) -> Generator[Written, None, None]:
    """Write all blocks, in whatever way; in no particular order."""
    workers = _num_workers(plan, arrangement, work)
    if work.executor is None and workers == 1:
        yield from write_blocks(whole_task(plan, arrangement, new.temporary), new.sink, progress.advance)
        return
    tasks = cut_tasks(plan, arrangement, new.temporary)
    # This process is one of the workers, and at work while the others start.
    with (
        WorkerPool(workers - 1) if work.executor is None else nullcontext(work.executor) as executor,
        closing(run_on(executor, tasks, workers, new)) as written,
    ):
        for block in written:
            progress.advance(int(arrangement.nbytes[block.number, block.shard]))
            yield block


def _num_workers(plan: Plan, arrangement: Arrangement, work: _Work) -> int:
    """Processes that work, this one among them; of an executor, tasks that are under way."""
    if work.executor is not None:
        return work.workers or 2 * platform.num_processors()
    if plan.uniform and not arrangement.codings:
        return 1
    if work.workers is not None:
        useful = 1 + arrangement.num_shards * len(plan.fields)  # more would have nothing to do
        return min(work.workers, useful, platform.MAX_PROCESSES)
    if _estimate_seconds(plan) < _POOL_SECONDS:
        return 1
    return max(1, min(platform.num_processors(), arrangement.num_shards, platform.MAX_PROCESSES))


def _estimate_seconds(plan: Plan) -> float:
    """Work of a processor, roughly; reading and writing plain bytes is the work of the disk."""
    seconds = 0.0
    for number, column in enumerate(plan.columns):
        nbytes = plan.nbytes(number)
        deflated = bool((column.method == DEFLATED).any())
        fortran = any(plan.kinds[kind].fortran for kind in np.unique(column.kind).tolist())
        coded = plan.fields[number].codec != RAW
        rates = deflated / _INFLATE_RATE + fortran / _TURN_RATE + coded / _ENCODE_RATE
        seconds += column.num_pieces * _PIECE_SECONDS + nbytes * rates
    return seconds


class _Collector:
    """Puts blocks into the index shard by shard, whatever the order in which they come."""

    def __init__(self, plan: Plan, arrangement: Arrangement, index: IndexWriter, new: NewFile) -> None:
        self._plan, self._arrangement, self._index = plan, arrangement, index
        codings = arrangement.codings
        self.coded = CodedFields(list(codings), new.sink, arrangement.data_end) if codings else None
        index.dictionaries = {number: coding.dictionary for number, coding in codings.items() if coding.dictionary}
        self._shapes = {number: plan.row_shapes(number) for number, f in enumerate(plan.fields) if f.ragged}
        self._waiting: dict[int, dict[int, Written]] = {}
        self._next = 0

    def take(self, written: Written) -> None:
        """Take one block; each shard that is now complete and whose turn it is goes into the index."""
        self._waiting.setdefault(written.shard, {})[written.number] = written
        while len(self._waiting.get(self._next, ())) == len(self._plan.fields):
            self._add_shard(self._waiting.pop(self._next))
            self._next += 1

    def _add_shard(self, found: dict[int, Written]) -> None:
        start, stop = self._arrangement.starts[self._next : self._next + 2].tolist()
        if self._plan.keys is not None:
            keys = self._plan.keys.slice(start, stop)
            self._index.add_keys(Keys(keys.blob, keys.offsets))
        blocks = [self._block(found[number], start, stop) for number in range(len(self._plan.fields))]
        self._index.add_shard(stop - start, blocks)

    def _block(self, written: Written, start: int, stop: int) -> Block:
        shapes = self._shapes.get(written.number)
        place = written.number, written.shard
        offset, nbytes = int(self._arrangement.offsets[place]), int(self._arrangement.nbytes[place])
        if written.stored is not None and self.coded is not None:
            nbytes = int(written.stored.sum())
            offset = self.coded.take(written.number, offset, nbytes)
        return Block(
            offset,
            nbytes,
            written.sum,
            written.group_sums,
            None if shapes is None else count_items(shapes[start:stop]),
            None if shapes is None else np.ascontiguousarray(shapes[start:stop]),
            written.stored,
        )
