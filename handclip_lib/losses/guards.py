"""Collapses: a loss that has stopped to teach says so, and what it is.

Guards count on the device; only `message` waits for it, so call it now and then.
"""

import math

import torch
from torch import Tensor, nn

PATIENCE = 100  # steps
WINDOW = 50  # steps that a mean is taken over


class Collapse(RuntimeError):
    """Training can't go on: nothing is left in the features that a gradient could part."""


class TripletGuard(nn.Module):
    """Features drawn to one point: the loss rests at its margin (ln 2 for the soft one).

    alone: whether no other loss could part them again.
    """

    steps: Tensor
    spread: Tensor

    def __init__(self, where: str, margin: float | None, alone: bool) -> None:
        super().__init__()
        self.where, self.alone, self.told = where, alone, False
        self.rest = math.log(2) if margin is None else margin
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("spread", torch.zeros(()))

    @torch.no_grad()
    def forward(self, loss: Tensor, z: Tensor) -> None:
        """loss: scalar; z: (B, W) as the loss measures distances."""
        self.spread.copy_((z - z.mean(dim=0)).square().sum(dim=1).mean().sqrt())
        stuck = ((loss - self.rest).abs() <= 1e-3) & (self.spread < 0.05)
        self.steps.copy_(torch.where(stuck, self.steps + 1, 0))

    def message(self) -> str:
        """What happened, once; empty when nothing did. Raises Collapse when it lasts, alone."""
        steps = int(self.steps)
        known, self.told = self.told, steps > PATIENCE
        if not self.told or (known and steps <= 10 * PATIENCE):
            return ""
        text = (
            f"{self.where} has collapsed: for {steps} steps the loss is its resting value"
            f" {self.rest:.3f}, and the features lie within {float(self.spread):.2g} of one point,"
            " so all images look alike. Lower the learning rate, take mining: all or"
            " margin: null (soft), or add cross_entropy"
        )
        if self.alone and steps > 10 * PATIENCE:
            raise Collapse(text)
        return "" if known else text


class MarginGuard(nn.Module):
    """A margin that is too hard: past its warm-up the head still does no better than guess.

    When the mean confidence (softmax of scale · cosine, without margin, 0 to 1) of WINDOW steps is
    below twice a guess's, `factor`, a multiple of the margin, is halved; the state keeps it.
    """

    factor: Tensor
    told: Tensor
    total: Tensor
    count: Tensor
    last: Tensor

    def __init__(self, num_ids: int) -> None:
        super().__init__()
        self.num_ids = num_ids
        self.least = min(2 / num_ids, 0.5)
        self.register_buffer("factor", torch.ones(()))
        self.register_buffer("told", torch.ones(()))  # the factor of the last message
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("last", torch.zeros(()))  # mean of the last whole window

    @torch.no_grad()
    def forward(self, confidence: Tensor, past_warmup: Tensor) -> None:
        """confidence: scalar, 0 to 1; past_warmup: bool scalar."""
        total = torch.where(past_warmup, self.total + confidence, 0.0)
        count = torch.where(past_warmup, self.count + 1, 0.0)
        whole = count >= WINDOW
        mean = total / count.clamp(min=1)
        self.last.copy_(torch.where(whole, mean, self.last))
        self.factor.mul_(torch.where(whole & (mean < self.least), 0.5, 1.0))
        self.total.copy_(torch.where(whole, 0.0, total))
        self.count.copy_(torch.where(whole, 0.0, count))

    def message(self) -> str:
        """What happened since it was last asked; empty when nothing did."""
        if not self.factor < self.told:
            return ""
        self.told.copy_(self.factor)
        return (
            f"the margin head guesses: its mean confidence over {WINDOW} steps is"
            f" {float(self.last):.4f}, below {self.least:.4f} (of {self.num_ids} identities, twice"
            f" a guess), so its margin is lowered to {float(self.factor):g} of the one asked for."
            " If this goes on, the margin is not the cause: raise head_lr, warm up longer, or look"
            " at the labels"
        )


class PairGuard(nn.Module):
    """Batches in which few anchors have both a positive and a negative."""

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.told = False
        self.register_buffer("total", torch.zeros(()), persistent=False)
        self.register_buffer("count", torch.zeros(()), persistent=False)

    @torch.no_grad()
    def forward(self, share: Tensor) -> None:
        """share: of valid anchors, 0 to 1."""
        self.total.add_(share)
        self.count.add_(1)

    def message(self) -> str:
        """A warning, once."""
        if self.told or self.count < WINDOW or self.total / self.count >= 0.5:
            return ""
        self.told = True
        return (
            f"only {float(self.total / self.count):.0%} of the anchors had a positive and a"
            " negative in their batch: metric losses see little; use sampler type: pk"
        )
