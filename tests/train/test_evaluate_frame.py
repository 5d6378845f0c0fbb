"""How crop frames are compared, and the weights that are compared."""

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from faceedit.crop import CropFrame
from faceedit.errors import ConversionError
from faceedit.faces import Face
from faceedit.models.frame_net import FrameNet
from faceedit.models.person_net import PersonNet
from faceedit.train import evaluate_frame, frame
from faceedit.train.evaluate_frame import compare, corner_error, mirror, summary
from faceedit.train.frame import load

BOX = (30.0, 30.0, 100.0, 100.0)


def test_corner_error_is_in_parts_of_the_side():
    truth = CropFrame((50.0, 40.0), (30.0, 0.0))
    assert corner_error(truth, truth) == 0
    assert corner_error(CropFrame((53.0, 44.0), (30.0, 0.0)), truth) == pytest.approx(5 / 60)
    grown = CropFrame((50.0, 40.0), (33.0, 0.0))  # every corner moves by 3 sqrt 2
    assert corner_error(grown, truth) == pytest.approx(3 * 2**0.5 / 60)


def test_mirroring_twice_is_nothing():
    one = CropFrame((30.0, 20.0), (10.0, 3.0))
    assert mirror(mirror(one, 100), 100) == one
    assert mirror(one, 100).corners[0] == pytest.approx((100 - one.corners[1][0], one.corners[1][1]))


def test_every_photo_is_compared_with_68_points(tmp_path, monkeypatch):
    rows = ["file,face_box,already_cropped"] + [f"{i}.png,30 30 100 100,{i % 2}" for i in range(4)]
    (tmp_path / "index.csv").write_text("\n".join(rows), encoding="utf-8")
    for i in range(4):
        Image.new("RGB", (128, 128)).save(tmp_path / f"{i}.png")
    points = np.zeros((68, 2))
    points[36:42], points[42:48], points[48], points[54] = (48, 58), (80, 58), (50, 90), (78, 90)
    monkeypatch.setattr(evaluate_frame.faces, "detect", lambda pixels: [Face(BOX, 1.0)])
    monkeypatch.setattr(evaluate_frame.faces, "landmarks", lambda pixels, box, predictor: points)
    net = FrameNet()
    monkeypatch.setattr(net, "predict", lambda pixels, box: ((64.5, 61.7), (33.6, 0.0)))
    found = compare(net, tmp_path / "68.dat", tmp_path)
    assert [c.file for c in found] == ["0.png", "1.png", "2.png", "3.png"]
    assert [c.file for c in compare(net, tmp_path / "68.dat", tmp_path, every=2)] == ["0.png", "2.png"]
    # The frame of the points is centred on (64.5, 61.7) with half a side of 2 x 32.
    lines = summary(found)
    assert lines["ours to 68-point"]["faces"] == 4
    assert lines["ours to 68-point"]["median"] == pytest.approx((64 - 33.6) * 2**0.5 / 128, abs=1e-6)
    assert lines["ours to the truth, aligned"]["faces"] == 2
    assert evaluate_frame.contact_sheet(found, columns=2, size=16).size == (64, 32)


def test_the_stage_writes_the_mesh_it_reads(tmp_path, monkeypatch):
    state = {name: value + 1 for name, value in FrameNet().mesh.state_dict().items()}
    person = {name: value + 1 for name, value in PersonNet().state_dict().items()}
    monkeypatch.setattr(frame.face_mesh, "convert", lambda source: state)
    monkeypatch.setattr(frame.person_net, "convert", lambda source: person)
    arguments = ["--mediapipe", "some.whl", "--out", f"{tmp_path}/frame.safetensors", "--person", f"{tmp_path}/person.safetensors"]
    assert frame.main(arguments[:4]) == 0 and not (tmp_path / "person.safetensors").exists()
    assert frame.main(arguments) == 0
    read = load_file(tmp_path / "person.safetensors")
    assert read.keys() == person.keys() and all(np.array_equal(read[name], value) for name, value in person.items())
    net = load(tmp_path / "frame.safetensors")
    assert not net.training
    for name, value in net.mesh.state_dict().items():
        assert np.array_equal(value, state[name]), name


def test_the_stage_refuses_another_file(tmp_path):
    (tmp_path / "some.whl").write_bytes(b"no wheel")
    with pytest.raises(ConversionError, match="mediapipe==0.10.21"):
        frame.main(["--mediapipe", f"{tmp_path}/some.whl", "--out", f"{tmp_path}/out.safetensors"])
