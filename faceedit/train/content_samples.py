"""What the content branch learns on: photographs with their inversions, and generated pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from faceedit.directions import Directions
from faceedit.train.crops import framed, to_unit
from faceedit.train.task import Share

__all__ = ["SIDE", "Pairs", "Photographs", "Sampler", "Samples", "at_side"]

SIDE = 256
"""Side in pixels that most of the losses look at."""


class Samples(NamedTuple):
    """What a part of a batch is made of: pictures ``(n, 3, P, P)``, as the content branch reads them, codes and
    edits, one a sample."""

    photos: Tensor
    codes: Tensor
    offsets: Tensor
    strengths: list[dict[str, float]]


@dataclass(frozen=True, eq=False)
class Photographs:
    """Aligned photographs ``(N, S, S, 3)`` uint8 with a margin, their inversions ``(N, n_styles, 512)``, and the
    side at which they are shown."""

    crops: NDArray[np.uint8]
    codes: Tensor
    side: int

    def framed(self, rows: Tensor) -> Tensor:
        """``(n, 3, side, side)`` in [-1, 1]; they have hardly more than 256 px of detail and are enlarged from there."""
        return at_side(framed(to_unit(self.crops[rows.numpy()]), SIDE), self.side)

    def split(self, held_out: int) -> tuple[Photographs, Photographs]:
        """All but the last, and the last."""
        n = len(self.codes) - held_out
        return tuple(Photographs(self.crops[part], self.codes[part], self.side) for part in (slice(n), slice(n, None)))


@dataclass(frozen=True, eq=False)
class Pairs:
    """Generated faces: pictures ``(N, P, P, 3)`` uint8, true codes, and the encoder's."""

    pictures: NDArray[np.uint8]
    codes: Tensor
    inverted: Tensor


class Sampler:
    """Draws samples.

    Args:
        photographs: Those to learn on.
        pairs: Generated faces.
        directions: The style branch's.
        strengths: Smallest and largest strength of an edit, of either sign.
        any_edit: Share of generated pairs that are edited towards another face.
        morph: How far at most a pair's code is moved towards another face.
    """

    def __init__(
        self, photographs: Photographs, pairs: Pairs, directions: Directions,
        strengths: tuple[float, float], any_edit: float, morph: float,
    ) -> None:  # fmt: skip
        self.photographs, self.faces, self.strengths, self.any_edit, self.morph = photographs, pairs, strengths, any_edit, morph
        self.names = list(directions.names)
        self.directions = torch.stack([directions.vectors[name] for name in self.names])

    def _edits(self, share: Share) -> tuple[Tensor, list[dict[str, float]]]:
        """One attribute a sample, either way: offsets of the codes, and strengths."""
        k = share.integers(len(self.names)).cpu()
        strength = share.uniform(*self.strengths).cpu()
        strength = torch.where(share.uniform().cpu() < 0.5, -strength, strength)
        named = [{self.names[i]: s} for i, s in zip(k.tolist(), strength.tolist())]
        return strength[:, None, None] * self.directions[k], named

    def unedited(self, share: Share) -> Samples:
        """Photographs, brightness and tint varied."""
        rows = share.pick(len(self.photographs.codes))
        gain = share.uniform(0.85, 1.15, 1, 1, 1) * share.uniform(0.95, 1.05, 3, 1, 1)
        photos = ((self.photographs.framed(rows).to(gain) + 1) * gain - 1).clamp(-1, 1)
        codes = self.photographs.codes[rows]
        return Samples(photos, codes, torch.zeros_like(codes), [{} for _ in rows])

    def edited(self, share: Share) -> Samples:
        """The same with an attribute's edit."""
        samples = self.unedited(share)
        offsets, strengths = self._edits(share)
        return samples._replace(offsets=offsets, strengths=strengths)

    def pairs(self, share: Share) -> tuple[Samples, Tensor]:
        """Generated faces with edits; and the true codes after the edits.

        The code that is given is the encoder's, or the true one moved towards another face.
        """
        codes = self.faces.codes
        rows, other = share.pick(len(codes)), share.integers(len(codes)).cpu()
        true = codes[rows]
        morphed = true.lerp(codes[other], share.uniform(0, self.morph).cpu()[:, None, None])
        inverted = share.uniform().cpu() < 0.5
        given = torch.where(inverted[:, None, None], self.faces.inverted[rows], morphed)
        offsets, strengths = self._edits(share)
        # Towards another face, in a random range of rows.
        n = codes.shape[1]
        ends = share.integers(n + 1, 2).cpu().sort(1).values
        row = torch.arange(n)
        within = (row >= ends[:, :1]) & (row < ends[:, 1:])
        away = share.uniform(0.2, 0.7).cpu()[:, None, None] * within[..., None] * (codes[other] - true)
        free = share.uniform().cpu() < self.any_edit
        offsets = torch.where(free[:, None, None], away, offsets)
        strengths = [{} if each else named for each, named in zip(free.tolist(), strengths)]
        photos = at_side(to_unit(self.faces.pictures[rows.numpy()]), self.photographs.side).to(share.device)
        return Samples(photos, given, offsets, strengths), true + offsets


def at_side(pictures: Tensor, side: int) -> Tensor:
    """``(n, 3, S, S)`` at another side: smoothly enlarged, or reduced by the mean over areas."""
    if pictures.shape[-1] >= side:
        return pictures if pictures.shape[-1] == side else F.interpolate(pictures, (side, side), mode="area")
    return F.interpolate(pictures, (side, side), mode="bicubic", align_corners=False).clamp(-1, 1)
