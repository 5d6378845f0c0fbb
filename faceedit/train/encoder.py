"""Train the encoder on generated faces, whose code is known, and on real ones, through the generator.

``python -m faceedit.train encoder --generator FILE --photos CROPS.npy --imagenet FILE --lpips FILE
--identity FILE --out FOLDER``

Each batch mixes both kinds. A generated face teaches its true code and its picture; a real one only
its picture, through the frozen generator's preview:

    L = L2 + l_lpips LPIPS + l_id (1 - centred cosine) + l_code |w - w*|^2 + l_offset |rows - their mean|^2

From step ``first_look_steps`` on, every other batch trains the correction: the encoder's code and
its picture are made without gradients, and the loss is that of the corrected code.

Pictures at 256 px in [-1, 1]; codes in units of the standard deviation of W. The learning rate
warms up, stays, and decays to zero over the last ``--decay`` steps, so a run can be prolonged.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from faceedit.models.efficientnet_encoder import EfficientNetEncoder
from faceedit.models.generator import Generator
from faceedit.train.checkpoint import load_generator, load_state, save_state, save_tensors
from faceedit.train.classifier import read_imagenet
from faceedit.train.crops import MARGIN
from faceedit.train.identity import IdentityNet, load_identity
from faceedit.train.perceptual import LPIPS
from faceedit.train.synthetic import mixed_latents

log = logging.getLogger(__name__)

SIZE = 256


@dataclass
class EncoderRecipe:
    """Every number of the training."""

    steps: int = 2200  # optimizer steps in all
    warmup: int = 100  # steps of linear warm-up
    decay: int = 600  # last steps, over which the learning rate falls to zero
    code_steps: int = 250  # first steps, on generated faces' codes alone: no generator pass
    code_batch: int = 16  # their batch
    first_look_steps: int = 1000  # steps before corrections are trained too
    second_correction: float = 0.3  # share of their batches that start from a corrected code
    real: int = 6  # real faces in a batch afterwards
    generated: int = 2  # generated faces in a batch afterwards
    lr: float = 5e-4  # Adam
    lr_trunk: float = 2e-4  # Adam, for the ImageNet-pretrained trunk
    frozen_stages: int = 2  # first stages of the trunk that keep their ImageNet weights; saves time
    ema: float = 0.998  # decay of the averaged weights, which are what is shipped
    lambda_l2: float = 1.0  # on pixels in [-1, 1]
    lambda_lpips: float = 0.8  # as pSp
    lambda_id: float = 0.1  # as pSp
    lambda_code: float = 0.05  # on generated faces
    lambda_offset: float = 0.002  # keeps rows together, as e4e's delta loss
    synthetic: int = 4000  # generated faces, rendered once
    held_out: int = 64  # real crops kept for choosing, the last of the file
    every: int = 200  # steps between checkpoints and held-out figures
    seed: int = 0
    threads: int = field(default=0, metadata={"help": "CPU threads; 0 leaves PyTorch's choice"})


@torch.no_grad()
def render_faces(generator: Generator, recipe: EncoderRecipe, path: Path) -> tuple[Tensor, np.ndarray]:
    """True codes ``(N, n_styles, 512)`` and their pictures ``(N, 256, 256, 3)`` uint8, kept on disk."""
    plain = mixed_latents(generator, recipe.synthetic // 2, seed=recipe.seed + 1, mixing=0.3)
    broken = mixed_latents(generator, recipe.synthetic - len(plain), seed=recipe.seed + 2, mixing=0.8, jitter=0.15)
    codes = torch.cat((plain, broken))
    if path.exists():
        pictures = np.load(path, mmap_mode="r")
        if len(pictures) == len(codes):
            return codes, pictures
    fast = copy.deepcopy(generator).bfloat16().to(memory_format=torch.channels_last)
    pictures = np.empty((len(codes), SIZE, SIZE, 3), np.uint8)
    for i, code in enumerate(tqdm(codes.bfloat16().split(1), desc="generated faces")):
        picture = fast.preview(code)[0].float().clamp(-1, 1)
        pictures[i] = ((picture + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    np.save(path, pictures)
    return codes, pictures


def to_unit(pictures: np.ndarray) -> Tensor:
    """uint8 ``(B, H, W, 3)`` to ``(B, 3, H, W)`` in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def jittered(crops: np.ndarray, random: torch.Generator) -> Tensor:
    """Real faces ``(B, 3, 256, 256)``: random small shift, scale, turn, mirror, brightness."""
    x = to_unit(crops)
    n = len(x)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=random) * (high - low) + low

    scale = uniform(0.95, 1.06) / MARGIN
    angle = uniform(-0.06, 0.06)
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    shift = uniform(-0.03, 0.03, 2)
    theta = torch.stack((cos * flip, -sin, shift[:, 0], sin * flip, cos, shift[:, 1]), 1).view(n, 2, 3)
    x = F.grid_sample(x, F.affine_grid(theta, (n, 3, SIZE, SIZE), align_corners=False), align_corners=False)
    gain = uniform(0.85, 1.15, 1, 1, 1) * uniform(0.95, 1.05, 3, 1, 1)
    return ((x + 1) * gain - 1).clamp(-1, 1)


