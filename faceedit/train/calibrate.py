"""Scale learned directions so that strength 1 means the same for every attribute.

``python -m faceedit.train calibrate --generator FILE --classifiers FILE.. --directions RAW.. --out FILE``

On generated faces of their own, each attribute's scale is the least at which strength 1 turns a given
share of the faces that lack it, and -1 the same share of those that have it, as the training's
classifiers see it; where no scale does, the least at which the most turn. But never one at which the
faces would be further from themselves than the recipe allows: an attribute that is hard to give is
given less often rather than to somebody else. The tested range ends where a larger share turns.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from faceedit.directions import Directions
from faceedit.errors import ConfigError, DataError, UsageError
from faceedit.models.generator import Generator
from faceedit.train.attributes import ATTRIBUTES, Attribute, require_attributes
from faceedit.train.config import Count, Device, Fraction, Positive, Seed, Whole, read_recipe
from faceedit.train.identity import IdentityNet, load_identity
from faceedit.train.style_faces import Classifiers, load_networks
from faceedit.train.synthetic import mixed_latents
from faceedit.train.trainer import begin

log = logging.getLogger(__name__)

LICENCE = (
    "research: learned on faces of a generator distilled from StyleGAN2-FFHQ (FFHQ is CC BY-NC-SA 4.0), with "
    "classifiers trained on CelebA (non-commercial research)"
)


@dataclass(frozen=True, kw_only=True)
class CalibrateRecipe:
    """Every number of the calibration."""

    generator: Path  # safetensors file of the generator, with its preview head
    classifiers: tuple[Path, ...]  # those of the training
    identity: Path  # face identity network
    directions: tuple[Path, ...]  # style.safetensors of the style stage; of several runs, see averaged
    out: Path  # directions file to write
    base: Path | None = None  # directions file to take those from that are not calibrated here
    attributes: tuple[str, ...] = ()  # those to calibrate; none for all that were learned
    share: Fraction = 0.88  # of the faces to turn, that strengths 1 and -1 turn
    identity_local: Fraction = 0.8  # mean centred cosine that strength 1 keeps, attributes of a part of the face
    identity_global: Fraction = 0.6  # the same, attributes that change all of it
    identity_bars: dict[str, Fraction] = field(default_factory=dict)  # other bars, by attribute
    least: Fraction = 0.4  # a direction that never turns so many is left out
    top_share: Fraction = 0.97  # that the ends of the tested range turn
    longest: Positive = 1.5  # the tested range never goes further than this strength, where edits were looked at
    faces: Count = 400  # generated faces to choose those to turn from
    turned: Count = 48  # faces to turn, each way
    fewest: Count = 8  # with fewer that have the attribute, only one way is calibrated
    scales: tuple[float, ...] = (0.8, 1.2, 1.7, 2.4, 3.2)  # tried, of the learned length
    seed: Seed = 3  # of the faces
    device: Device = "auto"  # auto: cuda, else mps, else cpu
    threads: Whole = 0  # CPU threads; 0 leaves PyTorch's choice

    def __post_init__(self) -> None:
        require_attributes("identity_bars", self.identity_bars)
        if self.longest < 1:
            raise ConfigError(f"longest ({self.longest:g}) must be at least 1, the strength that is calibrated.")


def crossings(scales: Sequence[float], scores: Tensor) -> Tensor:
    """Scale at which each face turns: its score passes from negative to positive; infinity if never.

    Args:
        scales: Rising.
        scores: ``(len(scales), n)``; linear between the scales, and from the first row on.

    Returns:
        ``(n,)``.
    """
    found = torch.full((scores.shape[1],), math.inf)
    for i in range(len(scales) - 1, 0, -1):
        low, high = scores[i - 1], scores[i]
        at = scales[i - 1] + (scales[i] - scales[i - 1]) * -low / (high - low)
        found = torch.where((low <= 0) & (high > 0), at, found)
    return found


def needed_scale(crossed: Tensor, share: float) -> tuple[float, float]:
    """Least scale that turns a share of the faces, or as many as ever turn; and the share that it turns."""
    turning = crossed[crossed.isfinite()].sort().values
    count = min(len(turning), max(1, math.ceil(share * len(crossed))))
    return (float(turning[count - 1]), count / len(crossed)) if count else (math.inf, 0.0)


def allowed_scale(scales: Sequence[float], identity: Tensor, bar: float) -> float:
    """Scale down to which the mean identity ``(len(scales),)`` has fallen to a bar; the last if it stays above.

    ``scales`` begin with 0, where the identity is 1; linear between them.
    """
    for i in range(1, len(scales)):
        if identity[i] < bar:
            part = float((identity[i - 1] - bar) / (identity[i - 1] - identity[i]))
            return scales[i - 1] + part * (scales[i] - scales[i - 1])
    return scales[-1]


def averaged(runs: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Each attribute's direction; where several runs have learned it, their mean at equal lengths.

    What runs share is the attribute, and what only one has found is more likely to please its classifiers alone.

    Args:
        runs: Attribute to direction ``(n_styles, dim)``, of any length.

    Returns:
        The mean of directions as long as that of the first run, with the non-zero entries of all.

    Raises:
        UsageError: They are of generators with other rows.
    """
    found: dict[str, list[Tensor]] = {}
    for run in runs:
        for name, direction in run.items():
            found.setdefault(name, []).append(direction)
            if direction.shape != found[name][0].shape:
                shapes = ", ".join(str(tuple(each.shape)) for each in found[name])
                raise UsageError(f"{name}: directions of several runs are for one generator, not of shapes {shapes}.")
    return {
        name: torch.stack([each * (all_of_it[0].norm() / each.norm().clamp_min(1e-12)) for each in all_of_it]).mean(0)
        for name, all_of_it in found.items()
    }


