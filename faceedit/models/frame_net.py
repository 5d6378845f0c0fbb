"""FrameNet: finds the FFHQ crop frame of a face, given roughly where the face is, and the face in such a crop.

It looks at a window around the face, finds the face's surface in it, and looks again at a window
that fits what it found: the network knows faces that are upright and fill two thirds. The frame
follows from the eyes and the mouth as for any other landmarks.

Source: the windows are MediaPipe's (arXiv 1907.06724), the frame is that of Karras et al. (arXiv
1812.04948).
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from faceedit.crop import frame_from_landmarks
from faceedit.models.face_mesh import LEFT_EYE, LEFT_MOUTH, MOUTH, NOSE, OUTLINE, RIGHT_EYE, RIGHT_MOUTH, FaceMesh

# The first window, from a detector's box: its side per box side, and how far its middle lies above
# the box's, in box sides: what dlib's frontal detector gives on generated faces.
WINDOW_PER_BOX = 1.6
WINDOW_ABOVE_BOX = 0.1
WINDOW_PER_FACE = 1.5  # side of the later ones, per longer side of the face
# The first window in an aligned crop, in its sides: middle and half side, the means of those that fit 30 portraits.
WINDOW_IN_CROP = (complex(0.5, 0.59), 0.5)


class Outlines(NamedTuple):
    """A face in its crop: corners (x, y) of polygons, in sides of the crop from its top left corner, float32."""

    face: Tensor  # (33, 2), around it up to the brows, without the forehead that hair may cover
    eyes: Tensor  # (2, 16, 2), what is seen of them between their lids
    mouth: Tensor  # (20, 2), what is seen between the lips


class FrameNet(nn.Module):
    """A face mesh and how to look with it.

    Args:
        looks: How many times to look; each starts from the answer before. The last look is also at
            the mirrored window, and the mean counts.
    """

    def __init__(self, looks: int = 3) -> None:
        super().__init__()
        self.looks = looks
        self.mesh = FaceMesh()

    @torch.no_grad()
    def predict(
        self, pixels: NDArray[np.uint8], box: Sequence[float]
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """The crop frame of the face in a box. The network must be in evaluation mode.

        Args:
            pixels: ``(H, W, 3)`` uint8, the photo.
            box: x0, y0, x1, y1 around brows and chin, in photo pixels; the origin is the top left
                corner of the photo. It may reach beyond the photo, which is then mirrored.

        Returns:
            ``center`` and ``x_axis`` as `faceedit.crop.CropFrame` takes them.

        Raises:
            LandmarksError: what is in the box looks so unlike a face that no frame follows.
        """
        x0, y0, x1, y1 = (float(v) for v in box)
        side = math.sqrt((x1 - x0) * (y1 - y0))
        center = complex((x0 + x1) / 2, (y0 + y1) / 2 - WINDOW_ABOVE_BOX * side)
        axis = complex(WINDOW_PER_BOX * side / 2, 0)
        for _ in range(self.looks - 1):
            window = cut_window(pixels, center, axis, self.mesh.size)
            center, axis = _window_around(center + axis * self._see(window)[0])
        window = cut_window(pixels, center, axis, self.mesh.size)
        seen, mirrored = self._see(window, window.flip(-1))
        ours, theirs = _landmarks(seen), _landmarks(mirrored)
        theirs = -theirs.conj()[[1, 0, 2, 4, 3]]  # left is right in a mirror
        found = center + axis * (ours + theirs) / 2
        # Landmarks count from the middle of the first pixel.
        frame = frame_from_landmarks(np.stack([found.real, found.imag], -1) - 0.5)
        return frame.center, frame.x_axis

    @torch.no_grad()
    def outlines(self, crop: Tensor) -> Outlines:
        """Where the face is in its crop, and its openings.

        Args:
            crop: ``(3, S, S)`` in [0, 1], an aligned face.

        Returns:
            Polygons. What they say of a picture without a face is arbitrary.
        """
        pixels, side = (crop * 255).round().byte().permute(1, 2, 0).contiguous().numpy(), crop.shape[-1]
        center, axis = WINDOW_IN_CROP[0] * side, complex(WINDOW_IN_CROP[1] * side)
        for _ in range(2):
            mesh = center + axis * self._see(cut_window(pixels, center, axis, self.mesh.size))[0]
            center, axis = _window_around(mesh)
        points = torch.view_as_real(torch.from_numpy(mesh / side)).float()
        return Outlines(points[list(OUTLINE)], points[torch.tensor([LEFT_EYE, RIGHT_EYE])], points[list(MOUTH)])

    def _see(self, *windows: Tensor) -> NDArray[np.complex128]:
        """The mesh in each window, ``(B, 468)``: x right, y down, so that similarities are products."""
        points = self.mesh(torch.stack(windows).contiguous(memory_format=torch.channels_last))
        return torch.view_as_complex(points.double().contiguous()).numpy()


def _landmarks(mesh: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """The five points of `faceedit.crop.frame_from_landmarks` among the 468."""
    left, right = mesh[list(LEFT_EYE)].mean(), mesh[list(RIGHT_EYE)].mean()
    return np.array([left, right, mesh[NOSE], mesh[LEFT_MOUTH], mesh[RIGHT_MOUTH]])


def _window_around(mesh: NDArray[np.complex128]) -> tuple[complex, complex]:
    """Middle and half side of the window for the next look: upright, and as large as the face."""
    left, right, *_ = _landmarks(mesh)
    upright = cmath.rect(1, cmath.phase(right - left))
    turned = mesh / upright
    low = complex(turned.real.min(), turned.imag.min())
    high = complex(turned.real.max(), turned.imag.max())
    half = WINDOW_PER_FACE * max((high - low).real, (high - low).imag) / 2
    return (low + high) / 2 * upright, half * upright


def cut_window(pixels: NDArray[np.uint8], center: complex, axis: complex, size: int) -> Tensor:
    """A turned square of the photo, as the network takes it.

    Args:
        pixels: ``(H, W, 3)`` uint8; mirrored beyond its borders.
        center: Middle of the window, in photo pixels.
        axis: Its half side, along the window's "right".
        size: Side of the window in pixels.

    Returns:
        ``(3, size, size)`` float32 in [-1, 1]; each pixel the mean of 4 to 16 photo pixels.
    """
    per_pixel = min(max(math.ceil(2 * abs(axis) / size), 2), 4)
    steps = ((np.arange(size * per_pixel) + 0.5) * (2 / (size * per_pixel)) - 1).astype(np.float32)
    across, down = center + axis * steps, axis * 1j * steps
    rows = _mirror(across.imag[None, :] + down.imag[:, None], pixels.shape[0])
    columns = _mirror(across.real[None, :] + down.real[:, None], pixels.shape[1])
    samples = torch.from_numpy(pixels[rows, columns]).permute(2, 0, 1).float()
    return F.avg_pool2d(samples, per_pixel) / 127.5 - 1


def _mirror(position: NDArray[np.float32], length: int) -> NDArray[np.intp]:
    """Index of the pixel at a position, for a line of pixels mirrored at both of its ends."""
    index = np.floor(position).astype(np.intp)
    if index.min() >= 0 and index.max() < length:
        return index
    index %= 2 * length
    return np.minimum(index, 2 * length - 1 - index)
