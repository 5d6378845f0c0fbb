"""Files of the training: networks in safetensors, trainer state that survives a kill."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from faceedit import hub
from faceedit.convert.checkpoint import generator_of
from faceedit.errors import CheckpointError, CheckpointNotFoundError
from faceedit.models.encoder import Encoder
from faceedit.models.generator import Generator
from faceedit.models.mobile_stylegan import MobileStyleGAN

log = logging.getLogger(__name__)


def save_tensors(
    tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file in one step: a kill leaves the old file or the new one, never half."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial, dict(metadata or {}))
    with open(partial, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    _names_to_disk(path.parent)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The header's metadata of a safetensors file."""
    with safe_open(str(path), "pt") as file:
        return dict(file.metadata() or {})


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name.

    Raises:
        CheckpointNotFoundError: There is no such file.
        CheckpointError: It is damaged, or of another kind.
    """
    if not Path(path).is_file():
        raise CheckpointNotFoundError(f"There is no {str(path)!r}. Correct the path, or make it first.")
    try:
        return load_file(str(path))
    except SafetensorError as error:
        raise CheckpointError(f"{str(path)!r} is no safetensors file, or damaged ({error}). Make it anew.") from error


def load_generator(path: str | Path) -> Generator:
    """The generator of a checkpoint folder, or MobileStyleGAN with the weights of a safetensors file.

    A file without preview head leaves it untrained.

    Raises:
        CheckpointNotFoundError: There is no such folder or file.
        CheckpointError: It is damaged, or its tensors do not fit.
    """
    if Path(path).is_dir():
        return generator_of(*hub.load_checkpoint(path))
    generator = MobileStyleGAN()
    state = read_tensors(path)
    if not any(key.startswith("preview_head.") for key in state):
        state |= {k: v for k, v in generator.state_dict().items() if k.startswith("preview_head.")}
    advice = "Give MobileStyleGAN as the preview stage writes it, or a checkpoint folder."
    hub.load_module(generator, state, advice=advice)
    return generator.eval()


def load_encoder(encoder: Encoder, path: str | Path) -> None:
    """Fill an encoder from the ``encoder.safetensors`` of a run, or a checkpoint's ``model.safetensors``.

    Raises:
        CheckpointNotFoundError: There is no such file.
        CheckpointError: It is damaged, or its tensors do not fit.
    """
    tensors = read_tensors(path)
    prefix = "encoder" if any(name.startswith("encoder.") for name in tensors) else ""
    hub.load_module(encoder, tensors, prefix, f"{str(path)!r} must be of the same network, for the same generator.")


def save_state(state: dict, path: str | Path) -> None:
    """Write trainer state with ``torch.save``, so that a kill at any moment leaves a whole file.

    The state before stays beside it, as ``<stem>.previous<suffix>``.

    Args:
        state: Tensors and plain containers only.
        path: Of the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        torch.save(state, file)
        os.fsync(file.fileno())
    if path.exists():
        os.replace(path, _previous(path))
    os.replace(partial, path)
    _names_to_disk(path.parent)


def load_state(path: str | Path) -> dict | None:
    """Read the last whole state that :func:`save_state` wrote.

    Returns:
        The state; the one before where the last is damaged or missing; None where there is neither.

    Raises:
        CheckpointError: There are files, and none can be read.
    """
    path, damage = Path(path), None
    for candidate in (path, _previous(path)):
        if not candidate.exists():
            continue
        try:
            return torch.load(candidate, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises many kinds at a damaged file
            log.warning("%s is damaged (%s); looking for the state before it", candidate, error)
            damage = error
    if damage is None:
        return None
    raise CheckpointError(
        f"The training state {str(path)!r} is damaged, and so is the one before it, if there is one. Restore one "
        "of them, or start in another folder."
    ) from damage


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _names_to_disk(folder: Path) -> None:
    """Make renames in a folder last; Windows has no such call and needs none."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
