"""Real trees: every sound folder becomes a plan whose rows equal the files; every damaged file gets its message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chunkstore._ingest.plan.plan import Plan
from chunkstore._ingest.plan.planner import make_plan
from chunkstore._ingest.plan.read import PlanReader
from chunkstore._ingest.plan.scan import scan_sources
from chunkstore.errors import IngestError

SOUND: list[tuple[str, dict[str, Any], str, int]] = [
    ("signs-mediapipe", {}, "files", 1200),
    ("librispeech-pcm", {"exclude": ["dziendobry.npy"]}, "files", 43),
    ("bark-voices", {"exclude": ["announcer.npz"]}, "files", 270),
    ("bark-voices", {"dtype": ["semantic_prompt=int64", "coarse_prompt=int64", "fine_prompt=int32"]}, "files", 271),
    ("tabular-anomaly", {"dtype": ["X=float64", "y=int64"]}, "files", 32),
    ("npz-multi/rl-experts/expert_cartpole.npz", {}, "files", 1),
    ("npz-multi/rl-experts/expert_pendulum.npz", {"layout": "rows", "fields": ["actions", "obs"]}, "rows", 20000),
    ("npz-multi/pneumonia-compressed", {}, "files", 1),
    (
        "npz-multi/pneumonia-compressed",
        {"layout": "rows", "fields": ["image=train_images", "label=train_labels"]},
        "rows",
        3882,
    ),
    ("npz-multi/wavelets/cwt_matlabR2015b_result.npz", {}, "files", 1),
    ("npz-multi/wavelets/wavelab_test_signals.npz", {}, "files", 1),
    ("npz-multi/graphs/cora.npz", {}, "files", 1),
    ("npz-multi/graphs", {"dtype": ["node_names=U33", "class_names=U22"]}, "files", 2),
    ("odd-dtypes/matplotlib", {}, "rows", 1047),
    ("odd-dtypes/bio-npy", {}, "files", 1),
    ("odd-dtypes/xtensor", {"include": ["double*"]}, "files", 4),
    ("odd-dtypes/numsharp/empty.npy", {}, "files", 1),
    ("odd-dtypes/numsharp", {"include": ["scalar*"]}, "files", 2),
    ("odd-dtypes/ndarray-npy/examples_data_descriptor.npz", {}, "rows", 2),
    ("odd-dtypes/ndarray-npy", {"include": ["example_c64*"]}, "files", 4),
    ("odd-dtypes/npyz/structured.npy", {}, "rows", 2),
    ("odd-dtypes/npyz/sparse/coo.npz", {}, "files", 1),
    ("odd-dtypes/scipy-tests/fftw_longdouble_ref.npz", {"dtype": "float64"}, "files", 1),
    ("odd-dtypes/scipy-linprog/80BAU3B.npz", {"fields": ["A_ub", "c"]}, "files", 1),
    ("odd-dtypes/scipy-linprog", {"fields": ["c", "obj", "b_ub"], "on_error": "skip"}, "files", 77),
    ("damaged/numsharp/version2_large_header.npy", {}, "files", 1),
    ("damaged/numsharp/version3_unicode.npy", {}, "files", 1),
    ("damaged/bio-npy/win64python2.npy", {}, "rows", 2),
    ("damaged/wrong-extension/ecg.dat", {}, "rows", 108000),
    ("damaged/lava-lfs-mixed/conv", {}, "files", 2),
    ("damaged/bad-values", {"include": ["surrogate.npy"]}, "files", 1),
]


def plan(source: Path, **options: Any) -> Plan:
    scan = {name: options.pop(name) for name in ("include", "exclude") if name in options}
    return make_plan(scan_sources([source], **scan), **options)


def check(made: Plan, root: Path) -> None:
    """Every row of every field against what NumPy loads."""
    opened: dict[str, Any] = {}
    with PlanReader(made) as reader:
        for number, (field, column) in enumerate(zip(made.fields, made.columns, strict=True)):
            shapes = made.row_shapes(number)
            step = max(1, made.num_samples // 40)
            for sample in range(0, made.num_samples, step):
                shape = (*shapes[sample].tolist(), *field.item_shape)
                out = np.empty(shape, field.numpy_dtype)
                reader.read(number, sample, sample + 1, out.reshape(-1).view(np.uint8))
                piece = sample if column.start is None else int(np.searchsorted(column.start, sample, "right")) - 1
                path = made.file_path(int(column.file[piece]))
                if path not in opened:
                    opened[path] = np.load(path, max_header_size=1 << 20)
                want = opened[path] if column.array is None else opened[path][column.array]
                for name in column.member:
                    want = want[name]
                if column.start is not None:
                    want = want[sample - int(column.start[piece])]
                want = np.asarray(want).astype(field.numpy_dtype)
                assert want.shape == out.shape
                assert want.tobytes() == out.tobytes(), (path, field.name)


@pytest.mark.filterwarnings("ignore:Reading `.npy` or `.npz` file required additional header parsing")
@pytest.mark.parametrize(("name", "options", "layout", "num_samples"), SOUND)
def test_sound_data(shared_data: Path, name: str, options: dict[str, Any], layout: str, num_samples: int) -> None:
    """The layout that `auto` (or the option) gives, the number of samples, and the values of up to 40 rows of each
    field.
    """
    made = plan(shared_data / name, **dict(options))
    assert (made.layout, made.num_samples, len(made.skipped)) == (layout, num_samples, 0)
    check(made, shared_data / name)


DAMAGED = [
    (
        "damaged/bio-npy/overflow.npy",
        r"truncated: no data at all: shape \(65536, 65536\) of float64 needs 34,359,738,496 bytes",
    ),
    ("damaged/numpy-py2/py2-objarr.npy", "object arrays are Python pickles.*--allow-pickle"),
    ("damaged/numpy-py2/py2-np0-objarr.npy", "object arrays are Python pickles.*--allow-pickle"),
    ("damaged/numpy-py2/py2-objarr.npz", "array 'x': .*object arrays are Python pickles.*--allow-pickle"),
    ("damaged/lava-lfs-mixed", "Git LFS pointer.*was not downloaded.*git lfs pull"),
    (
        "damaged/lava-lfs-mixed/s4d/dA_complex.npy",
        "dA_complex.npy: not an .npy file: this is a Git LFS pointer.*80,128 bytes",
    ),
    ("damaged/empty-zip", "has no members"),
    ("damaged/bad-values", "cannot become|has dtype|has 1 dimension|has 3 dimensions"),
    (
        "librispeech-pcm",
        r"dziendobry.npy: array 'data' has 2 dimensions, the other 43 files have 1 dimension.*--exclude 'dziendobry",
    ),
    ("bark-voices", r"announcer.npz: array 'semantic_prompt' has dtype uint16, the other 270 files have int64"),
    ("npz-multi/graphs", r"cora.npz: array 'node_names' has dtype <U7, the other file has <U33"),
    ("odd-dtypes/npyz/pickle.npy", "object arrays are Python pickles"),
    (
        "odd-dtypes/omniglot-strokes",
        "array 'valid': .*object arrays are Python pickles \\(ragged data often come so\\)",
    ),
    ("odd-dtypes/scipy-tests/fftw_longdouble_ref.npz", "say --dtype .*=float64"),
    ("odd-dtypes/scipy-linprog", "array 'bounds'"),
]


@pytest.mark.parametrize(("name", "text"), DAMAGED)
def test_damaged_or_odd_data(shared_data: Path, name: str, text: str) -> None:
    """The message names the file, what it is, and what to do."""
    with pytest.raises(IngestError, match=text):
        plan(shared_data / name)


def test_bool_that_is_none(shared_data: Path) -> None:
    """Bytes that are neither 0 nor 1 show when they are read; as uint8 they can be kept."""
    path = shared_data / "damaged/bad-values/example_bool_bad_value.npy"
    made = plan(path)
    with PlanReader(made) as reader, pytest.raises(IngestError, match=r"a bool array holds the byte 100"):
        reader.read(0, 0, made.num_samples, bytearray(made.nbytes(0)))
    made = plan(path, dtype=["data=uint8"])
    with PlanReader(made) as reader:
        out = bytearray(made.nbytes(0))
        reader.read(0, 0, made.num_samples, out)
    assert path.read_bytes().endswith(bytes(out))


def test_strokes_with_allow_pickle(shared_data: Path) -> None:
    """1000 drawings of varying length come out of one object array."""
    path = shared_data / "odd-dtypes/omniglot-strokes"
    made = plan(path, allow_pickle=True, layout="rows", fields=["drawing=valid"])
    assert (made.num_samples, made.fields[0].dtype, made.fields[0].shape) == (1000, "int16", (None, 3))
    want = np.load(path / "omniglot.npz", allow_pickle=True, encoding="latin1")["valid"]
    out = bytearray(made.nbytes(0))
    with PlanReader(made) as reader:
        reader.read(0, 0, 1000, out)
    assert out == b"".join(row.tobytes() for row in want)


def test_lfs_pointers_can_be_skipped(shared_data: Path) -> None:
    """With on_error="skip" all ten pointers are listed, and the two good archives are left."""
    made = plan(shared_data / "damaged/lava-lfs-mixed", on_error="skip")
    assert made.num_samples == 2
    assert sum("Git LFS pointer" in item.reason for item in made.skipped) == 10


def test_natural_order_of_frames(shared_data: Path) -> None:
    """Frames are in the order of their numbers."""
    made = plan(shared_data / "signs-mediapipe")
    keys = list(made.keys or [])
    assert keys[:3] == ["hello/0/0", "hello/0/1", "hello/0/2"]
    assert keys[30 * 10] == "hello/10/0"
