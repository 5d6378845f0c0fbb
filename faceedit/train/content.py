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
  generator, and ``L_cls`` holds how far it moved the classifiers' outputs, so that a refined picture
  does not quietly undo its edit.

The recipe ``content_paper`` is the published loss (equation 11) on edited photographs, all of the
generator's levels, and content maps of the encoder's features alone.

Pictures are the 256 px preview, or with ``full`` whole passes reduced to 256 px; pixels in [-1, 1].
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from faceedit import hub
from faceedit.directions import Directions
from faceedit.errors import ConfigError, DataError
from faceedit.models.efficientnet_encoder import EfficientNetEncoder
from faceedit.models.encoder import Encoder
from faceedit.models.fusion import FusionGenerator
from faceedit.train.attributes import ATTRIBUTES
from faceedit.train.checkpoint import load_generator, read_tensors
from faceedit.train.config import Count, Fraction, Positive, TrainRecipe, Weight, Whole, read_recipe
from faceedit.train.content_samples import SIDE, Pairs, Photographs, Sampler, Samples
from faceedit.train.crops import to_unit
from faceedit.train.identity import IdentityNet, load_identity
from faceedit.train.perceptual import LPIPS
from faceedit.train.style_faces import Classifiers, invert_crops
from faceedit.train.synthetic import generated_faces, mixed_latents
from faceedit.train.task import Share, Task
from faceedit.train.trainer import Trainer, begin


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
    init: Path | None = None  # content.safetensors of another run to start from
    levels: tuple[int, ...] = (4, 5)  # generator levels that are fused: 64 and 128 px
    widths: tuple[int, ...] = (128, 48)  # channels of each level's content map
    follow: bool = True  # content maps start from the style branch's; without it the published extractor
    relevance: bool = True  # without it all is content: for the ablation
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
    lambda_align: Weight = 2.0  # on equation 8, of edited photographs
    published: bool = False  # equation 11 on edited photographs: L2 to the photograph, L_cls, L_align

    def __post_init__(self) -> None:
        if self.pairs + self.edited > self.batch:
            raise ConfigError(f"pairs ({self.pairs}) and edited ({self.edited}) must fit in batch ({self.batch}).")
        if len(self.levels) != len(self.widths) or list(self.levels) != sorted(set(self.levels)):
            raise ConfigError(f"levels {self.levels} must rise, and widths {self.widths} give one number for each.")
        if self.published and (self.pairs or self.edited < self.batch):
            raise ConfigError("published is a loss of edited photographs: set pairs to 0 and edited to batch.")


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
            self.spread = torch.cat(logits).std(0)

    # --- pictures ---------------------------------------------------------------------------

    @torch.no_grad()
    def draw(self, codes: Tensor) -> Tensor:
        """The generator's own pictures ``(n, 3, 256, 256)``."""
        codes = codes.to(self.device, self.dtype)
        pictures = [self.generator(c) if self.recipe.full else self.generator.preview(c) for c in codes.split(1)]
        return torch.cat([_small(p) for p in pictures]).clamp(-1, 1)

    def refine(self, samples: Samples) -> Tensor:
        """Refined pictures ``(n, 3, 256, 256)``, not clipped."""
        pictures = []
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            # One at a time: one face's maps stay in the cache.
            for i, strengths in enumerate(samples.strengths):
                x = samples.photos[i : i + 1].contiguous(memory_format=torch.channels_last)
                code = samples.codes[i : i + 1].to(self.device)
                with torch.no_grad():
                    features = self.encoder(x).features
                content = self.fusion.encode(x, features, code.to(self.dtype))
                edited = (code + samples.offsets[i : i + 1].to(self.device)).to(self.dtype)
                pictures.append(_small(self.fusion(content, edited, [strengths], preview=not self.recipe.full).image))
        return torch.cat(pictures).float()

    # --- loss -------------------------------------------------------------------------------

    def loss(self, share: Share) -> tuple[Tensor, dict[str, Tensor | float]]:
        recipe = self.recipe
        figures: dict[str, Tensor | float] = {}
        terms = []
        if recipe.pairs:
            part = share.part(0, recipe.pairs)
            samples, wanted = self.sampler.pairs(part)
            terms.append(self._likeness(part, samples, lambda: self.draw(wanted), "pair_", figures))
        if recipe.edited:
            part = share.part(recipe.pairs, recipe.pairs + recipe.edited)
            terms.append(self._edited(part, self.sampler.edited(part), figures))
        if recipe.pairs + recipe.edited < share.total:
            part = share.part(recipe.pairs + recipe.edited, share.total)
            samples = self.sampler.unedited(part)
            terms.append(self._likeness(part, samples, lambda: samples.photos, "", figures))
        return sum(terms), figures

    def _likeness(
        self, share: Share, samples: Samples, wanted: Callable[[], Tensor], prefix: str, figures: dict[str, Tensor | float]
    ) -> Tensor:
        """L2, LPIPS and identity to the picture that is wanted; of pairs what the classifiers see, too."""
        names = ["l2", "lpips"] + ["id"] * (self.identity is not None)
        names += ["cls"] * (self.classifiers is not None and bool(prefix))
        found = {name: samples.photos.new_zeros(0) for name in names}
        if len(share):
            pictures, target = self.refine(samples), wanted()
            with torch.no_grad():
                features = self.lpips.features(target)
            found["l2"] = (pictures - target).square().mean((1, 2, 3)).float()
            found["lpips"] = self.lpips.distance(self.lpips.features(pictures), features).float()
            if self.classifiers is not None and prefix:
                with torch.no_grad():
                    wanted_logits = self.classifiers(target)
                found["cls"] = ((self.classifiers(pictures) - wanted_logits) / self.spread).square().mean(1)
            if self.identity is not None:
                with torch.no_grad():
                    person = self.identity.describe(target)
                found["id"] = 1 - (self.identity.describe(pictures.float()) * person).sum(1).float()
        return self._weighed(share, found, prefix, figures)

    def _edited(self, share: Share, samples: Samples, figures: dict[str, Tensor | float]) -> Tensor:
        """``L_align`` (equation 8) and ``L_cls``; in the published recipe all of equation 11."""
        names = ["align"] + ["cls"] * (self.classifiers is not None) + ["l2"] * self.recipe.published
        found = {name: samples.photos.new_zeros(0) for name in names}
        if len(share):
            x, refined = samples.photos, self.refine(samples)
            before, after = self.draw(samples.codes), self.draw(samples.codes + samples.offsets)
            found["align"] = ((after - before) - (refined - x)).square().mean((1, 2, 3)).float()
            if self.classifiers is not None and self.recipe.published:
                found["cls"] = self._labels_missed(self.classifiers(refined), samples.strengths)
            elif self.classifiers is not None:
                with torch.no_grad():
                    z, z_before, z_after = self.classifiers(torch.cat((x, before, after))).chunk(3)
                missed = self.classifiers(refined) - (z + z_after - z_before)
                found["cls"] = (missed / self.spread).square().mean(1)
            if self.recipe.published:
                found["l2"] = (refined - x).square().mean((1, 2, 3)).float()
        return self._weighed(share, found, "edit_", figures)

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
        psnr, lpips = [], []
        for rows in torch.arange(n).split(8):
            samples = self._shown(rows.tolist(), {})
            pictures = self.refine(samples).clamp(-1, 1)
            psnr.append(-10 * ((pictures - samples.photos).square().mean((1, 2, 3)) / 4).log10())
            lpips.append(self.lpips.distance(self.lpips.features(pictures), self.lpips.features(samples.photos)))
        figures = {"psnr": torch.cat(psnr).mean().item(), "lpips": torch.cat(lpips).mean().item()}
        if self.classifiers is not None:
            figures["kept"] = float(np.mean([self._kept(name, range(min(n, 8))) for name in self._judged()]))
        return figures

    def _judged(self) -> list[str]:
        return [name for name in self.sampler.names if name in ATTRIBUTES]

    def _kept(self, name: str, rows: Sequence[int]) -> float:
        samples = self._shown(rows, {name: 1.0})
        pictures = (samples.photos, self.refine(samples), self.draw(samples.codes), self.draw(samples.codes + samples.offsets))
        score = [ATTRIBUTES[name].score(self.classifiers(p), self.classifiers.names).mean() for p in pictures]
        return ((score[1] - score[0]) / (score[3] - score[2])).item()

    def sample_grid(self) -> Tensor:
        """Four held-out photographs: as they are, inverted, refined; then attributes by style and refined."""
        rows = range(min(4, len(self.held_out.codes)))
        plain = self._shown(rows, {})
        columns = [plain.photos, self.draw(plain.codes), self.refine(plain)]
        for name in self.sampler.names[:5]:
            samples = self._shown(rows, {name: 1.0})
            columns += [self.draw(samples.codes + samples.offsets), self.refine(samples)]
        return torch.stack([F.avg_pool2d(c.float().clamp(-1, 1), 2) for c in columns], 1)


