"""Fit the preview head: a 256 px early exit of MobileStyleGAN, the cheap picture of training.

``python -m faceedit.train preview --generator IN.safetensors --out OUT.safetensors``

The published file has only the last image head. The preview runs the levels above 128x128 at
128x128; its convolutions start as copies of theirs and are fitted to the full pass, reduced to
256 px, on random faces.
"""

from __future__ import annotations

import argparse
import copy
import logging

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from faceedit.errors import UsageError
from faceedit.models.mobile_stylegan import MobileStyleGAN
from faceedit.train.checkpoint import load_generator, save_tensors
from faceedit.train.metrics import psnr
from faceedit.train.synthetic import mixed_latents

log = logging.getLogger(__name__)


@torch.no_grad()
def collect(generator: MobileStyleGAN, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Features of the preview level (bfloat16) and the full picture at 256 px, one code at a time."""
    features, targets = [], []
    fast = copy.deepcopy(generator).bfloat16().to(memory_format=torch.channels_last)
    for code in tqdm(latents.bfloat16().split(1), desc="full passes"):
        out = fast.synthesize(code)
        features.append(out.features[generator.preview_level])
        size = 2 * features[-1].shape[-1]
        targets.append(F.adaptive_avg_pool2d(out.image.float().clamp(-1, 1), size))
    return torch.cat(features), torch.cat(targets)


def fit(
    generator: MobileStyleGAN, latents: Tensor, *, steps: int, batch: int, lr: float, seed: int
) -> float:
    """Fit ``generator.preview_head`` in place; return the PSNR in dB on the last eighth of the codes.

    PSNR: pixels in [0, 1], preview against the full pass reduced to the same size.
    """
    features, targets = collect(generator, latents)
    held_out = max(1, len(latents) // 8)
    n = len(latents) - held_out
    random = torch.Generator().manual_seed(seed)
    level = generator.preview_level
    rest, rows = generator.levels[level:], latents[:, 2 * level + 1 :]
    head = generator.preview_head
    head.start_from(rest, generator.head)
    head.requires_grad_(True).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(head.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)

    def run(i: Tensor) -> Tensor:
        x = features[i].float().contiguous(memory_format=torch.channels_last)
        return head(x, rows[i], rest, generator.head)

    for step in tqdm(range(steps), desc="preview head"):
        i = torch.randint(n, (batch,), generator=random)
        loss = F.mse_loss(run(i), targets[i])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            log.info("step %d  L2 on [-1, 1] %.5f", step, loss.item())
    head.requires_grad_(False)
    with torch.no_grad():
        held = [torch.tensor([i]) for i in range(n, len(latents))]
        error = sum(F.mse_loss(run(i).clamp(-1, 1), targets[i]).item() for i in held) / held_out
    return float(psnr(error / 4))


def main(argv: list[str]) -> int:
    """Command line entry; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="faceedit.train preview", description=__doc__)
    parser.add_argument("--generator", required=True, help="converted generator, safetensors")
    parser.add_argument("--out", required=True, help="the same with the preview head fitted")
    parser.add_argument("--pictures", type=int, default=240)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    generator = load_generator(args.generator)
    if not isinstance(generator, MobileStyleGAN):
        raise UsageError(f"{args.generator!r} is no MobileStyleGAN: only that has a preview head to fit.")
    torch.manual_seed(args.seed)
    latents = mixed_latents(generator, args.pictures, seed=args.seed)
    psnr = fit(generator, latents, steps=args.steps, batch=args.batch, lr=args.lr, seed=args.seed)
    save_tensors(generator.state_dict(), args.out)
    print(f"preview head: {psnr:.2f} dB PSNR at 256 px, pixels in [0, 1], against the full pass, "
          f"{max(1, args.pictures // 8)} held-out generated faces; written to {args.out}")
    return 0
