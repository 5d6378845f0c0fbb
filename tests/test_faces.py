"""Faces found on the bundled portrait, chosen, and refused by name."""

import math
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faceedit import faces
from faceedit.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    FaceSelectionError,
    LandmarksError,
    MissingDependencyError,
    NoFaceError,
    UsageError,
)
from faceedit.faces import Face

PORTRAIT = Path(__file__).resolve().parents[1] / "examples" / "astronaut.png"
FACE = (178, 75, 268, 165)  # brows to chin, by eye


@pytest.fixture(scope="module")
def portrait():
    return np.array(Image.open(PORTRAIT).convert("RGB"))


@pytest.fixture
def three():
    return [Face((0, 0, 30, 30), 1.0), Face((50, 0, 70, 20), 2.0), Face((9, 9, 19, 19), 0.5)]


# --- detect -------------------------------------------------------------------------------------


def test_one_face_in_a_non_square_photo(portrait):
    (face,) = faces.detect(portrait[:400])
    assert faces.overlap(face.box, FACE) > 0.6
    assert face.score > 0


def test_boxes_are_in_photo_pixels_whatever_its_size(portrait):
    box = faces.detect(portrait)[0].box
    for factor in (0.25, 3):  # the enlarged one also has two weak false alarms to be refuted
        size = round(512 * factor)
        scaled = np.array(Image.fromarray(portrait).resize((size, size)))
        (face,) = faces.detect(scaled)
        assert faces.overlap(np.array(face.box) / factor, box) > 0.6


def test_largest_first(portrait):
    small = np.array(Image.fromarray(portrait).resize((320, 320)))
    both = np.zeros((512, 832, 3), np.uint8)
    both[:320, :320], both[:, 320:] = small, portrait
    first, second = faces.detect(both)
    assert first.area > second.area
    assert first.box[0] > 320 > second.box[2]


def test_a_face_turned_by_forty_degrees_is_found_by_the_second_detector(portrait):
    image = Image.fromarray(portrait).rotate(40, Image.Resampling.BILINEAR, center=(223, 120))
    (face,) = faces.detect(np.array(image))
    assert faces.overlap(face.box, FACE) > 0.4


def test_a_face_cut_by_the_border_is_found(portrait):
    (face,) = faces.detect(portrait[:, 205:500])  # a third of the face is gone
    assert faces.overlap(face.box, (FACE[0] - 205, FACE[1], FACE[2] - 205, FACE[3])) > 0.4


def test_no_face_in_a_texture(monkeypatch):
    monkeypatch.setattr(faces, "_CONVOLUTIONAL_SIDES", (128,))  # for speed
    noise = np.random.default_rng(0).integers(0, 255, (200, 320, 3), dtype=np.uint8)
    assert faces.detect(noise) == []
    with pytest.raises(NoFaceError, match="faces="):
        faces.find(noise)


@pytest.mark.parametrize("shape", [(1, 1), (2, 24), (16, 4000), (3000, 250)])
def test_odd_shapes_have_no_face(shape, monkeypatch):
    monkeypatch.setattr(faces, "_CONVOLUTIONAL_SIDES", (320,))  # for speed
    assert faces.detect(np.full((*shape, 3), 99, np.uint8)) == []


def test_photos_of_another_kind_are_refused():
    with pytest.raises(UsageError):
        faces.detect(np.zeros((10, 10), np.uint8))


