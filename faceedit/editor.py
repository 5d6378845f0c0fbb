"""`FaceEditor`: a photograph in, the same photograph with one thing changed out."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Union

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from faceedit import crop as crops
from faceedit import faces as finder
from faceedit import hub, images
from faceedit.blend import compose, face_parts
from faceedit.config import AttributeInfo, FusionConfig, LatentClassifierConfig, ModelConfig
from faceedit.crop import CropFrame
from faceedit.directions import PREFIX, Directions
from faceedit.errors import CheckpointError, ConfigError, FaceEditError, FaceSelectionError, NoFaceError, UsageError
from faceedit.faces import Face, FaceChoice
from faceedit.images import ImageSource, Picture
from faceedit.models.e4e_encoder import Encoder4Editing
from faceedit.models.efficientnet_encoder import EfficientNetEncoder
from faceedit.models.encoder import Encoder, resized
from faceedit.models.frame_net import FrameNet
from faceedit.models.fusion import FusionContent, FusionGenerator
from faceedit.models.generator import Generator
from faceedit.models.latent_classifier import LatentClassifier
from faceedit.models.mobile_stylegan import MobileStyleGAN
from faceedit.models.parts_net import PartsNet
from faceedit.models.person_net import PersonNet
from faceedit.models.psp_encoder import GradualStyleEncoder
from faceedit.models.stylegan2 import StyleGAN2
from faceedit.results import EditedFace, EditResult, Inversion

__all__ = ["FaceEditor"]

Progress = Callable[[int, int, float], None]
"""Called as ``progress(step, steps, loss)`` after every step of optimisation."""

_GENERATORS: Mapping[str, type[Generator]] = {"mobile_stylegan": MobileStyleGAN, "stylegan2": StyleGAN2}
_ENCODERS: Mapping[str, type[Encoder]] = {
    "efficientnet_lite": EfficientNetEncoder,
    "psp": GradualStyleEncoder,
    "e4e": Encoder4Editing,
}

_Found = tuple[Picture, Union[CropFrame, None], Union[Face, None]]
"""A face that was found: its picture, its frame (None: the whole picture) and its detection."""


def _on_cpu(method: Callable) -> Callable:
    """The method, whatever `torch.set_default_device` says: pictures are on the CPU, networks where they were put."""

    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        cpu = torch.device("cpu")
        with contextlib.nullcontext() if torch.get_default_device() == cpu else cpu:
            return method(*args, **kwargs)

    return wrapped


class _Fused(NamedTuple):
    """A picture ``(3, S, S)`` in [0, 1] and the relevance maps of its pass, on the CPU."""

    image: Tensor
    relevance: tuple[Tensor, ...]


_EMPHASIS = 0.4  # what is added in the face of a refined edit's change of brightness, which is less than the style branch's
_REFINE_LR = 0.05  # Adam's step, in standard deviations of W
_REFINE_PULL = 2e-3  # weight of the pull towards the encoder's code; keeps the code editable


class FaceEditor:
    """Edits the faces of photographs; made by `from_pretrained`.

    An editor never changes after it is made and may be used from several threads at once.

    Args:
        config: What the networks are.
        generator: Renders W+ codes.
        encoder: Aligned face to W+ code.
        frame_net: Finds a face's crop frame in its detector box; None needs landmarks or crops.
        directions: The attributes that can be edited.
        fusion: Content branch and relevance maps on this generator and encoder; None edits by the
            style branch alone.
        latent_classifier: Tells how long a step of strength 1 is for each face; None takes the directions' own length.
        person_net: Finds the person in a crop, beside whom nothing is edited; None: edits may show anywhere in the crop.
        parts_net: Finds bare face and hair, from this encoder's features; None: edits may show through hair over a face, and
            hair does not change its colour.
        readme: The checkpoint's model card, carried along by `save_pretrained`.
    """

    def __init__(
        self,
        config: ModelConfig,
        generator: Generator,
        encoder: Encoder,
        frame_net: FrameNet | None,
        directions: Directions,
        readme: str = "",
        fusion: FusionGenerator | None = None,
        latent_classifier: LatentClassifier | None = None,
        person_net: PersonNet | None = None,
        parts_net: PartsNet | None = None,
    ) -> None:
        self._config = config
        self._generator = generator.eval().requires_grad_(False)
        self._encoder = encoder.eval().requires_grad_(False)
        self._frame_net = frame_net.eval().requires_grad_(False) if frame_net is not None else None
        self._fusion = fusion.eval().requires_grad_(False) if fusion is not None else None
        self._latent_classifier = None if latent_classifier is None else latent_classifier.eval().requires_grad_(False)
        self._person_net = person_net.eval().requires_grad_(False) if person_net is not None else None
        self._parts_net = parts_net.eval().requires_grad_(False) if parts_net is not None else None
        self._directions = directions
        self._readme = readme

    # --- loading and saving -----------------------------------------------------------------

    @classmethod
    @_on_cpu
    @torch.inference_mode(False)  # weights made in it could never take part in a backward pass, as `steps` needs
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> FaceEditor:
        """Load a checkpoint.

        Args:
            name_or_path: None for the checkpoint inside the package, which needs no network; a
                folder; or a Hugging Face Hub id, "owner/name".
            revision: Branch, tag or commit of a Hub repository.
            token: For private or gated repositories.
            cache_dir: Where downloads are kept.
            local_files_only: Use only what was downloaded before.
            force_download: Download again.
            device: Such as "cuda" or "mps"; None means the CPU.
            dtype: Of the networks; None means float32.

        Raises:
            CheckpointNotFoundError: Neither a folder nor a repository is there.
            CheckpointError: A file is damaged, or a tensor is missing, unknown or mis-shaped.
            ConfigError: config.json has an unknown or missing key.
            DownloadError: The Hub refused or could not be reached.
            UsageError: The device or dtype cannot be used.
        """
        folder = hub.resolve(
            name_or_path, revision=revision, token=token, cache_dir=cache_dir,
            local_files_only=local_files_only, force_download=force_download,
        )
        config, tensors = hub.load_checkpoint(folder)
        if config.encoder is None:
            raise ConfigError(f"The checkpoint {str(folder)!r} has no encoder, so it cannot edit photographs.")
        generator = _build(_GENERATORS, config.generator.name, config.generator.options)
        encoder = _build(
            _ENCODERS, config.encoder.name,
            {"n_styles": generator.n_styles, "style_dim": generator.style_dim,
             "input_size": config.encoder.input_size, **config.encoder.options},
        )
        frame_net = None if config.crop.frame_net is None else _build({"frame_net": FrameNet}, "frame_net", config.crop.frame_net)
        options = config.crop.person_net
        person_net = None if options is None else _build({"person_net": PersonNet}, "person_net", options)
        options = config.crop.parts_net
        parts_net = None if options is None else _build(
            {"parts_net": PartsNet}, "parts_net",
            {"channels": encoder.feature_channels, "sizes": encoder.feature_sizes, **options},
        )  # fmt: skip
        fusion = None if config.fusion is None else _build(
            {"fusion": FusionGenerator}, "fusion",
            {"generator": generator, "encoder": encoder, "attributes": config.fusion.attributes, **config.fusion.options},
        )  # fmt: skip
        known = config.latent_classifier
        latent_classifier = None if known is None else _build(
            {"latent_classifier": LatentClassifier}, "latent_classifier",
            {"attributes": known.attributes, "style_dim": generator.style_dim, **known.options},
        )  # fmt: skip
        networks = {
            "generator": generator, "encoder": encoder, "frame_net": frame_net, "fusion": fusion,
            "latent_classifier": latent_classifier, "person_net": person_net, "parts_net": parts_net,
        }  # fmt: skip
        networks = {prefix: module for prefix, module in networks.items() if module is not None}
        unknown = [name for name in tensors if name.partition(".")[0] not in {*networks, "directions"}]
        if unknown:
            raise CheckpointError(f"The checkpoint {str(folder)!r} has unknown tensors: {', '.join(unknown[:5])}.")
        for prefix, module in networks.items():
            hub.load_module(module, tensors, prefix)
        directions = Directions.from_tensors(
            {name: tensor.float() for name, tensor in tensors.items() if name.startswith(PREFIX)},
            {"attributes": [
                {"name": name, "aliases": info.aliases, "range": info.range,
                 "description": info.description, "success": info.success}
                for name, info in config.attributes.items()
            ], "generator": config.generator.name},
            (generator.n_styles, generator.style_dim),
        )
        readme = folder / "README.md"
        text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
        editor = cls(
            config, generator, encoder, frame_net, directions, text, fusion, latent_classifier, person_net, parts_net
        )
        return editor.to(device, dtype)

    def save_pretrained(
        self, folder: str | Path, *, overwrite: bool = False, dtype: torch.dtype = torch.float16
    ) -> Path:
        """Write a checkpoint folder that `from_pretrained` and the Hub take.

        Args:
            folder: Where; made if need be.
            overwrite: Replace a checkpoint that is already there.
            dtype: Of the stored tensors.

        Returns:
            The folder.

        Raises:
            OutputExistsError: A checkpoint is there and ``overwrite`` is false.
        """
        tensors = self._directions.to_tensors()
        modules = {
            "generator": self._generator, "encoder": self._encoder, "frame_net": self._frame_net, "fusion": self._fusion,
            "latent_classifier": self._latent_classifier, "person_net": self._person_net,
            "parts_net": self._parts_net,
        }  # fmt: skip
        for prefix, module in modules.items():
            if module is not None:
                tensors |= {f"{prefix}.{name}": value for name, value in module.state_dict().items()}
        return hub.save_checkpoint(folder, self._config, tensors, self._readme, overwrite=overwrite, dtype=dtype)

    @torch.inference_mode(False)
    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> FaceEditor:
        """The same editor on another device or in another floating-point type.

        Args:
            device: None keeps it.
            dtype: None keeps it; float32, bfloat16, or float16 (not on the CPU).

        Raises:
            UsageError: The device is not there, or the dtype does not suit it.
        """
        device = self.device if device is None else _device(device)
        dtype = self.dtype if dtype is None else dtype
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise UsageError(f"dtype must be torch.float32, bfloat16 or float16, not {dtype!r}")
        if dtype == torch.float16 and device.type == "cpu":
            raise UsageError("float16 is slow and inexact on the CPU: use torch.float32 or torch.bfloat16")

        def moved(module: Any) -> Any:
            # Depthwise and 1x1 convolutions are fastest with channels last, on every device.
            return copy.deepcopy(module).to(device, dtype, memory_format=torch.channels_last)

        generator, fusion = moved(self._generator), None
        if self._fusion is not None:
            # Its copy draws with the generator's copy.
            fusion = copy.deepcopy(self._fusion, {id(self._generator): generator})
            fusion = fusion.to(device, dtype, memory_format=torch.channels_last)
        # The nets that look at crops as they are cut, and the latent classifier, which looks at codes, stay on the CPU.
        return self._with(generator=generator, encoder=moved(self._encoder), fusion=fusion)

    def _with(self, **changes: Any) -> FaceEditor:
        """The same editor with other parts, named as in the constructor."""
        parts = (
            "config", "generator", "encoder", "frame_net", "directions", "readme", "fusion", "latent_classifier",
            "person_net", "parts_net",
        )  # fmt: skip
        return FaceEditor(**{part: changes.get(part, getattr(self, f"_{part}")) for part in parts})

    def load_directions(self, directions: str | Path | Directions, *, replace: bool = False) -> FaceEditor:
        """The same editor with more attributes; this one stays as it is.

        Strength 1 of the new attributes is the length of their directions, the same for every face.

        Args:
            directions: A file written by `python -m faceedit.train fit-directions` or by
                `Directions.save`; or the directions themselves.
            replace: Where a name is taken already, it means the new direction from now on.

        Returns:
            An editor that edits, lists and saves the new attributes along with its own.

        Raises:
            CheckpointNotFoundError: There is no such file.
            CheckpointError: The file is damaged or of another format.
            UsageError: The directions are of another generator, or a name is taken and `replace`
                is false.
        """
        if isinstance(directions, Directions):
            added, what = directions, "these directions"
        else:
            added, what = Directions.load(directions), repr(str(directions))
        own = self._directions
        if added.shape != own.shape:
            raise UsageError(
                f"{what} moves codes of {added.shape[0]} rows of {added.shape[1]} numbers, made for the generator "
                f"{added.generator or '(its name is not in the file)'}; this editor's is {self._config.generator.name}, "
                f"with {own.shape[0]} rows of {own.shape[1]}. Fit the directions with this checkpoint"
            )
        try:
            merged = own.merge(added.to("cpu", torch.float32), replace=replace)
        except UsageError as error:
            raise UsageError(
                f"{what} cannot be added: {error}. Pass replace=True to give those names to the new directions, "
                "or save them under other names"
            ) from None
        known, new = {own.resolve(name): info for name, info in self.attributes.items()}, added.attributes
        attributes = {
            name: new[name] if name in new else dataclasses.replace(known[name], aliases=merged.aliases[name])
            for name in merged.names
        }
        editor = self._with(config=dataclasses.replace(self._config, attributes=attributes), directions=merged)
        if self._fusion is not None and (gone := set(new) & set(self._config.fusion.attributes)):
            # Their content directions go with what the old ones changed.
            left = tuple(name for name in self._config.fusion.attributes if name not in gone)
            config = dataclasses.replace(self._config.fusion, attributes=left)
            editor = editor.with_fusion(self._fusion.without(gone), config)
        classifier = self._latent_classifier
        if classifier is None or not set(new) & set(classifier.attributes):
            return editor
        # It learned how far faces are from an attribute along the old directions.
        known = set(classifier.attributes) - set(new)
        return editor.with_latent_classifier(classifier.without(new) if known else None)

    def with_fusion(self, fusion: FusionGenerator | None, config: FusionConfig | None) -> FaceEditor:
        """The same editor with another content branch, or none; this one stays as it is.

        Args:
            fusion: On this editor's generator and encoder.
            config: What config.json is to say of it.
        """
        return self._with(config=dataclasses.replace(self._config, fusion=config), fusion=fusion)

    def with_latent_classifier(self, classifier: LatentClassifier | None) -> FaceEditor:
        """The same editor with another latent classifier; this one stays as it is.

        Args:
            classifier: Of this editor's generator and directions. None: strength 1 is the length of the directions,
                the same for every face.
        """
        config = None if classifier is None else LatentClassifierConfig(classifier.attributes, classifier.options)
        return self._with(
            config=dataclasses.replace(self._config, latent_classifier=config), latent_classifier=classifier
        )

    # --- what it is -------------------------------------------------------------------------

    @property
    def config(self) -> ModelConfig:
        """What the checkpoint says of itself."""
        return self._config

    @property
    def attributes(self) -> Mapping[str, AttributeInfo]:
        """Attribute to its aliases, tested range, licence and description."""
        return self._config.attributes

    @property
    def directions(self) -> Directions:
        """The attributes' directions in W+."""
        return self._directions

    @property
    def generator(self) -> Generator:
        """The frozen generator, shared by everything that uses this editor."""
        return self._generator

    @property
    def encoder(self) -> Encoder:
        """The frozen encoder, shared by everything that uses this editor."""
        return self._encoder

    @property
    def fusion(self) -> FusionGenerator | None:
        """Content branch and relevance maps; None where edits are by the style branch alone."""
        return self._fusion

    @property
    def latent_classifier(self) -> LatentClassifier | None:
        """Tells how long a step is for each face; None where strength 1 is the same length for all."""
        return self._latent_classifier

    @property
    def resolution(self) -> int:
        """Side in pixels of the aligned face that is edited."""
        return self._generator.resolution

    @property
    def device(self) -> torch.device:
        """Where the networks run."""
        return self._generator.mean_latent.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the networks."""
        return self._generator.mean_latent.dtype

    def __repr__(self) -> str:
        return f"FaceEditor({self._config.generator.name}, {', '.join(self.attributes)}; {self.device}, {self.dtype})"

    # --- inverting --------------------------------------------------------------------------

    @_on_cpu
    def invert(
        self,
        image: ImageSource,
        *,
        faces: FaceChoice = "largest",
        aligned: bool = False,
        landmarks: ArrayLike | None = None,
        landmark_predictor: str | Path | None = None,
        steps: int = 0,
        progress: Progress | None = None,
        reconstruct: bool = True,
    ) -> Inversion | list[Inversion]:
        """Find the generator's code of a face, once; then `edit` it as often as you like.

        Args:
            image: A photograph of any accepted kind, see `faceedit.images`.
            faces: "largest", "all", an index (0 is the largest), or boxes (x0, y0, x1, y1).
            aligned: The picture is an FFHQ-aligned crop already: look for no face.
            landmarks: (68, 2) or (5, 2) points of one face, in place of detection.
            landmark_predictor: A dlib 68-point file of your own, in place of our frame net.
            steps: Improve the code by so many steps of optimisation; 50 take some seconds.
            progress: Called after every step of optimisation.
            reconstruct: Also draw the unedited face, refined if the checkpoint has a content branch;
                without it, `reconstruction` is None and a generator pass is saved.

        Returns:
            An `Inversion`; a list of them for "all" or boxes.

        Raises:
            ImageError: The picture cannot be used.
            NoFaceError: There is no face.
            FaceSelectionError: The index or box is of no face.
            UsageError: Arguments contradict each other.
        """
        choice = (faces, aligned, landmarks, landmark_predictor)
        inversions = self._invert(self._find(images.read(image), *choice), steps, progress, reconstruct)
        several = faces == "all" if isinstance(faces, str) else not isinstance(faces, int)
        return inversions if several and not aligned and landmarks is None else inversions[0]

    def _find(
        self,
        picture: Picture,
        faces: FaceChoice,
        aligned: bool,
        landmarks: ArrayLike | None = None,
        landmark_predictor: str | Path | None = None,
    ) -> list[_Found]:
        """Everything that is to be edited in a picture."""
        if aligned and (landmarks is not None or landmark_predictor is not None):
            raise UsageError("aligned=True says that the picture is the crop: give no landmarks with it")
        pixels = picture.pixels
        if aligned:
            CropFrame.whole(pixels.shape[1], pixels.shape[0])  # refuses a picture that is not square
            return [(picture, None, None)]
        if landmarks is not None:
            return [(picture, crops.frame_from_landmarks(landmarks), None)]
        try:
            found = finder.find(pixels, faces)
        except (NoFaceError, FaceSelectionError) as error:
            raise type(error)(f"{picture.name}: {error}") from None
        if landmark_predictor is not None:
            return [
                (picture, crops.frame_from_landmarks(finder.landmarks(pixels, face.box, landmark_predictor)), face)
                for face in found
            ]
        if self._frame_net is None:
            raise UsageError("this checkpoint has no frame net: give landmarks, a landmark_predictor or aligned=True")
        return [(picture, CropFrame(*self._frame_net.predict(pixels, face.box)), face) for face in found]

    def _invert(
        self,
        faces: Sequence[_Found],
        steps: int,
        progress: Progress | None = None,
        reconstruct: bool = True,
    ) -> list[Inversion]:
        """Encode all faces in one batch, refine and reconstruct each."""
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise UsageError(f"steps must be a whole number from 0, not {steps!r}")
        size = self.resolution
        targets = torch.stack([
            crops.extract(picture.pixels, frame or CropFrame.whole(*picture.pixels.shape[1::-1]), size)
            for picture, frame, _ in faces
        ])
        with torch.no_grad():
            inputs = (targets.to(self.device) * 2 - 1).to(self.dtype)
            encoding = self._encoder(inputs)
            latents = encoding.latents.float()
            for _ in range(self._encoder.looks):
                seen = self._render(latents, preview=True).to(inputs) * 2 - 1
                latents = self._encoder.correct(inputs, latents, seen).float()
        if steps:
            latents = self._refine(latents, targets, steps, progress)
        contents = self._content(inputs, encoding.features, latents)
        parts = [(None, None)] * len(faces) if self._parts_net is None else self._parts_net.find(encoding.features)
        pictures: list[Tensor | None] = [None] * len(faces)
        if reconstruct:
            pictures = [
                self._render(code[None])[0] if not maps else self._render_fused(maps, code, {}).image
                for code, (maps, _) in zip(latents, contents)
            ]
        outlines = [(None,) * 3 if self._frame_net is None else self._frame_net.outlines(target) for target in targets]
        if len(faces) > 1:
            # Each face's own: a part of the batch would keep all of it in memory.
            targets = [target.clone() for target in targets]
            parts = [tuple(part if part is None else part.clone() for part in each) for each in parts]
        return [
            Inversion(
                latents=latents[i].cpu(),
                features=contents[i].maps,
                drawn=contents[i].drawn,
                outline=outlines[i][0],
                eyes=outlines[i][1],
                mouth=outlines[i][2],
                person=None if self._person_net is None else self._person_net.find(targets[i]),
                skin=parts[i][0],
                hair=parts[i][1],
                crop=targets[i],
                reconstruction=pictures[i],
                frame=frame,
                box=None if face is None else face.box,
                index=sum(other is picture for other, _, _ in faces[:i]),
                picture=picture,
            )
            for i, (picture, frame, face) in enumerate(faces)
        ]

    @torch.inference_mode(False)  # whatever the caller has switched off, refining needs gradients
    @torch.enable_grad()
    def _refine(self, latents: Tensor, targets: Tensor, steps: int, progress: Progress | None) -> Tensor:
        """Move codes so that their previews match the targets in L2, not far from where they start."""
        start = latents.detach().clone()
        scale = self._encoder.latent_std.float()
        move = torch.zeros_like(start, requires_grad=True)
        optimizer = torch.optim.Adam([move], lr=_REFINE_LR, betas=(0.9, 0.99))
        wanted: Tensor | None = None
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = _REFINE_LR * min(1.0, (step + 1) / 5, 2 * (steps - step) / steps)
            optimizer.zero_grad()
            total = 0.0
            for i in range(len(start)):  # one face at a time bounds the memory
                seen = self._generator.preview((start[i : i + 1] + scale * move[i : i + 1]).to(self.dtype)).float()
                if wanted is None:
                    wanted = F.interpolate(targets.to(seen), seen.shape[-2:], mode="area") * 2 - 1
                difference = seen - wanted[i : i + 1]
                loss = difference.square().mean() + _REFINE_PULL * move[i].square().mean()
                loss.backward()
                total += loss.item()
            optimizer.step()
            if progress is not None:
                progress(step + 1, steps, total / len(start))
        return (start + scale * move).detach()

    @torch.no_grad()
    def _render(self, latents: Tensor, preview: bool = False) -> Tensor:
        """Codes ``(B, n_styles, 512)`` to pictures ``(B, 3, S, S)`` in [0, 1], float32 on the CPU."""
        draw = self._generator.preview if preview else self._generator
        # On a CPU one face at a time is faster: its feature maps stay in the cache.
        chunk = 1 if self.device.type == "cpu" else 8
        return torch.cat([_picture(draw(part)) for part in latents.to(self.device, self.dtype).split(chunk)])

    @torch.no_grad()
    def _content(self, inputs: Tensor, features: Sequence[Tensor], latents: Tensor) -> list[FusionContent]:
        """What edits need of each face for refining, without batch axis, float32 on the CPU, pictures in [0, 1];
        nothing without a content branch."""
        if self._fusion is None:
            return [FusionContent((), None)] * len(inputs)
        photos, codes = resized(inputs, self._fusion.content.photo_size), latents.to(self.device, self.dtype)
        found = []
        for i in range(len(inputs)):  # one face at a time bounds the memory
            one = slice(i, i + 1)
            maps, drawn = self._fusion.encode(photos[one], [level[one] for level in features], codes[one])
            maps = tuple(level[0].float().cpu() for level in maps)
            found.append(FusionContent(maps, None if drawn is None else _picture(drawn)[0]))
        return found

    @torch.no_grad()
    def _render_fused(
        self, content: Sequence[Tensor], latents: Tensor, strengths: Mapping[str, float], preview: bool = False,
        parts: Tensor | None = None,
    ) -> _Fused:  # fmt: skip
        """One code ``(n_styles, 512)`` to its refined picture ``(3, S, S)`` in [0, 1] and relevance maps ``(S_i, S_i)``."""
        maps = [level[None].to(self.device, self.dtype) for level in content]
        image, relevance = self._fusion(maps, latents[None].to(self.device, self.dtype), [strengths], preview, parts)
        return _Fused(_picture(image)[0], tuple(m[0, 0].float().cpu() for m in relevance))

    # --- editing ----------------------------------------------------------------------------

    @_on_cpu
    def edit(
        self,
        image: ImageSource | Inversion | Sequence[Inversion],
        strengths: Mapping[str, float] | None = None,
        *,
        faces: FaceChoice = "largest",
        aligned: bool = False,
        landmarks: ArrayLike | None = None,
        landmark_predictor: str | Path | None = None,
        steps: int = 0,
        progress: Progress | None = None,
        preview: bool = False,
        refine: bool = True,
        explain: bool = False,
        return_result: bool = False,
        **attributes: float,
    ) -> Any:
        """Edit the faces of a photograph; everything else stays as it is.

        ``editor.edit("portrait.jpg", smile=1.0, age=-0.5)``

        Args:
            image: A photograph of any accepted kind; or what `invert` returned, which costs only
                one generator pass a face.
            strengths: Attribute to strength; 1.0 is one clearly visible step, -1.0 one the other way. A step is as long as
                this face needs: see `LatentClassifier`.
            faces, aligned, landmarks, landmark_predictor, steps, progress: As for `invert`; not with an inversion,
                which has all that already.
            preview: Use the generator's quarter-size early exit: several times faster, softer, and with
                refining rougher in colour, for content maps are learned on the full pass.
            refine: Let the content branch carry the photograph's own detail through the edit (section
                3.2 of the paper); without it, or in a checkpoint that has none, the style branch edits
                alone.
            explain: Also draw the style branch's own picture, for `EditedFace.edited`; one more pass.
            return_result: Return an `EditResult` with crops and details.
            **attributes: More strengths, by name.

        Returns:
            The whole photograph, in the type in which it was given (a path, bytes or a file gives a
            PIL image, which `save` writes with the photograph's profile and EXIF), or an
            `EditResult`. An inversion without its photograph (one read from a file) gives the edited
            aligned face.

        Raises:
            UnknownAttributeError: There is no such attribute.
            StrengthError: A strength is not a finite number.
            ImageError, NoFaceError, FaceSelectionError, UsageError: As `invert`.
        """
        wanted = self._strengths(strengths, attributes)
        inversions = _inversions(image)
        if inversions is None:
            found = self._find(images.read(image), faces, aligned, landmarks, landmark_predictor)
            inversions = self._invert(found, steps, progress, reconstruct=not preview and (refine or not self._fusion))
        elif aligned or landmarks is not None or landmark_predictor is not None or steps or not _is_largest(faces):
            raise UsageError(
                "an inversion has its face and its code already: give faces, aligned, landmarks and steps to invert"
            )
        result = self._edit(inversions, wanted, preview, refine, explain)
        return result if return_result else result.image

    @_on_cpu
    def edit_batch(
        self,
        images_: Iterable[ImageSource],
        strengths: Mapping[str, float] | None = None,
        *,
        faces: FaceChoice = "largest",
        aligned: bool = False,
        steps: int = 0,
        refine: bool = True,
        return_result: bool = False,
        **attributes: float,
    ) -> list[Any]:
        """Edit several photographs; the faces of all of them go through the networks together.

        Args:
            images_: Photographs, or one batch: tensor (B,3,H,W) or ndarray (B,H,W,3).
            strengths, faces, aligned, steps, refine, return_result, **attributes: As for `edit`.

        Returns:
            One result for each photograph, in order.

        Raises:
            FaceEditError: As `edit`; the message names the photograph. Nothing is returned then.
        """
        wanted = self._strengths(strengths, attributes)
        pictures = images.read_many(images_)
        found = []
        for number, picture in enumerate(pictures):
            try:
                found.append(self._find(picture, faces, aligned))
            except FaceEditError as error:
                raise type(error)(f"picture {number} of the list: {error}") from None
        flat = [one for all_ in found for one in all_]
        reconstruct = refine or not self._fusion
        inversions = iter(self._invert(flat, steps, reconstruct=reconstruct) if flat else [])
        results = [self._edit([next(inversions) for _ in all_], wanted, refine=refine) for all_ in found]
        return results if return_result else [result.image for result in results]

    def _strengths(self, strengths: Mapping[str, float] | None, attributes: Mapping[str, float]) -> dict[str, float]:
        both = set(strengths or ()) & set(attributes)
        if both:
            raise UsageError(f"{', '.join(sorted(both))} was given both in strengths and by name")
        return self._directions.check({**(strengths or {}), **attributes})

    def _edit(
        self, inversions: Sequence[Inversion], strengths: dict[str, float],
        preview: bool = False, refine: bool = True, explain: bool = False,
    ) -> EditResult:  # fmt: skip
        refine = refine and self._fusion is not None
        picture = inversions[0].picture
        pixels = None if picture is None else picture.pixels
        edited = []
        for inversion in inversions:
            if inversion.latents.shape != self._directions.shape:
                raise UsageError(
                    f"the inversion has a code of shape {tuple(inversion.latents.shape)} and this editor's "
                    f"generator one of {tuple(self._directions.shape)}: invert with the same checkpoint"
                )
            # A code alone has no photograph whose content could be kept.
            refines = refine and (inversion.crop is not None or bool(inversion.features))
            if refines and not self._fusion.takes(inversion.features):
                raise UsageError(
                    "the inversion has not the content maps that this editor refines with: invert with the same "
                    "checkpoint, or pass refine=False"
                )
            face = self._edit_face(inversion, strengths, preview, refines, explain)
            if pixels is not None:
                frame = inversion.frame or CropFrame.whole(*pixels.shape[1::-1])
                where = (face.mask > 0).float()
                # An aligned picture has no surroundings that its border must blend into.
                if inversion.frame is not None:
                    where *= crops.face_mask(where.shape[-1])
                pixels = crops.paste_back(pixels, face.output, frame, where, face.crop)
            edited.append(face)
        if picture is None:
            image: Any = _to_pil(edited[0].output)
        else:
            image = images.restore(picture, pixels)
        return EditResult(image, tuple(edited))

    def _edit_face(
        self, inversion: Inversion, strengths: dict[str, float], preview: bool, refine: bool, explain: bool
    ) -> EditedFace:
        """One face after the edit, not yet in its photograph."""

        def draw(code: Tensor, strengths: dict[str, float]) -> _Fused:
            if refine:
                known = (inversion.outline, inversion.eyes, inversion.mouth)
                parts = face_parts(*known) if strengths and all(each is not None for each in known) else None
                return self._render_fused(inversion.features, code, strengths, preview, parts)
            return _Fused(self._render(code[None], preview)[0], ())

        applied = strengths
        if self._latent_classifier is not None:
            applied = self._latent_classifier.applied(inversion.latents, self._directions.vectors, strengths)
        offset = self._directions.offset(applied)
        latents, edits = inversion.latents + offset, bool(offset.any())
        before = inversion.reconstruction
        # An inversion keeps its reconstruction at full size, refined where that can be.
        if preview or before is None or refine != bool(inversion.features):
            before = draw(inversion.latents, {}).image
        after = draw(latents, applied) if edits else _Fused(before, ())
        original = before if inversion.crop is None else _at(inversion.crop, before.shape[-1])
        drawn = inversion.drawn if refine else None
        output, mask = compose(
            original, before, after.image, drawn, inversion.outline, inversion.person, inversion.eyes, inversion.mouth,
            inversion.skin, inversion.hair, emphasis=_EMPHASIS if refine else 0.0,
        )  # fmt: skip
        styled = None if refine else after.image
        if refine and explain:
            styled = self._render(latents[None], preview)[0]
        return EditedFace(
            crop=original, output=output, edited=styled, refined=after.image if refine else None, reconstruction=before,
            mask=mask, relevance=after.relevance, frame=inversion.frame, latents=latents, strengths=strengths,
            applied=applied,
        )  # fmt: skip


def _is_largest(faces: FaceChoice) -> bool:
    return isinstance(faces, str) and faces == "largest"


def _picture(drawn: Tensor) -> Tensor:
    """What a generator draws, as pictures in [0, 1], float32 on the CPU."""
    return ((drawn.float() + 1) / 2).clamp(0, 1).cpu()


def _inversions(image: object) -> list[Inversion] | None:
    """The inversions a caller gave, or None for a photograph."""
    if isinstance(image, Inversion):
        return [image]
    if isinstance(image, (list, tuple)):
        if not image or not all(isinstance(one, Inversion) for one in image):
            raise UsageError("edit takes one photograph, or the inversions of one: use edit_batch for several photographs")
        if any(one.picture is not image[0].picture for one in image):
            raise UsageError("these inversions are of different photographs: edit them one by one")
        return list(image)
    return None


def _at(crop: Tensor, size: int) -> Tensor:
    """A crop at another size."""
    if crop.shape[-1] == size:
        return crop
    return F.interpolate(crop[None], (size, size), mode="area")[0]


def _to_pil(picture: Tensor) -> Any:
    from PIL import Image

    return Image.fromarray((picture * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def _build(kinds: Mapping[str, type], name: str, options: Mapping[str, Any]) -> Any:
    """A network by the name and options that a config gives it."""
    if name not in kinds:
        raise ConfigError(f"config.json names the network {name!r}; this release knows {', '.join(kinds)}.")
    try:
        return kinds[name](**options)
    except (TypeError, UsageError) as error:
        raise ConfigError(f"config.json gives {name} options that it does not take: {error}") from None


def _device(device: torch.device | str) -> torch.device:
    """The device, after one small allocation has shown that it is there."""
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"the device {str(device)!r} cannot be used: {error}. Use 'cpu', or install a PyTorch for it"
        ) from None
    return found
