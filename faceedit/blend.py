"""Put a generated edit onto the real crop, keeping the crop's own detail where nothing changed.

The generator never gives a photograph back exactly, even refined. So its pictures before and after the edit are
compared: where they agree the photograph stays, where they differ a little their difference is added to it, and where
they differ much the edited picture replaces it, in the photograph's own colours. Around the face, where a generated
silhouette need not be the photograph's, an edit shows only as far as the generator's picture is like the photograph.
A refined picture always is, and there the style branch's own picture says whether the edit was one of this
photograph: the stronger the edit, the more alike the two must be, or it would leave a ghost; and an edit that changes
what is beside the face, and not its colours alone, has moved a silhouette, and shows only where the two are the same.
An edit that is mostly one of the face, as a smile is, stays near it. Within the face every edit is believed, but
where hair hangs over it from the sides and the edit is one of hair and skin alike; such an edit is believed of the
forehead, too, as far as no hair is in its way. Content that is fused into an edit holds it back, and so its change of
brightness may be emphasised within the face: of tone and of lines, and not of what is between, the stains, which would
mottle skin: on bare skin those of an edit of face and hair lose their colours and are bounded.
What is known to lie over the face and be no skin, as hair and hats are, no edit shows through but new glasses, which
go over it where it is no hair, are whole beside the face and the person, too, have no halo, and change nothing above or
below them; below the mouth, where beards are, only what the style branch did not draw, as scarves, and hair beside the
jaw where something else than skin would come. Where the person is known, an edit that is one of hair first may change its
colour, and one of the forehead first may let hair fall over it; beside the person nothing else changes.

Colour is all that changes of hair where it is known, so that every strand stays: what the edit makes of the mean colour
of all hair is what the photograph's own is multiplied by, if it gets darker, or what is added to every strand by its own
light, if it gets paler. That cannot move a silhouette, and so it shows where the edit's own picture may not. Hair's
borders are told by the photograph's colours; what is between its strands and around it stays. Eyes stay the photograph's
own where the edit leaves them what they are, for generators wash them out, and so does what an open mouth shows, the
more so after an edit of face and hair; only the brightness of the light on them follows the edit. Lips stay under such
an edit, too, if it leaves the mouth what it is, in the colour that it gives them. New teeth are no colder than the light
on the mouth was.

The grid that a generator's upsampling leaves in its pictures is taken from what they change.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from faceedit.models.ops import smoothstep

__all__ = ["agreement", "change_mask", "compose", "face_parts", "raised"]

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
_SKULL = 0.3  # how far a bald head does
_GROWN = (0.08, 0.14)  # local difference on a forehead: of wrinkles, of hair that grew over it
_FRINGE = (1.5, 2.2)  # an edit's mean difference on the forehead, in that within the face: of skin, of hair that falls there
_GROWN_HAIR = (0.71, 0.77)  # mean structure there of the pictures before and after: other hair, the same
_BARE = (0.13, 0.18)  # mean difference of photograph and style branch there: a forehead, a hat or another's hair
_BROWS = 0.04  # how far below the top of the face's outline a fringe may reach, in sides of the crop
_COLOUR = (0.7, 0.9)  # mean local structure of the pictures before and after in hair: another's, the same in other colours
_HAIR = (1.0, 1.6)  # an edit's mean difference beside the face, in that within: of the face first, of hair first
_OTHER = (0.12, 0.20)  # local difference of photograph and style branch: hair of some colour, a hat or a scarf
_WHOLE = (0.45, 0.65)  # an edit's mean difference beside the face, in that within: of the face alone, of hair too
_TONE = (0.6, 2.2)  # what hair's brightness is multiplied by: least, most
_ALIKE = (0.3, 0.7)  # local structure of the pictures before and after: hair tells no colour, does
_COLOURED = (0.02, 0.1)  # the same of hair that tells how it changes
_PALER = (1.05, 1.2)  # what the brightness of hair is multiplied by: it gets darker, paler
_GLINT = 2  # brightness of hair, in that of all of it, from which a strand that gets paler glints
_BROW = 0.08  # how far brows reach above the eyes, in sides of the crop
_BROAD = 1.6  # how much wider they are than eyes
_EYES = (0.1, 0.2)  # mean structure in an eye's opening of the pictures before and after: another eye, the same
_TEETH = (0.8, 0.92)  # the same within the lips
_SPEECHLESS = 0.15  # how much less alike they may be there after an edit of face and hair: it is not one of mouths
_LIPS = (0.65, 0.73)  # mean structure on the lips of the pictures before and after: another mouth, the same
_SPOKEN = (1.3, 1.4)  # an edit's mean difference there, in that within the face: of all of it, of mouths
_ALL = (0.3, 0.5)  # how far an edit is one of what is around the face as well: it is not, it is
_KEPT = 0.6  # how far the same lips stay under such an edit
_TOOTH = (0.9, 1.1)  # brightness near a mouth, in that of the photograph's: lips and stubble, teeth
_WARM = (0.15, 0.5)  # how much of the warmth of skin and lips teeth have at least: in green, in blue
_FAINT = 0.004  # mean difference of pixels from their surroundings that counts as no detail
_ADDS = (0.4, 0.7)  # how much detail there is after an edit, in that before: something is taken away, put there
_WIDE = 0.031  # how high an eye's opening is, in sides of the crop, whose rim is broader than a narrow one's
_LENS = (1.5, 1.8)  # an edit's mean difference close around the eyes, in that far from them: of all the face, of glasses
_WORN = 0.7  # how much more that must be in an edit of what is around the face as well
_OPEN = (0.002, 0.005)  # area within the lips, in that of the crop: a closed mouth, an open one
_LIGHT = (0.2, 1.1)  # what the brightness of eyes and mouths is multiplied by: least, most
_SLIGHT = 0.02  # how far an edit must be one of hair as well that hair is looked at
_LINE = 1  # how broad lines are, in pixels
_STAIN = 12  # the same of what is no tone of a face and no line, and not emphasised
_MOTTLE = 30  # the same of what mottles skin
_SHADE = (0.09, 0.03)  # how dark stains are at most, as folds are, and how bright
_FINE = 512  # hair's borders are told at this size
_MATTE = 6  # how far around a pixel they are told by, in pixels
_MATTE_NOISE = 0.001  # variance of colours that tells nothing
_SHARP = (0.2, 0.8)  # what that tells: beside hair, hair
_CELLS = 64  # whose hair it is is told at this size
_HANGING = 0.3  # how sure it must be there
_BESIDE = 0.06  # how far beside a face its hair begins, in sides of the crop
_NEARBY = (0.02, 0.2)  # how sure it is that there is hair: far from it, perhaps its border
_AROUND = 12  # how far around a pixel of hair is looked for what is bright there, in pixels
_TELLING = (0.05, 0.15)  # difference of brightness of hair and what is beside it: tells nothing, tells them apart
_EDGE = 6  # how far from its midst hair ends, in pixels
_WITHIN = (0.6, 0.9)  # how sure it is that there is hair: beside it, in its midst
_BARE_SKIN = (0.3, 0.7)  # how far something is skin: it is covered, is not
_STRANGE = (0.2, 0.3)  # local difference of photograph and style branch: a beard or what else it drew, what it did not
_BEARD = 4  # how far beyond the outline of a face beards grow, in pixels
_BRIGHTER = (0.02, 0.08)  # how much brighter it gets beside a jaw: hair stays, goes
_UNSKINNY = (0.08, 0.18)  # difference of a colour and of a face's above the mouth: skin, what comes from behind hair
_WORN_AT = (0.1, 0.15)  # how far below or above the eyes, in sides of the crop: glasses may be there, change nothing
_FRAME = (0.05, 0.1)  # local difference that glasses make: of lenses, of frames
_BEHIND = 4  # how far from the eyes' openings there are lenses, in pixels
_DARK = (0.05, 0.1)  # how much darker it gets where new frames are
_HALO = 14  # how far around them nothing gets brighter, in pixels
_FRAMES = 30  # how far from the eyes' openings glasses reach, in pixels
_AWAY = 15  # how far beside the person they may be, in pixels
_CELL = 8  # side of the cells, in pixels, whose pattern generators repeat that double a picture three times
_GRID = 0.015  # what that pattern has at most, on [0, 1]
_SOMEBODY = (0.3, 0.8)  # how sure it is that somebody is there: perhaps a background, the person
_FACE = (0.5, 0.57, 0.30, 0.36)  # centre and half axes of an oval where an FFHQ crop has its face, if that is all we know


def _small(x: Tensor, side: int = _SIDE) -> Tensor:
    """Pictures at the size that masks are worked out at, or at another, if that is smaller than theirs."""
    if x.shape[-1] % side == 0 and x.shape[-2:] == (x.shape[-1],) * 2:
        return F.avg_pool2d(x, x.shape[-1] // side)  # what "area" does as well, only slower
    return F.interpolate(x, (min(side, x.shape[-1]),) * 2, mode="area")


def _resized(x: Tensor, like: Tensor) -> Tensor:
    """A map at the size of another."""
    return x if x.shape[-2:] == like.shape[-2:] else F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


@functools.cache
@torch.inference_mode(False)  # kept, and so not to be made one of whatever mode asks first
def _box(size: int, radius: int) -> Tensor:
    """Three sums over ``2 radius + 1`` pixels in a row, on a line whose ends repeat, as a matrix ``(size, size)``."""
    taken = torch.zeros(size, size)
    pixels = torch.arange(size)
    for offset in range(-radius, radius + 1):
        taken[pixels, (pixels + offset).clamp(0, size - 1)] += 1
    return taken @ taken @ taken


def _blur(x: Tensor, radius: int) -> Tensor:
    """Three box filters in a row, nearly a Gaussian of deviation ``radius``; borders repeat.

    As products with matrices of whole numbers, which cost the same at every radius and keep zeros and ones.
    """
    down, across = (_box(side, radius).to(x) for side in x.shape[-2:])
    pixels = (2 * radius + 1) ** 3
    with torch.autocast(x.device.type, enabled=False):  # whole numbers need all their digits
        return (down @ x / pixels) @ across.T / pixels


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


def _narrowed(x: Tensor, radius: int) -> Tensor:
    """Smallest value in the square that `_widened` takes the largest of, of values in [0, 1]."""
    return 1 - _widened(1 - x, radius)


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


def _ungridded(difference: Tensor) -> Tensor:
    """A difference of pictures ``(3, S, S)`` without what repeats in each of its cells, the generator's upsampling."""
    if difference.shape[-1] % _CELL or difference.shape[-2] % _CELL:
        return difference
    light = difference.mean(0)[None, None]
    smooth = F.interpolate(F.avg_pool2d(light, _CELL), light.shape[-2:], mode="bilinear", align_corners=False)
    phases = F.pixel_unshuffle(light - smooth, _CELL)
    # What is stronger than a grid is none: edges and frames would leave their echo.
    grid = (phases.abs() < 2 * _GRID).all(1, True).float()
    phases = _blur(phases.clamp(-_GRID, _GRID) * grid, 5) / _blur(grid, 5).clamp_min(0.5)
    return difference - F.pixel_shuffle(phases - phases.mean(1, True), _CELL)[0]


