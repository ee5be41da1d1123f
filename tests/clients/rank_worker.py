"""One rank of a training on the digits: started by test_ranks.py, and killed by it.

Usage: python rank_worker.py JSON, an object with the keys: container, folder, rank, world_size, epochs, resume.

It writes to `folder` the ids that it trained on, step by step, as lines [epoch, step, ids] in `seen-RANK`; after each
step, rank 0 puts a checkpoint in place of the one before. At the end each rank leaves `done-RANK`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.append(str(Path(__file__).resolve().parents[1]))

from clients import digits

from chunkstore.torch import Loader


class Worker:
    """A training that can be killed at any time and goes on from its last checkpoint."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.folder = Path(options["folder"])
        self.rank: int = options["rank"]
        train, self.test = digits.split(options["container"])
        self.net: Any = digits.model()
        if options["world_size"] > 1:
            self.net = torch.nn.parallel.DistributedDataParallel(self.net)
        self.descent = digits.optimizer(self.net)
        # rank and world size are those of torch.distributed
        self.loader = Loader(train, digits.BATCH, shuffle=True, seed=11)

    def resume(self, path: str) -> None:
        """Take model, optimizer and position from a checkpoint."""
        saved = torch.load(path)
        self._bare().load_state_dict(saved["net"])
        self.descent.load_state_dict(saved["descent"])
        self.loader.load_state_dict(saved["loader"])

    def run(self) -> None:
        """Train until the number of epochs is complete."""
        with open(self.folder / f"seen-{self.rank}", "w", encoding="ascii") as seen, self.loader:
            while self.loader.epoch < self.options["epochs"]:
                for step, batch in enumerate(self.loader):
                    self.descent.zero_grad()
                    digits.loss_of(self.net, batch).backward()
                    self.descent.step()
                    print(json.dumps([step, identities(batch)]), file=seen, flush=True)
                    self._save()
                    time.sleep(self.options["pause"])
        found = digits.accuracy(self._bare(), self.test)
        weights = sum(float(each.double().sum()) for each in self.net.parameters())
        (self.folder / f"done-{self.rank}").write_text(json.dumps({"accuracy": found, "weights": weights}))

    def _save(self) -> None:
        if self.rank == 0:
            state = {"net": self._bare().state_dict(), "descent": self.descent.state_dict()}
            torch.save(state | {"loader": self.loader.state_dict()}, self.folder / "new")
            os.replace(self.folder / "new", self.folder / "checkpoint")

    def _bare(self) -> Any:
        return getattr(self.net, "module", self.net)


def identities(batch: dict[str, torch.Tensor]) -> list[int]:
    """What tells a digit from all others: a number of its pixels."""
    weights = torch.arange(1, 65) ** 3
    return (batch["image"].flatten(1).long() * weights).sum(1).tolist()


def main(options: dict[str, Any]) -> None:
    """Join the other ranks, train, leave."""
    torch.set_num_threads(1)
    rendezvous = f"file://{options['folder']}/rendezvous"
    dist.init_process_group("gloo", rendezvous, rank=options["rank"], world_size=options["world_size"])
    worker = Worker(options)
    if options["resume"]:
        worker.resume(options["resume"])
    worker.run()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
