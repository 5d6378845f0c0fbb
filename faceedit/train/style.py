"""The style branch: sparse attribute directions in W+, learned through the frozen generator (section 3.1).

``python -m faceedit.train style --generator FILE --classifiers FILE.. --lpips FILE --identity FILE --out FOLDER``

Each sample is a face ``w``, one attribute k and a target strength s, drawn so that s asks for what the
face has not. Its picture is ``x_edit = G(w + s d_k)`` (equation 2) and

    L_edit = l1 L2 + l2 LPIPS + l3 L_id + l4 L_cls + l_hold L_hold + l_tone L_tone + l5 L_spa      (equation 10)

between ``x_edit`` and the unedited ``x = G(w)``. What differs from the paper:

- ``L_spa``, the sum of absolute values, is not left to its gradient, which never makes a zero: each
  step ends with its proximal operator, a soft threshold. Its weight follows the share of non-zero
  entries that the recipe allows an attribute, and in the last steps the zeros stay and the others
  are free of it, so that sparse does not mean weak.
- Steps go along the gradient times the square root of W's correlation matrix: along what real
  samples of W share. Plain gradients find directions that please the classifier and leave the faces
  that the generator knows.
- ``L_cls`` is a hinge where the paper has a logistic loss, which always asks for more. The goal of
  strength s lies a little beyond the threshold, but never further from where the face was than a
  step that faces differ by: those few that cannot turn must not decide how far every face is moved.
- Strengths are signed: the same direction must give the attribute and take it away.
- ``L_hold`` holds the classifiers' other outputs where they were, but for those that mean the same.
- ``L_tone`` holds the mean colour of forehead and cheeks: no label says that skin should not turn green.
- The unedited picture is the generator's own, of generated faces and of inverted photographs, so that
  no part of the loss pays for the inversion's error.

Directions are learned in units of the standard deviation of W. Pictures are the 256 px preview; LPIPS
and L2 see them at half of that.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceedit.errors import ConfigError
from faceedit.models.efficientnet_encoder import EfficientNetEncoder
from faceedit.models.generator import Generator
from faceedit.train.attributes import ATTRIBUTES, Attribute, require_attributes
from faceedit.train.checkpoint import load_encoder, save_tensors
from faceedit.train.config import Count, Fraction, Positive, TrainRecipe, Weight, Whole, read_recipe
from faceedit.train.crops import to_unit
from faceedit.train.data import open_faces
from faceedit.train.identity import IdentityNet, load_identity
from faceedit.train.perceptual import LPIPS
from faceedit.train.proximal import ProximalStep, soft_threshold
from faceedit.train.style_faces import Classifiers, StyleFaces, invert_crops, load_networks, look_at
from faceedit.train.synthetic import mixed_latents
from faceedit.train.task import Share, Task, random_source
from faceedit.train.trainer import Trainer, begin

# Rows and columns of an FFHQ crop, in parts of its side, that are forehead and cheeks: above brows, between eyes and mouth.
SKIN = ((0.32, 0.40, 0.38, 0.62), (0.54, 0.62, 0.33, 0.67))
GROUP = 4  # samples in a row that share an attribute: a direction's gradient is their mean
FEWEST = 40  # faces that a direction is learned on each way, whoever is nearest if fewer lack the attribute


@dataclass(frozen=True, kw_only=True)
class StyleRecipe(TrainRecipe):
    """Every number of the training; the lambdas are the paper's."""

    generator: Path  # safetensors file of the generator, with its preview head
    classifiers: tuple[Path, ...]  # attribute classifiers, whose mean is the loss's; never the judge
    lpips: Path  # LPIPS AlexNet weights
    identity: Path | None = None  # face identity network; none leaves L_id out
    encoder: Path | None = None  # encoder that inverts the photographs; none learns on generated faces alone
    corrections: Whole = 2  # that it makes of its first answer, as in the shipped checkpoint
    photos: Path | None = None  # .npy file of the crops stage: the photographs
    attributes: tuple[str, ...] = tuple(ATTRIBUTES)  # directions to learn
    faces: Count = 1200  # generated faces to learn on
    real: Whole = 300  # inverted photographs to learn on
    held_out: Count = 24  # generated faces of the held-out figures
    steps: Count = 1500  # optimizer steps in all
    batch: Count = 8  # samples; four in a row share an attribute
    lr: Positive = 0.01  # of the normalised step, in standard deviations of W
    beta1: Fraction = 0.95  # decay of the gradient's mean
    warmup: Whole = 20  # first steps, over which the learning rate rises linearly
    decay: Whole = 400  # last steps, over which it falls linearly to zero
    clip: Weight = 0.0  # largest norm of the gradient; 0 does not clip: the step is normalised anyway
    lambda_l2: Weight = 0.01  # lambda 1 of equation 10, on pixels in [-1, 1]
    lambda_lpips: Weight = 0.8  # lambda 2
    lambda_id: Weight = 1.0  # lambda 3, on 1 - centred cosine
    lambda_cls: Weight = 10.0  # lambda 4
    lambda_hold: Weight = 3.0  # on other outputs' mean square change, in standard deviations of the logit
    lambda_tone: Weight = 40.0  # on the mean square change of the skin's mean colour, in [-1, 1]
    sparse: bool = True  # L_spa, as the densities below ask for; without it the directions are dense
    density_local: Fraction = 0.045  # share of non-zero entries allowed to attributes of a part of the face
    density_global: Fraction = 0.15  # the same of those that change all of it
    settle: Fraction = 0.35  # last part of the steps, in which zeros are kept and the rest is not shrunk
    margin: Weight = 0.5  # logit beyond the threshold that strength 1 should reach
    reach: Positive = 1.5  # but no further than this from where it was, in standard deviations of the logit
    evaluate_every: Whole = 0  # steps between held-out figures; 0: at the end only
    log_every: Count = 10  # steps between lines of metrics.jsonl

    def __post_init__(self) -> None:
        require_attributes("attributes", self.attributes)
        if not self.attributes:
            raise ConfigError(f"attributes: none given. Known: {', '.join(ATTRIBUTES)}.")
        if (self.encoder is None) != (self.photos is None):
            raise ConfigError("encoder and photos go together: give both, or neither to learn on generated faces alone.")
        if self.ema or self.weight_decay:
            raise ConfigError("ema and weight_decay must be 0 here: an average of directions has no exact zeros.")


