"""The frozen networks that an encoder's pictures are judged by, and the generator that draws them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from faceedit.models.generator import Generator
from faceedit.train.identity import IdentityNet
from faceedit.train.metrics import psnr
from faceedit.train.perceptual import LPIPS

SIDE = 256  # of a full picture, pooled: what pSp's and e4e's losses see
_HELD_OUT_BATCH = 8


@dataclass
class Judges:
    """Frozen networks of the loss.

    Attributes:
        generator: Draws the codes.
        lpips: Perceptual distance.
        identity: Who is seen; None leaves that loss out.
        full: Draw whole pictures, pooled to 256 px, and not the generator's previews.
        compiled: Compile what draws and LPIPS, which takes a minute once and saves time in every step.
    """

    generator: Generator
    lpips: LPIPS
    identity: IdentityNet | None
    full: bool = False
    compiled: bool = False

    def __post_init__(self) -> None:
        parts = (self.generator.preview, self._reduced, self.lpips.features)
        self._preview, self._whole, self._features = map(torch.compile, parts) if self.compiled else parts

    def render(self, codes: Tensor) -> Tensor:
        """Pictures of codes ``(B, n_styles, 512)``: previews, or ``(B, 3, 256, 256)`` if ``full``."""
        return self._each(self._whole if self.full else self._preview, codes)

    def preview(self, codes: Tensor) -> Tensor:
        """Previews in any case: what an encoder's corrections look at."""
        return self._each(self._preview, codes)

    def _each(self, draw: Callable[[Tensor], Tensor], codes: Tensor) -> Tensor:
        codes = codes.to(self.generator.mean_latent.dtype)
        # On a CPU one code at a time: one face's maps stay in the cache.
        at_once = 1 if codes.device.type == "cpu" else len(codes)
        return torch.cat([draw(part) for part in codes.split(at_once)])

    def _reduced(self, codes: Tensor) -> Tensor:
        return F.avg_pool2d(self.generator(codes), max(1, self.generator.resolution // SIDE))

    @torch.no_grad()
    def side(self) -> int:
        """Side in pixels of what :meth:`render` gives."""
        return self.render(self.generator.broadcast(self.generator.mean_latent[None])).shape[-1]

    def losses(self, pictures: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Mean L2, LPIPS and identity distance of pictures in [-1, 1]."""
        with torch.no_grad():
            wanted = self._features(targets)
        found = {
            "l2": F.mse_loss(pictures.float(), targets),
            "lpips": self.lpips.distance(self._features(pictures), wanted).mean().float(),
        }
        if self.identity is not None:
            with torch.no_grad():
                person = self.identity.describe(targets)
            found["id"] = (1 - (self.identity.describe(pictures.float()) * person).sum(1)).mean().float()
        return found

    def held_out(
        self, encode: Callable[[Tensor], Tensor], targets: Tensor, bf16: bool
    ) -> tuple[dict[str, float], Tensor]:
        """How well an encoder's codes give pictures that it was not trained on.

        Args:
            encode: Pictures to codes.
            targets: ``(N, 3, S, S)`` in [-1, 1], as large as :meth:`render` draws.
            bf16: bfloat16 where autocast finds it safe.

        Returns:
            "psnr", mean in dB on [0, 1], and the losses; the last pictures above what was made of them,
            ``(2, n, 3, S, S)``.
        """
        sums: dict[str, float] = {}
        for x in targets.split(_HELD_OUT_BATCH):
            with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
                y = self.render(encode(x.contiguous(memory_format=torch.channels_last)))
                losses = self.losses(y, x)
            y = y.float().clamp(-1, 1)
            decibels = psnr((y - x).square().mean((1, 2, 3)).cpu() / 4).mean()
            for name, value in {"psnr": decibels, **losses}.items():
                sums[name] = sums.get(name, 0.0) + value.item() * len(x)
        return {name: value / len(targets) for name, value in sums.items()}, torch.stack((x, y))
