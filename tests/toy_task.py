"""A task that is small enough to be trained many times in a test, and has all that a task can have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceedit.train.config import TrainRecipe, read_recipe
from faceedit.train.trainer import Share, Task, Trainer, begin


@dataclass(frozen=True, kw_only=True)
class ToyRecipe(TrainRecipe):
    """Every number of the toy."""

    out: Path  # folder
    steps: int = 6  # few
    batch: int = 8  # six of one kind, two of the other
    warmup: int = 2  # steps
    decay: int = 2  # steps
    evaluate_every: int = 0  # at the end
    grid_every: int = 0  # at the end
    dropout: float = 0.0  # of the hidden layer
    lambda_kind: float = 0.5  # of the second kind's own loss


class ToyTask(Task):
    """Learn y = sum(x) of a data set; the last two of a batch have a loss of their own as well."""

    name = "toy"

    def __init__(self, recipe: ToyRecipe, device: torch.device | str = "cpu") -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(recipe.dropout), nn.Linear(8, 1))
        self.trainable = nn.ModuleDict({"body": body, "own": nn.Linear(1, 1), "frozen": nn.Linear(4, 1)})
        self.trainable["frozen"].requires_grad_(False)
        self.data = torch.randn(20, 4, generator=torch.Generator().manual_seed(5))
        self.seen: list[int] = []

    def loss(self, share: Share) -> tuple[Tensor, dict[str, Tensor | float]]:
        rows = share.pick(len(self.data))
        self.seen += rows.tolist()
        x = self.data[rows] + 0.1 * share.normal(4) + 0.01 * torch.rand(1, generator=share.common)
        y = self.trainable["body"](x) + self.trainable["frozen"](x)
        loss = F.mse_loss(y, x.sum(1, keepdim=True))
        first, second = share.part(0, 6), share.part(6, 8)
        own = loss.new_zeros(())
        if len(second):  # a share without the second kind gives its parameter no gradient at all
            target = second.uniform(-1, 1, 1) + second.integers(3)[:, None]
            own = second.mean((self.trainable["own"](y[len(first) :]) - target).abs().flatten())
        return loss + self.recipe.lambda_kind * own, {"l2": loss.detach(), "own": own.detach()}

    def evaluate(self) -> dict[str, float]:
        assert not self.trainable.training and not torch.is_grad_enabled()
        y = self.trainable["body"](self.data) + self.trainable["frozen"](self.data)
        return {"l2": F.mse_loss(y, self.data.sum(1, keepdim=True)).item()}

    def sample_grid(self) -> Tensor:
        return torch.stack([torch.full((3, 3, 4, 5), v) for v in (-1.0, 1.0)])


def main(argv: list[str]) -> int:
    recipe = read_recipe(ToyRecipe, argv, "toy")
    device = begin(recipe)
    Trainer(ToyTask(recipe, device), recipe, device).run()
    return 0


if __name__ == "__main__":
    import os
    import sys

    from faceedit.train import processes

    main(sys.argv[1:])
    processes.leave()
    # PyTorch's threads have been seen to abort at the interpreter's end, after all was written.
    os._exit(0)
