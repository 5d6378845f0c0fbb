"""The face as a classifier sees it: one canonical view of every source, and disturbed ones.

CelebA pictures are small, generated ones large: both are brought to the whole FFHQ crop, shrunk. An
aligned CelebA picture contains that window.
"""

from __future__ import annotations

import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from faceedit.train.task import Share

VIEW_SIZE = 80
# The FFHQ crop inside a CelebA picture of 89x109: left, top, side, in its pixels. It follows from
# where eyes and mouth corners lie on average: (34.3, 55.6), (54.4, 55.6) and y = 76.1 there; (386, 480),
# (638, 480) and y = 743 of 1024 in an FFHQ crop. The proportions agree, so one scale serves.
CELEBA_SIZE = (89, 109)
CELEBA_WINDOW = (4.3, 18.1, 80.0)

_JPEG_QUANTUM = torch.tensor(
    [[16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55],
     [14, 13, 16, 24, 40, 57, 69, 56], [14, 17, 22, 29, 51, 87, 80, 62],
     [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
     [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99]]
) / 255.0  # fmt: skip


def canonical_view(pictures: Tensor, size: int = VIEW_SIZE) -> Tensor:
    """Shrink FFHQ crops to the view the classifier reads.

    Args:
        pictures: FFHQ crops, real or generated, ``(B, 3, R, R)`` in [-1, 1].
        size: Side of the view in pixels.

    Returns:
        ``(B, 3, size, size)`` in [-1, 1], antialiased, differentiable.
    """
    return F.interpolate(pictures, (size, size), mode="bilinear", antialias=True, align_corners=False)


def celeba_grid(
    rows: int, size: int = VIEW_SIZE, device: torch.device | str = "cpu", **jitter: Tensor
) -> Tensor:
    """Sampling grid that cuts canonical views out of CelebA pictures.

    Args:
        rows: Number of pictures B.
        size: Side of the view in pixels.
        device: Of the grid.
        jitter: Optional disturbances, each ``(B,)``: `mirror` (1 or -1), `scale` (factor on the
            window's side), `angle` (radians), `dx` and `dy` (fractions of the window's side).

    Returns:
        ``(B, size, size, 2)`` for `grid_sample` with ``align_corners=False`` on ``(B, 3, 109, 89)``.
    """
    one, zero = torch.ones(rows, device=device), torch.zeros(rows, device=device)
    mirror, scale, angle = (jitter.get(k, d) for k, d in (("mirror", one), ("scale", one), ("angle", zero)))
    dx, dy = jitter.get("dx", zero), jitter.get("dy", zero)
    left, top, side = CELEBA_WINDOW
    width, height = CELEBA_SIZE
    half = side / 2
    cos, sin = scale * half * angle.cos(), scale * half * angle.sin()
    centre_x, centre_y = left + half + dx * side, top + half + dy * side
    theta = torch.stack(
        [
            torch.stack([mirror * cos * 2 / width, -sin * 2 / width, centre_x * 2 / width - 1], 1),
            torch.stack([mirror * sin * 2 / height, cos * 2 / height, centre_y * 2 / height - 1], 1),
        ],
        1,
    )
    return F.affine_grid(theta, (rows, 3, size, size), align_corners=False)


def celeba_view(pictures: Tensor, size: int = VIEW_SIZE, grid: Tensor | None = None) -> Tensor:
    """Cut canonical views out of aligned CelebA pictures.

    Args:
        pictures: ``(B, 3, 109, 89)`` uint8.
        size: Side of the view in pixels.
        grid: From :func:`celeba_grid`; the exact window if not given.

    Returns:
        ``(B, 3, size, size)`` in [-1, 1].
    """
    grid = celeba_grid(len(pictures), size, pictures.device) if grid is None else grid
    pictures = pictures.float().div_(127.5).sub_(1)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


# --- augmentation ---------------------------------------------------------------------------


def _choose(views: Tensor, changed: Tensor, chance: float, share: Share) -> Tensor:
    """Take each row from `changed` with this chance."""
    return torch.where(share.uniform(0, 1, 1, 1, 1) < chance, changed, views)


def _jpeg(views: Tensor, strength: Tensor) -> Tensor:
    """Quantise 8x8 cosine blocks as JPEG does; `strength` (B,) multiplies its table."""
    n = torch.arange(8.0, device=views.device)
    dct = torch.cos((2 * n[None] + 1) * n[:, None] * math.pi / 16) / 2
    dct[0] /= math.sqrt(2)
    rows, _, height, width = views.shape
    padded = F.pad(views, (0, -width % 8, 0, -height % 8), mode="replicate")
    blocks = padded.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)  # B,3,h,w,8,8
    # The table is for values that span 255 grey levels; ours span 2.
    step = 2 * _JPEG_QUANTUM.to(views.device) * strength.view(rows, 1, 1, 1, 1, 1)
    coefficients = (dct @ blocks @ dct.T / step).round() * step
    blocks = dct.T @ coefficients @ dct
    return blocks.transpose(3, 4).flatten(4, 5).flatten(2, 3)[..., :height, :width]


