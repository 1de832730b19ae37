"""Losses of pairs and triplets: plain functions of features, identities and settings.

Each takes z: (B, W) float32 raw features and y: (B,) int identities, and gives a scalar: the mean
over all anchors, pairs or triplets that there are, also those that are satisfied, and 0 with a
zero gradient where there is none. `bank`: features (M, W) and identities (M,) of earlier batches,
further partners of the B anchors.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from handclip_lib.schema_base import Rate

Bank = tuple[Tensor, Tensor]


def partners(z: Tensor, y: Tensor, bank: Bank | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Whom anchors are compared with: features (R, W), masks of positives and negatives (B, R).

    The first B of the R are the batch itself; nobody is his own partner.
    """
    earlier, theirs = bank or (z[:0], y[:0])
    others, identities = torch.cat((z, earlier)), torch.cat((y, theirs))
    positive = y[:, None] == identities[None]  # (B, R)
    negative = ~positive
    positive[:, : len(y)].fill_diagonal_(False)
    return others, positive, negative


def distances(z: Tensor, others: Tensor) -> Tensor:
    """(B, R) Euclidean distances; the gradient at distance 0 is 0."""
    return torch.cdist(z, others, compute_mode="donot_use_mm_for_euclid_dist")


def triplet(
    z: Tensor,
    y: Tensor,
    bank: Bank | None = None,
    *,
    margin: Rate | None = 0.3,
    mining: Literal["batch_hard", "semi_hard", "hard", "all"] = "batch_hard",
    normalize: bool = False,
) -> Tensor:
    """Triplet loss: max(0, margin + d(a, p) - d(a, n)), Euclidean, on features before BNNeck.

    margin: in units of distance; None: log(1 + exp(d(a, p) - d(a, n))), the soft margin.
    mining: batch_hard: of each anchor its farthest positive and nearest negative; all: every
    triplet; hard: those with d(a, n) <= d(a, p); semi_hard: those with
    d(a, p) < d(a, n) <= d(a, p) + margin (Schroff et al. 2015, arXiv:1503.03832, section 3.2;
    the soft margin's band has no end). Hermans et al. 2017, arXiv:1703.07737, eq. 5 and section 3.
    """
    z, bank = _unit(z, bank) if normalize else (z, bank)
    others, positive, negative = partners(z, y, bank)
    d = distances(z, others)  # (B, R)
    if mining == "batch_hard":
        gap = _hardest(d, positive, negative)
    else:
        anchor, p = positive.nonzero(as_tuple=True)  # (P,) positive pairs
        gaps = d[anchor, p][:, None] - d[anchor]  # (P, R)
        keep = negative[anchor]
        if mining != "all":
            keep = keep & ((gaps >= 0) if mining == "hard" else (gaps < 0))
        if mining == "semi_hard" and margin is not None:
            keep = keep & (gaps >= -margin)
        gap = gaps[keep]  # (T,) of the triplets that are left
    cost = F.softplus(gap) if margin is None else F.relu(gap + margin)
    return cost.mean() if cost.numel() else _nothing(z)


def contrastive(
    z: Tensor,
    y: Tensor,
    bank: Bank | None = None,
    *,
    margin: Rate = 1.0,
    normalize: bool = True,
) -> Tensor:
    """Siamese loss: d²/2 of a pair of one identity, max(0, margin - d)²/2 of two, mean over pairs.

    d: Euclidean, of unit features (0 to 2) unless normalize is false.
    Hadsell et al. 2006, doi:10.1109/CVPR.2006.100, eq. 4.
    """
    z, bank = _unit(z, bank) if normalize else (z, bank)
    others, positive, negative = partners(z, y, bank)
    d = distances(z, others)
    cost = torch.where(positive, d.square(), F.relu(margin - d).square()) / 2
    pairs = positive | negative  # a pair of the batch from both ends, one with the bank from one
    return (cost * pairs).sum() / pairs.sum().clamp(min=1)


def supcon(z: Tensor, y: Tensor, bank: Bank | None = None, *, temperature: Rate = 0.1) -> Tensor:
    """Supervised contrastive loss of unit features, mean over the anchors that have a positive.

    Of an anchor: minus the mean over its positives of their log softmax among all others.
    Khosla et al. 2020, arXiv:2004.11362, eq. 2.
    """
    z, bank = _unit(z, bank)
    others, positive, negative = partners(z, y, bank)
    logits = z @ others.T / temperature  # (B, R)
    logits = logits.masked_fill(~(positive | negative), -torch.inf)
    count = positive.sum(dim=1)
    logits = logits[count > 0]
    if not len(logits):
        return _nothing(z)
    positive = positive[count > 0]
    log_p = (logits - logits.logsumexp(dim=1, keepdim=True)).masked_fill(~positive, 0.0)
    return -(log_p.sum(dim=1) / positive.sum(dim=1)).mean()


def valid_anchors(y: Tensor) -> Tensor:
    """Share of the batch, 0 to 1, that has a positive and a negative in it: of triplet anchors."""
    same = (y[:, None] == y[None]).sum(dim=1)
    return ((same > 1) & (same < len(y))).float().mean()


def _hardest(d: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """(V,) d(a, p) - d(a, n) of the V anchors that have both."""
    farthest = d.masked_fill(~positive, -torch.inf).amax(dim=1)
    nearest = d.masked_fill(~negative, torch.inf).amin(dim=1)
    return (farthest - nearest)[positive.any(dim=1) & negative.any(dim=1)]


def _unit(z: Tensor, bank: Bank | None) -> tuple[Tensor, Bank | None]:
    return F.normalize(z), bank and (F.normalize(bank[0]), bank[1])


def _nothing(z: Tensor) -> Tensor:
    """0, with a gradient of 0."""
    return z.sum() * 0.0
