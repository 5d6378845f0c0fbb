"""Other people's directions of StyleGAN2-FFHQ, as offsets in the rows of its W+.

========================  ==========================================  ============================
format                    what the file holds                         length of strength 1.0
========================  ==========================================  ============================
InterFaceGAN boundary     one unit normal in W: (512,) or (1, 512)    3, the end of its own sweeps
GANSpace components       comp, mean, std of W's principal components one standard deviation
W+ latents (StyleCLIP)    an offset (n, 512) or (1, n, 512)           as it is stored
StyleSpace channels       see `faceedit.convert.stylespace`           as it is written
========================  ==========================================  ============================
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from faceedit.convert import unpickle
from faceedit.directions import Directions
from faceedit.errors import ConversionError, UsageError

__all__ = ["Request", "array_of", "is_boundary", "is_components", "is_latents", "offset", "parse"]

_BOUNDARY_LENGTH = 3.0
_OPTIONS = ("component", "rows", "step", "minus")
# The options follow a colon; so may the drive letter of a path, which is why the key is looked for.
_REQUEST = re.compile(r"([A-Za-z][\w -]*)=(.+?)(?::((?:%s)=.*))?" % "|".join(_OPTIONS))
_COMPONENTS = (("comp", "mean", "std"), ("lat_comp", "lat_mean", "lat_stdev"))


@dataclass(frozen=True)
class Request:
    """One direction that is asked for.

    Attributes:
        name: of the attribute that it becomes.
        path: of the file.
        component: which of GANSpace's components, from 0; None for other formats.
        rows: first and last row of StyleGAN2's W+ that the direction moves; None means all.
        step: the format's own length of strength 1.0 is multiplied by this; negative turns it round.
        minus: a file of latents to subtract, where `path` is a code rather than an offset.
    """

    name: str
    path: Path
    component: int | None = None
    rows: tuple[int, int] | None = None
    step: float = 1.0
    minus: Path | None = None


def parse(text: str) -> Request:
    """Read ``NAME=FILE[:component=N,rows=A-B,step=X,minus=FILE]``.

    Raises:
        UsageError: the text is of another form, with what is wrong and the form.
    """
    match = _REQUEST.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{text!r} gives a direction no name. Write NAME=FILE, such as smile={text.partition('=')[2] or text}; "
            "options follow a colon, such as smile=ffhq_pca.pt:component=46,rows=4-4."
        )
    options: dict[str, Any] = {}
    for part in (match[3] or "").split(",") if match[3] else ():
        key, _, value = part.partition("=")
        if key not in _OPTIONS or key in options:
            raise UsageError(f"{text!r}: {part!r} is none of {', '.join(f'{key}=...' for key in _OPTIONS)}, once each.")
        options[key] = _option(key, value, text)
    (name,) = Directions({match[1]: torch.zeros(1, 1)}).names  # spelt as attributes are
    return Request(name, Path(match[2]), **options)


def _option(key: str, value: str, text: str) -> Any:
    try:
        if key == "component":
            return int(value)
        if key == "rows":
            first, _, last = value.partition("-")
            return int(first), int(last or first)
        if key == "step" and np.isfinite(float(value)) and float(value):
            return float(value)
        if key == "minus" and value:
            return Path(value)
    except ValueError:
        pass
    wanted = {
        "component": "a number from 0", "rows": "two numbers, such as 0-8", "step": "a number but 0", "minus": "a file",
    }  # fmt: skip
    raise UsageError(f"{text!r}: {key} must be {wanted[key]}, not {value!r}.")


def offset(request: Request, content: Any, n_rows: int) -> Tensor:
    """What strength 1.0 adds to a code of StyleGAN2, float32.

    Args:
        request: which of the file's directions, and how.
        content: of the file, from `faceedit.convert.unpickle.read`.
        n_rows: how often a direction in W is repeated.

    Returns:
        ``(n, 512)`` in StyleGAN2's numbering of rows: `n_rows`, or as many as the file has.

    Raises:
        ConversionError: the file holds no direction.
        UsageError: options that the format lacks or needs, or out of its range.
    """
    where = f"{request.name}={request.path}"
    if is_components(content):
        vector = _component(request, content, where)
    else:
        if request.component is not None:
            raise UsageError(f"{where}: only GANSpace's files have components; leave component= out.")
        vector = array_of(content, where)
        if request.minus is not None:
            other = array_of(unpickle.read(request.minus), str(request.minus))
            if other.shape != vector.shape:
                raise UsageError(
                    f"{where}: its shape {tuple(vector.shape)} is not that of {request.minus}, {tuple(other.shape)}."
                )
            vector = vector - other
        elif len(vector) == 1:
            length = float(vector.norm())
            if length == 0:
                raise ConversionError(f"{where}: the boundary's normal is zero.")
            vector = vector * (_BOUNDARY_LENGTH / length)
    if len(vector) == 1:
        vector = vector.expand(n_rows, -1)
    vector = vector * request.step
    if request.rows is not None:
        first, last = request.rows
        if not 0 <= first <= last < len(vector):
            raise UsageError(f"{where}: rows {first}-{last} are not within 0-{len(vector) - 1}.")
        kept = torch.zeros(len(vector), 1)
        kept[first : last + 1] = 1
        vector = vector * kept
    return vector.clone()


def _component(request: Request, content: Mapping[str, Any], where: str) -> Tensor:
    components, _, deviations = _pca(content)
    count = len(components)
    if request.minus is not None:
        raise UsageError(f"{where}: minus= is for latents, not for GANSpace's components.")
    if request.component is None or not 0 <= request.component < count:
        raise UsageError(
            f"{where} has {count} components: choose one, such as {where}:component={min(10, count - 1)},rows=0-8."
        )
    return components[request.component, None] * deviations[request.component]


def _pca(content: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    names = next(names for names in _COMPONENTS if set(names) <= set(content))
    components, mean, deviations = (_numbers(content[name]) for name in names)
    components = components.reshape(len(components), -1)
    if components.shape[1] != mean.numel() or deviations.numel() != len(components):
        raise ConversionError(
            f"GANSpace's {', '.join(names)} have shapes that do not belong together: {tuple(components.shape)}, "
            f"{tuple(mean.shape)}, {tuple(deviations.shape)}."
        )
    return components, mean.flatten(), deviations.flatten()


def is_components(content: Any) -> bool:
    """Whether a file holds GANSpace's principal components."""
    return isinstance(content, Mapping) and any(
        all(isinstance(content.get(name), (Tensor, np.ndarray)) for name in names) for names in _COMPONENTS
    )


