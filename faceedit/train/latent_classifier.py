"""Teach the latent classifier, by which strength 1 is a step of each face's own length.

``python -m faceedit.train latent-classifier --generator FILE --classifiers FILE.. --identity FILE --directions FILE
--out FOLDER``

It learns what the training's classifiers see in generated faces and inverted photographs, most of them moved along one
of the directions, from the codes alone. Then the goals are set: the score that strength 1 (and -1) is to reach, each as
far beyond the threshold as the recipe asks, but never so far that the faces would on average be further from
themselves than it allows.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from faceedit.directions import Directions
from faceedit.errors import CheckpointError, ConfigError
from faceedit.models.efficientnet_encoder import EfficientNetEncoder
from faceedit.models.generator import Generator
from faceedit.models.latent_classifier import LatentClassifier
from faceedit.train import processes
from faceedit.train.attributes import ATTRIBUTES, require_attributes
from faceedit.train.calibrate import look
from faceedit.train.checkpoint import load_encoder, read_metadata, read_tensors, save_tensors
from faceedit.train.config import Count, Fraction, Positive, TrainRecipe, Weight, Whole, read_recipe
from faceedit.train.data import digest, open_faces
from faceedit.train.identity import IdentityNet, load_identity
from faceedit.train.style_faces import Classifiers, invert_crops, load_networks
from faceedit.train.synthetic import mixed_latents
from faceedit.train.task import Share, Task, random_source
from faceedit.train.trainer import Trainer, begin

log = logging.getLogger(__name__)

SENSES = (1, -1)
LOWEST_GOAL = -1.0  # short of the threshold, where the bars on identity leave no more


@dataclass(frozen=True, kw_only=True)
class LatentClassifierRecipe(TrainRecipe):
    """Every number of the training."""

    generator: Path  # safetensors file of the generator, with its preview head
    classifiers: tuple[Path, ...]  # attribute classifiers to learn from; never the judge
    identity: Path  # face identity network, for the goals
    directions: Path  # calibrated directions: the lengths that steps are given in
    encoder: Path | None = None  # encoder that inverts the photographs; none learns on generated faces alone
    corrections: Whole = 2  # that it makes of its first answer, as in the shipped checkpoint
    photos: Path | None = None  # .npy file of the crops stage: the photographs
    faces: Count = 24000  # faces drawn, for training and held-out figures
    held_out: Count = 1000  # of them, the last, for the figures
    real: Fraction = 0.4  # share that starts from an inverted photograph
    still: Fraction = 0.15  # share that is not moved along a direction
    farthest: Positive = 2.5  # largest strength of the others, either way
    rows: Count = 10  # of W+ that are looked at, from the coarsest
    hidden: Count = 256  # units of the two hidden layers
    dropout: Fraction = 0.3  # of their inputs
    noise: Weight = 0.2  # standard deviation of what is added to the inputs, in their own
    steps: Count = 9000  # optimizer steps in all
    batch: Count = 64  # faces of a step
    beta2: Fraction = 0.999  # AdamW, decay of the gradient's square's mean
    weight_decay: Weight = 0.05  # AdamW
    warmup: Whole = 1500  # first steps, over which the learning rate rises linearly
    decay: Whole = 7000  # last steps, over which it falls linearly to zero
    clip: Weight = 0.0  # largest norm of the gradient; 0 does not clip
    shortest_local: Weight = 0.75  # shortest step, in lengths of the direction; none at all for worn things where they are
    shortest_global: Weight = 0.5  # the same, attributes that change all of the face
    shortest_of: dict[str, Weight] = field(default_factory=dict)  # other shortest steps, by attribute
    longest: Positive = 1.5  # longest step
    longest_of: dict[str, Positive] = field(default_factory=dict)  # other longest steps, by attribute
    goal: Weight = 2.2  # logit beyond the threshold that strength 1 is to reach, and -1 on the other side
    goal_of: dict[str, Weight] = field(default_factory=dict)  # other goals, by attribute, or attribute and sense: age-
    identity_local: Fraction = 0.8  # mean centred cosine that strength 1 keeps, attributes of a part of the face
    identity_global: Fraction = 0.6  # the same, attributes that change all of it
    identity_bars: dict[str, Fraction] = field(default_factory=dict)  # other bars, by attribute, or attribute and sense: age-
    looks: Count = 96  # faces that the goals are set on
    evaluate_every: Whole = 1000  # steps between held-out figures; 0: at the end only
    log_every: Count = 100  # steps between lines of metrics.jsonl

    def __post_init__(self) -> None:
        if (self.encoder is None) != (self.photos is None):
            raise ConfigError("encoder and photos go together: give both, or neither to learn on generated faces alone.")
        if self.held_out >= self.faces:
            raise ConfigError(f"held_out: {self.held_out} of {self.faces} faces leave none to learn on.")
        require_attributes("shortest_of and longest_of", {*self.shortest_of, *self.longest_of})
        require_attributes("goal_of and identity_bars", {name.rstrip("+-") for name in (*self.goal_of, *self.identity_bars)})


def of_sense(values: Mapping[str, float], name: str, sense: int, default: float) -> float:
    """What is given for an attribute and a sense, or for the attribute, or the default."""
    return values.get(f"{name}{'+' if sense > 0 else '-'}", values.get(name, default))


def among(names: Sequence[str]) -> dict[str, str]:
    """Attribute to the one among whose faces alone it is defined, as `LatentClassifier` takes them."""
    owners = {ATTRIBUTES[name].output: (name, ATTRIBUTES[name].sign) for name in names}
    found = {}
    for name in names:
        output = ATTRIBUTES[name].among
        if output.removeprefix("-") in owners:
            owner, sign = owners[output.removeprefix("-")]
            found[name] = owner if (sign < 0) == output.startswith("-") else f"-{owner}"
    return found


def draw_codes(
    generator: Generator, directions: Tensor, photographs: Tensor | None, recipe: LatentClassifierRecipe
) -> Tensor:
    """Codes ``(faces, n_styles, dim)`` of faces that are moved along one direction each, or not at all.

    The held-out ones, which are the last, start from photographs of their own.
    """
    random, n = random_source("codes", recipe.seed), recipe.faces
    codes = mixed_latents(generator, n, seed=recipe.seed + 4, truncation=(0.6, 1.0), mixing=0.3)
    if photographs is not None:
        own = max(1, len(photographs) * recipe.held_out // n)
        split = len(photographs) - own
        pick = torch.rand(n, generator=random)
        rows = (pick * split).long()
        rows[-recipe.held_out :] = split + (pick[-recipe.held_out :] * own).long()
        real = torch.rand(n, generator=random) < recipe.real
        codes = torch.where(real[:, None, None], photographs[rows], codes)
    which = torch.randint(len(directions), (n,), generator=random)
    strength = (2 * torch.rand(n, generator=random) - 1) * recipe.farthest
    strength[torch.rand(n, generator=random) < recipe.still] = 0
    return codes + strength[:, None, None] * directions[which]


@torch.no_grad()
def label(generator: Generator, classifiers: Classifiers, codes: Tensor, keep: Path) -> Tensor:
    """What the classifiers see in the previews of codes: logits ``(n, K)``, kept in the file, and gone on with from there."""
    key = digest([codes, *generator.state_dict().values(), *classifiers.state_dict().values()])
    done = torch.empty(0, len(classifiers.names))
    if keep.exists():
        with safe_open(str(keep), "pt") as file:
            done = file.get_tensor(key) if key in file.keys() else done
    chunk = 16
    with tqdm(total=len(codes), initial=len(done), desc="faces labelled", mininterval=5) as bar:
        while len(done) < len(codes):
            part = codes[len(done) : len(done) + chunk].to(generator.mean_latent)
            pictures = torch.cat([generator.preview(code).float() for code in part.split(1)])
            done = torch.cat((done, classifiers(pictures).cpu()))
            bar.update(len(part))
            if len(done) % (64 * chunk) < chunk or len(done) == len(codes):
                save_tensors({key: done}, keep)
    return done


def set_lengths(model: LatentClassifier, recipe: LatentClassifierRecipe) -> None:
    """Between which lengths steps lie."""
    for i, name in enumerate(model.attributes):
        kind = ATTRIBUTES[name]
        shortest = recipe.shortest_local if kind.locality == "local" else recipe.shortest_global
        model.shortest[i] = 0.0 if kind.worn else recipe.shortest_of.get(name, shortest)
        model.longest[i] = recipe.longest_of.get(name, recipe.longest)


class LatentClassifierTask(Task):
    """A latent classifier, and its loss on codes.

    Args:
        recipe: Every number.
        names: The attributes.
        codes: ``(n, n_styles, dim)``.
        scores: ``(n, attributes)``, what the classifiers see; the last ``recipe.held_out`` are for the figures.
        device: Where to train.
    """

    name = "latent_classifier"

    def __init__(
        self, recipe: LatentClassifierRecipe, names: Sequence[str], codes: Tensor, scores: Tensor,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.recipe, self.device = recipe, torch.device(device)
        self.trainable = model = LatentClassifier(
            names, codes.shape[-1], min(recipe.rows, codes.shape[1]), recipe.hidden, among(names), recipe.dropout
        )  # fmt: skip
        learned = codes[: -recipe.held_out, : model.rows].flatten(0, 1)
        model.latent_mean.copy_(learned.mean(0))
        model.latent_std.copy_(learned.std(0).clamp_min(1e-6))
        model.score_mean.copy_(scores[: -recipe.held_out].mean(0))
        model.score_std.copy_(scores[: -recipe.held_out].std(0).clamp_min(1e-6))
        set_lengths(model, recipe)
        self.inputs = model.standardised(codes)
        self.targets = (scores - model.score_mean) / model.score_std
        self.model = model.to(self.device)

    def loss(self, share: Share) -> tuple[Tensor, dict[str, Tensor | float]]:
        rows = share.pick(len(self.inputs) - self.recipe.held_out)
        inputs = self.inputs[rows].to(self.device)
        inputs = inputs + self.recipe.noise * share.normal(inputs.shape[1])
        return F.smooth_l1_loss(self.model.read(inputs), self.targets[rows].to(self.device), beta=0.5), {}

    def evaluate(self) -> dict[str, float]:
        """Of the held-out faces: the share of each score's variance that is told from the code."""
        held = slice(-self.recipe.held_out, None)
        found, wanted = self.model.read(self.inputs[held].to(self.device)).cpu(), self.targets[held]
        told = 1 - (found - wanted).square().mean(0) / (wanted - wanted.mean(0)).square().mean(0)
        return {"r2": float(told.mean()), **{name: float(r2) for name, r2 in zip(self.model.attributes, told)}}

    def export(self, folder: Path) -> None:
        """``latent_classifier.safetensors``, as :func:`load` reads it; its goals are at the threshold until they are set."""
        save(self.model, folder / "latent_classifier.safetensors")


