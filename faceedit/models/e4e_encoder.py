"""e4e's encoder: pSp's networks, whose rows are one common code and offsets from it.

Source: Tov et al., "Designing an Encoder for StyleGAN Image Manipulation", arXiv 2102.02766,
sections 4.1 and 5. Module names are the published ones, so its checkpoints load as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from faceedit.models.psp_encoder import GradualStyleEncoder


class Encoder4Editing(GradualStyleEncoder):
    """e4e: row 0 is the code w; every other row is w plus an offset of its own.

    ``active_rows`` counts the rows, from the first, that have their own say, row 0 included; the
    others repeat row 0. Training raises it from 1 to ``n_styles``; afterwards all are active.
    """

    active_rows: int | None = None

    def _codes(self, pyramid: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        active = self.n_styles if self.active_rows is None else self.active_rows
        first = self._row(0, pyramid)
        rows = [first + self._row(i, pyramid) for i in range(1, active)]
        return torch.stack([first, *rows] + [first] * (self.n_styles - active), 1)
