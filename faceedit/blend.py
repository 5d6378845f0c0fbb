"""Put a generated edit onto the real crop, keeping the crop's own detail where nothing changed.

The generator never gives a photograph back exactly, even refined. So its pictures before and
after the edit are compared: where they agree the photograph stays, where they differ a little
their difference is added to it, and where they differ much the edited picture replaces it, in the
photograph's own colours. Around the face, where a generated silhouette need not be the
photograph's, an edit shows only as far as the generator's picture is like the photograph. A refined
picture always is, and there the style branch's own picture says whether the edit was one of this
photograph: the stronger the edit, the more alike the two must be, or it would leave a ghost; and an edit that
changes what is beside the face, and not its colours alone, has moved a silhouette, and shows only where the two are
the same. An edit that is mostly one of the face, as a smile is, stays near it. Within the face every edit is believed,
but where hair hangs over it from the sides and the edit is one of hair and skin alike; such an edit is believed of the
forehead, too, as far as no hair is in its way. Where the person is known, an edit that is one of hair first may change
its colour, and one of the forehead first may let hair fall over it; beside the person nothing changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

__all__ = ["agreement", "change_mask", "compose"]

_SIDE = 256  # masks and colours are smooth: they are worked out at this size
_SHOW = (0.015, 0.05)  # local difference on [0, 1] from which the edit shows, and shows fully
_REPLACE = (0.06, 0.16)  # local difference from which the crop's own detail goes, and is gone
_TRUST = (0.10, 0.28)  # local difference of photograph and reconstruction: believed, no longer
_GHOST = (0.02, 0.045)  # an edit's local difference times that of photograph and style branch: harmless, a ghost
_OVER = (0.035, 0.08)  # the same product near the rim of the face: of skin alone, of hair that hangs over it
_MOVED = (0.03, 0.06)  # an edit's local difference beside the face: shown, another silhouette
_SAME = (0.6, 0.9)  # local structure of the pictures before and after: another's, the same in other colours
_FLAT = 0.0005  # variance of a window that counts as flat
_UNLIKE = (0.02, 0.05)  # local difference of photograph and style branch: silhouettes are the same, may differ
_RIM = 20  # how far from its outline the face may be covered, in pixels
_MOUTH = (0.58, 0.66)  # heights from above which hair hangs, and below which jaws and chins are
_FOREHEAD = 0.1  # how far it reaches above the brows, where outlines end, in sides of the crop
_GROWN = (0.08, 0.14)  # local difference on a forehead: of wrinkles, of hair that grew over it
_FRINGE = (1.5, 2.2)  # an edit's mean difference on the forehead, in that within the face: of skin, of hair that falls there
_BARE = (0.13, 0.18)  # mean difference of photograph and style branch there: a forehead, a hat or another's hair
_BROWS = 0.04  # how far below the top of the face's outline a fringe may reach, in sides of the crop
_COLOUR = (0.7, 0.9)  # mean local structure of the pictures before and after in hair: another's, the same in other colours
_HAIR = (1.0, 1.6)  # an edit's mean difference beside the face, in that within: of the face first, of hair first
_OTHER = (0.12, 0.20)  # local difference of photograph and style branch: hair of some colour, a hat or a scarf
_WHOLE = (0.45, 0.65)  # an edit's mean difference beside the face, in that within: of the face alone, of hair too
_FACE = (0.5, 0.57, 0.30, 0.36)  # centre and half axes of an oval where an FFHQ crop has its face, if that is all we know


def _small(x: Tensor) -> Tensor:
    return F.interpolate(x, (min(_SIDE, x.shape[-1]),) * 2, mode="area")


def _blur(x: Tensor, radius: int) -> Tensor:
    """Three box filters in a row, nearly a Gaussian of deviation ``radius``; borders repeat."""
    size = 2 * radius + 1
    for _ in range(3):
        x = F.pad(x, [radius] * 4, mode="replicate")
        x = F.avg_pool2d(F.avg_pool2d(x, (1, size), 1), (size, 1), 1)
    return x


def _widened(x: Tensor, radius: int) -> Tensor:
    """Largest value in a square of ``2 radius + 1`` around each pixel of ``(B, C, H, W)``, by rows and then by columns.

    Windows grow by doubling, which at these radii is several times faster than `max_pool2d`.
    """
    for dim in (-1, -2):
        x = F.pad(x, [radius, radius, 0, 0] if dim == -1 else [0, 0, radius, radius], value=-torch.inf)
        reach, left = 1, 2 * radius
        while left:
            step = min(reach, left)
            length = x.shape[dim] - step
            x = torch.maximum(x.narrow(dim, 0, length), x.narrow(dim, step, length))
            reach, left = reach + step, left - step
    return x


def _smoothstep(x: Tensor, low: float, high: float) -> Tensor:
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def change_mask(before: Tensor, after: Tensor) -> Tensor:
    """How strongly two pictures differ around each pixel.

    Args:
        before: ``(3, S, S)`` in [0, 1].
        after: ``(3, S, S)`` in [0, 1].

    Returns:
        ``(1, 1, min(S, 256), min(S, 256))``, the local mean of the absolute difference, at least 0.
    """
    difference = _small((after - before).abs()[None]).amax(1, keepdim=True)
    return _blur(difference, 3)


def _difference(photo: Tensor, drawn: Tensor) -> Tensor:
    """Of blurred pictures ``(B, 3, S, S)``, the largest of the channels' absolute differences: ``(B, 1, s, s)``."""
    return _blur(_small(photo - drawn), 3).abs().amax(1, keepdim=True)


