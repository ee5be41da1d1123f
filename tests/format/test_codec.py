"""Decoders produce what the index promises, and nothing more."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib

import pytest
import zstandard

from chunkstore._format.codec import CODECS, decode
from chunkstore.errors import CorruptError

ROW = bytes(range(200)) * 5
CHUNKS = {
    "raw": ROW,
    "zlib": zlib.compress(ROW),
    "zstd": zstandard.ZstdCompressor().compress(ROW),
}
UNSIZED = zstandard.ZstdCompressor(write_content_size=False).compress(ROW)


@pytest.mark.parametrize("name", CHUNKS)
def test_a_row_comes_back(name: str) -> None:
    """And a row without bytes is a chunk without bytes."""
    assert decode(name, memoryview(CHUNKS[name]), len(ROW), b"") == ROW
    assert decode(name, memoryview(b""), 0, b"") == b""


def test_a_zstd_frame_need_not_say_its_size() -> None:
    """Then it is read up to one byte more than promised."""
    assert decode("zstd", memoryview(UNSIZED), len(ROW), b"") == ROW


@pytest.mark.parametrize("name", CHUNKS)
@pytest.mark.parametrize("nbytes", [0, 1, len(ROW) - 1, len(ROW) + 1, 10**15])
def test_another_size_than_promised(name: str, nbytes: int) -> None:
    """More or fewer bytes are an error, and no memory is taken for a false promise."""
    with pytest.raises(CorruptError, match=r"promise|end after|row of 0 bytes|cannot"):
        decode(name, memoryview(CHUNKS[name]), nbytes, b"")


@pytest.mark.parametrize("chunk", [b"", b"x", CHUNKS["zlib"][:-1], CHUNKS["zstd"][:-5], CHUNKS["zlib"] + b"x"])
@pytest.mark.parametrize("name", sorted({"zlib", "zstd"} & set(CODECS)))
def test_chunks_that_are_no_stream(name: str, chunk: bytes) -> None:
    """Nothing, junk, half a stream, something behind it."""
    with pytest.raises(CorruptError, match=r"chunk|frame"):
        decode(name, memoryview(chunk), len(ROW), b"")


def test_bombs_end_at_the_promise() -> None:
    """A gigabyte of zeros in a megabyte, promised as ten bytes."""
    for name, chunk in [
        ("zlib", zlib.compress(bytes(1 << 28), 9)),
        ("zstd", zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 28))),
    ]:
        with pytest.raises(CorruptError):
            decode(name, memoryview(chunk), 10, b"")


def test_a_zstd_dictionary() -> None:
    """Given to the decoder as the field has it."""
    dictionary = zstandard.ZstdCompressionDict(ROW, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    chunk = zstandard.ZstdCompressor(dict_data=dictionary).compress(ROW[:300])
    assert decode("zstd", memoryview(chunk), 300, ROW) == ROW[:300]


def test_nothing_may_lie_behind_a_zstd_frame() -> None:
    """Nor may it be cut off, whether or not it says its size."""
    for chunk in (CHUNKS["zstd"] + b"x", UNSIZED + b"x", UNSIZED + UNSIZED, UNSIZED[:-4]):
        with pytest.raises(CorruptError):
            decode("zstd", memoryview(chunk), len(ROW), b"")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize(("name", "package"), [("zstd", "zstandard"), ("blosc2", "blosc2")])
def test_a_fork_in_the_middle_of_an_import(name: str, package: str) -> None:
    """The child can use the package that another thread of its parent was importing."""
    pytest.importorskip(package)
    script = f"""
import os, signal, sys, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == {package!r}:
            begun.set()
            time.sleep(0.3)
begun = threading.Event()
sys.meta_path.insert(0, Slow())
from chunkstore._format.codec import import_codec
thread = threading.Thread(target=import_codec, args=({name!r},))
thread.start()
begun.wait()
child = os.fork()
if child == 0:
    signal.alarm(10)
    import_codec({name!r})
    os._exit(0)
thread.join()
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
