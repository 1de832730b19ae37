"""What each loss weighs in the total."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from handclip_lib.params import ParamError
from handclip_lib.schema_base import did_you_mean

BALANCES = ("fixed", "uncertainty", "ema")
LIMIT = 3.0  # of |s|: a loss that reaches 0 would get an unbounded weight
DECAY = 0.99  # of the running means
LEAST = 1e-3  # running mean that a weight is divided by


class Balance(nn.Module):
    """Weights of the losses, from those that were asked for.

    fixed: those; uncertainty: those times exp(-s), s learned (from 0, kept within ±3), with Σ s
    as one further term (Kendall et al. 2018, arXiv:1705.07115, eq. 7, with s = log σ²); ema: those
    divided by the running mean of the loss, so that each adds about its configured share.
    """

    average: Tensor

    def __init__(self, kind: str, asked: Mapping[str, float]) -> None:
        super().__init__()
        if kind not in BALANCES:
            raise ParamError(
                f"loss_balance: '{kind}' is none of {', '.join(BALANCES)}"
                f"{did_you_mean(kind, BALANCES)}"
            )
        self.kind, self.asked = kind, dict(asked)
        if kind == "uncertainty":
            self.s = nn.Parameter(torch.zeros(len(asked)))
        if kind == "ema":
            self.register_buffer("average", torch.zeros(len(asked)))  # 0: none yet

    def forward(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take note of a step's losses, scalars by name; gives all terms of the total."""
        if self.kind == "uncertainty":
            if self.training:
                with torch.no_grad():  # not in the graph: a clamped s would get no gradient back
                    self.s.clamp_(-LIMIT, LIMIT)
            return terms | {"uncertainty": self.s.sum()}
        if self.kind == "ema" and self.training:
            self._average(torch.stack([term.detach() for term in terms.values()]))
        return terms

    def weights(self) -> dict[str, Tensor | float]:
        """By name of the term, those of the last step; with a gradient under `uncertainty`."""
        if self.kind == "uncertainty":
            factors = torch.exp(-self.s)
            told = {k: w * f for (k, w), f in zip(self.asked.items(), factors, strict=True)}
            return {**told, "uncertainty": 1.0}
        if self.kind == "ema":
            seen = self.average > 0
            factors = torch.where(seen, 1 / self.average.clamp(min=LEAST), 1.0)
            return {k: w * f for (k, w), f in zip(self.asked.items(), factors, strict=True)}
        return dict(self.asked)

    def _average(self, now: Tensor) -> None:
        """A loss of exactly 0 had no pair, or has nothing left to teach: its mean stays."""
        going = DECAY * self.average + (1 - DECAY) * now
        mean = torch.where(self.average > 0, going, now)
        self.average.copy_(torch.where(now > 0, mean, self.average))
