"""The Trainer of Hugging Face on a `Dataset`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

from clients import digits  # noqa: E402
from torch.utils.data import DataLoader, default_collate  # noqa: E402

from chunkstore.torch import BatchSampler, Dataset  # noqa: E402

# Advice about devices.
pytestmark = pytest.mark.filterwarnings("ignore")


class Model(torch.nn.Module):  # type: ignore[misc]
    """What the Trainer wants: a dict with the loss. Notes the labels that it trains on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = digits.model()
        self.seen: list[list[int]] = []

    def forward(self, image: Any, label: Any = None, labels: Any = None) -> dict[str, Any]:
        """`labels` is what the Trainer's own collation calls `label`."""
        found, wanted = self.net(image), label if labels is None else labels
        self.seen.append(wanted.tolist())
        return {"loss": torch.nn.functional.cross_entropy(found, wanted), "logits": found}


def arguments(folder: Path, **options: Any) -> Any:
    """Quiet, on the CPU."""
    return transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=digits.BATCH,
        learning_rate=0.01,
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        **options,
    )


@pytest.mark.parametrize("collate", [default_collate, None])
def test_trainer(digits_path: str, tmp_path: Path, collate: Any) -> None:
    """With `default_collate` (whole batches at no cost) and with the Trainer's own collation, the digits are learnt."""
    train, test = digits.split(digits_path)
    model, options = Model(), arguments(tmp_path, num_train_epochs=digits.EPOCHS, save_strategy="no")
    transformers.Trainer(model, options, data_collator=collate, train_dataset=Dataset(train)).train()
    assert digits.accuracy(model.net, test) >= digits.ACCURACY


class OwnOrder(transformers.Trainer):  # type: ignore[misc]
    """Takes its batches in the order of a `BatchSampler`."""

    def get_train_dataloader(self) -> Any:
        """See the class."""
        sampler = BatchSampler(self.train_dataset, digits.BATCH, shuffle=True, seed=1)
        return DataLoader(self.train_dataset, batch_sampler=sampler)


@pytest.mark.parametrize("kind", [transformers.Trainer, OwnOrder])
def test_resume_inside_an_epoch(digits_path: str, tmp_path: Path, kind: Any) -> None:
    """From a checkpoint in the second epoch (of 45 steps), the Trainer goes on with exactly the batches left."""
    train, _ = digits.split(digits_path)
    whole, rest = Model(), Model()
    for model, checkpoint in ((whole, None), (rest, str(tmp_path / "checkpoint-60"))):
        options = arguments(tmp_path, max_steps=75, save_strategy="steps", save_steps=60)
        trainer = kind(model, options, data_collator=default_collate, train_dataset=Dataset(train))
        trainer.train(resume_from_checkpoint=checkpoint)
    assert len(whole.seen) == 75
    assert rest.seen == whole.seen[60:]
    for mine, other in zip(whole.parameters(), rest.parameters(), strict=True):
        assert torch.equal(mine, other)
