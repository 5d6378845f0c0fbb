"""Directions measured, on generated faces that no training saw and on inversions of photographs.

``python -m faceedit.train evaluate style --judge FILE --identity FILE --lpips FILE --out FOLDER
[--directions FILE [--latent-classifier FILE]] [--faces 500] [--photos DIR] [--figure]``

The judge is a classifier that was not used in training. Per attribute, with its own strengths, in the
steps that users get: each face's own where there is a latent classifier:

- success: the share of faces without the attribute that have it at +1, and at the top of its range; and
  of faces with it that have lost it at -1, and at the bottom (Wilson's 95 % intervals);
- effects: what +1 moves, in standard deviations of the judge's logit over unedited faces;
- identity (centred cosine of dlib descriptors), L2 (pixels in [0, 1]) and LPIPS-Alex between the face
  unedited and at +1, at 256 px (bootstrap 95 % intervals);
- the share of a direction's entries that are exactly non-zero;
- for glasses, a control: what frames painted over the eyes of these faces do to identity, all else untouched.

Photographs are inverted and edited by `FaceEditor`, so that these figures come from the path users run.
Both kinds of faces are drawn by the generator's early exit, at 256 px, unless ``--full`` is given.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from faceedit.directions import Directions
from faceedit.editor import FaceEditor
from faceedit.errors import UsageError
from faceedit.models.generator import Generator
from faceedit.models.latent_classifier import LatentClassifier
from faceedit.results import Inversion
from faceedit.train import figures, latent_classifier
from faceedit.train.attributes import ATTRIBUTES
from faceedit.train.checkpoint import read_metadata
from faceedit.train.classifier import AttributeClassifier
from faceedit.train.evaluate_inversion import invert_all
from faceedit.train.identity import load_identity
from faceedit.train.measurement import ENTANGLEMENT, Measurement, Report
from faceedit.train.perceptual import LPIPS
from faceedit.train.synthetic import mixed_latents

SIZE = 256
# Recipes have small seeds; with these the faces were never trained on. PyTorch's CPU generator keeps the
# lower 32 bits of a seed, so the bit that tells them apart lies within.
FIRST_SEED = 2**31
TRUNCATION = (0.6, 1.0)  # each face draws its own from this interval


class GeneratedFaces:
    """Random faces with equal rows of W+, drawn by the early exit in bfloat16.

    Args:
        generator: Draws them.
        directions: What can be moved.
        n: How many.
        seed: From 0 to 2^31 - 1; faces of training have other seeds.
        full: Draw by the full pass instead.
        known: Tells each face's steps; None moves all by the directions' own length.
    """

    def __init__(
        self, generator: Generator, directions: Directions, n: int, seed: int, full: bool = False,
        known: LatentClassifier | None = None,
    ) -> None:  # fmt: skip
        self.n, self._known = n, known
        self.latents = mixed_latents(generator, n, seed=FIRST_SEED + seed, truncation=TRUNCATION, mixing=0.0)
        self.directions = directions
        generator = copy.deepcopy(generator).to(dtype=torch.bfloat16, memory_format=torch.channels_last)
        self._render = generator if full else generator.preview

    @torch.no_grad()
    def draw(self, rows: Sequence[int], name: str | None = None, strength: float = 0.0) -> Tensor:
        """See :class:`faceedit.train.measurement.Faces`."""
        codes = self.latents[list(rows)]
        if name is not None:
            codes = torch.stack([self._moved(code, {name: strength}) for code in codes])
        # One at a time, the fastest way on a CPU: its maps stay in the cache.
        return torch.cat([_reduced(self._render(code).float().clamp(-1, 1)) for code in codes.bfloat16().split(1)])

    def _moved(self, code: Tensor, strengths: dict[str, float]) -> Tensor:
        if self._known is not None:
            strengths = self._known.applied(code, self.directions.vectors, strengths)
        return code + self.directions.offset(strengths)


class Photographs:
    """Inversions of photographs, edited by a `FaceEditor`.

    Args:
        editor: Inverts and edits.
        folder: Holds pictures and ``index.csv``.
        full: Draw by the full pass instead of the early exit.

    Attributes:
        edited: (number, attribute) to the crop after its edit at +1 by the style branch alone, ``(3, 256, 256)`` uint8.
    """

    def __init__(self, editor: FaceEditor, folder: Path, full: bool = False) -> None:
        self.editor, self.full = editor, full
        self.inversions, self.missed = invert_all(editor, folder, 0)
        self.n = len(self.inversions)
        self.edited: dict[tuple[int, str], Tensor] = {}

    def draw(self, rows: Sequence[int], name: str | None = None, strength: float = 0.0) -> Tensor:
        """See :class:`faceedit.train.measurement.Faces`."""
        return torch.cat([self._draw(row, name, strength) for row in rows])

    def _draw(self, row: int, name: str | None, strength: float) -> Tensor:
        strengths = {} if name is None else {name: strength}
        inversion: Inversion = dataclasses.replace(self.inversions[row], picture=None)  # nothing to paste into
        face = self.editor.edit(inversion, strengths, preview=not self.full, refine=False, return_result=True).faces[0]
        if name is not None and strength == 1:
            self.edited[row, name] = (_reduced(face.output[None])[0] * 255).round().byte()
        return _reduced(face.edited[None]) * 2 - 1


def _reduced(pictures: Tensor) -> Tensor:
    """``(B, 3, R, R)`` to ``(B, 3, 256, 256)``."""
    if pictures.shape[-1] == SIZE:
        return pictures
    return F.interpolate(pictures, (SIZE, SIZE), mode="area" if pictures.shape[-1] > SIZE else "bilinear")


# --- what is printed ----------------------------------------------------------------------------


def table(report: Report, ranges: dict[str, tuple[float, float]]) -> str:
    """Both tables of a report as text."""
    shares = ("got at +1", "lost at -1", "got at top", "lost at bottom")
    lines = [f"  {'':<12}" + "".join(f"{head:>24}" for head in shares) + f"{'identity':>18}{'L2':>8}{'LPIPS':>8}{'non-zero':>10}"]
    for name, found in report.attributes.items():
        low, high = ranges[name]
        cells = []
        for figure in shares:
            share = found[figure]
            end = {"got at top": f" {high:+g}", "lost at bottom": f" {low:+g}"}.get(figure, "")
            value = f"{100 * share.value:.0f}% ({100 * share.low:.0f}-{100 * share.high:.0f})" if share.n else "no face"
            cells.append(f"{value}/{share.n}{end}".rjust(24))
        identity = found["identity"]
        lines.append(
            f"  {name:<12}" + "".join(cells) + f"{identity.value:.2f} ({identity.low:.2f}-{identity.high:.2f})".rjust(18)
            + f"{found['L2'].value:>8.4f}{found['LPIPS'].value:>8.3f}{100 * found['non-zero'].value:>9.1f}%"
        )
    names = list(report.attributes)
    lines += ["", f"  {'moved':<12}" + "".join(f"{name[:10]:>11}" for name in names)]
    lines += [f"  {a:<12}" + "".join(f"{x:>+11.2f}" for x in report.effects[i]) for i, a in enumerate(names)]
    for label, ratio in (("all pairs", report.entanglement), ("unrelated pairs", report.entanglement_unrelated)):
        lines.append(
            f"  off-diagonal mean / diagonal, {label}: {ratio.value:.3f} ({ratio.low:.3f}-{ratio.high:.3f}), "
            f"at most {ENTANGLEMENT} wanted"
        )
    for width, found in report.painted.items():
        got, identity = found["got"], found["identity"]
        lines.append(
            f"  frames painted over the eyes, {width} px wide, all else untouched: glasses seen in {100 * got.value:.0f}% "
            f"({100 * got.low:.0f}-{100 * got.high:.0f})/{got.n}, identity {identity.value:.2f} "
            f"({identity.low:.2f}-{identity.high:.2f})"
        )
    lines += [f"  {name} is below the bar: {'; '.join(missed)}" for name in names if (missed := report.below(name))]
    return "\n".join(lines)


def describe_judge(path: Path, judge: AttributeClassifier) -> str:
    """One line on which classifier judges."""
    recipe = json.loads(read_metadata(path)["recipe"])
    return f"{path.name} ({judge.body}, half {recipe.get('half') or 'A and B'}, seed {recipe.get('seed')})"


def steps_of(editor: FaceEditor) -> str:
    """How far strength 1 moves, in words."""
    return "steps of each face's own length" if editor.latent_classifier else "steps of the directions' own length"


# --- command ------------------------------------------------------------------------------------


def with_directions(
    editor: FaceEditor, directions: Directions, known: LatentClassifier | None = None
) -> FaceEditor:
    """The editor with other directions, and what tells their steps, in place of its own."""
    config = dataclasses.replace(editor.config, attributes=directions.attributes, fusion=None)
    changed = editor._with(config=config, directions=directions, fusion=None)
    return changed.with_latent_classifier(known)


def choose(directions: Directions, wanted: Sequence[str] | None) -> list[str]:
    """The directions to measure.

    Raises:
        UsageError: If one is not among the directions, or not in the table of attributes.
    """
    names = [directions.resolve(name) for name in wanted] if wanted else list(directions.names)
    unknown = [name for name in names if name not in ATTRIBUTES]
    if unknown:
        raise UsageError(
            f"no output of the classifier measures {', '.join(unknown)}: leave them out with --attributes; "
            f"it measures {', '.join(ATTRIBUTES)}"
        )
    return names


def main(argv: list[str]) -> int:
    """Command line entry; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m faceedit.train evaluate style", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--checkpoint", help="folder or Hub id; none takes the default")
    parser.add_argument("--directions", type=Path, help="directions file in place of the checkpoint's own")
    parser.add_argument("--latent-classifier", type=Path, help="of these directions; none moves all faces by their length")
    parser.add_argument("--judge", required=True, type=Path, help="classifier that was not used in training")
    parser.add_argument("--identity", required=True, type=Path, help="from faceedit.train identity")
    parser.add_argument("--lpips", required=True, type=Path, help="LPIPS AlexNet weights, safetensors")
    parser.add_argument("--faces", type=int, default=500, help="generated faces (%(default)s); 0 leaves them out")
    parser.add_argument("--photos", type=Path, help="folder with pictures and index.csv")
    parser.add_argument("--out", required=True, type=Path, help="folder for style.json and the figures")
    parser.add_argument("--attributes", nargs="+", metavar="NAME", help="measure these only")
    parser.add_argument("--looks", type=int, default=100, help="generated faces for identity, L2 and LPIPS (%(default)s)")
    parser.add_argument("--turns", type=int, default=150, help="faces at most for -1 and the range's ends (%(default)s)")
    parser.add_argument("--full", action="store_true", help="full generator pass instead of the early exit; slow")
    parser.add_argument("--figure", action="store_true", help="also draw directions and, with --photos, the grid of edits")
    parser.add_argument("--without", type=Path, help="directions trained without L_spa, for the figure's comparison")
    parser.add_argument("--seed", type=int, default=0, help="of the generated faces")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    if not args.faces and not args.photos:
        parser.error("--faces 0 leaves nothing to measure: give --photos")
    if not 0 <= args.seed < FIRST_SEED:
        parser.error(f"--seed must be from 0 to {FIRST_SEED - 1}, not {args.seed}")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    editor = FaceEditor.from_pretrained(args.checkpoint)
    if args.latent_classifier and not args.directions:
        parser.error("--latent-classifier is one of other directions: give them with --directions")
    if args.directions:
        known = latent_classifier.load(args.latent_classifier) if args.latent_classifier else None
        editor = with_directions(editor, Directions.load(args.directions), known)
    directions, generator = editor.directions, editor.generator
    names = choose(directions, args.attributes)
    judge = AttributeClassifier.load(args.judge)
    networks = (judge, load_identity(args.identity), LPIPS.from_file(args.lpips))
    judged = describe_judge(args.judge, judge)
    picture = (
        f"{'full pass' if args.full else 'early exit'}, {SIZE} px, L2 on pixels in [0, 1], "
        f"LPIPS v0.1 {networks[2].backbone}, identity by {type(networks[1]).__name__}"
    )
    steps = steps_of(editor)
    ranges = dict(directions.ranges)
    result: dict[str, Any] = {
        "directions": str(args.directions.name if args.directions else args.checkpoint or "default checkpoint"),
        "steps": steps,
        "judge": judged, "pictures": picture, "ranges": ranges,
        "seed": args.seed, "first_seed": FIRST_SEED, "truncation": TRUNCATION,
    }  # fmt: skip
    photographs: Photographs | None = None
    if args.faces:
        faces = GeneratedFaces(generator, directions, args.faces, args.seed, args.full, editor.latent_classifier)
        report = Measurement(faces, directions, *networks, looks=args.looks, turns=args.turns).run(names)
        result["generated"] = report.to_dict()
        print(
            f"generated faces, n = {args.faces}, seed 2^31 + {args.seed}, truncation {TRUNCATION[0]}-{TRUNCATION[1]}; {picture} "
            f"(first {min(args.looks, args.faces)} faces); judge {judged}; {steps}; share (95 %)/faces that had to turn"
        )
        print(table(report, ranges), flush=True)
        if args.figure:
            pair = ()
            if args.without:
                without = Directions.load(args.without)
                pair = (without, GeneratedFaces(generator, without, args.faces, args.seed, args.full))
            figures.directions_figure(report.examples, directions, faces, *pair).save(args.out / "directions.png")
    if args.photos:
        photographs = Photographs(editor, args.photos, args.full)
        looks = photographs.n
        report = Measurement(photographs, directions, *networks, looks=looks, turns=looks).run(names)
        result["photographs"] = report.to_dict() | {"no face found, box given": photographs.missed}
        print(
            f"\nphotographs in {args.photos.name}, inverted and edited by FaceEditor, n = {photographs.n}; "
            f"{picture}; judge {judged}; {steps}"
        )
        print(table(report, ranges), flush=True)
    result["minutes"] = round((time.monotonic() - start) / 60, 1)
    (args.out / "style.json").write_text(json.dumps(result, indent=2) + "\n")
    if args.figure and photographs:
        for number, sheet in enumerate(figures.photograph_sheets(names, photographs.inversions, photographs.edited)):
            sheet.save(args.out / f"photographs_{number}.jpg", quality=92)
    print(f"{(time.monotonic() - start) / 60:.1f} minutes; {args.out / 'style.json'}")
    return 0
