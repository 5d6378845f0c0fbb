"""The frame net's geometry: what it looks at, and how its answers compose."""

import cmath
import math

import numpy as np
import pytest
import torch

from faceedit.models import frame_net
from faceedit.models.frame_net import FrameNet, cut_window

HEIGHT, WIDTH = 120, 200


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return FrameNet(size=32).eval()


@pytest.fixture
def places():
    """A photo whose red and green are the x and y of each pixel."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8)


def first_guess(box):
    x0, y0, x1, y1 = box
    side = math.sqrt((x1 - x0) * (y1 - y0))
    center = (x0 + x1) / 2, (y0 + y1) / 2 - frame_net.FRAME_ABOVE_BOX * side
    return center, (frame_net.FRAME_PER_BOX * side / 2, 0)


def test_shapes_and_gradients():
    net = FrameNet(size=32)
    torch.nn.init.normal_(net.answer.weight, std=0.1)
    out = net(torch.rand(2, 3, 32, 32) * 2 - 1)
    assert out.shape == (2, 4)
    out.square().sum().backward()
    missing = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


def test_an_untrained_net_keeps_the_guess(net, places):
    box = (60, 30, 120, 80)
    center, axis = first_guess(box)
    for looks in (1, 4):
        found = net.predict(places, box, looks=looks)
        assert found[0] == pytest.approx(center) and found[1] == pytest.approx(axis)


def test_answers_compose_as_similarities(net, places, monkeypatch):
    """Two looks that each say "move by d, turn and grow by m"."""
    d, m = 0.1 - 0.2j, cmath.rect(1.2, math.radians(15))
    answers = torch.tensor([[d.real, d.imag, m.real, m.imag], [-d.real, d.imag, m.real, -m.imag]])
    monkeypatch.setattr(net, "forward", lambda windows: answers)
    box = (60, 30, 120, 80)
    (x, y), (half, _) = first_guess(box)
    center, axis = net.predict(places, box, looks=2)
    assert complex(*center) == pytest.approx(complex(x, y) + half * d + half * m * d, abs=1e-4)
    assert complex(*axis) == pytest.approx(half * m * m, abs=1e-4)


def test_the_second_window_of_the_pair_is_the_mirrored_one(net, places, monkeypatch):
    seen = []
    monkeypatch.setattr(
        net, "forward", lambda w: seen.append(w) or torch.tensor([[0.0, 0, 1, 0]] * 2)
    )
    net.predict(places, (60, 30, 120, 80), looks=1)
    assert torch.equal(seen[0][0], seen[0][1].flip(-1))


@pytest.mark.parametrize(("side", "degrees"), [(50, 0), (100, 25), (20, 140)])
def test_window_pixels_show_their_places(places, side, degrees):
    axis = cmath.rect(side / 2, math.radians(degrees))
    window = (cut_window(places, 100 + 60j, axis, 16) + 1) * 127.5
    steps = (np.arange(16) + 0.5) / 8 - 1
    points = 100 + 60j + axis * (0.12j + 0.8 * (steps[None, :] + 1j * steps[:, None]))
    assert window[0].numpy() == pytest.approx(points.real - 0.5, abs=0.3)
    assert window[1].numpy() == pytest.approx(points.imag - 0.5, abs=0.3)


def test_windows_beyond_the_photo_are_mirrored(places):
    padded = np.pad(places, ((300, 300), (300, 300), (0, 0)), mode="symmetric")
    for center in (5 + 5j, 199 + 60j, 100 + 119j, -150 - 80j):
        window = cut_window(places, center, 70 + 20j, 24)
        expected = cut_window(padded, center + 300 + 300j, 70 + 20j, 24)
        assert torch.allclose(window, expected, atol=0.01)


def test_prediction_follows_the_photo(places):
    """Mirroring or enlarging the photo does the same to the answer, whatever the weights."""
    torch.manual_seed(1)
    net = FrameNet(size=32).eval()
    torch.nn.init.normal_(net.answer.weight, std=0.05)
    photo = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    box = (60, 30, 120, 90)
    (x, y), (ax, ay) = net.predict(photo, box)
    mirrored = net.predict(np.ascontiguousarray(photo[:, ::-1]), (WIDTH - 120, 30, WIDTH - 60, 90))
    assert mirrored[0] == pytest.approx((WIDTH - x, y), abs=1e-2)
    assert mirrored[1] == pytest.approx((ax, -ay), abs=1e-2)
    double = np.repeat(np.repeat(photo, 2, 0), 2, 1)
    grown = net.predict(double, tuple(2 * v for v in box))
    assert grown[0] == pytest.approx((2 * x, 2 * y), rel=0.02)
    assert grown[1] == pytest.approx((2 * ax, 2 * ay), rel=0.02, abs=0.5)
