"""The style branch in a world where what causes an attribute is known."""

import dataclasses
import math
import signal

import numpy as np
import pytest
import torch
from banded_world import DIM, ENTRIES, NAMES, ROWS, Classifier, Distance, Generator
from safetensors.torch import load_file, save_file
from tiny_editor import make_editor

from faceedit.directions import Directions
from faceedit.errors import ConfigError, DataError, UsageError
from faceedit.train.attributes import ATTRIBUTES
from faceedit.train import calibrate as calibration
from faceedit.train.calibrate import CalibrateRecipe, allowed_scale, averaged, calibrate, crossings, needed_scale
from faceedit.train.crops import to_unit
from faceedit.train.proximal import ProximalStep, soft_threshold
from faceedit.train.style import SKIN, StyleBranch, StyleRecipe, root_correlation, tone
from faceedit.train import style_faces
from faceedit.train.style_faces import Classifiers, StyleFaces, invert_crops, look_at
from faceedit.train.task import Share
from faceedit.train.trainer import Trainer


W = torch.randn(4000, DIM, generator=torch.Generator().manual_seed(9))


def recipe(out, **changes):
    values = dict(
        out=out, generator=out, classifiers=(out,), lpips=out, attributes=("smile", "age"), steps=60, batch=8,
        warmup=2, decay=20, lr=0.08, density_local=0.03, density_global=0.09, save_every=1000, grid_every=0, device="cpu",
    )
    return StyleRecipe(**(values | changes))


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    generator, classifiers = Generator(), Classifiers([Classifier()])
    codes = torch.randn(200, 1, DIM, generator=torch.Generator().manual_seed(1)).expand(-1, ROWS, -1).contiguous()
    return look_at(generator, classifiers, codes, tmp_path_factory.mktemp("faces") / "faces.npy")


def branch(recipe, faces, kind=StyleBranch):
    generator = Generator()
    return kind(recipe, generator, Classifiers([Classifier()]), Distance(), None, faces, faces, W)


def trained(recipe, faces):
    task = branch(recipe, faces)
    Trainer(task, recipe, "cpu").run()
    return task


@pytest.fixture(scope="module")
def learned(tmp_path_factory, faces):
    return trained(recipe(tmp_path_factory.mktemp("style")), faces)


def test_faces_are_drawn_and_labelled(faces):
    truth = Generator().truth(faces.codes)
    assert faces.logits.shape == (200, len(NAMES))
    assert torch.allclose(faces.logits, truth, atol=0.3)  # pictures are stored in 8 bits
    assert to_unit(faces.pictures[:2]).shape == (2, 3, 80, 80)


def test_a_direction_moves_what_causes_its_attribute_and_nothing_else(learned):
    for name, output, sign in (("smile", "Smiling", 1), ("age", "Young", -1)):
        direction = learned.directions()[name]
        first, stop = ENTRIES[output]
        share = direction[first:stop, NAMES.index(output)].abs().sum() / direction.abs().sum()
        assert share > 0.8
        effect = Generator().truth(direction[None])[0]
        own = sign * effect[NAMES.index(output)]
        assert own > 2
        others = [abs(float(effect[i])) for i, other in enumerate(NAMES) if other != output]
        assert max(others) < 0.1 * own


def test_zeros_are_exact_and_as_many_as_asked_for(learned):
    density = dict(zip(("smile", "age"), learned.density().tolist()))
    assert 0 < density["smile"] <= 0.03 and 0 < density["age"] <= 0.09


def test_without_l_spa_directions_are_dense(tmp_path, faces):
    dense = trained(recipe(tmp_path, sparse=False, steps=20, decay=5), faces)
    assert dense.density().min() > 0.1


def test_strength_one_turns_held_out_faces_both_ways(learned):
    figures = learned.evaluate()
    assert {"smile+1", "smile-1", "age+1", "age-1"} < set(figures)
    assert figures["turned"] > 0.6


