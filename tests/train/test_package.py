"""What the package stage takes from the report of an evaluation."""

import json
from pathlib import Path

import pytest
import torch
from tiny_editor import FUSION_OPTIONS, make_editor

from faceedit.errors import CheckpointError, CheckpointNotFoundError, DataError
from faceedit.models.fusion import FusionGenerator
from faceedit.train.checkpoint import save_tensors
from faceedit.train.config import plain
from faceedit.train.content import ContentRecipe
from faceedit.train.package import load_fusion, measured


def report(**figures):
    found = {key: {"value": value, "low": 0.0, "high": 1.0, "n": 9} for key, value in figures.items()}
    return {"judge": "judge.safetensors", "generated": {"faces": 500, "attributes": {"smile": found}}}


FIGURES = {"got at +1": 0.9, "lost at -1": 0.8, "got at top": 1.0, "lost at bottom": None, "identity": 0.85, "non-zero": 0.04}


def test_the_config_gets_each_attributes_own_figures():
    assert measured(report(**FIGURES), "smile") == {
        "got_at_+1": 0.9, "lost_at_-1": 0.8, "got_at_top": 1.0, "identity": 0.85, "non-zero": 0.04,
        "generated_faces": 500, "judge": "judge.safetensors",
    }  # fmt: skip


def test_directions_that_were_not_measured_are_not_packaged():
    with pytest.raises(DataError, match="'age'"):
        measured(report(**FIGURES), "age")
    with pytest.raises(DataError, match="evaluate style"):
        measured({"judge": ""}, "smile")


def test_a_run_of_the_content_stage_is_packaged_as_it_was_trained(tmp_path):
    editor = make_editor()
    recipe = ContentRecipe(
        out=tmp_path, generator=Path("g"), encoder=Path("e"), directions=Path("d"), photos=Path("p"), lpips=Path("l"),
        levels=(1, 2), widths=(8, 6), relevance=False,
    )
    trained = FusionGenerator(editor.generator, editor.encoder, ("smile", "beard"), (1, 2), (8, 6), relevance=False)
    torch.nn.init.normal_(trained.content.extractors[0].leave.weight)
    save_tensors(trained.state_dict(), tmp_path / "content.safetensors")
    (tmp_path / "recipe.json").write_text(json.dumps(plain(recipe)))

    fusion, config = load_fusion(tmp_path, editor)
    assert config.attributes == ("beard", "smile")
    assert fusion.levels == (1, 2) and not len(fusion.maps)
    again = FusionGenerator(editor.generator, editor.encoder, config.attributes, **config.options)
    for name, value in again.state_dict().items():
        assert value.shape == trained.state_dict()[name].shape
    for name, value in fusion.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name])


def test_a_run_that_is_missing_or_of_another_generator_is_refused(tmp_path):
    with pytest.raises(CheckpointNotFoundError):
        load_fusion(tmp_path, make_editor())
    stranger = make_editor(content=True).fusion
    save_tensors(stranger.state_dict(), tmp_path / "content.safetensors")
    options = {**FUSION_OPTIONS, "widths": [7, 7], "follow": True, "relevance": True}
    (tmp_path / "recipe.json").write_text(json.dumps(options))
    with pytest.raises(CheckpointError, match="content"):
        load_fusion(tmp_path, make_editor())
