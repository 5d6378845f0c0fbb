"""FrameNet: finds the FFHQ crop frame of a face, given roughly where the face is.

A frame is a middle c and a half side x, both complex numbers (x right, y down), so that every
similarity is a product: ``c' = c + x d`` and ``x' = x m``. The network looks at a window around a
guessed frame and answers d and m; looking again from the answer refines it.

Source: our own; the frame is that of Karras et al. (arXiv 1812.04948), see `faceedit.crop`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from faceedit.models.efficientnet_lite import EfficientNetLite

# Where the window lies in the guessed frame, in half sides: 0.12 below its middle and 0.8 of its
# size. That holds the face from hairline to chin, and stays inside the frame when it is upright.
WINDOW_SHIFT = 0.12j
WINDOW_SCALE = 0.8
# The first guess from a detector's box: frame side per box side, and how far the frame's middle
# lies above the box's, in box sides: what dlib's frontal detector gives on generated faces.
FRAME_PER_BOX = 1.75
FRAME_ABOVE_BOX = 0.19


class FrameNet(nn.Module):
    """EfficientNet-Lite0 down to stride 16, then a head that keeps positions apart.

    Args:
        size: Side of the window in pixels; a multiple of 16.
        channels: Channels of the head per position.
        hidden: Width of the head's hidden layer.
    """

    def __init__(self, size: int = 96, channels: int = 64, hidden: int = 128) -> None:
        super().__init__()
        self.size = size
        self.trunk = EfficientNetLite(max_stride=16)
        self.reduce = nn.Conv2d(EfficientNetLite.channels[16], channels, 1)
        self.hidden = nn.Linear(channels * (size // 16) ** 2, hidden)
        self.answer = nn.Linear(hidden, 4)
        nn.init.zeros_(self.answer.weight)
        nn.init.zeros_(self.answer.bias)

    def forward(self, windows: Tensor) -> Tensor:
        """Where the true frame lies, seen from the guessed one.

        Args:
            windows: ``(B, 3, size, size)`` in [-1, 1].

        Returns:
            ``(B, 4)``: real and imaginary part of d, then of m. A right guess gives (0, 0, 1, 0).
        """
        x = F.relu(self.reduce(self.trunk(windows)[16]))
        x = self.answer(F.relu(self.hidden(x.flatten(1))))
        return x + x.new_tensor((0.0, 0.0, 1.0, 0.0))

    @torch.no_grad()
    def predict(
        self, pixels: NDArray[np.uint8], box: Sequence[float], looks: int = 3
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """The crop frame of the face in a box. The network must be in evaluation mode.

        Args:
            pixels: ``(H, W, 3)`` uint8, the photo.
            box: x0, y0, x1, y1 around brows and chin, in photo pixels; the origin is the top left
                corner of the photo. It may reach beyond the photo, which is then mirrored.
            looks: How many times to look; each starts from the answer before.

        Returns:
            ``center`` and ``x_axis`` as `faceedit.crop.CropFrame` takes them.
        """
        x0, y0, x1, y1 = (float(v) for v in box)
        side = math.sqrt((x1 - x0) * (y1 - y0))
        center = complex((x0 + x1) / 2, (y0 + y1) / 2 - FRAME_ABOVE_BOX * side)
        axis = complex(FRAME_PER_BOX * side / 2, 0)
        weight = self.answer.weight
        for _ in range(looks):
            window = cut_window(pixels, center, axis, self.size).to(weight)
            seen, mirrored = self(torch.stack([window, window.flip(-1)])).double().cpu()
            mirror = mirrored.new_tensor((-1.0, 1.0, 1.0, -1.0))
            dx, dy, mx, my = ((seen + mirrored * mirror) / 2).tolist()
            center, axis = center + axis * complex(dx, dy), axis * complex(mx, my)
        return (center.real, center.imag), (axis.real, axis.imag)


def cut_window(pixels: NDArray[np.uint8], center: complex, axis: complex, size: int) -> Tensor:
    """The window that the network looks at for a guessed frame.

    Args:
        pixels: ``(H, W, 3)`` uint8; mirrored beyond its borders.
        center: Middle of the guessed frame, in photo pixels.
        axis: Its half side, along the crop's "right".
        size: Side of the window in pixels.

    Returns:
        ``(3, size, size)`` float32 in [-1, 1]; each pixel the mean of 16 to 64 photo pixels.
    """
    center, axis = center + axis * WINDOW_SHIFT, axis * WINDOW_SCALE
    per_pixel = min(max(math.ceil(2 * abs(axis) / size), 4), 8)
    steps = (np.arange(size * per_pixel) + 0.5) * (2 / (size * per_pixel)) - 1
    points = center + axis * (steps[None, :] + 1j * steps[:, None])
    rows = _mirror(points.imag, pixels.shape[0])
    columns = _mirror(points.real, pixels.shape[1])
    samples = torch.from_numpy(pixels[rows, columns]).permute(2, 0, 1).float()
    return F.avg_pool2d(samples, per_pixel) / 127.5 - 1


def _mirror(position: NDArray[np.float64], length: int) -> NDArray[np.intp]:
    """Index of the pixel at a position, for a line of pixels mirrored at both of its ends."""
    index = np.floor(position).astype(np.intp) % (2 * length)
    return np.minimum(index, 2 * length - 1 - index)
