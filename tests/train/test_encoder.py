"""The encoder's training: its gradients, its kinds of faces and its start from other files."""

import copy
import json
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from faceedit.errors import ConfigError, DataError
from faceedit.models.efficientnet_encoder import EfficientNetEncoder
from faceedit.models.mobile_stylegan import MobileStyleGAN
from faceedit.train import encoder as module
from faceedit.train import judges as judging
from faceedit.train.data import Faces
from faceedit.train.encoder import EncoderRecipe, EncoderTask, Judges, degraded, jittered, reduced
from faceedit.train.perceptual import LPIPS
from faceedit.train.synthetic import generated_faces, mixed_latents
from faceedit.train.trainer import Share, Trainer

SIZE = 32
PHASES = {"code_steps": 1, "first_look_steps": 2, "code_batch": 3, "batch": 4, "generated": 1, "warmup": 0, "decay": 0}


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    generator = MobileStyleGAN((16, 16, 16, 16), style_dim=8, preview_level=2)
    generator.preview_head.start_from(generator.levels[2:], generator.head)
    return generator.eval()


def make_task(generator, tmp_path, **settings):
    """A task with a tiny generator, five generated faces and six photographs."""
    files = dict.fromkeys(("generator", "photos", "imagenet", "lpips"), tmp_path)
    values = {"out": tmp_path / "run", "steps": 4, "held_out": 2, "bf16": False, **PHASES, **settings}
    recipe = EncoderRecipe(**files, **values)
    torch.manual_seed(1)
    encoder = EfficientNetEncoder(generator.n_styles, generator.style_dim, input_size=SIZE, width=8, hidden=16).eval()
    torch.nn.init.normal_(encoder.to_correction[1].weight, std=0.01)
    codes = mixed_latents(generator, 5, seed=0)
    pictures = np.random.default_rng(0).integers(0, 256, (8, 36, 36, 3), np.uint8)
    generated = generated_faces(generator, codes, tmp_path / "generated.npy")
    photos = Faces(pictures, tuple(map(str, range(8))))
    judges = Judges(generator, LPIPS(), None, full=recipe.full, compiled=recipe.compile)
    small = Faces(pictures[:3, ::4, ::4], ("a", "b", "c")) if recipe.small else None
    return EncoderTask(encoder, judges, recipe, codes, generated, photos, small), recipe


def test_generated_faces_are_the_previews_of_their_codes_and_drawn_once(generator, tmp_path, monkeypatch):
    codes = mixed_latents(generator, 3, seed=0)
    faces = generated_faces(generator, codes, tmp_path / "a.npy")
    exact = (generator.preview(codes).clamp(-1, 1) + 1) * 127.5
    assert faces.pictures.shape == (3, SIZE, SIZE, 3)
    assert np.abs(faces.pictures - exact.permute(0, 2, 3, 1).numpy()).mean() < 2  # bfloat16
    again = generated_faces(generator, codes, tmp_path / "a.npy")
    assert np.array_equal(again.pictures, faces.pictures)
    others = generated_faces(generator, codes + 1, tmp_path / "a.npy")
    assert not np.array_equal(others.pictures, faces.pictures)


def test_every_trainable_parameter_gets_a_gradient_and_nothing_frozen_moves(generator, tmp_path):
    task, recipe = make_task(generator, tmp_path)
    seen = set()
    task.after_step = lambda optimizer: seen.update(
        name for name, p in task.encoder.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    )
    before = {name: value.clone() for name, value in task.encoder.state_dict().items()}
    frozen = {f"generator.{k}": v.clone() for k, v in generator.state_dict().items()}
    Trainer(task, recipe).run()
    trainable = {name for name, p in task.encoder.named_parameters() if p.requires_grad}
    assert seen == trainable
    still = {name for name, value in task.encoder.state_dict().items() if torch.equal(value, before[name])}
    assert not still & trainable and set(before) - trainable <= still
    assert all(torch.equal(v, generator.state_dict()[k.partition(".")[2]]) for k, v in frozen.items())


def test_parts_of_a_batch_add_up_to_the_whole(generator, tmp_path):
    """Three passes, of which some have no generated face at all."""
    runs = []
    for i, passes in enumerate((1, 3)):
        task, recipe = make_task(generator, tmp_path, out=tmp_path / str(i), accumulate=passes, log_every=1, ema=0.0)
        Trainer(task, recipe).run()
        lines = (tmp_path / str(i) / "metrics.jsonl").read_text().splitlines()
        runs.append([json.loads(line) for line in lines])
    for one, many in zip(*runs, strict=True):
        for name in {"loss", "code", "offset", "l2", "lpips"} & set(one):
            assert one[name] == pytest.approx(many[name], rel=2e-3)


