"""Encoder E of the default checkpoint: aligned face -> W+ code and content features (section 3).

It looks more than once: after a first answer it is shown the picture that the answer gives beside
the one that it should give, and corrects itself (the idea of ReStyle, Alaluf et al., arXiv
2104.02699, here with a first answer that does not depend on the feedback).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceedit.models.efficientnet_lite import EfficientNetLite
from faceedit.models.encoder import Encoder, Encoding


class _Summary(nn.Module):
    """A feature map to one vector that still knows where things are: 8x8 cells, flattened."""

    def __init__(self, n_in: int, n_out: int, cells: int = 8, width: int = 64) -> None:
        super().__init__()
        self.cells = cells
        self.reduce = nn.Conv2d(n_in, width, 1)
        self.norm = nn.LayerNorm(width * cells**2)
        self.out = nn.Linear(width * cells**2, n_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.reduce(x), self.cells).flatten(1)
        return F.leaky_relu(self.out(self.norm(x)), 0.2)


class EfficientNetEncoder(Encoder):
    """EfficientNet-Lite trunk, feature pyramid, and one linear map to all rows of W+.

    Args:
        n_styles: Rows of the generator's W+.
        style_dim: Width of W+.
        input_size: Side of the picture the trunk sees; other sizes are resampled to it.
        width: Channels of the pyramid's maps.
        hidden: Width of each level's summary vector.
        correction: Rank of the map from the summaries to a correction of the code.
        looks: How many corrections inference should make after the first answer.
    """

    def __init__(
        self,
        n_styles: int = 16,
        style_dim: int = 512,
        input_size: int = 256,
        width: int = 96,
        hidden: int = 384,
        correction: int = 192,
        looks: int = 1,
    ) -> None:
        super().__init__()
        self.n_styles, self.style_dim, self.input_size, self.looks = n_styles, style_dim, input_size, looks
        self.trunk = EfficientNetLite()
        channels = EfficientNetLite.channels
        self.lateral = nn.ModuleDict({str(s): nn.Conv2d(channels[s], width, 1) for s in (8, 16, 32)})
        self.smooth = nn.ModuleDict(
            {str(s): nn.Conv2d(width, width, 3, padding=1, groups=width) for s in (8, 16)}
        )
        self.summaries = nn.ModuleDict({str(s): _Summary(width, hidden) for s in (8, 16)})
        self.summaries["32"] = _Summary(channels[32], hidden)
        self.feedback = nn.Sequential(
            nn.Conv2d(6, 32, 3, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(32, 64, 3, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(64, 64, 3, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(64, channels[8], 1),
        )
        self.to_correction = nn.Sequential(
            nn.Linear(3 * hidden, correction), nn.Linear(correction, n_styles * style_dim)
        )
        nn.init.zeros_(self.to_correction[1].weight)
        nn.init.zeros_(self.to_correction[1].bias)
        # Codes are mean + std * output, so that an untrained encoder gives the mean face and all
        # outputs have one scale.
        self.to_base = nn.Linear(3 * hidden, style_dim)
        self.to_offsets = nn.Linear(3 * hidden, n_styles * style_dim)
        for layer in (self.to_base, self.to_offsets):
            nn.init.normal_(layer.weight, std=1e-3)
            nn.init.zeros_(layer.bias)
        self.register_buffer("latent_mean", torch.zeros(style_dim))
        self.register_buffer("latent_std", torch.ones(style_dim))

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of :attr:`Encoding.features`, finest first: strides 2, 4, 8, 16, 32."""
        width = self.lateral["8"].out_channels
        return (EfficientNetLite.channels[2], EfficientNetLite.channels[4], width, width, width)

    def forward(self, image: Tensor) -> Encoding:
        """See :meth:`Encoder.forward`; of a 256 px input maps of 128, 64, 32, 16 and 8 px."""
        maps, pyramid, summary = self._look(self.resized(image))
        base = self.to_base(summary).unsqueeze(1)
        offsets = self.to_offsets(summary).unflatten(1, (self.n_styles, self.style_dim))
        latents = self.latent_mean + self.latent_std * (base + offsets).float()
        return Encoding(latents, (maps[2], maps[4], pyramid[8], pyramid[16], pyramid[32]))

    def correct(self, image: Tensor, latents: Tensor, seen: Tensor) -> Tensor:
        image, seen = self.resized(image), self.resized(seen)
        added = self.feedback(torch.cat((image, image - seen), 1))
        _, _, summary = self._look(image, {8: added})
        correction = self.to_correction(summary).unflatten(1, (self.n_styles, self.style_dim))
        return latents + self.latent_std * correction.float()

    def _look(
        self, image: Tensor, added: dict[int, Tensor] | None = None
    ) -> tuple[dict[int, Tensor], dict[int, Tensor], Tensor]:
        """The trunk's maps, the pyramid and the summary vector."""
        maps = self.trunk(image, added)
        pyramid = {32: self.lateral["32"](maps[32])}
        for stride in (16, 8):
            up = F.interpolate(pyramid[2 * stride], scale_factor=2.0, mode="nearest")
            pyramid[stride] = self.smooth[str(stride)](self.lateral[str(stride)](maps[stride]) + up)
        parts = {"32": maps[32], "16": pyramid[16], "8": pyramid[8]}
        return maps, pyramid, torch.cat([self.summaries[s](x) for s, x in parts.items()], 1)
