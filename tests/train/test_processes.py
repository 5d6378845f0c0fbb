"""Two processes, started by torchrun's own module, train what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_task import ToyRecipe, ToyTask

from faceedit.train import processes
from faceedit.train.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run_of_two(tmp_path_factory):
    """The toy trained by two gloo processes, stopped after a step and resumed."""
    out = tmp_path_factory.mktemp("two") / "run"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--rdzv_backend=c10d",
        "--rdzv_endpoint=localhost:0", str(ROOT / "tests" / "toy_task.py"), "--out", str(out), "--log-every", "1",
        "--ema", "0.9", "--accumulate", "2", "--save-every", "3", "--device", "cpu",
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stderr
    return out


def test_two_processes_have_the_losses_and_weights_of_one(run_of_two, tmp_path):
    recipe = ToyRecipe(out=tmp_path, log_every=1, ema=0.9)
    Trainer(ToyTask(recipe), recipe).run()
    one, two = (
        [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()] for out in (tmp_path, run_of_two)
    )
    assert len(one) == len(two) == 7  # each line was written once
    for a, b in zip(one, two, strict=True):
        for name in {"loss", "l2", "own", "gradient"} & set(a):
            assert a[name] == pytest.approx(b[name], rel=1e-4)
    assert one[-1]["held_out"]["l2"] == pytest.approx(two[-1]["held_out"]["l2"], rel=1e-4)
    ours, theirs = (load_file(out / "toy.safetensors") for out in (tmp_path, run_of_two))
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, atol=1e-5, rtol=1e-4)


def test_a_run_of_two_is_continued_by_one(run_of_two):
    recipe = ToyRecipe(out=run_of_two, steps=7, ema=0.9)
    trainer = Trainer(ToyTask(recipe), recipe)
    assert trainer.step == 6 and trainer.samples == 48
    trainer.run()
    assert trainer.step == 7


def test_alone_there_is_nothing_to_share():
    assert (processes.rank(), processes.count()) == (0, 1)
    assert processes.gather("x") == ["x"]
    assert processes.total(torch.ones(2)).tolist() == [1, 1]
    with processes.first_alone():
        pass
    parameter = torch.nn.Parameter(torch.ones(1))
    processes.sum_gradients([parameter])
    assert parameter.grad is None
