"""What the converters of StyleGAN2 checkpoints share: another layout's tensors, read strictly."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from faceedit.errors import CheckpointError
from faceedit.models.stylegan2 import StyleGAN2

_LISTED = 5  # names in a message
_HIGHEST = 4096  # number in a name, sizes in pixels among them; a forged one would have us build for hours


class Source(NamedTuple):
    """Where one of our tensors comes from.

    Attributes:
        name: In the foreign layout.
        shape: There; the values are in our order, whatever the shape.
        scale: Equalised learning rate to fold in.
    """

    name: str
    shape: tuple[int, ...]
    scale: float = 1.0


def highest(tensors: Iterable[str], pattern: str, layout: str) -> int:
    """The largest number that ``pattern``'s group takes among the names of a checkpoint.

    Raises:
        CheckpointError: It fits no name.
    """
    found = [int(match[1]) for name in tensors if (match := re.match(pattern, name))]
    if not found:
        raise CheckpointError(f"The tensors are not a StyleGAN2 generator as {layout} has it: none is named {pattern}.")
    if max(found) > _HIGHEST:
        raise CheckpointError(f"The tensors are not a StyleGAN2 generator: {pattern} counts to {max(found)}.")
    return max(found)


def size_along(tensors: Mapping[str, Tensor], places: Sequence[tuple[str, int]], layout: str) -> int:
    """What most of several tensors say of a width; so one that is mis-shaped does not decide it.

    Args:
        tensors: The checkpoint.
        places: Names and the axis to look along.
        layout: For messages.

    Raises:
        CheckpointError: None of the tensors is there.
    """
    votes = [tensors[name].shape[axis] for name, axis in places if name in tensors and tensors[name].ndim > axis]
    votes = [vote for vote in votes if vote]
    if not votes:
        names = ", ".join(name for name, _ in places)
        raise CheckpointError(f"The tensors are not a StyleGAN2 generator as {layout} has it: missing {names}.")
    return statistics.mode(votes)


def fill(
    generator: StyleGAN2,
    sources: Mapping[str, Source],
    filters: Mapping[str, float],
    tensors: Mapping[str, Tensor],
    layout: str,
) -> StyleGAN2:
    """Give a generator, made on the meta device, its values.

    Args:
        generator: Filled and returned.
        sources: Key of our state dict to the foreign tensor.
        filters: Foreign resampling filters, which we do not store, and their gain. They must be
            [1, 3, 3, 1].
        tensors: The checkpoint, all of it.
        layout: For messages.

    Raises:
        CheckpointError: A tensor is missing, left over or misfitting; it is named.
    """
    shapes = {source.name: source.shape for source in sources.values()} | {name: (4, 4) for name in filters}
    complaints = {
        "missing": [name for name in shapes if name not in tensors],
        "left over": [name for name in tensors if name not in shapes],
        "misfitting": [
            f"{name} is {_kind(tensors[name])} and must be float {shape}"
            for name, shape in shapes.items()
            if name in tensors and _kind(tensors[name]) != f"float {shape}"
        ],
    }
    if any(complaints.values()):
        what = "; ".join(
            f"{kind}: {', '.join(names[:_LISTED])}" + (f" and {len(names) - _LISTED} more" if names[_LISTED:] else "")
            for kind, names in complaints.items()
            if names
        )
        raise CheckpointError(f"The tensors are not a StyleGAN2 generator as {layout} has it. {what}.")
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    for name, gain in filters.items():
        if not torch.allclose(tensors[name].float().cpu(), torch.outer(taps, taps) * (gain / 64), atol=1e-4):
            raise CheckpointError(f"{name} is not the filter [1, 3, 3, 1], the only one that is supported.")
    ours = generator.state_dict()
    state = {
        # As single-precision products, which is what the original computes at run time.
        key: (tensors[source.name].detach().float().cpu() * source.scale).reshape(ours[key].shape)
        for key, source in sources.items()
    }
    generator.load_state_dict(state, assign=True)
    return generator


def _kind(tensor: Tensor) -> str:
    return f"{'float' if tensor.is_floating_point() else str(tensor.dtype)} {tuple(tensor.shape)}"