def is_boundary(content: Any) -> bool:
    """Whether a file holds one vector of W."""
    if not isinstance(content, (Tensor, np.ndarray)) or content.ndim not in (1, 2):
        return False
    return content.shape[-1] > 1 and (content.ndim == 1 or content.shape[0] == 1)


def is_latents(content: Any) -> bool:
    """Whether a file holds one code or offset of W+."""
    if not isinstance(content, (Tensor, np.ndarray)):
        return False
    shape = tuple(content.shape[1:] if content.ndim == 3 and content.shape[0] == 1 else content.shape)
    return len(shape) == 2 and shape[0] > 1 and shape[0] % 2 == 0 and shape[0] <= 18


def array_of(content: Any, where: str) -> Tensor:
    """The vector ``(1, dim)`` of W or ``(n, dim)`` of W+ that a file holds."""
    if not (is_boundary(content) or is_latents(content)):
        is_array = isinstance(content, (Tensor, np.ndarray))
        seen = f"shape {tuple(content.shape)}" if is_array else f"a {type(content).__name__}"
        raise ConversionError(
            f"{where} holds no direction but {seen}. Known are a boundary (512,) or (1, 512), an offset in W+ "
            "(18, 512) or (1, 18, 512), and GANSpace's comp, mean and std."
        )
    numbers = _numbers(content)
    return numbers.reshape(-1, numbers.shape[-1])


def _numbers(content: Tensor | np.ndarray) -> Tensor:
    # numpy's own conversion, because PyTorch takes no array of the other byte order.
    array = content.detach().float().numpy() if isinstance(content, Tensor) else content.astype(np.float32)
    if not np.isfinite(array).all():
        raise ConversionError("A direction's file holds values that are not finite.")
    return torch.from_numpy(np.ascontiguousarray(array))
