"""Pictures with an attribute and pictures without it: two folders, or one with a label file."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from faceedit.errors import DataError, UnknownAttributeError, UsageError
from faceedit.train import labels

SUFFIXES = frozenset(".jpg .jpeg .png .webp .tif .tiff .avif .heic .heif .jp2 .bmp .ppm".split())


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

    Args:
        path: A file as :func:`faceedit.train.labels.read_labels` knows them.
        attribute: Which column of a table; case, "-", "_" and spaces make no difference. If there is only
            one it is taken, whatever it is called.

    Returns:
        File name to whether it has the attribute.

    Raises:
        UsageError: If the file is not there, or a line of it is wrong.
        UnknownAttributeError: If no column has this name.
    """
    try:
        table = labels.read_labels(path)
    except DataError as error:
        raise UsageError(str(error)) from None
    names = [fold(name) for name in table.attributes]
    if len(names) > 1 and fold(attribute) not in names:
        raise UnknownAttributeError(attribute, table.attributes)
    column = names.index(fold(attribute)) if len(names) > 1 else 0
    return {name: bool(row[column]) for name, row in table.rows.items()}


def fold(name: str) -> str:
    """A name as all its spellings share it: lower case, "_" for "-" and spaces."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def draw(pictures: Sequence[Path], most: int, seed: int) -> list[Path]:
    """At most so many of the pictures, by lot, in their order."""
    chosen = set(random.Random(seed).sample(range(len(pictures)), min(most, len(pictures))))
    return [picture for i, picture in enumerate(pictures) if i in chosen]
