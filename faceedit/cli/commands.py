"""What each command does; `faceedit.cli` says which arguments it takes.

Modules that bring in torch are imported where they are used: ``--help`` must not wait for them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faceedit import __version__
from faceedit.cli import report
from faceedit.cli.paths import CODE_SUFFIX, WRITABLE, pairs, refuse_existing, require_suffix
from faceedit.cli.report import Progress
from faceedit.errors import UnknownAttributeError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from faceedit.editor import FaceEditor
    from faceedit.results import Inversion

__all__ = [
    "ASSIGNMENT", "attributes", "download", "edit", "info", "invert", "sweep",
]  # fmt: skip

ASSIGNMENT = re.compile(r"([A-Za-z][\w -]*)=(.*)")


def edit(args: argparse.Namespace) -> int:
    """Edit photographs."""
    inputs: list[str] = []
    strengths: dict[str, float] = {}
    for argument in [*args.arguments, *args.set]:
        match = ASSIGNMENT.fullmatch(argument)
        if match is None:
            inputs.append(argument)
        elif match[1] in strengths:
            raise UsageError(f"{match[1]!r} is given twice.")
        else:
            strengths[match[1]] = _number(match[2], argument)
    if not inputs or not strengths:
        missing = "which photographs to edit" if strengths else "what to change, such as smile=1"
        raise UsageError(f"Say {missing}. `faceedit edit --help` shows how.")
    jobs = pairs(inputs, args.output, args.suffix, args.recursive)
    if args.explain is not None:
        if len(jobs) > 1:
            raise UsageError(f"--explain draws one photograph, and these are {len(jobs)}. Give one.")
        if not args.refine:
            raise UsageError("--explain shows how refining works: leave out --no-refine.")
        require_suffix(args.explain, WRITABLE)
        if args.explain.resolve() in {path.resolve() for path in jobs[0]}:
            raise UsageError(f"--explain {str(args.explain)!r} is the photograph or its edit: give it a file of its own.")
        refuse_existing(args.explain, args.overwrite)
    editor = _load(args)
    progress = Progress(len(jobs), args.quiet)

    def work(source: Path, target: Path) -> dict[str, Any]:
        refuse_existing(target, args.overwrite)
        result = editor.edit(
            _image_or_inversion(source), strengths, return_result=True, progress=progress.step,
            refine=args.refine, explain=args.explain is not None, **_face_options(args),
        )
        if args.output is not None and target != Path(args.output):  # -o is a folder
            target.parent.mkdir(parents=True, exist_ok=True)
        result.save(target, args.overwrite)
        if args.explain is not None:
            from faceedit import images
            from faceedit.cli import sheet

            images.save(sheet.explain(result, 256), args.explain, args.overwrite)
        return {"faces": len(result.faces)}

    code = report.OK
    for done, (source, target) in enumerate(jobs):
        progress.show(done, source.name)
        one = report.attempt(args, source, target, partial(work, source, target), progress)
        code = report.worst(code, one)
    return code


def sweep(args: argparse.Namespace) -> int:
    """Draw one face at several strengths of some attributes."""
    source, *wanted = args.arguments
    if not wanted:
        raise UsageError("Say which attribute to sweep, such as smile or smile=-1,0,1.")
    _require_one_face(args)
    require_suffix(args.output, WRITABLE)
    editor = _load(args)
    rows = [_row(editor, text) for text in wanted]
    progress = Progress(sum(len(strengths) for _, strengths in rows), args.quiet)

    def work() -> dict[str, Any]:
        from faceedit import images
        from faceedit.cli import sheet

        refuse_existing(args.output, args.overwrite)
        given = _image_or_inversion(Path(source))
        if isinstance(given, str):
            inversion, options = _invert(editor, given, args, progress), {}
        else:
            inversion, options = given, _face_options(args)  # of which `edit` refuses any but the defaults
        before = inversion.crop if inversion.picture is None else inversion.picture.pixels
        tiles: list[list[sheet.Tile]] = []
        done = 0
        for name, strengths in rows:
            tiles.append([])
            if before is not None:
                tiles[-1].append(("input", sheet.tile(before, inversion, args.size)))
            for strength in strengths:
                label = f"{name} {strength:+g}" if strength else f"{name} 0"
                progress.show(done, label)
                edited = editor.edit(inversion, {name: strength}, refine=args.refine, **options)
                tiles[-1].append((label, sheet.tile(edited, inversion, args.size)))
                done += 1
        images.save(sheet.draw(tiles, args.size), args.output, args.overwrite)
        return {"faces": 1}

    return report.attempt(args, Path(source), args.output, work, progress)


def invert(args: argparse.Namespace) -> int:
    """Find the code of a face, and how well the generator gives it back."""
    _require_one_face(args)
    if args.output is not None:
        require_suffix(args.output, WRITABLE)
    if args.code is not None:
        require_suffix(args.code, [CODE_SUFFIX])
    editor = _load(args)
    progress = Progress(1, args.quiet)

    def work() -> dict[str, Any]:
        from faceedit import images

        for path in (args.output, args.code):
            if path is not None:
                refuse_existing(path, args.overwrite)
        inversion = _invert(editor, str(args.input), args, progress)
        face, reconstruction = inversion.crop, inversion.reconstruction
        assert face is not None and reconstruction is not None  # a fresh inversion has both
        if args.output is not None:
            images.save(reconstruction, args.output, args.overwrite)
        if args.code is not None:
            inversion.save(args.code, args.overwrite)
        code = None if args.code is None else str(args.code)
        return {"faces": 1, "code": code, "psnr_256": round(_psnr_256(face, reconstruction), 2)}

    progress.show(0, args.input.name)
    return report.attempt(args, args.input, args.output, work, progress)


def attributes(args: argparse.Namespace) -> int:
    """List what can be edited."""
    known = _load(args).attributes
    if args.json:
        print(json.dumps({name: dataclasses.asdict(info) for name, info in known.items()}))
        return report.OK
    rows = [("name", "tested range", "also called", "what it is")]
    for name, info in known.items():
        low, high = info.range
        rows.append((name, f"{low:+g} to {high:+g}", ", ".join(info.aliases), info.description))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    return report.OK


def info(args: argparse.Namespace) -> int:
    """Show what is installed and loaded."""
    from faceedit import hub

    folder = hub.resolve(args.checkpoint, revision=args.revision)
    editor = _load(args)
    facts: dict[str, Any] = {
        "faceedit": __version__,
        "python": sys.version.split()[0],
        **{name: _version(name) for name in ("torch", "numpy", "pillow", "safetensors", "dlib")},
        "checkpoint": str(folder),
        "size_mb": round(sum(f.stat().st_size for f in folder.iterdir() if f.is_file()) / 1e6, 1),
        "licence": editor.config.licence or "not stated",
        "generator": editor.config.generator.name,
        "resolution": editor.resolution,
        "refines": editor.fusion is not None,
        "attributes": list(editor.attributes),
        "device": str(editor.device),
        "dtype": str(editor.dtype).removeprefix("torch."),
    }
    if args.json:
        print(json.dumps(facts))
        return report.OK
    for name, value in facts.items():
        text = ", ".join(value) if isinstance(value, list) else str(value)
        print(f"{name + ':':<13}{text}")
    return report.OK


def download(args: argparse.Namespace) -> int:
    """Copy a checkpoint from the Hub to a folder."""
    from faceedit import files, hub

    if os.path.isdir(args.repo):
        raise UsageError(f"{args.repo!r} is a folder here already; pass it as --checkpoint.")
    cached = hub.resolve(args.repo, revision=args.revision)
    hub.load_checkpoint(cached)  # whole and readable, before anything is written
    # The config last: a folder in which copying broke off is then never taken for a checkpoint.
    names = (hub.TENSOR_FILE, hub.CARD_FILE, "LICENSE", "NOTICE", hub.CONFIG_FILE)
    parts = [cached / name for name in names if (cached / name).is_file()]
    for part in parts:
        refuse_existing(args.folder / part.name, args.overwrite)
    args.folder.mkdir(parents=True, exist_ok=True)
    (args.folder / hub.CONFIG_FILE).unlink(missing_ok=True)
    for part in parts:
        with files.write_whole(args.folder / part.name, args.overwrite) as temporary:
            shutil.copyfile(part, temporary)
    report.result(args, {"input": args.repo, "output": str(args.folder), "error": None})
    return report.OK


# --- shared by several commands -------------------------------------------------------------


def _load(args: argparse.Namespace) -> FaceEditor:
    from faceedit.editor import FaceEditor

    editor = FaceEditor.from_pretrained(args.checkpoint, revision=args.revision, device=args.device)
    for path in getattr(args, "directions", ()):
        editor = editor.load_directions(path, replace=True)
    return editor


def _image_or_inversion(path: Path) -> str | Inversion:
    if path.suffix.lower() != CODE_SUFFIX:
        return str(path)
    from faceedit.results import Inversion

    return Inversion.load(path)


def _face_options(args: argparse.Namespace) -> Mapping[str, Any]:
    return {
        "faces": args.box or args.faces,
        "aligned": args.aligned,
        "landmark_predictor": args.landmark_predictor,
        "steps": args.steps,
    }


def _invert(
    editor: FaceEditor, image: str, args: argparse.Namespace, progress: Progress
) -> Inversion:
    found = editor.invert(image, progress=progress.step, **_face_options(args))
    return found[0] if isinstance(found, list) else found  # a list where a box was given


def _require_one_face(args: argparse.Namespace) -> None:
    if args.faces == "all" or len(args.box or ()) > 1:
        raise UsageError("This command takes one face: --faces largest, a number, or one --box.")


def _number(text: str, argument: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{argument!r}: a strength is a number, such as 1 or -0.5.") from None


def _row(editor: FaceEditor, text: str) -> tuple[str, list[float]]:
    """The attribute and the strengths of a sweep's row, from NAME or NAME=S,S,..."""
    name, _, listed = text.partition("=")
    known = {alias: own for own, it in editor.attributes.items() for alias in (own, *it.aliases)}
    folded = name.strip().lower().replace("-", "_").replace(" ", "_")
    if folded not in known:
        raise UnknownAttributeError(name, known)
    if listed:
        return name, [_number(part, text) for part in listed.split(",")]
    low, high = editor.attributes[known[folded]].range
    if not low < 0 < high:
        return name, [low, (low + high) / 2, high]
    return name, [low, low / 2, 0.0, high / 2, high]


def _psnr_256(face: Tensor, reconstruction: Tensor) -> float:
    """PSNR in dB of two pictures (3,S,S) with pixels in [0,1], at 256 px."""
    import torch.nn.functional as F

    small = [
        F.interpolate(picture[None].float(), (256, 256), mode="area")
        for picture in (face, reconstruction)
    ]
    return -10 * float((small[0] - small[1]).square().mean().clamp(min=1e-10).log10())


def _version(package: str) -> str:
    for name in (package, f"{package}-bin"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "not installed"
