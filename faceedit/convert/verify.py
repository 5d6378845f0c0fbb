"""Look at converted networks: do they draw pictures, and is their W what they say it is?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from faceedit.convert.checkpoint import Checkpoint, mapping_distance
from faceedit.errors import ConversionError
from faceedit.models.generator import Generator

__all__ = ["Report", "verify"]

_FACES, _TILE = 4, 256
_SAMPLES = 10_000
# How far the mean latent may lie from W's mean, in W's own radius. Published means are running ones and
# come within a few hundredths; the origin, for StyleGAN2-FFHQ, lies at 0.42.
_MAX_MEAN_ERROR = 0.1
_RANGE, _MIN_INSIDE = 1.25, 0.95  # pixels are nominally in [-1, 1]
_MIN_CONTRAST = 0.02


class Report(NamedTuple):
    """What was seen.

    Attributes:
        grid: ``(3, H, W)`` in [0, 1]: generated faces; below them what the encoder makes of them.
        facts: names to numbers, for people.
    """

    grid: Tensor
    facts: dict[str, float]


@torch.no_grad()
def verify(checkpoint: Checkpoint) -> Report:
    """Draw faces from fixed noise and check them.

    Checked are: every value finite; at least 95 % of the pixels in [-1.25, 1.25], and not all alike;
    the mean latent within a tenth of W's radius of the mean of W over 10,000 fixed draws.

    Args:
        checkpoint: as it is about to be written. Its new attributes are each tried at strength 1.

    Raises:
        ConversionError: a check failed; the message has the numbers.
    """
    generator, encoder = checkpoint.networks.generator, checkpoint.networks.encoder
    z = torch.randn(_SAMPLES, generator.style_dim, generator=torch.Generator().manual_seed(0))
    w = generator.map(z)
    radius = (w - w.mean(0)).norm(dim=1).mean()
    codes = generator.broadcast(generator.map(z[:_FACES], 0.7))
    pictures = _draw(generator, codes)
    rows = [pictures]
    distance = mapping_distance(generator)
    facts = {} if distance == math.inf else {"W's distance from StyleGAN2-FFHQ's, relative": distance}
    facts |= {
        "W mean": float(w.mean()),
        "W standard deviation": float(w.std(0).mean()),
        "mean latent off W's mean by, in radii of W": float((w.mean(0) - generator.mean_latent).norm() / radius),
        "pixels within 1.25": float((pictures.abs() <= _RANGE).float().mean()),
        "contrast": float(pictures.std()),
    }
    for name, value in zip(("red", "green", "blue"), pictures.mean((0, 2, 3)).tolist(), strict=True):
        facts[f"mean {name}, in [0, 1]"] = (value + 1) / 2
    if encoder is not None:
        rows.append(_draw(generator, encoder(pictures).latents))
        difference = (rows[0] - rows[1]).square().mean().clamp(min=1e-10)
        facts["encoder's PSNR on these faces, dB at 256 px at most"] = float(10 * torch.log10(4 / difference))
    for name in checkpoint.shown:
        rows.append(_draw(generator, codes + checkpoint.tensors[f"directions.{name}"].float()))
        facts[f"{name} +1: mean change of a pixel, in [0, 1]"] = float((rows[-1] - pictures).abs().mean() / 2)
    _check(facts)
    grid = torch.cat([torch.cat(list(row), -1) for row in rows], -2)
    return Report(((grid + 1) / 2).clamp(0, 1), facts)


def _draw(generator: Generator, codes: Tensor) -> Tensor:
    """Pictures of ``codes``, one at a time for memory's sake, at no more than the size of a tile."""
    pictures = torch.cat([generator(code[None]) for code in codes]).float()
    if pictures.shape[-1] > _TILE:
        pictures = F.interpolate(pictures, (_TILE, _TILE), mode="area")
    return pictures


def _check(facts: Mapping[str, float]) -> None:
    wrong = [name for name, value in facts.items() if not math.isfinite(value)]
    if not wrong:
        limits = (
            ("mean latent off W's mean by, in radii of W", lambda value: value <= _MAX_MEAN_ERROR),
            ("pixels within 1.25", lambda value: value >= _MIN_INSIDE),
            ("contrast", lambda value: value >= _MIN_CONTRAST),
        )
        wrong = [name for name, holds in limits if not holds(facts[name])]
    if wrong:
        seen = "; ".join(f"{name} {facts[name]:.4g}" for name in wrong)
        raise ConversionError(
            f"What was converted does not draw as a StyleGAN should: {seen}. Nothing was written; the file may be "
            "damaged, or of a network that only looks like the one it was taken for."
        )