def _structure(before: Tensor, after: Tensor) -> Tensor:
    """Correlation of two pictures' brightness in 7 x 7 windows, SSIM's structure term: ``(1, 1, s, s)``, 1 where both
    are flat or one is the other in other colours."""
    x, y = (_small(picture[None]).mean(1, keepdim=True) for picture in (before, after))

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(values, [3] * 4, mode="replicate"), 7, 1)

    mean_x, mean_y = mean(x), mean(y)
    spread = [(mean(v * v) - m * m).clamp_min(0) for v, m in ((x, mean_x), (y, mean_y))]
    return (mean(x * y) - mean_x * mean_y + _FLAT) / ((spread[0] * spread[1]).sqrt() + _FLAT)


def agreement(photo: Tensor, drawn: Tensor) -> Tensor:
    """Where generated pictures are like the photographs, so that their edits are the photographs' as well.

    Args:
        photo: ``(B, 3, S, S)`` in [0, 1].
        drawn: ``(B, 3, S, S)`` in [0, 1].

    Returns:
        ``(B, 1, min(S, 256), min(S, 256))`` in [0, 1]: 1 where the two agree.
    """
    unlike = _widened(_difference(photo, drawn), 4)
    return 1 - _smoothstep(_blur(unlike, 3), *_TRUST)


def _face(outline: Tensor | None, size: int) -> Tensor:
    """Where the face is, ``(1, 1, size, size)`` in [0, 1]: 1 well within its outline, or within an oval."""
    if outline is None:
        position = (torch.arange(size) + 0.5) / size
        x, y, half_width, half_height = _FACE
        distance = torch.hypot((position[None, :] - x) / half_width, (position[:, None] - y) / half_height)
        return 1 - _smoothstep(distance, 0.9, 1.15)[None, None]
    # Widened, for a beard grows on the outline itself.
    return _blur(_widened(_filled([outline], size), 4), 3)


def _filled(outlines: Sequence[Tensor], size: int) -> Tensor:
    """Polygons ``(N, 2)`` in sides of the picture, filled: ``(1, 1, size, size)``."""
    picture = Image.new("1", (size, size))
    for outline in outlines:
        ImageDraw.Draw(picture).polygon([(x, y) for x, y in (outline * size).tolist()], fill=1)
    return torch.from_numpy(np.array(picture)).float()[None, None]


def _raised(outline: Tensor, height: float, size: int) -> Tensor:
    """A face and so much above its outline, in sides of the picture: ``(1, 1, size, size)``."""
    return _filled([outline - torch.tensor([0, part * height]) for part in (0, 0.25, 0.5, 0.75, 1)], size)


