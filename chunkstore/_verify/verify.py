"""`verify`: a second opinion on a container, which reads every byte of it and shares nothing with the reader.

    head -> directories -> every page of every section -> the numbers in them      (segment.py, values.py)
         -> do the parts fill the file? -> every block, region, padding byte      (blocks.py)
                                        -> damaged block: which chunks?            (groups.py)
         -> keys: texts, unique, found by their table                             (keys.py)

The file is read by `pread` into buffers of 1 MiB, never mapped: a file truncated meanwhile is a finding and not the
end of the process. Measured (2 cores, warm, 1 GiB): one thread 14.6 GB/s, two 19.0; a map 18.1; `cat` 12.2.

Chunk sums of blocks that are as written are held against their chunks in the first MiB of each block, and with `deep`
in all of it: groups of 4 KiB take the pass from 15.8 to 7.0 GB/s (`cat`: 11.7). Both sums are of the same bytes,
so damage on the disk shows in that of the block; only a faulty writer makes a chunk sum wrong alone, and hardly only
behind the first MiB.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Final

from chunkstore._format.codec import decode
from chunkstore._format.index import read_generation
from chunkstore._format.schema import Field, known_codec
from chunkstore._format.superblock import Superblock
from chunkstore._storage import platform
from chunkstore._storage.opening import open_any
from chunkstore._storage.remote import Remote
from chunkstore._verify.blocks import Walk, check_empty_blocks, cover
from chunkstore._verify.keys import check_keys
from chunkstore._verify.report import Ledger, Progress, Report
from chunkstore._verify.segment import Segment, Tape, read_directories, read_head
from chunkstore._verify.values import check_values
from chunkstore.errors import CorruptError, FormatError, UnsupportedFeatureError

_TWO_THREADS_NBYTES: Final = 16 << 20  # below this a second thread costs more than it brings


def verify(
    path: str | os.PathLike[str],
    *,
    deep: bool = False,
    progress: Progress | bool | None = None,
    workers: int | None = None,
    remote: Remote | None = None,
) -> Report:
    """Read every byte of a container, and say what is not as it was written.

    Proves that superblocks, index, blocks and zero padding fill the file exactly, that each of them has its checksum,
    and that all numbers in the index agree. Goes on after the first damage, and narrows it down to samples.

    Args:
        path: of the container. It is opened for reading, and not locked.
        deep: also hold every chunk against its own sum, and not only those in the first MiB of each block; decode
            compressed rows, and look at booleans and texts. Takes about twice as long, and the memory of the largest
            row.
        progress: called with (bytes done, bytes in all) from this thread, now and then; True: a bar on stderr.
        workers: threads, 1 or 2; default 2 for files of more than 16 MiB.
        remote: where `path` is a URL, how to read it.
    Returns:
        `ok` if nothing was found. A damaged head or index is a finding, too.
    Raises:
        NotAContainerError, UnsupportedVersionError, UnsupportedFeatureError: not a file that this release can judge;
            with `deep`, also for a codec that it does not know.
        MissingExtraError: `deep`, and the package of a codec is not installed.
        ValueError: another number of `workers`.
        OSError: the file cannot be opened or read. A bad sector is a finding; a server that fails (`RemoteError`) or
            an object that changes meanwhile (`ReplacedError`) is none.
    As fast as the disk or the memory. Memory: a few MiB, and about 200 bytes for each block.
    """
    if workers not in (None, 1, 2):
        raise ValueError(f"workers: expected 1 or 2 threads, or None, found {workers!r}")
    began = time.perf_counter()
    with open_any(path, "pread", remote, in_order=True) as source, ExitStack() as stack:
        ledger = Ledger(source.size, _progress_callback(progress, source.size, stack))
        run = _Verification(Tape(source, ledger), deep=deep, workers=workers)
        run.check()
        damage = ledger.finish()
    superblock = run.superblock
    return Report(
        path=os.fsdecode(path),
        ok=ledger.num_damage == 0,
        deep=deep,
        fingerprint=None if superblock is None else superblock.directory_sum.hex(),
        generation=None if superblock is None else superblock.generation,
        num_samples=run.num_samples,
        nbytes=source.size,
        num_blocks=ledger.num_blocks,
        num_groups=ledger.num_groups,
        num_pages=ledger.num_pages,
        seconds=time.perf_counter() - began,
        damage=damage,
        num_damage=ledger.num_damage,
    )


def _progress_callback(progress: Progress | bool | None, total: int, stack: ExitStack) -> Progress | None:
    if not isinstance(progress, bool):
        return progress
    if not progress:
        return None
    from tqdm import tqdm

    bar = stack.enter_context(tqdm(total=total, unit="B", unit_scale=True, desc="verify"))

    def show(done: int, total: int) -> None:
        bar.update(done - bar.n)

    return show


class _Verification:
    """One verification, step by step."""

    def __init__(self, tape: Tape, *, deep: bool, workers: int | None) -> None:
        self.tape = tape
        self.superblock: Superblock | None = None
        self.num_samples: int | None = None
        self._ledger = tape.ledger
        self._deep = deep
        several = tape.size > _TWO_THREADS_NBYTES and platform.num_processors() > 1
        self._workers = (2 if several else 1) if workers is None else workers

    def check(self) -> None:
        self.superblock = superblock = read_head(self.tape)
        if superblock is None:
            return
        self._check_length(superblock.committed_end)
        directories, complete = read_directories(self.tape, superblock)
        if not directories:
            return
        self.num_samples = directories[-1].first_sample + directories[-1].num_samples
        segments = [Segment(self.tape, directory, superblock.committed_end) for directory in directories]
        for segment in segments:
            segment.prove()
        fields = check_values(segments)
        if self._deep and fields is not None:
            _require_codecs(fields)
        self._check_blocks(segments, superblock.committed_end, complete)
        if not self._ledger.num_damage:
            self._open_as_reader()

    def _check_length(self, committed_end: int) -> None:
        size = self.tape.size
        if size < committed_end:
            self._ledger.add(
                "truncated",
                f"the file has {size} bytes, expected {committed_end}: it was cut off, or copied in part; a reader "
                "refuses it. What is missing is listed as far as the index is there; copy it again",
                offset=size,
                nbytes=committed_end - size,
            )
        elif size > committed_end:
            what = (
                "perhaps a commit that the damaged superblock named: `chunkstore recover` saves it if it can be proven"
                if self._ledger.num_damage
                else "left by an append that was interrupted or is under way, or added by something else; no sample is "
                "affected"
            )
            self._ledger.add(
                "trailing",
                f"{size - committed_end} bytes behind the committed end {committed_end}: {what}",
                harmless=True,
                offset=committed_end,
                nbytes=size - committed_end,
            )

    def _check_blocks(self, segments: list[Segment], committed_end: int, complete: bool) -> None:
        parts = cover(self.tape, segments, committed_end, complete=complete)
        check_empty_blocks(segments, deep=self._deep)
        walk = Walk(self.tape, parts, segments, deep=self._deep)
        with ThreadPoolExecutor(1, "chunkstore-verify") as pool:
            helper = pool.submit(walk.run) if self._workers > 1 else None
            try:
                # Keys are Python's work and blocks are not: side by side they take no longer than the longer of them.
                check_keys(self.tape, segments)
                walk.run()
            except BaseException:
                self._ledger.stopped = True
                raise
        if helper is not None:
            helper.result()

    def _open_as_reader(self) -> None:
        """All was found to be well: the checks at the gate of the format must agree, or one of the two is wrong."""
        try:
            # The generation that was verified: an append may have added one meanwhile, beyond the size that we know.
            assert self.superblock is not None
            read_generation(self.tape, self.superblock).attrs()
        except UnsupportedFeatureError:
            raise
        except FormatError as error:
            self._ledger.add("index", f"the container cannot be opened: {error}")


def _require_codecs(fields: tuple[Field, ...]) -> None:
    for field in fields:
        if not known_codec(field):
            raise UnsupportedFeatureError(
                f"field {field.name!r}: codec {field.codec!r} is not known to this release, and its rows cannot be "
                "decoded: install a newer one, or verify without deep"
            )
        with suppress(CorruptError):  # of no bytes; what counts is whether the package is there
            decode(field.codec, memoryview(b""), 1, b"")
