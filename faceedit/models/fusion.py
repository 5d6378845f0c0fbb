"""The fusion generator (section 3.2, equation 7): style and content in one pass."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor, nn

from faceedit.errors import ConfigError
from faceedit.models.content_branch import ContentBranch
from faceedit.models.encoder import Encoder
from faceedit.models.generator import Generator
from faceedit.models.relevance_map import RelevanceMap, undivided

__all__ = ["ATTENTION_SIZE", "FusionContent", "FusionGenerator", "FusionOutput"]

ATTENTION_SIZE = 32
"""Largest map whose relevance is literal attention; larger ones are compared position by position."""


class FusionOutput(NamedTuple):
    """``x_refine`` ``(B, 3, R, R)``, nominally in [-1, 1], and ``m_i`` ``(B, 1, S, S)`` for each level."""

    image: Tensor
    relevance: tuple[Tensor, ...]


class FusionContent(NamedTuple):
    """What edits need of a photograph.

    Attributes:
        maps: For each fused level, coarsest first, ``(B, C, S, S)``: the content map and the projections of the
            generator's unedited map that its edits are compared with.
        drawn: ``(B, 3, P, P)``, the generator's preview of the code, nominally in [-1, 1]; None for a branch
            that does not look at it.
    """

    maps: tuple[Tensor, ...]
    drawn: Tensor | None


class FusionGenerator(nn.Module):
    """A generator whose levels are fused with content maps: ``f_{i+1} = (1 - m_i) f_i^sty + m_i f_i^cnt``.

    The generator stays as it is and is no part of this module's state.

    Args:
        generator: Any.
        encoder: Any; what it says of its maps is read, and it is not kept.
        attributes: That get a content direction.
        levels: Which levels of the generator are fused, rising. Coarser ones are the style branch's.
        widths: Channels of each level's content map.
        dim: Channels of the projections of the generator's maps.
        relevance_dim: Channels of the relevance maps' projections.
        follow: See :class:`faceedit.models.content_branch.ContentLevel`.
        relevance: Without it all is content: ``m = 1`` everywhere (for the ablation).
        compared: How many levels, from the coarsest, have a relevance map of their own. Finer ones take the last
            of them, enlarged: a map of their own would need the style branch drawn up to them. None: all.
        detail: See :class:`faceedit.models.content_branch.ContentBranch`.

    Raises:
        ConfigError: The generator has no such levels, there is not one width for each, or `compared` is not between
            1 and their number.
    """

    def __init__(
        self,
        generator: Generator,
        encoder: Encoder,
        attributes: Sequence[str],
        levels: Sequence[int] = (4, 5, 6),
        widths: Sequence[int] = (128, 48, 16),
        dim: int = 32,
        relevance_dim: int = 16,
        follow: bool = True,
        relevance: bool = True,
        compared: int | None = None,
        detail: bool = False,
    ) -> None:
        super().__init__()
        self.attach(generator)
        self.levels = tuple(levels)
        count = len(generator.level_sizes)
        if not levels or list(levels) != sorted(set(levels) & set(range(count))) or len(widths) != len(levels):
            raise ConfigError(
                f"Fused levels {self.levels} must rise, within the generator's 0 to {count - 1}, and widths "
                f"{tuple(widths)} give one number for each."
            )
        compared = len(levels) if compared is None else compared
        if not 1 <= compared <= len(levels):
            raise ConfigError(f"compared ({compared}) must be between 1 and the number of fused levels, {len(levels)}.")
        sizes, channels = ([table[level] for level in levels] for table in (generator.level_sizes, generator.level_channels))
        self.content = ContentBranch(
            levels, sizes, channels, encoder.feature_sizes, encoder.feature_channels, encoder.input_size, attributes,
            widths, dim, generator.style_dim, follow, detail,
        )  # fmt: skip
        self.maps = nn.ModuleList(
            RelevanceMap(n, relevance_dim, "attention" if size <= ATTENTION_SIZE else "pointwise")
            for n, size in zip(channels[:compared], sizes)
            if relevance
        )

    def attach(self, generator: Generator) -> None:
        """Draw with this generator from now on; it is of the same kind as the one before."""
        # Past nn.Module's bookkeeping: the generator has its own place in a checkpoint.
        self.__dict__["generator"] = generator

    def without(self, attributes: Collection[str]) -> FusionGenerator:
        """The same but for content directions that some attributes had; on the same generator."""
        other = copy.deepcopy(self, {id(self.generator): self.generator})
        other.content.forget(attributes)
        return other

    def encode(self, photo: Tensor, features: Sequence[Tensor], latents: Tensor) -> FusionContent:
        """All that edits of a photograph need of it, made once.

        Args:
            photo: ``(B, 3, P, P)`` in [-1, 1], of the side that ``content.photo_size`` says.
            features: The encoder's 2-D features of it, finest first.
            latents: ``(B, n_styles, 512)``, its code.
        """
        unedited = self.generator.features(latents, self.levels[-1])
        # The published branch does not look at the generator's picture: none is drawn for it.
        drawn = self.generator.preview(latents, start=unedited) if self.content.follow else None
        at_levels = [unedited[level] for level in self.levels]
        found = self.content.encode(photo, None if drawn is None else drawn.clamp(-1, 1), features, at_levels)
        queries = [m.query(x) for m, x in zip(self.maps, at_levels)]
        parts = zip_longest(found, queries)
        return FusionContent(tuple(torch.cat([part for part in (*pair, q) if part is not None], 1) for pair, q in parts), drawn)

    def takes(self, content: Sequence[Tensor]) -> bool:
        """Whether these could be the maps of one picture, without batch axis, that :meth:`encode` made."""
        shapes = [
            (extractor.width + extractor.dim + self._query_dim(i), size, size)
            for i, (extractor, size) in enumerate(zip(self.content.extractors, self.content.sizes))
        ]
        return [tuple(each.shape) for each in content] == shapes

    def forward(
        self,
        content: Sequence[Tensor],
        latents: Tensor,
        strengths: Sequence[Mapping[str, float]],
        preview: bool = False,
        parts: Tensor | None = None,
    ) -> FusionOutput:
        """The refined picture of an edit.

        Args:
            content: The maps of :meth:`encode`.
            latents: ``(B, n_styles, 512)``, the edited code.
            strengths: Attribute to strength, for each sample.
            preview: Draw the generator's early exit.
            parts: ``(B, 4, P, P)`` in [0, 1], where the parts of the face are that no edit shall divide: see
                `undivided`. None: every position is for itself, as in equation 7.

        Returns:
            Picture and relevance maps.
        """
        # No further than maps are compared; an early exit does not get to the finest of them.
        last = self.levels[max(len(self.maps), 1) - 1]
        if preview:
            last = min(last, max(self.levels[0], self.generator.preview_level))
        edited = self.generator.features(latents, last)
        rows = self.content.direction(strengths).to(latents.dtype)
        pieces = [
            maps.split([n for n in (extractor.width, extractor.dim, self._query_dim(i)) if n], 1)
            for i, (maps, extractor) in enumerate(zip(content, self.content.extractors))
        ]
        compared = [
            relevance(piece[-1], edited[level])
            for relevance, piece, level in zip(self.maps, pieces, self.levels)
            if level <= last
        ]
        if compared and parts is not None:
            compared = undivided(compared, parts)
        relevance: list[Tensor] = []

        def fuse(level: int, features: Tensor) -> Tensor:
            if level not in self.levels:
                return features
            i = self.levels.index(level)
            extractor = self.content.extractors[i]
            mine = extractor(pieces[i][0], pieces[i][1] if extractor.dim else None, features, rows[:, i])
            if not self.maps:
                return features + mine if extractor.follow else mine
            if i < len(compared):
                m = compared[i]
            else:
                m = nn.functional.interpolate(relevance[-1], features.shape[-2:], mode="bilinear", align_corners=False)
            relevance.append(m)
            # In one pass over the map, of which the finest levels have tens of megabytes.
            return torch.addcmul(features, m, mine) if extractor.follow else torch.lerp(features, mine, m)

        # Up to the first fused level both branches are one: what was drawn for the maps is used again.
        first = self.levels[0]
        start = (*edited[:first], fuse(first, edited[first]))
        if preview:
            return FusionOutput(self.generator.preview(latents, fuse, start), tuple(relevance))
        return FusionOutput(self.generator.synthesize(latents, fuse, start).image, tuple(relevance))

    def _query_dim(self, i: int) -> int:
        return self.maps[i].dim if i < len(self.maps) else 0
