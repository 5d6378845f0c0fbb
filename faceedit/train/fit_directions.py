"""A direction of your own, from tens of labelled pictures.

``python -m faceedit.train fit-directions --name beanie --with DIR --without DIR --out beanie.safetensors``
``python -m faceedit.train fit-directions --name wavy_hair --pictures DIR --labels FILE --out wavy_hair.safetensors``

1. Invert every picture once; the codes are kept, so that another run is quick.
2. Per entry of W+ regress the codes on the label and on the pictures' scores along the attributes to
   hold: what is left to the label is the raw direction, free of "with" pictures being older, say.
3. Shrink each row towards zero by how little it stands out from chance (a positive-part James-Stein
   estimate); how much must stand out is chosen by cross-validation. Rows that do not are exactly zero.
4. Take out what is left along the held attributes.
5. Scale: strength 1 moves the mean score of the "without" pictures to that of the "with" pictures.

Codes are compared by <a, b> = a' C^-1/2 b, C the covariance of W, known from thousands of samples of
the mapping network. C^-1, the usual choice, needs more pictures than anybody labels: it lives on
what faces hardly differ in. Identity, no metric at all, lets pose and background decide.

Source: the regression's role of the held attributes is that of InterFaceGAN's conditional manipulation
(Shen et al., arXiv 2005.09635); shrinkage: James and Stein, "Estimation with quadratic loss", 1961.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from faceedit import hub
from faceedit.directions import Directions
from faceedit.editor import FaceEditor
from faceedit.errors import FaceEditError, OutputExistsError, UsageError
from faceedit.models.generator import Generator
from faceedit.results import Inversion
from faceedit.train.checkpoint import read_metadata, save_tensors
from faceedit.train.labelled_pictures import draw, fold, list_pictures, read_labels

LEAST = 8
"""Fewer usable pictures than this on a side are refused."""

HOLD = ("smile", "age", "gender")  # what pictures sorted by anything tend to differ in as well
THRESHOLDS = (0.0, 0.3, 0.5, 0.65)  # of step 3, as shares of the row that stands out most
_W_SAMPLES = 10_000


# --- codes ----------------------------------------------------------------------------------


def invert_pictures(
    editor: FaceEditor, pictures: Sequence[Path], kept: Path, key: str, *, aligned: bool = False, steps: int = 0
) -> tuple[dict[str, Tensor], dict[Path, str]]:
    """Codes of the largest face of every picture, kept in a file that another run goes on with.

    Args:
        editor: Inverts.
        pictures: Files; those that cannot be read, or have no face, are reported and left out.
        kept: File of the codes, written every few pictures.
        key: Of what decides the codes besides the picture; a file with another key is written anew.
        aligned: The pictures are FFHQ crops already.
        steps: Refinement steps of every inversion.

    Returns:
        Hash of a picture's bytes to its code ``(n_styles, dim)``; and hash of each picture by path.
    """
    codes: dict[str, Tensor] = {}
    if kept.exists() and read_metadata(kept).get("key") == key:
        codes = load_file(str(kept))
    hashes: dict[Path, str] = {}
    new = 0
    for path in tqdm(pictures, file=sys.stderr, desc="inverting", mininterval=2):
        try:
            data = path.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            if digest not in codes:
                inversion = editor.invert(data, aligned=aligned, steps=steps, reconstruct=False)
                codes[digest] = inversion.latents
                new += 1
                if new % 20 == 0:
                    save_tensors(codes, kept, {"key": key})
        except (FaceEditError, OSError) as error:
            tqdm.write(f"skipped {path}: {error}", file=sys.stderr)
            continue
        hashes[path] = digest
    if new:
        save_tensors(codes, kept, {"key": key})
    return codes, hashes


@torch.no_grad()
def w_metric(generator: Generator, seed: int = 0) -> Tensor:
    """``C^-1/2 (dim, dim)``, C the covariance of W; directions that W does not have weigh nothing."""
    z = torch.randn(_W_SAMPLES, generator.style_dim, generator=torch.Generator().manual_seed(seed))
    w = generator.map(z.to(generator.mean_latent)).double().cpu()
    values, basis = torch.linalg.eigh((w - w.mean(0)).T @ (w - w.mean(0)) / len(w))
    weights = torch.where(values > 1e-6 * values.max(), values.clamp_min(1e-30).rsqrt(), 0.0)
    return (basis * weights) @ basis.T


# --- the fit --------------------------------------------------------------------------------


def score(codes: Tensor, direction: Tensor, metric: Tensor) -> Tensor:
    """``(n,)``, how far codes ``(n, n_styles, dim)`` lie along a direction ``(n_styles, dim)``."""
    return torch.einsum("nrd,rd->n", codes, direction @ metric)


def raw_direction(codes: Tensor, labels: Tensor, held: Tensor, metric: Tensor) -> tuple[Tensor, Tensor]:
    """The label's share in the codes, beside that of the held attributes' scores.

    Args:
        codes: ``(n, n_styles, dim)``, float64.
        labels: ``(n,)`` bool.
        held: ``(K, n_styles, dim)``, directions to hold.
        metric: From :func:`w_metric`.

    Returns:
        ``(n_styles, dim)``; and ``(n_styles,)``, by what factor the squared length of each row is what
        chance gives, at 1, or more.
    """
    regressors = [torch.ones(len(codes), dtype=codes.dtype), labels.to(codes)]
    for direction in held:
        s = score(codes, direction, metric)
        regressors.append((s - s.mean()) / s.std().clamp_min(1e-12))
    design = torch.stack(regressors, 1)
    gram = torch.linalg.pinv(design.T @ design)
    effects = torch.einsum("ij,nj,nrd->ird", gram, design, codes)
    left = codes - torch.einsum("ni,ird->nrd", design, effects)
    noise = torch.einsum("nrd,de,nre->r", left, metric, left) * gram[1, 1] / (len(codes) - design.shape[1])
    energy = torch.einsum("rd,de,re->r", effects[1], metric, effects[1])
    return effects[1], energy / noise.clamp_min(1e-12)


def finish(direction: Tensor, standing: Tensor, threshold: float, held: Tensor, metric: Tensor) -> Tensor:
    """Shrink rows by how little they stand out, and take out what moves the held scores.

    Args:
        direction, standing: From :func:`raw_direction`.
        threshold: Rows that stand out less than this share of the best one become exactly zero.
        held: ``(K, n_styles, dim)``.
        metric: From :func:`w_metric`.

    Returns:
        ``(n_styles, dim)``.
    """
    direction = direction * (1 - threshold * standing.max() / standing).clamp_min(0)[:, None]
    if not len(held):
        return direction
    # Only in the rows that are left, or there would be no zeros any more.
    steps = (held * (direction != 0).any(1)[:, None]).flatten(1)
    normals = (held @ metric).flatten(1)
    shares = torch.linalg.pinv(normals @ steps.T, rtol=1e-6) @ (normals @ direction.flatten())
    return direction - (shares @ steps).view_as(direction)


@dataclass(frozen=True)
class Fit:
    """A direction and how well it tells the two sides apart.

    Attributes:
        direction: ``(n_styles, dim)``; strength 1 closes the gap between the mean scores of both sides.
        threshold: The one of :data:`THRESHOLDS` that was chosen.
        auc, accuracy: On pictures left out of the fit, mean over repeated folds. The threshold was
            chosen on the same folds, which flatters them a little.
    """

    direction: Tensor
    threshold: float
    auc: float
    accuracy: float


def fit(codes: Tensor, labels: Tensor, held: Tensor, metric: Tensor, seed: int = 0, repeats: int = 4) -> Fit:
    """Fit a direction; its threshold by cross-validation.

    Args:
        codes: ``(n, n_styles, dim)``.
        labels: ``(n,)`` bool.
        held: ``(K, n_styles, dim)``, directions whose scores it must not move; K may be 0.
        metric: From :func:`w_metric`.
        seed: Of the folds.
        repeats: Divisions into folds.

    Raises:
        UsageError: If a side has fewer than :data:`LEAST` pictures, or the held attributes are all that
            the sides differ in.
    """
    have, lack = int(labels.sum()), int((~labels).sum())
    if min(have, lack) < LEAST:
        raise UsageError(
            f"{have} usable pictures with the attribute and {lack} without: at least {LEAST} of each are needed, "
            "and thirty are better. Add pictures in which one face is seen clearly"
        )
    codes, held = codes.double(), held.double()
    found: dict[float, list[tuple[float, float, float]]] = {threshold: [] for threshold in THRESHOLDS}
    for repeat in range(repeats):
        fold = _folds(labels, min(5, have, lack), seed + repeat)
        scores = {threshold: torch.zeros(len(codes), dtype=torch.float64) for threshold in THRESHOLDS}
        for k in range(int(fold.max()) + 1):
            inside = fold != k
            raw, standing = raw_direction(codes[inside], labels[inside], held, metric)
            for threshold in THRESHOLDS:
                direction = finish(raw, standing, threshold, held, metric)
                seen = score(codes, direction, metric)
                high, low = seen[inside & labels].mean(), seen[inside & ~labels].mean()
                scores[threshold][~inside] = ((seen - (high + low) / 2) / (high - low).abs())[~inside]
        for threshold, seen in scores.items():
            a, b = seen[labels], seen[~labels]
            apart = (a.mean() - b.mean()) / ((a.var() + b.var()) / 2).sqrt()
            ranked = ((a[:, None] > b).double() + (a[:, None] == b).double() / 2).mean()
            found[threshold].append((float(apart), float(ranked), float(((seen > 0) == labels).double().mean())))
    means = {threshold: torch.tensor(values).mean(0).tolist() for threshold, values in found.items()}
    best = max(means, key=lambda threshold: means[threshold][0])
    raw, standing = raw_direction(codes, labels, held, metric)
    direction = finish(raw, standing, best, held, metric)
    seen = score(codes, direction, metric)
    # A step of t along the direction moves the score by t * length.
    length = float(torch.einsum("rd,de,re->", direction, metric, direction))
    if length < 1e-9 * float(torch.einsum("rd,de,re->", raw, metric, raw)):
        raise UsageError("nothing is left of the direction beside the held attributes: hold fewer (--hold)")
    step = float(seen[labels].mean() - seen[~labels].mean()) / length
    return Fit((step * direction).float(), best, *means[best][1:])


def _folds(labels: Tensor, k: int, seed: int) -> Tensor:
    """Fold of each picture ``(n,)``; both sides are spread evenly."""
    lots, fold = torch.Generator().manual_seed(seed), torch.empty(len(labels), dtype=torch.long)
    for side in (labels, ~labels):
        rows = side.nonzero()[:, 0]
        fold[rows[torch.randperm(len(rows), generator=lots)]] = torch.arange(len(rows)) % k
    return fold


def draw_sheet(editor: FaceEditor, name: str, path: Path, seed: int, faces: int = 6, size: int = 192) -> None:
    """Draw generated faces, a row each, at strengths from -2 to 2 of an attribute."""
    strengths = (-2.0, -1.0, 0.0, 1.0, 2.0)
    sheet = Image.new("RGB", (size * len(strengths), 16 + size * faces), "white")
    pen = ImageDraw.Draw(sheet)
    for column, strength in enumerate(strengths):
        pen.text((size * column + 4, 2), f"{name} {strength:+g}", fill="black")
        for row, code in enumerate(editor.generator.sample(faces, seed=seed).float().cpu()):
            picture = editor.edit(Inversion(code), {name: strength}, preview=True)
            sheet.paste(picture.resize((size, size), Image.Resampling.LANCZOS), (size * column, 16 + size * row))
    sheet.save(path)


# --- the stage ------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m faceedit.train fit-directions",
        description="Fit a direction of your own from tens of labelled pictures.",
    )
    parser.add_argument("--name", required=True, help="what the attribute will be called")
    parser.add_argument("--with", dest="having", type=Path, metavar="DIR", help="folder of pictures with it")
    parser.add_argument("--without", type=Path, metavar="DIR", help="folder of pictures without it")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="instead of two folders: one, with a label file")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="CSV name,label, or CelebA's table of attributes")
    parser.add_argument("--attribute", metavar="COLUMN", help="column of a table of attributes (default: --name)")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="safetensors file to write")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--alias", nargs="*", default=[], metavar="NAME", help="other names it answers to")
    parser.add_argument("--description", default="", help="one line for people")
    parser.add_argument("--licence", default="", help="terms of the direction; none given means the checkpoint's own")
    parser.add_argument("--range", type=float, nargs=2, default=(-1.0, 1.0), metavar=("LOW", "HIGH"),
                        help="strengths at which you looked at edits (default: -1 1)")  # fmt: skip
    parser.add_argument("--hold", metavar="NAME,...",
                        help=f"attributes that it must not move, or none (default: {','.join(HOLD)})")  # fmt: skip
    parser.add_argument("--most", type=int, default=200, metavar="N", help="pictures of a side, by lot (default: 200)")
    parser.add_argument("--aligned", action="store_true", help="the pictures are FFHQ crops already")
    parser.add_argument("--steps", type=int, default=0, help="refine every inversion by so many steps (default: 0)")
    parser.add_argument("--codes", type=Path, help="where the pictures' codes are kept (default: beside --out)")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="also draw generated faces at -2 to 2")
    parser.add_argument("--checkpoint", help="folder or Hub id (default: built in)")
    parser.add_argument("--device", help="such as cuda (default: cpu)")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _sides(options: argparse.Namespace) -> tuple[list[Path], list[Path]]:
    """The pictures with the attribute and those without."""
    if options.having and options.without and not (options.pictures or options.labels):
        return list_pictures(options.having), list_pictures(options.without)
    if not (options.pictures and options.labels) or options.having or options.without:
        raise UsageError("give the pictures as --with DIR --without DIR, or as --pictures DIR --labels FILE")
    labels = read_labels(options.labels, options.attribute or options.name)
    there = {name: options.pictures / name for name in labels if (options.pictures / name).is_file()}
    if len(there) < len(labels):
        missing = next(name for name in labels if name not in there)
        print(f"{len(labels) - len(there)} labelled files are not in {options.pictures}, such as {missing}", flush=True)
    return [path for name, path in there.items() if labels[name]], [path for name, path in there.items() if not labels[name]]


def _held(options: argparse.Namespace, own: Directions) -> tuple[str, ...]:
    """Own names of the attributes to hold."""
    if options.hold is None:
        mine = set(map(fold, (options.name, *options.alias)))
        return tuple(name for name in HOLD if name in own.names and not mine & {name, *own.aliases[name]})
    return () if options.hold == "none" else tuple(own.resolve(name) for name in options.hold.split(","))


def _run(options: argparse.Namespace) -> None:
    started, say = time.monotonic(), functools.partial(print, flush=True)
    if options.out.exists() and not options.overwrite:
        raise OutputExistsError(f"{str(options.out)!r} exists; --overwrite replaces it")
    sides = [draw(side, options.most, options.seed) for side in _sides(options)]
    folder = hub.resolve(options.checkpoint)
    editor = FaceEditor.from_pretrained(folder, device=options.device)
    held = _held(options, editor.directions)
    stamp = hashlib.sha256((folder / hub.TENSOR_FILE).read_bytes()).hexdigest()
    key = json.dumps([stamp, editor.config.to_dict()["encoder"], options.aligned, options.steps])
    kept = options.codes or options.out.with_name(f"{options.out.stem}.codes.safetensors")
    codes, hashes = invert_pictures(editor, [*sides[0], *sides[1]], kept, key, aligned=options.aligned, steps=options.steps)
    having, lacking = ([*dict.fromkeys(hashes[path] for path in side if path in hashes)] for side in sides)
    if both := set(having) & set(lacking):
        names = ", ".join(str(path) for path, digest in hashes.items() if digest in both)
        raise UsageError(f"the same pictures are on both sides: {names}. Take them out of one")
    found = torch.stack([codes[digest] for digest in (*having, *lacking)]) if having or lacking else torch.zeros(0, 1, 1)
    labels = torch.arange(len(found)) < len(having)
    directions = editor.directions
    stack = torch.stack([directions.vectors[name] for name in held]) if held else torch.zeros(0, *directions.shape)
    metric = w_metric(editor.generator, options.seed)
    fitted = fit(found, labels, stack, metric, options.seed)
    direction = fitted.direction
    rows = (direction != 0).any(1).nonzero()[:, 0].tolist()
    say(f"{len(having)} pictures with {options.name}, {len(lacking)} without; {sum(map(len, sides)) - len(hashes)} skipped")
    say(f"left-out pictures are told apart with AUC {fitted.auc:.3f}, accuracy {fitted.accuracy:.3f}")
    say(f"rows {', '.join(map(str, rows))} of {directions.shape[0]}; held: {', '.join(held) or 'nothing'}")
    if fitted.auc < 0.65:
        say("the codes hardly tell the two sides apart: look at the edits before you trust this direction; "
            "more pictures, or clearer ones, help most")  # fmt: skip
    success = {
        "pictures_with": len(having), "pictures_without": len(lacking),
        "left_out_auc": round(fitted.auc, 4), "left_out_accuracy": round(fitted.accuracy, 4),
    }  # fmt: skip
    mine = Directions(
        {options.name: direction}, aliases={options.name: options.alias}, ranges={options.name: options.range},
        licence=options.licence, descriptions={options.name: options.description}, success={options.name: success},
        generator=editor.config.generator.name,
    )  # fmt: skip
    recipe = {"stage": "fit-directions", "held": held, "threshold": fitted.threshold, "seed": options.seed,
              "steps": options.steps, "aligned": options.aligned, "checkpoint_sha256": stamp}  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    mine.save(options.out, source=json.dumps(recipe), overwrite=True)
    say(f"{options.out}: {options.name}, {time.monotonic() - started:.0f} s")
    if options.sheet:
        draw_sheet(editor.load_directions(mine, replace=True), options.name, options.sheet, options.seed)


def main(argv: list[str]) -> int:
    """Command line entry; see the module's docstring."""
    _run(_parser().parse_args(argv))
    return 0
