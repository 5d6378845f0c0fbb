"""The frame net's training pairs: the answer that goes with a window is the right one."""

import cmath
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from faceedit.crop import CropFrame, extract
from faceedit.faces import Face
from faceedit.models.efficientnet_lite import EfficientNetLite
from faceedit.models.frame_net import FrameNet, cut_window
from faceedit.train import frame, frame_labels
from faceedit.train.evaluate_frame import corner_error, mirror
from faceedit.train.frame import Scenes, load
from faceedit.train.frame_labels import SizeFromEyes


@pytest.fixture
def picture():
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((1, 3, 8, 8))).float()
    smooth = torch.nn.functional.interpolate(coarse, size=(128, 128), mode="bicubic")[0]
    return smooth.clamp(0, 1).mul(255).byte().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("extent", [1.0, 2.0])
def test_training_windows_are_cut_as_the_net_cuts_them(picture, extent):
    middle, half = 0.05 - 0.1j, cmath.rect(0.7, math.radians(12))
    pictures = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    guess = torch.tensor([middle]), torch.tensor([half])
    drawn = frame.draw_windows(
        pictures, torch.tensor([extent]), *guess, 32, torch.Generator(), cut=0
    )
    true_half = 64 / extent
    expected = cut_window(picture, 64 + 64j + true_half * middle, true_half * half, 32)
    assert drawn[0].numpy() == pytest.approx(expected.numpy(), abs=0.04)


def test_the_answer_undoes_the_guess(picture):
    scenes = Scenes(np.stack([picture] * 4), 1.0)
    random = torch.Generator().manual_seed(3)
    windows, d, m = next(frame.batches([scenes, scenes], 6, 32, 3))
    assert windows.shape == (6, 3, 32, 32) and windows.abs().max() <= 1
    torch.randint(4, (3,), generator=random), torch.rand(3, 1, 1, 1, generator=random)
    middle, half = frame.random_guesses(3, random)
    # from the guess, by the answer, to the truth: middle 0 and half side 1
    assert torch.allclose(middle + half * d[:3], torch.zeros(3, dtype=d.dtype), atol=1e-6)
    assert torch.allclose(half * m[:3], torch.ones(3, dtype=d.dtype), atol=1e-6)


def test_loss_is_the_corner_error_of_the_crops():
    guess, truth = (50 + 40j, 30 + 5j), (53 + 38j, 33 - 2j)
    d, m = 0.02 + 0.05j, cmath.rect(1.1, 0.1)
    answer = torch.tensor([[d.real, d.imag, m.real, m.imag]])
    true_d, true_m = (truth[0] - guess[0]) / guess[1], truth[1] / guess[1]
    loss = frame.corner_loss(answer, torch.tensor([true_d]), torch.tensor([true_m]))

    def crop(center, axis):
        return CropFrame((center.real, center.imag), (axis.real, axis.imag))

    predicted = crop(guess[0] + guess[1] * d, guess[1] * m)
    assert loss.item() == pytest.approx(corner_error(predicted, crop(*truth)), rel=1e-3)


def test_mirroring_twice_is_nothing():
    one = CropFrame((30.0, 20.0), (10.0, 3.0))
    assert mirror(mirror(one, 100), 100) == one
    assert mirror(one, 100).corners[0] == pytest.approx(
        (100 - one.corners[1][0], one.corners[1][1])
    )


@pytest.fixture
def folder(picture, tmp_path):
    """Generated faces, trunk weights and two real photographs, the first of them held out."""
    np.save(tmp_path / "faces.npy", np.stack([picture] * 2))
    torch.save(EfficientNetLite().state_dict(), tmp_path / "imagenet.pth")
    (tmp_path / "images").mkdir()
    Image.fromarray(picture).save(tmp_path / "images" / "b.png")
    rows = "file,face_box\na.png,30 30 100 100\nb.png,30 30 100 100\n"
    (tmp_path / "index.csv").write_text(rows, encoding="utf-8")
    return tmp_path


@pytest.fixture
def eyes(monkeypatch):
    """Every face is found, and its eyes are 30 apart with the nose 20 below."""
    points = np.array([(45.0, 60), (55, 60), (85, 60), (75, 60), (65, 80)])
    monkeypatch.setattr(frame_labels, "detect", lambda pixels: [Face((30, 30, 100, 100), 1.0)])
    monkeypatch.setattr(frame_labels, "landmarks", lambda *args, **kwargs: points)


def test_the_command_writes_weights_that_load(folder, picture, eyes):
    shared = f"--faces {folder}/faces.npy --batch 4 --lr 1e-6".split()
    first, second = folder / "first.safetensors", folder / "second.safetensors"
    begin = ["--imagenet", f"{folder}/imagenet.pth", "--out", str(first), "--steps", "2"]
    assert frame.main(shared + begin) == 0
    real = f"--real {folder} --landmarks five.dat --real-steps 1 --start {first} --out {second}"
    assert frame.main(shared + real.split()) == 0
    assert {v.dtype for v in load_file(second).values()} == {torch.float16, torch.int64}
    net = load(second)
    assert not net.training
    center, axis = net.predict(picture, (30, 30, 100, 100))
    assert np.isfinite([*center, *axis]).all()


def test_labels_keep_the_middle_and_take_the_size_from_the_eyes(folder, picture, eyes):
    net = FrameNet(size=32).eval()  # keeps the first guess: half side 61.25, middle (65, 51.7)
    sizes = frame_labels.learn_sizes(np.stack([picture] * 2), Path("five.dat"))  # half side 64
    squares = frame_labels.label_real(
        net, sizes, folder, Path("five.dat"), count=9, extent=1.0, side=64
    )
    expected = extract(picture, CropFrame((65, 65 - 0.19 * 70), (64, 0)), 64)
    assert squares.shape == (1, 64, 64, 3)
    assert squares[0] == pytest.approx(expected.mul(255).permute(1, 2, 0).numpy(), abs=1)


def test_sizes_come_from_faces_that_are_alike():
    eyes, noses = np.full(40, 10.0), np.repeat([0.4, 0.8], 20)
    points = np.zeros((40, 5, 2))
    points[:, 2:4, 0] = eyes[:, None]
    points[:, 4, 0], points[:, 4, 1] = eyes / 2, noses * eyes
    sizes = SizeFromEyes(points, np.where(noses < 0.5, 20.0, 21.0))
    assert sizes(points[0], 20.3) == pytest.approx(20, abs=0.02)
    assert sizes(points[-1], 20.7) == pytest.approx(21, abs=0.02)
    assert sizes(3 * points[0], 60) == pytest.approx(60, abs=0.05)
    assert sizes(points[0], 30) is None


def test_faces_are_reduced_by_averaging(picture):
    double = np.repeat(np.repeat(picture, 2, 0), 2, 1)
    assert np.array_equal(frame.reduce(double[None]).pictures[0], picture)
