"""Measurement of edits, on faces whose every score is known: plain colours that a linear judge reads."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from faceedit.directions import Directions
from faceedit.train import measurement
from faceedit.train.identity import DlibFaceNet
from faceedit.train.measurement import Measurement
from faceedit.train.painted import WIDTHS, with_frames
from faceedit.train.perceptual import LPIPS

OUTPUTS = ("Smiling", "Eyeglasses", "Male", "No_Beard")
NAMES = ("smile", "glasses", "beard")


class ColourJudge(nn.Module):
    """Red is the smile, green the glasses, blue the beard; everybody right of grey 0 in red+green is male."""

    names = OUTPUTS

    def forward(self, views):
        red, green, blue = views.mean((2, 3)).unbind(1)
        return torch.stack([red, green, red + green, -blue], 1)


class ColourFaces:
    """Faces of one colour each; a direction's entry (0, c) is added to the channel c."""

    def __init__(self, colours, directions):
        self.colours, self.directions, self.n, self.drawn = colours, directions, len(colours), []

    def draw(self, rows, name=None, strength=0.0):
        self.drawn.append((len(rows), name, strength))
        colours = self.colours[list(rows)]
        if name is not None:
            colours = colours + strength * self.directions.vectors[name][0]
        return colours[:, :, None, None].expand(-1, -1, 64, 64).clone()


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    lpips = LPIPS()
    for name, parameter in lpips.named_parameters():
        if name.startswith("lin"):
            parameter.data.fill_(1.0)
    return ColourJudge(), DlibFaceNet().eval(), lpips.eval()


@pytest.fixture
def directions():
    return Directions(
        {
            "smile": torch.tensor([[0.4, 0.0, 0.0]]),
            "glasses": torch.tensor([[0.0, 0.3, 0.1]]),  # grows a little beard
            "beard": torch.tensor([[0.0, 0.0, 0.5]]),
        },
        ranges={"smile": (-2.0, 2.0)},
    )


COLOURS = torch.tensor(
    [[-0.3, 0.5, 0.2], [-0.5, 0.6, -0.3], [0.2, 0.1, -0.6], [0.7, -0.2, 0.1], [-0.2, -0.1, -0.1], [-0.35, 0.2, 0.4]]
)


def test_every_figure_of_known_faces(networks, directions):
    faces = ColourFaces(COLOURS, directions)
    report = Measurement(faces, directions, *networks, looks=4).run(NAMES)
    smile, glasses, beard = (report.attributes[name] for name in NAMES)
    # Without a smile: -.3, -.5, -.2, -.35; +.4 turns all but -.5, which +.8 turns as well.
    assert (smile["got at +1"].value, smile["got at +1"].n) == (0.75, 4)
    assert (smile["got at top"].value, smile["got at top"].n) == (1.0, 4)
    # With a smile: .2, .7.
    assert (smile["lost at -1"].value, smile["lost at bottom"].value) == (0.5, 1.0)
    assert (glasses["got at +1"].value, glasses["got at +1"].n) == (1.0, 2)
    assert (glasses["lost at -1"].value, glasses["lost at -1"].n) == (0.5, 4)
    # Beards count among males only, red + green > 0: faces 0, 1, 2, 3; without one: -.3 and -.6.
    assert (beard["got at +1"].value, beard["got at +1"].n) == (0.5, 2)
    assert (beard["lost at -1"].value, beard["lost at -1"].n) == (1.0, 2)
    assert beard["non-zero"].value == pytest.approx(1 / 3)
    assert smile["L2"].value == pytest.approx((0.4 / 2) ** 2 / 3, rel=1e-4) and smile["L2"].n == 4
    assert smile["LPIPS"].value > 0 and -1 <= smile["identity"].value < 1
    assert report.examples == {"smile": [0, 1], "glasses": [3, 4], "beard": [1, 2]}

    spread = COLOURS.std(0).numpy()
    expected = np.diag([0.4, 0.3, 0.5])
    expected[1, 2] = 0.1
    np.testing.assert_allclose(report.effects, expected / spread, atol=1e-5)
    assert report.entanglement.value == pytest.approx(report.effects[1, 2] / 6 / np.diag(report.effects).mean())
    assert report.entanglement_unrelated == report.entanglement


def test_bars_that_are_missed_are_named(networks, directions):
    report = Measurement(ColourFaces(COLOURS, directions), directions, *networks).run(NAMES)
    missed = " ".join(report.below("smile"))
    assert "got at +1 0.75 < 0.85" in missed and "lost at -1 0.50" in missed and "non-zero 0.333 > 0.05" in missed
    assert "got at top" not in missed


