"""The relevance map H (section 3.2, equation 6): where the photograph's content stays, and where the edit rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceedit.models.ops import smoothstep

__all__ = ["RelevanceMap", "undivided"]

# How much more of a mouth an edit changes than of the face around: one of the face, one of the mouth.
_OF_MOUTH = (1.85, 2.15)
_MOVED = (0.15, 0.22)  # how much of a mouth it changes: the mouth is as it was, another
_AROUND_EYES = (1.6, 2.0)  # how much more of what is around the eyes than of the face: one of the face, glasses


class RelevanceMap(nn.Module):
    """``m = H(G_i(w), G_i(w + d))`` of one level: near 1 where the edit leaves the features alone.

    The paper writes ``H(Q, K) = softmax(Conv(Q) Conv(K)^T)`` and wants one value a position. There are
    two readings of it:

    - "attention": softmax over all positions of the edited map; a position keeps the attention that it
      pays to itself, in units of the most that it pays to any. S^4 products: for maps of up to 32x32.
    - "pointwise": softmax over two, the likeness of the two maps at this position against a learned
      threshold. Projections are brought to unit length first, so that likeness is a cosine and a
      map that is merely strong does not pass for a map that has not changed.

    Args:
        channels: Of the generator's level.
        dim: Channels of the two projections.
        reading: Which of the two.
    """

    def __init__(self, channels: int, dim: int = 16, reading: Literal["attention", "pointwise"] = "pointwise") -> None:
        super().__init__()
        self.reading, self.dim = reading, dim
        self.query = nn.Conv2d(channels, dim, 1)
        self.key = nn.Conv2d(channels, dim, 1)
        # Both start as the same projection: then a position that has not changed is most like itself.
        self.key.load_state_dict(self.query.state_dict())
        if reading == "pointwise":
            self.threshold = nn.Parameter(torch.tensor(0.6))
            self.sharpness = nn.Parameter(torch.tensor(12.0))

    def forward(self, query: Tensor, edited: Tensor) -> Tensor:
        """Compare an unedited map with the edited one.

        Args:
            query: ``(B, dim, S, S)``, ``self.query`` of the unedited map, made once for many edits.
            edited: ``(B, channels, S, S)``.

        Returns:
            ``(B, 1, S, S)`` in [0, 1].
        """
        key = self.key(edited)
        if self.reading == "attention":
            # Exponents need absolute precision, which bfloat16 loses as they grow.
            with torch.autocast(edited.device.type, enabled=False):
                attention = query.float().flatten(2).transpose(1, 2) @ key.float().flatten(2) / math.sqrt(self.dim)
            # The softmax's denominator is the same for all of a row: what one position gets in units
            # of what the best gets is a difference of exponents.
            own = torch.diagonal(attention, dim1=1, dim2=2) - attention.amax(2)
            return own.exp().to(edited.dtype).unflatten(1, (1, *edited.shape[2:]))
        likeness = F.cosine_similarity(query.float(), key.float(), 1, 1e-6)[:, None]
        return torch.sigmoid(self.sharpness * (likeness - self.threshold)).to(edited.dtype)


def undivided(maps: Sequence[Tensor], parts: Tensor) -> list[Tensor]:
    """Relevance maps that do not divide a mouth or eyes between the photograph and the edit, which would show two.

    An edit that makes another mouth, as a smile does, makes all of it; one of what is around the eyes, as glasses are,
    leaves the eyes to the photograph. What an edit is one of is seen from the finest of the maps.

    Args:
        maps: ``(B, 1, S, S)`` in [0, 1] each.
        parts: ``(B, 4, P, P)`` in [0, 1], where the mouth is, the eyes, what is around the eyes, and the face.
    """
    scaled = [F.interpolate(parts.to(m), m.shape[-2:], mode="area").split(1, 1) for m in maps]
    changed = 1 - maps[-1]

    def mean(part: Tensor) -> Tensor:
        return (changed * part).sum((1, 2, 3), keepdim=True) / part.sum((1, 2, 3), keepdim=True).clamp_min(1e-3)

    mouth, eyes, around, face = scaled[-1]
    beside = face * (1 - torch.maximum(eyes, around))
    # An edit may be a smile and glasses at once: neither shall hide the other.
    rest = mean(beside * (1 - mouth))
    moved = mean(mouth)
    another = moved / rest.minimum(mean(face * (1 - mouth))).clamp_min(1e-3)
    another = smoothstep(another, *_OF_MOUTH) * smoothstep(moved, *_MOVED)
    worn = smoothstep(mean(around) / rest.minimum(mean(beside)).clamp_min(1e-3), *_AROUND_EYES)
    whole = [m * (1 - another * part[0]) for m, part in zip(maps, scaled)]
    return [m + worn * part[1] * (1 - m) for m, part in zip(whole, scaled)]
