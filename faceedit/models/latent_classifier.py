"""A classifier of W+ codes: which attributes a face has, and how far its code must move to have one.

Directions are the same for all faces, and faces are not equally far from an attribute: of two that lack it, one has
turned after half a step and the other lacks it after two. So strength 1 is a step of each face's own length: the least
after which the classifier sees the attribute. No picture is drawn for it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from faceedit.errors import UsageError

__all__ = ["LatentClassifier"]

_SPACING = 0.05  # of the lengths tried, in lengths of the direction


class LatentClassifier(nn.Module):
    """Two hidden layers on the coarser rows of a code.

    Args:
        attributes: Names of the attributes, one output each.
        style_dim: Length of a row of W+.
        rows: How many rows it looks at, from the coarsest; what the others draw has no attribute that is named.
        hidden: Units of the hidden layers.
        among: Attribute to the one without which it is not defined, as a beard is on men ("gender"); with a "-" before
            the one with which it is not, as makeup is on women ("-gender").
        dropout: Of the inputs of the hidden layers, in training.

    Raises:
        UsageError: `among` names an attribute that is not there.
    """

    def __init__(
        self, attributes: Sequence[str], style_dim: int = 512, rows: int = 10, hidden: int = 256,
        among: Mapping[str, str] | None = None, dropout: float = 0.3,
    ) -> None:  # fmt: skip
        super().__init__()
        self.attributes, self.rows, self.among = tuple(attributes), rows, dict(among or {})
        named = {*self.among, *(owner.removeprefix("-") for owner in self.among.values())}
        if unknown := named - set(self.attributes):
            raise UsageError(f"among: {', '.join(sorted(unknown))} is none of the attributes {', '.join(self.attributes)}")
        n = len(self.attributes)
        self.hidden = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(rows * style_dim, hidden), nn.LeakyReLU(0.2),
            nn.Dropout(dropout), nn.Linear(hidden, hidden), nn.LeakyReLU(0.2),
        )  # fmt: skip
        self.scores = nn.Linear(hidden, n)
        self.register_buffer("latent_mean", torch.zeros(style_dim))
        self.register_buffer("latent_std", torch.ones(style_dim))
        self.register_buffer("score_mean", torch.zeros(n))
        self.register_buffer("score_std", torch.ones(n))
        # The score that strength 1 and -1 are to reach, and the lengths between which steps lie.
        self.register_buffer("goals", torch.zeros(n, 2))
        self.register_buffer("shortest", torch.zeros(n))
        self.register_buffer("longest", torch.full((n,), 2.0))

    @property
    def options(self) -> dict[str, Any]:
        """The arguments that make one of this shape, but for attributes and the length of a row, as JSON values."""
        return {"rows": self.rows, "hidden": self.scores.in_features, "among": self.among}

    def standardised(self, latents: Tensor) -> Tensor:
        """Codes ``(..., n_styles, dim)`` to the network's input ``(..., rows * dim)``."""
        return ((latents[..., : self.rows, :] - self.latent_mean) / self.latent_std).flatten(-2)

    def read(self, inputs: Tensor) -> Tensor:
        """Standardised inputs to standardised scores: what training compares."""
        return self.scores(self.hidden(inputs))

    def forward(self, latents: Tensor) -> Tensor:
        """Scores of codes: the logits that a classifier of pictures would give what they draw.

        Args:
            latents: ``(..., n_styles, dim)``, of at least ``rows`` rows.

        Returns:
            ``(..., attributes)``; positive where a face has the attribute.
        """
        return self.read(self.standardised(latents)) * self.score_std + self.score_mean

    @torch.no_grad()
    def step(self, latents: Tensor, direction: Tensor, attribute: str, sense: int) -> float:
        """How far a code must move to have an attribute, or to have lost it.

        Args:
            latents: ``(n_styles, dim)``.
            direction: ``(n_styles, dim)``, of this attribute.
            attribute: One of ``attributes``.
            sense: 1 to have it, -1 to lose it.

        Returns:
            The least length, in lengths of the direction and on a grid, at which the score reaches its goal;
            the attribute's longest where none does, and never below its shortest. Where that is 0, as for things
            that are worn, it is 0 for a face that has the attribute already. 1 where the attribute is not defined.
        """
        index = self.attributes.index(attribute)
        shortest, longest = float(self.shortest[index]), float(self.longest[index])
        lengths = torch.arange(0, longest + _SPACING / 2, _SPACING)
        scores = self((latents + sense * lengths[:, None, None] * direction).to(self.latent_mean))
        if (among := self.among.get(attribute)) is not None:
            sign, owner = (-1 if among.startswith("-") else 1), self.attributes.index(among.removeprefix("-"))
            if sign * scores[0, owner] < 0:
                return 1.0
        if sense > 0 and not shortest and scores[0, index] > 0:
            return 0.0
        reached = sense * scores[:, index] >= self.goals[index, 0 if sense > 0 else 1]
        length = float(lengths[reached.int().argmax()]) if reached.any() else longest
        return max(length, shortest)

    def applied(
        self, latents: Tensor, directions: Mapping[str, Tensor], strengths: Mapping[str, float]
    ) -> dict[str, float]:
        """Strengths in steps of this face to strengths in lengths of the directions.

        Args:
            latents: ``(n_styles, dim)``, the face.
            directions: Attribute to direction ``(n_styles, dim)``.
            strengths: Attribute to strength; attributes that the classifier does not know stay as they are.
        """
        return {
            name: strength * self.step(latents, directions[name], name, 1 if strength > 0 else -1)
            if strength and name in self.attributes
            else strength
            for name, strength in strengths.items()
        }

    def without(self, names: Iterable[str]) -> LatentClassifier:
        """The same without some attributes, whose strengths then stay as they are; this one is not changed."""
        gone = set(names)
        kept = [i for i, name in enumerate(self.attributes) if name not in gone]
        other = copy.deepcopy(self)
        other.attributes = tuple(self.attributes[i] for i in kept)
        other.among = {name: owner for name, owner in self.among.items() if not {name, owner.removeprefix("-")} & gone}
        scores = nn.Linear(self.scores.in_features, len(kept)).to(self.scores.weight)
        scores.load_state_dict({key: value[kept] for key, value in self.scores.state_dict().items()})
        other.scores = scores.requires_grad_(self.scores.weight.requires_grad)
        for name in ("score_mean", "score_std", "goals", "shortest", "longest"):
            setattr(other, name, getattr(self, name)[kept].clone())
        return other
