"""The one training loop, used by every stage.

A stage is a `Task`: what is trained, and the loss of some samples::

    class Halver(Task):
        name = "halver"

        def __init__(self, recipe: HalverRecipe, device: torch.device) -> None:
            self.trainable = nn.Linear(1, 1).to(device)

        def loss(self, share: Share) -> tuple[Tensor, dict[str, Tensor | float]]:
            x = share.normal(1)  # (samples of this share, 1)
            l2 = F.mse_loss(self.trainable(x), x / 2)
            return l2, {"l2": l2.detach()}

    def main(argv: list[str]) -> int:
        recipe = read_recipe(HalverRecipe, argv, "halver", __doc__)
        device = begin(recipe)
        Trainer(Halver(recipe, device), recipe, device).run()
        return 0

`loss` is a mean over the samples of the `Share` that it is given, and takes all that is random from
it: ``share.uniform(low, high, *shape)``, ``share.normal(*shape)``, ``share.integers(n)`` draw one row
a sample, ``share.pick(n)`` goes through a data set of n in random order, ``share.common`` is for what
the whole batch has in common. Then the batch of a step is the same for any number of processes and
passes, and a resumed run is the uninterrupted one, bit for bit on one thread of a CPU. Samples of several kinds are
places in the batch: ``share.part(0, 6)`` are this share's among the first six; its
``mean(values)`` is their term of the loss. (Batch normalisation in training mode sees one share at a
time: that alone does depend on the sharing.) Layers that draw by themselves, such as dropout, resume
exactly too: PyTorch's own generator is seeded before each call. `loss` runs under autocast if the
recipe says ``bf16``; put ``torch.autocast(device.type, enabled=False)`` around what must not.

The other methods of `Task` have defaults: `evaluate`, `sample_grid`, `parameter_groups` (learning rates),
`optimizer` (another than AdamW), `after_step` (such as a proximal step), `batch` (a batch size that
changes), `export` (files), `state_dict` and `load_state_dict` (what else a resumed run needs).

A run is a folder: ``state.pt`` and the one before it, what the task exports, ``metrics.jsonl``,
``samples/*.jpg``, ``recipe.json``. The same command again resumes it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from faceedit.errors import CheckpointError, ConfigError, DivergedError, MissingDependencyError, OutputExistsError
from faceedit.train import processes
from faceedit.train.checkpoint import load_state, save_state
from faceedit.train.config import TrainRecipe, plain
from faceedit.train.task import Share, Task, random_source

__all__ = ["Share", "Task", "Trainer", "begin", "random_source"]

log = logging.getLogger(__name__)

FORMAT = "faceedit-train-1"


def begin(recipe: TrainRecipe) -> torch.device:
    """Set up this process: logging, threads, seed, and the others if ``torchrun`` started several.

    Returns:
        The device to put the networks on.
    """
    device = processes.join(recipe.device)
    logging.basicConfig(level=logging.INFO if processes.rank() == 0 else logging.ERROR, format="%(message)s")
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)  # the networks' first weights
    return device


class Trainer:
    """Runs a task to its last step; resumes the run that lies in ``recipe.out``.

    Args:
        task: What to train.
        recipe: How.
        device: From :func:`begin`.

    Attributes:
        step: Optimizer steps made.
    """

    def __init__(self, task: Task, recipe: TrainRecipe, device: torch.device | str = "cpu") -> None:
        self.task, self.recipe, self.device = task, recipe, torch.device(device)
        self.main = processes.rank() == 0
        groups = [{"lr": recipe.lr, **group, "params": [*group["params"]]} for group in task.parameter_groups()]
        self.optimizer = task.optimizer([{**group, "peak": group["lr"]} for group in groups], recipe)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.step = self.samples = 0
        self.minutes = 0.0
        self.average: list[Tensor] = []
        self._sums: defaultdict[str, list[Tensor | float]] = defaultdict(list)
        self._stop = False
        self._board = _tensorboard(recipe.out) if recipe.tensorboard and self.main else None
        self._resume()
        processes.copy_first([*task.trainable.state_dict().values()])
        if recipe.ema and not self.average:
            self.average = [p.detach().clone() for p in self.parameters]

    def run(self) -> dict[str, float]:
        """Train to the last step, or until ``max_minutes`` have passed or a signal came.

        A signal (SIGINT, SIGTERM) ends the run after the step, with a checkpoint.

        Returns:
            The held-out figures at the end; empty after a signal and in processes other than the first.

        Raises:
            DivergedError: The loss or the gradient is not finite; the checkpoint before is kept.
        """
        recipe, figures = self.recipe, {}
        if self.step >= recipe.steps:
            log.info("%s is complete: step %d of %d", recipe.out, self.step, recipe.steps)
            self._export()  # a run that was killed between its last state and what follows from it
        start = time.monotonic()
        self._recent_samples, self._recent_seconds = 0, 0.0
        bar = tqdm(total=recipe.steps, initial=self.step, desc=self.task.name, file=sys.stderr,
                   disable=not self.main, mininterval=1)  # fmt: skip
        with bar, self._heed_signals():
            ended = self.step >= recipe.steps
            while not ended:
                late, signalled = self._advance(time.monotonic() - start >= 60 * recipe.max_minutes)
                ended = late or signalled or self.step == recipe.steps
                bar.update()
                if ended or self.step % recipe.log_every == 0 or self.step % recipe.save_every == 0:
                    self._log(bar)
                if ended or self.step % recipe.save_every == 0:
                    self.save()
                if signalled:  # whoever sent it does not wait for figures
                    break
                figures = self._show(ended) or figures
        if self._board:
            self._board.close()
        processes.wait()
        return figures

    # --- one step -----------------------------------------------------------------------------

    def _advance(self, late: bool) -> tuple[bool, bool]:
        """One optimizer step; returns whether any process is late, and whether one got a signal."""
        recipe, began = self.recipe, time.monotonic()
        batch = self.task.batch(self.step) or recipe.batch
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.device)
        parts: defaultdict[str, Tensor | float] = defaultdict(float)
        for samples in shares(batch, recipe.accumulate, processes.rank(), processes.count()):
            share = Share(recipe.seed, self.step, samples, batch, self.samples, self.device)
            torch.manual_seed(random_source(recipe.seed, self.step, samples.start, "layers").initial_seed())
            with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.bf16):
                found, figures = self.task.loss(share)
            weight = len(samples) / batch
            (found * weight).backward()
            loss += found.detach() * weight
            for name, value in figures.items():
                parts[name] += (value.detach() if isinstance(value, Tensor) else value) * weight
        flags = torch.tensor([late, self._stop], dtype=torch.float32, device=self.device)
        whole, lates, signals = processes.total(torch.cat((loss.float().view(1), flags))).tolist()
        self._require_finite(whole, "loss")
        processes.sum_gradients(self.parameters)
        norm = nn.utils.clip_grad_norm_(self.parameters, recipe.clip or math.inf)
        self._require_finite(norm.item(), "gradient's norm")
        factor = rate(self.step, recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self.optimizer.step()
        with torch.no_grad():
            self.task.after_step(self.optimizer)
            processes.copy_first(self.task.trainable.buffers())
        self.step += 1
        self.samples += batch
        self._follow()
        # Of the figures each process has its part, and they are summed when logged.
        for name, value in {**({"loss": whole, "gradient": norm.item()} if self.main else {}), **parts}.items():
            self._sums[name].append(value)
        self._recent_samples += batch
        self._recent_seconds += time.monotonic() - began
        self.minutes += (time.monotonic() - began) / 60
        return lates > 0, signals > 0

    def _require_finite(self, value: float, what: str) -> None:
        if not math.isfinite(value):
            raise DivergedError(
                f"The {what} is {value} at step {self.step}, so the training was stopped before it changed the "
                f"weights. The last checkpoint in {str(self.recipe.out)!r} is as it was. Go on from it with a lower "
                "learning rate (--lr) or a tighter --clip."
            )

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the averaged weights; early on they forget faster, as they start from nothing."""
        if self.average:
            decay = min(self.recipe.ema, self.step / (self.step + 10))
            for average, parameter in zip(self.average, self.parameters, strict=True):
                average.lerp_(parameter, 1 - decay)

    # --- what is shown ------------------------------------------------------------------------

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the task has the averaged weights, if there are any."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for i, parameter in enumerate(self.parameters[: len(self.average)]):
            parameter.data, self.average[i] = self.average[i], parameter.data

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """As `averaged`, in evaluation mode and without gradients."""
        training = [module for module in self.task.trainable.modules() if module.training]
        with self.averaged(), torch.no_grad():
            self.task.trainable.eval()
            try:
                yield
            finally:
                for module in training:
                    module.training = True

    def _log(self, bar: tqdm) -> None:
        """A line of metrics: means over the steps since the last line."""
        mine = {name: torch.tensor([float(v) for v in values]).double().mean().item() for name, values in self._sums.items()}
        self._sums.clear()
        line: defaultdict[str, float] = defaultdict(float)
        for one in processes.gather(mine):
            for name, value in one.items():
                line[name] += value
        speed = self._recent_samples / max(self._recent_seconds, 1e-9)
        self._recent_samples, self._recent_seconds = 0, 0.0
        lr = self.optimizer.param_groups[0]["lr"]
        bar.set_postfix_str(f"loss {line['loss']:.4g}, {speed:.3g} pictures/s", refresh=False)
        self._write({**line, "lr": lr, "pictures_per_second": round(speed, 3), "minutes": round(self.minutes, 3)})

    def _show(self, ended: bool) -> dict[str, float]:
        """Held-out figures and the sample grid, when they are due; by the first process."""
        recipe, figures = self.recipe, {}
        due = [ended or (every > 0 and self.step % every == 0) for every in (recipe.evaluate_every, recipe.grid_every)]
        if not self.main or not any(due):
            return figures
        with self._watching():
            if due[0] and (figures := self.task.evaluate()):
                self._write({"held_out": figures})
                log.info("step %d: %s", self.step, ", ".join(f"{k} {v:.4g}" for k, v in figures.items()))
            grid = self.task.sample_grid() if due[1] else None
        if grid is not None:
            picture = ((grid.float().clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
            picture = picture.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # rows x H, columns x W, 3
            folder = recipe.out / "samples"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.numpy()).save(folder / f"{self.step:07d}.jpg", quality=92)
            if self._board:
                self._board.add_image("samples", picture, self.step, dataformats="HWC")
        return figures

    def _write(self, values: dict[str, Any]) -> None:
        if not self.main:
            return
        self.recipe.out.mkdir(parents=True, exist_ok=True)
        with open(self.recipe.out / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, **values}) + "\n")
        for group, items in {"held_out": {}, "train": values, **values}.items() if self._board else ():
            for name, value in items.items() if isinstance(items, dict) else ():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(f"{group}/{name}", value, self.step)

    # --- checkpoints --------------------------------------------------------------------------

    def save(self) -> None:
        """Write the state, then what the task exports."""
        if not self.main:
            return
        save_state(
            {
                "format": FORMAT, "task": self.task.name, "recipe": plain(self.recipe),
                "step": self.step, "samples": self.samples, "minutes": self.minutes,
                "trainable": self.task.trainable.state_dict(), "average": self.average,
                "optimizer": self.optimizer.state_dict(), "extra": self.task.state_dict(),
            },
            self.recipe.out / "state.pt",
        )  # fmt: skip
        self._export()

    def _export(self) -> None:
        if self.main:
            with self._watching():
                self.task.export(self.recipe.out)

    def _resume(self) -> None:
        """Go on from the folder's last checkpoint, if there is one."""
        out, now = self.recipe.out, plain(self.recipe)
        state = load_state(out / "state.pt")
        if state is not None:
            if state.get("format") != FORMAT or state.get("task") != self.task.name:
                raise CheckpointError(
                    f"{str(out / 'state.pt')!r} is the state of {state.get('task', 'something else')!r}, not of "
                    f"{self.task.name!r} as this release writes it. Choose another --out."
                )
            try:
                self.task.trainable.load_state_dict(state["trainable"])
                # The learning rates and so on are those of the recipe now; a group's own count of steps stays.
                groups = zip(state["optimizer"]["param_groups"], self.optimizer.state_dict()["param_groups"], strict=True)
                groups = [{**saved, **own} for saved, own in groups]
                self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
                self.task.load_state_dict(state["extra"])
            except (RuntimeError, ValueError) as error:
                raise CheckpointError(
                    f"The state in {str(out)!r} is of a network of another shape: {error}. Choose another --out."
                ) from error
            self.step, self.samples, self.minutes = state["step"], state["samples"], state["minutes"]
            if self.recipe.ema and state["average"]:
                self.average = [a.to(p.device) for a, p in zip(state["average"], self.parameters, strict=True)]
            before = state["recipe"]
            changed = [f"{k} {before.get(k)} -> {now.get(k)}" for k in {**before, **now} if before.get(k) != now.get(k)]
            log.info("resumed at step %d%s", self.step, f"; changed: {', '.join(changed)}" if changed else "")
        elif (made := out / f"{self.task.name}.safetensors").exists():
            raise OutputExistsError(
                f"{str(made)!r} is there, and no state of a run to go on from: a new run would replace it. Choose another "
                "--out, or move it away."
            )
        if self.main:
            out.mkdir(parents=True, exist_ok=True)
            (out / "recipe.json").write_text(json.dumps(now, indent=2) + "\n")
            _cut_metrics(out / "metrics.jsonl", self.step)

    @contextlib.contextmanager
    def _heed_signals(self) -> Iterator[None]:
        before: dict[int, Any] = {}

        def stop(number: int, frame: Any) -> None:
            self._stop = True
            signal.signal(number, before[number])  # a second one does what it always did

        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, stop)
        except ValueError:  # not the main thread, which alone may have handlers
            pass
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def rate(step: int, recipe: TrainRecipe) -> float:
    """The learning rate of a step, as a fraction of the highest: linear up, constant, linear down."""
    up = (step + 1) / recipe.warmup if recipe.warmup else 1.0
    down = (recipe.steps - step) / recipe.decay if recipe.decay else 1.0
    return max(0.0, min(1.0, up, down))


def shares(batch: int, passes: int, rank: int = 0, count: int = 1) -> list[range]:
    """The places of the batch that a process computes, one range a pass, as equal as can be.

    Raises:
        ConfigError: The batch has fewer samples than there are passes of all processes.
    """
    n = passes * count
    if batch < n:
        raise ConfigError(
            f"A batch of {batch} cannot be shared by {count} process(es) with {passes} pass(es) each. Raise --batch "
            "or lower --accumulate."
        )
    bounds = [batch * i // n for i in range(n + 1)]
    return [range(bounds[i], bounds[i + 1]) for i in range(rank * passes, (rank + 1) * passes)]


def _cut_metrics(path: Path, step: int) -> None:
    """Drop the lines after a step, which a resumed run writes again, and a half-written one."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(kept), encoding="utf-8")
    os.replace(partial, path)


def _tensorboard(out: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError(
            "--tensorboard needs the package tensorboard, which is not installed. Install it with: "
            "pip install 'faceedit[tensorboard]', or leave the flag out; metrics.jsonl has the same numbers."
        ) from error
    return SummaryWriter(str(out / "tensorboard"))