def save(model: LatentClassifier, path: Path) -> None:
    """Write a latent classifier to a safetensors file."""
    header = {"attributes": json.dumps(model.attributes), "options": json.dumps(model.options)}
    save_tensors(model.state_dict(), path, header)


def load(path: Path) -> LatentClassifier:
    """Read what :func:`save` wrote, in evaluation mode.

    Raises:
        CheckpointNotFoundError, CheckpointError: There is no such file, or it is damaged or of another kind.
    """
    tensors = read_tensors(path)
    header = read_metadata(path)
    if not {"attributes", "options"} <= header.keys() or "latent_mean" not in tensors:
        raise CheckpointError(f"{str(path)!r} holds no latent classifier. Give what the latent-classifier stage wrote.")
    model = LatentClassifier(json.loads(header["attributes"]), len(tensors["latent_mean"]), **json.loads(header["options"]))
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)


# --- goals --------------------------------------------------------------------------------------


def interpolated(lengths: Sequence[float], values: Tensor, at: Tensor) -> Tensor:
    """Values ``(len(lengths), n)``, given at rising lengths, at other lengths ``(n,)``; linear between them."""
    grid = torch.tensor(lengths)
    last = torch.searchsorted(grid, at.clamp(grid[0], grid[-1])).clamp(1, len(grid) - 1)
    part = (at - grid[last - 1]) / (grid[last] - grid[last - 1])
    face = torch.arange(len(at))
    return values[last - 1, face].lerp(values[last, face], part)


