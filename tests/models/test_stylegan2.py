"""StyleGAN2: the whole network against NumPy, and what it promises beyond every generator."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stylegan2_reference import Reference, rosinality

from faceedit.convert.rosinality import generator as from_rosinality
from faceedit.errors import UsageError
from faceedit.models.ops import upsample
from faceedit.models.stylegan2 import StyledConv, StyleGAN2

CHANNELS = {4: 12, 8: 10, 16: 8, 32: 6}
DIM = 16
GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden_stylegan2.safetensors"


@pytest.fixture(scope="module")
def tensors():
    return rosinality(CHANNELS, style_dim=DIM, depth=3)


@pytest.fixture
def generator(tensors):
    return from_rosinality(tensors, torch.zeros(DIM))


def codes(generator, n=1, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator.n_styles, generator.style_dim, generator=random)


def assert_agrees(tensor, array, tolerance=1e-5):
    """Far within the 1e-4 that is asked for."""
    assert tensor.shape == array.shape
    assert np.abs(tensor.double().numpy() - array).max() <= tolerance * np.abs(array).max()


@pytest.mark.parametrize("batch", [1, 2])
def test_every_level_agrees_with_the_formulas(tensors, generator, batch):
    code = codes(generator, batch)
    image, features = generator.synthesize(code)
    preview = generator.preview(code)
    for sample in range(batch):
        images, maps = Reference(tensors).draw(code[sample].double().numpy())
        assert_agrees(image[sample], images[-1])
        assert_agrees(preview[sample], images[-2])
        for ours, theirs in zip(features, maps, strict=True):
            assert_agrees(ours[sample], theirs)


def test_mapping_agrees_with_the_formulas(tensors, generator):
    z = torch.randn(3, DIM, generator=torch.Generator().manual_seed(1))
    for one, w in zip(z, generator.map(z), strict=True):
        assert_agrees(w, Reference(tensors).map(one.double().numpy()))


def test_golden_tensors():
    golden = load_file(GOLDEN)
    network = {name.removeprefix("network."): value for name, value in golden.items() if name.startswith("network.")}
    generator = from_rosinality(network, golden["latent_avg"])
    assert_agrees(generator.map(golden["z"], 0.7), golden["w"].double().numpy())
    image, features = generator.synthesize(golden["code"])
    assert_agrees(image, golden["image"].double().numpy())
    for level, ours in enumerate(features):
        assert_agrees(ours, golden[f"features.{level}"].double().numpy())


# Noise


def test_noise_that_is_passed_takes_the_place_of_the_stored(tensors, generator):
    code, noise = codes(generator, 2), generator.random_noise(2, seed=3)
    image = generator(code, noise)
    for sample in range(2):
        added = [n[sample, 0].double().numpy() for n in noise]
        images, _ = Reference(tensors).draw(code[sample].double().numpy(), added)
        assert_agrees(image[sample], images[-1])
    assert torch.equal(generator(code), generator(code))
    assert not torch.allclose(generator(code), image)


def test_random_noise_follows_its_seed_alone(generator):
    state = torch.random.get_rng_state()
    noise = generator.random_noise(2, seed=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [tuple(n.shape) for n in noise] == [(2, 1, s, s) for s in (4, 8, 8, 16, 16, 32, 32)]
    assert all(torch.equal(a, b) for a, b in zip(noise, generator.random_noise(2, seed=4), strict=True))
    assert not torch.equal(noise[-1][0], noise[-1][1])
    assert not torch.equal(noise[0], generator.random_noise(2, seed=5)[0])


# Rows and hooks


def test_an_image_head_shares_the_row_of_the_next_levels_first_convolution(generator):
    code = codes(generator)
    for level in range(4):
        moved = code.clone()
        moved[:, 2 * level + 1] += 1
        before, after = generator.synthesize(code), generator.synthesize(moved)
        # The features up to this level stay, and so does the sum of images before it.
        assert all(torch.equal(before.features[i], after.features[i]) for i in range(level + 1))
        first_moved = next((i for i in range(4) if not torch.equal(before.features[i], after.features[i])), 4)
        assert first_moved == level + 1
        head = generator.heads[level]
        x = before.features[level]
        assert not torch.allclose(head(x, code[:, 2 * level + 1]), head(x, moved[:, 2 * level + 1]))
    assert not torch.equal(before.image, after.image)


def test_the_picture_shows_what_a_hook_returns_on_top_of_the_levels_before_it(generator):
    code = codes(generator)
    blank = torch.zeros(1, 6, 32, 32)
    image = generator.synthesize(code, lambda level, f: blank if level == 3 else f).image
    torch.testing.assert_close(image, upsample(generator.preview(code)) + generator.heads[3].bias[:, None, None])


def test_given_maps_show_by_their_own_image_heads_and_keep_the_noise_of_finer_levels(generator):
    code, noise = codes(generator), generator.random_noise(1, seed=2)
    image, features = generator.synthesize(code, noise=noise)
    assert torch.equal(generator.synthesize(code, start=features[:2], noise=noise).image, image)
    assert torch.equal(generator.preview(code, start=features[:3], noise=noise), generator.preview(code, noise=noise))
    # Whatever came before the last map counts by the images of its own levels alone.
    blank = tuple(torch.zeros_like(f) for f in features)
    first = generator.synthesize(code, start=(*blank[:3], features[3])).image
    assert not torch.allclose(first, image, atol=1e-3)
    rest = upsample(generator.preview(code, start=blank[:3]))
    torch.testing.assert_close(first, rest + generator.heads[3](features[3], code[:, 7]), rtol=1e-4, atol=1e-5)


# Sizes


@pytest.mark.parametrize(
    ("size", "multiplier", "rows", "channels", "preview"),
    [
        (1024, 2, 18, (512, 512, 512, 512, 512, 256, 128, 64, 32), 256),
        (1024, 1, 18, (512, 512, 512, 512, 256, 128, 64, 32, 16), 256),
        (512, 2, 16, (512, 512, 512, 512, 512, 256, 128, 64), 256),
        (256, 2, 14, (512, 512, 512, 512, 512, 256, 128), 128),
    ],
)
def test_the_official_sizes(size, multiplier, rows, channels, preview):
    with torch.device("meta"):
        generator = StyleGAN2(size, multiplier)
        code = torch.empty(1, rows, 512)
        assert generator(code).shape == (1, 3, size, size)
        assert generator.preview(code).shape == (1, 3, preview, preview)
    assert generator.level_channels == channels
    assert generator.level_sizes[-1] == generator.resolution == size
    assert generator.n_styles == rows
    assert len(generator.mapping.layers) == 8


def test_options_make_the_same_network(generator):
    again = StyleGAN2(**generator.options)
    shapes = {name: value.shape for name, value in generator.state_dict().items()}
    assert {name: value.shape for name, value in again.state_dict().items()} == shapes


@pytest.mark.parametrize("size", [0, 4, 100, 256.0, True, "256"])
def test_a_size_that_makes_no_network_is_refused(size):
    with pytest.raises(UsageError, match="power of two"):
        StyleGAN2(size)


def test_a_list_of_channels_of_another_length_is_refused():
    with pytest.raises(UsageError, match="4 levels"):
        StyleGAN2(32, channels=(8, 8, 8))


def test_a_clamp_holds_every_layer(tensors):
    network = from_rosinality(tensors, torch.zeros(DIM))
    clamped = StyleGAN2(**network.options | {"conv_clamp": 0.5})
    clamped.load_state_dict(network.state_dict())
    code = codes(network)
    free, held = network.synthesize(code), clamped.synthesize(code)
    torch.testing.assert_close(held.features[0], free.features[0].clamp(-0.5, 0.5))
    assert all(f.abs().max() == 0.5 for f in held.features)
    # Five heads' clamped values, through filters whose gain is 1: what clamps the heads bounds the sum.
    assert held.image.abs().max() <= 4 * 0.5 < free.image.abs().max()
    code.requires_grad_()
    torch.testing.assert_close(clamped(code), held.image)
    clamped(code).sum().backward()
    assert code.grad.isfinite().all()


# Compiling, bfloat16, training


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_it_compiles_into_one_graph(generator, backend):
    torch._dynamo.reset()
    code = codes(generator)

    def halve(level, features):
        return features * 0.5 if level == 2 else features

    with torch.inference_mode():
        for draw in (generator.forward, generator.preview, lambda code: generator.synthesize(code, halve).image):
            compiled = torch.compile(draw, backend=backend, fullgraph=True)
            torch.testing.assert_close(compiled(code), draw(code), rtol=1e-4, atol=1e-5)


def test_bfloat16_stays_near_float32(generator):
    code = codes(generator, 4)
    image = generator(code)
    half = generator.to(torch.bfloat16)(code.bfloat16())
    assert half.dtype == torch.bfloat16
    error = (half.float() - image).square().mean().sqrt() / image.std()
    assert 1e-4 < error < 0.03  # measured: .0125


def test_checkpointing_keeps_less_and_gives_the_same_gradients(generator):
    def run():
        kept = 0

        def pack(tensor):
            nonlocal kept
            kept += tensor.numel()
            return tensor

        code = codes(generator, 2).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            image = generator(code)
        image.square().mean().backward()
        return kept, image, code.grad

    kept, image, gradient = run()
    generator.gradient_checkpointing = True
    kept_now, image_now, gradient_now = run()
    torch.testing.assert_close(image_now, image)
    torch.testing.assert_close(gradient_now, gradient)
    assert kept_now < 0.6 * kept


def test_a_new_network_has_styles_near_one_and_no_noise():
    torch.manual_seed(0)
    generator = StyleGAN2(16, channels=(32, 32, 32))
    convs = [module for module in generator.modules() if isinstance(module, StyledConv)]
    assert len(convs) == 5
    assert all(conv.style.bias.eq(1).all() and not conv.noise_strength for conv in convs)
    affine = [module for name, module in generator.named_modules() if name.endswith("style")]
    assert len(affine) == 8 and all(0.9 < linear.weight.std() * 512**0.5 < 1.1 for linear in affine)
    assert not any(parameter.requires_grad for parameter in generator.parameters())
