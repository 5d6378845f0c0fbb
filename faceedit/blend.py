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
brightness may be emphasised within the face and in hair: of tone and of lines, and not of what is between, the
stains, which would mottle skin: on bare skin those of an edit of face and hair lose their colours and are bounded.
What is known to lie over the face and be no skin, as hair and hats are, no edit shows through but new glasses, which
go over it, are whole beside the face and the person, too, have no halo, and change nothing above or below them; below
the mouth, where beards are, only what the style branch did not draw, as scarves, and hair beside the jaw where
something else than skin would come. Where the person is known, an edit that is one of hair first may change its
colour, and one of the forehead first may let hair fall over it; beside the person nothing else changes.

Colour is all that changes of hair where the person is known, as far as each of its pixels is hair and not skin or
background, so that every strand stays: if it gets darker, what the edit makes of the hair around is what the
photograph's own is multiplied by; if it gets paler, what the edit makes of all hair is added to it, to every strand by
its own light. That cannot move a silhouette, and so it shows where the edit's own picture may not; where that picture
gets brighter or darker than hair does elsewhere, hair has gone, and changes as the rest. A fringe that gets paler does
so down to the eyes. Clothes are told from hair by their colour. Eyes stay the photograph's own where the edit leaves
them what they are, for generators wash them out, and so does what an open mouth shows, the more so after an edit of
face and hair; only the brightness of the light on them follows the edit. Lips stay under such an edit, too, if it
leaves the mouth what it is, in the colour that it gives them. New teeth are no colder than the light on the mouth was.

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
_ODD = (0.4, 0.65)  # logarithm of that factor somewhere in units of that of all hair: hair, what else comes there
_ALIKE = (0.3, 0.7)  # local structure of the pictures before and after: hair tells no colour, does
_THERE = (0.005, 0.05)  # share of a part that is around: its mean colour is not known, is
_COLOURED = (0.02, 0.1)  # the same of hair that tells how it changes
_SKINNY = (0.02, 0.12)  # share of pixels with skin's colour around brows: hair hangs over them, none does
_AREA = (0.5, 0.8)  # share of pixels with skin's colour: highlights of hair, skin
_HAIRY = (0.45, 0.75)  # where between skin's colour and hair's a pixel lies: skin, hair
_OPAQUE = (0.2, 0.7)  # where between the background's colour and hair's a pixel lies: background, hair
_GLOSS = 1.5  # how much brighter than hair around what changes with it is at most
_HATLESS = (0.45, 0.62)  # share of what is beside the face that the style branch drew in its colour: a hat or a scarf, hair
_PALER = (1.0, 1.15)  # what the brightness of hair is multiplied by: it gets darker, paler
_HAIRLINE = 10  # how far from bare skin it is known that there is none, in pixels
_RIMMED = (0.05, 0.3)  # share of a part that is around: in the midst of hair, at its edge
_GLINT = 2  # brightness of hair, in that of all of it, from which a strand that gets paler glints
_CLOTHES = (0.15, 0.25)  # difference of the colours around, below the mouth, and of hair's: hair as well, something else
_BROW = 0.08  # how far brows reach above the eyes, in sides of the crop
_BROAD = 1.6  # how much wider they are than eyes
_FRINGED = (-0.06, -0.02)  # heights over the eyes, in sides of the crop: what hides a face is hair, may be none
_APART = (0.02, 0.06)  # squared distance of these two: cannot be told apart, can be
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
_STAIN = (1, 12)  # how broad what mottles skin is, in pixels: lines are finer, its tone is broader
_SHADE = 0.06  # how bright and how dark stains are at most
_FINE = 512  # what is hair is told at this size, strand by strand
_COVERED = (0.5, 0.9)  # how far something is no bare skin: it is not looked at as hair, is
_BARE_SKIN = (0.3, 0.7)  # how far something is skin: it is covered, is not
_STRANGE = (0.2, 0.3)  # local difference of photograph and style branch: a beard or what else it drew, what it did not
_BEARD = 4  # how far beyond the outline of a face beards grow, in pixels
_BRIGHTER = (0.02, 0.08)  # how much brighter it gets beside a jaw: hair stays, goes
_UNSKINNY = (0.08, 0.18)  # difference of a colour and of a face's above the mouth: skin, what comes from behind hair
_WORN_AT = (0.1, 0.15)  # how far below or above the eyes, in sides of the crop: glasses may be there, change nothing
_FRAME = (0.05, 0.1)  # local difference that glasses make: of lenses, of frames
_BEHIND = 10  # how far from the eyes' openings there are lenses, in pixels
_DARK = (0.05, 0.1)  # how much darker it gets where new frames are
_HALO = 14  # how far around them nothing gets brighter, in pixels
_FRAMES = 30  # how far from the eyes' openings glasses reach, in pixels
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
    within: Tensor  # mean change in the face
    whole: Tensor  # 0 for an edit of the face alone, 1 for one of what is around as well
    person: Tensor | None  # where the person is
    unlike: Tensor | None  # local difference of the photograph and what the style branch drew
    falls: Tensor  # where hair falls over a forehead
    hat: Tensor  # where it would, but that there seems to be a hat
    lens: Tensor  # how far it is one of what is around the eyes, as glasses are
    frames: Tensor  # where such an edit draws frames
    recolours: Tensor  # how far it is one of hair as well, but not of a fringe that grows or goes
    hidden: Tensor | None  # what is no bare skin
    covered: Tensor  # where it may not show: on hair, a hat, a scarf, or what glasses do not touch; 0 where not known


