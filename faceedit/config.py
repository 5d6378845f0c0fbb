"""What a checkpoint's config.json holds, as frozen dataclasses, and nothing else.

Reading is strict. An unknown key, a missing key, a value of another type or an unknown
``format_version`` is a `ConfigError` that names the place, such as ``attributes.smile.range``, and
what would have been accepted there: what is misspelt or too new is never dropped silently.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Union

from faceedit.errors import ConfigError

__all__ = [
    "FORMAT_VERSION",
    "AttributeInfo",
    "CropConfig",
    "EncoderConfig",
    "GeneratorConfig",
    "LatentClassifierConfig",
    "ModelConfig",
]

FORMAT_VERSION = 1
"""The version of config.json that this release writes and reads."""

_TYPE_NAMES = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    tuple: "a list",
    type(None): "null",
}


@dataclass(frozen=True)
class GeneratorConfig:
    """Which generator the tensors under ``generator.`` belong to.

    Attributes:
        name: such as "mobile_stylegan".
        resolution: side of its pictures in pixels, a power of two from 8.
        n_styles: rows of its W+ code.
        style_dim: length of a row.
        options: further arguments of that generator, as JSON values.
    """

    name: str
    resolution: int = 1024
    n_styles: int = 16
    style_dim: int = 512
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.resolution < 8 or self.resolution & (self.resolution - 1):
            raise ConfigError(f"resolution must be a power of two from 8, not {self.resolution}.")
        _require_positive(self, "n_styles", "style_dim")


@dataclass(frozen=True)
class EncoderConfig:
    """Which encoder the tensors under ``encoder.`` belong to.

    Attributes:
        name: of the encoder.
        input_size: side in pixels of the picture that it looks at.
        options: further arguments of that encoder, as JSON values.
    """

    name: str
    input_size: int = 256
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_positive(self, "input_size")


@dataclass(frozen=True)
class FusionConfig:
    """What the tensors under ``fusion.`` are: content branch and relevance maps.

    Attributes:
        attributes: names of the attributes that have a content direction.
        options: further arguments of the fusion generator, as JSON values.
    """

    attributes: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LatentClassifierConfig:
    """What the tensors under ``latent_classifier.`` are: what tells how long each face's steps are.

    Attributes:
        attributes: names of the attributes that it knows, one output each.
        options: further arguments of the latent classifier, as JSON values.
    """

    attributes: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CropConfig:
    """How faces are cut out of a photograph.

    Attributes:
        size: side of the crop in pixels.
        frame_net: arguments of the network that finds the crop's frame, as JSON values; None where
            the checkpoint has no such network.
        person_net: the same of the network that finds the person in a crop.
        parts_net: the same of the network that finds bare face and hair, from the encoder's features.
    """

    size: int = 1024
    frame_net: dict[str, Any] | None = None
    person_net: dict[str, Any] | None = None
    parts_net: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        _require_positive(self, "size")


@dataclass(frozen=True)
class AttributeInfo:
    """What is known about one attribute.

    Attributes:
        range: (lowest, highest) strength that was tested; 1.0 is one clearly visible step.
        aliases: other names it answers to.
        licence: under which its direction may be used; "" means the checkpoint's own.
        description: one line for people.
        success: measurements of its direction, as JSON values.
    """

    range: tuple[float, float]
    aliases: tuple[str, ...] = ()
    licence: str = ""
    description: str = ""
    success: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        low, high = self.range
        if not -math.inf < low < high < math.inf:
            raise ConfigError(f"range must go from low to high, not {list(self.range)}.")


@dataclass(frozen=True)
class ModelConfig:
    """The whole of config.json.

    Attributes:
        generator: see `GeneratorConfig`.
        encoder: see `EncoderConfig`; None for a checkpoint that only generates.
        fusion: see `FusionConfig`; None for a checkpoint that edits by the style branch alone.
        latent_classifier: see `LatentClassifierConfig`; None where strength 1 is the same length for every face.
        crop: see `CropConfig`.
        attributes: name to `AttributeInfo`, in the order to show them.
        licence: under which the tensors may be used.
        provenance: one object for each thing that the tensors were made from.
        format_version: of the file's layout.
    """

    generator: GeneratorConfig
    encoder: EncoderConfig | None = None
    fusion: FusionConfig | None = None
    latent_classifier: LatentClassifierConfig | None = None
    crop: CropConfig = field(default_factory=CropConfig)
    attributes: dict[str, AttributeInfo] = field(default_factory=dict)
    licence: str = ""
    provenance: list[dict[str, Any]] = field(default_factory=list)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ConfigError(_version_message(self.format_version))
        taken: dict[str, str] = {}
        for attribute, info in self.attributes.items():
            for name in (attribute, *info.aliases):
                owner = taken.setdefault(name, attribute)
                if owner != attribute:
                    raise ConfigError(
                        f"attributes.{attribute}: the name {name!r} belongs to {owner!r} already. "
                        "Give each attribute its own names."
                    )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelConfig:
        """Read the parsed config.json.

        Raises:
            ConfigError: naming the key with its path, what was found and what is accepted.
        """
        if isinstance(data, dict) and data.get("format_version") != FORMAT_VERSION:
            # Before all else: another version's keys would only confuse.
            raise ConfigError(_version_message(data.get("format_version")))
        return _parse(cls, data, "")

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Read the text of config.json.

        Raises:
            ConfigError: not JSON, or as `from_dict`.
        """
        try:
            data = json.loads(text, parse_constant=_refuse_constant)
        except ValueError as error:
            raise ConfigError(f"The config is not JSON ({error}). Restore the file.") from error
        return cls.from_dict(data)

    def to_dict(self) -> dict[str, Any]:
        """Give JSON values, keys in the order of the attributes above, `format_version` first.

        ``ModelConfig.from_dict(config.to_dict()) == config`` always.
        """
        data = _plain(self)
        return {"format_version": data.pop("format_version"), **data}

    def to_json(self) -> str:
        """Give the text of config.json; equal configs in equal order give equal text.

        Raises:
            ConfigError: a free-form value (options, success, provenance) is not JSON.
        """
        try:
            return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"The config holds a value that JSON cannot ({error}). Use strings, finite "
                "numbers, booleans, lists, dicts and None."
            ) from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is a Python extension")