def test_every_direction_gets_a_gradient_and_nothing_frozen_moves(tmp_path, faces):
    task = branch(recipe(tmp_path), faces)
    before = {k: v.clone() for k, v in task.generator.state_dict().items()}
    for step in range(2):
        task.loss(Share(0, step, range(8), 8))[0].backward()
    assert all(d.grad is not None and d.grad.abs().sum() > 0 for d in task.trainable.directions.values())
    assert all(torch.equal(v, before[k]) for k, v in task.generator.state_dict().items())
    assert not any(p.requires_grad for p in task.classifiers.parameters())


def test_attributes_take_turns_and_senses_alternate(tmp_path, faces):
    task = branch(recipe(tmp_path), faces)
    draw = task._draw(Share(0, 5, range(8), 8))
    assert sorted(draw.attributes) == [0] * 4 + [1] * 4
    assert draw.sense.tolist() == [1, -1] * 4
    score = torch.stack([task.attributes[k].score(faces.logits[i], NAMES) for k, i in zip(draw.attributes, draw.faces)])
    assert bool((draw.sense * score < 0).all()), "every face is asked for what it lacks"


def test_a_share_of_the_batch_draws_what_the_whole_batch_draws_there(tmp_path, faces):
    task = branch(recipe(tmp_path), faces)
    whole, half = task._draw(Share(0, 3, range(8), 8)), task._draw(Share(0, 3, range(4, 8), 8))
    assert whole.faces[4:] == half.faces and whole.attributes[4:] == half.attributes
    assert torch.equal(whole.strength[4:], half.strength)


def test_no_face_is_asked_to_go_further_than_the_reach(tmp_path, faces):
    task = branch(recipe(tmp_path, reach=0.5, margin=1.0), faces)
    draw = task._draw(Share(0, 0, range(8), 8))
    goal = task._goal(draw)
    for i, (k, face) in enumerate(zip(draw.attributes, draw.faces)):
        was = draw.sense[i] * task.attributes[k].score(faces.logits[face], NAMES)
        assert goal[i] <= was + 0.5 * draw.strength[i] * task.score_std[k] + 1e-5
        assert goal[i] <= draw.strength[i] + 1e-5


def test_the_skins_colour_is_held_and_nothing_elses(tmp_path, faces):
    size = 100
    pictures = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    skin = torch.zeros(size, size, dtype=torch.bool)
    for top, bottom, left, right in SKIN:
        skin[round(top * size) : round(bottom * size), round(left * size) : round(right * size)] = True
    green = torch.tensor([-0.2, 0.1, 0.0])[:, None, None]
    torch.testing.assert_close(tone(pictures + green * skin) - tone(pictures), green[:, 0, 0].expand(2, 3))
    torch.testing.assert_close(tone(pictures + green * ~skin), tone(pictures))
    task = branch(recipe(tmp_path, lambda_tone=5.0), faces)
    with torch.no_grad():
        task.trainable.directions["smile"].normal_()
        loss, figures = task.loss(Share(0, 0, range(8), 8))
        task.recipe = dataclasses.replace(task.recipe, lambda_tone=0.0)
        without, _ = task.loss(Share(0, 0, range(8), 8))
    assert figures["tone"] > 0
    torch.testing.assert_close(loss - without, 5 * figures["tone"])


def test_interrupted_and_resumed_is_uninterrupted(tmp_path, faces):
    short = {"steps": 30, "decay": 10, "settle": 0.5}
    whole = trained(recipe(tmp_path / "whole", **short), faces)
    parts = recipe(tmp_path / "parts", **short)

    class Interrupted(StyleBranch):
        def after_step(self, optimizer):
            super().after_step(optimizer)
            if int(self.trainable.steps_made) == 21:  # in the part where zeros are kept
                signal.raise_signal(signal.SIGTERM)

    task = branch(parts, faces, Interrupted)
    Trainer(task, parts, "cpu").run()
    assert 21 <= int(task.trainable.steps_made) < 30
    resumed = trained(parts, faces)
    for name, direction in whole.directions().items():
        assert torch.equal(direction, resumed.directions()[name])
    assert torch.equal(load_file(tmp_path / "parts" / "style.safetensors")["smile"], whole.directions()["smile"])


