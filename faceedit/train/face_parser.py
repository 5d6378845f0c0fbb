"""BiSeNet (Yu et al., arXiv 1808.00897) as published for faces: the teacher of :mod:`faceedit.train.hair`.

Its 19 classes are those of CelebAMask-HQ (Lee et al., arXiv 1907.11922). Only the layout, that is the names and shapes of
the weights, comes from zllrunning/face-parsing.PyTorch (MIT). Nothing of it is in the package.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceedit.convert.unpickle import read
from faceedit.hub import load_module

CLASSES = (
    "background", "skin", "l_brow", "r_brow", "l_eye", "r_eye", "eye_g", "l_ear", "r_ear", "ear_r", "nose", "mouth", "u_lip",
    "l_lip", "neck", "neck_l", "cloth", "hair", "hat",
)  # fmt: skip
SIDE = 512  # of the pictures it knows
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _ConvBNReLU(nn.Module):
    def __init__(self, inputs: int, outputs: int, size: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Block(nn.Module):
    """ResNet's basic block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if inputs != outputs or stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class _ResNet18(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for number, outputs in enumerate((64, 128, 256, 512), 1):
            blocks = nn.Sequential(_Block(inputs, outputs, 1 if number == 1 else 2), _Block(outputs, outputs, 1))
            setattr(self, f"layer{number}", blocks)
            inputs = outputs

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps of an eighth, a sixteenth and a 32nd of the side."""
        x = self.layer1(F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1))
        eighth = self.layer2(x)
        sixteenth = self.layer3(eighth)
        return eighth, sixteenth, self.layer4(sixteenth)


class _Attention(nn.Module):
    """A map weighted by its means."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = _ConvBNReLU(inputs, outputs)
        self.conv_atten = nn.Conv2d(outputs, outputs, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * self.bn_atten(self.conv_atten(x.mean((2, 3), keepdim=True))).sigmoid()


class _ContextPath(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.resnet = _ResNet18()
        self.arm16, self.arm32 = _Attention(256, 128), _Attention(512, 128)
        self.conv_head32, self.conv_head16 = _ConvBNReLU(128, 128), _ConvBNReLU(128, 128)
        self.conv_avg = _ConvBNReLU(512, 128, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        eighth, sixteenth, coarse = self.resnet(x)
        y = self.arm32(coarse) + self.conv_avg(coarse.mean((2, 3), keepdim=True))
        y = self.conv_head32(F.interpolate(y, sixteenth.shape[-2:]))
        y = self.arm16(sixteenth) + y
        return eighth, self.conv_head16(F.interpolate(y, eighth.shape[-2:]))


class _Fusion(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convblk = _ConvBNReLU(channels, channels, 1)
        self.conv1 = nn.Conv2d(channels, channels // 4, 1, bias=False)
        self.conv2 = nn.Conv2d(channels // 4, channels, 1, bias=False)

    def forward(self, fine: Tensor, context: Tensor) -> Tensor:
        x = self.convblk(torch.cat((fine, context), 1))
        return x * (1 + self.conv2(F.relu(self.conv1(x.mean((2, 3), keepdim=True)))).sigmoid())


class _Head(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _ConvBNReLU(channels, channels)
        self.conv_out = nn.Conv2d(channels, len(CLASSES), 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.conv(x))


class FaceParser(nn.Module):
    """Photographs of aligned faces to the classes of their places."""

    def __init__(self) -> None:
        super().__init__()
        self.cp, self.ffm, self.conv_out = _ContextPath(), _Fusion(256), _Head(256)

    @classmethod
    def from_file(cls, path: Path) -> FaceParser:
        """Read the published ``79999_iter.pth``, without running anything in it.

        Raises:
            CheckpointError: The file holds something else.
        """
        tensors = {k: v for k, v in read(path).items() if not k.startswith(("conv_out16", "conv_out32"))}
        net = cls()
        load_module(net, tensors, advice=f"{str(path)!r} is no BiSeNet of 19 classes: give the published 79999_iter.pth.")
        return net.eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits ``(B, 19, S / 8, S / 8)`` of pictures ``(B, 3, S, S)`` in [0, 1]; it was trained at S = 512."""
        mean, std = (torch.tensor(x, device=pictures.device)[:, None, None] for x in (_MEAN, _STD))
        return self.conv_out(self.ffm(*self.cp((pictures - mean) / std)))
