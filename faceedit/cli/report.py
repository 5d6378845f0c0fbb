"""What the command says: result lines, errors, exit codes and a progress bar."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from faceedit.errors import (
    FaceEditError,
    MissingDependencyError,
    NoFaceError,
    StrengthError,
    UnknownAttributeError,
    UsageError,
)

__all__ = ["FAILED", "NO_FACE", "OK", "USAGE", "Progress", "attempt", "fatal", "result", "worst"]

OK, FAILED, USAGE, NO_FACE = 0, 1, 2, 3
_GRAVITY = (OK, NO_FACE, USAGE, FAILED)

# These would come back for every other input: the run ends with the first of them.
_HOPELESS = (UnknownAttributeError, StrengthError, MissingDependencyError)


def worst(*codes: int) -> int:
    """The gravest of several exit codes."""
    return max(codes, key=_GRAVITY.index)


def attempt(
    args: argparse.Namespace,
    source: Path,
    target: Path | None,
    work: Callable[[], Mapping[str, Any]],
    progress: Progress,
) -> int:
    """Do the work for one picture and print how it went.

    Args:
        args: `json`, `quiet` and `debug` are read.
        source: what is read.
        target: what is written.
        work: does it, and gives further facts for the result line, "faces" above all.
        progress: taken away before anything is printed.

    Returns:
        The exit code.

    Raises:
        FaceEditError: one that would come back for every other input too.
    """
    started = time.perf_counter()
    output = None if target is None else str(target)
    line: dict[str, Any] = {"input": str(source), "output": output, "faces": 0}
    failure: Exception | None = None
    try:
        line.update(work())
    except _HOPELESS:
        raise
    except (FaceEditError, OSError) as error:
        failure = error
    finally:
        progress.clear()
    line["seconds"] = round(time.perf_counter() - started, 3)
    line["error"] = None if failure is None else _describe(failure)
    if failure is None or args.json:
        result(args, line)
    return OK if failure is None else _complain(args, failure, str(source))


def result(args: argparse.Namespace, line: Mapping[str, Any]) -> None:
    """Print a result: as JSON, or its "input", "output" and whatever else of it is for people."""
    if args.json:
        print(json.dumps(line), flush=True)
    elif not args.quiet:
        facts = []
        if line.get("faces", 1) > 1:
            facts.append(f"{line['faces']} faces")
        if "psnr_256" in line:
            facts.append(f"PSNR {line['psnr_256']:.2f} dB at 256 px, pixels in [0,1]")
        if "seconds" in line:
            facts.append(f"{line['seconds']:.1f} s")
        written = [line[key] for key in ("output", "code") if line.get(key)]
        target = f" -> {', '.join(written)}" if written else ""
        print(f"{line['input']}{target}" + (f" ({', '.join(facts)})" if facts else ""), flush=True)


def fatal(args: argparse.Namespace, error: Exception) -> int:
    """Print an error that ended the run, and give its exit code."""
    if args.json:
        print(json.dumps({"error": _describe(error)}), flush=True)
    return _complain(args, error)


def _complain(args: argparse.Namespace, error: Exception, about: str = "") -> int:
    message = _one_line(error)
    if about not in message:
        message = f"{about}: {message}"
    if not isinstance(error, (FaceEditError, OSError)):
        message = f"unexpected {type(error).__name__}: {message} (--debug shows where)"
    print(f"faceedit: error: {message}", file=sys.stderr)
    if args.debug:
        traceback.print_exception(error)
    if isinstance(error, NoFaceError):
        return NO_FACE
    usage = isinstance(error, (UsageError, UnknownAttributeError, StrengthError))
    return USAGE if usage else FAILED


def _describe(error: Exception) -> dict[str, str]:
    return {"type": type(error).__name__, "message": _one_line(error)}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class Progress:
    """A bar on stderr; nothing where that is no terminal, or after ``--quiet``.

    Args:
        total: how many items there are.
        quiet: show nothing.
    """

    _WIDTH = 24

    def __init__(self, total: int, quiet: bool) -> None:
        self._total = total
        self._shown = not quiet and sys.stderr.isatty()
        self._done, self._note = 0, ""

    def show(self, done: int, note: str, part: float = 0.0, detail: str = "") -> None:
        """Draw the bar: `done` whole items and `part` of the next one."""
        self._done, self._note = done, note
        if self._shown:
            full = int(self._WIDTH * min((done + part) / self._total, 1))
            bar = "#" * full + "." * (self._WIDTH - full)
            text = f"[{bar}] {done}/{self._total} {note} {detail}"
            columns = shutil.get_terminal_size().columns
            print(f"\r\x1b[K{text[: columns - 1]}", end="", file=sys.stderr, flush=True)

    def step(self, step: int, steps: int, loss: float) -> None:
        """What `FaceEditor.invert` calls after each step of optimisation."""
        self.show(self._done, self._note, step / steps, f"step {step}/{steps}, loss {loss:.4f}")

    def clear(self) -> None:
        """Take the bar away, so that a line can be printed."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
