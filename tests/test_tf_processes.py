"""`chunkstore.tf.dataset` in processes of its own: several devices, the interpreter's exit, resume after a kill."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tf_containers import build_rows

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("TensorFlow is not installed", allow_module_level=True)

N = 640

DISTRIBUTED = """
import sys, numpy as np, tensorflow as tf
from chunkstore.tf import dataset
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
seen = []
for batch in strategy.experimental_distribute_dataset(dataset(sys.argv[1], 64, shuffle=True)):
    parts = strategy.experimental_local_results(batch["x"])
    assert len(parts) == 2 and all(len(part) == 32 for part in parts), parts
    seen += np.concatenate(parts)[:, 0].tolist()
assert sorted(seen) == list(range(640)), len(seen)

def of(context):
    return dataset(sys.argv[1], 32, shard=(context.input_pipeline_id, context.num_input_pipelines))

batches = strategy.distribute_datasets_from_function(of)
seen = [strategy.experimental_local_results(batch["x"])[0].shape[0] for batch in batches]
assert seen == [32] * 10, seen

# The exit, with iterators half-way: their threads are busy with batches and with Python.
half = [iter(dataset(sys.argv[1], 8, shuffle=True, repeat=True, prefetch=8, engine=sys.argv[2])) for _ in range(3)]
for batches in half:
    for _ in range(5):
        next(batches)
print("done", flush=True)
if sys.argv[3] == "raise":
    raise RuntimeError("on purpose")
"""

KILLED = """
import sys, os, signal, tensorflow as tf
from chunkstore.tf import dataset
batches = iter(dataset(sys.argv[1], 64, shuffle=True, seed=3, repeat=2))
checkpoint = tf.train.Checkpoint(batches=batches)
if sys.argv[3] == "go on":
    checkpoint.restore(sys.argv[2] + "-1").assert_consumed()
for step, batch in enumerate(batches):
    print(*batch["x"][:, 0].numpy(), flush=True)
    if sys.argv[3] == "kill" and step == 5:
        checkpoint.save(sys.argv[2])
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = np.zeros((N, 256), np.int64)
    rows[:, 0] = np.arange(N)
    return build_rows(tmp_path_factory.mktemp("tf") / "x.cks", rows)


def run(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r})\n{code}", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize(("engine", "how"), [("gather", "end"), ("numpy", "raise")])
def test_two_replicas_and_a_clean_exit(path: str, engine: str, how: str) -> None:
    """MirroredStrategy on two devices sees each sample once; a busy iterator does not harm the exit."""
    ended = run(DISTRIBUTED, path, engine, how)
    assert "done" in ended.stdout, ended.stderr
    assert ended.returncode == (1 if how == "raise" else 0), ended.stderr
    assert ("RuntimeError: on purpose" in ended.stderr) == (how == "raise")
    assert "Fatal" not in ended.stderr
    assert "Exception ignored" not in ended.stderr


def test_killed_and_resumed(path: str, tmp_path: Path) -> None:
    """A process killed in the middle of an epoch, and one that goes on, together give the epochs of one that ran on."""
    state = str(tmp_path / "state")
    killed = run(KILLED, path, state, "kill")
    assert killed.returncode == -9, killed.stderr
    resumed = run(KILLED, path, state, "go on")
    whole = run(KILLED, path, state, "run on")
    assert whole.returncode == resumed.returncode == 0, resumed.stderr
    assert len(killed.stdout.splitlines()) == 6
    assert (killed.stdout + resumed.stdout).splitlines() == whole.stdout.splitlines()
    assert sorted(whole.stdout.split()) == sorted(map(str, [*range(N), *range(N)]))
