"""Centre loss: each identity's features are drawn to its centre."""

from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn
from torch.nn import functional as F

from handclip_lib.schema_base import no_bool

Step = Annotated[float, BeforeValidator(no_bool), Field(gt=0, le=1)]


class Center(nn.Module):
    """Half the mean squared distance to the own identity's centre: ½ · mean ‖f - c_y‖².

    normalize: features are unit vectors, and the loss lies between 0 and 2 whatever their scale.
    update: ema: c_j moves by -alpha · Σ(c_j - f_i) / (1 + n_j) over the n_j features of j, after
    the loss is taken; sgd: centres are parameters that the optimiser moves (under Adam their steps
    don't depend on the weight that the loss has in the total).
    A centre without a start is put where its identity is first seen.
    Wen et al. 2016, doi:10.1007/978-3-319-46478-7_31, eq. 2 and 4.
    """

    centers: Tensor
    known: Tensor

    def __init__(
        self,
        num_ids: int,
        width: int,
        *,
        update: Literal["ema", "sgd"] = "ema",
        alpha: Step = 0.5,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.update, self.alpha, self.normalize = update, alpha, normalize
        if update == "sgd":
            self.centers = nn.Parameter(torch.zeros(num_ids, width))
        else:
            self.register_buffer("centers", torch.zeros(num_ids, width))
        self.register_buffer("known", torch.zeros(num_ids, dtype=torch.bool))

    @torch.no_grad()
    def start(self, means: Tensor) -> None:
        """means: (C, W) of raw features; rows that are not finite stay without a start."""
        if means.shape != self.centers.shape:
            raise ValueError(f"means: expected {tuple(self.centers.shape)}, got {means.shape}")
        means = (F.normalize(means) if self.normalize else means).to(self.centers)
        there = means.isfinite().all(dim=1)
        self.centers.copy_(torch.where(there[:, None], means, self.centers))
        self.known.logical_or_(there)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """z: (B, W); y: (B,). Centres move in training only."""
        z = F.normalize(z) if self.normalize else z
        if self.training:
            self._meet(z.detach(), y)
        near = self.centers[y]  # (B, W)
        cost = (z - near).square().sum(dim=1) / 2 * self.known[y]
        loss = cost.sum() / self.known[y].sum().clamp(min=1)
        if self.training and self.update == "ema":
            self._move(z.detach(), y)
        return loss

    @torch.no_grad()
    def _meet(self, z: Tensor, y: Tensor) -> None:
        sums, counts = self._sums(z, y)
        new = (counts > 0) & ~self.known
        means = sums / counts.clamp(min=1)[:, None]
        self.centers.copy_(torch.where(new[:, None], means, self.centers))
        self.known.logical_or_(new)

    @torch.no_grad()
    def _move(self, z: Tensor, y: Tensor) -> None:
        sums, counts = self._sums(z, y)
        pull = (counts[:, None] * self.centers - sums) / (1 + counts)[:, None]
        self.centers.sub_(self.alpha * pull)

    def _sums(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(C, W) and (C,); a product, because scattered additions differ from run to run."""
        member = F.one_hot(y, len(self.known)).to(z.dtype)  # (B, C)
        return member.T @ z, member.sum(dim=0)
