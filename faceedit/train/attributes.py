"""What each attribute means to a classifier of CelebA's 40: one table for training and evaluation.

Every other module asks here which output measures an attribute, with which sign, and on which faces.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from faceedit.errors import ConfigError

__all__ = ["ATTRIBUTES", "Attribute", "related", "require_attributes"]


@dataclass(frozen=True)
class Attribute:
    """One attribute that can be edited, and how it is measured.

    Args:
        name: As users give it.
        output: CelebA's name of the classifier's output that measures it.
        sign: 1 if the output rises with the attribute, -1 if it falls.
        sense: What a face has at +1, in a word or two.
        description: One line for people, naming both ends.
        locality: "local" if a part of the face or head changes, "global" if all of it does.
        aliases: Other names by which users may call it.
        free: Outputs that mean so nearly the same that they may move with it.
        among: Defined only on faces where this output is positive, or negative after a "-"; "" means on all.
        worn: It is a thing that a face has or has not: who wears it already needs no more of it.
    """

    name: str
    output: str
    sign: int
    sense: str
    description: str
    locality: Literal["local", "global"]
    aliases: tuple[str, ...] = ()
    among: str = ""
    worn: bool = False
    free: tuple[str, ...] = ()

    @property
    def moves_with(self) -> frozenset[str]:
        """Outputs that an edit of this attribute need not hold where they were."""
        return frozenset((self.output, self.among.removeprefix("-"), *self.free, *UNHELD))

    def score(self, logits: Tensor, names: Sequence[str]) -> Tensor:
        """The attribute's own logit: positive on faces that have it.

        Args:
            logits: Of the classifier, ``(..., len(names))``.
            names: The classifier's outputs, in order.

        Returns:
            ``(...)``.

        Raises:
            ValueError: If the classifier has no such output.
        """
        return self.sign * logits[..., names.index(self.output)]

    def defined(self, logits: Tensor, names: Sequence[str]) -> Tensor:
        """Mask ``(...)`` of the faces on which the attribute is defined; arguments as for :meth:`score`."""
        if not self.among:
            return torch.ones(logits.shape[:-1], dtype=torch.bool, device=logits.device)
        sign = -1 if self.among.startswith("-") else 1
        return sign * logits[..., names.index(self.among.removeprefix("-"))] > 0

    def lacking(self, logits: Tensor, names: Sequence[str], sense: int = 1) -> Tensor:
        """Mask ``(...)`` of the faces to turn: without the attribute, or with it where `sense` is -1."""
        return (sense * self.score(logits, names) < 0) & self.defined(logits, names)


# Outputs that say nothing of a face.
UNHELD = ("Wearing_Necklace", "Wearing_Necktie", "Wearing_Earrings", "Attractive")
_HAIR = ("Bangs", "Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair", "Receding_Hairline", "Wavy_Hair", "Straight_Hair")

_TABLE = (
    Attribute("smile", "Smiling", 1, "smiling", "smiling; negative makes the face serious", "local", ("smiling", "happy"),
              free=("High_Cheekbones", "Mouth_Slightly_Open", "Narrow_Eyes", "Rosy_Cheeks")),
    Attribute("age", "Young", -1, "older", "older; negative is younger", "global", ("older", "old", "aging"),
              free=("Gray_Hair", "Bags_Under_Eyes", "Double_Chin", "Receding_Hairline", "Bald", "Chubby")),
    Attribute("gender", "Male", 1, "masculine", "more masculine; negative is more feminine", "global", ("male", "masculine"),
              free=("5_o_Clock_Shadow", "Arched_Eyebrows", "Bushy_Eyebrows", "Goatee", "Heavy_Makeup", "Mustache", "No_Beard", "Rosy_Cheeks", "Sideburns", "Wearing_Lipstick", "Big_Nose", "Bald", "Receding_Hairline")),
    Attribute("glasses", "Eyeglasses", 1, "eyeglasses", "eyeglasses; negative takes them off", "local",
              ("eyeglasses", "spectacles"), worn=True,
              free=("Bags_Under_Eyes",)),
    Attribute("beard", "No_Beard", -1, "bearded", "a beard; negative shaves", "local", ("facial_hair",), among="Male",
              free=("5_o_Clock_Shadow", "Goatee", "Mustache", "Sideburns")),
    Attribute("bangs", "Bangs", 1, "bangs", "hair over the forehead; negative bares it", "local", ("fringe",),
              free=("Receding_Hairline", "Wavy_Hair", "Straight_Hair")),
    Attribute("bald", "Bald", 1, "bald", "bald; negative gives more hair", "local", ("baldness",), among="Male",
              free=_HAIR),
    Attribute("blond_hair", "Blond_Hair", 1, "blond", "blond hair; negative is less blond", "local", ("blond", "blonde"),
              free=("Black_Hair", "Brown_Hair", "Gray_Hair")),
    Attribute("black_hair", "Black_Hair", 1, "black-haired", "black hair; negative lightens it", "local", (),
              free=("Blond_Hair", "Brown_Hair", "Gray_Hair", "Bushy_Eyebrows")),
    Attribute("brown_hair", "Brown_Hair", 1, "brown-haired", "brown hair; negative is less brown", "local", ("brunette",),
              free=("Blond_Hair", "Black_Hair", "Gray_Hair")),
    Attribute("gray_hair", "Gray_Hair", 1, "grey-haired", "grey hair; negative restores its colour", "local", ("grey_hair",),
              free=("Blond_Hair", "Black_Hair", "Brown_Hair")),
    Attribute("makeup", "Heavy_Makeup", 1, "made up", "heavy makeup; negative takes it off", "local", ("heavy_makeup",), among="-Male",
              free=("Wearing_Lipstick", "Rosy_Cheeks", "Arched_Eyebrows")),
    Attribute("lipstick", "Wearing_Lipstick", 1, "lipstick", "lipstick; negative takes it off", "local", among="-Male",
              free=("Heavy_Makeup",)),
    Attribute("mouth_open", "Mouth_Slightly_Open", 1, "mouth open", "mouth open; negative closes it", "local",
              ("open_mouth",),
              free=("Smiling", "High_Cheekbones")),
    Attribute("moustache", "Mustache", 1, "moustache", "a moustache; negative shaves it", "local", ("mustache",), among="Male",
              free=("No_Beard", "Goatee", "5_o_Clock_Shadow")),
    Attribute("narrow_eyes", "Narrow_Eyes", 1, "narrow eyes", "eyes narrowed; negative opens them", "local",
              ("squint",),
              free=("Bags_Under_Eyes",)),
    Attribute("pale_skin", "Pale_Skin", 1, "pale", "paler skin; negative is darker", "global", ("pale",),
              free=("Rosy_Cheeks",)),
    Attribute("hat", "Wearing_Hat", 1, "hat", "a hat; negative takes it off", "local", ("wearing_hat",), worn=True,
              free=("Bald", *_HAIR)),
)  # fmt: skip

ATTRIBUTES: Mapping[str, Attribute] = MappingProxyType({attribute.name: attribute for attribute in _TABLE})
"""Name to attribute: the paper's five first."""

# Groups in which one attribute cannot move alone, because the labels exclude or contain each other:
# hair has one colour, the bald have none, a moustache is facial hair, women are not labelled bearded,
# men not made up.
_RELATED = (
    ("bald", "bangs", "blond_hair", "black_hair", "brown_hair", "gray_hair", "hat"),
    ("beard", "moustache"),
    ("makeup", "lipstick"),
    ("age", "gray_hair"),
    *(("gender", other) for other in ("beard", "moustache", "bald", "makeup", "lipstick")),
)


def require_attributes(what: str, names: Iterable[str]) -> None:
    """Refuse names that are no attributes'.

    Raises:
        ConfigError: One is none; `what` says where it stands.
    """
    if unknown := sorted(set(names) - set(ATTRIBUTES)):
        raise ConfigError(f"{what}: {', '.join(unknown)}. Known: {', '.join(ATTRIBUTES)}.")


def related(a: str, b: str) -> bool:
    """Whether moving one attribute moves the other by what the labels mean, not by entanglement."""
    return a != b and any(a in group and b in group for group in _RELATED)
