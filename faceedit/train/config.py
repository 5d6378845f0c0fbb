"""Recipes: every hyperparameter of a stage on one commented line, read from TOML and from flags.

A recipe is a frozen dataclass. The comment behind a field is its help text, its type says what is
accepted, `Annotated` bounds say which numbers are::

    @dataclass(frozen=True, kw_only=True)
    class StyleRecipe(TrainRecipe):
        generator: Path  # safetensors file of the generator
        lambda_cls: Weight = 10.0  # of the attribute classifier, equation 10
        attributes: tuple[str, ...] = ("smile", "age")  # directions to learn, by name
        mode: Literal["plain", "signed"] = "signed"  # whether strengths may be negative

    recipe = read_recipe(StyleRecipe, argv, "style", __doc__)

A field without default must be given. Values come from the defaults, then the file of ``--config``,
then the flags (``--lambda-cls 5 --attributes smile age``); an unknown key is an error in both.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import functools
import inspect
import io
import math
import sys
import textwrap
import tokenize
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

from faceedit.errors import ConfigError, MissingDependencyError

RECIPES = Path(__file__).parent / "recipes"
"""The recipes that are shipped; ``--config NAME`` finds them by name."""


@dataclass(frozen=True)
class Bounds:
    """The numbers that a field accepts: low <= value <= high, or low < value where `open`."""

    low: float = -math.inf
    high: float = math.inf
    open: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.open else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"{'above' if self.open else 'at least'} {self.low:g}"
        return f"{'above' if self.open else 'from'} {self.low:g} to {self.high:g}"


Count = Annotated[int, Bounds(1)]
Whole = Annotated[int, Bounds(0)]
Seed = Annotated[int, Bounds(0, 2**31 - 1)]
Positive = Annotated[float, Bounds(0, open=True)]
Weight = Annotated[float, Bounds(0)]
Fraction = Annotated[float, Bounds(0, 1)]
Device = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """What every training has; a stage's recipe adds its own and may change the defaults."""

    out: Path  # folder of the run; an existing one is resumed
    steps: Count = 1000  # optimizer steps in all
    batch: Count = 8  # samples of one step, over all processes and passes together
    accumulate: Count = 1  # passes that a process makes for its share of a batch; saves memory only
    lr: Positive = 1e-3  # AdamW, highest learning rate
    beta1: Fraction = 0.9  # AdamW, decay of the gradient's mean
    beta2: Fraction = 0.99  # AdamW, decay of its square's mean
    weight_decay: Weight = 0.0  # AdamW; with 0 it is Adam
    warmup: Whole = 100  # first steps, over which the learning rate rises linearly
    decay: Whole = 0  # last steps, over which it falls linearly to zero
    clip: Weight = 1.0  # largest norm of the gradient; 0 does not clip
    ema: Fraction = 0.0  # decay of the averaged weights, which are then what is kept; 0: no average
    bf16: bool = False  # bfloat16 where autocast finds it safe
    seed: Seed = 0  # of every random draw
    device: Device = "auto"  # auto: cuda, else mps, else cpu
    threads: Whole = 0  # CPU threads; 0 leaves PyTorch's choice
    log_every: Count = 20  # steps between lines of metrics.jsonl
    evaluate_every: Whole = 200  # steps between held-out figures; 0: at the end only
    save_every: Count = 200  # steps between checkpoints
    grid_every: Whole = 200  # steps between sample grids; 0: at the end only
    max_minutes: Positive = math.inf  # stop after this long, with a checkpoint to go on from
    tensorboard: bool = False  # write TensorBoard files too; needs the extra faceedit[tensorboard]


Recipe = TypeVar("Recipe")


