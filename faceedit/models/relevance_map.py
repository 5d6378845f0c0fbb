"""The relevance map H (section 3.2, equation 6): where the photograph's content stays, and where the edit rules."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceedit.models.ops import smoothstep

__all__ = ["RelevanceMap", "mouth_share"]

# How much more of a mouth an edit changes than of the face around: one of the face, one of the mouth.
_OF_MOUTH = (1.85, 2.15)
_MOVED = (0.15, 0.22)  # how much of a mouth it changes: the mouth is as it was, another


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


def mouth_share(relevance: Tensor, mouth: Tensor, face: Tensor) -> Tensor:
    """What share of the content that is to stay in a mouth may stay there: 1 but for an edit that makes another mouth.

    Half of the photograph's mouth and half of the edit's would be two mouths, so then the edit's is all of it.

    Args:
        relevance: ``(B, 1, S, S)`` in [0, 1], of the finest level that has a map.
        mouth: ``(B, 1, S, S)`` in [0, 1], where the mouth is.
        face: ``(B, 1, S, S)`` in [0, 1], where the rest of the face is.

    Returns:
        ``(B, 1, 1, 1)`` in [0, 1].
    """

    def changed(part: Tensor) -> Tensor:
        return ((1 - relevance) * part).sum((1, 2, 3), keepdim=True) / part.sum((1, 2, 3), keepdim=True).clamp_min(1e-3)

    moved = changed(mouth)
    return 1 - smoothstep(moved, *_MOVED) * smoothstep(moved / changed(face).clamp_min(1e-3), *_OF_MOUTH)
