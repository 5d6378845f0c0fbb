"""Frames by five landmarks, and the stage that cuts crops of a folder."""

import numpy as np
import pytest
from PIL import Image
from tiny_editor import frame_net

from faceedit.crop import CropFrame
from faceedit.errors import UsageError
from faceedit.train import crops, data
from faceedit.train.crops import FivePointFrame, FivePointFramer

FACE = np.array([-0.4 - 0.1j, -0.2 - 0.1j, 0.4 - 0.1j, 0.2 - 0.1j, 0.02 + 0.15j])


def points_of(center, axis, shape):
    z = complex(*center) + complex(*axis) * shape
    return np.stack((z.real, z.imag), -1)


@pytest.fixture
def to_frame():
    """Fitted on faces whose frame follows from the landmarks."""
    random = np.random.default_rng(0)
    points, frames = [], []
    for _ in range(20):
        center, axis = random.uniform(40, 60, 2), random.uniform(5, 20, 2)
        shape = FACE + np.array([0, 0, 0, 0, random.uniform(-0.1, 0.1)])  # noses differ
        points.append(points_of(center, axis, shape))
        frames.append(CropFrame(tuple(center), tuple(axis)))
    return FivePointFrame(np.stack(points), frames)


def test_the_fit_recovers_the_frame_of_a_turned_face(to_frame):
    frame = to_frame(points_of((50, 20), (0, 9), FACE))
    assert frame.center == pytest.approx((50, 20)) and frame.x_axis == pytest.approx((0, 9))


def test_the_framer_takes_the_landmarks_in_the_box(to_frame, monkeypatch, tmp_path):
    asked = []

    def landmarks(pixels, box, predictor, points):
        asked.append((box, predictor, points))
        return points_of((50, 20), (9, 0), FACE)

    monkeypatch.setattr(crops, "landmarks", landmarks)
    framer = FivePointFramer(to_frame, tmp_path / "five.dat")
    assert framer(np.zeros((60, 80, 3), np.uint8), (1.0, 2.0, 3.0, 4.0)).center == pytest.approx((50, 20))
    assert asked == [((1.0, 2.0, 3.0, 4.0), tmp_path / "five.dat", 5)]
    assert framer.key.startswith("five points ")


def test_the_stage_cuts_a_folder_with_the_frame_net(tmp_path, monkeypatch, capsys):
    (tmp_path / "set" / "images").mkdir(parents=True)
    for i in range(2):
        Image.fromarray(np.full((60, 80, 3), 100 * i, np.uint8)).save(tmp_path / "set" / "images" / f"{i}.png")
    (tmp_path / "set" / "index.csv").write_text("file,face_box\n0.png,20 10 50 40\n1.png,20 10 50 40\n")
    framer = data.NetFramer(frame_net())
    monkeypatch.setattr(data, "NetFramer", lambda: framer)
    out = tmp_path / "crops.npy"
    assert crops.main(["--photos", str(tmp_path / "set"), "--out", str(out), "--size", "16"]) == 0
    assert "2 crops of 16 px" in capsys.readouterr().out
    assert np.load(out)[:, 8, 8, 0].tolist() == [0, 100]
    assert data.open_faces(out).names == ("0.png", "1.png")


def test_landmarks_need_a_generator():
    with pytest.raises(UsageError, match="go together"):
        crops.main(["--photos", "a", "--out", "b", "--landmarks", "c"])
