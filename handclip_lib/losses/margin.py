"""Angular-margin softmax: ArcFace, with a margin that grows and a guard that lowers it."""

import math
from typing import Annotated

import torch
from pydantic import AfterValidator, BeforeValidator
from torch import Tensor, nn
from torch.nn import functional as F

from handclip_lib.losses.guards import MarginGuard
from handclip_lib.schema_base import Rate, Whole, no_bool


def _radians(value: float) -> float:
    if not 0 <= value < math.pi / 2:
        raise ValueError("a margin in radians, from 0 to 1.57, was expected; 30 degrees are 0.52")
    return value


Radians = Annotated[float, BeforeValidator(no_bool), AfterValidator(_radians)]


class ArcFace(nn.Module):
    """Cross-entropy of scale · cos(θ), where the true identity's angle is widened by a margin.

    margin: radians (0.3 is 17°); beyond θ = π - margin the target is cos θ - margin · sin margin,
    which keeps falling. At cosines around 0 the loss is s · sin m + ln(exp(-s · sin m) + C - 1).
    The margin grows from 0 over `margin_warmup_epochs`; until `set_epoch` is called it is whole.
    Deng et al. 2019, arXiv:1801.07698, eq. 3.
    """

    share: Tensor

    def __init__(
        self,
        num_ids: int,
        width: int,
        *,
        scale: Rate = 20.0,
        margin: Radians = 0.3,
        margin_warmup_epochs: Whole = 5,
    ) -> None:
        super().__init__()
        # Only directions count; short vectors let an adaptive optimiser turn them in good time.
        self.weight = nn.Parameter(torch.randn(num_ids, width) * 0.01)
        self.scale, self.margin, self.warmup = scale, margin, margin_warmup_epochs
        self.register_buffer("share", torch.ones(()))  # of the margin, by the epoch
        self.guard = MarginGuard(num_ids)
        self.seen: dict[str, Tensor] = {}  # of the last forward

    def set_epoch(self, epoch: int) -> None:
        """epoch: from 1, where the margin is 0; it is whole from epoch 1 + warm-up on."""
        self.share.fill_(min(1.0, (epoch - 1) / self.warmup) if self.warmup else 1.0)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """z: (B, W); y: (B,). float32 whatever autocast says, when it is called outside of it."""
        cosine = self.cosines(z)  # (B, C)
        target = cosine.gather(1, y[:, None])  # (B, 1)
        margin = self.margin * self.share * self.guard.factor
        sine = (1 - target.square()).clamp(min=1e-9).sqrt()  # at 0 the root has no gradient
        wider = target * margin.cos() - sine * margin.sin()  # cos(θ + m)
        wider = torch.where(target >= -margin.cos(), wider, target - margin * margin.sin())
        with torch.no_grad():
            confidence = (self.scale * cosine).softmax(dim=1).gather(1, y[:, None]).mean()
            self.seen = {
                "target_cosine": target.detach().mean(),
                "confidence": confidence,
                "margin": margin.clone(),
            }
            if self.training:
                self.guard(confidence, past_warmup=self.share >= 1)
        return F.cross_entropy(self.scale * cosine.scatter(1, y[:, None], wider), y)

    def cosines(self, z: Tensor) -> Tensor:
        """(B, C) cosines with the identities' directions, -1 to 1."""
        return F.linear(F.normalize(z), F.normalize(self.weight)).clamp(-1, 1)

    def logits(self, z: Tensor) -> Tensor:
        """(B, C) without a margin."""
        return self.scale * self.cosines(z)
