"""The classifier: one canonical view for both sources, splits that never mix, files that say how."""

import json
import math

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from faceedit.errors import CheckpointError
from faceedit.train import classifier as module
from faceedit.train.classifier import (
    AttributeClassifier,
    auc,
    augment,
    canonical_view,
    celeba_grid,
    celeba_view,
    predict,
    read_celeba,
    split_files,
    train,
)


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


def test_splits_never_overlap_and_leave_nothing_out():
    parts = [split_files(part) for part in ("train", "choose", "report")]
    assert [len(part) for part in parts] == [7500, 1000, 1500]
    assert len(set().union(*parts)) == 10000
    assert parts[1][0] == "007501.jpg" and parts[2][0] == "008501.jpg"


def test_auc_is_the_share_of_pairs_in_the_right_order():
    scores, labels = torch.tensor([0.1, 0.4, 0.4, 0.9]), torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert auc(scores, labels) == pytest.approx(3.5 / 4)
    assert auc(-scores, labels) == pytest.approx(0.5 / 4)
    assert math.isnan(auc(scores, torch.ones(4)))


def test_augmentation_follows_its_seed_and_stays_in_range():
    pictures = torch.randint(0, 256, (6, 3, 109, 89), dtype=torch.uint8)
    first, again, other = (augment(pictures, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (6, 3, 80, 80) and first.min() >= -1 and first.max() <= 1


def test_jpeg_blocks_hardly_change_a_flat_picture_and_nothing_at_all_when_fine():
    flat = torch.full((1, 3, 80, 80), 0.3)
    torch.testing.assert_close(module._jpeg(flat, torch.ones(1)), flat, atol=0.01, rtol=0)
    noise = torch.rand(1, 3, 79, 75) * 2 - 1
    torch.testing.assert_close(module._jpeg(noise, torch.full((1,), 1e-4)), noise, atol=1e-3, rtol=0)
    assert (module._jpeg(noise, torch.ones(1)) - noise).abs().mean() > 0.05


def write_celeba(folder, n):
    """A tiny data set: `Bright` pictures are bright."""
    (folder / "images").mkdir()
    random = torch.Generator().manual_seed(0)
    lines = ["file,Bright,Other"]
    for i in range(1, n + 1):
        bright = i % 2
        pixels = torch.randint(0, 100, (109, 89, 3), generator=random, dtype=torch.uint8) + 150 * bright
        Image.fromarray(pixels.byte().numpy()).save(folder / "images" / f"{i:06d}.jpg")
        lines.append(f"{i:06d}.jpg,{1 if bright else -1},{1 if i % 3 else -1}")
    (folder / "attributes.csv").write_text("\n".join(lines) + "\n")


def test_pictures_come_with_their_own_labels(tmp_path):
    write_celeba(tmp_path, 4)
    pictures, labels, names = read_celeba(tmp_path, ["000003.jpg", "000002.jpg"])
    assert names == ("Bright", "Other")
    assert labels.tolist() == [[1, 0], [0, 1]]
    assert pictures[0].float().mean() > pictures[1].float().mean() + 100


def test_the_command_trains_reports_and_writes_how(tmp_path, monkeypatch, capsys):
    write_celeba(tmp_path, 20)
    monkeypatch.setattr(module, "SPLITS", {"train": (1, 12), "choose": (13, 16), "report": (17, 20)})
    monkeypatch.setattr(module.train, "__kwdefaults__", {**train.__kwdefaults__, "batch": 6})
    torch.manual_seed(0)
    weights = tmp_path / "imagenet.pth"
    torch.save(AttributeClassifier(["x"]).trunk.state_dict(), weights)
    out = tmp_path / "classifier.safetensors"
    arguments = ["--celeba", tmp_path, "--imagenet", weights, "--out", out, "--epochs", 1]
    threads = torch.get_num_threads()
    try:
        assert module.main([str(a) for a in arguments]) == 0
    finally:
        torch.set_num_threads(threads)
    assert "n = 4" in (text := capsys.readouterr().out) and "Bright" in text
    with safe_open(str(out), "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["names"]) == ["Bright", "Other"]
    assert set(json.loads(metadata["auc"])) == {"Bright", "Other"}
    recipe = json.loads(metadata["recipe"])
    assert recipe["train"] == [1, 12] and recipe["epochs"] == 1 and recipe["seed"] == 0


def test_a_file_gives_back_the_same_logits(tmp_path):
    torch.manual_seed(0)
    model = AttributeClassifier(["a", "b"]).eval()
    model.save(tmp_path / "c.safetensors", auc={"a": 0.9}, recipe={})
    views = torch.rand(2, 3, 80, 80) * 2 - 1
    loaded = AttributeClassifier.load(tmp_path / "c.safetensors")
    assert loaded.names == ("a", "b") and not loaded.training
    assert torch.equal(predict(loaded, views), predict(model, views))


def test_a_file_of_another_kind_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, str(tmp_path / "x.safetensors"))
    with pytest.raises(CheckpointError, match="classifier"):
        AttributeClassifier.load(tmp_path / "x.safetensors")


def tiny_set():
    """Eight noisy pictures, two of them with the attribute."""
    random = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (8, 3, 109, 89), generator=random, dtype=torch.uint8)
    return pictures, torch.tensor([1.0, 0, 0, 0, 1, 0, 0, 0])[:, None]


def test_training_moves_every_parameter():
    model = AttributeClassifier(["rare"])
    before = {name: value.clone() for name, value in model.named_parameters()}
    train(model, *tiny_set(), epochs=3, batch=8)
    assert [name for name, value in model.named_parameters() if torch.equal(value, before[name])] == []


def test_the_weight_of_rare_attributes_is_taken_out_of_the_logits_again():
    model = AttributeClassifier(["rare"])
    before = model.head.bias.item()
    train(model, *tiny_set(), epochs=1, batch=8, rate=0.0)
    assert model.head.bias.item() == pytest.approx(before - math.log(3) / 2, abs=1e-5)
