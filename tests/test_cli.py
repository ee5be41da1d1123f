"""The command line: every command, the usual mistakes, exit codes, both streams."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from command import run

import chunkstore
from chunkstore import __main__ as start_module
from chunkstore._cli import demo as demo_module
from chunkstore._cli.guard import exit_code, message
from chunkstore._cli.main import cli
from chunkstore._cli.output import bar, wrapped
from chunkstore._ingest.convert.progress import Progress

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = cli.list_commands(click.Context(cli))
NO_SUCH_COMMAND = getattr(click.exceptions, "NoSuchCommand", click.UsageError).__name__  # its own class in newer clicks
LFS_POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


def good(*arguments: object) -> str:
    """Run a command that must end well; return what it wrote to stdout."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def bad(code: int, *arguments: object) -> str:
    """Run a command that must end with this exit code; return what it wrote to stderr."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.stderr
    return result.stderr


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start a real process."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "chunkstore", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": path}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, **{"stdout": pipe, "stderr": pipe, "text": True, "env": env, **options})


def flip_bit(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """24 images in two class folders; every value is its own."""
    for start_value, name in ((0, "cat"), (100, "dog")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(12):
            image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) + np.uint8(start_value + number)
            np.save(tmp_path / "data" / name / f"{number:04d}.npy", image)
    return tmp_path / "data"


@pytest.fixture
def container(data: Path, tmp_path: Path) -> Path:
    """Those images as a container with labels."""
    path = tmp_path / "photos.cks"
    chunkstore.convert(data, path, layout="classes", fields=["image=data"])
    return path


@pytest.fixture
def ragged(tmp_path: Path) -> Path:
    """Ten samples without keys: ragged rows, and a text."""
    path = tmp_path / "ragged.cks"
    with chunkstore.Writer(path, fields={"x": ("float32", (None, 2)), "text": "string"}) as writer:
        for number in range(10):
            writer.add({"x": np.full((number, 2), number, np.float32), "text": f"line\n{number}"})
    return path


# -- help -------------------------------------------------------------------------------------------------------------


def test_help_lists_every_command() -> None:
    """`chunkstore --help` has each command with a sentence that is not cut off."""
    text = good("--help")
    lines = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ") and line.split()}
    for name in COMMANDS:
        assert lines[name].rstrip().endswith(".")
        assert "..." not in lines[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_command(name: str) -> None:
    """Each command explains itself, every option has a help text, and there are examples where it takes arguments."""
    text = good(name, "--help")
    assert f"Usage: {cli.name or 'cli'} {name}" in text
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert [p.name for p in command.params if isinstance(p, click.Option) and not p.help] == []
    assert "Examples:" in text or name == "demo"


def test_version() -> None:
    assert good("--version").strip().endswith(chunkstore.__version__)


def test_help_needs_no_numpy() -> None:
    """Help is there at once: it does not wait for NumPy to be imported."""
    code = "import sys; from chunkstore._cli.main import cli; cli.main(['--help'], standalone_mode=False); "
    code += "assert 'numpy' not in sys.modules and 'tqdm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)


def test_every_command_that_reports_has_json() -> None:
    """`refs` prints nothing but JSON."""
    for name in set(COMMANDS) - {"demo", "refs"}:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert "as_json" in [param.name for param in command.params]


# -- the commands -----------------------------------------------------------------------------------------------------


def test_convert_says_what_and_what_next(data: Path, tmp_path: Path) -> None:
    """The explanation, the counts, and the next command."""
    text = good("convert", data, tmp_path / "x.cks")
    assert "Layout files" in text
    assert "24 samples" in text
    assert "next: chunkstore info" in text
    assert chunkstore.verify(tmp_path / "x.cks").ok


def test_convert_options(data: Path, tmp_path: Path) -> None:
    """Each option of the command reaches the converter."""
    out = tmp_path / "x.cks"
    options = ["--layout", "classes", "--field", "image=data", "--dtype", "image=int32", "--include", "*/000*"]
    options += [
        "--exclude",
        "dog/*",
        "--workers",
        "2",
        "--shard-size",
        "1KiB",
        "--verify",
        "--on-error",
        "skip",
        "--json",
    ]
    report = json.loads(good("convert", data, out, "--json", *options))
    assert report["num_samples"] == 10
    assert report["verified"] is True
    with chunkstore.open(out) as ds:
        assert ds.fields["image"].dtype == "int32"
        assert set(ds.fields) == {"image", "label"}
        assert len(ds._index.shard_starts) > 2
        assert all(key.startswith("cat/000") for key in ds.keys or ())


def test_convert_same_bytes_for_any_workers(data: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        good("convert", data, tmp_path / f"{workers}.cks", "--workers", workers, "--shard-size", "512")
    assert (tmp_path / "1.cks").read_bytes() == (tmp_path / "2.cks").read_bytes()


def test_convert_dry_run_writes_nothing(data: Path, tmp_path: Path) -> None:
    """The plan and the exact size, and no file."""
    report = json.loads(good("convert", data, tmp_path / "x.cks", "--dry-run", "--json"))
    assert not (tmp_path / "x.cks").exists()
    good("convert", data, tmp_path / "x.cks")
    assert report["nbytes"] == (tmp_path / "x.cks").stat().st_size
    assert "nothing was written" in good("convert", data, tmp_path / "x.cks", "--dry-run")


def test_convert_skip_lists_files_and_exits_1(data: Path, tmp_path: Path) -> None:
    """What was left out is listed with the reason; the container is there."""
    (data / "cat" / "0003.npy").write_bytes(b"no array")
    result = run("convert", data, tmp_path / "x.cks", "--on-error", "skip")
    assert result.exit_code == 1
    assert "0003.npy" in result.stdout
    assert len(chunkstore.open(tmp_path / "x.cks")) == 23


def test_info(container: Path) -> None:
    """Text and JSON tell of fields, sizes that add up, and identity."""
    text = good("info", container)
    for word in (
        "image",
        "uint8",
        "(4, 4, 3)",
        "label",
        "fingerprint",
        "generation",
        "uuid",
        "layout classes",
        "overhead",
    ):
        assert word in text
    facts = json.loads(good("info", container, "--json"))
    sizes = facts["sizes"]
    parts = ("data", "superblocks", "index", "padding", "superseded")
    assert sum(sizes[f"{part}_nbytes"] for part in parts) == container.stat().st_size == sizes["file_nbytes"]
    assert facts["num_samples"] == 24
    assert [field["name"] for field in facts["fields"]] == ["image", "label"]
    assert facts["attrs"] == {"class_names": {"label": ["cat", "dog"]}}
    assert facts["fingerprint"] == chunkstore.open(container).fingerprint


def test_info_after_append(container: Path, tmp_path: Path) -> None:
    """The sizes add up with several segments, too."""
    with chunkstore.Writer(container, mode="a") as writer:
        for number in range(5):
            writer.add({"image": np.zeros((4, 4, 3), np.uint8), "label": 1}, key=f"new/{number}")
            writer.commit()
    sizes = json.loads(good("info", container, "--json"))["sizes"]
    parts = ("data", "superblocks", "index", "padding", "superseded")
    assert sum(sizes[f"{part}_nbytes"] for part in parts) == container.stat().st_size
    assert sizes["padding_nbytes"] >= 0


def test_info_of_damaged_superblock(container: Path) -> None:
    """One damaged superblock is survived, and said."""
    flip_bit(container, 4096 + 100)
    assert "DAMAGED" in good("info", container)


def test_ls(container: Path, ragged: Path) -> None:
    """Positions and keys, patterns, shapes; one JSON object per line."""
    assert good("ls", container, "--head", "2").splitlines() == [" 0  cat/0000", " 1  cat/0001"]
    assert good("ls", container, "dog/*3").split() == ["15", "dog/0003"]
    assert "image(4, 4, 3)" in good("ls", container, "--long", "--head", "1")
    lines = [json.loads(line) for line in good("ls", ragged, "--long", "--json").splitlines()]
    assert [line["shapes"]["x"] for line in lines] == [[number, 2] for number in range(10)]
    assert lines[3] == {"position": 3, "key": None, "nbytes": 3 * 8 + 6, "shapes": {"x": [3, 2], "text": [6]}}
    assert "no keys" in bad(2, "ls", ragged, "cat*")


def test_get_summary(container: Path, ragged: Path) -> None:
    """dtype, shape, range and first values of each field."""
    text = good("get", container, "cat/0003")
    for word in (
        "position 3",
        "'cat/0003'",
        "uint8",
        "(4, 4, 3)",
        "min 3",
        "max 50",
        "first values: 3 4 5",
        "value: 0",
    ):
        assert word in text
    facts = json.loads(good("get", container, "cat/0003", "--field", "image", "--json"))
    assert list(facts["fields"]) == ["image"]
    assert facts["fields"]["image"]["mean"] == 26.5
    assert r"line\n9" in good("get", ragged, "-1")
    assert json.loads(good("get", ragged, "0", "--json"))["fields"]["x"]["shape"] == [0, 2]


def test_get_not_a_number_is_valid_json(tmp_path: Path) -> None:
    """JSON has no NaN and no infinity: they are written as texts."""
    with chunkstore.Writer(tmp_path / "x.cks") as writer:
        writer.add({"x": np.array([np.nan, np.inf], np.float32)})
    text = good("get", tmp_path / "x.cks", "0", "--json")
    assert json.loads(text, parse_constant=pytest.fail)["fields"]["x"]["first"] == ["NaN", "Infinity"]


def test_get_values_that_are_no_numbers(tmp_path: Path) -> None:
    """Times and texts are shown as what they are, to people and as JSON, without the names of NumPy's classes."""
    with chunkstore.Writer(tmp_path / "x.cks") as writer:
        writer.add({"took": np.array([3], "m8[ms]"), "text": np.array(["a b", "c"]), "raw": np.array([b"q"])})
    fields = json.loads(good("get", tmp_path / "x.cks", "0", "--json"))["fields"]
    assert [fields[name]["first"] for name in ("took", "text", "raw")] == [["3 milliseconds"], ["a b", "c"], ["b'q'"]]
    text = good("get", tmp_path / "x.cks", "0")
    for shown in ("value: 3 milliseconds", "first values: 'a b' 'c'", "value: b'q'"):
        assert shown in text


