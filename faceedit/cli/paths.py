"""From the inputs and outputs that were typed to the files to read and to write."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from faceedit.errors import OutputExistsError, UsageError

__all__ = ["CODE_SUFFIX", "WRITABLE", "pairs", "refuse_existing", "require_suffix"]

# What a folder is searched for; and what can be written, anything else becoming a PNG.
_PICTURES = ".jpg .jpeg .png .webp .tif .tiff .avif .heic .heif .jp2 .bmp .gif .ppm".split()
WRITABLE = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
CODE_SUFFIX = ".safetensors"


def pairs(
    inputs: Sequence[str], output: str | None, suffix: str | None, recursive: bool
) -> list[tuple[Path, Path]]:
    """Every file to read, with the file to write.

    Args:
        inputs: files, folders and glob patterns.
        output: a file, where `inputs` is one file; or a folder, in which the pictures of an input
            folder keep their subfolders. None writes beside each input.
        suffix: goes between the name and the ending of each result.
        recursive: look into the subfolders of folders.

    Returns:
        Each file once, in the order of the inputs. A file that does not exist is among them if it
        was named: that is for its reader to say.

    Raises:
        UsageError: there is nothing to read, it is unclear where to write, or two results would
            have one name.
    """
    if output is None and not suffix:
        raise UsageError("Say where results go: -o FILE, -o FOLDER, or --suffix such as _edited.")
    if suffix and Path(suffix).name != suffix:
        raise UsageError(f"--suffix is a part of a file's name, and {suffix!r} cannot be.")
    found: dict[Path, Path] = {}  # file -> its place in an output folder
    for argument in inputs:
        found.update(_expand(argument, recursive))
    single = len(inputs) == 1 and list(found) == [Path(inputs[0])]
    folder = None if output is None else Path(output)
    if output is not None and folder is not None and not folder.is_dir():
        if single and not output.endswith(("/", os.sep)):
            if suffix:
                raise UsageError("--suffix is for an output folder; -o FILE names the file itself.")
            require_suffix(folder, WRITABLE)
            return [(path, folder) for path in found]
        if folder.exists() or folder.suffix.lower() in WRITABLE:
            raise UsageError(f"For several inputs -o is a folder, and {output!r} is none.")
    originals = {path.resolve() for path in found}
    taken: dict[Path, Path] = {}
    for path, place in found.items():
        ending = path.suffix if path.suffix.lower() in WRITABLE else ".png"
        beside = path if folder is None else folder / place
        target = beside.with_name(f"{path.stem}{suffix or ''}{ending}")
        if target in taken:
            raise UsageError(
                f"{str(taken[target])!r} and {str(path)!r} would both become {str(target)!r}. "
                "Edit them in two runs."
            )
        if target != path and target.resolve() in originals:
            raise UsageError(
                f"{str(path)!r} would become {str(target)!r}, which is to be edited too: its original would be lost. "
                "Give an output folder, or leave that file out."
            )
        taken[target] = path
    return [(path, target) for target, path in taken.items()]


def _expand(argument: str, recursive: bool) -> dict[Path, Path]:
    """The files that an input stands for, each with its place in an output folder."""
    path = Path(argument)
    if path.is_dir():
        inside = sorted(path.rglob("*") if recursive else path.iterdir())
        pictures = [
            file
            for file in inside
            if file.suffix.lower() in _PICTURES and file.name[0] != "." and file.is_file()
        ]
        if not pictures:
            advice = "" if recursive else " --recursive looks into its subfolders."
            raise UsageError(f"The folder {argument!r} has no pictures.{advice}")
        return {file: file.relative_to(path) for file in pictures}
    if not path.exists() and any(sign in argument for sign in "*?["):
        matches = [Path(match) for match in sorted(glob.glob(argument, recursive=True))]
        files = {match: Path(match.name) for match in matches if match.is_file()}
        if not files:
            raise UsageError(f"No file matches {argument!r}.")
        return files
    return {path: Path(path.name)}


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise `OutputExistsError` before the work; whoever writes the file checks once more."""
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{str(path)!r} exists; --overwrite replaces it.")


def require_suffix(path: Path, allowed: Sequence[str]) -> None:
    """Raise `UsageError` if the file's name does not end in one of `allowed`."""
    if path.suffix.lower() not in allowed:
        raise UsageError(f"The name of {str(path)!r} must end in {' or '.join(allowed)}.")
