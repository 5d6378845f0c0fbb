"""What every generator promises, shown on tiny ones with random weights."""

import pytest
import torch
import torch.nn.functional as F

from faceedit.models.mobile_stylegan import MobileStyleGAN
from faceedit.models.stylegan2 import StyleGAN2


def tiny_mobile_stylegan():
    torch.manual_seed(0)
    generator = MobileStyleGAN(channels=(16, 12, 8, 8), style_dim=24, preview_level=2)
    generator.mean_latent.normal_()
    for name, parameter in generator.named_parameters():
        if name.endswith(("style.bias", "up.bias")):
            parameter.fill_(1.4)  # makes up for what the activations take, so that no level fades
    generator.preview_head.start_from(generator.levels[2:], generator.head)
    generator.preview_head.detail.normal_()
    return generator


def tiny_stylegan2():
    torch.manual_seed(0)
    generator = StyleGAN2(32, style_dim=24, mapping_layers=3, channels=(16, 12, 8, 8))
    generator.mean_latent.normal_()
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            parameter.fill_(0.1)
    return generator


@pytest.fixture(scope="module", params=[tiny_mobile_stylegan, tiny_stylegan2], ids=["mobile_stylegan", "stylegan2"])
def generator(request):
    return request.param()


def codes(generator, n=1, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator.n_styles, generator.style_dim, generator=random)


def test_picture_and_features_have_the_sizes_that_are_announced(generator):
    image, features = generator.synthesize(codes(generator, 2))
    assert image.shape == (2, 3, generator.resolution, generator.resolution)
    assert [tuple(f.shape) for f in features] == [
        (2, channels, size, size)
        for channels, size in zip(generator.level_channels, generator.level_sizes, strict=True)
    ]
    assert generator.level_sizes == (4, 8, 16, 32)
    assert torch.equal(image, generator(codes(generator, 2)))