def _look(
    crop: Tensor, before: Tensor, after: Tensor, drawn: Tensor | None, outline: Tensor | None, person: Tensor | None,
    eyes: Tensor | None, skin: Tensor | None,
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
    lens, glasses, frames, apart = torch.zeros(4)
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
        frames = lens * glasses * _blur(_widened(smoothstep(change, *_FRAME), 2), 2)
    covered, hidden = torch.zeros(()), None
    if skin is not None:
        # Without holes, which are spots of light or shade.
        visible = _narrowed(_widened(smoothstep(_resized(skin[None, None], change), *_BARE_SKIN), 5), 5)
        hidden = _blur(1 - visible, 2)
        covered = hidden * torch.maximum(_upper(size), 1 - _blur(_widened(face, _BEARD), 4))
        if unlike is not None:
            covered = torch.maximum(covered, hidden * _blur(_widened(smoothstep(unlike, *_STRANGE), 2), 2))
        if outline is not None:
            covered = torch.maximum(covered, _bared(photo, after, outline, hidden))
        # But for glasses near the eyes, and for a fringe.
        covered = covered * (1 - lens * glasses) * (1 - falls)
    covered = torch.maximum(covered, apart)
    return _Edit(
        photo=photo, before=before, after=after, change=change, structure=structure, face=face, near=near,
        within=within, whole=whole, side=_side(face),
        forehead=torch.zeros(()) if outline is None else _blur(raised(outline, _FOREHEAD, size), 4),
        person=None if person is None else smoothstep(_resized(person[None, None], change), *_SOMEBODY),
        unlike=unlike, falls=falls, hat=hat,
        recolours=whole * (1 - fringe.amax() * bare * grown) * (1 - lens), lens=lens, frames=frames,
        hidden=hidden, covered=covered,
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
    if unlike is not None:
        ghost = smoothstep(unlike * change, *_GHOST)
        moved = smoothstep(unlike, *_UNLIKE) * smoothstep(change * (1 - face), *_MOVED)
        moved = moved * (1 - smoothstep(edit.structure, *_SAME))
        # Wide, for half of a change of hair is worse than none.
        agree = agree * (1 - _blur(_widened(ghost, 24), 8)) * (1 - _blur(_widened(moved, 6), 4))
        covered = _blur(_widened(smoothstep(unlike * change, *_OVER) * edit.side, 5), 4)
        forehead = edit.forehead * (1 - _blur(_widened(ghost, 5), 4))
        forehead = forehead * (1 - _blur(_widened(smoothstep(change, *_GROWN), 3), 3))
        if edit.person is not None:
            hair = smoothstep(_blur(edit.structure, 4), *_COLOUR) * (1 - _blur(smoothstep(unlike, *_OTHER), 8))
            hair = hair * smoothstep(_mean(change, (1 - edit.near) * edit.person) / edit.within, *_HAIR)
            if edit.hidden is not None:  # on skin another colour is hair that comes
                comes = smoothstep(change, *_GROWN) * (1 - edit.hidden)
                hair = hair * (1 - _blur(_widened(comes, 12), 5))
            hair = torch.maximum(hair, edit.falls)
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
    """How an edit changes hair: maps of the sizes f, which is finer, and s."""

    parts: Tensor  # where it gets darker: in parts of the photograph, (1, 3, f, f)
    light: Tensor  # where it gets paler: what is added, (1, 3, f, f)
    where: Tensor  # where it is this that changes, (1, 1, f, f) in [0, 1]
    sure: Tensor  # how far it does so where the edit itself is not believed, (1, 1, f, f)


def _hair(
    edit: _Edit, trust: Tensor, crop: Tensor, outline: Tensor, person: Tensor, eyes: Tensor | None
) -> _Hair:  # fmt: skip
    """How an edit changes hair.

    Hair's colours before and after are means over what has the same strands in both pictures: around where the edit is
    believed, and else over all of it, as other strands or background may come there. What their ratio is, the
    photograph's hair is multiplied by; what gets paler has the difference of those over all of it added. Background and
    skin shine through it and stay: how far a pixel is hair is told from its colour and theirs.
    """
    s = edit.change.shape[-1]
    pixels = _small(crop[None], _FINE)

    def fine(x: Tensor) -> Tensor:
        return _resized(x, pixels)

    def mean(x: Tensor, part: Tensor, radius: int) -> tuple[Tensor, Tensor]:
        """A picture's mean over a part of it around each pixel, and how much of the part is there."""
        share = _blur(part, radius)
        return _blur(x * part, radius) / share.clamp_min(1e-4), share

    part = _narrowed(person, 6) * (1 - _widened(edit.face, 4)) * (1 - edit.forehead)
    if edit.hidden is not None:  # high foreheads are no hair
        part = part * smoothstep(_blur(edit.hidden, 2), *_COVERED)
    hair, there = mean(edit.photo, part, 12)
    above = _upper(s)
    same = part * smoothstep(edit.structure, *_ALIKE)
    colours, known = mean(torch.cat((edit.before, edit.after), 1), same, 12)
    inner = _blur(_widened(edit.face, 5), 3)
    core = torch.maximum(inner, edit.forehead)
    upper = same * above
    # Below the mouth what has another colour than hair is clothes.
    clothes = smoothstep((hair - _colour(edit.photo, upper)).abs().amax(1, True), *_CLOTHES) * (1 - above)
    wide = [_colour(picture, upper) for picture in (edit.before, edit.after)]
    odd = (_tone(_blur(edit.before, 4), _blur(edit.after, 4)) / _tone(*wide)).log().abs()
    usual = torch.maximum(1 - _blur(_widened(smoothstep(odd, *_ODD) * (1 - core), 2), 4), core)
    near = trust * usual * smoothstep(known, *_COLOURED) * (1 - edit.covered)
    old, new = (everywhere.lerp(here, near) for everywhere, here in zip(wide, colours.chunk(2, 1), strict=True))
    tone = _tone(old, new).clamp(*_TONE)

    behind, share = mean(edit.photo, 1 - _widened(person, 4), 12)
    behind, hair = fine(behind), fine(hair)
    opaque, _ = _between(pixels, behind, hair)
    thin = (1 - opaque) * fine(smoothstep(share, *_RIMMED))
    through = 1 - smoothstep(opaque, *_OPAQUE)
    through = through * fine(smoothstep(share, *_THERE) * smoothstep(there, *_THERE))
    around, share = mean(edit.photo, part, 24)
    skin = _colour(edit.photo, _narrowed(_filled([outline], s), 6))
    hairy, apart = _between(pixels, skin, fine(around))
    apart = smoothstep(apart, *_APART)
    told = apart * fine(smoothstep(share, *_THERE)) * (1 - through)
    mixed, hairy = (1 - hairy) * told, smoothstep(hairy, *_HAIRY)
    bare = (1 - hairy) * told
    # Highlights have skin's colour, too, but no area of it, as ears have; nor are they near skin that is known.
    near_skin = core if edit.hidden is None else 1 - _blur(_narrowed(edit.hidden, _HAIRLINE), 4)
    skinny = fine(near_skin + (1 - near_skin) * smoothstep(_blur(_small(bare), 4), *_AREA))
    if edit.hidden is not None:
        hairy = torch.maximum(hairy, 1 - skinny)
    bare, mixed = bare * skinny, mixed * skinny

    own = (pixels - through * behind - bare * skin).clamp_min(0).minimum(_GLOSS * hair)
    # Hair gets darker by a factor, and paler by what is added, for a factor would leave black what is black: to each
    # strand by its own light, for as much to all of them would be a veil. At its edges that is what is left of a pixel
    # without background and skin, or they would shine.
    paler = fine(smoothstep(tone, *_PALER))
    parts = (1 - paler) * (fine(tone) - 1) * own / pixels.clamp_min(0.01)
    strands = pixels - torch.maximum(thin, through) * behind - torch.maximum(mixed, bare) * skin
    strands, solid = strands.clamp_min(0).mean(1, True), fine(part) * (1 - through) * (1 - bare)
    # What glints or is bright gets less, or it would be white.
    strands = torch.tanh(strands / (_GLINT * _mean(strands, solid))) * (2 * (1 - pixels.mean(1, True))).clamp_max(1)
    strands = (strands / _mean(strands, solid)).clamp_max(2 * _GLINT)  # if there is no hair to tell
    light = paler * strands * (wide[1] - wide[0])
    # Around face and forehead all but skin is hair, and on their rims what has its colour and is no brow.
    rim = edit.side
    if eyes is not None:
        rim = rim * (1 - _brows(eyes, s) * smoothstep(_blur(_small(bare), 8), *_SKINNY))
    drawn = 1 - smoothstep(edit.unlike, *_OTHER)
    hatless = smoothstep(_mean(drawn, upper), *_HATLESS) * (1 - edit.hat.amax())
    outer = (1 - core) * (1 - clothes)
    fringe = torch.zeros_like(outer)
    if edit.hidden is not None:  # or skin in the shade of hair would take its colour
        outer, rim = outer * edit.hidden, rim * edit.hidden
        # What hangs over a forehead and gets paler may reach to the eyes.
        below = 1.0 if eyes is None else smoothstep(_heights(s) - float(eyes[..., 1].min()), *_FRINGED)
        fringe = core * (1 - inner * below) * edit.hidden * (1 - edit.falls) * hatless * smoothstep(_tone(*wide), *_PALER)
    fringe = fine(fringe)
    # A factor moves no silhouette: it may show where the edit's own picture may not, if this is hair and no hat, no skin
    # and no neck.
    sure = fine(_blur(drawn * _narrowed(person, 4), 4) * above) * hatless * apart * hairy
    sure = torch.maximum(sure, fringe)
    where = fine(outer).maximum(fine(rim) * apart) * fine(smoothstep(there, *_COLOURED))
    where = torch.maximum(where, fringe) * (1 - bare) * smoothstep(upper.mean(), *_COLOURED) * edit.recolours
    return _Hair(parts, light, where, sure)


def _tone(before: Tensor, after: Tensor) -> Tensor:
    """What brightness is multiplied by, ``(1, 1, H, W)``."""
    return (after.mean(1, True) + 0.04) / (before.mean(1, True) + 0.04)


def _brows(eyes: Tensor, size: int) -> Tensor:
    """Eyes with their brows, ``(1, 1, size, size)`` in [0, 1]."""
    broad = torch.tensor([_BROAD, 1]) * (eyes - eyes.mean(1, True)) + eyes.mean(1, True)
    return _blur(_widened(sum(raised(eye, _BROW, size) for eye in broad).clamp_max(1), 4), 2)


def _between(picture: Tensor, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """How far each pixel's colour lies from one colour towards another, ``(1, 1, H, W)`` in [0, 1], and the squared
    distance of these two; 1 where that is none."""
    across = other - one
    apart = across.square().sum(1, True)
    return ((((picture - one) * across).sum(1, True) + 0.003) / (apart + 0.003)).clamp(0, 1), apart


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
    emphasis: float = 0.0,
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
        emphasis: What is added, in the face and in hair, of the edit's change of brightness: content that is fused into
            an edit holds it back.

    Returns:
        The edited crop ``(3, S, S)`` in [0, 1], and where it differs from ``crop``: ``(S, S)`` in
        [0, 1], exactly 0 where the crop is untouched.
    """

    def full(x: Tensor) -> Tensor:
        return _resized(x, crop)[0]

    edit = _look(crop, before, after, drawn, outline, person, eyes, skin)
    lips = None if mouth is None else _lips(mouth, edit.change.shape[-1])
    openings = None if eyes is None else _filled(eyes, edit.change.shape[-1])
    # Widened before it is blurred, so that the edge of an edit lies inside its own mask.
    seen = _blur(_widened(smoothstep(edit.change, *_SHOW), 4), 3)
    trust = _trust(edit)
    believed = trust * (1 - edit.covered)
    replaced = _blur(_widened(smoothstep(edit.change, *_REPLACE), 3), 2)
    hair = None
    if edit.unlike is not None and edit.person is not None and outline is not None and edit.recolours > _SLIGHT:
        hair = _hair(edit, trust, crop, outline, edit.person, eyes)
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
    stains = _blur(small, _STAIN[0]) - _blur(small, _STAIN[1])
    pale = stains.mean(1, True)
    if emphasis:
        # Not of its colours, which between lips and teeth would be none that either has; and not where it takes away a mouth
        # or glasses, for more than the difference would leave their lines in light.
        gone = edit.lens if lips is None else torch.maximum(edit.lens, lips)
        where = torch.maximum(edit.face, edit.frames) * (1 - gone * (1 - smoothstep(_added(edit), *_ADDS)))
        if openings is not None:  # where another eye comes, more than the difference would leave no pupil
            where = where * (1 - _blur(_widened(openings, 3), 2))
        # Nor of stains; but frames are as narrow and as broad as they are.
        light = difference.mean(0, True) - full((1 - edit.lens) * pale)
        difference = difference + emphasis * full(where) * light
    if edit.hidden is not None and eyes is not None and lips is not None:
        # On bare skin stains of an edit of face and hair are no more than shades, as folds are.
        bare = edit.face * (1 - edit.hidden) * (1 - lips) * (1 - _brows(eyes, lips.shape[-1]))
        shades = _SHADE * torch.tanh(pale / _SHADE)
        difference = difference - full(bare * edit.whole * (1 - edit.lens) * (stains - shades))
    change = shown * (difference - full(replaced) * detail)
    reach = None if edit.person is None else torch.maximum(_blur(edit.person, 2), edit.frames)
    if hair is not None:
        # Hair may change up to its last strands, for the background between them does not.
        reach, farther = (_resized(x, hair.where) for x in (reach, _blur(_widened(edit.person, 3), 2)))
        reach = reach.lerp(farther, hair.where)
        where, tinted = full(hair.where), torch.maximum(full(seen * trust), full(_resized(seen, hair.sure) * hair.sure))
        change = change.lerp(tinted * (full(hair.parts) * crop + (1 + emphasis) * full(hair.light)), where)
        shown = shown.lerp(tinted, where)
    if drawn is not None and (eyes is not None or mouth is not None):
        parts, where = (full(x) for x in _openings(edit, eyes, mouth))
        change = change.lerp(shown * parts * crop, where)
    if reach is not None:
        reach = full(reach)
        change, shown = reach * change, reach * shown
    edited = crop + change
    if lips is not None and lips.amax() > 0.5:  # else it is beside the picture
        mouth_box = (..., *_extent(lips, crop))
        pixels = edited[mouth_box]
        edited[mouth_box] = pixels.lerp(_warmed(pixels, edit.photo, lips, full(lips)[mouth_box]), shown[mouth_box])
    return edited.clamp(0, 1), shown[0]
