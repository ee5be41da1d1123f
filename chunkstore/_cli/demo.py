"""`demo`: the main job on real data, from a directory of files to a verified container and back."""

from __future__ import annotations

import contextlib
import filecmp
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray

import chunkstore
from chunkstore._cli.checking import best_seconds
from chunkstore._cli.output import duration_text, nbytes_text, plural, table, write
from chunkstore._storage.interrupts import signals_later

_SHADES: Final = " .:-=+*#%@"
_BATCH: Final = 256
# Digits of 3 x 5 pixels, a row of three bits after the other: for machines without scikit-learn.
_GLYPHS: Final = (0x7B6F, 0x2C97, 0x73E7, 0x73CF, 0x5BC9, 0x79CF, 0x79EF, 0x7249, 0x7BEF, 0x7BCF)


@click.command()
@click.option(
    "--keep",
    type=click.Path(readable=False),
    metavar="DIR",
    help="Work in the new directory DIR and leave it; by default all files are removed at the end.",
)
@click.pass_context
def demo(ctx: click.Context, keep: str | None) -> None:
    """Show the main job end to end, in a few seconds.

    Writes handwritten digits (those that scikit-learn ships) as a directory of .npy files, converts it, looks inside,
    reads at random and compares with np.load, verifies, damages one bit and finds it, and exports everything back.
    Says each command, so that you can repeat it.
    """
    began = time.perf_counter()
    write("From a directory of files to one file, proven byte by byte, and back.")
    sys.stdout.flush()  # the next thing may take a while: scikit-learn is imported
    with _workplace(keep) as folder:
        good = _Demo(folder).run()
    write()
    if keep is None:
        write(f"That took {time.perf_counter() - began:.1f} s. The files are removed; to keep them: --keep DIR")
    else:
        write(f"That took {time.perf_counter() - began:.1f} s. The files are in {os.path.abspath(keep)}")
    write("Your own data: chunkstore convert YOUR_DIRECTORY train.cks      All commands: chunkstore --help")
    ctx.exit(0 if good else 1)


@contextlib.contextmanager
def _workplace(keep: str | None) -> Iterator[Path]:
    """An empty directory, and the process in it, so that commands can be shown with short names."""
    if keep is not None:
        os.makedirs(keep)
        folder = os.path.abspath(keep)
    else:
        folder = tempfile.mkdtemp(prefix="chunkstore-demo-")
    try:
        with contextlib.chdir(folder):
            yield Path(folder)
    finally:
        if keep is None:
            with signals_later():  # impatient people press Ctrl-C twice
                shutil.rmtree(folder, ignore_errors=True)


