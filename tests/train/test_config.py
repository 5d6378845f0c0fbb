"""Recipes: one commented line a setting, read strictly from defaults, TOML and flags."""

import math
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass, fields
from pathlib import Path
from typing import Literal

import pytest

from faceedit.errors import ConfigError, MissingDependencyError
from faceedit.train import __main__ as command
from faceedit.train import config
from faceedit.train.config import (
    Count,
    Fraction,
    Positive,
    TrainRecipe,
    Weight,
    comments,
    find_recipe,
    make_recipe,
    peek,
    plain,
    read_recipe,
)
from faceedit.train.e4e import E4eRecipe
from faceedit.train.psp import PspRecipe


@dataclass(frozen=True, kw_only=True)
class Small(TrainRecipe):
    """A recipe with every kind of setting."""

    generator: Path  # safetensors file of 100 % of it
    steps: Count = 12  # fewer
    lambda_cls: Weight = 10.0  # of the classifier
    share: Fraction = 0.5  # of real faces
    mode: Literal["plain", "signed"] = "signed"  # of strengths
    names: tuple[str, ...] = ("smile", "age")  # to learn
    window: tuple[float, float] = (0.0, 1.0)  # of strengths
    scale: dict[str, Positive] = None  # of single attributes  # type: ignore[assignment]
    init: Path | None = None  # to start from


REQUIRED = ["--generator", "g.safetensors", "--out", "run"]


def read(*argv):
    return read_recipe(Small, [*REQUIRED, *argv], "small")


def write(folder, text):
    path = folder / "recipe.toml"
    path.write_text(text)
    return str(path)


def test_defaults_then_the_file_then_flags(tmp_path):
    path = write(tmp_path, 'lambda_cls = 3\nshare = 0.25\nnames = ["beard"]\nscale = {beard = 0.5}\ninit = "a/b"\n')
    recipe = read("--config", path, "--share", "0.75")
    assert (recipe.lambda_cls, recipe.share, recipe.names, recipe.steps) == (3.0, 0.75, ("beard",), 12)
    assert isinstance(recipe.lambda_cls, float) and recipe.scale == {"beard": 0.5}
    assert recipe.init == Path("a/b") and recipe.generator == Path("g.safetensors")
    with pytest.raises(FrozenInstanceError):
        recipe.share = 1.0


