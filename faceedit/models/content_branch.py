"""The content branch (section 3.2, equations 4 and 5): the photograph's 2-D features, made to follow the edit."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceedit.models.ops import haar

__all__ = ["AdaIN", "ContentBranch", "ContentLevel"]


class AdaIN(nn.Module):
    """Scale and shift of a map's channels, computed from a row of ``d^cnt``.

    Args:
        channels: Of the map.
        style_dim: Width of the row.
        normalize: Bring each channel to mean 0 and deviation 1 before, as in Huang and Belongie (arXiv
            1703.06868). It forgets the map's own level, and with it the photograph's colours.
    """

    def __init__(self, channels: int, style_dim: int = 512, normalize: bool = True) -> None:
        super().__init__()
        self.normalize = normalize
        self.affine = nn.Linear(style_dim, 2 * channels)
        nn.init.zeros_(self.affine.bias)
        nn.init.normal_(self.affine.weight, std=0.1 / style_dim**0.5)

    def forward(self, x: Tensor, row: Tensor) -> Tensor:
        """``(B, C, S, S)`` and ``(B, style_dim)`` to ``(B, C, S, S)``."""
        scale, shift = self.affine(row)[:, :, None, None].chunk(2, 1)
        if self.normalize:
            x = F.instance_norm(x)
        return x * (1 + scale) + shift


class ContentLevel(nn.Module):
    """The extractor A for one level of the generator.

    Args:
        n_in: Channels of what :meth:`encode` reads, beside the generator's map.
        channels: Of the generator's level.
        width: Channels of the content map.
        dim: Channels of the projection of the generator's maps.
        style_dim: Width of a row of ``d^cnt``.
        follow: Start from the style branch's map and see what the edit did to it; without it the
            content map is made of the encoder's features alone, as published.
    """

    def __init__(self, n_in: int, channels: int, width: int, dim: int, style_dim: int, follow: bool) -> None:
        super().__init__()
        self.width, self.dim, self.follow = width, dim if follow else 0, follow
        self.enter = nn.Conv2d(n_in + self.dim, width, 1)
        self.encode1 = nn.Conv2d(width, width, 3, padding=1)
        self.encode2 = nn.Conv2d(width, width, 3, padding=1)
        self.adain = AdaIN(width, style_dim, normalize=not follow)
        self.adapt = nn.Conv2d(width, width, 3, padding=1)
        self.leave = nn.Conv2d(width, channels, 1)
        if follow:
            self.project = nn.Conv2d(channels, dim, 1)
            self.difference = nn.Conv2d(dim, width, 1)
            nn.init.zeros_(self.leave.weight)  # an untrained branch changes nothing
            nn.init.zeros_(self.leave.bias)
        # What a unit of the network's output means in each of the generator's channels.
        self.register_buffer("scale", torch.ones(channels))

    def _projected(self, features: Tensor) -> Tensor:
        # The channels' units go into the few weights, not over the map.
        return F.conv2d(features, self.project.weight / self.scale[:, None, None], self.project.bias)

    def encode(self, inputs: Tensor, unedited: Tensor, detail: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Once for many edits: the content map ``(B, width, S, S)``, and what it was made beside.

        Args:
            inputs: ``(B, n_in, S, S)``.
            unedited: ``(B, channels, S, S)``, the generator's map of the photograph's code.
            detail: ``(B, width, S, S)``, what else there is to start from.
        """
        beside = self._projected(unedited) if self.follow else None
        x = self.enter(inputs if beside is None else torch.cat((inputs, beside), 1))
        if detail is not None:
            x = x + detail
        return x + self.encode2(F.leaky_relu(self.encode1(F.leaky_relu(x, 0.2)), 0.2)), beside

    def forward(self, content: Tensor, beside: Tensor | None, features: Tensor, row: Tensor) -> Tensor:
        """``f_i^cnt`` of an edit (equation 5); with ``follow`` its difference to ``f_i^sty``.

        Args:
            content, beside: From :meth:`encode`.
            features: ``(B, channels, S, S)``, the style branch's map ``f_i^sty`` of the pass.
            row: ``(B, style_dim)``, the level's row of ``d^cnt``.

        Returns:
            ``(B, channels, S, S)``.
        """
        x = self.adain(content, row)
        if beside is not None:
            x = x + self.difference(self._projected(features) - beside)
        x = F.leaky_relu(x, 0.2)
        x = F.leaky_relu(x + self.adapt(x), 0.2)
        return F.conv2d(x, self.leave.weight * self.scale[:, None, None, None], self.leave.bias * self.scale)


