"""The classifier's training: it learns, resumes exactly, adds up over passes, and its file says how it was made."""

import json
import math
import signal
from functools import partial

import pytest
import torch
from safetensors import safe_open
from tiny_celeba import write_celeba

from faceedit.errors import ConfigError
from faceedit.train import celeba
from faceedit.train import classifier_task as module
from faceedit.train.classifier import DISTURBANCES, AttributeClassifier
from faceedit.train.classifier_task import ClassifierRecipe, ClassifierTask
from faceedit.train.config import RECIPES, make_recipe, read_toml
from faceedit.train.trainer import Share, Trainer
from faceedit.train.views import augment, celeba_view


def make_task(out, kind=ClassifierTask, body="efficientnet-lite0", **settings):
    """Eight noisy pictures, two of them with the attribute."""
    values = {"steps": 4, "batch": 8, "warmup": 1, "decay": 2, "evaluate_every": 0, "grid_every": 0, **settings}
    recipe = ClassifierRecipe(out=out, celeba=out, body=body, device="cpu", **values)
    random = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (8, 3, 109, 89), generator=random, dtype=torch.uint8)
    labels = torch.tensor([1.0, 0, 0, 0, 1, 0, 0, 0])[:, None]
    torch.manual_seed(0)
    classifier = AttributeClassifier(["rare"], body, recipe.dropout)
    return kind(classifier, recipe, pictures, labels, (pictures, labels)), recipe


@pytest.fixture
def small_views(monkeypatch):
    monkeypatch.setattr(module, "augment", partial(augment, size=32))


def losses(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_it_overfits_one_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "augment", lambda pictures, share: celeba_view(pictures, 32))
    task, recipe = make_task(tmp_path, steps=40, lr=3e-3, decay=20, dropout=0.0, log_every=1)
    Trainer(task, recipe).run()
    found = losses(tmp_path)
    assert found[0] > 0.5 and found[-1] < 0.02


@pytest.mark.parametrize(("body", "bf16"), [("efficientnet-lite0", False), ("resnet18", True)])
def test_training_moves_every_parameter_and_the_running_statistics(tmp_path, small_views, body, bf16):
    task, recipe = make_task(tmp_path, body=body, bf16=bf16)
    before = {name: value.clone() for name, value in task.classifier.state_dict().items()}
    Trainer(task, recipe).run()
    assert [name for name, value in task.classifier.state_dict().items() if torch.equal(value, before[name])] == []


class Stopped(ClassifierTask):
    """Gets a signal at the end of its first step, and heeds it after its second."""

    def after_step(self, optimizer):
        self.made = getattr(self, "made", 0) + 1
        if self.made == 1:
            signal.raise_signal(signal.SIGTERM)


def test_interrupted_and_resumed_is_uninterrupted(tmp_path, small_views):
    """With dropout and batch normalisation in training mode."""
    runs = {}
    for name, kinds in {"whole": [ClassifierTask], "parts": [Stopped, ClassifierTask]}.items():
        for kind in kinds:
            task, recipe = make_task(tmp_path / name, kind, dropout=0.5)
            trainer = Trainer(task, recipe)
            trainer.run()
            runs.setdefault(name, []).append(trainer.step)
        runs[name].append(task.classifier.state_dict())
    assert runs["parts"][:2] == [2, 4] and runs["whole"][0] == 4
    for key, value in runs["whole"][1].items():
        assert torch.equal(value, runs["parts"][2][key]), key


def test_passes_add_up_to_the_whole_but_for_batch_normalisation(tmp_path, small_views):
    task, _ = make_task(tmp_path, dropout=0.0)
    task.classifier.eval()
    with torch.no_grad():
        whole = task.loss(Share(0, 3, range(8), 8))[0]
        parts = [task.loss(Share(0, 3, rows, 8))[0] * len(rows) / 8 for rows in (range(3), range(3, 8))]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-4)


def test_views_are_the_same_under_autocast(tmp_path):
    task, _ = make_task(tmp_path)
    seen = []
    task.classifier.register_forward_pre_hook(lambda classifier, inputs: seen.append(inputs[0]))
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            assert task.loss(Share(0, 0, range(8), 8))[0].dtype == torch.float32
    assert torch.equal(*seen)


