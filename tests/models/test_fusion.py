"""The fused pass (equation 7) on both generators and every encoder, at tiny size."""

import pytest
import torch
import torch.nn.functional as F
from tiny_editor import make_editor, make_encoder, make_stylegan2_editor

from faceedit.errors import ConfigError
from faceedit.models import fusion as module
from faceedit.models.fusion import FusionGenerator

PHOTO = 32
WORLDS = ("mobile_stylegan efficientnet_lite", "mobile_stylegan psp", "mobile_stylegan e4e", "stylegan2 efficientnet_lite")


@pytest.fixture(scope="module")
def world():
    """Generator and encoder by name; made once each."""
    made = {}

    def get(name=WORLDS[0]):
        if name not in made:
            kind, encoder_name = name.split()
            editor = make_stylegan2_editor() if kind == "stylegan2" else make_editor()
            encoder = make_encoder(encoder_name)[0] if kind == "mobile_stylegan" else editor._encoder
            made[name] = editor.generator, encoder.eval().requires_grad_(False)
        return made[name]

    return get


@pytest.fixture(autouse=True)
def both_readings(monkeypatch):
    """Literal attention up to 8x8, pointwise above."""
    monkeypatch.setattr(module, "ATTENTION_SIZE", 8)


def make_fusion(world, levels=(1, 2), trained=True, **settings):
    generator, encoder = world
    torch.manual_seed(3)
    widths = [4 + level for level in levels]
    fusion = FusionGenerator(generator, encoder, ("smile", "age"), levels, widths, 5, 6, **settings)
    if trained:  # as if
        for extractor in fusion.content.extractors:
            torch.nn.init.normal_(extractor.leave.weight, std=0.2)
    return fusion.requires_grad_(False)


def codes(world, n=1, seed=0):
    generator, _ = world
    return torch.randn(n, generator.n_styles, generator.style_dim, generator=torch.Generator().manual_seed(seed))


