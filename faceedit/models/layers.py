"""Layers that more than one generator is built from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mapping(nn.Module):
    """StyleGAN2's fully connected layers from Z to W.

    The equalised learning rate and its multiplier are folded into the stored weights and biases.

    Args:
        dim: Width of Z and W.
        depth: Number of layers.
    """

    def __init__(self, dim: int = 512, depth: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(depth))

    def forward(self, z: Tensor) -> Tensor:
        """``(B, 512)`` standard normal to ``(B, 512)`` W."""
        w = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.layers:
            w = F.leaky_relu(layer(w), 0.2) * 2**0.5
        return w

    @torch.no_grad()
    def mean(self, n: int = 100_000) -> Tensor:
        """Mean of W ``(512,)`` over ``n`` fixed random draws."""
        z = torch.randn(n, self.layers[0].in_features, generator=torch.Generator().manual_seed(0))
        return self(z.to(self.layers[0].weight)).mean(0)
