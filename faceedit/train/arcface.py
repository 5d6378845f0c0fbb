"""ArcFace as the judge of identity, for those who have its weights (``model_ir_se50.pth``).

It is used as pSp and e4e use it, so that ID figures compare with theirs: strangers have a cosine
near 0. The weights are converted once, by ``faceedit convert``, and are not ours to ship.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from faceedit.convert.arcface import arcface
from faceedit.models.ir_se50 import ArcFaceNet

__all__ = ["ArcFace", "arcface_chip"]

# The face in an FFHQ-aligned picture of 256 pixels, and the side of the chip it is pooled to.
_SIZE = 256
_ROWS, _COLUMNS = slice(35, 223), slice(32, 220)
CHIP_SIZE = 112


class ArcFace(nn.Module):
    """Aligned face to its unit descriptor; a :class:`faceedit.train.identity.IdentityNet`.

    Frozen and always in evaluation mode: gradients flow to the pictures, never to the weights.
    """

    def __init__(self, network: ArcFaceNet) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.eval()

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> ArcFace:
        """The judge with the weights of a converted file.

        Raises:
            CheckpointError: A tensor is missing, extra or mis-shaped.
        """
        return cls(arcface(tensors))

    def train(self, mode: bool = True) -> ArcFace:
        """Leaves the network in evaluation mode, whatever ``mode`` is."""
        return super().train(False)

    def describe(self, aligned: Tensor) -> Tensor:
        """See :meth:`faceedit.train.identity.IdentityNet.describe`; 512-d."""
        return self.network(arcface_chip(aligned.float()))


def arcface_chip(aligned: Tensor) -> Tensor:
    """Cut the face out as pSp's and e4e's identity loss does.

    Args:
        aligned: FFHQ-aligned ``(B, 3, R, R)`` in [-1, 1]; brought to 256 pixels first.

    Returns:
        ``(B, 3, 112, 112)``: rows 35 to 222 and columns 32 to 219, each pixel a mean of those it covers.
    """
    size = aligned.shape[-1]
    if size > _SIZE:
        aligned = F.adaptive_avg_pool2d(aligned, _SIZE)
    elif size < _SIZE:
        aligned = F.interpolate(aligned, (_SIZE, _SIZE), mode="bilinear", align_corners=False)
    return F.adaptive_avg_pool2d(aligned[..., _ROWS, _COLUMNS], CHIP_SIZE)
