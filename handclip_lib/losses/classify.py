"""Identity as a class: cross-entropy over a classifier."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from handclip_lib.models import heads
from handclip_lib.schema_base import Share


class CrossEntropy(nn.Module):
    """Softmax cross-entropy over `num_ids` identities, with label smoothing.

    Smoothing: Szegedy et al. 2016, arXiv:1512.00567, section 7. Classifier after a BNNeck: Luo et
    al. 2019, arXiv:1903.07071. head: `linear`, or `block`, which has a hidden layer (MBA-Net's).
    """

    def __init__(
        self,
        num_ids: int,
        width: int,
        *,
        label_smoothing: Share = 0.1,
        head: Literal["linear", "block"] = "linear",
    ) -> None:
        super().__init__()
        make = heads.classifier if head == "linear" else heads.class_block
        self.classifier: nn.Module = make(width, num_ids)
        self.label_smoothing = label_smoothing

    def forward(self, z: Tensor, y: Tensor, soft: Tensor | None = None) -> Tensor:
        """z: (B, W); y: (B,); soft: (B, C) rows that sum to 1, in place of y; both are smoothed."""
        target = y if soft is None else soft
        return F.cross_entropy(self.logits(z), target, label_smoothing=self.label_smoothing)

    def logits(self, z: Tensor) -> Tensor:
        """(B, W) to (B, C)."""
        logits: Tensor = self.classifier(z)
        return logits
