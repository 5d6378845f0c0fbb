"""pSp's encoder: an IR-SE50 body, a feature pyramid, and one small network for each row of W+.

Source: Richardson et al., "Encoding in Style: a StyleGAN Encoder for Image-to-Image Translation",
arXiv 2008.00951, section 3.1. Module names are the published ones, so its checkpoints load as they
are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceedit.errors import ConfigError
from faceedit.models.encoder import Encoder, Encoding
from faceedit.models.ir_se50 import UNITS, WIDTHS, Body, input_layer

# The first row that reads the middle map of the pyramid, and the first that reads the finest.
_MIDDLE, _FINE = 3, 7


class EqualLinear(nn.Module):
    """Linear layer with an equalised learning rate: the weight is divided by sqrt(n_in) when used."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.weight.shape[1] ** -0.5, self.bias)


class Map2Style(nn.Module):
    """A map ``(B, n_in, size, size)`` to one row ``(B, n_out)``, halving it down to a single pixel."""

    def __init__(self, n_in: int, n_out: int, size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        while size > 1:
            layers += [nn.Conv2d(n_in, n_out, 3, 2, 1), nn.LeakyReLU(0.01)]
            n_in, size = n_out, size // 2
        self.convs = nn.Sequential(*layers)
        self.linear = EqualLinear(n_out, n_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.convs(x).flatten(1))


class GradualStyleEncoder(Encoder):
    """pSp: coarse rows from the coarsest map of the pyramid, fine rows from the finest.

    Codes are ``latent_mean`` plus what the network says. ``latent_mean`` is ``(n_styles, style_dim)``
    here, because published checkpoints may have another mean in each row.

    Args:
        n_styles: Rows of the generator's W+.
        style_dim: Width of W+.
        input_size: Side of the picture the network sees, a power of two; others are resampled.
        widths, units: Of the body; the defaults are IR-SE50.
    """

    def __init__(
        self,
        n_styles: int = 18,
        style_dim: int = 512,
        input_size: int = 256,
        widths: Sequence[int] = WIDTHS,
        units: Sequence[int] = UNITS,
    ) -> None:
        super().__init__()
        if input_size < 32 or input_size & (input_size - 1):
            raise ConfigError(f"input_size of a pSp or e4e encoder must be a power of two from 32, not {input_size}.")
        self.n_styles, self.style_dim, self.input_size = n_styles, style_dim, input_size
        self._widths = tuple(widths)
        self.input_layer = input_layer(widths[0])
        self.body = Body(widths, units)
        _, fine, middle, coarse = widths
        self.latlayer1 = nn.Conv2d(middle, coarse, 1)
        self.latlayer2 = nn.Conv2d(fine, coarse, 1)
        self.styles = nn.ModuleList(
            Map2Style(coarse, style_dim, input_size // (16 >> _level(i))) for i in range(n_styles)
        )
        self.register_buffer("latent_mean", torch.zeros(n_styles, style_dim))
        self.register_buffer("latent_std", torch.ones(style_dim))

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of :attr:`Encoding.features`, finest first: strides 2, 4, 8, 16."""
        return self._widths

    def forward(self, image: Tensor) -> Encoding:
        """See :meth:`Encoder.forward`; of a 256 px input the body's maps of 128, 64, 32 and 16 px."""
        maps = self.body.stages(self.input_layer(self.resized(image)))
        coarse = maps[3]
        middle = _upsample(coarse, self.latlayer1(maps[2]))
        fine = _upsample(middle, self.latlayer2(maps[1]))
        return Encoding(self.latent_mean + self._codes((coarse, middle, fine)).float(), maps)

    def _codes(self, pyramid: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """``(B, n_styles, style_dim)`` from the pyramid, coarsest map first."""
        return torch.stack([self._row(i, pyramid) for i in range(self.n_styles)], 1)

    def _row(self, i: int, pyramid: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return self.styles[i](pyramid[_level(i)])


def _level(row: int) -> int:
    """Which map of the pyramid a row reads: 0 is the coarsest."""
    return (row >= _MIDDLE) + (row >= _FINE)


def _upsample(coarse: Tensor, lateral: Tensor) -> Tensor:
    """A coarse map at the size of a lateral one, plus that one."""
    size = lateral.shape[-2:]
    return F.interpolate(coarse, size, mode="bilinear", align_corners=True) + lateral
