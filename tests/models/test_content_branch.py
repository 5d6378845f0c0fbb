"""The extractor A: its conditioning (equation 4), its two kinds, and what a level reads."""

import pytest
import torch
import torch.nn.functional as F

from faceedit.models.content_branch import AdaIN, ContentBranch, ContentLevel

PHOTO, DIM = 16, 6
SIZES, CHANNELS = (4, 8, 32), (5, 4, 3)  # coarser than the encoder's maps, within them, finer than the photograph
FEATURES = {"feature_sizes": (16, 8), "feature_channels": (2, 3)}


def branch(follow=True, attributes=("smile", "age"), detail=False):
    torch.manual_seed(0)
    return ContentBranch(
        (0, 1, 3), SIZES, CHANNELS, **FEATURES, photo_size=PHOTO, attributes=attributes,
        widths=(4, 6, 2), dim=3, style_dim=DIM, follow=follow, detail=detail,
    )  # fmt: skip


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(n=1, seed=0):
    photo, seen = draw(2, n, 3, PHOTO, PHOTO, seed=seed)
    features = [draw(n, c, s, s, seed=seed + s) for c, s in zip(FEATURES["feature_channels"], FEATURES["feature_sizes"])]
    unedited = [draw(n, c, s, s, seed=seed + 2 * s) for c, s in zip(CHANNELS, SIZES)]
    return photo, seen, features, unedited


