"""The content branch's training on a tiny world: its losses, its gradients, its shares."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from banded_world import NAMES, Classifier
from safetensors.torch import load_file
from tiny_editor import make_editor, make_stylegan2_editor
from tiny_psp import frozen, make_photos

from faceedit.blend import agreement
from faceedit.errors import CheckpointError, ConfigError
from faceedit.models import fusion as fusion_module
from faceedit.models.fusion import FusionGenerator
from faceedit.train import content as module
from faceedit.train import content_samples
from faceedit.train.content import ContentRecipe, ContentTask, Drawn, _drawn, measure_scales, start_from
from faceedit.train.content_samples import Pairs, Photographs, Sampler
from faceedit.train.style_faces import Classifiers
from faceedit.train.trainer import Share, Trainer

SIDE = 32
FILES = ("out", "generator", "encoder", "directions", "photos", "lpips")
PUBLISHED = {"published": True, "pairs": 0, "edited": 2, "batch": 2, "follow": False, "full": True,
             "levels": (0, 1, 2, 3), "widths": (4, 4, 4, 4)}  # fmt: skip


class Judge(Classifier):
    """The banded world's, with a weight that could be trained."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(len(NAMES)))

    def forward(self, views):
        return super().forward(views) * self.gain


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(module, "SIDE", SIDE)
    monkeypatch.setattr(content_samples, "SIDE", SIDE)
    monkeypatch.setattr(fusion_module, "ATTENTION_SIZE", 8)  # both readings


def make_recipe(out, **settings):
    values = {"levels": (1, 2), "widths": (8, 6), "steps": 2, "batch": 4, "pairs": 2, "edited": 1, "warmup": 0, "decay": 0,
              "bf16": False, "device": "cpu", "log_every": 1, "evaluate_every": 0, "grid_every": 0}  # fmt: skip
    return ContentRecipe(**(dict.fromkeys(FILES, out) | values | settings))


