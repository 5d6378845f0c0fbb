"""Train pSp for any generator: photographs, their codes, and what the frozen generator makes of those.

``python -m faceedit.train encoder --config psp --out FOLDER``

    L = l_l2 L2 + l_lpips LPIPS + l_id (1 - cosine)

Pictures are the generator's, pooled to 256 px, in [-1, 1]; photographs are mirrored at random. Batch
normalisation is in training mode, so it sees one pass of a batch at a time.

At the end of a run whose generator is a checkpoint folder, ``checkpoint`` in the run's folder is that
checkpoint with the encoder in it.

Source: Richardson et al., arXiv 2008.00951, section 3.2; optimizer and schedule as the published code has them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from faceedit import hub
from faceedit.config import EncoderConfig
from faceedit.convert.psp import sizes
from faceedit.errors import DataError, MissingDependencyError
from faceedit.models.generator import Generator
from faceedit.models.psp_encoder import GradualStyleEncoder
from faceedit.train import processes
from faceedit.train.checkpoint import load_encoder, load_generator, read_tensors
from faceedit.train.config import Count, Fraction, Positive, TrainRecipe, Weight, Whole, plain, read_recipe
from faceedit.train.crops import MARGIN, framed, to_unit
from faceedit.train.data import Faces, load_faces
from faceedit.train.identity import load_identity
from faceedit.train.judges import Judges
from faceedit.train.perceptual import LPIPS
from faceedit.train.trainer import Share, Task, Trainer, begin

_W_SAMPLES = 10_000  # of W, for its mean and deviation

Network = TypeVar("Network", bound=GradualStyleEncoder)


@dataclass(frozen=True, kw_only=True)
class PspRecipe(TrainRecipe):
    """Every number of the training; the defaults are the paper's, for faces."""

    network: Literal["psp"] = "psp"  # which encoder
    generator: Path  # checkpoint folder, as `faceedit convert` writes it, or MobileStyleGAN in safetensors
    photos: Path  # .npy file of the crops stage, or a folder of photographs or FFHQ crops
    lpips: Path  # AlexNet or VGG16 and its linear heads, safetensors
    identity: Path | None = None  # ArcFace, converted, or dlib's, of the identity stage; none leaves that loss out
    init: Path | None = None  # encoder.safetensors of another run, or a checkpoint's model.safetensors
    init_body: Path | None = None  # ArcFace, converted: first weights of the IR-SE50 body
    preview: bool = False  # draw the generator's previews, which are faster, and not its pictures
    steps: Count = 500_000  # optimizer steps in all
    optimizer: Literal["ranger", "adam"] = "ranger"  # ranger, as the papers, needs the package pytorch-optimizer
    lr: Positive = 1e-4  # highest learning rate
    beta1: Fraction = 0.95  # decay of the gradient's mean
    beta2: Fraction = 0.999  # decay of its square's mean
    warmup: Whole = 0  # first steps, over which the learning rate rises linearly
    clip: Weight = 0.0  # largest norm of the gradient; 0 does not clip
    save_every: Count = 2000  # steps between checkpoints, which have three or four times the encoder's size
    evaluate_every: Whole = 1000  # steps between held-out figures; 0: at the end only
    grid_every: Whole = 1000  # steps between sample grids; 0: at the end only
    lambda_l2: Weight = 1.0  # on pixels in [-1, 1]
    lambda_lpips: Weight = 0.8  # perceptual distance
    lambda_id: Weight = 0.1  # 1 - cosine of descriptors
    held_out: Count = 64  # photographs kept for choosing, the last ones


class PspTask(Task):
    """Pictures of photographs' codes; see the module's docstring.

    Args:
        encoder: Is put into training mode.
        judges: Frozen networks of the loss, on the encoder's device.
        recipe: Every number.
        photos: Photographs' crops with a margin of `MARGIN`.
    """

    name = "encoder"

    def __init__(self, encoder: GradualStyleEncoder, judges: Judges, recipe: PspRecipe, photos: Faces) -> None:
        if len(photos) <= recipe.held_out:
            raise DataError(f"Of {len(photos)} photographs {recipe.held_out} are held out. Lower --held-out, or add more.")
        self.trainable = self.encoder = encoder.train()
        self.judges, self.recipe = judges, recipe
        self.photos, self.held_out = photos.pictures[: -recipe.held_out], photos.pictures[-recipe.held_out :]
        self.device, self.size = encoder.latent_mean.device, judges.side()
        self._shown: Tensor | None = None

    def loss(self, share: Share) -> tuple[Tensor, dict[str, Tensor | float]]:
        self._shown = None
        photos = to_unit(self.photos[share.pick(len(self.photos)).numpy()]).to(self.device)
        targets = framed(photos, self.size)
        targets = torch.where(share.uniform(0, 1, 1, 1, 1) < 0.5, targets.flip(3), targets)
        targets = targets.contiguous(memory_format=torch.channels_last)
        latents = self.encoder(targets).latents
        losses = self.judges.losses(self.judges.render(latents), targets) | self.latent_losses(latents, share)
        loss = sum(getattr(self.recipe, f"lambda_{name}") * value for name, value in losses.items())
        return loss, {name: value.detach() for name, value in losses.items()}

    def latent_losses(self, latents: Tensor, share: Share) -> dict[str, Tensor]:
        """Losses of the codes ``(B, n_styles, 512)`` themselves, named as their weights; pSp has none."""
        return {}

    def optimizer(self, groups: list[dict[str, Any]], recipe: PspRecipe) -> torch.optim.Optimizer:
        if recipe.optimizer == "adam":
            return super().optimizer(groups, recipe)
        try:
            from pytorch_optimizer import Ranger
        except ImportError as error:
            raise MissingDependencyError(
                "The optimizer Ranger is in the package pytorch-optimizer, which is not installed. Install it with: "
                "pip install pytorch-optimizer, or choose --optimizer adam."
            ) from error
        return Ranger(groups, betas=(recipe.beta1, recipe.beta2), weight_decay=recipe.weight_decay)

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.recipe.network}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        found = state.get("network", "efficientnet")
        if found != self.recipe.network:  # the tensors of pSp and e4e have equal names and shapes
            raise ValueError(f"it is {found} and not {self.recipe.network}")

    def evaluate(self) -> dict[str, float]:
        """Held-out photographs: PSNR in dB on [0, 1] and losses."""
        targets = framed(to_unit(self.held_out), self.size).to(self.device)
        figures, self._shown = self.judges.held_out(lambda x: self.encoder(x).latents, targets, self.recipe.bf16)
        return figures

    def sample_grid(self) -> Tensor | None:
        """The last held-out photographs above what the encoder makes of them."""
        if self._shown is None:
            self.evaluate()
        return self._shown


