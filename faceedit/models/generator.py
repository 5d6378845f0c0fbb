"""The interface every generator implements, so that encoder, directions and fusion fit any of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

LevelHook = Callable[[int, Tensor], Tensor]
"""Called as ``hook(level, features)`` after each level; what it returns goes on to the next level.

This is where content features enter the generator (paper, equation 7).
"""


class GeneratorOutput(NamedTuple):
    """Picture ``(B, 3, R, R)``, nominally in [-1, 1] and not clipped, and the features per level."""

    image: Tensor
    features: tuple[Tensor, ...]


class Generator(nn.Module, ABC):
    """A StyleGAN-like generator seen as a mapping network and a stack of levels.

    Level ``i`` works at ``level_sizes[i]`` pixels with ``level_channels[i]`` channels and reads the
    rows ``style_rows(i)`` of W+. Previews walk through levels 0 to ``preview_level``.
    Parameters are frozen: training moves codes and other networks.
    """

    resolution: int
    n_styles: int
    style_dim: int = 512
    level_sizes: tuple[int, ...]
    level_channels: tuple[int, ...]
    preview_level: int
    mapping: nn.Module
    mean_latent: Tensor

    def style_rows(self, level: int) -> range:
        """Rows of W+ read by ``level``."""
        return range(1) if level == 0 else range(2 * level - 1, 2 * level + 1)

    def map(self, z: Tensor, truncation: float = 1.0) -> Tensor:
        """Map noise to W.

        Args:
            z: ``(B, 512)``, standard normal.
            truncation: 1 leaves w alone, 0 gives the mean latent.

        Returns:
            ``(B, 512)``.
        """
        w = self.mapping(z)
        return w if truncation == 1 else self.mean_latent.lerp(w, truncation)

    @abstractmethod
    def features(self, latents: Tensor, last: int) -> tuple[Tensor, ...]:
        """The feature maps of levels 0 to ``last``, and no picture: the first part of a pass."""

    @abstractmethod
    def synthesize(
        self, latents: Tensor, hook: LevelHook | None = None, start: Sequence[Tensor] = ()
    ) -> GeneratorOutput:
        """Render W+ codes and keep every level's features.

        Args:
            latents: ``(B, n_styles, 512)``.
            hook: May replace the features of each level on their way.
            start: The maps of the first levels, made before and passed on as they are: the pass begins
                after them, and the hook does not see them.

        Returns:
            Picture and one feature map ``(B, level_channels[i], level_sizes[i], level_sizes[i])``
            per level, as passed on (after the hook).
        """

    @abstractmethod
    def forward(self, latents: Tensor) -> Tensor:
        """Picture ``(B, 3, R, R)``, nominally in [-1, 1], of W+ codes ``(B, n_styles, 512)``."""

    @abstractmethod
    def preview(self, latents: Tensor, hook: LevelHook | None = None, start: Sequence[Tensor] = ()) -> Tensor:
        """A smaller picture, nominally in [-1, 1], at a fraction of the cost of a full pass."""

    def broadcast(self, w: Tensor) -> Tensor:
        """W ``(B, 512)`` to W+ ``(B, n_styles, 512)``, the same row everywhere."""
        return w.unsqueeze(-2).expand(*w.shape[:-1], self.n_styles, self.style_dim)

    @torch.no_grad()
    def sample(
        self, n: int, *, truncation: float = 0.7, seed: int | None = None
    ) -> Tensor:
        """Draw ``n`` W+ codes ``(n, n_styles, 512)`` of random faces."""
        random = torch.Generator().manual_seed(seed) if seed is not None else None
        z = torch.randn(n, self.style_dim, generator=random).to(self.mean_latent)
        return self.broadcast(self.map(z, truncation))
