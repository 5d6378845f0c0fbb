"""What the content branch learns on: codes, edits and pictures that belong together."""

import numpy as np
import pytest
import torch

from faceedit.directions import Directions
from faceedit.train import content_samples
from faceedit.train.content_samples import Pairs, Photographs, Sampler, at_side
from faceedit.train.crops import to_unit
from faceedit.train.task import Share

ROWS, DIM, SIDE, N = 6, 4, 16, 12
NAMES = ("smile", "age")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(content_samples, "SIDE", SIDE)


def make_sampler(any_edit=0.0, morph=0.4, strengths=(0.4, 1.4), side=SIDE):
    random, seeded = np.random.default_rng(0), torch.Generator().manual_seed(0)
    photographs = Photographs(random.integers(0, 256, (N, 18, 18, 3), np.uint8), torch.randn(N, ROWS, DIM, generator=seeded), side)
    pictures = random.integers(0, 256, (N, SIDE, SIDE, 3), np.uint8)
    pairs = Pairs(pictures, *torch.randn(2, N, ROWS, DIM, generator=seeded))
    directions = Directions({name: torch.randn(ROWS, DIM, generator=seeded) for name in NAMES})
    return Sampler(photographs, pairs, directions, strengths, any_edit, morph)


def share(n=N, step=0, total=None):
    return Share(7, step, range(n), total or n)


def rows_of(found, table):
    """Which row of a table each sample is."""
    return [int((table - one).abs().flatten(1).amax(1).argmin()) for one in found]


def named_offset(sampler, strengths):
    return sum(s * sampler.directions[NAMES.index(name)] for name, s in strengths.items())


def test_unedited_photographs_have_no_offset_and_their_own_code():
    sampler = make_sampler()
    found = sampler.unedited(share())
    assert not found.offsets.any() and found.offsets.shape == (N, ROWS, DIM) and found.strengths == [{}] * N
    rows = rows_of(found.codes, sampler.photographs.codes)
    assert sorted(rows) == list(range(N)), "each once an epoch"
    assert torch.equal(found.codes, sampler.photographs.codes[rows])
    plain = sampler.photographs.framed(torch.tensor(rows))
    assert plain.shape == found.photos.shape == (N, 3, SIDE, SIDE)
    # A gain for each channel of each picture, about [0, 2] and clipped.
    inside = (found.photos < 0.999) & (plain > -0.9)
    for photo, was, sure in zip(found.photos.flatten(0, 1), plain.flatten(0, 1), inside.flatten(0, 1), strict=True):
        gain = (photo[sure] + 1) / (was[sure] + 1)
        assert 0.8 < gain.min() and gain.max() < 1.21 and gain.std() < 1e-4
    assert found.photos.max() <= 1 and not torch.allclose(found.photos, plain, atol=0.05)


def test_an_edit_is_one_attribute_by_its_strength():
    sampler = make_sampler(strengths=(0.5, 0.9))
    found = sampler.edited(share())
    for offset, strengths in zip(found.offsets, found.strengths, strict=True):
        assert len(strengths) == 1
        assert 0.5 <= abs(*strengths.values()) < 0.9
        torch.testing.assert_close(offset, named_offset(sampler, strengths))
    values = [s for strengths in found.strengths for s in strengths.values()]
    assert min(values) < 0 < max(values) and {name for each in found.strengths for name in each} == set(NAMES)
    assert torch.equal(found.photos, sampler.unedited(share()).photos)


def test_a_pairs_wanted_code_is_its_true_code_and_the_offset():
    sampler = make_sampler()
    found, wanted = sampler.pairs(share())
    true, inverted = sampler.faces.codes, sampler.faces.inverted
    rows = rows_of(wanted - found.offsets, true)
    assert sorted(rows) == list(range(N))
    torch.testing.assert_close(wanted, true[rows] + found.offsets)
    assert torch.equal(found.photos, to_unit(sampler.faces.pictures[rows]))
    for offset, strengths in zip(found.offsets, found.strengths, strict=True):
        torch.testing.assert_close(offset, named_offset(sampler, strengths))
    encoders = [torch.equal(code, inverted[row]) for code, row in zip(found.codes, rows)]
    assert 0 < sum(encoders) < N, "some have the encoder's code, the others are on the way to another face"
    for row, code, is_encoders in zip(rows, found.codes, encoders):
        if not is_encoders:
            ways = true - true[row]
            share_of_way = (ways * (code - true[row])).sum((1, 2)) / ways.square().sum((1, 2)).clamp_min(1e-9)
            left = (true[row] + share_of_way[:, None, None] * ways - code).abs().amax((1, 2))
            assert left.min() < 1e-5 and -1e-6 <= share_of_way[left.argmin()] <= 0.4