class ContentBranch(nn.Module):
    """Content maps for some levels of a generator.

    Beside the encoder's features of about its size, each level reads the photograph and the generator's
    picture of its code (with ``follow``), folded so that no pixel is lost, and the content map of the
    level before. The published branch (``follow=False``) reads one of the encoder's maps a level.

    Args:
        levels: Indices of the generator's levels, rising.
        sizes: Their sides.
        channels: Their channels.
        feature_sizes: Sides of the encoder's maps, finest first.
        feature_channels: Their channels.
        photo_size: Side of the photograph that the encoder sees.
        attributes: Names of those that have a content direction ``d_k^cnt``.
        widths: Channels of each level's content map.
        dim: Channels of the projections of the generator's maps.
        style_dim: Width of a content direction's rows.
        follow: See :class:`ContentLevel`.
        detail: The finest level also reads what the photograph has at twice ``photo_size``, as Haar bands, in
            which the default generator draws. Without it what is finer than ``photo_size`` is the generator's.

    Attributes:
        photo_size: Side of the photograph that :meth:`encode` reads.
    """

    def __init__(
        self,
        levels: Sequence[int],
        sizes: Sequence[int],
        channels: Sequence[int],
        feature_sizes: Sequence[int],
        feature_channels: Sequence[int],
        photo_size: int,
        attributes: Sequence[str],
        widths: Sequence[int],
        dim: int = 32,
        style_dim: int = 512,
        follow: bool = True,
        detail: bool = False,
    ) -> None:
        super().__init__()
        self.levels, self.sizes, self.follow = tuple(levels), tuple(sizes), follow
        self.photo_size = 2 * photo_size if detail else photo_size
        self.attributes = tuple(attributes)
        # Which of the encoder's maps a level reads.
        self.reads: list[list[int]] = []
        extractors = []
        for i, size in enumerate(self.sizes):
            if follow:
                near = [j for j, side in enumerate(feature_sizes) if size <= 2 * side <= 4 * size]
                n_in = sum(feature_channels[j] * max(1, feature_sizes[j] // size) ** 2 for j in near)
                n_in += 6 * max(1, photo_size // size) ** 2 + (widths[i] if i else 0)
            else:
                near = [min(range(len(feature_sizes)), key=lambda j: abs(feature_sizes[j] - size))]
                n_in = feature_channels[near[0]] * max(1, feature_sizes[near[0]] // size) ** 2
            self.reads.append(near)
            extractors.append(ContentLevel(n_in, channels[i], widths[i], dim, style_dim, follow))
        self.extractors = nn.ModuleList(extractors)
        self.carry = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(widths[:-1], widths[1:]) if follow)
        self.detail: nn.Conv2d | None = None
        if detail:
            self.detail = nn.Conv2d(9 * max(1, photo_size // self.sizes[-1]) ** 2, widths[-1], 1, bias=False)
            nn.init.zeros_(self.detail.weight)
        self.directions = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(len(levels), style_dim) / style_dim**0.5) for name in attributes}
        )

    def direction(self, strengths: Sequence[Mapping[str, float]]) -> Tensor:
        """``d^cnt = sum_k (1 - s_k) d_k^cnt`` (equation 4), for each of a batch.

        Args:
            strengths: For each sample; what is not named is 0. Attributes without a content direction
                count nothing: for them the extractor has what it sees of the edit.

        Returns:
            ``(B, levels, style_dim)``.
        """
        if not self.attributes:
            extractor = self.extractors[0].adain.affine
            return extractor.weight.new_zeros(len(strengths), len(self.levels), extractor.in_features)
        known = torch.stack([self.directions[name] for name in self.attributes])
        weights = [[1 - each.get(name, 0.0) for name in self.attributes] for each in strengths]
        return torch.einsum("bk,klc->blc", torch.tensor(weights).to(known), known)

    @torch.no_grad()
    def forget(self, attributes: Collection[str]) -> None:
        """Leave out some attributes' content directions, in place: what they add at strength 0 goes into biases."""
        for name in attributes:
            for extractor, row in zip(self.extractors, self.directions.pop(name), strict=True):
                affine = extractor.adain.affine
                affine.bias += affine.weight @ row
        self.attributes = tuple(name for name in self.attributes if name not in attributes)

    def encode(
        self, photo: Tensor, seen: Tensor | None, features: Sequence[Tensor], unedited: Sequence[Tensor]
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Content maps of a photograph, once for many edits.

        Args:
            photo: ``(B, 3, P, P)`` in [-1, 1], of side ``photo_size``.
            seen: ``(B, 3, T, T)`` in [-1, 1], the generator's picture of the photograph's code; only
                read with ``follow``.
            features: The encoder's, finest first.
            unedited: The generator's maps of that code, one for each of ``levels``.

        Returns:
            For each of ``levels`` what :meth:`ContentLevel.encode` gives.
        """
        maps: list[tuple[Tensor, Tensor | None]] = []
        detail: Tensor | None = None
        if self.detail is not None:
            low, bands = haar(photo).split((3, 9), 1)
            photo, detail = low / 2, self.detail(_at(bands, self.sizes[-1]))
        if seen is not None and seen.shape[-1] != photo.shape[-1]:
            seen = F.interpolate(seen, photo.shape[-2:], mode="bilinear", align_corners=False)
        last = len(self.sizes) - 1
        for i, (size, extractor) in enumerate(zip(self.sizes, self.extractors, strict=True)):
            parts = [features[j] for j in self.reads[i]]
            if self.follow:
                parts += [photo, photo - seen]
                if maps:
                    parts.append(self.carry[i - 1](maps[-1][0]))
            inputs = torch.cat([_at(part, size) for part in parts], 1)
            maps.append(extractor.encode(inputs, unedited[i], detail if i == last else None))
        return maps


def _at(x: Tensor, size: int) -> Tensor:
    """A map at another size: finer pixels become channels, coarser ones are interpolated."""
    side = x.shape[-1]
    if side > size:
        return F.pixel_unshuffle(x, side // size)
    return x if side == size else F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