def test_each_phase_does_what_it_says(generator, tmp_path, monkeypatch):
    task, recipe = make_task(generator, tmp_path)
    rendered = []
    for draw in ("render", "preview"):
        monkeypatch.setattr(task.judges, draw, lambda codes: rendered.append(len(codes)) or generator.preview(codes))
    figures = []
    for step in range(3):
        n = task.batch(step) or recipe.batch
        figures.append(set(task.loss(Share(0, step, range(n), n))[1]))
    # codes alone; the first answer's picture; the picture that the correction looks at, and its own
    assert figures == [{"code", "offset"}] + 2 * [{"code", "offset", "l2", "lpips"}]
    assert rendered[0] == 4 and len(rendered) in (3, 4)


def test_with_full_the_loss_is_of_whole_pictures_and_corrections_look_at_previews(generator, tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "SIDE", SIZE)
    task, recipe = make_task(generator, tmp_path, full=True)
    code = task.codes[:2]
    whole = torch.nn.functional.avg_pool2d(generator(code), 2)
    torch.testing.assert_close(task.judges.render(code), whole)
    assert not torch.allclose(task.judges.render(code), generator.preview(code))
    torch.testing.assert_close(task.judges.preview(code), generator.preview(code))
    seen, plain = [], task.encoder.correct
    monkeypatch.setattr(task.encoder, "correct", lambda image, latents, s: seen.append((latents, s)) or plain(image, latents, s))
    figures = task.loss(Share(0, 2, range(recipe.batch), recipe.batch))[1]
    with torch.no_grad():
        torch.testing.assert_close(seen[0][1], generator.preview(seen[0][0]))
        task.evaluate()
    assert set(figures) == {"code", "offset", "l2", "lpips"} and len(seen) > 2


def test_corrections_are_trained_as_often_as_asked(generator, tmp_path, monkeypatch):
    task, recipe = make_task(generator, tmp_path, code_steps=0, first_look_steps=3, correct_every=3)
    corrected, plain = [], task.encoder.correct
    monkeypatch.setattr(task.encoder, "correct", lambda *args: corrected.append(step) or plain(*args))
    for step in range(10):
        task.loss(Share(0, step, range(recipe.batch), recipe.batch))
    assert set(corrected) == {3, 6, 9}


def test_compiled_it_learns_the_same(generator, tmp_path, monkeypatch):
    # A compiler of machine code is not everywhere; what it is given is the same without one.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    runs = []
    for compiled in (False, True):
        torch._dynamo.reset()
        task, recipe = make_task(generator, tmp_path, out=tmp_path / str(compiled), compile=compiled, log_every=1, ema=0.0)
        assert (task._encode is not task.encoder) == (task.judges._preview != generator.preview) == compiled
        Trainer(task, recipe).run()
        lines = (tmp_path / str(compiled) / "metrics.jsonl").read_text().splitlines()
        with torch.no_grad():
            runs.append(([json.loads(line)["loss"] for line in lines if "loss" in line], task.evaluate()))
    assert runs[1][0] == pytest.approx(runs[0][0], rel=1e-3)
    assert runs[1][1] == pytest.approx(runs[0][1], rel=1e-3)
    assert load_file(tmp_path / "True" / "encoder.safetensors").keys() == load_file(tmp_path / "False" / "encoder.safetensors").keys()


def test_pictures_of_few_pixels_are_compared_in_as_few(generator, tmp_path, monkeypatch):
    task, recipe = make_task(generator, tmp_path, small_photos=tmp_path, small=2, small_side=8)
    noise = torch.randn(4, 3, SIZE, SIZE, requires_grad=True)
    monkeypatch.setattr(task.judges, "render", lambda codes: noise)
    compared, plain = [], task.judges.losses
    monkeypatch.setattr(task.judges, "losses", lambda *pair: compared.append(pair) or plain(*pair))
    task.loss(Share(0, 1, range(4), 4))
    drawn, targets = compared[0]
    torch.testing.assert_close(drawn, torch.cat((noise[:2], reduced(noise[2:], 8))))
    fine = (targets - reduced(targets, 8)).abs().mean((1, 2, 3))
    assert len(targets) == 4 and fine[1] > 3 * fine[2:].max()
    with pytest.raises(ConfigError, match="go together"):
        make_task(generator, tmp_path, small=2)
    with pytest.raises(ConfigError, match="below batch"):
        make_task(generator, tmp_path, small_photos=tmp_path, small=3)


