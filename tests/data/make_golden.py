"""Make golden_mobile_stylegan.safetensors: what the default generator gives, in float32.

``python tests/data/make_golden.py --generator GENERATOR.safetensors``

The file is the generator in float32, from ``faceedit convert mobile-stylegan`` or, with its preview
head fitted, from ``python -m faceedit.train preview``; only the latter gives a golden preview. Run
it again only after a deliberate change of the weights, never to make a failing test pass.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from faceedit.models.mobile_stylegan import MobileStyleGAN

GOLDEN = Path(__file__).with_name("golden_mobile_stylegan.safetensors")


def codes(w: Tensor) -> Tensor:
    """W ``(2, 512)`` to W+ ``(2, 16, 512)``: one face, and one whose rows alternate between both."""
    alternating = w[torch.arange(16) % 2]
    return torch.stack([w[0].expand(16, -1), alternating])


def digest(name: str, picture: Tensor) -> dict[str, Tensor]:
    """A sixteenth of a picture's pixels in each direction, and the means of its 16 x 16 blocks."""
    block = picture.shape[-1] // 16
    return {
        f"{name}.pixels": picture[..., block // 8 :: block // 4, block // 8 :: block // 4].contiguous(),
        f"{name}.blocks": F.avg_pool2d(picture, block),
    }


@torch.no_grad()
def pictures(generator: MobileStyleGAN, w: Tensor, preview: bool) -> dict[str, Tensor]:
    """Digests of the pictures of two faces' W ``(2, 512)``."""
    found = digest("image", generator(codes(w)))
    return found | (digest("preview", generator.preview(codes(w))) if preview else {})


def main() -> None:
    """Command line entry; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generator", type=Path, required=True)
    weights = load_file(parser.parse_args().generator)
    generator = MobileStyleGAN()
    preview = any(name.startswith("preview_head.") for name in weights)
    generator.load_state_dict(weights, strict=preview)
    z = torch.randn(2, 512, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        w = generator.eval().map(z, truncation=0.7)
    tensors = {"z": z, "w": w, **pictures(generator, w, preview)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, GOLDEN)


if __name__ == "__main__":
    main()