def _trust(
    crop: Tensor, before: Tensor, after: Tensor, change: Tensor, drawn: Tensor | None, outline: Tensor | None,
    person: Tensor | None,
) -> Tensor:  # fmt: skip
    """Where an edit is believed, ``(1, 1, s, s)``: in the face, and where pictures and photograph agree."""
    agree = agreement(crop[None], before[None])
    size = agree.shape[-1]
    face, (covered, forehead, hair, hat) = _face(outline, size), torch.zeros(4)
    if person is not None:
        person = F.interpolate(person[None, None], (size, size), mode="bilinear", align_corners=False)
    if drawn is not None:
        small = F.interpolate(drawn[None], (size, size), mode="bilinear", align_corners=False)
        unlike = _difference(_small(crop[None]), small)
        ghost = _smoothstep(unlike * change, *_GHOST)
        moved = _smoothstep(unlike, *_UNLIKE) * _smoothstep(change * (1 - face), *_MOVED)
        structure = _structure(before, after)
        moved = moved * (1 - _smoothstep(structure, *_SAME))
        # Wide, for half of a change of hair is worse than none.
        agree = agree * (1 - _blur(_widened(ghost, 24), 8)) * (1 - _blur(_widened(moved, 6), 4))
        height = (torch.arange(size) + 0.5)[:, None] / size
        side = _blur(_widened(1 - face, _RIM), 3) * (1 - _smoothstep(height, *_MOUTH))
        covered = _blur(_widened(_smoothstep(unlike * change, *_OVER) * side, 5), 4)
        if outline is not None:
            forehead = _blur(_raised(outline, _FOREHEAD, size), 4) * (1 - _blur(_widened(ghost, 5), 4))
            forehead = forehead * (1 - _blur(_widened(_smoothstep(change, *_GROWN), 3), 3))
    near = _widened(face, 20)
    within, beside = (_mean(change, part) for part in (face, 1 - near))
    whole = _smoothstep(beside / within, *_WHOLE)
    if drawn is not None and person is not None:
        hair = _smoothstep(_blur(structure, 4), *_COLOUR) * (1 - _blur(_smoothstep(unlike, *_OTHER), 8))
        hair = hair * _smoothstep(_mean(change, (1 - near) * person) / within, *_HAIR)
        if outline is not None:
            fringe, bare = _fringe(change, unlike, within, outline)
            hair, hat = torch.maximum(hair, fringe * whole * bare), fringe * whole * (1 - bare)
    # New glasses may lie over hair, new years may not; but those show on foreheads.
    believed = torch.maximum(torch.maximum(agree * torch.maximum(_blur(near, 4), whole), face), forehead * whole)
    believed = torch.maximum(believed * (1 - covered * whole * (1 - hair)), hair) * (1 - hat)
    return believed if person is None else believed * _blur(person, 2)


def _mean(change: Tensor, part: Tensor) -> Tensor:
    """Mean of a map over a part of it, a scalar above 0."""
    return ((change * part).sum() / part.sum().clamp_min(1)).clamp_min(1e-6)


def _fringe(change: Tensor, unlike: Tensor, within: Tensor, outline: Tensor) -> tuple[Tensor, Tensor]:
    """How far an edit is one of hair that falls over the forehead, ``(1, 1, s, s)``: 0 or, above the brows, up to 1; and
    how far the forehead is one, a scalar: 0 where there seems to be a hat. ``within`` is the edit's mean in the face."""
    size = change.shape[-1]
    above = _raised(outline, 1.6 * _FOREHEAD, size) * (1 - _widened(_filled([outline], size), 4))
    height = (torch.arange(size) + 0.5)[:, None] / size - float(outline[:, 1].min())
    falls = _smoothstep(_mean(change, above) / within, *_FRINGE)
    bare = 1 - _smoothstep(_mean(unlike, above), *_BARE)
    return falls * (1 - _smoothstep(height, _BROWS, 3 * _BROWS)), bare


def compose(
    crop: Tensor, before: Tensor, after: Tensor, drawn: Tensor | None = None, outline: Tensor | None = None,
    person: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The edited crop.

    Args:
        crop: ``(3, S, S)`` in [0, 1], the photograph's aligned face.
        before: ``(3, S, S)`` in [0, 1], the generator's picture of it.
        after: ``(3, S, S)`` in [0, 1], the generator's picture after the edit.
        drawn: ``(3, P, P)`` in [0, 1], what the style branch alone makes of the photograph, for pictures that are
            refined; None for those that are not, or where it is not known.
        outline: ``(N, 2)``, the corners of a polygon around the face: (x, y) in sides of the crop from its top left
            corner; None where it is not known.
        person: ``(P, P)`` in [0, 1], where the person is: nothing changes beside. None where it is not known.

    Returns:
        The edited crop ``(3, S, S)`` in [0, 1], and where it differs from ``crop``: ``(S, S)`` in
        [0, 1], exactly 0 where the crop is untouched.
    """
    size = crop.shape[-2:]

    def full(x: Tensor) -> Tensor:
        return F.interpolate(x, size, mode="bilinear", align_corners=False)[0]

    change = change_mask(before, after)
    # Widened before it is blurred, so that the edge of an edit lies inside its own mask.
    shown = _blur(_widened(_smoothstep(change, *_SHOW), 4), 3) * _trust(
        crop, before, after, change, drawn, outline, person
    )
    replaced = _blur(_widened(_smoothstep(change, *_REPLACE), 3), 2)
    missing = (crop - before)[None]
    detail = missing[0] - full(_blur(_small(missing), 6))
    edited = crop + full(shown) * (after - before - full(replaced) * detail)
    return edited.clamp(0, 1), full(shown)[0]
