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
    """

    def __init__(self, groups: Sequence[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas})

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
                state["step"] += 1
                state["mean"].lerp_(p.grad, 1 - beta1)
                state["square"].lerp_(p.grad.square().mean().to(state["square"]), 1 - beta2)
                n = float(state["step"])
                size = math.sqrt(float(state["square"]) / (1 - beta2**n)) + 1e-12
                p.sub_(state["mean"], alpha=group["lr"] / (1 - beta1**n) / size)


def soft_threshold(x: Tensor, threshold: float) -> Tensor:
    """The proximal operator of ``threshold * |x|_1``: ``sign(x) max(|x| - threshold, 0)``, with exact zeros."""
    return x.sign() * (x.abs() - threshold).clamp_min(0)
