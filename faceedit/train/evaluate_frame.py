"""Compare the frame net's crops with 68-point crops on real photographs.

``python -m faceedit.train evaluate frame --weights FILE --predictor FILE --photos FOLDER``

The 68-point predictor is not part of faceedit and nothing is trained on its answers. It errs as
well, so its own noise is printed too: how far its crop of the mirrored photo lies from its crop of
the photo. On pictures that are FFHQ crops already, the true frame is the whole picture.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tqdm import tqdm

from faceedit import faces
from faceedit.crop import CropFrame, extract, frame_from_landmarks
from faceedit.models.frame_net import FrameNet
from faceedit.train.frame import load

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """One face: our frame, the 68-point one, and what is known besides.

    Args:
        file: name of the photo.
        pixels: (H, W, 3) uint8.
        ours, theirs: the two frames.
        mirrored: the 68-point frame found in the mirrored photo, mirrored back.
        aligned: whether the photo is an FFHQ crop already.
    """

    file: str
    pixels: NDArray[np.uint8]
    ours: CropFrame
    theirs: CropFrame
    mirrored: CropFrame
    aligned: bool

    @property
    def whole(self) -> CropFrame:
        """The true frame of an aligned picture."""
        return CropFrame.whole(self.pixels.shape[1], self.pixels.shape[0])


def corner_error(frame: CropFrame, truth: CropFrame) -> float:
    """Mean distance of the four corners, as a fraction of the true frame's side."""
    return float(np.hypot(*(frame.corners - truth.corners).T).mean() / truth.side)


def mirror(frame: CropFrame, width: int) -> CropFrame:
    """The same frame in the photo mirrored left to right; `width` is the photo's."""
    (cx, cy), (ax, ay) = frame.center, frame.x_axis
    return CropFrame((width - cx, cy), (ax, -ay))


def compare(
    net: FrameNet, predictor: Path, folder: Path, every: int = 1
) -> list[Comparison]:
    """Both crops of every photo of a folder.

    Args:
        net: in evaluation mode.
        predictor: dlib's 68-point file.
        folder: holds ``index.csv`` with ``file``, ``face_box`` and perhaps ``already_cropped``;
            the photos lie beside it or in ``images/``.
        every: take every so many-th photo.
    """
    with open(folder / "index.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[::every]
    found = []
    for row in tqdm(rows, desc=folder.name, mininterval=10):
        path = folder / row["file"]
        with Image.open(path if path.exists() else folder / "images" / row["file"]) as image:
            pixels = np.array(image.convert("RGB"))
        given = tuple(map(float, row["face_box"].split()))
        # The box that users get where it is the same face, else the one of the index.
        boxes = [face.box for face in faces.detect(pixels)]
        box = max(boxes, key=lambda b: faces.overlap(b, given), default=given)
        box = box if faces.overlap(box, given) > 0.3 else given
        width = pixels.shape[1]
        flipped_box = (width - box[2], box[1], width - box[0], box[3])
        flipped = faces.landmarks(np.ascontiguousarray(pixels[:, ::-1]), flipped_box, predictor)
        found.append(
            Comparison(
                row["file"],
                pixels,
                ours=CropFrame(*net.predict(pixels, box)),
                theirs=frame_from_landmarks(faces.landmarks(pixels, box, predictor)),
                mirrored=mirror(frame_from_landmarks(flipped), width),
                aligned=row.get("already_cropped") == "1",
            )
        )
    return found


def summary(found: Sequence[Comparison]) -> dict[str, dict[str, float]]:
    """Number of faces, median and 95th percentile of the corner error, for each comparison."""
    aligned = [c for c in found if c.aligned]
    errors = {
        "ours to 68-point": [corner_error(c.ours, c.theirs) for c in found],
        "68-point to itself mirrored": [corner_error(c.mirrored, c.theirs) for c in found],
        "ours to 68-point, whole photos": [
            corner_error(c.ours, c.theirs) for c in found if not c.aligned
        ],
        "ours to the truth, aligned": [corner_error(c.ours, c.whole) for c in aligned],
        "68-point to the truth, aligned": [corner_error(c.theirs, c.whole) for c in aligned],
    }
    return {
        name: {"faces": len(e), "median": float(np.median(e)), "p95": float(np.percentile(e, 95))}
        for name, e in errors.items()
        if e
    }


def contact_sheet(found: Sequence[Comparison], columns: int = 6, size: int = 128) -> Image.Image:
    """Pairs of crops, the 68-point one left and ours right, with our error in percent."""
    rows = -(-len(found) // columns)
    sheet = Image.new("RGB", (columns * 2 * size, rows * size))
    draw = ImageDraw.Draw(sheet)
    for i, c in enumerate(found):
        x, y = (i % columns) * 2 * size, (i // columns) * size
        for j, frame in enumerate((c.theirs, c.ours)):
            crop = extract(c.pixels, frame, size).mul(255).round().byte().permute(1, 2, 0).numpy()
            sheet.paste(Image.fromarray(crop), (x + j * size, y))
        percent = 100 * corner_error(c.ours, c.theirs)
        draw.text((x + 2, y + 2), f"{c.file} {percent:.1f} %", fill="yellow")
    return sheet


def main(argv: Sequence[str]) -> int:
    """Command line entry; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m faceedit.train evaluate frame", description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, type=Path, help="of the frame net, safetensors")
    parser.add_argument("--predictor", required=True, type=Path, help="dlib's 68-point file")
    parser.add_argument("--photos", required=True, type=Path, help="folder with index.csv")
    parser.add_argument("--every", type=int, default=1, help="take every so many-th photo")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet, largest errors first")
    parser.add_argument("--sheet-faces", type=int, default=60)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    found = compare(load(args.weights), args.predictor, args.photos, args.every)
    log.info(json.dumps(summary(found), indent=2))
    if args.sheet is not None:
        found.sort(key=lambda c: -corner_error(c.ours, c.theirs))
        contact_sheet(found[: args.sheet_faces]).save(args.sheet)
    return 0
