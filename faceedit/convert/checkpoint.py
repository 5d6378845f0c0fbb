"""From foreign files to one of our checkpoints: config, tensors and model card, all in memory."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from faceedit import hub
from faceedit.config import AttributeInfo, EncoderConfig, GeneratorConfig, ModelConfig
from faceedit.convert import card, directions, nvidia, psp, rosinality, stylespace
from faceedit.convert.recognise import DIRECTIONS, ENCODERS, FORMATS, GENERATORS, Source, sha256
from faceedit.directions import ALIASES, Directions, translate_rows
from faceedit.errors import ConfigError, ConversionError, FaceEditError, UsageError
from faceedit.models.generator import Generator
from faceedit.models.ir_se50 import UNITS, WIDTHS
from faceedit.models.layers import Mapping as MappingNetwork
from faceedit.models.mobile_stylegan import MobileStyleGAN
from faceedit.models.psp_encoder import GradualStyleEncoder
from faceedit.models.stylegan2 import StyleGAN2, table

__all__ = ["Checkpoint", "Networks", "add_directions", "assemble", "generator_of", "networks"]

_PACKAGED = "faceedit default checkpoint"
_UNTESTED = (-1.0, 1.0)
_SAME_MAPPING = 0.02  # relative; the packaged mapping is stored in float16
_GENERATORS: Mapping[str, type[Generator]] = {"stylegan2": StyleGAN2, "mobile_stylegan": MobileStyleGAN}


@dataclass(frozen=True)
class Networks:
    """What foreign files gave: a generator and, perhaps, an encoder for it, "psp" or "e4e"."""

    generator: Generator
    encoder: GradualStyleEncoder | None = None
    encoder_name: str = ""
    provenance: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """What `faceedit.hub.save_checkpoint` takes; for a look at it also the networks and the attributes to show."""

    config: ModelConfig
    tensors: dict[str, Tensor]
    card: str
    networks: Networks
    shown: tuple[str, ...]


def networks(source: Source, encoder_source: Source | None = None) -> Networks:
    """Build the networks of a foreign checkpoint, strictly.

    Args:
        source: of one of `GENERATORS`.
        encoder_source: a pSp or e4e file whose encoder is to go with `source`'s generator.

    Raises:
        CheckpointError: a tensor is missing, extra or mis-shaped, or the two do not fit together.
        UsageError: a file is of a format that has no such network.
    """
    if source.kind not in GENERATORS:
        raise UsageError(f"{str(source.path)!r} is {FORMATS[source.kind]}, which has no generator.")
    if encoder_source is not None and encoder_source.kind not in ENCODERS:
        raise UsageError(f"{str(encoder_source.path)!r} is {FORMATS[encoder_source.kind]}, which has no encoder.")
    encodes = encoder_source or (source if source.kind in ENCODERS else None)
    with _about(source):
        generator = _generator(source)
    if encodes is None:
        return Networks(generator, provenance=({**source.provenance, "used_for": "generator"},))
    with _about(encodes):
        parts = psp.split(encodes.content, encodes.said)
        rows = psp.count_styles(parts.encoder)
        if rows != generator.n_styles:
            raise ConversionError(
                f"its encoder gives {rows} rows of W+ and the generator of {generator.resolution} px takes "
                f"{generator.n_styles}: they do not belong together"
            )
        encoder = psp.encoder(parts.kind, _tensors(parts.encoder), parts.latent_avg, rows, psp.latent_std(generator))
    if encodes is source:
        return Networks(
            generator, encoder, parts.kind, ({**source.provenance, "used_for": "generator and encoder"},)
        )
    return Networks(generator, encoder, parts.kind, (
        {**source.provenance, "used_for": "generator"}, {**encodes.provenance, "used_for": "encoder"},
    ))  # fmt: skip


@contextlib.contextmanager
def _about(source: Source) -> Iterator[None]:
    """Name the file in whatever goes wrong with it."""
    try:
        yield
    except FaceEditError as error:
        raise ConversionError(f"{str(source.path)!r}: {error}") from error
    except Exception as error:  # numbers in tensors' names can ask for absurd networks
        raise ConversionError(f"{str(source.path)!r} has no network of a known shape ({error!r:.200}).") from error


def _generator(source: Source) -> StyleGAN2:
    if source.kind == "nvidia":
        return nvidia.generator(*nvidia.tensors(source.content["G_ema"]))
    if source.kind == "rosinality":
        return rosinality.generator(_tensors(source.content.get("g_ema", source.content)), source.content.get("latent_avg"))
    parts = psp.split(source.content, source.said)
    rows = parts.latent_avg.reshape(-1, parts.latent_avg.shape[-1])
    # Where the encoder's mean code is zero or differs from row to row, it is not the mean of W.
    usable = torch.equal(rows, rows[:1].expand_as(rows)) and bool(rows.any())
    return rosinality.generator(_tensors(parts.decoder), rows[0] if usable else None)


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    other = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if other:
        raise ConversionError(f"it has {', '.join(other[:5])} where only tensors belong")
    return dict(state)


def assemble(
    made: Networks,
    requests: Sequence[tuple[directions.Request, Source]] = (),
    licence: str = "",
) -> Checkpoint:
    """Put a checkpoint together.

    The packaged checkpoint's networks for crop and person go along: they look at photographs, whatever
    the generator. So do its directions, if the generator's W is StyleGAN2-FFHQ's, which is told by
    comparing the mapping networks.

    Args:
        made: by `networks`.
        requests: directions to add, and the files that they are from.
        licence: under which the result may be used.
    """
    generator = made.generator
    default_config, default_tensors = hub.load_checkpoint(hub.resolve())
    tensors = {f"generator.{name}": value for name, value in generator.state_dict().items()}
    if made.encoder is not None:
        tensors |= {f"encoder.{name}": value for name, value in made.encoder.state_dict().items()}
    nets = ("frame_net", "person_net")
    tensors |= {name: value for name, value in default_tensors.items() if name.partition(".")[0] in nets}
    packaged = {"name": _PACKAGED, "licence": default_config.licence.partition(";")[0], "used_for": " and ".join(nets)}
    config = ModelConfig(
        generator=GeneratorConfig(
            "stylegan2", generator.resolution, generator.n_styles, generator.style_dim, _generator_options(generator)
        ),
        encoder=None if made.encoder is None else EncoderConfig(
            made.encoder_name, made.encoder.input_size, _encoder_options(made.encoder)
        ),
        # Not the parts net, which looks at the packaged encoder's features.
        crop=replace(default_config.crop, size=generator.resolution, parts_net=None),
        licence=licence,
        provenance=[*({**entry, "licence": licence} if licence else entry for entry in made.provenance), packaged],
    )
    if mapping_distance(generator) <= _SAME_MAPPING:
        config, carried = _carry_directions(config, default_config, default_tensors, [r.name for r, _ in requests])
        tensors |= carried
    config, tensors = add_directions(config, tensors, requests, generator)
    return Checkpoint(config, tensors, card.write(config), made, tuple(config.attributes))


def add_directions(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    requests: Sequence[tuple[directions.Request, Source]],
    generator: Generator,
    licence: str = "",
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The same checkpoint with more attributes.

    Args:
        config, tensors: of any of our checkpoints.
        requests: what to add, and the files that it is from.
        generator: the checkpoint's.
        licence: of the directions; "" means that of the checkpoint.

    Raises:
        ConversionError: a file holds no direction, or one that does not fit the generator.
        UsageError: an attribute is there already.
    """
    tensors, attributes, provenance = dict(tensors), dict(config.attributes), list(config.provenance)
    for request, source in requests:
        vector = _vector(request, source, config.generator, generator)
        made = Directions({request.name: vector}, aliases={})
        (name,) = made.names
        taken = {other for own, info in attributes.items() for other in (own, *info.aliases)}
        if name in taken:
            raise UsageError(f"The checkpoint has an attribute {name!r} already; choose another name.")
        tensors |= made.to_tensors()
        attributes[name] = AttributeInfo(
            range=_UNTESTED,
            licence=licence,
            aliases=tuple(alias for alias in ALIASES.get(name, ()) if alias not in taken),
            description=f"{source.label}; {_how(request)}; strengths not measured",
        )
        entry = {**source.provenance, "used_for": f"directions.{name}"}
        if request.minus is not None:
            entry["minus"] = {"file": request.minus.name, "sha256": sha256(request.minus)}
        provenance.append({**entry, "licence": licence} if licence else entry)
    return replace(config, attributes=attributes, provenance=provenance), tensors


