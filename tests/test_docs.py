"""The documents: their code runs, their commands parse, their links lead somewhere."""

import argparse
import inspect
import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_editor import make_editor, photo

import faceedit.faces
from faceedit import FaceEditor, cli, errors, hub
from faceedit.cli import commands, conversion
from faceedit.directions import Directions
from faceedit.faces import Face
from faceedit.models.mobile_stylegan import MobileStyleGAN
from faceedit.train import __main__ as train
from faceedit.train import config
from faceedit.train.encoder import EncoderRecipe

ROOT = Path(__file__).resolve().parents[1]
CARD = ROOT / "faceedit" / "weights" / "default" / "README.md"
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", CARD, *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(document, language):
    return [code for kind, code in FENCE.findall(document.read_text(encoding="utf-8")) if kind == language]


def shell_commands(document):
    """The words of every command in the document's shell blocks; comments are left out."""
    text = "\n".join(blocks(document, "sh")).replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def test_every_block_of_code_says_its_language():
    found = {kind for document in DOCUMENTS for kind, _ in FENCE.findall(document.read_text())}
    assert found == {"python", "sh", "toml"}
    assert sum(document.read_text().count("\n```") for document in DOCUMENTS) % 2 == 0


# Python


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with the pictures that the documents name, and a tiny editor behind every checkpoint."""
    monkeypatch.chdir(tmp_path)
    for name in ("portrait.jpg", "group.jpg", "a.jpg", "b.jpg"):
        Image.fromarray(photo()).save(tmp_path / name)
    Image.fromarray(photo(80, 80)).save(tmp_path / "crop.png")
    found = [Face((20.0, 30.0, 50.0, 62.0), 1.0), Face((80.0, 25.0, 104.0, 50.0), 1.0)]
    monkeypatch.setattr(faceedit.faces, "detect", lambda pixels: found)
    editor, signature = make_editor(), inspect.signature(FaceEditor.from_pretrained)
    Directions({"wavy_hair": torch.ones(editor.directions.shape)}).save(tmp_path / "wavy_hair.safetensors")

    def from_pretrained(*args, **options):
        signature.bind(*args, **options)
        return editor

    monkeypatch.setattr(FaceEditor, "from_pretrained", from_pretrained)
    return tmp_path


@documents
def test_python_runs_from_top_to_bottom(document, desk):
    names = {"__name__": "__main__"}
    for number, code in enumerate(blocks(document, "python"), 1):
        exec(compile(code, f"{document.name}, block {number}", "exec"), names)


def test_the_readme_begins_with_what_it_promises(desk):
    exec(blocks(ROOT / "README.md", "python")[0], {})
    with Image.open(desk / "smiling.jpg") as image:
        assert image.size == (128, 96)


# Commands


@documents
def test_faceedit_commands_are_accepted(document, monkeypatch, capsys):
    for name in ("edit", "sweep", "invert", "attributes", "info", "download"):
        monkeypatch.setattr(commands, name, lambda args: 0)
    monkeypatch.setattr(conversion, "convert", lambda args: 0)
    for words in shell_commands(document):
        if words[0] == "faceedit":
            assert cli.main(words[1:]) == 0, f"{shlex.join(words)}\n{capsys.readouterr().err}"


@documents
def test_training_commands_are_accepted(document, monkeypatch):
    class Parsed(Exception):
        pass

    real = argparse.ArgumentParser.parse_args

    def parse_args(parser, argv=None, namespace=None):
        real(parser, argv, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    for words in shell_commands(document):
        if words[:2] != ["python", "-m"] or not words[2].startswith("faceedit."):
            continue
        assert words[2] == "faceedit.train", words
        with pytest.raises(Parsed):
            train.main(words[3:])


@documents
def test_other_commands_name_what_is_there(document):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in shell_commands(document):
        if words[0] == "make":
            assert set(words[1:]) <= set(targets), words
        elif words[0] == "python" and words[1] != "-m":
            assert (ROOT / words[1]).is_file(), words


@documents
def test_recipes_are_accepted(document, tmp_path):
    for text in blocks(document, "toml"):
        (tmp_path / "recipe.toml").write_text(text)
        config.make_recipe(EncoderRecipe, {"out": "run", **config.read_toml(tmp_path / "recipe.toml")})


# Links and facts


def anchors(document):
    """GitHub's names of a document's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@documents
def test_links_within_the_repository_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", document.read_text())):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (document.parent / path).resolve() if path else document
        assert linked.is_file(), f"{document.name} links to {target}"
        assert ROOT in linked.parents
        assert not anchor or anchor in anchors(linked), f"{document.name} links to {target}"


def test_every_error_is_in_the_table_with_its_builtin():
    table = (ROOT / "docs" / "conventions.md").read_text()
    for name in set(errors.__all__) - {"FaceEditError"}:
        row = re.search(rf"^\| `{name}` \| (.*?) \|", table, re.MULTILINE)
        assert row, f"{name} is not in the table of errors"
        bases = {base.__name__ for base in getattr(errors, name).__bases__} - {"FaceEditError"}
        assert set(re.findall(r"\w+", row[1])) == bases, name


def test_the_rows_of_the_default_generator_are_as_stated():
    with torch.device("meta"):
        generator = MobileStyleGAN()
    assert generator.n_styles == 16
    for i in range(7):
        assert list(generator.style_rows(i + 1)) == [1 + 2 * i, 2 + 2 * i]
        assert generator.level_sizes[i + 1] == 8 * 2**i


@documents
def test_no_figure_is_still_to_be_measured(document):
    """Fails until every placeholder has been replaced by a measured figure, or its row removed."""
    left = [n for n, line in enumerate(document.read_text().splitlines(), 1) if "TBD" in line]
    assert not left, f"{document.name}: TBD in lines {', '.join(map(str, left))}"


def test_the_default_checkpoint_knows_the_steps_of_all_its_attributes():
    """As conventions.md says of strengths; and that nobody gets a second pair of glasses."""
    described, tensors = hub.load_checkpoint(ROOT / "faceedit" / "weights" / "default")
    known = described.latent_classifier
    assert set(known.attributes) == set(described.attributes) and known.options["among"] == {"beard": "gender"}
    shortest = dict(zip(known.attributes, tensors["latent_classifier.shortest"].tolist()))
    assert [name for name, length in shortest.items() if length == 0] == ["glasses"]
    assert (tensors["latent_classifier.goals"] != 0).any(1).all()
