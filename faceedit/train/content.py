"""The content branch, relevance maps and fusion, trained through the frozen generator (sections 3.2 and 3.3).

``python -m faceedit.train content --config content --out FOLDER``

A batch mixes three kinds of samples, all with a code ``w`` that is not quite the picture's:

- photographs, unedited: the fused pass with all strengths 0 should give the photograph back,

      L = l_l2 L2 + l_lpips LPIPS + l_id (1 - centred cosine);

- generated pairs: ``x = G(w*)`` is shown, and the true edited picture ``G(w* + d)`` is known, so the same
  losses teach "change this, keep the rest". The code given is the encoder's of ``x``, or ``w*`` moved
  towards another face, so that the content has to carry what the code lacks. A part of the edits are
  steps towards other faces, so that the branch follows any edit and not its own attributes' alone;
- photographs, edited: no truth is known. ``L_align`` (equation 8) holds what the edit did in the
  generator, where the generator's picture is like the photograph, and ``L_cls`` holds how far it moved the
  classifiers' outputs, so that a refined picture does not quietly undo its edit. ``L_turn`` is one-sided:
  the attribute should show no less than in the style branch's picture, or in the true one of a pair.
  ``L_outside`` is LPIPS to the photograph where the generator's own edit changes little.

Losses at 256 px do not see what is finer, and a network would draw blocks and stripes there for nothing. So
detail beyond is held as well, octave by octave (Haar): of photographs and pairs to the target's, in L1, where a
photograph, which has little of it, counts as smoothly enlarged; of edited photographs its size, where it is more
than in the generator's own picture.

The recipe ``content_paper`` is the published loss (equation 11) on edited photographs, all of the
generator's levels, and content maps of the encoder's features alone.

Pictures are the 256 px preview, or with ``full`` whole passes reduced to 256 px; pixels in [-1, 1].
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from faceedit import hub
from faceedit.blend import agreement, change_mask
from faceedit.directions import Directions
from faceedit.errors import ConfigError, DataError
from faceedit.models.efficientnet_encoder import EfficientNetEncoder
from faceedit.models.encoder import Encoder
from faceedit.models.fusion import FusionGenerator
from faceedit.models.ops import smoothstep
from faceedit.train.attributes import ATTRIBUTES
from faceedit.train.checkpoint import load_encoder, load_generator, read_tensors
from faceedit.train.config import Count, Fraction, Positive, TrainRecipe, Weight, Whole, read_recipe
from faceedit.train.content_samples import SIDE, Pairs, Photographs, Sampler, Samples, at_side
from faceedit.train.crops import to_unit
from faceedit.train.data import open_faces
from faceedit.train.identity import IdentityNet, load_identity
from faceedit.train.metrics import psnr
from faceedit.train.perceptual import LPIPS
from faceedit.train.style_faces import Classifiers, invert_crops
from faceedit.train.synthetic import generated_faces, mixed_latents
from faceedit.train.task import Share, Task
from faceedit.train.trainer import Trainer, begin

_LITTLE = (0.02, 0.2)  # local difference on [0, 1] that an edit makes: nothing, much


@dataclass(frozen=True, kw_only=True)
class ContentRecipe(TrainRecipe):
    """Every number of the training."""

    generator: Path  # safetensors file of the generator, with its preview head
    encoder: Path  # encoder.safetensors; stays as it is
    directions: Path  # directions file of the style branch; stay as they are
    photos: Path  # .npy file of the crops stage
    lpips: Path  # LPIPS AlexNet weights
    identity: Path | None = None  # face identity network; none leaves L_id out
    classifiers: tuple[Path, ...] = ()  # attribute classifiers; none leaves L_cls out
    corrections: Whole = 2  # that the encoder makes of its first answer, as in the shipped checkpoint
    init: Path | None = None  # content.safetensors of another run to start from; see start_from
    levels: tuple[int, ...] = (4, 5, 6)  # generator levels that are fused: 64, 128 and 256 px
    widths: tuple[int, ...] = (128, 48, 16)  # channels of each level's content map
    follow: bool = True  # content maps start from the style branch's; without it the published extractor
    relevance: bool = True  # without it all is content: for the ablation
    compared: Count | None = None  # levels with a relevance map of their own, from the coarsest; none given, all
    detail: bool = False  # the finest level reads the photograph at 512 px
    full: bool = False  # whole passes in place of previews
    generated: Count = 1500  # generated faces, rendered and inverted once
    held_out: Count = 64  # photographs kept for figures, the last of the file
    steps: Count = 2000  # optimizer steps in all
    batch: Count = 8  # samples
    pairs: Whole = 4  # generated pairs of a batch
    edited: Whole = 2  # edited photographs of a batch; the others are unedited
    lr: Positive = 1e-3  # Adam
    warmup: Whole = 50  # first steps, over which the learning rate rises linearly
    decay: Whole = 800  # last steps, over which it falls linearly to zero
    clip: Weight = 1.0  # largest norm of the gradient
    ema: Fraction = 0.995  # decay of the averaged weights, which are what is shipped
    bf16: bool = True  # bfloat16 where autocast finds it safe
    strength_low: Positive = 0.4  # smallest strength of an edit
    strength_high: Positive = 1.4  # largest
    any_edit: Fraction = 0.3  # share of generated pairs that go towards another face
    morph: Weight = 0.4  # how far at most a pair's code is moved towards another face
    lambda_l2: Weight = 4.0  # on pixels in [-1, 1]
    lambda_lpips: Weight = 0.8  # on LPIPS
    lambda_id: Weight = 0.1  # on 1 - centred cosine
    lambda_cls: Weight = 0.3  # on the squared difference of logits' changes, in their standard deviations
    lambda_turn: Weight = 0.3  # on how far an attribute's score falls short of the style branch's, in deviations
    lambda_detail: Weight = 2.0  # on the absolute difference of detail finer than 256 px, mean over an octave in [-1, 1]
    lambda_grain: Weight = 4.0  # of edited photographs, on its size beyond the generator's own
    lambda_align: Weight = 2.0  # on equation 8, of edited photographs
    lambda_outside: Weight = 0.0  # of edited photographs, on LPIPS to the photograph where the generator's edit changes little
    published: bool = False  # equation 11 on edited photographs: L2 to the photograph, L_cls, L_align

    def __post_init__(self) -> None:
        if self.pairs + self.edited > self.batch:
            raise ConfigError(f"pairs ({self.pairs}) and edited ({self.edited}) must fit in batch ({self.batch}).")
        if len(self.levels) != len(self.widths) or list(self.levels) != sorted(set(self.levels)):
            raise ConfigError(f"levels {self.levels} must rise, and widths {self.widths} give one number for each.")
        if self.published and (self.pairs or self.edited < self.batch):
            raise ConfigError("published is a loss of edited photographs: set pairs to 0 and edited to batch.")


class Drawn(NamedTuple):
    """Pictures ``(n, 3, 256, 256)``, and of each what is finer, see :func:`_finer`."""

    pictures: Tensor
    finer: list[list[Tensor]]

    @property
    def grain(self) -> Tensor:
        """Mean size of what is finer in each cell of 16 x 16: ``(n, octaves * 256)``, or one column of 0 if nothing is."""
        if not any(self.finer):
            return self.pictures.new_zeros(len(self.pictures), 1)
        return torch.cat([_grain(octaves) for octaves in self.finer])


class ContentTask(Task):
    """See the module's docstring.

    Args:
        recipe: Every number.
        fusion: To train; its generator is frozen.
        encoder: Frozen, in evaluation mode.
        sampler: Draws what is learned on.
        held_out: Photographs for figures.
        lpips: On AlexNet.
        identity: None leaves ``L_id`` out.
        classifiers: None leaves ``L_cls`` out.
    """

    name = "content"

    def __init__(
        self, recipe: ContentRecipe, fusion: FusionGenerator, encoder: Encoder, sampler: Sampler, held_out: Photographs,
        lpips: LPIPS, identity: IdentityNet | None = None, classifiers: Classifiers | None = None,
    ) -> None:  # fmt: skip
        self.recipe, self.encoder, self.sampler, self.held_out = recipe, encoder, sampler, held_out
        self.lpips, self.identity, self.classifiers = lpips, identity, classifiers
        self.trainable = self.fusion = fusion
        self.generator = fusion.generator
        self.device, self.dtype = self.generator.mean_latent.device, self.generator.mean_latent.dtype
        if classifiers is not None:
            with torch.no_grad():
                seen = to_unit(sampler.faces.pictures[:200]).split(25)
                logits = [classifiers(part.to(self.device)) for part in seen]
            logits = torch.cat(logits)
            self.spread = logits.std(0)
            self.score_spread = {name: ATTRIBUTES[name].score(logits, classifiers.names).std() for name in self._judged()}

    # --- pictures ---------------------------------------------------------------------------

    @torch.no_grad()
    def draw(self, codes: Tensor) -> Drawn:
        """The generator's own pictures."""
        codes = codes.to(self.device, self.dtype)
        pictures = [self.generator(c) if self.recipe.full else self.generator.preview(c) for c in codes.split(1)]
        return _drawn([p.clamp(-1, 1) for p in pictures])

    def _enlarged(self, photos: Tensor) -> Drawn:
        """Photographs as the generator would draw them if it could."""
        side = self.generator.resolution if self.recipe.full else SIDE
        return _drawn([at_side(x, side) for x in photos.split(1)])

    def refine(self, samples: Samples) -> Drawn:
        """Refined pictures, not clipped."""
        pictures = []
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            # One at a time: one face's maps stay in the cache.
            for i, strengths in enumerate(samples.strengths):
                x = samples.photos[i : i + 1].contiguous(memory_format=torch.channels_last)
                code = samples.codes[i : i + 1].to(self.device)
                with torch.no_grad():
                    features = self.encoder(x).features
                content = self.fusion.encode(x, features, code.to(self.dtype)).maps
                edited = (code + samples.offsets[i : i + 1].to(self.device)).to(self.dtype)
                pictures.append(self.fusion(content, edited, [strengths], preview=not self.recipe.full).image)
        return _drawn(pictures)

    # --- loss -------------------------------------------------------------------------------

    def loss(self, share: Share) -> tuple[Tensor, dict[str, Tensor | float]]:
        recipe = self.recipe
        figures: dict[str, Tensor | float] = {}
        terms = []
        if recipe.pairs:
            part = share.part(0, recipe.pairs)
            samples, wanted = self.sampler.pairs(part)
            terms.append(self._likeness(part, samples, wanted, "pair_", figures))
        if recipe.edited:
            part = share.part(recipe.pairs, recipe.pairs + recipe.edited)
            terms.append(self._edited(part, self.sampler.edited(part), figures))
        if recipe.pairs + recipe.edited < share.total:
            part = share.part(recipe.pairs + recipe.edited, share.total)
            terms.append(self._likeness(part, self.sampler.unedited(part), None, "", figures))
        return sum(terms), figures

    def _likeness(
        self, share: Share, samples: Samples, wanted: Tensor | None, prefix: str, figures: dict[str, Tensor | float]
    ) -> Tensor:
        """To the pictures of codes that are wanted, or None for the photographs: L2, LPIPS, identity, detail; of
        pairs what the classifiers see, too."""
        judged = self.classifiers is not None and wanted is not None
        names = ["l2", "lpips", "detail"] + ["id"] * (self.identity is not None) + ["cls", "turn"] * judged
        found = {name: samples.photos.new_zeros(0) for name in names}
        if len(share):
            pictures, finer = self.refine(samples)
            target, fine = self._enlarged(samples.photos) if wanted is None else self.draw(wanted)
            with torch.no_grad():
                features = self.lpips.features(target)
            found["l2"] = (pictures - target).square().mean((1, 2, 3))
            found["lpips"] = self.lpips.distance(self.lpips.features(pictures), features).float()
            found["detail"] = torch.stack([_apart(a, b, pictures.new_zeros(())) for a, b in zip(finer, fine, strict=True)])
            if judged:
                with torch.no_grad():
                    goal = self.classifiers(target)
                logits = self.classifiers(pictures)
                found["cls"] = ((logits - goal) / self.spread).square().mean(1)
                found["turn"] = self._short_of(goal, logits, samples.strengths)
            if self.identity is not None:
                with torch.no_grad():
                    person = self.identity.describe(target)
                found["id"] = 1 - (self.identity.describe(pictures) * person).sum(1).float()
        return self._weighed(share, found, prefix, figures)

    def _edited(self, share: Share, samples: Samples, figures: dict[str, Tensor | float]) -> Tensor:
        """``L_align`` (equation 8), ``L_cls``, ``L_turn`` and grain; in the published recipe equation 11."""
        judged = [] if self.classifiers is None else ["cls"] if self.recipe.published else ["cls", "turn"]
        names = ["align", "l2" if self.recipe.published else "grain", *judged]
        if outside := self.recipe.lambda_outside > 0 and not self.recipe.published:
            names.append("outside")
        found = {name: samples.photos.new_zeros(0) for name in names}
        if len(share):
            x, fused = at_side(samples.photos, SIDE), self.refine(samples)
            refined = fused.pictures
            before, drawn = self.draw(samples.codes).pictures, self.draw(samples.codes + samples.offsets)
            after = drawn.pictures
            align = ((after - before) - (refined - x)).square()
            if not self.recipe.published:
                # Where the generator's picture is not the photograph's, its change added to the photograph is a ghost.
                align = align * agreement((x + 1) / 2, (before + 1) / 2)
            found["align"] = align.mean((1, 2, 3))
            if self.classifiers is not None and self.recipe.published:
                found["cls"] = self._labels_missed(self.classifiers(refined), samples.strengths)
            elif self.classifiers is not None:
                with torch.no_grad():
                    z, z_before, z_after = self.classifiers(torch.cat((x, before, after))).chunk(3)
                logits = self.classifiers(refined)
                found["cls"] = ((logits - (z + z_after - z_before)) / self.spread).square().mean(1)
                found["turn"] = self._short_of(z_after, logits, samples.strengths)
            if self.recipe.published:
                found["l2"] = (refined - x).square().mean((1, 2, 3))
            else:
                found["grain"] = F.relu(fused.grain - drawn.grain).mean(1)
            if outside:
                found["outside"] = self._changed_outside(x, refined, before, after)
        return self._weighed(share, found, "edit_", figures)

    def _changed_outside(self, photos: Tensor, refined: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """LPIPS ``(n,)`` of photographs and refined pictures that show only where the generator's own edit changes little."""
        changed = torch.cat([change_mask(a, b) for a, b in zip((before + 1) / 2, (after + 1) / 2)])
        shown = photos + (1 - smoothstep(changed, *_LITTLE)) * (refined - photos)
        return self.lpips(shown, photos).float()

    def _short_of(self, goal: Tensor, logits: Tensor, strengths: list[dict[str, float]]) -> Tensor:
        """How far a refined picture's score of its attribute falls short of the goal's, in deviations of the score.

        Both ``(n, outputs)``. Without it, a branch that hedges between photograph and edit pays little for
        edits that show, and are not enough.
        """
        names, losses = self.classifiers.names, []
        for wanted, found, named in zip(goal, logits, strengths):
            losses.append(found.new_zeros(()))
            for name, strength in named.items():
                if name in ATTRIBUTES and strength:
                    less = ATTRIBUTES[name].score(wanted, names) - ATTRIBUTES[name].score(found, names)
                    losses[-1] = losses[-1] + F.relu(less if strength > 0 else -less) / self.score_spread[name]
        return torch.stack(losses)

    def _labels_missed(self, logits: Tensor, strengths: list[dict[str, float]]) -> Tensor:
        """Binary cross-entropy (equation 9): the label is the sign of the drawn strength."""
        losses = []
        for row, named in zip(logits, strengths):
            (name, strength), = named.items()
            score = ATTRIBUTES[name].score(row, self.classifiers.names)
            losses.append(F.softplus(-score if strength > 0 else score))
        return torch.stack(losses)

    def _weighed(
        self, share: Share, found: dict[str, Tensor], prefix: str, figures: dict[str, Tensor | float]
    ) -> Tensor:
        figures |= {prefix + name: share.mean(value.detach()) for name, value in found.items()}
        return sum(getattr(self.recipe, f"lambda_{name}") * share.mean(value) for name, value in found.items())

    # --- figures ----------------------------------------------------------------------------

    def _shown(self, rows: Sequence[int], strengths: dict[str, float]) -> Samples:
        """Held-out photographs with one edit."""
        rows = torch.tensor(rows)
        codes = self.held_out.codes[rows]
        names = self.sampler.names
        offset = sum((s * self.sampler.directions[names.index(k)] for k, s in strengths.items()), torch.zeros_like(codes[0]))
        photos = self.held_out.framed(rows).to(self.device)
        return Samples(photos, codes, offset.expand_as(codes), [strengths] * len(rows))

    def evaluate(self) -> dict[str, float]:
        """Of held-out photographs: PSNR in dB on [0, 1] and LPIPS of the reconstruction; ``kept``, how much
        of the style branch's move of an attribute's score is left after refining, the mean over attributes.
        """
        n = len(self.held_out.codes)
        errors, lpips = [], []
        for rows in torch.arange(n).split(8):
            samples = self._shown(rows.tolist(), {})
            pictures, photos = self.refine(samples).pictures.clamp(-1, 1), at_side(samples.photos, SIDE)
            errors.append((pictures - photos).square().mean((1, 2, 3)) / 4)
            lpips.append(self.lpips.distance(self.lpips.features(pictures), self.lpips.features(photos)))
        figures = {"psnr": float(psnr(torch.cat(errors).cpu()).mean()), "lpips": torch.cat(lpips).mean().item()}
        if self.classifiers is not None:
            figures["kept"] = float(np.mean([self._kept(name, range(min(n, 8))) for name in self._judged()]))
        return figures

    def _judged(self) -> list[str]:
        return [name for name in self.sampler.names if name in ATTRIBUTES]

    def _kept(self, name: str, rows: Sequence[int]) -> float:
        samples = self._shown(rows, {name: 1.0})
        drawn = (self.refine(samples), self.draw(samples.codes), self.draw(samples.codes + samples.offsets))
        pictures = (at_side(samples.photos, SIDE), *(each.pictures for each in drawn))
        score = [ATTRIBUTES[name].score(self.classifiers(p), self.classifiers.names).mean() for p in pictures]
        return ((score[1] - score[0]) / (score[3] - score[2])).item()

    def sample_grid(self) -> Tensor:
        """Four held-out photographs: as they are, inverted, refined; then attributes by style and refined."""
        rows = range(min(4, len(self.held_out.codes)))
        plain = self._shown(rows, {})
        columns = [at_side(plain.photos, SIDE), self.draw(plain.codes).pictures, self.refine(plain).pictures]
        for name in self.sampler.names[:5]:
            samples = self._shown(rows, {name: 1.0})
            columns += [self.draw(samples.codes + samples.offsets).pictures, self.refine(samples).pictures]
        return torch.stack([F.avg_pool2d(c.float().clamp(-1, 1), 2) for c in columns], 1)


def _drawn(pictures: Sequence[Tensor]) -> Drawn:
    """Whole pictures or previews, one a sample, as the loss looks at them."""
    pictures = [p.float() for p in pictures]
    return Drawn(torch.cat([at_side(p, SIDE) for p in pictures]), [_finer(p) for p in pictures])


def _finer(picture: Tensor) -> list[Tensor]:
    """What of a picture ``(1, 3, S, S)`` is finer than 256 px, octave by octave, the finest first."""
    octaves = []
    while picture.shape[-1] > SIDE:
        coarse = F.avg_pool2d(picture, 2)
        octaves.append(picture - coarse.repeat_interleave(2, 2).repeat_interleave(2, 3))
        picture = coarse
    return octaves


def _grain(octaves: Sequence[Tensor]) -> Tensor:
    """Mean size of each octave in each cell of 16 x 16: ``(1, octaves * 256)``."""
    return torch.cat([F.adaptive_avg_pool2d(fine.abs().mean(1, keepdim=True), 16) for fine in octaves], 1).flatten(1)


def _apart(octaves: Sequence[Tensor], others: Sequence[Tensor], start: Tensor) -> Tensor:
    """``start`` and the mean absolute difference of each octave, a scalar."""
    return sum(((a - b).abs().mean() for a, b in zip(octaves, others, strict=True)), start)


@torch.no_grad()
def measure_scales(fusion: FusionGenerator, latents: Tensor) -> None:
    """Set the unit of each channel of the fused levels: its standard deviation over some faces."""
    maps = [fusion.generator.features(code, fusion.levels[-1]) for code in latents.to(fusion.generator.mean_latent).split(1)]
    for level, extractor in zip(fusion.levels, fusion.content.extractors, strict=True):
        values = torch.cat([each[level] for each in maps]).float().transpose(0, 1).flatten(1)
        extractor.scale.copy_(values.std(1).clamp_min(1e-4))


def start_from(fusion: FusionGenerator, tensors: dict[str, Tensor]) -> None:
    """Take over the weights of another run, so that the pictures are as there.

    Its levels may be the first of the fused ones, and narrower: what is new starts as in an untrained branch.
    Relevance maps that there is no place for are left out. Attributes that this run does not have stay at
    strength 0 for good: their directions go into the layers' biases. Those that only this run has start at 0.

    Raises:
        CheckpointError: Its levels or widths are others. Nothing is changed.
    """
    wanted = fusion.state_dict()
    tensors = {key: value for key, value in tensors.items() if not key.startswith("maps.") or key in wanted}
    known = len({key.split(".")[2] for key in tensors if key.startswith("content.extractors.")})
    start = "content.directions."
    for key in [key for key in tensors if key.startswith(start) and key not in wanted]:
        for i, row in enumerate(tensors.pop(key)):
            weight, bias = (f"content.extractors.{i}.adain.affine.{part}" for part in ("weight", "bias"))
            if {weight, bias} <= set(tensors) and tensors[weight].shape[1:] == row.shape:
                tensors[bias] = tensors[bias] + tensors[weight] @ row
    for key, value in wanted.items():
        level = re.match(r"(?:content\.extractors|content\.carry|maps)\.(\d+)\.", key)
        # The first of `carry` is the second level's.
        if level and int(level[1]) + key.startswith("content.carry.") >= known > 0 or key.startswith("content.detail."):
            tensors.setdefault(key, value)
        elif key.startswith(start) and key not in tensors:
            tensors[key] = torch.zeros_like(value)
        elif key.startswith(start) and tensors[key].shape[1:] == value.shape[1:]:
            tensors[key] = torch.cat((tensors[key].to(value), value[len(tensors[key]) :]))
        elif level and key in tensors and tensors[key].ndim == value.ndim and tensors[key].shape != value.shape:
            # The layer that enters reads the map of the level before, which is as wide as its own, before the generator's.
            last = fusion.content.extractors[int(level[1])].dim if ".enter." in key else 0
            tensors[key] = _widened(tensors[key], value, last, halves=".adain." in key)
    hub.load_module(fusion, tensors, advice="It must be of the same levels, of widths no larger than these.")


def _widened(narrow: Tensor, value: Tensor, last: int, halves: bool) -> Tensor:
    """A layer's weights or biases in those of a wider one: it reads nothing of its new inputs, which stand before the
    last so many, and its new outputs are ``value``'s own. The outputs of `AdaIN`'s layer are scales and shifts,
    ``halves``."""
    if any(n > m for n, m in zip(narrow.shape, value.shape)):
        return narrow  # refused when it is loaded
    wide = value.clone()
    for part, other in zip(*(x.chunk(2) if halves else [x] for x in (wide, narrow))):
        if part.ndim > 1:
            part[: len(other)] = 0
            part[: len(other), part.shape[1] - last :] = other[:, other.shape[1] - last :]
            other = other[:, : other.shape[1] - last]
        part[tuple(slice(n) for n in other.shape)] = other
    return wide


def build(recipe: ContentRecipe, device: torch.device) -> ContentTask:
    """The task of a recipe: networks loaded, faces drawn and inverted."""
    mapper = load_generator(recipe.generator)
    encoder = EfficientNetEncoder(mapper.n_styles)
    load_encoder(encoder, recipe.encoder)
    encoder.looks = recipe.corrections
    encoder = encoder.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    dtype = torch.bfloat16 if recipe.bf16 else torch.float32
    generator = copy.deepcopy(mapper).to(device, dtype, memory_format=torch.channels_last)
    directions = Directions.load(recipe.directions)
    fusion = FusionGenerator(
        generator, encoder, directions.names, recipe.levels, recipe.widths, follow=recipe.follow,
        relevance=recipe.relevance, compared=recipe.compared, detail=recipe.detail,
    ).to(device, memory_format=torch.channels_last)
    recipe.out.mkdir(parents=True, exist_ok=True)

    crops = open_faces(recipe.photos).pictures
    if len(crops) <= recipe.held_out:
        raise DataError(f"Of {len(crops)} photographs {recipe.held_out} are held out. Lower --held-out, or add more.")
    inverted = invert_crops(encoder, generator, crops, recipe.out / "photographs.safetensors")
    side = fusion.content.photo_size
    photographs, held_out = Photographs(crops, inverted, side).split(recipe.held_out)
    codes = mixed_latents(mapper, recipe.generated, seed=recipe.seed + 1, truncation=(0.6, 1.0), mixing=0.4, jitter=0.05)
    pictures = generated_faces(generator, codes, recipe.out / "generated.npy", side if recipe.full else 0).pictures
    pairs = Pairs(pictures, codes, invert_crops(encoder, generator, pictures, recipe.out / "generated.safetensors", margin=False))

    measure_scales(fusion, codes[:32])
    if recipe.init:
        start_from(fusion, read_tensors(recipe.init))
    sampler = Sampler(
        photographs, pairs, directions, (recipe.strength_low, recipe.strength_high), recipe.any_edit, recipe.morph
    )
    return ContentTask(
        recipe, fusion, encoder, sampler, held_out,
        LPIPS.from_file(recipe.lpips).to(device, memory_format=torch.channels_last),
        load_identity(recipe.identity).to(device, memory_format=torch.channels_last) if recipe.identity else None,
        Classifiers.load(recipe.classifiers).to(device) if recipe.classifiers else None,
    )  # fmt: skip


def main(argv: list[str]) -> int:
    """Command line entry; see the module's docstring."""
    recipe = read_recipe(ContentRecipe, argv, "content", __doc__)
    device = begin(recipe)
    Trainer(build(recipe, device), recipe, device).run()
    return 0
