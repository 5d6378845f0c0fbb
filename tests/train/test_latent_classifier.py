"""The latent classifier's stage, in a world where what causes an attribute is known."""

import json

import pytest
import torch
from banded_world import DIM, NAMES, ROWS, Classifier, Generator
from safetensors.torch import load_file, save_file
from tiny_editor import make_editor
from tiny_evaluation import write_networks

from faceedit.directions import Directions
from faceedit.errors import CheckpointError, CheckpointNotFoundError, ConfigError
from faceedit.train import latent_classifier as stage
from faceedit.train.latent_classifier import (
    LatentClassifierRecipe, LatentClassifierTask, among, best_goal, draw_codes, interpolated, label, load, save, set_goals,
)  # fmt: skip
from faceedit.train.style_faces import Classifiers
from faceedit.train.task import Share
from faceedit.train.trainer import Trainer

ATTRIBUTES = ("smile", "gender", "beard")


def recipe(out, **changes):
    values = dict(
        out=out, generator=out, classifiers=(out,), identity=out, directions=out, faces=1500, held_out=200, rows=8, hidden=32,
        dropout=0.0, noise=0.0, steps=400, warmup=20, decay=300, lr=3e-3, goal=1.0, looks=40, longest=2.0, save_every=1000, grid_every=0,
        device="cpu",
    )  # fmt: skip
    return LatentClassifierRecipe(**(values | changes))


def directions():
    """Each moves what its attribute is read from, and its score by 2."""
    weight = Generator().weight
    signs = {"smile": ("Smiling", 1), "gender": ("Male", 1), "beard": ("No_Beard", -1)}
    found = {}
    for name, (output, sign) in signs.items():
        own = weight[NAMES.index(output)]
        found[name] = 2 * sign * own / own.square().sum()
    return found


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    out = tmp_path_factory.mktemp("latents")
    codes = draw_codes(Generator(), torch.stack([*directions().values()]), None, recipe(out))
    return codes, label(Generator(), Classifiers([Classifier()]), codes, out / "logits.safetensors")


def faces(n, seed):
    """Codes as those of training: rows are equal."""
    return torch.randn(n, 1, DIM, generator=torch.Generator().manual_seed(seed)).expand(-1, ROWS, -1) / 2


def scores(logits):
    return torch.stack([stage.ATTRIBUTES[name].score(logits, NAMES) for name in ATTRIBUTES], 1)


@pytest.fixture(scope="module")
def learned(tmp_path_factory, drawn):
    settings = recipe(tmp_path_factory.mktemp("run"))
    torch.manual_seed(0)
    task = LatentClassifierTask(settings, ATTRIBUTES, drawn[0], scores(drawn[1]))
    figures = Trainer(task, settings, "cpu").run()
    return load(settings.out / "latent_classifier.safetensors"), figures


def test_attributes_are_told_from_codes_alone(learned):
    model, figures = learned
    assert model.attributes == ATTRIBUTES and model.among == {"beard": "gender"} and model.rows == 8
    assert set(figures) == {"r2", *ATTRIBUTES} and min(figures.values()) > 0.9
    codes = faces(20, 2)
    torch.testing.assert_close(model(codes), scores(Generator().truth(codes)), atol=0.4, rtol=0)


def test_steps_are_as_long_as_the_true_ones(learned):
    model, _ = learned
    model.goals.zero_()
    codes = faces(30, 3)
    truth = scores(Generator().truth(codes))[:, 0]
    for code, score in zip(codes, truth.tolist()):
        found = model.step(code, directions()["smile"], "smile", 1)
        assert found == pytest.approx(min(max(-score / 2, 0.75), 2.0), abs=0.2)


def test_worn_things_need_no_step_where_they_are():
    limits = {"longest_of": {"age": 1.3}, "shortest_of": {"age": 0.2, "glasses": 0.9}}
    for given, shortest in ({}, [0.4, 0.0, 0.5]), (limits, [0.4, 0.0, 0.2]):
        settings = recipe("run", shortest_local=0.4, **given)
        task = LatentClassifierTask(settings, ("smile", "glasses", "age"), torch.randn(300, ROWS, DIM), torch.randn(300, 3))
        assert task.model.shortest.tolist() == pytest.approx(shortest)
    settings, codes = recipe("run", shortest_local=0.4, longest_of={"age": 1.3}), torch.randn(300, ROWS, DIM)
    task = LatentClassifierTask(settings, ("smile", "glasses", "age"), codes, torch.randn(300, 3))
    assert task.model.shortest.tolist() == pytest.approx([0.4, 0.0, 0.5])
    assert task.model.longest.tolist() == pytest.approx([2.0, 2.0, 1.3])


