"""Teach the parts net, by which edits leave alone what lies over a face, and tell hair from the rest.

``python -m faceedit.train parts --photos CROPS --parser FILE --encoder FILE --out FOLDER``

Its labels come from a published network that parses faces, which is too large for the package; the head on the encoder's
features learns them from photographs, blurred, noisy, mirrored and in other light.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from faceedit.errors import CheckpointError, ConfigError
from faceedit.hub import load_module
from faceedit.models.efficientnet_encoder import EfficientNetEncoder
from faceedit.models.encoder import Encoder
from faceedit.models.parts_net import PartsNet
from faceedit.train.checkpoint import load_encoder, read_metadata, read_tensors, save_tensors
from faceedit.train.config import Count, Fraction, Positive, TrainRecipe, Whole, read_recipe
from faceedit.train.crops import MARGIN, framed, to_unit
from faceedit.train.data import Faces, digest, kept, open_faces
from faceedit.train.encoder import degraded
from faceedit.train.face_parser import CLASSES, SIDE, FaceParser
from faceedit.train.task import Share, Task
from faceedit.train.trainer import Trainer, begin

# Glasses are of the face, which is edited behind them; ears are neither, for edits of faces end before them.
_FACE = ("skin", "l_brow", "r_brow", "l_eye", "r_eye", "eye_g", "nose", "mouth", "u_lip", "l_lip")
_HAIR = ("hair",)
_SURER = 4  # power of its probabilities: it is never surer than .8, as many classes have a little of each place


@dataclass(frozen=True, kw_only=True)
class PartsRecipe(TrainRecipe):
    """Every number of the training."""

    photos: Path  # .npy file of the crops stage
    parser: Path  # the published face parser's weights
    encoder: Path  # the encoder whose features are looked at
    n_styles: Count = 16  # rows of its codes
    held_out: Count = 200  # photographs, the last, for the figures
    width: Count = 64  # channels within the head
    light: Fraction = 0.25  # how far brightness varies, and half as far each colour
    steps: Count = 2500  # optimizer steps in all
    batch: Count = 8  # faces of a step
    bf16: bool = True  # bfloat16 where autocast finds it safe
    lr: Positive = 1e-3  # AdamW, highest learning rate
    warmup: Whole = 20  # first steps, over which the learning rate rises linearly
    decay: Whole = 1200  # last steps, over which it falls linearly to zero
    evaluate_every: Whole = 500  # steps between held-out figures; 0: at the end only


def cut(photos: Faces, rows: NDArray[np.integer]) -> Tensor:
    """Photographs as the editor aligns them, without the margin of their crops: ``(n, 3, S, S)`` in [-1, 1]."""
    pictures = to_unit(photos.pictures[rows])
    return framed(pictures, round(pictures.shape[-1] / MARGIN))


@torch.no_grad()
def label(parser: FaceParser, photos: Faces, keep: Path, bf16: bool) -> Faces:
    """How sure the parser is of face, hair and the rest at each place: ``(n, 64, 64, 3)``, in parts of 255."""
    members = [[CLASSES.index(name) for name in names] for names in (_FACE, _HAIR)]

    def rows() -> Iterator[tuple[str, NDArray[np.uint8]]]:
        for i, name in enumerate(tqdm(photos.names, desc="photographs parsed", mininterval=5)):
            picture = F.interpolate((cut(photos, np.array([i])) + 1) / 2, (SIDE,) * 2, mode="bilinear", align_corners=False)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                sure = parser(picture).float().softmax(1)[0]
            found = torch.stack([sure[part].sum(0) for part in members])
            found = torch.cat((found, 1 - found.sum(0, True))).clamp(0, 1)
            yield name, (found * 255).round().byte().permute(1, 2, 0).numpy()

    key = {"parser": digest(parser.state_dict().values()), "photos": [*photos.names], "bf16": bf16}
    return kept(keep, key, (SIDE // 8, SIDE // 8, 3), rows)


class PartsTask(Task):
    """A parts net, and its loss on photographs.

    Args:
        recipe: Every number.
        encoder: Frozen, on the device to train on.
        photos: Crops with a margin of `MARGIN`.
        labels: Of `label`, as many.
    """

    name = "parts"

    def __init__(self, recipe: PartsRecipe, encoder: Encoder, photos: Faces, labels: Faces) -> None:
        if recipe.held_out >= len(photos):
            raise ConfigError(f"held_out ({recipe.held_out}) must be below the number of photographs ({len(photos)}).")
        self.recipe, self.encoder, self.photos, self.labels = recipe, encoder, photos, labels
        self.device = encoder.latent_mean.device
        net = PartsNet(encoder.feature_channels, encoder.feature_sizes, recipe.width)
        some = net.gathered(self._features(cut(photos, np.arange(min(32, len(photos) - recipe.held_out)))))
        net.mean.copy_(some.mean((0, 2, 3)))
        net.std.copy_(some.std((0, 2, 3)).clamp_min(1e-3))
        self.trainable = self.net = net.to(self.device)

    @torch.no_grad()
    def _features(self, pictures: Tensor) -> list[Tensor]:
        return [f.float() for f in self.encoder(pictures.to(self.device)).features]

    def _labels(self, rows: NDArray[np.integer]) -> Tensor:
        """What is sought, at the net's side: ``(n, 2, S, S)`` in [0, 1]."""
        labels = torch.from_numpy(self.labels.pictures[rows].copy()).permute(0, 3, 1, 2).to(self.device)
        sure = (labels.float() / 255) ** _SURER
        sure = sure[:, :2] / sure.sum(1, True)
        return F.interpolate(sure, (self.net.side,) * 2, mode="area")

    def loss(self, share: Share) -> tuple[Tensor, dict[str, Tensor | float]]:
        rows = share.pick(len(self.photos) - self.recipe.held_out).numpy()
        pictures, wanted, light = cut(self.photos, rows), self._labels(rows), self.recipe.light
        gain = share.uniform(1 - light, 1 + light, 1, 1, 1) * share.uniform(1 - light / 2, 1 + light / 2, 3, 1, 1)
        pictures = degraded(((pictures + 1) * gain.cpu() - 1).clamp(-1, 1), share)
        flip = (share.uniform() < 0.5).view(-1, 1, 1, 1)
        pictures = torch.where(flip.cpu(), pictures.flip(3), pictures)
        wanted = torch.where(flip, wanted.flip(3), wanted)
        missed = F.binary_cross_entropy_with_logits(self.net(self._features(pictures)).float(), wanted, reduction="none")
        return share.mean(missed.mean((1, 2, 3))), {}

    def evaluate(self) -> dict[str, float]:
        """Of the held-out photographs, for each part: the share of places that are told as the parser tells them, and the
        overlap (IoU)."""
        right, both, either = torch.zeros(3, len(PartsNet.parts))
        for i in range(len(self.photos) - self.recipe.held_out, len(self.photos)):
            rows = np.array([i])
            wanted = self._labels(rows).cpu() > 0.5
            found = self.net(self._features(cut(self.photos, rows))).cpu() > 0
            right += (found == wanted).float().mean((0, 2, 3)) / self.recipe.held_out
            both += (found & wanted).sum((0, 2, 3))
            either += (found | wanted).sum((0, 2, 3))
        overlap = both / either.clamp_min(1)
        figures = {"right": right, "iou": overlap}
        return {f"{part}_{name}": float(x[i]) for i, part in enumerate(PartsNet.parts) for name, x in figures.items()}

    def export(self, folder: Path) -> None:
        """``parts.safetensors``, as :func:`load` reads it."""
        save(self.net, folder / "parts.safetensors")


def save(net: PartsNet, path: Path) -> None:
    """Write a parts net to a safetensors file."""
    save_tensors(net.state_dict(), path, {"options": json.dumps(net.options)})


def load(path: Path, encoder: Encoder) -> PartsNet:
    """Read what :func:`save` wrote, in evaluation mode.

    Args:
        path: The file.
        encoder: Whose features it looks at.

    Raises:
        CheckpointNotFoundError, CheckpointError: There is no such file, or it is of another kind or encoder.
    """
    tensors, header = read_tensors(path), read_metadata(path)
    if "options" not in header or "enter.weight" not in tensors:
        raise CheckpointError(f"{str(path)!r} holds no parts net. Give what the parts stage wrote.")
    net = PartsNet(encoder.feature_channels, encoder.feature_sizes, **json.loads(header["options"]))
    load_module(net, tensors, advice=f"The parts net {str(path)!r} is damaged or of another encoder: train one on this encoder.")
    return net.eval().requires_grad_(False)


def main(argv: list[str]) -> int:
    """Command line entry; see the module's docstring."""
    recipe = read_recipe(PartsRecipe, argv, "parts", __doc__)
    device = begin(recipe)
    encoder = EfficientNetEncoder(recipe.n_styles)
    load_encoder(encoder, recipe.encoder)
    photos = open_faces(recipe.photos)
    labels = label(FaceParser.from_file(recipe.parser), photos, recipe.out / "labels.npy", recipe.bf16)
    encoder = encoder.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    Trainer(PartsTask(recipe, encoder, photos, labels), recipe, device).run()
    return 0
