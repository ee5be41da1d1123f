"""Every code block of the README runs as it stands, and what it says of commands and errors is true."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import chunkstore
from chunkstore import errors
from chunkstore._cli.main import cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
sys.path.append(str(ROOT))  # tools/ is not installed

from tools.bench.servers import S3Server  # noqa: E402

FRAMEWORKS = {"torch": "chunkstore.torch", "tensorflow": "chunkstore.tf", "zarr": "zarr"}


@dataclass(frozen=True)
class Section:
    """One heading with its code blocks, in order: (language, code)."""

    title: str
    blocks: tuple[tuple[str, str], ...]


def sections() -> list[Section]:
    """All sections that have code, headings inside code blocks not taken for any."""
    found: dict[str, list[tuple[str, str]]] = {}
    title = ""
    pattern = re.compile(r"^#+ (?P<title>.*?)$|^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
    for match in pattern.finditer(README):
        if match["title"] is not None:
            title = match["title"]
        else:
            found.setdefault(title, []).append((match["language"], match["code"]))
    return [Section(title, tuple(blocks)) for title, blocks in found.items()]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data that the README talks about, small."""
    root = tmp_path_factory.mktemp("readme")
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / "data" / name).mkdir(parents=True)
        for number in range(12):
            np.save(root / "data" / name / f"{number:04d}.npy", random.integers(0, 256, (8, 8, 3), np.uint8))
    for folder in ("spectrograms", "utterances", "shots"):
        (root / folder).mkdir()
    for number in range(40):
        np.save(root / "spectrograms" / f"{number}.npy", random.normal(size=(16, 20)).astype(np.float32))
        np.save(root / "utterances" / f"{number}.npy", random.normal(size=(5 + number % 7, 4)).astype(np.float32))
        np.savez(root / "shots" / f"{number}.npz", x=random.normal(size=(3, 4)).astype(np.float32), y=np.int64(number))
    (root / "shards").mkdir()
    for number in range(3):
        with chunkstore.Writer(root / "shards" / f"{number}.cks") as writer:
            writer.add({"data": np.zeros(4, np.uint8)}, key=f"{number}")
    np.save(root / "big.npy", random.integers(0, 256, (300, 6, 5), np.uint8))
    return root


@pytest.fixture
def workplace(sources: Path, tmp_path: Path) -> Path:
    """A directory with those data, and a `chunkstore` command on the PATH that is this package."""
    for path in sources.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "chunkstore"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m chunkstore "$@"\n', "utf-8")
    command.chmod(0o755)
    return tmp_path


def environment(folder: Path) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    commands = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": commands, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}


def execute_shell(code: str, folder: Path) -> None:
    """Run a block by a shell; show what it printed when it fails."""
    run = subprocess.run(
        ["sh", "-euc", code], cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, f"{code}\n{run.stdout}{run.stderr}"


# Reads lines of JSON, (folder, code); answers each with a line of JSON: what went wrong, or an empty text.
WORKER = """
import contextlib, io, json, os, sys, traceback

for line in sys.stdin:
    folder, code = json.loads(line)
    os.chdir(folder)
    answer = ""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code, {"__name__": "__main__"})
    except BaseException:
        answer = traceback.format_exc()
    print(json.dumps(answer), flush=True)
"""


class Interpreters:
    """A Python process for each framework: importing one takes seconds, and two of them do not always get along."""

    def __init__(self) -> None:
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def execute(self, framework: str, code: str, folder: Path) -> None:
        """Run a block in a namespace of its own."""
        process = self.processes.get(framework) or self.start(framework, folder)
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps([str(folder), code]), file=process.stdin, flush=True)
        line = process.stdout.readline()
        answer = json.loads(line) if line else "the interpreter died"
        assert not answer, f"{code}\n{answer}"

    def start(self, framework: str, folder: Path) -> subprocess.Popen[str]:
        """Start a process; what the framework says on stderr is thrown away."""
        self.processes[framework] = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment(folder),
        )
        return self.processes[framework]


