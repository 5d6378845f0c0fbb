"""Aligned crops of real photographs for the encoder's training, cut once and kept.

``python -m faceedit.train crops --photos DIR --out FILE [--landmarks FIVE_POINT.dat --generator FILE]
[--part train] [--apart-from DIR --identity FILE]``

Frames come from the packaged frame net, or from dlib's 5-point landmarks (CC0: four eye corners and the
nose). Those do not give an FFHQ frame by its formula, which needs the mouth. Generated faces are aligned
already, so how their frame hangs on the five points is a small linear regression, and its error is known.

Whoever looks like somebody in a set that is tested on can be left out, so that nobody is in both.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from faceedit.crop import CropFrame
from faceedit.errors import UsageError
from faceedit.faces import Box, detect, find, landmarks
from faceedit.models.generator import Generator
from faceedit.train.arcface import ArcFace
from faceedit.train.celeba import SPLITS, split_files
from faceedit.train.checkpoint import load_generator
from faceedit.train.data import Faces, digest, load_faces, open_folder
from faceedit.train.identity import DlibFaceNet, identity_chip, load_identity
from faceedit.train.synthetic import mixed_latents

log = logging.getLogger(__name__)

MARGIN = 1.125
"""Crops are cut this much larger than the frame, so that training can jitter the frame."""


def to_unit(pictures: NDArray[np.uint8]) -> Tensor:
    """uint8 ``(B, H, W, 3)`` to ``(B, 3, H, W)`` in [-1, 1]."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def framed(x: Tensor, size: int) -> Tensor:
    """The frame itself ``(B, 3, size, size)`` of crops ``(B, 3, S, S)`` with a margin of `MARGIN`."""
    side = int(size * MARGIN)
    if x.shape[-1] != side:
        x = F.interpolate(x, (side, side), mode="area")
    edge = (side - size) // 2
    return x[..., edge : edge + size, edge : edge + size]


