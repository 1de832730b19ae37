"""Images against texts: each row of one kind finds its identity among the rows of the other."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_modal(
    a: Tensor,
    b: Tensor,
    y_a: Tensor,
    y_b: Tensor,
    scale: float,
    smoothing: float = 0.0,
    similarity: Literal["cosine", "dot"] = "cosine",
) -> Tensor:
    """Cross-entropy of a's rows over b's, spread evenly over the positives, as a scalar.

    The mean over those a_i that have positives P(i), the b_p of their identity, of
    -1/|P(i)| sum_p log softmax_p(scale <a_i, b_p>): an item's own pair is one of them.
    a: (N, E); b: (K, E), raw; y_a: (N,), y_b: (K,) int identities; scale: CLIP's factor on cosines;
    smoothing: share of the target that all K have alike; similarity: dot for products of raw
    features, without scale. 0 with a zero gradient where no row has a positive. float32, also
    under autocast. Khosla et al. 2020, arXiv:2004.11362, eq. 2 (L_out); Li et al. 2023,
    arXiv:2211.13977, eqs. 3 to 5 and 7.
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (a, b))
        if similarity == "dot":
            logits = a @ b.T  # (N, K)
        else:
            logits = scale * F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
        positive = (y_a[:, None] == y_b[None]).to(logits.dtype)
        count = positive.sum(dim=1)
        target = (1 - smoothing) * positive / count.clamp(min=1)[:, None]
        target = target + smoothing / max(len(b), 1)
        rows = -(target * logits.log_softmax(dim=1)).sum(dim=1)  # (N,)
        found = (count > 0).to(rows.dtype)
        return (rows * found).sum() / found.sum().clamp(min=1)
