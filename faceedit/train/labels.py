"""Attribute labels of a data set, and the parts that it is split into by name."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from faceedit.errors import DataError

_YES = frozenset(("1", "yes", "true", "with", "y"))
_NO = frozenset(("0", "-1", "no", "false", "without", "n"))
# first-last of the numbers in the file names, or first-last:step
_RANGE = re.compile(r"(\d+)-(\d+)(?::(\d+))?")


@dataclass(frozen=True)
class Labels:
    """Labels of pictures.

    Args:
        attributes: Names of the K attributes.
        rows: File name -> K times 0 or 1.
    """

    attributes: tuple[str, ...]
    rows: Mapping[str, tuple[int, ...]]

    def tensor(self, names: Sequence[str]) -> Tensor:
        """``(N, K)`` of 0.0 and 1.0 for these pictures, which may be named with their folders.

        Raises:
            DataError: A picture has no labels.
        """
        missing = [name for name in names if Path(name).name not in self.rows]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(names)} pictures have no labels, such as {missing[0]!r}. Add them to the label "
                "file, or take them out of the split."
            )
        return torch.tensor([self.rows[Path(name).name] for name in names], dtype=torch.float32)


def read_labels(path: str | Path) -> Labels:
    """Read CelebA's ``list_attr_celeba.txt``, CelebA-HQ's of that form, or a CSV file.

    The text form has the number of pictures, then the attributes' names, then a line a picture; the
    CSV form a header ``file,ATTRIBUTE,...``, which a file of one attribute, ``name,label`` a line, may
    leave out: it is then called "label". A label is 1, yes, true or with, or else 0, -1, no, false or
    without.

    Raises:
        DataError: The file is missing, or a line does not have a label for each attribute.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The label file {str(path)!r} cannot be read ({error}). Check the path.") from error
    lines = [(number, _cells(line)) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    counted = bool(lines) and lines[0][1][0].isdigit() and len(lines[0][1]) == 1
    body = lines[counted:]
    attributes = ["label"]
    if body and body[0][1][-1].lower() not in _YES | _NO:
        header = body.pop(0)[1]
        spaced = "," not in text and bool(body) and len(header) < len(body[0][1])  # as CelebA's, but for the number
        attributes = header if counted or spaced else header[1:]
    rows = {}
    for number, (name, *labels) in body:
        values = [label.lower() for label in labels]
        if len(values) != len(attributes) or not set(values) <= _YES | _NO:
            raise DataError(
                f"{str(path)!r}, line {number}: {name!r} must have {len(attributes)} labels, such as 1 and 0, one for "
                "each attribute of the header. Correct the line."
            )
        rows[name] = tuple(int(value in _YES) for value in values)
    if not rows or not attributes:
        raise DataError(
            f"{str(path)!r} is empty or holds no labels. It needs a header with attributes and a line a picture."
        )
    return Labels(tuple(attributes), rows)


def _cells(line: str) -> list[str]:
    """The cells of a line, apart by commas or else by spaces."""
    return [cell.strip() for cell in next(csv.reader([line]))] if "," in line else line.split()


def split(names: Sequence[str], parts: Mapping[str, str]) -> dict[str, list[int]]:
    """Divide a data set by name.

    Args:
        names: Of the pictures.
        parts: Part -> which pictures: a text file with a name a line (# begins a comment), or ranges of
            the number in the name, such as "1-7500,9001-9500". "1-7500:2" takes every second one.

    Returns:
        Part -> rows of its pictures, in the order of `names`.

    Raises:
        DataError: Parts overlap, one is empty, a listed name is not there, or a range makes no sense.
    """
    found = {part: _rows(names, part, which) for part, which in parts.items()}
    owners: dict[int, str] = {}
    for part, rows in found.items():
        for row in rows:
            if (owner := owners.setdefault(row, part)) != part:
                both = len(set(found[owner]) & set(rows))
                raise DataError(
                    f"The splits {owner!r} and {part!r} share {both} pictures, such as {names[row]!r}; figures of one "
                    "would be of pictures that the other has seen. Take them out of one."
                )
    return found


def _rows(names: Sequence[str], part: str, which: str) -> list[int]:
    ranges = [_RANGE.fullmatch(piece.strip()) for piece in which.split(",")]
    if all(ranges):
        wanted: set[int] = set()
        for match in ranges:
            first, last, step = int(match[1]), int(match[2]), int(match[3] or 1)
            if first > last or step < 1:
                raise DataError(f"Split {part!r}: the range {match[0]!r} is empty. Write it as FIRST-LAST.")
            wanted |= set(range(first, last + 1, step))
        rows = [i for i, name in enumerate(names) if (number := _number(name)) is not None and number in wanted]
    else:
        rows = _listed(names, part, Path(which))
    if not rows:
        raise DataError(f"Split {part!r} ({which}) holds none of the {len(names)} pictures. Correct it.")
    return rows


def _number(name: str) -> int | None:
    digits = re.findall(r"\d+", Path(name).stem)
    return int(digits[-1]) if digits else None


def _listed(names: Sequence[str], part: str, path: Path) -> list[int]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"Split {part!r}: {str(path)!r} is neither a range such as 1-7500 nor a readable text file of names ({error})."
        ) from error
    by_name: dict[str, int] = {}
    for i, name in enumerate(names):
        for known in (name, Path(name).name, Path(name).stem):
            by_name.setdefault(known, i)
    listed = [name for line in lines if (name := line.partition("#")[0].strip())]
    missing = [name for name in listed if name not in by_name]
    if missing:
        raise DataError(
            f"Split {part!r}: {len(missing)} of {len(listed)} names in {str(path)!r} are not in the data, such as "
            f"{missing[0]!r}. Correct the list."
        )
    return sorted({by_name[name] for name in listed})
