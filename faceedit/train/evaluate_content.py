"""Refined edits measured: tables 1 to 3 of the paper on photographs and on generated pairs, and their figures.

``python -m faceedit.train evaluate content --photos DIR --judge FILE --identity FILE --lpips FILE --out FOLDER
[--content RUN] [--variant NAME=RUN ...] [--pairs 40] [--figures] [--sheet [SIDE]]``

Rows are branches: the style branch alone; "refined", the fused pass; "output", what users get, after the
pixels that did not change are put back; and the fused pass and output of every variant.

- reconstruction (table 2): all strengths 0, against the photograph;
- editing (tables 1 and 3): every attribute at +1, against the photograph;
- turned: of photographs that lack the attribute by a judge not used in training, the share that has it at
  +1 (Wilson's 95 % intervals); kept: that share over the style branch's own;
- outside the edit: PSNR to the photograph over the pixels where |G(w + d) - G(w)| is below a threshold,
  for local attributes;
- generated pairs: x = G(w), never trained on, is inverted and edited like a photograph at 256 px, and its
  edits are measured against the true G(w + d).

PSNR, SSIM, LPIPS, L2 (pixels in [0, 1]) and identity (centred cosine of descriptors) are means over faces
of pictures reduced to 256 px, with bootstrap 95 % intervals. All edits are made by `FaceEditor`, so that these
figures come from the path users run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from faceedit.editor import FaceEditor
from faceedit.errors import UsageError
from faceedit.results import Inversion
from faceedit.train import comparison, figures
from faceedit.train.classifier import AttributeClassifier
from faceedit.train.comparison import STYLE, UNEDITED, Branches, Networks
from faceedit.train.evaluate_inversion import SIZE, invert_photo, read_index, reduced
from faceedit.train.evaluate_style import FIRST_SEED, TRUNCATION, choose, describe_judge, steps_of
from faceedit.train.identity import load_identity
from faceedit.train.metrics import Estimate
from faceedit.train.package import load_fusion
from faceedit.train.perceptual import LPIPS
from faceedit.train.synthetic import mixed_latents

REFINED, OUTPUT = "refined", "output"
TABLE_1 = ("glasses", "age", "smile", "gender")  # those that the paper averages
SHOWN = ("smile", "age", "gender", "glasses", "beard")  # those of the contact sheet
SHEET_TILE, SHEET_ROWS = 320, 20  # side of its pictures, and rows of one file
LARGE_ROWS = 4  # rows of one file of larger pictures

# --- faces --------------------------------------------------------------------------------------


def drawn(
    editor: FaceEditor, inversion: Inversion, names: Sequence[str], preview: bool, variant: str = ""
) -> Iterator[tuple[str, str, Tensor]]:
    """What each branch draws of one face, unedited and with each attribute at +1: branch, attribute, picture.

    A variant gives its own fused pass and output, under its name; the style branch is the same in all.
    """
    inversion = dataclasses.replace(inversion, picture=None)  # nothing to paste into

    def edit(strengths: Mapping[str, float], **how: bool) -> Any:
        return editor.edit(inversion, strengths, preview=preview, return_result=True, **how).faces[0]

    if not variant:
        yield STYLE, UNEDITED, edit({}, refine=False).reconstruction
    yield variant or REFINED, UNEDITED, edit({}).reconstruction
    for name in names:
        face = edit({name: 1.0}, explain=not variant)
        if not variant:
            yield STYLE, name, face.edited
        yield variant or REFINED, name, face.refined
        yield f"{variant}, output" if variant else OUTPUT, name, face.output


class _Pile:
    """Pictures at 256 px, face by face."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.made: defaultdict[tuple[str, str], list[Tensor]] = defaultdict(list)
        self.truth: defaultdict[str, list[Tensor]] = defaultdict(list)

    def stacked(self) -> Branches:
        made, truth = ({key: torch.cat(x) for key, x in piles.items()} for piles in (self.made, self.truth))
        return Branches(torch.cat(self.inputs), made, truth)