def photos(n=1, seed=0):
    return torch.rand(n, 3, PHOTO, PHOTO, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def encode(fusion, world, code, n=1):
    x = photos(n)
    return fusion.encode(x, world[1](x).features, code).maps


STRENGTHS = {"smile": 1.0}


@pytest.mark.parametrize("name", WORLDS)
def test_equation_7_by_an_independent_walk_over_the_levels(world, name):
    """Content maps and relevance are computed again, apart, and mixed with explicit weights 1 - m and m."""
    world = world(name)
    generator, encoder = world
    fusion = make_fusion(world)
    code, edited = codes(world), codes(world) + 0.3 * codes(world, seed=1)
    found = fusion(encode(fusion, world, code), edited, [STRENGTHS])

    x, unedited = photos(), generator.synthesize(code).features
    seen = generator.preview(code).clamp(-1, 1)
    maps = fusion.content.encode(x, seen, encoder(x).features, [unedited[i] for i in fusion.levels])
    style, relevance = generator.synthesize(edited).features, []
    rows = 0 * fusion.content.directions["smile"] + fusion.content.directions["age"]

    def mix(level, f_sty):
        if level not in fusion.levels:
            return f_sty
        i = fusion.levels.index(level)
        f_cnt = f_sty + fusion.content.extractors[i](*maps[i], f_sty, rows[None, i])
        m = fusion.maps[i](fusion.maps[i].query(unedited[level]), style[level])
        relevance.append(m)
        return (1 - m) * f_sty + m * f_cnt

    image = generator.synthesize(edited, mix).image
    torch.testing.assert_close(found.image, image, rtol=1e-4, atol=1e-4)
    assert len(found.relevance) == 2
    for ours, theirs, level in zip(found.relevance, relevance, fusion.levels, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        assert ours.shape == (1, 1, generator.level_sizes[level], generator.level_sizes[level])
        assert ours.min() >= 0 and ours.max() <= 1
    assert (image - generator(edited)).abs().mean() > 1e-3, "content is seen"


@pytest.mark.parametrize("name", [WORLDS[0], WORLDS[3]])
def test_an_untrained_branch_leaves_every_picture_as_it_is(world, name):
    world = world(name)
    generator, _ = world
    fusion, edited = make_fusion(world, trained=False), codes(world, 2, seed=1)
    content = encode(fusion, world, codes(world, 2), 2)
    assert torch.equal(fusion(content, edited, [STRENGTHS, {}]).image, generator(edited))
    assert torch.equal(fusion(content, edited, [STRENGTHS, {}], preview=True).image, generator.preview(edited))


@pytest.mark.parametrize("name", [WORLDS[0], WORLDS[3]])
def test_a_preview_draws_no_level_beyond_its_exit(world, name, monkeypatch):
    world = world(name)
    generator, _ = world
    finest = len(generator.level_sizes) - 1
    levels = (generator.preview_level, finest)
    assert levels[0] < finest
    fusion = make_fusion(world, levels=levels)
    edited, content = codes(world, seed=1), encode(fusion, world, codes(world))
    lasts, features = [], generator.features
    monkeypatch.setattr(generator, "features", lambda latents, last: lasts.append(last) or features(latents, last))
    found, whole = (fusion(content, edited, [STRENGTHS], preview=preview) for preview in (True, False))
    assert lasts == [generator.preview_level, finest]
    assert len(found.relevance) == 1 and len(whole.relevance) == 2
    torch.testing.assert_close(found.relevance[0], whole.relevance[0])
    assert not torch.equal(found.image, generator.preview(edited)), "content is seen"


@pytest.mark.parametrize("name", WORLDS)
def test_the_published_variant_on_all_levels(world, name):
    world = world(name)
    generator, _ = world
    fusion = make_fusion(world, tuple(range(len(generator.level_sizes))), follow=False)
    output = fusion(encode(fusion, world, codes(world)), codes(world, seed=1), [STRENGTHS])
    assert output.image.shape == (1, 3, generator.resolution, generator.resolution) and output.image.isfinite().all()
    assert [m.shape[-1] for m in output.relevance] == list(generator.level_sizes)
    assert not torch.allclose(output.image, generator(codes(world, seed=1)), atol=1e-3)


def test_following_branches_reach_levels_finer_than_the_photograph(world):
    world = world(WORLDS[3])
    generator, _ = world
    assert generator.level_sizes[-1] > PHOTO
    fusion = make_fusion(world, (2, 4))
    output = fusion(encode(fusion, world, codes(world)), codes(world, seed=1), [{}])
    assert output.relevance[-1].shape[-1] == generator.level_sizes[-1] and output.image.isfinite().all()


def test_a_batch_equals_its_members(world):
    world = world()
    fusion, code, edited = make_fusion(world), codes(world, 2), codes(world, 2, seed=1)
    strengths = [STRENGTHS, {"age": -0.5}]
    content = encode(fusion, world, code, 2)
    both = fusion(content, edited, strengths)
    for i in range(2):
        alone = fusion([part[i : i + 1] for part in content], edited[i : i + 1], strengths[i : i + 1])
        torch.testing.assert_close(alone.image[0], both.image[i], rtol=1e-4, atol=1e-4)
    one = fusion([part[:1] for part in content], edited, strengths)  # two edits of one photograph
    torch.testing.assert_close(one.image[0], both.image[0], rtol=1e-4, atol=1e-4)


def test_without_relevance_all_is_content(world):
    world = world()
    generator, _ = world
    whole, plain = make_fusion(world), make_fusion(world, relevance=False)
    plain.content.load_state_dict(whole.content.state_dict())
    assert not any(name.startswith("maps.") for name in plain.state_dict())
    for m in whole.maps:  # a map that says 1 everywhere
        m.forward = lambda query, edited: edited.new_ones(1, 1, *edited.shape[2:])
    edited = codes(world, seed=1)
    ones, none = (f(encode(f, world, codes(world)), edited, [{}]) for f in (whole, plain))
    assert none.relevance == ()
    torch.testing.assert_close(ones.image, none.image, rtol=1e-4, atol=1e-4)
    for m in whole.maps:
        m.forward = lambda query, edited: edited.new_zeros(1, 1, *edited.shape[2:])
    styled = whole(encode(whole, world, codes(world)), edited, [{}]).image
    torch.testing.assert_close(styled, generator(edited), rtol=1e-5, atol=1e-5)


def test_an_unedited_code_is_content_and_an_edit_lowers_the_map_where_features_move(world):
    world = world()
    fusion, code = make_fusion(world, (2,)), codes(world)
    content = encode(fusion, world, code)
    (same,), (edited,) = (fusion(content, c, [{}]).relevance for c in (code, code + codes(world, seed=1)))
    assert same.min() > 0.99
    assert edited.mean() < same.mean() - 0.1


def test_what_the_style_branch_draws_comes_with_the_maps(world):
    world = world()
    fusion, code, x = make_fusion(world), codes(world), photos()
    features = world[1](x).features
    torch.testing.assert_close(fusion.encode(x, features, code).drawn, world[0].preview(code))
    assert make_fusion(world, follow=False).encode(x, features, code).drawn is None


@pytest.mark.parametrize("name", [WORLDS[0], WORLDS[3]])
def test_levels_that_do_not_compare_take_the_last_map_enlarged(world, name, monkeypatch):
    world = world(name)
    generator, _ = world
    fusion, all_compare = make_fusion(world, (1, 2, 3), compared=2), make_fusion(world, (1, 2, 3))
    fusion.load_state_dict({key: value for key, value in all_compare.state_dict().items() if not key.startswith("maps.2.")})
    edited, content = codes(world, seed=1), encode(fusion, world, codes(world))
    assert fusion.takes([each[0] for each in content])
    lasts, features = [], generator.features
    monkeypatch.setattr(generator, "features", lambda latents, last: lasts.append(last) or features(latents, last))
    found = fusion(content, edited, [STRENGTHS])
    assert lasts == [2], "the style branch is drawn no further than maps are compared"
    whole = all_compare(encode(all_compare, world, codes(world)), edited, [STRENGTHS])
    for ours, theirs in zip(found.relevance[:2], whole.relevance):
        torch.testing.assert_close(ours, theirs)
    size = (generator.level_sizes[3],) * 2
    enlarged = torch.nn.functional.interpolate(found.relevance[1], size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(found.relevance[2], enlarged)
    # With that map in place of its own, a branch that compares everywhere draws the same.
    all_compare.maps[2].forward = lambda query, edited: enlarged
    same = all_compare(encode(all_compare, world, codes(world)), edited, [STRENGTHS]).image
    torch.testing.assert_close(found.image, same, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found.image, whole.image, atol=1e-3)


@pytest.mark.parametrize("compared", [0, 3])
def test_no_more_levels_compare_than_are_fused(world, compared):
    with pytest.raises(ConfigError, match="compared"):
        make_fusion(world(), compared=compared)


def test_the_generator_is_no_part_of_the_state_and_can_be_changed(world):
    world = world()
    generator, _ = world
    fusion = make_fusion(world)
    assert {name.split(".")[0] for name in fusion.state_dict()} == {"content", "maps"}
    assert not any(p is q for p in fusion.parameters() for q in generator.parameters())
    other = make_editor().generator
    other.head.bias.add_(1)
    content, edited = encode(fusion, world, codes(world)), codes(world, seed=1)
    before = fusion(content, edited, [{}]).image
    fusion.attach(other)
    torch.testing.assert_close(fusion(content, edited, [{}]).image.mean(), before.mean() + 0.5, atol=0.6, rtol=0)
    assert not torch.equal(fusion(content, edited, [{}]).image, before)


@pytest.mark.parametrize("name", [WORLDS[0], WORLDS[3]])
def test_all_of_it_runs_in_bfloat16(world, name):
    generator, encoder = world(name)
    editor = make_stylegan2_editor() if name.startswith("stylegan2") else make_editor()
    small = editor.generator.bfloat16(), encoder
    exact, half = make_fusion((generator, encoder)), make_fusion(small).bfloat16()
    code, edited, x = codes(small), codes(small, seed=1), photos()
    features = encoder(x).features
    image = exact(exact.encode(x, features, code).maps, edited, [STRENGTHS]).image
    content = half.encode(x.bfloat16(), [f.bfloat16() for f in features], code.bfloat16()).maps
    found = half(content, edited.bfloat16(), [STRENGTHS])
    assert found.image.dtype == torch.bfloat16 and {part.dtype for part in content} == {torch.bfloat16}
    assert (found.image.float() - image).square().mean().sqrt() < 0.1 * image.std()


@pytest.mark.parametrize("levels", [(), (2, 1), (1, 1), (-1, 2), (3, 9)])
def test_levels_that_the_generator_has_not_are_refused(world, levels):
    with pytest.raises(ConfigError, match="levels"):
        make_fusion(world(), levels)


@pytest.mark.parametrize("preview", [False, True])
def test_a_mouth_that_is_made_anew_has_nothing_of_the_photographs(world, preview, monkeypatch):
    """With parts the relevance maps are those of `undivided`, on every level, and the picture is drawn with them."""
    world = world()
    generator, _ = world
    levels = (generator.preview_level - 1, generator.preview_level, generator.preview_level + 1)
    fusion = make_fusion(world, levels=levels, compared=2)
    parts = torch.zeros(1, 4, 16, 16)
    parts[:, 0, 8:] = 1
    parts[:, 3] = 1
    monkeypatch.setattr(
        module, "undivided", lambda maps, parts: [m * (1 - F.interpolate(parts[:, :1], m.shape[-2:], mode="area")) for m in maps]
    )
    edited, content = codes(world, seed=1), encode(fusion, world, codes(world))
    plain, found = (fusion(content, edited, [STRENGTHS], preview, p) for p in (None, parts))
    draws = generator.preview if preview else generator
    assert len(found.relevance) == (2 if preview else 3)
    for m in found.relevance:
        side = m.shape[-1]
        assert m[..., side // 2 + 1 :, :].abs().max() == 0 and m[..., : side // 2 - 1, :].max() > 0
    assert not torch.equal(found.image, plain.image)
    low = slice(-found.image.shape[-1] // 8, None)
    off = [(x - draws(edited))[..., low, :].abs().mean() for x in (found.image, plain.image)]
    assert off[0] < 0.5 * off[1], "far from the border only the style branch is seen"