def augment(pictures: Tensor, share: Share, size: int = VIEW_SIZE) -> Tensor:
    """Random canonical views of CelebA pictures: flip, small warp, colour, focus, resolution, JPEG.

    Args:
        pictures: ``(B, 3, 109, 89)`` uint8, on the share's device.
        share: Of B samples; all randomness is theirs.
        size: Side of the views in pixels.

    Returns:
        ``(B, 3, size, size)`` in [-1, 1].
    """
    grid = celeba_grid(
        len(pictures),
        size,
        pictures.device,
        mirror=torch.where(share.uniform() < 0.5, 1.0, -1.0),
        scale=share.uniform(0.88, 1.12),
        angle=share.uniform(-0.15, 0.15),
        dx=share.uniform(-0.06, 0.06),
        dy=share.uniform(-0.06, 0.06),
    )
    views = celeba_view(pictures, size, grid)
    # Focus: from a soft blur to sharpening, as generated pictures are crisper than CelebA's.
    blurred = F.avg_pool2d(F.pad(views, (1, 1, 1, 1), mode="replicate"), 3, 1)
    views = _choose(views, views + share.uniform(-0.9, 1.0, 1, 1, 1) * (views - blurred), 0.6, share)
    # Resolution: down and up again, one factor for the batch.
    small = max(24, round(size * (0.4 + 0.6 * torch.rand(1, generator=share.common).item())))
    coarse = F.interpolate(canonical_view(views, small), (size, size), mode="bilinear", align_corners=False)
    views = _choose(views, coarse, 0.3, share)
    # Colour: gain per channel, contrast, saturation, brightness.
    grey = views.mean(1, keepdim=True)
    colour = grey + (views - grey) * share.uniform(0.3, 1.5, 1, 1, 1)
    gain = share.uniform(0.85, 1.15, 3, 1, 1) * share.uniform(0.7, 1.3, 1, 1, 1)
    colour = colour * gain + share.uniform(-0.25, 0.25, 1, 1, 1)
    views = _choose(views, colour, 0.8, share).clamp(-1, 1)
    return _choose(views, _jpeg(views, share.uniform(0.1, 1.2)), 0.3, share).clamp(-1, 1)


# --- disturbances that test a trained classifier ----------------------------------------------


def blurred(views: Tensor, sigma: float = 1.0) -> Tensor:
    """Views ``(B, 3, S, S)`` under a Gaussian blur; sigma in pixels of the view."""
    radius = math.ceil(3 * sigma)
    kernel = torch.exp(-torch.arange(-radius, radius + 1.0).square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).repeat(3, 1, 1, 1)
    padded = F.pad(views, (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)


def coarsened(views: Tensor, size: int = VIEW_SIZE // 2) -> Tensor:
    """Views ``(B, 3, S, S)`` shrunk to `size` pixels and enlarged again."""
    return F.interpolate(canonical_view(views, size), views.shape[2:], mode="bilinear", align_corners=False)


def compressed(views: Tensor, quality: int = 30) -> Tensor:
    """Views ``(B, 3, S, S)`` written as JPEG and read again, by Pillow."""
    pixels = (views.clamp(-1, 1) + 1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
    decoded = []
    for picture in pixels:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
        decoded.append(torch.from_numpy(np.array(Image.open(buffer))))
    return torch.stack(decoded).permute(0, 3, 1, 2) / 127.5 - 1