def design(points: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Similarity-covariant regressors: the eye axis and the way from the eyes to the nose.

    Args:
        points: ``(..., 5, 2)``: two corners of one eye, two of the other, the nose.

    Returns:
        ``(..., 3)`` complex: midpoint of the eyes, eye to eye, eyes to nose.
    """
    z = points[..., 0] + 1j * points[..., 1]
    one, other = z[..., 0:2].mean(-1), z[..., 2:4].mean(-1)
    middle = (one + other) / 2
    return np.stack((middle, one - other, z[..., 4] - middle), -1)


class FivePointFrame:
    """Crop frames from five landmarks, fitted on faces whose frame is known."""

    def __init__(self, points: NDArray[np.float64], frames: Sequence[CropFrame]) -> None:
        x = design(points)
        center = np.array([complex(*f.center) for f in frames])
        axis = np.array([complex(*f.x_axis) for f in frames])
        self.to_center = np.linalg.lstsq(x[:, 1:], center - x[:, 0], rcond=None)[0]
        self.to_axis = np.linalg.lstsq(x[:, 1:], axis, rcond=None)[0]

    def __call__(self, points: NDArray[np.float64]) -> CropFrame:
        x = design(points)
        center, axis = x[0] + x[1:] @ self.to_center, x[1:] @ self.to_axis
        return CropFrame((center.real, center.imag), (axis.real, axis.imag))


@torch.no_grad()
def fit(generator: Generator, predictor: Path, n: int = 120, seed: int = 11) -> FivePointFrame:
    """Fit :class:`FivePointFrame` on ``n`` generated faces and log its error."""
    points, frames = [], []
    for code in tqdm(mixed_latents(generator, n, seed=seed, truncation=(0.5, 0.9)).split(1), desc="five points"):
        picture = ((generator.preview(code)[0].clamp(-1, 1) + 1) * 127.5).byte().permute(1, 2, 0).numpy()
        found = detect(picture)
        if found:
            points.append(landmarks(picture, found[0].box, predictor, points=5))
            frames.append(CropFrame.whole(*picture.shape[1::-1]))
    half = len(points) // 2
    trial = FivePointFrame(np.stack(points[:half]), frames[:half])
    error = [np.linalg.norm(trial(p).corners - f.corners, axis=1).mean() / f.side for p, f in zip(points[half:], frames[half:])]
    log.info("frame from five points: corner error %.2f %% of the side, median of %d generated faces",
             100 * np.median(error), len(error))
    return FivePointFrame(np.stack(points), frames)


class FivePointFramer:
    """A framer (see `faceedit.train.data.Framer`) by dlib's 5-point landmarks."""

    def __init__(self, to_frame: FivePointFrame, predictor: Path) -> None:
        self.to_frame, self.predictor = to_frame, predictor
        numbers = np.concatenate((to_frame.to_center, to_frame.to_axis))
        self.key = f"five points {' '.join(f'{v:.6f}' for v in numbers)}"

    def __call__(self, pixels: NDArray[np.uint8], box: Box | None) -> CropFrame:
        return self.to_frame(landmarks(pixels, box or find(pixels)[0].box, self.predictor, points=5))


class Strangers:
    """A sieve (see `faceedit.train.data.Sieve`) that keeps who looks like nobody in another set.

    Args:
        network: dlib's.
        others: Crops of that set, cut with a margin of `MARGIN`.
        near: Distance of dlib descriptors below which two faces are taken for one person.
    """

    def __init__(self, network: DlibFaceNet, others: Faces, near: float) -> None:
        self.network, self.near = network, near
        self.descriptors = self._describe(others.pictures)
        self.key = f"strangers {near} {digest([self.descriptors])}"

    @torch.no_grad()
    def _describe(self, crops: NDArray[np.uint8]) -> Tensor:
        x = to_unit(crops)
        return self.network(identity_chip(framed(x, round(x.shape[-1] / MARGIN))))

    def __call__(self, crop: NDArray[np.uint8]) -> str | None:
        distance = torch.cdist(self._describe(crop[None]), self.descriptors).min().item()
        return f"a descriptor of the other set is {distance:.2f} away" if distance < self.near else None


def main(argv: list[str]) -> int:
    """Command line entry; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="faceedit.train crops", description=__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="folder in a layout that docs/train.md lists")
    parser.add_argument("--landmarks", type=Path, help="dlib's 5-point predictor file; none: the packaged frame net")
    parser.add_argument("--generator", help="generator with a preview head, for --landmarks")
    parser.add_argument("--out", required=True, help=".npy file of uint8 crops; a .json beside it has their names")
    parser.add_argument("--size", type=int, default=288)
    parser.add_argument("--part", choices=SPLITS, help="of CelebA: cut this part of its split only")
    parser.add_argument("--apart-from", type=Path, help="folder of photographs; leave out whoever looks like one of them")
    parser.add_argument("--identity", type=Path, help="from faceedit.train identity, for --apart-from")
    parser.add_argument("--near", type=float, default=0.5, help="descriptors that are nearer look alike (%(default)s)")
    args = parser.parse_args(argv)
    if (args.landmarks is None) != (args.generator is None):
        raise UsageError("--landmarks and --generator go together: frames by five points are fitted on generated faces")
    if (args.apart_from is None) != (args.identity is None):
        raise UsageError("--apart-from and --identity go together: who looks like whom is told by the identity network")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = open_folder(args.photos)
    if args.part is not None:
        part = set(split_files(args.part))
        folder = dataclasses.replace(folder, names=tuple(name for name in folder.names if name in part))
        if not folder.names:
            raise UsageError(f"--part {args.part}: {str(args.photos)!r} has no picture of it, {min(part)} to {max(part)}")
    framer = sieve = None
    if args.apart_from is not None:
        network = load_identity(args.identity)
        if isinstance(network, ArcFace):
            raise UsageError(
                f"{str(args.identity)!r} is an ArcFace, and --near a distance of dlib's descriptors: give what the identity "
                "stage made"
            )
        others = load_faces(args.apart_from, f"{args.out}.apart.npy", size=args.size, margin=MARGIN)
        sieve = Strangers(network, others, args.near)
    if args.landmarks is not None:
        framer = FivePointFramer(fit(load_generator(args.generator), args.landmarks), args.landmarks)
    faces = load_faces(folder, args.out, size=args.size, margin=MARGIN, framer=framer, sieve=sieve)
    print(f"{len(faces)} crops of {args.size} px, {MARGIN} times the frame, in {args.out}")
    return 0
