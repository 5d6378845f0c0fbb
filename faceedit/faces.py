"""Find faces in a photo and choose among them; the only module that imports dlib.

Boxes are (x0, y0, x1, y1) in photo pixels, the origin at the top left corner of the photo, and hold
a face from brows to chin. dlib's detectors keep state while they run, so every thread has its own.

Source: dlib's frontal detector (histograms of oriented gradients) and its convolutional one (King,
"Max-Margin Object Detection", arXiv 1502.00046; weights CC0, `faceedit/weights`).
"""

from __future__ import annotations

import functools
import importlib
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from faceedit.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    FaceSelectionError,
    LandmarksError,
    MissingDependencyError,
    NoFaceError,
    UsageError,
)

__all__ = ["Box", "Face", "FaceChoice", "detect", "find", "landmarks", "select"]

Box: TypeAlias = tuple[float, float, float, float]
FaceChoice: TypeAlias = Literal["largest", "all"] | int | Sequence[Sequence[float]]

_WEIGHTS = Path(__file__).parent / "weights" / "mmod_human_face_detector.dat"
_FRONTAL_SIDES = (480, 960)  # longest side that the frontal detector sees: at least, at most
_SURE = 0.5  # a frontal detection with a lower score is confirmed by the convolutional detector
_AROUND_SIDE = 176  # longest side of the surroundings that it sees for that
_CONVOLUTIONAL_SIDES = (320, 640)  # tried in this order; time grows with the square
_CONVOLUTIONAL_SHIFT = 0.1  # how far its boxes lie above the frontal detector's, in sides
_SAME_FACE = 0.5  # boxes that overlap by more are of one face (intersection over union)
_LARGEST_BOX = 4  # longest side of a given box, in the photo's longest sides
_detectors = threading.local()


@dataclass(frozen=True)
class Face:
    """A face in a photo.

    Args:
        box: (x0, y0, x1, y1) in photo pixels; it may reach beyond the photo.
        score: the detector's confidence, above 0; not a probability. None where the caller gave
            the box.
    """

    box: Box
    score: float | None = None

    @property
    def area(self) -> float:
        """Of the box, in square pixels."""
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


def detect(pixels: NDArray[np.uint8]) -> list[Face]:
    """Find the faces of a photo.

    The frontal detector first, which is fast; the convolutional one confirms what it is unsure of,
    and takes over where nothing is left, since it also sees turned and tilted heads. Faces smaller
    than a twelfth of the photo's longest side are not found: give their boxes.

    Args:
        pixels: (H, W, 3) uint8.

    Returns:
        The faces, largest first; perhaps none.

    Raises:
        MissingDependencyError: dlib is not installed.
        UsageError: `pixels` has another shape or type.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise UsageError(f"a photo is (H, W, 3) uint8, not {pixels.shape} {pixels.dtype}")
    longest = max(pixels.shape[:2])
    if min(pixels.shape[:2]) < longest / 12:
        return []  # a strip, in which the detectors would fail instead of finding nothing
    faces = _frontal(pixels, min(max(longest, _FRONTAL_SIDES[0]), _FRONTAL_SIDES[1]))
    for side in _CONVOLUTIONAL_SIDES:
        faces = faces or _convolutional(pixels, side)
    return sorted(faces, key=lambda face: -face.area)


def _frontal(pixels: NDArray[np.uint8], side: int) -> list[Face]:
    if not hasattr(_detectors, "frontal"):
        _detectors.frontal = _dlib().get_frontal_face_detector()
    small, scale = _resized(pixels, side)
    rectangles, scores, _ = _detectors.frontal.run(small, 0, 0.0)
    faces = []
    for r, score in zip(rectangles, scores, strict=True):
        sides = (r.left(), r.top(), r.right() + 1, r.bottom() + 1)
        x0, y0, x1, y1 = (v * scale for v in sides)
        if score >= _SURE or _confirmed(pixels, (x0, y0, x1, y1)):
            faces.append(Face((x0, y0, x1, y1), score))
    return faces


def _convolutional(pixels: NDArray[np.uint8], side: int) -> list[Face]:
    if not hasattr(_detectors, "convolutional"):
        _detectors.convolutional = _dlib().cnn_face_detection_model_v1(str(_WEIGHTS))
    small, scale = _resized(pixels, side)
    faces = []
    for found in _detectors.convolutional(small, 0):
        r = found.rect
        down = _CONVOLUTIONAL_SHIFT * r.height()
        sides = (r.left(), r.top() + down, r.right() + 1, r.bottom() + 1 + down)
        x0, y0, x1, y1 = (v * scale for v in sides)
        faces.append(Face((x0, y0, x1, y1), found.confidence))
    return faces


def _confirmed(pixels: NDArray[np.uint8], box: Box) -> bool:
    """Whether the convolutional detector sees a face in a box and its surroundings."""
    margin = 0.6 * (box[2] - box[0])
    x0, y0 = (max(round(v - margin), 0) for v in box[:2])
    x1, y1 = (round(v + margin) for v in box[2:])
    return bool(_convolutional(pixels[y0:y1, x0:x1], _AROUND_SIDE))


def _resized(pixels: NDArray[np.uint8], side: int) -> tuple[NDArray[np.uint8], float]:
    """The photo with its longest side `side`, and the size of its pixels in photo pixels."""
    height, width = pixels.shape[:2]
    scale = max(height, width) / side
    size = max(round(width / scale), 1), max(round(height / scale), 1)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(image), scale


def find(pixels: NDArray[np.uint8], faces: FaceChoice = "largest") -> list[Face]:
    """The faces of a photo that a caller chose: looks for them, unless boxes are given.

    Args:
        pixels: (H, W, 3) uint8.
        faces: see :func:`select`; or boxes, which are used as they are.

    Returns:
        At least one face; largest first, or in the order of the boxes.

    Raises:
        NoFaceError: none was found.
        FaceSelectionError, UsageError: see :func:`select`.
    """
    if isinstance(faces, (str, int)):
        _check_choice(faces)
        return select(detect(pixels), faces)
    return _boxes(faces, pixels.shape[1], pixels.shape[0])


def select(faces: Sequence[Face], which: Literal["largest", "all"] | int = "largest") -> list[Face]:
    """Choose among the faces of a photo.

    Args:
        faces: as :func:`detect` returns them, largest first.
        which: "largest", "all", or an index into `faces`; negative ones count from the smallest.

    Returns:
        The chosen faces, at least one.

    Raises:
        NoFaceError: `faces` is empty.
        FaceSelectionError: no face has that index; the message lists the faces and where they are.
        UsageError: `which` is something else.
    """
    _check_choice(which)
    if not faces:
        raise NoFaceError(
            "no face was found. If there is one, give its box: faces=[(x0, y0, x1, y1)] in pixels; "
            "if the picture is an FFHQ-style crop already, say aligned=True"
        )
    if which == "all":
        return list(faces)
    if which == "largest":
        return [faces[0]]
    if not -len(faces) <= which < len(faces):
        where = "; ".join(
            f"{i}: ({', '.join(str(round(v)) for v in face.box)})" for i, face in enumerate(faces)
        )
        count = "1 face was" if len(faces) == 1 else f"{len(faces)} faces were"
        raise FaceSelectionError(f"there is no face {which}: {count} found, largest first: {where}")
    return [faces[which]]


def _check_choice(which: object) -> None:
    if which in ("largest", "all") or (isinstance(which, int) and not isinstance(which, bool)):
        return
    raise UsageError(f'faces is "largest", "all", an index or a list of boxes, not {which!r}')


def _boxes(given: Sequence[Sequence[float]], width: int, height: int) -> list[Face]:
    try:
        boxes = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        raise FaceSelectionError(f"face boxes must be numbers, four each, not {given!r}") from None
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes):
        raise FaceSelectionError(
            f"face boxes are a list of (x0, y0, x1, y1), not an array of shape {boxes.shape}"
        )
    faces = []
    for i, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        name = f"face box {i}, ({x0:g}, {y0:g}, {x1:g}, {y1:g}),"
        if not all(map(math.isfinite, (x0, y0, x1, y1))) or x1 - x0 < 1 or y1 - y0 < 1:
            raise FaceSelectionError(f"{name} has no area: (x0, y0) is its top left corner")
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            raise FaceSelectionError(f"{name} lies outside the photo of {width}x{height} pixels")
        if max(x1 - x0, y1 - y0) > _LARGEST_BOX * max(width, height):
            raise FaceSelectionError(f"{name} is far larger than the photo of {width}x{height} pixels")
        # Each edit adds a difference: one face given twice would be edited twice as much.
        twin = next((j for j, face in enumerate(faces) if overlap(face.box, (x0, y0, x1, y1)) > _SAME_FACE), None)
        if twin is not None:
            raise FaceSelectionError(f"{name} is on the same face as box {twin}: give each face one box")
        faces.append(Face((x0, y0, x1, y1)))
    return faces


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (areas - width * height)


def landmarks(
    pixels: NDArray[np.uint8], box: Sequence[float], predictor: str | Path, points: int = 68
) -> NDArray[np.float64]:
    """The landmarks of a face, from a predictor file of the user's own.

    Args:
        pixels: (H, W, 3) uint8.
        box: of the face.
        predictor: dlib's `shape_predictor_68_face_landmarks.dat`, or one like it. faceedit ships
            none: that file's training data exclude commercial use.
        points: How many the file must predict.

    Returns:
        (points, 2) float64, (x, y); (0, 0) is the centre of the top left pixel.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CheckpointError: dlib cannot read it.
        LandmarksError: it predicts another number of points.
    """
    rectangle = _dlib().rectangle(*(round(v) for v in box))
    shape = _predictor(str(predictor))(pixels, rectangle)
    if shape.num_parts != points:
        raise LandmarksError(
            f"{predictor} predicts {shape.num_parts} landmarks; here {points} are needed"
        )
    return np.array([(p.x, p.y) for p in shape.parts()], dtype=np.float64)


@functools.lru_cache(maxsize=2)
def _predictor(path: str) -> Any:
    return _load(_dlib().shape_predictor, path, "landmark predictor")


def _dlib() -> Any:
    try:
        return importlib.import_module("dlib")
    except ImportError as error:
        raise MissingDependencyError(
            "finding faces needs dlib: pip install dlib-bin (prebuilt), or dlib (needs a compiler)"
        ) from error


def descriptor(
    pixels: NDArray[np.uint8], box: Sequence[float], predictor: str | Path, network: str | Path
) -> NDArray[np.float64]:
    """dlib's face descriptor, by which evaluation tells people apart.

    Args:
        pixels: (H, W, 3) uint8.
        box: of the face.
        predictor: dlib's 5-point landmark file.
        network: dlib's ``dlib_face_recognition_resnet_model_v1.dat``.

    Returns:
        (128,) float64. The same person's descriptors lie some .33 apart, strangers' .90.

    Raises:
        CheckpointNotFoundError, CheckpointError: a file is missing or dlib cannot read it.
    """
    dlib = _dlib()
    rectangle = dlib.rectangle(*(round(v) for v in box))
    shape = _predictor(str(predictor))(pixels, rectangle)
    return np.array(_recognition(str(network)).compute_face_descriptor(pixels, shape))


@functools.lru_cache(maxsize=1)
def _recognition(path: str) -> Any:
    return _load(_dlib().face_recognition_model_v1, path, "face recognition network")


def _load(kind: Any, path: str, name: str) -> Any:
    if not Path(path).is_file():
        raise CheckpointNotFoundError(f"there is no {name} at {path}")
    try:
        return kind(path)
    except RuntimeError as error:
        raise CheckpointError(f"{path} is no dlib {name}: {error}") from error
