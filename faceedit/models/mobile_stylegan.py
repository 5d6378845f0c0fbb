"""MobileStyleGAN: the default generator, StyleGAN2-FFHQ distilled to separable convolutions.

Source: Belousov, "MobileStyleGAN" (arXiv 2104.04767); layer list in the model card.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceedit.models.generator import Generator, GeneratorOutput, LevelHook
from faceedit.models.layers import Mapping
from faceedit.models.ops import inverse_haar


class ModulatedConv(nn.Module):
    """Modulate, convolve, add noise and bias, leaky ReLU.

    The style's constant scale and the demodulation are folded into the stored weights, so the layer
    is linear in the style. ``depthwise`` is 3x3 per channel and ``weight`` 1x1; the first layer of
    the network has a dense 3x3 ``weight`` and no depthwise part.
    """

    def __init__(self, n_in: int, n_out: int, size: int, dense: bool = False) -> None:
        super().__init__()
        kernel = 3 if dense else 1
        self.depthwise = None if dense else nn.Parameter(torch.randn(n_in, 1, 3, 3) / 3)
        self.weight = nn.Parameter(torch.randn(n_out, n_in, kernel, kernel) / (n_in * kernel**2) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(n_out))
        self.noise = nn.Parameter(torch.zeros(size, size))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """``(B, n_in, S, S)`` and scales ``(B, n_in)`` to ``(B, n_out, S, S)``."""
        if self.depthwise is None:
            x = F.conv2d(x * style[:, :, None, None], self.weight, self.bias, padding=1)
        else:
            x = F.conv2d(x, self.depthwise, padding=1, groups=x.shape[1])
            # A per-channel scale commutes with the depthwise filter, so it can go into the 1x1
            # weights: a small product in place of one more pass over the map. In training that
            # would make the weights need a gradient, which costs more than it saves.
            if x.shape[0] == 1 and not style.requires_grad:
                x = F.conv2d(x, self.weight * style[0, None, :, None, None], self.bias)
            else:
                x = F.conv2d(x * style[:, :, None, None], self.weight, self.bias)
        return F.leaky_relu_(x.add_(self.noise), 0.2)


class StyledConv(ModulatedConv):
    """:class:`ModulatedConv` whose scales are an affine map of a row of W+."""

    def __init__(self, n_in: int, n_out: int, size: int, style_dim: int, dense: bool = False) -> None:
        super().__init__(n_in, n_out, size, dense)
        self.style = nn.Linear(style_dim, n_in)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """``(B, n_in, S, S)`` and style ``(B, 512)`` to ``(B, n_out, S, S)``."""
        return super().forward(x, self.style(w))


class Level(nn.Module):
    """One doubling of the resolution: inverse Haar transform, then two styled convolutions."""

    def __init__(self, n_in: int, n_out: int, size: int, style_dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(style_dim, n_in)
        self.conv1 = StyledConv(n_in // 4, n_out, size, style_dim)
        self.conv2 = StyledConv(n_out, n_out, size, style_dim)

    def forward(self, x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        """``(B, n_in, S/2, S/2)`` and two styles ``(B, 512)`` to ``(B, n_out, S, S)``."""
        x = inverse_haar(x * self.up(w1)[:, :, None, None])
        return self.conv2(self.conv1(x, w1), w2)


class ImageHead(nn.Module):
    """1x1 modulated convolution to the twelve Haar bands of an RGB picture of twice the size."""

    def __init__(self, n_in: int, style_dim: int) -> None:
        super().__init__()
        self.style = nn.Linear(style_dim, n_in)
        self.weight = nn.Parameter(torch.randn(12, n_in, 1, 1) / n_in**0.5)
        self.bias = nn.Parameter(torch.zeros(12))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """``(B, n_in, S, S)`` and style ``(B, 512)`` to ``(B, 3, 2S, 2S)``."""
        x = F.conv2d(x * self.style(w)[:, :, None, None], self.weight, self.bias)
        return inverse_haar(x)


class MobileStyleGAN(Generator):
    """1024x1024 faces at a tenth of StyleGAN2's cost.

    W+ has 16 rows: row 0 the 4x4 convolution; rows 1+2i and 2+2i the two convolutions of level
    i+1; row 15 the image head. Rows 0-14 equal StyleGAN2-1024's rows 0-14, row 15 its row 15.

    Args:
        channels: Channels of each level, from 4x4 up.
        style_dim: Width of W.
        preview_level: Level whose features the preview head reads.
    """

    def __init__(
        self,
        channels: Sequence[int] = (512, 512, 512, 512, 512, 256, 128, 64),
        style_dim: int = 512,
        preview_level: int = 5,
    ) -> None:
        super().__init__()
        self.style_dim = style_dim
        self.level_channels = tuple(channels)
        self.level_sizes = tuple(4 * 2**i for i in range(len(channels)))
        self.n_styles = 2 * len(channels)
        self.resolution = 2 * self.level_sizes[-1]
        self.preview_level = preview_level

        self.mapping = Mapping(style_dim)
        self.constant = nn.Parameter(torch.randn(1, channels[0], 4, 4))
        self.first = StyledConv(channels[0], channels[0], 4, style_dim, dense=True)
        self.levels = nn.ModuleList(
            Level(channels[i], channels[i + 1], self.level_sizes[i + 1], style_dim)
            for i in range(len(channels) - 1)
        )
        self.head = ImageHead(channels[-1], style_dim)
        self.preview_head = PreviewHead(channels[preview_level:], self.level_sizes[preview_level])
        self.register_buffer("mean_latent", torch.zeros(style_dim))
        self.requires_grad_(False)

    def _walk(self, latents: Tensor, hook: LevelHook | None, last: int, start: Sequence[Tensor] = ()) -> list[Tensor]:
        """Features of levels 0..last."""
        features = list(start)
        for level in range(len(start), last + 1):
            if level:
                row = 2 * level - 1
                x = self.levels[level - 1](features[-1], latents[:, row], latents[:, row + 1])
            else:
                x = self.first(self.constant.expand(len(latents), -1, -1, -1), latents[:, 0])
            features.append(x if hook is None else hook(level, x))
        return features

    def features(self, latents: Tensor, last: int) -> tuple[Tensor, ...]:
        return tuple(self._walk(latents, None, last))

    def synthesize(
        self, latents: Tensor, hook: LevelHook | None = None, start: Sequence[Tensor] = ()
    ) -> GeneratorOutput:
        features = self._walk(latents, hook, len(self.levels), start)
        return GeneratorOutput(self.head(features[-1], latents[:, -1]), tuple(features))

    def forward(self, latents: Tensor) -> Tensor:
        return self.synthesize(latents).image

    def preview(self, latents: Tensor, hook: LevelHook | None = None, start: Sequence[Tensor] = ()) -> Tensor:
        """``(B, 3, 256, 256)``: the levels above 128x128 are run at 128x128."""
        last = self.preview_level
        x = self._walk(latents, hook, last, start)[last]
        return self.preview_head(x, latents[:, 2 * last + 1 :], self.levels[last:], self.head)


class PreviewHead(nn.Module):
    """Early exit: the remaining levels, run at the resolution of the exit.

    In place of the inverse Haar transform each level takes the low-pass band alone, which is the
    picture it would have made, reduced. The convolutions start as copies of the levels' own and are
    fitted by ``faceedit.train preview``; the styles' affine maps are shared with the levels, so
    that colour and contrast follow the code as they do in the full pass.
    """

    def __init__(self, channels: Sequence[int], size: int) -> None:
        super().__init__()
        pairs = list(zip(channels[:-1], channels[1:], strict=True))
        self.convs = nn.ModuleList(
            nn.ModuleList([ModulatedConv(n_in // 4, n_out, size), ModulatedConv(n_out, n_out, size)])
            for n_in, n_out in pairs
        )
        self.weight = nn.Parameter(torch.zeros(12, channels[-1], 1, 1))
        self.detail = nn.Parameter(torch.zeros(12, channels[0], 1, 1))
        self.bias = nn.Parameter(torch.zeros(12))

    def forward(self, x: Tensor, latents: Tensor, levels: Sequence[Level], head: ImageHead) -> Tensor:
        """``(B, C, S, S)`` and the remaining rows of W+ to ``(B, 3, 2S, 2S)``."""
        detail: Tensor | None = None
        for i, (level, (conv1, conv2)) in enumerate(zip(levels, self.convs, strict=True)):
            w1, w2 = latents[:, 2 * i], latents[:, 2 * i + 1]
            up = level.up(w1)
            if detail is None:
                detail = self._detail(x, up)
            # The mean of each 2x2 block of the inverse transform is half its low-pass band. Sliced
            # with channels last, so that the gradient comes back in that order as well.
            bands = x.shape[1] // 4
            low = x.permute(0, 2, 3, 1)[..., :bands].permute(0, 3, 1, 2)
            low = low * (0.5 * up[:, :bands, None, None])
            x = conv2(conv1(low, level.conv1.style(w1)), level.conv2.style(w2))
        x = x * head.style(latents[:, -1])[:, :, None, None]
        return inverse_haar(F.conv2d(x, self.weight) + detail)

    def _detail(self, x: Tensor, up: Tensor) -> Tensor:
        """``conv(x * up)``; the scales go into the few weights where they can, not over the map."""
        if len(x) == 1:
            return F.conv2d(x, self.detail * up[0, None, :, None, None], self.bias)
        return F.conv2d(x * up[:, :, None, None], self.detail, self.bias)

    @torch.no_grad()
    def start_from(self, levels: Sequence[Level], head: ImageHead) -> None:
        """Copy the convolutions of the levels that are left out, their noise reduced in size."""
        for level, pair in zip(levels, self.convs, strict=True):
            for ours, theirs in zip(pair, (level.conv1, level.conv2), strict=True):
                for name in ("depthwise", "weight", "bias"):
                    getattr(ours, name).copy_(getattr(theirs, name))
                ours.noise.copy_(F.adaptive_avg_pool2d(theirs.noise[None], ours.noise.shape)[0])
        # Of the picture's bands only the low-pass one means the same at a lower resolution.
        self.weight.zero_()
        self.weight[:3] = head.weight[:3]
        self.bias.zero_()
        self.bias[:3] = head.bias[:3]