def test_the_weight_of_rare_attributes_is_in_the_loss_and_out_of_the_files_logits(tmp_path):
    task, _ = make_task(tmp_path)
    assert task.weight.item() == pytest.approx(math.sqrt(3))
    task.export(tmp_path)
    written = AttributeClassifier.load(tmp_path / "classifier.safetensors")
    bias = task.classifier.head.bias.item()
    assert written.head.bias.item() == pytest.approx(bias - math.log(3) / 2, abs=1e-5)
    with torch.no_grad():
        task.classifier.head.weight.zero_()
        z = torch.tensor(bias)
        expected = -(math.sqrt(3) * 2 * z.sigmoid().log() + 6 * (-z).sigmoid().log()) / 8
        assert task.loss(Share(0, 0, range(8), 8))[0].item() == pytest.approx(expected.item(), rel=1e-5)
    assert make_task(tmp_path, most_positive=1.5)[0].weight.item() == 1.5


def test_figures_and_grid_are_of_the_held_out_faces(tmp_path):
    task, _ = make_task(tmp_path)
    task.classifier.eval()
    brightness = task.held_out[0].float().mean((1, 2, 3))
    task.classifier.forward = lambda views: views.mean((1, 2, 3))[:, None]
    with torch.no_grad():
        assert set(task.evaluate()) == {"auc"}
        grid = task.sample_grid()
    assert grid.shape == (1, 8, 3, 80, 80)
    means = grid[0].mean((1, 2, 3))
    assert torch.equal(means, means.sort(descending=True).values) and brightness.std() > 0


# --- the command ------------------------------------------------------------------------------


def run(tmp_path, monkeypatch, *arguments):
    """Run the command on twenty pictures; the header that it wrote."""
    if not (tmp_path / "images").exists():
        write_celeba(tmp_path, 20)
    for part, rows in {"train": (1, 12), "choose": (13, 16), "report": (17, 20)}.items():
        monkeypatch.setitem(celeba.SPLITS, part, rows)
    numbers = ["--steps", 2, "--batch", 6, "--device", "cpu"]
    arguments = ["--celeba", tmp_path, "--out", tmp_path / "run", *numbers, *arguments]
    assert module.main([str(a) for a in arguments]) == 0
    with safe_open(str(tmp_path / "run" / "classifier.safetensors"), "pt") as file:
        return file.metadata()


def test_the_command_trains_reports_and_writes_how(tmp_path, monkeypatch, capsys):
    weights = tmp_path / "imagenet.pth"
    torch.save(AttributeClassifier(["x"]).trunk.state_dict(), weights)
    metadata = run(tmp_path, monkeypatch, "--imagenet", weights)
    assert "n = 4" in (text := capsys.readouterr().out) and "Bright" in text and "under JPEG" in text
    assert metadata["body"] == "efficientnet-lite0"
    assert json.loads(metadata["names"]) == ["Bright", "Other"]
    assert set(json.loads(metadata["auc"])) == {"Bright", "Other"}
    recipe = json.loads(metadata["recipe"])
    assert recipe["train"] == [1, 12] and recipe["steps"] == 2 and recipe["seed"] == 0
    assert recipe["half"] is None and recipe["pictures"] == 12 and recipe["imagenet"] == "imagenet.pth"
    assert set(recipe["mean_auc"]) == {"report", *DISTURBANCES}
    assert str(tmp_path) not in str(metadata)
    assert (tmp_path / "run" / "samples" / "0000002.jpg").exists()


def test_a_half_and_another_body_are_written_and_an_unfinished_run_has_no_auc(tmp_path, monkeypatch, capsys):
    read = []
    reader = celeba.read_celeba
    monkeypatch.setattr(module, "read_celeba", lambda folder, files: read.append(files) or reader(folder, files))
    metadata = run(tmp_path, monkeypatch, "--body", "resnet18", "--half", "B", "--seed", 3, "--max-minutes", 1e-9)
    recipe = json.loads(metadata["recipe"])
    assert (recipe["half"], recipe["pictures"], recipe["imagenet"]) == ("B", 6, None)
    assert read[0] == [f"{n:06d}.jpg" for n in (2, 4, 6, 8, 10, 12)]
    assert AttributeClassifier.load(tmp_path / "run" / "classifier.safetensors").body == "resnet18"
    assert json.loads(metadata["auc"]) == {} and "AUC on" not in capsys.readouterr().out


def test_imagenet_weights_for_a_body_that_has_none_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="resnet18"):
        run(tmp_path, monkeypatch, "--body", "resnet18", "--imagenet", "x.pth")


def test_the_judge_shares_neither_body_nor_half_nor_seed_with_the_others():
    found = {}
    for name in ("classifier", "resnet18", "judge"):
        values = read_toml(RECIPES / f"{name}.toml")
        found[name] = make_recipe(ClassifierRecipe, {"out": "run", **values})
    for name in ("classifier", "resnet18"):
        for setting in ("body", "half", "seed"):
            assert getattr(found["judge"], setting) != getattr(found[name], setting)
