"""Teach the skin net, by which edits leave alone what lies over a face.

``python -m faceedit.train skin --generator FILE --encoder FILE --frame FILE --out FOLDER``

Nobody labels anything. The generator's own features are clustered over many faces; a cluster that lies within the
outlines of faces is one of bare faces, one that lies outside is not, and one that does both is left out. So every
generated face has its labels, and the head on the encoder's features learns them from the faces' pictures, blurred,
noisy, mirrored and in other light.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from faceedit.blend import raised
from faceedit.errors import CheckpointError, ConfigError
from faceedit.hub import load_module
from faceedit.models.efficientnet_encoder import EfficientNetEncoder
from faceedit.models.encoder import Encoder
from faceedit.models.frame_net import FrameNet
from faceedit.models.generator import Generator
from faceedit.models.skin_net import SkinNet
from faceedit.train import frame
from faceedit.train.checkpoint import load_encoder, load_generator, read_metadata, read_tensors, save_tensors
from faceedit.train.config import Count, Fraction, Positive, TrainRecipe, Weight, Whole, read_recipe
from faceedit.train.crops import to_unit
from faceedit.train.data import Faces
from faceedit.train.encoder import degraded
from faceedit.train.synthetic import generated_faces, mixed_latents
from faceedit.train.task import Share, Task, random_source
from faceedit.train.trainer import Trainer, begin

log = logging.getLogger(__name__)

_SIDES = (32, 64)  # of the generator's maps that are clustered: the parts of a face, with their borders
_UNKNOWN = -1.0  # label of what belongs to no side


@dataclass(frozen=True, kw_only=True)
class SkinRecipe(TrainRecipe):
    """Every number of the training."""

    generator: Path  # safetensors file of the generator, with its preview head
    encoder: Path  # the encoder whose features are looked at
    frame: Path  # the frame net, for the outlines of faces
    faces: Count = 500  # generated faces
    held_out: Count = 50  # of them, the last, for the figures
    named: Count = 120  # of them, the first, that clusters are made and named by
    clusters: Count = 24  # of the generator's features
    rounds: Count = 25  # of assigning and averaging, for the clusters
    forehead: Weight = 0.15  # how far a face reaches above its outline, which ends at the brows, in sides of the picture
    inside: Fraction = 0.75  # share of a cluster within faces from which it is one of them
    outside: Fraction = 0.25  # share up to which it is none
    width: Count = 48  # channels within the head
    light: Fraction = 0.25  # how far brightness varies, and half as far each colour
    steps: Count = 500  # optimizer steps in all
    batch: Count = 8  # faces of a step
    lr: Positive = 2e-3  # AdamW, highest learning rate
    warmup: Whole = 20  # first steps, over which the learning rate rises linearly
    decay: Whole = 200  # last steps, over which it falls linearly to zero
    evaluate_every: Whole = 250  # steps between held-out figures; 0: at the end only

    def __post_init__(self) -> None:
        if self.held_out >= self.faces or self.named > self.faces:
            raise ConfigError(
                f"held_out ({self.held_out}) must be below faces ({self.faces}), and named ({self.named}) not above."
            )
        if self.outside > self.inside:
            raise ConfigError(f"outside ({self.outside}) must not be above inside ({self.inside}).")


def parts_of(generator: Generator, code: Tensor) -> Tensor:
    """What the generator knows of each place of a face ``(n_styles, dim)``: ``(64 * 64, channels)``, of unit lengths.

    Raises:
        ConfigError: The generator has no maps of 32 and 64 pixels.
    """
    sizes = list(generator.level_sizes)
    if not set(_SIDES) <= set(sizes):
        raise ConfigError(f"The generator's maps have sides {sizes}; the skin net is taught by those of {_SIDES}.")
    features = generator.features(code[None], sizes.index(_SIDES[-1]))
    maps = [F.normalize(features[sizes.index(side)].float(), dim=1) for side in _SIDES]
    maps = [F.interpolate(x, (_SIDES[-1],) * 2, mode="bilinear", align_corners=False) for x in maps]
    return torch.cat(maps, 1)[0].flatten(1).T.cpu()


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """The nearest centre ``(k, d)`` of each point ``(n, d)``, as a number."""
    return (2 * points @ centres.T - centres.square().sum(1)).argmax(1)


def clustered(points: Tensor, k: int, rounds: int, seed: int) -> Tensor:
    """Centres ``(k, d)`` of points ``(n, d)``, by Lloyd's algorithm from k of the points."""
    centres = points[torch.randperm(len(points), generator=random_source("clusters", seed))[:k]].clone()
    for _ in range(rounds):
        nearer = nearest(points, centres)
        count = torch.bincount(nearer, minlength=k)
        sums = torch.zeros_like(centres).index_add_(0, nearer, points)
        centres = torch.where(count[:, None] > 0, sums / count.clamp_min(1)[:, None], centres)
    return centres


def shares_inside(numbers: Tensor, within: Tensor, k: int) -> Tensor:
    """Of each cluster, the share ``(k,)`` of its places that lie within faces.

    Args:
        numbers: ``(n,)``, each place's cluster.
        within: ``(n,)``, bool.
    """
    count = torch.bincount(numbers, minlength=k)
    return torch.bincount(numbers[within], minlength=k) / count.clamp_min(1)


@torch.no_grad()
def label(generator: Generator, frame_net: FrameNet, codes: Tensor, pictures: Faces, recipe: SkinRecipe) -> Tensor:
    """Where generated faces are bare: ``(n, 64, 64)``, 1 where they are, 0 where not, -1 where that is not known."""
    side, per_face, points, within = _SIDES[-1], 400, [], []
    draws = random_source("places", recipe.seed)
    for i in tqdm(range(recipe.named), desc="faces to name parts by", mininterval=5):
        outline = frame_net.outlines((to_unit(pictures.pictures[i : i + 1])[0] + 1) / 2)[0]
        places = torch.randperm(side * side, generator=draws)[:per_face]
        points.append(parts_of(generator, codes[i])[places])
        within.append(raised(outline, recipe.forehead, side)[0, 0].flatten()[places] > 0)
    known, within = torch.cat(points), torch.cat(within)
    centres = clustered(known, recipe.clusters, recipe.rounds, recipe.seed)
    inside = shares_inside(nearest(known, centres), within, len(centres))
    log.info("shares of clusters within faces: %s", " ".join(f"{share:.2f}" for share in inside.sort().values))
    value = torch.full_like(inside, _UNKNOWN)
    value[inside >= recipe.inside], value[inside <= recipe.outside] = 1.0, 0.0
    return torch.stack([
        value[nearest(parts_of(generator, code), centres)].view(side, side)
        for code in tqdm(codes, desc="faces labelled", mininterval=5)
    ])


