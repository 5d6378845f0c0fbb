"""config.json: exact round trips, and every slip refused with its place."""

import copy
import json

import pytest

from faceedit.config import (
    AttributeInfo,
    CropConfig,
    EncoderConfig,
    GeneratorConfig,
    ModelConfig,
)
from faceedit.errors import ConfigError


@pytest.fixture
def config():
    """A config with every field away from its default."""
    return ModelConfig(
        generator=GeneratorConfig("mobile_stylegan", 512, 14, 256, {"truncation": 0.7}),
        encoder=EncoderConfig("pyramid", 128, {"levels": [64, 128], "deep": None}),
        crop=CropConfig(size=512, frame_net={"depth": 3}, person_net={}, parts_net={"width": 8}),
        attributes={
            "smile": AttributeInfo(
                range=(-2.0, 1.5),
                aliases=("smiling", "happy"),
                licence="CC0-1.0",
                description="Lächeln",
                success={"at_1": 0.93},
            ),
            "age": AttributeInfo(range=(-3.0, 3.0)),
        },
        licence="Apache-2.0",
        provenance=[{"package": "random-face", "version": "2021.7.21.1"}],
    )


def test_round_trip_through_text_and_dict_is_exact(config):
    assert ModelConfig.from_json(config.to_json()) == config
    assert ModelConfig.from_dict(config.to_dict()) == config
    smallest = ModelConfig(generator=GeneratorConfig("g"))
    assert ModelConfig.from_json(smallest.to_json()) == smallest


def test_tuples_come_back_as_tuples_of_floats(config):
    data = config.to_dict()
    data["attributes"]["age"]["range"] = [-3, 3]
    read = ModelConfig.from_dict(data).attributes
    assert read["smile"].aliases == ("smiling", "happy")
    assert read["age"].range == (-3.0, 3.0)
    assert [type(end) for end in read["age"].range] == [float, float]


def test_the_text_is_stable_and_ordered(config):
    text = config.to_json()
    assert ModelConfig.from_json(text).to_json() == text
    data = json.loads(text)
    assert list(data) == [
        "format_version",
        "generator",
        "encoder",
        "fusion",
        "latent_classifier",
        "crop",
        "attributes",
        "licence",
        "provenance",
    ]
    assert list(data["attributes"]) == ["smile", "age"]
    assert "Lächeln" in text and text.endswith("}\n")


def test_absent_parts_take_their_defaults():
    read = ModelConfig.from_dict({"format_version": 1, "generator": {"name": "g"}})
    assert read.generator == GeneratorConfig("g", 1024, 16, 512, {})
    assert read.encoder is None
    assert read.crop == CropConfig(1024, None)
    assert read.attributes == {} and read.provenance == [] and read.licence == ""


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("colour", 1, r"Unknown key colour\. Accepted here: generator, encoder"),
        ("generator.noise", 1, r"Unknown key generator\.noise\. .*n_styles, style_dim, options"),
        ("attributes.smile.rnage", [0, 1], r"Unknown key attributes\.smile\.rnage"),
        ("generator", None, r"generator must be an object, not null"),
        ("generator.name", 3, r"generator\.name must be a string, not a whole number"),
        ("generator.resolution", "1024", r"generator\.resolution must be a whole number, not a st"),
        ("generator.resolution", 1024.0, r"generator\.resolution must be a whole number"),
        ("generator.n_styles", True, r"generator\.n_styles must be .*not true or false"),
        ("generator.options", [], r"generator\.options must be an object, not a list"),
        ("generator.resolution", 1000, r"generator\.resolution must be a power of two"),
        ("generator.resolution", 0, r"generator\.resolution must be a power of two"),
        ("generator.style_dim", 0, r"generator\.style_dim must be at least 1"),
        ("encoder.input_size", -1, r"encoder\.input_size must be at least 1"),
        ("crop.size", 0, r"crop\.size must be at least 1"),
        ("crop.frame_net", "net", r"crop\.frame_net must be an object"),
        ("crop.person_net", True, r"crop\.person_net must be an object"),
        ("crop.parts_net", 48, r"crop\.parts_net must be an object"),
        ("attributes", [], r"attributes must be an object"),
        ("attributes.smile", 1, r"attributes\.smile must be an object"),
        ("attributes.smile.range", [0], r"attributes\.smile\.range must have 2 entries, not 1"),
        ("attributes.smile.range", [0, "1"], r"attributes\.smile\.range\[1\] must be a number"),
        ("attributes.smile.range", [1, 1], r"attributes\.smile\.range must go from low to high"),
        ("attributes.smile.aliases", "happy", r"attributes\.smile\.aliases must be a list"),
        ("attributes.smile.aliases", ["a", 2], r"attributes\.smile\.aliases\[1\] must be a string"),
        ("attributes.smile.aliases", ["age"], r"'age' belongs to"),
        ("provenance", {}, r"provenance must be a list"),
        ("provenance", ["wheel"], r"provenance\[0\] must be an object, not a string"),
        ("format_version", 2, r"format_version is 2.*reads only 1.*Upgrade"),
        ("format_version", "1", r"format_version is '1'"),
        ("format_version", True, r"format_version must be a whole number"),
    ],
)
def test_every_slip_is_refused_with_its_place(config, path, value, message):
    data = config.to_dict()
    *parents, last = path.split(".")
    target = data
    for parent in parents:
        target = target[parent]
    target[last] = value
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_dict(data)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("generator", r"Missing key generator\."),
        ("generator.name", r"Missing key generator\.name"),
        ("encoder.name", r"Missing key encoder\.name"),
        ("attributes.smile.range", r"Missing key attributes\.smile\.range"),
        ("format_version", r"format_version is None"),
    ],
)
def test_a_missing_key_is_named(config, path, message):
    data = copy.deepcopy(config.to_dict())
    *parents, last = path.split(".")
    target = data
    for parent in parents:
        target = target[parent]
    del target[last]
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_dict(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ('{"format_version": 1,', "not JSON .*line 1"),
        ("[1]", "must be an object, not a list"),
        ('{"format_version": NaN}', "not JSON .*NaN"),
    ],
)
def test_text_that_is_no_config_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_json(text)


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object()])
def test_what_json_cannot_hold_is_refused_on_writing(value):
    config = ModelConfig(generator=GeneratorConfig("g", options={"value": value}))
    with pytest.raises(ConfigError, match="JSON cannot"):
        config.to_json()


def test_another_versions_keys_are_not_complained_about():
    with pytest.raises(ConfigError, match="reads only 1"):
        ModelConfig.from_dict({"format_version": 7, "something": "new"})


def test_python_code_gets_the_same_checks_of_values():
    with pytest.raises(ConfigError, match="power of two"):
        GeneratorConfig("g", resolution=100)
    with pytest.raises(ConfigError, match="low to high"):
        AttributeInfo(range=(0.0, float("inf")))
