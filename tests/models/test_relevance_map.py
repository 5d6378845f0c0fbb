"""Both readings of equation 6, against NumPy and against what they promise."""

import numpy as np
import pytest
import torch

from faceedit.models.relevance_map import RelevanceMap, undivided

CHANNELS, DIM, SIDE = 6, 4, 5
READINGS = ("attention", "pointwise")


def relevance_map(reading):
    """With two projections that differ, as trained ones do."""
    torch.manual_seed(0)
    module = RelevanceMap(CHANNELS, DIM, reading)
    torch.nn.init.normal_(module.key.weight)
    return module.requires_grad_(False)


def maps(n=1, seed=0):
    return torch.randn(n, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def projected(conv, x):
    """Rows of positions, by NumPy: ``(positions, DIM)``."""
    weight, bias = conv.weight.double().numpy()[:, :, 0, 0], conv.bias.double().numpy()
    return x.double().numpy().reshape(CHANNELS, -1).T @ weight.T + bias


def test_attention_is_the_softmax_of_all_positions_in_units_of_its_largest_share():
    module, before, after = relevance_map("attention"), maps(2), maps(2, seed=1)
    found = module(module.query(before), after)
    for ours, q, k in zip(found, before, after, strict=True):
        products = projected(module.query, q) @ projected(module.key, k).T / np.sqrt(DIM)
        softmax = np.exp(products) / np.exp(products).sum(1, keepdims=True)
        assert np.allclose(ours[0].flatten(), np.diag(softmax) / softmax.max(1), atol=1e-5)
    assert found.min() < 0.5, "random maps differ"


def test_pointwise_is_a_softmax_of_two_likeness_against_threshold():
    module, before, after = relevance_map("pointwise"), maps(2), maps(2, seed=1)
    found = module(module.query(before), after)
    threshold, sharpness = module.threshold.item(), module.sharpness.item()
    for ours, q, k in zip(found, before, after, strict=True):
        a, b = projected(module.query, q), projected(module.key, k)
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        content, style = np.exp(sharpness * cosine), np.full_like(cosine, np.exp(sharpness * threshold))
        assert np.allclose(ours[0].flatten(), content / (content + style), atol=1e-5)


@pytest.mark.parametrize("reading", READINGS)
def test_one_value_a_position_from_0_to_1_even_of_large_maps(reading):
    module = relevance_map(reading)
    for scale in (0, 1, 1e4):
        found = module(module.query(scale * maps(2)), scale * maps(2, seed=1))
        assert found.shape == (2, 1, SIDE, SIDE)
        assert found.min() >= 0 and found.max() <= 1


def distinct():
    """A map whose positions have nothing in common, and the projection that tells them apart."""
    positions = torch.eye(SIDE * SIDE).view(1, -1, SIDE, SIDE)
    return 8 * positions, torch.eye(SIDE * SIDE)[:, :, None, None]


@pytest.mark.parametrize("reading", READINGS)
def test_unchanged_positions_are_content_and_changed_ones_are_not(reading):
    before, projection = distinct()
    module = RelevanceMap(before.shape[1], before.shape[1], reading).requires_grad_(False)
    for conv in (module.query, module.key):
        conv.weight.copy_(projection)
        conv.bias.zero_()
    query = module.query(before)
    assert module(query, before).min() > 0.99
    after = before.clone()
    after[..., 1:3, 2:5] = before[..., 1:3, 2:5].roll((1, 1), (2, 3))  # six positions' features have moved
    found = module(query, after)[0, 0]
    changed = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    changed[1:3, 2:5] = True
    assert found[changed].max() < 0.1 and found[~changed].min() > 0.99


def test_a_new_map_compared_pointwise_finds_an_unchanged_one_content_whatever_it_holds():
    torch.manual_seed(1)
    module = RelevanceMap(CHANNELS, DIM).requires_grad_(False)
    for scale in (0.1, 1.0, 30.0):
        x = scale * maps()
        assert module(module.query(x), x).min() > 0.99


@pytest.mark.parametrize("reading", READINGS)
def test_a_query_made_once_serves_many_edits(reading):
    module, edits = relevance_map(reading), maps(3, seed=1)
    query = module.query(maps())
    each = torch.cat([module(query, edit[None]) for edit in edits])
    torch.testing.assert_close(module(query, edits), each, rtol=1e-5, atol=1e-6)
    both = module(module.query(maps(3)), edits)
    assert not torch.allclose(both[1:], each[1:], atol=1e-2)


@pytest.mark.parametrize("reading", READINGS)
def test_autocast_to_bfloat16_stays_near_float32(reading):
    module, x = relevance_map(reading), 3 * maps(4)
    after = x + maps(4, seed=1)
    exact = module(module.query(x), after)
    with torch.autocast("cpu", torch.bfloat16):
        found = module(module.query(x), after.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).abs().mean() < 0.02


@pytest.mark.parametrize("reading", READINGS)
def test_gradients_reach_every_parameter(reading):
    module = relevance_map(reading).requires_grad_(True)
    module(module.query(maps()), maps(seed=1)).square().sum().backward()
    without = [name for name, p in module.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-6]
    # A softmax forgets what is added to all of a row: literal attention does not see its keys' bias.
    assert without == (["key.bias"] if reading == "attention" else [])


def face_with(mouth, around_eyes, face=0.9, eyes=0.6):
    """Maps of two sizes with these values in the parts of a face, and where the parts are."""
    parts = torch.zeros(1, 4, 32, 32)
    for channel, rows in enumerate((slice(20, 28), slice(8, 10), slice(6, 12), slice(4, 28))):
        parts[:, channel, rows, 8:24] = 1
    parts[:, 2] -= parts[:, 1]
    m = torch.ones(1, 1, 32, 32)
    for part, value in zip((3, 2, 1, 0), (face, around_eyes, eyes, mouth)):
        m[:, :, parts[0, part] > 0] = value
    m[..., 21, 9] += 0.05  # no map is smooth
    return [torch.nn.functional.avg_pool2d(m, 2), m], parts


@pytest.mark.parametrize(
    ("face", "mouth", "around_eyes", "another", "worn"),
    [
        (0.9, 0.4, 0.9, True, False),  # a smile
        (0.9, 0.9, 0.4, False, True),  # glasses
        (0.9, 0.4, 0.4, True, True),  # both
        (0.5, 0.4, 0.5, False, False),  # an edit of the whole face
        (0.95, 0.87, 0.95, False, False),  # a mouth that is as it was
    ],
)
def test_a_mouth_and_eyes_are_each_of_one_kind(face, mouth, around_eyes, another, worn):
    """A mouth that an edit makes anew has no content; eyes, with something new before them, have all of it."""
    maps, parts = face_with(mouth, around_eyes, face)
    found = undivided(maps, parts)
    for before, after in zip(maps, found, strict=True):
        scaled = torch.nn.functional.interpolate(parts, before.shape[-2:], mode="area")
        lips, eyes = scaled[:, :1] == 1, scaled[:, 1:2] == 1
        wanted = before.clone()
        if another:
            wanted[lips] = 0
        if worn:
            wanted[eyes] = 1
        torch.testing.assert_close(after, wanted)
    assert found[1][..., 9, 9] == (1 if worn else maps[1][..., 9, 9])


def test_each_picture_of_a_batch_is_judged_for_itself():
    smile, parts = face_with(0.4, 0.9)
    still, _ = face_with(0.87, 0.9)
    both = undivided([torch.cat(pair) for pair in zip(smile, still)], parts.expand(2, -1, -1, -1))
    for ours, one, other in zip(both, undivided(smile, parts), undivided(still, parts), strict=True):
        assert torch.equal(ours, torch.cat((one, other)))
