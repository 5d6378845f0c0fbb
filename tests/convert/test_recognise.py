"""What a file is, told by its content; and what is said of files that are nothing known."""

import hashlib
import zipfile

import foreign
import numpy as np
import pytest
import torch

from faceedit.convert.recognise import FORMATS, recognise
from faceedit.errors import CheckpointNotFoundError, ConversionError, UsageError

ARCFACE = {name: torch.ones(1) for name in ("input_layer.0.weight", "body.0.res_layer.1.weight", "output_layer.3.weight")}


def write(kind, path):
    """A file that looks like `kind`."""
    made = foreign.generator()
    if kind == "nvidia":
        return foreign.nvidia(made, path)
    if kind in ("stylespace", "latents"):
        path.write_bytes(b"6 501\n") if kind == "stylespace" else np.save(path.open("wb"), np.ones((1, 18, 512)))
        return path
    content = {
        "rosinality": lambda: {"g": {}, "g_ema": foreign.rosinality(made), "latent_avg": made.mean_latent},
        "psp": lambda: foreign.psp(made, foreign.encoder()),
        "arcface": lambda: ARCFACE,
        "interfacegan": lambda: torch.ones(1, 512),
        "ganspace": lambda: {"comp": torch.ones(4, 512), "mean": torch.ones(1, 512), "std": torch.ones(4)},
    }[kind]()
    torch.save(content, path)
    return path


@pytest.mark.parametrize("kind", sorted(set(FORMATS) - {"mobile-stylegan", "e4e"}))
def test_every_format_is_told_by_its_content(kind, tmp_path):
    path = write(kind, tmp_path / "without_a_suffix")
    source = recognise(path)
    assert (source.kind, source.path, source.said) == (kind, path, None)
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert source.provenance == {"file": "without_a_suffix", "sha256": source.sha256, "format": source.label}
    assert recognise(path, kind).said == (kind if kind != "stylespace" else None)
    other = "arcface" if kind != "arcface" else "rosinality"
    with pytest.raises(ConversionError, match="and it was said to be"):
        recognise(path, other)


def test_a_bare_state_dict_of_rosinality(tmp_path):
    torch.save(foreign.rosinality(foreign.generator()), tmp_path / "file")
    assert recognise(tmp_path / "file").kind == "rosinality"


def test_the_caller_decides_between_psp_and_e4e(tmp_path):
    path = write("psp", tmp_path / "file")
    assert recognise(path, "e4e").said == "e4e"


def test_mobile_stylegan_is_a_wheel_or_a_folder(tmp_path):
    assert recognise(tmp_path).kind == "mobile-stylegan"
    with zipfile.ZipFile(tmp_path / "some.whl", "w"):
        pass
    assert recognise(tmp_path / "some.whl").kind == "mobile-stylegan"
    with pytest.raises(ConversionError, match="was said to be StyleGAN2"):
        recognise(tmp_path / "some.whl", "nvidia")


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        ({"model": {"a": 1}, "epoch": 3}, "a dictionary with 'model', 'epoch'"),
        ({f"key{i}": i for i in range(20)}, "'key7' and 12 more"),
        ({}, "an empty dictionary"),
        ({"state_dict": {"layer.weight": torch.ones(1)}}, "'state_dict'"),
        ([1, 2], "a list"),
        (torch.ones(3, 4, 5), "one array of shape (3, 4, 5)"),
    ],
)
def test_what_is_unknown_is_described_beside_what_is_known(content, seen, tmp_path):
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(ConversionError) as caught:
        recognise(tmp_path / "file.pt")
    assert seen in str(caught.value)
    for label in FORMATS.values():
        assert label in str(caught.value)


def test_no_file_and_no_format(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="There is no file"):
        recognise(tmp_path / "none.pt")
    with pytest.raises(UsageError, match="There is no format 'caffe'; known are rosinality"):
        recognise(tmp_path, "caffe")
