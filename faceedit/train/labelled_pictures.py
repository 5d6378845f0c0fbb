"""Pictures with an attribute and pictures without it: two folders, or one with a label file."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from pathlib import Path

from faceedit.errors import UnknownAttributeError, UsageError

SUFFIXES = frozenset(".jpg .jpeg .png .webp .tif .tiff .avif .heic .heif .jp2 .bmp .ppm".split())
YES = frozenset(("1", "yes", "true", "with", "y"))
NO = frozenset(("0", "-1", "no", "false", "without", "n"))


def list_pictures(folder: Path) -> list[Path]:
    """The pictures in a folder and below, sorted.

    Raises:
        UsageError: If there is no such folder, or no picture in it.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise UsageError(f"{str(folder)!r} is no folder with pictures: give one whose pictures are all of one side")
    return found


def read_labels(path: Path, attribute: str) -> dict[str, bool]:
    """Read who has the attribute.

    Two forms: a line ``name,label`` a picture, with or without a header, where a label is 1, yes,
    true or with, or else 0, -1, no, false or without; or a table of several attributes, as CSV or
    as CelebA's ``list_attr_celeba.txt`` (a count, the attributes, a line a picture).

    Args:
        path: The file.
        attribute: Which column of a table; case, "-", "_" and spaces make no difference.

    Returns:
        File name to whether it has the attribute.

    Raises:
        UsageError: If the file is not there, a label is none of these, or no column has this name.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the label file {str(path)!r} cannot be read ({error})") from None
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if lines and lines[0][1].strip().isdigit():
        del lines[0]
    rows = [(n, next(csv.reader([line])) if "," in line else line.split()) for n, line in lines]
    rows = [(n, [cell.strip() for cell in cells]) for n, cells in rows]
    if not rows:
        raise UsageError(f"the label file {str(path)!r} is empty")
    header, width = rows[0][1], len(rows[-1][1])
    if header[-1].lower() not in YES | NO:
        del rows[0]
    column = 1
    if width > 2:
        names = [fold(name) for name in header[-(width - 1) :]]
        if fold(attribute) not in names:
            raise UnknownAttributeError(attribute, header[-(width - 1) :])
        column = 1 + names.index(fold(attribute))
    labels = {}
    for number, cells in rows:
        label = cells[column].lower() if len(cells) == width > 1 else ""
        if label not in YES | NO:
            raise UsageError(
                f"{str(path)!r}, line {number}: {','.join(cells)!r} is not a name and a label, such as 'a.jpg,1' or 'a.jpg,0'"
            )
        labels[cells[0]] = label in YES
    return labels


def fold(name: str) -> str:
    """A name as all its spellings share it: lower case, "_" for "-" and spaces."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def draw(pictures: Sequence[Path], most: int, seed: int) -> list[Path]:
    """At most so many of the pictures, by lot, in their order."""
    chosen = set(random.Random(seed).sample(range(len(pictures)), min(most, len(pictures))))
    return [picture for i, picture in enumerate(pictures) if i in chosen]
