"""IR-SE50, the face recognition network: the body of pSp and e4e, and ArcFace's descriptor.

Module names are those of InsightFace_Pytorch, pSp and e4e, so their state dicts load as they are.

Source: Deng et al., "ArcFace", arXiv 1801.07698, section 3.1 (improved residual unit); Hu et al.,
"Squeeze-and-Excitation Networks", arXiv 1709.01507.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)
UNITS = (3, 4, 14, 3)
_REDUCTION = 16


class SqueezeExcite(nn.Module):
    """Each channel times a gate in (0, 1), computed from the means of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // _REDUCTION, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // _REDUCTION, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class IRSEBlock(nn.Module):
    """Norm, convolution, PReLU, strided convolution, norm, squeeze-and-excite, around a skip.

    Where the number of channels stays, the skip takes every ``stride``-th pixel; else it is a 1x1
    convolution with a norm.
    """

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        if n_in == n_out:
            self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        else:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(n_in),
            nn.Conv2d(n_in, n_out, 3, 1, 1, bias=False),
            nn.PReLU(n_out),
            nn.Conv2d(n_out, n_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(n_out),
            SqueezeExcite(n_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class Body(nn.Sequential):
    """The residual blocks, in stages that each halve the map's size.

    Args:
        widths: Channels of each stage; the map that comes in has ``widths[0]``.
        units: Blocks of each stage, of which the first has stride 2.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS, units: Sequence[int] = UNITS) -> None:
        blocks: list[IRSEBlock] = []
        ends: list[int] = []
        n_in = widths[0]
        for width, count in zip(widths, units, strict=True):
            blocks += [IRSEBlock(n_in, width, 2), *(IRSEBlock(width, width, 1) for _ in range(count - 1))]
            ends.append(len(blocks) - 1)
            n_in = width
        super().__init__(*blocks)
        self._ends = ends

    def stages(self, x: Tensor) -> tuple[Tensor, ...]:
        """The map after each stage, finest first; of IR-SE50 after blocks 2, 6, 20 and 23."""
        maps = []
        for i, block in enumerate(self):
            x = block(x)
            if i in self._ends:
                maps.append(x)
        return tuple(maps)


def input_layer(width: int = WIDTHS[0]) -> nn.Sequential:
    """The convolution, norm and PReLU between a picture ``(B, 3, S, S)`` and the body."""
    return nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.PReLU(width))


class ArcFaceNet(nn.Module):
    """Face chip to a descriptor of unit length; the dot product of two is their similarity.

    Args:
        widths, units: Of the body; the defaults are IR-SE50.
        size: Side of the chips in pixels.
        dim: Length of the descriptor.
    """

    def __init__(
        self, widths: Sequence[int] = WIDTHS, units: Sequence[int] = UNITS, size: int = 112, dim: int = 512
    ) -> None:
        super().__init__()
        self.size = size
        self.input_layer = input_layer(widths[0])
        self.body = Body(widths, units)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(widths[-1]),
            nn.Dropout(0.4),
            nn.Flatten(),
            nn.Linear(widths[-1] * (size // 2 ** len(widths)) ** 2, dim),
            nn.BatchNorm1d(dim),
        )

    def forward(self, chips: Tensor) -> Tensor:
        """Unit vectors ``(B, dim)``, float32, of chips ``(B, 3, size, size)``, RGB in [-1, 1]."""
        return F.normalize(self.output_layer(self.body(self.input_layer(chips))).float(), dim=1)
