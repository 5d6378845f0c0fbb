"""ArcFace as a judge: its crop, its descriptors, and the loss that takes it or dlib's network."""

import pytest
import torch
import torch.nn.functional as F
from irse_reference import TINY, arcface_layout, pictures, random_tensors
from safetensors.torch import save_file

from faceedit.models.ir_se50 import ArcFaceNet
from faceedit.train.arcface import ArcFace, arcface_chip
from faceedit.train.identity import DlibFaceNet, identity_chip, identity_loss, load_identity


@pytest.fixture(scope="module")
def judge():
    layout = arcface_layout(**TINY, size=112, dim=32)
    network = ArcFaceNet(**TINY, size=112, dim=32)
    network.load_state_dict(random_tensors(layout))
    return ArcFace(network)


def ramp(size=256):
    """``(1, 3, size, size)``: each pixel's row, column and sum, in pixels of 256, at its centre."""
    place = (torch.arange(size) + 0.5) * 256 / size
    rows, columns = torch.meshgrid(place, place, indexing="ij")
    return torch.stack((rows, columns, rows + columns))[None]


@pytest.mark.parametrize("size", [256, 512, 1024])
def test_the_chip_shows_rows_35_to_223_and_columns_32_to_220(size):
    rows, columns, both = arcface_chip(ramp(size))[0]
    assert rows.shape == (112, 112)
    # A pixel covers 188/112 source pixels and takes all that it touches: two or three of them.
    centres = (torch.arange(112) + 0.5) * 188 / 112
    assert (rows[:, 0] - (35 + centres)).abs().max() < 0.5
    assert (columns[0] - (32 + centres)).abs().max() < 0.5
    assert rows.min() == 36 and rows.max() == 222 and columns.min() == 33 and columns.max() == 219
    torch.testing.assert_close(both, rows + columns)


def test_each_chip_pixel_is_the_mean_of_what_it_touches():
    picture = torch.rand(1, 3, 256, 256)
    chip = arcface_chip(picture)
    for i, j in ((0, 0), (3, 40), (111, 77)):
        rows = slice(35 + i * 188 // 112, 35 + -(-(i + 1) * 188 // 112))
        columns = slice(32 + j * 188 // 112, 32 + -(-(j + 1) * 188 // 112))
        torch.testing.assert_close(chip[0, :, i, j], picture[0, :, rows, columns].mean((1, 2)))


def test_larger_pictures_are_averaged_and_smaller_ones_enlarged():
    small = torch.rand(1, 3, 128, 128)
    large = F.interpolate(small, (1024, 1024), mode="nearest")
    blocks = F.interpolate(small, (256, 256), mode="nearest")
    torch.testing.assert_close(arcface_chip(large), arcface_chip(blocks))
    smooth = F.interpolate(small, (256, 256), mode="bilinear", align_corners=False)
    torch.testing.assert_close(arcface_chip(small), arcface_chip(smooth))


@torch.no_grad()
def test_descriptors_are_unit_vectors_of_the_chip(judge):
    faces = pictures(size=256)
    found = judge.describe(faces)
    assert found.shape == (2, 32) and found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(found, judge.network(arcface_chip(faces)))
    outside = faces.clone()
    outside[..., :35, :] = outside[..., :, 220:] = 0
    assert torch.equal(judge.describe(outside), found)


def test_the_loss_is_one_minus_cosine_with_either_judge(judge):
    a, b = pictures(size=256), pictures(size=256, seed=2)
    torch.manual_seed(0)
    for network in (judge, DlibFaceNet().eval()):
        with torch.no_grad():
            expected = 1 - F.cosine_similarity(network.describe(a), network.describe(b))
            torch.testing.assert_close(identity_loss(network, a, b), expected)
            assert identity_loss(network, a, a).abs().max() < 1e-5
    with torch.no_grad():
        assert torch.equal(network.describe(a), network.centred(identity_chip(a)))


def test_it_is_frozen_and_stays_in_evaluation_mode(judge):
    judge.train()
    assert not any(module.training for module in judge.modules())
    picture = pictures(size=256).requires_grad_()
    identity_loss(judge, picture, pictures(size=256, seed=2)).sum().backward()
    assert picture.grad[..., 35:223, 32:220].abs().sum() > 0
    assert not any(p.requires_grad or p.grad is not None for p in judge.parameters())


def test_a_converted_file_is_recognised(tmp_path):
    tensors = random_tensors(arcface_layout())
    save_file(tensors, tmp_path / "arcface.safetensors")
    judge = load_identity(tmp_path / "arcface.safetensors")
    assert isinstance(judge, ArcFace)
    assert torch.equal(judge.network.output_layer[3].weight, tensors["output_layer.3.weight"])
    save_file(DlibFaceNet().state_dict(), tmp_path / "dlib.safetensors")
    assert isinstance(load_identity(tmp_path / "dlib.safetensors"), DlibFaceNet)
