"""A control for what glasses cost: frames painted over the eyes, all other pixels left as they are."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from faceedit.train.crops import to_unit

__all__ = ["WIDTHS", "with_frames"]

WIDTHS = (2, 4, 6)  # of the frames' lines, in pixels of a picture of 256
_COLOUR = (30, 25, 25)
# In parts of an FFHQ crop's side. Eyes lie at (.377, .469) and (.623, .469).
_LENSES = ((0.275, 0.406, 0.479, 0.547), (0.521, 0.406, 0.725, 0.547))
_CORNER = 0.035
_LINES = ((0.477, 0.457, 0.523, 0.457), (0.227, 0.441, 0.277, 0.449), (0.723, 0.449, 0.773, 0.441))  # bridge and hinges


def with_frames(pictures: Tensor, width: int) -> Tensor:
    """Aligned faces with dark frames painted on.

    Args:
        pictures: FFHQ crops ``(B, 3, S, S)`` in [-1, 1].
        width: Of the lines, in pixels.

    Returns:
        As ``pictures``, rounded to 8 bits.
    """
    painted = []
    for picture in pictures:
        pixels = ((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
        image, side = Image.fromarray(pixels), picture.shape[-1]
        draw = ImageDraw.Draw(image)
        for lens in _LENSES:
            draw.rounded_rectangle([side * edge for edge in lens], side * _CORNER, outline=_COLOUR, width=width)
        for line in _LINES:
            draw.line([side * end for end in line], fill=_COLOUR, width=width)
        painted.append(np.array(image))
    return to_unit(np.stack(painted)).to(pictures)
