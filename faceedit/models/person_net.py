"""PersonNet: which pixels of a portrait are the person's, by MediaPipe's selfie segmentation network.

Source: MediaPipe Selfie Segmentation, the general model of 256 x 256 pixels: blocks of MobileNetV3 (Howard et al.,
arXiv 1905.02244) and a decoder. The weights are those of PyPI ``mediapipe`` 0.10.21 (Apache-2.0), which
`faceedit.convert.person_net` reads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceedit.models.encoder import resized
from faceedit.models.ops import pad_same


class _Attention(nn.Module):
    """A factor in [0, 1] for each channel, from the means of all."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.excite = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class _Block(nn.Module):
    """Inverted residual: to more channels, each filtered alone, weighed, and back to fewer."""

    def __init__(
        self, n_in: int, wide: int, n_out: int, size: int, stride: int, hidden: int, activation: type[nn.Module]
    ) -> None:
        super().__init__()
        self.size, self.stride, self.residual = size, stride, stride == 1 and n_in == n_out
        self.activation = activation()
        self.expand = nn.Conv2d(n_in, wide, 1)
        self.depthwise = nn.Conv2d(wide, wide, size, stride, groups=wide)
        self.attention = _Attention(wide, hidden) if hidden else None
        self.project = nn.Conv2d(wide, n_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.depthwise(pad_same(self.activation(self.expand(x)), self.size, self.stride)))
        if self.attention is not None:
            y = y * self.attention(y)
        y = self.project(y)
        return x + y if self.residual else y


class _Merge(nn.Module):
    """A step of the decoder: coarse maps enlarged, the encoder's finer ones weighed and added, both filtered."""

    def __init__(self, n_in: int, channels: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(n_in, channels, 1)
        self.attention = _Attention(channels, channels)
        self.mix = nn.Conv2d(channels, channels, 1)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        x = self.enter(F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False))
        x = self.mix(fine * self.attention(fine + x) + x).relu()
        return x + self.depthwise(x).relu()


class PersonNet(nn.Module):
    """A portrait to the mask of its person. 0.11 million weights."""

    size = 256

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2)
        # channels in, within and out, kernel, stride, hidden units of the attention
        half = _Block(16, 16, 16, 3, 2, 8, nn.ReLU)
        quarter = [_Block(16, 72, 24, 3, 2, 0, nn.ReLU), _Block(24, 88, 24, 3, 1, 0, nn.ReLU)]
        eighth = [
            _Block(24, 96, 32, 5, 2, 24, nn.Hardswish),
            *(_Block(32, 128, 32, 5, 1, 32, nn.Hardswish) for _ in range(2)),
            *(_Block(32, 96, 32, 5, 1, 24, nn.Hardswish) for _ in range(2)),
        ]
        self.encoder = nn.ModuleList((half, nn.Sequential(*quarter), nn.Sequential(*eighth)))
        self.context = nn.Conv2d(32, 128, 1)
        self.gate = nn.Conv2d(32, 128, 1)
        self.decoder = nn.ModuleList((_Merge(128, 24), _Merge(24, 16), _Merge(16, 16)))
        self.segment = nn.ConvTranspose2d(16, 1, 2, 2)

    def forward(self, pictures: Tensor) -> Tensor:
        """Find the person.

        Args:
            pictures: ``(B, 3, 256, 256)`` in [0, 1].

        Returns:
            ``(B, 1, 256, 256)`` in [0, 1]: near 1 where the person is, with hair and what is worn.
        """
        x = F.hardswish(self.stem(pad_same(pictures, 3, 2)))
        maps = [x]
        for part in self.encoder:
            maps.append(part(maps[-1]))
        x = maps.pop()
        x = self.context(x).relu() * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        for merge in self.decoder:
            x = merge(x, maps.pop())
        return self.segment(x).sigmoid()

    @torch.no_grad()
    def find(self, crop: Tensor) -> Tensor:
        """The mask ``(256, 256)`` in [0, 1] of the person in a crop ``(3, S, S)`` in [0, 1]."""
        return self(resized(crop[None], self.size).contiguous(memory_format=torch.channels_last))[0, 0]
