"""Files of the training: networks in safetensors, trainer state that survives a kill."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from faceedit.models.mobile_stylegan import MobileStyleGAN


def save_tensors(
    tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file in one step: a kill leaves the old file or the new one, never half."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, partial, dict(metadata or {}))
    os.replace(partial, path)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The header's metadata of a safetensors file."""
    with safe_open(str(path), "pt") as file:
        return dict(file.metadata() or {})


def load_generator(path: str | Path) -> MobileStyleGAN:
    """MobileStyleGAN with the weights of ``path``; a file without preview head leaves it untrained."""
    generator = MobileStyleGAN()
    state = load_file(str(path))
    if not any(key.startswith("preview_head.") for key in state):
        state |= {k: v for k, v in generator.state_dict().items() if k.startswith("preview_head.")}
    generator.load_state_dict(state)
    return generator.eval()


def save_state(state: dict, path: str | Path) -> None:
    """Write trainer state (optimizer, step, random states) atomically with ``torch.save``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_state(path: str | Path) -> dict:
    """Read what :func:`save_state` wrote; tensors and plain containers only."""
    return torch.load(path, map_location="cpu", weights_only=True)
