"""The labelled sheet of tiles that ``faceedit sweep`` draws."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from faceedit import images
from faceedit.crop import CropFrame, extract
from faceedit.images import ImageSource
from faceedit.results import Inversion

__all__ = ["draw", "tile"]

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
    return Image.fromarray((face * 255).round().byte().permute(1, 2, 0).contiguous().numpy())


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
