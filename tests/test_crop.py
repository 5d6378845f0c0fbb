"""Crop geometry in closed form, and pasting back without touching what lies outside."""

import math

import numpy as np
import pytest
import torch

from faceedit.crop import CropFrame, extract, face_mask, frame_from_landmarks, paste_back
from faceedit.errors import LandmarksError, UsageError

HEIGHT, WIDTH = 120, 200  # not square, so that a swap of width and height shows


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def smooth():
    """A photo whose value at continuous (x, y) is known: red = x, green = y, blue = 100."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([x, y, np.full_like(x, 100)], -1).astype(np.uint8)


def turned(center, side, degrees):
    angle = math.radians(degrees)
    return CropFrame(center, (side / 2 * math.cos(angle), side / 2 * math.sin(angle)))


def psnr(a, b):
    return -10 * math.log10(np.mean((a.astype(float) - b) ** 2) / 255**2)


def upright_face(x=100.0, y=60.0, eyes=20.0, mouth=24.0):
    """Five points: eyes `eyes` apart, the mouth `mouth` below them."""
    return np.array(
        [
            (x - eyes / 2, y),
            (x + eyes / 2, y),
            (x, y + mouth / 2),
            (x - eyes / 3, y + mouth),
            (x + eyes / 3, y + mouth),
        ]
    )


# --- frames -------------------------------------------------------------------------------------


def test_frame_of_an_upright_face_in_closed_form():
    frame = frame_from_landmarks(upright_face(eyes=20, mouth=24))
    # half a side is max(2 * 20, 1.8 * 24) = 43.2; detectors' (100, 60) is a pixel's centre
    assert frame.center == pytest.approx((100.5, 62.9))
    assert frame.x_axis == pytest.approx((43.2, 0), abs=1e-9)
    assert frame.side == pytest.approx(86.4)
    left, top, right, bottom = 100.5 - 43.2, 62.9 - 43.2, 100.5 + 43.2, 62.9 + 43.2
    expected = [(left, top), (right, top), (right, bottom), (left, bottom)]
    assert frame.corners == pytest.approx(np.array(expected))


def test_wide_eyes_set_the_side():
    assert frame_from_landmarks(upright_face(eyes=30, mouth=24)).side == pytest.approx(120)


def test_a_turned_face_turns_the_frame():
    points = upright_face()
    angle = math.radians(25)
    turn = np.array([(math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))])
    upright, frame = frame_from_landmarks(points - 0.5), frame_from_landmarks(points @ turn - 0.5)
    assert frame.center == pytest.approx(np.array(upright.center) @ turn)
    assert frame.x_axis == pytest.approx(np.array(upright.x_axis) @ turn)


def test_68_points_use_eye_centres_and_mouth_corners():
    five = upright_face()
    points = np.full((68, 2), 1e3)  # everything else must not matter
    spread = np.array([(-3, 0), (-1, -1), (1, -1), (3, 0), (1, 1), (-1, 1)])
    points[36:42], points[42:48] = five[0] + spread, five[1] + spread
    points[48], points[54] = five[3], five[4]
    expected = frame_from_landmarks(five)
    assert frame_from_landmarks(points).corners == pytest.approx(expected.corners)


@pytest.mark.parametrize(
    "points",
    [
        np.zeros((4, 2)),
        np.zeros((68, 3)),
        np.zeros((5, 2)),
        np.full((5, 2), np.nan),
        upright_face()[[1, 0, 2, 4, 3]],
        "eyes",
        [(1, 2), (3,)],
    ],
    ids=["four", "3-D", "coincident", "nan", "mirrored", "text", "ragged"],
)
def test_bad_landmarks_are_refused(points):
    with pytest.raises(LandmarksError):
        frame_from_landmarks(points)


def test_bad_frames_are_refused():
    with pytest.raises(UsageError, match="finite"):
        CropFrame((float("nan"), 0), (1, 0))
    with pytest.raises(UsageError, match="extent"):
        CropFrame((0, 0), (0, 0))
    with pytest.raises(UsageError, match="200x120"):
        CropFrame.whole(200, 120)


def test_matrix_takes_the_crop_corners_to_the_frame_corners():
    frame = turned((90, 50), 70, 33)
    crop_corners = np.array([(0, 0, 1), (64, 0, 1), (64, 64, 1), (0, 64, 1)])
    assert crop_corners @ frame.matrix(64).T == pytest.approx(frame.corners)


# --- extract ------------------------------------------------------------------------------------


def test_an_aligned_picture_is_its_own_crop(noise):
    square = noise[:, :HEIGHT]
    crop = extract(square, CropFrame.whole(HEIGHT, HEIGHT), HEIGHT)
    assert crop.dtype == torch.float32
    assert crop.permute(1, 2, 0).numpy() * 255 == pytest.approx(square, abs=0.02)


@pytest.mark.parametrize("size", [16, 64, 150])
@pytest.mark.parametrize("degrees", [0, 30, -100])
def test_every_crop_pixel_shows_its_place_in_the_photo(smooth, size, degrees):
    frame = turned((95, 58), 70, degrees)
    crop = extract(smooth, frame, size) * 255
    middle = np.arange(size) + 0.5
    columns, rows = np.meshgrid(middle, middle)
    x, y = np.einsum(
        "ij,jhw->ihw", frame.matrix(size), np.stack([columns, rows, np.ones_like(rows)])
    )
    assert crop[0].numpy() == pytest.approx(x - 0.5, abs=0.05)
    assert crop[1].numpy() == pytest.approx(y - 0.5, abs=0.05)
    assert crop[2].numpy() == pytest.approx(np.full_like(x, 100), abs=0.01)


def test_reduction_averages_instead_of_skipping():
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    for side in (100, 160, 390):
        crop = extract(stripes, turned((200, 200), side, 0), 20)
        assert crop.numpy() == pytest.approx(np.full((3, 20, 20), 0.5), abs=0.05)


@pytest.mark.parametrize("size", [30, 100])
def test_a_frame_beyond_the_photo_sees_it_mirrored(noise, size):
    frame = turned((10, 115), 100, 0)  # columns -40..60, rows 65..165
    padded = np.pad(noise, ((150, 150), (150, 150), (0, 0)), mode="symmetric")
    expected = extract(padded, turned((160, 265), 100, 0), size)
    assert extract(noise, frame, size).numpy() == pytest.approx(expected.numpy(), abs=1e-4)


def test_a_photo_smaller_than_its_frame(noise):
    frame = turned((100, 60), 700, 10)
    padded = np.pad(noise, ((480, 480), (800, 800), (0, 0)), mode="symmetric")
    expected = extract(padded, turned((900, 540), 700, 10), 64)
    assert extract(noise, frame, 64).numpy() == pytest.approx(expected.numpy(), abs=0.02)


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), None]
)
def test_photos_of_another_kind_are_refused(pixels):
    with pytest.raises(UsageError, match="uint8"):
        extract(pixels, turned((2, 2), 2, 0), 8)


def test_read_only_photos_are_fine(noise):
    noise.flags.writeable = False
    crop = extract(noise, turned((100, 60), 80, 5), 32)
    paste_back(noise, crop, turned((100, 60), 80, 5), face_mask(32))


# --- paste_back ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 64, 256])
@pytest.mark.parametrize("degrees", [0, 20])
def test_an_unchanged_crop_changes_nothing(noise, size, degrees):
    frame = turned((60, 70), 90, degrees)
    crop = extract(noise, frame, size)
    out = paste_back(noise, crop, frame, torch.ones(size, size), original=crop)
    assert np.array_equal(out, noise)
    assert out is not noise


def test_pasting_the_crop_itself_nearly_restores_a_photo():
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    waves = 127 + 60 * np.sin(x / 5) + 60 * np.cos(y / 7 + x / 11)
    photo = np.repeat(waves[..., None], 3, -1).astype(np.uint8)
    frame = turned((100, 60), 80, 15)
    out = paste_back(photo, extract(photo, frame, 160), frame, torch.ones(160, 160))
    assert psnr(out, photo) > 50


@pytest.mark.parametrize("difference", [True, False])
@pytest.mark.parametrize("size", [32, 300])
def test_pixels_outside_the_mask_are_bit_identical(noise, difference, size):
    frame = turned((70, 60), 100, 30)
    crop = extract(noise, frame, size)
    original = crop if difference else None
    out = paste_back(noise, 1 - crop, frame, face_mask(size), original)

    inverse = np.linalg.inv(np.vstack([frame.matrix(size), (0, 0, 1)]))
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5
    u, v, _ = np.einsum("ij,jhw->ihw", inverse, np.stack([x, y, np.ones_like(x)])) / size
    outside = (np.abs(u - 0.5) > 0.48 + 1.5 / min(size, 100)) | (
        np.abs(v - 0.5) > 0.48 + 1.5 / min(size, 100)
    )
    assert np.array_equal(out[outside], noise[outside])
    inside = (np.abs(u - 0.5) < 0.3) & (np.abs(v - 0.5) < 0.3)
    assert (out[inside] != noise[inside]).any(-1).mean() > 0.9


def test_a_zero_mask_changes_nothing_and_a_full_one_reaches_the_frame(noise):
    frame = turned((100, 60), 64, 0)  # columns 68..132, rows 28..92
    black, crop = torch.zeros(3, 64, 64), extract(noise, frame, 64)
    assert np.array_equal(paste_back(noise, black, frame, torch.zeros(64, 64), crop), noise)
    out = paste_back(noise, black, frame, torch.ones(64, 64))
    expected = noise.copy()
    expected[28:92, 68:132] = 0
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("size", [24, 240])
def test_the_change_lands_where_it_was_made(smooth, size):
    """A bright disc painted in the crop appears at its place, with its size, in the photo."""
    frame = turned((80, 60), 60, 40)
    crop = extract(smooth, frame, size)
    edited = crop.clone()
    middle = (torch.arange(size) + 0.5) / size
    disc = torch.hypot(middle[None, :] - 0.7, middle[:, None] - 0.4) < 0.15
    edited[2][disc] = 200 / 255
    out = paste_back(smooth, edited, frame, torch.ones(size, size), original=crop)
    weight = out[..., 2].astype(float) - 100
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5
    place = np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()
    rows, columns = (indices.float().mean() + 0.5 for indices in torch.where(disc))
    assert place == pytest.approx(frame.matrix(size) @ (columns, rows, 1), abs=0.1)
    assert weight.sum() / 100 == pytest.approx(disc.sum().item() * (60 / size) ** 2, rel=0.02)


def test_fine_detail_of_a_large_photo_survives_an_edit(noise):
    frame = turned((100, 60), 100, 0)
    crop = extract(noise, frame, 10)
    out = paste_back(noise, crop + 0.1, frame, torch.ones(10, 10), original=crop)
    moved = out[20:100, 60:140].astype(int) - noise[20:100, 60:140]
    unclipped = noise[20:100, 60:140] < 200
    assert np.ptp(moved[unclipped]) <= 1


def test_faces_at_the_border_and_outside(noise):
    for center in [(0, 0), (WIDTH, 60), (100, HEIGHT + 20), (-500, 60)]:
        frame = turned(center, 90, 12)
        crop = extract(noise, frame, 48)
        assert np.array_equal(paste_back(noise, crop, frame, torch.ones(48, 48), crop), noise)


def test_bands_meet_without_a_seam(noise, monkeypatch):
    frame = turned((100, 60), 90, 20)
    crop = extract(noise, frame, 64)
    args = (noise, 1 - crop, frame, face_mask(64), crop)
    whole = paste_back(*args)
    monkeypatch.setattr("faceedit.crop._BAND", 300)
    assert np.abs(paste_back(*args).astype(int) - whole).max() <= 1


def test_wrong_shapes_are_refused(noise):
    frame = turned((100, 60), 90, 0)
    crop = torch.zeros(3, 8, 8)
    with pytest.raises(UsageError, match="crops"):
        paste_back(noise, torch.zeros(3, 8, 9), frame, torch.zeros(9, 9))
    with pytest.raises(UsageError, match="crops"):
        paste_back(noise, crop, frame, torch.zeros(8, 8), torch.zeros(3, 4, 4))
    with pytest.raises(UsageError, match="mask"):
        paste_back(noise, crop, frame, torch.zeros(4, 4))


@pytest.mark.parametrize("size", [16, 101, 256])
def test_face_mask_is_full_inside_and_zero_at_the_border(size):
    mask = face_mask(size)
    assert mask.shape == (size, size)
    assert mask.min() == 0 and mask.max() == 1
    border = torch.cat([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    assert border.abs().max() < (0.02 if size > 16 else 0.1)
    third = size // 3
    assert (mask[third:-third, third:-third] > 0.99).all()
    assert torch.allclose(mask, mask.flip(0), atol=1e-5) and torch.allclose(mask, mask.T)
