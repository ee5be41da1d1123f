"""Real trees, the whole way: convert with every check, verify, and export back bit by bit."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chunkstore
from chunkstore.errors import IngestError

# A source, the options that it needs, the number of samples.
SOUND: list[tuple[str, dict[str, Any], int]] = [
    ("signs-mediapipe", {}, 1200),
    ("signs-mediapipe", {"layout": "classes"}, 1200),
    ("librispeech-pcm", {"exclude": ["dziendobry.npy"]}, 43),
    ("librispeech-pcm", {"on_error": "skip"}, 43),
    ("bark-voices", {"exclude": ["announcer.npz"]}, 270),
    ("bark-voices", {"dtype": ["semantic_prompt=int64", "coarse_prompt=int64", "fine_prompt=int32"]}, 271),
    ("tabular-anomaly", {"dtype": ["X=float64", "y=int64"]}, 32),
    ("npz-multi/rl-experts/expert_cartpole.npz", {}, 1),
    ("npz-multi/rl-experts/expert_pendulum.npz", {"layout": "rows", "fields": ["actions", "obs"]}, 20000),
    ("npz-multi/pneumonia-compressed", {"layout": "rows", "fields": ["x=train_images", "y=train_labels"]}, 3882),
    ("npz-multi/wavelets/cwt_matlabR2015b_result.npz", {}, 1),
    ("npz-multi/wavelets/wavelab_test_signals.npz", {}, 1),
    ("npz-multi/graphs/cora.npz", {}, 1),
    ("npz-multi/graphs", {"dtype": ["node_names=U33", "class_names=U22"]}, 2),
    ("odd-dtypes/matplotlib", {}, 1047),
    ("odd-dtypes/bio-npy", {}, 1),
    ("odd-dtypes/xtensor", {"include": ["double*"]}, 4),
    ("odd-dtypes/numsharp/empty.npy", {}, 1),
    ("odd-dtypes/numsharp", {"include": ["scalar*"]}, 2),
    ("odd-dtypes/ndarray-npy/examples_data_descriptor.npz", {}, 2),
    ("odd-dtypes/ndarray-npy", {"include": ["example_c64*"]}, 4),
    ("odd-dtypes/ndarray-npy/example_f64_big_endian_fortran.npy", {"layout": "rows"}, 2),
    ("odd-dtypes/ndarray-npy/example_c64_big_endian_fortran.npy", {"layout": "rows"}, 2),
    ("odd-dtypes/npyz/structured.npy", {}, 2),
    ("odd-dtypes/npyz/sparse/coo.npz", {}, 1),
    ("odd-dtypes/scipy-tests/fftw_longdouble_ref.npz", {"dtype": "float64"}, 1),
    ("odd-dtypes/scipy-linprog/80BAU3B.npz", {"fields": ["A_ub", "c"]}, 1),
    ("odd-dtypes/scipy-linprog", {"fields": ["c", "obj", "b_ub"]}, 77),
    ("damaged/numsharp/version2_large_header.npy", {}, 1),
    ("damaged/numsharp/version3_unicode.npy", {}, 1),
    ("damaged/bio-npy/win64python2.npy", {}, 2),
    ("damaged/wrong-extension/ecg.dat", {}, 108000),
    ("damaged/lava-lfs-mixed/conv", {}, 2),
    ("damaged/bad-values", {"include": ["surrogate.npy"]}, 1),
]
# Files of one field in several byte orders or memory orders: written in one of them, with equal values.
MIXED = {"odd-dtypes/xtensor", "odd-dtypes/ndarray-npy"}
OMNIGLOT = {"layout": "rows", "fields": ["strokes=train"], "allow_pickle": True}


def arrays(path: Path, names: list[str] | None = None, *, allow_pickle: bool = False) -> dict[str, Any]:
    """Arrays of a file by name, all or some; `""` for that of an `.npy`."""
    loaded = np.load(path, max_header_size=1 << 20, allow_pickle=allow_pickle)
    if isinstance(loaded, np.ndarray):
        return {"": loaded}
    with loaded:
        return {name: loaded[name] for name in names or loaded.files}


def names_in(path: Path) -> set[str]:
    """Names of all arrays of a file; `""` for that of an `.npy`. Loads none of them."""
    if not zipfile.is_zipfile(path):
        return {""}
    with zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def check_exported(source: Path, exported: Path, exact: bool, every: bool) -> int:
    """Every exported array equals the original: shape, bytes, and if `exact` dtype and order; if `every`, no array is
    missing. Returns their number.
    """
    count = 0
    root = source if source.is_dir() else source.parent
    for path in sorted(exported.rglob("*.*")):
        found = arrays(path)
        original = arrays(root / path.relative_to(exported), list(found))
        assert not every or names_in(root / path.relative_to(exported)) == set(found), path
        for name, array in found.items():
            want = original[name] if exact else original[name].astype(array.dtype)
            assert (array.dtype, array.shape) == (want.dtype, want.shape), (path, name)
            assert array.flags.f_contiguous == want.flags.f_contiguous or not exact, (path, name)
            assert array.tobytes() == want.tobytes(), (path, name)
            count += 1
    return count


@pytest.mark.filterwarnings("ignore:Reading `.npy` or `.npz` file required additional header parsing")
@pytest.mark.parametrize(("name", "options", "num_samples"), SOUND)
def test_sound_data(shared_data: Path, tmp_path: Path, name: str, options: dict[str, Any], num_samples: int) -> None:
    """Converted with `verify=True`, verified, read back equal by both back ends, exported bit by bit."""
    source, path = shared_data / name, tmp_path / "x.cks"
    report = chunkstore.convert(source, path, verify=True, **options)
    assert (report.num_samples, report.nbytes) == (num_samples, path.stat().st_size)
    assert report.verified
    assert chunkstore.verify(path, deep=True).ok
    assert chunkstore.convert(source, "not written", dry_run=True, **options).nbytes == report.nbytes
    with chunkstore.open(path, backend="mmap") as mapped, chunkstore.open(path, backend="pread") as read:
        assert mapped.fingerprint == read.fingerprint == report.fingerprint
        for place in {0, num_samples // 2, num_samples - 1}:
            other = read[place]
            for field, value in mapped[place].items():
                assert np.asarray(value).tobytes() == np.asarray(other[field]).tobytes()
    exported = chunkstore.export(path, tmp_path / "out")
    assert exported.num_files == report.num_files
    exact = "dtype" not in options and name not in MIXED
    every = "fields" not in options
    assert check_exported(source, tmp_path / "out", exact, every) >= report.num_files


def test_object_arrays(shared_data: Path, tmp_path: Path) -> None:
    """Ragged rows in one object array (30,000 drawings), read on request, come back as an object array."""
    source = shared_data / "odd-dtypes/omniglot-strokes"
    report = chunkstore.convert(source, tmp_path / "x.cks", verify=True, **OMNIGLOT)
    assert report.num_samples == 30000
    chunkstore.export(tmp_path / "x.cks", tmp_path / "out")
    found = arrays(tmp_path / "out/omniglot.npz", allow_pickle=True)["train"]
    wanted = np.load(source / "omniglot.npz", allow_pickle=True, encoding="latin1")["train"]
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)


DAMAGED = [
    ("damaged/bio-npy/overflow.npy", "truncated"),
    ("damaged/numpy-py2/py2-objarr.npy", "pickle"),
    ("damaged/lava-lfs-mixed", "git lfs pull"),
    ("damaged/empty-zip", "has no members"),
    ("damaged/bad-values/example_bool_bad_value.npy", "a bool array holds the byte 100"),
    ("librispeech-pcm", "dziendobry.npy: array 'data' has 2 dimensions"),
    ("odd-dtypes/omniglot-strokes", "--allow-pickle"),
]


@pytest.mark.parametrize(("name", "text"), DAMAGED)
def test_damaged_data(shared_data: Path, tmp_path: Path, name: str, text: str) -> None:
    """The message says what is wrong; nothing is published, nothing is left behind."""
    with pytest.raises(IngestError, match=text):
        chunkstore.convert(shared_data / name, tmp_path / "x.cks")
    assert list(tmp_path.iterdir()) == []
