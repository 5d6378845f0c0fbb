"""Tell what a foreign file is from what is in it, not from its name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from faceedit.convert import directions, stylespace, unpickle
from faceedit.convert.builders import Record
from faceedit.errors import CheckpointNotFoundError, ConversionError, UsageError

__all__ = ["DIRECTIONS", "ENCODERS", "FORMATS", "GENERATORS", "Source", "recognise", "sha256"]

FORMATS: Mapping[str, str] = {
    "rosinality": "StyleGAN2 in rosinality's layout, such as stylegan2-ffhq-config-f.pt",
    "nvidia": "StyleGAN2 as NVIDIA's PyTorch repositories pickle it (.pkl)",
    "psp": "a pSp checkpoint, such as psp_ffhq_encode.pt",
    "e4e": "an e4e checkpoint, such as e4e_ffhq_encode.pt",
    "arcface": "ArcFace's IR-SE50, model_ir_se50.pth",
    "interfacegan": "an InterFaceGAN boundary, (1, 512), .npy or .pt",
    "ganspace": "GANSpace's components, such as ffhq_pca.pt or its .npz",
    "latents": "an offset in W+, (18, 512), .npy or .pt, as from StyleCLIP",
    "stylespace": "a list of StyleSpace channels, text or JSON",
    "mobile-stylegan": "MobileStyleGAN as the PyPI package random-face carries it, wheel or folder",
}
"""Every format that is read, and what it is called in messages."""

GENERATORS = ("rosinality", "nvidia", "psp", "e4e")
ENCODERS = ("psp", "e4e")
DIRECTIONS = ("interfacegan", "ganspace", "latents", "stylespace")

_ROSINALITY = ("conv1.conv.weight", "to_rgb1.conv.weight", "style.1.weight")
_ARCFACE = ("input_layer.0.weight", "body.0.res_layer.1.weight", "output_layer.3.weight")


@dataclass(frozen=True)
class Source:
    """A foreign file that was read.

    Attributes:
        path: where it is.
        kind: which of `FORMATS`. pSp and e4e files look alike: it is "psp" for both, unless the
            caller said which; `faceedit.convert.psp` tells them apart by their options.
        content: what it holds, as its converter takes it.
        sha256: of the file; "" for a folder.
        said: the kind that the caller named, if any.
    """

    path: Path
    kind: str
    content: Any
    sha256: str
    said: str | None = None

    @property
    def label(self) -> str:
        """The format in a few words."""
        return FORMATS[self.kind].partition(",")[0]

    @property
    def provenance(self) -> dict[str, str]:
        """What config.json says of it: no path, which would be one machine's."""
        return {"file": self.path.name, "sha256": self.sha256, "format": self.label}


def recognise(path: str | os.PathLike[str], kind: str | None = None) -> Source:
    """Read a file and tell what it is.

    Args:
        path: the file; a folder for MobileStyleGAN's data files.
        kind: the format, where it is known beforehand. The file must look like it.

    Raises:
        CheckpointNotFoundError: nothing is there.
        ConversionError: the file cannot be read, or looks like none of the formats, or not like
            `kind`; the message says what was seen.
    """
    path = Path(path)
    if kind is not None and kind not in FORMATS:
        raise UsageError(f"There is no format {kind!r}; known are {', '.join(FORMATS)}.")
    if not path.exists():
        raise CheckpointNotFoundError(f"There is no file {str(path)!r}. Check the path.")
    if path.is_dir() or path.suffix.lower() == ".whl":
        return Source(path, _agreed("mobile-stylegan", kind, path), path, "" if path.is_dir() else sha256(path))
    if stylespace.looks_like(path):
        return Source(path, _agreed("stylespace", kind, path), stylespace.read(path), sha256(path))
    content = unpickle.read(path)
    found = _kind(content)
    if found is None:
        known = "; ".join(FORMATS.values())
        raise ConversionError(f"{str(path)!r} holds {describe(content)}, which is none of the known formats: {known}.")
    return Source(path, _agreed(found, kind, path), content, sha256(path), kind)


def _kind(content: Any) -> str | None:
    """The format by what the file holds."""
    if directions.is_components(content):
        return "ganspace"
    if directions.is_boundary(content):
        return "interfacegan"
    if directions.is_latents(content):
        return "latents"
    if not isinstance(content, Mapping):
        return None
    if isinstance(content.get("G_ema"), Record):
        return "nvidia"
    if isinstance(content.get("g_ema"), Mapping) or _has(content, _ROSINALITY):
        return "rosinality"
    if isinstance(content.get("state_dict"), Mapping):
        prefixes = {str(key).partition(".")[0] for key in content["state_dict"]}
        return "psp" if "encoder" in prefixes else None
    return "arcface" if _has(content, _ARCFACE) else None


def _has(content: Mapping[str, Any], names: Iterable[str]) -> bool:
    return all(isinstance(content.get(name), Tensor) for name in names)


def _agreed(found: str, asked: str | None, path: Path) -> str:
    if asked is None or found == asked or {found, asked} <= set(ENCODERS):
        return asked or found
    raise ConversionError(f"{str(path)!r} is {FORMATS[found]}, and it was said to be {FORMATS[asked]}.")


def describe(content: Any) -> str:
    """What was seen in a file, in a few words."""
    if isinstance(content, (Tensor, np.ndarray)):
        return f"one array of shape {tuple(content.shape)}"
    if isinstance(content, Mapping):
        keys = [str(key)[:40] for key in list(content)[:8]]
        rest = f" and {len(content) - 8} more" if len(content) > 8 else ""
        return f"a dictionary with {', '.join(map(repr, keys))}{rest}" if keys else "an empty dictionary"
    return f"a {type(content).__name__}"


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
