"""Both published layouts of StyleGAN2: what arrives, what it draws, and what is refused."""

import numpy as np
import pytest
import torch
from stylegan2_reference import CONFIG_F, Reference, as_nvidia, filter_taps, rosinality

from faceedit.convert import nvidia
from faceedit.convert import rosinality as converter
from faceedit.errors import CheckpointError

CHANNELS = {4: 12, 8: 10, 16: 8, 32: 6}
DIM = 16


@pytest.fixture(scope="module")
def tensors():
    return rosinality(CHANNELS, style_dim=DIM, depth=3)


@pytest.fixture(scope="module")
def latent_avg():
    return torch.randn(DIM, generator=torch.Generator().manual_seed(1))


LAYOUTS = {
    "rosinality": lambda tensors, latent_avg: (converter.generator, tensors),
    "nvidia": lambda tensors, latent_avg: (nvidia.generator, as_nvidia(tensors, latent_avg)),
}


@pytest.fixture(params=LAYOUTS)
def layout(request, tensors, latent_avg):
    """A converter and a checkpoint of its layout, which a test may change."""
    convert, found = LAYOUTS[request.param](tensors, latent_avg)
    return convert, dict(found)


def test_a_whole_config_f_checkpoint_arrives():
    tensors = rosinality(CONFIG_F)
    assert len(tensors) == 171
    generator = converter.generator(tensors, torch.ones(512))
    assert (generator.resolution, generator.n_styles, generator.style_dim) == (1024, 18, 512)
    assert generator.level_channels == tuple(CONFIG_F.values())
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in generator.parameters())
    assert torch.equal(generator.mean_latent, torch.ones(512))
    # The products that the original makes at run time, to the last bit.
    for key, name, scale in (
        ("levels.7.conv1.weight", "convs.14.conv.weight", 1 / (64 * 9) ** 0.5),
        ("heads.8.weight", "to_rgbs.7.conv.weight", 1 / 32**0.5),
        ("levels.3.conv2.style.weight", "convs.7.conv.modulation.weight", 1 / 512**0.5),
        ("mapping.layers.7.bias", "style.8.bias", 0.01),
    ):
        ours = generator.state_dict()[key]
        assert torch.equal(ours, (tensors[name] * scale).reshape(ours.shape)), key


def test_half_the_channels_follow_from_the_shapes():
    half = {side: width if side <= 32 else width // 2 for side, width in CONFIG_F.items() if side <= 64}
    assert converter.generator(rosinality(half), torch.zeros(512)).level_channels == (512, 512, 512, 512, 256)


def test_both_layouts_of_a_network_give_the_same_one(tensors, latent_avg):
    ours = converter.generator(tensors, latent_avg).state_dict()
    theirs = nvidia.generator(as_nvidia(tensors, latent_avg)).state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(theirs[key], value, rtol=1e-6, atol=0)


def test_what_arrives_draws_what_the_formulas_say(layout, tensors):
    convert, found = layout
    generator = convert(found)
    code = torch.randn(1, 8, DIM, generator=torch.Generator().manual_seed(2))
    images, _ = Reference(tensors).draw(code[0].double().numpy())
    error = np.abs(generator(code)[0].double().numpy() - images[-1]).max() / np.abs(images[-1]).max()
    assert error < 1e-5


def test_a_missing_tensor_is_named(layout):
    convert, found = layout
    for name in list(found):
        rest = {other: value for other, value in found.items() if other != name}
        with pytest.raises(CheckpointError, match="missing.*") as caught:
            convert(rest)
        assert name in str(caught.value)


def test_a_tensor_that_is_left_over_is_named(layout):
    convert, found = layout
    with pytest.raises(CheckpointError, match=r"left over: mapping\.embed\.weight"):
        convert({**found, "mapping.embed.weight": torch.zeros(3)})


def test_a_misshapen_tensor_is_named_and_no_other(layout):
    convert, found = layout
    for name, value in found.items():
        wrong = torch.zeros(value.numel() + 1)
        with pytest.raises(CheckpointError, match="misfitting") as caught:
            convert({**found, name: wrong})
        assert f"{name} is float ({wrong.numel()},) and must be float {tuple(value.shape)}" in str(caught.value)
        assert str(caught.value).count("must be") == 1


def test_a_tensor_of_integers_is_refused(layout):
    convert, found = layout
    name = next(iter(found))
    with pytest.raises(CheckpointError, match=f"{name} is torch.int64"):
        convert({**found, name: found[name].long()})


def test_another_filter_is_refused(layout):
    convert, found = layout
    name = next(name for name, value in found.items() if value.shape == (4, 4) and name.endswith(("kernel", "filter")))
    with pytest.raises(CheckpointError, match=f"{name} is not the filter"):
        convert({**found, name: torch.full((4, 4), float(filter_taps(1).sum()) / 16)})


@pytest.mark.parametrize("convert", [converter.generator, nvidia.generator])
@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"conv.weight": torch.zeros(3)},
        {"style.1.bias": torch.zeros(0), "to_rgbs.0.bias": torch.zeros(0), "input.input": torch.zeros(1, 0, 4, 4)},
        {"mapping.fc0.bias": torch.zeros(0), "synthesis.b8.conv0.bias": torch.zeros(0)},
    ],
    ids=["empty", "another network", "sizes of zero, rosinality", "sizes of zero, NVIDIA"],
)
def test_what_is_no_generator_at_all_is_refused(convert, tensors):
    with pytest.raises(CheckpointError, match="not a StyleGAN2 generator"):
        convert(tensors)


def test_the_mean_of_w_is_taken_in_any_of_its_forms(tensors, latent_avg):
    for form in (latent_avg, latent_avg[None], latent_avg.expand(8, -1)):
        assert torch.equal(converter.generator(tensors, form).mean_latent, latent_avg)
    with pytest.raises(CheckpointError, match="rows that differ"):
        converter.generator(tensors, torch.randn(8, DIM))
    with pytest.raises(CheckpointError, match=r"latent_avg is float \(3,\)"):
        converter.generator(tensors, torch.zeros(3))


def test_a_mean_of_w_that_is_not_there_is_computed(tensors):
    generator = converter.generator(tensors)
    random = torch.randn(20_000, DIM, generator=torch.Generator().manual_seed(5))
    mean = generator.map(random).mean(0)
    torch.testing.assert_close(generator.mean_latent, mean, rtol=0, atol=0.05 * generator.map(random).std().item())
    assert generator.mean_latent.abs().max() > 0.1


def test_half_precision_files_arrive_in_single(tensors, latent_avg):
    generator = converter.generator({name: value.half() for name, value in tensors.items()}, latent_avg)
    assert all(value.dtype == torch.float32 for value in generator.state_dict().values())


def test_the_clamp_of_mixed_precision_networks_is_kept(tensors, latent_avg):
    generator = nvidia.generator(as_nvidia(tensors, latent_avg), conv_clamp=0.5)
    assert generator.options["conv_clamp"] == 0.5
    assert generator.synthesize(torch.zeros(1, 8, DIM)).features[-1].abs().max() == 0.5
