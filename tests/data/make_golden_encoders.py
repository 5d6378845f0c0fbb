"""Make golden_encoders.safetensors: what tiny pSp, e4e and ArcFace networks give, by the NumPy reference.

``PYTHONPATH=tests python tests/data/make_golden_encoders.py``

Run it again only after a deliberate change of the reference, never to make a failing test pass.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from irse_reference import (
    TINY, TINY_ENCODER, arcface, arcface_layout, double, encode, encoder_layout, pictures, random_tensors,
)  # fmt: skip
from safetensors.numpy import save_file

GOLDEN = Path(__file__).with_name("golden_encoders.safetensors")


def main() -> None:
    """Write the file."""
    tensors = double(random_tensors(encoder_layout(**TINY_ENCODER)))
    x = pictures().double().numpy()
    found = {}
    for kind in ("psp", "e4e"):
        codes, maps = encode(x, tensors, kind, TINY_ENCODER["n_styles"], TINY["units"])
        found[f"{kind}.codes"] = codes
    found |= {f"maps.{i}": level.mean(1) for i, level in enumerate(maps)}
    tensors = double(random_tensors(arcface_layout(**TINY, size=32, dim=20)))
    found["arcface"] = arcface(pictures(size=32).double().numpy(), tensors, TINY["units"])
    save_file({name: np.ascontiguousarray(value, np.float32) for name, value in found.items()}, GOLDEN)


if __name__ == "__main__":
    main()