def degraded(x: Tensor, random: torch.Generator) -> Tensor:
    """What the encoder is shown of ``x``: some pictures blurred by a random downscale, some noisy.

    The target stays sharp: a soft or noisy photograph should still invert to a sharp face.
    """
    out = x.clone()
    for i in range(len(x)):
        draw, amount = torch.rand(2, generator=random).tolist()
        if draw < 0.25:
            small = int(64 + 160 * amount)
            y = F.interpolate(x[i : i + 1], (small, small), mode="bilinear", antialias=True, align_corners=False)
            out[i] = F.interpolate(y, (SIZE, SIZE), mode="bilinear", align_corners=False)[0]
        elif draw < 0.4:
            out[i] += 0.1 * amount * torch.randn(x.shape[1:], generator=random)
    return out


@dataclass
class Judges:
    """Frozen networks of the loss."""

    generator: Generator
    lpips: LPIPS
    identity: IdentityNet | None

    def render(self, codes: Tensor) -> Tensor:
        """Previews ``(B, 3, 256, 256)``, one code at a time: one face's maps stay in the cache."""
        return torch.cat([self.generator.preview(code) for code in codes.to(self.generator.constant.dtype).split(1)])

    def losses(self, pictures: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Mean L2, LPIPS and identity distance of pictures in [-1, 1]."""
        with torch.no_grad():
            wanted = self.lpips.features(targets)
        found = {
            "l2": F.mse_loss(pictures.float(), targets),
            "lpips": self.lpips.distance(self.lpips.features(pictures), wanted).mean().float(),
        }
        if self.identity is not None:
            with torch.no_grad():
                person = self.identity.describe(targets)
            found["id"] = (1 - (self.identity.describe(pictures.float()) * person).sum(1)).mean().float()
        return found


class Trainer:
    """Steps, checkpoints and exact resume: every random draw depends on the seed and step only."""

    def __init__(
        self, encoder: EfficientNetEncoder, judges: Judges, recipe: EncoderRecipe,
        faces: tuple[Tensor, np.ndarray], photos: np.ndarray, out: Path,
    ) -> None:
        self.encoder, self.judges, self.recipe, self.out = encoder, judges, recipe, out
        self.codes, self.pictures = faces
        self.photos, self.held_out = photos[: -recipe.held_out], photos[-recipe.held_out :]
        self.average = copy.deepcopy(encoder)
        for part in (encoder.trunk.stem, *encoder.trunk.stages[: recipe.frozen_stages]):
            part.requires_grad_(False)
        # Depthwise kernels keep their ImageNet weights too: on a CPU their gradients alone would take
        # half of the encoder's backward pass.
        for part in encoder.trunk.modules():
            if isinstance(part, nn.Conv2d) and part.groups > 1:
                part.requires_grad_(False)
        trunk = [p for p in encoder.trunk.parameters() if p.requires_grad]
        rest = [p for name, p in encoder.named_parameters() if not name.startswith("trunk.")]
        self.optimizer = torch.optim.Adam(
            [{"params": rest, "peak": recipe.lr}, {"params": trunk, "peak": recipe.lr_trunk}], betas=(0.9, 0.99), fused=True
        )
        self.step = 0

    def _draw(self, kind: int, n: int, count: int) -> tuple[np.ndarray, torch.Generator]:
        random = torch.Generator().manual_seed((self.recipe.seed * 1_000_003 + self.step) * 8 + kind)
        return torch.randint(n, (count,), generator=random).numpy(), random

    def _loss(self) -> tuple[Tensor, dict[str, float]]:
        recipe = self.recipe
        codes_only = self.step < recipe.code_steps
        i, random = self._draw(0, len(self.codes), recipe.code_batch if codes_only else recipe.generated)
        targets, truth = to_unit(self.pictures[i]), self.codes[i]
        inputs = degraded(targets, random)
        if not codes_only:
            j, random = self._draw(1, len(self.photos), recipe.real)
            real = jittered(self.photos[j], random)
            targets, inputs = torch.cat((targets, real)), torch.cat((inputs, degraded(real, random)))
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            if self.step < recipe.first_look_steps or self.step % 2:
                latents = self.encoder(inputs).latents
            else:
                again = torch.rand(1, generator=random).item() < recipe.second_correction
                with torch.no_grad():
                    latents = self._answer(self.encoder, inputs, corrections=int(again))
                    seen = self.judges.render(latents)
                latents = self.encoder.correct(inputs, latents, seen)
        code = ((latents[: len(i)] - truth) / self.encoder.latent_std).square().mean()
        offset = ((latents - latents.mean(1, keepdim=True)) / self.encoder.latent_std).square().mean()
        found = {"code": code, "offset": offset}
        loss = recipe.lambda_code * code + recipe.lambda_offset * offset
        if codes_only:
            return code, {k: v.item() for k, v in found.items()}
        with torch.autocast("cpu", torch.bfloat16):
            pictures = self.judges.render(latents)
            found |= self.judges.losses(pictures, targets)
        loss = loss + sum(getattr(recipe, f"lambda_{k}") * found[k] for k in ("l2", "lpips", "id") if k in found)
        return loss, {k: v.item() for k, v in found.items()}

    def _answer(self, encoder: EfficientNetEncoder, inputs: Tensor, corrections: int) -> Tensor:
        """The encoder's code after some corrections."""
        latents = encoder(inputs).latents
        for _ in range(corrections):
            latents = encoder.correct(inputs, latents, self.judges.render(latents))
        return latents

    def _set_lr(self) -> None:
        recipe = self.recipe
        factor = min(1.0, (self.step + 1) / recipe.warmup, (recipe.steps - self.step) / max(1, recipe.decay))
        for group in self.optimizer.param_groups:
            group["lr"] = factor * group["peak"]

    def train(self, max_minutes: float) -> None:
        """Run to the last step, or until ``max_minutes`` have passed; save either way."""
        start, recent = time.monotonic(), {}
        bar = tqdm(total=self.recipe.steps, initial=self.step, desc="encoder")
        while self.step < self.recipe.steps and time.monotonic() - start < 60 * max_minutes:
            self._set_lr()
            loss, found = self._loss()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.encoder.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            decay = min(self.recipe.ema, self.step / (self.step + 10))
            with torch.no_grad():
                for ours, theirs in zip(self.average.parameters(), self.encoder.parameters()):
                    ours.lerp_(theirs, 1 - decay)
            recent = {k: 0.95 * recent.get(k, v) + 0.05 * v for k, v in found.items()}
            bar.update()
            bar.set_postfix({k: f"{v:.3f}" for k, v in recent.items()}, refresh=False)
            if self.step % self.recipe.every == 0:
                self.save(recent)
        self.save(recent)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Averaged weights on the held-out photographs: PSNR in dB on [0, 1] and losses, 256 px preview.

        ``psnr_first`` and ``lpips_first`` are of the first answer, the others of the last.
        """
        targets = F.interpolate(to_unit(self.held_out), (int(SIZE * MARGIN),) * 2, mode="area")
        edge = (targets.shape[-1] - SIZE) // 2
        targets = targets[..., edge : edge + SIZE, edge : edge + SIZE]
        looks = (0, self.encoder.looks)
        found: dict[int, list[dict[str, float]]] = {n: [] for n in looks}
        for x in targets.split(8):
            for n in looks:
                with torch.autocast("cpu", torch.bfloat16):
                    y = self.judges.render(self._answer(self.average, x.contiguous(memory_format=torch.channels_last), n))
                    losses = {k: v.item() for k, v in self.judges.losses(y, x).items()}
                error = (y.float().clamp(-1, 1) - x).square().mean((1, 2, 3)) / 4
                found[n].append({"psnr": -10 * error.log10().mean().item(), **losses})
        figures = {k: float(np.mean([f[k] for f in found[looks[1]]])) for k in found[looks[1]][0]}
        figures |= {f"{k}_first": float(np.mean([f[k] for f in found[0]])) for k in ("psnr", "lpips")}
        self.last_grid = torch.cat((x, y.float().clamp(-1, 1)), 2)
        return figures

    def save(self, recent: dict[str, float]) -> None:
        """Checkpoint, metrics line and sample grid."""
        figures = self.evaluate()
        save_tensors(self.average.state_dict(), self.out / "encoder.safetensors")
        save_state(
            {"step": self.step, "encoder": self.encoder.state_dict(), "optimizer": self.optimizer.state_dict()},
            self.out / "state.pt",
        )
        line = {"step": self.step, "train": recent, "held_out": figures, "n": len(self.held_out)}
        with open(self.out / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        grid = ((self.last_grid + 1) * 127.5).byte().permute(2, 0, 3, 1).flatten(1, 2).numpy()
        Image.fromarray(grid).save(self.out / "held_out.jpg")
        log.info("%s", json.dumps(line))

    def resume(self) -> None:
        """Go on from the folder's last checkpoint, if there is one."""
        if not (self.out / "state.pt").exists():
            return
        state = load_state(self.out / "state.pt")
        self.step = state["step"]
        self.encoder.load_state_dict(state["encoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(load_file(self.out / "encoder.safetensors"))


def main(argv: list[str]) -> int:
    """Command line entry; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="faceedit.train encoder", description=__doc__)
    for name in ("generator", "photos", "imagenet", "lpips"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--identity", type=Path, help="made by the identity stage; none leaves that loss out")
    parser.add_argument("--init", type=Path, help="start from this run's encoder.safetensors, or a checkpoint's model.safetensors")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; an existing one is resumed")
    parser.add_argument("--max-minutes", type=float, default=float("inf"))
    for option in fields(EncoderRecipe):
        parser.add_argument(f"--{option.name.replace('_', '-')}", type=type(option.default), default=option.default)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = EncoderRecipe(**{f.name: getattr(args, f.name) for f in fields(EncoderRecipe)})
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    generator = load_generator(args.generator)
    faces = render_faces(generator, recipe, args.out / "generated.npy")
    photos = np.load(args.photos, mmap_mode="r")

    torch.manual_seed(recipe.seed)
    encoder = EfficientNetEncoder(generator.n_styles)
    encoder.trunk.load_imagenet(read_imagenet(args.imagenet))
    w = generator.map(torch.randn(4096, generator.style_dim))
    encoder.latent_mean.copy_(w.mean(0))
    encoder.latent_std.copy_(w.std(0))
    if args.init:
        start = load_file(args.init)
        inside = {k.removeprefix("encoder."): v for k, v in start.items() if k.startswith("encoder.")}
        encoder.load_state_dict({k: v.float() for k, v in (inside or start).items()})
    # Evaluation mode keeps the trunk's batch-norm statistics: batches are small and of two kinds.
    encoder = encoder.eval().to(memory_format=torch.channels_last)
    identity = load_identity(args.identity).to(memory_format=torch.channels_last) if args.identity else None
    judges = Judges(
        generator.bfloat16().to(memory_format=torch.channels_last),
        LPIPS.from_file(args.lpips).to(memory_format=torch.channels_last),
        identity,
    )
    trainer = Trainer(encoder, judges, recipe, faces, photos, args.out)
    trainer.resume()
    (args.out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2))
    trainer.train(args.max_minutes)
    return 0