def test_owners_follow_the_table_of_attributes():
    assert among(("gender", "beard", "makeup", "smile")) == {"beard": "gender", "makeup": "-gender"}
    assert among(("beard", "smile")) == {}


def test_faces_are_moved_along_one_direction_each_or_stay(tmp_path):
    vectors = torch.stack([torch.eye(ROWS, DIM) * 100, torch.eye(ROWS, DIM).roll(1, 1) * 100])
    settings = recipe(tmp_path, faces=400, held_out=100, still=0.25, farthest=2.0)
    photographs = torch.arange(50.0)[:, None, None].expand(-1, ROWS, DIM) * 1e4
    codes = draw_codes(Generator(), vectors, photographs, settings)
    assert torch.equal(codes, draw_codes(Generator(), vectors, photographs, settings))
    first, second = codes[:, 0, 0] % 1e4, codes[:, 0, 1] % 1e4
    whose = ((codes[:, 0, 5] / 1e4).round()).long()
    real = (codes[:, 0, 5] - whose * 1e4).abs() < 1e-3
    photographed = real & (whose > 0)
    assert 0.3 < photographed.float().mean() < 0.5
    assert whose[:300].max() < 38 and whose[300:][photographed[300:]].min() >= 37  # held out: photographs of their own
    assert not (((first > 50) & (first < 9950)) & ((second > 50) & (second < 9950))).any()


def test_labels_are_kept_and_gone_on_with(tmp_path, monkeypatch):
    codes = torch.randn(40, ROWS, DIM)
    generator, classifiers = Generator(), Classifiers([Classifier()])
    keep = tmp_path / "logits.safetensors"
    whole = label(generator, classifiers, codes, keep)
    torch.testing.assert_close(whole, generator.truth(codes), atol=1e-3, rtol=0)
    (key,) = load_file(keep)
    stage.save_tensors({key: whole[:10]}, keep)
    calls = []
    draw = Generator.preview
    monkeypatch.setattr(Generator, "preview", lambda self, x: calls.append(1) or draw(self, x))
    assert torch.equal(label(generator, classifiers, codes, keep), whole) and len(calls) == 30
    label(generator, classifiers, codes + 1, keep)
    assert len(calls) == 70  # of other codes, nothing is used


def test_values_between_lengths():
    values = torch.tensor([[1.0, 1.0, 1.0], [0.5, 0.9, 0.8], [0.1, 0.5, 0.0]])
    at = torch.tensor([0.0, 1.0, 3.0])
    assert interpolated([0.0, 1.0, 3.0], values, at).tolist() == pytest.approx([1.0, 0.9, 0.0])
    assert interpolated([0.0, 1.0, 3.0], values, torch.tensor([0.5, 2.0, 2.0])).tolist() == pytest.approx([0.75, 0.7, 0.4])


def test_the_best_goal_is_the_highest_that_keeps_the_persons():
    identity = torch.tensor([[1.0, 1.0], [0.8, 0.6], [0.2, 0.2]])
    steps = {0.0: torch.tensor([0.0, 0.5]), 1.0: torch.tensor([0.5, 1.0]), 2.0: torch.tensor([2.0, 2.0])}
    assert best_goal([0.0, 1.0, 2.0], identity, steps, bar=0.7) == 1.0  # .9 and .6
    assert best_goal([0.0, 1.0, 2.0], identity, steps, bar=0.76) == 0.0
    assert best_goal([0.0, 1.0, 2.0], identity, steps, bar=0.95) == 0.0
    assert best_goal([0.0, 1.0, 2.0], identity, steps, bar=0.1) == 2.0


class Person(torch.nn.Module):
    """A descriptor that turns by a tenth of a right angle for each unit of the smile's band."""

    def describe(self, pictures):
        angle = pictures[:, 0, :16].mean((1, 2)) * 40 * 0.157
        return torch.stack([angle.cos(), angle.sin()], 1)


