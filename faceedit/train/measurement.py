"""Edits judged: success, side effects, identity and sparsity of directions on any kind of faces."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from faceedit.directions import Directions
from faceedit.train import metrics
from faceedit.train.attributes import ATTRIBUTES, related
from faceedit.train.classifier import AttributeClassifier, predict
from faceedit.train.identity import IdentityNet
from faceedit.train.metrics import Estimate
from faceedit.train.painted import WIDTHS, with_frames
from faceedit.train.perceptual import LPIPS
from faceedit.train.views import canonical_view

_CHUNK = 20  # faces between two updates of the progress bar

# What an attribute must reach to be shipped.
SUCCESS_AT_1, SUCCESS_AT_END = 0.85, 0.95
IDENTITY = {"local": 0.8, "global": 0.6}
ENTANGLEMENT = 0.25
NONZERO_LOCAL = 0.05


class Faces(Protocol):
    """Faces that can be drawn unedited and edited."""

    n: int

    def draw(self, rows: Sequence[int], name: str | None = None, strength: float = 0.0) -> Tensor:
        """Pictures ``(len(rows), 3, 256, 256)`` in [-1, 1]; the generator's own, with one attribute moved."""


@dataclass
class Report:
    """What was measured on one kind of faces.

    Attributes:
        faces: How many there are.
        attributes: Name to name of figure to estimate.
        effects: ``(A, A)``: moved x measured.
        entanglement: Off-diagonal over diagonal, of all pairs.
        entanglement_unrelated: The same without the pairs that the labels tie together.
        examples: Name to the first faces that lack the attribute.
        painted: Where glasses were measured, width of frames painted over the eyes to what these do: "got" and "identity".
    """

    faces: int
    attributes: dict[str, dict[str, Estimate]]
    effects: np.ndarray
    entanglement: Estimate
    entanglement_unrelated: Estimate
    examples: dict[str, list[int]]
    painted: dict[int, dict[str, Estimate]]

    def below(self, name: str) -> list[str]:
        """The bars that an attribute misses, in words."""
        found, locality = self.attributes[name], ATTRIBUTES[name].locality
        bars = {"got at +1": SUCCESS_AT_1, "lost at -1": SUCCESS_AT_1, "got at top": SUCCESS_AT_END,
                "lost at bottom": SUCCESS_AT_END, "identity": IDENTITY[locality]}  # fmt: skip
        missed = [
            f"{figure} {found[figure].value:.2f} < {bar:g}" for figure, bar in bars.items() if found[figure].value < bar
        ]
        if locality == "local" and found["non-zero"].value > NONZERO_LOCAL:
            missed.append(f"non-zero {found['non-zero'].value:.3f} > {NONZERO_LOCAL:g}")
        return missed

    def to_dict(self) -> dict[str, Any]:
        """JSON values; what could not be measured is None."""
        names = list(self.attributes)
        return {
            "faces": self.faces,
            "attributes": {
                name: {key: value.to_dict() for key, value in found.items()} | {"below the bar": self.below(name)}
                for name, found in self.attributes.items()
            },
            "effects": {a: {b: _number(self.effects[i, j]) for j, b in enumerate(names)} for i, a in enumerate(names)},
            "entanglement": self.entanglement.to_dict(),
            "entanglement of unrelated pairs": self.entanglement_unrelated.to_dict(),
            "painted frames": {
                str(width): {key: value.to_dict() for key, value in found.items()} for width, found in self.painted.items()
            },
        }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 4)


