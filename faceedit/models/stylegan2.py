"""StyleGAN2, config-f and its relatives, in plain PyTorch operations.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (arXiv 1912.04958).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from faceedit.errors import UsageError
from faceedit.models.generator import Generator, GeneratorOutput, LevelHook
from faceedit.models.layers import Mapping
from faceedit.models.ops import modulated_conv, upsample

_SQRT2 = 2**0.5
_PREVIEW_SIZE = 256


class StyledConv(nn.Module):
    """Modulated 3x3 convolution, noise, bias, leaky ReLU; ``up`` doubles the size.

    Args:
        n_in: Channels that come in.
        n_out: Channels that go out.
        size: Side of the map that goes out.
        style_dim: Width of W.
        up: The map that comes in has half the size.
        clamp: Largest magnitude that is let out; None lets out everything.
    """

    def __init__(
        self, n_in: int, n_out: int, size: int, style_dim: int, up: bool = False, clamp: float | None = None
    ) -> None:
        super().__init__()
        self.up = up
        self.clamp = clamp
        self.style = nn.Linear(style_dim, n_in)
        nn.init.normal_(self.style.weight, std=style_dim**-0.5)
        nn.init.ones_(self.style.bias)
        self.weight = nn.Parameter(torch.randn(n_out, n_in, 3, 3) / (9 * n_in) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(n_out))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise", torch.randn(size, size))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map and style ``(B, 512)`` to ``(B, n_out, S, S)``; noise ``(S, S)`` or ``(B, 1, S, S)``."""
        noise = self.noise if noise is None else noise
        # The activation's gain goes ahead of it, where it costs nothing: leaky ReLU is homogeneous.
        x = modulated_conv(x, self.weight, self.style(w), self.bias * _SQRT2, up=self.up, gain=_SQRT2)
        x = F.leaky_relu_(x.add_(noise * (self.noise_strength * _SQRT2)), 0.2)
        if self.clamp is None:
            return x
        # A fresh map costs many times what the clamping does, but backward needs the one before it.
        return x.clamp(-self.clamp, self.clamp) if x.requires_grad else x.clamp_(-self.clamp, self.clamp)


class Level(nn.Module):
    """One doubling of the resolution: two styled convolutions, the first of them upsampling."""

    def __init__(self, n_in: int, n_out: int, size: int, style_dim: int, clamp: float | None = None) -> None:
        super().__init__()
        self.conv1 = StyledConv(n_in, n_out, size, style_dim, up=True, clamp=clamp)
        self.conv2 = StyledConv(n_out, n_out, size, style_dim, clamp=clamp)

    def forward(
        self, x: Tensor, w1: Tensor, w2: Tensor, noise1: Tensor | None = None, noise2: Tensor | None = None
    ) -> Tensor:
        """``(B, n_in, S/2, S/2)`` and two styles ``(B, 512)`` to ``(B, n_out, S, S)``."""
        return self.conv2(self.conv1(x, w1, noise1), w2, noise2)


class ImageHead(nn.Module):
    """1x1 modulated convolution, without demodulation, to RGB."""

    def __init__(self, n_in: int, style_dim: int, clamp: float | None = None) -> None:
        super().__init__()
        self.clamp = clamp
        self.style = nn.Linear(style_dim, n_in)
        nn.init.normal_(self.style.weight, std=style_dim**-0.5)
        nn.init.ones_(self.style.bias)
        self.weight = nn.Parameter(torch.randn(3, n_in, 1, 1) / n_in**0.5)
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """``(B, n_in, S, S)`` and style ``(B, 512)`` to ``(B, 3, S, S)``."""
        # With three outputs, per-sample weights are cheap and spare a scaled copy of the map.
        weight = self.weight.flatten(1).T * self.style(w)[:, :, None]
        rgb = torch.baddbmm(self.bias, x.permute(0, 2, 3, 1).flatten(1, 2), weight)
        rgb = rgb.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        return rgb if self.clamp is None else rgb.clamp(-self.clamp, self.clamp)