def _structure(before: Tensor, after: Tensor) -> Tensor:
    """Correlation of two pictures' brightness in 7 x 7 windows, SSIM's structure term: ``(1, 1, s, s)``, 1 where both
    are flat or one is the other in other colours."""
    x, y = (picture.mean(1, keepdim=True) for picture in (before, after))

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
    return 1 - smoothstep(_blur(unlike, 3), *_TRUST)


def _face(outline: Tensor | None, size: int) -> Tensor:
    """Where the face is, ``(1, 1, size, size)`` in [0, 1]: 1 well within its outline, or within an oval."""
    if outline is None:
        position = (torch.arange(size) + 0.5) / size
        x, y, half_width, half_height = _FACE
        distance = torch.hypot((position[None, :] - x) / half_width, (position[:, None] - y) / half_height)
        return 1 - smoothstep(distance, 0.9, 1.15)[None, None]
    # Widened, for a beard grows on the outline itself.
    return _blur(_widened(_filled([outline], size), 4), 3)


def face_parts(outline: Tensor, eyes: Tensor, mouth: Tensor) -> Tensor:
    """Where the parts of a face are that :func:`faceedit.models.relevance_map.undivided` is about.

    Args:
        outline: ``(N, 2)``, the corners of a polygon around the face, in sides of the picture.
        eyes: ``(2, N, 2)``, the same around what is seen of the eyes.
        mouth: ``(N, 2)``, the same around what is seen between the lips.

    Returns:
        ``(1, 4, 256, 256)`` in [0, 1]: lips and what is close around, eyes, what is around them, and the face.
    """
    openings = _filled(eyes, _SIDE)
    around = _widened(openings, 14) - _widened(openings, 5)
    return torch.cat((_lips(mouth, _SIDE), _blur(_widened(openings, 4), 2), around, _face(outline, _SIDE)), 1)


