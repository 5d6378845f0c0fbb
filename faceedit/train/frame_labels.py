"""Crop frames of real photographs for the frame net's second round, without 68 landmarks.

The network of the first round knows generated faces only. On photographs its frames have the right
middle and angle, but their size is off by some percent. dlib's 5-point file (CC0) finds eyes well,
and how large the frame of a face is, given its eyes, is seen on generated faces: with e from eye to
eye it is often 2 |e|, and more where the way to the mouth decides. So a label keeps the network's
middle and angle, and its size is the mean of what generated faces with a similar place of the nose
allow, weighted by how near that comes to the network's own.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from faceedit.crop import CropFrame, extract
from faceedit.faces import detect, landmarks
from faceedit.images import read
from faceedit.models.frame_net import FrameNet
from faceedit.train.crops import design

log = logging.getLogger(__name__)

HELD_OUT = 10
"""Every photograph whose place in the index is a multiple of this is left for measuring."""


def eye_points(
    pixels: NDArray[np.uint8], box: Sequence[float], predictor: Path, random: np.random.Generator
) -> NDArray[np.float64]:
    """Five landmarks ``(5, 2)``, the mean over four boxes jittered by 5 %, which steadies them."""
    x0, y0, x1, y1 = box
    points = []
    for _ in range(4):
        dx, dy, grow = random.uniform(-0.05, 0.05, 3) * (x1 - x0)
        jittered = x0 + dx - grow, y0 + dy - grow, x1 + dx + grow, y1 + dy + grow
        points.append(landmarks(pixels, jittered, predictor, points=5))
    return np.mean(points, axis=0)


class SizeFromEyes:
    """How large a frame is, from the eyes and a rough size.

    Args:
        points: ``(N, 5, 2)`` landmarks of faces whose frame is known.
        halves: ``(N,)`` half the side of their frames.
        doubt: Standard deviation of a rough size, as a fraction.
        likeness: Standard deviation of the nose's place, in eye distances, among similar faces.
    """

    def __init__(
        self,
        points: NDArray[np.float64],
        halves: NDArray[np.float64],
        doubt: float = 0.03,
        likeness: float = 0.1,
    ) -> None:
        self.doubt, self.likeness = doubt, likeness
        eyes, self.nose = self._measure(points)
        self.ratio = np.log(halves / eyes)

    @staticmethod
    def _measure(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Distance of the eyes, and how far below them the nose is in that unit."""
        x = design(points)
        return np.abs(x[..., 1]), (x[..., 2] / x[..., 1]).imag

    def __call__(self, points: NDArray[np.float64], rough: float) -> float | None:
        """Half the side for landmarks ``(5, 2)``; None where no known face is similar."""
        eyes, nose = self._measure(points)
        off = (np.log(rough / eyes) - self.ratio) / self.doubt
        unlike = (nose - self.nose) / self.likeness
        weight = np.exp(-0.5 * (off**2 + unlike**2))
        if weight.sum() < 0.1:
            return None
        return float(eyes * np.exp((weight * self.ratio).sum() / weight.sum()))


def learn_sizes(faces: NDArray[np.uint8], predictor: Path, seed: int = 0) -> SizeFromEyes:
    """Measure generated faces ``(N, S, S, 3)``, whose frame is the whole picture."""
    random = np.random.default_rng(seed)
    points = []
    for pixels in tqdm(faces, desc="eyes of generated faces", mininterval=10):
        pixels = np.array(pixels)
        found = detect(pixels)
        if found:
            points.append(eye_points(pixels, found[0].box, predictor, random))
    return SizeFromEyes(np.stack(points), np.full(len(points), faces.shape[1] / 2))


def label_real(
    net: FrameNet,
    sizes: SizeFromEyes,
    folder: Path,
    predictor: Path,
    *,
    count: int,
    extent: float,
    side: int,
    seed: int = 0,
) -> NDArray[np.uint8]:
    """Squares cut around the labelled frames of real photographs.

    Args:
        net: Of the first round, in evaluation mode.
        sizes: From :func:`learn_sizes`.
        folder: Holds ``index.csv`` with the columns ``file`` and ``face_box``, and ``images/``.
        predictor: dlib's 5-point file.
        count: How many photographs to label, drawn from those that are not held out.
        extent: Side of a square per side of the frame.
        side: Side of a square in pixels.
        seed: Of the draw.

    Returns:
        ``(N, side, side, 3)`` uint8, N at most `count`; the frame is upright and in the middle.
    """
    random = np.random.default_rng(seed)
    with open(folder / "index.csv", newline="", encoding="utf-8") as file:
        rows = [row for i, row in enumerate(csv.DictReader(file)) if i % HELD_OUT]
    random.shuffle(rows)
    squares = []
    for row in tqdm(rows[:count], desc="real faces", mininterval=10):
        pixels = read(folder / "images" / row["file"]).pixels
        box = [float(v) for v in row["face_box"].split()]
        center, (ax, ay) = net.predict(pixels, box)
        rough = float(np.hypot(ax, ay))
        half = sizes(eye_points(pixels, box, predictor, random), rough)
        if half is not None:
            grow = extent * half / rough
            square = extract(pixels, CropFrame(center, (ax * grow, ay * grow)), side)
            squares.append(square.mul(255).round().byte().permute(1, 2, 0).numpy())
    log.info("labelled %d of %d real faces", len(squares), min(count, len(rows)))
    return np.stack(squares)
