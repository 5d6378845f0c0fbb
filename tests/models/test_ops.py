"""The Haar transform: its own definition, its inverse, its energy. StyleGAN2's convolutions, against NumPy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from stylegan2_reference import blurred, modulated

from faceedit.models import ops
from faceedit.models.ops import haar, inverse_haar, modulated_conv, upsample

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


def test_what_is_compiled_is_the_same_transform():
    x = torch.randn(2, 12, 5, 3)
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        compiled = ops._inverse_haar(given)
        assert torch.equal(compiled, inverse_haar(given))
        assert compiled.stride() == inverse_haar(given).stride()


# StyleGAN2


def test_upsampling_is_zeros_between_the_pixels_and_the_filter():
    picture = random(2, 3, 5, 7)
    expected = np.stack([blurred(one.double().numpy(), 2, 2, 1) for one in picture])
    assert upsample(picture).shape == (2, 3, 10, 14)
    np.testing.assert_allclose(upsample(picture), expected, rtol=1e-5, atol=1e-6)


def test_upsampling_keeps_a_flat_picture_away_from_the_border():
    up = upsample(torch.full((1, 2, 6, 6), 0.7))
    torch.testing.assert_close(up[..., 1:-1, 1:-1], torch.full((1, 2, 10, 10), 0.7))
    torch.testing.assert_close(up[0, 0, 0, 0], torch.tensor(0.7 * 0.75**2))  # beyond it there are zeros


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("side", [3, 16], ids=["small map", "large map"])  # scaled are the maps, the weights
@pytest.mark.parametrize(
    ("kernel", "demodulate", "up"), [(3, True, False), (3, True, True), (1, False, False), (3, False, False)]
)
def test_modulated_convolution_is_that_of_the_paper(batch, side, kernel, demodulate, up):
    x, weight, style, bias = random(batch, 6, side, side), random(5, 6, kernel, kernel), random(batch, 6) + 1, random(5)
    got = modulated_conv(x, weight, style, bias, demodulate=demodulate, up=up, gain=1.5)
    for sample in range(batch):
        arguments = (each.double().numpy() for each in (x[sample], weight, style[sample]))
        expected = 1.5 * modulated(*arguments, demodulate, up) + bias.double().numpy()[:, None, None]
        error = np.abs(got[sample].numpy() - expected).max() / np.abs(expected).max()
        assert error < 1e-5


def test_demodulated_maps_keep_the_scale_of_what_came_in():
    x, style = random(1, 64, 32, 32), 50 * random(1, 64).abs() + 1
    y = modulated_conv(x, random(32, 64, 3, 3), style, torch.zeros(32))
    assert 0.8 < y.std() < 1.2


@pytest.mark.parametrize("up", [False, True])
def test_the_gradients_of_a_modulated_convolution(up):
    inputs = [random(2, 3, 3, 3), random(4, 3, 3, 3), random(2, 3) + 1, random(4)]
    inputs = [each.double().requires_grad_() for each in inputs]
    assert torch.autograd.gradcheck(lambda *a: modulated_conv(*a, up=up, gain=1.5), inputs)


def test_a_code_that_is_trained_gives_the_picture_that_it_gives_afterwards():
    x, weight, style, bias = random(1, 4, 16, 16), random(4, 4, 3, 3), random(1, 4), random(4)
    trained = modulated_conv(x, weight, style.clone().requires_grad_(), bias)
    torch.testing.assert_close(modulated_conv(x, weight, style, bias), trained)
