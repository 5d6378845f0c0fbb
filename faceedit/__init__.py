"""Edit real face photographs with StyleGAN.

    from faceedit import FaceEditor

    editor = FaceEditor.from_pretrained()
    editor.edit("photo.jpg", smile=1.0).save("smiling.jpg")

The names below are loaded when they are first used, so that ``import faceedit`` stays fast and
brings in neither torch nor any other large package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from faceedit import errors as errors
    from faceedit.editor import FaceEditor as FaceEditor
    from faceedit.results import EditedFace as EditedFace
    from faceedit.results import EditResult as EditResult
    from faceedit.results import Inversion as Inversion

__version__ = "0.1.0"

__all__ = ["EditResult", "EditedFace", "FaceEditor", "Inversion", "__version__", "errors"]

_HOMES = {
    "FaceEditor": "faceedit.editor",
    "EditResult": "faceedit.results",
    "EditedFace": "faceedit.results",
    "Inversion": "faceedit.results",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("faceedit.errors")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # the next access finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
