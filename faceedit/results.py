"""What faceedit hands to its users: inversions, edited faces and whole results."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as encode_tensors
from torch import Tensor

from faceedit import files, images
from faceedit.crop import CropFrame
from faceedit.errors import CheckpointError, CheckpointNotFoundError
from faceedit.images import ImageSource, Picture

__all__ = ["EditResult", "EditedFace", "Inversion"]

_FORMAT = "faceedit-inversion-1"
_TENSORS = ("latents", "drawn", "outline", "eyes", "mouth", "person", "skin", "hair", "crop", "reconstruction")  # saved as they are


@dataclass(frozen=True, eq=False)
class Inversion:
    """One face as the generator's code: make it once, edit it as often as you like.

    Attributes:
        latents: float32 (n_styles, style_dim), the code in W+.
        features: what the content branch keeps of the photograph: maps (channels, S, S), one for each
            level of the generator that is fused, coarsest first; empty without a content branch.
        drawn: float32 (3,P,P) in [0,1], the code as the style branch alone draws it, small: where it is unlike the
            photograph, less of a refined edit is believed. None without a content branch.
        outline: float32 (N,2), (x,y) of the corners of a polygon around the face, up to its brows, in sides of the
            crop from its top left corner: within it every edit is believed. None without a frame net.
        eyes: float32 (2,N,2), the same of what is seen of the eyes, which stay as they are where an edit is none of them.
        mouth: float32 (N,2), the same of what is seen between the lips.
        person: float32 (256,256) in [0,1], where in the crop the person is, with hair and what is worn: beside it
            nothing is edited. None without a person net.
        skin: float32 (256,256) in [0,1], where the face is bare, with eyes, brows and mouth: what lies over it, such as
            hair, no edit takes away. None without a parts net.
        hair: float32 (256,256) in [0,1], where hair is, which keeps its strands when an edit changes its colour. None
            without a parts net.
        crop: float32 (3,S,S) in [0,1], the aligned face as it was; None if it was not kept.
        reconstruction: float32 (3,S,S) in [0,1], the unedited face as the generator gives it, refined if
            there is a content branch; None if it was not made.
        frame: where the crop lies in the upright photograph; None for a face given aligned.
        box: left, top, right and bottom of the face as it was found, in pixels of the upright
            photograph; None if none was looked for.
        index: its place among the faces of the photograph that were inverted together, from 0.
        picture: the photograph, to paste edits back into; None after `load`.
    """

    latents: Tensor
    features: tuple[Tensor, ...] = ()
    drawn: Tensor | None = None
    outline: Tensor | None = None
    eyes: Tensor | None = None
    mouth: Tensor | None = None
    person: Tensor | None = None
    skin: Tensor | None = None
    hair: Tensor | None = None
    crop: Tensor | None = None
    reconstruction: Tensor | None = None
    frame: CropFrame | None = None
    box: tuple[float, float, float, float] | None = None
    index: int = 0
    picture: Picture | None = None

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write everything but the photograph to one safetensors file.

        Args:
            path: where; its folder exists. No suffix is added.
            overwrite: replace a file that is already there.

        Returns:
            The path written.

        Raises:
            OutputExistsError: something is at `path` and `overwrite` is false.
            UsageError: `path` is a folder, or its folder does not exist.
        """
        tensors = {name: getattr(self, name) for name in _TENSORS}
        tensors.update({f"features.{level}": map_ for level, map_ in enumerate(self.features)})
        if self.frame is not None:
            frame = [*self.frame.center, *self.frame.x_axis]
            tensors["frame"] = torch.tensor(frame, dtype=torch.float64)
        if self.box is not None:
            tensors["box"] = torch.tensor(self.box, dtype=torch.float64)
        stored = {
            name: tensor.detach().cpu().contiguous().clone()
            for name, tensor in tensors.items()
            if tensor is not None
        }
        metadata = {"format": _FORMAT, "index": str(self.index)}
        with files.write_whole(path, overwrite) as temporary:
            temporary.write_bytes(encode_tensors(stored, metadata))
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Inversion:
        """Read what `save` wrote; `picture` is None and the tensors are on the CPU.

        Raises:
            CheckpointNotFoundError: there is no file at `path`.
            CheckpointError: the file is truncated, corrupt or no saved inversion.
        """
        path = Path(path)
        if not path.is_file():
            raise CheckpointNotFoundError(f"There is no file {str(path)!r}. Check the path.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise CheckpointError(
                f"{str(path)!r} is truncated or corrupt ({error}). Invert the picture again."
            ) from error
        if metadata.get("format") != _FORMAT or "latents" not in tensors:
            raise CheckpointError(
                f"{str(path)!r} is no inversion that this release can read (format "
                f"{metadata.get('format')!r}, not {_FORMAT!r}). Pass a file that Inversion.save "
                "wrote."
            )
        levels = sum(name.startswith("features.") for name in tensors)
        frame, box = tensors.get("frame"), tensors.get("box")
        if frame is not None:
            center_x, center_y, axis_x, axis_y = frame.tolist()
            frame = CropFrame((center_x, center_y), (axis_x, axis_y))
        return cls(
            features=tuple(tensors[f"features.{level}"] for level in range(levels)),
            **{name: tensors[name] for name in _TENSORS if name in tensors},
            frame=frame,
            box=None if box is None else tuple(box.tolist()),
            index=int(metadata["index"]),
        )


@dataclass(frozen=True, eq=False)
class EditedFace:
    """One face of a result, with what was done to it.

    Attributes:
        crop: float32 (3,S,S) in [0,1], the aligned face as it was.
        output: float32 (3,S,S) in [0,1], the crop after the edit, as it is pasted into the photograph.
        edited: float32 (3,S,S) in [0,1], the style branch's picture, x_edit = G(w + d) of the paper; None
            if the edit was refined and not explained.
        refined: float32 (3,S,S) in [0,1], the fused pass, x_refine of the paper; None without refining.
        reconstruction: float32 (3,S,S) in [0,1], the unedited face drawn in the same way: refined, if
            the edit was.
        mask: float32 (S,S) in [0,1], where `output` differs from `crop`; 0 where it does not.
        relevance: float32 (S_i,S_i) in [0,1] for each fused level, coarsest first: near 1 where the
            photograph's content stays, near 0 where the edit rules. Empty without refining, and where
            nothing was edited.
        frame: as `Inversion.frame`.
        latents: float32 (n_styles, style_dim), the edited code.
        strengths: attribute to strength, as they were asked for.
        applied: attribute to strength in lengths of its direction: `strengths` times this face's steps, where
            the checkpoint has a latent classifier.
    """

    crop: Tensor
    output: Tensor
    edited: Tensor | None
    refined: Tensor | None
    reconstruction: Tensor
    mask: Tensor
    relevance: tuple[Tensor, ...]
    frame: CropFrame | None
    latents: Tensor
    strengths: Mapping[str, float]
    applied: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class EditResult:
    """An edited picture.

    Attributes:
        image: the whole picture, in the type in which it was given (see `faceedit.images`).
        faces: the faces that were edited, in the order of their indices.
    """

    image: Any
    faces: tuple[EditedFace, ...] = ()

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write the picture to a file; see `faceedit.images.save` for formats and errors."""
        image: ImageSource = self.image
        return images.save(image, path, overwrite)
