"""pSp's and e4e's trainings with all their parts, at a size at which a step takes a fraction of a second."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from faceedit.models.e4e_encoder import Encoder4Editing
from faceedit.models.ir_se50 import ArcFaceNet
from faceedit.models.psp_encoder import GradualStyleEncoder
from faceedit.models.stylegan2 import StyleGAN2
from faceedit.train.arcface import ArcFace
from faceedit.train.data import Faces
from faceedit.train.e4e import E4eRecipe, E4eTask
from faceedit.train.judges import Judges
from faceedit.train.perceptual import LPIPS
from faceedit.train.psp import PspRecipe, PspTask

SIDE, DIM = 32, 16
BODY = {"widths": (16, 24, 32, 40), "units": (1, 1, 1, 1)}
# Rows 0, 0 and 1, then one more a step, of eight; two penalties in six steps.
E4E = {"rows_start": 1, "rows_every": 1, "discriminator_lr": 1e-3, "pool": 6, "r1_every": 3}


def make_generator() -> StyleGAN2:
    torch.manual_seed(0)
    generator = StyleGAN2(SIDE, style_dim=DIM, mapping_layers=2, channels=(16, 16, 8, 8)).eval()
    generator.mean_latent.copy_(generator.map(torch.randn(500, DIM)).mean(0))
    return generator


def make_encoder(network: str, rows: int = 8) -> GradualStyleEncoder:
    torch.manual_seed(1)
    return {"psp": GradualStyleEncoder, "e4e": Encoder4Editing}[network](rows, DIM, SIDE, **BODY)


@functools.cache
def frozen() -> tuple[LPIPS, ArcFace]:
    torch.manual_seed(2)
    lpips = LPIPS()
    for name, parameter in lpips.named_parameters():
        if name.startswith("lin"):
            parameter.data.fill_(0.1)
    return lpips.eval(), ArcFace(ArcFaceNet(**BODY, dim=16))


def make_photos(n: int = 8) -> Faces:
    """Crops with their margin: soft blots, of another colour each."""
    random = np.random.default_rng(0)
    small = torch.from_numpy(random.uniform(0, 255, (n, 3, 4, 4)))
    crops = torch.nn.functional.interpolate(small, (36, 36), mode="bicubic").clamp(0, 255)
    return Faces(crops.permute(0, 2, 3, 1).byte().numpy(), tuple(map(str, range(n))))


def make_recipe(network: str, out: Path, **settings: Any) -> PspRecipe:
    files = dict.fromkeys(("generator", "photos", "lpips"), out)
    values = {"out": out, "steps": 6, "batch": 3, "held_out": 2, "log_every": 1, "save_every": 100, **settings}
    if network == "psp":
        return PspRecipe(**files, **values)
    return E4eRecipe(**files, **{**E4E, **values})


def make_task(recipe: PspRecipe, identity: bool = False) -> PspTask:
    generator, (lpips, arcface) = make_generator(), frozen()
    judges = Judges(generator, lpips, arcface if identity else None, full=not recipe.preview)
    parts = (make_encoder(recipe.network), judges, recipe, make_photos())
    torch.manual_seed(3)
    return PspTask(*parts) if recipe.network == "psp" else E4eTask(*parts, generator.map)


if __name__ == "__main__":
    # e4e in as many processes as torchrun starts. Batch normalisation sees one share at a time, so it is off.
    import os
    import sys

    from faceedit.train import processes
    from faceedit.train.trainer import Trainer, begin

    recipe = make_recipe("e4e", Path(sys.argv[1]), optimizer="adam", device="cpu")
    device = begin(recipe)
    task = make_task(recipe)
    task.encoder.eval()
    Trainer(task, recipe, device).run()
    processes.leave()
    # PyTorch's threads have been seen to abort at the interpreter's end, after all was written.
    os._exit(0)