def test_each_edit_is_drawn_once_and_only_on_the_faces_that_count(networks, directions):
    faces = ColourFaces(COLOURS, directions)
    Measurement(faces, directions, *networks, looks=4, turns=1).run(["smile"])
    assert faces.drawn == [(6, None, 0.0), (4, None, 0.0), (6, "smile", 1.0), (1, "smile", -1.0),
                           (1, "smile", 2.0), (1, "smile", -2.0)]  # fmt: skip


def test_chunks_do_not_matter(networks, directions, monkeypatch):
    whole = Measurement(ColourFaces(COLOURS, directions), directions, *networks, looks=3).run(["smile"])
    monkeypatch.setattr(measurement, "_CHUNK", 2)
    chunked = Measurement(ColourFaces(COLOURS, directions), directions, *networks, looks=3).run(["smile"])
    for figure, estimate in whole.attributes["smile"].items():
        assert chunked.attributes["smile"][figure] == pytest.approx(estimate, rel=1e-4, abs=1e-6), figure
    np.testing.assert_allclose(chunked.effects, whole.effects, rtol=1e-5)


def test_what_no_face_can_show_is_missing_not_zero(networks, directions):
    smiling = torch.tensor([[0.5, 0.5, 0.1], [0.6, 0.4, 0.2]])
    report = Measurement(ColourFaces(smiling, directions), directions, *networks).run(["smile"])
    assert report.attributes["smile"]["got at +1"].n == 0
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert values["attributes"]["smile"]["got at +1"] == {"value": None, "low": None, "high": None, "n": 0}
    assert values["entanglement"]["value"] is None and math.isnan(report.entanglement.value)
    assert values["effects"]["smile"]["smile"] > 0


def test_related_attributes_are_left_out_of_the_second_ratio(networks):
    class HairJudge(ColourJudge):
        names = ("Black_Hair", "Blond_Hair", "Smiling", "No_Beard")

    directions = Directions({"black_hair": torch.tensor([[0.5, -0.5, 0.0]]), "blond_hair": torch.tensor([[-0.5, 0.5, 0.0]])})
    faces = ColourFaces(COLOURS, directions)
    report = Measurement(faces, directions, HairJudge(), *networks[1:]).run(list(directions.names))
    assert report.entanglement.value == pytest.approx(1.0, abs=0.5)
    assert math.isnan(report.entanglement_unrelated.value)


def test_painted_frames_touch_the_eyes_and_nothing_else():
    plain = torch.full((2, 3, 256, 256), 0.5)
    thin, thick = (with_frames(plain, width) for width in (2, 6))
    grey = plain[0, 0, 0, 0]
    changed = [(picture[0] - grey).abs() > 0.01 for picture in (thin[1], thick[1])]
    assert changed[0].any() and (changed[1] | ~changed[0]).all() and changed[1].sum() > 2 * changed[0].sum()
    rows, columns = changed[1].nonzero().unbind(1)
    assert rows.min() > 0.38 * 256 and rows.max() < 0.57 * 256 and columns.min() > 0.2 * 256 and columns.max() < 0.8 * 256
    for x, y in ((0.377, 0.469), (0.623, 0.469)):  # within the lenses the eyes stay
        assert not changed[1][round(y * 256) - 8 : round(y * 256) + 8, round(x * 256) - 8 : round(x * 256) + 8].any()
    assert (thin[0, :, ~changed[0]] - grey).abs().max() <= 1 / 255


def test_glasses_are_compared_with_painted_frames(networks, directions):
    class DarkJudge(ColourJudge):
        """Sees glasses in what is dark."""

        def forward(self, views):
            red, green, blue = views.mean((2, 3)).unbind(1)
            return torch.stack([red, -green, red + green, -blue], 1)

    colours = torch.tensor([[0.0, 0.03, 0.0], [0.0, 0.3, 0.0], [0.0, -0.5, 0.0], [0.0, 0.02, 0.0]])
    report = Measurement(ColourFaces(colours, directions), directions, DarkJudge(), *networks[1:], looks=3).run(["glasses"])
    assert tuple(report.painted) == WIDTHS
    # Of the first three faces two are without glasses; the thicker the frames, the darker the picture.
    got = [report.painted[width]["got"] for width in WIDTHS]
    assert [each.n for each in got] == [2, 2, 2]
    assert got[0].value <= got[1].value <= got[2].value and got[2].value == 0.5
    identity = [report.painted[width]["identity"].value for width in WIDTHS]
    assert all(-1 <= value < 1 for value in identity)
    assert report.to_dict()["painted frames"]["6"]["got"]["n"] == 2
    smiles = Measurement(ColourFaces(colours, directions), directions, *networks).run(["smile"])
    assert smiles.painted == {}
