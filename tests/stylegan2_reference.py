"""StyleGAN2 written a second time, in NumPy and float64, straight from the paper and its layouts.

Nothing here knows of the package: weights are those of the foreign layouts, with the equalised
learning rate applied at run time and weights of its own for each sample.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

CONFIG_F = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}


# The layouts, key for key and shape for shape


def _draw(random: torch.Generator, *shape: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
    return torch.randn(*shape, generator=random) * scale + mean


def filter_taps(gain: float) -> Tensor:
    """[1, 3, 3, 1] outer itself, with a sum of ``gain``."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(taps, taps) / 64 * gain


def rosinality(channels: dict[int, int], style_dim: int = 512, depth: int = 8, seed: int = 0) -> dict[str, Tensor]:
    """Random values under the names and in the shapes of a ``g_ema`` dict."""
    random = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}

    def modulated(name: str, n_in: int, n_out: int, kernel: int) -> None:
        found[f"{name}.weight"] = _draw(random, 1, n_out, n_in, kernel, kernel)
        found[f"{name}.modulation.weight"] = _draw(random, n_in, style_dim)
        found[f"{name}.modulation.bias"] = _draw(random, n_in, scale=0.2, mean=1)

    def styled(name: str, n_in: int, n_out: int, up: bool) -> None:
        modulated(f"{name}.conv", n_in, n_out, 3)
        if up:
            found[f"{name}.conv.blur.kernel"] = filter_taps(4)
        found[f"{name}.noise.weight"] = _draw(random, 1, scale=0.3)
        found[f"{name}.activate.bias"] = _draw(random, n_out, scale=0.3)

    def to_rgb(name: str, width: int, up: bool) -> None:
        found[f"{name}.bias"] = _draw(random, 1, 3, 1, 1, scale=0.3)
        modulated(f"{name}.conv", width, 3, 1)
        if up:
            found[f"{name}.upsample.kernel"] = filter_taps(4)

    for i in range(1, depth + 1):
        found[f"style.{i}.weight"] = _draw(random, style_dim, style_dim, scale=100)
        found[f"style.{i}.bias"] = _draw(random, style_dim, scale=10)
    widths = list(channels.values())
    found["input.input"] = _draw(random, 1, widths[0], 4, 4)
    styled("conv1", widths[0], widths[0], up=False)
    to_rgb("to_rgb1", widths[0], up=False)
    for i, (n_in, n_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        styled(f"convs.{2 * i}", n_in, n_out, up=True)
        styled(f"convs.{2 * i + 1}", n_out, n_out, up=False)
        to_rgb(f"to_rgbs.{i}", n_out, up=True)
    for i in range(2 * len(widths) - 1):
        side = 4 * 2 ** ((i + 1) // 2)
        found[f"noises.noise_{i}"] = _draw(random, 1, 1, side, side)
    return found


def as_nvidia(tensors: dict[str, Tensor], latent_avg: Tensor) -> dict[str, Tensor]:
    """The same network under the names and in the shapes of a ``G_ema``'s parameters and buffers."""
    found = {"mapping.w_avg": latent_avg, "synthesis.b4.const": tensors["input.input"][0]}
    depth = sum(name.startswith("style.") for name in tensors) // 2
    for i in range(depth):
        for part in ("weight", "bias"):
            found[f"mapping.fc{i}.{part}"] = tensors[f"style.{i + 1}.{part}"]
    n_levels = sum(name.startswith("to_rgb") and name.endswith("conv.weight") for name in tensors)
    for level in range(n_levels):
        block = f"synthesis.b{4 * 2**level}"
        found[f"{block}.resample_filter"] = filter_taps(1)
        sources = {f"{block}.conv1": ("conv1", 0)}
        if level:
            sources = {f"{block}.conv{k}": (f"convs.{2 * level - 2 + k}", 2 * level - 1 + k) for k in (0, 1)}
        for name, (theirs, number) in sources.items():
            found[f"{name}.resample_filter"] = filter_taps(1)
            found[f"{name}.affine.weight"] = tensors[f"{theirs}.conv.modulation.weight"]
            found[f"{name}.affine.bias"] = tensors[f"{theirs}.conv.modulation.bias"]
            found[f"{name}.weight"] = tensors[f"{theirs}.conv.weight"][0]
            found[f"{name}.noise_strength"] = tensors[f"{theirs}.noise.weight"][0]
            found[f"{name}.noise_const"] = tensors[f"noises.noise_{number}"][0, 0]
            found[f"{name}.bias"] = tensors[f"{theirs}.activate.bias"]
        theirs = f"to_rgbs.{level - 1}" if level else "to_rgb1"
        found[f"{block}.torgb.affine.weight"] = tensors[f"{theirs}.conv.modulation.weight"]
        found[f"{block}.torgb.affine.bias"] = tensors[f"{theirs}.conv.modulation.bias"]
        found[f"{block}.torgb.weight"] = tensors[f"{theirs}.conv.weight"][0]
        found[f"{block}.torgb.bias"] = tensors[f"{theirs}.bias"].flatten()
    return found


# The formulas


def leaky_relu(x: np.ndarray) -> np.ndarray:
    """Slope 0.2 below zero, times the square root of 2."""
    return np.where(x > 0, x, 0.2 * x) * np.sqrt(2)


def correlate(x: np.ndarray, weight: np.ndarray, padding: int) -> np.ndarray:
    """``(C, H, W)`` and ``(O, C, k, k)`` to ``(O, H', W')``."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[-2:], axis=(1, 2))
    return np.einsum("chwij,ocij->ohw", windows, weight)


def transposed(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Stride 2: every pixel lays down its kernel; ``(C, H, W)`` to ``(O, 2H + 1, 2W + 1)`` for k = 3."""
    height, width = x.shape[1:]
    k = weight.shape[-1]
    out = np.zeros((len(weight), 2 * height - 2 + k, 2 * width - 2 + k))
    for i in range(height):
        for j in range(width):
            out[:, 2 * i : 2 * i + k, 2 * j : 2 * j + k] += np.einsum("c,ocab->oab", x[:, i, j], weight)
    return out


def blurred(x: np.ndarray, up: int, before: int, after: int) -> np.ndarray:
    """Zeros between the pixels and around them, then the filter with a gain of 4."""
    spread = np.zeros((len(x), x.shape[1] * up, x.shape[2] * up))
    spread[:, ::up, ::up] = x
    spread = np.pad(spread, ((0, 0), (before, after), (before, after)))
    taps = np.array([1.0, 3.0, 3.0, 1.0]) / 4
    windows = np.lib.stride_tricks.sliding_window_view(spread, (4, 4), axis=(1, 2))
    return np.einsum("chwij,i,j->chw", windows, taps, taps)


def modulated(x: np.ndarray, weight: np.ndarray, style: np.ndarray, demodulate: bool, up: bool = False) -> np.ndarray:
    """Equations 1 and 3 of the paper, on one sample ``(C, H, W)``."""
    weight = weight * style[None, :, None, None]
    if demodulate:
        weight = weight / np.sqrt((weight**2).sum((1, 2, 3), keepdims=True) + 1e-8)
    return blurred(transposed(x, weight), 1, 1, 1) if up else correlate(x, weight, weight.shape[-1] // 2)


class Reference:
    """The network of rosinality's layout."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.t = {name: tensor.double().numpy() for name, tensor in tensors.items()}
        self.n_convs = sum(name.startswith("noises.") for name in tensors)

    def map(self, z: np.ndarray) -> np.ndarray:
        """One ``z`` ``(512,)`` to ``w``."""
        w = z / np.sqrt((z**2).mean() + 1e-8)
        for i in range(1, sum(name.startswith("style.") for name in self.t) // 2 + 1):
            weight = self.t[f"style.{i}.weight"] * (0.01 / np.sqrt(len(w)))
            w = leaky_relu(weight @ w + 0.01 * self.t[f"style.{i}.bias"])
        return w

    def _modulated(self, name: str, x: np.ndarray, w: np.ndarray, **options: bool) -> np.ndarray:
        style = self.t[f"{name}.modulation.weight"] @ w / np.sqrt(len(w)) + self.t[f"{name}.modulation.bias"]
        weight = self.t[f"{name}.weight"][0]
        return modulated(x, weight / np.sqrt(np.prod(weight.shape[1:])), style, **options)

    def draw(
        self, code: np.ndarray, noise: list[np.ndarray] | None = None
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """One code ``(rows, 512)`` to the sum of images and the features of every level."""
        x, image = self.t["input.input"][0], None
        images, features = [], []
        for number in range(self.n_convs):
            name = f"convs.{number - 1}" if number else "conv1"
            x = self._modulated(f"{name}.conv", x, code[number], demodulate=True, up=number % 2 == 1)
            added = self.t[f"noises.noise_{number}"][0, 0] if noise is None else noise[number]
            x = x + self.t[f"{name}.noise.weight"] * added
            x = leaky_relu(x + self.t[f"{name}.activate.bias"][:, None, None])
            if number % 2:
                continue
            head = f"to_rgbs.{number // 2 - 1}" if number else "to_rgb1"
            rgb = self._modulated(f"{head}.conv", x, code[number + 1], demodulate=False) + self.t[f"{head}.bias"][0]
            image = rgb if image is None else blurred(image, 2, 2, 1) + rgb
            images.append(image)
            features.append(x)
        return images, features
