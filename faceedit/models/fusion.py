"""The fusion generator (section 3.2, equation 7): style and content in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from faceedit.errors import ConfigError
from faceedit.models.content_branch import ContentBranch
from faceedit.models.encoder import Encoder
from faceedit.models.generator import Generator
from faceedit.models.relevance_map import RelevanceMap

__all__ = ["ATTENTION_SIZE", "FusionGenerator", "FusionOutput"]

ATTENTION_SIZE = 32
"""Largest map whose relevance is literal attention; larger ones are compared position by position."""


class FusionOutput(NamedTuple):
    """``x_refine`` ``(B, 3, R, R)``, nominally in [-1, 1], and ``m_i`` ``(B, 1, S, S)`` for each level."""

    image: Tensor
    relevance: tuple[Tensor, ...]


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

    Raises:
        ConfigError: The generator has no such levels, or there is not one width for each.
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
        sizes, channels = ([table[level] for level in levels] for table in (generator.level_sizes, generator.level_channels))
        self.content = ContentBranch(
            levels, sizes, channels, encoder.feature_sizes, encoder.feature_channels, encoder.input_size, attributes,
            widths, dim, generator.style_dim, follow,
        )  # fmt: skip
        self.maps = nn.ModuleList(
            RelevanceMap(n, relevance_dim, "attention" if size <= ATTENTION_SIZE else "pointwise")
            for n, size in zip(channels, sizes, strict=True)
            if relevance
        )

    def attach(self, generator: Generator) -> None:
        """Draw with this generator from now on; it is of the same kind as the one before."""
        # Past nn.Module's bookkeeping: the generator has its own place in a checkpoint.
        self.__dict__["generator"] = generator

    def encode(
        self, photo: Tensor, features: Sequence[Tensor], latents: Tensor, seen: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """All that edits of a photograph need of it, made once.

        Args:
            photo: ``(B, 3, P, P)`` in [-1, 1], as the encoder sees it.
            features: The encoder's 2-D features of it, finest first.
            latents: ``(B, n_styles, 512)``, its code.
            seen: ``(B, 3, P, P)``, the generator's preview of the code, if it is there already.

        Returns:
            For each fused level, coarsest first, one map ``(B, C, S, S)``: the content map and the
            projections of the generator's unedited map.
        """
        unedited = self.generator.features(latents, self.levels[-1])
        # The published branch does not look at the generator's picture: none is drawn for it.
        if seen is None and self.content.follow:
            seen = self.generator.preview(latents, start=unedited)
        at_levels = [unedited[level] for level in self.levels]
        found = self.content.encode(photo, None if seen is None else _like(seen, photo), features, at_levels)
        queries = [m.query(x) for m, x in zip(self.maps, at_levels)] or [None] * len(found)
        return tuple(torch.cat([part for part in (*pair, q) if part is not None], 1) for pair, q in zip(found, queries))

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
    ) -> FusionOutput:
        """The refined picture of an edit.

        Args:
            content: From :meth:`encode`.
            latents: ``(B, n_styles, 512)``, the edited code.
            strengths: Attribute to strength, for each sample.
            preview: Draw the generator's early exit.

        Returns:
            Picture and relevance maps.
        """
        # An early exit does not get to the finest levels.
        last = min(self.levels[-1], max(self.levels[0], self.generator.preview_level)) if preview else self.levels[-1]
        edited = self.generator.features(latents, last)
        rows = self.content.direction(strengths).to(latents.dtype)
        relevance: list[Tensor] = []

        def fuse(level: int, features: Tensor) -> Tensor:
            if level not in self.levels:
                return features
            i = self.levels.index(level)
            extractor = self.content.extractors[i]
            parts = content[i].split([n for n in (extractor.width, extractor.dim, self._query_dim(i)) if n], 1)
            mine = extractor(parts[0], parts[1] if extractor.dim else None, features, rows[:, i])
            if not self.maps:
                return features + mine if extractor.follow else mine
            m = self.maps[i](parts[-1], edited[level])
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
        return self.maps[i].dim if self.maps else 0


def _like(seen: Tensor, photo: Tensor) -> Tensor:
    """The generator's picture at the photograph's size, within its range."""
    seen = seen.clamp(-1, 1)
    if seen.shape[-1] == photo.shape[-1]:
        return seen
    return nn.functional.interpolate(seen, photo.shape[-2:], mode="bilinear", align_corners=False)
