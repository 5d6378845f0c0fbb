"""PartsNet: where a face is bare, and where hair is, from the encoder's 2-D features.

No published network: a small head on what the encoder sees anyway. Its teacher is a network that parses faces;
`faceedit.train.parts` trains it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_COARSEST = 16  # maps below this side know no borders
_DILATIONS = (1, 2, 4)  # of the blocks: what a place is depends on what is around


class _Block(nn.Module):
    """What is added to a map: two convolutions of what is around each place."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.first = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.leaky_relu(self.first(F.leaky_relu(self.norm(x), 0.2)), 0.2))


class PartsNet(nn.Module):
    """The encoder's features to maps of the bare face, with eyes, brows, mouth and glasses, and of hair.

    Args:
        channels: Of the encoder's 2-D features, finest first.
        sizes: Sides of their maps.
        width: Channels within.
    """

    parts = ("face", "hair")
    size = 256  # of the maps that `find` gives

    def __init__(self, channels: Sequence[int], sizes: Sequence[int], width: int = 64) -> None:
        super().__init__()
        self.used = [i for i, side in enumerate(sizes) if side >= _COARSEST] or [0]
        self.side = sizes[min(1, len(sizes) - 1)]  # the finest map is of edges alone, and large
        n = sum(channels[i] for i in self.used)
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("std", torch.ones(n))
        self.enter = nn.Conv2d(n, width, 1)
        self.blocks = nn.ModuleList(_Block(width, dilation) for dilation in _DILATIONS)
        self.leave = nn.Conv2d(width, len(self.parts), 1)

    @property
    def options(self) -> dict[str, Any]:
        """The arguments that make one of this shape for the same encoder, as JSON values."""
        return {"width": self.enter.out_channels}

    def gathered(self, features: Sequence[Tensor]) -> Tensor:
        """The encoder's maps at one size, together: ``(B, sum of their channels, S, S)``, S the side of its second."""
        maps = []
        for i in self.used:
            x = features[i].float()
            if x.shape[-1] > self.side:
                x = F.interpolate(x, (self.side,) * 2, mode="area")
            elif x.shape[-1] < self.side:
                x = F.interpolate(x, (self.side,) * 2, mode="bilinear", align_corners=False)
            maps.append(x)
        return torch.cat(maps, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits ``(B, 2, S, S)``, positive where a face is bare and where hair is.

        Args:
            features: The encoder's 2-D features of aligned faces, finest first: ``(B, C_i, S_i, S_i)``.
        """
        x = (self.gathered(features) - self.mean[:, None, None]) / self.std[:, None, None]
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x)
        return self.leave(F.leaky_relu(x, 0.2))

    @torch.no_grad()
    def find(self, features: Sequence[Tensor]) -> Tensor:
        """Where the faces are bare and where hair is: ``(B, 2, 256, 256)`` in [0, 1], on the CPU."""
        features = [f.cpu() for f in features]
        found = self(features).sigmoid()
        return F.interpolate(found, (self.size,) * 2, mode="bilinear", align_corners=False)
