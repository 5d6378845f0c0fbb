"""Branches compared on the same faces: fidelity, edits kept, and what changes outside an edit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from faceedit.blend import change_mask
from faceedit.train import metrics
from faceedit.train.attributes import ATTRIBUTES
from faceedit.train.classifier import AttributeClassifier, predict
from faceedit.train.identity import IdentityNet
from faceedit.train.metrics import Estimate
from faceedit.train.perceptual import LPIPS
from faceedit.train.views import canonical_view

__all__ = ["CHANGED", "STYLE", "UNEDITED", "Branches", "Networks", "below", "compare", "measure", "outside", "turned"]

STYLE, UNEDITED = "style branch", ""
CHANGED = 0.02  # local mean difference on [0, 1] from which the generator's own edit has changed a pixel

# What the refined pictures must reach; identity upwards, L2 and LPIPS downwards.
RECONSTRUCTION = {"PSNR": 24.0, "SSIM": 0.834, "LPIPS": 0.07, "L2": 0.004}
EDITING = {"identity": 0.77, "L2": 0.028, "LPIPS": 0.09}
KEPT, OUTSIDE = 0.9, 30.0
_SMALLER_IS_BETTER = ("LPIPS", "L2")


@dataclass
class Branches:
    """The same faces as several branches draw them; all pictures ``(N, 3, 256, 256)`` in [0, 1].

    Attributes:
        inputs: The photographs.
        made: (branch, attribute at +1 or `UNEDITED`) to what the branch draws.
        truth: Attribute to what its edit should give. What is not here should give the photograph.
    """

    inputs: Tensor
    made: dict[tuple[str, str], Tensor]
    truth: dict[str, Tensor]

    def names(self, attribute: str) -> list[str]:
        """The branches that drew an attribute, in order."""
        return [branch for branch, name in self.made if name == attribute]


@dataclass
class Networks:
    """The frozen networks that judge: an attribute classifier not used in training, identity, LPIPS."""

    judge: AttributeClassifier
    identity: IdentityNet
    lpips: LPIPS


@torch.no_grad()
def compare(made: Tensor, wanted: Tensor, networks: Networks) -> dict[str, NDArray[np.float64]]:
    """PSNR (dB), SSIM, LPIPS, L2 on [0, 1] and identity (centred cosine) of each of N pairs of pictures.

    Args:
        made: ``(N, 3, S, S)`` in [0, 1].
        wanted: The same.
        networks: See there.
    """
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in ("PSNR", "SSIM", "LPIPS", "L2", "identity")}
    for a, b in zip(made.split(4), wanted.split(4), strict=True):
        l2 = (a - b).double().square().mean((1, 2, 3)).numpy()
        scaled = a * 2 - 1, b * 2 - 1
        found["PSNR"].append(metrics.psnr(l2))
        found["SSIM"].append(metrics.ssim(a, b))
        found["LPIPS"].append(networks.lpips(*scaled).double().numpy())
        found["L2"].append(l2)
        found["identity"].append(metrics.centred_cosine(*(networks.identity.describe(x) for x in scaled)))
    return {name: np.concatenate(values) for name, values in found.items()}


def outside(made: Tensor, inputs: Tensor, before: Tensor, after: Tensor) -> dict[str, NDArray[np.float64]]:
    """What an edit does to the picture where the generator's own edit changed nothing.

    A pixel counts where the absolute difference of `before` and `after`, the largest of its channels,
    blurred as `faceedit.blend.change_mask` does, is below `CHANGED`.

    Args:
        made: ``(N, 3, S, S)`` in [0, 1], to be measured; S at most 256.
        inputs: The photographs.
        before: G(w).
        after: G(w + d).

    Returns:
        Of each face ``(N,)``: "PSNR" to the photograph in dB; "colour", how far the mean colour has moved, the mean
        of its channels' absolute changes on [0, 1]; "pixels", the share that counts. PSNR and colour are NaN where no pixel does.
    """
    still = torch.stack([change_mask(a, b)[0, 0] < CHANGED for a, b in zip(before, after)]).double()
    difference = (made - inputs).double() * still[:, None]
    # A mean of no pixels is NaN.
    count = still.sum((1, 2))
    squared, moved = (x.sum((-2, -1)) / count[:, None] for x in (difference.square(), difference))
    return {
        "PSNR": metrics.psnr(squared.mean(1).numpy()),
        "colour": moved.abs().mean(1).numpy(),
        "pixels": (count / still[0].numel()).numpy(),
    }


def turned(
    name: str, before: Tensor, after: dict[str, Tensor], outputs: Sequence[str]
) -> dict[str, dict[str, Estimate]]:
    """Share of the faces lacking an attribute that have it after the edit, and how much of the style branch's is kept.

    Args:
        name: The attribute, moved to +1.
        before: The judge's logits of the photographs ``(N, K)``.
        after: Branch to the judge's logits of its edits ``(N, K)``.
        outputs: What the judge's K outputs are.

    Returns:
        Branch to "turned" (Wilson's interval) and "kept", the ratio to the style branch's own.
    """
    attribute = ATTRIBUTES[name]
    lacking = attribute.lacking(before, outputs)
    scores = {branch: attribute.score(logits, outputs)[lacking] for branch, logits in after.items()}
    has = {branch: (score > 0).numpy() for branch, score in scores.items()}
    return {
        branch: {"turned": metrics.success(score), "kept": metrics.ratio(has[branch], has[STYLE])}
        for branch, score in scores.items()
    }


def _known(values: NDArray[np.float64]) -> Estimate:
    """Mean of what is a number."""
    return metrics.mean(values[~np.isnan(values)])


def _mean_of_attributes(values: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Each face's mean over attributes ``(N,)``; NaN where it has no figure. Faces, not edits, are drawn again."""
    stack = np.stack(values)
    known = ~np.isnan(stack)
    total, count = np.where(known, stack, 0).sum(0), known.sum(0)
    return np.divide(total, count, out=np.full(len(count), math.nan), where=count > 0)


@torch.no_grad()
def measure(faces: Branches, names: Sequence[str], networks: Networks) -> dict[str, Any]:
    """All tables of some faces.

    Returns:
        ``reconstruction``: branch to figures; ``editing``: attribute, or "mean" of all, to branch to
        figures against the truth; ``turned``: see :func:`turned`; ``outside``: local attribute, or "mean", to
        branch to the figures of :func:`outside`. Every figure is an `Estimate`.
    """

    def logits(pictures: Tensor) -> Tensor:
        return predict(networks.judge, canonical_view(pictures * 2 - 1), batch=20)

    reconstruction = {
        branch: {figure: metrics.mean(x) for figure, x in compare(faces.made[branch, UNEDITED], faces.inputs, networks).items()}
        for branch in faces.names(UNEDITED)
    }
    branches, base = faces.names(names[0]), logits(faces.inputs)
    editing: dict[str, Any] = {name: {} for name in (*names, "mean")}
    edits = {name: {} for name in names}
    local = [name for name in names if ATTRIBUTES[name].locality == "local"]
    around: dict[str, Any] = {name: {} for name in (*local, "mean") if local}
    for branch in branches:
        found = {}
        for name in names:
            made = faces.made[branch, name]
            found[name] = compare(made, faces.truth.get(name, faces.inputs), networks)
            editing[name][branch] = {figure: metrics.mean(x) for figure, x in found[name].items()}
            edits[name][branch] = logits(made)
        editing["mean"][branch] = {
            figure: metrics.mean(_mean_of_attributes([found[name][figure] for name in names])) for figure in found[names[0]]
        }
        still = {
            name: outside(faces.made[branch, name], faces.inputs, faces.made[STYLE, UNEDITED], faces.made[STYLE, name])
            for name in local
        }
        for name, each in still.items():
            around[name][branch] = {figure: _known(values) for figure, values in each.items()}
        if local:
            around["mean"][branch] = {
                figure: _known(_mean_of_attributes([still[name][figure] for name in local])) for figure in still[local[0]]
            }
    outputs = networks.judge.names
    return {
        "faces": len(faces.inputs),
        "reconstruction": reconstruction,
        "editing": editing,
        "turned": {name: turned(name, base, edits[name], outputs) for name in names},
        "outside": around,
    }


def below(found: dict[str, Any], branch: str) -> list[str]:
    """The bars that a branch misses on photographs, in words; what could not be measured misses none."""
    rows = [("reconstruction", figure, found["reconstruction"][branch][figure], bar) for figure, bar in RECONSTRUCTION.items()]
    rows += [("edits", figure, found["editing"]["mean"][branch][figure], bar) for figure, bar in EDITING.items()]
    rows += [(name, "kept", each[branch]["kept"], KEPT) for name, each in found["turned"].items()]
    rows += [(f"outside {name}", "PSNR", each[branch]["PSNR"], OUTSIDE) for name, each in found["outside"].items() if name != "mean"]
    missed = []
    for what, figure, estimate, bar in rows:
        smaller = figure in _SMALLER_IS_BETTER
        if estimate.value > bar if smaller else estimate.value < bar:
            missed.append(f"{what}: {figure} {estimate.value:.4g} {'>' if smaller else '<'} {bar:g}")
    return missed
