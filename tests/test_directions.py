"""Directions: names to an offset, and what is refused."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from faceedit.config import AttributeInfo
from faceedit.directions import ALIASES, Directions, translate_rows
from faceedit.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    OutputExistsError,
    StrengthError,
    UnknownAttributeError,
    UsageError,
)


@pytest.fixture
def directions():
    random = torch.Generator().manual_seed(0)
    vectors = {name: torch.randn(4, 8, generator=random) for name in ALIASES}
    return Directions(vectors, ranges={"smile": (-1.5, 2.0)}, licence="research only")


def test_offset_is_the_weighted_sum_of_the_directions(directions):
    expected = 1.5 * directions.vectors["smile"] - 0.5 * directions.vectors["age"]
    torch.testing.assert_close(directions.offset({"smile": 1.5, "age": -0.5}), expected)


def test_no_strengths_give_an_offset_of_zeros(directions):
    assert torch.equal(directions.offset({}), torch.zeros(4, 8))


@pytest.mark.parametrize("name", ["smiling", "Happy", "SMILE", " smile "])
def test_an_alias_in_any_case_is_its_attribute(directions, name):
    assert torch.equal(directions.offset({name: 1}), directions.vectors["smile"])


def test_spaces_and_hyphens_stand_for_underscores(directions):
    assert directions.resolve("facial hair") == directions.resolve("Facial-Hair") == "beard"


def test_an_unknown_name_is_refused_with_a_suggestion(directions):
    with pytest.raises(UnknownAttributeError) as caught:
        directions.offset({"glases": 1.0})
    assert caught.value.suggestions[0] == "glasses"


def test_a_name_that_is_no_string_is_unknown(directions):
    with pytest.raises(UnknownAttributeError):
        directions.offset({1: 1.0})


@pytest.mark.parametrize("strength", [math.nan, math.inf, -math.inf, 1e5, -1e39, 10**400, True, "1", None, [1.0]])
def test_a_strength_that_is_no_finite_number_is_refused(directions, strength):
    with pytest.raises(StrengthError, match="smile"):
        directions.offset({"smile": strength})


@pytest.mark.parametrize("strength", [1, 1.0, np.float32(1), np.int64(1)])
def test_any_kind_of_real_number_is_a_strength(directions, strength):
    assert torch.equal(directions.offset({"smile": strength}), directions.vectors["smile"])


def test_two_names_of_one_attribute_together_are_refused(directions):
    with pytest.raises(UsageError, match="'old' and 'aging'"):
        directions.offset({"old": 1.0, "aging": 1.0})


def test_the_set_does_not_follow_changes_of_what_it_was_made_from():
    vector = torch.ones(2, 3)
    directions = Directions({"smile": vector})
    vector.zero_()
    assert torch.equal(directions.offset({"smile": 1}), torch.ones(2, 3))
    with pytest.raises(TypeError):
        directions.vectors["smile"] = vector


@pytest.mark.parametrize(
    "vectors, options",
    [
        ({}, {}),
        ({"a": torch.ones(2, 3), "b": torch.ones(3, 3)}, {}),
        ({"a": torch.ones(3)}, {}),
        ({"a": torch.full((2, 3), math.nan)}, {}),
        ({"a": torch.ones(2, 3), "A": torch.ones(2, 3)}, {}),
        ({"a": torch.ones(2, 3), "b": torch.ones(2, 3)}, {"aliases": {"a": ["b"]}}),
        ({"a": torch.ones(2, 3)}, {"aliases": {"c": ["d"]}}),
        ({"a": torch.ones(2, 3)}, {"ranges": {"a": (1, -1)}}),
        ({"a": torch.ones(2, 3)}, {"ranges": {"c": (-1, 1)}}),
    ],
)
def test_a_set_that_contradicts_itself_is_refused(vectors, options):
    with pytest.raises(UsageError):
        Directions(vectors, **options)


def test_a_file_brings_everything_back(directions, tmp_path):
    path = tmp_path / "directions.safetensors"
    directions.save(path, source="a test")
    loaded = Directions.load(path)
    assert loaded.names == directions.names
    assert loaded.aliases == directions.aliases
    assert dict(loaded.ranges) == dict(directions.ranges)
    assert loaded.licence == "research only"
    for name in directions.names:
        assert torch.equal(loaded.vectors[name], directions.vectors[name])


def test_a_file_that_is_there_is_replaced_only_on_request(directions, tmp_path):
    path = tmp_path / "d.safetensors"
    path.write_text("precious")
    with pytest.raises(OutputExistsError):
        directions.save(path)
    assert path.read_text() == "precious"
    directions.save(path, overwrite=True)
    assert Directions.load(path).names == directions.names
    assert path.stat().st_mode == (tmp_path / "d.safetensors").stat().st_mode
    with pytest.raises(UsageError, match="folder"):
        directions.save(tmp_path / "nowhere" / "d.safetensors")


def test_tensors_share_a_checkpoint_with_those_of_networks(directions):
    tensors = {"encoder.weight": torch.ones(1), **directions.to_tensors()}
    assert set(directions.to_tensors()) == {f"directions.{name}" for name in ALIASES}
    assert Directions.from_tensors(tensors, directions.describe()).names == directions.names


def test_tensors_that_do_not_match_their_description_are_refused(directions):
    tensors = directions.to_tensors()
    with pytest.raises(CheckpointError):
        Directions.from_tensors({**tensors, "directions.hat": torch.ones(4, 8)}, directions.describe())
    del tensors["directions.smile"]
    with pytest.raises(CheckpointError):
        Directions.from_tensors(tensors, directions.describe())
    with pytest.raises(CheckpointError):
        Directions.from_tensors(directions.to_tensors(), {"attributes": "smile"})


def test_a_file_that_is_missing_damaged_or_foreign_is_refused(tmp_path):
    with pytest.raises(CheckpointNotFoundError):
        Directions.load(tmp_path / "none.safetensors")
    path = tmp_path / "bad.safetensors"
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(CheckpointError):
        Directions.load(path)
    save_file({"directions.smile": torch.ones(2, 3)}, str(path), {"format": "other"})
    with pytest.raises(CheckpointError, match="other"):
        Directions.load(path)


def test_others_directions_are_merged_unless_a_name_clashes(directions):
    both = directions.merge(Directions({"pose": torch.ones(4, 8)}, licence="CC0"))
    assert both.names == (*directions.names, "pose")
    assert both.licence == "research only; CC0"
    with pytest.raises(UsageError, match="happy"):
        directions.merge(Directions({"happy": torch.ones(4, 8)}))
    with pytest.raises(UsageError):
        directions.merge(Directions({"pose": torch.ones(5, 8)}))


def test_to_changes_the_type_and_keeps_the_rest(directions):
    half = directions.to(dtype=torch.float16)
    assert half.offset({"smile": 1}).dtype == torch.float16
    assert half.aliases == directions.aliases and dict(half.ranges) == dict(directions.ranges)


def test_a_file_carries_what_is_known_of_each_attribute(tmp_path):
    path = tmp_path / "hat.safetensors"
    directions = Directions(
        {"Hat": torch.ones(2, 3)}, aliases={"hat": ["cap"]}, ranges={"hat": (-1, 2)}, licence="CC0",
        descriptions={"Hat": "a hat"}, success={"hat": {"left_out_auc": 0.9}}, generator="mobile_stylegan",
    )  # fmt: skip
    directions.save(path)
    loaded = Directions.load(path)
    assert loaded.generator == "mobile_stylegan"
    assert loaded.to(dtype=torch.float64).attributes == {
        "hat": AttributeInfo((-1.0, 2.0), ("cap",), "CC0", "a hat", {"left_out_auc": 0.9})
    }


def test_a_description_of_an_earlier_release_is_read(directions):
    earlier = {
        "attributes": [{"name": n, "aliases": [], "range": [-1, 1]} for n in directions.names],
        "licence": "",
    }
    loaded = Directions.from_tensors(directions.to_tensors(), earlier)
    assert loaded.attributes["smile"] == AttributeInfo((-1.0, 1.0))


def test_a_description_of_no_direction_is_refused():
    for extra in ({"descriptions": {"b": "?"}}, {"success": {"b": {}}}):
        with pytest.raises(UsageError, match="'b'"):
            Directions({"a": torch.ones(2, 3)}, **extra)


def test_replacing_gives_every_shared_name_to_the_other_set(directions):
    other = Directions({"age": torch.ones(4, 8), "grin": torch.ones(4, 8)}, aliases={"grin": ["happy"]})
    merged = directions.merge(other, replace=True)
    assert torch.equal(merged.offset({"age": 1}), torch.ones(4, 8))
    assert merged.resolve("happy") == "grin" and merged.resolve("smiling") == "smile"
    assert merged.aliases["age"] == () and dict(merged.ranges)["smile"] == (-1.5, 2.0)
    assert set(merged.names) == {*ALIASES, "grin"}


# Rows of other generators


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)], ids=["direction", "codes", "batches of codes"])
def test_eighteen_rows_become_sixteen_by_leaving_out_the_finest_two(lead):
    rows = torch.randn(*lead, 18, 8)
    fewer = translate_rows(rows, 16)
    assert fewer.shape == (*lead, 16, 8)
    assert torch.equal(fewer, rows[..., :16, :])
    assert torch.equal(translate_rows(rows, 18), rows)


@pytest.mark.parametrize("lead", [(), (2,)], ids=["direction", "codes"])
def test_sixteen_rows_become_eighteen_by_repeating_the_image_heads(lead):
    rows = torch.randn(*lead, 16, 8)
    more = translate_rows(rows, 18)
    assert torch.equal(more[..., :16, :], rows)
    assert torch.equal(more[..., 16, :], rows[..., 15, :]) and torch.equal(more[..., 17, :], rows[..., 15, :])
    assert torch.equal(translate_rows(more, 16), rows)  # nothing is lost on the way there


def test_smaller_networks_have_fewer_rows():
    rows = torch.randn(14, 8)  # StyleGAN2 of 256 px
    assert torch.equal(translate_rows(rows, 16)[14:], rows[-1:].expand(2, -1))
    assert torch.equal(translate_rows(translate_rows(rows, 18), 14), rows)


def test_a_direction_of_w_goes_to_every_row():
    w = torch.randn(8)
    assert torch.equal(translate_rows(w, 16), w.expand(16, -1))
    assert torch.equal(translate_rows(w[None], 16), w.expand(16, -1))


@pytest.mark.parametrize("rows", [torch.zeros(()), torch.zeros(0, 8)])
def test_rows_that_are_none_are_refused(rows):
    with pytest.raises(UsageError, match="rows"):
        translate_rows(rows, 16)


@pytest.mark.parametrize("n_styles", [0, -1, True, 16.0])
def test_a_number_of_rows_that_is_none_is_refused(n_styles):
    with pytest.raises(UsageError, match="row"):
        translate_rows(torch.zeros(18, 8), n_styles)


def test_a_set_is_translated_with_all_that_belongs_to_it(directions):
    more = directions.with_rows(6)
    assert more.shape == (6, 8)
    assert more.aliases == directions.aliases and dict(more.ranges) == dict(directions.ranges)
    assert more.licence == directions.licence
    strengths = {"smile": 1.0, "age": -0.5}
    assert torch.equal(more.offset(strengths), translate_rows(directions.offset(strengths), 6))
    assert torch.equal(more.with_rows(4).offset(strengths), directions.offset(strengths))
