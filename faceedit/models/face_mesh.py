"""FaceMesh: where the surface of a face lies in a picture, by MediaPipe's face mesh network.

Source: Kartynnik et al., "Real-time Facial Surface Geometry from Monocular Video on Mobile GPUs"
(arXiv 1907.06724). The weights are those of PyPI ``mediapipe`` 0.10.21 (Apache-2.0), which
`faceedit.convert.face_mesh` reads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceedit.models.ops import pad_same

N_POINTS = 468
# The rims of the eye on the left of the picture and of the other, the tip of the nose, and the
# corners of the mouth.
LEFT_EYE = (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246)
RIGHT_EYE = (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466)
NOSE, LEFT_MOUTH, RIGHT_MOUTH = 4, 61, 291
# The inner rim of the lips.
MOUTH = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95)
# Around the face without its forehead: from the temple on the right of the picture by the chin to the
# other, and back along the upper edges of the brows.
OUTLINE = (
    356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127,
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300,
)  # fmt: skip


class _Block(nn.Module):
    """Depthwise 3x3 and pointwise 1x1 convolution, added to the input, then PReLU.

    A block that halves the picture adds the maximum of each 2x2 square, with zeros for the channels
    that it gains.
    """

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.depthwise = nn.Conv2d(n_in, n_in, 3, stride, 1 if stride == 1 else 0, groups=n_in)
        self.pointwise = nn.Conv2d(n_in, n_out, 1)
        self.slope = nn.PReLU(n_out)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            return self.slope(x + self.pointwise(self.depthwise(x)))
        out = self.pointwise(self.depthwise(pad_same(x, 3, 2)))
        gained = out.shape[1] - x.shape[1]
        return self.slope(F.pad(F.max_pool2d(x, 2), (0, 0, 0, 0, 0, gained)) + out)


class FaceMesh(nn.Module):
    """A window around a face to the points of its surface. 0.45 million weights."""

    size = 192
    blocks = (
        *((16, 16, 1),) * 2, (16, 32, 2),
        *((32, 32, 1),) * 2, (32, 64, 2),
        *((64, 64, 1),) * 2, (64, 128, 2),
        *((128, 128, 1),) * 2, (128, 128, 2),
        *((128, 128, 1),) * 2, (128, 128, 2),
        *((128, 128, 1),) * 2, (32, 32, 1),
    )  # fmt: skip
    """(channels in, channels out, stride) of each block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.PReLU(16))
        self.body = nn.ModuleList(_Block(*block) for block in self.blocks)
        self.narrow = nn.Sequential(nn.Conv2d(128, 32, 1), nn.PReLU(32))
        self.points = nn.Conv2d(32, 2 * N_POINTS, 3)

    def forward(self, windows: Tensor) -> Tensor:
        """Find the points.

        Args:
            windows: ``(B, 3, 192, 192)`` in [-1, 1]: an upright face that fills two thirds.

        Returns:
            ``(B, 468, 2)``: (x, y) in half windows from its middle.
        """
        x = self.stem(pad_same((windows + 1) / 2, 3, 2))
        for block in self.body[:-1]:
            x = block(x)
        x = self.points(self.body[-1](self.narrow(x)))
        return x.flatten(1).unflatten(1, (N_POINTS, 2)) / (self.size / 2) - 1
