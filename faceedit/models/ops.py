"""Pure tensor functions shared by the networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def inverse_haar(x: Tensor) -> Tensor:
    """Inverse 2-D Haar transform: four sub-bands to one picture of twice the size.

    Args:
        x: ``(B, 4C, H, W)``: C low-pass channels, then C each of vertical, horizontal and diagonal
            detail.

    Returns:
        ``(B, C, 2H, 2W)``, in channels-last memory order. The filters are orthonormal: each output
        is half the signed sum of the four bands (Mallat 1989; MobileStyleGAN, arXiv 2104.04767,
        section 3.2).
    """
    return _InverseHaar.apply(x)


def haar(x: Tensor) -> Tensor:
    """Forward 2-D Haar transform, the inverse and the transpose of :func:`inverse_haar`.

    Args:
        x: ``(B, C, 2H, 2W)``.

    Returns:
        ``(B, 4C, H, W)`` in the channel order of :func:`inverse_haar`.
    """
    x = x.permute(0, 2, 3, 1)
    a, b = x[:, ::2, ::2], x[:, ::2, 1::2]
    c, d = x[:, 1::2, ::2], x[:, 1::2, 1::2]
    top, bottom, left, right = a + b, c + d, a - b, c - d
    bands = (top + bottom, top - bottom, left + right, left - right)
    return torch.cat(bands, -1).mul_(0.5).permute(0, 3, 1, 2)


class _InverseHaar(torch.autograd.Function):
    """Writes each quarter of the output in place: the maps are large, and memory is the cost."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        low, vertical, horizontal, diagonal = x.permute(0, 2, 3, 1).chunk(4, -1)
        batch, height, width, n = low.shape
        top, bottom = (low + vertical).mul_(0.5), (low - vertical).mul_(0.5)
        left, right = (horizontal + diagonal).mul_(0.5), (horizontal - diagonal).mul_(0.5)
        out = x.new_empty(batch, height, 2, width, 2, n)
        out[:, :, 0, :, 0] = top + left
        out[:, :, 0, :, 1] = top - left
        out[:, :, 1, :, 0] = bottom + right
        out[:, :, 1, :, 1] = bottom - right
        return out.view(batch, 2 * height, 2 * width, n).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return haar(gradient)