class _Demo:
    """The steps, in order."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self._failed: list[str] = []

    def run(self) -> bool:
        """All steps; True when everything was as it should be."""
        self._write_files()
        self._convert()
        self._look()
        self._read()
        self._verify()
        self._damage()
        self._export()
        for text in self._failed:
            write(f"NOT AS EXPECTED: {text}")
        return not self._failed

    # -- how it talks -------------------------------------------------------------------------------------------------

    def _title(self, text: str) -> None:
        self._number += 1
        write(f"\n\n{self._number}. {text}")

    def _command(self, *arguments: str, code: int = 0) -> None:
        """Say a command and run it, in this process."""
        from chunkstore._cli.main import cli

        write(f"\n$ chunkstore {shlex.join(arguments)}")
        sys.stdout.flush()
        found = cli.main(list(arguments), prog_name="chunkstore", standalone_mode=False) or 0
        if found >= 128:  # interrupted, or nobody reads on
            raise click.exceptions.Exit(found)
        if code:
            write(f"(exit code {found})")
        self._expect(found == code, f"exit code {found} of chunkstore {arguments[0]}, expected {code}")

    def _expect(self, good: bool, text: str) -> None:
        if not good:
            self._failed.append(text)

    # -- the steps ----------------------------------------------------------------------------------------------------

    def _write_files(self) -> None:
        images, labels, origin = _digits()
        self._title(f"The data: {origin}, one .npy file each, in a folder for each class")
        for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            path = Path("digits", str(label), f"{number:04d}.npy")
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, image)
        self._names = sorted(path.relative_to("digits").as_posix() for path in Path("digits").rglob("*.npy"))
        nbytes = sum(os.path.getsize(f"digits/{name}") for name in self._names)
        write(f"\n{self._folder}/digits/")
        for name in (self._names[0], self._names[1], self._names[-1]):
            write(f"    {name}")
        write(f"{plural(len(self._names), 'file')}, {nbytes:,} bytes")

    def _convert(self) -> None:
        self._title("Convert it, once; the folders become labels")
        self._command("convert", "digits", "digits.cks", "--layout", "classes", "--field", "image=data")

    def _look(self) -> None:
        self._title("Look inside")
        self._command("info", "digits.cks")
        self._command("ls", "digits.cks", "7/*", "--head", "3", "--long")
        self._command("get", "digits.cks", next(name[:-4] for name in self._names if name.startswith("7/")))

    def _read(self) -> None:
        self._title("Read it from Python, at random")
        write('\n>>> ds = chunkstore.open("digits.cks")')
        write('>>> ds[1000]["image"], ds[1000]["label"]')
        with chunkstore.open("digits.cks") as ds:
            sample = ds[min(1000, len(ds) - 1)]
            write(_draw(sample["image"]) + f"\n    label {sample['label']}\n")
            self._compare(ds)

    def _compare(self, ds: chunkstore.Reader) -> None:
        """All samples in one random order, in three ways, checked for equality and timed."""
        paths = [f"digits/{key}.npy" for key in ds.keys or ()]
        order = np.random.default_rng(0).permutation(len(ds))
        batches = [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]
        positions = order.tolist()
        ways: list[tuple[str, Callable[[], list[Any]]]] = [
            ("np.load, one file a sample", lambda: [np.load(paths[i]) for i in positions]),
            ("ds[i], one sample a call", lambda: [ds[i]["image"] for i in positions]),
            (f"ds.batch(...), {_BATCH} a call", lambda: [ds.batch(some)["image"] for some in batches]),
        ]
        stacked = [np.stack(ways[0][1]()), np.stack(ways[1][1]()), np.concatenate(ways[2][1]())]
        equal = all(np.array_equal(stacked[0], other) for other in stacked[1:])
        self._expect(equal, "the images that were read differ from the files")
        seconds = [best_seconds(run) for _, run in ways]
        rows = [("every digit once, in random order", "a digit", "digits/s", "")]
        for (name, _), took in zip(ways, seconds, strict=True):
            each = took / len(positions)
            rows.append((name, duration_text(each), f"{1 / each:,.0f}", f"{seconds[0] / took:,.0f} x"))
        write(table(rows, right=(1, 2, 3)))
        write(f"All three gave the same {len(positions):,} images. Best of three runs, everything in memory (warm).")

    def _verify(self) -> None:
        self._title("Prove that every byte is what was written")
        self._command("verify", "digits.cks")

    def _damage(self) -> None:
        with chunkstore.open("digits.cks") as ds:
            extent = ds._extent("image")
            position = min(1000, len(ds) - 1)
            key = "" if ds.keys is None else ds.keys[position]
        assert extent is not None
        offset = extent[0] + 64 * position + 27
        self._title(f"Damage it: flip one bit of {nbytes_text(os.path.getsize('digits.cks'))}, in byte {offset:,}")
        _flip_bit("digits.cks", offset)
        self._command("verify", "digits.cks", code=1)
        write("\nNobody trains on it unnoticed; what is not damaged can still be read:")
        self._command("get", "digits.cks", key, code=1)
        self._command("get", "digits.cks", "0", "--field", "label")
        write("\nFlip it back:")
        _flip_bit("digits.cks", offset)
        self._command("verify", "digits.cks")

    def _export(self) -> None:
        self._title("Nobody is locked in: write the files back")
        self._command("export", "digits.cks", "digits-again")
        _, different, missing = filecmp.cmpfiles("digits", "digits-again", self._names, shallow=False)
        num = len(list(Path("digits-again").rglob("*.npy")))
        same = not different and not missing and num == len(self._names)
        self._expect(same, "the exported files differ from the originals")
        write(f"\n$ diff -r digits digits-again\n(no difference: {plural(num, 'file')} compared byte by byte)")


def _digits() -> tuple[NDArray[np.uint8], NDArray[np.int64], str]:
    """(images of shape (N, 8, 8), labels of shape (N,), what they are)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        images, labels = _drawn_digits()
        write("scikit-learn is not installed, so the digits are drawn by a program; `pip install scikit-learn` brings")
        write("handwritten ones.")
        return images, labels, f"{len(images):,} digits drawn by a program"
    data = load_digits()
    return data.images.astype(np.uint8), data.target.astype(np.int64), f"{len(data.images):,} handwritten digits"


def _drawn_digits(num: int = 1797) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Digits at random places, in random brightness, with noise."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, num)
    images = random.integers(0, 4, (num, 8, 8), dtype=np.uint8)
    bits = np.array([[glyph >> place & 1 for place in range(14, -1, -1)] for glyph in _GLYPHS], np.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        top, left = random.integers(0, 4), random.integers(0, 6)
        image[top : top + 5, left : left + 3] += bits[label].reshape(5, 3) * np.uint8(random.integers(7, 13))
    return images, labels


def _draw(image: NDArray[Any]) -> str:
    """An image in characters, two for a pixel, since characters are tall."""
    levels = image.astype(np.float64) * (len(_SHADES) - 1) / max(int(image.max()), 1)
    return "\n".join("    " + "".join(2 * _SHADES[round(level)] for level in row).rstrip() for row in levels.tolist())


def _flip_bit(path: str, offset: int) -> None:
    np.memmap(path, mode="r+")[offset] ^= 4
