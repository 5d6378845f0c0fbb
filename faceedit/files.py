"""The file side of pictures and results: reading what was given, writing files whole."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from faceedit.errors import (
    ImageError,
    ImageNotFoundError,
    ImageTooLargeError,
    OutputExistsError,
    UsageError,
)

__all__ = ["decode", "read_bytes", "write_whole"]

# Decoders that see strangers' files are kept to the formats that photographs come in. HEIF is there
# for users who have registered a plugin for it; Pillow has none of its own.
_READABLE = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "AVIF", "HEIF", "JPEG2000", "BMP", "GIF", "PPM")


def read_bytes(source: str | os.PathLike[str] | bytes | BinaryIO) -> tuple[bytes, str]:
    """Read an encoded picture from wherever it is.

    Args:
        source: a path; a binary file object, read from its current position to its end; or the
            bytes themselves.

    Returns:
        The bytes, at least one, and what to call the picture in messages.

    Raises:
        ImageNotFoundError: nothing lies at the given path.
        ImageError: a folder, a web address, an unreadable file, or no bytes.
        UsageError: a file object in text mode, or a path that is bytes.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        data, name = bytes(source), "the encoded picture"
    elif isinstance(source, (str, os.PathLike)):
        data, name = _read_path(source)
    else:
        try:
            data, name = source.read(), "the file object"
        except UnicodeDecodeError:
            data = ""
        if not isinstance(data, bytes):
            raise UsageError("The file object gives text. Open the file with mode 'rb'.")
    if not data:
        advice = " It may stand at its end: call seek(0) first." if hasattr(source, "seek") else ""
        raise ImageError(f"Empty: {name} holds 0 bytes, so there is no picture to read.{advice}")
    return data, name


def _read_path(source: str | os.PathLike[str]) -> tuple[bytes, str]:
    path = os.fspath(source)
    name = repr(path)
    if isinstance(path, bytes):
        raise UsageError(f"The path {name} is bytes. Pass a str; os.fsdecode makes one.")
    if path.lower().startswith(("http://", "https://")):
        raise ImageError(
            f"{name} is a web address, and faceedit downloads no pictures. Download it yourself "
            "and pass the path or the bytes."
        )
    if os.path.isdir(path):
        raise ImageError(f"{name} is a folder. Pass the path of one picture.")
    try:
        return Path(path).read_bytes(), name
    except FileNotFoundError as error:
        raise ImageNotFoundError(f"There is no file {name}. Check the path.") from error
    except (OSError, ValueError) as error:  # no permission, or no possible path
        raise ImageError(f"{name} cannot be opened ({error}). Check its permissions.") from error


def decode(data: bytes, name: str) -> Image.Image:
    """Open an encoded picture without decoding its pixels yet.

    Args:
        data: the whole encoded picture.
        name: what to call it in messages.

    Raises:
        ImageTooLargeError: Pillow's own limit on pixels is exceeded.
        ImageError: the header is damaged or of none of the accepted formats.
    """
    Image.init()
    formats = [format_name for format_name in _READABLE if format_name in Image.OPEN]
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLargeError(
            f"Too many pixels: {name} is beyond Pillow's safety limit ({error}). Scale it down "
            "first."
        ) from error
    except Exception as error:
        # Decoders raise whatever they like at broken data; each of these is our caller's picture.
        raise ImageError(
            f"Not a readable picture: {name} is damaged or in none of the formats "
            f"{', '.join(formats)}. Get a whole copy of it, or convert it first."
        ) from error


@contextlib.contextmanager
def write_whole(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary path to write to, and move it to `path` when the block ends well.

    If the block raises, the temporary file is removed and `path` is left as it was.

    Args:
        path: where the file goes; its folder exists.
        overwrite: replace a file that is already there.

    Raises:
        OutputExistsError: something is at `path` and `overwrite` is false.
        UsageError: `path` is a folder, or its folder does not exist.
    """
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{str(path)!r} is a folder; give the path of a file in it.")
    if not path.parent.is_dir():
        raise UsageError(f"The folder of {str(path)!r} does not exist; create it first.")
    _refuse_existing(path, overwrite)
    # In the same folder, because a move between file systems would not be atomic.
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        yield temporary
        _refuse_existing(path, overwrite)  # it may have appeared while we were writing
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if not overwrite and path.exists():
        raise OutputExistsError(
            f"{str(path)!r} exists and is left as it is. Choose another path or pass "
            "overwrite=True (--overwrite on the command line)."
        )
