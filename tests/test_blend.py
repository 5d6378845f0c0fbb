"""Edits laid over photographs: nothing where nothing changed, the photograph's look elsewhere."""

import pytest
import torch
import torch.nn.functional as F

from faceedit.blend import _blur, _small, _widened, agreement, change_mask, compose, face_parts


def smooth(size, seed):
    """A smooth colour picture in [0.25, 0.75]."""
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (size, size), mode="bilinear", align_corners=True)[0] * 0.5 + 0.25


def grain(size, strength=0.1):
    """Detail of single pixels, with a mean of zero in every 2x2 block."""
    signs = 1.0 - 2.0 * ((torch.arange(size)[:, None] + torch.arange(size)) % 2)
    return strength * signs.expand(3, -1, -1)


def square(size, wider=0.0):
    """Where the tests change a picture: its middle, a quarter of its side wide, or so much more."""
    where = torch.zeros(size, size, dtype=torch.bool)
    low, high = round((0.375 - wider / 2) * size), round((0.625 + wider / 2) * size)
    where[low:high, low:high] = True
    return where


@pytest.mark.parametrize("size", [64, 256, 512])
def test_without_a_change_the_crop_stays_bit_for_bit(size):
    crop, before = smooth(size, 0) + grain(size), smooth(size, 1)
    edited, mask = compose(crop, before, before)
    assert torch.equal(edited, crop)
    assert mask.shape == (size, size)
    assert not mask.any()


def test_a_difference_too_faint_to_see_changes_nothing():
    crop, before = smooth(256, 0), smooth(256, 1)
    edited, mask = compose(crop, before, before + 0.014)
    assert torch.equal(edited, crop)
    assert not mask.any()


@pytest.mark.parametrize("size", [256, 512])
def test_a_local_change_stays_local(size):
    crop, before = smooth(size, 0) + grain(size), smooth(size, 1)
    inside = square(size)
    edited, mask = compose(crop, before, before + 0.2 * inside)
    assert torch.equal(edited[:, mask == 0], crop[:, mask == 0])
    assert mask[inside].min() > 0.95
    assert not mask[~square(size, wider=0.25)].any()
    assert mask.min() >= 0 and mask.max() <= 1


def test_a_moderate_change_is_added_to_the_photograph():
    crop, before = smooth(256, 0) + grain(256), smooth(256, 1)
    inside = square(256)
    edited, mask = compose(crop, before, before + 0.055 * inside)
    core = square(256, wider=-0.1)
    assert mask[core].min() > 0.99
    torch.testing.assert_close(edited[:, core], crop[:, core] + 0.055, rtol=0, atol=1e-3)


def test_the_grid_of_upsampling_is_not_pasted():
    """A pattern that all cells of 8 x 8 pixels have; the edges of an edit leave no echo."""
    crop = smooth(512, 0) + grain(512)
    cell = torch.rand(8, 8, generator=torch.Generator().manual_seed(3)) - 0.5
    grid = 0.02 * (cell - cell.mean()).tile(64, 64)
    line = torch.zeros(512, 512)
    line[256:260] = 0.3
    edited, _ = compose(crop, crop, crop + 0.055 + grid - line)
    left = (edited - crop - 0.055)[:, 40:210, 40:-40]
    assert left.std() < 0.12 * grid.std()
    without, _ = compose(crop, crop, crop + 0.055 - line)
    torch.testing.assert_close(edited[:, 40:-40, 40:-40], without[:, 40:-40, 40:-40], rtol=0, atol=0.002)
    assert (without - crop - 0.055)[:, 40:210, 40:-40].abs().max() < 0.001


@pytest.mark.parametrize("size", [256, 512])
def test_a_strong_change_replaces_the_detail_and_keeps_the_colours(size):
    # The photograph is the reconstruction in another light, with grain of its own.
    light = torch.tensor([0.08, 0.0, -0.06])[:, None, None]
    before = smooth(size, 1)
    crop = before + light + grain(size)
    after = before + 0.2 * square(size)
    edited, _ = compose(crop, before, after)
    core, far = square(size, wider=-0.1), ~square(size, wider=0.25)
    torch.testing.assert_close(edited[:, core], (after + light)[:, core], rtol=0, atol=0.02)
    assert torch.equal(edited[:, far], crop[:, far])


