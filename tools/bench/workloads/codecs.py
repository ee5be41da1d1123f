"""Random batches of compressed rows: codecs of chunkstore against those of other formats.

Each format compresses one row a chunk, which is what random reads want, and is read by its own best call. A format is
held against the fastest of our codecs that is at least as small. Where one that is larger by a thousandth is faster,
or none is as small, there is a figure for that, without a goal. Real data where the shared data sets are there, and
made ones with the statistics of images and of slow signals; noise would say nothing of either.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

import chunkstore
from tools.bench.bench import ROOT, Bench
from tools.bench.measure import Case, Timings, interleave
from tools.bench.record import Figure, at_least, skipped

Array = npt.NDArray[Any]
Positions = npt.NDArray[np.int64]
Read = Callable[[Positions], Array]
_BATCH: Final = 128
_NUM_BATCHES: Final = 4
_NEARLY: Final = 1.001  # as large: some bytes a row, which a head has more
_RAW_ROUNDS: Final = 200
_OWN: Final = (
    "zstd:1", "zstd:3", "zstd:9", "blosc2:lz4,5,shuffle", "blosc2:lz4,5,bitshuffle", "blosc2:lz4hc,9,bitshuffle",
    "blosc2:zstd,5,shuffle", "blosc2:zstd,5,bitshuffle",
)  # fmt: skip


def codecs(bench: Bench) -> Iterator[Figure]:
    """Warm random batches, and what raw fields beside compressed ones lose."""
    for name, rows in _data(bench):
        yield from _compare(bench, name, rows)
    yield _beside(bench)


def _data(bench: Bench) -> Iterator[tuple[str, Array]]:
    rng = np.random.default_rng(0)
    num = bench.inputs.count(400, 40)
    yield "made images 224x224x3 uint8", _images(rng, num)
    steps = rng.normal(0, 0.02, (8 * num, 4096)).cumsum(axis=1)
    yield "made signals 4096 float32", (steps + rng.normal(0, 0.001, steps.shape)).round(3).astype(np.float32)
    shared = Path(os.environ.get("CHUNKSTORE_SHARED_DATA") or ROOT.parent / "shared" / "data")
    files = sorted((shared / "signs-mediapipe").rglob("*.npy"))
    if files:
        yield "signs-mediapipe 1662 float64", np.stack([np.load(file) for file in files])
    sounds = [np.load(file) for file in sorted((shared / "librispeech-pcm").glob("*.npy"))]
    cut = [sound[: len(sound) // 8000 * 8000].reshape(-1, 8000) for sound in sounds if sound.ndim == 1]
    if cut:
        yield "librispeech-pcm 8000 int16", np.concatenate(cut)
    pneumonia = shared / "npz-multi" / "pneumonia-compressed" / "pneumoniamnist.npz"
    if pneumonia.exists():
        with np.load(pneumonia) as arrays:
            yield "pneumonia 28x28 uint8", arrays["train_images"]


def _images(rng: np.random.Generator, num: int) -> Array:
    """Power falls with the frequency as in photographs, with the noise of a sensor and areas that are white."""
    scale = 1 / np.maximum(np.hypot(*np.meshgrid(np.fft.fftfreq(224), np.fft.rfftfreq(224), indexing="ij")), 1 / 224)
    found = np.empty((num, 224, 224, 3), np.uint8)
    for place in range(num):
        waves = rng.normal(size=(3, 224, 113)) + 1j * rng.normal(size=(3, 224, 113))
        image = np.fft.irfft2(waves * scale**1.2, (224, 224)) * 9 + rng.normal(0, 0.04, (3, 224, 224))
        found[place] = np.clip(image.transpose(1, 2, 0) * 40 + 150, 0, 255)
    return found


def _compare(bench: Bench, name: str, rows: Array) -> Iterator[Figure]:
    rng = np.random.default_rng(1)
    batches = list(rng.integers(0, len(rows), (_NUM_BATCHES, _BATCH)))
    readers: dict[str, Read] = {}
    ratios: dict[str, float] = {}
    reasons: dict[str, str] = {}
    folder = bench.scratch / "codecs"
    folder.mkdir(exist_ok=True)
    for number, (label, make) in enumerate(_formats().items()):
        path = folder / f"{number}"
        try:
            readers[label] = make(path, rows)
        except ImportError as error:
            reasons[label] = str(error)
            continue
        nbytes = sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
        ratios[label] = rows.nbytes / nbytes
        for positions in batches:  # also the pass that proves and warms
            if not np.array_equal(readers[label](positions), rows[positions]):
                raise RuntimeError(f"{label}: {name}: the rows differ")
    timings = interleave([Case(label, _reading(read, batches)) for label, read in readers.items()], bench.rounds)
    yield from _figures(name, rows, timings, ratios)
    for label, reason in reasons.items():
        yield skipped("codecs", f"{name}, {label}", reason)


def _reading(read: Read, batches: list[Positions]) -> Callable[[], None]:
    def run() -> None:
        for positions in batches:
            read(positions)

    return run


def _figures(name: str, rows: Array, timings: Timings, ratios: Mapping[str, float]) -> Iterator[Figure]:
    own = [label for label in ratios if label in _OWN]
    nbytes = _NUM_BATCHES * _BATCH * rows[0].nbytes
    rates = {label: nbytes / timings.best(label) for label in ratios}
    noted = f"best of {len(next(iter(timings.seconds.values())))} interleaved rounds"
    for label in own:
        detail = {"ratio": ratios[label]}
        yield Figure("codecs", f"{name}, {label}", rates[label] / 1e6, "MB/s", None, noted, detail)
    for label in (label for label in ratios if label not in own):
        equal = [mine for mine in own if ratios[mine] >= ratios[label]]
        nearly = [mine for mine in own if ratios[mine] * _NEARLY >= ratios[label]]
        chosen = [max(equal, key=lambda mine: rates[mine])] if equal else []
        chosen.append(max(nearly, key=lambda mine: rates[mine]) if nearly else max(own, key=lambda mine: ratios[mine]))
        for best in dict.fromkeys(chosen):
            detail = {"ratio": ratios[label], "MB/s": rates[label] / 1e6}
            detail |= {"own ratio": ratios[best], "own MB/s": rates[best] / 1e6}
            names = {each: timings.seconds[each] for each in (best, label)}
            larger = "" if best in equal else f", which is {1 - ratios[best] / ratios[label]:.3%} smaller"
            goal = at_least(2) if best in equal else None
            case = f"{name}, {best} over {label}{larger}"
            yield Figure("codecs", case, rates[best] / rates[label], "x", goal, noted, detail, names)


def _formats() -> Mapping[str, Callable[[Path, Array], Read]]:
    found: dict[str, Callable[[Path, Array], Read]] = {text: _own(text) for text in _OWN}
    found["h5py gzip"] = _hdf5({"compression": "gzip", "compression_opts": 4, "shuffle": True})
    found["h5py blosc lz4"] = _hdf5("lz4")
    found["h5py blosc zstd"] = _hdf5("zstd")
    found["zarr blosc lz4"] = _zarr("lz4")
    found["zarr blosc zstd"] = _zarr("zstd")
    found["ArrayRecord zstd"] = _array_record
    return found


def _own(text: str) -> Callable[[Path, Array], Read]:
    def make(path: Path, rows: Array) -> Read:
        path.unlink(missing_ok=True)
        with chunkstore.Writer(path, num_samples=len(rows), codec={"x": text}) as writer:
            writer.add_batch({"x": rows})
        data, out = chunkstore.open(path), np.empty((_BATCH, *rows.shape[1:]), rows.dtype)
        return lambda positions: data.batch(positions, out={"x": out})["x"]  # type: ignore[return-value]

    return make


def _hdf5(how: Any) -> Callable[[Path, Array], Read]:
    def make(path: Path, rows: Array) -> Read:
        import h5py

        options = how
        if isinstance(how, str):
            import hdf5plugin

            options = dict(hdf5plugin.Blosc(cname=how, clevel=5, shuffle=hdf5plugin.Blosc.SHUFFLE))
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=rows, chunks=(1, *rows.shape[1:]), **options)
        # without room for decoded chunks: every row is decoded, as everywhere else
        data, out = h5py.File(path, "r", rdcc_nbytes=0)["x"], np.empty((_BATCH, *rows.shape[1:]), rows.dtype)

        def read(positions: Positions) -> Array:
            for place, position in enumerate(positions.tolist()):
                data.read_direct(out, np.s_[position], np.s_[place])
            return out

        return read

    return make


def _zarr(name: str) -> Callable[[Path, Array], Read]:
    def make(path: Path, rows: Array) -> Read:
        import zarr

        codec = zarr.codecs.BloscCodec(cname=name, clevel=5, shuffle="shuffle")
        data = zarr.create_array(
            path, shape=rows.shape, chunks=(1, *rows.shape[1:]), dtype=rows.dtype, compressors=codec, overwrite=True
        )
        data[:] = rows

        def read(positions: Positions) -> Array:
            unique, places = np.unique(positions, return_inverse=True)
            found: Array = data.get_orthogonal_selection((unique,))[places]
            return found

        return read

    return make


def _array_record(path: Path, rows: Array) -> Read:
    from array_record.python import array_record_module as module

    writer = module.ArrayRecordWriter(str(path), "group_size:1,zstd:3")
    for row in rows:
        writer.write(row.tobytes())
    writer.close()
    reader = module.ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
    out = np.empty((_BATCH, *rows.shape[1:]), rows.dtype)
    flat, nbytes = out.reshape(-1).view(np.uint8).data, rows[0].nbytes

    def read(positions: Positions) -> Array:
        for place, record in enumerate(reader.read(positions.tolist())):
            flat[place * nbytes : (place + 1) * nbytes] = record
        return out

    return read


def _beside(bench: Bench) -> Figure:
    """A raw field beside a compressed one over the same alone; and, as a measure of the noise, over alone once more.

    A round of some milliseconds is over before a processor has changed its clock, or in the midst of another process:
    the fastest of few rounds says which of the files was lucky. So the median of many.
    """
    rng = np.random.default_rng(2)
    rows = rng.integers(0, 256, (bench.inputs.count(40_000, 2000), 1024), np.uint8)
    other = {"y": np.zeros((len(rows), 256), np.uint8)}
    batches, out = list(rng.integers(0, len(rows), (40, 256))), np.empty((256, 1024), np.uint8)
    cases = []
    for number, (name, more) in enumerate((("alone", {}), ("beside zstd", other), ("alone again", {}))):
        path = bench.scratch / f"codecs-{number}.cks"
        with chunkstore.Writer(path, num_samples=len(rows), codec={"y": "zstd"} if more else None) as writer:
            writer.add_batch({"x": rows, **more})
        data = chunkstore.open(path)
        data.column("x")  # all of it is proven, in all
        cases.append(Case(name, _reading(_raw(data, out), batches)))
    timings = interleave(cases, _RAW_ROUNDS)
    value = timings.speed_ratio("beside zstd", "alone", "median")
    noted = f"median of {_RAW_ROUNDS} interleaved rounds"
    detail = {"alone again": timings.speed_ratio("alone again", "alone", "median")}
    case = "raw field beside a compressed one over alone"
    return Figure("codecs", case, value, "x", at_least(0.95), noted, detail, timings.seconds)


def _raw(data: chunkstore.Reader, out: Array) -> Read:
    return lambda positions: data.batch(positions, fields=["x"], out={"x": out})["x"]  # type: ignore[return-value]
