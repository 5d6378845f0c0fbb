"""The interface every encoder implements, so that the editor and the content branch fit any of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class Encoding(NamedTuple):
    """``latents`` ``(B, n_styles, 512)`` and ``features``, finest map first."""

    latents: Tensor
    features: tuple[Tensor, ...]


class Encoder(nn.Module, ABC):
    """E of the paper: an aligned face to its code ``w^p`` in W+ and its 2-D features ``f_enc``.

    ``latent_mean`` and ``latent_std``, ``(512,)``, are those of the generator's W: the units in
    which codes are compared. An encoder may have a mean for each row, ``(n_styles, 512)``.
    ``looks`` is how many corrections inference makes after the first answer; encoders that answer
    once have 0.
    """

    n_styles: int
    style_dim: int
    input_size: int
    looks: int = 0
    latent_mean: Tensor
    latent_std: Tensor

    @property
    @abstractmethod
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of :attr:`Encoding.features`, finest first."""

    @property
    def feature_sizes(self) -> tuple[int, ...]:
        """Sides of :attr:`Encoding.features`: each map is half as large as the one before, the first half the input."""
        return tuple(self.input_size // 2 ** (i + 1) for i in range(len(self.feature_channels)))

    @abstractmethod
    def forward(self, image: Tensor) -> Encoding:
        """The first answer.

        Args:
            image: ``(B, 3, S, S)`` in [-1, 1], aligned faces.

        Returns:
            Codes ``(B, n_styles, 512)`` in float32 and the pyramid of features.
        """

    def correct(self, image: Tensor, latents: Tensor, seen: Tensor) -> Tensor:
        """A better code, from what the present one looks like; for encoders with ``looks`` > 0.

        Args:
            image: ``(B, 3, S, S)`` in [-1, 1], aligned faces.
            latents: ``(B, n_styles, 512)``, their present codes.
            seen: ``(B, 3, T, T)`` in [-1, 1], the generator's picture of those codes.

        Returns:
            ``(B, n_styles, 512)``.
        """
        raise NotImplementedError(f"{type(self).__name__} answers once")

    def resized(self, image: Tensor) -> Tensor:
        """A picture at the size that the network sees."""
        return resized(image, self.input_size)


def resized(image: Tensor, size: int) -> Tensor:
    """Pictures ``(B, 3, S, S)`` at the side ``size``, antialiased."""
    if image.shape[-1] == size:
        return image
    # In float32: on the CPU antialiasing is not implemented for bfloat16.
    small = F.interpolate(image.float(), (size, size), mode="bilinear", antialias=True, align_corners=False)
    return small.to(image.dtype)