def read_recipe(kind: type[Recipe], argv: Sequence[str], stage: str, description: str | None = None) -> Recipe:
    """The recipe that a command line asks for: defaults, then ``--config FILE``, then flags.

    Args:
        kind: Dataclass of the recipe.
        argv: The stage's arguments.
        stage: Its name, for the help text.
        description: Its docstring, for the help text.

    Returns:
        The recipe, all values typed and within their bounds.

    Raises:
        ConfigError: An unknown key or flag (with the nearest known ones), a missing value, one of
            another type or out of bounds, or a config file that cannot be read.
    """
    parser = _Parser(
        prog=f"python -m faceedit.train {stage}", description=description, allow_abbrev=False,
        argument_default=argparse.SUPPRESS, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--config", metavar="FILE", help="TOML file of values, or the name of a shipped recipe")
    hints, texts = typing.get_type_hints(kind, include_extras=True), comments(kind)
    for field in dataclasses.fields(kind):
        _add_flag(parser, field, hints[field.name], texts.get(field.name, ""))
    given = vars(parser.parse_args(list(argv)))
    values: dict[str, tuple[Any, str]] = {}
    if (config := given.pop("config", None)) is not None:
        path = find_recipe(config)
        values = {key: (value, f"{path.name}: {key}") for key, value in read_toml(path).items()}
    values |= {key: (value, _flag(key)) for key, value in given.items()}
    return _build(kind, values)


def peek(argv: Sequence[str], key: str) -> Any:
    """One setting that a command line or its config file gives, before it is known which recipe reads it.

    Args:
        argv: The stage's arguments.
        key: Of the setting, as in a recipe.

    Returns:
        The value as it stands there, unchecked; None where it is not given.
    """
    parser = _Parser(allow_abbrev=False, add_help=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config")
    parser.add_argument(_flag(key), dest=key)
    given = vars(argparse.ArgumentParser.parse_known_args(parser, list(argv))[0])
    return given[key] if key in given else read_toml(find_recipe(given["config"])).get(key) if "config" in given else None


def make_recipe(kind: type[Recipe], values: Mapping[str, Any]) -> Recipe:
    """A recipe from plain values, as a TOML file holds them; checked as :func:`read_recipe` does."""
    return _build(kind, {key: (value, key) for key, value in values.items()})


def plain(recipe: Any) -> dict[str, Any]:
    """A recipe's values as JSON and TOML have them: paths as text, no None."""

    def value(item: Any) -> Any:
        if isinstance(item, Path):
            return item.as_posix()
        return [value(part) for part in item] if isinstance(item, tuple) else item

    found = {field.name: value(getattr(recipe, field.name)) for field in dataclasses.fields(recipe)}
    return {key: item for key, item in found.items() if item is not None}


def comments(kind: type) -> dict[str, str]:
    """The comment behind each field of a recipe, its bases' included."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _own_comments(base)
    return found


def find_recipe(name: str) -> Path:
    """The TOML file of this path, or the shipped recipe of this name."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = {file.stem: file for file in sorted(RECIPES.glob("*.toml"))}
    if name in shipped:
        return shipped[name]
    raise ConfigError(
        f"There is no recipe file {name!r}.{_suggest(name, shipped)} Pass the path of a TOML file, or the name "
        f"of a shipped recipe: {', '.join(shipped) or 'none'}."
    )


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a TOML file."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError as error:
            raise MissingDependencyError(
                "Python 3.10 reads TOML files with the package tomli, which is not installed. Install it "
                "with: pip install 'faceedit[train]'"
            ) from error
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # tomllib's error is a ValueError
        raise ConfigError(f"{str(path)!r} is no readable TOML file ({error}). Correct it.") from error


# --- values -----------------------------------------------------------------------------------


def _build(kind: type[Recipe], values: Mapping[str, tuple[Any, str]]) -> Recipe:
    """The recipe of values, each with what to call it in messages."""
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key, (_, place) in values.items():
        if key not in fields:
            raise ConfigError(
                f"{place} is no setting of {kind.__name__}.{_suggest(key, fields)} Accepted: {', '.join(fields)}."
            )
    missing = [_flag(key) for key, field in fields.items() if key not in values and _required(field)]
    if missing:
        raise ConfigError(f"Missing: {', '.join(missing)}. Give them as flags, or in the file of --config.")
    return kind(**{key: _accept(hints[key], value, place) for key, (value, place) in values.items()})


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _accept(hint: Any, value: Any, place: str) -> Any:
    """Turn a TOML value into what a type hint asks for, or refuse it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value = _accept(arguments[0], value, place)
        if value is not None and value not in arguments[1]:
            raise ConfigError(f"{place} must be {arguments[1]}, not {value}.")
        return value
    if origin in (Union, types.UnionType):  # always "X | None"
        return None if value is None else _accept(arguments[0], value, place)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{place} must be one of {', '.join(map(str, arguments))}, not {value!r}.")
        return value
    if origin is tuple:
        _require(isinstance(value, (list, tuple)), place, "a list", value)
        if arguments[1:] != (...,) and len(value) != len(arguments):
            raise ConfigError(f"{place} must have {len(arguments)} entries, not {len(value)}.")
        kinds = arguments if arguments[1:] != (...,) else arguments[:1] * len(value)
        return tuple(_accept(k, item, f"{place}[{i}]") for i, (k, item) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict:
        _require(isinstance(value, Mapping), place, "a table", value)
        return {key: _accept(arguments[1], item, f"{place}.{key}") for key, item in value.items()}
    if hint is Path:
        _require(isinstance(value, (str, Path)), place, "a path", value)
        return Path(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)  # in Python true is an int
    if hint is float:
        _require(number and not math.isnan(value), place, "a number", value)
        return float(value)
    if hint is int:
        _require(number and isinstance(value, int), place, "a whole number", value)
        return value
    _require(isinstance(value, hint), place, {str: "text", bool: "true or false"}[hint], value)
    return value


def _require(holds: bool, place: str, wanted: str, value: Any) -> None:
    if not holds:
        raise ConfigError(f"{place} must be {wanted}, not {value!r}.")


def _suggest(name: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3)
    return f" Did you mean {' or '.join(close)}?" if close else ""


# --- the command line -------------------------------------------------------------------------


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


class _Parser(argparse.ArgumentParser):
    """Refuses an unknown flag with the nearest known ones."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        found, extra = super().parse_known_args(args, namespace)
        if extra:
            flags = [option for action in self._actions for option in action.option_strings]
            raise ConfigError(
                f"Unknown argument {extra[0]!r}.{_suggest(extra[0].partition('=')[0], flags)} "
                "--help lists what there is."
            )
        return found, extra

    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(f"{message[:1].upper()}{message[1:]}. --help lists what there is.")


def _add_flag(parser: argparse.ArgumentParser, field: dataclasses.Field, hint: Any, text: str) -> None:
    """One flag for a field; its text is turned into a TOML value, which `_accept` then checks."""
    default = "required" if _required(field) else f"default {_shown(getattr(field, 'default', None))}"
    options: dict[str, Any] = {"help": f"{text} ({default})".replace("%", "%%").strip()}
    bare = _bare(hint)
    if bare is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        origin = typing.get_origin(bare)
        item = typing.get_args(bare)[-1 if origin is dict else 0] if origin in (tuple, dict) else bare
        item = _bare(item)
        options["metavar"] = _metavar(item)
        if origin is dict:
            options |= {"nargs": "*", "action": _Pairs, "metavar": f"NAME={_metavar(item)}", "type": _pair(item)}
        else:
            options |= {"nargs": "*"} if origin is tuple else {}
            options["type"] = functools.partial(_read_text, item)
    parser.add_argument(_flag(field.name), dest=field.name, **options)


def _bare(hint: Any) -> Any:
    """A type hint without bounds and without "| None"."""
    while typing.get_origin(hint) in (Annotated, Union, types.UnionType):
        hint = typing.get_args(hint)[0]
    return hint


def _metavar(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "|".join(map(str, typing.get_args(kind)))
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return " ".join(map(str, default)) or "none"
    return "none" if default is None or default is dataclasses.MISSING else str(default)


def _read_text(kind: Any, text: str) -> Any:
    """A flag's text as a number where one is wanted; otherwise the text, which `_accept` refuses."""
    for read in {int: (int,), float: (float,)}.get(kind, ()):
        try:
            return read(text)
        except ValueError:
            pass
    return text


def _pair(kind: Any) -> typing.Callable[[str], tuple[str, Any]]:
    def read(text: str) -> tuple[str, Any]:
        name, equals, value = text.partition("=")
        if not equals:
            raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
        return name, _read_text(kind, value)

    return read


class _Pairs(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, dict(values))


# --- comments ---------------------------------------------------------------------------------


@functools.cache
def _own_comments(kind: type) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except OSError:  # typed into an interpreter: no file, no comments
        return {}
    by_line = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    body = typing.cast(ast.ClassDef, ast.parse(source).body[0]).body
    return {
        item.target.id: by_line.get(item.end_lineno or item.lineno, "")
        for item in body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
