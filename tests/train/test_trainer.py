"""The trainer: the same run however it is shared out or interrupted, and honest files."""

import json

import pytest
import torch
from toy_task import ToyRecipe, ToyTask

from faceedit.train.trainer import Trainer


def trained(out, **settings):
    recipe = ToyRecipe(out=out, **settings)
    trainer = Trainer(ToyTask(recipe), recipe)
    trainer.run()
    return trainer


def weights(trainer):
    return [p.detach().clone() for p in trainer.task.trainable.parameters()]


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_same(one, other):
    """All weights and their averages are equal in every bit."""
    for a, b in zip(weights(one) + one.average, weights(other) + other.average, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_an_interrupted_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, cut):
    settings = {"ema": 0.9, "dropout": 0.2, "log_every": 1}
    whole = trained(tmp_path / "whole", **settings)
    for _ in range(cut):
        trained(tmp_path / "cut", max_minutes=1e-9, **settings)  # one step
    again = trained(tmp_path / "cut", **settings)
    assert again.step == whole.step == 6
    assert_same(again, whole)
    lines = [
        [(line["step"], line["loss"], line["own"]) for line in metrics(tmp_path / run) if "loss" in line]
        for run in ("cut", "whole")
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 6