def _lips(mouth: Tensor, size: int) -> Tensor:
    """A mouth with its lips and what is close around, ``(1, 1, size, size)`` in [0, 1]."""
    return _blur(_widened(_filled([mouth], size), 10), 4)


def _filled(outlines: Sequence[Tensor], size: int) -> Tensor:
    """Polygons ``(N, 2)`` in sides of the picture, filled: ``(1, 1, size, size)``."""
    picture = Image.new("1", (size, size))
    for outline in outlines:
        ImageDraw.Draw(picture).polygon([(x, y) for x, y in (outline * size).tolist()], fill=1)
    return torch.from_numpy(np.array(picture)).float()[None, None]


def raised(outline: Tensor, height: float, size: int) -> Tensor:
    """A face and so much above its outline, in sides of the picture: ``(1, 1, size, size)``."""
    return _filled([outline - torch.tensor([0, part * height]) for part in (0, 0.25, 0.5, 0.75, 1)], size)


class _Edit(NamedTuple):
    """What an edit changes, and of what: maps ``(1, 1, s, s)`` and scalars."""

    photo: Tensor  # the crop and the pictures before and after, small
    before: Tensor
    after: Tensor
    change: Tensor  # how strongly these two differ
    structure: Tensor  # how far they have the same structure
    face: Tensor  # where the face is
    near: Tensor  # the same and what is close around
    side: Tensor  # its rim above the mouth, where hair may hang over it
    forehead: Tensor  # the same and what is so far above the brows; 0 where they are not known
    skull: Tensor  # the same and what is farther above, to the top of a bald head
    within: Tensor  # mean change in the face
    whole: Tensor  # 0 for an edit of the face alone, 1 for one of what is around as well
    person: Tensor | None  # where the person is
    unlike: Tensor | None  # local difference of the photograph and what the style branch drew
    falls: Tensor  # where hair falls over a forehead
    hat: Tensor  # where it would, but that there seems to be a hat
    lens: Tensor  # how far it is one of what is around the eyes, as glasses are
    frames: Tensor  # where such an edit draws frames
    recolours: Tensor  # how far it is one of hair as well, but not of a fringe that grows or goes
    matte: Tensor | None  # where hair is, (1, 1, f, f) at a finer size
    hidden: Tensor | None  # what is no bare skin
    covered: Tensor  # where it may not show: on hair, a hat, a scarf, or what glasses do not touch; 0 where not known


