"""The encoder at a tiny size, with random weights."""

import pytest
import torch
import torch.nn.functional as F

from faceedit.models.efficientnet_encoder import EfficientNetEncoder


def tiny(**changes):
    torch.manual_seed(0)
    options = {"n_styles": 6, "style_dim": 24, "input_size": 64, "width": 8, "hidden": 16}
    encoder = EfficientNetEncoder(**(options | changes))
    encoder.latent_mean.normal_()
    encoder.latent_std.fill_(0.5)
    return encoder.eval()


@pytest.fixture(scope="module")
def encoder():
    return tiny()


def faces(n=2, size=64):
    random = torch.Generator().manual_seed(1)
    coarse = torch.rand(n, 3, 8, 8, generator=random) * 2 - 1
    return F.interpolate(coarse, (size, size), mode="bilinear", align_corners=False)


@torch.no_grad()
def test_one_row_for_each_style_and_a_pyramid_finest_first(encoder):
    latents, features = encoder(faces())
    assert latents.shape == (2, 6, 24)
    assert latents.dtype == torch.float32
    assert [tuple(f.shape) for f in features] == [
        (2, channels, side, side)
        for channels, side in zip(encoder.feature_channels, (32, 16, 8, 4, 2), strict=True)
    ]


def test_the_default_fits_the_default_generator():
    with torch.device("meta"):
        encoder = EfficientNetEncoder()
        latents, features = encoder(torch.empty(1, 3, 256, 256))
    assert latents.shape == (1, 16, 512)
    assert [f.shape[-1] for f in features] == [128, 64, 32, 16, 8]
    assert sum(p.numel() for p in encoder.parameters()) * 2 <= 40e6, "more than 40 MB as float16"


@torch.no_grad()
def test_an_untrained_encoder_gives_the_mean_code(encoder):
    deviations = (encoder(faces()).latents - encoder.latent_mean) / encoder.latent_std
    assert deviations.abs().max() < 0.1
    assert deviations.abs().max() > 0  # but it has begun to look


@torch.no_grad()
def test_each_face_of_a_batch_is_encoded_by_itself(encoder):
    both = faces()
    together = encoder(both)
    alone = [encoder(both[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(together.latents, torch.cat([one.latents for one in alone]), rtol=1e-4, atol=1e-5)
    for level, maps in enumerate(together.features):
        torch.testing.assert_close(maps, torch.cat([one.features[level] for one in alone]), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_pictures_of_another_size_are_resampled(encoder):
    large = faces(size=160)
    small = F.interpolate(large, (64, 64), mode="bilinear", antialias=True, align_corners=False)
    got, expected = encoder(large), encoder(small)
    assert torch.equal(got.latents, expected.latents)
    assert all(torch.equal(a, b) for a, b in zip(got.features, expected.features, strict=True))


@torch.no_grad()
def test_an_untrained_correction_leaves_the_code_alone(encoder):
    image = faces()
    latents = encoder(image).latents
    assert torch.equal(encoder.correct(image, latents, image.flip(-1)), latents)


@torch.no_grad()
def test_a_correction_depends_on_what_the_code_looks_like():
    encoder = tiny()
    torch.nn.init.normal_(encoder.to_correction[1].weight, std=0.1)
    image, seen = faces(), faces(size=96)
    latents = encoder(image).latents
    corrected = encoder.correct(image, latents, seen)
    assert corrected.shape == latents.shape and corrected.dtype == torch.float32
    small = F.interpolate(seen, (64, 64), mode="bilinear", antialias=True, align_corners=False)
    assert torch.equal(encoder.correct(image, latents, small), corrected)
    other = encoder.correct(image, latents, seen.flip(-1))
    assert (other - corrected).abs().max() > 1e-3
    alone = torch.cat([encoder.correct(image[i : i + 1], latents[i : i + 1], seen[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(corrected, alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_bfloat16_gives_nearly_the_same_code(encoder):
    image = faces(size=96)
    half = tiny().bfloat16()
    half.latent_mean.copy_(encoder.latent_mean)
    expected, got = encoder(image).latents, half(image.bfloat16()).latents
    torch.testing.assert_close(got.float(), expected, rtol=0.02, atol=0.02)


def test_the_gradient_reaches_every_parameter():
    encoder = tiny().train()
    torch.nn.init.normal_(encoder.to_correction[1].weight)  # zeros would let nothing through yet
    image = faces(4)
    latents, features = encoder(image)
    corrected = encoder.correct(image, latents.detach(), image.flip(-1))
    outputs = (latents, corrected, *features)
    sum(output.square().sum() for output in outputs).backward()
    dead = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead
