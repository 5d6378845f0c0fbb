"""The errors that faceedit raises on purpose.

Every one is a `FaceEditError` and also the builtin that a caller would think of catching, so both
``except FaceEditError`` and ``except FileNotFoundError`` work. A message says what was given, why
it is refused and what to do instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "FaceEditError",
    "ImageError",
    "ImageNotFoundError",
    "ImageTooLargeError",
    "NoFaceError",
    "FaceSelectionError",
    "LandmarksError",
    "UnknownAttributeError",
    "StrengthError",
    "CheckpointNotFoundError",
    "CheckpointError",
    "ConfigError",
    "DownloadError",
    "OutputExistsError",
    "MissingDependencyError",
    "ConversionError",
    "UsageError",
    "DataError",
    "DivergedError",
]


class FaceEditError(Exception):
    """Base of every error that faceedit raises on purpose."""


class ImageError(FaceEditError, ValueError):
    """A picture is unreadable, truncated, empty, animated or of a kind that is not accepted."""


class ImageNotFoundError(ImageError, FileNotFoundError):
    """A picture was given as a path, and no file is there."""


class ImageTooLargeError(ImageError):
    """A picture has more pixels than faceedit is willing to decode."""


class NoFaceError(FaceEditError, LookupError):
    """No face was found where at least one is needed."""


class FaceSelectionError(FaceEditError, LookupError):
    """The choice of faces is ambiguous, out of range, or given as boxes that make no sense."""


class LandmarksError(FaceEditError, ValueError):
    """Facial landmarks have the wrong shape, or no face could be laid through them."""


class UnknownAttributeError(FaceEditError, ValueError):
    """An attribute was asked for that the checkpoint does not have.

    Args:
        name: the name that was asked for.
        known: the names that would have been accepted, aliases included.

    Attributes:
        name: as given.
        known: tuple of the accepted names, in the order given.
        suggestions: tuple of at most three known names close to `name`, best first.
    """

    def __init__(self, name: str, known: Iterable[str] = ()) -> None:
        self.name = name
        self.known = tuple(known)
        folded: dict[str, str] = {}
        for candidate in self.known:
            folded.setdefault(candidate.lower(), candidate)
        close = difflib.get_close_matches(str(name).lower(), folded, n=3, cutoff=0.6)
        self.suggestions = tuple(folded[match] for match in close)
        advice = ""
        if self.suggestions:
            advice = f" Did you mean {' or '.join(map(repr, self.suggestions))}?"
        listing = ", ".join(self.known) or "none"
        super().__init__(
            f"Unknown attribute {name!r}.{advice} The attributes of this checkpoint are: {listing}."
        )

    def __reduce__(self) -> tuple[type[UnknownAttributeError], tuple[str, tuple[str, ...]]]:
        # The default would call the constructor with the message, and lose the fields, when the
        # error crosses a process boundary.
        return type(self), (self.name, self.known)


class StrengthError(FaceEditError, ValueError):
    """An edit strength is not a finite number."""


class CheckpointNotFoundError(FaceEditError, FileNotFoundError):
    """No checkpoint or saved inversion is where it was looked for: on disk, cached, on the Hub."""


class CheckpointError(FaceEditError, ValueError):
    """A checkpoint or a saved inversion is corrupt, or a tensor is missing, extra or mis-shaped."""


class ConfigError(FaceEditError, ValueError):
    """A config or recipe has an unknown or missing key, a bad value or another version."""


class DownloadError(FaceEditError, OSError):
    """The Hub could not be reached, or it refused the request."""


class OutputExistsError(FaceEditError, FileExistsError):
    """Something already lies where a result should be written."""


class MissingDependencyError(FaceEditError, ImportError):
    """An optional package is needed for what was asked and is not installed."""


class ConversionError(CheckpointError):
    """A foreign file is damaged, dangerous, or not in a layout that its converter reads."""


class UsageError(FaceEditError, ValueError):
    """An argument has a wrong type or value, and no more specific error fits."""


class DataError(FaceEditError, ValueError):
    """A training set is empty, unreadable as a whole, or its labels or splits contradict it."""


class DivergedError(FaceEditError, ArithmeticError):
    """A training's loss or gradient is not finite any more."""
