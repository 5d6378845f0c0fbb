"""ResNet-18 body of the paper's attribute classifier, for small views.

Source: He et al., "Deep Residual Learning for Image Recognition" (arXiv 1512.03385). The stem's
convolution is 3x3 rather than 7x7: at 80 pixels an eye is a dozen pixels wide.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_STAGES = ((64, 4), (128, 8), (256, 16), (512, 32))  # channels and stride of each pair of blocks


class _Block(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        nn.init.zeros_(self.norm2.weight)  # every block starts as its shortcut, which trains more steadily
        self.shortcut = nn.Identity()
        if stride > 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 trunk that returns one feature map per stride.

    The forward pass takes ``(B, 3, H, W)`` in [-1, 1] and returns ``{stride: map}`` for strides 4, 8,
    16 and 32 with :attr:`channels` channels each.
    """

    channels = {stride: channels for channels, stride in _STAGES}

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        stages, n_in, last = [], 64, 4
        for channels, stride in _STAGES:
            stages.append(nn.Sequential(_Block(n_in, channels, stride // last), _Block(channels, channels, 1)))
            n_in, last = channels, stride
        self.stages = nn.ModuleList(stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        x = self.stem(x)
        maps = {}
        for stage, stride in zip(self.stages, self.channels, strict=True):
            maps[stride] = x = stage(x)
        return maps
