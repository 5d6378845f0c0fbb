"""Named attribute directions in W+: from ``{"smile": 1.0}`` to an offset of the code.

Strength 1.0 is one clearly visible step, the same size of step for every attribute, and -1.0 its
mirror. The positive sense of the standard five: smile = smiling, age = older, gender = more
masculine, glasses = with glasses, beard = with a beard.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from faceedit import files
from faceedit.config import AttributeInfo
from faceedit.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    StrengthError,
    UnknownAttributeError,
    UsageError,
)

__all__ = ["ALIASES", "Directions", "translate_rows"]

FORMAT = "faceedit-directions-1"
PREFIX = "directions."
_MOST = 10_000  # a strength far beyond any use, at which a picture is still finite
ALIASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "smile": ("smiling", "happy"),
        "age": ("older", "old", "aging"),
        "gender": ("male", "masculine"),
        "glasses": ("eyeglasses", "spectacles"),
        "beard": ("facial_hair",),
    }
)
"""Other names by which the standard attributes answer; each has the attribute's own sense."""

_DEFAULT_RANGE = (-1.0, 1.0)


def _fold(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def translate_rows(rows: Tensor, n_styles: int) -> Tensor:
    """Take W+ codes or directions to a generator of the same W with another number of rows.

    The rows of StyleGAN2 (18 at 1024 px, two fewer for each halving) and those of MobileStyleGAN (16)
    mean the same one by one, from the 4x4 convolution up. Going down to fewer rows, the finest are
    dropped: of StyleGAN2's 18, MobileStyleGAN keeps 0 to 14 for its convolutions, hands row 15 to its
    image head and has nothing that 16 and 17 could act on. Going up, the last row repeats, so that a
    direction of W, one row, becomes that row everywhere.

    Args:
        rows: ``(..., n, dim)``, or ``(dim,)``: one code or direction of W.
        n_styles: Rows of the generator that is to take them.

    Returns:
        ``(..., n_styles, dim)``.

    Raises:
        UsageError: There is no row, or none is asked for.
    """
    if rows.ndim == 1:
        rows = rows[None]
    if rows.ndim < 2 or not rows.shape[-2]:
        raise UsageError(f"codes and directions have shape (..., rows, dim), not {tuple(rows.shape)}")
    if isinstance(n_styles, bool) or not isinstance(n_styles, int) or n_styles < 1:
        raise UsageError(f"a generator has at least one row of W+, not {n_styles!r}")
    missing = n_styles - rows.shape[-2]
    if missing <= 0:
        return rows[..., :n_styles, :]
    return torch.cat([rows, rows[..., -1:, :].expand(*rows.shape[:-2], missing, -1)], -2)


class Directions:
    """An immutable set of named attribute directions.

    Names are matched without regard to case, and "-" or a space stands for "_".

    Args:
        vectors: Name to direction ``(n_styles, dim)``; all of one shape, finite. Copied.
        aliases: Name to its other names. Where None, those of :data:`ALIASES` that apply.
        ranges: Name to the lowest and highest strength at which edits were looked at and found
            plausible; (-1, 1) where not given.
        licence: Under what terms the directions may be passed on.
        descriptions: Name to one line for people.
        success: Name to what was measured of it, as JSON values.
        generator: Which generator's W+ they belong to, for messages; "" where not known.
        shape: ``(n_styles, dim)`` that they must have; needed for an empty set.

    Raises:
        UsageError: If shapes differ, values are not finite, an alias, range, description or
            measurement belongs to no direction, or a name is taken twice.
    """

    def __init__(
        self,
        vectors: Mapping[str, Tensor],
        *,
        aliases: Mapping[str, Sequence[str]] | None = None,
        ranges: Mapping[str, Sequence[float]] | None = None,
        licence: str = "",
        descriptions: Mapping[str, str] | None = None,
        success: Mapping[str, Mapping[str, Any]] | None = None,
        generator: str = "",
        shape: tuple[int, int] | None = None,
    ) -> None:
        if not vectors and shape is None:
            raise UsageError("a set of directions needs at least one, or the shape that they would have")
        kept = {_fold(name): vector.detach().clone() for name, vector in vectors.items()}
        if len(kept) < len(vectors):
            raise UsageError(f"two directions have the same name: {', '.join(vectors)}")
        self._shape = tuple(next(iter(kept.values())).shape) if shape is None else tuple(shape)
        for name, vector in kept.items():
            if vector.ndim != 2 or vector.shape != self._shape:
                raise UsageError(f"direction {name!r} has shape {tuple(vector.shape)}, expected {self._shape} (rows, dim)")
            if not vector.is_floating_point() or not bool(vector.isfinite().all()):
                raise UsageError(f"direction {name!r} holds values that are not finite floating-point numbers")
        if aliases is None:
            aliases = {name: ALIASES[name] for name in kept if name in ALIASES}
        index = {name: name for name in kept}
        for name, others in aliases.items():
            for other in map(_fold, others):
                if _fold(name) not in kept or other in index:
                    raise UsageError(f"alias {other!r} of {name!r} is taken or belongs to no direction")
                index[other] = _fold(name)
        spans = dict.fromkeys(kept, _DEFAULT_RANGE)
        for name, span in (ranges or {}).items():
            low, high = span
            if _fold(name) not in kept or not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise UsageError(f"range {tuple(span)} of {name!r} is empty or belongs to no direction")
            spans[_fold(name)] = (float(low), float(high))
        for name in (*(descriptions or ()), *(success or ())):
            if _fold(name) not in kept:
                raise UsageError(f"{name!r} is described and is none of the directions {', '.join(kept)}")
        self._vectors = MappingProxyType(kept)
        self._index = MappingProxyType(index)
        self._ranges = MappingProxyType(spans)
        self._licence = licence
        self._descriptions = MappingProxyType({_fold(name): text for name, text in (descriptions or {}).items()})
        self._success = MappingProxyType({_fold(name): dict(facts) for name, facts in (success or {}).items()})
        self._generator = generator

    @property
    def names(self) -> tuple[str, ...]:
        """The attributes' own names, in order."""
        return tuple(self._vectors)

    @property
    def vectors(self) -> Mapping[str, Tensor]:
        """Name to direction ``(n_styles, dim)``, the d_k of equation (1). Not to be written to."""
        return self._vectors

    @property
    def aliases(self) -> Mapping[str, tuple[str, ...]]:
        """Name to its other names."""
        return {name: tuple(a for a, own in self._index.items() if own == name != a) for name in self._vectors}

    @property
    def ranges(self) -> Mapping[str, tuple[float, float]]:
        """Name to the lowest and highest tested strength."""
        return self._ranges

    @property
    def licence(self) -> str:
        """Terms under which the directions may be passed on; may be empty."""
        return self._licence

    @property
    def generator(self) -> str:
        """Name of the generator that they were made for; may be empty."""
        return self._generator

    @property
    def attributes(self) -> dict[str, AttributeInfo]:
        """Name to all that is known of it, as a checkpoint's config holds it."""
        aliases = self.aliases
        return {
            name: AttributeInfo(
                range=self._ranges[name],
                aliases=aliases[name],
                licence=self._licence,
                description=self._descriptions.get(name, ""),
                success=dict(self._success.get(name, {})),
            )
            for name in self._vectors
        }

    @property
    def shape(self) -> tuple[int, int]:
        """``(n_styles, dim)`` of every direction."""
        return self._shape

    def __repr__(self) -> str:
        return f"Directions({', '.join(self.names)}; {self.shape[0]}x{self.shape[1]})"

    def resolve(self, name: str) -> str:
        """Return the attribute's own name for a name or alias.

        Raises:
            UnknownAttributeError: If there is none such; it suggests names that are close.
        """
        own = self._index.get(_fold(name)) if isinstance(name, str) else None
        if own is None:
            raise UnknownAttributeError(name, tuple(self._index))
        return own

    def check(self, strengths: Mapping[str, float]) -> dict[str, float]:
        """Return strengths under the attributes' own names, as plain floats.

        Args:
            strengths: Name or alias to strength. Any number of at most 10,000 either way is accepted; :attr:`ranges` says
                how far results were looked at.

        Raises:
            UnknownAttributeError: If a name is not known.
            StrengthError: If a strength is NaN, infinite, beyond that or not a real number (a bool is not).
            UsageError: If an attribute is given twice, under two of its names.
        """
        checked: dict[str, float] = {}
        given: dict[str, str] = {}
        for name, strength in strengths.items():
            own = self.resolve(name)
            if own in given:
                raise UsageError(f"{given[own]!r} and {name!r} are the same attribute: give one of them")
            if isinstance(strength, bool) or not isinstance(strength, Real) or not abs(strength) <= _MOST:
                raise StrengthError(
                    f"the strength of {name!r} must be a finite number such as 1.0, of at most {_MOST}, not {strength!r}"
                )
            given[own], checked[own] = name, float(strength)
        return checked

    def offset(self, strengths: Mapping[str, float]) -> Tensor:
        """Sum of the directions, each times its strength: ``d_sty = sum_k s_k d_k``.

        Args:
            strengths: Name or alias to strength; see :meth:`check` for what is refused.

        Returns:
            ``(n_styles, dim)``, to be added to a W+ code; zeros where `strengths` is empty.

        Source: equation (1) of Yin et al., "Expanding the Latent Space of StyleGAN for Real Face
        Editing".
        """
        like = next(iter(self._vectors.values()), torch.empty(0))
        total = like.new_zeros(self._shape)
        for name, strength in self.check(strengths).items():
            total = total + strength * self._vectors[name]
        return total

    def with_rows(self, n_styles: int) -> Directions:
        """Return the same directions for a generator with ``n_styles`` rows; see :func:`translate_rows`."""
        vectors = {name: translate_rows(vector, n_styles) for name, vector in self._vectors.items()}
        return Directions(
            vectors, aliases=self.aliases, ranges=self._ranges, licence=self._licence,
            descriptions=self._descriptions, success=self._success, shape=(n_styles, self._shape[1]),
        )  # fmt: skip

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Directions:
        """Return the same directions on another device or in another floating-point type."""
        vectors = {name: vector.to(device=device, dtype=dtype) for name, vector in self._vectors.items()}
        return Directions(
            vectors, aliases=self.aliases, ranges=self._ranges, licence=self._licence,
            descriptions=self._descriptions, success=self._success, generator=self._generator, shape=self._shape,
        )  # fmt: skip

    def merge(self, other: Directions, *, replace: bool = False) -> Directions:
        """Return these directions together with others of the same shape.

        Args:
            other: The directions to add.
            replace: A name that both sets have means the other set's direction from now on: ours of
                that name is left out, and where it was an alias ours no longer answers to it.

        Raises:
            UsageError: If shapes differ, or both sets have a name or alias and `replace` is false.
        """
        clash = set(self._index) & set(other._index)
        if clash and not replace:
            raise UsageError(f"both sets have {', '.join(sorted(clash))}")
        ours = [name for name in self._vectors if name not in other._index]

        def both(mine: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
            return {**{name: mine[name] for name in ours if name in mine}, **others}

        left = {name: tuple(a for a in aliases if a not in other._index) for name, aliases in self.aliases.items()}
        return Directions(
            both(self._vectors, other._vectors),
            aliases=both(left, other.aliases),
            ranges=both(self._ranges, other._ranges),
            licence="; ".join(dict.fromkeys(filter(None, (self._licence, other._licence)))),
            descriptions=both(self._descriptions, other._descriptions),
            success=both(self._success, other._success),
            generator=self._generator or other._generator,
            shape=self._shape,
        )

    # --- files ------------------------------------------------------------------------------

    def to_tensors(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint: ``"directions.<name>"`` to ``(n_styles, dim)``."""
        return {PREFIX + name: vector.contiguous() for name, vector in self._vectors.items()}

    def describe(self) -> dict[str, object]:
        """Everything but the tensors, as plain values that JSON can hold."""
        attributes = [
            {
                "name": name,
                "aliases": list(info.aliases),
                "range": list(info.range),
                "description": info.description,
                "success": info.success,
            }
            for name, info in self.attributes.items()
        ]
        return {"attributes": attributes, "licence": self._licence, "generator": self._generator}

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        description: Mapping[str, object],
        shape: tuple[int, int] | None = None,
    ) -> Directions:
        """Build the set from a checkpoint's parts.

        Args:
            tensors: From :meth:`to_tensors`; keys without the prefix are of other networks and left.
            description: From :meth:`describe`; what earlier releases did not write may be missing.
            shape: ``(n_styles, dim)`` of the generator, where it is known.

        Raises:
            CheckpointError: If tensors and description do not name the same directions, or do not
                make a valid set.
        """
        found = {key[len(PREFIX) :]: value for key, value in tensors.items() if key.startswith(PREFIX)}
        try:
            attributes = {entry["name"]: entry for entry in description["attributes"]}
            if set(attributes) != set(found):
                raise CheckpointError(f"directions {sorted(found)} do not match their description {sorted(attributes)}")
            return cls(
                {name: found[name] for name in attributes},
                aliases={name: entry["aliases"] for name, entry in attributes.items()},
                ranges={name: entry["range"] for name, entry in attributes.items()},
                licence=str(description.get("licence", "")),
                descriptions={name: entry["description"] for name, entry in attributes.items() if entry.get("description")},
                success={name: entry["success"] for name, entry in attributes.items() if entry.get("success")},
                generator=str(description.get("generator", "")),
                shape=shape,
            )
        except CheckpointError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"the description of the directions is not valid: {error}") from error

    def save(self, path: str | Path, *, source: str = "", overwrite: bool = False) -> None:
        """Write a small safetensors file of these directions alone. It appears whole or not at all.

        Args:
            path: File to write; its folder exists.
            source: Where they come from, for the file's header.
            overwrite: Replace a file that is already there.

        Raises:
            OutputExistsError: Something is at ``path`` and ``overwrite`` is false.
            UsageError: The folder does not exist.
        """
        metadata = {
            "format": FORMAT,
            "n_styles": str(self.shape[0]),
            "licence": self._licence,
            "source": source,
            "directions": json.dumps(self.describe()),
        }
        with files.write_whole(path, overwrite) as temporary:
            temporary.write_bytes(save(self.to_tensors(), metadata))

    @classmethod
    def load(cls, path: str | Path) -> Directions:
        """Read a file written by :meth:`save`, by us or by others.

        Raises:
            CheckpointNotFoundError: If there is no such file.
            CheckpointError: If it is damaged or of another format.
        """
        if not Path(path).is_file():
            raise CheckpointNotFoundError(f"no directions file at {str(path)!r}")
        try:
            with safe_open(str(path), "pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}
        except SafetensorError as error:
            raise CheckpointError(f"{str(path)!r} is damaged or not a safetensors file ({error})") from error
        if metadata.get("format") != FORMAT:
            raise CheckpointError(f"{str(path)!r} has format {metadata.get('format')!r}, expected {FORMAT!r}")
        try:
            description = json.loads(metadata["directions"])
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"the header of {str(path)!r} does not describe its directions") from error
        return cls.from_tensors(tensors, description)
