"""The classifier: every body trains, files say how, robustness is measured."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_celeba import write_celeba

from faceedit.errors import CheckpointError, UsageError
from faceedit.train import celeba
from faceedit.train import classifier as module
from faceedit.train.classifier import BODIES, AttributeClassifier, auc, predict, robustness, train


def test_auc_is_the_share_of_pairs_in_the_right_order():
    scores, labels = torch.tensor([0.1, 0.4, 0.4, 0.9]), torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert auc(scores, labels) == pytest.approx(3.5 / 4)
    assert auc(-scores, labels) == pytest.approx(0.5 / 4)
    assert math.isnan(auc(scores, torch.ones(4)))


def run_on_tiny_celeba(tmp_path, monkeypatch, *arguments):
    """Run the command on twenty pictures; the header that it wrote."""
    write_celeba(tmp_path, 20)
    splits = {"train": (1, 12), "choose": (13, 16), "report": (17, 20)}
    monkeypatch.setattr(module, "SPLITS", splits)
    monkeypatch.setattr(celeba, "SPLITS", splits)
    monkeypatch.setattr(module.train, "__kwdefaults__", {**train.__kwdefaults__, "batch": 6})
    out = tmp_path / "classifier.safetensors"
    arguments = ["--celeba", tmp_path, "--out", out, "--epochs", 1, *arguments]
    threads = torch.get_num_threads()
    try:
        assert module.main([str(a) for a in arguments]) == 0
    finally:
        torch.set_num_threads(threads)
    with safe_open(str(out), "pt") as file:
        return file.metadata()


def test_the_command_trains_reports_and_writes_how(tmp_path, monkeypatch, capsys):
    weights = tmp_path / "imagenet.pth"
    torch.save(AttributeClassifier(["x"]).trunk.state_dict(), weights)
    metadata = run_on_tiny_celeba(tmp_path, monkeypatch, "--imagenet", weights)
    assert "n = 4" in (text := capsys.readouterr().out) and "Bright" in text and "under JPEG" in text
    assert metadata["body"] == "efficientnet-lite0"
    assert json.loads(metadata["names"]) == ["Bright", "Other"]
    assert set(json.loads(metadata["auc"])) == {"Bright", "Other"}
    recipe = json.loads(metadata["recipe"])
    assert recipe["train"] == [1, 12] and recipe["epochs"] == 1 and recipe["seed"] == 0
    assert recipe["half"] is None and recipe["pictures"] == 12
    assert set(module.DISTURBANCES) < set(recipe["mean_auc"])


def test_a_half_and_another_body_are_written_and_restored(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(module, "read_celeba", lambda folder, files: read.append(files) or celeba.read_celeba(folder, files))
    metadata = run_on_tiny_celeba(tmp_path, monkeypatch, "--body", "resnet18", "--half", "B", "--seed", 3)
    recipe = json.loads(metadata["recipe"])
    assert (recipe["half"], recipe["pictures"], recipe["imagenet"]) == ("B", 6, None)
    assert read[0] == [f"{n:06d}.jpg" for n in (2, 4, 6, 8, 10, 12)]
    assert AttributeClassifier.load(tmp_path / "classifier.safetensors").body == "resnet18"


def test_imagenet_weights_for_a_body_that_has_none_are_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run_on_tiny_celeba(tmp_path, monkeypatch, "--body", "resnet18", "--imagenet", "x.pth")
    assert "resnet18" in capsys.readouterr().err


@pytest.mark.parametrize("body", BODIES)
def test_every_body_gives_one_logit_a_name_and_can_be_reloaded(body, tmp_path):
    torch.manual_seed(0)
    model = AttributeClassifier(["a", "b"], body).eval()
    assert predict(model, torch.rand(2, 3, 40, 40) * 2 - 1).shape == (2, 2)
    model.save(tmp_path / "c.safetensors", auc={}, recipe={})
    loaded = AttributeClassifier.load(tmp_path / "c.safetensors")
    assert loaded.body == body and loaded.names == ("a", "b") and not loaded.training
    state = loaded.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_an_unknown_body_is_refused():
    with pytest.raises(UsageError, match="resnet18"):
        AttributeClassifier(["a"], "resnet")


def test_robustness_measures_each_disturbance():
    """A classifier of sharpness is perfect on sharp pictures, and no disturbance leaves it so."""

    class Sharpness(torch.nn.Module):
        names = ("sharp",)

        def forward(self, views):
            return (views[..., 1:] - views[..., :-1]).square().mean((1, 2, 3), keepdim=False)[:, None]

    noise = torch.rand(8, 3, 80, 80, generator=torch.Generator().manual_seed(0)) * 2 - 1
    views = torch.cat([noise[:4] * 0.5, noise[4:] * 0.49])
    labels = torch.tensor([1.0] * 4 + [0.0] * 4)[:, None]
    assert module.evaluate(Sharpness(), views, labels) == {"sharp": 1.0}
    measured = robustness(Sharpness(), views, labels)
    assert list(measured) == list(module.DISTURBANCES)
    assert any(values["sharp"] < 1 for values in measured.values())


def test_a_file_of_another_kind_is_refused(tmp_path):
    save_file({"x": torch.ones(1)}, str(tmp_path / "x.safetensors"))
    with pytest.raises(CheckpointError, match="classifier"):
        AttributeClassifier.load(tmp_path / "x.safetensors")


def tiny_set():
    """Eight noisy pictures, two of them with the attribute."""
    random = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (8, 3, 109, 89), generator=random, dtype=torch.uint8)
    return pictures, torch.tensor([1.0, 0, 0, 0, 1, 0, 0, 0])[:, None]


@pytest.mark.parametrize("body", ["efficientnet-lite0", "resnet18"])
def test_training_moves_every_parameter(body):
    model = AttributeClassifier(["rare"], body)
    before = {name: value.clone() for name, value in model.named_parameters()}
    train(model, *tiny_set(), epochs=3, batch=8)
    assert [name for name, value in model.named_parameters() if torch.equal(value, before[name])] == []


def test_the_weight_of_rare_attributes_is_taken_out_of_the_logits_again():
    model = AttributeClassifier(["rare"])
    before = model.head.bias.item()
    train(model, *tiny_set(), epochs=1, batch=8, rate=0.0)
    assert model.head.bias.item() == pytest.approx(before - math.log(3) / 2, abs=1e-5)


def test_the_resnet_halves_its_map_four_times_more_after_the_stem():
    maps = AttributeClassifier(["a"], "resnet18").trunk(torch.zeros(1, 3, 80, 80))
    assert {stride: tuple(x.shape[1:]) for stride, x in maps.items()} == {
        4: (64, 20, 20), 8: (128, 10, 10), 16: (256, 5, 5), 32: (512, 3, 3),
    }
    count = sum(p.numel() for p in AttributeClassifier(["a"] * 1000, "resnet18").parameters())
    assert count == 11_689_512 - 3 * 64 * (49 - 9)  # torchvision's, but for the smaller stem


def test_lite2_is_wider_and_deeper_than_lite0():
    lite0, lite2 = (AttributeClassifier(["a"], f"efficientnet-lite{i}").trunk for i in (0, 2))
    assert lite0.channels == {2: 16, 4: 24, 8: 40, 16: 112, 32: 320}
    assert lite2.channels == {2: 16, 4: 24, 8: 48, 16: 120, 32: 352}
    assert [len(stage) for stage in lite0.stages] == [1, 2, 2, 3, 3, 4, 1]
    assert [len(stage) for stage in lite2.stages] == [1, 3, 3, 4, 4, 5, 1]