def _look(
    crop: Tensor, before: Tensor, after: Tensor, drawn: Tensor | None, outline: Tensor | None, person: Tensor | None,
    eyes: Tensor | None, skin: Tensor | None, hair: Tensor | None,
) -> _Edit:  # fmt: skip
    """What an edit is one of; see `compose` for its arguments."""
    change = change_mask(before, after)
    photo, before, after = (_small(picture[None]) for picture in (crop, before, after))
    size = change.shape[-1]
    face = _face(outline, size)
    near = _widened(face, 20)
    within, beside = (_mean(change, part) for part in (face, 1 - near))
    whole = smoothstep(beside / within, *_WHOLE)
    unlike = None if drawn is None else _difference(photo, _resized(drawn[None], change))
    structure = _structure(before, after)
    fringe, bare, grown = torch.zeros(3)
    if unlike is not None and person is not None and outline is not None:
        fringe, bare, grown = _fringe(change, unlike, structure, within, outline)
    falls, hat = fringe * whole * bare * grown, fringe * whole * (1 - bare)
    somebody = None if person is None else smoothstep(_resized(person[None, None], change), *_SOMEBODY)
    lens, glasses, frames, apart = torch.zeros(4)
    matte = hangs = None
    if hair is not None:
        matte = _matted(_small(crop[None], _FINE), hair[None, None])
        hangs, found = _small(matte), _resized(hair[None, None], change)
    if eyes is not None:
        inside = _filled(eyes, size)
        close, framed = _widened(inside, 8) - inside, _widened(inside, _FRAMES)
        # Of all the face a little, for there may be nothing above the mouth but eyes and what is around them.
        far = [_mean(change, face * part) for part in (1 - _upper(size), _upper(size) * (1 - framed) + 0.01)]
        lens = smoothstep(_mean(change, close) / (far[0] * far[1]).sqrt() - _WORN * whole, *_LENS)
        glasses = _blur(framed, 4)
        height = _heights(size)
        under, over = height - float(eyes[..., 1].max()), float(eyes[..., 1].min()) - height
        apart = lens * torch.maximum(face * smoothstep(under, *_WORN_AT), smoothstep(over, *_WORN_AT))
        if hangs is not None:  # hair that hangs there does so before glasses, and what they have beyond would float
            behind = hangs.clone()
            left, right = (min(max(round(float(x) * size), 1), size - 1) for x in eyes[..., 0].aminmax())
            behind[..., right:] = hangs[..., right:].cummax(3).values
            behind[..., :left] = hangs[..., :left].flip(3).cummax(3).values.flip(3)
            glasses, apart = glasses * (1 - behind), torch.maximum(apart, lens * behind)
        frames = lens * glasses * _blur(_widened(smoothstep(change, *_FRAME), 2), 2)
        if somebody is not None:  # those of a face that is seen from the side would float farther off
            frames = frames * _blur(_widened(somebody, _AWAY), 2)
    covered, hidden = torch.zeros(()), None
    if skin is not None:
        # Without holes, which are spots of light or shade.
        visible = _narrowed(_widened(smoothstep(_resized(skin[None, None], change), *_BARE_SKIN), 5), 5)
        hidden = _blur(1 - visible, 2)
        if hangs is not None:  # which tells better where hair begins
            border = _widened(visible, _EDGE) * _blur(_widened(smoothstep(found, *_BARE_SKIN), _EDGE), 1)
            hidden = torch.maximum(hidden.lerp(hangs, border), hangs)
        covered = hidden * torch.maximum(_upper(size), 1 - _blur(_widened(face, _BEARD), 4))
        if unlike is not None:
            covered = torch.maximum(covered, hidden * _blur(_widened(smoothstep(unlike, *_STRANGE), 2), 2))
        if outline is not None:
            covered = torch.maximum(covered, _bared(photo, after, outline, hidden))
        # But for glasses near the eyes, and for a fringe.
        covered = covered * (1 - lens * glasses) * (1 - falls)
    covered = torch.maximum(covered, apart)
    if hangs is not None:
        covered = torch.maximum(covered, torch.maximum(hangs, smoothstep(found, *_WITHIN)) * (1 - falls))
    return _Edit(
        photo=photo, before=before, after=after, change=change, structure=structure, face=face, near=near,
        within=within, whole=whole, side=_side(face),
        forehead=torch.zeros(()) if outline is None else _blur(raised(outline, _FOREHEAD, size), 4),
        skull=torch.zeros(()) if outline is None else _blur(raised(outline, _SKULL, size), 4),
        person=somebody, unlike=unlike, falls=falls, hat=hat,
        recolours=whole * (1 - fringe.amax() * bare * grown) * (1 - lens), lens=lens, frames=frames,
        matte=matte, hidden=hidden, covered=covered,
    )  # fmt: skip


