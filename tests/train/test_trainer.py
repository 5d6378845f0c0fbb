"""The trainer: the same run however it is shared out or interrupted, and files that a kill leaves whole."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from toy_task import ToyRecipe, ToyTask

from faceedit.errors import (
    CheckpointError,
    ConfigError,
    DivergedError,
    MissingDependencyError,
    OutputExistsError,
    UsageError,
)
from faceedit.train import checkpoint, processes
from faceedit.train.checkpoint import load_state, save_state
from faceedit.train.trainer import Share, Trainer, rate, shares

ROOT = Path(__file__).resolve().parents[2]


def build(out, task=ToyTask, **settings):
    recipe = ToyRecipe(out=out, **settings)
    return Trainer(task(recipe), recipe)


def trained(out, task=ToyTask, **settings):
    trainer = build(out, task, **settings)
    trainer.run()
    return trainer


def weights(trainer):
    return [p.detach().clone() for p in trainer.task.trainable.parameters()]


def assert_same(one, other):
    """All weights and their averages are equal in every bit."""
    for a, b in zip(weights(one) + one.average, weights(other) + other.average, strict=True):
        assert torch.equal(a, b)


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


# --- sanity -----------------------------------------------------------------------------------


class OneBatch(ToyTask):
    """The same eight samples over and over, without noise."""

    def loss(self, share):
        x = self.data[list(share.samples)]
        loss = nn.functional.mse_loss(self.trainable["body"](x), x.sum(1, keepdim=True))
        return loss, {}


def test_it_overfits_one_batch(tmp_path):
    trained(tmp_path, OneBatch, steps=300, lr=0.05, beta2=0.999, clip=0.0, warmup=10, decay=100, log_every=1)
    losses = [line["loss"] for line in metrics(tmp_path) if "loss" in line]
    assert losses[0] > 1 and losses[-1] < 1e-3


def test_every_trainable_parameter_moves_and_nothing_frozen_does(tmp_path):
    trainer = build(tmp_path)
    before = {name: p.detach().clone() for name, p in trainer.task.trainable.named_parameters()}
    trainer.run()
    moved = {name for name, p in trainer.task.trainable.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if not name.startswith("frozen.")}
    assert {"frozen.weight", "frozen.bias"} == set(before) - moved


def test_two_runs_with_one_seed_agree_and_another_seed_does_not(tmp_path):
    one, same, other = (trained(tmp_path / str(i), dropout=0.3, seed=s) for i, s in enumerate((1, 1, 2)))
    assert_same(one, same)
    assert not torch.equal(weights(one)[0], weights(other)[0])


def test_draws_do_not_depend_on_the_global_state(tmp_path):
    torch.manual_seed(1)
    one = build(tmp_path / "a", dropout=0.3)
    torch.manual_seed(2)
    torch.rand(5)
    one.run()
    assert_same(one, trained(tmp_path / "b", dropout=0.3))


# --- shares -----------------------------------------------------------------------------------


def test_shares_cover_the_batch_once_and_evenly():
    found = [samples for rank in range(3) for samples in shares(16, 2, rank, 3)]
    assert [i for samples in found for i in samples] == list(range(16))
    assert {len(samples) for samples in found} == {2, 3}
    with pytest.raises(ConfigError, match="--accumulate"):
        shares(3, 2, 0, 2)


def test_a_samples_draws_are_its_own():
    whole, half = Share(1, 7, range(8), 8), Share(1, 7, range(4, 8), 8)
    for draw in (lambda s: s.uniform(-1, 2, 3), lambda s: s.normal(2, 2), lambda s: s.integers(9), lambda s: s.pick(5)):
        assert torch.equal(draw(whole)[4:], draw(half))
    assert not torch.equal(whole.normal(4)[0], whole.normal(4)[1])
    assert not torch.equal(Share(1, 8, range(8), 8).normal(4), Share(1, 7, range(8), 8).normal(4))
    values = Share(0, 0, range(4), 4).uniform(2, 5, 1000)
    assert values.min() >= 2 and values.max() < 5 and values.mean() == pytest.approx(3.5, abs=0.1)


def test_pick_takes_each_thing_once_an_epoch_in_a_new_order():
    rows = torch.cat([Share(0, step, range(4), 4, before=4 * step).pick(10) for step in range(5)])
    assert sorted(rows[:10].tolist()) == sorted(rows[10:].tolist()) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()


@pytest.mark.parametrize("cuts", [(0, 8), (0, 4, 8), (0, 1, 7, 8)])
def test_the_mean_of_a_part_is_the_same_however_the_batch_is_cut(cuts):
    values = torch.arange(8.0)
    total = 0.0
    rows = []
    for first, stop in zip(cuts[:-1], cuts[1:], strict=True):
        share = Share(0, 3, range(first, stop), 8, before=24)
        part = share.part(5, 8)
        rows += part.pick(6).tolist()
        total += part.mean(values[list(part.samples)]).item() * len(share) / 8
    assert total == pytest.approx(6.0)
    assert rows == Share(0, 3, range(8), 8, before=24).part(5, 8).pick(6).tolist()


def test_two_parts_go_through_the_same_things_in_other_orders():
    rows = [[], []]
    for step in range(6):
        share = Share(0, step, range(8), 8, before=8 * step)
        for own, part in zip(rows, (share.part(2, 4), share.part(6, 8)), strict=True):
            own += part.pick(12).tolist()
    assert sorted(rows[0]) == sorted(rows[1]) == list(range(12))
    assert rows[0] != rows[1]


def test_an_empty_part_gives_empty_draws_and_a_mean_of_zero():
    part = Share(0, 0, range(4), 8).part(6, 8)
    assert part.normal(3).shape == (0, 3) and part.pick(5).shape == (0,)
    assert part.mean(part.uniform()) == 0


@pytest.mark.parametrize("passes", [2, 3, 8])
def test_accumulated_passes_are_the_big_batch(tmp_path, passes):
    one = trained(tmp_path / "one", log_every=1)
    many = trained(tmp_path / "many", accumulate=passes, log_every=1)
    for a, b in zip(weights(one), weights(many), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "many"), strict=True):
        for name in {"loss", "l2", "own", "gradient"} & set(a):
            assert a[name] == pytest.approx(b[name], rel=1e-4)


# --- interruptions ----------------------------------------------------------------------------


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


KILLED = """
import os, signal, sys
sys.path[:0] = sys.argv[1:3]
import torch, toy_task
write, calls = torch.save, []
def save(state, file):
    calls.append(1)
    if len(calls) < 3:
        return write(state, file)
    import io
    whole = io.BytesIO()
    write(state, whole)
    file.write(whole.getvalue()[: whole.tell() // 2])
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = save
toy_task.main(["--out", sys.argv[3], "--save-every", "1", "--ema", "0.9"])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_kill_in_the_middle_of_a_checkpoint_leaves_the_one_before(tmp_path):
    command = [sys.executable, "-c", KILLED, str(ROOT), str(ROOT / "tests"), str(tmp_path / "killed")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "killed" / "state.pt.partial").stat().st_size > 0
    assert load_state(tmp_path / "killed" / "state.pt")["step"] == 2
    again = build(tmp_path / "killed", save_every=1, ema=0.9)
    assert again.step == 2
    again.run()
    assert_same(again, trained(tmp_path / "whole", ema=0.9))


def test_a_kill_before_the_last_export_is_made_good_by_the_same_command(tmp_path):
    whole = trained(tmp_path, save_every=2, ema=0.9)
    made = tmp_path / "toy.safetensors"
    wanted = made.read_bytes()
    for older in (b"weights of step 4", None):
        made.unlink()
        if older:
            made.write_bytes(older)
        again = trained(tmp_path, save_every=2, ema=0.9)
        assert made.read_bytes() == wanted
        assert_same(again, whole)


def test_weights_without_a_state_are_not_replaced(tmp_path):
    trained(tmp_path)
    (tmp_path / "state.pt").unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(OutputExistsError, match="no state of a run"):
        build(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_kill_between_the_two_renames_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    save_state({"step": 1}, path)
    replace = os.replace

    def dies(source, target):
        if str(source).endswith(".partial"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(checkpoint.os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        save_state({"step": 2}, path)
    assert not path.exists() and load_state(path) == {"step": 1}


def test_a_damaged_state_falls_back_to_the_one_before_and_two_are_refused(tmp_path):
    path = tmp_path / "state.pt"
    assert load_state(path) is None
    for step in (1, 2, 3):
        save_state({"step": step}, path)
    path.write_bytes(path.read_bytes()[:-100])
    assert load_state(path) == {"step": 2}
    (tmp_path / "state.previous.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="damaged"):
        load_state(path)


def test_a_state_cannot_carry_code(tmp_path):
    class Payload:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"step": Payload()}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError):
        load_state(tmp_path / "state.pt")


def test_what_a_task_keeps_besides_its_weights_is_resumed(tmp_path):
    class Counts(ToyTask):
        """Its loss depends on how often it was asked for."""

        calls = 0

        def loss(self, share):
            self.calls += 1
            loss, figures = super().loss(share)
            return loss * (1 + 0.1 * self.calls), figures

        def state_dict(self):
            return {"calls": self.calls}

        def load_state_dict(self, state):
            self.calls = state["calls"]

    trained(tmp_path / "cut", Counts, max_minutes=1e-9)
    again = trained(tmp_path / "cut", Counts)
    assert again.task.calls == 6
    assert_same(again, trained(tmp_path / "whole", Counts))


def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(tmp_path):
    class Signalled(ToyTask):
        def after_step(self, optimizer):
            if optimizer.param_groups[0]["lr"] == pytest.approx(self.recipe.lr) and not self.seen_signal:
                self.seen_signal = True
                os.kill(os.getpid(), signal.SIGTERM)

        seen_signal = False

    before = signal.getsignal(signal.SIGTERM)
    stopped = trained(tmp_path / "cut", Signalled)
    assert stopped.step < 6 and load_state(tmp_path / "cut" / "state.pt")["step"] == stopped.step
    assert signal.getsignal(signal.SIGTERM) is before
    assert_same(trained(tmp_path / "cut"), trained(tmp_path / "whole"))


def test_max_minutes_stops_and_the_run_is_complete_later(tmp_path):
    trainer = trained(tmp_path, max_minutes=1e-9)
    assert trainer.step == 1 and (tmp_path / "toy.safetensors").exists()
    assert "held_out" in metrics(tmp_path)[-1]
    assert trained(tmp_path).step == 6
    complete = (tmp_path / "metrics.jsonl").read_text()
    assert trained(tmp_path).step == 6  # nothing is left to do
    assert (tmp_path / "metrics.jsonl").read_text() == complete


def test_metrics_after_the_checkpoint_and_half_a_line_are_dropped_on_resume(tmp_path):
    trained(tmp_path, max_minutes=1e-9)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "loss": 1}\n{"step": 1, "lo')
    build(tmp_path)
    assert [line["step"] for line in metrics(tmp_path)] == [1, 1]


def test_a_folder_of_another_run_is_refused(tmp_path):
    trained(tmp_path, max_minutes=1e-9)

    class Other(ToyTask):
        name = "other"

    with pytest.raises(CheckpointError, match="'toy'"):
        build(tmp_path, Other)

    class Larger(ToyTask):
        def __init__(self, recipe):
            super().__init__(recipe)
            self.trainable["body"][0] = nn.Linear(4, 9)

    with pytest.raises(CheckpointError, match="another shape"):
        build(tmp_path, Larger)


# --- numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run_and_keeps_the_last_good_state(tmp_path, where):
    class Diverges(ToyTask):
        def loss(self, share):
            loss, figures = super().loss(share)
            if share.step == 3:
                weight = self.trainable["body"][0].weight
                # the square root of zero has an infinite slope
                loss = loss * math.nan if where == "loss" else loss + (weight - weight.detach()).abs().sqrt().sum()
            return loss, figures

    trainer = build(tmp_path, Diverges, save_every=2)
    with pytest.raises(DivergedError, match=f"{where}.* at step 3.*--lr"):
        trainer.run()
    assert all(w.isfinite().all() for w in weights(trainer))
    assert build(tmp_path).step == 2


def test_the_learning_rate_rises_stays_and_falls():
    recipe = ToyRecipe(out=Path("x"), steps=10, warmup=4, decay=5)
    rates = [rate(step, recipe) for step in range(10)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert {rate(step, ToyRecipe(out=Path("x"), steps=10, warmup=0, decay=0)) for step in range(10)} == {1.0}


def test_groups_have_their_own_rates_also_after_a_resume(tmp_path):
    class Groups(ToyTask):
        def parameter_groups(self):
            body = self.trainable["body"]
            return [{"params": body[0].parameters(), "lr": 0.0}, {"params": body[3].parameters()}]

    trained(tmp_path, Groups, lr=0.1, max_minutes=1e-9)
    trainer = build(tmp_path, Groups, lr=0.2)
    before = weights(trainer)
    trainer.run()
    moved = [not torch.equal(a, b) for a, b in zip(before, weights(trainer), strict=True)]
    assert moved == [False, False, True, True] + [False] * 4
    assert trainer.optimizer.param_groups[1]["lr"] == pytest.approx(0.1)  # half of it, at the last step


def test_clipping_bounds_the_gradient(tmp_path):
    class Watched(ToyTask):
        def after_step(self, optimizer):
            norms = [p.grad.norm() for p in self.trainable.parameters() if p.grad is not None]
            assert torch.stack(norms).norm() == pytest.approx(0.01, rel=1e-3)

    trained(tmp_path, Watched, clip=0.01, log_every=1)
    assert metrics(tmp_path)[0]["gradient"] > 0.01  # what is logged is before


def test_after_step_has_the_last_word_on_the_parameters(tmp_path):
    class Proximal(ToyTask):
        def after_step(self, optimizer):
            weight = self.trainable["body"][0].weight
            weight.copy_(weight.sign() * (weight.abs() - 10 * optimizer.param_groups[0]["lr"]).clamp_min(0))

    exact = weights(trained(tmp_path, Proximal, lr=0.02))[0]
    assert (exact == 0).float().mean() > 0.5


def test_the_average_follows_and_is_what_is_shown_and_kept(tmp_path):
    class Spied(ToyTask):
        def evaluate(self):
            self.shown = [p.detach().clone() for p in self.trainable["body"].parameters()]
            return super().evaluate()

    trainer = build(tmp_path, Spied, ema=0.9, lr=0.1)
    history = []
    trainer.task.after_step = lambda optimizer: history.append(weights(trainer)[0])
    start = weights(trainer)[0]
    trainer.run()
    for step, value in enumerate(history, 1):
        start = start.lerp(value, 1 - min(0.9, step / (step + 10)))
    torch.testing.assert_close(trainer.average[0], start)
    assert torch.equal(trainer.task.shown[0], trainer.average[0])
    assert torch.equal(weights(trainer)[0], history[-1])
    from safetensors.torch import load_file

    assert torch.equal(load_file(tmp_path / "toy.safetensors")["body.0.weight"], trainer.average[0])
    assert trainer.task.trainable.training


def test_bf16_runs_the_loss_under_autocast_and_keeps_the_weights(tmp_path):
    class Spied(ToyTask):
        def loss(self, share):
            assert self.trainable["body"](self.data[:1]).dtype == torch.bfloat16
            return super().loss(share)

    assert all(w.dtype == torch.float32 for w in weights(trained(tmp_path, Spied, bf16=True)))


def test_a_batch_may_change_with_the_steps(tmp_path):
    class Phased(ToyTask):
        sizes = []

        def batch(self, step):
            return 4 if step < 2 else None

        def loss(self, share):
            self.sizes.append(len(share))
            return super().loss(share)

    trainer = trained(tmp_path, Phased)
    assert Phased.sizes == [4, 4, 8, 8, 8, 8] and trainer.samples == 40


# --- files ------------------------------------------------------------------------------------


def test_a_run_leaves_its_recipe_metrics_and_grids(tmp_path):
    trained(tmp_path, log_every=2, evaluate_every=3, grid_every=3)
    assert json.loads((tmp_path / "recipe.json").read_text())["lambda_kind"] == 0.5
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [2, 3, 4, 6, 6]
    assert set(lines[0]) == {"step", "loss", "l2", "own", "gradient", "lr", "pictures_per_second", "minutes"}
    assert set(lines[1]["held_out"]) == {"l2"}
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["0000003.jpg", "0000006.jpg"]
    with Image.open(tmp_path / "samples" / "0000006.jpg") as picture:
        assert picture.size == (15, 8)  # two rows of three pictures 4 high and 5 wide
        assert picture.getpixel((7, 0))[0] < 10 and picture.getpixel((7, 7))[0] > 245


def test_tensorboard_is_optional_and_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingDependencyError, match=r"faceedit\[tensorboard\]"):
        build(tmp_path, tensorboard=True)


def test_tensorboard_gets_the_numbers_and_pictures(tmp_path, monkeypatch):
    import types

    class SummaryWriter:
        scalars, images = {}, []

        def __init__(self, folder):
            assert folder == str(tmp_path / "tensorboard")

        def add_scalar(self, name, value, step):
            self.scalars[name, step] = value

        def add_image(self, name, picture, step, dataformats):
            self.images.append((tuple(picture.shape), dataformats, step))

        def close(self):
            self.scalars["closed"] = True

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    trained(tmp_path, tensorboard=True, log_every=3)
    assert {("train/loss", 3), ("train/loss", 6), ("held_out/l2", 6), "closed"} <= set(SummaryWriter.scalars)
    assert ("held_out/loss", 3) not in SummaryWriter.scalars
    assert SummaryWriter.images == [((8, 15, 3), "HWC", 6)]


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="has: cpu"):
        processes.join("cuda")
    assert processes.join("cpu") == torch.device("cpu")
