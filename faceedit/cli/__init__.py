"""The ``faceedit`` command.

Results go to stdout, one line each (JSON with ``--json``); errors, one line each, and the progress
bar go to stderr. Exit codes: 0 all went well, 1 something failed, 2 the command itself is wrong,
3 no face was found. With several inputs the rest go on after a failure, and the gravest code is
returned: 1 before 2 before 3.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from faceedit import __version__
from faceedit.cli import commands, conversion, report
from faceedit.cli.paths import CODE_SUFFIX

__all__ = ["main"]

_INTERRUPTED = 130  # 128 + SIGINT, as shells count

_EXAMPLES = """\
examples:
  faceedit edit portrait.jpg smile=1 age=-0.5 -o out.jpg
  faceedit edit photos/ glasses=1 --faces all -o edited/
  faceedit sweep portrait.jpg smile age=-2,-1,0,1,2 -o sheet.png
  faceedit invert portrait.jpg --code portrait.safetensors
  faceedit edit portrait.safetensors beard=1 -o face.png
  faceedit convert e4e_ffhq_encode.pt e4e/ --verify
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        The exit code; see the module's docstring.
    """
    if hasattr(sys.stdout, "reconfigure"):
        # A file's name may have signs that the terminal's encoding has not; that shall not end the run.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read our output has gone, `head` for one
        _silence_stdout()
        return report.FAILED
    except KeyboardInterrupt:
        print("faceedit: interrupted", file=sys.stderr)
        return _INTERRUPTED


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    try:
        args, rest = parser.parse_known_args(argv)
        # argparse leaves over the positionals that follow an option.
        if rest and (not hasattr(args, "arguments") or any(r.startswith("-") for r in rest)):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
    except SystemExit as stop:  # --help, --version, or a mistake that argparse has reported
        return int(stop.code or 0)
    if rest:
        args.arguments += rest
    logging.basicConfig(format="faceedit: %(levelname)s: %(message)s")
    level = logging.DEBUG if args.debug else logging.ERROR if args.quiet else logging.WARNING
    logging.getLogger("faceedit").setLevel(level)
    try:
        code: int = args.run(args)
        return code
    except BrokenPipeError:
        raise
    except Exception as error:
        return report.fatal(args, error)


def _silence_stdout() -> None:
    """Keep the interpreter from failing once more when it flushes at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        pass  # stdout is no real file


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="faceedit",
        description="Edit faces in photographs.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"faceedit {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str,
        run: Callable[[argparse.Namespace], int],
        what: str,
        usage: str | None = None,
    ) -> argparse.ArgumentParser:
        description = f"{what[0].upper()}{what[1:]}."
        made = subparsers.add_parser(name, help=what, description=description, usage=usage)
        made.set_defaults(run=run)
        return made

    edit = command(
        "edit",
        commands.edit,
        "change attributes of the faces in photographs",
        usage="faceedit edit INPUT ... NAME=STRENGTH ... (-o OUT | --suffix TEXT) [options]",
    )
    edit.add_argument(
        "arguments", nargs="+", metavar="INPUT | NAME=STRENGTH",
        help="photographs, folders, glob patterns or inversion files; and what to change: 1 is one "
        "clearly visible step, -1 its mirror",
    )
    edit.add_argument(
        "--set", action="append", default=[], type=_assignment, metavar="NAME=STRENGTH",
        help="the same as NAME=STRENGTH alone",
    )
    edit.add_argument("-o", "--output", metavar="OUT", help="file; a folder for several inputs")
    edit.add_argument(
        "--suffix", metavar="TEXT",
        help="goes into the names of the results, which without -o lie beside the inputs",
    )
    edit.add_argument("-r", "--recursive", action="store_true", help="look into subfolders")
    edit.add_argument(
        "--explain", type=Path, metavar="FILE",
        help="also draw how the result came about: reconstruction, style branch, relevance maps, refined",
    )

    sweep = command(
        "sweep",
        commands.sweep,
        "draw a labelled strip of one face at several strengths",
        usage="faceedit sweep INPUT NAME[=S,S,...] ... -o FILE [options]",
    )
    sweep.add_argument(
        "arguments", nargs="+", metavar="INPUT NAME[=S,S,...]",
        help="a photograph or inversion file, and the attributes, a row each; without strengths, "
        "over the tested range",
    )
    sweep.add_argument("-o", "--output", type=Path, metavar="FILE", required=True)
    sweep.add_argument(
        "--size", type=_whole(32, 1024), default=256, metavar="PIXELS",
        help="side of a tile (default: 256)",
    )

    invert = command("invert", commands.invert, "find the generator's code of one face")
    invert.add_argument("input", type=Path, metavar="INPUT", help="a photograph")
    invert.add_argument(
        "-o", "--output", type=Path, metavar="FILE",
        help="picture of the face as the generator gives it",
    )
    invert.add_argument(
        "--code", type=Path, metavar=f"FILE{CODE_SUFFIX}",
        help="inversion file, which edit and sweep take as input",
    )

    listing = command("attributes", commands.attributes, "list what can be edited")
    info = command("info", commands.info, "show versions, checkpoint, size, licence and device")

    convert = command(
        "convert",
        conversion.convert,
        "bring other people's weights into a checkpoint, without running anything in their files",
        usage="faceedit convert FILE OUT [options]",
    )
    convert.add_argument(
        "source", metavar="FILE",
        help="weights of StyleGAN2, pSp, e4e, ArcFace or MobileStyleGAN; or NAME=FILE, a direction. What "
        "it is, is told by what is in it",
    )
    convert.add_argument(
        "output", type=Path, metavar="OUT",
        help=f"folder of the checkpoint; FILE{CODE_SUFFIX} for directions or one network alone",
    )
    convert.add_argument("--format", metavar="NAME", help="what the file must be, such as e4e")
    convert.add_argument("--encoder", type=Path, metavar="FILE", help="pSp or e4e weights for this generator")
    convert.add_argument(
        "--directions", action="append", default=[], metavar="NAME=FILE[:OPTIONS]",
        help="add an attribute; options are component=N, rows=A-B, step=X and minus=FILE",
    )
    convert.add_argument(
        "--generator", metavar="NAME",
        help="checkpoint that directions are for, a folder or Hub id (default: built in)",
    )
    convert.add_argument("--licence", default="", metavar="TEXT", help="terms of the files, for the record")
    convert.add_argument("--verify", action="store_true", help="draw faces first; picture in OUT/verify.png")
    convert.add_argument("--half", action="store_true", help="store float16 instead of float32")
    convert.add_argument("--overwrite", action="store_true", help="replace what is there")

    download = command("download", commands.download, "copy a checkpoint from the Hub to a folder")
    download.add_argument("repo", metavar="REPO", help="owner/name")
    download.add_argument("folder", type=Path, metavar="FOLDER")
    download.add_argument("--revision", metavar="REV", help="branch, tag or commit")
    download.add_argument("--overwrite", action="store_true", help="replace a checkpoint there")

    for made in (edit, sweep, invert):
        made.add_argument("--overwrite", action="store_true", help="replace existing output files")
        _add_face_options(made)
    for made in (edit, sweep):
        made.add_argument(
            "--no-refine", action="store_false", dest="refine",
            help="edit by the style branch alone, without the photograph's content",
        )
    for made in (edit, sweep, invert, listing, info):
        _add_model_options(made)
    for made in (edit, sweep, listing):
        made.add_argument(
            "--directions", type=Path, action="append", default=[], metavar=f"FILE{CODE_SUFFIX}",
            help="attributes of your own, from `python -m faceedit.train fit-directions`; their names "
            "go before the checkpoint's; may be given several times",
        )
    for made in subparsers.choices.values():
        _add_report_options(made)
    return parser