def stripe(size):
    """A part of the tests' pictures outside the face's oval: the right edge, an eighth of the side wide."""
    where = torch.zeros(size, size, dtype=torch.bool)
    where[:, -size // 8 :] = True
    return where


@pytest.mark.parametrize("size", [256, 512])
def test_a_strong_edit_of_what_is_not_the_photographs_is_not_shown(size):
    crop, where = smooth(size, 0), stripe(size)
    after = crop + 0.4 * where
    believed, _ = compose(crop, crop, after, crop)
    assert torch.equal(believed, compose(crop, crop, after)[0]), "the style branch drew the photograph"
    outer = torch.arange(size) >= size - size // 16
    assert (believed - crop)[..., outer].mean() > 0.25
    unlike = F.interpolate((crop + 0.3 * where)[None], (64, 64), mode="area")[0]
    kept, mask = compose(crop, crop, after, unlike)
    assert torch.equal(kept[..., outer], crop[..., outer]) and not mask[:, outer].any()
    assert (kept - crop).abs().max() < 0.015, "the edit's rim, where it is blurred"


@pytest.mark.parametrize(("edit", "unlike", "shown"), [(0.08, 0.25, True), (0.25, 0.08, True), (0.25, 0.25, False)])
def test_the_stronger_an_edit_the_more_like_the_photograph_its_generator_must_be(edit, unlike, shown):
    crop, where = smooth(256, 0), stripe(256)
    after = crop + edit * where
    believed, held = (compose(crop, crop, after, drawn)[0] for drawn in (None, crop + unlike * where))
    # Everywhere but at the stripe's edge, which is a silhouette that the photograph does not have.
    edge = (torch.arange(256) >= 221) & (torch.arange(256) < 248)
    assert torch.equal(believed[..., ~edge], held[..., ~edge]) == shown
    assert shown or (held - crop).abs().max() < 0.1 * edit


@pytest.mark.parametrize(("unlike", "shown"), [(0.0, True), (0.08, False)])
def test_a_silhouette_moves_beside_the_face_only_where_the_style_branch_drew_the_photograph(unlike, shown):
    crop, where = 0.5 * smooth(256, 0), stripe(256)
    hair = torch.zeros(256, 256)
    hair[::16], hair[1::16], hair[2::16], hair[3::16] = 0.2, 0.2, 0.2, 0.2  # strands
    before = crop + hair
    drawn = before + unlike
    moved = crop + torch.where(where, hair.roll(8, 0), hair)
    greyed = before + 0.12 * where
    outer = torch.arange(256) >= 240
    for after, kept in ((moved, shown), (greyed, True)):
        found = (compose(before, before, after, drawn)[0] - before)[..., outer]
        wanted = (after - before)[..., outer]
        assert (found.abs().mean() > 0.8 * wanted.abs().mean()) if kept else found.abs().max() < 0.1 * wanted.abs().max()


def test_within_the_face_every_edit_is_shown():
    crop, where = smooth(256, 0), square(256)
    after = crop + 0.4 * where
    assert torch.equal(*(compose(crop, crop, after, drawn)[0][:, where] for drawn in (None, crop + 0.3 * where)))


def box(left, top, right, bottom):
    """The outline of a face that is an upright rectangle, in sides of the crop."""
    return torch.tensor([[left, top], [right, top], [right, bottom], [left, bottom]])


@pytest.mark.parametrize(("rows", "columns", "unlike", "everywhere", "shown"), [
    ((90, 130), (60, 80), 0.3, True, False), ((90, 130), (60, 80), 0.0, True, True),
    ((90, 130), (118, 138), 0.3, True, True), ((180, 200), (80, 100), 0.3, True, True),
    ((90, 130), (64, 84), 0.3, False, True),
])  # fmt: skip
def test_hair_that_hangs_over_the_face_stays(rows, columns, unlike, everywhere, shown):
    """At the side of the face and above the mouth, where the style branch drew no such hair; not under new glasses."""
    crop, where = smooth(256, 0), torch.zeros(256, 256, dtype=torch.bool)
    where[slice(*rows), slice(*columns)] = True
    beside = torch.zeros(256, 256)
    beside[:, 216:] = 0.1 * everywhere  # the same change of hair
    _, mask = compose(crop, crop, crop + 0.4 * where + beside, crop + unlike * where, box(0.25, 0.25, 0.75, 0.85))
    core = F.max_pool2d((~where)[None].float(), 11, 1, 5)[0] == 0
    assert mask[core].min() > 0.95 if shown else mask[core].max() < 0.15


@pytest.mark.parametrize(("edit", "unlike", "height", "shown"), [
    (0.06, 0.05, 0.1, True), (0.06, 0.05, 0.0, False), (0.06, 0.9, 0.1, False), (0.2, 0.05, 0.1, False),
])  # fmt: skip
def test_an_edit_of_skin_and_hair_shows_on_the_forehead(edit, unlike, height, shown, monkeypatch):
    """Above the brows, where the face's outline ends, though hair above it is another's; but not on a fringe, nor as one."""
    monkeypatch.setattr("faceedit.blend._FOREHEAD", height)
    crop, skin, hair, brow = smooth(256, 0), torch.zeros(256, 256), torch.zeros(256, 256), torch.zeros(256, 256)
    skin[84:210, 80:176], hair[:76], brow[84:106, 80:176] = 1.0, 1.0, 1.0
    after, drawn = crop + edit * skin + 0.7 * hair, crop + 0.4 * hair + unlike * brow
    _, mask = compose(crop, crop, after, drawn, box(0.3, 0.45, 0.7, 0.85))
    core = mask[96:100, 110:146]
    assert core.min() > 0.9 if shown else core.max() < 0.5


@pytest.mark.parametrize("size", [256, 512])
def test_the_face_is_where_its_outline_says(size):
    crop, where = smooth(size, 0), stripe(size)
    after = crop + 0.25 * where
    unlike = F.interpolate((crop + 0.3 * where)[None], (64, 64), mode="area")[0]
    shown, _ = compose(crop, crop, after, unlike, box(0.85, 0.25, 1.0, 0.75))
    deep = torch.zeros(size, size, dtype=torch.bool)
    deep[round(0.3 * size) : round(0.7 * size), round(0.92 * size) :] = True
    torch.testing.assert_close(shown[:, deep], after[:, deep], rtol=0, atol=0.01)
    above = (slice(None), slice(0, round(0.15 * size)), slice(size - size // 16, size))
    assert torch.equal(shown[above], crop[above]), "beside the outline it is a ghost"
    # Where the oval would be, but not this face.
    where, narrow = square(size), box(0.1, 0.4, 0.2, 0.6)
    kept, mask = compose(crop, crop, crop + 0.4 * where, crop + 0.3 * where, narrow)
    core = square(size, wider=-0.1)
    assert torch.equal(kept[:, core], crop[:, core]) and not mask[core].any()


def test_emphasis_is_of_brightness_and_in_the_face():
    crop, outline = 0.6 * smooth(256, 0), box(0.3, 0.3, 0.7, 0.8)
    after = crop + torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    plain, _ = compose(crop, crop, after, crop, outline)
    edited, _ = compose(crop, crop, after, crop, outline, emphasis=0.5)
    face, beside = (slice(None), slice(100, 180), slice(90, 160)), (slice(None), slice(None), slice(0, 40))
    torch.testing.assert_close(edited[face], plain[face] + 0.5 * 0.2)
    assert torch.equal(edited[beside], plain[beside])


def test_stains_are_not_emphasised():
    """They would mottle skin; lines as fine as wrinkles are."""
    crop, outline, x = 0.6 * smooth(256, 0), box(0.1, 0.1, 0.9, 0.9), torch.arange(256)
    added = []
    for pixels in (24, 4):
        after = crop + 0.1 + 0.06 * torch.sin(2 * torch.pi * x / pixels).expand(256, 256)
        plain, stronger = (compose(crop, crop, after, crop, outline, emphasis=e)[0] for e in (0.0, 0.5))
        added.append((stronger - plain)[:, 100:150, 80:176])
    torch.testing.assert_close(added[0], torch.full_like(added[0], 0.05), rtol=0, atol=0.006)
    assert added[1].std() > 0.7 * 0.5 * 0.06 / 2**0.5


@pytest.mark.parametrize(("everywhere", "bare", "paled"), [(True, True, True), (False, True, False), (True, False, False)])
def test_stains_on_bare_skin_are_no_more_than_shades(everywhere, bare, paled):
    """Of an edit of face and hair: those of an edit of the face alone may be a beard, and what is no skin has its own."""
    crop, _, eyes, mouth = opened()
    x = torch.arange(256)
    stains = torch.tensor([0.2, 0.07, 0.0])[:, None, None] * torch.sin(2 * torch.pi * x / 24).expand(256, 256)
    rows, columns = torch.arange(256)[:, None], torch.arange(256)
    face = ((rows > 51) & (rows < 230) & (columns > 51) & (columns < 205)).float()
    after = 0.6 * crop + 0.2 + face * stains + 0.1 * (face + 2 * everywhere * (1 - face))
    crop = 0.6 * crop + 0.2
    skin = torch.ones(256, 256)
    if not bare:
        skin[168:215, 80:176] = 0.0
    edited, _ = compose(crop, crop, after, crop, box(0.2, 0.2, 0.8, 0.9), None, eyes, mouth, skin)
    change = (edited - crop)[:, 202:216, 90:166] - 0.1
    given = stains[:, 202:216, 90:166]
    if paled:
        assert change.mean(0).abs().max() < 0.07 < given.mean(0).abs().max()
        assert (change[0] - change[2]).abs().max() < 0.2 * (given[0] - given[2]).abs().max()
    else:
        assert (change[0] - change[2]).std() > 0.6 * (given[0] - given[2]).std()


@pytest.mark.parametrize(("beside", "shown"), [(0.06, False), (0.3, True)])
def test_an_edit_mostly_of_the_face_stays_near_it(beside, shown):
    crop = 0.7 * smooth(256, 0)
    within, strip = torch.zeros(256, 256, dtype=torch.bool), torch.zeros(256, 256, dtype=torch.bool)
    within[64:192, 64:160], strip[:, 208:] = True, True
    face = box(0.25, 0.25, 0.625, 0.75)
    edited, mask = compose(crop, crop, crop + 0.1 * within + beside * strip, crop, face)
    deep = within & (F.avg_pool2d(within[None].float(), 33, 1, 16)[0] == 1)
    torch.testing.assert_close(edited[:, deep], (crop + 0.1)[:, deep], rtol=0, atol=1e-3)
    far = edited[..., 240:] - crop[..., 240:]
    assert far.mean() > 0.9 * beside if shown else (torch.equal(edited[:, strip], crop[:, strip]) and not mask[strip].any())


@pytest.mark.parametrize("size", [256, 512])
def test_beside_the_person_nothing_changes(size):
    """Not even in the face, whose outline may be wrong."""
    crop, person = smooth(size, 0), (torch.arange(128) < 64).float().expand(128, 128)
    edited, mask = compose(crop, crop, crop + 0.2, crop, box(0.25, 0.25, 0.75, 0.75), person)
    assert mask[:, : round(0.47 * size)].min() > 0.95
    beside = slice(round(0.56 * size), None)
    assert torch.equal(edited[..., beside], crop[..., beside]) and not mask[:, beside].any()


def test_where_somebody_is_hardly_likely_nothing_changes():
    """Backgrounds are taken for somebody, too, a little."""
    crop = smooth(256, 0)
    person = torch.where(torch.arange(256) < 128, 1.0, 0.3).expand(256, 256)
    edited, mask = compose(crop, crop, crop + 0.2, crop, box(0.25, 0.25, 0.75, 0.75), person)
    assert mask[:, :110].min() > 0.95
    assert torch.equal(edited[..., 150:], crop[..., 150:]) and not mask[:, 150:].any()


def crowned(size=256):
    """Where a face, the forehead above it and the hair around both are: masks, and the face's outline."""
    face, forehead, head = (torch.zeros(size, size) for _ in range(3))
    face[112:208, 80:176], forehead[72:112, 80:176], head[16:230, 32:224] = 1.0, 1.0, 1.0
    return face, forehead, head, box(80 / size, 112 / size, 176 / size, 208 / size)


@pytest.mark.parametrize(("unlike", "other", "within", "everybody", "shown"), [
    (0.1, False, 0.05, True, True),  # hair of another colour
    (0.3, False, 0.05, True, False),  # the style branch drew something else there: a hat
    (0.1, True, 0.05, True, False),  # another silhouette
    (0.1, False, 0.4, True, False),  # an edit of the face first
    (0.1, False, 0.05, False, False),  # nobody says where the person is
])  # fmt: skip
def test_hair_changes_its_colour(unlike, other, within, everybody, shown):
    """Though the style branch drew hair that is not quite the photograph's: refined pictures have the photograph's."""
    crop = 0.6 * smooth(256, 0)
    face, forehead, head, outline = crowned()
    hair = head * (1 - face) * (1 - forehead)
    crop = crop + hair * strands()
    after = crop + 0.4 * hair + within * face
    if other:
        after = after - 2 * hair * strands()
    _, mask = compose(crop, crop, after, crop + unlike * hair, outline, head if everybody else None)
    core = mask[140:180, 44:60]
    assert core.min() > 0.9 if shown else core.max() < 0.4


@pytest.mark.parametrize(("bare", "shown"), [(False, True), (True, False)])
def test_hair_that_changes_its_colour_does_not_come_onto_bare_skin(bare, shown):
    """What gets as dark there as hair is, where there was none, would end in the midst of a forehead."""
    crop = 0.3 + 0.6 * smooth(256, 0)
    face, forehead, head, outline = crowned()
    hair = head * (1 - face) * (1 - forehead)
    crop = crop + hair * strands()
    above = torch.zeros(256, 256)
    above[44:84, 96:160] = 1.0
    after = crop - 0.4 * torch.maximum(hair, above) + 0.02 * face
    skin = (face + forehead + above).clamp_max(1) if bare else None
    _, mask = compose(crop, crop, after, crop + 0.1 * torch.maximum(hair, above), outline, head, skin=skin)
    core = mask[52:66, 108:148]
    assert core.min() > 0.9 if shown else core.max() < 0.2


@pytest.mark.parametrize(("over", "unlike", "shown"), [(0.3, 0.05, True), (0.3, 0.25, False), (0.1, 0.05, False)])
def test_a_fringe_falls_on_a_bare_forehead(over, unlike, shown):
    """Where the edit is one of the forehead first, and the style branch saw a forehead as well."""
    crop = 0.6 * smooth(256, 0)
    face, forehead, head, outline = crowned()
    after = crop + forehead * over * (1 + strands(strength=1.3)) + 0.1 * (1 - forehead)
    _, mask = compose(crop, crop, after, crop + unlike * forehead, outline, head)
    core = mask[82:92, 100:156]
    assert core.min() > 0.9 if shown else core.max() < 0.5
    brows = mask[113:119, 100:156]  # in the face, where all else is believed
    assert brows.max() < 0.1 if unlike > 0.2 else brows.min() > 0.9


def strands(size=256, strength=0.15):
    """Detail of 4 x 4 pixels, as hair has it."""
    return grain(size, strength)[:1].repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :size, :size]


def haired(size=256):
    """A photograph: a bright background, a head of dark hair around a face, of skin's colour."""
    face, forehead, head, outline = crowned(size)
    hair, skin = head * (1 - face) * (1 - forehead), (face + forehead).clamp_max(1)
    colours = [torch.tensor(c)[:, None, None] for c in ((0.85, 0.9, 0.95), (0.7, 0.55, 0.45), (0.2, 0.15, 0.1))]
    crop = sum(part * colour for part, colour in zip((1 - head, skin, hair * (1 + strands(size, 0.5))), colours, strict=True))
    return crop, hair, skin, head, outline


def by_strands(edited, crop, part, off=0.1):
    """How much brighter a part of hair gets on average; each of its strands does so by its own light.

    Near skin or background that is less sure (``off``), for bright strands may be strands that these shine through."""
    lifted = (edited - crop)[part].mean(0)
    share = lifted / crop[part].mean(0)
    assert share.std() < off * share.mean(), "as much to all of them would be a veil"
    return lifted.mean()


def test_hair_keeps_its_strands_when_its_colour_changes():
    """Though the generator draws none: all of it gets brighter by the same part, at its edge as well."""
    crop, hair, skin, head, outline = haired()
    before = crop * (1 - hair) + hair * torch.tensor([0.2, 0.15, 0.1])[:, None, None]
    edited, mask = compose(crop, before, before + 0.2 * hair + 0.06 * skin, crop, outline, head, skin=skin, hair=hair)
    edge, midst = ((slice(None), slice(120, 160), slice(*columns)) for columns in ((33, 36), (48, 60)))
    assert mask[edge[1:]].min() > 0.8, "its lightest strands are taken for thin ones there"
    assert by_strands(edited, crop, edge, 0.4) > 0.1
    assert mask[midst[1:]].min() > 0.95
    assert abs(by_strands(edited, crop, midst) - 0.2) < 0.02


def test_hair_that_keeps_its_colour_is_in_no_mask():
    crop, hair, skin, head, outline = haired()
    before = crop + 0.02 * strands()
    edited, mask = compose(crop, before, before, crop, outline, head, skin=skin, hair=hair)
    assert torch.equal(edited, crop) and not mask.any()


def test_somebody_elses_hair_stays():
    """Who stands beside is in the crop as well."""
    crop, hair, skin, head, outline = haired()
    head, hair = (x[:, :].clone() for x in (head, hair))
    other = torch.zeros(256, 256)
    other[40:200, 236:254] = 1.0
    crop = torch.where(other > 0, torch.tensor([0.2, 0.15, 0.1])[:, None, None], crop)
    after = crop + 0.2 * (hair + other) + 0.06 * skin
    everybody = torch.maximum(head, other)
    edited, mask = compose(crop, crop, after, crop, outline, everybody, skin=skin, hair=torch.maximum(hair, other))
    assert (edited - crop)[:, 60:180, 240:252].abs().max() < 0.01 and mask[60:180, 240:252].max() < 0.05
    assert (edited - crop)[:, 120:160, 44:60].mean() > 0.15


def test_hair_does_not_grow_on_bare_skin():
    crop, hair, skin, head, outline = haired()
    scalp = torch.zeros(256, 256)
    scalp[30:60, 100:156] = 1.0
    crop = torch.where(scalp > 0, torch.tensor([0.7, 0.55, 0.45])[:, None, None], crop)
    after, drawn = crop + 0.25 * hair + 0.07 * skin, crop - 0.2 * scalp
    bare = (skin + scalp).clamp_max(1)
    edited, _ = compose(crop, crop, after, drawn, outline, head, skin=bare, hair=hair * (1 - scalp))
    assert (edited - crop)[:, 38:52, 110:146].mean() < 0.07
    assert (edited - crop)[:, 38:52, 60:90].mean() > 0.2


def test_highlights_of_hair_are_no_skin():
    """They have its colour, and get paler with the rest, or contrast would be lost."""
    crop, hair, skin, head, outline = haired()
    lit = torch.zeros(256, 256)
    lit[100:160, 52:56] = 1.0
    crop = torch.where(lit > 0, torch.tensor([0.6, 0.47, 0.38])[:, None, None], crop)
    # Too unlike what the style branch drew for the edit's own change to show.
    edited, _ = compose(crop, crop, crop + 0.2 * hair + 0.06 * skin, crop + 0.115 * hair, outline, head, skin=skin, hair=hair)
    light, beside = ((edited - crop)[:, 120:140, columns].mean() for columns in (slice(53, 55), slice(56, 64)))
    assert light > 2 * beside > 0.2


def test_bright_hair_does_not_burn_out():
    crop, hair, skin, head, outline = haired()
    fair = crop * (1 - hair) + hair * torch.tensor([0.6, 0.55, 0.5])[:, None, None] * (1 + strands(256, 0.5))
    edited, _ = compose(fair, fair, fair + 0.15 * hair + 0.05 * skin, fair, outline, head, skin=skin, hair=hair)
    part = (slice(None), slice(40, 60), slice(60, 190))
    assert 0.04 < (edited - fair)[part].mean() < 0.16
    assert edited[part][2].max() < 0.95, "its highlights were .75 there"


def test_hair_that_gets_darker_keeps_its_strands():
    """By a factor everywhere, for the edit's own dark strands would be patches on fair hair."""
    crop, hair, skin, head, outline = haired()
    fair = crop + 0.4 * hair
    edited, _ = compose(fair, fair, fair - 0.2 * hair - 0.06 * skin, fair, outline, head, hair=hair)
    part = (slice(None), slice(120, 160), slice(44, 60))
    factor = (edited[part] / fair[part]).mean(0)
    assert 0.5 < factor.mean() < 0.7 and factor.std() < 0.05 * factor.mean()


@pytest.mark.parametrize("colour", [(0.1, 0.2, 0.6), (0.8, 0.8, 0.8)])
def test_clothes_do_not_change_as_hair_does(colour):
    crop, hair, skin, head, outline = haired()
    part = (slice(None), slice(200, 240), slice(40, 60))
    head, hair = head.clone(), hair.clone()
    head[part[1:]], hair[part[1:]] = 1.0, 0.0
    crop[part] = torch.tensor(colour)[:, None, None]
    after = crop * (1 + 0.8 * hair) + 0.06 * skin
    after[part] = crop[part] + 0.06
    edited, _ = compose(crop, crop, after, crop, outline, head, skin=skin, hair=hair)
    change = (edited - crop)[:, 212:230, 46:54]
    assert change.abs().max() < 0.07


def test_hair_gets_paler_evenly():
    """What does is skin that comes there, or background."""
    crop, hair, skin, head, outline = haired()
    after = crop + 0.1 * hair + 0.03 * skin
    after[:, 100:150, 36:70] += 0.11
    edited, _ = compose(crop, crop, after, crop, outline, head, skin=skin, hair=hair)
    there, elsewhere = (by_strands(edited, crop, (slice(None), slice(*rows), slice(52, 60))) for rows in ((118, 132), (60, 76)))
    assert 0.09 < elsewhere < 0.12 and abs(there / elsewhere - 1) < 0.1
    smoke = after + 0.1 * hair * smooth(256, 3)
    edited, _ = compose(crop, crop, smoke, crop, outline, head, skin=skin, hair=hair)
    by_strands(edited, crop, (slice(None), slice(60, 200), slice(40, 60)))


def test_hairs_borders_are_told_by_the_photographs_colours():
    """What finds hair sees cells of four pixels."""
    crop, hair, skin, head, outline = haired()
    hair = hair.roll((1, 2), (0, 1))
    crop = torch.where(hair > 0, torch.tensor([0.2, 0.15, 0.1])[:, None, None], torch.tensor([0.7, 0.75, 0.8])[:, None, None])
    seen = F.interpolate(F.avg_pool2d(hair[None, None], 4), (256, 256), mode="bilinear")[0, 0]
    assert 0.3 < seen[140, 34] < 0.7 and seen[140, 32] > 0.1
    edited, mask = compose(crop, crop, crop + 0.15 * hair + 0.05 * skin, crop, outline, skin=skin, hair=seen)
    change = (edited - crop)[:, 140].mean(0)
    assert abs(change[34:38].mean() / change[44:54].mean() - 1) < 0.15
    assert change[28:33].abs().max() < 0.01
    assert mask[140, 36:54].min() > 0.9 and mask[140, 28:32].max() < 0.1


@pytest.mark.parametrize("wide", [4, 10])
def test_a_soft_hairline_gets_no_outline(wide):
    """Neither bright, where skin would get what hair gets, nor dark, where neither shows."""
    _, _, skin, head, outline = haired()
    rows = torch.arange(256.0)[:, None]
    thin = ((rows - 70) / wide + 0.5).clamp(0, 1)  # from hair to the skin below
    hair, colours = head * (1 - thin), [torch.tensor(c)[:, None, None] for c in ((0.16, 0.12, 0.1), (0.75, 0.6, 0.5))]
    crop = colours[0] * (1 - thin) + colours[1] * thin.expand(256, 256)
    after = crop + 0.25 * hair + 0.06 * head * thin
    seen = F.interpolate(F.avg_pool2d(hair[None, None], 4), (256, 256), mode="bilinear")[0, 0]
    edited, _ = compose(crop, crop, after, crop, outline, head, skin=head - seen, hair=seen)
    profile = edited[:, 50:92, 100:156].mean((0, 2))
    assert profile.diff().min() > -0.025 and profile[0] > 0.3
    assert profile.max() < profile[-1] + 0.02


def test_a_bare_forehead_is_believed_up_to_its_hair():
    """Though the style branch drew other hair there; but not where the edit would grow some."""
    crop, hair, skin, head, outline = haired()
    _, forehead, *_ = crowned()
    for change, shown in ((0.06, True), (-0.3, False)):
        after = crop + 0.1 * hair + 0.06 * (1 - hair)
        after = torch.where(forehead > 0, crop + change, after)
        _, mask = compose(crop, crop, after, crop + 0.8 * forehead, outline, head, skin=skin, hair=hair)
        top = mask[77:84, 92:164]
        assert top.min() > 0.7 if shown else top.max() < 0.2


def test_glasses_end_where_hair_begins():
    """What they have beyond it, beside the face, would float."""
    crop, parts, eyes, mouth = opened()
    lock = torch.zeros(256, 256)
    lock[60:200, 186:198] = 1.0
    crop = torch.where(lock > 0, torch.tensor(0.1), crop)
    after = crop.clone()
    for _, rows, columns in parts[:2]:
        after[:, rows.start - 8 : rows.stop + 8, columns.start - 20 : columns.stop + 40] -= 0.25 * (1 - lock)[
            rows.start - 8 : rows.stop + 8, columns.start - 20 : columns.stop + 40
        ]
    _, mask = compose(crop, crop, after, crop, box(0.2, 0.2, 0.75, 0.9), None, eyes, mouth, hair=lock)
    rows = parts[1][1]
    assert mask[rows, 172:182].min() > 0.9 and mask[rows, 200:206].max() < 0.05


@pytest.mark.parametrize("beside", [-2.0, 2.0])
def test_eyes_beside_the_picture_have_no_glasses(beside):
    crop, parts, eyes, mouth = opened()
    hair = torch.zeros(256, 256)
    hair[:60] = 1.0
    found, _ = compose(crop, crop, crop - 0.2, crop, box(0.2, 0.2, 0.8, 0.9), eyes=eyes + torch.tensor([beside, 0]), hair=hair)
    wanted, _ = compose(crop, crop, crop - 0.2, crop, box(0.2, 0.2, 0.8, 0.9), hair=hair)
    torch.testing.assert_close(found, wanted)


def test_hair_lies_over_new_glasses():
    """Beside the face and over a lens, but where it is not, glasses are whole."""
    crop, hair, skin, head, outline = haired()
    eyes = torch.stack([box(0.36, 0.5, 0.44, 0.53), box(0.56, 0.5, 0.64, 0.53)])
    glasses, lock = torch.zeros(256, 256), torch.zeros(256, 256)
    glasses[122:144, 60:176], lock[112:160, 142:160] = 1.0, 1.0
    crop = torch.where(lock > 0, torch.tensor([0.2, 0.15, 0.1])[:, None, None], crop)
    after = crop - 0.3 * glasses * crop + 0.12 * hair * (1 - strands(strength=0.3))
    edited, mask = compose(crop, crop, after, crop, outline, head, eyes, hair=torch.maximum(hair, lock))
    lens = (slice(None), slice(129, 135), slice(96, 108))
    torch.testing.assert_close(edited[lens], after[lens], rtol=0, atol=0.01)
    for rows, columns in ((slice(128, 138), slice(62, 72)), (slice(128, 138), slice(146, 156)), (slice(140, 180), slice(36, 60))):
        assert (edited - crop)[:, rows, columns].abs().max() < 0.01
    without, _ = compose(crop, crop, after, crop, outline, head, eyes)
    assert (without - crop)[:, 128:138, 146:156].abs().mean() > 0.03


def test_hair_does_not_become_see_through_where_the_edit_draws_less_of_it():
    crop, hair, skin, head, outline = haired()
    less = torch.zeros(256, 256)
    less[:, 44:212] = 1.0  # the silhouette after the edit is narrower
    after = torch.where((hair > 0) & (less == 0), torch.tensor([0.85, 0.9, 0.95])[:, None, None], crop + 0.15 * hair + 0.06 * skin)
    edited, _ = compose(crop, crop, after, crop, outline, head, hair=hair)
    rim = (slice(None), slice(140, 180), slice(34, 40))
    assert (after - crop)[rim].mean() > 0.6
    assert (edited - crop)[rim].mean() < 0.25


def test_what_shines_through_hair_stays_as_it_is():
    """There are gaps between strands, with the background in them, and a net sees them but roughly."""
    crop, hair, skin, head, outline = haired()
    gaps = torch.zeros(256, 256)
    gaps[140:180, 36:42] = 1.0
    crop = torch.where(gaps > 0, torch.tensor([0.85, 0.9, 0.95])[:, None, None], crop)
    seen = F.interpolate(F.avg_pool2d((hair * (1 - gaps))[None, None], 4), (256, 256), mode="bilinear")[0, 0]
    edited, _ = compose(crop, crop, crop * (1 + hair) + 0.06 * skin, crop, outline, head, skin=skin, hair=seen)
    within = (slice(None), slice(146, 174), slice(38, 40))
    assert (edited - crop)[within].abs().max() < 0.05
    assert (edited / crop)[:, 146:174, 50:60].mean() > 1.5


@pytest.mark.parametrize("over", [True, False])
def test_hair_over_the_rim_of_a_face_changes_as_hair_does(over):
    """What has skin's colour there changes as the edit says."""
    crop, hair, skin, head, outline = haired()
    lock = torch.zeros(256, 256)
    lock[120:150, 82:92] = float(over)
    crop = torch.where(lock > 0, torch.tensor([0.2, 0.15, 0.1])[:, None, None], crop)
    after = crop + 0.2 * hair + skin * torch.tensor([-0.05, 0.03, 0.07])[:, None, None] * (1 - lock) + 0.4 * lock
    edited, _ = compose(crop, crop, after, crop, outline, head, hair=torch.maximum(hair, lock))
    part = (slice(None), slice(126, 144), slice(85, 89))
    if over:
        assert 0.1 < (edited - crop)[part].mean() < 0.28, "brighter by about the factor of hair around, not by .4"
    else:
        torch.testing.assert_close((edited - crop)[part], (after - crop)[part], rtol=0, atol=0.01)


@pytest.mark.parametrize(("unlike", "shown"), [(0.115, True), (0.3, False)])
def test_hair_is_tinted_where_the_edit_itself_would_leave_a_ghost(unlike, shown):
    """A factor moves no silhouette, so it shows although the style branch drew hair in other strands; a hat is none."""
    crop, hair, skin, head, outline = haired()
    drawn = crop + unlike * hair
    edited, mask = compose(crop, crop, crop * (1 + 2 * hair) + 0.28 * skin, drawn, outline, head, hair=hair * shown)
    beside = (slice(None), slice(120, 140), slice(48, 60))
    factor = (edited[beside] / crop[beside]).mean(0)
    if shown:
        assert mask[beside[1:]].min() > 0.8
        assert factor.mean() > 1.6 and factor.std() < 0.05 * factor.mean(), "every strand by about the same"
    else:
        assert factor.mean() < 1.05


def test_hair_that_goes_keeps_its_strands_and_the_colour_of_the_rest():
    """Where the edit draws background in the midst of hair, as shorter hair leaves it, that is no colour of hair."""
    crop, hair, skin, head, outline = haired()
    after = crop * (1 + 0.6 * hair) + 0.06 * skin
    after[:, 96:136, 196:220] = 0.7
    edited, _ = compose(crop, crop, after, crop, outline, head, hair=hair)
    part = (slice(None), slice(106, 126), slice(202, 214))
    rest = (after - crop)[:, 140:180, 36:60].mean()
    assert 0.7 * rest < by_strands(edited, crop, part) < 1.3 * rest


def test_a_fringe_that_grows_is_the_edits_own():
    crop, hair, skin, head, outline = haired()
    _, forehead, *_ = crowned()
    after = crop * (1 - forehead) + forehead * 0.2 * (1 + strands(256, 0.9)) + 0.03 * (1 - forehead)
    edited, mask = compose(crop, crop, after, crop, outline, head, hair=hair)
    core = (slice(None), slice(82, 92), slice(100, 156))
    assert mask[core[1:]].min() > 0.9
    torch.testing.assert_close(edited[core], after[core], rtol=0, atol=0.06)


def opened(size=256):
    """A picture with two eyes and a mouth in it, of strong detail, and their outlines."""
    boxes = [box(0.34, 0.42, 0.44, 0.46), box(0.56, 0.42, 0.66, 0.46), box(0.4, 0.64, 0.6, 0.7)]
    parts = []
    for part in boxes:
        (left, top), (right, bottom) = (part * size).round().long()[[0, 2]].tolist()
        parts.append((slice(None), slice(top, bottom), slice(left, right)))
    return smooth(size, 0), parts, torch.stack(boxes[:2]), boxes[2]


@pytest.mark.parametrize("size", [256, 512])
@pytest.mark.parametrize(("part", "same"), [(0, True), (1, True), (2, True), (0, False), (2, False)])
def test_eyes_and_open_mouths_stay_the_photographs_where_the_edit_leaves_them_what_they_are(part, same, size):
    crop, parts, eyes, mouth = opened(size)
    detail, other = strands(size, 0.2), strands(size, -0.2)
    where = torch.zeros(size, size)
    where[parts[part][1:]] = 1.0
    crop = crop + where * detail
    # The generator's eyes, washed out; or others.
    after = crop + 0.1 - where * detail + where * (0.4 * detail if same else other)
    edited, _ = compose(crop, crop, after, crop, box(0.2, 0.3, 0.8, 0.9), None, eyes, mouth)
    inner = (slice(None), *(slice(s.start + size // 64, s.stop - size // 64) for s in parts[part][1:]))
    found = edited[inner] - crop[inner]
    if same:
        factor = (edited[inner] / crop[inner]).flatten()
        assert factor.std() < 0.03, "only the light changes"
        assert 1 < factor.mean() < 1.12
    else:
        torch.testing.assert_close(found, (after - crop)[inner], rtol=0, atol=0.02)
    cheek = (slice(None), slice(round(0.52 * size), round(0.56 * size)), slice(round(0.3 * size), round(0.4 * size)))
    torch.testing.assert_close((edited - crop)[cheek], torch.full_like(crop[cheek], 0.1), rtol=0, atol=0.01)


@pytest.mark.parametrize(("part", "around", "kept"), [(0, 0.0, True), (2, 0.0, True), (2, 0.4, False)])
def test_an_edit_of_the_face_keeps_eyes_and_open_mouths_that_it_draws_elsewhere(part, around, kept):
    """Of whoever looks aside the generator's picture has another gaze: its eyes would show through those of the
    photograph, as its teeth would, but for an edit of mouths, which changes most around them."""
    crop, parts, eyes, mouth = opened()
    opening = torch.zeros(256, 256)
    opening[parts[part][1:]] = 1.0
    detail, other = strands(256, 0.1), strands(256, 0.1).roll(2, -1)
    crop = crop + opening * detail
    wide = torch.zeros(256, 256)
    rows, columns = parts[part][1:]
    wide[rows.start - 8 : rows.stop + 8, columns.start - 8 : columns.stop + 8] = around
    after = crop + 0.15 + wide + opening * (0.8 * other - 0.65 * detail)
    edited, _ = compose(crop, crop, after, crop, box(0.2, 0.3, 0.8, 0.9), None, eyes, mouth)
    inner = (slice(None), *(slice(s.start + 4, s.stop - 4) for s in parts[part][1:]))
    uneven = (edited / crop)[inner].flatten().std()
    assert uneven < 0.05 if kept else uneven > 0.1


def test_a_closed_mouth_follows_an_edit_of_the_face():
    crop, parts, eyes, _ = opened()
    thin = box(0.4, 0.64, 0.6, 0.648)
    line, face = torch.zeros(256, 256), torch.zeros(256, 256)
    line[164:166, 102:154], face[77:230, 52:204] = 0.3, 0.1
    after = crop - line * 0.5 + face
    crop = crop - line
    edited, _ = compose(crop, crop, after, crop, box(0.2, 0.3, 0.8, 0.9), None, eyes, thin)
    torch.testing.assert_close(edited[:, 164:166, 110:146], after[:, 164:166, 110:146], rtol=0, atol=0.03)


@pytest.mark.parametrize(("lips", "mouths", "kept"), [(0.3, 0.1, True), (-1.0, 0.1, False), (0.3, 0.25, False)])
def test_lips_stay_under_an_edit_of_face_and_hair(lips, mouths, kept):
    """Smeared, they have the colour that the edit gives them and their own detail; not other lips, nor if it is the
    mouth that changes most."""
    crop, parts, eyes, _ = opened()
    thin = box(0.4, 0.64, 0.6, 0.648)
    mouth = torch.zeros(256, 256)
    mouth[150:180, 90:166] = 1.0
    detail = mouth * strands(256, 0.15)
    before = crop * 0.6 + 0.15
    after = before + torch.tensor([0.04, 0.1, 0.16])[:, None, None] + (mouths - 0.1) * mouth + lips * detail
    before = before + detail
    edited, mask = compose(before, before, after, before, box(0.2, 0.3, 0.8, 0.9), None, eyes, thin)
    inner = (slice(None), slice(160, 170), slice(104, 152))
    assert mask[inner[1:]].min() > 0.95
    texture = detail[inner] - detail[inner].mean()
    contrast = (edited[inner] * texture).sum() / (before[inner] * texture).sum()
    assert 0.75 < contrast < 1.3 if kept else contrast < 0.6
    change = (edited - before)[inner].mean((1, 2))
    assert change[0] < change[1] < change[2], "in the edit's colour"


@pytest.mark.parametrize(("light", "colour", "wanted"), [
    ((0.6, 0.45, 0.35), (0.7, 0.8, 0.85), "warm"),  # blue teeth under warm light
    ((0.6, 0.45, 0.35), (0.85, 0.8, 0.7), "same"),
    ((0.6, 0.45, 0.35), (0.25, 0.3, 0.35), "same"),  # stubble
    ((0.5, 0.55, 0.6), (0.75, 0.8, 0.85), "same"),  # blue light
])  # fmt: skip
def test_new_teeth_are_no_colder_than_the_light(light, colour, wanted):
    _, parts, eyes, _ = opened()
    light, colour = (torch.tensor(x)[:, None, None] for x in (light, colour))
    crop = light.expand(3, 256, 256) + grain(256, 0.01)
    teeth = torch.zeros(256, 256)
    teeth[160:172, 104:152] = 1.0
    after = torch.where(teeth > 0, colour, crop)
    edited, _ = compose(crop, crop, after, crop, box(0.2, 0.3, 0.8, 0.9), None, eyes, box(0.4, 0.64, 0.6, 0.648))
    found = edited[:, 163:169, 110:146].mean((1, 2))
    if wanted == "same":
        torch.testing.assert_close(found, colour.flatten(), rtol=0, atol=0.02)
    else:
        assert found[0] >= found[1] >= found[2], "rather yellow than blue"
        assert abs(found.mean() - colour.mean()) < 0.02, "as bright"


def test_a_mouth_beside_the_picture_is_none():
    crop = smooth(256, 0)
    beside = box(1.4, 1.6, 1.6, 1.7)
    found, _ = compose(crop, crop, crop + 0.2, crop, box(0.2, 0.3, 0.8, 0.9), mouth=beside)
    wanted, _ = compose(crop, crop, crop + 0.2, crop, box(0.2, 0.3, 0.8, 0.9))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("everything", [True, False])
def test_only_an_edit_of_the_mouth_may_change_much_of_what_it_shows(everything):
    """One that changes all of the picture is of age or gender, and the teeth stay."""
    crop, parts, eyes, mouth = opened()
    inside = torch.zeros(256, 256)
    inside[parts[2][1:]] = 1.0
    detail, other = (strands(256, 0.2) * inside for _ in range(2))
    other = other.roll(4, -1)
    crop = crop + detail
    changed = torch.zeros(256, 256)
    changed[slice(None) if everything else slice(140, 215)] = 0.1
    after = crop - 0.25 * detail + 0.732 * other + changed
    edited, _ = compose(crop, crop, after, crop, box(0.2, 0.3, 0.8, 0.9), None, eyes, mouth)
    inner = (slice(None), *(slice(s.start + 4, s.stop - 4) for s in parts[2][1:]))
    uneven = (edited / crop)[inner].flatten().std()
    assert uneven < 0.05 if everything else uneven > 0.1


def test_the_light_on_teeth_has_no_colour():
    """Lips may lose their lipstick, and get a beard around."""
    crop, parts, eyes, mouth = opened()
    inside = torch.zeros(256, 256)
    inside[parts[2][1:]] = 1.0
    crop = crop + inside * strands(256, 0.2)
    after = crop + torch.tensor([-0.15, 0.05, 0.1])[:, None, None] * (1 - inside)
    edited, _ = compose(crop, crop, after, crop, box(0.2, 0.3, 0.8, 0.9), None, eyes, mouth)
    inner = (slice(None), *(slice(s.start + 4, s.stop - 4) for s in parts[2][1:]))
    factor = (edited / crop)[inner]
    torch.testing.assert_close(factor, factor[:1].expand_as(factor), rtol=0, atol=1e-3)


@pytest.mark.parametrize("radius", [0, 1, 3, 24])
def test_blurring_is_three_box_filters_in_a_row(radius):
    x = torch.rand(2, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    wanted = x
    for _ in range(3):
        wanted = F.avg_pool2d(F.pad(wanted, [radius] * 4, mode="replicate"), 2 * radius + 1, 1)
    torch.testing.assert_close(_blur(x, radius), wanted, rtol=0, atol=2e-5)
    for value in (0.0, 1.0):
        assert torch.equal(_blur(torch.full_like(x, value), radius), torch.full_like(x, value)), "exactly"


def test_blurring_is_the_same_in_whatever_mode_it_is_first_used():
    x = torch.rand(1, 1, 37, 41, generator=torch.Generator().manual_seed(0))  # a size that no other test has
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = _blur(x.clone(), 2)
    learned = x.clone().requires_grad_()
    again = _blur(learned, 2)
    again.sum().backward()
    assert torch.equal(again.detach(), found) and learned.grad is not None


@pytest.mark.parametrize("side", [40, 100, 256, 512, 600])
def test_pictures_are_made_small_by_their_areas(side):
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(_small(x), F.interpolate(x, (min(side, 256),) * 2, mode="area"))


@pytest.mark.parametrize("radius", [0, 1, 3, 4, 24])
def test_widening_takes_the_largest_value_around(radius):
    x = torch.rand(1, 1, 40, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(_widened(x, radius), F.max_pool2d(x, 2 * radius + 1, 1, radius))


def test_pictures_agree_where_they_are_alike():
    photo = torch.stack([smooth(256, 0), smooth(256, 1)])
    drawn = photo.clone()
    drawn[1] = drawn[1] + 0.3 * stripe(256)
    found = agreement(photo, drawn)
    assert found.shape == (2, 1, 256, 256)
    assert torch.equal(found[0], torch.ones(1, 256, 256))
    assert not found[1, 0][:, -28:].any() and (found[1, 0, :, :208] == 1).all()
    assert agreement(photo[:, :, :64, :64], drawn[:, :, :64, :64]).shape == (2, 1, 64, 64)


def test_the_result_is_a_picture():
    crop = smooth(128, 0)
    for after in (torch.zeros_like(crop), torch.ones_like(crop)):
        edited, mask = compose(crop, 1 - after, after)
        assert edited.min() >= 0 and edited.max() <= 1
        assert mask.min() >= 0 and mask.max() <= 1


def test_the_mask_measures_the_local_difference_of_the_strongest_channel():
    before = smooth(512, 0)
    after = before + torch.tensor([0.0, 0.1, -0.2])[:, None, None]
    change = change_mask(before, after)
    assert change.shape == (1, 1, 256, 256)
    torch.testing.assert_close(change, torch.full_like(change, 0.2), rtol=1e-4, atol=1e-5)
    assert change_mask(before[:, :64, :64], after[:, :64, :64]).shape == (1, 1, 64, 64)


def test_the_parts_of_a_face_lie_where_their_outlines_are():
    left, right = box(0.3, 0.4, 0.4, 0.44), box(0.6, 0.4, 0.7, 0.44)
    lips, eyes, around, face = face_parts(box(0.2, 0.2, 0.8, 0.9), torch.stack((left, right)), box(0.4, 0.7, 0.6, 0.74))[0]
    assert lips.shape == (256, 256)

    def at(part, x, y):
        return float(part[round(y * 256), round(x * 256)])

    assert at(lips, 0.5, 0.72) == 1 and at(lips, 0.5, 0.76) > 0.5 and at(lips, 0.5, 0.6) == 0
    assert at(eyes, 0.35, 0.42) == at(eyes, 0.65, 0.42) == 1 and at(eyes, 0.5, 0.42) == 0
    assert at(around, 0.35, 0.42) == 0 and at(around, 0.35, 0.47) == at(around, 0.65, 0.37) == 1 and at(around, 0.5, 0.42) == 0
    assert all(at(face, *point) == 1 for point in ((0.35, 0.42), (0.5, 0.72), (0.5, 0.3))) and at(face, 0.1, 0.5) == 0


@pytest.mark.parametrize(("rows", "columns", "shown"), [
    ((90, 130), (100, 140), False), ((90, 130), (60, 90), False), ((90, 96), (100, 106), True), ((180, 200), (100, 140), True),
])  # fmt: skip
def test_what_lies_over_a_face_stays(rows, columns, shown):
    """Where there is no bare skin above the mouth, be it amidst the face; not at spots, nor where beards grow."""
    crop, where = smooth(256, 0), torch.zeros(256, 256, dtype=torch.bool)
    where[slice(*rows), slice(*columns)] = True
    edited, mask = compose(crop, crop, crop + 0.1, crop, box(0.2, 0.2, 0.8, 0.9), skin=1.0 - where.float())
    edge = 0 if shown else 8
    core = (slice(rows[0] + edge, rows[1] - edge), slice(columns[0] + edge, columns[1] - edge))
    assert mask[core].min() > 0.95 if shown else mask[core].max() < 0.02
    assert mask[140:170, 150:190].min() > 0.95, "beside it the face changes"
    torch.testing.assert_close(edited[:, 140:170, 150:190], (crop + 0.1)[:, 140:170, 150:190], rtol=0, atol=0.01)


@pytest.mark.parametrize(("unlike", "shown"), [(0.05, True), (0.4, False)])
def test_what_the_style_branch_did_not_draw_is_not_edited_below_the_mouth_either(unlike, shown):
    """A scarf or a lock, not a beard."""
    crop, where = smooth(256, 0), torch.zeros(256, 256)
    where[180:212, 90:150] = 1.0
    _, mask = compose(crop, crop, crop + 0.1, crop - unlike * where, box(0.2, 0.2, 0.8, 0.9), skin=1.0 - where)
    core = mask[188:204, 98:142]
    assert core.min() > 0.9 if shown else core.max() < 0.05
    assert mask[140:165, 150:190].min() > 0.95, "beside it the face changes"


@pytest.mark.parametrize(("around_eyes", "elsewhere", "shown"), [
    (-0.2, 0.02, True),  # glasses
    (0.0, 0.1, False),
    (0.15, 0.1, False),  # years, which change the eyes most
])  # fmt: skip
def test_glasses_go_over_hair(around_eyes, elsewhere, shown):
    """Near the eyes; a hat above them stays what it is."""
    crop, parts, eyes, mouth = opened()
    hair = torch.zeros(256, 256)
    hair[70:140, 60:124] = hair[10:50, 60:200] = 1.0
    after = crop + elsewhere
    after[:, 20:40, 100:160] += 0.1
    for _, rows, columns in parts[:2]:
        after[:, rows.start - 6 : rows.stop + 6, columns.start - 6 : columns.stop + 6] += around_eyes
    _, mask = compose(crop, crop, after, crop, box(0.2, 0.2, 0.8, 0.9), None, eyes, mouth, 1.0 - hair)
    rim = mask[parts[0][1].start - 4, parts[0][2]]
    assert rim.min() > 0.9 if shown else rim.max() < 0.1
    assert not mask[22:38, 105:155].any()


def test_new_glasses_are_whole_and_change_nothing_above_or_below_them():
    """Their frames show beside the face and the person as well; a fringe stays, and an open mouth with what is around it."""
    crop, parts, eyes, mouth = opened()
    after = crop.clone()
    for _, rows, columns in parts[:2]:
        after[:, rows.start - 8 : rows.stop + 8, columns.start - 24 : columns.stop + 24] -= 0.25
    chin = (slice(None), slice(160, 220), slice(90, 166))
    fringe = (slice(None), slice(30, 66), slice(90, 166))
    after[chin] += 0.08
    after[fringe] += 0.08
    person = torch.zeros(256, 256)
    person[:, 76:180] = 1.0  # narrower than the glasses
    edited, mask = compose(crop, crop, after, crop, box(0.3, 0.2, 0.7, 0.9), person, eyes, mouth)
    rim = (slice(None), slice(parts[0][1].start, parts[0][1].stop), slice(66, 72))
    assert mask[rim[1:]].min() > 0.9
    torch.testing.assert_close(edited[rim], after[rim], rtol=0, atol=0.03)
    for part in (chin, fringe):
        assert torch.equal(edited[part], crop[part]) and not mask[part[1:]].any()
    strong, _ = compose(crop, crop, after, crop, box(0.3, 0.2, 0.7, 0.9), person, eyes, mouth, emphasis=0.4)
    assert (edited - strong)[rim].min() > 0.08, "frames beside the face are no paler than in it"


def test_frames_that_float_beside_a_face_are_left_out():
    """As the far lens of one that is seen from the side would."""
    crop, parts, eyes, mouth = opened()
    after = crop.clone()
    for _, rows, columns in parts[:2]:
        after[:, rows.start - 8 : rows.stop + 8, columns.start - 24 : columns.stop + 24] -= 0.25
    person = torch.zeros(256, 256)
    person[:, 100:240] = 1.0
    edited, mask = compose(crop, crop, after, crop, box(0.3, 0.2, 0.8, 0.9), person, eyes, mouth)
    rows = parts[0][1]
    assert mask[rows, 90:98].min() > 0.9
    assert torch.equal(edited[:, rows, 60:78], crop[:, rows, 60:78]) and not mask[rows, 60:78].any()


def test_new_frames_have_no_halo():
    """What is behind lenses may get brighter."""
    crop, parts, eyes, mouth = opened()
    after = crop.clone()
    for _, rows, columns in parts[:2]:
        grown = [(slice(rows.start - n, rows.stop + n), slice(columns.start - n, columns.stop + n)) for n in (18, 12, 8)]
        for (down, across), light in zip(grown, (0.15, -0.25, 0.1), strict=True):
            after[:, down, across] = crop[:, down, across] + light
    edited, mask = compose(crop, crop, after, crop, box(0.2, 0.2, 0.8, 0.9), None, eyes, mouth)
    _, rows, columns = parts[0]
    halo, frame, lens = ((edited - crop)[:, rows.start - n, columns].mean() for n in (15, 10, 3))
    assert halo < 0.03 and frame < -0.15 and lens > 0.06


def test_glasses_go_over_a_lock_that_the_style_branch_did_not_draw():
    crop, parts, eyes, mouth = opened()
    lock = torch.zeros(256, 256)
    lock[60:190, 60:100] = 1.0
    after = crop.clone()
    for _, rows, columns in parts[:2]:
        after[:, rows.start - 8 : rows.stop + 8, columns.start - 20 : columns.stop + 20] -= 0.25
    edited, mask = compose(crop, crop, after, crop + 0.4 * lock, box(0.2, 0.2, 0.8, 0.9), None, eyes, mouth, 1 - lock)
    lens = (slice(None), parts[0][1], slice(76, 96))
    assert mask[lens[1:]].min() > 0.9
    torch.testing.assert_close(edited[lens], after[lens], rtol=0, atol=0.03)


@pytest.mark.parametrize("skin", [None, 0.0, 1.0])
def test_hair_beside_a_neck_stays(skin):
    crop, where = smooth(256, 0), stripe(256)
    bare = None if skin is None else torch.where(where, skin, 1.0).expand(256, 256)
    _, mask = compose(crop, crop, crop + 0.1, crop, box(0.2, 0.2, 0.6, 0.9), skin=bare)
    side = mask[200:220, torch.nonzero(where.expand(256, 256)[0])[8:-8, 0]]
    assert side.max() < 0.02 if skin == 0 else side.min() > 0.9


@pytest.mark.parametrize("known", [True, False])
def test_no_edit_of_the_face_shows_through_hair(known):
    """Below the mouth as well, where what lies over a face may else be a beard."""
    crop, lock = smooth(256, 0), torch.zeros(256, 256)
    lock[185:225, 70:100] = 1.0
    after = crop.clone()
    after[:, 140:230, 60:200] += 0.2
    _, mask = compose(crop, crop, after, crop, box(0.2, 0.2, 0.8, 0.9), skin=1 - lock, hair=lock if known else None)
    core = mask[192:218, 76:94]
    assert core.max() < 0.05 if known else core.min() > 0.9


@pytest.mark.parametrize(("hair", "light", "stays"), [
    (0.1, 0.8, True),  # a bright background comes where hair was
    (0.1, 0.45, False),  # skin does, where a beard was
    (0.55, 0.3, False),  # it gets darker, as beards do
])  # fmt: skip
def test_hair_beside_a_jaw_stays_where_something_else_would_come(hair, light, stays):
    """For it would end there, and be as long as ever elsewhere."""
    crop, jaw = torch.full((3, 256, 256), 0.45), torch.zeros(256, 256)
    jaw[175:215, 36:56] = 1.0  # across the outline of the face
    crop = torch.where(jaw > 0, torch.tensor(hair), crop)
    after = torch.where(jaw > 0, torch.tensor(light), crop + 0.05)
    edited, _ = compose(crop, crop, after, crop, box(0.2, 0.2, 0.8, 0.9), skin=1.0 - jaw)
    changed = (edited - crop)[:, 182:208, 45:50].abs().mean()
    assert changed < 0.1 * abs(light - hair) if stays else changed > 0.5 * abs(light - hair)


def test_a_fringe_gets_paler_as_other_hair_does():
    """Though it changes more than the face does, no hair falls where the same hair has been before; down to the eyes."""
    crop, hair, skin, head, outline = haired()
    eyes = torch.stack((box(0.37, 0.53, 0.46, 0.56), box(0.54, 0.53, 0.63, 0.56)))
    fringe = torch.zeros(256, 256)
    fringe[72:122, 80:176] = 1.0
    crop = torch.where(fringe > 0, torch.tensor([0.2, 0.15, 0.1])[:, None, None] * (1 + strands(256, 0.5)), crop)
    bare = skin * (1 - fringe)
    grey = crop + (0.2 - 0.5 * (crop - 0.15)) * (hair + fringe)  # and its strands fade
    edited, _ = compose(crop, crop, grey + 0.03 * bare, crop, outline, head, eyes, skin=bare, hair=hair + fringe)
    for rows in ((80, 105), (113, 118)):
        part = (slice(None), slice(*rows), slice(100, 156))
        assert abs(by_strands(edited, crop, part, 0.3) - (grey - crop)[part].mean()) < 0.05


def test_hair_that_covers_a_face_takes_the_edits_colour_and_keeps_its_strands():
    crop, hair, skin, head, outline = haired()
    after = crop + 0.25 * hair + 0.03 * (1 - hair)
    plain, _ = compose(crop, crop, after, crop, outline, head)
    edited, mask = compose(crop, crop, after, crop, outline, head, skin=skin, hair=hair)
    part = (slice(None), slice(40, 60), slice(60, 90))
    assert mask[part[1:]].min() > 0.8
    assert by_strands(edited, crop, part) > 0.2


@pytest.mark.parametrize(("old", "new", "emphasised"), [(0.15, 0.0, False), (0.15, -0.15, True), (0.15, 0.14, True)])
def test_a_mouth_that_is_taken_away_is_not_emphasised(old, new, emphasised):
    """More than its difference would leave its lines in light; another mouth in its place is, and the same one."""
    crop, parts, eyes, mouth = opened()
    lips = torch.zeros(256, 256)
    lips[parts[2][1].start - 12 : parts[2][1].stop + 12, parts[2][2].start - 12 : parts[2][2].stop + 12] = 1.0
    skin = torch.zeros(256, 256)
    skin[77:230, 52:204] = 0.1  # of the face alone, or the same lips would stay
    before, after = crop + lips * strands(256, old), crop + skin + lips * strands(256, new)
    face = box(0.2, 0.3, 0.8, 0.9)
    plain, stronger = (compose(before, before, after, before, face, None, eyes, mouth, emphasis=x)[0] for x in (0.0, 0.25))
    upper_lip = (slice(None), slice(parts[2][1].start - 3, parts[2][1].start), parts[2][2])
    added = (stronger - plain)[upper_lip]
    assert added.abs().mean() > 0.015 if emphasised else added.abs().max() < 0.004
    cheek = (slice(None), slice(140, 150), slice(75, 90))
    torch.testing.assert_close((stronger - plain)[cheek], torch.full_like(plain[cheek], 0.025), rtol=0, atol=0.003)


def test_another_eye_is_not_emphasised():
    """Dark pupils that go would leave more light than the edit has."""
    crop, parts, eyes, mouth = opened()
    after = crop.clone()
    after[:, 77:230, 52:204] += 0.1
    for _, rows, columns in parts[:2]:
        middle = slice(columns.start + 6, columns.stop - 6)
        crop[:, rows, middle] = 0.1
        after[:, rows, columns] = 0.5 + 0.3 * strands(256, 1.0)[:, rows, columns]
    face = box(0.2, 0.3, 0.8, 0.9)
    plain, stronger = (compose(crop, crop, after, crop, face, None, eyes, mouth, emphasis=x)[0] for x in (0.0, 0.25))
    added = (stronger - plain).abs()
    assert (plain - crop)[:, parts[0][1], parts[0][2]].abs().mean() > 0.1, "the edit's own eye comes"
    assert max(added[:, rows, columns].mean() for _, rows, columns in parts[:2]) < 0.003
    assert added[:, 140:150, 75:90].mean() > 0.02


@pytest.mark.parametrize("put_on", [True, False])
def test_glasses_are_emphasised_when_they_are_put_on_and_not_when_they_are_taken_off(put_on):
    crop, parts, eyes, _ = opened()
    rims = torch.zeros(256, 256)
    for _, rows, columns in parts[:2]:
        rims[rows.start - 6 : rows.stop + 6, columns.start - 6 : columns.stop + 6] = 1.0
        rims[rows.start - 3 : rows.stop + 3, columns.start - 3 : columns.stop + 3] = 0.0
    without, worn = crop, crop - 0.2 * rims
    before, after = (without, worn) if put_on else (worn, without)
    face = box(0.2, 0.3, 0.8, 0.9)
    plain, stronger = (compose(before, before, after, before, face, None, eyes, None, emphasis=x)[0] for x in (0.0, 0.25))
    added = (stronger - plain).abs()[:, rims > 0].mean()
    assert added > 0.03 if put_on else added < 0.005
