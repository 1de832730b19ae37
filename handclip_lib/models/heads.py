"""What is put on an encoder's features for training: BNNeck, classifier, projection head."""

from torch import nn


def bn_neck(width: int) -> nn.BatchNorm1d:
    """BatchNorm of (B, width) features, scale 1, its bias frozen at 0.

    Metric losses read the features before it, classifiers those after it.
    Luo et al. 2019, arXiv:1903.07071, section III-F.
    """
    neck = nn.BatchNorm1d(width)
    neck.bias.requires_grad_(False)
    return neck


def classifier(width: int, num_ids: int) -> nn.Linear:
    """(B, width) features to (B, num_ids) logits: no bias, weights from N(0, 0.001)."""
    linear = nn.Linear(width, num_ids, bias=False)
    nn.init.normal_(linear.weight, std=0.001)
    return linear


def class_block(width: int, num_ids: int) -> nn.Sequential:
    """Linear, BatchNorm, LeakyReLU 0.1, dropout 0.5, Linear: (B, width) to (B, num_ids) logits.

    The head of each branch of MBA-Net: Baisa et al. 2022, arXiv:2108.02234.
    """
    last = nn.Linear(width, num_ids)
    nn.init.normal_(last.weight, std=0.001)
    nn.init.zeros_(last.bias)
    hidden = nn.Linear(width, width, bias=False)  # the BatchNorm has a bias
    return nn.Sequential(hidden, nn.BatchNorm1d(width), nn.LeakyReLU(0.1), nn.Dropout(0.5), last)


def projection_head(width: int, out: int) -> nn.Sequential:
    """Linear, BatchNorm, ReLU, Linear: (B, width) to (B, out).

    Losses read its output, retrieval its input. Chen et al. 2020, arXiv:2002.05709, section 4.2;
    BatchNorm in it as in Chen et al. 2021, arXiv:2104.02057.
    """
    return nn.Sequential(
        nn.Linear(width, width, bias=False),  # the BatchNorm has a bias
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Linear(width, out),
    )
