"""The head that finds bare faces and hair."""

import pytest
import torch
import torch.nn.functional as F

from faceedit.models.parts_net import PartsNet

CHANNELS, SIZES = (2, 3, 4, 5), (64, 32, 16, 8)


def features(n=2, seed=0, dtype=torch.float32):
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(n, c, s, s, generator=source).to(dtype) for c, s in zip(CHANNELS, SIZES)]


def net():
    torch.manual_seed(0)
    return PartsNet(CHANNELS, SIZES, width=6).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_gives_the_maps_of_every_face(dtype):
    maps = features(dtype=dtype)
    logits, found = net()(maps), net().find(maps)
    assert logits.shape == (2, 2, 32, 32), "at the side of the second map"
    assert found.shape == (2, 2, 256, 256) and found.dtype == torch.float32
    wanted = F.interpolate(logits.sigmoid(), (256, 256), mode="bilinear", align_corners=False)
    assert torch.equal(found, wanted) and not found.requires_grad
    torch.testing.assert_close(net().find([m[1:] for m in maps])[0], found[1])


def test_maps_too_coarse_to_know_a_border_are_not_looked_at():
    maps = features()
    other = [*maps[:3], maps[3] + 1]
    assert torch.equal(net()(maps), net()(other))
    for i in range(3):
        assert not torch.equal(net()(maps), net()([m + (j == i) for j, m in enumerate(maps)]))


def test_features_are_standardised():
    plain, scaled = net(), net()
    scaled.mean.fill_(3.0)
    scaled.std.fill_(2.0)
    torch.testing.assert_close(scaled([2 * m + 3 for m in features()]), plain(features()), rtol=1e-4, atol=1e-5)


def test_its_options_make_it_again():
    again = PartsNet(CHANNELS, SIZES, **net().options)
    again.load_state_dict(net().state_dict())
    assert torch.equal(again(features()), net()(features()))