def test_threads_have_their_own_detectors(portrait):
    small = portrait[:256, 96:352]
    expected, found = faces.detect(small), []
    threads = [threading.Thread(target=lambda: found.append(faces.detect(small))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 2


def test_missing_dlib_is_named(portrait, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "dlib", None)
    monkeypatch.setattr(faces, "_detectors", threading.local())
    with pytest.raises(MissingDependencyError, match="dlib-bin"):
        faces.detect(portrait)


# --- select and find ----------------------------------------------------------------------------


def test_choices(three):
    assert faces.select(three) == three[:1]
    assert faces.select(three, "all") == three
    assert faces.select(three, 1) == [three[1]]
    assert faces.select(three, -1) == [three[2]]


def test_an_index_out_of_range_says_where_the_faces_are(three):
    with pytest.raises(FaceSelectionError, match=r"3 faces.*1: \(50, 0, 70, 20\)"):
        faces.select(three, 3)
    with pytest.raises(FaceSelectionError, match="1 face was"):
        faces.select(three[:1], -2)


def test_no_faces_to_choose_from():
    with pytest.raises(NoFaceError):
        faces.select([], "all")


@pytest.mark.parametrize("which", ["smallest", True, 1.0, None])
def test_other_choices_are_refused(which, three):
    with pytest.raises(UsageError, match="largest"):
        faces.select(three, which)


def test_boxes_are_used_as_they_are_and_nothing_is_detected(monkeypatch):
    monkeypatch.setattr(faces, "detect", None)
    photo = np.zeros((80, 100, 3), np.uint8)
    found = faces.find(photo, [(60, 60, 120, 110), np.array([-5, 0, 20.5, 30])])
    assert found == [Face((60, 60, 120, 110)), Face((-5, 0, 20.5, 30))]


@pytest.mark.parametrize(
    ("boxes", "why"),
    [
        ([], "shape"),
        ([(1, 2, 3)], "shape"),
        ((1, 2, 30, 40), "shape"),
        ([(30, 10, 10, 40)], "no area"),
        ([(0, 0, math.nan, 5)], "no area"),
        ([(100, 0, 120, 30)], "outside"),
        ([("a", "b", "c", "d")], "numbers"),
        ([(1, 2, 30, 40), (1, 2)], "numbers"),
        (None, "shape"),
        ([(0, 0, 1e12, 1e12)], "far larger"),
        ([(1, 2, 30, 40), (50, 2, 79, 40), (2, 3, 30, 41)], "box 2.* on the same face as box 0"),
    ],
)
def test_malformed_boxes_are_refused(boxes, why):
    with pytest.raises(FaceSelectionError, match=why):
        faces.find(np.zeros((80, 100, 3), np.uint8), boxes)


# --- landmarks ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def predictor(tmp_path_factory, portrait):
    """A 68-point predictor trained on one face: it repeats the points that it was shown."""
    dlib = pytest.importorskip("dlib")
    points = np.random.default_rng(0).integers(80, 160, (68, 2)) + (95, 0)
    path = tmp_path_factory.mktemp("predictor") / "points.dat"
    _train(dlib, portrait, points, path)
    return path, points


def _train(dlib, portrait, points, path):
    options = dlib.shape_predictor_training_options()
    options.cascade_depth, options.num_trees_per_cascade_level, options.tree_depth = 2, 5, 2
    options.oversampling_amount, options.feature_pool_size, options.num_test_splits = 1, 20, 2
    options.num_threads = 1
    shape = dlib.full_object_detection(
        dlib.rectangle(*FACE), dlib.points([dlib.point(int(x), int(y)) for x, y in points])
    )
    dlib.train_shape_predictor([portrait] * 2, [[shape]] * 2, options).save(str(path))


def test_landmarks_of_a_users_own_file(portrait, predictor):
    path, points = predictor
    assert faces.landmarks(portrait, FACE, path) == pytest.approx(points, abs=2)


def test_a_file_of_another_kind_is_refused(portrait, tmp_path):
    dlib = pytest.importorskip("dlib")
    five = tmp_path / "five.dat"
    _train(
        dlib, portrait, np.array([(190, 110), (210, 110), (223, 130), (240, 110), (255, 110)]), five
    )
    with pytest.raises(LandmarksError, match="5 landmarks"):
        faces.landmarks(portrait, FACE, five)
    with pytest.raises(CheckpointNotFoundError):
        faces.landmarks(portrait, FACE, tmp_path / "absent.dat")
    (tmp_path / "junk.dat").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match="junk"):
        faces.landmarks(portrait, FACE, tmp_path / "junk.dat")
