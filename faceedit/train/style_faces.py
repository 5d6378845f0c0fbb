"""The faces that the style branch learns on: generated ones and inverted photographs, unedited."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from faceedit.errors import UsageError
from faceedit.models.encoder import Encoder
from faceedit.models.generator import Generator
from faceedit.train import processes
from faceedit.train.checkpoint import load_generator, save_tensors
from faceedit.train.classifier import AttributeClassifier
from faceedit.train.crops import framed, to_unit
from faceedit.train.data import digest
from faceedit.train.synthetic import generated_faces
from faceedit.train.views import canonical_view

__all__ = ["Classifiers", "StyleFaces", "invert_crops", "load_networks", "look_at"]


class Classifiers(nn.Module):
    """Several attribute classifiers as one: the mean of their logits, on a face and its mirror image.

    Args:
        models: With the same outputs.

    Raises:
        UsageError: There is none, or their outputs differ.
    """

    def __init__(self, models: Sequence[AttributeClassifier]) -> None:
        super().__init__()
        if not models or any(model.names != models[0].names for model in models):
            raise UsageError("classifiers: give at least one, all with the same outputs")
        self.models = nn.ModuleList(models).requires_grad_(False).eval()
        self.names = tuple(models[0].names)

    @classmethod
    def load(cls, paths: Sequence[Path]) -> Classifiers:
        """Read classifier files."""
        return cls([AttributeClassifier.load(path) for path in paths]).to(memory_format=torch.channels_last)

    def forward(self, pictures: Tensor) -> Tensor:
        """FFHQ crops ``(B, 3, R, R)`` in [-1, 1] to logits ``(B, len(names))``, float32."""
        view = canonical_view(pictures.float()).contiguous(memory_format=torch.channels_last)
        both = torch.cat((view, view.flip(3)))
        return torch.stack([model(both).float().unflatten(0, (2, -1)).mean(0) for model in self.models]).mean(0)


def load_networks(
    generator: Path, classifiers: Sequence[Path], device: torch.device
) -> tuple[Generator, Generator, Classifiers]:
    """What faces are made with: the generator as its file has it, a copy that draws, and the classifiers that look.

    The copy is in bfloat16 on the device, whatever that is: what is learned from its pictures is far coarser.
    """
    mapper = load_generator(generator)
    drawing = copy.deepcopy(mapper).to(device, torch.bfloat16, memory_format=torch.channels_last)
    return mapper, drawing, Classifiers.load(classifiers).to(device)


@dataclass(frozen=True, eq=False)
class StyleFaces:
    """Faces to edit.

    Attributes:
        codes: ``(N, n_styles, 512)``.
        pictures: ``(N, S, S, 3)`` uint8, their previews.
        logits: ``(N, K)``, what the classifiers see in these.
    """

    codes: Tensor
    pictures: NDArray[np.uint8]
    logits: Tensor

    def __len__(self) -> int:
        return len(self.codes)


@torch.no_grad()
def invert_crops(
    encoder: Encoder, generator: Generator, crops: NDArray[np.uint8], keep: Path, margin: bool = True
) -> Tensor:
    """Codes of faces by the encoder and its corrections, computed at the first call and kept.

    Args:
        encoder: In evaluation mode.
        generator: Draws what the encoder's corrections look at.
        crops: ``(N, S, S, 3)`` uint8 aligned faces.
        keep: Safetensors file.
        margin: They have the margin of the crops stage.

    Returns:
        ``(N, n_styles, 512)``.
    """
    some = torch.from_numpy(np.array(crops[:: max(1, len(crops) // 16)]))
    networks = (*encoder.state_dict().values(), *generator.state_dict().values())
    key = digest([*networks, torch.tensor(encoder.looks), some])
    with processes.first_alone():
        kept = load_file(keep) if keep.exists() else {}
        if len(kept.get(key, ())) != len(crops):
            kept = {key: _inverted(encoder, generator, crops, margin)}
            save_tensors(kept, keep)
    return kept[key]


def _inverted(encoder: Encoder, generator: Generator, crops: NDArray[np.uint8], margin: bool) -> Tensor:
    codes, size = [], encoder.input_size
    fast = copy.deepcopy(encoder).to(generator.mean_latent.device, torch.bfloat16, memory_format=torch.channels_last)
    for crop in tqdm(crops, desc="inversions", mininterval=5):
        x = framed(to_unit(crop[None]), size) if margin else to_unit(crop[None])
        x = x.to(generator.mean_latent).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        code = fast(x).latents
        for _ in range(encoder.looks):
            code = fast.correct(x, code, generator.preview(code.bfloat16())).float()
        codes.append(code.cpu())
    return torch.cat(codes)


@torch.no_grad()
def look_at(generator: Generator, classifiers: Classifiers, codes: Tensor, keep: Path) -> StyleFaces:
    """Draw faces, kept in the file, and show them to the classifiers."""
    pictures = generated_faces(generator, codes, keep).pictures
    device = generator.mean_latent.device
    logits = [classifiers(to_unit(pictures[i : i + 50]).to(device)) for i in range(0, len(pictures), 50)]
    return StyleFaces(codes, pictures, torch.cat(logits).cpu())
