"""The Trainer of Hugging Face on a `Dataset`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

from clients import digits  # noqa: E402
from torch.utils.data import default_collate  # noqa: E402

from chunkstore.torch import Dataset  # noqa: E402

# Advice about devices.
pytestmark = pytest.mark.filterwarnings("ignore")


class Model(torch.nn.Module):  # type: ignore[misc]
    """What the Trainer wants: a dict with the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = digits.model()

    def forward(self, image: Any, label: Any = None, labels: Any = None) -> dict[str, Any]:
        """`labels` is what the Trainer's own collation calls `label`."""
        found, wanted = self.net(image), label if labels is None else labels
        return {"loss": torch.nn.functional.cross_entropy(found, wanted), "logits": found}


@pytest.mark.parametrize("collate", [default_collate, None])
def test_trainer(digits_path: str, tmp_path: Path, collate: Any) -> None:
    """With `default_collate` (whole batches at no cost) and with the Trainer's own collation, the digits are learnt."""
    train, test = digits.split(digits_path)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=digits.BATCH,
        num_train_epochs=digits.EPOCHS,
        learning_rate=0.01,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    model = Model()
    transformers.Trainer(model, arguments, data_collator=collate, train_dataset=Dataset(train)).train()
    assert digits.accuracy(model.net, test) >= digits.ACCURACY
