"""What all tests share: the real data, the GPU marker, the settings of hypothesis. Imports no framework."""

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
import os
import signal
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent
FRAMEWORKS = ("numpy", "torch", "tensorflow-cpu", "tensorflow", "jax")

# Read by TensorFlow when it is first imported; its start-up messages would bury a failing test's own output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# A shell starts what it runs in the background with Ctrl-C ignored, and every process of a test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: a test is not wrong because the machine is busy.
# In CI the same examples each time: a red run can be repeated.
hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_report_header() -> str:
    """Name the versions that the adapters are tested with, or say which are absent, without an import."""
    versions = []
    for name in FRAMEWORKS:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return "with: " + ", ".join(versions)


def pytest_collection_finish() -> None:
    """Keep what the imports made out of each `gc.collect()` of a test: with the frameworks, most of a second."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `needs_cuda` without a GPU; fail them instead where FAIL_WITHOUT_CUDA is set."""
    if item.get_closest_marker("needs_cuda") is None:
        return
    reason = _why_no_cuda()
    if reason and os.environ.get("FAIL_WITHOUT_CUDA"):
        pytest.fail(f"FAIL_WITHOUT_CUDA is set, and {reason}", pytrace=False)
    if reason:
        pytest.skip(reason)


def _why_no_cuda() -> str | None:
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    import torch

    return None if torch.cuda.is_available() else f"torch {torch.__version__} sees no CUDA device"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets, read-only: ../shared/data, or what CHUNKSTORE_SHARED_DATA names."""
    path = Path(os.environ.get("CHUNKSTORE_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; name their folder in CHUNKSTORE_SHARED_DATA")
    return path