def _add_face_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("faces")
    chosen = group.add_mutually_exclusive_group()
    chosen.add_argument(
        "--faces", type=_faces, default="largest", metavar="largest|all|N",
        help="which faces; N counts from 0, the largest (default: largest)",
    )
    chosen.add_argument(
        "--box", type=float, nargs=4, action="append", metavar=("X0", "Y0", "X1", "Y1"),
        help="where a face is, in pixels, instead of looking for it",
    )
    chosen.add_argument(
        "--aligned", action="store_true", help="the picture is an FFHQ-style crop already"
    )
    group.add_argument(
        "--landmark-predictor", type=Path, metavar="FILE",
        help="a dlib 68-point predictor of your own, for the crop",
    )
    group.add_argument(
        "--steps", type=_whole(0, 10_000), default=0, metavar="N",
        help="improve the inversion by N steps of optimisation (default: 0)",
    )


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("checkpoint")
    group.add_argument("--checkpoint", metavar="NAME", help="folder or Hub id (default: built in)")
    group.add_argument("--revision", metavar="REV", help="branch, tag or commit of a Hub id")
    group.add_argument("--device", metavar="DEVICE", help="such as cuda or mps (default: cpu)")


def _add_report_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("messages")
    group.add_argument("--json", action="store_true", help="print results as JSON")
    group.add_argument("-q", "--quiet", action="store_true", help="no progress, no result lines")
    group.add_argument("--debug", action="store_true", help="show where an error comes from")


def _faces(text: str) -> str | int:
    if text in ("largest", "all"):
        return text
    try:
        return int(text)
    except ValueError:
        message = f"{text!r} is none of largest, all and a number"
        raise argparse.ArgumentTypeError(message) from None


def _assignment(text: str) -> str:
    if commands.ASSIGNMENT.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=STRENGTH, such as smile=1")
    return text


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            message = f"{text!r} is no whole number from {low} to {high}"
            raise argparse.ArgumentTypeError(message)
        return number

    return parse
