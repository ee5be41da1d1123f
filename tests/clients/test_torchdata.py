"""The `StatefulDataLoader` of torchdata: its own state holds the place in our order."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
stateful = pytest.importorskip("torchdata.stateful_dataloader")

from clients import digits  # noqa: E402

from chunkstore.torch import BatchSampler, Dataset  # noqa: E402

# torchdata calls what torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")

STOP = 11  # of 45 batches


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_inside_an_epoch(digits_path: str, num_workers: int) -> None:
    """A loader made anew gives exactly the batches that were left, whatever the workers had taken ahead."""
    train, _ = digits.split(digits_path)

    def make() -> Any:
        sampler = BatchSampler(Dataset(train), digits.BATCH, shuffle=True, seed=1)
        return stateful.StatefulDataLoader(Dataset(train), batch_sampler=sampler, num_workers=num_workers)

    loader = make()
    first = [batch["label"].tolist() for batch in loader]
    batches = iter(loader)
    seen = [next(batches)["label"].tolist() for _ in range(STOP)]
    state = loader.state_dict()
    left = [batch["label"].tolist() for batch in batches]
    again = make()
    again.load_state_dict(state)
    assert [batch["label"].tolist() for batch in again] == left
    assert seen + left != first
    assert len(left) == len(first) - STOP


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("exhausted", [False, True])
def test_resume_at_the_end_of_an_epoch(digits_path: str, num_workers: int, exhausted: bool) -> None:
    """The next epoch comes, and none is skipped; first what is left of a loop that had not ended: nothing."""
    train, _ = digits.split(digits_path)

    def make() -> Any:
        sampler = BatchSampler(Dataset(train), digits.BATCH, shuffle=True, seed=1)
        return stateful.StatefulDataLoader(Dataset(train), batch_sampler=sampler, num_workers=num_workers)

    loader = make()
    batches = iter(loader)
    for _ in range(len(loader)):
        next(batches)
    if exhausted:
        assert list(batches) == []
    state = loader.state_dict()
    left = [] if exhausted else [[]]
    left += [[batch["label"].tolist() for batch in loader] for _ in range(2)]
    again = make()
    again.load_state_dict(state)
    assert [[batch["label"].tolist() for batch in again] for _ in left] == left
