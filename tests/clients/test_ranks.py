"""Two ranks of `torch.distributed`: together every sample once an epoch; killed and resumed as any number of ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from clients import digits  # noqa: E402
from clients.rank_worker import identities  # noqa: E402

from chunkstore.torch import Loader  # noqa: E402

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="torch without gloo"
)

ROOT = Path(__file__).resolve().parents[2]
STEPS = -(-digits.NUM_TRAIN // (2 * digits.BATCH))  # of an epoch with two ranks


@contextmanager
def started(container: str, folder: Path, world_size: int, **options: Any) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes of all ranks; whatever happens, none of them is left."""
    folder.mkdir()
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": loopback()}
    common = {"container": container, "folder": str(folder), "world_size": world_size, "pause": 0, "resume": None}
    processes = []
    try:
        for rank in range(world_size):
            arguments = json.dumps(common | options | {"rank": rank})
            command = [sys.executable, str(Path(__file__).with_name("rank_worker.py")), arguments]
            processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def loopback() -> str:
    """Name of the network interface that leads nowhere else."""
    return "lo" if sys.platform == "linux" else "lo0"


def finish(processes: list[subprocess.Popen[str]], folder: Path) -> list[dict[str, float]]:
    """What the ranks found at their end."""
    for process in processes:
        _, said = process.communicate(timeout=90)
        assert process.returncode == 0, said
    return [json.loads((folder / f"done-{rank}").read_text()) for rank in range(len(processes))]


def seen(folder: Path, rank: int) -> list[list[list[int]]]:
    """Epoch by epoch and step by step what a rank trained on; a line that the kill cut off does not count."""
    epochs: list[list[list[int]]] = []
    for line in (folder / f"seen-{rank}").read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            step, found = json.loads(line)
            epochs += [[]] if step == 0 else []
            epochs[-1].append(found)
    return epochs


def flat(batches: list[list[int]]) -> list[int]:
    return [each for batch in batches for each in batch]


def loaders(container: str, world_size: int) -> list[Any]:
    """What the workers make, without processes."""
    train, _ = digits.split(container)
    options: Any = {"shuffle": True, "seed": 11, "world_size": world_size}
    return [Loader(train, digits.BATCH, rank=rank, **options) for rank in range(world_size)]


def rest_of_epoch(container: str, world_size: int, state: dict[str, Any]) -> list[list[list[int]]]:
    """For each rank the batches that are left from `state` to the end of the epoch."""
    found = []
    for loader in loaders(container, world_size):
        with loader:
            loader.load_state_dict(state)
            found.append([identities(batch) for batch in loader])
    return found


@pytest.fixture(scope="module")
def everything(digits_path: str) -> list[int]:
    """All samples to train on, sorted."""
    train, _ = digits.split(digits_path)
    return sorted(identities({"image": torch.from_numpy(train[:]["image"].copy())}))


def test_two_ranks_see_every_sample_once(digits_path: str, tmp_path: Path, everything: list[int]) -> None:
    """With DistributedDataParallel over gloo: in each epoch the ranks share the samples, and learn the same digits."""
    folder = tmp_path / "run"
    with started(digits_path, folder, 2, epochs=8) as processes:
        done = finish(processes, folder)
    epochs = [seen(folder, rank) for rank in range(2)]
    assert [len(each) for each in epochs] == [8, 8]
    for first, second in zip(*epochs, strict=True):
        assert len(first) == len(second) == STEPS
        assert sorted(flat(first) + flat(second)) == everything
    assert epochs[0][0] != epochs[0][1]
    assert done[0] == done[1]
    assert done[0]["accuracy"] >= digits.ACCURACY


def test_kill_and_resume(digits_path: str, tmp_path: Path, everything: list[int]) -> None:
    """Two ranks are killed in the middle of an epoch; two, three or one go on with exactly what was left."""
    killed, resumed = tmp_path / "killed", tmp_path / "resumed"
    with started(digits_path, killed, 2, epochs=8, pause=0.02) as processes:
        state = kill_inside(processes, killed, epoch=1)
    num_steps, left_over = divmod(state["samples_seen"], 2 * digits.BATCH)
    assert state["epoch"] == 1
    assert 0 < num_steps < STEPS
    assert left_over == 0
    logged = [seen(killed, rank)[1] for rank in range(2)]
    before = flat(logged[0][:num_steps]) + flat(logged[1][:num_steps])
    whole = rest_of_epoch(digits_path, 2, state | {"samples_seen": 0})
    assert [each[:num_steps] for each in logged] == [each[:num_steps] for each in whole]
    assert rest_of_epoch(digits_path, 2, state) == [each[num_steps:] for each in whole]
    assert sorted(before + flat(flat(rest_of_epoch(digits_path, 3, state)))) == everything  # type: ignore[arg-type]
    with started(digits_path, resumed, 1, epochs=7, resume=str(killed / "checkpoint")) as processes:
        (done,) = finish(processes, resumed)
    first, *others = seen(resumed, 0)
    assert sorted(before + flat(first)) == everything
    assert [sorted(flat(each)) for each in others] == [everything] * 5
    assert done["accuracy"] >= digits.ACCURACY


def kill_inside(processes: list[subprocess.Popen[str]], folder: Path, epoch: int) -> Any:
    """SIGKILL to all ranks when the checkpoint says that this epoch has begun; the loader's state in it."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert all(process.poll() is None for process in processes), processes[0].communicate()[1]
        state = torch.load(folder / "checkpoint")["loader"] if (folder / "checkpoint").exists() else {"epoch": 0}
        if state["epoch"] == epoch and state["samples_seen"] >= 5 * 2 * digits.BATCH:
            break
        time.sleep(0.01)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        assert process.wait(30) == -signal.SIGKILL
    return torch.load(folder / "checkpoint")["loader"]
