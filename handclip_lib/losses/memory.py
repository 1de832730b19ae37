"""Cross-batch memory: features of earlier batches as further partners of the present one."""

import torch
from torch import Tensor, nn

from handclip_lib.losses.metric import Bank


class Memory(nn.Module):
    """The last `size` features and identities that were pushed; all of it is in the state.

    It stays empty for the first `start` epochs: features that drift fast are no partners.
    Wang et al. 2020, arXiv:1912.06798.
    """

    features: Tensor
    identities: Tensor
    position: Tensor
    open: Tensor

    def __init__(self, size: int, width: int, start: int) -> None:
        super().__init__()
        self.start = start
        self.register_buffer("features", torch.zeros(size, width))
        self.register_buffer("identities", torch.full((size,), -1))  # -1: empty
        self.register_buffer("position", torch.zeros((), dtype=torch.long))
        self.register_buffer("open", torch.ones((), dtype=torch.bool))

    def set_epoch(self, epoch: int) -> None:
        """epoch: from 1. Until it is called, the memory is open."""
        self.open.fill_(epoch > self.start)

    def forward(self) -> Bank:
        """What it holds: features (M, W) and identities (M,)."""
        held = self.identities >= 0
        return self.features[held], self.identities[held]

    @torch.no_grad()
    def push(self, z: Tensor, y: Tensor) -> None:
        """Remember z: (B, W) of y: (B,), in place of the oldest."""
        if not self.open:
            return
        size = len(self.identities)
        z, y = z[-size:].detach(), y[-size:]
        places = (self.position + torch.arange(len(y), device=y.device)) % size
        self.features[places], self.identities[places] = z, y
        self.position.copy_((self.position + len(y)) % size)
