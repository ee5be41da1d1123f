"""The fast way to decode many chunks gives what the plain way gives, or leaves them to it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from chunkstore._format import codec
from chunkstore._format.codec import decode
from chunkstore._format.decode import batch_decoder, zstd_frames
from chunkstore._format.encode import Encoder, parse_codec
from chunkstore.errors import CorruptError

blosc2 = pytest.importorskip("blosc2")
SKIPPABLE = struct.pack("<II", 0x184D2A50, 4) + b"abcd"


def rows_of(seed: int, sizes: list[int]) -> list[bytes]:
    """Rows that compress: a walk of small steps."""
    rng = np.random.default_rng(seed)
    return [np.cumsum(rng.integers(-2, 3, n)).astype(np.uint8).tobytes() for n in sizes]


def laid_out(chunks: list[bytes]) -> tuple[Any, Any, Any]:
    """(memory, offsets, nbytes): chunks behind each other, in turned order, with something between them."""
    data, offsets = bytearray(b"head"), []
    for chunk in reversed(chunks):
        offsets.insert(0, len(data))
        data += chunk + b"gap"
    return np.frombuffer(bytes(data), np.uint8), np.array(offsets), np.array([len(chunk) for chunk in chunks])


def plain(name: str, chunk: bytes, size: int, dictionary: bytes = b"") -> bytes | None:
    try:
        return decode(name, memoryview(chunk), size, dictionary)
    except CorruptError:
        return None


def fast(name: str, chunks: list[bytes], sizes: list[int], dictionary: bytes = b"", threads: int = 1) -> list[Any]:
    """As the reader does it: what is impossible or unusual goes the plain way, and all if one fails."""
    decoder = batch_decoder(name, dictionary)
    data, offsets, nbytes = laid_out(chunks)
    wanted = np.array(sizes)
    if not decoder.possible(nbytes, wanted).all() or not decoder.ordinary(data, offsets, nbytes, wanted).all():
        return [plain(name, chunk, size, dictionary) for chunk, size in zip(chunks, sizes, strict=True)]
    out = np.full(int(wanted.sum()) + 64, 0xAA, np.uint8)
    done = decoder.decode(data, offsets, nbytes, wanted, out[:-64], threads)
    assert (out[-64:] == 0xAA).all()  # nothing is written behind the rows
    if not done:
        return [plain(name, chunk, size, dictionary) for chunk, size in zip(chunks, sizes, strict=True)]
    ends = np.cumsum(wanted).tolist()
    return [out[end - size : end].tobytes() for end, size in zip(ends, sizes, strict=True)]


CODECS = ["zlib", "zstd", "zstd:19", "zstd:-5", "blosc2", "blosc2:lz4,9,bitshuffle", "blosc2:nofilter"]


@pytest.mark.parametrize("codec", CODECS)
@given(
    sizes=st.lists(st.sampled_from([1, 2, 15, 255, 256, 257, 300, 65_791, 65_792, 140_000]), min_size=1, max_size=9),
    seed=st.integers(0, 99),
    threads=st.integers(1, 3),
)
def test_rows_come_back(codec: str, sizes: list[int], seed: int, threads: int) -> None:
    """Rows of all sizes, around those at which a frame has another form, are decoded by the fast way."""
    options = parse_codec(codec)
    encoder, rows = Encoder(options, 1), rows_of(seed, sizes)
    chunks = [encoder.encode(memoryview(row), np.array([len(row)]))[0] for row in rows]
    decoder = batch_decoder(options.name, b"")
    data, offsets, nbytes = laid_out(chunks)
    assert decoder.ordinary(data, offsets, nbytes, np.array(sizes)).all()
    assert fast(options.name, chunks, sizes, threads=threads) == rows


@given(seed=st.integers(0, 9), threads=st.integers(1, 3))
def test_rows_come_back_with_a_dictionary(seed: int, threads: int) -> None:
    """A dictionary of the field, and frames that name theirs or do not."""
    dictionary = b"".join(rows_of(seed, [4000]))
    shared = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    rows = [dictionary[100 * i : 100 * i + 150] for i in range(9)]
    for write_id in (True, False):
        encoder = zstandard.ZstdCompressor(dict_data=shared, write_dict_id=write_id)
        chunks = [encoder.compress(row) for row in rows]
        assert fast("zstd", chunks, [150] * 9, dictionary, threads) == rows


def test_bytes_are_not_shuffled() -> None:
    """Shuffling elements of one byte leaves them as they are, and the decoder would take its time for it."""
    row = memoryview(rows_of(2, [4096])[0])
    for width, filters in ((1, bytes(6)), (4, bytes([1, 0, 0, 0, 0, 0]))):
        chunk, _ = Encoder(parse_codec("blosc2:zstd,5,shuffle"), width).encode(row, np.array([4096]))
        assert chunk[16:22] == filters
        assert decode("blosc2", memoryview(chunk), 4096, b"") == row


def hostile(name: str, encode: Callable[[bytes], bytes]) -> list[bytes]:
    """What is no chunk of 1000 bytes, or not an ordinary one."""
    row = b"".join(rows_of(3, [1000]))
    good = encode(row)
    found = [good, good + b"x", good + SKIPPABLE, good + encode(b"y"), good[:-1], good[:5], b"\0" * 40, good * 2]
    found += [SKIPPABLE + good, encode(row[:-1]), encode(row + b"x"), encode(row)[::-1]]
    if name == "zstd":
        found.append(zstandard.ZstdCompressor(write_content_size=False).compress(row))
        found.append(zstandard.ZstdCompressor(write_checksum=True).compress(row))
        found.append(good + zstandard.ZstdCompressor().compress(b""))
        found.append(good[:5] + struct.pack("<H", 0xFFFF) + good[7:])
    return found


@pytest.mark.parametrize("name", ["zlib", "zstd", "blosc2"])
def test_hostile_chunks(name: str) -> None:
    """Junk behind, before and inside; other sizes: both ways say the same of each."""
    encoder = Encoder(parse_codec(name), 1)
    chunks = hostile(name, lambda row: encoder.encode(memoryview(row), np.array([len(row)]))[0])
    for chunk in chunks:
        assert fast(name, [chunk, chunks[0], chunk], [1000] * 3) == [
            plain(name, c, 1000) for c in (chunk, chunks[0], chunk)
        ]


@pytest.mark.parametrize("name", ["zlib", "zstd", "blosc2"])
@given(data=st.data())
def test_flipped_bytes(name: str, data: st.DataObject) -> None:
    """Any bytes of a chunk changed: the fast way gives what the plain one gives, or nothing."""
    encoder, row = Encoder(parse_codec(name), 1), b"".join(rows_of(5, [700]))
    chunk = bytearray(encoder.encode(memoryview(row), np.array([700]))[0])
    for _ in range(data.draw(st.integers(1, 3))):
        chunk[data.draw(st.integers(0, len(chunk) - 1))] = data.draw(st.integers(0, 255))
    chunks = [bytes(chunk)] * 3
    assert fast(name, chunks, [700] * 3) == [plain(name, bytes(chunk), 700)] * 3


@given(st.binary(min_size=1, max_size=60), st.integers(1, 1000))
def test_any_bytes_are_no_frame(junk: bytes, size: int) -> None:
    """The walk along the blocks stays inside the chunk, whatever it finds."""
    chunk = zstandard.ZstdCompressor().compress(b"a" * size)[:6] + junk
    data, offsets, nbytes = laid_out([chunk, junk])
    assert zstd_frames(data, offsets, nbytes, np.array([size, size])).shape == (2,)


def test_promises_that_no_chunk_can_hold() -> None:
    """Found by the sizes alone, before there is memory for the rows."""
    for name, chunk in (("zlib", zlib.compress(b"x" * 9)), ("zstd", zstandard.compress(b"x" * 9))):
        decoder = batch_decoder(name, b"")
        assert not decoder.possible(np.array([len(chunk)]), np.array([1 << 40]))[0]
    decoder = batch_decoder("blosc2", b"")
    assert decoder.possible(np.array([32, 31, 32]), np.array([(1 << 31) - 1, 9, 1 << 31])).tolist() == [
        True,
        False,
        False,
    ]


def test_a_frame_of_very_many_blocks_is_left_to_the_plain_way() -> None:
    """A chain of empty blocks of 3 bytes each is not followed to its end."""
    frame = zstandard.compress(b"a")[:6] + b"\0\0\0" * 100_000 + b"\x09\0\0a"
    data, offsets, nbytes = laid_out([frame])
    assert not zstd_frames(data, offsets, nbytes, np.array([1]))[0]
    assert plain("zstd", frame, 1) == b"a"


def blosc2_chunk(row: bytes, width: int = 4, **changed: int) -> bytes:
    """A Blosc2 chunk with some bytes of its head changed, by their place: `at31=0x40`."""
    chunk = bytearray(blosc2.compress2(row, typesize=width, blocksize=len(row), nthreads=1))
    for place, value in changed.items():
        chunk[int(place.removeprefix("at"))] = value
    return bytes(chunk)


@pytest.mark.parametrize(
    "changed",
    [
        {"at31": 0x40},  # not initialized: decodes to whatever was in memory
        {"at31": 0x50},
        {"at31": 0x08},  # lazy: the rest is in another file
        {"at31": 0x01},
        {"at31": 0x80},
        {"at30": 1},
        {"at2": 0xC5},  # compressor: a plug-in
        {"at21": 32},  # filter: a plug-in
        {"at2": 0x01},  # the short head of Blosc1
        {"at3": 0},
        {"at3": 7},  # its blocks are not a whole number of elements
    ],
)
def test_blosc2_chunks_whose_rows_do_not_follow_from_their_bytes(changed: dict[str, int]) -> None:
    """Neither way decodes them: the package would give memory of this process, or run other code."""
    row = rows_of(1, [4096])[0]
    assert plain("blosc2", blosc2_chunk(row), 4096) == row
    chunk = blosc2_chunk(row, **changed)
    assert plain("blosc2", chunk, 4096) is None
    data, offsets, nbytes = laid_out([chunk, blosc2_chunk(row)])
    ordinary = batch_decoder("blosc2", b"").ordinary(data, offsets, nbytes, np.array([4096, 4096]))
    assert ordinary.tolist() == [False, True]


@given(place=st.integers(0, 31), value=st.integers(0, 255), width=st.sampled_from([1, 3, 4, 8]), zeros=st.booleans())
def test_both_ways_take_the_same_blosc2_heads(place: int, value: int, width: int, zeros: bool) -> None:
    """What the fast way is given, the plain way does not refuse by its head; and the other way round."""
    row = bytes(480) if zeros else rows_of(1, [480])[0]
    chunk = blosc2_chunk(row, width, **{f"at{place}": value})
    data, offsets, nbytes = laid_out([chunk])
    ordinary = bool(batch_decoder("blosc2", b"").ordinary(data, offsets, nbytes, np.array([480]))[0])
    try:
        codec._check_blosc2_head(chunk, 480)
    except CorruptError:
        assert not ordinary
    else:
        assert ordinary
