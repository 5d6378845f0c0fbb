"""The CelebA subset: its pictures and labels, its parts, and the halves that two classifiers share out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from faceedit.errors import DataError
from faceedit.train.labels import read_labels
from faceedit.train.views import CELEBA_SIZE

# First and last picture (inclusive, numbered from 1) of each part.
SPLITS = {"train": (1, 7500), "choose": (7501, 8500), "report": (8501, 10000)}
# Remainder of a picture's number by 2. CelebA lists people in no order, so both halves are alike.
HALVES = {"A": 1, "B": 0}


def split_files(part: str, half: str | None = None) -> list[str]:
    """File names of one part of the subset.

    Args:
        part: "train", "choose" or "report".
        half: "A" for odd numbers only, "B" for even ones; None for both. What judges an edit must
            not have learnt from the pictures that taught the classifier behind it.
    """
    first, last = SPLITS[part]
    return [f"{n:06d}.jpg" for n in range(first, last + 1) if half is None or n % 2 == HALVES[half]]


def read_celeba(folder: str | Path, files: Sequence[str]) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Decode CelebA pictures and their labels once, into memory.

    Args:
        folder: Holds ``attributes.csv`` (labels 1 / -1) and ``images/`` (89x109).
        files: File names to read.

    Returns:
        Pictures ``(N, 3, 109, 89)`` uint8, labels ``(N, K)`` of 0 and 1, and the K names.

    Raises:
        DataError: The labels cannot be read, or a picture has none.
    """
    folder = Path(folder)
    table = read_labels(folder / "attributes.csv")
    labels = table.tensor(files)
    width, height = CELEBA_SIZE
    pictures = torch.empty(len(files), 3, height, width, dtype=torch.uint8)
    for i, name in enumerate(files):
        try:
            picture = Image.open(folder / "images" / name)
        except OSError as error:
            raise DataError(f"{str(folder / 'images' / name)!r} cannot be read: {error}") from None
        with picture:
            if picture.size != CELEBA_SIZE:
                size = f"{picture.width}x{picture.height}"
                raise DataError(f"{name} in {str(folder)!r} has {size} pixels, not {width}x{height}.")
            pictures[i] = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    return pictures, labels, table.attributes
