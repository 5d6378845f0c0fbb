"""Pure tensor functions shared by the networks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_BINOMIAL = (1.0, 3.0, 3.0, 1.0)  # StyleGAN2's resampling filter, before it is normalised


def pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around maps ``(B, C, H, W)`` as TensorFlow's SAME padding has them, the odd pixel at the end.

    Args:
        x: What a convolution without padding is to see.
        kernel: Side of its kernels.
        stride: Its stride.
    """
    pads = []
    for size in (x.shape[-1], x.shape[-2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


def smoothstep(x: Tensor, low: float, high: float) -> Tensor:
    """0 up to ``low``, 1 from ``high`` on, and a smooth cubic between."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def upsample(x: Tensor) -> Tensor:
    """Double the size of a picture with StyleGAN2's filter [1, 3, 3, 1].

    Zeros go between the pixels and around the picture, and the filter has a gain of 4, so that a
    flat picture keeps its value away from the border.

    Args:
        x: ``(B, C, H, W)``.

    Returns:
        ``(B, C, 2H, 2W)``.

    Source: Karras et al. (arXiv 1912.04958), appendix B; Zhang (arXiv 1904.11486).
    """
    # Inserting zeros and filtering is a transposed convolution. Its taps add up to 4.
    return F.conv_transpose2d(x, _filter(x, 4.0), stride=2, padding=1, groups=x.shape[1])


def modulated_conv(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    bias: Tensor,
    *,
    demodulate: bool = True,
    up: bool = False,
    gain: float = 1.0,
) -> Tensor:
    """Convolution whose weights are scaled by a style, per input channel.

    Scaling the input by the style and the output by the demodulation gives what per-sample weights
    would give, with one set of weights for the whole batch.

    Args:
        x: ``(B, n_in, H, W)``.
        weight: ``(n_out, n_in, k, k)``, k odd; k = 3 with ``up``.
        style: ``(B, n_in)``.
        bias: ``(n_out,)``, added last; ``gain`` does not touch it.
        demodulate: Divide each output channel by the norm of its scaled weights.
        up: Double the size: transposed convolution of stride 2, then the filter [1, 3, 3, 1].
        gain: Constant factor of the output.

    Returns:
        ``(B, n_out, H, W)``, or ``(B, n_out, 2H, 2W)`` with ``up``.

    Source: Karras et al., StyleGAN2 (arXiv 1912.04958), equations 1 and 3, with epsilon 1e-8.
    """
    if demodulate:
        # In float32 whatever the network's type: a sum over thousands of squares.
        wide = torch.promote_types(weight.dtype, torch.float32)
        power = weight.to(wide).square().sum((2, 3))
        scale = ((style.to(wide).square() @ power.T + 1e-8).rsqrt() * gain).to(x.dtype)
    else:
        scale = x.new_full((1, len(weight)), gain)
    # Where the maps are larger than the weights, scaling the weights is the smaller product. It
    # takes one sample at a time, and in training the weights would then need a gradient.
    fold = len(x) == 1 and not style.requires_grad and weight.numel() < x.numel()
    if fold:
        weight = weight * style[0, :, None, None] * scale[0, :, None, None, None]
    else:
        x = x * style[:, :, None, None]
    if up:
        # In this order, and with the picture grown by one pixel before the filter, as the networks
        # were trained: at the border it matters.
        x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
        kernel = _filter(x, 4.0)
        if fold:
            return F.conv2d(x, kernel, bias, padding=1, groups=x.shape[1])
        x = F.conv2d(x, kernel, padding=1, groups=x.shape[1])
    else:
        padding = weight.shape[-1] // 2
        if fold:
            return F.conv2d(x, weight, bias, padding=padding)
        x = F.conv2d(x, weight, padding=padding)
    return x * scale[:, :, None, None] + bias[:, None, None]


def _filter(x: Tensor, gain: float) -> Tensor:
    """The resampling filter, once for each channel of ``x``: ``(C, 1, 4, 4)``, its sum ``gain``."""
    taps = torch.tensor(_BINOMIAL, dtype=x.dtype, device=x.device)
    return (torch.outer(taps, taps) * (gain / 64)).expand(x.shape[1], 1, 4, 4)


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
    if torch.compiler.is_compiling():
        return _inverse_haar(x)
    return _InverseHaar.apply(x)


def _inverse_haar(x: Tensor) -> Tensor:
    """:func:`inverse_haar` as one expression, which a compiler fuses with what is around it."""
    low, vertical, horizontal, diagonal = x.permute(0, 2, 3, 1).chunk(4, -1)
    batch, height, width, n = low.shape
    top, bottom = (low + vertical) * 0.5, (low - vertical) * 0.5
    left, right = (horizontal + diagonal) * 0.5, (horizontal - diagonal) * 0.5
    upper = torch.stack((top + left, top - left), 3)
    lower = torch.stack((bottom + right, bottom - right), 3)
    out = torch.stack((upper, lower), 2).reshape(batch, 2 * height, 2 * width, n).permute(0, 3, 1, 2)
    # Says so where the batch is one, whose stride a compiler may take for anything.
    return out.contiguous(memory_format=torch.channels_last)


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