class StyleGAN2(Generator):
    """StyleGAN2 with skip connections in the image domain.

    W+ has two rows a level: row 0 the 4x4 convolution; rows 2i-1 and 2i the two convolutions of
    level i. The image head of level i reads row 2i+1, which it shares with the next level's first
    convolution. Features of a level are those after its last convolution; the image heads read
    them as a hook returns them. The preview is the sum of the images up to 256 px.

    The constant scales of the equalised learning rate are folded into the stored weights (and those
    of the mapping's learning-rate multiplier, into its biases too), as single-precision products,
    which is what the original networks compute at run time.

    Args:
        size: Side of the picture in pixels, a power of two from 8.
        channel_multiplier: 2 is config-f, 1 has half the channels from 64 px up.
        style_dim: Width of Z and W.
        mapping_layers: Depth of the mapping network.
        channels: Channels of each level, from 4x4 up, for networks outside the official table.
        conv_clamp: What NVIDIA's mixed-precision networks clamp the layers' outputs to.

    Attributes:
        options: The arguments that make the same network, as a config's ``generator.options``.
        gradient_checkpointing: Keep each level's input only and compute the level again in the
            backward pass. Off at first.

    Raises:
        UsageError: Size or channels do not make a network.
    """

    def __init__(
        self,
        size: int = 1024,
        channel_multiplier: float = 2,
        style_dim: int = 512,
        mapping_layers: int = 8,
        *,
        channels: Sequence[int] | None = None,
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.level_sizes = level_sizes(size)
        self.level_channels = tuple(channels or (table(side, channel_multiplier) for side in self.level_sizes))
        if len(self.level_channels) != len(self.level_sizes):
            raise UsageError(
                f"channels has {len(self.level_channels)} entries: a network of {size} px has "
                f"{len(self.level_sizes)} levels, from 4 px up"
            )
        self.options = {
            "size": size, "style_dim": style_dim, "mapping_layers": mapping_layers,
            "channels": list(self.level_channels), "conv_clamp": conv_clamp,
        }  # fmt: skip
        self.style_dim = style_dim
        self.n_styles = 2 * len(self.level_sizes)
        self.resolution = size
        self.gradient_checkpointing = False
        smaller = [level for level, side in enumerate(self.level_sizes[:-1]) if side <= _PREVIEW_SIZE]
        self.preview_level = smaller[-1]

        widths = self.level_channels
        self.mapping = Mapping(style_dim, mapping_layers)
        self.constant = nn.Parameter(torch.randn(1, widths[0], 4, 4))
        self.first = StyledConv(widths[0], widths[0], 4, style_dim, clamp=conv_clamp)
        self.levels = nn.ModuleList(
            Level(n_in, n_out, side, style_dim, conv_clamp)
            for n_in, n_out, side in zip(widths[:-1], widths[1:], self.level_sizes[1:], strict=True)
        )
        self.heads = nn.ModuleList(ImageHead(width, style_dim, conv_clamp) for width in widths)
        self.register_buffer("mean_latent", torch.zeros(style_dim))
        self.requires_grad_(False)

    def random_noise(self, n: int = 1, *, seed: int | None = None) -> tuple[Tensor, ...]:
        """Noise to pass to :meth:`synthesize` in place of the stored maps.

        Args:
            n: Batch size.
            seed: Of the draw; None draws differently every time.

        Returns:
            ``(n, 1, S, S)``, standard normal, for each styled convolution in order.
        """
        random = torch.Generator().manual_seed(seed) if seed is not None else None
        sides = [self.level_sizes[(i + 1) // 2] for i in range(2 * len(self.level_sizes) - 1)]
        return tuple(torch.randn(n, 1, side, side, generator=random).to(self.mean_latent) for side in sides)

    def _walk(
        self,
        latents: Tensor,
        hook: LevelHook | None,
        noise: Sequence[Tensor] | None,
        last: int,
        features: list[Tensor] | None = None,
        start: Sequence[Tensor] = (),
    ) -> Tensor:
        """The sum of the images of levels 0..last; their features are added to a list, if given."""
        x = self.constant.expand(len(latents), -1, -1, -1).contiguous(memory_format=torch.channels_last)
        image: Tensor | None = None
        for level in range(last + 1):
            rows = self.style_rows(level)
            module = self.levels[level - 1] if level else self.first
            inputs = (x, *(latents[:, row] for row in rows), *(noise[row] if noise else None for row in rows))
            if level < len(start):
                x = start[level]
            elif self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                x = module(*inputs)
            if hook is not None and level >= len(start):
                x = hook(level, x)
            if features is not None:
                features.append(x)
            rgb = self.heads[level](x, latents[:, 2 * level + 1])
            image = rgb if image is None else upsample(image) + rgb
        return image

    def features(self, latents: Tensor, last: int) -> tuple[Tensor, ...]:
        features: list[Tensor] = []
        self._walk(latents, None, None, last, features)
        return tuple(features)

    def synthesize(
        self,
        latents: Tensor,
        hook: LevelHook | None = None,
        start: Sequence[Tensor] = (),
        noise: Sequence[Tensor] | None = None,
    ) -> GeneratorOutput:
        """As every generator; ``noise``, as from :meth:`random_noise`, replaces the stored maps."""
        features: list[Tensor] = []
        image = self._walk(latents, hook, noise, len(self.levels), features, start)
        return GeneratorOutput(image, tuple(features))

    def forward(self, latents: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        return self._walk(latents, None, noise, len(self.levels))

    def preview(
        self,
        latents: Tensor,
        hook: LevelHook | None = None,
        start: Sequence[Tensor] = (),
        noise: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """``(B, 3, S, S)``: the sum of the images up to 256 px, or up to half the resolution.

        The rows of W+ that only finer levels read do not reach it, nor does what the finer image
        heads add, which need not be detail alone (figure 8 of the paper): it is what the network
        has drawn so far, not the picture reduced.
        """
        return self._walk(latents, hook, noise, self.preview_level, start=start)


def level_sizes(size: int) -> tuple[int, ...]:
    """Sides of the maps of a network of ``size`` px, from 4 up.

    Raises:
        UsageError: It is not a power of two from 8.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 8 or size & (size - 1):
        raise UsageError(f"StyleGAN2's size must be a power of two from 8, not {size!r}")
    return tuple(4 * 2**i for i in range(int(math.log2(size)) - 1))


def table(side: int, multiplier: float = 2) -> int:
    """Channels of the official networks at one resolution: 512 up to 32 px, then halving."""
    return 512 if side <= 32 else int(16384 * multiplier) // side
