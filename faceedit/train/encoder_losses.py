"""What pSp and e4e are trained with, beside the picture losses: parts for the encoder stage.

Source: Richardson et al., arXiv 2008.00951, section 3.2 (pSp); Tov et al., arXiv 2102.02766,
sections 4.2 and 5 (e4e), whose offsets stay small (:func:`offset_loss`), are let in one row at a
time (:func:`active_rows`), and whose rows must each pass for a code of W (:class:`LatentAdversary`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "LatentAdversary",
    "LatentDiscriminator",
    "LatentPool",
    "active_rows",
    "adversarial_loss",
    "discriminator_loss",
    "offset_loss",
    "r1_penalty",
]


def active_rows(step: int, n_styles: int, start: int = 20_000, every: int = 2_000) -> int:
    """How many rows of W+ have their own say at a step of e4e's progressive training.

    Args:
        step: Optimizer step, from 0.
        n_styles: Rows of W+.
        start: Before it all rows repeat row 0; at it row 1 gets its offset.
        every: Steps until the next row follows.

    Returns:
        1 to ``n_styles``, for ``Encoder4Editing.active_rows``.
    """
    return 1 if step < start else min(n_styles, 2 + (step - start) // every)


def offset_loss(latents: Tensor, rows: int) -> Tensor:
    """e4e's delta regularisation: lengths of the active rows' offsets from row 0, summed over rows.

    Args:
        latents: ``(B, n_styles, 512)``.
        rows: How many rows are active, see :func:`active_rows`; 1 gives 0.

    Returns:
        Scalar: the mean over the batch of ``sum_i |w_i - w_0|``, not squared, as the paper has it.
    """
    return (latents[:, 1:rows] - latents[:, :1]).norm(dim=2).sum(1).mean()


class LatentDiscriminator(nn.Module):
    """Tells codes of W from an encoder's rows: one logit for each, high for codes of W.

    Args:
        style_dim: Width of W.
        layers: Linear layers in all.
    """

    def __init__(self, style_dim: int = 512, layers: int = 4) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for _ in range(layers - 1):
            parts += [nn.Linear(style_dim, style_dim), nn.LeakyReLU(0.2)]
        self.mlp = nn.Sequential(*parts, nn.Linear(style_dim, 1))

    def forward(self, codes: Tensor) -> Tensor:
        """Codes ``(..., style_dim)`` to logits ``(...)``."""
        return self.mlp(codes).squeeze(-1)


def adversarial_loss(discriminator: nn.Module, latents: Tensor, rows: int) -> Tensor:
    """Non-saturating loss of the encoder: each active row should pass for a code of W.

    Args:
        discriminator: Frozen for this pass, or its gradients are dropped afterwards.
        latents: ``(B, n_styles, 512)``.
        rows: How many rows are active; the others repeat row 0.

    Returns:
        Scalar: the mean of ``softplus(-D(w_i))``.
    """
    return F.softplus(-discriminator(latents[:, :rows])).mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Logistic loss of the discriminator, from logits ``(B,)`` of codes of W and of encoded rows."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def r1_penalty(discriminator: nn.Module, real: Tensor, gamma: float = 10.0) -> Tensor:
    """R1: half ``gamma`` times the mean squared gradient of the logits at codes of W ``(B, 512)``.

    Source: Mescheder et al., arXiv 1801.04406, equation 9.
    """
    real = real.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
    return gamma / 2 * gradient.square().sum(1).mean()


class LatentPool(nn.Module):
    """Codes of past steps, so that the discriminator does not forget what the encoder used to do.

    Until it is full it keeps all that comes. Then each code that comes is answered, with even odds,
    by itself or by a stored one whose place it takes (Shrivastava et al., arXiv 1612.07828, 2.3).
    Its contents are buffers: saving and resuming keeps them.
    """

    def __init__(self, size: int = 50, style_dim: int = 512) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(size, style_dim))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def exchange(self, codes: Tensor, random: torch.Generator) -> Tensor:
        """Put codes in and get as many out.

        Args:
            codes: ``(B, 512)``, or ``(B, rows, 512)``, of which a random row of each is taken.
            random: On the CPU; makes all the choices.

        Returns:
            ``(B, 512)``.
        """
        if codes.ndim == 3:
            rows = torch.randint(codes.shape[1], (len(codes),), generator=random)
            codes = codes[torch.arange(len(codes)), rows]
        answers = codes.detach().clone()
        for i, code in enumerate(codes):
            swap, place = torch.rand(2, generator=random).tolist()
            if self.filled < len(self.codes):
                self.codes[self.filled] = code
                self.filled += 1
            elif swap < 0.5:
                j = int(place * len(self.codes))
                answers[i] = self.codes[j]
                self.codes[j] = code
        return answers


class LatentAdversary:
    """The discriminator's side of e4e's training: its network, optimizer and pools.

    Args:
        style_dim: Width of W.
        lr: Of its Adam.
        pool: Codes kept of each kind.
        gamma: Weight of R1.
        r1_every: Steps between R1 penalties, whose weight is multiplied by it.
        device: Where the codes will be.
    """

    def __init__(
        self,
        style_dim: int = 512,
        lr: float = 2e-5,
        pool: int = 50,
        gamma: float = 10.0,
        r1_every: int = 16,
        device: torch.device | str = "cpu",
    ) -> None:
        self.discriminator = LatentDiscriminator(style_dim).to(device)
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=lr)
        self.pools = nn.ModuleDict({kind: LatentPool(pool, style_dim) for kind in ("real", "fake")}).to(device)
        self.gamma, self.r1_every = gamma, r1_every

    def loss(self, latents: Tensor, rows: int) -> Tensor:
        """The encoder's :func:`adversarial_loss`; the discriminator gets no gradient from it."""
        self.discriminator.requires_grad_(False)
        try:
            return adversarial_loss(self.discriminator, latents, rows)
        finally:
            self.discriminator.requires_grad_(True)

    def update(self, real: Tensor, latents: Tensor, rows: int, step: int, random: torch.Generator) -> dict[str, float]:
        """One step of the discriminator.

        Args:
            real: ``(B, 512)``, codes of W from the generator's mapping.
            latents: ``(B, n_styles, 512)``, the encoder's codes.
            rows: How many of their rows are active.
            step: Every ``r1_every``-th makes an R1 step too.
            random: On the CPU; all choices of the pools are drawn from it.

        Returns:
            "discriminator", and "r1" where it was taken.
        """
        real = self.pools["real"].exchange(real, random)
        fake = self.pools["fake"].exchange(latents[:, :rows], random)
        loss = discriminator_loss(self.discriminator(real), self.discriminator(fake))
        self._descend(loss)
        found = {"discriminator": loss.item()}
        if step % self.r1_every == 0:
            penalty = r1_penalty(self.discriminator, real, self.gamma)
            self._descend(self.r1_every * penalty)
            found["r1"] = penalty.item()
        return found

    def _descend(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """All that an exact resume needs."""
        parts = ("discriminator", "optimizer", "pools")
        return {name: getattr(self, name).state_dict() for name in parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        for name, part in state.items():
            getattr(self, name).load_state_dict(part)