def test_get_key_that_looks_like_a_number(tmp_path: Path) -> None:
    """A key comes first, then a position; `--key` and `--position` force one."""
    with chunkstore.Writer(tmp_path / "x.cks") as writer:
        for number in (1, 2, 0):
            writer.add({"x": number}, key=str(number))
    path = tmp_path / "x.cks"
    result = run("get", path, "1")
    assert "position 0 of 3" in result.stdout
    assert "--position gives position 1" in result.stderr
    assert "position 1 of 3" in good("get", path, "1", "--position")
    assert "position 2 of 3" in good("get", path, "-1")
    assert "no sample has the key '7'" in bad(1, "get", path, "7", "--key")
    assert "positions go from 0 to 2" in bad(1, "get", path, "7")
    assert "no integer" in bad(2, "get", path, "x", "--position")


@pytest.mark.parametrize(
    ("array", "size", "mode"),
    [
        (np.arange(12, dtype=np.uint8).reshape(3, 4), (4, 3), "L"),
        (np.arange(36, dtype=np.uint8).reshape(3, 4, 3), (4, 3), "RGB"),
        (np.arange(48, dtype=np.uint8).reshape(3, 4, 4), (4, 3), "RGBA"),
        (np.arange(60, dtype=np.uint8).reshape(3, 4, 5), (5, 4), "RGB"),
        (np.arange(12, dtype=np.uint16).reshape(3, 4, 1) * 5000, (4, 3), "I;16"),
        (np.eye(3, dtype=bool), (3, 3), "L"),
        (np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), (4, 3), "L"),
    ],
    ids=["grey", "rgb", "rgba", "channels-first", "grey16", "bool", "float"],
)
def test_get_png(tmp_path: Path, array: np.ndarray, size: tuple[int, int], mode: str) -> None:
    """The image that another library reads has the pixels of the array."""
    image = pytest.importorskip("PIL.Image", reason="pillow reads the image back")
    with chunkstore.Writer(tmp_path / "x.cks") as writer:
        writer.add({"image": array})
    good("get", tmp_path / "x.cks", "0", "--out", tmp_path / "x.png")
    with image.open(tmp_path / "x.png") as png:
        assert (png.size, png.mode) == (size, mode)
        pixels = np.asarray(png)
    expected = np.moveaxis(array, 0, 2) if array.shape == (3, 4, 5) else array
    if array.dtype.kind == "u":
        assert np.array_equal(pixels, expected.squeeze())
    else:
        assert (pixels.min(), pixels.max()) == (0, 255)


