"""The figures that edits are judged by: pure functions of arrays, with their formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Estimate", "bootstrap", "centred_cosine", "effects", "entanglement", "mean", "psnr", "ratio", "sparsity", "ssim",
    "success", "wilson",
]  # fmt: skip

Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A figure with its 95 % interval and the number of faces behind it; NaN where there is none."""

    value: float
    low: float
    high: float
    n: int

    def to_dict(self, digits: int = 4) -> dict[str, float | int | None]:
        """JSON values, rounded; None where there is no figure."""
        numbers = {name: getattr(self, name) for name in ("value", "low", "high")}
        return {name: None if math.isnan(x) else round(float(x), digits) for name, x in numbers.items()} | {"n": self.n}


_NOTHING = Estimate(math.nan, math.nan, math.nan, 0)


def centred_cosine(a: ArrayLike, b: ArrayLike, centre: ArrayLike = 0.0) -> Floats:
    """Cosine of descriptors after the mean descriptor of many faces is taken off.

    ``(a - m) . (b - m) / (|a - m| |b - m|)``. Raw descriptors of dlib all point the same way, so that
    strangers have a raw cosine of .8; centred, strangers are near 0 and one person near .9.

    Args:
        a: ``(N, D)``.
        b: ``(N, D)``.
        centre: m, ``(D,)``; 0 where it was taken off already.

    Returns:
        ``(N,)`` in [-1, 1].
    """
    a, b = (np.asarray(x, np.float64) - np.asarray(centre, np.float64) for x in (a, b))
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def wilson(hits: int, n: int) -> Estimate:
    """Share ``hits / n`` with the score interval at 95 %, which stays honest near 0 and 1.

    With p = hits / n and z = 1.96: ``(p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)``.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    if not n:
        return _NOTHING
    share, z = hits / n, 1.959964
    middle = share + z * z / (2 * n)
    reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return Estimate(share, max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale), n)


def success(after: ArrayLike, sense: int = 1) -> Estimate:
    """Share of the edited faces that now have the attribute: ``mean(sense * score > 0)``.

    Args:
        after: ``(n,)`` scores, positive with the attribute, of the faces that had to turn.
        sense: 1 where they lacked it, -1 where they had it and must now lack it.
    """
    after = np.asarray(after)
    return wilson(int((sense * after > 0).sum()), len(after))


def bootstrap(
    values: ArrayLike, statistic: Callable[[Floats], float] = np.mean, *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval at 95 % of a statistic over faces drawn with replacement.

    Args:
        values: ``(N, ...)``, one row a face.
        statistic: Of such rows.
        resamples: How many draws.
        seed: Of the draws.

    Returns:
        The 2.5th and 97.5th percentile of the draws that are numbers; NaN twice where there is none.

    Source: Efron, "Bootstrap methods: another look at the jackknife" (1979).
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        return math.nan, math.nan
    random = np.random.default_rng(seed)
    draws = [float(statistic(values[random.integers(0, len(values), len(values))])) for _ in range(resamples)]
    known = [draw for draw in draws if not math.isnan(draw)]
    if not known:
        return math.nan, math.nan
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)


def mean(values: ArrayLike, *, seed: int = 0) -> Estimate:
    """Mean of ``(N,)`` with its bootstrap interval."""
    values = np.asarray(values, np.float64)
    return Estimate(float(values.mean()), *bootstrap(values, seed=seed), len(values)) if len(values) else _NOTHING


def ratio(a: ArrayLike, b: ArrayLike, *, seed: int = 0) -> Estimate:
    """Ratio of two means over the same faces, ``mean(a) / mean(b)``, with its paired bootstrap interval.

    Args:
        a: ``(N,)``.
        b: ``(N,)``, of the same faces in the same order; NaN is returned where its mean is 0.
        seed: Of the draws.
    """
    pairs = np.stack([np.asarray(a, np.float64), np.asarray(b, np.float64)], 1)

    def of(rows: Floats) -> float:
        top, bottom = rows.mean(0)
        return float(top / bottom) if bottom else math.nan

    return Estimate(of(pairs), *bootstrap(pairs, of, seed=seed), len(pairs)) if len(pairs) else _NOTHING


def psnr(squared_error: ArrayLike) -> Floats:
    """``-10 log10(e)`` in dB of mean squared errors on pixels in [0, 1].

    Errors below that of rounding to 8 bits, ``1 / (12 * 255^2)``, count as that: the figure is at most 58.9 dB,
    so that pictures without any error do not make a mean infinite.
    """
    return -10 * np.log10(np.maximum(np.asarray(squared_error, np.float64), 1 / (12 * 255**2)))


def ssim(a: ArrayLike, b: ArrayLike) -> Floats:
    """Structural similarity of pictures, in [-1, 1]; 1 where they are equal.

    The variant with a Gaussian window of 11 x 11 pixels and deviation 1.5, windows that lie wholly inside the
    picture, weighted (not sample) variances, K1 = .01, K2 = .03 and data range 1; each channel of RGB by
    itself, then the mean over positions and channels. Pictures are not reduced first.

    Args:
        a: ``(N, C, H, W)`` in [0, 1], at least 11 pixels high and wide.
        b: The same.

    Returns:
        ``(N,)``.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004).
    """
    position = np.arange(11) - 5
    window = np.exp(-(position**2) / (2 * 1.5**2))
    window /= window.sum()

    def local(x: Floats) -> Floats:
        for axis in (2, 3):
            x = np.lib.stride_tricks.sliding_window_view(x, 11, axis) @ window
        return x

    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    c1, c2 = 0.01**2, 0.03**2
    mean_a, mean_b = local(a), local(b)
    var_a, var_b = local(a * a) - mean_a**2, local(b * b) - mean_b**2
    together = local(a * b) - mean_a * mean_b
    light = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * together + c2) / (var_a + var_b + c2)
    return (light * structure).mean((1, 2, 3))


def effects(shifts: ArrayLike, defined: ArrayLike, spread: ArrayLike) -> Floats:
    """Table of effects: what moving one attribute does to every attribute.

    ``E[i, j] = mean over faces n on which i and j are defined of shifts[i, n, j] / spread[j]``.

    Args:
        shifts: ``(A, N, A)``: change of score j of face n when attribute i is moved.
        defined: ``(N, A)`` of bool: whether an attribute is defined on a face.
        spread: ``(A,)`` standard deviations of the scores over unedited faces.

    Returns:
        ``(A, A)`` in standard deviations; NaN where no face counts.
    """
    shifts, defined = np.asarray(shifts, np.float64), np.asarray(defined, bool)
    counts = defined.T.astype(np.float64) @ defined
    totals = np.einsum("inj,ni,nj->ij", shifts, defined, defined) / np.asarray(spread, np.float64)
    return np.divide(totals, counts, out=np.full(counts.shape, math.nan), where=counts > 0)


def entanglement(table: ArrayLike, leave_out: ArrayLike | None = None) -> float:
    """How much an edit moves the other attributes, as a part of how far it moves its own.

    ``mean over i != j of |E[i, j]|, divided by mean over i of |E[i, i]|``; 0 is perfectly disentangled.

    Args:
        table: E, ``(A, A)``, from :func:`effects`.
        leave_out: ``(A, A)`` of bool: pairs that do not count, such as two hair colours.
    """
    table = np.abs(np.asarray(table, np.float64))
    off = ~np.eye(len(table), dtype=bool)
    if leave_out is not None:
        off &= ~np.asarray(leave_out, bool)
    off &= ~np.isnan(table)
    return float(table[off].mean() / np.nanmean(np.diag(table))) if off.any() else math.nan


def sparsity(direction: ArrayLike) -> float:
    """Share of the entries of a direction that are exactly non-zero: ``|{d != 0}| / |d|``."""
    direction = np.asarray(direction)
    return float(np.count_nonzero(direction) / direction.size)