def _small(pictures: Tensor) -> Tensor:
    """Pictures at 256 px."""
    if pictures.shape[-1] == SIDE:
        return pictures
    return F.interpolate(pictures, (SIDE, SIDE), mode="area")


@torch.no_grad()
def measure_scales(fusion: FusionGenerator, latents: Tensor) -> None:
    """Set the unit of each channel of the fused levels: its standard deviation over some faces."""
    maps = [fusion.generator.features(code, fusion.levels[-1]) for code in latents.to(fusion.generator.mean_latent).split(1)]
    for level, extractor in zip(fusion.levels, fusion.content.extractors, strict=True):
        values = torch.cat([each[level] for each in maps]).float().transpose(0, 1).flatten(1)
        extractor.scale.copy_(values.std(1).clamp_min(1e-4))


def build(recipe: ContentRecipe, device: torch.device) -> ContentTask:
    """The task of a recipe: networks loaded, faces drawn and inverted."""
    mapper = load_generator(recipe.generator)
    encoder = EfficientNetEncoder(mapper.n_styles)
    encoder.load_state_dict(load_file(recipe.encoder))
    encoder = encoder.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    dtype = torch.bfloat16 if recipe.bf16 else torch.float32
    generator = copy.deepcopy(mapper).to(device, dtype, memory_format=torch.channels_last)
    directions = Directions.load(recipe.directions)
    recipe.out.mkdir(parents=True, exist_ok=True)

    crops = np.load(recipe.photos, mmap_mode="r")
    if len(crops) <= recipe.held_out:
        raise DataError(f"Of {len(crops)} photographs {recipe.held_out} are held out. Lower --held-out, or add more.")
    inverted = invert_crops(encoder, generator, crops, recipe.out / "photographs.safetensors")
    photographs, held_out = Photographs(crops, inverted).split(recipe.held_out)
    codes = mixed_latents(mapper, recipe.generated, seed=recipe.seed + 1, truncation=(0.6, 1.0), mixing=0.4, jitter=0.05)
    pictures = generated_faces(generator, codes, recipe.out / "generated.npy", SIDE if recipe.full else 0).pictures
    pairs = Pairs(pictures, codes, invert_crops(encoder, generator, pictures, recipe.out / "generated.safetensors", margin=False))

    fusion = FusionGenerator(
        generator, encoder, directions.names, recipe.levels, recipe.widths, follow=recipe.follow, relevance=recipe.relevance
    ).to(device, memory_format=torch.channels_last)
    if recipe.init:
        hub.load_module(fusion, read_tensors(recipe.init), advice="It must be of the same levels, widths and attributes.")
    else:
        measure_scales(fusion, codes[:32])
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