def test_get_out(container: Path, tmp_path: Path) -> None:
    """`.npy` and `.npz` hold the sample; what is no image or no known suffix is refused, and nothing overwritten."""
    good("get", container, "3", "--field", "image", "--out", tmp_path / "x.npy")
    good("get", container, "3", "--out", tmp_path / "x.npz")
    expected = chunkstore.open(container)[3]
    assert np.array_equal(np.load(tmp_path / "x.npy"), expected["image"])
    with np.load(tmp_path / "x.npz") as loaded:
        assert np.array_equal(loaded["image"], expected["image"])
        assert loaded["label"] == expected["label"]
    assert "pick one with --field" in bad(2, "get", container, "3", "--out", tmp_path / "y.npy")
    assert "is no image" in bad(2, "get", container, "3", "--field", "label", "--out", tmp_path / "x.png")
    assert ".npy, .npz, .png" in bad(2, "get", container, "3", "--out", tmp_path / "x.bmp")
    assert "exists" in bad(3, "get", container, "3", "--out", tmp_path / "x.npz")
    good("get", container, "4", "--out", tmp_path / "x.npz", "--overwrite")


def test_get_out_as_json(container: Path, tmp_path: Path) -> None:
    """The facts as without --out, and where the file is."""
    facts = json.loads(good("get", container, "7", "--json"))
    out = tmp_path / "x.npz"
    assert json.loads(good("get", container, "7", "--out", out, "--json")) == {**facts, "out": str(out)}
    assert int(np.load(out)["label"]) == 0