def photographs(
    editors: Mapping[str, FaceEditor], folder: Path, names: Sequence[str], *, limit: int | None = None,
    preview: bool = False, tile: int = SHEET_TILE,
) -> tuple[Branches, list[dict[str, Tensor]], list[str]]:
    """Photographs, each inverted once an editor.

    Args:
        editors: Name to variant; "" is the editor itself.
        folder: Holds pictures and ``index.csv``.
        names: Attributes to move.
        limit: The first so many photographs only.
        preview: Draw by the early exit.
        tile: Side of the tiles in pixels.

    Returns:
        The faces; tiles of each photograph and its outputs, by attribute, ``(3, tile, tile)`` uint8; and files
        in which no face was found, so that the index's box was taken.
    """
    pile, tiles, missed = _Pile(), [], []
    for row in tqdm(read_index(folder)[:limit], desc="photographs", file=sys.stderr):
        for variant, editor in editors.items():
            inversion, found = invert_photo(editor, folder, row, reconstruct=not preview)
            if not variant:
                missed += [] if found else [row["file"]]
                pile.inputs.append(reduced([inversion.crop]))
                tiles.append({UNEDITED: _tile(inversion.crop, tile)})
            for branch, name, picture in drawn(editor, inversion, names, preview, variant):
                pile.made[branch, name].append(reduced([picture]))
                if branch == OUTPUT:
                    tiles[-1][name] = _tile(picture, tile)
    return pile.stacked(), tiles, missed


@torch.no_grad()
def pairs(editor: FaceEditor, n: int, names: Sequence[str], *, seed: int = 0, preview: bool = False) -> Branches:
    """Generated faces of codes no training saw, inverted from 256 px; the truth is ``G(w + d)``.

    Every face is moved by the directions' own length, for that is the truth's.

    Args:
        editor: Inverts and edits; its generator draws the truth.
        n: How many faces.
        names: Attributes to move.
        seed: From 0 to 2^31 - 1.
        preview: Draw by the early exit, faces and truth too.
    """
    render = editor.generator.preview if preview else editor.generator
    pile, editor = _Pile(), editor.with_latent_classifier(None)

    def true(code: Tensor) -> Tensor:
        return reduced([(render(code[None].to(editor.device, editor.dtype))[0].float().cpu().clamp(-1, 1) + 1) / 2])

    codes = mixed_latents(editor.generator, n, seed=FIRST_SEED + seed, truncation=TRUNCATION, mixing=0.0)
    for code in tqdm(codes, desc="generated pairs", file=sys.stderr):
        pile.inputs.append(true(code))
        for name in names:
            pile.truth[name].append(true(code + editor.directions.vectors[name]))
        inversion = editor.invert(pile.inputs[-1][0], aligned=True, reconstruct=not preview)
        for branch, name, picture in drawn(editor, inversion, names, preview):
            pile.made[branch, name].append(reduced([picture]))
    return pile.stacked()


def _tile(picture: Tensor, side: int) -> Tensor:
    small = F.interpolate(picture[None], (side, side), mode="bilinear", antialias=True)[0]
    return (small.clamp(0, 1) * 255).round().byte()


# --- what is printed and drawn ------------------------------------------------------------------

_DIGITS = {"PSNR": 2, "SSIM": 3, "LPIPS": 4, "L2": 5, "identity": 3, "turned": 2, "kept": 2, "colour": 4, "pixels": 2}


def table(title: str, rows: Mapping[str, Mapping[str, Estimate]], columns: Sequence[str]) -> str:
    """Estimates with their intervals, and with n where it is not the same everywhere."""
    lines = [f"  {title:<30}" + "".join(f"{column:>27}" for column in columns)]
    for label, found in rows.items():
        cells = []
        for column in columns:
            e, digits = found[column], _DIGITS[column]
            cells.append(f"{e.value:.{digits}f} ({e.low:.{digits}f}-{e.high:.{digits}f})/{e.n}" if e.n else "no face")
        lines.append(f"  {label:<30}" + "".join(f"{cell:>27}" for cell in cells))
    return "\n".join(lines)


def tables(found: Mapping[str, Any], truth: str) -> str:
    """All tables of :func:`faceedit.train.comparison.measure` as text; figure (95 %)/faces behind it."""

    def flat(part: str) -> dict[str, Any]:
        return {f"{name}, {branch}": row for name, each in found[part].items() for branch, row in each.items()}

    parts = [
        table("all strengths 0", found["reconstruction"], ("PSNR", "SSIM", "LPIPS", "L2", "identity")),
        table(f"at +1, against {truth}", flat("editing"), ("identity", "L2", "LPIPS", "PSNR", "SSIM")),
        table("turned by +1", flat("turned"), ("turned", "kept")),
    ]
    if found["outside"]:
        parts.append(table(f"change below {comparison.CHANGED:g}", flat("outside"), ("PSNR", "colour", "pixels")))
    return "\n\n".join(parts)