def _bared(photo: Tensor, after: Tensor, outline: Tensor, hidden: Tensor) -> Tensor:
    """Where hair beside a jaw is gone after an edit, and what was behind it shows, ``(1, 1, s, s)`` in [0, 1].

    ``hidden`` is what is no bare skin.
    """
    size = hidden.shape[-1]
    face = _filled([outline], size)
    colour = _colour(after, _narrowed(face, 6) * _upper(size))
    bright = smoothstep(after.mean(1, True) - photo.mean(1, True), *_BRIGHTER)
    other = smoothstep((after - colour).abs().amax(1, True), *_UNSKINNY)
    bared = bright * other * hidden * (1 - _blur(_narrowed(face, 2), 1))
    return _blur(_widened(bared, 4), 2) * (2 * (1 - _upper(size))).clamp_max(1)


def _trust(edit: _Edit) -> Tensor:
    """Where an edit is believed, ``(1, 1, s, s)``: in the face, and where pictures and photograph agree."""
    change, unlike, face, whole = edit.change, edit.unlike, edit.face, edit.whole
    agree = agreement(edit.photo, edit.before)
    covered, forehead, hair = torch.zeros(3)
    grown = _blur(_widened(smoothstep(change, *_GROWN), 3), 3)
    if unlike is not None:
        ghost = smoothstep(unlike * change, *_GHOST)
        moved = smoothstep(unlike, *_UNLIKE) * smoothstep(change * (1 - face), *_MOVED)
        moved = moved * (1 - smoothstep(edit.structure, *_SAME))
        # Wide, for half of a change of hair is worse than none.
        agree = agree * (1 - _blur(_widened(ghost, 24), 8)) * (1 - _blur(_widened(moved, 6), 4))
        covered = _blur(_widened(smoothstep(unlike * change, *_OVER) * edit.side, 5), 4)
        forehead = edit.forehead * (1 - _blur(_widened(ghost, 5), 4)) * (1 - grown)
        if edit.person is not None:
            hair = smoothstep(_blur(edit.structure, 4), *_COLOUR) * (1 - _blur(smoothstep(unlike, *_OTHER), 8))
            hair = hair * smoothstep(_mean(change, (1 - edit.near) * edit.person) / edit.within, *_HAIR)
            if edit.hidden is not None:  # on skin another colour is hair that comes
                comes = smoothstep(change, *_GROWN) * (1 - edit.hidden)
                hair = hair * (1 - _blur(_widened(comes, 12), 5))
            hair = torch.maximum(hair, edit.falls)
    if edit.hidden is not None:  # whatever the style branch drew there, a bare forehead is one
        forehead = torch.maximum(forehead, (1 - edit.hidden) * edit.skull * (1 - grown))
    # New glasses may lie over hair, new years may not; but those show on foreheads.
    believed = torch.maximum(torch.maximum(agree * torch.maximum(_blur(edit.near, 4), whole), face), forehead * whole)
    believed = torch.maximum(believed * (1 - covered * whole * (1 - hair)), hair) * (1 - edit.hat)
    return torch.maximum(believed, edit.frames)


def _side(face: Tensor) -> Tensor:
    """The rim of a face above its mouth, where hair may hang over it: ``(1, 1, s, s)``."""
    return _blur(_widened(1 - face, _RIM), 3) * _upper(face.shape[-1])


def _upper(size: int) -> Tensor:
    """The part of a picture where hair is rather than a neck or clothes, ``(size, 1)``."""
    return 1 - smoothstep(_heights(size), *_MOUTH)


def _heights(size: int) -> Tensor:
    """How far down each row of pixels is, in sides of the picture: ``(size, 1)``."""
    return (torch.arange(size) + 0.5)[:, None] / size


class _Hair(NamedTuple):
    """How an edit changes hair."""

    change: Tensor  # what is added, (1, 3, f, f), at a finer size than that of masks
    where: Tensor  # where it is, (1, 1, f, f) in [0, 1]
    stays: Tensor  # where nothing else changes, (1, 1, f, f) in [0, 1]


def _hair(edit: _Edit, crop: Tensor, hair: Tensor) -> _Hair:
    """How an edit changes hair: by the difference of its mean colours before and after.

    What has the same strands in both pictures tells them, for others or background may come where the edit is no one of
    this photograph. Hair that gets darker is multiplied by their ratio; what gets paler has their difference added.
    """
    pixels, matte = _small(crop[None], _FINE), edit.matte
    solid = _narrowed(_resized(hair, edit.change), 2)
    same = solid * smoothstep(edit.structure, *_ALIKE) * _upper(solid.shape[-1])
    old, new = (_colour(picture, same) for picture in (edit.before, edit.after))
    tone = _tone(old, new).clamp(*_TONE)
    # Paler by a factor, black would stay black; by as much for all of it, hair would get a veil. So every strand gets of it
    # by its own light, and what glints or is bright gets less, or it would be white.
    light = pixels.mean(1, True)
    # Where all of it is bright, skin or the background shine through.
    known = _small(matte)
    usual = _resized(_around(_small(light), known).maximum(_mean(light, matte)), pixels)
    strands = torch.tanh(light / (_GLINT * usual)) * (2 * (1 - light)).clamp_max(1)
    strands = (strands / _mean(strands, matte)).clamp_max(1 + _GLINT)
    # At its edges that may be so even where most is dark.
    midst = _resized(_blur(_narrowed(known, _EDGE), 1), pixels)
    strands = strands.minimum(1 + midst * _GLINT)
    change = ((tone - 1) * pixels).lerp(strands * (new - old), smoothstep(tone, *_PALER))
    # What is between strands and around stays what it is, but for the face.
    within = torch.maximum(matte, smoothstep(_resized(hair, pixels), *_WITHIN))
    if edit.hidden is not None:
        beside = edit.hidden * (1 - torch.maximum(_blur(_widened(edit.face, 5), 3), edit.forehead))
        within = torch.maximum(within, _resized(beside, pixels))
    told = edit.recolours * smoothstep(same.mean(), *_COLOURED)
    where = told * matte * smoothstep((new - old).abs().amax(), 0, _SHOW[0])
    return _Hair(where * change, where, told * within)