def test_pictures_of_few_pixels_add_up_however_a_batch_is_shared_out(generator, tmp_path):
    task, recipe = make_task(generator, tmp_path, small_photos=tmp_path, small=2, small_side=8)
    whole = task.loss(Share(0, 1, range(4), 4))[0]
    parts = [task.loss(Share(0, 1, range(i, i + 2), 4))[0] for i in (0, 2)]
    torch.testing.assert_close(sum(parts) / 2, whole, rtol=2e-3, atol=0)


def test_photographs_keep_their_middle_and_their_kind_of_noise():
    x = torch.zeros(64, 3, 36, 36)
    x[:, :, 16:20, 16:20] = 1
    share = Share(0, 0, range(64), 64)
    seen = jittered(x, share, SIZE)
    assert seen.shape == (64, 3, SIZE, SIZE)
    centre = seen.mean(1).flatten(1).argmax(1)
    assert ((centre // SIZE - 15.5).abs() < 4).all() and ((centre % SIZE - 15.5).abs() < 4).all()
    assert len({round(v, 3) for v in seen.amax((1, 2, 3)).tolist()}) > 10
    spoilt = degraded(seen, share)
    untouched = (spoilt == seen).flatten(1).all(1).float().mean()
    assert 0.4 < untouched < 0.8


def test_a_grid_is_of_the_network_as_it_is_now(generator, tmp_path):
    task, recipe = make_task(generator, tmp_path)
    with torch.no_grad():
        task.evaluate()
        before = task.sample_grid()
        task.loss(Share(0, 2, range(recipe.batch), recipe.batch))
        task.encoder.to_base.bias.add_(0.5)
        assert not torch.equal(task.sample_grid()[1], before[1])


def test_held_out_figures_and_the_grid_are_of_the_last_photographs(generator, tmp_path):
    task, _ = make_task(generator, tmp_path)
    with torch.no_grad():
        figures = task.evaluate()
        assert set(figures) == {"psnr", "psnr_first", "lpips", "lpips_first", "l2"}
        y = generator.preview(task._answer(task.sample_grid()[0], task.recipe.corrections)).clamp(-1, 1)
    x = task.sample_grid()[0]
    assert task.sample_grid().shape == (2, 2, 3, SIZE, SIZE)
    assert torch.allclose(x, module.to_unit(task.held_out)[..., 2:34, 2:34], atol=1e-6)
    assert figures["psnr"] == pytest.approx((-10 * ((y - x) ** 2 / 4).mean((1, 2, 3)).log10()).mean().item(), abs=1e-3)


@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_the_command_starts_from_another_encoder_and_writes_one(generator, tmp_path, monkeypatch, prefix):
    monkeypatch.setattr(module, "load_generator", lambda path: copy.deepcopy(generator))
    monkeypatch.setattr(module.LPIPS, "from_file", classmethod(lambda cls, path: cls()))
    monkeypatch.setattr(
        module, "EfficientNetEncoder", lambda rows: EfficientNetEncoder(rows, 8, input_size=SIZE, width=8, hidden=16)
    )
    torch.manual_seed(2)
    start = EfficientNetEncoder(generator.n_styles, 8, input_size=SIZE, width=8, hidden=16)
    weights = {prefix + k: v.half() if v.is_floating_point() else v for k, v in start.state_dict().items()}
    save_file(weights | ({"generator.x": torch.ones(1)} if prefix else {}), tmp_path / "start.safetensors")
    monkeypatch.setattr(module, "read_imagenet", lambda path: start.trunk.state_dict())
    np.save(tmp_path / "crops.npy", np.random.default_rng(0).integers(0, 256, (6, 36, 36, 3), np.uint8))
    flags = {
        "generator": "g", "photos": tmp_path / "crops.npy", "imagenet": "i", "lpips": "l", "out": tmp_path / "run",
        "init": tmp_path / "start.safetensors", "steps": 1, "lr": 1e-9, "lr_trunk": 1e-9, "synthetic": 4, "held_out": 2,
        "device": "cpu", **PHASES,
    }  # fmt: skip
    argv = [str(word) for key, value in flags.items() for word in (f"--{key.replace('_', '-')}", value)]
    assert module.main(argv) == 0
    made = load_file(tmp_path / "run" / "encoder.safetensors")
    assert set(made) == set(start.state_dict())
    for name, value in made.items():
        torch.testing.assert_close(value, weights[prefix + name].to(value.dtype), atol=1e-6, rtol=0)


def test_sizes_that_contradict_each_other_are_refused(generator, tmp_path):
    with pytest.raises(ConfigError, match="must be below batch"):
        make_task(generator, tmp_path, generated=4)
    with pytest.raises(DataError, match="--held-out"):
        make_task(generator, tmp_path, held_out=8)
