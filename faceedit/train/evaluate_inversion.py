"""The published numbers of the default checkpoint, measured through `FaceEditor` on real photographs.

``python -m faceedit.train evaluate inversion --photos DIR --lpips FILE [--dlib FOLDER] [--steps 50]``

Inversion: PSNR and LPIPS (AlexNet) between the aligned crop and its reconstruction, both reduced
to 256 px, pixels in [0, 1] for PSNR. Identity: after an edit, is the nearest photograph of the set,
by dlib's descriptor, the input itself?
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from faceedit import faces
from faceedit.editor import FaceEditor
from faceedit.errors import NoFaceError
from faceedit.results import Inversion
from faceedit.train.metrics import psnr
from faceedit.train.perceptual import LPIPS

SIZE = 256


def read_index(photos: Path) -> list[dict[str, str]]:
    """The rows of ``photos/index.csv``."""
    with open(photos / "index.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def invert_photo(
    editor: FaceEditor, photos: Path, row: dict[str, str], steps: int = 0, reconstruct: bool = True
) -> tuple[Inversion, bool]:
    """Invert the photograph of a row of the index; also whether its face was found.

    A crop that is aligned already is taken whole. Where detection finds nothing the face box of the
    index is used, so that every photograph counts.
    """
    path = photos / row["file"]
    path = path if path.exists() else photos / "images" / row["file"]
    if row.get("already_cropped") == "1":
        return editor.invert(path, aligned=True, steps=steps, reconstruct=reconstruct), True
    try:
        return editor.invert(path, steps=steps, reconstruct=reconstruct), True
    except NoFaceError:
        box = [float(v) for v in row["face_box"].split()]
        return editor.invert(path, faces=[box], steps=steps, reconstruct=reconstruct)[0], False


def invert_all(editor: FaceEditor, photos: Path, steps: int) -> tuple[list[Inversion], list[str]]:
    """Invert the photographs of ``photos/index.csv``; also the files where no face was found."""
    inversions, missed = [], []
    for row in tqdm(read_index(photos), desc=f"invert, {steps} steps"):
        inversion, found = invert_photo(editor, photos, row, steps)
        inversions.append(inversion)
        if not found:
            missed.append(row["file"])
    return inversions, missed


def reduced(pictures: list[Tensor]) -> Tensor:
    """Pictures ``(3, S, S)`` to ``(N, 3, 256, 256)``."""
    return F.interpolate(torch.stack(pictures), (SIZE, SIZE), mode="area")


def reconstruction(editor: FaceEditor, inversions: list[Inversion], lpips: LPIPS) -> dict[str, NDArray[np.float64]]:
    """PSNR in dB, L2 on [0, 1] and LPIPS of what the code alone gives of every face, at 256 px."""
    truth = reduced([i.crop for i in inversions])
    faces = (editor.edit(i, {}, refine=False, return_result=True).faces[0] for i in inversions)
    made = reduced([face.reconstruction for face in faces])
    l2 = (made - truth).square().mean((1, 2, 3))
    with torch.no_grad():
        distance = torch.cat([lpips(a * 2 - 1, b * 2 - 1) for a, b in zip(made.split(4), truth.split(4))])
    return {"psnr": psnr(l2), "l2": l2.numpy(), "lpips": distance.numpy()}


def nearest(
    inputs: list[NDArray[np.uint8]], outputs: list[NDArray[np.uint8]], boxes: list[tuple[float, ...]], dlib: Path
) -> tuple[float, float]:
    """Share of outputs whose nearest input is their own, and the mean distance to their own."""
    files = (dlib / "shape_predictor_5_face_landmarks.dat", dlib / "dlib_face_recognition_resnet_model_v1.dat")
    a = np.stack([faces.descriptor(p, b, *files) for p, b in zip(inputs, boxes, strict=True)])
    b = np.stack([faces.descriptor(p, b, *files) for p, b in zip(outputs, boxes, strict=True)])
    distance = np.linalg.norm(b[:, None] - a[None], axis=2)
    own = np.arange(len(a))
    return float((distance.argmin(1) == own).mean()), float(distance[own, own].mean())


def main(argv: list[str]) -> int:
    """Command line entry; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m faceedit.train evaluate inversion", description=__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="folder with pictures and index.csv")
    parser.add_argument("--lpips", type=Path, required=True, help="LPIPS AlexNet weights, safetensors")
    parser.add_argument("--dlib", type=Path, help="folder of dlib's 5-point and recognition files, for identity")
    parser.add_argument("--checkpoint", help="folder or Hub id; none takes the default")
    parser.add_argument("--steps", type=int, default=0, help="also measure so many refinement steps")
    parser.add_argument("--pictures", type=Path, help="write contact sheets into this folder")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args(argv)
    editor = FaceEditor.from_pretrained(args.checkpoint)
    lpips = LPIPS.from_file(args.lpips)
    figures: dict[str, object] = {}

    started = time.monotonic()
    inversions, missed = invert_all(editor, args.photos, 0)
    n = len(inversions)
    print(f"{n} photographs; no face found in {len(missed)} {missed}; {time.monotonic() - started:.0f} s")
    runs = {0: inversions}
    if args.steps:
        runs[args.steps], _ = invert_all(editor, args.photos, args.steps)
    for steps, found in runs.items():
        values = reconstruction(editor, found, lpips)
        means = {k: float(v.mean()) for k, v in values.items()}
        figures[f"inversion_{steps}"] = means
        print(
            f"inversion, {steps} refinement steps: PSNR {means['psnr']:.2f} dB and L2 {means['l2']:.4f} (pixels in [0, 1]), "
            f"LPIPS-Alex {means['lpips']:.3f}; {SIZE} px, mean of {n} photographs"
        )
    sheets: dict[str, list[Tensor]] = {}
    for name in editor.attributes:
        results = [editor.edit(i, {name: 1.0}, return_result=True) for i in tqdm(inversions, desc=name)]
        sheets[name] = [r.faces[0].output for r in results]
        if args.dlib:
            size = 512
            pixels = [
                [
                    (F.interpolate(x[None], (size, size), mode="area")[0] * 255).byte().permute(1, 2, 0).contiguous().numpy()
                    for x in kind
                ]
                for kind in ([i.crop for i in inversions], sheets[name])
            ]
            boxes = [_box_in_crop(p) for p in pixels[0]]
            share, distance = nearest(*pixels, boxes, args.dlib)
            figures[f"identity_{name}"] = {"nearest_is_input": share, "distance": distance}
            print(
                f"{name} +1: nearest photograph by dlib descriptor is the input for {100 * share:.1f} % of {n}, "
                f"mean distance to it {distance:.2f} (strangers .90, same person .33)"
            )
    if args.pictures:
        args.pictures.mkdir(parents=True, exist_ok=True)
        columns = {"input": [i.crop for i in inversions]}
        columns |= {f"inversion {s}": [i.reconstruction for i in found] for s, found in runs.items()}
        columns |= sheets
        strip = torch.stack([reduced(column) for column in columns.values()], 1)
        for k, part in enumerate(strip.split(8)):
            sheet = (part * 255).byte().permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2).numpy()
            Image.fromarray(sheet).save(args.pictures / f"sheet_{k}.jpg", quality=92)
        print(f"columns of the sheets in {args.pictures}: {', '.join(columns)}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2))
    return 0


def _box_in_crop(pixels: NDArray[np.uint8]) -> tuple[float, ...]:
    """The face's box in an aligned crop: as detected, or where faces lie in such crops."""
    found = faces.detect(pixels)
    side = pixels.shape[0]
    return found[0].box if found else (0.2 * side, 0.27 * side, 0.84 * side, 0.91 * side)