def _own(hair: Tensor, outline: Tensor) -> Tensor:
    """Hair that reaches the face, and not somebody else's beside it, ``(1, 1, S, S)``."""
    cells = _small(hair, _CELLS)
    side = cells.shape[-1]
    there = (cells > _HANGING).float()
    own = _widened(raised(outline, _FOREHEAD, side), round(_BESIDE * side)) * there
    for _ in range(4 * side):  # from lock to lock; a long way round takes more steps than there are columns
        more = _widened(own, 1) * there
        if torch.equal(more, own):
            break
        own = more
    return hair * _resized(_blur(_widened(own, 2), 1), hair)


def _matted(pixels: Tensor, part: Tensor) -> Tensor:
    """A part of a picture ``(1, 3, S, S)``, with its borders where colours change: ``(1, 1, S, S)`` in [0, 1].

    He et al.'s guided filter (arXiv 1505.00996 has it as fast as here: worked out at a smaller size), in three colours.
    """
    guide = _small(pixels)
    part = _resized(part, guide)

    def mean(x: Tensor) -> Tensor:
        return _blur(x, _MATTE)

    centre, share = mean(guide), mean(part)
    pairs = [(i, j) for i in range(3) for j in range(i, 3)]
    spread = mean(torch.cat([guide[:, i : i + 1] * guide[:, j : j + 1] for i, j in pairs], 1))
    matrix = guide.new_zeros(3, 3, *guide.shape[-2:])
    for k, (i, j) in enumerate(pairs):
        matrix[i, j] = matrix[j, i] = spread[0, k] - centre[0, i] * centre[0, j]
    matrix = matrix.permute(2, 3, 0, 1) + _MATTE_NOISE * torch.eye(3)
    across = mean(guide * part) - centre * share
    slope = torch.linalg.solve(matrix, across[0].permute(1, 2, 0)[..., None])[..., 0].permute(2, 0, 1)[None]
    start = share - (slope * centre).sum(1, True)
    slope, start = (_resized(mean(x), pixels) for x in (slope, start))
    matte = smoothstep((slope * pixels).sum(1, True) + start, *_SHARP) * smoothstep(_resized(part, pixels), *_NEARBY)
    # At its edges it thins out: so much of a pixel is hair as its light lies towards that of hair from that of what is beside.
    known, light = _small(matte), guide.mean(1, True)
    inside, beside = _around(light, known), _around(light, 1 - known)
    edge = _blur(_widened(known, _EDGE) - _narrowed(known, _EDGE), 1)
    edge = edge * smoothstep((beside - inside).abs(), *_TELLING)
    inside, beside, edge = (_resized(x, pixels) for x in (inside, beside, edge))
    apart = beside - inside
    share = ((beside - pixels.mean(1, True)) / torch.where(apart.abs() < _TELLING[0], _TELLING[0], apart)).clamp(0, 1)
    return matte.lerp(share, edge)


def _around(light: Tensor, part: Tensor) -> Tensor:
    """Mean brightness of a part of a picture around each pixel, ``(1, 1, s, s)``."""
    return _blur(light * part, _AROUND) / _blur(part, _AROUND).clamp_min(1e-4)


def _tone(before: Tensor, after: Tensor) -> Tensor:
    """What brightness is multiplied by, ``(1, 1, H, W)``."""
    return (after.mean(1, True) + 0.04) / (before.mean(1, True) + 0.04)


def _brows(eyes: Tensor, size: int) -> Tensor:
    """Eyes with their brows, ``(1, 1, size, size)`` in [0, 1]."""
    broad = torch.tensor([_BROAD, 1]) * (eyes - eyes.mean(1, True)) + eyes.mean(1, True)
    return _blur(_widened(sum(raised(eye, _BROW, size) for eye in broad).clamp_max(1), 4), 2)


