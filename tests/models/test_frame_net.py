"""The frame net's geometry: what it looks at, and what follows from what it sees."""

import cmath
import math

import numpy as np
import pytest
import torch

from faceedit.crop import frame_from_landmarks
from faceedit.errors import LandmarksError
from faceedit.models.face_mesh import LEFT_EYE, LEFT_MOUTH, MOUTH, N_POINTS, NOSE, OUTLINE, RIGHT_EYE, RIGHT_MOUTH
from faceedit.models.frame_net import FrameNet, cut_window

HEIGHT, WIDTH = 120, 200


@pytest.fixture
def net():
    torch.manual_seed(0)
    return FrameNet().eval()


@pytest.fixture
def places():
    """A photo whose red and green are the x and y of each pixel."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8)


def planted(center, half, degrees):
    """A face in the photo, ``(468,)`` complex: a turned ellipse with eyes, nose and mouth."""
    mesh = np.exp(2j * np.pi * np.arange(N_POINTS) / N_POINTS)
    mesh = 0.8 * mesh.real + 1j * mesh.imag
    mesh[list(LEFT_EYE)], mesh[list(RIGHT_EYE)] = -0.4 - 0.3j, 0.38 - 0.28j
    mesh[[NOSE, LEFT_MOUTH, RIGHT_MOUTH]] = 0.1 + 0.1j, -0.2 + 0.5j, 0.3 + 0.5j
    return center + cmath.rect(half, math.radians(degrees)) * mesh


class Seeing(torch.nn.Module):
    """Finds the planted face, wherever the window is: the colours of `places` tell."""

    size = 192

    def __init__(self, mesh):
        super().__init__()
        self.mesh, self.windows = mesh, []
        steps = (np.arange(self.size) + 0.5) * (2 / self.size) - 1
        x, y = np.meshgrid(steps, steps)
        self.grid = np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3)

    def forward(self, windows):
        found = []
        for window in windows.double().numpy():
            colours = (window[:2].reshape(2, -1).T + 1) * 127.5 + 0.5
            inside = (np.abs(colours / (WIDTH, HEIGHT) - 0.5) < 0.45).all(1)  # not yet mirrored
            (to_x, to_y, start), *_ = np.linalg.lstsq(self.grid[inside], colours[inside], rcond=None)
            mesh = self.mesh.copy()
            if to_x[0] * to_y[1] < to_x[1] * to_y[0]:  # a mirrored window: left and right change names
                for a, b in ((list(LEFT_EYE), list(RIGHT_EYE)), ([LEFT_MOUTH], [RIGHT_MOUTH])):
                    mesh[a], mesh[b] = mesh[b], mesh[a]
            points = np.stack([mesh.real, mesh.imag], -1) - start
            found.append(points @ np.linalg.inv(np.stack([to_x, to_y])))
            self.windows.append(found[-1])
        return torch.from_numpy(np.stack(found))


@pytest.mark.parametrize("degrees", [0, 20, -35])
def test_the_frame_is_that_of_the_eyes_and_the_mouth(net, places, degrees):
    mesh = planted(104 + 58j, 24, degrees)
    net.mesh = Seeing(mesh)
    center, axis = net.predict(places, (80, 40, 122, 84))
    eyes = [mesh[list(side)].mean() for side in (LEFT_EYE, RIGHT_EYE)]
    five = np.array([*eyes, *mesh[[NOSE, LEFT_MOUTH, RIGHT_MOUTH]]])
    truth = frame_from_landmarks(np.stack([five.real, five.imag], -1) - 0.5)
    assert center == pytest.approx(truth.center, abs=0.3)
    assert axis == pytest.approx(truth.x_axis, abs=0.3)


def test_it_looks_from_the_box_then_upright_at_the_face_then_also_mirrored(net, places):
    net.mesh = Seeing(planted(104 + 58j, 20, 20))
    net.predict(places, (80, 40, 122, 84))
    first, second, third, mirrored = (points[:, 0] + 1j * points[:, 1] for points in net.mesh.windows)
    # The first window: 1.6 times the box, a tenth of it higher.
    middle, half = 101 + 62j - 0.1j * math.sqrt(42 * 44), 0.8 * math.sqrt(42 * 44)
    assert first == pytest.approx((net.mesh.mesh - middle) / half, abs=0.02)
    for points in (second, third):
        eyes = points[list(RIGHT_EYE)].mean() - points[list(LEFT_EYE)].mean()
        assert cmath.phase(eyes) == pytest.approx(0, abs=0.02)
        sides = np.ptp(points.real), np.ptp(points.imag)
        assert max(sides) == pytest.approx(2 / 1.5, abs=0.02)
        assert [points.real.min(), points.imag.min()] == pytest.approx([-s / 2 for s in sides], abs=0.02)
    assert mirrored[NOSE] == pytest.approx(-third[NOSE].conj(), abs=0.02)


def test_more_looks_are_more_windows(places):
    for looks in (1, 4):
        net = FrameNet(looks=looks).eval()
        net.mesh = Seeing(planted(104 + 58j, 20, 0))
        net.predict(places, (80, 40, 122, 84))
        assert len(net.mesh.windows) == looks + 1


def test_what_is_no_face_has_no_frame(net, places):
    net.mesh, net.looks = Seeing(np.full(N_POINTS, 104 + 58j)), 1
    with pytest.raises(LandmarksError):
        net.predict(places, (80, 40, 122, 84))


@pytest.mark.parametrize("degrees", [0, 15])
def test_outlines_are_in_sides_of_the_crop(net, places, degrees):
    net.mesh = Seeing(planted(58 + 64j, 30, degrees))
    found = net.outlines(torch.from_numpy(places[:, :HEIGHT]).permute(2, 0, 1) / 255)
    wanted = (OUTLINE, [LEFT_EYE, RIGHT_EYE], MOUTH)
    for outline, shape, points in zip(found, ((33, 2), (2, 16, 2), (20, 2)), wanted, strict=True):
        truth = net.mesh.mesh[np.array(points)] / HEIGHT
        assert outline.dtype == torch.float32 and outline.shape == shape
        assert outline.numpy() == pytest.approx(np.stack([truth.real, truth.imag], -1), abs=0.005)
    assert len(net.mesh.windows) == 2, "once for where the face is, once for its outlines"


@pytest.mark.parametrize(("side", "degrees"), [(50, 0), (80, 25), (20, 140)])
def test_window_pixels_show_their_places(places, side, degrees):
    axis = cmath.rect(side / 2, math.radians(degrees))
    window = (cut_window(places, 100 + 60j, axis, 16) + 1) * 127.5
    steps = (np.arange(16) + 0.5) / 8 - 1
    points = 100 + 60j + axis * (steps[None, :] + 1j * steps[:, None])
    assert window[0].numpy() == pytest.approx(points.real - 0.5, abs=0.4)
    assert window[1].numpy() == pytest.approx(points.imag - 0.5, abs=0.4)


def test_windows_beyond_the_photo_are_mirrored(places):
    padded = np.pad(places, ((300, 300), (300, 300), (0, 0)), mode="symmetric")
    for center in (5 + 5j, 199 + 60j, 100 + 119j, -150 - 80j):
        window = cut_window(places, center, 70 + 20j, 24)
        expected = cut_window(padded, center + 300 + 300j, 70 + 20j, 24)
        assert torch.allclose(window, expected, atol=0.01)
