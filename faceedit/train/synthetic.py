"""Generated faces with their true W+ codes: free supervision for every network."""

from __future__ import annotations

import torch
from torch import Tensor

from faceedit.models.generator import Generator


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
