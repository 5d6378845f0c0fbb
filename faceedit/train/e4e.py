"""Train e4e for any generator: pSp's losses, and codes that stay near W so that they can be edited.

``python -m faceedit.train encoder --config e4e --out FOLDER``

    L = pSp's + l_offset sum_i |w_i - w_0| + l_adversarial softplus(-D(w_i))

Row 0 is trained alone first; then the offsets of the others are let in one by one. D tells an encoder's
rows from codes of the generator's W and is trained beside it, once a step and on the whole batch, however
many processes and passes computed that.

Source: Tov et al., arXiv 2102.02766, sections 4.2 and 5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from faceedit.models.e4e_encoder import Encoder4Editing
from faceedit.train import processes, psp
from faceedit.train.checkpoint import load_generator, save_tensors
from faceedit.train.config import Count, Positive, Weight, Whole, read_recipe
from faceedit.train.data import Faces
from faceedit.train.encoder_losses import (
    LatentAdversary,
    active_rows,
    discriminator_loss,
    offset_loss,
)
from faceedit.train.judges import Judges
from faceedit.train.psp import PspRecipe, PspTask
from faceedit.train.trainer import Share, begin


@dataclass(frozen=True, kw_only=True)
class E4eRecipe(PspRecipe):
    """Every number of the training; the defaults are the paper's, for faces."""

    network: Literal["e4e"] = "e4e"  # which encoder
    steps: Count = 200_000  # optimizer steps in all
    lambda_offset: Weight = 2e-4  # lengths of the rows' offsets from row 0, the paper's delta loss
    lambda_adversarial: Weight = 0.1  # rows pass for codes of W
    rows_start: Whole = 20_000  # steps in which all rows repeat row 0
    rows_every: Count = 2_000  # steps until another row gets its own offset
    discriminator_lr: Positive = 2e-5  # Adam, for the latent discriminator
    pool: Count = 50  # codes of past steps that it is shown again, of each kind
    r1: Weight = 10.0  # weight of its gradient penalty
    r1_every: Count = 16  # steps between penalties


class E4eTask(PspTask):
    """As `PspTask`, with small offsets, a latent discriminator and rows let in one by one.

    Args:
        encoder, judges, recipe, photos: As for `PspTask`.
        to_w: Noise ``(B, style_dim)`` to codes of W, float32, on the encoder's device.
    """

    encoder: Encoder4Editing

    def __init__(
        self, encoder: Encoder4Editing, judges: Judges, recipe: E4eRecipe, photos: Faces, to_w: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__(encoder, judges, recipe, photos)
        self.to_w = to_w
        self.adversary = LatentAdversary(
            encoder.style_dim, recipe.discriminator_lr, recipe.pool, recipe.r1, recipe.r1_every, self.device
        )
        # Row 0 is a code of W and the others are the encoder's; each share fills in its own faces.
        self._codes: Tensor | None = None

    def loss(self, share: Share) -> tuple[Tensor, dict[str, Tensor | float]]:
        recipe = self.recipe
        self.encoder.active_rows = active_rows(share.step, self.encoder.n_styles, recipe.rows_start, recipe.rows_every)
        total, figures = super().loss(share)
        real, latents = self._codes[_places(share)].tensor_split([1], 1)
        network = self.adversary.discriminator
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            told = discriminator_loss(network(real), network(latents[:, : self.encoder.active_rows]))
        return total, {**figures, "discriminator": told, "rows": float(self.encoder.active_rows)}

    def latent_losses(self, latents: Tensor, share: Share) -> dict[str, Tensor]:
        rows = self.encoder.active_rows
        if self._codes is None:
            self._codes = latents.new_zeros(share.total, 1 + latents.shape[1], latents.shape[2])
            self._step, self._random = share.step, share.common
        with torch.autocast(self.device.type, enabled=False):
            with torch.no_grad():
                real = self.to_w(share.normal(self.encoder.style_dim))
                self._codes[_places(share)] = torch.cat((real[:, None], latents), 1)
            return {"offset": offset_loss(latents, rows), "adversarial": self.adversary.loss(latents, rows)}

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """A step of the discriminator, the same in every process."""
        codes, self._codes = processes.total(self._codes), None
        with torch.enable_grad():
            self.adversary.update(codes[:, 0], codes[:, 1:], self.encoder.active_rows, self._step, self._random)
        processes.copy_first(self.adversary.discriminator.state_dict().values())

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "adversary": self.adversary.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.adversary.load_state_dict(state["adversary"])

    def export(self, folder: Path) -> None:
        """As every task; rows that are not let in yet repeat row 0, as they do in training."""
        tensors, rows = self.encoder.state_dict(), self.encoder.active_rows
        for i in range(self.encoder.n_styles if rows is None else rows, self.encoder.n_styles):
            for part in ("weight", "bias"):
                name = f"styles.{i}.linear.{part}"
                tensors[name] = torch.zeros_like(tensors[name])
        save_tensors(tensors, folder / f"{self.name}.safetensors")


def _places(share: Share) -> slice:
    return slice(share.samples.start, share.samples.stop)


def main(argv: list[str]) -> int:
    """Command line entry; see the module's docstring."""
    recipe = read_recipe(E4eRecipe, argv, "encoder", __doc__)
    device = begin(recipe)
    encoder, judges, photos = psp.prepare(Encoder4Editing, recipe, device)
    # Codes of W are drawn in float32, whatever the pictures are drawn in.
    to_w = load_generator(recipe.generator).to(device).map
    psp.train(E4eTask(encoder, judges, recipe, photos, to_w), device)
    return 0
