"""StyleSpace channel lists as offsets in W+, as far as W+ can express them.

A channel is one scale of one modulated convolution, an affine function of a row of W+. Moving one
channel alone means solving that map for the row, together with the other layers that read it. Where
fewer channels read the row than W has dimensions, that succeeds with a small change of the row. At the
coarse levels, with as many or more, the answer is often ten times longer than W is wide, and the result
would be no face. Those lists are refused: the channel exists in S only.

Source: Wu et al., "StyleSpace Analysis" (arXiv 2011.12799); layers are numbered as there, image
heads included: at 1024 px from 0 to 25, of which 1, 4, ... 25 are image heads.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from faceedit.errors import ConversionError
from faceedit.models.stylegan2 import StyleGAN2

__all__ = ["Channel", "looks_like", "offset", "read"]

_LINE = re.compile(r"\(?\s*(\d{1,3})\s*[_,\s]\s*(\d{1,5})\s*\)?(?:[,:\s]\s*([-+.\deE]+))?")
_MAX_BYTES = 1_000_000
_SAMPLES = 1000
_MAX_RESIDUE = 0.1


class Channel(NamedTuple):
    """One channel and how far strength 1.0 moves it."""

    layer: int
    channel: int
    amount: float


def looks_like(path: Path) -> bool:
    """Whether a file is text that begins like a channel list."""
    with path.open("rb") as file:
        start = file.read(4096)
    try:
        lines = start.decode("ascii").splitlines()
    except UnicodeDecodeError:
        return False
    for line in filter(None, map(_bare, lines)):
        return line.startswith("[") or _LINE.fullmatch(line) is not None
    return False


def read(path: Path) -> list[Channel]:
    """Read a list: JSON ``[[layer, channel], [layer, channel, amount], ...]``, or text.

    Text has one channel a line, ``6 501``, ``6_501 -10`` or ``(6, 501): 3.5``; ``#`` begins a comment.
    The amount is 1 where none is given.

    Raises:
        ConversionError: a line or entry is of another form, or the list is empty or over 1 MB.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise ConversionError(f"{str(path)!r} is too large for a list of channels.")
    try:
        text = path.read_text(encoding="ascii")
    except UnicodeDecodeError as error:
        raise ConversionError(f"{str(path)!r} is no text: {error}") from error
    rows = _from_json(path, text) if text.lstrip().startswith("[") else _from_lines(path, text)
    channels = []
    for where, row in rows:
        numbers = [float(number) for number in row]
        if len(numbers) not in (2, 3) or not all(map(math.isfinite, numbers)) or any(n < 0 or n % 1 for n in numbers[:2]):
            raise ConversionError(f"{str(path)!r}, {where}: {row!r:.80} is not layer, channel and, perhaps, amount.")
        channels.append(Channel(int(numbers[0]), int(numbers[1]), numbers[2] if numbers[2:] else 1.0))
    if not channels:
        raise ConversionError(f"{str(path)!r} lists no channel.")
    return channels


def _from_json(path: Path, text: str) -> list[tuple[str, Sequence[float]]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{str(path)!r} is not JSON ({error}).") from error
    for i, row in enumerate(rows):
        if not isinstance(row, list) or not all(type(number) in (int, float) for number in row):
            raise ConversionError(f"{str(path)!r}, entry {i}: {row!r:.80} is no list of numbers.")
    return [(f"entry {i}", row) for i, row in enumerate(rows)]


def _from_lines(path: Path, text: str) -> list[tuple[str, Sequence[float]]]:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not (bare := _bare(line)):
            continue
        match = _LINE.fullmatch(bare)
        try:
            rows.append((f"line {number}", [float(part) for part in match.groups() if part]))
        except (AttributeError, ValueError):
            raise ConversionError(
                f"{str(path)!r}, line {number}: {bare[:80]!r} is not layer, channel and, perhaps, amount."
            ) from None
    return rows


def _bare(line: str) -> str:
    return line.partition("#")[0].strip()


@torch.no_grad()
def offset(channels: Sequence[Channel], generator: StyleGAN2, step: float = 1.0) -> Tensor:
    """The smallest change of W+ that moves these channels and no other of the same layers.

    Args:
        channels: as from :func:`read`.
        generator: whose channels they are.
        step: the amounts are multiplied by this.

    Returns:
        ``(n_styles, style_dim)``, float32.

    Raises:
        ConversionError: a channel does not exist, or W+ cannot express its change.
    """
    layers = _affines(generator)
    wanted: dict[int, dict[tuple[int, int], float]] = {}
    for layer, channel, amount in channels:
        if layer >= len(layers) or channel >= layers[layer][1].out_features:
            exists = layer < len(layers)
            size = f"it has {layers[layer][1].out_features} channels" if exists else f"there are {len(layers)} layers"
            raise ConversionError(f"There is no channel {channel} in layer {layer} of this generator: {size}.")
        targets = wanted.setdefault(layers[layer][0], {})
        targets[layer, channel] = targets.get((layer, channel), 0.0) + amount * step
    w = generator.map(torch.randn(_SAMPLES, generator.style_dim, generator=torch.Generator().manual_seed(0)))
    radius = float((w - w.mean(0)).norm(dim=1).mean())
    vector = torch.zeros(generator.n_styles, generator.style_dim)
    for row, targets in wanted.items():
        matrix, target = [], []
        for layer, (other, affine) in enumerate(layers):
            if other == row:
                matrix.append(affine.weight)
                target.append(torch.tensor([targets.get((layer, c), 0.0) for c in range(affine.out_features)]))
        a, b = torch.cat(matrix).double(), torch.cat(target).double()
        change = torch.linalg.pinv(a) @ b
        residue, length = float((a @ change - b).norm() / b.norm()), float(change.norm())
        if residue > _MAX_RESIDUE or length > radius:
            names = ", ".join(f"({layer}, {channel})" for layer, channel in targets)
            raise ConversionError(
                f"Row {row} of W+ cannot move {names} alone: it would take a change of length {length:.3g}, where W "
                f"reaches {radius:.3g} from its mean, and leave {residue:.0%} undone. Such a channel exists in "
                "StyleSpace only; take smaller amounts (step=), other channels, or a direction in W."
            )
        vector[row] = change.float()
    return vector


def _affines(generator: StyleGAN2) -> list[tuple[int, nn.Linear]]:
    """Row of W+ and affine map of each layer of StyleSpace, in its order."""
    found = [(0, generator.first.style), (1, generator.heads[0].style)]
    for level, module in enumerate(generator.levels, 1):
        first, second = generator.style_rows(level)
        found += [(first, module.conv1.style), (second, module.conv2.style), (second + 1, generator.heads[level].style)]
    return found