def generator_of(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Generator:
    """The generator of one of our checkpoints, in float32.

    Raises:
        CheckpointError: the tensors do not fit it.
        ConfigError: this release does not know it.
    """
    if config.generator.name not in _GENERATORS:
        raise ConfigError(f"The checkpoint's generator is {config.generator.name!r}; known are {', '.join(_GENERATORS)}.")
    generator = _GENERATORS[config.generator.name](**config.generator.options)
    hub.load_module(generator, tensors, "generator")
    return generator.eval()


def _how(request: directions.Request) -> str:
    options = {
        "component": request.component,
        "rows": None if request.rows is None else "{}-{}".format(*request.rows),
        "minus": None if request.minus is None else request.minus.name,
        "step": None if request.step == 1 else request.step,
    }
    said = ", ".join(f"{name} {value}" for name, value in options.items() if value is not None)
    return said or "at the format's own length"


def _vector(
    request: directions.Request, source: Source, config: GeneratorConfig, generator: Generator
) -> Tensor:
    """The direction in the rows of the checkpoint's own generator."""
    if source.kind not in DIRECTIONS:
        raise UsageError(f"{str(source.path)!r} is {FORMATS[source.kind]}, and no direction.")
    if source.kind == "stylespace":
        if not isinstance(generator, StyleGAN2):
            raise UsageError(
                f"{str(source.path)!r} lists channels of one StyleGAN2, and {config.name} has no such channels. "
                "Convert the list together with that generator."
            )
        if request.component is not None or request.rows is not None or request.minus is not None:
            raise UsageError(f"{request.name}={request.path}: a list of channels takes step= only.")
        return stylespace.offset(source.content, generator, request.step)
    # StyleGAN2 of this size has two rows for each doubling from 4 px; a student of it may have fewer.
    vector = directions.offset(request, source.content, 2 * (config.resolution.bit_length() - 2))
    if vector.shape[1] != config.style_dim:
        raise ConversionError(
            f"{request.name}={request.path}: its rows have {vector.shape[1]} numbers and those of the generator "
            f"{config.style_dim}. It is of another generator."
        )
    return translate_rows(vector, config.n_styles)


def mapping_distance(generator: Generator) -> float:
    """How far a generator's W is from StyleGAN2-FFHQ's, relative to its size; 0.02 and less is the same.

    The packaged generator's mapping network is StyleGAN2-FFHQ's own. Infinite for another width.
    """
    config, tensors = hub.load_checkpoint(hub.resolve())
    if generator.style_dim != config.generator.style_dim:
        return math.inf
    theirs = MappingNetwork(generator.style_dim)
    hub.load_module(theirs, tensors, "generator.mapping")
    z = torch.randn(64, generator.style_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(z)
        return float((generator.map(z) - expected).norm() / expected.norm())


def _carry_directions(
    config: ModelConfig, default: ModelConfig, default_tensors: Mapping[str, Tensor], taken: Sequence[str]
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The packaged attributes, but those of names that others have taken, in this generator's rows."""
    attributes, tensors = {}, {}
    for name, info in default.attributes.items():
        if not {name, *info.aliases}.isdisjoint(taken):
            continue
        key = f"directions.{name}"
        tensors[key] = translate_rows(default_tensors[key].float(), config.generator.n_styles)
        attributes[name] = replace(
            info,
            licence=info.licence or default.licence.partition(";")[0],
            description=f"{info.description}; fitted on {default.generator.name}",
            success={},
        )
    packaged = config.provenance[-1]
    packaged = {**packaged, "used_for": ", ".join([packaged["used_for"], *tensors])}
    return replace(config, attributes=attributes, provenance=[*config.provenance[:-1], packaged]), tensors


def _generator_options(generator: StyleGAN2) -> dict[str, Any]:
    options: dict[str, Any] = {"size": generator.resolution}
    if generator.level_channels != tuple(table(side) for side in generator.level_sizes):
        options["channels"] = list(generator.level_channels)
    if generator.style_dim != 512:
        options["style_dim"] = generator.style_dim
    if len(generator.mapping.layers) != 8:
        options["mapping_layers"] = len(generator.mapping.layers)
    if generator.first.clamp is not None:
        options["conv_clamp"] = generator.first.clamp
    return options


def _encoder_options(encoder: GradualStyleEncoder) -> dict[str, Any]:
    found = psp.sizes(encoder.state_dict())
    defaults = {"widths": WIDTHS, "units": UNITS}
    return {name: list(found[name]) for name, default in defaults.items() if tuple(found[name]) != default}
