"""Generators of rosinality's ``stylegan2-pytorch``, which pSp, e4e and most of the field use.

``generator(g_ema, latent_avg)`` takes the tensors under ``g_ema`` of a ``.pt`` file (171 of them at
1024 px), or those under ``decoder.`` of a pSp or e4e checkpoint without that prefix, already read.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from faceedit.convert.stylegan2 import Source, fill, highest, size_along
from faceedit.errors import CheckpointError
from faceedit.models.stylegan2 import StyleGAN2

_LAYOUT = "rosinality's stylegan2-pytorch"
_MAPPING_RATE = 0.01


def generator(tensors: Mapping[str, Tensor], latent_avg: Tensor | None = None) -> StyleGAN2:
    """Build the generator; its size, channels and mapping depth follow from the tensors' shapes.

    Args:
        tensors: Names as in the original's state dict: ``style.1.weight``, ``convs.0.conv.weight``.
        latent_avg: Mean of W, ``(512,)`` or ``(n_styles, 512)`` with equal rows; None computes it.

    Returns:
        In float32, frozen, on the CPU.

    Raises:
        CheckpointError: A tensor is missing, left over or mis-shaped, or a filter is another one.
    """
    depth = highest(tensors, r"style\.(\d+)\.", _LAYOUT)
    n_levels = highest(tensors, r"to_rgbs\.(\d+)\.", _LAYOUT) + 2
    style_dim = size_along(tensors, [(f"style.{i}.bias", 0) for i in range(1, depth + 1)], _LAYOUT)
    channels = []
    for level in range(n_levels):
        first = (f"{_conv(2 * level - 1)}.activate.bias", 0) if level else ("input.input", 1)
        places = [first, (f"{_conv(2 * level)}.activate.bias", 0), (f"{_head(level)}.conv.weight", 2)]
        channels.append(size_along(tensors, places, _LAYOUT))
    with torch.device("meta"):
        made = StyleGAN2(4 * 2 ** (n_levels - 1), style_dim=style_dim, mapping_layers=depth, channels=channels)
    shapes = {key: tuple(value.shape) for key, value in made.state_dict().items()}

    sources = {"constant": Source("input.input", shapes["constant"])}
    filters = {}
    for i in range(depth):
        for part, scale in (("weight", style_dim**-0.5 * _MAPPING_RATE), ("bias", _MAPPING_RATE)):
            key = f"mapping.layers.{i}.{part}"
            sources[key] = Source(f"style.{i + 1}.{part}", shapes[key], scale)
    for number in range(2 * n_levels - 1):
        name = _conv(number)
        key = f"levels.{(number - 1) // 2}.conv{2 - number % 2}" if number else "first"
        shape = shapes[f"{key}.weight"]
        side = shapes[f"{key}.noise"]
        sources |= {
            f"{key}.weight": Source(f"{name}.conv.weight", (1, *shape), (9 * shape[1]) ** -0.5),
            f"{key}.style.weight": Source(f"{name}.conv.modulation.weight", (shape[1], style_dim), style_dim**-0.5),
            f"{key}.style.bias": Source(f"{name}.conv.modulation.bias", (shape[1],)),
            f"{key}.bias": Source(f"{name}.activate.bias", (shape[0],)),
            f"{key}.noise_strength": Source(f"{name}.noise.weight", (1,)),
            f"{key}.noise": Source(f"noises.noise_{number}", (1, 1, *side)),
        }
        if number % 2:
            filters[f"{name}.conv.blur.kernel"] = 4.0
    for level, width in enumerate(channels):
        key, name = f"heads.{level}", _head(level)
        sources |= {
            f"{key}.weight": Source(f"{name}.conv.weight", (1, 3, width, 1, 1), width**-0.5),
            f"{key}.style.weight": Source(f"{name}.conv.modulation.weight", (width, style_dim), style_dim**-0.5),
            f"{key}.style.bias": Source(f"{name}.conv.modulation.bias", (width,)),
            f"{key}.bias": Source(f"{name}.bias", (1, 3, 1, 1)),
        }
        if level:
            filters[f"{name}.upsample.kernel"] = 4.0

    sources["mean_latent"] = Source("latent_avg", (style_dim,))
    given = {**tensors, "latent_avg": torch.zeros(style_dim) if latent_avg is None else _row(latent_avg)}
    filled = fill(made, sources, filters, given, _LAYOUT)
    if latent_avg is None:
        filled.mean_latent.copy_(filled.mapping.mean())
    return filled


def _conv(number: int) -> str:
    """The original's name of the styled convolution that reads row ``number`` of W+."""
    return "conv1" if number == 0 else f"convs.{number - 1}"


def _head(level: int) -> str:
    return "to_rgb1" if level == 0 else f"to_rgbs.{level - 1}"


def _row(latent_avg: Tensor) -> Tensor:
    """One row of the mean latent, which some checkpoints repeat for every layer."""
    rows = latent_avg.reshape(-1, latent_avg.shape[-1]) if latent_avg.ndim else latent_avg.reshape(1, 1)
    if not torch.equal(rows, rows[:1].expand_as(rows)):
        raise CheckpointError(f"latent_avg, {tuple(latent_avg.shape)}, has rows that differ: it must be one code.")
    return rows[0]