def plain(found: Any) -> Any:
    """JSON values of nested estimates."""
    if isinstance(found, Estimate):
        return found.to_dict(digits=6)
    return {key: plain(value) for key, value in found.items()} if isinstance(found, Mapping) else found


def draw_figures(faces: Branches, names: Sequence[str], out: Path) -> None:
    """Figures 8, 10 and 11 of the paper as ``figure_<number>*.jpg``, photographs downwards."""
    fused = [branch for branch in faces.names(UNEDITED) if branch != STYLE]

    def save(figure: str, columns: Sequence[tuple[str, Tensor]]) -> None:
        titles = [title for title, _ in columns]
        sheets = figures.grids(titles, list(zip(*(pictures for _, pictures in columns))), SIZE)
        for number, sheet in enumerate(sheets):
            sheet.save(out / f"figure_{figure}_{number}.jpg", quality=92)

    photo = ("photograph", faces.inputs)
    both = [(f"{name} +1, {branch}", faces.made[branch, name]) for name in names for branch in (STYLE, REFINED)]
    save("8", [photo, *both])
    for name in names:
        save(f"10_{name}", [photo, *((f"{name} +1, {branch}", faces.made[branch, name]) for branch in (STYLE, *fused))])
    save("11", [photo, *((branch, faces.made[branch, UNEDITED]) for branch in (STYLE, *fused))])


# --- command ------------------------------------------------------------------------------------


def with_run(editor: FaceEditor, run: Path) -> FaceEditor:
    """The editor with the content branch of a run: its folder, or its content.safetensors."""
    return editor.with_fusion(*load_fusion(run.parent if run.name == "content.safetensors" else run, editor))


def _variant(text: str) -> tuple[str, Path]:
    name, _, run = text.partition("=")
    if not name or not run:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=RUN")
    if name in (STYLE, REFINED, OUTPUT):
        raise argparse.ArgumentTypeError(f"{name!r} is the name of a row already")
    return name, Path(run)


