"""LPIPS v0.1 with its AlexNet, the perceptual distance of the losses and tables.

Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric"
(arXiv 1801.03924); weights BSD.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

# (out channels, kernel, stride, padding, max-pool before) of AlexNet's five convolutions.
_LAYERS = ((64, 11, 4, 2, False), (192, 5, 1, 2, True), (384, 3, 1, 1, True), (256, 3, 1, 1, False), (256, 3, 1, 1, False))


class LPIPS(nn.Module):
    """Perceptual distance between pictures in [-1, 1]; 0 means alike.

    Frozen: gradients flow to the pictures, never to the weights.
    """

    def __init__(self) -> None:
        super().__init__()
        n_in = 3
        for i, (n_out, kernel, _, _, _) in enumerate(_LAYERS):
            self.register_module(f"conv{i}", nn.Conv2d(n_in, n_out, kernel))
            self.register_parameter(f"lin{i}", nn.Parameter(torch.zeros(1, n_out, 1, 1)))
            n_in = n_out
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)
        self.requires_grad_(False)

    @classmethod
    def from_file(cls, path: str | Path) -> LPIPS:
        """Load ``conv0..4.{weight,bias}`` and ``lin0..4.weight`` from a safetensors file."""
        state = load_file(str(path))
        for i in range(len(_LAYERS)):
            state[f"lin{i}"] = state.pop(f"lin{i}.weight").reshape(1, -1, 1, 1)
        network = cls()
        network.load_state_dict(state)
        return network.eval()

    def features(self, x: Tensor) -> list[Tensor]:
        """Five unit-normalised feature maps of ``(B, 3, H, W)`` in [-1, 1]."""
        x = (x - self.shift) / self.scale
        taps = []
        for i, (_, _, stride, padding, pool) in enumerate(_LAYERS):
            if pool:
                x = F.max_pool2d(x, 3, 2)
            conv = self.get_submodule(f"conv{i}")
            x = F.relu(F.conv2d(x, conv.weight, conv.bias, stride, padding))
            taps.append(x / (x.float().square().sum(1, keepdim=True).sqrt() + 1e-10))
        return taps

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Distance ``(B,)`` between two :meth:`features` lists: one side can be kept and reused."""
        total = 0
        for i, (p, q) in enumerate(zip(a, b, strict=True)):
            lin = self.get_parameter(f"lin{i}")
            total = total + ((p - q).square() * lin).sum(1).mean((1, 2))
        return total

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance ``(B,)`` between two batches ``(B, 3, H, W)`` in [-1, 1]."""
        return self.distance(self.features(a), self.features(b))
