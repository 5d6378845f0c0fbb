"""The pictures of the evaluation: heatmaps of directions with their edits, and photographs x attributes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from faceedit.directions import Directions
from faceedit.results import Inversion
from faceedit.train.measurement import Faces
from faceedit.train.metrics import sparsity

__all__ = ["directions_figure", "grids", "heatmap", "photograph_sheets"]

_TILE = 192  # side of a face, pixels
_HEAT = (512, _TILE)  # a heatmap
_GAP, _HEAD = 6, 18
_RAMP = np.array([(255, 255, 255), (254, 217, 118), (227, 26, 28), (60, 0, 30)], np.float64)  # |d| from 0 up


def heatmap(direction: Tensor, size: tuple[int, int] = _HEAT, peak: float | None = None) -> NDArray[np.uint8]:
    """|d| in colour: rows of W+ downwards, its dimensions across; exact zeros are white.

    Args:
        direction: ``(n_styles, dim)``.
        size: Width and height in pixels. Narrower than `dim`, a pixel shows the largest of its entries.
        peak: |d| of the darkest colour; the direction's largest if None.

    Returns:
        ``(height, width, 3)`` uint8.
    """
    strength = direction.detach().float().abs()
    peak = peak or float(strength.max()) or 1.0
    if strength.shape[1] > size[0]:
        strength = F.adaptive_max_pool1d(strength[None], size[0])[0]
    position = (strength / peak).clamp(0, 1).sqrt().numpy() * (len(_RAMP) - 1)  # small entries stay visible
    lower = np.minimum(position.astype(int), len(_RAMP) - 2)
    mix = (position - lower)[..., None]
    colours = (_RAMP[lower] * (1 - mix) + _RAMP[lower + 1] * mix).round().astype(np.uint8)
    return np.array(Image.fromarray(colours).resize(size, Image.Resampling.NEAREST))


def _tile(picture: Tensor, size: int = _TILE) -> Image.Image:
    """``(3, S, S)`` in [0, 1], or uint8, as a square picture."""
    if picture.dtype == torch.uint8:
        picture = picture / 255
    small = F.interpolate(picture[None].float(), (size, size), mode="bilinear", antialias=True)[0]
    return Image.fromarray((small.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def directions_figure(
    examples: Mapping[str, Sequence[int]], directions: Directions, faces: Faces,
    without: Directions | None = None, faces_without: Faces | None = None,
) -> Image.Image:  # fmt: skip
    """Per attribute a heatmap, and faces unedited and at +1; the same for directions trained without L_spa.

    Args:
        examples: Attribute to the faces that show it; one row of the figure each.
        directions: Sparse ones.
        faces: Are shown edited with them.
        without: The same attributes, trained without L_spa.
        faces_without: The same faces, edited with those.

    Source: figure 3 of the paper.
    """
    blocks = [("with L_spa" if without else "|d|", directions, faces)]
    if without is not None and faces_without is not None:
        blocks.append(("without L_spa", without, faces_without))
    block = _HEAT[0] + _GAP + 2 * max(map(len, examples.values())) * _TILE + 2 * _GAP
    sheet = Image.new("RGB", (block * len(blocks), (_HEAD + _TILE + _GAP) * len(examples)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (name, rows) in enumerate(examples.items()):
        top = i * (_HEAD + _TILE + _GAP)
        plain = faces.draw(rows) if rows else ()
        for j, (label, set_, shown) in enumerate(blocks):
            if name not in set_.names:
                continue
            vector, left = set_.vectors[name], j * block
            text = f"{name}, {label}: {vector.shape[0]} rows x {vector.shape[1]}, {100 * sparsity(vector):.1f} % non-zero"
            draw.text((left + 2, top + 3), text, fill="black")
            sheet.paste(Image.fromarray(heatmap(vector)), (left, top + _HEAD))
            edited = shown.draw(rows, name, 1.0) if rows else ()
            for k, pair in enumerate(zip(plain, edited)):
                for x, title, picture in zip((2 * k, 2 * k + 1), ("unedited", f"{name} +1"), pair):
                    x = left + _HEAT[0] + _GAP + x * _TILE
                    draw.text((x + 2, top + 3), title, fill="black")
                    sheet.paste(_tile((picture + 1) / 2), (x, top + _HEAD))
    return sheet


def grids(
    titles: Sequence[str], rows: Sequence[Sequence[Tensor | None]], size: int = _TILE, per_sheet: int = 10
) -> Iterator[Image.Image]:
    """Rows of pictures below the titles of their columns, `per_sheet` rows a sheet.

    Args:
        titles: One a column.
        rows: Of pictures ``(3, S, S)`` in [0, 1], or uint8; None leaves a place white.
        size: Side of a tile in pixels.
        per_sheet: Rows on one sheet.
    """
    for start in range(0, len(rows), per_sheet):
        part = rows[start : start + per_sheet]
        sheet = Image.new("RGB", (size * len(titles), _HEAD + size * len(part)), "white")
        draw = ImageDraw.Draw(sheet)
        for column, title in enumerate(titles):
            draw.text((column * size + 2, 3), title, fill="black")
        for i, row in enumerate(part):
            for column, picture in enumerate(row):
                if picture is not None:
                    sheet.paste(_tile(picture, size), (column * size, _HEAD + i * size))
        yield sheet


def photograph_sheets(
    names: Sequence[str], inversions: Sequence[Inversion], edited: Mapping[tuple[int, str], Tensor], rows: int = 10
) -> Iterator[Image.Image]:
    """Photographs down, attributes at +1 across; `rows` photographs a sheet.

    Args:
        names: Attributes, one column each, after the crop and its inversion.
        inversions: Of the photographs.
        edited: (number of the inversion, attribute) to the edited crop ``(3, S, S)`` uint8.
        rows: Photographs on one sheet.

    Source: figure 7 of the paper.
    """
    pictures = [[x.crop, x.reconstruction, *(edited[i, name] for name in names)] for i, x in enumerate(inversions)]
    yield from grids(("photograph", "inversion", *(f"{name} +1" for name in names)), pictures, per_sheet=rows)
