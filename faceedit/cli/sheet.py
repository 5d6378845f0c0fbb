"""The labelled sheet of tiles that ``faceedit sweep`` draws."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from faceedit import images
from faceedit.crop import CropFrame, extract
from faceedit.images import ImageSource
from faceedit.results import EditResult, Inversion

__all__ = ["draw", "explain", "tile"]

Tile = tuple[str, Image.Image]


def tile(picture: ImageSource, inversion: Inversion, size: int) -> Image.Image:
    """Cut the inverted face out of a picture.

    Args:
        picture: the photograph of `inversion`, edited or not; or a picture of the face alone.
        inversion: tells where the face lies, if it has its photograph.
        size: side of the tile.
    """
    pixels = images.read(picture).pixels
    frame = None if inversion.picture is None else inversion.frame
    face = extract(pixels, frame or CropFrame.whole(pixels.shape[1], pixels.shape[0]), size)
    return _picture(face, size)


def explain(result: EditResult, size: int) -> Image.Image:
    """How each face of a result came about: figures 4 and 5 of the paper for the user's own picture.

    Args:
        result: of an edit with ``explain=True``.
        size: side of a tile.

    Returns:
        A row a face: the photograph, its reconstruction, the style branch's picture, the relevance map of
        each fused level (white where the photograph's content stays), the refined picture, the result.
    """
    rows = []
    for face in result.faces:
        steps = [("photograph", face.crop), ("reconstruction", face.reconstruction), ("style branch", face.edited)]
        steps += [(f"relevance {len(m)} px", m.expand(3, -1, -1)) for m in face.relevance]
        steps += [("refined", face.refined), ("result", face.output)]
        rows.append([(label, _picture(x, size)) for label, x in steps if x is not None])
    return draw(rows, size)


def _picture(x: Tensor, size: int) -> Image.Image:
    """``(3, S, S)`` in [0, 1] as a tile; maps smaller than it keep their pixels' edges."""
    picture = Image.fromarray((x * 255).round().byte().permute(1, 2, 0).contiguous().numpy())
    if picture.width == size:
        return picture
    return picture.resize((size, size), Image.Resampling.NEAREST if picture.width < size else Image.Resampling.BOX)


def draw(rows: Sequence[Sequence[Tile]], size: int) -> Image.Image:
    """Lay rows of square tiles on a sheet, each tile with its label below it.

    Args:
        rows: (label, picture of `size` x `size`) from left to right.
        size: side of a tile.

    Returns:
        An RGB picture: `size` wide for each tile of the longest row, and `size` plus
        ``max(size // 8, 16)`` high for each row.
    """
    band = max(size // 8, 16)
    font = ImageFont.load_default(band * 0.7)
    sheet = Image.new("RGB", (size * max(map(len, rows)), (size + band) * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, (label, picture) in enumerate(row):
            left, top = x * size, y * (size + band)
            sheet.paste(picture, (left, top))
            middle = (left + size / 2, top + size + band / 2)
            pen.text(middle, label, fill="black", font=font, anchor="mm")
    return sheet
