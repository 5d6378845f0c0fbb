"""The frame net's training pairs: the answer that goes with a window is the right one."""

import cmath
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from faceedit.crop import CropFrame
from faceedit.models.efficientnet_lite import EfficientNetLite
from faceedit.models.frame_net import cut_window
from faceedit.train import frame
from faceedit.train.evaluate_frame import corner_error, load, mirror
from faceedit.train.frame import Scenes


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


def test_the_command_writes_weights_that_load(picture, tmp_path):
    np.save(tmp_path / "faces.npy", np.stack([picture] * 2))
    torch.save(EfficientNetLite().state_dict(), tmp_path / "imagenet.pth")
    (tmp_path / "images").mkdir()
    Image.fromarray(picture).save(tmp_path / "images" / "a.png")
    (tmp_path / "index.csv").write_text("file,face_box\na.png,30 30 100 100\n", encoding="utf-8")
    out = tmp_path / "net.safetensors"
    status = frame.main(
        f"--faces {tmp_path}/faces.npy --imagenet {tmp_path}/imagenet.pth --out {out} --steps 2 "
        f"--batch 4 --lr 1e-6 --real {tmp_path} --real-steps 1 --real-pictures 1 --real-spread 9".split()
    )
    assert status == 0
    net = load(out)
    assert not net.training
    assert {v.dtype for v in load_file(out).values()} == {torch.float16, torch.int64}
    center, axis = net.predict(picture, (30, 30, 100, 100))
    assert np.isfinite([*center, *axis]).all()


def test_faces_are_reduced_by_averaging(picture):
    double = np.repeat(np.repeat(picture, 2, 0), 2, 1)
    assert np.array_equal(frame.reduce(double[None]).pictures[0], picture)
