"""SkinNet: where a face is bare, and not under hair, a hat, a hand or glasses' frames, from the encoder's 2-D features.

No published network: a small head on what the encoder sees anyway. Its teacher is the generator, whose own features
know the parts of a face (Collins et al., "Editing in Style", arXiv 2004.14367); `faceedit.train.skin` trains it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_COARSEST = 16  # maps below this side know no borders


class SkinNet(nn.Module):
    """The encoder's features to a map of bare skin, with eyes, brows and mouth.

    Args:
        channels: Of the encoder's 2-D features, finest first.
        sizes: Sides of their maps.
        width: Channels within.
    """

    size = 256  # of the map that `find` gives

    def __init__(self, channels: Sequence[int], sizes: Sequence[int], width: int = 48) -> None:
        super().__init__()
        self.used = [i for i, side in enumerate(sizes) if side >= _COARSEST] or [0]
        self.side = sizes[min(1, len(sizes) - 1)]  # the finest map is of edges alone, and large
        n = sum(channels[i] for i in self.used)
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("std", torch.ones(n))
        self.enter = nn.Conv2d(n, width, 1)
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.leave = nn.Conv2d(width, 1, 1)

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
        """Logits ``(B, 1, S, S)``, positive where a face is bare.

        Args:
            features: The encoder's 2-D features of aligned faces, finest first: ``(B, C_i, S_i, S_i)``.
        """
        x = (self.gathered(features) - self.mean[:, None, None]) / self.std[:, None, None]
        x = F.leaky_relu(self.enter(x), 0.2)
        return self.leave(F.leaky_relu(self.mix(x), 0.2))

    @torch.no_grad()
    def find(self, features: Sequence[Tensor]) -> Tensor:
        """Where the faces are bare: ``(B, 256, 256)`` in [0, 1], on the CPU."""
        features = [f.cpu() for f in features]
        bare = self(features).sigmoid()
        return F.interpolate(bare, (self.size,) * 2, mode="bilinear", align_corners=False)[:, 0]
