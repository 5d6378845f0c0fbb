"""pSp's encoder at a tiny size against NumPy in float64 and golden tensors, and its published layout."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from irse_reference import TINY, TINY_ENCODER, double, encoder_layout, pictures, pyramid, random_tensors, row
from safetensors.torch import load_file

from faceedit.errors import ConfigError
from faceedit.models.e4e_encoder import Encoder4Editing
from faceedit.models.psp_encoder import EqualLinear, GradualStyleEncoder, Map2Style, _upsample

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden_encoders.safetensors"
CLASSES = {"psp": GradualStyleEncoder, "e4e": Encoder4Editing}
ROWS, DIM = TINY_ENCODER["n_styles"], TINY_ENCODER["style_dim"]


def tiny(kind="psp"):
    encoder = CLASSES[kind](**TINY_ENCODER)
    mean = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(3))
    tensors = random_tensors(encoder_layout(**TINY_ENCODER))
    encoder.load_state_dict({**tensors, "latent_mean": mean, "latent_std": torch.full((DIM,), 0.5)})
    return encoder.eval()


def layout(kind, n_styles):
    with torch.device("meta"):
        found = CLASSES[kind](n_styles).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in found.items() if not name.startswith("latent_")}


@pytest.mark.parametrize("kind", CLASSES)
def test_the_layout_is_the_published_one(kind):
    found = layout(kind, 18)
    assert found == encoder_layout()
    assert len(found) == 621
    # Three names of each kind of stack, spelled out: 4, 5 and 6 halvings.
    assert found["styles.2.convs.6.weight"] == found["styles.6.convs.8.weight"] == (512, 512, 3, 3)
    assert found["styles.17.convs.10.weight"] == (512, 512, 3, 3)
    assert not {"styles.2.convs.8.weight", "styles.6.convs.10.weight", "styles.18.linear.bias"} & set(found)
    assert found["latlayer1.weight"] == (512, 256, 1, 1) and found["latlayer2.weight"] == (512, 128, 1, 1)


def test_smaller_generators_have_fewer_rows():
    for n_styles in (14, 16):
        assert layout("e4e", n_styles) == encoder_layout(n_styles)


@torch.no_grad()
def test_the_pyramid_is_its_formula():
    encoder = tiny()
    tensors = double(encoder.state_dict())
    random = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, c, s, s, generator=random) for c, s in zip(TINY["widths"], (32, 16, 8, 4), strict=True)]
    middle = _upsample(maps[3], encoder.latlayer1(maps[2]))
    fine = _upsample(middle, encoder.latlayer2(maps[1]))
    _, *expected = pyramid([level.double().numpy() for level in maps], tensors)
    for found, array in zip((middle, fine), expected, strict=True):
        torch.testing.assert_close(found.double().numpy(), array, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [4, 16])
@torch.no_grad()
def test_a_row_is_its_formula(size):
    stack = Map2Style(12, 20, size)
    tensors = random_tensors({name: tuple(t.shape) for name, t in stack.state_dict().items()})
    stack.load_state_dict(tensors)
    x = torch.randn(3, 12, size, size, generator=torch.Generator().manual_seed(0))
    expected = row(x.double().numpy(), double({f"styles.0.{name}": t for name, t in tensors.items()}), 0)
    assert expected.std() > 0.1
    torch.testing.assert_close(stack(x).double().numpy(), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_untrained_equal_linear_keeps_the_scale():
    torch.manual_seed(0)
    assert EqualLinear(512, 512)(torch.randn(64, 512)).std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("kind", CLASSES)
@torch.no_grad()
def test_codes_and_features_are_the_golden_ones(kind):
    encoder, golden = tiny(kind), load_file(GOLDEN)
    latents, features = encoder(pictures())
    torch.testing.assert_close(latents - encoder.latent_mean, golden[f"{kind}.codes"], rtol=1e-4, atol=2e-5)
    for i, level in enumerate(features):
        torch.testing.assert_close(level.mean(1), golden[f"maps.{i}"], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_features_go_from_fine_to_coarse():
    encoder = tiny()
    latents, features = encoder(pictures())
    assert latents.dtype == torch.float32 and encoder.looks == 0
    assert [tuple(f.shape[1:]) for f in features] == [
        (channels, side, side) for channels, side in zip(encoder.feature_channels, (32, 16, 8, 4), strict=True)
    ]


@torch.no_grad()
def test_pictures_of_another_size_are_resampled():
    encoder, large = tiny(), pictures(size=160)
    small = F.interpolate(large, (64, 64), mode="bilinear", antialias=True, align_corners=False)
    assert torch.equal(encoder(large).latents, encoder(small).latents)


@torch.no_grad()
def test_bfloat16_gives_nearly_the_same_code():
    image, encoder = pictures(), tiny()
    expected, got = encoder(image).latents, encoder.bfloat16()(image.bfloat16()).latents
    assert got.dtype == torch.float32
    assert (got - expected).square().mean().sqrt() < 0.02 * expected.std()


@pytest.mark.parametrize("size", [16, 96])
def test_a_size_that_does_not_halve_is_refused(size):
    with pytest.raises(ConfigError, match=f"power of two from 32, not {size}"):
        GradualStyleEncoder(**(TINY_ENCODER | {"input_size": size}))


@pytest.mark.parametrize("kind", CLASSES)
def test_the_gradient_reaches_every_parameter(kind):
    torch.manual_seed(0)
    encoder = CLASSES[kind](**TINY_ENCODER)
    encoder(torch.randn(4, 3, 64, 64)).latents.square().sum().backward()
    dead = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead
