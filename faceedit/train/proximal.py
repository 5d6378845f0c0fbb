"""The optimizer of sparse directions: a step whose size is one for a whole tensor, for a threshold after it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["ProximalStep", "soft_threshold"]


class ProximalStep(torch.optim.Optimizer):
    """Momentum, with one step size for a whole tensor: the gradient over its own root mean square.

    Adam's step size for each entry would make all entries alike, and a threshold after it would keep
    the steadiest entries instead of the most effective ones. Tensors without gradient stay.

    Args:
        groups: As for every optimizer.
        lr: Step size.
        betas: Decay of the gradient's mean, and of its mean square.
        metric: ``(D, D)`` symmetric; gradients ``(..., D)`` are multiplied by it first, so that steps
            prefer what it calls short. None for the identity.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], lr: float, betas: tuple[float, float], metric: Tensor | None = None
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas})
        self._metric = metric

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state |= {"step": torch.zeros(()), "mean": torch.zeros_like(p), "square": torch.zeros(())}
                gradient = p.grad if self._metric is None else p.grad @ self._metric
                state["step"] += 1
                state["mean"].lerp_(gradient, 1 - beta1)
                state["square"].lerp_(gradient.square().mean().to(state["square"]), 1 - beta2)
                n = float(state["step"])
                size = math.sqrt(float(state["square"]) / (1 - beta2**n)) + 1e-12
                p.sub_(state["mean"], alpha=group["lr"] / (1 - beta1**n) / size)


def soft_threshold(x: Tensor, threshold: float) -> Tensor:
    """The proximal operator of ``threshold * |x|_1``: ``sign(x) max(|x| - threshold, 0)``, with exact zeros."""
    return x.sign() * (x.abs() - threshold).clamp_min(0)