def make_task(out, stylegan2=False, **settings):
    recipe = make_recipe(out, **settings)
    editor = make_stylegan2_editor() if stylegan2 else make_editor()
    generator, encoder = editor.generator, editor._encoder
    seeded = torch.Generator().manual_seed(1)
    codes, noise, real = 0.5 * torch.randn(3, 6, generator.n_styles, generator.style_dim, generator=seeded)
    with torch.no_grad():
        pictures = F.interpolate(generator.preview(codes), (SIDE, SIDE)).clamp(-1, 1)
    pairs = Pairs(((pictures + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy(), codes, codes + 0.3 * noise)
    side = 2 * encoder.input_size if recipe.detail else encoder.input_size
    photographs, held_out = Photographs(make_photos(6).pictures, real, side).split(2)
    sampler = Sampler(photographs, pairs, editor.directions, (0.4, 1.4), recipe.any_edit, recipe.morph)
    sampler.names, sampler.directions = sampler.names[:2], sampler.directions[:2]
    torch.manual_seed(2)
    fusion = FusionGenerator(
        generator, encoder, sampler.names, recipe.levels, recipe.widths, 5, 6, follow=recipe.follow,
        relevance=recipe.relevance, compared=recipe.compared, detail=recipe.detail,
    )  # fmt: skip
    measure_scales(fusion, codes)
    lpips, arcface = frozen()
    return ContentTask(recipe, fusion, encoder, sampler, held_out, lpips, arcface, Classifiers([Judge()]))


def whole(task, step=0):
    return task.loss(Share(0, step, range(task.recipe.batch), task.recipe.batch))


def nudged(task):
    """No longer at the start, where the last layers are zero and nothing before them matters."""
    for extractor in task.fusion.content.extractors:
        torch.nn.init.normal_(extractor.leave.weight, std=0.1)
    return task


@pytest.mark.parametrize("kind", ["following", "published", "stylegan2"])
def test_every_parameter_gets_a_gradient_and_nothing_frozen_moves(tmp_path, kind):
    settings = {"following": {}, "published": PUBLISHED, "stylegan2": {"stylegan2": True}}[kind]
    task = nudged(make_task(tmp_path, **settings))
    still = (task.generator, task.encoder, task.lpips, task.classifiers, task.identity)
    before = [{k: v.clone() for k, v in network.state_dict().items()} for network in still if hasattr(network, "state_dict")]
    optimizer = torch.optim.Adam(task.fusion.parameters(), 1e-2)
    reached = set()
    for step in range(3):
        optimizer.zero_grad()
        whole(task, step)[0].backward()
        reached |= {k for k, p in task.fusion.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        optimizer.step()
    missed = {k for k, _ in task.fusion.named_parameters()} - reached
    # Literal attention does not see its keys' bias, which rounding alone may give a gradient.
    assert all(k.startswith("maps.") and k.endswith("key.bias") for k in missed), missed
    after = [network.state_dict() for network in still if hasattr(network, "state_dict")]
    assert all(torch.equal(v, now[k]) for was, now in zip(before, after, strict=True) for k, v in was.items())
    assert not any(p.requires_grad or p.grad is not None for p in task.classifiers.parameters())


def test_a_batch_can_be_learned_by_heart(tmp_path):
    task = make_task(tmp_path, lambda_cls=0.0, lambda_id=0.0)
    optimizer = torch.optim.Adam(task.fusion.parameters(), 1e-2)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss, _ = whole(task)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("settings", [{}, PUBLISHED], ids=["ours", "published"])
def test_shares_add_up_to_the_whole_batch(tmp_path, settings):
    task = nudged(make_task(tmp_path, **settings))
    batch = task.recipe.batch
    loss, figures = whole(task, 1)
    total, sums = 0.0, dict.fromkeys(figures, 0.0)
    for samples in (range(1), range(1, batch)):
        part, found = task.loss(Share(0, 1, samples, batch))
        assert found.keys() == figures.keys()
        total += part.item() * len(samples) / batch
        sums = {k: v + float(found[k]) * len(samples) / batch for k, v in sums.items()}
    assert total == pytest.approx(loss.item(), rel=1e-4)
    assert sums == pytest.approx({k: float(v) for k, v in figures.items()}, rel=1e-4, abs=1e-7)


def test_two_runs_with_one_seed_agree(tmp_path):
    for name in ("a", "b"):
        task = make_task(tmp_path / name, ema=0.9)
        figures = Trainer(task, task.recipe, "cpu").run()
        assert {"psnr", "lpips", "kept"} <= set(figures) and np.isfinite(figures["psnr"])
    a, b = (load_file(tmp_path / name / "content.safetensors") for name in ("a", "b"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    start = make_task(tmp_path / "c").fusion.state_dict()
    assert any(not torch.equal(a[k], start[k]) for k in a)


def as_drawn(pictures):
    return Drawn(pictures, [[] for _ in pictures])


def test_stripes_finer_than_the_losses_see_are_held_by_the_grain():
    size = 4 * SIDE
    smooth = torch.linspace(-1, 1, 16).repeat_interleave(size // 16).expand(1, 3, size, size)
    stripes = torch.tensor([0.1, -0.1]).repeat(size // 2)[:, None].expand(size, size)
    for period, octave in ((1, 0), (2, 1)):
        fine = stripes.repeat_interleave(period, 0)[:size]
        plain, striped = _drawn([smooth]), _drawn([smooth + fine])
        torch.testing.assert_close(striped.pictures, plain.pictures, atol=1e-4, rtol=0)
        excess = (striped.grain - plain.grain).unflatten(1, (2, 16, 16))
        torch.testing.assert_close(excess[:, octave], torch.full((1, 16, 16), 0.1), atol=0.01, rtol=0)
        assert excess[:, 1 - octave].abs().max() < 0.01
    assert _drawn([smooth[..., :SIDE, :SIDE]]).grain.abs().max() == 0


def aligning(tmp_path):
    """A task that aligns, a share, its edits of photographs that are the generator's own, and what an edit moves there."""
    task = make_task(tmp_path, lambda_align=3.0, lambda_cls=0.0)
    share = Share(0, 0, range(2), 2)
    samples = task.sampler.edited(share)
    before = task.draw(samples.codes).pictures
    moved = task.draw(samples.codes + samples.offsets).pictures - before
    return task, share, samples._replace(photos=before), moved


def test_a_refined_picture_that_moves_as_the_generators_costs_nothing(tmp_path, monkeypatch):
    task, share, samples, moved = aligning(tmp_path)
    figures = {}
    monkeypatch.setattr(task, "refine", lambda samples: as_drawn(samples.photos + moved))
    assert task._edited(share, samples, figures) < 1e-9
    assert figures["edit_cls"] < 1e-6, "the banded classifier is linear: its output moved as far"
    monkeypatch.setattr(task, "refine", lambda samples: as_drawn(samples.photos))  # the edit undone
    loss = task._edited(share, samples, figures)
    torch.testing.assert_close(loss, 3 * moved.square().mean())
    assert figures["edit_cls"] > 1e-6


def test_where_the_generators_picture_is_another_its_changes_are_not_wanted(tmp_path, monkeypatch):
    task, share, samples, moved = aligning(tmp_path)
    before = samples.photos
    half = before.shape[-1] // 2
    photos = before.clone()
    photos[..., half:] = torch.where(before[..., half:] > 0, -1.0, 1.0)
    samples = samples._replace(photos=photos)
    monkeypatch.setattr(task, "refine", lambda samples: as_drawn(samples.photos))  # the edit undone
    loss = task._edited(share, samples, {})
    weight = agreement((photos + 1) / 2, (before + 1) / 2)
    assert weight[..., : half // 4].min() > 0.9 and weight[..., -half // 2 :].max() < 0.1
    torch.testing.assert_close(loss, 3 * (weight * moved.square()).mean())


def test_outside_its_edit_a_refined_picture_is_held_to_the_photograph(tmp_path, monkeypatch):
    task = make_task(tmp_path, lambda_outside=3.0, lambda_align=0.0, lambda_cls=0.0, lambda_turn=0.0, lambda_grain=0.0)
    share = Share(0, 0, range(2), 2)
    samples = task.sampler.edited(share)
    photos = F.interpolate(samples.photos, (SIDE, SIDE), mode="area")
    half = SIDE // 2
    # The generator's edit is of the right half; what blurs into the left is not looked at, nor is a margin.
    before, after = torch.zeros_like(photos), torch.zeros_like(photos)
    after[..., half:] = 1.0
    drawn = iter([before, after] * 3)
    monkeypatch.setattr(task, "draw", lambda codes: as_drawn(next(drawn)))

    def loss(columns):
        refined = photos.clone()
        refined[..., columns] = -refined[..., columns]
        monkeypatch.setattr(task, "refine", lambda samples: as_drawn(refined))
        return task._edited(share, samples._replace(photos=photos), {}), task.lpips(refined, photos).mean()

    inside, _ = loss(slice(half + 4, None))
    assert inside < 1e-6
    beside, changed = loss(slice(None, 4))
    assert changed > 0.01
    torch.testing.assert_close(beside, 3 * changed)
    assert loss(slice(None))[0] > 2 * changed
    assert "edit_outside" not in whole(make_task(tmp_path))[1], "without a weight it is not worked out"


def test_only_a_score_that_falls_short_is_paid_for(tmp_path):
    task = make_task(tmp_path)
    goal, found = torch.zeros(3, len(NAMES)), torch.zeros(3, len(NAMES))
    smiling, young = NAMES.index("Smiling"), NAMES.index("Young")
    goal[0, smiling], found[0, smiling] = 3.0, 1.0  # less of a smile than was wanted
    goal[1, young], found[1, young] = -2.0, -5.0  # older than was wanted: more than enough
    goal[2, young], found[2, young] = 1.0, -1.0  # not as young
    short = task._short_of(goal, found, [{"smile": 0.7}, {"age": 1.0}, {"age": -0.5}])
    torch.testing.assert_close(short, torch.stack([2 / task.score_spread["smile"], torch.zeros(()), 2 / task.score_spread["age"]]))
    assert task._short_of(goal[:1], found[:1], [{}]) == 0  # an edit without a name


def test_the_published_loss_by_hand(tmp_path, monkeypatch):
    task = make_task(tmp_path, **PUBLISHED, lambda_l2=0.01, lambda_cls=10.0, lambda_align=1.0)
    samples = task.sampler.edited(Share(0, 0, range(2), 2))
    refined = samples.photos * 0.5
    monkeypatch.setattr(task, "refine", lambda samples: as_drawn(refined))
    loss, _ = task.loss(Share(0, 0, range(2), 2))  # draws the same samples
    moved = task.draw(samples.codes + samples.offsets).pictures - task.draw(samples.codes).pictures
    outputs = {"smile": ("Smiling", 1), "age": ("Young", -1)}
    crosses = []
    for row, strengths in zip(task.classifiers(refined), samples.strengths, strict=True):
        ((name, strength),) = strengths.items()
        output, sign = outputs[name]
        crosses.append(F.binary_cross_entropy_with_logits(sign * row[NAMES.index(output)], torch.tensor(float(strength > 0))))
    expected = (
        0.01 * (refined - samples.photos).square().mean()
        + 10 * torch.stack(crosses).mean()
        + (moved - (refined - samples.photos)).square().mean()
    )
    torch.testing.assert_close(loss, expected)


def test_pairs_are_compared_with_the_generators_picture_of_the_true_edited_code(tmp_path, monkeypatch):
    task = make_task(tmp_path, batch=2, pairs=2, edited=0)
    _, wanted = task.sampler.pairs(Share(0, 0, range(2), 2))
    monkeypatch.setattr(task, "refine", lambda samples: task.draw(wanted))
    loss, figures = task.loss(Share(0, 0, range(2), 2))
    assert abs(loss) < 1e-5 and set(figures) >= {"pair_l2", "pair_lpips", "pair_id"}


def test_an_untrained_branch_refines_to_the_generators_own_picture_and_keeps_its_edits(tmp_path):
    task = make_task(tmp_path)
    samples = task.sampler.edited(Share(0, 0, range(2), 2))
    with torch.no_grad():
        refined = task.refine(samples).pictures
        torch.testing.assert_close(refined.clamp(-1, 1), task.draw(samples.codes + samples.offsets).pictures)
        assert task.sample_grid().shape == (2, 3 + 2 * 2, 3, SIDE // 2, SIDE // 2)


def test_the_unit_of_a_channel_is_its_deviation_over_faces(tmp_path):
    task = make_task(tmp_path)
    codes = task.sampler.faces.codes
    maps = task.generator.synthesize(codes).features
    for level, extractor in zip(task.fusion.levels, task.fusion.content.extractors, strict=True):
        torch.testing.assert_close(extractor.scale, maps[level].std((0, 2, 3)).clamp_min(1e-4), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": (2, 1)}, "levels"),
        ({"levels": (1, 1)}, "levels"),
        ({"widths": (8,)}, "widths"),
        ({"pairs": 3, "edited": 2}, "batch"),
        ({"published": True}, "published"),
        ({"published": True, "pairs": 0, "edited": 3}, "published"),
    ],
)
def test_recipes_that_cannot_be_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(make_recipe(tmp_path), **changes)


def test_a_run_starts_from_one_whose_levels_are_its_first(tmp_path):
    old = nudged(make_task(tmp_path, levels=(1,), widths=(8,))).fusion
    new, plain = make_task(tmp_path).fusion, make_task(tmp_path).fusion.state_dict()
    torch.nn.init.normal_(old.maps[0].query.weight)
    start_from(new, old.state_dict())
    before, after = old.state_dict(), new.state_dict()
    for key, value in after.items():
        if key.startswith("content.directions."):
            assert torch.equal(value[:1], before[key]) and torch.equal(value[1:], plain[key][1:])
        else:
            assert torch.equal(value, before.get(key, plain[key])), key
    assert not torch.equal(after["maps.0.query.weight"], plain["maps.0.query.weight"])
    # The level that is new adds nothing yet: both draw the same.
    task = make_task(tmp_path)
    samples = task._shown([0], {})
    with torch.no_grad():
        x = F.interpolate(samples.photos, (old.content.photo_size,) * 2)
        features, latents = task.encoder(x).features, samples.codes
        pictures = [f(f.encode(x, features, latents).maps, latents, [{}]).image for f in (old, new)]
    torch.testing.assert_close(*pictures)


def test_a_run_starts_from_one_with_more_relevance_maps(tmp_path):
    old, new = make_task(tmp_path).fusion, make_task(tmp_path, compared=1).fusion
    torch.nn.init.normal_(old.maps[0].query.weight)
    start_from(new, old.state_dict())
    assert not any(key.startswith("maps.1.") for key in new.state_dict())
    assert all(torch.equal(value, old.state_dict()[key]) for key, value in new.state_dict().items())


@pytest.mark.parametrize("settings", [{"widths": (10, 9)}, {"detail": True}, {"widths": (8, 7), "detail": True, "compared": 1}])
def test_a_run_starts_from_a_narrower_one_or_one_without_detail(tmp_path, settings):
    old = nudged(make_task(tmp_path)).fusion
    task = make_task(tmp_path, **settings)
    start_from(task.fusion, {key: value.clone() for key, value in old.state_dict().items()})
    if "compared" in settings:
        old.maps = old.maps[:1]
    samples = task._shown([0], {"smile": 1.0})
    with torch.no_grad():
        features = task.encoder(samples.photos).features
        old_photo = F.avg_pool2d(samples.photos, 2) if task.recipe.detail else samples.photos
        pictures = [
            f(f.encode(x, features, samples.codes).maps, samples.codes + samples.offsets, [{"smile": 1.0}]).image
            for f, x in ((old, old_photo), (task.fusion, samples.photos))
        ]
    torch.testing.assert_close(*pictures, rtol=1e-4, atol=1e-5)
    # And all that is new can be learned.
    task.loss(Share(0, 0, range(4), 4))[0].backward()
    for extractor, width in zip(task.fusion.content.extractors, task.recipe.widths):
        assert (extractor.leave.weight.grad.abs().sum((0, 2, 3)) > 0).sum() == width
    if task.recipe.detail:
        assert task.fusion.content.detail.weight.grad.abs().max() > 0


def test_attributes_that_a_run_lacks_go_into_the_biases(tmp_path):
    old = nudged(make_task(tmp_path)).fusion
    kept, dropped = old.content.attributes
    new = FusionGenerator(old.generator, make_editor()._encoder, (kept,), (1, 2), (8, 6), 5, 6)
    start_from(new, {key: value.clone() for key, value in old.state_dict().items()})
    assert not any(dropped in key for key in new.state_dict())
    for i, (ours, theirs) in enumerate(zip(new.content.extractors, old.content.extractors)):
        for strengths in ({}, {kept: 0.7}):
            rows = [f.content.direction([strengths])[:, i] for f in (new, old)]
            torch.testing.assert_close(ours.adain.affine(rows[0]), theirs.adain.affine(rows[1]))
            assert not torch.equal(*rows)


def test_attributes_that_only_a_run_has_start_at_nothing(tmp_path):
    """The pictures are as in the run it starts from, and what is new can be learned."""
    task = make_task(tmp_path)
    first, second = task.fusion.content.attributes
    old = FusionGenerator(task.fusion.generator, make_editor()._encoder, (first,), (1, 2), (8, 6), 5, 6)
    torch.nn.init.normal_(old.content.extractors[0].adain.affine.weight)
    start_from(task.fusion, {key: value.clone() for key, value in old.state_dict().items()})
    assert torch.equal(task.fusion.content.directions[first], old.content.directions[first])
    for strengths in ({}, {first: 0.7}, {second: 0.7}):
        rows = [f.content.direction([strengths])[:, 0] for f in (task.fusion, old)]
        assert torch.equal(*rows)
    fresh = task.fusion.content.directions[second]
    task.fusion.content.extractors[0].adain(torch.ones(1, 8, 2, 2), task.fusion.content.direction([{}])[:, 0]).sum().backward()
    assert fresh.grad.abs().max() > 0


def test_detail_beyond_the_losses_side_is_held_to_the_targets(tmp_path, monkeypatch):
    """Blocks where the target is smooth, and a soft picture where it is sharp, are both paid for."""
    task = make_task(tmp_path, full=True, lambda_l2=0.0, lambda_lpips=0.0, lambda_id=0.0, lambda_detail=3.0)
    size, share = task.generator.resolution, Share(0, 0, range(2), 2)
    assert size > SIDE
    samples = task.sampler.unedited(share)
    target = F.interpolate(samples.photos, (size, size), mode="bicubic").clamp(-1, 1)
    blocks = F.avg_pool2d(target, size // SIDE).repeat_interleave(size // SIDE, 2).repeat_interleave(size // SIDE, 3)

    def found(pictures):
        monkeypatch.setattr(task, "refine", lambda samples: _drawn(pictures.split(1)))
        return task._likeness(share, samples, None, "", {}).item()

    coarse, expected = target, 0.0
    while coarse.shape[-1] > SIDE:
        mean = F.avg_pool2d(coarse, 2)
        expected += 3 * (coarse - F.interpolate(mean, coarse.shape[-2:])).abs().mean().item()
        coarse = mean
    assert found(target) < 1e-6
    assert found(blocks) == pytest.approx(expected, rel=1e-4)
    assert expected > 0.01


@pytest.mark.parametrize("settings", [{"levels": (1, 2, 3), "widths": (8, 6, 4)}, {"levels": (1,), "widths": (9,)}, None])
def test_a_run_does_not_start_from_weights_that_do_not_fit(tmp_path, settings):
    given = make_task(tmp_path, **settings).fusion.state_dict() if settings else {"content.directions.hat": torch.ones(2, 3)}
    fusion = make_task(tmp_path).fusion
    before = {key: value.clone() for key, value in fusion.state_dict().items()}
    with pytest.raises(CheckpointError, match="same levels, of widths no larger"):
        start_from(fusion, given)
    assert all(torch.equal(value, before[key]) for key, value in fusion.state_dict().items())
