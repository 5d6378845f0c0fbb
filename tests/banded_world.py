"""A "generator" whose pictures are bands of brightness and a "classifier" that reads them: attributes whose causes are known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

DIM, ROWS, SIZE = 12, 8, 80
NAMES = ("Smiling", "Young", "Male", "No_Beard", "Other")
ENTRIES = {"Smiling": (2, 4), "Young": (0, 8), "Male": (5, 6), "No_Beard": (6, 7), "Other": (7, 8)}
"""Output to the rows (first, stop) of W+ that it is read from; the entry is the output's number."""


class Generator(nn.Module):
    """Output i is the mean of entry i over its rows, times 4, and the brightness of band i."""

    n_styles, style_dim = ROWS, DIM

    def __init__(self) -> None:
        super().__init__()
        self.mean_latent = nn.Buffer(torch.zeros(DIM))
        weight = torch.zeros(len(NAMES), ROWS, DIM)
        for i, name in enumerate(NAMES):
            first, stop = ENTRIES[name]
            weight[i, first:stop, i] = 4 / (stop - first)
        self.weight = nn.Buffer(weight)

    def map(self, z: Tensor, truncation: float = 1.0) -> Tensor:
        return truncation * z

    def truth(self, latents: Tensor) -> Tensor:
        return torch.einsum("krd,brd->bk", self.weight.to(latents), latents)

    def preview(self, latents: Tensor) -> Tensor:
        bands = self.truth(latents).div(40)[:, None, :, None]
        return bands.expand(-1, 3, -1, SIZE).repeat_interleave(SIZE // len(NAMES), 2)


class Classifier(nn.Module):
    """Reads the bands back."""

    names = NAMES

    def forward(self, views: Tensor) -> Tensor:
        return views.float().mean((1, 3)).unflatten(1, (len(NAMES), -1)).mean(2) * 40


class Distance(nn.Module):
    """In place of LPIPS: mean square."""

    def features(self, x: Tensor) -> list[Tensor]:
        return [x]

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        return (a[0] - b[0]).square().mean((1, 2, 3))