def test_a_pool_without_enough_faces_takes_the_nearest(tmp_path, faces):
    few = StyleFaces(faces.codes[:60], faces.pictures[:60], faces.logits[:60].clone())
    few.logits[:, NAMES.index("Smiling")] = torch.linspace(1, 7, 60)  # all smile
    task = branch(recipe(tmp_path, attributes=("smile",)), few)
    assert task.pools[0][0].tolist() == list(range(40)), "those who smile least"
    assert len(task.pools[0][1]) == 60


@pytest.mark.parametrize("changes", [{"attributes": ("smlie",)}, {"attributes": ()}, {"encoder": "x"}])
def test_recipes_that_cannot_be_are_refused(tmp_path, changes):
    with pytest.raises(ConfigError):
        recipe(tmp_path, **changes)


def test_classifiers_must_agree():
    other = Classifier()
    other.names = ("Smiling",)
    with pytest.raises(UsageError):
        Classifiers([Classifier(), other])
    with pytest.raises(UsageError):
        Classifiers([])


# --- the optimizer ------------------------------------------------------------------------------


def test_the_soft_threshold_is_the_proximal_operator_of_the_sum_of_absolute_values():
    x = torch.tensor([-1.0, -0.2, 0.0, 0.1, 0.7])
    found = soft_threshold(x, 0.2)
    grid = torch.linspace(-1, 1, 2001)
    best = torch.stack([grid[(0.5 * (grid - v).square() + 0.2 * grid.abs()).argmin()] for v in x])
    assert torch.allclose(found, best, atol=1e-3)
    assert (found == 0).tolist() == [False, True, True, True, False]


def test_a_step_is_the_mean_gradient_over_its_size():
    p, still = torch.nn.Parameter(torch.zeros(4)), torch.nn.Parameter(torch.ones(2))
    optimizer = ProximalStep([{"params": [p, still]}], 0.1, (0.9, 0.99))
    gradient = torch.tensor([3.0, -1.0, 0.0, 2.0])
    for _ in range(3):  # the same gradient each time: its mean is itself
        p.grad = gradient.clone()
        optimizer.step()
    assert torch.allclose(p.detach(), -0.3 * gradient / gradient.square().mean().sqrt(), rtol=1e-4)
    assert torch.equal(still.detach(), torch.ones(2))