def test_a_direction_is_the_sum_of_what_is_left_of_each_strength():
    module = branch()
    smile, age = (module.directions[name].detach() for name in ("smile", "age"))
    found = module.direction([{}, {"smile": 1.0}, {"smile": 0.25, "age": -1.0}, {"glasses": 3.0}])
    assert found.shape == (4, 3, DIM)
    for ours, theirs in zip(found, (smile + age, age, 0.75 * smile + 2 * age, smile + age), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(smile, age)
    assert torch.equal(branch(attributes=()).direction([{"smile": 1.0}, {}]), torch.zeros(2, 3, DIM))


@pytest.mark.parametrize("normalize", [True, False])
def test_adain_scales_and_shifts_by_the_row(normalize):
    torch.manual_seed(0)
    module, x, row = AdaIN(4, DIM, normalize), draw(2, 4, 8, 8) * 3 + 5, draw(2, DIM, seed=1)
    scale, shift = (row @ module.affine.weight.T + module.affine.bias).chunk(2, 1)
    if normalize:
        mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
        plain = (x - mean) / (variance + 1e-5).sqrt()
    else:
        plain = x
    expected = plain * (1 + scale[..., None, None]) + shift[..., None, None]
    torch.testing.assert_close(module(x, row), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(module(x, row), plain, atol=1e-2)


@pytest.mark.parametrize("follow", [True, False])
def test_maps_have_the_levels_sizes_and_channels(follow):
    module = branch(follow)
    photo, seen, features, unedited = inputs(2)
    maps = module.encode(photo, seen, features, unedited)
    rows = module.direction([{"smile": 1.0}, {}])
    for i, (content, beside) in enumerate(maps):
        assert content.shape == (2, module.extractors[i].width, SIZES[i], SIZES[i])
        assert (beside is None) is not follow
        assert module.extractors[i](content, beside, unedited[i], rows[:, i]).shape == unedited[i].shape


def test_an_untrained_level_that_follows_adds_nothing_to_the_style_branchs_map():
    module = branch()
    photo, seen, features, unedited = inputs()
    edited = [x + 1 for x in unedited]
    for i, (content, beside) in enumerate(module.encode(photo, seen, features, unedited)):
        found = module.extractors[i](content, beside, edited[i], module.direction([{}])[:, i])
        assert torch.equal(found, torch.zeros_like(edited[i]))


def test_the_published_level_reads_the_encoders_map_and_the_row_alone():
    module = branch(follow=False)
    photo, seen, features, unedited = inputs()
    others = inputs(seed=5)
    rows = module.direction([{}])

    def final(photo, seen, features, unedited, edited, rows=rows):
        maps = module.encode(photo, seen, features, unedited)
        return [level(*pair, x, rows[:, i]) for i, (level, pair, x) in enumerate(zip(module.extractors, maps, edited))]

    first = final(photo, seen, features, unedited, unedited)
    same = final(others[0], others[1], features, others[3], others[3])
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not any(torch.allclose(a, b) for a, b in zip(first, final(photo, seen, others[2], unedited, unedited)))
    turned = final(photo, seen, features, unedited, unedited, module.direction([{"smile": 1.0}]))
    assert not any(torch.allclose(a, b, atol=1e-4) for a, b in zip(first, turned))


def test_a_level_that_follows_reads_everything_near_its_size_and_the_level_before():
    module = branch()
    plain = inputs()
    base = module.encode(*plain)

    def moved(place, index=None):
        """Which levels' content maps change with one of the inputs."""
        changed = [list(x) if isinstance(x, list) else x for x in plain]
        if index is None:
            changed[place] = changed[place] + 1
        else:
            changed[place][index] = changed[place][index] + 1
        found = module.encode(*changed)
        return [not torch.allclose(a, b) for (a, _), (b, _) in zip(base, found, strict=True)]

    assert moved(0) == moved(1) == [True] * 3  # the photograph, and the picture of its code
    assert module.reads == [[1], [0, 1], [0]]
    assert moved(2, 0) == [False, True, True]
    assert moved(2, 1) == [True, True, True]  # the finest by what is carried on
    assert moved(3, 0) == [True, True, True]
    assert moved(3, 2) == [False, False, True]


def test_no_pixel_of_a_finer_map_is_lost():
    level = ContentLevel(4 * 3, 5, 4, 3, DIM, follow=False)
    x = draw(1, 3, 8, 8).requires_grad_()
    content, _ = level.encode(F.pixel_unshuffle(x, 2), draw(1, 5, 4, 4))
    content.square().sum().backward()
    assert (x.grad != 0).all()
    module = branch()
    photo, *rest = inputs()
    photo.requires_grad_()
    module.encode(photo, *rest)[0][0].square().sum().backward()
    assert (photo.grad != 0).all(), "4x4 cells hold 16x16 pixels"


def test_the_edit_reaches_a_following_level_by_the_difference_of_the_maps():
    torch.manual_seed(2)
    level = ContentLevel(2, 5, 4, 3, DIM, follow=True)
    torch.nn.init.normal_(level.leave.weight)
    unedited, row = draw(1, 5, 8, 8), draw(1, DIM, seed=3)
    content, beside = level.encode(draw(1, 2, 8, 8, seed=4), unedited)
    edited = unedited.clone()
    edited[:, :, 6, 6] += 1
    added = [level(content, beside, x, row) - x for x in (unedited, edited)]
    differs = (added[0] - added[1]).abs().amax((0, 1)) > 1e-6
    assert differs[5:, 5:].all() and not differs[:5].any() and not differs[:, :5].any()


def test_channels_are_seen_and_made_in_units_of_their_scale():
    torch.manual_seed(2)
    level = ContentLevel(2, 5, 4, 3, DIM, follow=True)
    torch.nn.init.normal_(level.leave.weight)
    features, x, row = draw(1, 5, 8, 8), draw(1, 2, 8, 8, seed=4), draw(1, DIM, seed=3)
    plain = level(*level.encode(x, features), features, row)
    level.scale.mul_(10)
    torch.testing.assert_close(level(*level.encode(x, 10 * features), 10 * features, row), 10 * plain, rtol=1e-4, atol=1e-4)


def test_detail_finer_than_the_encoders_picture_reaches_the_finest_level_alone():
    module = branch(detail=True)
    assert module.photo_size == 2 * PHOTO
    torch.nn.init.normal_(module.detail.weight)
    coarse, seen, features, unedited = inputs()
    smooth = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    stripes = torch.tensor([0.5, -0.5]).repeat(PHOTO)
    plain, striped = (module.encode(photo, seen, features, unedited) for photo in (smooth, smooth + stripes))
    for i, ((x, _), (y, _)) in enumerate(zip(plain, striped)):
        assert torch.allclose(x, y, atol=1e-5) is (i < 2)
    # What is not finer is read as without.
    for (x, _), (y, _) in zip(plain, branch().encode(coarse, seen, features, unedited)):
        torch.testing.assert_close(x, y)