def best_goal(lengths: Sequence[float], identity: Tensor, steps: Mapping[float, Tensor], bar: float) -> float:
    """The highest goal whose steps keep a mean identity; the lowest if none does.

    Args:
        lengths: Rising, from 0.
        identity: ``(len(lengths), n)``, what each face keeps after so long a step.
        steps: Goal to the step ``(n,)`` that each face takes for it.
        bar: Least mean identity.
    """
    kept = [goal for goal, taken in steps.items() if interpolated(lengths, identity, taken).mean() >= bar]
    return max(kept, default=min(steps))


@torch.no_grad()
def set_goals(
    model: LatentClassifier, generator: Generator, classifiers: Classifiers, identity: IdentityNet,
    directions: Mapping[str, Tensor], codes: Tensor, recipe: LatentClassifierRecipe,
) -> list[str]:  # fmt: skip
    """Set a model's goals, and say in lines what they are.

    Args:
        model: Trained, on the CPU.
        generator: Draws the faces.
        classifiers: Tell which of them turn, for the lines.
        identity: Tells how far they are from themselves.
        directions: Attribute to direction.
        codes: ``(n, n_styles, dim)`` of the faces.
        recipe: Every number.
    """
    longest = float(model.longest.max())
    lengths = [longest * part for part in (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)]
    both_ways = [sense * length for sense in SENSES for length in lengths[1:]]
    unmoved = codes.to(generator.mean_latent).split(1)
    logits = classifiers(torch.cat([generator.preview(code).float() for code in unmoved])).cpu()
    lines = []
    for index, name in enumerate(tqdm(model.attributes, desc="goals", mininterval=5)):
        attribute = ATTRIBUTES[name]
        before = attribute.score(logits, classifiers.names)[None]
        found, persons = look(generator, classifiers, identity, attribute, codes, directions[name], both_ways)
        halves = zip(SENSES, found.chunk(2), persons.chunk(2), strict=True)
        for column, (sense, found, persons) in enumerate(halves):
            kept, scores = torch.cat((torch.ones_like(before), persons)), sense * torch.cat((before, found))
            steps = {}
            highest = of_sense(recipe.goal_of, name, sense, recipe.goal)
            for goal in torch.arange(LOWEST_GOAL, highest + 0.05, 0.1).tolist():
                model.goals[index, column] = goal
                steps[goal] = torch.tensor([model.step(code, directions[name], name, sense) for code in codes])
            bar = recipe.identity_local if attribute.locality == "local" else recipe.identity_global
            bar = of_sense(recipe.identity_bars, name, sense, bar)
            goal = best_goal(lengths, kept, steps, bar)
            model.goals[index, column] = goal
            lacking = attribute.lacking(logits, classifiers.names, sense)
            taken = steps[goal]
            turned = interpolated(lengths, scores, taken)[lacking] > 0
            lines.append(
                f"  {name:<12}{sense:+d}  goal {goal:+.1f}, mean step {float(taken.mean()):.2f}, identity "
                f"{float(interpolated(lengths, kept, taken).mean()):.2f} (at least {bar:g}), turned "
                + (f"{float(turned.float().mean()):.0%} of {len(turned)}" if len(turned) else "none, for none lacks it")
            )
    return lines


