"""The FFHQ crop of a face: where it lies in a photo, cutting it out, and putting an edit back.

Photo coordinates are continuous (x right, y down) with the origin at the top left *corner* of the
picture: a photo of width W spans [0, W], and the centre of its pixel in column i lies at i + 0.5.
Landmark detectors number pixels instead, so :func:`frame_from_landmarks` adds that half.

Source: Karras et al., "A Style-Based Generator Architecture for Generative Adversarial Networks"
(arXiv 1812.04948), appendix A, for the frame; cutting and pasting are our own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from faceedit.errors import LandmarksError, UsageError

__all__ = ["CropFrame", "extract", "face_mask", "frame_from_landmarks", "paste_back"]

_BAND = 1 << 20  # output pixels resampled at a time; bounds the memory of a large photo
_MARGIN = 4  # source pixels kept around the part that is read, for the bicubic kernel


@dataclass(frozen=True)
class CropFrame:
    """An oriented square in a photo: what is cut out, edited, and pasted back.

    Args:
        center: (x, y) of the middle, in photo coordinates.
        x_axis: (x, y) vector from the middle to the middle of the right side. Its length is half
            the side, its direction is the crop's "right". "Down" is `x_axis` turned by 90 degrees,
            (-y, x): a frame never mirrors.

    Raises:
        UsageError: if a number is not finite, or the square has no extent.
    """

    center: tuple[float, float]
    x_axis: tuple[float, float]

    def __post_init__(self) -> None:
        for name in ("center", "x_axis"):
            x, y = (float(value) for value in getattr(self, name))
            if not (math.isfinite(x) and math.isfinite(y)):
                raise UsageError(f"the {name} of a crop frame must be finite, not ({x}, {y})")
            object.__setattr__(self, name, (x, y))
        if self.side < 1e-3:
            raise UsageError(f"a crop frame needs an extent, and its x_axis is {self.x_axis}")

    @classmethod
    def whole(cls, width: int, height: int) -> CropFrame:
        """The frame of a picture that is an aligned crop already: all of it.

        Args:
            width: of the picture, in pixels.
            height: of the picture, in pixels; equal to the width.

        Raises:
            UsageError: if the picture is not square.
        """
        if width != height:
            raise UsageError(
                f"an aligned crop is square and this picture is {width}x{height}: "
                "cut it first, or leave the alignment to the face detector"
            )
        return cls((width / 2, height / 2), (width / 2, 0.0))

    @property
    def side(self) -> float:
        """Length of a side in photo pixels."""
        return 2 * math.hypot(*self.x_axis)

    @property
    def corners(self) -> NDArray[np.float64]:
        """(4, 2) photo coordinates: top left, top right, bottom right, bottom left of the crop."""
        (cx, cy), (ax, ay) = self.center, self.x_axis
        return np.array(
            [
                (cx - ax + ay, cy - ay - ax),
                (cx + ax + ay, cy + ay - ax),
                (cx + ax - ay, cy + ay + ax),
                (cx - ax - ay, cy - ay + ax),
            ]
        )

    def matrix(self, size: int) -> NDArray[np.float64]:
        """(2, 3) affine map from coordinates in a crop of `size` pixels to photo coordinates.

        Crop coordinates follow the photo's convention: the crop spans [0, size].
        """
        (cx, cy), (ax, ay) = self.center, self.x_axis
        k = 2 / size
        return np.array([(k * ax, -k * ay, cx - ax + ay), (k * ay, k * ax, cy - ay - ax)])


def frame_from_landmarks(points: ArrayLike) -> CropFrame:
    """The FFHQ crop frame of a face, from its eyes and the corners of its mouth.

    With e the vector from eye to eye and m from between the eyes to between the mouth's corners,
    the frame's x axis is along e minus m turned by 90 degrees, half its side is the larger of
    2 |e| and 1.8 |m|, and its centre lies 0.1 m below the point between the eyes.

    Args:
        points: (68, 2) landmarks in the usual order of dlib and iBUG 300-W, or (5, 2): left eye,
            right eye, nose, left mouth corner, right mouth corner, left and right as one looks at
            the picture. (x, y) in pixels as detectors give them: (0, 0) is the *centre* of the top
            left pixel.

    Raises:
        LandmarksError: if the shape is another, a number is not finite, the points coincide, or
            left and right are swapped.

    Source: Karras et al. 2019, appendix A.
    """
    try:
        p = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise LandmarksError(f"landmarks must be an array of numbers: {error}") from None
    if p.shape == (68, 2):
        left_eye, right_eye = p[36:42].mean(0), p[42:48].mean(0)
        left_mouth, right_mouth = p[48], p[54]
    elif p.shape == (5, 2):
        left_eye, right_eye, _, left_mouth, right_mouth = p
    else:
        raise LandmarksError(f"landmarks must have shape (68, 2) or (5, 2), not {p.shape}")
    if not np.isfinite(p).all():
        raise LandmarksError("landmarks must be finite numbers")

    eye_to_eye = right_eye - left_eye
    eyes = (left_eye + right_eye) / 2
    eye_to_mouth = (left_mouth + right_mouth) / 2 - eyes
    turned = np.array([eye_to_mouth[1], -eye_to_mouth[0]])  # points right in an upright face
    direction = eye_to_eye + turned
    length = float(np.hypot(*direction))
    if length < 1e-3:
        raise LandmarksError("no face can be laid through these landmarks: they coincide")
    if eye_to_eye @ turned < 0:
        raise LandmarksError(
            "the landmarks are mirrored: left and right are meant as one looks at the picture"
        )
    half = max(2.0 * np.hypot(*eye_to_eye), 1.8 * np.hypot(*eye_to_mouth))
    center = eyes + 0.1 * eye_to_mouth + 0.5
    return CropFrame(tuple(center), tuple(direction / length * half))


def extract(pixels: NDArray[np.uint8], frame: CropFrame, size: int) -> Tensor:
    """Cut the crop out of a photo.

    Bicubic where the crop enlarges the photo, averaged where it reduces it. Where the frame leaves
    the photo, the photo is mirrored at its border.

    Args:
        pixels: (H, W, 3) uint8.
        frame: the square to cut, anywhere.
        size: side of the crop, in pixels.

    Returns:
        (3, size, size) float32 in [0, 1].

    Raises:
        UsageError: if `pixels` has another shape or type, or `size` is below 1.
    """
    _check_photo(pixels)
    if size < 1:
        raise UsageError(f"a crop needs at least one pixel, not {size}")
    matrix = frame.matrix(size)
    reach = _reach(matrix, size, size)
    rows = _mirrored_range(reach[1], reach[3], pixels.shape[0])
    columns = _mirrored_range(reach[0], reach[2], pixels.shape[1])
    part = torch.from_numpy(pixels[slice(*rows), slice(*columns)].copy())
    source = part.permute(2, 0, 1).float().div_(255)
    matrix[:, 2] -= columns[0], rows[0]
    return _resample(source, matrix, size, size, "reflection").clamp_(0, 1)


def paste_back(
    pixels: NDArray[np.uint8],
    edited: Tensor,
    frame: CropFrame,
    mask: Tensor,
    original: Tensor | None = None,
) -> NDArray[np.uint8]:
    """Put an edited crop back into its photo.

    With `original`, the *difference* ``edited - original`` is added to the photo: detail of the
    photo that is finer than the crop survives, and an unchanged crop changes nothing at all.
    Without it the crop itself is blended in.

    Args:
        pixels: (H, W, 3) uint8, the photo; it is not changed.
        edited: (3, S, S) in [0, 1].
        frame: where the crop was cut.
        mask: (S, S) in [0, 1]; 1 takes the edit, 0 keeps the photo.
        original: (3, S, S) in [0, 1], the crop before the edit.

    Returns:
        (H, W, 3) uint8, a new array. Bit-identical to `pixels` outside the frame and wherever the
        mask is zero.

    Raises:
        UsageError: if a shape or type is another.
    """
    _check_photo(pixels)
    size = edited.shape[-1]
    if edited.shape != (3, size, size) or (original is not None and original.shape != edited.shape):
        raise UsageError(f"crops must have shape (3, S, S), not {tuple(edited.shape)}")
    if mask.shape != (size, size):
        raise UsageError(f"the mask must have shape {(size, size)}, not {tuple(mask.shape)}")
    change = edited if original is None else edited - original
    source = torch.cat([change, mask[None].to(change)]).detach().float().cpu()

    out = pixels.copy()
    to_photo = frame.matrix(size)
    inverse = np.linalg.inv(to_photo[:, :2])
    for rows, columns in _bands(_reach(to_photo, size, size), pixels.shape):
        corner = np.array([columns.start, rows.start])
        matrix = np.column_stack([inverse, inverse @ (corner - to_photo[:, 2])])
        height, width = rows.stop - rows.start, columns.stop - columns.start
        warped = _resample(source, matrix, height, width, "border")
        alpha = (warped[3] * _inside(matrix, height, width, size)).clamp_(0, 1)
        photo = torch.from_numpy(pixels[rows, columns].copy()).permute(2, 0, 1).float().div_(255)
        if original is None:
            photo = torch.lerp(photo, warped[:3], alpha)
        else:
            photo = photo + alpha * warped[:3]
        blended = photo.clamp_(0, 1).mul_(255).round_().to(torch.uint8).permute(1, 2, 0).numpy()
        out[rows, columns] = np.where(alpha.numpy()[:, :, None] > 0, blended, out[rows, columns])
    return out


def face_mask(size: int, feather: float = 0.15) -> Tensor:
    """The default paste-back mask: a rounded square that fades to zero before the crop's border.

    Args:
        size: side of the crop, in pixels.
        feather: width of the fade, as a fraction of the side.

    Returns:
        (size, size) float32 in [0, 1]: 1 in the middle, 0 in the outermost 2 % of the crop.
    """
    outer, radius = 0.48, 0.25  # half the side and the corner radius, as fractions of the crop
    position = ((torch.arange(size) + 0.5) / size - 0.5).abs() - (outer - radius)
    y, x = position[:, None], position[None, :]
    outside = torch.hypot(x.clamp(min=0), y.clamp(min=0)) + torch.maximum(x, y).clamp(max=0)
    t = ((radius - outside) / max(feather, 1e-6)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def _check_photo(pixels: NDArray[np.uint8]) -> None:
    if not (
        isinstance(pixels, np.ndarray)
        and pixels.dtype == np.uint8
        and pixels.ndim == 3
        and pixels.shape[2] == 3
        and pixels.size
    ):
        kind = getattr(pixels, "dtype", type(pixels).__name__)
        raise UsageError(
            f"a photo is an array (H, W, 3) of uint8, not {getattr(pixels, 'shape', '')} of {kind}"
        )


def _reach(matrix: NDArray[np.float64], width: int, height: int) -> tuple[int, int, int, int]:
    """Bounding box (x0, y0, x1, y1) of where `matrix` takes a width x height picture."""
    corners = np.array([(0, 0, 1), (width, 0, 1), (width, height, 1), (0, height, 1)])
    moved = corners @ matrix.T
    x0, y0 = np.floor(moved.min(0)).astype(int)
    x1, y1 = np.ceil(moved.max(0)).astype(int)
    return int(x0), int(y0), int(x1), int(y1)


def _mirrored_range(low: int, high: int, length: int) -> tuple[int, int]:
    """The part of [0, length) that is read for [low, high), with mirroring at the two ends."""
    low, high = low - _MARGIN, high + _MARGIN
    if low < 0:
        low, high = 0, max(high, -low)
    if high > length:
        low, high = min(low, 2 * length - high), length
    return max(low, 0), high


def _bands(reach: Sequence[int], shape: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """(rows, columns) of bands of at most `_BAND` pixels that cover `reach` within the photo."""
    x0, x1 = max(reach[0], 0), min(reach[2], shape[1])
    y0, y1 = max(reach[1], 0), min(reach[3], shape[0])
    if x0 >= x1:
        return
    step = max(_BAND // (x1 - x0), 1)
    for top in range(y0, y1, step):
        yield slice(top, min(top + step, y1)), slice(x0, x1)


def _positions(
    matrix: NDArray[np.float64], height: int, width: int, per_pixel: int
) -> tuple[Tensor, Tensor]:
    """Where a height x width output looks, `per_pixel` squared points to a pixel: x and y."""
    x = ((torch.arange(width * per_pixel, dtype=torch.float64) + 0.5) / per_pixel)[None, :]
    y = ((torch.arange(height * per_pixel, dtype=torch.float64) + 0.5) / per_pixel)[:, None]
    (a, b, c), (d, e, f) = matrix.tolist()
    return (a * x + (b * y + c)).float(), (d * x + (e * y + f)).float()


def _inside(matrix: NDArray[np.float64], height: int, width: int, size: int) -> Tensor:
    """(height, width) bool: whose pixel centres `matrix` takes into a crop of `size`."""
    x, y = _positions(matrix, height, width, 1)
    return (x >= 0) & (x <= size) & (y >= 0) & (y <= size)


def _resample(
    source: Tensor, matrix: NDArray[np.float64], height: int, width: int, padding: str
) -> Tensor:
    """Resample (C, H, W) under a similarity that takes output coordinates to source coordinates.

    A source much finer than the output is first reduced by whole blocks to between two and four
    times the output's density; what remains is averaged from several samples per pixel.
    """
    scale = math.sqrt(abs(np.linalg.det(matrix[:, :2])))
    block = max(int(scale / 2), 1)
    if block > 1:
        rows, columns = (-source.shape[1]) % block, (-source.shape[2]) % block
        padded = F.pad(source[None], (0, columns, 0, rows), mode="replicate")
        source, matrix, scale = F.avg_pool2d(padded, block)[0], matrix / block, scale / block
    per_pixel = max(math.ceil(scale - 1e-3), 1)
    x, y = _positions(matrix, height, width, per_pixel)
    grid = torch.stack([x * (2 / source.shape[2]) - 1, y * (2 / source.shape[1]) - 1], dim=-1)
    mode = "bicubic" if per_pixel <= 2 else "bilinear"  # averaging many samples hides the kernel
    out = F.grid_sample(source[None], grid[None], mode, padding, align_corners=False)
    return F.avg_pool2d(out, per_pixel)[0]