def test_goals_are_as_high_as_the_recipe_and_the_bars_allow(learned, tmp_path):
    model, _ = learned
    codes = faces(40, 5)
    arguments = (Generator(), Classifiers([Classifier()]), Person(), directions(), codes)
    lines = set_goals(model, *arguments, recipe(tmp_path))
    free = model.goals[:, 0].tolist()
    assert free[1:] == pytest.approx([1.0, 1.0], abs=1e-5)  # only a smile makes another person
    assert len(lines) == 6 and "smile" in lines[0] and "identity" in lines[0]
    set_goals(model, *arguments, recipe(tmp_path, identity_bars={"smile+": 0.97}))
    assert model.goals[0, 0] < free[0] and model.goals[0, 1] > model.goals[0, 0]
    second = model.attributes[1]
    set_goals(model, *arguments, recipe(tmp_path, goal_of={second: 0.5}))
    assert model.goals[:, 0].tolist() == pytest.approx([free[0], 0.5, free[2]], abs=1e-5)
    set_goals(model, *arguments, recipe(tmp_path, goal_of={second: 0.5, f"{second}-": 0.2}))
    assert model.goals[1].tolist() == pytest.approx([0.5, 0.2], abs=1e-5), "a goal of one sense goes before the attribute's"


def test_one_batch_is_learned_and_nothing_but_the_model_moves(tmp_path, drawn):
    task = LatentClassifierTask(recipe(tmp_path, faces=264), ATTRIBUTES, drawn[0][:264], scores(drawn[1][:264]))
    optimizer = torch.optim.Adam(task.trainable.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss, _ = task.loss(Share(0, 0, range(64), 64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_files_are_read_as_they_were_written(learned, tmp_path):
    model, _ = learned
    model.goals.fill_(0.3)
    save(model, tmp_path / "one.safetensors")
    again = load(tmp_path / "one.safetensors")
    assert again.attributes == model.attributes and again.options == model.options and not again.training
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(CheckpointNotFoundError):
        load(tmp_path / "none.safetensors")
    save_file({"directions.smile": torch.ones(2, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="no latent classifier"):
        load(tmp_path / "other.safetensors")


def test_contradictions_are_refused():
    with pytest.raises(ConfigError, match="held_out"):
        recipe("run", faces=200, held_out=200)
    with pytest.raises(ConfigError, match="encoder and photos"):
        recipe("run", encoder="encoder.safetensors")
    for field in ("goal_of", "longest_of", "shortest_of", "identity_bars"):
        with pytest.raises(ConfigError, match="glases"):
            recipe("run", **{field: {"glases": 1.0}})
    assert recipe("run", identity_bars={"glasses+": 0.7}, goal_of={"glasses-": 0.7}).identity_bars


def test_the_command_trains_sets_goals_and_says_them(tmp_path, capsys):
    editor = make_editor()
    editor.save_pretrained(tmp_path / "generator", dtype=torch.float32)
    write_networks(tmp_path)
    Directions({"smile": torch.randn(8, 24), "freckles": torch.randn(8, 24)}).save(tmp_path / "d.safetensors")
    arguments = [
        f"--generator={tmp_path / 'generator'}", f"--classifiers={tmp_path / 'judge.safetensors'}",
        f"--identity={tmp_path / 'identity.safetensors'}", f"--directions={tmp_path / 'd.safetensors'}",
        f"--out={tmp_path / 'run'}", "--faces=24", "--held-out=6", "--steps=3", "--warmup=1", "--decay=1", "--looks=2",
        "--rows=4", "--hidden=8", "--device=cpu",
    ]  # fmt: skip
    assert stage.main(arguments) == 0
    told = capsys.readouterr().out
    assert "smile" in told and "freckles" not in told and "2 generated faces" in told
    model = load(tmp_path / "run" / "latent_classifier.safetensors")
    assert model.attributes == ("smile",) and bool((model.goals != 0).any())
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["rows"] == 4
    # The same run with other lengths: they are those that are told now.
    assert stage.main([*arguments, "--longest-of", "smile=0.7", "--shortest-of", "smile=0.6"]) == 0
    again = load(tmp_path / "run" / "latent_classifier.safetensors")
    assert (float(again.shortest), float(again.longest)) == pytest.approx((0.6, 0.7))