# --- command ------------------------------------------------------------------------------------


def main(argv: list[str]) -> int:
    """Command line entry; see the module's docstring."""
    recipe = read_recipe(LatentClassifierRecipe, argv, "latent-classifier", __doc__)
    device = begin(recipe)
    mapper, generator, classifiers = load_networks(recipe.generator, recipe.classifiers, device)
    directions = Directions.load(recipe.directions)
    names = [name for name in directions.names if name in ATTRIBUTES]
    vectors = torch.stack([directions.vectors[name] for name in names])
    recipe.out.mkdir(parents=True, exist_ok=True)
    photographs = None
    if recipe.encoder and recipe.photos and recipe.real:
        encoder = EfficientNetEncoder(mapper.n_styles)
        load_encoder(encoder, recipe.encoder)
        encoder.looks = recipe.corrections
        crops = open_faces(recipe.photos).pictures
        photographs = invert_crops(encoder.eval(), generator, crops, recipe.out / "photographs.safetensors")
    codes = draw_codes(mapper, vectors, photographs, recipe)
    with processes.first_alone():
        logits = label(generator, classifiers, codes, recipe.out / "logits.safetensors")
    scores = torch.stack([ATTRIBUTES[name].score(logits, classifiers.names) for name in names], 1)
    trainer = Trainer(LatentClassifierTask(recipe, names, codes, scores, device), recipe, device)
    trainer.run()
    if not (trainer.main and trainer.step >= recipe.steps):
        return 0
    path = recipe.out / "latent_classifier.safetensors"
    model = load(path)
    set_lengths(model, recipe)  # those of the recipe now: a resumed run has others of its own
    faces = mixed_latents(mapper, recipe.looks, seed=recipe.seed + 5, truncation=(0.6, 1.0), mixing=0.0)
    lines = set_goals(model, generator, classifiers, load_identity(recipe.identity).to(device), directions.vectors, faces, recipe)
    save(model, path)
    print(f"goals on {recipe.looks} generated faces, steps in lengths of the direction, early exit at 256 px, training's classifiers")
    print("\n".join(lines))
    return 0