class Measurement:
    """Draws faces and has them judged.

    Args:
        faces: To be drawn.
        directions: What can be moved.
        judge: Labels the faces; not used in training.
        identity: Dlib's network, with its mean descriptor, or ArcFace.
        lpips: On AlexNet.
        looks: Identity, L2 and LPIPS are means over so many faces, the first ones.
        turns: Success at -1 and at the range's ends is measured on so many faces at most.
    """

    def __init__(
        self, faces: Faces, directions: Directions, judge: AttributeClassifier, identity: IdentityNet, lpips: LPIPS,
        *, looks: int = 100, turns: int = 150,
    ) -> None:  # fmt: skip
        self.faces, self.directions, self.judge = faces, directions, judge
        self.identity, self.lpips = identity, lpips
        self.looks, self.turns = min(looks, faces.n), turns

    def run(self, names: Sequence[str]) -> Report:
        """Measure attributes of :data:`ATTRIBUTES`, with one progress bar."""
        kinds = [ATTRIBUTES[name] for name in names]
        outputs = self.judge.names
        with tqdm(desc="unedited", file=sys.stderr, unit="face") as self.bar:
            base = torch.cat([predict(self.judge, canonical_view(p)) for _, p in self._drawn(range(self.faces.n))])
            kept = [self._descriptors(p) for _, p in self._drawn(range(self.looks))]
            scores = torch.stack([kind.score(base, outputs) for kind in kinds], 1)
            spread = scores.std(0).clamp_min(1e-6).numpy()
            found: dict[str, dict[str, Estimate]] = {}
            shifts, examples, painted = [], {}, {}
            for name, kind in zip(names, kinds, strict=True):
                self.bar.set_description(name)
                lacking = kind.lacking(base, outputs).nonzero()[:, 0].tolist()
                examples[name] = lacking[:2]
                if name == "glasses":
                    painted = self._painted([row for row in lacking if row < self.looks], kept)
                having = kind.lacking(base, outputs, -1).nonzero()[:, 0].tolist()[: self.turns]
                moved, looked = self._moved(name, kept)
                after = torch.stack([other.score(moved, outputs) for other in kinds], 1)
                shifts.append((after - scores).numpy())
                own = kind.score(moved, outputs)
                low, high = self.directions.ranges[name]
                found[name] = {
                    "got at +1": metrics.success(own[lacking]),
                    "lost at -1": metrics.success(self._scores(having, name, -1.0), -1),
                    "got at top": metrics.success(self._scores(lacking[: self.turns], name, high)),
                    "lost at bottom": metrics.success(self._scores(having, name, low), -1),
                    **{figure: metrics.mean(values) for figure, values in looked.items()},
                    "non-zero": _exactly(metrics.sparsity(self.directions.vectors[name].numpy())),
                }
        defined = torch.stack([kind.defined(base, outputs) for kind in kinds], 1).numpy()
        stack = np.stack(shifts)
        tied = np.array([[related(a, b) for b in names] for a in names])
        ratios = []
        for leave_out in (None, tied):

            def ratio(rows: np.ndarray, leave_out: np.ndarray | None = leave_out) -> float:
                rows = rows.astype(int)
                return metrics.entanglement(metrics.effects(stack[:, rows], defined[rows], spread), leave_out)

            every = np.arange(self.faces.n)
            ratios.append(Estimate(ratio(every), *metrics.bootstrap(every, ratio, resamples=300), self.faces.n))
        return Report(self.faces.n, found, metrics.effects(stack, defined, spread), *ratios, examples, painted)

    @torch.no_grad()
    def _painted(
        self, rows: Sequence[int], kept: Sequence[tuple[Tensor, Tensor, list[Tensor]]]
    ) -> dict[int, dict[str, Estimate]]:
        """What glasses cost though nothing but frames is changed: how many are taken for glasses, and who is seen."""
        pictures, descriptors = (torch.cat([each[i] for each in kept])[rows] for i in (0, 1))
        found = {}
        for width in WIDTHS if rows else ():
            painted = with_frames(pictures, width)
            score = ATTRIBUTES["glasses"].score(predict(self.judge, canonical_view(painted)), self.judge.names)
            identity = metrics.centred_cosine(descriptors, self.identity.describe(painted))
            found[width] = {"got": metrics.success(score), "identity": metrics.mean(identity)}
        return found

    def _drawn(
        self, rows: Sequence[int], name: str | None = None, strength: float = 0.0
    ) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Rows and their pictures, chunk by chunk."""
        for start in range(0, len(rows), _CHUNK):
            part = rows[start : start + _CHUNK]
            yield part, self.faces.draw(part, name, strength)
            self.bar.update(len(part))

    def _scores(self, rows: Sequence[int], name: str, strength: float) -> Tensor:
        """The attribute's own score of faces in which it is moved."""
        logits = [predict(self.judge, canonical_view(p)) for _, p in self._drawn(rows, name, strength)]
        return ATTRIBUTES[name].score(torch.cat(logits), self.judge.names) if logits else torch.empty(0)

    @torch.no_grad()
    def _descriptors(self, pictures: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """What is compared between two pictures: pixels, identity, LPIPS features."""
        return pictures, self.identity.describe(pictures), self.lpips.features(pictures)

    @torch.no_grad()
    def _moved(
        self, name: str, kept: Sequence[tuple[Tensor, Tensor, list[Tensor]]]
    ) -> tuple[Tensor, dict[str, np.ndarray]]:
        """All faces at +1: their logits; and how far the first ones are from their unedited selves."""
        logits, ids, l2, distances = [], [], [], []
        for number, (_, pictures) in enumerate(self._drawn(range(self.faces.n), name, 1.0)):
            logits.append(predict(self.judge, canonical_view(pictures)))
            if number < len(kept):
                before, descriptor, features = kept[number]
                pictures, other, moved = self._descriptors(pictures[: len(before)])
                ids.append(metrics.centred_cosine(descriptor, other))
                l2.append(((pictures - before) / 2).square().mean((1, 2, 3)).numpy())
                distances.append(self.lpips.distance(features, moved).numpy())
        looked = {"identity": ids, "L2": l2, "LPIPS": distances}
        return torch.cat(logits), {figure: np.concatenate(values) for figure, values in looked.items()}


def _exactly(value: float) -> Estimate:
    return Estimate(value, value, value, 1)
