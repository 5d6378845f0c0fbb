"""e4e's training: rows let in one by one, the codes' losses, and a discriminator that is one for all processes."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_psp import DIM, make_encoder, make_recipe, make_task

from faceedit.train.checkpoint import load_state
from faceedit.train.encoder_losses import adversarial_loss, discriminator_loss, offset_loss
from faceedit.train.trainer import Share, Trainer

ROOT = Path(__file__).resolve().parents[2]


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_loss_adds_offsets_and_the_adversarys(tmp_path):
    task = make_task(make_recipe("e4e", tmp_path), identity=True)
    task.encoder.eval()
    total, figures = task.loss(Share(0, 3, range(4), 4))
    assert figures["rows"] == 4
    codes = task._codes
    latents, network = codes[:, 1:], task.adversary.discriminator
    assert torch.equal(latents[:, 4:], latents[:, :1].expand(-1, 4, -1))
    with torch.no_grad():
        torch.testing.assert_close(figures["offset"], offset_loss(latents, 4))
        torch.testing.assert_close(figures["adversarial"], adversarial_loss(network, latents, 4))
        told = discriminator_loss(network(codes[:, 0]), network(latents[:, :4]))
        torch.testing.assert_close(figures["discriminator"], told)
    pictures = figures["l2"] + 0.8 * figures["lpips"] + 0.1 * figures["id"]
    torch.testing.assert_close(total.detach(), pictures + 2e-4 * figures["offset"] + 0.1 * figures["adversarial"])
    # Real codes lie where the mapping sends noise: each must be the image of some z of the share.
    share = Share(0, 3, range(4), 4)
    share.uniform(0, 1, 1, 1, 1)
    torch.testing.assert_close(codes[:, 0], task.to_w(share.normal(DIM)))


def test_the_discriminator_learns_from_the_whole_batch_once_a_step(tmp_path):
    settings = {"lr": 1e-6, "accumulate": 2, "discriminator_lr": 1e-2, "r1": 0.1}
    recipe = make_recipe("e4e", tmp_path, steps=16, optimizer="adam", **settings)
    task = make_task(recipe)
    task.encoder.latent_mean.add_(1.0)  # far from W: easy to tell
    before = copy.deepcopy(task.adversary.discriminator.state_dict())
    calls = []
    update = task.adversary.update

    def counted(real, fake, rows, step, random):
        calls.append((len(real), len(fake), rows, step))
        return update(real, fake, rows, step, random)

    task.adversary.update = counted
    Trainer(task, recipe).run()
    assert calls == [(3, 3, max(1, min(8, 1 + step)), step) for step in range(16)]
    assert all(not torch.equal(value, before[name]) for name, value in task.adversary.discriminator.state_dict().items())
    found = [line["discriminator"] for line in lines(tmp_path) if "discriminator" in line]
    assert found[-1] < 0.6 * found[0]


def test_what_is_exported_repeats_row_0_where_training_does(tmp_path):
    recipe = make_recipe("e4e", tmp_path, steps=3, optimizer="adam")
    task = make_task(recipe)
    Trainer(task, recipe).run()
    made = make_encoder("e4e")
    made.load_state_dict(load_file(tmp_path / "encoder.safetensors"))
    picture = task.sample_grid()[0]
    with torch.no_grad():
        ours, trained = made.eval()(picture).latents, task.encoder.eval()(picture).latents
    torch.testing.assert_close(ours, trained)
    assert torch.equal(ours[:, 3:], ours[:, :1].expand(-1, 5, -1))
    assert (ours[:, 2] - ours[:, 0]).abs().max() > 1e-4
    # The state keeps the rows' own first weights, for when they are let in.
    kept = load_state(tmp_path / "state.pt")["trainable"]
    assert kept["styles.7.linear.weight"].any()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    recipe = make_recipe("e4e", out, optimizer="adam")
    task = make_task(recipe)
    task.encoder.eval()
    Trainer(task, recipe).run()
    return out


def same(one, two):
    for a, b in zip(lines(one), lines(two), strict=True):
        for name in {"loss", "l2", "offset", "adversarial", "discriminator", "rows"} & set(a):
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-5), (a["step"], name)
    first, second = (load_state(out / "state.pt") for out in (one, two))
    torch.testing.assert_close(first["extra"]["adversary"], second["extra"]["adversary"], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(first["trainable"], second["trainable"], rtol=1e-3, atol=1e-4)


def test_passes_add_up_to_the_whole(alone, tmp_path):
    recipe = make_recipe("e4e", tmp_path, optimizer="adam", accumulate=3)
    task = make_task(recipe)
    task.encoder.eval()
    Trainer(task, recipe).run()
    same(alone, tmp_path)


def test_two_processes_train_what_one_does(alone, tmp_path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--rdzv_backend=c10d",
        "--rdzv_endpoint=localhost:0", str(ROOT / "tests" / "tiny_psp.py"), str(tmp_path / "two"),
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stderr
    same(alone, tmp_path / "two")