def test_flags_of_every_kind():
    recipe = read(
        "--names", "smile", "hat", "--window", "-1", "1", "--mode", "plain", "--bf16", "--max-minutes", "2.5",
        "--scale", "age=2", "smile=.5", "--clip", "0",
    )  # fmt: skip
    assert recipe.names == ("smile", "hat") and recipe.window == (-1.0, 1.0) and recipe.mode == "plain"
    assert recipe.bf16 is True and recipe.max_minutes == 2.5 and recipe.scale == {"age": 2.0, "smile": 0.5}
    assert read("--no-bf16", "--names").names == () and read().max_minutes == math.inf


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lamda-cls", "1"], "Unknown argument '--lamda-cls'. Did you mean --lambda-cls"),
        (["--lambda-cl=1"], "Did you mean --lambda-cls"),  # no abbreviations: they would change with new settings
        (["--steps", "0"], "--steps must be at least 1, not 0"),
        (["--steps", "1.5"], "--steps must be a whole number, not '1.5'"),
        (["--lambda-cls", "much"], "--lambda-cls must be a number, not 'much'"),
        (["--lambda-cls", "nan"], "--lambda-cls must be a number"),
        (["--share", "1.5"], "--share must be from 0 to 1, not 1.5"),
        (["--lr", "0"], "--lr must be above 0, not 0"),
        (["--mode", "both"], "--mode must be one of plain, signed, not 'both'"),
        (["--window", "1"], "--window must have 2 entries, not 1"),
        (["--scale", "age"], "'age' is not NAME=VALUE"),
        (["--scale", "age=0"], "--scale.age must be above 0"),
        (["--config", "nowhere.toml"], "no recipe file 'nowhere.toml'"),
        (["--steps"], "--steps"),
    ],
)
def test_a_wrong_flag_is_refused_with_the_way_out(flags, message):
    with pytest.raises(ConfigError) as caught:
        read(*flags)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lamda_cls = 1", "recipe.toml: lamda_cls is no setting of Small. Did you mean lambda_cls?"),
        ('lambda_cls = "1"', "recipe.toml: lambda_cls must be a number, not '1'"),
        ("bf16 = 1", "recipe.toml: bf16 must be true or false, not 1"),
        ("steps = true", "recipe.toml: steps must be a whole number, not True"),
        ('names = "smile"', "recipe.toml: names must be a list, not 'smile'"),
        ("names = [1]", "recipe.toml: names[0] must be text, not 1"),
        ("init = 3", "recipe.toml: init must be a path, not 3"),
        ("scale = 1", "recipe.toml: scale must be a table, not 1"),
        ("steps = ", "no readable TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_the_way_out(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        read("--config", write(tmp_path, text))
    assert message in str(caught.value)


def test_what_is_missing_is_named_as_a_flag():
    with pytest.raises(ConfigError, match="Missing: --out, --generator"):
        read_recipe(Small, [], "small")


def test_help_lists_every_setting_with_its_comment_and_default(capsys):
    with pytest.raises(SystemExit) as raised:
        read("--help")
    assert raised.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--lambda-cls X of the classifier (default 10.0)" in text
    assert "--generator PATH safetensors file of 100 % of it (required)" in text
    assert "--names [TEXT ...] to learn (default smile age)" in text
    assert "--bf16, --no-bf16 bfloat16 where autocast finds it safe (default False)" in text
    assert "--steps N fewer (default 12)" in text
    for field in fields(Small):
        assert f"--{field.name.replace('_', '-')}" in text


def test_one_setting_is_found_before_its_recipe_is_known(tmp_path):
    file = write(tmp_path, 'mode = "plain"\nunheard_of = 3\n')
    assert peek([], "mode") is None
    assert peek(["--steps", "3", "--names", "a", "--help", "--mode", "signed"], "mode") == "signed"
    assert peek(["--config", file, "--steps", "3"], "mode") == "plain"
    assert peek(["--config", file, "--mode=signed"], "mode") == "signed"
    assert peek(["--config", file], "steps") is None
    assert peek(["--config", "e4e"], "network") == "e4e"
    with pytest.raises(ConfigError, match="--mode"):
        peek(["--mode"], "mode")


def test_plain_values_make_the_recipe_again():
    recipe = read("--names", "hat", "--scale", "hat=2")
    assert make_recipe(Small, plain(recipe)) == recipe


def test_python_3_10_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(config.sys, "version_info", (3, 10))
    monkeypatch.setitem(sys.modules, "tomli", None)
    with pytest.raises(MissingDependencyError, match="tomli"):
        read("--config", write(tmp_path, ""))


# --- the stages ---------------------------------------------------------------------------------


def recipes():
    """Every recipe class, by stage or, of the encoder's further networks, by network."""
    found = {}
    for stage, (module, _) in command.STAGES.items():
        try:
            loaded = __import__(f"faceedit.train.{module}", fromlist=[module])
        except ModuleNotFoundError:
            continue
        for value in vars(loaded).values():
            if isinstance(value, type) and issubclass(value, TrainRecipe) and value.__module__ == loaded.__name__:
                found[stage] = value
    return {**found, "psp": PspRecipe, "e4e": E4eRecipe}


@pytest.mark.parametrize("kind", [TrainRecipe, *recipes().values()], ids=lambda kind: kind.__name__)
def test_every_setting_has_its_comment(kind):
    texts = comments(kind)
    assert not [field.name for field in fields(kind) if not texts.get(field.name)]


@pytest.mark.parametrize("path", sorted(config.RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_accepted_and_says_what_to_expect(path):
    assert find_recipe(path.stem) == path
    stage, name = re.search(r"^#   python -m faceedit\.train (\S+) --config (\S+) --out", path.read_text(), re.M).groups()
    assert name == path.stem
    values, kinds = config.read_toml(path), recipes()
    made = make_recipe(kinds.get(values.get("network"), kinds[stage]), {"out": "run", **values})
    assert path.read_text().startswith("#")
    for name, value in values.items():
        assert plain(made)[name] == value


def test_an_unknown_stage_gets_a_suggestion_and_status_2(capsys):
    assert command.main(["encodr"]) == 2
    assert "did you mean encoder" in capsys.readouterr().err


def test_an_error_of_ours_is_one_line_and_a_status():
    done = subprocess.run(
        [sys.executable, "-m", "faceedit.train", "encoder", "--stpes", "3"], capture_output=True, text=True,
        cwd=Path(config.__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "Did you mean --steps" in done.stderr


@pytest.mark.parametrize("network", ["psp", "e4e"])
def test_each_network_of_the_encoder_stage_has_its_own_settings(network, capsys):
    with pytest.raises(SystemExit) as done:
        command.main(["encoder", "--network", network, "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert "--init-body" in text and "--code-steps" not in text
    assert ("--rows-start" in text) is (network == "e4e")
    assert command.main(["encoder", "--config", network, "--out", "run", "--frozen-stages", "2"]) == 2
    assert "Unknown argument '--frozen-stages'" in capsys.readouterr().err


def test_an_unknown_network_is_refused_with_those_there_are(capsys):
    flags = [word for name in ("generator", "photos", "imagenet", "lpips", "out") for word in (f"--{name}", "x")]
    assert command.main(["encoder", "--network", "e5e", *flags]) == 2
    assert "--network must be one of efficientnet, psp, e4e, not 'e5e'" in capsys.readouterr().err