def _require_positive(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} must be at least 1, not {getattr(config, name)}.")


def _version_message(found: Any) -> str:
    return (
        f"format_version is {found!r}, and this release reads only {FORMAT_VERSION}. Upgrade "
        "faceedit for a newer checkpoint; ask the checkpoint's author where the key is missing."
    )


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _parse(kind: Any, value: Any, path: str) -> Any:
    """Turn the JSON `value` at `path` into what the type hint `kind` asks for, or refuse it."""
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(kind, value, path)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):  # always "X | None" here
        return None if value is None else _parse(arguments[0], value, path)
    _require_type(origin or kind, value, path)
    if origin is dict:
        return {key: _parse(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    if origin is list or arguments[1:] == (...,):
        items = [_parse(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value)]
        return items if origin is list else tuple(items)
    if origin is tuple:
        if len(value) != len(arguments):
            raise ConfigError(f"{path} must have {len(arguments)} entries, not {len(value)}.")
        pairs = enumerate(zip(arguments, value))
        return tuple(_parse(argument, item, f"{path}[{i}]") for i, (argument, item) in pairs)
    return float(value) if kind is float else value


def _require_type(kind: type, value: Any, path: str) -> None:
    accepted = {tuple: list, float: (int, float)}.get(kind, kind)
    # In Python true is an int; in JSON it is not.
    is_bool = isinstance(value, bool) and kind is not bool
    if is_bool or not isinstance(value, accepted):
        found = _TYPE_NAMES.get(type(value), type(value).__name__)
        raise ConfigError(f"{path or 'The config'} must be {_TYPE_NAMES[kind]}, not {found}.")


def _parse_dataclass(kind: type, value: Any, path: str) -> Any:
    _require_type(dict, value, path)
    prefix = f"{path}." if path else ""
    fields = {item.name: item for item in dataclasses.fields(kind)}
    for key in value:
        if key not in fields:
            raise ConfigError(
                f"Unknown key {prefix}{key}. Accepted here: {', '.join(fields)}. Correct it, or "
                "upgrade faceedit if the checkpoint is newer."
            )
    for key, item in fields.items():
        optional = item.default is not dataclasses.MISSING or (
            item.default_factory is not dataclasses.MISSING
        )
        if key not in value and not optional:
            raise ConfigError(f"Missing key {prefix}{key}. Add it to the config.")
    hints = typing.get_type_hints(kind)
    arguments = {key: _parse(hints[key], item, f"{prefix}{key}") for key, item in value.items()}
    try:
        return kind(**arguments)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from error
