"""However a program ends, the loader's threads end with it: no abort, no hang, no noise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch_containers as containers

# Threads that are inside torch nearly all the time: the case in which an interpreter that goes away aborts.
SETUP = """
import sys, threading, time
import torch
from chunkstore.torch import Dataset, Loader, prefetch

def busy(batch):
    x = torch.ones(200, 200)
    for _ in range(20):
        x = x @ x / 200
    return batch | {"x": x}

loader = Loader(sys.argv[1], 1, shuffle=True, batch_transform=busy, prefetch=4, threads=2)
"""

RUN = "def run():\n    for _ in range(1000):\n        for batch in loader: pass\n"
ENDINGS = {
    "a half-read epoch": ("batches = iter(loader); next(batches)", 0, ""),
    "an exception in the loop": ("for batch in loader: 1 / 0", 1, "ZeroDivisionError"),
    "sys.exit in the loop": ("for batch in loader: sys.exit(7)", 7, ""),
    "exit from another thread's loop": (
        RUN + "threading.Thread(target=run, daemon=True).start(); time.sleep(0.2)",
        0,
        None,  # its ClosedError; how much of that is printed before the end is chance
    ),
    "exit from another thread's loop without threads": (
        "loader = Loader(sys.argv[1], 1, batch_transform=busy, prefetch=0)\n"
        + RUN
        + "threading.Thread(target=run, daemon=True).start(); time.sleep(0.2)",
        0,
        "",
    ),
    "exit from another thread's loader in a loader, both without threads": (
        "inner = Loader(sys.argv[1], 1, batch_transform=busy, prefetch=0)\n"
        "def outer(batch):\n    for _ in inner: pass\n    return batch\n"
        "loader = Loader(sys.argv[1], 1, batch_transform=outer, prefetch=0)\n"
        + RUN
        + "threading.Thread(target=run, daemon=True).start(); time.sleep(0.2)",
        0,
        "",
    ),
    "prefetch of a loader without threads": (
        "ahead = iter(prefetch(Loader(sys.argv[1], 1, batch_transform=busy, prefetch=0))); next(ahead)",
        0,
        "",
    ),
    "a transform that raises": (
        "loader.dataset.batch_transform = lambda b: b['nope']\nfor batch in loader: pass",
        1,
        "KeyError: 'nope'",
    ),
    "prefetch, half-read": (
        "ahead = iter(prefetch(torch.ones(300, 300) @ torch.ones(300, 300) for _ in range(10**6))); next(ahead)",
        0,
        "",
    ),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return containers.plain(tmp_path_factory.mktemp("torch") / "plain.cks", 60)


def start(path: str, code: str) -> subprocess.Popen[str]:
    """Run a script with a loader in it."""
    program = textwrap.dedent(SETUP) + code
    command = [sys.executable, "-X", "faulthandler", "-W", "error", "-c", program, path]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize(("code", "status", "text"), ENDINGS.values(), ids=ENDINGS.keys())
def test_ends_of_a_program(path: str, code: str, status: int, text: str | None) -> None:
    """The exit status is the program's own, stderr has its own error at most, and the end comes soon."""
    process = start(path, code)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == status, errors
    assert text is None or text in errors
    if text == "":
        assert errors == ""
    for word in ("Fatal", "terminate called", "Aborted", "Segmentation"):
        assert word not in errors


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("place", ["in next()", "in the loop"])
def test_ctrl_c(path: str, place: str) -> None:
    """SIGINT while waiting for a batch, or while using one: KeyboardInterrupt, and the process ends by itself."""
    slow = "loader.dataset.batch_transform = lambda b: (time.sleep(0.3), busy(b))[1]\n" if place == "in next()" else ""
    pause = "" if slow else "    time.sleep(60)"
    process = start(path, slow + f"for batch in loader:\n    print('ready', flush=True)\n{pause}")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 130, 1), errors
    assert "KeyboardInterrupt" in errors
    for word in ("Fatal", "terminate called", "Aborted", "Segmentation"):
        assert word not in errors


def test_threads_are_gone_when_atexit_functions_run(path: str, tmp_path: Path) -> None:
    """Functions that were registered before the import run after the threads have ended."""
    code = (
        "batches = iter(loader); next(batches)\n"
        "sys.__dict__['check'] = lambda: print(sum(t.name.startswith('chunkstore') for t in threading.enumerate()))\n"
    )
    program = "import atexit, sys\natexit.register(lambda: sys.check())\n" + textwrap.dedent(SETUP) + code
    run = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True, timeout=100)
    assert run.stdout == "0\n"


@pytest.mark.parametrize("prefetch", [0, 2])
def test_the_exit_waits_for_a_daemon_thread_to_come_back(path: str, prefetch: int) -> None:
    """One that uses a batch, or frees it, comes to `next()` before the interpreter goes away; one that does not come
    is not waited for.
    """
    code = f"""
import chunkstore._loading.prefetch as ring
ring._RETURN_SECONDS = 1.0  # on a busy machine
def run(seconds):
    for _ in range(1000):
        for batch in Loader(sys.argv[1], 1, prefetch={prefetch}):
            sys.__dict__["place"][seconds] = "loop"
            time.sleep(seconds)
            sys.__dict__["place"][seconds] = "next"
for seconds in 0.03, 60:
    threading.Thread(target=run, args=(seconds,), daemon=True).start()
time.sleep(0.2)
"""
    shown = "import atexit, sys\nsys.place = {}\natexit.register(lambda: print(*sorted(sys.place.items())))\n"
    program = shown + SETUP + code
    run = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True, timeout=50)
    assert run.stdout == "(0.03, 'next') (60, 'loop')\n"
    assert run.stderr == ""
