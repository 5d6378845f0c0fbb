"""The classifier: every body, its file, robustness measured."""

import math
import typing

import pytest
import torch
from safetensors.torch import save_file

from faceedit.errors import CheckpointError, UsageError
from faceedit.train import classifier as module
from faceedit.train.classifier import BODIES, AttributeClassifier, Body, auc, predict, robustness


def test_auc_is_the_share_of_pairs_in_the_right_order():
    scores, labels = torch.tensor([0.1, 0.4, 0.4, 0.9]), torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert auc(scores, labels) == pytest.approx(3.5 / 4)
    assert auc(-scores, labels) == pytest.approx(0.5 / 4)
    assert math.isnan(auc(scores, torch.ones(4)))


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


def test_recipes_accept_every_body_and_others_are_refused():
    assert typing.get_args(Body) == (*BODIES,)
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