def test_edits_towards_another_face_move_a_range_of_rows_and_have_no_name():
    sampler = make_sampler(any_edit=1.0, morph=0.0)
    found, wanted = sampler.pairs(share())
    assert found.strengths == [{}] * N
    true = sampler.faces.codes
    rows = rows_of(wanted - found.offsets, true)
    moved = found.offsets.abs().amax(2) > 0
    assert moved.any() and not moved.all()
    for row, offset, within in zip(rows, found.offsets, moved, strict=True):
        places = within.nonzero().flatten().tolist()
        assert places == list(range(min(places, default=0), max(places, default=-1) + 1))
        if places:
            ways = (true - true[row])[:, within]
            step = (ways * offset[within]).sum((1, 2)) / ways.square().sum((1, 2)).clamp_min(1e-9)
            left = (step[:, None, None] * ways - offset[within]).abs().amax((1, 2))
            assert left.min() < 1e-5 and 0.2 - 1e-5 <= step[left.argmin()] <= 0.7


def test_about_the_share_that_is_asked_for_goes_towards_another_face():
    sampler = make_sampler(any_edit=0.3)
    free = [not strengths for step in range(20) for strengths in sampler.pairs(share(step=step))[0].strengths]
    assert 0.2 < np.mean(free) < 0.4


@pytest.mark.parametrize("kind", ["unedited", "edited", "pairs"])
def test_a_share_of_the_batch_draws_what_the_whole_draws_there(kind):
    draw = getattr(make_sampler(any_edit=0.5), kind)

    def tensors(samples):
        found = draw(Share(7, 3, samples, 8))
        return [*found[:3], found[3]] if kind != "pairs" else [*found[0][:3], found[1], found[0].strengths]

    whole, part, none = tensors(range(8)), tensors(range(5, 8)), tensors(range(8, 8))
    for a, b, c in zip(whole, part, none, strict=True):
        assert torch.equal(a[5:], b) if isinstance(a, torch.Tensor) else a[5:] == b
        assert len(c) == 0


def test_the_last_photographs_are_held_out():
    photographs = make_sampler().photographs
    kept, held_out = photographs.split(3)
    assert (len(kept.crops), len(held_out.crops)) == (len(kept.codes), len(held_out.codes)) == (N - 3, 3)
    assert np.array_equal(held_out.crops, photographs.crops[-3:]) and torch.equal(held_out.codes, photographs.codes[-3:])
    assert np.array_equal(kept.crops, photographs.crops[:-3]) and torch.equal(kept.codes, photographs.codes[:-3])


@pytest.mark.parametrize("kind", ["unedited", "edited", "pairs"])
def test_pictures_are_shown_at_the_side_that_the_branch_reads(kind):
    small, large = (getattr(make_sampler(side=side), kind)(share()) for side in (SIDE, 2 * SIDE))
    if kind == "pairs":
        small, large = small[0], large[0]
    assert large.photos.shape == (N, 3, 2 * SIDE, 2 * SIDE) and small.photos.shape == (N, 3, SIDE, SIDE)
    # Enlarged smoothly, the same picture.
    again = torch.nn.functional.avg_pool2d(large.photos, 2)
    assert (again - small.photos).abs().mean() < 0.2 * (small.photos.roll(1, 0) - small.photos).abs().mean()
    assert large.photos.abs().max() <= 1


def test_a_picture_at_another_side():
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    assert torch.equal(at_side(x, 8), x)
    torch.testing.assert_close(at_side(x, 4), torch.nn.functional.avg_pool2d(x, 2))
    ramp = torch.linspace(-0.5, 0.5, 8).expand(1, 3, 8, 8)
    steps = at_side(ramp, 32).diff(dim=-1)[..., 8:-8]
    assert steps.max() < 2 * steps.min(), "no blocks, whose steps are 0 and then all at once"
