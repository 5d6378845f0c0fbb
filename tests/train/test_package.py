"""What the package stage takes from the report of an evaluation."""

import pytest

from faceedit.errors import DataError
from faceedit.train.package import measured


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
