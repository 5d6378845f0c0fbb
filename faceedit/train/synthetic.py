"""Generated faces with their true W+ codes: free supervision for every network."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from faceedit.models.generator import Generator
from faceedit.train import processes
from faceedit.train.data import Faces, digest, kept


@torch.no_grad()
def mixed_latents(
    generator: Generator,
    n: int,
    *,
    seed: int,
    truncation: tuple[float, float] = (0.5, 1.0),
    mixing: float = 0.5,
    jitter: float = 0.0,
) -> Tensor:
    """W+ codes that cover more of W+ than plain samples do.

    Args:
        generator: Its mapping network is used.
        n: How many codes.
        seed: Same seed, same codes.
        truncation: Each face draws its own truncation from this interval.
        mixing: Probability that the rows above a random level come from a second face.
        jitter: Standard deviation of the noise added to every row, in units of the standard
            deviation of W; real photographs do not invert to codes with equal rows.

    Returns:
        ``(n, n_styles, 512)``.
    """
    random = torch.Generator().manual_seed(seed)
    dim, rows = generator.style_dim, generator.n_styles
    first, second = generator.map(torch.randn(2 * n, dim, generator=random)).chunk(2)
    scale = first.std(0) if n > 1 else torch.ones(dim)
    low, high = truncation
    psi = torch.rand(2, n, 1, generator=random) * (high - low) + low
    first = generator.mean_latent.lerp(first, psi[0])
    second = generator.mean_latent.lerp(second, psi[1])
    cut = torch.randint(2, rows, (n, 1), generator=random)
    cut[torch.rand(n, 1, generator=random) >= mixing] = rows
    own = torch.arange(rows) < cut
    codes = torch.where(own[..., None], first[:, None], second[:, None])
    if jitter:
        codes = codes + jitter * scale * torch.randn(n, rows, dim, generator=random)
    return codes


def generated_faces(generator: Generator, latents: Tensor, keep: str | Path, full: int = 0) -> Faces:
    """Pictures of codes, by the preview in bfloat16: drawn at the first call and kept.

    Args:
        generator: With a preview; it is left as it is.
        latents: ``(N, n_styles, 512)``.
        keep: ``.npy`` file for the pictures.
        full: Draw whole pictures instead, reduced to this side.

    Returns:
        N faces, in the order of the codes.
    """
    fast = copy.deepcopy(generator).bfloat16().to(memory_format=torch.channels_last)
    device = fast.mean_latent.device

    @torch.no_grad()
    def draw(code: Tensor) -> NDArray[np.uint8]:
        code = code.to(device, torch.bfloat16)
        picture = F.interpolate(fast(code).float(), (full, full), mode="area") if full else fast.preview(code).float()
        picture = picture[0].clamp(-1, 1)
        return ((picture + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()

    def rows() -> Iterator[tuple[str, NDArray[np.uint8]]]:
        bar = tqdm(latents.split(1), desc="generated faces", mininterval=5, disable=processes.rank() > 0)
        for i, code in enumerate(bar):
            yield f"{i:05d}", draw(code)

    key = {"generator": digest(fast.state_dict().values()), "codes": digest([latents])} | ({"full": full} if full else {})
    return kept(keep, key, draw(latents[:1]).shape, rows)