@dataclass(frozen=True)
class _Draw:
    """What a share asks for: attribute, sense and strength of each sample, and its face."""

    attributes: list[int]
    sense: Tensor
    strength: Tensor
    faces: list[int]


class StyleBranch(Task):
    """The directions ``d_k`` of the style branch, and the loss of an edit with one of them.

    Args:
        recipe: Every number.
        generator: Frozen, on the device of all networks.
        classifiers: Those of the loss.
        lpips: On AlexNet.
        identity: None leaves ``L_id`` out.
        faces: To learn on.
        held_out: For the figures.
        w: ``(n, 512)`` samples of W. Their standard deviations are the unit in which directions are learned.
    """

    name = "style"

    def __init__(
        self, recipe: StyleRecipe, generator: Generator, classifiers: Classifiers, lpips: LPIPS,
        identity: IdentityNet | None, faces: StyleFaces, held_out: StyleFaces, w: Tensor,
    ) -> None:  # fmt: skip
        self.recipe, self.generator, self.classifiers = recipe, generator, classifiers
        self.lpips, self.identity, self.faces, self.held_out = lpips, identity, faces, held_out
        self.device = generator.mean_latent.device
        self.scale = w.std(0).to(self.device)
        self.metric = root_correlation(w).to(self.device)
        self.attributes = [ATTRIBUTES[name] for name in recipe.attributes]
        names, logits = classifiers.names, faces.logits
        self.logit_std = logits.std(0)
        self.score_std = torch.stack([a.score(logits, names).std() for a in self.attributes])
        self.pools = [[self._pool(a, sense) for sense in (1, -1)] for a in self.attributes]
        self.held = torch.tensor([[float(name not in a.moves_with) for name in names] for a in self.attributes])

        shape = (generator.n_styles, generator.style_dim)
        self.trainable = nn.Module()
        self.trainable.directions = nn.ParameterDict({a.name: nn.Parameter(torch.zeros(shape)) for a in self.attributes})
        # Buffers are part of the state that a resumed run goes on from.
        self.trainable.register_buffer("log_spa", torch.zeros(len(self.attributes)))
        self.trainable.register_buffer("steps_made", torch.zeros((), dtype=torch.int64))
        self.trainable.to(self.device)

    def _pool(self, attribute: Attribute, sense: int) -> Tensor:
        """Faces to turn this way: those that lack it, or else those that have the least of it."""
        score = sense * attribute.score(self.faces.logits, self.classifiers.names)
        defined = attribute.defined(self.faces.logits, self.classifiers.names)
        found = ((score < 0) & defined).nonzero()[:, 0]
        return found if len(found) >= FEWEST else torch.where(defined, score, math.inf).argsort()[:FEWEST]

    def optimizer(self, groups: list[dict], recipe: TrainRecipe) -> torch.optim.Optimizer:
        return ProximalStep(groups, recipe.lr, (recipe.beta1, recipe.beta2), self.metric)

    def _draw(self, share: Share) -> _Draw:
        """Attributes take turns, in an order that is shuffled every round; senses alternate."""
        n, first = len(self.attributes), share.step * -(-share.total // GROUP)
        attributes, senses, faces = [], [], []
        for place, u in zip(share.samples, share.uniform().tolist()):
            turn = first + place // GROUP
            order = torch.randperm(n, generator=random_source("turns", share.seed, turn // n))
            k, sense = int(order[turn % n]), 1 if place % 2 == 0 else -1
            pool = self.pools[k][0 if sense > 0 else 1]
            attributes.append(k)
            senses.append(float(sense))
            faces.append(int(pool[int(u * len(pool))]))
        return _Draw(attributes, torch.tensor(senses), share.uniform(0.6, 1.4).cpu(), faces)

    def loss(self, share: Share) -> tuple[Tensor, dict[str, Tensor | float]]:
        recipe, draw, names = self.recipe, self._draw(share), self.classifiers.names
        kinds = [self.attributes[k] for k in draw.attributes]
        directions = torch.stack([self.trainable.directions[a.name] for a in kinds]) * self.scale
        signed = (draw.strength * draw.sense).to(self.device)
        codes = self.faces.codes[draw.faces].to(self.device) + signed[:, None, None] * directions
        pictures = self._render(codes)
        x = to_unit(self.faces.pictures[draw.faces]).to(self.device)

        small, target = F.avg_pool2d(pictures, 2), F.avg_pool2d(x, 2)
        with torch.no_grad():
            wanted = self.lpips.features(target)
        logits, before = self.classifiers(pictures), self.faces.logits[draw.faces].to(self.device)
        score = torch.stack([a.score(z, names) for a, z in zip(kinds, logits)])
        held, spread = self.held[draw.attributes].to(self.device), self.score_std[draw.attributes].to(self.device)
        moved = (logits - before) / self.logit_std.to(self.device)
        terms = {
            "l2": (small - target).square().mean((1, 2, 3)),
            "lpips": self.lpips.distance(self.lpips.features(small), wanted).float(),
            "cls": F.relu(self._goal(draw).to(self.device) - draw.sense.to(self.device) * score) / spread,
            "hold": (moved.square() * held).sum(1) / held.sum(1),
            "tone": (tone(pictures) - tone(x)).square().mean(1),
        }
        if self.identity is not None:
            with torch.no_grad():
                person = self.identity.describe(x)
            terms["id"] = 1 - (self.identity.describe(pictures) * person).sum(1)
        loss = sum(getattr(recipe, f"lambda_{name}") * value.mean() for name, value in terms.items())
        figures = {name: value.detach().mean() for name, value in terms.items()}
        figures["turned"] = (draw.sense.to(score) * score > 0).float().mean()
        figures["density"] = self.density().mean()
        return loss, figures

    def _goal(self, draw: _Draw) -> Tensor:
        """Score ``(B,)``, in the wanted sense, from which on the classification loss is zero."""
        names = self.classifiers.names
        was = torch.stack([self.attributes[k].score(self.faces.logits[i], names) for k, i in zip(draw.attributes, draw.faces)])
        step = self.recipe.reach * draw.strength * self.score_std[draw.attributes]
        return torch.minimum(self.recipe.margin * draw.strength, draw.sense * was + step)

    def _render(self, codes: Tensor) -> Tensor:
        """Previews ``(B, 3, S, S)``, one code at a time: one face's maps stay in the cache."""
        return torch.cat([self.generator.preview(c) for c in codes.to(self.generator.mean_latent.dtype).split(1)]).float()

    def density(self) -> Tensor:
        """Share of non-zero entries of each direction ``(K,)``."""
        return torch.stack([(self.trainable.directions[a.name] != 0).float().mean() for a in self.attributes])

    def _allowed(self, attribute: Attribute) -> float:
        return self.recipe.density_local if attribute.locality == "local" else self.recipe.density_global

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The proximal operator of ``L_spa`` (equation 3) on the directions that were moved."""
        self.trainable.steps_made += 1
        if not self.recipe.sparse:
            return
        lr = optimizer.param_groups[0]["lr"]
        settled = int(self.trainable.steps_made) > (1 - self.recipe.settle) * self.recipe.steps
        for k, attribute in enumerate(self.attributes):
            d = self.trainable.directions[attribute.name]
            if d.grad is None:
                continue
            if settled:
                # Zeros stay, although momentum would bring them back.
                state = optimizer.state[d]
                if "support" not in state:
                    state["support"] = self._support(d, attribute)
                d.mul_(state["support"])
                continue
            d.copy_(soft_threshold(d, lr * float(self.trainable.log_spa[k].exp())))
            excess = float((d != 0).float().mean().clamp_min(1e-4)) / self._allowed(attribute)
            self.trainable.log_spa[k] += 0.1 * min(1.0, max(-1.0, math.log(excess)))

    def _support(self, d: Tensor, attribute: Attribute) -> Tensor:
        """1 at the entries that stay, at most as many as are allowed: the largest."""
        count = max(1, min(int((d != 0).sum()), int(self._allowed(attribute) * d.numel())))
        support = torch.zeros_like(d).flatten()
        support[d.abs().flatten().topk(count).indices] = 1
        return support.view_as(d)

    def directions(self) -> dict[str, Tensor]:
        """Name to direction ``(n_styles, 512)``, in units of W."""
        return {a.name: (self.trainable.directions[a.name] * self.scale).detach().clone() for a in self.attributes}

    def evaluate(self) -> dict[str, float]:
        """Share of the held-out faces that strength 1 turns, both ways, by the classifiers of the loss."""
        figures, names, directions = {}, self.classifiers.names, self.directions()
        for attribute in self.attributes:
            for sense in (1, -1):
                rows = attribute.lacking(self.held_out.logits, names, sense).nonzero()[:, 0]
                if len(rows):
                    moved = self.held_out.codes[rows].to(self.device) + sense * directions[attribute.name]
                    score = sense * attribute.score(self.classifiers(self._render(moved)), names)
                    figures[f"{attribute.name}{sense:+d}"] = (score > 0).float().mean().item()
        turned = float(np.mean([*figures.values()])) if figures else math.nan
        return {"turned": turned, "density": self.density().mean().item(), **figures}

    def sample_grid(self) -> Tensor | None:
        """Four held-out faces: unedited, then each attribute given or, where it is there, taken away."""
        rows, names = [], self.classifiers.names
        for i in range(min(4, len(self.held_out))):
            row = [to_unit(self.held_out.pictures[i : i + 1]).to(self.device)]
            for name, direction in self.directions().items():
                sense = -1 if ATTRIBUTES[name].score(self.held_out.logits[i], names) > 0 else 1
                row.append(self._render(self.held_out.codes[i : i + 1].to(self.device) + sense * direction))
            rows.append(F.avg_pool2d(torch.cat(row).clamp(-1, 1), 2))
        return torch.stack(rows)

    def export(self, folder: Path) -> None:
        """``style.safetensors``: the directions as learned, for the calibrate stage."""
        directions = {name: d.cpu() for name, d in self.directions().items()}
        made = {"steps": str(int(self.trainable.steps_made)), "sparse": json.dumps(self.recipe.sparse)}
        save_tensors(directions, folder / "style.safetensors", made)


def tone(pictures: Tensor) -> Tensor:
    """Mean colour of the skin of aligned faces ``(B, 3, S, S)``: ``(B, 3)``, the mean of `SKIN`'s parts."""
    side = pictures.shape[-1]
    parts = [[round(edge * side) for edge in part] for part in SKIN]
    return torch.stack([pictures[..., top:bottom, left:right].mean((2, 3)) for top, bottom, left, right in parts]).mean(0)


def root_correlation(w: Tensor) -> Tensor:
    """Square root ``(D, D)`` of the correlation matrix of samples ``(n, D)``: large along what they share."""
    values, basis = torch.linalg.eigh(torch.corrcoef(w.T.double()))
    return ((basis * values.clamp_min(0).sqrt()) @ basis.T).float()


def build(recipe: StyleRecipe, device: torch.device) -> StyleBranch:
    """The task of a recipe: networks loaded, photographs inverted, every face drawn."""
    mapper, generator, classifiers = load_networks(recipe.generator, recipe.classifiers, device)
    codes = mixed_latents(mapper, recipe.faces, seed=recipe.seed + 1, truncation=(0.6, 1.0), mixing=0.3)
    recipe.out.mkdir(parents=True, exist_ok=True)
    if recipe.encoder and recipe.photos and recipe.real:
        encoder = EfficientNetEncoder(mapper.n_styles)
        load_encoder(encoder, recipe.encoder)
        encoder.looks = recipe.corrections
        photos = open_faces(recipe.photos).pictures
        photos = photos[np.linspace(0, len(photos) - 1, min(recipe.real, len(photos))).astype(int)]
        codes = torch.cat((codes, invert_crops(encoder.eval(), generator, photos, recipe.out / "inverted.safetensors")))
    held = mixed_latents(mapper, recipe.held_out, seed=recipe.seed + 2, truncation=(0.6, 1.0), mixing=0.0)
    w = mapper.map(torch.randn(8192, mapper.style_dim, generator=random_source("W", recipe.seed)))
    return StyleBranch(
        recipe, generator, classifiers,
        LPIPS.from_file(recipe.lpips).to(device, memory_format=torch.channels_last),
        load_identity(recipe.identity).to(device) if recipe.identity else None,
        look_at(generator, classifiers, codes, recipe.out / "faces.npy"),
        look_at(generator, classifiers, held, recipe.out / "held_out.npy"),
        w,
    )  # fmt: skip


def main(argv: list[str]) -> int:
    """Command line entry; see the module's docstring."""
    recipe = read_recipe(StyleRecipe, argv, "style", __doc__)
    device = begin(recipe)
    Trainer(build(recipe, device), recipe, device).run()
    return 0
