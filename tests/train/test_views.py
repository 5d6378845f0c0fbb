"""Views: every source shows a face at the same place; augmentation and disturbances do what they say."""

import pytest
import torch
import torch.nn.functional as F

from faceedit.train import views as module
from faceedit.train.task import Share
from faceedit.train.views import augment, blurred, canonical_view, celeba_grid, celeba_view, coarsened, compressed


def spot(height, width, x, y, radius):
    """Black picture (1, 3, H, W) with a soft white spot at pixel coordinates (x, y)."""
    rows = torch.arange(height)[:, None] + 0.5
    columns = torch.arange(width)[None] + 0.5
    distance = ((columns - x) ** 2 + (rows - y) ** 2) / radius**2
    return torch.exp(-distance / 2).expand(1, 3, -1, -1)


def centre(view):
    """Centre of brightness (x, y) of a view in [-1, 1], as fractions of its side."""
    light = (view[0, 0] + 1).clamp_min(0.1) - 0.1
    steps = (torch.arange(light.shape[-1]) + 0.5) / light.shape[-1]
    return (light.sum(0) @ steps / light.sum()).item(), (light.sum(1) @ steps / light.sum()).item()


# Eyes and mouth centre: in an FFHQ crop of 1024 px and in a CelebA picture of 89x109.
@pytest.mark.parametrize(
    "ffhq, celeba",
    [((386, 480), (34.3, 55.6)), ((638, 480), (54.4, 55.6)), ((512, 743), (44.4, 76.1))],
)
def test_both_sources_put_eyes_and_mouth_at_the_same_place(ffhq, celeba):
    generated = canonical_view(spot(1024, 1024, *ffhq, 26) * 2 - 1)
    photo = celeba_view((spot(109, 89, *celeba, 2) * 255).byte())
    assert generated.shape == photo.shape == (1, 3, 80, 80)
    assert centre(generated) == pytest.approx(centre(photo), abs=0.01)
    assert centre(generated) == pytest.approx((ffhq[0] / 1024, ffhq[1] / 1024), abs=0.003)


def test_a_mirrored_grid_gives_the_mirrored_view():
    pictures = torch.randint(0, 256, (2, 3, 109, 89), dtype=torch.uint8)
    mirrored = celeba_view(pictures, grid=celeba_grid(2, mirror=torch.tensor([1.0, -1.0])))
    plain = celeba_view(pictures)
    torch.testing.assert_close(mirrored[0], plain[0])
    torch.testing.assert_close(mirrored[1], plain[1].flip(2), atol=1e-4, rtol=0)


def test_augmentation_follows_its_seed_and_stays_in_range():
    pictures = torch.randint(0, 256, (6, 3, 109, 89), dtype=torch.uint8)
    first, again, other = (augment(pictures, Share(seed, 0, range(6), 6)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (6, 3, 80, 80) and first.min() >= -1 and first.max() <= 1


def test_parts_of_a_batch_are_augmented_as_the_whole():
    """Also when pictures are coarsened, by the one factor that a batch has."""
    pictures = torch.randint(0, 256, (1, 3, 109, 89), dtype=torch.uint8).expand(12, -1, -1, -1)
    whole = augment(pictures, Share(0, 4, range(12), 12))
    parts = [augment(pictures[rows], Share(0, 4, rows, 12)) for rows in (range(5), range(5, 12))]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-4, rtol=0)
    assert not torch.equal(whole[0], whole[1])


def test_jpeg_blocks_hardly_change_a_flat_picture_and_nothing_at_all_when_fine():
    flat = torch.full((1, 3, 80, 80), 0.3)
    torch.testing.assert_close(module._jpeg(flat, torch.ones(1)), flat, atol=0.01, rtol=0)
    noise = torch.rand(1, 3, 79, 75) * 2 - 1
    torch.testing.assert_close(module._jpeg(noise, torch.full((1,), 1e-4)), noise, atol=1e-3, rtol=0)
    assert (module._jpeg(noise, torch.ones(1)) - noise).abs().mean() > 0.05


def test_a_blur_spreads_a_point_and_keeps_its_light():
    point = torch.zeros(1, 3, 21, 21)
    point[:, :, 10, 10] = 1
    soft = blurred(point, 1.5)
    assert soft.sum().item() == pytest.approx(3, abs=1e-4)
    ratio = (soft[0, 0, 10, 13] / soft[0, 0, 10, 10]).item()
    assert ratio == pytest.approx(2.718281828 ** (-9 / 4.5), rel=1e-4)
    assert torch.allclose(soft, soft.transpose(2, 3), atol=1e-6)


def test_coarse_views_lose_the_finest_checks_but_not_the_mean():
    checks = (torch.arange(80)[:, None] + torch.arange(80)) % 2 * 2.0 - 1
    coarse = coarsened(checks.expand(1, 3, -1, -1))
    assert coarse.shape == (1, 3, 80, 80)
    assert coarse.abs().max() < 0.1 and coarse.mean().abs() < 1e-3


def test_jpeg_keeps_the_picture_and_hurts_more_at_lower_quality():
    noise = torch.rand(2, 3, 10, 10, generator=torch.Generator().manual_seed(0)) * 2 - 1
    smooth = F.interpolate(noise, (80, 80), mode="bilinear")
    errors = [(compressed(smooth, quality) - smooth).abs().mean().item() for quality in (95, 30)]
    assert 0 < errors[0] < errors[1] < 0.15
