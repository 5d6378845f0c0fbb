"""Make golden_stylegan2.safetensors: a small network and what it draws, by the NumPy reference.

``PYTHONPATH=tests python tests/data/make_golden_stylegan2.py``

Not one of our own modules takes part, so the file is what ours must agree with.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from stylegan2_reference import Reference, rosinality

GOLDEN = Path(__file__).with_name("golden_stylegan2.safetensors")


def main() -> None:
    """Command line entry; see the module's docstring."""
    network = rosinality({4: 10, 8: 8, 16: 6, 32: 4}, style_dim=12, depth=4, seed=7)
    random = torch.Generator().manual_seed(8)
    z, latent_avg = torch.randn(2, 12, generator=random), torch.randn(12, generator=random)
    reference = Reference(network)
    mean = latent_avg.double().numpy()
    w = np.stack([mean + 0.7 * (reference.map(one.double().numpy()) - mean) for one in z])
    code = np.stack([np.tile(w[0], (8, 1)), w[np.arange(8) % 2]])  # a face, and one of rows that alternate
    code = torch.from_numpy(code).float()
    drawn = [reference.draw(one.double().numpy()) for one in code]
    tensors = {f"network.{name}": value for name, value in network.items()}
    tensors |= {"latent_avg": latent_avg, "z": z, "w": torch.from_numpy(w), "code": code}
    tensors["image"] = torch.from_numpy(np.stack([images[-1] for images, _ in drawn]))
    for level in range(4):
        tensors[f"features.{level}"] = torch.from_numpy(np.stack([features[level] for _, features in drawn]))
    save_file({name: value.float().contiguous() for name, value in tensors.items()}, GOLDEN)


if __name__ == "__main__":
    main()
