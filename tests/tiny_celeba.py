"""A CelebA folder of noise pictures, for the tests of what reads one."""

import torch
from PIL import Image


def write_celeba(folder, n):
    """A tiny data set: `Bright` pictures are bright, in either half; `Other` means nothing."""
    (folder / "images").mkdir()
    random = torch.Generator().manual_seed(0)
    lines = ["file,Bright,Other"]
    for i in range(1, n + 1):
        bright = i % 4 in (3, 0)
        pixels = torch.randint(0, 100, (109, 89, 3), generator=random, dtype=torch.uint8) + 150 * bright
        Image.fromarray(pixels.byte().numpy()).save(folder / "images" / f"{i:06d}.jpg")
        lines.append(f"{i:06d}.jpg,{1 if bright else -1},{1 if i % 3 else -1}")
    (folder / "attributes.csv").write_text("\n".join(lines) + "\n")
