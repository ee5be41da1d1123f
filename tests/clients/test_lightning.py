"""Lightning: `fit` on a `Loader` and on a `DataLoader`, `validate`, and a checkpoint in the middle of an epoch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
lightning = pytest.importorskip("lightning.pytorch" if importlib.util.find_spec("lightning") else "pytorch_lightning")

from clients import digits  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from chunkstore.torch import BatchSampler, Dataset, Loader  # noqa: E402

# Advice about workers, loggers and devices.
pytestmark = pytest.mark.filterwarnings("ignore")

STOP = 70  # steps: in the second epoch of 45


class Module(lightning.LightningModule):  # type: ignore[misc]
    """The model of the digits; notes the keys of what it trains on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = digits.model()
        self.seen: list[list[int]] = []
        self.hits = self.num_tested = 0

    def training_step(self, batch: dict[str, Any], _: int) -> Any:
        """The loss."""
        self.seen.append(batch["label"].tolist())
        return digits.loss_of(self.net, batch)

    def validation_step(self, batch: dict[str, Any], _: int) -> None:
        """Count what is right."""
        self.hits += int((self.net(batch["image"]).argmax(1) == batch["label"]).sum())
        self.num_tested += len(batch["label"])

    def configure_optimizers(self) -> Any:
        """That of all clients."""
        return digits.optimizer(self.net)


def trainer(folder: Path, **options: Any) -> Any:
    """Quiet, on the CPU."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    options = {"enable_checkpointing": False} | quiet | options
    return lightning.Trainer(accelerator="cpu", devices=1, default_root_dir=folder, **options)


def make_loader(kind: str, source: Any) -> Any:
    """The same order each way."""
    if kind == "Loader":
        return Loader(source, digits.BATCH, shuffle=True, seed=1)
    sampler = BatchSampler(Dataset(source), digits.BATCH, shuffle=True, seed=1)
    return DataLoader(Dataset(source), batch_sampler=sampler)


@pytest.mark.parametrize("kind", ["Loader", "DataLoader"])
def test_fit(digits_path: str, tmp_path: Path, kind: str) -> None:
    """`fit` and `validate` take each sample once an epoch, and the digits are learnt."""
    train, test = digits.split(digits_path)
    module, loader = Module(), make_loader(kind, train)
    coach = trainer(tmp_path, max_epochs=digits.EPOCHS)
    coach.fit(module, loader)
    assert sum(map(len, module.seen)) == digits.EPOCHS * digits.NUM_TRAIN
    assert module.seen[:45] != module.seen[45:90]
    coach.validate(module, DataLoader(Dataset(test), 100), verbose=False)
    assert module.num_tested == len(test)
    assert module.hits / len(test) >= digits.ACCURACY


def test_checkpoint_holds_the_position(digits_path: str, tmp_path: Path) -> None:
    """A checkpoint in the middle of an epoch has the loader's state: the rest of the epoch is what was left."""
    train, _ = digits.split(digits_path)
    whole, rest = Module(), Module()
    saver = lightning.callbacks.ModelCheckpoint(tmp_path, filename="half", every_n_train_steps=STOP)
    first = trainer(tmp_path, max_epochs=2, callbacks=[saver], enable_checkpointing=True)
    first.fit(whole, make_loader("Loader", train))
    again = trainer(tmp_path, max_epochs=2)
    again.fit(rest, make_loader("Loader", train), ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    assert rest.seen == whole.seen[STOP:]
    for mine, other in zip(whole.parameters(), rest.parameters(), strict=True):
        assert torch.equal(mine, other)
