"""The Haar transform: its own definition, its inverse, its energy."""

import pytest
import torch
import torch.nn.functional as F

from faceedit.models.ops import haar, inverse_haar

# The four 2x2 pictures that the bands stand for: mean, top minus bottom, left minus right, diagonal.
PATTERNS = torch.tensor(
    [[[1.0, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]]
)


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def by_transposed_convolution(x):
    """The inverse transform as a sum of 2x2 patterns, one channel at a time."""
    n = x.shape[1] // 4
    channels = []
    for c in range(n):
        bands = torch.stack([x[:, band * n + c] for band in range(4)], 1)
        channels.append(F.conv_transpose2d(bands, PATTERNS[:, None] / 2, stride=2))
    return torch.cat(channels, 1)


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (2, 12, 3, 5), (1, 64, 4, 4)])
def test_inverse_is_the_sum_of_the_four_patterns(shape):
    x = random(*shape)
    torch.testing.assert_close(inverse_haar(x), by_transposed_convolution(x))


def test_the_two_transforms_undo_each_other():
    bands, picture = random(2, 12, 4, 6), random(2, 3, 8, 12)
    torch.testing.assert_close(haar(inverse_haar(bands)), bands)
    torch.testing.assert_close(inverse_haar(haar(picture)), picture)


def test_the_gradient_of_one_is_the_other():
    bands = random(2, 8, 3, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(inverse_haar, bands)
    gradient = random(2, 2, 6, 4).double()
    inverse_haar(bands).backward(gradient)
    torch.testing.assert_close(bands.grad, haar(gradient))


def test_the_argument_is_left_alone():
    bands, picture = random(1, 8, 2, 2), random(1, 2, 4, 4)
    copies = bands.clone(), picture.clone()
    inverse_haar(bands), haar(picture)
    assert torch.equal(bands, copies[0]) and torch.equal(picture, copies[1])


def test_the_transform_keeps_the_energy():
    picture = random(1, 3, 16, 16)
    torch.testing.assert_close(haar(picture).square().sum(), picture.square().sum())


def test_a_flat_picture_has_no_detail():
    bands = haar(torch.full((1, 2, 4, 4), 0.3))
    torch.testing.assert_close(bands[:, :2], torch.full((1, 2, 2, 2), 0.6))
    assert not bands[:, 2:].abs().max() > 1e-7