def main(argv: list[str]) -> int:
    """Command line entry; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m faceedit.train evaluate content", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--checkpoint", help="folder or Hub id; none takes the default")
    parser.add_argument("--content", type=Path, metavar="RUN", help="content run in place of the checkpoint's own branch")
    parser.add_argument("--variant", type=_variant, action="append", default=[], metavar="NAME=RUN",
                        help="content run measured beside it on the photographs, for ablations; repeatable")  # fmt: skip
    parser.add_argument("--photos", type=Path, help="folder with pictures and index.csv")
    parser.add_argument("--limit", type=int, help="the first so many photographs only")
    parser.add_argument("--pairs", type=int, default=40, help="generated pairs (%(default)s); 0 leaves them out")
    parser.add_argument("--seed", type=int, default=0, help="of the generated pairs")
    parser.add_argument("--attributes", nargs="+", metavar="NAME", help=f"default: of {', '.join(TABLE_1)} those there are")
    parser.add_argument("--judge", required=True, type=Path, help="classifier that was not used in training")
    parser.add_argument("--identity", required=True, type=Path, help="from faceedit.train identity")
    parser.add_argument("--lpips", required=True, type=Path, help="LPIPS AlexNet weights, safetensors")
    parser.add_argument("--out", required=True, type=Path, help="folder for content.json and the figures")
    parser.add_argument("--figures", action="store_true", help="draw figures 8, 10 and 11 of the photographs")
    parser.add_argument("--sheet", nargs="?", type=int, const=SHEET_TILE, metavar="SIDE",
                        help=f"draw photographs x {', '.join(SHOWN)}, as users get them: squares of {SHEET_TILE} px, or of SIDE")  # fmt: skip
    parser.add_argument("--preview", action="store_true", help="early exit of the generator, for a quick look")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    if not args.photos and args.pairs < 1:
        parser.error("--pairs 0 leaves nothing to measure: give --photos")
    if not args.photos and (args.variant or args.figures or args.sheet):
        parser.error("--variant, --figures and --sheet are of photographs: give --photos")
    if len(dict(args.variant)) < len(args.variant):
        parser.error("two variants have one name")
    if args.limit is not None and args.limit < 1:
        parser.error(f"--limit must be at least 1, not {args.limit}")
    if args.sheet is not None and not 1 <= args.sheet <= 1024:
        parser.error(f"--sheet must be from 1 to 1024, not {args.sheet}")
    if not 0 <= args.seed < FIRST_SEED:
        parser.error(f"--seed must be from 0 to {FIRST_SEED - 1}, not {args.seed}")
    torch.set_num_threads(args.threads)
    start = time.monotonic()
    editor = FaceEditor.from_pretrained(args.checkpoint)
    if args.content:
        editor = with_run(editor, args.content)
    if editor.fusion is None:
        raise UsageError(
            f"{args.checkpoint or 'the default checkpoint'} has no content branch, so that there is nothing to refine "
            "with: give the folder of a content run with --content, or another --checkpoint"
        )
    names = choose(editor.directions, args.attributes or [name for name in TABLE_1 if name in editor.directions.names])
    editors = {"": editor} | {name: with_run(editor, run) for name, run in args.variant}
    networks = Networks(AttributeClassifier.load(args.judge), load_identity(args.identity), LPIPS.from_file(args.lpips))
    args.out.mkdir(parents=True, exist_ok=True)
    judged = describe_judge(args.judge, networks.judge)
    picture = (
        f"{'early exit' if args.preview else 'full pass'}, {SIZE} px, pixels in [0, 1], LPIPS v0.1 "
        f"{networks.lpips.backbone}, SSIM 11x11 Gaussian, identity by {type(networks.identity).__name__}"
    )
    result: dict[str, Any] = {
        "checkpoint": str(args.checkpoint or "default checkpoint"),
        "content": args.content and args.content.name,
        "variants": [name for name, _ in args.variant],
        "pictures": picture, "judge": judged, "attributes": names, "intervals": "95 %", "steps": steps_of(editor),
        "outside: change below": comparison.CHANGED,
    }  # fmt: skip
    print(f"{picture}; judge {judged}; {steps_of(editor)}; each figure (95 %)/faces", flush=True)

    def write() -> None:
        result["minutes"] = round((time.monotonic() - start) / 60, 1)
        (args.out / "content.json").write_text(json.dumps(result, indent=2) + "\n")

    if args.photos:
        more = [name for name in SHOWN if args.sheet and name in editor.directions.names and name not in names]
        faces, tiles, missed = photographs(
            editors, args.photos, [*names, *more], limit=args.limit, preview=args.preview, tile=args.sheet or SHEET_TILE
        )
        found = comparison.measure(faces, names, networks)
        missing = comparison.below(found, REFINED)
        result["photographs"] = plain(found) | {"no face found, box given": missed, "below the bar": missing}
        print(f"\nphotographs in {args.photos.name}, inverted and edited by FaceEditor, n = {len(faces.inputs)}")
        print(tables(found, "the photograph"))
        for each in missing:
            print(f"  {REFINED} is below the bar: {each}", flush=True)
        write()
        if args.figures:
            draw_figures(faces, names, args.out)
        if args.sheet:
            shown = [name for name in SHOWN if name in editor.directions.names]
            rows = [[tile[name] for name in (UNEDITED, *shown)] for tile in tiles]
            titles = ["photograph", *(f"{name} +1" for name in shown)]
            per_file = SHEET_ROWS if args.sheet <= SHEET_TILE else LARGE_ROWS
            for number, sheet in enumerate(figures.grids(titles, rows, args.sheet, per_file)):
                sheet.save(args.out / f"sheet_{number}.jpg", quality=92)
    if args.pairs > 0:
        faces = pairs(editor, args.pairs, names, seed=args.seed, preview=args.preview)
        found = comparison.measure(faces, names, networks)
        result["generated pairs"] = plain(found) | {"seed": args.seed, "first_seed": FIRST_SEED, "truncation": TRUNCATION}
        print(f"\ngenerated pairs, n = {args.pairs}, seed 2^31 + {args.seed}, truncation {TRUNCATION[0]}-{TRUNCATION[1]}")
        print(tables(found, "G(w + d), by the directions' own length"), flush=True)
    write()
    print(f"{result['minutes']} minutes; {args.out / 'content.json'}")
    return 0