def test_get_out_field_named_file(tmp_path: Path) -> None:
    """A field may have the name of a parameter of `np.savez`."""
    with chunkstore.Writer(tmp_path / "x.cks") as writer:
        writer.add({"file": np.arange(3), "allow_pickle": np.arange(2)})
    good("get", tmp_path / "x.cks", "0", "--out", tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as loaded:
        assert loaded["file"].tolist() == [0, 1, 2]


def test_verify(container: Path, ragged: Path) -> None:
    assert ": ok:" in good("verify", container)
    assert "2 files, 2 ok" in good("verify", container, ragged, "--deep")
    reports = json.loads(good("verify", container, ragged, "--json"))
    assert reports["ok"] is True
    assert [report["num_samples"] for report in reports["reports"]] == [24, 10]


def test_verify_damaged(container: Path) -> None:
    """A table with field, samples and keys; exit code 1; the same in JSON."""
    extent = chunkstore.open(container)._extent("image")
    assert extent is not None
    flip_bit(container, extent[0] + 5)
    result = run("verify", container)
    assert result.exit_code == 1
    for word in ("DAMAGED", "image", "cat/0000", "chunk"):
        assert word in result.stdout
    report = json.loads(run("verify", container, "--json").stdout)
    assert report["ok"] is False
    assert report["reports"][0]["damage"][0]["field"] == "image"


def test_verify_says_what_is_left(container: Path) -> None:
    """Whether other samples can be read, which they cannot without SCHEMA; and that `recover` saves what is whole."""
    data = container.read_bytes()
    for place, said in (
        (-1, "can still be read"),
        (data.index(b'{"fields"'), "The container cannot be opened as it is"),
    ):
        container.write_bytes(data)
        extent = chunkstore.open(container)._extent("image")
        assert extent is not None
        flip_bit(container, extent[0] if place < 0 else place)
        lines = run("verify", container).stdout.splitlines()
        assert said in lines[-1]
        assert "`chunkstore recover` saves what is whole" in lines[-1]


def test_verify_goes_on(container: Path, tmp_path: Path) -> None:
    """A file that cannot be read does not keep the others from being verified; damage outranks it."""
    result = run("verify", tmp_path / "nosuch.cks", container)
    assert result.exit_code == 3
    assert ": ok:" in result.stdout
    flip_bit(container, container.stat().st_size - 1)
    assert run("verify", tmp_path / "nosuch.cks", container).exit_code == 1
    reports = json.loads(run("verify", tmp_path / "nosuch.cks", container, "--json").stdout)["reports"]
    assert reports[0]["error"] == "FileNotFoundError"


def test_verify_shows_at_most_20(tmp_path: Path) -> None:
    """A long list is cut off, and says so; `--all` has everything."""
    path = tmp_path / "x.cks"
    with chunkstore.Writer(path) as writer:
        writer.add_batch({"x": np.zeros((64, 4096), np.uint8)}, keys=[f"k{number}" for number in range(64)])
    extent = chunkstore.open(path)._extent("x")
    assert extent is not None
    for number in range(0, 64, 2):
        flip_bit(path, extent[0] + 4096 * number)
    assert "12 more" in run("verify", path).stdout
    assert "more; see" not in run("verify", path, "--all").stdout


def test_verify_truncated(container: Path) -> None:
    """A file that was cut off is one finding; what follows from it is only counted, and nothing is called harmless."""
    data = container.read_bytes()
    for size in (len(data) - 1, len(data) // 2, 8192, 4096):
        container.write_bytes(data[:size])
        result = run("verify", container)
        assert result.exit_code == 1
        assert result.stdout.count("truncated  ") == 1, result.stdout
        assert "no sample is" not in result.stdout
        assert "cannot be opened" in result.stdout
        assert len(result.stdout.splitlines()) <= 8


def test_convert_of_many_fields(tmp_path: Path) -> None:
    """The report for people names the first 20 fields and counts the others; that for programs has all."""
    np.savez(tmp_path / "x.npz", **{f"f{number}": np.zeros(1) for number in range(50)})
    text = good("convert", tmp_path / "x.npz", tmp_path / "x.cks", "--layout", "files")
    assert "... and 30 more fields" in text
    assert len(text.splitlines()) < 40
    report = json.loads(good("convert", tmp_path / "x.npz", tmp_path / "y.cks", "--layout", "files", "--json"))
    assert len(report["fields"]) == 50


def test_export(data: Path, container: Path, tmp_path: Path) -> None:
    """The files come back byte by byte; the report is JSON."""
    report = json.loads(good("export", container, tmp_path / "again", "--json"))
    assert report["num_files"] == 24
    for path in data.rglob("*.npy"):
        assert (tmp_path / "again" / path.relative_to(data)).read_bytes() == path.read_bytes()
    assert "again" in bad(3, "export", container, tmp_path / "again")
    assert "no field 'x'" in bad(2, "export", container, tmp_path / "other", "--field", "x")


def test_bench(container: Path) -> None:
    """The measurements run and are positive numbers."""
    assert "ds.batch" in good("bench", container, "--seconds", "0.01", "--batch", "4")
    results = json.loads(good("bench", container, "--seconds", "0.01", "--json"))["results"]
    assert all(result["seconds"] > 0 for result in results)


def test_demo(tmp_path: Path) -> None:
    """Everything is as the demo says, and it leaves what `--keep` asks for."""
    text = good("demo", "--keep", tmp_path / "demo")
    assert "NOT AS EXPECTED" not in text
    for word in ("$ chunkstore convert", "$ chunkstore verify", "DAMAGED", "no difference", "np.load"):
        assert word in text
    assert chunkstore.verify(tmp_path / "demo" / "digits.cks").ok
    assert "exists" in bad(3, "demo", "--keep", tmp_path / "demo")


def test_demo_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits that a program draws take the place of those that are not there; no file stays."""
    draw = demo_module._drawn_digits
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setattr(demo_module, "_drawn_digits", lambda: draw(200))
    text = good("demo")
    assert "drawn by a program" in text
    assert "NOT AS EXPECTED" not in text
    folder = next(line for line in text.splitlines() if line.endswith("/digits/"))
    assert not Path(folder).exists()


# -- append -----------------------------------------------------------------------------------------------------------


def test_append_classes(container: Path, data: Path, tmp_path: Path) -> None:
    """Layout and names are those of the container; classes keep their numbers, new ones go on."""
    for name in ("ant", "dog"):
        (tmp_path / "more" / name).mkdir(parents=True)
        np.save(tmp_path / "more" / name / "new.npy", np.full((4, 4, 3), 9, np.uint8))
    report = json.loads(good("append", container, tmp_path / "more", "--json"))
    assert (report["num_added"], report["num_samples"]) == (2, 26)
    with chunkstore.open(container) as ds:
        assert ds.generation == 2
        assert ds.attrs["class_names"] == {"label": ["cat", "dog", "ant"]}
        assert ds["ant/new"]["label"] == 2
        assert ds["dog/new"]["label"] == 1
        assert ds["dog/new"]["image"].max() == 9
    assert ": ok:" in good("verify", container, "--deep")
    good("export", container, tmp_path / "again")
    for path in [*data.rglob("*.npy"), *(tmp_path / "more").rglob("*.npy")]:
        root = data if data in path.parents else tmp_path / "more"
        assert (tmp_path / "again" / path.relative_to(root)).read_bytes() == path.read_bytes()


def test_append_ragged_and_texts(tmp_path: Path) -> None:
    """Rows of any length fit a ragged field, also when all new ones are alike."""
    for folder, counts in (("a", (1, 0, 3)), ("b", (2, 2))):
        (tmp_path / folder).mkdir()
        for count in counts:
            name = f"{folder}{len(list((tmp_path / folder).iterdir()))}.npz"
            arrays = {"x": np.full((count, 3), count, "f4"), "t": np.array("text " * count)}
            np.savez(tmp_path / folder / name, **arrays)
    out = tmp_path / "x.cks"
    good("convert", tmp_path / "a", out, "--layout", "files", "--dtype", "t=string")
    good("append", out, tmp_path / "b")
    with chunkstore.open(out) as ds:
        assert [len(row["x"]) for row in ds] == [1, 0, 3, 2, 2]
        assert ds["b1"]["x"].tolist() == [[2.0] * 3] * 2
        assert ds["b1"]["t"] == "text text "
    assert chunkstore.verify(out, deep=True).ok


def test_append_rows(tmp_path: Path) -> None:
    """A huge array goes on with another one; `export` gives both files back."""
    for number in (1, 2):
        np.save(tmp_path / f"part{number}.npy", np.arange(20 * number, dtype=np.int16).reshape(-1, 2))
    good("convert", tmp_path / "part1.npy", tmp_path / "x.cks")
    good("append", tmp_path / "x.cks", tmp_path / "part2.npy")
    good("export", tmp_path / "x.cks", tmp_path / "again")
    for number in (1, 2):
        name = f"part{number}.npy"
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_append_refuses(container: Path, data: Path, tmp_path: Path) -> None:
    """Keys that are there, other shapes, dtypes and fields: refused, and the container stays byte by byte."""
    before = container.read_bytes()
    assert "'cat/0000' already" in bad(1, "append", container, data)
    cases = {
        "shape": ("(5, 4, 3)", np.zeros((5, 4, 3), np.uint8)),
        "dtype": ("--dtype image=uint8 converts it", np.zeros((4, 4, 3), np.int64)),
        "float": ("has uint8 of shape (4, 4, 3).\n", np.zeros((4, 4, 3), np.float32)),
    }
    for name, (text, array) in cases.items():
        (tmp_path / name / "cat").mkdir(parents=True)
        np.save(tmp_path / name / "cat" / "x.npy", array)
        assert text in bad(1, "append", container, tmp_path / name)
    (tmp_path / "fields").mkdir()
    np.savez(tmp_path / "fields" / "x.npz", x=1)
    assert "image" in bad(1, "append", container, tmp_path / "fields", "--layout", "files", "--field", "x=x")
    assert container.read_bytes() == before


def test_append_locked(container: Path, data: Path) -> None:
    """A second writer is told at once."""
    with contextlib.closing(chunkstore.Writer(container, mode="a")):
        assert "is writing" in bad(3, "append", container, data)


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_wrong_paths(data: Path, container: Path, tmp_path: Path) -> None:
    """What is not there, or is something else, is named, with what to do; exit code 3, or 1 where it is the content."""
    nosuch, out = tmp_path / "nosuch", tmp_path / "x.cks"
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("hello")
    assert "nosuch" in bad(3, "convert", nosuch, out)
    assert "nosuch" in bad(3, "info", nosuch)
    assert "no .npy or .npz file" in bad(1, "convert", tmp_path / "empty", out)
    assert "container already" in bad(1, "convert", container, out)
    assert "directory" in bad(3, "convert", data, tmp_path / "nosuch" / "x.cks")
    assert "directory" in bad(3, "convert", data, tmp_path / "empty")
    assert "one file is wanted" in bad(3, "append", container.parent, data)
    assert "one file is wanted" in bad(3, "append", tmp_path / "*.cks", data)
    for command in ("info", "ls", "bench"):
        assert f"chunkstore convert {data}" in bad(3, command, data)
    assert f"chunkstore convert {data}" in bad(3, "verify", data)
    assert f"chunkstore convert {data}" in bad(3, "export", data, tmp_path / "again")
    assert "chunkstore convert" in bad(1, "info", data / "cat" / "0000.npy")
    assert "magic" in bad(1, "info", tmp_path / "note.txt")
    assert "magic" in bad(1, "verify", tmp_path / "note.txt")
    assert not out.exists()


def test_usage(data: Path, tmp_path: Path) -> None:
    """Exit code 2 for what is no command line."""
    assert "the container to make" in bad(2, "convert", data)
    assert "Missing argument" in bad(2, "info")
    assert "No such command" in bad(2, "frobnicate")
    assert "No such option" in bad(2, "get", tmp_path / "x.cks", "0", "--feild", "x")
    out = tmp_path / "x.cks"
    assert "NAME=SOURCE" in bad(2, "convert", data, out, "--field", "=")
    assert "float32" in bad(2, "convert", data, out, "--dtype", "flaot32")
    assert "64MiB" in bad(2, "convert", data, out, "--shard-size", "large")
    assert not out.exists()


def test_existing_target(data: Path, container: Path) -> None:
    """An existing container stays unless `--overwrite` is given."""
    before = container.read_bytes()
    assert "--overwrite" in bad(3, "convert", data, container)
    assert container.read_bytes() == before
    good("convert", data, container, "--overwrite")
    assert container.read_bytes() != before


def test_forgotten_target_of_merge(container: Path) -> None:
    """`merge *.cks` without OUT takes the first for it: the message says so, before it speaks of `--overwrite`."""
    before = container.read_bytes()
    assert "the first name is that of the new container" in bad(3, "merge", container, container)
    assert container.read_bytes() == before


@pytest.mark.parametrize("command", ["convert {data}", "repack {file}", "recover {file}", "export {file}", "merge"])
def test_nothing_goes_to_a_stream(
    data: Path, container: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """`-` is no name for what is made, as it is for many commands."""
    monkeypatch.chdir(tmp_path)
    words = command.format(data=data, file=container).split()
    files = [container] if command == "merge" else []
    assert "standard output" in bad(2, *words, "-", *files)
    assert not Path("-").exists()


def test_order_of_arguments(data: Path, tmp_path: Path) -> None:
    """The container named before the directory that it is to be made of: the message has the right order."""
    assert f"convert {data} {tmp_path / 'x.cks'}" in bad(2, "convert", tmp_path / "x.cks", data)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that takes nothing")
def test_errors_that_cannot_be_said(tmp_path: Path) -> None:
    """The exit code is right also where stderr takes no message."""
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "chunkstore", "info", str(tmp_path / "none.cks")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        assert subprocess.run(command, env=environment, stderr=full, check=False).returncode == 3


def test_export_without_parent(container: Path, tmp_path: Path) -> None:
    """A directory that cannot be made is named as it was given."""
    directory = tmp_path / "none" / "files"
    assert bad(3, "export", container, directory).startswith(f"error: {directory}: cannot make this directory")


@pytest.mark.parametrize("option", [[], ["--overwrite"]])
def test_forgotten_target(data: Path, container: Path, tmp_path: Path, option: list[str]) -> None:
    """`convert *.npy` without DST takes the last source for it: it stays as it is, and `--overwrite` is no advice."""
    paths = sorted((data / "cat").iterdir())
    before = paths[-1].read_bytes()
    text = bad(3, "convert", *paths, *option)
    assert "no container" in text
    assert "forgotten" in text
    assert "--overwrite" not in text
    assert paths[-1].read_bytes() == before
    other = tmp_path / "sample.npy"
    other.write_bytes(container.read_bytes())
    assert "is a container" in bad(3, "get", container, "0", "--field", "image", "--out", other, "--overwrite")
    assert other.read_bytes() == container.read_bytes()


def test_two_layouts_fit(tmp_path: Path) -> None:
    """A reading is not guessed: both are named."""
    (tmp_path / "data").mkdir()
    for number in range(3):
        np.save(tmp_path / "data" / f"{number}.npy", np.zeros((5 + number, 4)))
    text = bad(1, "convert", tmp_path / "data", tmp_path / "x.cks")
    assert "--layout files" in text
    assert "--layout rows" in text


def test_git_lfs_pointer(data: Path, tmp_path: Path) -> None:
    (data / "cat" / "0001.npy").write_text(LFS_POINTER)
    text = bad(1, "convert", data, tmp_path / "x.cks")
    assert "git lfs pull" in text
    assert "0001.npy" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_key_not_found(container: Path) -> None:
    assert "'cat/nosuch'" in bad(1, "get", container, "cat/nosuch")
    assert "'nosuch'" in bad(2, "get", container, "0", "--field", "nosuch")


def test_damaged(container: Path) -> None:
    """A damaged sample is an error with its key; others are shown; a truncated file is said to be one."""
    extent = chunkstore.open(container)._extent("label")
    assert extent is not None
    flip_bit(container, extent[0])
    assert "cat/0000" in bad(1, "get", container, "cat/0000")
    assert "image" in good("get", container, "cat/0000", "--field", "image")
    data = container.read_bytes()
    container.write_bytes(data[:-1])
    assert "cut off" in bad(1, "info", container)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read and write everything")
def test_no_permission(data: Path, container: Path, tmp_path: Path) -> None:
    """Exit code 3, the path, and no traceback."""
    container.chmod(0)
    assert "ermission" in bad(3, "info", container)
    (tmp_path / "locked").mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    assert "ermission" in bad(3, "convert", data, tmp_path / "locked" / "x.cks")


def test_paths_are_opened_and_not_asked_about() -> None:
    """Click would call a file that cannot be read an error of usage, exit code 2; it is one of access, 3."""
    context = click.Context(cli)
    commands = [cli.get_command(context, name) for name in COMMANDS]
    found = [param.type for command in commands if command is not None for param in command.params]
    paths = [kind for kind in found if isinstance(kind, click.Path)]
    assert len(paths) > 10
    assert not any(kind.readable for kind in paths)


def test_system_errors_show_no_number() -> None:
    """Also our own errors of the system read `where: what`, without `[Errno 28]`."""
    assert message(chunkstore.WriteError(errno.ENOSPC, "cannot write: full", "x.cks")) == "x.cks: cannot write: full"


def check_interrupted(folder: Path, *arguments: str) -> None:
    """Python with these arguments says in one line that it was interrupted, and ends with 130."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 130
    assert run.stderr == "\ninterrupted: nothing was changed. Run the same again: it starts over\n"


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_interrupt_in_text_that_is_run(tmp_path: Path) -> None:
    """Ctrl-C inside `exec` of a text, by which the imports of a command make classes, ends `python -m` with 130, too,
    and not by the signal.
    """
    code = """if True:
        import sys
        import click
        from chunkstore._cli import main

        def interrupted():
            exec("import os, signal; os.kill(os.getpid(), signal.SIGINT)")

        main.cli.get_command = lambda context, name: click.Command(name, callback=interrupted)
        sys.argv = ["chunkstore", "verify"]
        main.run()
    """
    (tmp_path / "interrupted_module.py").write_text(code)
    check_interrupted(tmp_path, "-m", "interrupted_module")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_interrupt_at_the_end() -> None:
    """Ctrl-C while the interpreter ends after a good command changes no exit code: what was asked for is done."""
    code = """if True:
        import atexit, os, signal, sys
        from chunkstore._cli import main

        atexit.register(os.kill, os.getpid(), signal.SIGINT)
        sys.argv = ["chunkstore", "--version"]
        main.run()
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_second_interrupt(tmp_path: Path) -> None:
    """Ctrl-C once more while the interpreter ends adds nothing to the message, and changes no exit code."""
    code = """if True:
        import atexit, os, signal, sys
        import click
        from chunkstore._cli import main

        def interrupted():
            raise KeyboardInterrupt

        atexit.register(os.kill, os.getpid(), signal.SIGINT)
        main.cli.get_command = lambda context, name: click.Command(name, callback=interrupted)
        sys.argv = ["chunkstore", "verify"]
        main.run()
    """
    check_interrupted(tmp_path, "-c", code)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("module", ["click", "numpy", "chunkstore._cli.looking"])
def test_interrupt_while_it_is_imported(module: str, tmp_path: Path) -> None:
    """Ctrl-C before a command has begun, whatever is being imported, ends with the same line and code."""
    code = f"""if True:
        import os, signal, sys
        from chunkstore.__main__ import main

        class Interrupter:
            def find_spec(self, name, path=None, target=None):
                if name == {module!r}:
                    try:
                        os.kill(os.getpid(), signal.SIGINT)
                    except KeyboardInterrupt:
                        raise ImportError("as extension modules may turn it")

        sys.meta_path.insert(0, Interrupter())
        sys.argv = ["chunkstore", "info", "x.cks"]
        main()
    """
    check_interrupted(tmp_path, "-c", code)


@pytest.mark.skipif(os.name != "posix", reason="a shell that closes streams")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_streams(data: Path, tmp_path: Path, closed: str) -> None:
    """Without stdout or stderr the work is done, and no file takes their place."""
    line = f'"$0" -m chunkstore convert "$1" x.cks {closed} && "$0" -m chunkstore info x.cks {closed}'
    run = subprocess.run(
        ["sh", "-c", line, sys.executable, str(data)], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert run.returncode == 0
    assert "Traceback" not in run.stderr
    assert chunkstore.verify(tmp_path / "x.cks").ok


def test_hostile_key_does_not_reach_the_terminal(tmp_path: Path) -> None:
    """Control characters of a key, which could do anything to a terminal, are written as escapes."""
    key = "a\x1b[2J\x07b\nc"
    with chunkstore.Writer(tmp_path / "x.cks") as writer:
        writer.add({"x": 1}, key=key)
    for arguments in (["ls"], ["ls", "--long"], ["get"]):
        text = good(arguments[0], tmp_path / "x.cks", *arguments[1:], *(["0"] if arguments == ["get"] else []))
        assert "\x1b" not in text
        assert r"a\x1b[2J\x07b\nc" in text
    assert json.loads(good("ls", tmp_path / "x.cks", "--json"))["key"] == key


@pytest.mark.parametrize(
    ("code", "name", "arguments"),
    [
        (3, "FileNotFoundError", ["info", "nosuch"]),
        (3, "FileNotFoundError", ["ls", "nosuch"]),
        (1, "SampleNotFoundError", ["get", "CONTAINER", "nosuch"]),
        (1, "NotAContainerError", ["repack", "note.txt", "x.cks"]),
        (2, "MissingParameter", ["info"]),
        (2, "BadParameter", ["get", "CONTAINER", "0", "--field", "nosuch"]),
        (2, "NoSuchOption", ["merge", "x.cks", "CONTAINER", "--force"]),
        (2, NO_SUCH_COMMAND, ["frobnicate"]),
    ],
)
def test_errors_as_json(
    container: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    name: str,
    arguments: list[str],
) -> None:
    """With --json an error is an object on stdout, too, beside the text on stderr."""
    monkeypatch.chdir(tmp_path)
    Path("note.txt").write_text("hello", "utf-8")
    result = run(*(str(container) if word == "CONTAINER" else word for word in arguments), "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["ok"]) == (code, False)
    assert found["error"] == name
    assert found["message"] in result.stderr
    assert len(result.stdout.splitlines()) == 1


def test_ls_of_no_end(container: Path) -> None:
    """More than there can be samples is a mistake of the caller, and no traceback."""
    assert "is not in the range" in bad(2, "ls", container, "--head", "99999999999999999999")


def test_keys_that_are_no_text(container: Path, tmp_path: Path) -> None:
    """A file in the place of the list is named."""
    text = bad(2, "repack", container, tmp_path / "x.cks", "--keys", container)
    assert f"{container}: expected keys as UTF-8" in " ".join(text.split())


def test_every_error_has_an_exit_code() -> None:
    """1 for data, 3 for access; no class of ours is taken for an error of usage."""
    codes = {name: exit_code(getattr(chunkstore, name)("x")) for name in chunkstore.__all__ if name.endswith("Error")}
    assert set(codes.values()) == {1, 3}
    assert {name for name, code in codes.items() if code == 3} == {
        "CommitUnknownError", "LockedError", "MissingExtraError", "PoisonedError", "RemoteError", "ReplacedError",
        "WriteError",
    }  # fmt: skip


# -- real processes ---------------------------------------------------------------------------------------------------


def test_streams_and_exit_code(container: Path, tmp_path: Path) -> None:
    """Results on stdout, errors on stderr, no bar where stderr is no terminal."""
    process = start("convert", tmp_path / "data", tmp_path / "x.cks")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "24 samples" in out
    process = start("get", container, "nosuch")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("error: ")


@pytest.mark.skipif(os.name != "posix", reason="pipes end in another way there")
def test_broken_pipe_is_quiet(tmp_path: Path) -> None:
    """`chunkstore ls | head` ends without a word, with the code of SIGPIPE."""
    path = tmp_path / "x.cks"
    with chunkstore.Writer(path) as writer:
        writer.add_batch(
            {"x": np.zeros(50_000, np.uint8)}, keys=[f"some/long/key/{number}" for number in range(50_000)]
        )
    process = start("ls", path)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) == 141


@pytest.mark.skipif(os.name != "posix", reason="pipes end in another way there")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("code", "arguments", "said"),
    [(3, ["info", "nosuch", "--json"], "error: nosuch: No such file"), (2, ["info", "--json"], "Missing argument")],
)
def test_error_as_json_that_nobody_reads(
    monkeypatch: pytest.MonkeyPatch, unbuffered: str, code: int, arguments: list[str], said: str
) -> None:
    """The message on stderr and the exit code are as without --json: 1 would say that the data is bad."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    process = start(*arguments)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    text = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == code
    assert said in text
    assert "Traceback" not in text
    assert "Exception ignored" not in text


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that takes nothing")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("option", [[], ["--json"]])
def test_result_on_a_full_disk(
    container: Path, monkeypatch: pytest.MonkeyPatch, unbuffered: str, option: list[str]
) -> None:
    """A result that cannot be written is an error of access, in one line."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with open("/dev/full", "w") as full:
        process = start("info", container, *option, stdout=full)
        _, text = process.communicate(timeout=60)
    assert (process.returncode, text) == (3, "error: No space left on device\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that takes nothing")
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_on_a_full_disk(option: str) -> None:
    """The same for what click itself writes."""
    with open("/dev/full", "w") as full:
        process = start(option, stdout=full)
        _, text = process.communicate(timeout=60)
    assert (process.returncode, text) == (3, "error: No space left on device\n")


@pytest.fixture
def slow_source(tmp_path: Path) -> Iterator[Path]:
    """A source that takes a while to convert: 512 MiB of zeros, deflated to half a megabyte."""
    path = tmp_path / "zeros.npz"
    code = "import numpy as np, sys; np.savez_compressed(sys.argv[1], x=np.zeros((1 << 9, 1 << 20), np.uint8))"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    yield path
    path.unlink()


def is_idle(folder: Path) -> bool:
    """Whether no temporary file has got its length yet."""
    sizes = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return max(sizes) < 1 << 28


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(
    ("name", "code", "group"),
    [("SIGINT", 130, True), ("SIGTERM", 143, False), ("SIGHUP", 129, True)],
)
def test_interrupted_convert(slow_source: Path, tmp_path: Path, name: str, code: int, group: bool) -> None:
    """Ctrl-C ends with 130 and a word on how to go on, `kill` and a closed terminal with 128 and the signal; nothing
    stays behind, and there is no traceback.
    """
    process = start("convert", slow_source, tmp_path / "x.cks", start_new_session=True)
    end = time.monotonic() + 60
    while is_idle(tmp_path) and time.monotonic() < end:
        time.sleep(0.01)
    assert process.poll() is None
    # A terminal signals all processes of the job, `kill` one.
    (os.killpg if group else os.kill)(process.pid, signal.Signals[name])
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out == ""
    assert "Traceback" not in err
    assert "nothing is left behind" in err
    assert [path.name for path in tmp_path.iterdir()] == [slow_source.name]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar shows up when there is something to wait for, with both rates, and leaves nothing behind."""
    for wait, shown in ((0.0, False), (0.35, True)):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        with Progress(True, "convert", 1000, 2 << 20) as samples, bar("verify") as nbytes:
            time.sleep(wait)
            samples.advance(1 << 20)
            nbytes(1 << 20, 2 << 20)
        text = terminal.getvalue()
        assert all((word in text) is shown for word in ("convert: ", "samples/s", "MB/s", "verify: ", "1.00M/2.00M"))
        assert not text.strip("\r\n").endswith(("s]", "B]"))


def test_no_bar_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with bar("verify") as progress:
        time.sleep(0.35)
        progress(1, 2)
    assert isinstance(sys.stderr, io.StringIO)
    assert sys.stderr.getvalue() == ""


def test_prose_is_wrapped_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines break between words at the width of the terminal, keep their indentation, and stay whole in a file."""
    monkeypatch.setenv("COLUMNS", "50")
    text = "  " + " ".join(["word"] * 30) + "\nshort"
    assert wrapped(text, io.StringIO()) == text
    lines = wrapped(text, Terminal()).splitlines()
    assert max(map(len, lines)) <= 50
    assert lines[1].startswith("    word ")
    assert lines[-1] == "short"


def test_traceback_on_request(container: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Developers see where an error came from."""
    monkeypatch.setenv("CHUNKSTORE_TRACEBACK", "1")
    result = run("get", container, "nosuch")
    assert "Traceback" in result.stderr
    assert result.exit_code == 1


def test_out_of_memory(container: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message and exit code 3."""

    def fail(*arguments: object, **options: object) -> None:
        raise MemoryError("of 1 GiB")

    monkeypatch.setattr(chunkstore, "open", fail)
    assert "out of memory: of 1 GiB" in bad(3, "info", container)


def test_entry_points() -> None:
    """`python -m chunkstore`, the console script and the function are one."""
    process = start("--version")
    out, _ = process.communicate(timeout=60)
    assert chunkstore.__version__ in out
    scripts = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'chunkstore = "{start_module.__name__}:main"' in scripts


def test_import_is_fast() -> None:
    """`import chunkstore` brings neither NumPy nor click: names are imported when they are used."""
    code = (
        "import sys, chunkstore; print([name for name in ('numpy', 'click', 'tqdm', 'torch') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"


# -- containers out of containers -------------------------------------------------------------------------------------


def test_merge_repack_and_recover(tmp_path: Path) -> None:
    """Two containers into one; some of it in another order; what a damaged one still has."""
    for name in "ab":
        with chunkstore.Writer(tmp_path / f"{name}.cks") as writer:
            writer.add_batch({"x": np.arange(1000, 1010)}, [f"{name}{n}" for n in range(10)])
    a, b, all_, some, saved = (str(tmp_path / f"{name}.cks") for name in ("a", "b", "all", "some", "saved"))
    assert "20 samples" in good("merge", all_, a, b)
    (tmp_path / "keys").write_text("b3\na7\n")
    assert json.loads(good("repack", all_, some, "--keys", str(tmp_path / "keys"), "--json"))["num_samples"] == 2
    with chunkstore.open(some) as ds:
        assert list(ds.keys or []) == ["b3", "a7"]
        assert ds.column("x").tolist() == [1003, 1007]
    assert "10 samples saved" in good("recover", a, saved)
    data = bytearray(Path(a).read_bytes())
    data[data.index((1004).to_bytes(8, "little"))] ^= 1
    Path(a).write_bytes(data)
    result = run("recover", a, saved, "--overwrite")
    assert result.exit_code == 1
    assert "lost: samples 0 to 9 (from 'a0' on): field 'x' does not have the bytes" in result.stdout
    assert f"0 samples saved in {saved}, 10 lost" in result.stdout
    with chunkstore.Writer(b, mode="a") as writer:
        writer.add({"x": 1}, "new")
    os.truncate(b, os.path.getsize(b) - 4096)
    result = run("recover", b, saved, "--overwrite")
    assert result.exit_code == 1
    assert f"10 samples saved in {saved}, and what the newest commit added is lost" in result.stdout
    assert run("merge", all_, a, b).exit_code == 3
    assert run("merge", all_, a, b, "--overwrite").exit_code == 1


@pytest.mark.parametrize("command", ["merge {out} {file}", "repack {file} {out}", "recover {file} {out}"])
def test_what_a_killed_run_left_is_named(tmp_path: Path, command: str) -> None:
    """It may be large, and is nobody's now."""
    with chunkstore.Writer(tmp_path / "a.cks") as writer:
        writer.add({"x": 1})
    left = tmp_path / ".b.cks.tmp-0123456789abcdef"
    left.touch()
    text = good(*command.format(out=tmp_path / "b.cks", file=tmp_path / "a.cks").split())
    assert f"note: a run that was killed left the unfinished file {left}" in text