def test_a_metric_turns_the_step_towards_what_it_calls_short():
    p = torch.nn.Parameter(torch.zeros(1, 2))
    optimizer = ProximalStep([{"params": [p]}], 0.1, (0.9, 0.99), torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    p.grad = torch.tensor([[1.0, 0.0]])
    optimizer.step()
    assert torch.allclose(p.detach(), -0.1 * torch.tensor([[2.0, 1.0]]) / 2.5**0.5)


def test_the_metric_squares_to_the_correlation_of_w():
    w = torch.randn(3000, 3, generator=torch.Generator().manual_seed(2)) @ torch.tensor([[1.0, 0.8, 0], [0, 1, 0], [0, 0, 5]])
    root = root_correlation(w)
    assert torch.allclose(root @ root, torch.corrcoef(w.T), atol=1e-4)
    assert torch.allclose(root, root.T, atol=1e-5) and torch.linalg.eigvalsh(root).min() >= 0


# --- calibration --------------------------------------------------------------------------------


def test_crossings_are_interpolated():
    scores = torch.tensor([[-1.0, -2.0, -1.0], [1.0, -1.0, -0.5], [3.0, 1.0, -0.2]])
    assert crossings((0.0, 1.0, 2.0), scores).tolist() == pytest.approx([0.5, 1.5, math.inf])
    assert needed_scale(torch.tensor([0.5, 1.5, math.inf]), 0.6) == (1.5, pytest.approx(2 / 3))
    assert needed_scale(torch.tensor([0.5, 1.5, math.inf]), 0.3) == (0.5, pytest.approx(1 / 3))
    assert needed_scale(torch.tensor([0.5, 1.5, math.inf]), 0.9) == (1.5, pytest.approx(2 / 3)), "as many as ever turn"
    assert needed_scale(torch.tensor([math.inf]), 0.9) == (math.inf, 0)


def test_the_allowed_scale_is_where_identity_meets_the_bar():
    assert allowed_scale((0.0, 1.0, 2.0), torch.tensor([1.0, 0.9, 0.7]), 0.8) == pytest.approx(1.5)
    assert allowed_scale((0.0, 1.0, 2.0), torch.tensor([1.0, 0.9, 0.85]), 0.8) == 2.0


class Person(torch.nn.Module):
    """Turns away from who it was as the first band brightens or darkens."""

    def describe(self, aligned):
        angle = aligned[:, :, : aligned.shape[2] // len(NAMES)].mean((1, 2, 3))
        return torch.stack((angle.cos(), angle.sin()), 1)


class Anybody(torch.nn.Module):
    def describe(self, aligned):
        return torch.ones(len(aligned), 1)


def test_calibrated_strength_one_turns_the_share(tmp_path):
    generator, classifiers = Generator(), Classifiers([Classifier()])
    codes = torch.randn(200, 1, DIM, generator=torch.Generator().manual_seed(4)).expand(-1, ROWS, -1).contiguous()
    direction = torch.zeros(ROWS, DIM)
    direction[2:4, 0] = 0.1  # far too short
    useless = torch.zeros(ROWS, DIM)
    useless[0, 11] = 1
    settings = CalibrateRecipe(
        generator=tmp_path, classifiers=(tmp_path,), directions=(tmp_path,), identity=tmp_path, out=tmp_path, share=0.8,
        scales=tuple(float(s) for s in range(4, 40, 5)), faces=200, turned=40, longest=1.25,
    )
    vectors = {"smile": direction, "age": useless}
    scaled, ranges = calibrate(generator, classifiers, Anybody(), vectors, codes, settings)
    assert set(scaled) == {"smile"}, "what turns nobody is left out"
    truth = generator.truth(codes)[:, 0]
    lacking = truth < 0
    after = generator.truth(codes + scaled["smile"])[:, 0]
    assert (after[lacking] > 0).float().mean() == pytest.approx(0.8, abs=0.08)
    assert ranges["smile"][0] == -ranges["smile"][1] and 1 <= ranges["smile"][1] <= 1.25
    for longest in (1.0, 1.1):  # never further than that, whatever quarter is next
        _, ranges = calibrate(generator, classifiers, Anybody(), {"smile": direction}, codes, dataclasses.replace(settings, longest=longest))
        assert ranges["smile"] == pytest.approx((-longest, longest), abs=0.1) and ranges["smile"][1] <= longest
    with pytest.raises(ConfigError, match="longest"):
        dataclasses.replace(settings, longest=0.9)
    with pytest.raises(DataError):
        calibrate(generator, classifiers, Anybody(), {"age": useless}, codes, settings)
    kept, _ = calibrate(generator, classifiers, Person(), vectors, codes, dataclasses.replace(settings, identity_local=0.999))
    assert kept["smile"].norm() < 0.9 * scaled["smile"].norm(), "identity stops it short of the share"
    assert Directions(scaled, ranges=ranges, aliases={"smile": ATTRIBUTES["smile"].aliases}).resolve("happy") == "smile"


def test_calibrated_directions_join_those_of_another_file(tmp_path, monkeypatch, capsys):
    raw, base, out = (tmp_path / f"{name}.safetensors" for name in ("raw", "base", "out"))
    old, new = (Directions({"age": torch.full((ROWS, DIM), v), "beard": torch.ones(ROWS, DIM)}, ranges={"age": (-v, v)}) for v in (2.0, 3.0))
    old.save(base)
    save_file({"age": new.vectors["age"]}, raw)
    for name in ("load_identity", "mixed_latents"):
        monkeypatch.setattr(calibration, name, lambda *_, **__: torch.nn.Identity())
    monkeypatch.setattr(calibration, "load_networks", lambda *_: [torch.nn.Identity()] * 3)
    monkeypatch.setattr(calibration, "calibrate", lambda generator, classifiers, identity, vectors, codes, recipe: (vectors, {"age": (-1.5, 1.5)}))
    files = [f"--{name}={tmp_path}" for name in ("generator", "classifiers", "identity")]
    assert calibration.main([*files, f"--directions={raw}", f"--base={base}", f"--out={out}", "--device=cpu"]) == 0
    found = Directions.load(out)
    assert torch.equal(found.vectors["age"], new.vectors["age"]) and torch.equal(found.vectors["beard"], old.vectors["beard"])
    assert found.ranges["age"] == (-1.5, 1.5) and found.resolve("older") == "age"
    assert "1 directions calibrated, 2 written" in capsys.readouterr().out


def test_directions_of_several_runs_are_averaged_at_equal_lengths():
    one, two = torch.zeros(2, ROWS, DIM)
    one[0, 0], two[0, 0], two[1, 1] = 2.0, 0.3, 0.4
    found = averaged([{"smile": one, "age": one}, {"smile": two, "beard": two}])
    expected = torch.zeros(ROWS, DIM)
    expected[0, 0], expected[1, 1] = (2.0 + 2 * 0.6) / 2, 2 * 0.8 / 2
    torch.testing.assert_close(found["smile"], expected)
    assert torch.equal(found["age"], one) and torch.equal(found["beard"], two), "what one run alone has learned stays as it is"
    assert torch.equal(averaged([{"age": 0 * one}])["age"], 0 * one), "nothing learned is nothing, not NaN"
    with pytest.raises(UsageError, match=rf"smile.*\({ROWS}, {DIM}\), \({ROWS}, 3\)"):
        averaged([{"smile": one}, {"smile": one[:, :3]}])


def test_inversions_are_kept_for_the_same_networks_corrections_and_pictures(tmp_path, monkeypatch):
    editor = make_editor()
    encoder, generator = editor.encoder, editor.to(dtype=torch.bfloat16).generator
    torch.nn.init.normal_(encoder.to_correction[1].weight, std=0.1)
    crops = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    made, real = [], style_faces._inverted
    monkeypatch.setattr(style_faces, "_inverted", lambda *args: made.append(1) or real(*args))

    def inverted(crops=crops, generator=generator):
        return invert_crops(encoder, generator, crops, tmp_path / "codes.safetensors", margin=False)

    encoder.looks = 1
    once = inverted()
    assert torch.equal(inverted(), once) and len(made) == 1 and once.shape == (3, *editor.directions.shape)
    encoder.looks = 2
    assert not torch.equal(inverted(), once) and len(made) == 2
    encoder.looks = 1
    other = editor.to(dtype=torch.bfloat16).generator
    other.preview_head.bias.add_(1)
    assert not torch.equal(inverted(generator=other), once) and len(made) == 3
    assert not torch.equal(inverted(255 - crops), once) and len(made) == 4
    assert torch.equal(inverted(), once)


@pytest.mark.parametrize("setting", [{"ema": 0.9}, {"weight_decay": 0.1}])
def test_what_would_undo_exact_zeros_is_refused(tmp_path, setting):
    with pytest.raises(ConfigError, match="exact zeros"):
        StyleRecipe(out=tmp_path, generator=tmp_path, classifiers=(tmp_path,), lpips=tmp_path, **setting)