def load_body(encoder: GradualStyleEncoder, path: str | Path) -> None:
    """Start an encoder's body from a face recognition network, ArcFace's IR-SE50.

    Args:
        encoder: Its input layer and body are filled.
        path: What ``faceedit convert model_ir_se50.pth`` writes.

    Raises:
        CheckpointNotFoundError: There is no such file.
        CheckpointError: It is damaged, or of another network.
    """
    tensors = read_tensors(path)
    for part in ("input_layer", "body"):
        hub.load_module(
            encoder.get_submodule(part), tensors, part,
            f"{str(path)!r} must be IR-SE50, as `faceedit convert model_ir_se50.pth` writes it.",
        )  # fmt: skip


def make_encoder(network: type[Network], generator: Generator, recipe: PspRecipe) -> Network:
    """The encoder at the start of a training: of the generator's mean code, and the weights that the recipe names."""
    encoder = network(generator.n_styles, generator.style_dim)
    w = generator.map(torch.randn(_W_SAMPLES, generator.style_dim))
    encoder.latent_mean.copy_(w.mean(0))
    encoder.latent_std.copy_(w.std(0))
    if recipe.init_body:
        load_body(encoder, recipe.init_body)
    if recipe.init:
        load_encoder(encoder, recipe.init)
    return encoder


def prepare(network: type[Network], recipe: PspRecipe, device: torch.device) -> tuple[Network, Judges, Faces]:
    """The encoder, its judges and the photographs that a recipe names."""
    generator = load_generator(recipe.generator)
    encoder = make_encoder(network, generator, recipe).to(device, memory_format=torch.channels_last)
    judges = Judges(
        generator.to(device, torch.bfloat16 if recipe.bf16 else torch.float32, memory_format=torch.channels_last),
        LPIPS.from_file(recipe.lpips).to(device, memory_format=torch.channels_last),
        load_identity(recipe.identity).to(device, memory_format=torch.channels_last) if recipe.identity else None,
        full=not recipe.preview,
    )
    photos = load_faces(recipe.photos, recipe.out / "photos.npy", size=round(judges.side() * MARGIN), margin=MARGIN)
    return encoder, judges, photos


def train(task: PspTask, device: torch.device) -> None:
    """Run a task, and put what it made into a checkpoint once it has come to its last step."""
    recipe, trainer = task.recipe, Trainer(task, task.recipe, device)
    trainer.run()
    if trainer.step >= recipe.steps and recipe.generator.is_dir() and processes.rank() == 0:
        write_checkpoint(recipe, task.encoder.input_size)


def write_checkpoint(recipe: PspRecipe, input_size: int) -> Path:
    """The generator's checkpoint with the run's encoder, in ``checkpoint`` of the run's folder.

    Args:
        recipe: Of a complete run; its generator is a checkpoint folder.
        input_size: Side of the picture that the encoder sees.

    Returns:
        The folder.
    """
    config, tensors = hub.load_checkpoint(recipe.generator)
    made = read_tensors(recipe.out / "encoder.safetensors")
    tensors = {name: value for name, value in tensors.items() if not name.startswith("encoder.")}
    tensors |= {f"encoder.{name}": value for name, value in made.items()}
    shape = {name: list(value) for name, value in sizes(made).items() if name in ("widths", "units")}
    what = f"{recipe.network}, {recipe.steps} steps of {recipe.batch} faces"
    config = replace(
        config,
        encoder=EncoderConfig(recipe.network, input_size, shape),
        provenance=[*config.provenance, {"name": "faceedit.train encoder", "note": what, "used_for": "encoder"}],
    )
    readme = recipe.generator / hub.CARD_FILE
    said = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    card = (
        f"{said}\n## Its own encoder\n\nTrained by `python -m faceedit.train encoder`: {what}. It takes the place of "
        f"any encoder named above. Settings:\n\n```json\n{json.dumps(plain(recipe), indent=2)}\n```\n"
    )
    return hub.save_checkpoint(recipe.out / "checkpoint", config, tensors, card, overwrite=True)


def main(argv: list[str]) -> int:
    """Command line entry; see the module's docstring."""
    recipe = read_recipe(PspRecipe, argv, "encoder", __doc__)
    device = begin(recipe)
    encoder, judges, photos = prepare(GradualStyleEncoder, recipe, device)
    train(PspTask(encoder, judges, recipe, photos), device)
    return 0