@torch.no_grad()
def look(
    generator: Generator, classifiers: Classifiers, identity: IdentityNet, attribute: Attribute, codes: Tensor,
    direction: Tensor, scales: Sequence[float],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Faces ``(n, n_styles, dim)`` moved by each scale: the attribute's score and the identity, ``(len(scales), n)``."""

    def pictures(scale: float) -> list[Tensor]:
        return [generator.preview(c).float() for c in (codes + scale * direction).to(generator.mean_latent).split(1)]

    before = torch.cat([identity.describe(x) for x in pictures(0)])
    found, persons = [], []
    for scale in scales:
        x = torch.cat(pictures(scale))
        found.append(attribute.score(classifiers(x), classifiers.names))
        persons.append((identity.describe(x) * before).sum(1))
    return torch.stack(found).cpu(), torch.stack(persons).cpu()


def calibrate(
    generator: Generator, classifiers: Classifiers, identity: IdentityNet, vectors: dict[str, Tensor], codes: Tensor,
    recipe: CalibrateRecipe,
) -> tuple[dict[str, Tensor], dict[str, tuple[float, float]]]:
    """Directions of the right length, and their tested ranges.

    Raises:
        DataError: No direction turns enough faces.
    """
    bar = tqdm(codes.to(generator.mean_latent).split(1), desc="faces", mininterval=5)
    logits = torch.cat([classifiers(generator.preview(code)) for code in bar]).cpu()
    scaled, ranges = {}, {}
    for name, direction in vectors.items():
        attribute, ends, needed, allowed = ATTRIBUTES[name], [], [], []
        bar = recipe.identity_local if attribute.locality == "local" else recipe.identity_global
        bar = recipe.identity_bars.get(name, bar)
        steps = (0.0, *recipe.scales)
        for sense in (1, -1):
            rows = attribute.lacking(logits, classifiers.names, sense).nonzero()[: recipe.turned, 0]
            if len(rows) < recipe.fewest:
                log.info("%s: only %d faces to turn by %+d, left out", name, len(rows), sense)
                continue
            found, kept = look(generator, classifiers, identity, attribute, codes[rows], sense * direction, recipe.scales)
            before = attribute.score(logits[rows], classifiers.names)
            crossed = crossings(steps, sense * torch.cat((before[None], found)))
            allowed.append(allowed_scale(steps, torch.cat((torch.ones(1), kept.mean(1))), bar))
            needed.append(needed_scale(crossed, recipe.share))
            ends.append(needed_scale(crossed, recipe.top_share)[0])
        if not needed or min(turned for _, turned in needed) < recipe.least:
            log.warning("%s: no scale turns %g of its faces; left out", name, recipe.least)
            continue
        scale = min(max(step for step, _ in needed), *allowed)
        end = min(recipe.longest, math.ceil(4 * max(1.0, max(ends) / scale)) / 4)  # to the next quarter
        scaled[name], ranges[name] = scale * direction, (-end, end)
        told = ", ".join(f"{step:.2f} turns {turned:.0%}" for step, turned in needed)
        log.info("%s: %.2f of the learned length (%s; identity allows %.2f), range %g", name, scale, told, min(allowed), end)
    if not scaled:
        raise DataError("No direction turns enough faces: train them longer.")
    return scaled, ranges


def main(argv: list[str]) -> int:
    """Command line entry; see the module's docstring."""
    recipe = read_recipe(CalibrateRecipe, argv, "calibrate", __doc__)
    device = begin(recipe)
    mapper, generator, classifiers = load_networks(recipe.generator, recipe.classifiers, device)
    identity = load_identity(recipe.identity).to(device)
    vectors = averaged([load_file(path) for path in recipe.directions])
    if unknown := set(recipe.attributes) - set(vectors):
        files = ", ".join(map(str, recipe.directions))
        raise UsageError(f"{', '.join(sorted(unknown))} was not learned; {files} has {', '.join(vectors)}")
    vectors = {name: vectors[name] for name in recipe.attributes or vectors}
    codes = mixed_latents(mapper, recipe.faces, seed=recipe.seed, truncation=(0.6, 1.0), mixing=0.0)
    with torch.no_grad():
        scaled, ranges = calibrate(generator, classifiers, identity, vectors, codes, recipe)
    directions = Directions(
        scaled, ranges=ranges, licence=LICENCE, generator="mobile_stylegan",
        aliases={name: ATTRIBUTES[name].aliases for name in scaled},
        descriptions={name: ATTRIBUTES[name].description for name in scaled},
    )  # fmt: skip
    if recipe.base:
        directions = Directions.load(recipe.base).merge(directions, replace=True)
    recipe.out.parent.mkdir(parents=True, exist_ok=True)
    source = {"share": recipe.share, "faces": recipe.faces, "seed": recipe.seed}
    directions.save(recipe.out, source=json.dumps(source), overwrite=True)
    print(f"{len(scaled)} directions calibrated, {len(directions.names)} written to {recipe.out}")
    return 0