def _openings(edit: _Edit, eyes: Tensor | None, mouth: Tensor | None) -> tuple[Tensor, Tensor]:
    """Eyes and a mouth that stay what they are: how the light on them changes, in parts of the photograph,
    ``(1, 1, s, s)``, and where, ``(1, 1, s, s)`` in [0, 1]."""
    s = edit.change.shape[-1]
    light, where = torch.ones(1, 3, s, s), torch.zeros(1, 1, s, s)
    openings = []
    for eye in () if eyes is None else eyes:
        inside = _filled([eye], s)
        high = bool(eye[:, 1].max() - eye[:, 1].min() > _WIDE)
        same = smoothstep(_mean(edit.structure, inside), *_EYES)
        openings.append((inside, 2 if high else 1, same * (1 - edit.lens)))  # behind new glasses they are others
    if mouth is not None:
        inside = _filled([mouth], s)
        lips = _blur(_widened(inside, 6), 2)
        silent = 1 - smoothstep(_mean(edit.change, lips) / edit.within, *_SPOKEN)
        same = smoothstep(_mean(edit.structure, inside) + _SPEECHLESS * edit.whole, *_TEETH)
        # Where an edit is none of mouths, teeth that it draws elsewhere would show through those of the photograph.
        same = torch.maximum(same, silent)
        wide = smoothstep(inside.mean(), *_OPEN)
        openings.append((inside, 1, same * wide))
        # Lips as well under an edit of face and hair that is none of mouths: in the colour that the edit gives them.
        same_lips = smoothstep(_mean(edit.structure, lips), *_LIPS)
        light = light.lerp((_colour(edit.after, lips) / _colour(edit.before, lips).clamp_min(0.02)).clamp(*_LIGHT), lips)
        where = _KEPT * lips * same_lips * silent * smoothstep(edit.whole, *_ALL) * (1 - wide * (1 - same)) * (1 - edit.lens)
    for inside, rim, kept in openings:
        around = _widened(inside, 5) - _widened(inside, 1)
        # Its brightness, for the colour may be that of lipstick or of a beard.
        ratio = [_colour(x, around).mean(1, True) + 0.02 for x in (edit.after, edit.before)]
        # Without their rims, for lashes and lips are the edit's.
        part = _blur(_narrowed(inside, rim), 1)
        light = light.lerp((ratio[0] / ratio[1]).clamp(*_LIGHT), part)
        where = torch.maximum(where, part * kept)
    return light - 1, where


def _extent(part: Tensor, like: Tensor) -> tuple[slice, slice]:
    """Rows and columns of a picture ``(3, S, S)`` that hold a part of it, a map ``(1, 1, s, s)`` that is not all 0."""
    scale = like.shape[-1] / part.shape[-1]
    held = [torch.nonzero(part[0, 0].amax(dim)).flatten().tolist() for dim in (1, 0)]
    rows, columns = (slice(math.floor(line[0] * scale), math.ceil((line[-1] + 1) * scale)) for line in held)
    return rows, columns


def _warmed(pixels: Tensor, photo: Tensor, lips: Tensor, where: Tensor) -> Tensor:
    """Edited pixels ``(3, H, W)`` of a mouth whose teeth are not colder than the light on it lets them be.

    ``photo`` and ``lips``, ``(1, C, s, s)``, are small; ``where``, ``(1, H, W)`` in [0, 1], says where teeth may be.
    """
    red, others = photo.split((1, 2), 1)
    # How much green or blue exceed red; of warm light less, for teeth are paler than skin and lips, and rather yellow.
    coldest = (others.amax(1, True) - red)[lips > 0.5].quantile(0.9)
    allowed = coldest if coldest > 0 else coldest * torch.tensor(_WARM).to(pixels)[:, None, None]
    # What is as bright as that, so that no stubble loses its colour.
    bright = smoothstep(pixels.mean(0, True) / _colour(photo, lips).mean(), *_TOOTH)
    excess = (pixels[1:] - pixels[:1] - allowed).clamp_min(0) * bright * where
    light = excess.sum(0, True) / 3  # brightness stays
    return torch.cat((pixels[:1], pixels[1:] - excess)) + light


def _added(edit: _Edit) -> Tensor:
    """How much detail there is after an edit, in that before: ``(1, 1, s, s)``."""
    before, after = (_blur((x - _blur(x, 2)).abs().mean(1, True), 3) + _FAINT for x in (edit.before, edit.after))
    return after / before


def _colour(picture: Tensor, part: Tensor) -> Tensor:
    """A picture's mean colour over a part of it, ``(1, 3, 1, 1)``."""
    return (picture * part).sum((2, 3), keepdim=True) / part.sum().clamp_min(1)


def _mean(change: Tensor, part: Tensor) -> Tensor:
    """Mean of a map over a part of it, a scalar above 0."""
    return ((change * part).sum() / part.sum().clamp_min(1)).clamp_min(1e-6)