@pytest.fixture(scope="module")
def bucket() -> Iterator[bool]:
    """Whether there is an S3 server, with `s3://bucket`, for those who read the environment."""
    if any(importlib.util.find_spec(package) is None for package in ("obstore", "moto", "flask", "flask_cors")):
        yield False
        return
    with S3Server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield True


@pytest.fixture(scope="module")
def interpreters(bucket: bool) -> Iterator[Interpreters]:
    """They end with the module."""
    made = Interpreters()
    yield made
    for process in made.processes.values():
        process.communicate(timeout=60)


def framework_of(code: str) -> str:
    """The framework that a block needs, or nothing."""
    uses = [
        name for name, adapter in FRAMEWORKS.items() if re.search(rf"\bimport {name}\b|{re.escape(adapter)}\b", code)
    ]
    return uses[0] if uses else ""


def missing(framework: str) -> str | None:
    """The framework, or our adapter, that is not there."""
    needed = (framework, FRAMEWORKS[framework]) if framework else ()
    return next((module for module in needed if importlib.util.find_spec(module) is None), None)


@pytest.mark.skipif(os.name != "posix", reason="the blocks are for a POSIX shell")
@pytest.mark.parametrize("section", sections(), ids=lambda section: section.title)
def test_blocks_run(section: Section, workplace: Path, interpreters: Interpreters, bucket: bool) -> None:
    """The blocks of a section, one after the other in one directory, end without an error."""
    skipped = None
    if not any("convert" in code for _, code in section.blocks):
        chunkstore.convert(workplace / "data", workplace / "train.cks")
    for language, code in section.blocks:
        if "s3://" in code and not bucket:
            skipped = "obstore or moto"
        elif language == "python":
            framework = framework_of(code)
            skipped = missing(framework) or skipped
            if missing(framework) is None:
                interpreters.execute(framework, code, workplace)
        elif language == "sh" and code.startswith(("tools/", "pip ")):
            check_set_up(code)
        elif language == "sh":
            execute_shell(code, workplace)
        else:
            pytest.fail(f"a block in {language!r}: say sh or python")
    if skipped:
        pytest.skip(f"{skipped} is not here; its block was left out")


def check_set_up(code: str) -> None:
    """Lines that set up a machine are not run here: the scripts must be there, and the extras known."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for line in code.splitlines():
        words = line.partition("#")[0].split()
        if words[0] == "pip":
            assert words[1] == "install"
            assert set(re.findall(r"\[(.*)\]", line)) <= set(extras)
        else:
            assert os.access(ROOT / words[0], os.X_OK), f"{words[0]} is not there, or cannot be run"
            subprocess.run(["sh", "-n", str(ROOT / words[0])], check=True)


def test_two_commands_in_first_screen() -> None:
    """A newcomer sees how to try it before anything else."""
    assert {"tools/demo", "tools/test"} <= set(" ".join(README.splitlines()[:15]).split())


def test_names_every_command() -> None:
    """The table of the command line has every command, and no other."""
    named = set(re.findall(r"^\| `chunkstore (\w+)", README, re.MULTILINE))
    assert named == set(cli.list_commands(None))  # type: ignore[arg-type]  # the context is not looked at


def test_names_every_error() -> None:
    """The table of errors has every class that a user may meet."""
    general = {"ChunkstoreError", "FormatError"}
    classes = {name for name, value in vars(errors).items() if isinstance(value, type)} - general
    assert {name for name in classes if f"`{name}`" not in README} == set()


def test_names_only_what_exists() -> None:
    """Every `chunkstore.NAME` of the text is there; files that it links to, too."""
    names = set(re.findall(r"\bchunkstore\.([A-Za-z]\w*)", README)) - {"torch", "tf", "grain", "jax"}
    assert {name for name in names if not hasattr(chunkstore, name)} == set()
    links = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"`((?:tools|chunkstore|tests|spec)/[\w./]*)`", README)
    assert [link for link in links if not (ROOT / link).exists()] == []