class SkinTask(Task):
    """A skin net, and its loss on generated faces.

    Args:
        recipe: Every number.
        encoder: Frozen, on the device to train on.
        pictures: The faces.
        labels: ``(n, 64, 64)``, of `label`.
    """

    name = "skin"

    def __init__(self, recipe: SkinRecipe, encoder: Encoder, pictures: Faces, labels: Tensor) -> None:
        self.recipe, self.encoder, self.pictures, self.labels = recipe, encoder, pictures.pictures, labels
        self.device = encoder.latent_mean.device
        net = SkinNet(encoder.feature_channels, encoder.feature_sizes, recipe.width)
        some = net.gathered(self._features(to_unit(self.pictures[: min(32, len(labels) - recipe.held_out)])))
        net.mean.copy_(some.mean((0, 2, 3)))
        net.std.copy_(some.std((0, 2, 3)).clamp_min(1e-3))
        self.trainable = self.net = net.to(self.device)

    @torch.no_grad()
    def _features(self, pictures: Tensor) -> list[Tensor]:
        return [f.float() for f in self.encoder(pictures.to(self.device)).features]

    def _labels(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Labels at the net's side, and where they are known, both ``(n, 1, S, S)``."""
        labels = self.labels[rows][:, None].to(self.device)
        labels = F.interpolate(labels, (self.net.side,) * 2, mode="nearest")
        return labels.clamp_min(0), (labels != _UNKNOWN).float()

    def loss(self, share: Share) -> tuple[Tensor, dict[str, Tensor | float]]:
        rows = share.pick(len(self.labels) - self.recipe.held_out)
        pictures, (wanted, known) = to_unit(self.pictures[rows.numpy()]), self._labels(rows)
        light = self.recipe.light
        gain = share.uniform(1 - light, 1 + light, 1, 1, 1) * share.uniform(1 - light / 2, 1 + light / 2, 3, 1, 1)
        pictures = degraded(((pictures + 1) * gain.cpu() - 1).clamp(-1, 1), share)
        flip = (share.uniform() < 0.5).view(-1, 1, 1, 1)
        pictures = torch.where(flip.cpu(), pictures.flip(3), pictures)
        wanted, known = (torch.where(flip, x.flip(3), x) for x in (wanted, known))
        missed = F.binary_cross_entropy_with_logits(self.net(self._features(pictures)), wanted, known, reduction="none")
        return share.mean(missed.sum((1, 2, 3)) / known.sum((1, 2, 3)).clamp_min(1)), {}

    def evaluate(self) -> dict[str, float]:
        """Of the held-out faces: the share of places that are told rightly, and the overlap of bare ones (IoU)."""
        right = both = either = count = 0.0
        for i in range(len(self.labels) - self.recipe.held_out, len(self.labels)):
            wanted, known = self._labels(torch.tensor([i]))
            found = self.net(self._features(to_unit(self.pictures[i : i + 1]))) > 0
            wanted, known = wanted > 0, known > 0
            right += float(((found == wanted) & known).sum())
            both += float((found & wanted & known).sum())
            either += float(((found | wanted) & known).sum())
            count += float(known.sum())
        return {"right": right / max(count, 1), "iou": both / max(either, 1)}

    def export(self, folder: Path) -> None:
        """``skin.safetensors``, as :func:`load` reads it."""
        save(self.net, folder / "skin.safetensors")


def save(net: SkinNet, path: Path) -> None:
    """Write a skin net to a safetensors file."""
    save_tensors(net.state_dict(), path, {"options": json.dumps(net.options)})


def load(path: Path, encoder: Encoder) -> SkinNet:
    """Read what :func:`save` wrote, in evaluation mode.

    Args:
        path: The file.
        encoder: Whose features it looks at.

    Raises:
        CheckpointNotFoundError, CheckpointError: There is no such file, or it is of another kind or encoder.
    """
    tensors, header = read_tensors(path), read_metadata(path)
    if "options" not in header or "enter.weight" not in tensors:
        raise CheckpointError(f"{str(path)!r} holds no skin net. Give what the skin stage wrote.")
    net = SkinNet(encoder.feature_channels, encoder.feature_sizes, **json.loads(header["options"]))
    load_module(net, tensors, advice=f"The skin net {str(path)!r} is damaged or of another encoder: train one on this encoder.")
    return net.eval().requires_grad_(False)


def main(argv: list[str]) -> int:
    """Command line entry; see the module's docstring."""
    recipe = read_recipe(SkinRecipe, argv, "skin", __doc__)
    device = begin(recipe)
    generator = load_generator(recipe.generator)
    encoder = EfficientNetEncoder(generator.n_styles)
    load_encoder(encoder, recipe.encoder)
    codes = mixed_latents(generator, recipe.faces, seed=recipe.seed + 5, mixing=0.3)
    generator = generator.to(device)
    pictures = generated_faces(generator, codes, recipe.out / "generated.npy")
    labels = label(generator, frame.load(recipe.frame), codes.to(device), pictures, recipe)
    encoder = encoder.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    Trainer(SkinTask(recipe, encoder, pictures, labels), recipe, device).run()
    return 0
