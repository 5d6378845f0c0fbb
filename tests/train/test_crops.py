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


@pytest.fixture
def celeba(tmp_path):
    """Four CelebA pictures, two of them beyond the training split."""
    folder = tmp_path / "celeba"
    (folder / "images").mkdir(parents=True)
    names = ["000001.jpg", "007500.jpg", "007501.jpg", "010000.jpg"]
    for i, name in enumerate(names):
        Image.fromarray(np.full((109, 89, 3), 60 * i, np.uint8)).save(folder / "images" / name)
    (folder / "attributes.csv").write_text("file,Smiling\n" + "".join(f"{name},1\n" for name in names))
    return folder


def test_of_celeba_a_part_can_be_cut(celeba, tmp_path, capsys):
    out = tmp_path / "crops.npy"
    assert crops.main(["--photos", str(celeba), "--part", "train", "--out", str(out), "--size", "18"]) == 0
    assert data.open_faces(out).names == ("000001.jpg", "007500.jpg")
    (celeba / "images" / "007501.jpg").unlink()
    with pytest.raises(UsageError, match="no picture of it"):
        crops.main(["--photos", str(celeba), "--part", "choose", "--out", str(out)])


def test_who_looks_like_somebody_of_another_set_is_left_out(celeba, tmp_path, monkeypatch, capsys):
    """A network that describes a picture by its brightness stands in for dlib's."""
    monkeypatch.setattr(crops, "load_identity", lambda path: lambda chips: chips.mean((1, 2, 3))[:, None])
    (tmp_path / "tested").mkdir()
    Image.fromarray(np.full((64, 64, 3), 65, np.uint8)).save(tmp_path / "tested" / "a.png")
    monkeypatch.setattr(data, "NetFramer", lambda: Middle())
    command = ["--photos", str(celeba), "--size", "18", "--apart-from", str(tmp_path / "tested"), "--identity", "x"]
    out = tmp_path / "crops.npy"
    assert crops.main([*command, "--near", "0.1", "--out", str(out)]) == 0
    faces = data.open_faces(out)
    assert faces.names == ("000001.jpg", "007501.jpg", "010000.jpg")
    assert list(faces.skipped) == ["007500.jpg"] and "0.02 away" in faces.skipped["007500.jpg"]
    # another distance is another sieve: the crops are cut anew
    assert crops.main([*command, "--near", "0.3", "--out", str(out)]) == 0
    assert data.open_faces(out).names == ("010000.jpg",)


class Middle:
    key = "the middle"

    def __call__(self, pixels, box):
        return CropFrame((32.0, 32.0), (16.0, 0.0))


def test_likeness_needs_the_identity_network():
    with pytest.raises(UsageError, match="go together"):
        crops.main(["--photos", "a", "--out", "b", "--apart-from", "c"])
