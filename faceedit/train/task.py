"""What a stage tells the trainer: its `Task`, and the `Share` of a batch that a task computes at a time."""

from __future__ import annotations

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from faceedit.train.checkpoint import save_tensors
from faceedit.train.config import TrainRecipe


def random_source(*key: int | str) -> torch.Generator:
    """A source of randomness (on the CPU) that depends on this key and nothing else."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=4).digest()
    # PyTorch's CPU generator reads 32 bits of its seed.
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


@functools.lru_cache(maxsize=8)
def _order(n: int, *key: int | str) -> Tensor:
    return torch.randperm(n, generator=random_source("order", n, *key))


class Share:
    """The samples of one step's batch that one process computes in one pass, and their draws.

    The draws of a sample depend on the seed, the step and the sample's place in the whole batch, so
    they are the same however many processes and passes share the batch, and after a resume.

    Args:
        seed: Of the run.
        step: Optimizer steps made before this one.
        samples: Places of this share's samples in the batch.
        total: Samples in the batch, all shares together.
        before: Samples in all batches before.
        device: Where drawn tensors go.

    Attributes:
        common: A source of randomness that is the same for every share of the step: for what all
            samples of a batch have in common.
    """

    def __init__(
        self, seed: int, step: int, samples: range, total: int, before: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        self.seed, self.step, self.samples, self.total, self.before, self.device = seed, step, samples, total, before, device
        self.common = random_source(seed, step)
        self._sources = {i: random_source(seed, step, i) for i in samples}
        self._scale = 1 / max(len(samples), 1)
        self._offset = 0

    def __len__(self) -> int:
        return len(self.samples)

    def part(self, first: int, stop: int) -> Share:
        """This share's samples among the places [first, stop) of the batch; perhaps none.

        A batch of several kinds gives each kind such a part. A part draws on where its share stopped.
        """
        part = Share.__new__(Share)
        part.__dict__ |= self.__dict__
        part.samples = range(max(first, self.samples.start), max(first, self.samples.start, min(stop, self.samples.stop)))
        part.total = stop - first
        part.before = self.before * part.total // self.total
        part._scale = self._scale * self.total / part.total
        part._offset = first
        return part

    def mean(self, values: Tensor) -> Tensor:
        """Reduce one value a sample ``(n,)`` to this share's term of the loss.

        For a whole share that is the mean. For a part it is weighed so that over the batch it comes to
        the mean of the part, however its samples fall into shares.
        """
        return values.sum() * self._scale

    def uniform(self, low: float = 0.0, high: float = 1.0, *shape: int) -> Tensor:
        """``(n, *shape)``, uniform in [low, high)."""
        return self._stack(lambda source: torch.rand(shape, generator=source), shape) * (high - low) + low

    def normal(self, *shape: int) -> Tensor:
        """``(n, *shape)``, standard normal."""
        return self._stack(lambda source: torch.randn(shape, generator=source), shape)

    def integers(self, high: int, *shape: int) -> Tensor:
        """``(n, *shape)``, whole numbers in [0, high); int64."""
        return self._stack(lambda source: torch.randint(high, shape, generator=source), shape, torch.int64)

    def pick(self, n: int) -> Tensor:
        """One of n things for each sample, each thing once an epoch; int64 ``(n,)`` on the CPU.

        Two parts of a batch go through the same things in orders of their own.
        """
        number = [self.before + i - self._offset for i in self.samples]
        key = (self.seed, self._offset) if self._offset else (self.seed,)
        return torch.tensor([int(_order(n, *key, i // n)[i % n]) for i in number], dtype=torch.int64)

    def sources(self) -> Iterator[torch.Generator]:
        """The source of each sample, for what draws by itself."""
        return (self._sources[i] for i in self.samples)

    def _stack(self, draw: Any, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        rows = [draw(source) for source in self.sources()]
        return torch.stack(rows).to(self.device) if rows else torch.empty(0, *shape, dtype=dtype, device=self.device)


class Task(ABC):
    """What is trained and how its loss is computed; `faceedit.train.trainer` says how to write one.

    Attributes:
        name: Of the stage; names its files.
        trainable: Everything that may change, on its device. What has ``requires_grad`` off stays.
            Several networks or bare tensors go into an `nn.ModuleDict` or `nn.ParameterDict`.
    """

    name: str
    trainable: nn.Module

    @abstractmethod
    def loss(self, share: Share) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The loss of a share, a mean over its samples, and figures to log, means as well.

        Every share gives the same figures. They may be tensors without gradient.
        """

    def batch(self, step: int) -> int | None:
        """Samples in the batch of this step; None for the recipe's number."""
        return None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer. A group's ``lr`` is its highest; without one it is the recipe's."""
        return [{"params": [p for p in self.trainable.parameters() if p.requires_grad]}]

    def optimizer(self, groups: list[dict[str, Any]], recipe: TrainRecipe) -> torch.optim.Optimizer:
        """The optimizer of the groups, each with its ``lr``."""
        return torch.optim.AdamW(
            groups, betas=(recipe.beta1, recipe.beta2), weight_decay=recipe.weight_decay,
            fused=groups[0]["params"][0].device.type in ("cpu", "cuda"),
        )  # fmt: skip

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:  # noqa: B027
        """Change parameters after the optimizer has, without gradient: a proximal step, a projection.

        ``optimizer.param_groups[i]["lr"]`` is the learning rate that the step was made with.
        """

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside `trainable`: plain containers and tensors, such as those of a
        discriminator and its optimizer."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Take back what `state_dict` gave."""

    def evaluate(self) -> dict[str, float]:
        """Held-out figures, without gradient, in evaluation mode, of the averaged weights if there are."""
        return {}

    def sample_grid(self) -> Tensor | None:
        """Pictures to look at ``(rows, columns, 3, H, W)`` in [-1, 1], as `evaluate` is called."""
        return None

    def export(self, folder: Path) -> None:
        """Write what later stages read, of the averaged weights if there are, at every checkpoint."""
        save_tensors(self.trainable.state_dict(), folder / f"{self.name}.safetensors")