def _fringe(
    change: Tensor, unlike: Tensor, structure: Tensor, within: Tensor, outline: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """How far an edit is one of hair that falls over the forehead, ``(1, 1, s, s)``: 0 or, above the brows, up to 1;
    how far the forehead is one, a scalar: 0 where there seems to be a hat; and how far another hair falls there, a scalar:
    0 where it is the same in another colour. ``within`` is the edit's mean in the face."""
    size = change.shape[-1]
    above = raised(outline, 1.6 * _FOREHEAD, size) * (1 - _widened(_filled([outline], size), 4))
    height = _heights(size) - float(outline[:, 1].min())
    falls = smoothstep(_mean(change, above) / within, *_FRINGE)
    bare = 1 - smoothstep(_mean(unlike, above), *_BARE)
    grown = 1 - smoothstep(_mean(structure, above), *_GROWN_HAIR)
    return falls * (1 - smoothstep(height, _BROWS, 3 * _BROWS)), bare, grown


def compose(
    crop: Tensor, before: Tensor, after: Tensor, drawn: Tensor | None = None, outline: Tensor | None = None,
    person: Tensor | None = None, eyes: Tensor | None = None, mouth: Tensor | None = None, skin: Tensor | None = None,
    hair: Tensor | None = None, emphasis: float = 0.0,
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
        eyes: ``(2, N, 2)``, the corners of polygons around what is seen of the eyes, as of ``outline``; None where
            they are not known.
        mouth: ``(N, 2)``, the same of what is seen between the lips.
        skin: ``(P, P)`` in [0, 1], where the face is bare, with eyes, brows and mouth: what lies over it stays, below
            the mouth only what ``drawn`` has not. None where it is not known.
        hair: ``(P, P)`` in [0, 1], where hair is, whose colour an edit of face and hair changes. None where it is not
            known: it changes as the rest does.
        emphasis: What is added, in the face and in new frames, of the edit's change of brightness: content that is
            fused into an edit holds it back.

    Returns:
        The edited crop ``(3, S, S)`` in [0, 1], and where it differs from ``crop``: ``(S, S)`` in
        [0, 1], exactly 0 where the crop is untouched.
    """

    def full(x: Tensor) -> Tensor:
        return _resized(x, crop)[0]

    if hair is not None and outline is not None:
        hair = _own(hair[None, None], outline)[0, 0]
    edit = _look(crop, before, after, drawn, outline, person, eyes, skin, hair)
    lips = None if mouth is None else _lips(mouth, edit.change.shape[-1])
    openings = None if eyes is None else _filled(eyes, edit.change.shape[-1])
    # Widened before it is blurred, so that the edge of an edit lies inside its own mask.
    seen = _blur(_widened(smoothstep(edit.change, *_SHOW), 4), 3)
    trust = _trust(edit)
    believed = trust * (1 - edit.covered)
    replaced = _blur(_widened(smoothstep(edit.change, *_REPLACE), 3), 2)
    recoloured = None
    if hair is not None and edit.recolours > _SLIGHT:
        recoloured = _hair(edit, crop, hair[None, None])
    shown = full(seen * believed)
    detail = crop - before - full(_blur(edit.photo - edit.before, 6))
    difference = _ungridded(after - before)
    small = _small(difference[None])
    if openings is not None and edit.lens > 0:
        # Frames have no halo; what is behind lenses may get brighter.
        dark = smoothstep(-small.mean(1, True), *_DARK) * edit.frames
        beside = _blur(_widened(dark, _HALO), 3) * (1 - _blur(_widened(openings, _BEHIND), 2))
        halo = beside * small.clamp_min(0)
        difference, small = difference - full(halo), small - halo
    fine = _blur(small, _LINE)
    if edit.hidden is not None and eyes is not None and lips is not None:
        # On bare skin stains of an edit of face and hair are no more than shades, as folds are.
        stains = fine - _blur(small, _MOTTLE)
        light = stains.mean(1, True)
        most = torch.where(light < 0, *_SHADE)
        bare = torch.maximum(edit.face, edit.skull) * (1 - edit.hidden) * (1 - lips) * (1 - _brows(eyes, lips.shape[-1]))
        mottles = bare * edit.whole * (1 - edit.lens) * (stains - most * torch.tanh(light / most))
        difference, small, fine = difference - full(mottles), small - mottles, fine - mottles
    if emphasis:
        # Not of its colours, which between lips and teeth would be none that either has; and not where it takes away a mouth
        # or glasses, for more than the difference would leave their lines in light.
        gone = edit.lens if lips is None else torch.maximum(edit.lens, lips)
        where = torch.maximum(edit.face, edit.frames) * (1 - gone * (1 - smoothstep(_added(edit), *_ADDS)))
        if openings is not None:  # where another eye comes, more than the difference would leave no pupil
            where = where * (1 - _blur(_widened(openings, 3), 2))
        # Nor of stains; but frames are as narrow and as broad as they are.
        stains = (1 - edit.lens) * (fine - _blur(small, _STAIN)).mean(1, True)
        difference = difference + emphasis * full(where) * (difference.mean(0, True) - full(stains))
    change = shown * (difference - full(replaced) * detail)
    reach = None if edit.person is None else torch.maximum(_blur(edit.person, 2), edit.frames)
    if recoloured is not None:
        stays = full(recoloured.stays)
        change, shown = (1 - stays) * change + full(recoloured.change), (1 - stays) * shown + full(recoloured.where)
    if drawn is not None and (eyes is not None or mouth is not None):
        parts, where = (full(x) for x in _openings(edit, eyes, mouth))
        change = change.lerp(shown * parts * crop, where)
    if reach is not None:
        reach = full(reach)
        if recoloured is not None:  # strands reach beyond what is found of the person
            reach = torch.maximum(reach, full(recoloured.where))
        change, shown = reach * change, reach * shown
    edited = crop + change
    if lips is not None and lips.amax() > 0.5:  # else it is beside the picture
        mouth_box = (..., *_extent(lips, crop))
        pixels = edited[mouth_box]
        edited[mouth_box] = pixels.lerp(_warmed(pixels, edit.photo, lips, full(lips)[mouth_box]), shown[mouth_box])
    return edited.clamp(0, 1), shown[0]
