"""Any sequence of writing, committing, crashing, reading and rewriting leaves what a list would hold.

The quick part of `tools/battery`, which makes a million steps.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # tools/ is not installed

from tools.battery import model  # noqa: E402
from tools.battery.model import Model  # noqa: E402
from tools.battery.scratch import in_memory  # noqa: E402

details = st.integers(0, 999)


class Machine(RuleBasedStateMachine):
    """Hypothesis chooses the steps, and makes a failing sequence short."""

    def __init__(self) -> None:
        super().__init__()
        self._memory = in_memory()
        self.model = Model(self._memory.__enter__())

    @rule(name=st.sampled_from(Model.STEPS), a=details, b=details)
    def step(self, name: str, a: int, b: int) -> None:
        """Any step; those that need a writer, or none, do nothing without."""
        self.model.step(name, a, b)

    @precondition(lambda self: self.model.writing)
    @rule(name=st.sampled_from(["add", "add_batch", "commit", "crash", "kill"]), a=details, b=details)
    def write_on(self, name: str, a: int, b: int) -> None:
        """What a writer does next."""
        self.model.step(name, a, b)

    def teardown(self) -> None:
        """At rest, everything is as it should be."""
        try:
            self.model.end()
        finally:
            self._memory.__exit__(None, None, None)


Machine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestMachine = Machine.TestCase


@pytest.mark.parametrize("seed", range(1, 20))  # with those above, 30,000 steps
def test_random_steps(seed: int) -> None:
    """The same by random numbers, in longer sequences."""
    with in_memory() as folder:
        counts: Any = model.run(folder, 1500, seed)
    assert sum(counts.values()) >= 1500
    assert set(counts) == set(Model.STEPS)
