"""`chunkstore.tf.dataset` in processes of its own: several devices, the interpreter's exit, resume after a kill."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tf_containers import build_rows

from chunkstore._loading.order import Order

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

"""

EXIT = """
import sys, tensorflow as tf
from chunkstore.tf import dataset
# Iterators half-way: their threads are busy with batches and with Python.
half = [iter(dataset(sys.argv[1], 8, shuffle=True, repeat=True, prefetch=8, engine=sys.argv[2])) for _ in range(3)]
for batches in half:
    for _ in range(5):
        next(batches)
print("half-way", flush=True)
if sys.argv[3] == "raise":
    raise RuntimeError("on purpose")
"""

KILLED = """
import sys, os, signal, tensorflow as tf
from chunkstore.tf import dataset
batches = iter(dataset(sys.argv[1], 64, shuffle=True, seed=3, repeat=2))
checkpoint = tf.train.Checkpoint(batches=batches)
for _ in range(6):
    print(*next(batches)["x"][:, 0].numpy(), flush=True)
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


@pytest.mark.parametrize(
    ("code", "engine", "how"), [(DISTRIBUTED + EXIT, "gather", "end"), (EXIT, "numpy", "raise")], ids=["end", "raise"]
)
def test_two_replicas_and_a_clean_exit(path: str, code: str, engine: str, how: str) -> None:
    """MirroredStrategy on two devices sees each sample once; a busy iterator does not harm the exit."""
    ended = run(code, path, engine, how)
    assert "half-way" in ended.stdout, ended.stderr
    assert ended.returncode == (1 if how == "raise" else 0), ended.stderr
    assert ("RuntimeError: on purpose" in ended.stderr) == (how == "raise")
    assert "Fatal" not in ended.stderr
    assert "Exception ignored" not in ended.stderr


def test_killed_and_resumed(path: str, tmp_path: Path) -> None:
    """A process killed in the middle of an epoch, and this one, which goes on, together give the whole epochs."""
    import tensorflow as tf

    from chunkstore.tf import dataset

    state = str(tmp_path / "state")
    killed = run(KILLED, path, state)
    assert killed.returncode == -9, killed.stderr
    seen = [[int(each) for each in line.split()] for line in killed.stdout.splitlines()]
    assert len(seen) == 6
    batches = iter(dataset(path, 64, shuffle=True, seed=3, repeat=2))
    tf.train.Checkpoint(batches=batches).restore(state + "-1").assert_consumed()
    seen += [batch["x"][:, 0].numpy().tolist() for batch in batches]
    order = Order(N, batch_size=64, seed=3)
    assert seen == [batch.tolist() for epoch in (0, 1) for batch in order.batches(epoch)]