def test_a_batch_equals_its_members(generator):
    both = codes(generator, 2)
    for draw in (generator, generator.preview):
        alone = torch.cat([draw(both[:1]), draw(both[1:])])
        torch.testing.assert_close(draw(both), alone, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(alone[0], alone[1], atol=1e-2)


def test_a_level_reads_its_own_rows_and_no_later_ones(generator):
    code = codes(generator)
    before = generator.synthesize(code).features
    for level in range(len(generator.level_sizes)):
        for row in generator.style_rows(level):
            moved = code.clone()
            moved[:, row] += 1
            after = generator.synthesize(moved).features
            same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
            assert same[:level] == [True] * level
            assert not same[level], f"row {row} does not reach level {level}"


def test_a_hook_sees_every_level_in_order_and_changes_nothing_by_looking(generator):
    code, seen = codes(generator), []

    def look(level, features):
        seen.append((level, features))
        return features

    output = generator.synthesize(code, look)
    assert [level for level, _ in seen] == list(range(len(generator.level_sizes)))
    assert all(a is b for (_, a), b in zip(seen, output.features, strict=True))
    assert torch.equal(output.image, generator(code))


def test_what_a_hook_returns_is_what_flows_on(generator):
    code, other = codes(generator), codes(generator, seed=1)
    theirs = generator.synthesize(other)
    last = len(generator.level_sizes) - 1
    for level in range(last + 1):
        # From here on both passes have the same features and the same rows of W+.
        mixed = code.clone()
        first = generator.style_rows(level).stop
        mixed[:, first:] = other[:, first:]
        output = generator.synthesize(mixed, lambda i, f, at=level: theirs.features[i] if i == at else f)
        assert output.features[level] is theirs.features[level]
        assert all(torch.equal(a, b) for a, b in zip(output.features[level:], theirs.features[level:], strict=True))


def test_features_are_the_first_part_of_a_pass(generator):
    code = codes(generator, 2)
    whole = generator.synthesize(code).features
    for last in range(len(whole)):
        found = generator.features(code, last)
        assert len(found) == last + 1
        assert all(torch.equal(a, b) for a, b in zip(found, whole))


def test_a_pass_goes_on_from_its_own_features(generator):
    code = codes(generator, 2)
    image, features = generator.synthesize(code)
    preview = generator.preview(code)
    before = [f.clone() for f in features]
    for n in range(len(features) + 1):
        again = generator.synthesize(code, start=features[:n])
        assert torch.equal(again.image, image)
        assert len(again.features) == len(features) and all(a is b for a, b in zip(again.features, features[:n]))
        assert torch.equal(generator.preview(code, start=features[:n]), preview)
    assert all(torch.equal(a, b) for a, b in zip(before, features, strict=True)), "given maps are left as they are"


def test_a_hook_does_not_see_the_levels_that_are_given(generator):
    code, other = codes(generator), generator.synthesize(codes(generator, seed=1)).features
    for draw, last in ((generator.synthesize, 3), (generator.preview, 2)):
        seen = []

        def look(level, features, seen=seen):
            seen.append(level)
            return features

        draw(code, look, other[:2])
        assert seen == list(range(2, last + 1))
    changed = generator.synthesize(code, start=other[:2])
    assert not torch.allclose(changed.image, generator(code), atol=1e-3), "the given maps are what flows on"


def test_the_preview_is_smaller_and_takes_hooks_too(generator):
    code, levels = codes(generator, 2), []

    def stop(level, features):
        levels.append(level)
        return torch.zeros_like(features)

    preview = generator.preview(code)
    assert preview.shape == (2, 3, generator.resolution // 2, generator.resolution // 2)
    assert not torch.equal(generator.preview(code, stop), preview)
    assert levels == [0, 1, 2]


def test_truncation_goes_from_the_mean_to_the_code(generator):
    z = torch.randn(3, generator.style_dim, generator=torch.Generator().manual_seed(2))
    w = generator.map(z)
    assert w.shape == (3, generator.style_dim)
    torch.testing.assert_close(generator.map(z, 0.0), generator.mean_latent.expand(3, -1))
    torch.testing.assert_close(generator.map(z, 0.5), (generator.mean_latent + w) / 2)
    torch.testing.assert_close(generator.map(3 * z), w, rtol=1e-4, atol=1e-6)  # only its direction counts


def test_samples_follow_their_seed_alone(generator):
    state = torch.random.get_rng_state()
    latents = generator.sample(3, seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert latents.shape == (3, generator.n_styles, generator.style_dim)
    assert torch.equal(latents, generator.sample(3, seed=5))
    assert not torch.equal(latents, generator.sample(3, seed=6))
    assert not torch.equal(latents[0], latents[1])
    assert torch.equal(latents[:, :1].expand_as(latents), latents)
    nearer = generator.sample(3, seed=5, truncation=0.1) - generator.mean_latent
    assert nearer.norm() < 0.5 * (latents - generator.mean_latent).norm()
    assert not torch.equal(generator.sample(1), generator.sample(1))


def test_broadcast_repeats_a_code_in_every_row(generator):
    w = torch.arange(2.0 * generator.style_dim).view(2, -1)
    rows = generator.broadcast(w)
    assert rows.shape == (2, generator.n_styles, generator.style_dim)
    assert torch.equal(rows[:, 0], w) and torch.equal(rows[:, -1], w)
    assert generator.broadcast(w[0]).shape == (generator.n_styles, generator.style_dim)


def test_parameters_are_frozen_and_codes_are_not(generator):
    assert not any(parameter.requires_grad for parameter in generator.parameters())
    # StyleGAN2's preview leaves out the last level, and with it the rows that no other one reads.
    unread = 2 if isinstance(generator, StyleGAN2) else 0
    for draw, rows in ((generator, generator.n_styles), (generator.preview, generator.n_styles - unread)):
        code = codes(generator).requires_grad_()
        draw(code).square().mean().backward()
        reached = code.grad.abs().amax((0, 2)) > 0
        assert reached.tolist() == [row < rows for row in range(generator.n_styles)]


# MobileStyleGAN alone


def test_the_picture_follows_from_the_last_features_and_the_last_row():
    generator = tiny_mobile_stylegan()
    theirs = generator.synthesize(codes(generator, seed=1))
    mixed = codes(generator)
    mixed[:, -1] = codes(generator, seed=1)[:, -1]
    image = generator.synthesize(mixed, lambda level, f: theirs.features[3] if level == 3 else f).image
    assert torch.equal(image, theirs.image)


def test_rows_are_dealt_out_to_the_levels_in_order_and_the_last_to_the_image_head():
    generator = tiny_mobile_stylegan()
    rows = [row for level in range(4) for row in generator.style_rows(level)]
    assert rows == list(range(generator.n_styles - 1))
    code = codes(generator)
    moved = code.clone()
    moved[:, -1] += 1
    before, after = generator.synthesize(code), generator.synthesize(moved)
    assert all(torch.equal(a, b) for a, b in zip(before.features, after.features, strict=True))
    assert not torch.equal(before.image, after.image)


def test_the_default_has_sixteen_rows_and_a_preview_of_256_pixels():
    with torch.device("meta"):
        generator = MobileStyleGAN()
        image = generator(torch.empty(1, 16, 512))
        preview = generator.preview(torch.empty(1, 16, 512))
    assert (generator.n_styles, generator.style_dim, generator.resolution) == (16, 512, 1024)
    assert generator.level_sizes == (4, 8, 16, 32, 64, 128, 256, 512)
    assert image.shape == (1, 3, 1024, 1024)
    assert preview.shape == (1, 3, 256, 256)


def test_the_first_preview_of_a_picture_without_detail_is_that_picture_reduced():
    generator = tiny_mobile_stylegan()
    for conv in [c for level in generator.levels for c in (level.conv1, level.conv2)]:
        conv.depthwise.zero_()
        conv.depthwise[..., 1, 1] = 1
    for level in generator.levels:  # only the low-pass quarter goes up
        low = level.up.out_features // 4
        level.up.weight[low:] = 0
        level.up.bias[low:] = 0
    head = generator.preview_head
    head.start_from(generator.levels[2:], generator.head)
    head.detail.zero_()
    code = codes(generator)
    reduced = F.avg_pool2d(generator(code), 2)
    # The head's own detail bands average to nothing over the 2x2 pixels that they describe.
    torch.testing.assert_close(generator.preview(code), reduced, rtol=1e-4, atol=1e-5)
    assert reduced.std() > 1e-2
